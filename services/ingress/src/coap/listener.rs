//! How is CoAP served? One socket, and one loop that waits for whatever comes first, hands it to the endpoint, and
//! performs what the endpoint asks for. It never waits for another service: such things run beside it.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use futures::StreamExt;
use futures::future::{AbortHandle, Abortable};
use futures::stream::{BoxStream, FuturesUnordered, SelectAll, poll_fn};
use rpc::{CredentialHash, DeliveryReply, Identity, Method, Outcome, Protocol};
use tokio::net::UdpSocket;
use tokio_util::sync::CancellationToken;

use super::endpoint::{Effect, Endpoint, EndpointLimits, Identified, Key, RequestId};
use super::tally::CoapMetrics;
use crate::mailbox::Mail;
use crate::metrics::ConnectResult;
use crate::node::Node;
use crate::sessions::{CredentialDigest, NewSession, SessionHandle};

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

    /// Serves until `stop`, and then until nothing is in flight.
    pub(crate) async fn serve(self, node: Arc<Node>, limits: EndpointLimits, stop: CancellationToken) {
        // Keyed at random by the operating system.
        let seed = RandomState::new().hash_one(node.id);
        let mut endpoint_loop = Loop {
            endpoint: Endpoint::new(limits, seed),
            metrics: CoapMetrics::register(),
            socket: self.socket,
            node,
            sessions: HashMap::new(),
            mail: SelectAll::new(),
            jobs: FuturesUnordered::new(),
            unsent: VecDeque::new(),
        };
        endpoint_loop.run(stop).await;
    }
}

/// A session of the node, under the key that the endpoint knows it by.
struct Live {
    handle: Arc<SessionHandle>,
    stop_mail: AbortHandle,
}

/// What was being done for the endpoint is done.
enum Done {
    Authenticated(Key, CredentialDigest, Answer),
    Asked(RequestId, Method, Outcome, Bytes, Instant),
    Uplinked(RequestId, bool),
    Claimed(Key, bool),
    Ended(Key),
    Nothing,
}

/// Who holds a credential, and how many changes the node had heard of when it was asked.
struct Answer {
    identity: Result<Option<Identity>, bus::AskError>,
    changes: u64,
}

type Job = Pin<Box<dyn Future<Output = Done> + Send>>;

struct Loop {
    endpoint: Endpoint,
    metrics: CoapMetrics,
    socket: UdpSocket,
    node: Arc<Node>,
    sessions: HashMap<Key, Live>,
    /// What the sessions are told. A stream of its own for each: the mailboxes wake this loop alone.
    mail: SelectAll<Abortable<BoxStream<'static, (Key, Mail)>>>,
    jobs: FuturesUnordered<Job>,
    unsent: VecDeque<(SocketAddr, Bytes)>,
}

impl Loop {
    async fn run(&mut self, stop: CancellationToken) {
        let mut buffer = vec![0; MAX_DATAGRAM_BYTES];
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        let mut stopping = false;
        loop {
            self.perform();
            self.send_unsent();
            if stopping && self.endpoint.is_drained() && self.jobs.is_empty() {
                return;
            }
            if let Some(wake) = self.endpoint.next_wake()
                && (wake < timer.deadline().into_std() || timer.is_elapsed())
            {
                timer.as_mut().reset(wake.into());
            }
            let armed = !timer.is_elapsed();
            tokio::select! {
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.endpoint.drain(Instant::now());
                }
                readable = self.socket.readable() => {
                    if let Err(error) = readable.and_then(|()| self.receive(&mut buffer)) {
                        tracing::warn!(%error, "CoAP datagrams could not be received");
                        tokio::time::sleep(RECEIVE_PAUSE).await;
                    }
                }
                _ = self.socket.writable(), if !self.unsent.is_empty() => {}
                Some(done) = self.jobs.next(), if !self.jobs.is_empty() => self.done(done),
                Some((key, mail)) = self.mail.next(), if !self.mail.is_empty() => {
                    self.endpoint.mail(key, mail, Instant::now());
                }
                () = timer.as_mut(), if armed => self.endpoint.tick(Instant::now()),
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

    /// Performs what the endpoint asks for.
    fn perform(&mut self) {
        while let Some(effect) = self.endpoint.next_effect() {
            match effect {
                Effect::Send(to, datagram) => self.send(to, datagram),
                Effect::Authenticate(key, credential) => self.authenticate(key, credential),
                Effect::Ask(request, key, asked) => {
                    let Some(handle) = self.handle(key) else { continue };
                    let (node, started, method) = (Arc::clone(&self.node), Instant::now(), asked.method());
                    self.job(async move {
                        let (outcome, body) = node.calls.perform(&handle, asked, None).await;
                        Done::Asked(request, method, outcome, body, started)
                    });
                }
                Effect::Uplink(request, key, kind, payload) => {
                    let Some(handle) = self.handle(key) else { continue };
                    let node = Arc::clone(&self.node);
                    self.job(
                        async move { Done::Uplinked(request, node.uplink(&handle, kind, payload).await) },
                    );
                }
                Effect::Claim { observer, device } => self.claim(observer, device),
                Effect::Release(key) => {
                    let Some(handle) = self.handle(key) else { continue };
                    let node = Arc::clone(&self.node);
                    self.job(async move {
                        node.release(&handle).await;
                        Done::Nothing
                    });
                }
                Effect::End(key) => self.end(key),
                Effect::Reply(reply) => {
                    self.node.metrics.delivery_ended(reply.arrived.elapsed());
                    let node = Arc::clone(&self.node);
                    self.job(async move {
                        node.reply(reply.to, reply.span, &reply.reply, &reply.body).await;
                        Done::Nothing
                    });
                }
                Effect::Refused(method, outcome) => {
                    self.node.metrics.call_ended(method, &outcome, Duration::ZERO);
                }
                Effect::LimitHit(limit) => self.node.metrics.limit_hit(limit),
            }
        }
        let tally = self.endpoint.take_tally();
        for _ in 0..tally.dropped_transfers {
            self.node.metrics.limit_hit(rpc::Limit::BlockTransfers);
        }
        self.metrics.add(&tally);
    }

    fn done(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Authenticated(key, credential, answer) => self.identified(key, credential, answer, now),
            Done::Asked(request, method, outcome, body, started) => {
                self.node.metrics.call_ended(method, &outcome, started.elapsed());
                self.endpoint.answered(request, method, &outcome, body, now);
            }
            Done::Uplinked(request, taken) => self.endpoint.uplinked(request, taken, now),
            Done::Claimed(key, stands) => self.endpoint.claimed(key, stands, now),
            Done::Ended(key) => self.endpoint.ended(key, now),
            Done::Nothing => {}
        }
    }

    fn authenticate(&mut self, key: Key, credential: CredentialDigest) {
        let node = Arc::clone(&self.node);
        self.job(async move {
            let wait = Duration::from_millis(node.settings.ingress.authenticate_timeout_ms);
            let changes = node.changes();
            let identity = node.calls.authenticate(CredentialHash::from_digest(credential), wait).await;
            Done::Authenticated(key, credential, Answer { identity, changes })
        });
    }

    fn identified(&mut self, key: Key, credential: CredentialDigest, answer: Answer, now: Instant) {
        let (identified, result) = match answer.identity {
            // A change between the question and this found no session to end: ask again.
            Ok(Some(_)) if answer.changes != self.node.changes() => {
                return self.authenticate(key, credential);
            }
            Ok(Some(identity)) => {
                let new = NewSession {
                    device: identity.device,
                    tenant: identity.tenant,
                    customer: identity.customer,
                    credential,
                    protocol: Protocol::Coap,
                };
                let caller = Arc::clone(&self.begin(key, new).caller);
                (Identified::Device(caller), ConnectResult::Accepted)
            }
            Ok(None) => (Identified::Nobody, ConnectResult::UnknownToken),
            Err(error) => {
                tracing::warn!(%error, "a device could not be authenticated");
                (Identified::Unavailable, ConnectResult::Unavailable)
            }
        };
        self.node.metrics.connect(result);
        self.endpoint.authenticated(key, identified, now);
    }

    fn claim(&mut self, observer: Key, device: Key) {
        let Some(of) = self.handle(device) else {
            return self.endpoint.claimed(observer, false, Instant::now());
        };
        let new = NewSession {
            device: of.device,
            tenant: of.tenant,
            customer: of.customer,
            credential: of.credential,
            protocol: Protocol::Coap,
        };
        let (node, handle) = (Arc::clone(&self.node), self.begin(observer, new));
        self.job(async move { Done::Claimed(observer, node.claim(&handle).await) });
    }

    /// Begins a session of the node.
    fn begin(&mut self, key: Key, new: NewSession) -> Arc<SessionHandle> {
        let handle = self.node.sessions.add(new, Instant::now());
        self.node.metrics.sessions(Protocol::Coap).increment(1);
        let reads = Arc::clone(&handle);
        let mail = poll_fn(move |cx| reads.mailbox.poll_next(cx).map(|mail| Some((key, mail))));
        let (stop_mail, stopped) = AbortHandle::new_pair();
        self.mail.push(Abortable::new(mail.boxed(), stopped));
        self.sessions.insert(key, Live { handle: Arc::clone(&handle), stop_mail });
        let (node, announced) = (Arc::clone(&self.node), Arc::clone(&handle));
        self.job(async move {
            node.announce(&announced, "up").await;
            Done::Nothing
        });
        handle
    }

    /// Ends a session of the node.
    fn end(&mut self, key: Key) {
        let Some(Live { handle, stop_mail }) = self.sessions.remove(&key) else {
            return self.endpoint.ended(key, Instant::now());
        };
        tracing::debug!(device = %handle.device, session = %handle.id, "a session ends");
        stop_mail.abort();
        self.node.metrics.sessions(Protocol::Coap).decrement(1);
        let node = Arc::clone(&self.node);
        self.job(async move {
            node.release(&handle).await;
            for call in handle.mailbox.close() {
                node.reply(call.reply_to, call.span, &DeliveryReply::NotHere, b"").await;
            }
            node.sessions.remove(&handle);
            node.announce(&handle, "down").await;
            Done::Ended(key)
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

    fn handle(&self, key: Key) -> Option<Arc<SessionHandle>> {
        self.sessions.get(&key).map(|it| Arc::clone(&it.handle))
    }

    fn job(&self, job: impl Future<Output = Done> + Send + 'static) {
        self.jobs.push(Box::pin(job));
    }
}
