//! How do an authorizer's cores run here? Its directory, its freshness and its policy, on the model's messages.

use std::collections::{HashSet, VecDeque};
use std::time::Instant;

use bus::registry::Change;
use bytes::Bytes;
use rpc::faults::{Fault, is};
use rpc::{AuthenticateReply, Budget, Call, DeviceId, Holder, Identity, Outcome, TicketKeys};
use switchboard_authorizer::directory::{Directory, Known};
use switchboard_authorizer::freshness::{BEAT_EVERY, Freshness};
use switchboard_authorizer::policy::{Decision, Rules, decide};

use crate::history::Event;
use crate::message::{Bucket, Feed, Inbox, MS, Message, Micros, Payload, ReplyTo, SECOND, StoreAsk, Topic};
use crate::service::{Beliefs, Context, Effect, Input, Service, Timer};
use crate::settings::MAX_TIMEOUT_MS;
use crate::wire::{Taken, Wire};

const RULES: Rules = Rules { conceal_foreign_devices: false };
const TICK: Micros = 200 * MS;
const RECHECK_PAUSE: Micros = 5 * SECOND;
const SHARED: [Topic; 2] = [Topic::Authenticate, Topic::Call];

/// A running authorizer.
pub struct Authorizer {
    directory: Directory,
    freshness: Freshness,
    wire: Wire<()>,
    keys: TicketKeys,
    /// What waits for the directory to be fresh: calls, and credentials.
    held: [VecDeque<(Message, Instant)>; 2],
    untold: HashSet<DeviceId>,
    is_recheck_due: bool,
    is_recheck_untold: bool,
    rechecked_at: Option<Micros>,
    serves: bool,
    drains: bool,
    has_stopped: bool,
}

impl Authorizer {
    /// Knows nothing yet.
    pub fn new(keys: TicketKeys, now: Instant) -> Self {
        Authorizer {
            directory: Directory::default(),
            freshness: Freshness::new(now),
            wire: Wire::new(Some(Bucket::Registry), now),
            keys,
            held: Default::default(),
            untold: HashSet::new(),
            is_recheck_due: false,
            is_recheck_untold: false,
            rechecked_at: None,
            serves: false,
            drains: false,
            has_stopped: false,
        }
    }

    fn is_fresh(&self, now: Instant) -> bool {
        self.freshness.is_fresh(now)
    }

    fn beat(&mut self, context: &mut Context<'_>) {
        let number = self.freshness.beat(context.now);
        let beat = StoreAsk::Beat(context.me, number);
        self.wire.tell(Topic::Store, Payload::Ask(beat), context);
    }

    fn take_feed(&mut self, feed: Feed, context: &mut Context<'_>) {
        let change = match feed {
            Feed::Opened(..) => {
                self.freshness.lost();
                Change::Loading
            }
            Feed::Loaded => Change::Loaded,
            Feed::Device(device, record) => {
                let credential = Change::Credential(record.credential.clone(), Some(device));
                self.directory.apply(credential, &mut self.untold);
                Change::Device(device, Some(*record))
            }
            Feed::Beat(of, number) if of == context.me => {
                self.freshness.returned(number);
                return;
            }
            Feed::Beat(..) | Feed::Heartbeat | Feed::Claim(..) | Feed::Unclaimed(..) => return,
        };
        let is_complete = change == Change::Loaded;
        self.directory.apply(change, &mut self.untold);
        if is_complete {
            self.freshness.loaded();
            self.beat(context);
            self.is_recheck_untold = true;
            if !self.serves && !self.drains {
                self.serves = true;
                self.subscribe(context);
            }
        }
    }

    fn subscribe(&self, context: &mut Context<'_>) {
        if self.serves {
            context.effects.extend(SHARED.map(|topic| Effect::Subscribe(topic, true)));
        }
    }

    fn tell_untold(&mut self, context: &mut Context<'_>) {
        if self.is_recheck_untold
            && self.serves
            && self.wire.tell(Topic::DirectoryLoaded, Payload::Nothing, context)
        {
            self.is_recheck_untold = false;
            self.rechecked_at = Some(context.at);
        }
        let mut untold: Vec<DeviceId> = self.untold.iter().copied().collect();
        untold.sort_unstable();
        for device in untold {
            let state = self.directory.state(device);
            if self.wire.tell(Topic::DeviceChanged, Payload::Changed(state), context) {
                self.untold.remove(&device);
            }
        }
    }

    fn take_request(&mut self, message: Message, sent: Instant, context: &mut Context<'_>) {
        let line = match message.payload {
            Payload::Call(..) => 0,
            Payload::Authenticate(_) => 1,
            _ => return self.answer(message, sent, context),
        };
        if let Some(line) = self.held.get_mut(line) {
            line.push_back((message, sent));
        }
        self.go_on(context);
    }

    /// Answers what need not wait, or has waited for long enough.
    fn go_on(&mut self, context: &mut Context<'_>) {
        while self.is_fresh(context.now) || context.now >= self.freshness.held_until() || self.has_stopped {
            let Some((message, sent)) = self.held.iter_mut().find_map(VecDeque::pop_front) else { return };
            self.answer(message, sent, context);
        }
    }

    fn answer(&mut self, message: Message, sent: Instant, context: &mut Context<'_>) {
        match (message.payload, message.reply_to) {
            (Payload::Call(call, body), Some(ReplyTo::Inbox(inbox))) => {
                self.take_call(*call, body, inbox, sent, context);
            }
            (Payload::Authenticate(asked), reply_to) => {
                let reply = match self.directory.identify(&asked.credential) {
                    _ if !self.is_fresh(context.now) => AuthenticateReply::Unavailable,
                    None => AuthenticateReply::Refused,
                    Some(Known { device, tenant, customer, name, stamp }) => {
                        let holder = Holder { device, node: asked.node, visit: asked.visit };
                        match self.keys.sign(holder, stamp, context.wall_s) {
                            Some(ticket) => AuthenticateReply::Identity(Identity {
                                device,
                                tenant,
                                customer,
                                name,
                                ticket,
                            }),
                            None => AuthenticateReply::Unavailable,
                        }
                    }
                };
                self.wire.answer(reply_to, Payload::Authenticated(reply), context);
            }
            (Payload::NoResponders(ReplyTo::Bounce(inbox)), _) => {
                self.end(inbox, Outcome::Unavailable, context);
            }
            _ => {}
        }
    }

    fn take_call(
        &mut self,
        mut call: Call,
        body: Bytes,
        inbox: Inbox,
        sent: Instant,
        context: &mut Context<'_>,
    ) {
        let longest = Budget::from_ms(MAX_TIMEOUT_MS);
        let deadline = call.budget_ms.min(longest).starting(sent);
        let connect_deadline = call.connect_budget_ms.min(longest).starting(sent);
        if deadline.has_passed(context.now) {
            return;
        }
        let ticket = call.ticket.take();
        let holder = Holder { device: call.caller, node: call.call.node, visit: call.visit };
        if !self.is_fresh(context.now) {
            return self.end(inbox, Outcome::Unavailable, context);
        }
        let is_heard = ticket.is_some_and(|ticket| self.keys.check(&ticket, holder, context.wall_s).is_ok())
            || is(Fault::SkippedTicketCheck);
        if !is_heard {
            self.is_recheck_due = true;
            return self.end(inbox, Outcome::Unavailable, context);
        }
        let (caller, target) = self.directory.standings(call.caller, call.target);
        let caller = caller.filter(|(_, stamp)| ticket.is_some_and(|ticket| ticket.stamp() == *stamp));
        match decide(caller.map(|(caller, _)| caller).as_ref(), target.as_ref(), RULES) {
            Decision::Refuse(refusal) => self.end(inbox, refusal.outcome(), context),
            Decision::Allow => {
                if let Some(call) = crate::world::call_of(&body) {
                    context.record(Event::Allowed { call });
                }
                call.budget_ms = deadline.remaining(context.now);
                call.connect_budget_ms = connect_deadline.remaining(context.now);
                let payload = Payload::Routed(Box::new(call), body, inbox);
                if !self.wire.forward(Topic::Route, Some(ReplyTo::Bounce(inbox)), payload, context) {
                    self.end(inbox, Outcome::Unavailable, context);
                }
            }
        }
    }

    fn end(&self, inbox: Inbox, outcome: Outcome, context: &mut Context<'_>) {
        self.wire.tell(Topic::Reply(inbox), Payload::Outcome(outcome, Bytes::new()), context);
    }
}

impl Service for Authorizer {
    fn take(&mut self, input: Input, context: &mut Context<'_>) {
        match self.wire.take(input, context) {
            Taken::Nothing | Taken::Beat(..) | Taken::Reply(..) => {}
            Taken::Up => self.subscribe(context),
            Taken::Down | Taken::Lost => self.freshness.lost(),
            Taken::Request(message, sent) => self.take_request(message, sent, context),
            Taken::Feed(feed) => self.take_feed(feed, context),
            Taken::Other(input) => match input {
                Input::Start => {
                    context.wait(TICK, Timer::Tick);
                    context.wait(BEAT_EVERY.as_micros() as Micros, Timer::Beat);
                }
                Input::Timer(Timer::Tick) => {
                    context.wait(TICK, Timer::Tick);
                    let may_again = self.rechecked_at.is_none_or(|at| context.at >= at + RECHECK_PAUSE);
                    if may_again && std::mem::take(&mut self.is_recheck_due) {
                        self.is_recheck_untold = true;
                    }
                }
                Input::Timer(Timer::Beat) => {
                    context.wait(BEAT_EVERY.as_micros() as Micros, Timer::Beat);
                    self.beat(context);
                }
                Input::Drain => {
                    (self.drains, self.serves) = (true, false);
                    context.effects.extend(SHARED.map(Effect::Unsubscribe));
                    context.wait(SECOND, Timer::DrainEnds);
                }
                Input::Timer(Timer::DrainEnds) => {
                    self.has_stopped = true;
                    self.go_on(context);
                    context.effects.push(Effect::Exit);
                }
                _ => {}
            },
        }
        self.go_on(context);
        self.tell_untold(context);
    }

    fn serves(&self) -> bool {
        self.wire.is_up() && self.serves
    }

    fn beliefs(&self) -> Beliefs {
        Beliefs::from([
            ("connected".into(), self.wire.is_up().to_string()),
            ("serves".into(), self.serves.to_string()),
            ("devices known".into(), self.directory.sizes().devices.to_string()),
            ("changes untold".into(), self.untold.len().to_string()),
        ])
    }

    fn leaks(&self) -> Vec<String> {
        let untold =
            self.untold.iter().map(|device| format!("{} is untold", crate::settings::name_of(*device)));
        let held = self.held.iter().filter(|line| !line.is_empty());
        untold.chain(held.map(|line| format!("{} questions are held", line.len()))).collect()
    }
}
