//! Who may pass, and how often: the policies, applied to a request whose service is known.
//!
//! The verdicts are those of the pure modules in [`crate::policy`]; here they meet the request's record, the worker's state
//! and the ledger.

use std::mem::{MaybeUninit, take};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::failure::{KEYS_UNAVAILABLE, RATE_LIMITED};
use super::limiter::{Admission, Denial, Subject};
use super::transaction::Transaction;
use crate::http::method::Method;
use crate::http::problem::Problem;
use crate::http::request::{self, HEADER_COUNT_MAX, RequestHead};
use crate::policy::auth::{AuthMethod, Mode, Presented};
use crate::policy::cors::{Cors, CorsRequest, CorsVerdict};
use crate::policy::rate_limit::Standing;
use crate::policy::rate_limit::headers::{self, Shown};
use crate::policy::rate_limit::identity::Identity;
use crate::snapshot::{RateLimit, RateLimitKey, Service};
use crate::traffic::window::Limit;

/// Tells the page that asks whether it may; whether the request is a preflight, which the gateway answers itself.
pub fn cross_origin(tx: &mut Transaction<'_>, cors: Option<&Cors>, head: &RequestHead<'_>) -> bool {
    let Some(cors) = cors else { return false };
    tx.replaces.cors = true;
    render(tx, cors, head.method, head.fields)
}

/// Tells the page whether it may read why its request was refused before its service was known, by the gateway's own rules.
pub fn cross_origin_early(tx: &mut Transaction<'_>, head: &RequestHead<'_>) {
    let loaded = Rc::clone(&tx.loaded);
    cross_origin(tx, loaded.snapshot.cors.as_deref(), head);
}

/// The same for a request whose head, `bytes`, was read and is not served.
#[cold]
pub fn cross_origin_refused(tx: &mut Transaction<'_>, bytes: &[u8]) {
    let loaded = Rc::clone(&tx.loaded);
    let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
    if let Some(cors) = &loaded.snapshot.cors
        && let Some((method, fields)) = request::fields(bytes, &mut storage)
    {
        render(tx, cors, method, fields);
    }
}

fn render(tx: &mut Transaction<'_>, cors: &Cors, method: Method, fields: &[httparse::Header<'_>]) -> bool {
    let fields = fields.iter().map(|field| (field.name.as_bytes(), field.value));
    let request = CorsRequest::read(method, fields);
    matches!(cors.render(&request, &mut tx.scratch.fields), CorsVerdict::Preflight(_))
}

/// Finds out who the client is, and whether it may use the method.
///
/// # Errors
/// 400, 401 or 403, with its challenge among the answer's fields; 503 while that cannot be known. 429 where the client's address is over its limit: then
/// nobody looks at a signature.
pub fn authenticate(tx: &mut Transaction<'_>, service: &Service, head: &RequestHead<'_>) -> Result<(), Problem> {
    if service.auth == Mode::None {
        return Ok(());
    }
    let loaded = Rc::clone(&tx.loaded);
    let authenticator = &loaded.snapshot.authenticator;
    let offered = head.credentials;
    let presented = Presented::read(offered.authorization, offered.api_key, offered.repeated);
    let now = tx.worker.unix_ms_coarse() / 1_000;
    let known = authenticator.recall(presented, &mut tx.worker.tokens.borrow_mut(), now);
    if known.is_none()
        && let Presented::Bearer(_) = presented
        && let Some(denial) = tx.worker.limiter.denied(&service.rate_limits, &subject(tx), tx.started())
    {
        return Err(refuse(tx, service, denial));
    }
    if let Presented::Bearer(_) = presented {
        let counters = &tx.worker.counters;
        let counter = if known.is_some() { &counters.token_hits } else { &counters.token_misses };
        counter.add(1);
    }
    let verified = match known {
        Some(identity) => Ok(Some(identity)),
        None => authenticator.verify(service.auth, presented, &mut tx.worker.tokens.borrow_mut(), now),
    };
    let checked = match verified {
        Ok(identity) => {
            tx.identity = identity;
            service.required_scopes.check(head.method, tx.identity.as_deref())
        }
        Err(error) => Err(error),
    };
    checked.map_err(|error| {
        if error.is_unknown_key() {
            tx.worker.seam.want_keys();
            if authenticator.awaits_issuer {
                return KEYS_UNAVAILABLE;
            }
        }
        error.push_challenge(&mut tx.scratch.fields);
        error.problem()
    })
}

/// Takes what the service's rate limits ask for, or notes that their ledger must be waited for, in [`settle`].
///
/// # Errors
/// 429 where one of them is used up.
pub fn limit(tx: &mut Transaction<'_>, service: &Service) -> Result<(), Problem> {
    if service.rate_limits.is_empty() {
        return Ok(());
    }
    let mut held = take(&mut tx.scratch.held);
    let admission = {
        let subject = subject(tx);
        let moment = tx.worker.moment(tx.started());
        tx.worker.limiter.admit(&service.rate_limits, &subject, moment, &mut held)
    };
    tx.scratch.held = held;
    match admission {
        Admission::Pass => {
            show(tx, service);
            Ok(())
        }
        Admission::Wait => {
            tx.awaits_ledger = true;
            Ok(())
        }
        Admission::Deny(denial) => Err(refuse(tx, service, denial)),
    }
}

/// Waits for the ledger, where [`limit`] noted that it must be.
///
/// # Errors
/// 429 where a limit is used up.
pub async fn settle(tx: &mut Transaction<'_>) -> Result<(), Problem> {
    let mut held = take(&mut tx.scratch.held);
    let worker = Rc::clone(&tx.worker);
    let denial = worker.limiter.wait(&mut held, || worker.moment(Instant::now())).await;
    tx.scratch.held = held;
    let loaded = Rc::clone(&tx.loaded);
    let Some(service) = tx.service_index().map(|index| &loaded.snapshot.services[index]) else { return Ok(()) };
    match denial {
        Some(denial) => Err(refuse(tx, service, denial)),
        None => {
            show(tx, service);
            Ok(())
        }
    }
}

/// Whom the request counts against.
fn subject<'a>(tx: &'a Transaction<'_>) -> Subject<'a> {
    let address = tx.client.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let identity = tx.identity.as_deref();
    Subject {
        identity: identity.map(|identity| match identity.method() {
            AuthMethod::Jwt => Identity::User(identity.subject().as_bytes()),
            AuthMethod::ApiKey => Identity::ApiKey(identity.subject().as_bytes()),
        }),
        ip: Identity::ip(address, tx.loaded.snapshot.ipv6_prefix),
        own: identity.and_then(|identity| identity.rate_limit()).map(|own| Limit::new(own.requests, own.window)),
    }
}

/// Tells the client where it stands.
fn show(tx: &mut Transaction<'_>, service: &Service) {
    let scratch = &mut tx.scratch;
    let held = &scratch.held;
    let shown = held.iter().filter_map(|entry| {
        let name = &service.rate_limits[entry.index].name;
        Some(Shown { name, limit: &entry.limit, standing: entry.standing()? })
    });
    let before = scratch.fields.len();
    headers::push_headers(shown, &mut scratch.fields);
    tx.replaces.rate_limit = scratch.fields.len() > before;
}

/// The answer to a request that a limit refuses. It takes the place of one about its credentials.
fn refuse(tx: &mut Transaction<'_>, service: &Service, denial: Denial) -> Problem {
    let rule: &RateLimit = &service.rate_limits[denial.index];
    let limit = rule.quota.of(subject(tx).own);
    let kind = match rule.key {
        RateLimitKey::Identity => subject(tx).identity.unwrap_or(subject(tx).ip).kind(),
        RateLimitKey::Ip => subject(tx).ip.kind(),
    };
    tx.rate_limited = true;
    tx.worker.counters.rate_limited(service.id, kind);
    remove_challenge(&mut tx.scratch.fields);
    let standing = Standing { remaining: 0, reset_after: denial.retry_after };
    let shown = limit.as_ref().map(|limit| Shown { name: &rule.name, limit, standing });
    headers::push_headers(shown.into_iter(), &mut tx.scratch.fields);
    RATE_LIMITED.retry_after(whole_seconds(denial.retry_after))
}

/// Takes `WWW-Authenticate` out of whole lines.
fn remove_challenge(fields: &mut Vec<u8>) {
    const NAME: &[u8] = b"WWW-Authenticate: ";
    let mut lines = std::iter::once(0).chain(memchr::memchr_iter(b'\n', fields).map(|end| end + 1));
    let Some(start) = lines.find(|&start| fields[start..].starts_with(NAME)) else { return };
    let end = memchr::memchr(b'\n', &fields[start..]).map_or(fields.len(), |at| start + at + 1);
    fields.drain(start..end);
}

fn whole_seconds(time: Duration) -> u32 {
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    u32::try_from(seconds).unwrap_or(u32::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_goes_and_all_else_stays() {
        let check = |fields: &str, expected: &str| {
            let mut out = fields.as_bytes().to_vec();
            remove_challenge(&mut out);
            assert_eq!(out, expected.as_bytes(), "{fields}");
        };
        check("", "");
        check("Vary: Origin\r\n", "Vary: Origin\r\n");
        check("WWW-Authenticate: Bearer\r\n", "");
        check("Vary: Origin\r\nWWW-Authenticate: Bearer a=\"b\"\r\nA: b\r\n", "Vary: Origin\r\nA: b\r\n");
        check(
            "Access-Control-Expose-Headers: WWW-Authenticate: \r\n",
            "Access-Control-Expose-Headers: WWW-Authenticate: \r\n",
        );
    }
}
