//! Which device, customer or application is that? Looked up by id or by the indexes of names, or told one by one: in a
//! registry of a million nobody who wants one of them holds them all.

use futures::stream::{self, StreamExt, TryStreamExt};
use rpc::{AppId, CustomerId, DeviceId, TenantId};
use uuid::Uuid;

use super::bucket::REQUEST_WAIT;
use super::records::{Key, hex_sha256};
use super::{App, Customer, Device, Registry, RegistryError, Snapshot, Tenant, watch};

/// Devices of one name that are read at a time: one of each tenant may bear it.
const READ_AT_ONCE: usize = 32;

impl Registry {
    /// Everything that stands in the registry but its devices.
    ///
    /// # Errors
    /// When NATS does not answer.
    pub async fn load_places(&self) -> Result<Snapshot, RegistryError> {
        watch::load_kinds(&self.bucket, &["tenant.*", "customer.*", "app.*"]).await
    }

    /// Tells every device, one after the other. Over a loss of the connection one may be told again.
    ///
    /// # Errors
    /// When NATS does not answer.
    pub async fn each_device(&self, see: impl FnMut(DeviceId, Device)) -> Result<(), RegistryError> {
        watch::each_device(&self.bucket, see).await
    }

    /// The devices of this name, one of a tenant at most.
    ///
    /// # Errors
    /// When NATS does not answer, or a record cannot be read.
    pub async fn devices_named(&self, name: &str) -> Result<Vec<(DeviceId, Device)>, RegistryError> {
        let pattern = format!("device-name.*.{}", hex_sha256(name));
        let keys = self.bucket.keys.matching(&pattern, REQUEST_WAIT).await?;
        let tenants = keys.iter().filter_map(|key| key.split('.').nth(1)?.parse::<TenantId>().ok());
        let found = stream::iter(tenants).map(|tenant| self.device_named(tenant, name));
        let found: Vec<_> = found.buffer_unordered(READ_AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    /// The tenant's device of this name.
    ///
    /// # Errors
    /// As [`devices_named`](Self::devices_named).
    pub async fn device_named(
        &self,
        tenant: TenantId,
        name: &str,
    ) -> Result<Option<(DeviceId, Device)>, RegistryError> {
        let Some(id) = self.holder(Key::DeviceName(tenant, name)).await? else { return Ok(None) };
        let is_it = |device: &Device| (device.tenant, device.name.as_str()) == (tenant, name);
        // A crash may have left the key of one that is gone, or has another name by now.
        Ok(self.device(DeviceId(id)).await?.filter(is_it).map(|device| (DeviceId(id), device)))
    }

    /// The tenant's customer of this name.
    ///
    /// # Errors
    /// As [`devices_named`](Self::devices_named).
    pub async fn customer_named(
        &self,
        tenant: TenantId,
        name: &str,
    ) -> Result<Option<(CustomerId, Customer)>, RegistryError> {
        let Some(id) = self.holder(Key::CustomerName(tenant, name)).await? else { return Ok(None) };
        let is_it = |customer: &Customer| (customer.tenant, customer.name.as_str()) == (tenant, name);
        Ok(self.customer(CustomerId(id)).await?.filter(is_it).map(|customer| (CustomerId(id), customer)))
    }

    /// The tenant of this name.
    ///
    /// # Errors
    /// As [`devices_named`](Self::devices_named).
    pub async fn tenant_named(&self, name: &str) -> Result<Option<(TenantId, Tenant)>, RegistryError> {
        let Some(id) = self.holder(Key::TenantName(name)).await? else { return Ok(None) };
        let tenant = self.tenant(TenantId(id)).await?.filter(|tenant| tenant.name == name);
        Ok(tenant.map(|tenant| (TenantId(id), tenant)))
    }

    /// The tenant's application of this name.
    ///
    /// # Errors
    /// As [`devices_named`](Self::devices_named).
    pub async fn app_named(
        &self,
        tenant: TenantId,
        name: &str,
    ) -> Result<Option<(AppId, App)>, RegistryError> {
        let Some(id) = self.holder(Key::AppName(tenant, name)).await? else { return Ok(None) };
        let is_it = |app: &App| (app.tenant, app.name.as_str()) == (tenant, name);
        Ok(self.app(AppId(id)).await?.filter(is_it).map(|app| (AppId(id), app)))
    }

    /// The device's tenant and its customer.
    ///
    /// # Errors
    /// As [`devices_named`](Self::devices_named).
    pub async fn places_of(&self, device: &Device) -> Result<Snapshot, RegistryError> {
        let mut places = Snapshot::default();
        places.tenants.extend(self.tenant(device.tenant).await?.map(|tenant| (device.tenant, tenant)));
        if let Some(id) = device.customer {
            places.customers.extend(self.customer(id).await?.map(|customer| (id, customer)));
        }
        Ok(places)
    }

    /// Who holds an index key.
    async fn holder(&self, key: Key<'_>) -> Result<Option<Uuid>, RegistryError> {
        let entry = self.bucket.keys.get(&key.text(), REQUEST_WAIT).await?;
        let value = entry.and_then(|entry| entry.value);
        Ok(value.and_then(|value| Uuid::try_parse(std::str::from_utf8(&value).ok()?).ok()))
    }
}
