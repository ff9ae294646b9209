//! Does each record follow from the one before it? Pure: handed a tenant's records in the order of the stream.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Serialize, Serializer};

use super::Stored;
use super::record::{Previous, Record, hash};

/// Clocks of writers and of the store may differ by so much when it is asked whether a record was old enough to be cut.
const CLOCKS_DIFFER_MS: u64 = 60_000;

/// A place where a chain is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Break {
    /// Records are not there.
    Removed(RangeInclusive<u64>),
    /// A record is not what the one behind it says that it was.
    Changed(u64),
    /// A record stands behind one that came later.
    Reordered(u64),
    /// A record stands there a second time.
    Repeated(u64),
    /// What stands at this place of the stream is no record.
    Unreadable(u64),
    /// A record says another tenant or user than its subject.
    Misplaced(u64),
    /// Records before this one are gone, and were neither old enough nor was the stream full.
    CutTooEarly(u64),
    /// The head that was known from before is not in the chain.
    HeadLost(u64),
}

impl fmt::Display for Break {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Break::Removed(numbers) if numbers.start() == numbers.end() => {
                write!(f, "record {} was removed", numbers.start())
            }
            Break::Removed(numbers) => {
                write!(f, "records {} to {} were removed", numbers.start(), numbers.end())
            }
            Break::Changed(number) => {
                write!(f, "record {number} was changed: the next one has another hash of it")
            }
            Break::Reordered(number) => write!(f, "record {number} stands behind a later one"),
            Break::Repeated(number) => write!(f, "record {number} stands there twice"),
            Break::Unreadable(sequence) => write!(f, "message {sequence} of the stream is no record"),
            Break::Misplaced(number) => {
                write!(f, "record {number} names another tenant or NATS user than its subject")
            }
            Break::CutTooEarly(number) => write!(
                f,
                "what stood before record {number} is gone, and neither the stream's age nor its size explains it"
            ),
            Break::HeadLost(number) => {
                write!(f, "record {number}, the head of an earlier check, is not there as it was")
            }
        }
    }
}

impl Serialize for Break {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Why records before the first one that is left are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cut {
    /// None are.
    Nothing,
    /// They were older than the stream keeps any.
    Age,
    /// The stream was full.
    Size,
    /// Nothing explains it.
    TooEarly,
}

/// What the stream says of itself, which tells a cut that is due from one that is not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// The place of its first message.
    pub first_sequence: u64,
    /// Milliseconds for which it keeps a record; 0: for ever.
    pub max_age_ms: u64,
    /// It is as full as it may be.
    pub is_full: bool,
    /// Milliseconds since 1970.
    pub now_ms: u64,
}

/// A chain's last record: written down elsewhere, it shows later whether the chain is still the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Head {
    /// Its number.
    pub number: u64,
    /// SHA-256 of its bytes.
    pub hash: String,
}

/// One tenant's chain, as far as it was read.
#[derive(Debug)]
pub struct Chain {
    /// From an earlier check, until it is met.
    expected: Option<Head>,
    /// The first record's number, and what it says of the one before it.
    beginning: Option<(u64, Option<Previous>)>,
    head: Option<Head>,
    records: u64,
    missing: Vec<RangeInclusive<u64>>,
    breaks: Vec<Break>,
}

/// What is to be said of a chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// How many records there are.
    pub records: u64,
    /// The number of the first one.
    pub first: u64,
    /// Why those before it are gone.
    pub cut: Cut,
    /// The last one.
    pub head: Option<Head>,
    /// Where it is broken; nowhere if it is whole.
    pub breaks: Vec<Break>,
}

impl Chain {
    /// A chain of which nothing was read yet; `expected` is its head at an earlier check.
    pub fn new(expected: Option<Head>) -> Self {
        Chain { expected, beginning: None, head: None, records: 0, missing: Vec::new(), breaks: Vec::new() }
    }

    /// The next record of the stream.
    pub fn take(&mut self, stored: &Stored) {
        self.records += 1;
        let Some(record) = stored.record() else {
            return self.breaks.push(Break::Unreadable(stored.sequence));
        };
        let Record { number, ref previous, .. } = record;
        if (record.tenant, &record.user) != (stored.tenant, &stored.user) {
            self.breaks.push(Break::Misplaced(number));
        }
        let hash = hash(&stored.bytes);
        if self.expected.as_ref().is_some_and(|head| head.number == number && head.hash == hash) {
            self.expected = None;
        }
        match &self.head {
            None => self.beginning = Some((number, previous.clone())),
            Some(head) if number <= head.number => {
                let found = if self.found(number) { Break::Reordered } else { Break::Repeated };
                // What it is linked to is not looked at: it stands where it was never written.
                return self.breaks.push(found(number));
            }
            Some(head) if number == head.number + 1 => {
                if previous.as_ref().is_none_or(|previous| previous.hash != head.hash) {
                    self.breaks.push(Break::Changed(head.number));
                }
            }
            Some(head) => self.missing.push(head.number + 1..=number - 1),
        }
        self.head = Some(Head { number, hash });
    }

    /// What is to be said of it, once all of it was read. What the stream says of itself is asked after that: it goes
    /// on being cut meanwhile.
    pub fn end(self, limits: Limits) -> Verdict {
        let Chain { expected, beginning, head, records, missing, mut breaks } = self;
        let (first, cut) = match &beginning {
            Some((number, previous)) => (*number, limits.cut(*number, previous.as_ref())),
            None => (0, Cut::Nothing),
        };
        if cut == Cut::TooEarly {
            breaks.insert(0, Break::CutTooEarly(first));
        }
        breaks.extend(missing.into_iter().map(Break::Removed));
        // One that was cut with its time is not missed.
        if let Some(expected) = expected
            && (expected.number >= first || records == 0)
        {
            breaks.push(Break::HeadLost(expected.number));
        }
        Verdict { records, first, cut, head, breaks }
    }

    /// Whether that number was missing; from now on it is not.
    fn found(&mut self, number: u64) -> bool {
        let Some(place) = self.missing.iter().position(|numbers| numbers.contains(&number)) else {
            return false;
        };
        let numbers = self.missing.swap_remove(place);
        let around = [*numbers.start()..=number.saturating_sub(1), number + 1..=*numbers.end()];
        self.missing.extend(around.into_iter().filter(|numbers| !numbers.is_empty()));
        true
    }
}

impl Limits {
    /// Why what stood before the first record that is left is gone.
    fn cut(&self, number: u64, previous: Option<&Previous>) -> Cut {
        let Some(previous) = previous else {
            return if number == 1 { Cut::Nothing } else { Cut::TooEarly };
        };
        // The limits cut a stream at its beginning alone.
        if previous.sequence >= self.first_sequence {
            return Cut::TooEarly;
        }
        let is_old = self.max_age_ms > 0
            && previous.at_ms.saturating_add(self.max_age_ms) <= self.now_ms.saturating_add(CLOCKS_DIFFER_MS);
        match (is_old, self.is_full) {
            (true, _) => Cut::Age,
            (false, true) => Cut::Size,
            (false, false) => Cut::TooEarly,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::Entry;
    use super::*;
    use bytes::Bytes;
    use rpc::TenantId;
    use uuid::Uuid;

    const HOUR_MS: u64 = 3_600_000;

    fn limits() -> Limits {
        Limits { first_sequence: 1, max_age_ms: HOUR_MS, is_full: false, now_ms: 10 * HOUR_MS }
    }

    fn records(count: u64) -> Vec<Stored> {
        let tenant = TenantId(Uuid::from_u128(7));
        let mut stored: Vec<Stored> = Vec::new();
        for number in 1..=count {
            let previous = stored.last().map(|last: &Stored| Previous {
                hash: hash(&last.bytes),
                sequence: last.sequence,
                at_ms: last.record().unwrap().at_ms,
            });
            let record = Record {
                number,
                id: Uuid::from_u128(number.into()),
                tenant,
                at_ms: number * HOUR_MS,
                user: "ann".into(),
                entry: Entry { what: format!("thing {number}"), ..Entry::new("device.rename", []) },
                previous,
            };
            let bytes = Bytes::from(serde_json::to_vec(&record).unwrap());
            stored.push(Stored { sequence: number * 2, tenant, user: "ann".into(), bytes });
        }
        stored
    }

    fn verdict(limits: Limits, expected: Option<Head>, stored: &[Stored]) -> Verdict {
        let mut chain = Chain::new(expected);
        stored.iter().for_each(|stored| chain.take(stored));
        chain.end(limits)
    }

    fn breaks(stored: &[Stored]) -> Vec<Break> {
        verdict(limits(), None, stored).breaks
    }

    #[test]
    fn a_whole_chain_has_its_head_and_no_break() {
        let stored = records(9);
        let all = verdict(limits(), None, &stored);
        assert_eq!((all.records, all.first, all.cut, all.breaks), (9, 1, Cut::Nothing, vec![]));
        assert_eq!(all.head, Some(Head { number: 9, hash: hash(&stored[8].bytes) }));
        assert_eq!(breaks(&[]), []);
    }

    #[test]
    fn every_way_to_tamper_is_told_with_its_place() {
        let whole = records(9);
        let tampered = |tamper: &dyn Fn(&mut Vec<Stored>)| {
            let mut stored = whole.clone();
            tamper(&mut stored);
            breaks(&stored)
        };
        let change = |stored: &mut Stored, old: &str, new: &str| {
            stored.bytes = String::from_utf8(stored.bytes.to_vec()).unwrap().replace(old, new).into();
        };
        assert_eq!(tampered(&|it| drop(it.remove(4))), [Break::Removed(5..=5)]);
        assert_eq!(tampered(&|it| drop(it.drain(2..6))), [Break::Removed(3..=6)]);
        assert_eq!(tampered(&|it| change(&mut it[3], "thing 4", "thing 5")), [Break::Changed(4)]);
        assert_eq!(tampered(&|it| it.swap(3, 4)), [Break::Reordered(4)]);
        assert_eq!(
            tampered(&|it| {
                let moved = it.remove(2);
                it.push(moved);
            }),
            [Break::Reordered(3)]
        );
        assert_eq!(tampered(&|it| it.insert(5, it[1].clone())), [Break::Repeated(2)]);
        assert_eq!(tampered(&|it| it[5].bytes = "{}".into()), [Break::Unreadable(12), Break::Removed(6..=6)]);
        assert_eq!(tampered(&|it| it[5].user = "eve".into()), [Break::Misplaced(6)]);
        assert_eq!(tampered(&|it| it[5].tenant = TenantId(Uuid::nil())), [Break::Misplaced(6)]);
        assert_eq!(tampered(&|it| drop(it.drain(..3))), [Break::CutTooEarly(4)]);
        // A record that takes the place of the first is not what the second says of it.
        assert_eq!(
            tampered(&|it| {
                it.remove(0);
                change(&mut it[0], "\"number\":2", "\"number\":1")
            }),
            [Break::CutTooEarly(1), Break::Removed(2..=2)],
        );
    }

    #[test]
    fn a_beginning_is_cut_by_age_and_size_and_by_nothing_else() {
        let stored = records(9);
        let cut = |first: usize, limits: Limits| verdict(limits, None, &stored[first..]).cut;
        // The last that was cut, number 4, is six hours old.
        assert_eq!(cut(4, Limits { first_sequence: 9, ..limits() }), Cut::Age);
        assert_eq!(cut(4, Limits { first_sequence: 9, max_age_ms: 6 * HOUR_MS, ..limits() }), Cut::Age);
        assert_eq!(cut(4, Limits { first_sequence: 9, max_age_ms: 7 * HOUR_MS, ..limits() }), Cut::TooEarly);
        let full = Limits { first_sequence: 9, max_age_ms: 0, is_full: true, ..limits() };
        assert_eq!(cut(4, full), Cut::Size);
        // Others that came before it are still there.
        assert_eq!(cut(4, Limits { first_sequence: 8, ..full }), Cut::TooEarly);
    }

    #[test]
    fn a_head_from_before_is_met_or_missed() {
        let stored = records(9);
        let head = |number: usize| Head { number: number as u64, hash: hash(&stored[number - 1].bytes) };
        assert_eq!(verdict(limits(), Some(head(7)), &stored).breaks, []);
        assert_eq!(verdict(limits(), Some(head(9)), &stored[..7]).breaks, [Break::HeadLost(9)]);
        assert_eq!(verdict(limits(), Some(head(9)), &[]).breaks, [Break::HeadLost(9)]);
        let rewritten = Head { hash: hash(b"other"), ..head(7) };
        assert_eq!(verdict(limits(), Some(rewritten), &stored).breaks, [Break::HeadLost(7)]);
        let later = Limits { first_sequence: 9, ..limits() };
        assert_eq!(verdict(later, Some(head(2)), &stored[4..]).breaks, [], "cut with its time");
    }
}
