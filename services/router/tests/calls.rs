//! How does a call through a real router and a real nats-server end? The nodes here are subscriptions of the test:
//! that is all that a node is to a router.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking; clippy knows only those who bear the attribute, not their helpers"
)]

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use boot::{Context, Health, InForce, Settings};
use bus::claims::{ClaimStore, Expected};
use bus::server::{NatsServer, ServerOptions, find_binary};
use bus::{Bus, BusSettings, Request};
use bytes::Bytes;
use futures::StreamExt as _;
use rpc::{
    Budget, Call, CallId, Claim, Delivery, DeliveryReply, DeviceId, Generation, JudgeReply, JudgeRequest,
    LeaseRenewal, Limit, NodeId, Outcome, PresenceReply, PresenceRequest, Protocol, ReleaseRequest, Routed,
    SessionId, Tally, wire,
};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Far more than anything here takes; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(20);
const LEASE_MS: u64 = 1_000;

struct Bench {
    nats: NatsServer,
    bus: Bus,
    store: ClaimStore,
    context: Context,
    router: JoinHandle<anyhow::Result<()>>,
}

impl Bench {
    async fn start() -> Self {
        Self::with(Settings::default()).await
    }

    async fn with(settings: Settings) -> Self {
        Self::on(start_nats(0).await, settings).await
    }

    async fn on(nats: NatsServer, mut settings: Settings) -> Self {
        settings.ingress.lease_ms = LEASE_MS;
        settings.nats.url = nats.url();
        let bus = connect(&nats).await;
        let store = ClaimStore::open(&bus).await.unwrap();
        let (context, router) = start_router(settings).await;
        Bench { nats, bus, store, context, router }
    }

    async fn claim(&self, device: DeviceId, node: NodeId, session: u64) -> u64 {
        write(&self.store, device, claim(node, session)).await
    }

    async fn call(&self, target: DeviceId, budget_ms: u32, connect_budget_ms: u32) -> (Outcome, Bytes) {
        call(&self.bus, target, budget_ms, connect_budget_ms).await
    }

    async fn stop(self) {
        self.context.shutdown.cancel();
        timeout(PATIENCE, self.router).await.unwrap().unwrap().unwrap();
    }
}

async fn start_nats(port: u16) -> NatsServer {
    let binary =
        find_binary().expect("no nats-server: set NATS_SERVER, or put it on the PATH or into .tools");
    NatsServer::start(&ServerOptions { binary, port, ..ServerOptions::default() }).await.unwrap()
}

async fn connect(nats: &NatsServer) -> Bus {
    let settings = BusSettings { url: nats.url(), ..BusSettings::default() };
    Bus::connect(&settings, "test").await.unwrap()
}

async fn start_router(settings: Settings) -> (Context, JoinHandle<anyhow::Result<()>>) {
    let settings = Arc::new(settings);
    let context = Context {
        service: "router",
        in_force: InForce::fixed(Arc::clone(&settings)),
        settings,
        shutdown: CancellationToken::new(),
        health: Health::new(),
        admin_addr: ([127, 0, 0, 1], 0).into(),
        pages: boot::admin::Pages::default(),
        traces: boot::Traces::default(),
    };
    let bus = Bus::connect_for(&context).await.unwrap();
    let router = tokio::spawn(switchboard_router::serve(context.clone(), bus));
    timeout(PATIENCE, context.health.wait_ready()).await.unwrap();
    (context, router)
}

/// Asks as an authorizer does: the answer comes to an inbox of the caller's.
async fn call(bus: &Bus, target: DeviceId, budget_ms: u32, connect_budget_ms: u32) -> (Outcome, Bytes) {
    routed(bus, head(target, budget_ms, connect_budget_ms), None).await
}

async fn routed(bus: &Bus, call: Call, verdict_ms: Option<Budget>) -> (Outcome, Bytes) {
    let reply_to = format!("swb.reply.test.{}", Uuid::new_v4());
    let mut answers = bus.serve(reply_to.clone(), None).await.unwrap();
    let head = Routed { call, verdict_ms, party: None, reply_to };
    bus.tell(bus.subjects().route(), wire::encode(&head, br#"{"method":"x"}"#)).await.unwrap();
    let answer = timeout(PATIENCE, answers.next()).await.unwrap().unwrap();
    wire::decode(&answer.message).unwrap()
}

fn head(target: DeviceId, budget_ms: u32, connect_budget_ms: u32) -> Call {
    Call {
        caller_name: String::new(),
        visit: 1,
        ticket: None,
        call: CallId { node: NodeId(99), serial: 1 },
        caller: device(1000),
        target,
        budget_ms: Budget::from_ms(budget_ms),
        until: None,
        connect_budget_ms: Budget::from_ms(connect_budget_ms),
        protocol: None,
        oneway: false,
        traceparent: None,
        app: None,
    }
}

fn device(number: u128) -> DeviceId {
    DeviceId(Uuid::from_u128(number))
}

fn claim(node: NodeId, session: u64) -> Claim {
    Claim {
        node,
        session: SessionId(session),
        protocol: Protocol::Mqtt,
        generation: Generation(1),
        since_ms: None,
    }
}

/// Writes over whatever stands there, as another router would.
async fn write(store: &ClaimStore, device: DeviceId, claim: Claim) -> u64 {
    let expected = match store.read(device, PATIENCE).await.unwrap() {
        Some(stored) => Expected::Revision(stored.revision),
        None => Expected::Nothing,
    };
    store.write(device, &claim, expected, PATIENCE).await.unwrap()
}

async fn stands(store: &ClaimStore, device: DeviceId) -> bool {
    store.read(device, PATIENCE).await.unwrap().is_some_and(|stored| stored.claim.is_some())
}

/// Says once that the node is alive.
async fn renew(bus: &Bus, node: NodeId) -> Result<(), bus::TellError> {
    let renewal = LeaseRenewal {
        node,
        tally: Tally::default(),
        newest: Generation(0),
        ends: false,
        mends: None,
        sheds: false,
    };
    bus.tell(bus.subjects().lease(), wire::encode(&renewal, b"")).await
}

/// A living node that says `reply` to each delivery, with what was delivered as the body of an answer.
async fn node(
    bench: &Bench,
    id: u64,
    reply: impl Fn(&Delivery) -> Option<DeliveryReply> + Send + 'static,
) -> NodeId {
    let (node, bus) = (NodeId(id), bench.bus.clone());
    let mut deliveries = bus.serve(bus.subjects().node(node), None).await.unwrap();
    live(bench, node).await;
    tokio::spawn(async move {
        while let Some(Request { message, reply_to, .. }) = deliveries.next().await {
            let (delivery, body): (Delivery, Bytes) = wire::decode(&message).unwrap();
            let Some(reply) = reply(&delivery) else { continue };
            let message = wire::encode(&reply, &body);
            bus.tell(reply_to.unwrap(), message).await.unwrap();
        }
    });
    node
}

async fn answering_node(bench: &Bench, id: u64) -> NodeId {
    node(bench, id, |_| Some(DeliveryReply::Ended(Outcome::Answered))).await
}

/// Gives the node a lease, and keeps it until the task is aborted or the test ends.
async fn live(bench: &Bench, node: NodeId) -> JoinHandle<()> {
    let bus = bench.bus.clone();
    renew(&bus, node).await.unwrap();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(Duration::from_millis(LEASE_MS / 5)).await;
            // NATS may be away.
            let _ = renew(&bus, node).await;
        }
    })
}

/// Waits for what is about to become true, where nothing announces it.
async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < give_up, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn an_answer_comes_back_byte_for_byte() {
    let bench = Bench::start().await;
    let here = node(&bench, 1, |delivery| {
        assert_eq!((delivery.session, delivery.target), (SessionId(7), device(1)));
        assert!((1..=5000).contains(&delivery.budget_ms.as_ms()));
        Some(DeliveryReply::Ended(Outcome::Answered))
    })
    .await;
    bench.claim(device(1), here, 7).await;
    let (outcome, body) = bench.call(device(1), 5000, 0).await;
    assert_eq!((outcome, &body[..]), (Outcome::Answered, &br#"{"method":"x"}"#[..]));
    bench.stop().await;
}

#[tokio::test]
async fn whatever_the_node_says_is_the_outcome() {
    let bench = Bench::start().await;
    for (number, outcome) in
        [Outcome::Delivered, Outcome::Lost, Outcome::TimedOut, Outcome::Busy(Limit::Mailbox)]
            .into_iter()
            .enumerate()
    {
        let said = outcome.clone();
        let here = node(&bench, number as u64 + 1, move |_| Some(DeliveryReply::Ended(said.clone()))).await;
        bench.claim(device(number as u128), here, 1).await;
        assert_eq!(bench.call(device(number as u128), 5000, 0).await.0, outcome);
    }
    bench.stop().await;
}

#[tokio::test]
async fn nobody_claims_it() {
    let bench = Bench::start().await;
    assert_eq!(bench.call(device(1), 5000, 0).await.0, Outcome::Offline);
    bench.stop().await;
}

#[tokio::test]
async fn a_target_that_says_nothing_is_timed_out_at_the_end_of_the_budget() {
    let bench = Bench::start().await;
    let silent = node(&bench, 1, |_| None).await;
    bench.claim(device(1), silent, 1).await;
    let started = Instant::now();
    assert_eq!(bench.call(device(1), 300, 0).await.0, Outcome::TimedOut);
    assert!((300..2000).contains(&started.elapsed().as_millis()));
    bench.stop().await;
}

#[tokio::test]
async fn a_call_whose_time_is_over_says_nothing_of_its_target() {
    let bench = Bench::start().await;
    assert_eq!(bench.call(device(1), 0, 0).await.0, Outcome::Unavailable);
    bench.stop().await;
}

#[tokio::test]
async fn a_claim_is_found_the_moment_it_is_written() {
    let bench = Bench::start().await;
    let here = answering_node(&bench, 1).await;
    // The map hears of each a little later than the store has it: often enough the store itself is asked.
    for number in 0..200 {
        bench.claim(device(number), here, 1).await;
        assert_eq!(bench.call(device(number), 5000, 0).await.0, Outcome::Answered, "device {number}");
    }
    bench.stop().await;
}

/// A node that loses all its devices tells as many releases at once, and a claim waits in the store behind those that
/// routers have asked for.
#[tokio::test]
async fn of_many_releases_few_are_in_the_store_at_once() {
    const RELEASES: u128 = 1_000;
    let bench = Bench::start().await;
    // Else the router removes its claims by itself.
    let lives = live(&bench, NodeId(1)).await;
    let observer = async_nats::connect(bench.nats.url()).await.unwrap();
    let mut seen = observer.subscribe(">").await.unwrap();
    observer.flush().await.unwrap();
    for number in 0..RELEASES {
        bench.claim(device(number), NodeId(1), 1).await;
    }
    for number in 0..RELEASES {
        let release =
            ReleaseRequest { device: device(number), node: NodeId(1), session: SessionId(1), reason: None };
        bench.bus.tell(bench.bus.subjects().release(), wire::encode(&release, b"")).await.unwrap();
    }
    let (mut read, mut removed, mut at_once) = (HashSet::new(), HashSet::new(), 0);
    let all_are_removed = async {
        while removed.len() < RELEASES as usize {
            let message = seen.next().await.unwrap();
            match message.reply {
                Some(reply) if message.subject.starts_with("$JS.API.DIRECT.GET.") => {
                    read.insert(reply.into_string());
                }
                Some(_) if message.subject.starts_with("$KV.") && message.payload.is_empty() => {
                    removed.insert(message.subject.into_string());
                }
                _ => {
                    read.remove(message.subject.as_str());
                }
            }
            at_once = at_once.max(read.len());
        }
    };
    timeout(PATIENCE * 2, all_are_removed).await.expect("all are removed");
    assert!((2..=40).contains(&at_once), "{at_once} reads at once");
    lives.abort();
    bench.stop().await;
}

#[tokio::test]
async fn a_session_that_is_not_there_any_more_is_offline_and_its_claim_removed() {
    let bench = Bench::start().await;
    let elsewhere = node(&bench, 1, |_| Some(DeliveryReply::NotHere)).await;
    bench.claim(device(1), elsewhere, 1).await;
    assert_eq!(bench.call(device(1), 5000, 0).await.0, Outcome::Offline);
    eventually("the claim is removed", async || !stands(&bench.store, device(1)).await).await;
    bench.stop().await;
}

#[tokio::test]
async fn a_call_whose_verdict_has_run_out_is_judged_again() {
    let bench = Bench::start().await;
    let here = answering_node(&bench, 1).await;
    let was_outdated = AtomicBool::new(false);
    let slow = node(&bench, 2, move |delivery| {
        assert!(delivery.verdict_ms.is_some());
        let outdated = !was_outdated.swap(true, Ordering::Relaxed);
        Some(if outdated { DeliveryReply::Outdated } else { DeliveryReply::Ended(Outcome::Answered) })
    })
    .await;
    bench.claim(device(1), here, 1).await;
    bench.claim(device(2), slow, 1).await;
    let call = |target, verdict_ms| {
        let call = Call { protocol: Some(Protocol::Coap), ..head(target, 5_000, 0) };
        routed(&bench.bus, call, Some(Budget::from_ms(verdict_ms)))
    };
    assert_eq!(call(device(1), 5_000).await.0, Outcome::Answered);
    assert_eq!(call(device(1), 0).await.0, Outcome::Unavailable, "a missing answer denies");

    let (says, said) = (Arc::new(parking_lot::Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let mut questions = bench.bus.serve(bench.bus.subjects().judge(), None).await.unwrap();
    let (bus, answers, count) = (bench.bus.clone(), Arc::clone(&says), Arc::clone(&said));
    tokio::spawn(async move {
        while let Some(Request { message, reply_to, .. }) = questions.next().await {
            let (asked, _) = wire::decode::<JudgeRequest>(&message).unwrap();
            assert_eq!((asked.caller, asked.size_bytes), (device(1000), 14));
            assert_eq!((asked.protocol, asked.oneway), (Some(Protocol::Coap), false));
            count.fetch_add(1, Ordering::Relaxed);
            let answer: JudgeReply = answers.lock().pop().unwrap();
            bus.tell(reply_to.unwrap(), wire::encode(&answer, b"")).await.unwrap();
        }
    });
    let allowed = || JudgeReply::Allowed(Budget::from_ms(5_000));
    *says.lock() = vec![allowed(), JudgeReply::Refused(Outcome::Denied)];
    assert_eq!(call(device(1), 0).await.0, Outcome::Denied);
    assert_eq!(call(device(1), 0).await.0, Outcome::Answered);
    assert_eq!(call(device(1), 5_000).await.0, Outcome::Answered, "it holds: nobody is asked");
    assert_eq!(said.load(Ordering::Relaxed), 2);
    *says.lock() = vec![allowed()];
    assert_eq!(call(device(2), 5_000).await.0, Outcome::Answered, "the node found it outdated");
    assert_eq!(said.load(Ordering::Relaxed), 3);
    bench.stop().await;
}

#[tokio::test]
async fn a_session_that_moved_while_it_was_called_is_found_again() {
    let bench = Bench::start().await;
    let new = answering_node(&bench, 2).await;
    let store = bench.store.clone();
    let moved = Arc::new(tokio::sync::Notify::new());
    // Says "not here" only once the claim of the new node stands, as a device that moved would have it.
    let old = NodeId(1);
    let mut deliveries = bench.bus.serve(bench.bus.subjects().node(old), None).await.unwrap();
    let bus = bench.bus.clone();
    tokio::spawn({
        let moved = Arc::clone(&moved);
        async move {
            let delivery = deliveries.next().await.unwrap();
            write(&store, device(1), claim(new, 5)).await;
            let message = wire::encode(&DeliveryReply::NotHere, b"");
            bus.tell(delivery.reply_to.unwrap(), message).await.unwrap();
            moved.notify_one();
        }
    });
    bench.claim(device(1), old, 1).await;
    assert_eq!(bench.call(device(1), 5000, 0).await.0, Outcome::Answered);
    timeout(PATIENCE, moved.notified()).await.unwrap();
    bench.stop().await;
}

#[tokio::test]
async fn a_target_that_comes_in_time_is_waited_for() {
    let bench = Bench::start().await;
    let here = answering_node(&bench, 1).await;
    let calling = {
        let bus = bench.bus.clone();
        tokio::spawn(async move { call(&bus, device(1), 15_000, 10_000).await })
    };
    // The call reaches the router some time after this; before or after the claim, it is answered.
    tokio::time::sleep(Duration::from_millis(200)).await;
    bench.claim(device(1), here, 1).await;
    let started = Instant::now();
    assert_eq!(calling.await.unwrap().0, Outcome::Answered);
    assert!(started.elapsed() < Duration::from_secs(5));
    bench.stop().await;
}

#[tokio::test]
async fn a_target_that_does_not_come_is_offline_when_the_connect_budget_ends() {
    let bench = Bench::start().await;
    let started = Instant::now();
    assert_eq!(bench.call(device(1), 10_000, 300).await.0, Outcome::Offline);
    assert!((300..5000).contains(&started.elapsed().as_millis()));
    // The connect budget never outlasts the call's own.
    let started = Instant::now();
    assert_eq!(bench.call(device(1), 300, 20_000).await.0, Outcome::Offline);
    assert!(started.elapsed() < Duration::from_secs(5));
    bench.stop().await;
}

#[tokio::test]
async fn a_target_whose_stale_claim_is_replaced_in_time_is_reached() {
    let bench = Bench::start().await;
    let new = answering_node(&bench, 2).await;
    bench.claim(device(1), NodeId(1), 1).await;
    let calling = {
        let bus = bench.bus.clone();
        tokio::spawn(async move { call(&bus, device(1), 15_000, 10_000).await })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    bench.claim(device(1), new, 1).await;
    assert_eq!(calling.await.unwrap().0, Outcome::Answered);
    bench.stop().await;
}

#[tokio::test]
async fn a_dead_nodes_claims_are_removed_and_a_living_ones_stay() {
    let bench = Bench::start().await;
    let (dead, living) = (NodeId(1), NodeId(2));
    renew(&bench.bus, dead).await.unwrap();
    live(&bench, living).await;
    for number in 0..50 {
        bench.claim(device(number), dead, 1).await;
    }
    bench.claim(device(100), living, 1).await;
    let presence = async |devices: Vec<DeviceId>| {
        let message = wire::encode(&PresenceRequest { devices, places: false, seen: false }, b"");
        let reply = bench.bus.ask(bench.bus.subjects().presence(), message, PATIENCE).await.unwrap();
        wire::decode::<PresenceReply>(&reply).unwrap().0.online
    };
    eventually("both are heard", async || {
        presence(vec![device(49), device(100), device(7777)]).await == [true, true, false]
    })
    .await;
    assert_eq!(
        bench.call(device(0), 5000, 0).await.0,
        Outcome::Offline,
        "nobody listens there, and its lease is over"
    );
    eventually("the dead node's are gone", async || {
        let mut stands = false;
        for number in 0..50 {
            stands |= crate::stands(&bench.store, device(number)).await;
        }
        !stands
    })
    .await;
    assert!(stands(&bench.store, device(100)).await);
    assert_eq!(presence(vec![device(49), device(100)]).await, [false, true]);
    bench.stop().await;
}

#[tokio::test]
async fn a_node_that_dies_with_a_call_in_its_hands_loses_it() {
    let bench = Bench::start().await;
    let dying = NodeId(1);
    let mut deliveries = bench.bus.serve(bench.bus.subjects().node(dying), None).await.unwrap();
    let life = live(&bench, dying).await;
    bench.claim(device(1), dying, 1).await;
    let calling = {
        let bus = bench.bus.clone();
        tokio::spawn(async move { call(&bus, device(1), 60_000, 0).await })
    };
    timeout(PATIENCE, deliveries.next()).await.unwrap().unwrap();
    life.abort();
    assert_eq!(calling.await.unwrap().0, Outcome::Lost);
    bench.stop().await;
}

#[tokio::test]
async fn one_call_too_many_is_refused() {
    let mut settings = Settings::default();
    settings.router.max_calls_in_flight = 1;
    let bench = Bench::with(settings).await;
    let silent = node(&bench, 1, |_| None).await;
    bench.claim(device(1), silent, 1).await;
    let first = {
        let bus = bench.bus.clone();
        tokio::spawn(async move { call(&bus, device(1), 3000, 0).await })
    };
    eventually("the second is refused", async || {
        bench.call(device(2), 100, 0).await.0 == Outcome::Busy(Limit::RouterInFlight)
    })
    .await;
    assert_eq!(first.await.unwrap().0, Outcome::TimedOut);
    assert_eq!(bench.call(device(2), 1000, 0).await.0, Outcome::Offline);
    bench.stop().await;
}

#[tokio::test]
async fn a_store_that_cannot_be_asked_is_not_a_target_that_is_offline() {
    let bench = Bench::start().await;
    let here = answering_node(&bench, 1).await;
    bench.claim(device(1), here, 1).await;
    eventually("the map has it", async || bench.call(device(1), 5000, 0).await.0 == Outcome::Answered).await;
    // JetStream alone goes: what the map has can still be called, and of the rest nothing is known.
    let mut blind = bench.bus.serve("$JS.API.DIRECT.GET.KV_swb_claims.>", None).await.unwrap();
    let deleted = bench.bus.ask("$JS.API.STREAM.DELETE.KV_swb_claims", Bytes::new(), PATIENCE).await.unwrap();
    assert!(String::from_utf8_lossy(&deleted).contains("true"));
    assert_eq!(bench.call(device(2), 500, 0).await.0, Outcome::Unavailable);
    timeout(PATIENCE, blind.next()).await.unwrap().unwrap();
    assert_eq!(bench.call(device(1), 5000, 0).await.0, Outcome::Answered);
    bench.stop().await;
}

#[tokio::test]
async fn a_nodes_reply_that_is_none_is_unavailable() {
    let bench = Bench::start().await;
    let node = NodeId(1);
    let mut deliveries = bench.bus.serve(bench.bus.subjects().node(node), None).await.unwrap();
    let bus = bench.bus.clone();
    tokio::spawn(async move {
        let delivery = deliveries.next().await.unwrap();
        bus.tell(delivery.reply_to.unwrap(), "?".into()).await.unwrap();
    });
    bench.claim(device(1), node, 1).await;
    assert_eq!(bench.call(device(1), 5000, 0).await.0, Outcome::Unavailable);
    // What is no call at all leaves the router as it was.
    bench.bus.tell(bench.bus.subjects().route(), "?".into()).await.unwrap();
    assert_eq!(bench.call(device(2), 5000, 0).await.0, Outcome::Offline);
    bench.stop().await;
}

#[tokio::test]
async fn after_nats_lost_its_memory_claims_that_come_back_are_found() {
    let bench = Bench::start().await;
    let port = bench.nats.port();
    let here = answering_node(&bench, 1).await;
    bench.claim(device(1), here, 1).await;
    assert_eq!(bench.call(device(1), 5000, 0).await.0, Outcome::Answered);
    bench.nats.kill().await;
    eventually("the router is not ready", async || !bench.context.health.is_ready()).await;

    let _nats = start_nats(port).await;
    timeout(PATIENCE, bench.context.health.wait_ready()).await.unwrap();
    eventually("NATS is there again", async || renew(&bench.bus, here).await.is_ok()).await;
    // Before its node has written the claim again, the session can be called already: it is still up.
    eventually("the session is reached", async || {
        call(&bench.bus, device(1), 1000, 0).await.0 == Outcome::Answered
    })
    .await;
    write(&bench.store, device(1), claim(here, 1)).await;
    for _ in 0..20 {
        assert_eq!(call(&bench.bus, device(1), 5000, 0).await.0, Outcome::Answered);
    }
    bench.context.shutdown.cancel();
    timeout(PATIENCE, bench.router).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn routers_that_come_and_go_under_load_lose_no_call() {
    let bench = Bench::start().await;
    let here = node(&bench, 1, |_| Some(DeliveryReply::Ended(Outcome::Answered))).await;
    bench.claim(device(1), here, 1).await;
    let ended = CancellationToken::new();
    let mut callers = tokio::task::JoinSet::new();
    for number in 0..16 {
        let (bus, ended) = (connect(&bench.nats).await, ended.clone());
        callers.spawn(async move {
            let inbox = format!("swb.reply.test.{number}");
            let mut answers = bus.serve(inbox.clone(), None).await.unwrap();
            let head =
                Routed { call: head(device(1), 10_000, 0), verdict_ms: None, party: None, reply_to: inbox };
            let message = wire::encode(&head, b"{}");
            let mut answered = 0;
            while !ended.is_cancelled() {
                bus.tell(bus.subjects().route(), message.clone()).await.unwrap();
                let answer = timeout(PATIENCE, answers.next()).await.unwrap().unwrap();
                assert_eq!(wire::decode::<Outcome>(&answer.message).unwrap().0, Outcome::Answered);
                answered += 1;
            }
            answered
        });
    }
    let mut settings = (*bench.context.settings).clone();
    settings.ingress.lease_ms = LEASE_MS;
    let mut running = (bench.context.clone(), bench.router);
    for _ in 0..4 {
        let next = start_router(settings.clone()).await;
        let (context, router) = std::mem::replace(&mut running, next);
        context.shutdown.cancel();
        timeout(PATIENCE, router).await.unwrap().unwrap().unwrap();
    }
    ended.cancel();
    let answered: usize = callers.join_all().await.iter().sum();
    assert!(answered > 1000, "{answered} calls are no load");
    running.0.shutdown.cancel();
    timeout(PATIENCE, running.1).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_router_that_ends_finishes_its_calls_first() {
    let bench = Bench::start().await;
    let here = NodeId(1);
    let mut deliveries = bench.bus.serve(bench.bus.subjects().node(here), None).await.unwrap();
    live(&bench, here).await;
    bench.claim(device(1), here, 1).await;
    let calling = {
        let bus = bench.bus.clone();
        tokio::spawn(async move { call(&bus, device(1), 15_000, 0).await })
    };
    let delivery = timeout(PATIENCE, deliveries.next()).await.unwrap().unwrap();
    bench.context.shutdown.cancel();
    eventually("nobody takes calls any more", async || {
        let asked = bench.bus.ask(bench.bus.subjects().route(), "?".into(), Duration::from_millis(200)).await;
        asked == Err(bus::AskError::NoResponders)
    })
    .await;
    assert!(!bench.router.is_finished());
    let message = wire::encode(&DeliveryReply::Ended(Outcome::Answered), b"late");
    bench.bus.tell(delivery.reply_to.unwrap(), message).await.unwrap();
    assert_eq!(calling.await.unwrap(), (Outcome::Answered, Bytes::from("late")));
    timeout(PATIENCE, bench.router).await.unwrap().unwrap().unwrap();
}
