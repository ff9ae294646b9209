//! How does the directory stay true? One task follows the registry, and tells the nodes which devices have changed.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use boot::{Health, Trouble};
use bus::Bus;
use bus::registry::{Change, Registry};
use bytes::Bytes;
use parking_lot::Mutex;
use rpc::{DeviceId, wire};
use tokio::sync::watch::{Receiver, Sender};
use tokio::time::{MissedTickBehavior, interval, timeout_at};
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::freshness::{BEAT_EVERY, Freshness};
use crate::judges::Judges;
use crate::meters::RegistryMeters;

/// Between two requests to the nodes to check their sessions because somebody's ticket did not count.
const RECHECK_PAUSE: Duration = Duration::from_secs(5);

/// What the keeper shares with those who answer.
pub(crate) struct Kept {
    pub(crate) directory: Directory,
    pub(crate) judges: Judges,
    freshness: Mutex<Freshness>,
    /// Whether the directory was fresh when that was last looked at: wakes those who wait for it.
    is_fresh: Sender<bool>,
    /// A ticket did not count though its holder may have a better one: the nodes are to be asked to renew them.
    pub(crate) is_recheck_due: AtomicBool,
}

impl Kept {
    pub(crate) fn new() -> Self {
        Kept {
            directory: Directory::default(),
            judges: Judges::default(),
            freshness: Mutex::new(Freshness::new(Instant::now())),
            is_fresh: Sender::new(false),
            is_recheck_due: AtomicBool::new(false),
        }
    }

    /// Whether the directory may decide, after a wait for it where that is short.
    pub(crate) async fn is_fresh(&self) -> bool {
        if self.looks_fresh() {
            return true;
        }
        self.is_fresh.send_replace(false);
        let held_until = self.freshness.lock().held_until();
        let mut fresh = self.is_fresh.subscribe();
        let _ = timeout_at(held_until.into(), fresh.wait_for(|is_fresh| *is_fresh)).await;
        self.looks_fresh()
    }

    /// Whether it may decide now.
    pub(crate) fn looks_fresh(&self) -> bool {
        self.freshness.lock().is_fresh(Instant::now())
    }
}

/// Follows the registry into the directory until `stop`. Says in `is_loaded` when the first load is complete, and tells
/// the nodes of each load once questions are taken (`is_asked`).
pub(crate) async fn keep(
    bus: Bus,
    kept: Arc<Kept>,
    health: Health,
    is_loaded: Sender<bool>,
    is_asked: Receiver<bool>,
    stop: CancellationToken,
) {
    let Kept { directory, judges, freshness, is_fresh, is_recheck_due } = &*kept;
    let meters = RegistryMeters::new();
    let (nats, registry) = (health.part("nats"), health.part("registry"));
    registry.not_ready("loading");
    let mut connection = bus.connection();
    connection.mark_changed();
    let (mut watch, beats) = (Registry::watch(&bus), Registry::beats(&bus));
    let mut untold = HashSet::new();
    // It has no pause of its own: it is tried with each beat.
    let mut cannot_tell = Trouble::new(Duration::ZERO, Duration::ZERO);
    let mut is_recheck_untold = false;
    let mut rechecked_at: Option<Instant> = None;
    let mut was_ready = false;
    let mut beating = interval(BEAT_EVERY);
    beating.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = beating.tick() => {
                let number = freshness.lock().beat(Instant::now());
                beats.send(number);
                bus.show(&nats);
                let sizes = directory.sizes();
                meters.devices.set(sizes.devices as f64);
                meters.customers.set(sizes.customers as f64);
                meters.tenants.set(sizes.tenants as f64);
                meters.age_seconds.set(freshness.lock().age(Instant::now()).as_secs_f64());
                let may_again = rechecked_at.is_none_or(|at| at.elapsed() >= RECHECK_PAUSE);
                if may_again && is_recheck_due.swap(false, Ordering::Relaxed) {
                    is_recheck_untold = true;
                }
            }
            change = watch.next() => {
                match &change {
                    Change::Loading | Change::Lost => freshness.lock().lost(),
                    Change::Beat(number) => freshness.lock().returned(*number),
                    _ => {}
                }
                let is_complete = change == Change::Loaded;
                let is_whole = is_complete || change == Change::Resumed;
                judges.apply(directory, change, &mut untold);
                if is_whole {
                    freshness.lock().loaded();
                    beating.reset_immediately();
                }
                if is_complete {
                    let sizes = directory.sizes();
                    tracing::info!(sizes.devices, sizes.customers, sizes.tenants, "the registry is loaded");
                    is_loaded.send_replace(true);
                    is_recheck_untold = true;
                }
            }
            Ok(()) = connection.changed() => {
                // What it knows comes over a connection of its own, whose end the watch tells.
                connection.borrow_and_update();
                bus.show(&nats);
            }
        }
        let now_fresh = kept.looks_fresh();
        if now_fresh != *is_fresh.borrow() {
            is_fresh.send_replace(now_fresh);
        }
        // A question may have found out sooner.
        match now_fresh {
            true if was_ready => {}
            true => registry.ready(),
            false => match beats.refused() {
                Some(error) => registry.not_ready(&error.to_string()),
                None if was_ready => registry.not_ready("what it knows may be out of date"),
                None => {}
            },
        }
        was_ready = now_fresh;
        if is_recheck_untold && *is_asked.borrow() {
            // What changed while no authorizer was there nobody could tell: the nodes now ask about their sessions.
            is_recheck_untold = bus.tell(bus.subjects().directory_loaded(), Bytes::new()).await.is_err();
            rechecked_at = Some(Instant::now());
        }
        if !untold.is_empty() {
            tell(&bus, directory, &mut untold, &mut cannot_tell, &meters).await;
        }
    }
}

/// Tells the nodes what the untold devices are now. What NATS does not take stays untold, and is tried again.
async fn tell(
    bus: &Bus,
    directory: &Directory,
    untold: &mut HashSet<DeviceId>,
    trouble: &mut Trouble,
    meters: &RegistryMeters,
) {
    let devices: Vec<DeviceId> = untold.iter().copied().collect();
    for device in devices {
        let state = directory.state(device);
        let message = wire::encode(&state, &[]);
        if let Err(error) = bus.tell(bus.subjects().device_changed(device), message).await {
            if let Some(age_s) = trouble.failed(&error.to_string(), Instant::now()).say_age_s {
                tracing::warn!(%error, age_s, count = untold.len(), "changed devices cannot be told yet");
            }
            return;
        }
        tracing::debug!(%device, is_there = state.now.is_some(), "told the nodes that a device changed");
        meters.events.increment(1);
        untold.remove(&device);
    }
    trouble.over(Instant::now());
}
