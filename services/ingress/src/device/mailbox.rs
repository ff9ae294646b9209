//! How does the rest of the node reach a session's loop? Through its mailbox: a bounded queue with one reader.

use std::collections::VecDeque;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use boot::traces::Span;
use bus::Subject;
use parking_lot::{Mutex, MutexGuard};
use rpc::{Limit, Party, Place, SessionEnd};

use super::target::{self, TargetLimits};
use crate::device_api::Refusal;

/// A call for a session's device.
pub type Incoming = target::Incoming<Router>;

/// What a session is told.
#[derive(Debug)]
pub enum Mail {
    /// Hand this call to the device.
    Deliver(Box<Incoming>),
    /// End the session, for this reason.
    End(EndReason),
    /// End for this reason as soon as nothing is in flight. Said again: before that no further call is to come.
    Leave(EndReason),
}

/// The router that delivered a call, and the delivery as this node knows it.
#[derive(Debug)]
pub struct Router {
    /// Its inbox, where the answer goes.
    pub inbox: Subject,
    /// When the delivery came to this node.
    pub arrived: Instant,
    /// The delivery as a hop of the call's trace: it is over with the call here, however that ends.
    pub span: Span,
    /// The call's place in the share of its target's customer, once it has one.
    pub place: Option<Place<Party>>,
}

/// Why the node ends a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// A newer session of the same device became callable.
    TakenOver,
    /// The device has more connections than it may (MQTT), and this is the oldest of those that only call.
    OneTooMany,
    /// The device was removed, reassigned or given another token.
    Revoked,
    /// The node is shutting down.
    ShuttingDown,
    /// The node sends it to another.
    Moved,
}

impl EndReason {
    /// The one that a session has ended for; none: its node did not end it.
    pub fn of(end: SessionEnd) -> Option<Self> {
        let all = [EndReason::TakenOver, EndReason::Revoked, EndReason::ShuttingDown, EndReason::Moved];
        all.into_iter().find(|reason| SessionEnd::from(*reason) == end)
    }
}

impl From<EndReason> for Refusal {
    fn from(reason: EndReason) -> Self {
        match reason {
            EndReason::TakenOver => Refusal::TakenOver,
            EndReason::OneTooMany => Refusal::TooOften,
            EndReason::Revoked => Refusal::UnknownToken,
            EndReason::ShuttingDown => Refusal::ShuttingDown,
            EndReason::Moved => Refusal::Moved,
        }
    }
}

impl From<EndReason> for SessionEnd {
    fn from(reason: EndReason) -> Self {
        match reason {
            EndReason::TakenOver | EndReason::OneTooMany => SessionEnd::TakenOver,
            EndReason::Revoked => SessionEnd::Revoked,
            EndReason::ShuttingDown => SessionEnd::ShuttingDown,
            EndReason::Moved => SessionEnd::Moved,
        }
    }
}

/// Why a call was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The session has ended: the device never saw the call.
    Closed,
    /// A limit is reached.
    Busy(Limit),
}

/// A session's mailbox. One that never had mail costs no heap.
#[derive(Debug, Default)]
pub struct Mailbox {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// None: nothing has come.
    unread: Option<Box<Unread>>,
    reader: Option<Waker>,
    closed: bool,
}

#[derive(Debug, Default)]
struct Unread {
    mail: VecDeque<Mail>,
    /// Of the calls among it.
    bytes: usize,
}

impl Mailbox {
    /// Puts a call in.
    ///
    /// # Errors
    /// Hands the call back when the session has ended or no more may wait.
    pub fn deliver(
        &self,
        call: Box<Incoming>,
        limits: &TargetLimits,
    ) -> Result<(), (Refused, Box<Incoming>)> {
        let mut state = self.lock();
        if state.closed {
            return Err((Refused::Closed, call));
        }
        let unread = state.unread.get_or_insert_default();
        if !limits.has_room(call.bytes(), unread.mail.len(), unread.bytes) {
            return Err((Refused::Busy(Limit::Mailbox), call));
        }
        unread.bytes += call.bytes();
        unread.mail.push_back(Mail::Deliver(call));
        wake(state);
        Ok(())
    }

    /// Tells the session something that it must hear, however full the mailbox is. A few at most for each session.
    pub fn tell(&self, mail: Mail) {
        let mut state = self.lock();
        if !state.closed {
            state.unread.get_or_insert_default().mail.push_back(mail);
            wake(state);
        }
    }

    /// The next mail; the reader is woken when there is one.
    pub fn poll_next(&self, cx: &mut Context<'_>) -> Poll<Mail> {
        let mut state = self.lock();
        if let Some(unread) = &mut state.unread
            && let Some(mail) = unread.mail.pop_front()
        {
            if let Mail::Deliver(call) = &mail {
                unread.bytes -= call.bytes();
            }
            if unread.mail.is_empty() && unread.mail.capacity() > 8 {
                state.unread = None;
            }
            return Poll::Ready(mail);
        }
        if !state.reader.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            state.reader = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// The session has ended: nothing more is taken; what was not read comes back.
    pub fn close(&self) -> impl Iterator<Item = Box<Incoming>> + use<> {
        let mut state = self.lock();
        state.closed = true;
        state.reader = None;
        state.unread.take().into_iter().flat_map(|unread| unread.mail).filter_map(|mail| match mail {
            Mail::Deliver(call) => Some(call),
            Mail::End(_) | Mail::Leave(_) => None,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }
}

/// Wakes the reader once the lock is free again.
fn wake(mut state: MutexGuard<'_, State>) {
    let reader = state.reader.take();
    drop(state);
    if let Some(reader) = reader {
        reader.wake();
    }
}
