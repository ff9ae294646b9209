//! What of a file is to be written? Each row against what stands already, and against the rows before it.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;

use bus::audit::{Entry, MAX_DEVICES};
use bus::changes::entry;
use bus::registry::{
    Added, Customer, DEFAULT_TYPE, Device, Kind, NewDevice, Registry, RegistryError, Snapshot, Tenant, Token,
    check_labels, check_name, check_type,
};
use futures::stream::{self, StreamExt};
use rpc::{CredentialHash, CustomerId, DeviceId, TenantId};
use uuid::Uuid;

use super::report::Report;
use super::tokens::{Kept, Named};
use crate::common::output::count;
use crate::device::rows::{self, Fault, Place, Row};

/// Tenants and customers that are made at a time.
const IN_FLIGHT: usize = 64;

/// What an import is going to write.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(super) tenants: Vec<(Place, TenantId, Tenant)>,
    pub(super) customers: Vec<(Place, CustomerId, Customer)>,
    /// Those that stand so already, token and all, come first: they are told of, and not written.
    pub(crate) devices: Vec<NewDevice>,
    pub(super) origins: Vec<Origin>,
    tenant_names: HashMap<TenantId, String>,
    customer_names: HashMap<CustomerId, String>,
    /// Devices that stand there already as the file names them, and bring no token to compare.
    unchanged: usize,
    faults: Vec<Fault>,
}

/// Where a planned device comes from.
#[derive(Debug)]
pub(super) struct Origin {
    /// Where it stands.
    pub(super) place: Place,
    /// Nobody chose its token.
    pub(super) is_made_up: bool,
    /// An earlier run, which was interrupted, has made its token up.
    pub(super) is_resumed: bool,
    /// The device stands there so already, with this token.
    stands: bool,
}

/// How a file is taken.
#[derive(Debug, Default)]
pub(crate) struct Taking<'a> {
    /// Id or name of the tenant of rows that name none.
    pub(crate) tenant: Option<&'a str>,
    /// Tenants and customers that rows name are made.
    pub(crate) create: bool,
    /// Short tokens are taken.
    pub(crate) weak_tokens: bool,
    /// Ids and tokens of an earlier run.
    pub(crate) kept: Option<&'a Kept>,
}

impl Plan {
    /// What of `file` is to be written where `known` stands.
    ///
    /// # Errors
    /// When the tenant of all rows does not exist, or no token can be made.
    pub(crate) fn of(file: rows::File, known: &Snapshot, taking: &Taking<'_>) -> anyhow::Result<Plan> {
        let tenant = taking.tenant;
        let mut planning = Planning::new(file.faults, known, taking);
        for (place, row) in file.tenants {
            planning.add_tenant(place, row);
        }
        for (place, row) in file.customers {
            planning.add_customer(place, row);
        }
        if let Some(named) = tenant
            && planning.tenant_of(&Place::Entry("--tenant", 0), named).is_err()
        {
            anyhow::bail!("there is no tenant {named:?}; --create makes it");
        }
        for (place, row) in file.devices {
            planning.add_device(place, row, tenant)?;
        }
        let mut plan = planning.plan;
        let mut planned: Vec<_> = plan.devices.into_iter().zip(plan.origins).collect();
        planned.sort_by_key(|(_, origin)| !origin.stands);
        (plan.devices, plan.origins) = planned.into_iter().unzip();
        Ok(plan)
    }
}

impl Plan {
    /// What the audit is to say of it.
    pub(crate) fn entries(&self) -> Vec<(TenantId, Entry)> {
        let tenants = self.tenants.iter().map(|(_, id, tenant)| {
            (*id, entry("tenant.add", [], format!("tenant {:?}, imported", tenant.name)))
        });
        let customers = self.customers.iter().map(|(_, id, customer)| {
            let what = format!("customer {:?} ({id}), imported", customer.name);
            (customer.tenant, entry("customer.add", [], what))
        });
        let mut devices: BTreeMap<TenantId, Vec<DeviceId>> = BTreeMap::new();
        for device in self.devices.iter().skip(self.standing()) {
            devices.entry(device.tenant).or_default().push(device.id);
        }
        let parts =
            devices.iter().flat_map(|(tenant, ids)| ids.chunks(MAX_DEVICES).map(|part| (*tenant, part)));
        let devices = parts.map(|(tenant, part)| {
            let what = format!("{}, but for those that are refused", count(part.len(), "device"));
            (tenant, entry("device.import", part.iter().copied(), what))
        });
        tenants.chain(customers).chain(devices).collect()
    }

    /// How many of the devices stand so already.
    fn standing(&self) -> usize {
        self.origins.partition_point(|origin| origin.stands)
    }

    /// The names of a device's tenant and customer, and its own.
    pub(super) fn named(&self, tenant: TenantId, customer: Option<CustomerId>, name: &str) -> Named {
        let tenant = self.tenant_names.get(&tenant).cloned().unwrap_or_default();
        let customer = customer.and_then(|customer| self.customer_names.get(&customer)).cloned();
        (tenant, customer.unwrap_or_default(), name.to_owned())
    }

    /// Writes it all, or as far as it comes until `stop`; `done` hears of each device.
    ///
    /// # Errors
    /// When the registry cannot be read.
    pub(crate) async fn apply(
        &self,
        registry: &Registry,
        stop: impl Future<Output = ()>,
        mut done: impl FnMut(),
    ) -> anyhow::Result<Report> {
        let mut report = self.begun();
        let tenants = self
            .tenants
            .iter()
            .map(|(place, id, tenant)| async move { (place, registry.add_tenant(*id, tenant).await) });
        refuse(stream::iter(tenants).buffer_unordered(IN_FLIGHT).collect().await, &mut report.faults);
        let customers = self
            .customers
            .iter()
            .map(|(place, id, customer)| async move { (place, registry.add_customer(*id, customer).await) });
        refuse(stream::iter(customers).buffer_unordered(IN_FLIGHT).collect().await, &mut report.faults);

        let standing = self.standing();
        (0..standing).for_each(|_| done());
        let tell = |number: usize, added: Result<Added, RegistryError>| {
            let number = standing + number;
            let Some(origin) = self.origins.get(number) else { return };
            report.left -= 1;
            match added {
                Ok(Added::Created) => report.created.push(number),
                Ok(Added::Unchanged) if origin.is_resumed => report.resumed.push(number),
                Ok(Added::Unchanged) => report.unchanged += 1,
                Err(error) => {
                    report.refused.insert(number);
                    report.faults.push(fault(&origin.place, &error));
                }
            }
            done();
        };
        registry.add_devices(self.devices.get(standing..).unwrap_or_default(), stop, tell).await?;
        Ok(sorted(report))
    }

    /// Before anything is written.
    pub(super) fn begun(&self) -> Report {
        let (resumed, unchanged): (Vec<_>, Vec<_>) = (0..self.standing())
            .partition(|number| self.origins.get(*number).is_some_and(|it| it.is_resumed));
        let (faults, left) = (self.faults.clone(), self.devices.len() - self.standing());
        Report { faults, resumed, unchanged: self.unchanged + unchanged.len(), left, ..Report::default() }
    }
}

/// A report in the order of the file.
pub(super) fn sorted(mut report: Report) -> Report {
    report.created.sort_unstable();
    report.resumed.sort_unstable();
    report.faults.sort_by_key(|fault| match fault.place {
        Place::Line(line) => (0, line),
        Place::Entry(_, number) => (1, number as u64),
    });
    report
}

fn refuse(results: Vec<(&Place, Result<Added, RegistryError>)>, faults: &mut Vec<Fault>) {
    faults.extend(results.into_iter().filter_map(|(place, result)| Some(fault(place, &result.err()?))));
}

fn fault(place: &Place, error: &RegistryError) -> Fault {
    let (field, expected) = match error {
        RegistryError::Taken { what: "id", .. } => ("id", "free: something else has it already".to_owned()),
        RegistryError::Taken { what, holder } => (*what, format!("free: {holder} has it already")),
        RegistryError::Invalid(invalid) => (invalid.field, invalid.expected.clone()),
        RegistryError::Missing { kind: Kind::Tenant, .. } => ("tenant", "one that exists".to_owned()),
        RegistryError::Missing { .. } => ("customer", "one that exists".to_owned()),
        RegistryError::ForeignCustomer(_) => ("customer", "one of the row's own tenant".to_owned()),
        other => ("row", other.to_string()),
    };
    Fault { place: place.clone(), field, expected }
}

/// A plan that is being made, with what it must not do twice.
struct Planning<'a> {
    plan: Plan,
    known: &'a Snapshot,
    taking: &'a Taking<'a>,
    standing: HashMap<(TenantId, &'a str), DeviceId>,
    tenants: HashMap<String, TenantId>,
    customers: HashMap<(TenantId, String), CustomerId>,
    customer_tenants: HashMap<CustomerId, TenantId>,
    ids: HashMap<DeviceId, Place>,
    names: HashMap<(TenantId, String), Place>,
    tokens: HashMap<CredentialHash, Place>,
}

impl<'a> Planning<'a> {
    fn new(faults: Vec<Fault>, known: &'a Snapshot, taking: &'a Taking<'a>) -> Self {
        let named = |(id, device): (&DeviceId, &'a Device)| ((device.tenant, device.name.as_str()), *id);
        let mut planning = Planning {
            plan: Plan { faults, ..Plan::default() },
            known,
            taking,
            standing: known.devices.iter().map(named).collect(),
            tenants: HashMap::new(),
            customers: HashMap::new(),
            customer_tenants: HashMap::new(),
            ids: HashMap::new(),
            names: HashMap::new(),
            tokens: HashMap::new(),
        };
        let tenants = known.tenants.iter().map(|(id, tenant)| (tenant.name.clone(), *id));
        planning.tenants.extend(tenants);
        let customers = known.customers.iter().map(|(id, it)| ((it.tenant, it.name.clone()), *id));
        planning.customers.extend(customers);
        planning.customer_tenants.extend(known.customers.iter().map(|(id, it)| (*id, it.tenant)));
        planning.plan.tenant_names.extend(known.tenants.iter().map(|(id, it)| (*id, it.name.clone())));
        planning.plan.customer_names.extend(known.customers.iter().map(|(id, it)| (*id, it.name.clone())));
        planning
    }

    fn refuse(&mut self, place: &Place, field: &'static str, expected: impl Into<String>) {
        self.plan.faults.push(Fault { place: place.clone(), field, expected: expected.into() });
    }

    fn add_tenant(&mut self, place: Place, row: rows::TenantRow) {
        let Some(id) = self.id_of(&place, row.id.as_deref()) else { return };
        let id = match (id, self.tenants.get(&row.name)) {
            (Some(id), _) => TenantId(id),
            (None, Some(_)) => return,
            (None, None) => TenantId(Uuid::new_v4()),
        };
        self.plan_tenant(place, id, row.name);
    }

    fn plan_tenant(&mut self, place: Place, id: TenantId, name: String) {
        self.tenants.insert(name.clone(), id);
        self.plan.tenant_names.insert(id, name.clone());
        if self.known.tenants.get(&id).is_none_or(|standing| standing.name != name) {
            self.plan.tenants.push((place, id, Tenant { name }));
        }
    }

    fn add_customer(&mut self, place: Place, row: rows::CustomerRow) {
        let Some(id) = self.id_of(&place, row.id.as_deref()) else { return };
        let tenant = match self.tenant_of(&place, &row.tenant) {
            Ok(tenant) => tenant,
            Err(expected) => return self.refuse(&place, "tenant", expected),
        };
        let id = match (id, self.customers.get(&(tenant, row.name.clone()))) {
            (Some(id), _) => CustomerId(id),
            (None, Some(_)) => return,
            (None, None) => CustomerId(Uuid::new_v4()),
        };
        self.plan_customer(place, id, Customer { tenant, name: row.name });
    }

    fn plan_customer(&mut self, place: Place, id: CustomerId, customer: Customer) {
        self.customers.insert((customer.tenant, customer.name.clone()), id);
        self.customer_tenants.insert(id, customer.tenant);
        self.plan.customer_names.insert(id, customer.name.clone());
        if self.known.customers.get(&id) != Some(&customer) {
            self.plan.customers.push((place, id, customer));
        }
    }

    fn add_device(&mut self, place: Place, row: Row, tenant: Option<&str>) -> anyhow::Result<()> {
        if let Err(invalid) = check_name(&row.name) {
            self.refuse(&place, "name", invalid.expected);
            return Ok(());
        }
        let kind = row.kind.unwrap_or_else(|| DEFAULT_TYPE.to_owned());
        if let Err(invalid) = check_type(&kind) {
            self.refuse(&place, "type", invalid.expected);
            return Ok(());
        }
        if let Err(invalid) = check_labels(&row.labels) {
            self.refuse(&place, invalid.field, invalid.expected);
            return Ok(());
        }
        let Some(id) = self.id_of(&place, row.id.as_deref()) else { return Ok(()) };
        let token = match row.token.as_deref().map(|it| Token::parse(it)?.admit(self.taking.weak_tokens)) {
            Some(Ok(token)) => Some(token),
            Some(Err(invalid)) => {
                self.refuse(&place, "token", invalid.expected);
                return Ok(());
            }
            None => None,
        };
        let tenant = match row.tenant.as_deref().or(tenant) {
            Some(named) => self.tenant_of(&place, named),
            None => Err("the id or name of a tenant (--tenant gives one for all)".to_owned()),
        };
        let tenant = match tenant {
            Ok(tenant) => tenant,
            Err(expected) => {
                self.refuse(&place, "tenant", expected);
                return Ok(());
            }
        };
        let customer = match row.customer.as_deref().map(|named| self.customer_of(&place, tenant, named)) {
            Some(Ok(customer)) => Some(customer),
            Some(Err(expected)) => {
                self.refuse(&place, "customer", expected);
                return Ok(());
            }
            None => None,
        };
        let named = self.plan.named(tenant, customer, &row.name);
        let kept = self.taking.kept.and_then(|kept| kept.find(id.map(DeviceId), &named));
        // Who has no id in the file is known by name, so that the same file again means the same devices.
        let standing_id = self.standing.get(&(tenant, row.name.as_str())).copied().filter(|_| id.is_none());
        let new_id = || DeviceId(Uuid::new_v4());
        let id = id.map(DeviceId).or(kept.as_ref().map(|(id, _)| *id)).or(standing_id).unwrap_or_else(new_id);
        // Written side by side, two rows of one name would race: the first in the file has it.
        let same_id = once(&mut self.ids, id, &place).map(|other| ("id", other));
        let same_name =
            once(&mut self.names, (tenant, row.name.clone()), &place).map(|other| ("name", other));
        if let Some((field, other)) = same_name.or(same_id) {
            self.refuse(&place, field, format!("its own: {other} has the same"));
            return Ok(());
        }
        let standing = self.known.devices.get(&id).filter(|standing| standing.tenant == tenant);
        let mut same = None;
        if let Some(standing) = standing {
            let is_same = (standing.customer, &standing.name) == (customer, &row.name)
                && (&standing.kind, &standing.labels) == (&kind, &row.labels);
            if is_same && token.is_none() && kept.is_none() {
                self.plan.unchanged += 1;
                return Ok(());
            }
            // An API shows no hashes of tokens, and says itself whether this is the one.
            let is_other_token = !standing.credential.0.is_empty()
                && token.as_ref().is_some_and(|token| token.credential() != standing.credential);
            if standing_id == Some(id) && (!is_same || is_other_token) {
                let other = match standing {
                    it if it.customer != customer => "customer",
                    it if it.kind != kind => "type",
                    it if it.labels != row.labels => "labels",
                    _ => "token",
                };
                self.refuse(&place, "name", format!("free: {id} has it already, with another {other}"));
                return Ok(());
            }
            same = is_same.then_some(&standing.credential);
        }
        let is_made_up = token.is_none();
        let is_resumed = is_made_up && kept.is_some();
        let token = match (token, kept) {
            (Some(token), _) | (None, Some((_, token))) => token,
            (None, None) => Token::generate()?,
        };
        if let Some(other) = once(&mut self.tokens, token.credential(), &place) {
            self.refuse(&place, "token", format!("its own: {other} has the same"));
            return Ok(());
        }
        let stands = same.is_some_and(|credential| *credential == token.credential());
        self.plan.origins.push(Origin { place, is_made_up, is_resumed, stands });
        self.plan.devices.push(NewDevice {
            id,
            tenant,
            customer,
            name: row.name,
            kind,
            labels: row.labels,
            token,
        });
        Ok(())
    }

    /// The id given, if it is one or none at all.
    fn id_of(&mut self, place: &Place, given: Option<&str>) -> Option<Option<Uuid>> {
        match given.map(|given| given.parse::<DeviceId>()) {
            None => Some(None),
            Some(Ok(id)) => Some(Some(id.0)),
            Some(Err(_)) => {
                self.refuse(place, "id", "a UUID");
                None
            }
        }
    }

    fn tenant_of(&mut self, place: &Place, named: &str) -> Result<TenantId, String> {
        if let Ok(id) = named.parse::<TenantId>()
            && self.plan.tenant_names.contains_key(&id)
        {
            return Ok(id);
        }
        if let Some(id) = self.tenants.get(named) {
            return Ok(*id);
        }
        if !self.taking.create {
            return Err(format!("a tenant that exists: {named:?} does not (--create makes it)"));
        }
        check_name(named).map_err(|invalid| invalid.expected)?;
        let id = TenantId(Uuid::new_v4());
        self.plan_tenant(place.clone(), id, named.to_owned());
        Ok(id)
    }

    fn customer_of(&mut self, place: &Place, tenant: TenantId, named: &str) -> Result<CustomerId, String> {
        if let Ok(id) = named.parse::<CustomerId>()
            && let Some(of) = self.customer_tenants.get(&id)
        {
            return if *of == tenant { Ok(id) } else { Err("one of the row's own tenant".to_owned()) };
        }
        if let Some(id) = self.customers.get(&(tenant, named.to_owned())) {
            return Ok(*id);
        }
        if !self.taking.create {
            return Err(format!("a customer that exists: {named:?} does not (--create makes it)"));
        }
        check_name(named).map_err(|invalid| invalid.expected)?;
        let id = CustomerId(Uuid::new_v4());
        self.plan_customer(place.clone(), id, Customer { tenant, name: named.to_owned() });
        Ok(id)
    }
}

/// Who had `key` before, if anybody.
fn once<K: Eq + std::hash::Hash>(seen: &mut HashMap<K, Place>, key: K, place: &Place) -> Option<Place> {
    match seen.entry(key) {
        std::collections::hash_map::Entry::Occupied(entry) => Some(entry.get().clone()),
        std::collections::hash_map::Entry::Vacant(entry) => {
            entry.insert(place.clone());
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(csv: &str, known: &Snapshot, create: bool) -> Plan {
        let taking = Taking { create, weak_tokens: true, ..Taking::default() };
        Plan::of(rows::parse_csv(csv).unwrap(), known, &taking).unwrap()
    }

    fn known() -> Snapshot {
        let mut known = Snapshot::default();
        let tenant = TenantId(Uuid::from_u128(1));
        known.tenants.insert(tenant, Tenant { name: "T".into() });
        known.customers.insert(CustomerId(Uuid::from_u128(2)), Customer { tenant, name: "C".into() });
        known
    }

    #[test]
    fn tenants_and_customers_go_by_name_or_id_and_are_made_once() {
        let csv =
            "tenant,customer,name\nT,C,1\nT,D,2\nT,D,3\nU,C,4\n00000000-0000-0000-0000-000000000001,,5\n";
        let made = plan(csv, &known(), true);
        assert!(made.faults.is_empty(), "{:?}", made.faults);
        assert_eq!((made.tenants.len(), made.customers.len(), made.devices.len()), (1, 2, 5));
        assert_eq!(made.devices[0].customer, Some(CustomerId(Uuid::from_u128(2))));
        assert_eq!(made.devices[1].customer, made.devices[2].customer);
        assert_eq!(made.devices[4].customer, None);
        let refused = plan(csv, &known(), false);
        assert_eq!((refused.devices.len(), refused.faults.len()), (2, 3));
        assert!(refused.faults[0].expected.contains("--create"));
    }

    #[test]
    fn every_fault_has_its_line_its_field_and_what_was_expected() {
        let csv = "tenant,customer,id,name,token\n\
            T,C,x,1,\n\
            T,C,,,\n\
            T,C,,3,a\tb\n\
            ,C,,4,\n\
            T,C,,5,tok\n\
            T,C,,5,\n\
            T,C,,7,tok\n";
        let plan = plan(csv, &known(), false);
        let faults: Vec<_> = plan.faults.iter().map(|fault| (fault.place.to_string(), fault.field)).collect();
        let expected = [(2, "id"), (3, "name"), (4, "token"), (5, "tenant"), (7, "name"), (8, "token")];
        assert_eq!(faults, expected.map(|(line, field)| (format!("line {line}"), field)));
        assert_eq!(plan.devices.len(), 1);
        assert!(plan.faults[4].expected.contains("line 6"), "{:?}", plan.faults[4]);
    }
}
