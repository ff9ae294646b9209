//! Which devices do several clients fight over? How often a session took over from another of its device, lately.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rpc::{Claim, DeviceId};

/// After so long without one, a device's takeovers are forgotten.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);
/// Devices that are remembered; further ones are not.
const MAX_DEVICES: usize = 4096;

/// The takeovers that a router has heard of.
#[derive(Debug, Default)]
pub(super) struct Takeovers {
    devices: BTreeMap<DeviceId, (u32, Instant)>,
}

impl Takeovers {
    /// The device's claim changes from one to the other.
    pub(super) fn claimed(&mut self, device: DeviceId, older: &Claim, newer: &Claim, now: Instant) {
        if !newer.protocol.fights(older.protocol)
            || (older.node, older.session) == (newer.node, newer.session)
        {
            return;
        }
        if self.devices.len() >= MAX_DEVICES {
            self.devices.retain(|_, (_, last)| now < *last + REMEMBERED_FOR);
        }
        if self.devices.len() < MAX_DEVICES || self.devices.contains_key(&device) {
            let count = self.lately(device, now).saturating_add(1);
            self.devices.insert(device, (count, now));
        }
    }

    /// How many followed each other within ten minutes, the last of them not longer ago.
    pub(super) fn lately(&self, device: DeviceId, now: Instant) -> u32 {
        let known = self.devices.get(&device).filter(|(_, last)| now < *last + REMEMBERED_FOR);
        known.map_or(0, |(count, _)| *count)
    }
}

#[cfg(test)]
mod tests {
    use rpc::{Generation, NodeId, Protocol, SessionId};
    use uuid::Uuid;

    use super::*;

    fn claim(session: u64, protocol: Protocol) -> Claim {
        Claim {
            node: NodeId(1),
            session: SessionId(session),
            protocol,
            generation: Generation(session),
            since_ms: None,
        }
    }

    fn device(number: u128) -> DeviceId {
        DeviceId(Uuid::from_u128(number))
    }

    #[test]
    fn sessions_that_follow_each_other_are_counted_until_it_has_been_calm_for_long() {
        let (mut takeovers, now) = (Takeovers::default(), Instant::now());
        let [one, two] = [1, 2].map(|session| claim(session, Protocol::Mqtt));
        takeovers.claimed(device(1), &one, &one, now);
        assert_eq!(takeovers.lately(device(1), now), 0, "written again");
        let [here, there] = [1, 2].map(|session| claim(session, Protocol::Http));
        takeovers.claimed(device(1), &here, &there, now);
        assert_eq!(takeovers.lately(device(1), now), 0, "polled elsewhere");
        takeovers.claimed(device(1), &one, &there, now);
        assert_eq!(takeovers.lately(device(1), now), 0, "a poll comes back to nobody");
        takeovers.claimed(device(1), &one, &two, now);
        takeovers.claimed(device(1), &two, &claim(3, Protocol::Mqtt), now);
        assert_eq!((takeovers.lately(device(1), now), takeovers.lately(device(2), now)), (2, 0));
        let later = now + REMEMBERED_FOR;
        assert_eq!(takeovers.lately(device(1), later), 0);
        takeovers.claimed(device(1), &one, &two, later);
        assert_eq!(takeovers.lately(device(1), later), 1);
    }

    #[test]
    fn so_many_devices_are_remembered() {
        let (mut takeovers, now) = (Takeovers::default(), Instant::now());
        let [one, two] = [1, 2].map(|session| claim(session, Protocol::Mqtt));
        for number in 0..=MAX_DEVICES as u128 {
            takeovers.claimed(device(number), &one, &two, now);
        }
        takeovers.claimed(device(0), &two, &one, now);
        assert_eq!(takeovers.devices.len(), MAX_DEVICES);
        let last = device(MAX_DEVICES as u128);
        assert_eq!((takeovers.lately(device(0), now), takeovers.lately(last, now)), (2, 0));
        takeovers.claimed(last, &one, &two, now + REMEMBERED_FOR);
        assert_eq!((takeovers.devices.len(), takeovers.lately(last, now + REMEMBERED_FOR)), (1, 1));
    }
}
