//! What is said of an import? What was added, what was there already, and what was refused, each with its place; and
//! where the tokens go.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use bus::registry::NewDevice;
use rpc::{CustomerId, DeviceId, TenantId};
use serde::Serialize;

use super::plan::Plan;
use crate::common::output::{count, grouped, note, say, say_json};
use crate::common::table::Table;
use crate::device::rows::{self, Fault};

/// What an import did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Places in the plan of the devices that were added.
    pub(crate) created: Vec<usize>,
    pub(crate) unchanged: usize,
    pub(crate) faults: Vec<Fault>,
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

impl Report {
    /// Tells it to whoever typed the command; `tokens_are_shown`: they are in no file.
    pub(super) fn tell(&self, plan: &Plan, json: bool, tokens_are_shown: bool) -> anyhow::Result<()> {
        let created = || {
            self.created
                .iter()
                .filter_map(|number| Some((plan.devices.get(*number)?, plan.origins.get(*number)?)))
        };
        if json {
            let created = created().map(|(device, _)| CreatedView {
                id: device.id,
                name: &device.name,
                tenant: device.tenant,
                customer: device.customer,
                token: tokens_are_shown.then(|| device.token.reveal()),
            });
            let refused = self.faults.iter().map(|fault| FaultView {
                place: fault.place.to_string(),
                field: fault.field,
                expected: &fault.expected,
            });
            return say_json(&ReportView {
                created: created.collect(),
                unchanged: self.unchanged,
                refused: refused.collect(),
            });
        }
        let made_up: Vec<_> = created().filter(|(_, (_, is_made_up))| *is_made_up).collect();
        if tokens_are_shown && !made_up.is_empty() {
            let mut table = Table::new(&["ID", "NAME", "TOKEN"]);
            for (device, _) in &made_up {
                table.row([device.id.to_string(), device.name.clone(), device.token.reveal().to_owned()]);
            }
            table.print();
            note("The tokens are shown this once: only their hashes are stored.");
        }
        for fault in &self.faults {
            note(format_args!("{}: {} must be {}", fault.place, fault.field, fault.expected));
        }
        let unchanged = match self.unchanged {
            0 => String::new(),
            many => format!(", {} there already", grouped(many)),
        };
        let refused = match self.faults.len() {
            0 => String::new(),
            many => format!(", {} refused", grouped(many)),
        };
        say(format_args!("{} added{unchanged}{refused}.", count(self.created.len(), "device")));
        let _ = std::io::stdout().flush();
        Ok(())
    }
}

/// The devices that were added, with their tokens, as a CSV file that `import` reads.
pub(super) struct TokenFile {
    writer: csv::Writer<BufWriter<std::fs::File>>,
    /// Which labels have a column.
    keys: BTreeSet<String>,
    path: PathBuf,
}

impl TokenFile {
    pub(super) fn create(path: &Path, devices: &[NewDevice]) -> anyhow::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
        let file = file.with_context(|| format!("cannot make {} (it must not exist yet)", path.display()))?;
        let mut writer = csv::Writer::from_writer(BufWriter::new(file));
        let keys: BTreeSet<_> = devices.iter().flat_map(|device| device.labels.keys().cloned()).collect();
        let columns = keys.iter().map(|key| format!("{}{key}", rows::LABEL_COLUMN));
        writer.write_record(rows::COLUMNS.into_iter().map(str::to_owned).chain(columns))?;
        Ok(TokenFile { writer, keys, path: path.to_owned() })
    }

    pub(super) fn keep(&mut self, device: &NewDevice) -> anyhow::Result<()> {
        let customer = device.customer.map(|customer| customer.to_string()).unwrap_or_default();
        let (tenant, id) = (device.tenant.to_string(), device.id.to_string());
        let labels = self.keys.iter().map(|key| device.labels.get(key).map_or("", String::as_str));
        let cells = [tenant.as_str(), &customer, &id, &device.name, &device.kind, device.token.reveal()];
        self.writer
            .write_record(cells.into_iter().chain(labels).map(|cell| rows::marked(cell).into_owned()))
            .with_context(|| format!("cannot write {}", self.path.display()))
    }

    pub(super) fn finish(mut self) -> anyhow::Result<()> {
        self.writer.flush().with_context(|| format!("cannot write {}", self.path.display()))?;
        note(format_args!("Tokens are in {}.", self.path.display()));
        Ok(())
    }
}
