//! Does CoAP hold over real sockets, with a real nats-server and the other services behind it? The devices here are
//! bare UDP sockets: they lose, repeat and withhold what real clients would not.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking; clippy knows only those who bear the attribute, not their helpers"
)]

mod parts;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use boot::{Context, Settings};
use bus::registry::{Customer, NewDevice, Registry, Tenant, Token};
use bus::server::{NatsServer, ServerOptions, find_binary};
use coap_lite::{CoapOption, MessageClass, MessageType, Packet};
use rpc::{CustomerId, DeviceId, TenantId};
use switchboard_ingress::Ingress;
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use parts::{connect, context};

const WAIT: Duration = Duration::from_secs(10);
const ACK_TIMEOUT_MS: u64 = 100;
const GET: u8 = 1;
const POST: u8 = 2;

/// A whole system with two devices of one customer.
struct World {
    a: NewDevice,
    b: NewDevice,
    registry: Registry,
    node: Context,
    address: SocketAddr,
    served: Vec<JoinHandle<anyhow::Result<()>>>,
    services: Vec<Context>,
    _server: NatsServer,
}

impl World {
    async fn new() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(change: impl FnOnce(&mut Settings)) -> Self {
        let binary = find_binary().expect("nats-server is needed: on the PATH or named by NATS_SERVER");
        let server = NatsServer::start(&ServerOptions { binary, ..Default::default() }).await.unwrap();
        let mut settings = Settings::default();
        settings.nats.url = server.url();
        settings.mqtt.listen = ([127, 0, 0, 1], 0).into();
        settings.http.listen = ([127, 0, 0, 1], 0).into();
        settings.coap.listen = ([127, 0, 0, 1], 0).into();
        settings.coap.ack_timeout_ms = ACK_TIMEOUT_MS;
        settings.coap.max_retransmit = 2;
        settings.coap.separate_after_ms = 50;
        settings.ingress.calls_per_second_per_device = 0;
        change(&mut settings);

        let bus = connect(&server).await;
        let registry = Registry::open(&bus).await.unwrap();
        let (tenant, customer) = (TenantId(Uuid::new_v4()), CustomerId(Uuid::new_v4()));
        registry.add_tenant(tenant, &Tenant { name: "Tenant".into() }).await.unwrap();
        registry.add_customer(customer, &Customer { tenant, name: "Customer".into() }).await.unwrap();
        let mut devices = Vec::new();
        for name in ["A", "B"] {
            let device = NewDevice {
                id: DeviceId(Uuid::new_v4()),
                tenant,
                customer: Some(customer),
                name: name.into(),
                kind: "default".to_owned(),
                labels: BTreeMap::new(),
                token: Token::generate().unwrap(),
            };
            registry.add_device(&device).await.unwrap();
            devices.push(device);
        }
        let (b, a) = (devices.pop().unwrap(), devices.pop().unwrap());

        let settings = Arc::new(settings);
        let ingress = Ingress::bind(&settings).await.unwrap();
        let address = ingress.coap_address();
        let (authorizer, router, node) =
            (context("authorizer", &settings), context("router", &settings), context("ingress", &settings));
        let served = vec![
            tokio::spawn(switchboard_authorizer::serve(authorizer.clone(), connect(&server).await)),
            tokio::spawn(switchboard_router::serve(router.clone(), connect(&server).await)),
            tokio::spawn(ingress.serve(node.clone(), connect(&server).await)),
        ];
        for service in [&authorizer, &router, &node] {
            timeout(WAIT, service.health.wait_ready()).await.unwrap();
        }
        let services = vec![authorizer, router];
        World { a, b, registry, node, address, served, services, _server: server }
    }

    async fn device(&self, of: &NewDevice) -> Device {
        Device::new(self.address, of.token.reveal()).await
    }

    fn send_msg(&self, timeout_ms: u32, body: &str) -> String {
        format!(
            r#"{{"method":"sendMsg","params":{{"deviceId":"{}","timeout":{timeout_ms},"body":{body}}}}}"#,
            self.b.id
        )
    }

    /// Ends the node, then the rest.
    async fn stop(mut self) {
        self.node.shutdown.cancel();
        timeout(WAIT, self.served.pop().unwrap()).await.expect("the node does not end").unwrap().unwrap();
        for service in &self.services {
            service.shutdown.cancel();
        }
        for served in self.served {
            timeout(WAIT, served).await.unwrap().unwrap().unwrap();
        }
    }
}

/// One UDP socket.
struct Device {
    socket: UdpSocket,
    token: String,
    last_id: u16,
}

impl Device {
    async fn new(address: SocketAddr, token: &str) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(address).await.unwrap();
        Device { socket, token: token.to_owned(), last_id: 0 }
    }

    fn request(&mut self, code: u8, path: &str, body: &str) -> Packet {
        self.last_id += 1;
        let mut packet = Packet::new();
        packet.header.set_type(MessageType::Confirmable);
        packet.header.code = MessageClass::from(code);
        packet.header.message_id = self.last_id;
        packet.set_token(self.last_id.to_be_bytes().to_vec());
        for segment in ["api", "v1", &self.token].into_iter().chain(path.split('/')) {
            packet.add_option(CoapOption::UriPath, segment.as_bytes().to_vec());
        }
        packet.payload = body.as_bytes().to_vec();
        packet
    }

    async fn send(&self, packet: &Packet) {
        self.socket.send(&packet.to_bytes_unlimited().unwrap()).await.unwrap();
    }

    async fn receive(&self) -> Packet {
        self.receive_within(WAIT).await.expect("nothing came")
    }

    async fn receive_within(&self, wait: Duration) -> Option<Packet> {
        let mut datagram = [0; 2048];
        let received = timeout(wait, self.socket.recv(&mut datagram)).await.ok()?.unwrap();
        Some(Packet::from_bytes(&datagram[..received]).unwrap())
    }

    /// Code and text of the response, wherever it comes; asks again as the standard has it.
    async fn ask(&mut self, code: u8, path: &str, body: &str) -> (String, String) {
        let packet = self.request(code, path, body);
        for _ in 0..20 {
            self.send(&packet).await;
            while let Some(response) = self.receive_within(WAIT / 20).await {
                if response.header.get_type() == MessageType::Confirmable {
                    self.acknowledge(&response).await;
                }
                if response.get_token() == packet.get_token() {
                    return said(&response);
                }
            }
        }
        panic!("no response")
    }

    async fn acknowledge(&self, packet: &Packet) {
        self.empty(MessageType::Acknowledgement, packet).await;
    }

    async fn reset(&self, packet: &Packet) {
        self.empty(MessageType::Reset, packet).await;
    }

    async fn empty(&self, kind: MessageType, to: &Packet) {
        let mut empty = Packet::new();
        empty.header.set_type(kind);
        empty.header.code = MessageClass::Empty;
        empty.header.message_id = to.header.message_id;
        self.send(&empty).await;
    }

    async fn observe(&mut self) {
        let mut packet = self.request(GET, "rpc", "");
        packet.add_option(CoapOption::Observe, Vec::new());
        self.send(&packet).await;
        loop {
            let response = self.receive().await;
            if response.get_token() == packet.get_token() {
                assert_eq!(said(&response), ("2.05".into(), String::new()));
                assert!(response.get_observe_value().is_some());
                if response.header.get_type() == MessageType::Confirmable {
                    self.acknowledge(&response).await;
                }
                return;
            }
        }
    }

    /// The next call, not acknowledged.
    async fn call(&self) -> (Packet, u64) {
        let packet = self.receive().await;
        assert_eq!(packet.header.get_type(), MessageType::Confirmable);
        let text: serde_json::Value = serde_json::from_slice(&packet.payload).unwrap();
        assert_eq!(text["method"], "onMsg");
        let number = text["id"].as_u64().unwrap();
        (packet, number)
    }
}

fn said(packet: &Packet) -> (String, String) {
    (packet.header.code.to_string(), String::from_utf8(packet.payload.clone()).unwrap())
}

fn ok(text: &str) -> (String, String) {
    ("2.05".into(), text.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retransmitted_request_is_one_call_and_gets_the_same_answer() {
    let world = World::new().await;
    let (mut a, mut b) = (world.device(&world.a).await, world.device(&world.b).await);
    b.observe().await;
    let request = a.request(POST, "rpc", &world.send_msg(5_000, "1"));
    for _ in 0..3 {
        a.send(&request).await;
    }
    let (call, number) = b.call().await;
    b.acknowledge(&call).await;
    assert_eq!(b.ask(POST, &format!("rpc/{number}"), "not JSON").await.0, "4.00");
    assert_eq!(b.ask(POST, &format!("rpc/{number}"), r#"{"x":1}"#).await.0, "2.04");
    assert_eq!(said(&answer_to(&a, &request).await), ok(r#"{"x":1}"#));
    // Long after: the node still knows the request.
    a.send(&request).await;
    let again = a.receive().await;
    assert_eq!((again.header.get_type(), again.header.message_id), (MessageType::Acknowledgement, 1));
    assert!(b.receive_within(Duration::from_millis(300)).await.is_none(), "there was one call");
    world.stop().await;
}

/// The answer to a request, which may come with its acknowledgement or behind it.
async fn answer_to(device: &Device, request: &Packet) -> Packet {
    loop {
        let packet = device.receive().await;
        if packet.header.get_type() == MessageType::Confirmable {
            device.acknowledge(&packet).await;
        }
        if packet.header.code != MessageClass::Empty && packet.get_token() == request.get_token() {
            return packet;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_restarts_and_counts_its_ids_from_the_same_number_is_heard() {
    let world = World::new().await;
    let (mut a, mut b) = (world.device(&world.a).await, world.device(&world.b).await);
    for boot in 1..=3 {
        b.last_id = 0;
        b.observe().await;
        let request = a.request(POST, "rpc", &world.send_msg(5_000, "1"));
        a.send(&request).await;
        let (call, number) = b.call().await;
        b.acknowledge(&call).await;
        let mut answer = b.request(POST, &format!("rpc/{number}"), &boot.to_string());
        answer.header.message_id = 2;
        b.send(&answer).await;
        assert_eq!(said(&answer_to(&b, &answer).await).0, "2.04");
        assert_eq!(said(&answer_to(&a, &request).await), ok(&boot.to_string()));

        // It restarts, and knows no more of what it observed.
        let request = a.request(POST, "rpc", &world.send_msg(5_000, "2"));
        a.send(&request).await;
        let (call, _) = b.call().await;
        b.reset(&call).await;
        let offline = r#"{"error":"No active connection to the remote device!"}"#;
        assert_eq!(said(&answer_to(&a, &request).await), ok(offline));
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_devices_behind_one_address_read_each_its_own_answer_under_one_id() {
    let world = World::new().await;
    let (mut shared, mut b) = (world.device(&world.a).await, world.device(&world.b).await);
    b.observe().await;
    let under_one_id = |device: &mut Device, token: &[u8], of: &str, body: &str| {
        device.token = of.to_owned();
        let mut request = device.request(POST, "rpc", body);
        request.header.message_id = 7;
        request.set_token(token.to_vec());
        request
    };
    let (a_token, b_token) = (world.a.token.reveal().to_owned(), world.b.token.reveal().to_owned());
    let slow = under_one_id(&mut shared, b"slow", &a_token, &world.send_msg(5_000, "1"));
    shared.send(&slow).await;
    let (call, number) = b.call().await;
    b.acknowledge(&call).await;
    let quick = under_one_id(&mut shared, b"quick", &b_token, r#"{"method":"getTime"}"#);
    shared.send(&quick).await;
    assert!(said(&answer_to(&shared, &quick).await).1.starts_with(r#"{"time":"#));
    let nobody = under_one_id(&mut shared, b"nobody", "nobody's", r#"{"method":"getTime"}"#);
    shared.send(&nobody).await;
    assert_eq!(said(&answer_to(&shared, &nobody).await).0, "4.01");
    shared.send(&slow).await;
    b.ask(POST, &format!("rpc/{number}"), "3").await;
    let answer = answer_to(&shared, &slow).await;
    assert_eq!((answer.header.get_type(), said(&answer)), (MessageType::Confirmable, ok("3")));
    assert!(b.receive_within(Duration::from_millis(300)).await.is_none(), "there was one call");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attributes_are_none_and_observing_them_makes_nobody_callable() {
    let world = World::new().await;
    let (mut a, mut b) = (world.device(&world.a).await, world.device(&world.b).await);
    for observe in [None, Some(0), Some(0), Some(1)] {
        let mut request = b.request(GET, "attributes", "");
        request.set_token(b"attr".to_vec());
        request.add_option(CoapOption::UriQuery, b"sharedKeys=a,b".to_vec());
        if let Some(value) = observe {
            request.set_observe_value(value);
        }
        b.send(&request).await;
        let answer = answer_to(&b, &request).await;
        assert_eq!((said(&answer), answer.get_observe_value().is_some()), (ok("{}"), observe == Some(0)));
    }
    let offline = a.ask(POST, "rpc", &world.send_msg(5_000, "1")).await;
    assert_eq!(offline, ok(r#"{"error":"No active connection to the remote device!"}"#));
    b.token = "nobody's".into();
    assert_eq!(b.ask(GET, "attributes", "").await.0, "4.01");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_answer_is_sent_until_it_is_acknowledged() {
    let world = World::new().await;
    let (mut a, mut b) = (world.device(&world.a).await, world.device(&world.b).await);
    b.observe().await;
    let request = a.request(POST, "rpc", &world.send_msg(20_000, "1"));
    a.send(&request).await;
    let (call, number) = b.call().await;
    b.acknowledge(&call).await;
    let acknowledgement = a.receive().await;
    assert_eq!(acknowledgement.header.get_type(), MessageType::Acknowledgement);
    assert_eq!((acknowledgement.header.message_id, said(&acknowledgement).0), (1, "0.00".into()));
    b.ask(POST, &format!("rpc/{number}"), "7").await;
    let first = a.receive().await;
    assert_eq!((first.header.get_type(), said(&first)), (MessageType::Confirmable, ok("7")));
    assert_eq!(first.get_token(), request.get_token());
    let second = a.receive().await;
    assert_eq!(first, second);
    a.acknowledge(&second).await;
    assert!(a.receive_within(Duration::from_millis(ACK_TIMEOUT_MS * 8)).await.is_none());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_never_acknowledges_is_dropped_and_its_claim_with_it() {
    let world = World::new().await;
    let (mut a, mut b) = (world.device(&world.a).await, world.device(&world.b).await);
    b.observe().await;
    let lost = a.ask(POST, "rpc", &world.send_msg(20_000, "1")).await;
    assert_eq!(lost, ok(r#"{"error":"Connection to the remote device was lost!"}"#));
    let mut times = 0;
    while b.receive_within(Duration::from_millis(50)).await.is_some() {
        times += 1;
    }
    assert_eq!(times, 3, "once, and twice again");
    let offline = a.ask(POST, "rpc", &world.send_msg(20_000, "2")).await;
    assert_eq!(offline, ok(r#"{"error":"No active connection to the remote device!"}"#));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_observation_wins_and_a_rotated_token_ends_it() {
    let world = World::new().await;
    let (mut older, mut newer) = (world.device(&world.b).await, world.device(&world.b).await);
    older.observe().await;
    newer.observe().await;
    let goodbye = older.receive().await;
    assert_eq!(said(&goodbye).0, "4.09");
    older.acknowledge(&goodbye).await;

    let mut a = world.device(&world.a).await;
    let request = a.request(POST, "rpc", &world.send_msg(20_000, "1"));
    a.send(&request).await;
    let (call, _) = newer.call().await;
    newer.acknowledge(&call).await;
    world.registry.rotate_token(world.b.id, &Token::generate().unwrap()).await.unwrap();
    let goodbye = newer.receive().await;
    assert_eq!(said(&goodbye).0, "4.01");
    newer.acknowledge(&goodbye).await;
    let lost = said(&answer_to(&a, &request).await);
    assert_eq!(lost, ok(r#"{"error":"Connection to the remote device was lost!"}"#));
    assert_eq!(newer.ask(POST, "rpc", r#"{"method":"getTime"}"#).await.0, "4.01");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_shuts_down_lets_calls_finish_and_says_goodbye() {
    let world = World::new().await;
    let (mut a, mut b) = (world.device(&world.a).await, world.device(&world.b).await);
    b.observe().await;
    let request = a.request(POST, "rpc", &world.send_msg(20_000, "1"));
    a.send(&request).await;
    let (call, number) = b.call().await;
    b.acknowledge(&call).await;
    assert_eq!(a.receive().await.header.get_type(), MessageType::Acknowledgement);
    world.node.shutdown.cancel();
    let deadline = Instant::now() + WAIT;
    while a.ask(POST, "rpc", r#"{"method":"getTime"}"#).await.0 != "5.03" {
        assert!(Instant::now() < deadline, "it begins new calls");
    }
    assert_eq!(b.ask(POST, &format!("rpc/{number}"), "3").await.0, "2.04");
    assert_eq!(said(&b.receive().await).0, "5.03");
    let answer = a.receive().await;
    assert_eq!(said(&answer), ok("3"));
    a.acknowledge(&answer).await;
    let started = Instant::now();
    world.stop().await;
    assert!(started.elapsed() < Duration::from_secs(5), "nothing is in flight: nothing is waited for");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_half_open_requests_disturb_nobody() {
    let world = World::with(|settings| {
        settings.coap.max_block_transfers = 64;
        settings.coap.max_retransmit = 8;
    })
    .await;
    let (mut a, mut b) = (world.device(&world.a).await, world.device(&world.b).await);
    b.observe().await;
    let stop = CancellationToken::new();
    let answering = tokio::spawn(stop.clone().run_until_cancelled_owned(async move {
        let mut answerer = Device::new(b.socket.peer_addr().unwrap(), &b.token).await;
        let mut answered = 0;
        loop {
            let Some(packet) = b.receive_within(WAIT).await else { continue };
            b.acknowledge(&packet).await;
            let text: serde_json::Value = serde_json::from_slice(&packet.payload).unwrap();
            let number = text["id"].as_u64().unwrap();
            if std::mem::replace(&mut answered, number) != number {
                let answer = format!("[{}]", text["params"]);
                assert_eq!(answerer.ask(POST, &format!("rpc/{number}"), &answer).await.0, "2.04");
            }
        }
    }));
    let mut flood = world.device(&world.a).await;
    for number in 0..10_000u32 {
        let datagram = match number % 5 {
            // Whoever it is has to be asked about.
            0 => {
                flood.token = format!("guess{number}");
                flood.request(POST, "rpc", "{}").to_bytes_unlimited().unwrap()
            }
            // A known device that never finishes its upload, from many resources.
            1 => {
                flood.token = world.a.token.reveal().to_owned();
                let mut packet = flood.request(POST, &format!("rpc/{number}"), &"x".repeat(1024));
                packet.add_option(CoapOption::Block1, vec![0x0e]);
                packet.to_bytes_unlimited().unwrap()
            }
            2 => vec![0x4f; (number % 1_400) as usize],
            3 => number.to_be_bytes().repeat(30),
            _ => {
                let mut packet = flood.request(GET, "rpc", "");
                packet.add_option(CoapOption::Unknown(65_001), vec![7; 100]);
                let whole = packet.to_bytes_unlimited().unwrap();
                whole[..whole.len() - (number % 40) as usize].to_vec()
            }
        };
        // A full socket buffer loses datagrams, as it may.
        let _ = flood.socket.try_send(&datagram);
        if number % 1_000 == 500 {
            let call = world.send_msg(20_000, &number.to_string());
            assert_eq!(a.ask(POST, "rpc", &call).await, ok(&format!("[{number}]")));
        }
    }
    stop.cancel();
    answering.await.unwrap();
    world.stop().await;
}
