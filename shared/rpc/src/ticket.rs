//! Did an authorizer see this device at that node? A ticket says so: a MAC by a key that nodes do not have.
//!
//! Whoever holds a node's NATS credential can ask in any device's name, but without a ticket he is not heard: a router
//! writes no claim, an authorizer decides no call. Times are seconds since 1970, handed in.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use minicbor::encode::Write;
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use crate::{CredentialHash, DeviceId, NodeId};

/// How long a ticket is good for, in seconds. Renewed at half of it.
pub const TICKET_LASTS_S: u32 = 6 * 3_600;
/// How far the clocks of authorizers and routers may be apart, in seconds.
const CLOCKS_APART_S: u32 = 600;
/// How long a key signs, in seconds. It is good for as long again, hence longer than every ticket of its.
const KEY_SIGNS_S: u64 = 24 * 3_600;
/// How long a new key is only known, in seconds, before it signs: everybody is to have heard of it.
const KEY_SETTLES_S: u64 = 60;
/// Keys that are kept: the one that signs and the one before, and for a minute the next.
const MAX_KEYS: usize = 3;

const MAC_BYTES: usize = 16;
const TICKET_BYTES: usize = 12 + MAC_BYTES;

/// For whom a ticket is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Holder {
    /// The device.
    pub device: DeviceId,
    /// The node where it proved who it is.
    pub node: NodeId,
    /// As which of the node's visits: it is never given twice.
    pub visit: u64,
}

/// The first bytes of a credential's hash: with another token, tickets for the one before are void.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp(u32);

impl Stamp {
    /// Of the hash, as [`CredentialHash`] has it in hexadecimal; zero of what is none.
    pub fn of(credential: &CredentialHash) -> Self {
        let text = credential.as_str().get(..8).unwrap_or_default();
        Stamp(u32::from_str_radix(text, 16).unwrap_or_default())
    }

    /// Of the digest itself.
    pub fn of_digest(digest: &[u8; 32]) -> Self {
        let [a, b, c, d, ..] = *digest;
        Stamp(u32::from_be_bytes([a, b, c, d]))
    }
}

/// An authorizer's word for a visit. Says nothing of itself in logs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    key: u32,
    expires_s: u32,
    stamp: u32,
    mac: [u8; MAC_BYTES],
}

/// Why a ticket does not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TicketError {
    /// Nobody here has heard of its key: it is too old, or too new.
    #[error("its key is unknown")]
    UnknownKey,
    /// Its time is over.
    #[error("its time is over")]
    Expired,
    /// It is for somebody else, or forged.
    #[error("it is not for this visit")]
    Forged,
}

impl TicketError {
    /// The reason's name in records.
    pub const fn as_str(self) -> &'static str {
        match self {
            TicketError::UnknownKey => "unknown_key",
            TicketError::Expired => "expired",
            TicketError::Forged => "forged",
        }
    }
}

impl Ticket {
    /// What it was signed for: the authorizer compares it with the credential that the registry has now.
    pub fn stamp(&self) -> Stamp {
        Stamp(self.stamp)
    }

    fn bytes(&self) -> [u8; TICKET_BYTES] {
        let mut bytes = [0; TICKET_BYTES];
        let (numbers, mac) = bytes.split_at_mut(TICKET_BYTES - MAC_BYTES);
        let parts = [self.key.to_be_bytes(), self.expires_s.to_be_bytes(), self.stamp.to_be_bytes()];
        numbers.copy_from_slice(parts.as_flattened());
        mac.copy_from_slice(&self.mac);
        bytes
    }

    fn from_bytes(bytes: &[u8; TICKET_BYTES]) -> Self {
        let (numbers, mac) = bytes.split_at(12);
        let number = |place: usize| {
            let four = numbers.get(place..place + 4).and_then(|four| four.try_into().ok());
            u32::from_be_bytes(four.unwrap_or_default())
        };
        let mac = mac.try_into().unwrap_or_default();
        Ticket { key: number(0), expires_s: number(4), stamp: number(8), mac }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ticket(…)")
    }
}

impl<C> Encode<C> for Ticket {
    fn encode<W: Write>(&self, to: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
        to.bytes(&self.bytes())?.ok()
    }
}

impl<'b, C> Decode<'b, C> for Ticket {
    fn decode(from: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
        let bytes = from.bytes()?.try_into().map_err(|_| decode::Error::message("a ticket"))?;
        Ok(Ticket::from_bytes(bytes))
    }
}

/// The keys that tickets are signed and checked with. They are in one record that authorizers and routers share.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TicketKeys {
    /// Oldest first.
    keys: Vec<Key>,
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Key {
    id: u32,
    made_s: u64,
    #[serde(serialize_with = "secret_text", deserialize_with = "secret_of_text")]
    secret: [u8; blake3::KEY_LEN],
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| key.id)).finish()
    }
}

impl TicketKeys {
    /// Which they are, oldest first: `1, 2`.
    pub fn ids(&self) -> String {
        self.keys.iter().map(|key| key.id.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// The keys that are to stand in their place, with `secret` as a new one; none while these will do.
    pub fn rotated(&self, secret: [u8; blake3::KEY_LEN], now_s: u64) -> Option<TicketKeys> {
        let newest = self.keys.last();
        if newest.is_some_and(|key| now_s < key.made_s.saturating_add(KEY_SIGNS_S)) {
            return None;
        }
        let id = newest.map_or(1, |key| key.id.wrapping_add(1));
        let kept = self.keys.len().saturating_sub(MAX_KEYS - 1);
        let mut keys: Vec<Key> = self.keys.iter().skip(kept).cloned().collect();
        keys.push(Key { id, made_s: now_s, secret });
        Some(TicketKeys { keys })
    }

    /// A ticket for `holder`, good for [`TICKET_LASTS_S`]. None without a key.
    pub fn sign(&self, holder: Holder, stamp: Stamp, now_s: u64) -> Option<Ticket> {
        let is_settled = |key: &&Key| now_s >= key.made_s.saturating_add(KEY_SETTLES_S);
        let key = self.keys.iter().rev().find(is_settled).or(self.keys.first())?;
        let expires_s = u32::try_from(now_s).unwrap_or(u32::MAX).saturating_add(TICKET_LASTS_S);
        let mac = mac(key, holder, expires_s, stamp);
        Some(Ticket { key: key.id, expires_s, stamp: stamp.0, mac })
    }

    /// Whether `ticket` is for `holder`.
    ///
    /// # Errors
    /// Why not; after [`TicketError::UnknownKey`] its holder may have another from an authorizer.
    pub fn check(&self, ticket: &Ticket, holder: Holder, now_s: u64) -> Result<(), TicketError> {
        let key = self.keys.iter().find(|key| key.id == ticket.key).ok_or(TicketError::UnknownKey)?;
        let expected = mac(key, holder, ticket.expires_s, ticket.stamp());
        // Compared without a hint of where they differ.
        if expected.iter().zip(&ticket.mac).fold(0, |differ, (a, b)| differ | (a ^ b)) != 0 {
            return Err(TicketError::Forged);
        }
        if now_s > u64::from(ticket.expires_s.saturating_add(CLOCKS_APART_S)) {
            return Err(TicketError::Expired);
        }
        Ok(())
    }
}

fn mac(key: &Key, holder: Holder, expires_s: u32, stamp: Stamp) -> [u8; MAC_BYTES] {
    let (device_high, device_low) = holder.device.0.as_u64_pair();
    let times = u64::from(expires_s) << 32 | u64::from(stamp.0);
    let numbers = [device_high, device_low, holder.node.0, holder.visit, times].map(u64::to_be_bytes);
    let hash = blake3::keyed_hash(&key.secret, numbers.as_flattened());
    hash.as_bytes().first_chunk().copied().unwrap_or_default()
}

fn secret_text<S: Serializer>(secret: &[u8; blake3::KEY_LEN], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&BASE64.encode(secret))
}

fn secret_of_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; blake3::KEY_LEN], D::Error> {
    let text = String::deserialize(deserializer)?;
    let bytes = BASE64.decode(text).map_err(de::Error::custom)?;
    bytes.try_into().map_err(|_| de::Error::custom("a key of 32 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const NOW_S: u64 = 1_790_000_000;
    const DAY_S: u64 = 24 * 3_600;

    fn holder() -> Holder {
        Holder { device: DeviceId(Uuid::from_u128(1)), node: NodeId(2), visit: 3 }
    }

    fn keys() -> TicketKeys {
        TicketKeys::default().rotated([1; 32], NOW_S).unwrap()
    }

    #[test]
    fn a_ticket_is_good_for_its_visit_alone_until_its_time_is_over() {
        let keys = keys();
        let ticket = keys.sign(holder(), Stamp(7), NOW_S).unwrap();
        assert_eq!(keys.check(&ticket, holder(), NOW_S), Ok(()));
        for other in [
            Holder { device: DeviceId(Uuid::from_u128(9)), ..holder() },
            Holder { node: NodeId(9), ..holder() },
            Holder { visit: 9, ..holder() },
        ] {
            assert_eq!(keys.check(&ticket, other, NOW_S), Err(TicketError::Forged));
        }
        let end_s = NOW_S + u64::from(TICKET_LASTS_S + CLOCKS_APART_S);
        assert_eq!(keys.check(&ticket, holder(), end_s), Ok(()));
        assert_eq!(keys.check(&ticket, holder(), end_s + 1), Err(TicketError::Expired));
        assert_eq!(format!("{ticket:?} {keys:?}"), "Ticket(…) [1]");
    }

    #[test]
    fn keys_are_rotated_with_overlap_and_no_ticket_outlives_its_key() {
        let mut keys = keys();
        assert_eq!(keys.rotated([2; 32], NOW_S + DAY_S - 1), None);
        for day in 1..5u64 {
            let now_s = NOW_S + day * DAY_S;
            let old = keys.sign(holder(), Stamp(0), now_s).unwrap();
            keys = keys.rotated([day as u8 + 1; 32], now_s).unwrap();
            let still_old = keys.sign(holder(), Stamp(0), now_s + 59).unwrap();
            assert_eq!(still_old.key, old.key, "the new key signs once everybody has heard of it");
            let new = keys.sign(holder(), Stamp(0), now_s + 60).unwrap();
            assert_ne!(new.key, old.key);
            let end_s = now_s + 59 + u64::from(TICKET_LASTS_S);
            for ticket in [old, still_old, new] {
                assert_eq!(keys.check(&ticket, holder(), end_s), Ok(()));
            }
            assert!(keys.keys.len() <= MAX_KEYS);
        }
        let unknown = Ticket { key: 99, ..keys.sign(holder(), Stamp(0), NOW_S).unwrap() };
        assert_eq!(keys.check(&unknown, holder(), NOW_S), Err(TicketError::UnknownKey));
    }

    #[test]
    fn a_stamp_is_of_the_hash_in_either_form() {
        let digest = [0xab; 32];
        assert_eq!(Stamp::of(&CredentialHash::from_digest(digest)), Stamp::of_digest(&digest));
        assert_eq!(Stamp::of(&CredentialHash("é".into())), Stamp(0));
    }

    proptest! {
        #[test]
        fn no_changed_ticket_counts(place in 0usize..TICKET_BYTES, change in 1u8..=255) {
            let keys = keys();
            let mut bytes = keys.sign(holder(), Stamp(7), NOW_S).unwrap().bytes();
            bytes[place] ^= change;
            prop_assert!(keys.check(&Ticket::from_bytes(&bytes), holder(), NOW_S).is_err());
        }

        #[test]
        fn tickets_and_keys_survive_the_wire(secret in any::<[u8; 32]>(), stamp in any::<u32>()) {
            let keys = TicketKeys::default().rotated(secret, NOW_S).unwrap();
            let ticket = keys.sign(holder(), Stamp(stamp), NOW_S).unwrap();
            let message = minicbor::to_vec(ticket).unwrap();
            prop_assert_eq!(minicbor::decode::<Ticket>(&message).unwrap(), ticket);
            prop_assert_eq!(ticket.stamp(), Stamp(stamp));
            let kept = serde_json::to_string(&keys).unwrap();
            prop_assert_eq!(serde_json::from_str::<TicketKeys>(&kept).unwrap(), keys);
        }
    }
}
