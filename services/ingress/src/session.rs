//! What holds for one device's session whatever its protocol? Its limits as a caller, its numbered calls as a target.
//!
//! Pure: time is handed in, and what comes out is to be performed by the protocol's loop.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::{Duration, Instant};

use rpc::{Deadline, Limit};

/// The largest number of a call: the device API's ids are 31 bits wide.
pub const MAX_CALL_NUMBER: u32 = 2_147_483_647;

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

    /// Takes one token, if there is one.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        if rate.per_second == 0 {
            return true;
        }
        let token = Duration::from_secs(1) / rate.per_second;
        let full_at = self.full_at.max(now) + token;
        if full_at.duration_since(now) > token * rate.burst.max(1) {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

/// What one device may do as a caller, over all its connections to this node.
#[derive(Debug)]
pub struct CallerLimits {
    in_flight: usize,
    calls: TokenBucket,
    uplinks: TokenBucket,
}

impl CallerLimits {
    /// Nothing in flight, full buckets.
    pub fn new(now: Instant) -> Self {
        CallerLimits { in_flight: 0, calls: TokenBucket::new(now), uplinks: TokenBucket::new(now) }
    }

    /// Admits one call, which is in flight until [`ended`](Self::ended).
    ///
    /// # Errors
    /// With the limit that is reached.
    pub fn admit(&mut self, max_in_flight: usize, rate: Rate, now: Instant) -> Result<(), Limit> {
        if self.in_flight >= max_in_flight {
            return Err(Limit::CallerInFlight);
        }
        if !self.calls.take(rate, now) {
            return Err(Limit::CallRate);
        }
        self.in_flight += 1;
        Ok(())
    }

    /// One admitted call has ended.
    pub fn ended(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// True when nothing is in flight and both buckets are full: forgetting these limits would change nothing.
    pub fn is_at_rest(&self, now: Instant) -> bool {
        self.in_flight == 0 && self.calls.is_full(now) && self.uplinks.is_full(now)
    }

    /// Admits one telemetry or attributes message.
    ///
    /// # Errors
    /// With the limit that is reached.
    pub fn admit_uplink(&mut self, rate: Rate, now: Instant) -> Result<(), Limit> {
        if self.uplinks.take(rate, now) { Ok(()) } else { Err(Limit::UplinkRate) }
    }
}

/// The calls that have been written to a target and wait for its answer, by the number it knows them under.
///
/// `T` is what the answer goes back to.
#[derive(Debug)]
pub struct OpenCalls<T> {
    open: HashMap<u32, (Deadline, T)>,
    last: u32,
    /// No later than the earliest deadline of all that is open.
    next_expiry: Option<Instant>,
}

impl<T> Default for OpenCalls<T> {
    fn default() -> Self {
        OpenCalls { open: HashMap::new(), last: 0, next_expiry: None }
    }
}

impl<T> OpenCalls<T> {
    /// None open; the first gets this number, for protocols whose answers say no more than it.
    pub fn starting_at(number: u32) -> Self {
        OpenCalls { last: number.saturating_sub(1).min(MAX_CALL_NUMBER - 1), ..OpenCalls::default() }
    }

    /// Opens a call under the next free number.
    ///
    /// # Errors
    /// Hands `reply` back when `max` calls are open already.
    pub fn open(&mut self, reply: T, deadline: Deadline, max: usize) -> Result<u32, T> {
        if self.open.len() >= max {
            return Err(reply);
        }
        // Ends: fewer than `max` numbers are taken.
        loop {
            self.last = if self.last >= MAX_CALL_NUMBER { 1 } else { self.last + 1 };
            if !self.open.contains_key(&self.last) {
                break;
            }
        }
        self.insert(self.last, reply, deadline);
        Ok(self.last)
    }

    /// Opens a call under one of the given numbers, for a target that listens to those alone.
    ///
    /// # Errors
    /// Hands `reply` back when all of them are taken or `max` calls are open already.
    pub fn open_as(
        &mut self,
        numbers: impl Iterator<Item = u32>,
        reply: T,
        deadline: Deadline,
        max: usize,
    ) -> Result<u32, T> {
        if self.open.len() >= max {
            return Err(reply);
        }
        for number in numbers {
            if !self.open.contains_key(&number) {
                self.insert(number, reply, deadline);
                return Ok(number);
            }
        }
        Err(reply)
    }

    /// The target answered call `number`: closes it and says where the answer goes.
    pub fn answer(&mut self, number: u32) -> Option<T> {
        self.open.remove(&number).map(|(_, reply)| reply)
    }

    /// The open call `number`.
    pub fn get(&self, number: u32) -> Option<&T> {
        self.open.get(&number).map(|(_, reply)| reply)
    }

    /// The open call `number`, to be changed.
    pub fn get_mut(&mut self, number: u32) -> Option<&mut T> {
        self.open.get_mut(&number).map(|(_, reply)| reply)
    }

    /// Closes what has run out of time. The router has told the callers by its own clock, so nobody is answered.
    pub fn expire(&mut self, now: Instant) {
        if self.next_expiry.is_none_or(|expiry| now < expiry) {
            return;
        }
        self.open.retain(|_, (deadline, _)| !deadline.has_passed(now));
        self.next_expiry = self.open.values().map(|(deadline, _)| deadline.instant()).min();
    }

    /// When to call [`expire`](Self::expire) next, at the latest. Not moved by an answer: a busy session would
    /// rewind its timer with every call.
    pub fn next_expiry(&self) -> Option<Instant> {
        self.next_expiry
    }

    /// How many calls are open.
    pub fn len(&self) -> usize {
        self.open.len()
    }

    /// True when no call is open.
    pub fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The session has ended: all that was open.
    pub fn drain(&mut self) -> impl Iterator<Item = T> + '_ {
        self.next_expiry = None;
        self.open.drain().map(|(_, (_, reply))| reply)
    }

    fn insert(&mut self, number: u32, reply: T, deadline: Deadline) {
        if let Entry::Vacant(entry) = self.open.entry(number) {
            entry.insert((deadline, reply));
        }
        let expiry = self.next_expiry.map_or(deadline.instant(), |expiry| expiry.min(deadline.instant()));
        self.next_expiry = Some(expiry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rpc::Budget;

    const RATE: Rate = Rate { per_second: 100, burst: 10 };

    #[test]
    fn a_caller_in_its_limits_is_admitted_and_beyond_them_is_told_which() {
        let now = Instant::now();
        let mut caller = CallerLimits::new(now);
        let none = Rate { per_second: 0, burst: 0 };
        assert_eq!(caller.admit(2, none, now), Ok(()));
        assert_eq!(caller.admit(2, none, now), Ok(()));
        assert_eq!(caller.admit(2, none, now), Err(Limit::CallerInFlight));
        caller.ended();
        assert_eq!(caller.admit(2, none, now), Ok(()));

        let mut caller = CallerLimits::new(now);
        for _ in 0..10 {
            assert_eq!(caller.admit(100, RATE, now), Ok(()));
        }
        assert_eq!(caller.admit(100, RATE, now), Err(Limit::CallRate));
        assert_eq!(caller.admit(100, RATE, now + Duration::from_millis(10)), Ok(()));
    }

    #[test]
    fn a_number_is_not_given_twice_while_it_is_open() {
        let now = Instant::now();
        let deadline = Budget::from_ms(1000).starting(now);
        let mut open = OpenCalls { last: MAX_CALL_NUMBER - 1, ..OpenCalls::default() };
        assert_eq!(open.open("a", deadline, 3), Ok(MAX_CALL_NUMBER));
        assert_eq!(open.open("b", deadline, 3), Ok(1));
        assert_eq!(open.open_as([1, 7].into_iter(), "c", deadline, 3), Ok(7));
        assert_eq!(open.open("d", deadline, 3), Err("d"));
        assert_eq!(open.answer(1), Some("b"));
        assert_eq!(open.answer(1), None);
        assert_eq!(open.open_as([7].into_iter(), "e", deadline, 3), Err("e"));
    }

    proptest! {
        #[test]
        fn a_bucket_never_gives_more_than_its_rate(gaps_us in proptest::collection::vec(0u64..20_000, 1..300)) {
            let start = Instant::now();
            let mut bucket = TokenBucket::new(start);
            let (mut now, mut taken) = (start, 0u64);
            for gap in gaps_us {
                now += Duration::from_micros(gap);
                taken += u64::from(bucket.take(RATE, now));
                let earned = 10 + now.duration_since(start).as_micros() as u64 * 100 / 1_000_000;
                prop_assert!(taken <= earned + 1, "{taken} taken, {earned} earned");
            }
        }

        #[test]
        fn what_is_open_is_answered_or_expires_exactly_once(
            steps in proptest::collection::vec((0u32..3, 1u32..2000, 0u64..500), 1..200),
        ) {
            let mut now = Instant::now();
            let mut calls = OpenCalls::default();
            let mut model: HashMap<u32, Deadline> = HashMap::new();
            for (what, budget_ms, gap_ms) in steps {
                now += Duration::from_millis(gap_ms);
                calls.expire(now);
                model.retain(|_, deadline| !deadline.has_passed(now));
                prop_assert_eq!(calls.len(), model.len());
                let deadline = Budget::from_ms(budget_ms).starting(now);
                match what {
                    0 | 1 => if let Ok(number) = calls.open(deadline, deadline, 16) {
                        prop_assert!(model.insert(number, deadline).is_none());
                    } else {
                        prop_assert_eq!(model.len(), 16);
                    },
                    _ => if let Some(&number) = model.keys().next() {
                        prop_assert_eq!(calls.answer(number), model.remove(&number));
                    },
                }
                let earliest = model.values().map(|deadline| deadline.instant()).min();
                if let Some(earliest) = earliest {
                    prop_assert!(calls.next_expiry().is_some_and(|expiry| expiry <= earliest));
                }
            }
        }
    }
}
