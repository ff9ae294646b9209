//! What travels for one call? The message of each hop; the body follows each head as raw text (see `wire`).

use serde::{Deserialize, Serialize};

use crate::{
    Budget, CallId, CustomerId, DeviceId, NodeId, Outcome, Protocol, SessionId, TenantId, Ticket, Until,
    closed_list,
};

/// A `sendMsg` on its way from the caller's node to the authorizer (`swb.call`). Its body follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The call's id, the same on every hop.
    pub call: CallId,
    /// Who calls: stamped at the caller's node from its session, never taken from the device.
    pub caller: DeviceId,
    /// Its name, for the target; empty from a node that does not tell it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub caller_name: String,
    /// As which visit of the call's node, and the authorizer's word for it.
    #[serde(default)]
    pub visit: u64,
    /// See `visit`; it goes no further than to the authorizer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<Ticket>,
    /// Who is called.
    pub target: DeviceId,
    /// What is left of the call's time.
    pub budget_ms: Budget,
    /// When its time is over, also where it was held up; none from a node that hears no router.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Until>,
    /// How long an offline target may be waited for; at most `budget_ms`.
    pub connect_budget_ms: Budget,
    /// How the caller is connected; none from a node that does not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The caller wants no answer, only to know that the target's connection took the message.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneway: bool,
    /// W3C trace context: as the caller gave it, or of the last hop that recorded a span.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// An allowed call on its way from the authorizer to a router (`swb.route`). The body follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Routed {
    /// The call, its budgets reduced by the time it has taken. Not flattened into this head: serde would read it
    /// twice.
    pub call: Call,
    /// For how long the authorizer's word holds: after that it is asked again before the call is delivered. None from
    /// an authorizer that gave it for good.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict_ms: Option<Budget>,
    /// The caller's inbox. The NATS reply subject is the authorizer's bounce, which would hear that no router is there.
    pub reply_to: String,
}

/// A call on its way from a router to the target's node (`swb.node.<node>`). The body follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The call's id.
    pub call: CallId,
    /// Which of the node's sessions is called.
    pub session: SessionId,
    /// Whom the router means: a session of another device refuses.
    pub target: DeviceId,
    /// Who calls, for the target; none from a router that does not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<DeviceId>,
    /// As in [`Call`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub caller_name: String,
    /// What is left of the call's time.
    pub budget_ms: Budget,
    /// As in [`Call`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Until>,
    /// As in [`Call`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneway: bool,
    /// As in [`Routed`]: what is left of it. None from a router that cannot ask again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict_ms: Option<Budget>,
    /// As in [`Call`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// What the target's node says to the router's delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryReply {
    /// The call ended so. The body of `Answered` follows.
    Ended(Outcome),
    /// No such session here, or it ended before the call was written: the target never saw it.
    NotHere,
    /// The authorizer's word no longer held when the device could have taken the call: it never saw it.
    Outdated,
}

/// A router asks whether a call that waited may still be delivered (`swb.judge`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JudgeRequest {
    /// As in [`Call`].
    pub call: CallId,
    /// As in [`Call`].
    pub caller: DeviceId,
    /// As in [`Call`].
    pub target: DeviceId,
    /// What is left of the call's time.
    pub budget_ms: Budget,
    /// Of the call's body.
    pub size_bytes: u32,
    /// As in [`Call`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// As in [`Call`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneway: bool,
}

/// What an authorizer says to a [`JudgeRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JudgeReply {
    /// It may, for so long.
    Allowed(Budget),
    /// The call ends so.
    Refused(Outcome),
}

/// A device's answer that came to another node than its call (`swb.answer.<tag>`). Its body follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who answers: stamped where it showed its token.
    pub device: DeviceId,
    /// The number under which it was given the call.
    pub number: u32,
}

/// What the node that gave the call says to an [`Answer`]. One that does not know the device says nothing: nodes may
/// share a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AnswerReply {
    /// It is on its way to the caller.
    Taken,
    /// No such call of the device is open.
    NoSuchCall,
    /// It is not JSON; the call stays open.
    NotJson,
}

/// Tells a node that one of its sessions has been taken over by a newer one (`swb.event.takeover.<node>`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Takeover {
    /// The older session, to be closed.
    pub session: SessionId,
    /// Its device.
    pub device: DeviceId,
}

/// A device became callable, or no longer is (`swb.event.session.<device>.up` and `.down`), for whoever listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEvent {
    /// Where.
    pub node: NodeId,
    /// Which.
    pub session: SessionId,
    /// How the device is, or was, connected.
    pub protocol: Protocol,
    /// When, in milliseconds since 1970 on the node's clock.
    pub at_ms: u64,
    /// Whose the device is.
    pub tenant: TenantId,
    /// Its customer, if it is assigned to one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub customer: Option<CustomerId>,
    /// Why it no longer is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<SessionEnd>,
}

closed_list! {
    /// Why a device is no longer callable through a session.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum SessionEnd {
        /// The device said so, or closed its connection.
        ByDevice = "by_device",
        /// It broke its protocol, did not read, or was not heard of for too long.
        Fault = "fault",
        /// A newer session of the device became callable.
        TakenOver = "taken_over",
        /// The device was removed, reassigned or given another token.
        Revoked = "revoked",
        /// Its node is shutting down.
        ShuttingDown = "shutting_down",
    }
}
