//! What does a router count? Handles are looked up once: the hot path only adds.

use std::time::{Duration, Instant};

use boot::metrics::Kind::{Counter, Gauge, Histogram};
use metrics::{counter, gauge, histogram};
use parking_lot::Mutex;
use rpc::{ClaimReply, Limit, Outcome, OutcomeName};

use crate::core::Removal;

/// Gives every metric of the router its help text.
pub fn describe() {
    boot::metrics::describe(&[
        (Counter, CALLS, "Calls routed, by outcome."),
        (Counter, LIMITS, "Calls refused because a limit was reached, by limit."),
        (Counter, UNREADABLE, "Messages that were no call, or no answer of a node."),
        (Counter, LOOKUPS, "Claims looked up in the store itself, by result."),
        (Counter, REFUTED, "Deliveries to a session that was not there any more."),
        (Counter, STALE, "Claims removed because their session or node is gone, by reason."),
        (Counter, CLAIM_REPLIES, "Claims that nodes asked for, by result."),
        (Counter, TAKEOVERS, "Sessions told that a newer one of their device has become callable."),
        (Counter, DIFFERING, "Renewed leases of nodes that hold other claims than are known here."),
        (Counter, HANDED_OVER, "Waiting calls handed to another router when this one stopped."),
        (
            Counter,
            JUDGED_AGAIN,
            "Calls that had waited and were judged again before their delivery, by result.",
        ),
        (Counter, SEEN, "Ends of sessions of which is kept how their device was last there, by result."),
        (Counter, CANCELLED, "Waiting calls whose caller went away."),
        (Gauge, IN_FLIGHT, "Calls in the router's hands."),
        (Gauge, WAITING, "Calls that wait for their target to connect, or for its node to reconnect."),
        (Gauge, CLAIMS, "Claims in the router's map: callable devices."),
        (Gauge, NODES, "Nodes that have a lease."),
        (Gauge, CLAIMS_AGE, "Seconds since the claim store was last heard; it speaks every second."),
        (
            Histogram,
            WAY,
            "Time from a call's beginning at its caller's node to its arrival here, by way of an authorizer.",
        ),
        (Histogram, DELIVER, "Time from a delivery to the target's node until its reply."),
        (Histogram, CALL, "Time a call spends in the router, its delivery included."),
    ]);
}

const CALLS: &str = "switchboard_router_calls_total";
const LIMITS: &str = "switchboard_router_limits_hit_total";
const UNREADABLE: &str = "switchboard_router_unreadable_total";
const LOOKUPS: &str = "switchboard_router_lookups_total";
const REFUTED: &str = "switchboard_router_refuted_deliveries_total";
const STALE: &str = "switchboard_router_stale_claims_removed_total";
const CLAIM_REPLIES: &str = "switchboard_router_claims_asked_total";
const TAKEOVERS: &str = "switchboard_router_takeovers_total";
const DIFFERING: &str = "switchboard_router_differing_leases_total";
const HANDED_OVER: &str = "switchboard_router_calls_handed_over_total";
const JUDGED_AGAIN: &str = "switchboard_router_calls_judged_again_total";
const CANCELLED: &str = "switchboard_router_calls_cancelled_total";
pub(crate) const SEEN: &str = "switchboard_router_last_seen_total";
const WAITING: &str = "switchboard_router_calls_waiting";
const IN_FLIGHT: &str = "switchboard_router_calls_in_flight";
const CLAIMS: &str = "switchboard_router_claims";
const NODES: &str = "switchboard_router_nodes";
const CLAIMS_AGE: &str = "switchboard_router_claims_age_seconds";
const WAY: &str = "switchboard_router_way_seconds";
const DELIVER: &str = "switchboard_router_deliver_seconds";
const CALL: &str = "switchboard_router_call_seconds";

/// The handles.
pub(crate) struct Meters {
    calls: [metrics::Counter; OutcomeName::ALL.len()],
    limits: [metrics::Counter; Limit::ALL.len()],
    pub(crate) unreadable: metrics::Counter,
    pub(crate) lookups_found: metrics::Counter,
    pub(crate) lookups_none: metrics::Counter,
    pub(crate) lookups_failed: metrics::Counter,
    pub(crate) refuted: metrics::Counter,
    pub(crate) takeovers: metrics::Counter,
    pub(crate) differing: metrics::Counter,
    pub(crate) handed_over: metrics::Counter,
    pub(crate) cancelled: metrics::Counter,
    pub(crate) still_allowed: metrics::Counter,
    pub(crate) now_refused: metrics::Counter,
    pub(crate) unjudged: metrics::Counter,
    removed_sessions: metrics::Counter,
    removed_nodes: metrics::Counter,
    held: metrics::Counter,
    taken_over: metrics::Counter,
    refused: metrics::Counter,
    unavailable: metrics::Counter,
    heard: Mutex<Instant>,
    pub(crate) way_seconds: metrics::Histogram,
    pub(crate) deliver_seconds: metrics::Histogram,
    pub(crate) call_seconds: metrics::Histogram,
}

impl Meters {
    pub(crate) fn new() -> Self {
        let lookups = |result| counter!(LOOKUPS, "result" => result);
        let claims = |result| counter!(CLAIM_REPLIES, "result" => result);
        let judged_again = |result| counter!(JUDGED_AGAIN, "result" => result);
        let removed = |reason| counter!(STALE, "reason" => reason);
        Meters {
            calls: OutcomeName::ALL.map(|it| counter!(CALLS, "outcome" => it.as_str())),
            limits: Limit::ALL.map(|it| counter!(LIMITS, "limit" => it.as_str())),
            unreadable: counter!(UNREADABLE),
            lookups_found: lookups("found"),
            lookups_none: lookups("none"),
            lookups_failed: lookups("failed"),
            refuted: counter!(REFUTED),
            takeovers: counter!(TAKEOVERS),
            differing: counter!(DIFFERING),
            handed_over: counter!(HANDED_OVER),
            cancelled: counter!(CANCELLED),
            still_allowed: judged_again("allowed"),
            now_refused: judged_again("refused"),
            unjudged: judged_again("unanswered"),
            removed_sessions: removed("session_gone"),
            removed_nodes: removed("node_gone"),
            held: claims("held"),
            taken_over: claims("taken_over"),
            refused: claims("refused"),
            unavailable: claims("unavailable"),
            heard: Mutex::new(Instant::now()),
            way_seconds: histogram!(WAY),
            deliver_seconds: histogram!(DELIVER),
            call_seconds: histogram!(CALL),
        }
    }

    /// Counts a call by how it ended.
    pub(crate) fn ended(&self, outcome: &Outcome) {
        if let Some(calls) = self.calls.get(outcome.name() as usize) {
            calls.increment(1);
        }
    }

    /// Counts a claim by how it was answered.
    pub(crate) fn claim(&self, reply: ClaimReply) {
        let counter = match reply {
            ClaimReply::Held { .. } => &self.held,
            ClaimReply::TakenOver => &self.taken_over,
            ClaimReply::Refused => &self.refused,
            ClaimReply::Unavailable => &self.unavailable,
        };
        counter.increment(1);
    }

    /// Counts a claim that was removed though nobody had released it.
    pub(crate) fn removed(&self, why: Removal) {
        match why {
            Removal::Released(_) => {}
            Removal::SessionGone => self.removed_sessions.increment(1),
            Removal::NodeGone => self.removed_nodes.increment(1),
        }
    }

    /// The store has been heard.
    pub(crate) fn heard(&self) {
        *self.heard.lock() = Instant::now();
    }

    /// How long ago the store was heard last. It speaks every second when nothing changes.
    pub(crate) fn silence(&self) -> Duration {
        self.heard.lock().elapsed()
    }

    /// Counts a limit that was reached.
    pub(crate) fn limit_hit(&self, limit: Limit) {
        if let Some(hits) = self.limits.get(limit as usize) {
            hits.increment(1);
        }
    }
}

/// What is measured now and then.
pub(crate) struct StateMeters {
    pub(crate) claims: metrics::Gauge,
    pub(crate) nodes: metrics::Gauge,
    pub(crate) claims_age_seconds: metrics::Gauge,
    pub(crate) calls_in_flight: metrics::Gauge,
    pub(crate) waiting: metrics::Gauge,
}

impl StateMeters {
    pub(crate) fn new() -> Self {
        StateMeters {
            claims: gauge!(CLAIMS),
            nodes: gauge!(NODES),
            claims_age_seconds: gauge!(CLAIMS_AGE),
            calls_in_flight: gauge!(IN_FLIGHT),
            waiting: gauge!(WAITING),
        }
    }
}
