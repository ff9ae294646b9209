//! How are calls made, and how is every answer checked? The same code for every system.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use futures::{StreamExt, TryStreamExt, stream};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::frame::{self, Decimal, Packet};
use crate::link::{self, Outbox, Reader, Scratch};
use crate::scenario::GREEDY_CALLERS;
use crate::tally::{CALL_TIMEOUT, Tally};
use crate::wire::body::{self, Nonce};
use crate::wire::{Dialect, PairWire};

/// So many devices connect at the same time.
const CONNECTS_AT_ONCE: usize = 32;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// When the next call is made.
#[derive(Debug, Clone, Copy)]
pub enum Pace {
    /// At each answer: so many calls in flight for each pair.
    Closed {
        /// For each pair.
        in_flight: usize,
    },
    /// At a steady rate.
    Open {
        /// Over all pairs.
        calls_per_s: u32,
    },
}

/// How a call is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// With the target's answer.
    Answer,
    /// As offline: the targets do not even connect.
    Offline,
}

/// How long and how much.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Caller and target each.
    pub pairs: usize,
    /// When calls are made.
    pub pace: Pace,
    /// How they are to end.
    pub expected: Expected,
    /// Not measured.
    pub warm_up: Duration,
    /// Measured.
    pub window: Duration,
    /// The window also ends with so many answers.
    pub calls_max: Option<u64>,
}

/// The devices of a run, connected.
pub struct Crew {
    board: Rc<Board>,
    callers: Vec<Rc<Caller>>,
    /// Dropping it ends all connections.
    _devices: JoinSet<()>,
}

/// What a run observed.
#[derive(Debug)]
pub struct Observed {
    /// From the end of the warm-up.
    pub window: Duration,
    /// Right answers that came within the window.
    pub answered: u64,
    /// Every call's end, warm-up and drain included; latencies only of the window's calls.
    pub tally: Tally,
}

/// Connects the devices of `plan`: with several nodes, caller and target of each pair to different ones.
///
/// # Errors
/// When a device cannot connect.
pub async fn connect(
    nodes: &[SocketAddr],
    dialect: &dyn Dialect,
    plan: &Plan,
    scratch: &Scratch,
) -> Result<Crew> {
    let board = Rc::new(Board::new(plan)?);
    let mut devices = JoinSet::new();
    let mut callers = Vec::with_capacity(plan.pairs);
    let wires = (0..plan.pairs).map(|index| (index, dialect.pair(index)));
    let mut pairs = stream::iter(wires.map(|(index, wire)| async move {
        let target = match plan.expected {
            Expected::Answer => Some(link::connect(node(nodes, index + 1)?, &wire.target, scratch).await?),
            Expected::Offline => None,
        };
        let caller = link::connect(node(nodes, index)?, &wire.caller, scratch).await?;
        Ok::<_, Error>((index, wire, caller, target))
    }))
    .buffer_unordered(CONNECTS_AT_ONCE);
    loop {
        let connected =
            timeout(CONNECT_TIMEOUT, pairs.try_next()).await.context("a connect took too long")??;
        let Some((index, wire, (caller_reader, caller_outbox), target)) = connected else { break };
        let pair = u16::try_from(index).context("too many pairs")?;
        if let Some((reader, outbox)) = target {
            let target = Target { pair, wire: wire.clone(), outbox, board: Rc::clone(&board) };
            devices.spawn_local(target.serve(reader, scratch.clone()));
        }
        let caller = Rc::new(Caller::new(pair, wire, caller_outbox, Rc::clone(&board)));
        devices.spawn_local(Rc::clone(&caller).serve(caller_reader, scratch.clone()));
        callers.push(caller);
    }
    drop(pairs);
    Ok(Crew { board, callers, _devices: devices })
}

/// Devices take the nodes in turn.
fn node(nodes: &[SocketAddr], turn: usize) -> Result<SocketAddr> {
    nodes.get(turn % nodes.len().max(1)).copied().context("there is no node to connect to")
}

impl Crew {
    /// Makes calls as `plan` says; `edge` is called when the window opens and when it closes.
    ///
    /// # Errors
    /// When a connection breaks, and with any error of `edge`. Wrong answers are no error, but in the tally.
    pub async fn run<T>(self, plan: &Plan, edge: impl Fn() -> Result<T>) -> Result<(Observed, T, T)> {
        let board = &self.board;
        let pacer = match plan.pace {
            Pace::Closed { in_flight } => {
                for caller in &self.callers {
                    for _ in 0..in_flight {
                        caller.call(Instant::now())?;
                    }
                }
                None
            }
            Pace::Open { calls_per_s } => {
                let mut pacer = JoinSet::new();
                pacer.spawn_local(pace(self.callers.clone(), Rc::clone(board), calls_per_s));
                Some(pacer)
            }
        };
        board.wait(plan.warm_up).await?;

        let before = edge()?;
        let opened = Instant::now();
        board.measured_from.set(Some(opened));
        let answered_before = board.tally.borrow().answered;
        board.window_ends_at.set(plan.calls_max.map(|calls| answered_before + calls));
        board.wait(plan.window).await?;
        let window = opened.elapsed();
        let after = edge()?;
        let answered = board.tally.borrow().answered - answered_before;

        board.calling.set(false);
        board.drain().await?;
        drop(pacer);
        let mut tally = board.tally.replace(Tally::new()?);
        tally.lost = board.open.get();
        if tally.lost > 0 {
            tally.describe(|| format!("no answer within {CALL_TIMEOUT:?}"));
        }
        Ok((Observed { window, answered, tally }, before, after))
    }
}

/// Makes calls on time: each is due at its own moment and is timed from that moment on, however late it is sent, so
/// that a stalled server (or client) shows in the latencies of all calls that it held up.
async fn pace(callers: Vec<Rc<Caller>>, board: Rc<Board>, calls_per_s: u32) {
    let mut turns = callers.iter().cycle();
    let call = |due| match turns.next() {
        _ if !board.calling.get() => Ok(false),
        Some(caller) => caller.call_now(due).map(|()| true),
        None => bail!("no pairs"),
    };
    let Err(error) = paced(calls_per_s, call).await else { return };
    board.break_off(error);
}

/// Calls each time that one is due, until there is none any more.
async fn paced(calls_per_s: u32, mut call: impl FnMut(Instant) -> Result<bool>) -> Result<()> {
    let interval = Duration::from_secs(1) / calls_per_s;
    // The runtime's own timers tick in milliseconds, which is more than a call takes.
    let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
    #[expect(
        deprecated,
        reason = "unsound only for types that may close their descriptor early: an OwnedFd does not"
    )]
    let timer = AsyncFd::with_interest(timer, Interest::READABLE)?;
    let every =
        Timespec { tv_sec: i64::try_from(interval.as_secs())?, tv_nsec: interval.subsec_nanos().into() };
    let started = Instant::now();
    let schedule = Itimerspec { it_interval: every, it_value: every };
    timerfd_settime(&timer, TimerfdTimerFlags::empty(), &schedule)?;

    let mut due = started;
    loop {
        let mut ready = timer.readable().await?;
        let mut expired = [0; 8];
        match rustix::io::read(ready.get_inner(), &mut expired) {
            Ok(_) => {}
            Err(rustix::io::Errno::AGAIN) => {
                ready.clear_ready();
                continue;
            }
            Err(error) => return Err(error.into()),
        }
        for _ in 0..u64::from_ne_bytes(expired) {
            due += interval;
            if !call(due)? {
                return Ok(());
            }
        }
        ready.clear_ready();
    }
}

/// Ten times the calls that one customer may have waiting: a tenth of half of the questions of a node.
const GREEDY_WAITS: u32 = 100;
/// Ten times what one customer may call a second there.
const GREEDY_CALLS_PER_S: u32 = 20_000;

/// A customer whose devices ask for ten times what is his. Dropping it ends that.
pub struct Greedy {
    _devices: JoinSet<()>,
}

/// Connects the greedy customer's callers, whose pairs begin at `first`, and lets them loose: each has calls wait for a
/// target that never comes, and calls it again and again besides. What they read concerns nobody.
///
/// # Errors
/// When one cannot connect.
pub async fn connect_greedy(nodes: &[SocketAddr], dialect: &dyn Dialect, first: usize) -> Result<Greedy> {
    let (scratch, mut devices) = (Scratch::new(), JoinSet::new());
    let mut callers = Vec::with_capacity(GREEDY_CALLERS);
    for index in first..first + GREEDY_CALLERS {
        let wire = dialect.pair(index);
        let connect = link::connect(node(nodes, index)?, &wire.caller, &scratch);
        let (mut reader, outbox) = timeout(CONNECT_TIMEOUT, connect).await.context("it took too long")??;
        let heard = scratch.clone();
        devices.spawn_local(async move { while reader.batch(&heard, |_| Ok(())).await.is_ok() {} });
        callers.push((wire, outbox));
    }
    let call = |wire: &PairWire, outbox: &Outbox, id: u32, head: &str| -> Result<()> {
        let id = Decimal::new(id);
        let topic = [wire.call_topic.as_bytes(), id.as_bytes()];
        let framing = wire.caller.framing;
        Ok(outbox.send(|out| framing.publish(out, topic, &[head.as_bytes(), b"0}}"]))?)
    };
    for (wire, outbox) in &callers {
        let head =
            wire.envelope_head.replace("\"timeout\":", "\"connectTimeout\":60000,\"timeout\":60000,\"was\":");
        for id in 0..GREEDY_WAITS {
            call(wire, outbox, id, &head)?;
        }
    }
    devices.spawn_local(async move {
        let (mut turns, mut id) = (callers.iter().cycle(), GREEDY_WAITS);
        let again = |_| {
            id += 1;
            match turns.next() {
                Some((wire, outbox)) => call(wire, outbox, id, &wire.envelope_head).map(|()| true),
                None => Ok(false),
            }
        };
        // It ends with its connections.
        let _ = paced(GREEDY_CALLS_PER_S, again).await;
    });
    Ok(Greedy { _devices: devices })
}

/// What all devices of a run share.
struct Board {
    expected: Expected,
    closed_loop: bool,
    tally: RefCell<Tally>,
    calling: Cell<bool>,
    measured_from: Cell<Option<Instant>>,
    window_ends_at: Cell<Option<u64>>,
    calls: Cell<u64>,
    open: Cell<u64>,
    broken: RefCell<Option<Error>>,
    changed: Notify,
}

impl Board {
    fn new(plan: &Plan) -> Result<Self> {
        Ok(Self {
            expected: plan.expected,
            closed_loop: matches!(plan.pace, Pace::Closed { .. }),
            tally: RefCell::new(Tally::new()?),
            calling: Cell::new(true),
            measured_from: Cell::default(),
            window_ends_at: Cell::default(),
            calls: Cell::default(),
            open: Cell::default(),
            broken: RefCell::default(),
            changed: Notify::new(),
        })
    }

    fn break_off(&self, error: Error) {
        self.broken.borrow_mut().get_or_insert(error);
        self.changed.notify_one();
    }

    fn intact(&self) -> Result<()> {
        self.broken.borrow_mut().take().map_or(Ok(()), Err)
    }

    /// Waits for `duration`, the window's last answer or a broken connection.
    async fn wait(&self, duration: Duration) -> Result<()> {
        let _ = timeout(duration, self.changed.notified()).await;
        self.intact()
    }

    async fn drain(&self) -> Result<()> {
        let deadline = tokio::time::Instant::now() + CALL_TIMEOUT;
        while self.open.get() > 0 {
            let waited = tokio::time::timeout_at(deadline, self.changed.notified()).await;
            self.intact()?;
            if waited.is_err() {
                break;
            }
        }
        Ok(())
    }

    fn next_nonce(&self, pair: u16) -> Nonce {
        let call = self.calls.get();
        self.calls.set(call + 1);
        body::new_nonce(pair, call)
    }

    fn opened(&self) {
        self.open.set(self.open.get() + 1);
    }

    fn closed(&self) {
        self.open.set(self.open.get() - 1);
        let ends_window = self.window_ends_at.get().is_some_and(|end| self.tally.borrow().answered >= end);
        if ends_window || (!self.calling.get() && self.open.get() == 0) {
            self.window_ends_at.set(None);
            self.changed.notify_one();
        }
    }

    fn fault(&self, count: fn(&mut Tally) -> &mut u64, describe: impl FnOnce() -> String) {
        let mut tally = self.tally.borrow_mut();
        *count(&mut tally) += 1;
        tally.describe(describe);
    }
}

struct Call {
    nonce: Nonce,
    due: Instant,
}

struct Caller {
    pair: u16,
    wire: PairWire,
    outbox: Rc<Outbox>,
    board: Rc<Board>,
    /// Indexed by the call's id.
    open: RefCell<Vec<Option<Call>>>,
    next_id: Cell<usize>,
}

impl Caller {
    fn new(pair: u16, wire: PairWire, outbox: Rc<Outbox>, board: Rc<Board>) -> Self {
        let mut open = Vec::new();
        open.resize_with(usize::try_from(wire.ids).unwrap_or(usize::MAX), || None);
        Self { pair, wire, outbox, board, open: RefCell::new(open), next_id: Cell::new(0) }
    }

    /// Queues a call behind what the connection's task is about to send.
    fn call(&self, due: Instant) -> Result<()> {
        let (id, nonce) = self.begin(due)?;
        self.outbox.queue_and_wake(|out| self.write(out, id, &nonce));
        Ok(())
    }

    /// Sends a call this moment.
    fn call_now(&self, due: Instant) -> Result<()> {
        let (id, nonce) = self.begin(due)?;
        self.outbox.send(|out| self.write(out, id, &nonce))?;
        Ok(())
    }

    fn begin(&self, due: Instant) -> Result<(u32, Nonce)> {
        let mut open = self.open.borrow_mut();
        let count = open.len();
        let free = (0..count)
            .map(|step| (self.next_id.get() + step) % count)
            .find(|id| open.get(*id).is_some_and(Option::is_none))
            .ok_or_else(|| {
                anyhow!("pair {} has {count} calls open: the system does not keep up", self.pair)
            })?;
        self.next_id.set(free + 1);
        let nonce = self.board.next_nonce(self.pair);
        if let Some(slot) = open.get_mut(free) {
            *slot = Some(Call { nonce, due });
        }
        self.board.opened();
        Ok((u32::try_from(free)?, nonce))
    }

    fn write(&self, out: &mut Vec<u8>, id: u32, nonce: &Nonce) {
        let id = Decimal::new(id);
        let topic = [self.wire.call_topic.as_bytes(), id.as_bytes()];
        let head = self.wire.envelope_head.as_bytes();
        let payload = [head, body::HEAD, nonce, body::TAIL, self.wire.envelope_tail.as_bytes()];
        self.wire.caller.framing.publish(out, topic, &payload);
    }

    async fn serve(self: Rc<Self>, mut reader: Reader, scratch: Scratch) {
        loop {
            if let Err(error) = reader.batch(&scratch, |packet| self.hear(packet)).await {
                return self.board.break_off(error.context(format!("the caller of pair {}", self.pair)));
            }
        }
    }

    fn hear(&self, packet: Packet<'_>) -> Result<()> {
        let Packet::Publish { topic, payload } = packet else { bail!("an unexpected {packet:?}") };
        let id = topic.strip_prefix(self.wire.answer_topic.as_bytes()).and_then(frame::decimal);
        let id = id.with_context(|| format!("an answer on topic {:?}", String::from_utf8_lossy(topic)))?;
        let call = self.open.borrow_mut().get_mut(usize::try_from(id)?).and_then(Option::take);
        let Some(call) = call else {
            self.board.fault(|tally| &mut tally.unasked, || format!("an answer to {id}, which is not open"));
            return Ok(());
        };
        self.judge(&call, payload);
        self.board.closed();
        if self.board.closed_loop && self.board.calling.get() {
            let (id, nonce) = self.begin(Instant::now())?;
            self.outbox.queue(|out| self.write(out, id, &nonce));
        }
        Ok(())
    }

    fn judge(&self, call: &Call, payload: &[u8]) {
        let board = &self.board;
        let right = match board.expected {
            Expected::Answer => body::nonce(payload) == Some(&call.nonce),
            Expected::Offline => payload == self.wire.offline.as_bytes(),
        };
        if right {
            let measured = board.measured_from.get().is_some_and(|from| call.due >= from);
            board.tally.borrow_mut().answer(call.due.elapsed(), measured);
        } else if payload.starts_with(br#"{"error""#) || payload.starts_with(b"NATS/1.0 ") {
            board.fault(|tally| &mut tally.refused, || String::from_utf8_lossy(payload).into_owned());
        } else {
            let shown = || format!("the answer {:?}", String::from_utf8_lossy(payload));
            board.fault(|tally| &mut tally.mixed_up, shown);
        }
    }
}

/// Answers each call with the call's body.
struct Target {
    pair: u16,
    wire: PairWire,
    outbox: Rc<Outbox>,
    board: Rc<Board>,
}

impl Target {
    async fn serve(self, mut reader: Reader, scratch: Scratch) {
        loop {
            if let Err(error) = reader.batch(&scratch, |packet| self.hear(packet)).await {
                return self.board.break_off(error.context(format!("the target of pair {}", self.pair)));
            }
        }
    }

    fn hear(&self, packet: Packet<'_>) -> Result<()> {
        let Packet::Publish { topic, payload } = packet else { bail!("an unexpected {packet:?}") };
        let id = topic.strip_prefix(self.wire.request_topic.as_bytes());
        let id = id.with_context(|| format!("a request on topic {:?}", String::from_utf8_lossy(topic)))?;
        let body = body::find(payload);
        if body.and_then(body::nonce).and_then(body::pair_of) != Some(self.pair) {
            let shown = || format!("target {} got {:?}", self.pair, String::from_utf8_lossy(payload));
            self.board.fault(|tally| &mut tally.misdelivered, shown);
        }
        let reply = [self.wire.reply_topic.as_bytes(), id];
        let framing = self.wire.target.framing;
        self.outbox.queue(|out| framing.publish(out, reply, &[body.unwrap_or(payload)]));
        Ok(())
    }
}
