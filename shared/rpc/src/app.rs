//! Who calls that is no device? An application, which shows a key. What it asks, and what it is told.

use std::collections::{BTreeMap, BTreeSet};

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::{
    AppId, Budget, CallId, CredentialHash, CustomerId, DeviceId, KeyId, LastSeen, Outcome, Seen, TenantId,
    Until, Whereabouts, closed_list,
};

/// The method that a device reads of a call which names none.
pub const DEFAULT_METHOD: &str = "onMsg";

closed_list! {
    /// What an application may do. Each may all that those before it may.
    #[derive(PartialOrd, Ord, Serialize, Deserialize, Encode, Decode)]
    #[serde(rename_all = "lowercase")]
    #[cbor(index_only)]
    pub enum Role {
        /// Call devices, list them, and see whether they are there.
        #[n(0)]
        Caller = "caller",
        /// Hear of events, too, and read the audit.
        #[n(1)]
        Observer = "observer",
        /// Keep devices, their tokens and customers, too.
        #[n(2)]
        Operator = "operator",
        /// Keep applications, their keys and tenants, too.
        #[n(3)]
        Admin = "admin",
    }
}

/// As whom a call goes on that an application made. Beside it, `caller` of [`Call`](crate::Call) is the application's
/// id, which no device has.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AppCaller {
    /// The application.
    #[n(0)]
    pub app: AppId,
    /// By which of its keys: with the key its calls end. None: it calls over NATS, which says who it is.
    #[n(1)]
    pub key: Option<KeyId>,
    /// What the target reads as `method`.
    #[n(2)]
    pub method: String,
    /// As in [`LateAnswer`].
    #[n(3)]
    pub late: Option<u64>,
}

impl AppCaller {
    /// Whether it is told in NATS' headers how its call ended, in place of a head of ours.
    pub const fn is_over_nats(&self) -> bool {
        self.key.is_none()
    }
}

/// An application's call on its way from the API to the authorizer (`swb.appcall`). Its body, the params, follows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AppCall {
    /// As in [`Call`](crate::Call).
    #[n(0)]
    pub call: CallId,
    /// The hash of the key that it showed.
    #[n(1)]
    pub credential: CredentialHash,
    /// Who is called.
    #[n(2)]
    pub target: Target,
    /// What the target reads as `method`.
    #[n(3)]
    pub method: String,
    /// As in [`Call`](crate::Call).
    #[n(4)]
    pub budget_ms: Budget,
    /// As in [`Call`](crate::Call).
    #[n(5)]
    pub until: Option<Until>,
    /// As in [`Call`](crate::Call).
    #[n(6)]
    pub connect_budget_ms: Budget,
    /// As in [`Call`](crate::Call).
    #[n(7)]
    pub oneway: bool,
    /// As in [`Call`](crate::Call).
    #[n(8)]
    pub traceparent: Option<String>,
    /// As in [`LateAnswer`]; none: an answer after the call's time is of no use.
    #[n(9)]
    pub late: Option<u64>,
}

/// A device has answered a call of an application's after its time (`swb.late.<api>`). The answer follows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LateAnswer {
    /// The call.
    #[n(0)]
    pub call: CallId,
    /// What the API gave the call along, and nobody guesses who did not hear of it.
    #[n(1)]
    pub proof: u64,
}

/// What is kept of a call under an idempotency key (bucket `<prefix>_once`). The target's answer follows.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct OnceRecord {
    /// SHA-256 of what was asked for: the key is good for nothing else.
    #[cbor(n(0), with = "minicbor::bytes")]
    pub request: [u8; 32],
    /// The call.
    #[n(1)]
    pub call: CallId,
    /// How it ended; none: it has not, or who made it is gone.
    #[n(2)]
    pub end: Option<OnceEnd>,
}

/// How a call under an idempotency key ended.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct OnceEnd {
    /// The outcome.
    #[n(0)]
    pub outcome: Outcome,
    /// May the target have executed it?
    #[n(1)]
    pub seen: Seen,
}

/// One API asks another what has become of a call that it made (`swb.ended.<api>`).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct EndedRequest {
    /// The call.
    #[n(0)]
    pub call: CallId,
    /// Who asks: others' calls are not there.
    #[n(1)]
    pub app: AppId,
}

/// What an API says to an [`EndedRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum EndedReply {
    /// No such call, or its caller was told its end, or that was too long ago.
    #[n(0)]
    Unknown,
    /// It has not ended.
    #[n(1)]
    Running,
    /// It has. The target's answer follows.
    #[n(2)]
    Ended {
        /// How.
        #[n(0)]
        outcome: Outcome,
        /// May the target have executed it?
        #[n(1)]
        seen: Seen,
        /// The answer came after the call's time.
        #[n(2)]
        is_late: bool,
    },
}

/// Which device an application means.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Target {
    /// The one of this id.
    #[n(0)]
    Id(#[n(0)] DeviceId),
    /// The one of this name in the application's tenant.
    #[n(1)]
    Name(#[n(0)] String),
}

impl Target {
    /// Its id, where it is named by that.
    pub fn id(&self) -> Option<DeviceId> {
        match self {
            Target::Id(id) => Some(*id),
            Target::Name(_) => None,
        }
    }

    /// What a person or program has written: an id where it reads as one.
    pub fn parse(text: &str) -> Self {
        text.parse().map_or_else(|_| Target::Name(text.to_owned()), Target::Id)
    }
}

/// Who is this application, and what does it want to know (`swb.app`)?
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AppRequest {
    /// The hash of the key that it showed.
    #[n(0)]
    pub credential: CredentialHash,
    /// What it asks.
    #[n(1)]
    pub ask: AppAsk,
}

/// What an application may ask of an authorizer.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum AppAsk {
    /// Whom the key is for.
    #[n(0)]
    Who,
    /// Devices that it reaches, and whether they are there.
    #[n(1)]
    Devices(#[n(0)] Sought),
}

/// Which devices are sought: those for which all of it holds, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct Sought {
    /// This one alone.
    #[n(0)]
    pub target: Option<Target>,
    /// Of this customer.
    #[n(1)]
    pub customer: Option<CustomerId>,
    /// Of this type.
    #[n(2)]
    pub kind: Option<String>,
    /// With these labels.
    #[n(3)]
    pub labels: BTreeMap<String, String>,
    /// Whose name begins so.
    #[n(4)]
    pub name: String,
    /// Continue behind this name.
    #[n(5)]
    pub after: Option<String>,
    /// At most so many; an authorizer may return fewer, and say where to go on.
    #[n(6)]
    pub limit: u32,
    /// Say also how each was last there.
    #[n(7)]
    #[cbor(default)]
    pub seen: bool,
}

/// The authorizer's answer to an [`AppRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum AppReply {
    /// The key is this application's.
    #[n(0)]
    Identity(#[n(0)] AppIdentity),
    /// No such key, or not any more.
    #[n(1)]
    Refused,
    /// The authorizer, or every router, does not know how things are now.
    #[n(2)]
    Unavailable,
    /// A page of what was sought.
    #[n(3)]
    Devices(#[n(0)] AppDevices),
}

/// A page of devices.
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct AppDevices {
    /// By name.
    #[n(0)]
    pub devices: Vec<AppDevice>,
    /// Behind this name there may be more.
    #[n(1)]
    pub next: Option<String>,
}

/// A device, as an application sees it.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AppDevice {
    /// The device.
    #[n(0)]
    pub id: DeviceId,
    /// Its name, unique in its tenant.
    #[n(1)]
    pub name: String,
    /// Its type.
    #[n(2)]
    pub kind: String,
    /// Its customer, if it is assigned to one.
    #[n(3)]
    pub customer: Option<CustomerId>,
    /// Its labels.
    #[n(4)]
    pub labels: BTreeMap<String, String>,
    /// Whether a live node claims it.
    #[n(5)]
    pub online: bool,
    /// Where it is; none from a router that cannot say it.
    #[n(6)]
    pub place: Option<Whereabouts>,
    /// How it was last there, where that was asked and is known.
    #[n(7)]
    pub seen: Option<LastSeen>,
}

/// Whom a key is for.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct AppIdentity {
    /// The application.
    #[n(0)]
    pub app: AppId,
    /// The key.
    #[n(1)]
    pub key: KeyId,
    /// The application's tenant.
    #[n(2)]
    pub tenant: TenantId,
    /// Its name, unique in its tenant.
    #[n(3)]
    pub name: String,
    /// What it may do.
    #[n(4)]
    pub role: Role,
    /// When the key ends, in seconds since 1970.
    #[n(5)]
    pub expires_s: u64,
    /// The customers whose devices it reaches; none: all of its tenant.
    #[n(7)]
    pub customers: Option<BTreeSet<CustomerId>>,
    /// Labels that a device must bear for it to be reached.
    #[n(8)]
    #[cbor(default)]
    pub labels: BTreeMap<String, String>,
    /// The networks from which the key is taken; none: from everywhere.
    #[n(6)]
    pub networks: Option<Vec<String>>,
}
