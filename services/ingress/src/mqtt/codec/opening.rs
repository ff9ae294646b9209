//! What are the first bytes of a connection? CONNECT, whole and as the standard has it, or what is said instead.

use bytes::BytesMut;

use super::reader::{Head, Reader, property};
use super::{Codec, Connect, ConnectAckReason, Fault, QoS, Version, Will, topic_name};

/// What the first bytes of a connection are.
#[derive(Debug)]
pub enum Opening {
    /// Not complete yet.
    Incomplete,
    /// A whole CONNECT, and the codec for all that follows.
    Connect(Box<Connect>, Codec),
    /// An MQTT, but of a version that is not spoken here (§3.1.2.2): the CONNACK that its client may understand.
    OtherVersion(&'static [u8]),
    /// A CONNECT that is refused; the codec to say so with, why, and the same in words.
    Refused(Codec, ConnectAckReason, &'static str),
    /// Not MQTT, or not a CONNECT: closed without a word (§3.1.4).
    Fault(Fault),
}

/// Unacceptable protocol level, as every client up to 3.1.1 reads it (3.1.1 §3.1.2.2).
const UNACCEPTABLE_LEVEL: &[u8] = &[0x20, 2, 0, 0x01];
/// Unsupported protocol version, in the form of the newest that is spoken here.
const UNSUPPORTED_VERSION: &[u8] = &[0x20, 3, 0, 0x84, 0];

const CONNECT: u8 = 0x10;

/// Reads the CONNECT that must come first, in at most `max_bytes`.
pub fn open(inbound: &mut BytesMut, max_bytes: u32) -> Opening {
    let no_connect = Opening::Fault(Fault::protocol("the first packet must be CONNECT"));
    if inbound.first().is_some_and(|&byte| byte != CONNECT) {
        return no_connect;
    }
    let head = match Head::parse(inbound) {
        Ok(Some(head)) => head,
        Ok(None) => return Opening::Incomplete,
        Err(fault) => return Opening::Fault(fault),
    };
    if head.packet_bytes() > max_bytes as usize {
        return Opening::Fault(Fault::TOO_LARGE);
    }
    let Some(mut body) = head.take_body(inbound) else { return Opening::Incomplete };
    let (Ok(name), Ok(level)) = (body.text(), body.u8()) else { return no_connect };
    let version = match (&*name, level) {
        ("MQTT", 4) | ("MQIsdp", 3) => Version::V3,
        ("MQTT", 5) => Version::V5,
        ("MQTT" | "MQIsdp", 6..) => return Opening::OtherVersion(UNSUPPORTED_VERSION),
        ("MQTT" | "MQIsdp", _) => return Opening::OtherVersion(UNACCEPTABLE_LEVEL),
        _ => return no_connect,
    };
    match connect(version, body) {
        Ok(connect) => {
            let codec = Codec::for_client(&connect);
            match refusal(&connect) {
                Some((reason, why)) => Opening::Refused(codec, reason, why),
                None => Opening::Connect(Box::new(connect), codec),
            }
        }
        Err(fault) => {
            let reason = ConnectAckReason::try_from(u8::from(fault.reason));
            let reason = reason.unwrap_or(ConnectAckReason::MalformedPacket);
            Opening::Refused(Codec::new(version), reason, fault.what)
        }
    }
}

/// What is well-formed and not served: where the standard names the answer.
fn refusal(connect: &Connect) -> Option<(ConnectAckReason, &'static str)> {
    if connect.version == Version::V3 {
        // 3.1.1 §3.1.3.1. MQTT 5 has every client without an id assigned one.
        let nameless = connect.client_id.is_empty() && connect.wants_session;
        let why = "a client id may be empty only for a clean session";
        return nameless.then_some((ConnectAckReason::ClientIdentifierNotValid, why));
    }
    let will = connect.will.as_ref()?;
    if will.qos == QoS::ExactlyOnce {
        return Some((ConnectAckReason::QosNotSupported, "the highest QoS of a will is 1"));
    }
    will.retain.then_some((ConnectAckReason::RetainNotSupported, "a will is not retained"))
}

/// The fields of CONNECT behind the protocol's level (§3.1).
fn connect(version: Version, mut body: Reader) -> Result<Connect, Fault> {
    let flags = body.u8()?;
    let has = |bit: u8| flags & bit != 0;
    let will_qos = QoS::try_from(flags >> 3 & 3).map_err(|_| FLAGS)?;
    let will_without_flag = flags & 0x38 != 0 && !has(0x04);
    let password_without_username = version == Version::V3 && has(0x40) && !has(0x80);
    if has(0x01) || will_without_flag || password_without_username {
        return Err(FLAGS);
    }
    let mut connect = Connect {
        version,
        username: None,
        client_id: Default::default(),
        keep_alive_s: body.u16()?,
        wants_session: version == Version::V3 && !has(0x02),
        receive_maximum: u16::MAX,
        max_packet_bytes: None,
        auth_method: false,
        tells_problems: true,
        will: None,
    };
    if version == Version::V5 {
        connect_properties(&mut connect, &mut body)?;
    }
    connect.client_id = body.text()?;
    if has(0x04) {
        let delay_s = if version == Version::V5 { will_delay_s(&mut body)? } else { 0 };
        let topic = topic_name(body.text()?)?;
        connect.will =
            Some(Will { topic, payload: body.binary()?, qos: will_qos, retain: has(0x20), delay_s });
    }
    if has(0x80) {
        connect.username = Some(body.text()?);
    }
    if has(0x40) {
        body.binary()?;
    }
    if body.is_empty() { Ok(connect) } else { Err(Fault::malformed("CONNECT holds more than its fields")) }
}

const FLAGS: Fault = Fault::malformed("the flags of CONNECT are invalid");

/// §3.1.2.11
fn connect_properties(connect: &mut Connect, body: &mut Reader) -> Result<(), Fault> {
    let mut has_auth_data = false;
    body.properties(|id, value| {
        match id {
            property::SESSION_EXPIRY => connect.wants_session = value.u32()? > 0,
            property::RECEIVE_MAXIMUM => connect.receive_maximum = above_zero(value.u16()?)?,
            property::MAXIMUM_PACKET_SIZE => connect.max_packet_bytes = Some(above_zero(value.u32()?)?),
            property::TOPIC_ALIAS_MAXIMUM => drop(value.u16()?),
            property::REQUEST_RESPONSES => drop(value.flag()?),
            property::REQUEST_PROBLEMS => connect.tells_problems = value.flag()?,
            property::USER => drop(value.pair()?),
            property::AUTHENTICATION_METHOD => {
                value.text()?;
                connect.auth_method = true;
            }
            property::AUTHENTICATION_DATA => {
                value.binary()?;
                has_auth_data = true;
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    if has_auth_data && !connect.auth_method {
        return Err(Fault::protocol("authentication data come without a method"));
    }
    Ok(())
}

/// §3.1.3.2, of which the delay alone means something here.
fn will_delay_s(body: &mut Reader) -> Result<u32, Fault> {
    let mut delay_s = 0;
    body.properties(|id, value| {
        match id {
            property::WILL_DELAY => delay_s = value.u32()?,
            property::PAYLOAD_FORMAT => drop(value.flag()?),
            property::MESSAGE_EXPIRY => drop(value.u32()?),
            property::CONTENT_TYPE => drop(value.text()?),
            property::RESPONSE_TOPIC => drop(topic_name(value.text()?)?),
            property::CORRELATION_DATA => drop(value.binary()?),
            property::USER => drop(value.pair()?),
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(delay_s)
}

fn above_zero<T: Default + PartialEq>(value: T) -> Result<T, Fault> {
    if value == T::default() { Err(Fault::protocol("a maximum of CONNECT is 0")) } else { Ok(value) }
}
