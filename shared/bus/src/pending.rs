//! Who waits for which reply? Numbered questions; a question leaves the table however it ends.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_nats::Message;
use metrics::Counter;
use parking_lot::{Mutex, MutexGuard};
use rpc::NodeId;
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};

/// How exactly the end of a question with a handler is kept: it comes up to this much late.
const TICK: Duration = Duration::from_millis(10);

/// Why a question will have no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoReply {
    /// Its time is over.
    Expired,
    /// It could not be sent, or the connection was closed.
    Down,
    /// It cannot be sent.
    Unsendable,
    /// Too many questions are open.
    Full,
    /// Whoever was asked is gone.
    Gone,
}

/// What is done with a reply, or for want of one.
pub(crate) type Handler = Box<dyn FnOnce(Result<Message, NoReply>) + Send>;

/// The questions of one process that have no reply yet.
pub(crate) struct Pending {
    table: Mutex<Table>,
    asked: AtomicU64,
    /// Makes numbers of what is counted: who has heard one guesses no other.
    numbers: RandomState,
    max_waiting: usize,
    cancelled: Counter,
    /// Ticks are counted from here.
    started: Instant,
    /// An earlier end than the one slept for has come up.
    sooner: Notify,
}

#[derive(Default)]
struct Table {
    waiting: HashMap<u64, Waiter, BuildHasherDefault<NumberHasher>>,
    /// How many there are of each kind.
    of_kind: [usize; KINDS],
    /// How many questions with a handler end at which tick. A question that is answered leaves nothing behind here.
    ends: BTreeMap<u64, usize>,
    /// The tick that is slept for.
    sleeps_until: Option<u64>,
}

enum Waiter {
    Task(oneshot::Sender<Message>),
    Echo(oneshot::Sender<()>),
    Handler { handler: Handler, ends: u64, asked: Option<NodeId> },
}

/// What is asked in a call's course, what a process asks for itself, and what comes back to it: each kind has places of
/// its own, so that calls, which devices make as they like, leave no question about a device without one.
const KINDS: usize = 3;
const HANDLED: usize = 0;

impl Waiter {
    const fn kind(&self) -> usize {
        match self {
            Waiter::Handler { .. } => HANDLED,
            Waiter::Task(_) => 1,
            Waiter::Echo(_) => 2,
        }
    }
}

impl Table {
    fn has_room(&self, kind: usize, max: usize) -> bool {
        self.of_kind.get(kind).is_some_and(|count| *count < max)
    }

    fn add(&mut self, number: u64, waiter: Waiter) {
        if let Some(count) = self.of_kind.get_mut(waiter.kind()) {
            *count += 1;
        }
        self.waiting.insert(number, waiter);
    }

    fn remove(&mut self, number: u64) -> Option<Waiter> {
        let waiter = self.waiting.remove(&number)?;
        if let Some(count) = self.of_kind.get_mut(waiter.kind()) {
            *count -= 1;
        }
        if let Waiter::Handler { ends, .. } = &waiter
            && let Some(count) = self.ends.get_mut(ends)
        {
            *count -= 1;
            if *count == 0 {
                self.ends.remove(ends);
            }
        }
        Some(waiter)
    }

    /// Takes out the handlers of the questions that `is_over` says yes to. Looks through the whole table: for what
    /// is rare.
    fn take(&mut self, is_over: impl Fn(u64, Option<NodeId>) -> bool) -> Vec<Handler> {
        let over = self.waiting.iter().filter_map(|(number, waiter)| match waiter {
            Waiter::Handler { ends, asked, .. } if is_over(*ends, *asked) => Some(*number),
            Waiter::Handler { .. } | Waiter::Task(_) | Waiter::Echo(_) => None,
        });
        let over: Vec<u64> = over.collect();
        let handlers = over.into_iter().filter_map(|number| match self.remove(number) {
            Some(Waiter::Handler { handler, .. }) => Some(handler),
            Some(Waiter::Task(_) | Waiter::Echo(_)) | None => None,
        });
        handlers.collect()
    }
}

impl Pending {
    pub(crate) fn new(max_waiting: usize, cancelled: Counter) -> Self {
        Pending {
            table: Mutex::default(),
            asked: AtomicU64::new(0),
            numbers: RandomState::new(),
            max_waiting,
            cancelled,
            started: Instant::now(),
            sooner: Notify::new(),
        }
    }

    /// A new number and where its reply will arrive; none when `max_waiting` questions of that kind are open.
    pub(crate) fn open(&self) -> Option<(Ticket<'_>, oneshot::Receiver<Message>)> {
        let (reply, arrival) = oneshot::channel();
        Some((self.open_as(Waiter::Task(reply))?, arrival))
    }

    /// The same for a message of our own that is to come back.
    pub(crate) fn open_echo(&self) -> Option<(Ticket<'_>, oneshot::Receiver<()>)> {
        let (back, arrival) = oneshot::channel();
        Some((self.open_as(Waiter::Echo(back))?, arrival))
    }

    fn open_as(&self, waiter: Waiter) -> Option<Ticket<'_>> {
        let number = self.next_number();
        let mut table = self.lock();
        if !table.has_room(waiter.kind(), self.max_waiting) {
            return None;
        }
        table.add(number, waiter);
        Some(Ticket { pending: self, number, is_open: true })
    }

    /// A new number for a question to `asked` whose reply `handler` takes, or that it has none by `deadline`.
    ///
    /// # Errors
    /// Hands the handler back when `max_waiting` questions of that kind are open.
    pub(crate) fn open_handled(
        &self,
        deadline: Instant,
        asked: Option<NodeId>,
        handler: Handler,
    ) -> Result<u64, Handler> {
        let number = self.next_number();
        let ends = self.tick_after(deadline);
        let mut table = self.lock();
        if !table.has_room(HANDLED, self.max_waiting) {
            return Err(handler);
        }
        table.add(number, Waiter::Handler { handler, ends, asked });
        *table.ends.entry(ends).or_default() += 1;
        if table.sleeps_until.is_none_or(|tick| ends < tick) {
            table.sleeps_until = Some(ends);
            drop(table);
            self.sooner.notify_one();
        }
        Ok(number)
    }

    /// Hands a reply to whoever waits for it; false when nobody does any more.
    pub(crate) fn answer(&self, number: u64, message: Message) -> bool {
        let waiter = self.lock().remove(number);
        match waiter {
            Some(Waiter::Task(waiter)) => waiter.send(message).is_ok(),
            Some(Waiter::Handler { handler, .. }) => {
                handler(Ok(message));
                true
            }
            Some(Waiter::Echo(_)) | None => false,
        }
    }

    /// Takes a message of our own that came back. It answers nothing else: whoever may send one can forge no reply.
    pub(crate) fn echo(&self, number: u64) -> bool {
        let mut table = self.lock();
        if !matches!(table.waiting.get(&number), Some(Waiter::Echo(_))) {
            return false;
        }
        match table.remove(number) {
            Some(Waiter::Echo(waiter)) => waiter.send(()).is_ok(),
            _ => false,
        }
    }

    /// Ends a question that has a handler, if it is still open.
    pub(crate) fn fail(&self, number: u64, why: NoReply) {
        let waiter = self.lock().remove(number);
        if let Some(Waiter::Handler { handler, .. }) = waiter {
            handler(Err(why));
        }
    }

    /// Nobody cares for the reply any more: no handler runs.
    pub(crate) fn give_up(&self, number: u64) -> bool {
        let was_open = self.lock().remove(number).is_some();
        if was_open {
            self.cancelled.increment(1);
        }
        was_open
    }

    /// Whom the open questions with a handler were put to.
    pub(crate) fn asked(&self) -> Vec<NodeId> {
        let asked = |waiter: &Waiter| match waiter {
            Waiter::Handler { asked, .. } => *asked,
            Waiter::Task(_) | Waiter::Echo(_) => None,
        };
        let mut asked: Vec<NodeId> = self.lock().waiting.values().filter_map(asked).collect();
        asked.sort_unstable();
        asked.dedup();
        asked
    }

    /// Ends all questions that were put to `gone`.
    pub(crate) fn fail_all_to(&self, gone: NodeId) {
        let handlers = self.lock().take(|_, asked| asked == Some(gone));
        handlers.into_iter().for_each(|handler| handler(Err(NoReply::Gone)));
    }

    /// Ends questions whose time is over, for as long as it is polled.
    pub(crate) async fn expire(&self) {
        loop {
            let next = {
                let mut table = self.lock();
                table.sleeps_until = table.ends.first_key_value().map(|(tick, _)| *tick);
                table.sleeps_until
            };
            let Some(next) = next else {
                self.sooner.notified().await;
                continue;
            };
            tokio::select! {
                () = sleep_until(self.moment(next)) => {}
                () = self.sooner.notified() => continue,
            }
            let handlers = self.lock().take(|ends, _| ends <= next);
            handlers.into_iter().for_each(|handler| handler(Err(NoReply::Expired)));
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Nobody will answer any more: every waiter learns it at once.
    pub(crate) fn abandon_all(&self) {
        let handlers = {
            let mut table = self.lock();
            let handlers = table.take(|_, _| true);
            table.waiting.clear();
            table.of_kind = [0; KINDS];
            handlers
        };
        handlers.into_iter().for_each(|handler| handler(Err(NoReply::Down)));
    }

    /// A number that nobody can guess.
    pub(crate) fn next_number(&self) -> u64 {
        self.numbers.hash_one(self.asked.fetch_add(1, Ordering::Relaxed))
    }

    /// The first tick that is not before `moment`.
    fn tick_after(&self, moment: Instant) -> u64 {
        let since = moment.saturating_duration_since(self.started).as_nanos();
        u64::try_from(since.div_ceil(TICK.as_nanos())).unwrap_or(u64::MAX)
    }

    /// When a tick is.
    fn moment(&self, tick: u64) -> Instant {
        self.started + Duration::from_nanos(tick.saturating_mul(TICK.as_nanos() as u64))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }
}

/// One open question. Dropping it, as a cancelled asker does, takes it out of the table.
pub(crate) struct Ticket<'a> {
    pending: &'a Pending,
    number: u64,
    is_open: bool,
}

impl Ticket<'_> {
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The reply came, and took the entry with it.
    pub(crate) fn answered(mut self) {
        self.is_open = false;
    }

    /// No reply is waited for any more.
    pub(crate) fn given_up(mut self) {
        self.is_open = false;
        self.pending.lock().remove(self.number);
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if self.is_open {
            self.pending.lock().remove(self.number);
            self.pending.cancelled.increment(1);
        }
    }
}

/// Spreads numbers over the table; they are ours, so nobody can choose them to collide.
#[derive(Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    }

    fn finish(&self) -> u64 {
        // hashbrown takes the top bits for its tags and the low bits for the place: the product's high half is
        // the well-mixed one.
        self.0.rotate_left(32)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

    use super::*;

    fn pending(max_waiting: usize) -> Arc<Pending> {
        Arc::new(Pending::new(max_waiting, Counter::noop()))
    }

    type Ended = (&'static str, Result<(), NoReply>);

    /// Opens questions and tells how each ended.
    struct Asker {
        pending: Arc<Pending>,
        ended_tx: tokio::sync::mpsc::UnboundedSender<Ended>,
        ended: UnboundedReceiver<Ended>,
    }

    impl Asker {
        fn new(pending: &Arc<Pending>) -> Self {
            let (ended_tx, ended) = unbounded_channel();
            Asker { pending: Arc::clone(pending), ended_tx, ended }
        }

        fn ask(&self, name: &'static str, wait_ms: u64, asked: u64) -> Option<u64> {
            let ended = self.ended_tx.clone();
            let deadline = Instant::now() + Duration::from_millis(wait_ms);
            let handler = move |reply: Result<Message, NoReply>| {
                let _ = ended.send((name, reply.map(|_| ())));
            };
            self.pending.open_handled(deadline, Some(NodeId(asked)), Box::new(handler)).ok()
        }

        async fn next(&mut self) -> Ended {
            self.ended.recv().await.unwrap()
        }
    }

    fn message() -> Message {
        Message {
            subject: "it".into(),
            reply: None,
            payload: bytes::Bytes::new(),
            headers: None,
            status: None,
            description: None,
            length: 0,
        }
    }

    #[test]
    fn an_echo_is_no_reply() {
        let pending = pending(9);
        let (asked, mut reply) = pending.open().unwrap();
        assert!(!pending.echo(asked.number()), "whoever may send echoes can forge no reply");
        assert!(reply.try_recv().is_err());
        let (sent, mut back) = pending.open_echo().unwrap();
        assert!(pending.echo(sent.number()));
        assert_eq!(back.try_recv(), Ok(()));
        assert!(!pending.echo(sent.number()));
        sent.answered();
        asked.given_up();
        assert_eq!(pending.len(), 0);
    }

    #[tokio::test]
    async fn a_question_ends_when_its_time_is_over_and_not_before() {
        let pending = pending(10);
        let mut asker = Asker::new(&pending);
        let started = Instant::now();
        let expiring = tokio::spawn({
            let pending = Arc::clone(&pending);
            async move { pending.expire().await }
        });
        asker.ask("in a minute", 60_000, 1);
        tokio::task::yield_now().await;
        // Sooner than what is slept for.
        asker.ask("late", 100, 1);
        asker.ask("soon", 25, 1);
        for (name, wait_ms) in [("soon", 25), ("late", 100)] {
            assert_eq!(asker.next().await, (name, Err(NoReply::Expired)));
            let ms = started.elapsed().as_millis();
            assert!((wait_ms..60_000).contains(&ms), "{name}: {ms} ms");
        }
        assert_eq!(pending.len(), 1);
        expiring.abort();
    }

    #[tokio::test]
    async fn ticks_go_on_for_years() {
        let pending = pending(1);
        // 32 bits end after 497 days.
        for days in [0, 1, 497, 498, 36_500] {
            let at = pending.started + Duration::from_secs(days * 24 * 60 * 60);
            assert_eq!(pending.moment(pending.tick_after(at)), at, "{days} days");
        }
    }

    #[tokio::test]
    async fn what_is_answered_leaves_nothing_behind() {
        let pending = pending(10);
        let mut asker = Asker::new(&pending);
        let number = asker.ask("it", 1_000, 1).unwrap();
        assert!(pending.answer(number, message()));
        assert_eq!(asker.next().await, ("it", Ok(())));
        assert!(!pending.answer(number, message()), "nobody waits any more");
        assert_eq!((pending.len(), pending.lock().ends.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_question_that_is_given_up_is_never_answered() {
        let pending = pending(10);
        let mut asker = Asker::new(&pending);
        let number = asker.ask("it", 1_000, 1).unwrap();
        pending.give_up(number);
        assert!(!pending.answer(number, message()));
        assert_eq!((pending.len(), pending.lock().ends.len()), (0, 0));
        drop(asker.ended_tx);
        assert_eq!(asker.ended.recv().await, None);
    }

    #[tokio::test]
    async fn who_is_gone_answers_nobody() {
        let pending = pending(10);
        let mut asker = Asker::new(&pending);
        asker.ask("gone", 1_000, 1);
        let alive = asker.ask("alive", 1_000, 2).unwrap();
        assert_eq!(pending.asked(), [NodeId(1), NodeId(2)]);
        pending.fail_all_to(NodeId(1));
        assert_eq!(asker.next().await, ("gone", Err(NoReply::Gone)));
        assert_eq!(pending.asked(), [NodeId(2)]);
        pending.fail(alive, NoReply::Down);
        assert_eq!(asker.next().await, ("alive", Err(NoReply::Down)));
        assert_eq!(pending.lock().ends.len(), 0);
    }

    #[tokio::test]
    async fn one_question_too_many_is_refused_and_the_end_is_told_to_all() {
        let pending = pending(2);
        let mut asker = Asker::new(&pending);
        let (_ticket, arrival) = pending.open().unwrap();
        for name in ["it", "another"] {
            asker.ask(name, 1_000, 1).unwrap();
        }
        assert_eq!(asker.ask("one too many", 1_000, 1), None);
        // Calls leave the process's own questions their places, and the other way round.
        let (_second, _) = pending.open().unwrap();
        assert!(pending.open().is_none());
        let (_echo, _) = pending.open_echo().unwrap();
        pending.abandon_all();
        let mut told = [asker.next().await, asker.next().await];
        told.sort_unstable_by_key(|(name, _)| *name);
        assert_eq!(told, [("another", Err(NoReply::Down)), ("it", Err(NoReply::Down))]);
        assert!(arrival.await.is_err());
        let Table { waiting, ends, of_kind, .. } = &*pending.lock();
        assert_eq!((waiting.len(), ends.len(), *of_kind), (0, 0, [0; KINDS]));
    }
}
