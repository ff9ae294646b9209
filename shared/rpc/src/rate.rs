//! How often may something happen? So many times a second on average, so many at once, for one or for each of many.

use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::QuickMap;

/// So many a second on average, so many at once.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Per second; 0 means no limit.
    pub per_second: u32,
    /// At once, after a pause.
    pub burst: u32,
}

/// A token bucket, full at first.
#[derive(Debug)]
pub struct TokenBucket {
    /// The time at which the bucket will be (or was) full: one number says it all.
    full_at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(now: Instant) -> Self {
        TokenBucket { full_at: now }
    }

    /// True when no token is missing.
    pub fn is_full(&self, now: Instant) -> bool {
        self.full_at <= now
    }

    /// When there is a token, if there is none now.
    pub fn next(&self, rate: Rate, now: Instant) -> Option<Instant> {
        if rate.per_second == 0 {
            return None;
        }
        let token = Duration::from_secs(1) / rate.per_second;
        let next = self.full_at.checked_sub(token * (rate.burst.max(1) - 1))?;
        (next > now).then_some(next)
    }

    /// Takes one token, if there is one.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let has_one = self.wait(rate, now).is_zero();
        if has_one {
            self.spend(rate, Duration::ZERO, now);
        }
        has_one
    }

    /// How long until there is a token.
    pub fn wait(&self, rate: Rate, now: Instant) -> Duration {
        let Some(token) = earned_in(rate) else { return Duration::ZERO };
        (self.full_at.max(now) + token).saturating_duration_since(now + token * rate.burst.max(1))
    }

    /// Takes one token though there may be none: it is owed then, up to `max_debt` of time.
    pub fn spend(&mut self, rate: Rate, max_debt: Duration, now: Instant) {
        let Some(token) = earned_in(rate) else { return };
        let latest = (now + token * rate.burst.max(1) + max_debt).max(self.full_at);
        self.full_at = (self.full_at.max(now) + token).min(latest);
    }

    /// Takes one token, and says how long until it is there: turns are at the rate, however late each is made use of.
    pub fn turn(&mut self, rate: Rate, now: Instant) -> Duration {
        let wait = self.wait(rate, now);
        self.spend(rate, wait, now);
        wait
    }

    /// One that was taken comes back.
    pub fn give_back(&mut self, rate: Rate) {
        let earlier = earned_in(rate).and_then(|token| self.full_at.checked_sub(token));
        self.full_at = earlier.unwrap_or(self.full_at);
    }
}

/// How long it takes to earn one token. None where there is no limit.
fn earned_in(rate: Rate) -> Option<Duration> {
    Duration::from_secs(1).checked_div(rate.per_second)
}

/// A bucket for each of many. In memory stand those that took something lately.
#[derive(Debug)]
pub struct Rates<K> {
    rate: Mutex<Rate>,
    buckets: Mutex<QuickMap<K, TokenBucket>>,
}

/// Buckets that are kept before it is looked which are full.
const KEPT_BUCKETS: usize = 1_024;

impl<K: Eq + Hash> Rates<K> {
    /// Full buckets for all.
    pub fn new(rate: Rate) -> Self {
        Rates { rate: Mutex::new(rate), buckets: Mutex::default() }
    }

    /// The rate of the other from now on.
    pub fn change_as(&self, other: &Rates<K>) {
        *self.rate.lock() = *other.rate.lock();
    }

    /// Takes one token of that bucket, if there is one.
    pub fn take(&self, of: K, now: Instant) -> bool {
        let rate = *self.rate.lock();
        rate.per_second == 0 || self.with(of, now, |bucket| bucket.take(rate, now))
    }

    /// Takes what there may not be yet, up to `max_wait` of time, and says when there is.
    pub fn take_later(&self, of: K, max_wait: Duration, now: Instant) -> Option<Instant> {
        let rate = *self.rate.lock();
        self.with(of, now, |bucket| {
            let then = bucket.next(rate, now);
            bucket.spend(rate, max_wait, now);
            then
        })
    }

    fn with<T>(&self, of: K, now: Instant, take: impl FnOnce(&mut TokenBucket) -> T) -> T {
        let mut buckets = self.buckets.lock();
        // As often as it has doubled: nobody's turn pays for everybody's.
        if buckets.len() == buckets.capacity() && buckets.len() >= KEPT_BUCKETS {
            buckets.retain(|_, bucket| !bucket.is_full(now));
        }
        take(buckets.entry(of).or_insert_with(|| TokenBucket::new(now)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: Rate = Rate { per_second: 100, burst: 10 };

    #[test]
    fn each_has_its_rate_and_who_is_quiet_takes_no_memory() {
        let (rates, start) = (Rates::new(Rate { per_second: 100, burst: 100 }), Instant::now());
        let taken = (0..500).filter(|_| rates.take(1, start)).count();
        assert_eq!(taken, 100);
        assert!(rates.take(2, start), "nobody else notices");
        assert!(!rates.take(1, start) && rates.take(1, start + Duration::from_millis(10)));
        for number in 0..100_000 {
            assert!(rates.take(10 + number, start + Duration::from_secs(2 * number)));
        }
        assert!(rates.buckets.lock().len() < 4 * KEPT_BUCKETS);
        rates.change_as(&Rates::new(Rate { per_second: 0, burst: 0 }));
        assert!((0..1_000).all(|_| rates.take(1, start)), "there is no limit");
    }

    proptest! {
        #[test]
        fn turns_are_at_the_rate_however_late_timers_are(
            late_us in proptest::collection::vec(0u64..2_000, 64), takes_us in 1_000u64..10_000,
        ) {
            const TURNS: usize = 1_000;
            let rate = Rate { per_second: 5_000, burst: 100 };
            let start = Instant::now();
            let mut bucket = TokenBucket::new(start);
            // When each of 64 that work at the same time is free for the next one.
            let mut free = vec![start; late_us.len()];
            let mut begun = Vec::new();
            while begun.len() < TURNS {
                let next = (0..free.len()).min_by_key(|worker| free[*worker]).unwrap();
                let begins = free[next] + bucket.turn(rate, free[next]);
                begun.push(begins);
                free[next] = begins + Duration::from_micros(late_us[next] + takes_us);
            }
            begun.sort_unstable();
            let took = begun[TURNS - 1].duration_since(start);
            let ideal = Duration::from_secs(1) * (TURNS as u32 - rate.burst) / rate.per_second;
            prop_assert!(took >= ideal, "{took:?}");
            // 64 that take up to 12 ms do more than 5,000 a second, so the rate alone counts.
            prop_assert!(took < ideal + Duration::from_millis(15), "{took:?}");
        }

        #[test]
        fn a_bucket_never_gives_more_than_its_rate(gaps_us in proptest::collection::vec(0u64..20_000, 1..300)) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(start);
            let (mut now, mut taken) = (start, 0u64);
            for gap in gaps_us {
                now += Duration::from_micros(gap);
                let next = bucket.next(RATE, now);
                let is_taken = bucket.take(RATE, now);
                prop_assert_eq!(next.is_none(), is_taken);
                if let Some(next) = next {
                    prop_assert!(bucket.next(RATE, next).is_none());
                    prop_assert!(bucket.next(RATE, next - Duration::from_nanos(1)).is_some());
                }
                taken += u64::from(is_taken);
                let earned = 10 + now.duration_since(start).as_micros() as u64 * 100 / 1_000_000;
                prop_assert!(taken <= earned + 1, "{taken} taken, {earned} earned");
            }
        }
    }
}
