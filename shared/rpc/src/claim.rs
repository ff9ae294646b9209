//! Where is a device connected? The record of each callable session, and what nodes and routers say about it.

use std::fmt;
use std::time::Duration;

use minicbor::{Decode, Encode};
use serde::{Deserialize, Serialize};

use crate::{CallId, DeviceId, NodeId, SessionEnd, SessionId, Ticket, Until, closed_list};

/// How long a node waits for one attempt to claim before it makes another: NATS may have handed it to a router that is
/// cut off, and to claim twice is to claim once. A router writes nothing for an attempt that is older: what it asks for
/// may have been taken over meanwhile.
pub const CLAIM_ATTEMPT: Duration = Duration::from_secs(1);

/// How long a removed claim's marker stands in the store: watchers hear of it at once, and a write in that time must
/// expect it.
pub const MARKER_TTL: Duration = Duration::from_secs(3);

/// "This device is reachable through session S on node N." Stored under the device's id, by routers alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The node.
    pub node: NodeId,
    /// The session on that node.
    pub session: SessionId,
    /// How the device is connected.
    pub protocol: Protocol,
    /// Which of two sessions is newer: the higher one. No clock says so.
    #[serde(default)]
    pub generation: Generation,
    /// Since when, in milliseconds since 1970 on the node's clock; none from a node that does not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since_ms: Option<u64>,
}

/// Grows with every session that becomes callable; a session keeps its own for as long as it lives.
#[derive(
    Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Encode, Decode,
)]
#[serde(transparent)]
#[cbor(transparent)]
pub struct Generation(#[n(0)] pub u64);

/// A node asks a router to write a claim (`swb.claim`).
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ClaimRequest {
    /// The device.
    #[n(0)]
    pub device: DeviceId,
    /// The node that asks.
    #[n(1)]
    pub node: NodeId,
    /// The session that is to be called.
    #[n(2)]
    pub session: SessionId,
    /// How the device is connected.
    #[n(3)]
    pub protocol: Protocol,
    /// What the session got when it claimed first; none when it does so now.
    #[n(4)]
    pub generation: Option<Generation>,
    /// When the node has asked again; none from one that hears no router.
    #[n(5)]
    pub until: Option<Until>,
    /// The visit that became callable.
    #[n(6)]
    pub visit: u64,
    /// The authorizer's word for it.
    #[n(7)]
    pub ticket: Ticket,
    /// When the session began to become callable, in milliseconds since 1970 on the node's clock.
    #[n(8)]
    pub since_ms: Option<u64>,
    /// The node has asked for it before: the device may have gone meanwhile, and have become callable elsewhere.
    #[n(9)]
    #[cbor(default)]
    pub is_again: bool,
}

/// The router's answer to a [`ClaimRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ClaimReply {
    /// The claim stands.
    #[n(0)]
    Held {
        /// The session's generation.
        #[n(0)]
        generation: Generation,
        /// What the session spoke that it was written over just now, if another's stood there.
        #[n(1)]
        over: Option<Protocol>,
    },
    /// A newer session's stands: this one is over.
    #[n(1)]
    TakenOver,
    /// The ticket does not count: the node is to ask an authorizer for another.
    #[n(2)]
    Refused,
    /// The store did not take it in time; it may stand nevertheless.
    #[n(3)]
    Unavailable,
}

/// A session is no longer callable (`swb.release`). Nobody answers: what is lost is found by comparing.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct ReleaseRequest {
    /// The device.
    #[n(0)]
    pub device: DeviceId,
    /// The session's node.
    #[n(1)]
    pub node: NodeId,
    /// The session.
    #[n(2)]
    pub session: SessionId,
    /// Why it ended; none where that is not known any more.
    #[n(3)]
    pub reason: Option<SessionEnd>,
}

/// How many claims a node holds, and a sum of them that depends on no order: two who hold the same have the same.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Tally {
    /// How many.
    #[n(0)]
    pub claims: u64,
    #[n(1)]
    sum: u64,
}

impl Tally {
    /// One more.
    pub fn add(&mut self, device: DeviceId, session: SessionId, generation: Generation) {
        self.claims = self.claims.wrapping_add(1);
        self.sum = self.sum.wrapping_add(mixed(device, session, generation));
    }

    /// One less, which was added before.
    pub fn remove(&mut self, device: DeviceId, session: SessionId, generation: Generation) {
        self.claims = self.claims.wrapping_sub(1);
        self.sum = self.sum.wrapping_sub(mixed(device, session, generation));
    }
}

fn mixed(device: DeviceId, session: SessionId, generation: Generation) -> u64 {
    // splitmix64's finaliser over each part: what differs in one bit differs in half of the sum's.
    let mix = |number: u64| {
        let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        number ^ (number >> 31)
    };
    let (high, low) = device.0.as_u64_pair();
    mix(mix(mix(mix(high) ^ low) ^ session.0) ^ generation.0)
}

/// A node is alive, and holds so many claims (`swb.lease`); for every router, and answered by none.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct LeaseRenewal {
    /// The node.
    #[n(0)]
    pub node: NodeId,
    /// Its claims. A router that knows others says so (`swb.event.claims.<node>`).
    #[n(1)]
    pub tally: Tally,
    /// The highest generation that it has heard of: routers give higher ones, also when the store has lost its memory.
    #[n(2)]
    pub newest: Generation,
    /// It leaves: its lease ends with this.
    #[n(3)]
    pub ends: bool,
    /// It is still about to claim again what a router was found to lack. None: an older node, which does not say.
    #[n(4)]
    pub mends: Option<bool>,
    /// It sends sessions away: whose claim goes now is expected at another node.
    #[n(5)]
    #[cbor(default)]
    pub sheds: bool,
}

/// A claim as a node holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct HeldClaim {
    /// The device.
    #[n(0)]
    pub device: DeviceId,
    /// The session.
    #[n(1)]
    pub session: SessionId,
    /// The session's generation.
    #[n(2)]
    pub generation: Generation,
}

/// A node that was told of a difference asks which (`swb.compare`): one part of all its claims at a time.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct CompareRequest {
    /// The node.
    #[n(0)]
    pub node: NodeId,
    /// Which part: the devices that [`part_of`] puts there.
    #[n(1)]
    pub part: u32,
    /// Of how many.
    #[n(2)]
    pub parts: u32,
    /// What the node holds of that part.
    #[n(3)]
    pub held: Vec<HeldClaim>,
}

/// The router's answer to a [`CompareRequest`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Encode, Decode)]
pub struct CompareReply {
    /// What the node holds and the router does not know so: to be claimed again.
    #[n(0)]
    pub lacking: Vec<DeviceId>,
    /// What the router knows and the node did not name: to be released, unless the session has become callable since.
    #[n(1)]
    pub foreign: Vec<HeldClaim>,
}

/// In which of `parts` parts a device is compared.
pub fn part_of(device: DeviceId, parts: u32) -> u32 {
    u32::try_from(mixed(device, SessionId(0), Generation(0)) % u64::from(parts.max(1))).unwrap_or_default()
}

/// The caller is gone: a call that waits for its target need not any more (`swb.cancel`); for every router.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct CancelRequest {
    /// The call.
    #[n(0)]
    pub call: CallId,
    /// Its target, under which it waits.
    #[n(1)]
    pub target: DeviceId,
}

closed_list! {
    /// How a device reaches us.
    #[derive(Serialize, Deserialize, Encode, Decode)]
    #[serde(rename_all = "snake_case")]
    #[cbor(index_only)]
    pub enum Protocol {
        /// MQTT 3.1.1 or 5.
        #[n(0)]
        Mqtt = "mqtt",
        /// HTTP long poll.
        #[n(1)]
        Http = "http",
        /// CoAP observe.
        #[n(2)]
        Coap = "coap",
    }
}

impl Protocol {
    /// Whether a session that takes over from one of the `other` may belong to a client that will be back in its turn:
    /// connections come back when they are closed; polls and observations go where their device likes.
    pub fn fights(self, other: Protocol) -> bool {
        [self, other] == [Protocol::Mqtt; 2]
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    proptest! {
        #[test]
        fn tallies_agree_where_the_claims_do(
            claims in proptest::collection::vec((0u128..9, 0u64..4, 0u64..4), 1..20),
            gone in 0usize..20,
        ) {
            let add = |tally: &mut Tally, (device, session, generation): &(u128, u64, u64)| {
                tally.add(DeviceId(Uuid::from_u128(*device)), SessionId(*session), Generation(*generation));
            };
            let (mut one, mut other) = (Tally::default(), Tally::default());
            claims.iter().for_each(|claim| add(&mut one, claim));
            claims.iter().rev().for_each(|claim| add(&mut other, claim));
            prop_assert_eq!(one, other);
            let (device, session, generation) = claims[gone % claims.len()];
            one.remove(DeviceId(Uuid::from_u128(device)), SessionId(session), Generation(generation));
            one.add(DeviceId(Uuid::from_u128(device)), SessionId(session), Generation(generation + 4));
            prop_assert_ne!(one, other, "as many, and not the same");
        }

        #[test]
        fn every_device_has_its_part(device in any::<u128>(), parts in 0u32..100) {
            prop_assert!(part_of(DeviceId(Uuid::from_u128(device)), parts) < parts.max(1));
        }
    }
}
