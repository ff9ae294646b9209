//! Who did what, and was any of it taken away since? The audit: records, each with the hash of the one before it, in
//! two books, of changes and of denials, and in each a chain for each tenant.
//!
//! A book is a JetStream stream, `<prefix>_audit` or `<prefix>_denials`, on the subjects
//! `<prefix>.audit.<tenant>.<NATS user>` or `<prefix>.denials.…`: permissions let each user write in his own name
//! alone. Many write to one chain, by compare-and-set of the tenant's last sequence. A stream is bounded in size and
//! age, and lets nobody remove or purge a message.

mod chain;
mod record;

use std::collections::HashMap;
use std::num::NonZeroU8;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_nats::{HeaderMap, StatusCode};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use boot::Settings;
use boot::clock::unix_ms;
use bytes::Bytes;
use futures::StreamExt;
use rpc::{TenantId, closed_list};
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Iso8601;
use time::format_description::well_known::iso8601::{Config, EncodedConfig, TimePrecision};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};
use tracing::info;
use uuid::Uuid;

pub use chain::{Break, Chain, Cut, Head, Limits, Verdict};
pub use record::{Entry, MAX_DEVICES, MAX_TEXT_CHARS, NO_TENANT, Previous, Record, hash, user_of};

use crate::bucket::now_us;
use crate::connection::Bus;
use crate::errors::{AskError, StoreError};
use crate::jetstream::{self, Acknowledged, NO_MESSAGE_FOUND, STREAM_NAME_IN_USE, unreadable};

/// How long one request may take.
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// How often a record is tried: others write to the same chain.
const ATTEMPTS: u32 = 16;
/// For how long, all together.
const APPEND_WITHIN: Duration = Duration::from_secs(10);
/// For how long JetStream knows the ids of records: above the time that one is tried for.
const DUPLICATE_WINDOW: Duration = Duration::from_secs(120);
/// The longest message, in bytes: above what a record's limits allow.
const MAX_RECORD_BYTES: u32 = 32_768;
/// Records of one page, and its bytes.
const PAGE_RECORDS: usize = 1_000;
const PAGE_BYTES: usize = 4 * 1024 * 1024;
/// Heads that a writer keeps in mind; with more, it reads them again.
const MAX_HEADS: usize = 10_000;
/// What a stream that is full may be short of its limit: a record's own size is not known from outside.
const FULL_WITHIN_BYTES: u64 = 2 * MAX_RECORD_BYTES as u64;

closed_list! {
    /// What is kept apart: whoever has a device's token, or none, can have denials recorded without end. They push out
    /// one another, and never the record of a change.
    #[derive(Default, PartialOrd, Ord)]
    pub enum Book {
        /// Of the registry, tokens and policies; and the denials of versions that had no book for them.
        #[default]
        Changes = "changes",
        /// Denials.
        Denials = "denials",
    }
}

impl Book {
    /// Where records of this kind stand, and of those below it.
    pub fn of_kind(kind: &str) -> Book {
        match kind.split('.').next() {
            Some("denied") => Book::Denials,
            _ => Book::Changes,
        }
    }

    /// Its word in the names of its stream and subjects.
    const fn word(self) -> &'static str {
        match self {
            Book::Changes => "audit",
            Book::Denials => "denials",
        }
    }
}

impl FromStr for Book {
    type Err = ();

    fn from_str(name: &str) -> Result<Self, ()> {
        Book::ALL.into_iter().find(|book| book.as_str() == name).ok_or(())
    }
}

impl Serialize for Book {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// How long records are kept, and how many. They hold from when the stream is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// How long.
    pub max_age: Duration,
    /// Bytes of all records.
    pub max_bytes: u64,
}

/// A book of the audit, as one NATS user writes and reads it. Clones share it.
#[derive(Clone)]
pub struct AuditLog {
    inner: Arc<Inner>,
}

struct Inner {
    bus: Bus,
    stream: String,
    /// `<prefix>.audit.`, say: tenant and user follow.
    subject_prefix: String,
    user: String,
    bounds: Bounds,
    /// The last record of each chain, as this process last saw it. Held while one is appended: records of one process
    /// do not race each other.
    heads: Mutex<HashMap<TenantId, Link>>,
}

/// What the next record has to say of the one before it.
#[derive(Debug, Clone)]
struct Link {
    number: u64,
    previous: Previous,
}

/// A record as it stands in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its place in the stream.
    pub sequence: u64,
    /// The tenant, of its subject.
    pub tenant: TenantId,
    /// The NATS user, of its subject.
    pub user: String,
    /// The record, as it was written.
    pub bytes: Bytes,
}

impl Stored {
    /// What it says; none if it is no record.
    pub fn record(&self) -> Option<Record> {
        serde_json::from_slice(&self.bytes).ok()
    }
}

/// Where to read from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// This place of the stream.
    Sequence(u64),
    /// What was written since.
    Time(SystemTime),
}

/// A part of the stream.
#[derive(Debug, Clone)]
pub struct Page {
    /// In the order in which they were written.
    pub records: Vec<Stored>,
    /// Where to go on; 1: nothing was written since the time that was asked for.
    pub next: u64,
    /// Nothing stands behind it at this moment.
    pub is_last: bool,
}

impl AuditLog {
    /// As settings say.
    pub fn of(bus: &Bus, settings: &Settings, book: Book) -> AuditLog {
        let audit = &settings.audit;
        let max_bytes = match book {
            Book::Changes => audit.max_bytes,
            Book::Denials => audit.max_denied_bytes,
        };
        let bounds = Bounds { max_age: Duration::from_secs(audit.max_age_s), max_bytes };
        AuditLog::new(bus, book, user_of(&settings.nats), bounds)
    }

    /// As a user writes it, see [`user_of`]. The stream is made with these bounds when a record finds it missing.
    pub fn new(bus: &Bus, book: Book, user: String, bounds: Bounds) -> AuditLog {
        let (prefix, word) = (bus.subjects().prefix(), book.word());
        AuditLog {
            inner: Arc::new(Inner {
                bus: bus.store().clone(),
                stream: format!("{prefix}_{word}"),
                subject_prefix: format!("{prefix}.{word}."),
                user,
                bounds,
                heads: Mutex::default(),
            }),
        }
    }

    /// Appends to a tenant's chain. Tries again, for ten seconds, while others append or JetStream does not answer.
    ///
    /// # Errors
    /// When JetStream does not answer or refuses; after `Unreachable` the record may stand there.
    pub async fn append(&self, tenant: TenantId, entry: Entry) -> Result<(), StoreError> {
        let give_up = Instant::now() + APPEND_WITHIN;
        let (entry, id) = (entry.bounded(), Uuid::new_v4());
        let mut heads = self.inner.heads.lock().await;
        let mut last_error = StoreError::Contended;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                sleep(pause(attempt)).await;
            }
            if Instant::now() >= give_up {
                break;
            }
            let head = match heads.remove(&tenant) {
                Some(head) => Ok(Some(head)),
                None => self.head(tenant).await,
            };
            let appended = match head {
                Ok(head) => self.append_behind(tenant, &entry, id, head).await,
                Err(error) => Err(error),
            };
            match appended {
                Ok(link) => {
                    if heads.len() >= MAX_HEADS {
                        heads.clear();
                    }
                    heads.extend(link.map(|link| (tenant, link)));
                    return Ok(());
                }
                Err(error @ StoreError::Missing(_)) => {
                    self.make_if_missing().await?;
                    last_error = error;
                }
                Err(error @ (StoreError::Contended | StoreError::Unreachable(_))) => last_error = error,
                Err(error) => return Err(error),
            }
        }
        Err(last_error)
    }

    /// Reads a tenant's records, or everybody's, from there on: at most a page of them.
    ///
    /// # Errors
    /// When JetStream does not answer, or the stream is not there.
    pub async fn page(&self, tenant: Option<TenantId>, from: From) -> Result<Page, StoreError> {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let Inner { bus, stream, .. } = &*self.inner;
        let mut request = json!({
            "batch": PAGE_RECORDS,
            "max_bytes": PAGE_BYTES,
            "next_by_subj": self.subjects(tenant),
        });
        let start = match from {
            From::Sequence(sequence) => ("seq", json!(sequence.max(1))),
            From::Time(time) => ("start_time", json!(rfc3339(time))),
        };
        if let Value::Object(request) = &mut request {
            request.insert(start.0.to_owned(), start.1);
        }
        let deliver_to =
            format!("{}.audit{}", bus.subjects().feed(bus.process()), SERIAL.fetch_add(1, Ordering::Relaxed));
        let failed = |error: &dyn std::fmt::Display| StoreError::Unreadable(error.to_string());
        let mut replies = bus.client().subscribe(deliver_to.clone()).await.map_err(|error| failed(&error))?;
        let sent = bus.client().publish_with_reply(
            format!("{}DIRECT.GET.{stream}", bus.api()),
            deliver_to,
            Bytes::from(request.to_string()),
        );
        sent.await.map_err(|error| failed(&error))?;
        let mut page = Page { records: Vec::new(), next: 1, is_last: false };
        if let From::Sequence(sequence) = from {
            page.next = sequence.max(1);
        }
        loop {
            let reply = timeout_at(Instant::now() + REQUEST_WAIT, replies.next()).await;
            let Ok(Some(reply)) = reply else { return Err(AskError::Expired.into()) };
            let headers = reply.headers.unwrap_or_default();
            match reply.status {
                None | Some(StatusCode::OK) => {
                    let sequence = number(&headers, "Nats-Sequence")
                        .ok_or_else(|| StoreError::Unreadable("a record without its place".into()))?;
                    page.next = sequence + 1;
                    let subject = headers.get("Nats-Subject").map_or("", |subject| subject.as_str());
                    if let Some((tenant, user)) = self.named(subject) {
                        page.records.push(Stored { sequence, tenant, user, bytes: reply.payload });
                    }
                }
                Some(StatusCode::NO_RESPONDERS) => return Err(StoreError::Missing(stream.clone())),
                Some(status) if status == StatusCode::NOT_FOUND || status.as_u16() == 204 => {
                    page.is_last = number(&headers, "Nats-Num-Pending").unwrap_or_default() == 0;
                    return Ok(page);
                }
                Some(status) => {
                    return Err(StoreError::Refused {
                        code: status.as_u16().into(),
                        description: reply.description.unwrap_or_default(),
                    });
                }
            }
        }
    }

    /// What the stream says of itself.
    ///
    /// # Errors
    /// When JetStream does not answer, or the stream is not there.
    pub async fn limits(&self) -> Result<Limits, StoreError> {
        let info = self.administer("STREAM.INFO", &Value::Null).await?;
        let at = |pointer| info.pointer(pointer).and_then(Value::as_u64).unwrap_or_default();
        let max_bytes = info.pointer("/config/max_bytes").and_then(Value::as_i64);
        let is_full = max_bytes
            .and_then(|max| u64::try_from(max).ok())
            .is_some_and(|max| at("/state/bytes").saturating_add(FULL_WITHIN_BYTES) >= max);
        Ok(Limits {
            first_sequence: at("/state/first_seq"),
            max_age_ms: at("/config/max_age") / 1_000_000,
            is_full,
            now_ms: unix_ms(),
        })
    }

    /// The last record of a chain, from the copy that all writes go through.
    async fn head(&self, tenant: TenantId) -> Result<Option<Link>, StoreError> {
        let Inner { bus, stream, .. } = &*self.inner;
        let request = json!({ "last_by_subj": self.subjects(Some(tenant)) }).to_string();
        let subject = format!("{}STREAM.MSG.GET.{stream}", bus.api());
        let reply = bus.ask(subject, request.into(), REQUEST_WAIT).await?;
        let reply: Value = serde_json::from_slice(&reply).map_err(|error| unreadable(&error))?;
        if let Some(error) = reply.get("error") {
            return match error.get("err_code").and_then(Value::as_u64) {
                Some(NO_MESSAGE_FOUND) => Ok(None),
                _ => Err(jetstream::refusal(stream, error)),
            };
        }
        let text = |pointer| reply.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let bytes = BASE64.decode(text("/message/data")).map_err(|error| unreadable(&error))?;
        let sequence = reply.pointer("/message/seq").and_then(Value::as_u64).unwrap_or_default();
        // A message that is none of ours breaks the chain in any case; those behind it are to be told apart.
        let record = serde_json::from_slice::<Record>(&bytes).ok();
        let (number, at_ms) = record.map_or((0, 0), |record| (record.number, record.at_ms));
        Ok(Some(Link { number, previous: Previous { hash: hash(&bytes), sequence, at_ms } }))
    }

    /// Returns the head that the chain then has; none if an earlier attempt had been written.
    async fn append_behind(
        &self,
        tenant: TenantId,
        entry: &Entry,
        id: Uuid,
        head: Option<Link>,
    ) -> Result<Option<Link>, StoreError> {
        let Inner { bus, stream, subject_prefix, user, .. } = &*self.inner;
        let (number, previous) = head.map_or((1, None), |head| (head.number + 1, Some(head.previous)));
        let expected = previous.as_ref().map_or(0, |previous| previous.sequence);
        let at_ms = unix_ms();
        let record = Record { number, id, tenant, at_ms, user: user.clone(), entry: entry.clone(), previous };
        let bytes = Bytes::from(serde_json::to_vec(&record).map_err(|error| unreadable(&error))?);
        let mut headers = HeaderMap::new();
        headers.insert("Nats-Expected-Last-Subject-Sequence", expected.to_string());
        headers.insert("Nats-Expected-Last-Subject-Sequence-Subject", self.subjects(Some(tenant)));
        // An attempt whose answer was lost may have written it.
        headers.insert("Nats-Msg-Id", id.to_string());
        let subject = format!("{subject_prefix}{tenant}.{user}");
        let reply = match bus.exchange(subject.into(), Some(headers), bytes.clone(), REQUEST_WAIT).await {
            Ok(reply) => reply.payload,
            Err(AskError::NoResponders) => return Err(StoreError::Missing(stream.clone())),
            Err(error) => return Err(error.into()),
        };
        let Acknowledged { sequence, is_duplicate } = jetstream::acknowledged(stream, &reply)?;
        let link = Link { number, previous: Previous { hash: hash(&bytes), sequence, at_ms } };
        Ok((!is_duplicate).then_some(link))
    }

    async fn make_if_missing(&self) -> Result<(), StoreError> {
        let Inner { bus, stream, subject_prefix, bounds, .. } = &*self.inner;
        match self.administer("STREAM.INFO", &Value::Null).await {
            Err(StoreError::Missing(_)) => {}
            other => return other.map(drop),
        }
        let config = json!({
            "name": stream,
            "description": "Who did what: for each tenant a chain of records",
            "subjects": [format!("{subject_prefix}*.*")],
            "storage": "file",
            "num_replicas": bus.replicas(),
            "retention": "limits",
            "discard": "old",
            "max_msgs": -1,
            "max_bytes": bounds.max_bytes,
            "max_age": nanoseconds(bounds.max_age),
            "max_msg_size": MAX_RECORD_BYTES,
            "max_consumers": -1,
            "duplicate_window": nanoseconds(DUPLICATE_WINDOW.min(bounds.max_age)),
            "allow_direct": true,
            // Records go by age and size alone: no permission in NATS undoes that.
            "deny_delete": true,
            "deny_purge": true,
            // A head held in mind from a stream that was lost never names a record of the one made after it.
            "first_seq": now_us(),
        });
        match self.administer("STREAM.CREATE", &config).await {
            Ok(_) => info!(stream, "made the stream"),
            // Another process was faster.
            Err(StoreError::Refused { code: STREAM_NAME_IN_USE, .. }) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    async fn administer(&self, operation: &str, request: &Value) -> Result<Value, StoreError> {
        let Inner { bus, stream, .. } = &*self.inner;
        jetstream::administer(bus, stream, &format!("{operation}.{stream}"), request, REQUEST_WAIT).await
    }

    fn subjects(&self, tenant: Option<TenantId>) -> String {
        let prefix = &self.inner.subject_prefix;
        tenant.map_or_else(|| format!("{prefix}*.*"), |tenant| format!("{prefix}{tenant}.*"))
    }

    /// The tenant and user that a subject names.
    fn named(&self, subject: &str) -> Option<(TenantId, String)> {
        let (tenant, user) = subject.strip_prefix(&self.inner.subject_prefix)?.split_once('.')?;
        Some((tenant.parse().ok()?, user.to_owned()))
    }
}

/// Before a further attempt: longer each time, and of other lengths for each process.
fn pause(attempt: u32) -> Duration {
    let (high, _) = Uuid::new_v4().as_u64_pair();
    Duration::from_millis(high % (4 << attempt.min(7)))
}

fn number(headers: &HeaderMap, name: &'static str) -> Option<u64> {
    headers.get(name)?.as_str().parse().ok()
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// To the millisecond, so that times stand in columns.
const MILLISECONDS: EncodedConfig =
    Config::DEFAULT.set_time_precision(TimePrecision::Second { decimal_digits: NonZeroU8::new(3) }).encode();

/// A time as RFC 3339 has it, in UTC, to the millisecond.
pub fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Iso8601::<MILLISECONDS>).unwrap_or_default()
}
