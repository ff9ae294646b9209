//! How does a caller ask, and read its answer? Whatever it asked, it reads something: what fits of the answer, of what
//! is said about it, or of that one's name.

use std::time::Instant;

use bytes::Bytes;
use bytestring::ByteString;
use rpc::{CallId, Limit, Method, Outcome};

use super::{Effect, Session};
use crate::calls;
use crate::device::caller::RefusedRequest;
use crate::device_api::{self, Request};
use crate::mqtt::codec::{Publish, PublishProperties, QoS, Version};
use crate::mqtt::filter::{attributes_response_topic, is_response_topic, response_topic};
use crate::mqtt::outbound::Outgoing;

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

impl Session {
    pub(super) fn request(&mut self, id: u32, publish: Publish, now: Instant) {
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
        let refused = match properties.expiry_s {
            _ if !topic_is_ours => Some(Outcome::malformed(RESPONSE_TOPIC)),
            Some(0) => Some(Outcome::TimedOut),
            _ => None,
        };
        if let Some(outcome) = refused {
            self.caller.lock().ended();
            return self.refuse(&ticket, outcome);
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

    /// A request was read past: its caller would wait for nothing.
    pub(super) fn request_was_too_large(&mut self, id: u32, now: Instant) {
        let (method, topic) = (Method::Other, ResponseTopic::Of(id));
        let ticket = Ticket { method, started: now, topic, correlation: None };
        self.refuse(&ticket, Outcome::malformed("it is larger than a message may be"));
    }

    /// Answers a request that goes no further.
    fn refuse(&mut self, ticket: &Ticket, outcome: Outcome) {
        if let Outcome::Busy(limit) = outcome {
            self.effects.push_back(Effect::LimitHit(limit));
        }
        let told = self.answer(ticket, calls::Ended::here(outcome, Bytes::new()));
        self.effects.push_back(Effect::Refused(ticket.method, told));
    }

    /// The end of an [`Effect::Ask`]. How it was told: an answer may be too large for the client.
    pub fn answered(&mut self, ticket: &Ticket, ended: calls::Ended) -> Outcome {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.caller.lock().ended();
        self.paced_until = self.paced_until.max(ended.paced_until);
        let told = self.answer(ticket, ended);
        self.close_when_drained();
        told
    }

    fn answer(&mut self, ticket: &Ticket, ended: calls::Ended) -> Outcome {
        let calls::Ended { outcome, body, call, paced_until: _ } = ended;
        let topic = match &ticket.topic {
            ResponseTopic::Of(id) => response_topic(*id),
            ResponseTopic::Given(topic) => topic.clone(),
        };
        let Some(qos) = self.subscriptions.response_qos(&topic) else {
            self.effects.push_back(Effect::AnswerUnheard);
            return outcome;
        };
        let text = device_api::answer(ticket.method, &outcome, body);
        let correlation = ticket.correlation.as_ref();
        if self.fit(&topic, text, &outcome, call, correlation, qos) {
            return outcome;
        }
        self.effects.push_back(Effect::LimitHit(Limit::PacketBytes));
        let told = match outcome {
            // Only what somebody else said can be too large: what is said of it is not the same.
            Outcome::Answered => Outcome::AnswerTooLarge,
            outcome => outcome,
        };
        let text = device_api::answer(ticket.method, &told, Bytes::new());
        let shortest = Bytes::from_static(b"{}");
        let _ = self.fit(&topic, text, &told, call, correlation, qos)
            || self.fit(&topic, shortest.clone(), &told, None, correlation, qos)
            // Below that the standard has the client hear nothing.
            || self.fit(&topic, shortest, &told, None, None, qos);
        told
    }

    /// Sends an answer with its outcome's name and its call's id beside it, or without them. False when it is too large
    /// for the client even so.
    fn fit(
        &mut self,
        topic: &ByteString,
        payload: Bytes,
        outcome: &Outcome,
        call: Option<CallId>,
        correlation: Option<&Bytes>,
        qos: QoS,
    ) -> bool {
        let bare = PublishProperties { correlation: correlation.cloned(), ..Default::default() };
        let stamp = match self.codec.version() {
            Version::V3 => Vec::new(),
            Version::V5 => {
                let name = ("outcome", ByteString::from_static(outcome.as_str()));
                let call = call.map(|call| ("call", ByteString::from(call.to_string())));
                std::iter::once(name).chain(call).collect()
            }
        };
        let stamped = PublishProperties { stamp, ..bare.clone() };
        let fits = |it: &PublishProperties| self.codec.fits(topic, qos, payload.len(), it);
        let Some(properties) = [stamped, bare].into_iter().find(fits) else { return false };
        self.send(Outgoing { topic: topic.clone(), payload, properties }, qos);
        true
    }

    /// Answers a request for attributes: none are kept.
    pub(super) fn answer_attributes(&mut self, id: u32) {
        let Some(qos) = self.subscriptions.attributes_response_qos() else { return };
        let (topic, payload) = (attributes_response_topic(id), Bytes::from_static(b"{}"));
        let properties = PublishProperties::default();
        if self.codec.fits(&topic, qos, payload.len(), &properties) {
            self.send(Outgoing { topic, payload, properties }, qos);
        }
    }

    /// Sends an answer that fits, at once or when the client's Receive Maximum allows.
    fn send(&mut self, outgoing: Outgoing, qos: QoS) {
        if qos != QoS::AtMostOnce && self.outbound.is_full() {
            self.outbound.wait(outgoing);
        } else {
            self.write(outgoing, qos, None);
        }
    }

    /// Writes a message that fits and that the client's Receive Maximum allows.
    pub(super) fn write(&mut self, outgoing: Outgoing, qos: QoS, call: Option<u32>) {
        let Outgoing { topic, payload, properties } = outgoing;
        let packet_id = (qos != QoS::AtMostOnce).then(|| self.outbound.next_packet_id());
        self.codec.publish(topic, packet_id, payload, properties, &mut self.out);
        if let Some(packet_id) = packet_id {
            self.outbound.written(packet_id, call);
        }
    }
}

const RESPONSE_TOPIC: &str = "the Response Topic must be within v1/devices/me/rpc/response/";
