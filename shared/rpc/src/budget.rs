//! How long may a call still take? Remaining milliseconds on the wire, a deadline on this machine's clock inside.

use std::time::{Duration, Instant};

use minicbor::{Decode, Encode};

/// The milliseconds that a call has left. Always remaining time, never a wall-clock deadline: clocks differ.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
#[cbor(transparent)]
pub struct Budget(#[n(0)] u32);

impl Budget {
    /// A budget of so many milliseconds.
    pub const fn from_ms(ms: u32) -> Self {
        Budget(ms)
    }

    /// The milliseconds left.
    pub const fn as_ms(self) -> u32 {
        self.0
    }

    /// True when no time is left.
    pub const fn is_spent(self) -> bool {
        self.0 == 0
    }

    /// The same as a duration.
    pub const fn as_duration(self) -> Duration {
        Duration::from_millis(self.0 as u64)
    }

    /// When this budget ends, for one who starts to count at `now`.
    pub fn starting(self, now: Instant) -> Deadline {
        Deadline(now + self.as_duration())
    }
}

/// When a call's budget ends, on this process's own monotonic clock. Never leaves the process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// At that moment.
    pub const fn at(instant: Instant) -> Self {
        Deadline(instant)
    }

    /// What is left at `now`: zero once the deadline has passed. A last fraction of a millisecond counts as one,
    /// so that a budget is spent only when its time is over.
    pub fn remaining(self, now: Instant) -> Budget {
        let left = self.0.saturating_duration_since(now);
        Budget(u32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(u32::MAX))
    }

    /// The moment itself.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// True from the moment on.
    pub fn has_passed(self, now: Instant) -> bool {
        now >= self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_budget_never_grows_over_a_hop(ms in 0u32..=3_600_000, spent_us in 0u64..10_000_000_000) {
            let start = Instant::now();
            let deadline = Budget::from_ms(ms).starting(start);
            let now = start + Duration::from_micros(spent_us);
            let left = deadline.remaining(now);
            prop_assert!(left.as_ms() <= ms);
            prop_assert_eq!(left.is_spent(), deadline.has_passed(now));
            prop_assert!(u64::from(left.as_ms()) * 1000 + spent_us >= u64::from(ms) * 1000);
        }
    }
}
