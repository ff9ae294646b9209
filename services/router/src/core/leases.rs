//! Which nodes may be alive, as far as this router has heard? A node renews its lease three times while it lasts.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rpc::NodeId;
use rpc::faults::{Fault, is};

/// All leases. Each router keeps its own: nodes tell every one of them.
#[derive(Debug)]
pub struct Leases {
    lease: Duration,
    renewed: HashMap<NodeId, Instant>,
    /// Since when every renewal would have been heard; none while NATS is away.
    hears_since: Option<Instant>,
    last_looked: Instant,
}

impl Leases {
    /// Of a router that hears nobody yet.
    pub fn new(lease: Duration, now: Instant) -> Self {
        Leases { lease, renewed: HashMap::new(), hears_since: None, last_looked: now }
    }

    /// How long a lease lasts without being renewed.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// A node renewed its lease.
    pub fn renew(&mut self, node: NodeId, now: Instant) {
        self.renewed.insert(node, now);
    }

    /// A node has left.
    pub fn end(&mut self, node: NodeId) {
        self.renewed.remove(&node);
    }

    /// From now on every renewal is heard, or none.
    pub fn hears(&mut self, does: bool, now: Instant) {
        self.hears_since = does.then_some(now);
    }

    /// Called several times a lease, or this router slept and has heard nobody meanwhile.
    pub fn look(&mut self, now: Instant) {
        if self.slept(now) && self.hears_since.is_some() {
            self.hears_since = Some(now);
        }
        self.last_looked = now;
        let lease = self.lease;
        self.renewed.retain(|_, renewed| now.saturating_duration_since(*renewed) < lease);
    }

    /// Whether the node's lease stands.
    pub fn is_leased(&self, node: NodeId, now: Instant) -> bool {
        self.renewed.get(&node).is_some_and(|renewed| now.saturating_duration_since(*renewed) < self.lease)
    }

    /// The nodes whose leases stand.
    pub fn leased(&self, now: Instant) -> impl Iterator<Item = NodeId> + '_ {
        self.renewed.keys().copied().filter(move |node| self.is_leased(*node, now))
    }

    /// Whether the node may be alive: it has a lease, or nobody has been heard for long enough to say.
    pub fn may_live(&self, node: NodeId, now: Instant) -> bool {
        let heard_for = self.hears_since.map(|since| now.saturating_duration_since(since));
        self.is_leased(node, now)
            || self.slept(now)
            || (heard_for.is_none_or(|heard_for| heard_for < self.lease) && !is(Fault::DeafSweeps))
    }

    /// How many nodes have a lease.
    pub fn len(&self) -> usize {
        self.renewed.len()
    }

    /// True when none has.
    pub fn is_empty(&self) -> bool {
        self.renewed.is_empty()
    }

    fn slept(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last_looked) > self.lease / 3 && !is(Fault::SleeperSweeps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEASE: Duration = Duration::from_secs(12);
    const NODE: NodeId = NodeId(1);

    /// Looks once a second until so many seconds after `start`.
    fn look_until(leases: &mut Leases, start: Instant, seconds: std::ops::RangeInclusive<u64>) {
        seconds.for_each(|second| leases.look(start + Duration::from_secs(second)));
    }

    #[test]
    fn nobody_is_gone_before_a_whole_lease_was_heard() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut leases = Leases::new(LEASE, start);
        look_until(&mut leases, start, 0..=60);
        assert!(leases.may_live(NODE, at(60)), "it has heard nobody");
        leases.hears(true, at(60));
        look_until(&mut leases, start, 61..=72);
        assert!(leases.may_live(NODE, at(71)) && !leases.may_live(NODE, at(72)));
        leases.renew(NODE, at(72));
        look_until(&mut leases, start, 73..=83);
        assert!(leases.is_leased(NODE, at(83)) && !leases.may_live(NODE, at(84)));
        leases.renew(NODE, at(84));
        leases.end(NODE);
        assert!(!leases.may_live(NODE, at(84)));
        leases.hears(false, at(84));
        assert!(leases.may_live(NODE, at(84)));
    }

    #[test]
    fn a_router_that_slept_has_heard_nobody() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut leases = Leases::new(LEASE, start);
        leases.hears(true, start);
        leases.renew(NODE, start);
        look_until(&mut leases, start, 0..=2);
        assert!(leases.may_live(NODE, at(100)), "before it has looked");
        leases.look(at(100));
        assert!(leases.may_live(NODE, at(100)), "and after that");
        look_until(&mut leases, start, 101..=112);
        assert!(!leases.may_live(NODE, at(112)));
    }
}
