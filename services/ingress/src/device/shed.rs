//! Who is to leave this node next, and when? So many a second and never more, whoever asked for it. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use rpc::{NodeState, Party, Rate, TokenBucket, closed_list};

use super::mailbox::{EndReason, Mail};

/// So long before the first visitor goes routers are told: who hears of it later than of a claim that is gone says
/// Offline.
pub const TOLD_BEFORE: Duration = Duration::from_millis(100);

closed_list! {
    /// Why a node sends visitors away.
    pub enum Why {
        /// It ends.
        ShuttingDown = "shutting_down",
        /// All are to go elsewhere, for good.
        Evacuated = "evacuated",
        /// All are to go elsewhere, for a while.
        Maintenance = "maintenance",
        /// It has more than its part.
        Rebalanced = "rebalanced",
        /// They are not callable, for their claims were not written: they are to ask anew.
        Uncalled = "uncalled",
    }
}

impl Why {
    /// Whether nobody new is let in meanwhile, and after.
    pub fn closes(self) -> bool {
        self.state().is_closed()
    }

    /// What its node does.
    pub fn state(self) -> NodeState {
        match self {
            Why::ShuttingDown => NodeState::Draining,
            Why::Evacuated => NodeState::Evacuated,
            Why::Maintenance => NodeState::Maintenance,
            Why::Rebalanced => NodeState::Shedding,
            Why::Uncalled => NodeState::Serving,
        }
    }

    /// What its visitors are told.
    pub fn told(self) -> EndReason {
        match self {
            Why::ShuttingDown => EndReason::ShuttingDown,
            Why::Evacuated | Why::Maintenance | Why::Rebalanced | Why::Uncalled => EndReason::Moved,
        }
    }
}

/// So many a second, at once no more than in a tenth of that.
pub fn rate(per_second: u32) -> Rate {
    Rate { per_second: per_second.max(1), burst: (per_second / 10).max(1) }
}

/// What is to be said to a visitor that is sent away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step<V> {
    /// To leave as soon as nothing is in flight.
    Leave(V),
    /// It is still busy: no further call is to reach it, so that those that are open can be its last.
    Press(V),
    /// Its patience is over: whatever is in flight is cut off.
    CutOff(V),
}

impl<V> Step<V> {
    /// To whom it is said, and how.
    pub fn mail(self, why: EndReason) -> (V, Mail) {
        match self {
            Step::Leave(visitor) | Step::Press(visitor) => (visitor, Mail::Leave(why)),
            Step::CutOff(visitor) => (visitor, Mail::End(why)),
        }
    }
}

/// Visitors that are sent away. `V` is how one is reached; each goes through here once.
#[derive(Debug)]
pub struct Shedding<V> {
    begins_at: Instant,
    rate: Rate,
    pace: TokenBucket,
    patience: Duration,
    waiting: VecDeque<V>,
    /// In the order in which they were told; so are those that were pressed.
    told: VecDeque<(Instant, V)>,
    pressed: VecDeque<(Instant, V)>,
}

impl<V: Clone> Shedding<V> {
    /// From then on at that [`rate`]. Whoever is busy is pressed after a
    /// quarter of `patience`, and cut off after the whole of it.
    pub fn new(per_second: u32, patience: Duration, begins_at: Instant) -> Self {
        Shedding {
            begins_at,
            rate: rate(per_second),
            pace: TokenBucket::new(begins_at),
            patience,
            waiting: VecDeque::new(),
            told: VecDeque::new(),
            pressed: VecDeque::new(),
        }
    }

    /// These, too, the oldest first: one of each customer in turn, so that nobody's devices are all away at once. At
    /// most so many.
    pub fn add(&mut self, visitors: impl IntoIterator<Item = (Party, V)>, at_most: usize) {
        let mut turns: HashMap<Party, u64> = HashMap::new();
        let in_turn = |(party, visitor)| {
            let turn = turns.entry(party).or_default();
            *turn += 1;
            (*turn, visitor)
        };
        let mut ordered: Vec<(u64, V)> = visitors.into_iter().map(in_turn).collect();
        ordered.sort_by_key(|(turn, _)| *turn);
        self.waiting.extend(ordered.into_iter().take(at_most).map(|(_, visitor)| visitor));
    }

    /// What is to be said now, if anything; ask until there is nothing. Who has gone by himself is passed over.
    pub fn next(&mut self, is_here: impl Fn(&V) -> bool, now: Instant) -> Option<Step<V>> {
        let is_due = |(told_at, _): &(Instant, V), after| *told_at + after <= now;
        if self.pressed.front().is_some_and(|it| is_due(it, self.patience)) {
            return self.pressed.pop_front().map(|(_, visitor)| Step::CutOff(visitor));
        }
        if self.told.front().is_some_and(|it| is_due(it, self.patience / 4)) {
            let (told_at, visitor) = self.told.pop_front()?;
            self.pressed.push_back((told_at, visitor.clone()));
            return Some(Step::Press(visitor));
        }
        while self.waiting.front().is_some_and(|visitor| !is_here(visitor)) {
            self.waiting.pop_front();
        }
        if self.waiting.is_empty() || now < self.begins_at || !self.pace.take(self.rate, now) {
            return None;
        }
        let visitor = self.waiting.pop_front()?;
        self.told.push_back((now, visitor.clone()));
        Some(Step::Leave(visitor))
    }

    /// When to ask [`next`](Self::next) again; none when nobody is left.
    pub fn next_tick(&self, now: Instant) -> Option<Instant> {
        let leaves =
            (!self.waiting.is_empty()).then(|| self.begins_at.max(now + self.pace.wait(self.rate, now)));
        let pressed = self.told.front().map(|(told_at, _)| *told_at + self.patience / 4);
        let cut_off = self.pressed.front().map(|(told_at, _)| *told_at + self.patience);
        [leaves, pressed, cut_off].into_iter().flatten().min()
    }

    /// Those that were told, and have gone, are told nothing more.
    pub fn retain(&mut self, is_here: impl Fn(&V) -> bool) {
        self.told.retain(|(_, visitor)| is_here(visitor));
        self.pressed.retain(|(_, visitor)| is_here(visitor));
    }

    /// How many have yet to be told.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// How many have yet to go, told or not.
    pub fn left(&self) -> usize {
        self.waiting.len() + self.told.len() + self.pressed.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rpc::{CustomerId, TenantId};
    use uuid::Uuid;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn party(customer: u128) -> Party {
        Party::of(TenantId(Uuid::nil()), Some(CustomerId(Uuid::from_u128(customer))))
    }

    #[test]
    fn one_of_each_customer_leaves_in_turn_the_oldest_first() {
        let now = Instant::now();
        let mut shedding = Shedding::new(10, PATIENCE, now);
        let visitors = [(1, "a"), (1, "b"), (1, "c"), (2, "d"), (3, "e"), (2, "f")];
        shedding.add(visitors.map(|(customer, it)| (party(customer), it)), 5);
        assert_eq!(shedding.waiting, ["a", "d", "e", "b", "f"]);
    }

    #[test]
    fn who_is_busy_is_pressed_and_then_cut_off() {
        let now = Instant::now();
        let mut shedding = Shedding::new(500, PATIENCE, now);
        shedding.add([(party(1), 'a'), (party(1), 'b')], usize::MAX);
        assert_eq!(shedding.next(|_| true, now), Some(Step::Leave('a')));
        assert_eq!(shedding.next(|_| true, now), Some(Step::Leave('b')));
        assert_eq!((shedding.next(|_| true, now), shedding.next_tick(now)), (None, Some(now + PATIENCE / 4)));
        shedding.retain(|it| *it == 'b');
        let pressed_at = now + PATIENCE / 4;
        assert_eq!(shedding.next(|_| true, pressed_at), Some(Step::Press('b')));
        assert_eq!(shedding.next_tick(pressed_at), Some(now + PATIENCE));
        assert_eq!((shedding.next(|_| true, pressed_at), shedding.left()), (None, 1));
        assert_eq!(shedding.next(|_| true, now + PATIENCE), Some(Step::CutOff('b')));
        assert_eq!((shedding.next_tick(now + PATIENCE), shedding.left()), (None, 0));
    }

    #[test]
    fn nobody_leaves_before_it_begins() {
        let (now, wait) = (Instant::now(), Duration::from_secs(2));
        let mut shedding = Shedding::new(1, PATIENCE, now + wait);
        shedding.add([(party(1), 'a')], usize::MAX);
        assert_eq!((shedding.next(|_| true, now), shedding.next_tick(now)), (None, Some(now + wait)));
        assert_eq!(shedding.next(|_| true, now + wait), Some(Step::Leave('a')));
    }

    proptest! {
        /// However late and often it is asked: in no second do more leave than the rate and what may go at once, nobody
        /// twice, and all in the end, without having been asked more often than it says.
        #[test]
        fn the_rate_is_kept(
            per_second in 1u32..2_000, visitors in 1usize..600,
            late_ms in proptest::collection::vec(0u64..3_000, 1..50),
        ) {
            let start = Instant::now();
            let mut shedding = Shedding::new(per_second, Duration::from_secs(1_000_000), start);
            shedding.add((0..visitors).map(|it| (party(it as u128 % 7), it)), usize::MAX);
            let (mut left_at, mut now, mut late) = (Vec::new(), start, late_ms.into_iter());
            let mut gone = std::collections::HashSet::new();
            while shedding.waiting() > 0 {
                now = shedding.next_tick(now).unwrap() + Duration::from_millis(late.next().unwrap_or(0));
                let before = left_at.len();
                while let Some(step) = shedding.next(|_| true, now) {
                    let Step::Leave(visitor) = step else { panic!("{step:?}") };
                    prop_assert!(gone.insert(visitor));
                    left_at.push(now);
                }
                prop_assert!(left_at.len() > before, "it is asked when there is something");
            }
            prop_assert_eq!(gone.len(), visitors);
            let at_most = (per_second + (per_second / 10).max(1)) as usize;
            for (first, at) in left_at.iter().enumerate() {
                let within = left_at[first..].partition_point(|it| *it < *at + Duration::from_secs(1));
                prop_assert!(within <= at_most, "{} in a second of {}", within, per_second);
            }
        }

        /// One that is asked in time takes as long as the rate says.
        #[test]
        fn and_is_what_was_asked_for(per_second in 1u32..2_000, visitors in 1usize..600) {
            let start = Instant::now();
            let mut shedding = Shedding::new(per_second, Duration::from_secs(1_000_000), start);
            shedding.add((0..visitors).map(|it| (party(0), it)), usize::MAX);
            let mut now = start;
            while shedding.waiting() > 0 {
                now = shedding.next_tick(now).unwrap();
                while shedding.next(|_| true, now).is_some() {}
            }
            let at_once = (per_second / 10).max(1) as usize;
            let paced = visitors.saturating_sub(at_once) as f64 / f64::from(per_second);
            let took = (now - start).as_secs_f64();
            prop_assert!((took - paced).abs() < 0.01 + paced * 0.01, "{} s instead of {}", took, paced);
        }
    }
}
