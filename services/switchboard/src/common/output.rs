//! How does a command speak? Results to standard output, everything else to standard error.

use std::borrow::Cow;
use std::fmt;
use std::io::{IsTerminal, Write, stderr, stdin, stdout};

use bus::registry::misleads;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A line of the result. A reader that has gone (`| head`) ends the program quietly, as it would `ls`.
pub(crate) fn say(line: impl fmt::Display) {
    let mut out = stdout().lock();
    let line = line.to_string();
    // Of a file or a pipe the reader wants the bytes as they are.
    let line = if out.is_terminal() { shown(&line) } else { line.into() };
    if writeln!(out, "{line}").is_err() {
        std::process::exit(0);
    }
}

/// The result for machines: one JSON document.
pub(crate) fn say_json(document: &impl Serialize) -> anyhow::Result<()> {
    say(serde_json::to_string_pretty(document)?);
    Ok(())
}

/// A line for the person at the terminal, which is not part of the result.
pub(crate) fn note(line: impl fmt::Display) {
    let _ = writeln!(stderr(), "{}", shown(&line.to_string()));
}

/// A text, a device's answer say, as it may stand on a terminal: what would steer the terminal, or turn what is read,
/// is told by its number.
fn shown(text: &str) -> Cow<'_, str> {
    let steers = |character: char| misleads(character) && !matches!(character, '\n' | '\t');
    if !text.chars().any(steers) {
        return text.into();
    }
    let told = |character: char| {
        if steers(character) { character.escape_unicode().to_string() } else { character.into() }
    };
    text.chars().map(told).collect::<String>().into()
}

/// A time, in seconds since 1970, as RFC 3339 writes it.
pub(crate) fn moment(time_s: u64) -> String {
    let time = i64::try_from(time_s).ok().and_then(|time| OffsetDateTime::from_unix_timestamp(time).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}

/// The command failed.
pub(crate) fn complain(error: &anyhow::Error) {
    let causes = error.chain().skip(1).map(|cause| format!("\n  because: {cause}")).collect::<String>();
    note(format_args!("error: {error}{causes}"));
}

/// Asks before something is lost. Without a terminal there is nobody to ask: `--yes` must have been given.
///
/// # Errors
/// When the answer is not yes, or nobody can be asked.
pub(crate) fn confirm(question: &str, is_agreed: bool) -> anyhow::Result<()> {
    if is_agreed {
        return Ok(());
    }
    if !stdin().is_terminal() || !stderr().is_terminal() {
        anyhow::bail!("{question}? There is no terminal to ask on: say --yes to do it");
    }
    let _ = write!(stderr(), "{question}? [y/N] ");
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    if matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes") {
        return Ok(());
    }
    anyhow::bail!("nothing was changed")
}

/// `1 device`, `2 devices`.
pub(crate) fn count(number: usize, one: &str) -> String {
    let many = match one.strip_suffix('y') {
        _ if number == 1 => one.to_owned(),
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        _ if one.ends_with('s') => format!("{one}es"),
        _ => format!("{one}s"),
    };
    format!("{} {many}", grouped(number))
}

/// `512 B`, `1.5 MB`
pub(crate) fn size(bytes: u64) -> String {
    let units = [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit as f64),
        None => format!("{bytes} B"),
    }
}

/// `19,000`
pub(crate) fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well() {
        assert_eq!(count(0, "device"), "0 devices");
        assert_eq!(count(1, "device"), "1 device");
        assert_eq!([count(1, "policy"), count(2, "policy")], ["1 policy", "2 policies"]);
        assert_eq!(count(2, "day"), "2 days");
        assert_eq!(count(19_000, "device"), "19,000 devices");
        assert_eq!(grouped(1_234_567), "1,234,567");
        assert_eq!(grouped(123), "123");
        assert_eq!([size(999), size(1_536_000), size(2_000_000_000)], ["999 B", "1.5 MB", "2.0 GB"]);
    }

    #[test]
    fn what_would_steer_a_terminal_is_told_by_its_number() {
        for (text, expected) in [
            ("Gerät №5\n\tA", "Gerät №5\n\tA"),
            ("\u{1b}[2J\u{1b}]0;x\u{7}", "\\u{1b}[2J\\u{1b}]0;x\\u{7}"),
            ("a\rb\u{8}c\u{9b}1m", "a\\u{d}b\\u{8}c\\u{9b}1m"),
            ("a\u{202e}b\u{2066}c\u{200f}", "a\\u{202e}b\\u{2066}c\\u{200f}"),
        ] {
            assert_eq!(shown(text), expected);
        }
    }
}
