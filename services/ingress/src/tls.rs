//! How do devices come in over TLS? With the certificate that the files hold now: they may be replaced while the node
//! runs.

mod stream;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use bus::certificate::first_expiry_s;
use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpStream;

pub use stream::Secured;

/// Certificate and key, and what is needed to take connections with them.
pub struct Tls {
    files: Files,
    current: RwLock<Arc<ServerConfig>>,
    /// What the files held when they were last looked at.
    seen: Mutex<Option<Pem>>,
    handshake_timeout: Duration,
    reload_check: Duration,
    accepted: Counter,
    failed: Counter,
    timed_out: Counter,
    reloaded: Counter,
    not_reloaded: Counter,
    expiry: Gauge,
}

struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// What the files hold.
#[derive(PartialEq, Eq)]
struct Pem {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Tls {
    /// As the settings say; none when they name no certificate.
    ///
    /// # Errors
    /// When a file cannot be read or holds no such thing, or when key and certificate do not belong together.
    pub fn load(settings: &boot::config::Tls) -> anyhow::Result<Option<Arc<Self>>> {
        let (Some(certificate), Some(key)) = (settings.certificate_file.clone(), settings.key_file.clone())
        else {
            return Ok(None);
        };
        let files = Files { certificate, key };
        let pem = files.read()?;
        let config = pem.config()?;
        describe();
        let expiry = gauge!("switchboard_tls_certificate_expiry_timestamp_seconds");
        expiry.set(pem.expiry_s());
        let handshakes = |result| counter!("switchboard_tls_handshakes_total", "result" => result);
        let reloads = |result| counter!("switchboard_tls_reloads_total", "result" => result);
        Ok(Some(Arc::new(Tls {
            files,
            current: RwLock::new(config),
            seen: Mutex::new(Some(pem)),
            handshake_timeout: Duration::from_millis(settings.handshake_timeout_ms),
            reload_check: Duration::from_millis(settings.reload_check_ms),
            accepted: handshakes("accepted"),
            failed: handshakes("failed"),
            timed_out: handshakes("timed_out"),
            reloaded: reloads("taken"),
            not_reloaded: reloads("refused"),
            expiry,
        })))
    }

    /// Shakes hands with a client, within the time that it has. None when it failed: the connection is closed.
    pub async fn accept(&self, stream: TcpStream) -> Option<Box<Secured>> {
        let address = stream.peer_addr().map(|it| tracing::field::display(it.ip())).ok();
        let config = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        // Boxed: the handshake is long over when a connection is counted in kilobytes.
        match Box::pin(tokio::time::timeout(self.handshake_timeout, Secured::accept(config, stream))).await {
            Ok(Ok(stream)) => {
                self.accepted.increment(1);
                Some(stream)
            }
            Ok(Err(error)) => {
                self.failed.increment(1);
                tracing::info!(address, %error, "a TLS handshake failed");
                None
            }
            Err(_) => {
                self.timed_out.increment(1);
                tracing::info!(address, "a TLS handshake took too long");
                None
            }
        }
    }

    /// Looks at the files from time to time and takes what is new in them. Files that make no sense, as while they
    /// are being replaced, change nothing.
    pub async fn keep_fresh(self: Arc<Self>) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
        loop {
            tokio::time::sleep(self.reload_check).await;
            let this = Arc::clone(&self);
            // Files may lie on a slow disk, and keys take a while to be checked.
            let Ok(read) = tokio::task::spawn_blocking(move || this.files.read()).await else { continue };
            let pem = match read {
                Ok(pem) if seen.as_ref() == Some(&pem) => continue,
                Ok(pem) => pem,
                Err(error) => {
                    if seen.take().is_some() {
                        self.not_reloaded.increment(1);
                        tracing::warn!(error = format!("{error:#}"), "the certificate stays as it was");
                    }
                    continue;
                }
            };
            match pem.config() {
                Ok(config) => {
                    *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                    self.reloaded.increment(1);
                    self.expiry.set(pem.expiry_s());
                    tracing::info!(file = %self.files.certificate.display(), "the certificate was read again");
                }
                Err(error) => {
                    self.not_reloaded.increment(1);
                    tracing::warn!(error = format!("{error:#}"), "the certificate stays as it was");
                }
            }
            seen = Some(pem);
        }
    }
}

impl Files {
    fn read(&self) -> anyhow::Result<Pem> {
        let read = |setting: &str, path: &PathBuf| {
            std::fs::read(path)
                .with_context(|| format!("{} cannot be read (setting {setting})", path.display()))
        };
        Ok(Pem {
            certificate: read("tls.certificate_file", &self.certificate)?,
            key: read("tls.key_file", &self.key)?,
        })
    }
}

impl Pem {
    /// When the first certificate of the chain ends, in seconds from 1970.
    fn expiry_s(&self) -> f64 {
        first_expiry_s(&self.certificate).unwrap_or_default() as f64
    }

    fn config(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<_, _>>()
            .context("tls.certificate_file is not PEM")?;
        anyhow::ensure!(!chain.is_empty(), "tls.certificate_file holds no certificate in PEM");
        let key =
            PrivateKeyDer::from_pem_slice(&self.key).context("tls.key_file holds no private key in PEM")?;
        // TLS 1.2 and 1.3: what the provider holds safe.
        let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .context("certificate and key cannot be used together (tls.certificate_file, tls.key_file)")?;
        config.ticketer = ring::Ticketer::new()?;
        // Each takes time to make, and a device comes back once.
        config.send_tls13_tickets = 1;
        Ok(Arc::new(config))
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("certificate", &self.files.certificate).finish_non_exhaustive()
    }
}

fn describe() {
    describe_counter!(
        "switchboard_tls_handshakes_total",
        Unit::Count,
        "TLS handshakes with devices, by how they ended."
    );
    describe_counter!(
        "switchboard_tls_reloads_total",
        Unit::Count,
        "Changes of the certificate's files, by whether what they held could be taken."
    );
    describe_gauge!(
        "switchboard_tls_certificate_expiry_timestamp_seconds",
        Unit::Seconds,
        "When the certificate for devices ends, or the first of those behind it: seconds from 1970."
    );
}
