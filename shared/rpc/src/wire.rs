//! How does a message look on the wire? A head in CBOR (RFC 8949), and behind it the body, untouched.
//!
//! A head says itself where it ends. The body is a device's own bytes: no hop parses it, so it reaches the other end
//! byte for byte. A head's fields go by their numbers: what a copy does not know of is skipped, what is not there is
//! none, for old and new copies meet during a rolling upgrade. So a field's number is never given to another, and what
//! comes new is an `Option`, or a `bool` with `#[cbor(default)]`.

use bytes::Bytes;
use minicbor::encode::Write;
use minicbor::{Decode, Decoder, Encode, Encoder};

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
#[error("not a message of this kind: {0}")]
pub struct DecodeError(#[from] minicbor::decode::Error);

/// What a message may begin with.
pub trait Head: Encode<()> + for<'b> Decode<'b, ()> {}

impl<H: Encode<()> + for<'b> Decode<'b, ()>> Head for H {}

/// A message of `head` and `body` (empty where the head needs none).
pub fn encode(head: &impl Head, body: &[u8]) -> Bytes {
    // 256 bytes hold the heads of this crate without a second allocation.
    let mut message = Growing(Vec::with_capacity(256 + body.len()));
    // Memory takes everything, and no head of this crate refuses to be written.
    let _ = Encoder::new(&mut message).encode(head);
    message.0.extend_from_slice(body);
    message.0.into()
}

/// The head of a message, and its body (empty when there is none), which shares the message's memory.
///
/// # Errors
/// When the message does not begin with a head of this type.
pub fn decode<H: Head>(message: &Bytes) -> Result<(H, Bytes), DecodeError> {
    let mut decoder = Decoder::new(message);
    let head = decoder.decode()?;
    Ok((head, message.slice(decoder.position()..)))
}

struct Growing(Vec<u8>);

impl Write for Growing {
    type Error = std::convert::Infallible;

    // A head is a hundred pieces of a byte or two: each is a store, and not a call.
    #[inline(always)]
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), Self::Error> {
        self.0.extend_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Budget, Call, CallId, DeviceId, NodeId, Outcome, Routed, Until};
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
            app: None,
        }
    }

    #[test]
    fn fields_that_a_copy_does_not_know_of_are_skipped() {
        let known = encode(&call(None), b"");
        // An array of eleven: the two behind it are none. Then one of fourteen, with a text for the last.
        assert_eq!(known[0], 0x8b);
        let longer = [&[0x8e], &known[1..], &[0xf6, 0xf6, 0x63, b'n', b'e', b'w'], b"{}"].concat();
        assert_eq!(decode::<Call>(&longer.into()).unwrap(), (call(None), Bytes::from_static(b"{}")));
    }

    #[test]
    fn a_head_is_short() {
        let whole = Call {
            caller_name: "Test Device A1".into(),
            until: Some(Until { of: NodeId(7 << 60), beat: 123_456, ms: 5_400, asked_us: Some(999_999) }),
            ..call(None)
        };
        assert!(encode(&whole, b"").len() < 120);
    }

    proptest! {
        #[test]
        fn heads_and_bodies_survive(body in proptest::collection::vec(any::<u8>(), 0..300), trace in ".*") {
            let reply_to = "swb.reply.1.2".into();
            let routed = Routed { call: call(Some(trace)), verdict_ms: None, party: None, reply_to };
            let message = encode(&routed, &body);
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
