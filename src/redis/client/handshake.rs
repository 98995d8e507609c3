//! What is said before the first call: who we are, which database, which scripts. One write, and its replies.

use std::time::Duration;

use super::link::Link;
use super::{Reason, Shared, State};
use crate::proxy::watch::Patience;
use crate::redis::resp::command::command;
use crate::redis::resp::{Refusal, Reply, Value};

/// One command of the handshake; what its reply has to be.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// Anything but an error.
    Required,
    /// Anything: an ACL may forbid it, and it does not matter.
    Optional,
    /// The name of the script with this index.
    Load(usize),
    /// Not a replica's role.
    Role,
}

/// Makes a fresh connection one that takes calls.
///
/// # Errors
/// Redis refused, closed, or said what no Redis says.
pub(super) async fn shake(link: &mut Link, shared: &Shared) -> Result<(), Reason> {
    let mut out = Vec::new();
    let steps = render(shared, &mut out);
    let Link { socket, clock, .. } = link;
    let patience = Patience::new(&socket.watch, clock, Duration::ZERO);
    let (sent, _) = socket.writer.write_all(out, patience).await;
    // One that was refused (too many clients, protected mode) can still tell why.
    let may_read_on = sent.is_ok();
    for step in steps {
        let reply = link.next_reply().await?;
        check(step, &reply, shared)?;
    }
    if !may_read_on {
        return Err(Reason::Closed);
    }
    if link.decoder.is_empty() { Ok(()) } else { Err(Reason::Protocol) }
}

fn render(shared: &Shared, out: &mut Vec<u8>) -> Vec<Step> {
    let settings = &shared.settings;
    let mut steps = Vec::new();
    if let Some(password) = &settings.password {
        let (username, password) = (settings.username.as_bytes(), password.expose().as_bytes());
        if username.is_empty() {
            command(&[b"AUTH", password], out);
        } else {
            command(&[b"AUTH", username, password], out);
        }
        steps.push(Step::Required);
    }
    if settings.database != 0 {
        command(&[b"SELECT", settings.database.to_string().as_bytes()], out);
        steps.push(Step::Required);
    }
    command(&[b"CLIENT", b"SETNAME", b"ringway"], out);
    steps.push(Step::Optional);
    // A replica takes scripts, and refuses them only when they write: without this question, it would be taken for the
    // master again and again. Only one that has refused a write is asked: a replica may also be set up to take them.
    if shared.state.get() == State::Down(Reason::Refused(Refusal::ReadOnly)) {
        command(&[b"ROLE"], out);
        steps.push(Step::Role);
    }
    for (index, script) in shared.scripts.iter().enumerate() {
        script.load(out);
        steps.push(Step::Load(index));
    }
    // If nothing else does, this finds out that a password is asked for, or that the data set is still being loaded.
    command(&[b"PING"], out);
    steps.push(Step::Optional);
    steps
}

fn check(step: Step, reply: &Reply, shared: &Shared) -> Result<(), Reason> {
    match (step, reply.value()) {
        (_, Value::Error(text)) => {
            let refusal = Refusal::of(text);
            if matches!(step, Step::Optional | Step::Role) && !refusal.ends_connection() {
                return Ok(());
            }
            shared.note_error(text);
            Err(Reason::Refused(refusal))
        }
        (Step::Load(index), _) => {
            let is_known = reply.text() == Some(shared.scripts[index].sha1().as_bytes());
            if is_known { Ok(()) } else { Err(Reason::Protocol) }
        }
        (Step::Role, Value::Array(mut elements)) => match elements.next() {
            Some(Value::Bulk(b"slave")) => Err(Reason::Refused(Refusal::ReadOnly)),
            _ => Ok(()),
        },
        _ => Ok(()),
    }
}
