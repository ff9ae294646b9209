//! What does an MQTT session do with what happens to it? A pure machine: packets, calls, answers and time go in;
//! bytes for the socket and [`Effect`]s for the loop come out.

use std::collections::{HashMap, VecDeque};
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use bytestring::ByteString;
use parking_lot::Mutex;
use rpc::{Limit, Method, Outcome, SessionEnd, UplinkKind};

use super::codec::{
    Codec, Fault, Packet, Publish, PublishAckReason, PublishProperties, QoS, Reason, SubscribeAckReason,
    Version,
};
use super::filter::{Grant, Subscriptions, Topic, is_response_topic, request_topic, response_topic};
use crate::device::caller::{CallerLimits, RefusedRequest, RefusedUplink};
use crate::device::limits::DeviceLimits;
use crate::device::mailbox::{EndReason, Incoming, Router};
use crate::device::target::{AnswerTaken, Conclusion, Numbers, Target};
use crate::device_api::{self, Request};

/// The settings that a session obeys.
#[derive(Debug, Clone, Copy)]
pub struct SessionLimits {
    /// Those of every device.
    pub device: DeviceLimits,
    /// Filters of one session.
    pub max_subscriptions: usize,
    /// Unacknowledged QoS 1 messages that the server takes.
    pub receive_maximum: u16,
    /// Topic aliases that the client may set.
    pub topic_alias_maximum: u16,
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

/// A caller's request until its answer: where that goes.
#[derive(Debug)]
pub struct Ticket {
    /// What was asked.
    pub method: Method,
    /// When it came.
    pub started: Instant,
    topic: ResponseTopic,
    correlation: Option<Bytes>,
}

#[derive(Debug)]
enum ResponseTopic {
    /// The device API's own.
    Of(u32),
    /// The request's Response Topic (MQTT 5 §3.3.2.3.5).
    Given(ByteString),
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

/// An answer that waits for the client's Receive Maximum. Calls wait in the target.
#[derive(Debug)]
struct Outgoing {
    topic: ByteString,
    payload: Bytes,
    properties: PublishProperties,
}

/// One connected MQTT client.
#[derive(Debug)]
pub struct Session {
    codec: Codec,
    limits: Arc<SessionLimits>,
    /// Shared by all of the device's sessions on this node.
    caller: Arc<Mutex<CallerLimits>>,
    subscriptions: Subscriptions,
    aliases: HashMap<NonZeroU16, ByteString>,
    /// Calls of this session that wait for their answers.
    in_flight: u32,
    /// Calls to this session.
    target: Target<Router>,
    /// Our QoS 1 messages until their PUBACK, with the calls they carry.
    unacked: HashMap<NonZeroU16, Option<u32>>,
    last_packet_id: u16,
    receive_maximum: u16,
    waiting: VecDeque<Outgoing>,
    /// One-way calls at QoS 0: taken once the socket has their bytes.
    unflushed: Vec<u32>,
    uplinks_in_flight: u16,
    keep_alive: Duration,
    last_packet_at: Instant,
    draining: bool,
    closed: bool,
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
        now: Instant,
    ) -> Self {
        Session {
            codec,
            caller,
            subscriptions: Subscriptions::default(),
            aliases: HashMap::new(),
            in_flight: 0,
            target: Target::new(limits.device.target, Numbers::after(0)),
            limits,
            unacked: HashMap::new(),
            last_packet_id: 0,
            receive_maximum,
            waiting: VecDeque::new(),
            unflushed: Vec::new(),
            uplinks_in_flight: 0,
            // §3.1.2.10: one and a half times the keep-alive.
            keep_alive: Duration::from_millis(u64::from(keep_alive_s) * 1500),
            last_packet_at: now,
            draining: false,
            closed: false,
            paused: false,
            out: BytesMut::new(),
            effects: VecDeque::new(),
        }
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

    /// Reads what has come, up to a change of the claim: call it again after [`claimed`](Self::claimed) and
    /// [`released`](Self::released), so that everything is done in its order. On a fault the client is told, as far as its version can be, and the session closes.
    pub fn received(&mut self, inbound: &mut BytesMut, max_packet_bytes: u32, now: Instant) {
        while !self.closed && !self.paused {
            let packet = match self.codec.decode(inbound, max_packet_bytes) {
                Ok(Some(packet)) => packet,
                Ok(None) => return,
                Err(fault) => return self.fault(fault),
            };
            self.last_packet_at = now;
            if let Err(fault) = self.packet(packet, now) {
                return self.fault(fault);
            }
        }
    }

    fn packet(&mut self, packet: Packet, now: Instant) -> Result<(), Fault> {
        match packet {
            Packet::Publish(publish) => self.publish(*publish, now),
            Packet::PubAck { packet_id } => {
                self.acknowledged(packet_id, now);
                Ok(())
            }
            Packet::Subscribe { packet_id, filters } => {
                self.subscribe(packet_id, filters);
                Ok(())
            }
            Packet::Unsubscribe { packet_id, filters } => {
                self.unsubscribe(packet_id, &filters);
                Ok(())
            }
            Packet::PingReq => {
                self.codec.pingresp(&mut self.out);
                Ok(())
            }
            Packet::Disconnect { .. } => {
                self.close(Ended::ByClient);
                Ok(())
            }
            Packet::TooLarge { .. } => {
                Err(Fault { reason: Reason::PacketTooLarge, what: "the packet is too large" })
            }
            Packet::PubRel { .. } => {
                Err(Fault { reason: Reason::ProtocolError, what: "QoS 2 is not supported" })
            }
        }
    }

    fn publish(&mut self, mut publish: Publish, now: Instant) -> Result<(), Fault> {
        if publish.qos == QoS::ExactlyOnce {
            return Err(Fault { reason: Reason::QosNotSupported, what: "the highest QoS is 1" });
        }
        self.resolve_alias(&mut publish)?;
        match Topic::parse(&publish.topic) {
            Topic::Request(id) => {
                self.puback(publish.packet_id, PublishAckReason::Success, "");
                self.request(id, publish, now);
                Ok(())
            }
            Topic::Response(number) => {
                self.response(number, publish, now);
                Ok(())
            }
            Topic::Uplink(kind) => self.uplink(kind, publish, now),
            Topic::AttributesRequest(_) | Topic::Foreign => {
                let what = "the topic is none of the device API's";
                match publish.packet_id {
                    Some(_) if self.codec.version() == Version::V5 => {
                        self.puback(publish.packet_id, PublishAckReason::TopicNameInvalid, what);
                        Ok(())
                    }
                    _ => Err(Fault { reason: Reason::TopicNameInvalid, what }),
                }
            }
        }
    }

    /// §3.3.2.3.4: an alias with a topic is set, one without stands for it.
    fn resolve_alias(&mut self, publish: &mut Publish) -> Result<(), Fault> {
        let Some(alias) = publish.properties.topic_alias else { return Ok(()) };
        let invalid = Fault { reason: Reason::TopicAliasInvalid, what: "no such topic alias" };
        if alias.get() > self.limits.topic_alias_maximum {
            return Err(invalid);
        }
        if publish.topic.is_empty() {
            publish.topic = self.aliases.get(&alias).cloned().ok_or(invalid)?;
        } else {
            // A copy: the topic is a part of the whole packet's memory.
            self.aliases.insert(alias, ByteString::from(&*publish.topic));
        }
        Ok(())
    }

    fn request(&mut self, id: u32, publish: Publish, now: Instant) {
        let properties = publish.properties;
        let (topic, topic_is_ours) = match properties.response_topic {
            Some(topic) if is_response_topic(&topic) => (ResponseTopic::Given(topic), true),
            Some(_) => (ResponseTopic::Of(id), false),
            None => (ResponseTopic::Of(id), true),
        };
        let admitted = self.caller.lock().request(&publish.payload, &self.limits.device, now);
        let method = match &admitted {
            Ok(request) => request.method(),
            Err(refused) => refused.method,
        };
        let ticket = Ticket { method, started: now, topic, correlation: properties.correlation };
        let mut request = match admitted {
            Ok(request) => request,
            Err(RefusedRequest { outcome, .. }) => return self.refuse(&ticket, outcome),
        };
        if !topic_is_ours {
            self.caller.lock().ended();
            let part = "the Response Topic must be within v1/devices/me/rpc/response/";
            return self.refuse(&ticket, Outcome::malformed(part));
        }
        if let (Request::SendMsg { timeout, connect_timeout, .. }, Some(expiry_s)) =
            (&mut request, properties.expiry_s)
        {
            let expiry = rpc::Budget::from_ms(expiry_s.saturating_mul(1000));
            *timeout = (*timeout).min(expiry);
            *connect_timeout = (*connect_timeout).min(expiry);
        }
        self.in_flight += 1;
        self.effects.push_back(Effect::Ask(ticket, request, properties.traceparent));
    }

    /// Answers a request that goes no further.
    fn refuse(&mut self, ticket: &Ticket, outcome: Outcome) {
        if let Outcome::Busy(limit) = outcome {
            self.effects.push_back(Effect::LimitHit(limit));
        }
        self.write_answer(ticket, &outcome, Bytes::new());
        self.effects.push_back(Effect::Refused(ticket.method, outcome));
    }

    /// The outcome of an [`Effect::Ask`].
    pub fn answered(&mut self, ticket: &Ticket, outcome: &Outcome, body: Bytes) {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.caller.lock().ended();
        self.write_answer(ticket, outcome, body);
        self.close_when_drained();
    }

    fn write_answer(&mut self, ticket: &Ticket, outcome: &Outcome, body: Bytes) {
        let topic = match &ticket.topic {
            ResponseTopic::Of(id) => response_topic(*id),
            ResponseTopic::Given(topic) => topic.clone(),
        };
        let Some(qos) = self.subscriptions.response_qos(&topic) else {
            self.effects.push_back(Effect::AnswerUnheard);
            return;
        };
        let properties = PublishProperties { correlation: ticket.correlation.clone(), ..Default::default() };
        let text = device_api::answer(ticket.method, outcome, body);
        if !self.send(topic.clone(), text, properties.clone(), qos) {
            let outcome = Outcome::AnswerTooLarge;
            let text = device_api::answer(ticket.method, &outcome, Bytes::new());
            self.effects.push_back(Effect::LimitHit(Limit::PacketBytes));
            // If not even this fits, the client hears nothing: the standard forbids it.
            self.send(topic, text, properties, qos);
        }
    }

    fn response(&mut self, number: u32, publish: Publish, now: Instant) {
        let is_told = publish.packet_id.is_some() && self.codec.version() == Version::V5;
        let (reason, why) = match self.target.answer(number, &publish.payload, is_told, now) {
            AnswerTaken::Yes => (PublishAckReason::Success, ""),
            AnswerTaken::NoSuchCall => (PublishAckReason::NoMatchingSubscribers, "no such call is open"),
            AnswerTaken::OneWay => (PublishAckReason::NoMatchingSubscribers, "the call is one-way"),
            AnswerTaken::NotJson => {
                let why = "an answer must be JSON in UTF-8; the call is still open";
                (PublishAckReason::PayloadFormatInvalid, why)
            }
        };
        self.puback(publish.packet_id, reason, why);
        self.close_when_drained();
    }

    fn uplink(&mut self, kind: UplinkKind, publish: Publish, now: Instant) -> Result<(), Fault> {
        let admitted = self.caller.lock().uplink(&publish.payload, &self.limits.device, now);
        match admitted {
            Ok(()) => {}
            Err(RefusedUplink::NotJson) => {
                let why = "telemetry and attributes must be JSON in UTF-8";
                self.puback(publish.packet_id, PublishAckReason::PayloadFormatInvalid, why);
                return Ok(());
            }
            Err(RefusedUplink::TooOften(limit)) => {
                self.effects.push_back(Effect::LimitHit(limit));
                let what = "too many messages a second";
                return match publish.packet_id {
                    Some(_) if self.codec.version() == Version::V5 => {
                        self.puback(publish.packet_id, PublishAckReason::QuotaExceeded, what);
                        Ok(())
                    }
                    // 3.1.1 can only be told by closing; unacknowledged, the message stays the client's.
                    Some(_) => Err(Fault { reason: Reason::MessageRateTooHigh, what }),
                    None => Ok(()),
                };
            }
        }
        if publish.packet_id.is_some() {
            self.uplinks_in_flight += 1;
            if self.uplinks_in_flight > self.limits.receive_maximum {
                let what = "more unacknowledged messages than the Receive Maximum";
                return Err(Fault { reason: Reason::ReceiveMaximumExceeded, what });
            }
        }
        self.effects.push_back(Effect::Uplink(kind, publish.payload, publish.packet_id));
        Ok(())
    }

    /// Whether NATS took an [`Effect::Uplink`] at QoS 1.
    pub fn uplinked(&mut self, packet_id: NonZeroU16, taken: bool) {
        self.uplinks_in_flight = self.uplinks_in_flight.saturating_sub(1);
        if taken {
            self.puback(Some(packet_id), PublishAckReason::Success, "");
        } else if self.codec.version() == Version::V5 {
            let why = "the message could not be handed on";
            self.puback(Some(packet_id), PublishAckReason::UnspecifiedError, why);
        } else {
            self.fault(Fault {
                reason: Reason::UnspecifiedError,
                what: "the message could not be handed on",
            });
        }
        self.close_when_drained();
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
            if super::filter::is_request_filter(&filter) {
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

    /// A call for this device.
    pub fn deliver(&mut self, call: Box<Incoming>, now: Instant) {
        self.target.deliver(call, now);
        self.write_calls(now);
    }

    /// Writes the calls that wait, as far as the client's Receive Maximum allows.
    fn write_calls(&mut self, now: Instant) {
        loop {
            let is_window_full = self.unacked.len() >= usize::from(self.receive_maximum);
            if is_window_full && self.subscriptions.acknowledges_calls() {
                return;
            }
            let next = match self.subscriptions.hears_any_call() {
                true => self.target.next(now),
                false => self.target.next_among(self.subscriptions.exact_calls(), now),
            };
            let Some((number, call)) = next else { return };
            let qos = self.subscriptions.request_qos(number).unwrap_or(QoS::AtMostOnce);
            let oneway = call.oneway;
            let properties = PublishProperties {
                response_topic: match self.codec.version() {
                    Version::V5 if !oneway => Some(response_topic(number)),
                    Version::V3 | Version::V5 => None,
                },
                traceparent: call.traceparent.as_deref().map(ByteString::from),
                ..Default::default()
            };
            let text = device_api::on_msg(&call.body);
            if !self.write(request_topic(number), text, properties, qos, Some(number)) {
                self.target.too_large(number);
            } else if qos == QoS::AtMostOnce {
                match oneway {
                    true => self.unflushed.push(number),
                    false => self.target.written(number),
                }
            }
        }
    }

    /// Sends an answer, at once or when the client's Receive Maximum allows. False when it may never be sent.
    fn send(&mut self, topic: ByteString, payload: Bytes, properties: PublishProperties, qos: QoS) -> bool {
        if qos != QoS::AtMostOnce && self.unacked.len() >= usize::from(self.receive_maximum) {
            self.waiting.push_back(Outgoing { topic, payload, properties });
            return true;
        }
        self.write(topic, payload, properties, qos, None)
    }

    /// Writes a message, which the client's Receive Maximum allows. False when its Maximum Packet Size does not.
    fn write(
        &mut self,
        topic: ByteString,
        payload: Bytes,
        properties: PublishProperties,
        qos: QoS,
        call: Option<u32>,
    ) -> bool {
        let packet_id = (qos != QoS::AtMostOnce).then(|| self.next_packet_id());
        if !self.codec.publish(topic, packet_id, payload, properties, &mut self.out) {
            return false;
        }
        if let Some(packet_id) = packet_id {
            self.unacked.insert(packet_id, call);
        }
        true
    }

    /// Ends: at most `receive_maximum` of the 65,535 ids are taken, and whoever writes has checked for a free one.
    fn next_packet_id(&mut self) -> NonZeroU16 {
        loop {
            self.last_packet_id = self.last_packet_id.wrapping_add(1);
            if let Some(packet_id) = NonZeroU16::new(self.last_packet_id)
                && !self.unacked.contains_key(&packet_id)
            {
                return packet_id;
            }
        }
    }

    /// The client has one of our QoS 1 messages.
    fn acknowledged(&mut self, packet_id: NonZeroU16, now: Instant) {
        let Some(call) = self.unacked.remove(&packet_id) else { return };
        if let Some(number) = call {
            self.target.written(number);
        }
        while self.unacked.len() < usize::from(self.receive_maximum) {
            let Some(next) = self.waiting.pop_front() else { break };
            self.send(next.topic, next.payload, next.properties, QoS::AtLeastOnce);
        }
        self.write_calls(now);
        self.close_when_drained();
    }

    /// The socket has taken all that was written.
    pub fn flushed(&mut self) {
        for number in std::mem::take(&mut self.unflushed) {
            self.target.written(number);
        }
        self.close_when_drained();
    }

    /// Time has passed: closes what has run out of it.
    pub fn tick(&mut self, now: Instant) {
        self.target.expire(now);
        if now >= self.last_packet_at + self.keep_alive {
            self.codec.disconnect(
                Reason::KeepAliveTimeout,
                "nothing came within the keep-alive",
                &mut self.out,
            );
            self.close(Ended::KeepAlive);
        }
        self.close_when_drained();
    }

    /// When to call [`tick`](Self::tick) next.
    pub fn next_tick(&self) -> Instant {
        let keep_alive = self.last_packet_at + self.keep_alive;
        self.target.next_expiry().map_or(keep_alive, |expiry| expiry.min(keep_alive))
    }

    /// The node ends this session.
    pub fn end_by_node(&mut self, reason: EndReason) {
        let (code, why) = match reason {
            EndReason::TakenOver => {
                (Reason::SessionTakenOver, "a newer session of this device became callable")
            }
            EndReason::Revoked => {
                (Reason::AdministrativeAction, "the device was removed, reassigned or re-keyed")
            }
            EndReason::ShuttingDown => (Reason::ServerShuttingDown, "this node is shutting down"),
        };
        if !self.closed {
            self.codec.disconnect(code, why, &mut self.out);
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

    /// The node is shutting down: ends once nothing is in flight.
    pub fn drain(&mut self) {
        self.draining = true;
        self.close_when_drained();
    }

    /// True while the loop should read from the socket. A draining session that owes the node no answer reads no
    /// further: a request read now would have to be broken off.
    pub fn wants_input(&self) -> bool {
        !self.draining || !self.target.has_none_open() || !self.unacked.is_empty()
    }

    /// Nothing is in flight in either direction.
    fn is_idle(&self) -> bool {
        self.in_flight == 0
            && self.target.is_idle()
            && self.unflushed.is_empty()
            && self.waiting.is_empty()
            && self.uplinks_in_flight == 0
    }

    fn close_when_drained(&mut self) {
        if self.draining && !self.closed && self.is_idle() {
            self.end_by_node(EndReason::ShuttingDown);
        }
    }

    /// The session is over: what was open is answered. `Lost` where the target may have seen the call, `NotHere`
    /// where it was never written.
    pub fn end(&mut self) {
        self.closed = true;
        for _ in 0..std::mem::take(&mut self.in_flight) {
            self.caller.lock().ended();
        }
        self.target.end();
    }

    fn puback(&mut self, packet_id: Option<NonZeroU16>, reason: PublishAckReason, why: &'static str) {
        if let Some(packet_id) = packet_id {
            self.codec.puback(packet_id, reason, why, &mut self.out);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::target::TargetLimits;
    use proptest::prelude::*;
    use rmqtt_codec::{v3, v5};
    use rpc::{Budget, CallId, DeliveryReply, NodeId};
    use tokio_util::codec::{Decoder, Encoder};

    const MAX: u32 = 65_536;

    fn limits() -> SessionLimits {
        let target = TargetLimits { max_waiting: 4, max_open: 4 };
        SessionLimits {
            device: DeviceLimits { max_calls_per_caller: 4, target, ..DeviceLimits::for_tests() },
            max_subscriptions: 4,
            receive_maximum: 2,
            topic_alias_maximum: 2,
        }
    }

    fn session(version: Version, receive_maximum: u16, now: Instant) -> Session {
        let caller = Arc::new(Mutex::new(CallerLimits::new(now)));
        Session::new(Codec::new(version), Arc::new(limits()), caller, 60, receive_maximum, now)
    }

    fn v3_bytes(packets: impl IntoIterator<Item = v3::Packet>) -> BytesMut {
        let mut bytes = BytesMut::new();
        for packet in packets {
            v3::Codec::new(0).encode(packet, &mut bytes).unwrap();
        }
        bytes
    }

    fn v5_bytes(packet: v5::Packet) -> BytesMut {
        let mut bytes = BytesMut::new();
        v5::Codec::new(0, 0).encode(packet, &mut bytes).unwrap();
        bytes
    }

    fn v3_out(session: &mut Session) -> Vec<v3::Packet> {
        let mut codec = v3::Codec::new(0);
        std::iter::from_fn(|| codec.decode(session.out()).unwrap().map(|(packet, _)| packet)).collect()
    }

    fn v5_out(session: &mut Session) -> Vec<v5::Packet> {
        let mut codec = v5::Codec::new(0, 0);
        std::iter::from_fn(|| codec.decode(session.out()).unwrap().map(|(packet, _)| packet)).collect()
    }

    fn effects(session: &mut Session) -> Vec<Effect> {
        std::iter::from_fn(|| session.next_effect()).collect()
    }

    fn message(topic: &str, packet_id: Option<u16>, payload: &str) -> rmqtt_codec::types::Publish {
        rmqtt_codec::types::Publish {
            dup: false,
            retain: false,
            qos: if packet_id.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce },
            topic: topic.into(),
            packet_id: packet_id.and_then(NonZeroU16::new),
            payload: Bytes::copy_from_slice(payload.as_bytes()),
            properties: None,
        }
    }

    fn subscribe(filter: &str, qos: QoS) -> v3::Packet {
        v3::Packet::Subscribe { packet_id: NonZeroU16::MIN, topic_filters: vec![(filter.into(), qos)] }
    }

    /// Subscribes, and lets the claim stand.
    fn callable(session: &mut Session, filter: &str, qos: QoS, now: Instant) {
        session.received(&mut v3_bytes([subscribe(filter, qos)]), MAX, now);
        for effect in effects(session) {
            if let Effect::Claim(pending) = effect {
                session.claimed(pending, true);
            }
        }
        v3_out(session);
    }

    fn incoming(oneway: bool, budget_ms: u32, now: Instant) -> Box<Incoming> {
        Box::new(Incoming {
            call: CallId { node: NodeId(1), serial: 1 },
            caller: None,
            oneway,
            traceparent: Some("00-1-2-01".into()),
            body: Bytes::from_static(br#"{"x":1}"#),
            deadline: Budget::from_ms(budget_ms).starting(now),
            reply_to: Router { inbox: "swb.reply.1.1".into(), arrived: now, span: Default::default() },
        })
    }

    fn replies(session: &mut Session) -> Vec<(DeliveryReply, Bytes)> {
        effects(session)
            .into_iter()
            .filter_map(|effect| match effect {
                Effect::Conclude(Conclusion { reply, body, .. }) => Some((reply?, body)),
                _ => None,
            })
            .collect()
    }

    const CALL: &str =
        r#"{"method":"sendMsg","params":{"deviceId":"aa435e80-9fce-11e6-8080-808080808080","timeout":2000}}"#;

    #[test]
    fn a_subscribe_is_acknowledged_once_the_claim_stands() {
        let now = Instant::now();
        for (stands, status) in [
            (true, v3::SubscribeReturnCode::Success(QoS::AtLeastOnce)),
            (false, v3::SubscribeReturnCode::Failure),
        ] {
            let mut session = session(Version::V3, 10, now);
            let filter = "v1/devices/me/rpc/request/+";
            session.received(&mut v3_bytes([subscribe(filter, QoS::ExactlyOnce)]), MAX, now);
            assert!(v3_out(&mut session).is_empty());
            let Some(Effect::Claim(pending)) = session.next_effect() else { panic!() };
            session.claimed(pending, stands);
            let [v3::Packet::SubscribeAck { status: said, .. }] = &v3_out(&mut session)[..] else { panic!() };
            assert_eq!(said, &[status]);

            session.deliver(incoming(false, 1000, now), now);
            assert_eq!(replies(&mut session).len(), usize::from(!stands));
        }
    }

    #[test]
    fn a_call_and_its_answer() {
        let now = Instant::now();
        let mut session = session(Version::V3, 10, now);
        let input = [
            subscribe("v1/devices/me/rpc/response/+", QoS::AtMostOnce),
            message("v1/devices/me/rpc/request/7", Some(3), CALL).into(),
        ];
        session.received(&mut v3_bytes(input), MAX, now);
        let [Effect::Ask(ticket, Request::SendMsg { timeout, .. }, None)] = &effects(&mut session)[..] else {
            panic!()
        };
        assert_eq!(timeout.as_ms(), 2000);
        session.answered(ticket, &Outcome::Answered, Bytes::from_static(b" {\"a\" : 1}"));
        let [v3::Packet::SubscribeAck { .. }, v3::Packet::PublishAck { .. }, v3::Packet::Publish(answer)] =
            &v3_out(&mut session)[..]
        else {
            panic!()
        };
        assert_eq!(
            (&*answer.topic, &answer.payload[..]),
            ("v1/devices/me/rpc/response/7", &b" {\"a\" : 1}"[..])
        );
    }

    #[test]
    fn an_answer_without_a_subscription_is_dropped() {
        let now = Instant::now();
        let mut session = session(Version::V3, 10, now);
        session.received(
            &mut v3_bytes([message("v1/devices/me/rpc/request/7", None, CALL).into()]),
            MAX,
            now,
        );
        let [Effect::Ask(ticket, ..)] = &effects(&mut session)[..] else { panic!() };
        session.answered(ticket, &Outcome::Offline, Bytes::new());
        assert!(matches!(effects(&mut session)[..], [Effect::AnswerUnheard]));
        assert!(v3_out(&mut session).is_empty());
    }

    #[test]
    fn a_caller_over_its_limit_reads_so() {
        let now = Instant::now();
        let mut session = session(Version::V3, 10, now);
        callable(&mut session, "v1/devices/me/rpc/response/+", QoS::AtMostOnce, now);
        let calls = (0..5).map(|id| message(&format!("v1/devices/me/rpc/request/{id}"), None, CALL).into());
        session.received(&mut v3_bytes(calls), MAX, now);
        let asks = effects(&mut session).iter().filter(|it| matches!(it, Effect::Ask(..))).count();
        assert_eq!(asks, 4);
        let [v3::Packet::Publish(answer)] = &v3_out(&mut session)[..] else { panic!() };
        assert_eq!(&answer.payload[..], br#"{"error":"Too many requests!"}"#);
    }

    #[test]
    fn a_target_reads_the_call_and_its_answer_goes_back() {
        let now = Instant::now();
        let mut session = session(Version::V3, 10, now);
        callable(&mut session, "v1/devices/me/rpc/request/+", QoS::AtMostOnce, now);
        session.deliver(incoming(false, 1000, now), now);
        let [v3::Packet::Publish(call)] = &v3_out(&mut session)[..] else { panic!() };
        assert_eq!(&*call.topic, "v1/devices/me/rpc/request/1");
        assert_eq!(&call.payload[..], br#"{"method":"onMsg","params":{"x":1}}"#);

        let input = [
            message("v1/devices/me/rpc/response/1", None, "{\"status\": \"ok\"} ").into(),
            message("v1/devices/me/rpc/response/1", None, "{\"twice\":true}").into(),
        ];
        session.received(&mut v3_bytes(input), MAX, now);
        let expected =
            (DeliveryReply::Ended(Outcome::Answered), Bytes::from_static(b"{\"status\": \"ok\"} "));
        assert_eq!(replies(&mut session), [expected]);

        // Not JSON, and 3.1.1 cannot be told.
        session.deliver(incoming(false, 1000, now), now);
        let input = message("v1/devices/me/rpc/response/2", Some(1), "ok").into();
        session.received(&mut v3_bytes([input]), MAX, now);
        assert_eq!(replies(&mut session), [(DeliveryReply::Ended(Outcome::AnswerInvalid), Bytes::new())]);
    }

    #[test]
    fn a_oneway_call_is_delivered_once_the_connection_has_it() {
        let now = Instant::now();
        let delivered = [(DeliveryReply::Ended(Outcome::Delivered), Bytes::new())];
        let mut at_qos_0 = session(Version::V3, 10, now);
        callable(&mut at_qos_0, "v1/devices/me/rpc/request/+", QoS::AtMostOnce, now);
        at_qos_0.deliver(incoming(true, 1000, now), now);
        assert!(replies(&mut at_qos_0).is_empty());
        at_qos_0.flushed();
        assert_eq!(replies(&mut at_qos_0), delivered);

        let mut at_qos_1 = session(Version::V3, 10, now);
        callable(&mut at_qos_1, "v1/devices/me/rpc/request/+", QoS::AtLeastOnce, now);
        at_qos_1.deliver(incoming(true, 1000, now), now);
        at_qos_1.flushed();
        let [v3::Packet::Publish(call)] = &v3_out(&mut at_qos_1)[..] else { panic!() };
        assert!(replies(&mut at_qos_1).is_empty());
        let ack = v3::Packet::PublishAck { packet_id: call.packet_id.unwrap() };
        at_qos_1.received(&mut v3_bytes([ack]), MAX, now);
        assert_eq!(replies(&mut at_qos_1), delivered);
    }

    #[test]
    fn the_clients_receive_maximum_is_kept() {
        let now = Instant::now();
        let mut session = session(Version::V3, 1, now);
        callable(&mut session, "v1/devices/me/rpc/request/+", QoS::AtLeastOnce, now);
        for _ in 0..3 {
            session.deliver(incoming(false, 1000, now), now);
        }
        for number in 1..=3 {
            let [v3::Packet::Publish(call)] = &v3_out(&mut session)[..] else { panic!() };
            assert_eq!(*call.topic, format!("v1/devices/me/rpc/request/{number}"));
            let ack = v3::Packet::PublishAck { packet_id: call.packet_id.unwrap() };
            session.received(&mut v3_bytes([ack]), MAX, now);
        }
        assert!(v3_out(&mut session).is_empty());
    }

    #[test]
    fn what_is_open_when_a_session_ends_is_answered() {
        let now = Instant::now();
        let mut session = session(Version::V3, 1, now);
        callable(&mut session, "v1/devices/me/rpc/request/+", QoS::AtLeastOnce, now);
        for _ in 0..2 {
            session.deliver(incoming(false, 1000, now), now);
        }
        session.end();
        let mut replies = replies(&mut session);
        replies.sort_by_key(|(reply, _)| format!("{reply:?}"));
        // The one that was written may have been seen; the one that waited was not.
        assert_eq!(
            replies,
            [(DeliveryReply::Ended(Outcome::Lost), Bytes::new()), (DeliveryReply::NotHere, Bytes::new())]
        );
    }

    #[test]
    fn a_target_that_hears_one_number_is_called_under_it() {
        let now = Instant::now();
        let mut session = session(Version::V3, 10, now);
        callable(&mut session, "v1/devices/me/rpc/request/42", QoS::AtMostOnce, now);
        session.deliver(incoming(false, 1000, now), now);
        let [v3::Packet::Publish(call)] = &v3_out(&mut session)[..] else { panic!() };
        assert_eq!(&*call.topic, "v1/devices/me/rpc/request/42");
        session.deliver(incoming(false, 1000, now), now);
        let busy = DeliveryReply::Ended(Outcome::Busy(Limit::TargetInFlight));
        assert_eq!(replies(&mut session), [(busy, Bytes::new())]);
    }

    #[test]
    fn an_unsubscribe_releases_the_claim_first() {
        let now = Instant::now();
        let mut session = session(Version::V3, 10, now);
        callable(&mut session, "v1/devices/me/rpc/request/+", QoS::AtMostOnce, now);
        let unsubscribe = v3::Packet::Unsubscribe {
            packet_id: NonZeroU16::MIN,
            topic_filters: vec!["v1/devices/me/rpc/request/+".into()],
        };
        session.received(&mut v3_bytes([unsubscribe]), MAX, now);
        assert!(v3_out(&mut session).is_empty());
        let Some(Effect::Release(pending)) = session.next_effect() else { panic!() };
        session.released(&pending);
        assert!(matches!(v3_out(&mut session)[..], [v3::Packet::UnsubscribeAck { .. }]));
    }

    #[test]
    fn silence_ends_a_session_after_one_and_a_half_keep_alives() {
        let now = Instant::now();
        let mut session = session(Version::V5, 10, now);
        session.received(&mut v5_bytes(v5::Packet::PingRequest), MAX, now + Duration::from_secs(10));
        assert_eq!(session.next_tick(), now + Duration::from_secs(100));
        session.tick(now + Duration::from_secs(99));
        assert!(effects(&mut session).is_empty());
        session.tick(now + Duration::from_secs(100));
        assert!(matches!(effects(&mut session)[..], [Effect::Close(Ended::KeepAlive)]));
        let out = v5_out(&mut session);
        let [v5::Packet::PingResponse, v5::Packet::Disconnect(disconnect)] = &out[..] else {
            panic!("{out:?}")
        };
        assert_eq!(disconnect.reason_code, Reason::KeepAliveTimeout);
    }

    #[test]
    fn a_v5_request_has_its_properties_honoured() {
        let now = Instant::now();
        let mut session = session(Version::V5, 10, now);
        let subscribe = v5::Subscribe {
            packet_id: NonZeroU16::MIN,
            id: None,
            user_properties: Vec::new(),
            topic_filters: vec![("v1/devices/me/rpc/response/#".into(), Default::default())],
        };
        session.received(&mut v5_bytes(v5::Packet::Subscribe(subscribe)), MAX, now);
        let mut call = message("v1/devices/me/rpc/request/7", None, CALL);
        call.properties = Some(v5::PublishProperties {
            topic_alias: NonZeroU16::new(2),
            correlation_data: Some(Bytes::from_static(b"c")),
            message_expiry_interval: std::num::NonZeroU32::new(1),
            response_topic: Some("v1/devices/me/rpc/response/mine".into()),
            user_properties: vec![("traceparent".into(), "00-1-2-01".into())],
            ..Default::default()
        });
        session.received(&mut v5_bytes(v5::Packet::Publish(Box::new(call.clone()))), MAX, now);
        // The alias stands for the topic now.
        call.topic = ByteString::new();
        session.received(&mut v5_bytes(v5::Packet::Publish(Box::new(call))), MAX, now);
        let effects = effects(&mut session);
        let [Effect::Ask(ticket, Request::SendMsg { timeout, .. }, Some(trace)), Effect::Ask(..)] =
            &effects[..]
        else {
            panic!("{effects:?}")
        };
        assert_eq!((timeout.as_ms(), &**trace), (1000, "00-1-2-01"));
        session.answered(ticket, &Outcome::TimedOut, Bytes::new());
        let out = v5_out(&mut session);
        let [v5::Packet::SubscribeAck(_), v5::Packet::Publish(answer)] = &out[..] else { panic!("{out:?}") };
        assert_eq!(&*answer.topic, "v1/devices/me/rpc/response/mine");
        let correlation = answer.properties.as_ref().unwrap().correlation_data.clone();
        assert_eq!(correlation, Some(Bytes::from_static(b"c")));
    }

    #[test]
    fn a_v5_client_is_told_why() {
        let now = Instant::now();
        let table = [
            (message("elsewhere", None, ""), None, Some(Reason::TopicNameInvalid)),
            (message("elsewhere", Some(1), ""), Some(PublishAckReason::TopicNameInvalid), None),
            (
                message("v1/devices/me/rpc/response/9", Some(1), "{}"),
                Some(PublishAckReason::NoMatchingSubscribers),
                None,
            ),
        ];
        for (publish, puback, disconnect) in table {
            let mut session = session(Version::V5, 10, now);
            session.received(&mut v5_bytes(v5::Packet::Publish(Box::new(publish))), MAX, now);
            let out = v5_out(&mut session);
            match &out[..] {
                [v5::Packet::PublishAck(ack)] => assert_eq!(Some(ack.reason_code), puback),
                [v5::Packet::Disconnect(said)] => assert_eq!(Some(said.reason_code), disconnect),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_draining_session_ends_when_its_last_call_has() {
        let now = Instant::now();
        let mut session = session(Version::V3, 10, now);
        callable(&mut session, "v1/devices/me/rpc/request/+", QoS::AtMostOnce, now);
        session.deliver(incoming(false, 1000, now), now);
        session.drain();
        assert!(effects(&mut session).is_empty() && session.wants_input());
        session.received(
            &mut v3_bytes([message("v1/devices/me/rpc/response/1", None, "1").into()]),
            MAX,
            now,
        );
        let effects = effects(&mut session);
        assert!(
            matches!(
                effects[..],
                [Effect::Conclude(..), Effect::Close(Ended::ByNode(EndReason::ShuttingDown))]
            ),
            "{effects:?}"
        );
    }

    proptest! {
        /// Every delivery that is not out of time is answered exactly once, whatever the client does.
        #[test]
        fn every_delivery_ends_once(steps in proptest::collection::vec((0u8..6, 1u32..6, 0u64..400), 1..60), qos in 0u8..2) {
            let mut now = Instant::now();
            let mut session = session(Version::V3, 2, now);
            let qos = QoS::try_from(qos).unwrap();
            callable(&mut session, "v1/devices/me/rpc/request/+", qos, now);
            let (mut delivered, mut ended) = (0usize, 0usize);
            for (step, number, gap_ms) in steps {
                now += Duration::from_millis(gap_ms);
                session.tick(now);
                match step {
                    0 | 1 => {
                        session.deliver(incoming(step == 1, 60_000, now), now);
                        delivered += 1;
                    }
                    2 => {
                        let topic = format!("v1/devices/me/rpc/response/{number}");
                        session.received(&mut v3_bytes([message(&topic, None, "{}").into()]), MAX, now);
                    }
                    3 => session.flushed(),
                    4 => {
                        let packet_id = NonZeroU16::new(number as u16).unwrap();
                        session.received(&mut v3_bytes([v3::Packet::PublishAck { packet_id }]), MAX, now);
                    }
                    _ => session.received(&mut v3_bytes([v3::Packet::PingRequest]), MAX, now),
                }
                session.out().clear();
                ended += replies(&mut session).len();
                prop_assert!(ended <= delivered);
            }
            session.end();
            ended += replies(&mut session).len();
            prop_assert_eq!(ended, delivered);
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let now = Instant::now();
            for version in [Version::V3, Version::V5] {
                session(version, 2, now).received(&mut BytesMut::from(&bytes[..]), MAX, now);
            }
        }
    }
}
