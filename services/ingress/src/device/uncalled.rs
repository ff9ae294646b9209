//! Who asked to be callable, and is not because his claim was not written? Few clients look at what their SUBSCRIBE was
//! answered: they stay, and nobody reaches them. So each is sent away, to come back and ask anew: once claims are
//! written again, and until then one at a time, since on a quiet node nobody else finds out. Who always has calls of
//! his own in flight, and so never finds the moment to leave, is cut off when his turn comes a second time. Pure.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rpc::{QuickSet, Rate, TokenBucket};

use super::shed::Step;

/// For so long a client that does look may ask again by itself.
const OWN_TRY: Duration = Duration::from_secs(10);
/// How often one is sent away while no claim is written.
const PROBES: Duration = Duration::from_secs(30);

/// From so many on it is looked who has gone, each time that twice as many wait.
const MANY: usize = 64;

/// Visitors whose last claim was not written. `V` is how one is reached.
#[derive(Debug)]
pub struct Uncalled<V> {
    /// The oldest first, and each visit once.
    waiting: VecDeque<Waiting<V>>,
    visits: QuickSet<u64>,
    /// With so many it is looked who has gone.
    look_at: usize,
    /// When a claim was written last.
    written_at: Option<Instant>,
    probed_at: Option<Instant>,
    pace: TokenBucket,
}

#[derive(Debug)]
struct Waiting<V> {
    since: Instant,
    visit: u64,
    visitor: V,
    /// To leave, at that time.
    is_told: bool,
}

impl<V: Clone> Uncalled<V> {
    /// Of nobody yet.
    pub fn new(now: Instant) -> Self {
        Uncalled {
            waiting: VecDeque::new(),
            visits: QuickSet::default(),
            look_at: MANY,
            written_at: None,
            probed_at: None,
            pace: TokenBucket::new(now),
        }
    }

    /// This visit's claim was not written. While none is, nobody leaves the queue in his turn: so those who have gone
    /// are left out when there are many.
    pub fn refused(&mut self, visit: u64, visitor: V, is_here: impl Fn(&V) -> bool, now: Instant) {
        if self.waiting.len() >= self.look_at {
            self.waiting.retain(|it| is_here(&it.visitor) || !self.visits.remove(&it.visit));
            self.look_at = MANY.max(2 * self.waiting.len());
        }
        if self.visits.insert(visit) {
            self.waiting.push_back(Waiting { since: now, visit, visitor, is_told: false });
        }
    }

    /// Somebody's claim was. Whether somebody is due sooner by that.
    pub fn written(&mut self, now: Instant) -> bool {
        let is_news = self.waiting.front().is_some_and(|it| !self.was_written_after(it.since));
        self.written_at = Some(now);
        is_news
    }

    /// Who is to be sent away now, if anybody; ask until there is nobody. Who has gone meanwhile, or is callable, is
    /// passed over.
    pub fn next(&mut self, is_uncalled: impl Fn(&V) -> bool, rate: Rate, now: Instant) -> Option<Step<V>> {
        while self.due_at().is_some_and(|at| at <= now) {
            let is_uncalled = self.waiting.front().is_some_and(|it| is_uncalled(&it.visitor));
            if is_uncalled && !self.pace.take(rate, now) {
                return None;
            }
            let Waiting { since, visit, visitor, is_told } = self.waiting.pop_front()?;
            if is_uncalled && !self.was_written_after(since) {
                self.probed_at = Some(now);
            }
            if is_uncalled && !is_told {
                let told = Waiting { since: now, visit, visitor: visitor.clone(), is_told: true };
                self.waiting.push_back(told);
                return Some(Step::Leave(visitor));
            }
            self.visits.remove(&visit);
            if is_uncalled {
                return Some(Step::CutOff(visitor));
            }
        }
        None
    }

    /// When to ask [`next`](Self::next) again, unless a claim is written before.
    pub fn next_tick(&self, rate: Rate, now: Instant) -> Option<Instant> {
        self.due_at().map(|at| at.max(now + self.pace.wait(rate, now)))
    }

    fn due_at(&self) -> Option<Instant> {
        let since = self.waiting.front()?.since;
        Some(match self.was_written_after(since) {
            true => since + OWN_TRY,
            false => (self.probed_at.unwrap_or(since) + PROBES).max(since + OWN_TRY),
        })
    }

    fn was_written_after(&self, since: Instant) -> bool {
        self.written_at.is_some_and(|written_at| written_at >= since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { per_second: 10, burst: 1 };

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn all_leave_paced_once_a_claim_is_written() {
        let now = Instant::now();
        let mut uncalled = Uncalled::new(now);
        (0..3).for_each(|visit| uncalled.refused(visit, visit, |_| true, now));
        assert!(uncalled.written(now + seconds(1)), "all are due sooner");
        assert!(!uncalled.written(now + seconds(2)), "they are already");
        assert_eq!(uncalled.next_tick(RATE, now), Some(now + OWN_TRY));
        assert_eq!(uncalled.next(|_| true, RATE, now + OWN_TRY - Duration::from_millis(1)), None);
        let mut left = Vec::new();
        let mut at = now;
        while let Some(next) = uncalled.next_tick(RATE, at) {
            at = next;
            uncalled.written(at);
            // The last one is busy, and does not find the moment.
            let is_here = |visit: &u64| *visit == 2 || at < now + OWN_TRY * 2;
            left.extend(uncalled.next(is_here, RATE, at).map(|step| (step, (at - now).as_millis())));
        }
        let leave = |visit, ms| (Step::Leave(visit), ms);
        assert_eq!(left, [leave(0, 10_000), leave(1, 10_100), leave(2, 10_200), (Step::CutOff(2), 20_200)]);
        assert!(uncalled.waiting.is_empty() && uncalled.visits.is_empty());
    }

    #[test]
    fn while_none_is_written_one_leaves_now_and_then() {
        let now = Instant::now();
        let mut uncalled = Uncalled::new(now);
        assert!(!uncalled.written(now), "nobody waits");
        let refused_at = now + seconds(1);
        (0..3).for_each(|visit| uncalled.refused(visit, visit, |_| true, refused_at));
        assert_eq!(uncalled.next_tick(RATE, refused_at), Some(refused_at + PROBES));
        let probed_at = refused_at + PROBES;
        assert_eq!(uncalled.next(|_| true, RATE, probed_at), Some(Step::Leave(0)));
        assert_eq!(uncalled.next(|_| true, RATE, probed_at + seconds(1)), None);
        assert_eq!(uncalled.next_tick(RATE, probed_at), Some(probed_at + PROBES));
        // It came back, and its claim was written.
        assert!(uncalled.written(probed_at + seconds(2)));
        assert_eq!(uncalled.next(|_| true, RATE, probed_at + seconds(2)), Some(Step::Leave(1)));
    }

    #[test]
    fn who_has_asked_again_or_gone_is_passed_over_and_nobody_waits_twice() {
        let now = Instant::now();
        let mut uncalled = Uncalled::new(now);
        [1, 2, 1, 3].iter().for_each(|visit| uncalled.refused(*visit, *visit, |_| true, now));
        assert!(uncalled.written(now));
        assert_eq!(uncalled.next(|visit| *visit != 1, RATE, now + OWN_TRY), Some(Step::Leave(2)));
        assert_eq!(uncalled.next(|visit| *visit != 3, RATE, now + OWN_TRY), None);
        assert!(uncalled.written(now + OWN_TRY));
        assert_eq!(uncalled.next(|_| false, RATE, now + OWN_TRY * 2), None, "2 has left as it was told");
        assert!(uncalled.waiting.is_empty());
    }

    #[test]
    fn those_who_have_gone_do_not_pile_up_while_no_claim_is_written() {
        let now = Instant::now();
        let mut uncalled = Uncalled::new(now);
        // One of ten stays.
        for visit in 0..10_000 {
            uncalled.refused(visit, visit, |visit| visit % 10 == 0, now);
            let stay = usize::try_from(visit / 10 + 1).unwrap();
            assert!(uncalled.waiting.len() <= MANY.max(2 * stay) + 1, "{} wait", uncalled.waiting.len());
            assert_eq!(uncalled.visits.len(), uncalled.waiting.len());
        }
    }
}
