//! Is every request answered as RFC 7252 and the device API say, once, and only to whom it was meant for?

use coap_lite::MessageType;
use rpc::Limit;

use crate::coap::codec::option;
use crate::coap::tally::Held;
use crate::coap::world::{From, GET, GET_TIME, NODE_TAG, POST, RPC, World, con, empty, limits, ms, non};
use crate::device::admit::digest;

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
fn the_same_id_in_another_datagram_is_another_request_that_reads_only_its_own_answer() {
    let mut world = World::new();
    let request = con(1, POST, RPC).token(b"a").body(GET_TIME);
    world.says(1, &request);
    let answer = world.answers("[1]");
    let nobody = con(1, POST, "api/v1/NOBODY/rpc").token(b"b").body(GET_TIME);
    assert!(world.short(1, &nobody)[0].starts_with("A 4.01"));
    assert_eq!(world.says(1, &request), answer, "what is refused takes nobody's place");

    // Token, path, payload, an option, the type: whatever differs makes another request.
    for other in [
        con(1, POST, RPC).token(b"b").body(GET_TIME),
        con(1, POST, "api/v1/OTHER/rpc").token(b"a").body(GET_TIME),
        con(1, POST, RPC).token(b"a").body(r#"{"method": "getTime"}"#),
        con(1, POST, RPC).token(b"a").option(15, b"x").body(GET_TIME),
        non(1, POST, RPC).token(b"a").body(GET_TIME),
    ] {
        assert_eq!(world.says(1, &other), []);
        let said = world.answers("[2]");
        assert_eq!((said[0].body.as_str(), &said[0].token[..]), ("[2]", other.packet.get_token()));
        assert_eq!(world.says(1, &other), said.into_iter().filter(|it| it.kind == 'A').collect::<Vec<_>>());
    }
    assert!(world.asks.is_empty());
    world.says(1, &request);
    assert_eq!(world.asks.len(), 1, "the newest one is remembered");
}

#[test]
fn two_requests_in_progress_under_one_id_are_each_answered_by_token() {
    for confirmable in [true, false] {
        let mut world = World::new();
        let older = con(1, POST, RPC).token(b"old").body(GET_TIME);
        let newer = if confirmable { con(1, POST, RPC) } else { non(1, POST, RPC) };
        let newer = newer.token(b"new").body(GET_TIME);
        assert_eq!(world.says(1, &older), []);
        assert_eq!(world.says(1, &newer), []);
        assert_eq!(world.asks.len(), 2);
        // An acknowledgement with the older one's response would be taken for that of the newer one.
        let said = world.answers("\"old\"");
        assert_eq!(said[0].token, b"old");
        assert_eq!(said[0].short(), if confirmable { "C 2.05 \"old\"" } else { "A 2.05 \"old\"" });
        let said = world.answers("\"new\"");
        assert_eq!((&said[0].token[..], said[0].body.as_str()), (&b"new"[..], "\"new\""));
        assert_eq!(said[0].kind, if confirmable { 'A' } else { 'N' });
        assert_eq!(world.endpoint.requests.pending.len(), 0);
        assert!(world.endpoint.requests.unacknowledged.is_empty());
    }
}

#[test]
fn a_request_in_progress_is_one_call_though_its_id_comes_again_in_another() {
    let mut world = World::new();
    let older = con(1, POST, RPC).token(b"old").body(GET_TIME);
    world.says(1, &older);
    assert!(world.short(1, &con(1, POST, "api/v1/NOBODY/rpc").body(GET_TIME))[0].starts_with("A 4.01"));
    assert!(world.short(1, &con(1, GET, RPC).token(b"bad"))[0].starts_with("A 4.00"));
    world.says(1, &con(1, POST, RPC).token(b"new").body(GET_TIME));
    for _ in 0..3 {
        assert_eq!(world.short(1, &older), ["A 0.00"], "it is being performed");
    }
    assert_eq!(world.asks.len(), 2);
    assert_eq!(world.pass(ms(300)).len(), 1, "the newer one alone is acknowledged in time");
    assert_eq!(world.answers("1")[0].short(), "C 2.05 1");
    assert_eq!(world.answers("2")[0].short(), "C 2.05 2");
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
    assert_eq!(world.endpoint.requests.link.messages.held().1, 0);
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
fn who_has_no_token_is_asked_about_once_and_refused() {
    let mut world = World::new();
    world.prompt = false;
    let request = con(1, POST, "api/v1/NOBODY/rpc").body(GET_TIME);
    world.says(1, &request);
    world.says(1, &con(2, POST, "api/v1/NOBODY/rpc").body(GET_TIME));
    assert_eq!(world.short(1, &request), ["A 0.00"]);
    assert_eq!(world.admits.len(), 1);
    let (key, credential) = world.admits.remove(0);
    world.admit(key, credential);
    let said: Vec<String> = world.sends().iter().map(From::short).collect();
    // What was acknowledged is answered without asking for an acknowledgement: its sender may be forged.
    assert_eq!(said[0], "N 4.01");
    assert!(said[1].starts_with("A 4.01 "), "{said:?}");
    assert_eq!(
        (world.endpoint.requests.link.messages.held(), world.endpoint.requests.visitors.len()),
        ((0, 0), 0)
    );
    assert_eq!(world.short(1, &con(3, POST, "api/v1//rpc"))[0].split(' ').nth(1), Some("4.01"));
    assert!(world.admits.is_empty());
}

#[test]
fn a_token_is_any_bytes_of_a_segment() {
    let mut world = World::new();
    for (id, token) in ["Gerät №5", "a/b", "100 %2F", " ", "..", "/"].into_iter().enumerate() {
        let path = |token: &str| {
            let request =
                ["api", "v1", token, "rpc"].into_iter().fold(con(id as u16, POST, ""), |it, segment| {
                    it.option(option::URI_PATH, segment.as_bytes())
                });
            request.body(GET_TIME)
        };
        assert!(world.short(1, &path(token))[0].starts_with("A 4.01"), "{token}");
        let caller = world.callers.values().next().unwrap().clone();
        world.callers.insert(digest(token.as_bytes()), caller);
        assert_eq!(world.says(1, &path(token)), []);
        assert_eq!(world.answers("1")[0].short(), "A 2.05 1");
        assert!(world.short(1, &path(&format!("{token} ")))[0].starts_with("A 4.01"), "{token}");
    }
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
    assert_eq!((world.admits.len(), world.endpoint.requests.visitors.len()), (10, 11));
    assert_eq!(world.hit.len(), 10_000 - 10);
    world.says(1, &con(2, POST, RPC).body(GET_TIME));
    assert_eq!(world.answers("2")[0].short(), "A 2.05 2");
}

#[test]
fn refusals_by_code() {
    let mut world = World::new();
    let no_call = format!("{RPC}/{}", u32::from(NODE_TAG) << 17 | 1);
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
        (con(10, POST, &no_call).body("1"), "A 4.04 {\"error\":\"No such call is open!\"}"),
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
    assert_eq!(world.endpoint.requests.link.messages.held(), (0, 0), "refusals are not remembered");
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
    assert_eq!(world.sends()[0].short(), "A 2.04");
    world.says(1, &con(2, POST, "api/v1/TOKEN/attributes").body("{}"));
    let (id, _) = world.uplinks.remove(0);
    world.endpoint.uplinked(id, false, world.now);
    assert_eq!(world.sends()[0].code, "5.03");
    assert_eq!(world.says(1, &con(3, POST, "api/v1/TOKEN/attributes").body("{"))[0].code, "4.00");
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
fn a_refusal_that_ends_a_long_request_is_given_again() {
    let mut limits = limits();
    limits.coap.max_body_bytes = 90;
    limits.device.max_calls_per_caller = 0;
    let mut world = World::of(limits);
    let elsewhere = format!("{RPC}/1");
    let here = format!("{RPC}/{}", u32::from(NODE_TAG) << 17 | 1);
    for (id, (path, number, last, refusal)) in [
        (RPC, 1, "{", "A 4.00"),
        (RPC, 1, GET_TIME, "A 4.29"),
        (&elsewhere, 1, "1", "A 4.29"),
        (&here, 1, "1", "A 4.04"),
        ("api/v1/TOKEN/telemetry", 1, "{", "A 4.00"),
        (RPC, 1, "more of it than there may be", "A 4.13"),
        (RPC, 2, "1", "A 4.08"),
    ]
    .into_iter()
    .enumerate()
    {
        let id = 2 * id as u16;
        let begins = con(id, POST, path).block(option::BLOCK1, 0, true, 2).body([b' '; 64]);
        assert_eq!(world.short(1, &begins), ["A 2.31"]);
        let ends = con(id + 1, POST, path).block(option::BLOCK1, number, false, 2).body(last);
        let said = world.says(1, &ends);
        assert!(said[0].short().starts_with(refusal), "{said:?} instead of {refusal}");
        assert_eq!(world.says(1, &ends), said, "its retransmission");
    }
}

#[test]
fn an_idle_device_is_forgotten_and_a_busy_one_is_not() {
    let mut world = World::new();
    world.says(1, &con(1, POST, RPC).body(GET_TIME));
    world.pass(ms(120_000));
    assert!(world.left.is_empty());
    let sent = world.answers("1");
    world.says(1, &empty(MessageType::Acknowledgement, sent[0].id));
    world.pass(ms(59_000));
    assert!(world.left.is_empty());
    world.pass(ms(2_000));
    assert_eq!((world.left.len(), world.endpoint.requests.visitors.len()), (1, 0));
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
    assert_eq!(
        (tally.held(Held::Transfers), tally.dropped_transfers, tally.held(Held::Exchanges)),
        (8, 9_992, 1)
    );
    assert_eq!(world.answers("1")[0].short(), "A 2.05 1");
    // Calls that never end, each a request of its own: the caller's limit holds them.
    for number in 0..10_000u32 {
        world.says(10, &con(number as u16, POST, RPC).body(GET_TIME));
    }
    assert_eq!(world.asks.len(), 4);
    assert!(world.endpoint.take_tally().held(Held::Exchanges) <= 5);
}
