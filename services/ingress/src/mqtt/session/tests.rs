//! Does a session do what it must with what happens to it?

use std::collections::BTreeSet;

use proptest::prelude::*;
use rmqtt_codec::{v3, v5};
use rpc::{Budget, CallId, DeliveryReply, NodeId};
use tokio_util::codec::{Decoder, Encoder};

use super::*;
use crate::calls;
use crate::device::mailbox::Incoming;
use crate::device::target::{Caller, TargetLimits};
use crate::mqtt::codec::Version;
use rpc::Rate;

const MAX: u32 = 65_536;

fn limits() -> SessionLimits {
    let target = TargetLimits { max_waiting: 4, max_waiting_bytes: 100_000, max_open: 4 };
    SessionLimits {
        server_reference: None,
        device: DeviceLimits { max_calls_per_caller: 4, target, ..DeviceLimits::for_tests() },
        max_subscriptions: 4,
        receive_maximum: 2,
        topic_alias_maximum: 2,
    }
}

fn session(version: Version, receive_maximum: u16, now: Instant) -> Session {
    let caller = Arc::new(Mutex::new(CallerLimits::new(now)));
    Session::new(Codec::new(version), Arc::new(limits()), caller, 60, receive_maximum, None, now)
}

fn v3_bytes(packets: impl IntoIterator<Item = v3::Packet>) -> BytesMut {
    let mut bytes = BytesMut::new();
    for packet in packets {
        v3::Codec::new(0).encode(packet, &mut bytes).unwrap();
    }
    bytes
}

fn v5_bytes(packet: v5::Packet) -> BytesMut {
    let mut bytes = BytesMut::new();
    v5::Codec::new(0, 0).encode(packet, &mut bytes).unwrap();
    bytes
}

fn v3_out(session: &mut Session) -> Vec<v3::Packet> {
    let mut codec = v3::Codec::new(0);
    std::iter::from_fn(|| codec.decode(session.out()).unwrap().map(|(packet, _)| packet)).collect()
}

fn v5_out(session: &mut Session) -> Vec<v5::Packet> {
    let mut codec = v5::Codec::new(0, 0);
    std::iter::from_fn(|| codec.decode(session.out()).unwrap().map(|(packet, _)| packet)).collect()
}

fn ended(outcome: Outcome, body: impl Into<Bytes>) -> calls::Ended {
    let call = Some(CallId { node: NodeId(1), serial: 2 });
    calls::Ended { call, ..calls::Ended::here(outcome, body.into()) }
}

fn effects(session: &mut Session) -> Vec<Effect> {
    std::iter::from_fn(|| session.next_effect()).collect()
}

fn message(topic: &str, packet_id: Option<u16>, payload: &str) -> rmqtt_codec::types::Publish {
    rmqtt_codec::types::Publish {
        dup: false,
        retain: false,
        qos: if packet_id.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce },
        topic: topic.into(),
        packet_id: packet_id.and_then(NonZeroU16::new),
        payload: Bytes::copy_from_slice(payload.as_bytes()),
        properties: None,
    }
}

fn subscribe(filter: &str, qos: QoS) -> v3::Packet {
    v3::Packet::Subscribe { packet_id: NonZeroU16::MIN, topic_filters: vec![(filter.into(), qos)] }
}

/// Subscribes, and lets the claim stand.
fn callable(session: &mut Session, filter: &str, qos: QoS, now: Instant) {
    session.received(&mut v3_bytes([subscribe(filter, qos)]), MAX, now);
    for effect in effects(session) {
        if let Effect::Claim(pending) = effect {
            session.claimed(pending, true);
        }
    }
    v3_out(session);
}

fn incoming(oneway: bool, budget_ms: u32, now: Instant) -> Box<Incoming> {
    Box::new(Incoming {
        call: CallId { node: NodeId(1), serial: 1 },
        caller: None,
        oneway,
        traceparent: Some("00-1-2-01".into()),
        method: None,
        body: Bytes::from_static(br#"{"x":1}"#),
        deadline: Budget::from_ms(budget_ms).starting(now),
        verdict: None,
        reply_to: Router {
            inbox: "swb.reply.1.1".into(),
            arrived: now,
            span: Default::default(),
            place: None,
        },
        late: None,
    })
}

fn replies(session: &mut Session) -> Vec<(DeliveryReply, Bytes)> {
    effects(session)
        .into_iter()
        .filter_map(|effect| match effect {
            Effect::Conclude(Conclusion::Call { reply, body, .. }) => Some((reply?, body)),
            _ => None,
        })
        .collect()
}

const CALL: &str =
    r#"{"method":"sendMsg","params":{"deviceId":"aa435e80-9fce-11e6-8080-808080808080","timeout":2000}}"#;

#[test]
fn a_subscribe_is_acknowledged_once_the_claim_stands() {
    let now = Instant::now();
    for (stands, status) in [
        (true, v3::SubscribeReturnCode::Success(QoS::AtLeastOnce)),
        (false, v3::SubscribeReturnCode::Failure),
    ] {
        let mut session = session(Version::V3, 10, now);
        let filter = "v1/devices/me/rpc/request/+";
        session.received(&mut v3_bytes([subscribe(filter, QoS::ExactlyOnce)]), MAX, now);
        assert!(v3_out(&mut session).is_empty());
        let Some(Effect::Claim(pending)) = session.next_effect() else { panic!() };
        session.claimed(pending, stands);
        let [v3::Packet::SubscribeAck { status: said, .. }] = &v3_out(&mut session)[..] else { panic!() };
        assert_eq!(said, &[status]);

        session.deliver(incoming(false, 1000, now), now);
        assert_eq!(replies(&mut session).len(), usize::from(!stands));
    }
}

#[test]
fn a_call_and_its_answer() {
    let now = Instant::now();
    let mut session = session(Version::V3, 10, now);
    let input = [
        subscribe("v1/devices/me/rpc/response/+", QoS::AtMostOnce),
        message("v1/devices/me/rpc/request/7", Some(3), CALL).into(),
    ];
    session.received(&mut v3_bytes(input), MAX, now);
    let [Effect::Ask(ticket, Request::SendMsg { timeout, .. }, None)] = &effects(&mut session)[..] else {
        panic!()
    };
    assert_eq!(timeout.as_ms(), 2000);
    session.answered(ticket, ended(Outcome::Answered, Bytes::from_static(b" {\"a\" : 1}")));
    let [v3::Packet::SubscribeAck { .. }, v3::Packet::PublishAck { .. }, v3::Packet::Publish(answer)] =
        &v3_out(&mut session)[..]
    else {
        panic!()
    };
    assert_eq!((&*answer.topic, &answer.payload[..]), ("v1/devices/me/rpc/response/7", &b" {\"a\" : 1}"[..]));
}

#[test]
fn an_answer_without_a_subscription_is_dropped() {
    let now = Instant::now();
    let mut session = session(Version::V3, 10, now);
    session.received(&mut v3_bytes([message("v1/devices/me/rpc/request/7", None, CALL).into()]), MAX, now);
    let [Effect::Ask(ticket, ..)] = &effects(&mut session)[..] else { panic!() };
    session.answered(ticket, ended(Outcome::Offline, Bytes::new()));
    assert!(matches!(effects(&mut session)[..], [Effect::AnswerUnheard]));
    assert!(v3_out(&mut session).is_empty());
}

#[test]
fn a_caller_over_its_limit_reads_so() {
    let now = Instant::now();
    let mut session = session(Version::V3, 10, now);
    callable(&mut session, "v1/devices/me/rpc/response/+", QoS::AtMostOnce, now);
    let calls = (0..5).map(|id| message(&format!("v1/devices/me/rpc/request/{id}"), None, CALL).into());
    session.received(&mut v3_bytes(calls), MAX, now);
    let asks = effects(&mut session).iter().filter(|it| matches!(it, Effect::Ask(..))).count();
    assert_eq!(asks, 4);
    let [v3::Packet::Publish(answer)] = &v3_out(&mut session)[..] else { panic!() };
    assert_eq!(&answer.payload[..], br#"{"error":"Too many requests!"}"#);
}

#[test]
fn a_target_reads_the_call_and_its_answer_goes_back() {
    let now = Instant::now();
    let mut session = session(Version::V3, 10, now);
    callable(&mut session, "v1/devices/me/rpc/request/+", QoS::AtMostOnce, now);
    session.deliver(incoming(false, 1000, now), now);
    let [v3::Packet::Publish(call)] = &v3_out(&mut session)[..] else { panic!() };
    assert_eq!(&*call.topic, "v1/devices/me/rpc/request/1");
    assert_eq!(&call.payload[..], br#"{"method":"onMsg","params":{"x":1}}"#);

    let input = [
        message("v1/devices/me/rpc/response/1", None, "{\"status\": \"ok\"} ").into(),
        message("v1/devices/me/rpc/response/1", None, "{\"twice\":true}").into(),
    ];
    session.received(&mut v3_bytes(input), MAX, now);
    let expected = (DeliveryReply::Ended(Outcome::Answered), Bytes::from_static(b"{\"status\": \"ok\"} "));
    assert_eq!(replies(&mut session), [expected]);

    // Not JSON, and 3.1.1 cannot be told.
    session.deliver(incoming(false, 1000, now), now);
    let input = message("v1/devices/me/rpc/response/2", Some(1), "ok").into();
    session.received(&mut v3_bytes([input]), MAX, now);
    assert_eq!(replies(&mut session), [(DeliveryReply::Ended(Outcome::AnswerInvalid), Bytes::new())]);
}

#[test]
fn a_oneway_call_is_delivered_once_the_connection_has_it() {
    let now = Instant::now();
    let delivered = [(DeliveryReply::Ended(Outcome::Delivered), Bytes::new())];
    let mut at_qos_0 = session(Version::V3, 10, now);
    callable(&mut at_qos_0, "v1/devices/me/rpc/request/+", QoS::AtMostOnce, now);
    at_qos_0.deliver(incoming(true, 1000, now), now);
    assert!(replies(&mut at_qos_0).is_empty());
    at_qos_0.flushed();
    assert_eq!(replies(&mut at_qos_0), delivered);

    let mut at_qos_1 = session(Version::V3, 10, now);
    callable(&mut at_qos_1, "v1/devices/me/rpc/request/+", QoS::AtLeastOnce, now);
    at_qos_1.deliver(incoming(true, 1000, now), now);
    at_qos_1.flushed();
    let [v3::Packet::Publish(call)] = &v3_out(&mut at_qos_1)[..] else { panic!() };
    assert!(replies(&mut at_qos_1).is_empty());
    let ack = v3::Packet::PublishAck { packet_id: call.packet_id.unwrap() };
    at_qos_1.received(&mut v3_bytes([ack]), MAX, now);
    assert_eq!(replies(&mut at_qos_1), delivered);
}

#[test]
fn the_clients_receive_maximum_is_kept() {
    let now = Instant::now();
    let mut session = session(Version::V3, 1, now);
    callable(&mut session, "v1/devices/me/rpc/request/+", QoS::AtLeastOnce, now);
    for _ in 0..3 {
        session.deliver(incoming(false, 1000, now), now);
    }
    for number in 1..=3 {
        let [v3::Packet::Publish(call)] = &v3_out(&mut session)[..] else { panic!() };
        assert_eq!(*call.topic, format!("v1/devices/me/rpc/request/{number}"));
        let ack = v3::Packet::PublishAck { packet_id: call.packet_id.unwrap() };
        session.received(&mut v3_bytes([ack]), MAX, now);
    }
    assert!(v3_out(&mut session).is_empty());
}

#[test]
fn what_is_open_when_a_session_ends_is_answered() {
    let now = Instant::now();
    let mut session = session(Version::V3, 1, now);
    callable(&mut session, "v1/devices/me/rpc/request/+", QoS::AtLeastOnce, now);
    for _ in 0..2 {
        session.deliver(incoming(false, 1000, now), now);
    }
    session.end(Ended::ByClient, now);
    let mut replies = replies(&mut session);
    replies.sort_by_key(|(reply, _)| format!("{reply:?}"));
    // The one that was written may have been seen; the one that waited was not.
    assert_eq!(
        replies,
        [(DeliveryReply::Ended(Outcome::Lost), Bytes::new()), (DeliveryReply::NotHere, Bytes::new())]
    );
}

#[test]
fn a_target_that_hears_one_number_is_called_under_it() {
    let now = Instant::now();
    let mut session = session(Version::V3, 10, now);
    callable(&mut session, "v1/devices/me/rpc/request/42", QoS::AtMostOnce, now);
    session.deliver(incoming(false, 1000, now), now);
    let [v3::Packet::Publish(call)] = &v3_out(&mut session)[..] else { panic!() };
    assert_eq!(&*call.topic, "v1/devices/me/rpc/request/42");
    session.deliver(incoming(false, 1000, now), now);
    let busy = DeliveryReply::Ended(Outcome::Busy(Limit::TargetInFlight));
    assert_eq!(replies(&mut session), [(busy, Bytes::new())]);
}

#[test]
fn an_unsubscribe_releases_the_claim_first() {
    let now = Instant::now();
    let mut session = session(Version::V3, 10, now);
    callable(&mut session, "v1/devices/me/rpc/request/+", QoS::AtMostOnce, now);
    let unsubscribe = v3::Packet::Unsubscribe {
        packet_id: NonZeroU16::MIN,
        topic_filters: vec!["v1/devices/me/rpc/request/+".into()],
    };
    session.received(&mut v3_bytes([unsubscribe]), MAX, now);
    assert!(v3_out(&mut session).is_empty());
    let Some(Effect::Release(pending)) = session.next_effect() else { panic!() };
    session.released(&pending);
    assert!(matches!(v3_out(&mut session)[..], [v3::Packet::UnsubscribeAck { .. }]));
}

#[test]
fn silence_ends_a_session_after_one_and_a_half_keep_alives() {
    let now = Instant::now();
    let mut session = session(Version::V5, 10, now);
    session.received(&mut v5_bytes(v5::Packet::PingRequest), MAX, now + Duration::from_secs(10));
    assert_eq!(session.next_tick(), now + Duration::from_secs(100));
    session.tick(now + Duration::from_secs(99));
    assert!(effects(&mut session).is_empty());
    session.tick(now + Duration::from_secs(100));
    assert!(matches!(effects(&mut session)[..], [Effect::Close(Ended::KeepAlive)]));
    let out = v5_out(&mut session);
    let [v5::Packet::PingResponse, v5::Packet::Disconnect(disconnect)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(disconnect.reason_code, Reason::KeepAliveTimeout);
}

#[test]
fn a_v5_request_has_its_properties_honoured() {
    let now = Instant::now();
    let mut session = session(Version::V5, 10, now);
    let subscribe = v5::Subscribe {
        packet_id: NonZeroU16::MIN,
        id: None,
        user_properties: Vec::new(),
        topic_filters: vec![("v1/devices/me/rpc/response/#".into(), Default::default())],
    };
    session.received(&mut v5_bytes(v5::Packet::Subscribe(subscribe)), MAX, now);
    let mut call = message("v1/devices/me/rpc/request/7", None, CALL);
    call.properties = Some(v5::PublishProperties {
        topic_alias: NonZeroU16::new(2),
        correlation_data: Some(Bytes::from_static(b"c")),
        message_expiry_interval: std::num::NonZeroU32::new(1),
        response_topic: Some("v1/devices/me/rpc/response/mine".into()),
        user_properties: vec![("traceparent".into(), "00-1-2-01".into())],
        ..Default::default()
    });
    session.received(&mut v5_bytes(v5::Packet::Publish(Box::new(call.clone()))), MAX, now);
    // The alias stands for the topic now.
    call.topic = ByteString::new();
    session.received(&mut v5_bytes(v5::Packet::Publish(Box::new(call))), MAX, now);
    let effects = effects(&mut session);
    let [Effect::Ask(ticket, Request::SendMsg { timeout, .. }, Some(trace)), Effect::Ask(..)] = &effects[..]
    else {
        panic!("{effects:?}")
    };
    assert_eq!((timeout.as_ms(), &**trace), (1000, "00-1-2-01"));
    session.answered(ticket, ended(Outcome::TimedOut, Bytes::new()));
    let out = v5_out(&mut session);
    let [v5::Packet::SubscribeAck(_), v5::Packet::Publish(answer)] = &out[..] else { panic!("{out:?}") };
    assert_eq!(&*answer.topic, "v1/devices/me/rpc/response/mine");
    let correlation = answer.properties.as_ref().unwrap().correlation_data.clone();
    assert_eq!(correlation, Some(Bytes::from_static(b"c")));
}

#[test]
fn a_v5_client_is_told_in_words_why_the_node_ends_its_session() {
    let now = Instant::now();
    let mut words = BTreeSet::new();
    for (reason, code) in [
        (EndReason::TakenOver, Reason::SessionTakenOver),
        (EndReason::OneTooMany, Reason::SessionTakenOver),
        (EndReason::Revoked, Reason::AdministrativeAction),
        (EndReason::ShuttingDown, Reason::ServerShuttingDown),
        (EndReason::Moved, Reason::ServerShuttingDown),
    ] {
        let mut session = session(Version::V5, 10, now);
        session.end_by_node(reason);
        let [v5::Packet::Disconnect(told)] = &v5_out(&mut session)[..] else { panic!("{reason:?}") };
        assert_eq!(told.reason_code, code);
        assert!(words.insert(told.reason_string.clone().unwrap()), "{reason:?} is told as another");
    }
}

#[test]
fn a_draining_session_ends_when_its_last_call_has() {
    let now = Instant::now();
    let mut session = session(Version::V3, 10, now);
    callable(&mut session, "v1/devices/me/rpc/request/+", QoS::AtMostOnce, now);
    session.deliver(incoming(false, 1000, now), now);
    session.leave(EndReason::ShuttingDown);
    assert!(effects(&mut session).is_empty() && session.wants_input());
    session.received(&mut v3_bytes([message("v1/devices/me/rpc/response/1", None, "1").into()]), MAX, now);
    let effects = effects(&mut session);
    assert!(
        matches!(effects[..], [Effect::Conclude(..), Effect::Close(Ended::ByNode(EndReason::ShuttingDown))]),
        "{effects:?}"
    );
}

const RESPONSES: &str = "v1/devices/me/rpc/response/+";
const REQUEST_7: &str = "v1/devices/me/rpc/request/7";
const TELEMETRY: &str = "v1/devices/me/telemetry";

/// A message of either version, as its bytes.
fn sent(version: Version, message: rmqtt_codec::types::Publish) -> BytesMut {
    match version {
        Version::V3 => v3_bytes([message.into()]),
        Version::V5 => v5_bytes(v5::Packet::Publish(Box::new(message))),
    }
}

fn at(qos: QoS, topic: &str, packet_id: u16, payload: &str) -> rmqtt_codec::types::Publish {
    let packet_id = (qos != QoS::AtMostOnce).then_some(packet_id);
    rmqtt_codec::types::Publish { qos, ..message(topic, packet_id, payload) }
}

/// What was written, as short words: the packet, its id, its reason.
fn words(version: Version, session: &mut Session) -> Vec<String> {
    let v3_word = |packet| match packet {
        v3::Packet::PublishAck { packet_id } => format!("puback {packet_id}"),
        v3::Packet::PublishReceived { packet_id } => format!("pubrec {packet_id}"),
        v3::Packet::PublishComplete { packet_id } => format!("pubcomp {packet_id}"),
        v3::Packet::Publish(it) => format!("{} {}", it.topic, String::from_utf8_lossy(&it.payload)),
        other => format!("{other:?}"),
    };
    let v5_word = |packet| match packet {
        v5::Packet::PublishAck(it) => format!("puback {} {:x}", it.packet_id, u8::from(it.reason_code)),
        v5::Packet::Disconnect(it) => format!("disconnect {:x}", u8::from(it.reason_code)),
        v5::Packet::Publish(it) => format!("{} {}", it.topic, String::from_utf8_lossy(&it.payload)),
        other => format!("{other:?}"),
    };
    match version {
        Version::V3 => v3_out(session).into_iter().map(v3_word).collect(),
        Version::V5 => v5_out(session).into_iter().map(v5_word).collect(),
    }
}

fn subscribed(session: &mut Session, filter: &str, now: Instant) {
    let mut bytes = match session.codec.version() {
        Version::V3 => v3_bytes([subscribe(filter, QoS::AtMostOnce)]),
        Version::V5 => v5_bytes(v5::Packet::Subscribe(v5::Subscribe {
            packet_id: NonZeroU16::MIN,
            id: None,
            user_properties: Vec::new(),
            topic_filters: vec![(filter.into(), Default::default())],
        })),
    };
    session.received(&mut bytes, MAX, now);
    for effect in effects(session) {
        if let Effect::Claim(pending) = effect {
            session.claimed(pending, true);
        }
    }
    session.out().clear();
}

/// A v5 session whose client takes packets of so many bytes.
fn narrow(max_packet_bytes: u32, now: Instant) -> Session {
    let connect = v5::Connect {
        clean_start: true,
        max_packet_size: std::num::NonZeroU32::new(max_packet_bytes),
        ..Default::default()
    };
    let mut bytes = v5_bytes(v5::Packet::Connect(Box::new(connect)));
    let crate::mqtt::codec::Opening::Connect(_, codec) = crate::mqtt::codec::open(&mut bytes, 4096) else {
        panic!()
    };
    Session { codec, ..session(Version::V5, 10, now) }
}

#[test]
fn what_is_none_of_ours_closes_nothing() {
    let now = Instant::now();
    let table = [
        (Version::V3, QoS::AtMostOnce, vec![]),
        (Version::V3, QoS::AtLeastOnce, vec!["puback 9"]),
        (Version::V3, QoS::ExactlyOnce, vec!["pubrec 9"]),
        (Version::V5, QoS::AtMostOnce, vec![]),
        (Version::V5, QoS::AtLeastOnce, vec!["puback 9 90"]),
    ];
    for (version, qos, expected) in table {
        let mut session = session(version, 10, now);
        let mut told = Vec::new();
        for topic in ["v1/gateway/connect", "v1/devices/me/claim"] {
            session.received(&mut sent(version, at(qos, topic, 9, topic)), MAX, now);
            for effect in effects(&mut session) {
                let Effect::Dropped(Dropped::ForeignTopic, topic) = effect else { panic!("{effect:?}") };
                told.push(topic.map(|it| it.to_string()));
            }
            assert_eq!(words(version, &mut session), expected, "{version:?} {qos:?} {topic}");
        }
        // At QoS 2 the second comes under an id that is not free.
        let second = if qos == QoS::ExactlyOnce { vec![] } else { vec![None] };
        assert_eq!(told, [vec![Some("v1/gateway/connect".to_owned())], second].concat());
    }
}

#[test]
fn each_reason_to_drop_a_message_is_told_once_with_its_topic() {
    let now = Instant::now();
    let mut session = session(Version::V3, 10, now);
    let dropped = |session: &mut Session, topic: &str| {
        session.received(&mut sent(Version::V3, at(QoS::AtMostOnce, topic, 0, "no JSON")), MAX, now);
        let [Effect::Dropped(reason, topic)] = &effects(session)[..] else { panic!() };
        (*reason, topic.as_ref().map(|it| it.to_string()))
    };
    assert_eq!(dropped(&mut session, "a"), (Dropped::ForeignTopic, Some("a".into())));
    assert_eq!(dropped(&mut session, TELEMETRY), (Dropped::NotJson, Some(TELEMETRY.into())));
    assert_eq!(dropped(&mut session, "b"), (Dropped::ForeignTopic, None));
    assert_eq!(dropped(&mut session, TELEMETRY), (Dropped::NotJson, None));
}

#[test]
fn a_request_for_attributes_is_answered_where_it_is_listened_for() {
    let now = Instant::now();
    let request = "v1/devices/me/attributes/request/4";
    for version in [Version::V3, Version::V5] {
        let ack = if version == Version::V3 { "puback 9" } else { "puback 9 0" };
        let mut session = session(version, 10, now);
        session.received(&mut sent(version, at(QoS::AtLeastOnce, request, 9, "{}")), MAX, now);
        assert_eq!(words(version, &mut session), [ack]);
        session.flushed();
        subscribed(&mut session, "v1/devices/me/attributes/response/+", now);
        session.received(&mut sent(version, at(QoS::AtLeastOnce, request, 9, "{}")), MAX, now);
        let answer = "v1/devices/me/attributes/response/4 {}";
        assert_eq!(words(version, &mut session), [ack, answer]);
        assert!(effects(&mut session).is_empty());
    }
}

#[test]
fn a_call_that_is_sent_again_is_one_call_and_acknowledged_again() {
    let now = Instant::now();
    for version in [Version::V3, Version::V5] {
        let ack = if version == Version::V3 { "puback 9" } else { "puback 9 0" };
        let call = at(QoS::AtLeastOnce, REQUEST_7, 9, CALL);
        let again = rmqtt_codec::types::Publish { dup: true, ..call.clone() };
        let asks = |session: &mut Session| {
            effects(session).iter().filter(|it| matches!(it, Effect::Ask(..))).count()
        };
        for copy in [&call, &again] {
            let mut session = session(version, 10, now);
            let mut bytes = sent(version, call.clone());
            bytes.unsplit(sent(version, copy.clone()));
            session.received(&mut bytes, MAX, now);
            assert_eq!((asks(&mut session), words(version, &mut session)), (1, vec![ack.to_owned(); 2]));
            // The PUBACK is with the socket, and the client has not read it yet.
            session.flushed();
            session.received(&mut sent(version, again.clone()), MAX, now);
            assert_eq!((asks(&mut session), words(version, &mut session)), (0, vec![ack.to_owned()]));
            // The client has read it, and uses the id for the same again.
            session.received(&mut sent(version, call.clone()), MAX, now);
            assert_eq!((asks(&mut session), words(version, &mut session)), (1, vec![ack.to_owned()]));
        }
    }
}

#[test]
fn an_answer_that_is_sent_again_is_not_taken_for_the_next_calls() {
    let now = Instant::now();
    let mut session = session(Version::V3, 10, now);
    callable(&mut session, "v1/devices/me/rpc/request/42", QoS::AtMostOnce, now);
    let answer = at(QoS::AtLeastOnce, "v1/devices/me/rpc/response/42", 9, "1");
    session.deliver(incoming(false, 1000, now), now);
    session.received(&mut sent(Version::V3, answer.clone()), MAX, now);
    session.flushed();
    assert_eq!(replies(&mut session).len(), 1);
    session.deliver(incoming(false, 1000, now), now);
    let again = rmqtt_codec::types::Publish { dup: true, ..answer };
    session.received(&mut sent(Version::V3, again), MAX, now);
    assert!(replies(&mut session).is_empty());
}

#[test]
fn telemetry_that_is_sent_again_is_handed_up_once() {
    let now = Instant::now();
    let id = NonZeroU16::new(9).unwrap();
    for version in [Version::V3, Version::V5] {
        let ack = if version == Version::V3 { "puback 9" } else { "puback 9 0" };
        let mut session = session(version, 10, now);
        let first = at(QoS::AtLeastOnce, TELEMETRY, 9, "{}");
        let again = rmqtt_codec::types::Publish { dup: true, ..first.clone() };
        session.received(&mut sent(version, first), MAX, now);
        session.received(&mut sent(version, again.clone()), MAX, now);
        assert!(
            matches!(effects(&mut session)[..], [Effect::Uplink(UplinkKind::Telemetry, _, Some(it))] if it == id)
        );
        assert!(words(version, &mut session).is_empty());
        session.uplinked(id, true, now);
        assert_eq!(words(version, &mut session), [ack, ack]);
        session.flushed();
        session.received(&mut sent(version, again), MAX, now);
        assert_eq!(words(version, &mut session), [ack]);
        assert!(effects(&mut session).is_empty());
    }
}

#[test]
fn a_message_at_qos_2_over_3_1_1_is_done_once_and_released() {
    let now = Instant::now();
    let id = NonZeroU16::new(9).unwrap();
    let mut session = session(Version::V3, 10, now);
    let release = || v3_bytes([v3::Packet::PublishRelease { packet_id: id }]);
    for (topic, payload) in [(TELEMETRY, "{}"), (REQUEST_7, CALL)] {
        for _ in 0..2 {
            session_received(&mut session, at(QoS::ExactlyOnce, topic, 9, payload), now);
        }
        let asked = effects(&mut session);
        assert_eq!(asked.len(), 1, "{asked:?}");
        if let Effect::Uplink(.., packet_id) = asked[0] {
            assert_eq!((packet_id, words(Version::V3, &mut session)), (Some(id), vec![]));
            session.uplinked(id, true, now);
        }
        assert_eq!(words(Version::V3, &mut session), ["pubrec 9"; 2]);
        session.flushed();
        session_received(&mut session, at(QoS::ExactlyOnce, topic, 9, payload), now);
        assert_eq!(words(Version::V3, &mut session), ["pubrec 9"]);
        for _ in 0..2 {
            session.received(&mut release(), MAX, now);
            assert_eq!(words(Version::V3, &mut session), ["pubcomp 9"]);
        }
        assert!(effects(&mut session).is_empty());
    }
    session_received(&mut session, at(QoS::ExactlyOnce, TELEMETRY, 9, "{}"), now);
    assert_eq!(effects(&mut session).len(), 1, "a new message under the same id");
}

fn session_received(session: &mut Session, message: rmqtt_codec::types::Publish, now: Instant) {
    session.received(&mut sent(Version::V3, message), MAX, now);
}

#[test]
fn a_message_that_is_too_large_over_3_1_1_is_acknowledged_and_who_waits_for_it_is_told() {
    let now = Instant::now();
    let large = "x".repeat(300);
    let mut session = session(Version::V3, 10, now);
    subscribed(&mut session, RESPONSES, now);
    callable(&mut session, "v1/devices/me/rpc/request/+", QoS::AtMostOnce, now);
    session.deliver(incoming(false, 1000, now), now);
    session.out().clear();
    let too_large = |session: &mut Session, qos, topic: &str| {
        session.received(&mut sent(Version::V3, at(qos, topic, 9, &large)), 200, now);
        session.flushed();
        words(Version::V3, session)
    };
    assert_eq!(too_large(&mut session, QoS::AtMostOnce, TELEMETRY), [""; 0]);
    assert_eq!(too_large(&mut session, QoS::AtLeastOnce, TELEMETRY), ["puback 9"]);
    assert_eq!(too_large(&mut session, QoS::ExactlyOnce, "elsewhere"), ["pubrec 9"]);
    let said = effects(&mut session);
    assert_eq!(said.iter().filter(|it| matches!(it, Effect::LimitHit(Limit::PacketBytes))).count(), 3);
    let topics: Vec<_> = said
        .iter()
        .filter_map(|it| match it {
            Effect::Dropped(Dropped::TooLarge, topic) => Some(topic.as_deref()),
            _ => None,
        })
        .collect();
    assert_eq!(topics, [Some(TELEMETRY), None, None]);

    let error =
        r#"v1/devices/me/rpc/response/7 {"error":"Malformed request: it is larger than a message may be"}"#;
    assert_eq!(too_large(&mut session, QoS::AtLeastOnce, REQUEST_7), [error, "puback 9"]);
    assert!(replies(&mut session).is_empty());
    assert_eq!(too_large(&mut session, QoS::AtMostOnce, "v1/devices/me/rpc/response/1"), [""; 0]);
    assert_eq!(replies(&mut session), [(DeliveryReply::Ended(Outcome::AnswerTooLarge), Bytes::new())]);
    // Nothing is made of an answer to nothing.
    assert_eq!(too_large(&mut session, QoS::AtMostOnce, "v1/devices/me/rpc/response/1"), [""; 0]);
    assert!(replies(&mut session).is_empty());
}

#[test]
fn over_3_1_1_nothing_is_read_behind_a_message_that_has_no_room() {
    let now = Instant::now();
    let mut session = session(Version::V3, 10, now);
    let mut bytes = BytesMut::new();
    for id in 1..=4 {
        bytes.unsplit(sent(Version::V3, at(QoS::AtLeastOnce, TELEMETRY, id, "{}")));
    }
    bytes.unsplit(v3_bytes([v3::Packet::PingRequest]));
    session.received(&mut bytes, MAX, now);
    let ids = |session: &mut Session| -> Vec<u16> {
        let id = |effect| match effect {
            Effect::Uplink(.., Some(id)) => id.get(),
            other => panic!("{other:?}"),
        };
        effects(session).into_iter().map(id).collect()
    };
    // As many as the Receive Maximum that 3.1.1 cannot be told.
    assert_eq!((ids(&mut session), session.wants_input()), (vec![1, 2], false));
    // The client may well be sending: silence is ours.
    let much_later = now + Duration::from_secs(1000);
    session.tick(much_later);
    assert!(effects(&mut session).is_empty());
    for (done, next, reads) in [(2, vec![3], false), (1, vec![4], true)] {
        session.uplinked(NonZeroU16::new(done).unwrap(), true, much_later);
        session.received(&mut bytes, MAX, much_later);
        assert_eq!((ids(&mut session), session.wants_input()), (next, reads));
    }
    assert_eq!(words(Version::V3, &mut session), ["puback 2", "puback 1", "PingResponse"]);
}

#[test]
fn a_message_that_comes_too_soon_waits_for_its_time_where_its_client_cannot_be_told() {
    let qos_0 = QoS::AtMostOnce;
    for (version, qos) in [(Version::V3, QoS::AtLeastOnce), (Version::V3, qos_0), (Version::V5, qos_0)] {
        let now = Instant::now();
        let mut session = session(version, 10, now);
        let mut limits = limits();
        limits.receive_maximum = 100;
        limits.device.uplink_rate = Rate { per_second: 10, burst: 2 };
        session.limits = Arc::new(limits);
        let mut bytes = BytesMut::new();
        for id in 1..=4 {
            bytes.unsplit(sent(version, at(qos, TELEMETRY, id, "{}")));
        }
        session.received(&mut bytes, MAX, now);
        let counts = |session: &mut Session| {
            let effects = effects(session);
            let count = |is: fn(&Effect) -> bool| effects.iter().filter(|it| is(it)).count();
            (
                count(|it| matches!(it, Effect::Uplink(..))),
                count(|it| matches!(it, Effect::LimitHit(Limit::UplinkRate))),
            )
        };
        assert_eq!((counts(&mut session), session.wants_input()), ((2, 1), false), "{version:?} {qos:?}");
        assert_eq!(session.next_tick(), now + Duration::from_millis(100));
        for step in 1..=2 {
            let now = now + Duration::from_millis(100 * step);
            session.tick(now);
            session.received(&mut bytes, MAX, now);
            assert_eq!(counts(&mut session), (1, usize::from(step == 1)), "{step}");
        }
        assert!(session.wants_input() && bytes.is_empty());
    }
}

#[test]
fn a_v5_client_is_told_what_it_has_too_much_of() {
    let now = Instant::now();
    let uplink = |id| sent(Version::V5, at(QoS::AtLeastOnce, TELEMETRY, id, "{}"));
    let mut session = session(Version::V5, 10, now);
    for id in 1..=3 {
        session.received(&mut uplink(id), MAX, now);
    }
    assert_eq!(words(Version::V5, &mut session), ["disconnect 93"]);

    let mut limits = limits();
    limits.device.uplink_rate = Rate { per_second: 10, burst: 1 };
    let mut session = super::tests::session(Version::V5, 10, now);
    session.limits = Arc::new(limits);
    for id in 1..=2 {
        session.received(&mut uplink(id), MAX, now);
    }
    assert_eq!(words(Version::V5, &mut session), ["puback 2 97"]);
    // It may try again, and is not known.
    session.flushed();
    session.received(&mut uplink(2), MAX, now + Duration::from_secs(1));
    assert!(words(Version::V5, &mut session).is_empty() && session.wants_input());
    let mut at_most_once = sent(Version::V5, at(QoS::AtMostOnce, TELEMETRY, 0, "{}"));
    session.received(&mut at_most_once, MAX, now + Duration::from_secs(1));
    assert!(words(Version::V5, &mut session).is_empty());
}

#[test]
fn what_must_be_json_is_dropped_when_it_is_not() {
    let now = Instant::now();
    for (version, ack) in [(Version::V3, "puback 9"), (Version::V5, "puback 9 99")] {
        let mut session = session(version, 10, now);
        subscribed(&mut session, "v1/devices/me/rpc/request/+", now);
        for topic in [TELEMETRY, "v1/devices/me/attributes"] {
            session.received(&mut sent(version, at(QoS::AtLeastOnce, topic, 9, "temp=21.5")), MAX, now);
            assert_eq!(words(version, &mut session), [ack]);
            assert!(matches!(effects(&mut session)[..], [Effect::Dropped(Dropped::NotJson, _)]));
            session.received(&mut sent(version, at(QoS::AtMostOnce, topic, 0, "{")), MAX, now);
            assert!(words(version, &mut session).is_empty());
            assert!(matches!(effects(&mut session)[..], [Effect::Dropped(Dropped::NotJson, _)]));
        }
        // An answer: whoever can be told may answer again, for others the call is over.
        for (qos, expected, is_told) in
            [(QoS::AtLeastOnce, vec![ack], version == Version::V5), (QoS::AtMostOnce, vec![], false)]
        {
            session.deliver(incoming(false, 1000, now), now);
            let topic = words(version, &mut session).remove(0).replace("request", "response");
            let topic = topic.split(' ').next().unwrap();
            session.received(&mut sent(version, at(qos, topic, 9, "ok")), MAX, now);
            assert_eq!(words(version, &mut session), expected);
            let invalid = (DeliveryReply::Ended(Outcome::AnswerInvalid), Bytes::new());
            assert_eq!(replies(&mut session), if is_told { vec![] } else { vec![invalid] });
        }
    }
}

#[test]
fn an_uplink_that_nats_does_not_take_is_the_clients_again() {
    let now = Instant::now();
    let id = NonZeroU16::new(9).unwrap();
    for (version, expected) in [(Version::V3, vec![]), (Version::V5, vec!["puback 9 80"])] {
        let mut session = session(version, 10, now);
        session.received(&mut sent(version, at(QoS::AtLeastOnce, TELEMETRY, 9, "{}")), MAX, now);
        effects(&mut session);
        session.uplinked(id, false, now);
        assert_eq!(words(version, &mut session), expected);
        let closes = matches!(effects(&mut session)[..], [Effect::Close(Ended::Fault(_))]);
        assert_eq!(closes, version == Version::V3);
        session.uplinked(id, true, now);
        assert!(words(version, &mut session).is_empty());
    }
}

/// Draining, and not over yet; `done` ends what was in flight.
fn drains_until(mut session: Session, done: impl FnOnce(&mut Session)) {
    effects(&mut session);
    session.leave(EndReason::ShuttingDown);
    assert!(effects(&mut session).is_empty() && !session.wants_input());
    done(&mut session);
    let [.., Effect::Close(ended)] = effects(&mut session)[..] else { panic!() };
    assert_eq!(ended, Ended::ByNode(EndReason::ShuttingDown));
}

#[test]
fn a_draining_session_lets_each_kind_of_thing_finish_and_reads_nothing_new() {
    let now = Instant::now();
    let [first, second, third] = [1, 2, 3].map(|id| NonZeroU16::new(id).unwrap());
    let uplink = |id| sent(Version::V3, at(QoS::AtLeastOnce, TELEMETRY, id, "{}"));
    let mut with_uplink = session(Version::V3, 10, now);
    with_uplink.received(&mut uplink(1), MAX, now);
    drains_until(with_uplink, |it| it.uplinked(first, true, now));

    // One more than there is room for is held, and done before the end.
    let mut with_held = session(Version::V3, 10, now);
    (1..=3).for_each(|id| with_held.received(&mut uplink(id), MAX, now));
    drains_until(with_held, |it| {
        it.uplinked(first, true, now);
        it.uplinked(second, true, now);
        assert!(effects(it).is_empty());
        it.received(&mut BytesMut::new(), MAX, now);
        assert!(matches!(effects(it)[..], [Effect::Uplink(..)]));
        it.uplinked(third, true, now);
    });

    let mut with_call = session(Version::V3, 10, now);
    with_call.received(&mut sent(Version::V3, at(QoS::AtMostOnce, REQUEST_7, 0, CALL)), MAX, now);
    let Some(Effect::Ask(ticket, ..)) = with_call.next_effect() else { panic!() };
    drains_until(with_call, |it| _ = it.answered(&ticket, ended(Outcome::Offline, "")));

    // An answer that waits for its turn: the client still has to be heard, for its PUBACK.
    let mut with_answer = session(Version::V3, 1, now);
    callable(&mut with_answer, RESPONSES, QoS::AtLeastOnce, now);
    for _ in 0..2 {
        with_answer.received(&mut sent(Version::V3, at(QoS::AtMostOnce, REQUEST_7, 0, "{")), MAX, now);
    }
    effects(&mut with_answer);
    with_answer.leave(EndReason::ShuttingDown);
    assert!(effects(&mut with_answer).is_empty() && with_answer.wants_input());
    with_answer.received(&mut v3_bytes([v3::Packet::PublishAck { packet_id: first }]), MAX, now);
    assert!(matches!(effects(&mut with_answer)[..], [Effect::Close(_)]));
}

#[test]
fn calls_of_a_session_that_ends_are_in_flight_no_more() {
    let now = Instant::now();
    let mut session = session(Version::V3, 10, now);
    for _ in 0..3 {
        session.received(&mut sent(Version::V3, at(QoS::AtMostOnce, REQUEST_7, 0, CALL)), MAX, now);
    }
    assert!(!session.caller.lock().is_at_rest(now));
    session.end(Ended::ByClient, now);
    assert!(session.caller.lock().is_at_rest(now));
}

#[test]
fn a_topic_alias_stands_for_its_topic_within_the_servers_maximum() {
    let now = Instant::now();
    let message = |alias, topic, packet_id| {
        let mut message = at(QoS::AtLeastOnce, topic, packet_id, "{}");
        let topic_alias = NonZeroU16::new(alias);
        message.properties = Some(v5::PublishProperties { topic_alias, ..Default::default() });
        sent(Version::V5, message)
    };
    let mut session = session(Version::V5, 10, now);
    session.received(&mut message(2, TELEMETRY, 1), MAX, now);
    session.received(&mut message(2, "", 2), MAX, now);
    assert!(matches!(effects(&mut session)[..], [Effect::Uplink(..), Effect::Uplink(..)]));
    for (alias, topic) in [(3, TELEMETRY), (1, "")] {
        let mut session = super::tests::session(Version::V5, 10, now);
        session.received(&mut message(alias, topic, 1), MAX, now);
        assert_eq!(words(Version::V5, &mut session), ["disconnect 94"], "{alias}");
    }
}

#[test]
fn a_will_is_handed_up_unless_the_client_says_goodbye() {
    let now = Instant::now();
    let will = || Some((UplinkKind::Attributes, Bytes::from_static(b"{}")));
    let with_will = |version| {
        let caller = Arc::new(Mutex::new(CallerLimits::new(now)));
        Session::new(Codec::new(version), Arc::new(limits()), caller, 60, 10, will(), now)
    };
    let handed_up = |mut session: Session, ended| {
        session.end(ended, now);
        let will = |it: &Effect| matches!(it, Effect::Uplink(UplinkKind::Attributes, payload, None) if payload == "{}");
        effects(&mut session).iter().filter(|it| will(it)).count()
    };
    for (ended, expected) in [
        (Ended::ByClient, 1),
        (Ended::Fault("x"), 1),
        (Ended::KeepAlive, 1),
        (Ended::SlowConsumer, 1),
        (Ended::ByNode(EndReason::TakenOver), 1),
        (Ended::ByNode(EndReason::ShuttingDown), 1),
        (Ended::ByNode(EndReason::Revoked), 0),
    ] {
        assert_eq!(handed_up(with_will(Version::V3), ended), expected, "{ended:?}");
    }
    for (version, goodbye, expected) in [
        (Version::V3, &b"\xe0\0"[..], 0),
        (Version::V5, b"\xe0\0", 0),
        (Version::V5, b"\xe0\x01\0", 0),
        (Version::V5, b"\xe0\x01\x04", 1),
        (Version::V5, b"\xe0\x01\x80", 1),
    ] {
        let mut session = with_will(version);
        session.received(&mut BytesMut::from(goodbye), MAX, now);
        assert_eq!(handed_up(session, Ended::ByClient), expected, "{goodbye:?}");
    }
    // It is an uplink like others.
    let mut session = with_will(Version::V3);
    let mut limits = limits();
    limits.device.uplink_rate = Rate { per_second: 1, burst: 1 };
    session.limits = Arc::new(limits);
    session.received(&mut sent(Version::V3, at(QoS::AtMostOnce, TELEMETRY, 0, "{}")), MAX, now);
    effects(&mut session);
    session.end(Ended::ByClient, now);
    assert!(matches!(effects(&mut session)[..], [Effect::Dropped(Dropped::Will, None)]));
}

/// What a caller reads: payload, outcome's name, call's id.
fn read(session: &mut Session) -> Vec<(String, Option<String>, Option<String>)> {
    let publish = |packet| match packet {
        v5::Packet::Publish(it) => {
            let user = it.properties.unwrap().user_properties;
            let of =
                |name: &str| user.iter().find(|(it, _)| &**it == name).map(|(_, value)| value.to_string());
            (String::from_utf8(it.payload.to_vec()).unwrap(), of("outcome"), of("call"))
        }
        other => panic!("{other:?}"),
    };
    v5_out(session).into_iter().map(publish).collect()
}

fn ask(session: &mut Session, now: Instant) -> Ticket {
    session.received(&mut sent(Version::V5, at(QoS::AtMostOnce, REQUEST_7, 0, CALL)), MAX, now);
    let Some(Effect::Ask(ticket, ..)) = session.next_effect() else { panic!() };
    ticket
}

#[test]
fn beside_an_answer_stand_its_outcome_and_its_call() {
    let now = Instant::now();
    let mut session = session(Version::V5, 10, now);
    subscribed(&mut session, RESPONSES, now);
    let ticket = ask(&mut session, now);
    let told = session.answered(&ticket, ended(Outcome::Answered, r#"{"error":"mine"}"#));
    let call = CallId { node: NodeId(1), serial: 2 }.to_string();
    let answered = Outcome::Answered.as_str().to_owned();
    assert_eq!(told, Outcome::Answered);
    assert_eq!(read(&mut session), [(r#"{"error":"mine"}"#.into(), Some(answered), Some(call))]);
    let malformed = sent(Version::V5, at(QoS::AtMostOnce, REQUEST_7, 0, "{"));
    session.received(&mut malformed.clone(), MAX, now);
    let [(text, outcome, call)] = &read(&mut session)[..] else { panic!() };
    assert!(text.starts_with(r#"{"error":"Malformed request"#));
    assert_eq!((outcome.as_deref(), call), (Some(Outcome::malformed("").as_str()), &None));
}

/// However little its client takes, a caller reads something: the most that fits.
#[test]
fn a_caller_always_reads_something() {
    let now = Instant::now();
    let answer = format!("\"{}\"", "x".repeat(200));
    let call = CallId { node: NodeId(1), serial: 2 }.to_string();
    let error = r#"{"error":"Response of the remote device is too large!"}"#;
    let name = Outcome::AnswerTooLarge.as_str();
    let stages: Vec<(String, Option<String>, Option<String>)> = vec![
        ("{}".into(), None, None),
        ("{}".into(), Some(name.into()), None),
        (error.into(), None, None),
        (error.into(), Some(name.into()), Some(call.clone())),
        (answer.clone(), None, None),
        (answer.clone(), Some(Outcome::Answered.as_str().into()), Some(call)),
    ];
    let mut reached = Vec::new();
    for max in 20..400 {
        let mut session = narrow(max, now);
        subscribed(&mut session, RESPONSES, now);
        let ticket = ask(&mut session, now);
        let told = session.answered(&ticket, ended(Outcome::Answered, answer.clone()));
        assert!(session.out().len() <= max as usize);
        let mut said = read(&mut session);
        let hits = effects(&mut session)
            .iter()
            .filter(|it| matches!(it, Effect::LimitHit(Limit::PacketBytes)))
            .count();
        let whole = said.first().is_some_and(|(text, ..)| *text == answer);
        assert_eq!((hits == 0, told == Outcome::Answered), (whole, whole), "{max}");
        // A topic, its head and `{}`: below that nothing may be sent.
        assert_eq!(said.len(), usize::from(max >= 2 + 2 + 28 + 1 + 2), "{max}");
        if let Some(said) = said.pop() {
            let stage = stages.iter().position(|it| *it == said).unwrap_or_else(|| panic!("{said:?}"));
            reached.push(stage);
        }
    }
    assert!(reached.is_sorted());
    reached.dedup();
    assert_eq!(reached, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn an_outcome_whose_text_does_not_fit_is_told_by_its_name() {
    let now = Instant::now();
    let mut session = narrow(70, now);
    subscribed(&mut session, RESPONSES, now);
    let ticket = ask(&mut session, now);
    assert_eq!(session.answered(&ticket, ended(Outcome::Denied, "")), Outcome::Denied);
    assert_eq!(read(&mut session), [("{}".to_owned(), Some(Outcome::Denied.as_str().to_owned()), None)]);
}

#[test]
fn an_answer_that_waits_for_its_turn_has_been_made_to_fit() {
    let now = Instant::now();
    let mut session = narrow(100, now);
    session.outbound = Outbound::new(1);
    let packet = v5::Subscribe {
        packet_id: NonZeroU16::MIN,
        id: None,
        user_properties: Vec::new(),
        topic_filters: vec![(
            RESPONSES.into(),
            v5::SubscriptionOptions { qos: QoS::AtLeastOnce, ..Default::default() },
        )],
    };
    session.received(&mut v5_bytes(v5::Packet::Subscribe(packet)), MAX, now);
    session.out().clear();
    for _ in 0..2 {
        let ticket = ask(&mut session, now);
        session.answered(&ticket, ended(Outcome::Answered, format!("\"{}\"", "x".repeat(200))));
        effects(&mut session);
    }
    let waiting = session.unread_bytes() - session.out().len();
    assert!(waiting > 28, "what waits counts as unread");
    let error = r#"{"error":"Response of the remote device is too large!"}"#;
    assert_eq!(read(&mut session), [(error.to_owned(), None, None)]);
    session.received(&mut BytesMut::from(&b"\x40\x02\0\x01"[..]), MAX, now);
    assert_eq!(read(&mut session), [(error.to_owned(), None, None)]);
    assert_eq!(session.unread_bytes(), 0);
}

#[test]
fn a_target_learns_who_calls_and_how_long_there_is() {
    let now = Instant::now();
    let caller = Caller { id: rpc::DeviceId(uuid::Uuid::from_u128(7)), name: "A ü".into() };
    let called = |version, caller| {
        let mut session = session(version, 10, now);
        subscribed(&mut session, "v1/devices/me/rpc/request/+", now);
        let call = Incoming { caller, ..*incoming(false, 1000, now) };
        session.deliver(Box::new(call), now + Duration::from_millis(300));
        session
    };
    let user = |session: &mut Session| -> Vec<(String, String)> {
        let [v5::Packet::Publish(call)] = &v5_out(session)[..] else { panic!() };
        assert_eq!(&call.payload[..], br#"{"method":"onMsg","params":{"x":1}}"#);
        let user = &call.properties.as_ref().unwrap().user_properties;
        user.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    };
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    let call = pair("call", &CallId { node: NodeId(1), serial: 1 }.to_string());
    let (trace, expires) = (pair("traceparent", "00-1-2-01"), pair("expires-ms", "700"));
    let id = pair("caller", "00000000-0000-0000-0000-000000000007");
    let name = pair("caller-name", "A ü");
    let nameless = Caller { name: String::new(), ..caller.clone() };
    assert_eq!(
        user(&mut called(Version::V5, Some(caller))),
        [trace.clone(), id.clone(), name, call.clone(), expires.clone()]
    );
    assert_eq!(
        user(&mut called(Version::V5, Some(nameless))),
        [trace.clone(), id, call.clone(), expires.clone()]
    );
    assert_eq!(user(&mut called(Version::V5, None)), [trace, call, expires]);
    let mut session = called(Version::V3, None);
    assert_eq!(words(Version::V3, &mut session).len(), 1);
}

#[test]
fn a_call_that_is_too_large_for_its_target_is_never_seen() {
    let now = Instant::now();
    let mut reached = Vec::new();
    for max in 40..200 {
        let mut session = narrow(max, now);
        subscribed(&mut session, "v1/devices/me/rpc/request/+", now);
        session.deliver(incoming(false, 1000, now), now);
        assert!(session.out().len() <= max as usize);
        let written = v5_out(&mut session).len();
        let told = replies(&mut session);
        let too_large = [(DeliveryReply::Ended(Outcome::TooLargeForTarget), Bytes::new())];
        assert_eq!(told, if written == 1 { &[][..] } else { &too_large[..] }, "{max}");
        reached.push(written);
    }
    assert!(reached.is_sorted() && reached[0] == 0 && reached[159] == 1);
}

#[test]
fn no_part_of_a_call_outlasts_its_message() {
    let now = Instant::now();
    let mut session = session(Version::V5, 10, now);
    let waits = CALL.replace("2000", "2000,\"connectTimeout\":1500");
    let mut call = at(QoS::AtMostOnce, REQUEST_7, 0, &waits);
    for (expiry_s, expected) in [(1, (1000, 1000)), (5, (2000, 1500))] {
        let message_expiry_interval = std::num::NonZeroU32::new(expiry_s);
        call.properties = Some(v5::PublishProperties { message_expiry_interval, ..Default::default() });
        session.received(&mut sent(Version::V5, call.clone()), MAX, now);
        let Some(Effect::Ask(_, Request::SendMsg { timeout, connect_timeout, .. }, _)) =
            session.next_effect()
        else {
            panic!()
        };
        assert_eq!((timeout.as_ms(), connect_timeout.as_ms()), expected);
    }
}

#[test]
fn a_request_that_has_expired_already_is_not_asked() {
    let now = Instant::now();
    let mut session = session(Version::V5, 10, now);
    subscribed(&mut session, RESPONSES, now);
    let body = [b"\0\x1b", REQUEST_7.as_bytes(), b"\x05\x02\0\0\0\0", CALL.as_bytes()].concat();
    let mut bytes = BytesMut::from(&[0x30, body.len() as u8 & 0x7f | 0x80, (body.len() >> 7) as u8][..]);
    bytes.extend_from_slice(&body);
    session.received(&mut bytes, MAX, now);
    assert!(matches!(effects(&mut session)[..], [Effect::Refused(Method::SendMsg, Outcome::TimedOut)]));
    assert_eq!(read(&mut session)[0].1.as_deref(), Some(Outcome::TimedOut.as_str()));
    assert!(session.caller.lock().is_at_rest(now), "it is not in flight");
}

proptest! {
    /// Every delivery that is not out of time is answered exactly once, whatever the client does.
    #[test]
    fn every_delivery_ends_once(
        steps in proptest::collection::vec((0u8..6, 1u32..6, 0u64..400), 1..60),
        qos in 0u8..2,
    ) {
        let mut now = Instant::now();
        let mut session = session(Version::V3, 2, now);
        let qos = QoS::try_from(qos).unwrap();
        callable(&mut session, "v1/devices/me/rpc/request/+", qos, now);
        let (mut delivered, mut ended) = (0usize, 0usize);
        for (step, number, gap_ms) in steps {
            now += Duration::from_millis(gap_ms);
            session.tick(now);
            match step {
                0 | 1 => {
                    session.deliver(incoming(step == 1, 60_000, now), now);
                    delivered += 1;
                }
                2 => {
                    let topic = format!("v1/devices/me/rpc/response/{number}");
                    session.received(&mut v3_bytes([message(&topic, None, "{}").into()]), MAX, now);
                }
                3 => session.flushed(),
                4 => {
                    let packet_id = NonZeroU16::new(number as u16).unwrap();
                    session.received(&mut v3_bytes([v3::Packet::PublishAck { packet_id }]), MAX, now);
                }
                _ => session.received(&mut v3_bytes([v3::Packet::PingRequest]), MAX, now),
            }
            session.out().clear();
            ended += replies(&mut session).len();
            prop_assert!(ended <= delivered);
        }
        session.end(Ended::ByClient, now);
        ended += replies(&mut session).len();
        prop_assert_eq!(ended, delivered);
    }

    /// A client of 3.1.1 that replays what it stored, cut up anyhow, has each message handed up and acknowledged once,
    /// in its order, whatever room there is.
    #[test]
    fn what_was_stored_is_acknowledged_once(
        count in 1u16..300,
        cuts in proptest::collection::vec(1usize..400, 1..20),
        rate in proptest::option::of(1u32..1000),
    ) {
        let mut now = Instant::now();
        let mut session = session(Version::V3, 10, now);
        let mut limits = limits();
        let rate = rate.unwrap_or(0);
        limits.device.uplink_rate = Rate { per_second: rate, burst: 2 };
        session.limits = Arc::new(limits);
        let mut stored = BytesMut::new();
        for id in 1..=count {
            stored.unsplit(sent(Version::V3, at(QoS::AtLeastOnce, TELEMETRY, id, "{}")));
        }
        let (mut inbound, mut cuts, mut acknowledged) = (BytesMut::new(), cuts.into_iter().cycle(), 0);
        for _ in 0..10_000 {
            if acknowledged == count {
                break;
            }
            if session.wants_input() {
                let cut = stored.split_to(cuts.next().unwrap().min(stored.len()));
                inbound.unsplit(cut);
            }
            session.received(&mut inbound, MAX, now);
            for effect in effects(&mut session) {
                match effect {
                    Effect::Uplink(.., Some(id)) => session.uplinked(id, true, now),
                    Effect::LimitHit(Limit::UplinkRate) => {}
                    other => prop_assert!(false, "{:?}", other),
                }
            }
            for word in words(Version::V3, &mut session) {
                acknowledged += 1;
                prop_assert_eq!(word, format!("puback {acknowledged}"));
            }
            session.flushed();
            now = now.max(session.next_tick().min(now + Duration::from_secs(1)));
            session.tick(now);
        }
        prop_assert_eq!(acknowledged, count);
        prop_assert!(stored.is_empty() && inbound.is_empty() && session.wants_input());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let now = Instant::now();
        for version in [Version::V3, Version::V5] {
            session(version, 2, now).received(&mut BytesMut::from(&bytes[..]), MAX, now);
        }
    }
}

#[test]
fn packets_that_come_too_fast_are_read_later() {
    let now = Instant::now();
    let caller = Arc::new(Mutex::new(CallerLimits::new(now)));
    let mut limits = limits();
    limits.device.request_rate = Rate { per_second: 2, burst: 2 };
    let mut session = Session::new(Codec::new(Version::V3), Arc::new(limits), caller, 60, 2, None, now);
    let mut bytes = v3_bytes([const { v3::Packet::PingRequest }; 4]);
    session.received(&mut bytes, MAX, now);
    assert_eq!(v3_out(&mut session), [const { v3::Packet::PingResponse }; 2]);
    assert!(!session.wants_input(), "what comes meanwhile waits with the socket");
    assert!(matches!(effects(&mut session)[..], [Effect::LimitHit(Limit::RequestRate)]));
    for later in [500, 1_000] {
        let then = now + Duration::from_millis(later);
        assert_eq!(session.next_tick(), then);
        session.tick(then);
        session.received(&mut bytes, MAX, then);
        assert_eq!(v3_out(&mut session), [v3::Packet::PingResponse]);
    }
    assert!(bytes.is_empty());
    let then = now + Duration::from_millis(1_500);
    session.tick(then);
    session.received(&mut bytes, MAX, then);
    assert!(session.wants_input());
}

#[test]
fn who_is_refused_too_often_is_read_later() {
    let now = Instant::now();
    let mut session = session(Version::V3, 2, now);
    let call = |id| {
        let topic = format!("v1/devices/me/rpc/request/{id}");
        sent(Version::V3, at(QoS::AtMostOnce, &topic, 0, r#"{"method":"getTime"}"#))
    };
    session.received(&mut call(1), MAX, now);
    let ticket = effects(&mut session).into_iter().find_map(|it| match it {
        Effect::Ask(ticket, ..) => Some(ticket),
        _ => None,
    });
    let then = now + Duration::from_millis(1_500);
    let refused = calls::Ended::here(Outcome::Busy(Limit::CustomerCalls), Bytes::new());
    session.answered(&ticket.unwrap(), calls::Ended { paced_until: Some(then), ..refused });
    assert!(!session.wants_input(), "what comes meanwhile waits with the socket");
    assert_eq!(session.next_tick(), then);
    let mut more = call(2);
    for (later, is_read) in [(1_499, false), (1_500, true)] {
        let later = now + Duration::from_millis(later);
        session.tick(later);
        session.received(&mut more, MAX, later);
        assert_eq!((more.is_empty(), session.wants_input()), (is_read, is_read));
    }
    assert!(!effects(&mut session).iter().any(|it| matches!(it, Effect::LimitHit(_))));
}

#[test]
fn what_is_read_at_once_is_performed_before_more_is() {
    let now = Instant::now();
    let mut session = session(Version::V3, 10, now);
    let mut bytes = BytesMut::new();
    for id in 0..20 {
        let foreign = format!("elsewhere/{id}");
        bytes.extend(sent(Version::V3, at(QoS::AtMostOnce, &foreign, 0, "{}")));
    }
    let mut dropped = 0;
    for left_off in [true, true, false] {
        session.received(&mut bytes, MAX, now);
        assert_eq!(session.left_off(), left_off);
        assert!(session.wants_input());
        let performed = effects(&mut session).len();
        assert!(performed <= MAX_EFFECTS, "{performed}");
        dropped += performed;
    }
    assert_eq!((dropped, bytes.len()), (20, 0));
    // Nothing is left when the last one filled it.
    for id in 0..MAX_EFFECTS {
        bytes.extend(sent(Version::V3, at(QoS::AtMostOnce, &format!("elsewhere/{id}"), 0, "{}")));
    }
    session.received(&mut bytes, MAX, now);
    assert!(!session.left_off());
}

/// What most sessions never need is behind a pointer.
#[test]
fn a_session_is_small() {
    assert!(size_of::<Session>() <= 320, "{} bytes", size_of::<Session>());
}
