//! Does the bus keep its word against a real nats-server? Each test starts one of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking; clippy knows only those who bear the attribute, not their helpers"
)]

mod asks;
mod audit;
mod claims;
mod keys;
mod local;
mod once;
mod servers;

use std::time::Duration;

use bus::server::{NatsServer, ServerOptions, find_binary};
use bus::{Bus, BusSettings};
use rpc::{Claim, DeviceId, Generation, NodeId, Protocol, SessionId};
use tokio::time::Instant;
use uuid::Uuid;

/// Far more than anything here takes; a test that needs it has failed.
const PATIENCE: Duration = Duration::from_secs(20);

fn server_options() -> ServerOptions {
    let binary =
        find_binary().expect("no nats-server: set NATS_SERVER, or put it on the PATH or into .tools");
    ServerOptions { binary, ..ServerOptions::default() }
}

async fn start_nats() -> NatsServer {
    NatsServer::start(&server_options()).await.unwrap()
}

fn settings(nats: &NatsServer) -> BusSettings {
    BusSettings { url: nats.url(), ..BusSettings::default() }
}

async fn connect(nats: &NatsServer) -> Bus {
    Bus::connect(&settings(nats), "test").await.unwrap()
}

/// Waits for what is about to become true, where nothing announces it.
async fn eventually(what: &str, mut is_so: impl AsyncFnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !is_so().await {
        assert!(Instant::now() < give_up, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn device(number: u128) -> DeviceId {
    DeviceId(Uuid::from_u128(number))
}

fn claim(node: u64, generation: u64) -> Claim {
    let (session, generation) = (SessionId(1), Generation(generation));
    Claim { node: NodeId(node), session, protocol: Protocol::Mqtt, generation, since_ms: None }
}
