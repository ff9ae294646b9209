//! How does a call end? It is delivered to the node that holds its target, and its caller is answered.
//!
//! A call whose target is on the map costs no task: it waits in the bus's table of questions, and goes on where its
//! reply comes in. Only what has to look a claim up, or to wait for one, is a task of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use boot::traces::{Hop, Span, Tracer};
use bus::{AskError, Bus, Question, Request};
use bytes::Bytes;
use futures::FutureExt;
use rpc::{Deadline, Delivery, DeliveryReply, Limit, Outcome, Routed, wire};
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::locate::{Found, Locator, Refutation, Refuted};
use crate::meters::Meters;

/// How many claims of one target are tried; each but the last was found to lead nowhere.
const MAX_DELIVERIES: usize = 4;
/// How long the store may take to say where a device is.
const LOOK_UP_WAIT: Duration = Duration::from_secs(2);

/// Takes calls. Clones share everything.
#[derive(Clone)]
pub(crate) struct Router(Arc<Inner>);

struct Inner {
    bus: Bus,
    locator: Locator,
    meters: Arc<Meters>,
    tracer: Tracer,
    in_flight: TaskTracker,
    max_in_flight: usize,
}

/// A call that is in the router's hands.
struct Underway {
    routed: Routed,
    body: Bytes,
    arrived: Instant,
    deadline: Deadline,
    refuted: Vec<Refuted>,
    span: Span,
    /// Counts it as in flight.
    _in_flight: TaskTrackerToken,
}

impl Router {
    pub(crate) fn new(
        bus: Bus,
        locator: Locator,
        meters: Arc<Meters>,
        tracer: Tracer,
        max_in_flight: usize,
    ) -> Self {
        let in_flight = TaskTracker::new();
        Router(Arc::new(Inner { bus, locator, meters, tracer, in_flight, max_in_flight }))
    }

    /// Begins with a call; one too many is refused.
    pub(crate) fn take(&self, request: &Request) {
        let arrived = Instant::now();
        let Ok((mut routed, body)) = wire::decode::<Routed>(&request.message) else {
            // Without a caller that could be answered.
            tracing::warn!("a message was no call");
            return self.0.meters.unreadable.increment(1);
        };
        let is_full = self.in_flight() >= self.0.max_in_flight;
        let deadline = routed.call.budget_ms.starting(arrived);
        let mut span = self.0.tracer.follow("route", Hop::Taken, &mut routed.call.traceparent);
        span.note("switchboard.call", routed.call.call);
        span.unless_told("cut_off");
        let in_flight = self.0.in_flight.token();
        let call =
            Underway { routed, body, arrived, deadline, refuted: Vec::new(), span, _in_flight: in_flight };
        if is_full {
            self.0.meters.limit_hit(Limit::RouterInFlight);
            return self.end(call, &Outcome::Busy(Limit::RouterInFlight), &Bytes::new());
        }
        if deadline.has_passed(arrived) {
            // Its caller's node has given up. Nothing was delivered, and nothing is said of the target.
            return self.end(call, &Outcome::Unavailable, &Bytes::new());
        }
        self.proceed(call);
    }

    /// How many calls are in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.0.in_flight.len()
    }

    /// Waits for the calls in flight.
    pub(crate) async fn finish(&self) {
        self.0.in_flight.close();
        self.0.in_flight.wait().await;
    }

    /// Ends calls whose node died with them in its hands: their callers need not wait the budget out.
    pub(crate) async fn watch_nodes(&self) {
        loop {
            tokio::time::sleep(self.0.locator.lease() / 4).await;
            for node in self.0.bus.asked_nodes() {
                if self.0.locator.is_gone(node).await {
                    self.0.bus.no_reply_from(node);
                }
            }
        }
    }

    /// Delivers the call to where its target is.
    fn proceed(&self, call: Underway) {
        if call.refuted.len() >= MAX_DELIVERIES {
            return self.end(call, &Outcome::Offline, &Bytes::new());
        }
        match self.0.locator.on_map(call.routed.call.target, &call.refuted) {
            Some(found) => self.deliver(call, found),
            None => {
                let router = self.clone();
                tokio::spawn(async move { router.seek(call).await });
            }
        }
    }

    /// Looks its target up where the map does not have it, and waits for it if its caller does.
    async fn seek(&self, mut call: Underway) {
        let Underway { routed: Routed { call: head, .. }, arrived, deadline, refuted, .. } = &mut call;
        let connect_deadline = head.connect_budget_ms.min(head.budget_ms).starting(*arrived);
        let wait = deadline.remaining(Instant::now()).as_duration().min(LOOK_UP_WAIT);
        let locator = &self.0.locator;
        let found = match locator.locate(head.target, refuted, wait).await {
            Ok(Some(found)) => Some(found),
            Ok(None) => locator.await_arrival(head.target, refuted, connect_deadline).await,
            Err(error) => {
                tracing::warn!(%error, call = %head.call, target = %head.target, "cannot locate the target");
                return self.end(call, &Outcome::Unavailable, &Bytes::new());
            }
        };
        match found {
            Some(found) => self.deliver(call, found),
            None => self.end(call, &Outcome::Offline, &Bytes::new()),
        }
    }

    /// Asks the node that holds the claim, for what is left of the call's time.
    fn deliver(&self, mut call: Underway, found: Found) {
        let started = Instant::now();
        call.span.note("switchboard.node", found.claim.node);
        let head = &call.routed.call;
        let budget_ms = call.deadline.remaining(started);
        let delivery = Delivery {
            call: head.call,
            session: found.claim.session,
            target: head.target,
            caller: Some(head.caller),
            caller_name: head.caller_name.clone(),
            budget_ms,
            oneway: head.oneway,
            traceparent: head.traceparent.clone(),
        };
        let Ok(message) = wire::encode(&delivery, &call.body) else {
            return self.end(call, &Outcome::Unavailable, &Bytes::new());
        };
        let question = Question {
            subject: self.0.bus.subjects().node(found.claim.node).into(),
            message,
            wait: budget_ms.as_duration(),
            asked: Some(found.claim.node),
        };
        let router = self.clone();
        self.0.bus.ask_then(question, move |asked| {
            router.0.meters.deliver_seconds.record(started.elapsed());
            router.delivered(call, found, asked);
        });
    }

    fn delivered(&self, mut call: Underway, found: Found, asked: Result<Bytes, AskError>) {
        let ended = |outcome| Ok((outcome, Bytes::new()));
        let ended = match asked {
            Ok(reply) => match wire::decode::<DeliveryReply>(&reply) {
                Ok((DeliveryReply::Ended(outcome), answer)) => Ok((outcome, answer)),
                Ok((DeliveryReply::NotHere, _)) => Err(Refutation::NoSession),
                Err(error) => {
                    tracing::error!(%error, node = %found.claim.node, "a node's reply cannot be read");
                    self.0.meters.unreadable.increment(1);
                    ended(Outcome::Unavailable)
                }
            },
            Err(AskError::NoResponders) => Err(Refutation::NoNode),
            Err(AskError::Expired) => ended(Outcome::TimedOut),
            Err(AskError::Gone) => ended(Outcome::Lost),
            Err(AskError::Full) => {
                self.0.meters.limit_hit(Limit::PendingAsks);
                ended(Outcome::Busy(Limit::PendingAsks))
            }
            Err(AskError::Down | AskError::Unsendable) => ended(Outcome::Unavailable),
        };
        match ended {
            Ok((outcome, answer)) => self.end(call, &outcome, &answer),
            Err(by) => {
                self.0.meters.refuted.increment(1);
                call.refuted.push(Refuted { found, by, still_stands: false });
                self.proceed(call);
            }
        }
    }

    /// Answers the caller, and clears away what was found out about its target on the way.
    fn end(&self, mut call: Underway, outcome: &Outcome, answer: &Bytes) {
        let head = &call.routed.call;
        tracing::debug!(
            call = %head.call,
            caller = %head.caller,
            target = %head.target,
            outcome = outcome.as_str(),
            "routed"
        );
        std::mem::take(&mut call.span).end(outcome);
        match wire::encode(outcome, answer) {
            // Nearly always the connection takes it at once.
            Ok(message) => match self.answer(&call, message.clone()).now_or_never() {
                Some(()) => self.ended(&mut call, outcome),
                None => {
                    let (router, outcome) = (self.clone(), outcome.clone());
                    tokio::spawn(async move {
                        router.answer(&call, message).await;
                        router.ended(&mut call, &outcome);
                    });
                }
            },
            Err(error) => tracing::error!(%error, call = %head.call, "the outcome cannot be written"),
        }
    }

    async fn answer(&self, call: &Underway, message: Bytes) {
        if let Err(error) = self.0.bus.tell(call.routed.reply_to.as_str(), message).await {
            tracing::warn!(%error, call = %call.routed.call.call, "the outcome cannot be sent");
        }
    }

    fn ended(&self, call: &mut Underway, outcome: &Outcome) {
        self.0.meters.ended(outcome);
        self.0.meters.call_seconds.record(call.arrived.elapsed());
        if call.refuted.is_empty() {
            return;
        }
        let (router, target, refuted) =
            (self.clone(), call.routed.call.target, std::mem::take(&mut call.refuted));
        self.0.in_flight.spawn(async move {
            for refuted in refuted {
                router.0.locator.clear(target, refuted).await;
            }
        });
    }
}
