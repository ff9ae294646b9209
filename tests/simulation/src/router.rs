//! How does a router's core run here? What its service does with a bus and a store, done with messages of the model.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rpc::faults::{Fault, is};
use rpc::{
    BEAT_EVERY, Beat, Budget, CLAIM_ATTEMPT, Call, ClaimReply, Deadline, Delivery, DeliveryReply, DeviceId,
    Holder, NodeId, Outcome, Party, ReleaseRequest, Shares, Takeover, TenantId, TicketKeys,
};
use switchboard_router::core::{
    Action, Actions, Claiming, Core, Expected, Found, NotWritten, Refutation, Standing, Underway, Write,
};

use crate::message::{
    Bucket, Feed, Inbox, MS, Message, Micros, Payload, ReplyTo, SECOND, StoreAsk, StoreReply, Topic,
};
use crate::service::{Beliefs, Context, Effect, Input, Service, Timer};
use crate::settings::{CLAIM_TIMEOUT, HANDOVER, LEASE, MAX_TIMEOUT_MS};
use crate::wire::{NoReply, Taken, Wire};

const STORE_WAIT: Micros = 2 * SECOND;
/// How long nodes may take to say what they hold.
const INTRODUCTION: Micros = 300 * MS;
const HANDOVER_WAIT: Micros = SECOND;
/// What routers share the work of.
const SHARED: [Topic; 5] = [Topic::Compare, Topic::Release, Topic::Claim, Topic::Handover, Topic::Route];

/// What a call takes along.
#[derive(Debug)]
struct Carried {
    call: Box<Call>,
    body: Bytes,
    caller: Inbox,
}

type Reply = Option<ReplyTo>;
type RouterCore = Core<Carried, Reply>;

#[derive(Debug)]
enum Then {
    Deliver(Underway<Carried>, Found),
    LookUp(Underway<Carried>),
    Write(Claiming<Reply>, Write),
    Read(Claiming<Reply>),
    Release(ReleaseRequest),
    Remove(DeviceId, u64),
    HandOver(Underway<Carried>),
}

/// A running router.
pub struct Router {
    core: RouterCore,
    wire: Wire<Then>,
    keys: TicketKeys,
    made: Option<Micros>,
    serves: bool,
    drains: bool,
    ticks_at: Micros,
    last_beat: u64,
}

impl Router {
    /// Knows nothing yet.
    pub fn new(keys: TicketKeys, now: Instant) -> Self {
        Router {
            core: Core::new(LEASE, HANDOVER, Shares::new(usize::MAX, usize::MAX), now),
            wire: Wire::new(Some(Bucket::Claims), now),
            keys,
            made: None,
            serves: false,
            drains: false,
            ticks_at: 0,
            last_beat: 0,
        }
    }

    fn tell(
        &mut self,
        context: &mut Context<'_>,
        tell: impl FnOnce(&mut RouterCore, Instant, &mut Actions<Carried, Reply>),
    ) {
        let mut actions = Vec::new();
        tell(&mut self.core, context.now, &mut actions);
        // Maps have no order, and a history must be the same each time.
        actions.sort_by_key(|action| match action {
            Action::Remove(device, ..) => Some(*device),
            _ => None,
        });
        for action in actions {
            self.perform(action, context);
        }
        let next = self.core.next_tick(context.now).saturating_duration_since(context.now);
        self.wake(next.as_micros() as Micros, context);
    }

    fn wake(&mut self, after: Micros, context: &mut Context<'_>) {
        let at = context.at + after.max(1);
        if at < self.ticks_at || self.ticks_at <= context.at {
            self.ticks_at = at;
            context.wait(at - context.at, Timer::Tick);
        }
    }

    fn perform(&mut self, action: Action<Carried, Reply>, context: &mut Context<'_>) {
        match action {
            Action::Deliver(call, found) => self.deliver(call, found, context),
            Action::LookUp(call) => self.ask_store(StoreAsk::Read(call.target), Then::LookUp(call), context),
            Action::End(call, outcome) => self.end(call, outcome, context),
            Action::Write(claiming, write) => {
                let expected = match write.expected {
                    Expected::Nothing => None,
                    Expected::Revision(revision) => Some(revision),
                };
                let ask = StoreAsk::Write(claiming.request.device, write.claim, expected);
                self.ask_store(ask, Then::Write(claiming, write), context);
            }
            Action::Read(claiming) => {
                self.ask_store(StoreAsk::Read(claiming.request.device), Then::Read(claiming), context);
            }
            Action::Reply(reply_to, reply) => {
                self.wire.answer(reply_to, Payload::Claimed(reply), context);
            }
            Action::TakeOver(device, taken_over) => {
                let takeover = Takeover { session: taken_over.session, device };
                self.wire.tell(Topic::Takeover(taken_over.node), Payload::Takeover(takeover), context);
            }
            Action::Remove(device, Found { revision, .. }, _) => {
                self.ask_store(StoreAsk::Remove(device, revision), Then::Remove(device, revision), context);
            }
            Action::TellDiffers(node) => {
                self.wire.tell(Topic::Differs(node), Payload::Nothing, context);
            }
        }
    }

    fn ask_store(&mut self, ask: StoreAsk, then: Then, context: &mut Context<'_>) {
        if let Err(then) = self.wire.ask(Topic::Store, Payload::Ask(ask), STORE_WAIT, then, context) {
            self.replied(then, Err(NoReply::Down), context);
        }
    }

    fn deliver(&mut self, call: Underway<Carried>, found: Found, context: &mut Context<'_>) {
        let head = &call.payload.call;
        let budget_ms = call.deadline.remaining(context.now);
        let delivery = Delivery {
            call: head.call,
            session: found.claim.session,
            target: head.target,
            caller: Some(head.caller),
            caller_name: String::new(),
            budget_ms,
            until: head.until,
            oneway: head.oneway,
            verdict_ms: None,
            traceparent: None,
            method: None,
            late: None,
        };
        let payload = Payload::Delivery(Box::new(delivery), call.payload.body.clone());
        let wait = Micros::from(budget_ms.as_ms()) * 1_000;
        let topic = Topic::Node(found.claim.node);
        if is(Fault::DeliveredTwice) {
            self.wire.tell(topic, payload.clone(), context);
        }
        if let Err(then) = self.wire.ask(topic, payload, wait, Then::Deliver(call, found), context) {
            self.replied(then, Err(NoReply::Down), context);
        }
    }

    fn delivered(
        &mut self,
        call: Underway<Carried>,
        found: Found,
        reply: Result<Payload, NoReply>,
        context: &mut Context<'_>,
    ) {
        let by = match reply {
            Ok(Payload::Delivered(DeliveryReply::Ended(outcome), body)) => {
                return self.end_with(call, outcome, body, context);
            }
            Ok(_) => Refutation::NoSession,
            Err(NoReply::NoResponders) => Refutation::NoNode,
            Err(NoReply::Expired) if is(Fault::ExpiredIsNoNode) => Refutation::NoNode,
            Err(NoReply::Expired) => return self.end(call, Outcome::TimedOut, context),
            Err(NoReply::Gone) => return self.end(call, Outcome::Lost, context),
            Err(NoReply::Down) => return self.end(call, Outcome::Unavailable, context),
        };
        self.tell(context, |core, now, actions| core.refuted(call, found, by, now, actions));
    }

    fn end(&mut self, call: Underway<Carried>, outcome: Outcome, context: &mut Context<'_>) {
        self.end_with(call, outcome, Bytes::new(), context);
    }

    fn end_with(
        &mut self,
        call: Underway<Carried>,
        outcome: Outcome,
        body: Bytes,
        context: &mut Context<'_>,
    ) {
        self.wire.tell(Topic::Reply(call.payload.caller), Payload::Outcome(outcome, body), context);
    }

    fn replied(&mut self, then: Then, reply: Result<Payload, NoReply>, context: &mut Context<'_>) {
        let stored = |reply: Result<Payload, NoReply>| match reply {
            Ok(Payload::Said(StoreReply::Stands(stands))) => Ok(stands),
            _ => Err(()),
        };
        let found = |stands: Option<(u64, Option<rpc::Claim>)>| {
            let (revision, claim) = stands?;
            claim.map(|claim| Found { claim, revision })
        };
        match then {
            Then::Deliver(call, found) => self.delivered(call, found, reply, context),
            Then::LookUp(call) => {
                let stored = stored(reply).map(found);
                self.tell(context, |core, now, actions| core.looked_up(call, stored, now, actions));
            }
            Then::Write(claiming, write) => {
                let written = match reply {
                    Ok(Payload::Said(StoreReply::Written(revision))) => Ok(revision),
                    Ok(Payload::Said(StoreReply::Contended)) => Err(NotWritten::Contended),
                    _ => Err(NotWritten::Unavailable),
                };
                self.tell(context, |core, now, actions| core.written(claiming, write, written, now, actions));
            }
            Then::Read(claiming) => {
                let standing = stored(reply).map(|stands| match stands {
                    None => Standing { claim: None, expected: Expected::Nothing },
                    Some((revision, claim)) => Standing { claim, expected: Expected::Revision(revision) },
                });
                self.tell(context, |core, now, actions| core.read(claiming, standing, now, actions));
            }
            Then::Release(request) => {
                if let Ok(stands) = stored(reply) {
                    let removal = RouterCore::release(&request, found(stands));
                    self.tell(context, |_, _, actions| {
                        actions
                            .extend(removal.map(|(found, why)| Action::Remove(request.device, found, why)));
                    });
                }
            }
            Then::Remove(device, revision) => {
                let removed_at = match reply {
                    Ok(Payload::Said(StoreReply::Written(removed_at))) => Some(removed_at),
                    Ok(Payload::Said(StoreReply::Contended)) => None,
                    _ => return,
                };
                self.tell(context, |core, now, _| core.removed(device, revision, removed_at, now));
            }
            // Otherwise it may have been received.
            Then::HandOver(call) => {
                if let Err(NoReply::NoResponders | NoReply::Down) = reply {
                    self.tell(context, |core, now, actions| core.call(call, now, actions));
                }
            }
        }
        self.end_if_drained(context);
    }

    fn take_request(&mut self, message: Message, sent: Instant, context: &mut Context<'_>) {
        let Message { topic, reply_to, payload } = message;
        match (topic, payload) {
            (Topic::Route | Topic::Handover, Payload::Routed(call, body, caller)) => {
                let longest = Budget::from_ms(MAX_TIMEOUT_MS);
                let deadlines = (
                    self.wire.ends(call.until.as_ref(), call.budget_ms.min(longest).starting(sent)),
                    call.connect_budget_ms.min(longest).starting(sent),
                );
                let (id, target) = (call.call, call.target);
                let party = Party::of(TenantId(call.caller.0), None);
                let call = Underway::new(id, target, party, deadlines, Carried { call, body, caller });
                if topic == Topic::Handover {
                    self.wire.answer(reply_to, Payload::Nothing, context);
                }
                self.tell(context, |core, now, actions| core.call(call, now, actions));
            }
            (Topic::Claim, Payload::Claim(claim)) => {
                let holder = Holder { device: claim.device, node: claim.node, visit: claim.visit };
                let checked = self.keys.check(&claim.ticket, holder, context.wall_s);
                if checked.is_err() && !is(Fault::SkippedTicketCheck) {
                    self.wire.answer(reply_to, Payload::Claimed(ClaimReply::Refused), context);
                    return;
                }
                let deadline = Deadline::at(sent + Duration::from_micros(CLAIM_TIMEOUT).min(CLAIM_ATTEMPT));
                let deadline = self.wire.ends(claim.until.as_ref(), deadline).instant();
                self.tell(context, |core, now, actions| core.claim(*claim, deadline, reply_to, now, actions));
            }
            (Topic::Release, Payload::Release(release)) => {
                self.ask_store(StoreAsk::Read(release.device), Then::Release(release), context);
            }
            (Topic::Lease, Payload::Lease(renewal)) => {
                self.tell(context, |core, now, actions| core.renew(&renewal, now, actions));
            }
            (Topic::Compare, Payload::Compare(compare)) => {
                let reply = self.core.compare(&compare);
                self.wire.answer(reply_to, Payload::Compared(reply), context);
            }
            (Topic::Cancel, Payload::Cancel(cancel)) => {
                self.core.cancel(&cancel);
            }
            _ => {}
        }
    }

    fn take_feed(&mut self, feed: Feed, context: &mut Context<'_>) {
        match feed {
            Feed::Opened(made, revision) => {
                let is_another = self.made.replace(made).is_some_and(|before| before != made);
                self.tell(context, |core, _, _| core.reset(is_another, revision));
            }
            Feed::Loaded => {
                self.tell(context, |core, now, _| core.loaded(now));
                if !self.serves {
                    context.wait(INTRODUCTION, Timer::Serve);
                }
            }
            Feed::Claim(device, claim, revision) => {
                let found = Found { claim, revision };
                self.tell(context, |core, now, actions| core.put(device, found, now, actions));
            }
            Feed::Unclaimed(device, revision) => {
                self.tell(context, |core, now, _| core.gone(device, revision, now));
            }
            Feed::Device(..) | Feed::Beat(..) | Feed::Heartbeat => {}
        }
    }

    fn beat(&mut self, context: &mut Context<'_>) {
        self.last_beat += 1;
        let (of, newest) = (NodeId(context.me as u64), self.core.map().newest());
        let asks = self.core.doubts(context.now);
        let beat = Beat { of, number: self.last_beat, newest, asks };
        self.wire.tell(Topic::Beat, Payload::Beat(beat), context);
    }

    fn serve(&mut self, context: &mut Context<'_>) {
        if !self.serves && !self.drains {
            self.serves = true;
            self.subscribe(context);
        }
    }

    fn subscribe(&self, context: &mut Context<'_>) {
        let all = [Topic::Lease, Topic::Beat];
        context.effects.extend(all.map(|topic| Effect::Subscribe(topic, false)));
        if self.serves {
            context.effects.push(Effect::Subscribe(Topic::Cancel, false));
            context.effects.extend(SHARED.map(|topic| Effect::Subscribe(topic, true)));
        }
    }

    fn drain(&mut self, context: &mut Context<'_>) {
        (self.drains, self.serves) = (true, false);
        context.effects.extend(SHARED.map(Effect::Unsubscribe));
        let mut waiting = self.core.hand_over();
        waiting.sort_by_key(|call| (call.id.node, call.id.serial));
        for mut call in waiting {
            let head = &mut call.payload.call;
            head.budget_ms = call.deadline.remaining(context.now);
            head.connect_budget_ms = call.connect_deadline.remaining(context.now);
            let payload = Payload::Routed(head.clone(), call.payload.body.clone(), call.payload.caller);
            let then = Then::HandOver(call);
            if let Err(then) = self.wire.ask(Topic::Handover, payload, HANDOVER_WAIT, then, context) {
                self.replied(then, Err(NoReply::Down), context);
            }
        }
        // Messages that were on their way may still come in.
        context.wait(SECOND, Timer::Mend);
        context.wait(10 * SECOND, Timer::DrainEnds);
    }

    fn end_if_drained(&mut self, context: &mut Context<'_>) {
        let is_idle = self.core.waiting() == 0 && self.wire.questions().next().is_none();
        if self.drains && is_idle {
            context.wait(SECOND, Timer::Mend);
        }
    }

    fn cut_off(&mut self, context: &mut Context<'_>) {
        let mut waiting = self.core.hand_over();
        waiting.sort_by_key(|call| (call.id.node, call.id.serial));
        for call in waiting {
            self.end(call, Outcome::Unavailable, context);
        }
        context.effects.push(Effect::Exit);
    }
}

impl Service for Router {
    fn take(&mut self, input: Input, context: &mut Context<'_>) {
        match self.wire.take(input, context) {
            Taken::Nothing => {}
            Taken::Lost => self.tell(context, |core, _, _| core.lost()),
            Taken::Beat(beat, _) => self.tell(context, |core, _, _| core.heard(beat.newest)),
            Taken::Up => {
                self.subscribe(context);
                self.beat(context);
                self.tell(context, |core, now, _| core.hears(true, now));
            }
            Taken::Down => self.tell(context, |core, now, _| {
                core.hears(false, now);
                core.lost();
            }),
            Taken::Reply(then, reply) => self.replied(then, reply, context),
            Taken::Request(message, sent) => self.take_request(message, sent, context),
            Taken::Feed(feed) => self.take_feed(feed, context),
            Taken::Other(input) => match input {
                Input::Start => {
                    context.wait(BEAT_EVERY.as_micros() as Micros, Timer::Beat);
                    context.wait(1, Timer::Tick);
                    context.wait(LEASE.as_micros() as Micros / 4, Timer::LookForGone);
                }
                Input::Timer(Timer::Tick) if context.at >= self.ticks_at => {
                    self.ticks_at = 0;
                    self.tell(context, |core, now, actions| core.tick(now, actions));
                }
                Input::Timer(Timer::Beat) => {
                    context.wait(BEAT_EVERY.as_micros() as Micros, Timer::Beat);
                    self.beat(context);
                }
                Input::Timer(Timer::LookForGone) => {
                    context.wait(LEASE.as_micros() as Micros / 4, Timer::LookForGone);
                    let core = &self.core;
                    let gone = |then: &Then| match then {
                        Then::Deliver(_, found) => core.is_gone(found.claim.node, context.now),
                        _ => false,
                    };
                    let of_gone: Vec<u64> = self
                        .wire
                        .questions()
                        .filter(|(_, then)| gone(then))
                        .map(|(number, _)| number)
                        .collect();
                    for number in of_gone {
                        if let Some(then) = self.wire.give_up(number) {
                            self.replied(then, Err(NoReply::Gone), context);
                        }
                    }
                }
                Input::Timer(Timer::Mend) if self.core.waiting() == 0 => {
                    let is_idle = self.wire.questions().next().is_none();
                    if self.drains && is_idle {
                        context.effects.push(Effect::Exit);
                    }
                }
                Input::Timer(Timer::DrainEnds) => self.cut_off(context),
                Input::Timer(Timer::Serve) => self.serve(context),
                Input::Drain if !self.drains => self.drain(context),
                _ => {}
            },
        }
    }

    fn serves(&self) -> bool {
        self.wire.is_up() && self.serves
    }

    fn beliefs(&self) -> Beliefs {
        let map = self.core.map();
        let mut nodes: Vec<_> = map.nodes().collect();
        nodes.sort_unstable();
        let mut beliefs = Beliefs::from([
            ("connected".into(), self.wire.is_up().to_string()),
            ("serves".into(), self.serves.to_string()),
            ("calls that wait".into(), self.core.waiting().to_string()),
            ("questions".into(), self.wire.questions().count().to_string()),
            ("leases".into(), self.core.leases().len().to_string()),
        ]);
        for node in nodes {
            for (device, revision) in map.of_node(node) {
                let claim = map.get(device).map(|found| found.claim);
                beliefs.insert(
                    format!("claim of {}", crate::settings::name_of(device)),
                    claim.map_or_else(String::new, |claim| {
                        format!("{} of {node}, {:?}, at {revision}", claim.session, claim.generation)
                    }),
                );
            }
        }
        beliefs
    }

    fn leaks(&self) -> Vec<String> {
        let mut leaks = Vec::new();
        if self.core.waiting() > 0 {
            leaks.push(format!("{} calls wait", self.core.waiting()));
        }
        if !self.core.map().is_empty() {
            leaks.push(format!("{} claims are known", self.core.map().len()));
        }
        leaks.extend(self.wire.questions().map(|(number, then)| format!("question {number}: {then:?}")));
        leaks
    }
}
