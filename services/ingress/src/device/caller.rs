//! May this device ask for that now? What it sends is read, and admitted within its limits, whatever its protocol.

use std::time::{Duration, Instant};

use bytes::Bytes;
use rpc::{Limit, Method, Outcome};

use super::limits::{DeviceLimits, Rate};
use crate::device_api::{self, MalformedRequest, Request};

/// A request that goes no further.
#[derive(Debug, PartialEq, Eq)]
pub struct RefusedRequest {
    /// What it tried to be.
    pub method: Method,
    /// Why: what its sender reads.
    pub outcome: Outcome,
    /// It is no request of the device API at all, where protocols with status codes say so.
    pub not_a_request: bool,
}

impl RefusedRequest {
    /// One that comes while `limit` is reached.
    pub fn busy(method: Method, limit: Limit) -> Self {
        RefusedRequest { method, outcome: Outcome::Busy(limit), not_a_request: false }
    }
}

impl From<MalformedRequest> for RefusedRequest {
    fn from(it: MalformedRequest) -> Self {
        RefusedRequest { method: it.method, outcome: it.outcome, not_a_request: it.not_a_request }
    }
}

/// Why telemetry or attributes are not handed up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedUplink {
    /// They must be JSON in UTF-8.
    NotJson,
    /// A limit is reached.
    TooOften(Limit),
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

    /// Reads a request and admits it: it is in flight until [`ended`](Self::ended).
    ///
    /// # Errors
    /// When it is none, or a limit is reached.
    pub fn request(
        &mut self,
        payload: &Bytes,
        limits: &DeviceLimits,
        now: Instant,
    ) -> Result<Request, RefusedRequest> {
        let request = device_api::parse(payload, &limits.api)?;
        self.admit(limits, now).map_err(|limit| RefusedRequest::busy(request.method(), limit))?;
        Ok(request)
    }

    /// Admits one call, or what costs as much, which is in flight until [`ended`](Self::ended).
    ///
    /// # Errors
    /// With the limit that is reached.
    pub fn admit(&mut self, limits: &DeviceLimits, now: Instant) -> Result<(), Limit> {
        if self.in_flight >= limits.max_calls_per_caller {
            return Err(Limit::CallerInFlight);
        }
        if !self.calls.take(limits.call_rate, now) {
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

    /// Admits one telemetry or attributes message, before it is read.
    ///
    /// # Errors
    /// With the limit that is reached.
    pub fn admit_uplink(&mut self, limits: &DeviceLimits, now: Instant) -> Result<(), Limit> {
        self.uplinks.take(limits.uplink_rate, now).then_some(()).ok_or(Limit::UplinkRate)
    }

    /// Admits one telemetry or attributes message.
    ///
    /// # Errors
    /// When it is not what can be handed up, or comes too soon.
    pub fn uplink(
        &mut self,
        payload: &[u8],
        limits: &DeviceLimits,
        now: Instant,
    ) -> Result<(), RefusedUplink> {
        self.admit_uplink(limits, now).map_err(RefusedUplink::TooOften)?;
        match device_api::answer_is_json(payload) {
            true => Ok(()),
            false => Err(RefusedUplink::NotJson),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const RATE: Rate = Rate { per_second: 100, burst: 10 };

    fn limits(max_calls_per_caller: usize, call_rate: Rate) -> DeviceLimits {
        DeviceLimits { max_calls_per_caller, call_rate, uplink_rate: RATE, ..DeviceLimits::for_tests() }
    }

    #[test]
    fn a_caller_in_its_limits_is_admitted_and_beyond_them_is_told_which() {
        let now = Instant::now();
        let mut caller = CallerLimits::new(now);
        let two = limits(2, Rate { per_second: 0, burst: 0 });
        assert_eq!(caller.admit(&two, now), Ok(()));
        assert_eq!(caller.admit(&two, now), Ok(()));
        assert_eq!(caller.admit(&two, now), Err(Limit::CallerInFlight));
        assert!(!caller.is_at_rest(now));
        caller.ended();
        assert_eq!(caller.admit(&two, now), Ok(()));
        caller.ended();
        caller.ended();
        assert!(caller.is_at_rest(now));

        let mut caller = CallerLimits::new(now);
        let many = limits(100, RATE);
        for _ in 0..10 {
            assert_eq!(caller.admit(&many, now), Ok(()));
        }
        assert_eq!(caller.admit(&many, now), Err(Limit::CallRate));
        assert_eq!(caller.admit(&many, now + Duration::from_millis(10)), Ok(()));
        (0..11).for_each(|_| caller.ended());
        assert!(!caller.is_at_rest(now + Duration::from_millis(109)), "the bucket is not full yet");
        assert!(caller.is_at_rest(now + Duration::from_millis(110)));
    }

    #[test]
    fn a_request_is_read_before_it_is_counted() {
        let now = Instant::now();
        let mut caller = CallerLimits::new(now);
        let one = limits(1, Rate { per_second: 0, burst: 0 });
        let refused = caller.request(&Bytes::from_static(b"{"), &one, now).unwrap_err();
        assert_eq!((refused.method, refused.not_a_request), (Method::Other, true));
        let get_time = Bytes::from_static(br#"{"method":"getTime"}"#);
        assert!(matches!(caller.request(&get_time, &one, now), Ok(Request::GetTime)));
        let refused = caller.request(&get_time, &one, now).unwrap_err();
        let outcome = Outcome::Busy(Limit::CallerInFlight);
        assert_eq!(refused, RefusedRequest { method: Method::GetTime, outcome, not_a_request: false });
    }

    #[test]
    fn what_is_handed_up_is_json_and_not_too_often() {
        let now = Instant::now();
        let mut caller = CallerLimits::new(now);
        let limits = limits(1, RATE);
        for text in ["", "nan", "{\"t\":1"] {
            assert_eq!(caller.uplink(text.as_bytes(), &limits, now), Err(RefusedUplink::NotJson));
        }
        for _ in 3..10 {
            assert_eq!(caller.uplink(b"{}", &limits, now), Ok(()));
        }
        let too_often = Err(RefusedUplink::TooOften(Limit::UplinkRate));
        assert_eq!(caller.uplink(b"{}", &limits, now), too_often);
        assert!(!caller.is_at_rest(now));
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
