//! Does the authorizer answer as it promises, over a real nats-server and with the real registry?

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking; clippy knows only those who bear the attribute, not their helpers"
)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use boot::{Context, Health, InForce, Settings};
use bus::audit::{AuditLog, Book, Bounds, Chain, From, NO_TENANT, Record};
use bus::policies::{External, Policies, StoredSet};
use bus::registry::{App, AppKey, Customer, DeviceChange, NewDevice, NewKey, Registry, Tenant, Token};
use bus::server::{NatsServer, ServerOptions, find_binary};
use bus::{AskError, Bus, BusSettings, Request, Subject};
use bytes::Bytes;
use futures::StreamExt;
use rpc::{
    AppAsk, AppCall, AppCaller, AppId, AppReply, AppRequest, AuthenticateReply, AuthenticateRequest, Budget,
    Call, CallId, CredentialHash, CustomerId, DeviceId, DeviceState, JudgeReply, JudgeRequest, ListRequest,
    NodeId, Outcome, PresenceReply, PresenceRequest, Role, Routed, Target, TenantId, Ticket, wire,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const WAIT: Duration = Duration::from_secs(10);

const NODE: NodeId = NodeId(1);
const VISIT: u64 = 5;

struct World {
    server: NatsServer,
    bus: Bus,
    registry: Registry,
    tenant: TenantId,
    customer: CustomerId,
}

async fn connect(server: &NatsServer) -> Bus {
    Bus::connect(&BusSettings { url: server.url(), ..BusSettings::default() }, "test").await.unwrap()
}

impl World {
    async fn new() -> Self {
        let binary = find_binary().expect("nats-server is needed: on the PATH or named by NATS_SERVER");
        let server = NatsServer::start(&ServerOptions { binary, ..Default::default() }).await.unwrap();
        let bus = connect(&server).await;
        let registry = Registry::open(&bus).await.unwrap();
        let (tenant, customer) = (TenantId(Uuid::new_v4()), CustomerId(Uuid::new_v4()));
        registry.add_tenant(tenant, &Tenant { name: "Tenant".into() }).await.unwrap();
        registry.add_customer(customer, &Customer { tenant, name: "Customer A".into() }).await.unwrap();
        World { server, bus, registry, tenant, customer }
    }

    async fn add(&self, name: &str, customer: Option<CustomerId>) -> NewDevice {
        let device = NewDevice {
            id: DeviceId(Uuid::new_v4()),
            tenant: self.tenant,
            customer,
            name: name.into(),
            kind: "default".into(),
            labels: BTreeMap::new(),
            token: Token::generate().unwrap(),
        };
        self.registry.add_device(&device).await.unwrap();
        device
    }

    async fn ask<H: wire::Head>(&self, subject: String, head: &impl wire::Head, body: &[u8]) -> (H, Bytes) {
        let reply = self.bus.ask(subject, wire::encode(head, body), WAIT).await.unwrap();
        wire::decode(&reply).unwrap()
    }

    /// As the device's node would, with the ticket that it has.
    async fn call(&self, call: &Call) -> Outcome {
        let ticket = match call.ticket {
            Some(ticket) => Some(ticket),
            None => self.ticket(call.caller).await,
        };
        self.ask(self.bus.subjects().call(), &Call { ticket, ..call.clone() }, b"{}").await.0
    }

    /// The ticket of a device's visit; none if it is not registered.
    async fn ticket(&self, device: DeviceId) -> Option<Ticket> {
        let record = self.registry.device(device).await.unwrap()?;
        match self.authenticate(record.credential).await {
            AuthenticateReply::Identity(identity) => Some(identity.ticket),
            AuthenticateReply::Refused | AuthenticateReply::Unavailable => None,
        }
    }

    async fn list(&self, list: &ListRequest) -> (Outcome, String) {
        let list = ListRequest { ticket: self.ticket(list.caller).await, ..list.clone() };
        let (outcome, body) = self.ask(self.bus.subjects().list(), &list, b"").await;
        (outcome, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn authenticate(&self, credential: CredentialHash) -> AuthenticateReply {
        let asked = AuthenticateRequest { credential, node: NODE, visit: VISIT };
        self.ask(self.bus.subjects().authenticate(), &asked, b"").await.0
    }

    /// Until the authorizer knows it so.
    async fn until_authenticated(&self, token: &Token, is_known: bool) {
        let deadline = Instant::now() + WAIT;
        while matches!(self.authenticate(token.credential()).await, AuthenticateReply::Identity(_))
            != is_known
        {
            assert!(Instant::now() < deadline, "the authorizer does not hear of the change");
        }
    }
}

/// An authorizer in this process.
struct Running {
    context: Context,
    ended: JoinHandle<anyhow::Result<()>>,
}

async fn start(world: &World, change: impl FnOnce(&mut Settings)) -> Running {
    let mut settings = Settings::default();
    change(&mut settings);
    let settings = Arc::new(settings);
    let context = Context {
        service: "authorizer",
        in_force: InForce::fixed(Arc::clone(&settings)),
        settings,
        shutdown: CancellationToken::new(),
        health: Health::new(),
        admin_addr: ([127, 0, 0, 1], 0).into(),
        pages: boot::admin::Pages::default(),
        traces: boot::Traces::default(),
    };
    let bus = connect(&world.server).await;
    let ended = tokio::spawn(switchboard_authorizer::serve(context.clone(), bus));
    tokio::time::timeout(WAIT, context.health.wait_ready()).await.expect("not ready");
    Running { context, ended }
}

impl Running {
    async fn stop(self) {
        self.context.shutdown.cancel();
        tokio::time::timeout(WAIT, self.ended).await.expect("does not end").unwrap().unwrap();
    }
}

fn call(caller: DeviceId, target: DeviceId) -> Call {
    Call {
        caller_name: String::new(),
        visit: VISIT,
        ticket: None,
        call: CallId { node: NODE, serial: 7 },
        caller,
        target,
        budget_ms: Budget::from_ms(5000),
        until: None,
        connect_budget_ms: Budget::from_ms(100),
        protocol: None,
        oneway: false,
        traceparent: None,
        app: None,
    }
}

fn list(caller: DeviceId) -> ListRequest {
    ListRequest {
        caller,
        node: NODE,
        visit: VISIT,
        ticket: None,
        protocol: None,
        limit: None,
        after: None,
        online: false,
        traceparent: None,
    }
}

#[tokio::test]
async fn calls_are_forwarded_refused_or_bounced() {
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await;
    let a2 = world.add("A2", Some(world.customer)).await;
    let loose = world.add("Loose", None).await;
    let running = start(&world, |_| ()).await;

    assert_eq!(world.call(&call(a1.id, a2.id)).await, Outcome::Unavailable, "no router is there");
    assert_eq!(world.call(&call(a1.id, loose.id)).await, Outcome::Denied);
    assert_eq!(world.call(&call(loose.id, loose.id)).await, Outcome::Denied);
    assert_eq!(world.call(&call(a1.id, DeviceId(Uuid::nil()))).await, Outcome::UnknownDevice);
    assert_eq!(
        world.call(&call(DeviceId(Uuid::nil()), a1.id)).await,
        Outcome::Unavailable,
        "without a ticket"
    );
    let stolen = world.ticket(loose.id).await;
    for (what, unheard) in [
        ("another's ticket", Call { ticket: stolen, ..call(a1.id, a2.id) }),
        ("another visit", Call { visit: VISIT + 1, ..call(a1.id, a2.id) }),
        ("another node", Call { call: CallId { node: NodeId(2), serial: 7 }, ..call(a1.id, a2.id) }),
    ] {
        let ticket = unheard.ticket.or(world.ticket(a1.id).await);
        let unheard = Call { ticket, ..unheard };
        assert_eq!(world.call(&unheard).await, Outcome::Unavailable, "{what}");
    }

    let mut router = world.bus.serve(world.bus.subjects().route(), Some("router")).await.unwrap();
    let asked = tokio::spawn({
        let ticket = world.ticket(a1.id).await;
        let (bus, head) = (world.bus.clone(), Call { oneway: true, ticket, ..call(a1.id, a2.id) });
        let body = br#"{"x": 1.50}"#;
        async move { bus.ask(bus.subjects().call(), wire::encode(&head, body), WAIT).await }
    });
    let Request { message, .. } = router.next().await.unwrap();
    let (routed, body) = wire::decode::<Routed>(&message).unwrap();
    assert_eq!(&body[..], br#"{"x": 1.50}"#, "byte for byte");
    assert!((4000..=5000).contains(&routed.call.budget_ms.as_ms()));
    assert!(routed.call.connect_budget_ms.as_ms() <= 100);
    let expected = Call {
        oneway: true,
        budget_ms: routed.call.budget_ms,
        connect_budget_ms: routed.call.connect_budget_ms,
        ..call(a1.id, a2.id)
    };
    assert_eq!(routed.call, expected, "and its ticket goes no further");
    let answer = wire::encode(&Outcome::Answered, b"[]");
    world.bus.tell(routed.reply_to, answer.clone()).await.unwrap();
    assert_eq!(asked.await.unwrap().unwrap(), answer, "the router answers the caller's inbox");

    let spent = Call { budget_ms: Budget::from_ms(0), ..call(a1.id, a2.id) };
    assert_eq!(world.call(&spent).await, Outcome::Unavailable, "a call whose time is over goes no further");
    running.stop().await;
    world.server.stop().await;
}

#[tokio::test]
async fn concealed_devices_read_as_missing() {
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await;
    let loose = world.add("Loose", None).await;
    let running = start(&world, |settings| settings.device_api.conceal_foreign_devices = true).await;
    assert_eq!(world.call(&call(a1.id, loose.id)).await, Outcome::UnknownDevice);
    assert_eq!(world.call(&call(a1.id, DeviceId(Uuid::nil()))).await, Outcome::UnknownDevice);
    running.stop().await;
    world.server.stop().await;
}

#[tokio::test]
async fn lists_are_the_device_apis() {
    let world = World::new().await;
    let mut devices = Vec::new();
    for name in ["A3", "A1", "A2"] {
        devices.push(world.add(name, Some(world.customer)).await.id);
    }
    let [a3, a1, a2] = devices[..] else { panic!() };
    let loose = world.add("Loose", None).await.id;
    let running = start(&world, |settings| settings.device_api.max_devices_per_customer = 2).await;

    let entry = |id: DeviceId, name: &str| format!(r#"{{"id":"{id}","name":"{name}"}}"#);
    let (outcome, body) = world.list(&list(a1)).await;
    assert_eq!(outcome, Outcome::Answered);
    assert_eq!(body, format!("[{},{}]", entry(a2, "A2"), entry(a3, "A3")));
    let page = ListRequest { limit: Some(1), after: Some(a1), ..list(a3) };
    assert_eq!(world.list(&page).await.1, format!("[{}]", entry(a2, "A2")));
    let last = ListRequest { limit: Some(1), after: Some(a2), ..list(a3) };
    assert_eq!(world.list(&last).await, (Outcome::Answered, "[]".into()));
    assert_eq!(world.list(&list(loose)).await, (Outcome::Denied, String::new()));
    assert_eq!(
        world.list(&ListRequest { after: Some(loose), ..list(a1) }).await.0,
        Outcome::malformed("after must be the id of a device of the list")
    );

    let online = ListRequest { online: true, ..list(a1) };
    assert_eq!(world.list(&online).await.0, Outcome::Unavailable, "no router is there");
    let mut router = world.bus.serve(world.bus.subjects().presence(), Some("router")).await.unwrap();
    let bus = world.bus.clone();
    let answering = tokio::spawn(async move {
        let request = router.next().await.unwrap();
        let (asked, _) = wire::decode::<PresenceRequest>(&request.message).unwrap();
        let online = asked.devices.iter().map(|device| *device == a3).collect();
        let reply =
            wire::encode(&PresenceReply { online, takeovers: Vec::new(), places: None, seen: None }, b"");
        bus.tell(request.reply_to.unwrap(), reply).await.unwrap();
    });
    let body = world.list(&online).await.1;
    let listed: Vec<serde_json::Value> = serde_json::from_str(&body).unwrap();
    let states: Vec<_> =
        listed.iter().map(|entry| (entry["name"].clone(), entry["online"].clone())).collect();
    assert_eq!(states, [("A2".into(), false.into()), ("A3".into(), true.into())]);
    answering.await.unwrap();
    running.stop().await;
    world.server.stop().await;
}

#[tokio::test]
async fn a_list_larger_than_a_message_tells_to_page() {
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await;
    let name = |n| format!("{n:04}{}", "\u{1F600}".repeat(250));
    let devices: Vec<NewDevice> = (0..1024)
        .map(|n| NewDevice {
            id: DeviceId(Uuid::new_v4()),
            name: name(n),
            token: Token::generate().unwrap(),
            ..a1.clone()
        })
        .collect();
    world
        .registry
        .add_devices(&devices, std::future::pending(), |_, added| assert!(added.is_ok()))
        .await
        .unwrap();
    let running = start(&world, |_| ()).await;
    let Outcome::Malformed(text) = world.list(&list(a1.id)).await.0 else { panic!() };
    assert!(text.contains("limit and after"), "{text}");
    let (outcome, body) = world.list(&ListRequest { limit: Some(500), ..list(a1.id) }).await;
    assert_eq!(outcome, Outcome::Answered);
    assert_eq!(serde_json::from_str::<Vec<serde_json::Value>>(&body).unwrap().len(), 500);
    running.stop().await;
    world.server.stop().await;
}

#[tokio::test]
async fn changes_are_told_and_judged_at_once() {
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await;
    let a2 = world.add("A2", Some(world.customer)).await;
    let running = start(&world, |_| ()).await;
    let mut events = world.bus.serve(world.bus.subjects().devices_changed(), None).await.unwrap();
    let mut event = async || {
        let request = tokio::time::timeout(WAIT, events.next()).await.expect("no event").unwrap();
        wire::decode::<DeviceState>(&request.message).unwrap().0
    };

    let AuthenticateReply::Identity(identity) = world.authenticate(a1.token.credential()).await else {
        panic!()
    };
    assert_eq!((identity.device, identity.tenant, identity.name.as_str()), (a1.id, world.tenant, "A1"));
    assert_eq!(identity.customer, Some(world.customer));
    let nobody = Token::generate().unwrap();
    assert_eq!(world.authenticate(nobody.credential()).await, AuthenticateReply::Refused);

    // A new name changes no session, so the first event is that of the new token.
    world.registry.change_device(a1.id, &DeviceChange::named("A1 renamed"), None).await.unwrap();
    let new = Token::generate().unwrap();
    let before = world.ticket(a1.id).await;
    world.registry.rotate_token(a1.id, &new).await.unwrap();
    let state = event().await;
    assert_eq!((state.device, state.now.unwrap().credential), (a1.id, new.credential()));
    world.until_authenticated(&a1.token, false).await;
    world.until_authenticated(&new, true).await;
    let void = Call { ticket: before, ..call(a1.id, a1.id) };
    assert_eq!(world.call(&void).await, Outcome::Denied, "the token before is none any more");
    assert_ne!(world.call(&call(a1.id, a1.id)).await, Outcome::Denied);

    world.registry.change_device(a2.id, &DeviceChange::assigned(None), None).await.unwrap();
    assert_eq!(event().await.now.unwrap().customer, None);
    assert_eq!(world.call(&call(a1.id, a2.id)).await, Outcome::Denied);
    let before = world.ticket(a2.id).await;
    world.registry.remove_device(a2.id, None).await.unwrap();
    assert_eq!(event().await, DeviceState { device: a2.id, now: None });
    assert_eq!(world.call(&call(a1.id, a2.id)).await, Outcome::UnknownDevice);
    assert_eq!(world.call(&Call { ticket: before, ..call(a2.id, a1.id) }).await, Outcome::Denied);
    running.stop().await;
    world.server.stop().await;
}

#[tokio::test]
async fn two_share_the_work_and_one_may_stop_at_any_time() {
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await;
    let loose = world.add("Loose", None).await;
    let (first, second) = tokio::join!(start(&world, |_| ()), start(&world, |_| ()));
    let stopping = CancellationToken::new();
    let head = Call { ticket: world.ticket(a1.id).await, ..call(a1.id, loose.id) };
    let asking = tokio::spawn({
        let (bus, stopping) = (world.bus.clone(), stopping.clone());
        let message = wire::encode(&head, b"{}");
        async move {
            let mut asked = 0;
            while !stopping.is_cancelled() {
                let asks = (0..20).map(|_| bus.ask(bus.subjects().call(), message.clone(), WAIT));
                for reply in futures::future::join_all(asks).await {
                    assert_eq!(
                        wire::decode::<Outcome>(&reply.expect("unanswered")).unwrap().0,
                        Outcome::Denied
                    );
                    asked += 1;
                }
            }
            asked
        }
    });
    first.stop().await;
    stopping.cancel();
    let asked = asking.await.unwrap();
    assert!(asked > 100, "{asked} is hardly a load");
    second.stop().await;
    let message = wire::encode(&call(a1.id, loose.id), b"{}");
    let unheard = world.bus.ask(world.bus.subjects().call(), message, WAIT).await;
    assert_eq!(unheard, Err(AskError::NoResponders), "nobody there is said at once");
    world.server.stop().await;
}

/// An application that may all, and its first key, once the authorizer knows it.
async fn application(world: &World, lasts_s: u64) -> (AppId, AppKey) {
    let (id, key) = (AppId(Uuid::new_v4()), AppKey::generate().unwrap());
    let app = App {
        tenant: world.tenant,
        name: "backend".into(),
        role: Role::Caller,
        all_tenants: false,
        customers: None,
        labels: BTreeMap::new(),
        methods: None,
        networks: None,
        keys: BTreeMap::new(),
    };
    world.registry.add_app(id, &app).await.unwrap();
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let new = NewKey { app: id, key: key.clone(), now_s: since.as_secs(), lasts_s };
    world.registry.add_key(&new).await.unwrap();
    (id, key)
}

fn app_call(key: &AppKey, target: &str) -> AppCall {
    AppCall {
        call: CallId { node: NODE, serial: 8 },
        credential: key.credential(),
        target: Target::parse(target),
        method: "blink".into(),
        budget_ms: Budget::from_ms(5_000),
        until: None,
        connect_budget_ms: Budget::from_ms(0),
        oneway: false,
        traceparent: None,
        late: None,
    }
}

#[tokio::test]
async fn an_application_calls_for_as_long_as_its_key_lives_and_nobody_calls_in_its_name() {
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await;
    let running = start(&world, |_| ()).await;
    let (app, key) = application(&world, 3_600).await;
    let who = async || {
        let asked = AppRequest { credential: key.credential(), ask: AppAsk::Who };
        world.ask::<AppReply>(world.bus.subjects().app(), &asked, b"").await.0
    };
    let deadline = Instant::now() + WAIT;
    let AppReply::Identity(identity) = (loop {
        match who().await {
            AppReply::Refused if Instant::now() < deadline => {}
            other => break other,
        }
    }) else {
        panic!("the authorizer does not hear of the application");
    };
    assert_eq!((identity.app, identity.key, identity.name.as_str()), (app, key.id(), "backend"));

    let mut router = world.bus.serve(world.bus.subjects().route(), Some("router")).await.unwrap();
    let caller = AppCaller { app, key: Some(key.id()), method: "blink".into(), late: None };
    for named in ["A1", &a1.id.to_string()] {
        let message = wire::encode(&app_call(&key, named), b"[1]");
        let inbox = format!("{}.1", world.bus.subjects().inbox(NODE));
        world.bus.forward(world.bus.subjects().app_call(), inbox, message).await.unwrap();
        let (routed, body) = wire::decode::<Routed>(&router.next().await.unwrap().message).unwrap();
        assert_eq!((routed.call.app.as_ref(), routed.call.target), (Some(&caller), a1.id), "{named}");
        assert_eq!((routed.call.caller, routed.call.caller_name.as_str()), (DeviceId(app.0), "backend"));
        assert_eq!(&body[..], b"[1]");
    }
    let nobody = world.ask(world.bus.subjects().app_call(), &app_call(&key, "A9"), b"1").await;
    assert_eq!(nobody, (Outcome::UnknownDevice, Bytes::new()));

    // A node knows devices alone: what it says of an application counts for nothing.
    let as_app = Call { app: Some(caller.clone()), ..call(DeviceId(app.0), a1.id) };
    assert_eq!(world.call(&as_app).await, Outcome::Unavailable, "it has no ticket");
    let of_device =
        Call { ticket: world.ticket(a1.id).await, app: Some(caller.clone()), ..call(a1.id, a1.id) };
    let message = wire::encode(&of_device, b"{}");
    let inbox = format!("{}.1", world.bus.subjects().inbox(NODE));
    world.bus.forward(world.bus.subjects().call(), inbox, message).await.unwrap();
    let (routed, _) = wire::decode::<Routed>(&router.next().await.unwrap().message).unwrap();
    assert_eq!((routed.call.app, routed.call.caller), (None, a1.id));

    // While the call waits for its target, the key ends.
    let judged = JudgeRequest {
        call: CallId { node: NODE, serial: 8 },
        caller: DeviceId(app.0),
        target: a1.id,
        budget_ms: Budget::from_ms(5_000),
        size_bytes: 3,
        protocol: None,
        oneway: false,
        app: Some(caller),
    };
    let judge = async || world.ask::<JudgeReply>(world.bus.subjects().judge(), &judged, b"").await.0;
    assert!(matches!(judge().await, JudgeReply::Allowed(_)));
    world.registry.revoke_key(app, key.id()).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(1);
    while matches!(judge().await, JudgeReply::Allowed(_)) {
        assert!(Instant::now() < deadline, "a key that was revoked still counts");
    }
    assert_eq!(judge().await, JudgeReply::Refused(Outcome::Denied));
    assert_eq!(who().await, AppReply::Refused);
    let ended = world.ask(world.bus.subjects().app_call(), &app_call(&key, "A1"), b"1").await;
    assert_eq!(ended, (Outcome::Denied, Bytes::new()));
    running.stop().await;
    world.server.stop().await;
}

/// Asks as a program that knows nothing of ours, and has the inbox that it may.
async fn asked_over_nats(
    client: &async_nats::Client,
    subject: String,
    headers: &[(&str, &str)],
    body: &'static str,
) -> async_nats::Message {
    let mut inbox = client.subscribe("swb.reply.app-1").await.unwrap();
    let mut map = async_nats::HeaderMap::new();
    headers.iter().for_each(|(name, value)| map.insert(*name, *value));
    client.publish_with_reply_and_headers(subject, "swb.reply.app-1", map, body.into()).await.unwrap();
    tokio::time::timeout(WAIT, inbox.next()).await.expect("no answer").unwrap()
}

fn header<'a>(message: &'a async_nats::Message, name: &str) -> Option<&'a str> {
    message.headers.as_ref()?.get(name).map(async_nats::HeaderValue::as_str)
}

#[tokio::test]
async fn an_application_calls_over_nats_as_its_subject_says() {
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await;
    let (app, key) = application(&world, 3_600).await;
    let running = start(&world, |settings| {
        settings.authorizer.answer_applications = true;
        settings.api.call_burst_per_app = 8;
        settings.api.calls_per_second_per_app = 1;
    })
    .await;
    let client = async_nats::connect(world.server.url()).await.unwrap();
    let subject =
        |tenant: TenantId, app: AppId, device: &str| format!("swb.app.{tenant}.{app}.call.{device}");
    let own = subject(world.tenant, app, "A1");
    let ended = |message: &async_nats::Message| {
        let of = |name| header(message, name).unwrap_or_default().to_owned();
        (of("Swb-Outcome"), of("Swb-Seen"), of("Nats-Service-Error-Code"))
    };
    let said = |outcome: &str, code: &str| (outcome.to_owned(), "never".to_owned(), code.to_owned());

    let nobody = asked_over_nats(&client, own.clone(), &[], "").await;
    assert_eq!(ended(&nobody), said("unavailable", "503"), "no router is there");
    assert!(header(&nobody, "Swb-Call").is_some_and(|call| call.parse::<CallId>().is_ok()));
    let (elsewhere, stranger) = (TenantId(Uuid::new_v4()), AppId(Uuid::new_v4()));
    for (subject, body, headers, expected) in [
        (subject(world.tenant, stranger, "A1"), "", &[][..], said("denied", "403")),
        (subject(elsewhere, app, "A1"), "", &[], said("denied", "403")),
        ("swb.app.me.too.call.A1".to_owned(), "", &[], said("malformed", "400")),
        (subject(world.tenant, app, "A9"), "", &[], said("unknown_device", "404")),
        (own.clone(), r#"{"timeout":1}"#, &[], said("malformed", "400")),
        (own.clone(), "", &[("Swb-Timeout", "0")], said("malformed", "400")),
    ] {
        let refused = asked_over_nats(&client, subject.clone(), headers, body).await;
        assert_eq!(ended(&refused), expected, "{subject} {body}");
        assert!(header(&refused, "Nats-Service-Error").is_some_and(|text| !text.is_empty()));
    }

    let mut router = world.bus.serve(world.bus.subjects().route(), Some("router")).await.unwrap();
    let headers = [("Swb-Timeout", "3000"), ("Swb-Connect-Timeout", "0")];
    let body = r#"{"method":"blink","params":{"a" : 1.50}}"#;
    let (answer, ()) = tokio::join!(asked_over_nats(&client, own.clone(), &headers, body), async {
        let (routed, body) = wire::decode::<Routed>(&router.next().await.unwrap().message).unwrap();
        let caller = AppCaller { app, key: None, method: "blink".into(), late: None };
        assert_eq!((routed.call.app.as_ref(), routed.call.target), (Some(&caller), a1.id));
        assert_eq!(&body[..], br#"{"a" : 1.50}"#, "byte for byte");
        assert!((2_000..=3_000).contains(&routed.call.budget_ms.as_ms()));
        let ended = (&Outcome::Answered, Outcome::Answered.seen());
        world.bus.tell_app(routed.reply_to, Some(routed.call.call), ended, "[1]".into()).await.unwrap();
    });
    assert_eq!(&answer.payload[..], b"[1]");
    assert_eq!(ended(&answer), ("answered".to_owned(), "yes".to_owned(), String::new()));

    // It has no key there, so none ends it; it itself does.
    world.registry.revoke_key(app, key.id()).await.unwrap();
    let busy = async {
        loop {
            let refused = asked_over_nats(&client, own.clone(), &[], "[]").await;
            if ended(&refused) != said("malformed", "400") {
                return refused;
            }
        }
    };
    let busy = tokio::time::timeout(WAIT, busy).await.expect("its rate is no limit");
    assert_eq!((ended(&busy), header(&busy, "Swb-Limit")), (said("busy", "429"), Some("app_call_rate")));
    world.registry.remove_app(app).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(2);
    while ended(&asked_over_nats(&client, own.clone(), &[], "").await) != said("denied", "403") {
        assert!(Instant::now() < deadline, "an application that was removed still calls");
    }

    for (verb, kind) in [("PING", "ping"), ("INFO", "info"), ("STATS.switchboard", "stats")] {
        let found = asked_over_nats(&client, format!("$SRV.{verb}"), &[], "").await;
        let found: serde_json::Value = serde_json::from_slice(&found.payload).unwrap();
        assert_eq!(found["type"], format!("io.nats.micro.v1.{kind}_response"));
        if kind == "stats" {
            assert!(found["endpoints"][0]["num_requests"].as_u64() >= Some(9), "{found}");
        }
    }
    // Who looks for services chooses where the answer goes; it goes to inboxes alone.
    let mut thief = client.subscribe("swb.route").await.unwrap();
    client.publish_with_reply("$SRV.PING", "swb.route", "".into()).await.unwrap();
    asked_over_nats(&client, "$SRV.PING".to_owned(), &[], "").await;
    assert!(futures::FutureExt::now_or_never(thief.next()).is_none());
    running.stop().await;
    world.server.stop().await;
}

#[tokio::test]
async fn a_change_that_the_feed_did_not_bring_is_in_force_after_two_seconds_all_the_same() {
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await;
    let a2 = world.add("A2", Some(world.customer)).await;
    let running = start(&world, |_| ()).await;
    let asked = Call { ticket: world.ticket(a1.id).await, ..call(a1.id, a2.id) };
    assert_eq!(world.call(&asked).await, Outcome::Unavailable, "allowed, and no router is there");

    // The store forgets who follows it, and says so to nobody.
    let ask = async |operation: &str| {
        let subject = format!("$JS.API.CONSUMER.{operation}");
        let reply = world.bus.ask(subject, Bytes::new(), WAIT).await.unwrap();
        serde_json::from_slice::<serde_json::Value>(&reply).unwrap()
    };
    for consumer in ask("NAMES.KV_swb_devices").await["consumers"].as_array().unwrap() {
        ask(&format!("DELETE.KV_swb_devices.{}", consumer.as_str().unwrap())).await;
    }
    world.registry.change_device(a2.id, &DeviceChange::assigned(None), None).await.unwrap();
    // The promise is of two seconds: that is waited for, not hoped for.
    tokio::time::sleep(Duration::from_millis(2_050)).await;
    assert_eq!(world.call(&asked).await, Outcome::Denied);
    running.stop().await;
    world.server.stop().await;
}

/// All denials in the audit, oldest first, each chain whole.
async fn audited(world: &World) -> Vec<Record> {
    let bounds = Bounds { max_age: Duration::from_secs(3_600), max_bytes: 1 << 20 };
    let log = AuditLog::new(&world.bus, Book::Denials, "reader".to_owned(), bounds);
    let stored = log.page(None, From::Sequence(1)).await.unwrap().records;
    for tenant in [world.tenant, NO_TENANT] {
        let mut chain = Chain::new(None);
        stored.iter().filter(|stored| stored.tenant == tenant).for_each(|stored| chain.take(stored));
        assert_eq!(chain.end(log.limits().await.unwrap()).breaks, []);
    }
    stored.iter().map(|stored| stored.record().unwrap()).collect()
}

#[tokio::test]
async fn every_denial_has_a_record_or_is_counted_in_one() {
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await.id;
    let loose = world.add("Loose", None).await.id;
    let running = start(&world, |settings| settings.audit.denials_per_second = 5).await;
    let nobody = DeviceId(Uuid::from_u128(9));
    assert_eq!(world.call(&call(a1, loose)).await, Outcome::Denied);
    assert_eq!(world.call(&call(a1, nobody)).await, Outcome::UnknownDevice);
    assert_eq!(world.list(&list(loose)).await.0, Outcome::Denied);
    let unknown = Token::generate().unwrap().credential();
    assert_eq!(world.authenticate(unknown).await, AuthenticateReply::Refused);
    let forged = world.ticket(loose).await;
    assert_eq!(world.call(&Call { ticket: forged, ..call(a1, a1) }).await, Outcome::Unavailable);
    for _ in 0..20 {
        assert_eq!(world.call(&call(a1, loose)).await, Outcome::Denied);
    }
    running.stop().await;

    let records = audited(&world).await;
    let told: Vec<_> = records
        .iter()
        .map(|it| {
            (it.entry.kind.as_str(), it.entry.devices.as_slice(), it.entry.why.as_str(), it.entry.version)
        })
        .collect();
    for expected in [
        ("denied.call", [a1, loose].as_slice(), "not_allowed", Some(0)),
        ("denied.call", &[a1, nobody], "unknown_target", Some(0)),
        ("denied.list", &[loose], "not_allowed", Some(0)),
        ("denied.token", &[], "no device has it", None),
        ("denied.ticket", &[a1], "forged", None),
    ] {
        assert!(told.contains(&expected), "{expected:?} is not in {told:?}");
    }
    assert!(records.iter().all(|it| it.entry.from == format!("node {NODE}") || it.entry.left_out > 0));
    let own: Vec<_> = records.iter().filter(|it| it.tenant == world.tenant).collect();
    let counted: u64 =
        own.iter().map(|it| u64::from(it.entry.kind != "denied.left-out") + it.entry.left_out).sum();
    assert_eq!(counted, 24, "each has a record or is counted in one");
    // Five a second, and the machine may be slow.
    assert!(own.len() < 24, "{told:?}");
    world.server.stop().await;
}

#[tokio::test]
async fn calls_are_judged_while_the_audit_takes_nothing() {
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await.id;
    let loose = world.add("Loose", None).await.id;
    let running = start(&world, |settings| {
        settings.audit.max_queued_records = 1;
        settings.audit.denials_per_second = 1_000;
        // More than the server has: no stream can be made.
        settings.audit.max_denied_bytes = 1_099_511_627_776;
    })
    .await;
    let started = Instant::now();
    for _ in 0..200 {
        assert_eq!(world.call(&call(a1, loose)).await, Outcome::Denied);
    }
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    running.stop().await;
    world.server.stop().await;
}

/// Makes the built-in rule, written as a policy, the tenant's own, with somebody who is asked besides.
async fn ask_besides(world: &World, version: u64, point: &str, timeout_ms: u32) {
    let policies = Policies::open(&world.bus).await.unwrap();
    let set = StoredSet {
        version,
        utc_offset_min: 0,
        texts: [("built-in".to_owned(), switchboard_authorizer::policy::BUILT_IN.to_owned())].into(),
        at_ms: 0,
        who: String::new(),
        why: String::new(),
        external: Some(External { point: point.parse().unwrap(), timeout_ms }),
    };
    policies.replace(world.tenant, &set).await.unwrap();
}

/// A tenant's decision point, which says what it is told to say, or has who asks wait; counts how often it was asked.
struct Decider {
    says: Arc<Mutex<&'static str>>,
    wait: Arc<Mutex<Vec<Subject>>>,
    asked: Arc<AtomicUsize>,
}

impl Decider {
    async fn start(world: &World) -> Self {
        let subject = world.bus.subjects().external_decision(world.tenant, "quota");
        let mut questions = world.bus.serve(subject, Some("quota")).await.unwrap();
        let (says, wait, asked) = (Arc::new(Mutex::new("{}")), Arc::default(), Arc::default());
        let decider = Decider { says: Arc::clone(&says), wait: Arc::clone(&wait), asked: Arc::clone(&asked) };
        let bus = world.bus.clone();
        tokio::spawn(async move {
            while let Some(question) = questions.next().await {
                let (answer, inbox) = (*says.lock().unwrap(), question.reply_to.unwrap());
                if answer.is_empty() {
                    wait.lock().unwrap().push(inbox);
                    asked.fetch_add(1, Ordering::Relaxed);
                } else {
                    asked.fetch_add(1, Ordering::Relaxed);
                    bus.tell(inbox, Bytes::from(answer)).await.unwrap();
                }
            }
        });
        decider
    }

    fn say(&self, answer: &'static str) {
        *self.says.lock().unwrap() = answer;
    }

    async fn tell_who_waits(&self, world: &World) {
        let (answer, wait) = (*self.says.lock().unwrap(), std::mem::take(&mut *self.wait.lock().unwrap()));
        for inbox in wait {
            world.bus.tell(inbox, Bytes::from(answer)).await.unwrap();
        }
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

#[tokio::test]
async fn who_is_asked_besides_has_to_say_yes() {
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await.id;
    let a2 = world.add("A2", Some(world.customer)).await.id;
    let loose = world.add("Loose", None).await.id;
    ask_besides(&world, 1, "nats:quota", 200).await;
    let running = start(&world, |_| ()).await;
    let judged = async || world.call(&call(a1, a2)).await;
    // No router is there: a call that is allowed ends as Unavailable.
    let allowed = Outcome::Unavailable;
    assert_eq!(judged().await, Outcome::Denied, "nobody listens");

    let decider = Decider::start(&world).await;
    for (answer, outcome) in [
        (r#"{"decision":true}"#, allowed.clone()),
        (r#"{"decision":false,"context":{"reason":"quota used up"}}"#, Outcome::Denied),
        (r#"{"decision":"true"}"#, Outcome::Denied),
        ("nonsense", Outcome::Denied),
        (r#"{"decision":true,"context":{"ttl_ms":0}}"#, allowed.clone()),
        // Silence.
        ("", Outcome::Denied),
    ] {
        decider.say(answer);
        assert_eq!((judged().await, decider.asked()), (outcome, 1), "{answer}");
    }
    decider.say(r#"{"decision":true}"#);
    assert_eq!(world.call(&call(a1, loose)).await, Outcome::Denied);
    assert_eq!(world.list(&list(a1)).await.0, Outcome::Answered);
    assert_eq!(decider.asked(), 0, "only about calls, and only those that the policies permit");

    // An answer that holds is not asked for again, for calls that differ in nothing else than size and time.
    decider.say(r#"{"decision":false,"context":{"ttl_ms":60000}}"#);
    assert_eq!(judged().await, Outcome::Denied);
    decider.say(r#"{"decision":true}"#);
    let quick = Call { budget_ms: Budget::from_ms(3_000), ..call(a1, a2) };
    assert_eq!((world.call(&quick).await, decider.asked()), (Outcome::Denied, 1));
    let oneway = Call { oneway: true, ..call(a1, a2) };
    assert_eq!((world.call(&oneway).await, decider.asked()), (allowed, 1));
    running.stop().await;

    let whys: Vec<_> = audited(&world).await.into_iter().map(|it| it.entry.why).collect();
    for why in ["external_missing", "external_denied: quota used up", "external_malformed", "external_late"] {
        assert!(whys.iter().any(|it| it == why), "{why}: {whys:?}");
    }
    world.server.stop().await;
}

#[tokio::test]
async fn others_do_not_wait_for_a_point_that_is_slow_and_it_is_left_alone_when_it_fails() {
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await.id;
    let a2 = world.add("A2", Some(world.customer)).await.id;
    let loose = world.add("Loose", None).await.id;
    // Longer than a tenant may have it: nothing of this is to end by time.
    ask_besides(&world, 1, "nats:quota", 10_000).await;
    let running = start(&world, |settings| settings.authorizer.max_external_questions = 250).await;
    let decider = Decider::start(&world).await;
    decider.say("");
    let ticket = world.ticket(a1).await;
    let asked = Call { ticket, budget_ms: Budget::from_ms(60_000), ..call(a1, a2) };
    let volley = |asked: Call| -> Vec<_> {
        let spawn = |_| {
            let (bus, message) = (world.bus.clone(), wire::encode(&asked, b"{}"));
            tokio::spawn(async move {
                let reply = bus.ask(bus.subjects().call(), message, WAIT * 3).await.unwrap();
                wire::decode::<Outcome>(&reply).unwrap().0
            })
        };
        (0..25).map(spawn).collect()
    };
    let waiting = volley(asked.clone());
    let deadline = Instant::now() + WAIT;
    while decider.asked.load(Ordering::Relaxed) < 25 {
        assert!(Instant::now() < deadline, "not all are asked at once");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(world.call(&call(a1, loose)).await, Outcome::Denied);
    assert_eq!(world.call(&call(a1, a2)).await, Outcome::Denied, "one more than may wait");
    assert!(!waiting.iter().any(JoinHandle::is_finished), "both came after one that waits");
    let failing_since = Instant::now();
    decider.say("nonsense");
    decider.tell_who_waits(&world).await;
    for waiting in waiting {
        assert_eq!(waiting.await.unwrap(), Outcome::Denied);
    }
    decider.asked();
    for denied in volley(asked.clone()) {
        assert_eq!(denied.await.unwrap(), Outcome::Denied, "it failed just now");
    }
    let tries = failing_since.elapsed().as_secs();
    assert!(decider.asked() as u64 <= tries, "one question tries each second, and no other");
    decider.say(r#"{"decision":true}"#);
    let deadline = Instant::now() + WAIT;
    while world.call(&asked).await == Outcome::Denied {
        assert!(Instant::now() < deadline, "it is never tried again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(decider.asked(), 1);

    // Calls in a hurry leave it too little time, and say nothing of it.
    decider.say("");
    for hurried in volley(Call { budget_ms: Budget::from_ms(2_000), ..asked.clone() }) {
        assert_eq!(hurried.await.unwrap(), Outcome::Denied);
    }
    decider.say(r#"{"decision":true}"#);
    assert_eq!(world.call(&asked).await, Outcome::Unavailable, "it is asked as ever");
    running.stop().await;

    let whys: Vec<_> = audited(&world).await.into_iter().map(|it| it.entry.why).collect();
    for why in ["external_late", "external_busy"] {
        assert!(whys.iter().any(|it| it == why), "{why}: {whys:?}");
    }
    world.server.stop().await;
}

#[tokio::test]
async fn a_point_over_http_speaks_authzen_and_only_where_the_settings_allow() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let world = World::new().await;
    let a1 = world.add("A1", Some(world.customer)).await.id;
    let a2 = world.add("A2", Some(world.customer)).await.id;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    ask_besides(&world, 1, &format!("http://{address}/access/v1/evaluation"), 500).await;
    let answers = [
        ("200 OK", r#"{"decision": true}"#, Outcome::Unavailable),
        ("200 OK", r#"{"decision": false}"#, Outcome::Denied),
        ("200 OK", "<html>", Outcome::Denied),
        ("403 Forbidden", r#"{"decision": true}"#, Outcome::Denied),
        ("500 Internal Server Error", r#"{"decision": true}"#, Outcome::Denied),
        ("302 Found", r#"{"decision": true}"#, Outcome::Denied),
    ];
    let server = tokio::spawn({
        let answers = answers.clone();
        async move {
            let mut heads = Vec::new();
            for (status, body, _) in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut request = Vec::new();
                // The body is the rest of a document that ends with its outermost bracket.
                while !request.ends_with(b"}}") {
                    let mut part = [0; 4_096];
                    let read = stream.read(&mut part).await.unwrap();
                    request.extend_from_slice(&part[..read]);
                }
                let length = body.len();
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}");
                stream.write_all(answer.as_bytes()).await.unwrap();
                heads.push(String::from_utf8(request).unwrap());
            }
            heads
        }
    });
    let running = start(&world, |_| ()).await;
    assert_eq!(world.call(&call(a1, a2)).await, Outcome::Denied, "no origin is allowed");
    running.stop().await;
    let running =
        start(&world, |settings| settings.authorizer.external_origins = Some(format!("http://{address}")))
            .await;
    for (status, body, outcome) in answers {
        assert_eq!(world.call(&call(a1, a2)).await, outcome, "{status} {body}");
    }
    running.stop().await;
    let asked = server.await.unwrap();
    let (head, body) = asked[0].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /access/v1/evaluation HTTP/1.1\r\n"), "{head}");
    assert!(
        head.contains("content-type: application/json\r\n") && head.contains(&format!("host: {address}"))
    );
    let body: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!((&body["action"]["name"], &body["subject"]["id"]), (&"call".into(), &a1.to_string().into()));
    let whys: Vec<_> = audited(&world).await.into_iter().map(|it| it.entry.why).collect();
    assert!(whys.iter().any(|it| it == "external_forbidden"), "{whys:?}");
    world.server.stop().await;
}
