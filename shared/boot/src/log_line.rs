//! What does a line of the log say besides its words? When it was, and to machines: which service wrote it, and where
//! in the code.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use tracing::{Event, Subscriber};
use tracing_subscriber::fmt::format::{Format, Json, Writer};
use tracing_subscriber::fmt::time::FormatTime;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// A line as JSON, with `service` and `module`. Not `target`: that is the device that is called.
pub(crate) struct JsonLine {
    pub(crate) service: &'static str,
    pub(crate) json: Format<Json>,
}

impl<S, N> FormatEvent<S, N> for JsonLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.json.format_event(context, Writer::new(&mut line), event)?;
        let said = line.trim_end().strip_suffix('}').ok_or(fmt::Error)?;
        // Names of a service and of Rust's modules: nothing in them that JSON would escape.
        let (service, module) = (self.service, event.metadata().target());
        writeln!(writer, "{said},\"service\":\"{service}\",\"module\":\"{module}\"}}")
    }
}

/// `2026-01-31 23:59:59.123Z`
pub(crate) struct UtcClock;

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
