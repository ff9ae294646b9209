//! Which packet is this, and may a client send it? Every packet behind CONNECT (MQTT 5 §3.3 to §3.15).

use std::num::NonZeroU16;

use bytestring::ByteString;

use super::reader::{Reader, property};
use super::{Fault, Packet, Publish, PublishAckReason, PublishProperties, QoS, Reason, Version, topic_name};

/// Parses the body of the packet whose first byte this is. `keeps_session` is what CONNECT asked for (v5).
pub(super) fn packet(
    version: Version,
    first: u8,
    mut body: Reader,
    keeps_session: bool,
) -> Result<Packet, Fault> {
    let (kind, flags) = (first >> 4, first & 0x0f);
    let expected = match kind {
        3 => flags,
        6 | 8 | 10 => 2,
        _ => 0,
    };
    if flags != expected {
        return Err(Fault::malformed("the flags of the fixed header are wrong"));
    }
    let body = &mut body;
    let packet = match kind {
        3 => return publish(version, flags, body).map(Box::new).map(Packet::Publish),
        4 => Packet::PubAck { packet_id: puback(version, body)? },
        6 if version == Version::V3 => Packet::PubRel { packet_id: packet_id(body)? },
        8 => subscribe(version, body)?,
        10 => unsubscribe(version, body)?,
        12 => Packet::PingReq,
        14 => disconnect(version, body, keeps_session)?,
        1 => return Err(Fault::protocol("CONNECT comes once")),
        5..=7 => return Err(Fault::protocol("no message of QoS 2 is under way")),
        15 if version == Version::V5 => {
            return Err(Fault::protocol("no authentication method was agreed on"));
        }
        0 | 15 => return Err(Fault::malformed("there is no such packet")),
        _ => return Err(Fault::protocol("only a server sends this packet")),
    };
    if body.is_empty() { Ok(packet) } else { Err(Fault::malformed("the packet holds more than its fields")) }
}

fn publish(version: Version, flags: u8, body: &mut Reader) -> Result<Publish, Fault> {
    let (dup, retain) = (flags & 8 != 0, flags & 1 != 0);
    let qos = QoS::try_from(flags >> 1 & 3).map_err(|_| Fault::malformed("there is no QoS 3"))?;
    if dup && qos == QoS::AtMostOnce {
        return Err(Fault::malformed("DUP is set at QoS 0"));
    }
    if version == Version::V5 && qos == QoS::ExactlyOnce {
        return Err(Fault::new(Reason::QosNotSupported, "the highest QoS is 1"));
    }
    // 3.1.1 has no way to hear that nothing is retained, so there the flag is passed over.
    if version == Version::V5 && retain {
        return Err(Fault::new(Reason::RetainNotSupported, "messages are not retained"));
    }
    let topic = body.text()?;
    let packet_id = if qos == QoS::AtMostOnce { None } else { Some(packet_id(body)?) };
    let properties = match version {
        Version::V3 => PublishProperties::default(),
        Version::V5 => publish_properties(body)?,
    };
    let topic = match properties.topic_alias {
        Some(_) if topic.is_empty() => topic,
        // §3.3.2.1.
        None if topic.is_empty() && version == Version::V5 => {
            return Err(Fault::protocol("without a topic alias a topic is not empty"));
        }
        _ => topic_name(topic)?,
    };
    let payload = body.remaining();
    Ok(Publish { topic, qos, dup, packet_id, payload, properties })
}

/// §3.3.2.3. Of the user properties one is read: what the node stamps is never taken from a client.
fn publish_properties(body: &mut Reader) -> Result<PublishProperties, Fault> {
    let mut read = PublishProperties::default();
    body.properties(|id, value| {
        match id {
            property::PAYLOAD_FORMAT => drop(value.flag()?),
            property::MESSAGE_EXPIRY => read.expiry_s = Some(value.u32()?),
            property::CONTENT_TYPE => drop(value.text()?),
            property::RESPONSE_TOPIC => read.response_topic = Some(response_topic(value.text()?)?),
            property::CORRELATION_DATA => read.correlation = Some(value.binary()?),
            property::SUBSCRIPTION_ID => {
                return Err(Fault::protocol("only a server sends subscription identifiers"));
            }
            property::TOPIC_ALIAS => {
                let none = Fault::new(Reason::TopicAliasInvalid, "a topic alias is above 0");
                read.topic_alias = Some(NonZeroU16::new(value.u16()?).ok_or(none)?);
            }
            property::USER => {
                let (name, text) = value.pair()?;
                let is_trace = &*name == super::TRACEPARENT && text.len() <= rpc::MAX_TRACEPARENT_BYTES;
                if is_trace && read.traceparent.is_none() {
                    read.traceparent = Some(text);
                }
            }
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    Ok(read)
}

fn response_topic(topic: ByteString) -> Result<ByteString, Fault> {
    topic_name(topic).map_err(|_| Fault::protocol("a response topic is a topic without wildcards"))
}

fn puback(version: Version, body: &mut Reader) -> Result<NonZeroU16, Fault> {
    let packet_id = packet_id(body)?;
    if version == Version::V5 && !body.is_empty() {
        let reason = PublishAckReason::try_from(body.u8()?);
        reason.map_err(|_| Fault::protocol("PUBACK has no such reason"))?;
        if !body.is_empty() {
            body.diagnostics()?;
        }
    }
    Ok(packet_id)
}

fn subscribe(version: Version, body: &mut Reader) -> Result<Packet, Fault> {
    let packet_id = packet_id(body)?;
    if version == Version::V5 {
        body.properties(|id, value| match id {
            property::SUBSCRIPTION_ID => {
                let what = "subscription identifiers are not supported";
                Err(Fault::new(Reason::SubscriptionIdentifiersNotSupported, what))
            }
            property::USER => value.pair().map(|_| true),
            _ => Ok(false),
        })?;
    }
    let mut filters = Vec::new();
    while !body.is_empty() {
        let filter = topic_filter(body.text()?)?;
        let options = body.u8()?;
        let (qos, reserved) = match version {
            Version::V3 => (options, 0),
            Version::V5 => (options & 3, options & 0xc0),
        };
        let Ok(qos) = QoS::try_from(qos) else { return Err(OPTIONS) };
        if version == Version::V5 {
            if reserved != 0 || options & 0x30 == 0x30 {
                return Err(OPTIONS);
            }
            if options & 4 != 0 && filter.starts_with("$share/") {
                return Err(Fault::protocol("No Local is set on a shared subscription"));
            }
        }
        filters.push((filter, qos));
    }
    if filters.is_empty() {
        return Err(Fault::protocol("SUBSCRIBE needs a filter"));
    }
    Ok(Packet::Subscribe { packet_id, filters })
}

const OPTIONS: Fault = Fault::malformed("the options of a subscription are invalid");

fn unsubscribe(version: Version, body: &mut Reader) -> Result<Packet, Fault> {
    let packet_id = packet_id(body)?;
    if version == Version::V5 {
        body.properties(|id, value| match id {
            property::USER => value.pair().map(|_| true),
            _ => Ok(false),
        })?;
    }
    let mut filters = Vec::new();
    while !body.is_empty() {
        filters.push(topic_filter(body.text()?)?);
    }
    if filters.is_empty() {
        return Err(Fault::protocol("UNSUBSCRIBE needs a filter"));
    }
    Ok(Packet::Unsubscribe { packet_id, filters })
}

/// §3.14.2: which reasons a client may give, and that no session is asked for that CONNECT did not ask for.
fn disconnect(version: Version, body: &mut Reader, keeps_session: bool) -> Result<Packet, Fault> {
    let mut reason = 0;
    if version == Version::V5 && !body.is_empty() {
        reason = body.u8()?;
        if !matches!(reason, 0x00 | 0x04 | 0x80..=0x83 | 0x90 | 0x93..=0x99) {
            return Err(Fault::protocol("no client ends for this reason"));
        }
        if !body.is_empty() {
            body.properties(|id, value| {
                match id {
                    property::SESSION_EXPIRY if value.u32()? > 0 && !keeps_session => {
                        return Err(Fault::protocol("CONNECT asked for no session to be kept"));
                    }
                    property::SESSION_EXPIRY => {}
                    property::REASON_STRING => drop(value.text()?),
                    property::USER => drop(value.pair()?),
                    _ => return Ok(false),
                }
                Ok(true)
            })?;
        }
    }
    Ok(Packet::Disconnect { keeps_will: reason != 0 })
}

fn packet_id(body: &mut Reader) -> Result<NonZeroU16, Fault> {
    NonZeroU16::new(body.u16()?).ok_or(Fault::malformed("a packet id is above 0"))
}

/// Refuses what is no topic filter at all (§4.7.1). Whether it is granted is the session's to say.
fn topic_filter(filter: ByteString) -> Result<ByteString, Fault> {
    let mut levels = filter.split('/').peekable();
    let mut valid = !filter.is_empty();
    while let Some(level) = levels.next() {
        valid &= match level {
            "+" => true,
            "#" => levels.peek().is_none(),
            level => !level.contains(['+', '#']),
        };
    }
    let invalid = Fault::new(Reason::TopicFilterInvalid, "the topic filter is invalid");
    if valid { Ok(filter) } else { Err(invalid) }
}
