//! What has the endpoint counted? Plain numbers of the pure machine, and how they become metrics.

use boot::metrics::Kind;
use metrics::{Counter, Gauge, counter, gauge};
use rpc::closed_list;

use super::codec::{self, Code};

closed_list! {
    /// What has come, by the values of the label `kind`.
    pub enum Arrival {
        /// To be acknowledged.
        Confirmable = "con",
        /// Not to be acknowledged.
        NonConfirmable = "non",
        /// Acknowledges a confirmable one.
        Acknowledgement = "ack",
        /// Rejects one.
        Reset = "rst",
        /// No CoAP 1.
        Foreign = "foreign",
        /// With a format error.
        Malformed = "malformed",
    }
}

impl From<codec::Kind> for Arrival {
    fn from(kind: codec::Kind) -> Self {
        match kind {
            codec::Kind::Confirmable => Arrival::Confirmable,
            codec::Kind::NonConfirmable => Arrival::NonConfirmable,
            codec::Kind::Acknowledgement => Arrival::Acknowledgement,
            codec::Kind::Reset => Arrival::Reset,
        }
    }
}

/// A closed list of metrics: each by its name, with its help.
macro_rules! closed_list_of_metrics {
    ($(#[$meta:meta])* pub enum $list:ident { $($variant:ident = $name:literal: $help:literal,)+ }) => {
        closed_list! { $(#[$meta])* pub enum $list { $(#[doc = $help] $variant = $name,)+ } }

        impl $list {
            const HELP: [&'static str; $list::ALL.len()] = [$($help),+];
        }
    };
}

closed_list_of_metrics! {
    /// What happens now and then.
    pub enum Event {
        Duplicate = "switchboard_coap_duplicates_total":
            "CoAP requests that had been seen before, and were not performed again.",
        Notification = "switchboard_coap_notifications_total": "Calls sent to CoAP observers.",
        Resent = "switchboard_coap_retransmissions_total":
            "Confirmable CoAP messages sent again because nobody acknowledged them.",
        GivenUp = "switchboard_coap_given_up_total":
            "Confirmable CoAP messages given up after the last retransmission; an observer is dropped with its own.",
        Rejected = "switchboard_coap_notifications_rejected_total":
            "CoAP notifications that a device answered with a reset, which ends its observation.",
    }
}

closed_list_of_metrics! {
    /// What there is so much of.
    pub enum Held {
        Exchanges = "switchboard_coap_exchanges": "CoAP requests remembered for deduplication.",
        Unacknowledged = "switchboard_coap_unacknowledged":
            "Confirmable CoAP messages that wait to be acknowledged.",
        Transfers = "switchboard_coap_block_transfers": "Bodies in transfer block by block.",
        Observers = "switchboard_coap_observers": "Devices that observe their calls over CoAP.",
    }
}

/// Counts since the last look, and gauges as they are.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    arrivals: [u64; Arrival::ALL.len()],
    responses: [u64; Code::RESPONSES.len()],
    events: [u64; Event::ALL.len()],
    held: [usize; Held::ALL.len()],
    /// Block-wise transfers dropped for want of room: a limit that was hit.
    pub dropped_transfers: u64,
}

impl Tally {
    /// Such a datagram came.
    pub fn came(&mut self, arrival: Arrival) {
        increment(self.arrivals.get_mut(arrival as usize));
    }

    /// A response of this code is sent.
    pub fn responds(&mut self, code: Code) {
        let index = Code::RESPONSES.iter().position(|it| *it == code);
        increment(index.and_then(|index| self.responses.get_mut(index)));
    }

    /// That happened.
    pub fn count(&mut self, event: Event) {
        increment(self.events.get_mut(event as usize));
    }

    /// How often that happened.
    pub fn counted(&self, event: Event) -> u64 {
        self.events.get(event as usize).copied().unwrap_or_default()
    }

    /// There are so many.
    pub fn holds(&mut self, what: Held, many: usize) {
        if let Some(held) = self.held.get_mut(what as usize) {
            *held = many;
        }
    }

    /// How many there are.
    pub fn held(&self, what: Held) -> usize {
        self.held.get(what as usize).copied().unwrap_or_default()
    }
}

fn increment(count: Option<&mut u64>) {
    if let Some(count) = count {
        *count += 1;
    }
}

const ARRIVALS: &str = "switchboard_coap_messages_received_total";
const RESPONSES: &str = "switchboard_coap_responses_total";
const UNSENT: &str = "switchboard_coap_unsent_total";

/// Handles of CoAP's metrics.
#[derive(Debug)]
pub(super) struct CoapMetrics {
    arrivals: [Counter; Arrival::ALL.len()],
    responses: [Counter; Code::RESPONSES.len()],
    events: [Counter; Event::ALL.len()],
    held: [Gauge; Held::ALL.len()],
    /// Datagrams that the socket did not take.
    pub(super) unsent: Counter,
}

impl CoapMetrics {
    /// Describes and registers all of them.
    pub(super) fn register() -> Self {
        boot::metrics::describe(&[
            (Kind::Counter, ARRIVALS, "CoAP messages received, by kind; malformed and foreign ones apart."),
            (Kind::Counter, RESPONSES, "CoAP responses, by code."),
            (Kind::Counter, UNSENT, "CoAP datagrams dropped because the socket did not take them in time."),
        ]);
        for (event, help) in Event::ALL.iter().zip(Event::HELP) {
            boot::metrics::describe(&[(Kind::Counter, event.as_str(), help)]);
        }
        for (held, help) in Held::ALL.iter().zip(Held::HELP) {
            boot::metrics::describe(&[(Kind::Gauge, held.as_str(), help)]);
        }
        CoapMetrics {
            arrivals: Arrival::ALL.map(|it| counter!(ARRIVALS, "kind" => it.as_str())),
            responses: Code::RESPONSES.map(|it| counter!(RESPONSES, "code" => it.to_string())),
            events: Event::ALL.map(|it| counter!(it.as_str())),
            held: Held::ALL.map(|it| gauge!(it.as_str())),
            unsent: counter!(UNSENT),
        }
    }

    /// Adds what was counted.
    pub(super) fn add(&self, tally: &Tally) {
        let arrivals = self.arrivals.iter().zip(&tally.arrivals);
        let responses = self.responses.iter().zip(&tally.responses);
        for (counter, count) in arrivals.chain(responses).chain(self.events.iter().zip(&tally.events)) {
            if *count > 0 {
                counter.increment(*count);
            }
        }
        for (gauge, many) in self.held.iter().zip(&tally.held) {
            gauge.set(*many as f64);
        }
    }
}
