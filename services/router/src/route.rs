//! How does a call end? It is delivered to the node that holds its target, and its caller is answered.
//!
//! A call whose target is on the map costs no task: it waits in the bus's table of questions, and goes on where its
//! reply comes in. Only what has to look a claim up is a task of its own.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use boot::traces::{Hop, Span};
use bus::{AskError, MAX_APP_HEADER_BYTES, Question, Request};
use bytes::Bytes;
use futures::FutureExt;
use rpc::{
    AppCaller, Budget, Deadline, Delivery, DeliveryReply, HopEnd, HopOf, JudgeReply, JudgeRequest, Limit,
    NoPlace, Outcome, Party, Place, Routed, Says, Station, TenantId, Until, wire,
};
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::claims::found;
use crate::core::{Found, Refutation, Underway};
use crate::router::Router;

/// How long another router may take to say that it has taken a waiting call.
const HANDOVER_WAIT: Duration = Duration::from_secs(1);
/// How long an authorizer may take to judge again.
const JUDGE_WAIT: Duration = Duration::from_secs(2);

/// What a call in the core takes along.
#[derive(Debug)]
pub(crate) struct Carried {
    routed: Routed,
    body: Bytes,
    arrived: Instant,
    /// Until when the authorizer's word holds; none: for good.
    verdict: Option<Deadline>,
    span: Span,
    /// Counts it as in flight.
    _in_flight: TaskTrackerToken,
    /// None: it ends at once.
    _place: Option<Place<Party>>,
}

impl Carried {
    /// Nobody waits for its outcome any more.
    pub(crate) fn give_up(self) {
        self.span.end_as(HopEnd::GivenUp);
    }
}

/// Boxed: a call is handed on many times on its way.
type Call = Underway<Box<Carried>>;

impl Router {
    /// Begins with a call; one too many is refused.
    pub(crate) fn take(&self, request: &Request) {
        let (arrived, now) = (request.arrived, Instant::now());
        let Ok((mut routed, body)) = wire::decode::<Routed>(&request.message) else {
            // Without a caller that could be answered.
            tracing::warn!("a message was no call");
            return self.0.meters.unreadable.increment(1);
        };
        if !self.0.bus.subjects().is_inbox(&routed.reply_to) {
            tracing::warn!(call = %routed.call.call, "a call's answer would go to no inbox");
            return self.0.meters.unreadable.increment(1);
        }
        // Without an authorizer's word of whose it is, its caller counts alone.
        let party = routed.party.unwrap_or_else(|| Party::of(TenantId(routed.call.caller.0), None));
        let (place, full) = match self.0.limits.calls.take(party) {
            Ok(place) => (Some(place), None),
            Err(NoPlace::Part) => (None, Some(Limit::CustomerCalls)),
            Err(NoPlace::Any) => (None, Some(Limit::RouterInFlight)),
        };
        let longest = Budget::from_ms(self.0.limits.max_timeout_ms.load(Ordering::Relaxed));
        let starting = |budget: Budget| budget.min(longest).starting(arrived);
        let deadline = self.0.bus.ends(routed.call.until.as_ref(), starting(routed.call.budget_ms));
        let deadlines = (deadline, starting(routed.call.connect_budget_ms));
        if let Some(underway) = self.0.bus.underway(routed.call.until.as_ref(), arrived) {
            self.0.meters.way_seconds.record(underway);
        }
        let verdict = routed.verdict_ms.map(starting);
        let mut span = self.0.tracer.follow("route", Hop::Taken, &mut routed.call.traceparent);
        let rpc::Call { call: id, caller: from, target, budget_ms, protocol, .. } = routed.call;
        let (station, to, party_told) = (Station::Router, Some(target), Some(party));
        let of = HopOf { station, call: id, from, to, party: party_told, budget_ms, protocol };
        self.0.tracer.record(&mut span, of, HopEnd::CutOff, now);
        if routed.call.app.as_ref().is_some_and(AppCaller::is_over_nats) {
            span.says(Says::End);
        }
        let in_flight = self.0.in_flight.token();
        let (_in_flight, _place) = (in_flight, place);
        let carried = Box::new(Carried { routed, body, arrived, verdict, span, _in_flight, _place });
        let call = Underway::new(id, target, party, deadlines, carried);
        if let Some(limit) = full {
            self.0.meters.limit_hit(limit);
            return self.end(call, &Outcome::Busy(limit), &Bytes::new());
        }
        self.tell_at(now, |core, now, actions| core.call(call, now, actions));
    }

    /// Takes a waiting call from a router that stops.
    pub(crate) fn take_handover(&self, request: &Request) {
        self.take(request);
        if let Some(reply_to) = request.reply_to.clone() {
            self.say_soon(reply_to, &());
        }
    }

    /// How many calls are in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.0.in_flight.len()
    }

    /// Waits for the calls in flight, after those that wait for their target have been handed to other routers.
    pub(crate) async fn finish(&self) {
        let mut waiting = Vec::new();
        self.tell(|core, _, _| waiting = core.hand_over());
        for call in waiting {
            let router = self.clone();
            self.0.in_flight.spawn(async move { router.hand_over(call).await });
        }
        self.0.in_flight.close();
        self.0.in_flight.wait().await;
    }

    /// Ends the calls that still wait: nobody else takes them.
    pub(crate) fn cut_off(&self) {
        let mut waiting = Vec::new();
        self.tell(|core, _, _| waiting = core.hand_over());
        waiting.into_iter().for_each(|call| self.end(call, &Outcome::Unavailable, &Bytes::new()));
    }

    async fn hand_over(&self, mut call: Call) {
        let now = Instant::now();
        let head = &mut call.payload.routed.call;
        head.budget_ms = call.deadline.remaining(now);
        head.connect_budget_ms = call.connect_deadline.remaining(now);
        // How long it was on its way has been counted.
        head.until = head.until.map(|until| Until { asked_us: None, ..until });
        // It has waited: the router that takes it over has it judged again.
        call.payload.routed.verdict_ms = call.payload.verdict.map(|_| Budget::from_ms(0));
        let message = wire::encode(&call.payload.routed, &call.payload.body);
        match self.0.bus.ask(self.0.bus.subjects().handover(), message, HANDOVER_WAIT).await {
            // Nobody has received it: it goes on to wait here, for as long as this router does.
            Err(AskError::NoResponders | AskError::Down | AskError::Full | AskError::Unsendable) => {
                self.tell(|core, now, actions| core.call(call, now, actions));
            }
            // It may have been received, and a call happens at most once.
            Ok(_) | Err(AskError::Expired | AskError::Gone) => {
                self.0.meters.handed_over.increment(1);
                call.payload.span.end_as(HopEnd::HandedOver);
            }
        }
    }

    pub(crate) fn look_up(&self, call: Call) {
        let router = self.clone();
        tokio::spawn(async move {
            let stored = router.stored(call.target).await.map(|stored| stored.and_then(found));
            router.tell(|core, now, actions| core.looked_up(call, stored, now, actions));
        });
    }

    /// Asks the node that holds the claim, for what is left of the call's time. A call that has waited is judged first.
    pub(crate) fn deliver(&self, mut call: Call, found: Found, started: Instant) {
        if call.payload.verdict.is_some_and(|verdict| call.has_waited || verdict.has_passed(started)) {
            return self.judge_again(call, found);
        }
        call.payload.span.handed_to(found.claim.node);
        let head = &call.payload.routed.call;
        let budget_ms = call.deadline.remaining(started);
        let delivery = Delivery {
            call: head.call,
            session: found.claim.session,
            target: head.target,
            caller: Some(head.caller),
            caller_name: head.caller_name.clone(),
            budget_ms,
            until: head.until,
            oneway: head.oneway,
            verdict_ms: call.payload.verdict.map(|verdict| verdict.remaining(started)),
            traceparent: head.traceparent.clone(),
            method: head.app.as_ref().map(|app| app.method.clone()),
            late: head.app.as_ref().and_then(|app| app.late),
        };
        let message = wire::encode(&delivery, &call.payload.body);
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

    fn delivered(&self, call: Call, found: Found, asked: Result<Bytes, AskError>) {
        let ended = |outcome| Ok((outcome, Bytes::new()));
        let ended = match asked {
            Ok(reply) => match wire::decode::<DeliveryReply>(&reply) {
                Ok((DeliveryReply::Ended(outcome), answer)) => Ok((outcome, answer)),
                Ok((DeliveryReply::NotHere, _)) => Err(Refutation::NoSession),
                Ok((DeliveryReply::Outdated, _)) => return self.judge_again(call, found),
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
                self.tell(|core, now, actions| core.refuted(call, found, by, now, actions));
            }
        }
    }

    /// Asks an authorizer whether a call may still be delivered: the world has moved on while it waited.
    fn judge_again(&self, call: Call, found: Found) {
        let now = Instant::now();
        let head = &call.payload.routed.call;
        let request = JudgeRequest {
            call: head.call,
            caller: head.caller,
            target: head.target,
            budget_ms: call.deadline.remaining(now),
            size_bytes: u32::try_from(call.payload.body.len()).unwrap_or(u32::MAX),
            protocol: head.protocol,
            oneway: head.oneway,
            app: head.app.clone(),
        };
        let (subject, message) = (self.0.bus.subjects().judge().into(), wire::encode(&request, b""));
        let wait = request.budget_ms.as_duration().min(JUDGE_WAIT);
        let question = Question { subject, message, wait, asked: None };
        let router = self.clone();
        self.0.bus.ask_then(question, move |asked| router.judged(call, found, asked));
    }

    fn judged(&self, mut call: Call, found: Found, asked: Result<Bytes, AskError>) {
        let reply = asked.map_err(|error| error.to_string());
        let reply =
            reply.and_then(|reply| wire::decode::<JudgeReply>(&reply).map_err(|error| error.to_string()));
        let outcome = match reply {
            Ok((JudgeReply::Allowed(holds), _)) => {
                self.0.meters.still_allowed.increment(1);
                call.has_waited = false;
                call.payload.verdict = Some(holds.starting(Instant::now()));
                return self.tell(|core, now, actions| core.allowed(call, found, now, actions));
            }
            Ok((JudgeReply::Refused(outcome), _)) => {
                self.0.meters.now_refused.increment(1);
                outcome
            }
            Err(error) => {
                tracing::warn!(call = %call.id, error, "no authorizer judges a call that waited");
                self.0.meters.unjudged.increment(1);
                Outcome::Unavailable
            }
        };
        self.end(call, &outcome, &Bytes::new());
    }

    /// Answers the caller. What fits no message is told as such.
    pub(crate) fn end(&self, call: Call, outcome: &Outcome, answer: &Bytes) {
        let Carried { routed, arrived, span, _in_flight: in_flight, .. } = *call.payload;
        let head = &routed.call;
        let is_over_nats = head.app.as_ref().is_some_and(AppCaller::is_over_nats);
        let message_of = |outcome: &Outcome, answer: &Bytes| match is_over_nats {
            true => answer.clone(),
            false => wire::encode(outcome, answer),
        };
        let (mut outcome, mut message) = (outcome, message_of(outcome, answer));
        let headers_bytes = if is_over_nats { MAX_APP_HEADER_BYTES } else { 0 };
        if message.len() + headers_bytes > self.0.bus.max_payload_bytes() {
            tracing::debug!(call = %call.id, bytes = message.len(), "the answer fits no message");
            outcome = &Outcome::AnswerTooLarge;
            message = message_of(outcome, &Bytes::new());
        }
        span.end(outcome);
        self.0.meters.ended(outcome);
        self.0.meters.call_seconds.record(arrived.elapsed());
        // Nearly always the connection takes it at once.
        let told = is_over_nats.then_some(outcome);
        if self.answer(&routed, told, message.clone()).now_or_never().is_none() {
            let (router, told) = (self.clone(), told.cloned());
            tokio::spawn(async move {
                router.answer(&routed, told.as_ref(), message).await;
                drop(in_flight);
            });
        }
    }

    /// `told`: the outcome, where it stands in headers.
    async fn answer(&self, routed: &Routed, told: Option<&Outcome>, message: Bytes) {
        let (inbox, call) = (routed.reply_to.as_str(), routed.call.call);
        let sent = match told {
            Some(outcome) => self.0.bus.tell_app(inbox, Some(call), (outcome, outcome.seen()), message).await,
            None => self.0.bus.tell(inbox, message).await,
        };
        if let Err(error) = sent {
            tracing::warn!(%error, %call, "the outcome cannot be sent");
        }
    }
}
