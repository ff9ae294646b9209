//! What must hold for any bytes? The bodies of the fuzz targets, which the ordinary tests run over the seed corpus.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use switchboard_ingress::device_api::{self, ApiLimits, Request};
use switchboard_ingress::mqtt::codec::{self, Opening};
use switchboard_ingress::mqtt::session::{Effect, Session, SessionLimits};
use switchboard_ingress::session::{CallerLimits, Rate};

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
        Ok(Request::SendMsg { timeout, connect_timeout, body, .. }) => {
            assert!(1 <= timeout.as_ms() && timeout.as_ms() <= API.max_timeout_ms);
            assert!(connect_timeout <= timeout);
            assert!(device_api::answer_is_json(&body));
            assert!(device_api::answer_is_json(&device_api::on_msg(&body)));
            assert!(device_api::answer_is_json(&device_api::on_msg_numbered(1, &body)));
        }
        Ok(Request::GetDevices { .. } | Request::GetSessionLimits | Request::GetTime) => {}
        Err(malformed) => {
            let read = device_api::answer(malformed.method, &malformed.outcome, Bytes::new());
            assert!(device_api::answer_is_json(&read));
        }
    }
}

/// What a connection writes and asks for, given its bytes in pieces of so many.
fn read(data: &[u8], piece: usize) -> (Vec<u8>, Vec<String>) {
    let now = Instant::now();
    let mut inbound = BytesMut::new();
    let mut session: Option<Session> = None;
    let (mut written, mut asked) = (Vec::new(), Vec::new());
    for bytes in data.chunks(piece) {
        inbound.extend_from_slice(bytes);
        if session.is_none() {
            match codec::open(&mut inbound, 4096) {
                Opening::Incomplete => continue,
                Opening::Connect(connect, codec) => {
                    let caller = Arc::new(Mutex::new(CallerLimits::new(now)));
                    session = Some(Session::new(codec, limits(), caller, 60, connect.receive_maximum, now));
                }
                Opening::OtherVersion | Opening::Refused(..) | Opening::Fault(_) => {
                    asked.push("refused".to_owned());
                    break;
                }
            }
        }
        let Some(session) = &mut session else { continue };
        session.received(&mut inbound, MAX_PACKET_BYTES, now);
        while let Some(effect) = session.next_effect() {
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
                    session.answered(&ticket, &rpc::Outcome::Offline, Bytes::new());
                }
                Effect::Uplink(kind, payload, packet_id) => {
                    asked.push(format!("{kind:?} {payload:?} {packet_id:?}"));
                    if let Some(packet_id) = packet_id {
                        session.uplinked(packet_id, true);
                    }
                }
                effect => asked.push(format!("{effect:?}")),
            }
        }
        written.extend_from_slice(&session.out().split());
    }
    (written, asked)
}

fn limits() -> Arc<SessionLimits> {
    let none = Rate { per_second: 0, burst: 0 };
    Arc::new(SessionLimits {
        api: API,
        max_calls_per_caller: 100,
        max_calls_per_target: 100,
        call_rate: none,
        uplink_rate: none,
        max_subscriptions: 16,
        receive_maximum: 100,
        topic_alias_maximum: 16,
    })
}
