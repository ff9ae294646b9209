//! What becomes of the calls to one callable session, from its mailbox to their answers? A pure machine, the same for
//! every protocol: a protocol decides *when* a call is written, this decides everything else.
//!
//! Driving it: [`deliver`](Target::deliver) what comes from the mailbox; whenever the device can be written to, take
//! the [`next`](Target::next) call and say what became of it: [`written`](Target::written),
//! [`put_back`](Target::put_back), [`rejected`](Target::rejected) or [`too_large`](Target::too_large). Hand answers to
//! [`answer`](Target::answer), call [`expire`](Target::expire) at [`next_expiry`](Target::next_expiry), and after each
//! of these tell routers what [`next_conclusion`](Target::next_conclusion) says. Every call that goes in is concluded
//! exactly once.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Deref;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rpc::{
    CallId, DEFAULT_METHOD, Deadline, DeliveryReply, DeviceId, LateAnswer, Limit, NODE_TAG_BITS, Outcome,
};

use crate::device_api::{self, Beside, Refusal};

/// The largest number of a call: the device API's ids are 31 bits wide.
pub const MAX_CALL_NUMBER: u32 = 2_147_483_647;

/// The bits that count of a number that names its node; those above them are the node's tag.
const COUNT_BITS: u32 = 31 - NODE_TAG_BITS;

/// The settings that it obeys.
#[derive(Debug, Clone, Copy)]
pub struct TargetLimits {
    /// Calls that may wait to be written.
    pub max_waiting: usize,
    /// Bytes of them; a single call may have more.
    pub max_waiting_bytes: usize,
    /// Calls that may be written, or on their way, and not answered.
    pub max_open: usize,
}

/// A call for the device, as its router delivered it. `R` is how the router is answered.
#[derive(Debug)]
pub struct Incoming<R> {
    /// Its id, the same on every hop.
    pub call: CallId,
    /// Who calls, where the router tells it.
    pub caller: Option<Caller>,
    /// No answer is wanted.
    pub oneway: bool,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// What the device reads as `method`; none: `onMsg`.
    pub method: Option<String>,
    /// Its body, as the caller wrote it.
    pub body: Bytes,
    /// When its budget ends.
    pub deadline: Deadline,
    /// Until when the authorizer's word holds; none: for good.
    pub verdict: Option<Deadline>,
    /// Where the answer goes.
    pub reply_to: R,
    /// As in [`LateAnswer`]; none: an answer after the call's time is of no use.
    pub late: Option<u64>,
}

impl TargetLimits {
    /// Whether one more call has room, of so many bytes, behind so many calls of so many bytes together.
    pub fn has_room(&self, call_bytes: usize, waiting: usize, waiting_bytes: usize) -> bool {
        waiting < self.max_waiting
            && (waiting == 0 || waiting_bytes.saturating_add(call_bytes) <= self.max_waiting_bytes)
    }
}

impl<R> Incoming<R> {
    /// How much memory it takes, about.
    pub fn bytes(&self) -> usize {
        size_of::<Self>() + self.body.len() + self.method.as_ref().map_or(0, String::len)
    }

    /// How its answer is told that may be too late, if it may: a call has less time at its router than at its node, by
    /// what a delivery takes, and its caller may have been told that it is over.
    fn late_answer(&self, now: Instant) -> Option<LateAnswer> {
        let is_doubtful = self.deadline.remaining(now).as_duration() < DOUBTFUL;
        self.late.filter(|_| is_doubtful && !self.oneway).map(|proof| LateAnswer { call: self.call, proof })
    }

    /// What the device reads, with the call's number where nothing else carries it. `tells_caller`: it names who calls,
    /// and for how long an answer is of use.
    pub fn message(&self, number: Option<u32>, tells_caller: bool, now: Instant) -> Bytes {
        let beside = tells_caller.then(|| Beside {
            caller: self.caller.as_ref().map(|caller| (caller.id, caller.name.as_str())),
            expires: self.deadline.remaining(now),
        });
        let method = self.method.as_deref().unwrap_or(DEFAULT_METHOD);
        device_api::on_msg(number, method, &self.body, beside.as_ref())
    }
}

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The device.
    pub id: DeviceId,
    /// Its name; empty where the caller's node does not tell it.
    pub name: String,
}

/// What others are to be told.
#[derive(Debug, PartialEq, Eq)]
pub enum Conclusion<R> {
    /// How a call ended here.
    Call {
        /// The router that delivered it.
        reply_to: R,
        /// What it is told; nothing where the call's time is over, which it told the caller by its own clock.
        reply: Option<DeliveryReply>,
        /// The target's answer, if there is one.
        body: Bytes,
    },
    /// A call whose time is over, or may be, has its answer, for the application that made it.
    Late(LateAnswer, Bytes),
}

/// A call that the device has, and that ran out of time.
#[derive(Debug)]
struct Overdue {
    number: u32,
    answer: LateAnswer,
    /// Until when an answer is of use.
    until: Instant,
}

/// How long an answer is of use after its call's time: as long as the API keeps what became of the call.
const LATE_FOR: Duration = Duration::from_secs(600);
/// Less time than that may be none at the call's router.
const DOUBTFUL: Duration = Duration::from_millis(500);
/// Room for so many calls a session keeps that has none just now.
const MAX_KEPT: usize = 8;
/// Calls of one session whose answers may come late; of further ones the oldest is forgotten.
const MAX_OVERDUE: usize = 64;

/// What became of a target's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerTaken {
    /// It is on its way to the caller.
    Yes,
    /// Answered before, out of time, or never asked.
    NoSuchCall,
    /// The call wants none.
    OneWay,
    /// It is not JSON. The call stays open where the device is told so, and is over where it cannot be.
    NotJson,
}

impl AnswerTaken {
    /// What the device is told where it was not taken.
    pub fn refusal(self) -> Option<Refusal> {
        match self {
            AnswerTaken::Yes => None,
            AnswerTaken::NoSuchCall | AnswerTaken::OneWay => Some(Refusal::NoSuchCall),
            AnswerTaken::NotJson => Some(Refusal::AnswerNotJson),
        }
    }
}

/// The numbers under which one session's device knows its calls, from 1 on and round again.
#[derive(Debug)]
pub struct Numbers {
    /// What all of them have in common above the bits that count.
    tag: u32,
    /// The largest count.
    max: u32,
    last: u32,
}

impl Numbers {
    /// All numbers; the first given is the one behind `last`.
    pub fn after(last: u32) -> Self {
        Numbers { tag: 0, max: MAX_CALL_NUMBER, last: last % MAX_CALL_NUMBER }
    }

    /// Numbers that name the node with this tag, so that a device without a connection may answer at any.
    /// The count begins behind that of `last`.
    pub fn of_node(node_tag: u16, last: u32) -> Self {
        Numbers::tagged(u32::from(node_tag), COUNT_BITS, last)
    }

    /// The tag of the node that a number of [`of_node`](Self::of_node) names.
    pub fn node_tag(number: u32) -> u16 {
        (number >> COUNT_BITS) as u16
    }

    /// Numbers whose upper bits are `tag`, and whose lower `count_bits` count; at most 31 together.
    fn tagged(tag: u32, count_bits: u32, last: u32) -> Self {
        let max = (1 << count_bits.min(31)) - 1;
        Numbers { tag: (tag << count_bits.min(31)) & MAX_CALL_NUMBER, max, last: last % max.max(1) }
    }

    fn next(&mut self) -> u32 {
        self.last = if self.last >= self.max { 1 } else { self.last + 1 };
        self.tag | self.last
    }
}

/// The calls of one callable session.
#[derive(Debug)]
pub struct Target<R> {
    limits: TargetLimits,
    callable: bool,
    numbers: Numbers,
    calls: IfAny<R>,
}

/// None while there are none, as nearly all devices have none at nearly all times.
#[derive(Debug)]
struct IfAny<R>(Option<Box<Calls<R>>>);

#[derive(Debug)]
struct Calls<R> {
    waiting: VecDeque<Box<Incoming<R>>>,
    waiting_bytes: usize,
    /// Calls in the device's hands, or on their way there, by number.
    open: BTreeMap<u32, Box<Incoming<R>>>,
    /// Those of them that are [written](Target::written) once the socket has taken all bytes.
    unflushed: Vec<u32>,
    /// Calls that the device may answer late, oldest first.
    overdue: VecDeque<Overdue>,
    /// No later than the earliest deadline of all calls.
    next_expiry: Option<Instant>,
    conclusions: VecDeque<Conclusion<R>>,
}

impl<R> Calls<R> {
    fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.open.is_empty() && self.unflushed.is_empty()
    }

    const fn none() -> Self {
        Calls {
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            open: BTreeMap::new(),
            unflushed: Vec::new(),
            overdue: VecDeque::new(),
            next_expiry: None,
            conclusions: VecDeque::new(),
        }
    }
}

impl<R: 'static> IfAny<R> {
    const NONE: &'static Calls<R> = &Calls::none();

    /// To change those that there are.
    fn any(&mut self) -> Option<&mut Calls<R>> {
        self.0.as_deref_mut()
    }

    /// To add to them.
    fn room(&mut self) -> &mut Calls<R> {
        self.0.get_or_insert_with(|| Box::new(Calls::none()))
    }

    /// Gives the memory back when there are none any more, and none that has a late answer to come. Not before the
    /// time of the last ones would have ended: until then the next is likely to come.
    fn rest(&mut self) {
        if self.is_idle()
            && self.conclusions.is_empty()
            && self.overdue.is_empty()
            && self.next_expiry.is_none()
        {
            self.0 = None;
        }
    }
}

impl<R: 'static> Deref for IfAny<R> {
    type Target = Calls<R>;

    fn deref(&self) -> &Calls<R> {
        self.0.as_deref().unwrap_or(Self::NONE)
    }
}

impl<R: 'static> Target<R> {
    /// Nobody can call yet.
    pub fn new(limits: TargetLimits, numbers: Numbers) -> Self {
        Target { limits, callable: false, numbers, calls: IfAny(None) }
    }

    /// The limits have changed: what goes beyond the new ones already stays.
    pub fn change_limits(&mut self, limits: TargetLimits) {
        self.limits = limits;
    }

    /// What routers are to be told, in order.
    pub fn next_conclusion(&mut self) -> Option<Conclusion<R>> {
        let calls = self.calls.any()?;
        let next = calls.conclusions.pop_front();
        if next.is_none() {
            if calls.is_idle() && calls.conclusions.capacity().max(calls.waiting.capacity()) > MAX_KEPT {
                (calls.conclusions, calls.waiting) = (VecDeque::new(), VecDeque::new());
            }
            self.calls.rest();
        }
        next
    }

    /// True while [`next_conclusion`](Self::next_conclusion) has something.
    pub fn has_conclusions(&self) -> bool {
        !self.calls.conclusions.is_empty()
    }

    /// From now on calls are taken: a claim stands, or is being written.
    pub fn becomes_callable(&mut self) {
        self.callable = true;
    }

    /// True while calls are taken.
    pub fn is_callable(&self) -> bool {
        self.callable
    }

    /// A call comes from the mailbox.
    pub fn deliver(&mut self, call: Box<Incoming<R>>, now: Instant) {
        if call.deadline.has_passed(now) {
            return self.expired(*call);
        }
        if !self.callable {
            return self.conclude(*call, DeliveryReply::NotHere, Bytes::new());
        }
        if !self.has_room(&call) {
            self.expire_waiting(now);
        }
        if !self.has_room(&call) {
            return self.busy(*call, Limit::Mailbox);
        }
        let (calls, at) = (self.calls.room(), call.deadline.instant());
        calls.next_expiry = Some(calls.next_expiry.map_or(at, |expiry| expiry.min(at)));
        calls.waiting_bytes += call.bytes();
        calls.waiting.push_back(call);
    }

    fn has_room(&self, call: &Incoming<R>) -> bool {
        self.limits.has_room(call.bytes(), self.calls.waiting.len(), self.calls.waiting_bytes)
    }

    /// True when a call waits to be written.
    pub fn has_waiting(&self) -> bool {
        !self.calls.waiting.is_empty()
    }

    /// The next call to be written, under a number that no other open call has.
    pub fn next(&mut self, now: Instant) -> Option<(u32, &Incoming<R>)> {
        self.take(now, |numbers, open| {
            // Ends: fewer numbers are taken than there are.
            let room = open.len() < numbers.max as usize;
            room.then(|| std::iter::repeat_with(|| numbers.next()).find(|number| !open.contains_key(number)))?
        })
    }

    /// The same, for a device that listens to these numbers alone.
    pub fn next_among(
        &mut self,
        mut numbers: impl Iterator<Item = u32>,
        now: Instant,
    ) -> Option<(u32, &Incoming<R>)> {
        self.take(now, |_, open| numbers.find(|number| !open.contains_key(number)))
    }

    /// The device, or the socket that leads to it, has taken the call: from here on it may be carried out.
    pub fn written(&mut self, number: u32) {
        // None when the answer was quicker, or the call's time is over.
        let Some(call) = self.calls.any().and_then(|calls| calls.open.get_mut(&number)) else { return };
        if call.oneway {
            self.end_open(number, DeliveryReply::Ended(Outcome::Delivered), Bytes::new());
        } else {
            call.body = Bytes::new();
        }
    }

    /// The socket will have the call with all bytes that it is yet to take: then it is [`flushed`](Self::flushed).
    pub fn in_the_buffer(&mut self, number: u32) {
        self.calls.room().unflushed.push(number);
    }

    /// The socket has taken all bytes.
    pub fn flushed(&mut self) {
        let unflushed = self.calls.any().map(|calls| std::mem::take(&mut calls.unflushed));
        unflushed.into_iter().flatten().for_each(|number| self.written(number));
    }

    /// The call has not been written after all: it is the next again, before all others that wait.
    pub fn put_back(&mut self, number: u32) {
        let Some(calls) = self.calls.any() else { return };
        let Some(call) = calls.open.remove(&number) else { return };
        match self.callable {
            true => {
                calls.waiting_bytes += call.bytes();
                calls.waiting.push_front(call);
            }
            false => self.conclude(*call, DeliveryReply::NotHere, Bytes::new()),
        }
    }

    /// The device refused the call without having seen any of it before.
    pub fn rejected(&mut self, number: u32) {
        self.end_open(number, DeliveryReply::NotHere, Bytes::new());
    }

    /// The device's connection takes no message of the call's size.
    pub fn too_large(&mut self, number: u32) {
        self.end_open(number, DeliveryReply::Ended(Outcome::TooLargeForTarget), Bytes::new());
    }

    /// The device answers call `number`, maybe before whatever carries the call has said that it was written.
    /// `is_told`: what it reads of [`AnswerTaken::NotJson`] it can act on, and answer again.
    pub fn answer(&mut self, number: u32, body: &Bytes, is_told: bool, now: Instant) -> AnswerTaken {
        match self.calls.open.get(&number) {
            Some(call) if call.deadline.has_passed(now) => {
                self.expire_open(now);
                self.take_late(number, body, now);
                return AnswerTaken::NoSuchCall;
            }
            Some(call) if call.oneway => return AnswerTaken::OneWay,
            Some(_) => {}
            None => {
                self.take_late(number, body, now);
                return AnswerTaken::NoSuchCall;
            }
        }
        if device_api::answer_is_json(body) {
            let late = self.calls.open.get(&number).and_then(|call| call.late_answer(now));
            self.end_open(number, DeliveryReply::Ended(Outcome::Answered), body.clone());
            self.calls.room().conclusions.extend(late.map(|answer| Conclusion::Late(answer, body.clone())));
            return AnswerTaken::Yes;
        }
        if !is_told {
            self.end_open(number, DeliveryReply::Ended(Outcome::AnswerInvalid), Bytes::new());
        }
        AnswerTaken::NotJson
    }

    /// The device's answer to call `number` is larger than can be read.
    pub fn answer_too_large(&mut self, number: u32, now: Instant) {
        let open =
            self.calls.open.get(&number).is_some_and(|call| !call.oneway && !call.deadline.has_passed(now));
        if open {
            self.end_open(number, DeliveryReply::Ended(Outcome::AnswerTooLarge), Bytes::new());
        }
    }

    /// True while call `number` is open.
    pub fn is_open(&self, number: u32) -> bool {
        self.calls.open.contains_key(&number)
    }

    /// True while call `number` is open, and wants an answer, or would have one late.
    pub fn awaits_answer(&self, number: u32) -> bool {
        self.calls.open.get(&number).map_or_else(|| self.is_overdue(number), |call| !call.oneway)
    }

    /// Time has passed: what has run out of it is over, and its router knows.
    pub fn expire(&mut self, now: Instant) {
        if self.calls.next_expiry.is_none_or(|expiry| now < expiry) {
            return;
        }
        self.expire_waiting(now);
        self.expire_open(now);
        if let Some(calls) = self.calls.any() {
            let deadlines =
                calls.waiting.iter().chain(calls.open.values()).map(|call| call.deadline.instant());
            calls.next_expiry = deadlines.min();
        }
        self.calls.rest();
    }

    /// When to call [`expire`](Self::expire) next, at the latest. Not moved by an answer: a busy session would rewind
    /// its timer with every call.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.calls.next_expiry
    }

    /// Nobody can call any more; what the device has it may still answer. What waits it never saw.
    pub fn falls_silent(&mut self) {
        self.callable = false;
        let Some(calls) = self.calls.any() else { return };
        calls.waiting_bytes = 0;
        for call in std::mem::take(&mut calls.waiting) {
            self.conclude(*call, DeliveryReply::NotHere, Bytes::new());
        }
    }

    /// The session is over: a call that the device may have seen is lost; one that waits it never saw.
    pub fn end(&mut self) {
        self.falls_silent();
        let Some(calls) = self.calls.any() else { return };
        calls.next_expiry = None;
        calls.overdue = VecDeque::new();
        for call in std::mem::take(&mut calls.open).into_values() {
            self.conclude(*call, DeliveryReply::Ended(Outcome::Lost), Bytes::new());
        }
    }

    /// True when no call is open.
    pub fn has_none_open(&self) -> bool {
        self.calls.open.is_empty()
    }

    /// True when no call is here.
    pub fn is_idle(&self) -> bool {
        self.calls.is_idle()
    }

    fn take(
        &mut self,
        now: Instant,
        mut choose: impl FnMut(&mut Numbers, &BTreeMap<u32, Box<Incoming<R>>>) -> Option<u32>,
    ) -> Option<(u32, &Incoming<R>)> {
        while let Some(calls) = self.calls.any()
            && let Some(call) = calls.waiting.pop_front()
        {
            calls.waiting_bytes -= call.bytes();
            if call.deadline.has_passed(now) {
                self.expired(*call);
                continue;
            }
            if call.verdict.is_some_and(|verdict| verdict.has_passed(now)) {
                // The router has it judged again, and it comes back if it still may.
                self.conclude(*call, DeliveryReply::Outdated, Bytes::new());
                continue;
            }
            let room = calls.open.len() < self.limits.max_open;
            let Some(number) = room.then(|| choose(&mut self.numbers, &calls.open)).flatten() else {
                self.busy(*call, Limit::TargetInFlight);
                continue;
            };
            // An answer under this number is to this call from now on.
            let calls = self.calls.room();
            calls.overdue.retain(|it| it.number != number);
            return Some((number, calls.open.entry(number).or_insert(call)));
        }
        None
    }

    fn expire_open(&mut self, now: Instant) {
        let Some(calls) = self.calls.any() else { return };
        let over = calls.open.extract_if(.., |_, call| call.deadline.has_passed(now));
        for (number, call) in over.collect::<Vec<_>>() {
            if let Some(answer) = call.late_answer(now) {
                let overdue = &mut self.calls.room().overdue;
                if overdue.len() >= MAX_OVERDUE {
                    overdue.pop_front();
                }
                overdue.push_back(Overdue { number, answer, until: now + LATE_FOR });
            }
            self.expired(*call);
        }
    }

    fn is_overdue(&self, number: u32) -> bool {
        self.calls.overdue.iter().any(|it| it.number == number)
    }

    /// The device answers what it was asked too long ago. It is told the same as if nobody cared.
    fn take_late(&mut self, number: u32, body: &Bytes, now: Instant) {
        let Some(calls) = self.calls.any() else { return };
        calls.overdue.retain(|it| now < it.until);
        let place = calls.overdue.iter().position(|it| it.number == number);
        if let Some(place) = place.filter(|_| device_api::answer_is_json(body))
            && let Some(overdue) = calls.overdue.remove(place)
        {
            calls.conclusions.push_back(Conclusion::Late(overdue.answer, body.clone()));
        }
    }

    fn expired(&mut self, call: Incoming<R>) {
        self.calls.room().conclusions.push_back(Conclusion::Call {
            reply_to: call.reply_to,
            reply: None,
            body: Bytes::new(),
        });
    }

    fn expire_waiting(&mut self, now: Instant) {
        let Some(calls) = self.calls.any() else { return };
        let waiting = std::mem::take(&mut calls.waiting).into_iter();
        let over: VecDeque<_>;
        (over, calls.waiting) = waiting.partition(|call| call.deadline.has_passed(now));
        calls.waiting_bytes = calls.waiting.iter().map(|call| call.bytes()).sum();
        over.into_iter().for_each(|call| self.expired(*call));
    }

    fn end_open(&mut self, number: u32, reply: DeliveryReply, body: Bytes) {
        if let Some(call) = self.calls.any().and_then(|calls| calls.open.remove(&number)) {
            self.conclude(*call, reply, body);
        }
    }

    fn busy(&mut self, call: Incoming<R>, limit: Limit) {
        self.conclude(call, DeliveryReply::Ended(Outcome::Busy(limit)), Bytes::new());
    }

    fn conclude(&mut self, call: Incoming<R>, reply: DeliveryReply, body: Bytes) {
        let conclusion = Conclusion::Call { reply_to: call.reply_to, reply: Some(reply), body };
        self.calls.room().conclusions.push_back(conclusion);
    }
}

#[cfg(test)]
#[path = "target_tests.rs"]
pub(crate) mod tests;
