//! How does the directory stay true? One task follows the registry, and tells the nodes which devices have changed.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use boot::Health;
use bus::registry::{Change, Registry};
use bus::{Bus, Connection};
use bytes::Bytes;
use rpc::{DeviceId, wire};
use tokio::sync::watch::{Receiver, Sender};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::meters::RegistryMeters;

/// How often gauges are set, and what could not be told is tried again.
const TICK: Duration = Duration::from_millis(200);

/// Follows the registry into `directory` until `stop`. Says in `is_loaded` when the first load is complete, and tells
/// the nodes of each load once questions are taken (`is_asked`).
pub(crate) async fn keep(
    bus: Bus,
    directory: Arc<Directory>,
    health: Health,
    is_loaded: Sender<bool>,
    is_asked: Receiver<bool>,
    stop: CancellationToken,
) {
    let meters = RegistryMeters::new();
    let (nats, registry) = (health.part("nats"), health.part("registry"));
    registry.not_ready("loading");
    let mut connection = bus.connection();
    connection.mark_changed();
    let mut watch = Registry::watch(&bus);
    let mut untold = HashSet::new();
    let mut is_load_untold = false;
    let mut confirmed_at = Instant::now();
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            change = watch.next() => {
                let is_complete = change == Change::Loaded;
                if change != Change::Loading {
                    confirmed_at = Instant::now();
                }
                directory.apply(change, &mut untold);
                if is_complete {
                    let sizes = directory.sizes();
                    tracing::info!(sizes.devices, sizes.customers, sizes.tenants, "the registry is loaded");
                    is_loaded.send_replace(true);
                    is_load_untold = true;
                    registry.ready();
                }
            }
            Ok(()) = connection.changed() => match *connection.borrow_and_update() {
                Connection::Up { .. } => nats.ready(),
                Connection::Down => nats.not_ready("not connected"),
            },
            _ = ticks.tick() => {
                let sizes = directory.sizes();
                meters.devices.set(sizes.devices as f64);
                meters.customers.set(sizes.customers as f64);
                meters.tenants.set(sizes.tenants as f64);
                meters.age_seconds.set(confirmed_at.elapsed().as_secs_f64());
            }
        }
        if is_load_untold && *is_asked.borrow() {
            // What changed while no authorizer was there nobody could tell: the nodes now ask about their sessions.
            is_load_untold = bus.tell(bus.subjects().directory_loaded(), Bytes::new()).await.is_err();
        }
        if !untold.is_empty() {
            tell(&bus, &directory, &mut untold, &meters).await;
        }
    }
}

/// Tells the nodes what the untold devices are now. What NATS does not take stays untold, and is tried again.
async fn tell(bus: &Bus, directory: &Directory, untold: &mut HashSet<DeviceId>, meters: &RegistryMeters) {
    let devices: Vec<DeviceId> = untold.iter().copied().collect();
    for device in devices {
        let state = directory.state(device);
        let Ok(message) = wire::encode(&state, &[]) else {
            continue;
        };
        if let Err(error) = bus.tell(bus.subjects().device_changed(device), message).await {
            tracing::warn!(%error, count = untold.len(), "changed devices cannot be told yet");
            return;
        }
        tracing::debug!(%device, is_there = state.now.is_some(), "told the nodes that a device changed");
        meters.events.increment(1);
        untold.remove(&device);
    }
}
