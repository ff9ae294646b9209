//! How does a call look from hop to hop? One OpenTelemetry span for each, recorded when the hop is over.
//!
//! A hop's [`Span`] takes its parent from the head's `traceparent`, puts itself in its place, and is recorded when it
//! is dropped: calls wait in tables and mailboxes, and a span that waits there with its call is recorded however that
//! ends. A call that is not traced costs a comparison. Of every call, traced or not, the span also is the hop's record
//! in the [`Journal`].

mod export;
mod otlp;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use metrics::{Counter, counter};
use rpc::{DeliveryReply, HopEnd, HopOf, NodeId, Outcome, Protocol, Sampling, Says, TraceContext};
use tokio::sync::mpsc;

pub use export::Exporter;

use crate::clock::since_1970;
use crate::config::{self, Settings};
use crate::journal::{Journal, Underway};
use crate::metrics::{Kind, describe};
use otlp::{AnyValue, KeyValue, Resource, SpanKind, Status, StatusCode, Value};

/// Of a span (W3C Trace Context §3.2.2.5; OTLP's `SpanFlags`).
const SAMPLED: u32 = 1;
/// The parent is of another process, or not: both bits of OTLP's `SpanFlags`.
const PARENT_IS_REMOTE: u32 = 0x300;

/// What a process records of calls. Clones share it; the default records nothing.
#[derive(Clone, Debug, Default)]
pub struct Traces {
    shared: Option<Arc<Shared>>,
    journal_hops: usize,
}

struct Shared {
    queue: mpsc::Sender<Finished>,
    per_million: u32,
    pace: Option<Pace>,
    /// Numbers for the decision over calls that nobody asked to trace.
    draws: AtomicU64,
    queue_full: Counter,
    over_limit: Counter,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("per_million", &self.per_million).finish_non_exhaustive()
    }
}

/// A span that is over, and whose it is.
struct Finished {
    service: Arc<Resource>,
    span: otlp::Span,
}

/// Starts tracing as the settings say: what hops record through the first, the second sends. Needs a tokio runtime, and
/// metrics that are [installed](crate::metrics::install).
pub fn start(settings: &Settings) -> (Traces, Exporter) {
    let journal_hops = settings.journal.max_hops;
    let (shared, exporter) = start_sending(&settings.traces).unzip();
    (Traces { shared, journal_hops }, exporter.unwrap_or_default())
}

fn start_sending(settings: &config::Traces) -> Option<(Arc<Shared>, Exporter)> {
    let endpoint = settings.endpoint.as_ref()?;
    describe(&[
        (Kind::Counter, "switchboard_trace_spans_total", "Spans recorded here, by what became of them."),
        (
            Kind::Counter,
            "switchboard_trace_calls_over_limit_total",
            "Calls not traced because traces.max_calls_per_second was reached.",
        ),
    ]);
    let (queue, finished) = mpsc::channel(settings.max_queued_spans);
    let shared = Shared {
        queue,
        per_million: settings.calls_sampled_per_million,
        pace: (settings.max_calls_per_second > 0).then(|| Pace::new(settings.max_calls_per_second)),
        draws: AtomicU64::new(random().unwrap_or_default()),
        queue_full: counter!("switchboard_trace_spans_total", "result" => "queue_full"),
        over_limit: counter!("switchboard_trace_calls_over_limit_total"),
    };
    tracing::info!(endpoint, "traces are sent");
    Some((Arc::new(shared), Exporter::start(endpoint, settings, finished)))
}

impl Traces {
    /// The hops of one service, of which `instance` is this copy.
    pub fn tracer(&self, service: &str, instance: impl fmt::Display) -> Tracer {
        let journal = Journal::new(self.journal_hops);
        let Some(shared) = &self.shared else { return Tracer { hops: None, journal } };
        let service = Resource {
            attributes: vec![
                text("service.name", format!("switchboard-{service}")),
                text("service.instance.id", instance.to_string()),
                text("service.version", crate::args::version()),
            ],
        };
        let hops = Hops { shared: Arc::clone(shared), service: Arc::new(service) };
        Tracer { hops: Some(Arc::new(hops)), journal }
    }
}

/// Records the hops of one service. Clones share everything; the default records nothing.
#[derive(Clone, Debug, Default)]
pub struct Tracer {
    hops: Option<Arc<Hops>>,
    journal: Journal,
}

#[derive(Debug)]
struct Hops {
    shared: Arc<Shared>,
    service: Arc<Resource>,
}

/// What a hop is to the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hop {
    /// It takes a request of a device.
    Asked,
    /// It takes a message of another service.
    Taken,
    /// It asks a device and waits for the answer.
    Asks,
}

impl Tracer {
    /// What it has recorded of every call.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The span's hop is one of this call and began at `now`: it is recorded in the journal, ended `unless_told`
    /// otherwise.
    pub fn record(&self, span: &mut Span, of: HopOf, unless_told: HopEnd, now: Instant) {
        span.note("switchboard.call", of.call);
        span.unless_told(unless_told);
        span.hop = Some(self.journal.begin(of, unless_told, now));
    }

    /// A call comes in from outside: decides whether it is traced. Where it is, `traceparent` is the new span's from
    /// here on; where the device asks for more than `traces.max_calls_per_second`, it says no longer that it is.
    pub fn begin(&self, name: &'static str, hop: Hop, traceparent: &mut Option<String>) -> Span {
        let Some(hops) = &self.hops else { return Span::default() };
        let Shared { per_million, draws, pace, over_limit, .. } = &*hops.shared;
        let draw = || mixed(draws.fetch_add(GOLDEN_GAMMA, Ordering::Relaxed));
        let decided = Sampling::decide(traceparent.as_deref(), *per_million, draw);
        if decided != Sampling::Leave && pace.as_ref().is_some_and(|pace| !pace.admits(Instant::now())) {
            over_limit.increment(1);
            if let Sampling::Follow(parent) = decided {
                *traceparent = Some(TraceContext { sampled: false, ..parent }.to_string());
            }
            return Span::default();
        }
        match decided {
            Sampling::Follow(parent) => hops.open(name, hop, Some(parent), traceparent),
            Sampling::Begin => hops.open(name, hop, None, traceparent),
            Sampling::Leave => Span::default(),
        }
    }

    /// A call comes from the hop before, which has decided.
    pub fn follow(&self, name: &'static str, hop: Hop, traceparent: &mut Option<String>) -> Span {
        let Some(hops) = &self.hops else { return Span::default() };
        match traceparent.as_deref().map(str::parse::<TraceContext>) {
            Some(Ok(parent)) if parent.sampled => hops.open(name, hop, Some(parent), traceparent),
            Some(_) | None => Span::default(),
        }
    }
}

impl Hops {
    fn open(
        self: &Arc<Self>,
        name: &'static str,
        hop: Hop,
        parent: Option<TraceContext>,
        traceparent: &mut Option<String>,
    ) -> Span {
        let trace = parent.map_or_else(random_trace, |parent| Some(parent.trace));
        // Without randomness there is no id, hence no span.
        let (Some(trace), Some(span)) = (trace, random().filter(|id| *id != 0)) else {
            return Span::default();
        };
        *traceparent = Some(TraceContext { trace, span, sampled: true }.to_string());
        let kind = match hop {
            Hop::Asked => SpanKind::Server,
            Hop::Taken => SpanKind::Consumer,
            Hop::Asks => SpanKind::Client,
        };
        let span = otlp::Span {
            trace_id: trace.to_be_bytes().into(),
            span_id: span.to_be_bytes().into(),
            parent_span_id: parent.map(|parent| parent.span.to_be_bytes().into()).unwrap_or_default(),
            flags: SAMPLED | parent.map_or(0, |_| PARENT_IS_REMOTE),
            name: name.to_owned(),
            kind: kind.into(),
            start_time_unix_nano: unix_nanos(),
            ..otlp::Span::default()
        };
        let open = Open { hops: Arc::clone(self), started: Instant::now(), otherwise: "", span };
        Span { traced: Some(Box::new(open)), hop: None }
    }
}

/// A hop that is under way. Recorded when dropped: in the journal if it is one of a call, and sent if it is traced.
#[derive(Debug, Default)]
pub struct Span {
    traced: Option<Box<Open>>,
    hop: Option<Underway>,
}

struct Open {
    hops: Arc<Hops>,
    started: Instant,
    /// The outcome, if none is told.
    otherwise: &'static str,
    span: otlp::Span,
}

impl Span {
    /// Notes something about the call, in place of what the key said before: ids and words of closed lists, never a
    /// token or a body.
    pub fn note(&mut self, key: &'static str, value: impl fmt::Display) {
        if let Some(open) = &mut self.traced {
            open.span.attributes.retain(|noted| noted.key != key);
            open.span.attributes.push(text(key, value.to_string()));
        }
    }

    /// How the hop ends when nobody says so: its call was given up, or ran out of time.
    pub fn unless_told(&mut self, end: HopEnd) {
        if let Some(open) = &mut self.traced {
            open.otherwise = end.as_str();
        }
    }

    /// The call goes on to this node.
    pub fn handed_to(&mut self, node: NodeId) {
        self.note("switchboard.node", node);
        if let Some(hop) = &mut self.hop {
            hop.handed_to(node);
        }
    }

    /// It was decided by this version of a tenant's policies.
    pub fn decided_by(&mut self, policy_version: u64) {
        if let Some(hop) = &mut self.hop {
            hop.decided_by(policy_version);
        }
    }

    /// What the call's target is sent, where it comes in.
    pub fn asks(&mut self, body: &Bytes) {
        if let Some(hop) = &mut self.hop {
            hop.asks(body);
        }
    }

    /// What its target answered, there.
    pub fn is_answered(&mut self, body: &Bytes) {
        if let Some(hop) = &mut self.hop {
            hop.is_answered(body);
        }
    }

    /// What its device speaks.
    pub fn spoken(&mut self, protocol: Protocol) {
        self.note("switchboard.protocol", protocol.as_str());
        if let Some(hop) = &mut self.hop {
            hop.spoken(protocol);
        }
    }

    /// What it says to who listens that its place on the way alone does not.
    pub fn says(&mut self, says: Says) {
        if let Some(hop) = &mut self.hop {
            hop.says(says);
        }
    }

    /// The hop is over, and the call with it, as far as this hop knows.
    pub fn end(mut self, outcome: &Outcome) {
        if let Some(hop) = &mut self.hop {
            hop.ended(outcome);
        }
        if let Some(open) = &mut self.traced {
            open.end(outcome.as_str(), is_failure(outcome));
        }
    }

    /// The hop is over: it handed the call on, or knows its end by another name than an outcome's.
    pub fn end_as(mut self, end: HopEnd) {
        if let Some(hop) = &mut self.hop {
            hop.ended_as(end);
        }
        if let Some(open) = &mut self.traced {
            open.end(end.as_str(), false);
        }
    }

    /// A delivery is over.
    pub fn end_delivery(self, reply: &DeliveryReply) {
        match reply {
            DeliveryReply::Ended(outcome) => self.end(outcome),
            DeliveryReply::NotHere => self.end_as(HopEnd::NotHere),
            DeliveryReply::Outdated => self.end_as(HopEnd::Outdated),
        }
    }
}

impl Open {
    fn end(&mut self, outcome: &'static str, failed: bool) {
        self.otherwise = "";
        self.span.attributes.push(text("switchboard.outcome", outcome));
        if failed {
            self.span.attributes.push(text("error.type", outcome));
            self.span.status = Some(Status { code: StatusCode::Error.into() });
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.otherwise.is_empty() {
            self.end(self.otherwise, self.otherwise == Outcome::TimedOut.as_str());
        }
        let took = u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        // By the clock that is never set: a span does not end before it begins.
        self.span.end_time_unix_nano = self.span.start_time_unix_nano.saturating_add(took);
        let Hops { shared, service } = &*self.hops;
        let finished = Finished { service: Arc::clone(service), span: std::mem::take(&mut self.span) };
        if shared.queue.try_send(finished).is_err() {
            shared.queue_full.increment(1);
        }
    }
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.span.name)
    }
}

/// Whether something of this system, or the target, went wrong; the others are answers.
fn is_failure(outcome: &Outcome) -> bool {
    match outcome {
        Outcome::TimedOut | Outcome::Lost | Outcome::AnswerInvalid | Outcome::Unavailable => true,
        Outcome::Answered
        | Outcome::Delivered
        | Outcome::Denied
        | Outcome::UnknownDevice
        | Outcome::Offline
        | Outcome::Busy(_)
        | Outcome::TooLargeForTarget
        | Outcome::AnswerTooLarge
        | Outcome::Malformed(_) => false,
    }
}

/// So many in each second, counted from the first.
struct Pace {
    per_second: u32,
    second: Mutex<(Instant, u32)>,
}

impl Pace {
    fn new(per_second: u32) -> Self {
        Pace { per_second, second: Mutex::new((Instant::now(), 0)) }
    }

    fn admits(&self, now: Instant) -> bool {
        let mut second = self.second.lock().unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(second.0).as_secs() >= 1 {
            *second = (now, 0);
        }
        let admits = second.1 < self.per_second;
        second.1 += u32::from(admits);
        admits
    }
}

/// SplitMix64: numbers `GOLDEN_GAMMA` apart, mixed, are as good as random for a decision. Ids are random.
const GOLDEN_GAMMA: u64 = 0x9E37_79B9_7F4A_7C15;

fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}

fn random() -> Option<u64> {
    getrandom::u64().ok()
}

fn random_trace() -> Option<u128> {
    let trace = (u128::from(random()?) << 64) | u128::from(random()?);
    (trace != 0).then_some(trace)
}

fn unix_nanos() -> u64 {
    u64::try_from(since_1970().as_nanos()).unwrap_or(u64::MAX)
}

fn text(key: &str, value: impl Into<String>) -> KeyValue {
    let value = AnyValue { value: Some(Value::String(value.into())) };
    KeyValue { key: key.to_owned(), value: Some(value) }
}
