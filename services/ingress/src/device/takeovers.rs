//! Do two clients fight over one device? The newest wins, every time; where that goes on, the next one becomes callable
//! a little later, so that the device can be called in between and its clients' reconnects cost less.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rpc::DeviceId;

/// Takeovers of one device that are nothing special: a client whose connection broke takes over from itself.
const CALM: u32 = 12;
/// What is counted at most, so that the delay ends some time after the fight does.
const MAX_COUNT: u32 = CALM + 5;
/// How long it takes to forget one takeover.
const FORGETS_ONE_IN: Duration = Duration::from_secs(2);
/// The first delay, and the longest. Clients wait longer than this for a SUBACK.
const FIRST_DELAY: Duration = Duration::from_millis(250);
const MAX_DELAY: Duration = Duration::from_secs(2);
/// Devices that are remembered; of further ones nobody is slowed.
const MAX_DEVICES: usize = 4096;

/// The takeovers that a node has seen lately.
#[derive(Debug, Default)]
pub struct Takeovers {
    devices: HashMap<DeviceId, Recent>,
}

#[derive(Debug)]
struct Recent {
    count: u32,
    /// Of the last takeover.
    at: Instant,
}

impl Recent {
    /// What is not forgotten yet.
    fn count(&self, now: Instant) -> u32 {
        let forgotten = now.saturating_duration_since(self.at).as_secs() / FORGETS_ONE_IN.as_secs();
        self.count.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
    }
}

impl Takeovers {
    /// A session of this device took over from another, here or elsewhere. True when a fight begins: to be told once.
    pub fn happened(&mut self, device: DeviceId, now: Instant) -> bool {
        if self.devices.len() >= MAX_DEVICES {
            self.devices.retain(|_, recent| recent.count(now) > 0);
        }
        if self.devices.len() >= MAX_DEVICES && !self.devices.contains_key(&device) {
            return false;
        }
        let recent = self.devices.entry(device).or_insert(Recent { count: 0, at: now });
        let count = recent.count(now);
        *recent = Recent { count: (count + 1).min(MAX_COUNT), at: now };
        count == CALM
    }

    /// How long the device's next session is to wait before it becomes callable.
    pub fn delay(&self, device: DeviceId, now: Instant) -> Duration {
        let count = self.devices.get(&device).map_or(0, |recent| recent.count(now));
        match count.checked_sub(CALM + 1) {
            Some(excess) => (FIRST_DELAY * 2u32.pow(excess)).min(MAX_DELAY),
            None => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    const DEVICE: DeviceId = DeviceId(Uuid::from_u128(1));

    #[test]
    fn a_few_takeovers_cost_nothing_and_a_fight_costs_more_and_more() {
        let (mut takeovers, now) = (Takeovers::default(), Instant::now());
        assert_eq!(takeovers.delay(DEVICE, now), Duration::ZERO);
        for takeover in 1..=20u32 {
            let begins = takeovers.happened(DEVICE, now);
            assert_eq!(begins, takeover == CALM + 1, "{takeover}");
            let expected = match takeover {
                ..=12 => 0,
                13 => 250,
                14 => 500,
                15 => 1000,
                _ => 2000,
            };
            assert_eq!(takeovers.delay(DEVICE, now), Duration::from_millis(expected), "{takeover}");
        }
        assert_eq!(takeovers.delay(DeviceId(Uuid::from_u128(2)), now), Duration::ZERO);
    }

    #[test]
    fn a_fight_that_has_ended_is_forgotten() {
        let (mut takeovers, now) = (Takeovers::default(), Instant::now());
        (0..20).for_each(|_| _ = takeovers.happened(DEVICE, now));
        for (seconds, delay_ms) in [(1, 2000), (2, 2000), (4, 1000), (8, 250), (10, 0), (1_000_000, 0)] {
            let later = now + Duration::from_secs(seconds);
            assert_eq!(takeovers.delay(DEVICE, later), Duration::from_millis(delay_ms), "{seconds}");
        }
        // One every two seconds is no fight, for ever.
        let mut now = now + Duration::from_secs(1000);
        for _ in 0..100 {
            assert!(!takeovers.happened(DEVICE, now));
            assert_eq!(takeovers.delay(DEVICE, now), Duration::ZERO);
            now += FORGETS_ONE_IN;
        }
    }

    #[test]
    fn memory_is_bounded_and_what_is_forgotten_makes_room() {
        let (mut takeovers, now) = (Takeovers::default(), Instant::now());
        let device = |number: usize| DeviceId(Uuid::from_u128(number as u128));
        for number in 0..MAX_DEVICES + 10 {
            takeovers.happened(device(number), now);
        }
        assert_eq!(takeovers.devices.len(), MAX_DEVICES);
        // Those that are known still count.
        (0..CALM).for_each(|_| _ = takeovers.happened(device(0), now));
        assert_eq!(takeovers.delay(device(0), now), FIRST_DELAY);
        let later = now + FORGETS_ONE_IN;
        takeovers.happened(device(MAX_DEVICES), later);
        assert_eq!(takeovers.devices.len(), 2);
    }
}
