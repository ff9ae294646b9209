//! What is asked of this process? A subscription whose end loses nothing.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::{HeaderMap, HeaderValue, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use rpc::Subjects;
use tokio::sync::watch;
use tokio::task::coop::has_budget_remaining;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::connect::Connection;
use crate::local::LocalQueue;
use crate::pulse::Pulse;

/// One message that came in.
#[derive(Debug, Clone)]
pub struct Request {
    /// The subject it was published to.
    pub subject: Subject,
    /// Where the reply goes, an inbox; none when none is expected, or when it was to go anywhere else.
    pub reply_to: Option<Subject>,
    /// The message itself.
    pub message: Bytes,
    /// When it came to this process, at the earliest: after a gap in the connection, a sleep, or a request before it
    /// that took its time, up to so much sooner. A budget is to be counted from here.
    pub arrived: std::time::Instant,
    /// NATS' word that nobody listened to what was published with this subject for its reply; `message` is empty.
    pub no_responders: bool,
    headers: Option<HeaderMap>,
}

impl Request {
    fn of(message: Message, arrived: std::time::Instant, reply_to: Option<Subject>) -> Self {
        Request {
            no_responders: message.status == Some(StatusCode::NO_RESPONDERS),
            arrived,
            subject: message.subject,
            reply_to,
            message: message.payload,
            headers: message.headers,
        }
    }

    /// A header of the message; none of ours has any, but an application's may.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.as_ref()?.get(name).map(HeaderValue::as_str)
    }
}

/// The messages of one subscription, as they come in.
pub struct Requests {
    subscriber: Subscriber,
    /// What this process sends itself there.
    local: Option<LocalQueue>,
    is_locals_turn: bool,
    subjects: Subjects,
    is_inbox: fn(&Subjects, &str) -> bool,
    pulse: Arc<Mutex<Pulse>>,
    connection: watch::Receiver<Connection>,
    /// The connection that it was made on.
    made_on: Connection,
    queue: Queue,
    taken: u64,
    drain: Option<Drain>,
}

/// How long may a message have been queued? Since nobody asked for the next one any more, at most.
#[derive(Debug, Clone, Copy)]
struct Queue {
    /// Nothing was queued then: what is read now has come later.
    empty_at: std::time::Instant,
    /// When the last one was taken, or was no longer asked for.
    left_at: std::time::Instant,
    /// Since when what is still queued may have been so, after a pause.
    since: Option<std::time::Instant>,
}

/// What a request may take before those behind it count as older by that.
const PAUSE: Duration = Duration::from_millis(100);

impl Queue {
    fn new(now: std::time::Instant) -> Self {
        Queue { empty_at: now, left_at: now, since: None }
    }

    /// The next message is asked for.
    fn asked(&mut self, now: std::time::Instant) {
        if now.saturating_duration_since(self.left_at) > PAUSE {
            self.since.get_or_insert(self.left_at);
        }
    }

    /// There is none: who comes now is waited for.
    fn is_empty(&mut self, now: std::time::Instant) {
        (self.empty_at, self.since) = (now, None);
    }

    /// How long what is taken now may have been there.
    fn age(&self, now: std::time::Instant) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// Somebody waits for the next message, until this is dropped.
struct Asking<'a> {
    queue: &'a mut Queue,
    /// He has one: that was when it was last looked for.
    has_one: bool,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if !self.has_one {
            self.queue.left_at = std::time::Instant::now();
        }
    }
}

struct Drain {
    next_step: usize,
    step_ends: Instant,
}

/// How many more messages are taken, and for how long, before the next smaller step.
///
/// async-nats forgets a drained subscription before the server has heard of it, and drops what the server sent in
/// between. Asking for exactly so many more messages and no further one is exact on both sides, as long as they
/// come: a busy queue ends with the first step, and what is left for the plain drain is a queue where a message
/// inside that fraction of a millisecond is very unlikely. On another connection than it was made on, the server counts
/// anew and async-nats does not: then only the plain drain is left.
const DRAIN_STEPS: [(u64, Duration); 3] =
    [(256, Duration::from_millis(200)), (16, Duration::from_millis(200)), (2, Duration::from_millis(300))];

/// How long the server may take to end a drained subscription; one that is away ends none.
const DRAIN_END: Duration = Duration::from_millis(300);

impl Requests {
    pub(crate) fn new(
        subscriber: Subscriber,
        local: Option<LocalQueue>,
        subjects: Subjects,
        pulse: Arc<Mutex<Pulse>>,
        connection: watch::Receiver<Connection>,
    ) -> Self {
        let made_on = *connection.borrow();
        let queue = Queue::new(std::time::Instant::now());
        let is_inbox = Subjects::is_inbox;
        Requests {
            subscriber,
            local,
            is_locals_turn: false,
            subjects,
            is_inbox,
            pulse,
            connection,
            made_on,
            queue,
            taken: 0,
            drain: None,
        }
    }

    /// Replies go where `is_inbox` says, and not to our inboxes.
    pub(crate) fn answered_where(self, is_inbox: fn(&Subjects, &str) -> bool) -> Self {
        Requests { is_inbox, ..self }
    }

    /// Services of this process go through NATS, which may know others, while `is_able` says no. It is asked with each
    /// of their messages, so it must be quick, and send nothing.
    pub fn locally_while(self, is_able: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        if let Some(local) = &self.local {
            local.only_while(Box::new(is_able));
        }
        self
    }

    /// What services of this process send there does not come out of [`next`](Self::next): `take` runs where they
    /// send it, until this is drained or dropped. So it holds them up; a panic in it ends the process wherever that
    /// is. Quick, for what is sent with every call: it wakes nobody, and what it reads is what has just been written.
    pub fn take_locally(&self, take: impl Fn(Request) + Send + Sync + 'static) {
        let (subjects, is_inbox) = (self.subjects.clone(), self.is_inbox);
        if let Some(local) = &self.local {
            local.take_at_once(Arc::new(move |mut message, sent| {
                let reply_to = message.reply.take().filter(|reply| is_inbox(&subjects, reply));
                take(Request::of(message, sent, reply_to));
            }));
        }
    }

    /// The next message; none once the subscription has ended. Cancel-safe.
    pub async fn next(&mut self) -> Option<Request> {
        loop {
            let Some(drain) = &self.drain else {
                return self.take(None).await.flatten();
            };
            let step_ends = drain.step_ends;
            let is_last = drain.next_step > DRAIN_STEPS.len();
            if let Some(taken) = self.take(Some(step_ends)).await {
                return taken;
            }
            if is_last {
                return None;
            }
            self.enter_next_drain_step().await;
        }
    }

    /// The next message; after `stop` those that still arrive until others have taken over, then none.
    pub async fn next_until(&mut self, stop: &CancellationToken) -> Option<Request> {
        if !stop.is_cancelled() {
            tokio::select! {
                biased;
                // First: a message that is there already does not pay for a look-out for the stop.
                request = self.next() => return request,
                () = stop.cancelled() => {}
            }
        }
        self.drain().await;
        self.next().await
    }

    /// Begins to end the subscription: [`next`](Self::next) goes on to yield what still arrives and is queued, then
    /// none. That takes up to 0.7 s on a quiet queue, in which other members of its group are served as before.
    pub async fn drain(&mut self) {
        if self.drain.is_none() {
            // Whoever is here asks others from now on.
            if let Some(local) = &mut self.local {
                local.close();
            }
            let is_counted_alike = *self.connection.borrow() == self.made_on;
            let next_step = if is_counted_alike { 0 } else { DRAIN_STEPS.len() };
            self.drain = Some(Drain { next_step, step_ends: Instant::now() });
            self.enter_next_drain_step().await;
        }
    }

    async fn take(&mut self, until: Option<Instant>) -> Option<Option<Request>> {
        let came = match until {
            None => self.read().await,
            Some(until) => tokio::time::timeout_at(until, self.read()).await.ok()?,
        };
        Some(came.map(|(mut message, sent)| {
            let arrived = sent.unwrap_or_else(|| {
                self.taken += 1;
                let now = self.queue.left_at;
                let age = self.pulse.lock().age(self.queue.empty_at, now).max(self.queue.age(now));
                now.checked_sub(age).unwrap_or(now)
            });
            let reply_to = message.reply.take().filter(|reply| (self.is_inbox)(&self.subjects, reply));
            Request::of(message, arrived, reply_to)
        }))
    }

    /// The next message, and when it was sent if it was here.
    async fn read(&mut self) -> Option<(Message, Option<std::time::Instant>)> {
        let Requests { subscriber, local, is_locals_turn, queue, .. } = self;
        // The clock is read once for each look: for every message there is one that finds nothing more.
        let now = std::time::Instant::now();
        queue.asked(now);
        let mut asked_at = Some(now);
        let mut asking = Asking { queue, has_one: false };
        // Taking turns: neither NATS nor the process itself holds the other up.
        *is_locals_turn = !*is_locals_turn;
        let mut here = |cx: &mut Context<'_>| match local.as_mut().map(|local| local.poll_next(cx)) {
            Some(Poll::Ready(Some((message, sent)))) => Some((message, Some(sent))),
            Some(Poll::Ready(None) | Poll::Pending) | None => None,
        };
        let mut look = |cx: &mut Context<'_>, queue: &mut Queue, now| {
            if *is_locals_turn && let Some(came) = here(cx) {
                return Poll::Ready(Some(came));
            }
            let polled = subscriber.poll_next_unpin(cx);
            // A task that has used up its turn is told that there is none, though there may be.
            if polled.is_pending() && has_budget_remaining() {
                queue.is_empty(now);
            }
            match polled {
                Poll::Ready(Some(message)) => Poll::Ready(Some((message, None))),
                Poll::Ready(None) => Poll::Ready(here(cx)),
                Poll::Pending => here(cx).map_or(Poll::Pending, |came| Poll::Ready(Some(came))),
            }
        };
        poll_fn(|cx| {
            let now = asked_at.take().unwrap_or_else(std::time::Instant::now);
            let looked = look(cx, asking.queue, now);
            if looked.is_ready() {
                (asking.queue.left_at, asking.has_one) = (now, true);
            }
            looked
        })
        .await
    }

    async fn enter_next_drain_step(&mut self) {
        let Some(drain) = &mut self.drain else { return };
        // Only a closed connection refuses either, and then the stream ends by itself.
        match DRAIN_STEPS.get(drain.next_step) {
            Some(&(further, lasts)) => {
                drain.next_step += 1;
                drain.step_ends = Instant::now() + lasts;
                let _ = self.subscriber.unsubscribe_after(self.taken + further).await;
            }
            None => {
                drain.next_step += 1;
                drain.step_ends = Instant::now() + DRAIN_END;
                let _ = self.subscriber.drain().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_queued_while_a_request_took_its_time_is_older() {
        let start = std::time::Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut queue = Queue::new(start);
        // One after the other, without a pause.
        for ms in [10, 60, 110] {
            queue.asked(after(ms));
            assert_eq!(queue.age(after(ms)), Duration::ZERO);
            queue.left_at = after(ms + 40);
        }
        // Three seconds for one request: those behind it may have come right after it was taken.
        queue.asked(after(3_150));
        assert_eq!(queue.age(after(3_150)), Duration::from_millis(3_000));
        queue.left_at = after(3_151);
        queue.asked(after(3_152));
        assert_eq!(queue.age(after(3_152)), Duration::from_millis(3_002), "queued behind it");
        // Whoever finds nothing there waits for what comes, however long that takes.
        queue.is_empty(after(3_160));
        assert_eq!(queue.age(after(9_000)), Duration::ZERO);
        queue.left_at = after(9_000);
        queue.asked(after(9_001));
        assert_eq!(queue.age(after(9_001)), Duration::ZERO);
    }
}
