//! Which tenants, customers and devices are there, and whose is a credential? The registry's reads and writes.
//!
//! One JetStream KV bucket, `<prefix>_devices`, in file storage. Records stand under ids, and beside them indexes make
//! names and tokens unique:
//!
//! | key | value |
//! | --- | --- |
//! | `tenant.<id>` | [`Tenant`] |
//! | `customer.<id>` | [`Customer`] |
//! | `device.<id>` | [`Device`], with the hash of its token |
//! | `app.<id>` | [`App`], with the hashes of its keys |
//! | `credential.<sha256 of the token>` | the device's id |
//! | `tenant-name.<sha256 of the name>` | the tenant's id |
//! | `beat.<0 to 63>` | an authorizer's process and a number, see [`RegistryBeats`] |
//! | `customer-name.<tenant>.<sha256>`, `device-name.<tenant>.<sha256>` | the customer's or device's id |
//! | `app-name.<tenant>.<sha256>` | the application's id |
//!
//! Each write is a compare-and-set. Several keys are no transaction, so the order of writes keeps a crash in between
//! harmless: a credential lets a device in only if its key names the device *and* the device's record names that
//! very hash. Adding takes the name, writes the record, and makes the credential last; rotating makes the new
//! credential, lets the record name it, and then removes the old one; removing takes the record away first. An index
//! key that a crash left behind lets nobody in, and is taken over by the next who wants it, after a minute.

mod app;
mod bucket;
mod devices;
mod look_up;
mod records;
mod token;
mod watch;

use std::fmt;
use std::future::Future;

use futures::stream::{self, StreamExt};
use rpc::{AppId, CredentialHash, CustomerId, DeviceId, KeyId, TenantId};
use std::collections::{BTreeMap, HashSet};
use uuid::Uuid;

pub use app::{
    App, AppKey, DEFAULT_KEY_LASTS_S, KeyRecord, MAX_KEYS, MAX_METHOD_CHARS, NewKey, check_method,
};
pub use devices::{DeviceEvent, DeviceWatch};
pub use records::{
    Customer, DEFAULT_TYPE, Device, DeviceChange, Invalid, MAX_LABEL_KEY_CHARS, MAX_LABEL_VALUE_CHARS,
    MAX_LABELS, MAX_NAME_CHARS, Snapshot, Tag, Tenant, check_labels, check_name, check_type, misleads,
};
pub use token::{MAX_TOKEN_BYTES, MIN_STRONG_CHARS, Token, credential_of};
pub use watch::{Change, RegistryBeats, RegistryWatch};

use crate::{Bus, StoreError};
use bucket::{Bucket, Created, Held, json};
use records::Key;

/// Writes that a bulk import keeps in flight.
const BULK_IN_FLIGHT: usize = 256;

/// Why the registry did not do what was asked. Nothing was changed, unless NATS did not answer: then look.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// NATS or JetStream did not answer, or refused.
    #[error("the registry in NATS does not answer: {0}")]
    Unreachable(String),
    /// A value breaks its rules.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// Somebody else has that name, id or token.
    #[error("this {what} is taken, by {holder}")]
    Taken {
        /// `name`, `id` or `token`.
        what: &'static str,
        /// Who has it.
        holder: Uuid,
    },
    /// There is none of that id.
    #[error("there is no {kind} {id}")]
    Missing {
        /// Tenant, customer, device or application.
        kind: Kind,
        /// The id asked for.
        id: Uuid,
    },
    /// A device can only be assigned to a customer of its own tenant.
    #[error("customer {0} belongs to another tenant")]
    ForeignCustomer(CustomerId),
    /// A tenant or customer is removed only when it is empty.
    #[error("the {kind} is not empty: it has {}", still(*.customers, *.devices))]
    StillUsed {
        /// Tenant or customer.
        kind: Kind,
        /// Customers of that tenant.
        customers: usize,
        /// Devices of that tenant or customer.
        devices: usize,
    },
    /// Others wrote the same record at the same time, again and again.
    #[error("others are changing the same record at this moment; try again")]
    Contended,
    /// It is not any more what whoever changes it has read.
    #[error("it has been changed meanwhile: read it again")]
    Changed,
    /// One more key than an application may have.
    #[error("it has {MAX_KEYS} keys that live: revoke one first")]
    KeysFull,
    /// A record that this version does not understand.
    #[error("the record {key} cannot be read: {reason}")]
    Unreadable {
        /// Its key.
        key: String,
        /// Why.
        reason: String,
    },
    /// No token could be made.
    #[error("the operating system gives no random numbers: {0}")]
    Randomness(String),
}

impl From<StoreError> for RegistryError {
    fn from(error: StoreError) -> Self {
        RegistryError::Unreachable(error.to_string())
    }
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A tenant.
    Tenant,
    /// A customer.
    Customer,
    /// A device.
    Device,
    /// An application.
    App,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Tenant => "tenant",
            Kind::Customer => "customer",
            Kind::Device => "device",
            Kind::App => "application",
        })
    }
}

/// What came of adding a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Added {
    /// It was written, or completed where a crash had left it half written.
    Created,
    /// The very same stood there already.
    Unchanged,
}

/// A device to be added. Ids and tokens that nobody chose are made by the caller, who alone knows the token later.
#[derive(Debug, Clone)]
pub struct NewDevice {
    /// Its id.
    pub id: DeviceId,
    /// Its tenant, which must exist.
    pub tenant: TenantId,
    /// Its customer, which must exist in that tenant.
    pub customer: Option<CustomerId>,
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its token, of which only the hash is stored.
    pub token: Token,
}

impl NewDevice {
    fn record(&self) -> Device {
        Device {
            tenant: self.tenant,
            customer: self.customer,
            name: self.name.clone(),
            kind: self.kind.clone(),
            labels: self.labels.clone(),
            credential: self.token.credential(),
            weak_token: self.token.is_weak(),
        }
    }
}

/// The registry. Clones share one connection.
#[derive(Clone)]
pub struct Registry {
    bucket: Bucket,
}

impl Registry {
    /// Opens the registry, and makes its bucket when it is missing.
    ///
    /// # Errors
    /// When NATS does not answer, has no JetStream, or cannot make as many copies as asked for.
    pub async fn open(bus: &Bus) -> Result<Self, RegistryError> {
        Ok(Registry { bucket: Bucket::open(bus).await? })
    }

    /// Follows the registry for ever: one full load, then every change. Opens the bucket itself, as often as needed.
    pub fn watch(bus: &Bus) -> RegistryWatch {
        RegistryWatch::new(bus)
    }

    /// Sends beats through the registry, for those who watch it.
    pub fn beats(bus: &Bus) -> RegistryBeats {
        RegistryBeats::new(bus)
    }

    /// Everything that stands in the registry.
    ///
    /// # Errors
    /// When NATS does not answer.
    pub async fn load(&self) -> Result<Snapshot, RegistryError> {
        watch::load(&self.bucket).await
    }

    /// One tenant.
    ///
    /// # Errors
    /// When NATS does not answer, or the record cannot be read.
    pub async fn tenant(&self, id: TenantId) -> Result<Option<Tenant>, RegistryError> {
        Ok(self.bucket.get(Key::Tenant(id)).await?.map(|stored| stored.value))
    }

    /// One customer.
    ///
    /// # Errors
    /// As [`tenant`](Self::tenant).
    pub async fn customer(&self, id: CustomerId) -> Result<Option<Customer>, RegistryError> {
        Ok(self.bucket.get(Key::Customer(id)).await?.map(|stored| stored.value))
    }

    /// One device.
    ///
    /// # Errors
    /// As [`tenant`](Self::tenant).
    pub async fn device(&self, id: DeviceId) -> Result<Option<Device>, RegistryError> {
        Ok(self.bucket.get(Key::Device(id)).await?.map(|stored| stored.value))
    }

    /// One application.
    ///
    /// # Errors
    /// As [`tenant`](Self::tenant).
    pub async fn app(&self, id: AppId) -> Result<Option<App>, RegistryError> {
        Ok(self.bucket.get(Key::App(id)).await?.map(|stored| stored.value))
    }

    /// Adds a tenant.
    ///
    /// # Errors
    /// When its name is invalid or taken, or another tenant has its id.
    pub async fn add_tenant(&self, id: TenantId, tenant: &Tenant) -> Result<Added, RegistryError> {
        check_name(&tenant.name)?;
        let index = Key::TenantName(&tenant.name);
        let name = self.take_tenant_name(id, &tenant.name).await?;
        self.add_record(Key::Tenant(id), id.0, tenant, |it| it == tenant, (index, name)).await
    }

    /// Adds a customer.
    ///
    /// # Errors
    /// When its name is invalid or taken in the tenant, another customer has its id, or its tenant does not exist.
    pub async fn add_customer(&self, id: CustomerId, customer: &Customer) -> Result<Added, RegistryError> {
        check_name(&customer.name)?;
        self.existing_tenant(customer.tenant).await?;
        let index = Key::CustomerName(customer.tenant, &customer.name);
        let name = self.take_customer_name(id, customer.tenant, &customer.name).await?;
        self.add_record(Key::Customer(id), id.0, customer, |it| it == customer, (index, name)).await
    }

    /// Adds a device. The same device again, with the same token, is [`Added::Unchanged`].
    ///
    /// # Errors
    /// When a value is invalid, its name, id or token is taken, or its tenant or customer does not exist.
    pub async fn add_device(&self, device: &NewDevice) -> Result<Added, RegistryError> {
        let record = device.record();
        self.check_places(&record).await?;
        self.write_device(device.id, &record).await
    }

    /// Adds many devices at once, and tells of each, by its place in the list, how it went. One refused stops no other.
    /// After `stop` none is begun any more; each that was is ended and told.
    ///
    /// # Errors
    /// Only when the tenants and customers cannot be read to begin with; then nothing was added.
    pub async fn add_devices(
        &self,
        devices: &[NewDevice],
        stop: impl Future<Output = ()>,
        tell: impl FnMut(usize, Result<Added, RegistryError>),
    ) -> Result<(), RegistryError> {
        self.restore_devices(devices.iter().map(|device| (device.id, device.record())), stop, tell).await
    }

    /// The same with records that stood in a registry: their tokens, which nobody knows, are good as before.
    ///
    /// # Errors
    /// As [`add_devices`](Self::add_devices).
    pub async fn restore_devices(
        &self,
        devices: impl IntoIterator<Item = (DeviceId, Device)>,
        stop: impl Future<Output = ()>,
        mut tell: impl FnMut(usize, Result<Added, RegistryError>),
    ) -> Result<(), RegistryError> {
        let known = watch::load_kinds(&self.bucket, &["tenant.*", "customer.*"]).await?;
        let add = async |(place, (id, device)): (usize, (DeviceId, Device))| {
            let checked = match known.check_places(device.tenant, device.customer) {
                // What was loaded is one copy's, which may lag behind what was written a moment ago.
                Err(RegistryError::Missing { .. }) => self.check_places(&device).await,
                checked => checked,
            };
            let added = match checked {
                Ok(()) => self.write_device(id, &device).await,
                Err(error) => Err(error),
            };
            (place, added)
        };
        let devices = stream::iter(devices.into_iter().enumerate()).take_until(stop);
        let mut adding = std::pin::pin!(devices.map(add).buffer_unordered(BULK_IN_FLIGHT));
        while let Some((place, added)) = adding.next().await {
            tell(place, added);
        }
        Ok(())
    }

    /// Changes what is said of a device, all of it in one write; its sessions end if that is its customer. The device
    /// as it is now.
    ///
    /// # Errors
    /// When the device or its new customer does not exist, a value is invalid, its name is taken in its tenant, the
    /// customer is of another tenant, or the device is not at `only` any more.
    pub async fn change_device(
        &self,
        id: DeviceId,
        change: &DeviceChange,
        only: Option<&Tag>,
    ) -> Result<Device, RegistryError> {
        let gone = || missing(Kind::Device, id.0);
        let customer = match change.customer {
            Some(Some(customer)) => Some((customer, self.existing_customer_record(customer).await?.tenant)),
            _ => None,
        };
        let before = self.device(id).await?.ok_or_else(gone)?;
        let name = match &change.name {
            Some(name) => {
                check_name(name)?;
                let held = self.take_device_name(id, before.tenant, name).await?;
                Some((Key::DeviceName(before.tenant, name), held))
            }
            None => None,
        };
        let mut old_name = before.name;
        let apply = |device: &mut Device| {
            Tag::still(only, device.tag())?;
            if let Some((customer, _)) = customer.filter(|(_, tenant)| *tenant != device.tenant) {
                return Err(RegistryError::ForeignCustomer(customer));
            }
            let was = device.clone();
            change.apply(device)?;
            let is_changed = *device != was;
            old_name = was.name;
            Ok(is_changed)
        };
        let changed = self.bucket.change(Key::Device(id), apply).await;
        let changed = changed.and_then(|device| device.ok_or_else(gone));
        match name {
            Some(name) => {
                self.settle_name(changed, id.0, name, Key::DeviceName(before.tenant, &old_name)).await
            }
            None => changed,
        }
    }

    /// Gives a device another token; the old one is void at once, and its sessions end.
    ///
    /// # Errors
    /// When the device does not exist, or the token is another's.
    pub async fn rotate_token(&self, id: DeviceId, token: &Token) -> Result<Device, RegistryError> {
        if self.device(id).await?.is_none() {
            return Err(missing(Kind::Device, id.0));
        }
        let hash = token.credential();
        let held = self.take_credential(id, &hash).await?;
        let mut old_hash = None;
        let rotate = |device: &mut Device| {
            let old = std::mem::replace(&mut device.credential, hash.clone());
            let is_new = old != hash;
            old_hash = is_new.then_some(old);
            let was_weak = std::mem::replace(&mut device.weak_token, token.is_weak());
            Ok(is_new || was_weak != device.weak_token)
        };
        let rotated = self.bucket.change(Key::Device(id), rotate).await;
        let rotated = rotated.and_then(|device| device.ok_or(missing(Kind::Device, id.0)));
        match &rotated {
            Ok(_) => {
                if let Some(old) = &old_hash {
                    self.bucket.give_up(Key::Credential(old), id.0).await;
                }
            }
            Err(error) => self.undo(Key::Credential(&hash), id.0, held, error).await,
        }
        rotated
    }

    /// Removes a device; its sessions end. The device as it was.
    ///
    /// # Errors
    /// When it does not exist, or is not at `only` any more.
    pub async fn remove_device(&self, id: DeviceId, only: Option<&Tag>) -> Result<Device, RegistryError> {
        let expected = |device: &Device| Tag::still(only, device.tag());
        let device = self.bucket.remove(Key::Device(id), expected).await?;
        let device = device.ok_or(missing(Kind::Device, id.0))?;
        self.bucket.give_up(Key::Credential(&device.credential), id.0).await;
        self.bucket.give_up(Key::DeviceName(device.tenant, &device.name), id.0).await;
        Ok(device)
    }

    /// Renames a customer.
    ///
    /// # Errors
    /// When it does not exist or is not at `only` any more, or the name is invalid or taken in its tenant.
    pub async fn rename_customer(
        &self,
        id: CustomerId,
        name: &str,
        only: Option<&Tag>,
    ) -> Result<Customer, RegistryError> {
        check_name(name)?;
        let before = self.existing_customer_record(id).await?;
        let index = Key::CustomerName(before.tenant, name);
        let held = self.take_customer_name(id, before.tenant, name).await?;
        let mut old_name = before.name;
        let rename = |customer: &mut Customer| {
            Tag::still(only, customer.tag())?;
            old_name = std::mem::replace(&mut customer.name, name.to_owned());
            Ok(old_name != name)
        };
        let renamed = self.bucket.change(Key::Customer(id), rename).await;
        let renamed = renamed.and_then(|customer| customer.ok_or(missing(Kind::Customer, id.0)));
        self.settle_name(renamed, id.0, (index, held), Key::CustomerName(before.tenant, &old_name)).await
    }

    /// Renames a tenant.
    ///
    /// # Errors
    /// When it does not exist or is not at `only` any more, or the name is invalid or taken.
    pub async fn rename_tenant(
        &self,
        id: TenantId,
        name: &str,
        only: Option<&Tag>,
    ) -> Result<Tenant, RegistryError> {
        check_name(name)?;
        let mut old_name = self.existing_tenant(id).await?.name;
        let held = self.take_tenant_name(id, name).await?;
        let rename = |tenant: &mut Tenant| {
            Tag::still(only, tenant.tag())?;
            old_name = std::mem::replace(&mut tenant.name, name.to_owned());
            Ok(old_name != name)
        };
        let renamed = self.bucket.change(Key::Tenant(id), rename).await;
        let renamed = renamed.and_then(|tenant| tenant.ok_or(missing(Kind::Tenant, id.0)));
        self.settle_name(renamed, id.0, (Key::TenantName(name), held), Key::TenantName(&old_name)).await
    }

    /// Removes a customer that has no devices. One assigned to it in this very moment keeps the id of a customer
    /// that is gone, until it is assigned anew.
    ///
    /// # Errors
    /// When it does not exist, or still has devices.
    pub async fn remove_customer(&self, id: CustomerId) -> Result<Customer, RegistryError> {
        let devices = self.count(|device| device.customer == Some(id)).await?;
        if devices > 0 {
            return Err(RegistryError::StillUsed { kind: Kind::Customer, customers: 0, devices });
        }
        let customer: Customer =
            self.bucket.remove(Key::Customer(id), |_| Ok(())).await?.ok_or(missing(Kind::Customer, id.0))?;
        self.bucket.give_up(Key::CustomerName(customer.tenant, &customer.name), id.0).await;
        Ok(customer)
    }

    /// Removes a tenant that has neither customers nor devices, and its applications with it.
    ///
    /// # Errors
    /// When it does not exist, or still has some.
    pub async fn remove_tenant(&self, id: TenantId) -> Result<Tenant, RegistryError> {
        let known = self.load_places().await?;
        let devices = self.count(|device| device.tenant == id).await?;
        let customers = known.customers.values().filter(|customer| customer.tenant == id).count();
        if devices + customers > 0 {
            return Err(RegistryError::StillUsed { kind: Kind::Tenant, customers, devices });
        }
        for (app, _) in known.apps.iter().filter(|(_, app)| app.tenant == id) {
            self.remove_app(*app).await?;
        }
        let tenant: Option<Tenant> = self.bucket.remove(Key::Tenant(id), |_| Ok(())).await?;
        let tenant = tenant.ok_or(missing(Kind::Tenant, id.0))?;
        self.bucket.give_up(Key::TenantName(&tenant.name), id.0).await;
        Ok(tenant)
    }

    /// Adds an application without a key.
    ///
    /// # Errors
    /// When its name or scope is invalid, its name is taken in the tenant, or its tenant or a customer does not exist.
    pub async fn add_app(&self, id: AppId, app: &App) -> Result<Added, RegistryError> {
        app.check()?;
        self.existing_tenant(app.tenant).await?;
        for customer in app.customers.iter().flatten() {
            self.existing_customer(*customer, app.tenant).await?;
        }
        let index = Key::AppName(app.tenant, &app.name);
        let is_gone = async |other| {
            let other: Option<App> = self.bucket.get(Key::App(AppId(other))).await?.map(|it| it.value);
            Ok(other.is_none_or(|other| (other.tenant, &other.name) != (app.tenant, &app.name)))
        };
        let name = self.bucket.take(index, id.0, "name", is_gone).await?;
        self.add_record(Key::App(id), id.0, app, |it| it == app, (index, name)).await
    }

    /// Gives an application a key, and forgets those of its that have ended. The application as it is now.
    ///
    /// # Errors
    /// When it does not exist, or has [`MAX_KEYS`] keys already.
    pub async fn add_key(&self, new: &NewKey) -> Result<App, RegistryError> {
        let add = |app: &mut App| {
            app.keys.retain(|_, key| key.expires_s > new.now_s);
            if app.keys.len() >= MAX_KEYS {
                return Err(RegistryError::KeysFull);
            }
            app.keys.insert(new.key.id(), new.record());
            Ok(true)
        };
        self.bucket.change(Key::App(new.app), add).await?.ok_or(missing(Kind::App, new.app.0))
    }

    /// Ends one key of an application. The application as it is now.
    ///
    /// # Errors
    /// When the application does not exist.
    pub async fn revoke_key(&self, id: AppId, key: KeyId) -> Result<App, RegistryError> {
        let revoke = |app: &mut App| Ok(app.keys.remove(&key).is_some());
        self.bucket.change(Key::App(id), revoke).await?.ok_or(missing(Kind::App, id.0))
    }

    /// Removes an application, its keys with it. The application as it was.
    ///
    /// # Errors
    /// When it does not exist.
    pub async fn remove_app(&self, id: AppId) -> Result<App, RegistryError> {
        let app: Option<App> = self.bucket.remove(Key::App(id), |_| Ok(())).await?;
        let app = app.ok_or(missing(Kind::App, id.0))?;
        self.bucket.give_up(Key::AppName(app.tenant, &app.name), id.0).await;
        Ok(app)
    }

    /// How many devices are `meant`.
    async fn count(&self, meant: impl Fn(&Device) -> bool) -> Result<usize, RegistryError> {
        let mut counted = HashSet::new();
        let see = |id, device: Device| {
            if meant(&device) {
                counted.insert(id);
            }
        };
        self.each_device(see).await?;
        Ok(counted.len())
    }

    /// Name, record, credential: in this order, so that a device is let in only once all of it stands.
    async fn write_device(&self, id: DeviceId, record: &Device) -> Result<Added, RegistryError> {
        check_name(&record.name)?;
        check_type(&record.kind)?;
        check_labels(&record.labels)?;
        // Where nobody looked whether a token is weak, it is the same device all the same.
        let is_same =
            |standing: &Device| Device { weak_token: record.weak_token, ..standing.clone() } == *record;
        let index = Key::DeviceName(record.tenant, &record.name);
        let name = self.take_device_name(id, record.tenant, &record.name).await?;
        let added = self.add_record(Key::Device(id), id.0, record, is_same, (index, name)).await?;
        match self.take_credential(id, &record.credential).await {
            Ok(Held::Already) => Ok(added),
            Ok(Held::Newly) => Ok(Added::Created),
            Err(error @ RegistryError::Taken { .. }) if added == Added::Created => {
                self.bucket.remove(Key::Device(id), |_: &Device| Ok(())).await?;
                self.undo(index, id.0, name, &error).await;
                Err(error)
            }
            Err(error) => Err(error),
        }
    }

    /// Creates a record whose name is already held, and gives the name up again if that fails.
    async fn add_record<T: serde::Serialize + serde::de::DeserializeOwned>(
        &self,
        key: Key<'_>,
        id: Uuid,
        record: &T,
        is_same: impl Fn(&T) -> bool,
        (index, name): (Key<'_>, Held),
    ) -> Result<Added, RegistryError> {
        let standing = match self.bucket.create(key, json(record)?).await? {
            Created::New => return Ok(Added::Created),
            Created::Standing(standing) => bucket::record::<T>(key, &standing.value),
        };
        if standing.is_ok_and(|standing| is_same(&standing)) {
            return Ok(match name {
                Held::Newly => Added::Created,
                Held::Already => Added::Unchanged,
            });
        }
        let error = RegistryError::Taken { what: "id", holder: id };
        self.undo(index, id, name, &error).await;
        Err(error)
    }

    /// After a rename: the old name is free if it succeeded, the new one if it failed.
    async fn settle_name<T>(
        &self,
        renamed: Result<T, RegistryError>,
        id: Uuid,
        (new, held): (Key<'_>, Held),
        old: Key<'_>,
    ) -> Result<T, RegistryError> {
        match &renamed {
            Ok(_) if old != new => self.bucket.give_up(old, id).await,
            Ok(_) => {}
            Err(error) => self.undo(new, id, held, error).await,
        }
        renamed
    }

    /// Gives up what was newly taken, unless the failure leaves open whether it is needed.
    async fn undo(&self, key: Key<'_>, holder: Uuid, held: Held, failure: &RegistryError) {
        if matches!(held, Held::Newly) && !matches!(failure, RegistryError::Unreachable(_)) {
            self.bucket.give_up(key, holder).await;
        }
    }

    async fn take_tenant_name(&self, id: TenantId, name: &str) -> Result<Held, RegistryError> {
        let is_gone =
            async |other| Ok(self.tenant(TenantId(other)).await?.is_none_or(|other| other.name != name));
        self.bucket.take(Key::TenantName(name), id.0, "name", is_gone).await
    }

    async fn take_customer_name(
        &self,
        id: CustomerId,
        tenant: TenantId,
        name: &str,
    ) -> Result<Held, RegistryError> {
        let is_gone = async |other| {
            let other = self.customer(CustomerId(other)).await?;
            Ok(other.is_none_or(|other| (other.tenant, other.name.as_str()) != (tenant, name)))
        };
        self.bucket.take(Key::CustomerName(tenant, name), id.0, "name", is_gone).await
    }

    async fn take_device_name(
        &self,
        id: DeviceId,
        tenant: TenantId,
        name: &str,
    ) -> Result<Held, RegistryError> {
        let is_gone = async |other| {
            let other = self.device(DeviceId(other)).await?;
            Ok(other.is_none_or(|other| (other.tenant, other.name.as_str()) != (tenant, name)))
        };
        self.bucket.take(Key::DeviceName(tenant, name), id.0, "name", is_gone).await
    }

    async fn take_credential(&self, id: DeviceId, hash: &CredentialHash) -> Result<Held, RegistryError> {
        let is_gone = async |other| {
            Ok(self.device(DeviceId(other)).await?.is_none_or(|other| other.credential != *hash))
        };
        self.bucket.take(Key::Credential(hash), id.0, "token", is_gone).await
    }

    /// Whether the tenant and the customer that it names exist.
    async fn check_places(&self, device: &Device) -> Result<(), RegistryError> {
        self.existing_tenant(device.tenant).await?;
        match device.customer {
            Some(customer) => self.existing_customer(customer, device.tenant).await,
            None => Ok(()),
        }
    }

    async fn existing_tenant(&self, id: TenantId) -> Result<Tenant, RegistryError> {
        self.tenant(id).await?.ok_or(missing(Kind::Tenant, id.0))
    }

    async fn existing_customer_record(&self, id: CustomerId) -> Result<Customer, RegistryError> {
        self.customer(id).await?.ok_or(missing(Kind::Customer, id.0))
    }

    async fn existing_customer(&self, id: CustomerId, tenant: TenantId) -> Result<(), RegistryError> {
        if self.existing_customer_record(id).await?.tenant == tenant {
            return Ok(());
        }
        Err(RegistryError::ForeignCustomer(id))
    }
}

impl Snapshot {
    fn check_places(&self, tenant: TenantId, customer: Option<CustomerId>) -> Result<(), RegistryError> {
        if !self.tenants.contains_key(&tenant) {
            return Err(missing(Kind::Tenant, tenant.0));
        }
        let Some(id) = customer else {
            return Ok(());
        };
        match self.customers.get(&id) {
            Some(customer) if customer.tenant == tenant => Ok(()),
            Some(_) => Err(RegistryError::ForeignCustomer(id)),
            None => Err(missing(Kind::Customer, id.0)),
        }
    }
}

fn still(customers: usize, devices: usize) -> String {
    let of = |number: usize, one: &str| format!("{number} {one}{}", if number == 1 { "" } else { "s" });
    match (customers, devices) {
        (0, devices) => of(devices, "device"),
        (customers, 0) => of(customers, "customer"),
        (customers, devices) => format!("{} and {}", of(customers, "customer"), of(devices, "device")),
    }
}

fn missing(kind: Kind, id: Uuid) -> RegistryError {
    RegistryError::Missing { kind, id }
}
