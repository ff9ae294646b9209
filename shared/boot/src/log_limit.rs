//! How many lines may one place in the code write? A few at once and then one a second, whoever makes it write them;
//! how many were left out is said every ten seconds.
//!
//! It holds for every place, ours and the libraries', from `info` up: what `debug` says somebody has asked for.

use std::collections::HashMap;
use std::fmt;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// Lines that one place may write at once, after a pause.
const BURST: u32 = 30;
/// What it earns one further line in.
const ONE_IN: Duration = Duration::from_secs(1);
/// Between two lines that say how many were left out.
const TELL_EVERY: Duration = Duration::from_secs(10);
/// The field that says it, which is never left out itself.
const LEFT_OUT: &str = "left_out";

/// What each place has written lately. As many as there are in the code.
static PLACES: LazyLock<Mutex<HashMap<Identifier, Place>>> = LazyLock::new(Mutex::default);

/// Of a log.
pub(crate) struct LineLimit;

impl<S: Subscriber> Layer<S> for LineLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || metadata.fields().field(LEFT_OUT).is_some() {
            return true;
        }
        let now = Instant::now();
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        let place = places.entry(metadata.callsite()).or_insert_with(|| Place::new(now));
        let admitted = place.admits(now);
        if place.left_out == 1 && place.like.is_empty() {
            event.record(&mut Message(&mut place.like));
        }
        admitted
    }
}

/// Says how many lines were left out, as long as it is awaited.
pub async fn keep_telling() {
    loop {
        tokio::time::sleep(TELL_EVERY).await;
        tell();
    }
}

/// Says how many lines were left out since it was said last.
pub fn tell() {
    let left_out: Vec<_> = {
        let mut places = PLACES.lock().unwrap_or_else(PoisonError::into_inner);
        places
            .values_mut()
            .filter(|it| it.left_out > 0)
            .map(|it| (it.take_left_out(), it.like.clone()))
            .collect()
    };
    for (left_out, like) in left_out {
        tracing::warn!(left_out, like, "lines were left out of the log");
    }
}

#[derive(Debug)]
struct Place {
    /// When it may write [`BURST`] lines at once again.
    full_at: Instant,
    left_out: u64,
    /// The message of those that were left out.
    like: String,
}

impl Place {
    fn new(now: Instant) -> Self {
        Place { full_at: now, left_out: 0, like: String::new() }
    }

    fn admits(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + ONE_IN;
        let admitted = full_at <= now + ONE_IN * BURST;
        match admitted {
            true => self.full_at = full_at,
            false => self.left_out += 1,
        }
        admitted
    }

    fn take_left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }
}

struct Message<'a>(&'a mut String);

impl Visit for Message<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            *self.0 = format!("{value:?}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_one_a_second_and_the_rest_is_counted() {
        let start = Instant::now();
        let mut place = Place::new(start);
        let admitted = |place: &mut Place, ms: u64| place.admits(start + Duration::from_millis(ms));
        assert_eq!((0..100).filter(|_| admitted(&mut place, 0)).count(), 30);
        assert_eq!(place.take_left_out(), 70);
        // Hammered for ten seconds.
        assert_eq!((1..=10_000).filter(|ms| admitted(&mut place, *ms)).count(), 10);
        assert_eq!((place.take_left_out(), place.take_left_out()), (9_990, 0));
        assert_eq!((0..100).filter(|_| admitted(&mut place, 60_000)).count(), 30, "after a pause");
    }

    #[test]
    fn each_place_has_its_own_and_what_was_left_out_is_said() {
        use std::io::Write;
        use std::sync::Arc;
        use tracing_subscriber::layer::SubscriberExt;

        #[derive(Clone, Default)]
        struct Written(Arc<Mutex<Vec<u8>>>);
        impl Write for Written {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().extend_from_slice(bytes);
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }

        let written = Written::default();
        let writer = written.clone();
        let log = tracing_subscriber::fmt().json().with_max_level(Level::DEBUG);
        let log = log.with_writer(move || writer.clone()).finish().with(LineLimit);
        tracing::subscriber::with_default(log, || {
            for number in 0..100 {
                tracing::warn!(number, "hammered");
                tracing::debug!(number, "asked for");
            }
            tracing::info!("elsewhere");
            tell();
            tell();
        });
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines = |what: &str| text.lines().filter(|it| it.contains(what)).count();
        // One of them says what was like those that are missing.
        assert_eq!((lines("hammered"), lines("asked for"), lines("elsewhere")), (31, 100, 1));
        let told = text.lines().find(|it| it.contains("lines were left out of the log")).unwrap();
        assert!(told.contains("\"left_out\":70") && told.contains("\"like\":\"hammered\""), "{told}");
        assert_eq!(lines("left out"), 1, "{text}");
    }
}
