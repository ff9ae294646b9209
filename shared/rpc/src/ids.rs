//! Who and what is meant? One type for each kind of id, so that they cannot be confused.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use minicbor::encode::Write;
use minicbor::{Decode, Decoder, Encode, Encoder, decode, encode};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be {expected}")]
pub struct ParseIdError {
    pub(crate) kind: &'static str,
    pub(crate) expected: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.as_hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl<C> Encode<C> for $name {
            fn encode<W: Write>(&self, to: &mut Encoder<W>, _: &mut C) -> Result<(), encode::Error<W::Error>> {
                to.bytes(self.0.as_bytes())?.ok()
            }
        }

        impl<'b, C> Decode<'b, C> for $name {
            fn decode(from: &mut Decoder<'b>, _: &mut C) -> Result<Self, decode::Error> {
                let bytes = from.bytes()?;
                Uuid::from_slice(bytes).map($name).map_err(|_| decode::Error::message($kind))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                // Hyphenated only: the parser alone would also take braces, URNs and bare hex.
                match Uuid::try_parse(text) {
                    Ok(uuid) if text.len() == 36 => Ok($name(uuid)),
                    _ => Err(ParseIdError { kind: $kind, expected: "a UUID" }),
                }
            }
        }
    };
}

uuid_id!(
    /// A device, as the registry knows it.
    DeviceId, "device id"
);
uuid_id!(
    /// A tenant: it owns customers and devices.
    TenantId, "tenant id"
);
uuid_id!(
    /// A customer of a tenant: devices assigned to it may call each other.
    CustomerId, "customer id"
);

uuid_id!(
    /// An application: a program of a tenant's that calls devices.
    AppId, "application id"
);

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
        #[cbor(transparent)]
        pub struct $name(#[n(0)] pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(hex_text(&hex_digits(self.0)))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let error = ParseIdError { kind: $kind, expected: "16 hexadecimal digits" };
                if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                    return Err(error);
                }
                u64::from_str_radix(text, 16).map($name).map_err(|_| error)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(hex_text(&hex_digits(self.0)))
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Text::new($kind))
            }
        }
    };
}

const HEX_DIGITS: usize = 16;

/// A node's id is written into the subjects of each call: without the formatter.
pub(crate) fn hex_digits(number: u64) -> [u8; HEX_DIGITS] {
    let mut left = number;
    let mut digits = [b'0'; HEX_DIGITS];
    for digit in digits.iter_mut().rev() {
        *digit = match (left & 0xf) as u8 {
            value @ 0..10 => b'0' + value,
            value => b'a' + (value - 10),
        };
        left >>= 4;
    }
    digits
}

pub(crate) fn hex_text(digits: &[u8]) -> &str {
    // Digits are ASCII.
    std::str::from_utf8(digits).unwrap_or_default()
}

/// Reads a type out of JSON text by its `FromStr`.
struct Text<T> {
    pub(crate) kind: &'static str,
    parsed: PhantomData<T>,
}

impl<T> Text<T> {
    fn new(kind: &'static str) -> Self {
        Text { kind, parsed: PhantomData }
    }
}

impl<T: FromStr<Err = ParseIdError>> de::Visitor<'_> for Text<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        text.parse().map_err(E::custom)
    }
}

hex_id!(
    /// One of an application's keys. Says nothing of its secret.
    KeyId, "key id"
);
hex_id!(
    /// One running ingress process. Chosen at random for each start, so a restarted node is a new one.
    NodeId, "node id"
);
/// The bits of a node's [tag](NodeId::tag).
pub const NODE_TAG_BITS: u32 = 14;

impl NodeId {
    /// What the numbers of a node's calls have in common: short enough for them, and nearly always its own.
    pub fn tag(self) -> u16 {
        (self.0 >> (u64::BITS - NODE_TAG_BITS)) as u16
    }
}

hex_id!(
    /// One session on a node. Unique on that node for as long as it runs.
    SessionId, "session id"
);

/// One call, from the caller's request to its outcome: the field `call` of every hop's log lines.
///
/// Made of the caller's node and that node's running number, so that it is unique without randomness.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Encode, Decode)]
pub struct CallId {
    /// The caller's node.
    #[n(0)]
    pub node: NodeId,
    /// That node's running number.
    #[n(1)]
    pub serial: u64,
}

impl CallId {
    const MAX_BYTES: usize = 2 * HEX_DIGITS + 1;

    fn text<'a>(&self, room: &'a mut [u8; Self::MAX_BYTES]) -> &'a str {
        let serial = hex_digits(self.serial);
        let zeros = (self.serial.leading_zeros() / 4).min(HEX_DIGITS as u32 - 1) as usize;
        let (node, rest) = room.split_at_mut(HEX_DIGITS);
        node.copy_from_slice(&hex_digits(self.node.0));
        let mut written = HEX_DIGITS;
        for (place, byte) in rest.iter_mut().zip(std::iter::once(&b'-').chain(serial.iter().skip(zeros))) {
            *place = *byte;
            written += 1;
        }
        hex_text(room.get(..written).unwrap_or_default())
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text(&mut [0; CallId::MAX_BYTES]))
    }
}

impl FromStr for CallId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, ParseIdError> {
        let error = ParseIdError { kind: "call id", expected: "a node id, '-' and a hexadecimal number" };
        let (node, serial) = text.split_once('-').ok_or(error.clone())?;
        let serial = u64::from_str_radix(serial, 16).map_err(|_| error)?;
        Ok(CallId { node: node.parse()?, serial })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_hyphenated_uuids_are_device_ids() {
        let id = "aa435e80-9fce-11e6-8080-808080808080";
        assert_eq!(id.parse::<DeviceId>().unwrap().to_string(), id);
        assert_eq!(id.to_uppercase().parse::<DeviceId>().unwrap().to_string(), id);
        for text in
            ["", "aa435e80", "{aa435e80-9fce-11e6-8080-808080808080}", "aa435e809fce11e68080808080808080"]
        {
            assert_eq!(text.parse::<DeviceId>().unwrap_err().to_string(), "device id must be a UUID");
        }
    }

    proptest! {
        #[test]
        fn ids_survive_their_text(node in any::<u64>(), serial in any::<u64>()) {
            let call = CallId { node: NodeId(node), serial };
            prop_assert_eq!(call.to_string(), format!("{node:016x}-{serial:x}"));
            prop_assert_eq!(call.to_string().parse::<CallId>().unwrap(), call);
            let message = minicbor::to_vec(call).unwrap();
            prop_assert_eq!(minicbor::decode::<CallId>(&message).unwrap(), call);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<CallId>();
            let _ = text.parse::<NodeId>();
            let _ = text.parse::<DeviceId>();
        }
    }
}
