//! With which keys are tickets signed and checked? One record, shared by authorizers and routers, and by nobody else.

use std::sync::Arc;
use std::time::Duration;

use boot::clock::unix_s;
use rpc::{Holder, Stamp, Ticket, TicketError, TicketKeys};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};
use tracing::{debug, info};

use crate::bucket::{Bucket, Entry, Expected, Role, Spec};
use crate::connection::Bus;
use crate::errors::StoreError;
use crate::watch::{Watch, WatchEvent};

const KEYS: Spec = Spec {
    name: "keys",
    description: "The keys that tickets are signed with: for authorizers and routers alone",
    passing: None,
};
const TICKETS: &str = "tickets";
/// How often it is looked whether the keys are to be rotated.
const LOOK_EVERY: Duration = Duration::from_secs(60);
const STORE_WAIT: Duration = Duration::from_secs(2);

/// The keys as they are now. Clones share them; the last one dropped ends the task that follows them.
#[derive(Clone)]
pub struct Keyring {
    keys: watch::Receiver<Arc<TicketKeys>>,
    _follower: Arc<Follower>,
}

struct Follower(JoinHandle<()>);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Keyring {
    /// Follows the bucket `<prefix>_keys`; makes it, and the first key, where they are missing, and rotates them.
    pub fn follow(bus: &Bus) -> Keyring {
        let (keys_tx, keys) = watch::channel(Arc::default());
        Keyring { keys, _follower: Arc::new(Follower(tokio::spawn(keep(bus.clone(), keys_tx)))) }
    }

    /// Waits for the first keys.
    pub async fn wait_ready(&self) {
        // The sender lives as long as the follower.
        let _ = self.keys.clone().wait_for(|keys| **keys != TicketKeys::default()).await;
    }

    /// A ticket for `holder`; none before the first key.
    pub fn sign(&self, holder: Holder, stamp: Stamp) -> Option<Ticket> {
        self.keys.borrow().sign(holder, stamp, unix_s())
    }

    /// Whether `ticket` is for `holder`.
    ///
    /// # Errors
    /// Why not.
    pub fn check(&self, ticket: &Ticket, holder: Holder) -> Result<(), TicketError> {
        self.keys.borrow().check(ticket, holder, unix_s())
    }
}

async fn keep(bus: Bus, keys: watch::Sender<Arc<TicketKeys>>) {
    let bucket = bus.again("open the keys of tickets", || Bucket::open(&bus, KEYS, Role::Founder)).await;
    let mut look_at = Instant::now();
    bus.again("read the keys of tickets", || look(&bucket, &keys)).await;
    let mut watch = Watch::new(&bucket, &[TICKETS]);
    // In a task of its own: a wait for it is not to be given up half-way.
    let (changed_tx, mut changed) = tokio::sync::mpsc::channel(16);
    let following = tokio::spawn(async move {
        while let Some(event) = watch.next().await {
            if matches!(event, WatchEvent::Put { .. } | WatchEvent::Removed { .. } | WatchEvent::Reset { .. })
                && changed_tx.send(()).await.is_err()
            {
                return;
            }
        }
    });
    let following = Follower(following);
    while !bus.is_closed() {
        look_at += LOOK_EVERY;
        if let Ok(None) = timeout_at(look_at, changed.recv()).await {
            break;
        }
        look_at = Instant::now();
        if let Err(error) = look(&bucket, &keys).await {
            debug!(%error, "the keys of tickets cannot be read now");
        }
    }
    drop(following);
}

/// Takes over the keys as they stand, and rotates them when it is time.
async fn look(bucket: &Bucket, keys: &watch::Sender<Arc<TicketKeys>>) -> Result<(), StoreError> {
    loop {
        let (standing, expected) = match bucket.get(TICKETS, STORE_WAIT).await? {
            Some(Entry { value: Some(value), revision, .. }) => {
                let standing = serde_json::from_slice(&value);
                (standing.map_err(unreadable)?, Expected::Revision(revision))
            }
            Some(Entry { value: None, revision, .. }) => {
                (TicketKeys::default(), Expected::Revision(revision))
            }
            None => (TicketKeys::default(), Expected::Nothing),
        };
        let mut secret = [0; 32];
        getrandom::fill(&mut secret).map_err(unreadable)?;
        let Some(rotated) = standing.rotated(secret, unix_s()) else {
            if **keys.borrow() != standing {
                keys.send_replace(Arc::new(standing));
            }
            return Ok(());
        };
        let value = serde_json::to_vec(&rotated).map_err(unreadable)?;
        match bucket.put(TICKETS, value.into(), expected, STORE_WAIT).await {
            Ok(_) => info!(keys = rotated.ids(), "there is a new key for tickets"),
            // Another process was faster: its keys are read.
            Err(StoreError::Contended) => {}
            Err(error) => return Err(error),
        }
    }
}

fn unreadable(error: impl std::fmt::Display) -> StoreError {
    StoreError::Unreadable(format!("the keys of tickets: {error}"))
}
