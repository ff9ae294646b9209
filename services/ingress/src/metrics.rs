//! What does a node tell Prometheus? Every metric of ingress, with handles that the hot path need not look up.

use std::time::Duration;

use boot::metrics::{Kind, describe};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use rpc::{Limit, Method, Outcome, OutcomeName, Protocol, closed_list};

use crate::device::offenders::{Offence, Report};
use crate::device::shed::Why;

closed_list! {
    /// How a connection attempt went: the values of the label `result`.
    pub enum ConnectResult {
        /// The device is connected.
        Accepted = "accepted",
        /// It gave no access token.
        NoUsername = "no_username",
        /// Nobody has that token.
        UnknownToken = "unknown_token",
        /// Too many tokens that nobody has came from there, or from everywhere.
        TooManyGuesses = "too_many_guesses",
        /// The authorizer or NATS could not be reached.
        Unavailable = "unavailable",
        /// The node has as many connections as it may.
        Limit = "limit",
        /// The node sends its devices away.
        Closed = "closed",
        /// What came was no CONNECT, or not in time, or of another version.
        Malformed = "malformed",
    }
}

closed_list! {
    /// Why a device's MQTT message was dropped: the values of the label `reason`.
    pub enum Dropped {
        /// Its topic is none of the device API's.
        ForeignTopic = "foreign_topic",
        /// It must be JSON.
        NotJson = "not_json",
        /// It is larger than `mqtt.max_packet_bytes`, and its sender cannot be told.
        TooLarge = "too_large",
        /// It is a will that nobody would hear, or that came too often.
        Will = "will",
    }
}

/// Each metric's kind and help.
const METRICS: &[(Kind, &str, &str)] = &[
    (Kind::Counter, CALLS, "Requests of devices, by method and outcome."),
    (
        Kind::Histogram,
        CALL_SECONDS,
        "Time from a device's request to its answer at the caller's node, by method.",
    ),
    (
        Kind::Histogram,
        OFFLINE_SECONDS,
        "Time from a call that did not want to wait for its target to the answer that it is offline.",
    ),
    (
        Kind::Histogram,
        DELIVERY_SECONDS,
        "Time from a call's arrival at the target's node to the end of its delivery there.",
    ),
    (Kind::Counter, LIMITS_HIT, "How often a named limit was reached."),
    (Kind::Counter, CONNECTS, "Connection attempts of devices, by result."),
    (
        Kind::Counter,
        MESSAGES_DROPPED,
        "MQTT messages that came to nothing, acknowledged where their version knows no refusal, by reason.",
    ),
    (
        Kind::Gauge,
        VISITORS,
        "Devices that this node knows: connected, or idle for not too long, callable or not; by protocol.",
    ),
    (Kind::Gauge, SESSIONS, "Callable devices on this node, by protocol."),
    (
        Kind::Gauge,
        CONNECTIONS,
        "Connections of devices to this node, authenticated or not, as of its last lease.",
    ),
    (Kind::Gauge, CONNECTIONS_MAX, "Connections that this node may have."),
    (Kind::Gauge, CLAIMS_HELD, "Callable sessions on this node whose claim stands."),
    (Kind::Histogram, CLAIM_SECONDS, "Time to write a claim to the store."),
    (Kind::Counter, CLAIMS_FAILED, "Claims that the store did not take."),
    (
        Kind::Counter,
        CLAIMS_LACKING,
        "Claims that stood for this node, and that a router was found not to know: written again.",
    ),
    (
        Kind::Counter,
        CLAIMS_DELAYED,
        "Devices that became callable later, since clients take them over from each other again and again.",
    ),
    (
        Kind::Counter,
        ANSWERS_UNHEARD,
        "Answers dropped because the caller had no subscription that matches them.",
    ),
    (Kind::Counter, TAKEOVERS, "Sessions ended because a newer one of the same device became callable."),
    (
        Kind::Counter,
        REVOCATIONS,
        "Sessions ended because their device was removed, reassigned or given another token.",
    ),
    (
        Kind::Gauge,
        OFFENDERS,
        "How often a second the one device, or customer, that did it most lately hit limits, or came in; by offence.",
    ),
    (
        Kind::Counter,
        SHED,
        "Devices that the node has sent away, by why: shutting_down, evacuated, maintenance, rebalanced, uncalled.",
    ),
    (Kind::Gauge, SHED_LEFT, "Devices that the node is to send away and that have yet to go."),
    (Kind::Counter, UPLINKS, "Telemetry and attributes messages, by whether NATS took them."),
];

const CALLS: &str = "switchboard_calls_total";
const CALL_SECONDS: &str = "switchboard_call_seconds";
pub(crate) const OFFLINE_SECONDS: &str = "switchboard_offline_seconds";
const DELIVERY_SECONDS: &str = "switchboard_delivery_seconds";
const LIMITS_HIT: &str = "switchboard_limits_hit_total";
const CONNECTS: &str = "switchboard_connects_total";
const MESSAGES_DROPPED: &str = "switchboard_messages_dropped_total";
const VISITORS: &str = "switchboard_visitors";
const SESSIONS: &str = "switchboard_sessions";
const CONNECTIONS: &str = "switchboard_connections";
const CONNECTIONS_MAX: &str = "switchboard_connections_max";
const CLAIMS_HELD: &str = "switchboard_claims_held";
const CLAIM_SECONDS: &str = "switchboard_claim_seconds";
const CLAIMS_FAILED: &str = "switchboard_claims_failed_total";
const CLAIMS_LACKING: &str = "switchboard_claims_lacking_total";
const CLAIMS_DELAYED: &str = "switchboard_claims_delayed_total";
const ANSWERS_UNHEARD: &str = "switchboard_answers_unheard_total";
const TAKEOVERS: &str = "switchboard_takeovers_total";
const REVOCATIONS: &str = "switchboard_revocations_total";
const OFFENDERS: &str = "switchboard_offender_per_second";
const SHED: &str = "switchboard_shed_total";
const SHED_LEFT: &str = "switchboard_shed_left";
const UPLINKS: &str = "switchboard_uplinks_total";

/// How often each limit was reached. Those of one node count together, whoever has them.
#[derive(Debug)]
pub struct LimitsHit(Vec<Counter>);

impl LimitsHit {
    /// Registers them.
    pub fn register() -> Self {
        LimitsHit(Limit::ALL.map(|limit| counter!(LIMITS_HIT, "limit" => limit.as_str())).into())
    }

    /// A limit was hit.
    pub fn count(&self, limit: Limit) {
        if let Some(counter) = self.0.get(limit as usize) {
            counter.increment(1);
        }
    }
}

/// Handles of one node's metrics.
#[derive(Debug)]
pub struct Metrics {
    calls: Vec<[Counter; OutcomeName::ALL.len()]>,
    call_seconds: Vec<Histogram>,
    limits: LimitsHit,
    connects: Vec<Counter>,
    dropped: [Counter; Dropped::ALL.len()],
    visitors: [Gauge; Protocol::ALL.len()],
    sessions: [Gauge; Protocol::ALL.len()],
    delivery_seconds: Histogram,
    connections: Gauge,
    max_connections: Gauge,
    /// Callable sessions whose claim stands.
    pub claims: Gauge,
    claim_seconds: Histogram,
    claims_failed: Counter,
    /// Claims that a router did not know.
    pub claims_lacking: Counter,
    /// Sessions that began later because clients fight over their device.
    pub claims_delayed: Counter,
    /// Answers to calls that had ended or never were.
    pub answers_unheard: Counter,
    /// Sessions ended by a newer one of the same device.
    pub takeovers: Counter,
    /// Sessions ended because the registry changed.
    pub revocations: Counter,
    offenders: [Gauge; 4],
    shed: [Counter; Why::ALL.len()],
    /// Devices that are to be sent away and have yet to go.
    pub shed_left: Gauge,
    uplinks: Counter,
    uplinks_failed: Counter,
}

impl Metrics {
    /// Describes and registers all of them.
    pub fn register() -> Self {
        describe(METRICS);
        let outcomes = |method: Method| {
            OutcomeName::ALL
                .map(|outcome| counter!(CALLS, "method" => method.as_str(), "outcome" => outcome.as_str()))
        };
        Metrics {
            calls: Method::ALL.map(outcomes).into(),
            call_seconds: Method::ALL
                .map(|method| histogram!(CALL_SECONDS, "method" => method.as_str()))
                .into(),
            limits: LimitsHit::register(),
            connects: ConnectResult::ALL.map(|result| counter!(CONNECTS, "result" => result.as_str())).into(),
            dropped: Dropped::ALL.map(|reason| counter!(MESSAGES_DROPPED, "reason" => reason.as_str())),
            visitors: Protocol::ALL.map(|protocol| gauge!(VISITORS, "protocol" => protocol.as_str())),
            sessions: Protocol::ALL.map(|protocol| gauge!(SESSIONS, "protocol" => protocol.as_str())),
            delivery_seconds: histogram!(DELIVERY_SECONDS),
            connections: gauge!(CONNECTIONS),
            max_connections: gauge!(CONNECTIONS_MAX),
            claims: gauge!(CLAIMS_HELD),
            claim_seconds: histogram!(CLAIM_SECONDS),
            claims_failed: counter!(CLAIMS_FAILED),
            claims_lacking: counter!(CLAIMS_LACKING),
            claims_delayed: counter!(CLAIMS_DELAYED),
            answers_unheard: counter!(ANSWERS_UNHEARD),
            takeovers: counter!(TAKEOVERS),
            revocations: counter!(REVOCATIONS),
            offenders: [
                ("limits", "device"),
                ("limits", "customer"),
                ("connects", "device"),
                ("connects", "customer"),
            ]
            .map(|(offence, by)| gauge!(OFFENDERS, "offence" => offence, "by" => by)),
            shed: Why::ALL.map(|why| counter!(SHED, "reason" => why.as_str())),
            shed_left: gauge!(SHED_LEFT),
            uplinks: counter!(UPLINKS, "result" => "taken"),
            uplinks_failed: counter!(UPLINKS, "result" => "failed"),
        }
    }

    /// A request ended so, after so long.
    pub fn call_ended(&self, method: Method, outcome: &Outcome, took: Duration) {
        let counters = self.calls.get(method as usize);
        if let Some(counter) = counters.and_then(|it| it.get(outcome.name() as usize)) {
            counter.increment(1);
        }
        if let Some(histogram) = self.call_seconds.get(method as usize) {
            histogram.record(took);
        }
    }

    /// A delivered call was answered, or its session ended, after so long at this node.
    pub fn delivery_ended(&self, took: Duration) {
        self.delivery_seconds.record(took);
    }

    /// A limit was hit.
    pub fn limit_hit(&self, limit: Limit) {
        self.limits.count(limit);
    }

    /// A connection attempt ended so.
    pub fn connect(&self, result: ConnectResult) {
        if let Some(counter) = self.connects.get(result as usize) {
            counter.increment(1);
        }
    }

    /// So often the worst offenders did it lately.
    pub fn offenders(&self, report: &Report) {
        let Report { seconds, limits, connects } = report;
        let device = |it: &Offence| it.devices.first().map_or(0, |worst| worst.times - worst.over);
        let customer = |it: &Offence| it.customers.first().map_or(0, |worst| worst.times - worst.over);
        let worst = [device(limits), customer(limits), device(connects), customer(connects)];
        for (gauge, times) in self.offenders.iter().zip(worst) {
            gauge.set(times as f64 / (*seconds).max(1) as f64);
        }
    }

    /// A device was told to go to another node.
    pub fn shed(&self, why: Why) {
        if let Some(counter) = self.shed.get(why as usize) {
            counter.increment(1);
        }
    }

    /// Telemetry or attributes were handed to NATS, or not.
    pub fn uplinked(&self, taken: bool) {
        let counter = if taken { &self.uplinks } else { &self.uplinks_failed };
        counter.increment(1);
    }

    /// A device's message was dropped.
    pub fn message_dropped(&self, reason: Dropped) {
        if let Some(counter) = self.dropped.get(reason as usize) {
            counter.increment(1);
        }
    }

    /// This many connections there are, of so many that there may be.
    pub fn connections(&self, open: usize, max: usize) {
        self.connections.set(open as f64);
        self.max_connections.set(max as f64);
    }

    /// The gauge of visitors that speak one protocol.
    pub fn visitors(&self, protocol: Protocol) -> &Gauge {
        of(&self.visitors, protocol)
    }

    /// The gauge of sessions over one protocol.
    pub fn sessions(&self, protocol: Protocol) -> &Gauge {
        of(&self.sessions, protocol)
    }

    /// A claim was written, or not, after so long.
    pub fn claimed(&self, stands: bool, took: Duration) {
        self.claim_seconds.record(took);
        if !stands {
            self.claims_failed.increment(1);
        }
    }
}

fn of(gauges: &[Gauge; Protocol::ALL.len()], protocol: Protocol) -> &Gauge {
    let [mqtt, http, coap] = gauges;
    match protocol {
        Protocol::Mqtt => mqtt,
        Protocol::Http => http,
        Protocol::Coap => coap,
    }
}
