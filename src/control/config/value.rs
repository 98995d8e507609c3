//! A configuration as a tree of values, each of which knows where it was written. It knows nothing of keys and ranges.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{ConfigError, ConfigErrors, Place};
use super::units;

/// A table's values by key.
pub(super) type Table = BTreeMap<String, Node>;

/// A value and where it came from.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    /// The value as it was written, cut to a readable length; `None` for what was read from a secret's file.
    pub(super) text: Option<String>,
    /// Where the value is.
    pub(super) place: Place,
    /// Where its key is.
    pub(super) key: Place,
}

/// What a value can be.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A quoted string of the file.
    Text(String),
    /// From the environment or the command line, where everything is a string: whatever the key wants it to be.
    Raw(String),
    /// Saturated: every range that is checked ends long before.
    Integer(i128),
    Float(f64),
    Boolean(bool),
    /// No key takes one.
    Datetime,
    List(Vec<Node>),
    Table(Table),
}

/// The longest piece of a value that an error repeats, in characters.
const TEXT_MAX: usize = 80;

/// Reads a TOML document. On a syntax error, all of those are returned: the tree around them would be a guess.
pub(super) fn parse(text: &str, name: &str) -> Result<Table, ConfigErrors> {
    let document = Document { text, file: Arc::from(name), lines: line_starts(text) };
    let (table, errors) = DeTable::parse_recoverable(text);
    let error = |error: toml::de::Error| ConfigError {
        place: error.span().map_or(Place::File(Arc::clone(&document.file)), |span| document.place(span.start)),
        key: String::new(),
        value: None,
        problem: error.message().to_owned(),
    };
    ConfigErrors::check(errors.into_iter().map(error).collect())?;
    Ok(document.table(table.get_ref()))
}

struct Document<'a> {
    text: &'a str,
    file: Arc<str>,
    lines: Vec<usize>,
}

impl Document<'_> {
    fn place(&self, offset: usize) -> Place {
        let offset = self.text.floor_char_boundary(offset);
        let line = self.lines.partition_point(|&start| start <= offset);
        let column = self.text[self.lines[line - 1]..offset].trim_start_matches('\u{feff}').chars().count() + 1;
        Place::At { file: Arc::clone(&self.file), line, column }
    }

    fn table(&self, table: &DeTable<'_>) -> Table {
        table
            .iter()
            .map(|(key, value)| {
                let mut node = self.node(value);
                node.key = self.place(key.span().start);
                (key.get_ref().to_string(), node)
            })
            .collect()
    }

    fn node(&self, value: &Spanned<DeValue<'_>>) -> Node {
        let place = self.place(value.span().start);
        Node {
            value: convert(value.get_ref(), |table| self.table(table), |element| self.node(element)),
            text: Some(shorten(self.text.get(value.span()).unwrap_or_default())),
            key: place.clone(),
            place,
        }
    }
}

fn line_starts(text: &str) -> Vec<usize> {
    std::iter::once(0).chain(text.match_indices('\n').map(|(index, _)| index + 1)).collect()
}

/// The recursion ends: the parser refuses nesting beyond 80 levels.
fn convert(
    value: &DeValue<'_>,
    table: impl Fn(&DeTable<'_>) -> Table,
    element: impl Fn(&Spanned<DeValue<'_>>) -> Node,
) -> Value {
    match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(digits) => {
            Value::Integer(i128::from_str_radix(digits.as_str(), digits.radix()).unwrap_or(i128::MAX))
        }
        DeValue::Float(digits) => Value::Float(digits.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(value) => Value::Boolean(*value),
        DeValue::Datetime(_) => Value::Datetime,
        DeValue::Array(array) => Value::List(array.iter().map(element).collect()),
        DeValue::Table(entries) => Value::Table(table(entries)),
    }
}

fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    if line.len() == text.len() && line.chars().count() <= TEXT_MAX {
        return line.to_owned();
    }
    let mut short: String = line.chars().take(TEXT_MAX).collect();
    short.push('…');
    short
}

impl Node {
    /// A value from the environment or the command line. `secret` values are not repeated in errors.
    pub(super) fn raw(value: &str, place: Place, secret: bool) -> Node {
        let text = (!secret).then(|| shorten(&format!("{value:?}")));
        Node { value: Value::Raw(value.to_owned()), text, key: place.clone(), place }
    }

    /// The string.
    pub(super) fn text(&self) -> Result<&str, String> {
        match &self.value {
            Value::Text(text) | Value::Raw(text) => Ok(text),
            _ => Err("must be a string".to_owned()),
        }
    }

    /// `true` or `false`; `1`, `0`, `yes`, `no`, `on` and `off` too outside of the file.
    pub(super) fn boolean(&self) -> Result<bool, String> {
        match &self.value {
            Value::Boolean(value) => Some(*value),
            Value::Raw(text) => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => Some(true),
                "false" | "0" | "no" | "off" => Some(false),
                _ => None,
            },
            _ => None,
        }
        .ok_or_else(|| "must be true or false".to_owned())
    }

    /// A whole number within `range`.
    pub(super) fn integer(&self, range: RangeInclusive<u64>) -> Result<u64, String> {
        let value = match &self.value {
            Value::Integer(value) => u64::try_from(*value).ok(),
            Value::Raw(text) => text.parse().ok(),
            _ => None,
        };
        value
            .filter(|value| range.contains(value))
            .ok_or_else(|| format!("must be a whole number from {} to {}", range.start(), range.end()))
    }

    /// A number; `NaN` and the infinities are none.
    pub(super) fn number(&self) -> Option<f64> {
        match &self.value {
            Value::Integer(value) => Some(*value as f64),
            Value::Float(value) => Some(*value),
            Value::Raw(text) => text.parse().ok(),
            _ => None,
        }
        .filter(|value| value.is_finite())
    }

    /// A number of bytes within `range`.
    pub(super) fn size(&self, range: RangeInclusive<u64>) -> Result<u64, String> {
        let value = match &self.value {
            Value::Integer(value) => u64::try_from(*value).ok(),
            Value::Text(text) | Value::Raw(text) => units::parse_size(text),
            _ => None,
        };
        value.filter(|value| range.contains(value)).ok_or_else(|| {
            let [low, high] = [*range.start(), *range.end()].map(units::show_size);
            format!("must be a number of bytes from {low} to {high}, such as 4096, \"16KiB\" or \"10MiB\"")
        })
    }

    /// A duration within `range`.
    pub(super) fn duration(&self, range: RangeInclusive<Duration>) -> Result<Duration, String> {
        let value = match &self.value {
            Value::Integer(value) => u64::try_from(*value).ok().map(Duration::from_secs),
            Value::Float(value) => Duration::try_from_secs_f64(*value).ok(),
            Value::Text(text) | Value::Raw(text) => units::parse_duration(text),
            _ => None,
        };
        value.filter(|value| range.contains(value)).ok_or_else(|| {
            let [low, high] = [*range.start(), *range.end()].map(units::show_duration);
            format!("must be a duration from {low} to {high}, written like these or as a number of seconds")
        })
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, choices: &[(&str, T)]) -> Result<T, String> {
        let text = self.text().unwrap_or_default();
        choices.iter().find(|(name, _)| *name == text).map(|&(_, value)| value).ok_or_else(|| {
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
            format!("must be one of {}", names.join(", "))
        })
    }

    /// The elements of an array. Outside of the file it is written `a,b,c`, or as in the file, `["a", "b"]`.
    pub(super) fn list(&self) -> Result<Vec<Node>, String> {
        match &self.value {
            Value::List(nodes) => Ok(nodes.clone()),
            Value::Raw(text) if text.trim_start().starts_with('[') => match DeValue::parse(text.trim()) {
                Ok(value) => match self.within(&value).value {
                    Value::List(nodes) => Ok(nodes),
                    _ => Err("must be an array".to_owned()),
                },
                Err(error) => Err(format!("is no array: {}", error.message())),
            },
            Value::Raw(text) => {
                let secret = self.text.is_none();
                Ok(text.split(',').map(|element| Node::raw(element.trim(), self.place.clone(), secret)).collect())
            }
            _ => Err("must be an array".to_owned()),
        }
    }

    /// A value written inside this one, outside of the file: it has no place of its own.
    fn within(&self, value: &Spanned<DeValue<'_>>) -> Node {
        let table = |table: &DeTable<'_>| -> Table {
            table.iter().map(|(key, value)| (key.get_ref().to_string(), self.within(value))).collect()
        };
        Node {
            value: convert(value.get_ref(), table, |element| self.within(element)),
            text: self.text.clone(),
            place: self.place.clone(),
            key: self.key.clone(),
        }
    }
}
