//! The stages of a request, in order. Each continues or answers; nothing is awaited before it is known where to go.

use std::mem::{MaybeUninit, take};
use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::rc::Rc;
use std::time::Instant;

use ipnet::IpNet;

use super::answer::{self, Health};
use super::attempt;
use super::connection::{Client, Next};
use super::failure::{AMBIGUOUS_PATH, BODY_TOO_LARGE, MALFORMED_BODY, METHOD_NOT_ALLOWED, NO_ROUTE, OVERLOADED};
use super::guard;
use super::lane::Job;
use super::transaction::{Scratch, Transaction};
use super::upstream::{self, Plan};
use crate::http::body::{Decoder, Framing};
use crate::http::problem::Problem;
use crate::http::request::{self, Form, Forwarding, HEADER_COUNT_MAX, RequestError, RequestHead};
use crate::http::response::Asked;
use crate::snapshot::{RouteId, ServiceKind};
use crate::traffic::{path, route};

/// So many bytes of an answer are left to the kernel to deliver, once nothing more is to come from its client: nobody waits until it has
/// taken them in. Less than goes out before anything is acknowledged (RFC 6928), so that nothing is unsent when the connection is
/// closed, and little for the kernel to keep where a client takes nothing in.
const LEFT_TO_KERNEL_MAX: u64 = 8 * 1024;

/// What the stages decided.
#[derive(Debug)]
enum Verdict {
    Answer(Problem),
    Options,
    Preflight,
    Health(Health),
    Forward(Plan),
}

/// Serves a request in the room of `scratch`, which is clear before and afterwards. What the job's buffer holds afterwards is the next
/// request's.
pub async fn serve(job: &mut Job, scratch: &mut Scratch) -> Next {
    let Job { worker, client, buf, head } = job;
    let mut tx = Transaction::begin(worker, client.peer, scratch);
    let mut verdict = decide(&mut tx, client, buf, head);
    if tx.awaits_ledger
        && let Err(problem) = guard::settle(&mut tx).await
    {
        if let Verdict::Forward(plan) = &verdict {
            tx.persistent &= plan.body.is_done();
        }
        verdict = Verdict::Answer(problem);
    }
    if tx.awaits_ledger {
        tx.tries.begun = Some(Instant::now());
    }
    // By reference, or the future would have room for each of them twice.
    let next = match &mut verdict {
        Verdict::Answer(problem) => answer::problem(&mut tx, client, problem).await,
        Verdict::Options => answer::options(&mut tx, client).await,
        Verdict::Preflight => answer::preflight(&mut tx, client).await,
        Verdict::Health(which) => answer::health(&mut tx, client, *which).await,
        Verdict::Forward(plan) => upstream::forward(&mut tx, client, buf, plan).await,
    };
    match next {
        Next::Linger
            if tx.is_last && tx.bytes_out <= LEFT_TO_KERNEL_MAX && buf.is_empty() && !client.socket.has_unread() =>
        {
            Next::Last
        }
        next => next,
    }
}

/// Reads the request and runs it through the stages.
fn decide(
    tx: &mut Transaction<'_>,
    client: &Client,
    buf: &mut Vec<u8>,
    head: &Result<Range<usize>, Problem>,
) -> Verdict {
    let at = match head {
        Ok(at) => at,
        Err(problem) => {
            tx.identify_as(None, None);
            return Verdict::Answer(*problem);
        }
    };
    let loaded = Rc::clone(&tx.loaded);
    let (before, behind) = buf.split_at_mut(at.end);
    let mut storage = [const { MaybeUninit::uninit() }; HEADER_COUNT_MAX];
    let parsed = request::parse(&before[at.start..], &mut storage, &loaded.snapshot.limits);
    // By reference, since a head is large.
    let head = match &parsed {
        Ok(head) => head,
        Err(error) => {
            tx.identify_as(None, None);
            // In lines that two readers may tell apart differently nothing is looked for.
            if *error != RequestError::BareLineEnd {
                guard::cross_origin_refused(tx, &before[at.start..]);
            }
            return Verdict::Answer(error.problem());
        }
    };
    if head.bytes.len() < at.len() {
        // A body stands behind it, or the next request.
        let at = at.start..at.start + head.bytes.len();
        return decide(tx, client, buf, &Ok(at));
    }
    tx.identify(head);
    let trusted = &loaded.snapshot.trusted_proxies;
    let peer_is_trusted = client.peer.is_some_and(|peer| is_in(trusted, peer));
    if peer_is_trusted {
        tx.client = original_client(head.forwarded_for(), trusted).or(client.peer);
    }

    // What came of the body together with the head.
    let mut body = Decoder::new(head.framing);
    let (data, consumed) = match body.decode(behind) {
        Ok(decoded) => (decoded.data, decoded.consumed),
        Err(_) => {
            tx.persistent = false;
            guard::cross_origin_early(tx, head);
            return Verdict::Answer(MALFORMED_BODY);
        }
    };
    tx.bytes_in = data as u64;

    let mut normal = take(&mut tx.scratch.path);
    let verdict = stages(tx, head, peer_is_trusted, client.peer, &mut normal);
    tx.scratch.path = normal;
    let verdict = match verdict {
        Ok(asked) => {
            body.push_piece(head.framing, &behind[..data], true, &mut tx.scratch.out);
            Verdict::Forward(Plan {
                asked,
                framing: head.framing,
                body,
                is_idempotent: head.method.is_idempotent(),
                accepts_trailers: head.accepts_trailers,
                expects_continue: head.expects_continue,
            })
        }
        Err(verdict) => {
            // An answer of our own leaves the rest of the body unread; the next request would start in its middle.
            tx.persistent &= body.is_done();
            verdict
        }
    };
    let used = at.end + consumed;
    buf.drain(..used);
    verdict
}

/// The stages proper: route, method, limits, balance, rewrite. The rewritten head is in the scratch's `out` afterwards.
fn stages(
    tx: &mut Transaction<'_>,
    head: &RequestHead<'_>,
    peer_is_trusted: bool,
    peer: Option<IpAddr>,
    normal: &mut Vec<u8>,
) -> Result<Asked, Verdict> {
    let loaded = Rc::clone(&tx.loaded);
    let refuse = |problem: Problem| Err(Verdict::Answer(problem));

    // Route.
    if head.form == Form::Asterisk {
        return Err(Verdict::Options);
    }
    let Ok(path) = path::normalize(head.path, normal) else {
        guard::cross_origin_early(tx, head);
        return refuse(RequestError::Target.problem());
    };
    if let Some(health) = Health::from_path(path) {
        tx.route = RouteId::HEALTH;
        return match Health::METHODS.contains(head.method) {
            true => Err(Verdict::Health(health)),
            false => refuse(METHOD_NOT_ALLOWED.allow(Health::METHODS)),
        };
    }
    let Some(index) = loaded.snapshot.routes.find(head.host, path) else {
        return match guard::cross_origin(tx, loaded.snapshot.cors.as_deref(), head) {
            true => Err(Verdict::Preflight),
            false => refuse(NO_ROUTE),
        };
    };
    if is_ambiguous(tx, head.host, path, index) {
        guard::cross_origin_early(tx, head);
        return refuse(AMBIGUOUS_PATH);
    }
    let service = &loaded.snapshot.services[index];
    let state = &loaded.services[index];
    tx.enter_service(index);

    // CORS: on whatever is answered from here on.
    if guard::cross_origin(tx, service.cors.as_deref(), head) {
        return Err(Verdict::Preflight);
    }

    // Method.
    if !service.methods.contains(head.method) {
        return refuse(METHOD_NOT_ALLOWED.allow(service.methods));
    }

    // Limits. The gateway's own held for the head before the service was known.
    if head.target.len() > service.limits.uri_bytes {
        return refuse(RequestError::TargetTooLong.problem());
    }
    if head.bytes.len() > service.limits.header_bytes || head.fields.len() > service.limits.header_count {
        return refuse(RequestError::HeadTooLarge.problem());
    }
    let body_max = service.limits.body_bytes;
    let announced = if let Framing::Length(length) = head.framing { length } else { tx.bytes_in };
    if body_max > 0 && announced > body_max {
        return refuse(BODY_TOO_LARGE);
    }
    if state.memory.in_flight.get() > service.limits.requests_in_flight {
        return refuse(OVERLOADED);
    }

    // Who is it, and how often may it ask? One that nobody knows counts against its address.
    let known = guard::authenticate(tx, service, head);
    if !tx.rate_limited
        && let Err(problem) = guard::limit(tx, service)
    {
        return refuse(problem);
    }
    if let Err(problem) = known {
        return refuse(problem);
    }

    // Balance.
    let chosen = attempt::choose(tx).map_err(Verdict::Answer)?;

    // Rewrite.
    let forwarding = Forwarding {
        path: match service.kind {
            ServiceKind::Backend => route::strip(path, &service.prefix),
            ServiceKind::Management => path,
        },
        authority: &service.endpoints[chosen].authority,
        peer,
        peer_is_trusted,
        request_id: &tx.scratch.request_id,
        traceparent: &tx.scratch.traceparent,
        identity: tx.identity.as_ref().map_or(b"", |identity| identity.lines()),
        with_credentials: service.forward_credentials,
        with_forwarded: loaded.snapshot.write_forwarded,
    };
    tx.scratch.out.clear();
    request::write(head, &forwarding, &mut tx.scratch.out);
    Ok(Asked { method: head.method, upgrade: head.upgrade })
}

/// Whether `path`, which leads to the service at `index`, is another service's for a backend that reads it more leniently.
fn is_ambiguous(tx: &mut Transaction<'_>, host: &[u8], path: &[u8], index: usize) -> bool {
    // Nothing has been written to it yet.
    let mut folded = take(&mut tx.scratch.out);
    let routes = &tx.loaded.snapshot.routes;
    let other = path::fold(path, &mut folded).and_then(|path| routes.find(host, path));
    tx.scratch.out = folded;
    other.is_some_and(|other| other != index)
}

/// The client that a chain of trusted proxies names: the rightmost address that is none of theirs. `lines` are the
/// `X-Forwarded-For` lines, last one first, which are one list (RFC 9110, section 5.3).
fn original_client<'a>(lines: impl Iterator<Item = &'a [u8]>, trusted: &[IpNet]) -> Option<IpAddr> {
    let mut nearest = None;
    for element in lines.flat_map(|line| line.rsplit(|&byte| byte == b',')) {
        let Some(address) = forwarded_address(element) else { return nearest };
        nearest = Some(address);
        if !is_in(trusted, address) {
            break;
        }
    }
    nearest
}

/// An address as proxies write it: alone, in brackets, or with a port behind it.
fn forwarded_address(element: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(element.trim_ascii()).ok()?;
    let bracketed = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok().map(IpAddr::V6);
    let with_port = || text.parse::<SocketAddr>().ok().map(|address| address.ip());
    text.parse().ok().or_else(with_port).or_else(bracketed)
}

fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_client_is_the_rightmost_address_that_is_no_trusted_proxy() {
        let trusted: Vec<IpNet> =
            ["10.0.0.0/8", "fd00::/8"].iter().map(|net| net.parse().expect("a network")).collect();
        let check_lines = |lines: &[&str], expected: Option<&str>| {
            let expected = expected.map(|address| address.parse().expect("an address"));
            let last_first = lines.iter().rev().map(|line| line.as_bytes());
            assert_eq!(original_client(last_first, &trusted), expected, "{lines:?}");
        };
        let check = |list: &str, expected| check_lines(&[list], expected);
        check("203.0.113.9", Some("203.0.113.9"));
        check("1.1.1.1, 203.0.113.9", Some("203.0.113.9"));
        check("203.0.113.9, 10.0.0.7,10.0.0.8", Some("203.0.113.9"));
        check("10.0.0.7", Some("10.0.0.7"));
        check("junk, 10.0.0.7", Some("10.0.0.7"));
        check("junk", None);
        check("2001:db8::1, fd00::2", Some("2001:db8::1"));
        check("", None);
        check("203.0.113.9:4711, 10.0.0.7:80", Some("203.0.113.9"));
        check("[2001:db8::1]", Some("2001:db8::1"));
        check("[2001:db8::1]:4711, [fd00::2]:80", Some("2001:db8::1"));
        check("203.0.113.9, ::ffff:10.0.0.7", Some("203.0.113.9"));
        check("203.0.113.9:port", None);
        check("[203.0.113.9]", None);
        check_lines(&[], None);
        check_lines(&["203.0.113.9", "10.0.0.7"], Some("203.0.113.9"));
        check_lines(&["1.1.1.1", "203.0.113.9, 10.0.0.7", "10.0.0.8"], Some("203.0.113.9"));
        check_lines(&["1.1.1.1", "junk", "10.0.0.8"], Some("10.0.0.8"));
    }
}
