//! What leaves the endpoint? Datagrams to its peers and [`Effect`]s for its loop, in order.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use boot::config::Coap;
use bytes::Bytes;
use rpc::{Limit, Method, Outcome, SessionEnd, UplinkKind};

use super::blocks::Transfers;
use super::messages::{Messages, Random, Transmission};
use super::tally::Tally;
use crate::device::limits::DeviceLimits;
use crate::device::mailbox::Router;
use crate::device::sessions::CredentialDigest;
use crate::device::target::{Conclusion, Target};
use crate::device::visitors::Key;
use crate::device_api::Request;

/// The settings that the endpoint obeys.
#[derive(Debug, Clone)]
pub struct EndpointLimits {
    /// Those of every device.
    pub device: DeviceLimits,
    /// CoAP's own.
    pub coap: Coap,
}

/// A request until it is answered.
pub type RequestId = u64;

/// An observation until its claim is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObserverKey(pub u64);

/// What the loop is to do.
#[derive(Debug)]
pub enum Effect {
    /// Send this datagram.
    Send(SocketAddr, Bytes),
    /// Let in whoever has that token, shown from there; then
    /// [`Endpoint::admitted`](super::endpoint::Endpoint::admitted).
    Admit(Key, CredentialDigest, SocketAddr),
    /// The visitor has gone.
    Leave(Key),
    /// Perform this request of the visitor; then [`Endpoint::answered`](super::endpoint::Endpoint::answered).
    Ask(RequestId, Key, Request),
    /// Hand this up for the visitor; then [`Endpoint::uplinked`](super::endpoint::Endpoint::uplinked).
    Uplink(RequestId, Key, UplinkKind, Bytes),
    /// Hand the visitor's answer to the node that gave the call of this number; then
    /// [`Endpoint::handed_on`](super::endpoint::Endpoint::handed_on).
    HandOn(RequestId, Key, u32, Bytes),
    /// Begin a session of the visitor's; then [`Endpoint::claimed`](super::endpoint::Endpoint::claimed).
    Claim(ObserverKey, Key),
    /// Nobody else is to find the session; it goes on.
    Release(ObserverKey),
    /// The session is over; once its claim is gone, [`Endpoint::ended`](super::endpoint::Endpoint::ended).
    End(ObserverKey, SessionEnd),
    /// A call to an observer is over.
    Conclude(Conclusion<Router>),
    /// A request was refused here and has been answered: to be counted.
    Refused(Method, Outcome),
    /// A limit was hit, by whom, where it is known: to be counted.
    LimitHit(Limit, Option<Key>),
}

/// What a confirmable message was sent for.
#[derive(Debug, Clone, Copy)]
pub enum Owner {
    /// A notification or ping of this observer.
    Observer(ObserverKey),
    /// A separate response to this visitor.
    Visitor(Key),
    /// The last notification of an observation that has ended.
    Nobody,
}

/// The way out, and what it needs to keep in mind.
#[derive(Debug)]
pub struct Link {
    pub(super) messages: Messages<Owner>,
    pub(super) transfers: Transfers,
    pub(super) tally: Tally,
    pub(super) random: Random,
    effects: VecDeque<Effect>,
}

impl Link {
    /// Nothing sent. `seed` must not be guessable.
    pub fn new(coap: &Coap, seed: u64) -> Self {
        let ms = Duration::from_millis;
        let transmission = Transmission {
            ack_timeout: ms(coap.ack_timeout_ms),
            max_retransmit: coap.max_retransmit,
            exchange_lifetime: ms(coap.exchange_lifetime_ms),
            max_exchanges: coap.max_exchanges,
        };
        let mut random = Random(seed);
        Link {
            messages: Messages::new(transmission, random.number()),
            transfers: Transfers::new(
                coap.max_block_transfers,
                coap.max_body_bytes,
                ms(coap.block_timeout_ms),
            ),
            tally: Tally::default(),
            random,
            effects: VecDeque::new(),
        }
    }

    /// What is to be done next.
    pub fn next_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Asks the loop for something.
    pub fn effect(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    /// Hands on what has become of calls.
    pub fn conclude(&mut self, target: &mut Target<Router>) {
        self.effects.extend(std::iter::from_fn(|| target.next_conclusion()).map(Effect::Conclude));
    }

    /// Sends a datagram.
    pub fn send(&mut self, to: SocketAddr, datagram: Bytes) {
        self.effect(Effect::Send(to, datagram));
    }

    /// Sends a message until it is acknowledged, under the id that is returned.
    pub fn send_confirmable(
        &mut self,
        owner: Owner,
        to: SocketAddr,
        write: impl FnOnce(u16) -> Bytes,
        now: Instant,
    ) -> u16 {
        let (id, datagram) = self.messages.send(owner, to, write, now);
        self.send(to, datagram);
        id
    }

    /// Sends a message once.
    pub fn send_once(&mut self, to: SocketAddr, write: impl FnOnce(u16) -> Bytes) {
        let datagram = write(self.messages.next_id(to));
        self.send(to, datagram);
    }
}
