//! May claims stand that this router does not know? Then nobody is said to be offline.
//!
//! Where the store lost its content, or this router was not there to see it, the nodes know better what they hold: each
//! says so with its lease. Until this router has known once, of each that is alive, exactly what the node said, whom it
//! does not find may be there: a count alone would take claims that are gone for those that are lacking. That lasts for
//! a lease at most, in which a node has compared three times, or for as long as the node says that it is not done.

use std::collections::HashMap;
use std::time::Instant;

use rpc::{LeaseRenewal, NodeId, Tally};

use super::leases::Leases;
use super::map::ClaimMap;

/// What a node said last.
#[derive(Debug)]
struct Word {
    tally: Tally,
    /// Whether this router has known what the node said, since it was told all that the store has.
    was_known: bool,
    /// Whether it is about to claim again what it found to be lacking.
    mends: bool,
}

/// What nodes hold, and until when it matters.
#[derive(Debug)]
pub(super) struct Doubts {
    until: Instant,
    words: HashMap<NodeId, Word>,
}

impl Doubts {
    /// Of a router that knows of nothing yet.
    pub(super) fn new(until: Instant) -> Self {
        Doubts { until, words: HashMap::new() }
    }

    /// All that the store has was told just now: what it does not have may be lost.
    pub(super) fn begin(&mut self, until: Instant, map: &ClaimMap) {
        self.until = until;
        self.words.iter_mut().for_each(|(node, word)| {
            word.was_known = map.tally(*node) == word.tally;
        });
    }

    /// From now on nodes are not heard: what they said is of before.
    pub(super) fn forget(&mut self) {
        self.words.clear();
    }

    /// A node says what it holds.
    pub(super) fn renewed(&mut self, renewal: &LeaseRenewal, map: &ClaimMap) {
        let LeaseRenewal { node, tally, mends, .. } = *renewal;
        let word = self.words.entry(node).or_insert(Word { tally, was_known: false, mends: false });
        (word.tally, word.mends) = (tally, mends.unwrap_or_default());
        self.learned(node, map);
    }

    /// What is known of a node's claims has changed.
    pub(super) fn learned(&mut self, node: NodeId, map: &ClaimMap) {
        if let Some(word) = self.words.get_mut(&node) {
            word.was_known |= map.tally(node) == word.tally;
        }
    }

    /// Whether some node that is alive may hold more than is known.
    pub(super) fn are_there(&self, leases: &Leases, now: Instant) -> bool {
        let is_early = now < self.until;
        leases.leased(now).any(|node| match self.words.get(&node) {
            Some(word) => !word.was_known && (is_early || word.mends),
            None => is_early,
        })
    }

    /// Time has passed.
    pub(super) fn look(&mut self, leases: &Leases, now: Instant) {
        self.words.retain(|node, _| leases.is_leased(*node, now));
    }
}
