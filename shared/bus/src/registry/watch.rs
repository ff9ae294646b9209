//! What stands in the registry, and what changes there? One full load, then every change, over outages too.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rpc::{AppId, CredentialHash, CustomerId, DeviceId, NodeId, TenantId};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::bucket::Bucket;
use super::{App, Customer, Device, RegistryError, Snapshot, Tenant};
use crate::connection::{Bus, Question};
use crate::errors::StoreError;
use crate::jetstream::acknowledged;
use crate::watch::{Patience, Watch, WatchEvent};

/// A load in which nothing arrives for so long has failed.
const LOAD_IDLE: Duration = Duration::from_secs(60);
const _: () = assert!(
    LOAD_IDLE.as_secs() > (1 + 2 + 4) * Patience::LOADING.begin.as_secs(),
    "a load is begun three times at least"
);
/// Changes that may wait to be taken; JetStream then waits with further ones.
const MAX_WAITING: usize = 1_024;

/// What a [`RegistryWatch`] saw. `now` is what stands there now; none: it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A full load begins; what is not named again before [`Change::Loaded`] is gone. Until then what was
    /// known stays the best knowledge there is.
    Loading,
    /// A tenant.
    Tenant(TenantId, Option<Tenant>),
    /// A customer.
    Customer(CustomerId, Option<Customer>),
    /// A device.
    Device(DeviceId, Option<Device>),
    /// An application.
    App(AppId, Option<App>),
    /// Which device a credential was made for. It is that device's only if its record bears the same hash.
    Credential(CredentialHash, Option<DeviceId>),
    /// The load is complete.
    Loaded,
    /// The store says that nothing else has changed.
    Confirmed,
    /// A beat of this process has come back, see [`RegistryBeats`].
    Beat(u64),
    /// Changes may be missed from now on, until the next [`Change::Loaded`] or [`Change::Resumed`].
    Lost,
    /// Nothing was missed: what had changed since [`Change::Lost`] has been told.
    Resumed,
}

/// Follows the registry for ever; see [`Registry::watch`](super::Registry::watch).
pub struct RegistryWatch {
    changes: mpsc::Receiver<Change>,
    /// In a task of its own, so that a wait that is dropped does not begin a load anew: over a large registry it takes
    /// its time.
    follower: JoinHandle<()>,
}

impl Drop for RegistryWatch {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl RegistryWatch {
    pub(super) fn new(bus: &Bus) -> Self {
        let (changes_tx, changes) = mpsc::channel(MAX_WAITING);
        RegistryWatch { changes, follower: tokio::spawn(follow(bus.clone(), changes_tx)) }
    }

    /// The next change. Never ends: after an outage what has changed meanwhile is told, or, where nobody can know that,
    /// everything again. Cancel-safe.
    pub async fn next(&mut self) -> Change {
        match self.changes.recv().await {
            Some(change) => change,
            // The bus was closed: nothing will change any more.
            None => std::future::pending().await,
        }
    }
}

async fn follow(bus: Bus, changes: mpsc::Sender<Change>) {
    let bucket = bus.again("read the registry", || Bucket::open(&bus)).await;
    let mut watch = resuming(Watch::of_all(&bucket.keys));
    // Keys complained about, so that a record nobody can read does not fill the log.
    let mut unreadable = HashSet::new();
    while let Some(event) = watch.next().await {
        if is_beat(&event) {
            let beat = own_beat(&event, bus.store().process());
            if let Some(beat) = beat
                && changes.send(Change::Beat(beat)).await.is_err()
            {
                return;
            }
            continue;
        }
        if let Some(change) = change_of(event, &mut unreadable)
            && changes.send(change).await.is_err()
        {
            return;
        }
    }
}

/// Beats through the registry itself. One comes back behind every change that was written before it, so who has seen it
/// has seen those.
pub struct RegistryBeats {
    bus: Bus,
    subject: String,
    /// Why the store did not take the last one that it answered.
    refused: Arc<Mutex<Option<StoreError>>>,
}

/// How long the store may take to say whether it has one.
const BEAT_WAIT: Duration = Duration::from_secs(2);
/// Keys for beats: processes share them, so that those that are gone leave no key of their own behind.
const BEAT_KEYS: u64 = 64;

impl RegistryBeats {
    pub(super) fn new(bus: &Bus) -> Self {
        let bus = bus.store();
        let key = bus.process().0 % BEAT_KEYS;
        RegistryBeats {
            bus: bus.clone(),
            subject: format!("$KV.{}_devices.beat.{key}", bus.subjects().prefix()),
            refused: Arc::default(),
        }
    }

    /// Sends one. It comes back as [`Change::Beat`], or not at all.
    pub fn send(&self, number: u64) {
        let question = Question {
            subject: self.subject.as_str().into(),
            message: format!("{} {number}", self.bus.process()).into(),
            wait: BEAT_WAIT,
            asked: None,
        };
        let refused = Arc::clone(&self.refused);
        self.bus.ask_then(question, move |reply| {
            // Who says nothing has not said that there is room.
            let Ok(reply) = reply else { return };
            let answer = acknowledged("devices", &reply).err();
            if let Some(error) = &answer
                && refused.lock().as_ref() != Some(error)
            {
                tracing::warn!(%error, "the registry takes no beat");
            }
            *refused.lock() = answer;
        });
    }

    /// Why the store took none of late, where it says so.
    pub fn refused(&self) -> Option<StoreError> {
        self.refused.lock().clone()
    }
}

fn is_beat(event: &WatchEvent) -> bool {
    matches!(event, WatchEvent::Put { key, .. } | WatchEvent::Removed { key, .. } if is_beats(key))
}

fn is_beats(key: &str) -> bool {
    key.starts_with("beat.")
}

fn own_beat(event: &WatchEvent, process: NodeId) -> Option<u64> {
    let WatchEvent::Put { value, .. } = event else { return None };
    let (sender, number) = std::str::from_utf8(value).ok()?.split_once(' ')?;
    (sender.parse() == Ok(process)).then(|| number.parse().ok())?
}

/// Loads all that stands in the bucket.
pub(super) async fn load(bucket: &Bucket) -> Result<Snapshot, RegistryError> {
    snapshot_of(Watch::of_all(&bucket.keys)).await
}

/// Loads what stands in the bucket under `kinds` of keys of which there are few.
pub(super) async fn load_kinds(bucket: &Bucket, kinds: &[&'static str]) -> Result<Snapshot, RegistryError> {
    snapshot_of(Watch::new(&bucket.keys, kinds)).await
}

async fn snapshot_of(watch: Watch) -> Result<Snapshot, RegistryError> {
    let mut snapshot = Snapshot::default();
    let take = |change| match change {
        Change::Tenant(id, now) => put(&mut snapshot.tenants, id, now),
        Change::Customer(id, now) => put(&mut snapshot.customers, id, now),
        Change::Device(id, now) => put(&mut snapshot.devices, id, now),
        Change::App(id, now) => put(&mut snapshot.apps, id, now),
        Change::Loading => snapshot = Snapshot::default(),
        _ => {}
    };
    each(watch, take).await?;
    Ok(snapshot)
}

/// Tells the devices that stand in the bucket.
pub(super) async fn each_device(
    bucket: &Bucket,
    mut see: impl FnMut(DeviceId, Device),
) -> Result<(), RegistryError> {
    let take = |change| {
        if let Change::Device(id, Some(device)) = change {
            see(id, device);
        }
    };
    each(Watch::new(&bucket.keys, &["device.*"]), take).await
}

/// Tells what `watch` loads.
async fn each(watch: Watch, mut take: impl FnMut(Change)) -> Result<(), RegistryError> {
    let mut watch = resuming(watch).with(Patience::LOADING);
    let incomplete = || RegistryError::Unreachable("the registry could not be read to its end".to_owned());
    let mut unreadable = HashSet::new();
    loop {
        let event =
            timeout(LOAD_IDLE, watch.next()).await.map_err(|_| incomplete())?.ok_or_else(incomplete)?;
        match change_of(event, &mut unreadable) {
            Some(Change::Loaded) => return Ok(()),
            Some(change) => take(change),
            None => {}
        }
    }
}

fn put<K: Eq + std::hash::Hash, V>(map: &mut std::collections::HashMap<K, V>, key: K, now: Option<V>) {
    match now {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// Beats are written all the time.
fn resuming(watch: Watch) -> Watch {
    watch.resuming(|key| !is_beats(key))
}

/// What an event of the bucket says; none for one that says nothing.
fn change_of(event: WatchEvent, unreadable: &mut HashSet<String>) -> Option<Change> {
    let (key, value) = match event {
        WatchEvent::Reset { .. } => return Some(Change::Loading),
        WatchEvent::Loaded => return Some(Change::Loaded),
        WatchEvent::Alive => return Some(Change::Confirmed),
        WatchEvent::Lost => return Some(Change::Lost),
        WatchEvent::Resumed => return Some(Change::Resumed),
        WatchEvent::Put { key, value, .. } => (key, Some(value)),
        WatchEvent::Removed { key, .. } => (key, None),
    };
    match change(&key, value.as_ref()) {
        Some(change) => change,
        None => {
            // A missing answer denies.
            let removed = change(&key, None).flatten();
            if !unreadable.contains(&key) {
                tracing::warn!(key, "a record of the registry cannot be read, and counts as missing");
                unreadable.insert(key);
            }
            removed
        }
    }
}

/// The change that an entry tells; none when its value cannot be read.
fn change(key: &str, value: Option<&Bytes>) -> Option<Option<Change>> {
    let (kind, rest) = key.split_once('.')?;
    Some(Some(match kind {
        "tenant" => Change::Tenant(rest.parse().ok()?, record(value)?),
        "customer" => Change::Customer(rest.parse().ok()?, record(value)?),
        "device" => Change::Device(rest.parse().ok()?, record(value)?),
        "app" => Change::App(rest.parse().ok()?, record(value)?),
        "credential" => {
            let device = match value {
                Some(value) => Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                None => None,
            };
            Change::Credential(CredentialHash(rest.to_owned()), device)
        }
        // The indexes of names serve only those who write.
        _ => return Some(None),
    }))
}

fn record<T: DeserializeOwned>(value: Option<&Bytes>) -> Option<Option<T>> {
    match value {
        Some(value) => serde_json::from_slice(value).ok().map(Some),
        None => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_counts_as_removed() {
        let key = "device.00000000-0000-0000-0000-000000000001";
        let id: DeviceId = key.strip_prefix("device.").unwrap().parse().unwrap();
        assert_eq!(change(key, Some(&Bytes::from_static(b"{"))), None);
        let put =
            |key: &str| WatchEvent::Put { key: key.into(), value: Bytes::from_static(b"{"), revision: 1 };
        let mut unreadable = HashSet::new();
        assert_eq!(change_of(put(key), &mut unreadable), Some(Change::Device(id, None)));
        assert_eq!(change_of(put("device.nonsense"), &mut unreadable), None);
        assert_eq!(unreadable.len(), 2);
        assert_eq!(change(key, None), Some(Some(Change::Device(id, None))));
        assert_eq!(change("device-name.x.y", None), Some(None));
        let device = Bytes::from(id.to_string());
        assert_eq!(
            change("credential.ab", Some(&device)),
            Some(Some(Change::Credential(CredentialHash("ab".into()), Some(id))))
        );
    }
}
