//! What is asked of the authorizer's directory? Who a credential is, who a device's peers are, who is online.

use std::fmt;
use std::time::Duration;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::{CustomerId, DeviceId, NodeId, Protocol, SessionEnd, TenantId, Ticket};

/// The SHA-256 of an access token, in lower-case hexadecimal. Tokens themselves never leave the node they came in on.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode)]
#[serde(transparent)]
#[cbor(transparent)]
pub struct CredentialHash(#[n(0)] pub String);

impl CredentialHash {
    /// From a finished digest.
    pub fn from_digest(digest: [u8; 32]) -> Self {
        use fmt::Write;
        let mut text = String::with_capacity(64);
        for byte in digest {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        CredentialHash(text)
    }

    /// The hexadecimal text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CredentialHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CredentialHash({}…)", self.0.get(..8).unwrap_or_default())
    }
}

/// Ingress asks who holds this credential (`swb.authenticate`).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AuthenticateRequest {
    /// The hash of the access token that the device gave.
    #[n(0)]
    pub credential: CredentialHash,
    /// The node that asks.
    #[n(1)]
    pub node: NodeId,
    /// As which of its visits the device is to be known: never given twice.
    #[n(2)]
    pub visit: u64,
}

/// The authorizer's answer to [`AuthenticateRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum AuthenticateReply {
    /// The credential is this device's.
    #[n(0)]
    Identity(#[n(0)] Identity),
    /// Nobody holds that credential.
    #[n(1)]
    Refused,
    /// The authorizer does not know how things are now.
    #[n(2)]
    Unavailable,
}

/// Who a session is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct Identity {
    /// The device.
    #[n(0)]
    pub device: DeviceId,
    /// Its tenant.
    #[n(1)]
    pub tenant: TenantId,
    /// Its customer, if it is assigned to one.
    #[n(2)]
    pub customer: Option<CustomerId>,
    /// Its name, unique in its tenant.
    #[n(3)]
    pub name: String,
    /// The authorizer's word for the visit.
    #[n(4)]
    pub ticket: Ticket,
}

/// `getDevices` (`swb.list`). The answer is an [`Outcome`](crate::Outcome), the list its body.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ListRequest {
    /// Who asks.
    #[n(0)]
    pub caller: DeviceId,
    /// At which node.
    #[n(1)]
    pub node: NodeId,
    /// As in [`Call`](crate::Call).
    #[n(2)]
    pub visit: u64,
    /// As in [`Call`](crate::Call).
    #[n(3)]
    pub ticket: Option<Ticket>,
    /// How it is connected; none from a node that does not tell it.
    #[n(4)]
    pub protocol: Option<Protocol>,
    /// At most so many entries; the setting `max_devices_per_customer` bounds it too.
    #[n(5)]
    pub limit: Option<u32>,
    /// Continue behind this device.
    #[n(6)]
    pub after: Option<DeviceId>,
    /// Say of each device whether it is online.
    #[n(7)]
    pub online: bool,
    /// As in [`Call`](crate::Call).
    #[n(8)]
    pub traceparent: Option<String>,
}

/// The authorizer asks a router which of these devices are online (`swb.presence`).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PresenceRequest {
    /// The devices in question.
    #[n(0)]
    pub devices: Vec<DeviceId>,
    /// Say also where those are that are online.
    #[n(1)]
    #[cbor(default)]
    pub places: bool,
    /// Say also how each was last there, which is looked up in a store.
    #[n(2)]
    #[cbor(default)]
    pub seen: bool,
}

/// A router's answer to [`PresenceRequest`], in the order of the question.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct PresenceReply {
    /// Whether a live node claims each device.
    #[n(0)]
    pub online: Vec<bool>,
    /// How often a session of each took over from another, lately; empty where none did.
    #[n(1)]
    pub takeovers: Vec<u32>,
    /// Where each is, where that was asked; none from a router that cannot say it.
    #[n(2)]
    pub places: Option<Vec<Option<Whereabouts>>>,
    /// How each was last there, where that was asked and is known; none from a router that cannot say it.
    #[n(3)]
    pub seen: Option<Vec<Option<LastSeen>>>,
}

/// Where a device is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Encode, Decode)]
#[serde(rename_all = "camelCase")]
pub struct Whereabouts {
    /// The node.
    #[n(0)]
    pub node: NodeId,
    /// How it is connected.
    #[n(1)]
    pub protocol: Protocol,
    /// Since when, in milliseconds since 1970 on the node's clock; none where the claim does not tell it.
    #[n(2)]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
}

/// How a device was last connected, kept for [`SEEN_LASTS`] after it went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "camelCase")]
pub struct LastSeen {
    /// When its claim was removed, in milliseconds since 1970 on a router's clock.
    #[n(0)]
    pub at_ms: u64,
    /// The node that it was connected to.
    #[n(1)]
    pub node: NodeId,
    /// How.
    #[n(2)]
    pub protocol: Protocol,
    /// Since when, as in [`Whereabouts`].
    #[n(3)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
    /// Why no longer; none where its node did not know it.
    #[n(4)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<SessionEnd>,
}

/// How long it is known how a device was last connected.
pub const SEEN_LASTS: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What a device is now, told to every node when that changed (`swb.event.device.<device>`).
///
/// A node drops the sessions that do not match it: those of a device that is gone, has another credential or
/// belongs elsewhere. A renamed device keeps its sessions.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DeviceState {
    /// The device.
    #[n(0)]
    pub device: DeviceId,
    /// Its tenant and customer and the hash of its credential; none when it was removed.
    #[n(1)]
    pub now: Option<DeviceStanding>,
}

/// The part of a device's record that its sessions depend on.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct DeviceStanding {
    /// Its tenant.
    #[n(0)]
    pub tenant: TenantId,
    /// Its customer, if any.
    #[n(1)]
    pub customer: Option<CustomerId>,
    /// The hash of its access token.
    #[n(2)]
    pub credential: CredentialHash,
}
