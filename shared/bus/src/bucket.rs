//! What is stored under a key? One JetStream KV bucket, spoken to in its own messages through [`Bus::ask`].
//!
//! That spares what async-nats' own store costs (a second inbox, asks that leak when they expire, a look before each
//! write), and every wait is one of ours. The layout is that of any KV bucket, so NATS' own tools can read it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_nats::{HeaderMap, Message, StatusCode, Subject};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use boot::clock::since_1970;
use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Mutex;
use tracing::{info, warn};

use crate::connection::Bus;
use crate::errors::{AskError, StoreError};
use crate::jetstream::{self, NO_MESSAGE_FOUND, STREAM_NAME_IN_USE, unreadable};

/// In files: it costs no more than memory, and what NATS forgets nobody need write again.
const STORAGE: &str = "file";
/// How long the store may take to say what a bucket is. Short: between two leaders nobody answers, and asked again
/// later the next one does.
const INFO_WAIT: Duration = Duration::from_secs(1);
/// How long it may take to make or change a bucket.
const ADMIN_WAIT: Duration = Duration::from_secs(5);

/// What must stand under a key for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// Nothing.
    Nothing,
    /// This writing.
    Revision(u64),
}

/// What happens when a bucket is not there, or is not as the settings say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// It is made, and follows this process's settings.
    Keeper,
    /// It is made, and stays as it was made.
    Founder,
    /// Others make it: it is waited for.
    Reader,
}

/// What a bucket is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    /// Its name, behind `<prefix>_`.
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    /// None: its values stay, and it may grow as its account may.
    pub(crate) passing: Option<Passing>,
}

/// What values are that are not kept for good.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Passing {
    /// How long one is kept.
    pub(crate) max_age: Duration,
    /// Bytes of all, with which the store is full; none: as many as its account may have.
    pub(crate) max_bytes: Option<u64>,
}

/// What stands under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Grows with every write of the bucket, and over its loss and re-creation too.
    pub(crate) revision: u64,
    /// None for the marker that a removal leaves for a while.
    pub(crate) value: Option<Bytes>,
    /// When it was written, by the store's clock.
    pub(crate) written: SystemTime,
}

/// A bucket that is there.
pub(crate) struct Made {
    /// When it was made, in JetStream's words.
    pub(crate) at: String,
    /// Its last revision; of an empty one, the last before its first.
    pub(crate) revision: u64,
}

/// A bucket whose keys keep only their last value.
#[derive(Clone)]
pub(crate) struct Bucket {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    name: String,
    stream: String,
    /// `$KV.<name>.`: the key follows.
    subject_prefix: String,
    direct_get_prefix: String,
    leader_get: String,
    spec: Spec,
    role: Role,
    /// Counts re-creations, so that many who find the bucket missing make it once.
    made: AtomicU64,
    making: Mutex<()>,
    /// More than one copy stands, whatever the settings of this process say: a direct get may find one that lags.
    has_copies: AtomicBool,
}

impl Bucket {
    /// The bucket of that description.
    pub(crate) async fn open(bus: &Bus, spec: Spec, role: Role) -> Result<Self, StoreError> {
        let bus = bus.store();
        let api = bus.api();
        let name = format!("{}_{}", bus.subjects().prefix(), spec.name);
        let stream = format!("KV_{name}");
        let bucket = Bucket {
            inner: Arc::new(Inner {
                bus: bus.clone(),
                subject_prefix: format!("$KV.{name}."),
                direct_get_prefix: format!("{api}DIRECT.GET.{stream}.$KV.{name}."),
                leader_get: format!("{api}STREAM.MSG.GET.{stream}"),
                name,
                stream,
                spec,
                role,
                made: AtomicU64::new(0),
                making: Mutex::new(()),
                has_copies: AtomicBool::new(bus.replicas() > 1),
            }),
        };
        bucket.make_if_missing().await?;
        Ok(bucket)
    }

    /// The connection to JetStream.
    pub(crate) fn bus(&self) -> &Bus {
        &self.inner.bus
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.inner.role == Role::Reader
    }

    pub(crate) fn name(&self) -> &str {
        &self.inner.name
    }

    pub(crate) fn stream(&self) -> &str {
        &self.inner.stream
    }

    pub(crate) fn subject_prefix(&self) -> &str {
        &self.inner.subject_prefix
    }

    /// Writes and returns the revision.
    pub(crate) async fn put(
        &self,
        key: &str,
        value: Bytes,
        expected: Expected,
        wait: Duration,
    ) -> Result<u64, StoreError> {
        self.write(key, value, Some(expected_headers(expected)), wait).await
    }

    /// Writes over whatever stands there.
    pub(crate) async fn replace(&self, key: &str, value: Bytes, wait: Duration) -> Result<u64, StoreError> {
        self.write(key, value, None, wait).await
    }

    /// Removes if `expected` stands there. Watchers hear of it; what they hear vanishes after `marker_ttl` (1 s and
    /// up), or stays.
    pub(crate) async fn remove(
        &self,
        key: &str,
        expected: Expected,
        marker_ttl: Option<Duration>,
        wait: Duration,
    ) -> Result<u64, StoreError> {
        let mut headers = expected_headers(expected);
        headers.insert("KV-Operation", "DEL");
        if let Some(ttl) = marker_ttl {
            headers.insert("Nats-TTL", format!("{}s", ttl.as_secs().max(1)));
        }
        self.write(key, Bytes::new(), Some(headers), wait).await
    }

    /// What stands there now, asked of the copy that all writes go through.
    pub(crate) async fn get(&self, key: &str, wait: Duration) -> Result<Option<Entry>, StoreError> {
        let made = self.inner.made.load(Ordering::Acquire);
        let found = self.get_once(key, wait).await;
        let Err(StoreError::Missing(_)) = found else { return found };
        self.make_again(made).await?;
        self.get_once(key, wait).await
    }

    /// The keys that a pattern matches, as in `name.*.ab`; those of removed values are among them for a while.
    pub(crate) async fn matching(&self, pattern: &str, wait: Duration) -> Result<Vec<String>, StoreError> {
        let filter = json!({ "subjects_filter": format!("{}{pattern}", self.inner.subject_prefix) });
        let info = self.administer(&format!("STREAM.INFO.{}", self.inner.stream), &filter, wait).await?;
        let subjects = info.pointer("/state/subjects").and_then(Value::as_object);
        let keys = subjects.into_iter().flat_map(|subjects| subjects.keys());
        Ok(keys.filter_map(|it| Some(it.strip_prefix(&self.inner.subject_prefix)?.to_owned())).collect())
    }

    /// One request to JetStream's API; `operation` is the subject behind the API's prefix.
    pub(crate) async fn administer(
        &self,
        operation: &str,
        request: &Value,
        wait: Duration,
    ) -> Result<Value, StoreError> {
        jetstream::administer(&self.inner.bus, &self.inner.name, operation, request, wait).await
    }

    /// What the store says of the bucket.
    pub(crate) async fn info(&self) -> Result<Value, StoreError> {
        self.administer(&format!("STREAM.INFO.{}", self.inner.stream), &Value::Null, INFO_WAIT).await
    }

    /// Looks for the bucket, and makes it if it is ours to make, unless somebody has done so since `made` was read.
    async fn make_again(&self, made: u64) -> Result<(), StoreError> {
        let _one_at_a_time = self.inner.making.lock().await;
        if self.inner.made.load(Ordering::Acquire) != made {
            return Ok(());
        }
        self.make_if_missing_unlocked().await
    }

    /// Makes the bucket if it is missing and ours to make.
    pub(crate) async fn make_if_missing(&self) -> Result<Made, StoreError> {
        let _one_at_a_time = self.inner.making.lock().await;
        self.make_if_missing_unlocked().await?;
        let info = self.info().await?;
        Ok(Made {
            at: info.get("created").and_then(Value::as_str).unwrap_or_default().to_owned(),
            revision: info.pointer("/state/last_seq").and_then(Value::as_u64).unwrap_or_default(),
        })
    }

    async fn make_if_missing_unlocked(&self) -> Result<(), StoreError> {
        let Inner { stream, name, bus, spec, role, .. } = &*self.inner;
        let found = self.info().await;
        let standing = match found {
            Ok(info) => Some(info),
            Err(StoreError::Missing(_)) => None,
            Err(error) => return Err(error),
        };
        let copies = standing.as_ref().and_then(|info| info.pointer("/config/num_replicas")?.as_u64());
        let has_copies = bus.replicas() > 1 || copies.is_some_and(|copies| copies > 1);
        self.inner.has_copies.store(has_copies, Ordering::Release);
        match standing {
            None if *role == Role::Reader => return Err(StoreError::Missing(name.clone())),
            None => {
                let passing = spec.passing;
                let config = json!({
                    "name": stream,
                    "description": spec.description,
                    "subjects": [format!("$KV.{name}.>")],
                    "storage": STORAGE,
                    "num_replicas": bus.replicas(),
                    "retention": "limits",
                    "discard": "new",
                    "max_msgs_per_subject": 1,
                    "max_msgs": -1,
                    "max_bytes": passing.and_then(|it| it.max_bytes).map_or(json!(-1), |it| json!(it)),
                    "max_consumers": -1,
                    "max_age": passing.map_or(0, |it| it.max_age.as_nanos()),
                    "duplicate_window": 120_000_000_000_u64,
                    // A header of one message would purge all others.
                    "allow_rollup_hdrs": false,
                    "deny_delete": true,
                    "allow_direct": true,
                    "allow_msg_ttl": true,
                    // Revisions go on growing when the bucket is lost with NATS' files and made again: one held
                    // from before never names a later write.
                    "first_seq": now_us(),
                });
                match self.administer(&format!("STREAM.CREATE.{stream}"), &config, ADMIN_WAIT).await {
                    Ok(_) => info!(bucket = name, "made the bucket"),
                    // Another process was faster.
                    Err(StoreError::Refused { code: STREAM_NAME_IN_USE, .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            Some(_) if *role != Role::Keeper => {}
            Some(info) if info.pointer("/config/storage").and_then(Value::as_str) != Some(STORAGE) => {
                // That cannot be changed; what stood there is written again by those whose it is.
                self.administer(&format!("STREAM.DELETE.{stream}"), &Value::Null, ADMIN_WAIT).await?;
                info!(bucket = name, "the bucket is made anew: it was kept in memory");
                return Box::pin(self.make_if_missing_unlocked()).await;
            }
            Some(mut info) => self.bring_up_to_date(info.get_mut("config")).await,
        }
        self.inner.made.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    /// Follows settings that have changed since the bucket was made.
    async fn bring_up_to_date(&self, config: Option<&mut Value>) {
        let Inner { stream, name, bus, .. } = &*self.inner;
        let Some(Value::Object(config)) = config else { return };
        if config.get("num_replicas").and_then(Value::as_u64) == Some(bus.replicas().into()) {
            return;
        }
        config.insert("num_replicas".into(), bus.replicas().into());
        let config = Value::Object(config.clone());
        match self.administer(&format!("STREAM.UPDATE.{stream}"), &config, ADMIN_WAIT).await {
            Ok(_) => info!(bucket = name, "changed the bucket as the settings say"),
            Err(error) => warn!(bucket = name, %error, "the bucket keeps its older settings"),
        }
    }

    async fn write(
        &self,
        key: &str,
        value: Bytes,
        headers: Option<HeaderMap>,
        wait: Duration,
    ) -> Result<u64, StoreError> {
        let made = self.inner.made.load(Ordering::Acquire);
        let written = self.write_once(key, value.clone(), headers.clone(), wait).await;
        let Err(StoreError::Missing(_)) = written else { return written };
        self.make_again(made).await?;
        self.write_once(key, value, headers, wait).await
    }

    async fn write_once(
        &self,
        key: &str,
        value: Bytes,
        headers: Option<HeaderMap>,
        wait: Duration,
    ) -> Result<u64, StoreError> {
        let subject = joined(&self.inner.subject_prefix, key);
        let reply = match self.inner.bus.exchange(subject, headers, value, wait).await {
            Ok(reply) => reply.payload,
            // No stream takes the subject: the bucket is gone.
            Err(AskError::NoResponders) => return Err(StoreError::Missing(self.inner.name.clone())),
            Err(error) => return Err(error.into()),
        };
        Ok(jetstream::acknowledged(&self.inner.name, &reply)?.sequence)
    }

    async fn get_once(&self, key: &str, wait: Duration) -> Result<Option<Entry>, StoreError> {
        // A direct get is cheaper, but any copy answers it, and one may lag.
        if self.inner.has_copies.load(Ordering::Acquire) {
            self.get_from_leader(key, wait).await
        } else {
            self.get_direct(key, wait).await
        }
    }

    async fn get_direct(&self, key: &str, wait: Duration) -> Result<Option<Entry>, StoreError> {
        let subject = joined(&self.inner.direct_get_prefix, key);
        let reply = match self.inner.bus.exchange(subject, None, Bytes::new(), wait).await {
            Ok(reply) => reply,
            Err(AskError::NoResponders) => return Err(StoreError::Missing(self.inner.name.clone())),
            Err(error) => return Err(error.into()),
        };
        match reply.status {
            Some(StatusCode::NOT_FOUND) => return Ok(None),
            None | Some(StatusCode::OK) => {}
            Some(status) => {
                return Err(StoreError::Refused {
                    code: u64::from(status.as_u16()),
                    description: reply.description.unwrap_or_default(),
                });
            }
        }
        let Message { headers, payload, .. } = reply;
        let headers = headers.unwrap_or_default();
        let revision = headers.get("Nats-Sequence").and_then(|sequence| sequence.as_str().parse().ok());
        let revision =
            revision.ok_or_else(|| StoreError::Unreadable("a value without its revision".into()))?;
        let written = time_of(headers.get("Nats-Time-Stamp").map_or("", |time| time.as_str()))?;
        Ok(Some(Entry { revision, value: (!is_marker(&headers)).then_some(payload), written }))
    }

    async fn get_from_leader(&self, key: &str, wait: Duration) -> Result<Option<Entry>, StoreError> {
        let request = json!({ "last_by_subj": format!("{}{key}", self.inner.subject_prefix) }).to_string();
        let subject = Subject::from(self.inner.leader_get.as_str());
        let reply = self.inner.bus.ask(subject, request.into(), wait).await?;
        let stored: Stored = serde_json::from_slice(&reply).map_err(|error| unreadable(&error))?;
        let message = match (stored.error, stored.message) {
            (Some(error), _) if error.get("err_code").and_then(Value::as_u64) == Some(NO_MESSAGE_FOUND) => {
                return Ok(None);
            }
            (Some(error), _) => return Err(jetstream::refusal(&self.inner.name, &error)),
            (None, Some(message)) => message,
            (None, None) => return Err(StoreError::Unreadable("no message in it".into())),
        };
        let decode = |text: Option<String>| {
            BASE64.decode(text.unwrap_or_default()).map_err(|error| unreadable(&error))
        };
        let headers = decode(message.hdrs)?;
        let headers = String::from_utf8_lossy(&headers);
        let is_marker = headers.lines().any(|line| {
            line.strip_prefix("KV-Operation:").is_some_and(|operation| operation.trim() != "PUT")
                || line.starts_with("Nats-Marker-Reason:")
        });
        let value = if is_marker { None } else { Some(decode(message.data)?.into()) };
        Ok(Some(Entry { revision: message.seq, value, written: time_of(&message.time)? }))
    }
}

#[derive(Deserialize)]
struct Stored {
    error: Option<Value>,
    message: Option<StoredMessage>,
}

#[derive(Deserialize)]
struct StoredMessage {
    seq: u64,
    hdrs: Option<String>,
    data: Option<String>,
    time: String,
}

/// Whether a stored message says that its key has no value: deletes, purges and the server's own markers do.
pub(crate) fn is_marker(headers: &HeaderMap) -> bool {
    headers.get("KV-Operation").is_some_and(|operation| operation.as_str() != "PUT")
        || headers.get("Nats-Marker-Reason").is_some()
}

fn time_of(text: &str) -> Result<SystemTime, StoreError> {
    OffsetDateTime::parse(text, &Rfc3339).map(SystemTime::from).map_err(|error| unreadable(&error))
}

fn expected_headers(expected: Expected) -> HeaderMap {
    let revision = match expected {
        Expected::Nothing => 0,
        Expected::Revision(revision) => revision,
    };
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Expected-Last-Subject-Sequence", revision.to_string());
    headers
}

fn joined(prefix: &str, key: &str) -> Subject {
    let mut subject = String::with_capacity(prefix.len() + key.len());
    subject.push_str(prefix);
    subject.push_str(key);
    subject.into()
}

/// Where a stream's sequence begins that may have been there before.
pub(crate) fn now_us() -> u64 {
    u64::try_from(since_1970().as_micros()).unwrap_or(1)
}
