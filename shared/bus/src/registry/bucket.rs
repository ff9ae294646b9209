//! How is one key of the registry written? Compare-and-set on its bucket, with bounded retries.

use std::future::Future;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use super::RegistryError;
use super::records::Key;
use crate::Bus;
use crate::bucket::{self, Entry, Expected, Role, Spec};
use crate::errors::{AskError, StoreError};

/// How long one request to JetStream may take.
pub(super) const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// How often the bucket is looked for, where the store does not answer in time: each takes a second.
const OPENINGS: u32 = 10;
/// How often a write is tried again after somebody else wrote the same key.
const ATTEMPTS: u32 = 8;
/// An index key whose holder does not exist is being written for at most this long; an older one was left by a
/// crash and may be taken over.
const WRITTEN_WITHIN: Duration = Duration::from_secs(60);

const DEVICES: Spec = Spec {
    name: "devices",
    description: "Tenants, customers, devices and the hashes of their tokens",
    passing: None,
};

/// The bucket `<prefix>_devices`.
#[derive(Clone)]
pub(super) struct Bucket {
    pub(super) keys: bucket::Bucket,
}

/// A value that stands in the bucket.
pub(super) struct Stored<T> {
    pub(super) value: T,
    pub(super) revision: u64,
}

/// What stands under a key that was to be created.
pub(super) struct Standing {
    pub(super) value: Bytes,
    revision: u64,
    written: SystemTime,
}

/// What came of creating a key.
pub(super) enum Created {
    /// It was not there.
    New,
    /// It is there already.
    Standing(Standing),
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
    pub(super) async fn open(bus: &Bus) -> Result<Self, StoreError> {
        let mut left = OPENINGS;
        loop {
            match bucket::Bucket::open(bus, DEVICES, Role::Founder).await {
                // Between two leaders, or with much to do: the next one may be answered.
                Err(StoreError::Unreachable(AskError::Expired)) if left > 1 => left -= 1,
                opened => return Ok(Bucket { keys: opened? }),
            }
        }
    }

    /// Opens it for reading: whoever writes makes it.
    pub(super) async fn open_to_read(bus: &Bus) -> Result<bucket::Bucket, StoreError> {
        bucket::Bucket::open(bus, DEVICES, Role::Reader).await
    }

    pub(super) async fn get<T: DeserializeOwned>(
        &self,
        key: Key<'_>,
    ) -> Result<Option<Stored<T>>, RegistryError> {
        match self.entry(key).await? {
            Some(Entry { value: Some(value), revision, .. }) => {
                Ok(Some(Stored { value: record(key, &value)?, revision }))
            }
            Some(Entry { value: None, .. }) | None => Ok(None),
        }
    }

    /// Writes a key that must not be there.
    pub(super) async fn create(&self, key: Key<'_>, value: Bytes) -> Result<Created, RegistryError> {
        let mut expected = Expected::Nothing;
        for attempt in 0..ATTEMPTS {
            if self.write(key, value.clone(), expected).await? {
                return Ok(Created::New);
            }
            expected = match self.entry(key).await? {
                Some(Entry { value: Some(value), revision, written }) => {
                    return Ok(Created::Standing(Standing { value, revision, written }));
                }
                Some(Entry { value: None, revision, .. }) => Expected::Revision(revision),
                None => Expected::Nothing,
            };
            pause(attempt).await;
        }
        Err(RegistryError::Contended)
    }

    /// Writes a key where `expected` must stand. False: something else does.
    async fn write(&self, key: Key<'_>, value: Bytes, expected: Expected) -> Result<bool, RegistryError> {
        is_done(self.keys.put(&key.text(), value, expected, REQUEST_WAIT).await)
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
                || self.write(key, json(&stored.value)?, Expected::Revision(stored.revision)).await?
            {
                return Ok(Some(stored.value));
            }
            pause(attempt).await;
        }
        Err(RegistryError::Contended)
    }

    /// Removes a record, whatever its revision, if `check` lets it; the one removed.
    pub(super) async fn remove<T: DeserializeOwned>(
        &self,
        key: Key<'_>,
        check: impl Fn(&T) -> Result<(), RegistryError>,
    ) -> Result<Option<T>, RegistryError> {
        for attempt in 0..ATTEMPTS {
            let Some(stored) = self.get::<T>(key).await? else {
                return Ok(None);
            };
            check(&stored.value)?;
            if self.delete(key, stored.revision).await? {
                return Ok(Some(stored.value));
            }
            pause(attempt).await;
        }
        Err(RegistryError::Contended)
    }

    /// Removes this very revision; false when there is another.
    async fn delete(&self, key: Key<'_>, revision: u64) -> Result<bool, RegistryError> {
        is_done(self.keys.remove(&key.text(), Expected::Revision(revision), None, REQUEST_WAIT).await)
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
            let standing = match self.create(key, value.clone()).await? {
                Created::New => return Ok(Held::Newly),
                Created::Standing(standing) => standing,
            };
            if standing.value == value {
                return Ok(Held::Already);
            }
            let other = std::str::from_utf8(&standing.value).ok().and_then(|text| Uuid::try_parse(text).ok());
            let age = SystemTime::now().duration_since(standing.written).unwrap_or_default();
            let left_over = age > WRITTEN_WITHIN
                && match other {
                    Some(other) => is_gone(other).await?,
                    None => true,
                };
            if !left_over {
                return Err(RegistryError::Taken { what: taken, holder: other.unwrap_or_default() });
            }
            if self.write(key, value.clone(), Expected::Revision(standing.revision)).await? {
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
                Some(Entry { value: Some(value), revision, .. })
                    if value == holder.to_string().as_bytes() =>
                {
                    self.delete(key, revision).await
                }
                _ => Ok(true),
            }
        };
        if let Err(error) = give_up.await {
            tracing::warn!(%error, %holder, "an index key of the registry is left over");
        }
    }

    async fn entry(&self, key: Key<'_>) -> Result<Option<Entry>, RegistryError> {
        Ok(self.keys.get(&key.text(), REQUEST_WAIT).await?)
    }
}

/// A stored record.
pub(super) fn record<T: DeserializeOwned>(key: Key<'_>, value: &[u8]) -> Result<T, RegistryError> {
    serde_json::from_slice(value)
        .map_err(|error| RegistryError::Unreadable { key: key.text(), reason: error.to_string() })
}

/// A record as it is stored.
pub(super) fn json(record: &impl serde::Serialize) -> Result<Bytes, RegistryError> {
    let text = serde_json::to_vec(record)
        .map_err(|error| RegistryError::Unreadable { key: String::new(), reason: error.to_string() })?;
    Ok(text.into())
}

fn is_done(written: Result<u64, StoreError>) -> Result<bool, RegistryError> {
    match written {
        Ok(_) => Ok(true),
        Err(StoreError::Contended) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Between two attempts, so that two writers do not keep step.
async fn pause(attempt: u32) {
    tokio::time::sleep(Duration::from_millis(u64::from(attempt) * 7)).await;
}
