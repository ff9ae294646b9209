//! Where do log lines go, and what do they look like? To standard error, for people or for machines.

use std::io::{IsTerminal, stderr};
use std::panic::PanicHookInfo;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload::Handle;
use tracing_subscriber::util::SubscriberInitExt;

use crate::InForce;
use crate::config::{Log, LogFormat};
use crate::log_limit::LineLimit;
use crate::log_line::{JsonLine, UtcClock};
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

/// Sets up the logs of the process that runs `service`, panics included, which end it from now on ([`panics`]). What
/// is logged comes from the settings alone, not from `RUST_LOG`.
///
/// # Errors
/// When the process has logs already.
pub fn init(service: &'static str, settings: &Log) -> Result<Level, LogError> {
    let builder = tracing_subscriber::fmt().with_env_filter(filter(&settings.level)?).with_writer(stderr);
    let relevel: Level;
    let set = if is_json(settings) {
        let builder = builder
            .json()
            .with_target(false)
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .map_event_format(|json| JsonLine { service, json })
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
    Arc::new(move |level| {
        let changed = filter(level).map_err(|error| error.to_string());
        let changed = changed.and_then(|filter| handle.reload(filter).map_err(|error| error.to_string()));
        if let Err(error) = changed {
            tracing::error!(error, "what is logged could not be changed");
        }
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
