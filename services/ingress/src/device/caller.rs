//! May this device ask for that now? What it sends is read, and admitted within its limits, whatever its protocol.

use std::time::Instant;

use bytes::Bytes;
use rpc::{Limit, Method, Outcome, TokenBucket};

use super::limits::DeviceLimits;
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
    use std::time::Duration;

    use rpc::Rate;

    use super::*;

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
}
