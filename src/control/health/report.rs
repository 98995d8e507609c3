//! What is known about the health of every endpoint: written by the prober, read by the management API.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::verdict::Verdict;
use crate::snapshot::EndpointId;

/// What is known about one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthReport {
    /// What it counts as, and the streak that it is in.
    pub verdict: Verdict,
    /// Its last check; `None` before the first one has ended.
    pub last: Option<LastCheck>,
}

/// The last check of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastCheck {
    /// When it ended.
    pub at: SystemTime,
    /// Whether it passed.
    pub passed: bool,
    /// What came of it: `status 200`, `cannot connect: connection refused`.
    pub result: String,
    /// How long it took.
    pub latency: Duration,
}

/// The reports on all endpoints that are checked.
#[derive(Debug, Default)]
pub struct Reports(Mutex<HashMap<EndpointId, HealthReport>>);

impl Reports {
    /// The report on an endpoint; `None` for one that is not checked.
    pub fn get(&self, id: EndpointId) -> Option<HealthReport> {
        self.lock().get(&id).cloned()
    }

    pub(super) fn set(&self, id: EndpointId, report: HealthReport) {
        self.lock().insert(id, report);
    }

    /// Forgets those that `keep` does not name.
    pub(super) fn retain(&self, keep: impl Fn(EndpointId) -> bool) {
        self.lock().retain(|&id, _| keep(id));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<EndpointId, HealthReport>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
