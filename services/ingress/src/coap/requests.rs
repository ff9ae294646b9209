//! What has been asked, and how is it answered? Every request from its datagram to its response, and who sent it.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rpc::{Limit, Outcome, UplinkKind};

use super::blocks::{TransferKey, Upload, part};
use super::codec::{self, Block, Code, Kind, Message, Response, Token};
use super::link::{Effect, EndpointLimits, Link, ObserverKey, Owner, RequestId};
use super::messages::{Datagram, Seen};
use super::reply;
use super::request::{Parsed, Resource};
use super::tally::Event;
use crate::device::admit::NotAdmitted;
use crate::device::caller::{CallerLimits, RefusedUplink};
use crate::device::mailbox::EndReason;
use crate::device::sessions::CredentialDigest;
use crate::device::target::{AnswerTaken, Numbers};
use crate::device::visitors::{Key, Visitors};
use crate::device_api::Refusal;

/// Bytes of requests that may wait for the authorizer, all together.
const MAX_UNAUTHENTICATED_BYTES: usize = 16 * 1024 * 1024;

/// Block size of what is too long for one datagram: 1024 bytes fit into IPv6's smallest MTU.
pub const LARGEST_BLOCK: Block = Block { number: 0, more: false, exponent: Block::MAX_EXPONENT };

/// Where a request came from, and what its response must match.
#[derive(Debug, Clone)]
pub struct Origin {
    pub(super) source: SocketAddr,
    pub(super) token: Token,
    pub(super) block2: Option<Block>,
    id: u16,
    confirmable: bool,
    datagram: Datagram,
    datagram_bytes: usize,
    /// Its acknowledgement cannot carry the response any more, which comes on its own: it has been sent, or a newer
    /// request has the same id and would take it for its own.
    acknowledged: bool,
    /// Remembered as this request.
    request: Option<RequestId>,
    method: Code,
    resource: Resource,
    block1: Option<Block>,
    /// The blocks that came before it are not held any more: performed again, it would be another request.
    ends_upload: bool,
}

impl Origin {
    /// What its options say.
    pub fn asks(&mut self, asked: &Parsed<'_>) {
        (self.resource, self.block1, self.block2) = (asked.resource, asked.block1, asked.block2);
    }

    /// What the visitor's body under way belongs to.
    pub fn transfer(&self, visitor: Key) -> TransferKey {
        let (source, method, resource) = (self.source, self.method, self.resource);
        TransferKey { visitor, source, method, resource, tag: None, upload: false }
    }
}

/// What a request waits for.
#[derive(Debug)]
pub enum Doing {
    /// To hear who sent it.
    Checking(Message),
    /// The outcome of an admitted call, or of an answer that is handed on, which costs the same.
    Calling,
    /// NATS to take telemetry or attributes.
    HandingUp,
    /// A claim to stand or to be gone.
    Claiming,
}

#[derive(Debug)]
struct Pending {
    origin: Origin,
    visitor: Key,
    doing: Doing,
}

/// What is kept of a visitor.
#[derive(Debug)]
pub struct Visit {
    who: Who,
    /// Its observations, the newest last.
    pub(super) observers: Vec<ObserverKey>,
    /// It is to go to another node, for this reason.
    pub(super) leaves: Option<EndReason>,
}

#[derive(Debug)]
enum Who {
    /// These requests wait to hear who it is.
    Checking(Vec<RequestId>),
    Known(Arc<Mutex<CallerLimits>>),
}

/// All requests that are not answered, and all visitors.
#[derive(Debug)]
pub struct Requests {
    pub(super) limits: EndpointLimits,
    pub(super) link: Link,
    pub(super) visitors: Visitors<Visit>,
    /// Nothing new is begun.
    pub(super) draining: bool,
    /// What the numbers of this node's calls name it by.
    pub(super) node_tag: u16,
    pending: HashMap<RequestId, Pending>,
    /// Confirmable requests that are still due an acknowledgement, by whose ids it would go.
    unacknowledged: HashMap<(SocketAddr, u16), RequestId>,
    /// When confirmable requests are acknowledged at the latest, in this order.
    acknowledge_at: VecDeque<(Instant, RequestId)>,
    last_request: RequestId,
    unauthenticated: usize,
    unauthenticated_bytes: usize,
}

impl Requests {
    /// Nobody has asked for anything of the node with this tag. `seed` must not be guessable.
    pub fn new(limits: EndpointLimits, node_tag: u16, seed: u64) -> Self {
        let idle = Duration::from_millis(limits.coap.session_idle_ms);
        Requests {
            link: Link::new(&limits.coap, seed),
            visitors: Visitors::new(limits.coap.max_sessions, idle),
            draining: false,
            node_tag,
            pending: HashMap::new(),
            unacknowledged: HashMap::new(),
            acknowledge_at: VecDeque::new(),
            last_request: 0,
            unauthenticated: 0,
            unauthenticated_bytes: 0,
            limits,
        }
    }

    /// A request has come. None when it came before: it gets what was said then, or is acknowledged (RFC 7252 §4.5).
    pub fn came(&mut self, source: SocketAddr, message: &Message, bytes: &Bytes) -> Option<Origin> {
        let datagram = self.link.messages.identify(source, message.id, bytes);
        let confirmable = message.kind == Kind::Confirmable;
        match self.link.messages.seen(datagram) {
            Some(Seen::InProgress(request)) => {
                self.link.tally.count(Event::Duplicate);
                self.acknowledge(request);
                return None;
            }
            Some(Seen::Answered(answer)) => {
                self.link.tally.count(Event::Duplicate);
                if !answer.is_empty() {
                    self.link.send(source, answer);
                }
                return None;
            }
            None => {}
        }
        if confirmable
            && let Some(older) = self.unacknowledged.remove(&(source, message.id))
            && let Some(Pending { origin, .. }) = self.pending.get_mut(&older)
        {
            origin.acknowledged = true;
        }
        Some(Origin {
            source,
            token: message.token,
            block2: None,
            id: message.id,
            confirmable,
            datagram,
            datagram_bytes: bytes.len(),
            acknowledged: false,
            request: None,
            method: message.code,
            resource: Resource::Discovery,
            block1: None,
            ends_upload: false,
        })
    }

    /// The visitor who shows this credential, if it is known whose it is.
    pub fn known(&self, credential: &CredentialDigest) -> Option<Key> {
        self.visitors.find(credential).filter(|visitor| self.caller(*visitor).is_some())
    }

    /// Lets a request wait to hear who sent it. When too many wait already it is dropped: its client sends it again.
    pub fn check(&mut self, origin: Origin, credential: CredentialDigest, message: Message, now: Instant) {
        let (bytes, source) = (origin.datagram_bytes, origin.source);
        if self.unauthenticated >= self.limits.coap.max_unauthenticated
            || self.unauthenticated_bytes + bytes > MAX_UNAUTHENTICATED_BYTES
        {
            return self.link.effect(Effect::LimitHit(Limit::Unauthenticated, None));
        }
        let asked_about = self.visitors.find(&credential);
        let visit = Visit { who: Who::Checking(Vec::new()), observers: Vec::new(), leaves: None };
        let Some(visitor) = asked_about.or_else(|| self.visitors.add(credential, visit, now)) else {
            self.link.effect(Effect::LimitHit(Limit::Sessions, None));
            return self.respond(&origin, None, reply::full(), now);
        };
        let begun = self.begin(origin, visitor, Doing::Checking(message), now);
        if let (Some(request), Some(Visit { who: Who::Checking(waiting), .. })) =
            (begun, self.visitors.get_mut(visitor))
        {
            waiting.push(request);
            self.unauthenticated += 1;
            self.unauthenticated_bytes += bytes;
        }
        match (asked_about, begun) {
            (None, Some(_)) => self.link.effect(Effect::Admit(visitor, credential, source)),
            (None, None) => self.forget_visitor(visitor),
            (Some(_), _) => {}
        }
    }

    /// Whose token it is: the requests that waited for that, to be performed, each followed by
    /// [`let_go`](Self::let_go). Those of nobody are refused.
    pub fn admitted(
        &mut self,
        visitor: Key,
        admitted: Result<Arc<Mutex<CallerLimits>>, NotAdmitted>,
        now: Instant,
    ) -> Vec<(Origin, Message)> {
        let Some(Visit { who, .. }) = self.visitors.get_mut(visitor) else { return Vec::new() };
        let Who::Checking(waiting) = who else { return Vec::new() };
        let waiting = std::mem::take(waiting);
        let refusal = match admitted {
            Ok(caller) => {
                *who = Who::Known(caller);
                None
            }
            Err(why) => Some(reply::refusal(why.into())),
        };
        if refusal.is_some() {
            self.visitors.forget(visitor);
        }
        let mut to_perform = Vec::new();
        for request in waiting {
            let Some(Pending { origin, doing: Doing::Checking(message), .. }) = self.pending.remove(&request)
            else {
                continue;
            };
            self.unauthenticated -= 1;
            self.unauthenticated_bytes -= origin.datagram_bytes;
            match &refusal {
                None => to_perform.push((origin, message)),
                Some(refusal) => self.respond(&origin, None, refusal.clone(), now),
            }
        }
        to_perform
    }

    /// The whole body of a request; none while it is not whole, or when it is refused.
    pub fn body(
        &mut self,
        origin: &mut Origin,
        visitor: Key,
        asked: &Parsed<'_>,
        payload: &Bytes,
        now: Instant,
    ) -> Option<Bytes> {
        let max_body_bytes = self.limits.coap.max_body_bytes;
        let upload = match asked.block1 {
            None if payload.len() > max_body_bytes => Upload::TooLarge,
            None => Upload::Whole(payload.clone()),
            Some(block) => {
                let key = TransferKey { upload: true, tag: asked.request_tag, ..origin.transfer(visitor) };
                let began_before = self.link.transfers.holds(&key);
                let upload = self.link.transfers.upload(key, block, payload, asked.size1, now);
                origin.ends_upload = began_before && upload != Upload::Continue;
                upload
            }
        };
        let response = match upload {
            Upload::Whole(body) => return Some(body),
            Upload::Continue => Response { block1: asked.block1, ..Response::new(Code::CONTINUE) },
            Upload::Incomplete => Response::new(Code::INCOMPLETE),
            Upload::Malformed => Response::new(Code::BAD_REQUEST),
            Upload::TooLarge => {
                self.link.effect(Effect::LimitHit(Limit::PacketBytes, Some(visitor)));
                let size1 = u32::try_from(max_body_bytes).ok();
                Response { size1, ..Response::new(Code::TOO_LARGE) }
            }
        };
        self.respond(origin, Some(visitor), response, now);
        None
    }

    /// A request of the device API.
    pub fn call(&mut self, origin: Origin, visitor: Key, body: &Bytes, now: Instant) {
        let Some(caller) = self.caller(visitor) else { return };
        let admitted = caller.lock().request(body, &self.limits.device, now);
        match admitted {
            Ok(request) => match self.begin(origin, visitor, Doing::Calling, now) {
                Some(id) => self.link.effect(Effect::Ask(id, visitor, request)),
                None => caller.lock().ended(),
            },
            Err(refused) => {
                self.respond(&origin, Some(visitor), reply::refused_request(&refused), now);
                if let Outcome::Busy(limit) = refused.outcome {
                    self.link.effect(Effect::LimitHit(limit, Some(visitor)));
                }
                self.link.effect(Effect::Refused(refused.method, refused.outcome));
            }
        }
    }

    /// An answer to a call that is not here costs its device what a call costs: another node is asked.
    pub fn hand_on(&mut self, origin: Origin, visitor: Key, number: u32, body: Bytes, now: Instant) {
        if Numbers::node_tag(number) == self.node_tag {
            return self.respond(&origin, Some(visitor), reply::taken(AnswerTaken::NoSuchCall), now);
        }
        let Some(caller) = self.caller(visitor) else { return };
        let admitted = caller.lock().admit(&self.limits.device, now);
        if let Err(limit) = admitted {
            self.link.effect(Effect::LimitHit(limit, Some(visitor)));
            return self.respond(&origin, Some(visitor), reply::refusal(Refusal::TooOften), now);
        }
        match self.begin(origin, visitor, Doing::Calling, now) {
            Some(id) => self.link.effect(Effect::HandOn(id, visitor, number, body)),
            None => caller.lock().ended(),
        }
    }

    /// Telemetry or attributes.
    pub fn hand_up(&mut self, origin: Origin, visitor: Key, kind: UplinkKind, body: Bytes, now: Instant) {
        let Some(caller) = self.caller(visitor) else { return };
        let admitted = caller.lock().uplink(&body, &self.limits.device, now);
        match admitted {
            Ok(()) => {
                if let Some(id) = self.begin(origin, visitor, Doing::HandingUp, now) {
                    self.link.effect(Effect::Uplink(id, visitor, kind, body));
                }
            }
            Err(RefusedUplink::NotJson) => {
                let why = reply::refusal(Refusal::BodyNotJson);
                self.respond(&origin, Some(visitor), why, now);
            }
            Err(RefusedUplink::TooOften(limit)) => {
                self.link.effect(Effect::LimitHit(limit, Some(visitor)));
                self.respond(&origin, Some(visitor), reply::refusal(Refusal::TooOften), now);
            }
        }
    }

    /// Begins to remember a request, which holds its visitor until it is answered. None when it was refused instead.
    pub fn begin(
        &mut self,
        mut origin: Origin,
        visitor: Key,
        doing: Doing,
        now: Instant,
    ) -> Option<RequestId> {
        let request = match origin.request {
            Some(request) => request,
            None => {
                let known = (!matches!(doing, Doing::Checking(_))).then_some(visitor);
                let request = self.remember(&mut origin, known, now)?;
                if origin.confirmable {
                    self.unacknowledged.insert((origin.source, origin.id), request);
                    let at = now + Duration::from_millis(self.limits.coap.separate_after_ms);
                    self.acknowledge_at.push_back((at, request));
                }
                request
            }
        };
        self.pending.insert(request, Pending { origin, visitor, doing });
        self.visitors.hold(visitor);
        Some(request)
    }

    /// Sees to it that the request's retransmissions are known. None when it was refused instead.
    pub fn remember(&mut self, origin: &mut Origin, visitor: Option<Key>, now: Instant) -> Option<RequestId> {
        if origin.request.is_none() {
            self.last_request += 1;
            if !self.link.messages.begin(origin.datagram, self.last_request) {
                self.link.effect(Effect::LimitHit(Limit::Exchanges, visitor));
                self.respond(origin, visitor, reply::full(), now);
                return None;
            }
            origin.request = Some(self.last_request);
        }
        origin.request
    }

    /// Says that a request was received; its response comes later, on its own (§5.2.2).
    fn acknowledge(&mut self, request: RequestId) {
        let Some(Pending { origin, .. }) = self.pending.get_mut(&request) else { return };
        if origin.confirmable {
            origin.acknowledged = true;
            let (source, id) = (origin.source, origin.id);
            self.is_acknowledged(source, id, Some(request));
            self.link.send(source, codec::empty(Kind::Acknowledgement, id));
        }
    }

    /// No acknowledgement is due to this request any more.
    fn is_acknowledged(&mut self, source: SocketAddr, id: u16, request: Option<RequestId>) {
        if self.unacknowledged.get(&(source, id)).copied() == request {
            self.unacknowledged.remove(&(source, id));
        }
    }

    /// Answers a request that was performed.
    pub fn finish(&mut self, request: RequestId, response: Response, now: Instant) {
        let Some(Pending { origin, visitor, doing }) = self.pending.remove(&request) else { return };
        match doing {
            Doing::Checking(_) => {
                self.unauthenticated -= 1;
                self.unauthenticated_bytes -= origin.datagram_bytes;
                self.respond(&origin, Some(visitor), response, now);
            }
            Doing::Calling => {
                if let Some(caller) = self.caller(visitor) {
                    caller.lock().ended();
                }
                self.conclude(&origin, visitor, response, now);
            }
            Doing::HandingUp => self.conclude(&origin, visitor, response, now),
            // Asked again, the observation is refreshed, and begun again if it has ended meanwhile (RFC 7252 §4.5 lets
            // a GET be performed twice): what was true once must not be repeated.
            Doing::Claiming => self.respond(&origin, Some(visitor), response, now),
        }
        self.let_go(visitor, now);
    }

    /// Answers all that is being done for a visitor.
    pub fn break_off(&mut self, visitor: Key, response: &Response, now: Instant) {
        let of_visitor = |(id, it): (&RequestId, &Pending)| (it.visitor == visitor).then_some(*id);
        let mut broken_off: Vec<RequestId> = self.pending.iter().filter_map(of_visitor).collect();
        broken_off.sort_unstable();
        for request in broken_off {
            self.finish(request, response.clone(), now);
        }
    }

    /// Sends a response that has no effect: asked again, it would be given again, and is remembered where it would not.
    /// Without a visitor its receiver has shown no access token.
    pub fn respond(&mut self, origin: &Origin, visitor: Option<Key>, response: Response, now: Instant) {
        let sent = self.send(origin, visitor, response, now);
        let (datagram, messages) = (origin.datagram, &mut self.link.messages);
        if origin.ends_upload && (origin.request.is_some() || messages.begin(datagram, self.last_request)) {
            messages.answered(datagram, sent, now);
        } else if origin.request.is_some() {
            messages.forget(datagram);
        }
    }

    /// Sends a response and remembers it: a retransmission of the request gets it again.
    pub fn conclude(&mut self, origin: &Origin, visitor: Key, response: Response, now: Instant) {
        let sent = self.send(origin, Some(visitor), response, now);
        self.link.messages.answered(origin.datagram, sent, now);
    }

    /// Sends a response, and says what a retransmission of its request is due.
    fn send(&mut self, origin: &Origin, visitor: Option<Key>, response: Response, now: Instant) -> Bytes {
        let mut response = self.fitted(origin, visitor, response, now);
        if response.block1.is_none() {
            response.block1 = origin.block1.map(|block| Block { more: false, ..block });
        }
        self.link.tally.responds(response.code);
        let (source, token) = (origin.source, origin.token);
        self.is_acknowledged(source, origin.id, origin.request);
        match (origin.confirmable, origin.acknowledged, visitor) {
            (true, false, _) => {
                let mut datagram = response.write(Kind::Acknowledgement, origin.id, token);
                if visitor.is_none() && datagram.len() > self.longest_unauthenticated(origin) {
                    response.payload.clear();
                    datagram = response.write(Kind::Acknowledgement, origin.id, token);
                }
                self.link.send(source, datagram.clone());
                datagram
            }
            (true, true, Some(visitor)) => {
                let write = |id| response.write(Kind::Confirmable, id, token);
                self.link.send_confirmable(Owner::Visitor(visitor), source, write, now);
                self.visitors.hold(visitor);
                codec::empty(Kind::Acknowledgement, origin.id)
            }
            // To somebody unknown nothing is sent twice.
            (true, true, None) | (false, _, _) => {
                if visitor.is_none() {
                    response.payload.clear();
                }
                self.link.send_once(source, |id| response.write(Kind::NonConfirmable, id, token));
                if origin.confirmable { codec::empty(Kind::Acknowledgement, origin.id) } else { Bytes::new() }
            }
        }
    }

    /// The first block of a response that is too long for one datagram, or longer than the client wants them; the rest
    /// is kept to be fetched.
    fn fitted(
        &mut self,
        origin: &Origin,
        visitor: Option<Key>,
        mut response: Response,
        now: Instant,
    ) -> Response {
        let mut wanted = origin.block2.unwrap_or(LARGEST_BLOCK);
        if response.block2.is_some() || wanted.number > 0 {
            return response;
        }
        let Some(visitor) = visitor else {
            // As much as may be sent, in the block size that fits.
            let overhead =
                response.write(Kind::Acknowledgement, 0, origin.token).len() - response.payload.len() + 6;
            let most = self.longest_unauthenticated(origin).saturating_sub(overhead);
            while wanted.exponent > 0 && wanted.bytes() > most {
                wanted.exponent -= 1;
            }
            let in_blocks = origin.resource == Resource::Discovery && response.payload.len() > wanted.bytes();
            return if in_blocks { part(&response, wanted).unwrap_or(response) } else { response };
        };
        if response.payload.len() <= wanted.bytes() {
            return response;
        }
        response.etag = Some(self.link.random.number() as u32);
        let first = part(&response, wanted);
        self.link.transfers.offer(origin.transfer(visitor), response.clone(), now);
        first.unwrap_or(response)
    }

    /// Bytes of the longest datagram that answers a request whose sender has shown no access token.
    fn longest_unauthenticated(&self, origin: &Origin) -> usize {
        origin.datagram_bytes * usize::from(self.limits.coap.max_amplification)
    }

    /// A visitor's limits as a caller.
    pub fn caller(&self, visitor: Key) -> Option<Arc<Mutex<CallerLimits>>> {
        match &self.visitors.get(visitor)?.who {
            Who::Known(caller) => Some(Arc::clone(caller)),
            Who::Checking(_) => None,
        }
    }

    /// One thing fewer holds the visitor.
    pub fn let_go(&mut self, visitor: Key, now: Instant) {
        if self.visitors.let_go(visitor, now) && self.leaves(visitor) {
            self.forget_visitor(visitor);
        }
    }

    /// Whether nothing new is begun for a visitor: it is sent away, or the node shuts down and it does not observe.
    pub fn leaves(&self, visitor: Key) -> bool {
        let visit = self.visitors.get(visitor);
        visit.is_none_or(|it| it.leaves.is_some() || self.draining && it.observers.is_empty())
    }

    /// A visitor is known no longer.
    pub fn forget_visitor(&mut self, visitor: Key) {
        if let Some(Visit { who: Who::Known(_), .. }) = self.visitors.forget(visitor) {
            self.link.effect(Effect::Leave(visitor));
        }
    }

    /// True when nobody waits for anything.
    pub fn is_idle(&self) -> bool {
        self.visitors.is_empty() && self.pending.is_empty()
    }

    /// Time has passed: acknowledges what takes long, and forgets who has been idle.
    pub fn tick(&mut self, now: Instant) {
        while let Some(&(at, request)) = self.acknowledge_at.front()
            && at <= now
        {
            self.acknowledge_at.pop_front();
            if self.pending.get(&request).is_some_and(|it| !it.origin.acknowledged) {
                self.acknowledge(request);
            }
        }
        while let Some(visitor) = self.visitors.idle(now) {
            self.forget_visitor(visitor);
        }
    }

    /// When to call [`tick`](Self::tick) next.
    pub fn next_wake(&mut self) -> Option<Instant> {
        while let Some((_, request)) = self.acknowledge_at.front()
            && !self.pending.contains_key(request)
        {
            self.acknowledge_at.pop_front();
        }
        self.acknowledge_at.front().map(|(at, _)| *at).into_iter().chain(self.visitors.next_idle()).min()
    }
}

#[cfg(test)]
#[path = "requests_tests.rs"]
mod tests;
