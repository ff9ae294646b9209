//! Which claims stand, as far as this process has heard? A map in memory that follows the store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rpc::{Claim, DeviceId, NodeId};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use crate::bucket::Bucket;
use crate::errors::StoreError;
use crate::watch::{Watch, WatchEvent};

/// All claims, as a background task hears of them. It may lag: a miss is to be checked against the store. Clones
/// share it; the last one dropped ends the task.
#[derive(Clone)]
pub struct ClaimMap {
    shared: Arc<Shared>,
    _follower: Arc<Follower>,
}

struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Shared {
    claims: RwLock<Claims>,
    awaited: Mutex<HashMap<DeviceId, watch::Sender<()>>>,
    is_loaded: watch::Sender<bool>,
    heard: Mutex<Instant>,
}

type Held = HashMap<DeviceId, (Claim, u64)>;

#[derive(Default)]
struct Claims {
    current: Held,
    /// During a load, what it has told so far; then it takes `current`'s place.
    loading: Option<Held>,
    /// What stood in a store that lost its memory. Its sessions are likely to be up still and about to claim again,
    /// so they can be called; it is dropped piece by piece as the store tells better, and at `doubtful_until`.
    doubtful: Held,
    doubtful_until: Option<Instant>,
}

impl ClaimMap {
    pub(crate) fn follow(bucket: &Bucket, doubt: Duration) -> Self {
        let shared = Arc::new(Shared {
            claims: RwLock::default(),
            awaited: Mutex::default(),
            is_loaded: watch::Sender::new(false),
            heard: Mutex::new(Instant::now()),
        });
        let follower = tokio::spawn(follow(Watch::new(bucket, &[">"]), Arc::clone(&shared), doubt));
        ClaimMap { shared, _follower: Arc::new(Follower(follower)) }
    }

    /// The device's claim and its revision.
    pub fn get(&self, device: DeviceId) -> Option<(Claim, u64)> {
        let claims = self.shared.read();
        claims.current.get(&device).or_else(|| claims.doubtful.get(&device)).copied()
    }

    /// Becomes ready whenever a claim of `device` arrives. Ask for it *before* looking with [`get`](Self::get), and
    /// nothing is missed in between.
    pub fn arrivals(&self, device: DeviceId) -> Arrivals {
        let mut awaited = self.shared.awaited();
        let news = awaited.entry(device).or_insert_with(|| watch::Sender::new(())).subscribe();
        Arrivals { shared: Arc::clone(&self.shared), device, news }
    }

    /// Takes out a claim that the store has been found not to have. One of another revision stays.
    pub fn forget(&self, device: DeviceId, revision: u64) {
        let mut claims = self.shared.write();
        let Claims { current, loading, doubtful, .. } = &mut *claims;
        for held in [Some(current), loading.as_mut(), Some(doubtful)].into_iter().flatten() {
            if held.get(&device).is_some_and(|&(_, held)| held == revision) {
                held.remove(&device);
            }
        }
    }

    /// How many devices are claimed.
    pub fn len(&self) -> usize {
        let claims = self.shared.read();
        claims.current.len() + claims.doubtful.len()
    }

    /// True when none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many claims each node has. Walks the whole map.
    pub fn count_by_node(&self) -> HashMap<NodeId, usize> {
        let mut counts = HashMap::new();
        for (claim, _) in self.shared.read().current.values() {
            *counts.entry(claim.node).or_default() += 1;
        }
        counts
    }

    /// One node's claims with their revisions. Walks the whole map.
    pub fn of_node(&self, node: NodeId) -> Vec<(DeviceId, u64)> {
        let claims = self.shared.read();
        let of_node = claims.current.iter().filter(|(_, (claim, _))| claim.node == node);
        of_node.map(|(&device, &(_, revision))| (device, revision)).collect()
    }

    /// True once everything that stood in the store at the start has been heard.
    pub fn is_loaded(&self) -> bool {
        *self.shared.is_loaded.borrow()
    }

    /// Waits until [`is_loaded`](Self::is_loaded).
    pub async fn wait_loaded(&self) {
        let mut is_loaded = self.shared.is_loaded.subscribe();
        // The sender lives as long as `self`.
        let _ = is_loaded.wait_for(|&is_loaded| is_loaded).await;
    }

    /// How long ago the store was heard last. It speaks every two seconds when nothing changes.
    pub fn silence(&self) -> Duration {
        self.shared.heard.lock().elapsed()
    }
}

/// News of one device's claims, see [`ClaimMap::arrivals`].
pub struct Arrivals {
    shared: Arc<Shared>,
    device: DeviceId,
    news: watch::Receiver<()>,
}

impl Arrivals {
    /// Waits for a claim that arrived since this was made, or since the last wait. Cancel-safe.
    pub async fn next(&mut self) {
        if self.news.changed().await.is_err() {
            // The sender is kept for as long as anybody listens.
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Arrivals {
    fn drop(&mut self) {
        let mut awaited = self.shared.awaited();
        // This one still counts.
        if awaited.get(&self.device).is_some_and(|news| news.receiver_count() <= 1) {
            awaited.remove(&self.device);
        }
    }
}

impl Shared {
    fn read(&self) -> RwLockReadGuard<'_, Claims> {
        self.claims.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Claims> {
        self.claims.write()
    }

    fn awaited(&self) -> MutexGuard<'_, HashMap<DeviceId, watch::Sender<()>>> {
        self.awaited.lock()
    }

    fn announce(&self, device: DeviceId) {
        if let Some(news) = self.awaited().get(&device) {
            news.send_replace(());
        }
    }
}

async fn follow(mut watch: Watch, shared: Arc<Shared>, doubt: Duration) {
    let mut is_another_store = false;
    while let Some(event) = watch.next().await {
        let now = Instant::now();
        if event == WatchEvent::Lost {
            continue;
        }
        *shared.heard.lock() = now;
        let mut arrived = None;
        {
            let mut claims = shared.write();
            match event {
                WatchEvent::Reset { is_new_bucket } => {
                    is_another_store = is_new_bucket;
                    // Nothing to keep meanwhile, nothing to build beside it.
                    claims.loading = (!claims.current.is_empty()).then(HashMap::new);
                }
                WatchEvent::Put { key, value, revision } => {
                    let (Ok(device), Ok(claim)) = (key.parse(), read_claim(&value)) else {
                        warn!(key, "what stands in the claims is no claim");
                        continue;
                    };
                    claims.put(device, claim, revision);
                    arrived = Some(device);
                }
                WatchEvent::Removed { key, revision } => {
                    if let Ok(device) = key.parse() {
                        claims.remove(device, revision);
                    }
                }
                WatchEvent::Loaded => {
                    claims.finish_loading(is_another_store.then_some(now + doubt));
                    info!(claims = claims.current.len(), "the claims are loaded");
                    shared.is_loaded.send_replace(true);
                }
                WatchEvent::Alive | WatchEvent::Lost => {}
            }
            claims.end_doubt(now);
        }
        if let Some(device) = arrived {
            shared.announce(device);
        }
    }
    debug!("the claims are followed no longer");
}

impl Claims {
    fn put(&mut self, device: DeviceId, claim: Claim, revision: u64) {
        self.doubtful.remove(&device);
        for held in [Some(&mut self.current), self.loading.as_mut()].into_iter().flatten() {
            let standing = held.entry(device).or_insert((claim, revision));
            if standing.1 < revision {
                *standing = (claim, revision);
            }
        }
    }

    fn remove(&mut self, device: DeviceId, revision: u64) {
        self.doubtful.remove(&device);
        for held in [Some(&mut self.current), self.loading.as_mut()].into_iter().flatten() {
            if held.get(&device).is_some_and(|&(_, standing)| standing < revision) {
                held.remove(&device);
            }
        }
    }

    fn finish_loading(&mut self, doubt_lost_ones_until: Option<Instant>) {
        let Some(loaded) = self.loading.take() else { return };
        let before = std::mem::replace(&mut self.current, loaded);
        if let Some(until) = doubt_lost_ones_until {
            self.doubtful.extend(before);
            self.doubtful.retain(|device, _| !self.current.contains_key(device));
            self.doubtful_until = Some(until);
        }
    }

    fn end_doubt(&mut self, now: Instant) {
        if self.doubtful_until.is_some_and(|until| until <= now) {
            self.doubtful = HashMap::new();
            self.doubtful_until = None;
        }
    }
}

pub(crate) fn read_claim(value: &[u8]) -> Result<Claim, StoreError> {
    serde_json::from_slice(value).map_err(|error| StoreError::Unreadable(format!("a claim: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::{Protocol, SessionId};
    use uuid::Uuid;

    fn claim(node: u64) -> Claim {
        Claim { node: NodeId(node), session: SessionId(1), protocol: Protocol::Mqtt, since_ms: 1 }
    }

    fn device(number: u128) -> DeviceId {
        DeviceId(Uuid::from_u128(number))
    }

    #[test]
    fn a_load_replaces_what_stood_there_only_when_it_is_complete() {
        let mut claims = Claims::default();
        claims.put(device(1), claim(1), 10);
        claims.put(device(2), claim(1), 11);
        claims.loading = Some(HashMap::new());
        claims.put(device(2), claim(1), 11);
        claims.put(device(3), claim(1), 12);
        assert_eq!(claims.current.len(), 3);
        claims.finish_loading(None);
        assert!(!claims.current.contains_key(&device(1)) && claims.current.len() == 2);
    }

    #[test]
    fn an_older_word_never_undoes_a_newer_one() {
        let mut claims = Claims::default();
        claims.put(device(1), claim(2), 20);
        claims.put(device(1), claim(1), 10);
        claims.remove(device(1), 15);
        assert_eq!(claims.current[&device(1)], (claim(2), 20));
        claims.remove(device(1), 21);
        assert!(claims.current.is_empty());
    }

    #[test]
    fn claims_of_a_store_that_lost_its_memory_are_doubted_and_then_dropped() {
        let now = Instant::now();
        let mut claims = Claims::default();
        claims.put(device(1), claim(1), 10);
        claims.put(device(2), claim(1), 11);
        claims.loading = Some(HashMap::new());
        claims.put(device(2), claim(1), 100);
        claims.finish_loading(Some(now + Duration::from_secs(1)));
        assert_eq!(claims.doubtful.keys().collect::<Vec<_>>(), [&device(1)]);
        claims.end_doubt(now);
        assert_eq!(claims.doubtful.len(), 1);
        claims.end_doubt(now + Duration::from_secs(1));
        assert_eq!((claims.doubtful.len(), claims.current.len()), (0, 1));
    }
}
