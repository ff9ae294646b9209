//! What is read of a message that is too large? Over 3.1.1, which cannot be told a limit: enough to acknowledge it.

use std::num::NonZeroU16;

use bytes::{Buf, BytesMut};

use super::reader::Head;
use super::{Fault, Packet, QoS};

/// How much of its topic is kept, in bytes: for the log.
const MAX_TOPIC_BYTES: usize = 256;

/// A PUBLISH that is being read past: its payload is never kept.
#[derive(Debug)]
pub(super) struct Oversized {
    qos: QoS,
    /// Of the body.
    read_bytes: usize,
    body_bytes: usize,
    topic_bytes: usize,
    topic: Vec<u8>,
    packet_id: u16,
}

impl Oversized {
    /// Begins to read past the packet of this head, which has been taken. None when it is no PUBLISH.
    pub(super) fn begin(head: Head) -> Option<Self> {
        let qos = QoS::try_from(head.first >> 1 & 3).ok().filter(|_| head.first >> 4 == 3)?;
        let Head { body_bytes, .. } = head;
        Some(Oversized { qos, read_bytes: 0, body_bytes, topic_bytes: 0, topic: Vec::new(), packet_id: 0 })
    }

    /// Takes what has come of it. The packet once all has.
    pub(super) fn read(&mut self, inbound: &mut BytesMut) -> Result<Option<Packet>, Fault> {
        let part = inbound.len().min(self.body_bytes - self.read_bytes);
        for (at, &byte) in (self.read_bytes..).zip(inbound.iter().take(part)) {
            let id_at = self.topic_bytes + 2;
            match at {
                0 | 1 => self.topic_bytes = self.topic_bytes << 8 | usize::from(byte),
                at if at < id_at && self.topic.len() < MAX_TOPIC_BYTES => self.topic.push(byte),
                at if at < id_at => {}
                at if at < id_at + 2 => self.packet_id = self.packet_id << 8 | u16::from(byte),
                _ => break,
            }
        }
        inbound.advance(part);
        self.read_bytes += part;
        if self.read_bytes < self.body_bytes {
            return Ok(None);
        }
        let packet_id = NonZeroU16::new(self.packet_id);
        let header_bytes = 2 + self.topic_bytes + if self.qos == QoS::AtMostOnce { 0 } else { 2 };
        if header_bytes > self.body_bytes || (self.qos != QoS::AtMostOnce && packet_id.is_none()) {
            return Err(Fault::malformed("the packet is cut short"));
        }
        let topic = String::from_utf8_lossy(&self.topic).into_owned().into();
        let packet_id = packet_id.filter(|_| self.qos != QoS::AtMostOnce);
        Ok(Some(Packet::TooLarge { topic, qos: self.qos, packet_id }))
    }
}
