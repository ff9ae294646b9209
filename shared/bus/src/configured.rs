//! How does a process's bus follow from its settings?

use std::time::{Duration, Instant};

use boot::config::Nats;
use boot::{Failed, Settings, Trouble};

use crate::errors::HEAD_BYTES;
use crate::{Bus, BusError, BusSettings, Local};

/// Between two attempts to connect at first, and at last.
const CONNECT_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl From<&Nats> for BusSettings {
    fn from(nats: &Nats) -> Self {
        BusSettings {
            url: nats.url.clone(),
            prefix: nats.prefix.clone(),
            user: nats.user.clone(),
            store_user: nats.store_user.clone(),
            password: nats.password.as_ref().map(|password| password.expose().to_owned()),
            password_file: nats.password_file.clone(),
            credentials_file: nats.credentials_file.clone(),
            tls_ca_file: nats.tls_ca_file.clone(),
            allow_vulnerable_server: nats.allow_vulnerable_server,
            replicas: nats.replicas,
            connect_timeout_ms: nats.connect_timeout_ms,
            send_timeout_ms: nats.send_timeout_ms,
            max_pending_asks: nats.max_pending_asks,
            local: nats.local_delivery.then(Local::default),
        }
    }
}

impl Bus {
    /// Connects as the settings of `context` say, and tries until it succeeds: meanwhile its part `nats` is not
    /// ready and says why. None when the process is to end first.
    pub async fn connect_for(context: &boot::Context) -> Option<Bus> {
        let nats = context.health.part("nats");
        let mut trouble = Trouble::new(CONNECT_PAUSE, LONGEST_PAUSE);
        let settings = BusSettings::from(&context.settings.nats);
        loop {
            let connected = tokio::select! {
                () = context.shutdown.cancelled() => return None,
                connected = Bus::connect(&settings, context.service) => connected,
            };
            // A node alone takes bodies in; what it lets in fits the others' messages too.
            let checked = match connected {
                Ok(bus) if context.service == "ingress" => bus.admits_bodies(&context.settings).map(|()| bus),
                connected => connected,
            };
            let error = match checked {
                Ok(bus) => {
                    // Not "ready": until the service has named its own parts, that would be said of the process.
                    nats.withdraw();
                    return Some(bus);
                }
                Err(error) => error.to_string(),
            };
            let Failed { pause, say_age_s } = trouble.failed(&error, Instant::now());
            if let Some(age_s) = say_age_s {
                tracing::warn!(error, age_s, "trying again");
            }
            nats.not_ready(&error);
            tokio::select! {
                () = context.shutdown.cancelled() => return None,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }
    /// Whether every body that devices may send fits a message.
    ///
    /// # Errors
    /// With the first setting that allows more.
    pub fn admits_bodies(&self, settings: &Settings) -> Result<(), BusError> {
        let max_payload = self.max_payload_bytes();
        let allowed = [
            ("mqtt.max_packet_bytes", settings.mqtt.max_packet_bytes as usize),
            ("http.max_body_bytes", settings.http.max_body_bytes),
            ("coap.max_body_bytes", settings.coap.max_body_bytes),
            ("api.max_body_bytes", settings.api.max_body_bytes),
        ];
        match allowed.into_iter().find(|(_, bytes)| bytes + HEAD_BYTES > max_payload) {
            Some((setting, bytes)) => Err(BusError::BodiesTooLarge { setting, bytes, max_payload }),
            None => Ok(()),
        }
    }
}
