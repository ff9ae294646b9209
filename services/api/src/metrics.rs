//! What does the API tell Prometheus? Calls by outcome, how long they took, who was not let in, and limits.

use std::time::Duration;

use boot::metrics::Kind::{Counter, Gauge, Histogram};
use metrics::{counter, gauge, histogram};
use rpc::{Limit, Outcome, OutcomeName, closed_list};

const CALLS: &str = "switchboard_api_calls_total";
const CALL_SECONDS: &str = "switchboard_api_call_seconds";
const REFUSED: &str = "switchboard_api_keys_refused_total";
const LIMITS: &str = "switchboard_api_limits_hit_total";
const ONCE: &str = "switchboard_api_idempotency_total";
const LATE: &str = "switchboard_api_late_answers_total";
const CONNECTIONS: &str = "switchboard_api_connections";

/// Gives every metric of the API its help text.
pub fn describe() {
    boot::metrics::describe(&[
        (Counter, CALLS, "Calls of applications, by outcome."),
        (Histogram, CALL_SECONDS, "Time from an application's call to its outcome."),
        (Counter, REFUSED, "Requests that were not let in: no key, none that lives, or from elsewhere."),
        (Counter, LIMITS, "Requests of applications refused because a limit was reached, by limit."),
        (
            Counter,
            ONCE,
            "Calls under an idempotency key, by what was done: made, replayed, conflict, in_progress, dead (its copy \
             of the API was lost), unavailable (no store).",
        ),
        (Counter, LATE, "Answers of devices after their calls' time, kept for the application."),
        (Gauge, CONNECTIONS, "Connections of applications."),
        (Gauge, LISTENERS, "Applications that listen to events."),
        (Counter, EVENTS, "Events that listeners were told."),
        (
            Counter,
            RESYNCS,
            "Listeners that had to be told all anew, since something was missed or their key changed.",
        ),
        (Counter, OVERRUNS, "Listeners that were cut off since they read too slowly."),
    ]);
}

const LISTENERS: &str = "switchboard_api_listeners";
const EVENTS: &str = "switchboard_api_events_total";
const RESYNCS: &str = "switchboard_api_resyncs_total";
const OVERRUNS: &str = "switchboard_api_overruns_total";

/// What is counted of events.
pub(crate) struct EventMeters {
    pub(crate) listeners: metrics::Gauge,
    pub(crate) told: metrics::Counter,
    pub(crate) resyncs: metrics::Counter,
    pub(crate) overruns: metrics::Counter,
}

impl EventMeters {
    pub(crate) fn new() -> Self {
        EventMeters {
            listeners: gauge!(LISTENERS),
            told: counter!(EVENTS),
            resyncs: counter!(RESYNCS),
            overruns: counter!(OVERRUNS),
        }
    }
}

closed_list! {
    /// What is done with a call under an idempotency key.
    pub enum OnceResult {
        /// It is the first.
        Made = "made",
        /// It is told how the first ended.
        Replayed = "replayed",
        /// The key was used for something else.
        Conflict = "conflict",
        /// The first has not ended.
        InProgress = "in_progress",
        /// Who made the first is gone.
        Dead = "dead",
        /// The key cannot be recorded.
        Unavailable = "unavailable",
    }
}

/// The handles.
#[derive(Clone)]
pub(crate) struct Meters {
    calls: [metrics::Counter; OutcomeName::ALL.len()],
    call_seconds: metrics::Histogram,
    pub(crate) refused: metrics::Counter,
    limits: [(Limit, metrics::Counter); 6],
    pub(crate) late: metrics::Counter,
    once: [metrics::Counter; OnceResult::ALL.len()],
    pub(crate) connections: metrics::Gauge,
}

impl Meters {
    pub(crate) fn new() -> Self {
        Meters {
            calls: OutcomeName::ALL.map(|it| counter!(CALLS, "outcome" => it.as_str())),
            call_seconds: histogram!(CALL_SECONDS),
            refused: counter!(REFUSED),
            limits: [
                Limit::ApiConnections,
                Limit::ApiListeners,
                Limit::AppInFlight,
                Limit::AppCallRate,
                Limit::AppGroups,
                Limit::PendingAsks,
            ]
            .map(|it| (it, counter!(LIMITS, "limit" => it.as_str()))),
            late: counter!(LATE),
            once: OnceResult::ALL.map(|it| counter!(ONCE, "result" => it.as_str())),
            connections: gauge!(CONNECTIONS),
        }
    }

    pub(crate) fn ended(&self, outcome: &Outcome, took: Duration) {
        if let Some(counter) = self.calls.get(outcome.name() as usize) {
            counter.increment(1);
        }
        self.call_seconds.record(took);
    }

    pub(crate) fn once(&self, result: OnceResult) {
        if let Some(counter) = self.once.get(result as usize) {
            counter.increment(1);
        }
    }

    pub(crate) fn limit_hit(&self, limit: Limit) {
        if let Some((_, counter)) = self.limits.iter().find(|(it, _)| *it == limit) {
            counter.increment(1);
        }
    }
}
