//! Which tenant, customer or device does a person mean? By id or by name; never by guessing.

use std::collections::BTreeMap;

use anyhow::bail;
use bus::registry::{Customer, Device, Registry, Snapshot, Tenant};
use clap::Args;
use rpc::{CustomerId, DeviceId, TenantId};

use crate::common::via::path_segment;

/// Which devices of a list are meant.
#[derive(Args)]
pub(crate) struct PickArgs {
    /// Only those whose name contains this, in whatever case; with * for whatever there is, the whole name: '*A1'
    #[arg(long, value_name = "TEXT")]
    name: Option<String>,
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
        let has_name = |name: &String| is_like(&device.name.to_lowercase(), &name.to_lowercase());
        self.name.as_ref().is_none_or(has_name)
            && self.kind.as_ref().is_none_or(|kind| device.kind == *kind)
            && self.labels.iter().all(|wanted| has_label(device, wanted))
    }

    /// As much of that as an API can be asked for, as `&type=pump&label=site%3Dnorth`.
    pub(crate) fn query(&self) -> String {
        let kind = self.kind.iter().map(|kind| ("type", kind));
        // Of labels it knows whole ones alone.
        let labels = self.labels.iter().filter(|wanted| wanted.contains('=')).map(|label| ("label", label));
        kind.chain(labels).map(|(name, value)| format!("&{name}={}", path_segment(value))).collect()
    }
}

/// Whether a name contains `wanted`; or, where that has a `*`, is of that pattern.
fn is_like(name: &str, wanted: &str) -> bool {
    let Some((start, rest)) = wanted.split_once('*') else { return name.contains(wanted) };
    let (middle, end) = rest.rsplit_once('*').unwrap_or(("", rest));
    let Some(mut left) = name.strip_prefix(start) else { return false };
    for part in middle.split('*') {
        let Some((_, behind)) = left.split_once(part) else { return false };
        left = behind;
    }
    left.ends_with(end)
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

/// The customer of this id or name in the tenant, without reading all the others.
///
/// # Errors
/// When there is none.
pub(crate) async fn customer_of(
    registry: &Registry,
    tenant: TenantId,
    named: &str,
) -> anyhow::Result<(CustomerId, Customer)> {
    if let Ok(id) = named.parse::<CustomerId>()
        && let Some(customer) = registry.customer(id).await?
    {
        return Ok((id, customer));
    }
    if let Some(found) = registry.customer_named(tenant, named).await? {
        return Ok(found);
    }
    let known = registry.load_places().await?;
    customer(&known, named, Some(tenant)).map(|(id, customer)| (id, customer.clone()))
}

/// The device of this id or name, or the only one with these labels. All devices are read only where neither is one's.
///
/// # Errors
/// When there is none, or several.
pub(crate) async fn device(registry: &Registry, named: &str) -> anyhow::Result<(DeviceId, Device)> {
    found(registry, named, false).await
}

/// The device of this id or name, or the only one whose name ends in this: `A1` is `Test Device A1`.
///
/// # Errors
/// When there is none, or several.
pub(crate) async fn device_by_ending(registry: &Registry, named: &str) -> anyhow::Result<(DeviceId, Device)> {
    found(registry, named, true).await
}

async fn found(registry: &Registry, named: &str, by_ending: bool) -> anyhow::Result<(DeviceId, Device)> {
    if let Ok(id) = named.parse::<DeviceId>()
        && let Some(device) = registry.device(id).await?
    {
        return Ok((id, device));
    }
    let mut by_name = registry.devices_named(named).await?;
    let several = match (by_name.pop(), by_name.is_empty()) {
        (Some(only), true) => return Ok(only),
        (Some(last), false) => {
            by_name.push(last);
            Several { what: "are named", devices: by_name }
        }
        (None, _) => {
            let mut meant = Meant::new(named, by_ending);
            registry.each_device(|id, device| meant.see(id, device)).await?;
            match meant.choose()? {
                Ok(only) => return Ok(only),
                Err(several) => several,
            }
        }
    };
    let mut places = Vec::new();
    for (id, device) in several.devices.iter().take(MAX_KEPT) {
        let known = registry.places_of(device).await?;
        let customer = device.customer.map(|customer| customer_name(&known, customer));
        let customer = customer.unwrap_or_else(|| "unassigned".to_owned());
        let tenant = tenant_name(&known, device.tenant);
        places.push((id.to_string(), format!("{} ({tenant}, {customer})", device.name)));
    }
    bail!("several devices {} {named:?}: say which by id or full name{}", several.what, list(places))
}

/// Candidates that are kept of a search: more than an error lists, so that it can say that there are more.
const MAX_KEPT: usize = MAX_LISTED + 1;

/// Devices between which nobody has decided.
#[derive(Debug)]
struct Several {
    what: &'static str,
    devices: Vec<(DeviceId, Device)>,
}

/// Which devices may a person mean who named none of them exactly? They are seen one by one, and few are kept.
struct Meant<'a> {
    named: &'a str,
    lower: String,
    /// What all labels must be: `room=12`, or `room=12,kind=door`.
    labels: Vec<&'a str>,
    by_ending: bool,
    with_labels: BTreeMap<DeviceId, Device>,
    ending: BTreeMap<DeviceId, Device>,
    alike: BTreeMap<DeviceId, String>,
}

impl<'a> Meant<'a> {
    fn new(named: &'a str, by_ending: bool) -> Self {
        let labels: Vec<_> = named.split(',').collect();
        let are_labels = labels.iter().all(|label| label.contains('='));
        Meant {
            named,
            lower: named.to_lowercase(),
            labels: if are_labels { labels } else { Vec::new() },
            by_ending: by_ending && !named.is_empty(),
            with_labels: BTreeMap::new(),
            ending: BTreeMap::new(),
            alike: BTreeMap::new(),
        }
    }

    fn see(&mut self, id: DeviceId, device: Device) {
        if self.alike.len() < MAX_KEPT && device.name.to_lowercase().contains(&self.lower) {
            self.alike.insert(id, device.name.clone());
        }
        let has_labels = !self.labels.is_empty() && self.labels.iter().all(|label| has_label(&device, label));
        if has_labels && self.with_labels.len() < MAX_KEPT {
            self.with_labels.insert(id, device);
        } else if self.by_ending && self.ending.len() < MAX_KEPT && device.name.ends_with(self.named) {
            self.ending.insert(id, device);
        }
    }

    fn choose(self) -> anyhow::Result<Result<(DeviceId, Device), Several>> {
        for (what, found) in
            [("have the labels", self.with_labels), ("have a name that ends in", self.ending)]
        {
            let mut devices: Vec<_> = found.into_iter().collect();
            match (devices.pop(), devices.is_empty()) {
                (Some(only), true) => return Ok(Ok(only)),
                (Some(last), false) => {
                    devices.push(last);
                    return Ok(Err(Several { what, devices }));
                }
                (None, _) => {}
            }
        }
        let alike = self.alike.into_iter().map(|(id, name)| (id.to_string(), name));
        bail!("there is no device {:?}{}", self.named, list(alike))
    }
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
        (false, _) => format!("\nThere are:{}\n  and more", lines.concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    fn meant(named: &str, by_ending: bool, names: &[&str]) -> Result<u128, String> {
        let mut meant = Meant::new(named, by_ending);
        for (number, name) in (1..).zip(names) {
            let (name, labels) = name.split_once(':').unwrap_or((name, ""));
            let labels = labels.split_terminator(' ').filter_map(|label| label.split_once('='));
            let device = Device {
                tenant: TenantId(Uuid::from_u128(1)),
                customer: None,
                name: name.to_owned(),
                kind: "default".to_owned(),
                labels: labels.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
                credential: rpc::CredentialHash(String::new()),
                weak_token: false,
            };
            meant.see(DeviceId(Uuid::from_u128(number)), device);
        }
        match meant.choose() {
            Ok(Ok((id, _))) => Ok(id.0.as_u128()),
            Ok(Err(several)) => Err(format!("{} {}", several.devices.len(), several.what)),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn who_is_not_named_exactly_is_found_by_an_ending_that_only_one_has() {
        let names = ["Test Device A1", "Test Device A2", "Hall A2"];
        assert_eq!(meant("A1", true, &names), Ok(1));
        assert_eq!(meant("A2", true, &names), Err("2 have a name that ends in".to_owned()));
        let refused = meant("A1", false, &names).unwrap_err();
        assert!(
            refused.starts_with("there is no device \"A1\"") && refused.contains("Test Device A1"),
            "{refused}"
        );
        assert!(meant("", true, &names).is_err());
        let many = vec!["Pump"; 1_000];
        assert_eq!(meant("ump", true, &many), Err(format!("{MAX_KEPT} have a name that ends in")));
        assert!(meant("um", true, &many).unwrap_err().ends_with("and more"));
    }

    #[test]
    fn an_api_is_asked_for_what_it_knows() {
        let labels = ["site=north 1", "floor"].map(str::to_owned).into();
        let pick = PickArgs { name: Some("pump*".to_owned()), kind: Some("pump".to_owned()), labels };
        assert_eq!(pick.query(), "&type=pump&label=site%3Dnorth%201");
    }

    #[test]
    fn a_name_is_wanted_by_a_part_or_by_a_pattern() {
        for (wanted, is_meant) in [
            ("device a", true),
            ("", true),
            ("*a1", true),
            ("test*", true),
            ("*vice*", true),
            ("t*e*1", true),
            ("*", true),
            ("test device a1*", true),
            ("*device", false),
            ("device*", false),
            ("*a1*a1", false),
            ("test device a1*a1", false),
            ("e*t*1", false),
        ] {
            assert_eq!(is_like("test device a1", wanted), is_meant, "{wanted}");
        }
    }

    #[test]
    fn a_label_is_wanted_by_key_or_with_its_value() {
        let lamps = ["Lamp:room=12 expression=a=b", "Lamp:room=12"];
        assert_eq!(meant("room=12,expression=a=b", false, &lamps), Ok(1));
        assert_eq!(meant("room=12", false, &lamps), Err("2 have the labels".to_owned()));
        assert!(meant("room=12,expression=b", false, &lamps).is_err());
    }

    #[test]
    fn tenants_and_customers_go_by_name_where_that_is_enough() {
        let mut known = Snapshot::default();
        for number in [1, 2] {
            let tenant = TenantId(Uuid::from_u128(number));
            known.tenants.insert(tenant, Tenant { name: format!("T{number}") });
            let customer = Customer { tenant, name: "Works".to_owned() };
            known.customers.insert(CustomerId(Uuid::from_u128(number)), customer);
        }
        assert!(tenant(&known, None).unwrap_err().to_string().contains("--tenant"));
        let second = tenant(&known, Some("T2")).unwrap().0;
        assert_eq!(second.0.as_u128(), 2);
        assert_eq!(customer(&known, "Works", Some(second)).unwrap().0.0.as_u128(), 2);
        let refused = customer(&known, "Works", None).unwrap_err().to_string();
        assert!(
            refused.contains("Works of tenant T1") && refused.contains("Works of tenant T2"),
            "{refused}"
        );
    }
}
