//! What does the bus count? Every handle is looked up once, when the bus connects.

use std::sync::OnceLock;

use async_nats::{Message, StatusCode};
use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};

use crate::errors::AskError;
use crate::pending::NoReply;

/// Gives every metric of this crate its help text, as connecting does.
pub fn describe() {
    describe_gauge!("switchboard_bus_connected", "1 while this process is connected to NATS, otherwise 0.");
    describe_counter!("switchboard_bus_reconnects_total", "Times the connection to NATS came back.");
    describe_gauge!("switchboard_bus_asks_in_flight", "Questions that wait for their reply.");
    describe_counter!("switchboard_bus_asks_total", "Questions asked over NATS, by how they ended.");
    describe_histogram!(
        ASK_SECONDS,
        "Time from a question to its reply, or to the end of the wait, at its asker; calls and deliveries have others."
    );
    describe_counter!(
        "switchboard_bus_replies_unclaimed_total",
        "Replies that came when nobody waited any more."
    );
    describe_counter!(
        "switchboard_bus_dropped_messages_total",
        "Messages dropped because a subscription's queue was full."
    );
    describe_counter!(
        "switchboard_bus_watch_reloads_total",
        "Full loads of a watched bucket, the first one included; where a watch goes on after an outage is none."
    );
    describe_counter!(
        "switchboard_bus_local_messages_total",
        "Messages handed over within this process, without NATS."
    );
}

const ASK_SECONDS: &str = "switchboard_bus_ask_seconds";
/// What is asked of JetStream.
const STORE: &str = "store";
/// What is timed where it is asked, by the first token behind the prefix. Calls, deliveries and external decisions are
/// not: whoever asks these has metrics of its own.
const QUESTIONS: [&str; 9] =
    ["authenticate", "list", "judge", "presence", "claim", "compare", "handover", "answer", STORE];

pub(crate) struct Meters {
    /// Looked up at the first question of its kind: no process asks all of them.
    seconds: [OnceLock<Histogram>; QUESTIONS.len()],
    pub(crate) connected: Gauge,
    pub(crate) reconnects: Counter,
    pub(crate) asks_in_flight: Gauge,
    pub(crate) answered: Counter,
    pub(crate) no_responders: Counter,
    pub(crate) expired: Counter,
    pub(crate) down: Counter,
    pub(crate) full: Counter,
    pub(crate) unsendable: Counter,
    pub(crate) gone: Counter,
    pub(crate) cancelled: Counter,
    pub(crate) unclaimed: Counter,
    pub(crate) dropped: Counter,
    pub(crate) watch_reloads: Counter,
    pub(crate) handed_over: Counter,
}

impl Meters {
    pub(crate) fn new() -> Self {
        Meters::with(gauge!("switchboard_bus_connected"), gauge!("switchboard_bus_asks_in_flight"))
    }

    /// For a connection to JetStream alone: what it has now is not to be taken for what the other has.
    pub(crate) fn of_store() -> Self {
        Meters::with(
            gauge!("switchboard_bus_connected", "connection" => "store"),
            gauge!("switchboard_bus_asks_in_flight", "connection" => "store"),
        )
    }

    fn with(connected: Gauge, asks_in_flight: Gauge) -> Self {
        describe();
        let asks = |result: &'static str| counter!("switchboard_bus_asks_total", "result" => result);
        Meters {
            seconds: Default::default(),
            connected,
            reconnects: counter!("switchboard_bus_reconnects_total"),
            asks_in_flight,
            answered: asks("answered"),
            no_responders: asks("no_responders"),
            expired: asks("expired"),
            down: asks("down"),
            full: asks("full"),
            unsendable: asks("unsendable"),
            gone: asks("gone"),
            cancelled: asks("cancelled"),
            unclaimed: counter!("switchboard_bus_replies_unclaimed_total"),
            dropped: counter!("switchboard_bus_dropped_messages_total"),
            watch_reloads: counter!("switchboard_bus_watch_reloads_total"),
            handed_over: counter!("switchboard_bus_local_messages_total"),
        }
    }

    /// Where the time of a question to `subject` goes, if it is one that is timed here.
    pub(crate) fn seconds(&self, prefix: &str, subject: &str) -> Option<&Histogram> {
        let name = match subject.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.')) {
            Some(rest) => rest.split('.').next().map(|first| if first == "js" { STORE } else { first })?,
            None => STORE,
        };
        let place = QUESTIONS.iter().position(|question| *question == name)?;
        let (question, handle) = (QUESTIONS.get(place)?, self.seconds.get(place)?);
        Some(handle.get_or_init(|| histogram!(ASK_SECONDS, "question" => *question)))
    }

    /// Counts how a question ended.
    pub(crate) fn counted(&self, reply: Result<Message, NoReply>) -> Result<Message, AskError> {
        let (counter, ended) = match reply {
            Ok(reply) if reply.status == Some(StatusCode::NO_RESPONDERS) => {
                (&self.no_responders, Err(AskError::NoResponders))
            }
            Ok(reply) => (&self.answered, Ok(reply)),
            Err(NoReply::Expired) => (&self.expired, Err(AskError::Expired)),
            Err(NoReply::Down) => (&self.down, Err(AskError::Down)),
            Err(NoReply::Unsendable) => (&self.unsendable, Err(AskError::Unsendable)),
            Err(NoReply::Full) => (&self.full, Err(AskError::Full)),
            Err(NoReply::Gone) => (&self.gone, Err(AskError::Gone)),
        };
        counter.increment(1);
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_with_every_call_is_not_timed_twice() {
        let meters = Meters::new();
        let place = |subject| {
            let seconds = meters.seconds("a.b", subject)?;
            meters.seconds.iter().position(|it| it.get().is_some_and(|it| std::ptr::eq(it, seconds)))
        };
        let questions = [
            "a.b.authenticate",
            "a.b.presence",
            "a.b.answer.x",
            "a.b.js.STREAM.INFO.x",
            "$JS.API.x",
            "$KV.x",
        ];
        let named = questions.map(|subject| place(subject).map(|place| QUESTIONS[place]));
        assert_eq!(named.map(Option::unwrap), ["authenticate", "presence", "answer", STORE, STORE, STORE]);
        assert_eq!(["a.b.call", "a.b.node.0123", "a.b.decide.x.y"].map(place), [None; 3]);
    }
}
