//! rumqttd as a bare broker: `bench-rumqttd 127.0.0.1:1883`.

use std::collections::HashMap;
use std::net::SocketAddr;

use anyhow::{Context, Result};
use rumqttd::{Broker, Config, ConnectionSettings, RouterConfig, ServerSettings};

fn main() -> Result<()> {
    let listen: SocketAddr = std::env::args().nth(1).context("usage: bench-rumqttd <address>")?.parse()?;
    let connections = ConnectionSettings {
        connection_timeout_ms: 60_000,
        max_payload_size: 65_536,
        max_inflight_count: 100,
        auth: None,
        external_auth: None,
        dynamic_filters: true,
    };
    let server =
        ServerSettings { name: "bench".into(), listen, tls: None, next_connection_delay_ms: 0, connections };
    // The values of the configuration that rumqttd ships, but for the number of connections.
    let router = RouterConfig {
        max_connections: 30_000,
        max_outgoing_packet_count: 200,
        max_segment_size: 104_857_600,
        max_segment_count: 10,
        ..RouterConfig::default()
    };
    let config = Config { router, v4: Some(HashMap::from([("bench".into(), server)])), ..Config::default() };
    Broker::new(config).start()?;
    Ok(())
}
