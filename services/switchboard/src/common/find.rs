//! Which tenant, customer or device does a person mean? By id or by name; never by guessing.

use anyhow::bail;
use bus::registry::{Customer, Device, Registry, Snapshot, Tenant};
use clap::Args;
use rpc::{CustomerId, DeviceId, TenantId};

/// Which devices of a list are meant.
#[derive(Args)]
pub(crate) struct PickArgs {
    /// Only those of this type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Only those with this label, or with any of this key; may be repeated: then those with all of them
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
}

impl PickArgs {
    /// Whether a device is meant.
    pub(crate) fn takes(&self, device: &Device) -> bool {
        self.kind.as_ref().is_none_or(|kind| device.kind == *kind)
            && self.labels.iter().all(|wanted| has_label(device, wanted))
    }
}

/// How many candidates an error lists.
const MAX_LISTED: usize = 10;

/// The tenant of this id or name; the only one there is when none is named.
///
/// # Errors
/// When there is none, or several and none is named.
pub(crate) fn tenant<'a>(known: &'a Snapshot, named: Option<&str>) -> anyhow::Result<(TenantId, &'a Tenant)> {
    let Some(named) = named else {
        let mut all = known.tenants.iter();
        return match (all.next(), all.next()) {
            (Some((id, tenant)), None) => Ok((*id, tenant)),
            (None, _) => bail!("there is no tenant yet: make one with `switchboard tenant add NAME`"),
            _ => bail!("there are several tenants: say which with --tenant{}", list(tenants(known))),
        };
    };
    let by_id = named.parse().ok().and_then(|id| known.tenants.get_key_value(&id));
    let by_name = || known.tenants.iter().find(|(_, tenant)| tenant.name == named);
    match by_id.or_else(by_name) {
        Some((id, tenant)) => Ok((*id, tenant)),
        None => bail!("there is no tenant {named:?}{}", list(tenants(known))),
    }
}

/// The id of the tenant that is named, if one is.
pub(crate) fn tenant_if_named(known: &Snapshot, named: Option<&str>) -> anyhow::Result<Option<TenantId>> {
    named.map(|named| Ok(tenant(known, Some(named))?.0)).transpose()
}

/// The customer of this id or name; `tenant` decides between tenants that have one of that name.
///
/// # Errors
/// When there is none, or several.
pub(crate) fn customer<'a>(
    known: &'a Snapshot,
    named: &str,
    tenant: Option<TenantId>,
) -> anyhow::Result<(CustomerId, &'a Customer)> {
    if let Some((id, customer)) = named.parse().ok().and_then(|id| known.customers.get_key_value(&id)) {
        return Ok((*id, customer));
    }
    let in_tenant = |customer: &Customer| tenant.is_none_or(|tenant| customer.tenant == tenant);
    let found: Vec<_> = known
        .customers
        .iter()
        .filter(|(_, customer)| customer.name == named && in_tenant(customer))
        .collect();
    match found.as_slice() {
        [(id, customer)] => Ok((**id, customer)),
        [] => {
            let all = known.customers.iter().filter(|(_, customer)| in_tenant(customer));
            bail!(
                "there is no customer {named:?}{}",
                list(all.map(|(id, customer)| (id.to_string(), customer.name.clone())))
            )
        }
        several => {
            let several = several.iter().map(|(id, customer)| {
                (
                    id.to_string(),
                    format!("{} of tenant {}", customer.name, tenant_name(known, customer.tenant)),
                )
            });
            bail!(
                "several customers are named {named:?}: say which by id, or name the --tenant{}",
                list(several)
            )
        }
    }
}

/// The device of this id or name, or the only one with these labels.
///
/// # Errors
/// When there is none, or several.
pub(crate) fn device<'a>(known: &'a Snapshot, named: &str) -> anyhow::Result<(DeviceId, &'a Device)> {
    match exact(known, named)? {
        Some(found) => Ok(found),
        None => bail!("there is no device {named:?}{}", list(similar(known, named))),
    }
}

/// The device of this id or name, or the only one whose name ends in this: `A1` is `Test Device A1`.
///
/// # Errors
/// When there is none, or several.
pub(crate) fn device_by_ending<'a>(
    known: &'a Snapshot,
    named: &str,
) -> anyhow::Result<(DeviceId, &'a Device)> {
    if let Some(found) = exact(known, named)? {
        return Ok(found);
    }
    let found: Vec<_> = known.devices.iter().filter(|(_, device)| device.name.ends_with(named)).collect();
    match found.as_slice() {
        [(id, device)] if !named.is_empty() => Ok((**id, device)),
        [] => bail!("there is no device {named:?}{}", list(similar(known, named))),
        several => bail!(
            "several names end in {named:?}: say which by id or full name{}",
            list(places(known, several))
        ),
    }
}

/// The device to be changed or shown: by id without reading all the others.
///
/// # Errors
/// When there is none, or several.
pub(crate) async fn device_id(registry: &Registry, named: &str) -> anyhow::Result<(DeviceId, Device)> {
    if let Ok(id) = named.parse::<DeviceId>()
        && let Some(device) = registry.device(id).await?
    {
        return Ok((id, device));
    }
    let known = registry.load().await?;
    let (id, device) = device(&known, named)?;
    Ok((id, device.clone()))
}

/// Whether a device has the label `wanted`: `room=12`, or `room` with any value.
pub(crate) fn has_label(device: &Device, wanted: &str) -> bool {
    match wanted.split_once('=') {
        Some((key, value)) => device.labels.get(key).is_some_and(|has| has == value),
        None => device.labels.contains_key(wanted),
    }
}

/// A tenant's name, or its id when it has none (any more).
pub(crate) fn tenant_name(known: &Snapshot, id: TenantId) -> String {
    known.tenants.get(&id).map_or_else(|| id.to_string(), |tenant| tenant.name.clone())
}

/// A customer's name, or its id when it has none (any more).
pub(crate) fn customer_name(known: &Snapshot, id: CustomerId) -> String {
    known.customers.get(&id).map_or_else(|| id.to_string(), |customer| customer.name.clone())
}

fn exact<'a>(known: &'a Snapshot, named: &str) -> anyhow::Result<Option<(DeviceId, &'a Device)>> {
    if let Some((id, device)) = named.parse().ok().and_then(|id| known.devices.get_key_value(&id)) {
        return Ok(Some((*id, device)));
    }
    let found: Vec<_> = known.devices.iter().filter(|(_, device)| device.name == named).collect();
    match found.as_slice() {
        [] => by_labels(known, named),
        [(id, device)] => Ok(Some((**id, device))),
        several => {
            bail!("several devices are named {named:?}: say which by id{}", list(places(known, several)))
        }
    }
}

/// The only device with these labels: `room=12`, or `room=12,kind=door`.
fn by_labels<'a>(known: &'a Snapshot, named: &str) -> anyhow::Result<Option<(DeviceId, &'a Device)>> {
    let labels: Vec<_> = named.split(',').collect();
    if !labels.iter().all(|label| label.contains('=')) {
        return Ok(None);
    }
    let has_all = |device: &Device| labels.iter().all(|wanted| has_label(device, wanted));
    let found: Vec<_> = known.devices.iter().filter(|(_, device)| has_all(device)).collect();
    match found.as_slice() {
        [] => Ok(None),
        [(id, device)] => Ok(Some((**id, device))),
        several => {
            bail!("several devices have the labels {named}: say which{}", list(places(known, several)))
        }
    }
}

fn similar(known: &Snapshot, named: &str) -> Vec<(String, String)> {
    let named = named.to_lowercase();
    let alike = known.devices.iter().filter(|(_, device)| device.name.to_lowercase().contains(&named));
    alike.map(|(id, device)| (id.to_string(), device.name.clone())).collect()
}

fn places(known: &Snapshot, devices: &[(&DeviceId, &Device)]) -> Vec<(String, String)> {
    let place = |(id, device): &(&DeviceId, &Device)| {
        let customer = device.customer.map(|customer| customer_name(known, customer));
        let tenant = tenant_name(known, device.tenant);
        let customer = customer.unwrap_or_else(|| "unassigned".to_owned());
        (id.to_string(), format!("{} ({tenant}, {customer})", device.name))
    };
    devices.iter().map(place).collect()
}

fn tenants(known: &Snapshot) -> impl Iterator<Item = (String, String)> {
    known.tenants.iter().map(|(id, tenant)| (id.to_string(), tenant.name.clone()))
}

fn list(candidates: impl IntoIterator<Item = (String, String)>) -> String {
    let mut lines: Vec<String> =
        candidates.into_iter().map(|(id, name)| format!("\n  {id}  {name}")).collect();
    lines.sort();
    let more = lines.len().saturating_sub(MAX_LISTED);
    lines.truncate(MAX_LISTED);
    match (lines.is_empty(), more) {
        (true, _) => String::new(),
        (false, 0) => format!("\nThere are:{}", lines.concat()),
        (false, more) => format!("\nThere are:{}\n  and {more} more", lines.concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn known(names: &[(u128, &str, u128)]) -> Snapshot {
        let mut known = Snapshot::default();
        for (id, name, tenant) in names {
            let tenant = TenantId(Uuid::from_u128(*tenant));
            known.tenants.insert(tenant, Tenant { name: format!("T{}", tenant.0.as_u128()) });
            let device = Device {
                tenant,
                customer: None,
                name: (*name).to_owned(),
                kind: "default".to_owned(),
                labels: Default::default(),
                credential: rpc::CredentialHash(String::new()),
                weak_token: false,
            };
            known.devices.insert(DeviceId(Uuid::from_u128(*id)), device);
        }
        known
    }

    #[test]
    fn a_device_is_found_by_id_by_name_and_by_a_unique_ending() {
        let known = known(&[(1, "Test Device A1", 1), (2, "Test Device A2", 1), (3, "A2", 1)]);
        let id = |found: anyhow::Result<(DeviceId, &Device)>| found.map(|(id, _)| id.0.as_u128()).ok();
        assert_eq!(id(device(&known, "00000000-0000-0000-0000-000000000002")), Some(2));
        assert_eq!(id(device(&known, "Test Device A1")), Some(1));
        assert_eq!(id(device(&known, "A1")), None);
        assert_eq!(id(device_by_ending(&known, "A1")), Some(1));
        assert_eq!(id(device_by_ending(&known, "A2")), Some(3), "the exact name comes first");
        assert_eq!(id(device_by_ending(&known, "2")), None);
        assert_eq!(id(device_by_ending(&known, "")), None);
        let refused = device_by_ending(&known, "2").unwrap_err().to_string();
        assert!(
            refused.contains("several names end in \"2\"") && refused.contains("Test Device A2"),
            "{refused}"
        );
        let refused = device(&known, "device a").unwrap_err().to_string();
        assert!(refused.starts_with("there is no device") && refused.contains("Test Device A1"), "{refused}");
    }

    #[test]
    fn a_label_is_wanted_by_key_or_with_its_value() {
        let mut known = known(&[(1, "Lamp", 1)]);
        let device = known.devices.values_mut().next().unwrap();
        device.labels = [("room", "12"), ("expression", "a=b")].map(|(k, v)| (k.into(), v.into())).into();
        assert!(by_labels(&known, "room=12,expression=a=b").unwrap().is_some());
        assert!(by_labels(&known, "room=12,expression=b").unwrap().is_none());
        let device = known.devices.values().next().unwrap();
        for (wanted, has) in
            [("room", true), ("room=12", true), ("room=1", false), ("expression=a=b", true), ("roo", false)]
        {
            assert_eq!(has_label(device, wanted), has, "{wanted}");
        }
    }

    #[test]
    fn several_of_one_name_are_listed_and_not_chosen_from() {
        let known = known(&[(1, "Pump", 1), (2, "Pump", 2)]);
        let refused = device(&known, "Pump").unwrap_err().to_string();
        assert!(
            refused.contains("Pump (T1, unassigned)") && refused.contains("Pump (T2, unassigned)"),
            "{refused}"
        );
        assert!(tenant(&known, None).unwrap_err().to_string().contains("--tenant"));
        assert_eq!(tenant(&known, Some("T2")).unwrap().0.0.as_u128(), 2);
    }
}
