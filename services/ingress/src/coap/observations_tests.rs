//! Is who observes called as RFC 7641 and the device API say, from registration to the end?

use coap_lite::MessageType;
use rpc::Limit;

use super::*;
use crate::coap::codec::option;
use crate::coap::world::{
    From, GET, GET_TIME, NODE_TAG, POST, RPC, To, World, con, empty, limits, ms, number_of, peer,
};
use crate::device::mailbox::EndReason;
use crate::device::target::Conclusion;

#[test]
fn who_restarts_and_counts_from_the_same_id_observes_again_and_answers_anew() {
    let mut world = World::new();
    let register = con(1, GET, RPC).token(b"obs").observe(b"");
    let answer = |number: u32, boot: u32| con(2, POST, &format!("{RPC}/{number}")).body(boot.to_string());
    for boot in 1..=3 {
        // To the byte the same, and it is true each time.
        assert_eq!(world.short(1, &register), ["A 2.05"]);
        let key = *world.claims.last().unwrap();
        let sent = world.calls(key, 10_000, false, "1");
        world.says(1, &empty(MessageType::Acknowledgement, sent[0].id));
        assert_eq!(world.short(1, &answer(number_of(&sent[0]), boot)), ["A 2.04"]);
        let sent = world.calls(key, 10_000, false, "2");
        world.says(1, &empty(MessageType::Reset, sent[0].id));
        assert_eq!(
            world.replied(),
            [format!("reply.{} answered {boot}", boot * 2 - 1), format!("reply.{} not here", boot * 2)]
        );
        assert_eq!((world.claims.len(), world.ended.len()), (boot as usize, boot as usize));
    }
}

#[test]
fn a_retransmitted_registration_is_one_observation() {
    let mut world = World::new();
    world.prompt = false;
    let register = con(1, GET, RPC).token(b"obs").observe(b"");
    world.says(1, &register);
    let (device, credential) = world.admits.remove(0);
    world.admit(device, credential);
    world.settle();
    assert_eq!(world.short(1, &register), ["A 0.00"]);
    world.endpoint.claimed(world.claims[0], true, world.now);
    assert_eq!(world.sends()[0].short(), "C 2.05");
    assert_eq!(world.short(1, &register), ["A 2.05"]);
    assert_eq!((world.claims.len(), world.endpoint.observations.observers.len()), (1, 1));
}

#[test]
fn attributes_are_none_and_whoever_observes_them_costs_nothing() {
    let mut world = World::new();
    let path = "api/v1/TOKEN/attributes";
    let observes = |world: &mut World, message: &To| {
        let said = world.says(1, message);
        assert_eq!((said[0].short(), said.len()), ("A 2.05 {}".into(), 1));
        said[0].observe
    };
    world.says(1, &con(1, GET, path));
    let keys = |it: &[u8]| con(2, GET, path).option(option::URI_QUERY, it);
    assert_eq!(observes(&mut world, &keys(b"clientKeys=a,b&sharedKeys=c")), None);
    assert_eq!(observes(&mut world, &con(3, GET, path).observe(b"\x02")), None);
    let held = |world: &World| {
        (
            world.endpoint.requests.link.messages.held(),
            world.endpoint.observations.observers.len(),
            world.claims.len(),
        )
    };
    let before = held(&world);
    for id in 1..=1_000u16 {
        let token = id.to_be_bytes();
        assert!(observes(&mut world, &con(id, GET, path).token(&token).observe(b"")).is_some());
    }
    assert_eq!(held(&world), before);
    assert_eq!(observes(&mut world, &con(1, GET, path).token(b"a").observe(b"\x01")), None);
    assert_eq!(world.pass(ms(700_000)), []);
    assert!(world.short(1, &con(9, GET, "api/v1/NOBODY/attributes").observe(b""))[0].starts_with("A 4.01"));
}

#[test]
fn what_is_told_under_a_token_is_newer_than_whatever_was_before() {
    let mut world = World::new();
    let mut numbers = Vec::new();
    for id in [1, 3, 5] {
        let registered = world.says(1, &con(id, GET, RPC).token(b"obs").observe(b""));
        let called = world.calls(*world.claims.last().unwrap(), 10_000, false, "1");
        world.says(1, &con(id + 1, GET, RPC).token(b"obs").observe(b"\x01"));
        let attributes = con(id, GET, "api/v1/TOKEN/attributes").token(b"obs").observe(b"");
        let told = [&registered[0], &called[0], &world.says(1, &attributes)[0]];
        numbers.extend(told.map(|it| it.observe.unwrap()));
        assert_eq!(told.map(|it| it.format), [Some(50); 3], "RFC 7641 §4.2");
    }
    assert!(numbers.is_sorted_by(|one, next| one < next), "{numbers:?}");
}

#[test]
fn another_device_that_observes_under_the_same_token_from_there_ends_what_was_there_before() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let other = |id, path: &str| con(id, GET, path).token(b"obs").observe(b"");
    assert!(world.short(1, &other(1, "api/v1/NOBODY/rpc"))[0].starts_with("A 4.01"));
    // Somebody who may not observe does not end it.
    world.endpoint.requests.limits.coap.max_observers = 1;
    assert!(world.short(1, &other(1, "api/v1/OTHER/rpc"))[0].starts_with("A 5.03"));
    assert_eq!(world.calls(key, 10_000, false, "1").len(), 1);
    world.endpoint.requests.limits.coap.max_observers = 2;
    assert_eq!(world.short(1, &other(1, "api/v1/OTHER/rpc")), ["A 2.05"]);
    assert_eq!((world.replied(), &world.ended[..]), (vec!["reply.1 lost".to_owned()], &[key][..]));
    assert_eq!(world.calls(world.claims[1], 10_000, false, "2").len(), 1);
    assert_eq!(world.calls(key, 10_000, false, "3"), []);
}

#[test]
fn a_device_is_callable_once_its_claim_stands() {
    let mut world = World::new();
    world.prompt = false;
    let register = con(1, GET, RPC).token(b"obs").observe(b"");
    assert_eq!(world.says(1, &register), []);
    let (device, credential) = world.admits.remove(0);
    world.admit(device, credential);
    world.settle();
    assert_eq!(world.sent, []);
    let key = world.claims[0];
    // A call can overtake the claim's own answer.
    assert_eq!(world.calls(key, 1_000, false, "1"), []);
    world.endpoint.claimed(key, true, world.now);
    let sent = world.sends();
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
fn an_answer_after_the_time_is_too_late_for_the_device_and_told_to_whoever_called() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let number = number_of(&world.calls(key, 1_000, false, "1")[0]);
    world.pass(ms(1_000));
    assert_eq!(world.replied(), ["reply.1 nothing"]);
    let answer = con(2, POST, &format!("{RPC}/{number}")).body("[1]");
    assert!(world.short(1, &answer)[0].starts_with("A 4.04"));
    assert_eq!(world.replied(), ["0000000000000001-1 late [1]"]);
    let again = con(3, POST, &format!("{RPC}/{number}")).body("[1]");
    assert!(world.short(1, &again)[0].starts_with("A 4.04"));
    assert_eq!(world.replied(), [""; 0]);
}

#[test]
fn an_answer_to_another_nodes_call_is_handed_there_once() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let number = number_of(&world.calls(key, 10_000, false, "1")[0]);
    assert_eq!(Numbers::node_tag(number), NODE_TAG);
    let path = |number: u32| format!("{RPC}/{number}");
    assert!(world.short(1, &con(2, POST, &path(number + 1)).body("1"))[0].starts_with("A 4.04"));
    assert_eq!(world.handed_on, [], "a number of this node's is open here or nowhere");

    let elsewhere = number ^ 1 << 30;
    for (id, (taken, code)) in [
        (Some(AnswerTaken::Yes), "2.04"),
        (Some(AnswerTaken::NoSuchCall), "4.04"),
        (Some(AnswerTaken::OneWay), "4.04"),
        (Some(AnswerTaken::NotJson), "4.00"),
        (None, "5.03"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = con(10 + id as u16, POST, &path(elsewhere)).body("2");
        assert_eq!(world.says(2, &answer), []);
        assert_eq!(world.short(2, &answer), ["A 0.00"], "its retransmission, while the other node is asked");
        let (request, of, body) = world.handed_on.pop().unwrap();
        assert_eq!((of, &body[..], &world.handed_on[..]), (elsewhere, &b"2"[..], &[][..]));
        world.endpoint.handed_on(request, taken, world.now);
        assert_eq!(world.sends()[0].code, code, "{taken:?}");
        assert_eq!(world.short(2, &answer), ["A 0.00"]);
    }
    for id in 20..24 {
        assert_eq!(world.says(2, &con(id, POST, &path(elsewhere)).body("2")), []);
    }
    assert!(world.short(2, &con(24, POST, &path(elsewhere)).body("2"))[0].starts_with("A 4.29"));
    assert_eq!(world.hit, [Limit::CallerInFlight], "it counts as a call");
    assert_eq!(world.handed_on.len(), 4);
}

#[test]
fn an_answer_that_came_to_another_node_is_taken_and_its_device_checked_all_the_same() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let visitor = world.admitted[0];
    let number = number_of(&world.calls(key, 10_000, false, "1")[0]);
    assert_eq!(world.calls(key, 10_000, false, "2"), [], "the first is not acknowledged yet");
    let taken = |world: &mut World, visitor, number, body| {
        let body = Bytes::from_static(body);
        let taken = world.endpoint.answered_elsewhere(visitor, number, &body, world.now);
        (taken, world.sends().iter().map(number_of).collect::<Vec<_>>())
    };
    world.pass(ms(9_000));
    assert_eq!(taken(&mut world, visitor, number, b"ok"), (AnswerTaken::NotJson, vec![]));
    assert_eq!(world.replied(), [""; 0], "the call is still open");
    world.says(2, &con(1, POST, "api/v1/OTHER/rpc").body(GET_TIME));
    let other = world.admitted[1];
    assert_eq!(taken(&mut world, other, number, b"1"), (AnswerTaken::NoSuchCall, vec![]));
    // It has the call, so the next one is sent.
    assert_eq!(taken(&mut world, visitor, number, b"1"), (AnswerTaken::Yes, vec![number + 1]));
    assert_eq!(world.replied(), ["reply.1 answered 1"]);
    assert_eq!(taken(&mut world, visitor, number, b"1"), (AnswerTaken::NoSuchCall, vec![]));
    assert_eq!(taken(&mut world, visitor, number + 1, b"2"), (AnswerTaken::Yes, vec![]));
    assert_eq!(world.replied(), ["reply.2 answered 2"]);
    // Nothing was heard of where it observes since it began to.
    let mut sent = world.pass(ms(81_001));
    sent.retain(|it| it.to == peer(1));
    assert_eq!(sent.iter().map(From::short).collect::<Vec<_>>(), ["C 0.00"]);
    world.pass(ms(150_000));
    assert_eq!(world.ended, [key]);
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
    assert_eq!(world.endpoint.take_tally().counted(Event::GivenUp), 1);
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
    let over = world.replied();
    let nothing = ["reply.1 nothing", "reply.3 nothing", "reply.2 nothing"];
    assert_eq!(over, nothing, "the router tells callers of lost time");
}

#[test]
fn a_device_that_was_silent_for_long_is_pinged_and_dropped_without_an_answer() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    let sent = world.pass(ms(90_100));
    assert_eq!(sent.iter().map(From::short).collect::<Vec<_>>(), ["C 0.00"]);
    world.says(1, &empty(MessageType::Reset, sent[0].id));
    assert_eq!(world.pass(ms(75_000)), []);
    assert_eq!(world.pass(ms(150_000)).len(), 5);
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
    assert_eq!(world.sends()[0].short(), "A 2.05");
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
fn whoever_listens_hears_why_a_device_is_no_longer_callable() {
    type Act = fn(&mut World, ObserverKey);
    let acts: [(Act, SessionEnd); 9] = [
        (
            |world, _| drop(world.says(1, &con(9, GET, RPC).token(b"obs").observe(b"\x01"))),
            SessionEnd::ByDevice,
        ),
        (
            |world, key| {
                let sent = world.calls(key, 10_000, false, "1");
                world.says(1, &empty(MessageType::Reset, sent[0].id));
            },
            SessionEnd::ByDevice,
        ),
        (
            |world, key| {
                world.calls(key, 10_000, false, "1");
                world.pass(ms(100_000));
            },
            SessionEnd::Fault,
        ),
        (
            |world, _| drop(world.says(1, &con(9, GET, "api/v1/OTHER/rpc").token(b"obs").observe(b""))),
            SessionEnd::Fault,
        ),
        (|world, key| drop(world.ends(key, EndReason::TakenOver)), SessionEnd::TakenOver),
        (|world, _| drop(world.ends_visit(world.admitted[0], EndReason::Revoked)), SessionEnd::Revoked),
        (
            |world, _| drop(world.ends_visit(world.admitted[0], EndReason::ShuttingDown)),
            SessionEnd::ShuttingDown,
        ),
        (
            |world, _| {
                world.endpoint.drain();
                world.send_away(EndReason::ShuttingDown);
            },
            SessionEnd::ShuttingDown,
        ),
        (|world, _| world.send_away(EndReason::Moved), SessionEnd::Moved),
    ];
    for (act, reason) in acts {
        let mut world = World::new();
        let key = world.observed(1, 1, b"obs");
        act(&mut world, key);
        assert_eq!((&world.ended[..], &world.reasons[..]), (&[key][..], &[reason][..]));
    }
}

#[test]
fn a_device_that_changes_while_it_is_claimed_is_released() {
    for stands in [true, false] {
        let mut world = World::new();
        world.says(1, &con(1, POST, RPC).body(GET_TIME));
        world.answers("1");
        world.prompt = false;
        world.says(1, &con(2, GET, RPC).token(b"obs").observe(b""));
        let said = world.ends_visit(world.admitted[0], EndReason::Revoked);
        assert!(said[0].short().starts_with("A 4.01"));
        assert_eq!((world.left.len(), world.ended.len()), (1, 0));
        world.endpoint.claimed(world.claims[0], stands, world.now);
        assert_eq!(world.sends(), [], "it never heard that it observes");
        assert_eq!(world.ended.len(), 1);
        world.endpoint.ended(world.claims[0], world.now);
        world.endpoint.drain();
        assert!(world.endpoint.is_drained());
    }
}

#[test]
fn the_node_ends_an_observation_with_a_last_word() {
    for (reason, word) in [
        (EndReason::TakenOver, "C 4.09"),
        (EndReason::Revoked, "C 4.01"),
        (EndReason::ShuttingDown, "N 5.03"),
        (EndReason::Moved, "C 5.03"),
    ] {
        let mut world = World::new();
        let key = world.observed(1, 1, b"obs");
        let sent = world.calls(key, 10_000, false, "1");
        world.says(1, &empty(MessageType::Acknowledgement, sent[0].id));
        let said = world.ends(key, reason);
        assert!(said[0].short().starts_with(word), "{said:?}");
        assert_eq!(said[0].token, b"obs");
        assert_eq!((world.replied(), &world.ended[..]), (vec!["reply.1 lost".to_owned()], &[key][..]));
        let again = world.pass(ms(100_000)).len();
        assert_eq!(again, if word.starts_with('C') { 4 } else { 0 });
    }
}

#[test]
fn a_full_mailbox_and_too_many_open_calls_are_busy() {
    let mut world = World::new();
    let key = world.observed(1, 1, b"obs");
    for _ in 0..5 {
        world.calls(key, 10_000, false, "1");
    }
    assert_eq!(world.replied(), ["reply.5 busy (mailbox)"]);
    let mut next = 0;
    for _ in 0..4 {
        let sent = world.endpoint.observations.observers[&key].unacknowledged().unwrap();
        next = sent;
        world.says(1, &empty(MessageType::Acknowledgement, sent));
    }
    assert_ne!(next, 0);
    world.calls(key, 10_000, false, "1");
    assert_eq!(world.replied(), ["reply.6 busy (target_in_flight)"]);
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
        let replied = world.conclusions.pop().and_then(|it| match it {
            Conclusion::Call { body, .. } => Some(body),
            Conclusion::Late(..) => None,
        });
        assert_eq!(replied, read.map(|read| Bytes::from_static(read.as_bytes())), "{said}");
        world.ends(key, EndReason::TakenOver);
        world.replied();
    }
}
