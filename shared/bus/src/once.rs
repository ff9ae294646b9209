//! Which calls were asked for under a key that is good for one call, and how did they end? Whoever makes the record
//! first makes the call. For APIs alone.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::OnceCell;

use crate::bucket::{Bucket, Entry, Expected, Passing, Role, Spec};
use crate::connection::Bus;
use crate::errors::StoreError;

/// How long a key is good for its one call, from its last record.
pub const KEPT_FOR: Duration = Duration::from_secs(600);
/// How long the store may take for one record.
const STORE_WAIT: Duration = Duration::from_secs(2);

/// The records. The bucket `<prefix>_once` is opened, and made where it is missing, with the first of them: without
/// one an API needs no JetStream.
pub struct Once {
    bus: Bus,
    max_bytes: u64,
    bucket: OnceCell<Bucket>,
}

/// What stood under a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// Nothing: it is made now, and this writing of it may be changed.
    Made(u64),
    /// This.
    Record(Bytes),
}

impl Once {
    /// Over the connection to JetStream of `bus`; all records together take at most so many bytes, as the bucket was
    /// made.
    pub fn new(bus: Bus, max_bytes: u64) -> Self {
        Once { bus, max_bytes, bucket: OnceCell::new() }
    }

    /// Makes a record, unless there is one.
    ///
    /// # Errors
    /// When it is not certain to stand, or nobody says what does.
    pub async fn make(&self, key: &str, record: Bytes) -> Result<Standing, StoreError> {
        let bucket = self.bucket().await?;
        let mut expected = Expected::Nothing;
        loop {
            match bucket.put(key, record.clone(), expected, STORE_WAIT).await {
                Ok(revision) => return Ok(Standing::Made(revision)),
                Err(StoreError::Contended) => {}
                Err(error) => return Err(error),
            }
            match bucket.get(key, STORE_WAIT).await? {
                Some(Entry { value: Some(standing), .. }) => return Ok(Standing::Record(standing)),
                // What a removal leaves for a moment.
                Some(Entry { value: None, revision, .. }) => expected = Expected::Revision(revision),
                None if expected == Expected::Nothing => return Err(StoreError::Contended),
                None => expected = Expected::Nothing,
            }
        }
    }

    /// What stands there.
    ///
    /// # Errors
    /// When nobody says.
    pub async fn read(&self, key: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(self.bucket().await?.get(key, STORE_WAIT).await?.and_then(|it| it.value))
    }

    /// Puts another record in the place of that writing.
    ///
    /// # Errors
    /// When it is not certain to stand.
    pub async fn change(&self, key: &str, made: u64, record: Bytes) -> Result<(), StoreError> {
        let bucket = self.bucket().await?;
        bucket.put(key, record, Expected::Revision(made), STORE_WAIT).await.map(|_| ())
    }

    /// Removes that writing: the key is good for another call.
    ///
    /// # Errors
    /// When it is not certain to be gone.
    pub async fn remove(&self, key: &str, made: u64) -> Result<(), StoreError> {
        let marker_ttl = Some(Duration::from_secs(1));
        let bucket = self.bucket().await?;
        bucket.remove(key, Expected::Revision(made), marker_ttl, STORE_WAIT).await.map(|_| ())
    }

    async fn bucket(&self) -> Result<&Bucket, StoreError> {
        let spec = Spec {
            name: "once",
            description: "Calls under an idempotency key, and how they ended: for APIs alone",
            passing: Some(Passing { max_age: KEPT_FOR, max_bytes: Some(self.max_bytes) }),
        };
        self.bucket.get_or_try_init(|| Bucket::open(&self.bus, spec, Role::Founder)).await
    }
}
