//! What travels for one call? The message of each hop; the body follows each head as raw text (see `wire`).

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::{
    AppCaller, Budget, CallId, CustomerId, DeviceId, NodeId, Outcome, Party, Protocol, SessionId, TenantId,
    Ticket, Until, closed_list,
};

/// A `sendMsg` on its way from the caller's node to the authorizer (`swb.call`). Its body follows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Call {
    /// The call's id, the same on every hop.
    #[n(0)]
    pub call: CallId,
    /// Who calls: stamped at the caller's node from its session, never taken from the device.
    #[n(1)]
    pub caller: DeviceId,
    /// Its name, for the target; empty from a node that does not tell it.
    #[n(2)]
    pub caller_name: String,
    /// As which visit of the call's node, and the authorizer's word for it.
    #[n(3)]
    pub visit: u64,
    /// See `visit`; it goes no further than to the authorizer.
    #[n(4)]
    pub ticket: Option<Ticket>,
    /// Who is called.
    #[n(5)]
    pub target: DeviceId,
    /// What is left of the call's time.
    #[n(6)]
    pub budget_ms: Budget,
    /// When its time is over, also where it was held up; none from a node that hears no router.
    #[n(7)]
    pub until: Option<Until>,
    /// How long an offline target may be waited for; at most `budget_ms`.
    #[n(8)]
    pub connect_budget_ms: Budget,
    /// How the caller is connected; none from a node that does not tell it.
    #[n(9)]
    pub protocol: Option<Protocol>,
    /// The caller wants no answer, only to know that the target's connection took the message.
    #[n(10)]
    pub oneway: bool,
    /// W3C trace context: as the caller gave it, or of the last hop that recorded a span.
    #[n(11)]
    pub traceparent: Option<String>,
    /// The application that calls, where it is one: an authorizer alone says so.
    #[n(12)]
    pub app: Option<AppCaller>,
}

/// An allowed call on its way from the authorizer to a router (`swb.route`). The body follows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Routed {
    /// The call, its budgets reduced by the time it has taken.
    #[n(0)]
    pub call: Call,
    /// For how long the authorizer's word holds: after that it is asked again before the call is delivered. None from
    /// an authorizer that gave it for good.
    #[n(1)]
    pub verdict_ms: Option<Budget>,
    /// The caller's inbox. The NATS reply subject is the authorizer's bounce, which would hear that no router is there.
    #[n(2)]
    pub reply_to: String,
    /// In whose share the call is; none from an authorizer that does not tell it.
    #[n(3)]
    pub party: Option<Party>,
}

/// A call on its way from a router to the target's node (`swb.node.<node>`). The body follows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Delivery {
    /// The call's id.
    #[n(0)]
    pub call: CallId,
    /// Which of the node's sessions is called.
    #[n(1)]
    pub session: SessionId,
    /// Whom the router means: a session of another device refuses.
    #[n(2)]
    pub target: DeviceId,
    /// Who calls, for the target; none from a router that does not tell it.
    #[n(3)]
    pub caller: Option<DeviceId>,
    /// As in [`Call`].
    #[n(4)]
    pub caller_name: String,
    /// What is left of the call's time.
    #[n(5)]
    pub budget_ms: Budget,
    /// As in [`Call`].
    #[n(6)]
    pub until: Option<Until>,
    /// As in [`Call`].
    #[n(7)]
    pub oneway: bool,
    /// As in [`Routed`]: what is left of it. None from a router that cannot ask again.
    #[n(8)]
    pub verdict_ms: Option<Budget>,
    /// As in [`Call`].
    #[n(9)]
    pub traceparent: Option<String>,
    /// What the target reads as `method`; none: `onMsg`.
    #[n(10)]
    pub method: Option<String>,
    /// As in [`LateAnswer`](crate::LateAnswer).
    #[n(11)]
    pub late: Option<u64>,
}

/// What the target's node says to the router's delivery.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum DeliveryReply {
    /// The call ended so. The body of `Answered` follows.
    #[n(0)]
    Ended(#[n(0)] Outcome),
    /// No such session here, or it ended before the call was written: the target never saw it.
    #[n(1)]
    NotHere,
    /// The authorizer's word no longer held when the device could have taken the call: it never saw it.
    #[n(2)]
    Outdated,
}

/// A router asks whether a call that waited may still be delivered (`swb.judge`).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct JudgeRequest {
    /// As in [`Call`].
    #[n(0)]
    pub call: CallId,
    /// As in [`Call`].
    #[n(1)]
    pub caller: DeviceId,
    /// As in [`Call`].
    #[n(2)]
    pub target: DeviceId,
    /// What is left of the call's time.
    #[n(3)]
    pub budget_ms: Budget,
    /// Of the call's body.
    #[n(4)]
    pub size_bytes: u32,
    /// As in [`Call`].
    #[n(5)]
    pub protocol: Option<Protocol>,
    /// As in [`Call`].
    #[n(6)]
    pub oneway: bool,
    /// As in [`Call`].
    #[n(7)]
    pub app: Option<AppCaller>,
}

/// What an authorizer says to a [`JudgeRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum JudgeReply {
    /// It may, for so long.
    #[n(0)]
    Allowed(#[n(0)] Budget),
    /// The call ends so.
    #[n(1)]
    Refused(#[n(0)] Outcome),
}

/// A device's answer that came to another node than its call (`swb.answer.<tag>`). Its body follows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Answer {
    /// Who answers: stamped where it showed its token.
    #[n(0)]
    pub device: DeviceId,
    /// The number under which it was given the call.
    #[n(1)]
    pub number: u32,
    /// What it speaks, there and where it was given the call; none: HTTP.
    #[n(2)]
    pub protocol: Option<Protocol>,
}

/// What the node that gave the call says to an [`Answer`]. One that does not know the device says nothing: nodes may
/// share a tag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum AnswerReply {
    /// It is on its way to the caller.
    #[n(0)]
    Taken,
    /// No such call of the device is open.
    #[n(1)]
    NoSuchCall,
    /// It is not JSON; the call stays open.
    #[n(2)]
    NotJson,
}

/// Tells a node that one of its sessions has been taken over by a newer one (`swb.event.takeover.<node>`).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Takeover {
    /// The older session, to be closed.
    #[n(0)]
    pub session: SessionId,
    /// Its device.
    #[n(1)]
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
    #[derive(Serialize, Deserialize, Encode, Decode)]
    #[serde(rename_all = "snake_case")]
    #[cbor(index_only)]
    pub enum SessionEnd {
        /// The device said so, or closed its connection.
        #[n(0)]
        ByDevice = "by_device",
        /// It broke its protocol, did not read, or was not heard of for too long.
        #[n(1)]
        Fault = "fault",
        /// A newer session of the device became callable.
        #[n(2)]
        TakenOver = "taken_over",
        /// The device was removed, reassigned or given another token.
        #[n(3)]
        Revoked = "revoked",
        /// Its node is shutting down.
        #[n(4)]
        ShuttingDown = "shutting_down",
        /// Its node sent it to another.
        #[n(5)]
        Moved = "moved",
        /// Its node did not renew its lease: a router says so, up to a lease and a quarter later.
        #[n(6)]
        NodeGone = "node_gone",
        /// Its node had no such session any more, as a router found.
        #[n(7)]
        SessionGone = "session_gone",
    }
}
