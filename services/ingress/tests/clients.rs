//! What does a client find at a node that is not ready? Nobody waits: TCP is refused, CoAP is told to come again.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test may fail by panicking")]

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use boot::{Context, Health, InForce, Settings};
use bus::server::{NatsServer, ServerOptions, find_binary};
use bus::{Bus, BusSettings};
use coap_lite::{CoapOption, MessageClass, MessageType, Packet, RequestType, ResponseType};
use switchboard_ingress::Ingress;
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const WAIT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_ready_lets_nobody_wait() {
    let binary = find_binary().expect("nats-server is needed: on the PATH or named by NATS_SERVER");
    let server = NatsServer::start(&ServerOptions { binary, ..Default::default() }).await.unwrap();
    let mut settings = Settings::default();
    let any = ([127, 0, 0, 1], 0).into();
    (settings.mqtt.listen, settings.http.listen, settings.coap.listen) = (any, any, any);
    let settings = Arc::new(settings);
    let context = |service| Context {
        service,
        settings: Arc::clone(&settings),
        in_force: InForce::fixed(Arc::clone(&settings)),
        shutdown: CancellationToken::new(),
        health: Health::new(),
        admin_addr: any,
        pages: boot::admin::Pages::default(),
        traces: boot::Traces::default(),
    };
    let connect = async || {
        let settings = BusSettings { url: server.url(), ..BusSettings::default() };
        Bus::connect(&settings, "test").await.unwrap()
    };
    let ingress = Ingress::bind(&settings).await.unwrap();
    let tcp = [ingress.mqtt_address(), ingress.http_address()];
    let coap = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    coap.connect(ingress.coap_address()).await.unwrap();
    let node = context("ingress");
    let serving = tokio::spawn(ingress.serve(node.clone(), connect().await));

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
    for address in tcp {
        assert_eq!(TcpStream::connect(address).await.unwrap_err().kind(), ErrorKind::ConnectionRefused);
    }
    assert!(!node.health.is_ready());

    let router = context("router");
    let routing = tokio::spawn(switchboard_router::serve(router.clone(), connect().await));
    timeout(WAIT, node.health.wait_ready()).await.unwrap();
    for address in tcp {
        TcpStream::connect(address).await.unwrap();
    }
    for (service, served) in [(node, serving), (router, routing)] {
        service.shutdown.cancel();
        timeout(WAIT, served).await.unwrap().unwrap().unwrap();
    }
}
