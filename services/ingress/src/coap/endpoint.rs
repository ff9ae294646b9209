//! What does the CoAP endpoint do with what happens to it? A pure machine for all devices that speak CoAP with this
//! node: datagrams, calls, answers and time go in; [`Effect`]s for the loop come out.
//!
//! `requests` are those of its visitors, from datagram to response; `observations` are their sessions.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use rpc::{Method, Outcome, SessionEnd};

use super::blocks::part;
use super::codec::{self, Code, Kind, Message, Reading, Response, read};
use super::link::Owner;
pub use super::link::{Effect, EndpointLimits, ObserverKey, RequestId};
use super::messages::Due;
use super::observations::Observations;
use super::reply;
use super::request::{self, Parsed, Resource};
use super::requests::{LARGEST_BLOCK, Origin, Requests};
use super::sequence::Sequence;
use super::tally::{Arrival, Event, Held, Tally};
use crate::device::admit::{NotAdmitted, digest};
use crate::device::caller::CallerLimits;
use crate::device::mailbox::{EndReason, Incoming};
use crate::device::sessions::CredentialDigest;
use crate::device::target::AnswerTaken;
use crate::device::visitors::Key;
use crate::device_api::Refusal;

/// The endpoint.
#[derive(Debug)]
pub struct Endpoint {
    pub(super) requests: Requests,
    pub(super) observations: Observations,
}

impl Endpoint {
    /// An endpoint that nobody has spoken to, at the node with this tag; the clock says `unix_ms`. `seed` must not be
    /// guessable.
    pub fn new(limits: EndpointLimits, node_tag: u16, seed: u64, unix_ms: u64, now: Instant) -> Self {
        Endpoint {
            requests: Requests::new(limits, node_tag, seed),
            observations: Observations::new(Sequence::new(unix_ms, now)),
        }
    }

    /// The limits have changed.
    pub fn change_limits(&mut self, limits: EndpointLimits) {
        self.observations.change_limits(limits.device.target);
        self.requests.limits = limits;
    }

    /// What is to be done, in order.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.requests.link.next_effect()
    }

    /// What has been counted since the last question.
    pub fn take_tally(&mut self) -> Tally {
        let link = &mut self.requests.link;
        let mut tally = std::mem::take(&mut link.tally);
        tally.dropped_transfers = link.transfers.take_dropped();
        let (exchanges, unacknowledged) = link.messages.held();
        tally.holds(Held::Exchanges, exchanges);
        tally.holds(Held::Unacknowledged, unacknowledged);
        tally.holds(Held::Transfers, link.transfers.held());
        tally.holds(Held::Observers, self.observations.len());
        tally
    }

    /// A datagram has come.
    pub fn received(&mut self, source: SocketAddr, datagram: &Bytes, now: Instant) {
        let link = &mut self.requests.link;
        let message = match read(datagram) {
            Reading::Message(message) => message,
            Reading::Foreign => return link.tally.came(Arrival::Foreign),
            Reading::Malformed(kind, id) => {
                link.tally.came(Arrival::Malformed);
                if kind == Kind::Confirmable {
                    link.send(source, codec::empty(Kind::Reset, id));
                }
                return;
            }
        };
        link.tally.came(message.kind.into());
        match message.kind {
            Kind::Acknowledgement | Kind::Reset => {
                let (requests, observations) = (&mut self.requests, &mut self.observations);
                match requests.link.messages.settled(source, message.id) {
                    Some((Owner::Observer(key), resent)) => {
                        observations.settled(key, message.id, message.kind, resent, requests, now);
                    }
                    Some((Owner::Visitor(visitor), _)) => requests.let_go(visitor, now),
                    Some((Owner::Nobody, _)) | None => {}
                }
            }
            Kind::Confirmable | Kind::NonConfirmable if message.code.is_request() => {
                self.request(source, message, datagram, now);
            }
            // A ping (§4.3), or a response to what was never asked.
            Kind::Confirmable => link.send(source, codec::empty(Kind::Reset, message.id)),
            Kind::NonConfirmable => {}
        }
    }

    fn request(&mut self, source: SocketAddr, message: Message, datagram: &Bytes, now: Instant) {
        let requests = &mut self.requests;
        let Some(mut origin) = requests.came(source, &message, datagram) else { return };
        let asked = match request::parse(&message) {
            Ok(asked) => asked,
            // §5.4.1: in a non-confirmable request, an unknown critical option is passed over in silence.
            Err(Code::BAD_OPTION) if message.kind == Kind::NonConfirmable => return,
            Err(code) => return requests.respond(&origin, None, Response::new(code), now),
        };
        origin.asks(&asked);
        if asked.resource == Resource::Discovery {
            let wanted = asked.block2.unwrap_or(LARGEST_BLOCK);
            let discovery = reply::discovery();
            let fits = discovery.payload.len() <= wanted.bytes() && wanted.number == 0;
            let response = if fits { Some(discovery) } else { part(&discovery, wanted) };
            return requests.respond(
                &origin,
                None,
                response.unwrap_or(Response::new(Code::BAD_REQUEST)),
                now,
            );
        }
        if asked.method == Code::GET
            && asked.resource == Resource::Rpc
            && asked.observe.is_none_or(|it| it > 1)
            && asked.block2.is_none_or(|it| it.number == 0)
        {
            let why = reply::refused(Code::BAD_REQUEST, "Calls are observed: this request needs Observe 0!");
            return requests.respond(&origin, None, why, now);
        }
        if asked.access_token.is_empty() {
            return requests.respond(&origin, None, reply::refusal(Refusal::UnknownToken), now);
        }
        let credential = digest(asked.access_token);
        match requests.known(&credential) {
            Some(visitor) => self.proceed(origin, visitor, &asked, &message.payload, now),
            None => requests.check(origin, credential, message, now),
        }
    }

    /// The answer to an [`Effect::Admit`]: the visitor's limits as a caller.
    ///
    /// # Errors
    /// `admitted` is one when nobody has the token, or nobody can say.
    pub fn admitted(
        &mut self,
        visitor: Key,
        admitted: Result<Arc<Mutex<CallerLimits>>, NotAdmitted>,
        now: Instant,
    ) {
        for (origin, message) in self.requests.admitted(visitor, admitted, now) {
            match request::parse(&message) {
                Ok(asked) => self.proceed(origin, visitor, &asked, &message.payload, now),
                Err(code) => self.requests.respond(&origin, Some(visitor), Response::new(code), now),
            }
            self.requests.let_go(visitor, now);
        }
    }

    /// Performs a request of a visitor.
    fn proceed(
        &mut self,
        mut origin: Origin,
        visitor: Key,
        asked: &Parsed<'_>,
        payload: &Bytes,
        now: Instant,
    ) {
        let (requests, observations) = (&mut self.requests, &mut self.observations);
        requests.visitors.touch(visitor, now);
        if let Some(wanted) = asked.block2.filter(|it| it.number > 0) {
            // More of an earlier response: nothing is performed again.
            let block = requests.link.transfers.block(origin.transfer(visitor), wanted, now);
            let Some(response) = block else {
                let why = reply::refused(Code::BAD_REQUEST, "There is no such block!");
                return requests.respond(&origin, Some(visitor), why, now);
            };
            let (etag, last) = (response.etag, !response.block2.is_some_and(|block| block.more));
            requests.respond(&origin, Some(visitor), response, now);
            if last && asked.method == Code::GET {
                observations.fetched(visitor, etag, requests, now);
            }
            return;
        }
        let ends_something = matches!(asked.resource, Resource::Answer(_))
            || asked.method == Code::GET && asked.observe == Some(1);
        if requests.leaves(visitor) && !ends_something {
            let why = if requests.draining {
                reply::refusal(Refusal::ShuttingDown)
            } else {
                reply::refusal(Refusal::Moved)
            };
            return requests.respond(&origin, Some(visitor), why, now);
        }
        match (asked.method, asked.resource, asked.observe) {
            (Code::GET, Resource::Attributes, observe) => {
                let response = match observe {
                    Some(0) => observations.attributes(now),
                    _ => reply::attributes(None),
                };
                return requests.respond(&origin, Some(visitor), response, now);
            }
            (Code::GET, _, Some(0)) => return observations.register(origin, visitor, requests, now),
            (Code::GET, ..) => return observations.deregister(origin, visitor, requests, now),
            _ => {}
        }
        let Some(body) = requests.body(&mut origin, visitor, asked, payload, now) else { return };
        match (asked.resource, asked.resource.uplink()) {
            (_, Some(kind)) => requests.hand_up(origin, visitor, kind, body, now),
            (Resource::Answer(number), _) => {
                observations.answer(origin, visitor, number, body, requests, now);
            }
            (_, None) => requests.call(origin, visitor, &body, now),
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
        self.requests.finish(request, reply::ended(method, outcome, body), now);
    }

    /// Whether NATS took what an [`Effect::Uplink`] handed up.
    pub fn uplinked(&mut self, request: RequestId, taken: bool, now: Instant) {
        let response =
            if taken { Response::new(Code::CHANGED) } else { reply::refusal(Refusal::Unavailable) };
        self.requests.finish(request, response, now);
    }

    /// What became of the answer of an [`Effect::HandOn`]; none when nobody can say.
    pub fn handed_on(&mut self, request: RequestId, taken: Option<AnswerTaken>, now: Instant) {
        self.requests.finish(
            request,
            taken.map_or_else(|| reply::refusal(Refusal::Unavailable), reply::taken),
            now,
        );
    }

    /// The visitor who shows this credential, if it is known whose it is.
    pub fn visitor(&self, credential: &CredentialDigest) -> Option<Key> {
        self.requests.known(credential)
    }

    /// A visitor's answer to call `number` came to another node, which hands it on.
    pub fn answered_elsewhere(
        &mut self,
        visitor: Key,
        number: u32,
        body: &Bytes,
        now: Instant,
    ) -> AnswerTaken {
        self.observations.answered_elsewhere(visitor, number, body, &mut self.requests, now)
    }

    /// Whether the claim of an [`Effect::Claim`] stands.
    pub fn claimed(&mut self, observer: ObserverKey, stands: bool, now: Instant) {
        self.observations.claimed(observer, stands, &mut self.requests, now);
    }

    /// The claim of an [`Effect::End`] is gone.
    pub fn ended(&mut self, observer: ObserverKey, now: Instant) {
        self.observations.ended(observer, &mut self.requests, now);
    }

    /// A call has come for an observer.
    pub fn deliver(&mut self, observer: ObserverKey, call: Box<Incoming>, now: Instant) {
        self.observations.deliver(observer, call, &mut self.requests, now);
    }

    /// The node ends an observation.
    pub fn end_observer(&mut self, observer: ObserverKey, reason: EndReason, now: Instant) {
        self.observations.end(observer, reason.into(), &mut self.requests, now);
    }

    /// The node ends a visit, and all that is under way for it.
    pub fn end_visitor(&mut self, visitor: Key, reason: EndReason, now: Instant) {
        let (requests, end) = (&mut self.requests, reason.into());
        self.observations.end_all(visitor, end, requests, now);
        requests.break_off(visitor, &reply::refusal(reason.into()), now);
        requests.forget_visitor(visitor);
    }

    /// The node is shutting down: nothing new is begun, and whoever does not observe is forgotten once nothing is in
    /// flight. Observers are [sent away](Self::send_away) one by one.
    pub fn drain(&mut self) {
        self.requests.draining = true;
        for visitor in self.requests.visitors.unheld() {
            self.requests.forget_visitor(visitor);
        }
    }

    /// A visitor is to go to another node: its observations end, and it is forgotten, once nothing is in flight. Said
    /// again: before that nobody finds it here any more.
    pub fn send_away(&mut self, visitor: Key, reason: EndReason, now: Instant) {
        let requests = &mut self.requests;
        let Some(visit) = requests.visitors.get_mut(visitor) else { return };
        let again = visit.leaves.replace(reason).is_some();
        self.observations.send_away(visitor, again, requests, now);
        if !requests.visitors.is_held(visitor) {
            requests.forget_visitor(visitor);
        }
    }

    /// True when [`drain`](Self::drain) has come to its end.
    pub fn is_drained(&self) -> bool {
        self.requests.draining && self.requests.is_idle() && self.observations.is_empty()
    }

    /// Time has passed: does what has become due.
    pub fn tick(&mut self, now: Instant) {
        let (requests, observations) = (&mut self.requests, &mut self.observations);
        while let Some(due) = requests.link.messages.due(now) {
            match due {
                Due::Resend(to, datagram) => {
                    requests.link.tally.count(Event::Resent);
                    requests.link.send(to, datagram);
                }
                Due::GivenUp(owner, _) => {
                    requests.link.tally.count(Event::GivenUp);
                    match owner {
                        Owner::Observer(key) => observations.end(key, SessionEnd::Fault, requests, now),
                        Owner::Visitor(visitor) => requests.let_go(visitor, now),
                        Owner::Nobody => {}
                    }
                }
            }
        }
        requests.tick(now);
        observations.tick(requests, now);
        requests.link.messages.sweep(now);
        requests.link.transfers.sweep(now);
    }

    /// When to call [`tick`](Self::tick) next.
    pub fn next_wake(&mut self) -> Option<Instant> {
        let messages = self.requests.link.messages.next_wake();
        let transfers = self.requests.link.transfers.next_wake();
        let wakes = [messages, transfers, self.requests.next_wake(), self.observations.next_wake()];
        wakes.into_iter().flatten().min()
    }
}

#[cfg(test)]
#[path = "endpoint_tests.rs"]
mod tests;
