//! How do many devices get into the registry at once? `switchboard device import`: what fits is added, what does not
//! is named with its place and reason.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{BufWriter, Read, Write, stdin};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use bus::registry::{
    Added, Customer, Kind, NewDevice, Registry, RegistryError, Snapshot, Tenant, Token, check_labels,
    check_name,
};
use clap::{Args, ValueEnum};
use futures::stream::{self, StreamExt};
use indicatif::{ProgressBar, ProgressStyle};
use rpc::{CredentialHash, CustomerId, DeviceId, TenantId};
use serde::Serialize;
use uuid::Uuid;

use crate::output::{count, grouped, note, say, say_json};
use crate::reach::ReachArgs;
use crate::rows::{self, Fault, Place, Row};
use crate::table::Table;

/// Tenants and customers that are made at a time.
const IN_FLIGHT: usize = 64;

#[derive(Args)]
#[command(after_help = "\
CSV has a header with the columns tenant,customer,id,name,token in any order; only name is needed, and tenant \
unless --tenant names it. Tenant and customer go by name or id; an empty customer means unassigned; an empty id or \
token is made up (a device that is there already keeps its own). JSON is a list of such objects (labels too), or \
what `switchboard device export` writes.

Rows that cannot be taken are listed with their place and reason, all others are added: exit status 1 if any was \
refused. The same file again changes nothing. Tokens that were made up are shown once; --tokens-out keeps them.

Examples:
  switchboard device import --create devices.csv
  switchboard device import --tenant Acme --tokens-out tokens.csv devices.json
  generate-devices | switchboard device import --create -")]
pub(crate) struct ImportArgs {
    /// File to read; - is standard input
    file: PathBuf,
    /// What the file is; told by its name or its first character when not given
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Make tenants and customers that are missing
    #[arg(long)]
    create: bool,
    /// Id or name of the tenant of rows that name none
    #[arg(long)]
    tenant: Option<String>,
    /// Write the added devices with their tokens to this new file (CSV, readable by you alone) instead of showing them
    #[arg(long, value_name = "FILE")]
    tokens_out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    Json,
}

/// What an import did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Places in the plan of the devices that were added.
    pub(crate) created: Vec<usize>,
    pub(crate) unchanged: usize,
    pub(crate) faults: Vec<Fault>,
}

/// What an import is going to write.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    tenants: Vec<(Place, TenantId, Tenant)>,
    customers: Vec<(Place, CustomerId, Customer)>,
    pub(crate) devices: Vec<NewDevice>,
    /// Where each device stands, and whether its token was made up.
    origins: Vec<(Place, bool)>,
    /// Devices that stand there already as the file names them, and bring no token to compare.
    unchanged: usize,
    faults: Vec<Fault>,
}

pub(crate) async fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let file = read(&args.file, args.format)?;
    let registry = args.reach.registry().await?;
    let known = registry.load().await?;
    let plan = Plan::of(file, &known, args.tenant.as_deref(), args.create)?;
    // Opened first: tokens of devices that were added must not be lost.
    let mut tokens = match &args.tokens_out {
        Some(path) => Some(TokenFile::create(path)?),
        None => None,
    };

    let progress = progress(plan.devices.len());
    let report = plan.apply(&registry, |added| {
        progress.inc(1);
        match (&mut tokens, added) {
            (Some(tokens), Some(device)) => tokens.keep(device),
            _ => Ok(()),
        }
    });
    let report = report.await?;
    progress.finish_and_clear();
    if let Some(tokens) = tokens {
        tokens.finish()?;
    }
    tell(&plan, &report, &args)?;
    Ok(if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(path: &Path, format: Option<Format>) -> anyhow::Result<rows::File> {
    let bytes = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
        bytes
    } else {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
    let text = text.trim_start_matches('\u{feff}');
    let by_name = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Some(Format::Json),
        Some("csv") => Some(Format::Csv),
        _ => None,
    };
    let by_content = if text.trim_start().starts_with(['[', '{']) { Format::Json } else { Format::Csv };
    match format.or(by_name).unwrap_or(by_content) {
        Format::Csv => rows::parse_csv(text),
        Format::Json => rows::parse_json(text),
    }
}

impl Plan {
    /// What of `file` is to be written where `known` stands. Rows without a tenant get `tenant`; with `create`, tenants
    /// and customers that rows name are made.
    ///
    /// # Errors
    /// When `tenant` does not exist, or no token can be made.
    pub(crate) fn of(
        file: rows::File,
        known: &Snapshot,
        tenant: Option<&str>,
        create: bool,
    ) -> anyhow::Result<Plan> {
        let mut planning = Planning::new(file.faults, known, create);
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
        Ok(planning.plan)
    }

    /// Writes it all; `done` hears of each device, with the device if it was added.
    ///
    /// # Errors
    /// When the registry cannot be read, or `done` fails.
    pub(crate) async fn apply(
        &self,
        registry: &Registry,
        mut done: impl FnMut(Option<&NewDevice>) -> anyhow::Result<()>,
    ) -> anyhow::Result<Report> {
        let mut report =
            Report { faults: self.faults.clone(), unchanged: self.unchanged, ..Report::default() };
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

        let mut failed = None;
        let tell = |number: usize, added: Result<Added, RegistryError>| {
            let (Some(device), Some((place, _))) = (self.devices.get(number), self.origins.get(number))
            else {
                return;
            };
            let told = match added {
                Ok(Added::Created) => {
                    report.created.push(number);
                    done(Some(device))
                }
                Ok(Added::Unchanged) => {
                    report.unchanged += 1;
                    done(None)
                }
                Err(error) => {
                    report.faults.push(fault(place, &error));
                    done(None)
                }
            };
            if let Err(error) = told {
                failed.get_or_insert(error);
            }
        };
        registry.add_devices(&self.devices, tell).await?;
        if let Some(error) = failed {
            return Err(error);
        }
        report.created.sort_unstable();
        report.faults.sort_by_key(|fault| match fault.place {
            Place::Line(line) => (0, line),
            Place::Entry(_, number) => (1, number as u64),
        });
        Ok(report)
    }
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
    create: bool,
    tenants: HashMap<String, TenantId>,
    customers: HashMap<(TenantId, String), CustomerId>,
    customer_tenants: HashMap<CustomerId, TenantId>,
    ids: HashMap<DeviceId, Place>,
    names: HashMap<(TenantId, String), Place>,
    tokens: HashMap<CredentialHash, Place>,
}

impl<'a> Planning<'a> {
    fn new(faults: Vec<Fault>, known: &'a Snapshot, create: bool) -> Self {
        let mut planning = Planning {
            plan: Plan { faults, ..Plan::default() },
            known,
            create,
            tenants: HashMap::new(),
            customers: HashMap::new(),
            customer_tenants: HashMap::new(),
            ids: HashMap::new(),
            names: HashMap::new(),
            tokens: HashMap::new(),
        };
        for (id, tenant) in &known.tenants {
            planning.tenants.insert(tenant.name.clone(), *id);
        }
        for (id, customer) in &known.customers {
            planning.customers.insert((customer.tenant, customer.name.clone()), *id);
            planning.customer_tenants.insert(*id, customer.tenant);
        }
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
        if self.known.customers.get(&id) != Some(&customer) {
            self.plan.customers.push((place, id, customer));
        }
    }

    fn add_device(&mut self, place: Place, row: Row, tenant: Option<&str>) -> anyhow::Result<()> {
        if let Err(invalid) = check_name(&row.name) {
            self.refuse(&place, "name", invalid.expected);
            return Ok(());
        }
        if let Err(invalid) = check_labels(&row.labels) {
            self.refuse(&place, invalid.field, invalid.expected);
            return Ok(());
        }
        let Some(id) = self.id_of(&place, row.id.as_deref()) else { return Ok(()) };
        let token = match row.token.as_deref().map(Token::parse) {
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
        if let (None, Some(id)) = (&token, id)
            && let Some(standing) = self.known.devices.get(&DeviceId(id))
            && (standing.tenant, standing.customer) == (tenant, customer)
            && (&standing.name, &standing.labels) == (&row.name, &row.labels)
        {
            self.plan.unchanged += 1;
            return Ok(());
        }
        let is_made_up = token.is_none();
        let token = match token {
            Some(token) => token,
            None => Token::generate()?,
        };
        let id = DeviceId(id.unwrap_or_else(Uuid::new_v4));
        // Written side by side, two rows of one name would race: the first in the file has it.
        let same_id = once(&mut self.ids, id, &place).map(|other| ("id", other));
        let same_name =
            once(&mut self.names, (tenant, row.name.clone()), &place).map(|other| ("name", other));
        let same_token = once(&mut self.tokens, token.credential(), &place).map(|other| ("token", other));
        if let Some((field, other)) = same_id.or(same_name).or(same_token) {
            self.refuse(&place, field, format!("its own: {other} has the same"));
            return Ok(());
        }
        self.plan.origins.push((place, is_made_up));
        self.plan.devices.push(NewDevice { id, tenant, customer, name: row.name, labels: row.labels, token });
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
            && (self.known.tenants.contains_key(&id) || self.tenants.values().any(|planned| *planned == id))
        {
            return Ok(id);
        }
        if let Some(id) = self.tenants.get(named) {
            return Ok(*id);
        }
        if !self.create {
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
        if !self.create {
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

/// The devices that were added, with their tokens, as a CSV file that `import` reads.
struct TokenFile {
    writer: csv::Writer<BufWriter<std::fs::File>>,
    path: PathBuf,
}

impl TokenFile {
    fn create(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("cannot make {} (it must not exist yet)", path.display()))?;
        let mut writer = csv::Writer::from_writer(BufWriter::new(file));
        writer.write_record(rows::COLUMNS)?;
        Ok(TokenFile { writer, path: path.to_owned() })
    }

    fn keep(&mut self, device: &NewDevice) -> anyhow::Result<()> {
        let customer = device.customer.map(|customer| customer.to_string()).unwrap_or_default();
        let (tenant, id) = (device.tenant.to_string(), device.id.to_string());
        self.writer
            .write_record([tenant.as_str(), &customer, &id, &device.name, device.token.reveal()])
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn finish(mut self) -> anyhow::Result<()> {
        self.writer.flush().with_context(|| format!("cannot write {}", self.path.display()))?;
        note(format_args!("Tokens are in {}.", self.path.display()));
        Ok(())
    }
}

fn progress(rows: usize) -> ProgressBar {
    // Draws on a terminal alone.
    let style =
        ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} devices, {per_sec}, {eta} left");
    ProgressBar::new(rows as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

#[derive(Serialize)]
struct ReportView<'a> {
    created: Vec<CreatedView<'a>>,
    unchanged: usize,
    refused: Vec<FaultView<'a>>,
}

#[derive(Serialize)]
struct CreatedView<'a> {
    id: DeviceId,
    name: &'a str,
    tenant: TenantId,
    customer: Option<CustomerId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
}

#[derive(Serialize)]
struct FaultView<'a> {
    place: String,
    field: &'a str,
    expected: &'a str,
}

fn tell(plan: &Plan, report: &Report, args: &ImportArgs) -> anyhow::Result<()> {
    let created = || {
        report
            .created
            .iter()
            .filter_map(|number| Some((plan.devices.get(*number)?, plan.origins.get(*number)?)))
    };
    if args.json {
        let shows_tokens = args.tokens_out.is_none();
        let created = created().map(|(device, _)| CreatedView {
            id: device.id,
            name: &device.name,
            tenant: device.tenant,
            customer: device.customer,
            token: shows_tokens.then(|| device.token.reveal()),
        });
        let refused = report.faults.iter().map(|fault| FaultView {
            place: fault.place.to_string(),
            field: fault.field,
            expected: &fault.expected,
        });
        return say_json(&ReportView {
            created: created.collect(),
            unchanged: report.unchanged,
            refused: refused.collect(),
        });
    }
    let made_up: Vec<_> = created().filter(|(_, (_, is_made_up))| *is_made_up).collect();
    if args.tokens_out.is_none() && !made_up.is_empty() {
        let mut table = Table::new(&["ID", "NAME", "TOKEN"]);
        for (device, _) in &made_up {
            table.row([device.id.to_string(), device.name.clone(), device.token.reveal().to_owned()]);
        }
        table.print();
        note("The tokens are shown this once: only their hashes are stored.");
    }
    for fault in &report.faults {
        note(format_args!("{}: {} must be {}", fault.place, fault.field, fault.expected));
    }
    let unchanged = match report.unchanged {
        0 => String::new(),
        many => format!(", {} there already", grouped(many)),
    };
    let refused = match report.faults.len() {
        0 => String::new(),
        many => format!(", {} refused", grouped(many)),
    };
    say(format_args!("{} added{unchanged}{refused}.", count(report.created.len(), "device")));
    let _ = std::io::stdout().flush();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(csv: &str, known: &Snapshot, create: bool) -> Plan {
        Plan::of(rows::parse_csv(csv).unwrap(), known, None, create).unwrap()
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
            T,C,,3,a b\n\
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
