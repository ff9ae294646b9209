//! Who keeps the registry for a command? NATS itself, or an API for those whose key allows it: shown and changed in one
//! way whoever does.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::{Context, bail};
use boot::clock::unix_s;
use bus::changes::{Change, Changed, Changes};
use bus::registry::{App, AppKey, Customer, Device, KeyRecord, NewDevice, Snapshot, Tenant};
use hyper::Method;
use rpc::{AppId, CredentialHash, CustomerId, DeviceId, KeyId, Role, TenantId};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::common::api::Api;
use crate::common::find;
use crate::common::via::path_segment;

/// Who shows the registry and changes it.
pub(crate) enum Registrar {
    /// The registry in NATS.
    Nats(Changes),
    /// An API, which shows what its key reaches.
    Api(Api),
}

impl Registrar {
    /// All tenants, customers, applications and devices.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub(crate) async fn known(&self) -> anyhow::Result<Snapshot> {
        if let Registrar::Nats(changes) = self {
            return Ok(changes.registry.load().await?);
        }
        let (mut known, mut devices) = (self.accounts().await?, HashMap::new());
        self.each_device("", |id, device| _ = devices.insert(id, device)).await?;
        known.devices = devices;
        Ok(known)
    }

    /// Hands over each device, in no order; of an API, those that its key reaches and that its `query` leaves.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub(crate) async fn each_device(
        &self,
        query: &str,
        mut take: impl FnMut(DeviceId, Device),
    ) -> anyhow::Result<()> {
        match self {
            Registrar::Nats(changes) => changes.registry.each_device(take).await?,
            Registrar::Api(api) => {
                devices(api, "devices", query).await?.into_iter().for_each(|(id, device)| take(id, device));
            }
        }
        Ok(())
    }

    /// The name of the device of this id; none: it is gone, or not there for an API's key.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub(crate) async fn device_name(&self, id: DeviceId) -> anyhow::Result<Option<String>> {
        Ok(match self {
            Registrar::Nats(changes) => changes.registry.device(id).await?.map(|device| device.name),
            Registrar::Api(api) => api.find::<Named>(&format!("devices/{id}")).await?.map(|it| it.name),
        })
    }

    /// The tenant and the customer of a device.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub(crate) async fn places_of(&self, device: &Device) -> anyhow::Result<Snapshot> {
        match self {
            Registrar::Nats(changes) => Ok(changes.registry.places_of(device).await?),
            Registrar::Api(_) => self.accounts().await,
        }
    }

    /// All but the devices; of an API, what the role of the key lets it show.
    ///
    /// # Errors
    /// When the registry does not answer.
    pub(crate) async fn accounts(&self) -> anyhow::Result<Snapshot> {
        let api = match self {
            Registrar::Nats(changes) => return Ok(changes.registry.load_places().await?),
            Registrar::Api(api) => api,
        };
        let own: Own = api.get("app").await?;
        let mut known = Snapshot::default();
        if own.role < Role::Operator {
            return Ok(known);
        }
        let tenants = api.all::<Named>("tenants", "").await?;
        known.tenants = tenants.into_iter().map(|it| (TenantId(it.id), Tenant { name: it.name })).collect();
        for tenant in known.tenants.keys().copied().collect::<BTreeSet<_>>() {
            let of = format!("&tenant={tenant}");
            let customers = api.all::<Named>("customers", &of).await?;
            let customers = customers.into_iter();
            known
                .customers
                .extend(customers.map(|it| (CustomerId(it.id), Customer { tenant, name: it.name })));
            if own.role >= Role::Admin {
                let apps = api.all::<ShownApp>("apps", &of).await?;
                known.apps.extend(apps.into_iter().map(|it| (it.id, it.app())));
            }
        }
        Ok(known)
    }

    /// The device to be changed or shown: by id or name without reading all the others.
    ///
    /// # Errors
    /// When there is none, or several.
    pub(crate) async fn device(&self, named: &str) -> anyhow::Result<(DeviceId, Device)> {
        match self {
            Registrar::Nats(changes) => find::device(&changes.registry, named).await,
            Registrar::Api(api) => {
                let own: Own = api.get("app").await?;
                let shown: Shown = api.get(&format!("devices/{}", path_segment(named))).await?;
                Ok(shown.device(own.tenant))
            }
        }
    }

    /// The device to be shown, in NATS by an ending of its name, too; and its tenant and customer.
    ///
    /// # Errors
    /// When there is none, or several.
    pub(crate) async fn device_by_ending(&self, named: &str) -> anyhow::Result<(DeviceId, Device, Snapshot)> {
        let (id, device) = match self {
            Registrar::Nats(changes) => find::device_by_ending(&changes.registry, named).await?,
            Registrar::Api(_) => self.device(named).await?,
        };
        let places = self.places_of(&device).await?;
        Ok((id, device, places))
    }

    /// The customer of this id or name in the tenant.
    ///
    /// # Errors
    /// When there is none.
    pub(crate) async fn customer(
        &self,
        tenant: TenantId,
        named: &str,
    ) -> anyhow::Result<(CustomerId, Customer)> {
        match self {
            Registrar::Nats(changes) => find::customer_of(&changes.registry, tenant, named).await,
            Registrar::Api(api) => {
                let path = format!("customers/{}?tenant={tenant}", path_segment(named));
                let Named { id, name } = api.get(&path).await?;
                Ok((CustomerId(id), Customer { tenant, name }))
            }
        }
    }

    /// Makes a change, with its record. What it became; of what an API has renamed or removed, nothing is said.
    ///
    /// # Errors
    /// As [`Changes::make`].
    pub(crate) async fn change(&self, change: Change) -> anyhow::Result<Option<Changed>> {
        match self {
            Registrar::Nats(changes) => Ok(Some(changes.make(change, None, unix_s()).await?)),
            Registrar::Api(api) => over(api, change).await,
        }
    }
}

/// A change as an API takes it.
async fn over(api: &Api, change: Change) -> anyhow::Result<Option<Changed>> {
    let of = |tenant: TenantId| format!("?tenant={tenant}");
    let named = |name: String| Some(json!({ "name": name }));
    let (method, path, body) = match &change {
        Change::AddTenant(id, tenant) => {
            (Method::POST, "tenants".into(), Some(json!({"id": id, "name": tenant.name})))
        }
        Change::RenameTenant(id, name) => (Method::PATCH, format!("tenants/{id}"), named(name.clone())),
        Change::RemoveTenant(id) => (Method::DELETE, format!("tenants/{id}"), None),
        Change::AddCustomer(id, customer) => {
            let body = json!({"id": id, "name": customer.name});
            (Method::POST, format!("customers{}", of(customer.tenant)), Some(body))
        }
        Change::RenameCustomer(id, name) => (Method::PATCH, format!("customers/{id}"), named(name.clone())),
        Change::RemoveCustomer(id) => (Method::DELETE, format!("customers/{id}"), None),
        Change::AddDevice(new) => {
            let (method, path, body) = addition(new);
            (method, path, Some(body))
        }
        Change::ChangeDevice(id, change) => {
            (Method::PATCH, format!("devices/{id}"), Some(serde_json::to_value(change)?))
        }
        Change::RotateToken(id, token) => {
            let body = json!({"token": token.reveal(), "weakToken": token.is_weak()});
            (Method::POST, format!("devices/{id}/token"), Some(body))
        }
        Change::RemoveDevice(id) => (Method::DELETE, format!("devices/{id}"), None),
        Change::AddApp(id, app, days) => {
            let body = json!({
                "id": id, "name": app.name, "role": app.role, "allTenants": app.all_tenants,
                "customers": app.customers, "labels": app.labels, "methods": app.methods,
                "networks": app.networks, "days": days,
            });
            (Method::POST, format!("apps{}", of(app.tenant)), Some(body))
        }
        Change::AddKey(id, days) => (Method::POST, format!("apps/{id}/keys"), Some(json!({"days": days}))),
        Change::RevokeKey(id, key) => (Method::DELETE, format!("apps/{id}/keys/{key}"), None),
        Change::RemoveApp(id) => (Method::DELETE, format!("apps/{id}"), None),
    };
    let answer = api.change(method, &path, body).await?;
    changed(change, answer).context("the API's answer cannot be read")
}

/// What an API says of what it has changed.
fn changed(change: Change, answer: Value) -> anyhow::Result<Option<Changed>> {
    Ok(match change {
        Change::AddDevice(_) | Change::ChangeDevice(..) | Change::RotateToken(..) => {
            let shown: Shown = serde_json::from_value(answer)?;
            let Some(tenant) = shown.tenant else { bail!("the device has no tenant") };
            Some(Changed::Device(shown.device(tenant).1))
        }
        Change::AddApp(..) | Change::AddKey(..) => {
            let shown: ShownApp = serde_json::from_value(answer)?;
            let key = shown.key.as_deref().and_then(AppKey::parse);
            Some(Changed::App(shown.app(), key))
        }
        Change::AddTenant(..)
        | Change::RenameTenant(..)
        | Change::RemoveTenant(_)
        | Change::AddCustomer(..)
        | Change::RenameCustomer(..)
        | Change::RemoveCustomer(_)
        | Change::RemoveDevice(_)
        | Change::RevokeKey(..)
        | Change::RemoveApp(_) => None,
    })
}

/// A device that is to be added, as an API takes it.
pub(crate) fn addition(new: &NewDevice) -> (Method, String, Value) {
    let body = json!({
        "id": new.id, "name": new.name, "customer": new.customer, "type": new.kind, "labels": new.labels,
        "token": new.token.reveal(), "weakToken": new.token.is_weak(),
    });
    (Method::POST, format!("devices?tenant={}", new.tenant), body)
}

/// The tenant of an API's key.
///
/// # Errors
/// When the API does not answer.
pub(crate) async fn own_tenant(api: &Api) -> anyhow::Result<TenantId> {
    Ok(api.get::<Own>("app").await?.tenant)
}

/// Whom a key is for.
#[derive(Deserialize)]
struct Own {
    tenant: TenantId,
    role: Role,
}

/// A tenant or customer, as an API shows it.
#[derive(Deserialize)]
struct Named {
    id: uuid::Uuid,
    name: String,
}

/// A device, as an API shows it.
#[derive(Deserialize)]
struct Shown {
    id: DeviceId,
    name: String,
    tenant: Option<TenantId>,
    #[serde(rename = "type")]
    kind: String,
    customer: Option<CustomerId>,
    labels: BTreeMap<String, String>,
}

impl Shown {
    /// Without the hash of its token, which an API shows nobody.
    fn device(self, own: TenantId) -> (DeviceId, Device) {
        let Shown { id, name, tenant, kind, customer, labels } = self;
        let credential = CredentialHash(String::new());
        let tenant = tenant.unwrap_or(own);
        (id, Device { tenant, customer, name, kind, labels, credential, weak_token: false })
    }
}

/// An application, as an API shows it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ShownApp {
    id: AppId,
    name: String,
    tenant: TenantId,
    role: Role,
    all_tenants: bool,
    customers: Option<BTreeSet<CustomerId>>,
    labels: BTreeMap<String, String>,
    methods: Option<BTreeSet<String>>,
    networks: Option<BTreeSet<String>>,
    keys: Vec<ShownKey>,
    key: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ShownKey {
    id: KeyId,
    made_s: u64,
    expires_s: u64,
}

impl ShownApp {
    /// Without the hashes of its keys, which an API shows nobody.
    fn app(self) -> App {
        let ShownApp { name, tenant, role, all_tenants, customers, labels, methods, networks, keys, .. } =
            self;
        let keys = keys.into_iter().map(|ShownKey { id, made_s, expires_s }| {
            (id, KeyRecord { hash: CredentialHash(String::new()), made_s, expires_s })
        });
        App { name, tenant, role, all_tenants, customers, labels, methods, networks, keys: keys.collect() }
    }
}

/// All devices of the list at a path of an API.
///
/// # Errors
/// When the API does not answer, or refuses.
pub(crate) async fn devices(api: &Api, list: &str, query: &str) -> anyhow::Result<Vec<(DeviceId, Device)>> {
    let own: Own = api.get("app").await?;
    let shown = api.all::<Shown>(list, query).await?;
    Ok(shown.into_iter().map(|shown| shown.device(own.tenant)).collect())
}

/// Who is online of the devices that an API shows.
#[derive(Deserialize)]
struct Presence {
    id: DeviceId,
}

/// Those that are online.
///
/// # Errors
/// When the API does not answer.
pub(crate) async fn online(api: &Api) -> anyhow::Result<HashSet<DeviceId>> {
    Ok(api.all::<Presence>("presence", "&online=true").await?.into_iter().map(|it| it.id).collect())
}
