//! How does a copy of the API know what changes? It follows the claims and the devices of the registry, and nothing
//! else of the store.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::Bus;
use bus::claims::{ClaimEvent, ClaimWatch};
use bus::registry::{DeviceEvent, DeviceWatch};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::sleep;

use crate::world::World;

/// How often listeners are woken at most: many changes at once wake them once.
const WAKE_EVERY: Duration = Duration::from_millis(20);

/// What this copy has heard, and that it has changed. Clones share it.
#[derive(Clone)]
pub(crate) struct Followed {
    world: Arc<Mutex<World>>,
    changed: Arc<Notify>,
    wake: watch::Sender<()>,
}

impl Followed {
    pub(crate) fn new() -> Self {
        Followed { world: Arc::default(), changed: Arc::default(), wake: watch::Sender::new(()) }
    }

    /// Looks at what has been heard; short, since all listeners do.
    pub(crate) fn look<A>(&self, look: impl FnOnce(&World) -> A) -> A {
        look(&self.world.lock())
    }

    /// Is told when something has changed.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.wake.subscribe()
    }

    fn tell(&self, tell: impl FnOnce(&mut World)) {
        tell(&mut self.world.lock());
        self.changed.notify_one();
    }

    /// Wakes listeners, for as long as it is polled.
    pub(crate) async fn wake(self) {
        loop {
            self.changed.notified().await;
            self.wake.send_replace(());
            sleep(WAKE_EVERY).await;
        }
    }

    /// Follows the claims until the bus is closed; an API that NATS lets call alone goes on without events. Those of a
    /// store that was lost are written again within `lease`: until then nobody is told of who lacks one.
    pub(crate) async fn follow_claims(self, bus: Bus, lease: Duration) {
        let mut watch = bus.again("follow the claims for events", || ClaimWatch::open(&bus)).await;
        let mut doubted_until = None;
        let mut is_loaded = false;
        while let Some(event) = watch.next().await {
            match event {
                ClaimEvent::Reset { revision, is_another_store } => {
                    is_loaded = false;
                    if is_another_store {
                        doubted_until = Some(Instant::now() + lease);
                    }
                    self.tell(|world| world.claims_reset(revision));
                }
                ClaimEvent::Loaded => is_loaded = true,
                ClaimEvent::Put { device, claim, revision } => {
                    self.tell(|world| world.claim(device, Some(claim), revision));
                }
                ClaimEvent::Removed { device, revision } => {
                    self.tell(|world| world.claim(device, None, revision));
                }
                ClaimEvent::Lost => {
                    is_loaded = false;
                    self.tell(World::claims_lost);
                }
                // It comes every second.
                ClaimEvent::Alive => {}
            }
            if is_loaded && doubted_until.is_none_or(|until| until <= Instant::now()) {
                (is_loaded, doubted_until) = (false, None);
                self.tell(World::claims_loaded);
            }
        }
    }

    /// Follows the devices until the bus is closed.
    pub(crate) async fn follow_devices(self, bus: Bus) {
        let mut watch = bus.again("follow the devices for events", || DeviceWatch::open(&bus)).await;
        while let Some(event) = watch.next().await {
            match event {
                DeviceEvent::Reset { revision } => self.tell(|world| world.devices_reset(revision)),
                DeviceEvent::Loaded => self.tell(World::devices_loaded),
                DeviceEvent::Device { id, now, revision } => {
                    self.tell(|world| world.device(id, now, revision));
                }
                DeviceEvent::Lost => self.tell(World::devices_lost),
                DeviceEvent::Resumed => self.tell(World::devices_resumed),
            }
        }
    }
}
