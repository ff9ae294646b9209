//! What is a router to do next? Calls and claims in, the store's and the nodes' words in, and out comes what is to be
//! done: no await, no clock. [`Core`] decides, the rest of the crate performs.
//!
//! Drive it so: whatever is told to it adds to `actions`; perform those in order, and tell it how each went. Call
//! [`tick`](Core::tick) at [`next_tick`](Core::next_tick) at the latest.

mod claims;
mod doubts;
mod leases;
mod map;
mod markers;
mod moving;
mod takeovers;
mod waiting;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rpc::faults::{Fault, is};
use rpc::{
    CallId, CancelRequest, Claim, ClaimReply, ClaimRequest, CompareReply, CompareRequest, Deadline, DeviceId,
    Generation, LeaseRenewal, Limit, NoPlace, NodeId, Outcome, Party, Place, ReleaseRequest, SessionEnd,
    Shares, Whereabouts,
};

pub use claims::{Decision, decide};
use doubts::Doubts;
pub use leases::Leases;
pub use map::{ClaimMap, Found};
use markers::Markers;
use moving::Moving;
use takeovers::Takeovers;
use waiting::WaitingRoom;

/// How many claims of one target are tried; each but the last was found to lead nowhere.
const MAX_DELIVERIES: usize = 4;
/// How often a claim is tried when others of the device come in between.
const MAX_ATTEMPTS: u32 = 16;
/// The first pause before a node that reconnects is tried again; doubled each time.
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// The longest one.
const LAST_RETRY: Duration = Duration::from_millis(1_000);
/// The longest time between two ticks, and how many there are at least in a lease: who looks less often has slept.
const TICK: Duration = Duration::from_secs(1);
const TICKS_A_LEASE: u32 = 6;
/// Claims of dead nodes that are removed at a time, and the pause after them: a node's death is no load for the store.
const SWEEP_BATCH: usize = 16;
const SWEEP_PAUSE: Duration = Duration::from_millis(2);

/// A call in the router's hands. `T` is what it takes to deliver and to answer it.
#[derive(Debug)]
pub struct Underway<T> {
    /// Its id.
    pub id: CallId,
    /// Whom it is for.
    pub target: DeviceId,
    /// When its time is over.
    pub deadline: Deadline,
    /// Until when a target that is not there is waited for.
    pub connect_deadline: Deadline,
    /// In whose share it is.
    pub party: Party,
    /// It has waited since it was judged: what allowed it may hold no more.
    pub has_waited: bool,
    /// Claims that led to no session.
    refuted: Vec<Found>,
    /// A claim whose node did not respond though its lease stands, and the pause before it is tried again.
    unheard: Option<(Found, Duration)>,
    /// The store has no claim that stands here, and has not told its end: the pause before it is asked again.
    untold: Option<Duration>,
    /// Of those that wait for their target to come, while it does.
    place: Option<Place<Party>>,
    /// The rest.
    pub payload: T,
}

impl<T> Underway<T> {
    /// A call that has just come in.
    pub fn new(
        id: CallId,
        target: DeviceId,
        party: Party,
        (deadline, connect_deadline): (Deadline, Deadline),
        payload: T,
    ) -> Self {
        let connect_deadline = connect_deadline.min(deadline);
        let (refuted, unheard, untold, has_waited, place) = (Vec::new(), None, None, false, None);
        Underway {
            id,
            target,
            party,
            deadline,
            connect_deadline,
            has_waited,
            refuted,
            unheard,
            untold,
            place,
            payload,
        }
    }

    fn has_refuted(&self, found: Found) -> bool {
        self.refuted.contains(&found)
    }
}

/// Why a claim led to no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refutation {
    /// The node says that it has no such session.
    NoSession,
    /// Nobody listens as that node.
    NoNode,
}

/// What stands under a device in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The claim; none where none can be read.
    pub claim: Option<Claim>,
    /// What a write is to expect there.
    pub expected: Expected,
}

/// What must stand in the store for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Nothing,
    /// This writing.
    Revision(u64),
}

/// Why the store did not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotWritten {
    /// Something else stands there.
    Contended,
    /// It did not answer; it may have.
    Unavailable,
}

/// A claim that is being written. `R` is what its answer goes to.
#[derive(Debug)]
pub struct Claiming<R> {
    /// What was asked.
    pub request: ClaimRequest,
    /// When its node gives up.
    pub deadline: Instant,
    attempts: u32,
    reply_to: R,
}

/// A write that is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Write {
    /// What is written.
    pub claim: Claim,
    /// Over what.
    pub expected: Expected,
    taken_over: Option<Claim>,
    /// The store's last number that was heard of before.
    above: u64,
}

/// Why a claim is removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// Its session has ended and its node said so, and why, if it still knew.
    Released(Option<SessionEnd>),
    /// Its session was found to have ended.
    SessionGone,
    /// Its node is gone.
    NodeGone,
}

/// What is to be done.
#[derive(Debug)]
pub enum Action<T, R> {
    /// Ask the claim's node; then [`Core::refuted`], or the call has its outcome.
    Deliver(Underway<T>, Found),
    /// Read the target's claim in the store; then [`Core::looked_up`].
    LookUp(Underway<T>),
    /// Answer the caller.
    End(Underway<T>, Outcome),
    /// Write a claim; then [`Core::written`].
    Write(Claiming<R>, Write),
    /// Read what stands there; then [`Core::read`].
    Read(Claiming<R>),
    /// Answer the node.
    Reply(R, ClaimReply),
    /// Tell its node that this session has been taken over.
    TakeOver(DeviceId, Claim),
    /// Remove this writing of a claim; then [`Core::removed`].
    Remove(DeviceId, Found, Removal),
    /// Tell the node that its claims are known otherwise.
    TellDiffers(NodeId),
}

/// One router's knowledge, and what it does with it.
#[derive(Debug)]
pub struct Core<T, R> {
    map: ClaimMap,
    markers: Markers,
    leases: Leases,
    doubts: Doubts,
    moving: Moving,
    waiting: WaitingRoom<T>,
    /// For those that wait for their target to come.
    places: Shares<Party>,
    takeovers: Takeovers,
    sweep: VecDeque<(DeviceId, u64)>,
    next_sweep: Instant,
    next_look_for_dead: Instant,
    replies: std::marker::PhantomData<R>,
}

/// Where [`Action`]s are added.
pub type Actions<T, R> = Vec<Action<T, R>>;

impl<T, R> Core<T, R> {
    /// Knows nothing yet; for as long as `handover` a device is expected that its node has sent away; `places` are for
    /// calls that wait for their target to come.
    pub fn new(lease: Duration, handover: Duration, places: Shares<Party>, now: Instant) -> Self {
        Core {
            map: ClaimMap::default(),
            markers: Markers::default(),
            leases: Leases::new(lease, now),
            doubts: Doubts::new(now + lease),
            moving: Moving::new(handover),
            waiting: WaitingRoom::default(),
            places,
            takeovers: Takeovers::default(),
            sweep: VecDeque::new(),
            next_sweep: now,
            next_look_for_dead: now + lease / 4,
            replies: std::marker::PhantomData,
        }
    }

    /// The claims that it knows.
    pub fn map(&self) -> &ClaimMap {
        &self.map
    }

    /// The leases that it knows.
    pub fn leases(&self) -> &Leases {
        &self.leases
    }

    /// How many calls wait for their target.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    // Calls.

    /// A call is to be brought to its target.
    pub fn call(&mut self, mut call: Underway<T>, now: Instant, actions: &mut Actions<T, R>) {
        call.place = None;
        if call.deadline.has_passed(now) {
            // Its caller's node has given up. Nothing was delivered, and nothing is said of the target.
            return actions.push(Action::End(call, Outcome::Unavailable));
        }
        if call.refuted.len() >= MAX_DELIVERIES {
            return self.end_not_found(call, now, actions);
        }
        match self.map.get(call.target).filter(|found| !call.has_refuted(*found)) {
            Some(found) => actions.push(Action::Deliver(call, found)),
            None if is(Fault::MissIsOffline) => actions.push(Action::End(call, Outcome::Offline)),
            None => actions.push(Action::LookUp(call)),
        }
    }

    /// A call that was judged again is still allowed; it was to go to `found`.
    pub fn allowed(&mut self, call: Underway<T>, found: Found, now: Instant, actions: &mut Actions<T, R>) {
        let is_current = self.map.get(call.target).is_none() && !call.has_refuted(found);
        if is_current && !call.deadline.has_passed(now) {
            // Known from the store alone. To look it up again may take longer than a verdict holds, each time.
            return actions.push(Action::Deliver(call, found));
        }
        self.call(call, now, actions);
    }

    /// `found` led to no session: nothing was delivered.
    pub fn refuted(
        &mut self,
        mut call: Underway<T>,
        found: Found,
        by: Refutation,
        now: Instant,
        actions: &mut Actions<T, R>,
    ) {
        let may_live = self.leases.may_live(found.claim.node, now) && !is(Fault::NoRespondersIsOffline);
        if by == Refutation::NoNode && may_live {
            // It reconnects, or its lease is about to end: no word of the device's absence.
            let pause = match call.unheard {
                Some((unheard, pause)) if unheard == found => (pause * 2).min(LAST_RETRY),
                _ => FIRST_RETRY,
            };
            call.unheard = Some((found, pause));
            let look_at = (now + pause).min(call.deadline.instant());
            return self.waiting.enter(call, look_at);
        }
        self.moving.left(call.target, found.claim.node, now);
        call.unheard = None;
        call.refuted.push(found);
        self.call(call, now, actions);
    }

    /// What the store has of the target's claim; an error when it did not say.
    pub fn looked_up(
        &mut self,
        mut call: Underway<T>,
        stored: Result<Option<Found>, ()>,
        now: Instant,
        actions: &mut Actions<T, R>,
    ) {
        let Ok(stored) = stored else { return actions.push(Action::End(call, Outcome::Unavailable)) };
        let stands_here = || self.map.standing(call.target).is_some_and(|it| call.has_refuted(it));
        let is_untold = stored.is_none() && stands_here() && self.moving.until(call.target).is_none();
        if is_untold {
            // Its feed is behind the store by a moment; or silent, and the store has lost what stands here, and may
            // lack what it has not told either.
            let pause = call.untold.map_or(FIRST_RETRY, |pause| (pause * 2).min(LAST_RETRY));
            call.untold = Some(pause);
            let look_at = (now + pause).min(call.deadline.instant());
            return self.waiting.enter(call, look_at);
        }
        call.untold = None;
        for refuted in &call.refuted {
            if stored == Some(*refuted) {
                // So that the next call need not find out again.
                let is_gone = !self.leases.may_live(refuted.claim.node, now);
                let why = if is_gone { Removal::NodeGone } else { Removal::SessionGone };
                actions.push(Action::Remove(call.target, *refuted, why));
            } else {
                self.map.forget(call.target, refuted.revision);
            }
        }
        match stored.filter(|stored| !call.has_refuted(*stored)) {
            Some(found) => actions.push(Action::Deliver(call, found)),
            None => self.await_arrival(call, now, actions),
        }
    }

    /// Nobody claims the target: waited for, if the caller does, or while it moves from one node to another.
    fn await_arrival(&mut self, mut call: Underway<T>, now: Instant, actions: &mut Actions<T, R>) {
        // It may have arrived while the store was asked.
        if let Some(found) = self.map.get(call.target).filter(|found| !call.has_refuted(*found)) {
            return actions.push(Action::Deliver(call, found));
        }
        let arrives = self.moving.may_come_until(call.target).unwrap_or(now).min(call.deadline.instant());
        let look_at = call.connect_deadline.instant().max(arrives);
        if look_at <= now {
            return self.end_not_found(call, now, actions);
        }
        call.place = match self.places.take(call.party) {
            Ok(place) => Some(place),
            Err(NoPlace::Part) => {
                return actions.push(Action::End(call, Outcome::Busy(Limit::CustomerWaits)));
            }
            Err(NoPlace::Any) => return actions.push(Action::End(call, Outcome::Busy(Limit::Waits))),
        };
        self.waiting.enter(call, look_at);
    }

    /// Nobody claims the target, as far as is known here.
    fn end_not_found(&self, call: Underway<T>, now: Instant, actions: &mut Actions<T, R>) {
        let lacks = self.doubts(now) && !is(Fault::LackIsOffline);
        actions.push(Action::End(call, if lacks { Outcome::Unavailable } else { Outcome::Offline }));
    }

    /// A waiting call's time to be looked at has come.
    fn look_again(&mut self, mut call: Underway<T>, now: Instant, actions: &mut Actions<T, R>) {
        if (call.unheard.is_some() || call.untold.is_some()) && call.deadline.has_passed(now) {
            return actions.push(Action::End(call, Outcome::Unavailable));
        }
        if call.untold.is_some() {
            return self.call(call, now, actions);
        }
        let Some((found, _)) = call.unheard else { return self.end_not_found(call, now, actions) };
        if self.leases.may_live(found.claim.node, now) {
            return actions.push(Action::Deliver(call, found));
        }
        call.unheard = None;
        call.refuted.push(found);
        self.call(call, now, actions);
    }

    /// The caller is gone.
    pub fn cancel(&mut self, request: &CancelRequest) -> Option<Underway<T>> {
        self.waiting.cancel(request.target, request.call)
    }

    /// The router stops: the calls that wait, for another router.
    pub fn hand_over(&mut self) -> Vec<Underway<T>> {
        if is(Fault::WaitsNotHandedOver) {
            return Vec::new();
        }
        self.waiting.leave_all()
    }

    /// Where the device is: at a node that is alive and claims it, as far as is known here.
    pub fn whereabouts(&self, device: DeviceId, now: Instant) -> Option<Whereabouts> {
        let found = self.map.get(device).filter(|found| self.leases.may_live(found.claim.node, now));
        found.map(|Found { claim: Claim { node, protocol, since_ms, .. }, .. }| Whereabouts {
            node,
            protocol,
            since_ms,
        })
    }

    /// How often a session took over from another of the device, lately.
    pub fn takeovers(&self, device: DeviceId, now: Instant) -> u32 {
        self.takeovers.lately(device, now)
    }

    /// Whether a node is certainly gone.
    pub fn is_gone(&self, node: NodeId, now: Instant) -> bool {
        !self.leases.may_live(node, now)
    }

    // Claims.

    /// A node asks for a claim, whose ticket has been checked. From `deadline` on nothing is written for it: the node
    /// has asked again, and a fresh claim that is carried out late would take over from a newer session.
    pub fn claim(
        &mut self,
        request: ClaimRequest,
        deadline: Instant,
        reply_to: R,
        now: Instant,
        actions: &mut Actions<T, R>,
    ) {
        if let Some(generation) = request.generation {
            self.map.heard(generation);
        }
        let claiming = Claiming { request, deadline, attempts: 0, reply_to };
        let device = claiming.request.device;
        let (claim, expected) = match (self.map.standing(device), self.map.get(device)) {
            (Some(Found { claim, revision }), _) => (Some(claim), Expected::Revision(revision)),
            // What stood in a store that was lost may be taken over, and is not there.
            (None, Some(doubtful)) => (Some(doubtful.claim), Expected::Nothing),
            (None, None) => {
                (None, self.markers.revision(device).map_or(Expected::Nothing, Expected::Revision))
            }
        };
        let standing = Standing { claim, expected };
        self.decide(claiming, standing, now, actions);
    }

    fn decide(
        &mut self,
        claiming: Claiming<R>,
        standing: Standing,
        now: Instant,
        actions: &mut Actions<T, R>,
    ) {
        if now >= claiming.deadline {
            return actions.push(Action::Reply(claiming.reply_to, ClaimReply::Unavailable));
        }
        let fresh = self.map.next_generation(standing.claim.map(|claim| claim.generation));
        let request = &claiming.request;
        match decide(request, standing.claim.as_ref(), fresh) {
            Decision::Stands(generation)
                if standing.expected != Expected::Nothing || is(Fault::LostStoreStands) =>
            {
                let reply = ClaimReply::Held { generation, over: None };
                actions.push(Action::Reply(claiming.reply_to, reply));
            }
            // The map may lag: an end of a session is said by the store alone.
            Decision::TakenOver if claiming.attempts == 0 => actions.push(Action::Read(claiming)),
            Decision::TakenOver => actions.push(Action::Reply(claiming.reply_to, ClaimReply::TakenOver)),
            Decision::Write(generation) | Decision::Stands(generation) => {
                let ClaimRequest { node, session, protocol, since_ms, .. } = *request;
                let claim = Claim { node, session, protocol, generation, since_ms };
                let session = (node, session);
                let taken_over = standing.claim.filter(|claim| (claim.node, claim.session) != session);
                let (expected, above) = (standing.expected, self.map.revision());
                actions.push(Action::Write(claiming, Write { claim, expected, taken_over, above }));
            }
        }
    }

    /// What came of a write.
    pub fn written(
        &mut self,
        claiming: Claiming<R>,
        write: Write,
        written: Result<u64, NotWritten>,
        now: Instant,
        actions: &mut Actions<T, R>,
    ) {
        let device = claiming.request.device;
        match written {
            Ok(revision) if revision <= write.above && !is(Fault::OldRevisionsCount) => {
                // The store has begun to count anew: what was expected there may have been another session's. Whoever
                // claims again is found by comparing; who is new gets a generation above what it may have had.
                self.map.begins_anew(revision, self.leases.lease(), now);
                self.markers.forget_all();
                self.doubts.begin(now + self.leases.lease(), &self.map);
                let generation = match claiming.request.generation {
                    Some(own) => own,
                    None => self.map.next_generation(Some(write.claim.generation)),
                };
                let claim = Claim { generation, ..write.claim };
                let expected = Expected::Revision(revision);
                actions.push(Action::Write(claiming, Write { claim, expected, above: revision, ..write }));
            }
            Ok(revision) => {
                let Write { claim, taken_over, .. } = write;
                if let Some(taken_over) = taken_over.filter(|_| !is(Fault::UntoldTakeover)) {
                    actions.push(Action::TakeOver(device, taken_over));
                }
                self.put(device, Found { claim, revision }, now, actions);
                let over = taken_over.map(|taken_over| taken_over.protocol);
                let reply = ClaimReply::Held { generation: claim.generation, over };
                actions.push(Action::Reply(claiming.reply_to, reply));
            }
            Err(NotWritten::Contended) if claiming.attempts < MAX_ATTEMPTS && now < claiming.deadline => {
                actions.push(Action::Read(claiming));
            }
            Err(NotWritten::Contended | NotWritten::Unavailable) => {
                actions.push(Action::Reply(claiming.reply_to, ClaimReply::Unavailable));
            }
        }
    }

    /// What stands in the store; an error when it did not say.
    pub fn read(
        &mut self,
        mut claiming: Claiming<R>,
        standing: Result<Standing, ()>,
        now: Instant,
        actions: &mut Actions<T, R>,
    ) {
        claiming.attempts += 1;
        match standing {
            Ok(standing) => self.decide(claiming, standing, now, actions),
            Err(()) => actions.push(Action::Reply(claiming.reply_to, ClaimReply::Unavailable)),
        }
    }

    /// What is to be removed when a session is no longer callable, of what the store has of its device. Never by the
    /// map: where the store counted anew unheard of, a revision there is another writing's.
    pub fn release(request: &ReleaseRequest, stored: Option<Found>) -> Option<(Found, Removal)> {
        let is_its =
            |found: &Found| (found.claim.node, found.claim.session) == (request.node, request.session);
        let found = stored.filter(|found| is_its(found) || is(Fault::ReleaseOfAnySession))?;
        Some((found, Removal::Released(request.reason)))
    }

    /// The store has removed that writing, at the revision of the removal; none: it had another.
    pub fn removed(&mut self, device: DeviceId, revision: u64, removed_at: Option<u64>, now: Instant) {
        if let Some(before) = self.map.standing(device).filter(|it| it.revision == revision) {
            self.moving.left(device, before.claim.node, now);
        }
        match removed_at {
            Some(removed_at) => {
                self.map.remove(device, removed_at);
                self.markers.left(device, removed_at, now);
            }
            None => self.map.forget(device, revision),
        }
    }

    /// A node says that it is alive, and what it holds.
    pub fn renew(&mut self, renewal: &LeaseRenewal, now: Instant, actions: &mut Actions<T, R>) {
        let is_new = !self.leases.is_leased(renewal.node, now);
        self.moving.renewed(renewal, is_new, self.leases.lease(), now);
        if renewal.ends {
            return self.leases.end(renewal.node);
        }
        self.leases.renew(renewal.node, now);
        self.doubts.renewed(renewal, &self.map);
        self.map.heard(renewal.newest);
        let differs = self.map.is_loaded() && self.map.tally(renewal.node) != renewal.tally;
        if differs && !is(Fault::BlindRenewal) {
            actions.push(Action::TellDiffers(renewal.node));
        }
    }

    /// Whether nodes may hold more claims than are known, so that whom this router does not find may be there:
    /// they are to say what they hold.
    pub fn doubts(&self, now: Instant) -> bool {
        self.doubts.are_there(&self.leases, now)
    }

    /// Another router has heard of that generation.
    pub fn heard(&mut self, newest: Generation) {
        self.map.heard(newest);
    }

    /// In which claims does a node differ?
    pub fn compare(&self, request: &CompareRequest) -> CompareReply {
        let mut known = self.map.part(request.node, request.part, request.parts);
        let is_lacking = |held: &&rpc::HeldClaim| known.remove(&held.device) != Some(**held);
        let lacking = request.held.iter().filter(is_lacking).map(|held| held.device).collect();
        let mut foreign: Vec<_> = known.into_values().collect();
        foreign.sort_unstable_by_key(|held| held.device);
        CompareReply { lacking, foreign }
    }

    // The store's and NATS' words.

    /// A claim stands, as the store or this router's own write says.
    pub fn put(&mut self, device: DeviceId, found: Found, now: Instant, actions: &mut Actions<T, R>) {
        let before = self.map.standing(device);
        if !self.map.put(device, found) {
            return;
        }
        self.moving.arrived(device);
        for node in before.map(|before| before.claim.node).into_iter().chain([found.claim.node]) {
            self.doubts.learned(node, &self.map);
        }
        if let Some(before) = before {
            self.takeovers.claimed(device, &before.claim, &found.claim, now);
        }
        if is(Fault::ArrivalUntold) {
            return;
        }
        for mut call in self.waiting.leave(device) {
            if call.unheard.is_some_and(|(unheard, _)| unheard != found) {
                call.unheard = None;
            }
            match call.unheard {
                // The same again is no reason to hurry.
                Some((_, pause)) => {
                    let look_at = (now + pause).min(call.deadline.instant());
                    self.waiting.enter(call, look_at);
                }
                None => self.call(call, now, actions),
            }
        }
    }

    /// A claim was removed, at that revision.
    pub fn gone(&mut self, device: DeviceId, revision: u64, now: Instant) {
        let before = self.map.standing(device);
        self.map.remove(device, revision);
        self.markers.left(device, revision, now);
        if let Some(before) = before {
            if self.map.standing(device).is_none() {
                self.moving.left(device, before.claim.node, now);
            }
            self.doubts.learned(before.claim.node, &self.map);
        }
    }

    /// Changes may be missed from now on, until the next load.
    pub fn lost(&mut self) {
        self.map.lost();
    }

    /// A load from the beginning: every claim follows. The store has written up to `revision`.
    pub fn reset(&mut self, is_another_store: bool, revision: u64) {
        self.map.reset(is_another_store, revision);
        self.markers.forget_all();
    }

    /// Every claim has been told.
    pub fn loaded(&mut self, now: Instant) {
        self.map.loaded(self.leases.lease(), now);
        self.moving.loaded(now);
        self.doubts.begin(now + self.leases.lease(), &self.map);
    }

    /// From now on every renewal is heard, or none, as NATS is there or not.
    pub fn hears(&mut self, does: bool, now: Instant) {
        self.leases.hears(does, now);
        if !does {
            self.doubts.forget();
        }
    }

    /// When [`tick`](Self::tick) is to be called at the latest.
    pub fn next_tick(&self, now: Instant) -> Instant {
        let sweep = (!self.sweep.is_empty()).then_some(self.next_sweep);
        let calm = now + TICK.min(self.leases.lease() / TICKS_A_LEASE);
        [self.waiting.next_look(), sweep].into_iter().flatten().fold(calm, Instant::min)
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Instant, actions: &mut Actions<T, R>) {
        self.leases.look(now);
        self.doubts.look(&self.leases, now);
        if !self.doubts(now) {
            self.map.end_doubt(now);
        }
        self.moving.look(now);
        self.markers.look(now);
        while let Some(call) = self.waiting.next_due(now) {
            self.look_again(call, now, actions);
        }
        if now >= self.next_look_for_dead {
            self.next_look_for_dead = now + self.leases.lease() / 4;
            if self.sweep.is_empty() {
                let dead: Vec<_> = self.map.nodes().filter(|node| self.is_gone(*node, now)).collect();
                self.sweep = dead.into_iter().flat_map(|node| self.map.of_node(node)).collect();
            }
        }
        if now >= self.next_sweep {
            self.next_sweep = now + SWEEP_PAUSE;
            for _ in 0..SWEEP_BATCH {
                let Some((device, revision)) = self.sweep.pop_front() else { break };
                // Another router, or the device's next session, was faster, or its node has come back.
                let stands = self.map.get(device).filter(|found| found.revision == revision);
                if let Some(found) = stands.filter(|found| self.is_gone(found.claim.node, now)) {
                    actions.push(Action::Remove(device, found, Removal::NodeGone));
                }
            }
        }
    }

    /// The generation that a session gets that becomes callable now over nothing.
    pub fn next_generation(&self) -> Generation {
        self.map.next_generation(None)
    }
}

#[cfg(test)]
mod tests;
