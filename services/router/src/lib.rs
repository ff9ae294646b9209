//! Where is a call's target, and how did the call to it end? The service between the authorizer and the target's node.
//!
//! `locate` finds the claim, `route` delivers and answers the caller, `presence` says who is online, `sweep` clears
//! away what dead nodes have left. Any number of copies share the calls; a copy that ends finishes its own.

mod locate;
mod meters;
mod presence;
mod route;
mod sweep;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use boot::Context;
use bus::{Bus, BusError, ClaimMap, ClaimStore, Connection, LeaseMap, Request, Requests};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use locate::Locator;
pub use meters::describe;
use meters::{Meters, StateMeters};
use route::Router;

/// All routers share the calls.
const QUEUE: &str = "router";
/// Between two attempts to open the store or to subscribe, while NATS is away.
const RETRY_PAUSE: Duration = Duration::from_millis(500);
/// How often gauges are set.
const TICK: Duration = Duration::from_secs(1);

/// Serves until the context's shutdown, then finishes the calls in flight, for at most `router.drain_ms`, and closes
/// the bus.
///
/// Ready once all claims are loaded and calls are subscribed to; while NATS is away it keeps trying.
///
/// # Errors
/// When a task of its own fails, which is a fault of the program.
pub async fn serve(context: Context, bus: Bus) -> anyhow::Result<()> {
    describe();
    let parts = [context.health.part("claims"), context.health.part("calls")];
    let [claims_part, calls_part] = &parts;
    let watching = tokio::spawn(tell_connection(context.clone(), bus.clone()));

    let started = tokio::select! {
        () = context.shutdown.cancelled() => None,
        started = async {
            let known = open(&context, &bus).await;
            claims_part.ready();
            let asked = subscribe(&bus).await;
            calls_part.ready();
            (known, asked)
        } => Some(started),
    };
    let served = match started {
        Some((known, asked)) => run(&context, &bus, known, asked).await,
        None => Ok(()),
    };
    watching.abort();
    bus.close().await;
    served
}

/// What a router knows of devices and nodes.
#[derive(Clone)]
struct Known {
    store: ClaimStore,
    claims: ClaimMap,
    leases: LeaseMap,
}

/// What it is asked.
struct Asked {
    calls: Requests,
    presence: Requests,
}

async fn open(context: &Context, bus: &Bus) -> Known {
    let lease = Duration::from_millis(context.settings.ingress.lease_ms);
    let store = loop {
        match ClaimStore::make(bus, lease).await {
            Ok(store) => break store,
            Err(error) => tracing::warn!(%error, "cannot open the claims yet; trying again"),
        }
        sleep(RETRY_PAUSE).await;
    };
    let (claims, leases) = (store.watch(), store.watch_leases());
    claims.wait_loaded().await;
    leases.wait_loaded().await;
    Known { store, claims, leases }
}

async fn subscribe(bus: &Bus) -> Asked {
    let subscribe = async || -> Result<Asked, BusError> {
        let presence = bus.serve(bus.subjects().presence(), Some(QUEUE)).await?;
        // Last: from here on calls come in.
        let calls = bus.serve(bus.subjects().route(), Some(QUEUE)).await?;
        Ok(Asked { calls, presence })
    };
    loop {
        match subscribe().await {
            Ok(asked) => return asked,
            Err(error) => tracing::warn!(%error, "cannot take calls yet; trying again"),
        }
        sleep(RETRY_PAUSE).await;
    }
}

async fn run(context: &Context, bus: &Bus, known: Known, asked: Asked) -> anyhow::Result<()> {
    let Asked { mut calls, mut presence } = asked;
    let meters = Arc::new(Meters::new());
    let locator = Locator::new(known.clone(), Arc::clone(&meters));
    let max_in_flight = context.settings.router.max_calls_in_flight;
    let tracer = context.traces.tracer(context.service, bus.process());
    let router = Router::new(bus.clone(), locator, Arc::clone(&meters), tracer, max_in_flight);

    let ended = CancellationToken::new();
    let sweeping = tokio::spawn(sweep::sweep(known.clone(), Arc::clone(&meters), ended.clone()));
    let watching_nodes = tokio::spawn({
        let router = router.clone();
        async move { router.watch_nodes().await }
    });
    let counting = tokio::spawn(count(known.clone(), router.clone(), ended.clone()));
    let shutdown = &context.shutdown;
    // In tasks of their own: what they start then runs where they do, not on the thread that waits here.
    let mut taking = JoinSet::new();
    taking.spawn({
        let (router, shutdown) = (router.clone(), shutdown.clone());
        async move {
            while let Some(request) = next(&mut calls, &shutdown).await {
                router.take(&request);
            }
        }
    });
    taking.spawn({
        let (bus, shutdown) = (bus.clone(), shutdown.clone());
        async move {
            while let Some(request) = next(&mut presence, &shutdown).await {
                presence::answer(&bus, &known, request).await;
            }
        }
    });

    let drain = Duration::from_millis(context.settings.router.drain_ms);
    let finishing = async {
        while let Some(ended) = taking.join_next().await {
            ended.context("a task that takes messages failed")?;
        }
        router.finish().await;
        anyhow::Ok(())
    };
    let time_is_up = async {
        shutdown.cancelled().await;
        sleep(drain).await;
    };
    tokio::select! {
        finished = finishing => finished?,
        () = time_is_up => tracing::warn!(calls = router.in_flight(), "calls are cut off: drain_ms is over"),
    }
    watching_nodes.abort();
    ended.cancel();
    sweeping.await.context("the task that removes dead nodes' claims failed")?;
    counting.await.context("the task that counts claims failed")?;
    Ok(())
}

/// The next request; from `shutdown` on those that still arrive until other routers take them all, then none.
async fn next(requests: &mut Requests, shutdown: &CancellationToken) -> Option<Request> {
    tokio::select! {
        biased;
        () = shutdown.cancelled() => {}
        request = requests.next() => return request,
    }
    requests.drain().await;
    requests.next().await
}

/// Says whether NATS is there for as long as it is asked.
async fn tell_connection(context: Context, bus: Bus) {
    let nats = context.health.part("nats");
    let mut connection = bus.connection();
    loop {
        match *connection.borrow_and_update() {
            Connection::Up { .. } => nats.ready(),
            Connection::Down => nats.not_ready("not connected"),
        }
        if connection.changed().await.is_err() {
            return;
        }
    }
}

async fn count(known: Known, router: Router, ended: CancellationToken) {
    let meters = StateMeters::new();
    loop {
        meters.claims.set(known.claims.len() as f64);
        meters.nodes.set(known.leases.len() as f64);
        meters.claims_age_seconds.set(known.claims.silence().as_secs_f64());
        meters.calls_in_flight.set(router.in_flight() as f64);
        if timeout(TICK, ended.cancelled()).await.is_ok() {
            return;
        }
    }
}
