//! The endpoint for its tests: a world in which time and every answer are given by hand.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boot::config::Coap;
use bytes::Bytes;
use coap_lite::{CoapOption, MessageClass, MessageType, Packet};
use parking_lot::Mutex;
use rpc::{Budget, CallId, DeliveryReply, Limit, NodeId, Outcome, SessionEnd};

use super::codec::option;
use super::endpoint::{Effect, Endpoint, EndpointLimits, ObserverKey, RequestId};
use crate::device::admit::{NotAdmitted, digest};
use crate::device::caller::CallerLimits;
use crate::device::limits::DeviceLimits;
use crate::device::mailbox::{EndReason, Incoming, Router};
use crate::device::sessions::CredentialDigest;
use crate::device::target::{Conclusion, TargetLimits};
use crate::device::visitors::Key;
use crate::device_api::Request;

/// Names the endpoint's node.
pub(super) const NODE_TAG: u16 = 0x2a5;

/// When it begins, in milliseconds since 1970.
pub(super) const UNIX_MS: u64 = 1_480_000_000_000;

pub(super) const GET: u8 = 1;
pub(super) const POST: u8 = 2;
pub(super) const RPC: &str = "api/v1/TOKEN/rpc";
pub(super) const GET_TIME: &str = r#"{"method":"getTime"}"#;

pub(super) fn limits() -> EndpointLimits {
    EndpointLimits {
        device: DeviceLimits {
            max_calls_per_caller: 4,
            target: TargetLimits { max_waiting: 3, max_waiting_bytes: 100_000, max_open: 4 },
            ..DeviceLimits::for_tests()
        },
        coap: Coap { max_exchanges: 100, max_observers: 2, ..Coap::default() },
    }
}

pub(super) fn peer(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

pub(super) fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A message to the endpoint.
pub(super) struct To {
    pub(super) packet: Packet,
}

pub(super) fn to(kind: MessageType, id: u16, code: u8, path: &str) -> To {
    let mut packet = Packet::new();
    packet.header.set_type(kind);
    packet.header.message_id = id;
    packet.header.code = MessageClass::from(code);
    packet.set_token(vec![7, id as u8]);
    for segment in path.split('/').filter(|_| !path.is_empty()) {
        packet.add_option(CoapOption::UriPath, segment.as_bytes().to_vec());
    }
    To { packet }
}

pub(super) fn con(id: u16, code: u8, path: &str) -> To {
    to(MessageType::Confirmable, id, code, path)
}

pub(super) fn non(id: u16, code: u8, path: &str) -> To {
    to(MessageType::NonConfirmable, id, code, path)
}

pub(super) fn empty(kind: MessageType, id: u16) -> To {
    let mut packet = Packet::new();
    packet.header.set_type(kind);
    packet.header.message_id = id;
    packet.header.code = MessageClass::Empty;
    To { packet }
}

impl To {
    pub(super) fn token(mut self, token: &[u8]) -> Self {
        self.packet.set_token(token.to_vec());
        self
    }

    pub(super) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.packet.payload = body.as_ref().to_vec();
        self
    }

    pub(super) fn option(mut self, number: u16, value: &[u8]) -> Self {
        self.packet.add_option(CoapOption::from(number), value.to_vec());
        self
    }

    pub(super) fn observe(self, value: &[u8]) -> Self {
        self.option(option::OBSERVE, value)
    }

    pub(super) fn block(self, number: u16, block: u32, more: bool, exponent: u32) -> Self {
        let bits = block << 4 | u32::from(more) << 3 | exponent;
        self.option(number, &bits.to_be_bytes()[1..])
    }

    pub(super) fn bytes(&self) -> Bytes {
        self.packet.to_bytes_unlimited().unwrap().into()
    }
}

/// A message from the endpoint, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct From {
    pub(super) to: SocketAddr,
    pub(super) kind: char,
    pub(super) code: String,
    pub(super) id: u16,
    pub(super) token: Vec<u8>,
    pub(super) observe: Option<u32>,
    pub(super) format: Option<u8>,
    pub(super) body: String,
    pub(super) bytes: usize,
}

impl From {
    pub(super) fn short(&self) -> String {
        format!("{} {} {}", self.kind, self.code, self.body).trim_end().to_owned()
    }
}

pub(super) fn from(to: SocketAddr, datagram: &Bytes) -> From {
    let packet = Packet::from_bytes(datagram).unwrap();
    let kind = match packet.header.get_type() {
        MessageType::Confirmable => 'C',
        MessageType::NonConfirmable => 'N',
        MessageType::Acknowledgement => 'A',
        MessageType::Reset => 'R',
    };
    From {
        to,
        kind,
        code: packet.header.code.to_string(),
        id: packet.header.message_id,
        token: packet.get_token().to_vec(),
        observe: packet.get_observe_value().map(Result::unwrap),
        format: packet.get_first_option(CoapOption::ContentFormat).map(|it| it[0]),
        body: String::from_utf8(packet.payload).unwrap(),
        bytes: datagram.len(),
    }
}

/// The endpoint and what surrounds it. `TOKEN` and `OTHER` are devices' tokens.
pub(super) struct World {
    pub(super) endpoint: Endpoint,
    pub(super) now: Instant,
    pub(super) callers: HashMap<CredentialDigest, Arc<Mutex<CallerLimits>>>,
    /// While true, the surroundings answer at once: tokens are checked, claims stand, sessions end.
    pub(super) prompt: bool,
    /// Who is to be admitted and is not yet.
    pub(super) admits: Vec<(Key, CredentialDigest)>,
    pub(super) admitted: Vec<Key>,
    pub(super) claims: Vec<ObserverKey>,
    pub(super) asks: Vec<(RequestId, Request)>,
    pub(super) uplinks: Vec<(RequestId, Bytes)>,
    /// Answers to calls of other nodes.
    pub(super) handed_on: Vec<(RequestId, u32, Bytes)>,
    pub(super) conclusions: Vec<Conclusion<Router>>,
    pub(super) left: Vec<Key>,
    pub(super) ended: Vec<ObserverKey>,
    /// Why, in the same order.
    pub(super) reasons: Vec<SessionEnd>,
    pub(super) released: Vec<ObserverKey>,
    pub(super) hit: Vec<Limit>,
    pub(super) sent: Vec<From>,
    pub(super) calls: u64,
}

impl World {
    pub(super) fn of(limits: EndpointLimits) -> Self {
        let now = Instant::now();
        let known = ["TOKEN", "OTHER"].map(|token| digest(token.as_bytes()));
        World {
            endpoint: Endpoint::new(limits, NODE_TAG, 42, UNIX_MS, now),
            now,
            callers: known.map(|it| (it, Arc::new(Mutex::new(CallerLimits::new(now))))).into(),
            prompt: true,
            admits: Vec::new(),
            admitted: Vec::new(),
            claims: Vec::new(),
            asks: Vec::new(),
            uplinks: Vec::new(),
            handed_on: Vec::new(),
            conclusions: Vec::new(),
            left: Vec::new(),
            ended: Vec::new(),
            reasons: Vec::new(),
            released: Vec::new(),
            hit: Vec::new(),
            sent: Vec::new(),
            calls: 0,
        }
    }

    pub(super) fn new() -> Self {
        World::of(limits())
    }

    pub(super) fn settle(&mut self) {
        while let Some(effect) = self.endpoint.next_effect() {
            match effect {
                Effect::Send(to, datagram) => self.sent.push(from(to, &datagram)),
                Effect::Admit(key, credential, _) if self.prompt => self.admit(key, credential),
                Effect::Admit(key, credential, _) => self.admits.push((key, credential)),
                Effect::Leave(key) => self.left.push(key),
                Effect::Ask(id, _, request) => self.asks.push((id, request)),
                Effect::Uplink(id, _, _, body) => self.uplinks.push((id, body)),
                Effect::HandOn(id, _, number, body) => self.handed_on.push((id, number, body)),
                Effect::Claim(observer, _) => {
                    self.claims.push(observer);
                    if self.prompt {
                        self.endpoint.claimed(observer, true, self.now);
                    }
                }
                Effect::Release(key) => self.released.push(key),
                Effect::End(key, reason) => {
                    self.ended.push(key);
                    self.reasons.push(reason);
                    if self.prompt {
                        self.endpoint.ended(key, self.now);
                    }
                }
                Effect::Conclude(conclusion) => self.conclusions.push(conclusion),
                Effect::LimitHit(limit, _) => self.hit.push(limit),
                Effect::Refused(..) => {}
            }
        }
    }

    pub(super) fn admit(&mut self, key: Key, credential: CredentialDigest) {
        let caller = self.callers.get(&credential).map(Arc::clone);
        self.admitted.push(key);
        self.endpoint.admitted(key, caller.ok_or(NotAdmitted::Unknown), self.now);
    }

    /// What the endpoint sends for this message.
    pub(super) fn says(&mut self, port: u16, message: &To) -> Vec<From> {
        self.endpoint.received(peer(port), &message.bytes(), self.now);
        self.sends()
    }

    pub(super) fn short(&mut self, port: u16, message: &To) -> Vec<String> {
        self.says(port, message).iter().map(From::short).collect()
    }

    /// Lets time pass, by the endpoint's own wakes.
    pub(super) fn pass(&mut self, duration: Duration) -> Vec<From> {
        let until = self.now + duration;
        while let Some(wake) = self.endpoint.next_wake()
            && wake <= until
        {
            self.now = self.now.max(wake);
            self.endpoint.tick(self.now);
            self.settle();
        }
        self.now = until;
        self.endpoint.tick(self.now);
        self.sends()
    }

    pub(super) fn answers(&mut self, body: &'static str) -> Vec<From> {
        let (id, request) = self.asks.remove(0);
        let body = Bytes::from_static(body.as_bytes());
        self.endpoint.answered(id, request.method(), &Outcome::Answered, body, self.now);
        self.sends()
    }

    /// A device that observes from this port, with this token.
    pub(super) fn observed(&mut self, port: u16, id: u16, token: &[u8]) -> ObserverKey {
        let said = self.short(port, &con(id, GET, RPC).token(token).observe(b""));
        assert_eq!(said, ["A 2.05"]);
        *self.claims.last().unwrap()
    }

    pub(super) fn calls(&mut self, key: ObserverKey, budget_ms: u32, oneway: bool, body: &str) -> Vec<From> {
        self.calls += 1;
        let inbox = format!("reply.{}", self.calls).into();
        let call = Box::new(Incoming {
            call: CallId { node: NodeId(1), serial: self.calls },
            caller: None,
            oneway,
            traceparent: None,
            method: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
            deadline: Budget::from_ms(budget_ms).starting(self.now),
            verdict: None,
            reply_to: Router { inbox, arrived: self.now, span: Default::default(), place: None },
            late: Some(self.calls),
        });
        self.endpoint.deliver(key, call, self.now);
        self.sends()
    }

    pub(super) fn ends(&mut self, key: ObserverKey, reason: EndReason) -> Vec<From> {
        self.endpoint.end_observer(key, reason, self.now);
        self.sends()
    }

    pub(super) fn ends_visit(&mut self, key: Key, reason: EndReason) -> Vec<From> {
        self.endpoint.end_visitor(key, reason, self.now);
        self.sends()
    }

    /// Everybody is sent to another node.
    pub(super) fn send_away(&mut self, reason: EndReason) {
        for visitor in self.admitted.clone() {
            self.endpoint.send_away(visitor, reason, self.now);
        }
        self.settle();
    }

    /// What was sent since the last look.
    pub(super) fn sends(&mut self) -> Vec<From> {
        self.settle();
        std::mem::take(&mut self.sent)
    }

    /// What became of calls since the last look.
    pub(super) fn replied(&mut self) -> Vec<String> {
        let text = |conclusion: Conclusion<Router>| {
            let (inbox, reply, body) = match conclusion {
                Conclusion::Call { reply_to: Router { inbox, .. }, reply, body } => (inbox, reply, body),
                Conclusion::Late(answer, body) => {
                    return format!("{} late {}", answer.call, String::from_utf8_lossy(&body));
                }
            };
            let reply = match &reply {
                None => "nothing".to_owned(),
                Some(DeliveryReply::NotHere) => "not here".to_owned(),
                Some(DeliveryReply::Outdated) => "outdated".to_owned(),
                Some(DeliveryReply::Ended(Outcome::Busy(limit))) => format!("busy ({})", limit.as_str()),
                Some(DeliveryReply::Ended(outcome)) => outcome.as_str().to_owned(),
            };
            format!("{inbox} {reply} {}", String::from_utf8_lossy(&body)).trim_end().to_owned()
        };
        std::mem::take(&mut self.conclusions).into_iter().map(text).collect()
    }
}

pub(super) fn number_of(notification: &From) -> u32 {
    serde_json::from_str::<serde_json::Value>(&notification.body).unwrap()["id"].as_u64().unwrap() as u32
}
