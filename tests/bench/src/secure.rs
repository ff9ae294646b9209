//! How do idle devices connect over TLS? Each with a session cache of its own, so that it may come back by a ticket.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::frame::{self, Packet};
use crate::link::{self, Login};

const NAME: &str = "localhost";

/// A server's certificate (P-256, signed by itself) and key, as PEM.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// Also what clients trust.
    pub certificate: PathBuf,
    /// Readable by all, since mosquitto becomes a user of its own before it reads it.
    pub key: PathBuf,
}

impl Certificate {
    /// Has `openssl` make one.
    ///
    /// # Errors
    /// When it is missing or fails.
    pub fn make(folder: &Path) -> Result<Self> {
        let (certificate, key) = (folder.join("server.pem"), folder.join("server.key"));
        let asked = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 \
                     -addext basicConstraints=critical,CA:FALSE";
        let made = Command::new("openssl")
            .args(asked.split_ascii_whitespace())
            .args(["-subj", &format!("/CN={NAME}"), "-addext", &format!("subjectAltName=DNS:{NAME}")])
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&certificate)
            .output()
            .context("openssl is missing (Debian: apt-get install openssl)")?;
        ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        std::fs::set_permissions(&key, std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
        Ok(Self { certificate, key })
    }
}

/// What a device trusts, without what it remembers of earlier sessions.
///
/// # Errors
/// When the certificate cannot be read.
pub fn trusting(certificate: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate)?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
    Ok(config.with_safe_default_protocol_versions()?.with_root_certificates(roots).with_no_client_auth())
}

/// One device's, which remembers its last session.
pub fn remembering(trusting: &ClientConfig) -> Arc<ClientConfig> {
    let mut config = trusting.clone();
    config.resumption = Resumption::in_memory_sessions(1);
    Arc::new(config)
}

/// A device's connection over TLS.
pub struct Secure {
    stream: TlsStream<TcpStream>,
    /// Whether it began where an earlier session had ended.
    pub is_resumed: bool,
}

/// As [`link::connect_from`], over TLS, and MQTT only.
///
/// # Errors
/// When the server cannot be reached, is not trusted, or refuses.
pub async fn connect(
    source: SocketAddr,
    address: SocketAddr,
    login: &Login,
    config: Arc<ClientConfig>,
) -> Result<Secure> {
    let stream = link::dial(Some(source), address).await?;
    stream.set_nodelay(true)?;
    let mut stream = TlsConnector::from(config).connect(ServerName::try_from(NAME)?, stream).await?;
    let mut asked = Vec::new();
    frame::connect(&mut asked, &login.client_id, [&login.username, &login.password], link::KEEP_ALIVE_S);
    frame::subscribe(&mut asked, 1, &login.filter);
    stream.write_all(&asked).await?;
    let (mut read, mut is_callable) = (Vec::new(), false);
    while !is_callable {
        ensure!(stream.read_buf(&mut read).await? > 0, "the connection ended before the SUBACK");
        while let Some((packet, length)) = frame::split(&read)? {
            match packet {
                Packet::ConnAck { code: 0 } => {}
                Packet::SubAck { code: 0 } => is_callable = true,
                other => bail!("{}: {other:?} instead of an acknowledgement", login.client_id),
            }
            read.drain(..length);
        }
    }
    let is_resumed = stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed);
    Ok(Secure { stream, is_resumed })
}

impl Secure {
    /// Reads until the connection ends.
    pub async fn hold(mut self) {
        let mut read = [0; 64];
        while self.stream.read(&mut read).await.is_ok_and(|count| count > 0) {}
    }
}
