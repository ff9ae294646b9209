//! What does a process know of its connection to NATS? Its questions, its pulse, and the bucket that it watches.

use std::collections::BTreeMap;
use std::time::Instant;

use bus::pulse::{Beat, PULSE_EVERY, Pulse};

use rpc::{Beats, Deadline, Until};

use crate::message::{Bucket, Feed, Inbox, MS, Message, Micros, Payload, ReplyTo, SECOND, StoreAsk, Topic};
use crate::service::{Context, Effect, Input, Timer};

/// How exactly the end of a question is kept.
const TICK: Micros = 10 * MS;
/// Silence after which a watch starts over.
const SILENCE_LIMIT: Micros = 3_500 * MS;
/// How long the store may take to open a watch, at first, and after it failed.
const FIRST_OPEN_WAIT: Micros = 1_500 * MS;
const LAST_OPEN_WAIT: Micros = 30 * SECOND;
/// How often that is looked at.
const WATCH_LOOK: Micros = 250 * MS;

/// Why a question has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoReply {
    /// Nobody listened.
    NoResponders,
    /// Its time is over.
    Expired,
    /// There is no connection.
    Down,
    /// Whoever was asked is gone.
    Gone,
}

/// What something that happened comes to.
#[derive(Debug)]
pub enum Taken<K> {
    /// Nothing that matters further.
    Nothing,
    /// It is connected.
    Up,
    /// It is not.
    Down,
    /// A router's beat, and whether it is its first.
    Beat(rpc::Beat, bool),
    /// A question has ended.
    Reply(K, Result<Payload, NoReply>),
    /// A message, which was sent then at the earliest.
    Request(Message, Instant),
    /// The watched bucket changed.
    Feed(Feed),
    /// The watch may miss changes from now on.
    Lost,
    /// Something for the service alone.
    Other(Input),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watch {
    Closed { retry_at: Micros },
    Opening { number: u64, since: Micros },
    Open { number: u64, silent_from: Micros },
}

/// One process's end. `K` is what it does with a reply.
#[derive(Debug)]
pub struct Wire<K> {
    is_up: bool,
    has_heard: bool,
    pulse: Pulse,
    beats: Beats,
    questions: BTreeMap<u64, (Micros, K)>,
    last_number: u64,
    watched: Option<Bucket>,
    watch: Watch,
    watch_number: u64,
    /// Beginnings of a watch in a row that took too long.
    slow: u32,
}

impl<K> Wire<K> {
    /// Not connected. It follows `watched`.
    pub fn new(watched: Option<Bucket>, now: Instant) -> Self {
        Wire {
            is_up: false,
            has_heard: false,
            pulse: Pulse::new(now),
            beats: Beats::default(),
            questions: BTreeMap::new(),
            last_number: 0,
            watched,
            watch: Watch::Closed { retry_at: 0 },
            watch_number: 0,
            slow: 0,
        }
    }

    /// Whether it knows of a connection.
    pub fn is_up(&self) -> bool {
        self.is_up
    }

    /// How to say elsewhere when something ends.
    pub fn until(&self, end: Instant, now: Instant) -> Option<Until> {
        self.beats.until(end, now)
    }

    /// When something is over here.
    pub fn ends(&self, until: Option<&Until>, deadline: Deadline) -> Deadline {
        let end = until.and_then(|until| self.beats.end(until));
        end.map_or(deadline, |end| deadline.min(Deadline::at(end)))
    }

    /// The questions that are open.
    pub fn questions(&self) -> impl Iterator<Item = (u64, &K)> + '_ {
        self.questions.iter().map(|(number, (_, then))| (*number, then))
    }

    /// Publishes; false when there is no connection.
    pub fn tell(&self, topic: Topic, payload: Payload, context: &mut Context<'_>) -> bool {
        self.forward(topic, None, payload, context)
    }

    /// Publishes with a reply subject.
    pub fn forward(
        &self,
        topic: Topic,
        reply_to: Option<ReplyTo>,
        payload: Payload,
        context: &mut Context<'_>,
    ) -> bool {
        if self.is_up {
            context.effects.push(Effect::Send(Message { topic, reply_to, payload }));
        }
        self.is_up
    }

    /// Answers a question.
    pub fn answer(&self, reply_to: Option<ReplyTo>, payload: Payload, context: &mut Context<'_>) -> bool {
        match reply_to {
            Some(ReplyTo::Inbox(inbox) | ReplyTo::Bounce(inbox)) => {
                self.tell(Topic::Reply(inbox), payload, context)
            }
            None => false,
        }
    }

    /// Asks, for so long.
    ///
    /// # Errors
    /// Hands `then` back when there is no connection.
    pub fn ask(
        &mut self,
        topic: Topic,
        payload: Payload,
        wait: Micros,
        then: K,
        context: &mut Context<'_>,
    ) -> Result<(), K> {
        if !self.is_up {
            return Err(then);
        }
        self.last_number += 1;
        let number = self.last_number;
        self.questions.insert(number, (context.at + wait, then));
        context.wait(wait.div_ceil(TICK) * TICK, Timer::Ask(number));
        let reply_to = Some(ReplyTo::Inbox(Inbox { process: context.me, number }));
        self.forward(topic, reply_to, payload, context);
        Ok(())
    }

    /// Ends a question.
    pub fn give_up(&mut self, number: u64) -> Option<K> {
        self.questions.remove(&number).map(|(_, then)| then)
    }

    /// Something happens.
    pub fn take(&mut self, input: Input, context: &mut Context<'_>) -> Taken<K> {
        match input {
            Input::Start => {
                let after = context.rng.u64(1..SECOND);
                context.wait(after, Timer::Pulse);
                if self.watched.is_some() {
                    context.wait(WATCH_LOOK, Timer::Watch);
                }
                Taken::Other(Input::Start)
            }
            Input::Connected => {
                self.is_up = true;
                self.pulse.disconnected();
                self.beat(context);
                self.open_watch(context);
                Taken::Up
            }
            Input::Disconnected => {
                self.is_up = false;
                self.pulse.disconnected();
                self.watch = Watch::Closed { retry_at: 0 };
                Taken::Down
            }
            Input::Timer(Timer::Pulse) => {
                context.wait(PULSE_EVERY.as_micros() as Micros, Timer::Pulse);
                if self.is_up {
                    self.beat(context);
                }
                Taken::Nothing
            }
            Input::Timer(Timer::Ask(number)) => match self.give_up(number) {
                Some(then) => Taken::Reply(then, Err(NoReply::Expired)),
                None => Taken::Nothing,
            },
            Input::Timer(Timer::Watch) => {
                context.wait(WATCH_LOOK, Timer::Watch);
                match self.watch {
                    Watch::Closed { retry_at } if self.is_up && context.at >= retry_at => {
                        self.open_watch(context);
                        Taken::Nothing
                    }
                    Watch::Opening { since, .. }
                        if context.at >= since + (FIRST_OPEN_WAIT << self.slow).min(LAST_OPEN_WAIT) =>
                    {
                        self.slow = (self.slow + 1).min(8);
                        self.watch = Watch::Closed { retry_at: context.at + context.rng.u64(..2 * SECOND) };
                        Taken::Nothing
                    }
                    Watch::Open { silent_from, .. } if context.at >= silent_from + SILENCE_LIMIT => {
                        self.watch = Watch::Closed { retry_at: context.at };
                        Taken::Lost
                    }
                    _ => Taken::Nothing,
                }
            }
            Input::Message(message, not_yet) => {
                self.has_heard = true;
                self.take_message(message, not_yet, context)
            }
            other => Taken::Other(other),
        }
    }

    fn take_message(&mut self, message: Message, not_yet: Instant, context: &mut Context<'_>) -> Taken<K> {
        match (message.topic, message.payload) {
            (_, Payload::NoResponders(ReplyTo::Inbox(inbox))) => match self.give_up(inbox.number) {
                Some(then) => Taken::Reply(then, Err(NoReply::NoResponders)),
                None => Taken::Nothing,
            },
            (_, Payload::Echo(number)) => {
                self.pulse.returned(number, context.now);
                Taken::Nothing
            }
            (_, Payload::Feed(number, feed)) => self.take_feed(number, feed, context),
            (Topic::Reply(inbox), payload) => match self.give_up(inbox.number) {
                Some(then) => Taken::Reply(then, Ok(payload)),
                None => Taken::Nothing,
            },
            (topic, payload) => {
                let age = self.pulse.age(not_yet, context.now);
                let sent = context.now.checked_sub(age).unwrap_or(context.now);
                let sent = if rpc::faults::is(rpc::faults::Fault::AgeIsIgnored) { context.now } else { sent };
                match payload {
                    Payload::Beat(beat) => Taken::Beat(beat, self.beats.heard(beat, sent)),
                    payload => Taken::Request(Message { topic, reply_to: message.reply_to, payload }, sent),
                }
            }
        }
    }

    fn take_feed(&mut self, number: u64, feed: Feed, context: &mut Context<'_>) -> Taken<K> {
        match (self.watch, &feed) {
            (Watch::Opening { number: opening, .. }, Feed::Opened(..)) if opening == number => {}
            (Watch::Open { number: open, .. }, _) if open == number => {}
            _ => return Taken::Nothing,
        }
        self.slow = 0;
        self.watch = Watch::Open { number, silent_from: context.at };
        match feed {
            Feed::Heartbeat => Taken::Nothing,
            feed => Taken::Feed(feed),
        }
    }

    fn open_watch(&mut self, context: &mut Context<'_>) {
        let Some(bucket) = self.watched else { return };
        self.watch_number += 1;
        let number = self.watch_number;
        self.watch = Watch::Opening { number, since: context.at };
        self.tell(Topic::Store, Payload::Ask(StoreAsk::Watch(bucket, number)), context);
    }

    fn beat(&mut self, context: &mut Context<'_>) {
        let has_heard = std::mem::take(&mut self.has_heard);
        match self.pulse.tick(has_heard, context.now) {
            Beat::Send(number) => {
                let inbox = Inbox { process: context.me, number: 0 };
                self.tell(Topic::Reply(inbox), Payload::Echo(number), context);
            }
            Beat::Reconnect => context.effects.push(Effect::Reconnect),
        }
    }
}
