//! May claims stand that this router does not know? Then nobody is said to be offline.
//!
//! Where the store lost its content, or this router was not there to see it, the nodes know better what they hold: each
//! says so with its lease. Until all that are alive have said so, and what was lacking of each has been claimed again,
//! whom a router does not find may be there. That lasts for a lease at most: in that time a node has compared three
//! times.

use std::collections::HashMap;
use std::time::Instant;

use rpc::{Claim, Generation, LeaseRenewal, NodeId};

use super::leases::Leases;
use super::map::ClaimMap;

/// What a node said last.
#[derive(Debug)]
struct Word {
    claims: u64,
    newest: Generation,
    /// How many of its claims were not known then, and have not been claimed again since.
    lacking: u64,
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
            word.lacking = word.claims.saturating_sub(map.tally(*node).claims);
        });
    }

    /// From now on nodes are not heard: what they said is of before.
    pub(super) fn forget(&mut self) {
        self.words.clear();
    }

    /// A node says what it holds.
    pub(super) fn renewed(&mut self, renewal: &LeaseRenewal, map: &ClaimMap) {
        let LeaseRenewal { node, tally, newest, .. } = *renewal;
        let known = map.tally(node);
        // What is known of it and gone may stand for what is lacking.
        let lacking = tally.claims.saturating_sub(known.claims).max(u64::from(tally != known));
        self.words.insert(node, Word { claims: tally.claims, newest, lacking });
    }

    /// A claim stands. One that its node had already when it spoke was lacking.
    pub(super) fn stands(&mut self, claim: &Claim) {
        if let Some(word) = self.words.get_mut(&claim.node).filter(|word| claim.generation <= word.newest) {
            word.lacking = word.lacking.saturating_sub(1);
        }
    }

    /// Whether some node that is alive holds more than is known, or may.
    pub(super) fn are_there(&self, leases: &Leases, now: Instant) -> bool {
        now < self.until
            && leases.leased(now).any(|node| self.words.get(&node).is_none_or(|word| word.lacking > 0))
    }

    /// Whether some node is to say what it holds.
    pub(super) fn ask(&self, leases: &Leases, now: Instant) -> bool {
        now < self.until && leases.leased(now).any(|node| !self.words.contains_key(&node))
    }

    /// Time has passed.
    pub(super) fn look(&mut self, leases: &Leases, now: Instant) {
        self.words.retain(|node, _| leases.is_leased(*node, now));
    }
}
