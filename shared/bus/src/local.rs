//! Who in this process takes a message? The service that serves its subject here, or that asked; NATS has all others.
//!
//! Only what one alone is to have is handed over: a queue group's, or what names the process. What everybody hears goes
//! through NATS. `services/decisions/local-delivery.md` has why.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use async_nats::message::OutboundMessage;
use async_nats::{Message, Subject};
use boot::panics::for_all;
use parking_lot::RwLock;
use rpc::{NodeId, QuickMap};
use tokio::sync::mpsc;

use crate::pending::Pending;
use crate::room::Room;

/// Messages that may wait here for one subscription. Those behind them go through NATS, which may know others that take
/// them.
const QUEUE_CAPACITY: usize = 8_192;

/// Whether a service can do now what it is asked; asked with each message, so it is quick, and sends nothing.
pub(crate) type IsAble = Box<dyn Fn() -> bool + Send + Sync>;

/// Takes a message, and when it was sent, where that is sent.
pub(crate) type TakeAtOnce = Arc<dyn Fn(Message, Instant) + Send + Sync>;

/// What the services of one process know of each other. Clones share it.
#[derive(Clone, Default)]
pub struct Local(Arc<Shared>);

#[derive(Default)]
struct Shared {
    known: RwLock<Known>,
    /// For large messages that are queued.
    room: Room,
}

#[derive(Default)]
struct Known {
    last_number: u64,
    subscriptions: QuickMap<String, Vec<Subscription>>,
    inboxes: Vec<Inbox>,
}

struct Subscription {
    number: u64,
    /// Whether it can do what it is asked; none: always.
    is_able: Option<IsAble>,
    /// Instead of the queue; none: what comes is queued.
    at_once: Option<TakeAtOnce>,
    queue: mpsc::Sender<(Message, Instant)>,
}

struct Inbox {
    /// With its last dot.
    prefix: String,
    pending: Arc<Pending>,
}

/// What became of a message.
pub(crate) enum HandedOver {
    /// A subscription here has it.
    Taken,
    /// It is a reply to who asked here; whether he still waited.
    Answered(bool),
    /// Nobody here is to have it, or can take it now.
    No(OutboundMessage),
}

impl Local {
    /// Replies to `pending`'s questions arrive below `prefix`, for as long as what is returned is kept.
    pub(crate) fn receive_replies(&self, prefix: &str, pending: &Arc<Pending>) -> Receiving {
        let inbox = Inbox { prefix: prefix.to_owned(), pending: Arc::clone(pending) };
        self.0.known.write().inboxes.push(inbox);
        Receiving { local: self.clone(), prefix: prefix.to_owned() }
    }

    /// Takes part in what is sent to `subject` from here, as a member of `queue` or as `process` alone; none where
    /// others hear it, too.
    pub(crate) fn subscribe(
        &self,
        subject: &Subject,
        queue: Option<&str>,
        process: NodeId,
    ) -> Option<LocalQueue> {
        let process = process.to_string();
        let is_one_alone = queue.is_some() || subject.split('.').any(|token| token == process);
        if !is_one_alone || subject.contains(['*', '>']) {
            return None;
        }
        let (sender, receiver) = mpsc::channel(QUEUE_CAPACITY);
        let mut known = self.0.known.write();
        known.last_number += 1;
        let number = known.last_number;
        known.subscriptions.entry(subject.to_string()).or_default().push(Subscription {
            number,
            is_able: None,
            at_once: None,
            queue: sender,
        });
        Some(LocalQueue { local: self.clone(), subject: subject.to_string(), number, receiver })
    }

    /// Whether somebody here is asked on that subject, or answered.
    pub(crate) fn concerns(&self, subject: &str) -> bool {
        let known = self.0.known.read();
        known.inboxes.iter().any(|inbox| subject.starts_with(inbox.prefix.as_str()))
            || known.subscriptions.contains_key(subject)
    }

    /// Hands a reply over at once: its handler runs before this returns. Needs no NATS.
    pub(crate) fn answer(&self, message: OutboundMessage) -> HandedOver {
        let found = self.0.known.read().inboxes.iter().find_map(|inbox| {
            let number = message.subject.strip_prefix(inbox.prefix.as_str())?.parse().ok()?;
            Some((Arc::clone(&inbox.pending), number))
        });
        match found {
            // Whoever is answered may send something in turn: nothing is locked.
            Some((pending, number)) => {
                HandedOver::Answered(for_all(|| pending.answer(number, taken(message))))
            }
            None => HandedOver::No(message),
        }
    }

    /// Hands a message over where its subject is served: queued, or taken at once.
    pub(crate) fn deliver(&self, message: OutboundMessage) -> HandedOver {
        let take = {
            let known = self.0.known.read();
            let Some(subscriptions) = known.subscriptions.get(message.subject.as_str()) else {
                return HandedOver::No(message);
            };
            let able = subscriptions.iter().filter(|it| it.is_able.as_ref().is_none_or(|is_able| is_able()));
            let mut places = able.filter_map(|it| Some((it, it.queue.try_reserve().ok()?)));
            match places.next() {
                Some((Subscription { at_once: Some(take), .. }, _)) => Arc::clone(take),
                Some((_, place)) => {
                    let Some(payload) = self.0.room.hold_now(&message.payload) else {
                        return HandedOver::No(message);
                    };
                    place.send((taken(OutboundMessage { payload, ..message }), Instant::now()));
                    return HandedOver::Taken;
                }
                None => return HandedOver::No(message),
            }
        };
        // Whoever takes it may send something in turn: nothing is locked.
        for_all(|| take(taken(message), Instant::now()));
        HandedOver::Taken
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Local").finish_non_exhaustive()
    }
}

fn taken(message: OutboundMessage) -> Message {
    let OutboundMessage { subject, reply, payload, headers } = message;
    let length = payload.len();
    Message { subject, reply, payload, headers, status: None, description: None, length }
}

/// Replies to one bus are handed over; dropped with it.
pub(crate) struct Receiving {
    local: Local,
    prefix: String,
}

impl Drop for Receiving {
    fn drop(&mut self) {
        self.local.0.known.write().inboxes.retain(|inbox| inbox.prefix != self.prefix);
    }
}

/// What this process sends to a subscription of its own, as it comes.
pub(crate) struct LocalQueue {
    local: Local,
    subject: String,
    number: u64,
    receiver: mpsc::Receiver<(Message, Instant)>,
}

impl LocalQueue {
    /// The next one, and when it was sent; none once it is closed and empty.
    pub(crate) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(Message, Instant)>> {
        self.receiver.poll_recv(cx)
    }

    /// While it is not able, others are to take what comes.
    pub(crate) fn only_while(&self, is_able: IsAble) {
        self.change(|own| own.is_able = Some(is_able));
    }

    /// What comes from now on is taken where it is sent, until this is closed.
    pub(crate) fn take_at_once(&self, take: TakeAtOnce) {
        self.change(|own| own.at_once = Some(take));
    }

    fn change(&self, change: impl FnOnce(&mut Subscription)) {
        let mut known = self.local.0.known.write();
        let subscriptions = known.subscriptions.get_mut(&self.subject);
        let own = subscriptions.into_iter().flatten().find(|subscription| subscription.number == self.number);
        if let Some(own) = own {
            change(own);
        }
    }

    /// Others are to take what comes from now on. What is queued remains.
    pub(crate) fn close(&mut self) {
        self.receiver.close();
    }
}

impl Drop for LocalQueue {
    fn drop(&mut self) {
        let mut known = self.local.0.known.write();
        let Some(subscriptions) = known.subscriptions.get_mut(&self.subject) else { return };
        let place = subscriptions.iter().position(|subscription| subscription.number == self.number);
        let own = place.map(|place| subscriptions.remove(place));
        if subscriptions.is_empty() {
            known.subscriptions.remove(&self.subject);
        }
        // What takes its messages may be the last to have a bus, whose end is told here too: nothing is locked.
        drop(known);
        drop(own);
    }
}
