//! How does a message travel, and what is heard back? One NATS connection and one reply inbox per process.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::client::traits::Publisher;
use async_nats::connection::State;
use async_nats::message::OutboundMessage;
use async_nats::{Client, HeaderMap, Message, Subject};
use bytes::Bytes;
use futures::FutureExt;
use futures::StreamExt;
use futures::future::BoxFuture;
use metrics::Histogram;
use parking_lot::Mutex;
use rpc::{Beats, Deadline, NodeId, NodeKey, Subjects, Until};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, warn};
use uuid::Uuid;

use crate::connect::{BusSettings, Connection, Monitored, admit_version, connect_client, monitor, observe};
use crate::errors::{AskError, BusError, TellError};
use crate::local::{HandedOver, Local, Receiving};
use crate::many::{Answers, Many, is_nobody};
use crate::meters::Meters;
use crate::outage::Outage;
use crate::pending::{NoReply, Pending};
use crate::pulse::Pulse;
use crate::room::Room;
use crate::serve::Requests;

/// Between a process's inbox and the number of a message to itself. Apart from replies, so that NATS permissions can
/// allow the one without the other.
const ECHO: &str = "echo.";
/// In front of the number of a question that many may answer.
const MANY: &str = "all-";
/// Has servers tell what they do with a message, to the subject that it names.
const TRACE_TO: &str = "Nats-Trace-Dest";
/// In front of the number of a message to itself that says how old the connection's messages are.
const PULSE: &str = "p";

/// A question whose reply a handler takes.
#[derive(Debug)]
pub struct Question {
    /// Where to.
    pub subject: Subject,
    /// What is asked.
    pub message: Bytes,
    /// How long a reply is waited for; that it is over is noticed up to 10 ms later.
    pub wait: Duration,
    /// The node that is asked, if it is one: see [`Bus::no_reply_from`].
    pub asked: Option<NodeId>,
}

/// A question that a handler waits for: what [`Bus::give_up`] takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked(u64);

/// This process's connection to NATS. Clones share it.
#[derive(Clone)]
pub struct Bus {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    process: NodeId,
    subjects: Subjects,
    /// The reply inbox with its last dot: an ask's number follows.
    inbox: String,
    pending: Arc<Pending>,
    /// The other services of this process, and that they answer here.
    local: Option<(Local, Receiving)>,
    many: Arc<Many>,
    room: Room,
    replicas: u16,
    /// JetStream's API, with its last dot.
    api: String,
    /// The connection to JetStream, if it is another.
    store: Option<Bus>,
    send_timeout: Duration,
    connect_timeout: Duration,
    is_closed: AtomicBool,
    pulse: Arc<Mutex<Pulse>>,
    beats: Mutex<Beats>,
    connection: watch::Receiver<Connection>,
    cause: watch::Receiver<Option<String>>,
    meters: Arc<Meters>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in self.tasks.get_mut() {
            task.abort();
        }
    }
}

impl Bus {
    /// Connects as `switchboard-<service>`, and reconnects for ever afterwards.
    ///
    /// # Errors
    /// When no server has answered after `connect_timeout_ms`, or one refuses us or is too old.
    pub async fn connect(settings: &BusSettings, service: &str) -> Result<Bus, BusError> {
        let store = match settings.for_store() {
            Some(for_store) => {
                let meters = Meters::of_store();
                Some(Bus::open(&for_store, &format!("{service}-store"), meters, None).await?)
            }
            None => None,
        };
        Bus::open(settings, service, Meters::new(), store).await
    }

    /// Boxed, see [`boot::Serving`]: the connection's own tasks are compiled here.
    fn open<'a>(
        settings: &'a BusSettings,
        service: &'a str,
        meters: Meters,
        store: Option<Bus>,
    ) -> BoxFuture<'a, Result<Bus, BusError>> {
        Box::pin(Bus::begin(settings, service, meters, store))
    }

    async fn begin(
        settings: &BusSettings,
        service: &str,
        meters: Meters,
        store: Option<Bus>,
    ) -> Result<Bus, BusError> {
        let meters = Arc::new(meters);
        let (happened, outage) = (Arc::new(Notify::new()), Arc::new(Outage::default()));
        let key = NodeKey::of(Uuid::new_v4(), Uuid::new_v4());
        let process = key.id();
        let subjects = Subjects::new(settings.prefix.clone());
        let feed = subjects.feed(process);
        let client = connect_client(settings, service, &key, &feed, &meters, &happened, &outage).await?;
        admit_version(&client.server_info().version, settings.allow_vulnerable_server)?;

        let inbox = format!("{}.", subjects.inbox(process));
        let pending = Arc::new(Pending::new(settings.max_pending_asks, meters.cancelled.clone()));
        let everything = format!("{inbox}>");
        let replies = client.subscribe(everything.clone()).await;
        let replies = replies
            .map_err(|error| BusError::Subscribe { subject: everything, reason: error.to_string() })?;

        let api = match settings.store_user {
            Some(_) => subjects.store_api(),
            None => "$JS.API.".to_owned(),
        };
        let local = settings.local.clone().map(|local| {
            let receiving = local.receive_replies(&inbox, &pending);
            (local, receiving)
        });
        let many = Arc::new(Many::default());
        let pulse = Arc::new(Mutex::new(Pulse::new(Instant::now().into())));
        let (connection_tx, connection) = watch::channel(observe(&client));
        meters.connected.set(1.0);
        let tasks = vec![
            tokio::spawn(hand_out_replies(
                replies,
                inbox.len(),
                (Arc::clone(&pending), Arc::clone(&many)),
                Arc::clone(&pulse),
                Arc::clone(&meters),
            )),
            tokio::spawn(monitor(
                Monitored {
                    client: client.clone(),
                    pulse_prefix: format!("{inbox}{ECHO}{PULSE}"),
                    pulse: Arc::clone(&pulse),
                    pending: Arc::clone(&pending),
                    meters: Arc::clone(&meters),
                },
                connection_tx,
                happened,
            )),
            tokio::spawn({
                let pending = Arc::clone(&pending);
                async move { pending.expire().await }
            }),
        ];
        Ok(Bus {
            inner: Arc::new(Inner {
                client,
                process,
                subjects,
                inbox,
                pending,
                local,
                many,
                room: Room::default(),
                replicas: settings.replicas,
                api,
                store,
                send_timeout: Duration::from_millis(settings.send_timeout_ms),
                connect_timeout: Duration::from_millis(settings.connect_timeout_ms),
                is_closed: AtomicBool::new(false),
                pulse,
                beats: Mutex::default(),
                connection,
                cause: outage.cause(),
                meters,
                tasks: Mutex::new(tasks),
            }),
        })
    }

    /// This process's id, random for each start: the last token of its inbox, and an ingress node's id. NATS is shown
    /// the [key](NodeKey) that it follows from, for where nodes have rights of their own.
    pub fn process(&self) -> NodeId {
        self.inner.process
    }

    /// The connection over which JetStream is reached: this one, or one of its own.
    pub(crate) fn store(&self) -> &Bus {
        self.inner.store.as_ref().unwrap_or(self)
    }

    /// Where JetStream's API is, with the last dot.
    pub(crate) fn api(&self) -> &str {
        &self.inner.api
    }

    /// Whether JetStream is in other accounts than this user.
    pub(crate) fn is_apart(&self) -> bool {
        self.inner.api == self.inner.subjects.store_api()
    }

    /// The subjects below this bus's prefix.
    pub fn subjects(&self) -> &Subjects {
        &self.inner.subjects
    }

    /// Whether NATS can be reached, and when that changes. Up to a second late; `ask` and `tell` look for themselves.
    pub fn connection(&self) -> watch::Receiver<Connection> {
        self.inner.connection.clone()
    }

    /// Why NATS cannot be reached, as the last attempt says; none while it can.
    pub(crate) fn cause(&self) -> watch::Receiver<Option<String>> {
        self.inner.cause.clone()
    }

    /// The largest message that NATS takes, in bytes.
    pub fn max_payload_bytes(&self) -> usize {
        self.inner.client.max_payload()
    }

    /// Asks and waits for one reply, for at most `wait`, which covers everything. Nothing is left behind when the
    /// future is dropped.
    ///
    /// # Errors
    /// See [`AskError`]; after `NoResponders`, `Full` and `Unsendable` nobody has received the message.
    pub async fn ask(
        &self,
        subject: impl Into<Subject>,
        message: Bytes,
        wait: Duration,
    ) -> Result<Bytes, AskError> {
        let reply = self.exchange(subject.into(), None, message, wait).await?;
        Ok(reply.payload)
    }

    /// [`ask`](Self::ask), and every NATS server that the question comes by tells of it (ADR-41 of NATS), as far as the
    /// accounts that it is handed on to allow that.
    pub async fn ask_traced(
        &self,
        subject: impl Into<Subject>,
        message: Bytes,
        wait: Duration,
    ) -> (Result<Bytes, AskError>, Traced) {
        let number = self.unguessable();
        // Where everybody may publish for himself, which NATS asks for.
        let told_to = format!("{}{ECHO}{MANY}{number}", self.inner.inbox);
        let traced = Traced(self.inner.many.open(number));
        let mut headers = HeaderMap::new();
        headers.insert(TRACE_TO, told_to);
        let reply = self.exchange(subject.into(), Some(headers), message, wait).await;
        (reply.map(|reply| reply.payload), traced)
    }

    /// Asks everybody who listens on these subjects, and takes what is answered within `wait`; at once, and nothing,
    /// where nobody listens.
    ///
    /// # Errors
    /// When the question cannot be sent.
    pub async fn ask_all(
        &self,
        subjects: impl IntoIterator<Item = String>,
        message: Bytes,
        wait: Duration,
    ) -> Result<Vec<Bytes>, AskError> {
        let number = self.unguessable();
        let (inbox, mut replies) = self.open_to_many(number);
        let mut asked = 0;
        for subject in subjects {
            self.forward(subject, inbox.clone(), message.clone()).await.map_err(|error| match error {
                TellError::Down => AskError::Down,
                TellError::Unsendable => AskError::Unsendable,
            })?;
            asked += 1;
        }
        let (until, mut found) = (Instant::now() + wait, Vec::new());
        while asked > 0
            && let Ok(Some(reply)) = timeout_at(until, replies.next()).await
        {
            match is_nobody(&reply) {
                true => asked -= 1,
                false => found.push(reply.payload),
            }
        }
        Ok(found)
    }

    /// A number that nobody can guess, another one each time.
    pub(crate) fn unguessable(&self) -> u64 {
        self.inner.pending.next_number()
    }

    /// Where many answers to one question go, and they.
    pub(crate) fn open_to_many(&self, number: u64) -> (String, Answers) {
        (format!("{}{MANY}{number}", self.inner.inbox), self.inner.many.open(number))
    }

    /// Asks, and has `then` take the reply, or the reason why there is none. It runs once, unless the question is
    /// given up: now, when nothing could be sent, or later, where replies come in, which it must not hold up.
    /// Costs no task and no timer of its own: for what is asked with every call.
    pub fn ask_then(
        &self,
        question: Question,
        then: impl FnOnce(Result<Bytes, AskError>) + Send + 'static,
    ) -> Asked {
        let Inner { pending, meters, send_timeout, .. } = &*self.inner;
        let Question { subject, message, wait, asked } = question;
        let handler = {
            let meters = Arc::clone(meters);
            let timed = self.seconds_of(&subject).map(|seconds| (seconds.clone(), Instant::now()));
            move |reply| {
                if let Some((seconds, started)) = timed {
                    seconds.record(started.elapsed());
                }
                then(meters.counted(reply).map(|reply| reply.payload));
            }
        };
        let number = match pending.open_handled(Instant::now() + wait, asked, Box::new(handler)) {
            Ok(number) => number,
            Err(refused) => {
                refused(Err(NoReply::Full));
                return Asked(u64::MAX);
            }
        };
        let reply_to = Some(self.inbox_of(number));
        let wait = wait.min(*send_timeout);
        match self.publish_now(subject, reply_to, None, message) {
            Published::Done(Ok(())) => {}
            Published::Done(Err(error)) => pending.fail(number, error.into()),
            Published::NoRoom(message) => {
                let bus = self.clone();
                tokio::spawn(async move {
                    if let Err(error) = bus.publish_later(message, wait).await {
                        bus.inner.pending.fail(number, error.into());
                    }
                });
            }
        }
        Asked(number)
    }

    /// Nobody cares for the reply any more: the handler does not run, if it has not yet. True if it had not.
    pub fn give_up(&self, asked: Asked) -> bool {
        self.inner.pending.give_up(asked.0)
    }

    /// The nodes that [`ask_then`](Self::ask_then) waits for.
    pub fn asked_nodes(&self) -> Vec<NodeId> {
        self.inner.pending.asked()
    }

    /// `node` is gone: ends every question that was put to it, with [`AskError::Gone`].
    pub fn no_reply_from(&self, node: NodeId) {
        self.inner.pending.fail_all_to(node);
    }

    /// Publishes.
    ///
    /// # Errors
    /// At once when there is no connection: what was queued then would be delivered later.
    pub async fn tell(&self, subject: impl Into<Subject>, message: Bytes) -> Result<(), TellError> {
        self.publish(subject.into(), None, None, message, self.inner.send_timeout).await
    }

    /// The same with headers.
    pub(crate) async fn tell_with(
        &self,
        subject: Subject,
        headers: HeaderMap,
        message: Bytes,
    ) -> Result<(), TellError> {
        self.publish(subject, None, Some(headers), message, self.inner.send_timeout).await
    }

    /// Publishes, and returns once the server has the message: a round trip of our own behind it proves that, on
    /// one connection in order, whether anyone listens or not.
    ///
    /// # Errors
    /// As [`tell`](Self::tell), and `Down` when the round trip is not over within `wait`.
    pub async fn tell_and_confirm(
        &self,
        subject: impl Into<Subject>,
        message: Bytes,
        wait: Duration,
    ) -> Result<(), TellError> {
        self.tell(subject, message).await?;
        self.confirm(wait).await
    }

    /// How to say elsewhere when something ends that is asked `now`, so that it ends also where it was held up on its
    /// way; see [`Bus::hear_beats`].
    pub fn until(&self, end: std::time::Instant, now: std::time::Instant) -> Option<Until> {
        self.inner.beats.lock().until(end, now)
    }

    /// When something is over here: at `deadline`, or sooner where it was held up on its way.
    pub fn ends(&self, until: Option<&Until>, deadline: Deadline) -> Deadline {
        let end = until.and_then(|until| self.inner.beats.lock().end(until));
        end.map_or(deadline, |end| deadline.min(Deadline::at(end)))
    }

    /// How long ago something was asked that arrived at `arrived`, wherever it was meanwhile; none where its asker did
    /// not say so, or heard another router's beat than this process.
    pub fn underway(&self, until: Option<&Until>, arrived: std::time::Instant) -> Option<Duration> {
        let asked = self.inner.beats.lock().asked(until?)?;
        Some(arrived.saturating_duration_since(asked))
    }

    pub(crate) fn beats(&self) -> &Mutex<Beats> {
        &self.inner.beats
    }

    /// Returns once the server has all that was published before.
    ///
    /// # Errors
    /// `Down` when the round trip is not over within `wait`.
    pub async fn confirm(&self, wait: Duration) -> Result<(), TellError> {
        self.round_trip(wait).await.map_err(|_| TellError::Down)
    }

    /// Publishes with a reply subject of the caller's choice.
    ///
    /// # Errors
    /// As [`tell`](Self::tell). That nobody listens is said on `reply_to`.
    pub async fn forward(
        &self,
        subject: impl Into<Subject>,
        reply_to: impl Into<Subject>,
        message: Bytes,
    ) -> Result<(), TellError> {
        let reply_to = reply_to.into();
        // async-nats checks the subject alone here, and this one may have come out of a message.
        if !reply_to.is_valid() {
            return Err(TellError::Unsendable);
        }
        self.publish(subject.into(), Some(reply_to), None, message, self.inner.send_timeout).await
    }

    /// Subscribes, alone or as a member of a queue group. When this returns, the server knows.
    ///
    /// # Errors
    /// When there is no connection, or `subject` is none.
    pub async fn serve(
        &self,
        subject: impl Into<Subject>,
        queue: Option<&str>,
    ) -> Result<Requests, BusError> {
        let subject = subject.into();
        let failed = |reason: &dyn fmt::Display| BusError::Subscribe {
            subject: subject.to_string(),
            reason: reason.to_string(),
        };
        let client = &self.inner.client;
        let subscriber = match queue {
            Some(queue) => client.queue_subscribe(subject.clone(), queue.to_owned()).await,
            None => client.subscribe(subject.clone()).await,
        };
        let subscriber = subscriber.map_err(|error| failed(&error))?;
        self.round_trip(self.inner.connect_timeout).await.map_err(|error| failed(&error))?;
        let Inner { process, subjects, pulse, connection, local, .. } = &*self.inner;
        let local = local.as_ref().and_then(|(local, _)| local.subscribe(&subject, queue, *process));
        Ok(Requests::new(subscriber, local, subjects.clone(), Arc::clone(pulse), connection.clone()))
    }

    /// Ends the connection once the server has everything that was published. Asks and tells fail from now on, and
    /// so do the asks still open.
    pub async fn close(&self) {
        if self.inner.is_closed.load(Ordering::Relaxed) {
            return;
        }
        // Closing a socket with unread bytes in it can take back what was written: a reply to the last message of
        // all proves that nothing of it is left.
        if let Err(error) = self.round_trip(self.inner.send_timeout).await {
            debug!(%error, "the last messages may not have reached NATS");
        }
        self.inner.is_closed.store(true, Ordering::Relaxed);
        if let Err(error) = self.inner.client.drain().await {
            debug!(%error, "the connection to NATS is closed already");
        }
        self.inner.pending.abandon_all();
        self.inner.many.abandon_all();
        let tasks = std::mem::take(&mut *self.inner.tasks.lock());
        for task in tasks {
            // The pending asks are over, and a task has nothing else to finish.
            task.abort();
            let _ = task.await;
        }
        self.inner.meters.connected.set(0.0);
        if let Some(store) = &self.inner.store {
            Box::pin(store.close()).await;
        }
    }

    /// Sends itself a message: when it is back, the server has seen all that was sent before it.
    async fn round_trip(&self, wait: Duration) -> Result<(), AskError> {
        let (ticket, arrival) = self.inner.pending.open_echo().ok_or(AskError::Full)?;
        let subject = format!("{}{ECHO}{}", self.inner.inbox, ticket.number());
        let deadline = Instant::now() + wait;
        let sent = self.publish(subject.into(), None, None, Bytes::new(), wait).await;
        let back = match sent {
            Ok(()) => timeout_at(deadline, arrival).await.map_err(|_| AskError::Expired),
            Err(_) => Err(AskError::Down),
        };
        match back {
            Ok(Ok(())) => {
                ticket.answered();
                Ok(())
            }
            Ok(Err(_)) => {
                ticket.given_up();
                Err(AskError::Down)
            }
            Err(error) => {
                ticket.given_up();
                Err(error)
            }
        }
    }

    /// [`ask`](Self::ask) with headers, and the reply with its own.
    pub(crate) async fn exchange(
        &self,
        subject: Subject,
        headers: Option<HeaderMap>,
        message: Bytes,
        wait: Duration,
    ) -> Result<Message, AskError> {
        let Inner { pending, meters, send_timeout, .. } = &*self.inner;
        let (started, seconds) = (Instant::now(), self.seconds_of(&subject));
        let deadline = started + wait;
        let Some((ticket, arrival)) = pending.open() else {
            return meters.counted(Err(NoReply::Full));
        };
        let reply_to = Some(self.inbox_of(ticket.number()));
        let sent = self.publish(subject, reply_to, headers, message, wait.min(*send_timeout)).await;
        let reply = match sent {
            Ok(()) => match timeout_at(deadline, arrival).await {
                Ok(reply) => reply.map_err(|_| NoReply::Down),
                Err(_) => Err(NoReply::Expired),
            },
            Err(error) => Err(error.into()),
        };
        match reply {
            Ok(_) => ticket.answered(),
            Err(_) => ticket.given_up(),
        }
        if let Some(seconds) = seconds {
            seconds.record(started.elapsed());
        }
        meters.counted(reply)
    }

    fn seconds_of(&self, subject: &Subject) -> Option<&Histogram> {
        self.inner.meters.seconds(self.inner.subjects.prefix(), subject)
    }

    async fn publish(
        &self,
        subject: Subject,
        reply: Option<Subject>,
        headers: Option<HeaderMap>,
        payload: Bytes,
        wait: Duration,
    ) -> Result<(), TellError> {
        match self.publish_now(subject, reply, headers, payload) {
            Published::Done(sent) => sent,
            // Boxed: whoever asks or tells keeps little while it waits for other things.
            Published::NoRoom(message) => Box::pin(self.publish_later(message, wait)).await,
        }
    }

    /// Publishes without waiting: nearly always there is room.
    fn publish_now(
        &self,
        subject: Subject,
        reply: Option<Subject>,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Published {
        let Inner { client, is_closed, room, meters, .. } = &*self.inner;
        if is_closed.load(Ordering::Relaxed) {
            return Published::Done(Err(TellError::Down));
        }
        let message = OutboundMessage { subject, reply, payload, headers };
        let is_connected = client.connection_state() == State::Connected;
        let message = match self.here(&message) {
            None => message,
            Some(local) => match self.hand_over(local, message, is_connected) {
                HandedOver::Taken | HandedOver::Answered(true) => return Published::Done(Ok(())),
                HandedOver::Answered(false) => {
                    meters.unclaimed.increment(1);
                    return Published::Done(Ok(()));
                }
                HandedOver::No(message) => message,
            },
        };
        if !is_connected {
            return Published::Done(Err(TellError::Down));
        }
        let Some(payload) = room.hold_now(&message.payload) else { return Published::NoRoom(message) };
        // The copy shares the message's memory.
        match client.publish_message(OutboundMessage { payload, ..message.clone() }).now_or_never() {
            Some(sent) => Published::Done(sent.map_err(|error| unsent(&error))),
            None => Published::NoRoom(message),
        }
    }

    /// Who is in this process, if the message may be for one of them.
    fn here(&self, message: &OutboundMessage) -> Option<&Local> {
        let (local, _) = self.inner.local.as_ref()?;
        let is_for_one = message.headers.is_none() && local.concerns(&message.subject);
        (is_for_one && message.payload.len() <= self.max_payload_bytes()).then_some(local)
    }

    /// To who is in this process. Without NATS nothing is asked here either: what decides over it may be out of date.
    /// What has been asked is answered.
    fn hand_over(&self, local: &Local, message: OutboundMessage, is_connected: bool) -> HandedOver {
        let handed_over = match local.answer(message) {
            HandedOver::No(message) if is_connected => local.deliver(message),
            handed_over => handed_over,
        };
        if !matches!(handed_over, HandedOver::No(_)) {
            self.inner.meters.handed_over.increment(1);
        }
        handed_over
    }

    async fn publish_later(&self, message: OutboundMessage, wait: Duration) -> Result<(), TellError> {
        let Inner { client, room, .. } = &*self.inner;
        let sent = timeout(wait, async {
            let payload = room.hold(&message.payload).await;
            client.publish_message(OutboundMessage { payload, ..message }).await
        });
        let sent = sent.await;
        sent.map_err(|_| TellError::Down)?.map_err(|error| unsent(&error))
    }

    fn inbox_of(&self, number: u64) -> Subject {
        // Without the formatter, and of just its length: each call has two of them.
        [self.inner.inbox.as_str(), itoa::Buffer::new().format(number)].concat().into()
    }

    pub(crate) fn replicas(&self) -> u16 {
        self.inner.replicas
    }

    pub(crate) fn meters(&self) -> &Meters {
        &self.inner.meters
    }

    pub(crate) fn client(&self) -> &Client {
        &self.inner.client
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.inner.is_closed.load(Ordering::Relaxed)
    }

    /// How many asks are open, for tests and gauges.
    pub fn pending_asks(&self) -> usize {
        self.inner.pending.len()
    }
}

/// What servers tell of a question.
pub struct Traced(Answers);

impl Traced {
    /// What has been told up to now, in NATS' JSON, one for each server.
    pub fn told(&mut self) -> Vec<Bytes> {
        std::iter::from_fn(|| self.0.come()).map(|told| told.payload).collect()
    }
}

/// What became of a message that was to be published without waiting.
enum Published {
    Done(Result<(), TellError>),
    /// The connection is behind: the message, to wait with.
    NoRoom(OutboundMessage),
}

fn unsent(error: &async_nats::PublishError) -> TellError {
    if error.kind() == async_nats::PublishErrorKind::Send {
        return TellError::Down;
    }
    warn!(%error, "a message cannot be sent");
    TellError::Unsendable
}

impl From<TellError> for NoReply {
    fn from(error: TellError) -> Self {
        match error {
            TellError::Down => NoReply::Down,
            TellError::Unsendable => NoReply::Unsendable,
        }
    }
}

/// The number of a question that many answer.
fn one_of_many(rest: &str) -> Option<u64> {
    rest.strip_prefix(MANY)?.parse().ok()
}

async fn hand_out_replies(
    mut replies: async_nats::Subscriber,
    number_starts: usize,
    (pending, many): (Arc<Pending>, Arc<Many>),
    pulse: Arc<Mutex<Pulse>>,
    meters: Arc<Meters>,
) {
    while let Some(reply) = replies.next().await {
        let rest = reply.subject.get(number_starts..).unwrap_or_default();
        let is_claimed = match (rest.parse(), rest.strip_prefix(ECHO)) {
            (Ok(number), _) => pending.answer(number, reply),
            (_, Some(echo)) => match (echo.parse(), echo.strip_prefix(PULSE).map(str::parse)) {
                (Ok(number), _) => pending.echo(number),
                (_, Some(Ok(number))) => pulse.lock().returned(number, Instant::now().into()),
                _ => one_of_many(echo).is_some_and(|number| many.answer(number, reply.clone())),
            },
            _ => one_of_many(rest).is_some_and(|number| many.answer(number, reply.clone())),
        };
        if !is_claimed {
            meters.unclaimed.increment(1);
        }
    }
    // The connection is closed for good.
    pending.abandon_all();
    many.abandon_all();
}
