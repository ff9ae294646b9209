//! Who and what is meant? One type for each kind of id, so that they cannot be confused.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use uuid::Uuid;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be {expected}")]
pub struct ParseIdError {
    kind: &'static str,
    expected: &'static str,
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

macro_rules! hex_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
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
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(de::Error::custom)
            }
        }
    };
}

hex_id!(
    /// One running ingress process. Chosen at random for each start, so a restarted node is a new one.
    NodeId, "node id"
);
hex_id!(
    /// One session on a node. Unique on that node for as long as it runs.
    SessionId, "session id"
);

/// One call, from the caller's request to its outcome: the field `call` of every hop's log lines.
///
/// Made of the caller's node and that node's running number, so that it is unique without randomness.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct CallId {
    /// The caller's node.
    pub node: NodeId,
    /// That node's running number.
    pub serial: u64,
}

impl fmt::Display for CallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{:x}", self.node, self.serial)
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

impl Serialize for CallId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for CallId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
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
            prop_assert_eq!(call.to_string().parse::<CallId>().unwrap(), call);
            let json = serde_json::to_string(&call).unwrap();
            prop_assert_eq!(serde_json::from_str::<CallId>(&json).unwrap(), call);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<CallId>();
            let _ = text.parse::<NodeId>();
            let _ = text.parse::<DeviceId>();
        }
    }
}
