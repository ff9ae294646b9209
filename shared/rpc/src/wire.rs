//! How does a message look on the wire? A JSON head on one line, and behind it the body, untouched.
//!
//! JSON text never holds a raw line feed inside a string, and serde_json writes none between tokens, so the first
//! `\n` ends the head. The body is a device's own bytes: no hop parses it, so it reaches the other end byte for byte.
//! Unknown fields of a head are ignored: old and new copies meet during a rolling upgrade.

use bytes::{BufMut, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
#[error("not a message of this kind: {0}")]
pub struct DecodeError(#[from] serde_json::Error);

/// A message of `head` and `body` (empty where the head needs none).
///
/// # Errors
/// Only if `head` cannot be JSON, which no type of this crate is.
pub fn encode(head: &impl Serialize, body: &[u8]) -> Result<Bytes, serde_json::Error> {
    // 320 bytes hold the heads of this crate without a second allocation.
    let mut message = BytesMut::with_capacity(320 + body.len()).writer();
    serde_json::to_writer(&mut message, head)?;
    let mut message = message.into_inner();
    if !body.is_empty() {
        message.put_u8(b'\n');
        message.put_slice(body);
    }
    Ok(message.freeze())
}

/// The head of a message, and its body (empty when there is none), which shares the message's memory.
///
/// # Errors
/// When the first line is not JSON of the head's type.
pub fn decode<H: DeserializeOwned>(message: &Bytes) -> Result<(H, Bytes), DecodeError> {
    let end = memchr::memchr(b'\n', message);
    let (head, body) = match end {
        Some(end) => (message.slice(..end), message.slice(end + 1..)),
        None => (message.clone(), Bytes::new()),
    };
    Ok((serde_json::from_slice(&head)?, body))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Budget, Call, CallId, DeviceId, NodeId, Outcome, Routed};
    use proptest::prelude::*;
    use uuid::Uuid;

    fn call(traceparent: Option<String>) -> Call {
        Call {
            call: CallId { node: NodeId(1), serial: 2 },
            caller: DeviceId(Uuid::from_u128(3)),
            caller_name: String::new(),
            visit: 0,
            ticket: None,
            target: DeviceId(Uuid::from_u128(4)),
            budget_ms: Budget::from_ms(5),
            until: None,
            connect_budget_ms: Budget::from_ms(0),
            protocol: None,
            oneway: false,
            traceparent,
        }
    }

    #[test]
    fn unknown_fields_are_ignored() {
        let text = br#"{"call":"0000000000000001-2","caller":"00000000-0000-0000-0000-000000000003",
            "target":"00000000-0000-0000-0000-000000000004","budget_ms":5,"connect_budget_ms":0,"new":[1]}"#;
        let line: Vec<u8> = text.iter().copied().filter(|&byte| byte != b'\n').collect();
        let (head, body) = decode::<Call>(&line.into()).unwrap();
        assert_eq!((head, body.len()), (call(None), 0));
    }

    proptest! {
        #[test]
        fn heads_and_bodies_survive(body in proptest::collection::vec(any::<u8>(), 0..300), trace in ".*") {
            let routed = Routed { call: call(Some(trace)), verdict_ms: None, reply_to: "swb.reply.1.2".into() };
            let message = encode(&routed, &body).unwrap();
            let (head, rest) = decode::<Routed>(&message).unwrap();
            prop_assert_eq!(head, routed);
            prop_assert_eq!(rest, body);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let bytes = Bytes::from(bytes);
            let _ = decode::<Call>(&bytes);
            let _ = decode::<Outcome>(&bytes);
        }
    }
}
