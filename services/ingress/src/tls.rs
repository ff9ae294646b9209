//! How do devices come in over TLS? With the certificate that the files hold now: they may be replaced while the node
//! runs.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use anyhow::Context as _;
use bus::certificate::first_expiry_s;
use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};
use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::port::linger;

/// Bytes that a client may send until hands are shaken. A greeting has some 2,000 with a key for each exchange there
/// is, and is sent twice where the first guess was wrong; what comes at once behind it counts, 4,096 at most. Without
/// this, a greeting may take 64 KB.
const MAX_HANDSHAKE_BYTES: u64 = 12 * 1024;

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
    pub async fn accept(&self, stream: TcpStream) -> Option<Secured> {
        let address = stream.peer_addr().map(|it| tracing::field::display(it.ip())).ok();
        let config = Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner));
        let stream = Bounded { stream, may_come: MAX_HANDSHAKE_BYTES };
        let handshake = async {
            match TlsAcceptor::from(config).accept(stream).into_fallible().await {
                Ok(mut stream) => {
                    stream.get_mut().0.may_come = u64::MAX;
                    Ok(Box::new(stream))
                }
                Err((error, refused)) => {
                    // It is told why, as far as TLS goes.
                    linger(refused.stream).await;
                    Err(error)
                }
            }
        };
        // Boxed: the handshake is long over when a connection is counted in kilobytes.
        match Box::pin(tokio::time::timeout(self.handshake_timeout, handshake)).await {
            Ok(Ok(stream)) => {
                self.accepted.increment(1);
                Some(Secured { stream, unacknowledged: 0 })
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

/// A connection below TLS, through which no more may come for now.
struct Bounded {
    stream: TcpStream,
    may_come: u64,
}

impl AsyncRead for Bounded {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        let came = (buffer.filled().len() - before) as u64;
        let rest = self.may_come.checked_sub(came);
        self.may_come = rest.ok_or_else(|| io::Error::other("the handshake is longer than it may be"))?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Bounded {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A connection under TLS.
///
/// Written bytes are acknowledged when the socket has them all: a record that waits inside TLS would wait for the next
/// write. Until then, whoever writes must offer the same bytes again, as `write_all`, HTTP and the MQTT loop do.
pub struct Secured {
    /// Boxed: it is large, and handed from one to the other.
    stream: Box<TlsStream<Bounded>>,
    /// Bytes of the writer that are inside TLS.
    unacknowledged: usize,
}

impl Secured {
    /// The connection below.
    pub fn socket(&self) -> &TcpStream {
        &self.stream.get_ref().0.stream
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.stream).poll_read(cx, buffer)) {
            // Closed without the goodbye of TLS: both protocols above tell by themselves whether all has come.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

impl AsyncWrite for Secured {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.unacknowledged == 0 {
            self.unacknowledged = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes))?;
        }
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        Poll::Ready(Ok(std::mem::take(&mut self.unacknowledged)))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
