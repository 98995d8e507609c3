//! A snapshot as one worker has it: with its own side of each service and endpoint, of which what outlives the snapshot goes
//! on to the next.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::pool::EndpointState;
use super::watch::Millis;
use crate::snapshot::{self, EndpointId, Snapshot};
use crate::traffic::balance::Balancer;
use crate::traffic::retry::RetryBudget;
use crate::traffic::standing::{Health, Standing};

/// A snapshot with the state that belongs to it on this worker.
#[derive(Debug)]
pub struct Loaded {
    /// The snapshot.
    pub snapshot: Arc<Snapshot>,
    /// In the order of the snapshot's services.
    pub services: Box<[ServiceState]>,
}

/// What goes on from one snapshot to the next.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) endpoints: HashMap<EndpointId, Rc<EndpointState>>,
    /// By the services' names.
    services: HashMap<Box<str>, Rc<ServiceMemory>>,
}

impl Known {
    /// Forgets what no snapshot in use names any more.
    pub(super) fn forget(&mut self) {
        self.endpoints.retain(|_, state| Rc::strong_count(state) > 1);
        self.services.retain(|_, memory| Rc::strong_count(memory) > 1);
    }
}

/// A worker's side of a service: what outlives a snapshot.
#[derive(Debug, Default)]
pub struct ServiceMemory {
    /// Requests under way to the service from this worker, whichever snapshot they began with.
    pub in_flight: Cell<u32>,
    /// How many retries there may be.
    pub budget: RefCell<RetryBudget>,
    /// Whether any endpoint may be out as an outlier.
    pub has_ejected: Cell<bool>,
    /// When its endpoints were compared last.
    pub(super) compared: Cell<Millis>,
}

/// A worker's side of a service.
#[derive(Debug)]
pub struct ServiceState {
    /// Chooses an endpoint.
    pub balancer: RefCell<Balancer>,
    /// Which endpoints it may choose, by their health.
    pub standing: Standing,
    /// In the order of the snapshot's endpoints.
    pub endpoints: Box<[Rc<EndpointState>]>,
    /// What goes on from one snapshot to the next.
    pub memory: Rc<ServiceMemory>,
}

impl Loaded {
    /// `started` is when the coarse clock began.
    pub(super) fn new(snapshot: Arc<Snapshot>, known: &mut Known, started: Instant) -> Loaded {
        // What the snapshot does not name again keeps no connection beyond those that are in use.
        known.endpoints.values().for_each(|endpoint| endpoint.retire(true));
        let services = snapshot
            .services
            .iter()
            .map(|service| ServiceState {
                balancer: RefCell::new(Balancer::new(
                    service.load_balancing,
                    service.endpoints.iter().map(|endpoint| endpoint.weight),
                )),
                standing: standing(service, started),
                endpoints: service
                    .endpoints
                    .iter()
                    .map(|endpoint| {
                        let state = known.endpoints.entry(endpoint.id).or_default();
                        state.retire(false);
                        Rc::clone(state)
                    })
                    .collect(),
                memory: Rc::clone(known.services.entry(service.name.clone()).or_default()),
            })
            .collect();
        known.endpoints.values().for_each(|endpoint| endpoint.close_if_retired());
        Loaded { snapshot, services }
    }
}

fn standing(service: &snapshot::Service, started: Instant) -> Standing {
    let health = service.endpoints.iter().map(|endpoint| match endpoint.health {
        snapshot::Health::Healthy => Health::Healthy,
        snapshot::Health::Unhealthy => Health::Unhealthy,
        snapshot::Health::Returned(at) => Health::Returned(at.saturating_duration_since(started).as_millis() as Millis),
    });
    Standing::new(health, service.health.panic_threshold, service.health.slow_start.as_millis() as Millis)
}
