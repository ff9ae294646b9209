//! Where is each device connected? The claims as the store keeps them: read, written and removed by compare-and-set,
//! and watched. Only routers use it.

use std::time::Duration;

use bytes::Bytes;
use rpc::{Claim, DeviceId, MARKER_TTL};
use tracing::warn;

use crate::bucket::{Bucket, Entry, Role, Spec};
use crate::connection::Bus;
use crate::errors::{BusError, StoreError};
use crate::watch::{Watch, WatchEvent};

pub use crate::bucket::Expected;

const CLAIMS: Spec = Spec { name: "claims", description: "Where each device is connected", passing: None };

/// The claims. Clones share the connection.
#[derive(Clone)]
pub struct ClaimStore {
    bucket: Bucket,
}

/// What stands under a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoredClaim {
    /// The claim; none where a removal has left its marker, or what nobody can read.
    pub claim: Option<Claim>,
    /// The store's number for this writing.
    pub revision: u64,
}

/// What a [`ClaimWatch`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClaimEvent {
    /// A load from the beginning: every claim follows, then `Loaded`.
    Reset {
        /// The store is another than before: it was lost.
        is_another_store: bool,
        /// The store's number for its last writing.
        revision: u64,
    },
    /// All that stood there when the load began has been told.
    Loaded,
    /// A claim stands.
    Put {
        /// The device.
        device: DeviceId,
        /// Its claim.
        claim: Claim,
        /// The store's number for this writing.
        revision: u64,
    },
    /// None stands any more.
    Removed {
        /// The device.
        device: DeviceId,
        /// The removal's own revision.
        revision: u64,
    },
    /// Nothing has changed; the store is still there.
    Alive,
    /// Changes may be missed from now on, until the next `Reset`.
    Lost,
}

impl ClaimStore {
    /// Opens the bucket `<prefix>_claims`, and makes it when it is missing, also after it was lost.
    ///
    /// # Errors
    /// When JetStream does not answer or refuses.
    pub async fn open(bus: &Bus) -> Result<ClaimStore, BusError> {
        Ok(ClaimStore { bucket: Bucket::open(bus, CLAIMS, Role::Keeper).await? })
    }

    /// Writes a claim where `expected` stands, and returns its revision.
    ///
    /// # Errors
    /// [`StoreError::Contended`] when something else stands there. After `Unreachable` it may have been written.
    pub async fn write(
        &self,
        device: DeviceId,
        claim: &Claim,
        expected: Expected,
        wait: Duration,
    ) -> Result<u64, StoreError> {
        let value = serde_json::to_vec(claim).map_err(|error| StoreError::Unreadable(error.to_string()))?;
        self.bucket.put(&device.to_string(), value.into(), expected, wait).await
    }

    /// What stands there now.
    ///
    /// # Errors
    /// When the store has not answered within `wait`: that is not "no claim".
    pub async fn read(&self, device: DeviceId, wait: Duration) -> Result<Option<StoredClaim>, StoreError> {
        let entry = self.bucket.get(&device.to_string(), wait).await?;
        Ok(entry.map(|Entry { revision, value, .. }| StoredClaim {
            // Nobody can be reached through what nobody can read.
            claim: value.as_ref().and_then(read_claim),
            revision,
        }))
    }

    /// Removes this very writing, and returns the removal's revision; none when another stands there.
    ///
    /// # Errors
    /// When the store has not answered within `wait`; it may be gone nevertheless.
    pub async fn remove(
        &self,
        device: DeviceId,
        revision: u64,
        wait: Duration,
    ) -> Result<Option<u64>, StoreError> {
        let expected = Expected::Revision(revision);
        match self.bucket.remove(&device.to_string(), expected, Some(MARKER_TTL), wait).await {
            Ok(removed_at) => Ok(Some(removed_at)),
            Err(StoreError::Contended) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Follows all claims, over outages too.
    pub fn watch(&self) -> ClaimWatch {
        ClaimWatch { watch: Watch::of_all(&self.bucket) }
    }
}

/// Every change of the claims, see [`ClaimStore::watch`].
pub struct ClaimWatch {
    watch: Watch,
}

impl ClaimWatch {
    /// For who may read the claims and nothing else: routers make the bucket.
    ///
    /// # Errors
    /// When JetStream does not answer or refuses, or the bucket is not there yet.
    pub async fn open(bus: &Bus) -> Result<ClaimWatch, StoreError> {
        let bucket = Bucket::open(bus, CLAIMS, Role::Reader).await?;
        Ok(ClaimWatch { watch: Watch::new(&bucket, &["*"]) })
    }

    /// The next one; none when the bus has been closed. Not to be dropped half-way: a load would begin anew.
    pub async fn next(&mut self) -> Option<ClaimEvent> {
        loop {
            return Some(match self.watch.next().await? {
                WatchEvent::Reset { is_new_bucket, revision } => {
                    ClaimEvent::Reset { is_another_store: is_new_bucket, revision }
                }
                WatchEvent::Loaded => ClaimEvent::Loaded,
                WatchEvent::Put { key, value, revision } => match (key.parse(), read_claim(&value)) {
                    (Ok(device), Some(claim)) => ClaimEvent::Put { device, claim, revision },
                    _ => {
                        warn!(key, "what stands in the claims is no claim");
                        continue;
                    }
                },
                WatchEvent::Removed { key, revision } => match key.parse() {
                    Ok(device) => ClaimEvent::Removed { device, revision },
                    Err(_) => continue,
                },
                WatchEvent::Alive => ClaimEvent::Alive,
                WatchEvent::Lost => ClaimEvent::Lost,
                // Removals vanish here: each load is a whole one.
                WatchEvent::Resumed => continue,
            });
        }
    }
}

fn read_claim(value: &Bytes) -> Option<Claim> {
    serde_json::from_slice(value).ok()
}
