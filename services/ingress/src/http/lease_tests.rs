//! Is each call heard by one poll, and no poll left without an end?

use std::collections::BTreeMap;

use proptest::prelude::*;
use rpc::DeliveryReply;

use super::*;
use crate::device::target::tests::call;

const LIMITS: LeaseLimits = LeaseLimits {
    max_polls: 3,
    target: TargetLimits { max_waiting: 4, max_waiting_bytes: 100_000, max_open: 5 },
    grace: Duration::from_millis(5_000),
    tells_caller: false,
};

/// A lease whose polls are named by letters, and what came out of it, as text.
struct Bench {
    lease: Lease<char, u64>,
    now: Instant,
    polls: BTreeMap<char, PollId>,
    numbers: BTreeMap<String, u32>,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        Bench {
            lease: Lease::new(LIMITS, Numbers::after(1), now),
            now,
            polls: BTreeMap::new(),
            numbers: BTreeMap::new(),
        }
    }

    fn poll(&mut self, name: char, timeout_ms: u64) -> String {
        let until = self.now + Duration::from_millis(timeout_ms);
        match self.lease.poll(name, until, self.now) {
            Ok(id) => {
                self.polls.insert(name, id);
                self.said()
            }
            Err(why) => format!("{why:?}; {}", self.said()),
        }
    }

    fn callable() -> Self {
        let mut bench = Bench::new();
        assert_eq!(bench.poll('a', 60_000), "claim");
        bench.lease.claimed(true, bench.now);
        assert_eq!(bench.said(), "");
        bench
    }

    fn in_doubt(&mut self, poll: char) {
        self.lease.poll_in_doubt(self.polls[&poll], self.now);
        assert_eq!(self.said(), "");
    }

    fn deliver(&mut self, serial: u64) -> String {
        self.lease.deliver(call(serial, 20_000, false, self.now), self.now);
        self.said()
    }

    fn pass(&mut self, ms: u64) -> String {
        self.now += Duration::from_millis(ms);
        self.lease.tick(self.now);
        self.said()
    }

    fn answer(&mut self, call: &str, text: &'static str) -> (AnswerTaken, String) {
        let taken = self.lease.answer(self.numbers[call], &Bytes::from_static(text.as_bytes()), self.now);
        (taken, self.said())
    }

    fn written(&mut self, call: &str) -> String {
        self.lease.written(self.numbers[call], self.now);
        self.said()
    }

    fn unwritten(&mut self, call: &str) -> String {
        self.lease.unwritten(self.numbers[call], self.now);
        self.said()
    }

    fn said(&mut self) -> String {
        let mut said = Vec::new();
        while let Some((poll, end)) = self.lease.next_handover() {
            said.push(match end {
                Told::Call(Handed { number, text, .. }) => {
                    let text = String::from_utf8(text.to_vec()).unwrap();
                    let head = format!(r#"{{"id":{number},"method":"onMsg","params":"#);
                    let body = text.strip_prefix(&head).unwrap().strip_suffix('}').unwrap();
                    self.numbers.insert(body.to_owned(), number);
                    format!("{poll} hears {body}")
                }
                Told::End(end) => format!("{poll} {end:?}"),
            });
        }
        while let Some(effect) = self.lease.next_effect() {
            said.push(match effect {
                Effect::Claim => "claim".to_owned(),
                Effect::Release => "release".to_owned(),
                Effect::LimitHit(limit) => format!("limit {}", limit.as_str()),
                Effect::Conclude(Conclusion::Late(answer, _)) => format!("late {}", answer.call.serial),
                Effect::Conclude(Conclusion::Call { reply_to, reply, .. }) => {
                    let end = match reply {
                        Some(DeliveryReply::Ended(outcome)) => outcome.as_str(),
                        Some(DeliveryReply::NotHere) => "not_here",
                        Some(DeliveryReply::Outdated) => "outdated",
                        None => continue,
                    };
                    format!("to.{reply_to} {end}")
                }
            });
        }
        said.join(", ")
    }
}

#[test]
fn one_poll_takes_one_call_and_both_keep_their_order() {
    let mut bench = Bench::callable();
    assert_eq!(bench.poll('b', 60_000), "");
    assert_eq!(bench.deliver(1), "a hears 1");
    assert_eq!(bench.deliver(2), "b hears 2");
    assert_eq!(bench.deliver(3), "");
    assert_eq!(bench.written("1"), "");
    assert_eq!(bench.deliver(4), "");
    assert_eq!(bench.poll('c', 60_000), "c hears 3");
    assert_eq!(bench.poll('d', 60_000), "d hears 4");
    assert_eq!(bench.answer("1", "{}"), (AnswerTaken::Yes, "to.1 answered".to_owned()));
    assert_eq!(bench.answer("1", "{}"), (AnswerTaken::NoSuchCall, String::new()));
}

#[test]
fn a_call_that_was_not_written_is_the_next_polls() {
    let mut bench = Bench::callable();
    assert_eq!(bench.deliver(1), "a hears 1");
    assert_eq!(bench.deliver(2), "");
    assert_eq!(bench.unwritten("1"), "");
    assert_eq!(bench.poll('b', 60_000), "b hears 1");
    assert_eq!(bench.poll('c', 60_000), "c hears 2");
    // Another poll waits already.
    assert_eq!(bench.poll('d', 60_000), "");
    assert_eq!(bench.unwritten("1"), "d hears 1");
}

#[test]
fn a_poll_that_has_gone_takes_nothing() {
    let mut bench = Bench::callable();
    bench.poll('b', 60_000);
    bench.lease.poll_gone(bench.polls[&'a'], bench.now);
    assert_eq!(bench.deliver(1), "b hears 1");
}

#[test]
fn a_poll_in_doubt_gets_a_call_only_when_no_other_waits() {
    let mut bench = Bench::callable();
    bench.poll('b', 60_000);
    bench.in_doubt('a');
    bench.poll('c', 60_000);
    assert_eq!(bench.deliver(1), "b hears 1");
    assert_eq!(bench.deliver(2), "c hears 2");
    assert_eq!(bench.deliver(3), "a hears 3");
    // Its client had gone indeed: the next poll gets the call.
    assert_eq!(bench.unwritten("3"), "");
    assert_eq!(bench.poll('d', 60_000), "d hears 3");
}

#[test]
fn polls_in_doubt_make_room_the_oldest_first() {
    let mut bench = Bench::callable();
    bench.poll('b', 60_000);
    bench.poll('c', 60_000);
    bench.in_doubt('b');
    bench.in_doubt('a');
    assert_eq!(bench.poll('d', 60_000), "b TimedOut");
    assert_eq!(bench.poll('e', 60_000), "a TimedOut");
    assert_eq!(bench.poll('f', 60_000), "Full; limit polls");
    bench.in_doubt('b');
    assert_eq!(bench.deliver(1), "c hears 1");
}

#[test]
fn a_poll_in_doubt_is_waited_for_as_long_as_the_next_poll_would_be() {
    let mut bench = Bench::callable();
    bench.poll('b', 1_000);
    bench.in_doubt('a');
    bench.in_doubt('b');
    assert_eq!(bench.pass(1_000), "b TimedOut");
    assert_eq!(bench.pass(3_999), "");
    assert_eq!(bench.pass(1), "a TimedOut");
    assert_eq!(bench.pass(5_000), "release");
}

#[test]
fn between_two_polls_the_device_stays_callable_for_a_while() {
    let mut bench = Bench::callable();
    assert_eq!(bench.pass(60_000), "a TimedOut");
    assert_eq!(bench.pass(4_999), "");
    assert_eq!(bench.deliver(1), "");
    assert_eq!(bench.poll('b', 60_000), "b hears 1");
    assert_eq!(bench.written("1"), "");
    assert_eq!(bench.deliver(2), "");
    assert_eq!(bench.pass(4_999), "");
    assert_eq!(bench.pass(1), "release, to.2 not_here");
    assert_eq!(bench.deliver(3), "to.3 not_here");
    // What it had taken it may still answer; and it may come back.
    assert_eq!(bench.answer("1", "1"), (AnswerTaken::Yes, "to.1 answered".to_owned()));
    assert!(bench.lease.is_at_rest());
    assert_eq!(bench.poll('c', 60_000), "claim");
}

#[test]
fn grace_does_not_run_while_a_call_is_being_written() {
    let mut bench = Bench::callable();
    assert_eq!(bench.deliver(1), "a hears 1");
    assert_eq!(bench.pass(5_000), "");
    assert_eq!(bench.written("1"), "");
    assert_eq!(bench.pass(5_000), "release");
}

#[test]
fn a_one_way_call_is_delivered_once_it_is_written() {
    let mut bench = Bench::callable();
    bench.lease.deliver(call(1, 1_000, true, bench.now), bench.now);
    assert_eq!(bench.said(), "a hears 1");
    assert_eq!(bench.answer("1", "1").0, AnswerTaken::OneWay);
    assert_eq!(bench.written("1"), "to.1 delivered");
    assert_eq!(bench.answer("1", "1").0, AnswerTaken::NoSuchCall);
}

#[test]
fn an_answer_may_be_quicker_than_the_news_that_its_call_was_written() {
    for later in [Bench::written, Bench::unwritten] {
        let mut bench = Bench::callable();
        assert_eq!(bench.deliver(1), "a hears 1");
        assert_eq!(bench.answer("1", "1"), (AnswerTaken::Yes, "to.1 answered".to_owned()));
        assert_eq!(later(&mut bench, "1"), "");
        assert_eq!(bench.poll('b', 60_000), "");
    }
}

#[test]
fn an_answer_that_is_not_json_leaves_the_call_open() {
    let mut bench = Bench::callable();
    bench.deliver(1);
    bench.written("1");
    assert_eq!(bench.answer("1", "ok").0, AnswerTaken::NotJson);
    assert_eq!(bench.answer("1", "\"ok\"").0, AnswerTaken::Yes);
}

#[test]
fn what_runs_out_of_time_is_forgotten_in_silence() {
    let mut bench = Bench::callable();
    bench.deliver(1);
    bench.written("1");
    assert_eq!(bench.poll('b', 60_000), "");
    assert_eq!(bench.pass(20_000), "");
    assert_eq!(bench.answer("1", "1").0, AnswerTaken::NoSuchCall);
}

#[test]
fn limits_are_named() {
    let mut bench = Bench::callable();
    bench.poll('b', 60_000);
    bench.poll('c', 60_000);
    assert_eq!(bench.poll('d', 60_000), "Full; limit polls");
    for serial in 1..=3 {
        bench.deliver(serial);
    }
    for serial in 4..=7 {
        assert_eq!(bench.deliver(serial), "");
    }
    assert_eq!(bench.deliver(8), "to.8 busy");
    bench.poll('e', 60_000);
    bench.poll('f', 60_000);
    assert_eq!(bench.poll('g', 60_000), "to.6 busy, to.7 busy");
}

#[test]
fn a_newer_session_ends_the_lease_but_not_the_device() {
    let mut bench = Bench::callable();
    bench.deliver(1);
    bench.written("1");
    bench.deliver(2);
    bench.lease.end(EndReason::TakenOver, bench.now);
    assert_eq!(bench.said(), "release, to.2 not_here, to.1 lost");
    assert_eq!(bench.poll('b', 60_000), "claim");
    bench.lease.claimed(true, bench.now);
    bench.lease.end(EndReason::TakenOver, bench.now);
    assert_eq!(bench.said(), "b Ended(TakenOver), release");
}

#[test]
fn a_device_that_changed_is_gone_for_good() {
    let mut bench = Bench::callable();
    bench.lease.end(EndReason::Revoked, bench.now);
    assert_eq!(bench.said(), "a Ended(Revoked), release");
    assert_eq!(bench.poll('b', 60_000), "Over; ");
    assert!(bench.lease.is_at_rest());
}

#[test]
fn draining_waits_for_the_answers_to_what_was_taken() {
    let mut bench = Bench::callable();
    bench.poll('b', 60_000);
    assert_eq!(bench.deliver(1), "a hears 1");
    bench.lease.leave(EndReason::ShuttingDown, bench.now);
    assert_eq!(bench.said(), "b Ended(ShuttingDown), release");
    assert_eq!(bench.poll('c', 60_000), "Over; ");
    assert!(!bench.lease.is_at_rest());
    bench.written("1");
    assert_eq!(bench.answer("1", "1"), (AnswerTaken::Yes, "to.1 answered".to_owned()));
    assert!(bench.lease.is_at_rest());
}

#[test]
fn the_end_of_a_poll_says_that_the_device_is_callable() {
    let mut bench = Bench::new();
    assert_eq!(bench.poll('a', 1), "claim");
    assert_eq!(bench.pass(1_000), "");
    assert_eq!(bench.lease.next_tick(), None);
    bench.lease.claimed(true, bench.now);
    assert_eq!(bench.said(), "a TimedOut");
    assert_eq!(bench.pass(4_999), "");
    assert_eq!(bench.pass(1), "release");
}

#[test]
fn a_claim_that_fails_ends_the_polls() {
    let mut bench = Bench::new();
    assert_eq!(bench.poll('a', 60_000), "claim");
    bench.lease.claimed(false, bench.now);
    assert_eq!(bench.said(), "a Unavailable");
    assert!(bench.lease.is_at_rest());
}

#[derive(Debug, Clone)]
enum Step {
    Poll(u64),
    Gone(usize),
    InDoubt(usize),
    Deliver(u32, bool),
    Written(usize),
    Unwritten(usize),
    Answer(usize),
    Pass(u64),
    Claimed(bool),
    TakeOver,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u64..9_000).prop_map(Step::Poll),
        2 => any::<usize>().prop_map(Step::Gone),
        2 => any::<usize>().prop_map(Step::InDoubt),
        6 => (1u32..9_000, any::<bool>()).prop_map(|(budget, oneway)| Step::Deliver(budget, oneway)),
        4 => any::<usize>().prop_map(Step::Written),
        2 => any::<usize>().prop_map(Step::Unwritten),
        4 => any::<usize>().prop_map(Step::Answer),
        3 => (1u64..4_000).prop_map(Step::Pass),
        3 => any::<bool>().prop_map(Step::Claimed),
        1 => Just(Step::TakeOver),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    /// Every call is replied to at most once, and not at all only when its time ran out. No call is at two
    /// polls at once, none is heard again after it was written, and no poll is told twice.
    #[test]
    fn no_call_is_swallowed_and_none_is_heard_twice(steps in steps()) {
        let mut now = Instant::now();
        let mut lease: Lease<u64, u64> = Lease::new(LIMITS, Numbers::after(1), now);
        let (mut serial, mut poll_serial) = (0u64, 0u64);
        let mut polls: BTreeMap<u64, PollId> = BTreeMap::new();
        // By number: the call, while a poll has it in hand.
        let mut in_hand: Vec<(u32, u64)> = Vec::new();
        let mut heard: Vec<(u32, u64)> = Vec::new();
        let mut deadlines: BTreeMap<u64, Instant> = BTreeMap::new();
        let mut replied: BTreeMap<u64, Option<DeliveryReply>> = BTreeMap::new();
        let mut claiming = false;
        for step in steps.into_iter().chain([Step::Claimed(true), Step::Pass(400_000), Step::Pass(1)]) {
            match step {
                Step::Poll(timeout_ms) => {
                    poll_serial += 1;
                    if let Ok(id) = lease.poll(poll_serial, now + Duration::from_millis(timeout_ms), now) {
                        polls.insert(poll_serial, id);
                    }
                }
                Step::Gone(which) => if let Some((&name, &id)) = polls.iter().nth(which % polls.len().max(1)) {
                    polls.remove(&name);
                    lease.poll_gone(id, now);
                },
                Step::InDoubt(which) => if let Some(&id) = polls.values().nth(which % polls.len().max(1)) {
                    lease.poll_in_doubt(id, now);
                },
                Step::Deliver(budget_ms, oneway) => {
                    serial += 1;
                    deadlines.insert(serial, now + Duration::from_millis(u64::from(budget_ms)));
                    lease.deliver(call(serial, budget_ms, oneway, now), now);
                }
                Step::Written(which) if !in_hand.is_empty() => {
                    let (number, serial) = in_hand.remove(which % in_hand.len());
                    prop_assert!(heard.iter().all(|(_, it)| *it != serial), "{serial} was written twice");
                    heard.push((number, serial));
                    lease.written(number, now);
                }
                Step::Unwritten(which) if !in_hand.is_empty() => {
                    let (number, _) = in_hand.remove(which % in_hand.len());
                    lease.unwritten(number, now);
                }
                Step::Answer(which) if !heard.is_empty() => {
                    let (number, _) = heard[which % heard.len()];
                    lease.answer(number, &Bytes::from_static(b"1"), now);
                }
                Step::Written(_) | Step::Unwritten(_) | Step::Answer(_) => {}
                Step::Pass(ms) => {
                    now += Duration::from_millis(ms);
                    lease.tick(now);
                }
                Step::Claimed(stands) => if std::mem::take(&mut claiming) {
                    lease.claimed(stands, now);
                },
                Step::TakeOver => lease.end(EndReason::TakenOver, now),
            }
            while let Some((poll, told)) = lease.next_handover() {
                prop_assert!(polls.remove(&poll).is_some(), "a poll was told twice");
                if let Told::Call(Handed { number, text, .. }) = told {
                    let value: serde_json::Value = serde_json::from_slice(&text).unwrap();
                    let serial = value["params"].as_u64().unwrap();
                    prop_assert_eq!(value["id"].as_u64(), Some(u64::from(number)));
                    prop_assert!(in_hand.iter().all(|(_, it)| *it != serial), "{} is at two polls", serial);
                    prop_assert!(heard.iter().all(|(_, it)| *it != serial), "{} is heard twice", serial);
                    prop_assert!(now < deadlines[&serial]);
                    in_hand.push((number, serial));
                }
            }
            while let Some(effect) = lease.next_effect() {
                match effect {
                    Effect::Claim => claiming = true,
                    Effect::Conclude(Conclusion::Call { reply_to: serial, reply, .. }) => {
                        if reply == Some(DeliveryReply::NotHere) {
                            prop_assert!(heard.iter().all(|(_, it)| *it != serial), "{} was seen", serial);
                        }
                        prop_assert!(replied.insert(serial, reply).is_none(), "{} ended twice", serial);
                    }
                    Effect::Conclude(Conclusion::Late(..)) | Effect::Release | Effect::LimitHit(_) => {}
                }
            }
        }
        for (serial, deadline) in deadlines {
            let is_in_hand = in_hand.iter().any(|(_, it)| *it == serial);
            let is_known = replied.contains_key(&serial) || is_in_hand || now >= deadline;
            prop_assert!(is_known, "{} was swallowed", serial);
        }
        // Once all time is over, nothing is kept but what connections still hold.
        for (number, _) in in_hand {
            lease.unwritten(number, now);
        }
        lease.tick(now + LIMITS.grace);
        while lease.next_effect().is_some() {}
        prop_assert!(lease.is_at_rest() || claiming);
    }
}
