//! Does the registry hold what it promises, on a real nats-server? Uniqueness, order of writes, bulk, and outages.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking; clippy knows only those who bear the attribute, not their helpers"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::future::pending;
use std::path::Path;
use std::time::Duration;

use bus::registry::{
    Added, App, AppKey, Change, Customer, DeviceChange, Kind, NewDevice, NewKey, Registry, RegistryError,
    RegistryWatch, Tenant, Token, credential_of,
};
use bus::server::{NatsServer, ServerOptions, find_binary};
use bus::{Bus, BusSettings};
use futures::StreamExt;
use rpc::{AppId, CredentialHash, CustomerId, DeviceId, Role, TenantId};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

async fn server(options: ServerOptions) -> NatsServer {
    let binary = find_binary().expect("nats-server is needed: on the PATH or named by NATS_SERVER");
    NatsServer::start(&ServerOptions { binary, ..options }).await.unwrap()
}

async fn connect(server: &NatsServer) -> Bus {
    let settings = BusSettings { url: server.url(), ..BusSettings::default() };
    Bus::connect(&settings, "test").await.unwrap()
}

struct Account {
    registry: Registry,
    tenant: TenantId,
    customer: CustomerId,
}

async fn account(bus: &Bus) -> Account {
    let registry = Registry::open(bus).await.unwrap();
    let (tenant, customer) = (TenantId(Uuid::new_v4()), CustomerId(Uuid::new_v4()));
    registry.add_tenant(tenant, &Tenant { name: "Tenant".into() }).await.unwrap();
    registry.add_customer(customer, &Customer { tenant, name: "Customer A".into() }).await.unwrap();
    Account { registry, tenant, customer }
}

impl Account {
    fn device(&self, name: &str) -> NewDevice {
        NewDevice {
            id: DeviceId(Uuid::new_v4()),
            tenant: self.tenant,
            customer: Some(self.customer),
            name: name.into(),
            kind: "default".to_owned(),
            labels: BTreeMap::new(),
            token: Token::generate().unwrap(),
        }
    }
}

#[tokio::test]
async fn a_device_and_a_customer_are_found_by_their_names_alone() {
    let server = server(ServerOptions::default()).await;
    let bus = connect(&server).await;
    let account = account(&bus).await;
    let registry = &account.registry;
    let other = TenantId(Uuid::new_v4());
    registry.add_tenant(other, &Tenant { name: "Other".into() }).await.unwrap();
    let (a1, a2) = (account.device("A1"), account.device("A * > 2"));
    let foreign = NewDevice { tenant: other, customer: None, ..account.device("A1") };
    for device in [&a1, &a2, &foreign] {
        registry.add_device(device).await.unwrap();
    }
    let named = async |name: &str| {
        let found = registry.devices_named(name).await.unwrap();
        found.into_iter().map(|(id, _)| id).collect::<BTreeSet<_>>()
    };
    assert_eq!(named("A1").await, [a1.id, foreign.id].into());
    assert_eq!(named("A * > 2").await, [a2.id].into());
    assert_eq!(registry.device_named(other, "A1").await.unwrap().unwrap().0, foreign.id);
    registry.remove_device(foreign.id, None).await.unwrap();
    registry.change_device(a2.id, &DeviceChange::named("A3"), None).await.unwrap();
    assert_eq!((named("A1").await, named("A * > 2").await), ([a1.id].into(), BTreeSet::new()));
    assert_eq!(named("A3").await, [a2.id].into());

    let (customer, _) = registry.customer_named(account.tenant, "Customer A").await.unwrap().unwrap();
    assert_eq!(customer, account.customer);
    assert!(registry.customer_named(other, "Customer A").await.unwrap().is_none());
    let (_, device) = registry.device_named(account.tenant, "A1").await.unwrap().unwrap();
    let places = registry.places_of(&device).await.unwrap();
    assert!(places.tenants.contains_key(&account.tenant) && places.customers.contains_key(&customer));
    assert!(registry.load_places().await.unwrap().devices.is_empty());
    let mut seen = BTreeSet::new();
    registry.each_device(|id, _| _ = seen.insert(id)).await.unwrap();
    assert_eq!(seen, [a1.id, a2.id].into());
}

#[tokio::test]
async fn names_ids_and_tokens_are_unique_and_come_free_again() {
    let server = server(ServerOptions::default()).await;
    let bus = connect(&server).await;
    let account = account(&bus).await;
    let registry = &account.registry;

    let a1 = account.device("A1");
    assert_eq!(registry.add_device(&a1).await.unwrap(), Added::Created);
    assert_eq!(registry.add_device(&a1).await.unwrap(), Added::Unchanged, "the same again");

    let taken = |result: Result<Added, RegistryError>| match result {
        Err(RegistryError::Taken { what, holder }) => (what, holder),
        other => panic!("{other:?}"),
    };
    let same_name = account.device("A1");
    assert_eq!(taken(registry.add_device(&same_name).await), ("name", a1.id.0));
    let same_id = NewDevice { id: a1.id, ..account.device("A2") };
    assert_eq!(taken(registry.add_device(&same_id).await), ("id", a1.id.0));
    let same_token = NewDevice { token: a1.token.clone(), ..account.device("A2") };
    assert_eq!(taken(registry.add_device(&same_token).await), ("token", a1.id.0));
    assert!(registry.device(same_token.id).await.unwrap().is_none(), "rolled back");
    assert_eq!(registry.load().await.unwrap().devices.len(), 1);

    // What refused additions had taken is free.
    let a2 = account.device("A2");
    assert_eq!(registry.add_device(&a2).await.unwrap(), Added::Created);
    assert!(matches!(
        registry.change_device(a2.id, &DeviceChange::named("A1"), None).await,
        Err(RegistryError::Taken { what: "name", .. })
    ));
    assert_eq!(registry.change_device(a2.id, &DeviceChange::named("A3"), None).await.unwrap().name, "A3");
    assert_eq!(registry.add_device(&account.device("A2")).await.unwrap(), Added::Created);
    registry.remove_device(a1.id, None).await.unwrap();
    let again = NewDevice { id: a1.id, token: a1.token.clone(), ..account.device("A1") };
    assert_eq!(registry.add_device(&again).await.unwrap(), Added::Created);

    // A token can be handed on, and the one before comes free.
    let (old, new) = (a2.token.clone(), Token::generate().unwrap());
    assert_eq!(registry.rotate_token(a2.id, &new).await.unwrap().credential, new.credential());
    assert!(matches!(
        registry.rotate_token(again.id, &new).await,
        Err(RegistryError::Taken { what: "token", holder }) if holder == a2.id.0
    ));
    registry.rotate_token(again.id, &old).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn tenants_and_customers_bound_devices() {
    let server = server(ServerOptions::default()).await;
    let bus = connect(&server).await;
    let account = account(&bus).await;
    let registry = &account.registry;
    let other_tenant = TenantId(Uuid::new_v4());
    registry.add_tenant(other_tenant, &Tenant { name: "Other".into() }).await.unwrap();
    let foreign = CustomerId(Uuid::new_v4());
    // The same name in another tenant is another name.
    let record = Customer { tenant: other_tenant, name: "Customer A".into() };
    registry.add_customer(foreign, &record).await.unwrap();

    let a1 = account.device("A1");
    registry.add_device(&a1).await.unwrap();
    let stray = NewDevice { customer: Some(foreign), ..account.device("A2") };
    assert!(matches!(registry.add_device(&stray).await, Err(RegistryError::ForeignCustomer(_))));
    assert!(matches!(
        registry.change_device(a1.id, &DeviceChange::assigned(Some(foreign)), None).await,
        Err(RegistryError::ForeignCustomer(_))
    ));
    let nobody = CustomerId(Uuid::new_v4());
    assert!(matches!(
        registry.change_device(a1.id, &DeviceChange::assigned(Some(nobody)), None).await,
        Err(RegistryError::Missing { kind: Kind::Customer, .. })
    ));

    assert!(matches!(
        registry.remove_customer(account.customer).await,
        Err(RegistryError::StillUsed { kind: Kind::Customer, devices: 1, .. })
    ));
    assert!(matches!(
        registry.remove_tenant(account.tenant).await,
        Err(RegistryError::StillUsed { kind: Kind::Tenant, customers: 1, devices: 1 })
    ));
    assert_eq!(
        registry.change_device(a1.id, &DeviceChange::assigned(None), None).await.unwrap().customer,
        None
    );
    assert_eq!(
        registry
            .change_device(a1.id, &DeviceChange::assigned(Some(account.customer)), None)
            .await
            .unwrap()
            .customer,
        Some(account.customer)
    );
    registry.remove_device(a1.id, None).await.unwrap();
    registry.rename_customer(account.customer, "Customer B", None).await.unwrap();
    registry.remove_customer(account.customer).await.unwrap();
    registry.rename_tenant(account.tenant, "Renamed", None).await.unwrap();
    registry.remove_tenant(account.tenant).await.unwrap();
    let left = registry.load().await.unwrap();
    assert_eq!((left.tenants.len(), left.customers.len(), left.devices.len()), (1, 1, 0));
    server.stop().await;
}

/// What a watch says, gathered.
#[derive(Default)]
struct Seen {
    devices: HashMap<DeviceId, String>,
    credentials: HashMap<CredentialHash, DeviceId>,
}

impl Seen {
    /// Follows `watch` until it says what `until` waits for.
    async fn follow(&mut self, watch: &mut RegistryWatch, mut until: impl FnMut(&Seen, &Change) -> bool) {
        let follow = async {
            loop {
                let change = watch.next().await;
                match change.clone() {
                    Change::Loading => *self = Seen::default(),
                    Change::Device(id, Some(device)) => {
                        self.devices.insert(id, device.name);
                    }
                    Change::Device(id, None) => {
                        self.devices.remove(&id);
                    }
                    Change::Credential(hash, Some(device)) => {
                        self.credentials.insert(hash, device);
                    }
                    Change::Credential(hash, None) => {
                        self.credentials.remove(&hash);
                    }
                    Change::Tenant(..)
                    | Change::Customer(..)
                    | Change::Loaded
                    | Change::Beat(_)
                    | Change::Confirmed
                    | Change::App(..)
                    | Change::Lost
                    | Change::Resumed => {}
                }
                if until(self, &change) {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), follow).await.expect("the watch says nothing of it");
    }
}

#[tokio::test]
async fn a_watch_loads_an_empty_bucket_and_follows_every_change() {
    let server = server(ServerOptions::default()).await;
    let bus = connect(&server).await;
    let mut watch = Registry::watch(&bus);
    let mut seen = Seen::default();
    seen.follow(&mut watch, |_, change| *change == Change::Loaded).await;
    assert!(seen.devices.is_empty());

    let account = account(&bus).await;
    let a1 = account.device("A1");
    account.registry.add_device(&a1).await.unwrap();
    let hash = a1.token.credential();
    seen.follow(&mut watch, |seen, _| seen.credentials.get(&hash) == Some(&a1.id)).await;
    assert_eq!(seen.devices.get(&a1.id).map(String::as_str), Some("A1"), "the credential is written last");

    let new = Token::generate().unwrap();
    account.registry.rotate_token(a1.id, &new).await.unwrap();
    seen.follow(&mut watch, |seen, _| !seen.credentials.contains_key(&hash)).await;
    assert_eq!(seen.credentials.get(&new.credential()), Some(&a1.id));
    account.registry.remove_device(a1.id, None).await.unwrap();
    seen.follow(&mut watch, |seen, _| !seen.credentials.contains_key(&new.credential())).await;
    assert!(seen.devices.is_empty(), "the record goes first");

    // A bucket that is made anew while the connection stays is noticed.
    account.registry.add_device(&account.device("A2")).await.unwrap();
    seen.follow(&mut watch, |seen, _| seen.devices.len() == 1).await;
    let delete = "$JS.API.STREAM.DELETE.KV_swb_devices";
    bus.ask(delete, bytes::Bytes::new(), Duration::from_secs(5)).await.unwrap();
    seen.follow(&mut watch, |seen, change| *change == Change::Loaded && seen.devices.is_empty()).await;
    server.stop().await;
}

#[tokio::test]
async fn a_watch_opens_although_nobody_waits_for_it_for_long() {
    let server = server(ServerOptions::default()).await;
    let bus = connect(&server).await;
    account(&bus).await;
    let mut watch = Registry::watch(&bus);
    // Over a large registry JetStream takes longer to begin than an authorizer waits for at a time.
    let patience = tokio::time::Instant::now() + Duration::from_secs(20);
    let mut loaded = false;
    while !loaded {
        assert!(tokio::time::Instant::now() < patience, "each wait begins anew");
        loaded = tokio::time::timeout(Duration::ZERO, watch.next()).await == Ok(Change::Loaded);
        tokio::task::yield_now().await;
    }
    server.stop().await;
}

fn options(store: &Path, port: u16) -> ServerOptions {
    ServerOptions { port, store_dir: Some(store.join("js")), ..Default::default() }
}

/// A server over those files, and the registry there.
async fn over(store: &Path) -> (NatsServer, Registry) {
    let server = server(options(store, 0)).await;
    let registry = Registry::open(&connect(&server).await).await.unwrap();
    (server, registry)
}

/// The files as they are, elsewhere.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// What the watch says when it knows all again, and what there is then.
async fn whole(watch: &mut RegistryWatch, seen: &mut Seen) -> (Change, BTreeSet<String>) {
    let (mut is_lost, mut by) = (false, Change::Lost);
    let until = |_: &Seen, change: &Change| {
        is_lost |= *change == Change::Lost;
        by = change.clone();
        is_lost && matches!(change, Change::Loaded | Change::Resumed)
    };
    seen.follow(watch, until).await;
    (by, seen.devices.values().cloned().collect())
}

/// While nobody hears of it, devices come and go: what the watch makes of it.
#[tokio::test]
async fn a_watch_goes_on_where_it_was_or_starts_over_where_that_is_gone() {
    let store = tempfile::tempdir().unwrap();
    let (first, _) = over(store.path()).await;
    let port = first.port();
    let bus = connect(&first).await;
    let Account { registry, tenant, customer } = account(&bus).await;
    let device = |name: &str| Account { registry: registry.clone(), tenant, customer }.device(name);
    let [a1, a2, a3, a4] = ["A1", "A2", "A3", "A4"].map(device);
    registry.add_device(&a1).await.unwrap();
    registry.add_device(&a2).await.unwrap();
    let (mut watch, mut seen) = (Registry::watch(&bus), Seen::default());
    seen.follow(&mut watch, |_, change| *change == Change::Loaded).await;
    first.stop().await;

    let names = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>();
    let (apart, elsewhere) = over(store.path()).await;
    elsewhere.remove_device(a1.id, None).await.unwrap();
    elsewhere.add_device(&a3).await.unwrap();
    apart.stop().await;
    let again = server(options(store.path(), port)).await;
    assert_eq!(whole(&mut watch, &mut seen).await, (Change::Resumed, names(&["A2", "A3"])));
    assert!(seen.credentials.contains_key(&a3.token.credential()), "what was written last");
    again.stop().await;

    // What was told last is written again: what stood before it nobody knows.
    let (apart, elsewhere) = over(store.path()).await;
    elsewhere.remove_device(a3.id, None).await.unwrap();
    apart.stop().await;
    let again = server(options(store.path(), port)).await;
    assert_eq!(whole(&mut watch, &mut seen).await, (Change::Loaded, names(&["A2"])));
    again.stop().await;

    // The store loses its last writings, and gives their numbers to others.
    let kept = tempfile::tempdir().unwrap();
    copy(store.path(), kept.path());
    let again = server(options(store.path(), port)).await;
    assert_eq!(whole(&mut watch, &mut seen).await, (Change::Resumed, names(&["A2"])));
    registry.add_device(&a3).await.unwrap();
    seen.follow(&mut watch, |seen, _| seen.credentials.contains_key(&a3.token.credential())).await;
    again.stop().await;
    std::fs::remove_dir_all(store.path().join("js")).unwrap();
    copy(kept.path(), store.path());
    let (apart, elsewhere) = over(store.path()).await;
    elsewhere.add_device(&a4).await.unwrap();
    apart.stop().await;
    let again = server(options(store.path(), port)).await;
    assert_eq!(whole(&mut watch, &mut seen).await, (Change::Loaded, names(&["A2", "A4"])));
    again.stop().await;

    // It loses all, and the watch goes on with what comes then.
    std::fs::remove_dir_all(store.path().join("js")).unwrap();
    let again = server(options(store.path(), port)).await;
    assert_eq!(whole(&mut watch, &mut seen).await, (Change::Loaded, names(&[])));
    let account = account(&bus).await;
    account.registry.add_device(&account.device("A9")).await.unwrap();
    seen.follow(&mut watch, |seen, _| seen.devices.len() == 1).await;
    again.stop().await;
}

/// A way to NATS on which what is said of watches can be held up.
struct Gate {
    url: String,
    passes: tokio::sync::watch::Sender<Passes>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passes {
    All,
    /// What a watch delivers is held up, as by a store that is busy with others.
    AllButDeliveries,
    /// And what is answered about one, as by a cluster that has lost the server of the watch and no other.
    NothingOfWatches,
}

impl Gate {
    async fn before(server: &NatsServer) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("nats://{}", listener.local_addr().unwrap());
        let (passes, passing) = tokio::sync::watch::channel(Passes::All);
        let address = ("127.0.0.1", server.port());
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = TcpStream::connect(address).await.unwrap().into_split();
                tokio::spawn(async move {
                    let (mut from, mut to) = (from_client, to_server);
                    tokio::io::copy(&mut from, &mut to).await
                });
                tokio::spawn(Self::pass(BufReader::new(from_server), to_client, passing.clone()));
            }
        });
        Gate { url, passes }
    }

    async fn pass(
        mut from: BufReader<OwnedReadHalf>,
        mut to: OwnedWriteHalf,
        mut passing: tokio::sync::watch::Receiver<Passes>,
    ) {
        let mut held = Vec::new();
        loop {
            let mut frame = Vec::new();
            let is_open = async {
                passing.wait_for(|passes| *passes == Passes::All).await.unwrap();
            };
            let is_released = tokio::select! {
                biased;
                () = is_open, if !held.is_empty() => true,
                some = from.fill_buf() => {
                    if some.unwrap().is_empty() {
                        return;
                    }
                    false
                }
            };
            if is_released {
                to.write_all(&std::mem::take(&mut held)).await.unwrap();
                continue;
            }
            from.read_until(b'\n', &mut frame).await.unwrap();
            let line = String::from_utf8_lossy(&frame).into_owned();
            let words: Vec<&str> = line.split_whitespace().collect();
            if matches!(words[0], "MSG" | "HMSG") {
                let bytes: usize = words.last().unwrap().parse().unwrap();
                let body = frame.len();
                frame.resize(body + bytes + 2, 0);
                from.read_exact(&mut frame[body..]).await.unwrap();
                // What changes bears the key; the store's own words, where they are to go.
                let is_delivered = ["$KV.", "swb.feed."].iter().any(|head| words[1].starts_with(head));
                let is_answer = String::from_utf8_lossy(&frame).contains("consumer_create_response");
                let is_held = match *passing.borrow() {
                    Passes::All => false,
                    Passes::AllButDeliveries => is_delivered,
                    Passes::NothingOfWatches => is_delivered || is_answer,
                };
                if is_held {
                    held.extend(frame);
                    continue;
                }
            }
            to.write_all(&frame).await.unwrap();
        }
    }
}

/// A store that others keep busy is not asked to begin anew, which would keep it busier: only one that has ended the
/// watch is.
#[tokio::test]
async fn a_watch_that_the_store_still_has_is_not_begun_again() {
    let server = server(ServerOptions::default()).await;
    let gate = Gate::before(&server).await;
    let account = account(&connect(&server).await).await;
    account.registry.add_device(&account.device("A1")).await.unwrap();
    let settings = BusSettings { url: gate.url.clone(), ..BusSettings::default() };
    let behind = Bus::connect(&settings, "test").await.unwrap();
    let (mut watch, mut seen) = (Registry::watch(&behind), Seen::default());
    seen.follow(&mut watch, |_, change| *change == Change::Loaded).await;

    let client = async_nats::connect(server.url()).await.unwrap();
    let ours = format!("w{}_", behind.process());
    let watches = async || {
        let subject = "$JS.API.CONSUMER.NAMES.KV_swb_devices";
        let answer = client.request(subject, "".into()).await.unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
        let names = answer["consumers"].as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned());
        names.filter(|name| name.starts_with(&ours)).collect()
    };
    let before: Vec<String> = watches().await;
    assert_eq!(before.len(), 1);
    let mut questions = client.subscribe("$JS.API.CONSUMER.CREATE.KV_swb_devices.*").await.unwrap();
    gate.passes.send_replace(Passes::AllButDeliveries);
    account.registry.add_device(&account.device("A2")).await.unwrap();
    let question = tokio::time::timeout(Duration::from_secs(30), questions.next()).await.unwrap().unwrap();
    assert!(String::from_utf8_lossy(&question.payload).contains(r#""action":"update""#));
    gate.passes.send_replace(Passes::All);
    let mut told = Vec::new();
    seen.follow(&mut watch, |seen, change| {
        told.push(change.clone());
        seen.devices.len() == 2
    })
    .await;
    assert!(!told.contains(&Change::Lost), "{told:?}");
    assert_eq!(watches().await, before);

    gate.passes.send_replace(Passes::AllButDeliveries);
    client.request(format!("$JS.API.CONSUMER.DELETE.KV_swb_devices.{}", before[0]), "".into()).await.unwrap();
    account.registry.add_device(&account.device("A3")).await.unwrap();
    seen.follow(&mut watch, |_, change| *change == Change::Lost).await;
    gate.passes.send_replace(Passes::All);
    seen.follow(&mut watch, |_, change| *change == Change::Resumed).await;
    assert_eq!(seen.devices.len(), 3);
    assert_ne!(watches().await, before);
}

/// A watch lives on one server, also where three keep the bucket. Authorizers hold questions for ten seconds only.
#[tokio::test]
async fn a_watch_whose_server_died_is_begun_again_while_the_bucket_answers() {
    let server = server(ServerOptions::default()).await;
    let gate = Gate::before(&server).await;
    let account = account(&connect(&server).await).await;
    let settings = BusSettings { url: gate.url.clone(), ..BusSettings::default() };
    let behind = Bus::connect(&settings, "test").await.unwrap();
    let (mut watch, mut seen) = (Registry::watch(&behind), Seen::default());
    seen.follow(&mut watch, |_, change| *change == Change::Loaded).await;

    gate.passes.send_replace(Passes::NothingOfWatches);
    account.registry.add_device(&account.device("A1")).await.unwrap();
    let lost = seen.follow(&mut watch, |_, change| *change == Change::Lost);
    tokio::time::timeout(Duration::from_secs(15), lost).await.expect("it waits for a server that died");
    gate.passes.send_replace(Passes::All);
    seen.follow(&mut watch, |seen, _| seen.devices.len() == 1).await;
}

#[tokio::test]
async fn applications_have_names_of_their_own_and_two_keys_that_live() {
    let server = server(ServerOptions::default()).await;
    let bus = connect(&server).await;
    let account = account(&bus).await;
    let registry = &account.registry;
    let app = App {
        tenant: account.tenant,
        name: "backend".into(),
        role: Role::Caller,
        all_tenants: false,
        customers: Some([account.customer].into()),
        labels: BTreeMap::new(),
        methods: None,
        networks: None,
        keys: BTreeMap::new(),
    };
    let id = AppId(Uuid::new_v4());
    assert_eq!(registry.add_app(id, &app).await.unwrap(), Added::Created);
    let again = registry.add_app(AppId(Uuid::new_v4()), &app).await.unwrap_err().to_string();
    assert!(again.starts_with("this name is taken"), "{again}");
    let nobodys =
        App { name: "other".into(), customers: Some([CustomerId(Uuid::new_v4())].into()), ..app.clone() };
    let nobodys = registry.add_app(AppId(Uuid::new_v4()), &nobodys).await.unwrap_err().to_string();
    assert!(nobodys.starts_with("there is no customer"), "{nobodys}");
    let empty = App { name: "other".into(), methods: Some([].into()), ..app };
    let empty = registry.add_app(AppId(Uuid::new_v4()), &empty).await.unwrap_err().to_string();
    assert!(empty.starts_with("methods must be 1 to 256"), "{empty}");

    let key = |now_s| NewKey { app: id, key: AppKey::generate().unwrap(), now_s, lasts_s: 100 };
    let (first, second) = (key(1_000), key(1_050));
    registry.add_key(&first).await.unwrap();
    assert_eq!(registry.add_key(&second).await.unwrap().keys.len(), 2);
    let third = registry.add_key(&key(1_099)).await.unwrap_err().to_string();
    assert!(third.contains("2 keys that live"), "{third}");
    let third = key(1_100);
    let keys = registry.add_key(&third).await.unwrap().keys;
    assert_eq!(keys.keys().collect::<BTreeSet<_>>(), [second.key.id(), third.key.id()].iter().collect());
    let kept = registry.revoke_key(id, second.key.id()).await.unwrap().keys;
    assert_eq!(kept.get(&third.key.id()).unwrap().hash, third.key.credential());
    assert_eq!(kept.len(), 1);
    assert!(!serde_json::to_string(&kept).unwrap().contains(third.key.reveal()));

    registry.remove_customer(account.customer).await.unwrap();
    registry.remove_tenant(account.tenant).await.unwrap();
    assert!(registry.load().await.unwrap().apps.is_empty(), "they go with their tenant");
    server.stop().await;
}

#[tokio::test]
async fn a_bulk_import_refuses_rows_one_by_one() {
    let server = server(ServerOptions::default()).await;
    let bus = connect(&server).await;
    let account = account(&bus).await;
    let mut devices: Vec<NewDevice> = (0..1000).map(|n| account.device(&format!("Device {n}"))).collect();
    devices[10].name = "Device 11".into();
    devices[20].name = "\n".into();
    devices[30].tenant = TenantId(Uuid::nil());
    devices[40].token = devices[41].token.clone();
    let mut results: Vec<Option<Result<Added, RegistryError>>> = devices.iter().map(|_| None).collect();
    account
        .registry
        .add_devices(&devices, pending(), |place, added| results[place] = Some(added))
        .await
        .unwrap();
    let refused: Vec<usize> =
        (0..1000).filter(|place| !matches!(results[*place], Some(Ok(Added::Created)))).collect();
    assert_eq!(refused.len(), 4, "{refused:?}");
    assert!(refused.contains(&20) && refused.contains(&30));
    assert!(refused.contains(&10) ^ refused.contains(&11), "one of the two has the name");
    assert!(refused.contains(&40) ^ refused.contains(&41), "one of the two has the token");
    assert_eq!(account.registry.load().await.unwrap().devices.len(), 996);
    server.stop().await;
}

#[tokio::test]
async fn no_token_is_stored_anywhere() {
    let store = tempfile::tempdir().unwrap();
    let server =
        server(ServerOptions { store_dir: Some(store.path().join("js")), ..Default::default() }).await;
    let bus = connect(&server).await;
    let account = account(&bus).await;
    let a1 = account.device("A1");
    account.registry.add_device(&a1).await.unwrap();
    let hash = credential_of(a1.token.reveal().as_bytes());
    assert_eq!(account.registry.device(a1.id).await.unwrap().unwrap().credential, hash);
    server.stop().await;
    let stored = every_byte_below(store.path());
    let holds = |text: &str| stored.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds(hash.as_str()), "this is where it would be");
    assert!(!holds(a1.token.reveal()));
}

fn every_byte_below(folder: &std::path::Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => bytes.extend(every_byte_below(&path)),
            false => bytes.extend(std::fs::read(path).unwrap()),
        }
    }
    bytes
}
