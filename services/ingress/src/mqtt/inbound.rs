//! Which of the client's messages do we have already? What it sends again is done once, and acknowledged again.
//!
//! At QoS 1 a packet id is ours from its PUBLISH until the client has read our PUBACK, which nobody tells us. A copy
//! that comes before the socket has the PUBACK is a copy whatever its DUP flag says; one that comes later is one only
//! when it says so and is the same to the byte: the PUBACK was on its way. That is stricter than §4.3.2, after which
//! it would be a new message: a call must not be carried out twice. At QoS 2 an id is ours until PUBREL (§4.3.3).

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroU16;
use std::time::{Duration, Instant};

use super::codec::{Publish, QoS};

/// How long an acknowledged message is known again, and how many of them are.
const KNOWN_FOR: Duration = Duration::from_secs(60);
const MAX_KNOWN: usize = 128;

/// QoS 2 messages that a client may have sent without releasing one.
const MAX_UNRELEASED: usize = 4096;

/// What a message is that has a packet id.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// Not seen before.
    New,
    /// A copy of one that is still being done: it is acknowledged with that one.
    UnderWay,
    /// A copy of one that is done: to be acknowledged again.
    Done,
    /// More messages at QoS 2 than a client may leave unreleased.
    TooMany,
}

/// A client's messages at QoS 1 and 2.
#[derive(Debug, Default)]
pub(super) struct Inbound {
    /// None: there are none. Most clients never send one.
    messages: Option<Box<Messages>>,
}

#[derive(Debug, Default)]
struct Messages {
    under_way: BTreeMap<NonZeroU16, UnderWay>,
    known: VecDeque<Known>,
    unreleased: BTreeSet<NonZeroU16>,
}

/// A message that is not acknowledged yet.
#[derive(Debug)]
struct UnderWay {
    mark: u64,
    qos: QoS,
    copies: u16,
}

/// A message at QoS 1 that has been acknowledged.
#[derive(Debug)]
struct Known {
    packet_id: NonZeroU16,
    mark: u64,
    at: Instant,
    /// The socket has its PUBACK.
    is_sent: bool,
}

impl Inbound {
    /// A message comes; its topic alias has been resolved. A new one is to be ended by [`done`](Self::done) or
    /// [`refused`](Self::refused), at once or after [`begin`](Self::begin).
    pub(super) fn arrives(&mut self, publish: &Publish, now: Instant) -> Arrival {
        let Some(packet_id) = publish.packet_id else { return Arrival::New };
        self.forget(now);
        let Some(messages) = &mut self.messages else { return Arrival::New };
        let mark = mark(publish);
        if publish.qos == QoS::ExactlyOnce && messages.unreleased.contains(&packet_id) {
            return Arrival::Done;
        }
        if let Some(message) = messages.under_way.get_mut(&packet_id)
            && (message.mark == mark || publish.qos == QoS::ExactlyOnce)
        {
            message.copies = message.copies.saturating_add(1);
            return Arrival::UnderWay;
        }
        if publish.qos == QoS::ExactlyOnce {
            let full = messages.unreleased.len() + messages.under_way.len() >= MAX_UNRELEASED;
            return if full { Arrival::TooMany } else { Arrival::New };
        }
        let same = |it: &Known| it.packet_id == packet_id && it.mark == mark && (publish.dup || !it.is_sent);
        if messages.known.iter().any(same) { Arrival::Done } else { Arrival::New }
    }

    /// A new message is being done.
    pub(super) fn begin(&mut self, publish: &Publish) {
        let Some(packet_id) = publish.packet_id else { return };
        let (mark, qos) = (mark(publish), publish.qos);
        // An id that is used for another message too early: both are acknowledged with the one that ends first.
        let messages = self.messages.get_or_insert_default();
        let message = messages.under_way.entry(packet_id).or_insert(UnderWay { mark, qos, copies: 0 });
        *message = UnderWay { mark, qos, copies: message.copies.saturating_add(1) };
    }

    /// How many messages are being done.
    pub(super) fn under_way(&self) -> usize {
        self.messages.as_ref().map_or(0, |messages| messages.under_way.len())
    }

    /// A message that was being done is done. How it is to be acknowledged, and how often.
    pub(super) fn end(&mut self, packet_id: NonZeroU16, taken: bool, now: Instant) -> Option<(QoS, u16)> {
        let UnderWay { mark, qos, copies } = self.messages.as_mut()?.under_way.remove(&packet_id)?;
        if taken {
            self.know(packet_id, qos, mark, now);
        }
        Some((qos, copies))
    }

    /// A new message was done at once.
    pub(super) fn done(&mut self, publish: &Publish, now: Instant) {
        if let Some(packet_id) = publish.packet_id {
            self.know(packet_id, publish.qos, mark(publish), now);
        }
    }

    /// The client lets go of a message at QoS 2: its id is free again.
    pub(super) fn released(&mut self, packet_id: NonZeroU16) {
        if let Some(messages) = &mut self.messages {
            messages.unreleased.remove(&packet_id);
        }
    }

    /// The socket has all that was written.
    pub(super) fn flushed(&mut self) {
        let known = self.messages.iter_mut().flat_map(|messages| messages.known.iter_mut().rev());
        known.take_while(|it| !it.is_sent).for_each(|it| it.is_sent = true);
    }

    /// Forgets what will not come again: an idle session keeps no heap.
    pub(super) fn forget(&mut self, now: Instant) {
        let Some(messages) = &mut self.messages else { return };
        while messages.known.front().is_some_and(|it| now >= it.at + KNOWN_FOR) {
            messages.known.pop_front();
        }
        if messages.known.is_empty() && messages.under_way.is_empty() && messages.unreleased.is_empty() {
            self.messages = None;
        }
    }

    fn know(&mut self, packet_id: NonZeroU16, qos: QoS, mark: u64, now: Instant) {
        let messages = self.messages.get_or_insert_default();
        if qos == QoS::ExactlyOnce {
            messages.unreleased.insert(packet_id);
            return;
        }
        messages.known.retain(|it| it.packet_id != packet_id);
        if messages.known.len() >= MAX_KNOWN {
            messages.known.pop_front();
        }
        messages.known.push_back(Known { packet_id, mark, at: now, is_sent: false });
    }
}

/// Tells a message from others under the same id.
fn mark(publish: &Publish) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&*publish.topic, &*publish.payload, publish.qos).hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(packet_id: u16, qos: QoS, payload: &'static str, dup: bool) -> Publish {
        Publish {
            topic: "t".into(),
            qos,
            dup,
            packet_id: NonZeroU16::new(packet_id),
            payload: payload.into(),
            properties: Default::default(),
        }
    }

    fn at_1(packet_id: u16, payload: &'static str, dup: bool) -> Publish {
        message(packet_id, QoS::AtLeastOnce, payload, dup)
    }

    fn at_2(packet_id: u16, payload: &'static str) -> Publish {
        message(packet_id, QoS::ExactlyOnce, payload, false)
    }

    #[test]
    fn a_copy_is_known_by_its_id_and_its_bytes_until_its_puback_is_with_the_socket() {
        let now = Instant::now();
        let mut inbound = Inbound::default();
        assert_eq!(inbound.arrives(&at_1(9, "a", false), now), Arrival::New);
        inbound.done(&at_1(9, "a", false), now);
        for dup in [false, true] {
            assert_eq!(inbound.arrives(&at_1(9, "a", dup), now), Arrival::Done);
            assert_eq!(inbound.arrives(&at_1(9, "b", dup), now), Arrival::New, "other bytes");
            assert_eq!(inbound.arrives(&at_1(8, "a", dup), now), Arrival::New, "another id");
        }
        let other_topic = Publish { topic: "u".into(), ..at_1(9, "a", true) };
        assert_eq!(inbound.arrives(&other_topic, now), Arrival::New);
    }

    #[test]
    fn afterwards_it_is_a_copy_only_if_it_says_so_and_not_for_ever() {
        let now = Instant::now();
        let mut inbound = Inbound::default();
        inbound.done(&at_1(9, "a", false), now);
        inbound.done(&at_1(10, "a", false), now);
        inbound.flushed();
        for packet_id in [9, 10] {
            assert_eq!(inbound.arrives(&at_1(packet_id, "a", true), now), Arrival::Done);
            assert_eq!(inbound.arrives(&at_1(packet_id, "a", false), now), Arrival::New);
        }
        let later = now + KNOWN_FOR;
        let sooner = later - Duration::from_millis(1);
        assert_eq!(inbound.arrives(&at_1(9, "a", true), sooner), Arrival::Done);
        assert_eq!(inbound.arrives(&at_1(9, "a", true), later), Arrival::New);
        assert!(inbound.messages.is_none());
    }

    #[test]
    fn an_id_that_is_used_again_stands_for_its_new_message() {
        let now = Instant::now();
        let mut inbound = Inbound::default();
        inbound.done(&at_1(9, "a", false), now);
        inbound.flushed();
        inbound.done(&at_1(9, "b", false), now);
        inbound.flushed();
        assert_eq!(inbound.arrives(&at_1(9, "b", true), now), Arrival::Done);
        assert_eq!(inbound.arrives(&at_1(9, "a", true), now), Arrival::New);
    }

    #[test]
    fn copies_of_what_is_under_way_are_acknowledged_with_it() {
        let now = Instant::now();
        let mut inbound = Inbound::default();
        let id = NonZeroU16::new(9).unwrap();
        for taken in [false, true] {
            assert_eq!(inbound.arrives(&at_1(9, "a", false), now), Arrival::New);
            inbound.begin(&at_1(9, "a", false));
            assert_eq!(inbound.arrives(&at_1(9, "a", false), now), Arrival::UnderWay);
            assert_eq!(inbound.arrives(&at_1(9, "a", true), now), Arrival::UnderWay);
            assert_eq!(inbound.under_way(), 1);
            assert_eq!(inbound.end(id, taken, now), Some((QoS::AtLeastOnce, 3)));
            assert_eq!(inbound.end(id, taken, now), None);
            // What was not taken is the client's to send again.
            let expected = if taken { Arrival::Done } else { Arrival::New };
            assert_eq!(inbound.arrives(&at_1(9, "a", true), now), expected);
        }
    }

    #[test]
    fn an_id_that_is_used_too_early_is_acknowledged_as_often_as_it_came() {
        let now = Instant::now();
        let mut inbound = Inbound::default();
        for payload in ["a", "b"] {
            assert_eq!(inbound.arrives(&at_1(9, payload, false), now), Arrival::New);
            inbound.begin(&at_1(9, payload, false));
        }
        assert_eq!(inbound.end(NonZeroU16::new(9).unwrap(), true, now), Some((QoS::AtLeastOnce, 2)));
    }

    #[test]
    fn a_message_at_qos_2_is_one_until_it_is_released() {
        let now = Instant::now();
        let mut inbound = Inbound::default();
        let id = NonZeroU16::new(9).unwrap();
        assert_eq!(inbound.arrives(&at_2(9, "a"), now), Arrival::New);
        inbound.begin(&at_2(9, "a"));
        assert_eq!(inbound.arrives(&at_2(9, "a"), now), Arrival::UnderWay);
        assert_eq!(inbound.end(id, true, now), Some((QoS::ExactlyOnce, 2)));
        inbound.flushed();
        let much_later = now + KNOWN_FOR * 10;
        assert_eq!(inbound.arrives(&at_2(9, "a"), much_later), Arrival::Done);
        assert_eq!(inbound.arrives(&at_2(9, "b"), much_later), Arrival::Done);
        inbound.released(id);
        assert_eq!(inbound.arrives(&at_2(9, "a"), much_later), Arrival::New);
        inbound.done(&at_2(9, "a"), much_later);
        assert_eq!(inbound.arrives(&at_2(9, "a"), much_later), Arrival::Done);
    }

    #[test]
    fn memory_is_bounded() {
        let now = Instant::now();
        let mut inbound = Inbound::default();
        for id in 1..=u16::MAX {
            inbound.done(&at_1(id, "a", false), now);
        }
        assert_eq!(inbound.messages.as_ref().unwrap().known.len(), MAX_KNOWN);
        let mut taken = 0;
        for id in 1..=u16::MAX {
            match inbound.arrives(&at_2(id, "a"), now) {
                Arrival::New => inbound.done(&at_2(id, "a"), now),
                arrival => {
                    assert_eq!(arrival, Arrival::TooMany);
                    break;
                }
            }
            taken += 1;
        }
        assert_eq!(taken, MAX_UNRELEASED);
        inbound.released(NonZeroU16::MIN);
        assert_eq!(inbound.arrives(&at_2(u16::MAX, "a"), now), Arrival::New);
    }

    #[test]
    fn what_has_no_id_is_always_new() {
        let now = Instant::now();
        let mut inbound = Inbound::default();
        for _ in 0..2 {
            let publish = message(0, QoS::AtMostOnce, "a", false);
            assert_eq!(inbound.arrives(&publish, now), Arrival::New);
            inbound.begin(&publish);
            inbound.done(&publish, now);
        }
        assert!(inbound.messages.is_none());
    }

    proptest! {
        /// A client that reuses an id only once it has read its acknowledgement, and says DUP when it sends again, has
        /// every message done exactly once, however late the acknowledgement reaches it.
        #[test]
        fn every_message_is_done_once(
            steps in proptest::collection::vec((1u16..4, 0u8..4, any::<bool>()), 1..200),
        ) {
            let now = Instant::now();
            let mut inbound = Inbound::default();
            let mut sent: BTreeMap<u16, Publish> = BTreeMap::new();
            let mut texts = (0u32..).map(|it| it.to_string());
            for (id, step, flushes) in steps {
                if step == 0 {
                    // A new message, whose id the client has heard to be free.
                    inbound.flushed();
                    let publish = Publish { payload: texts.next().unwrap().into(), ..at_1(id, "", false) };
                    prop_assert_eq!(inbound.arrives(&publish, now), Arrival::New);
                    inbound.done(&publish, now);
                    sent.insert(id, publish);
                } else if let Some(publish) = sent.get(&id) {
                    let again = Publish { dup: true, ..publish.clone() };
                    prop_assert_eq!(inbound.arrives(&again, now), Arrival::Done);
                }
                if flushes {
                    inbound.flushed();
                }
            }
        }
    }
}
