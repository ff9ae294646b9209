//! What can be changed of the registry, and who has changed it? Every change has a record in the audit before it
//! happens, in the same words whoever asks for it: the command line or the API.

use std::fmt;
use std::future::Future;

use boot::Settings;
use rpc::{AppId, CustomerId, DeviceId, KeyId, TenantId};

use crate::audit::{AuditLog, Book, Entry};
use crate::registry::{
    App, AppKey, Customer, Device, DeviceChange, Kind, NewDevice, NewKey, Registry, RegistryError, Tag,
    Tenant, Token,
};
use crate::{Bus, StoreError};

const DAY_S: u64 = 86_400;

/// Who changes something, from where, and what for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Author {
    /// Who, in his own words, or as a service knows him.
    pub who: String,
    /// From where.
    pub from: String,
    /// What for.
    pub why: String,
}

/// Writes records in one author's name.
#[derive(Clone)]
pub struct Recorder {
    log: AuditLog,
    /// Written by authorizers alone, and read here.
    denials: AuditLog,
    author: Author,
}

/// Why something was not changed, or a change that failed is not told.
#[derive(Debug)]
pub enum NotChanged<E> {
    /// The audit does not take the record: nothing was changed.
    Unrecorded(StoreError),
    /// The change's own error, which the audit has.
    Failed(E),
    /// The change's own error, and the audit says that it happened.
    FailedUntold(E, StoreError),
}

impl<E: fmt::Display> fmt::Display for NotChanged<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotChanged::Unrecorded(_) => {
                f.write_str("nothing was changed: the audit does not take the record of it")
            }
            NotChanged::Failed(error) => error.fmt(f),
            NotChanged::FailedUntold(error, untold) => {
                write!(f, "{error}; and the audit says that it happened: {untold}")
            }
        }
    }
}

impl<E: fmt::Debug + fmt::Display> std::error::Error for NotChanged<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            NotChanged::Unrecorded(error) => Some(error),
            NotChanged::Failed(_) | NotChanged::FailedUntold(..) => None,
        }
    }
}

impl<E> From<E> for NotChanged<E> {
    fn from(error: E) -> Self {
        NotChanged::Failed(error)
    }
}

impl Recorder {
    /// Of a running system.
    pub fn of(bus: &Bus, settings: &Settings, author: Author) -> Self {
        let [log, denials] = Book::ALL.map(|book| AuditLog::of(bus, settings, book));
        Recorder { log, denials, author }
    }

    /// The same audit, for another author.
    pub fn by(&self, author: Author) -> Self {
        Recorder { author, ..self.clone() }
    }

    /// What it writes to, and what authorizers do.
    pub fn log(&self, book: Book) -> &AuditLog {
        match book {
            Book::Changes => &self.log,
            Book::Denials => &self.denials,
        }
    }

    /// Records a change of many things, and then lets it happen. One that fails has a second record of each, which says
    /// so.
    ///
    /// # Errors
    /// When the audit takes no record: then nothing was changed. And the change's own.
    pub async fn changes<T, E: fmt::Display>(
        &self,
        entries: Vec<(TenantId, Entry)>,
        change: impl Future<Output = Result<T, E>>,
    ) -> Result<T, NotChanged<E>> {
        for (tenant, entry) in &entries {
            self.record(*tenant, entry.clone()).await.map_err(NotChanged::Unrecorded)?;
        }
        let error = match change.await {
            Ok(changed) => return Ok(changed),
            Err(error) => error,
        };
        for (tenant, entry) in entries {
            let failed = Entry { kind: format!("{}.failed", entry.kind), why: format!("{error:#}"), ..entry };
            if let Err(untold) = self.record(tenant, failed).await {
                return Err(NotChanged::FailedUntold(error, untold));
            }
        }
        Err(NotChanged::Failed(error))
    }

    async fn record(&self, tenant: TenantId, entry: Entry) -> Result<(), StoreError> {
        let Author { who, from, why } = self.author.clone();
        let why = if entry.why.is_empty() { why } else { entry.why };
        self.log.append(tenant, Entry { who, why, from, ..entry }).await
    }
}

/// An entry in words.
pub fn entry(kind: &str, devices: impl IntoIterator<Item = DeviceId>, what: impl Into<String>) -> Entry {
    Entry { what: what.into(), ..Entry::new(kind, devices) }
}

/// A change of the registry.
#[derive(Debug, Clone)]
pub enum Change {
    /// Adds a tenant.
    AddTenant(TenantId, Tenant),
    /// Renames one.
    RenameTenant(TenantId, String),
    /// Removes one that has neither customers nor devices.
    RemoveTenant(TenantId),
    /// Adds a customer.
    AddCustomer(CustomerId, Customer),
    /// Renames one.
    RenameCustomer(CustomerId, String),
    /// Removes one that has no devices.
    RemoveCustomer(CustomerId),
    /// Adds a device.
    AddDevice(Box<NewDevice>),
    /// Changes what is said of one.
    ChangeDevice(DeviceId, DeviceChange),
    /// Gives one another token.
    RotateToken(DeviceId, Token),
    /// Removes one.
    RemoveDevice(DeviceId),
    /// Adds an application, with a key that lasts so many days.
    AddApp(AppId, App, u64),
    /// Makes a key for one, that lasts so many days.
    AddKey(AppId, u64),
    /// Ends a key.
    RevokeKey(AppId, KeyId),
    /// Removes an application, its keys with it.
    RemoveApp(AppId),
}

/// What was changed, as it is now; of what was removed, as it was.
#[derive(Debug, Clone)]
pub enum Changed {
    /// A tenant.
    Tenant(Tenant),
    /// A customer.
    Customer(Customer),
    /// A device.
    Device(Device),
    /// An application, and the key that was made.
    App(App, Option<AppKey>),
}

/// Changes the registry in one author's name.
#[derive(Clone)]
pub struct Changes {
    /// What is changed.
    pub registry: Registry,
    /// Who is said to have done it.
    pub recorder: Recorder,
}

impl Changes {
    /// Records a change, and makes it; where `only` is given, only of what is still in that state.
    ///
    /// # Errors
    /// As [`Recorder::changes`], and as the registry's writes.
    pub async fn make(
        &self,
        change: Change,
        only: Option<&Tag>,
        now_s: u64,
    ) -> Result<Changed, NotChanged<RegistryError>> {
        let Changes { registry, recorder } = self;
        match change {
            Change::AddTenant(id, tenant) => {
                let added = entry("tenant.add", [], format!("tenant {:?}", tenant.name));
                recorder.changes(vec![(id, added)], registry.add_tenant(id, &tenant)).await?;
                Ok(Changed::Tenant(tenant))
            }
            Change::RenameTenant(id, name) => {
                let tenant = found(registry.tenant(id).await, Kind::Tenant, id.0)?;
                let renamed = entry("tenant.rename", [], format!("{:?} is now {name:?}", tenant.name));
                let rename = registry.rename_tenant(id, &name, only);
                recorder.changes(vec![(id, renamed)], rename).await.map(Changed::Tenant)
            }
            Change::RemoveTenant(id) => {
                let tenant = found(registry.tenant(id).await, Kind::Tenant, id.0)?;
                let removed = entry("tenant.remove", [], format!("tenant {:?}", tenant.name));
                recorder.changes(vec![(id, removed)], registry.remove_tenant(id)).await.map(Changed::Tenant)
            }
            Change::AddCustomer(id, customer) => {
                let added = entry("customer.add", [], format!("customer {:?} ({id})", customer.name));
                let add = registry.add_customer(id, &customer);
                recorder.changes(vec![(customer.tenant, added)], add).await?;
                Ok(Changed::Customer(customer))
            }
            Change::RenameCustomer(id, name) => {
                let customer = found(registry.customer(id).await, Kind::Customer, id.0)?;
                let what = format!("{:?} is now {name:?} ({id})", customer.name);
                let renamed = vec![(customer.tenant, entry("customer.rename", [], what))];
                let rename = registry.rename_customer(id, &name, only);
                recorder.changes(renamed, rename).await.map(Changed::Customer)
            }
            Change::RemoveCustomer(id) => {
                let customer = found(registry.customer(id).await, Kind::Customer, id.0)?;
                let removed = entry("customer.remove", [], format!("customer {:?} ({id})", customer.name));
                let removed = vec![(customer.tenant, removed)];
                recorder.changes(removed, registry.remove_customer(id)).await.map(Changed::Customer)
            }
            Change::AddDevice(new) => {
                let of = match new.customer {
                    Some(id) => registry.customer(id).await?.map_or(id.to_string(), |customer| customer.name),
                    None => "nobody's".to_owned(),
                };
                let what = format!("device {:?}, customer {of}, labels: {}", new.name, in_words(&new.labels));
                let added = vec![(new.tenant, entry("device.add", [new.id], what))];
                recorder.changes(added, registry.add_device(&new)).await?;
                Ok(Changed::Device(found(registry.device(new.id).await, Kind::Device, new.id.0)?))
            }
            Change::ChangeDevice(id, change) => {
                let device = found(registry.device(id).await, Kind::Device, id.0)?;
                let customer = match change.customer {
                    Some(Some(customer)) => registry.customer(customer).await?,
                    _ => None,
                };
                let entries = changed(id, &device, customer.as_ref(), &change);
                let entries = entries.into_iter().map(|entry| (device.tenant, entry)).collect();
                let change = registry.change_device(id, &change, only);
                recorder.changes(entries, change).await.map(Changed::Device)
            }
            Change::RotateToken(id, token) => {
                let device = found(registry.device(id).await, Kind::Device, id.0)?;
                let what = format!("another token for {:?}", device.name);
                let rotated = vec![(device.tenant, entry("device.rotate-token", [id], what))];
                recorder.changes(rotated, registry.rotate_token(id, &token)).await.map(Changed::Device)
            }
            Change::RemoveDevice(id) => {
                let device = found(registry.device(id).await, Kind::Device, id.0)?;
                let removed = entry("device.remove", [id], format!("device {:?}", device.name));
                let remove = registry.remove_device(id, only);
                recorder.changes(vec![(device.tenant, removed)], remove).await.map(Changed::Device)
            }
            Change::AddApp(id, app, days) => {
                let scope = scope(registry, &app).await?;
                let what = format!("application {:?} ({id}), {}: {scope}", app.name, app.role.as_str());
                let added = vec![(app.tenant, entry("app.add", [], what))];
                recorder.changes(added, registry.add_app(id, &app)).await?;
                Box::pin(self.make(Change::AddKey(id, days), None, now_s)).await
            }
            Change::AddKey(id, days) => {
                let app = found(registry.app(id).await, Kind::App, id.0)?;
                let key = AppKey::generate()?;
                let what = format!("key {} of application {:?}, for {days} days", key.id(), app.name);
                let made = vec![(app.tenant, entry("app.key", [], what))];
                let new = NewKey { app: id, key: key.clone(), now_s, lasts_s: days.saturating_mul(DAY_S) };
                let app = recorder.changes(made, registry.add_key(&new)).await?;
                Ok(Changed::App(app, Some(key)))
            }
            Change::RevokeKey(id, key) => {
                let app = found(registry.app(id).await, Kind::App, id.0)?;
                let revoked = entry("app.revoke", [], format!("key {key} of application {:?}", app.name));
                let revoked = vec![(app.tenant, revoked)];
                let app = recorder.changes(revoked, registry.revoke_key(id, key)).await?;
                Ok(Changed::App(app, None))
            }
            Change::RemoveApp(id) => {
                let app = found(registry.app(id).await, Kind::App, id.0)?;
                let removed = entry("app.remove", [], format!("application {:?} ({id})", app.name));
                let app = recorder.changes(vec![(app.tenant, removed)], registry.remove_app(id)).await?;
                Ok(Changed::App(app, None))
            }
        }
    }
}

fn found<T>(found: Result<Option<T>, RegistryError>, kind: Kind, id: uuid::Uuid) -> Result<T, RegistryError> {
    found?.ok_or(RegistryError::Missing { kind, id })
}

/// What the audit says of each part of a change.
fn changed(id: DeviceId, device: &Device, customer: Option<&Customer>, change: &DeviceChange) -> Vec<Entry> {
    let name = &device.name;
    let mut entries = Vec::new();
    if let Some(now) = &change.name {
        entries.push(entry("device.rename", [id], format!("{name:?} is now {now:?}")));
    }
    if let Some(kind) = &change.kind {
        entries.push(entry("device.retype", [id], format!("{name:?} is now of type {kind:?}")));
    }
    match change.customer {
        Some(Some(to)) => {
            let of = customer.map_or_else(|| to.to_string(), |customer| customer.name.clone());
            entries.push(entry("device.assign", [id], format!("{name:?} is assigned to {of:?} ({to})")));
        }
        Some(None) => {
            entries.push(entry("device.unassign", [id], format!("{name:?} is assigned to nobody")));
        }
        None => {}
    }
    let set = change.labels.iter().filter_map(|(key, value)| Some((key.clone(), value.clone()?))).collect();
    let removed: Vec<_> =
        change.labels.iter().filter(|it| it.1.is_none()).map(|(key, _)| key.as_str()).collect();
    for (is_any, what) in [
        (change.labels.len() > removed.len(), format!("set: {}", in_words(&set))),
        (!removed.is_empty(), format!("removed: {}", removed.join(" "))),
    ] {
        if is_any {
            entries.push(entry("device.label", [id], what));
        }
    }
    entries
}

/// What an application may reach, in words.
///
/// # Errors
/// When the registry does not answer.
pub async fn scope(registry: &Registry, app: &App) -> Result<String, RegistryError> {
    let mut names = Vec::new();
    for id in app.customers.iter().flatten() {
        names.push(registry.customer(*id).await?.map_or(id.to_string(), |customer| customer.name));
    }
    let tenant = registry.tenant(app.tenant).await?.map_or(app.tenant.to_string(), |tenant| tenant.name);
    Ok(app.scope(&tenant, app.customers.is_some().then_some(names)))
}

/// Labels in words.
pub fn in_words(labels: &std::collections::BTreeMap<String, String>) -> String {
    if labels.is_empty() {
        return "none".to_owned();
    }
    labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
}
