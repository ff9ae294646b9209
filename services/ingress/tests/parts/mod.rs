//! What does a service that runs within a test need? Its context, and a connection to NATS.

use std::sync::Arc;

use boot::{Context, Health, InForce, Settings};
use bus::server::NatsServer;
use bus::{Bus, BusSettings};
use tokio_util::sync::CancellationToken;

/// With an admin endpoint at any port.
pub(crate) fn context(service: &'static str, settings: &Arc<Settings>) -> Context {
    Context {
        service,
        settings: Arc::clone(settings),
        in_force: InForce::fixed(Arc::clone(settings)),
        shutdown: CancellationToken::new(),
        health: Health::new(),
        admin_addr: ([127, 0, 0, 1], 0).into(),
        pages: boot::admin::Pages::default(),
        traces: boot::Traces::default(),
    }
}

pub(crate) async fn connect(server: &NatsServer) -> Bus {
    let settings = BusSettings { url: server.url(), ..BusSettings::default() };
    Bus::connect(&settings, "test").await.unwrap()
}
