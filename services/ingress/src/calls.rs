//! How is a device's request performed? The node asks the bus, and what comes back is an outcome and its body.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boot::clock::unix_ms;
use boot::traces::{Hop, Span, Tracer};
use boot::{InForce, Settings};
use bus::{AskError, Bus, Question, Subject};
use bytes::Bytes;
use metrics::{Histogram, histogram};
use rpc::{
    AuthenticateReply, AuthenticateRequest, Call, CallId, CancelRequest, CredentialHash, HopEnd, HopOf,
    Identity, Limit, ListRequest, Method, NodeId, Outcome, Protocol, Station, wire,
};
use tokio::sync::oneshot;

use crate::device::limits::DeviceLimits;
use crate::device::sessions::Visitor;
use crate::device::shares::{NodeShares, NotHis};
use crate::device_api::{self, Request};
use crate::metrics::{LimitsHit, OFFLINE_SECONDS};

/// How much longer than the budget a node waits for an outcome. The router is the one to say `TimedOut`, at the
/// end of the budget; only when it says nothing at all does the node.
const OUTCOME_GRACE: Duration = Duration::from_millis(500);

/// How long `getDevices` may take.
const LIST_WAIT: Duration = Duration::from_secs(5);

/// How long one authorizer may take to say who a device is, before another is asked.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How a request ended.
#[derive(Debug)]
pub struct Ended {
    /// The outcome.
    pub outcome: Outcome,
    /// The body of an answer.
    pub body: Bytes,
    /// The call's id, where it became one.
    pub call: Option<CallId>,
    /// When to read on from the connection that asked, if not now.
    pub paced_until: Option<Instant>,
}

impl Ended {
    /// Without having become a call.
    pub fn here(outcome: Outcome, body: Bytes) -> Self {
        Ended { outcome, body, call: None, paced_until: None }
    }
}

/// A question that a handler waits for: what [`Calls::give_up`] takes.
#[derive(Debug)]
pub struct Asked {
    asked: bus::Asked,
    /// What tells routers that a call which waits for its target need not any more.
    cancel: Option<CancelRequest>,
}

/// Asks the other services on behalf of this node's devices.
pub struct Calls {
    bus: Bus,
    node: NodeId,
    last_serial: AtomicU64,
    call: Subject,
    list: Subject,
    authenticate: Subject,
    in_force: InForce,
    offline_seconds: Histogram,
    limits_hit: LimitsHit,
    tracer: Tracer,
    /// What each customer may have of the node.
    pub(crate) shares: Arc<NodeShares>,
}

impl Calls {
    /// For the devices of `node`.
    pub fn new(bus: Bus, node: NodeId, in_force: InForce, tracer: Tracer, shares: NodeShares) -> Self {
        let (call, list, authenticate) = {
            let subjects = bus.subjects();
            (subjects.call(), subjects.list(), subjects.authenticate())
        };
        Calls {
            bus,
            node,
            last_serial: AtomicU64::new(0),
            call: call.into(),
            list: list.into(),
            authenticate: authenticate.into(),
            in_force,
            offline_seconds: histogram!(OFFLINE_SECONDS),
            limits_hit: LimitsHit::register(),
            tracer,
            shares: Arc::new(shares),
        }
    }

    /// Performs a request of `caller`, and hands `then` how it ended, at once or later.
    /// A question that is asked for it is returned, to be given up when nobody cares any more.
    pub fn begin(
        &self,
        caller: &Visitor,
        request: Request,
        mut traceparent: Option<String>,
        then: impl FnOnce(Ended) + Send + 'static,
    ) -> Option<Asked> {
        let (by, caller, now) = (caller, caller.device, Instant::now());
        let waits = match &request {
            Request::GetTime | Request::GetSessionLimits => None,
            Request::GetDevices { .. } => Some(false),
            Request::SendMsg { connect_timeout, .. } => Some(connect_timeout.as_ms() > 0),
        };
        let places = match waits.map(|waits| self.shares.call(by.party, waits, now)).transpose() {
            Ok(places) => places,
            Err(NotHis { limit, paced_until }) => {
                self.limits_hit.count(limit);
                then(Ended { paced_until, ..Ended::here(Outcome::Busy(limit), Bytes::new()) });
                return None;
            }
        };
        let (mut prompt, mut cancel) = (None, None);
        let (subject, message, wait, span, call) = match request {
            Request::GetTime => {
                then(Ended::here(Outcome::Answered, device_api::get_time(unix_ms())));
                return None;
            }
            Request::GetSessionLimits => {
                then(Ended::here(Outcome::Answered, announced_limits(&self.in_force.now(), by.protocol)));
                return None;
            }
            Request::GetDevices { limit, after, online } => {
                let span = self.trace(Method::GetDevices, by, &mut traceparent);
                let (node, visit, ticket, protocol) =
                    (self.node, by.id, Some(by.ticket()), Some(by.protocol));
                let head =
                    ListRequest { caller, node, visit, ticket, protocol, limit, after, online, traceparent };
                (self.list.clone(), wire::encode(&head, b""), LIST_WAIT, span, None)
            }
            Request::SendMsg { target, timeout, connect_timeout, oneway, body } => {
                let call =
                    CallId { node: self.node, serial: self.last_serial.fetch_add(1, Ordering::Relaxed) + 1 };
                let mut span = self.trace(Method::SendMsg, by, &mut traceparent);
                span.note("switchboard.target", target);
                let hop = HopOf {
                    station: Station::Caller,
                    call,
                    from: caller,
                    to: Some(target),
                    party: Some(by.party),
                    budget_ms: timeout,
                    protocol: Some(by.protocol),
                };
                self.tracer.record(&mut span, hop, HopEnd::GivenUp, now);
                span.asks(&body);
                let (budget_ms, connect_budget_ms) = (timeout, connect_timeout);
                prompt = (connect_timeout.as_ms() == 0).then(|| (now, self.offline_seconds.clone()));
                let caller_name = by.name.to_string();
                let until = self.bus.until(now + timeout.as_duration(), now);
                let head = Call {
                    call,
                    caller,
                    caller_name,
                    visit: by.id,
                    ticket: Some(by.ticket()),
                    target,
                    budget_ms,
                    until,
                    connect_budget_ms,
                    protocol: Some(by.protocol),
                    oneway,
                    traceparent,
                    app: None,
                };
                let wait = timeout.as_duration() + OUTCOME_GRACE;
                cancel = (connect_timeout.as_ms() > 0).then_some(CancelRequest { call, target });
                (self.call.clone(), wire::encode(&head, &body), wait, span, Some((call, target)))
            }
        };
        let question = Question { subject, message, wait, asked: None };
        let mut span = span;
        let asked = self.bus.ask_then(question, move |asked| {
            if let (Some((call, target)), Err(error)) = (call, &asked) {
                tracing::warn!(%call, %caller, %target, %error, "the call has no outcome");
            }
            drop(places);
            let (outcome, body) = outcome_of(asked);
            span.is_answered(&body);
            span.end(&outcome);
            if let (Outcome::Offline, Some((started, seconds))) = (&outcome, prompt) {
                seconds.record(started.elapsed());
            }
            then(Ended { outcome, body, call: call.map(|(call, _)| call), paced_until: None });
        });
        Some(Asked { asked, cancel })
    }

    /// Nobody cares any more how a request ends.
    pub fn give_up(&self, asked: Asked) {
        let Asked { asked, cancel } = asked;
        // Only a call that waits for its target is worth a word: it would wait for nobody.
        if self.bus.give_up(asked)
            && let Some(cancel) = cancel
        {
            let (bus, message) = (self.bus.clone(), wire::encode(&cancel, b""));
            // Nearly always the connection takes it at once.
            let told = async move { bus.tell(bus.subjects().cancel(), message).await };
            tokio::spawn(told);
        }
    }

    /// Performs a request of `caller` and says how it ended. Nothing is left behind when the future is dropped.
    pub async fn perform(&self, caller: &Visitor, request: Request, traceparent: Option<String>) -> Ended {
        let (ended_tx, ended) = oneshot::channel();
        let asked = self.begin(caller, request, traceparent, move |ended| {
            // Without a receiver the request was given up.
            let _ = ended_tx.send(ended);
        });
        let mut given_up = GiveUp { calls: self, asked };
        let ended = ended.await;
        given_up.asked = None;
        let ended = ended.unwrap_or_else(|_| Ended::here(Outcome::Unavailable, Bytes::new()));
        // What speaks one request at a time is told later, and asks no sooner.
        if let Some(paced_until) = ended.paced_until {
            tokio::time::sleep_until(paced_until.into()).await;
        }
        ended
    }

    /// The request as the first hop of a trace, if it is traced.
    fn trace(&self, method: Method, caller: &Visitor, traceparent: &mut Option<String>) -> Span {
        let mut span = self.tracer.begin(method.as_str(), Hop::Asked, traceparent);
        span.note("switchboard.protocol", caller.protocol.as_str());
        span.note("switchboard.caller", caller.device);
        span.unless_told(HopEnd::GivenUp);
        span
    }

    /// Who holds this credential, as this visit? None when nobody does.
    ///
    /// # Errors
    /// When no authorizer answered in `wait`.
    pub async fn authenticate(
        &self,
        credential: CredentialHash,
        visit: u64,
        wait: Duration,
    ) -> Result<Option<Identity>, AskError> {
        let request = AuthenticateRequest { credential, node: self.node, visit };
        let message = wire::encode(&request, b"");
        let give_up = Instant::now() + wait;
        let reply = loop {
            let left = give_up.saturating_duration_since(Instant::now());
            let asked = self.bus.ask(self.authenticate.clone(), message.clone(), left.min(ATTEMPT)).await;
            match asked {
                // NATS may have handed it to an authorizer that is cut off: to ask twice is to ask once.
                Err(AskError::Expired) if left > ATTEMPT => {}
                asked => break asked?,
            }
        };
        match wire::decode::<AuthenticateReply>(&reply) {
            Ok((AuthenticateReply::Identity(identity), _)) => Ok(Some(identity)),
            Ok((AuthenticateReply::Refused, _)) => Ok(None),
            Ok((AuthenticateReply::Unavailable, _)) => Err(AskError::Expired),
            Err(error) => {
                tracing::error!(%error, "an identity could not be read");
                Err(AskError::Down)
            }
        }
    }
}

/// What a device is told of its limits: its own protocol's.
fn announced_limits(settings: &Settings, protocol: Protocol) -> Bytes {
    let device = DeviceLimits::from(settings);
    let max_bytes = match protocol {
        Protocol::Mqtt => settings.mqtt.max_packet_bytes as usize,
        Protocol::Http => settings.http.max_body_bytes,
        Protocol::Coap => settings.coap.max_body_bytes,
    };
    let (calls, uplinks) = (device.call_rate.per_second, device.uplink_rate.per_second);
    device_api::session_limits(max_bytes, device.max_calls_per_caller, calls, uplinks)
}

/// Gives a question up when it is dropped with one.
struct GiveUp<'a> {
    calls: &'a Calls,
    asked: Option<Asked>,
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.calls.give_up(asked);
        }
    }
}

fn outcome_of(asked: Result<Bytes, AskError>) -> (Outcome, Bytes) {
    let outcome = match asked {
        Ok(message) => match wire::decode::<Outcome>(&message) {
            Ok(ended) => return ended,
            Err(error) => {
                tracing::error!(%error, "an outcome could not be read");
                Outcome::Unavailable
            }
        },
        Err(AskError::Full) => Outcome::Busy(Limit::PendingAsks),
        Err(
            AskError::NoResponders
            | AskError::Expired
            | AskError::Down
            | AskError::Gone
            | AskError::Unsendable,
        ) => Outcome::Unavailable,
    };
    (outcome, Bytes::new())
}
