//! How is one key of the registry written? Compare-and-set on the JetStream KV bucket, with bounded retries.

use std::future::Future;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::context::{ContextBuilder, KeyValueErrorKind};
use async_nats::jetstream::kv::{self, Operation, Store, UpdateError};
use async_nats::jetstream::stream::StorageType;
use async_nats::jetstream::{self, Context, ErrorCode};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::RegistryError;
use super::records::Key;
use crate::Bus;

/// How long one request to JetStream may take.
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// How often a write is tried again after somebody else wrote the same key.
const ATTEMPTS: u32 = 8;
/// An index key whose holder does not exist is being written for at most this long; an older one was left by a
/// crash and may be taken over.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

/// The bucket `<prefix>_devices`.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) jetstream: Context,
    pub(super) store: Store,
}

/// A value that stands in the bucket.
pub(super) struct Stored<T> {
    pub(super) value: T,
    pub(super) revision: u64,
}

/// What came of creating a key.
pub(super) enum Created {
    /// It was not there.
    New,
    /// It is there already.
    Standing(kv::Entry),
}

/// What came of taking an index key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    /// Nobody held it, or nobody that is still there.
    Newly,
    /// It was this holder's already.
    Already,
}

impl Bucket {
    /// Opens the bucket, and makes it when it is missing.
    pub(super) async fn open(bus: &Bus) -> Result<Self, RegistryError> {
        let jetstream = ContextBuilder::new().timeout(REQUEST_WAIT).build(bus.client().clone());
        let name = format!("{}_devices", bus.subjects().prefix());
        let open = async {
            match jetstream.get_key_value(&name).await {
                Ok(store) => Ok(store),
                Err(error) if error.kind() == KeyValueErrorKind::GetBucket => {
                    let config = kv::Config {
                        bucket: name.clone(),
                        description: "Tenants, customers, devices and the hashes of their tokens".to_owned(),
                        history: 1,
                        storage: StorageType::File,
                        num_replicas: bus.replicas().into(),
                        ..kv::Config::default()
                    };
                    jetstream.create_key_value(config).await.map_err(RegistryError::unreachable)
                }
                Err(error) => Err(RegistryError::unreachable(error)),
            }
        };
        let store = within(open).await?;
        Ok(Bucket { jetstream, store })
    }

    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        key: Key<'_>,
    ) -> Result<Option<Stored<T>>, RegistryError> {
        let Some(entry) = self.entry(key).await?.filter(is_put) else {
            return Ok(None);
        };
        Ok(Some(Stored { value: record(key, &entry)?, revision: entry.revision }))
    }

    /// Writes a key that must not be there.
    pub(super) async fn create(&self, key: Key<'_>, value: Bytes) -> Result<Created, RegistryError> {
        let mut expected = 0;
        for attempt in 0..ATTEMPTS {
            if self.write(key, value.clone(), expected).await?.is_some() {
                return Ok(Created::New);
            }
            match self.entry(key).await? {
                Some(entry) if is_put(&entry) => return Ok(Created::Standing(entry)),
                Some(entry) => expected = entry.revision,
                None => expected = 0,
            }
            pause(attempt).await;
        }
        Err(RegistryError::Contended)
    }

    /// Writes a key whose revision must be `expected`. None: it is another.
    pub(super) async fn write(
        &self,
        key: Key<'_>,
        value: Bytes,
        expected: u64,
    ) -> Result<Option<u64>, RegistryError> {
        within(async { revised(self.store.update(key.text(), value, expected).await) }).await
    }

    /// Reads a record, lets `change` change it, and writes it unless somebody else did meanwhile: then again.
    /// `change` says whether there is anything to write.
    pub(super) async fn change<T: DeserializeOwned + serde::Serialize>(
        &self,
        key: Key<'_>,
        mut change: impl FnMut(&mut T) -> Result<bool, RegistryError>,
    ) -> Result<Option<T>, RegistryError> {
        for attempt in 0..ATTEMPTS {
            let Some(mut stored) = self.get::<T>(key).await? else {
                return Ok(None);
            };
            if !change(&mut stored.value)?
                || self.write(key, json(&stored.value)?, stored.revision).await?.is_some()
            {
                return Ok(Some(stored.value));
            }
            pause(attempt).await;
        }
        Err(RegistryError::Contended)
    }

    /// Removes a record, whatever its revision; the one removed.
    pub(super) async fn remove<T: DeserializeOwned>(&self, key: Key<'_>) -> Result<Option<T>, RegistryError> {
        for attempt in 0..ATTEMPTS {
            let Some(stored) = self.get::<T>(key).await? else {
                return Ok(None);
            };
            if self.delete(key, stored.revision).await? {
                return Ok(Some(stored.value));
            }
            pause(attempt).await;
        }
        Err(RegistryError::Contended)
    }

    /// Removes this very revision; false when there is another.
    pub(super) async fn delete(&self, key: Key<'_>, revision: u64) -> Result<bool, RegistryError> {
        let delete = async {
            revised(self.store.delete_expect_revision(key.text(), Some(revision)).await.map(|()| revision))
        };
        Ok(within(delete).await?.is_some())
    }

    /// Takes an index key for `holder`. One that another holds stays its, unless that other `is_gone`.
    pub(super) async fn take<G: Future<Output = Result<bool, RegistryError>>>(
        &self,
        key: Key<'_>,
        holder: Uuid,
        taken: &'static str,
        is_gone: impl Fn(Uuid) -> G,
    ) -> Result<Held, RegistryError> {
        let value = Bytes::from(holder.to_string());
        for attempt in 0..ATTEMPTS {
            let entry = match self.create(key, value.clone()).await? {
                Created::New => return Ok(Held::Newly),
                Created::Standing(entry) => entry,
            };
            if entry.value == value {
                return Ok(Held::Already);
            }
            let other = std::str::from_utf8(&entry.value).ok().and_then(|text| Uuid::try_parse(text).ok());
            let age_s = now_s() - entry.created.unix_timestamp();
            let left_over = age_s > WRITTEN_WITHIN.as_secs() as i64
                && match other {
                    Some(other) => is_gone(other).await?,
                    None => true,
                };
            if !left_over {
                return Err(RegistryError::Taken { what: taken, holder: other.unwrap_or_default() });
            }
            if self.write(key, value.clone(), entry.revision).await?.is_some() {
                return Ok(Held::Newly);
            }
            pause(attempt).await;
        }
        Err(RegistryError::Contended)
    }

    /// Gives an index key up, if it is this holder's. What cannot be given up now stays behind as a left-over that
    /// lets nobody in and that the next taker takes over, so a failure is only logged.
    pub(super) async fn give_up(&self, key: Key<'_>, holder: Uuid) {
        let give_up = async {
            match self.entry(key).await? {
                Some(entry) if is_put(&entry) && entry.value == holder.to_string().as_bytes() => {
                    self.delete(key, entry.revision).await
                }
                _ => Ok(true),
            }
        };
        if let Err(error) = give_up.await {
            tracing::warn!(%error, %holder, "an index key of the registry is left over");
        }
    }

    async fn entry(&self, key: Key<'_>) -> Result<Option<kv::Entry>, RegistryError> {
        within(async { self.store.entry(key.text()).await.map_err(RegistryError::unreachable) }).await
    }
}

/// A stored record.
pub(super) fn record<T: DeserializeOwned>(key: Key<'_>, entry: &kv::Entry) -> Result<T, RegistryError> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| RegistryError::Unreadable { key: key.text(), reason: error.to_string() })
}

/// A record as it is stored.
pub(super) fn json(record: &impl serde::Serialize) -> Result<Bytes, RegistryError> {
    let text = serde_json::to_vec(record)
        .map_err(|error| RegistryError::Unreadable { key: String::new(), reason: error.to_string() })?;
    Ok(text.into())
}

/// async-nats bounds the wait for an answer, but not the wait for its own send queue.
async fn within<T>(request: impl Future<Output = Result<T, RegistryError>>) -> Result<T, RegistryError> {
    tokio::time::timeout(3 * REQUEST_WAIT, request)
        .await
        .unwrap_or_else(|_| Err(RegistryError::Unreachable("the request could not be sent".to_owned())))
}

fn revised(written: Result<u64, UpdateError>) -> Result<Option<u64>, RegistryError> {
    match written {
        Ok(revision) => Ok(Some(revision)),
        Err(error) if is_overtaken(&error) => Ok(None),
        Err(error) => Err(RegistryError::unreachable(error)),
    }
}

/// A cluster says it in other words while another write of the same key is under way; the library knows only one.
fn is_overtaken(error: &UpdateError) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(reason) = source {
        if let Some(reason) = reason.downcast_ref::<jetstream::Error>() {
            return [ErrorCode::STREAM_WRONG_LAST_SEQUENCE, ErrorCode::STREAM_WRONG_LAST_SEQUENCE_CONSTANT]
                .contains(&reason.error_code());
        }
        source = reason.source();
    }
    false
}

fn is_put(entry: &kv::Entry) -> bool {
    entry.operation == Operation::Put
}

/// Between two attempts, so that two writers do not keep step.
async fn pause(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 7)).await;
}

fn now_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
