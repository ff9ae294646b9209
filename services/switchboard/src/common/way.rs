//! Where is the node that a device would connect to? By name or address, and over TLS if asked.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use boot::Settings;
use clap::Args;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio_rustls::TlsConnector;

use super::output::note;
use super::reach::usage;
use super::via::Via;

#[derive(Args, Clone, Debug, Default)]
pub(crate) struct WayArgs {
    /// Node to connect to, by name or address [default: as mqtt.listen, http.listen or coap.listen say]
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    at: Option<Place>,
    /// Connect over TLS, and check the node's certificate
    #[arg(long)]
    tls: bool,
    /// Authorities (PEM) that the node's certificate is checked against [default: those of this machine]; means --tls
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Name that the node's certificate must be for, where --at goes by another one; means --tls
    #[arg(long, value_name = "NAME", conflicts_with = "insecure")]
    tls_name: Option<String>,
    /// Take any certificate, and hand the access token to whoever has it: for trying things out; means --tls
    #[arg(long, conflicts_with = "ca")]
    insecure: bool,
}

impl WayArgs {
    /// Whether any of its flags was given.
    pub(crate) fn is_given(&self) -> bool {
        self.at.is_some() || self.is_tls()
    }

    fn is_tls(&self) -> bool {
        self.tls || self.ca.is_some() || self.tls_name.is_some() || self.insecure
    }

    /// The way to a node of these settings.
    ///
    /// # Errors
    /// When there are no authorities, or the protocol has no TLS.
    pub(crate) fn way(&self, via: Via, settings: &Settings) -> anyhow::Result<Way> {
        let is_tls = self.is_tls();
        let listens = || match (via, is_tls) {
            (Via::Mqtt, false) => settings.mqtt.listen,
            (Via::Mqtt, true) => settings.mqtt.tls_listen,
            (Via::Http, false) => settings.http.listen,
            (Via::Http, true) => settings.http.tls_listen,
            (Via::Coap, _) => settings.coap.listen,
        };
        if is_tls && via == Via::Coap {
            return Err(usage("CoAP has no TLS here: --via mqtt or http"));
        }
        let place = self.at.clone().unwrap_or_else(|| listens().into());
        let name = || ServerName::try_from(self.tls_name.clone().unwrap_or_else(|| place.host.clone()));
        let tls = match (is_tls, self.insecure) {
            (false, _) => None,
            (true, false) => Some(connector(self.ca.as_deref())?),
            (true, true) => {
                note(
                    "--insecure: whoever answers gets the access token, and may read and change all that is sent",
                );
                Some(believing()?)
            }
        };
        let tls = tls.map(|tls| name().map(|name| (tls, name))).transpose();
        let tls = tls.context("--tls-name, or the host of --at, is no name for TLS")?;
        Ok(Way { place, tls })
    }
}

#[derive(Clone, Debug)]
struct Place {
    host: String,
    port: u16,
}

impl From<SocketAddr> for Place {
    fn from(address: SocketAddr) -> Self {
        Place { host: address.ip().to_string(), port: address.port() }
    }
}

/// The way to a node.
pub(crate) struct Way {
    place: Place,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// `host:port`, as an HTTP authority.
impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Place { host, port } = &self.place;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// A connection, encrypted or not.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Way {
    /// Connects.
    ///
    /// # Errors
    /// When nobody listens there, or the certificate is not good.
    pub(crate) async fn connect(&self) -> anyhow::Result<Box<dyn Stream>> {
        let Place { host, port } = &self.place;
        let stream = TcpStream::connect((host.as_str(), *port)).await?;
        let Some((tls, name)) = &self.tls else { return Ok(Box::new(stream)) };
        Ok(Box::new(tls.connect(name.clone(), stream).await.context("TLS fails")?))
    }

    /// Its address.
    ///
    /// # Errors
    /// When the name is unknown.
    pub(crate) async fn address(&self) -> anyhow::Result<SocketAddr> {
        let Place { host, port } = &self.place;
        lookup_host((host.as_str(), *port)).await?.next().with_context(|| format!("{host} has no address"))
    }
}

/// TLS by the authorities of a file, or those of this machine.
pub(crate) fn connector(ca: Option<&Path>) -> anyhow::Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(file) => {
            let cannot = || format!("cannot read authorities of {}", file.display());
            for certificate in CertificateDer::pem_file_iter(file).with_context(cannot)? {
                roots.add(certificate.with_context(cannot)?).with_context(cannot)?;
            }
        }
        None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
    }
    if roots.is_empty() {
        bail!("there are no authorities to check a certificate against: --ca names a file of them");
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config).into())
}

/// TLS that takes any certificate.
fn believing() -> anyhow::Result<TlsConnector> {
    let provider = Arc::new(ring::default_provider());
    let verifier = Arc::new(AnyCertificate(provider.signature_verification_algorithms));
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(Arc::new(config).into())
}

/// Asks only that who shows a certificate has its key.
#[derive(Debug)]
struct AnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

fn host_and_port(text: &str) -> Result<Place, String> {
    let expected = "HOST:PORT, as node.example:8080, 127.0.0.1:1883 or [::1]:5683";
    let (host, port) = text.rsplit_once(':').ok_or(expected)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = bare.unwrap_or(host);
    let port = port.parse().map_err(|_| expected)?;
    if host.is_empty() || (bare.is_none() && host.contains(':')) {
        return Err(expected.to_owned());
    }
    Ok(Place { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_goes_by_name_or_address() {
        let parsed = |text: &str| host_and_port(text).map(|place| Way { place, tls: None }.to_string());
        for text in ["node.example:8080", "127.0.0.1:1883", "[::1]:5683"] {
            assert_eq!(parsed(text).as_deref(), Ok(text));
        }
        for text in ["node.example", "::1", "::1:5683", ":80", "node:http", "node:70000"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }
}
