//! How do a node's cores run here? Its claims and its sessions' calls are the real ones; the rest follows its service.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rpc::faults::{Fault, is};
use rpc::{
    AuthenticateReply, AuthenticateRequest, Budget, CLAIM_ATTEMPT, Call, CallId, CancelRequest, ClaimReply,
    ClaimRequest, CompareRequest, CredentialHash, CustomerId, DeliveryReply, DeviceId, DeviceStanding,
    DeviceState, Generation, HeldClaim, Identity, LeaseRenewal, NodeId, Outcome, Protocol, ReleaseRequest,
    SessionEnd, SessionId, TenantId, Ticket,
};
use switchboard_ingress::device::holding::{Difference, Holding};
use switchboard_ingress::device::shed::TOLD_BEFORE;
use switchboard_ingress::device::target::{AnswerTaken, Conclusion, Incoming, Numbers, Target, TargetLimits};

use crate::client::{ClientId, FromClient, ToClient};
use crate::message::{MS, Message, Micros, Payload, ReplyTo, SECOND, Topic};
use crate::service::{Beliefs, Context, Effect, Input, Service, Timer};
use crate::settings::{
    AUTHENTICATE_TIMEOUT, CLAIM_TIMEOUT, LEASE_US, MAX_TIMEOUT_MS, OUTCOME_GRACE, name_of,
};
use crate::wire::{NoReply, Taken, Wire};

const RETRY_PAUSE: Micros = 100 * MS;
const SETTLE_PAUSE: Micros = SECOND;
const COMPARE_WAIT: Micros = 2 * SECOND;
const ATTEMPT: Micros = CLAIM_ATTEMPT.as_micros() as Micros;
const RECLAIM_PAUSE: Micros = 200;
const DRAIN: Micros = 5 * SECOND;
const LIMITS: TargetLimits = TargetLimits { max_waiting: 64, max_waiting_bytes: 1 << 20, max_open: 64 };

type Digest = [u8; 32];

#[derive(Debug)]
enum Then {
    Admit { client: ClientId, visit: u64, credential: Digest, changes: u64 },
    AdmitAgain { visit: u64 },
    Recheck { visit: u64 },
    RenewToClaim { session: SessionId },
    Claim { session: SessionId },
    Call { client: ClientId, call: usize, cancel: Option<CancelRequest> },
    Compare { told: Vec<HeldClaim> },
}

struct Visitor {
    client: ClientId,
    device: DeviceId,
    credential: Digest,
    place: (TenantId, Option<CustomerId>),
    ticket: Ticket,
    session: Option<SessionId>,
}

struct Session {
    visit: u64,
    device: DeviceId,
    client: ClientId,
    target: Target<Option<ReplyTo>>,
    is_told: bool,
    expires_at: Micros,
    since_ms: u64,
}

#[derive(Debug, Clone, Copy)]
struct Claiming {
    device: DeviceId,
    visit: u64,
    generation: Option<Generation>,
    give_up: Micros,
    may_renew: bool,
    ticket: Ticket,
    since_ms: u64,
    is_again: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mending {
    No,
    Comparing,
    Step,
    Claims,
    Settles,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Release(HeldClaim),
    Claim(HeldClaim),
}

/// A running node.
pub struct Node {
    id: NodeId,
    wire: Wire<Then>,
    holding: Holding,
    visitors: BTreeMap<u64, Visitor>,
    sessions: BTreeMap<SessionId, Session>,
    claiming: BTreeMap<SessionId, Claiming>,
    last_id: u64,
    last_serial: u64,
    changes: u64,
    mending: Mending,
    steps: VecDeque<Step>,
    mended: BTreeSet<SessionId>,
    is_left: bool,
    differs: bool,
    renews_at: Micros,
    recheck: VecDeque<u64>,
    is_rechecking: bool,
    is_recheck_due: bool,
    drains: bool,
    /// When routers know that sessions are sent away.
    leaves_from: Micros,
    /// Visits that are to go to another node.
    shed: BTreeSet<u64>,
}

impl Node {
    /// Without devices.
    pub fn new(id: NodeId, now: Instant) -> Self {
        Node {
            id,
            wire: Wire::new(None, now),
            holding: Holding::default(),
            visitors: BTreeMap::new(),
            sessions: BTreeMap::new(),
            claiming: BTreeMap::new(),
            last_id: 0,
            last_serial: 0,
            changes: 0,
            mending: Mending::No,
            steps: VecDeque::new(),
            mended: BTreeSet::new(),
            is_left: false,
            differs: false,
            renews_at: 0,
            recheck: VecDeque::new(),
            is_rechecking: false,
            is_recheck_due: false,
            drains: false,
            leaves_from: 0,
            shed: BTreeSet::new(),
        }
    }

    fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    // Admission.

    fn authenticate(&mut self, credential: Digest, visit: u64, then: Then, context: &mut Context<'_>) {
        let credential = CredentialHash::from_digest(credential);
        let request = AuthenticateRequest { credential, node: self.id, visit };
        let payload = Payload::Authenticate(request);
        if let Err(then) = self.wire.ask(Topic::Authenticate, payload, AUTHENTICATE_TIMEOUT, then, context) {
            self.replied(then, Err(NoReply::Down), context);
        }
    }

    fn admit(
        &mut self,
        (client, visit, credential, changes): (ClientId, u64, Digest, u64),
        identity: Option<Identity>,
        context: &mut Context<'_>,
    ) {
        let Some(it) = identity.filter(|_| !self.drains) else {
            return context.effects.push(Effect::ToClient(client, ToClient::Refused));
        };
        let Identity { device, tenant, customer, ticket, .. } = it;
        let place = (tenant, customer);
        self.visitors.insert(visit, Visitor { client, device, credential, place, ticket, session: None });
        if self.changes == changes {
            return self.begin_session(visit, context);
        }
        self.authenticate(credential, visit, Then::AdmitAgain { visit }, context);
    }

    fn begin_session(&mut self, visit: u64, context: &mut Context<'_>) {
        let session = SessionId(self.next_id());
        let Some(visitor) = self.visitors.get_mut(&visit) else { return };
        visitor.session = Some(session);
        let (device, client, ticket) = (visitor.device, visitor.client, visitor.ticket);
        let mut target = Target::new(LIMITS, Numbers::after(0));
        target.becomes_callable();
        let since_ms = context.wall_ms();
        let begun = Session { visit, device, client, target, is_told: false, expires_at: 0, since_ms };
        self.sessions.insert(session, begun);
        if is(Fault::ToldBeforeItStands) {
            context.effects.push(Effect::ToClient(client, ToClient::Accepted));
        }
        let give_up = context.at + CLAIM_TIMEOUT;
        let claiming = Claiming {
            device,
            visit,
            generation: None,
            give_up,
            may_renew: true,
            ticket,
            since_ms,
            is_again: false,
        };
        self.ask_for_claim(session, claiming, context);
    }

    /// A visitor leaves, with what he has.
    fn leave(&mut self, visit: u64, told: Option<ToClient>, context: &mut Context<'_>) {
        let Some(visitor) = self.visitors.remove(&visit) else { return };
        self.shed.remove(&visit);
        if let Some(session) = visitor.session {
            self.end_session(session, context);
        }
        if let Some(told) = told {
            context.effects.push(Effect::ToClient(visitor.client, told));
        }
        let own = |then: &Then| matches!(then, Then::Call { client, .. } if *client == visitor.client);
        let given_up: Vec<u64> =
            self.wire.questions().filter(|(_, then)| own(then)).map(|(number, _)| number).collect();
        for number in given_up {
            if let Some(Then::Call { cancel: Some(cancel), .. }) = self.wire.give_up(number) {
                self.wire.tell(Topic::Cancel, Payload::Cancel(cancel), context);
            }
        }
        self.exit_if_drained(context);
    }

    fn end_session(&mut self, id: SessionId, context: &mut Context<'_>) {
        self.release(id, context);
        let Some(mut session) = self.sessions.remove(&id) else { return };
        session.target.end();
        self.conclude(&mut session, context);
    }

    fn end_outdated(&mut self, state: &DeviceState, context: &mut Context<'_>) {
        let matches = |visitor: &Visitor| {
            state.now.as_ref().is_some_and(|now| {
                (now.tenant, now.customer) == visitor.place
                    && now.credential == CredentialHash::from_digest(visitor.credential)
            })
        };
        let outdated: Vec<u64> = self
            .visitors
            .iter()
            .filter(|(_, it)| it.device == state.device && !matches(it))
            .map(|(visit, _)| *visit)
            .collect();
        for visit in outdated {
            self.leave(visit, Some(ToClient::Closed(Some(SessionEnd::Revoked))), context);
        }
    }

    fn take_over(&mut self, device: DeviceId, session: SessionId, context: &mut Context<'_>) {
        let visit = self.sessions.get(&session).filter(|it| it.device == device).map(|it| it.visit);
        if let Some(visit) = visit {
            self.leave(visit, Some(ToClient::Closed(Some(SessionEnd::TakenOver))), context);
        }
    }

    fn recheck_all(&mut self, context: &mut Context<'_>) {
        if self.is_rechecking {
            self.is_recheck_due = true;
            return;
        }
        self.is_rechecking = true;
        self.recheck = self.visitors.keys().copied().collect();
        self.recheck_next(context);
    }

    fn recheck_next(&mut self, context: &mut Context<'_>) {
        while let Some(visit) = self.recheck.pop_front() {
            if let Some(visitor) = self.visitors.get(&visit) {
                return self.authenticate(visitor.credential, visit, Then::Recheck { visit }, context);
            }
        }
        self.is_rechecking = false;
        if std::mem::take(&mut self.is_recheck_due) {
            self.recheck_all(context);
        }
    }

    fn rechecked(&mut self, visit: u64, reply: Result<Payload, NoReply>, context: &mut Context<'_>) {
        let Some(visitor) = self.visitors.get_mut(&visit) else { return };
        let device = visitor.device;
        let now = match identity(reply) {
            Err(()) => return,
            Ok(Some(it)) if it.device == device => {
                visitor.ticket = it.ticket;
                let credential = CredentialHash::from_digest(visitor.credential);
                Some(DeviceStanding { tenant: it.tenant, customer: it.customer, credential })
            }
            Ok(_) => None,
        };
        self.end_outdated(&DeviceState { device, now }, context);
    }

    // Claims.

    fn ask_for_claim(&mut self, session: SessionId, claiming: Claiming, context: &mut Context<'_>) {
        let Claiming { device, visit, generation, give_up, mut ticket, since_ms, is_again, .. } = claiming;
        if let Some(visitor) = self.visitors.get(&visit) {
            ticket = visitor.ticket;
        }
        let claiming = Claiming { ticket, is_again: true, ..claiming };
        self.claiming.insert(session, claiming);
        let wait = give_up.saturating_sub(context.at).min(ATTEMPT);
        let request = ClaimRequest {
            device,
            node: self.id,
            session,
            protocol: Protocol::Mqtt,
            generation,
            until: self.wire.until(context.now + Duration::from_micros(wait), context.now),
            visit,
            ticket,
            since_ms: Some(since_ms),
            is_again,
        };
        let payload = Payload::Claim(Box::new(request));
        if let Err(then) = self.wire.ask(Topic::Claim, payload, wait, Then::Claim { session }, context) {
            self.replied(then, Err(NoReply::Down), context);
        }
    }

    fn claim_replied(
        &mut self,
        session: SessionId,
        reply: Result<Payload, NoReply>,
        context: &mut Context<'_>,
    ) {
        let Some(claiming) = self.claiming.get_mut(&session) else { return };
        match reply {
            Ok(Payload::Claimed(ClaimReply::Held { generation, .. })) => {
                return self.claimed(session, Ok(generation), context);
            }
            Ok(Payload::Claimed(ClaimReply::TakenOver)) => return self.claimed(session, Err(true), context),
            Ok(Payload::Claimed(ClaimReply::Refused)) if claiming.may_renew => {
                claiming.may_renew = false;
                let visit = claiming.visit;
                if let Some(visitor) = self.visitors.get(&visit) {
                    let then = Then::RenewToClaim { session };
                    return self.authenticate(visitor.credential, visit, then, context);
                }
            }
            _ => {}
        }
        let Some(claiming) = self.claiming.get(&session) else { return };
        if context.at + RETRY_PAUSE >= claiming.give_up {
            return self.claimed(session, Err(false), context);
        }
        context.wait(RETRY_PAUSE, Timer::ClaimAgain(session));
    }

    /// How asking for a claim ended: with its generation, or taken over, or not at all.
    fn claimed(&mut self, id: SessionId, how: Result<Generation, bool>, context: &mut Context<'_>) {
        let Some(claiming) = self.claiming.remove(&id) else { return };
        let held = HeldClaim { device: claiming.device, session: id, generation: Generation(0) };
        match (claiming.generation, how) {
            (None, Ok(generation)) => match self.sessions.get_mut(&id) {
                Some(session) => {
                    session.is_told = true;
                    let client = session.client;
                    self.holding.hold(claiming.device, id, generation, context.now);
                    context.effects.push(Effect::ToClient(client, ToClient::Accepted));
                    self.leave_if_idle(id, context);
                }
                // It ended while the claim was being written.
                None => self.tell_release(held, context),
            },
            (None, Err(_)) => {
                self.tell_release(held, context);
                self.leave(claiming.visit, Some(ToClient::Refused), context);
            }
            (Some(_), Ok(generation)) => {
                if !self.holding.hold_again(id, generation, context.now) {
                    self.tell_release(held, context);
                }
            }
            (Some(_), Err(true)) => self.take_over(claiming.device, id, context),
            (Some(_), Err(false)) => self.is_left = true,
        }
        if self.mended.remove(&id) && self.mended.is_empty() {
            self.settle_mended(context);
        }
    }

    fn release(&mut self, session: SessionId, context: &mut Context<'_>) {
        let Some(device) = self.sessions.get(&session).map(|it| it.device) else { return };
        if self.holding.let_go(session, context.now) {
            self.tell_release(HeldClaim { device, session, generation: Generation(0) }, context);
        }
    }

    fn tell_release(&mut self, held: HeldClaim, context: &mut Context<'_>) {
        let release =
            ReleaseRequest { device: held.device, node: self.id, session: held.session, reason: None };
        self.wire.tell(Topic::Release, Payload::Release(release), context);
    }

    fn renew_lease(&mut self, ends: bool, context: &mut Context<'_>) {
        let sheds = self.drains || !self.shed.is_empty();
        let renewal = LeaseRenewal { sheds, ..self.holding.renewal(self.id, ends) };
        self.wire.tell(Topic::Lease, Payload::Lease(renewal), context);
    }

    fn look_into_difference(&mut self, context: &mut Context<'_>) {
        self.differs = false;
        match self.holding.differs(context.now) {
            Difference::Wait => self.settle(context),
            Difference::Compare(_) => {
                self.mending = Mending::Comparing;
                let mut held = self.holding.part(0, 1);
                held.sort_unstable_by_key(|held| held.session);
                let request = CompareRequest { node: self.id, part: 0, parts: 1, held: held.clone() };
                let then = Then::Compare { told: held };
                let payload = Payload::Compare(request);
                if let Err(then) = self.wire.ask(Topic::Compare, payload, COMPARE_WAIT, then, context) {
                    self.replied(then, Err(NoReply::Down), context);
                }
            }
        }
    }

    fn settle(&mut self, context: &mut Context<'_>) {
        self.mending = Mending::Settles;
        context.wait(SETTLE_PAUSE, Timer::Mend);
    }

    fn mend(&mut self, context: &mut Context<'_>) {
        match self.mending {
            Mending::Settles => {
                self.mending = Mending::No;
                self.renew_lease(false, context);
                if self.differs || self.holding.mends() {
                    self.look_into_difference(context);
                }
            }
            Mending::Step => self.next_step(context),
            Mending::No | Mending::Comparing | Mending::Claims => {}
        }
    }

    fn next_step(&mut self, context: &mut Context<'_>) {
        while let Some(step) = self.steps.pop_front() {
            match step {
                Step::Release(held) if !self.sessions.contains_key(&held.session) => {
                    self.tell_release(held, context);
                    return context.wait(RECLAIM_PAUSE, Timer::Mend);
                }
                Step::Claim(held) => {
                    let Some(generation) = self.holding.generation(held.session) else { continue };
                    let Some(session) = self.sessions.get(&held.session) else { continue };
                    let (visit, since_ms) = (session.visit, session.since_ms);
                    let Some(ticket) = self.visitors.get(&visit).map(|visitor| visitor.ticket) else {
                        continue;
                    };
                    self.mending = Mending::Claims;
                    self.mended.insert(held.session);
                    let claiming = Claiming {
                        device: held.device,
                        visit,
                        generation: Some(generation),
                        give_up: context.at + CLAIM_TIMEOUT,
                        may_renew: true,
                        ticket,
                        since_ms,
                        is_again: false,
                    };
                    self.ask_for_claim(held.session, claiming, context);
                }
                Step::Release(_) => {}
            }
        }
        if self.mended.is_empty() && self.mending != Mending::Settles {
            self.settle_mended(context);
        }
    }

    fn settle_mended(&mut self, context: &mut Context<'_>) {
        self.holding.mended(std::mem::take(&mut self.is_left));
        self.settle(context);
    }

    // Calls.

    fn deliver(&mut self, message: Message, sent: Instant, context: &mut Context<'_>) {
        let Message { reply_to, payload: Payload::Delivery(delivery, body), .. } = message else { return };
        let longest = Budget::from_ms(MAX_TIMEOUT_MS);
        let deadline = delivery.budget_ms.min(longest).starting(sent);
        let deadline = self.wire.ends(delivery.until.as_ref(), deadline);
        if deadline.has_passed(context.now) && !is(Fault::AgeIsIgnored) {
            let reply = DeliveryReply::Ended(Outcome::Unavailable);
            self.wire.answer(reply_to, Payload::Delivered(reply, Bytes::new()), context);
            return;
        }
        let session = self.sessions.get_mut(&delivery.session).filter(|it| it.device == delivery.target);
        let Some(session) = session else {
            self.wire.answer(reply_to, Payload::Delivered(DeliveryReply::NotHere, Bytes::new()), context);
            return;
        };
        let incoming = Incoming {
            call: delivery.call,
            caller: None,
            oneway: delivery.oneway,
            traceparent: None,
            method: None,
            body,
            deadline,
            verdict: None,
            reply_to,
            late: None,
        };
        session.target.deliver(Box::new(incoming), context.now);
        let id = delivery.session;
        self.write(id, context);
    }

    fn write(&mut self, id: SessionId, context: &mut Context<'_>) {
        let Some(mut session) = self.sessions.remove(&id) else { return };
        while let Some((number, call)) = session.target.next(context.now) {
            let told = ToClient::Call(number, call.body.clone());
            context.effects.push(Effect::ToClient(session.client, told));
            session.target.written(number);
        }
        self.conclude(&mut session, context);
        if let Some(expiry) = session.target.next_expiry() {
            let after = expiry.saturating_duration_since(context.now).as_micros() as Micros;
            let at = context.at + after;
            if session.expires_at <= context.at || at < session.expires_at {
                session.expires_at = at;
                context.wait(after, Timer::Expire(id));
            }
        }
        self.sessions.insert(id, session);
    }

    fn conclude(&self, session: &mut Session, context: &mut Context<'_>) {
        while let Some(conclusion) = session.target.next_conclusion() {
            if let Conclusion::Call { reply_to, reply: Some(reply), body } = conclusion {
                self.wire.answer(reply_to, Payload::Delivered(reply, body), context);
            }
        }
    }

    fn call(
        &mut self,
        client: ClientId,
        (call, target, timeout_ms, connect_ms): (usize, DeviceId, u32, u32),
        context: &mut Context<'_>,
    ) {
        let Some((visit, visitor)) = self.visitors.iter().find(|(_, it)| it.client == client) else { return };
        self.last_serial += 1;
        let id = CallId { node: self.id, serial: self.last_serial };
        let head = Call {
            call: id,
            caller: visitor.device,
            caller_name: String::new(),
            visit: *visit,
            ticket: Some(visitor.ticket),
            target,
            budget_ms: Budget::from_ms(timeout_ms),
            until: self.wire.until(context.now + Duration::from_millis(timeout_ms.into()), context.now),
            connect_budget_ms: Budget::from_ms(connect_ms),
            protocol: None,
            oneway: false,
            traceparent: None,
            app: None,
        };
        let cancel = (connect_ms > 0).then_some(CancelRequest { call: id, target });
        let payload = Payload::Call(Box::new(head), call.to_string().into());
        let wait = Micros::from(timeout_ms) * MS + OUTCOME_GRACE;
        let then = Then::Call { client, call, cancel };
        if let Err(then) = self.wire.ask(Topic::Call, payload, wait, then, context) {
            self.replied(then, Err(NoReply::Down), context);
        }
    }

    fn hear(&mut self, client: ClientId, said: FromClient, context: &mut Context<'_>) {
        let visit = self.visitors.iter().find(|(_, it)| it.client == client).map(|(visit, _)| *visit);
        match said {
            FromClient::Connect(..) if self.drains => {
                context.effects.push(Effect::ToClient(client, ToClient::Refused));
            }
            FromClient::Connect(_, credential) => {
                let visit = self.next_id();
                let then = Then::Admit { client, visit, credential, changes: self.changes };
                self.authenticate(credential, visit, then, context);
            }
            FromClient::Close => match visit {
                Some(visit) => self.leave(visit, None, context),
                None => self.forget(client),
            },
            FromClient::Call(call, target, timeout_ms, connect_ms) => {
                self.call(client, (call, target, timeout_ms, connect_ms), context);
            }
            FromClient::Answer(number, body) => {
                let session = visit.and_then(|visit| self.visitors.get(&visit)).and_then(|it| it.session);
                let Some(id) = session else { return };
                if let Some(session) = self.sessions.get_mut(&id) {
                    let _: AnswerTaken = session.target.answer(number, &body, true, context.now);
                    self.write(id, context);
                    self.leave_if_idle(id, context);
                }
            }
        }
    }

    /// A device that is gone before it was let in.
    fn forget(&mut self, client: ClientId) {
        let its = |then: &Then| matches!(then, Then::Admit { client: it, .. } if *it == client);
        let asked = self.wire.questions().find(|(_, then)| its(then)).map(|(number, _)| number);
        if let Some(number) = asked {
            self.wire.give_up(number);
        }
    }

    fn replied(&mut self, then: Then, reply: Result<Payload, NoReply>, context: &mut Context<'_>) {
        match then {
            Then::Admit { client, visit, credential, changes } => {
                let identity = identity(reply).ok().flatten();
                self.admit((client, visit, credential, changes), identity, context);
            }
            Then::AdmitAgain { visit } => {
                let place = self.visitors.get(&visit).map(|it| (it.device, it.place));
                match identity(reply) {
                    Ok(Some(it)) if place == Some((it.device, (it.tenant, it.customer))) => {
                        self.begin_session(visit, context);
                    }
                    _ => self.leave(visit, Some(ToClient::Refused), context),
                }
            }
            Then::Recheck { visit } => {
                self.rechecked(visit, reply, context);
                context.wait(RECLAIM_PAUSE, Timer::Recheck);
            }
            Then::RenewToClaim { session } => {
                if let Some(claiming) = self.claiming.get(&session).copied() {
                    self.rechecked(claiming.visit, reply, context);
                    if self.claiming.contains_key(&session) {
                        self.ask_for_claim(session, claiming, context);
                    }
                }
            }
            Then::Claim { session } => self.claim_replied(session, reply, context),
            Then::Call { client, call, .. } => {
                let (outcome, body) = match reply {
                    Ok(Payload::Outcome(outcome, body)) => (outcome, body),
                    _ => (Outcome::Unavailable, Bytes::new()),
                };
                context.effects.push(Effect::ToClient(client, ToClient::Outcome(call, outcome, body)));
            }
            Then::Compare { told } => {
                if let Ok(Payload::Compared(reply)) = reply {
                    let mut mend = self.holding.compared(&told, &reply);
                    mend.claim.sort_unstable_by_key(|held| held.session);
                    self.steps.extend(mend.release.into_iter().map(Step::Release));
                    self.steps.extend(mend.claim.into_iter().map(Step::Claim));
                    self.mending = Mending::Step;
                    self.next_step(context);
                } else {
                    self.is_left = true;
                    self.settle_mended(context);
                }
            }
        }
    }

    // Its end.

    fn drain(&mut self, context: &mut Context<'_>) {
        self.drains = true;
        context.wait(DRAIN, Timer::DrainEnds);
        self.shed(context);
        self.exit_if_drained(context);
    }

    /// Everybody is to go to another node.
    fn shed(&mut self, context: &mut Context<'_>) {
        self.shed.extend(self.visitors.keys());
        self.renew_lease(false, context);
        let told_before = TOLD_BEFORE.as_micros() as Micros;
        self.leaves_from = context.at + told_before;
        context.wait(told_before, Timer::Leave);
    }

    fn leave_all_idle(&mut self, context: &mut Context<'_>) {
        let sessions: Vec<SessionId> = self.sessions.keys().copied().collect();
        for id in sessions {
            self.leave_if_idle(id, context);
        }
    }

    /// A session of whoever is to go is over once nothing is in flight.
    fn leave_if_idle(&mut self, id: SessionId, context: &mut Context<'_>) {
        let is_being_claimed = self.claiming.get(&id).is_some_and(|claiming| claiming.generation.is_none());
        let Some(session) = self.sessions.get(&id).filter(|_| !is_being_claimed) else { return };
        let visit = session.visit;
        let is_to_go = (self.drains || self.shed.contains(&visit)) && context.at >= self.leaves_from;
        if is_to_go && session.target.has_none_open() {
            let why = if self.drains { SessionEnd::ShuttingDown } else { SessionEnd::Moved };
            self.leave(visit, Some(ToClient::Closed(Some(why))), context);
        }
    }

    fn exit_if_drained(&mut self, context: &mut Context<'_>) {
        if self.drains && self.visitors.is_empty() {
            self.renew_lease(true, context);
            context.effects.push(Effect::Exit);
        }
    }
}

fn identity(reply: Result<Payload, NoReply>) -> Result<Option<Identity>, ()> {
    match reply {
        Ok(Payload::Authenticated(AuthenticateReply::Identity(identity))) => Ok(Some(identity)),
        Ok(Payload::Authenticated(AuthenticateReply::Refused)) => Ok(None),
        _ => Err(()),
    }
}

impl Service for Node {
    fn take(&mut self, input: Input, context: &mut Context<'_>) {
        match self.wire.take(input, context) {
            Taken::Beat(beat, is_first) if is_first || beat.asks => self.renew_lease(false, context),
            Taken::Nothing | Taken::Beat(..) | Taken::Lost | Taken::Feed(_) | Taken::Down => {}
            Taken::Up => {
                let own = [Topic::Node(self.id), Topic::Takeover(self.id), Topic::Differs(self.id)];
                let all = [Topic::DeviceChanged, Topic::DirectoryLoaded, Topic::Beat];
                context
                    .effects
                    .extend(own.into_iter().chain(all).map(|topic| Effect::Subscribe(topic, false)));
                self.renews_at = context.at + LEASE_US / 3;
                context.wait(LEASE_US / 3, Timer::Lease);
                self.renew_lease(false, context);
                self.recheck_all(context);
            }
            Taken::Reply(then, reply) => self.replied(then, reply, context),
            Taken::Request(message, sent) => match &message.payload {
                Payload::Delivery(..) => self.deliver(message, sent, context),
                Payload::Takeover(takeover) => self.take_over(takeover.device, takeover.session, context),
                Payload::Changed(state) => {
                    self.changes += 1;
                    self.end_outdated(state, context);
                }
                Payload::Nothing if message.topic == Topic::DirectoryLoaded => self.recheck_all(context),
                Payload::Nothing => {
                    self.differs = true;
                    if self.mending == Mending::No {
                        self.look_into_difference(context);
                    }
                }
                _ => {}
            },
            Taken::Other(input) => match input {
                Input::Start => {}
                Input::Timer(Timer::Lease) if context.at >= self.renews_at => {
                    self.renews_at = context.at + LEASE_US / 3;
                    context.wait(LEASE_US / 3, Timer::Lease);
                    self.renew_lease(false, context);
                }
                Input::Timer(Timer::ClaimAgain(session)) => {
                    if let Some(claiming) = self.claiming.get(&session).copied() {
                        self.ask_for_claim(session, claiming, context);
                    }
                }
                Input::Timer(Timer::Mend) => self.mend(context),
                Input::Timer(Timer::Recheck) => self.recheck_next(context),
                Input::Timer(Timer::Expire(id)) => {
                    if let Some(session) = self.sessions.get_mut(&id) {
                        session.target.expire(context.now);
                        self.write(id, context);
                        self.leave_if_idle(id, context);
                    }
                }
                Input::Timer(Timer::Leave) => self.leave_all_idle(context),
                Input::Timer(Timer::DrainEnds) => {
                    let visits: Vec<u64> = self.visitors.keys().copied().collect();
                    for visit in visits {
                        self.leave(visit, Some(ToClient::Closed(Some(SessionEnd::ShuttingDown))), context);
                    }
                }
                Input::FromClient(client, said) => self.hear(client, said, context),
                Input::Drain if !self.drains => self.drain(context),
                Input::Shed => self.shed(context),
                _ => {}
            },
        }
    }

    fn serves(&self) -> bool {
        self.wire.is_up() && !self.drains
    }

    fn beliefs(&self) -> Beliefs {
        let mut beliefs = Beliefs::from([
            ("connected".into(), self.wire.is_up().to_string()),
            ("questions".into(), self.wire.questions().count().to_string()),
            ("mending".into(), format!("{:?}", self.mending)),
        ]);
        for (id, session) in &self.sessions {
            let held = self.holding.generation(*id);
            let what = held.map_or_else(|| "asks for its claim".to_owned(), |held| format!("{held:?}"));
            beliefs.insert(format!("session {id} of {}", name_of(session.device)), what);
        }
        beliefs
    }

    fn leaks(&self) -> Vec<String> {
        let mut leaks: Vec<String> =
            self.wire.questions().map(|(number, then)| format!("question {number}: {then:?}")).collect();
        leaks.extend(self.sessions.values().map(|it| format!("a session of {}", name_of(it.device))));
        leaks.extend(self.visitors.values().map(|it| format!("a visitor, {}", name_of(it.device))));
        leaks.extend(self.claiming.keys().map(|session| format!("a claim being asked for, of {session}")));
        let tally = self.holding.renewal(self.id, false).tally;
        if tally.claims > 0 {
            leaks.push(format!("{} claims held", tally.claims));
        }
        leaks
    }
}
