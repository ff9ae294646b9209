//! Who listens to events, and for how long? Whose key lives and may: looked at again every second, once for each key.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use metrics::Gauge;
use parking_lot::Mutex;
use rpc::{AppId, AppIdentity, CredentialHash, Limit, Place, Role, Shares};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::Server;
use crate::keys::{Caller, NotLetIn};
use crate::world::Reach;

/// What a key must be for.
pub(crate) const ROLE: Role = Role::Observer;
/// How often it is asked whether a key still lives, and what it reaches now.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Keys that are asked about at a time.
const ASKED_AT_ONCE: usize = 16;

/// All listeners of this copy.
pub(crate) struct Listeners {
    keys: Mutex<HashMap<CredentialHash, Weak<Key>>>,
    places: Shares<AppId>,
    count: Gauge,
}

/// A key by which somebody listens.
pub(crate) struct Key {
    caller: Mutex<Arc<Caller>>,
    reach: Mutex<Arc<Reach>>,
    /// Grows with each change of what it reaches.
    changes: AtomicU64,
    /// Cancelled when it ends, or may not any more.
    pub(crate) ended: CancellationToken,
}

impl Key {
    fn new(caller: Arc<Caller>) -> Self {
        let reach = Arc::new(reach(&caller.identity));
        Key {
            caller: Mutex::new(caller),
            reach: Mutex::new(reach),
            changes: AtomicU64::new(0),
            ended: CancellationToken::new(),
        }
    }

    /// What it reaches, and how often that has changed.
    pub(crate) fn reach(&self) -> (Arc<Reach>, u64) {
        let reach = self.reach.lock();
        (Arc::clone(&reach), self.changes.load(Ordering::Relaxed))
    }

    fn is_now(&self, caller: Arc<Caller>) {
        if caller.identity.role < ROLE {
            return self.ended.cancel();
        }
        let now = reach(&caller.identity);
        *self.caller.lock() = caller;
        let mut before = self.reach.lock();
        if **before != now {
            *before = Arc::new(now);
            self.changes.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What an application's key reaches.
pub(crate) fn reach(identity: &AppIdentity) -> Reach {
    let AppIdentity { app, tenant, customers, labels, .. } = identity;
    Reach { app: *app, tenant: *tenant, customers: customers.clone(), labels: labels.clone() }
}

/// One listener, for as long as it is kept.
pub(crate) struct Listening {
    pub(crate) key: Arc<Key>,
    count: Gauge,
    _place: Place<AppId>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.count.decrement(1.0);
    }
}

impl Listeners {
    /// Of `max` listeners, half of them one application's.
    pub(crate) fn new(max: usize, count: Gauge) -> Self {
        Listeners { keys: Mutex::default(), places: Shares::new(max, max.div_ceil(2)), count }
    }

    /// One more.
    ///
    /// # Errors
    /// Where there are as many as may be, of all or of that application.
    pub(crate) fn enter(&self, caller: Arc<Caller>) -> Result<Listening, Limit> {
        let place = self.places.take(caller.identity.app).map_err(|_| Limit::ApiListeners)?;
        let mut keys = self.keys.lock();
        let known =
            keys.get(&caller.credential).and_then(Weak::upgrade).filter(|key| !key.ended.is_cancelled());
        let key = known.unwrap_or_else(|| {
            let key = Arc::new(Key::new(Arc::clone(&caller)));
            keys.insert(caller.credential.clone(), Arc::downgrade(&key));
            key
        });
        drop(keys);
        self.count.increment(1.0);
        Ok(Listening { key, count: self.count.clone(), _place: place })
    }

    fn in_use(&self) -> Vec<Arc<Key>> {
        let mut keys = self.keys.lock();
        keys.retain(|_, key| key.strong_count() > 0);
        keys.values().filter_map(Weak::upgrade).collect()
    }
}

/// Ends those whose key has ended, for as long as it is polled.
pub(crate) async fn look_after(server: Arc<Server>) {
    loop {
        sleep(LOOK_EVERY).await;
        let (keys, server) = (stream::iter(server.listeners.in_use()), &server);
        keys.for_each_concurrent(ASKED_AT_ONCE, |key| async move {
            let caller = Arc::clone(&key.caller.lock());
            match server.keys.again(&caller).await {
                Ok(caller) => key.is_now(caller),
                Err(NotLetIn::Unknown | NotLetIn::NoKey) => key.ended.cancel(),
                // Nobody can say: what is known holds.
                Err(NotLetIn::Unavailable) => {}
            }
        })
        .await;
    }
}
