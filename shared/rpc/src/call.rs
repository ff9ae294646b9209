//! What travels for one call? The message of each hop; the body follows each head as raw text (see `wire`).

use serde::{Deserialize, Serialize};

use crate::{Budget, CallId, DeviceId, NodeId, Outcome, Protocol, SessionId};

/// A `sendMsg` on its way from the caller's node to the authorizer (`swb.call`). Its body follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The call's id, the same on every hop.
    pub call: CallId,
    /// Who calls.
    pub caller: DeviceId,
    /// Who is called.
    pub target: DeviceId,
    /// What is left of the call's time.
    pub budget_ms: Budget,
    /// How long an offline target may be waited for; at most `budget_ms`.
    pub connect_budget_ms: Budget,
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
    /// What is left of the call's time.
    pub budget_ms: Budget,
    /// As in [`Call`].
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub oneway: bool,
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
}

/// Tells a node that one of its sessions has been overtaken by a newer one (`swb.event.takeover.<node>`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Eviction {
    /// The older session, to be closed.
    pub session: SessionId,
    /// Its device.
    pub device: DeviceId,
}

/// A session began or ended (`swb.event.session.<device>.up` and `.down`), for whoever listens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEvent {
    /// Where.
    pub node: NodeId,
    /// Which.
    pub session: SessionId,
    /// How the device is, or was, connected.
    pub protocol: Protocol,
}
