//! What does NATS do to messages? Connections that hold, delay and lose them, who is subscribed, and whom a queue
//! picks.
//!
//! A message is lost only where a connection dies. Within one connection order holds, between two it does not. A cut
//! is silent: what is sent meanwhile waits in the socket, and comes afterwards if neither end has given up.

use std::collections::VecDeque;

use crate::message::{Message, Micros, Pid, Topic};
use crate::store::Store;

/// A connection: its place in the list of all that ever were.
pub type LinkId = usize;

/// One TCP connection between a process and a server.
#[derive(Debug)]
pub struct Link {
    /// The process's end.
    pub process: Pid,
    /// The server's end.
    pub server: usize,
    /// The process has not closed it, or noticed that it is closed.
    pub is_open_at_process: bool,
    /// The server has not.
    pub is_open_at_server: bool,
    last_up: Micros,
    last_down: Micros,
}

/// One subscription.
#[derive(Debug, Clone, Copy)]
struct Subscription {
    link: LinkId,
    topic: Topic,
    is_queue: bool,
}

/// NATS: servers, connections, subscriptions, and the store.
#[derive(Debug)]
pub struct Net {
    /// Which servers run.
    pub servers: Vec<bool>,
    /// All connections that ever were.
    pub links: Vec<Link>,
    /// Until when each process's cable is pulled.
    pub cut_until: Vec<Micros>,
    /// JetStream.
    pub store: Store,
    subscriptions: Vec<Subscription>,
}

/// Where a published message goes.
#[derive(Debug)]
pub enum Routed {
    /// To these connections.
    To(Vec<LinkId>),
    /// To the store.
    Store,
    /// To nobody: whoever published it hears so.
    Nobody,
}

impl Net {
    /// So many servers, nobody connected.
    pub fn new(servers: usize) -> Self {
        Net {
            servers: vec![true; servers],
            links: Vec::new(),
            cut_until: Vec::new(),
            store: Store::new(),
            subscriptions: Vec::new(),
        }
    }

    /// Whether most servers run: what JetStream needs.
    pub fn has_quorum(&self) -> bool {
        self.servers.iter().filter(|runs| **runs).count() * 2 > self.servers.len()
    }

    /// A server that a process reaches now.
    pub fn reachable(&self, process: Pid, now: Micros, rng: &mut fastrand::Rng) -> Option<usize> {
        if self.is_cut(process, now) {
            return None;
        }
        let running: Vec<usize> =
            self.servers.iter().enumerate().filter(|(_, runs)| **runs).map(|(place, _)| place).collect();
        rng.choice(running)
    }

    /// Whether the process's cable is pulled.
    pub fn is_cut(&self, process: Pid, now: Micros) -> bool {
        self.cut_until.get(process).is_some_and(|until| *until > now)
    }

    /// A connection is made.
    pub fn connect(&mut self, process: Pid, server: usize, now: Micros) -> LinkId {
        self.links.push(Link {
            process,
            server,
            is_open_at_process: true,
            is_open_at_server: true,
            last_up: now,
            last_down: now,
        });
        self.links.len() - 1
    }

    /// The server's end is closed: its subscriptions and watches are gone.
    pub fn close_at_server(&mut self, link: LinkId) {
        if let Some(it) = self.links.get_mut(link) {
            it.is_open_at_server = false;
        }
        self.subscriptions.retain(|subscription| subscription.link != link);
        self.store.drop_watches_of(link);
    }

    /// When something sent now arrives, up or down. After a cut the socket sends again, slower and slower.
    pub fn arrival(&mut self, link: LinkId, is_up: bool, now: Micros, rng: &mut fastrand::Rng) -> Micros {
        let latency = match rng.u32(0..100) {
            0 => rng.u64(5_000..60_000),
            1..=9 => rng.u64(1_000..5_000),
            _ => rng.u64(50..800),
        };
        let Some(it) = self.links.get_mut(link) else { return now };
        let mut at = now + latency;
        let cut_until = self.cut_until.get(it.process).copied().unwrap_or_default();
        if cut_until > now {
            at = at.max(cut_until + rng.u64(0..=(cut_until - now).min(1_000_000)));
        }
        let last = if is_up { &mut it.last_up } else { &mut it.last_down };
        *last = at.max(*last + 1);
        *last
    }

    /// A subscription arrives at the server.
    pub fn subscribe(&mut self, link: LinkId, topic: Topic, is_queue: bool) {
        let is_there = |it: &Subscription| it.link == link && it.topic == topic;
        if self.links.get(link).is_some_and(|link| link.is_open_at_server)
            && !self.subscriptions.iter().any(is_there)
        {
            self.subscriptions.push(Subscription { link, topic, is_queue });
        }
    }

    /// The end of one does.
    pub fn unsubscribe(&mut self, link: LinkId, topic: Topic) {
        self.subscriptions.retain(|it| !(it.link == link && it.topic == topic));
    }

    /// Whom a message reaches: all who are subscribed, and one of each queue.
    pub fn route(&self, message: &Message, rng: &mut fastrand::Rng) -> Routed {
        let topic = match message.topic {
            Topic::Store => return Routed::Store,
            Topic::Reply(inbox) => {
                let open = |link: &&Link| link.process == inbox.process && link.is_open_at_server;
                let place = self.links.iter().enumerate().rev().find(|(_, link)| open(link));
                return Routed::To(place.map(|(place, _)| place).into_iter().collect());
            }
            topic => topic,
        };
        let matching = || self.subscriptions.iter().filter(|it| it.topic == topic);
        let mut to: Vec<LinkId> = matching().filter(|it| !it.is_queue).map(|it| it.link).collect();
        to.extend(rng.choice(matching().filter(|it| it.is_queue).map(|it| it.link).collect::<Vec<_>>()));
        if to.is_empty() { Routed::Nobody } else { Routed::To(to) }
    }
}

/// Messages that a process had handed to a connection that died before they left: they go with the next one.
pub type Outbox = VecDeque<Message>;
