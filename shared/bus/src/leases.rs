//! Which nodes are alive, as far as this process has heard? A map in memory that follows their leases.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rpc::NodeId;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::bucket::Bucket;
use crate::watch::{Watch, WatchEvent};

/// All leases. A lease counts from when its renewal was heard, so a dead node's may seem to last up to twice as long,
/// and a living node's never shorter than the store's. Clones share it; the last one dropped ends the task.
#[derive(Clone)]
pub struct LeaseMap {
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
    lease: Duration,
    renewed: Mutex<HashMap<NodeId, Instant>>,
    loaded: watch::Sender<Option<Instant>>,
}

impl LeaseMap {
    pub(crate) fn follow(bucket: &Bucket, lease: Duration) -> Self {
        let shared = Arc::new(Shared { lease, renewed: Mutex::default(), loaded: watch::Sender::new(None) });
        let follower = tokio::spawn(follow(Watch::new(bucket, &[">"]), Arc::clone(&shared)));
        LeaseMap { shared, _follower: Arc::new(Follower(follower)) }
    }

    /// Whether the node's lease stands.
    pub fn is_leased(&self, node: NodeId) -> bool {
        self.shared.renewed().get(&node).is_some_and(|renewed| renewed.elapsed() < self.shared.lease)
    }

    /// Whether the node may be alive: it has a lease, or the store has not been heard for long enough to say.
    pub fn may_live(&self, node: NodeId) -> bool {
        self.is_leased(node) || self.heard_for().is_none_or(|heard_for| heard_for < self.shared.lease)
    }

    /// How many nodes have a lease.
    pub fn len(&self) -> usize {
        self.shared.renewed().values().filter(|renewed| renewed.elapsed() < self.shared.lease).count()
    }

    /// True when none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Waits for the first full load.
    pub async fn wait_loaded(&self) {
        let mut loaded = self.shared.loaded.subscribe();
        // The sender lives as long as `self`.
        let _ = loaded.wait_for(Option::is_some).await;
    }

    /// How long the store has been heard without a break; none while it is not. Only after a whole lease of it does a
    /// missing lease say that a node is gone, since after an outage the nodes have yet to renew theirs.
    pub fn heard_for(&self) -> Option<Duration> {
        self.shared.loaded.borrow().map(|loaded| loaded.elapsed())
    }
}

impl Shared {
    fn renewed(&self) -> MutexGuard<'_, HashMap<NodeId, Instant>> {
        self.renewed.lock()
    }
}

async fn follow(mut watch: Watch, shared: Arc<Shared>) {
    while let Some(event) = watch.next().await {
        let now = Instant::now();
        match event {
            WatchEvent::Put { key, .. } => {
                if let Ok(node) = key.parse() {
                    shared.renewed().insert(node, now);
                }
            }
            WatchEvent::Removed { key, .. } => {
                if let Ok(node) = key.parse::<NodeId>() {
                    shared.renewed().remove(&node);
                }
            }
            WatchEvent::Reset { .. } => {}
            WatchEvent::Lost => {
                shared.loaded.send_replace(None);
            }
            WatchEvent::Loaded => {
                shared.loaded.send_replace(Some(now));
            }
            WatchEvent::Alive => shared.renewed().retain(|_, renewed| renewed.elapsed() < shared.lease),
        }
    }
}
