//! Which claims does this node hold, and what is to be done when a router knows others? Pure.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rpc::{CompareReply, DeviceId, Generation, HeldClaim, LeaseRenewal, NodeId, SessionId, Tally, part_of};

/// A claim that changed so short a time ago may be one that the router has not heard of yet.
const SETTLES: Duration = Duration::from_secs(2);
/// So many differences in a row are looked into, however much changes meanwhile.
const MAX_UNSETTLED: u32 = 3;
/// Claims compared at a time: their list is about 100 KB.
const MAX_COMPARED: usize = 1_000;

/// The claims of this node's sessions, as routers have said that they stand.
#[derive(Debug, Default)]
pub struct Holding {
    held: HashMap<SessionId, (DeviceId, Generation)>,
    tally: Tally,
    newest: Generation,
    changed_at: Option<Instant>,
    unsettled: u32,
    mends: bool,
}

/// What is to be done about a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Renew the lease soon: it may have settled by then.
    Wait,
    /// Compare all claims, in so many parts.
    Compare(u32),
}

/// What a comparison has shown.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ToMend {
    /// Sessions that are to claim again.
    pub claim: Vec<HeldClaim>,
    /// Claims of sessions that are none any more.
    pub release: Vec<HeldClaim>,
}

impl Holding {
    /// A session's claim stands.
    pub fn hold(&mut self, device: DeviceId, session: SessionId, generation: Generation, now: Instant) {
        let before = self.held.insert(session, (device, generation));
        if before == Some((device, generation)) {
            return;
        }
        if let Some((device, generation)) = before {
            self.tally.remove(device, session, generation);
        }
        self.tally.add(device, session, generation);
        self.newest = self.newest.max(generation);
        self.changed_at = Some(now);
    }

    /// A session's claim was written again. False when it is not held any more.
    pub fn hold_again(&mut self, session: SessionId, generation: Generation, now: Instant) -> bool {
        let Some(&(device, _)) = self.held.get(&session) else { return false };
        self.hold(device, session, generation, now);
        true
    }

    /// A session's claim is to stand no longer. False when it did not.
    pub fn let_go(&mut self, session: SessionId, now: Instant) -> bool {
        let Some((device, generation)) = self.held.remove(&session) else { return false };
        self.tally.remove(device, session, generation);
        self.changed_at = Some(now);
        true
    }

    /// The generation of a session whose claim stands.
    pub fn generation(&self, session: SessionId) -> Option<Generation> {
        self.held.get(&session).map(|(_, generation)| *generation)
    }

    /// What a renewal of the lease says.
    pub fn renewal(&self, node: NodeId, ends: bool) -> LeaseRenewal {
        LeaseRenewal {
            node,
            tally: self.tally,
            newest: self.newest,
            ends,
            mends: Some(self.mends),
            sheds: false,
        }
    }

    /// A router knows other claims of this node.
    pub fn differs(&mut self, now: Instant) -> Difference {
        let is_settled = self.changed_at.is_none_or(|at| now.saturating_duration_since(at) >= SETTLES);
        self.unsettled += 1;
        if !is_settled && self.unsettled < MAX_UNSETTLED {
            return Difference::Wait;
        }
        self.unsettled = 0;
        self.mends = true;
        let parts = self.held.len().div_ceil(MAX_COMPARED).max(1);
        Difference::Compare(u32::try_from(parts).unwrap_or(u32::MAX))
    }

    /// A comparison is over. What was found is mended, but for what `failed`: another one is to follow.
    pub fn mended(&mut self, failed: bool) {
        self.mends = failed;
    }

    /// Whether something is left that was to be mended.
    pub fn mends(&self) -> bool {
        self.mends
    }

    /// One part of all claims, for a router to compare.
    pub fn part(&self, part: u32, parts: u32) -> Vec<HeldClaim> {
        let of_part = self.held.iter().filter(|(_, (device, _))| part_of(*device, parts) == part);
        of_part.map(|(&session, &(device, generation))| HeldClaim { device, session, generation }).collect()
    }

    /// What a router said of the part that it was `told`. Only what still holds is to be mended.
    pub fn compared(&self, told: &[HeldClaim], reply: &CompareReply) -> ToMend {
        let stands =
            |held: &&HeldClaim| self.held.get(&held.session) == Some(&(held.device, held.generation));
        let lacking = told.iter().filter(|held| reply.lacking.contains(&held.device));
        // One that has become callable since it was told is known here by now, or its claim is still being written.
        let is_gone = |held: &&HeldClaim| !self.held.contains_key(&held.session);
        ToMend {
            claim: lacking.filter(stands).copied().collect(),
            release: reply.foreign.iter().filter(is_gone).copied().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn held(number: u64) -> HeldClaim {
        let device = DeviceId(Uuid::from_u128(number.into()));
        HeldClaim { device, session: SessionId(number), generation: Generation(number) }
    }

    fn hold(holding: &mut Holding, number: u64, now: Instant) {
        let HeldClaim { device, session, generation } = held(number);
        holding.hold(device, session, generation, now);
    }

    #[test]
    fn a_difference_that_may_settle_is_waited_for_and_not_for_ever() {
        let now = Instant::now();
        let mut holding = Holding::default();
        hold(&mut holding, 1, now);
        assert_eq!(holding.differs(now), Difference::Wait);
        assert_eq!(holding.differs(now + SETTLES), Difference::Compare(1));
        let busy = [holding.differs(now), holding.differs(now), holding.differs(now)];
        assert_eq!(busy, [Difference::Wait, Difference::Wait, Difference::Compare(1)]);
    }

    #[test]
    fn a_node_says_that_it_mends_until_nothing_is_left() {
        let now = Instant::now();
        let mut holding = Holding::default();
        let mends = |holding: &Holding| holding.renewal(NodeId(1), false).mends;
        assert_eq!(mends(&holding), Some(false));
        assert_eq!(holding.differs(now), Difference::Compare(1));
        assert_eq!(mends(&holding), Some(true));
        holding.mended(true);
        assert_eq!(mends(&holding), Some(true), "some claim was not written");
        holding.mended(false);
        assert_eq!(mends(&holding), Some(false));
    }

    #[test]
    fn many_claims_are_compared_in_parts() {
        let now = Instant::now();
        let mut holding = Holding::default();
        (0..2_500).for_each(|number| hold(&mut holding, number, now));
        assert_eq!(holding.differs(now + SETTLES), Difference::Compare(3));
        let parts: Vec<_> = (0..3).map(|part| holding.part(part, 3)).collect();
        assert_eq!(parts.iter().map(Vec::len).sum::<usize>(), 2_500);
        assert!(parts.iter().all(|part| part.len() > 700), "about as many in each");
    }

    #[test]
    fn only_what_still_holds_is_mended() {
        let now = Instant::now();
        let mut holding = Holding::default();
        (1..=3).for_each(|number| hold(&mut holding, number, now));
        let told = holding.part(0, 1);
        holding.let_go(SessionId(2), now);
        let reply =
            CompareReply { lacking: vec![held(1).device, held(2).device], foreign: vec![held(3), held(4)] };
        let mend = holding.compared(&told, &reply);
        assert_eq!(mend, ToMend { claim: vec![held(1)], release: vec![held(4)] });
    }

    proptest! {
        #[test]
        fn the_tally_is_that_of_what_is_held(steps in proptest::collection::vec((any::<bool>(), 0u64..5), 0..60)) {
            let now = Instant::now();
            let mut holding = Holding::default();
            for (is_held, number) in steps {
                if is_held { hold(&mut holding, number, now) } else { holding.let_go(SessionId(number), now); }
                let mut tally = Tally::default();
                for held in holding.part(0, 1) {
                    tally.add(held.device, held.session, held.generation);
                }
                prop_assert_eq!(tally, holding.renewal(NodeId(1), false).tally);
            }
        }
    }
}
