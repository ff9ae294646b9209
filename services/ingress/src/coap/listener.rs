//! How is CoAP served? One socket, and one loop that waits for whatever comes first, hands it to the endpoint, and
//! performs what the endpoint asks for. It never waits for another service: such things run beside it.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::future::Future;
use std::hash::{BuildHasher, Hash, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use boot::clock::unix_ms;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::{AbortHandle, Abortable};
use futures::stream::{BoxStream, FuturesUnordered, SelectAll, poll_fn};
use rpc::{Limit, Method, Protocol, SessionEnd};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::codec::{Kind, Reading, read};
use super::endpoint::{Effect, Endpoint, EndpointLimits, ObserverKey, RequestId};
use super::reply;
use super::tally::CoapMetrics;
use crate::calls::Ended;
use crate::device::admit::NotAdmitted;
use crate::device::mailbox::{Mail, Mailbox};
use crate::device::relay::{self, Handed};
use crate::device::sessions::{CredentialDigest, Session, Visitor};
use crate::device::target::AnswerTaken;
use crate::device::visitors::Key;
use crate::node::Node;

/// The longest datagram that UDP carries.
const MAX_DATAGRAM_BYTES: usize = 65_535;

/// Datagrams taken at once, before what they ask for is performed.
const MAX_RECEIVED_AT_ONCE: usize = 64;

/// Datagrams that may wait for the socket; further ones are dropped, and what matters is sent again.
const MAX_UNSENT: usize = 4_096;

/// How long receiving pauses when the socket fails.
const RECEIVE_PAUSE: Duration = Duration::from_millis(100);

/// A bound port, not yet served.
#[derive(Debug)]
pub struct Listener {
    socket: UdpSocket,
    address: SocketAddr,
}

impl Listener {
    /// Binds `coap.listen`.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub async fn bind(address: SocketAddr) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind(address)
            .await
            .with_context(|| format!("CoAP cannot listen on {address} (setting coap.listen)"))?;
        let address = socket.local_addr()?;
        Ok(Listener { socket, address })
    }

    /// Where it listens: the real port where 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Tells whoever asks that the node cannot serve him yet (5.03, try again after a second), for as long as it is
    /// awaited.
    pub(crate) async fn refuse_all(&self) -> Infallible {
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
        loop {
            let (bytes, source) = match self.socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                Err(error) => {
                    tracing::debug!(%error, "a CoAP datagram could not be received");
                    tokio::time::sleep(RECEIVE_PAUSE).await;
                    continue;
                }
            };
            let datagram = Bytes::copy_from_slice(buffer.get(..bytes).unwrap_or_default());
            let Reading::Message(asked) = read(&datagram) else { continue };
            let kind = match asked.kind {
                Kind::Confirmable => Kind::Acknowledgement,
                Kind::NonConfirmable => Kind::NonConfirmable,
                Kind::Acknowledgement | Kind::Reset => continue,
            };
            if asked.code.is_request() {
                // Without words: whoever forges a sender's address must not multiply traffic (RFC 7252 §11.3).
                let answer = reply::not_yet().write(kind, asked.id, asked.token);
                // Lost, it is as good as not asked.
                let _ = self.socket.try_send_to(&answer, source);
            }
        }
    }

    /// Serves until `stop`, and then until nothing is in flight.
    pub(crate) async fn serve(self, node: Arc<Node>, stop: CancellationToken) {
        // Keyed at random by the operating system.
        let seed = RandomState::new().hash_one(node.id);
        let (handed, answers) = mpsc::channel(1);
        let relay_node = Arc::clone(&node);
        let mut endpoint_loop = Loop {
            endpoint: Endpoint::new(limits(&node), node.id.tag(), seed, unix_ms(), Instant::now()),
            metrics: CoapMetrics::register(),
            socket: self.socket,
            node,
            visitors: HashMap::new(),
            sessions: HashMap::new(),
            mail: SelectAll::new(),
            jobs: FuturesUnordered::new(),
            unsent: VecDeque::new(),
            answers,
        };
        tokio::select! {
            () = endpoint_loop.run(stop) => {}
            () = relay::serve(&relay_node, Protocol::Coap, |it| handed.send(it)) => {}
        }
    }
}

/// Somebody whose mail the loop reads.
struct Read<T> {
    who: Arc<T>,
    stop: AbortHandle,
}

/// To whom mail was written.
#[derive(Clone, Copy)]
enum Reader {
    Visitor(Key),
    Observer(ObserverKey),
}

/// What was being done for the endpoint is done.
enum Done {
    Admitted(Key, Result<Arc<Visitor>, NotAdmitted>),
    Asked(RequestId, Method, Ended),
    Uplinked(RequestId, bool),
    HandedOn(RequestId, Option<AnswerTaken>),
    Claimed(ObserverKey, Option<Arc<Session>>),
    Ended(ObserverKey),
    Nothing,
}

type Job = Pin<Box<dyn Future<Output = Done> + Send>>;

struct Loop {
    endpoint: Endpoint,
    metrics: CoapMetrics,
    socket: UdpSocket,
    node: Arc<Node>,
    visitors: HashMap<Key, Read<Visitor>>,
    sessions: HashMap<ObserverKey, Read<Session>>,
    /// What they are told. A stream of its own for each: the mailboxes wake this loop alone.
    mail: SelectAll<Abortable<BoxStream<'static, (Reader, Mail)>>>,
    jobs: FuturesUnordered<Job>,
    unsent: VecDeque<(SocketAddr, Bytes)>,
    answers: mpsc::Receiver<Handed>,
}

impl Loop {
    async fn run(&mut self, stop: CancellationToken) {
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        let mut stopping = false;
        let mut changed = self.node.limits.subscribe();
        changed.mark_changed();
        loop {
            self.perform();
            self.send_unsent();
            if stopping && self.endpoint.is_drained() && self.jobs.is_empty() {
                return;
            }
            let wake = self.endpoint.next_wake();
            if let Some(wake) = wake
                && (wake < timer.deadline().into_std() || timer.is_elapsed())
            {
                timer.as_mut().reset(wake.into());
            }
            tokio::select! {
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.endpoint.drain();
                }
                readable = self.socket.readable() => {
                    if let Err(error) = readable.and_then(|()| self.receive(&mut buffer)) {
                        tracing::warn!(%error, "CoAP datagrams could not be received");
                        tokio::time::sleep(RECEIVE_PAUSE).await;
                    }
                }
                // The sender is the node's.
                _ = changed.changed() => self.endpoint.change_limits(limits(&self.node)),
                _ = self.socket.writable(), if !self.unsent.is_empty() => {}
                Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.done(done),
                Some(handed) = self.answers.recv() => self.take(handed),
                Some((reader, mail)) = self.mail.next(), if !self.mail.is_empty() => self.read(reader, mail),
                // What became due while something else was done has elapsed already, and is asked all the same.
                () = timer.as_mut(), if wake.is_some() => self.endpoint.tick(Instant::now()),
            }
        }
    }

    /// Takes what has come.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<()> {
        for _ in 0..MAX_RECEIVED_AT_ONCE {
            match self.socket.try_recv_from(buffer) {
                Ok((bytes, source)) => {
                    let datagram = Bytes::copy_from_slice(buffer.get(..bytes).unwrap_or_default());
                    self.endpoint.received(source, &datagram, Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn read(&mut self, reader: Reader, mail: Mail) {
        let now = Instant::now();
        match (reader, mail) {
            (Reader::Observer(key), Mail::Deliver(call)) => self.endpoint.deliver(key, call, now),
            (Reader::Observer(key), Mail::End(reason)) => self.endpoint.end_observer(key, reason, now),
            (Reader::Visitor(key), Mail::End(reason)) => self.endpoint.end_visitor(key, reason, now),
            (Reader::Visitor(key), Mail::Leave(reason)) => self.endpoint.send_away(key, reason, now),
            // Calls are for sessions, and visitors are sent away.
            (Reader::Visitor(_), Mail::Deliver(_)) | (Reader::Observer(_), Mail::Leave(_)) => {}
        }
    }

    fn take(&mut self, Handed { device, number, body, reply_to }: Handed) {
        let (now, visitors) = (Instant::now(), self.node.sessions.visitors_of(device));
        let answer = |visitor: &Arc<Visitor>| {
            let key = self.endpoint.visitor(&visitor.credential)?;
            let is_it = self.visitors.get(&key).is_some_and(|it| Arc::ptr_eq(&it.who, visitor));
            is_it.then(|| self.endpoint.answered_elsewhere(key, number, &body, now))
        };
        let taken: Vec<AnswerTaken> = visitors.iter().filter_map(answer).collect();
        let node = Arc::clone(&self.node);
        self.job(async move {
            relay::tell(&node, reply_to, taken.into_iter()).await;
            Done::Nothing
        });
    }

    /// Performs what the endpoint asks for.
    fn perform(&mut self) {
        while let Some(effect) = self.endpoint.next_effect() {
            match effect {
                Effect::Send(to, datagram) => self.send(to, datagram),
                Effect::Admit(key, credential, source) => self.admit(key, credential, source.ip()),
                Effect::Leave(key) => {
                    let Some(Read { who, stop }) = self.visitors.remove(&key) else { continue };
                    stop.abort();
                    self.node.leave(&who);
                }
                Effect::Ask(request, key, asked) => {
                    let Some(visitor) = who(&self.visitors, &key) else { continue };
                    let (node, started, method) = (Arc::clone(&self.node), Instant::now(), asked.method());
                    self.job(async move {
                        let ended = node.calls.perform(&visitor, asked, None).await;
                        node.call_ended(&visitor, method, &ended.outcome, started.elapsed());
                        Done::Asked(request, method, ended)
                    });
                }
                Effect::Uplink(request, key, kind, payload) => {
                    let Some(visitor) = who(&self.visitors, &key) else { continue };
                    let node = Arc::clone(&self.node);
                    self.job(
                        async move { Done::Uplinked(request, node.uplink(&visitor, kind, payload).await) },
                    );
                }
                Effect::HandOn(request, key, number, body) => {
                    let Some(visitor) = who(&self.visitors, &key) else { continue };
                    let node = Arc::clone(&self.node);
                    self.job(async move {
                        Done::HandedOn(request, relay::hand_on(&node, &visitor, number, &body).await)
                    });
                }
                Effect::Claim(observer, key) => self.claim(observer, key),
                Effect::Release(observer) => {
                    let Some(session) = who(&self.sessions, &observer) else { continue };
                    let node = Arc::clone(&self.node);
                    self.job(async move {
                        node.release(&session, SessionEnd::Moved).await;
                        Done::Nothing
                    });
                }
                Effect::End(observer, end) => self.end(observer, end),
                Effect::Conclude(conclusion) => {
                    let node = Arc::clone(&self.node);
                    self.job(async move {
                        node.conclude(conclusion).await;
                        Done::Nothing
                    });
                }
                Effect::Refused(method, outcome) => {
                    self.node.metrics.call_ended(method, &outcome, Duration::ZERO);
                }
                Effect::LimitHit(limit, key) => match key.and_then(|key| who(&self.visitors, &key)) {
                    Some(visitor) => self.node.limit_hit(&visitor, limit),
                    None => self.node.metrics.limit_hit(limit),
                },
            }
        }
        let tally = self.endpoint.take_tally();
        for _ in 0..tally.dropped_transfers {
            self.node.metrics.limit_hit(Limit::BlockTransfers);
        }
        self.metrics.add(&tally);
    }

    fn done(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Admitted(key, admitted) => {
                let caller = admitted.map(|visitor| {
                    let caller = Arc::clone(&visitor.caller);
                    let stop = self.reads(&visitor, Reader::Visitor(key), |it| &it.mailbox);
                    self.visitors.insert(key, Read { who: visitor, stop });
                    caller
                });
                self.endpoint.admitted(key, caller, now);
            }
            Done::Asked(request, method, Ended { outcome, body, .. }) => {
                self.endpoint.answered(request, method, &outcome, body, now);
            }
            Done::Uplinked(request, taken) => self.endpoint.uplinked(request, taken, now),
            Done::HandedOn(request, taken) => self.endpoint.handed_on(request, taken, now),
            Done::Claimed(key, session) => {
                let stands = session.is_some();
                if let Some(session) = session {
                    let stop = self.reads(&session, Reader::Observer(key), |it| &it.mailbox);
                    self.sessions.insert(key, Read { who: session, stop });
                }
                self.endpoint.claimed(key, stands, now);
            }
            Done::Ended(key) => self.endpoint.ended(key, now),
            Done::Nothing => {}
        }
    }

    /// Reads somebody's mail from now on.
    fn reads<T: Send + Sync + 'static>(
        &mut self,
        who: &Arc<T>,
        reader: Reader,
        mailbox: fn(&T) -> &Mailbox,
    ) -> AbortHandle {
        let who = Arc::clone(who);
        let mail = poll_fn(move |cx| mailbox(&who).poll_next(cx).map(|mail| Some((reader, mail))));
        let (stop, stopped) = AbortHandle::new_pair();
        self.mail.push(Abortable::new(mail.boxed(), stopped));
        stop
    }

    fn admit(&mut self, key: Key, credential: CredentialDigest, source: IpAddr) {
        let node = Arc::clone(&self.node);
        self.job(async move {
            let admitted = node.admit(credential, Protocol::Coap, source).await;
            Done::Admitted(key, admitted)
        });
    }

    fn claim(&mut self, observer: ObserverKey, key: Key) {
        let Some(visitor) = who(&self.visitors, &key) else {
            return self.endpoint.claimed(observer, false, Instant::now());
        };
        let node = Arc::clone(&self.node);
        self.job(async move { Done::Claimed(observer, node.begin_session(&visitor).await) });
    }

    fn end(&mut self, observer: ObserverKey, end: SessionEnd) {
        let Some(Read { who, stop }) = self.sessions.remove(&observer) else {
            return self.endpoint.ended(observer, Instant::now());
        };
        stop.abort();
        let node = Arc::clone(&self.node);
        self.job(async move {
            node.end_session(&who, end).await;
            Done::Ended(observer)
        });
    }

    fn send(&mut self, to: SocketAddr, datagram: Bytes) {
        if self.unsent.is_empty() {
            match self.socket.try_send_to(&datagram, to) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    self.metrics.unsent.increment(1);
                    return tracing::debug!(%error, "a CoAP datagram was not sent");
                }
                Ok(_) => return,
            }
        }
        if self.unsent.len() >= MAX_UNSENT {
            self.metrics.unsent.increment(1);
            return;
        }
        self.unsent.push_back((to, datagram));
    }

    fn send_unsent(&mut self) {
        while let Some((to, datagram)) = self.unsent.front() {
            match self.socket.try_send_to(datagram, *to) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.metrics.unsent.increment(1);
                    tracing::debug!(%error, "a CoAP datagram was not sent");
                }
                Ok(_) => {}
            }
            self.unsent.pop_front();
        }
    }

    fn job(&self, job: impl Future<Output = Done> + Send + 'static) {
        self.jobs.push(Box::pin(job));
    }
}

fn limits(node: &Node) -> EndpointLimits {
    EndpointLimits { device: node.limits.borrow().device, coap: node.settings().coap.clone() }
}

fn who<K: Eq + Hash, T>(read: &HashMap<K, Read<T>>, key: &K) -> Option<Arc<T>> {
    read.get(key).map(|it| Arc::clone(&it.who))
}
