//! Turns, where the driver does not see to them.
//!
//! On io_uring every operation gives up its turn, and no request goes without one ([`multishot`](super::multishot)). On epoll one that is ready does not: a client that always has another
//! request there would keep the worker to itself, its timers and new clients included. A task that merely wakes itself is run
//! again before all others (monoio's scheduler puts it in front), and a queue that is never empty keeps the driver from its
//! timers. So whoever has had its turns waits for a byte that has to go through the driver: by the time that it has, all
//! others and the timers have been served.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, Write};
use std::os::unix::net::UnixStream as StdStream;
use std::rc::Rc;
use std::task::{Poll, Waker};

use monoio::io::AsyncReadRent;
use monoio::net::UnixStream;

/// Who waits for another turn.
#[derive(Debug)]
pub struct Usher {
    waiting: RefCell<Vec<Waker>>,
    bell: StdStream,
}

impl Usher {
    /// An usher and its task, which runs until the runtime ends.
    ///
    /// # Errors
    /// No socket pair can be had.
    pub fn new() -> io::Result<(Rc<Usher>, impl Future<Output = ()> + use<>)> {
        let (bell, ear) = StdStream::pair()?;
        bell.set_nonblocking(true)?;
        ear.set_nonblocking(true)?;
        let mut ear = UnixStream::from_std(ear)?;
        let usher = Rc::new(Usher { waiting: RefCell::default(), bell });
        let task = {
            let usher = Rc::clone(&usher);
            async move {
                let mut buf = vec![0; 16];
                let mut called = Vec::new();
                let mut result = Ok(1);
                while matches!(result, Ok(read) if read > 0) {
                    (result, buf) = ear.read(buf).await;
                    // Each may wait again while the others are woken.
                    std::mem::swap(&mut called, &mut *usher.waiting.borrow_mut());
                    called.drain(..).for_each(Waker::wake);
                }
            }
        };
        Ok((usher, task))
    }

    /// Lets all others have a turn.
    pub async fn wait(&self) {
        let mut has_waited = false;
        poll_fn(|cx| {
            if has_waited {
                return Poll::Ready(());
            }
            has_waited = true;
            let mut waiting = self.waiting.borrow_mut();
            if waiting.is_empty() && (&self.bell).write(&[0]).is_err() {
                // A bell that does not ring wakes nobody.
                return Poll::Ready(());
            }
            waiting.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}
