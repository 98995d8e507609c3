//! A typed reader over the tree that notes every error and goes on, so that all of them are reported at once.

use std::cell::RefCell;

use super::endpoint;
use super::error::{ConfigError, Place};
use super::value::{Node, Table, Value};

/// The errors found so far.
#[derive(Debug, Default)]
pub(super) struct Errors(RefCell<Vec<ConfigError>>);

impl Errors {
    pub(super) fn push(&self, error: ConfigError) {
        self.0.borrow_mut().push(error);
    }

    pub(super) fn into_inner(self) -> Vec<ConfigError> {
        self.0.into_inner()
    }

    /// Notes that the value of `key` is wrong.
    pub(super) fn reject(&self, key: &str, node: &Node, problem: impl Into<String>) {
        let value = node.text.as_deref().filter(|_| !matches!(node.value, Value::Table(_))).map(endpoint::mask);
        self.push(ConfigError { place: node.place.clone(), key: key.to_owned(), value, problem: problem.into() });
    }

    /// Notes that the name of the key itself is wrong.
    pub(super) fn reject_key(&self, key: &str, node: &Node, problem: &str) {
        let error =
            ConfigError { place: node.key.clone(), key: key.to_owned(), value: None, problem: problem.to_owned() };
        self.push(error);
    }
}

/// One table, which may be absent: every key of it is then, too.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    /// The table's own dotted name; empty for the root.
    pub(super) name: &'a str,
    table: Option<&'a Table>,
    pub(super) errors: &'a Errors,
}

impl<'a> Section<'a> {
    /// The whole tree.
    pub(super) fn root(table: &'a Table, errors: &'a Errors) -> Section<'a> {
        Section { name: "", table: Some(table), errors }
    }

    /// The table that `node` is; an error when it is something else.
    pub(super) fn of(name: &'a str, node: Option<&'a Node>, errors: &'a Errors) -> Section<'a> {
        let table = match node.map(|node| &node.value) {
            Some(Value::Table(table)) => Some(table),
            Some(_) => {
                errors.reject(name, node.expect("it was matched"), format!("must be a table, [{name}]"));
                None
            }
            None => None,
        };
        Section { name, table, errors }
    }

    /// Every key and its node, in the order of the keys.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&'a String, &'a Node)> {
        self.table.into_iter().flatten()
    }

    /// The node at `key`.
    pub(super) fn node(&self, key: &str) -> Option<&'a Node> {
        self.table?.get(key)
    }

    /// The dotted name of `key`.
    pub(super) fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    /// The value at `key` as `parse` reads it; `None` when it is absent or wrong.
    pub(super) fn get<T>(&self, key: &str, parse: impl FnOnce(&Node) -> Result<T, String>) -> Option<T> {
        let node = self.node(key)?;
        parse(node).map_err(|problem| self.errors.reject(&self.path(key), node, problem)).ok()
    }

    /// The value at `key` as `parse` reads it; `default` when it is absent or wrong.
    pub(super) fn read<T>(&self, key: &str, default: T, parse: impl FnOnce(&Node) -> Result<T, String>) -> T {
        self.get(key, parse).unwrap_or(default)
    }

    /// The elements at `key` that `parse` accepts, with where they are; `None` when the key is absent or no array of
    /// `count` elements.
    pub(super) fn list<T>(
        &self,
        key: &str,
        count: std::ops::RangeInclusive<usize>,
        mut parse: impl FnMut(&Node) -> Result<T, String>,
    ) -> Option<Vec<(T, Node)>> {
        let nodes = self.get(key, |node| {
            let nodes = node.list()?;
            if count.contains(&nodes.len()) {
                Ok(nodes)
            } else {
                Err(format!("must have {} to {} elements, it has {}", count.start(), count.end(), nodes.len()))
            }
        })?;
        let mut elements = Vec::with_capacity(nodes.len());
        for (index, node) in nodes.into_iter().enumerate() {
            match parse(&node) {
                Ok(element) => elements.push((element, node)),
                Err(problem) => self.errors.reject(&format!("{}[{index}]", self.path(key)), &node, problem),
            }
        }
        Some(elements)
    }

    /// Notes that `key` is absent and must not be. `place` is where its table is.
    pub(super) fn missing(&self, key: &str, place: &Place, problem: &str) {
        let error = ConfigError {
            place: place.clone(),
            key: self.path(key),
            value: None,
            problem: format!("missing: {problem}"),
        };
        self.errors.push(error);
    }
}
