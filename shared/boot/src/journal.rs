//! What became of the calls that came by here lately? A ring in memory with a record of each hop, and a line in the log
//! for each call that failed.
//!
//! Nothing is sampled, and nothing goes over NATS until somebody asks. Recording a hop is one store into the ring.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use parking_lot::Mutex;
use rpc::{HopEnd, HopFilter, HopOf, HopRecord, NodeId, Outcome, Protocol, Says, Tap};
use tracing::field::display;

use crate::clock::since_1970;
pub use crate::taps::Listening;
use crate::taps::{Bodies, Taps};

/// Records that are looked through at a time: a hop that ends meanwhile waits no longer than for that.
const LOOKED_THROUGH_AT_ONCE: usize = 1_024;

/// The hops that one service's process has taken lately. Clones share them; the default keeps none.
#[derive(Clone, Debug, Default)]
pub struct Journal(Option<Arc<Ring>>);

#[derive(Debug)]
struct Ring {
    max_hops: usize,
    kept: Mutex<Kept>,
    taps: Taps,
}

#[derive(Debug)]
struct Kept {
    hops: VecDeque<HopRecord>,
    /// How many there were before the first that is kept.
    gone: u64,
}

impl Journal {
    /// Of so many hops at most, 0: none. Takes memory as hops come, 96 bytes each.
    pub fn new(max_hops: usize) -> Self {
        let hops = VecDeque::with_capacity(max_hops);
        let kept = Mutex::new(Kept { hops, gone: 0 });
        let ring = || Arc::new(Ring { max_hops, kept, taps: Taps::default() });
        Journal((max_hops > 0).then(ring))
    }

    /// Begins a hop, which is recorded when it is dropped; ended so, unless it is told another way.
    pub(crate) fn begin(&self, of: HopOf, unless_told: HopEnd, started: Instant) -> Underway {
        let record = HopRecord::new(of, 0, unless_told);
        Underway { journal: self.clone(), started, record, says: Says::default(), bodies: None }
    }

    /// Hands hops over as they end, until nobody has said for [`rpc::TAP_LEASE`] that he still listens. None: somebody
    /// with this number listens already, and is heard to go on.
    ///
    /// # Errors
    /// Says why nobody can listen.
    pub fn tap(&self, tap: Tap, now: Instant) -> Result<Option<Listening>, &'static str> {
        match &self.0 {
            Some(ring) => ring.taps.open(tap, now),
            None => Err("it has no journal (journal.max_hops is 0)"),
        }
    }

    /// The newest hops that match, the newest first, at most `most`.
    pub fn find(&self, filter: &HopFilter, most: usize) -> Vec<HopRecord> {
        let Some(ring) = &self.0 else { return Vec::new() };
        let mut found = Vec::new();
        let mut before = {
            let kept = ring.kept.lock();
            kept.gone + kept.hops.len() as u64
        };
        while found.len() < most {
            let kept = ring.kept.lock();
            // What has gone meanwhile is not there to be looked at.
            let end = usize::try_from(before.saturating_sub(kept.gone)).unwrap_or(usize::MAX);
            let start = end.saturating_sub(LOOKED_THROUGH_AT_ONCE);
            let looked_at = kept.hops.range(start..end.min(kept.hops.len())).rev();
            found.extend(looked_at.filter(|hop| filter.takes(hop)).take(most - found.len()));
            before = kept.gone + start as u64;
            if start == 0 {
                break;
            }
        }
        found
    }

    /// How many hops it holds, and how many it can.
    pub fn room(&self) -> (usize, usize) {
        self.0.as_ref().map_or((0, 0), |ring| (ring.kept.lock().hops.len(), ring.max_hops))
    }

    /// How many hops one who listens was not told since this was asked last; none: he listens no more.
    pub fn left_out(&self, listening: &Listening, now: Instant) -> Option<u64> {
        self.0.as_ref()?.taps.left_out(listening.id(), now)
    }

    fn keep(&self, hop: HopRecord, says: Says, bodies: Option<Box<Bodies>>) {
        let Some(ring) = &self.0 else { return };
        ring.keep(hop);
        if ring.taps.are_there() {
            ring.taps.offer(hop, says, bodies, Instant::now());
        }
    }
}

impl Ring {
    fn keep(&self, hop: HopRecord) {
        let mut kept = self.kept.lock();
        if kept.hops.len() == self.max_hops {
            kept.hops.pop_front();
            kept.gone += 1;
        }
        kept.hops.push_back(hop);
    }
}

/// A hop that is under way. Recorded when dropped.
#[derive(Debug)]
pub(crate) struct Underway {
    journal: Journal,
    started: Instant,
    record: HopRecord,
    says: Says,
    /// Only where somebody listens who wants to read them.
    bodies: Option<Box<Bodies>>,
}

impl Underway {
    pub(crate) fn handed_to(&mut self, node: NodeId) {
        self.record.node = Some(node);
    }

    pub(crate) fn decided_by(&mut self, policy_version: u64) {
        self.record.policy_version = u32::try_from(policy_version).unwrap_or(u32::MAX);
    }

    pub(crate) fn asks(&mut self, body: &Bytes) {
        let is_read = self.journal.0.as_ref().is_some_and(|ring| ring.taps.read_bodies());
        self.bodies = is_read.then(|| Box::new(Bodies { request: body.clone(), answer: None }));
    }

    pub(crate) fn is_answered(&mut self, body: &Bytes) {
        if let Some(bodies) = &mut self.bodies {
            bodies.answer = Some(body.clone());
        }
    }

    pub(crate) fn ended(&mut self, outcome: &Outcome) {
        self.record.ended(outcome);
    }

    pub(crate) fn ended_as(&mut self, end: HopEnd) {
        self.record.end = end;
    }

    pub(crate) fn says(&mut self, says: Says) {
        self.says = says;
    }

    pub(crate) fn spoken(&mut self, protocol: Protocol) {
        self.record.protocol = Some(protocol);
    }
}

impl Drop for Underway {
    fn drop(&mut self) {
        let took = self.started.elapsed();
        self.record.took_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
        let began = since_1970().saturating_sub(took);
        self.record.began_us = u64::try_from(began.as_micros()).unwrap_or(u64::MAX);
        self.journal.keep(self.record, self.says, self.bodies.take());
        tell(&self.record);
    }
}

/// Says what became of a call: where it came in, if it failed; every hop to whoever asked for `debug`.
fn tell(hop: &HopRecord) {
    let HopRecord { call, station, from, to, end, limit, .. } = hop;
    let protocol = hop.protocol.map(|it| it.as_str());
    let (outcome, limit) = (end.as_str(), limit.map(|it| it.as_str()));
    let ms = f64::from(hop.took_us) / 1_000.0;
    if station.is_first() && !end.is_fine() {
        tracing::info!(%call, caller = %from, target = %to, outcome, limit, ms, protocol, "a call failed");
    } else {
        let (at, node) = (station.as_str(), hop.node.map(display));
        tracing::debug!(%call, at, caller = %from, target = %to, outcome, limit, node, ms, protocol, "a hop ended");
    }
}

#[cfg(test)]
mod tests {
    use rpc::{Budget, CallId, DeviceId, Limit, Station};

    use super::*;

    fn of(serial: u64) -> HopOf {
        HopOf {
            station: Station::Router,
            call: CallId { node: NodeId(1), serial },
            from: "00000000-0000-0000-0000-000000000001".parse::<DeviceId>().unwrap(),
            to: None,
            party: None,
            budget_ms: Budget::from_ms(1_000),
            protocol: None,
        }
    }

    fn serials(hops: &[HopRecord]) -> Vec<u64> {
        hops.iter().map(|it| it.call.serial).collect()
    }

    #[test]
    fn the_newest_are_kept_and_found_first() {
        let journal = Journal::new(3_000);
        (0..5_000).for_each(|serial| drop(journal.begin(of(serial), HopEnd::Lost, Instant::now())));
        assert_eq!(journal.room(), (3_000, 3_000));
        let all = HopFilter::default();
        assert_eq!(serials(&journal.find(&all, 3)), [4_999, 4_998, 4_997]);
        let kept = serials(&journal.find(&all, usize::MAX));
        assert_eq!(kept, (2_000..5_000).rev().collect::<Vec<_>>());
        let one = |serial| HopFilter { call: Some(of(serial).call), ..HopFilter::default() };
        assert_eq!(serials(&journal.find(&one(2_000), 10)), [2_000]);
        assert!(journal.find(&one(1_999), 10).is_empty());
    }

    #[test]
    fn a_hop_says_how_it_ended() {
        let journal = Journal::new(10);
        drop(journal.begin(of(1), HopEnd::CutOff, Instant::now()));
        let mut busy = journal.begin(of(2), HopEnd::CutOff, Instant::now());
        busy.handed_to(NodeId(9));
        busy.decided_by(u64::MAX);
        busy.ended(&Outcome::Busy(Limit::Mailbox));
        drop(busy);
        let hops = journal.find(&HopFilter::default(), 10);
        let [busy, cut_off] = hops.as_slice() else { panic!("{hops:?}") };
        assert_eq!((cut_off.end, busy.words().as_str()), (HopEnd::CutOff, "busy (mailbox)"));
        assert_eq!((busy.node, busy.policy_version), (Some(NodeId(9)), u32::MAX));
        assert!(busy.began_us > 1_600_000_000_000_000, "{busy:?}");
    }

    #[test]
    fn without_room_nothing_is_kept() {
        let journal = Journal::new(0);
        drop(journal.begin(of(1), HopEnd::Lost, Instant::now()));
        assert_eq!((journal.find(&HopFilter::default(), 10), journal.room()), (Vec::new(), (0, 0)));
    }
}
