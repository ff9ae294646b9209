//! Does the codec read what it should, refuse what it must, and write what its reader takes?

use std::time::Duration;

use proptest::prelude::*;
use rmqtt_codec::types::Publish as ClientPublish;
use rustix::time::{ClockId, clock_gettime};
use tokio_util::codec::Decoder;

use super::*;

const MAX: u32 = 65_536;
const BOTH: [Version; 2] = [Version::V3, Version::V5];
const PUBLISH_QOS_1: u8 = 0x32;

/// A packet: first byte, remaining length, body.
fn frame(first: u8, body: &[u8]) -> BytesMut {
    let mut bytes = BytesMut::from(&[first][..]);
    let mut left = body.len();
    loop {
        bytes.extend_from_slice(&[(left & 0x7f) as u8 | if left > 0x7f { 0x80 } else { 0 }]);
        left >>= 7;
        if left == 0 {
            break;
        }
    }
    bytes.extend_from_slice(body);
    bytes
}

fn text(value: &[u8]) -> Vec<u8> {
    [&(value.len() as u16).to_be_bytes()[..], value].concat()
}

/// CONNECT: name, level, flags, a keep-alive of 60 s, properties (v5), and what follows.
fn connect(name: &str, level: u8, flags: u8, properties: &[u8], payload: &[&[u8]]) -> BytesMut {
    let mut body = text(name.as_bytes());
    body.extend_from_slice(&[level, flags, 0, 60]);
    if level == 5 {
        body.push(properties.len() as u8);
        body.extend_from_slice(properties);
    }
    body.extend(payload.concat());
    frame(0x10, &body)
}

fn connect_311(token: &str) -> BytesMut {
    connect("MQTT", 4, 0x82, b"", &[b"\0\0", &text(token.as_bytes())])
}

/// A PUBLISH at QoS 1 under packet id 9.
fn message(version: Version, topic: &str, properties: &[u8], payload: &[u8]) -> BytesMut {
    let mut body = [text(topic.as_bytes()), vec![0, 9]].concat();
    if version == Version::V5 {
        body.extend_from_slice(&frame(0, properties)[1..]);
    }
    body.extend_from_slice(payload);
    frame(PUBLISH_QOS_1, &body)
}

fn decode(version: Version, mut bytes: BytesMut) -> Result<Option<Packet>, Fault> {
    Codec::new(version).decode(&mut bytes, MAX)
}

fn read(version: Version, bytes: BytesMut) -> Packet {
    decode(version, bytes).unwrap().unwrap()
}

fn read_publish(version: Version, bytes: BytesMut) -> Publish {
    let Packet::Publish(publish) = read(version, bytes) else { panic!() };
    *publish
}

fn opened(mut bytes: BytesMut) -> (Connect, Codec) {
    match open(&mut bytes, 4096) {
        Opening::Connect(connect, codec) => (*connect, codec),
        other => panic!("{other:?}"),
    }
}

fn refused(mut bytes: BytesMut) -> ConnectAckReason {
    match open(&mut bytes, 4096) {
        Opening::Refused(_, reason, _) => reason,
        other => panic!("{other:?} {bytes:?}"),
    }
}

#[test]
fn a_connect_opens_and_what_follows_stays() {
    let mut bytes = connect_311("A1_TEST_TOKEN");
    bytes.extend_from_slice(b"\xc0\0");
    let Opening::Connect(connect, mut codec) = open(&mut bytes, 4096) else { panic!() };
    assert_eq!((connect.username.as_deref(), connect.keep_alive_s), (Some("A1_TEST_TOKEN"), 60));
    assert_eq!((connect.version, codec.version()), (Version::V3, Version::V3));
    assert!(connect.will.is_none() && !connect.wants_session && !connect.auth_method);
    assert_eq!(codec.decode(&mut bytes, MAX), Ok(Some(Packet::PingReq)));
    assert!(bytes.is_empty());
}

#[test]
fn a_connect_in_pieces_is_waited_for() {
    let whole = connect_311("A1_TEST_TOKEN");
    for end in 0..whole.len() {
        let mut part = BytesMut::from(&whole[..end]);
        assert!(matches!(open(&mut part, 4096), Opening::Incomplete), "{end}");
    }
}

#[test]
fn what_is_no_connect_is_a_fault() {
    let table = [
        frame(0xc0, b""),
        frame(0x11, b"\0\x04MQTT\x04\x02\0\x3c\0\0"),
        BytesMut::from("GET / HTTP/1.1\r\n"),
        frame(0x10, b"\0\x04MQTX\x04\x02\0\x3c\0\0"),
        frame(0x10, b"\0\x04MQTT"),
        frame(0x10, b""),
        BytesMut::from(&b"\x10\xff\xff\xff\xff\x01"[..]),
    ];
    for mut bytes in table {
        assert!(matches!(open(&mut bytes, 4096), Opening::Fault(_)), "{bytes:?}");
    }
}

#[test]
fn a_connect_is_as_large_as_is_allowed_before_authentication() {
    let whole = connect_311("A1_TEST_TOKEN");
    let bytes = whole.len() as u32;
    assert!(matches!(open(&mut whole.clone(), bytes), Opening::Connect(..)));
    let mut head = BytesMut::from(&whole[..2]);
    assert!(matches!(open(&mut head, bytes - 1), Opening::Fault(Fault::TOO_LARGE)));
}

#[test]
fn a_version_that_is_not_spoken_is_told_so_in_a_form_that_it_may_know() {
    let (older, newer) = (&[0x20, 2, 0, 0x01][..], &[0x20, 3, 0, 0x84, 0][..]);
    let table = [
        ("MQTT", 6, newer),
        ("MQTT", 255, newer),
        ("MQIsdp", 6, newer),
        ("MQTT", 0, older),
        ("MQTT", 3, older),
        ("MQIsdp", 4, older),
        ("MQIsdp", 5, older),
    ];
    for (name, level, connack) in table {
        let mut bytes = connect(name, level, 2, b"", &[b"\0\0"]);
        let Opening::OtherVersion(said) = open(&mut bytes, 4096) else { panic!("{name} {level}") };
        assert_eq!(said, connack, "{name} {level}");
    }
    assert_eq!(opened(connect("MQIsdp", 3, 2, b"", &[b"\0\0"])).0.version, Version::V3);
}

#[test]
fn a_connect_that_breaks_the_standard_is_refused() {
    use ConnectAckReason as Ack;
    let id = b"\0\0";
    type Row<'a> = (u8, u8, &'a [u8], &'a [&'a [u8]], Ack);
    let table: [Row<'_>; 26] = [
        // The reserved flag, will bits without a will, a QoS that there is not, a password alone.
        (4, 0x03, b"", &[id], Ack::MalformedPacket),
        (5, 0x03, b"", &[id], Ack::MalformedPacket),
        (4, 0x0a, b"", &[id], Ack::MalformedPacket),
        (5, 0x0a, b"", &[id], Ack::MalformedPacket),
        (5, 0x12, b"", &[id], Ack::MalformedPacket),
        (4, 0x22, b"", &[id], Ack::MalformedPacket),
        (5, 0x22, b"", &[id], Ack::MalformedPacket),
        (4, 0x1e, b"", &[id, b"\0\x01t\0\0"], Ack::MalformedPacket),
        (5, 0x1e, b"", &[id, b"\0\0\x01t\0\0"], Ack::MalformedPacket),
        (4, 0x42, b"", &[id, b"\0\x01p"], Ack::MalformedPacket),
        // Fields that are not there, or that nobody announced.
        (4, 0x82, b"", &[id], Ack::MalformedPacket),
        (4, 0xc2, b"", &[id, b"\0\x01u"], Ack::MalformedPacket),
        (4, 0x06, b"", &[id, b"\0\x01t"], Ack::MalformedPacket),
        (4, 0x02, b"", &[id, b"extra"], Ack::MalformedPacket),
        (5, 0x02, b"", &[id, b"extra"], Ack::MalformedPacket),
        // Texts that are none.
        (4, 0x82, b"", &[id, b"\0\x01\xff"], Ack::MalformedPacket),
        (5, 0x82, b"", &[id, b"\0\x02a\0"], Ack::MalformedPacket),
        (4, 0x02, b"", &[b"\0\x01\0"], Ack::MalformedPacket),
        (4, 0x06, b"", &[id, b"\0\x01\0\0\0"], Ack::MalformedPacket),
        (4, 0x06, b"", &[id, b"\0\0\0\0"], Ack::TopicNameInvalid),
        (5, 0x06, b"", &[id, b"\0\0\x01#\0\0"], Ack::TopicNameInvalid),
        (5, 0x02, b"\x26\0\x01\0\0\x01v", &[id], Ack::MalformedPacket),
        // Properties.
        (5, 0x02, b"\x16\0\x01d", &[id], Ack::ProtocolError),
        (5, 0x02, b"\x21\0\x01\x21\0\x01", &[id], Ack::ProtocolError),
        (5, 0x02, b"\x01\x01", &[id], Ack::MalformedPacket),
        (5, 0x02, b"\x17\x02", &[id], Ack::ProtocolError),
    ];
    for (level, flags, properties, payload, reason) in table {
        let bytes = connect("MQTT", level, flags, properties, payload);
        assert_eq!(refused(bytes), reason, "{level} {flags:02x} {properties:?} {payload:?}");
    }
    for maximum in [&b"\x21\0\0"[..], b"\x27\0\0\0\0"] {
        assert_eq!(refused(connect("MQTT", 5, 2, maximum, &[id])), Ack::ProtocolError);
    }
}

#[test]
fn an_empty_client_id_is_refused_only_by_3_1_1_and_only_with_a_session() {
    assert_eq!(refused(connect("MQTT", 4, 0, b"", &[b"\0\0"])), ConnectAckReason::ClientIdentifierNotValid);
    assert_eq!(opened(connect("MQTT", 4, 2, b"", &[b"\0\0"])).0.client_id, "");
    for flags in [0, 2] {
        assert_eq!(opened(connect("MQTT", 5, flags, b"", &[b"\0\0"])).0.client_id, "");
    }
    assert_eq!(opened(connect("MQTT", 4, 0, b"", &[b"\0\x01x"])).0.client_id, "x");
}

#[test]
fn a_connect_says_what_it_wants() {
    let properties =
        b"\x11\0\0\0\x01\x21\0\x07\x27\0\0\x01\0\x17\x00\x19\x01\x22\0\x05\x15\0\x01m\x16\0\x01d\
                       \x26\0\x01n\0\x01v\x26\0\x01n\0\x01v";
    let will =
        b"\x1f\x18\0\0\0\x05\x01\x01\x02\0\0\0\0\x03\0\x01c\x08\0\x01r\x09\0\x01\xff\x26\0\x01n\0\x01v";
    let (connect, codec) = opened(connect(
        "MQTT",
        5,
        0xcc,
        properties,
        &[b"\0\x02me", will, b"\0\x01t\0\x02\0w", b"\0\x01u", b"\0\x01\0"],
    ));
    let will = Will {
        topic: "t".into(),
        payload: Bytes::from_static(b"\0w"),
        qos: QoS::AtLeastOnce,
        retain: false,
        delay_s: 5,
    };
    let expected = Connect {
        version: Version::V5,
        username: Some("u".into()),
        client_id: "me".into(),
        keep_alive_s: 60,
        wants_session: true,
        receive_maximum: 7,
        max_packet_bytes: Some(256),
        auth_method: true,
        tells_problems: false,
        will: Some(will),
    };
    assert_eq!(connect, expected);
    assert_eq!((codec.max_outbound_bytes, codec.tells_problems, codec.keeps_session), (256, false, true));
}

#[test]
fn a_will_is_typed_and_what_is_not_served_of_it_is_refused() {
    let payload: [&[u8]; 2] = [b"\0\x01x", b"\0\x01t\0\x01w"];
    for (flags, qos, retain) in
        [(0x06, QoS::AtMostOnce, false), (0x0e, QoS::AtLeastOnce, false), (0x36, QoS::ExactlyOnce, true)]
    {
        let will = opened(connect("MQTT", 4, flags, b"", &payload)).0.will.unwrap();
        assert_eq!((will.qos, will.retain, will.delay_s), (qos, retain, 0));
        assert_eq!((&*will.topic, &will.payload[..]), ("t", &b"w"[..]));
    }
    let payload: [&[u8]; 2] = [b"\0\x01x", b"\0\0\x01t\0\x01w"];
    assert_eq!(refused(connect("MQTT", 5, 0x16, b"", &payload)), ConnectAckReason::QosNotSupported);
    assert_eq!(refused(connect("MQTT", 5, 0x26, b"", &payload)), ConnectAckReason::RetainNotSupported);
}

#[test]
fn a_packet_that_breaks_the_standard_is_a_fault() {
    use Reason::*;
    use Version::{V3, V5};
    let table: &[(Version, u8, &[u8], Reason)] = &[
        // Flags of the fixed header, and what there is not.
        (V3, 0x80, b"\0\x01\0\x01a\0", MalformedPacket),
        (V5, 0x8a, b"\0\x01\0\0\x01a\0", MalformedPacket),
        (V3, 0xa0, b"\0\x01\0\x01a", MalformedPacket),
        (V5, 0xa3, b"\0\x01\0\0\x01a", MalformedPacket),
        (V3, 0x60, b"\0\x01", MalformedPacket),
        (V3, 0x41, b"\0\x01", MalformedPacket),
        (V3, 0xc1, b"", MalformedPacket),
        (V5, 0xe1, b"", MalformedPacket),
        (V5, 0xf1, b"", MalformedPacket),
        (V3, 0x00, b"", MalformedPacket),
        (V3, 0xf0, b"", MalformedPacket),
        (V5, 0xf0, b"", ProtocolError),
        // What a client may not send, or not now.
        (V3, 0x10, b"\0\x04MQTT\x04\x02\0\x3c\0\0", ProtocolError),
        (V5, 0x10, b"", ProtocolError),
        (V3, 0x20, b"\0\0", ProtocolError),
        (V3, 0x90, b"\0\x01\0", ProtocolError),
        (V3, 0xb0, b"\0\x01", ProtocolError),
        (V3, 0xd0, b"", ProtocolError),
        (V3, 0x50, b"\0\x01", ProtocolError),
        (V3, 0x70, b"\0\x01", ProtocolError),
        (V5, 0x50, b"\0\x01", ProtocolError),
        (V5, 0x62, b"\0\x01", ProtocolError),
        (V5, 0x70, b"\0\x01", ProtocolError),
        // More than the packet has.
        (V3, 0xc0, b"x", MalformedPacket),
        (V5, 0xc0, b"x", MalformedPacket),
        (V3, 0xe0, b"\0", MalformedPacket),
        (V3, 0x40, b"\0\x01\0", MalformedPacket),
        (V3, 0x62, b"\0\x01\0", MalformedPacket),
        (V5, 0x40, b"\0\x01\0\0x", MalformedPacket),
        (V5, 0xe0, b"\0\0x", MalformedPacket),
        // Packet ids.
        (V3, 0x32, b"\0\x01a\0\0", MalformedPacket),
        (V3, 0x40, b"\0\0", MalformedPacket),
        (V3, 0x62, b"\0\0", MalformedPacket),
        (V3, 0x82, b"\0\0\0\x01a\0", MalformedPacket),
        (V3, 0xa2, b"\0\0\0\x01a", MalformedPacket),
        (V3, 0x40, b"\0", MalformedPacket),
        // PUBLISH.
        (V3, 0x36, b"\0\x01a\0\x01", MalformedPacket),
        (V5, 0x36, b"\0\x01a\0\x01\0", MalformedPacket),
        (V3, 0x38, b"\0\x01a", MalformedPacket),
        (V5, 0x34, b"\0\x01a\0\x01\0", QosNotSupported),
        (V5, 0x31, b"\0\x01a\0", RetainNotSupported),
        (V3, 0x30, b"\0\x03a/+", TopicNameInvalid),
        (V5, 0x30, b"\0\x01#\0", TopicNameInvalid),
        (V3, 0x30, b"\0\0", TopicNameInvalid),
        (V5, 0x30, b"\0\0\0", ProtocolError),
        (V3, 0x30, b"\0\x02a\0", MalformedPacket),
        (V3, 0x30, b"\0\x01\xff", MalformedPacket),
        (V3, 0x30, b"\0\x03\xed\xa0\x80", MalformedPacket),
        (V3, 0x30, b"\0\x05a", MalformedPacket),
        (V5, 0x30, b"\0\x01a\x03\x23\0\0", TopicAliasInvalid),
        (V5, 0x30, b"\0\x01a\x02\x01\x02", ProtocolError),
        (V5, 0x30, b"\0\x01a\x04\x08\0\x01+", ProtocolError),
        (V5, 0x30, b"\0\x01a\x03\x08\0\0", ProtocolError),
        (V5, 0x30, b"\0\x01a\x04\x08\0\x01\xff", MalformedPacket),
        (V5, 0x30, b"\0\x01a\x04\x03\0\x01\xff", MalformedPacket),
        (V5, 0x30, b"\0\x01a\x07\x26\0\x01\0\0\x01v", MalformedPacket),
        (V5, 0x30, b"\0\x01a\x07\x26\0\x01n\0\x01\xff", MalformedPacket),
        (V5, 0x30, b"\0\x01a\x02\x0b\x01", ProtocolError),
        (V5, 0x30, b"\0\x01a\x02\x24\x01", MalformedPacket),
        (V5, 0x30, b"\0\x01a\x04\x01\0\x01\0", ProtocolError),
        (V5, 0x30, b"\0\x01a\x02\x01", MalformedPacket),
        (V5, 0x30, b"\0\x01a\x80\x80\x80\x80\x01", MalformedPacket),
        (V5, 0x30, b"\0\x01a", MalformedPacket),
        // PUBACK and DISCONNECT.
        (V5, 0x40, b"\0\x01\x05", ProtocolError),
        (V5, 0x40, b"\0\x01\0\x05\x1f\0\x02a\0", MalformedPacket),
        (V5, 0x40, b"\0\x01\0\x02\x24\0", MalformedPacket),
        (V5, 0xe0, b"\x05", ProtocolError),
        (V5, 0xe0, b"\x8e", ProtocolError),
        (V5, 0xe0, b"\0\x05\x11\0\0\0\x01", ProtocolError),
        (V5, 0xe0, b"\0\x04\x1c\0\x01s", MalformedPacket),
        // SUBSCRIBE and UNSUBSCRIBE.
        (V3, 0x82, b"\0\x01", ProtocolError),
        (V5, 0x82, b"\0\x01\0", ProtocolError),
        (V3, 0xa2, b"\0\x01", ProtocolError),
        (V5, 0xa2, b"\0\x01\0", ProtocolError),
        (V3, 0x82, b"\0\x01\0\x01a", MalformedPacket),
        (V3, 0x82, b"\0\x01\0\x01a\x03", MalformedPacket),
        (V3, 0x82, b"\0\x01\0\x01a\x04", MalformedPacket),
        (V3, 0x82, b"\0\x01\0\x01a\x80", MalformedPacket),
        (V5, 0x82, b"\0\x01\0\0\x01a\x03", MalformedPacket),
        (V5, 0x82, b"\0\x01\0\0\x01a\x40", MalformedPacket),
        (V5, 0x82, b"\0\x01\0\0\x01a\x80", MalformedPacket),
        (V5, 0x82, b"\0\x01\0\0\x01a\x30", MalformedPacket),
        (V5, 0x82, b"\0\x01\0\0\x0a$share/g/a\x04", ProtocolError),
        (V5, 0x82, b"\0\x01\x02\x0b\x01\0\x01a\0", SubscriptionIdentifiersNotSupported),
        (V5, 0x82, b"\0\x01\x02\x24\x01\0\x01a\0", MalformedPacket),
        (V5, 0xa2, b"\0\x01\x02\x24\x01\0\x01a", MalformedPacket),
        (V3, 0x82, b"\0\x01\0\0\0", TopicFilterInvalid),
        (V3, 0x82, b"\0\x01\0\x03a#b\0", TopicFilterInvalid),
        (V3, 0x82, b"\0\x01\0\x03#/a\0", TopicFilterInvalid),
        (V3, 0x82, b"\0\x01\0\x04a/#a\0", TopicFilterInvalid),
        (V3, 0x82, b"\0\x01\0\x02a+\0", TopicFilterInvalid),
        (V3, 0x82, b"\0\x01\0\x01\xff\0", MalformedPacket),
        (V3, 0x82, b"\0\x01\0\x02a\0\0", MalformedPacket),
        (V3, 0xa2, b"\0\x01\0\0", TopicFilterInvalid),
        (V3, 0xa2, b"\0\x01\0\x01\xff", MalformedPacket),
        (V3, 0xa2, b"\0\x01\0\x04a/+b", TopicFilterInvalid),
    ];
    for (version, first, body, reason) in table {
        match decode(*version, frame(*first, body)) {
            Err(fault) => {
                assert_eq!(fault.reason, *reason, "{version:?} {first:02x} {body:?}: {}", fault.what)
            }
            read => panic!("{version:?} {first:02x} {body:?}: {read:?}"),
        }
    }
}

#[test]
fn what_the_standard_allows_is_read() {
    use Version::{V3, V5};
    let packet_id = NonZeroU16::new(9).unwrap();
    let disconnect = |keeps_will| Packet::Disconnect { keeps_will };
    let filters = |filters: &[&str]| filters.iter().map(|it| ByteString::from(*it)).collect::<Vec<_>>();
    let table: &[(Version, u8, &[u8], Packet)] = &[
        (V3, 0xc0, b"", Packet::PingReq),
        (V3, 0xe0, b"", disconnect(false)),
        (V5, 0xe0, b"", disconnect(false)),
        (V5, 0xe0, b"\0", disconnect(false)),
        (V5, 0xe0, b"\x04", disconnect(true)),
        (V5, 0xe0, b"\x99\0", disconnect(true)),
        (V5, 0xe0, b"\0\x05\x11\0\0\0\0", disconnect(false)),
        (V5, 0xe0, b"\x04\x0b\x1f\0\x01r\x26\0\x01n\0\x01v", disconnect(true)),
        (V3, 0x40, b"\0\x09", Packet::PubAck { packet_id }),
        (V5, 0x40, b"\0\x09", Packet::PubAck { packet_id }),
        (V5, 0x40, b"\0\x09\x97", Packet::PubAck { packet_id }),
        (V5, 0x40, b"\0\x09\x10\x0b\x1f\0\x01r\x26\0\x01n\0\x01v", Packet::PubAck { packet_id }),
        (V3, 0x62, b"\0\x09", Packet::PubRel { packet_id }),
        (
            V3,
            0x82,
            b"\0\x09\0\x03a/#\x02\0\x03+/b\x01",
            Packet::Subscribe {
                packet_id,
                filters: vec![("a/#".into(), QoS::ExactlyOnce), ("+/b".into(), QoS::AtLeastOnce)],
            },
        ),
        (
            V5,
            0x82,
            b"\0\x09\x07\x26\0\x01n\0\x01v\0\x01#\x2e",
            Packet::Subscribe { packet_id, filters: vec![("#".into(), QoS::ExactlyOnce)] },
        ),
        (
            V5,
            0x82,
            b"\0\x09\0\0\x0a$share/g/a\0",
            Packet::Subscribe { packet_id, filters: vec![("$share/g/a".into(), QoS::AtMostOnce)] },
        ),
        (
            V3,
            0xa2,
            b"\0\x09\0\x01a\0\x03b/+",
            Packet::Unsubscribe { packet_id, filters: filters(&["a", "b/+"]) },
        ),
        (
            V5,
            0xa2,
            b"\0\x09\x07\x26\0\x01n\0\x01v\0\x01a",
            Packet::Unsubscribe { packet_id, filters: filters(&["a"]) },
        ),
    ];
    for (version, first, body, packet) in table {
        assert_eq!(read(*version, frame(*first, body)), *packet, "{version:?} {first:02x} {body:?}");
    }
    let publish = read_publish(V3, frame(0x3d, b"\0\x03a/b\0\x07payload"));
    assert_eq!((publish.qos, publish.dup, publish.packet_id), (QoS::ExactlyOnce, true, NonZeroU16::new(7)));
    assert_eq!((&*publish.topic, &publish.payload[..]), ("a/b", &b"payload"[..]));
    // A BOM is a character like others (§1.5.4).
    assert_eq!(read_publish(V5, frame(0x30, b"\0\x04\xef\xbb\xbfa\0")).topic, "\u{feff}a");
}

#[test]
fn a_session_may_be_asked_for_at_the_end_only_by_who_asked_at_the_beginning() {
    let later = b"\0\x05\x11\0\0\0\x01";
    let (_, mut codec) = opened(connect("MQTT", 5, 2, b"\x11\0\0\0\x01", &[b"\0\0"]));
    let packet = codec.decode(&mut frame(0xe0, later), MAX);
    assert_eq!(packet, Ok(Some(Packet::Disconnect { keeps_will: false })));
    let (_, mut codec) = opened(connect("MQTT", 5, 2, b"\x11\0\0\0\0", &[b"\0\0"]));
    assert_eq!(codec.decode(&mut frame(0xe0, later), MAX).unwrap_err().reason, Reason::ProtocolError);
}

#[test]
fn the_properties_of_a_message_are_read() {
    let properties = b"\x01\x01\x02\0\0\0\x05\x03\0\x01c\x08\0\x01r\x09\0\x02\0\xff\x23\0\x03\
                       \x26\0\x0btraceparent\0\x05trace\x26\0\x0btraceparent\0\x05later";
    let publish = read_publish(Version::V5, message(Version::V5, "", properties, b"x"));
    let expected = PublishProperties {
        topic_alias: NonZeroU16::new(3),
        response_topic: Some("r".into()),
        correlation: Some(Bytes::from_static(b"\0\xff")),
        expiry_s: Some(5),
        traceparent: Some("trace".into()),
        stamp: Vec::new(),
    };
    assert_eq!((publish.properties, &publish.payload[..]), (expected, &b"x"[..]));
    let expired = read_publish(Version::V5, message(Version::V5, "a", b"\x02\0\0\0\0", b""));
    assert_eq!(expired.properties.expiry_s, Some(0));
}

#[test]
fn what_the_node_stamps_is_never_read_from_a_client() {
    let mut properties = Vec::new();
    for name in ["outcome", "call", "caller", "caller-name", "expires-ms"] {
        properties.push(0x26);
        properties.extend([text(name.as_bytes()), text(b"forged")].concat());
    }
    let publish = read_publish(Version::V5, message(Version::V5, "a", &properties, b""));
    assert_eq!(publish.properties, PublishProperties::default());
    let long = [vec![0x26], text(b"traceparent"), text(&[b'x'; rpc::MAX_TRACEPARENT_BYTES + 1])].concat();
    let publish = read_publish(Version::V5, message(Version::V5, "a", &long, b""));
    assert_eq!(publish.properties.traceparent, None);
}

#[test]
fn the_cost_of_user_properties_grows_with_their_number_alone() {
    // Of this thread alone: how long others had the processor is no cost of the codec's.
    let worked = || Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap();
    let cost = |messages: usize, count: usize| {
        let properties = [0x26, 0, 1, b'n', 0, 1, b'v'].repeat(count);
        let whole = message(Version::V5, "a", &properties, b"");
        let runs = (0..10).map(|_| {
            let mut inbound = vec![whole.clone(); messages];
            let before = worked();
            for bytes in &mut inbound {
                assert!(Codec::new(Version::V5).decode(bytes, 1 << 20).unwrap().is_some());
            }
            worked() - before
        });
        runs.min().unwrap()
    };
    // As many, in one message: squared it would be 32 times the cost.
    let (apart, together) = (cost(32, 500), cost(1, 16_000));
    assert!(together < apart * 8, "{apart:?}, {together:?}");
}

#[test]
fn a_packet_over_the_limit_ends_a_v5_client_before_it_has_come() {
    let whole = message(Version::V5, "a", b"", &[b'x'; 100]);
    let bytes = whole.len() as u32;
    assert!(Codec::new(Version::V5).decode(&mut whole.clone(), bytes).unwrap().is_some());
    for version in BOTH {
        // Over 3.1.1 what is no message ends it too: it could not be acknowledged as if it were done.
        let first = if version == Version::V5 { 0x30 } else { 0x82 };
        let mut head = BytesMut::from(&[first, 0xff, 0xff, 0xff, 0x7f][..]);
        assert_eq!(Codec::new(version).decode(&mut head, MAX), Err(Fault::TOO_LARGE));
    }
    let mut head = BytesMut::from(&whole[..2]);
    assert_eq!(Codec::new(Version::V5).decode(&mut head, bytes - 1), Err(Fault::TOO_LARGE));
    let mut endless = BytesMut::from(&[0x30, 0xff, 0xff, 0xff, 0xff][..]);
    let fault = Codec::new(Version::V5).decode(&mut endless, MAX).unwrap_err();
    assert_eq!(fault.reason, Reason::MalformedPacket);
}

#[test]
fn a_message_over_the_limit_is_read_past_over_3_1_1() {
    let table = [
        (0x30, &b"\0\x03a/b"[..], QoS::AtMostOnce, None),
        (0x32, b"\0\x03a/b\x12\x34", QoS::AtLeastOnce, NonZeroU16::new(0x1234)),
        (0x3d, b"\0\x03a/b\x12\x34", QoS::ExactlyOnce, NonZeroU16::new(0x1234)),
    ];
    for (first, header, qos, packet_id) in table {
        let mut whole = frame(first, &[header, &[b'x'; 500]].concat());
        whole.extend_from_slice(b"\xc0\0");
        for piece in [1, 7, 400, 1000] {
            let (mut codec, mut inbound, mut packets) =
                (Codec::new(Version::V3), BytesMut::new(), Vec::new());
            for bytes in whole.chunks(piece) {
                inbound.extend_from_slice(bytes);
                while let Some(packet) = codec.decode(&mut inbound, 100).unwrap() {
                    packets.push(packet);
                }
                assert!(inbound.len() < 5, "{} bytes wait", inbound.len());
            }
            let expected = Packet::TooLarge { topic: "a/b".into(), qos, packet_id };
            assert_eq!(packets, [expected, Packet::PingReq], "{first:02x} {piece}");
        }
    }
}

#[test]
fn of_a_message_over_the_limit_little_is_kept_and_nothing_is_made_up() {
    let topic = "ü".repeat(30_000);
    let mut whole = frame(0x32, &[text(topic.as_bytes()), vec![0, 9], vec![b'x'; 70_000]].concat());
    let packet = Codec::new(Version::V3).decode(&mut whole, MAX).unwrap();
    let Some(Packet::TooLarge { topic, packet_id, .. }) = packet else { panic!() };
    assert_eq!((topic, packet_id), ("ü".repeat(128).into(), NonZeroU16::new(9)));
    for (first, body) in [
        (0x32, &b"\0\x63a"[..]),
        (0x32, b"\0\x62"),
        (0x30, b"\0\x63"),
        (0x32, b"\0\x01a\0\0"),
        (0x36, b"\0\x01a\0\x01"),
    ] {
        let mut body = body.to_vec();
        body.resize(100, b'x');
        assert!(Codec::new(Version::V3).decode(&mut frame(first, &body), 50).is_err(), "{first:02x}");
    }
}

#[test]
fn what_is_written_reads_back() {
    for version in BOTH {
        let mut codec = Codec::new(version);
        let mut out = BytesMut::new();
        let topic = ByteString::from_static("v1/devices/me/rpc/response/7");
        let payload = Bytes::from_static(br#"{"status":"ok"}"#);
        let properties = PublishProperties {
            correlation: (version == Version::V5).then(|| Bytes::from_static(b"\0\x01")),
            ..Default::default()
        };
        let packet_id = NonZeroU16::new(9);
        codec.publish(topic.clone(), packet_id, payload.clone(), properties.clone(), &mut out);
        let Ok(Some(Packet::Publish(publish))) = codec.decode(&mut out, MAX) else { panic!() };
        let (qos, dup) = (QoS::AtLeastOnce, false);
        assert_eq!(*publish, Publish { topic, qos, dup, packet_id, payload, properties });
        assert!(out.is_empty());
    }
}

#[test]
fn the_stamp_is_written_as_user_properties() {
    let properties = PublishProperties {
        traceparent: Some("00-1-2-01".into()),
        stamp: vec![("outcome", "Offline".into()), ("call", "1-2".into())],
        ..Default::default()
    };
    let mut out = BytesMut::new();
    Codec::new(Version::V5).publish("a".into(), None, Bytes::new(), properties.clone(), &mut out);
    let Ok(Some((v5::Packet::Publish(publish), _))) = v5::Codec::new(0, 0).decode(&mut out) else { panic!() };
    let user = publish.properties.unwrap().user_properties;
    let user: Vec<_> = user.iter().map(|(name, value)| (&**name, &**value)).collect();
    assert_eq!(user, [("traceparent", "00-1-2-01"), ("outcome", "Offline"), ("call", "1-2")]);
    Codec::new(Version::V3).publish("a".into(), None, Bytes::new(), properties, &mut out);
    assert_eq!(&out[..], b"\x30\x03\0\x01a");
}

#[test]
fn acknowledgements_to_the_byte() {
    let packet_id = NonZeroU16::new(0x0102).unwrap();
    let written = |version, write: fn(&Codec, NonZeroU16, &mut BytesMut)| {
        let mut out = BytesMut::new();
        write(&Codec::new(version), packet_id, &mut out);
        out
    };
    use SubscribeAckReason as Status;
    let suback = |codec: &Codec, id, out: &mut BytesMut| {
        codec.suback(id, &[Status::GrantedQos1, Status::NotAuthorized, Status::GrantedQos0], out);
    };
    let unsuback = |codec: &Codec, id, out: &mut BytesMut| codec.unsuback(id, &[true, false], out);
    let puback = |codec: &Codec, id, out: &mut BytesMut| {
        codec.puback(id, PublishAckReason::TopicNameInvalid, "why", out);
    };
    let disconnect =
        |codec: &Codec, _, out: &mut BytesMut| codec.disconnect(Reason::SessionTakenOver, "w", out);
    assert_eq!(&written(Version::V3, puback)[..], b"\x40\x02\x01\x02");
    assert_eq!(&written(Version::V5, puback)[..], b"\x40\x0a\x01\x02\x90\x06\x1f\0\x03why");
    assert_eq!(&written(Version::V3, |codec, id, out| codec.pubrec(id, out))[..], b"\x50\x02\x01\x02");
    assert_eq!(&written(Version::V3, |codec, id, out| codec.pubcomp(id, out))[..], b"\x70\x02\x01\x02");
    assert_eq!(&written(Version::V3, suback)[..], b"\x90\x05\x01\x02\x01\x80\0");
    assert_eq!(&written(Version::V5, suback)[..], b"\x90\x06\x01\x02\0\x01\x87\0");
    assert_eq!(&written(Version::V3, unsuback)[..], b"\xb0\x02\x01\x02");
    assert_eq!(&written(Version::V5, unsuback)[..], b"\xb0\x05\x01\x02\0\0\x11");
    assert_eq!(&written(Version::V3, |codec, _, out| codec.pingresp(out))[..], b"\xd0\0");
    assert_eq!(&written(Version::V5, |codec, _, out| codec.pingresp(out))[..], b"\xd0\0");
    assert_eq!(&written(Version::V3, disconnect)[..], b"");
    assert_eq!(&written(Version::V5, disconnect)[..], b"\xe0\x06\x8e\x04\x1f\0\x01w");
}

#[test]
fn a_refusal_has_a_return_code_in_3_1_1() {
    let table = [
        (ConnectAckReason::Success, 0),
        (ConnectAckReason::ClientIdentifierNotValid, 2),
        (ConnectAckReason::ServerUnavailable, 3),
        (ConnectAckReason::ConnectionRateExceeded, 3),
        (ConnectAckReason::BadUserNameOrPassword, 4),
        (ConnectAckReason::NotAuthorized, 5),
    ];
    for (reason_code, return_code) in table {
        for (version, expected) in [
            (Version::V3, vec![0x20, 2, 0, return_code]),
            (Version::V5, vec![0x20, 3, 0, reason_code.into(), 0]),
        ] {
            let mut out = BytesMut::new();
            Codec::new(version).connack(ConnectAck { reason_code, ..Default::default() }, &mut out);
            assert_eq!(&out[..], expected);
        }
    }
}

/// §3.1.2.11.7: PUBLISH, CONNACK and DISCONNECT alone may say why all the same.
#[test]
fn who_does_not_want_to_hear_why_does_not() {
    let codec = Codec { tells_problems: false, ..Codec::new(Version::V5) };
    let mut out = BytesMut::new();
    codec.puback(NonZeroU16::MIN, PublishAckReason::QuotaExceeded, "why", &mut out);
    assert_eq!(&out[..], b"\x40\x04\0\x01\x97\0");
}

/// A v5 codec for a client that takes packets of so many bytes.
fn narrow(max_outbound_bytes: usize) -> Codec {
    let max_outbound_bytes = max_outbound_bytes.try_into().unwrap_or(u32::MAX);
    Codec { max_outbound_bytes, ..Codec::new(Version::V5) }
}

#[test]
fn nothing_is_written_that_is_larger_than_the_client_takes() {
    let why = "the reason in words";
    let packet_id = NonZeroU16::MIN;
    let ack = ConnectAck {
        reason_code: ConnectAckReason::NotAuthorized,
        reason_string: Some(ByteString::from_static(why)),
        ..Default::default()
    };
    for max in 0..60 {
        let codec = narrow(max);
        let mut parts = Vec::new();
        let mut wrote = |write: &dyn Fn(&mut BytesMut)| {
            let mut out = BytesMut::from("before");
            write(&mut out);
            assert!(out.starts_with(b"before") && out.len() - 6 <= max, "{max}: {out:?}");
            parts.push(out.len() - 6);
        };
        wrote(&|out| codec.puback(packet_id, PublishAckReason::QuotaExceeded, why, out));
        wrote(&|out| codec.disconnect(Reason::ProtocolError, why, out));
        wrote(&|out| assert_eq!(codec.connack(ack.clone(), out), max >= 5));
        wrote(&|out| codec.suback(packet_id, &[SubscribeAckReason::GrantedQos0; 3], out));
        wrote(&|out| codec.unsuback(packet_id, &[true; 3], out));
        wrote(&|out| codec.pingresp(out));
        wrote(&|out| {
            codec.publish("a".into(), None, "0123456789".into(), Default::default(), out);
        });
        // As much as fits: with its words, without them, or nothing.
        let words = 3 + why.len();
        let expected = |brief: usize| match max {
            max if max >= brief + words => brief + words,
            max if max >= brief => brief,
            _ => 0,
        };
        let fixed = |bytes| if max >= bytes { bytes } else { 0 };
        let bytes = [expected(6), expected(4), expected(5), fixed(8), fixed(8), fixed(2), fixed(16)];
        assert_eq!(parts, bytes, "{max}");
    }
}

/// A client's packets, as somebody else writes them.
fn client_packet() -> impl Strategy<Value = (v3::Packet, v5::Packet)> {
    let id = (1u16..).prop_map(|id| NonZeroU16::new(id).unwrap());
    let topic = "[a-zü/]{1,40}".prop_map(ByteString::from);
    let payload = proptest::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
    let user = proptest::collection::vec(("[a-zü]{0,9}", "[a-zü]{0,200}"), 0..4);
    let user =
        user.prop_map(|pairs| pairs.into_iter().map(|(n, v)| (n.into(), v.into())).collect::<Vec<_>>());
    (0u8..5, id, topic, payload, user, any::<bool>()).prop_map(
        |(kind, packet_id, topic, payload, user, flag)| {
            let (qos, dup) = if flag { (QoS::AtLeastOnce, true) } else { (QoS::AtMostOnce, false) };
            match kind {
                0 | 1 => {
                    let properties = v5::PublishProperties {
                        response_topic: flag.then(|| topic.clone()),
                        correlation_data: Some(payload.clone()),
                        user_properties: user,
                        ..Default::default()
                    };
                    let packet_id = flag.then_some(packet_id);
                    let publish = ClientPublish {
                        dup,
                        retain: false,
                        qos,
                        topic,
                        packet_id,
                        payload,
                        properties: None,
                    };
                    let with = ClientPublish { properties: Some(properties), ..publish.clone() };
                    (v3::Packet::Publish(Box::new(publish)), v5::Packet::Publish(Box::new(with)))
                }
                2 => (
                    v3::Packet::Subscribe { packet_id, topic_filters: vec![(topic.clone(), qos); 3] },
                    v5::Packet::Subscribe(v5::Subscribe {
                        packet_id,
                        id: None,
                        user_properties: user,
                        topic_filters: vec![
                            (topic, v5::SubscriptionOptions { qos, ..Default::default() });
                            3
                        ],
                    }),
                ),
                3 => (
                    v3::Packet::Unsubscribe { packet_id, topic_filters: vec![topic.clone(); 3] },
                    v5::Packet::Unsubscribe(v5::Unsubscribe {
                        packet_id,
                        user_properties: user,
                        topic_filters: vec![topic; 3],
                    }),
                ),
                _ => (
                    v3::Packet::PublishAck { packet_id },
                    v5::Packet::PublishAck(v5::PublishAck {
                        packet_id,
                        properties: user,
                        ..Default::default()
                    }),
                ),
            }
        },
    )
}

proptest! {
    /// What is said to fit is what is written, to the byte.
    #[test]
    fn what_fits_is_written(
        topic in "[a-z]{1,200}",
        texts in proptest::collection::vec(proptest::option::of("[a-z]{0,300}"), 5),
        payload in 0usize..20_000,
        packet_id in proptest::option::of(Just(NonZeroU16::MIN)),
        slack in 0usize..3,
    ) {
        let text = |at: usize| texts[at].clone().map(ByteString::from);
        let properties = PublishProperties {
            response_topic: text(0),
            correlation: text(1).map(ByteString::into_bytes),
            traceparent: text(2),
            stamp: [("outcome", text(3)), ("caller-name", text(4))]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect(),
            ..Default::default()
        };
        let qos = if packet_id.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce };
        let written = |max| {
            let mut out = BytesMut::new();
            let payload = Bytes::from(vec![b'x'; payload]);
            narrow(max).publish(topic.as_str().into(), packet_id, payload, properties.clone(), &mut out);
            out.len()
        };
        let bytes = written(usize::MAX);
        let max = bytes + slack - 1;
        prop_assert_eq!(narrow(max).fits(&topic, qos, payload, &properties), slack > 0);
        prop_assert_eq!(written(max), if slack > 0 { bytes } else { 0 });
    }

    /// rmqtt-codec writes a client's packets, and both versions of one read the same.
    #[test]
    fn what_another_codec_writes_is_read((old, new) in client_packet()) {
        let (mut old_bytes, mut new_bytes) = (BytesMut::new(), BytesMut::new());
        v3::Codec::new(0).encode(old.clone(), &mut old_bytes).unwrap();
        v5::Codec::new(0, 0).encode(new, &mut new_bytes).unwrap();
        let read_old = read(Version::V3, old_bytes);
        let mut read_new = read(Version::V5, new_bytes);
        if let Packet::Publish(publish) = &mut read_new {
            let properties = std::mem::take(&mut publish.properties);
            let v3::Packet::Publish(sent) = &old else { panic!() };
            prop_assert_eq!(properties.response_topic, sent.packet_id.map(|_| sent.topic.clone()));
            prop_assert_eq!(properties.correlation.as_ref(), Some(&sent.payload));
            prop_assert_eq!((&publish.topic, &publish.payload), (&sent.topic, &sent.payload));
            prop_assert_eq!((publish.qos, publish.dup), (sent.qos, sent.dup));
        }
        prop_assert_eq!(read_old, read_new);
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = open(&mut BytesMut::from(&bytes[..]), 4096);
        for version in BOTH {
            let mut inbound = BytesMut::from(&bytes[..]);
            let mut codec = Codec::new(version);
            while let Ok(Some(_)) = codec.decode(&mut inbound, 100) {}
        }
    }

    #[test]
    fn frames_of_any_kind_do_not_panic(
        first in any::<u8>(),
        body in proptest::collection::vec(any::<u8>(), 0..127),
    ) {
        for version in BOTH {
            let _ = decode(version, frame(first, &body));
        }
        let _ = open(&mut frame(0x10, &body), 4096);
        let _ = open(&mut connect("MQTT", 5, first, b"", &[&body]), 4096);
    }
}
