//! What do removed claims leave behind? A marker, which a write must expect as long as it stands: whoever comes back
//! within that time is claimed in one round trip, too.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use rpc::{DeviceId, MARKER_TTL};

/// The markers that a router has heard of. A wrong one costs a read of the store, and nothing else.
#[derive(Debug, Default)]
pub(super) struct Markers {
    standing: HashMap<DeviceId, u64>,
    /// The same and older ones, as they vanish.
    order: VecDeque<(Instant, DeviceId, u64)>,
}

impl Markers {
    /// The device's claim was removed, at that revision.
    pub(super) fn left(&mut self, device: DeviceId, revision: u64, now: Instant) {
        let standing = self.standing.entry(device).or_insert(revision);
        *standing = revision.max(*standing);
        self.order.push_back((now + MARKER_TTL, device, revision));
    }

    /// The revision of the device's marker, if it still stands.
    pub(super) fn revision(&self, device: DeviceId) -> Option<u64> {
        self.standing.get(&device).copied()
    }

    /// Drops those that have vanished.
    pub(super) fn look(&mut self, now: Instant) {
        while let Some((_, device, revision)) = self.order.pop_front_if(|(until, ..)| *until <= now) {
            if self.standing.get(&device) == Some(&revision) {
                self.standing.remove(&device);
            }
        }
    }

    /// The store may be another, or count anew.
    pub(super) fn forget_all(&mut self) {
        *self = Markers::default();
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;

    #[test]
    fn the_newest_of_a_device_stands_until_its_own_time_is_over() {
        let (mut markers, now) = (Markers::default(), Instant::now());
        let [one, two] = [1, 2].map(|number| DeviceId(Uuid::from_u128(number)));
        markers.left(one, 10, now);
        markers.left(one, 12, now + MARKER_TTL / 2);
        markers.left(one, 11, now + MARKER_TTL / 2);
        markers.look(now + MARKER_TTL);
        assert_eq!((markers.revision(one), markers.revision(two)), (Some(12), None));
        markers.look(now + MARKER_TTL * 3 / 2);
        assert_eq!((markers.revision(one), markers.order.len()), (None, 0));
    }
}
