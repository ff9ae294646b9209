//! How old may the directory be, and may it decide? Told by beats that go through the registry itself. Pure.
//!
//! A beat is written behind every change that was written before it, and comes back behind them. So whoever has seen
//! one back knows all that was in force when it was sent.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rpc::faults::{Fault, is};

/// Between two beats.
pub const BEAT_EVERY: Duration = Duration::from_millis(500);
/// A directory that may be older than this decides nothing: so long after it was made, a change is in force everywhere.
pub const MAX_AGE: Duration = Duration::from_secs(2);
/// For so long after it became too old questions wait for it to be fresh again; then they are refused. As long as
/// JetStream takes to elect the registry's next leader, without whom no beat comes back.
pub const HELD_FOR: Duration = Duration::from_secs(10);
/// Beats that may be under way; each is overtaken by the next.
const MAX_UNDER_WAY: usize = 8;

/// What is known of the directory's age. Begins as too old.
#[derive(Debug)]
pub struct Freshness {
    is_loaded: bool,
    under_way: VecDeque<(u64, Instant)>,
    last_number: u64,
    /// When the last beat that is back was sent.
    confirmed: Option<Instant>,
    /// The same, also after the feed was lost.
    known_until: Instant,
}

impl Freshness {
    /// Of a directory that knows nothing yet.
    pub fn new(now: Instant) -> Self {
        Freshness {
            is_loaded: false,
            under_way: VecDeque::new(),
            last_number: 0,
            confirmed: None,
            known_until: now,
        }
    }

    /// A beat is to be sent now, with this number.
    pub fn beat(&mut self, now: Instant) -> u64 {
        self.last_number += 1;
        if self.under_way.len() >= MAX_UNDER_WAY {
            self.under_way.pop_front();
        }
        self.under_way.push_back((self.last_number, now));
        self.last_number
    }

    /// A beat has come back through the registry's feed.
    pub fn returned(&mut self, number: u64) {
        // Within a load, what was written twice is told at its second place: a beat in between says nothing of it.
        if !self.is_loaded {
            return;
        }
        if let Some(place) = self.under_way.iter().position(|&(sent, _)| sent == number) {
            self.confirmed = self.under_way.drain(..=place).next_back().map(|(_, sent_at)| sent_at);
            self.known_until = self.confirmed.unwrap_or(self.known_until);
        }
    }

    /// Changes may be missed from now on, or a load has begun.
    pub fn lost(&mut self) {
        self.is_loaded = false;
        self.confirmed = None;
        self.under_way.clear();
    }

    /// The registry has been loaded in full. Only the next beat to come back says as of when.
    pub fn loaded(&mut self) {
        self.is_loaded = true;
        self.under_way.clear();
    }

    /// For how long a change may have gone unheard.
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.known_until)
    }

    /// Whether the directory may decide.
    pub fn is_fresh(&self, now: Instant) -> bool {
        self.confirmed.is_some() && self.age(now) < MAX_AGE || is(Fault::StaleDirectory)
    }

    /// Until when questions wait for it to be fresh again.
    pub fn held_until(&self) -> Instant {
        self.known_until + MAX_AGE + HELD_FOR
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn loaded() -> Freshness {
        let mut freshness = Freshness::new(Instant::now());
        freshness.loaded();
        freshness
    }

    #[test]
    fn nothing_is_decided_before_a_beat_is_back() {
        let now = Instant::now();
        let mut freshness = Freshness::new(Instant::now());
        let early = freshness.beat(now);
        freshness.returned(early);
        assert!(!freshness.is_fresh(now), "within a load it says nothing");
        freshness.loaded();
        freshness.returned(early);
        assert!(!freshness.is_fresh(now), "sent before the load was complete");
        let beat = freshness.beat(now);
        freshness.returned(beat);
        assert!(freshness.is_fresh(now + ms(1_999)) && !freshness.is_fresh(now + ms(2_000)));
    }

    #[test]
    fn a_beat_that_comes_late_confirms_no_more_than_when_it_was_sent() {
        let now = Instant::now();
        let mut freshness = loaded();
        let beats: Vec<u64> = (0..4).map(|beat| freshness.beat(now + beat * BEAT_EVERY)).collect();
        freshness.returned(beats[1]);
        assert_eq!(freshness.age(now + ms(2_000)), ms(1_500));
        freshness.returned(beats[0]);
        assert_eq!(freshness.age(now + ms(2_000)), ms(1_500), "it was overtaken");
        freshness.returned(beats[3]);
        assert_eq!(freshness.age(now + ms(2_000)), ms(500));
    }

    #[test]
    fn from_the_loss_of_the_feed_until_it_is_loaded_again_nothing_is_decided() {
        let now = Instant::now();
        let mut freshness = loaded();
        let (before, under_way) = (freshness.beat(now), freshness.beat(now));
        freshness.returned(before);
        freshness.lost();
        freshness.returned(under_way);
        assert!(!freshness.is_fresh(now));
        freshness.loaded();
        freshness.returned(under_way);
        assert!(!freshness.is_fresh(now));
    }

    proptest! {
        /// Against a registry that is a line of changes and beats: what decides knows all that is older than its age.
        #[test]
        fn what_decides_knows_every_change_older_than_two_seconds(
            steps in proptest::collection::vec((0u8..6, 1u64..900), 1..200),
        ) {
            let mut now = Instant::now();
            let mut freshness = loaded();
            // What is on its way: a change with when it was made, or a beat.
            let mut line: VecDeque<Result<Instant, u64>> = VecDeque::new();
            let mut is_told = true;
            for (what, gap_ms) in steps {
                now += ms(gap_ms);
                match what {
                    0 | 1 => line.push_back(Err(freshness.beat(now))),
                    2 => line.push_back(Ok(now)),
                    3 => {
                        freshness.lost();
                        is_told = false;
                    }
                    4 => {
                        line.clear();
                        freshness.loaded();
                        is_told = true;
                    }
                    _ => for item in line.drain(..line.len().min(gap_ms as usize % 4 + 1)) {
                        if let (Err(beat), true) = (item, is_told) {
                            freshness.returned(beat);
                        }
                    },
                }
                if freshness.is_fresh(now) {
                    for change in line.iter().flatten() {
                        prop_assert!(now - *change < MAX_AGE);
                    }
                }
            }
        }
    }
}
