//! How does the registry become a file? `switchboard device export`, in the form that `import` reads.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write, stdout};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use anyhow::Context;
use bus::registry::{DEFAULT_TYPE, Snapshot};
use clap::{Args, ValueEnum};
use rpc::{CustomerId, DeviceId, TenantId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};

use super::rows;
use crate::common::find;
use crate::common::find::PickArgs;
use crate::common::output::{count, note};
use crate::common::reach::ReachArgs;
use crate::device;

#[derive(Args)]
#[command(after_help = "\
Examples:
  switchboard device export --out fleet.json
  switchboard device export --format csv --label site=north >north.csv")]
pub(crate) struct ExportArgs {
    /// File to write, readable by you alone if it is new; standard output when not given
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// JSON holds everything; CSV holds devices alone, with a column for each key of a label
    #[arg(long, value_enum, default_value_t = Format::Json)]
    format: Format,
    #[command(flatten)]
    pick: PickArgs,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tenants, customers and devices by id
    Json,
    /// The columns of `import`; tenant and customer by name
    Csv,
}

#[derive(Serialize)]
struct Document<'a> {
    tenants: Vec<TenantEntry<'a>>,
    customers: Vec<CustomerEntry<'a>>,
    devices: Vec<DeviceEntry<'a>>,
}

#[derive(Serialize)]
struct TenantEntry<'a> {
    id: TenantId,
    name: &'a str,
}

#[derive(Serialize)]
struct CustomerEntry<'a> {
    id: CustomerId,
    tenant: TenantId,
    name: &'a str,
}

#[derive(Serialize)]
struct DeviceEntry<'a> {
    id: DeviceId,
    tenant: TenantId,
    customer: Option<CustomerId>,
    name: &'a str,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: &'a BTreeMap<String, String>,
}

pub(crate) async fn run(args: ExportArgs) -> anyhow::Result<()> {
    let mut known = args.reach.registrar().await?.known().await?;
    known.devices.retain(|_, device| args.pick.takes(device));
    match &args.out {
        Some(path) => {
            let cannot = || format!("cannot write {}", path.display());
            // Who is whose customer is nobody else's business.
            let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
            let mut file = BufWriter::new(file.with_context(cannot)?);
            write(&known, args.format, &mut file).with_context(cannot)?;
            file.flush().with_context(cannot)?;
        }
        None => write(&known, args.format, &mut stdout().lock())?,
    }
    note(format_args!(
        "{} written, without tokens: only their hashes are stored. Imported elsewhere they get new ones.",
        count(known.devices.len(), "device")
    ));
    Ok(())
}

fn write(known: &Snapshot, format: Format, out: &mut impl Write) -> anyhow::Result<()> {
    match format {
        Format::Json => {
            let mut tenants: Vec<_> = known
                .tenants
                .iter()
                .map(|(id, tenant)| TenantEntry { id: *id, name: &tenant.name })
                .collect();
            tenants.sort_by_key(|tenant| (tenant.name, tenant.id));
            let mut customers: Vec<_> = known
                .customers
                .iter()
                .map(|(id, customer)| CustomerEntry {
                    id: *id,
                    tenant: customer.tenant,
                    name: &customer.name,
                })
                .collect();
            customers.sort_by_key(|customer| (customer.tenant, customer.name, customer.id));
            let devices = device::sorted(known).into_iter().map(|(id, device)| DeviceEntry {
                id,
                tenant: device.tenant,
                customer: device.customer,
                name: &device.name,
                kind: Some(device.kind.as_str()).filter(|kind| *kind != DEFAULT_TYPE),
                labels: &device.labels,
            });
            let devices = devices.collect();
            serde_json::to_writer_pretty(&mut *out, &Document { tenants, customers, devices })?;
            writeln!(out)?;
        }
        Format::Csv => {
            let mut writer = csv::Writer::from_writer(out);
            let keys: BTreeSet<_> = known.devices.values().flat_map(|device| device.labels.keys()).collect();
            let has_types = known.devices.values().any(|device| device.kind != DEFAULT_TYPE);
            let kind = has_types.then_some("type");
            let columns = keys.iter().map(|key| format!("{}{key}", rows::LABEL_COLUMN));
            let header = ["tenant", "customer", "id", "name"].into_iter().chain(kind).map(str::to_owned);
            writer.write_record(header.chain(columns))?;
            for (id, device) in device::sorted(known) {
                let labels = keys.iter().map(|key| device.labels.get(*key).map_or("", String::as_str));
                let tenant = find::tenant_name(known, device.tenant);
                let customer = device.customer.map(|customer| find::customer_name(known, customer));
                let customer = customer.unwrap_or_default();
                let id = id.to_string();
                let cells = [tenant.as_str(), customer.as_str(), id.as_str(), device.name.as_str()];
                let kind = has_types.then_some(device.kind.as_str());
                let cells = cells.into_iter().chain(kind).chain(labels);
                writer.write_record(cells.map(|cell| rows::marked(cell).into_owned()))?;
            }
            writer.flush()?;
        }
    }
    Ok(())
}
