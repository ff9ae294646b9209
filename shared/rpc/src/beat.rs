//! When is something's time over, whoever held it up on its way? Told relative to the routers' beats, which all hear at
//! about the same time: clocks differ.
//!
//! A budget is counted from when a message is read, so whoever holds it up on its way makes it younger than it is: the
//! kernel of a machine whose cable was pulled goes on sending after its process has given the connection up. What says
//! when it ends relative to a beat that was heard by all does not get younger.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use minicbor::{Decode, Encode};

use crate::faults::{Fault, is};
use crate::{Generation, NodeId, QuickMap};

/// Between two beats of a router, at least.
pub const BEAT_EVERY: Duration = Duration::from_secs(1);
/// For so long is remembered when a beat was heard: longer than the longest call.
const KEPT_FOR: Duration = Duration::from_secs(90);
/// One process hears a beat so much later than another in no healthy cluster: what ends later than that is late.
const SLACK: Duration = Duration::from_secs(1);
/// Up to this number its router may be one that was not heard of yet.
const IS_NEW: u64 = 3;

/// A router's word to everybody, once a second (`swb.beat`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Beat {
    /// Whose.
    #[n(0)]
    pub of: NodeId,
    /// Its number, one above the last.
    #[n(1)]
    pub number: u64,
    /// The highest generation that it has heard of: no other router gives a lower one from now on.
    #[n(2)]
    pub newest: Generation,
    /// Nodes are to say what they hold.
    #[n(3)]
    pub asks: bool,
}

/// Something's time is over so long after a beat. It stays the same on every hop: who has heard that beat knows when,
/// also where the message spent its time in a socket that nobody reads or in a queue of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Until {
    /// After whose.
    #[n(0)]
    pub of: NodeId,
    /// After which of them.
    #[n(1)]
    pub beat: u64,
    /// How long after, in milliseconds.
    #[n(2)]
    pub ms: u32,
    /// How long after that beat it was asked, in microseconds; none from a process that does not tell it.
    #[n(3)]
    pub asked_us: Option<u32>,
}

/// The beats that were heard.
#[derive(Debug, Default)]
pub struct Beats {
    heard: QuickMap<NodeId, VecDeque<(u64, Instant)>>,
    last: Option<(Beat, Instant)>,
    /// When the first was heard of all.
    since: Option<Instant>,
}

impl Beats {
    /// One was heard. True when it is the first of that router.
    pub fn heard(&mut self, beat: Beat, at: Instant) -> bool {
        self.since.get_or_insert(at);
        let is_first = !self.heard.contains_key(&beat.of);
        if is_first {
            let is_kept = |(_, heard_at): &(u64, Instant)| at.saturating_duration_since(*heard_at) < KEPT_FOR;
            self.heard.retain(|_, line| line.back().is_some_and(is_kept));
        }
        let line = self.heard.entry(beat.of).or_default();
        if line.back().is_some_and(|(number, _)| *number >= beat.number) {
            return false;
        }
        while line.front().is_some_and(|(_, first)| at.saturating_duration_since(*first) >= KEPT_FOR) {
            line.pop_front();
        }
        line.push_back((beat.number, at));
        self.last = Some((beat, at));
        is_first
    }

    /// How to say elsewhere that something ends at `end`; none while no router is heard.
    pub fn until(&self, end: Instant, now: Instant) -> Option<Until> {
        let (beat, heard_at) = self.last?;
        if now.saturating_duration_since(heard_at) >= KEPT_FOR {
            return None;
        }
        let ms = end.saturating_duration_since(heard_at).as_millis();
        let asked_us = u32::try_from(now.saturating_duration_since(heard_at).as_micros()).ok();
        let Beat { of, number: beat, .. } = beat;
        Some(Until { of, beat, ms: u32::try_from(ms).unwrap_or(u32::MAX), asked_us })
    }

    /// When that was asked, as exactly as two processes hear a beat at the same time; none where that beat was missed.
    pub fn asked(&self, until: &Until) -> Option<Instant> {
        let line = self.heard.get(&until.of)?;
        let heard_at = line.binary_search_by_key(&until.beat, |(number, _)| *number).ok();
        let (_, heard_at) = line.get(heard_at?)?;
        Some(*heard_at + Duration::from_micros(until.asked_us?.into()))
    }

    /// When that is over here at the latest; none where it cannot be said.
    pub fn end(&self, until: &Until) -> Option<Instant> {
        if is(Fault::BeatsIgnored) {
            return None;
        }
        let heard_at = match self.heard.get(&until.of) {
            // One that was missed came so long before the next that was heard: never are two closer to one another.
            Some(line) => {
                let (number, at) = line.get(line.partition_point(|(number, _)| *number < until.beat))?;
                let missed = u32::try_from(number - until.beat).unwrap_or(u32::MAX);
                at.checked_sub(BEAT_EVERY.saturating_mul(missed))?
            }
            None if until.beat <= IS_NEW => return None,
            // Its router was gone when this process began to hear routers.
            None => self.since? + BEAT_EVERY * 2,
        };
        Some(heard_at + Duration::from_millis(until.ms.into()) + SLACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn beat(number: u64) -> Beat {
        Beat { of: NodeId(1), number, newest: Generation(0), asks: false }
    }

    #[test]
    fn what_was_held_up_is_over_when_it_was() {
        let start = Instant::now();
        let (mut node, mut router) = (Beats::default(), Beats::default());
        assert_eq!(node.until(start, start), None);
        node.heard(beat(7), start);
        router.heard(beat(7), start + Duration::from_millis(3));
        let until =
            node.until(start + Duration::from_millis(5_400), start + Duration::from_millis(400)).unwrap();
        assert_eq!(until, Until { of: NodeId(1), beat: 7, ms: 5_400, asked_us: Some(400_000) });
        for number in 8..80 {
            router.heard(beat(number), start + Duration::from_secs(number - 7));
        }
        let over = start + Duration::from_millis(5_403) + SLACK;
        assert_eq!(router.end(&until), Some(over));
        assert_eq!(router.asked(&until), Some(start + Duration::from_millis(403)));
        assert_eq!(router.asked(&Until { beat: 6, ..until }), None, "that beat was missed");
        assert_eq!(router.asked(&Until { asked_us: None, ..until }), None);
    }

    #[test]
    fn nothing_is_said_of_beats_that_were_not_heard() {
        let start = Instant::now();
        let mut beats = Beats::default();
        let until = |beat| Until { of: NodeId(1), beat, ms: 0, asked_us: None };
        assert_eq!(beats.end(&until(1)), None);
        assert!(beats.heard(beat(1), start) && !beats.heard(beat(3), start + BEAT_EVERY * 3));
        assert_eq!(beats.end(&until(2)), Some(start + BEAT_EVERY * 2 + SLACK), "a second before the third");
        assert_eq!(beats.end(&until(4)), None, "it is still to come");
        assert!(!beats.heard(beat(2), start + BEAT_EVERY), "late ones say nothing");
        let later = start + KEPT_FOR + BEAT_EVERY * 3;
        assert_eq!(beats.until(later, later), None, "no router has been heard for long");
        let gone = |beat| Until { of: NodeId(2), beat, ms: 0, asked_us: None };
        assert_eq!(beats.end(&gone(IS_NEW)), None, "it may have begun just now");
        assert_eq!(beats.end(&gone(40)), Some(start + BEAT_EVERY * 2 + SLACK), "it was gone before");
        beats.heard(beat(90), later);
        let first = later - BEAT_EVERY * (90 - 1);
        assert_eq!(beats.end(&until(1)), Some(first + SLACK), "before the first that is remembered");
    }

    #[test]
    fn routers_that_are_gone_are_forgotten() {
        let start = Instant::now();
        let mut beats = Beats::default();
        for router in 0..1_000 {
            beats.heard(Beat { of: NodeId(router), ..beat(1) }, start + BEAT_EVERY * router as u32);
        }
        assert!(beats.heard.len() <= 91);
    }

    proptest! {
        /// Whatever was heard and missed: nothing that came in time is over too soon.
        #[test]
        fn nothing_ends_before_its_time(
            heard in proptest::collection::vec((any::<bool>(), any::<bool>(), 0u64..900), 1..100),
            left_ms in 0u64..60_000,
        ) {
            let start = Instant::now();
            let (mut here, mut there) = (Beats::default(), Beats::default());
            let mut now = start;
            for (number, (is_here, is_there, lag_ms)) in heard.into_iter().enumerate() {
                now += BEAT_EVERY;
                let beat = beat(number as u64);
                if is_here { here.heard(beat, now); }
                if is_there { there.heard(beat, now + Duration::from_millis(lag_ms)); }
            }
            let end = now + Duration::from_millis(left_ms);
            if let Some(over) = here.until(end, now).and_then(|until| there.end(&until)) {
                prop_assert!(over >= end);
            }
        }
    }
}
