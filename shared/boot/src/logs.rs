//! Where do log lines go, and what do they look like? To standard error, for people or for machines.

use std::fmt;
use std::io::{IsTerminal, stderr};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt;

use crate::InForce;
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
pub type Level = Arc<dyn Fn(&str) + Send + Sync>;

/// The log of this process, and what is in it now.
static NOW: Mutex<Option<Now>> = Mutex::new(None);

struct Now {
    level: Level,
    filter: String,
    /// How often it was changed: who changes it back looks whether somebody else has changed it since.
    changes: u64,
}

/// What this process logs now: a filter as `log.level` has it.
pub fn level() -> String {
    NOW.lock().as_ref().map(|now| now.filter.clone()).unwrap_or_default()
}

/// Logs what `filter` says for a while, then what the settings say.
///
/// # Errors
/// When it is no filter, or this process has no log.
pub fn for_a_while(wanted: &str, lasts: Duration, in_force: InForce) -> Result<(), String> {
    if let Err(LogError::Level { source, .. }) = filter(wanted) {
        return Err(format!("{wanted:?} is no filter, as debug, or info,switchboard_router=debug: {source}"));
    }
    let changes = change(wanted).ok_or("this process has no log of its own")?;
    tracing::info!(level = wanted, lasts_s = lasts.as_secs(), "an operator changes what is logged");
    tokio::spawn(async move {
        tokio::time::sleep(lasts).await;
        let is_changed = NOW.lock().as_ref().is_none_or(|now| now.changes != changes);
        if !is_changed {
            let level = &in_force.now().log.level;
            tracing::info!(level, "what is logged is as the settings say again");
            change(level);
        }
    });
    Ok(())
}

/// Changes what is logged; returns how often that was done.
fn change(filter: &str) -> Option<u64> {
    let mut now = NOW.lock();
    let now = now.as_mut()?;
    (now.level)(filter);
    now.filter = filter.to_owned();
    now.changes += 1;
    Some(now.changes)
}

/// Sets up the logs of this process, panics included, which end it from now on ([`panics`]). What is logged comes from
/// the settings alone, not from `RUST_LOG`.
///
/// # Errors
/// When the process has logs already.
pub fn init(settings: &Log) -> Result<Level, LogError> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(&settings.level)?).with_writer(stderr);
    let relevel: Level;
    let set = if is_json(settings) {
        // Without the module, whose key would be `target`, like the field for the device that is called.
        let builder = builder
            .json()
            .with_target(false)
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_filter_reloading();
        relevel = releveling(builder.reload_handle());
        builder.finish().with(LineLimit).try_init()
    } else {
        let builder = builder.compact().with_timer(UtcClock).with_ansi(stderr().is_terminal());
        let builder = builder.with_filter_reloading();
        relevel = releveling(builder.reload_handle());
        builder.finish().with(LineLimit).try_init()
    };
    set.map_err(|_| LogError::Twice)?;
    *NOW.lock() = Some(Now { level: relevel, filter: settings.level.clone(), changes: 0 });
    let as_a_line: fn(&PanicHookInfo<'_>) = |panic| tracing::error!(panic = %panic, "a thread panicked");
    panics::end_the_process(is_json(settings).then_some(as_a_line));
    Ok(Arc::new(|level| {
        change(level);
    }))
}

fn releveling<S: 'static>(handle: Handle<EnvFilter, S>) -> Level {
    Arc::new(move |level| match filter(level).map(|filter| handle.reload(filter)) {
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
