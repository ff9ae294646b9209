//! By what does a node show that its id is its own? The id follows from a key that the node drew, and nobody else has.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

use crate::{NodeId, ParseIdError};

const KEY_BYTES: usize = 32;
/// So that the id says nothing of the key's hash elsewhere.
const CONTEXT: &str = "switchboard 2026 node id";

/// Random bits, drawn at a process' start. Says nothing of itself in logs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NodeKey([u8; KEY_BYTES]);

impl NodeKey {
    /// Of two random UUIDs, hence of 244 bits that nobody can guess.
    pub fn of(one: Uuid, other: Uuid) -> Self {
        let mut key = [0; KEY_BYTES];
        let halves = one.as_bytes().iter().chain(other.as_bytes());
        key.iter_mut().zip(halves).for_each(|(byte, random)| *byte = *random);
        NodeKey(key)
    }

    /// The id: who wants that of a node he has no key of needs 2⁶⁴ attempts.
    pub fn id(&self) -> NodeId {
        let hash = blake3::derive_key(CONTEXT, &self.0);
        NodeId(hash.into_iter().take(8).fold(0, |id, byte| id << 8 | u64::from(byte)))
    }

    /// As it is shown to NATS: 64 hexadecimal digits.
    pub fn expose(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

impl FromStr for NodeKey {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = ParseIdError { kind: "node key", expected: "64 hexadecimal digits" };
        let (digits, []) = text.as_bytes().as_chunks::<2>() else { return Err(error) };
        let mut key = [0; KEY_BYTES];
        if digits.len() != KEY_BYTES {
            return Err(error);
        }
        for (byte, digits) in key.iter_mut().zip(digits) {
            let value = |digit: u8| char::from(digit).to_digit(16).map(|value| value as u8);
            let [high, low] = digits.map(value);
            *byte = high.zip(low).map(|(high, low)| high << 4 | low).ok_or(error.clone())?;
        }
        Ok(NodeKey(key))
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey(of {})", self.id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_survives_its_text_and_no_other_has_its_id(bytes in any::<[u8; 32]>(), bit in 0..256_usize) {
            let key = NodeKey(bytes);
            prop_assert_eq!(key.expose().parse::<NodeKey>().unwrap(), key);
            let mut other = bytes;
            other[bit / 8] ^= 1 << (bit % 8);
            prop_assert_ne!(NodeKey(other).id(), key.id());
            let shown = format!("{key:?}");
            prop_assert!(!shown.contains(&key.expose()[..16]));
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<NodeKey>();
        }
    }
}
