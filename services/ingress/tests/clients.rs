//! What does a client find at a node that is not ready, and what does it leave behind when it goes before it is let in?

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail by panicking")]

mod parts;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use boot::{Context, Settings};
use bus::server::{NatsServer, ServerOptions, find_binary};
use bus::{Bus, Request, Subject};
use coap_lite::{CoapOption, MessageClass, MessageType, Packet, RequestType, ResponseType};
use rpc::{
    AuthenticateReply, AuthenticateRequest, DeviceId, DeviceState, Holder, Identity, NodeId, NodeReport,
    Order, Stamp, TenantId, TicketKeys, wire,
};
use switchboard_ingress::Ingress;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use parts::{connect, context};

const WAIT: Duration = Duration::from_secs(10);

/// A nats-server and an ingress, to which whatever else is there is added by the tests.
struct World {
    server: NatsServer,
    settings: Arc<Settings>,
    bus: Bus,
    node: NodeId,
    addresses: Addresses,
    ingress: Service,
}

/// Where the node listens.
struct Addresses {
    mqtt: SocketAddr,
    http: SocketAddr,
    coap: SocketAddr,
}

struct Service {
    context: Context,
    serving: JoinHandle<anyhow::Result<()>>,
}

impl World {
    async fn start() -> Self {
        let binary = find_binary().expect("nats-server is needed: on the PATH or named by NATS_SERVER");
        let server = NatsServer::start(&ServerOptions { binary, ..Default::default() }).await.unwrap();
        let mut settings = Settings::default();
        let any = ([127, 0, 0, 1], 0).into();
        (settings.mqtt.listen, settings.http.listen, settings.coap.listen) = (any, any, any);
        (settings.http.session_idle_ms, settings.http.poll_grace_ms) = (1_000, 0);
        let settings = Arc::new(settings);
        let ingress = Ingress::bind(&settings).await.unwrap();
        let addresses = Addresses {
            mqtt: ingress.mqtt_address(),
            http: ingress.http_address(),
            coap: ingress.coap_address(),
        };
        let bus = connect(&server).await;
        let (context, of_node) = (context("ingress", &settings), connect(&server).await);
        let node = of_node.process();
        let serving = tokio::spawn(ingress.serve(context.clone(), of_node));
        World { server, settings, bus, node, addresses, ingress: Service { context, serving } }
    }

    /// With it the node has all that it waits for.
    async fn add_router(&self) -> Service {
        let context = context("router", &self.settings);
        let serving = tokio::spawn(switchboard_router::serve(context.clone(), connect(&self.server).await));
        timeout(WAIT, self.ingress.context.health.wait_ready()).await.unwrap();
        Service { context, serving }
    }

    async fn report(&self) -> NodeReport {
        let subject = self.bus.subjects().operate(self.node);
        let reply = self.bus.ask(subject, wire::encode(&Order::Report, b""), WAIT).await.unwrap();
        wire::decode(&reply).unwrap().0
    }
}

impl Service {
    async fn stop(self) {
        self.context.shutdown.cancel();
        timeout(WAIT, self.serving).await.unwrap().unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_ready_lets_nobody_wait() {
    let world = World::start().await;
    let coap = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    coap.connect(world.addresses.coap).await.unwrap();

    // No router is there: the answer to CoAP shows that the node is running and waits for one.
    let mut asked = Packet::new();
    asked.header.code = MessageClass::Request(RequestType::Post);
    asked.header.message_id = 7;
    asked.set_token(vec![1, 2, 3]);
    let mut datagram = [0; 1024];
    for kind in [MessageType::Confirmable, MessageType::NonConfirmable] {
        asked.header.set_type(kind);
        coap.send(&asked.to_bytes().unwrap()).await.unwrap();
        let bytes = timeout(WAIT, coap.recv(&mut datagram)).await.expect("it is answered").unwrap();
        let answer = Packet::from_bytes(datagram.get(..bytes).unwrap()).unwrap();
        assert_eq!(answer.header.code, MessageClass::Response(ResponseType::ServiceUnavailable));
        assert_eq!(answer.get_token(), [1, 2, 3]);
        assert_eq!(answer.get_option(CoapOption::MaxAge).unwrap().front().unwrap(), &[1]);
    }
    let tcp = [world.addresses.mqtt, world.addresses.http];
    for address in tcp {
        assert_eq!(TcpStream::connect(address).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert!(!world.ingress.context.health.is_ready());

    let router = world.add_router().await;
    for address in tcp {
        TcpStream::connect(address).await.unwrap();
    }
    world.ingress.stop().await;
    router.stop().await;
}

/// An authorizer of the test's says who a device is, and holds its word back where the test needs it.
#[tokio::test(flavor = "multi_thread")]
async fn who_goes_while_he_is_let_in_leaves_nothing_behind() {
    let world = World::start().await;
    let router = world.add_router().await;
    let bus = world.bus.clone();
    let mut questions = bus.serve(bus.subjects().authenticate(), Some("authorizer")).await.unwrap();
    let mut asked = async || {
        let Request { message, reply_to, .. } = timeout(WAIT, questions.next()).await.unwrap().unwrap();
        let (question, _) = wire::decode::<AuthenticateRequest>(&message).unwrap();
        (question.visit, reply_to.unwrap())
    };
    let answer = async |(visit, reply_to): (u64, Subject), device| {
        let keys = TicketKeys::default().rotated([0; 32], 0).unwrap();
        let holder = Holder { device, node: world.node, visit };
        let ticket = keys.sign(holder, Stamp::of_digest(&[0; 32]), 0).unwrap();
        let tenant = TenantId(Uuid::from_u128(7));
        let identity = Identity { device, tenant, customer: None, name: "it".to_owned(), ticket };
        bus.tell(reply_to, wire::encode(&AuthenticateReply::Identity(identity), b"")).await.unwrap();
    };
    let [other, device] = [1, 2].map(|number| DeviceId(Uuid::from_u128(number)));

    let mut mqtt = TcpStream::connect(world.addresses.mqtt).await.unwrap();
    mqtt.write_all(b"\x10\x0f\0\x04MQTT\x04\x82\0\x3c\0\0\0\x01a").await.unwrap();
    answer(asked().await, other).await;
    timeout(WAIT, mqtt.read_exact(&mut [0; 4])).await.unwrap().unwrap();

    let mut http = TcpStream::connect(world.addresses.http).await.unwrap();
    http.write_all(b"GET /api/v1/TOKEN/rpc HTTP/1.1\r\nHost: it\r\n\r\n").await.unwrap();
    let first = asked().await;
    // The node hears of a change meanwhile, whosever it is, and so has to ask a second time.
    let removed = wire::encode(&DeviceState { device: other, now: None }, b"");
    bus.tell(bus.subjects().devices_changed(), removed).await.unwrap();
    timeout(WAIT, mqtt.read_to_end(&mut Vec::new())).await.unwrap().unwrap();
    answer(first, device).await;
    let second = asked().await;
    assert_eq!(world.report().await.visitors, 1);
    http.set_zero_linger().unwrap();
    drop(http);
    answer(second, device).await;
    timeout(WAIT, async {
        while world.report().await.visitors > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the visitor leaves");
    world.ingress.stop().await;
    router.stop().await;
}
