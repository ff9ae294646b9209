//! Who observes its calls, and what is under way to each? From registration (RFC 7641) to the end of its claim.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rpc::{Limit, SessionEnd};

use super::blocks::{TransferKey, part};
use super::codec::{self, Block, Code, Kind, Response, Token};
use super::link::{Effect, ObserverKey, Owner, RequestId};
use super::observer::{Observer, Settled};
use super::reply;
use super::request::Resource;
use super::requests::{Doing, LARGEST_BLOCK, Origin, Requests};
use super::sequence::Sequence;
use super::tally::Event;
use crate::device::mailbox::Incoming;
use crate::device::target::{AnswerTaken, Numbers, Target, TargetLimits};
use crate::device::visitors::Key;
use crate::device_api::Refusal;

/// What to look at when its time has come; whether there is anything to do is seen then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// Calls of this observer that run out of time.
    Calls(ObserverKey),
    /// The device has not fetched all blocks of the notification with this id.
    Fetch(ObserverKey, u16),
    /// An observer that has not been heard of for long.
    Check(ObserverKey),
}

/// All observations.
#[derive(Debug)]
pub struct Observations {
    /// Boxed: a map has room for up to twice as many as it holds.
    observers: HashMap<ObserverKey, Box<Observer>>,
    registrations: HashMap<(SocketAddr, Token), ObserverKey>,
    /// Those whose claims are being released, and the requests that are answered then.
    ending: HashMap<ObserverKey, Vec<RequestId>>,
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    last_key: u64,
    sequence: Sequence,
}

impl Observations {
    /// None yet; what they are told is numbered so.
    pub fn new(sequence: Sequence) -> Self {
        Observations {
            observers: HashMap::new(),
            registrations: HashMap::new(),
            ending: HashMap::new(),
            timers: BinaryHeap::new(),
            last_key: 0,
            sequence,
        }
    }

    /// How many observe.
    pub fn len(&self) -> usize {
        self.observers.len()
    }

    /// True when nothing is observed, and no claim left.
    pub fn is_empty(&self) -> bool {
        self.observers.is_empty() && self.ending.is_empty()
    }

    /// The limits of calls to a device have changed.
    pub fn change_limits(&mut self, limits: TargetLimits) {
        self.observers.values_mut().for_each(|observer| observer.target.change_limits(limits));
    }

    /// Observe 0 of attributes: granted, and there is never anything to tell.
    pub fn attributes(&mut self, now: Instant) -> Response {
        reply::attributes(Some(self.sequence.next(now)))
    }

    /// Observe 0 of calls: registers, or refreshes what is registered.
    pub fn register(&mut self, origin: Origin, visitor: Key, requests: &mut Requests, now: Instant) {
        let registration = (origin.source, origin.token);
        let registered = self.registrations.get(&registration).copied();
        if let Some(key) = registered
            && let Some(observer) = self.observers.get_mut(&key)
            && observer.visitor == visitor
        {
            // RFC 7641 §4.1: the same again refreshes it.
            observer.heard_at = now;
            if observer.live {
                let response = reply::observes(self.sequence.next(now));
                return requests.respond(&origin, Some(visitor), response, now);
            }
            if let Some(id) = requests.begin(origin, visitor, Doing::Claiming, now)
                && let Some(observer) = self.observers.get_mut(&key)
            {
                observer.waiters.push(id);
            }
            return;
        }
        if self.observers.len() >= requests.limits.coap.max_observers {
            requests.link.effect(Effect::LimitHit(Limit::Observers, Some(visitor)));
            return requests.respond(&origin, Some(visitor), reply::full(), now);
        }
        let Some(caller) = requests.caller(visitor) else { return };
        // A claim costs as much as a call: it counts as one.
        let admitted = caller.lock().admit(&requests.limits.device, now);
        if let Err(limit) = admitted {
            requests.link.effect(Effect::LimitHit(limit, Some(visitor)));
            return requests.respond(&origin, Some(visitor), reply::refusal(Refusal::TooOften), now);
        }
        caller.lock().ended();
        let exponent = origin.block2.unwrap_or(LARGEST_BLOCK).exponent;
        let Some(id) = requests.begin(origin, visitor, Doing::Claiming, now) else { return };
        if let Some(of_another) = registered {
            // A token means one thing at one endpoint: whoever it was is not there any more, and must not be heard of.
            self.end(of_another, SessionEnd::Fault, requests, now);
        }
        self.last_key += 1;
        let key = ObserverKey(self.last_key);
        // At random, so that an answer to an earlier observation of the device hardly ever fits a call of this one.
        let numbers = Numbers::of_node(requests.node_tag, requests.link.random.number() as u32);
        let target = Target::new(requests.limits.device.target, numbers);
        let observer = Observer::new(visitor, registration, exponent, target, id, now);
        self.observers.insert(key, Box::new(observer));
        self.registrations.insert(registration, key);
        if let Some(visit) = requests.visitors.get_mut(visitor) {
            visit.observers.push(key);
        }
        requests.visitors.hold(visitor);
        requests.link.effect(Effect::Claim(key, visitor));
    }

    /// Whether the claim of an [`Effect::Claim`] stands. Only then does the device hear that it observes: from that
    /// moment a call from anywhere in the cluster reaches it.
    pub fn claimed(&mut self, key: ObserverKey, stands: bool, requests: &mut Requests, now: Instant) {
        let Some(observer) = self.observers.get_mut(&key) else { return };
        let waiters = std::mem::take(&mut observer.waiters);
        observer.live = true;
        match observer.over {
            Some(end) => self.end(key, end, requests, now),
            None if !stands => self.end(key, SessionEnd::Fault, requests, now),
            None => {}
        }
        for request in waiters {
            let response = match self.observers.contains_key(&key) {
                true => reply::observes(self.sequence.next(now)),
                false => reply::refusal(Refusal::Unavailable),
            };
            requests.finish(request, response, now);
        }
        if self.observers.contains_key(&key) {
            self.schedule_check(key, requests, now);
            self.advance(key, requests, now);
        }
    }

    /// Observe 1: answered once the claim is gone.
    pub fn deregister(&mut self, origin: Origin, visitor: Key, requests: &mut Requests, now: Instant) {
        let key = self.registrations.get(&(origin.source, origin.token)).copied();
        let of_visitor = key.filter(|key| self.observers.get(key).is_some_and(|it| it.visitor == visitor));
        let Some(key) = of_visitor else {
            return requests.respond(&origin, Some(visitor), Response::new(Code::CONTENT), now);
        };
        let Some(id) = requests.begin(origin, visitor, Doing::Claiming, now) else { return };
        self.end(key, SessionEnd::ByDevice, requests, now);
        self.ending.entry(key).or_default().push(id);
    }

    /// The claim of an [`Effect::End`] is gone.
    pub fn ended(&mut self, key: ObserverKey, requests: &mut Requests, now: Instant) {
        for request in self.ending.remove(&key).unwrap_or_default() {
            requests.finish(request, Response::new(Code::CONTENT), now);
        }
    }

    /// A call has come for an observer.
    pub fn deliver(&mut self, key: ObserverKey, call: Box<Incoming>, requests: &mut Requests, now: Instant) {
        let Some(observer) = self.observers.get_mut(&key) else {
            let mut over = Target::new(requests.limits.device.target, Numbers::after(0));
            over.deliver(call, now);
            return requests.link.conclude(&mut over);
        };
        observer.target.deliver(call, now);
        self.advance(key, requests, now);
    }

    /// Sends the next call that waits, if none is under way.
    fn advance(&mut self, key: ObserverKey, requests: &mut Requests, now: Instant) {
        let Some(observer) = self.observers.get_mut(&key) else { return };
        if observer.live && !observer.is_notifying() {
            notify(key, observer, &mut self.sequence, requests, now);
        }
        requests.link.conclude(&mut observer.target);
        self.schedule_calls(key);
        self.close_when_drained(key, requests, now);
    }

    /// A confirmable message to an observer has been acknowledged or rejected, when it had been sent again so often.
    pub fn settled(
        &mut self,
        key: ObserverKey,
        id: u16,
        kind: Kind,
        resent: u16,
        requests: &mut Requests,
        now: Instant,
    ) {
        let Some(observer) = self.observers.get_mut(&key) else { return };
        observer.heard_at = now;
        match observer.settled(id, kind == Kind::Reset) {
            Settled::Nothing => {}
            Settled::Taken(number) => observer.target.written(number),
            Settled::InBlocks => {
                let until = now + Duration::from_millis(requests.limits.coap.block_timeout_ms);
                self.timers.push(Reverse((until, Timer::Fetch(key, id))));
            }
            Settled::Rejected(number) => {
                requests.link.tally.count(Event::Rejected);
                if resent == 0 {
                    // Sent once and rejected: the device has not seen it. Sent more than once, it may have taken the
                    // first one and know no more of the observation now.
                    observer.target.rejected(number);
                }
                return self.end(key, SessionEnd::ByDevice, requests, now);
            }
        }
        self.advance(key, requests, now);
    }

    /// A visitor has fetched the last block of the body with this tag.
    pub fn fetched(&mut self, visitor: Key, etag: Option<u32>, requests: &mut Requests, now: Instant) {
        for key in observers_of(visitor, requests) {
            let Some(observer) = self.observers.get_mut(&key) else { continue };
            if let Some((number, unacknowledged)) = observer.fetched(etag) {
                if let Some(id) = unacknowledged {
                    requests.link.messages.settled(observer.registration.0, id);
                }
                observer.target.written(number);
                self.advance(key, requests, now);
            }
        }
    }

    /// A visitor answers a call, from wherever it likes.
    pub fn answer(
        &mut self,
        mut origin: Origin,
        visitor: Key,
        number: u32,
        body: Bytes,
        requests: &mut Requests,
        now: Instant,
    ) {
        let body = if requests.limits.coap.coap_unwrap_response { unwrapped(body) } else { body };
        let Some(key) = self.who_awaits(number, visitor, requests) else {
            return requests.hand_on(origin, visitor, number, body, now);
        };
        // Answered again, the call would be gone: the retransmission must find this answer.
        let Some(_) = requests.remember(&mut origin, Some(visitor), now) else { return };
        let taken = self.take(key, number, &body, requests, now);
        let response = reply::taken(taken);
        if taken != AnswerTaken::Yes {
            return requests.respond(&origin, Some(visitor), response, now);
        }
        if let Some(observer) = self.observers.get_mut(&key) {
            observer.heard_at = now;
        }
        requests.conclude(&origin, visitor, response, now);
        self.advance(key, requests, now);
    }

    /// A visitor's answer to call `number` came to another node. It is not heard of by that: should the way to where it
    /// observes be closed, the next check finds that out.
    pub fn answered_elsewhere(
        &mut self,
        visitor: Key,
        number: u32,
        body: &Bytes,
        requests: &mut Requests,
        now: Instant,
    ) -> AnswerTaken {
        let Some(key) = self.who_awaits(number, visitor, requests) else { return AnswerTaken::NoSuchCall };
        let taken = self.take(key, number, body, requests, now);
        self.advance(key, requests, now);
        taken
    }

    /// The observer of a visitor's that has been given call `number`, and may answer it.
    fn who_awaits(&self, number: u32, visitor: Key, requests: &Requests) -> Option<ObserverKey> {
        observers_of(visitor, requests).into_iter().find(|key| {
            self.observers.get(key).is_some_and(|it| it.over.is_none() && it.target.awaits_answer(number))
        })
    }

    fn take(
        &mut self,
        key: ObserverKey,
        number: u32,
        body: &Bytes,
        requests: &mut Requests,
        now: Instant,
    ) -> AnswerTaken {
        let Some(observer) = self.observers.get_mut(&key) else { return AnswerTaken::NoSuchCall };
        let taken = observer.target.answer(number, body, true, now);
        // Whoever answers has the call, whatever became of the acknowledgement.
        if taken == AnswerTaken::Yes
            && let Some(id) = observer.no_longer_notifies(number)
        {
            requests.link.messages.settled(observer.registration.0, id);
        }
        // Too late for the device, and maybe not for who called.
        requests.link.conclude(&mut observer.target);
        taken
    }

    /// All observations of a visitor end.
    pub fn end_all(&mut self, visitor: Key, end: SessionEnd, requests: &mut Requests, now: Instant) {
        for key in observers_of(visitor, requests) {
            self.end(key, end, requests, now);
        }
    }

    /// Ends an observation, and all calls that are open. If the node does it, the device is told, unless it never heard
    /// that it observes.
    pub fn end(&mut self, key: ObserverKey, end: SessionEnd, requests: &mut Requests, now: Instant) {
        let Some(observer) = self.observers.get_mut(&key) else { return };
        if !observer.live {
            // Its claim is being written, and must be released after that.
            observer.over = Some(end);
            observer.target.falls_silent();
            return requests.link.conclude(&mut observer.target);
        }
        let Some(mut observer) = self.observers.remove(&key) else { return };
        let (source, token) = observer.registration;
        if self.registrations.get(&observer.registration) == Some(&key) {
            self.registrations.remove(&observer.registration);
        }
        if let Some(id) = observer.unacknowledged() {
            requests.link.messages.settled(source, id);
        }
        observer.target.end();
        requests.link.conclude(&mut observer.target);
        self.ending.entry(key).or_default();
        requests.link.effect(Effect::End(key, end));
        if let Some(goodbye) = reply::goodbye(end)
            && observer.over.is_none()
        {
            if end == SessionEnd::ShuttingDown {
                // Nobody will be here to hear of an acknowledgement.
                requests.link.send_once(source, |id| goodbye.write(Kind::NonConfirmable, id, token));
            } else {
                let write = |id| goodbye.write(Kind::Confirmable, id, token);
                requests.link.send_confirmable(Owner::Nobody, source, write, now);
            }
        }
        if let Some(visit) = requests.visitors.get_mut(observer.visitor) {
            visit.observers.retain(|it| *it != key);
        }
        requests.let_go(observer.visitor, now);
    }

    /// A visitor is sent away: each observation of its ends once nothing is in flight; said `again`, nobody new finds
    /// it before that.
    pub fn send_away(&mut self, visitor: Key, again: bool, requests: &mut Requests, now: Instant) {
        for key in observers_of(visitor, requests) {
            if again && self.observers.get(&key).is_some_and(|it| it.live) {
                requests.link.effect(Effect::Release(key));
            }
            self.close_when_drained(key, requests, now);
        }
    }

    fn close_when_drained(&mut self, key: ObserverKey, requests: &mut Requests, now: Instant) {
        let Some(observer) = self.observers.get(&key).filter(|it| it.live && it.is_idle()) else { return };
        if let Some(reason) = requests.visitors.get(observer.visitor).and_then(|it| it.leaves) {
            self.end(key, reason.into(), requests, now);
        }
    }

    /// Time has passed: does what has become due.
    pub fn tick(&mut self, requests: &mut Requests, now: Instant) {
        while let Some(&Reverse((at, timer))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            match timer {
                Timer::Calls(key) => self.expire_calls(key, requests, now),
                Timer::Fetch(key, id) => {
                    if self.observers.get_mut(&key).is_some_and(|it| it.was_not_fetched(id)) {
                        self.advance(key, requests, now);
                    }
                }
                Timer::Check(key) => self.check(key, requests, now),
            }
        }
    }

    /// When to call [`tick`](Self::tick) next.
    pub fn next_wake(&mut self) -> Option<Instant> {
        while let Some(Reverse((at, timer))) = self.timers.peek() {
            let (Timer::Calls(key) | Timer::Fetch(key, _) | Timer::Check(key)) = timer;
            if self.observers.contains_key(key) {
                return Some(*at);
            }
            self.timers.pop();
        }
        None
    }

    fn expire_calls(&mut self, key: ObserverKey, requests: &mut Requests, now: Instant) {
        let Some(observer) = self.observers.get_mut(&key) else { return };
        observer.target.expire(now);
        observer.expiry_timer = None;
        if let Some(id) = observer.call_ran_out() {
            // What is sent on is a ping, so that a device that is gone is still found out; a call takes its place.
            let write = |id| codec::empty(Kind::Confirmable, id);
            let ping = requests.link.messages.replace(observer.registration.0, id, write);
            observer.pings(ping.map(|(id, _)| id));
        }
        self.advance(key, requests, now);
    }

    fn check(&mut self, key: ObserverKey, requests: &mut Requests, now: Instant) {
        let Some(observer) = self.observers.get_mut(&key) else { return };
        let idle = Duration::from_millis(requests.limits.coap.observe_check_ms);
        if observer.heard_at + idle <= now && observer.unacknowledged().is_none() {
            let write = |id| codec::empty(Kind::Confirmable, id);
            let (owner, source) = (Owner::Observer(key), observer.registration.0);
            observer.pings(Some(requests.link.send_confirmable(owner, source, write, now)));
            observer.heard_at = now;
        }
        self.schedule_check(key, requests, now);
    }

    fn schedule_check(&mut self, key: ObserverKey, requests: &Requests, now: Instant) {
        let idle_ms = requests.limits.coap.observe_check_ms;
        if idle_ms > 0
            && let Some(observer) = self.observers.get(&key)
        {
            let at = (observer.heard_at + Duration::from_millis(idle_ms)).max(now + Duration::from_millis(1));
            self.timers.push(Reverse((at, Timer::Check(key))));
        }
    }

    fn schedule_calls(&mut self, key: ObserverKey) {
        if let Some(observer) = self.observers.get_mut(&key)
            && let Some(expiry) = observer.target.next_expiry()
            && observer.expiry_timer.is_none_or(|set| expiry < set)
        {
            observer.expiry_timer = Some(expiry);
            self.timers.push(Reverse((expiry, Timer::Calls(key))));
        }
    }
}

/// Sends an observer its next call, if one waits.
fn notify(
    key: ObserverKey,
    observer: &mut Observer,
    sequence: &mut Sequence,
    requests: &mut Requests,
    now: Instant,
) {
    let Some((number, call)) = observer.target.next(now) else { return };
    let mut whole =
        Response::json(Code::CONTENT, call.message(Some(number), requests.limits.device.tells_caller, now));
    let block = Block { exponent: observer.exponent, ..LARGEST_BLOCK };
    let (source, token) = observer.registration;
    let link = &mut requests.link;
    let in_blocks = whole.payload.len() > block.bytes();
    if in_blocks {
        // RFC 7959 §2.6, §3.4: the notification is the first block; the device fetches the others by GET.
        whole.etag = Some(link.random.number() as u32);
        let (visitor, method, resource) = (observer.visitor, Code::GET, Resource::Rpc);
        let body = TransferKey { visitor, source, method, resource, tag: None, upload: false };
        link.transfers.offer(body, whole.clone(), now);
        whole = part(&whole, block).unwrap_or(whole);
    }
    let notification = Response { observe: Some(sequence.next(now)), ..whole };
    let write = |id| notification.write(Kind::Confirmable, id, token);
    let id = match observer.ping().and_then(|ping| link.messages.replace(source, ping, write)) {
        Some((id, datagram)) => {
            link.send(source, datagram);
            id
        }
        None => link.send_confirmable(Owner::Observer(key), source, write, now),
    };
    observer.notifies(id, number, in_blocks.then_some(notification.etag).flatten());
    link.tally.count(Event::Notification);
}

fn observers_of(visitor: Key, requests: &Requests) -> Vec<ObserverKey> {
    requests.visitors.get(visitor).map(|it| it.observers.clone()).unwrap_or_default()
}

/// The inner value of `{"response":…}`; anything else as it is.
fn unwrapped(body: Bytes) -> Bytes {
    #[derive(serde::Deserialize)]
    struct Wrapped<'a> {
        #[serde(borrow)]
        response: &'a serde_json::value::RawValue,
    }
    let is_object = body.trim_ascii_start().starts_with(b"{");
    match serde_json::from_slice::<Wrapped<'_>>(&body) {
        Ok(wrapped) if is_object => body.slice_ref(wrapped.response.get().as_bytes()),
        _ => body,
    }
}

#[cfg(test)]
#[path = "observations_tests.rs"]
mod tests;
