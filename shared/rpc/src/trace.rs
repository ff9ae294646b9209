//! Which trace does a call belong to? W3C Trace Context: the `traceparent` that devices and hops hand on, and whether
//! a call that comes in is traced at all.

use std::fmt;
use std::str::FromStr;

/// The longest `traceparent` that is carried along, in bytes. Version 00 has 55 (W3C Trace Context §3.2.2); a later
/// one may be longer.
pub const MAX_TRACEPARENT_BYTES: usize = 128;

/// Bytes of version 00, and the least of any later one.
const LENGTH: usize = 55;

/// A text is no `traceparent`: whoever hears it begins a trace of his own (§4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a traceparent of W3C Trace Context")]
pub struct ParseTraceError;

/// One span of a trace, as the next hop hears of it: its parent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace, never 0.
    pub trace: u128,
    /// The span in it, never 0.
    pub span: u64,
    /// Whoever handed it on records its span.
    pub sampled: bool,
}

impl FromStr for TraceContext {
    type Err = ParseTraceError;

    /// §3.2: `00-<trace>-<span>-<flags>` in lower-case hex, no id of zeros alone. Later versions begin in the same
    /// way, and only `sampled` of their flags is known here.
    fn from_str(text: &str) -> Result<Self, ParseTraceError> {
        let (fields, rest) = text.split_at_checked(LENGTH).ok_or(ParseTraceError)?;
        let mut fields = fields.split('-');
        let mut field = |digits| fields.next().and_then(|field| lower_hex(field, digits));
        let ids = (field(2), field(32), field(16), field(2));
        let (Some(version), Some(trace @ 1..), Some(span @ 1..), Some(flags)) = ids else {
            return Err(ParseTraceError);
        };
        let fits = match version {
            0 => rest.is_empty(),
            0xff => false,
            _ => rest.is_empty() || rest.starts_with('-'),
        };
        let span = u64::try_from(span).map_err(|_| ParseTraceError)?;
        if fits { Ok(TraceContext { trace, span, sampled: flags & 1 == 1 }) } else { Err(ParseTraceError) }
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

fn lower_hex(field: &str, digits: usize) -> Option<u128> {
    let is_lower_hex = field.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (field.len() == digits && is_lower_hex).then(|| u128::from_str_radix(field, 16).ok())?
}

/// Whether a call is traced, where it comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sampling {
    /// Its device traces it: as a part of this trace.
    Follow(TraceContext),
    /// As a trace of its own.
    Begin,
    /// No.
    Leave,
}

impl Sampling {
    /// Decides over a call that comes with this `traceparent`. A device's word is obeyed either way; of the calls
    /// without a valid one so many per million are traced. `draw` is asked for those alone, and gives any number, each
    /// as likely as another.
    pub fn decide(traceparent: Option<&str>, per_million: u32, draw: impl FnOnce() -> u64) -> Self {
        match traceparent.and_then(|text| text.parse::<TraceContext>().ok()) {
            Some(parent) if parent.sampled => Sampling::Follow(parent),
            Some(_) => Sampling::Leave,
            None if per_million > 0 && draw() % 1_000_000 < u64::from(per_million) => Sampling::Begin,
            None => Sampling::Leave,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// §3.2.2.5's example.
    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn context(sampled: bool) -> TraceContext {
        TraceContext {
            trace: 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736,
            span: 0x00f0_67aa_0ba9_02b7,
            sampled,
        }
    }

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let ids = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        for (text, expected) in [
            (SAMPLED.to_owned(), Some(true)),
            (format!("00-{ids}-00"), Some(false)),
            // Flags that version 00 does not know (§3.2.2.5.2).
            (format!("00-{ids}-03"), Some(true)),
            (format!("00-{ids}-fe"), Some(false)),
            // Later versions may say more, behind a dash (§3.2.4).
            (format!("cc-{ids}-01"), Some(true)),
            (format!("cc-{ids}-01-what-the-future-holds"), Some(true)),
            (format!("cc-{ids}-01.what-the-future-holds"), None),
            (format!("00-{ids}-01-no-more"), None),
            (format!("ff-{ids}-01"), None),
            (format!("0-{ids}-01"), None),
            (format!("00-{ids}-1"), None),
            (format!("00-{ids}"), None),
            (format!("00-{ids}-0x"), None),
            (format!("00-{ids}-+1"), None),
            (format!("00-{}-01", ids.to_uppercase()), None),
            (format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)), None),
            (format!("00-4bf92f3577b34da6a3ce929d0e0e4736-{}-01", "0".repeat(16)), None),
            // The right length, the wrong places.
            ("00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01".to_owned(), None),
            (format!(" {SAMPLED}"), None),
            (format!("{SAMPLED} "), None),
            ("é".repeat(28), None),
            (String::new(), None),
        ] {
            assert_eq!(text.parse().ok(), expected.map(context), "{text:?}");
        }
    }

    #[test]
    fn a_devices_word_is_obeyed_and_of_the_others_so_many_are_traced() {
        let unsampled = context(false).to_string();
        let none = || panic!("nothing is drawn for");
        assert_eq!(Sampling::decide(Some(SAMPLED), 0, none), Sampling::Follow(context(true)));
        assert_eq!(Sampling::decide(Some(&unsampled), 1_000_000, none), Sampling::Leave);
        assert_eq!(Sampling::decide(None, 0, none), Sampling::Leave);
        for (draw, expected) in [(0, Sampling::Begin), (9, Sampling::Begin), (10, Sampling::Leave)] {
            assert_eq!(Sampling::decide(None, 10, || draw), expected);
            assert_eq!(Sampling::decide(Some("00-1-2-01"), 10, || draw), expected, "a trace of its own");
        }
        assert_eq!(Sampling::decide(None, 1_000_000, || u64::MAX), Sampling::Begin);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(trace in 1u128.., span in 1u64.., sampled: bool) {
            let context = TraceContext { trace, span, sampled };
            prop_assert_eq!(context.to_string().parse(), Ok(context));
            prop_assert_eq!(context.to_string().len(), LENGTH);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = text.parse::<TraceContext>();
        }
    }
}
