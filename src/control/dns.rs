//! Names are asked for again when their TTL is over; a changed answer becomes a new snapshot.
//!
//! Each name has its own time and its own lookup, so that one whose server hangs delays no other. A lookup that fails leaves
//! the last answer in force; it is logged when that begins and when it ends, and tried again at growing intervals.

mod refresh;
mod schedule;

use std::sync::Arc;

use tokio::time::{Instant, timeout};

use super::publisher::Publisher;
use super::resolve::resolver::Resolver;
use super::resolve::{Change, LOOKUP_TIMEOUT, Outcome, Question, Records, Resolved, too_late};
use refresh::{Ask, Refresh};

/// Keeps the addresses of the configuration's names as fresh as their TTL asks, `discovery.dns_refresh` at most.
pub async fn keep_resolving(publisher: Arc<Publisher>) {
    let mut refresh = Refresh::new(system_dns(Arc::clone(&publisher)));
    let mut config_changes = publisher.config_changes();
    loop {
        let plan = publisher.plan();
        refresh.follow(&plan, &publisher.resolved(), Instant::now());
        let answered = tokio::select! {
            answered = refresh.answered() => answered,
            Ok(()) = config_changes.changed() => continue,
            () = publisher.names_wanted() => continue,
        };

        let mut resolved = publisher.resolved();
        for (question, outcome) in answered {
            refresh.plan_next(&question, &outcome, &plan, Instant::now());
            learn(&mut resolved, &question, outcome);
        }
        resolved.forget_others(&publisher.plan());
        if let Some(generation) = publisher.set_resolved(resolved) {
            tracing::info!(generation, "backend addresses changed");
        }
    }
}

/// Notes the outcome, and logs where trouble begins or ends.
fn learn(resolved: &mut Resolved, question: &Question, outcome: Outcome) {
    match resolved.learn(question.clone(), outcome) {
        Some(Change::Failed) => {
            let failure = resolved.failure(question).unwrap_or_default();
            tracing::warn!(%failure, "a name does not resolve");
        }
        Some(Change::Recovered) => tracing::info!(name = %question, "a name resolves again"),
        None => {}
    }
}

/// Asks the servers of the configuration in force, the system's files being read anew when they change.
fn system_dns(publisher: Arc<Publisher>) -> Ask {
    let mut current = Arc::new(Resolver::new(&publisher.plan().servers));
    Box::new(move |question: Question, known: Option<Records>| {
        let servers = publisher.plan().servers;
        if !current.is_current(&servers) {
            current = Arc::new(Resolver::new(&servers));
        }
        let resolver = Arc::clone(&current);
        Box::pin(async move {
            let outcome = timeout(LOOKUP_TIMEOUT, resolver.ask(&question, known.as_ref())).await;
            outcome.unwrap_or_else(|_| Err(too_late()))
        })
    })
}
