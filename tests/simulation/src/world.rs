//! What happens next? One queue of what is to happen, in virtual time; nothing else decides the order of anything.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rpc::{NodeId, SessionEnd, TicketKeys};

use crate::authorizer::Authorizer;
use crate::client::{Client, ClientId, FromClient, Stage, ToClient};
use crate::history::{Ending, Entry, Event};
use crate::message::{
    Bucket, Feed, MS, Message, Micros, Payload, Pid, ReplyTo, SECOND, StoreAsk, StoreReply, Topic,
};
use crate::net::{LinkId, Net, Outbox, Routed};
use crate::node::Node;
use crate::router::Router;
use crate::service::{Beliefs, Context, Effect, Input, Service, Timer};
use crate::settings::{LEASE_US, credential, device_id, name_of, record};
use crate::store::Watcher;
use crate::thief::Thief;
use crate::transition::{Kind, Plan, Seconds, Transition};

/// The session of a call that a thief got.
pub const THIEF: usize = usize::MAX;
/// Seconds since 1970 at the beginning.
const EPOCH_S: i64 = 1_790_000_000;
/// After the last fault and a lease, all is well within this.
const SLACK: Micros = SECOND;
/// How long what must succeed may take, and devices that have gone are thought of.
const PROBES_LAST: Micros = 6 * SECOND;
const CLOSING_LASTS: Micros = 12 * SECOND;
const LATENCY: std::ops::Range<Micros> = 50..1_500;

/// The call that a body names.
pub fn call_of(body: &Bytes) -> Option<usize> {
    std::str::from_utf8(body).ok()?.parse().ok()
}

#[derive(Debug, Clone)]
enum Up {
    Publish(Message),
    Subscribe(Topic, bool),
    Unsubscribe(Topic),
    Close,
}

#[derive(Debug, Clone)]
enum Happening {
    Step(usize),
    Start(usize),
    Timer(Pid, Timer),
    TryConnect(Pid, u32),
    AtServer(LinkId, Up),
    AtProcess(LinkId, Message, Option<Micros>),
    LinkLost(LinkId),
    StoreDoes(LinkId, Option<ReplyTo>, StoreAsk),
    Feed(LinkId, u64, Feed),
    Heartbeats,
    Wake(Pid),
    ServerBack(usize),
    ServerWakes(usize),
    LagEnds(LinkId),
    Assign(usize, Option<u8>),
    AtNode(ClientId, FromClient),
    AtClient(ClientId, ToClient),
    Answers(ClientId, u32, Bytes),
    Comes(usize),
    Heals,
    Probes,
    Closes,
    Ends,
}

struct Due {
    at: Micros,
    number: u64,
    happening: Happening,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

struct Process {
    name: String,
    slot: usize,
    service: Box<dyn Service>,
    lives: bool,
    link: Option<LinkId>,
    sleeps_since: Option<Micros>,
    sleeps_until: Micros,
    deferred: Vec<Happening>,
    blocked_until: Micros,
    clock_off_s: i64,
    outbox: Outbox,
    restarts_after: Micros,
}

struct CallState {
    client: ClientId,
    is_over: bool,
    must_succeed: bool,
}

/// Everything that there is.
pub struct World {
    /// Virtual time.
    pub now: Micros,
    /// What has happened.
    pub history: Vec<Entry>,
    /// The same as a story, when it is to be told.
    pub story: Option<Vec<String>>,
    plan: Plan,
    base: Instant,
    queue: BinaryHeap<Reverse<Due>>,
    last_number: u64,
    rng: fastrand::Rng,
    net: Net,
    processes: Vec<Process>,
    running: Vec<Option<Pid>>,
    clients: Vec<Client>,
    wants: Vec<bool>,
    calls: Vec<CallState>,
    hung_until: Vec<Micros>,
    store_last: Micros,
    keys: TicketKeys,
    is_closing: bool,
    has_ended: bool,
}

impl World {
    /// At the beginning of a plan.
    pub fn new(plan: &Plan, tells: bool) -> Self {
        let slots = plan.nodes + plan.routers + plan.authorizers;
        let mut world = World {
            now: 0,
            history: Vec::new(),
            story: tells.then(Vec::new),
            plan: plan.clone(),
            base: Instant::now(),
            queue: BinaryHeap::new(),
            last_number: 0,
            rng: fastrand::Rng::with_seed(plan.seed ^ 0x5eed),
            net: Net::new(plan.servers),
            processes: Vec::new(),
            running: vec![None; slots + 1],
            clients: Vec::new(),
            wants: vec![false; plan.devices],
            calls: Vec::new(),
            hung_until: vec![0; plan.servers],
            store_last: 0,
            keys: TicketKeys::default().rotated([1; 32], 1).unwrap_or_default(),
            is_closing: false,
            has_ended: false,
        };
        for slot in 0..=slots {
            let after = if slot == slots { 0 } else { world.rng.u64(0..500 * MS) };
            world.after(after, Happening::Start(slot));
        }
        for (place, step) in plan.steps.iter().enumerate() {
            world.after(step.at, Happening::Step(place));
        }
        let heals_at = plan.heals_at();
        world.after(heals_at, Happening::Heals);
        world.after(SECOND, Happening::Heartbeats);
        world
    }

    /// Runs to the end.
    pub fn run(mut self) -> Self {
        while self.step() {}
        self
    }

    /// Does the next thing; false when all is over.
    pub fn step(&mut self) -> bool {
        let Some(Reverse(Due { at, happening, .. })) = self.queue.pop() else { return false };
        self.now = at;
        self.happens(happening);
        !self.has_ended
    }

    /// What each running process believes.
    pub fn beliefs(&self) -> BTreeMap<String, Beliefs> {
        let running = self.running.iter().flatten().filter_map(|pid| self.processes.get(*pid));
        let mut beliefs: BTreeMap<String, Beliefs> =
            running.map(|process| (process.name.clone(), process.service.beliefs())).collect();
        let store = self.net.store.standing().map(|(device, revision, claim)| {
            let told = format!("{} of {}, {:?}, at {revision}", claim.session, claim.node, claim.generation);
            (format!("claim of {}", name_of(device)), told)
        });
        beliefs.insert("the store".into(), store.collect());
        beliefs
    }

    fn after(&mut self, after: Micros, happening: Happening) {
        self.at(self.now + after, happening);
    }

    fn at(&mut self, at: Micros, happening: Happening) {
        self.last_number += 1;
        self.queue.push(Reverse(Due { at, number: self.last_number, happening }));
    }

    fn say(&mut self, tell: impl FnOnce(&World) -> String) {
        if self.story.is_some() {
            let line = format!("{:>9} {}", Seconds(self.now).to_string(), tell(self));
            if let Some(story) = &mut self.story {
                story.push(line);
            }
        }
    }

    fn record(&mut self, event: Event) {
        self.history.push(Entry { at: self.now, event });
        if self.story.is_some() {
            let told = match event {
                Event::Executed { call, session } => {
                    format!("   call {call} is executed, by connection {session}")
                }
                Event::Ended { call, outcome, .. } => format!("   call {call} ends: {outcome:?}"),
                Event::Callable { session } => format!("   connection {session} is callable"),
                Event::Connecting { device, session, node } => {
                    let name = self.processes.get(node).map(|it| it.name.clone()).unwrap_or_default();
                    format!("   D{device} opens connection {session} to {name}")
                }
                Event::Over { session, reason } => match reason {
                    Some(reason) => format!("   connection {session} is over: {reason:?}"),
                    None => format!("   connection {session} is over"),
                },
                Event::Called { call, caller, target, .. } => {
                    format!("   D{caller} calls D{target}: call {call}")
                }
                other => format!("   {other:?}"),
            };
            self.say(|_| told);
        }
    }

    fn process(&self, pid: Pid) -> Option<&Process> {
        self.processes.get(pid)
    }

    fn sleeps(&self, pid: Pid) -> bool {
        self.process(pid).is_some_and(|it| it.sleeps_since.is_some())
    }

    /// The process that something is for, which waits while that sleeps.
    fn concerns(&self, happening: &Happening) -> Option<Pid> {
        match happening {
            Happening::Timer(pid, _) | Happening::TryConnect(pid, _) => Some(*pid),
            Happening::AtProcess(link, ..) | Happening::LinkLost(link) => {
                self.net.links.get(*link).map(|link| link.process)
            }
            Happening::AtNode(client, _) => self.clients.get(*client).map(|client| client.node),
            _ => None,
        }
    }

    fn happens(&mut self, happening: Happening) {
        if let Some(pid) = self.concerns(&happening) {
            match self.processes.get_mut(pid) {
                Some(process) if process.sleeps_since.is_some() => return process.deferred.push(happening),
                Some(process) if !process.lives => {
                    if let Happening::AtNode(client, said) = happening
                        && !matches!(said, FromClient::Close)
                    {
                        self.tell_client(client, ToClient::Closed(None));
                    }
                    return;
                }
                _ => {}
            }
        }
        match happening {
            Happening::Step(place) => {
                if let Some(step) = self.plan.steps.get(place).copied() {
                    self.does(step.what);
                }
            }
            Happening::Start(slot) => self.start(slot),
            Happening::Timer(pid, timer) => self.tell(pid, Input::Timer(timer)),
            Happening::TryConnect(pid, attempt) => self.try_connect(pid, attempt),
            Happening::AtServer(link, up) => self.at_server(link, up),
            Happening::AtProcess(link, message, not_yet) => self.at_process(link, message, not_yet),
            Happening::LinkLost(link) => self.link_lost(link),
            Happening::StoreDoes(link, reply_to, ask) => self.store_does(link, reply_to, ask),
            Happening::Feed(link, number, feed) => self.feed(link, number, feed),
            Happening::Heartbeats => self.heartbeats(),
            Happening::Wake(pid) => self.wake(pid),
            Happening::ServerBack(server) => {
                self.say(|_| format!("server {} of NATS is back", server + 1));
                if let Some(runs) = self.net.servers.get_mut(server) {
                    *runs = true;
                }
                self.net.store.leaderless_until =
                    self.net.store.leaderless_until.max(self.now + self.rng.u64(50..500) * MS);
            }
            Happening::ServerWakes(server) => self.say(|_| format!("server {} of NATS wakes", server + 1)),
            Happening::LagEnds(link) => {
                self.net.store.watchers.iter_mut().filter(|it| it.link == link).for_each(|it| it.lag = 0);
            }
            Happening::Assign(device, customer) => self.assign(device, customer),
            Happening::AtNode(client, said) => {
                if let Some(node) = self.clients.get(client).map(|client| client.node) {
                    self.tell(node, Input::FromClient(client, said));
                }
            }
            Happening::AtClient(client, told) => self.at_client(client, told),
            Happening::Answers(client, number, body) => {
                self.client_says(client, FromClient::Answer(number, body));
            }
            Happening::Comes(device) => self.comes(device),
            Happening::Heals => {
                self.record(Event::Healed);
                self.after(LEASE_US + SLACK, Happening::Probes);
            }
            Happening::Probes => {
                self.say(|_| "nothing has been wrong for a lease: who is connected must be callable".into());
                self.probe();
                self.after(PROBES_LAST, Happening::Closes);
            }
            Happening::Closes => self.close_all(),
            Happening::Ends => self.end(),
        }
    }

    // Processes.

    fn start(&mut self, slot: usize) {
        let pid = self.processes.len();
        let now = self.base + Duration::from_micros(self.now);
        let id = NodeId(self.rng.u64(..) | 1);
        let keys = self.keys.clone();
        let service: Box<dyn Service> = match self.plan.kind_of(slot) {
            Kind::Node => Box::new(Node::new(id, now)),
            Kind::Router => Box::new(Router::new(keys, now)),
            Kind::Authorizer => Box::new(Authorizer::new(keys, now)),
            Kind::Thief => Box::new(Thief::new(id, now)),
        };
        let base_name = self.plan.name_of(slot);
        let before = self.processes.iter().filter(|process| process.slot == slot).count();
        let name = if before == 0 { base_name } else { format!("{base_name}{}", "'".repeat(before)) };
        self.processes.push(Process {
            name: name.clone(),
            slot,
            service,
            lives: true,
            link: None,
            sleeps_since: None,
            sleeps_until: 0,
            deferred: Vec::new(),
            blocked_until: 0,
            clock_off_s: 0,
            outbox: Outbox::new(),
            restarts_after: 0,
        });
        self.net.cut_until.push(0);
        if let Some(running) = self.running.get_mut(slot) {
            *running = Some(pid);
        }
        self.say(|_| format!("{name} starts ({id})"));
        self.tell(pid, Input::Start);
        self.after(1, Happening::TryConnect(pid, 0));
    }

    fn tell(&mut self, pid: Pid, input: Input) {
        let Some(process) = self.processes.get_mut(pid) else { return };
        if !process.lives {
            return;
        }
        let wall_s = EPOCH_S + (self.now / SECOND) as i64 + process.clock_off_s;
        #[cfg(feature = "faults")]
        rpc::faults::set_wall_ms((wall_s * 1_000 + (self.now % SECOND / MS) as i64) as u64);
        let mut context = Context {
            now: self.base + Duration::from_micros(self.now),
            at: self.now,
            wall_s: wall_s as u64,
            me: pid,
            rng: &mut self.rng,
            effects: Vec::new(),
        };
        process.service.take(input, &mut context);
        let effects = context.effects;
        for effect in effects {
            self.perform(pid, effect);
        }
    }

    fn perform(&mut self, pid: Pid, effect: Effect) {
        match effect {
            Effect::Send(message) => self.send(pid, Up::Publish(message)),
            Effect::Subscribe(topic, is_queue) => self.send(pid, Up::Subscribe(topic, is_queue)),
            Effect::Unsubscribe(topic) => self.send(pid, Up::Unsubscribe(topic)),
            Effect::Wait(after, timer) => self.after(after, Happening::Timer(pid, timer)),
            Effect::Reconnect => {
                self.say(|world| {
                    let name = world.process(pid).map(|it| it.name.clone()).unwrap_or_default();
                    format!("{name} hears nothing any more: it closes its connection")
                });
                if let Some(link) = self.process(pid).and_then(|process| process.link) {
                    self.send(pid, Up::Close);
                    self.link_lost(link);
                }
            }
            Effect::ToClient(client, told) => self.tell_client(client, told),
            Effect::Record(event) => self.record(event),
            Effect::Exit => {
                self.say(|world| {
                    format!("{} has ended", world.process(pid).map(|it| it.name.clone()).unwrap_or_default())
                });
                self.send(pid, Up::Close);
                self.ends(pid);
            }
        }
    }

    /// A process is no more. Another takes its slot.
    fn ends(&mut self, pid: Pid) {
        let Some(process) = self.processes.get_mut(pid) else { return };
        if !process.lives {
            return;
        }
        process.lives = false;
        process.sleeps_since = None;
        process.deferred.clear();
        let (slot, after) = (process.slot, process.restarts_after);
        if let Some(link) = process.link.take().and_then(|link| self.net.links.get_mut(link)) {
            link.is_open_at_process = false;
        }
        if let Some(running) = self.running.get_mut(slot) {
            *running = None;
        }
        let of_it: Vec<ClientId> = self
            .clients
            .iter()
            .enumerate()
            .filter(|(_, client)| client.node == pid && client.stage != Stage::Over)
            .map(|(place, _)| place)
            .collect();
        for client in of_it {
            self.tell_client(client, ToClient::Closed(None));
        }
        self.after(after.max(1), Happening::Start(slot));
    }

    fn wake(&mut self, pid: Pid) {
        let now = self.now;
        let Some(process) = self.processes.get_mut(pid) else { return };
        let Some(since) = process.sleeps_since else { return };
        if process.sleeps_until > now {
            return;
        }
        process.sleeps_since = None;
        let name = process.name.clone();
        let deferred = std::mem::take(&mut process.deferred);
        self.say(|_| format!("{name} wakes"));
        let (mut at, mut timers_at) = (now, now);
        for happening in deferred {
            let happening = match happening {
                Happening::AtProcess(link, message, None) => Happening::AtProcess(link, message, Some(since)),
                other => other,
            };
            // Order holds among what comes in, and among timers, and not between them.
            let at = if matches!(happening, Happening::Timer(..)) { &mut timers_at } else { &mut at };
            *at += self.rng.u64(1..100);
            let at = *at;
            self.at(at, happening);
        }
    }

    // NATS.

    fn try_connect(&mut self, pid: Pid, attempt: u32) {
        let Some(process) = self.process(pid) else { return };
        if process.link.is_some() {
            return;
        }
        let is_blocked = process.blocked_until > self.now;
        let server = self.net.reachable(pid, self.now, &mut self.rng);
        let hangs = |server: &usize| self.hung_until.get(*server).is_some_and(|until| *until > self.now);
        let Some(server) = server.filter(|server| !is_blocked && !hangs(server)) else {
            let pause = (20 * MS) << attempt.min(7);
            return self.after(pause.min(2 * SECOND), Happening::TryConnect(pid, attempt + 1));
        };
        let link = self.net.connect(pid, server, self.now);
        let Some(process) = self.processes.get_mut(pid) else { return };
        process.link = Some(link);
        let outbox = std::mem::take(&mut process.outbox);
        for message in outbox {
            self.send(pid, Up::Publish(message));
        }
        self.tell(pid, Input::Connected);
    }

    fn send(&mut self, pid: Pid, up: Up) {
        let Some(link) = self.process(pid).and_then(|process| process.link) else { return };
        if let (Up::Publish(message), true) = (&up, self.story.is_some()) {
            self.tell_of_message(pid, message);
        }
        let at = self.arrival(link, true);
        self.at(at, Happening::AtServer(link, up));
    }

    fn arrival(&mut self, link: LinkId, is_up: bool) -> Micros {
        let server = self.net.links.get(link).map(|link| link.server).unwrap_or_default();
        let hung_until = self.hung_until.get(server).copied().unwrap_or_default();
        let from = self.now.max(hung_until);
        self.net.arrival(link, is_up, from, &mut self.rng)
    }

    fn at_server(&mut self, link: LinkId, up: Up) {
        let Some(it) = self.net.links.get(link) else { return };
        let pid = it.process;
        if !it.is_open_at_server {
            // What had not left the process goes with its next connection; the rest is lost.
            if let (Up::Publish(message), true) = (up, self.rng.u8(0..10) < 3)
                && let Some(process) = self.processes.get_mut(pid)
                && process.lives
                && process.outbox.len() < 4
            {
                process.outbox.push_back(message);
            }
            return;
        }
        match up {
            Up::Publish(message) => self.publish(link, message),
            Up::Subscribe(topic, is_queue) => self.net.subscribe(link, topic, is_queue),
            Up::Unsubscribe(topic) => self.net.unsubscribe(link, topic),
            Up::Close => self.net.close_at_server(link),
        }
    }

    fn publish(&mut self, link: LinkId, message: Message) {
        match self.net.route(&message, &mut self.rng) {
            Routed::Store => {
                let Payload::Ask(ask) = message.payload else { return };
                if self.net.has_quorum() && self.now >= self.net.store.leaderless_until && !self.hangs_most()
                {
                    let takes = match (&ask, self.rng.u8(0..50)) {
                        (StoreAsk::Watch(..), 0) if self.now < self.plan.heals_at() => return,
                        (StoreAsk::Watch(..), 1..=5) => self.rng.u64(100..3_000) * MS,
                        (_, 0) => self.rng.u64(10..150) * MS,
                        _ => self.rng.u64(100..1_500),
                    };
                    // What opens a watch is a request of its own; writes are in line.
                    let at = match ask {
                        StoreAsk::Watch(..) => self.now + takes,
                        _ => (self.now + takes).max(self.store_last + 1),
                    };
                    if !matches!(ask, StoreAsk::Watch(..)) {
                        self.store_last = at;
                    }
                    self.at(at, Happening::StoreDoes(link, message.reply_to, ask));
                }
            }
            Routed::To(links) => {
                for to in links {
                    let at = self.arrival(to, false);
                    self.at(at, Happening::AtProcess(to, message.clone(), None));
                }
            }
            Routed::Nobody => {
                if let Some(reply_to) = message.reply_to {
                    let at = self.arrival(link, false);
                    let payload = Payload::NoResponders(reply_to);
                    let word = Message { topic: message.topic, reply_to: None, payload };
                    self.at(at, Happening::AtProcess(link, word, None));
                }
            }
        }
    }

    fn hangs_most(&self) -> bool {
        let awake = self
            .net
            .servers
            .iter()
            .zip(&self.hung_until)
            .filter(|(runs, hung_until)| **runs && **hung_until <= self.now)
            .count();
        awake * 2 <= self.net.servers.len()
    }

    fn at_process(&mut self, link: LinkId, message: Message, not_yet: Option<Micros>) {
        let Some(it) = self.net.links.get(link) else { return };
        if !it.is_open_at_process {
            return;
        }
        let pid = it.process;
        let not_yet = self.base + Duration::from_micros(not_yet.unwrap_or(self.now));
        self.tell(pid, Input::Message(message, not_yet));
    }

    fn link_lost(&mut self, link: LinkId) {
        let Some(it) = self.net.links.get_mut(link) else { return };
        let pid = it.process;
        if !std::mem::take(&mut it.is_open_at_process) {
            return;
        }
        if let Some(process) = self.processes.get_mut(pid) {
            process.link = None;
        }
        self.tell(pid, Input::Disconnected);
        self.after(100, Happening::TryConnect(pid, 0));
    }

    fn break_link(&mut self, link: LinkId) {
        self.net.close_at_server(link);
        let after = self.rng.u64(50..5_000);
        self.after(after, Happening::LinkLost(link));
    }

    // The store.

    fn store_does(&mut self, link: LinkId, reply_to: Option<ReplyTo>, ask: StoreAsk) {
        let reply = match ask {
            StoreAsk::Read(device) => self.net.store.read(device, self.now),
            StoreAsk::Write(device, claim, expected) => {
                let reply = self.net.store.write(device, Some(claim), expected, self.now);
                if let StoreReply::Written(revision) = reply {
                    self.say(|_| {
                        let name = name_of(device);
                        format!(
                            "   the store has: {name} at {} of {}, {:?}, revision {revision}",
                            claim.session, claim.node, claim.generation
                        )
                    });
                    self.feed_all(Bucket::Claims, &Feed::Claim(device, claim, revision));
                }
                reply
            }
            StoreAsk::Remove(device, revision) => {
                let reply = self.net.store.write(device, None, Some(revision), self.now);
                if let StoreReply::Written(removed_at) = reply {
                    self.say(|_| format!("   the store has no claim of {} any more", name_of(device)));
                    self.feed_all(Bucket::Claims, &Feed::Unclaimed(device, removed_at));
                }
                reply
            }
            StoreAsk::Beat(pid, number) => {
                self.feed_all_of(Bucket::Registry, &Feed::Beat(pid, number), Some(link));
                return;
            }
            StoreAsk::Watch(bucket, number) => {
                let Some(it) = self.net.links.get(link).filter(|link| link.is_open_at_server) else { return };
                let home = if self.net.servers.len() > 1 {
                    self.rng.usize(..self.net.servers.len())
                } else {
                    it.server
                };
                let watcher = Watcher { link, number, bucket, lag: 0, home, last: self.now };
                self.net.store.watchers.push(watcher);
                for feed in self.net.store.load(bucket) {
                    self.feed_later(self.net.store.watchers.len() - 1, feed);
                }
                return;
            }
        };
        if let Some(ReplyTo::Inbox(inbox)) = reply_to {
            let message =
                Message { topic: Topic::Reply(inbox), reply_to: None, payload: Payload::Said(reply) };
            self.publish(link, message);
        }
    }

    fn feed_all(&mut self, bucket: Bucket, feed: &Feed) {
        self.feed_all_of(bucket, feed, None);
    }

    fn feed_all_of(&mut self, bucket: Bucket, feed: &Feed, only: Option<LinkId>) {
        for place in 0..self.net.store.watchers.len() {
            let watcher = self.net.store.watchers.get(place);
            let is_for = |it: &&Watcher| it.bucket == bucket && only.is_none_or(|only| only == it.link);
            if watcher.filter(is_for).is_some() {
                self.feed_later(place, feed.clone());
            }
        }
    }

    fn feed_later(&mut self, place: usize, feed: Feed) {
        let takes = self.rng.u64(20..400);
        let now = self.now;
        let Some(watcher) = self.net.store.watchers.get_mut(place) else { return };
        watcher.last = (now + watcher.lag + takes).max(watcher.last + 1);
        let (at, link, number) = (watcher.last, watcher.link, watcher.number);
        self.at(at, Happening::Feed(link, number, feed));
    }

    fn feed(&mut self, link: LinkId, number: u64, feed: Feed) {
        let stands = |it: &Watcher| it.link == link && it.number == number;
        if !self.net.store.watchers.iter().any(stands) {
            return;
        }
        let at = self.arrival(link, false);
        let message = Message { topic: Topic::Store, reply_to: None, payload: Payload::Feed(number, feed) };
        self.at(at, Happening::AtProcess(link, message, None));
    }

    fn heartbeats(&mut self) {
        self.after(SECOND, Happening::Heartbeats);
        for place in 0..self.net.store.watchers.len() {
            if self.net.store.watchers.get(place).is_some_and(|it| it.last + SECOND <= self.now) {
                self.feed_later(place, Feed::Heartbeat);
            }
        }
    }

    fn assign(&mut self, device: usize, customer: Option<u8>) {
        if !self.net.has_quorum() || self.now < self.net.store.leaderless_until || self.hangs_most() {
            return self.after(500 * MS, Happening::Assign(device, customer));
        }
        let record = record(device, customer);
        self.net.store.registry.insert(device_id(device), record.clone());
        self.record(Event::Assigned { device, customer });
        self.feed_all(Bucket::Registry, &Feed::Device(device_id(device), Box::new(record)));
    }

    // Devices.

    fn comes(&mut self, device: usize) {
        let has_one = self.clients.iter().any(|it| it.device == device && it.stage != Stage::Over);
        let wants = self.wants.get(device).copied().unwrap_or_default();
        if has_one || !wants || self.is_closing {
            return;
        }
        let slot = self.rng.usize(..self.plan.nodes);
        self.connect(device, slot);
    }

    fn comes_later(&mut self, device: usize) {
        let after = self.rng.u64(200..2_000) * MS;
        self.after(after, Happening::Comes(device));
    }

    fn connect(&mut self, device: usize, slot: usize) {
        let Some(node) = self.running.get(slot).copied().flatten() else { return self.comes_later(device) };
        let client = self.clients.len();
        self.clients.push(Client { device, node, stage: Stage::Connecting, last: [self.now; 2] });
        self.record(Event::Connecting { device, session: client, node });
        self.client_says(client, FromClient::Connect(device_id(device), credential(device)));
    }

    fn client_says(&mut self, client: ClientId, said: FromClient) {
        let latency = self.rng.u64(LATENCY);
        let now = self.now;
        let Some(it) = self.clients.get_mut(client) else { return };
        if it.stage == Stage::Over && !matches!(said, FromClient::Close) {
            return;
        }
        it.last[0] = (now + latency).max(it.last[0] + 1);
        let at = it.last[0];
        self.at(at, Happening::AtNode(client, said));
    }

    fn tell_client(&mut self, client: ClientId, told: ToClient) {
        let latency = self.rng.u64(LATENCY);
        let now = self.now;
        let Some(it) = self.clients.get_mut(client) else { return };
        it.last[1] = (now + latency).max(it.last[1] + 1);
        let at = it.last[1];
        self.at(at, Happening::AtClient(client, told));
    }

    fn at_client(&mut self, id: ClientId, told: ToClient) {
        let Some(client) = self.clients.get_mut(id) else { return };
        if client.stage == Stage::Over {
            return;
        }
        let device = client.device;
        match told {
            ToClient::Accepted => {
                client.stage = Stage::Callable;
                self.record(Event::Callable { session: id });
            }
            ToClient::Refused => self.over(id, None, true),
            ToClient::Closed(reason) => {
                let comes_back = reason != Some(SessionEnd::TakenOver);
                self.over(id, reason, comes_back);
            }
            ToClient::Call(number, body) => {
                let Some(call) = call_of(&body) else { return };
                self.record(Event::Executed { call, session: id });
                let must_succeed = self.calls.get(call).is_some_and(|call| call.must_succeed);
                let after = match self.rng.u8(0..20) {
                    _ if must_succeed => self.rng.u64(1..30),
                    0 => return,
                    1..=3 => self.rng.u64(100..4_000),
                    _ => self.rng.u64(1..50),
                };
                self.after(after * MS, Happening::Answers(id, number, body));
            }
            ToClient::Outcome(call, outcome, body) => {
                let Some(state) = self.calls.get_mut(call).filter(|state| !state.is_over) else { return };
                state.is_over = true;
                let is_its_answer = call_of(&body) == Some(call);
                self.record(Event::Ended { call, outcome: Ending::of(outcome.name()), is_its_answer });
            }
        }
        let _ = device;
    }

    /// A connection is over, as its device sees it.
    fn over(&mut self, id: ClientId, reason: Option<SessionEnd>, comes_back: bool) {
        let Some(client) = self.clients.get_mut(id) else { return };
        client.stage = Stage::Over;
        let device = client.device;
        self.record(Event::Over { session: id, reason: reason.map(Into::into) });
        let given_up: Vec<usize> = self
            .calls
            .iter_mut()
            .enumerate()
            .filter(|(_, call)| call.client == id && !call.is_over)
            .map(|(place, call)| {
                call.is_over = true;
                place
            })
            .collect();
        for call in given_up {
            self.record(Event::GaveUp { call });
        }
        if comes_back {
            self.comes_later(device);
        }
    }

    fn newest_of(&self, device: usize) -> Option<ClientId> {
        let is_callable = |it: &Client| it.device == device && it.stage == Stage::Callable;
        self.clients.iter().rposition(is_callable)
    }

    fn call(&mut self, caller: usize, target: usize, timeout_ms: u32, connect_ms: u32, must_succeed: bool) {
        let Some(client) = self.newest_of(caller) else { return };
        let call = self.calls.len();
        self.calls.push(CallState { client, is_over: false, must_succeed });
        let connect_timeout_ms = connect_ms;
        self.record(Event::Called { call, caller, target, timeout_ms, connect_timeout_ms, must_succeed });
        self.client_says(client, FromClient::Call(call, device_id(target), timeout_ms, connect_ms));
    }

    fn probe(&mut self) {
        for target in 0..self.plan.devices {
            if self.newest_of(target).is_none() {
                continue;
            }
            let customer = |world: &World, device: usize| {
                world.net.store.registry.get(&device_id(device)).and_then(|record| record.customer)
            };
            let of_target = customer(self, target);
            let callers: Vec<usize> = (0..self.plan.devices)
                .filter(|caller| of_target.is_some() && customer(self, *caller) == of_target)
                .filter(|caller| self.newest_of(*caller).is_some())
                .collect();
            if let Some(caller) = self.rng.choice(callers) {
                self.call(caller, target, 3_000, 0, true);
            }
        }
    }

    fn close_all(&mut self) {
        self.say(|_| "all devices go".into());
        self.is_closing = true;
        for client in 0..self.clients.len() {
            if self.clients.get(client).is_some_and(|client| client.stage != Stage::Over) {
                self.over(client, None, false);
                self.client_says(client, FromClient::Close);
            }
        }
        self.after(CLOSING_LASTS, Happening::Ends);
    }

    fn end(&mut self) {
        self.has_ended = true;
        let mut leaks: Vec<String> = Vec::new();
        for pid in self.running.iter().flatten() {
            let Some(process) = self.processes.get(*pid) else { continue };
            leaks.extend(process.service.leaks().into_iter().map(|leak| format!("{}: {leak}", process.name)));
        }
        leaks.extend(
            self.net
                .store
                .standing()
                .map(|(device, ..)| format!("the store: a claim of {}", name_of(device))),
        );
        for leak in leaks {
            self.say(|_| format!("left behind: {leak}"));
            self.record(Event::Leaked);
        }
    }

    // What is done from outside.

    /// Whether another process of its kind serves.
    fn is_stood_in_for(&self, pid: Pid) -> bool {
        let Some(stops) = self.process(pid) else { return false };
        let kind = self.plan.kind_of(stops.slot);
        // What a node has, it has alone.
        if kind == Kind::Node {
            return false;
        }
        let others = self.running.iter().flatten().filter_map(|pid| self.process(*pid));
        let mut serving = others.filter(|it| {
            it.slot != stops.slot
                && self.plan.kind_of(it.slot) == kind
                && (it.sleeps_since.is_none() && it.service.serves())
        });
        serving.next().is_some()
    }

    fn does(&mut self, what: Transition) {
        if !matches!(what, Transition::Assign { .. } | Transition::Call { .. } | Transition::Connect { .. }) {
            self.say(|world| world.plan.tell(what));
        }
        if let Some(lasts) = what.fault() {
            let slot = match what {
                Transition::Pause { slot, .. }
                | Transition::Kill { slot, .. }
                | Transition::Drain { slot, .. } => Some(slot),
                Transition::Cut { slot, .. } | Transition::Reset { slot, .. } => Some(slot),
                _ => None,
            };
            let process = slot.and_then(|slot| self.running.get(slot).copied().flatten());
            if slot.is_none() || process.is_some() {
                let holds = matches!(
                    what,
                    Transition::Cut { .. }
                        | Transition::Reset { .. }
                        | Transition::ServerStops { .. }
                        | Transition::ServerSleeps { .. }
                );
                let is_graceful = process.is_some_and(|process| self.is_stood_in_for(process))
                    && matches!(what, Transition::Drain { .. });
                self.record(Event::Faulty { process, until: self.now + lasts, holds, is_graceful });
            }
        }
        let running = |world: &World, slot: usize| world.running.get(slot).copied().flatten();
        match what {
            Transition::Connect { .. } if self.is_closing => {}
            Transition::Connect { device, slot } => {
                if let Some(wants) = self.wants.get_mut(device) {
                    *wants = true;
                }
                self.connect(device, slot);
            }
            Transition::Close { device } => {
                if let Some(wants) = self.wants.get_mut(device) {
                    *wants = false;
                }
                if let Some(client) = self.newest_of(device) {
                    self.over(client, None, false);
                    self.client_says(client, FromClient::Close);
                }
            }
            Transition::Call { caller, target, timeout_ms, connect_ms } => {
                self.call(caller, target, timeout_ms, connect_ms, false);
            }
            Transition::Assign { device, customer } => self.assign(device, customer),
            Transition::Pause { slot, lasts } => {
                let Some(pid) = running(self, slot) else { return };
                let until = self.now + lasts;
                if let Some(process) = self.processes.get_mut(pid) {
                    process.sleeps_since.get_or_insert(self.now);
                    process.sleeps_until = process.sleeps_until.max(until);
                }
                self.after(lasts, Happening::Wake(pid));
            }
            Transition::Kill { slot, lasts } => {
                let Some(pid) = running(self, slot) else { return };
                let link = self.process(pid).and_then(|process| process.link);
                if let Some(process) = self.processes.get_mut(pid) {
                    process.restarts_after = lasts;
                }
                match link {
                    Some(link) if self.rng.bool() => self.net.close_at_server(link),
                    // What it has sent still arrives.
                    _ => self.send(pid, Up::Close),
                }
                self.ends(pid);
            }
            Transition::Drain { slot, lasts } => {
                let Some(pid) = running(self, slot) else { return };
                if self.sleeps(pid) {
                    return;
                }
                if let Some(process) = self.processes.get_mut(pid) {
                    process.restarts_after = lasts;
                }
                self.tell(pid, Input::Drain);
            }
            Transition::Shed { slot } => {
                if let Some(pid) = running(self, slot).filter(|pid| !self.sleeps(*pid)) {
                    self.tell(pid, Input::Shed);
                }
            }
            Transition::Cut { slot, lasts } => {
                let Some(pid) = running(self, slot) else { return };
                if let Some(until) = self.net.cut_until.get_mut(pid) {
                    *until = (*until).max(self.now + lasts);
                }
            }
            Transition::Reset { slot, lasts } => {
                let Some(pid) = running(self, slot) else { return };
                let now = self.now;
                let Some(process) = self.processes.get_mut(pid) else { return };
                process.blocked_until = now + lasts;
                if let Some(link) = process.link {
                    self.break_link(link);
                }
            }
            Transition::ClockJumps { slot, by_s } => {
                let Some(pid) = running(self, slot) else { return };
                if let Some(process) = self.processes.get_mut(pid) {
                    process.clock_off_s += by_s;
                }
            }
            Transition::ServerStops { server, lasts } => {
                if let Some(runs) = self.net.servers.get_mut(server) {
                    *runs = false;
                }
                let links: Vec<LinkId> = self
                    .net
                    .links
                    .iter()
                    .enumerate()
                    .filter(|(_, link)| link.server == server && link.is_open_at_server)
                    .map(|(place, _)| place)
                    .collect();
                links.into_iter().for_each(|link| self.break_link(link));
                self.net.store.watchers.retain(|watcher| watcher.home != server);
                let elects = self.rng.u64(100..2_000) * MS;
                self.net.store.leaderless_until = self.net.store.leaderless_until.max(self.now + elects);
                self.after(lasts, Happening::ServerBack(server));
            }
            Transition::ServerSleeps { server, lasts } => {
                let until = self.now + lasts;
                if let Some(hung_until) = self.hung_until.get_mut(server) {
                    *hung_until = (*hung_until).max(until);
                }
                self.net.store.watchers.retain(|watcher| watcher.home != server);
                let elects = self.rng.u64(2_000..6_000) * MS;
                self.net.store.leaderless_until =
                    self.net.store.leaderless_until.max(self.now + elects.min(lasts));
                self.after(lasts, Happening::ServerWakes(server));
            }
            Transition::Leaderless { lasts } => {
                self.net.store.leaderless_until = self.net.store.leaderless_until.max(self.now + lasts);
            }
            Transition::LosesClaims { keeps_definition } => {
                self.record(Event::ClaimsLost { begins_anew: keeps_definition });
                self.net.store.lose_claims(keeps_definition, self.now);
            }
            Transition::WatchLags { slot, by } => {
                let link = running(self, slot).and_then(|pid| self.process(pid)).and_then(|it| it.link);
                for watcher in &mut self.net.store.watchers {
                    if Some(watcher.link) == link {
                        watcher.lag = by;
                    }
                }
                if let Some(link) = link {
                    self.after(2 * SECOND, Happening::LagEnds(link));
                }
            }
            Transition::Forge { device } => {
                let call = self.calls.len();
                self.calls.push(CallState { client: usize::MAX, is_over: true, must_succeed: false });
                self.record(Event::Forged { device });
                let Some(pid) = self.running.last().copied().flatten() else { return };
                self.tell(pid, Input::FromClient(call, FromClient::Call(call, device_id(device), 0, 0)));
            }
        }
    }

    fn tell_of_message(&mut self, pid: Pid, message: &Message) {
        let what = match &message.payload {
            Payload::Claim(claim) => {
                format!(
                    "asks for the claim of {}, session {}, {:?}",
                    name_of(claim.device),
                    claim.session,
                    claim.generation
                )
            }
            Payload::Claimed(reply) => format!("answers {reply:?}"),
            Payload::Release(release) => {
                format!("releases the claim of {}, session {}", name_of(release.device), release.session)
            }
            Payload::Takeover(takeover) => {
                format!(
                    "says that session {} of {} is taken over",
                    takeover.session,
                    name_of(takeover.device)
                )
            }
            Payload::Compare(_) => "asks in which claims it differs".into(),
            Payload::Compared(reply) => {
                format!("says: {} lacking, {} foreign", reply.lacking.len(), reply.foreign.len())
            }
            Payload::Delivery(delivery, body) => format!(
                "delivers call {} to session {}, {} ms left",
                call_of(body).unwrap_or_default(),
                delivery.session,
                delivery.budget_ms.as_ms()
            ),
            Payload::Delivered(reply, _) => format!("replies {reply:?}"),
            Payload::Routed(_, body, _) => format!("lets call {} pass", call_of(body).unwrap_or_default()),
            Payload::Outcome(outcome, _) => format!("says {outcome:?}"),
            Payload::Nothing if matches!(message.topic, Topic::Differs(_)) => {
                "says that claims differ".into()
            }
            _ => return,
        };
        let name = self.process(pid).map(|it| it.name.clone()).unwrap_or_default();
        self.say(|_| format!("   {name} {what}"));
    }
}
