//! How do a process's settings become the bus's?

use boot::config::Nats;

use crate::BusSettings;

impl From<&Nats> for BusSettings {
    fn from(nats: &Nats) -> Self {
        BusSettings {
            url: nats.url.clone(),
            prefix: nats.prefix.clone(),
            user: nats.user.clone(),
            password: nats.password.as_ref().map(|password| password.expose().to_owned()),
            credentials_file: nats.credentials_file.clone(),
            replicas: nats.replicas,
            connect_timeout_ms: nats.connect_timeout_ms,
            send_timeout_ms: nats.send_timeout_ms,
            max_pending_asks: nats.max_pending_asks,
        }
    }
}
