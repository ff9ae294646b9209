//! How can a call end? A closed list, and what the caller reads for each.

use std::borrow::Cow;
use std::fmt;

use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::closed_list;

closed_list! {
    /// What a device asked for.
    pub enum Method {
        /// List the devices of the caller's customer.
        GetDevices = "getDevices",
        /// Call a device.
        SendMsg = "sendMsg",
        /// Ask for the limits in force.
        GetSessionLimits = "getSessionLimits",
        /// Ask for the time.
        GetTime = "getTime",
        /// Anything else, and requests that are none.
        Other = "other",
    }
}

closed_list! {
    /// A named limit that was reached.
    #[derive(Encode, Decode)]
    #[cbor(index_only)]
    pub enum Limit {
        /// `ingress.max_connections`.
        #[n(0)]
        Connections = "connections",
        /// `mqtt.max_packet_bytes` and its likes.
        #[n(1)]
        PacketBytes = "packet_bytes",
        /// `ingress.max_calls_in_flight_per_caller`.
        #[n(2)]
        CallerInFlight = "caller_in_flight",
        /// `ingress.max_calls_in_flight_per_target`.
        #[n(3)]
        TargetInFlight = "target_in_flight",
        /// `ingress.calls_per_second_per_device`.
        #[n(4)]
        CallRate = "call_rate",
        /// `ingress.max_mailbox_calls`, or `ingress.max_outbound_bytes` for what waits there.
        #[n(5)]
        Mailbox = "mailbox",
        /// `nats.max_pending_asks`.
        #[n(6)]
        PendingAsks = "pending_asks",
        /// `ingress.max_outbound_bytes`.
        #[n(7)]
        OutboundBytes = "outbound_bytes",
        /// `mqtt.max_subscriptions`.
        #[n(8)]
        Subscriptions = "subscriptions",
        /// `router.max_calls_in_flight`.
        #[n(9)]
        RouterInFlight = "router_in_flight",
        /// `ingress.uplinks_per_second_per_device`.
        #[n(10)]
        UplinkRate = "uplink_rate",
        /// `http.max_polls_per_device`.
        #[n(11)]
        Polls = "polls",
        /// `http.max_sessions`, `coap.max_sessions`.
        #[n(12)]
        Sessions = "sessions",
        /// `coap.max_exchanges`.
        #[n(13)]
        Exchanges = "exchanges",
        /// `coap.max_observers`.
        #[n(14)]
        Observers = "observers",
        /// `coap.max_block_transfers`.
        #[n(15)]
        BlockTransfers = "block_transfers",
        /// `coap.max_unauthenticated`.
        #[n(16)]
        Unauthenticated = "unauthenticated",
        /// `ingress.max_claims_in_flight`.
        #[n(17)]
        ClaimsInFlight = "claims_in_flight",
        /// `ingress.guesses_per_second_per_source`, `ingress.guesses_per_second`.
        #[n(18)]
        Guesses = "guesses",
        /// `ingress.max_deliveries`.
        #[n(19)]
        Deliveries = "deliveries",
        /// `shares.waiting_percent`, of all together.
        #[n(20)]
        Waits = "waits",
        /// `shares.per_customer_percent`, of calls in flight.
        #[n(21)]
        CustomerCalls = "customer_calls",
        /// `ingress.calls_per_second_per_customer`.
        #[n(30)]
        CustomerCallRate = "customer_call_rate",
        /// `shares.per_customer_percent`, of calls that may wait for their target.
        #[n(22)]
        CustomerWaits = "customer_waits",
        /// `shares.per_customer_percent`, of calls for a node's devices.
        #[n(23)]
        CustomerDeliveries = "customer_deliveries",
        /// `shares.per_customer_percent`, of telemetry and attributes that NATS is yet to take.
        #[n(31)]
        CustomerUplinks = "customer_uplinks",
        /// `shares.per_customer_percent`, of connections and of devices that are kept in mind.
        #[n(24)]
        CustomerSessions = "customer_sessions",
        /// `ingress.max_connections_per_device`.
        #[n(25)]
        DeviceConnections = "device_connections",
        /// `ingress.max_connections_per_address`.
        #[n(26)]
        AddressConnections = "address_connections",
        /// `ingress.requests_per_second_per_connection`.
        #[n(27)]
        RequestRate = "request_rate",
        /// Lists that wait at an authorizer.
        #[n(28)]
        Lists = "lists",
        /// Those of one customer.
        #[n(29)]
        CustomerLists = "customer_lists",
        /// `api.max_connections`.
        #[n(36)]
        ApiConnections = "api_connections",
        /// `api.max_calls_in_flight_per_app`.
        #[n(37)]
        AppInFlight = "app_in_flight",
        /// `api.calls_per_second_per_app`.
        #[n(38)]
        AppCallRate = "app_call_rate",
        /// Group calls of an application, or of all, on one copy of the API.
        #[n(39)]
        AppGroups = "app_groups",
        /// `api.max_listeners`, or one application's part of it.
        #[n(55)]
        ApiListeners = "api_listeners",
    }
}

impl Limit {
    /// True for what the target has too much of: about it, like [`Outcome::Offline`], and nothing that the caller has
    /// done too often.
    pub const fn is_of_target(self) -> bool {
        matches!(
            self,
            Limit::TargetInFlight
                | Limit::Mailbox
                | Limit::OutboundBytes
                | Limit::Subscriptions
                | Limit::Deliveries
                | Limit::CustomerDeliveries
        )
    }
}

/// How a request ended. The body of `Answered` travels beside it, untouched.
///
/// `Offline`, `Denied`, `UnknownDevice`, `Busy`, `Malformed` and `TooLargeForTarget` promise that the target never saw
/// the call; `TimedOut`, `Lost` and `Unavailable` say that it may have, `AnswerTooLarge` and `AnswerInvalid` that it
/// did. The first are never said where the others could be true.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// The target (or, for other methods, a service) answered: the body follows.
    #[n(0)]
    Answered,
    /// `oneway`, and the target's connection took it.
    #[n(1)]
    Delivered,
    /// Policy says no; for `getDevices`, the caller belongs to no customer.
    #[n(2)]
    Denied,
    /// No such device in the caller's tenant.
    #[n(3)]
    UnknownDevice,
    /// Nobody claims the target, for as long as the call wanted to wait for it.
    #[n(4)]
    Offline,
    /// Delivered, and no answer within the budget.
    #[n(5)]
    TimedOut,
    /// Delivered, and the target's session ended before it answered.
    #[n(6)]
    Lost,
    /// A named limit is reached.
    #[n(7)]
    Busy(#[n(0)] Limit),
    /// The target's connection cannot take a message of this size, now or later.
    #[n(8)]
    TooLargeForTarget,
    /// The target answered, and its answer is too large for the caller's connection or for the bus.
    #[n(9)]
    AnswerTooLarge,
    /// The target answered what is no JSON, and cannot be told so.
    #[n(10)]
    AnswerInvalid,
    /// The request is not one; the text is the whole message for the caller.
    #[n(11)]
    Malformed(#[n(0)] Cow<'static, str>),
    /// A service or NATS is missing, or failed.
    #[n(12)]
    Unavailable,
}

impl Outcome {
    /// A request that is none, and in which part: reads `Malformed request: <part>`.
    pub fn malformed(part: impl fmt::Display) -> Self {
        Outcome::Malformed(format!("Malformed request: {part}").into())
    }

    /// Which of the closed list it is.
    pub const fn name(&self) -> OutcomeName {
        match self {
            Outcome::Answered => OutcomeName::Answered,
            Outcome::Delivered => OutcomeName::Delivered,
            Outcome::Denied => OutcomeName::Denied,
            Outcome::UnknownDevice => OutcomeName::UnknownDevice,
            Outcome::Offline => OutcomeName::Offline,
            Outcome::TimedOut => OutcomeName::TimedOut,
            Outcome::Lost => OutcomeName::Lost,
            Outcome::Busy(_) => OutcomeName::Busy,
            Outcome::TooLargeForTarget => OutcomeName::TooLargeForTarget,
            Outcome::AnswerTooLarge => OutcomeName::AnswerTooLarge,
            Outcome::AnswerInvalid => OutcomeName::AnswerInvalid,
            Outcome::Malformed(_) => OutcomeName::Malformed,
            Outcome::Unavailable => OutcomeName::Unavailable,
        }
    }

    /// May the target have executed the call? A promise: of those that say never, it has not.
    pub const fn seen(&self) -> Seen {
        match self {
            Outcome::Answered | Outcome::Delivered | Outcome::AnswerTooLarge | Outcome::AnswerInvalid => {
                Seen::Yes
            }
            Outcome::TimedOut | Outcome::Lost | Outcome::Unavailable => Seen::Maybe,
            Outcome::Denied
            | Outcome::UnknownDevice
            | Outcome::Offline
            | Outcome::Busy(_)
            | Outcome::TooLargeForTarget
            | Outcome::Malformed(_) => Seen::Never,
        }
    }

    /// How an application is told of it: a status of HTTP (RFC 9110 §15), which is also the error code of NATS'
    /// ADR-32, and words.
    pub const fn told(&self) -> (u16, &'static str) {
        match self {
            Outcome::Answered => (200, "The device has answered"),
            Outcome::Delivered => (204, "The device has the call"),
            Outcome::Denied => (403, "The application may not make this call"),
            Outcome::UnknownDevice => (404, "There is no such device"),
            Outcome::Offline => (409, "The device is not connected"),
            Outcome::TimedOut => (504, "The device did not answer in time"),
            Outcome::Lost => (502, "The device's connection ended before it answered"),
            Outcome::Busy(_) => (429, "A limit is reached"),
            Outcome::TooLargeForTarget => (413, "The device's connection takes no message of this size"),
            Outcome::AnswerTooLarge => (502, "The device's answer is too large"),
            Outcome::AnswerInvalid => (502, "The device's answer is not JSON"),
            Outcome::Malformed(_) => (400, "The call was not understood"),
            Outcome::Unavailable => (503, "A service is missing, or failed"),
        }
    }

    /// Its name, for devices, metrics and logs.
    pub const fn as_str(&self) -> &'static str {
        self.name().as_str()
    }
}

closed_list! {
    /// Whether a call's target saw it.
    #[derive(Serialize, Encode, Decode)]
    #[cbor(index_only)]
    #[serde(rename_all = "lowercase")]
    pub enum Seen {
        /// It did not, and will not: the call may be made again.
        #[n(0)]
        Never = "never",
        /// Nobody can say.
        #[n(1)]
        Maybe = "maybe",
        /// It did.
        #[n(2)]
        Yes = "yes",
    }
}

closed_list! {
    /// An [`Outcome`] without what it carries: its machine-readable name, for devices, metrics and logs.
    pub enum OutcomeName {
        /// [`Outcome::Answered`]
        Answered = "answered",
        /// [`Outcome::Delivered`]
        Delivered = "delivered",
        /// [`Outcome::Denied`]
        Denied = "denied",
        /// [`Outcome::UnknownDevice`]
        UnknownDevice = "unknown_device",
        /// [`Outcome::Offline`]
        Offline = "offline",
        /// [`Outcome::TimedOut`]
        TimedOut = "timed_out",
        /// [`Outcome::Lost`]
        Lost = "lost",
        /// [`Outcome::Busy`]
        Busy = "busy",
        /// [`Outcome::TooLargeForTarget`]
        TooLargeForTarget = "too_large_for_target",
        /// [`Outcome::AnswerTooLarge`]
        AnswerTooLarge = "answer_too_large",
        /// [`Outcome::AnswerInvalid`]
        AnswerInvalid = "answer_invalid",
        /// [`Outcome::Malformed`]
        Malformed = "malformed",
        /// [`Outcome::Unavailable`]
        Unavailable = "unavailable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_its_name_and_survives_the_wire() {
        let all = [
            Outcome::Answered,
            Outcome::Delivered,
            Outcome::Denied,
            Outcome::UnknownDevice,
            Outcome::Offline,
            Outcome::TimedOut,
            Outcome::Lost,
            Outcome::Busy(Limit::Mailbox),
            Outcome::TooLargeForTarget,
            Outcome::AnswerTooLarge,
            Outcome::AnswerInvalid,
            Outcome::malformed("deviceId must be a UUID"),
            Outcome::Unavailable,
        ];
        assert_eq!(all.each_ref().map(Outcome::name), OutcomeName::ALL);
        for outcome in &all {
            let message = minicbor::to_vec(outcome).unwrap();
            assert_eq!(&minicbor::decode::<Outcome>(&message).unwrap(), outcome);
        }
        for (place, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, place);
            let message = minicbor::to_vec(limit).unwrap();
            assert_eq!(minicbor::decode::<Limit>(&message).unwrap(), limit);
        }
    }
}
