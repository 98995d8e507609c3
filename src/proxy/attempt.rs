//! Which endpoint a request goes to, and whether it goes to another one when that has failed.
//!
//! The rules are those of [`breaker`](crate::traffic::breaker) and [`retry`]; here they meet the
//! request's record and the worker's state. A request holds one breaker's permit at a time, which its record gives back
//! whatever becomes of it.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::failure::{BREAKER_OPEN, Failure, NO_ENDPOINT};
use super::transaction::Transaction;
use super::upstream::Plan;
use super::watch::{Millis, TICK, Watched};
use crate::http::problem::Problem;
use crate::http::request;
use crate::snapshot::{Phase, ServiceKind};
use crate::telemetry::counters::Deadline;
use crate::traffic::breaker::{BreakerState, Permit, Verdict};
use crate::traffic::retry::{self, ATTEMPTS_MAX};

/// What a request remembers of its tries.
#[derive(Debug, Default)]
pub struct Tries {
    /// The tries that failed, [`ATTEMPTS_MAX`] at most: the endpoint's index, and why. Most requests have none.
    failed: Vec<(u16, &'static str)>,
    /// When the try under way began, where that was later than the request.
    pub begun: Option<Instant>,
    /// When the last answer is due, whatever the number of tries.
    due: Option<Millis>,
    /// The breaker's leave for the try under way.
    pub permit: Option<Permit>,
}

impl Tries {
    /// The endpoints that failed, by their index, and why, in their order.
    pub fn failed(&self) -> &[(u16, &'static str)] {
        &self.failed
    }

    fn failures(&self) -> u8 {
        self.failed.len() as u8
    }

    /// The number of the retry under way, from 0: the try that it follows has been noted.
    fn retry(&self) -> u8 {
        self.failures().saturating_sub(1)
    }

    fn has_tried(&self, endpoint: usize) -> bool {
        self.failed.iter().any(|&(tried, _)| usize::from(tried) == endpoint)
    }

    fn note(&mut self, endpoint: usize, why: &'static str) {
        if self.failures() < ATTEMPTS_MAX {
            self.failed.push((endpoint as u16, why));
        }
    }
}

/// How far a try came before it failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing of the request was sent.
    NotSent,
    /// All that was read of the request is at hand to be sent again.
    AtHand,
    /// Something of the request's body is gone, or something of an answer was passed on.
    Gone,
}

/// Chooses the endpoint of the request's first try; its index.
///
/// # Errors
/// 503: no endpoint is healthy, or the breakers of all that are refuse.
pub fn choose(tx: &mut Transaction<'_>) -> Result<usize, Problem> {
    let now = tx.started();
    let Some(chosen) = pick(tx, now) else { return Err(refusal(tx, now)) };
    let loaded = Rc::clone(&tx.loaded);
    if let Some(index) = tx.service_index() {
        loaded.services[index].memory.budget.borrow_mut().note_request(now);
    }
    enter(tx, chosen, now);
    Ok(chosen)
}

/// Tries again after `failure`, where the rules allow it: then the request stands ready for another endpoint in the scratch's
/// `out`, and `Ok(true)` is returned after a pause. `failure` has been the endpoint's, not the client's.
///
/// # Errors
/// The pause was cut short: the client has left, or the drain's time is over.
pub async fn again(
    tx: &mut Transaction<'_>,
    client: &Watched,
    plan: &Plan,
    failure: Failure,
    progress: Progress,
) -> Result<bool, Failure> {
    let is_prepared = match failure {
        Failure::UpstreamStatus => true,
        failure => failure.is_endpoints() && prepare(tx, plan, Verdict::Failure, failure.word(), progress),
    };
    if !is_prepared {
        return Ok(false);
    }
    let pause = match tx.service() {
        Some((service, _)) => retry::backoff(&service.retry.settings, tx.tries.retry(), tx.worker.draw()),
        None => Duration::ZERO,
    };
    wait(tx, client, pause).await?;
    let begun = Instant::now();
    tx.tries.begun = Some(begun);
    tx.trace_attempt_delayed(begun);
    Ok(true)
}

/// The same for an answer with `status` that has come and has not been passed on, to a request all of which is at hand: whether
/// the answer is left where it is.
pub fn again_for_status(tx: &mut Transaction<'_>, plan: &Plan, status: u16) -> bool {
    let (endpoint, verdict) = match tx.service() {
        Some((service, _)) if service.retry.is_retried(status) => {
            // That another endpoint may do better is no reason to doubt this one, unless its breaker's rules say so.
            let is_failure = service.breaker.is_failure(status);
            let verdict = if is_failure { Verdict::Failure } else { Verdict::Success };
            (tx.endpoint().map(|endpoint| endpoint.id), verdict)
        }
        _ => return false,
    };
    let took = tx.try_begun().elapsed();
    tx.trace_answer(status);
    let is_prepared = prepare(tx, plan, verdict, "upstream_status", Progress::AtHand);
    if is_prepared && let Some(endpoint) = endpoint {
        tx.worker.counters.upstream_answered(endpoint, status, took);
    }
    is_prepared
}

/// Moves the request on to another endpoint, if it may be sent again and there is one; the present one's breaker is told
/// `verdict`, the log `why`.
fn prepare(tx: &mut Transaction<'_>, plan: &Plan, verdict: Verdict, why: &'static str, progress: Progress) -> bool {
    let loaded = Rc::clone(&tx.loaded);
    let (Some(index), Some(current)) = (tx.service_index(), tx.endpoint_index()) else { return false };
    let (service, state) = (&loaded.snapshot.services[index], &loaded.services[index]);
    if !may_repeat(tx, plan, progress) {
        return false;
    }
    let now = Instant::now();
    tx.worker.set_now(now);
    if tx.tries.due.is_some_and(|due| tx.worker.now() >= due) {
        return false;
    }
    let Some(chosen) = pick(tx, now) else { return false };
    if !state.memory.budget.borrow_mut().try_take(&service.retry.settings, now) {
        tx.worker.counters.retries_refused.add(1);
        return false;
    }
    tx.settle(verdict, now);
    tx.trace_attempt_ended(now, Some(why));
    tx.tries.note(current, why);
    enter(tx, chosen, now);
    tx.retries += 1;
    request::replace_host(&mut tx.scratch.out, service.endpoints[chosen].authority.as_bytes());
    true
}

/// Whether there may be another try after this one.
pub fn may_repeat(tx: &Transaction<'_>, plan: &Plan, progress: Progress) -> bool {
    let Some((service, _)) = tx.service() else { return false };
    let settings = &service.retry.settings;
    let is_safe = match progress {
        Progress::NotSent => true,
        Progress::AtHand => plan.is_idempotent,
        Progress::Gone => false,
    };
    settings.enabled && is_safe && !tx.request_gone && tx.tries.failures() + 1 < settings.attempts
}

/// When the head of the answer is due, and by which rule. A try that another may follow gets `retry.try_timeout`; and all of
/// them together no more time than one alone would get.
pub fn answer_due(tx: &mut Transaction<'_>, plan: &Plan) -> (Millis, Deadline) {
    let due = tx.worker.after(tx.timeouts().response_header);
    let last = *tx.tries.due.get_or_insert(due);
    let try_timeout = tx.service().and_then(|(service, _)| service.retry.try_timeout);
    match try_timeout {
        Some(timeout) if tx.worker.after(timeout) < last && may_repeat(tx, plan, Progress::AtHand) && has_other(tx) => {
            (tx.worker.after(timeout), Deadline::Try)
        }
        _ => (last, Deadline::ResponseHeader),
    }
}

/// Whether there is an endpoint that was not tried yet, and is healthy.
fn has_other(tx: &Transaction<'_>) -> bool {
    let Some((service, state)) = tx.service() else { return false };
    let is_other = |index| tx.endpoint_index() != Some(index) && !tx.tries.has_tried(index);
    (0..service.endpoints.len()).any(|index| is_other(index) && state.standing.is_usable(index))
}

/// The balancer's choice among the endpoints that are healthy, not refused by their breakers, and not tried yet. An outlier
/// is better than nobody.
fn pick(tx: &Transaction<'_>, now: Instant) -> Option<usize> {
    let (service, state) = tx.service()?;
    let settings = &service.breaker.settings;
    let usable = |index: usize| {
        state.standing.is_usable(index)
            && state.endpoints[index].breaker.borrow().allows(settings, now)
            && tx.endpoint_index() != Some(index)
            && !tx.tries.has_tried(index)
    };
    let share = |index: usize| state.standing.share(index, tx.worker.now());
    let in_flight = |index: usize| state.endpoints[index].in_flight();
    let mut balancer = state.balancer.borrow_mut();
    if !state.memory.has_ejected.get() {
        return balancer.pick(tx.worker.draw(), usable, share, in_flight);
    }
    let better = |index: usize| usable(index) && !state.endpoints[index].outlier.get().is_ejected(now);
    let best = balancer.pick(tx.worker.draw(), better, share, in_flight);
    best.or_else(|| balancer.pick(tx.worker.draw(), usable, share, in_flight))
}

/// Takes the request to the endpoint.
fn enter(tx: &mut Transaction<'_>, chosen: usize, now: Instant) {
    tx.enter_endpoint(chosen);
    let Some((service, state)) = tx.service() else { return };
    let mut breaker = state.endpoints[chosen].breaker.borrow_mut();
    let (seen, permit) = (breaker.state(now), breaker.admit(&service.breaker.settings, now));
    drop(breaker);
    let endpoint = service.endpoints[chosen].id;
    tx.breaker = Some(seen);
    tx.tries.permit = permit;
    tx.trace_attempt(endpoint, now);
}

/// Why no endpoint could be chosen.
fn refusal(tx: &mut Transaction<'_>, now: Instant) -> Problem {
    let retry_at = tx.service().and_then(|(_, state)| {
        let usable = (0..state.endpoints.len()).filter(|&index| state.standing.is_usable(index));
        usable.filter_map(|index| state.endpoints[index].breaker.borrow().retry_at(now)).min()
    });
    let Some(retry_at) = retry_at else { return NO_ENDPOINT };
    tx.breaker = Some(BreakerState::Open);
    let wait = retry_at.saturating_duration_since(now);
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    BREAKER_OPEN.retry_after(u32::try_from(seconds).unwrap_or(u32::MAX).max(1))
}

/// Waits, unless there is nobody to wait for.
async fn wait(tx: &Transaction<'_>, client: &Watched, time: Duration) -> Result<(), Failure> {
    client.wait_for(None, tx.worker.now());
    let mut left = time;
    while !left.is_zero() {
        let step = left.min(TICK);
        monoio::time::sleep(step).await;
        left -= step;
        if tx.worker.seam.phase() >= Phase::Stopping {
            return Err(Failure::Stopped);
        }
        if client.peer_gone() {
            return Err(Failure::ClientGone);
        }
    }
    Ok(())
}

/// Whether the request may have to be sent again, so that its body is worth gathering.
pub fn is_worth_gathering(tx: &Transaction<'_>, plan: &Plan, length: u64) -> bool {
    let Some((service, _)) = tx.service() else { return false };
    service.kind == ServiceKind::Backend
        && service.endpoints.len() > 1
        && length <= service.retry.body_bytes as u64
        && !plan.expects_continue
        && may_repeat(tx, plan, Progress::AtHand)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_are_remembered_and_retries_are_counted_from_0() {
        let mut tries = Tries::default();
        assert_eq!((tries.failed(), tries.has_tried(0)), (&[][..], false));
        for retry in 0..ATTEMPTS_MAX {
            tries.note(usize::from(retry) * 7, "upstream_closed");
            assert_eq!((tries.retry(), tries.failed().len()), (retry, usize::from(retry) + 1));
        }
        assert!(tries.has_tried(63) && !tries.has_tried(64));
        // There never is one more; it would be forgotten.
        tries.note(64, "upstream_closed");
        assert!(!tries.has_tried(64));
    }
}
