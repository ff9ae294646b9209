//! Who waits for which reply? Numbered questions; a question leaves the table however it ends.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_nats::Message;
use metrics::Counter;
use tokio::sync::oneshot;

/// The questions of one process that have no reply yet.
pub(crate) struct Pending {
    waiting: Mutex<HashMap<u64, oneshot::Sender<Message>, BuildHasherDefault<NumberHasher>>>,
    next_number: AtomicU64,
    max_waiting: usize,
    cancelled: Counter,
}

impl Pending {
    pub(crate) fn new(max_waiting: usize, cancelled: Counter) -> Self {
        Pending { waiting: Mutex::default(), next_number: AtomicU64::new(0), max_waiting, cancelled }
    }

    /// A new number and where its reply will arrive; none when `max_waiting` questions are open.
    pub(crate) fn open(&self) -> Option<(Ticket<'_>, oneshot::Receiver<Message>)> {
        let (reply, arrival) = oneshot::channel();
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.lock();
        if waiting.len() >= self.max_waiting {
            return None;
        }
        waiting.insert(number, reply);
        Some((Ticket { pending: self, number, is_open: true }, arrival))
    }

    /// Hands a reply to whoever waits for it; false when nobody does any more.
    pub(crate) fn answer(&self, number: u64, message: Message) -> bool {
        let waiter = self.lock().remove(&number);
        waiter.is_some_and(|waiter| waiter.send(message).is_ok())
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().len()
    }

    /// Nobody will answer any more: every waiter learns it at once.
    pub(crate) fn abandon_all(&self) {
        self.lock().clear();
    }

    fn lock(
        &self,
    ) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Message>, BuildHasherDefault<NumberHasher>>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One open question. Dropping it, as a cancelled asker does, takes it out of the table.
pub(crate) struct Ticket<'a> {
    pending: &'a Pending,
    number: u64,
    is_open: bool,
}

impl Ticket<'_> {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The reply came, and took the entry with it.
    pub(crate) fn answered(mut self) {
        self.is_open = false;
    }

    /// No reply is waited for any more.
    pub(crate) fn given_up(mut self) {
        self.is_open = false;
        self.pending.lock().remove(&self.number);
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.pending.lock().remove(&self.number);
            self.pending.cancelled.increment(1);
        }
    }
}

/// Spreads running numbers over the table; they are ours, so nobody can choose them to collide.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        // hashbrown takes the top bits for its tags and the low bits for the place: the product's high half is
        // the well-mixed one.
        self.0.rotate_left(32)
    }
}
