//! Where is a call's target, and how did the call to it end? The service between the authorizer and the target's node.
//!
//! [`core`] decides: which claim stands, where a call goes, what it waits for. `router` performs that: `route` for
//! calls, `claims` for what nodes ask. Any number of copies share the calls; a copy that ends finishes its own, and
//! hands those that wait for their target to the others.

mod claims;
pub mod core;
mod meters;
mod room;
mod route;
mod router;
mod seen;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use boot::Context;
use boot::traces::Tracer;
use bus::claims::ClaimStore;
use bus::inspect::Numbers;
use bus::{Bus, BusError, Keyring, Request, Requests};
use rpc::{BEAT_EVERY, Beat, wire};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use meters::StateMeters;
pub use meters::describe;
use room::Room;
use router::{Limits, Parts, Router};

/// All routers share the calls.
const QUEUE: &str = "router";
/// How long nodes may take to say what they hold, once they have heard the first beat.
const INTRODUCTION: Duration = Duration::from_millis(300);
/// How long a router waits besides until it knows of their claims, before it answers what it can.
const ACQUAINTANCE: Duration = Duration::from_secs(2);
/// How often gauges are set.
const TICK: Duration = Duration::from_secs(1);

/// Serves until the context's shutdown, then finishes the calls in flight, for at most `router.drain_ms`, and closes
/// the bus.
///
/// Ready once all claims are loaded and calls are subscribed to; while NATS is away it keeps trying.
///
/// # Errors
/// When a task of its own fails, which is a fault of the program.
pub fn serve(context: Context, bus: Bus) -> boot::Serving {
    Box::pin(begin(context, bus))
}

async fn begin(context: Context, bus: Bus) -> anyhow::Result<()> {
    describe();
    let parts = [context.health.part("claims"), context.health.part("calls")];
    let [claims_part, calls_part] = &parts;
    let mut keeping = JoinSet::new();
    keeping.spawn(bus.clone().show_connection(context.health.part("nats")));
    let (tracer, numbers) = (context.traces.tracer(context.service, bus.process()), Numbers::default());
    let _inspected = bus.inspected(&context, &tracer, numbers.clone());

    let started = tokio::select! {
        () = context.shutdown.cancelled() => None,
        started = async {
            let router = open(&context, &bus, (tracer.clone(), numbers), &mut keeping).await;
            claims_part.ready();
            let asked = bus.again("take calls", || subscribe(&bus)).await;
            calls_part.ready();
            (router, asked)
        } => Some(started),
    };
    let served = match started {
        Some((router, asked)) => run(&context, &router, asked).await,
        None => Ok(()),
    };
    keeping.shutdown().await;
    bus.close().await;
    served
}

/// What it is asked, and what it is told.
struct Asked {
    calls: Requests,
    handovers: Requests,
    presence: Requests,
    claims: Requests,
    releases: Requests,
    compares: Requests,
    cancels: Requests,
}

/// A router that knows all claims, kept so by tasks of `keeping`.
async fn open(
    context: &Context,
    bus: &Bus,
    (tracer, numbers): (Tracer, Numbers),
    keeping: &mut JoinSet<()>,
) -> Router {
    let limits = Limits::from(&*context.in_force.now());
    let store = bus.again("open the claims", || ClaimStore::open(bus)).await;
    let keys = Keyring::follow(bus);
    keys.wait_ready().await;
    let room = Room::new(context.health.part("claims"));
    let router = Router::new(Parts { bus: bus.clone(), store, keys, tracer, limits, room });
    // Heard from before the claims are read: a node whose lease is missed is taken for dead.
    let mut leases = bus.again("hear of leases", || bus.serve(bus.subjects().lease(), None)).await;
    let (is_loaded, mut loaded) = watch::channel(false);
    keeping.spawn({
        let router = router.clone();
        async move {
            while let Some(request) = leases.next().await {
                router.take_renewal(&request);
            }
        }
    });
    keeping.spawn({
        let router = router.clone();
        async move { router.follow_connection().await }
    });
    keeping.spawn({
        let router = router.clone();
        async move { router.follow(is_loaded).await }
    });
    keeping.spawn({
        let router = router.clone();
        async move { router.tick().await }
    });
    keeping.spawn({
        let router = router.clone();
        async move { router.watch_nodes().await }
    });
    keeping.spawn({
        let limits = router.0.limits.clone();
        context.in_force.clone().each(move |settings| limits.change(settings))
    });
    keeping.spawn(count(router.clone(), numbers));
    keeping.spawn({
        let router = router.clone();
        async move { router.0.seen.keep(&router.0.bus).await }
    });
    keeping.spawn({
        let router = router.clone();
        bus.clone().hear_beats(move |beat, _| router.tell(|core, _, _| core.heard(beat.newest)))
    });
    keeping.spawn(beat(router.clone()));
    // The sender lives as long as the task that follows.
    let _ = loaded.wait_for(|is_loaded| *is_loaded).await;
    // Nodes say what they hold when they hear a new router: it is to know that before it answers.
    sleep(INTRODUCTION).await;
    let acquainted = async {
        while router.look(|core, now| core.doubts(now)) {
            sleep(INTRODUCTION / 10).await;
        }
    };
    // While claims come and go by the thousand it may not know them all at any one time: it doubts for a lease then.
    let _ = timeout(ACQUAINTANCE, acquainted).await;
    router
}

async fn subscribe(bus: &Bus) -> Result<Asked, BusError> {
    let subjects = bus.subjects();
    Ok(Asked {
        cancels: bus.serve(subjects.cancel(), None).await?,
        presence: bus.serve(subjects.presence(), Some(QUEUE)).await?,
        compares: bus.serve(subjects.compare(), Some(QUEUE)).await?,
        releases: bus.serve(subjects.release(), Some(QUEUE)).await?,
        claims: bus.serve(subjects.claim(), Some(QUEUE)).await?,
        handovers: bus.serve(subjects.handover(), Some(QUEUE)).await?,
        // Last: from here on calls come in.
        calls: bus.serve(subjects.route(), Some(QUEUE)).await?,
    })
}

async fn run(context: &Context, router: &Router, asked: Asked) -> anyhow::Result<()> {
    let Asked { calls, handovers, presence, claims, releases, compares, cancels } = asked;
    let shutdown = &context.shutdown;
    // In tasks of their own: what they start then runs where they do, not on the thread that waits here.
    let mut taking = JoinSet::new();
    let mut take = |requests: Requests, take: fn(&Router, Request)| {
        taking.spawn(each(router.clone(), requests, shutdown.clone(), take));
    };
    let taker = router.clone();
    calls.take_locally(move |request| taker.take(&request));
    take(calls, |router, request| router.take(&request));
    take(handovers, |router, request| router.take_handover(&request));
    take(claims, Router::take_claim);
    take(cancels, |router, request| router.take_cancel(&request));
    take(compares, Router::answer_compare);
    take(presence, Router::answer_presence);
    taking.spawn(router.clone().take_releases(releases, shutdown.clone()));

    let finishing = async {
        while let Some(ended) = taking.join_next().await {
            ended.context("a task that takes messages failed")?;
        }
        router.finish().await;
        router.0.seen.flush().await;
        anyhow::Ok(())
    };
    let time_is_up = async {
        shutdown.cancelled().await;
        let drain_ms = context.in_force.now().router.drain_ms;
        sleep(Duration::from_millis(drain_ms)).await;
    };
    tokio::select! {
        finished = finishing => finished?,
        () = time_is_up => {
            tracing::warn!(calls = router.in_flight(), "calls are cut off: drain_ms is over");
            router.cut_off();
        }
    }
    Ok(())
}

async fn each(
    router: Router,
    mut requests: Requests,
    shutdown: CancellationToken,
    take: fn(&Router, Request),
) {
    while let Some(request) = requests.next_until(&shutdown).await {
        take(&router, request);
    }
}

/// Gives everybody what the ends of calls are told by.
async fn beat(router: Router) {
    let bus = &router.0.bus;
    let mut beats = interval(BEAT_EVERY);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for number in 1.. {
        beats.tick().await;
        let (newest, asks) = router.look(|core, now| (core.map().newest(), core.doubts(now)));
        let beat = Beat { of: bus.process(), number, newest, asks };
        // While NATS is away nobody hears it.
        let _ = bus.tell(bus.subjects().beat(), wire::encode(&beat, b"")).await;
    }
}

async fn count(router: Router, numbers: Numbers) {
    let meters = StateMeters::new();
    loop {
        let (claims, nodes, waiting) =
            router.look(|core, _| (core.map().len(), core.leases().len(), core.waiting()));
        let counted = [("claims", claims), ("nodes", nodes), ("waiting", waiting)];
        counted.into_iter().for_each(|(name, number)| numbers.set(name, number));
        meters.claims.set(claims as f64);
        meters.nodes.set(nodes as f64);
        meters.waiting.set(waiting as f64);
        meters.claims_age_seconds.set(router.0.meters.silence().as_secs_f64());
        meters.calls_in_flight.set(router.in_flight() as f64);
        router.0.room.tick(Instant::now());
        sleep(TICK).await;
    }
}
