//! How does a process's bus follow from its settings?

use std::path::PathBuf;
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

/// In user names and paths of the settings, the service that connects.
const SERVICE: &str = "{service}";
/// The services that may use JetStream.
const STORING: [&str; 3] = ["authorizer", "router", "api"];

impl BusSettings {
    /// As `service` shows itself to NATS, by itself or beside others of its process.
    pub fn of_service(&self, service: &str) -> Self {
        let named = |text: &String| text.replace(SERVICE, service);
        let file = |path: &PathBuf| match path.to_str() {
            Some(path) => path.replace(SERVICE, service).into(),
            None => path.clone(),
        };
        BusSettings {
            user: self.user.as_ref().map(named),
            store_user: self.store_user.as_ref().filter(|_| STORING.contains(&service)).map(named),
            password_file: self.password_file.as_ref().map(file),
            credentials_file: self.credentials_file.as_ref().map(file),
            ..self.clone()
        }
    }
}

impl Bus {
    /// Connects as the settings of `context` say, and tries until it succeeds: meanwhile its part `nats` is not
    /// ready and says why. None when the process is to end first.
    pub async fn connect_for(context: &boot::Context) -> Option<Bus> {
        Bus::connect_beside(context, &BusSettings::from(&context.settings.nats)).await
    }

    /// The same for one of the services of a process, which all have these `settings`.
    pub async fn connect_beside(context: &boot::Context, settings: &BusSettings) -> Option<Bus> {
        let nats = context.health.part("nats");
        let mut trouble = Trouble::new(CONNECT_PAUSE, LONGEST_PAUSE);
        let settings = settings.of_service(context.service);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_service_of_a_process_has_rights_of_its_own() {
        let settings = BusSettings {
            user: Some("{service}".to_owned()),
            store_user: Some("{service}-store".to_owned()),
            password_file: Some("/run/{service}/password".into()),
            credentials_file: Some("/run/{service}.creds".into()),
            ..BusSettings::default()
        };
        let router = settings.of_service("router");
        assert_eq!(router.user.as_deref(), Some("router"));
        assert_eq!(router.store_user.as_deref(), Some("router-store"));
        assert_eq!(settings.of_service("api").store_user.as_deref(), Some("api-store"));
        assert_eq!(router.password_file, Some("/run/router/password".into()));
        assert_eq!(router.credentials_file, Some("/run/router.creds".into()));
        let ingress = settings.of_service("ingress");
        assert_eq!(
            (ingress.user.as_deref(), ingress.store_user),
            (Some("ingress"), None),
            "it stores nothing"
        );
    }
}
