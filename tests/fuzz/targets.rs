//! What must hold for any bytes? The bodies of the fuzz targets, which the ordinary tests run over the seed corpus.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use rpc::Rate;
use switchboard_ingress::calls::Ended;
use switchboard_ingress::coap::codec::{Reading, read as read_datagram};
use switchboard_ingress::coap::endpoint::{Effect as CoapEffect, Endpoint, EndpointLimits};
use switchboard_ingress::coap::tally::Held;
use switchboard_ingress::device::admit::{NotAdmitted, digest};
use switchboard_ingress::device::caller::CallerLimits;
use switchboard_ingress::device::limits::DeviceLimits;
use switchboard_ingress::device_api::{self, ApiLimits, Beside, Request};
use switchboard_ingress::http::websocket::frame::{CloseCode, Decoder, MAX_CONTROL_BYTES, Piece};
use switchboard_ingress::mqtt::codec::{self, Opening};
use switchboard_ingress::mqtt::session::{Effect, Session, SessionLimits};
use switchboard_ingress::proxied::{self, Header};

const MAX_PACKET_BYTES: u32 = 65_536;
const API: ApiLimits =
    ApiLimits { default_timeout_ms: 20_000, max_timeout_ms: 60_000, default_connect_timeout_ms: 0 };

/// A connection never panics, and reads the same however its bytes are cut up on the way.
pub(crate) fn mqtt_reader(data: &[u8]) {
    let whole = read(data, data.len().max(1));
    for piece in [1, 3] {
        assert_eq!(read(data, piece), whole, "in pieces of {piece}");
    }
}

/// A request is parsed or refused in words, and what its caller reads is JSON in either case.
pub(crate) fn device_api(data: &[u8]) {
    let text = Bytes::copy_from_slice(data);
    match device_api::parse(&text, &API) {
        Ok(Request::SendMsg { target, timeout, connect_timeout, body, .. }) => {
            assert!(1 <= timeout.as_ms() && timeout.as_ms() <= API.max_timeout_ms);
            assert!(connect_timeout <= timeout);
            assert!(device_api::answer_is_json(&body));
            let beside = Beside { caller: Some((target, "\"")), expires: timeout };
            for (number, beside) in [(None, None), (Some(1), Some(&beside))] {
                assert!(device_api::answer_is_json(&device_api::on_msg(
                    number,
                    rpc::DEFAULT_METHOD,
                    &body,
                    beside
                )));
            }
        }
        Ok(Request::GetDevices { .. } | Request::GetSessionLimits | Request::GetTime) => {}
        Err(malformed) => {
            let read = device_api::answer(malformed.method, &malformed.outcome, Bytes::new());
            assert!(device_api::answer_is_json(&read));
        }
    }
}

/// A header ends where it says, however it is cut: what belongs to it is known before more is read.
pub(crate) fn proxy_header(data: &[u8]) {
    let mut known = 0;
    while let Some(Header::Needs(bytes)) = data.get(..known).map(proxied::parse) {
        assert!(bytes > 0 && known <= 16 + 1024);
        known += bytes;
    }
}

/// Frames never panic or pile up, and hold the same however their bytes are cut up on the way.
pub(crate) fn websocket_frames(data: &[u8]) {
    let whole = unframe(data, data.len().max(1));
    for piece in [1, 5] {
        assert_eq!(unframe(data, piece), whole, "in pieces of {piece}");
    }
}

/// The payload, everything else in order, and how it ended.
fn unframe(data: &[u8], piece: usize) -> (Vec<u8>, Vec<Piece>, Option<CloseCode>) {
    let (mut decoder, mut inbound) = (Decoder::default(), BytesMut::new());
    let (mut payload, mut others) = (Vec::new(), Vec::new());
    for part in data.chunks(piece) {
        inbound.extend_from_slice(part);
        loop {
            match decoder.next(&mut inbound) {
                Ok(Some(Piece::Payload(part))) => payload.extend_from_slice(&part),
                Ok(Some(other)) => others.push(other),
                Ok(None) => break,
                Err(code) => return (payload, others, Some(code)),
            }
        }
        assert!(inbound.len() < 14 + MAX_CONTROL_BYTES, "{} bytes wait", inbound.len());
    }
    (payload, others, None)
}

/// An endpoint never panics, sends nothing but messages, multiplies no stranger's bytes, and keeps a bounded memory.
///
/// Each datagram comes behind two bytes: its length, and how many tenths of a second pass before it.
pub(crate) fn coap_endpoint(data: &[u8]) {
    let mut now = Instant::now();
    let coap = boot::config::Coap { max_exchanges: 100, max_block_transfers: 4, ..Default::default() };
    let amplification = usize::from(coap.max_amplification);
    let mut endpoint = Endpoint::new(
        EndpointLimits { device: DeviceLimits { max_calls_per_caller: 8, ..device_limits() }, coap },
        1,
        1,
        1,
        now,
    );
    let caller = Arc::new(Mutex::new(CallerLimits::new(now)));
    let (mut rest, mut trusted, mut strangers) = (data, HashSet::new(), (0, 0));
    while let [length, wait, tail @ ..] = rest {
        let (datagram, tail) = tail.split_at(tail.len().min(usize::from(*length)));
        rest = tail;
        now += Duration::from_millis(u64::from(*wait) * 100);
        endpoint.tick(now);
        let source = SocketAddr::from(([127, 0, 0, 1], u16::from(*wait % 3) + 1));
        if !datagram.windows(5).any(|it| it == b"TOKEN") && !trusted.contains(&source) {
            strangers.0 += datagram.len();
        } else {
            trusted.insert(source);
        }
        endpoint.received(source, &Bytes::copy_from_slice(datagram), now);
        while let Some(effect) = endpoint.next_effect() {
            match effect {
                CoapEffect::Send(to, datagram) => {
                    assert!(matches!(read_datagram(&datagram), Reading::Message(_)), "{datagram:02x?}");
                    strangers.1 += if trusted.contains(&to) { 0 } else { datagram.len() };
                }
                CoapEffect::Admit(key, credential, _) => {
                    let known = credential == digest(b"TOKEN");
                    let admitted = if known { Ok(Arc::clone(&caller)) } else { Err(NotAdmitted::Unknown) };
                    endpoint.admitted(key, admitted, now);
                }
                CoapEffect::Ask(id, _, request) => {
                    endpoint.answered(id, request.method(), &rpc::Outcome::Offline, Bytes::new(), now);
                }
                CoapEffect::Uplink(id, ..) => endpoint.uplinked(id, true, now),
                CoapEffect::HandOn(id, ..) => endpoint.handed_on(id, None, now),
                CoapEffect::Claim(observer, _) => endpoint.claimed(observer, true, now),
                CoapEffect::End(key, _) => endpoint.ended(key, now),
                _ => {}
            }
        }
        let tally = endpoint.take_tally();
        assert!(tally.held(Held::Exchanges) <= 100 && tally.held(Held::Transfers) <= 4);
    }
    assert!(strangers.1 <= strangers.0 * amplification, "{strangers:?}");
}

/// What a connection writes and asks for, given its bytes in pieces of so many.
fn read(data: &[u8], piece: usize) -> (Vec<u8>, Vec<String>) {
    let now = Instant::now();
    let mut inbound = BytesMut::new();
    let mut session: Option<Session> = None;
    let (mut written, mut asked) = (Vec::new(), Vec::new());
    // What is done for the session ends when all has been read: how far that is must not depend on the pieces.
    let (mut tickets, mut uplinks) = (Vec::new(), Vec::new());
    for bytes in data.chunks(piece) {
        inbound.extend_from_slice(bytes);
        if session.is_none() {
            match codec::open(&mut inbound, 4096) {
                Opening::Incomplete => continue,
                Opening::Connect(connect, codec) => {
                    let caller = Arc::new(Mutex::new(CallerLimits::new(now)));
                    let maximum = connect.receive_maximum;
                    session = Some(Session::new(codec, limits(), caller, 60, maximum, None, now));
                }
                Opening::OtherVersion(_) | Opening::Refused(..) | Opening::Fault(_) => {
                    asked.push("refused".to_owned());
                    break;
                }
            }
        }
        let Some(session) = &mut session else { continue };
        session.received(&mut inbound, MAX_PACKET_BYTES, now);
        loop {
            let Some(effect) = session.next_effect() else {
                if !session.left_off() {
                    break;
                }
                session.received(&mut inbound, MAX_PACKET_BYTES, now);
                continue;
            };
            match effect {
                Effect::Claim(pending) => {
                    session.claimed(pending, true);
                    session.received(&mut inbound, MAX_PACKET_BYTES, now);
                }
                Effect::Release(pending) => {
                    session.released(&pending);
                    session.received(&mut inbound, MAX_PACKET_BYTES, now);
                }
                Effect::Ask(ticket, request, _) => {
                    asked.push(format!("{request:?}"));
                    tickets.push(ticket);
                }
                Effect::Uplink(kind, payload, packet_id) => {
                    asked.push(format!("{kind:?} {payload:?} {packet_id:?}"));
                    uplinks.extend(packet_id);
                }
                effect => asked.push(format!("{effect:?}")),
            }
        }
        written.extend_from_slice(&session.out().split());
    }
    if let Some(session) = &mut session {
        for ticket in tickets {
            let (outcome, body, call) = (rpc::Outcome::Offline, Bytes::new(), None);
            session.answered(&ticket, Ended { call, ..Ended::here(outcome, body) });
        }
        for packet_id in uplinks {
            session.uplinked(packet_id, true, now);
        }
        written.extend_from_slice(session.out());
    }
    (written, asked)
}

fn limits() -> Arc<SessionLimits> {
    Arc::new(SessionLimits {
        server_reference: None,
        device: device_limits(),
        max_subscriptions: 16,
        receive_maximum: 100,
        topic_alias_maximum: 16,
    })
}

/// The defaults, but for rates, which would make what is read depend on the clock.
fn device_limits() -> DeviceLimits {
    let none = Rate { per_second: 0, burst: 0 };
    let defaults = DeviceLimits::from(&boot::config::Settings::default());
    DeviceLimits { call_rate: none, uplink_rate: none, ..defaults }
}
