//! Which devices are there, and what changes of them? For who may read nothing else of the registry.

use tracing::warn;

use super::Device;
use super::bucket::Bucket;
use crate::connection::Bus;
use crate::errors::StoreError;
use crate::watch::{Watch, WatchEvent};
use rpc::DeviceId;

/// What a [`DeviceWatch`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceEvent {
    /// A load from the beginning: every device follows, then `Loaded`.
    Reset {
        /// The registry's number for its last writing.
        revision: u64,
    },
    /// All that stood there when the load began has been told.
    Loaded,
    /// A record stands; none: it was removed, or cannot be read.
    Device {
        /// The device.
        id: DeviceId,
        /// Its record.
        now: Option<Device>,
        /// The registry's number for this writing.
        revision: u64,
    },
    /// Changes may be missed from now on, until the next `Loaded` or `Resumed`.
    Lost,
    /// Nothing was missed: what had changed since `Lost` has been told.
    Resumed,
}

/// Follows the devices, over outages too.
pub struct DeviceWatch {
    watch: Watch,
}

impl DeviceWatch {
    /// Of a registry that is there.
    ///
    /// # Errors
    /// When JetStream does not answer or refuses, or the registry is not there yet.
    pub async fn open(bus: &Bus) -> Result<DeviceWatch, StoreError> {
        let bucket = Bucket::open_to_read(bus).await?;
        Ok(DeviceWatch { watch: Watch::new(&bucket, &["device.*"]).resuming(|_| true) })
    }

    /// The next event; none when the bus has been closed. Not to be dropped half-way: a load would begin anew.
    pub async fn next(&mut self) -> Option<DeviceEvent> {
        loop {
            let (key, value, revision) = match self.watch.next().await? {
                WatchEvent::Reset { revision, .. } => return Some(DeviceEvent::Reset { revision }),
                WatchEvent::Loaded => return Some(DeviceEvent::Loaded),
                WatchEvent::Lost => return Some(DeviceEvent::Lost),
                WatchEvent::Resumed => return Some(DeviceEvent::Resumed),
                WatchEvent::Alive => continue,
                WatchEvent::Put { key, value, revision } => (key, Some(value), revision),
                WatchEvent::Removed { key, revision } => (key, None, revision),
            };
            let Some(Ok(id)) = key.strip_prefix("device.").map(str::parse) else { continue };
            let now = value.and_then(|value| {
                let read = serde_json::from_slice(&value);
                read.inspect_err(|_| warn!(key, "a record cannot be read, and counts as missing")).ok()
            });
            return Some(DeviceEvent::Device { id, now, revision });
        }
    }
}
