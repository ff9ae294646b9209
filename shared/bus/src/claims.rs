//! Where is each device connected, and who may say so? Claims: written, overtaken and released by compare-and-set.

use std::time::Duration;

use bytes::Bytes;
use rpc::{Claim, DeviceId, NodeId};

use crate::bucket::{Bucket, Entry, Expected, Role, Spec, Storage};
use crate::claim_map::{ClaimMap, read_claim};
use crate::connection::Bus;
use crate::errors::{BusError, StoreError};
use crate::leases::LeaseMap;

/// How often a claim is tried again when another one comes in between.
const MAX_ATTEMPTS: usize = 16;
/// How long a released claim's marker stands: watchers hear of it at once, and a claim in that time takes longer.
const MARKER_TTL: Duration = Duration::from_secs(3);
/// How long the store may take where the caller names no limit.
const STORE_WAIT: Duration = Duration::from_secs(2);

const CLAIMS: Spec = Spec {
    name: "claims",
    description: "Where each device is connected",
    storage: Storage::Memory,
    max_age: None,
};
const LEASES: Spec =
    Spec { name: "nodes", description: "Which nodes are alive", storage: Storage::Memory, max_age: None };

/// The claims and the nodes' leases, shared by every process under one prefix. Clones share it.
#[derive(Clone)]
pub struct ClaimStore {
    claims: Bucket,
    leases: Bucket,
    lease: Duration,
}

/// A claim was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claimed {
    /// What [`ClaimStore::release`] needs.
    pub revision: u64,
    /// The claim that stood there; its session is to be closed.
    pub overtaken: Option<Claim>,
}

/// What became of a claim that was written again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reclaimed {
    /// It stands.
    Held {
        /// Its revision now.
        revision: u64,
    },
    /// A newer session's stands there: this one is over.
    Overtaken(Claim),
}

/// Why the store did not do it. After `Unreachable` it may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError {
    /// The store could not be asked, or said no.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Other claims of this device came in between again and again.
    #[error("other claims of the device came in between")]
    Contended,
}

impl ClaimStore {
    /// Opens the buckets `<prefix>_claims` and `<prefix>_nodes`. A node whose lease is not renewed for `lease` counts
    /// as gone; every process must be given the same.
    ///
    /// # Errors
    /// When they are not there yet, and when JetStream does not answer or refuses.
    pub async fn open(bus: &Bus, lease: Duration) -> Result<ClaimStore, BusError> {
        Self::open_as(Role::User, bus, lease).await
    }

    /// Opens them for a router, which makes them when they are missing, also after NATS has lost its memory: a node
    /// needs no right to say what JetStream keeps.
    ///
    /// # Errors
    /// When JetStream does not answer or refuses.
    pub async fn make(bus: &Bus, lease: Duration) -> Result<ClaimStore, BusError> {
        Self::open_as(Role::Keeper, bus, lease).await
    }

    async fn open_as(role: Role, bus: &Bus, lease: Duration) -> Result<ClaimStore, BusError> {
        Ok(ClaimStore {
            claims: Bucket::open(bus, CLAIMS, role).await?,
            leases: Bucket::open(bus, Spec { max_age: Some(lease), ..LEASES }, role).await?,
            lease,
        })
    }

    /// Writes the claim over whatever stands there: the newest session wins.
    ///
    /// # Errors
    /// When the store has not taken it within `wait`; it may stand there nevertheless.
    pub async fn claim(
        &self,
        device: DeviceId,
        claim: &Claim,
        wait: Duration,
    ) -> Result<Claimed, ClaimError> {
        within(wait, self.write_claim(device, claim, |_| true)).await?.map_err(|_| ClaimError::Contended)
    }

    /// Writes the claim again after an outage, unless a newer session's stands there.
    ///
    /// # Errors
    /// As [`claim`](Self::claim).
    pub async fn reclaim(
        &self,
        device: DeviceId,
        claim: &Claim,
        wait: Duration,
    ) -> Result<Reclaimed, ClaimError> {
        // The same millisecond: either may win, as long as all nodes agree which.
        let age = |claim: &Claim| (claim.since_ms, claim.node, claim.session);
        let written = within(wait, self.write_claim(device, claim, |other| age(claim) > age(other))).await?;
        Ok(match written {
            Ok(Claimed { revision, .. }) => Reclaimed::Held { revision },
            Err(newer) => Reclaimed::Overtaken(newer),
        })
    }

    /// Removes the claim if it is still the one of that revision. True if it was.
    ///
    /// # Errors
    /// When the store has not answered; it may be gone nevertheless.
    pub async fn release(&self, device: DeviceId, revision: u64) -> Result<bool, ClaimError> {
        let expected = Expected::Revision(revision);
        match self.claims.remove(&device.to_string(), expected, Some(MARKER_TTL), STORE_WAIT).await {
            Ok(_) => Ok(true),
            Err(StoreError::Overtaken) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// The claim and its revision, as the store has it now.
    ///
    /// # Errors
    /// When the store has not answered within `wait`, or what it has cannot be read: that is not "no claim".
    pub async fn look_up(
        &self,
        device: DeviceId,
        wait: Duration,
    ) -> Result<Option<(Claim, u64)>, ClaimError> {
        let entry = self.claims.get(&device.to_string(), wait).await?;
        let Some(Entry { revision, value: Some(value), .. }) = entry else { return Ok(None) };
        Ok(Some((read_claim(&value)?, revision)))
    }

    /// Renews this node's lease, to be done several times within it.
    ///
    /// # Errors
    /// When the store has not taken it within the lease.
    pub async fn renew_lease(&self, node: NodeId) -> Result<(), ClaimError> {
        let wait = self.lease.min(STORE_WAIT);
        self.leases.put(&node.to_string(), Bytes::new(), Expected::Anything, wait).await?;
        Ok(())
    }

    /// Ends this node's lease: it has released its claims and leaves.
    ///
    /// # Errors
    /// When the store has not taken it; the lease then ends by itself.
    pub async fn end_lease(&self, node: NodeId) -> Result<(), ClaimError> {
        self.leases.remove(&node.to_string(), Expected::Anything, Some(MARKER_TTL), STORE_WAIT).await?;
        Ok(())
    }

    /// Whether the node's lease stands, as the store has it now.
    ///
    /// # Errors
    /// When the store has not answered: that is not "no lease".
    pub async fn is_leased(&self, node: NodeId) -> Result<bool, ClaimError> {
        let entry = self.leases.get(&node.to_string(), STORE_WAIT).await?;
        Ok(entry.is_some_and(|entry| entry.value.is_some()))
    }

    /// How long a lease lasts without being renewed.
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// A map of all claims that follows the store until it is dropped.
    pub fn watch(&self) -> ClaimMap {
        ClaimMap::follow(&self.claims, self.lease)
    }

    /// A map of all leases that follows the store until it is dropped.
    pub fn watch_leases(&self) -> LeaseMap {
        LeaseMap::follow(&self.leases, self.lease)
    }

    /// Writes over nothing in one round trip, and over what else stands there if `wins` says so; otherwise `Err` has
    /// the claim that stays.
    async fn write_claim(
        &self,
        device: DeviceId,
        claim: &Claim,
        wins: impl Fn(&Claim) -> bool,
    ) -> Result<Result<Claimed, Claim>, ClaimError> {
        let key = device.to_string();
        let value = serde_json::to_vec(claim).map_err(|error| StoreError::Unreadable(error.to_string()))?;
        let value = Bytes::from(value);
        let mut expected = Expected::Nothing;
        let mut overtaken = None;
        for _ in 0..MAX_ATTEMPTS {
            // The caller's limit is around all of this; each step alone has the general one.
            match self.claims.put(&key, value.clone(), expected, STORE_WAIT).await {
                Ok(revision) => return Ok(Ok(Claimed { revision, overtaken })),
                Err(StoreError::Overtaken) => {}
                Err(error) => return Err(error.into()),
            }
            overtaken = None;
            expected = match self.claims.get(&key, STORE_WAIT).await? {
                None => Expected::Nothing,
                Some(Entry { revision, value: None, .. }) => Expected::Revision(revision),
                Some(Entry { revision, value: Some(standing), .. }) => match read_claim(&standing) {
                    // Our own, of which we had not heard that it was written.
                    Ok(standing) if (standing.node, standing.session) == (claim.node, claim.session) => {
                        return Ok(Ok(Claimed { revision, overtaken: None }));
                    }
                    Ok(standing) if wins(&standing) => {
                        overtaken = Some(standing);
                        Expected::Revision(revision)
                    }
                    Ok(standing) => return Ok(Err(standing)),
                    // Nobody can be reached through what nobody can read.
                    Err(_) => Expected::Revision(revision),
                },
            };
        }
        Err(ClaimError::Contended)
    }
}

async fn within<T>(
    wait: Duration,
    work: impl Future<Output = Result<T, ClaimError>>,
) -> Result<T, ClaimError> {
    match tokio::time::timeout(wait, work).await {
        Ok(done) => done,
        Err(_) => Err(StoreError::Unreachable(crate::AskError::Expired).into()),
    }
}
