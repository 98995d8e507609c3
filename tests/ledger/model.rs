//! What a ledger answers, told as simply as can be: a list of tokens.

use std::time::Duration;

use ringway::traffic::window::{Grant, Limit, Order, SLOTS};

#[derive(Default)]
pub struct Model {
    head: u64,
    tokens: Vec<Token>,
}

#[derive(Clone, Copy)]
struct Token {
    slot: u64,
    parked: bool,
}

impl Model {
    pub fn acquire(&mut self, limit: &Limit, order: &Order, now_us: u64) -> Grant {
        let now_slot = now_us / limit.slot_us();
        if self.tokens.is_empty() || now_slot + SLOTS < self.head {
            self.tokens.clear();
            self.head = now_slot;
        }
        self.head = self.head.max(now_slot);
        let head = self.head;
        self.tokens.retain(|token| token.slot + SLOTS >= head);
        if self.tokens.is_empty() {
            self.head = now_slot;
        }

        let slot = order.report.slot;
        for _ in 0..order.report.settled {
            if let Some(token) = self.tokens.iter_mut().find(|token| token.slot == slot && token.parked) {
                token.parked = false;
            }
        }
        for _ in 0..order.report.unused {
            // Tokens are alike: one that is parked goes only when no other is left.
            let of_slot = |parked| move |token: &Token| token.slot == slot && token.parked == parked;
            let found =
                self.tokens.iter().position(of_slot(false)).or_else(|| self.tokens.iter().position(of_slot(true)));
            if let Some(index) = found {
                self.tokens.remove(index);
            }
        }

        let mut granted = 0;
        while granted < order.waiting && self.taken() < limit.requests() {
            self.tokens.push(Token { slot: self.head, parked: false });
            granted += 1;
        }
        if granted == order.waiting {
            let parked = self.tokens.iter().filter(|token| token.parked).count() as u32;
            let room =
                (limit.requests() / 100).saturating_sub(parked).min(limit.requests().saturating_sub(self.taken()));
            for _ in 0..order.ahead.min(room / 2) {
                self.tokens.push(Token { slot: self.head, parked: true });
                granted += 1;
            }
        }
        let oldest = self.tokens.iter().map(|token| token.slot).min();
        let end_us = |slot: u64| (slot + 1) * limit.slot_us();
        let reset_us = oldest.map_or(0, |oldest| end_us(oldest + SLOTS).saturating_sub(now_us));
        Grant {
            granted,
            remaining: limit.requests().saturating_sub(self.taken()),
            reset_after: Duration::from_micros(reset_us),
            valid_for: Duration::from_micros((end_us(self.head) - now_us).min(limit.slot_us())),
            slot: self.head,
        }
    }

    fn taken(&self) -> u32 {
        self.tokens.len() as u32
    }
}
