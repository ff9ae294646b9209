//! Where is a device connected? The map first, and the store itself before the answer is "nowhere".

use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::{ClaimError, ClaimMap, ClaimStore, LeaseMap};
use rpc::{Claim, Deadline, DeviceId, NodeId};
use tokio::time::timeout_at;

use crate::Known;
use crate::meters::Meters;

/// Finds claims.
#[derive(Clone)]
pub(crate) struct Locator {
    store: ClaimStore,
    claims: ClaimMap,
    leases: LeaseMap,
    meters: Arc<Meters>,
}

/// A claim, as found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) claim: Claim,
    pub(crate) revision: u64,
}

/// Why a claim led to no session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refutation {
    /// The node says that it has no such session.
    NoSession,
    /// Nobody listens as that node.
    NoNode,
}

/// A claim that led to no session.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Refuted {
    pub(crate) found: Found,
    pub(crate) by: Refutation,
    /// The store still had it afterwards.
    pub(crate) still_stands: bool,
}

impl Locator {
    pub(crate) fn new(known: Known, meters: Arc<Meters>) -> Self {
        let Known { store, claims, leases } = known;
        Locator { store, claims, leases, meters }
    }

    /// The claim of `device` that is not one of `refuted`: out of the map, or else out of the store, which is asked
    /// at most once. None when the store has no other one.
    ///
    /// # Errors
    /// When the store cannot say within `wait`.
    pub(crate) async fn locate(
        &self,
        device: DeviceId,
        refuted: &mut [Refuted],
        wait: Duration,
    ) -> Result<Option<Found>, ClaimError> {
        if let Some(found) = self.on_map(device, refuted) {
            return Ok(Some(found));
        }
        let stored = self.store.look_up(device, wait).await;
        match &stored {
            Ok(Some(_)) => self.meters.lookups_found.increment(1),
            Ok(None) => self.meters.lookups_none.increment(1),
            Err(_) => self.meters.lookups_failed.increment(1),
        }
        let found = stored?.map(|(claim, revision)| Found { claim, revision });
        let mut is_refuted = false;
        for refuted in refuted {
            refuted.still_stands = found.is_some_and(|found| found.revision == refuted.found.revision);
            is_refuted |= refuted.still_stands;
            if !refuted.still_stands {
                self.claims.forget(device, refuted.found.revision);
            }
        }
        Ok(found.filter(|_| !is_refuted))
    }

    /// Waits until `device` claims in another way than in `refuted`, at most until `deadline`.
    pub(crate) async fn await_arrival(
        &self,
        device: DeviceId,
        refuted: &[Refuted],
        deadline: Deadline,
    ) -> Option<Found> {
        if deadline.has_passed(Instant::now()) {
            return None;
        }
        let mut arrivals = self.claims.arrivals(device);
        loop {
            if let Some(found) = self.on_map(device, refuted) {
                return Some(found);
            }
            timeout_at(deadline.instant().into(), arrivals.next()).await.ok()?;
        }
    }

    /// Removes the claim if it still stands in the store though its session or node is certainly gone, so that the
    /// next call need not find out again.
    pub(crate) async fn clear(&self, device: DeviceId, refuted: Refuted) {
        let Refuted { found: Found { claim, revision }, by, still_stands } = refuted;
        if !still_stands {
            return;
        }
        let removed = match by {
            Refutation::NoSession => &self.meters.removed_sessions,
            // It may only be cut off for a moment, or have no lease yet after an outage.
            Refutation::NoNode if self.leases.may_live(claim.node) => return,
            Refutation::NoNode => match self.store.is_leased(claim.node).await {
                Ok(false) => &self.meters.removed_nodes,
                Ok(true) | Err(_) => return,
            },
        };
        match self.store.release(device, revision).await {
            Ok(true) => removed.increment(1),
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, %device, "a stale claim stays for now"),
        }
    }

    /// Whether `node` is certainly gone: its lease is over, as heard here and as the store says.
    pub(crate) async fn is_gone(&self, node: NodeId) -> bool {
        !self.leases.may_live(node) && matches!(self.store.is_leased(node).await, Ok(false))
    }

    /// How long a node's lease lasts after its last renewal.
    pub(crate) fn lease(&self) -> Duration {
        self.store.lease()
    }

    /// As [`locate`](Self::locate), out of the map alone.
    pub(crate) fn on_map(&self, device: DeviceId, refuted: &[Refuted]) -> Option<Found> {
        let (claim, revision) = self.claims.get(device)?;
        let is_refuted = refuted.iter().any(|refuted| refuted.found.revision == revision);
        (!is_refuted).then_some(Found { claim, revision })
    }
}
