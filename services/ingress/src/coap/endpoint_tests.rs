//! Does the endpoint hold, whatever comes in whatever order, and when it ends?

use std::collections::{HashMap, HashSet};

use coap_lite::MessageType;
use proptest::prelude::*;

use super::*;
use crate::coap::world::{GET, GET_TIME, POST, RPC, World, con, empty, ms, non, number_of, peer};
use crate::device::target::Conclusion;
use crate::device_api::Request;

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
        assert_eq!(world.sends().len(), resets);
    }
}

#[test]
fn a_device_that_changed_is_forgotten_at_once_with_all_it_has_under_way() {
    let mut world = World::new();
    let observer = world.observed(1, 1, b"obs");
    world.says(1, &con(2, POST, RPC).body(GET_TIME));
    let visitor = world.admitted[0];
    let said = world.ends_visit(visitor, EndReason::Revoked);
    let codes: Vec<&str> = said.iter().map(|it| it.code.as_str()).collect();
    assert_eq!(codes, ["4.01", "4.01"]);
    assert_eq!((&world.ended[..], &world.left[..]), (&[observer][..], &[visitor][..]));
    assert_eq!(world.answers("1"), [], "its answer goes nowhere");
    world.prompt = false;
    world.says(1, &con(3, POST, RPC).body(GET_TIME));
    assert_eq!(world.admits.len(), 1, "it has to show its token again");
}

#[test]
fn draining_lets_calls_finish_and_begins_nothing() {
    let mut world = World::new();
    let target = world.observed(1, 1, b"obs");
    let sent = world.calls(target, 10_000, false, "1");
    world.says(1, &empty(MessageType::Acknowledgement, sent[0].id));
    world.says(2, &con(1, POST, "api/v1/OTHER/rpc").body(GET_TIME));
    world.endpoint.drain();
    assert_eq!(world.short(1, &con(9, GET, "api/v1/TOKEN/attributes"))[0].split(' ').nth(1), Some("2.05"));
    world.send_away(EndReason::ShuttingDown);
    assert_eq!(world.released, []);
    world.send_away(EndReason::ShuttingDown);
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
    world.endpoint.drain();
    for visitor in world.admitted.clone() {
        let said = world.ends_visit(visitor, EndReason::ShuttingDown);
        assert_eq!(said[0].code, "5.03");
    }
    assert_eq!(world.replied(), ["reply.1 lost"]);
    assert!(world.endpoint.is_drained());
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
    fn no_datagrams_panic(
        datagrams in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..20),
    ) {
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

    /// Whatever happens in whatever order: every call that came is concluded once.
    #[test]
    fn every_call_ends_once(steps in proptest::collection::vec((0u8..12, 0u16..6, 0u64..4_000), 1..150)) {
        let mut world = World::new();
        let mut id = 1_000;
        let (mut last_sent, mut numbers) = (Vec::new(), Vec::new());
        let mut concluded: HashMap<String, usize> = HashMap::new();
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
                        world.calls(key, budget_ms, which == 0, "1")
                    }
                    None => Vec::new(),
                },
                6 | 7 => match last_sent.pop() {
                    Some((to, id)) => {
                        let kind = if which == 0 { MessageType::Reset } else { MessageType::Acknowledgement };
                        world.endpoint.received(to, &empty(kind, id).bytes(), world.now);
                        world.sends()
                    }
                    None => Vec::new(),
                },
                8 | 9 => match numbers.pop() {
                    Some(number) => world.says(port, &con(id, POST, &format!("{RPC}/{number}")).body("1")),
                    None => Vec::new(),
                },
                10 if which == 0 => match key {
                    Some(key) => world.ends(key, EndReason::TakenOver),
                    None => Vec::new(),
                },
                10 if which == 1 => match world.admitted.last() {
                    Some(visitor) => world.ends_visit(*visitor, EndReason::Revoked),
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
        }
        world.endpoint.drain();
        for visitor in world.admitted.clone() {
            world.ends_visit(visitor, EndReason::ShuttingDown);
        }
        for conclusion in std::mem::take(&mut world.conclusions) {
            let Conclusion::Call { reply_to, .. } = conclusion else { continue };
            *concluded.entry(reply_to.inbox.to_string()).or_default() += 1;
        }
        prop_assert!(concluded.values().all(|times| *times == 1), "{:?}", concluded);
        prop_assert_eq!(concluded.len() as u64, world.calls);
        prop_assert!(world.endpoint.observations.is_empty());
        world.pass(ms(100_000));
        prop_assert!(world.endpoint.is_drained());
        prop_assert_eq!(world.endpoint.requests.link.messages.held().1, 0);
    }

    /// Whoever restarts, shares an address or sends again: a response under a token is to what was asked under it, and
    /// the same datagram is performed once at a time.
    #[test]
    fn every_response_is_to_its_own_request(
        steps in proptest::collection::vec((0u8..8, 0u16..3, 0u8..3, 0u8..3, any::<bool>()), 1..80),
    ) {
        let mut world = World::new();
        let mut asked = HashSet::new();
        for (what, id, token, body, confirmable) in steps {
            let said = match what {
                0..=4 => {
                    let path = if token == 0 { RPC } else { "api/v1/OTHER/rpc" };
                    let body = format!("[{id},{token},{body},{confirmable}]");
                    let params = format!(r#"{{"deviceId":"{}","body":{body}}}"#, uuid::Uuid::nil());
                    asked.insert((vec![token], body));
                    let request = if confirmable { con(id, POST, path) } else { non(id, POST, path) };
                    let text = format!(r#"{{"method":"sendMsg","params":{params}}}"#);
                    world.says(1, &request.token(&[token]).body(text))
                }
                5 | 6 if !world.asks.is_empty() => {
                    let echo = body_of(&world.asks[0].1).leak();
                    world.answers(echo)
                }
                _ => world.pass(ms(u64::from(id) * 150)),
            };
            let performed: HashSet<String> = world.asks.iter().map(|(_, request)| body_of(request)).collect();
            prop_assert_eq!(performed.len(), world.asks.len());
            for message in said {
                let answer = (message.token.clone(), message.body.clone());
                prop_assert!(message.code != "2.05" || asked.contains(&answer), "{:?}", message);
                if message.kind == 'C' {
                    world.says(1, &empty(MessageType::Acknowledgement, message.id));
                }
            }
        }
    }
}

fn body_of(request: &Request) -> String {
    let Request::SendMsg { body, .. } = request else { panic!("{request:?}") };
    String::from_utf8(body.to_vec()).unwrap()
}
