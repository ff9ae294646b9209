//! Which packet is this, and may a client send it? The seam around rmqtt-codec, with a guard for what it lets through.
//!
//! 3.1.1 and 5 come out as one [`Packet`], and what the server says goes in as one method for each packet, so that
//! the session knows the versions' differences only where they show. Section numbers are those of MQTT 5.

use std::num::{NonZeroU16, NonZeroU32};

use bytes::{Buf, Bytes, BytesMut};
use bytestring::ByteString;
use rmqtt_codec::error::DecodeError;
use rmqtt_codec::types::Publish as WirePublish;
use rmqtt_codec::{v3, v5, version};
use tokio_util::codec::{Decoder, Encoder};

pub use rmqtt_codec::types::QoS;
pub use rmqtt_codec::v5::DisconnectReasonCode as Reason;
pub use rmqtt_codec::v5::{
    ConnectAck, ConnectAckReason, PublishAckReason, SubscribeAckReason, UserProperties,
};

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
    /// The first packet of a connection.
    Connect(Box<Connect>),
    /// A message. Boxed: it is much larger than the rest.
    Publish(Box<Publish>),
    /// Our message `packet_id` arrived.
    PubAck {
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
    Disconnect,
}

/// What CONNECT says, as far as a server without sessions and wills cares.
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
}

/// A message from a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Publish {
    /// Where to. Empty when `topic_alias` stands for it.
    pub topic: ByteString,
    /// Set at QoS 1.
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
    pub expiry_s: Option<NonZeroU32>,
    /// W3C trace context.
    pub traceparent: Option<ByteString>,
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

    fn malformed(what: &'static str) -> Self {
        Fault::new(Reason::MalformedPacket, what)
    }

    fn protocol(what: &'static str) -> Self {
        Fault::new(Reason::ProtocolError, what)
    }
}

/// What the first bytes of a connection are.
#[derive(Debug)]
pub enum Opening {
    /// Not complete yet.
    Incomplete,
    /// A whole CONNECT, and the codec for all that follows.
    Connect(Box<Connect>, Codec),
    /// An MQTT, but of a version that is not spoken here (§3.1.2.2: answer 0x01 or 0x84).
    OtherVersion,
    /// A CONNECT that is refused; the codec to say so with.
    Refused(Codec, Fault),
    /// Not MQTT, or not a CONNECT: closed without a word (§3.1.4).
    Fault(Fault),
}

/// Reads the CONNECT that must come first, in at most `max_bytes`.
pub fn open(inbound: &mut BytesMut, max_bytes: u32) -> Opening {
    let frame = match frame_bytes(inbound, max_bytes) {
        Ok(Some(bytes)) => bytes,
        // Fewer bytes than a CONNECT has: is it one at all?
        Ok(None) if inbound.first().is_some_and(|&byte| byte != CONNECT) => {
            return Opening::Fault(Fault::protocol("the first packet must be CONNECT"));
        }
        Ok(None) => return Opening::Incomplete,
        Err(fault) => return Opening::Fault(fault),
    };
    let mut frame = inbound.split_to(frame);
    let version = match version::VersionCodec.decode(&mut frame) {
        Ok(Some(version::ProtocolVersion::MQTT3)) => Version::V3,
        Ok(Some(version::ProtocolVersion::MQTT5)) => Version::V5,
        Err(DecodeError::InvalidProtocol) if names_mqtt(&frame) => return Opening::OtherVersion,
        _ => return Opening::Fault(Fault::protocol("the first packet must be CONNECT")),
    };
    let whole = connect_fills_its_frame(&frame);
    let mut codec = Codec::new(version);
    match codec.parse(frame) {
        Ok(Packet::Connect(_)) if !whole => {
            Opening::Refused(codec, Fault::malformed("CONNECT holds more than its fields"))
        }
        Ok(Packet::Connect(connect)) => {
            if let (Wire::V5(wire), Some(max)) = (&mut codec.wire, connect.max_packet_bytes) {
                wire.set_max_outbound_size(max);
            }
            Opening::Connect(connect, codec)
        }
        Ok(_) => Opening::Fault(Fault::protocol("the first packet must be CONNECT")),
        Err(fault) => Opening::Refused(codec, fault),
    }
}

/// Reads and writes the packets of one connection.
#[derive(Debug)]
pub struct Codec {
    wire: Wire,
}

#[derive(Debug)]
enum Wire {
    V3(v3::Codec),
    V5(v5::Codec),
}

impl Codec {
    /// A codec without limits of its own: sizes are checked before a frame is handed to it.
    pub fn new(version: Version) -> Self {
        let wire = match version {
            Version::V3 => Wire::V3(v3::Codec::new(0)),
            Version::V5 => Wire::V5(v5::Codec::new(0, 0)),
        };
        Codec { wire }
    }

    /// Which version it speaks.
    pub fn version(&self) -> Version {
        match self.wire {
            Wire::V3(_) => Version::V3,
            Wire::V5(_) => Version::V5,
        }
    }

    /// The next whole packet of at most `max_bytes`, if it is there.
    ///
    /// # Errors
    /// When the bytes are no packet, or one that a client must not send.
    pub fn decode(&mut self, inbound: &mut BytesMut, max_bytes: u32) -> Result<Option<Packet>, Fault> {
        match frame_bytes(inbound, max_bytes)? {
            None => Ok(None),
            Some(bytes) => {
                let frame = inbound.split_to(bytes);
                self.parse(frame).map(Some)
            }
        }
    }

    fn parse(&mut self, mut frame: BytesMut) -> Result<Packet, Fault> {
        let first = frame.first().copied().unwrap_or_default();
        let body_bytes = frame.len().saturating_sub(1 + length_bytes(&frame));
        if first == PINGREQ && body_bytes > 0 {
            return Err(Fault::malformed("PINGREQ has no body"));
        }
        match &mut self.wire {
            Wire::V3(codec) => {
                if first == DISCONNECT && body_bytes > 0 {
                    return Err(Fault::malformed("DISCONNECT has no body"));
                }
                match codec.decode(&mut frame).map_err(fault_of)? {
                    Some((packet, _)) => from_v3(packet),
                    None => Err(Fault::malformed("the packet is cut short")),
                }
            }
            Wire::V5(codec) => match codec.decode(&mut frame).map_err(fault_of)? {
                Some((packet, _)) => from_v5(packet),
                None => Err(Fault::malformed("the packet is cut short")),
            },
        }
    }

    /// CONNACK: `ack` for MQTT 5, of which 3.1.1 gets the return code that goes with its reason.
    pub fn connack(&mut self, ack: ConnectAck, out: &mut BytesMut) {
        let return_code = match ack.reason_code {
            ConnectAckReason::Success => v3::ConnectAckReason::ConnectionAccepted,
            ConnectAckReason::ClientIdentifierNotValid => v3::ConnectAckReason::IdentifierRejected,
            ConnectAckReason::BadUserNameOrPassword => v3::ConnectAckReason::BadUserNameOrPassword,
            ConnectAckReason::NotAuthorized => v3::ConnectAckReason::NotAuthorized,
            _ => v3::ConnectAckReason::ServiceUnavailable,
        };
        self.put(
            || v3::Packet::ConnectAck(v3::ConnectAck { return_code, session_present: false }),
            || v5::Packet::ConnectAck(Box::new(ack)),
            out,
        );
    }

    /// PUBLISH. False when the client's Maximum Packet Size forbids it (v5 §3.1.2.11.4: it must not be sent).
    #[must_use]
    pub fn publish(
        &mut self,
        topic: ByteString,
        packet_id: Option<NonZeroU16>,
        payload: Bytes,
        properties: PublishProperties,
        out: &mut BytesMut,
    ) -> bool {
        let qos = if packet_id.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let mut publish = Box::new(WirePublish {
            dup: false,
            retain: false,
            qos,
            topic,
            packet_id,
            payload,
            properties: None,
        });
        match &mut self.wire {
            Wire::V3(codec) => codec.encode(v3::Packet::Publish(publish), out).is_ok(),
            Wire::V5(codec) => {
                publish.properties = Some(v5::PublishProperties {
                    response_topic: properties.response_topic,
                    correlation_data: properties.correlation,
                    user_properties: properties
                        .traceparent
                        .map(|value| (ByteString::from_static("traceparent"), value))
                        .into_iter()
                        .collect(),
                    ..Default::default()
                });
                codec.encode(v5::Packet::Publish(publish), out).is_ok()
            }
        }
    }

    /// PUBACK. To 3.1.1 every reason reads the same.
    pub fn puback(
        &mut self,
        packet_id: NonZeroU16,
        reason: PublishAckReason,
        why: &'static str,
        out: &mut BytesMut,
    ) {
        self.put(
            || v3::Packet::PublishAck { packet_id },
            || {
                v5::Packet::PublishAck(v5::PublishAck {
                    packet_id,
                    reason_code: reason,
                    properties: Vec::new(),
                    reason_string: reason_string(why),
                })
            },
            out,
        );
    }

    /// SUBACK: one status for each filter. 3.1.1 knows one failure only.
    pub fn suback(&mut self, packet_id: NonZeroU16, status: Vec<SubscribeAckReason>, out: &mut BytesMut) {
        let for_v3 = |status: &SubscribeAckReason| match status {
            SubscribeAckReason::GrantedQos0 => v3::SubscribeReturnCode::Success(QoS::AtMostOnce),
            SubscribeAckReason::GrantedQos1 => v3::SubscribeReturnCode::Success(QoS::AtLeastOnce),
            _ => v3::SubscribeReturnCode::Failure,
        };
        match self.wire {
            Wire::V3(_) => {
                let status = status.iter().map(for_v3).collect();
                self.put_v3(v3::Packet::SubscribeAck { packet_id, status }, out);
            }
            Wire::V5(_) => self.put_v5(
                v5::Packet::SubscribeAck(v5::SubscribeAck {
                    packet_id,
                    properties: Vec::new(),
                    reason_string: None,
                    status,
                }),
                out,
            ),
        }
    }

    /// UNSUBACK: for each filter whether it was there.
    pub fn unsuback(&mut self, packet_id: NonZeroU16, existed: &[bool], out: &mut BytesMut) {
        self.put(
            || v3::Packet::UnsubscribeAck { packet_id },
            || {
                let status = |&existed: &bool| match existed {
                    true => v5::UnsubscribeAckReason::Success,
                    false => v5::UnsubscribeAckReason::NoSubscriptionExisted,
                };
                v5::Packet::UnsubscribeAck(v5::UnsubscribeAck {
                    packet_id,
                    properties: Vec::new(),
                    reason_string: None,
                    status: existed.iter().map(status).collect(),
                })
            },
            out,
        );
    }

    /// PINGRESP.
    pub fn pingresp(&mut self, out: &mut BytesMut) {
        self.put(|| v3::Packet::PingResponse, || v5::Packet::PingResponse, out);
    }

    /// DISCONNECT with a reason, which 3.1.1 has not: it is closed without a word.
    pub fn disconnect(&mut self, reason: Reason, why: &'static str, out: &mut BytesMut) {
        if self.version() == Version::V5 {
            let mut disconnect = v5::Disconnect::new(reason);
            disconnect.reason_string = reason_string(why);
            self.put_v5(v5::Packet::Disconnect(disconnect), out);
        }
    }

    fn put(&mut self, v3: impl FnOnce() -> v3::Packet, v5: impl FnOnce() -> v5::Packet, out: &mut BytesMut) {
        match self.wire {
            Wire::V3(_) => self.put_v3(v3(), out),
            Wire::V5(_) => self.put_v5(v5(), out),
        }
    }

    // Small packets only: what the client's Maximum Packet Size forbids is left out, as the standard demands.
    fn put_v3(&mut self, packet: v3::Packet, out: &mut BytesMut) {
        if let Wire::V3(codec) = &mut self.wire {
            let _ = codec.encode(packet, out);
        }
    }

    fn put_v5(&mut self, packet: v5::Packet, out: &mut BytesMut) {
        if let Wire::V5(codec) = &mut self.wire {
            let _ = codec.encode(packet, out);
        }
    }
}

/// CONNACK 0x01 of 3.1.1, which every MQTT client reads: its version is not spoken here (§3.1.2.2).
pub const UNACCEPTABLE_VERSION: [u8; 4] = [0x20, 2, 0, 1];

const CONNECT: u8 = 0x10;
const PINGREQ: u8 = 0xC0;
const DISCONNECT: u8 = 0xE0;

/// The length of the first frame, if all of it is there (§2.1.4).
fn frame_bytes(inbound: &[u8], max_bytes: u32) -> Result<Option<usize>, Fault> {
    let mut remaining = 0u32;
    for (index, &byte) in inbound.iter().skip(1).take(4).enumerate() {
        remaining |= u32::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let bytes = remaining as usize + index + 2;
            if bytes > max_bytes as usize {
                return Err(Fault::new(Reason::PacketTooLarge, "the packet is too large"));
            }
            return Ok((inbound.len() >= bytes).then_some(bytes));
        }
    }
    if inbound.len() > 4 { Err(Fault::malformed("the remaining length has five bytes")) } else { Ok(None) }
}

/// How many bytes the remaining length takes.
fn length_bytes(frame: &[u8]) -> usize {
    frame.iter().skip(1).take(4).take_while(|&byte| byte & 0x80 != 0).count() + 1
}

fn names_mqtt(frame: &[u8]) -> bool {
    let name = frame.get(1 + length_bytes(frame)..).unwrap_or_default();
    name.starts_with(b"\0\x04MQTT") || name.starts_with(b"\0\x06MQIsdp")
}

/// Walks over the fields of a CONNECT (§3.1): true when they end where the frame ends.
fn connect_fills_its_frame(frame: &[u8]) -> bool {
    fn walk(mut rest: &[u8]) -> Option<bool> {
        fn field(rest: &mut &[u8]) -> Option<()> {
            let bytes = rest.try_get_u16().ok()?;
            *rest = rest.get(usize::from(bytes)..)?;
            Some(())
        }
        fn properties(rest: &mut &[u8]) -> Option<()> {
            let (mut bytes, mut shift) = (0usize, 0);
            loop {
                let byte = rest.try_get_u8().ok()?;
                bytes |= usize::from(byte & 0x7f) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            *rest = rest.get(bytes..)?;
            Some(())
        }
        field(&mut rest)?;
        let is_v5 = rest.try_get_u8().ok()? == 5;
        let flags = rest.try_get_u8().ok()?;
        rest.try_get_u16().ok()?;
        if is_v5 {
            properties(&mut rest)?;
        }
        field(&mut rest)?;
        if flags & 0x04 != 0 {
            if is_v5 {
                properties(&mut rest)?;
            }
            field(&mut rest)?;
            field(&mut rest)?;
        }
        for bit in [0x80, 0x40] {
            if flags & bit != 0 {
                field(&mut rest)?;
            }
        }
        Some(rest.is_empty())
    }
    frame.get(1 + length_bytes(frame)..).and_then(walk).unwrap_or(false)
}

fn from_v3(packet: v3::Packet) -> Result<Packet, Fault> {
    match packet {
        v3::Packet::Connect(connect) => Ok(Packet::Connect(Box::new(Connect {
            version: Version::V3,
            username: connect.username,
            client_id: connect.client_id,
            keep_alive_s: connect.keep_alive,
            wants_session: !connect.clean_session,
            receive_maximum: u16::MAX,
            max_packet_bytes: None,
            auth_method: false,
        }))),
        v3::Packet::Publish(publish) => guard_publish(publish, Version::V3),
        v3::Packet::PublishAck { packet_id } => Ok(Packet::PubAck { packet_id }),
        v3::Packet::Subscribe { packet_id, topic_filters } => {
            for (filter, _) in &topic_filters {
                guard_filter(filter)?;
            }
            Ok(Packet::Subscribe { packet_id, filters: topic_filters })
        }
        v3::Packet::Unsubscribe { packet_id, topic_filters } => {
            topic_filters.iter().try_for_each(|filter| guard_filter(filter))?;
            Ok(Packet::Unsubscribe { packet_id, filters: topic_filters })
        }
        v3::Packet::PingRequest => Ok(Packet::PingReq),
        v3::Packet::Disconnect => Ok(Packet::Disconnect),
        v3::Packet::PublishReceived { .. }
        | v3::Packet::PublishRelease { .. }
        | v3::Packet::PublishComplete { .. } => Err(Fault::protocol("QoS 2 is not supported")),
        v3::Packet::ConnectAck(_)
        | v3::Packet::SubscribeAck { .. }
        | v3::Packet::UnsubscribeAck { .. }
        | v3::Packet::PingResponse => Err(Fault::protocol("only a server sends this packet")),
    }
}

fn from_v5(packet: v5::Packet) -> Result<Packet, Fault> {
    match packet {
        v5::Packet::Connect(connect) => Ok(Packet::Connect(Box::new(Connect {
            version: Version::V5,
            username: connect.username,
            client_id: connect.client_id,
            keep_alive_s: connect.keep_alive,
            wants_session: connect.session_expiry_interval_secs > 0,
            receive_maximum: connect.receive_max.map_or(u16::MAX, NonZeroU16::get),
            max_packet_bytes: connect.max_packet_size.map(NonZeroU32::get),
            auth_method: connect.auth_method.is_some(),
        }))),
        v5::Packet::Publish(publish) => guard_publish(publish, Version::V5),
        v5::Packet::PublishAck(ack) => Ok(Packet::PubAck { packet_id: ack.packet_id }),
        v5::Packet::Subscribe(subscribe) => {
            if subscribe.id.is_some() {
                let what = "subscription identifiers are not supported";
                return Err(Fault::new(Reason::SubscriptionIdentifiersNotSupported, what));
            }
            if subscribe.topic_filters.is_empty() {
                return Err(Fault::protocol("SUBSCRIBE needs a filter"));
            }
            for (filter, _) in &subscribe.topic_filters {
                guard_filter(filter)?;
            }
            let filters = subscribe.topic_filters.into_iter().map(|(filter, options)| (filter, options.qos));
            Ok(Packet::Subscribe { packet_id: subscribe.packet_id, filters: filters.collect() })
        }
        v5::Packet::Unsubscribe(unsubscribe) => {
            if unsubscribe.topic_filters.is_empty() {
                return Err(Fault::protocol("UNSUBSCRIBE needs a filter"));
            }
            unsubscribe.topic_filters.iter().try_for_each(|filter| guard_filter(filter))?;
            Ok(Packet::Unsubscribe { packet_id: unsubscribe.packet_id, filters: unsubscribe.topic_filters })
        }
        v5::Packet::PingRequest => Ok(Packet::PingReq),
        v5::Packet::Disconnect(_) => Ok(Packet::Disconnect),
        v5::Packet::Auth(_) => Err(Fault::protocol("no authentication method was agreed on")),
        v5::Packet::PublishReceived(_) | v5::Packet::PublishRelease(_) | v5::Packet::PublishComplete(_) => {
            Err(Fault::protocol("QoS 2 is not supported"))
        }
        v5::Packet::ConnectAck(_)
        | v5::Packet::SubscribeAck(_)
        | v5::Packet::UnsubscribeAck(_)
        | v5::Packet::PingResponse => Err(Fault::protocol("only a server sends this packet")),
    }
}

fn guard_publish(publish: Box<WirePublish>, version: Version) -> Result<Packet, Fault> {
    if publish.qos == QoS::ExactlyOnce {
        return Err(Fault::new(Reason::QosNotSupported, "the highest QoS is 1"));
    }
    if publish.dup && publish.qos == QoS::AtMostOnce {
        return Err(Fault::malformed("DUP is set at QoS 0"));
    }
    // 3.1.1 has no way to hear that nothing is retained, so there the flag is passed over.
    if publish.retain && version == Version::V5 {
        return Err(Fault::new(Reason::RetainNotSupported, "messages are not retained"));
    }
    if publish.topic.contains(['+', '#', '\0']) {
        return Err(Fault::new(Reason::TopicNameInvalid, "a topic holds no wildcard and no NUL"));
    }
    let wire = publish.properties.unwrap_or_default();
    if publish.topic.is_empty() && wire.topic_alias.is_none() {
        return Err(Fault::protocol("a message needs a topic or an alias"));
    }
    if !wire.subscription_ids.is_empty() {
        return Err(Fault::protocol("only a server sends subscription identifiers"));
    }
    if wire.response_topic.as_ref().is_some_and(|topic| topic.is_empty() || topic.contains(['+', '#', '\0']))
    {
        return Err(Fault::protocol("a response topic holds no wildcard and no NUL"));
    }
    let traceparent = wire
        .user_properties
        .into_iter()
        .find(|(name, value)| &**name == "traceparent" && value.len() <= rpc::MAX_TRACEPARENT_BYTES)
        .map(|(_, value)| value);
    Ok(Packet::Publish(Box::new(Publish {
        topic: publish.topic,
        packet_id: publish.packet_id,
        payload: publish.payload,
        properties: PublishProperties {
            topic_alias: wire.topic_alias,
            response_topic: wire.response_topic,
            correlation: wire.correlation_data,
            expiry_s: wire.message_expiry_interval,
            traceparent,
        },
    })))
}

/// Refuses what is no topic filter at all (§4.7.1). Whether it is granted is the session's to say.
fn guard_filter(filter: &str) -> Result<(), Fault> {
    let invalid = Err(Fault::new(Reason::TopicFilterInvalid, "the topic filter is invalid"));
    if filter.is_empty() || filter.contains('\0') {
        return invalid;
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        let last = levels.peek().is_none();
        match level {
            "+" => {}
            "#" if last => {}
            level if level.contains(['+', '#']) => return invalid,
            _ => {}
        }
    }
    Ok(())
}

fn fault_of(error: DecodeError) -> Fault {
    match error {
        DecodeError::MaxSizeExceeded { .. } => Fault::new(Reason::PacketTooLarge, "the packet is too large"),
        DecodeError::InvalidTopicFilter => Fault::protocol("the topic filter is missing or empty"),
        DecodeError::InvalidTopicName => Fault::new(Reason::TopicNameInvalid, "the topic is empty"),
        DecodeError::InvalidClientId => {
            Fault::new(Reason::NotAuthorized, "a client id may be empty only for a clean session")
        }
        DecodeError::UnsupportedPacketType => Fault::malformed("no such packet, or wrong flags"),
        DecodeError::Utf8Error => Fault::malformed("a text is not UTF-8"),
        DecodeError::ConnectReservedFlagSet | DecodeError::InvalidConnectFlags => {
            Fault::malformed("the flags of CONNECT are invalid")
        }
        DecodeError::InvalidProtocol
        | DecodeError::InvalidLength
        | DecodeError::MalformedPacket
        | DecodeError::UnsupportedProtocolLevel
        | DecodeError::ConnAckReservedFlagSet
        | DecodeError::PacketIdRequired
        | DecodeError::Io(_) => Fault::malformed("the packet is malformed"),
    }
}

fn reason_string(why: &'static str) -> Option<ByteString> {
    (!why.is_empty()).then(|| ByteString::from_static(why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: u32 = 65_536;

    /// A frame: first byte, remaining length, body.
    fn frame(first: u8, body: &[u8]) -> BytesMut {
        assert!(body.len() < 128);
        let mut bytes = BytesMut::from(&[first, body.len() as u8][..]);
        bytes.extend_from_slice(body);
        bytes
    }

    fn connect_311(token: &str) -> BytesMut {
        let mut body = b"\0\x04MQTT\x04\x82\0\x3c\0\0\0".to_vec();
        body.push(token.len() as u8);
        body.extend_from_slice(token.as_bytes());
        frame(CONNECT, &body)
    }

    fn decode(version: Version, mut bytes: BytesMut) -> Result<Option<Packet>, Fault> {
        Codec::new(version).decode(&mut bytes, MAX)
    }

    #[test]
    fn a_connect_opens_and_what_follows_stays() {
        let mut bytes = connect_311("A1_TEST_TOKEN");
        bytes.extend_from_slice(&[PINGREQ, 0]);
        let Opening::Connect(connect, mut codec) = open(&mut bytes, 4096) else { panic!() };
        assert_eq!(connect.username.as_deref(), Some("A1_TEST_TOKEN"));
        assert_eq!(connect.version, Version::V3);
        assert_eq!(codec.decode(&mut bytes, MAX), Ok(Some(Packet::PingReq)));
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_connect_in_pieces_is_waited_for() {
        let whole = connect_311("A1_TEST_TOKEN");
        for end in 1..whole.len() {
            let mut part = BytesMut::from(&whole[..end]);
            assert!(matches!(open(&mut part, 4096), Opening::Incomplete), "{end}");
        }
    }

    #[test]
    fn what_is_no_connect_is_refused() {
        assert!(matches!(open(&mut frame(PINGREQ, b""), 4096), Opening::Fault(_)));
        assert!(matches!(open(&mut BytesMut::from("GET / HTTP/1.1\r\n"), 4096), Opening::Fault(_)));
        let mut huge = BytesMut::from(&[CONNECT, 0xff, 0xff, 0x7f][..]);
        assert!(
            matches!(open(&mut huge, 4096), Opening::Fault(fault) if fault.reason == Reason::PacketTooLarge)
        );
        let mut six = frame(CONNECT, b"\0\x04MQTT\x06\x02\0\x3c\0\0");
        assert!(matches!(open(&mut six, 4096), Opening::OtherVersion));
        let mut longer = frame(CONNECT, b"\0\x04MQTT\x04\x02\0\x3c\0\0extra");
        assert!(matches!(open(&mut longer, 4096), Opening::Refused(..)));
        let mut longer = frame(CONNECT, b"\0\x04MQTT\x05\x02\0\x3c\0\0\0extra");
        assert!(matches!(open(&mut longer, 4096), Opening::Refused(..)));
    }

    #[test]
    fn the_guard_refuses_what_the_codec_lets_through() {
        let table: [(Version, BytesMut, Reason); 14] = [
            (Version::V3, frame(PINGREQ, b"x"), Reason::MalformedPacket),
            (Version::V5, frame(PINGREQ, b"x"), Reason::MalformedPacket),
            (Version::V3, frame(DISCONNECT, b"x"), Reason::MalformedPacket),
            (Version::V3, frame(0x30, b"\0\x03a/+"), Reason::TopicNameInvalid),
            (Version::V3, frame(0x30, b"\0\x01#"), Reason::TopicNameInvalid),
            (Version::V3, frame(0x30, b"\0\x02a\0"), Reason::TopicNameInvalid),
            (Version::V5, frame(0x30, b"\0\0\0"), Reason::ProtocolError),
            (Version::V3, frame(0x34, b"\0\x01a\0\x01"), Reason::QosNotSupported),
            (Version::V3, frame(0x38, b"\0\x01a"), Reason::MalformedPacket),
            (Version::V5, frame(0x31, b"\0\x01a\0"), Reason::RetainNotSupported),
            (Version::V3, frame(0x82, b"\0\x01\0\x03a#b\0"), Reason::TopicFilterInvalid),
            (Version::V3, frame(0x82, b"\0\x01\0\x03#/a\0"), Reason::TopicFilterInvalid),
            (Version::V3, frame(0x20, b"\0\0"), Reason::ProtocolError),
            (
                Version::V5,
                frame(0x82, b"\0\x01\x02\x0b\x01\0\x01a\0"),
                Reason::SubscriptionIdentifiersNotSupported,
            ),
        ];
        for (version, bytes, reason) in table {
            let fault = decode(version, bytes.clone()).unwrap_err();
            assert_eq!(fault.reason, reason, "{bytes:?}: {}", fault.what);
        }
    }

    #[test]
    fn a_packet_over_the_limit_is_refused_before_it_has_come() {
        let mut bytes = BytesMut::from(&[0x30, 0xff, 0xff, 0xff, 0x7f][..]);
        let fault = Codec::new(Version::V5).decode(&mut bytes, MAX).unwrap_err();
        assert_eq!(fault.reason, Reason::PacketTooLarge);
        let mut bytes = BytesMut::from(&[0x30, 0xff, 0xff, 0xff, 0xff, 0x7f][..]);
        let fault = Codec::new(Version::V5).decode(&mut bytes, MAX).unwrap_err();
        assert_eq!(fault.reason, Reason::MalformedPacket);
    }

    #[test]
    fn what_is_written_reads_back() {
        for version in [Version::V3, Version::V5] {
            let mut codec = Codec::new(version);
            let mut out = BytesMut::new();
            let topic = ByteString::from_static("v1/devices/me/rpc/response/7");
            let payload = Bytes::from_static(br#"{"status":"ok"}"#);
            let properties = PublishProperties {
                correlation: (version == Version::V5).then(|| Bytes::from_static(b"\0\x01")),
                ..Default::default()
            };
            assert!(codec.publish(
                topic.clone(),
                NonZeroU16::new(9),
                payload.clone(),
                properties.clone(),
                &mut out
            ));
            let Ok(Some(Packet::Publish(publish))) = codec.decode(&mut out, MAX) else { panic!() };
            let expected = Publish { topic, packet_id: NonZeroU16::new(9), payload, properties };
            assert_eq!(*publish, expected);
            assert!(out.is_empty());
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = open(&mut BytesMut::from(&bytes[..]), 4096);
            for version in [Version::V3, Version::V5] {
                let mut inbound = BytesMut::from(&bytes[..]);
                let mut codec = Codec::new(version);
                while let Ok(Some(_)) = codec.decode(&mut inbound, MAX) {}
            }
        }

        #[test]
        fn frames_of_any_kind_do_not_panic(first in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..127)) {
            for version in [Version::V3, Version::V5] {
                let _ = decode(version, frame(first, &body));
            }
            let _ = open(&mut frame(CONNECT, &body), 4096);
        }
    }
}
