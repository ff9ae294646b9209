//! How are MQTT's data types read? Integers, texts, binary data and properties (MQTT 5 §1.5, §2.1, §2.2.2).

use bytes::{Buf, Bytes, BytesMut};
use bytestring::ByteString;

use super::Fault;

/// The fixed header of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    /// Type and flags.
    pub(super) first: u8,
    /// Its own length.
    pub(super) head_bytes: usize,
    /// The remaining length: at most 268,435,455.
    pub(super) body_bytes: usize,
}

impl Head {
    /// The head at the front of `inbound`, if all of it is there (§2.1.4).
    pub(super) fn parse(inbound: &[u8]) -> Result<Option<Head>, Fault> {
        let Some((&first, rest)) = inbound.split_first() else { return Ok(None) };
        let mut body_bytes = 0;
        for (index, &byte) in rest.iter().take(4).enumerate() {
            body_bytes |= usize::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                return Ok(Some(Head { first, head_bytes: index + 2, body_bytes }));
            }
        }
        if rest.len() >= 4 { Err(Fault::malformed("the remaining length has five bytes")) } else { Ok(None) }
    }

    /// The whole packet's length.
    pub(super) fn packet_bytes(self) -> usize {
        self.head_bytes + self.body_bytes
    }

    /// Takes the body out of `inbound`, if all of it is there.
    pub(super) fn take_body(self, inbound: &mut BytesMut) -> Option<Reader> {
        if inbound.len() < self.packet_bytes() {
            return None;
        }
        inbound.advance(self.head_bytes);
        Some(Reader { rest: inbound.split_to(self.body_bytes).freeze() })
    }
}

/// What is left of a packet's body.
#[derive(Debug)]
pub(super) struct Reader {
    rest: Bytes,
}

impl Reader {
    pub(super) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub(super) fn u8(&mut self) -> Result<u8, Fault> {
        self.rest.try_get_u8().map_err(|_| CUT_SHORT)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Fault> {
        self.rest.try_get_u16().map_err(|_| CUT_SHORT)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        self.rest.try_get_u32().map_err(|_| CUT_SHORT)
    }

    /// 0 or 1, as a property has it.
    pub(super) fn flag(&mut self) -> Result<bool, Fault> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Fault::protocol("a property that is 0 or 1 is neither")),
        }
    }

    /// §1.5.5: one to four bytes.
    pub(super) fn variable(&mut self) -> Result<usize, Fault> {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.u8()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(Fault::malformed("a length has five bytes"))
    }

    /// Binary data (§1.5.6).
    pub(super) fn binary(&mut self) -> Result<Bytes, Fault> {
        let bytes = usize::from(self.u16()?);
        self.take(bytes)
    }

    /// A text in UTF-8 without U+0000 (§1.5.4).
    pub(super) fn text(&mut self) -> Result<ByteString, Fault> {
        let text =
            ByteString::try_from(self.binary()?).map_err(|_| Fault::malformed("a text is not UTF-8"))?;
        if text.contains('\0') { Err(Fault::malformed("a text holds U+0000")) } else { Ok(text) }
    }

    /// Everything that is left.
    pub(super) fn remaining(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    /// Hands each property to `each`, which reads its value, or says that it is none of this packet's. Nothing but a
    /// user property comes twice (§2.2.2.2).
    pub(super) fn properties(
        &mut self,
        mut each: impl FnMut(u8, &mut Reader) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        let bytes = self.variable()?;
        let mut properties = Reader { rest: self.take(bytes)? };
        let mut seen = 0u64;
        while !properties.is_empty() {
            // Every identifier that there is takes one byte.
            let id = properties.u8()?;
            let bit = 1u64.checked_shl(u32::from(id)).unwrap_or(0);
            if seen & bit != 0 && id != property::USER {
                return Err(Fault::protocol("a property comes twice"));
            }
            seen |= bit;
            if !each(id, &mut properties)? {
                return Err(Fault::malformed("a property does not belong to this packet"));
            }
        }
        Ok(())
    }

    /// Reads over properties that say nothing to a server: a reason string and user properties.
    pub(super) fn diagnostics(&mut self) -> Result<(), Fault> {
        self.properties(|id, value| match id {
            property::REASON_STRING => value.text().map(|_| true),
            property::USER => value.pair().map(|_| true),
            _ => Ok(false),
        })
    }

    /// A user property (§1.5.7).
    pub(super) fn pair(&mut self) -> Result<(ByteString, ByteString), Fault> {
        Ok((self.text()?, self.text()?))
    }

    fn take(&mut self, bytes: usize) -> Result<Bytes, Fault> {
        if bytes > self.rest.len() { Err(CUT_SHORT) } else { Ok(self.rest.split_to(bytes)) }
    }
}

const CUT_SHORT: Fault = Fault::malformed("the packet is cut short");

/// Identifiers of properties (§2.2.2.2), as far as a client may send them.
pub(super) mod property {
    pub(in super::super) const PAYLOAD_FORMAT: u8 = 0x01;
    pub(in super::super) const MESSAGE_EXPIRY: u8 = 0x02;
    pub(in super::super) const CONTENT_TYPE: u8 = 0x03;
    pub(in super::super) const RESPONSE_TOPIC: u8 = 0x08;
    pub(in super::super) const CORRELATION_DATA: u8 = 0x09;
    pub(in super::super) const SUBSCRIPTION_ID: u8 = 0x0B;
    pub(in super::super) const SESSION_EXPIRY: u8 = 0x11;
    pub(in super::super) const AUTHENTICATION_METHOD: u8 = 0x15;
    pub(in super::super) const AUTHENTICATION_DATA: u8 = 0x16;
    pub(in super::super) const REQUEST_PROBLEMS: u8 = 0x17;
    pub(in super::super) const WILL_DELAY: u8 = 0x18;
    pub(in super::super) const REQUEST_RESPONSES: u8 = 0x19;
    pub(in super::super) const REASON_STRING: u8 = 0x1F;
    pub(in super::super) const RECEIVE_MAXIMUM: u8 = 0x21;
    pub(in super::super) const TOPIC_ALIAS_MAXIMUM: u8 = 0x22;
    pub(in super::super) const TOPIC_ALIAS: u8 = 0x23;
    pub(in super::super) const USER: u8 = 0x26;
    pub(in super::super) const MAXIMUM_PACKET_SIZE: u8 = 0x27;
}
