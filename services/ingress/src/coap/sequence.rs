//! Which notification is the newer one? The numbers of the Observe option (RFC 7641 §3.4), for all observations.

use std::time::Instant;

/// They have 24 bits, and a client takes one that is less than half of them ahead for newer.
const MASK: u64 = 0xff_ffff;

/// So many are to be had a millisecond: half of them last for 262 s, more than the 256 that §4.4 asks for.
const PER_MS: u64 = 32;

/// Counts on, and is never behind the clock: an endpoint and token that come again, after a restart or at another node,
/// too, read a higher number than the last that they have (§4.4).
#[derive(Debug)]
pub struct Sequence {
    began: Instant,
    began_at: u64,
    last: u64,
}

impl Sequence {
    /// The clock says `unix_ms` at `now`.
    pub fn new(unix_ms: u64, now: Instant) -> Self {
        let began_at = unix_ms.wrapping_mul(PER_MS);
        Sequence { began: now, began_at, last: began_at }
    }

    /// The next notification's number.
    pub fn next(&mut self, now: Instant) -> u32 {
        let elapsed_ms = now.saturating_duration_since(self.began).as_millis() as u64;
        self.last = self.began_at.saturating_add(elapsed_ms * PER_MS).max(self.last + 1);
        (self.last & MASK) as u32
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// §3.4, for two that come within 128 s.
    fn is_newer(new: u32, old: u32) -> bool {
        let half = 1 << 23;
        old < new && new - old < half || old > new && old - new > half
    }

    #[test]
    fn each_number_is_newer_than_the_last_though_they_go_round_and_the_node_restarts() {
        let start = Instant::now();
        for gap_ms in [0, 1, 1_000, 127_000] {
            let (mut unix_ms, mut now) = (1_480_000_000_000, start);
            let mut sequence = Sequence::new(unix_ms, now);
            let mut last = sequence.next(now);
            for step in 0..10_000 {
                now += Duration::from_millis(gap_ms);
                unix_ms += gap_ms;
                if gap_ms > 0 && step % 7 == 0 {
                    sequence = Sequence::new(unix_ms, now);
                }
                let next = sequence.next(now);
                assert!(is_newer(next, last) && next < 1 << 24, "{next} after {last}");
                last = next;
            }
        }
    }
}
