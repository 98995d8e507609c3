//! The place of a request that waits for the ledger, and the order that it has sent there.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use super::Limiter;
use super::line::Outcome;
use crate::policy::rate_limit::Ticket;
use crate::proxy::ledger::{NoGrant, Pending};
use crate::traffic::window::{Grant, Limit, LimitKey, Order};

/// An order on its way to Redis.
#[derive(Debug)]
pub(super) struct Ordered {
    pub(super) pending: Pending,
    pub(super) key: LimitKey,
    pub(super) limit: Limit,
    pub(super) order: Order,
    pub(super) sent_at: Instant,
    pub(super) era: u32,
    pub(super) is_resent: bool,
}

impl Ordered {
    /// Lets the order go on by itself.
    pub(super) fn detach(mut self, limiter: &Rc<Limiter>) {
        let limiter = Rc::clone(limiter);
        monoio::spawn(async move {
            let grant = poll_fn(|cx| self.poll_grant(&limiter, cx)).await;
            limiter.answered(&self, grant, Instant::now());
        });
    }

    /// The answer, once it is there. A script that Redis has forgotten is sent along in a second try.
    fn poll_grant(&mut self, limiter: &Limiter, cx: &mut Context<'_>) -> Poll<Result<Grant, NoGrant>> {
        loop {
            let grant = ready!(Pin::new(&mut self.pending).poll(cx));
            let (Err(NoGrant::Forgotten), Some(redis), false) = (grant, &limiter.redis, self.is_resent) else {
                return Poll::Ready(grant);
            };
            self.is_resent = true;
            self.pending = match limiter.leases.borrow_mut().address(self.key) {
                Some(address) => redis.order(address, &self.limit, &self.order, true),
                None => Pending::failed(),
            };
        }
    }
}

/// A waiting request's place. Left before the outcome was looked at, it gives back what it was to have.
#[derive(Debug)]
pub(super) struct Seat {
    pub(super) limiter: Rc<Limiter>,
    pub(super) key: LimitKey,
    pub(super) ticket: Ticket,
    pub(super) at: usize,
    /// The order that it sent for itself and for those that wait with it.
    pub(super) order: Option<Ordered>,
}

impl Seat {
    /// Drives the order that was sent from here, which is settled for all who wait, and looks for the outcome; whether there
    /// is one.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let limiter = Rc::clone(&self.limiter);
        if let Some(order) = &mut self.order
            && let Poll::Ready(grant) = order.poll_grant(&limiter, cx)
            && let Some(order) = self.order.take()
        {
            limiter.answered(&order, grant, Instant::now());
        }
        let mut line = limiter.line.borrow_mut();
        let waiter = line.waiter(self.at);
        match waiter.outcome {
            Some(_) => true,
            None => {
                waiter.waker = Some(cx.waker().clone());
                false
            }
        }
    }

    /// The outcome, which there must be; the request has it from now on.
    pub(super) fn take(&mut self) -> Outcome {
        let mut line = self.limiter.line.borrow_mut();
        let waiter = line.waiter(self.at);
        waiter.taken = true;
        waiter.outcome.take().unwrap_or(Outcome::Unanswered)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let waiter = self.limiter.line.borrow_mut().leave(self.key, self.at);
        match waiter.outcome {
            Some(Outcome::Admitted(token, _)) => {
                self.limiter.leases.borrow_mut().refund(self.key, token, Instant::now());
            }
            None if !waiter.taken => self.limiter.leases.borrow_mut().cancel(self.key, self.ticket),
            _ => {}
        }
        if let Some(order) = self.order.take() {
            order.detach(&self.limiter);
        }
    }
}
