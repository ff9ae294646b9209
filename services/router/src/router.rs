//! How is done what the core decides? One lock around it, and for each of its actions what performs that.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use boot::Settings;
use boot::traces::Tracer;
use bus::claims::{ClaimEvent, ClaimStore};
use bus::{Bus, Connection, Keyring, Subject};
use parking_lot::Mutex;
use rpc::{NodeId, Outcome, Party, Shares, percent_of};
use tokio::sync::Notify;
use tokio::time::{sleep_until, timeout_at};
use tokio_util::task::TaskTracker;

use crate::core::{Action, Actions, Core, Found};
use crate::meters::Meters;
use crate::room::Room;
use crate::route::Carried;
use crate::seen::Seen;

/// How long the store may take for one request.
pub(crate) const STORE_WAIT: Duration = Duration::from_secs(2);

/// A router. Clones share everything.
#[derive(Clone)]
pub(crate) struct Router(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) bus: Bus,
    pub(crate) store: ClaimStore,
    pub(crate) keys: Keyring,
    pub(crate) meters: Meters,
    pub(crate) tracer: Tracer,
    pub(crate) in_flight: TaskTracker,
    pub(crate) limits: Limits,
    pub(crate) room: Room,
    pub(crate) seen: Seen,
    state: Mutex<State>,
    /// The core wants to be ticked sooner than was slept for.
    sooner: Notify,
}

/// What the settings allow.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    /// For calls in flight.
    pub(crate) calls: Shares<Party>,
    /// For calls that wait for their target to come.
    pub(crate) waits: Shares<Party>,
    /// `device_api.max_timeout_ms`: no hop believes in more.
    pub(crate) max_timeout_ms: Arc<AtomicU32>,
    pub(crate) claim_timeout: Duration,
    pub(crate) lease: Duration,
    /// `ingress.handover_ms`.
    pub(crate) handover: Duration,
}

impl From<&Settings> for Limits {
    fn from(settings: &Settings) -> Self {
        let Settings { router, nats, shares, device_api, ingress, .. } = settings;
        let max = router.max_calls_in_flight;
        // Each is a question to a node at some time.
        let part = percent_of(max.min(nats.max_pending_asks), shares.per_customer_percent);
        let waiting = |places| percent_of(places, shares.waiting_percent);
        Limits {
            calls: Shares::new(max, part),
            waits: Shares::new(waiting(max), waiting(part)),
            max_timeout_ms: Arc::new(device_api.max_timeout_ms.into()),
            claim_timeout: Duration::from_millis(ingress.claim_timeout_ms),
            lease: Duration::from_millis(ingress.lease_ms),
            handover: Duration::from_millis(ingress.handover_ms),
        }
    }
}

impl Limits {
    /// The settings have changed.
    pub(crate) fn change(&self, settings: &Settings) {
        let new = Limits::from(settings);
        self.calls.resize_as(&new.calls);
        self.waits.resize_as(&new.waits);
        self.max_timeout_ms.store(settings.device_api.max_timeout_ms, Ordering::Relaxed);
    }
}

pub(crate) type RouterCore = Core<Box<Carried>, Subject>;

struct State {
    core: RouterCore,
    sleeps_until: Instant,
}

/// What a router needs to begin.
pub(crate) struct Parts {
    pub(crate) bus: Bus,
    pub(crate) store: ClaimStore,
    pub(crate) keys: Keyring,
    pub(crate) tracer: Tracer,
    pub(crate) limits: Limits,
    pub(crate) room: Room,
}

impl Router {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { bus, store, keys, tracer, limits, room } = parts;
        let now = Instant::now();
        let state = Mutex::new(State {
            core: Core::new(limits.lease, limits.handover, limits.waits.clone(), now),
            sleeps_until: now,
        });
        Router(Arc::new(Inner {
            bus,
            store,
            keys,
            meters: Meters::new(),
            tracer,
            in_flight: TaskTracker::new(),
            limits,
            room,
            seen: Seen::new(),
            state,
            sooner: Notify::new(),
        }))
    }

    /// Tells the core something, and performs what it wants done.
    pub(crate) fn tell(
        &self,
        tell: impl FnOnce(&mut RouterCore, Instant, &mut Actions<Box<Carried>, Subject>),
    ) {
        self.tell_at(Instant::now(), tell);
    }

    /// The same for who has just looked at the clock.
    pub(crate) fn tell_at(
        &self,
        now: Instant,
        tell: impl FnOnce(&mut RouterCore, Instant, &mut Actions<Box<Carried>, Subject>),
    ) {
        let mut actions = Vec::new();
        let is_sooner = {
            let mut state = self.0.state.lock();
            tell(&mut state.core, now, &mut actions);
            let next = state.core.next_tick(now);
            let is_sooner = next < state.sleeps_until;
            if is_sooner {
                state.sleeps_until = next;
            }
            is_sooner
        };
        if is_sooner {
            self.0.sooner.notify_one();
        }
        actions.into_iter().for_each(|action| self.perform(action, now));
    }

    /// Looks at what the core knows.
    pub(crate) fn look<A>(&self, look: impl FnOnce(&RouterCore, Instant) -> A) -> A {
        look(&self.0.state.lock().core, Instant::now())
    }

    fn perform(&self, action: Action<Box<Carried>, Subject>, now: Instant) {
        match action {
            Action::Deliver(call, found) => self.deliver(call, found, now),
            Action::LookUp(call) => self.look_up(call),
            Action::End(call, outcome) => {
                if let Outcome::Busy(limit) = outcome {
                    self.0.meters.limit_hit(limit);
                }
                self.end(call, &outcome, &bytes::Bytes::new());
            }
            Action::Write(claiming, write) => self.write(claiming, write),
            Action::Read(claiming) => self.read(claiming),
            Action::Reply(reply_to, reply) => self.reply(reply_to, reply),
            Action::TakeOver(device, taken_over) => self.tell_taken_over(device, taken_over),
            Action::Remove(device, found, why) => self.remove(device, found, why),
            Action::TellDiffers(node) => self.tell_differs(node),
        }
    }

    /// Lets the core know what time it is, for as long as it is polled.
    pub(crate) async fn tick(&self) {
        loop {
            let until = {
                let mut state = self.0.state.lock();
                state.sleeps_until = state.core.next_tick(Instant::now());
                state.sleeps_until
            };
            tokio::select! {
                () = sleep_until(until.into()) => {}
                () = self.0.sooner.notified() => continue,
            }
            self.tell(|core, now, actions| core.tick(now, actions));
        }
    }

    /// Follows the store. Says in `loaded` when all claims have been heard for the first time.
    pub(crate) async fn follow(&self, loaded: tokio::sync::watch::Sender<bool>) {
        let mut watch = self.0.store.watch();
        while let Some(event) = watch.next().await {
            if event != ClaimEvent::Lost {
                self.0.meters.heard();
            }
            self.tell(|core, now, actions| match event {
                ClaimEvent::Reset { is_another_store, revision } => core.reset(is_another_store, revision),
                ClaimEvent::Loaded => core.loaded(now),
                ClaimEvent::Put { device, claim, revision } => {
                    core.put(device, Found { claim, revision }, now, actions);
                }
                ClaimEvent::Removed { device, revision } => core.gone(device, revision, now),
                ClaimEvent::Lost => core.lost(),
                ClaimEvent::Alive => {}
            });
            if event == ClaimEvent::Loaded {
                tracing::info!(claims = self.look(|core, _| core.map().len()), "the claims are loaded");
                loaded.send_replace(true);
            }
        }
    }

    /// Follows the connection: what is not connected hears no node.
    pub(crate) async fn follow_connection(&self) {
        let mut connection = self.0.bus.connection();
        loop {
            let is_up = matches!(*connection.borrow_and_update(), Connection::Up { .. });
            self.tell(|core, now, _| core.hears(is_up, now));
            if connection.changed().await.is_err() {
                return;
            }
        }
    }

    /// Ends calls whose node died with them in its hands: their callers need not wait the budget out.
    pub(crate) async fn watch_nodes(&self) {
        let mut look_at = tokio::time::Instant::now();
        loop {
            look_at += self.0.limits.lease / 4;
            let _ = timeout_at(look_at, std::future::pending::<()>()).await;
            for node in self.0.bus.asked_nodes() {
                if self.is_gone(node) {
                    self.0.bus.no_reply_from(node);
                }
            }
        }
    }

    fn is_gone(&self, node: NodeId) -> bool {
        self.look(|core, now| core.is_gone(node, now))
    }
}
