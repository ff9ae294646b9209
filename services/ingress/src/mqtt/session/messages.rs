//! What becomes of a message from the client? It is known again, taken by its topic, and acknowledged; where there is
//! no room for it, MQTT 5 is told so at QoS 1, and who cannot be told is not read until there is.

use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use bytes::Bytes;
use bytestring::ByteString;
use rpc::{Limit, UplinkKind};

use super::{Effect, Held, Session};
use crate::device::caller::RefusedUplink;
use crate::metrics::Dropped;
use crate::mqtt::codec::{Fault, Publish, PublishAckReason, PublishProperties, QoS, Reason, Version};
use crate::mqtt::filter::Topic;
use crate::mqtt::inbound::Arrival;

impl Session {
    pub(super) fn publish(&mut self, mut publish: Publish, now: Instant) -> Result<(), Fault> {
        self.resolve_alias(&mut publish)?;
        match self.inbound.arrives(&publish, now) {
            Arrival::New => self.take(publish, now),
            Arrival::UnderWay => Ok(()),
            Arrival::Done => {
                self.acknowledge(publish.packet_id, publish.qos, PublishAckReason::Success, "");
                Ok(())
            }
            Arrival::TooMany => {
                let what = "more messages at QoS 2 than may wait for their PUBREL";
                Err(Fault { reason: Reason::ReceiveMaximumExceeded, what })
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

    /// Does what a new message is for.
    pub(super) fn take(&mut self, publish: Publish, now: Instant) -> Result<(), Fault> {
        match Topic::parse(&publish.topic) {
            Topic::Uplink(kind) => return self.uplink(kind, publish, now),
            Topic::Request(id) => {
                self.done(&publish, PublishAckReason::Success, "", now);
                self.request(id, publish, now);
            }
            Topic::Response(number) => self.response(number, &publish, now),
            Topic::AttributesRequest(id) => {
                self.done(&publish, PublishAckReason::Success, "", now);
                self.answer_attributes(id);
            }
            Topic::Foreign => {
                self.count_dropped(Dropped::ForeignTopic, &publish.topic);
                let why = "the topic is none of the device API's";
                self.refuse_message(&publish, PublishAckReason::TopicNameInvalid, why, now);
            }
        }
        Ok(())
    }

    /// A message that was read past (3.1.1): it is acknowledged, for its client would send it again for ever. Who
    /// waits for what it said is told.
    pub(super) fn too_large(
        &mut self,
        topic: ByteString,
        qos: QoS,
        packet_id: Option<NonZeroU16>,
        now: Instant,
    ) -> Result<(), Fault> {
        let (payload, properties) = (Bytes::new(), PublishProperties::default());
        let publish = Publish { topic, qos, dup: false, packet_id, payload, properties };
        self.effects.push_back(Effect::LimitHit(Limit::PacketBytes));
        self.count_dropped(Dropped::TooLarge, &publish.topic);
        match Topic::parse(&publish.topic) {
            Topic::Request(id) => self.request_was_too_large(id, now),
            Topic::Response(number) => self.target.answer_too_large(number, now),
            Topic::Uplink(_) | Topic::AttributesRequest(_) | Topic::Foreign => {}
        }
        self.done(&publish, PublishAckReason::Success, "", now);
        self.close_when_drained();
        Ok(())
    }

    fn uplink(&mut self, kind: UplinkKind, publish: Publish, now: Instant) -> Result<(), Fault> {
        let (version, at_most_once) = (self.codec.version(), publish.qos == QoS::AtMostOnce);
        if !at_most_once && self.inbound.under_way() >= usize::from(self.limits.receive_maximum) {
            if version == Version::V5 {
                let what = "more unacknowledged messages than the Receive Maximum";
                return Err(Fault { reason: Reason::ReceiveMaximumExceeded, what });
            }
            self.held = Some(Box::new(Held { publish, until: None }));
            return Ok(());
        }
        let admitted = self.caller.lock().uplink(&publish.payload, &self.limits.device, now);
        match admitted {
            Ok(()) => {
                self.inbound.begin(&publish);
                self.effects.push_back(Effect::Uplink(kind, publish.payload, publish.packet_id));
            }
            Err(RefusedUplink::NotJson) => {
                self.count_dropped(Dropped::NotJson, &publish.topic);
                let why = "telemetry and attributes must be JSON in UTF-8";
                self.refuse_message(&publish, PublishAckReason::PayloadFormatInvalid, why, now);
            }
            Err(RefusedUplink::TooOften(limit)) => {
                self.effects.push_back(Effect::LimitHit(limit));
                if version == Version::V5 && !at_most_once {
                    let why = "too many messages a second";
                    self.refuse_message(&publish, PublishAckReason::QuotaExceeded, why, now);
                } else {
                    let token = Duration::from_secs(1) / self.limits.device.uplink_rate.per_second.max(1);
                    self.held = Some(Box::new(Held { publish, until: Some(now + token) }));
                }
            }
        }
        Ok(())
    }

    /// Whether NATS took an [`Effect::Uplink`] with this packet id.
    pub fn uplinked(&mut self, packet_id: NonZeroU16, taken: bool, now: Instant) {
        let Some((qos, copies)) = self.inbound.end(packet_id, taken, now) else { return };
        let (reason, why) = match taken {
            true => (PublishAckReason::Success, ""),
            false => (PublishAckReason::UnspecifiedError, "the message could not be handed on"),
        };
        if !taken && self.codec.version() == Version::V3 {
            // 3.1.1 can only be told by closing: unacknowledged, the message stays the client's to send again.
            self.fault(Fault { reason: Reason::UnspecifiedError, what: why });
        } else {
            (0..copies).for_each(|_| self.acknowledge(Some(packet_id), qos, reason, why));
        }
        self.close_when_drained();
    }

    /// A new message is done: acknowledges it.
    pub(super) fn done(
        &mut self,
        publish: &Publish,
        reason: PublishAckReason,
        why: &'static str,
        now: Instant,
    ) {
        self.inbound.done(publish, now);
        self.acknowledge(publish.packet_id, publish.qos, reason, why);
    }

    /// A message is dropped: MQTT 5 is told why at QoS 1, and may send it again; 3.1.1 is to forget it.
    pub(super) fn refuse_message(
        &mut self,
        publish: &Publish,
        reason: PublishAckReason,
        why: &'static str,
        now: Instant,
    ) {
        match self.codec.version() {
            Version::V3 => self.done(publish, reason, why, now),
            Version::V5 => self.acknowledge(publish.packet_id, publish.qos, reason, why),
        }
    }

    pub(super) fn count_dropped(&mut self, why: Dropped, topic: &ByteString) {
        let bit = 1 << why as u8;
        let topic = (self.told & bit == 0).then(|| ByteString::from(&**topic));
        self.told |= bit;
        self.effects.push_back(Effect::Dropped(why, topic));
    }

    fn acknowledge(
        &mut self,
        packet_id: Option<NonZeroU16>,
        qos: QoS,
        reason: PublishAckReason,
        why: &'static str,
    ) {
        match (packet_id, qos) {
            (Some(packet_id), QoS::ExactlyOnce) => self.codec.pubrec(packet_id, &mut self.out),
            (Some(packet_id), _) => self.codec.puback(packet_id, reason, why, &mut self.out),
            (None, _) => {}
        }
    }
}
