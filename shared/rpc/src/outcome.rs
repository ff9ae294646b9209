//! How can a call end? A closed list, and what the caller reads for each.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// What a device asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Method {
    /// List the devices of the caller's customer.
    GetDevices,
    /// Call a device.
    SendMsg,
    /// Ask for the limits in force.
    GetSessionLimits,
    /// Ask for the time.
    GetTime,
    /// Anything else, and requests that are none.
    Other,
}

impl Method {
    /// Every method, for tables.
    pub const ALL: [Method; 5] =
        [Method::GetDevices, Method::SendMsg, Method::GetSessionLimits, Method::GetTime, Method::Other];

    /// The method's name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Method::GetDevices => "getDevices",
            Method::SendMsg => "sendMsg",
            Method::GetSessionLimits => "getSessionLimits",
            Method::GetTime => "getTime",
            Method::Other => "other",
        }
    }
}

/// A named limit that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// `ingress.max_connections`.
    Connections,
    /// `mqtt.max_packet_bytes` and its likes.
    PacketBytes,
    /// `ingress.max_calls_in_flight_per_caller`.
    CallerInFlight,
    /// `ingress.max_calls_in_flight_per_target`.
    TargetInFlight,
    /// `ingress.calls_per_second_per_device`.
    CallRate,
    /// `ingress.max_mailbox_calls`.
    Mailbox,
    /// `nats.max_pending_asks`.
    PendingAsks,
    /// `ingress.max_outbound_bytes`.
    OutboundBytes,
    /// `mqtt.max_subscriptions`.
    Subscriptions,
    /// `router.max_calls_in_flight`.
    RouterInFlight,
    /// `ingress.uplinks_per_second_per_device`.
    UplinkRate,
    /// `http.max_polls_per_device`.
    Polls,
    /// `http.max_sessions`, `coap.max_sessions`.
    Sessions,
    /// `coap.max_exchanges`.
    Exchanges,
    /// `coap.max_observers`.
    Observers,
    /// `coap.max_block_transfers`.
    BlockTransfers,
    /// `coap.max_unauthenticated`.
    Unauthenticated,
    /// `ingress.max_claims_in_flight`.
    ClaimsInFlight,
}

impl Limit {
    /// Every limit, for tables.
    pub const ALL: [Limit; 18] = [
        Limit::Connections,
        Limit::PacketBytes,
        Limit::CallerInFlight,
        Limit::TargetInFlight,
        Limit::CallRate,
        Limit::Mailbox,
        Limit::PendingAsks,
        Limit::OutboundBytes,
        Limit::Subscriptions,
        Limit::RouterInFlight,
        Limit::UplinkRate,
        Limit::Polls,
        Limit::Sessions,
        Limit::Exchanges,
        Limit::Observers,
        Limit::BlockTransfers,
        Limit::Unauthenticated,
        Limit::ClaimsInFlight,
    ];

    /// The limit's name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Limit::Connections => "connections",
            Limit::PacketBytes => "packet_bytes",
            Limit::CallerInFlight => "caller_in_flight",
            Limit::TargetInFlight => "target_in_flight",
            Limit::CallRate => "call_rate",
            Limit::Mailbox => "mailbox",
            Limit::PendingAsks => "pending_asks",
            Limit::OutboundBytes => "outbound_bytes",
            Limit::Subscriptions => "subscriptions",
            Limit::RouterInFlight => "router_in_flight",
            Limit::UplinkRate => "uplink_rate",
            Limit::Polls => "polls",
            Limit::Sessions => "sessions",
            Limit::Exchanges => "exchanges",
            Limit::Observers => "observers",
            Limit::BlockTransfers => "block_transfers",
            Limit::Unauthenticated => "unauthenticated",
            Limit::ClaimsInFlight => "claims_in_flight",
        }
    }
}

/// How a request ended. The body of `Answered` travels beside it, untouched.
///
/// `Offline`, `Denied`, `UnknownDevice`, `Busy` and `Malformed` promise that the target never saw the call;
/// `TimedOut`, `Lost` and `Unavailable` say that it may have. The first are never said where the second could be true.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The target (or, for other methods, a service) answered: the body follows.
    Answered,
    /// `oneway`, and the target's connection took it.
    Delivered,
    /// Policy says no; for `getDevices`, the caller belongs to no customer.
    Denied,
    /// No such device in the caller's tenant.
    UnknownDevice,
    /// Nobody claims the target, for as long as the call wanted to wait for it.
    Offline,
    /// Delivered, and no answer within the budget.
    TimedOut,
    /// Delivered, and the target's session ended before it answered.
    Lost,
    /// A named limit is reached.
    Busy(Limit),
    /// The request is not one; the text is the whole message for the caller.
    Malformed(Cow<'static, str>),
    /// A service or NATS is missing, or failed.
    Unavailable,
}

impl Outcome {
    /// A request that is none, and in which part: reads `Malformed request: <part>`.
    pub fn malformed(part: impl fmt::Display) -> Self {
        Outcome::Malformed(format!("Malformed request: {part}").into())
    }

    /// The outcome's name in metrics and logs.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Outcome::Answered => "answered",
            Outcome::Delivered => "delivered",
            Outcome::Denied => "denied",
            Outcome::UnknownDevice => "unknown_device",
            Outcome::Offline => "offline",
            Outcome::TimedOut => "timed_out",
            Outcome::Lost => "lost",
            Outcome::Busy(_) => "busy",
            Outcome::Malformed(_) => "malformed",
            Outcome::Unavailable => "unavailable",
        }
    }

    /// Every outcome's name, for tables.
    pub const NAMES: [&'static str; 10] = [
        "answered",
        "delivered",
        "denied",
        "unknown_device",
        "offline",
        "timed_out",
        "lost",
        "busy",
        "malformed",
        "unavailable",
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_on_the_wire_are_the_names_in_metrics() {
        let all = [
            Outcome::Answered,
            Outcome::Delivered,
            Outcome::Denied,
            Outcome::UnknownDevice,
            Outcome::Offline,
            Outcome::TimedOut,
            Outcome::Lost,
            Outcome::Busy(Limit::Mailbox),
            Outcome::malformed("deviceId must be a UUID"),
            Outcome::Unavailable,
        ];
        assert_eq!(all.len(), Outcome::NAMES.len());
        for (outcome, name) in all.iter().zip(Outcome::NAMES) {
            assert_eq!(outcome.as_str(), name);
            let json = serde_json::to_string(outcome).unwrap();
            assert!(json.contains(name), "{json} should say {name}");
            assert_eq!(&serde_json::from_str::<Outcome>(&json).unwrap(), outcome);
        }
        for limit in Limit::ALL {
            assert_eq!(serde_json::to_string(&limit).unwrap(), format!("{:?}", limit.as_str()));
        }
    }
}
