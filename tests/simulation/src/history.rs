//! What has happened, as far as it matters to what is promised? Written by simulated runs, and readable from real ones.

use anyhow::Context as _;
use rpc::{OutcomeName, SessionEnd};
use serde::{Deserialize, Serialize};

use crate::checker::Terms;
use crate::message::Micros;

/// Reads a history as it is written of real processes: lines of JSON, the terms first, then the entries by their time.
///
/// # Errors
///
/// The first line that is not such a one, or is earlier than the one before it.
pub fn parse(text: &str) -> anyhow::Result<(Terms, Vec<Entry>)> {
    let mut lines = text.lines();
    let terms = lines.next().context("it is empty")?;
    let terms = serde_json::from_str(terms).context("line 1 must say `lease` and `latency`")?;
    let mut entries: Vec<Entry> = Vec::new();
    for (line, number) in lines.zip(2..) {
        let entry: Entry = serde_json::from_str(line).with_context(|| format!("line {number}"))?;
        let is_in_order = entries.last().is_none_or(|last| last.at <= entry.at);
        anyhow::ensure!(is_in_order, "line {number} is earlier than the line before it");
        entries.push(entry);
    }
    Ok((terms, entries))
}

/// One thing that happened, and when, in microseconds since the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When.
    pub at: Micros,
    /// What.
    pub event: Event,
}

/// What can happen. Devices, connections and calls are numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// A device's connection begins to become callable at a node.
    Connecting {
        /// Which device.
        device: usize,
        /// Which connection.
        session: usize,
        /// Which process.
        node: usize,
    },
    /// It has been told that it is callable.
    Callable {
        /// Which connection.
        session: usize,
    },
    /// It is over.
    Over {
        /// Which connection.
        session: usize,
        /// Why, where its node said so.
        reason: Option<End>,
    },
    /// A device calls another.
    Called {
        /// The call.
        call: usize,
        /// Who.
        caller: usize,
        /// Whom.
        target: usize,
        /// Its time.
        timeout_ms: u32,
        /// How long it may wait for the target.
        connect_timeout_ms: u32,
        /// Whether it is one that must succeed: nothing has been wrong for a lease.
        must_succeed: bool,
    },
    /// An authorizer let a call pass.
    Allowed {
        /// The call.
        call: usize,
    },
    /// A device has a call in its hands.
    Executed {
        /// The call.
        call: usize,
        /// Through which connection.
        session: usize,
    },
    /// The caller knows how a call ended.
    Ended {
        /// The call.
        call: usize,
        /// How.
        outcome: Ending,
        /// The answer was the one to this call.
        is_its_answer: bool,
    },
    /// The caller is gone, and will not know.
    GaveUp {
        /// The call.
        call: usize,
    },
    /// The registry says since now whether a device may call and be called.
    Assigned {
        /// Which device.
        device: usize,
        /// Its customer; none: to nobody.
        customer: Option<u8>,
    },
    /// A process is not as it should be, for so long.
    Faulty {
        /// Which process; none: what all need.
        process: Option<usize>,
        /// Until when.
        until: Micros,
        /// It holds up what is sent, and lets it go later.
        holds: bool,
        /// It stops as it should while another of its kind serves: nobody is to notice.
        #[serde(default)]
        is_graceful: bool,
    },
    /// The store has lost the claims.
    ClaimsLost {
        /// Its revisions begin anew: one held from before may name a later write.
        begins_anew: bool,
    },
    /// Somebody without a ticket says that a device is at his node.
    Forged {
        /// Which device.
        device: usize,
    },
    /// Nothing is wrong any more: from a lease after this on, all is well.
    Healed,
    /// Something was left behind.
    Leaked,
}

/// An outcome's name, as it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The target answered.
    Answered,
    /// It promises that the target never saw the call.
    Offline,
    /// The same.
    Denied,
    /// The same.
    UnknownDevice,
    /// The same.
    Busy,
    /// The target may have seen it.
    TimedOut,
    /// The same.
    Lost,
    /// The same.
    Unavailable,
    /// Any other.
    Other,
}

impl Ending {
    /// Of an outcome.
    pub fn of(outcome: OutcomeName) -> Self {
        match outcome {
            OutcomeName::Answered => Ending::Answered,
            OutcomeName::Offline => Ending::Offline,
            OutcomeName::Denied => Ending::Denied,
            OutcomeName::UnknownDevice => Ending::UnknownDevice,
            OutcomeName::Busy => Ending::Busy,
            OutcomeName::TimedOut => Ending::TimedOut,
            OutcomeName::Lost => Ending::Lost,
            OutcomeName::Unavailable => Ending::Unavailable,
            _ => Ending::Other,
        }
    }

    /// Whether it promises that the target never saw the call.
    pub fn promises_unseen(self) -> bool {
        matches!(self, Ending::Offline | Ending::Denied | Ending::UnknownDevice | Ending::Busy)
    }
}

/// Why a node ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// A newer one.
    TakenOver,
    /// The registry.
    Revoked,
    /// The node stops.
    ShuttingDown,
    /// The node sends it to another.
    Moved,
    /// Anything else.
    Other,
}

impl From<SessionEnd> for End {
    fn from(end: SessionEnd) -> Self {
        match end {
            SessionEnd::TakenOver => End::TakenOver,
            SessionEnd::Revoked => End::Revoked,
            SessionEnd::ShuttingDown => End::ShuttingDown,
            SessionEnd::Moved => End::Moved,
            SessionEnd::ByDevice | SessionEnd::Fault | SessionEnd::NodeGone | SessionEnd::SessionGone => {
                End::Other
            }
        }
    }
}
