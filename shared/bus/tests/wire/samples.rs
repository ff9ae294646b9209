//! What do services write for each other? One message or record of each kind, with everything in it, and one with no
//! more than it must have.
//!
//! Literals name every field, so that a new one does not compile until its sample has a value.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use bus::audit::{Entry, Previous, Record};
use bus::policies::{External, Point, StoredSet};
use bus::registry::{App, Customer, Device, KeyRecord, Tenant};
use bytes::Bytes;
use rpc::wire::{self, Head};
use rpc::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

/// What was read: what it means, and how it is written again.
pub(crate) type Read = Result<(String, Vec<u8>), String>;

/// One message or record.
pub(crate) struct Sample {
    /// Its type, the variant where it is one of several, and `, least` where all that may be absent is.
    pub(crate) title: String,
    pub(crate) bytes: Vec<u8>,
    /// As Rust prints it.
    pub(crate) means: String,
    /// Reads the same type.
    pub(crate) read: fn(&[u8]) -> Read,
    /// A record of the store or an event, in JSON; else a head, in CBOR.
    pub(crate) is_json: bool,
}

fn head<H: Head + Debug>(title: impl Into<String>, it: H) -> Sample {
    let read = |bytes: &[u8]| {
        let message = Bytes::copy_from_slice(bytes);
        let (it, body) = wire::decode::<H>(&message).map_err(|error| error.to_string())?;
        assert!(body.is_empty(), "a head says itself where it ends");
        Ok((format!("{it:#?}"), wire::encode(&it, b"").to_vec()))
    };
    let (bytes, means) = (wire::encode(&it, b"").to_vec(), format!("{it:#?}"));
    Sample { title: title.into(), bytes, means, read, is_json: false }
}

fn record<R: Serialize + DeserializeOwned + Debug>(title: impl Into<String>, it: R) -> Sample {
    let read = |bytes: &[u8]| {
        let it = serde_json::from_slice::<R>(bytes).map_err(|error| error.to_string())?;
        Ok((format!("{it:#?}"), serde_json::to_vec(&it).map_err(|error| error.to_string())?))
    };
    let bytes = serde_json::to_vec(&it).unwrap();
    Sample { title: title.into(), bytes, means: format!("{it:#?}"), read, is_json: true }
}

fn variants<H: Head + Debug>(of: &str, all: impl IntoIterator<Item = H>) -> Vec<Sample> {
    let named = |it: H| {
        let text = format!("{it:?}");
        let name = text.split(|letter: char| !letter.is_alphanumeric()).next().unwrap_or_default();
        head(format!("{of}::{name}"), it)
    };
    all.into_iter().map(named).collect()
}

const NODE: NodeId = NodeId(0x0101_0101_0101_0101);
const OTHER_NODE: NodeId = NodeId(0x0202_0202_0202_0202);
const SESSION: SessionId = SessionId(0x31);
const CALL: CallId = CallId { node: NODE, serial: 0x32 };
const KEY: KeyId = KeyId(0x33);
const DEVICE: DeviceId = DeviceId(Uuid::from_u128(0xd1));
const OTHER_DEVICE: DeviceId = DeviceId(Uuid::from_u128(0xd2));
const TENANT: TenantId = TenantId(Uuid::from_u128(0xe1));
const CUSTOMER: CustomerId = CustomerId(Uuid::from_u128(0xc1));
const APP: AppId = AppId(Uuid::from_u128(0xa1));
const MS: u64 = 1_790_000_000_000;
const S: u64 = 1_790_000_000;

fn credential() -> CredentialHash {
    CredentialHash::from_digest([0x5a; 32])
}

fn keys() -> TicketKeys {
    TicketKeys::default().rotated([7; 32], S).unwrap()
}

fn ticket() -> Ticket {
    keys().sign(Holder { device: DEVICE, node: NODE, visit: 5 }, Stamp::of(&credential()), S).unwrap()
}

fn party() -> Party {
    Party::of(TENANT, Some(CUSTOMER))
}

fn until() -> Until {
    Until { of: OTHER_NODE, beat: 41, ms: 5_400, asked_us: Some(999_999) }
}

fn app_caller() -> AppCaller {
    AppCaller { app: APP, key: Some(KEY), method: "reboot".into(), late: Some(77) }
}

fn tally() -> Tally {
    let mut tally = Tally::default();
    tally.add(DEVICE, SESSION, Generation(9));
    tally
}

fn held() -> HeldClaim {
    HeldClaim { device: DEVICE, session: SESSION, generation: Generation(9) }
}

fn labels() -> BTreeMap<String, String> {
    [("floor".to_owned(), "3".to_owned())].into()
}

fn whereabouts() -> Whereabouts {
    Whereabouts { node: NODE, protocol: Protocol::Coap, since_ms: Some(MS) }
}

fn last_seen() -> LastSeen {
    LastSeen {
        at_ms: MS + 1,
        node: NODE,
        protocol: Protocol::Http,
        since_ms: Some(MS),
        reason: Some(SessionEnd::Moved),
    }
}

fn bare_last_seen() -> LastSeen {
    LastSeen { since_ms: None, reason: None, ..last_seen() }
}

fn call() -> Call {
    Call {
        call: CALL,
        caller: DEVICE,
        caller_name: "Caller".into(),
        visit: 5,
        ticket: Some(ticket()),
        target: OTHER_DEVICE,
        budget_ms: Budget::from_ms(5_000),
        until: Some(until()),
        connect_budget_ms: Budget::from_ms(4_000),
        protocol: Some(Protocol::Http),
        oneway: true,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        app: Some(app_caller()),
    }
}

fn bare_call() -> Call {
    Call { ticket: None, until: None, protocol: None, traceparent: None, app: None, ..call() }
}

fn identity() -> Identity {
    Identity {
        device: DEVICE,
        tenant: TENANT,
        customer: Some(CUSTOMER),
        name: "Caller".into(),
        ticket: ticket(),
    }
}

fn sought() -> Sought {
    Sought {
        target: Some(Target::Id(DEVICE)),
        customer: Some(CUSTOMER),
        kind: Some("lamp".into()),
        labels: labels(),
        name: "La".into(),
        after: Some("Lamp 1".into()),
        limit: 50,
        seen: true,
    }
}

fn app_device() -> AppDevice {
    AppDevice {
        id: DEVICE,
        name: "Lamp 2".into(),
        kind: "lamp".into(),
        customer: Some(CUSTOMER),
        labels: labels(),
        online: true,
        place: Some(whereabouts()),
        seen: Some(last_seen()),
    }
}

fn app_devices() -> AppDevices {
    AppDevices { devices: vec![app_device()], next: Some("Lamp 2".into()) }
}

fn app_identity() -> AppIdentity {
    AppIdentity {
        app: APP,
        key: KEY,
        tenant: TENANT,
        name: "Backend".into(),
        role: Role::Observer,
        expires_s: S,
        customers: Some([CUSTOMER].into()),
        labels: labels(),
        networks: Some(vec!["10.0.0.0/8".into()]),
    }
}

fn hop() -> HopRecord {
    HopRecord {
        call: CALL,
        station: Station::Router,
        from: DEVICE,
        to: OTHER_DEVICE,
        node: Some(OTHER_NODE),
        began_us: MS * 1_000,
        took_us: 900,
        budget_ms: Budget::from_ms(5_000),
        party: Some(party()),
        policy_version: 3,
        end: HopEnd::Busy,
        limit: Some(Limit::Waits),
        protocol: Some(Protocol::Mqtt),
    }
}

fn filter() -> HopFilter {
    HopFilter {
        call: Some(CALL),
        from: Some(DEVICE),
        to: Some(OTHER_DEVICE),
        party: Some(party()),
        end: Some(HopEnd::Offline),
        since_us: Some(MS * 1_000),
        first_only: true,
        targets: true,
    }
}

fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        started_ms: MS,
        now_ms: MS + 9,
        host: "machine".into(),
        unready: vec![("nats".into(), "not connected".into())],
        log_level: "info".into(),
        journal: (12, 100_000),
        hops_in_10_s: 4,
        numbers: vec![("claims".into(), 8)],
        max_files: Some(1_024),
        max_payload_bytes: 1_048_576,
        settings: vec![("nats.prefix".into(), "\"swb\"".into())],
        certificates: Some(vec![("tls.certificate_file".into(), 1_800_000_000)]),
    }
}

fn tapped_hop() -> TappedHop {
    TappedHop { hop: hop(), request: Some("{}".into()), answer: Some("1".into()) }
}

fn pace() -> Pace {
    Pace { per_second: Some(500), wait_ms: 2_000 }
}

/// Every message that one process sends another: a head, which a body may follow.
pub(crate) fn heads() -> Vec<Sample> {
    let mut all = vec![head("CallId", CALL), head("Until", until())];
    all.push(head("Until, least", Until { asked_us: None, ..until() }));
    all.extend(calls());
    all.extend(claims());
    all.extend(directory());
    all.extend(applications());
    all.extend(operators());
    all.extend(variants("Protocol", Protocol::ALL));
    all.extend(variants("SessionEnd", SessionEnd::ALL));
    all.extend(variants("Limit", Limit::ALL));
    all.extend(variants("Seen", Seen::ALL));
    all.extend(variants("Role", Role::ALL));
    all.extend(variants("NodeState", NodeState::ALL));
    all.extend(variants("Station", Station::ALL));
    all.extend(variants("HopEnd", HopEnd::ALL));
    all
}

fn calls() -> Vec<Sample> {
    let routed = Routed {
        call: call(),
        verdict_ms: Some(Budget::from_ms(30_000)),
        reply_to: "swb.reply.0101010101010101.7".into(),
        party: Some(party()),
    };
    let delivery = Delivery {
        call: CALL,
        session: SESSION,
        target: OTHER_DEVICE,
        caller: Some(DEVICE),
        caller_name: "Caller".into(),
        budget_ms: Budget::from_ms(5_000),
        until: Some(until()),
        oneway: true,
        verdict_ms: Some(Budget::from_ms(30_000)),
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        method: Some("reboot".into()),
        late: Some(77),
    };
    let bare_delivery = Delivery {
        caller: None,
        until: None,
        verdict_ms: None,
        traceparent: None,
        method: None,
        late: None,
        ..delivery.clone()
    };
    let judge = JudgeRequest {
        call: CALL,
        caller: DEVICE,
        target: OTHER_DEVICE,
        budget_ms: Budget::from_ms(5_000),
        size_bytes: 12,
        protocol: Some(Protocol::Http),
        oneway: true,
        app: Some(app_caller()),
    };
    let answer = Answer { device: DEVICE, number: 7, protocol: Some(Protocol::Coap) };
    let mut all = vec![
        head("Call", call()),
        head("Call, least", bare_call()),
        head("Routed, least", Routed { call: bare_call(), verdict_ms: None, party: None, ..routed.clone() }),
        head("Routed", routed),
        head("Delivery, least", bare_delivery),
        head("Delivery", delivery),
        head("JudgeRequest, least", JudgeRequest { protocol: None, app: None, ..judge.clone() }),
        head("JudgeRequest", judge),
        head("Answer, least", Answer { protocol: None, ..answer.clone() }),
        head("Answer", answer),
        head("Takeover", Takeover { session: SESSION, device: DEVICE }),
    ];
    all.extend(variants(
        "DeliveryReply",
        [DeliveryReply::Ended(Outcome::Lost), DeliveryReply::NotHere, DeliveryReply::Outdated],
    ));
    let judged = [JudgeReply::Allowed(Budget::from_ms(30_000)), JudgeReply::Refused(Outcome::Denied)];
    all.extend(variants("JudgeReply", judged));
    all.extend(variants("AnswerReply", [AnswerReply::Taken, AnswerReply::NoSuchCall, AnswerReply::NotJson]));
    all.extend(variants(
        "Outcome",
        [
            Outcome::Answered,
            Outcome::Delivered,
            Outcome::Denied,
            Outcome::UnknownDevice,
            Outcome::Offline,
            Outcome::TimedOut,
            Outcome::Lost,
            Outcome::Busy(Limit::TargetInFlight),
            Outcome::TooLargeForTarget,
            Outcome::AnswerTooLarge,
            Outcome::AnswerInvalid,
            Outcome::malformed("body"),
            Outcome::Unavailable,
        ],
    ));
    all
}

fn claims() -> Vec<Sample> {
    let request = ClaimRequest {
        device: DEVICE,
        node: NODE,
        session: SESSION,
        protocol: Protocol::Http,
        generation: Some(Generation(9)),
        until: Some(until()),
        visit: 5,
        ticket: ticket(),
        since_ms: Some(MS),
        is_again: true,
    };
    let release =
        ReleaseRequest { device: DEVICE, node: NODE, session: SESSION, reason: Some(SessionEnd::Fault) };
    let renewal = LeaseRenewal {
        node: NODE,
        tally: tally(),
        newest: Generation(9),
        ends: true,
        mends: Some(true),
        sheds: true,
    };
    let compare = CompareReply { lacking: vec![DEVICE], foreign: vec![held()] };
    let bare_claim = ClaimReply::Held { generation: Generation(9), over: None };
    let mut all = vec![
        head(
            "ClaimRequest, least",
            ClaimRequest {
                generation: None,
                until: None,
                since_ms: None,
                is_again: false,
                ..request.clone()
            },
        ),
        head("ClaimRequest", request),
        head("ClaimReply::Held, least", bare_claim),
        head("ReleaseRequest, least", ReleaseRequest { reason: None, ..release.clone() }),
        head("ReleaseRequest", release),
        head("Tally", tally()),
        head("LeaseRenewal, least", LeaseRenewal { mends: None, sheds: false, ..renewal.clone() }),
        head("LeaseRenewal", renewal),
        head("HeldClaim", held()),
        head("CompareRequest", CompareRequest { node: NODE, part: 1, parts: 4, held: vec![held()] }),
        head("CompareReply", compare),
        head("CancelRequest", CancelRequest { call: CALL, target: OTHER_DEVICE }),
        head("Beat", Beat { of: OTHER_NODE, number: 41, newest: Generation(9), asks: true }),
    ];
    all.extend(variants(
        "ClaimReply",
        [
            ClaimReply::Held { generation: Generation(9), over: Some(Protocol::Coap) },
            ClaimReply::TakenOver,
            ClaimReply::Refused,
            ClaimReply::Unavailable,
        ],
    ));
    all
}

fn directory() -> Vec<Sample> {
    let list = ListRequest {
        caller: DEVICE,
        node: NODE,
        visit: 5,
        ticket: Some(ticket()),
        protocol: Some(Protocol::Mqtt),
        limit: Some(20),
        after: Some(OTHER_DEVICE),
        online: true,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
    };
    let bare_list = ListRequest {
        ticket: None,
        protocol: None,
        limit: None,
        after: None,
        traceparent: None,
        ..list.clone()
    };
    let presence = PresenceReply {
        online: vec![true],
        takeovers: vec![2],
        places: Some(vec![Some(whereabouts())]),
        seen: Some(vec![Some(last_seen())]),
    };
    let standing = DeviceStanding { tenant: TENANT, customer: Some(CUSTOMER), credential: credential() };
    let mut all = vec![
        head("AuthenticateRequest", AuthenticateRequest { credential: credential(), node: NODE, visit: 5 }),
        head("Identity, least", Identity { customer: None, ..identity() }),
        head("Identity", identity()),
        head("ListRequest, least", bare_list),
        head("ListRequest", list),
        head("PresenceRequest, least", PresenceRequest { devices: vec![DEVICE], places: false, seen: false }),
        head("PresenceRequest", PresenceRequest { devices: vec![DEVICE], places: true, seen: true }),
        head("PresenceReply, least", PresenceReply { places: None, seen: None, ..presence.clone() }),
        head("PresenceReply", presence),
        head("Whereabouts, least", Whereabouts { since_ms: None, ..whereabouts() }),
        head("Whereabouts", whereabouts()),
        head("LastSeen, least", bare_last_seen()),
        head("LastSeen", last_seen()),
        head("DeviceState, least", DeviceState { device: DEVICE, now: None }),
        head("DeviceState", DeviceState { device: DEVICE, now: Some(standing.clone()) }),
        head("DeviceStanding, least", DeviceStanding { customer: None, ..standing.clone() }),
        head("DeviceStanding", standing),
    ];
    all.extend(variants(
        "AuthenticateReply",
        [AuthenticateReply::Identity(identity()), AuthenticateReply::Refused, AuthenticateReply::Unavailable],
    ));
    all
}

fn applications() -> Vec<Sample> {
    let call = AppCall {
        call: CALL,
        credential: credential(),
        target: Target::Name("Lamp 2".into()),
        method: "reboot".into(),
        budget_ms: Budget::from_ms(5_000),
        until: Some(until()),
        connect_budget_ms: Budget::from_ms(4_000),
        oneway: true,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".into()),
        late: Some(77),
    };
    let end = OnceEnd { outcome: Outcome::TimedOut, seen: Seen::Maybe };
    let once = OnceRecord { request: [0x11; 32], call: CALL, end: Some(end.clone()) };
    let bare_device = AppDevice { customer: None, place: None, seen: None, ..app_device() };
    let bare_identity =
        AppIdentity { customers: None, labels: BTreeMap::new(), networks: None, ..app_identity() };
    let ended = EndedReply::Ended { outcome: Outcome::Answered, seen: Seen::Yes, is_late: true };
    let asked = AppRequest { credential: credential(), ask: AppAsk::Devices(sought()) };
    let mut all = vec![
        head("AppCaller", app_caller()),
        head("AppCaller, least", AppCaller { key: None, late: None, ..app_caller() }),
        head("AppCall, least", AppCall { until: None, traceparent: None, late: None, ..call.clone() }),
        head("AppCall", call),
        head("LateAnswer", LateAnswer { call: CALL, proof: 77 }),
        head("OnceRecord, least", OnceRecord { end: None, ..once.clone() }),
        head("OnceRecord", once),
        head("OnceEnd", end),
        head("EndedRequest", EndedRequest { call: CALL, app: APP }),
        head("AppRequest", asked),
        head(
            "Sought, least",
            Sought { target: None, customer: None, kind: None, after: None, seen: false, ..sought() },
        ),
        head("Sought", sought()),
        head("AppDevices, least", AppDevices { next: None, ..app_devices() }),
        head("AppDevices", app_devices()),
        head("AppDevice, least", bare_device),
        head("AppDevice", app_device()),
        head("AppIdentity, least", bare_identity),
        head("AppIdentity", app_identity()),
    ];
    all.extend(variants("EndedReply", [EndedReply::Unknown, EndedReply::Running, ended]));
    all.extend(variants("Target", [Target::Id(DEVICE), Target::Name("Lamp 2".into())]));
    all.extend(variants("AppAsk", [AppAsk::Who, AppAsk::Devices(sought())]));
    all.extend(variants(
        "AppReply",
        [
            AppReply::Identity(app_identity()),
            AppReply::Refused,
            AppReply::Unavailable,
            AppReply::Devices(app_devices()),
        ],
    ));
    all
}

fn operators() -> Vec<Sample> {
    let report = NodeReport {
        node: NODE,
        state: NodeState::Shedding,
        since_ms: MS,
        visitors: 1,
        mqtt: 2,
        http: 3,
        coap: 4,
        claims: 5,
        left: 6,
        shed: 7,
    };
    let tap = Tap { id: 3, filter: filter(), body_bytes: 256 };
    let told =
        Report { service: "router".into(), process: OTHER_NODE, hops: vec![hop()], status: Some(status()) };
    let tapped =
        Tapped { service: "router".into(), process: OTHER_NODE, hops: vec![tapped_hop()], left_out: 2 };
    let instructed =
        Instructed { service: "router".into(), process: OTHER_NODE, fault: Some("no such level".into()) };
    let bare_hop = HopRecord { node: None, party: None, limit: None, protocol: None, ..hop() };
    let mut all = vec![
        head("NodeReport", report),
        head("Pace, least", Pace { per_second: None, ..pace() }),
        head("Pace", pace()),
        head("HopRecord, least", bare_hop),
        head("HopRecord", hop()),
        head("HopFilter, least", HopFilter { first_only: true, ..HopFilter::default() }),
        head("HopFilter", filter()),
        head("Report, least", Report { status: None, ..told.clone() }),
        head("Report", told),
        head("Status, least", Status { max_files: None, ..status() }),
        head("Status", status()),
        head("Tap", tap.clone()),
        head("Instructed, least", Instructed { fault: None, ..instructed.clone() }),
        head("Instructed", instructed),
        head("Tapped", tapped),
        head("TappedHop, least", TappedHop { request: None, answer: None, ..tapped_hop() }),
        head("TappedHop", tapped_hop()),
    ];
    let orders = [
        Order::Report,
        Order::Evacuate(pace()),
        Order::Maintain(pace()),
        Order::Rebalance(pace(), 40),
        Order::Serve,
    ];
    all.extend(variants("Order", orders));
    all.extend(variants(
        "Inspect",
        [Inspect::Status, Inspect::Hops(filter(), 20), Inspect::Tap(tap.clone())],
    ));
    all.extend(variants("Instruct", [Instruct::Log("debug".into(), 300), Instruct::Tap(tap)]));
    all
}

/// Where each message goes, and which of the functions says so.
fn subjects() -> BTreeMap<String, String> {
    let subjects = Subjects::new("swb");
    let inbox = format!("{}.7", subjects.inbox(NODE));
    let all = [
        ("authenticate", subjects.authenticate()),
        ("list", subjects.list()),
        ("call", subjects.call()),
        ("app_call", subjects.app_call()),
        ("app", subjects.app()),
        ("app_calls", subjects.app_calls()),
        ("ended", subjects.ended(NODE)),
        ("late", subjects.late(NODE)),
        ("route", subjects.route()),
        ("judge", subjects.judge()),
        ("external_decision", subjects.external_decision(TENANT, "judge")),
        ("presence", subjects.presence()),
        ("claim", subjects.claim()),
        ("release", subjects.release()),
        ("lease", subjects.lease()),
        ("compare", subjects.compare()),
        ("cancel", subjects.cancel()),
        ("beat", subjects.beat()),
        ("handover", subjects.handover()),
        ("claims_differ", subjects.claims_differ(NODE)),
        ("node", subjects.node(NODE)),
        ("operate", subjects.operate(NODE)),
        ("operate_all", subjects.operate_all()),
        ("inspect", subjects.inspect("router")),
        ("instruct", subjects.instruct("router")),
        ("feed", subjects.feed(NODE)),
        ("read", subjects.read(NODE)),
        ("store_api", subjects.store_api()),
        ("bounce", subjects.bounce(NODE, &inbox)),
        ("app_bounce", subjects.app_bounce(NODE, CALL, &inbox)),
        ("bounces", subjects.bounces(NODE)),
        ("answer", subjects.answer(NODE.tag())),
        ("takeover", subjects.takeover(NODE)),
        ("device_changed", subjects.device_changed(DEVICE)),
        ("devices_changed", subjects.devices_changed()),
        ("directory_loaded", subjects.directory_loaded()),
        ("session_event", subjects.session_event(DEVICE, "up")),
        ("uplink", subjects.uplink(TENANT, DEVICE, UplinkKind::Telemetry)),
        ("inbox", inbox),
    ];
    all.into_iter().map(|(name, subject)| (subject, name.to_owned())).collect()
}

/// Every record of the store, and what others may listen to, all in JSON.
pub(crate) fn records() -> Vec<Sample> {
    let claim = Claim {
        node: NODE,
        session: SESSION,
        protocol: Protocol::Http,
        generation: Generation(9),
        since_ms: Some(MS),
    };
    let event = SessionEvent {
        node: NODE,
        session: SESSION,
        protocol: Protocol::Http,
        at_ms: MS,
        tenant: TENANT,
        customer: Some(CUSTOMER),
        reason: Some(SessionEnd::NodeGone),
    };
    let device = Device {
        tenant: TENANT,
        customer: Some(CUSTOMER),
        name: "Lamp 2".into(),
        kind: "lamp".into(),
        labels: labels(),
        credential: credential(),
        weak_token: true,
    };
    let bare_device = Device {
        customer: None,
        kind: "default".into(),
        labels: BTreeMap::new(),
        weak_token: false,
        ..device.clone()
    };
    vec![
        record("Claim, least", Claim { since_ms: None, ..claim }),
        record("Claim", claim),
        record("LastSeen in JSON, least", bare_last_seen()),
        record("LastSeen in JSON", last_seen()),
        record("TicketKeys", keys()),
        record("SessionEvent, least", SessionEvent { customer: None, reason: None, ..event.clone() }),
        record("SessionEvent", event),
        record("Subjects", subjects()),
        record("Tenant", Tenant { name: "Tenant".into() }),
        record("Customer", Customer { tenant: TENANT, name: "Customer".into() }),
        record("Device, least", bare_device),
        record("Device", device),
        record("Protocol in JSON", Protocol::ALL.to_vec()),
        record("SessionEnd in JSON", SessionEnd::ALL.to_vec()),
        record("Role in JSON", Role::ALL.to_vec()),
    ]
    .into_iter()
    .chain(rules())
    .collect()
}

fn rules() -> Vec<Sample> {
    let key = KeyRecord { hash: credential(), made_s: S, expires_s: S + 1 };
    let app = App {
        tenant: TENANT,
        name: "Backend".into(),
        role: Role::Operator,
        all_tenants: true,
        customers: Some([CUSTOMER].into()),
        labels: labels(),
        methods: Some(BTreeSet::from(["reboot".to_owned()])),
        networks: Some(BTreeSet::from(["10.0.0.0/8".to_owned()])),
        keys: [(KEY, key.clone())].into(),
    };
    let bare_app = App {
        all_tenants: false,
        customers: None,
        labels: BTreeMap::new(),
        methods: None,
        networks: None,
        keys: BTreeMap::new(),
        ..app.clone()
    };
    let external = External { point: Point::Nats { name: "judge".into() }, timeout_ms: 200 };
    let set = StoredSet {
        version: 3,
        utc_offset_min: 60,
        texts: [("all.cedar".to_owned(), "permit(principal, action, resource);".to_owned())].into(),
        at_ms: MS,
        who: "ann".into(),
        why: "night".into(),
        external: Some(external.clone()),
    };
    let previous = Previous { hash: "5a".repeat(32), sequence: 8, at_ms: MS };
    let entry = Entry {
        kind: "device.rename".into(),
        who: "ann".into(),
        from: "machine".into(),
        devices: vec![DEVICE],
        what: "from Lamp 1 to Lamp 2".into(),
        version: Some(3),
        why: "typo".into(),
        left_out: 4,
    };
    let chained = Record {
        number: 9,
        id: Uuid::from_u128(0xb1),
        tenant: TENANT,
        at_ms: MS + 1,
        user: "operator".into(),
        entry: entry.clone(),
        previous: Some(previous.clone()),
    };
    let bare_entry = Entry { kind: "call.denied".into(), ..Entry::default() };
    vec![
        record("KeyRecord", key),
        record("App, least", bare_app),
        record("App", app),
        record("External", external),
        record("Point::Nats", Point::Nats { name: "judge".into() }),
        record("Point::Http", Point::Http { url: "http://judge:1/access/v1/evaluation".into() }),
        record("StoredSet, least", StoredSet { external: None, ..set.clone() }),
        record("StoredSet", set),
        record("Entry", entry),
        record("Entry, least", bare_entry.clone()),
        record("Previous", previous),
        record("Record, least", Record { entry: bare_entry, previous: None, ..chained.clone() }),
        record("Record", chained),
    ]
}
