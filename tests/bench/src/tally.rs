//! How did the calls of one run end, and how long did they take?

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

/// Answers later than this count as late: it is also the timeout that calls ask for.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// The ends of all calls of one run. Anything but `answered` is a fault of the system or of the bench.
#[derive(Debug)]
pub struct Tally {
    /// Calls with the right answer in time, warm-up and drain included.
    pub answered: u64,
    /// Right answers that came after [`CALL_TIMEOUT`].
    pub late: u64,
    /// Calls without an answer when the drain ended.
    pub lost: u64,
    /// Answers with the body of another call, or with a body altered.
    pub mixed_up: u64,
    /// Answers to no open call: a second one, or one to somebody else's.
    pub unasked: u64,
    /// Calls that reached a target that was not theirs.
    pub misdelivered: u64,
    /// Calls answered with an error instead.
    pub refused: u64,
    /// What the first fault looked like.
    pub first_fault: Option<String>,
    latency_ns: Histogram<u64>,
}

impl Tally {
    /// Nothing has happened yet.
    ///
    /// # Errors
    /// Never with the bounds in use.
    pub fn new() -> anyhow::Result<Self> {
        Ok(Self {
            answered: 0,
            late: 0,
            lost: 0,
            mixed_up: 0,
            unasked: 0,
            misdelivered: 0,
            refused: 0,
            first_fault: None,
            latency_ns: Histogram::new_with_bounds(1_000, 60_000_000_000, 3)?,
        })
    }

    /// A right answer. `measured` is false for calls of the warm-up, whose latency is not of interest.
    pub fn answer(&mut self, latency: Duration, measured: bool) {
        if latency > CALL_TIMEOUT {
            self.late += 1;
            self.first_fault.get_or_insert_with(|| format!("an answer after {latency:?}"));
            return;
        }
        self.answered += 1;
        if measured {
            self.latency_ns.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    /// Keeps the description of the first fault.
    pub fn describe(&mut self, fault: impl FnOnce() -> String) {
        self.first_fault.get_or_insert_with(fault);
    }

    /// The numbers of faults.
    pub fn faults(&self) -> Faults {
        Faults {
            late: self.late,
            lost: self.lost,
            mixed_up: self.mixed_up,
            unasked: self.unasked,
            misdelivered: self.misdelivered,
            refused: self.refused,
            first: self.first_fault.clone(),
        }
    }

    /// The latencies of the measured calls.
    pub fn latency(&self) -> Latency {
        let at = |quantile| ms(self.latency_ns.value_at_quantile(quantile));
        Latency {
            calls: self.latency_ns.len(),
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: ms(self.latency_ns.max()),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a latency has far fewer than 53 bits of nanoseconds")]
fn ms(ns: u64) -> f64 {
    ns as f64 / 1e6
}

/// Calls that did not end as they should; all zero in a run that holds.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Faults {
    /// See [`Tally::late`].
    pub late: u64,
    /// See [`Tally::lost`].
    pub lost: u64,
    /// See [`Tally::mixed_up`].
    pub mixed_up: u64,
    /// See [`Tally::unasked`].
    pub unasked: u64,
    /// See [`Tally::misdelivered`].
    pub misdelivered: u64,
    /// See [`Tally::refused`].
    pub refused: u64,
    /// What the first one looked like.
    pub first: Option<String>,
}

impl Faults {
    /// How many there were in all.
    pub fn count(&self) -> u64 {
        self.late + self.lost + self.mixed_up + self.unasked + self.misdelivered + self.refused
    }
}

/// Percentiles of a run's latencies, in milliseconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Latency {
    /// How many calls they are taken from.
    pub calls: u64,
    /// Half of the calls were at least this fast.
    pub p50_ms: f64,
    /// 90 %.
    pub p90_ms: f64,
    /// 99 %.
    pub p99_ms: f64,
    /// 99.9 %.
    pub p999_ms: f64,
    /// The slowest.
    pub max_ms: f64,
}
