//! Which claims stand, as far as this router has heard? It may lag behind the store: a miss is to be checked there.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rpc::faults::{Fault, is};
use rpc::{Claim, DeviceId, Generation, HeldClaim, NodeId, QuickMap, Tally, part_of};

/// A claim and its revision in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The claim.
    pub claim: Claim,
    /// The store's number for this writing of it.
    pub revision: u64,
}

type Held = QuickMap<DeviceId, Found>;

/// All claims, as a watch tells of them and as this router writes them.
#[derive(Debug, Default)]
pub struct ClaimMap {
    current: Held,
    /// Of `current`, for each node.
    tallies: HashMap<NodeId, Tally>,
    /// During a load, what it has told so far; then it takes `current`'s place.
    loading: Option<Held>,
    is_another_store: bool,
    is_loaded: bool,
    /// What stood in a store that was lost. Its sessions are likely to be up still and about to claim again, so they
    /// can be called; it is dropped piece by piece as the store tells better, and at `doubtful_until`.
    doubtful: Held,
    doubtful_until: Option<Instant>,
    /// The store's highest number that was heard of, and the same when changes began to be missed.
    revision: u64,
    missing_from: u64,
    /// Above everything that was ever heard of: a session that becomes callable now is newer than all of them.
    newest: u64,
}

impl ClaimMap {
    /// The device's claim.
    pub fn get(&self, device: DeviceId) -> Option<Found> {
        self.current.get(&device).or_else(|| self.doubtful.get(&device)).copied()
    }

    /// The device's claim and its revision, if it stands in the store as it is now.
    pub fn standing(&self, device: DeviceId) -> Option<Found> {
        self.current.get(&device).copied()
    }

    /// How many devices are claimed.
    pub fn len(&self) -> usize {
        self.current.len() + self.doubtful.len()
    }

    /// True when none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether all that stood in the store has been heard.
    pub fn is_loaded(&self) -> bool {
        self.is_loaded
    }

    /// What the node holds.
    pub fn tally(&self, node: NodeId) -> Tally {
        self.tallies.get(&node).copied().unwrap_or_default()
    }

    /// The nodes that hold claims.
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.tallies.keys().copied()
    }

    /// One node's claims. Walks the whole map.
    pub fn of_node(&self, node: NodeId) -> Vec<(DeviceId, u64)> {
        let of_node = self.current.iter().filter(|(_, found)| found.claim.node == node);
        of_node.map(|(&device, found)| (device, found.revision)).collect()
    }

    /// One part of a node's claims, see [`part_of`]. Walks the whole map.
    pub fn part(&self, node: NodeId, part: u32, parts: u32) -> HashMap<DeviceId, HeldClaim> {
        let of_part = self
            .current
            .iter()
            .filter(|(device, found)| found.claim.node == node && part_of(**device, parts) == part);
        of_part.map(|(&device, found)| (device, held(device, &found.claim))).collect()
    }

    /// The generation of a session that becomes callable over `standing`.
    pub fn next_generation(&self, standing: Option<Generation>) -> Generation {
        if is(Fault::ClocksDecide) {
            return Generation(rpc::faults::wall_ms());
        }
        Generation(self.newest.max(standing.map_or(0, |standing| standing.0)).saturating_add(1))
    }

    /// The highest generation that was heard of.
    pub fn newest(&self) -> Generation {
        Generation(self.newest)
    }

    /// A generation was heard of, wherever.
    pub fn heard(&mut self, generation: Generation) {
        self.newest = self.newest.max(generation.0);
    }

    /// A load from the beginning: everything that stands there follows.
    ///
    /// The store has written up to `revision` so far: all generations that will be given are above it, also when
    /// nothing stands there that would tell.
    pub fn reset(&mut self, is_another_store: bool, revision: u64) {
        self.newest = self.newest.max(revision);
        // It has lost its content and kept its name: its numbers never become lower.
        let begins_anew = revision < self.missing_from && !is(Fault::OldRevisionsCount);
        // Also where it is begun anew before it was told whole, when nothing says so any more.
        self.is_another_store |= is_another_store || begins_anew;
        (self.revision, self.missing_from) = (revision, revision);
        // Nothing to keep meanwhile, nothing to build beside it.
        self.loading = (!self.current.is_empty()).then(Held::default);
    }

    /// The store was found to count anew, from `revision`: all that stood there is doubted for `doubt`.
    pub fn begins_anew(&mut self, revision: u64, doubt: Duration, now: Instant) {
        (self.revision, self.missing_from) = (revision, revision);
        self.tallies.clear();
        self.loading = None;
        self.doubtful.extend(std::mem::take(&mut self.current));
        self.doubtful_until = Some(now + doubt);
    }

    /// Changes may be missed from now on, until the next load.
    pub fn lost(&mut self) {
        self.missing_from = self.revision;
    }

    /// The store's highest number that was heard of.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether what is being told now is another store's.
    #[cfg(test)]
    fn is_loading_another_store(&self) -> bool {
        self.is_another_store
    }

    /// A claim stands. False when a newer word has been heard already.
    pub fn put(&mut self, device: DeviceId, found: Found) -> bool {
        self.revision = self.revision.max(found.revision);
        // In one store no generation is above the revision of its writing, so all are below this.
        self.newest = self.newest.max(found.revision).max(found.claim.generation.0);
        self.doubtful.remove(&device);
        if let Some(loading) = &mut self.loading {
            let standing = loading.entry(device).or_insert(found);
            if standing.revision < found.revision {
                *standing = found;
            }
        }
        if self.current.get(&device).is_some_and(|standing| standing.revision > found.revision) {
            return false;
        }
        if let Some(before) = self.current.insert(device, found) {
            self.uncount(device, &before.claim);
        }
        self.count(device, &found.claim);
        true
    }

    /// None stands any more, said at this revision.
    pub fn remove(&mut self, device: DeviceId, revision: u64) {
        self.revision = self.revision.max(revision);
        self.newest = self.newest.max(revision);
        self.take_out(device, |standing| standing < revision);
    }

    /// The store has been found not to have this writing.
    pub fn forget(&mut self, device: DeviceId, revision: u64) {
        self.take_out(device, |standing| standing == revision);
    }

    fn take_out(&mut self, device: DeviceId, is_it: impl Fn(u64) -> bool) {
        let is_it = |found: Option<&Found>| found.is_some_and(|found| is_it(found.revision));
        if is_it(self.doubtful.get(&device)) {
            self.doubtful.remove(&device);
        }
        if let Some(loading) = &mut self.loading
            && is_it(loading.get(&device))
        {
            loading.remove(&device);
        }
        if is_it(self.current.get(&device))
            && let Some(before) = self.current.remove(&device)
        {
            self.uncount(device, &before.claim);
        }
    }

    /// All that stood there when the load began has been told. What stood in a lost store is doubted for `doubt`.
    pub fn loaded(&mut self, doubt: Duration, now: Instant) {
        self.is_loaded = true;
        let was_another_store = std::mem::take(&mut self.is_another_store);
        let Some(loaded) = self.loading.take() else { return };
        let before = std::mem::replace(&mut self.current, loaded);
        self.tallies.clear();
        let claims: Vec<(DeviceId, Claim)> =
            self.current.iter().map(|(device, found)| (*device, found.claim)).collect();
        claims.into_iter().for_each(|(device, claim)| self.count(device, &claim));
        if was_another_store {
            self.doubtful.extend(before);
            self.doubtful.retain(|device, _| !self.current.contains_key(device));
            self.doubtful_until = Some(now + doubt);
        }
    }

    /// Drops what has been doubted for long enough.
    pub fn end_doubt(&mut self, now: Instant) {
        if self.doubtful_until.is_some_and(|until| until <= now) {
            self.doubtful = Held::default();
            self.doubtful_until = None;
        }
    }

    fn count(&mut self, device: DeviceId, claim: &Claim) {
        self.tallies.entry(claim.node).or_default().add(device, claim.session, claim.generation);
    }

    fn uncount(&mut self, device: DeviceId, claim: &Claim) {
        if let Some(tally) = self.tallies.get_mut(&claim.node) {
            tally.remove(device, claim.session, claim.generation);
            if tally.claims == 0 {
                self.tallies.remove(&claim.node);
            }
        }
    }
}

/// The claim as its node has it.
pub(crate) fn held(device: DeviceId, claim: &Claim) -> HeldClaim {
    HeldClaim { device, session: claim.session, generation: claim.generation }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rpc::{Protocol, SessionId};
    use uuid::Uuid;

    fn found(node: u64, revision: u64) -> Found {
        let claim = Claim {
            node: NodeId(node),
            session: SessionId(1),
            protocol: Protocol::Mqtt,
            generation: Generation(revision),
            since_ms: None,
        };
        Found { claim, revision }
    }

    fn device(number: u128) -> DeviceId {
        DeviceId(Uuid::from_u128(number))
    }

    #[test]
    fn a_load_replaces_what_stood_there_only_when_it_is_complete() {
        let (mut map, now) = (ClaimMap::default(), Instant::now());
        map.put(device(1), found(1, 10));
        map.put(device(2), found(1, 11));
        map.lost();
        map.reset(false, 12);
        map.put(device(2), found(1, 11));
        map.put(device(3), found(1, 12));
        assert_eq!(map.len(), 3);
        map.loaded(Duration::ZERO, now);
        assert!(map.get(device(1)).is_none() && map.len() == 2);
    }

    #[test]
    fn an_older_word_never_undoes_a_newer_one() {
        let mut map = ClaimMap::default();
        assert!(map.put(device(1), found(2, 20)));
        assert!(!map.put(device(1), found(1, 10)));
        map.remove(device(1), 15);
        map.forget(device(1), 19);
        assert_eq!(map.get(device(1)), Some(found(2, 20)));
        map.remove(device(1), 21);
        assert!(map.is_empty());
    }

    #[test]
    fn claims_of_a_store_that_was_lost_are_doubted_and_then_dropped() {
        let (mut map, now) = (ClaimMap::default(), Instant::now());
        map.put(device(1), found(1, 10));
        map.put(device(2), found(1, 11));
        map.reset(true, 0);
        map.put(device(2), found(1, 100));
        map.loaded(Duration::from_secs(1), now);
        assert_eq!((map.get(device(1)), map.len()), (Some(found(1, 10)), 2));
        map.end_doubt(now);
        assert_eq!(map.len(), 2);
        map.end_doubt(now + Duration::from_secs(1));
        assert_eq!((map.get(device(1)), map.len()), (None, 1));
    }

    #[test]
    fn a_load_of_another_store_that_is_begun_again_still_doubts_what_stood_before() {
        let (mut map, now) = (ClaimMap::default(), Instant::now());
        map.put(device(1), found(1, 10));
        map.reset(true, 20);
        map.lost();
        // Of the store that it has begun to know.
        map.reset(false, 21);
        map.loaded(Duration::from_secs(1), now);
        assert!(map.standing(device(1)).is_none() && map.get(device(1)).is_some());
        map.end_doubt(now + Duration::from_secs(1));
        map.put(device(2), found(1, 22));
        map.reset(false, 23);
        map.loaded(Duration::from_secs(1), now);
        assert!(map.get(device(2)).is_none(), "once told whole, it is the same store");
    }

    #[test]
    fn a_store_that_counts_anew_is_another() {
        let (mut map, now) = (ClaimMap::default(), Instant::now());
        map.put(device(1), found(1, 10));
        map.lost();
        map.put(device(2), found(1, 14));
        map.reset(false, 12);
        assert!(
            !map.is_loading_another_store(),
            "what was written meanwhile is above what the load began at"
        );
        map.loaded(Duration::from_secs(1), now);
        map.put(device(2), found(1, 14));
        map.lost();
        map.reset(false, 3);
        assert!(map.is_loading_another_store());
        map.loaded(Duration::from_secs(1), now);
        assert!(map.standing(device(2)).is_none() && map.get(device(2)).is_some());
        map.put(device(1), found(2, 4));
        map.begins_anew(2, Duration::from_secs(1), now);
        assert!(map.standing(device(1)).is_none() && map.get(device(1)).is_some());
        assert_eq!((map.revision(), map.tally(NodeId(2))), (2, Tally::default()));
    }

    #[test]
    fn what_becomes_callable_is_newer_than_all_that_was_heard_of() {
        let mut map = ClaimMap::default();
        map.put(device(1), found(1, 10));
        map.remove(device(1), 12);
        assert_eq!(map.next_generation(None), Generation(13), "a swept session may come back with its own");
        map.heard(Generation(40));
        assert_eq!(map.next_generation(Some(Generation(7))), Generation(41));
        assert_eq!(map.next_generation(Some(Generation(70))), Generation(71));
    }

    proptest! {
        #[test]
        fn tallies_are_those_of_the_claims(
            steps in proptest::collection::vec((0u8..5, 0u128..4, 0u64..3, 1u64..40), 1..80),
        ) {
            let (mut map, now) = (ClaimMap::default(), Instant::now());
            for (what, number, node, revision) in steps {
                match what {
                    0 | 1 => { map.put(device(number), found(node, revision)); }
                    2 => map.remove(device(number), revision),
                    3 => map.reset(revision % 2 == 0, 0),
                    _ => map.loaded(Duration::ZERO, now),
                }
                let mut tallies: HashMap<NodeId, Tally> = HashMap::new();
                map.current.iter().for_each(|(device, Found { claim, .. })| {
                    tallies.entry(claim.node).or_default().add(*device, claim.session, claim.generation);
                });
                prop_assert_eq!(&tallies, &map.tallies);
            }
        }
    }
}
