//! What time is it by this machine's clock? For what people read, and for what ends at a date: clocks differ and jump,
//! so nothing that two processes must agree on is told by it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since 1970; none before.
pub fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    since_1970().as_secs()
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    u64::try_from(since_1970().as_millis()).unwrap_or(u64::MAX)
}
