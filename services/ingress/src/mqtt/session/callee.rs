//! How is this device called? Its calls are written as its subscriptions and its Receive Maximum have it, with who
//! calls beside them; its answers go back.

use std::time::Instant;

use bytestring::ByteString;

use super::Session;
use crate::device::mailbox::Incoming;
use crate::device::target::AnswerTaken;
use crate::metrics::Dropped;
use crate::mqtt::codec::{Publish, PublishAckReason, PublishProperties, QoS, Version};
use crate::mqtt::filter::{request_topic, response_topic};
use crate::mqtt::outbound::Outgoing;

impl Session {
    /// A call for this device.
    pub fn deliver(&mut self, call: Box<Incoming>, now: Instant) {
        self.target.deliver(call, now);
        self.write_calls(now);
    }

    /// Writes the calls that wait, as far as the client's Receive Maximum allows.
    pub(super) fn write_calls(&mut self, now: Instant) {
        loop {
            if self.outbound.is_full() && self.subscriptions.acknowledges_calls() {
                return;
            }
            let next = match self.subscriptions.hears_any_call() {
                true => self.target.next(now),
                false => self.target.next_among(self.subscriptions.exact_calls(), now),
            };
            let Some((number, call)) = next else { return };
            let qos = self.subscriptions.request_qos(number).unwrap_or(QoS::AtMostOnce);
            let oneway = call.oneway;
            let bare = PublishProperties {
                response_topic: match self.codec.version() {
                    Version::V5 if !oneway => Some(response_topic(number)),
                    Version::V3 | Version::V5 => None,
                },
                traceparent: call.traceparent.as_deref().map(ByteString::from),
                ..Default::default()
            };
            let topic = request_topic(number);
            let payload = call.message(None, self.limits.device.tells_caller, now);
            let stamped = match self.codec.version() {
                Version::V3 => bare.clone(),
                Version::V5 => PublishProperties { stamp: stamp(call, now), ..bare.clone() },
            };
            let fits = |it: &PublishProperties| self.codec.fits(&topic, qos, payload.len(), it);
            let Some(properties) = [stamped, bare].into_iter().find(fits) else {
                self.target.too_large(number);
                continue;
            };
            self.write(Outgoing { topic, payload, properties }, qos, Some(number));
            match qos {
                QoS::AtMostOnce if oneway => self.target.in_the_buffer(number),
                QoS::AtMostOnce => self.target.written(number),
                QoS::AtLeastOnce | QoS::ExactlyOnce => {}
            }
        }
    }

    pub(super) fn response(&mut self, number: u32, publish: &Publish, now: Instant) {
        let is_told = publish.packet_id.is_some() && self.codec.version() == Version::V5;
        let (reason, why) = match self.target.answer(number, &publish.payload, is_told, now) {
            AnswerTaken::Yes => (PublishAckReason::Success, ""),
            AnswerTaken::NoSuchCall => (PublishAckReason::NoMatchingSubscribers, "no such call is open"),
            AnswerTaken::OneWay => (PublishAckReason::NoMatchingSubscribers, "the call is one-way"),
            AnswerTaken::NotJson => {
                self.count_dropped(Dropped::NotJson, &publish.topic);
                let why = "an answer must be JSON in UTF-8; the call is still open";
                return self.refuse_message(publish, PublishAckReason::PayloadFormatInvalid, why, now);
            }
        };
        self.done(publish, reason, why, now);
        self.close_when_drained();
    }
}

/// Who calls, and how long there is to answer: the node's word, never a client's.
fn stamp(call: &Incoming, now: Instant) -> Vec<(&'static str, ByteString)> {
    let mut stamp = Vec::with_capacity(4);
    if let Some(caller) = &call.caller {
        stamp.push(("caller", caller.id.to_string().into()));
        if !caller.name.is_empty() {
            stamp.push(("caller-name", caller.name.as_str().into()));
        }
    }
    stamp.push(("call", call.call.to_string().into()));
    stamp.push(("expires-ms", call.deadline.remaining(now).as_ms().to_string().into()));
    stamp
}
