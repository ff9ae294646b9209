//! What has the endpoint counted? Plain numbers of the pure machine, and how they become metrics.

use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

use super::codec::{Code, Kind};

/// Counts since the last look, and gauges as they are.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    received: [u64; 4],
    responses: [u64; Code::RESPONSES.len()],
    /// Datagrams that are no CoAP 1.
    pub foreign: u64,
    /// Messages with a format error.
    pub malformed: u64,
    /// Requests that had been seen before.
    pub duplicates: u64,
    /// Calls sent to observers.
    pub notifications: u64,
    /// Confirmable messages sent again.
    pub resent: u64,
    /// Confirmable messages that nobody acknowledged.
    pub given_up: u64,
    /// Notifications that the device rejected.
    pub rejected: u64,
    /// Block-wise transfers dropped for want of room: a limit that was hit.
    pub dropped_transfers: u64,
    /// Requests that are remembered.
    pub exchanges: usize,
    /// Confirmable messages that wait to be acknowledged.
    pub unacknowledged: usize,
    /// Bodies in transfer.
    pub transfers: usize,
    /// Devices that observe.
    pub observers: usize,
}

impl Tally {
    /// A message of this kind came.
    pub fn count_received(&mut self, kind: Kind) {
        if let Some(count) = self.received.get_mut(kind as usize) {
            *count += 1;
        }
    }

    /// A response of this code is sent.
    pub fn count_response(&mut self, code: Code) {
        let index = Code::RESPONSES.iter().position(|it| *it == code);
        if let Some(count) = index.and_then(|index| self.responses.get_mut(index)) {
            *count += 1;
        }
    }
}

/// Handles of CoAP's metrics.
#[derive(Debug)]
pub(super) struct CoapMetrics {
    received: [Counter; 4],
    responses: [Counter; Code::RESPONSES.len()],
    foreign: Counter,
    malformed: Counter,
    duplicates: Counter,
    notifications: Counter,
    resent: Counter,
    given_up: Counter,
    rejected: Counter,
    exchanges: Gauge,
    unacknowledged: Gauge,
    transfers: Gauge,
    observers: Gauge,
    /// Datagrams that the socket did not take.
    pub(super) unsent: Counter,
}

const RECEIVED: &str = "switchboard_coap_messages_received_total";

impl CoapMetrics {
    /// Describes and registers all of them.
    pub(super) fn register() -> Self {
        describe();
        let received = |kind: Kind| counter!(RECEIVED, "kind" => kind.as_str());
        CoapMetrics {
            received: [Kind::Confirmable, Kind::NonConfirmable, Kind::Acknowledgement, Kind::Reset]
                .map(received),
            responses: Code::RESPONSES
                .map(|code| counter!("switchboard_coap_responses_total", "code" => code.to_string())),
            foreign: counter!(RECEIVED, "kind" => "foreign"),
            malformed: counter!(RECEIVED, "kind" => "malformed"),
            duplicates: counter!("switchboard_coap_duplicates_total"),
            notifications: counter!("switchboard_coap_notifications_total"),
            resent: counter!("switchboard_coap_retransmissions_total"),
            given_up: counter!("switchboard_coap_given_up_total"),
            rejected: counter!("switchboard_coap_notifications_rejected_total"),
            exchanges: gauge!("switchboard_coap_exchanges"),
            unacknowledged: gauge!("switchboard_coap_unacknowledged"),
            transfers: gauge!("switchboard_coap_block_transfers"),
            observers: gauge!("switchboard_coap_observers"),
            unsent: counter!("switchboard_coap_unsent_total"),
        }
    }

    /// Adds what was counted.
    pub(super) fn add(&self, tally: &Tally) {
        let pairs =
            self.received.iter().zip(&tally.received).chain(self.responses.iter().zip(&tally.responses));
        let singles = [
            (&self.foreign, &tally.foreign),
            (&self.malformed, &tally.malformed),
            (&self.duplicates, &tally.duplicates),
            (&self.notifications, &tally.notifications),
            (&self.resent, &tally.resent),
            (&self.given_up, &tally.given_up),
            (&self.rejected, &tally.rejected),
        ];
        for (counter, count) in pairs.chain(singles) {
            if *count > 0 {
                counter.increment(*count);
            }
        }
        self.exchanges.set(tally.exchanges as f64);
        self.unacknowledged.set(tally.unacknowledged as f64);
        self.transfers.set(tally.transfers as f64);
        self.observers.set(tally.observers as f64);
    }
}

fn describe() {
    describe_counter!(
        RECEIVED,
        Unit::Count,
        "CoAP messages received, by kind; malformed and foreign ones apart."
    );
    describe_counter!("switchboard_coap_responses_total", Unit::Count, "CoAP responses, by code.");
    describe_counter!(
        "switchboard_coap_duplicates_total",
        Unit::Count,
        "CoAP requests that had been seen before, and were not performed again."
    );
    describe_counter!("switchboard_coap_notifications_total", Unit::Count, "Calls sent to CoAP observers.");
    describe_counter!(
        "switchboard_coap_retransmissions_total",
        Unit::Count,
        "Confirmable CoAP messages sent again because nobody acknowledged them."
    );
    describe_counter!(
        "switchboard_coap_given_up_total",
        Unit::Count,
        "Confirmable CoAP messages given up after the last retransmission; an observer is dropped with its own."
    );
    describe_counter!(
        "switchboard_coap_notifications_rejected_total",
        Unit::Count,
        "CoAP notifications that a device answered with a reset, which ends its observation."
    );
    describe_gauge!("switchboard_coap_exchanges", Unit::Count, "CoAP requests remembered for deduplication.");
    describe_gauge!(
        "switchboard_coap_unacknowledged",
        Unit::Count,
        "Confirmable CoAP messages that wait to be acknowledged."
    );
    describe_gauge!("switchboard_coap_block_transfers", Unit::Count, "Bodies in transfer block by block.");
    describe_gauge!("switchboard_coap_observers", Unit::Count, "Devices that observe their calls over CoAP.");
    describe_counter!(
        "switchboard_coap_unsent_total",
        Unit::Count,
        "CoAP datagrams dropped because the socket did not take them in time."
    );
}
