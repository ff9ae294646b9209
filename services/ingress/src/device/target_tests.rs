//! Does every call come out once, with an outcome that is true? Tables of what happens to one, and a property of all.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use proptest::prelude::*;
use rpc::{Budget, NodeId};

use super::*;

const LIMITS: TargetLimits = TargetLimits { max_waiting: 3, max_waiting_bytes: 10_000, max_open: 4 };

/// A call that says its own number.
pub(crate) fn call(serial: u64, budget_ms: u32, oneway: bool, now: Instant) -> Box<Incoming<u64>> {
    Box::new(Incoming {
        call: CallId { node: NodeId(1), serial },
        caller: None,
        oneway,
        traceparent: None,
        method: None,
        body: serial.to_string().into(),
        deadline: Budget::from_ms(budget_ms).starting(now),
        verdict: None,
        reply_to: serial,
        late: (serial > 1).then_some(serial),
    })
}

fn callable() -> (Target<u64>, Instant) {
    let mut target = Target::new(LIMITS, Numbers::after(0));
    target.becomes_callable();
    (target, Instant::now())
}

#[test]
fn a_device_without_calls_keeps_no_memory_for_them() {
    let (mut target, now) = callable();
    target.written(1);
    target.flushed();
    target.expire(now);
    assert!(target.next(now).is_none() && target.next_conclusion().is_none() && target.calls.0.is_none());
    target.deliver(call(1, 1000, false, now), now);
    let (number, _) = target.next(now).unwrap();
    target.answer(number, &Bytes::from_static(b"1"), false, now);
    assert_eq!(said(&mut target).len(), 1);
    assert!(target.calls.0.is_some(), "the next one is likely to come");
    target.expire(target.next_expiry().unwrap());
    assert!(target.calls.0.is_none());
}

#[test]
fn what_waits_is_counted_in_bytes_too() {
    let (mut target, now) = callable();
    let large =
        |serial| Box::new(Incoming { body: vec![b'1'; 6_000].into(), ..*call(serial, 1000, false, now) });
    target.deliver(large(1), now);
    target.deliver(large(2), now);
    assert_eq!(said(&mut target), ["2 busy mailbox"]);
    // A small one has room behind it, and one alone may be larger than all.
    target.deliver(call(3, 1000, false, now), now);
    assert!(target.next(now).is_some() && target.next(now).is_some() && target.next(now).is_none());
    let huge = Box::new(Incoming { body: vec![b'1'; 60_000].into(), ..*call(4, 1000, false, now) });
    target.deliver(huge, now);
    assert_eq!((said(&mut target), target.next(now).is_some()), (vec![], true));
}

/// What routers are told, as text: `1 answered "x"`, `2 not_here`, `3 -` for silence.
fn said(target: &mut Target<u64>) -> Vec<String> {
    std::iter::from_fn(|| target.next_conclusion())
        .map(|it| {
            let (serial, reply, body) = match it {
                Conclusion::Call { reply_to, reply, body } => (reply_to, reply, body),
                Conclusion::Late(answer, body) => {
                    return format!("{} late {}", answer.call.serial, String::from_utf8_lossy(&body));
                }
            };
            let reply = match &reply {
                None => "-".to_owned(),
                Some(DeliveryReply::NotHere) => "not_here".to_owned(),
                Some(DeliveryReply::Outdated) => "outdated".to_owned(),
                Some(DeliveryReply::Ended(Outcome::Busy(limit))) => format!("busy {}", limit.as_str()),
                Some(DeliveryReply::Ended(outcome)) => outcome.as_str().to_owned(),
            };
            format!("{serial} {reply} {}", String::from_utf8_lossy(&body)).trim_end().to_owned()
        })
        .collect()
}

#[test]
fn a_call_is_written_and_answered_once() {
    let (mut target, now) = callable();
    target.deliver(call(7, 1000, false, now), now);
    let (number, taken) = target.next(now).unwrap();
    assert_eq!((number, taken.reply_to, &taken.body[..]), (1, 7, &b"7"[..]));
    target.written(1);
    assert!(target.awaits_answer(1) && !target.has_waiting());
    assert_eq!(target.answer(2, &Bytes::from_static(b"1"), true, now), AnswerTaken::NoSuchCall);
    assert_eq!(target.answer(1, &Bytes::from_static(b"{"), true, now), AnswerTaken::NotJson);
    assert_eq!(target.answer(1, &Bytes::from_static(b"[1]"), true, now), AnswerTaken::Yes);
    assert_eq!(target.answer(1, &Bytes::from_static(b"[1]"), true, now), AnswerTaken::NoSuchCall);
    assert_eq!(said(&mut target), ["7 answered [1]"]);
    assert!(target.is_idle());
}

#[test]
fn a_call_whose_verdict_has_run_out_goes_back_unseen() {
    let (mut target, now) = callable();
    let ms = Duration::from_millis;
    for (serial, holds_ms) in [(1, 100), (2, 500)] {
        let verdict = Some(Budget::from_ms(holds_ms).starting(now));
        target.deliver(Box::new(Incoming { verdict, ..*call(serial, 5_000, false, now) }), now);
    }
    let (number, taken) = target.next(now + ms(100)).unwrap();
    assert_eq!(taken.reply_to, 2);
    assert_eq!(said(&mut target), ["1 outdated"]);
    target.put_back(number);
    assert!(target.next(now + ms(500)).is_none());
    assert_eq!(said(&mut target), ["2 outdated"]);
    target.deliver(call(3, 5_000, false, now), now);
    assert!(target.next(now + ms(4_999)).is_some(), "from a router that cannot ask again");
}

#[test]
fn who_cannot_be_told_of_a_bad_answer_ends_the_call_with_it() {
    let (mut target, now) = callable();
    target.deliver(call(7, 1000, false, now), now);
    target.next(now).unwrap();
    assert_eq!(target.answer(1, &Bytes::from_static(b"nan"), false, now), AnswerTaken::NotJson);
    assert_eq!(said(&mut target), ["7 answer_invalid"]);
}

#[test]
fn an_answer_that_is_too_large_to_be_read_ends_its_call() {
    let (mut target, now) = callable();
    for (serial, budget_ms, oneway) in [(7, 1000, false), (8, 1000, true), (9, 10, false)] {
        target.deliver(call(serial, budget_ms, oneway, now), now);
        target.next(now).unwrap();
    }
    let later = now + Duration::from_millis(10);
    for number in [1, 1, 2, 3, 4] {
        target.answer_too_large(number, later);
    }
    assert_eq!(said(&mut target), ["7 answer_too_large"]);
    assert!(target.is_open(2) && target.is_open(3));
}

#[test]
fn a_one_way_call_is_delivered_when_it_is_written_and_takes_no_answer() {
    let (mut target, now) = callable();
    target.deliver(call(7, 1000, true, now), now);
    target.next(now).unwrap();
    assert_eq!(target.answer(1, &Bytes::from_static(b"1"), true, now), AnswerTaken::OneWay);
    assert!(target.is_open(1) && !target.awaits_answer(1));
    target.written(1);
    assert_eq!(said(&mut target), ["7 delivered"]);
    target.written(1);
    assert_eq!(said(&mut target), [""; 0]);
}

#[test]
fn what_was_not_written_is_next_again_before_all_others() {
    let (mut target, now) = callable();
    target.deliver(call(1, 1000, false, now), now);
    target.deliver(call(2, 1000, false, now), now);
    target.next(now).unwrap();
    target.put_back(1);
    let (number, taken) = target.next(now).unwrap();
    assert_eq!((number, taken.reply_to, &taken.body[..]), (2, 1, &b"1"[..]));
    target.falls_silent();
    target.put_back(2);
    assert_eq!(said(&mut target), ["2 not_here", "1 not_here"]);
}

#[test]
fn a_call_that_cannot_be_written_says_why() {
    let (mut target, now) = callable();
    for serial in 1..=2 {
        target.deliver(call(serial, 1000, false, now), now);
        target.next(now).unwrap();
    }
    target.rejected(1);
    target.too_large(2);
    assert_eq!(said(&mut target), ["1 not_here", "2 too_large_for_target"]);
}

#[test]
fn limits_are_named() {
    let (mut target, now) = callable();
    for serial in 1..=4 {
        target.deliver(call(serial, 1000, false, now), now);
    }
    assert_eq!(said(&mut target), ["4 busy mailbox"]);
    for _ in 1..=3 {
        target.next(now).unwrap();
    }
    for serial in 5..=6 {
        target.deliver(call(serial, 1000, false, now), now);
    }
    assert_eq!(target.next(now).unwrap().1.reply_to, 5);
    assert!(target.next(now).is_none());
    assert_eq!(said(&mut target), ["6 busy target_in_flight"]);
}

#[test]
fn what_ran_out_of_time_makes_room_and_nobody_is_told() {
    let (mut target, now) = callable();
    for serial in 1..=3 {
        target.deliver(call(serial, 100, false, now), now);
    }
    let later = now + Duration::from_millis(100);
    target.deliver(call(4, 100, false, now), later);
    target.deliver(call(5, 100, false, later), later);
    assert_eq!(said(&mut target), ["4 -", "1 -", "2 -", "3 -"]);
    assert_eq!(target.next(later).unwrap().1.reply_to, 5);
    let last = later + Duration::from_millis(100);
    assert_eq!(target.next_expiry(), Some(later), "no later than the earliest");
    assert_eq!(target.answer(1, &Bytes::from_static(b"1"), true, last), AnswerTaken::NoSuchCall);
    target.expire(last);
    assert_eq!(
        (said(&mut target), target.next_expiry()),
        (vec!["5 -".to_owned(), "5 late 1".to_owned()], None)
    );
}

#[test]
fn an_answer_after_the_time_is_told_once_to_whoever_may_read_it_and_the_device_notices_nothing() {
    let (mut target, now) = callable();
    // Nobody reads the first one's, the second wants none, the third's is.
    for (serial, oneway) in [(1, false), (2, true), (3, false), (4, false)] {
        target.deliver(call(serial, 100, oneway, now), now);
        target.next(now).unwrap();
    }
    let over = now + Duration::from_millis(100);
    target.expire(over);
    said(&mut target);
    let answer = |target: &mut Target<u64>, number, body: &'static [u8], at| {
        assert_eq!(target.answer(number, &Bytes::from_static(body), true, at), AnswerTaken::NoSuchCall);
        said(target)
    };
    assert_eq!([1, 2, 3, 4].map(|number| target.awaits_answer(number)), [false, false, true, true]);
    assert!(target.is_idle());
    for number in [1, 2] {
        assert!(answer(&mut target, number, b"1", over).is_empty(), "{number}");
    }
    assert!(answer(&mut target, 3, b"no", over).is_empty(), "what is no JSON");
    assert_eq!(answer(&mut target, 3, b"[1]", over), ["3 late [1]"]);
    assert!(answer(&mut target, 3, b"[1]", over).is_empty(), "a second one");
    assert!(answer(&mut target, 4, b"1", over + LATE_FOR).is_empty(), "after all its time");
    // What comes in the last moment may be so for whoever asked.
    for (serial, left_ms, expected) in [
        (7, 499, vec!["7 answered 1", "7 late 1"]),
        (8, 500, vec!["8 answered 1"]),
        (1, 1, vec!["1 answered 1"]),
    ] {
        let mut target = callable().0;
        target.deliver(call(serial, 1_000, false, now), now);
        let (number, _) = target.next(now).unwrap();
        let at = now + Duration::from_millis(1_000 - left_ms);
        assert_eq!(target.answer(number, &Bytes::from_static(b"1"), true, at), AnswerTaken::Yes);
        assert_eq!(said(&mut target), expected);
    }
    // The session's end is the end of it, and so is another call of that number.
    for (serial, gone) in [(5, true), (6, false)] {
        let mut target = callable().0;
        target.deliver(call(serial, 100, false, now), now);
        let (number, _) = target.next_among([7].into_iter(), now).unwrap();
        target.expire(over);
        if gone {
            target.end();
        } else {
            target.deliver(call(9, 5_000, true, over), over);
            target.next_among([7].into_iter(), over).unwrap();
            target.written(7);
        }
        said(&mut target);
        assert!(answer(&mut target, number, b"1", over).is_empty());
    }
}

#[test]
fn the_end_loses_what_was_written_and_nothing_else() {
    let (mut target, now) = callable();
    target.deliver(call(1, 1000, false, now), now);
    target.deliver(call(2, 1000, false, now), now);
    target.next(now).unwrap();
    target.end();
    assert!(!target.is_callable() && target.has_none_open() && target.is_idle() && target.has_conclusions());
    target.deliver(call(3, 1000, false, now), now);
    assert_eq!(said(&mut target), ["2 not_here", "1 lost", "3 not_here"]);
    assert!(!target.has_conclusions());
}

#[test]
fn a_silent_session_may_still_answer() {
    let (mut target, now) = callable();
    target.deliver(call(1, 1000, false, now), now);
    target.next(now).unwrap();
    target.falls_silent();
    assert!(!target.has_none_open() && !target.is_idle());
    assert_eq!(target.answer(1, &Bytes::from_static(b"1"), true, now), AnswerTaken::Yes);
    assert_eq!(said(&mut target), ["1 answered 1"]);
}

#[test]
fn numbers_go_round_and_skip_what_is_open() {
    let now = Instant::now();
    let mut target = Target::new(LIMITS, Numbers::after(MAX_CALL_NUMBER - 1));
    target.becomes_callable();
    let next = |target: &mut Target<u64>, serial| {
        target.deliver(call(serial, 1000, false, now), now);
        target.next(now).map(|(number, _)| number)
    };
    assert_eq!(next(&mut target, 1), Some(MAX_CALL_NUMBER));
    assert_eq!(next(&mut target, 2), Some(1));
    target.numbers.last = MAX_CALL_NUMBER - 1;
    assert_eq!(next(&mut target, 3), Some(2));

    let tagged = |last| {
        std::iter::repeat_with({
            let mut numbers = Numbers::tagged(5, 2, last);
            move || numbers.next()
        })
    };
    assert_eq!(tagged(1).take(4).collect::<Vec<_>>(), [22, 23, 21, 22]);
    let mut of_node = Numbers::of_node(0x3fff, u32::MAX);
    let numbers = [of_node.next(), of_node.next()];
    assert_eq!(numbers.map(|it| (Numbers::node_tag(it), it <= MAX_CALL_NUMBER)), [(0x3fff, true); 2]);
    let mut few = Target::new(LIMITS, Numbers::tagged(5, 1, 0));
    few.becomes_callable();
    assert_eq!((next(&mut few, 1), next(&mut few, 2)), (Some(11), None));
    assert_eq!(said(&mut few), ["2 busy target_in_flight"]);
}

#[test]
fn a_device_that_listens_to_some_numbers_gets_those() {
    let (mut target, now) = callable();
    for serial in 1..=3 {
        target.deliver(call(serial, 1000, false, now), now);
    }
    assert_eq!(target.next_among([9, 3].into_iter(), now).map(|(number, _)| number), Some(9));
    assert_eq!(target.next_among([9, 3].into_iter(), now).map(|(number, _)| number), Some(3));
    assert!(target.next_among([9, 3].into_iter(), now).is_none());
    assert_eq!(said(&mut target), ["3 busy target_in_flight"]);
}

#[derive(Debug, Clone)]
enum Step {
    Deliver {
        budget_ms: u32,
        oneway: bool,
    },
    Next,
    Among,
    /// Of the open call at this place.
    Written(usize),
    PutBack(usize),
    Rejected(usize),
    TooLarge(usize),
    Answer(usize, bool, bool),
    Pass(u64),
    Silent,
    Callable,
    End,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u32..400, any::<bool>()).prop_map(|(budget_ms, oneway)| Step::Deliver { budget_ms, oneway }),
        6 => Just(Step::Next),
        1 => Just(Step::Among),
        3 => (0usize..5).prop_map(Step::Written),
        1 => (0usize..5).prop_map(Step::PutBack),
        1 => (0usize..5).prop_map(Step::Rejected),
        1 => (0usize..5).prop_map(Step::TooLarge),
        3 => (0usize..5, any::<bool>(), any::<bool>()).prop_map(|(at, json, told)| Step::Answer(at, json, told)),
        3 => (0u64..150).prop_map(Step::Pass),
        1 => Just(Step::Silent),
        3 => Just(Step::Callable),
        1 => Just(Step::End),
    ]
}

proptest! {
    #[test]
    fn every_call_comes_out_once_with_an_outcome_that_is_true(steps in proptest::collection::vec(step(), 1..200)) {
        let mut now = Instant::now();
        let mut target = Target::new(LIMITS, Numbers::after(0));
        let (mut serial, mut ended, mut late) = (0, BTreeSet::new(), BTreeSet::new());
        // Of each call: its deadline, and whether the device may have seen it.
        let mut calls: BTreeMap<u64, (Deadline, bool, bool)> = BTreeMap::new();
        let mut numbers: BTreeMap<u32, u64> = BTreeMap::new();
        for step in steps.into_iter().chain([Step::Pass(500), Step::End]) {
            numbers.retain(|number, _| target.is_open(*number));
            let open: Vec<u32> = numbers.keys().copied().collect();
            let at = |place: usize| open.get(place).copied().unwrap_or(99);
            match step {
                Step::Deliver { budget_ms, oneway } => {
                    serial += 1;
                    let call = call(serial, budget_ms, oneway, now);
                    calls.insert(serial, (call.deadline, false, oneway));
                    target.deliver(call, now);
                }
                Step::Next | Step::Among => {
                    let taken = match step {
                        Step::Next => target.next(now),
                        _ => target.next_among([7u32, 3].into_iter(), now),
                    };
                    if let Some((number, taken)) = taken {
                        prop_assert!(!taken.deadline.has_passed(now));
                        prop_assert!(numbers.insert(number, taken.reply_to).is_none(), "{number} twice");
                        prop_assert_eq!(&*taken.body, taken.reply_to.to_string().into_bytes());
                        calls.get_mut(&taken.reply_to).unwrap().1 = true;
                    }
                }
                Step::Written(place) => target.written(at(place)),
                Step::PutBack(place) => {
                    let number = at(place);
                    // Only what was not written can be: its body is there still.
                    if target.calls.open.get(&number).is_some_and(|call| !call.body.is_empty()) {
                        calls.get_mut(&numbers[&number]).unwrap().1 = false;
                        target.put_back(number);
                    }
                }
                Step::Rejected(place) => {
                    if let Some(serial) = numbers.get(&at(place)) {
                        calls.get_mut(serial).unwrap().1 = false;
                    }
                    target.rejected(at(place));
                }
                Step::TooLarge(place) => {
                    if let Some(serial) = numbers.get(&at(place)) {
                        calls.get_mut(serial).unwrap().1 = false;
                    }
                    target.too_large(at(place));
                }
                Step::Answer(place, json, told) => {
                    let body = if json { "1" } else { "x" };
                    target.answer(at(place), &Bytes::from_static(body.as_bytes()), told, now);
                }
                Step::Pass(ms) => {
                    now += Duration::from_millis(ms);
                    target.expire(now);
                }
                Step::Silent => target.falls_silent(),
                Step::Callable => target.becomes_callable(),
                Step::End => target.end(),
            }
            let here = &target.calls;
            let earliest = here.waiting.iter().chain(here.open.values()).map(|it| it.deadline.instant()).min();
            prop_assert!(earliest.is_none_or(|at| target.next_expiry().is_some_and(|expiry| expiry <= at)));
            prop_assert_eq!(here.waiting_bytes, here.waiting.iter().map(|it| it.bytes()).sum::<usize>());
            prop_assert!(here.waiting.len() <= LIMITS.max_waiting + 4 && here.open.len() <= LIMITS.max_open);
            prop_assert!(here.overdue.len() <= MAX_OVERDUE);
            while let Some(it) = target.next_conclusion() {
                let (serial, reply) = match it {
                    Conclusion::Call { reply_to, reply, .. } => (reply_to, reply),
                    Conclusion::Late(LateAnswer { call, proof }, _) => {
                        prop_assert!(late.insert(proof), "{proof} twice");
                        let (deadline, seen, oneway) = calls[&call.serial];
                        prop_assert!(deadline.remaining(now).as_duration() < DOUBTFUL);
                        prop_assert!(seen && !oneway && ended.contains(&call.serial));
                        continue;
                    }
                };
                prop_assert!(ended.insert(serial), "{serial} twice");
                let (deadline, seen, oneway) = calls[&serial];
                match reply {
                    None => prop_assert!(deadline.has_passed(now)),
                    Some(DeliveryReply::NotHere | DeliveryReply::Outdated) => prop_assert!(!seen),
                    Some(DeliveryReply::Ended(outcome)) => match outcome {
                        Outcome::Busy(_) | Outcome::TooLargeForTarget => prop_assert!(!seen),
                        Outcome::Answered | Outcome::AnswerInvalid | Outcome::Lost => {
                            prop_assert!(seen);
                            prop_assert!(!oneway || outcome == Outcome::Lost);
                        }
                        Outcome::Delivered => prop_assert!(seen && oneway),
                        other => prop_assert!(false, "{other:?}"),
                    },
                }
            }
        }
        prop_assert_eq!(ended.len(), calls.len());
        prop_assert!(target.is_idle());
    }
}
