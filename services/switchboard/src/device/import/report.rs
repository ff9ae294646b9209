//! What is said of an import? What was added, what was there already, and what was refused, each with its place.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use bus::registry::NewDevice;
use rpc::{CustomerId, DeviceId, TenantId};
use serde::Serialize;

use super::plan::{Origin, Plan};
use crate::common::output::{count, grouped, note, say, say_json};
use crate::common::table::Table;
use crate::device::rows::{self, Fault};

/// Refused rows that a terminal shows; a file has them all.
const MAX_SHOWN: usize = 20;

/// What an import did.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Places in the plan of the devices that were added.
    pub(crate) created: Vec<usize>,
    /// Places of those that the run before this one had added when it was interrupted.
    pub(super) resumed: Vec<usize>,
    pub(crate) unchanged: usize,
    pub(crate) faults: Vec<Fault>,
    /// Places of those that the registry refused.
    pub(super) refused: HashSet<usize>,
    /// Devices that were not come to.
    pub(super) left: usize,
}

#[derive(Serialize)]
struct ReportView<'a> {
    created: Vec<CreatedView<'a>>,
    /// Those that the run before this one had added when it was interrupted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resumed: Vec<CreatedView<'a>>,
    unchanged: usize,
    refused: Vec<FaultView<'a>>,
    /// Devices that were not come to: it was interrupted.
    #[serde(skip_serializing_if = "is_none")]
    left: usize,
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

fn is_none(number: &usize) -> bool {
    *number == 0
}

impl Report {
    /// Tells it to whoever typed the command; `tokens_are_shown`: they are in no file that stays. All refused rows go
    /// into the file `refused_out` when there are more than a terminal shows.
    pub(super) fn tell(
        &self,
        plan: &Plan,
        json: bool,
        tokens_are_shown: bool,
        refused_out: &Path,
    ) -> anyhow::Result<()> {
        if json {
            let views = |numbers| {
                let views = numbered(plan, numbers).map(|(device, _)| CreatedView {
                    id: device.id,
                    name: &device.name,
                    tenant: device.tenant,
                    customer: device.customer,
                    token: tokens_are_shown.then(|| device.token.reveal()),
                });
                views.collect()
            };
            let refused = self.faults.iter().map(|fault| FaultView {
                place: fault.place.to_string(),
                field: fault.field,
                expected: &fault.expected,
            });
            return say_json(&ReportView {
                created: views(&self.created),
                resumed: views(&self.resumed),
                unchanged: self.unchanged,
                refused: refused.collect(),
                left: self.left,
            });
        }
        let added = numbered(plan, &self.resumed).chain(numbered(plan, &self.created));
        let made_up: Vec<_> = added.filter(|(_, origin)| origin.is_made_up).collect();
        if tokens_are_shown && !made_up.is_empty() {
            let mut table = Table::new(&["ID", "NAME", "TOKEN"]);
            for (device, _) in &made_up {
                table.row([device.id.to_string(), device.name.clone(), device.token.reveal().to_owned()]);
            }
            table.print();
            note("The tokens are shown this once: only their hashes are stored.");
        }
        self.tell_refused(refused_out);
        let some = |number: usize, what: &str| match number {
            0 => String::new(),
            some => format!(", {} {what}", grouped(some)),
        };
        say(format_args!(
            "{} added{}{}{}{}.",
            count(self.created.len(), "device"),
            some(self.resumed.len(), "added before the interruption"),
            some(self.unchanged, "there already"),
            some(self.faults.len(), "refused"),
            some(self.left, "left: interrupted")
        ));
        let _ = std::io::stdout().flush();
        Ok(())
    }

    fn tell_refused(&self, refused_out: &Path) {
        let shown = match self.faults.len() {
            few @ 0..=MAX_SHOWN => few,
            _ => match self.write_refused(refused_out) {
                Ok(()) => MAX_SHOWN,
                Err(error) => {
                    note(format_args!(
                        "{} cannot be written ({error}); these were refused:",
                        refused_out.display()
                    ));
                    self.faults.len()
                }
            },
        };
        for fault in self.faults.iter().take(shown) {
            note(format_args!("{}: {} must be {}", fault.place, fault.field, fault.expected));
        }
        if shown < self.faults.len() {
            let more = grouped(self.faults.len() - shown);
            note(format_args!("… and {more} more; {} has them all.", refused_out.display()));
        }
    }

    fn write_refused(&self, path: &Path) -> anyhow::Result<()> {
        let mut writer = csv::Writer::from_path(path)?;
        writer.write_record(["place", "field", "expected"])?;
        for fault in &self.faults {
            let cells = [&fault.place.to_string(), fault.field, &fault.expected];
            writer.write_record(cells.map(|cell| rows::marked(cell).into_owned()))?;
        }
        Ok(writer.flush()?)
    }
}

/// The planned devices of these places.
fn numbered<'a>(plan: &'a Plan, numbers: &'a [usize]) -> impl Iterator<Item = (&'a NewDevice, &'a Origin)> {
    numbers.iter().filter_map(|number| Some((plan.devices.get(*number)?, plan.origins.get(*number)?)))
}
