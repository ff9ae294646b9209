//! How does a call end? It is delivered to the node that holds its target, and its caller is answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::{AskError, Bus, Request};
use bytes::Bytes;
use rpc::{Call, Deadline, Delivery, DeliveryReply, Limit, Outcome, Routed, wire};
use tokio_util::task::TaskTracker;

use crate::locate::{Found, Locator, Refutation, Refuted};
use crate::meters::Meters;

/// How many claims of one target are tried; each but the last was found to lead nowhere.
const MAX_DELIVERIES: usize = 4;
/// How long the store may take to say where a device is.
const LOOK_UP_WAIT: Duration = Duration::from_secs(2);

/// Takes calls. Clones share everything.
#[derive(Clone)]
pub(crate) struct Router {
    bus: Bus,
    locator: Locator,
    meters: Arc<Meters>,
    in_flight: TaskTracker,
    max_in_flight: usize,
}

/// How a delivery ended.
enum Delivered {
    Ended(Outcome, Bytes),
    Refuted(Refutation),
}

impl Router {
    pub(crate) fn new(bus: Bus, locator: Locator, meters: Arc<Meters>, max_in_flight: usize) -> Self {
        Router { bus, locator, meters, in_flight: TaskTracker::new(), max_in_flight }
    }

    /// Begins with a call, in a task of its own; one too many is refused.
    pub(crate) fn take(&self, request: Request) {
        let arrived = Instant::now();
        let is_full = self.in_flight.len() >= self.max_in_flight;
        let router = self.clone();
        self.in_flight.spawn(async move {
            let Request { message, .. } = request;
            let Ok((Routed { call, reply_to }, body)) = wire::decode::<Routed>(&message) else {
                // Without a caller that could be answered.
                tracing::warn!("a message was no call");
                return router.meters.unreadable.increment(1);
            };
            let mut refuted = Vec::new();
            let (outcome, answer) = if is_full {
                router.meters.limit_hit(Limit::RouterInFlight);
                (Outcome::Busy(Limit::RouterInFlight), Bytes::new())
            } else {
                router.route(&call, &body, arrived, &mut refuted).await
            };
            router.answer(&call, &reply_to, &outcome, &answer).await;
            router.meters.ended(&outcome);
            router.meters.call_seconds.record(arrived.elapsed());
            for refuted in refuted {
                Box::pin(router.locator.clear(call.target, refuted)).await;
            }
        });
    }

    /// How many calls are in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Waits for the calls in flight.
    pub(crate) async fn finish(&self) {
        self.in_flight.close();
        self.in_flight.wait().await;
    }

    /// The call's outcome, and the body of an answer.
    async fn route(
        &self,
        call: &Call,
        body: &Bytes,
        arrived: Instant,
        refuted: &mut Vec<Refuted>,
    ) -> (Outcome, Bytes) {
        let deadline = call.budget_ms.starting(arrived);
        let connect_deadline = call.connect_budget_ms.min(call.budget_ms).starting(arrived);
        if deadline.has_passed(arrived) {
            // Its caller's node has given up. Nothing was delivered, and nothing is said of the target.
            return (Outcome::Unavailable, Bytes::new());
        }
        while refuted.len() < MAX_DELIVERIES {
            let wait = deadline.remaining(Instant::now()).as_duration().min(LOOK_UP_WAIT);
            let found = match self.locator.locate(call.target, refuted, wait).await {
                Ok(Some(found)) => Some(found),
                Ok(None) => {
                    Box::pin(self.locator.await_arrival(call.target, refuted, connect_deadline)).await
                }
                Err(error) => {
                    tracing::warn!(%error, call = %call.call, target = %call.target, "cannot locate the target");
                    return (Outcome::Unavailable, Bytes::new());
                }
            };
            let Some(found) = found else { break };
            match self.deliver(call, body, found, deadline).await {
                Delivered::Ended(outcome, answer) => return (outcome, answer),
                Delivered::Refuted(by) => {
                    self.meters.refuted.increment(1);
                    refuted.push(Refuted { found, by, still_stands: false });
                }
            }
        }
        (Outcome::Offline, Bytes::new())
    }

    /// Asks the node that holds the claim, for what is left of the call's time.
    async fn deliver(&self, call: &Call, body: &Bytes, found: Found, deadline: Deadline) -> Delivered {
        let unavailable = || Delivered::Ended(Outcome::Unavailable, Bytes::new());
        let started = Instant::now();
        let budget_ms = deadline.remaining(started);
        let head = Delivery {
            call: call.call,
            session: found.claim.session,
            target: call.target,
            budget_ms,
            oneway: call.oneway,
            traceparent: call.traceparent.clone(),
        };
        let Ok(message) = wire::encode(&head, body) else { return unavailable() };
        let node = self.bus.subjects().node(found.claim.node);
        let asked = tokio::select! {
            biased;
            asked = self.bus.ask(node, message, budget_ms.as_duration()) => asked,
            // It died with the call in its hands: the caller need not wait the budget out.
            () = self.locator.node_gone(found.claim.node) => {
                return Delivered::Ended(Outcome::Lost, Bytes::new());
            }
        };
        self.meters.deliver_seconds.record(started.elapsed());
        match asked {
            Ok(reply) => match wire::decode::<DeliveryReply>(&reply) {
                Ok((DeliveryReply::Ended(outcome), answer)) => Delivered::Ended(outcome, answer),
                Ok((DeliveryReply::NotHere, _)) => Delivered::Refuted(Refutation::NoSession),
                Err(error) => {
                    tracing::error!(%error, node = %found.claim.node, "a node's reply cannot be read");
                    self.meters.unreadable.increment(1);
                    unavailable()
                }
            },
            Err(AskError::NoResponders) => Delivered::Refuted(Refutation::NoNode),
            Err(AskError::Expired) => Delivered::Ended(Outcome::TimedOut, Bytes::new()),
            Err(AskError::Full) => {
                self.meters.limit_hit(Limit::PendingAsks);
                Delivered::Ended(Outcome::Busy(Limit::PendingAsks), Bytes::new())
            }
            Err(AskError::Down | AskError::Unsendable) => unavailable(),
        }
    }

    async fn answer(&self, call: &Call, reply_to: &str, outcome: &Outcome, answer: &Bytes) {
        tracing::debug!(
            call = %call.call,
            caller = %call.caller,
            target = %call.target,
            outcome = outcome.as_str(),
            "routed"
        );
        let sent = match wire::encode(outcome, answer) {
            Ok(message) => self.bus.tell(reply_to, message).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = sent {
            tracing::warn!(error, call = %call.call, "the outcome cannot be sent");
        }
    }
}
