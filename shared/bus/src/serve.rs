//! What is asked of this process? A subscription whose end loses nothing.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use async_nats::{Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt;
use parking_lot::Mutex;
use rpc::Subjects;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

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
    /// When it came to this process, at the earliest: after a gap in the connection, a sleep, or a time in which nobody
    /// took what came in, up to so much sooner. A budget is to be counted from here.
    pub arrived: std::time::Instant,
    /// NATS' word that nobody listened to what was published with this subject for its reply; `message` is empty.
    pub no_responders: bool,
}

/// The messages of one subscription, as they come in.
pub struct Requests {
    subscriber: Subscriber,
    subjects: Subjects,
    pulse: Arc<Mutex<Pulse>>,
    /// Nothing was queued then: what is read now has come later.
    empty_at: std::time::Instant,
    /// Since when nobody waits for a message.
    left_at: std::time::Instant,
    /// Since when messages have been queued that nobody took; none once nothing is queued any more.
    behind_since: Option<std::time::Instant>,
    taken: u64,
    drain: Option<Drain>,
}

struct Drain {
    next_step: usize,
    step_ends: Instant,
}

/// Who takes nothing for longer is behind: what is queued then may be as old as that.
const COUNTS_FROM: Duration = Duration::from_millis(500);

/// Keeps when the wait for a message ended, also by being dropped.
struct Leaves<'a>(&'a mut std::time::Instant);

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        *self.0 = std::time::Instant::now();
    }
}

/// How many more messages are taken, and for how long, before the next smaller step.
///
/// async-nats forgets a drained subscription before the server has heard of it, and drops what the server sent in
/// between. Asking for exactly so many more messages and no further one is exact on both sides, as long as they
/// come: a busy queue ends with the first step, and what is left for the plain drain is a queue where a message
/// inside that fraction of a millisecond is very unlikely.
const DRAIN_STEPS: [(u64, Duration); 3] =
    [(256, Duration::from_millis(200)), (16, Duration::from_millis(200)), (2, Duration::from_millis(300))];

/// How long the server may take to end a drained subscription; one that is away ends none.
const DRAIN_END: Duration = Duration::from_millis(300);

impl Requests {
    pub(crate) fn new(subscriber: Subscriber, subjects: Subjects, pulse: Arc<Mutex<Pulse>>) -> Self {
        let now = std::time::Instant::now();
        let (empty_at, left_at) = (now, now);
        Requests { subscriber, subjects, pulse, empty_at, left_at, behind_since: None, taken: 0, drain: None }
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
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            request = self.next() => return request,
        }
        self.drain().await;
        self.next().await
    }

    /// Begins to end the subscription: [`next`](Self::next) goes on to yield what still arrives and is queued, then
    /// none. That takes up to 0.7 s on a quiet queue, in which other members of its group are served as before.
    pub async fn drain(&mut self) {
        if self.drain.is_none() {
            self.drain = Some(Drain { next_step: 0, step_ends: Instant::now() });
            self.enter_next_drain_step().await;
        }
    }

    async fn take(&mut self, until: Option<Instant>) -> Option<Option<Request>> {
        let message = match until {
            None => self.read().await,
            Some(until) => tokio::time::timeout_at(until, self.read()).await.ok()?,
        };
        self.taken += u64::from(message.is_some());
        let now = std::time::Instant::now();
        Some(message.map(|message| {
            let age = self.pulse.lock().age(self.empty_at, now);
            let came = now.checked_sub(age).unwrap_or(now);
            Request {
                no_responders: message.status == Some(StatusCode::NO_RESPONDERS),
                arrived: self.behind_since.map_or(came, |behind_since| came.min(behind_since)),
                subject: message.subject,
                reply_to: message.reply.filter(|reply| self.subjects.is_inbox(reply)),
                message: message.payload,
            }
        }))
    }

    async fn read(&mut self) -> Option<Message> {
        let Requests { subscriber, empty_at, left_at, behind_since, .. } = self;
        if left_at.elapsed() > COUNTS_FROM {
            behind_since.get_or_insert(*left_at);
        }
        let _leaves = Leaves(left_at);
        poll_fn(|cx| {
            let polled = subscriber.poll_next_unpin(cx);
            if polled.is_pending() {
                *empty_at = std::time::Instant::now();
                *behind_since = None;
            }
            polled
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
