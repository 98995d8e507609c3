//! The file that a configuration is read from.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use super::error::{ConfigError, ConfigErrors, Place};

/// Where the configuration is when the command line does not say.
pub(super) const DEFAULT_PATH: &str = "config.toml";

/// The largest configuration, in bytes: 100,000 API keys, with their names and scopes.
const CONFIG_BYTES_MAX: u64 = 32 << 20;

/// The text and the name of the file at `path`, which must be there, or else of the one at `default`, which may be absent.
pub(super) fn find(path: Option<&Path>, default: &Path) -> Result<Option<(String, String)>, ConfigErrors> {
    let chosen = path.unwrap_or(default);
    if path.is_none() && matches!(chosen.symlink_metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound) {
        return Ok(None);
    }
    let name = chosen.display().to_string();
    let fail = |place: Place, problem: String| {
        ConfigErrors(vec![ConfigError { place, key: String::new(), value: None, problem }])
    };
    let bytes =
        read(chosen, CONFIG_BYTES_MAX).map_err(|problem| fail(Place::File(Arc::from(name.as_str())), problem))?;
    match String::from_utf8(bytes) {
        Ok(text) => Ok(Some((text, name))),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|&&byte| byte == b'\n').count() + 1;
            let start = good.iter().rposition(|&byte| byte == b'\n').map_or(0, |index| index + 1);
            let column = String::from_utf8_lossy(&good[start..]).chars().count() + 1;
            Err(fail(Place::At { file: Arc::from(name), line, column }, "is not UTF-8".to_owned()))
        }
    }
}

/// The bytes of the file at `path`, at most `bytes_max`.
pub(super) fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let limit = bytes_max + 1;
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() as u64 == limit { Err(format!("is longer than {bytes_max} bytes")) } else { Ok(bytes) }
}
