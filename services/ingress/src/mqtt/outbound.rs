//! Which of our messages at QoS 1 are under way? The client's Receive Maximum is kept (MQTT 5 §4.9), and what it does
//! not allow yet waits.

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroU16;

use bytes::Bytes;
use bytestring::ByteString;

use super::codec::PublishProperties;

/// An answer that waits to be written. Calls wait in the target.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) topic: ByteString,
    pub(super) payload: Bytes,
    pub(super) properties: PublishProperties,
}

impl Outgoing {
    fn bytes(&self) -> usize {
        size_of::<Self>() + self.topic.len() + self.payload.len() + self.properties.bytes()
    }
}

/// Our messages that are not acknowledged, and those that wait for them.
#[derive(Debug)]
pub(super) struct Outbound {
    receive_maximum: u16,
    /// With the call that each carries, if it is one.
    unacknowledged: BTreeMap<NonZeroU16, Option<u32>>,
    last_packet_id: u16,
    /// None: none does. Most clients take what comes.
    waiting: Option<Box<Waiting>>,
}

#[derive(Debug, Default)]
struct Waiting {
    answers: VecDeque<Outgoing>,
    bytes: usize,
}

impl Outbound {
    /// To a client that takes so many at a time, which is not 0.
    pub(super) fn new(receive_maximum: u16) -> Self {
        Outbound { receive_maximum, unacknowledged: BTreeMap::new(), last_packet_id: 0, waiting: None }
    }

    /// True when the client takes no more for now.
    pub(super) fn is_full(&self) -> bool {
        self.unacknowledged.len() >= usize::from(self.receive_maximum)
    }

    /// The id of the next message: none that is under way. Not to be asked for while it [is full](Self::is_full).
    pub(super) fn next_packet_id(&mut self) -> NonZeroU16 {
        // Ends: fewer ids are taken than there are.
        loop {
            self.last_packet_id = self.last_packet_id.wrapping_add(1);
            if let Some(packet_id) = NonZeroU16::new(self.last_packet_id)
                && !self.unacknowledged.contains_key(&packet_id)
            {
                return packet_id;
            }
        }
    }

    /// A message was written under this id.
    pub(super) fn written(&mut self, packet_id: NonZeroU16, call: Option<u32>) {
        self.unacknowledged.insert(packet_id, call);
    }

    /// The client has a message. The call that it carried, if it was one.
    pub(super) fn acknowledged(&mut self, packet_id: NonZeroU16) -> Option<u32> {
        self.unacknowledged.remove(&packet_id).flatten()
    }

    /// Keeps an answer until the client takes it.
    pub(super) fn wait(&mut self, outgoing: Outgoing) {
        let waiting = self.waiting.get_or_insert_default();
        waiting.bytes += outgoing.bytes();
        waiting.answers.push_back(outgoing);
    }

    /// The next answer that the client takes now.
    pub(super) fn next_waiting(&mut self) -> Option<Outgoing> {
        let waiting = if self.is_full() { None } else { self.waiting.as_mut() }?;
        let next = waiting.answers.pop_front()?;
        waiting.bytes -= next.bytes();
        if waiting.answers.is_empty() {
            // An idle session keeps no heap.
            self.waiting = None;
        }
        Some(next)
    }

    /// How much memory waits.
    pub(super) fn waiting_bytes(&self) -> usize {
        self.waiting.as_ref().map_or(0, |waiting| waiting.bytes)
    }

    /// True when no answer waits.
    pub(super) fn has_none_waiting(&self) -> bool {
        self.waiting.is_none()
    }

    /// True when every message has been acknowledged.
    pub(super) fn has_none_under_way(&self) -> bool {
        self.unacknowledged.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn answer(payload: &'static str) -> Outgoing {
        Outgoing { topic: "t".into(), payload: payload.into(), properties: Default::default() }
    }

    #[test]
    fn a_client_gets_no_more_than_it_takes_and_the_rest_in_order() {
        let mut outbound = Outbound::new(2);
        let ids: Vec<_> = (0..2)
            .map(|call| {
                assert!(!outbound.is_full());
                let id = outbound.next_packet_id();
                outbound.written(id, Some(call));
                id
            })
            .collect();
        assert!(outbound.is_full() && ids[0] != ids[1]);
        outbound.wait(answer("first"));
        outbound.wait(answer("second"));
        assert_eq!(outbound.waiting_bytes(), 2 * (size_of::<Outgoing>() + 1) + 11);
        assert!(outbound.next_waiting().is_none() && !outbound.has_none_waiting());
        assert_eq!(outbound.acknowledged(ids[1]), Some(1));
        assert_eq!(outbound.acknowledged(ids[1]), None);
        assert_eq!(outbound.next_waiting().unwrap().payload, "first");
        assert_eq!(outbound.next_waiting().unwrap().payload, "second");
        assert!(outbound.next_waiting().is_none() && outbound.has_none_waiting());
        assert_eq!(outbound.waiting_bytes(), 0);
        assert!(!outbound.has_none_under_way());
        assert_eq!(outbound.acknowledged(ids[0]), Some(0));
        assert!(outbound.has_none_under_way());
    }

    #[test]
    fn what_waits_has_the_bytes_of_all_that_it_holds() {
        let mut outbound = Outbound::new(1);
        let properties = PublishProperties {
            correlation: Some(vec![0; 1_000].into()),
            stamp: vec![("outcome", "x".repeat(50).into())],
            ..Default::default()
        };
        outbound.wait(Outgoing { properties, ..answer("text") });
        assert!(outbound.waiting_bytes() >= size_of::<Outgoing>() + 1_000 + 50 + 5);
        assert!(outbound.next_waiting().is_some() && outbound.waiting_bytes() == 0);
    }

    #[test]
    fn what_carries_no_call_says_so() {
        let mut outbound = Outbound::new(1);
        let id = outbound.next_packet_id();
        outbound.written(id, None);
        assert!(outbound.is_full());
        assert_eq!(outbound.acknowledged(id), None);
        assert!(!outbound.is_full());
    }

    proptest! {
        /// §2.2.1: an id is not 0 and not in use.
        #[test]
        fn an_id_is_free(acks in proptest::collection::vec(any::<prop::sample::Index>(), 1..300)) {
            let mut outbound = Outbound { last_packet_id: u16::MAX - 100, ..Outbound::new(8) };
            let mut under_way = Vec::new();
            for ack in acks {
                while !outbound.is_full() {
                    let id = outbound.next_packet_id();
                    prop_assert!(!under_way.contains(&id));
                    outbound.written(id, None);
                    under_way.push(id);
                }
                prop_assert_eq!(under_way.len(), 8);
                let id = under_way.remove(ack.index(under_way.len()));
                outbound.acknowledged(id);
            }
        }
    }
}
