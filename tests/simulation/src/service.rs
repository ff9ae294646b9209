//! What is a process to the simulation? It is handed what happens to it, and says what it does.

use std::collections::BTreeMap;
use std::time::Instant;

use rpc::SessionId;

use crate::client::{ClientId, FromClient, ToClient};
use crate::history::Event;
use crate::message::{MS, Message, Micros, Pid, SECOND, Topic};

/// What a process waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// Its core's tick.
    Tick,
    /// Its pulse.
    Pulse,
    /// It has heard what there is to hear.
    Serve,
    /// The end of a question.
    Ask(u64),
    /// A look whether its watch has fallen silent, or is to be opened again.
    Watch,
    /// A renewal of its lease.
    Lease,
    /// A beat through the registry, or a router's to everybody.
    Beat,
    /// A look whether what it asks is asked of the dead.
    LookForGone,
    /// A claim is tried again.
    ClaimAgain(SessionId),
    /// The next step of mending.
    Mend,
    /// The next visitor is checked.
    Recheck,
    /// The next call of a session runs out of time.
    Expire(SessionId),
    /// Routers know by now that sessions are sent away.
    Leave,
    /// Its time to drain is over.
    DrainEnds,
}

/// What happens to a process.
#[derive(Debug, Clone)]
pub enum Input {
    /// It begins.
    Start,
    /// It has a connection to NATS.
    Connected,
    /// It has none any more.
    Disconnected,
    /// A message, read by a process that had nothing unread at the moment given.
    Message(Message, Instant),
    /// Something that it waited for.
    Timer(Timer),
    /// A device says something.
    FromClient(ClientId, FromClient),
    /// It is to stop, gracefully.
    Drain,
    /// It is to send its devices away.
    Shed,
}

/// What it does.
#[derive(Debug)]
pub enum Effect {
    /// Publishes.
    Send(Message),
    /// Subscribes, as one of a queue or alone.
    Subscribe(Topic, bool),
    /// Ends that.
    Unsubscribe(Topic),
    /// Waits, so long.
    Wait(Micros, Timer),
    /// Closes its connection to NATS, and opens another.
    Reconnect,
    /// Tells a device.
    ToClient(ClientId, ToClient),
    /// This is to be remembered.
    Record(Event),
    /// Ends.
    Exit,
}

/// Where a process is when something happens to it.
pub struct Context<'a> {
    /// Its monotonic clock.
    pub now: Instant,
    /// The same, in virtual time.
    pub at: Micros,
    /// Its wall clock, in seconds since 1970.
    pub wall_s: u64,
    /// Its name in messages.
    pub me: Pid,
    /// What it draws.
    pub rng: &'a mut fastrand::Rng,
    /// What it does.
    pub effects: Vec<Effect>,
}

impl Context<'_> {
    /// Its wall clock, in milliseconds since 1970.
    pub fn wall_ms(&self) -> u64 {
        self.wall_s * 1_000 + self.at % SECOND / MS
    }

    /// Waits.
    pub fn wait(&mut self, for_us: Micros, timer: Timer) {
        self.effects.push(Effect::Wait(for_us, timer));
    }

    /// To be remembered.
    pub fn record(&mut self, event: Event) {
        self.effects.push(Effect::Record(event));
    }
}

/// What a process believes, by name: what a replay shows.
pub type Beliefs = BTreeMap<String, String>;

/// One running process.
pub trait Service {
    /// Something happens to it.
    fn take(&mut self, input: Input, context: &mut Context<'_>);

    /// Whether it takes what is asked of its kind.
    fn serves(&self) -> bool;

    /// What it believes.
    fn beliefs(&self) -> Beliefs;

    /// What it still holds although everything is over; empty when nothing leaks.
    fn leaks(&self) -> Vec<String>;
}
