//! Which of a device's polls hears which call? A pure machine: polls, calls, answers and time go in; what is to be
//! handed to polls and done by the loop comes out.
//!
//! A device that polls is callable from its first poll until `grace` after its last. Calls wait in the order in which
//! they came; each poll takes one. A call that was given to a poll whose client did not get it goes back to the front.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rpc::Limit;

use crate::device::mailbox::EndReason;
use crate::device::target::{AnswerTaken, Conclusion, Incoming, Numbers, Target, TargetLimits};
use crate::device_api;

/// The settings that a lease obeys.
#[derive(Debug, Clone, Copy)]
pub struct LeaseLimits {
    /// Polls that may wait.
    pub max_polls: usize,
    /// What may wait for a poll, and be taken and not answered.
    pub target: TargetLimits,
    /// How long the device stays callable without a poll.
    pub grace: Duration,
}

/// Names one poll of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PollId(u64);

/// Why a poll is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotPolled {
    /// As many polls wait as may.
    Full,
    /// The node is shutting down, or the device is no longer what it was.
    Over,
}

/// What a poll is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PollEnd {
    /// A call. Whoever writes it says so with [`Lease::written`], or gives it back with [`Lease::unwritten`].
    Call {
        /// The call's number, for the answer.
        number: u32,
        /// What the device reads.
        text: Bytes,
        /// W3C trace context, as the caller gave it.
        traceparent: Option<String>,
    },
    /// Its time is over.
    TimedOut,
    /// The device could not be made callable.
    Unavailable,
    /// The node ends this.
    Ended(EndReason),
}

/// What the loop is to do, in order.
#[derive(Debug)]
pub enum Effect<R> {
    /// Make the device callable, then call [`Lease::claimed`].
    Claim,
    /// The device is no longer callable: release its claim.
    Release,
    /// A call to the device is over: tell its router.
    Conclude(Conclusion<R>),
    /// A limit was hit: to be counted.
    LimitHit(Limit),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// Not callable.
    Silent,
    /// The claim is being written.
    Claiming,
    /// The claim stands.
    Callable,
}

#[derive(Debug)]
struct WaitingPoll<P> {
    id: PollId,
    until: Instant,
    handle: P,
}

/// What one device that polls is owed. `P` is how a poll is reached, `R` how a router is answered.
#[derive(Debug)]
pub struct Lease<P, R> {
    limits: LeaseLimits,
    standing: Standing,
    polls: VecDeque<WaitingPoll<P>>,
    last_poll: u64,
    target: Target<R>,
    /// Calls that are being written to polls.
    in_hand: usize,
    /// When the last poll ended.
    quiet_since: Instant,
    over: bool,
    handovers: VecDeque<(P, PollEnd)>,
    effects: VecDeque<Effect<R>>,
}

impl<P, R> Lease<P, R> {
    /// Nothing waits, and nobody can call. `first_number` must not be guessable: an answer says no more than its
    /// call's number, and one that comes from before a restart must not meet another call.
    pub fn new(limits: LeaseLimits, first_number: u32, now: Instant) -> Self {
        Lease {
            limits,
            standing: Standing::Silent,
            polls: VecDeque::new(),
            last_poll: 0,
            target: Target::new(limits.target, Numbers::after(first_number)),
            in_hand: 0,
            quiet_since: now,
            over: false,
            handovers: VecDeque::new(),
            effects: VecDeque::new(),
        }
    }

    /// What polls are to be told.
    pub fn next_handover(&mut self) -> Option<(P, PollEnd)> {
        self.handovers.pop_front()
    }

    /// What is to be done, in order.
    pub fn next_effect(&mut self) -> Option<Effect<R>> {
        // A claim goes first, so that whoever asks again does not find it.
        self.effects.pop_front().or_else(|| self.target.next_conclusion().map(Effect::Conclude))
    }

    /// True when the loop has something to do.
    pub fn has_effects(&self) -> bool {
        !self.effects.is_empty() || self.target.has_conclusions()
    }

    /// A poll that waits until then for a call. The device becomes callable with it.
    ///
    /// # Errors
    /// Says why it may not wait.
    pub fn poll(&mut self, handle: P, until: Instant, now: Instant) -> Result<PollId, NotPolled> {
        if self.over {
            return Err(NotPolled::Over);
        }
        if self.polls.len() >= self.limits.max_polls {
            self.effects.push_back(Effect::LimitHit(Limit::Polls));
            return Err(NotPolled::Full);
        }
        self.last_poll += 1;
        let id = PollId(self.last_poll);
        self.polls.push_back(WaitingPoll { id, until, handle });
        if self.standing == Standing::Silent {
            self.standing = Standing::Claiming;
            self.target.becomes_callable();
            self.effects.push_back(Effect::Claim);
        }
        self.hand_over(now);
        Ok(id)
    }

    /// The poll's client has gone. What it was being told is given back apart from this.
    pub fn poll_gone(&mut self, id: PollId, now: Instant) {
        let before = self.polls.len();
        self.polls.retain(|poll| poll.id != id);
        if self.polls.len() < before {
            self.quiet_since = now;
        }
    }

    /// Whether the claim of an [`Effect::Claim`] stands.
    pub fn claimed(&mut self, stands: bool, now: Instant) {
        if self.standing != Standing::Claiming {
            return;
        }
        if stands {
            self.standing = Standing::Callable;
            self.end_polls_in_time(now);
        } else {
            self.standing = Standing::Silent;
            self.end_polls(PollEnd::Unavailable, now);
            self.target.falls_silent();
        }
    }

    /// A call for the device.
    pub fn deliver(&mut self, call: Box<Incoming<R>>, now: Instant) {
        self.target.deliver(call, now);
        self.hand_over(now);
    }

    /// The connection has taken the call that was handed to a poll.
    pub fn written(&mut self, number: u32, now: Instant) {
        self.put_down(now);
        self.target.written(number);
    }

    /// The connection has not taken it: the next poll gets it, before all others that wait.
    pub fn unwritten(&mut self, number: u32, now: Instant) {
        self.put_down(now);
        self.target.put_back(number);
        self.hand_over(now);
    }

    /// The device answers call `number`.
    pub fn answer(&mut self, number: u32, body: &Bytes, now: Instant) -> AnswerTaken {
        self.target.answer(number, body, true, now)
    }

    /// Time has passed: ends the polls whose time is over, and the lease once its grace is.
    pub fn tick(&mut self, now: Instant) {
        self.target.expire(now);
        self.end_polls_in_time(now);
        if self.grace_ends().is_some_and(|end| now >= end) {
            self.fall_silent();
        }
    }

    /// When to call [`tick`](Self::tick) next; none when nothing runs out.
    pub fn next_tick(&self) -> Option<Instant> {
        let poll = match self.standing {
            Standing::Callable => self.polls.iter().map(|poll| poll.until).min(),
            Standing::Silent | Standing::Claiming => None,
        };
        [poll, self.target.next_expiry(), self.grace_ends()].into_iter().flatten().min()
    }

    /// A newer session of the device became callable, or the node ends everything: nobody reaches the device here.
    /// A call that it has taken is lost; one that it has not, it never saw.
    pub fn end(&mut self, reason: EndReason, now: Instant) {
        self.over |= reason != EndReason::TakenOver;
        self.end_polls(PollEnd::Ended(reason), now);
        self.fall_silent();
        self.target.end();
    }

    /// The node is shutting down: nobody can call any more; what the device has taken it may still answer.
    pub fn drain(&mut self, now: Instant) {
        self.over = true;
        self.end_polls(PollEnd::Ended(EndReason::ShuttingDown), now);
        self.fall_silent();
    }

    /// True when forgetting the lease would change nothing.
    pub fn is_at_rest(&self) -> bool {
        self.standing == Standing::Silent
            && self.polls.is_empty()
            && self.in_hand == 0
            && self.target.is_idle()
            && !self.has_effects()
    }

    /// Gives waiting calls to waiting polls, both in the order in which they came.
    fn hand_over(&mut self, now: Instant) {
        while !self.polls.is_empty()
            && let Some((number, call)) = self.target.next(now)
            && let Some(poll) = self.polls.pop_front()
        {
            self.in_hand += 1;
            let text = device_api::on_msg_numbered(number, &call.body);
            let call = PollEnd::Call { number, text, traceparent: call.traceparent.clone() };
            self.handovers.push_back((poll.handle, call));
        }
    }

    fn put_down(&mut self, now: Instant) {
        self.in_hand = self.in_hand.saturating_sub(1);
        self.quiet_since = now;
    }

    /// Not before the claim stands: a device that has heard the end of a poll knows that it can be called.
    fn end_polls_in_time(&mut self, now: Instant) {
        if self.standing == Standing::Claiming {
            return;
        }
        for poll in std::mem::take(&mut self.polls) {
            if now >= poll.until {
                self.handovers.push_back((poll.handle, PollEnd::TimedOut));
                self.quiet_since = now;
            } else {
                self.polls.push_back(poll);
            }
        }
    }

    fn end_polls(&mut self, end: PollEnd, now: Instant) {
        for poll in self.polls.drain(..) {
            self.handovers.push_back((poll.handle, end.clone()));
            self.quiet_since = now;
        }
    }

    fn fall_silent(&mut self) {
        if self.standing != Standing::Silent {
            self.standing = Standing::Silent;
            self.effects.push_back(Effect::Release);
        }
        self.target.falls_silent();
    }

    fn grace_ends(&self) -> Option<Instant> {
        let quiet = self.standing == Standing::Callable && self.polls.is_empty() && self.in_hand == 0;
        quiet.then(|| self.quiet_since + self.limits.grace)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use rpc::{Budget, CallId, DeliveryReply, NodeId};

    use super::*;

    const LIMITS: LeaseLimits = LeaseLimits {
        max_polls: 3,
        target: TargetLimits { max_waiting: 4, max_open: 5 },
        grace: Duration::from_millis(5_000),
    };

    fn call(serial: u64, budget_ms: u32, oneway: bool, now: Instant) -> Box<Incoming<u64>> {
        Box::new(Incoming {
            call: CallId { node: NodeId(1), serial },
            caller: None,
            oneway,
            traceparent: None,
            body: serial.to_string().into(),
            deadline: Budget::from_ms(budget_ms).starting(now),
            reply_to: serial,
        })
    }

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
            Bench { lease: Lease::new(LIMITS, 1, now), now, polls: BTreeMap::new(), numbers: BTreeMap::new() }
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
                    PollEnd::Call { number, text, .. } => {
                        let text = String::from_utf8(text.to_vec()).unwrap();
                        let head = format!(r#"{{"id":{number},"method":"onMsg","params":"#);
                        let body = text.strip_prefix(&head).unwrap().strip_suffix('}').unwrap();
                        self.numbers.insert(body.to_owned(), number);
                        format!("{poll} hears {body}")
                    }
                    end => format!("{poll} {end:?}"),
                });
            }
            while let Some(effect) = self.lease.next_effect() {
                said.push(match effect {
                    Effect::Claim => "claim".to_owned(),
                    Effect::Release => "release".to_owned(),
                    Effect::LimitHit(limit) => format!("limit {}", limit.as_str()),
                    Effect::Conclude(it) => {
                        let end = match it.reply {
                            Some(DeliveryReply::Ended(outcome)) => outcome.as_str(),
                            Some(DeliveryReply::NotHere) => "not_here",
                            None => continue,
                        };
                        format!("to.{} {end}", it.reply_to)
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
        bench.lease.drain(bench.now);
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
            let mut lease: Lease<u64, u64> = Lease::new(LIMITS, 1, now);
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
                while let Some((poll, end)) = lease.next_handover() {
                    prop_assert!(polls.remove(&poll).is_some(), "a poll was told twice");
                    if let PollEnd::Call { number, text, .. } = end {
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
                        Effect::Conclude(it) => {
                            let serial = it.reply_to;
                            if it.reply == Some(DeliveryReply::NotHere) {
                                prop_assert!(heard.iter().all(|(_, it)| *it != serial), "{} was seen", serial);
                            }
                            prop_assert!(replied.insert(serial, it.reply).is_none(), "{} ended twice", serial);
                        }
                        Effect::Release | Effect::LimitHit(_) => {}
                    }
                }
            }
            for (serial, deadline) in deadlines {
                prop_assert!(replied.contains_key(&serial) || in_hand.iter().any(|(_, it)| *it == serial) || now >= deadline, "{} was swallowed", serial);
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
}
