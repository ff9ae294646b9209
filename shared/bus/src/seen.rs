//! How was a device last connected? Kept for a while after its claim was removed. Only routers use it.

use std::time::Duration;

use rpc::{DeviceId, LastSeen, SEEN_LASTS};

use crate::bucket::{Bucket, Passing, Role, Spec};
use crate::connection::Bus;
use crate::errors::StoreError;

const SEEN: Spec = Spec {
    name: "seen",
    description: "How each device was last connected",
    passing: Some(Passing { max_age: SEEN_LASTS, max_bytes: None }),
};

/// The bucket `<prefix>_seen`: a [`LastSeen`] under each device's id, for [`SEEN_LASTS`]. Clones share the connection.
#[derive(Clone)]
pub struct SeenStore {
    bucket: Bucket,
}

impl SeenStore {
    /// Opens the bucket, and makes it where it is missing.
    ///
    /// # Errors
    /// When JetStream does not answer or refuses.
    pub async fn open(bus: &Bus) -> Result<SeenStore, StoreError> {
        Ok(SeenStore { bucket: Bucket::open(bus, SEEN, Role::Founder).await? })
    }

    /// Writes over what was known of that device.
    ///
    /// # Errors
    /// When the store has not taken it within `wait`; it may have.
    pub async fn write(&self, device: DeviceId, seen: &LastSeen, wait: Duration) -> Result<(), StoreError> {
        let value = serde_json::to_vec(seen).map_err(|error| StoreError::Unreadable(error.to_string()))?;
        self.bucket.replace(&device.to_string(), value.into(), wait).await.map(|_| ())
    }

    /// What is known of that device.
    ///
    /// # Errors
    /// When the store has not answered within `wait`: that is not "never".
    pub async fn read(&self, device: DeviceId, wait: Duration) -> Result<Option<LastSeen>, StoreError> {
        let entry = self.bucket.get(&device.to_string(), wait).await?;
        // A newer version's record that cannot be read is none to this one.
        Ok(entry.and_then(|entry| entry.value).and_then(|value| serde_json::from_slice(&value).ok()))
    }
}
