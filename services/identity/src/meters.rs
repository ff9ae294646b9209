//! What does the identity service count? Who joined, who was refused and why, and how long NATS waited for it.

use boot::metrics::Kind::{Counter, Histogram};
use metrics::{counter, histogram};

use crate::join::Refused;

/// Gives every metric of the service its help text.
pub(crate) fn describe() {
    boot::metrics::describe(&[
        (Counter, ANSWERS, "Connections that NATS asked about, by what it was told."),
        (Histogram, ANSWER, "Time from the arrival of a question of NATS to its answer's end here."),
    ]);
}

const ANSWERS: &str = "switchboard_identity_answers_total";
const ANSWER: &str = "switchboard_identity_answer_seconds";

/// The handles.
pub(crate) struct Meters {
    pub(crate) joined: metrics::Counter,
    /// Without an answer, NATS refuses by itself.
    pub(crate) unreadable: metrics::Counter,
    /// NATS did not take it.
    pub(crate) unsent: metrics::Counter,
    refused: [metrics::Counter; Refused::ALL.len()],
    pub(crate) seconds: metrics::Histogram,
}

impl Meters {
    pub(crate) fn new() -> Self {
        let answers = |result: &'static str| counter!(ANSWERS, "result" => result);
        Meters {
            joined: answers("joined"),
            unreadable: answers("unreadable"),
            unsent: answers("unsent"),
            refused: Refused::ALL.map(|why| answers(why.as_str())),
            seconds: histogram!(ANSWER),
        }
    }

    pub(crate) fn refused(&self, why: Refused) {
        if let Some(refused) = self.refused.get(why as usize) {
            refused.increment(1);
        }
    }
}
