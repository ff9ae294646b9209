//! What does a node keep of one device that speaks HTTP? Who it is, and its lease; one loop performs what they ask for.
//!
//! Kept from the device's first request until it has been silent for a while, or the registry changes it: like an
//! MQTT connection, it is a session that the node is told about, so a device is not asked for twice and a revoked one
//! is not served once more.

use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rpc::SessionEnd;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::lease::{Effect, Lease, LeaseLimits, NotPolled, PollEnd, PollId};
use crate::device::mailbox::{EndReason, Mail, Router};
use crate::device::sessions::{Session, Visitor};
use crate::device::target::AnswerTaken;
use crate::node::Node;

/// A device that this node keeps in mind.
pub(super) struct Device {
    /// Its place among the node's visitors: told when the device changes or the node shuts down.
    pub(super) visitor: Arc<Visitor>,
    state: Mutex<State>,
    /// Cancelled when the device is no longer served; `ended` says why.
    closing: CancellationToken,
    ended: OnceLock<EndReason>,
}

struct State {
    lease: Lease<oneshot::Sender<Told>, Router>,
    /// Requests that are being answered.
    requests: usize,
    last_request_at: Instant,
    draining: bool,
    /// No request is let in any more: the loop is over, or about to be.
    closed: bool,
    /// When the loop wakes by itself.
    wakes_at: Instant,
    waker: Option<Waker>,
}

/// What a poll is told, with the call to be written if there is one.
pub(super) enum Told {
    Call(Handover),
    End(PollEnd),
}

/// A call on its way into a connection. Dropped without [`written`](Self::written), it goes back.
pub(super) struct Handover {
    device: Arc<Device>,
    number: u32,
    /// What the device reads.
    pub(super) text: Bytes,
    /// W3C trace context, as the caller gave it.
    pub(super) traceparent: Option<String>,
    written: bool,
}

impl Handover {
    /// The connection has taken it.
    pub(super) fn written(mut self) {
        self.written = true;
        self.device.with(|state| state.lease.written(self.number, Instant::now()));
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        if !self.written {
            self.device.with(|state| state.lease.unwritten(self.number, Instant::now()));
        }
    }
}

/// A request of the device that is being answered: while there is one, the device is kept.
pub(super) struct Visit {
    device: Arc<Device>,
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.device.with(|state| {
            state.requests = state.requests.saturating_sub(1);
            state.last_request_at = Instant::now();
        });
    }
}

/// A poll that waits. Dropped, it waits no more.
pub(super) struct WaitingPoll<'a> {
    device: &'a Arc<Device>,
    id: PollId,
    told: oneshot::Receiver<Told>,
}

impl WaitingPoll<'_> {
    /// What it is told, in the end.
    pub(super) async fn told(&mut self) -> Told {
        // The loop tells every poll before it ends.
        (&mut self.told).await.unwrap_or(Told::End(PollEnd::Unavailable))
    }
}

impl Drop for WaitingPoll<'_> {
    fn drop(&mut self) {
        self.device.with(|state| state.lease.poll_gone(self.id, Instant::now()));
    }
}

impl Visit {
    /// Whom the request is of.
    pub(super) fn visitor(&self) -> &Arc<Visitor> {
        &self.device.visitor
    }

    /// Waits for a call, until then.
    pub(super) fn poll(&self, until: Instant) -> Result<WaitingPoll<'_>, NotPolled> {
        let (sender, told) = oneshot::channel();
        let id = self.device.with(|state| state.lease.poll(sender, until, Instant::now()))?;
        Ok(WaitingPoll { device: &self.device, id, told })
    }

    /// The device answers call `number`.
    pub(super) fn answer(&self, number: u32, body: &Bytes) -> AnswerTaken {
        self.device.with(|state| state.lease.answer(number, body, Instant::now()))
    }

    /// Waits until the node breaks the request off.
    pub(super) async fn broken_off(&self) -> EndReason {
        self.device.closing.cancelled().await;
        self.device.ended.get().copied().unwrap_or(EndReason::ShuttingDown)
    }
}

impl Device {
    /// A device that was just added to the node's visitors.
    pub(super) fn new(visitor: Arc<Visitor>, limits: LeaseLimits, now: Instant) -> Self {
        // Keyed at random by the operating system.
        let first_number = (RandomState::new().hash_one(visitor.id) >> 33) as u32;
        let state = State {
            lease: Lease::new(limits, first_number, now),
            requests: 0,
            last_request_at: now,
            draining: false,
            closed: false,
            wakes_at: now,
            waker: None,
        };
        Device {
            visitor,
            state: Mutex::new(state),
            closing: CancellationToken::new(),
            ended: OnceLock::new(),
        }
    }

    /// Begins a request, unless the device is being forgotten.
    pub(super) fn visit(self: &Arc<Self>) -> Option<Visit> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        state.requests += 1;
        drop(state);
        Some(Visit { device: Arc::clone(self) })
    }

    /// Serves the device no longer.
    pub(super) fn end(self: &Arc<Self>, reason: EndReason) {
        let _ = self.ended.set(reason);
        self.with(|state| {
            state.lease.end(reason, Instant::now());
            state.closed = true;
        });
        self.closing.cancel();
    }

    /// Changes the state, tells polls what is to be told, and wakes the loop if that has something to do.
    fn with<T>(self: &Arc<Self>, change: impl FnOnce(&mut State) -> T) -> T {
        let mut told = Vec::new();
        let mut state = self.lock();
        let result = change(&mut state);
        while let Some((poll, end)) = state.lease.next_handover() {
            told.push((poll, end));
        }
        let wakes = state.closed
            || state.draining
            || state.lease.has_effects()
            || state.lease.next_tick().is_some_and(|tick| tick < state.wakes_at);
        let waker = if wakes { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        for (poll, end) in told {
            let told = match end {
                PollEnd::Call { number, text, traceparent } => {
                    let device = Arc::clone(self);
                    Told::Call(Handover { device, number, text, traceparent, written: false })
                }
                end => Told::End(end),
            };
            // A poll that has gone meanwhile drops what it is told, and a call goes back.
            let _ = poll.send(told);
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Performs what the lease asks for, until the device is forgotten.
    pub(super) async fn run(self: Arc<Self>, node: Arc<Node>, idle: Duration) {
        let mut session: Option<Arc<Session>> = None;
        let mut ended = SessionEnd::ByDevice;
        let mut timer = pin!(tokio::time::sleep(idle));
        loop {
            // Boxed, here and below: a device that waits is counted in kilobytes.
            if self.lock().lease.has_effects() {
                Box::pin(self.perform(&node, &mut session, ended)).await;
            }
            let now = Instant::now();
            self.with(|state| state.lease.tick(now));
            let Some(wakes_at) = self.rest(now, idle) else { break };
            timer.as_mut().reset(wakes_at.into());
            let mail = poll_fn(|cx| {
                if let Poll::Ready(mail) = self.visitor.mailbox.poll_next(cx) {
                    return Poll::Ready(Some(mail));
                }
                if let Some(session) = &session
                    && let Poll::Ready(mail) = session.mailbox.poll_next(cx)
                {
                    return Poll::Ready(Some(mail));
                }
                if self.poll_work(cx).is_ready() || timer.as_mut().poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                Poll::Pending
            });
            let mail = mail.await;
            // Awake: what others change from here on is looked at before the loop sleeps again.
            self.lock().waker = None;
            match mail {
                Some(Mail::Deliver(call)) => {
                    let now = Instant::now();
                    self.with(|state| state.lease.deliver(call, now));
                }
                Some(Mail::End(EndReason::TakenOver)) => {
                    ended = SessionEnd::TakenOver;
                    self.with(|state| state.lease.end(EndReason::TakenOver, Instant::now()));
                }
                Some(Mail::End(reason)) => {
                    ended = reason.into();
                    self.end(reason);
                }
                Some(Mail::Drain) => {
                    ended = SessionEnd::ShuttingDown;
                    self.with(|state| {
                        state.draining = true;
                        state.lease.drain(Instant::now());
                    });
                }
                None => ended = SessionEnd::ByDevice,
            }
        }
        Box::pin(self.perform(&node, &mut session, ended)).await;
        node.leave(&self.visitor);
    }

    /// When to wake at the latest; none when the device is to be forgotten.
    fn rest(&self, now: Instant, idle: Duration) -> Option<Instant> {
        let mut state = self.lock();
        if state.lease.has_effects() {
            // Of the tick just now: to be performed first.
            state.wakes_at = now;
            return Some(now);
        }
        let lease_rests = state.lease.is_at_rest() && state.requests == 0;
        if state.closed || (state.draining && lease_rests) {
            state.closed = true;
            return None;
        }
        let idle_until = state.last_request_at + idle;
        if lease_rests && now >= idle_until && self.visitor.caller.lock().is_at_rest(now) {
            state.closed = true;
            return None;
        }
        // A device that is not at rest is looked at again after another while.
        let again = if idle_until > now { idle_until } else { now + idle };
        state.wakes_at = state.lease.next_tick().map_or(again, |tick| tick.min(again));
        Some(state.wakes_at)
    }

    /// Ready when there is something to perform.
    fn poll_work(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        let at_end = state.closed || (state.draining && state.requests == 0 && state.lease.is_at_rest());
        let earlier = state.lease.next_tick().is_some_and(|tick| tick < state.wakes_at);
        if at_end || earlier || state.lease.has_effects() {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    async fn perform(self: &Arc<Self>, node: &Node, session: &mut Option<Arc<Session>>, ended: SessionEnd) {
        while let Some(effect) = self.with(|state| state.lease.next_effect()) {
            match effect {
                Effect::Claim => {
                    *session = node.begin_session(&self.visitor).await;
                    let stands = session.is_some();
                    self.with(|state| state.lease.claimed(stands, Instant::now()));
                }
                Effect::Release => {
                    if let Some(session) = session.take() {
                        node.end_session(&session, ended).await;
                    }
                }
                Effect::Conclude(conclusion) => node.conclude(conclusion).await,
                Effect::LimitHit(limit) => node.metrics.limit_hit(limit),
            }
        }
    }
}
