//! Was everything kept that is promised? A history is judged against a small model of who was connected, who belonged
//! to whom, and what was broken when. It knows nothing of routers, claims or NATS.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

use crate::history::{End, Ending, Entry, Event};
use crate::message::{MS, Micros, SECOND};
use crate::settings::{HANDOVER, LEASE_US, OUTCOME_GRACE};

/// A promise, as the map of the services has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Promise {
    /// A call reaches its target once or not at all.
    AtMostOnce,
    /// An outcome that promises that the target never saw the call is true.
    Unseen,
    /// Offline is never a guess.
    OfflineIsTrue,
    /// Who is on his way from one node to another is waited for.
    MovingIsAwaited,
    /// Lost is said of sessions that have ended.
    LostIsTrue,
    /// Who may call is not denied.
    DeniedIsTrue,
    /// An answer is the one to that call.
    AnswerIsTrue,
    /// The newest session wins, and the older ones end.
    NewestWins,
    /// Every call ends in its time.
    BoundedWait,
    /// A call whose time is over is not carried out.
    NotTooLate,
    /// A change of the registry is in force two seconds later.
    ChangeInForce,
    /// Who is connected can be called, a lease after the last fault.
    Callable,
    /// Where nothing has been wrong for a lease, a call comes to its target, also to one that comes while it is waited
    /// for; and that a process stops, while another of its kind serves, is nothing wrong.
    Served,
    /// Who is cut off from the others knows it: calls end at once.
    CutIsNoticed,
    /// Nobody without a token is called, or calls.
    NoThief,
    /// Nothing is left behind.
    NothingLeft,
}

/// A promise that was not kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub promise: Promise,
    /// When it showed.
    pub at: Micros,
    /// How.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { promise, at, what } = self;
        write!(f, "{promise:?}, at {}: {what}", crate::transition::Seconds(*at))
    }
}

/// So long after a change no authorizer may decide without it.
const IN_FORCE: Micros = 2 * SECOND;
/// What a call may come late by: a gap in the pulse is noticed from 1.5 s on, and there are three hops.
const LATE: Micros = 2 * SECOND;
/// What a call takes in quiet times, with slow links and a slow store, beside the way between a device and its node.
const TAKES: Micros = 500 * MS;
/// So long after a cable is pulled it has been noticed: two messages to itself that have not come back.
const NOTICED: Micros = 4 * SECOND;

/// What a history was made under.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// How long a node's lease lasts, in microseconds.
    pub lease: Micros,
    /// How long the way from a device to its node and back may take, and its own part in it, in microseconds.
    pub latency: Micros,
}

impl Default for Terms {
    /// Those of simulated runs.
    fn default() -> Self {
        Terms { lease: LEASE_US, latency: 200 * MS }
    }
}

impl Terms {
    /// A fault of a node that lasts this long may cost it its lease.
    fn costs_lease(&self) -> Micros {
        self.lease.saturating_sub(self.lease / 3 + SECOND)
    }
}

#[derive(Debug, Clone, Copy)]
struct Session {
    device: usize,
    node: usize,
    connecting: Micros,
    callable: Option<Micros>,
    over: Option<Micros>,
    reason: Option<End>,
}

impl Session {
    /// Whether it certainly stood all that time.
    fn stood(&self, from: Micros, to: Micros) -> bool {
        self.callable.is_some_and(|callable| callable <= from) && self.over.is_none_or(|over| over > to)
    }

    /// Whether it is certainly older than another.
    fn is_older_than(&self, other: &Session) -> bool {
        self.callable.is_some_and(|callable| callable < other.connecting)
    }
}

#[derive(Debug, Clone, Default)]
struct Call {
    called: Micros,
    caller: usize,
    target: usize,
    timeout_ms: u32,
    connect_timeout_ms: u32,
    must_succeed: bool,
    allowed: Vec<Micros>,
    executed: Vec<(Micros, usize)>,
    ended: Option<(Micros, Ending, bool)>,
    given_up: bool,
}

/// What there is to know of a run, by what it is about.
#[derive(Debug, Default)]
struct Known {
    terms: Terms,
    sessions: BTreeMap<usize, Session>,
    calls: BTreeMap<usize, Call>,
    forged: BTreeMap<usize, Call>,
    customers: BTreeMap<usize, Vec<(Micros, Option<u8>)>>,
    faults: Vec<(Option<usize>, Micros, Micros)>,
    /// What was sent then may come much later: the socket of a connection that was given up still sends.
    held: Vec<(Option<usize>, Micros, Micros)>,
    /// When something was wrong that anybody may notice.
    disturbed: Vec<(Micros, Micros)>,
    /// When the store lost its claims, and whether its numbers began anew.
    lost: Vec<(Micros, bool)>,
    healed: Option<Micros>,
    leaks: usize,
    ends: Micros,
}

/// All promises that were not kept.
pub fn check(history: &[Entry], terms: Terms) -> Vec<Violation> {
    let known = Known::of(history, terms);
    let mut violations = Vec::new();
    let mut broken = |promise, at, what: String| violations.push(Violation { promise, at, what });
    for (id, call) in &known.calls {
        known.check_call(*id, call, &mut broken);
    }
    for (id, call) in &known.forged {
        if let Some((at, _)) = call.executed.first() {
            broken(Promise::NoThief, *at, format!("the thief's call {id} is executed"));
        }
    }
    known.check_sessions(&mut broken);
    if known.leaks > 0 {
        broken(Promise::NothingLeft, known.ends, format!("{} things are left behind", known.leaks));
    }
    violations
}

impl Known {
    fn of(history: &[Entry], terms: Terms) -> Known {
        let mut known = Known { terms, ..Known::default() };
        for &Entry { at, event } in history {
            known.ends = at;
            match event {
                Event::Connecting { device, session, node } => {
                    let begun =
                        Session { device, node, connecting: at, callable: None, over: None, reason: None };
                    known.sessions.insert(session, begun);
                }
                Event::Callable { session } => {
                    if let Some(session) = known.sessions.get_mut(&session) {
                        session.callable = Some(at);
                    }
                }
                Event::Over { session, reason } => {
                    if let Some(session) = known.sessions.get_mut(&session) {
                        (session.over, session.reason) = (Some(at), reason);
                    }
                }
                Event::Called { call, caller, target, timeout_ms, connect_timeout_ms, must_succeed } => {
                    let begun = Call {
                        called: at,
                        caller,
                        target,
                        timeout_ms,
                        connect_timeout_ms,
                        must_succeed,
                        ..Call::default()
                    };
                    known.calls.insert(call, begun);
                }
                Event::Allowed { call } => known.call(call).allowed.push(at),
                Event::Executed { call, session } => known.call(call).executed.push((at, session)),
                Event::Ended { call, outcome, is_its_answer } => {
                    known.call(call).ended = Some((at, outcome, is_its_answer));
                }
                Event::GaveUp { call } => known.call(call).given_up = true,
                Event::Assigned { device, customer } => {
                    known.customers.entry(device).or_default().push((at, customer));
                }
                Event::Faulty { process, until, holds, is_graceful } => {
                    known.faults.push((process, at, until));
                    if !is_graceful {
                        known.disturbed.push((at, until));
                    }
                    if holds {
                        known.held.push((process, at, until));
                    }
                }
                Event::ClaimsLost { begins_anew } => {
                    known.lost.push((at, begins_anew));
                    known.disturbed.push((at, at));
                }
                Event::Forged { .. } => {}
                Event::Healed => known.healed = Some(at),
                Event::Leaked => known.leaks += 1,
            }
        }
        known
    }

    /// A call; one that nobody has begun is a thief's.
    fn call(&mut self, call: usize) -> &mut Call {
        match self.calls.contains_key(&call) {
            true => self.calls.entry(call).or_default(),
            false => self.forged.entry(call).or_default(),
        }
    }

    fn check_call(&self, id: usize, call: &Call, broken: &mut impl FnMut(Promise, Micros, String)) {
        let Call { called, caller, target, timeout_ms, executed, .. } = call;
        let about = format!("call {id} from D{caller} to D{target}");
        if let Some((at, session)) = executed.get(1) {
            broken(Promise::AtMostOnce, *at, format!("{about} is executed again, by connection {session}"));
        }
        for (at, session) in executed {
            if *session == crate::world::THIEF {
                broken(Promise::NoThief, *at, format!("{about} comes to the thief"));
            } else if self.sessions.get(session).is_some_and(|session| session.device != *target) {
                broken(Promise::NoThief, *at, format!("{about} comes to another device"));
            }
        }
        let time = Micros::from(*timeout_ms) * MS;
        // What a node that sleeps has not read, it cannot know how old it is.
        let unread = |at| self.slept(self.node_of_newest(*caller, *called), *called, at);
        if let Some((at, _)) = executed.first()
            && *at > called + time + LATE + unread(*at)
        {
            let late = at - called - time;
            broken(Promise::NotTooLate, *at, format!("{about} is executed {} ms after its time", late / MS));
        }
        // No earlier than it was made was a call let pass: where nobody looks into authorizers, this is what is known.
        if let Some((at, _)) = executed.first()
            && !self.could_call(*caller, *target, called.saturating_sub(IN_FORCE + self.terms.latency), *at)
        {
            let what = format!("{about} is executed though the registry has forbidden it for more than 2 s");
            broken(Promise::ChangeInForce, *at, what);
        }
        for allowed in &call.allowed {
            if !self.could_call(*caller, *target, allowed.saturating_sub(IN_FORCE), *allowed) {
                let what = format!("{about} is let pass though the registry forbids it for more than 2 s");
                broken(Promise::ChangeInForce, *allowed, what);
            }
        }
        let Some((ended, outcome, is_its_answer)) = call.ended else {
            if !call.given_up {
                broken(Promise::BoundedWait, self.ends, format!("{about} never ends"));
            }
            return;
        };
        let caller_slept = self.slept(self.node_of_newest(*caller, *called), *called, ended);
        if ended > called + time + OUTCOME_GRACE + self.terms.latency + caller_slept {
            broken(Promise::BoundedWait, ended, format!("{about} takes {} ms", (ended - called) / MS));
        }
        if outcome.promises_unseen()
            && let Some((at, _)) = executed.first()
        {
            broken(Promise::Unseen, *at, format!("{about} ends {outcome:?} and is executed"));
        }
        match outcome {
            Ending::Answered if executed.is_empty() || !is_its_answer => {
                broken(Promise::AnswerIsTrue, ended, format!("{about} has an answer that is not its"));
            }
            Ending::Offline => {
                if let Some(session) = self.certainly_callable(*target, *called, ended) {
                    let what = format!("{about} ends Offline while connection {session} stands");
                    broken(Promise::OfflineIsTrue, ended, what);
                }
                if let Some(session) = self.is_moving(*target, (*called, *timeout_ms), ended) {
                    let what = format!("{about} ends Offline though connection {session} was just sent away");
                    broken(Promise::MovingIsAwaited, ended, what);
                }
            }
            Ending::Lost => {
                if let Some(session) = self.certainly_callable(*target, *called, ended) {
                    let what = format!("{about} ends Lost while connection {session} stands");
                    broken(Promise::LostIsTrue, ended, what);
                }
            }
            Ending::Denied | Ending::UnknownDevice
                if self.may_call_throughout(*caller, *target, called.saturating_sub(IN_FORCE), ended) =>
            {
                broken(Promise::DeniedIsTrue, ended, format!("{about} ends {outcome:?}, and was allowed"));
            }
            _ => {}
        }
        self.check_served(&about, call, (ended, outcome), broken);
        let still =
            |device: usize| self.sessions.values().any(|it| it.device == device && it.stood(*called, ended));
        if call.must_succeed && outcome != Ending::Answered && still(*target) && still(*caller) {
            broken(Promise::Callable, ended, format!("{about} ends {outcome:?} though all is well"));
        }
    }

    fn check_served(
        &self,
        about: &str,
        call: &Call,
        (ended, outcome): (Micros, Ending),
        broken: &mut impl FnMut(Promise, Micros, String),
    ) {
        let Call { called, caller, target, timeout_ms, connect_timeout_ms, executed, .. } = call;
        let in_time = |ms: u32| (called + Micros::from(ms) * MS).saturating_sub(TAKES + self.terms.latency);
        let caller_node = self.node_of_newest(*caller, *called);
        let stays = self
            .sessions
            .values()
            .any(|it| it.device == *caller && it.stood(*called, ended + self.terms.latency));
        let cut = self.held.iter().filter(|(process, ..)| process.is_some() && *process == caller_node);
        for (_, begin, end) in cut {
            let is_cut = begin + NOTICED < *called && *called + self.terms.latency < *end;
            let of_it = self.faults.iter().filter(|(process, ..)| *process == caller_node);
            let is_only_cut = of_it.filter(|(_, from, to)| *from < ended && to > begin).count() == 1;
            if is_cut && is_only_cut && stays && ended > called + self.terms.latency {
                broken(Promise::CutIsNoticed, ended, format!("{about} waits at a node that is cut off"));
            }
        }
        let is_quiet = self
            .disturbed
            .iter()
            .all(|(begin, end)| ended < *begin || end + self.terms.lease + 2 * SECOND < *called);
        let may = self.may_call_throughout(*caller, *target, called.saturating_sub(IN_FORCE), ended);
        let comes = self.sessions.iter().find(|(id, session)| {
            let others = self.sessions.iter().filter(|(it, other)| it != id && other.device == *target);
            let is_alone = others.clone().all(|(_, it)| {
                it.connecting > ended || it.over.is_some_and(|over| over + self.terms.latency < *called)
            });
            session.device == *target
                && is_alone
                && session.callable.is_some_and(|at| {
                    at <= in_time(*timeout_ms)
                        && (at <= *called || at <= in_time(*connect_timeout_ms))
                        && session.stood(at, ended.max(called + Micros::from(*timeout_ms) * MS))
                })
        });
        if let Some((session, _)) = comes
            && is_quiet
            && may
            && stays
            && in_time(*timeout_ms) >= *called
            && (executed.is_empty() || !matches!(outcome, Ending::Answered | Ending::TimedOut))
        {
            let what =
                format!("{about} ends {outcome:?} though connection {session} is there, and all is well");
            broken(Promise::Served, ended, what);
        }
    }

    fn check_sessions(&self, broken: &mut impl FnMut(Promise, Micros, String)) {
        for (id, session) in &self.sessions {
            let others =
                || self.sessions.iter().filter(|(it, other)| *it != id && other.device == session.device);
            if let (Some(End::TakenOver), Some(over)) = (session.reason, session.over) {
                let begun = |other: &Session| other.connecting < over;
                let may_win = |other: &Session| {
                    !other.is_older_than(session) || self.number_was_forgotten(other, session)
                };
                if !others().any(|(_, other)| begun(other) && may_win(other)) {
                    let what =
                        format!("connection {id} of D{} is taken over by an older one", session.device);
                    broken(Promise::NewestWins, over, what);
                }
            }
            // A lease after the last fault no two stand.
            let Some(healed) = self.healed else { continue };
            let at = healed + self.terms.lease + 2 * SECOND;
            if let Some((other, _)) =
                others().find(|(other, it)| id < *other && it.stood(at - 2 * SECOND, at))
                && session.stood(at - 2 * SECOND, at)
            {
                let what = format!("connections {id} and {other} of D{} stand both", session.device);
                broken(Promise::NewestWins, at, what);
            }
        }
    }

    /// Whether nobody could know how high the older one's number was when the newer one got its own. The store counts
    /// anew: since a moment ago, so that who gave the newer one its number has not heard of it; or since its node could
    /// not be heard, and something happened to another process, a router that knew perhaps.
    fn number_was_forgotten(&self, older: &Session, newer: &Session) -> bool {
        self.lost.iter().any(|(lost, begins_anew)| {
            let between = |(_, begin, end): &&(Option<usize>, Micros, Micros)| {
                *begin < newer.connecting && end + SECOND > *lost
            };
            let mut faults = self.faults.iter().filter(between).map(|(process, ..)| *process);
            let unheard = |(process, begin, end): &(Option<usize>, Micros, Micros)| {
                *process == Some(older.node) && *begin < newer.connecting && *end > newer.connecting
            };
            let is_unheard = older.callable.is_some_and(|callable| callable < *lost)
                && self.faults.iter().any(unheard)
                && faults.any(|process| process.is_some() && process != Some(older.node));
            *begins_anew && *lost < newer.connecting && (is_unheard || newer.connecting < lost + 2 * SECOND)
        })
    }

    /// A connection through which the device could certainly be called all that time: the only one near it, on a node
    /// to which nothing happened that could have cost it its lease.
    fn certainly_callable(&self, device: usize, from: Micros, to: Micros) -> Option<usize> {
        let (id, session) = self
            .sessions
            .iter()
            .find(|(_, it)| it.device == device && it.stood(from, to + self.terms.latency))?;
        let near = from.saturating_sub(SECOND);
        // Who is newer has taken over, also when it has not heard so yet.
        let is_alone = self.sessions.iter().all(|(other, it)| {
            let is_newer = it.connecting > session.connecting;
            other == id
                || it.device != device
                || match is_newer {
                    true => it.connecting > to,
                    false => it.over.is_some_and(|over| over < near),
                }
        });
        // What the store has lost its node alone knows: for as long as that cannot be heard, nobody knows. Where it
        // counts anew besides, a number of before may be a newer claim's, which is removed for it: until its node has
        // compared.
        let is_known = self.lost.iter().all(|(lost, begins_anew)| {
            let unheard = self.faults.iter().filter(|(process, begin, end)| {
                *process == Some(session.node) && begin < &to && end + SECOND > *lost
            });
            let heard = unheard.map(|(.., end)| *end).chain(begins_anew.then_some(*lost)).max();
            to < *lost || heard.is_none_or(|heard| from > heard + self.terms.lease)
        });
        let is_well = self.faults.iter().all(|(process, begin, end)| {
            *process != Some(session.node)
                || end - begin < self.terms.costs_lease()
                || to < *begin
                || from > end + self.terms.lease + 2 * SECOND
        });
        // Faults that come one upon the other may add up.
        let of_node: Micros = self
            .faults
            .iter()
            .filter(|(process, ..)| *process == Some(session.node))
            .map(|(_, begin, end)| end - begin)
            .sum();
        (is_alone && is_known && is_well && of_node < self.terms.costs_lease()).then_some(*id)
    }

    /// The connection through which the device was connected last, if its node sent it away so lately that it was still
    /// to be waited for, and nothing else was wrong.
    fn is_moving(&self, device: usize, (called, timeout_ms): (Micros, u32), ended: Micros) -> Option<usize> {
        let of_device = self.sessions.iter().filter(|(_, it)| it.device == device && it.connecting < ended);
        let (id, last) = of_device.max_by_key(|(_, it)| it.connecting)?;
        let over = last.over.filter(|_| matches!(last.reason, Some(End::Moved | End::ShuttingDown)))?;
        // Its device hears of it a little later than its routers.
        let expected = (HANDOVER.as_micros() as Micros).saturating_sub(SECOND);
        let had_time = ended + TAKES < called + Micros::from(timeout_ms) * MS;
        let is_quiet = self.faults.iter().all(|(process, begin, end)| {
            *process == Some(last.node) && last.reason == Some(End::ShuttingDown)
                || ended < *begin
                || end + self.terms.lease + 2 * SECOND < over
        });
        (over <= ended && ended < over + expected && had_time && is_quiet).then_some(*id)
    }

    fn node_of_newest(&self, device: usize, at: Micros) -> Option<usize> {
        let stands = |it: &&Session| it.device == device && it.stood(at, at);
        self.sessions.values().rfind(stands).map(|session| session.node)
    }

    /// How long a process was asleep, or what it sent held up, in that time.
    fn slept(&self, process: Option<usize>, from: Micros, to: Micros) -> Micros {
        let of_it = self.faults.iter().filter(|(it, ..)| it.is_some() && *it == process);
        of_it.map(|(_, begin, end)| end.min(&to).saturating_sub(*begin.max(&from)) + self.terms.latency).sum()
    }

    fn customer(&self, device: usize, at: Micros) -> Option<u8> {
        let changes = self.customers.get(&device)?;
        changes.iter().rev().find(|(changed, _)| *changed <= at)?.1
    }

    fn moments(&self, caller: usize, target: usize, from: Micros, to: Micros) -> Vec<Micros> {
        let changes = [caller, target].into_iter().filter_map(|device| self.customers.get(&device)).flatten();
        let within = changes.map(|(at, _)| *at).filter(|at| *at > from && *at <= to);
        within.chain([from]).collect()
    }

    /// Whether the registry let the one call the other at some moment of that time.
    fn could_call(&self, caller: usize, target: usize, from: Micros, to: Micros) -> bool {
        self.moments(caller, target, from, to).into_iter().any(|at| self.may_call(caller, target, at))
    }

    /// Whether it did at each.
    fn may_call_throughout(&self, caller: usize, target: usize, from: Micros, to: Micros) -> bool {
        self.moments(caller, target, from, to).into_iter().all(|at| self.may_call(caller, target, at))
    }

    fn may_call(&self, caller: usize, target: usize, at: Micros) -> bool {
        let of_caller = self.customer(caller, at);
        of_caller.is_some() && of_caller == self.customer(target, at)
    }
}
