//! Who keeps a tenant's policies for a command? NATS itself, or an API for those whose key allows it.

use std::collections::{BTreeMap, HashMap};

use anyhow::Context as _;
use boot::clock::unix_ms;
use bus::StoreError;
use bus::changes::NotChanged;
use bus::policies::{External, Policies, StoredSet};
use bus::registry::{Device, Registry, Snapshot};
use hyper::Method;
use rpc::TenantId;
use serde::Deserialize;
use serde_json::{Value, json};
use switchboard_authorizer::policy::inquiry::InForce;
use switchboard_authorizer::policy::{Facts, PolicySet};
use switchboard_authorizer::shelf::Shelf;

use super::{VersionView, read};
use crate::common::api::Api;
use crate::common::find;
use crate::common::reach::{ReachArgs, Reached};
use crate::common::recorded::ReasonArgs;
use crate::common::via::path_segment;

/// A tenant's policies, and who keeps them.
pub(super) struct Kept {
    pub(super) live: InForce,
    pub(super) keeper: Keeper,
    reason: ReasonArgs,
}

pub(super) enum Keeper {
    Nats(Box<Direct>),
    Api(Remote),
}

/// Policies in NATS, and the registry that they are about.
pub(super) struct Direct {
    pub(super) reached: Reached,
    pub(super) registry: Registry,
    /// All but the devices.
    pub(super) places: Snapshot,
    pub(super) tenant: TenantId,
    shelf: Shelf,
}

/// An API, and how a query says which tenant.
pub(super) struct Remote {
    pub(super) api: Api,
    of: Option<String>,
}

impl Remote {
    /// The API that is named, if one is.
    ///
    /// # Errors
    /// When it has no key here, or no tenant of that name.
    pub(super) async fn of(
        reach: &ReachArgs,
        reason: &ReasonArgs,
        tenant: Option<&str>,
    ) -> anyhow::Result<Option<Self>> {
        let Some(api) = reach.api()? else { return Ok(None) };
        let of = match tenant.map(|named| (named, named.parse::<TenantId>())) {
            None => None,
            Some((_, Ok(id))) => Some(format!("tenant={id}")),
            Some((named, Err(_))) => {
                let tenant: Tenant = api.get(&format!("tenants/{}", path_segment(named))).await?;
                Some(format!("tenant={}", tenant.id))
            }
        };
        Ok(Some(Remote { api: api.because(&reason.who, &reason.why), of }))
    }

    /// A path with these parameters.
    pub(super) fn path(&self, path: &str, parameters: impl IntoIterator<Item = String>) -> String {
        let parameters: Vec<_> = self.of.clone().into_iter().chain(parameters).collect();
        let sign = if parameters.is_empty() { "" } else { "?" };
        format!("{path}{sign}{}", parameters.join("&"))
    }
}

#[derive(Deserialize)]
struct Tenant {
    id: TenantId,
}

/// A set, as an API shows it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    version: u64,
    built_in: bool,
    utc_offset_minutes: i16,
    texts: BTreeMap<String, String>,
    at_ms: u64,
    who: String,
    why: String,
    external: Option<ShownExternal>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ShownExternal {
    point: String,
    timeout_ms: u32,
}

impl Shown {
    fn set(self) -> anyhow::Result<Option<StoredSet>> {
        let external = self.external.map(|ShownExternal { point, timeout_ms }| {
            let point = point.parse().map_err(|error: String| anyhow::anyhow!(error))?;
            anyhow::Ok(External { point, timeout_ms })
        });
        let set = StoredSet {
            version: self.version,
            utc_offset_min: self.utc_offset_minutes,
            texts: if self.built_in { BTreeMap::new() } else { self.texts },
            at_ms: self.at_ms,
            who: self.who,
            why: self.why,
            external: external.transpose()?,
        };
        Ok((set.version > 0).then_some(set))
    }
}

/// A set, as an API takes it.
fn body(set: &StoredSet) -> Value {
    let external = set.external.as_ref();
    let external = external.map(|it| json!({"point": it.point.to_string(), "timeoutMs": it.timeout_ms}));
    json!({"texts": set.texts, "utcOffsetMinutes": set.utc_offset_min, "external": external})
}

impl Direct {
    /// In NATS, of the tenant that is found.
    ///
    /// # Errors
    /// When the settings are at fault, NATS does not answer, or there is no such tenant.
    pub(super) async fn open(
        reach: &ReachArgs,
        reason: &ReasonArgs,
        of: impl AsyncFnOnce(&Registry, &Snapshot) -> anyhow::Result<TenantId>,
    ) -> anyhow::Result<(Self, InForce)> {
        let reached = reach.bus().await?;
        let registry = Registry::open(&reached.bus).await.context("cannot open the registry")?;
        let places = registry.load_places().await?;
        let policies = Policies::open(&reached.bus).await.context("cannot open the policies")?;
        let tenant = of(&registry, &places).await?;
        let live = InForce(policies.live(tenant).await?);
        let recorder = reason.clone().recorder(&reached.bus, &reached.settings);
        let shelf = Shelf { policies, recorder };
        Ok((Direct { reached, registry, places, tenant, shelf }, live))
    }

    /// The tenant's devices that are meant, by name.
    pub(super) async fn devices(&self, takes: impl Fn(&Device) -> bool) -> anyhow::Result<Vec<Facts>> {
        let mut devices = HashMap::new();
        let take = |id, device: Device| {
            if device.tenant == self.tenant && takes(&device) {
                devices.insert(id, Facts::of(id, &device));
            }
        };
        self.registry.each_device(take).await?;
        let mut devices: Vec<_> = devices.into_values().collect();
        devices.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(devices)
    }
}

impl Kept {
    /// Reaches who keeps a tenant's policies.
    ///
    /// # Errors
    /// When nobody answers, or there is no such tenant.
    pub(super) async fn open(
        reach: &ReachArgs,
        reason: ReasonArgs,
        tenant: Option<&str>,
    ) -> anyhow::Result<Self> {
        if let Some(remote) = Remote::of(reach, &reason, tenant).await? {
            let shown: Shown = remote.api.get(&remote.path("policies", [])).await?;
            return Ok(Kept { live: InForce(shown.set()?), reason, keeper: Keeper::Api(remote) });
        }
        let of = async |_: &Registry, places: &Snapshot| Ok(find::tenant(places, tenant)?.0);
        let (direct, live) = Direct::open(reach, &reason, of).await?;
        Ok(Kept { live, reason, keeper: Keeper::Nats(Box::new(direct)) })
    }

    /// The policies in force: without any of the tenant's own, the built-in rule.
    pub(super) fn set(&self) -> anyhow::Result<PolicySet> {
        read(&self.live.texts())
    }

    /// What would be live next.
    pub(super) fn next(&self, texts: BTreeMap<String, String>) -> StoredSet {
        self.live.next(texts, unix_ms(), &self.reason.who, &self.reason.why)
    }

    /// The shadow, if one is cast.
    pub(super) async fn shadow(&self) -> anyhow::Result<Option<StoredSet>> {
        match &self.keeper {
            Keeper::Nats(direct) => Ok(direct.shelf.policies.shadow(direct.tenant).await?),
            Keeper::Api(remote) => {
                let shown = remote.api.find::<Shown>(&remote.path("policies/shadow", [])).await?;
                Ok(shown.map(Shown::set).transpose()?.flatten())
            }
        }
    }

    /// The versions that are kept, the live one first.
    pub(super) async fn history(&self) -> anyhow::Result<Vec<VersionView>> {
        match &self.keeper {
            Keeper::Nats(direct) => {
                let sets = direct.shelf.policies.history(direct.tenant).await?;
                Ok(sets.into_iter().map(VersionView::from).collect())
            }
            Keeper::Api(remote) => {
                let versions: Versions = remote.api.get(&remote.path("policies/versions", [])).await?;
                Ok(versions.versions)
            }
        }
    }

    /// One of them.
    pub(super) async fn version(&self, version: u64) -> anyhow::Result<Option<StoredSet>> {
        match &self.keeper {
            Keeper::Nats(direct) => {
                let mut sets = direct.shelf.policies.history(direct.tenant).await?.into_iter();
                Ok(sets.find(|set| set.version == version))
            }
            Keeper::Api(remote) => {
                let path = remote.path(&format!("policies/versions/{version}"), []);
                Ok(remote.api.find::<Shown>(&path).await?.map(Shown::set).transpose()?.flatten())
            }
        }
    }

    /// Makes a set live, and returns its version.
    ///
    /// # Errors
    /// When somebody else has made another one live meanwhile, and when the audit takes no record.
    pub(super) async fn replace(&self, set: StoredSet) -> anyhow::Result<u64> {
        match &self.keeper {
            Keeper::Nats(direct) => {
                let replaced = direct.shelf.replace(direct.tenant, &self.live, set).await;
                Ok(replaced.map_err(in_words)?.version)
            }
            Keeper::Api(remote) => {
                let of = format!("\"{}\"", self.live.counted());
                let path = remote.path("policies", []);
                let shown = remote.api.change_of(Method::PUT, &path, Some(body(&set)), &of).await?;
                Ok(serde_json::from_value::<Shown>(shown)?.version)
            }
        }
    }

    /// Casts a shadow, or takes away the one of that version.
    ///
    /// # Errors
    /// As [`replace`](Self::replace).
    pub(super) async fn cast(&self, version: u64, shadow: Option<&StoredSet>) -> anyhow::Result<()> {
        match &self.keeper {
            Keeper::Nats(direct) => {
                let cast = direct.shelf.cast(direct.tenant, &self.live, version, shadow).await;
                cast.map_err(in_words)
            }
            Keeper::Api(remote) => {
                let method = if shadow.is_some() { Method::PUT } else { Method::DELETE };
                let path = remote.path("policies/shadow", []);
                remote.api.change(method, &path, shadow.map(body)).await.map(|_| ())
            }
        }
    }
}

#[derive(Deserialize)]
struct Versions {
    versions: Vec<VersionView>,
}

fn in_words(error: NotChanged<StoreError>) -> anyhow::Error {
    match error {
        NotChanged::Failed(StoreError::Contended) => anyhow::anyhow!(
            "somebody else has changed these policies just now: look with `policy list`, and try again"
        ),
        error => error.into(),
    }
}
