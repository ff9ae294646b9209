//! What does a nats-server say of itself to who looks at its monitoring port (`/varz`), and to nobody else?

use std::time::Duration;

use anyhow::{Context, bail};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::timeout;

use super::health::{self, Asked};

/// How long it may take to answer.
const WAIT: Duration = Duration::from_secs(3);

/// A nats-server, as far as something of it may hurt.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct Server {
    pub(super) server_name: String,
    /// RFC 3339; the end of the certificate that it shows.
    tls_cert_not_after: Option<String>,
    #[serde(default)]
    pub(super) jetstream: JetStream,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct JetStream {
    /// None where it has no JetStream.
    pub(super) config: Option<Config>,
    pub(super) stats: Stats,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Config {
    /// Bytes that all accounts together may have in files.
    pub(super) max_storage: u64,
    /// Each write is on the disk before it is confirmed.
    pub(super) sync_always: bool,
    sync_interval: u64,
}

impl Config {
    /// How long what is confirmed may not be on the disk yet.
    pub(super) fn sync_interval(&self) -> Duration {
        Duration::from_nanos(self.sync_interval)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Stats {
    /// Bytes in files.
    pub(super) storage: u64,
}

impl Server {
    /// The one whose monitoring port is there.
    ///
    /// # Errors
    /// When it does not answer, or what answers is no nats-server.
    pub(super) async fn ask(at: &Asked) -> anyhow::Result<Server> {
        let asked = Asked { path: "/varz".to_owned(), ..at.clone() };
        let url = || format!("http://{}/varz", asked.authority);
        let answer = timeout(WAIT, health::get(&asked)).await;
        let answer = answer.with_context(|| format!("no answer from {}", url()))?;
        let answer = answer.with_context(|| format!("no answer from {}", url()))?;
        let Some((_, body)) = answer.split_once("\r\n\r\n") else {
            bail!("{} does not answer in HTTP", url())
        };
        serde_json::from_str(body).with_context(|| format!("{} is no nats-server's monitoring port", url()))
    }

    /// When its certificate ends, in seconds from 1970; none without TLS.
    pub(super) fn certificate_end_s(&self) -> Option<i64> {
        let end = OffsetDateTime::parse(self.tls_cert_not_after.as_deref()?, &Rfc3339).ok()?;
        // What Go writes where there is none is long before.
        (end.unix_timestamp() > 0).then_some(end.unix_timestamp())
    }
}
