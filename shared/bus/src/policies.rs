//! Which policies does each tenant have? A set for each tenant, replaced as a whole, with the versions before it.
//!
//! One JetStream KV bucket, `<prefix>_policies`, in file storage:
//!
//! | key | value |
//! | --- | --- |
//! | `set.<tenant>` | the [`StoredSet`] that is live |
//! | `shadow.<tenant>` | one that is judged beside it, and decides nothing; its version is the one it would get |
//! | `version.<tenant>.<version>` | one that was, the last [`MAX_VERSIONS`] of them |
//!
//! A set is one value, texts and all, written by compare-and-set: nobody ever reads half of a change, or a set whose
//! texts are not there, and nothing is left over to be cleared away. The old value is kept under its version first.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use rpc::TenantId;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::bucket::{Bucket, Entry, Expected, Role, Spec};
use crate::watch::{Watch, WatchEvent};
use crate::{Bus, StoreError};

/// How many replaced versions of a set are kept.
pub const MAX_VERSIONS: u64 = 64;

/// The longest that an external decision point may be given, in milliseconds.
pub const MAX_EXTERNAL_MS: u32 = 1_000;

const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// Changes that may wait to be taken; JetStream then waits with further ones.
const MAX_WAITING: usize = 64;

const POLICIES: Spec = Spec {
    name: "policies",
    description: "Who may call whom: a set of policies for each tenant, and its versions before",
    passing: None,
};

/// A tenant's policies at one time. Without texts the tenant has none, and the built-in rule holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredSet {
    /// From 1, one more with every change.
    pub version: u64,
    /// What hours and weekdays of policies are counted from, in minutes east of UTC.
    #[serde(default)]
    pub utc_offset_min: i16,
    /// The policies, by the name of their text.
    pub texts: BTreeMap<String, String>,
    /// When it became live, in milliseconds since 1970 on the clock of whoever wrote it.
    pub at_ms: u64,
    /// Who made it live, in his own words.
    #[serde(default)]
    pub who: String,
    /// What for.
    #[serde(default)]
    pub why: String,
    /// Who is asked besides about a call that the policies permit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<External>,
}

/// An external decision point: somebody outside, who also has to allow a call.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// Where it is.
    pub point: Point,
    /// How long it may take, in milliseconds, 1 to [`MAX_EXTERNAL_MS`]; then the call is denied.
    pub timeout_ms: u32,
}

/// Where an external decision point is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Point {
    /// Behind the NATS subject `<prefix>.decide.<tenant>.<name>`.
    Nats {
        /// The last token: letters, digits, `-` and `_`.
        name: String,
    },
    /// Behind an endpoint that speaks AuthZEN's Access Evaluation API.
    Http {
        /// As `http://host:port/access/v1/evaluation`.
        url: String,
    },
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Point::Nats { name } => write!(f, "nats:{name}"),
            Point::Http { url } => f.write_str(url),
        }
    }
}

impl FromStr for Point {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
        if let Some(name) = text.strip_prefix("nats:")
            && (1..=63).contains(&name.len())
            && name.chars().all(is_plain)
        {
            return Ok(Point::Nats { name: name.to_owned() });
        }
        let rest = text.strip_prefix("http://").filter(|rest| !rest.starts_with(['/', '?', '#']));
        if rest.is_some_and(|rest| !rest.is_empty()) && text.len() <= 500 && text.is_ascii() {
            return Ok(Point::Http { url: text.to_owned() });
        }
        Err("nats:NAME, of up to 63 letters, digits, - and _, or http://HOST:PORT/PATH; TLS is a proxy's part".into())
    }
}

/// What a [`PoliciesWatch`] saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PolicyChange {
    /// A full load begins; a tenant that is not named again before `Loaded` has no policies.
    Loading,
    /// A tenant has this set now. None: its record cannot be read.
    Set(TenantId, Option<Box<StoredSet>>),
    /// A tenant's set was taken away.
    Removed(TenantId),
    /// A tenant has this shadow now. None: it has none, or its record cannot be read.
    Shadow(TenantId, Option<Box<StoredSet>>),
    /// The load is complete.
    Loaded,
}

/// The sets of all tenants. Clones share one connection.
#[derive(Clone)]
pub struct Policies {
    bucket: Bucket,
}

impl Policies {
    /// Opens the bucket, and makes it when it is missing.
    ///
    /// # Errors
    /// When NATS does not answer, or has no JetStream.
    pub async fn open(bus: &Bus) -> Result<Self, StoreError> {
        Ok(Policies { bucket: Bucket::open(bus, POLICIES, Role::Founder).await? })
    }

    /// Follows the live sets for ever: one full load, then every change.
    pub fn watch(bus: &Bus) -> PoliciesWatch {
        let (changes_tx, changes) = mpsc::channel(MAX_WAITING);
        PoliciesWatch { changes, follower: tokio::spawn(follow(bus.clone(), changes_tx)) }
    }

    /// A tenant's live set.
    ///
    /// # Errors
    /// When NATS does not answer, or the record cannot be read.
    pub async fn live(&self, tenant: TenantId) -> Result<Option<StoredSet>, StoreError> {
        Ok(self.live_at(tenant).await?.map(|(_, set)| set))
    }

    /// Makes a set live whose version is one more than that of the set which it replaces.
    ///
    /// # Errors
    /// [`StoreError::Contended`] when another set has become live meanwhile: nothing is changed then.
    pub async fn replace(&self, tenant: TenantId, set: &StoredSet) -> Result<(), StoreError> {
        let live = self.live_at(tenant).await?;
        if live.as_ref().map_or(0, |(_, live)| live.version) + 1 != set.version {
            return Err(StoreError::Contended);
        }
        let expected = match &live {
            None => self.standing(&live_key(tenant)).await?,
            Some((revision, live)) => {
                let key = version_key(tenant, live.version);
                let expected = self.standing(&key).await?;
                self.bucket.put(&key, json(live)?, expected, REQUEST_WAIT).await?;
                Expected::Revision(*revision)
            }
        };
        self.bucket.put(&live_key(tenant), json(set)?, expected, REQUEST_WAIT).await?;
        if let Some(old) = set.version.checked_sub(MAX_VERSIONS + 1).filter(|old| *old > 0) {
            let old = version_key(tenant, old);
            let removed = match self.standing(&old).await {
                Ok(expected) => self.bucket.remove(&old, expected, None, REQUEST_WAIT).await,
                Err(error) => Err(error),
            };
            if let Err(error) = removed {
                tracing::warn!(%error, key = old, "an old version of a set of policies is left over");
            }
        }
        Ok(())
    }

    /// A tenant's shadow.
    ///
    /// # Errors
    /// As [`live`](Self::live).
    pub async fn shadow(&self, tenant: TenantId) -> Result<Option<StoredSet>, StoreError> {
        let entry = self.bucket.get(&shadow_key(tenant), REQUEST_WAIT).await?;
        entry.and_then(|entry| entry.value).map(|value| stored(&value)).transpose()
    }

    /// Puts a tenant's shadow in place of the one before, or takes it away.
    ///
    /// # Errors
    /// [`StoreError::Contended`] when another one came first.
    pub async fn cast_shadow(&self, tenant: TenantId, set: Option<&StoredSet>) -> Result<(), StoreError> {
        let key = shadow_key(tenant);
        let expected = self.standing(&key).await?;
        match set {
            Some(set) => self.bucket.put(&key, json(set)?, expected, REQUEST_WAIT).await?,
            None => self.bucket.remove(&key, expected, None, REQUEST_WAIT).await?,
        };
        Ok(())
    }

    /// The versions that are kept, the live one first.
    ///
    /// # Errors
    /// As [`live`](Self::live).
    pub async fn history(&self, tenant: TenantId) -> Result<Vec<StoredSet>, StoreError> {
        let Some(live) = self.live(tenant).await? else { return Ok(Vec::new()) };
        let oldest = live.version.saturating_sub(MAX_VERSIONS).max(1);
        let older = (oldest..live.version).rev();
        let mut sets = vec![live];
        for version in older {
            let entry = self.bucket.get(&version_key(tenant, version), REQUEST_WAIT).await?;
            if let Some(value) = entry.and_then(|entry| entry.value) {
                sets.push(stored(&value)?);
            }
        }
        Ok(sets)
    }

    /// Puts a backup's sets where the tenant has none: `history` as [`history`](Self::history) tells it, and a shadow.
    /// False: the same is live already. None: another one is, and nothing was changed.
    ///
    /// # Errors
    /// When NATS does not answer, or [`StoreError::Contended`] when somebody else writes at the same time.
    pub async fn restore(
        &self,
        tenant: TenantId,
        history: &[StoredSet],
        shadow: Option<&StoredSet>,
    ) -> Result<Option<bool>, StoreError> {
        let [live, older @ ..] = history else { return Ok(Some(false)) };
        match self.live(tenant).await? {
            Some(standing) if standing == *live => return Ok(Some(false)),
            Some(_) => return Ok(None),
            None => {}
        }
        for set in older {
            let key = version_key(tenant, set.version);
            self.bucket.put(&key, json(set)?, self.standing(&key).await?, REQUEST_WAIT).await?;
        }
        if shadow.is_some() {
            self.cast_shadow(tenant, shadow).await?;
        }
        let key = live_key(tenant);
        self.bucket.put(&key, json(live)?, self.standing(&key).await?, REQUEST_WAIT).await?;
        Ok(Some(true))
    }

    async fn live_at(&self, tenant: TenantId) -> Result<Option<(u64, StoredSet)>, StoreError> {
        match self.bucket.get(&live_key(tenant), REQUEST_WAIT).await? {
            Some(Entry { value: Some(value), revision, .. }) => Ok(Some((revision, stored(&value)?))),
            Some(Entry { value: None, .. }) | None => Ok(None),
        }
    }

    /// What a write over whatever stands there must expect.
    async fn standing(&self, key: &str) -> Result<Expected, StoreError> {
        let entry = self.bucket.get(key, REQUEST_WAIT).await?;
        Ok(entry.map_or(Expected::Nothing, |standing| Expected::Revision(standing.revision)))
    }
}

/// Follows the sets for ever; see [`Policies::watch`].
pub struct PoliciesWatch {
    changes: mpsc::Receiver<PolicyChange>,
    follower: JoinHandle<()>,
}

impl Drop for PoliciesWatch {
    fn drop(&mut self) {
        self.follower.abort();
    }
}

impl PoliciesWatch {
    /// The next change. Never ends, and is cancel-safe.
    pub async fn next(&mut self) -> PolicyChange {
        match self.changes.recv().await {
            Some(change) => change,
            // The bus was closed: nothing will change any more.
            None => std::future::pending().await,
        }
    }
}

async fn follow(bus: Bus, changes: mpsc::Sender<PolicyChange>) {
    let bucket = bus.again("read the policies", || Bucket::open(&bus, POLICIES, Role::Founder)).await;
    let mut watch = Watch::new(&bucket, &["set.*", "shadow.*"]);
    while let Some(event) = watch.next().await {
        let change = match event {
            WatchEvent::Reset { .. } => PolicyChange::Loading,
            WatchEvent::Loaded => PolicyChange::Loaded,
            WatchEvent::Put { key, value, .. } => match tenant_of(&key) {
                Some(("set", tenant)) => PolicyChange::Set(tenant, serde_json::from_slice(&value).ok()),
                Some((_, tenant)) => PolicyChange::Shadow(tenant, serde_json::from_slice(&value).ok()),
                None => continue,
            },
            WatchEvent::Removed { key, .. } => match tenant_of(&key) {
                Some(("set", tenant)) => PolicyChange::Removed(tenant),
                Some((_, tenant)) => PolicyChange::Shadow(tenant, None),
                None => continue,
            },
            WatchEvent::Alive | WatchEvent::Lost | WatchEvent::Resumed => continue,
        };
        if changes.send(change).await.is_err() {
            return;
        }
    }
}

fn live_key(tenant: TenantId) -> String {
    format!("set.{tenant}")
}

fn version_key(tenant: TenantId, version: u64) -> String {
    format!("version.{tenant}.{version}")
}

fn shadow_key(tenant: TenantId) -> String {
    format!("shadow.{tenant}")
}

fn tenant_of(key: &str) -> Option<(&str, TenantId)> {
    let (kind, tenant) = key.split_once('.')?;
    Some((kind, tenant.parse().ok()?))
}

fn json(set: &StoredSet) -> Result<Bytes, StoreError> {
    serde_json::to_vec(set).map(Bytes::from).map_err(|error| StoreError::Unreadable(error.to_string()))
}

fn stored(value: &[u8]) -> Result<StoredSet, StoreError> {
    serde_json::from_slice(value).map_err(|error| StoreError::Unreadable(error.to_string()))
}
