//! Which devices are on their way from one node to another? Those whose claim went while its node sent sessions away:
//! for a while they are expected back, and calls wait for them.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use rpc::faults::{Fault, is};
use rpc::{DeviceId, LeaseRenewal, NodeId};

/// Devices that are expected at once; for one more the oldest is expected no longer.
const MAX_DEVICES: usize = 131_072;

/// What a router has heard of them.
#[derive(Debug)]
pub(super) struct Moving {
    patience: Duration,
    /// Which nodes send sessions away, until when at the latest.
    shedding: HashMap<NodeId, Instant>,
    expected: HashMap<DeviceId, Instant>,
    /// Until when anybody may be on the way: a node had sent sessions away before it was heard here, or while claims
    /// were not.
    anybody: Option<Instant>,
    /// The same and those that have arrived since, the oldest first.
    order: VecDeque<(Instant, DeviceId)>,
}

impl Moving {
    /// Nobody; a device is expected for as long as `patience`.
    pub(super) fn new(patience: Duration) -> Self {
        Moving {
            patience,
            shedding: HashMap::new(),
            expected: HashMap::new(),
            anybody: None,
            order: VecDeque::new(),
        }
    }

    /// A node says whether it sends sessions away. What went last may be heard of a little later than that.
    /// `is_new`: it is heard for the first time, as by a router that has just begun, which knows nobody who went
    /// before.
    pub(super) fn renewed(&mut self, renewal: &LeaseRenewal, is_new: bool, lease: Duration, now: Instant) {
        if renewal.sheds && is_new {
            self.anybody = Some(now + self.patience);
        }
        if renewal.sheds && !renewal.ends {
            self.shedding.insert(renewal.node, now + lease);
        } else if let Some(until) = self.shedding.get_mut(&renewal.node) {
            *until = (*until).min(now + self.patience);
        }
    }

    /// All claims have been told anew: of those that went meanwhile nobody has said so.
    pub(super) fn loaded(&mut self, now: Instant) {
        if !self.shedding.is_empty() {
            self.anybody = Some(now + self.patience);
        }
    }

    /// The device's claim on that node has led nowhere, or is gone.
    pub(super) fn left(&mut self, device: DeviceId, node: NodeId, now: Instant) {
        if self.shedding.get(&node).is_none_or(|until| *until <= now) || self.expected.contains_key(&device) {
            return;
        }
        if self.order.len() >= MAX_DEVICES {
            self.forget_oldest();
        }
        let until = now + self.patience;
        self.expected.insert(device, until);
        self.order.push_back((until, device));
    }

    /// It is claimed.
    pub(super) fn arrived(&mut self, device: DeviceId) {
        self.expected.remove(&device);
    }

    /// Until when the device is expected, which is known to have left.
    pub(super) fn until(&self, device: DeviceId) -> Option<Instant> {
        self.expected.get(&device).copied().filter(|_| !is(Fault::MovingIsOffline))
    }

    /// Until when it may be on its way, whether or not that is known.
    pub(super) fn may_come_until(&self, device: DeviceId) -> Option<Instant> {
        self.until(device).max(self.anybody)
    }

    /// Time has passed.
    pub(super) fn look(&mut self, now: Instant) {
        self.shedding.retain(|_, until| now < *until);
        self.anybody = self.anybody.filter(|until| now < *until);
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((until, device)) = self.order.pop_front()
            && self.expected.get(&device) == Some(&until)
        {
            self.expected.remove(&device);
        }
    }
}

#[cfg(test)]
mod tests {
    use rpc::{Generation, Tally};
    use uuid::Uuid;

    use super::*;

    const LEASE: Duration = Duration::from_secs(15);
    const PATIENCE: Duration = Duration::from_secs(5);
    const NODE: NodeId = NodeId(1);

    fn device(number: u128) -> DeviceId {
        DeviceId(Uuid::from_u128(number))
    }

    fn says(sheds: bool, ends: bool) -> LeaseRenewal {
        LeaseRenewal { node: NODE, tally: Tally::default(), newest: Generation(0), ends, mends: None, sheds }
    }

    #[test]
    fn who_left_a_node_that_sends_away_is_expected_for_a_while() {
        let (mut moving, now) = (Moving::new(PATIENCE), Instant::now());
        moving.left(device(1), NODE, now);
        assert_eq!(moving.until(device(1)), None, "its node says nothing");
        moving.renewed(&says(true, false), false, LEASE, now);
        moving.left(device(1), NODE, now);
        moving.left(device(2), NodeId(2), now);
        assert_eq!((moving.until(device(1)), moving.until(device(2))), (Some(now + PATIENCE), None));
        moving.left(device(1), NODE, now + PATIENCE / 2);
        assert_eq!(
            moving.until(device(1)),
            Some(now + PATIENCE),
            "told twice, it is not expected for longer"
        );
        moving.arrived(device(1));
        assert_eq!(moving.until(device(1)), None);
        moving.left(device(3), NODE, now);
        moving.look(now + PATIENCE);
        assert_eq!((moving.until(device(3)), moving.order.len(), moving.expected.len()), (None, 0, 0));
    }

    #[test]
    fn a_node_that_ends_or_is_done_has_sent_away_for_a_moment_longer() {
        for last in [says(false, false), says(true, true), says(false, true)] {
            let (mut moving, now) = (Moving::new(PATIENCE), Instant::now());
            moving.renewed(&says(true, false), false, LEASE, now);
            moving.renewed(&last, false, LEASE, now);
            moving.left(device(1), NODE, now + PATIENCE / 2);
            moving.left(device(2), NODE, now + PATIENCE);
            assert!(moving.until(device(1)).is_some() && moving.until(device(2)).is_none());
            moving.look(now + PATIENCE);
            assert!(moving.shedding.is_empty());
        }
    }

    #[test]
    fn whoever_left_a_node_before_it_was_heard_may_be_on_its_way() {
        for first in [says(true, false), says(true, true)] {
            let (mut moving, now) = (Moving::new(PATIENCE), Instant::now());
            moving.renewed(&says(false, false), true, LEASE, now);
            moving.renewed(&says(true, false), false, LEASE, now);
            assert_eq!(moving.may_come_until(device(1)), None, "it was heard before it sent anybody away");
            moving.renewed(&first, true, LEASE, now);
            assert_eq!(
                (moving.may_come_until(device(1)), moving.until(device(1))),
                (Some(now + PATIENCE), None)
            );
            moving.look(now + PATIENCE);
            assert_eq!(moving.may_come_until(device(1)), None);
        }
    }

    #[test]
    fn whoever_left_while_claims_were_not_heard_may_be_on_its_way() {
        let (mut moving, now) = (Moving::new(PATIENCE), Instant::now());
        moving.loaded(now);
        assert_eq!(moving.may_come_until(device(1)), None, "no node sends anybody away");
        moving.renewed(&says(true, false), false, LEASE, now);
        moving.loaded(now);
        assert_eq!(moving.may_come_until(device(1)), Some(now + PATIENCE));
    }

    #[test]
    fn so_many_are_expected() {
        let (mut moving, now) = (Moving::new(PATIENCE), Instant::now());
        moving.renewed(&says(true, false), false, LEASE, now);
        for number in 0..=MAX_DEVICES as u128 {
            moving.left(device(number), NODE, now);
        }
        assert_eq!((moving.expected.len(), moving.order.len()), (MAX_DEVICES, MAX_DEVICES));
        assert!(moving.until(device(0)).is_none() && moving.until(device(MAX_DEVICES as u128)).is_some());
    }
}
