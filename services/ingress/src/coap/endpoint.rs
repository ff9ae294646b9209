//! What does the CoAP endpoint do with what happens to it? A pure machine for all devices that speak CoAP with this
//! node: datagrams, calls, answers and time go in; [`Effect`]s for the loop come out.
//!
//! A device is kept in mind from its first request on (its token checked once, its limits counted), and is callable
//! while it observes. Both are sessions of the node, under keys that this machine gives out.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boot::config::Coap;
use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use rpc::{DeliveryReply, Limit, Method, Outcome, SessionEnd, UplinkKind};

use super::blocks::{TransferKey, Transfers, Upload, part};
use super::codec::{self, Block, Code, Kind, Message, Reading, Response, Token, read};
use super::messages::{Due, Messages, Random, Seen, Transmission};
use super::observer::{NotUnderWay, Observer, Settled};
use super::reply;
use super::request::{self, Asked, Target};
use super::tally::Tally;
use crate::device::admit::digest;
use crate::device::caller::{CallerLimits, RefusedUplink};
use crate::device::limits::DeviceLimits;
use crate::device::mailbox::{EndReason, Incoming, Mail, Router};
use crate::device::sessions::CredentialDigest;
use crate::device::target::{AnswerTaken, Conclusion};
use crate::device_api::{self, Request};

/// The settings that the endpoint obeys.
#[derive(Debug, Clone)]
pub struct EndpointLimits {
    /// Those of every device.
    pub device: DeviceLimits,
    /// CoAP's own.
    pub coap: Coap,
}

/// A session of this endpoint: a device kept in mind, or an observation of one.
pub type Key = u64;

/// A request until it is answered.
pub type RequestId = u64;

/// What the loop is to do.
#[derive(Debug)]
pub enum Effect {
    /// Send this datagram.
    Send(SocketAddr, Bytes),
    /// Find out whose token that is; then [`Endpoint::authenticated`].
    Authenticate(Key, CredentialDigest),
    /// Perform this request of the device; then [`Endpoint::answered`].
    Ask(RequestId, Key, Request),
    /// Hand this up for the device; then [`Endpoint::uplinked`].
    Uplink(RequestId, Key, UplinkKind, Bytes),
    /// Begin a session `observer` of the device's own and make it callable; then [`Endpoint::claimed`].
    Claim {
        /// The new session.
        observer: Key,
        /// Whose.
        device: Key,
    },
    /// The session is no longer to be callable; it goes on.
    Release(Key),
    /// The session is over, for this reason; once its claim is gone, [`Endpoint::ended`].
    End(Key, SessionEnd),
    /// A call to a device is over: tell its router.
    Conclude(Conclusion<Router>),
    /// A request was refused here and has been answered: to be counted.
    Refused(Method, Outcome),
    /// A limit was hit: to be counted.
    LimitHit(Limit),
}

/// Whose token it is.
#[derive(Debug)]
pub enum Identified {
    /// A device's; these are its limits as a caller, shared by all its sessions on this node.
    Device(Arc<Mutex<CallerLimits>>),
    /// Nobody's.
    Nobody,
    /// The authorizer or NATS could not be reached.
    Unavailable,
}

/// What a confirmable message was sent for.
#[derive(Debug, Clone, Copy)]
enum Owner {
    /// A notification or ping of this observer.
    Observer(Key),
    /// A separate response to this device.
    Device(Key),
    /// The last notification of an observation that has ended.
    Nobody,
}

/// Where a request came from, and what its response must match.
#[derive(Debug, Clone)]
struct Origin {
    source: SocketAddr,
    id: u16,
    token: Token,
    confirmable: bool,
    /// An empty acknowledgement has been sent: the response comes on its own.
    acknowledged: bool,
    /// Remembered as this request.
    request: Option<RequestId>,
    method: Code,
    target: Target,
    block1: Option<Block>,
    block2: Option<Block>,
    datagram_bytes: usize,
}

/// What a request waits for.
#[derive(Debug)]
enum Doing {
    /// To hear who sent it.
    Checking(Message),
    /// The outcome of an admitted call.
    Calling,
    /// NATS to take telemetry or attributes.
    HandingUp,
    /// A claim to stand or to be gone.
    Claiming,
}

#[derive(Debug)]
struct Pending {
    origin: Origin,
    device: Key,
    doing: Doing,
}

/// A device that is kept in mind.
#[derive(Debug)]
struct Device {
    credential: CredentialDigest,
    standing: Standing,
    /// The newest last.
    observers: Vec<Key>,
    /// Requests, separate responses and observations that hold it.
    holds: usize,
    used_at: Instant,
    idle_timer: bool,
}

#[derive(Debug)]
enum Standing {
    /// These requests wait to hear who it is.
    Checking(Vec<RequestId>),
    Known(Arc<Mutex<CallerLimits>>),
}

/// What to look at when its time has come; whether there is anything to do is seen then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// A confirmable request that must be acknowledged.
    Acknowledge(RequestId),
    /// Calls of this observer that run out of time.
    Calls(Key),
    /// The device has not fetched all blocks of the notification with this id.
    Fetch(Key, u16),
    /// An observer that has not been heard of for long.
    Check(Key),
    /// A device that may have been idle for long.
    Idle(Key),
}

/// Bytes of requests that may wait for the authorizer, all together.
const MAX_UNAUTHENTICATED_BYTES: usize = 16 * 1024 * 1024;

/// Block size of what is too long for one datagram: 1024 bytes fit into IPv6's smallest MTU.
const LARGEST_BLOCK: Block = Block { number: 0, more: false, exponent: Block::MAX_EXPONENT };

/// The endpoint.
#[derive(Debug)]
pub struct Endpoint {
    limits: EndpointLimits,
    messages: Messages<Owner>,
    transfers: Transfers,
    credentials: HashMap<CredentialDigest, Key>,
    devices: HashMap<Key, Device>,
    requests: HashMap<RequestId, Pending>,
    observers: HashMap<Key, Observer>,
    registrations: HashMap<(SocketAddr, Token), Key>,
    /// Sessions whose claims are being released, and the requests that are answered then.
    ending: HashMap<Key, Vec<RequestId>>,
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,
    effects: VecDeque<Effect>,
    tally: Tally,
    random: Random,
    last_key: Key,
    last_request: RequestId,
    unauthenticated: usize,
    unauthenticated_bytes: usize,
    draining: bool,
}

impl Endpoint {
    /// An endpoint that nobody has spoken to. `seed` must not be guessable.
    pub fn new(limits: EndpointLimits, seed: u64) -> Self {
        let coap = &limits.coap;
        let ms = Duration::from_millis;
        let transmission = Transmission {
            ack_timeout: ms(coap.ack_timeout_ms),
            max_retransmit: coap.max_retransmit,
            exchange_lifetime: ms(coap.exchange_lifetime_ms),
            max_exchanges: coap.max_exchanges,
        };
        let mut random = Random(seed);
        Endpoint {
            messages: Messages::new(transmission, random.number()),
            transfers: Transfers::new(
                coap.max_block_transfers,
                coap.max_body_bytes,
                ms(coap.block_timeout_ms),
            ),
            credentials: HashMap::new(),
            devices: HashMap::new(),
            requests: HashMap::new(),
            observers: HashMap::new(),
            registrations: HashMap::new(),
            ending: HashMap::new(),
            timers: BinaryHeap::new(),
            effects: VecDeque::new(),
            tally: Tally::default(),
            random,
            last_key: 0,
            last_request: 0,
            unauthenticated: 0,
            unauthenticated_bytes: 0,
            draining: false,
            limits,
        }
    }

    /// What is to be done, in order.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// What has been counted since the last question.
    pub fn take_tally(&mut self) -> Tally {
        self.tally.dropped_transfers += self.transfers.take_dropped();
        let mut tally = std::mem::take(&mut self.tally);
        (tally.exchanges, tally.unacknowledged) = self.messages.held();
        tally.transfers = self.transfers.held();
        tally.observers = self.observers.len();
        tally
    }

    /// A datagram has come.
    pub fn received(&mut self, source: SocketAddr, datagram: &Bytes, now: Instant) {
        let message = match read(datagram) {
            Reading::Message(message) => message,
            Reading::Foreign => return self.tally.foreign += 1,
            Reading::Malformed(kind, id) => {
                self.tally.malformed += 1;
                if kind == Kind::Confirmable {
                    self.send(source, codec::empty(Kind::Reset, id));
                }
                return;
            }
        };
        self.tally.count_received(message.kind);
        match message.kind {
            Kind::Acknowledgement | Kind::Reset => {
                if let Some((owner, resent)) = self.messages.settled(source, message.id) {
                    self.settled(owner, message.id, message.kind, resent, now);
                }
            }
            Kind::Confirmable | Kind::NonConfirmable if message.code.is_request() => {
                self.request(source, message, datagram.len(), now);
            }
            // A ping (§4.3), or a response to what was never asked.
            Kind::Confirmable => self.send(source, codec::empty(Kind::Reset, message.id)),
            Kind::NonConfirmable => {}
        }
    }

    fn request(&mut self, source: SocketAddr, message: Message, datagram_bytes: usize, now: Instant) {
        let confirmable = message.kind == Kind::Confirmable;
        match self.messages.seen(source, message.id) {
            Some(Seen::InProgress(request)) => {
                self.tally.duplicates += 1;
                let request = *request;
                return self.acknowledge(request);
            }
            Some(Seen::Answered(datagram)) => {
                self.tally.duplicates += 1;
                let datagram = datagram.clone();
                if !datagram.is_empty() {
                    self.send(source, datagram);
                }
                return;
            }
            None => {}
        }
        let mut origin = Origin {
            source,
            id: message.id,
            token: message.token,
            confirmable,
            acknowledged: false,
            request: None,
            method: message.code,
            target: Target::Discovery,
            block1: None,
            block2: None,
            datagram_bytes,
        };
        let asked = match request::parse(&message) {
            Ok(asked) => asked,
            // §5.4.1: in a non-confirmable request, an unknown critical option is passed over in silence.
            Err(Code::BAD_OPTION) if !confirmable => return,
            Err(code) => return self.respond(&origin, None, Response::new(code), now),
        };
        (origin.target, origin.block1, origin.block2) = (asked.target, asked.block1, asked.block2);
        if asked.target == Target::Discovery {
            let wanted = asked.block2.unwrap_or(LARGEST_BLOCK);
            let discovery = reply::discovery();
            let fits = discovery.payload.len() <= wanted.bytes() && wanted.number == 0;
            let response = if fits { Some(discovery) } else { part(&discovery, wanted) };
            return self.respond(&origin, None, response.unwrap_or(Response::new(Code::BAD_REQUEST)), now);
        }
        if asked.method == Code::GET
            && asked.observe.is_none_or(|it| it > 1)
            && asked.block2.is_none_or(|it| it.number == 0)
        {
            let why = reply::refused(Code::BAD_REQUEST, "Calls are observed: this request needs Observe 0!");
            return self.respond(&origin, None, why, now);
        }
        let credential = digest(asked.access_token);
        match self.credentials.get(&credential).and_then(|key| Some((*key, self.devices.get(key)?))) {
            Some((device, Device { standing: Standing::Known(_), .. })) => {
                self.proceed(origin, device, &asked, &message.payload, now);
            }
            Some((device, Device { standing: Standing::Checking(_), .. })) => {
                self.check(origin, device, message, now);
            }
            None if asked.access_token.is_empty() => {
                self.respond(&origin, None, reply::unknown_token(), now);
            }
            None if self.devices.len() >= self.limits.coap.max_sessions => {
                self.effects.push_back(Effect::LimitHit(Limit::Sessions));
                self.respond(&origin, None, reply::full(), now);
            }
            None => {
                self.last_key += 1;
                let device = self.last_key;
                let it = Device {
                    credential,
                    standing: Standing::Checking(Vec::new()),
                    observers: Vec::new(),
                    holds: 0,
                    used_at: now,
                    idle_timer: false,
                };
                self.devices.insert(device, it);
                self.credentials.insert(credential, device);
                if self.check(origin, device, message, now) {
                    self.effects.push_back(Effect::Authenticate(device, credential));
                } else {
                    self.devices.remove(&device);
                    self.credentials.remove(&credential);
                }
            }
        }
    }

    /// Lets a request wait to hear who sent it. False when too many wait already: it is dropped, and its client sends
    /// it again.
    fn check(&mut self, origin: Origin, device: Key, message: Message, now: Instant) -> bool {
        let bytes = origin.datagram_bytes;
        if self.unauthenticated >= self.limits.coap.max_unauthenticated
            || self.unauthenticated_bytes + bytes > MAX_UNAUTHENTICATED_BYTES
        {
            self.effects.push_back(Effect::LimitHit(Limit::Unauthenticated));
            return false;
        }
        let Some(request) = self.begin(origin, device, Doing::Checking(message), now) else { return false };
        self.unauthenticated += 1;
        self.unauthenticated_bytes += bytes;
        if let Some(Device { standing: Standing::Checking(waiting), .. }) = self.devices.get_mut(&device) {
            waiting.push(request);
        }
        true
    }

    /// The answer to an [`Effect::Authenticate`].
    pub fn authenticated(&mut self, device: Key, identified: Identified, now: Instant) {
        let Some(it) = self.devices.get_mut(&device) else { return };
        let Standing::Checking(waiting) = &mut it.standing else { return };
        let waiting = std::mem::take(waiting);
        let refusal = match identified {
            Identified::Device(caller) => {
                it.standing = Standing::Known(caller);
                None
            }
            Identified::Nobody => Some(reply::unknown_token()),
            Identified::Unavailable => Some(reply::unavailable()),
        };
        if refusal.is_some() {
            let credential = it.credential;
            self.devices.remove(&device);
            self.credentials.remove(&credential);
        }
        for request in waiting {
            let Some(Pending { origin, doing: Doing::Checking(message), .. }) =
                self.requests.remove(&request)
            else {
                continue;
            };
            self.unauthenticated -= 1;
            self.unauthenticated_bytes -= origin.datagram_bytes;
            match (&refusal, request::parse(&message)) {
                (None, Ok(asked)) => self.proceed(origin, device, &asked, &message.payload, now),
                (None, Err(code)) => self.respond(&origin, None, Response::new(code), now),
                (Some(refusal), _) => self.respond(&origin, None, refusal.clone(), now),
            }
            self.let_go(device, now);
        }
    }

    /// Performs a request of a known device.
    fn proceed(&mut self, origin: Origin, device: Key, asked: &Asked<'_>, payload: &Bytes, now: Instant) {
        if let Some(it) = self.devices.get_mut(&device) {
            it.used_at = now;
        }
        self.schedule_idle(device, now);
        let key = TransferKey {
            device,
            source: origin.source,
            method: asked.method,
            target: asked.target,
            tag: None,
            upload: false,
        };
        if let Some(wanted) = asked.block2.filter(|it| it.number > 0) {
            // More of an earlier response: nothing is performed again.
            return self.fetch(&origin, key, wanted, now);
        }
        let ends_something = matches!(asked.target, Target::Answer(_))
            || asked.method == Code::GET && asked.observe == Some(1);
        if self.draining && !ends_something {
            return self.respond(&origin, Some(device), reply::shutting_down(), now);
        }
        if asked.method == Code::GET {
            return match asked.observe {
                Some(0) => self.observe(origin, device, now),
                _ => self.forget_observation(origin, device, now),
            };
        }
        let body = match asked.block1 {
            None if payload.len() > self.limits.coap.max_body_bytes => Upload::TooLarge,
            None => Upload::Whole(payload.clone()),
            Some(block) => {
                let key = TransferKey { upload: true, tag: asked.request_tag, ..key };
                self.transfers.upload(key, block, payload, asked.size1, now)
            }
        };
        let body = match body {
            Upload::Whole(body) => body,
            Upload::Continue => {
                let response = Response { block1: asked.block1, ..Response::new(Code::CONTINUE) };
                return self.respond(&origin, Some(device), response, now);
            }
            Upload::Incomplete => {
                return self.respond(&origin, Some(device), Response::new(Code::INCOMPLETE), now);
            }
            Upload::TooLarge => {
                self.effects.push_back(Effect::LimitHit(Limit::PacketBytes));
                let size1 = u32::try_from(self.limits.coap.max_body_bytes).ok();
                let response = Response { size1, ..Response::new(Code::TOO_LARGE) };
                return self.respond(&origin, Some(device), response, now);
            }
            Upload::Malformed => {
                return self.respond(&origin, Some(device), Response::new(Code::BAD_REQUEST), now);
            }
        };
        match (asked.target, asked.target.uplink()) {
            (_, Some(kind)) => self.hand_up(origin, device, kind, body, now),
            (Target::Answer(number), _) => self.answer(origin, device, number, body, now),
            (_, None) => self.call(origin, device, &body, now),
        }
    }

    fn call(&mut self, origin: Origin, device: Key, body: &Bytes, now: Instant) {
        let limits = self.limits.device;
        let admitted = self.caller(device).map(|mut caller| caller.request(body, &limits, now));
        let Some(admitted) = admitted else { return };
        let request = match admitted {
            Ok(request) => request,
            Err(refused) => {
                self.respond(&origin, Some(device), reply::refused_request(&refused), now);
                if let Outcome::Busy(limit) = refused.outcome {
                    self.effects.push_back(Effect::LimitHit(limit));
                }
                return self.effects.push_back(Effect::Refused(refused.method, refused.outcome));
            }
        };
        match self.begin(origin, device, Doing::Calling, now) {
            Some(id) => self.effects.push_back(Effect::Ask(id, device, request)),
            None => {
                if let Some(mut caller) = self.caller(device) {
                    caller.ended();
                }
            }
        }
    }

    /// The outcome of an [`Effect::Ask`].
    pub fn answered(
        &mut self,
        request: RequestId,
        method: Method,
        outcome: &Outcome,
        body: Bytes,
        now: Instant,
    ) {
        self.finish(request, reply::ended(method, outcome, body), now);
    }

    fn hand_up(&mut self, origin: Origin, device: Key, kind: UplinkKind, body: Bytes, now: Instant) {
        let limits = self.limits.device;
        let admitted = self.caller(device).map(|mut caller| caller.uplink(&body, &limits, now));
        let refused = match admitted {
            Some(Ok(())) => None,
            Some(Err(RefusedUplink::NotJson)) => {
                Some(reply::refused(Code::BAD_REQUEST, "The body must be JSON in UTF-8!"))
            }
            Some(Err(RefusedUplink::TooOften(limit))) => {
                self.effects.push_back(Effect::LimitHit(limit));
                Some(reply::too_often())
            }
            None => return,
        };
        if let Some(refused) = refused {
            return self.respond(&origin, Some(device), refused, now);
        }
        if let Some(id) = self.begin(origin, device, Doing::HandingUp, now) {
            self.effects.push_back(Effect::Uplink(id, device, kind, body));
        }
    }

    /// Whether NATS took what an [`Effect::Uplink`] handed up.
    pub fn uplinked(&mut self, request: RequestId, taken: bool, now: Instant) {
        let response = if taken { Response::new(Code::CHANGED) } else { reply::unavailable() };
        self.finish(request, response, now);
    }

    fn observe(&mut self, origin: Origin, device: Key, now: Instant) {
        let registration = (origin.source, origin.token);
        if let Some(&key) = self.registrations.get(&registration)
            && let Some(observer) = self.observers.get_mut(&key)
        {
            if observer.device == device {
                // RFC 7641 §4.1: the same again refreshes it.
                observer.heard_at = now;
                if observer.live {
                    let response =
                        Response { observe: Some(observer.next_sequence()), ..Response::new(Code::CONTENT) };
                    return self.respond(&origin, Some(device), response, now);
                }
                if let Some(id) = self.begin(origin, device, Doing::Claiming, now)
                    && let Some(observer) = self.observers.get_mut(&key)
                {
                    observer.waiters.push(id);
                }
                return;
            }
            self.end_observer(key, None, now);
        }
        if self.observers.len() >= self.limits.coap.max_observers {
            self.effects.push_back(Effect::LimitHit(Limit::Observers));
            return self.respond(&origin, Some(device), reply::full(), now);
        }
        // A claim costs as much as a call: it counts as one.
        let limits = self.limits.device;
        let Some(admitted) = self.caller(device).map(|mut caller| {
            let admitted = caller.admit(&limits, now);
            if admitted.is_ok() {
                caller.ended();
            }
            admitted
        }) else {
            return;
        };
        if let Err(limit) = admitted {
            self.effects.push_back(Effect::LimitHit(limit));
            return self.respond(&origin, Some(device), reply::too_often(), now);
        }
        let block = origin.block2.unwrap_or(LARGEST_BLOCK);
        let Some(id) = self.begin(origin, device, Doing::Claiming, now) else { return };
        self.last_key += 1;
        let key = self.last_key;
        let first_number = (self.random.number() >> 33) as u32;
        let target = self.limits.device.target;
        let mut observer = Observer::new(device, registration, block.exponent, target, first_number, now);
        observer.waiters.push(id);
        self.observers.insert(key, observer);
        self.registrations.insert(registration, key);
        if let Some(it) = self.devices.get_mut(&device) {
            it.observers.push(key);
            it.holds += 1;
        }
        self.effects.push_back(Effect::Claim { observer: key, device });
    }

    /// Whether the claim of an [`Effect::Claim`] stands. Only then does the device hear that it observes: from that
    /// moment a call from anywhere in the cluster reaches it.
    pub fn claimed(&mut self, key: Key, stands: bool, now: Instant) {
        let Some(observer) = self.observers.get_mut(&key) else { return };
        let waiters = std::mem::take(&mut observer.waiters);
        observer.live = true;
        let over = observer.over.take();
        if let Some(goodbye) = over {
            self.end_observer(key, goodbye, now);
        } else if !stands {
            self.end_observer(key, None, now);
        }
        for request in waiters {
            let response = match self.observers.get_mut(&key) {
                Some(observer) => {
                    Response { observe: Some(observer.next_sequence()), ..Response::new(Code::CONTENT) }
                }
                None => reply::unavailable(),
            };
            self.finish(request, response, now);
        }
        if self.observers.contains_key(&key) {
            if self.draining {
                self.effects.push_back(Effect::Release(key));
            }
            self.schedule_check(key, now);
            self.advance(key, now);
        }
    }

    fn forget_observation(&mut self, origin: Origin, device: Key, now: Instant) {
        let key = self.registrations.get(&(origin.source, origin.token)).copied();
        let of_device = key.filter(|key| self.observers.get(key).is_some_and(|it| it.device == device));
        let Some(key) = of_device else {
            return self.respond(&origin, Some(device), Response::new(Code::CONTENT), now);
        };
        let Some(id) = self.begin(origin, device, Doing::Claiming, now) else { return };
        self.end_observer(key, None, now);
        self.ending.entry(key).or_default().push(id);
    }

    /// The claim of an [`Effect::End`] is gone.
    pub fn ended(&mut self, key: Key, now: Instant) {
        for request in self.ending.remove(&key).unwrap_or_default() {
            self.finish(request, Response::new(Code::CONTENT), now);
        }
    }

    /// A session is told something.
    pub fn mail(&mut self, key: Key, mail: Mail, now: Instant) {
        match mail {
            Mail::Deliver(call) => self.deliver(key, call, now),
            Mail::End(reason) => self.end_by_node(key, reason, now),
            Mail::Drain => self.drain(now),
        }
    }

    fn deliver(&mut self, key: Key, call: Box<Incoming>, now: Instant) {
        let Some(observer) = self.observers.get_mut(&key) else {
            let (reply_to, reply) = (call.reply_to, Some(DeliveryReply::NotHere));
            return self.effects.push_back(Effect::Conclude(Conclusion {
                reply_to,
                reply,
                body: Bytes::new(),
            }));
        };
        observer.target.deliver(call, now);
        self.advance(key, now);
    }

    /// Hands on how calls to this observer ended.
    fn conclude_calls(&mut self, key: Key) {
        let Some(observer) = self.observers.get_mut(&key) else { return };
        while let Some(conclusion) = observer.target.next_conclusion() {
            self.effects.push_back(Effect::Conclude(conclusion));
        }
    }

    /// Sends the next call that waits, if none is under way.
    fn advance(&mut self, key: Key, now: Instant) {
        if let Some(observer) = self.observers.get_mut(&key)
            && observer.live
            && !observer.is_notifying()
        {
            let next = observer.target.next(now).map(|(number, call)| (number, call.body.clone()));
            match next {
                Some((number, body)) => self.notify(key, number, &body, now),
                None => {
                    self.conclude_calls(key);
                    self.close_when_drained(key, now);
                }
            }
        }
        self.conclude_calls(key);
    }

    fn notify(&mut self, key: Key, number: u32, body: &Bytes, now: Instant) {
        let Some(observer) = self.observers.get_mut(&key) else { return };
        let text = device_api::on_msg_numbered(number, body);
        let mut whole = Response::json(Code::CONTENT, text);
        let block = Block { exponent: observer.exponent, ..LARGEST_BLOCK };
        let (source, token) = observer.registration;
        let observe = Some(observer.next_sequence());
        let in_blocks = whole.payload.len() > block.bytes();
        if in_blocks {
            // RFC 7959 §2.6, §3.4: the notification is the first block; the device fetches the others by GET.
            whole.etag = Some(self.random.number() as u32);
            let key = TransferKey {
                device: observer.device,
                source,
                method: Code::GET,
                target: Target::Rpc,
                tag: None,
                upload: false,
            };
            self.transfers.offer(key, whole.clone(), now);
            whole = part(&whole, block).unwrap_or(whole);
        }
        let notification = Response { observe, ..whole };
        let write = |id| notification.write(Kind::Confirmable, id, token);
        let replaced = match observer.ping() {
            Some(ping) => self.messages.replace(source, ping, write),
            None => None,
        };
        let (id, datagram) = match replaced {
            Some(sent) => sent,
            None => self.messages.send(Owner::Observer(key), source, write, now),
        };
        observer.notifies(id, number, in_blocks.then_some(notification.etag).flatten());
        self.tally.notifications += 1;
        self.send(source, datagram);
        self.schedule_calls(key);
    }

    /// A confirmable message has been acknowledged or rejected.
    fn settled(&mut self, owner: Owner, id: u16, kind: Kind, resent: u16, now: Instant) {
        let key = match owner {
            Owner::Observer(key) => key,
            Owner::Device(device) => return self.let_go(device, now),
            Owner::Nobody => return,
        };
        let Some(observer) = self.observers.get_mut(&key) else { return };
        observer.heard_at = now;
        match observer.settled(id, kind == Kind::Reset) {
            Settled::Nothing => {}
            Settled::Taken(number) => self.taken(key, number),
            Settled::InBlocks => {
                let until = now + Duration::from_millis(self.limits.coap.block_timeout_ms);
                self.timers.push(Reverse((until, Timer::Fetch(key, id))));
            }
            Settled::Rejected(number) => {
                self.tally.rejected += 1;
                if resent == 0 {
                    // Sent once and rejected: the device has not seen it. Sent more than once, it may have taken the
                    // first one and know no more of the observation now.
                    observer.target.rejected(number);
                }
                return self.end_observer(key, None, now);
            }
        }
        self.advance(key, now);
    }

    /// The device has the whole of a call.
    fn taken(&mut self, key: Key, number: u32) {
        if let Some(observer) = self.observers.get_mut(&key) {
            observer.target.written(number);
        }
    }

    /// One more block of a response or notification.
    fn fetch(&mut self, origin: &Origin, key: TransferKey, wanted: Block, now: Instant) {
        let Some(response) = self.transfers.block(key, wanted, now) else {
            let why = reply::refused(Code::BAD_REQUEST, "There is no such block!");
            return self.respond(origin, Some(key.device), why, now);
        };
        let last = !response.block2.is_some_and(|block| block.more);
        let etag = response.etag;
        self.respond(origin, Some(key.device), response, now);
        if last && key.method == Code::GET {
            let observers = self.devices.get(&key.device).map(|it| it.observers.clone()).unwrap_or_default();
            for observer in observers {
                let Some(it) = self.observers.get_mut(&observer) else { continue };
                if let Some((number, unacknowledged)) = it.fetched(etag) {
                    if let Some(id) = unacknowledged {
                        let source = it.registration.0;
                        self.messages.settled(source, id);
                    }
                    self.taken(observer, number);
                    self.advance(observer, now);
                }
            }
        }
    }

    fn answer(&mut self, mut origin: Origin, device: Key, number: u32, body: Bytes, now: Instant) {
        let observers = self.devices.get(&device).map(|it| it.observers.as_slice()).unwrap_or_default();
        let is_open = |key: &&Key| {
            self.observers.get(*key).is_some_and(|it| it.over.is_none() && it.target.awaits_answer(number))
        };
        let Some(key) = observers.iter().find(is_open).copied() else {
            let why = reply::refused(Code::NOT_FOUND, "No such call is open!");
            return self.respond(&origin, Some(device), why, now);
        };
        let body = if self.limits.coap.coap_unwrap_response { unwrapped(body) } else { body };
        if !device_api::answer_is_json(&body) {
            let why =
                reply::refused(Code::BAD_REQUEST, "An answer must be JSON in UTF-8; the call is still open!");
            return self.respond(&origin, Some(device), why, now);
        }
        if origin.request.is_none() {
            // Answered again, the call would be gone: the retransmission must find this answer.
            self.last_request += 1;
            if !self.messages.begin(origin.source, origin.id, self.last_request) {
                self.effects.push_back(Effect::LimitHit(Limit::Exchanges));
                return self.respond(&origin, Some(device), reply::full(), now);
            }
            origin.request = Some(self.last_request);
        }
        if let Some(observer) = self.observers.get_mut(&key) {
            observer.heard_at = now;
            let taken = observer.target.answer(number, &body, true, now);
            debug_assert_eq!(taken, AnswerTaken::Yes, "it was looked at just now");
            // Whoever answers has the call, whatever became of the acknowledgement.
            if let Some(id) = observer.no_longer_notifies(number) {
                self.messages.settled(observer.registration.0, id);
            }
        }
        self.conclude(&origin, Some(device), Response::new(Code::CHANGED), now);
        self.advance(key, now);
    }

    fn end_by_node(&mut self, key: Key, reason: EndReason, now: Instant) {
        if self.observers.contains_key(&key) {
            return self.end_observer(key, Some(reason), now);
        }
        let Some(device) = self.devices.get(&key) else { return };
        for observer in device.observers.clone() {
            self.end_observer(observer, Some(reason), now);
        }
        let of_device = |(id, it): (&RequestId, &Pending)| (it.device == key).then_some(*id);
        let mut broken_off: Vec<RequestId> = self.requests.iter().filter_map(of_device).collect();
        broken_off.sort_unstable();
        for request in broken_off {
            self.finish(request, reply::goodbye(reason), now);
        }
        self.forget_device(key);
    }

    /// Ends an observation: what was open is answered. `Lost` where the device may have seen the call, `NotHere` where
    /// it was never sent. With a reason, the device is told.
    fn end_observer(&mut self, key: Key, reason: Option<EndReason>, now: Instant) {
        let Some(observer) = self.observers.get_mut(&key) else { return };
        if !observer.live {
            // Its claim is being written, and must be released after that.
            observer.over = Some(reason);
            observer.target.falls_silent();
            return self.conclude_calls(key);
        }
        let Some(mut observer) = self.observers.remove(&key) else { return };
        let (source, token) = observer.registration;
        if self.registrations.get(&observer.registration) == Some(&key) {
            self.registrations.remove(&observer.registration);
        }
        if let Some(id) = observer.unacknowledged() {
            self.messages.settled(source, id);
        }
        observer.target.end();
        while let Some(conclusion) = observer.target.next_conclusion() {
            self.effects.push_back(Effect::Conclude(conclusion));
        }
        self.ending.entry(key).or_default();
        self.effects.push_back(Effect::End(key, reason.map_or(SessionEnd::ByDevice, SessionEnd::from)));
        if let Some(reason) = reason {
            let goodbye = reply::goodbye(reason);
            let datagram = if reason == EndReason::ShuttingDown {
                // Nobody will be here to hear of an acknowledgement.
                goodbye.write(Kind::NonConfirmable, self.messages.next_id(source), token)
            } else {
                let write = |id| goodbye.write(Kind::Confirmable, id, token);
                self.messages.send(Owner::Nobody, source, write, now).1
            };
            self.send(source, datagram);
        }
        if let Some(it) = self.devices.get_mut(&observer.device) {
            it.observers.retain(|it| *it != key);
        }
        self.let_go(observer.device, now);
    }

    /// The node is shutting down: nothing new is begun, and every session ends once nothing is in flight.
    pub fn drain(&mut self, now: Instant) {
        if std::mem::replace(&mut self.draining, true) {
            return;
        }
        let unused: Vec<Key> =
            self.devices.iter().filter(|(_, it)| it.holds == 0).map(|(key, _)| *key).collect();
        for device in unused {
            self.forget_device(device);
        }
        let mut observers: Vec<Key> = self.observers.keys().copied().collect();
        observers.sort_unstable();
        for observer in observers {
            if self.observers.get(&observer).is_some_and(|it| it.live) {
                self.effects.push_back(Effect::Release(observer));
            }
            self.close_when_drained(observer, now);
        }
    }

    /// True when [`drain`](Self::drain) has come to its end.
    pub fn is_drained(&self) -> bool {
        self.draining && self.devices.is_empty() && self.requests.is_empty() && self.ending.is_empty()
    }

    fn close_when_drained(&mut self, key: Key, now: Instant) {
        if self.draining && self.observers.get(&key).is_some_and(|it| it.live && it.is_idle()) {
            self.end_observer(key, Some(EndReason::ShuttingDown), now);
        }
    }

    /// Time has passed: does what has become due.
    pub fn tick(&mut self, now: Instant) {
        while let Some(due) = self.messages.due(now) {
            match due {
                Due::Resend(to, datagram) => {
                    self.tally.resent += 1;
                    self.send(to, datagram);
                }
                Due::GivenUp(Owner::Observer(key), _) => {
                    self.tally.given_up += 1;
                    self.end_observer(key, None, now);
                }
                Due::GivenUp(Owner::Device(device), _) => {
                    self.tally.given_up += 1;
                    self.let_go(device, now);
                }
                Due::GivenUp(Owner::Nobody, _) => self.tally.given_up += 1,
            }
        }
        while let Some(&Reverse((at, timer))) = self.timers.peek()
            && at <= now
        {
            self.timers.pop();
            self.fire(timer, now);
        }
        self.messages.sweep(now);
        self.transfers.sweep(now);
    }

    /// When to call [`tick`](Self::tick) next.
    pub fn next_wake(&mut self) -> Option<Instant> {
        while let Some(Reverse((_, timer))) = self.timers.peek() {
            let stale = match timer {
                Timer::Acknowledge(request) => !self.requests.contains_key(request),
                Timer::Calls(key) | Timer::Fetch(key, _) | Timer::Check(key) => {
                    !self.observers.contains_key(key)
                }
                Timer::Idle(key) => !self.devices.contains_key(key),
            };
            if !stale {
                break;
            }
            self.timers.pop();
        }
        let timer = self.timers.peek().map(|Reverse((at, _))| *at);
        [timer, self.messages.next_wake(), self.transfers.next_wake()].into_iter().flatten().min()
    }

    fn fire(&mut self, timer: Timer, now: Instant) {
        match timer {
            Timer::Acknowledge(request) => {
                if self.requests.get(&request).is_some_and(|it| !it.origin.acknowledged) {
                    self.acknowledge(request);
                }
            }
            Timer::Calls(key) => self.expire_calls(key, now),
            Timer::Fetch(key, id) => {
                if self.observers.get_mut(&key).is_some_and(|it| it.was_not_fetched(id)) {
                    self.advance(key, now);
                }
            }
            Timer::Check(key) => self.check_observer(key, now),
            Timer::Idle(key) => {
                let idle = Duration::from_millis(self.limits.coap.session_idle_ms);
                let Some(device) = self.devices.get_mut(&key) else { return };
                device.idle_timer = false;
                if device.holds == 0 && device.used_at + idle <= now {
                    self.forget_device(key);
                } else if device.holds == 0 {
                    self.schedule_idle(key, now);
                }
            }
        }
    }

    fn expire_calls(&mut self, key: Key, now: Instant) {
        let Some(observer) = self.observers.get_mut(&key) else { return };
        observer.target.expire(now);
        observer.expiry_timer = None;
        match observer.call_ran_out() {
            // Acknowledged, or nothing under way.
            NotUnderWay::Free => self.advance(key, now),
            NotUnderWay::StillUnderWay => {}
            // What is sent on is a ping, so that a device that is gone is still found out; a call takes its place.
            NotUnderWay::Unacknowledged(id) => {
                let source = observer.registration.0;
                let ping = self.messages.replace(source, id, |id| codec::empty(Kind::Confirmable, id));
                observer.pings(ping.map(|(id, _)| id));
                self.advance(key, now);
            }
        }
        self.conclude_calls(key);
        self.schedule_calls(key);
    }

    fn check_observer(&mut self, key: Key, now: Instant) {
        let Some(observer) = self.observers.get_mut(&key) else { return };
        let idle = Duration::from_millis(self.limits.coap.observe_check_ms);
        if observer.heard_at + idle <= now && observer.unacknowledged().is_none() {
            let source = observer.registration.0;
            let write = |id| codec::empty(Kind::Confirmable, id);
            let (id, datagram) = self.messages.send(Owner::Observer(key), source, write, now);
            observer.pings(Some(id));
            observer.heard_at = now;
            self.send(source, datagram);
        }
        self.schedule_check(key, now);
    }

    fn schedule_check(&mut self, key: Key, now: Instant) {
        let idle_ms = self.limits.coap.observe_check_ms;
        if idle_ms > 0
            && let Some(observer) = self.observers.get(&key)
        {
            let at = (observer.heard_at + Duration::from_millis(idle_ms)).max(now + Duration::from_millis(1));
            self.timers.push(Reverse((at, Timer::Check(key))));
        }
    }

    fn schedule_calls(&mut self, key: Key) {
        if let Some(observer) = self.observers.get_mut(&key)
            && let Some(expiry) = observer.target.next_expiry()
            && observer.expiry_timer.is_none_or(|set| expiry < set)
        {
            observer.expiry_timer = Some(expiry);
            self.timers.push(Reverse((expiry, Timer::Calls(key))));
        }
    }

    fn schedule_idle(&mut self, key: Key, now: Instant) {
        if let Some(device) = self.devices.get_mut(&key)
            && device.holds == 0
            && !std::mem::replace(&mut device.idle_timer, true)
        {
            let idle = Duration::from_millis(self.limits.coap.session_idle_ms);
            let at = (device.used_at + idle).max(now + Duration::from_millis(1));
            self.timers.push(Reverse((at, Timer::Idle(key))));
        }
    }

    /// Begins to remember a request, which holds its device until it is answered. None when it was refused instead.
    fn begin(&mut self, mut origin: Origin, device: Key, doing: Doing, now: Instant) -> Option<RequestId> {
        let id = match origin.request {
            Some(id) => id,
            None => {
                self.last_request += 1;
                let id = self.last_request;
                if !self.messages.begin(origin.source, origin.id, id) {
                    self.effects.push_back(Effect::LimitHit(Limit::Exchanges));
                    let known = (!matches!(doing, Doing::Checking(_))).then_some(device);
                    self.respond(&origin, known, reply::full(), now);
                    return None;
                }
                origin.request = Some(id);
                if origin.confirmable {
                    let at = now + Duration::from_millis(self.limits.coap.separate_after_ms);
                    self.timers.push(Reverse((at, Timer::Acknowledge(id))));
                }
                id
            }
        };
        self.requests.insert(id, Pending { origin, device, doing });
        if let Some(it) = self.devices.get_mut(&device) {
            it.holds += 1;
        }
        Some(id)
    }

    /// Says that a request was received; its response comes later, on its own (§5.2.2).
    fn acknowledge(&mut self, request: RequestId) {
        if let Some(Pending { origin, .. }) = self.requests.get_mut(&request)
            && origin.confirmable
        {
            origin.acknowledged = true;
            let (source, id) = (origin.source, origin.id);
            self.send(source, codec::empty(Kind::Acknowledgement, id));
        }
    }

    /// Answers a request that was performed.
    fn finish(&mut self, request: RequestId, response: Response, now: Instant) {
        let Some(Pending { origin, device, doing }) = self.requests.remove(&request) else { return };
        match doing {
            Doing::Checking(_) => {
                self.unauthenticated -= 1;
                self.unauthenticated_bytes -= origin.datagram_bytes;
            }
            Doing::Calling => {
                if let Some(mut caller) = self.caller(device) {
                    caller.ended();
                }
            }
            Doing::HandingUp | Doing::Claiming => {}
        }
        self.conclude(&origin, Some(device), response, now);
        self.let_go(device, now);
    }

    /// Sends a response that has no effect: asked again, it would be given again.
    fn respond(&mut self, origin: &Origin, device: Option<Key>, response: Response, now: Instant) {
        self.send_response(origin, device, response, now);
        if origin.request.is_some() {
            self.messages.forget(origin.source, origin.id);
        }
    }

    /// Sends a response and remembers it: a retransmission of the request gets it again.
    fn conclude(&mut self, origin: &Origin, device: Option<Key>, response: Response, now: Instant) {
        let sent = self.send_response(origin, device, response, now);
        self.messages.answered(origin.source, origin.id, sent, now);
    }

    /// Sends a response, and says what a retransmission of its request is due.
    fn send_response(
        &mut self,
        origin: &Origin,
        device: Option<Key>,
        response: Response,
        now: Instant,
    ) -> Bytes {
        let mut response = self.fitted(origin, device, response, now);
        if response.block1.is_none() {
            response.block1 = origin.block1.map(|block| Block { more: false, ..block });
        }
        self.tally.count_response(response.code);
        let (source, token) = (origin.source, origin.token);
        match (origin.confirmable, origin.acknowledged, device) {
            (true, false, _) => {
                let mut datagram = response.write(Kind::Acknowledgement, origin.id, token);
                if device.is_none() && datagram.len() > self.longest_unauthenticated(origin) {
                    response.payload.clear();
                    datagram = response.write(Kind::Acknowledgement, origin.id, token);
                }
                self.send(source, datagram.clone());
                datagram
            }
            (true, true, Some(device)) => {
                let write = |id| response.write(Kind::Confirmable, id, token);
                let (_, datagram) = self.messages.send(Owner::Device(device), source, write, now);
                if let Some(it) = self.devices.get_mut(&device) {
                    it.holds += 1;
                }
                self.send(source, datagram);
                codec::empty(Kind::Acknowledgement, origin.id)
            }
            // To somebody unknown nothing is sent twice.
            (true, true, None) | (false, _, _) => {
                if device.is_none() {
                    response.payload.clear();
                }
                let datagram = response.write(Kind::NonConfirmable, self.messages.next_id(source), token);
                self.send(source, datagram);
                if origin.confirmable { codec::empty(Kind::Acknowledgement, origin.id) } else { Bytes::new() }
            }
        }
    }

    /// The first block of a response that is too long for one datagram, or longer than the client wants them; the rest
    /// is kept to be fetched.
    fn fitted(
        &mut self,
        origin: &Origin,
        device: Option<Key>,
        mut response: Response,
        now: Instant,
    ) -> Response {
        let mut wanted = origin.block2.unwrap_or(LARGEST_BLOCK);
        if response.block2.is_some() || wanted.number > 0 {
            return response;
        }
        let Some(device) = device else {
            // As much as may be sent, in the block size that fits.
            let overhead =
                response.write(Kind::Acknowledgement, 0, origin.token).len() - response.payload.len() + 6;
            let most = self.longest_unauthenticated(origin).saturating_sub(overhead);
            while wanted.exponent > 0 && wanted.bytes() > most {
                wanted.exponent -= 1;
            }
            let in_blocks = origin.target == Target::Discovery && response.payload.len() > wanted.bytes();
            return if in_blocks { part(&response, wanted).unwrap_or(response) } else { response };
        };
        if response.payload.len() <= wanted.bytes() {
            return response;
        }
        response.etag = Some(self.random.number() as u32);
        let key = TransferKey {
            device,
            source: origin.source,
            method: origin.method,
            target: origin.target,
            tag: None,
            upload: false,
        };
        let first = part(&response, wanted);
        self.transfers.offer(key, response.clone(), now);
        first.unwrap_or(response)
    }

    /// Bytes of the longest datagram that answers a request whose sender has shown no access token.
    fn longest_unauthenticated(&self, origin: &Origin) -> usize {
        origin.datagram_bytes * usize::from(self.limits.coap.max_amplification)
    }

    fn send(&mut self, to: SocketAddr, datagram: Bytes) {
        self.effects.push_back(Effect::Send(to, datagram));
    }

    fn caller(&self, device: Key) -> Option<MutexGuard<'_, CallerLimits>> {
        match &self.devices.get(&device)?.standing {
            Standing::Known(caller) => Some(caller.lock()),
            Standing::Checking(_) => None,
        }
    }

    /// One thing fewer holds the device.
    fn let_go(&mut self, key: Key, now: Instant) {
        let Some(device) = self.devices.get_mut(&key) else { return };
        device.holds = device.holds.saturating_sub(1);
        device.used_at = now;
        if device.holds > 0 {
            return;
        }
        if self.draining {
            self.forget_device(key);
        } else {
            self.schedule_idle(key, now);
        }
    }

    fn forget_device(&mut self, key: Key) {
        let Some(device) = self.devices.remove(&key) else { return };
        if self.credentials.get(&device.credential) == Some(&key) {
            self.credentials.remove(&device.credential);
        }
        if matches!(device.standing, Standing::Known(_)) {
            self.ending.entry(key).or_default();
            self.effects.push_back(Effect::End(key, SessionEnd::ByDevice));
        }
    }
}

/// The inner value of `{"response":…}`; anything else as it is.
fn unwrapped(body: Bytes) -> Bytes {
    #[derive(serde::Deserialize)]
    struct Wrapped<'a> {
        #[serde(borrow)]
        response: &'a serde_json::value::RawValue,
    }
    let is_object = body.trim_ascii_start().starts_with(b"{");
    match serde_json::from_slice::<Wrapped<'_>>(&body) {
        Ok(wrapped) if is_object => body.slice_ref(wrapped.response.get().as_bytes()),
        _ => body,
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
