//! A changed configuration takes effect without a restart: at SIGHUP, and when a file that it is read from changes.
//!
//! It is validated first: one with errors changes nothing, and the log says why. What cannot change in a running process
//! stays as it was, and is named.
//!
//! Files are looked at once a second rather than watched: it costs a few system calls, needs no watch descriptors, and
//! sees what watches miss, such as a link far up the path that was turned (a Kubernetes ConfigMap's `..data`), or a file
//! on a network. A change is taken up once two looks in a row find the same, so that no half-written file is read.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout};

use super::config::{self, Config, ConfigErrors, Source};
use super::publisher::Publisher;
use super::{notify, resolve};
use crate::telemetry::reloads::{ReloadResult, Reloads};

/// From one look at the files to the next.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A change is complete when nothing has changed for so long …
const SETTLED_AFTER: Duration = Duration::from_millis(200);

/// … or after so long, whatever still changes.
const SETTLING_MAX: Duration = Duration::from_secs(3);

/// How long reading it may take. Nobody waits for that but the change itself.
const READING_MAX: Duration = Duration::from_secs(5);

/// How many readings may hang at once; while so many do, no other is begun.
const READERS_MAX: usize = 8;

/// The most errors of one configuration that the log repeats.
const ERRORS_LOGGED_MAX: usize = 20;

/// Reads the configuration, and remembers what its files looked like.
///
/// # Errors
/// As [`config::load`].
pub fn load(source: &Source) -> Result<(Config, Looks), ConfigErrors> {
    // Before they are read: a change while they are is one that is still to be taken up.
    let mut looks = Looks::at(source.files());
    let config = config::load(source)?;
    looks.0.extend(Looks::at(config.auth.files.clone()).0);
    Ok((config, looks))
}

/// A configuration that can be read again.
#[derive(Debug)]
pub struct Origin {
    /// What it is made from.
    pub source: Source,
    /// What its files looked like when it was read.
    pub looks: Looks,
}

/// Reads the configuration again when there is reason to.
#[derive(Debug)]
pub struct Reloader {
    /// Where the configuration comes from; `None` for one that no file is behind.
    pub origin: Option<Origin>,
    /// Takes what was read.
    pub publisher: Arc<Publisher>,
    /// Counts what became of it.
    pub reloads: Arc<Reloads>,
}

impl Reloader {
    /// Reloads for as long as the process runs: for each word in `asked`, and when the files change.
    pub async fn run(mut self, mut asked: mpsc::Receiver<()>) {
        let Some(mut origin) = self.origin.take() else {
            while asked.recv().await.is_some() {
                tracing::warn!("SIGHUP: this gateway has no configuration file to read again");
            }
            return;
        };
        loop {
            tokio::select! {
                Some(()) = asked.recv() => {}
                () = origin.changes() => {}
            }
            self.reload(&mut origin).await;
        }
    }

    async fn reload(&self, origin: &mut Origin) {
        notify::reloading();
        let result = match read(origin.source.clone()).await {
            Some(Ok((config, looks))) => {
                origin.looks = looks;
                self.apply(config).await;
                ReloadResult::Applied
            }
            Some(Err(errors)) => {
                // Until they change again, there is no use in reading them again.
                origin.looks = origin.look().await;
                refuse(&errors);
                ReloadResult::Invalid
            }
            None => {
                origin.looks = origin.look().await;
                tracing::error!(
                    seconds = READING_MAX.as_secs(),
                    "the configuration could not be read in time; the last good one stays in force. Is one of its files a \
                     pipe that nobody writes to, or on a file system that hangs?"
                );
                ReloadResult::Invalid
            }
        };
        self.reloads.count(result);
        notify::ready();
    }

    async fn apply(&self, mut config: Config) {
        let fixed = keep_fixed(&mut config, &self.publisher.config());
        if !fixed.is_empty() {
            let keys = fixed.join(", ");
            tracing::warn!(%keys, "these keys have changed and take effect at the next start only; the others do now");
        }
        let resolved = resolve::resolve(&config, &self.publisher.resolved()).await;
        for failure in resolved.failures() {
            tracing::warn!(%failure, "a backend's name does not resolve");
        }
        let services = config.services.len();
        let generation = self.publisher.set_config(config, resolved);
        tracing::info!(generation, services, "the configuration was reloaded");
    }
}

/// Reads the configuration on a thread of its own, which a file that is never there does not let end: it is left behind, so
/// that neither the control plane nor the end of the process waits for it. `None`: it took too long.
async fn read(source: Source) -> Option<Result<(Config, Looks), ConfigErrors>> {
    static READERS: AtomicUsize = AtomicUsize::new(0);
    if READERS.fetch_add(1, Ordering::Relaxed) >= READERS_MAX {
        READERS.fetch_sub(1, Ordering::Relaxed);
        return None;
    }
    let (send, receive) = oneshot::channel();
    let reading = move || {
        // Whoever gave up does not want it any more.
        let _ = send.send(load(&source));
        READERS.fetch_sub(1, Ordering::Relaxed);
    };
    std::thread::Builder::new().name("ringway-config".into()).spawn(reading).ok()?;
    timeout(READING_MAX, receive).await.ok()?.ok()
}

/// Says what is wrong.
fn refuse(errors: &ConfigErrors) {
    let count = errors.0.len();
    for error in errors.0.iter().take(ERRORS_LOGGED_MAX) {
        tracing::error!(%error, "the new configuration is wrong");
    }
    tracing::error!(errors = count, "the configuration was not reloaded; the last good one stays in force");
}

/// Sets what cannot change while the process runs back to what `running` has. Returns the keys that differed.
fn keep_fixed(config: &mut Config, running: &Config) -> Vec<&'static str> {
    let mut fixed = Vec::new();
    let (new, old) = (&mut config.server, &running.server);
    keep("server.host", &mut new.host, &old.host, &mut fixed);
    keep("server.port", &mut new.port, &old.port, &mut fixed);
    keep("server.workers", &mut new.workers, &old.workers, &mut fixed);
    keep("server.pin", &mut new.pin, &old.pin, &mut fixed);
    keep("server.driver", &mut new.driver, &old.driver, &mut fixed);
    keep("server.backlog", &mut new.backlog, &old.backlog, &mut fixed);
    let most = "server.max_connections_per_worker";
    keep(most, &mut new.max_connections_per_worker, &old.max_connections_per_worker, &mut fixed);
    keep("admin.listen", &mut config.admin.listen, &running.admin.listen, &mut fixed);
    keep("[redis]", &mut config.redis, &running.redis, &mut fixed);
    keep("rate_limit.memory_keys", &mut config.memory_keys, &running.memory_keys, &mut fixed);
    keep("[metrics]", &mut config.metrics, &running.metrics, &mut fixed);
    keep("logging.level", &mut config.level, &running.level, &mut fixed);
    let sample = config.tracing.sample;
    config.tracing.sample = running.tracing.sample;
    keep("[tracing]", &mut config.tracing, &running.tracing, &mut fixed);
    config.tracing.sample = sample;
    fixed
}

fn keep<T: PartialEq + Clone>(key: &'static str, new: &mut T, old: &T, fixed: &mut Vec<&'static str>) {
    if new != old {
        new.clone_from(old);
        fixed.push(key);
    }
}

impl Origin {
    /// Waits until the files look different from when they were read, and no longer change.
    async fn changes(&self) {
        let mut seen = loop {
            sleep(LOOK_EVERY).await;
            let seen = self.look().await;
            if seen != self.looks {
                break seen;
            }
        };
        let end = Instant::now() + SETTLING_MAX;
        while Instant::now() < end {
            sleep(SETTLED_AFTER).await;
            let again = self.look().await;
            if again == seen {
                break;
            }
            seen = again;
        }
    }

    async fn look(&self) -> Looks {
        let paths = self.looks.0.iter().map(|(path, _)| path.clone()).collect();
        spawn_blocking(move || Looks::at(paths)).await.unwrap_or_default()
    }
}

/// What files look like: enough to tell each from what it was before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Looks(Vec<(PathBuf, Option<Look>)>);

/// Device, inode, size, and the times of the last change of contents and of metadata.
type Look = [i64; 7];

impl Looks {
    /// What there is at `paths`.
    fn at(paths: Vec<PathBuf>) -> Looks {
        let look = |path: &PathBuf| {
            let data = fs::metadata(path).ok()?;
            let (device, inode, size) = (data.dev() as i64, data.ino() as i64, data.size() as i64);
            Some([device, inode, size, data.mtime(), data.mtime_nsec(), data.ctime(), data.ctime_nsec()])
        };
        Looks(paths.into_iter().map(|path| (path.clone(), look(&path))).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(text: &str) -> Config {
        Config::from_toml(text, "test", &[], &[]).expect("a good configuration")
    }

    #[test]
    fn what_cannot_change_stays_and_is_named() {
        let check = |text: &str, expected: &[&str]| {
            let running = config("[server]\nport = 8080\nworkers = 2");
            let mut new = config(text);
            assert_eq!(keep_fixed(&mut new, &running), expected, "{text}");
            assert_eq!(new.server.port, 8080);
            assert_eq!(keep_fixed(&mut new, &running), [""; 0], "{text}");
        };
        check("[server]\nport = 8080\nworkers = 2\ndrain_timeout = \"1s\"\n[timeouts]\nconnect = \"1s\"", &[]);
        check("[server]\nport = 8081\nworkers = 2", &["server.port"]);
        check("[server]\nworkers = 3\npin = false", &["server.workers", "server.pin"]);
        check(
            "[server]\nworkers = 2\n[redis]\nurl = \"redis://a\"\n[metrics]\nenabled = false",
            &["[redis]", "[metrics]"],
        );
    }

    #[test]
    fn a_file_is_told_from_what_it_was() {
        let folder = std::env::temp_dir().join(format!("ringway-look-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("a writable folder");
        let path = folder.join("config.toml");
        let look = || Looks::at(vec![path.clone()]);
        let absent = look();
        assert_eq!(absent.0[0].1, None);
        fs::write(&path, "a").expect("writable");
        let first = look();
        assert!(first != absent && first == look());
        // Of the same length and, on a coarse clock, the same time: another file in its place.
        fs::write(folder.join("next"), "b").expect("writable");
        fs::rename(folder.join("next"), &path).expect("writable");
        assert_ne!(look(), first);
        fs::remove_dir_all(folder).expect("it is there");
    }
}
