//! What does an MQTT session do with what happens to it? A pure machine: packets, calls, answers and time go in;
//! bytes for the socket and [`Effect`]s for the loop come out.
//!
//! Driving it: hand [`received`](Session::received) the bytes that came whenever there are new ones, and again after
//! [`claimed`](Session::claimed), [`released`](Session::released), [`uplinked`](Session::uplinked),
//! [`tick`](Session::tick) and where it [`left_off`](Session::left_off), for it leaves unread what has to wait; perform
//! every [`next_effect`](Session::next_effect) in order; read from the socket only while it
//! [`wants_input`](Session::wants_input).

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boot::Settings;
use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use parking_lot::Mutex;
use rpc::{Limit, Method, Outcome, SessionEnd, TokenBucket, UplinkKind};

use super::codec::{Codec, Fault, Packet, Publish, QoS, Reason, SubscribeAckReason};
use super::filter::{Grant, Subscriptions, is_request_filter};
use super::inbound::Inbound;
use super::outbound::Outbound;
use crate::device::caller::CallerLimits;
use crate::device::limits::DeviceLimits;
use crate::device::mailbox::{EndReason, Router};
use crate::device::target::{Conclusion, Numbers, Target};
use crate::device_api::Request;
use crate::metrics::Dropped;

mod callee;
mod caller;
mod messages;
#[cfg(test)]
mod tests;

pub use caller::Ticket;

/// The settings that a session obeys.
#[derive(Debug, Clone)]
pub struct SessionLimits {
    /// Those of every device.
    pub device: DeviceLimits,
    /// Filters of one session.
    pub max_subscriptions: usize,
    /// Unacknowledged messages at QoS 1 and 2 that the server takes.
    pub receive_maximum: u16,
    /// Topic aliases that the client may set.
    pub topic_alias_maximum: u16,
    /// Where clients are sent that this node sends away.
    pub server_reference: Option<ByteString>,
}

impl From<&Settings> for SessionLimits {
    fn from(settings: &Settings) -> Self {
        let mqtt = &settings.mqtt;
        SessionLimits {
            device: DeviceLimits::from(settings),
            max_subscriptions: mqtt.max_subscriptions,
            receive_maximum: mqtt.receive_maximum,
            topic_alias_maximum: mqtt.topic_alias_maximum,
            server_reference: mqtt.server_reference.as_deref().map(Into::into),
        }
    }
}

/// What the loop is to do.
#[derive(Debug)]
pub enum Effect {
    /// Perform this request, then call [`Session::answered`].
    Ask(Ticket, Request, Option<ByteString>),
    /// A request was refused here and has been answered: to be counted.
    Refused(Method, Outcome),
    /// A call to this device is over: tell its router.
    Conclude(Conclusion<Router>),
    /// Make the device callable, then call [`Session::claimed`].
    Claim(PendingSubscribe),
    /// The device is no longer callable: release its claim, then call [`Session::released`].
    Release(PendingUnsubscribe),
    /// Hand this to NATS; with a packet id, call [`Session::uplinked`] once it is there.
    Uplink(UplinkKind, Bytes, Option<NonZeroU16>),
    /// A limit was hit: to be counted.
    LimitHit(Limit),
    /// A message was dropped: to be counted; with its topic, which is given once a session for each reason, to be told.
    Dropped(Dropped, Option<ByteString>),
    /// An answer that nobody subscribed to was dropped.
    AnswerUnheard,
    /// Write what is to be written, then close the connection.
    Close(Ended),
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The client said DISCONNECT or closed its end.
    ByClient,
    /// The client broke the protocol.
    Fault(&'static str),
    /// Nothing came for one and a half times the keep-alive.
    KeepAlive,
    /// By the node.
    ByNode(EndReason),
    /// It did not read what was written to it.
    SlowConsumer,
}

impl Ended {
    /// What whoever listens for sessions is told.
    pub fn session_end(self) -> SessionEnd {
        match self {
            Ended::ByClient => SessionEnd::ByDevice,
            Ended::Fault(_) | Ended::KeepAlive | Ended::SlowConsumer => SessionEnd::Fault,
            Ended::ByNode(reason) => reason.into(),
        }
    }
}

/// A SUBSCRIBE that is acknowledged once the claim stands.
#[derive(Debug)]
pub struct PendingSubscribe {
    packet_id: NonZeroU16,
    status: Vec<SubscribeAckReason>,
    /// Those that made the device callable; taken back when the claim fails.
    requests: Vec<(usize, ByteString)>,
}

/// An UNSUBSCRIBE that is acknowledged once the claim is gone.
#[derive(Debug)]
pub struct PendingUnsubscribe {
    packet_id: NonZeroU16,
    existed: Vec<bool>,
}

/// A message for which there is no room, and whose client cannot be told so: nothing is read behind it.
#[derive(Debug)]
struct Held {
    publish: Publish,
    /// When to try again; none when the end of another message makes room.
    until: Option<Instant>,
}

/// How many effects wait to be performed before more is read.
const MAX_EFFECTS: usize = 8;

/// One connected MQTT client.
#[derive(Debug)]
pub struct Session {
    codec: Codec,
    limits: Arc<SessionLimits>,
    /// Shared by all of the device's sessions on this node.
    caller: Arc<Mutex<CallerLimits>>,
    subscriptions: Subscriptions,
    aliases: BTreeMap<NonZeroU16, ByteString>,
    /// Calls of this session that wait for their answers.
    in_flight: u32,
    /// Calls to this session.
    target: Target<Router>,
    outbound: Outbound,
    inbound: Inbound,
    held: Option<Box<Held>>,
    /// How many packets may come.
    packets: TokenBucket,
    /// More have come, or too many calls of its customer: nothing is read until then.
    paced_until: Option<Instant>,
    /// Handed up if the connection ends without DISCONNECT.
    will: Option<Box<(UplinkKind, Bytes)>>,
    /// Why messages were dropped, as far as their topics have been told: a bit for each reason.
    told: u8,
    keep_alive_ms: u32,
    last_packet_at: Instant,
    /// It ends for this reason once nothing is in flight.
    leaves: Option<EndReason>,
    closed: bool,
    /// There was too much to do to read on.
    left_off: bool,
    /// A claim is being written or released: what the client sent behind it is read afterwards.
    paused: bool,
    out: BytesMut,
    effects: VecDeque<Effect>,
}

impl Session {
    /// A session after its CONNACK. `keep_alive_s` is the one in force, never 0.
    pub fn new(
        codec: Codec,
        limits: Arc<SessionLimits>,
        caller: Arc<Mutex<CallerLimits>>,
        keep_alive_s: u16,
        receive_maximum: u16,
        will: Option<(UplinkKind, Bytes)>,
        now: Instant,
    ) -> Self {
        Session {
            codec,
            caller,
            subscriptions: Subscriptions::default(),
            aliases: BTreeMap::new(),
            in_flight: 0,
            target: Target::new(limits.device.target, Numbers::after(0)),
            limits,
            outbound: Outbound::new(receive_maximum),
            inbound: Inbound::default(),
            held: None,
            packets: TokenBucket::new(now),
            paced_until: None,
            will: will.map(Box::new),
            told: 0,
            // §3.1.2.10: one and a half times the keep-alive.
            keep_alive_ms: u32::from(keep_alive_s) * 1500,
            last_packet_at: now,
            leaves: None,
            closed: false,
            left_off: false,
            paused: false,
            out: BytesMut::new(),
            effects: VecDeque::new(),
        }
    }

    /// The limits have changed. What the client was told in its CONNACK has not.
    pub fn change_limits(&mut self, limits: Arc<SessionLimits>) {
        self.target.change_limits(limits.device.target);
        self.limits = limits;
    }

    /// True while [`next_effect`](Self::next_effect) has something.
    pub fn asks_for_something(&self) -> bool {
        !self.effects.is_empty() || self.target.has_conclusions()
    }

    /// What is to be done, in order.
    pub fn next_effect(&mut self) -> Option<Effect> {
        if let Some(conclusion) = self.target.next_conclusion() {
            return Some(Effect::Conclude(conclusion));
        }
        let effect = self.effects.pop_front();
        if effect.is_none() && self.effects.capacity() > 0 && self.is_idle() {
            // An idle session keeps no heap.
            self.effects = VecDeque::new();
        }
        effect
    }

    /// The bytes for the socket.
    pub fn out(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// How many bytes the client has still to read, written or waiting to be.
    pub fn unread_bytes(&self) -> usize {
        self.out.len() + self.outbound.waiting_bytes()
    }

    /// Reads what has come, as far as it need not wait. On a fault the client is told, as far as its version can be,
    /// and the session closes. It stops while there is much to do already: what becomes of that may say that nothing
    /// more is read.
    pub fn received(&mut self, inbound: &mut BytesMut, max_packet_bytes: u32, now: Instant) {
        self.left_off = false;
        while !self.closed && !self.paused {
            if self.effects.len() >= MAX_EFFECTS {
                self.left_off = !inbound.is_empty();
                return;
            }
            let done = match self.held.take() {
                Some(held) => self.take(held.publish, now),
                None if self.is_too_fast(now) => return,
                None => match self.codec.decode(inbound, max_packet_bytes) {
                    Ok(Some(packet)) => {
                        self.packets.take(self.limits.device.request_rate, now);
                        self.packet(packet, now)
                    }
                    Ok(None) => return,
                    Err(fault) => Err(fault),
                },
            };
            self.last_packet_at = now;
            if let Err(fault) = done {
                return self.fault(fault);
            }
            if self.held.is_some() {
                return;
            }
        }
    }

    /// Whether the next packet must wait.
    fn is_too_fast(&mut self, now: Instant) -> bool {
        let refused_until = self.paced_until.filter(|until| *until > now);
        let until = self.packets.next(self.limits.device.request_rate, now).max(refused_until);
        if until.is_some() && self.paced_until.is_none() {
            self.effects.push_back(Effect::LimitHit(Limit::RequestRate));
        }
        self.paced_until = until;
        until.is_some()
    }

    fn packet(&mut self, packet: Packet, now: Instant) -> Result<(), Fault> {
        match packet {
            Packet::Publish(publish) => return self.publish(*publish, now),
            Packet::TooLarge { topic, qos, packet_id } => return self.too_large(topic, qos, packet_id, now),
            Packet::PubAck { packet_id } => self.acknowledged(packet_id, now),
            Packet::PubRel { packet_id } => {
                self.inbound.released(packet_id);
                self.codec.pubcomp(packet_id, &mut self.out);
            }
            Packet::Subscribe { packet_id, filters } => self.subscribe(packet_id, filters),
            Packet::Unsubscribe { packet_id, filters } => self.unsubscribe(packet_id, &filters),
            Packet::PingReq => {
                self.inbound.forget(now);
                self.codec.pingresp(&mut self.out);
            }
            Packet::Disconnect { keeps_will } => {
                if !keeps_will {
                    self.will = None;
                }
                self.close(Ended::ByClient);
            }
        }
        Ok(())
    }

    fn subscribe(&mut self, packet_id: NonZeroU16, filters: Vec<(ByteString, QoS)>) {
        let was_callable = self.subscriptions.callable();
        let mut status = Vec::with_capacity(filters.len());
        let mut requests = Vec::new();
        for (index, (filter, qos)) in filters.into_iter().enumerate() {
            status.push(match self.subscriptions.add(&filter, qos, self.limits.max_subscriptions) {
                Grant::Granted(QoS::AtMostOnce) => SubscribeAckReason::GrantedQos0,
                Grant::Granted(_) => SubscribeAckReason::GrantedQos1,
                Grant::NotAllowed => SubscribeAckReason::NotAuthorized,
                Grant::Full => {
                    self.effects.push_back(Effect::LimitHit(Limit::Subscriptions));
                    SubscribeAckReason::QuotaExceeded
                }
            });
            if is_request_filter(&filter) {
                requests.push((index, filter));
            }
        }
        if !was_callable && self.subscriptions.callable() {
            self.paused = true;
            self.effects.push_back(Effect::Claim(PendingSubscribe { packet_id, status, requests }));
        } else {
            self.codec.suback(packet_id, &status, &mut self.out);
        }
    }

    /// Whether the claim of an [`Effect::Claim`] stands. Only then is the SUBSCRIBE acknowledged: from that moment
    /// a call from anywhere in the cluster reaches the device.
    pub fn claimed(&mut self, mut pending: PendingSubscribe, stands: bool) {
        self.paused = false;
        if stands {
            self.target.becomes_callable();
        } else {
            for (index, filter) in &pending.requests {
                self.subscriptions.remove(filter);
                if let Some(status) = pending.status.get_mut(*index) {
                    *status = SubscribeAckReason::UnspecifiedError;
                }
            }
        }
        self.codec.suback(pending.packet_id, &pending.status, &mut self.out);
    }

    fn unsubscribe(&mut self, packet_id: NonZeroU16, filters: &[ByteString]) {
        let was_callable = self.subscriptions.callable();
        let existed: Vec<bool> = filters.iter().map(|filter| self.subscriptions.remove(filter)).collect();
        if was_callable && !self.subscriptions.callable() {
            self.paused = true;
            self.target.falls_silent();
            self.effects.push_back(Effect::Release(PendingUnsubscribe { packet_id, existed }));
        } else {
            self.codec.unsuback(packet_id, &existed, &mut self.out);
        }
    }

    /// The claim of an [`Effect::Release`] is gone.
    pub fn released(&mut self, pending: &PendingUnsubscribe) {
        self.paused = false;
        self.codec.unsuback(pending.packet_id, &pending.existed, &mut self.out);
    }

    /// The client has one of our messages.
    fn acknowledged(&mut self, packet_id: NonZeroU16, now: Instant) {
        if let Some(number) = self.outbound.acknowledged(packet_id) {
            self.target.written(number);
        }
        while let Some(next) = self.outbound.next_waiting() {
            self.write(next, QoS::AtLeastOnce, None);
        }
        self.write_calls(now);
        self.close_when_drained();
    }

    /// The socket has taken all that was written.
    pub fn flushed(&mut self) {
        self.inbound.flushed();
        self.target.flushed();
        self.close_when_drained();
    }

    /// Time has passed: closes what has run out of it.
    pub fn tick(&mut self, now: Instant) {
        self.target.expire(now);
        if self.held.is_some() || self.paced_until.is_some() {
            // What the client has sent meanwhile waits with the socket.
            self.last_packet_at = now;
        }
        if now >= self.keep_alive_ends() {
            let why = "nothing came within the keep-alive";
            self.codec.disconnect(Reason::KeepAliveTimeout, why, &mut self.out);
            self.close(Ended::KeepAlive);
        }
        self.close_when_drained();
    }

    fn keep_alive_ends(&self) -> Instant {
        self.last_packet_at + Duration::from_millis(self.keep_alive_ms.into())
    }

    /// When to call [`tick`](Self::tick) next.
    pub fn next_tick(&self) -> Instant {
        let keep_alive = self.keep_alive_ends();
        let held_until = self.held.as_ref().and_then(|held| held.until);
        let others = self.target.next_expiry().into_iter().chain(held_until).chain(self.paced_until);
        others.fold(keep_alive, Instant::min)
    }

    /// The node ends this session.
    pub fn end_by_node(&mut self, reason: EndReason) {
        let (code, why) = match reason {
            EndReason::TakenOver => {
                (Reason::SessionTakenOver, "a newer session of this device became callable")
            }
            EndReason::OneTooMany => {
                (Reason::SessionTakenOver, "newer connections of this device have the place of its oldest")
            }
            EndReason::Revoked => {
                (Reason::AdministrativeAction, "the device was removed, reassigned or re-keyed")
            }
            EndReason::ShuttingDown => (Reason::ServerShuttingDown, "this node is shutting down"),
            EndReason::Moved => (Reason::ServerShuttingDown, "this node sends its devices to others"),
        };
        if !self.closed {
            let elsewhere = self.limits.server_reference.as_ref();
            match (reason, elsewhere) {
                (EndReason::ShuttingDown | EndReason::Moved, Some(elsewhere)) => {
                    self.codec.redirect(elsewhere, why, &mut self.out);
                }
                _ => self.codec.disconnect(code, why, &mut self.out),
            }
            self.close(Ended::ByNode(reason));
        }
    }

    /// It did not read what was written to it.
    pub fn end_slow_consumer(&mut self) {
        self.effects.push_back(Effect::LimitHit(Limit::OutboundBytes));
        self.close(Ended::SlowConsumer);
    }

    /// The client's end of the connection is closed.
    pub fn end_of_stream(&mut self) {
        self.close(Ended::ByClient);
    }

    /// The node sends the device away: ends once nothing is in flight.
    pub fn leave(&mut self, reason: EndReason) {
        self.leaves = Some(reason);
        self.close_when_drained();
    }

    /// Whether it was told to [`leave`](Self::leave).
    pub fn leaves(&self) -> bool {
        self.leaves.is_some()
    }

    /// True while the loop should read from the socket. Not while a message waits for room; and a session that leaves
    /// and owes the node no answer reads no further: a request read now would have to be broken off.
    pub fn wants_input(&self) -> bool {
        let owes = !self.target.has_none_open() || !self.outbound.has_none_under_way();
        self.held.is_none() && self.paced_until.is_none() && (self.leaves.is_none() || owes)
    }

    /// True when the input that it wants may be there already: [`received`](Self::received) left it unread.
    pub fn left_off(&self) -> bool {
        self.left_off
    }

    /// Nothing is in flight in either direction.
    fn is_idle(&self) -> bool {
        self.in_flight == 0
            && self.target.is_idle()
            && self.outbound.has_none_waiting()
            && self.inbound.under_way() == 0
            && self.held.is_none()
    }

    fn close_when_drained(&mut self) {
        if let Some(reason) = self.leaves.filter(|_| !self.closed && self.is_idle()) {
            self.end_by_node(reason);
        }
    }

    /// The session is over: what was open is answered. `Lost` where the target may have seen the call, `NotHere`
    /// where it was never written. Its will is handed up, unless it is a device's that is no longer who it was.
    pub fn end(&mut self, ended: Ended, now: Instant) {
        self.closed = true;
        for _ in 0..std::mem::take(&mut self.in_flight) {
            self.caller.lock().ended();
        }
        self.target.end();
        let will = self.will.take().filter(|_| ended != Ended::ByNode(EndReason::Revoked));
        if let Some((kind, payload)) = will.map(|will| *will) {
            let admitted = self.caller.lock().uplink(&payload, &self.limits.device, now);
            self.effects.push_back(match admitted {
                Ok(()) => Effect::Uplink(kind, payload, None),
                Err(_) => Effect::Dropped(Dropped::Will, None),
            });
        }
    }

    fn fault(&mut self, fault: Fault) {
        if fault.reason == Reason::PacketTooLarge {
            self.effects.push_back(Effect::LimitHit(Limit::PacketBytes));
        }
        self.codec.disconnect(fault.reason, fault.what, &mut self.out);
        self.close(Ended::Fault(fault.what));
    }

    fn close(&mut self, ended: Ended) {
        if !self.closed {
            self.closed = true;
            self.effects.push_back(Effect::Close(ended));
        }
    }
}
