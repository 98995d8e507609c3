//! The client: one pipelined connection a worker, on the worker's own ring.
//!
//! - All that is called for in one turn of the worker's loop leaves as one write; what is called for while a write is under
//!   way leaves with the next.
//! - Replies are matched to calls by their order alone. So a connection is never trusted after a doubt: a call over its
//!   deadline, a reply that nobody asked for or that cannot be read ends it, and with it every call that is pending. A late
//!   reply cannot reach a later call.
//! - While the connection is down, calls fail at once. An outage costs a caller its timeout once.
//! - Everything has a maximum: calls pending ([`PENDING_MAX`]), bytes waiting to be sent ([`OUT_MAX`]), a reply's size.
//! - A warm call allocates nothing.
//!
//! It does not resolve names, speak TLS, follow a cluster's redirections or queue calls for better times.

pub(crate) mod backoff;
mod handshake;
mod link;
mod pending;
mod settings;
mod stats;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

pub use settings::{Secret, Settings};
pub use stats::{Counter, Stats};

use self::pending::{Pending, Unsolicited};
use super::resp::{Arg, Refusal, Reply, Script, Value};
use crate::snapshot::Address;

/// The most calls that wait for their replies.
pub const PENDING_MAX: usize = 4_096;

/// The most bytes of commands that wait to be sent.
pub const OUT_MAX: usize = 1 << 20;

/// The most of an error's text that is kept for the log, in bytes.
const ERROR_TEXT_MAX: usize = 200;

/// Why a call has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// There was no connection, or it ended before the reply came. Whether Redis did the command is unknown.
    #[error("no connection")]
    Down,
    /// The reply did not come in time, to this call or to one before it. Whether Redis did the command is unknown.
    #[error("no reply in time")]
    Timeout,
    /// Too many calls, or bytes, wait already; nothing was sent.
    #[error("too many calls are pending")]
    Overloaded,
    /// Redis answered with an error; it did not do the command.
    #[error("refused: {}", .0.word())]
    Refused(Refusal),
}

impl CallError {
    /// Whether calls are in vain until the connection has been made anew. After others, such as
    /// [`Refusal::OutOfMemory`], it still stands.
    pub fn is_outage(self) -> bool {
        match self {
            CallError::Down | CallError::Timeout => true,
            CallError::Overloaded => false,
            CallError::Refused(refusal) => refusal.ends_connection(),
        }
    }

    /// Whether other calls would fare no better for now: Redis is away, or does nothing for anyone. Otherwise the error is
    /// this call's own.
    pub fn concerns_all(self) -> bool {
        match self {
            CallError::Down | CallError::Timeout => true,
            CallError::Overloaded => false,
            CallError::Refused(refusal) => refusal.concerns_all(),
        }
    }
}

/// Whether calls are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Connected, authenticated, scripts loaded.
    Up,
    /// Not, and why.
    Down(Reason),
}

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The first attempt is still under way.
    Starting,
    /// Nobody accepts connections at the address.
    Unreachable,
    /// Connecting, or the conversation before the first call, took longer than `connect_timeout`.
    ConnectTimeout,
    /// Redis closed the connection or reset it.
    Closed,
    /// A call got no reply in time.
    Timeout,
    /// What came was no RESP2, or nobody had asked for it.
    Protocol,
    /// Redis said so; [`Client::last_error`] has its words.
    Refused(Refusal),
    /// [`Client::set_address`] was called.
    AddressChanged,
    /// The client was dropped; only calls that outlive it see this.
    Stopped,
}

impl Reason {
    /// A stable word for logs and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Reason::Starting => "starting",
            Reason::Unreachable => "unreachable",
            Reason::ConnectTimeout => "connect_timeout",
            Reason::Closed => "closed",
            Reason::Timeout => "timeout",
            Reason::Protocol => "protocol",
            Reason::Refused(refusal) => refusal.word(),
            Reason::AddressChanged => "address_changed",
            Reason::Stopped => "stopped",
        }
    }
}

/// A client; dropping it ends its connection.
pub struct Client {
    shared: Rc<Shared>,
}

/// What the client, its calls and its connection's task share.
struct Shared {
    settings: Settings,
    scripts: Box<[Rc<Script>]>,
    address: RefCell<Address>,
    /// Grows when the address changes or the client is dropped, which ends whatever the task is at.
    epoch: Cell<u64>,
    stopped: Cell<bool>,
    /// Commands to be sent, whole ones.
    out: RefCell<Vec<u8>>,
    pending: RefCell<Pending>,
    state: Cell<State>,
    generation: Cell<u64>,
    /// A call has been answered well since the connection was made.
    proven: Cell<bool>,
    stats: Stats,
    last_error: RefCell<String>,
    /// The connection's task.
    task: Cell<Option<Waker>>,
}

impl Client {
    /// Starts to connect, in a task of the current monoio runtime, which needs its timer. `scripts` are loaded before the
    /// first call is taken; `seed` spreads the reconnections of many clients.
    pub fn start(settings: Settings, scripts: &[Rc<Script>], seed: u64) -> Client {
        let shared = Rc::new(Shared {
            address: RefCell::new(settings.address.clone()),
            settings,
            scripts: scripts.into(),
            epoch: Cell::new(0),
            stopped: Cell::new(false),
            out: RefCell::default(),
            pending: RefCell::default(),
            state: Cell::new(State::Down(Reason::Starting)),
            generation: Cell::new(0),
            proven: Cell::new(false),
            stats: Stats::default(),
            last_error: RefCell::default(),
            task: Cell::new(None),
        });
        monoio::spawn(link::keep_up(Rc::clone(&shared), seed));
        Client { shared }
    }

    /// Calls: `render` appends one whole command, at once; it leaves at the end of the loop's turn. Dropping the future
    /// takes nothing back: its reply is skipped.
    pub fn call(&self, render: impl FnOnce(&mut Vec<u8>)) -> Call {
        self.call_until(self.deadline(), render)
    }

    /// Calls `script`. One that Redis has forgotten (restarted, flushed, failed over) is sent along in a second try, within
    /// the same deadline. Nothing is sent before the first poll.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn eval(&self, script: &Script, keys: &[&[u8]], args: &[Arg<'_>]) -> Result<Reply, CallError> {
        let deadline = self.deadline();
        match self.call_until(deadline, |out| script.evalsha(keys, args, out)).await {
            Err(CallError::Refused(Refusal::NoScript)) if Instant::now() < deadline => {
                self.shared.stats.scripts_resent.add(1);
                self.call_until(deadline, |out| script.eval(keys, args, out)).await
            }
            result => result,
        }
    }

    /// Whether calls are taken. A plain load: it may be asked for every request.
    pub fn state(&self) -> State {
        self.shared.state.get()
    }

    /// How often the state went from up to down or back: whoever remembers it sees an outage that has passed.
    pub fn generation(&self) -> u64 {
        self.shared.generation.get()
    }

    /// Redis may be found at `address` from now on. If that is another than before, the connection is made anew, without
    /// delay; what is pending fails with [`CallError::Down`].
    pub fn set_address(&self, address: Address) {
        if *self.shared.address.borrow() != address {
            *self.shared.address.borrow_mut() = address;
            self.shared.interrupt();
        }
    }

    /// What has been counted.
    pub fn stats(&self) -> &Stats {
        &self.shared.stats
    }

    /// The last error reply's words: at most 200 printable characters, empty if there was none.
    pub fn last_error(&self) -> String {
        self.shared.last_error.borrow().clone()
    }

    /// How many calls wait for their reply, abandoned ones included.
    pub fn pending(&self) -> usize {
        self.shared.pending.borrow().len()
    }

    fn deadline(&self) -> Instant {
        Instant::now() + self.shared.settings.timeout
    }

    fn call_until(&self, deadline: Instant, render: impl FnOnce(&mut Vec<u8>)) -> Call {
        let shared = &self.shared;
        shared.stats.calls.add(1);
        let progress = match shared.submit(deadline, render) {
            Ok(key) => Progress::Pending(key),
            Err(error) => {
                shared.stats.count_error(error);
                Progress::Failed(error)
            }
        };
        Call { shared: Rc::clone(shared), progress }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.stopped.set(true);
        self.shared.interrupt();
    }
}

impl Shared {
    /// Queues a command; its call's key.
    fn submit(&self, deadline: Instant, render: impl FnOnce(&mut Vec<u8>)) -> Result<usize, CallError> {
        if self.state.get() != State::Up {
            return Err(CallError::Down);
        }
        let mut pending = self.pending.borrow_mut();
        let mut out = self.out.borrow_mut();
        let before = out.len();
        if pending.len() >= PENDING_MAX || before >= OUT_MAX {
            return Err(CallError::Overloaded);
        }
        render(&mut out);
        if out.len() > OUT_MAX {
            out.truncate(before);
            return Err(CallError::Overloaded);
        }
        if before == 0 {
            // The task runs after the tasks that are ready now, so that their calls leave with this one.
            self.wake_task();
        }
        Ok(pending.push(deadline))
    }

    /// Hands a reply to the oldest call.
    ///
    /// # Errors
    /// The connection cannot be used any more.
    fn answer(&self, reply: Reply) -> Result<(), Reason> {
        self.stats.replies.add(1);
        let outcome = match reply.value() {
            Value::Error(text) => {
                let refusal = Refusal::of(text);
                self.note_error(text);
                Err(CallError::Refused(refusal))
            }
            _ => Ok(reply),
        };
        let refusal = match outcome {
            Ok(_) => {
                self.proven.set(true);
                None
            }
            Err(error) => {
                self.stats.count_error(error);
                if let CallError::Refused(refusal) = error { Some(refusal) } else { None }
            }
        };
        let answered = self.pending.borrow_mut().answer(outcome);
        match answered {
            Ok(Some(waker)) => waker.wake(),
            Ok(None) => {}
            Err(Unsolicited) => return Err(Reason::Protocol),
        }
        match refusal {
            Some(refusal) if refusal.ends_connection() => Err(Reason::Refused(refusal)),
            _ => Ok(()),
        }
    }

    fn set_state(&self, state: State) {
        if matches!(state, State::Up) != matches!(self.state.get(), State::Up) {
            self.generation.set(self.generation.get() + 1);
        }
        self.state.set(state);
    }

    /// No more calls are taken, and those that wait fail.
    fn go_down(&self, reason: Reason) {
        self.set_state(State::Down(reason));
        self.out.borrow_mut().clear();
        let error = if reason == Reason::Timeout { CallError::Timeout } else { CallError::Down };
        // One borrow each: what a waker does is not known here.
        loop {
            let Some(waker) = self.pending.borrow_mut().fail_one(error) else { break };
            self.stats.count_error(error);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    /// Keeps what is fit for a log of an error's text.
    fn note_error(&self, text: &[u8]) {
        let mut last = self.last_error.borrow_mut();
        last.clear();
        last.extend(text.iter().take(ERROR_TEXT_MAX).map(|&byte| match byte {
            b' '..=b'~' => char::from(byte),
            _ => '?',
        }));
    }

    fn interrupt(&self) {
        self.epoch.set(self.epoch.get() + 1);
        self.wake_task();
    }

    fn wake_task(&self) {
        if let Some(waker) = self.task.take() {
            waker.wake();
        }
    }

    /// The task wants to be woken by the next [`Shared::wake_task`].
    fn wait(&self, cx: &Context<'_>) {
        match self.task.take() {
            Some(waker) if waker.will_wake(cx.waker()) => self.task.set(Some(waker)),
            _ => self.task.set(Some(cx.waker().clone())),
        }
    }
}

/// A call under way.
#[must_use = "a call that is dropped is not answered"]
pub struct Call {
    shared: Rc<Shared>,
    progress: Progress,
}

#[derive(Debug, Clone, Copy)]
enum Progress {
    /// Its key among the pending.
    Pending(usize),
    /// It never got so far.
    Failed(CallError),
    /// Its result was taken.
    Over,
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Call").field("progress", &self.progress).finish_non_exhaustive()
    }
}

impl Future for Call {
    type Output = Result<Reply, CallError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = match self.progress {
            Progress::Pending(key) => {
                let (result, _old_waker) = self.shared.pending.borrow_mut().poll(key, cx.waker());
                match result {
                    Some(result) => result,
                    None => return Poll::Pending,
                }
            }
            Progress::Failed(error) => Err(error),
            Progress::Over => return Poll::Pending,
        };
        self.progress = Progress::Over;
        Poll::Ready(result)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Progress::Pending(key) = self.progress {
            self.shared.stats.abandoned.add(1);
            // What it held goes after the borrow has ended.
            let _held = self.shared.pending.borrow_mut().abandon(key);
        }
    }
}
