//! How do programs that are no devices call one? Over HTTP, with a key; README.md beside this is the contract.
//!
//! `door` lets clients in and cuts off who is slow; `routes` and `thingsboard` are two faces of one handler, `calls`,
//! which asks the authorizers, as `devices` does; `keys` knows whom a key is for, and what each application takes of
//! its limits; `networks` knows from where it may be shown; `events` tells `listeners` what `follow` and `tap` hear;
//! `administration` keeps the registry, as the command does; [`world`], [`request`] and [`answer`] are pure. Any number
//! of copies, and none keeps what another needs.

mod administration;
pub mod answer;
mod bodies;
mod calls;
mod devices;
mod door;
mod events;
mod follow;
mod group;
mod keys;
mod ledger;
mod listeners;
mod look;
mod metrics;
mod networks;
mod once;
pub mod openapi;
mod overheard;
pub mod request;
mod routes;
mod tap;
mod thingsboard;
pub mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use boot::Settings;
use boot::config::Networks;
use bus::Bus;
use bus::inspect::Numbers;
use bus::once::Once;
use rpc::{AppId, Rates, Shares};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::administration::Administration;
use crate::calls::Calls;
use crate::follow::Followed;
use crate::keys::Keys;
use crate::listeners::Listeners;
use crate::metrics::EventMeters;
pub use crate::metrics::describe;
use crate::request::CallLimits;
use crate::tap::Taps;

/// Group calls at once on one copy, and of one application.
const MAX_GROUPS: usize = 64;
const MAX_GROUPS_OF_APP: usize = 8;

/// What all requests share.
pub(crate) struct Server {
    keys: Keys,
    calls: Arc<Calls>,
    administration: Administration,
    groups: Shares<AppId>,
    once: Once,
    kept_kib: Rates<AppId>,
    /// Calls that go on without whoever asked for them.
    performing: TaskTracker,
    limits: CallLimits,
    followed: Followed,
    taps: Taps,
    listeners: Listeners,
    event_meters: EventMeters,
    /// Streams end with it.
    closing: CancellationToken,
    max_body_bytes: usize,
    trusted_proxies: Networks,
    body_timeout: Duration,
}

/// The API with its port bound. Nothing is answered until it is served.
#[derive(Debug)]
pub struct Api {
    listener: TcpListener,
    address: SocketAddr,
}

impl Api {
    /// Binds the port, so that one that is taken shows before anything else is begun.
    ///
    /// # Errors
    /// When it cannot be bound; the error names the setting.
    pub async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        let listen = settings.api.listen;
        let listener = TcpListener::bind(listen).await;
        let listener =
            listener.with_context(|| format!("the API cannot listen on {listen} (setting api.listen)"))?;
        let address = listener.local_addr()?;
        Ok(Api { listener, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves applications until the context says stop, lets calls in flight finish within `api.drain_ms`, and closes
    /// the bus.
    ///
    /// # Errors
    /// When NATS takes no messages of the sizes that the settings allow.
    pub fn serve(self, context: boot::Context, bus: Bus) -> boot::Serving {
        Box::pin(self.run(context, bus))
    }

    async fn run(self, context: boot::Context, bus: Bus) -> anyhow::Result<()> {
        bus::describe();
        describe();
        let settings = Arc::clone(&context.settings);
        bus.admits_bodies(&settings)?;
        let part = context.health.part("api");
        let tracer = context.traces.tracer(context.service, bus.process());
        let _inspected = bus.inspected(&context, &tracer, Numbers::default());
        let event_meters = EventMeters::new();
        let lease = Duration::from_millis(settings.ingress.lease_ms);
        let server = Arc::new(Server {
            keys: Keys::new(bus.clone(), &settings.api),
            calls: Arc::new(Calls::new(bus.clone(), tracer)),
            administration: Administration::new(bus.clone(), Arc::clone(&settings)),
            groups: Shares::new(MAX_GROUPS, MAX_GROUPS_OF_APP),
            once: Once::new(bus.clone(), settings.api.idempotency_max_bytes),
            kept_kib: Rates::new(once::KEPT_KIB),
            performing: TaskTracker::new(),
            limits: CallLimits::from(&settings.device_api),
            followed: Followed::new(),
            taps: Taps::new(),
            listeners: Listeners::new(settings.api.max_listeners, event_meters.listeners.clone()),
            event_meters,
            closing: context.shutdown.clone(),
            max_body_bytes: settings.api.max_body_bytes,
            trusted_proxies: settings.api.trusted_proxies.clone(),
            body_timeout: Duration::from_millis(settings.api.request_timeout_ms),
        });
        let stop_background = CancellationToken::new();
        let background = TaskTracker::new();
        let stop = stop_background.clone();
        background.spawn(stop.run_until_cancelled_owned(bus.clone().hear_beats(|_, _| {})));
        let stop = stop_background.clone();
        background.spawn(stop.run_until_cancelled_owned(bus.clone().show_connection(part.clone())));
        let stop = stop_background.clone();
        background
            .spawn(stop.run_until_cancelled_owned(server.followed.clone().follow_claims(bus.clone(), lease)));
        let stop = stop_background.clone();
        background.spawn(stop.run_until_cancelled_owned(server.followed.clone().follow_devices(bus.clone())));
        let stop = stop_background.clone();
        background.spawn(stop.run_until_cancelled_owned(server.followed.clone().wake()));
        let stop = stop_background.clone();
        let listen = server.taps.clone().listen(bus.clone(), server.followed.clone());
        background.spawn(stop.run_until_cancelled_owned(listen));
        let stop = stop_background.clone();
        background.spawn(stop.run_until_cancelled_owned(listeners::look_after(Arc::clone(&server))));
        background.spawn(Arc::clone(&server.calls).keep(stop_background.clone()));

        tracing::info!(http = %self.address, "the API serves applications");
        let router = routes::router(Arc::clone(&server));
        let connections = TaskTracker::new();
        let closing = context.shutdown.clone();
        door::serve(self.listener, router, &settings.api, connections.clone(), closing).await;

        part.not_ready("shutting down");
        connections.close();
        server.performing.close();
        let drain = Duration::from_millis(settings.api.drain_ms);
        let ended = async {
            connections.wait().await;
            server.performing.wait().await;
        };
        if tokio::time::timeout(drain, ended).await.is_err() {
            tracing::warn!("the time to drain is over: calls in flight are cut off");
        }
        stop_background.cancel();
        background.close();
        background.wait().await;
        bus.close().await;
        Ok(())
    }
}
