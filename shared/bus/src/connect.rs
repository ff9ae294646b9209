//! How is NATS reached, and reached again? The client's options, and what becomes of its connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use async_nats::{Auth, AuthError, Client, ConnectErrorKind, ConnectOptions, Event};
use bytes::Bytes;
use parking_lot::Mutex;
use rpc::NodeKey;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::{debug, info, warn};

use crate::credentials::Credentials;
use crate::errors::BusError;
use crate::local::Local;
use crate::meters::Meters;
use crate::outage::{Outage, REFUSED};
use crate::pending::Pending;
use crate::pulse::{Beat, PULSE_EVERY, Pulse};

/// Messages that one subscription may queue before further ones are dropped and counted. A load of many claims, or of
/// the registry, must fit: JetStream sends up to 32 MiB ahead of a watch's flow control, in messages of 128 bytes and
/// more. A smaller queue would drop some, and the load would begin anew for ever.
const SUBSCRIPTION_CAPACITY: usize = 262_144;
/// Messages that may wait for the connection before a sender waits too.
const SEND_CAPACITY: usize = 8_192;
/// The longest pause between two attempts to reconnect.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(2);
/// How to reach NATS.
#[derive(Clone)]
pub struct BusSettings {
    /// Servers of one cluster, separated by commas.
    pub url: String,
    /// The first token of every subject and the beginning of every bucket's name.
    pub prefix: String,
    /// User name, together with `password`.
    pub user: Option<String>,
    /// User name of the connection to JetStream, with the same password; none: JetStream is where `user` is.
    pub store_user: Option<String>,
    /// Password, together with `user`.
    pub password: Option<String>,
    /// The file with the password, read at each attempt to connect, instead of `password`.
    pub password_file: Option<PathBuf>,
    /// A NATS credentials file, read at each attempt to connect, instead of user and password.
    pub credentials_file: Option<PathBuf>,
    /// Certificates of who vouches for the servers, which then must speak TLS; none: as the servers ask for.
    pub tls_ca_file: Option<PathBuf>,
    /// Whether a server with known advisories is taken.
    pub allow_vulnerable_server: bool,
    /// Copies of each bucket: 1 on a single server, 3 or 5 in a cluster.
    pub replicas: u16,
    /// How long [`Bus::connect`](crate::Bus::connect) tries, and how long each later attempt may take.
    pub connect_timeout_ms: u64,
    /// How long a message may wait to be taken by the connection.
    pub send_timeout_ms: u64,
    /// Questions that may be open at a time.
    pub max_pending_asks: usize,
    /// Buses with the same one are in this process, and hand messages over in memory; none: NATS carries all of them.
    pub local: Option<Local>,
}

impl Default for BusSettings {
    fn default() -> Self {
        BusSettings {
            url: "nats://127.0.0.1:4222".into(),
            prefix: "swb".into(),
            user: None,
            store_user: None,
            password: None,
            password_file: None,
            credentials_file: None,
            tls_ca_file: None,
            allow_vulnerable_server: false,
            replicas: 1,
            connect_timeout_ms: 5_000,
            send_timeout_ms: 1_000,
            max_pending_asks: 65_536,
            local: None,
        }
    }
}

impl BusSettings {
    /// For a connection to JetStream alone; none where that is this one's.
    pub(crate) fn for_store(&self) -> Option<BusSettings> {
        let store_user =
            self.store_user.clone().filter(|store_user| Some(store_user) != self.user.as_ref())?;
        Some(BusSettings { user: Some(store_user), local: None, ..self.clone() })
    }
}

impl fmt::Debug for BusSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BusSettings { url, prefix, user, credentials_file, replicas, .. } = self;
        write!(f, "BusSettings({url}, {prefix}, {user:?}, {credentials_file:?}, {replicas} replicas)")
    }
}

/// Whether NATS can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connection {
    /// Connected, for the `epoch`-th time: grows with every reconnect.
    Up {
        /// Counts connections, from 1.
        epoch: u64,
    },
    /// Not connected; it is tried again for ever.
    Down,
}

pub(crate) async fn connect_client(
    settings: &BusSettings,
    service: &str,
    key: &NodeKey,
    feed: &str,
    meters: &Arc<Meters>,
    happened: &Arc<Notify>,
    outage: &Arc<Outage>,
) -> Result<Client, BusError> {
    let failed = |reason: String| BusError::Connect { url: settings.url.clone(), reason };
    let limit = Duration::from_millis(settings.connect_timeout_ms);
    let give_up = Instant::now() + limit;
    let servers: Vec<async_nats::ServerAddr> = settings
        .url
        .split(',')
        .map(|server| server.trim().parse())
        .collect::<Result<_, _>>()
        .map_err(|error: std::io::Error| failed(error.to_string()))?;

    let credentials = Credentials::new(settings, key.expose());
    let mut reason = "no answer".to_owned();
    loop {
        credentials.show(b"").map_err(failed)?;
        let mut options = ConnectOptions::with_auth_callback(show(&credentials, outage))
            .name(format!("switchboard-{service}"))
            .custom_inbox_prefix(feed)
            .connection_timeout(limit)
            .subscription_capacity(SUBSCRIPTION_CAPACITY)
            .client_capacity(SEND_CAPACITY)
            .ping_interval(Duration::from_secs(20))
            .reconnect_delay_callback(reconnect_delay)
            .event_callback(on_event(meters, happened, outage));
        if let Some(file) = &settings.tls_ca_file {
            holds_certificates(file).map_err(failed)?;
            options = options.add_root_certificates(file.clone()).require_tls(true);
        }
        match timeout_at(give_up, options.connect(servers.clone())).await {
            Ok(Ok(client)) => return Ok(client),
            Ok(Err(error)) => match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    return Err(failed(REFUSED.to_owned()));
                }
                ConnectErrorKind::Tls | ConnectErrorKind::ServerParse => {
                    return Err(failed(error.to_string()));
                }
                _ => reason = error.to_string(),
            },
            Err(_) => return Err(failed(reason)),
        }
        tokio::time::sleep_until((Instant::now() + Duration::from_millis(100)).min(give_up)).await;
        if Instant::now() >= give_up {
            return Err(failed(reason));
        }
    }
}

/// For each attempt to connect, the first and all later ones.
fn show(
    credentials: &Credentials,
    outage: &Arc<Outage>,
) -> impl Fn(Vec<u8>) -> std::future::Ready<Result<Auth, AuthError>> + Send + Sync + 'static {
    let (credentials, outage) = (credentials.clone(), Arc::clone(outage));
    move |nonce| {
        let shown = credentials.show(&nonce).inspect_err(|why| outage.failed(why));
        std::future::ready(shown.map_err(AuthError::new))
    }
}

/// async-nats says neither which file it could not use, nor that there was nothing in it.
fn holds_certificates(file: &Path) -> Result<(), String> {
    let named = |reason: &dyn fmt::Display| format!("nats.tls_ca_file {}: {reason}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| named(&error))?;
    match text.contains("-----BEGIN CERTIFICATE-----") {
        true => Ok(()),
        false => Err(named(&"there is no certificate (PEM) in it")),
    }
}

/// Whether a server of that version does for us: below 2.11 the buckets lack what they need; before 2.12.12, and in
/// 2.14 before 2.14.3, users can exceed their rights (NATS' advisories).
pub(crate) fn admit_version(version: &str, allow_vulnerable: bool) -> Result<(), BusError> {
    let numbers: Vec<u64> = version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect();
    let version = || version.to_owned();
    match numbers.as_slice() {
        [0 | 1, ..] | [2, 0..11, ..] | [] => Err(BusError::TooOld { version: version() }),
        [2, 11 | 13, ..] | [2, 12, 0..12, ..] | [2, 14, 0..3, ..] if !allow_vulnerable => {
            Err(BusError::Vulnerable { version: version() })
        }
        _ => Ok(()),
    }
}

/// None before the first attempt, then doubling from 20 ms.
fn reconnect_delay(attempt: usize) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempt - 2).unwrap_or(u32::MAX).min(10);
    (Duration::from_millis(20) * 2u32.pow(doublings)).min(MAX_RECONNECT_DELAY)
}

fn on_event(
    meters: &Arc<Meters>,
    happened: &Arc<Notify>,
    outage: &Arc<Outage>,
) -> impl Fn(Event) -> std::future::Ready<()> + Send + Sync + 'static {
    let (meters, happened, outage) = (Arc::clone(meters), Arc::clone(happened), Arc::clone(outage));
    let has_warned_of_drops = AtomicBool::new(false);
    move |event| {
        match event {
            Event::Connected => {
                outage.over();
                happened.notify_one();
            }
            Event::Disconnected | Event::Closed => happened.notify_one(),
            // One event for each dropped message, so only the first is worth a line; the counter has the rest.
            Event::SlowConsumer(subscription) => {
                meters.dropped.increment(1);
                if !has_warned_of_drops.swap(true, Ordering::Relaxed) {
                    warn!(subscription, "messages are dropped: this process does not keep up with NATS");
                }
            }
            Event::ServerError(error) => warn!(%error, "NATS reports an error"),
            // Of an attempt to connect again: the client has no others.
            Event::ClientError(error) => {
                let cause = error.to_string();
                // What could not be shown has been said, and why.
                if !cause.ends_with(&ConnectErrorKind::Authentication.to_string()) {
                    outage.failed(&cause);
                }
            }
            Event::LameDuckMode => info!("the NATS server is about to shut down"),
            Event::Draining => {}
        }
        std::future::ready(())
    }
}

pub(crate) fn observe(client: &Client) -> Connection {
    match client.connection_state() {
        State::Connected => Connection::Up { epoch: client.statistics().connects.load(Ordering::Relaxed) },
        State::Pending | State::Disconnected => Connection::Down,
    }
}

/// What the monitor looks after.
pub(crate) struct Monitored {
    pub(crate) client: Client,
    /// Messages to itself go below it.
    pub(crate) pulse_prefix: String,
    pub(crate) pulse: Arc<Mutex<Pulse>>,
    pub(crate) pending: Arc<Pending>,
    pub(crate) meters: Arc<Meters>,
}

/// Follows the client's state, and ends a connection through which nothing comes any more. Events only wake it:
/// async-nats drops events when many come at once.
pub(crate) async fn monitor(
    monitored: Monitored,
    connection: watch::Sender<Connection>,
    happened: Arc<Notify>,
) {
    let Monitored { client, pulse_prefix, pulse, pending, meters } = monitored;
    let mut next_pulse = Instant::now();
    let mut heard = 0;
    loop {
        // Whether an event or the time ended the wait makes no difference.
        let _ = timeout_at(next_pulse, happened.notified()).await;
        meters.asks_in_flight.set(pending.len() as f64);
        let now = observe(&client);
        let before = *connection.borrow();
        if now != before {
            connection.send_replace(now);
            pulse.lock().disconnected();
            match (before, now) {
                (_, Connection::Down) => {
                    meters.connected.set(0.0);
                    warn!("the connection to NATS is lost");
                }
                (_, Connection::Up { epoch }) => {
                    meters.connected.set(1.0);
                    meters.reconnects.increment(1);
                    info!(epoch, "the connection to NATS is back");
                    // At once: until it is back, whatever comes in counts as old as the outage.
                    next_pulse = Instant::now();
                }
            }
        }
        if Instant::now() < next_pulse {
            continue;
        }
        next_pulse = Instant::now() + PULSE_EVERY;
        if now == Connection::Down {
            continue;
        }
        let heard_before =
            std::mem::replace(&mut heard, client.statistics().in_messages.load(Ordering::Relaxed));
        let beat = pulse.lock().tick(heard != heard_before, Instant::now().into());
        let done = match beat {
            Beat::Send(number) => {
                let sent = client.publish(format!("{pulse_prefix}{number}"), Bytes::new());
                timeout(PULSE_EVERY, sent).await.is_ok()
            }
            Beat::Reconnect => {
                warn!("nothing comes through the connection to NATS any more: it is closed and opened anew");
                timeout(PULSE_EVERY, client.force_reconnect()).await.is_ok()
            }
        };
        if !done {
            debug!("the connection to NATS takes nothing");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_with_advisories_is_taken_only_where_that_is_said() {
        let admitted = |version, allow| match admit_version(version, allow) {
            Ok(()) => "taken",
            Err(BusError::Vulnerable { .. }) => "vulnerable",
            Err(_) => "too old",
        };
        for version in ["2.12.12", "2.12.13", "2.14.3", "2.14.10", "2.15.0-RC.1", "2.15.1", "3.0.0"] {
            assert_eq!((admitted(version, false), admitted(version, true)), ("taken", "taken"), "{version}");
        }
        for version in
            ["2.11.0", "2.11.99", "2.12.0", "2.12.11", "2.12.11-beta.1", "2.13.0", "2.14.0", "2.14.2"]
        {
            assert_eq!(
                (admitted(version, false), admitted(version, true)),
                ("vulnerable", "taken"),
                "{version}"
            );
        }
        for version in ["2.10.29", "2.9.1", "1.4.1", "", "?"] {
            assert_eq!(
                (admitted(version, false), admitted(version, true)),
                ("too old", "too old"),
                "{version}"
            );
        }
    }
}
