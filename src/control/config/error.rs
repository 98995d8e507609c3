//! What is wrong with a configuration: which key, which value, what is allowed instead, and where it was written.

use std::fmt;
use std::sync::Arc;

/// Where a value came from. The order is the one in which errors are listed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In a file, counted from 1; columns count characters.
    At {
        /// The file's name as it was given.
        file: Arc<str>,
        /// The line.
        line: usize,
        /// The column of the first character.
        column: usize,
    },
    /// The file as a whole.
    File(Arc<str>),
    /// The environment variable of this name.
    Environment(Arc<str>),
    /// An option of the command line.
    CommandLine,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::At { file, line, column } => write!(f, "{file}:{line}:{column}"),
            Place::File(file) => f.write_str(file),
            Place::Environment(name) => write!(f, "environment variable {name}"),
            Place::CommandLine => f.write_str("command line"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Where it was written.
    pub place: Place,
    /// The dotted key, `services.sms.endpoints[1].weight`; empty where the file as a whole is meant.
    pub key: String,
    /// The value as it was written, cut to a readable length; `None` where there is none or it may be a secret.
    pub value: Option<String>,
    /// What is wrong with it, and what is allowed.
    pub problem: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        match &self.value {
            Some(value) => write!(f, "{} = {value}: ", self.key)?,
            None if self.key.is_empty() => {}
            None => write!(f, "{}: ", self.key)?,
        }
        f.write_str(&self.problem)
    }
}

/// Everything that is wrong with a configuration, in the order of the file, then the environment, then the command line.
/// Displayed one a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl ConfigErrors {
    /// `Ok` when there are none, sorted for display otherwise.
    pub(super) fn check(mut errors: Vec<ConfigError>) -> Result<(), ConfigErrors> {
        if errors.is_empty() {
            return Ok(());
        }
        errors.sort_by(|a, b| a.place.cmp(&b.place));
        Err(ConfigErrors(errors))
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
