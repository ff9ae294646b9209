//! Does the endpoint do as the RFCs and the device API say? A world in which time and every answer are given by hand.

use std::collections::{HashMap, HashSet};

use coap_lite::{CoapOption, MessageClass, MessageType, Packet};
use proptest::prelude::*;
use rpc::{Budget, CallId, NodeId};

use super::*;
use crate::coap::codec::option;
use crate::device::target::TargetLimits;

const GET: u8 = 1;
const POST: u8 = 2;
const RPC: &str = "api/v1/TOKEN/rpc";
const GET_TIME: &str = r#"{"method":"getTime"}"#;

fn limits() -> EndpointLimits {
    let target = TargetLimits { max_waiting: 3, max_open: 4 };
    EndpointLimits {
        device: DeviceLimits { max_calls_per_caller: 4, target, ..DeviceLimits::for_tests() },
        coap: Coap { max_exchanges: 100, max_observers: 2, ..Coap::default() },
    }
}

fn peer(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A message to the endpoint.
struct To {
    packet: Packet,
}

fn to(kind: MessageType, id: u16, code: u8, path: &str) -> To {
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

fn con(id: u16, code: u8, path: &str) -> To {
    to(MessageType::Confirmable, id, code, path)
}

fn non(id: u16, code: u8, path: &str) -> To {
    to(MessageType::NonConfirmable, id, code, path)
}

fn empty(kind: MessageType, id: u16) -> To {
    let mut packet = Packet::new();
    packet.header.set_type(kind);
    packet.header.message_id = id;
    packet.header.code = MessageClass::Empty;
    To { packet }
}

impl To {
    fn token(mut self, token: &[u8]) -> Self {
        self.packet.set_token(token.to_vec());
        self
    }

    fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.packet.payload = body.as_ref().to_vec();
        self
    }

    fn option(mut self, number: u16, value: &[u8]) -> Self {
        self.packet.add_option(CoapOption::from(number), value.to_vec());
        self
    }

    fn observe(self, value: &[u8]) -> Self {
        self.option(option::OBSERVE, value)
    }

    fn block(self, number: u16, block: u32, more: bool, exponent: u32) -> Self {
        let bits = block << 4 | u32::from(more) << 3 | exponent;
        self.option(number, &bits.to_be_bytes()[1..])
    }

    fn bytes(&self) -> Bytes {
        self.packet.to_bytes_unlimited().unwrap().into()
    }
}

/// A message from the endpoint, in short.
#[derive(Debug, Clone, PartialEq, Eq)]
struct From {
    to: SocketAddr,
    kind: char,
    code: String,
    id: u16,
    token: Vec<u8>,
    body: String,
    bytes: usize,
}

impl From {
    fn short(&self) -> String {
        format!("{} {} {}", self.kind, self.code, self.body).trim_end().to_owned()
    }
}

fn from(to: SocketAddr, datagram: &Bytes) -> From {
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
        body: String::from_utf8(packet.payload).unwrap(),
        bytes: datagram.len(),
    }
}

/// The endpoint and what surrounds it. `TOKEN` and `OTHER` are devices' tokens.
struct World {
    endpoint: Endpoint,
    now: Instant,
    callers: HashMap<CredentialDigest, Arc<Mutex<CallerLimits>>>,
    /// While true, the surroundings answer at once: tokens are checked, claims stand, sessions end.
    prompt: bool,
    authenticates: Vec<(Key, CredentialDigest)>,
    claims: Vec<Key>,
    asks: Vec<(RequestId, Request)>,
    uplinks: Vec<(RequestId, Bytes)>,
    replies: Vec<(String, DeliveryReply, Bytes)>,
    ended: Vec<Key>,
    released: Vec<Key>,
    hit: Vec<Limit>,
    sent: Vec<From>,
    calls: u64,
}

impl World {
    fn of(limits: EndpointLimits) -> Self {
        let now = Instant::now();
        let known = ["TOKEN", "OTHER"].map(|token| digest(token.as_bytes()));
        World {
            endpoint: Endpoint::new(limits, 42),
            now,
            callers: known.map(|it| (it, Arc::new(Mutex::new(CallerLimits::new(now))))).into(),
            prompt: true,
            authenticates: Vec::new(),
            claims: Vec::new(),
            asks: Vec::new(),
            uplinks: Vec::new(),
            replies: Vec::new(),
            ended: Vec::new(),
            released: Vec::new(),
            hit: Vec::new(),
            sent: Vec::new(),
            calls: 0,
        }
    }

    fn new() -> Self {
        World::of(limits())
    }

    fn settle(&mut self) {
        while let Some(effect) = self.endpoint.next_effect() {
            match effect {
                Effect::Send(to, datagram) => self.sent.push(from(to, &datagram)),
                Effect::Authenticate(key, credential) if self.prompt => self.authenticate(key, credential),
                Effect::Authenticate(key, credential) => self.authenticates.push((key, credential)),
                Effect::Ask(id, _, request) => self.asks.push((id, request)),
                Effect::Uplink(id, _, _, body) => self.uplinks.push((id, body)),
                Effect::Claim { observer, .. } => {
                    self.claims.push(observer);
                    if self.prompt {
                        self.endpoint.claimed(observer, true, self.now);
                    }
                }
                Effect::Release(key) => self.released.push(key),
                Effect::End(key, _) => {
                    self.ended.push(key);
                    if self.prompt {
                        self.endpoint.ended(key, self.now);
                    }
                }
                Effect::Conclude(Conclusion { reply_to, reply, body }) => {
                    self.replies.extend(reply.map(|reply| (reply_to.inbox.to_string(), reply, body)));
                }
                Effect::LimitHit(limit) => self.hit.push(limit),
                Effect::Refused(..) => {}
            }
        }
    }

    fn authenticate(&mut self, key: Key, credential: CredentialDigest) {
        let identified = match self.callers.get(&credential) {
            Some(caller) => Identified::Device(Arc::clone(caller)),
            None => Identified::Nobody,
        };
        self.endpoint.authenticated(key, identified, self.now);
    }

    /// What the endpoint sends for this message.
    fn says(&mut self, port: u16, message: &To) -> Vec<From> {
        self.endpoint.received(peer(port), &message.bytes(), self.now);
        self.settle();
        std::mem::take(&mut self.sent)
    }

    fn short(&mut self, port: u16, message: &To) -> Vec<String> {
        self.says(port, message).iter().map(From::short).collect()
    }

    /// Lets time pass, by the endpoint's own wakes.
    fn pass(&mut self, duration: Duration) -> Vec<From> {
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
        self.settle();
        std::mem::take(&mut self.sent)
    }

    fn answers(&mut self, body: &'static str) -> Vec<From> {
        let (id, request) = self.asks.remove(0);
        let body = Bytes::from_static(body.as_bytes());
        self.endpoint.answered(id, request.method(), &Outcome::Answered, body, self.now);
        self.settle();
        std::mem::take(&mut self.sent)
    }

    /// A device that observes from this port, with this token.
    fn observed(&mut self, port: u16, id: u16, token: &[u8]) -> Key {
        let said = self.short(port, &con(id, GET, RPC).token(token).observe(b""));
        assert_eq!(said, ["A 2.05"]);
        *self.claims.last().unwrap()
    }

    fn incoming(&mut self, budget_ms: u32, oneway: bool, body: &str) -> Box<Incoming> {
        self.calls += 1;
        let call = CallId { node: NodeId(1), serial: self.calls };
        let budget = Budget::from_ms(budget_ms);
        Box::new(Incoming {
            call,
            caller: None,
            oneway,
            traceparent: None,
            body: Bytes::copy_from_slice(body.as_bytes()),
            deadline: budget.starting(self.now),
            reply_to: Router {
                inbox: format!("reply.{}", self.calls).into(),
                arrived: self.now,
                span: Default::default(),
            },
        })
    }

    fn calls(&mut self, key: Key, budget_ms: u32, oneway: bool, body: &str) -> Vec<From> {
        let incoming = self.incoming(budget_ms, oneway, body);
        self.mails(key, Mail::Deliver(incoming))
    }

    fn mails(&mut self, key: Key, mail: Mail) -> Vec<From> {
        self.endpoint.mail(key, mail, self.now);
        self.settle();
        std::mem::take(&mut self.sent)
    }

    fn replied(&mut self) -> Vec<String> {
        let text = |(to, reply, body): (String, DeliveryReply, Bytes)| {
            let reply = match reply {
                DeliveryReply::NotHere => "not here".to_owned(),
                DeliveryReply::Ended(outcome) => outcome.as_str().to_owned(),
            };
            format!("{to} {reply} {}", String::from_utf8_lossy(&body)).trim_end().to_owned()
        };
        std::mem::take(&mut self.replies).into_iter().map(text).collect()
    }
}

fn number_of(notification: &From) -> u32 {
    serde_json::from_str::<serde_json::Value>(&notification.body).unwrap()["id"].as_u64().unwrap() as u32
}

#[test]
fn a_prompt_answer_comes_with_the_acknowledgement_and_a_retransmission_gets_it_again() {
    let mut world = World::new();
    let request = con(1, POST, RPC).body(GET_TIME);
    assert_eq!(world.says(1, &request), []);
    let answer = world.answers("[1]");
    assert_eq!((answer[0].short(), answer[0].id, &answer[0].token), ("A 2.05 [1]".into(), 1, &vec![7, 1]));
    assert_eq!(world.says(1, &request), answer);
    assert_eq!(world.asks.len(), 0, "a retransmitted request is one call");
    // The same id of another peer, and the same id after its lifetime, are other requests.
    world.says(2, &request);
    assert_eq!(world.asks.len(), 1);
    world.answers("[2]");
    world.pass(ms(248_500));
    world.says(1, &request);
    assert_eq!(world.asks.len(), 1);
}

#[test]
fn a_late_answer_is_a_separate_response_however_late() {
    let mut world = World::new();
    let request = con(1, POST, RPC).body(GET_TIME);
    assert_eq!(world.says(1, &request), []);
    let acknowledged: Vec<String> = world.pass(ms(300)).iter().map(From::short).collect();
    assert_eq!(acknowledged, ["A 0.00"]);
    world.pass(ms(59_000));
    assert_eq!(world.short(1, &request), ["A 0.00"], "its retransmission");
    let answer = world.answers("[1]");
    assert_eq!((answer[0].short(), &answer[0].token), ("C 2.05 [1]".into(), &vec![7, 1]));
    let again = world.pass(ms(3_000));
    assert_eq!(again, answer, "it is sent again until it is acknowledged");
    assert_eq!(world.says(1, &empty(MessageType::Acknowledgement, answer[0].id)), []);
    assert_eq!(world.pass(ms(100_000)), []);
    assert_eq!(world.endpoint.messages.held().1, 0);
}

#[test]
fn a_retransmission_that_comes_before_the_answer_is_acknowledged_at_once() {
    let mut world = World::new();
    let request = con(1, POST, RPC).body(GET_TIME);
    world.says(1, &request);
    assert_eq!(world.short(1, &request), ["A 0.00"]);
    assert_eq!(world.answers("[1]")[0].kind, 'C');
}

#[test]
fn a_non_confirmable_request_is_answered_so_and_its_duplicate_not_at_all() {
    let mut world = World::new();
    let request = non(1, POST, RPC).body(GET_TIME);
    world.says(1, &request);
    world.pass(ms(1_000));
    assert_eq!(world.answers("[1]")[0].short(), "N 2.05 [1]");
    assert_eq!(world.says(1, &request), []);
    assert_eq!(world.asks.len(), 0);
    // §5.4.1: unknown critical options are passed over in silence there, and refused in a confirmable request.
    assert_eq!(world.short(1, &non(2, POST, RPC).option(9, b"x")), [""; 0]);
    assert_eq!(world.short(1, &con(3, POST, RPC).option(9, b"x")), ["A 4.02"]);
}

#[test]
fn messages_that_are_no_requests() {
    let mut world = World::new();
    assert_eq!(world.short(1, &empty(MessageType::Confirmable, 9)), ["R 0.00"], "a ping");
    for silent in [MessageType::NonConfirmable, MessageType::Acknowledgement, MessageType::Reset] {
        assert_eq!(world.short(1, &empty(silent, 9)), [""; 0]);
    }
    assert_eq!(world.short(1, &con(9, 0x45, "")), ["R 0.00"], "a response to nothing");
    assert_eq!(world.short(1, &non(9, 0x45, "")), [""; 0]);
    assert_eq!(world.short(1, &con(9, 0xff, "")), ["R 0.00"], "a reserved code");
    for (bytes, resets) in [(&b"\x4f\x01\x00\x09"[..], 1), (b"\x5f\x01\x00\x09", 0), (b"\x80\x01\x00\x09", 0)]
    {
        world.endpoint.received(peer(1), &Bytes::copy_from_slice(bytes), world.now);
        world.settle();
        assert_eq!(std::mem::take(&mut world.sent).len(), resets);
    }
}

#[test]
fn who_has_no_token_is_asked_about_once_and_refused() {
    let mut world = World::new();
    world.prompt = false;
    let request = con(1, POST, "api/v1/NOBODY/rpc").body(GET_TIME);
    world.says(1, &request);
    world.says(1, &con(2, POST, "api/v1/NOBODY/rpc").body(GET_TIME));
    assert_eq!(world.short(1, &request), ["A 0.00"]);
    assert_eq!(world.authenticates.len(), 1);
    let (key, credential) = world.authenticates.remove(0);
    world.authenticate(key, credential);
    world.settle();
    let said: Vec<String> = std::mem::take(&mut world.sent).iter().map(From::short).collect();
    // What was acknowledged is answered without asking for an acknowledgement: its sender may be forged.
    assert_eq!(said[0], "N 4.01");
    assert!(said[1].starts_with("A 4.01 "), "{said:?}");
    assert_eq!((world.endpoint.messages.held(), world.endpoint.devices.len()), ((0, 0), 0));
    assert_eq!(world.short(1, &con(3, POST, "api/v1//rpc"))[0].split(' ').nth(1), Some("4.01"));
    assert!(world.authenticates.is_empty());
}

#[test]
fn only_so_many_wait_to_be_known_and_the_known_are_not_disturbed() {
    let mut limits = limits();
    limits.coap.max_unauthenticated = 10;
    let mut world = World::of(limits);
    world.says(1, &con(1, POST, RPC).body(GET_TIME));
    assert_eq!(world.answers("1").len(), 1);
    world.prompt = false;
    for number in 0..10_000u32 {
        let path = format!("api/v1/GUESS{number}/rpc");
        assert_eq!(world.says(100 + (number % 60_000) as u16, &con(number as u16, POST, &path)), []);
    }
    assert_eq!((world.authenticates.len(), world.endpoint.devices.len()), (10, 11));
    assert_eq!(world.hit.len(), 10_000 - 10);
    world.says(1, &con(2, POST, RPC).body(GET_TIME));
    assert_eq!(world.answers("2")[0].short(), "A 2.05 2");
}

#[test]
fn refusals_by_code() {
    let mut world = World::new();
    let cases = [
        (con(1, POST, "api/v1/TOKEN/nothing"), "A 4.04"),
        (con(2, 3, RPC), "A 4.05"),
        (con(3, POST, RPC).body("{"), "A 4.00 {\"error\":\"Malformed request: it must be JSON in UTF-8\"}"),
        (con(4, POST, RPC).body("{}"), "A 4.00 {\"error\":\"Malformed request: method must be a string\"}"),
        (con(5, POST, RPC).body(r#"{"method":"x"}"#), "A 2.05 {\"error\":\"Method x is not supported!\"}"),
        (con(6, GET, RPC), "A 4.00"),
        (con(7, GET, RPC).observe(b"\x02"), "A 4.00"),
        (con(8, POST, RPC).option(option::ACCEPT, b"\x28"), "A 4.06"),
        (con(9, POST, RPC).option(option::PROXY_URI, b"coap://a"), "A 5.05"),
        (con(10, POST, "api/v1/TOKEN/rpc/1").body("1"), "A 4.04 {\"error\":\"No such call is open!\"}"),
        (
            con(11, GET, RPC).block(option::BLOCK2, 3, false, 6),
            "A 4.00 {\"error\":\"There is no such block!\"}",
        ),
        (con(12, POST, RPC).block(option::BLOCK1, 3, false, 6), "A 4.08"),
        (con(13, POST, RPC).body(vec![b' '; 65_537]), "A 4.13"),
        (
            con(14, POST, RPC)
                .block(option::BLOCK1, 0, true, 0)
                .option(option::SIZE1, &[1, 0, 1])
                .body([b' '; 16]),
            "A 4.13",
        ),
    ];
    for (message, code) in cases {
        let said = world.short(1, &message);
        assert!(said[0].starts_with(code), "{said:?} instead of {code}");
        assert_eq!(world.short(1, &message), said, "asked again, the same");
    }
    assert_eq!(world.endpoint.messages.held(), (0, 0), "refusals are not remembered");
    let discovery = world.says(1, &con(20, GET, ".well-known/core"));
    assert_eq!(discovery[0].code, "2.05");
}

#[test]
fn limits_of_a_caller_are_told_with_a_time_to_try_again() {
    let mut world = World::new();
    for id in 0..4 {
        world.says(1, &con(id, POST, RPC).body(GET_TIME));
    }
    let said = world.says(1, &con(5, POST, RPC).body(GET_TIME));
    assert_eq!(said[0].short(), "A 4.29 {\"error\":\"Too many requests!\"}");
    assert_eq!(world.hit, [Limit::CallerInFlight]);
    world.answers("1");
    world.says(1, &con(6, POST, RPC).body(GET_TIME));
    assert_eq!(world.asks.len(), 4);
}

#[test]
fn uplinks_are_acknowledged_once_they_are_taken() {
    let mut world = World::new();
    assert_eq!(world.says(1, &con(1, POST, "api/v1/TOKEN/telemetry").body("{\"a\":1}")), []);
    let (id, body) = world.uplinks.remove(0);
    assert_eq!(body, "{\"a\":1}");
    world.endpoint.uplinked(id, true, world.now);
    world.settle();
    assert_eq!(std::mem::take(&mut world.sent)[0].short(), "A 2.04");
    world.says(1, &con(2, POST, "api/v1/TOKEN/attributes").body("{}"));
    let (id, _) = world.uplinks.remove(0);
    world.endpoint.uplinked(id, false, world.now);
    world.settle();
    assert_eq!(std::mem::take(&mut world.sent)[0].code, "5.03");
    assert_eq!(world.says(1, &con(3, POST, "api/v1/TOKEN/attributes").body("{"))[0].code, "4.00");
}

#[test]
fn a_device_is_callable_once_its_claim_stands() {
    let mut world = World::new();
    world.prompt = false;
    let register = con(1, GET, RPC).token(b"obs").observe(b"");
    assert_eq!(world.says(1, &register), []);
    let (device, credential) = world.authenticates.remove(0);
    world.authenticate(device, credential);
    world.settle();
    assert_eq!(world.sent, []);
    let key = world.claims[0];
    // A call can overtake the claim's own answer.
    assert_eq!(world.calls(key, 1_000, false, "1"), []);
    world.endpoint.claimed(key, true, world.now);
    world.settle();
    let sent = std::mem::take(&mut world.sent);
    assert_eq!((sent[0].short(), sent[1].kind, &sent[1].token), ("A 2.05".into(), 'C', &b"obs".to_vec()));
    assert!(sent[1].body.ends_with(r#","method":"onMsg","params":1}"#));

    // Registered again, it is refreshed and not claimed again.
    assert_eq!(world.short(1, &con(2, GET, RPC).token(b"obs").observe(b"")), ["A 2.05"]);
    assert_eq!(world.claims.len(), 1);

    world.says(1, &con(3, GET, "api/v1/TOKEN/rpc").token(b"new").observe(b""));
    let key = world.claims[1];
    world.endpoint.claimed(key, false, world.now);
    world.settle();
    assert_eq!(world.sent[0].code, "5.03");
    assert_eq!(world.ended, [key]);
}

#[test]
fn one_call_at_a_time_each_answered_once() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let first = world.calls(key, 10_000, false, r#"{"a" : 1}"#);
    let number = number_of(&first[0]);
    assert_eq!(first[0].body, format!(r#"{{"id":{number},"method":"onMsg","params":{{"a" : 1}}}}"#));
    assert_eq!(world.calls(key, 10_000, false, "2"), [], "the first is not acknowledged yet");
    let second = world.says(1, &empty(MessageType::Acknowledgement, first[0].id));
    assert_eq!(number_of(&second[0]), number + 1);

    let path = |number: u32| format!("{RPC}/{number}");
    assert!(world.short(1, &con(2, POST, &path(number)).body("ok"))[0].starts_with("A 4.00"));
    assert_eq!(world.replied(), [""; 0], "the call is still open");
    let answer = con(3, POST, &path(number)).body(r#" {"b":2} "#);
    assert_eq!(world.short(1, &answer), ["A 2.04"]);
    assert_eq!(world.replied(), [r#"reply.1 answered  {"b":2} "#.trim_end()]);
    assert_eq!(world.short(1, &answer), ["A 2.04"], "its retransmission");
    assert!(world.short(1, &con(4, POST, &path(number)).body("1"))[0].starts_with("A 4.04"));
    assert!(
        world.short(2, &con(4, POST, &format!("api/v1/OTHER/rpc/{}", number + 1)).body("1"))[0]
            .starts_with("A 4.04")
    );
    assert_eq!(world.replied(), [""; 0]);
    // Who answers has the call, though the acknowledgement was lost; and may answer from elsewhere.
    assert_eq!(world.short(2, &con(5, POST, &path(number + 1)).body("2")), ["A 2.04"]);
    assert_eq!(world.replied(), ["reply.2 answered 2"]);
    assert_eq!(
        world.pass(ms(100_000)).iter().filter(|it| it.code != "0.00").count(),
        0,
        "nothing is sent again"
    );
}

#[test]
fn a_oneway_call_is_delivered_by_its_acknowledgement() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let sent = world.calls(key, 10_000, true, "1");
    assert_eq!(world.replied(), [""; 0]);
    let path = format!("{RPC}/{}", number_of(&sent[0]));
    assert!(world.short(1, &con(2, POST, &path).body("1"))[0].starts_with("A 4.04"));
    world.says(1, &empty(MessageType::Acknowledgement, sent[0].id));
    assert_eq!(world.replied(), ["reply.1 delivered"]);
}

#[test]
fn a_rejected_notification_ends_the_observation() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let sent = world.calls(key, 10_000, false, "1");
    world.calls(key, 10_000, false, "2");
    world.says(1, &empty(MessageType::Reset, sent[0].id));
    assert_eq!(world.replied(), ["reply.1 not here", "reply.2 not here"], "it was sent once and never taken");
    assert_eq!(world.ended, [key]);

    let key = world.observed(1, 2, b"obs");
    let sent = world.calls(key, 10_000, false, "3");
    world.pass(ms(3_000));
    world.says(1, &empty(MessageType::Reset, sent[0].id));
    assert_eq!(world.replied(), ["reply.3 lost"], "the first one may have been taken");
    world.calls(key, 10_000, false, "4");
    assert_eq!(world.replied(), ["reply.4 not here"]);
}

#[test]
fn an_observer_that_does_not_acknowledge_is_dropped() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let sent = world.calls(key, 200_000, false, "1");
    world.calls(key, 200_000, false, "2");
    let again = world.pass(ms(100_000));
    assert_eq!(again.iter().filter(|it| **it == sent[0]).count(), 4);
    assert_eq!(world.ended.first(), Some(&key));
    assert_eq!(world.replied(), ["reply.2 not here", "reply.1 lost"]);
    assert_eq!(world.endpoint.take_tally().given_up, 1);
}

#[test]
fn a_call_out_of_time_is_not_sent_any_more_but_its_device_is_still_looked_for() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let first = world.calls(key, 1_000, false, "1");
    world.calls(key, 30_000, false, "2");
    let sent = world.pass(ms(1_100));
    assert!(sent[0].body.ends_with("2}"), "the next one takes its place: {sent:?}");
    assert_eq!(world.says(1, &empty(MessageType::Acknowledgement, first[0].id)), [], "too late");
    world.says(1, &empty(MessageType::Acknowledgement, sent[0].id));

    world.calls(key, 1_000, false, "3");
    let sent = world.pass(ms(40_000));
    assert!(sent.iter().all(|it| it.short() == "C 0.00"), "pings: {sent:?}");
    assert!((2..=4).contains(&sent.len()));
    world.says(1, &empty(MessageType::Reset, sent[0].id));
    assert!(world.ended.is_empty(), "it is there");
    let next = world.calls(key, 1_000, false, "4");
    assert!(next[0].body.ends_with("4}"));
    let reasons = world.replied();
    assert_eq!(reasons, [""; 0], "the router tells callers of lost time");
}

#[test]
fn a_device_that_was_silent_for_long_is_pinged_and_dropped_without_an_answer() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let sent = world.pass(ms(600_100));
    assert_eq!(sent.iter().map(From::short).collect::<Vec<_>>(), ["C 0.00"]);
    world.says(1, &empty(MessageType::Reset, sent[0].id));
    assert_eq!(world.pass(ms(500_000)), []);
    assert_eq!(world.pass(ms(300_000)).len(), 5);
    assert_eq!(world.ended.first(), Some(&key));
}

#[test]
fn observe_1_ends_an_observation_once_its_claim_is_gone() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let sent = world.calls(key, 10_000, false, "1");
    world.says(1, &empty(MessageType::Acknowledgement, sent[0].id));
    world.prompt = false;
    assert_eq!(world.says(1, &con(2, GET, RPC).token(b"obs").observe(b"\x01")), []);
    assert_eq!(world.replied(), ["reply.1 lost"]);
    assert_eq!(world.ended, [key]);
    world.endpoint.ended(key, world.now);
    world.settle();
    assert_eq!(std::mem::take(&mut world.sent)[0].short(), "A 2.05");
    assert_eq!(world.short(1, &con(3, GET, RPC).token(b"obs").observe(b"\x01")), ["A 2.05"], "there is none");
}

#[test]
fn an_observation_ended_while_it_is_claimed_is_released() {
    let mut world = World::new();
    world.says(1, &con(1, POST, RPC).body(GET_TIME));
    world.prompt = false;
    world.says(1, &con(2, GET, RPC).token(b"obs").observe(b""));
    let key = world.claims[0];
    world.says(1, &con(3, GET, RPC).token(b"obs").observe(b"\x01"));
    assert!(world.ended.is_empty());
    world.calls(key, 1_000, false, "1");
    assert_eq!(world.replied(), ["reply.1 not here"]);
    world.endpoint.claimed(key, true, world.now);
    world.settle();
    assert_eq!(world.ended, [key]);
    world.endpoint.ended(key, world.now);
    world.settle();
    let codes: Vec<String> = world.sent.iter().map(|it| format!("{} {}", it.id, it.code)).collect();
    assert_eq!(codes, ["2 5.03", "3 2.05"]);
}

#[test]
fn the_node_ends_an_observation_with_a_last_word() {
    for (reason, word) in [
        (EndReason::TakenOver, "C 4.09"),
        (EndReason::Revoked, "C 4.01"),
        (EndReason::ShuttingDown, "N 5.03"),
    ] {
        let mut world = World::new();
        let key = world.observed(1, 1, b"obs");
        let sent = world.calls(key, 10_000, false, "1");
        world.says(1, &empty(MessageType::Acknowledgement, sent[0].id));
        let said = world.mails(key, Mail::End(reason));
        assert!(said[0].short().starts_with(word), "{said:?}");
        assert_eq!(said[0].token, b"obs");
        assert_eq!((world.replied(), &world.ended[..]), (vec!["reply.1 lost".to_owned()], &[key][..]));
        let again = world.pass(ms(100_000)).len();
        assert_eq!(again, if word.starts_with('C') { 4 } else { 0 });
    }
}

#[test]
fn a_device_that_changed_is_forgotten_at_once_with_all_it_has_under_way() {
    let mut world = World::new();
    let observer = world.observed(1, 1, b"obs");
    world.says(1, &con(2, POST, RPC).body(GET_TIME));
    let device = observer - 1;
    let said = world.mails(device, Mail::End(EndReason::Revoked));
    let codes: Vec<&str> = said.iter().map(|it| it.code.as_str()).collect();
    assert_eq!(codes, ["4.01", "4.01"]);
    assert_eq!(world.ended, [observer, device]);
    assert_eq!(world.answers("1"), [], "its answer goes nowhere");
    world.prompt = false;
    world.says(1, &con(3, POST, RPC).body(GET_TIME));
    assert_eq!(world.authenticates.len(), 1, "it has to show its token again");
}

#[test]
fn draining_lets_calls_finish_and_begins_nothing() {
    let mut world = World::new();
    let target = world.observed(1, 1, b"obs");
    let sent = world.calls(target, 10_000, false, "1");
    world.says(1, &empty(MessageType::Acknowledgement, sent[0].id));
    world.says(2, &con(1, POST, "api/v1/OTHER/rpc").body(GET_TIME));
    world.endpoint.drain(world.now);
    world.mails(target, Mail::Drain);
    assert_eq!(world.released, [target]);
    assert!(!world.endpoint.is_drained());
    assert!(world.short(2, &con(2, POST, "api/v1/OTHER/rpc").body(GET_TIME))[0].starts_with("A 5.03"));
    assert_eq!(world.answers("2")[0].short(), "A 2.05 2");
    assert!(!world.endpoint.is_drained());
    let answer = format!("{RPC}/{}", number_of(&sent[0]));
    let said = world.short(1, &con(2, POST, &answer).body("1"));
    assert_eq!(said[0], "A 2.04");
    assert!(said[1].starts_with("N 5.03"));
    assert_eq!(world.replied(), ["reply.1 answered 1"]);
    assert!(world.endpoint.is_drained());
}

#[test]
fn what_is_not_over_when_draining_ends_is_cut_off() {
    let mut world = World::new();
    let target = world.observed(1, 1, b"obs");
    world.calls(target, 10_000, false, "1");
    world.says(2, &con(1, POST, "api/v1/OTHER/rpc").body(GET_TIME));
    world.endpoint.drain(world.now);
    let caller = *world.endpoint.devices.keys().max().unwrap();
    world.mails(target, Mail::End(EndReason::ShuttingDown));
    let said = world.mails(caller, Mail::End(EndReason::ShuttingDown));
    assert_eq!(said[0].code, "5.03");
    assert_eq!(world.replied(), ["reply.1 lost"]);
    assert!(world.endpoint.is_drained());
}

#[test]
fn a_full_mailbox_and_too_many_open_calls_are_busy() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    for _ in 0..5 {
        world.calls(key, 10_000, false, "1");
    }
    assert_eq!(world.replies[0].1, DeliveryReply::Ended(Outcome::Busy(Limit::Mailbox)));
    assert_eq!(world.replied(), ["reply.5 busy"]);
    let mut next = 0;
    for _ in 0..4 {
        let sent = world.endpoint.observers[&key].unacknowledged().unwrap();
        next = sent;
        world.says(1, &empty(MessageType::Acknowledgement, sent));
    }
    assert_ne!(next, 0);
    world.calls(key, 10_000, false, "1");
    assert_eq!(world.replies[0].1, DeliveryReply::Ended(Outcome::Busy(Limit::TargetInFlight)));
    assert_eq!(world.replied(), ["reply.6 busy"]);
}

#[test]
fn only_so_many_observe() {
    let mut world = World::new();
    world.observed(1, 1, b"a");
    world.observed(2, 1, b"a");
    let said = world.short(3, &con(1, GET, RPC).observe(b""));
    assert!(said[0].starts_with("A 5.03"));
    assert_eq!(world.hit, [Limit::Observers]);
}

#[test]
fn a_long_answer_is_fetched_in_blocks_and_never_performed_again() {
    let mut world = World::new();
    let long: &'static str = format!("\"{}\"", "x".repeat(2_500)).leak();
    world.says(1, &con(1, POST, RPC).body(GET_TIME));
    let mut answer = world.answers(long)[0].body.clone();
    assert_eq!(answer.len(), 1024);
    for number in 1..3 {
        let more = con(10 + number as u16, POST, RPC).block(option::BLOCK2, number, false, 6).body(GET_TIME);
        let said = world.says(1, &more);
        assert_eq!(said[0].code, "2.05");
        answer += &said[0].body;
    }
    assert_eq!(answer, long);
    assert!(world.asks.is_empty());
    assert!(world.short(2, &con(30, POST, RPC).block(option::BLOCK2, 1, false, 6))[0].starts_with("A 4.00"));
    // Smaller from the start.
    world.says(1, &con(31, POST, RPC).block(option::BLOCK2, 0, false, 2).body(GET_TIME));
    assert_eq!(world.answers(long)[0].body.len(), 64);
}

#[test]
fn a_long_call_is_taken_once_its_last_block_is_fetched() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let body = format!("\"{}\"", "y".repeat(3_000));
    let first = world.calls(key, 60_000, true, &body);
    world.calls(key, 60_000, false, "2");
    let mut text = first[0].body.clone();
    assert_eq!(world.says(1, &empty(MessageType::Acknowledgement, first[0].id)), []);
    assert_eq!(world.replied(), [""; 0]);
    let mut after = Vec::new();
    for number in 1..3 {
        let more = con(10 + number as u16, GET, RPC).block(option::BLOCK2, number, false, 6);
        after = world.says(1, &more);
        text += &after[0].body;
    }
    assert!(text.ends_with(&format!(r#","method":"onMsg","params":{body}}}"#)));
    assert_eq!(world.replied(), ["reply.1 delivered"]);
    assert!(after[1].body.ends_with("2}"), "the next call");
}

#[test]
fn a_long_call_that_is_not_fetched_holds_the_next_one_only_so_long() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let first = world.calls(key, 600_000, false, &format!("\"{}\"", "y".repeat(3_000)));
    world.calls(key, 600_000, false, "2");
    world.says(1, &empty(MessageType::Acknowledgement, first[0].id));
    let sent = world.pass(ms(61_000));
    assert!(sent.first().is_some_and(|it| it.body.ends_with("2}")), "{sent:?}");
}

#[test]
fn a_long_request_is_performed_once_it_is_whole() {
    let mut world = World::new();
    let text = format!(r#"{{"method":"getTime","params":"{}"}}"#, "z".repeat(200));
    let chunks: Vec<&[u8]> = text.as_bytes().chunks(64).collect();
    for (number, chunk) in chunks.iter().enumerate() {
        let more = number + 1 < chunks.len();
        let message = con(number as u16, POST, RPC).block(option::BLOCK1, number as u32, more, 2).body(chunk);
        let said = world.short(1, &message);
        assert_eq!(said, if more { vec!["A 2.31"] } else { vec![] });
        if more {
            assert_eq!(world.short(1, &message), ["A 2.31"], "its retransmission");
        }
    }
    assert_eq!(world.asks.len(), 1);
    assert_eq!(world.answers("1")[0].short(), "A 2.05 1");
}

#[test]
fn wrapped_answers_are_unwrapped_where_that_is_set() {
    let mut limits = limits();
    limits.coap.coap_unwrap_response = true;
    let mut world = World::of(limits);
    for (id, (said, read)) in [
        (r#"{"response": {"a" : 1} }"#, Some(r#"{"a" : 1}"#)),
        (r#"{"a":1}"#, Some(r#"{"a":1}"#)),
        ("[1]", Some("[1]")),
        (r#"{"response":}"#, None),
    ]
    .into_iter()
    .enumerate()
    {
        let key = world.observed(1, 100 + id as u16, &[id as u8]);
        let sent = world.calls(key, 10_000, false, "1");
        let answer = con(id as u16, POST, &format!("{RPC}/{}", number_of(&sent[0]))).body(said);
        world.says(1, &answer);
        let replied = world.replies.pop().map(|(_, _, body)| body);
        assert_eq!(replied, read.map(Bytes::from_static_str), "{said}");
        world.mails(key, Mail::End(EndReason::TakenOver));
        world.replied();
    }
}

trait FromStaticStr {
    fn from_static_str(text: &'static str) -> Bytes;
}

impl FromStaticStr for Bytes {
    fn from_static_str(text: &'static str) -> Bytes {
        Bytes::from_static(text.as_bytes())
    }
}

#[test]
fn an_idle_device_is_forgotten_and_a_busy_one_is_not() {
    let mut world = World::new();
    world.says(1, &con(1, POST, RPC).body(GET_TIME));
    world.pass(ms(120_000));
    assert!(world.ended.is_empty());
    let sent = world.answers("1");
    world.says(1, &empty(MessageType::Acknowledgement, sent[0].id));
    world.pass(ms(59_000));
    assert!(world.ended.is_empty());
    world.pass(ms(2_000));
    assert_eq!((world.ended.len(), world.endpoint.devices.len()), (1, 0));
}

#[test]
fn ten_thousand_half_open_requests_are_bounded_and_disturb_nobody() {
    let mut limits = limits();
    limits.coap.max_block_transfers = 50;
    let mut world = World::of(limits);
    world.says(9, &con(1, POST, "api/v1/OTHER/rpc").body(GET_TIME));
    for number in 0..10_000u32 {
        let begun = con(number as u16, POST, RPC).block(option::BLOCK1, 0, true, 6).body([b' '; 1024]);
        assert_eq!(world.short((number % 65_000) as u16 + 10, &begun), ["A 2.31"]);
    }
    let tally = world.endpoint.take_tally();
    assert_eq!((tally.transfers, tally.dropped_transfers, tally.exchanges), (8, 9_992, 1));
    assert_eq!(world.answers("1")[0].short(), "A 2.05 1");
    // Calls that never end, each a request of its own: the caller's limit holds them.
    for number in 0..10_000u32 {
        world.says(10, &con(number as u16, POST, RPC).body(GET_TIME));
    }
    assert_eq!(world.asks.len(), 4);
    assert!(world.endpoint.take_tally().exchanges <= 5);
}

proptest! {
    #[test]
    fn nobody_unknown_gets_more_than_a_multiple_of_what_was_sent(
        path in prop_oneof![
            Just(".well-known/core".to_owned()), Just("api/v1/x/rpc".to_owned()), Just("api/v1//rpc".to_owned()),
            Just(RPC.replace("TOKEN", "")), "[a-z/]{0,12}", Just("api/v1/GUESS/rpc/7".to_owned()),
        ],
        code in 1u8..4, confirmable in any::<bool>(),
        options in proptest::collection::vec((0u16..70, proptest::collection::vec(any::<u8>(), 0..3)), 0..4),
    ) {
        let mut world = World::new();
        let mut message = if confirmable { con(1, code, &path) } else { non(1, code, &path) };
        for (number, value) in options {
            message = message.option(number, &value);
        }
        let sent = message.bytes().len();
        let said = world.says(1, &message);
        prop_assert!(said.len() <= 1);
        let later = world.pass(ms(300_000));
        let bytes: usize = said.iter().chain(&later).map(|it| it.bytes).sum();
        prop_assert!(bytes <= sent * 3, "{} bytes for {}: {:?}", bytes, sent, said);
    }

    #[test]
    fn no_datagrams_panic(datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20)) {
        let mut world = World::new();
        for mut datagram in datagrams {
            if let Some(first) = datagram.first_mut() {
                *first = *first & 0x3f | 0x40;
            }
            world.endpoint.received(peer(1), &datagram.into(), world.now);
            while world.endpoint.next_effect().is_some() {}
            world.pass(ms(500));
        }
    }

    /// Whatever happens in whatever order: every call that came is replied to once, or ran out of time.
    #[test]
    fn every_call_ends_once(steps in proptest::collection::vec((0u8..12, 0u16..6, 0u64..4_000), 1..150)) {
        let mut world = World::new();
        let mut id = 1_000;
        let (mut last_sent, mut numbers) = (Vec::new(), Vec::new());
        let mut budgets: HashMap<String, Instant> = HashMap::new();
        let mut replied: HashSet<String> = HashSet::new();
        for (what, which, gap_ms) in steps {
            id += 1;
            let port = 1 + which % 2;
            let key = world.claims.get(usize::from(which) % world.claims.len().max(1)).copied();
            let mut sent = match what {
                0 => world.says(port, &con(id, GET, RPC).token(&[which as u8]).observe(b"")),
                1 => world.says(port, &con(id, GET, RPC).token(&[which as u8]).observe(b"\x01")),
                2..=5 => match key {
                    Some(key) => {
                        let budget_ms = 500 + gap_ms as u32 * 3;
                        let said = world.calls(key, budget_ms, which == 0, "1");
                        budgets.insert(format!("reply.{}", world.calls), world.now + ms(budget_ms.into()));
                        said
                    }
                    None => Vec::new(),
                },
                6 | 7 => match last_sent.pop() {
                    Some((to, id)) => {
                        let kind = if which == 0 { MessageType::Reset } else { MessageType::Acknowledgement };
                        world.endpoint.received(to, &empty(kind, id).bytes(), world.now);
                        world.settle();
                        std::mem::take(&mut world.sent)
                    }
                    None => Vec::new(),
                },
                8 | 9 => match numbers.pop() {
                    Some(number) => world.says(port, &con(id, POST, &format!("{RPC}/{number}")).body("1")),
                    None => Vec::new(),
                },
                10 if which == 0 => match key {
                    Some(key) => world.mails(key, Mail::End(EndReason::TakenOver)),
                    None => Vec::new(),
                },
                _ => world.pass(ms(gap_ms)),
            };
            sent.extend(world.pass(ms(gap_ms / 10)));
            for message in sent.iter().filter(|it| it.kind == 'C') {
                last_sent.push((message.to, message.id));
                if message.body.contains("onMsg") {
                    numbers.push(number_of(message));
                }
            }
            for (to, ..) in std::mem::take(&mut world.replies) {
                prop_assert!(replied.insert(to), "replied twice");
            }
        }
        world.endpoint.drain(world.now);
        for key in world.claims.clone() {
            world.mails(key, Mail::End(EndReason::ShuttingDown));
        }
        let end = world.now;
        for (to, ..) in std::mem::take(&mut world.replies) {
            prop_assert!(replied.insert(to), "replied twice");
        }
        for (call, deadline) in budgets {
            prop_assert!(replied.contains(&call) || deadline <= end, "{} has no end", call);
        }
        prop_assert_eq!(world.endpoint.observers.len(), 0);
        prop_assert!(world.endpoint.registrations.is_empty());
        world.pass(ms(100_000));
        prop_assert!(world.endpoint.is_drained());
        prop_assert_eq!(world.endpoint.messages.held().1, 0);
    }
}
