//! Where do log lines go, and what do they look like? To standard error, for people or for machines.

use std::fmt;
use std::io::{IsTerminal, stderr};
use std::panic::PanicHookInfo;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{Log, LogFormat};
use crate::log_limit::LineLimit;
use crate::panics;

/// Logs could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// `log.level` is no filter; cannot happen with loaded settings.
    #[error("log.level {level:?} is no filter")]
    Level {
        /// As given.
        level: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// This process has a subscriber already.
    #[error("logs are set up twice")]
    Twice,
}

/// Changes what is logged, to a `log.level` of loaded settings.
pub type Level = Box<dyn Fn(&str) + Send + Sync>;

/// Sets up the logs of this process, panics included, which end it from now on ([`panics`]). What is logged comes from
/// the settings alone, not from `RUST_LOG`.
///
/// # Errors
/// When the process has logs already.
pub fn init(settings: &Log) -> Result<Level, LogError> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(&settings.level)?).with_writer(stderr);
    let level: Level;
    let set = if is_json(settings) {
        // Without the module, whose key would be `target`, like the field for the device that is called.
        let builder = builder
            .json()
            .with_target(false)
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_filter_reloading();
        level = relevel(builder.reload_handle());
        builder.finish().with(LineLimit).try_init()
    } else {
        let builder = builder.compact().with_timer(UtcClock).with_ansi(stderr().is_terminal());
        let builder = builder.with_filter_reloading();
        level = relevel(builder.reload_handle());
        builder.finish().with(LineLimit).try_init()
    };
    set.map_err(|_| LogError::Twice)?;
    let as_a_line: fn(&PanicHookInfo<'_>) = |panic| tracing::error!(panic = %panic, "a thread panicked");
    panics::end_the_process(is_json(settings).then_some(as_a_line));
    Ok(level)
}

fn relevel<S: 'static>(handle: Handle<EnvFilter, S>) -> Level {
    Box::new(move |level| match filter(level).map(|filter| handle.reload(filter)) {
        Ok(Ok(())) => {}
        failed => tracing::error!(?failed, "what is logged could not be changed"),
    })
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    let parsed = EnvFilter::builder().parse(with_quiet_libraries(level));
    parsed.map_err(|source| LogError::Level { level: level.to_owned(), source })
}

/// Libraries that say at `info` and below what only their own developers want to know.
const CHATTY: [&str; 5] = ["async_nats", "hyper", "hyper_util", "rustls", "tungstenite"];

/// The filter, with warnings alone from chatty libraries that it does not name itself: `debug` is about Switchboard.
fn with_quiet_libraries(level: &str) -> String {
    let mut filter = level.to_owned();
    for library in CHATTY.into_iter().filter(|library| !level.contains(library)) {
        filter.push_str(&format!(",{library}=warn"));
    }
    if !level.contains("async_nats") {
        // It reports each attempt; the bus says why there is no connection, once.
        filter.push_str(",async_nats::connector=off");
    }
    filter
}

/// Whether lines are JSON, as asked for or because nobody looks on.
pub fn is_json(settings: &Log) -> bool {
    match settings.format {
        LogFormat::Auto => !stderr().is_terminal(),
        LogFormat::Pretty => false,
        LogFormat::Json => true,
    }
}

/// `2026-01-31 23:59:59.123Z`
struct UtcClock;

impl FormatTime for UtcClock {
    fn format_time(&self, out: &mut Writer<'_>) -> fmt::Result {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        write_utc(out, since_1970.as_secs(), since_1970.subsec_millis())
    }
}

fn write_utc(out: &mut impl fmt::Write, seconds: u64, millis: u32) -> fmt::Result {
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
    write!(out, "{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Year, month and day of a count of days since 1970: Howard Hinnant's `civil_from_days`, for years that begin
/// in March.
fn civil_date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (400 * era + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utc_over_leap_years() {
        let cases = [
            (0, "1970-01-01 00:00:00.007Z"),
            (951_782_400, "2000-02-29 00:00:00.007Z"),
            (1_709_251_199, "2024-02-29 23:59:59.007Z"),
            (1_709_251_200, "2024-03-01 00:00:00.007Z"),
            (4_107_542_399, "2100-02-28 23:59:59.007Z"),
            (4_107_542_400, "2100-03-01 00:00:00.007Z"),
        ];
        for (seconds, expected) in cases {
            let mut out = String::new();
            write_utc(&mut out, seconds, 7).unwrap();
            assert_eq!(out, expected);
        }
    }
}
