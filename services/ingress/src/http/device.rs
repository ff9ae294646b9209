//! What does a node keep of one device that speaks HTTP? Who it is, and its lease; one loop performs what they ask for.
//!
//! Like an MQTT connection, it is a visitor that the node is told about, so a device is not asked for twice and a
//! revoked one is not served once more.

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

use super::lease::{Effect, Handed, Lease, LeaseLimits, NotPolled, PollEnd, PollId, Told};
use crate::device::mailbox::{EndReason, Mail, Router};
use crate::device::sessions::{Session, Visitor};
use crate::device::target::{AnswerTaken, Numbers};
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
    lease: Lease<oneshot::Sender<Told<Handover>>, Router>,
    /// No request is let in any more: the loop is over, or about to be.
    closed: bool,
    /// The loop is to look again, whatever it waits for.
    nudged: bool,
    /// When the loop wakes by itself.
    wakes_at: Instant,
    waker: Option<Waker>,
}

/// When a loop wakes that has nothing to wait for.
const LONG: Duration = Duration::from_secs(3_600);

/// A call on its way into a connection. Dropped without [`written`](Self::written), it goes back.
pub(super) struct Handover {
    device: Arc<Device>,
    pub(super) call: Handed,
    written: bool,
}

impl Handover {
    /// The connection has taken it.
    pub(super) fn written(mut self) {
        self.written = true;
        self.device.with(|state| state.lease.written(self.call.number, Instant::now()));
    }
}

impl Drop for Handover {
    fn drop(&mut self) {
        if !self.written {
            self.device.with(|state| state.lease.unwritten(self.call.number, Instant::now()));
        }
    }
}

/// A poll that waits. Dropped, it waits no more.
pub(super) struct WaitingPoll<'a> {
    device: &'a Arc<Device>,
    id: PollId,
    told: oneshot::Receiver<Told<Handover>>,
}

impl WaitingPoll<'_> {
    /// What it is told, in the end.
    pub(super) async fn told(&mut self) -> Told<Handover> {
        // The loop tells every poll before it ends.
        (&mut self.told).await.unwrap_or(Told::End(PollEnd::Unavailable))
    }

    /// Its client sends no more, and may have gone.
    pub(super) fn in_doubt(&self) {
        self.device.with(|state| state.lease.poll_in_doubt(self.id, Instant::now()));
    }
}

impl Drop for WaitingPoll<'_> {
    fn drop(&mut self) {
        self.device.with(|state| state.lease.poll_gone(self.id, Instant::now()));
    }
}

impl Device {
    /// A device that was just added to the node's visitors; the numbers of its calls name the node by its tag.
    pub(super) fn new(visitor: Arc<Visitor>, limits: LeaseLimits, node_tag: u16, now: Instant) -> Self {
        // Keyed at random by the operating system.
        let random = (RandomState::new().hash_one(visitor.id) >> 33) as u32;
        let numbers = Numbers::of_node(node_tag, random);
        let state = State {
            lease: Lease::new(limits, numbers, now),
            closed: false,
            nudged: false,
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

    /// Waits for a call, until then.
    pub(super) fn poll(self: &Arc<Self>, until: Instant) -> Result<WaitingPoll<'_>, NotPolled> {
        let (sender, told) = oneshot::channel();
        let id = self.with(|state| state.lease.poll(sender, until, Instant::now()))?;
        Ok(WaitingPoll { device: self, id, told })
    }

    /// The device answers call `number`.
    pub(super) fn answer(self: &Arc<Self>, number: u32, body: &Bytes) -> AnswerTaken {
        self.with(|state| state.lease.answer(number, body, Instant::now()))
    }

    /// Waits until the node breaks requests off.
    pub(super) async fn broken_off(&self) -> EndReason {
        self.closing.cancelled().await;
        self.ended.get().copied().unwrap_or(EndReason::ShuttingDown)
    }

    /// True when no request is let in any more.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// True when it is sent away: no poll waits any more.
    pub(super) fn leaves(&self) -> bool {
        self.lock().lease.is_over()
    }

    /// True when forgetting the device would change nothing, but for requests that are being answered.
    pub(super) fn is_at_rest(&self, now: Instant) -> bool {
        self.lock().lease.is_at_rest() && self.visitor.caller.lock().is_at_rest(now)
    }

    /// The device is forgotten: its loop ends.
    pub(super) fn close(self: &Arc<Self>) {
        self.with(|state| state.closed = true);
    }

    /// The loop looks again whether it is still needed.
    pub(super) fn nudge(self: &Arc<Self>) {
        self.with(|state| state.nudged = true);
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
        while let Some(handover) = state.lease.next_handover() {
            told.push(handover);
        }
        let wakes = state.closed
            || state.nudged
            || state.lease.has_effects()
            || state.lease.next_tick().is_some_and(|tick| tick < state.wakes_at);
        let waker = if wakes { state.waker.take() } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        for (poll, told) in told {
            let told = match told {
                Told::Call(call) => Told::Call(Handover { device: Arc::clone(self), call, written: false }),
                Told::End(end) => Told::End(end),
            };
            // A poll that has gone meanwhile drops what it is told, and a call goes back.
            let _ = poll.send(told);
        }
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Performs what the lease asks for, until the device is forgotten. Once it is sent away, `forget` is asked as soon
    /// as the lease is at rest: false while a request is still being answered.
    pub(super) async fn run(self: Arc<Self>, node: Arc<Node>, forget: impl Fn() -> bool) {
        let mut session: Option<Arc<Session>> = None;
        let mut ended = SessionEnd::ByDevice;
        let mut timer = pin!(tokio::time::sleep(LONG));
        loop {
            // Boxed, here and below: a device that waits is counted in kilobytes.
            if self.lock().lease.has_effects() {
                Box::pin(self.perform(&node, &mut session, ended)).await;
            }
            let now = Instant::now();
            self.with(|state| state.lease.tick(now));
            let Some(wakes_at) = self.rest(now) else { break };
            if self.leaves() && self.lock().lease.is_at_rest() && forget() {
                break;
            }
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
                Some(Mail::Leave(reason)) => {
                    ended = reason.into();
                    self.with(|state| state.lease.leave(reason, Instant::now()));
                }
                None if self.leaves() => {}
                None => ended = SessionEnd::ByDevice,
            }
        }
        Box::pin(self.perform(&node, &mut session, ended)).await;
        node.leave(&self.visitor);
    }

    /// When to wake at the latest; none when the device was forgotten.
    fn rest(&self, now: Instant) -> Option<Instant> {
        let mut state = self.lock();
        if state.closed {
            return None;
        }
        state.wakes_at = match state.lease.has_effects() {
            // Of the tick just now: to be performed first.
            true => now,
            false => state.lease.next_tick().unwrap_or(now + LONG),
        };
        Some(state.wakes_at)
    }

    /// Ready when there is something to perform.
    fn poll_work(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        let nudged = std::mem::take(&mut state.nudged);
        let earlier = state.lease.next_tick().is_some_and(|tick| tick < state.wakes_at);
        if state.closed || nudged || earlier || state.lease.has_effects() {
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
                Effect::LimitHit(limit) => node.limit_hit(&self.visitor, limit),
            }
        }
    }
}
