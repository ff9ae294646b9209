//! What stands in the registry, and what changes there? One full load, then every change, over outages too.

use std::collections::HashSet;
use std::time::Duration;

use async_nats::jetstream::consumer::push::{Ordered, OrderedConfig};
use async_nats::jetstream::consumer::{DeliverPolicy, ReplayPolicy};
use async_nats::jetstream::stream::{Info, InfoError, Stream};
use async_nats::jetstream::{self, ErrorCode, Message};
use futures::StreamExt;
use futures::future::BoxFuture;
use rpc::{CredentialHash, CustomerId, DeviceId, TenantId};
use serde::de::DeserializeOwned;
use tokio::sync::watch::Receiver;
use tokio::time::Instant;

use super::bucket::Bucket;
use super::{Customer, Device, RegistryError, Snapshot, Tenant};
use crate::{Bus, Connection};

/// How often the watch makes sure that the store it listens to is still the same.
const CHECK_EVERY: Duration = Duration::from_secs(5);
/// A load in which nothing arrives for so long has failed, and begins anew.
const LOAD_IDLE: Duration = Duration::from_secs(10);
/// Pauses between two attempts to open the store.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a [`RegistryWatch`] saw. `now` is what stands there now; none: it was removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A full load begins; what is not named again before [`Change::Loaded`] is gone. Until then what was
    /// known stays the best knowledge there is.
    Loading,
    /// A tenant.
    Tenant(TenantId, Option<Tenant>),
    /// A customer.
    Customer(CustomerId, Option<Customer>),
    /// A device.
    Device(DeviceId, Option<Device>),
    /// Which device a credential was made for. It is that device's only if its record bears the same hash.
    Credential(CredentialHash, Option<DeviceId>),
    /// The load is complete.
    Loaded,
    /// The store has been asked, and is still the one watched: nothing was missed.
    Confirmed,
}

/// Follows the registry for ever; see [`Registry::watch`](super::Registry::watch).
pub struct RegistryWatch {
    bus: Bus,
    connection: Receiver<Connection>,
    feed: Option<Feed>,
    /// Kept here, so that a wait that is dropped does not begin it anew: over a large registry it takes its time.
    opening: Option<BoxFuture<'static, Result<Feed, RegistryError>>>,
    pause: Duration,
    retry_at: Instant,
}

impl RegistryWatch {
    pub(super) fn new(bus: &Bus) -> Self {
        RegistryWatch {
            bus: bus.clone(),
            connection: bus.connection(),
            feed: None,
            opening: None,
            pause: FIRST_PAUSE,
            retry_at: Instant::now(),
        }
    }

    /// The next change. Never ends: after an outage, or when the store was replaced, everything is loaded again.
    /// May be dropped and called again without losing a change.
    pub async fn next(&mut self) -> Change {
        loop {
            let Some(feed) = &mut self.feed else {
                if self.open().await {
                    return Change::Loading;
                }
                continue;
            };
            if feed.is_complete && !feed.is_announced {
                feed.is_announced = true;
                self.pause = FIRST_PAUSE;
                return Change::Loaded;
            }
            tokio::select! {
                biased;
                changed = self.connection.changed() => {
                    if changed.is_err() {
                        // The bus was closed: nothing will change any more.
                        return std::future::pending().await;
                    }
                    if matches!(*self.connection.borrow_and_update(), Connection::Up { epoch } if epoch != feed.epoch) {
                        self.reopen("connected anew");
                    }
                }
                entry = feed.messages.next() => match feed.take(entry) {
                    Ok(Some(change)) => return change,
                    Ok(None) => {}
                    Err(error) => self.reopen(&error),
                },
                answer = feed.check.answer() => match feed.compare(answer) {
                    Ok(true) => return Change::Confirmed,
                    Ok(false) => {}
                    Err(reason) => self.reopen(&reason),
                },
            }
        }
    }

    async fn open(&mut self) -> bool {
        let opening = match &mut self.opening {
            Some(opening) => opening,
            None => {
                tokio::time::sleep_until(self.retry_at).await;
                let Connection::Up { epoch } = *self.connection.borrow_and_update() else {
                    // Woken by the connection: asking a server that is not there would only take its time out.
                    let _ = self.connection.changed().await;
                    return false;
                };
                self.pause_longer();
                self.opening.insert(Box::pin(open_feed(self.bus.clone(), epoch)))
            }
        };
        let feed = opening.await;
        self.opening = None;
        match feed {
            Ok(feed) => {
                self.feed = Some(feed);
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the registry cannot be read; trying again");
                false
            }
        }
    }

    fn reopen(&mut self, reason: &str) {
        tracing::info!(reason, "reading the registry anew");
        self.feed = None;
    }

    fn pause_longer(&mut self) {
        self.retry_at = Instant::now() + self.pause;
        self.pause = LONGEST_PAUSE.min(self.pause * 2);
    }
}

async fn open_feed(bus: Bus, epoch: u64) -> Result<Feed, RegistryError> {
    Feed::open(&Bucket::open(&bus).await?, epoch, &KINDS).await
}

/// The keys that a watch needs; the indexes of names serve only those who write.
const KINDS: [&str; 4] = ["tenant.*", "customer.*", "device.*", "credential.*"];

/// Loads what stands in the bucket under `kinds` of keys.
pub(super) async fn load(bucket: &Bucket, kinds: &[&str]) -> Result<Snapshot, RegistryError> {
    let mut feed = Feed::open(bucket, 0, kinds).await?;
    let mut snapshot = Snapshot::default();
    let idle = || RegistryError::Unreachable("the registry could not be read to its end".to_owned());
    while !feed.is_complete {
        let entry = tokio::time::timeout(LOAD_IDLE, feed.messages.next()).await.map_err(|_| idle())?;
        match feed.take(entry).map_err(RegistryError::Unreachable)? {
            Some(Change::Tenant(id, now)) => put(&mut snapshot.tenants, id, now),
            Some(Change::Customer(id, now)) => put(&mut snapshot.customers, id, now),
            Some(Change::Device(id, now)) => put(&mut snapshot.devices, id, now),
            _ => {}
        }
    }
    Ok(snapshot)
}

fn put<K: Eq + std::hash::Hash, V>(map: &mut std::collections::HashMap<K, V>, key: K, now: Option<V>) {
    match now {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

/// One ordered consumer on the bucket.
struct Feed {
    messages: Ordered,
    /// The subject prefix of the bucket's keys.
    prefix: String,
    /// Of the connection that this feed was opened on: the feed ends with it.
    epoch: u64,
    /// Tells the store from one that was made anew under the same name.
    created_ns: i128,
    last_sequence: u64,
    is_complete: bool,
    is_announced: bool,
    last_arrival: Instant,
    check: Check,
    /// Keys complained about, so that a record nobody can read does not fill the log.
    unreadable: HashSet<String>,
}

impl Feed {
    async fn open(bucket: &Bucket, epoch: u64, kinds: &[&str]) -> Result<Self, RegistryError> {
        let store = &bucket.store;
        let prefix = store.prefix.clone();
        let config = OrderedConfig {
            deliver_subject: bucket.jetstream.client().new_inbox(),
            description: Some("registry watch".to_owned()),
            filter_subjects: kinds.iter().map(|kind| format!("{prefix}{kind}")).collect(),
            replay_policy: ReplayPolicy::Instant,
            deliver_policy: DeliverPolicy::LastPerSubject,
            ..OrderedConfig::default()
        };
        let consumer = store.stream.create_consumer(config).await.map_err(RegistryError::unreachable)?;
        // Nothing will ever arrive from an empty bucket.
        let is_complete = consumer.cached_info().num_pending == 0;
        let created_ns = store.stream.cached_info().created.unix_timestamp_nanos();
        let messages = consumer.messages().await.map_err(RegistryError::unreachable)?;
        let check = Check { stream: store.stream.clone(), due: Instant::now() + CHECK_EVERY, asking: None };
        Ok(Feed {
            messages,
            prefix,
            epoch,
            created_ns,
            last_sequence: 0,
            is_complete,
            is_announced: false,
            last_arrival: Instant::now(),
            check,
            unreadable: HashSet::new(),
        })
    }

    /// What an arrived entry says; none for one that says nothing.
    fn take<E: std::error::Error>(
        &mut self,
        arrived: Option<Result<Message, E>>,
    ) -> Result<Option<Change>, String> {
        let message = match arrived {
            Some(Ok(message)) => message,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the consumer ended".to_owned()),
        };
        let info = message.info().map_err(|error| error.to_string())?;
        self.last_sequence = info.stream_sequence;
        self.last_arrival = Instant::now();
        self.is_complete |= info.pending == 0;
        let Some(key) = message.subject.strip_prefix(&self.prefix) else {
            return Ok(None);
        };
        // Puts carry no headers of these names: deletes, purges and the server's own markers do.
        let is_gone = message.headers.as_ref().is_some_and(|headers| {
            headers.get("Nats-Marker-Reason").is_some()
                || headers.get("KV-Operation").is_some_and(|operation| operation.as_str() != "PUT")
        });
        let change = change(key, (!is_gone).then_some(&message.payload));
        if change.is_none() && self.unreadable.insert(key.to_owned()) {
            tracing::warn!(key, "a record of the registry cannot be read, and counts as missing");
        }
        Ok(change.unwrap_or_else(|| change_of(key)))
    }

    /// Whether the stream that answered a check is the one listened to, and wholly read.
    fn compare(&self, answer: Result<Info, InfoError>) -> Result<bool, String> {
        if !self.is_complete && self.last_arrival.elapsed() > LOAD_IDLE {
            return Err("the load stalled".to_owned());
        }
        let info = match answer {
            Ok(info) => info,
            // A stream that is gone is made anew; one that does not answer is asked again.
            Err(error) if is_gone(&error) => return Err("the bucket is gone".to_owned()),
            Err(_) => return Ok(false),
        };
        if info.created.unix_timestamp_nanos() != self.created_ns
            || info.state.last_sequence < self.last_sequence
        {
            return Err("the bucket was made anew".to_owned());
        }
        Ok(self.is_complete)
    }
}

/// Asks the server about the stream every few seconds.
struct Check {
    stream: Stream,
    due: Instant,
    /// Kept here, so that a wait that is dropped loses no answer.
    asking: Option<BoxFuture<'static, Result<Info, InfoError>>>,
}

impl Check {
    async fn answer(&mut self) -> Result<Info, InfoError> {
        if self.asking.is_none() {
            tokio::time::sleep_until(self.due).await;
        }
        let stream = &self.stream;
        let ask = || -> BoxFuture<'static, _> {
            let stream = stream.clone();
            Box::pin(async move { stream.get_info().await })
        };
        let answer = self.asking.get_or_insert_with(ask).await;
        self.asking = None;
        self.due = Instant::now() + CHECK_EVERY;
        answer
    }
}

fn is_gone(error: &InfoError) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<jetstream::Error>())
        .is_some_and(|reason| reason.error_code() == ErrorCode::STREAM_NOT_FOUND)
}

/// The change that an entry tells; none when its value cannot be read.
fn change(key: &str, value: Option<&bytes::Bytes>) -> Option<Option<Change>> {
    let (kind, rest) = key.split_once('.')?;
    Some(Some(match kind {
        "tenant" => Change::Tenant(rest.parse().ok()?, record(value)?),
        "customer" => Change::Customer(rest.parse().ok()?, record(value)?),
        "device" => Change::Device(rest.parse().ok()?, record(value)?),
        "credential" => {
            let device = match value {
                Some(value) => Some(std::str::from_utf8(value).ok()?.parse().ok()?),
                None => None,
            };
            Change::Credential(CredentialHash(rest.to_owned()), device)
        }
        _ => return Some(None),
    }))
}

/// What an entry of that key says when its value cannot be read: a missing answer denies.
fn change_of(key: &str) -> Option<Change> {
    change(key, None).flatten()
}

fn record<T: DeserializeOwned>(value: Option<&bytes::Bytes>) -> Option<Option<T>> {
    match value {
        Some(value) => serde_json::from_slice(value).ok().map(Some),
        None => Some(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    #[test]
    fn what_cannot_be_read_counts_as_removed() {
        let key = "device.00000000-0000-0000-0000-000000000001";
        let id: DeviceId = key.strip_prefix("device.").unwrap().parse().unwrap();
        assert_eq!(change(key, Some(&Bytes::from_static(b"{"))), None);
        assert_eq!(change_of(key), Some(Change::Device(id, None)));
        assert_eq!(change(key, None), Some(Some(Change::Device(id, None))));
        assert_eq!(change_of("device.nonsense"), None);
        assert_eq!(change("device-name.x.y", None), Some(None));
        let device = Bytes::from(id.to_string());
        assert_eq!(
            change("credential.ab", Some(&device)),
            Some(Some(Change::Credential(CredentialHash("ab".into()), Some(id))))
        );
    }
}
