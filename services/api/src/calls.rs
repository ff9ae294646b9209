//! How is an application's call made? The bus is asked, and what comes back is an outcome and the target's answer.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boot::traces::{Hop, Tracer};
use bus::{AskError, Bus, Subject};
use bytes::Bytes;
use rpc::{
    AppCall, CallId, CustomerId, DeviceId, HopEnd, HopOf, Limit, Outcome, Party, Seen, Station, Target, wire,
};

use crate::keys::Caller;
use crate::request::Wanted;

/// How much longer than the budget an outcome is waited for: the router is the one to say `TimedOut`.
const OUTCOME_GRACE: Duration = Duration::from_millis(500);

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    /// The target's answer.
    pub(crate) body: Bytes,
    /// None: it never became one.
    pub(crate) call: Option<CallId>,
    /// May the target have executed it?
    pub(crate) seen: Seen,
}

impl Ended {
    /// Without having become a call.
    pub(crate) fn here(outcome: Outcome) -> Self {
        Ended { outcome, body: Bytes::new(), call: None, seen: Seen::Never }
    }
}

/// Makes calls.
pub(crate) struct Calls {
    bus: Bus,
    subject: Subject,
    last_serial: AtomicU64,
    tracer: Tracer,
}

impl Calls {
    pub(crate) fn new(bus: Bus, tracer: Tracer) -> Self {
        let subject = bus.subjects().app_call().into();
        Calls { bus, subject, last_serial: AtomicU64::new(0), tracer }
    }

    /// Calls, and waits for the end. A client that goes does not end a call: its target may be about to act.
    pub(crate) async fn call(
        &self,
        caller: &Caller,
        target: Target,
        wanted: Wanted,
        mut traceparent: Option<String>,
    ) -> Ended {
        let serial = self.last_serial.fetch_add(1, Ordering::Relaxed) + 1;
        let call = CallId { node: self.bus.process(), serial };
        let mut span = self.tracer.begin("call", Hop::Asked, &mut traceparent);
        span.note("switchboard.app", caller.identity.app);
        let hop = HopOf {
            station: Station::Api,
            call,
            from: DeviceId(caller.identity.app.0),
            to: target.id(),
            party: Some(Party::of(caller.identity.tenant, Some(CustomerId(caller.identity.app.0)))),
            budget_ms: wanted.timeout,
            protocol: None,
        };
        self.tracer.record(&mut span, hop, HopEnd::GivenUp);
        span.asks(&wanted.params);
        let timeout = wanted.timeout.as_duration();
        let head = AppCall {
            call,
            credential: caller.credential.clone(),
            target,
            method: wanted.method,
            budget_ms: wanted.timeout,
            until: self.bus.until(Instant::now() + timeout),
            connect_budget_ms: wanted.connect_timeout,
            oneway: wanted.oneway,
            traceparent,
        };
        let message = wire::encode(&head, &wanted.params);
        let asked = self.bus.ask(self.subject.clone(), message, timeout + OUTCOME_GRACE).await;
        let (outcome, body, seen) = match asked {
            Ok(reply) => match wire::decode::<Outcome>(&reply) {
                Ok((outcome, body)) => {
                    let seen = outcome.seen();
                    (outcome, body, seen)
                }
                Err(error) => {
                    tracing::error!(%call, %error, "an outcome could not be read");
                    (Outcome::Unavailable, Bytes::new(), Seen::Maybe)
                }
            },
            Err(error) => {
                tracing::warn!(%call, %error, "the call has no outcome");
                let (outcome, seen) = lost(&error);
                (outcome, Bytes::new(), seen)
            }
        };
        span.is_answered(&body);
        span.end(&outcome);
        Ended { outcome, body, call: Some(call), seen }
    }
}

/// Without an answer: what is certain is that what was not sent, or what nobody took, was not seen.
fn lost(error: &AskError) -> (Outcome, Seen) {
    match error {
        AskError::Full => (Outcome::Busy(Limit::PendingAsks), Seen::Never),
        AskError::NoResponders | AskError::Unsendable => (Outcome::Unavailable, Seen::Never),
        AskError::Expired | AskError::Down | AskError::Gone => (Outcome::Unavailable, Seen::Maybe),
    }
}
