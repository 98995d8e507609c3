//! Keeps the book true: who gives no sign of life goes, and what other gateways changed comes in.
//!
//! Whom Redis has no more, though nobody deregistered it, is one of two: forgotten, when its time is over and Redis would
//! have taken a sign of life; or lost, and then brought back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::away::{Away, Unreadable};
use super::instance::Instance;
use super::reading::Reading;
use super::shared::{Shared, TIMEOUT};
use super::{Registry, State, names_of};

/// How often Redis is read when nothing else gives reason to.
pub const READ_EVERY: Duration = Duration::from_secs(5);

/// How often it is tried while it is away.
const TRY_EVERY: Duration = Duration::from_secs(1);

/// From one look at everything to the next, at least: many changes at once become few snapshots.
const LOOK_APART: Duration = Duration::from_millis(50);

/// Who is in the book and not in Redis.
#[derive(Debug, Default)]
struct Missed {
    /// To be brought back: Redis has lost them, or has heard no sign of life while nobody could give one.
    restored: Vec<(String, Instance)>,
    /// A service that has one whose time is over.
    forgotten: Option<String>,
}

impl Registry {
    /// Takes out who gives no sign of life, and learns what other gateways changed, for as long as the process runs.
    pub async fn keep(self: Arc<Self>) {
        if self.shared.is_some() {
            tokio::spawn(Arc::clone(&self).listen());
        }
        let mut config_changes = self.publisher.config_changes();
        loop {
            match &self.shared {
                Some(shared) => self.read(shared).await.unwrap_or_else(|away| self.note(&away)),
                None => self.expire(),
            }
            sleep(LOOK_APART).await;
            tokio::select! {
                () = sleep(self.pause()) => {}
                () = self.wake.notified() => {}
                // A service that was added may have instances already.
                Ok(()) = config_changes.changed() => {}
            }
        }
    }

    /// Wakes [`Registry::keep`] whenever a gateway has changed something. Without, the change is seen at the next look.
    async fn listen(self: Arc<Self>) {
        let Some(shared) = &self.shared else { return };
        loop {
            if let Ok(mut notices) = shared.notices(self.redis()).await {
                // What was said before somebody listened.
                self.wake.notify_one();
                while notices.next().await.is_some() {
                    self.wake.notify_one();
                }
                // It may be back, and empty, before it is asked the next time.
                self.note(&Away::Lost);
                self.wake.notify_one();
            }
            sleep(TRY_EVERY).await;
        }
    }

    /// How long there is nothing to do unless somebody says so.
    fn pause(&self) -> Duration {
        let state = self.state();
        let most = match &self.shared {
            Some(_) if state.stale.is_some() || !state.unreadable.is_empty() => return TRY_EVERY,
            Some(_) => READ_EVERY,
            None => Duration::from_secs(3_600),
        };
        let next = state.book.next_expiry().map(|expiry| expiry.saturating_duration_since(Instant::now()));
        next.map_or(most, |next| next.min(most))
    }

    fn expire(&self) {
        let over = {
            let mut state = self.state();
            let over = state.book.expire(Instant::now());
            self.publisher.set_registered(state.book.registered());
            over
        };
        for (service, id) in over {
            tracing::info!(service, %id, "an instance gave no sign of life; it is forgotten");
        }
    }

    /// Brings the book in line with Redis.
    async fn read(&self, shared: &Shared) -> Result<(), Away> {
        let noted = {
            let mut state = self.state();
            state.touched = Some(BTreeSet::new());
            state.noted
        };
        let (services, allow) = self.publisher.read(|ingredients| {
            let config = &ingredients.config;
            (names_of(config), config.discovery.allow.clone())
        });
        let mut reading = shared.read(self.redis(), &services, allow.as_deref()).await?;
        let missed = self.missed(&reading, &services);
        if !missed.restored.is_empty() {
            for (service, instance) in &missed.restored {
                shared.restore(self.redis(), service, instance).await?;
            }
            tracing::info!(
                count = missed.restored.len(),
                "instances that Redis did not have any more were brought back"
            );
            reading = shared.read(self.redis(), &services, allow.as_deref()).await?;
        }
        if let Some(service) = &missed.forgotten {
            shared.try_writing(self.redis(), service).await?;
        }
        self.adopt(reading, noted);
        Ok(())
    }

    /// Who of `services` is in the book and not in Redis, though nobody deregistered it.
    fn missed(&self, reading: &Reading, services: &[String]) -> Missed {
        let (state, now) = (self.state(), Instant::now());
        let mut missed = Missed::default();
        for (service, id, entry) in state.book.all() {
            let is_known = reading.book.get(service, id).is_some() || reading.gone.contains(&(service.to_owned(), id));
            let is_read = services.iter().any(|read| read == service) && !reading.unreadable.contains_key(service);
            if is_known || !is_read {
                continue;
            }
            // Before its time, Redis has lost it: by a restart unseen, an eviction, or since its clock was set forward.
            let is_early = entry.left(now) > TIMEOUT;
            match is_early || state.stale.is_some() || state.unreadable.contains_key(service) {
                true => missed.restored.push((service.to_owned(), entry.instance.clone())),
                false => missed.forgotten = Some(service.to_owned()),
            }
        }
        missed
    }

    /// Takes what was read since so much was `noted`.
    fn adopt(&self, reading: Reading, noted: u64) {
        let Reading { book: mut found, unreadable, .. } = reading;
        let mut state = self.state();
        if state.noted != noted {
            return self.wake.notify_one();
        }
        if state.stale.take().is_some() {
            tracing::info!("Redis answers again; registered instances are up to date");
        }
        for service in state.unreadable.keys().filter(|service| !unreadable.contains_key(*service)) {
            tracing::info!(service, "the registered instances of a service can be read again");
        }
        state.unreadable.retain(|service, _| unreadable.contains_key(service));
        for (service, why) in unreadable {
            found.keep(&service, &state.book);
            state.note_unreadable(&service, why);
        }
        for (service, id) in state.touched.take().unwrap_or_default() {
            match state.book.get(&service, id) {
                Some(entry) => found.insert(&service, entry.clone()),
                None => drop(found.remove(&service, id)),
            }
        }
        for (service, id, _) in state.book.all().filter(|(service, id, _)| found.get(service, *id).is_none()) {
            tracing::info!(service, %id, "an instance is no longer registered");
        }
        state.book = found;
        self.publisher.set_registered(state.book.registered());
    }

    /// Notes that Redis is away, or refuses, and says so once.
    pub(super) fn note(&self, away: &Away) {
        let mut state = self.state();
        let known = state.book.all().count();
        state.noted += 1;
        let before = state.stale.replace(away.clone());
        match (before.map(|before| before.is_answer()), away.is_answer()) {
            (Some(before), now) if before == now => {}
            (_, true) => tracing::warn!(
                error = %away,
                known,
                "Redis answers with an error; the instances known last stay in use, stale, until it takes changes again"
            ),
            (_, false) => tracing::warn!(
                error = %away,
                known,
                "Redis does not answer; the instances known last stay in use, stale"
            ),
        }
    }
}

impl State {
    /// Notes that what Redis has of `service` cannot be read, and says so once.
    pub(super) fn note_unreadable(&mut self, service: &str, unreadable: Unreadable) {
        if !self.unreadable.contains_key(service) {
            let known = self.book.of(service).count();
            tracing::warn!(
                service,
                key = unreadable.key,
                error = unreadable.why,
                known,
                "the registered instances of a service cannot be read; those known last stay in use, stale. {}",
                unreadable.remedy()
            );
            self.unreadable.insert(service.to_owned(), unreadable);
        }
    }
}
