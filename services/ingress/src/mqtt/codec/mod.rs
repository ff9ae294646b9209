//! Which packets go over a connection? The seam between bytes and the session.
//!
//! 3.1.1 and 5 come out as one [`Packet`], and what the server says goes in as one method for each packet, so that
//! the session knows the versions' differences only where they show. Section numbers are those of MQTT 5. What is read
//! is checked here to the letter; what is written is framed by rmqtt-codec.

use std::num::NonZeroU16;

use bytes::{Buf, Bytes, BytesMut};
use bytestring::ByteString;
use rmqtt_codec::types::Publish as WirePublish;
use rmqtt_codec::{v3, v5};
use tokio_util::codec::Encoder;

mod decode;
mod opening;
mod oversized;
mod reader;
#[cfg(test)]
mod tests;

pub use opening::{Opening, open};
pub use rmqtt_codec::types::QoS;
pub use rmqtt_codec::v5::DisconnectReasonCode as Reason;
pub use rmqtt_codec::v5::{ConnectAck, ConnectAckReason, PublishAckReason, SubscribeAckReason};

use oversized::Oversized;
use reader::Head;

/// Which of the two a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1 (and 3.1, which differs in the name alone).
    V3,
    /// MQTT 5.
    V5,
}

/// What a client may send, once connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// A message. Boxed: it is much larger than the rest.
    Publish(Box<Publish>),
    /// A message over the limit that was read past (3.1.1; a v5 client is told by closing).
    TooLarge {
        /// Its topic, as far as it is kept for the log.
        topic: ByteString,
        /// Its quality of service.
        qos: QoS,
        /// Set at QoS 1 and 2: to be acknowledged.
        packet_id: Option<NonZeroU16>,
    },
    /// Our message `packet_id` arrived.
    PubAck {
        /// The message.
        packet_id: NonZeroU16,
    },
    /// The client lets go of its QoS 2 message `packet_id` (3.1.1).
    PubRel {
        /// The message.
        packet_id: NonZeroU16,
    },
    /// Filters to be added.
    Subscribe {
        /// To be acknowledged.
        packet_id: NonZeroU16,
        /// The filters, each valid, with the quality of service asked for.
        filters: Vec<(ByteString, QoS)>,
    },
    /// Filters to be removed.
    Unsubscribe {
        /// To be acknowledged.
        packet_id: NonZeroU16,
        /// The filters.
        filters: Vec<ByteString>,
    },
    /// Are you there?
    PingReq,
    /// The client is leaving.
    Disconnect {
        /// Its will is to be handed up all the same (v5 §3.14.2.1).
        keeps_will: bool,
    },
}

/// What CONNECT says, as far as a server without sessions cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connect {
    /// Which version the client speaks.
    pub version: Version,
    /// The access token.
    pub username: Option<ByteString>,
    /// Empty when the server is to assign one.
    pub client_id: ByteString,
    /// Seconds; 0 means none.
    pub keep_alive_s: u16,
    /// The client wants its session kept (v5: a Session Expiry Interval above 0).
    pub wants_session: bool,
    /// How many unacknowledged messages the client takes (v5 §3.1.2.11.3).
    pub receive_maximum: u16,
    /// The largest packet that the client takes, in bytes (v5 §3.1.2.11.4).
    pub max_packet_bytes: Option<u32>,
    /// The client asks for an authentication method that is not ours (v5 §3.1.2.11.9).
    pub auth_method: bool,
    /// The client wants to hear why (v5 §3.1.2.11.7).
    pub tells_problems: bool,
    /// What is to be said when the connection ends without DISCONNECT.
    pub will: Option<Will>,
}

/// A client's last words (§3.1.2.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Will {
    /// Where to.
    pub topic: ByteString,
    /// The message.
    pub payload: Bytes,
    /// How it would be published.
    pub qos: QoS,
    /// It would be retained.
    pub retain: bool,
    /// How long it waits, in seconds, as far as the session lives (v5 §3.1.3.2.2).
    pub delay_s: u32,
}

/// A message from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Where to. Empty when `topic_alias` stands for it.
    pub topic: ByteString,
    /// 0 or 1; over 3.1.1 2 as well.
    pub qos: QoS,
    /// The client says that it sends this again.
    pub dup: bool,
    /// Set at QoS 1 and 2.
    pub packet_id: Option<NonZeroU16>,
    /// The message.
    pub payload: Bytes,
    /// What MQTT 5 adds; all empty for 3.1.1.
    pub properties: PublishProperties,
}

/// The properties of a PUBLISH that mean something here (v5 §3.3.2.3).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PublishProperties {
    /// Stands for a topic.
    pub topic_alias: Option<NonZeroU16>,
    /// Where the answer is wanted.
    pub response_topic: Option<ByteString>,
    /// Comes back with the answer.
    pub correlation: Option<Bytes>,
    /// How long the message is worth something, in seconds.
    pub expiry_s: Option<u32>,
    /// W3C trace context.
    pub traceparent: Option<ByteString>,
    /// Further user properties that the node writes. Never read: a client's own of these names mean nothing.
    pub stamp: Vec<(&'static str, ByteString)>,
}

impl PublishProperties {
    /// How much memory they hold beside themselves.
    pub fn bytes(&self) -> usize {
        let texts = self.response_topic.iter().chain(&self.traceparent).map(|text| text.len());
        let stamp = self.stamp.iter().map(|(_, value)| size_of::<(&str, ByteString)>() + value.len());
        texts.chain(stamp).chain(self.correlation.iter().map(Bytes::len)).sum()
    }
}

/// Why a client's bytes end its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// What an MQTT 5 client is told.
    pub reason: Reason,
    /// The same in words, for its reason string and our log.
    pub what: &'static str,
}

impl Fault {
    const fn new(reason: Reason, what: &'static str) -> Self {
        Fault { reason, what }
    }

    const TOO_LARGE: Fault = Fault::new(Reason::PacketTooLarge, "the packet is too large");

    const fn malformed(what: &'static str) -> Self {
        Fault::new(Reason::MalformedPacket, what)
    }

    const fn protocol(what: &'static str) -> Self {
        Fault::new(Reason::ProtocolError, what)
    }
}

/// Reads and writes the packets of one connection.
#[derive(Debug)]
pub struct Codec {
    version: Version,
    /// What CONNECT asked for.
    max_outbound_bytes: u32,
    tells_problems: bool,
    keeps_session: bool,
    /// What is being read past.
    oversized: Option<Box<Oversized>>,
}

impl Codec {
    /// A codec for a client that has said nothing about itself yet.
    pub fn new(version: Version) -> Self {
        Codec {
            version,
            max_outbound_bytes: u32::MAX,
            tells_problems: true,
            keeps_session: false,
            oversized: None,
        }
    }

    fn for_client(connect: &Connect) -> Self {
        Codec {
            max_outbound_bytes: connect.max_packet_bytes.unwrap_or(u32::MAX),
            tells_problems: connect.tells_problems,
            keeps_session: connect.wants_session,
            ..Codec::new(connect.version)
        }
    }

    /// Which version it speaks.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The next packet of at most `max_bytes`, if all of it is there. A message over 3.1.1 that is larger is taken out
    /// of `inbound` as it comes.
    ///
    /// # Errors
    /// When the bytes are no packet, or one that a client must not send.
    pub fn decode(&mut self, inbound: &mut BytesMut, max_bytes: u32) -> Result<Option<Packet>, Fault> {
        if let Some(oversized) = &mut self.oversized {
            let packet = oversized.read(inbound)?;
            if packet.is_some() {
                self.oversized = None;
            }
            return Ok(packet);
        }
        let Some(head) = Head::parse(inbound)? else { return Ok(None) };
        if head.packet_bytes() <= max_bytes as usize {
            let Some(body) = head.take_body(inbound) else { return Ok(None) };
            return decode::packet(self.version, head.first, body, self.keeps_session).map(Some);
        }
        let oversized = Oversized::begin(head).filter(|_| self.version == Version::V3);
        self.oversized = Some(Box::new(oversized.ok_or(Fault::TOO_LARGE)?));
        inbound.advance(head.head_bytes);
        self.decode(inbound, max_bytes)
    }

    /// CONNACK: `ack` for MQTT 5, of which 3.1.1 gets the return code that goes with its reason. False when the
    /// client's Maximum Packet Size forbids it.
    pub fn connack(&self, ack: ConnectAck, out: &mut BytesMut) -> bool {
        let return_code = match ack.reason_code {
            ConnectAckReason::Success => v3::ConnectAckReason::ConnectionAccepted,
            ConnectAckReason::ClientIdentifierNotValid => v3::ConnectAckReason::IdentifierRejected,
            ConnectAckReason::BadUserNameOrPassword => v3::ConnectAckReason::BadUserNameOrPassword,
            ConnectAckReason::NotAuthorized => v3::ConnectAckReason::NotAuthorized,
            _ => v3::ConnectAckReason::ServiceUnavailable,
        };
        let v3 = || v3::Packet::ConnectAck(v3::ConnectAck { return_code, session_present: false });
        let v5 = |why| v5::Packet::ConnectAck(Box::new(ConnectAck { reason_string: why, ..ack.clone() }));
        self.write_why(ack.reason_string.clone(), v3, v5, out)
    }

    /// Whether the client takes a PUBLISH of this size (v5 §3.1.2.11.4: a larger one must not be sent).
    pub fn fits(&self, topic: &str, qos: QoS, payload_bytes: usize, properties: &PublishProperties) -> bool {
        if self.max_outbound_bytes == u32::MAX {
            return true;
        }
        let length_bytes =
            |bytes: usize| [1 << 7, 1 << 14, 1 << 21].iter().filter(|it| bytes >= **it).count() + 1;
        let PublishProperties { response_topic, correlation, traceparent, stamp, .. } = properties;
        let values = [response_topic.as_ref().map(|it| it.len()), correlation.as_ref().map(Bytes::len)];
        let values: usize = values.iter().flatten().map(|bytes| 3 + bytes).sum();
        let trace = traceparent.iter().map(|value| (TRACEPARENT, value));
        let user = trace.chain(stamp.iter().map(|(name, value)| (*name, value)));
        let properties = values + user.map(|(name, value)| 5 + name.len() + value.len()).sum::<usize>();
        let id_bytes = if qos == QoS::AtMostOnce { 0 } else { 2 };
        let body = 2 + topic.len() + id_bytes + length_bytes(properties) + properties + payload_bytes;
        1 + length_bytes(body) + body <= self.max_outbound_bytes as usize
    }

    /// PUBLISH, which must [fit](Self::fits): nothing is written otherwise.
    pub fn publish(
        &self,
        topic: ByteString,
        packet_id: Option<NonZeroU16>,
        payload: Bytes,
        properties: PublishProperties,
        out: &mut BytesMut,
    ) {
        let qos = if packet_id.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let traceparent = properties.traceparent.map(|value| (TRACEPARENT, value));
        let user = traceparent.into_iter().chain(properties.stamp);
        let properties = v5::PublishProperties {
            response_topic: properties.response_topic,
            correlation_data: properties.correlation,
            user_properties: user.map(|(name, value)| (ByteString::from_static(name), value)).collect(),
            ..Default::default()
        };
        let properties = Some(properties);
        let publish = WirePublish { dup: false, retain: false, qos, topic, packet_id, payload, properties };
        let publish = Box::new(publish);
        match self.version {
            Version::V3 => self.write(v3::Packet::Publish(publish), v3::Codec::new(0), out),
            Version::V5 => self.write(v5::Packet::Publish(publish), v5::Codec::new(0, 0), out),
        };
    }

    /// PUBACK. To 3.1.1 every reason reads the same.
    pub fn puback(
        &self,
        packet_id: NonZeroU16,
        reason: PublishAckReason,
        why: &'static str,
        out: &mut BytesMut,
    ) {
        let v5 = |reason_string| {
            let properties = Vec::new();
            v5::Packet::PublishAck(v5::PublishAck {
                packet_id,
                reason_code: reason,
                properties,
                reason_string,
            })
        };
        let why = reason_string(why).filter(|_| self.tells_problems);
        self.write_why(why, || v3::Packet::PublishAck { packet_id }, v5, out);
    }

    /// PUBREC, which a client of 3.1.1 alone can want.
    pub fn pubrec(&self, packet_id: NonZeroU16, out: &mut BytesMut) {
        self.write(v3::Packet::PublishReceived { packet_id }, v3::Codec::new(0), out);
    }

    /// PUBCOMP, likewise.
    pub fn pubcomp(&self, packet_id: NonZeroU16, out: &mut BytesMut) {
        self.write(v3::Packet::PublishComplete { packet_id }, v3::Codec::new(0), out);
    }

    /// SUBACK: one status for each filter. 3.1.1 knows one failure only.
    pub fn suback(&self, packet_id: NonZeroU16, status: &[SubscribeAckReason], out: &mut BytesMut) {
        let for_v3 = |status: &SubscribeAckReason| match status {
            SubscribeAckReason::GrantedQos0 => v3::SubscribeReturnCode::Success(QoS::AtMostOnce),
            SubscribeAckReason::GrantedQos1 => v3::SubscribeReturnCode::Success(QoS::AtLeastOnce),
            _ => v3::SubscribeReturnCode::Failure,
        };
        let v3 = || v3::Packet::SubscribeAck { packet_id, status: status.iter().map(for_v3).collect() };
        let v5 = |reason_string| {
            let (properties, status) = (Vec::new(), status.to_vec());
            v5::Packet::SubscribeAck(v5::SubscribeAck { packet_id, properties, reason_string, status })
        };
        self.write_why(None, v3, v5, out);
    }

    /// UNSUBACK: for each filter whether it was there.
    pub fn unsuback(&self, packet_id: NonZeroU16, existed: &[bool], out: &mut BytesMut) {
        let status = |&existed: &bool| match existed {
            true => v5::UnsubscribeAckReason::Success,
            false => v5::UnsubscribeAckReason::NoSubscriptionExisted,
        };
        let v5 = |reason_string| {
            let (properties, status) = (Vec::new(), existed.iter().map(status).collect());
            v5::Packet::UnsubscribeAck(v5::UnsubscribeAck { packet_id, properties, reason_string, status })
        };
        self.write_why(None, || v3::Packet::UnsubscribeAck { packet_id }, v5, out);
    }

    /// PINGRESP.
    pub fn pingresp(&self, out: &mut BytesMut) {
        self.write_why(None, || v3::Packet::PingResponse, |_| v5::Packet::PingResponse, out);
    }

    /// DISCONNECT with a reason, which 3.1.1 has not: it is closed without a word.
    pub fn disconnect(&self, reason: Reason, why: &'static str, out: &mut BytesMut) {
        self.goodbye(v5::Disconnect::new(reason), why, out);
    }

    /// The same, with another server to go to (v5 §4.11): for now, for this one's address may serve again.
    pub fn redirect(&self, server_reference: &ByteString, why: &'static str, out: &mut BytesMut) {
        let mut disconnect = v5::Disconnect::new(Reason::UseAnotherServer);
        disconnect.server_reference = Some(server_reference.clone());
        self.goodbye(disconnect, why, out);
    }

    fn goodbye(&self, brief: v5::Disconnect, why: &'static str, out: &mut BytesMut) {
        if self.version == Version::V5 {
            let mut disconnect = brief.clone();
            disconnect.reason_string = reason_string(why);
            if !self.write(v5::Packet::Disconnect(disconnect), v5::Codec::new(0, 0), out) {
                self.write(v5::Packet::Disconnect(brief), v5::Codec::new(0, 0), out);
            }
        }
    }

    /// Writes a packet in its version's form, without the reason's words where those do not fit (v5 §3.2.2.3.9).
    fn write_why(
        &self,
        why: Option<ByteString>,
        v3: impl FnOnce() -> v3::Packet,
        v5: impl Fn(Option<ByteString>) -> v5::Packet,
        out: &mut BytesMut,
    ) -> bool {
        match self.version {
            Version::V3 => self.write(v3(), v3::Codec::new(0), out),
            Version::V5 => {
                let explained = why.is_some() && self.write(v5(why), v5::Codec::new(0, 0), out);
                explained || self.write(v5(None), v5::Codec::new(0, 0), out)
            }
        }
    }

    /// False, and nothing written, when the packet is larger than the client takes (v5 §3.1.2.11.4).
    fn write<P, W: Encoder<P>>(&self, packet: P, mut wire: W, out: &mut BytesMut) -> bool {
        let before = out.len();
        let written = wire.encode(packet, out).is_ok();
        let fits = written && out.len() - before <= self.max_outbound_bytes as usize;
        if !fits {
            out.truncate(before);
        }
        fits
    }
}

/// The user property of W3C's trace context.
const TRACEPARENT: &str = "traceparent";

/// A topic that a message can go to (§4.7.1, §4.7.3).
fn topic_name(topic: ByteString) -> Result<ByteString, Fault> {
    if topic.is_empty() || topic.contains(['+', '#']) {
        return Err(Fault::new(Reason::TopicNameInvalid, "a topic is not empty and holds no wildcard"));
    }
    Ok(topic)
}

fn reason_string(why: &'static str) -> Option<ByteString> {
    (!why.is_empty()).then(|| ByteString::from_static(why))
}
