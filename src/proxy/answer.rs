//! What the gateway says itself: problems, and its own health.

use super::connection::{Client, Next};
use super::transaction::Transaction;
use crate::http::method::{Method, MethodSet};
use crate::http::problem::{self, Addressee, Problem};
use crate::http::text::push_decimal;
use crate::snapshot::Phase;

/// Which of the health endpoints was asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// `/health`: for people and Docker.
    Summary,
    /// `/health/live`, `/livez`: the process is up.
    Live,
    /// `/health/ready`, `/readyz`: every worker has adopted a configuration, the issuer's keys have come or have been waited
    /// for, and no drain is running.
    Ready,
}

impl Health {
    /// The methods that the health endpoints take.
    pub const METHODS: MethodSet = MethodSet::EMPTY.with(Method::Get).with(Method::Head);

    /// Which one `path` is.
    pub fn from_path(path: &[u8]) -> Option<Health> {
        match path {
            b"/health" => Some(Health::Summary),
            b"/health/live" | b"/livez" => Some(Health::Live),
            b"/health/ready" | b"/readyz" => Some(Health::Ready),
            _ => None,
        }
    }
}

/// Answers with a problem.
pub async fn problem(tx: &mut Transaction<'_>, client: &mut Client, problem: &Problem) -> Next {
    tx.error.get_or_insert(problem.reason);
    send(tx, client, problem.status, |to, out| problem::write(problem, to, out)).await
}

/// Answers `OPTIONS *`, which asks about the gateway as a whole (RFC 9110, section 9.3.7).
pub async fn options(tx: &mut Transaction<'_>, client: &mut Client) -> Next {
    const ALLOW: &[u8] = b"Allow: GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS\r\n";
    send(tx, client, 204, |to, out| problem::write_answer(204, b"", ALLOW, b"", to, out)).await
}

/// Answers a preflight; what it is told stands among the answer's fields already.
pub async fn preflight(tx: &mut Transaction<'_>, client: &mut Client) -> Next {
    send(tx, client, 204, |to, out| problem::write_answer(204, b"", b"", b"", to, out)).await
}

/// Answers one of the health endpoints.
pub async fn health(tx: &mut Transaction<'_>, client: &mut Client, which: Health) -> Next {
    let worker = &tx.worker;
    // Where another process accepts from the same sockets, it is not the service that goes down.
    let phase = if worker.seam.is_handed_over() { Phase::Serving } else { worker.seam.phase() };
    let knows_clients = !tx.loaded.snapshot.authenticator.awaits_issuer || !worker.seam.awaits_issuer();
    let serving = phase == Phase::Serving && worker.seam.is_started() && worker.seam.all_adopted() && knows_clients;
    let status = if which == Health::Live || serving { 200 } else { 503 };
    let word = match (which, phase) {
        (Health::Live, _) => "alive",
        (_, Phase::Serving) if serving => "healthy",
        (_, Phase::Serving) => "starting",
        _ => "draining",
    };
    // The path has been read.
    let mut body = std::mem::take(&mut tx.scratch.path);
    body.clear();
    body.extend_from_slice(br#"{"status":""#);
    body.extend_from_slice(word.as_bytes());
    body.push(b'"');
    if which == Health::Summary {
        body.push(b',');
        body.extend_from_slice(worker.description.as_bytes());
        body.extend_from_slice(br#","generation":"#);
        push_decimal(tx.loaded.snapshot.generation, &mut body);
        body.extend_from_slice(br#","connections":"#);
        push_decimal(worker.connections().into(), &mut body);
    }
    body.extend_from_slice(b"}\n");
    let next =
        send(tx, client, status, |to, out| problem::write_answer(status, b"application/json", b"", &body, to, out))
            .await;
    tx.scratch.path = body;
    next
}

/// Sends an answer. `render` writes it, and says how many bytes of body it has.
async fn send(
    tx: &mut Transaction<'_>,
    client: &mut Client,
    status: u16,
    render: impl FnOnce(&Addressee<'_>, &mut Vec<u8>) -> usize,
) -> Next {
    let mut out = std::mem::take(&mut tx.scratch.out);
    out.clear();
    let body_bytes = {
        let mut clock = tx.worker.clock.borrow_mut();
        let addressee = Addressee {
            version: tx.version,
            method: tx.method,
            persistent: tx.persistent,
            request_id: &tx.scratch.request_id,
            target: &tx.scratch.target,
            date: clock.http_date(tx.worker.unix_ms_coarse()),
            fields: &tx.scratch.fields,
        };
        render(&addressee, &mut out)
    };
    tx.status = status;
    tx.answer_begun = true;
    tx.bytes_out += body_bytes as u64;
    if tx.persistent && client.socket.writer.post(&out) {
        tx.scratch.out = out;
        return Next::KeepAlive;
    }
    let patience = tx.worker.patience(&client.socket.watch, tx.loaded.snapshot.timeouts.idle_body);
    let (result, out) = client.socket.writer.write_all(out, patience).await;
    tx.scratch.out = out;
    match result {
        Err(_) => Next::Close,
        Ok(()) if tx.persistent => Next::KeepAlive,
        Ok(()) => Next::Linger,
    }
}
