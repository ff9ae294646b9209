//! Where are tokens before their devices exist? In a file: an import that was interrupted loses none, and goes on with
//! the same ones when it is typed again.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use bus::registry::Token;
use rpc::DeviceId;
use tempfile::NamedTempFile;

use super::plan::Plan;
use crate::device::rows::{self, Row};

/// What a file of tokens holds: devices of an earlier run.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    rows: Vec<(DeviceId, Row)>,
    by_id: HashMap<DeviceId, Token>,
    by_name: HashMap<Named, DeviceId>,
}

/// The names of a device's tenant and customer, and its own: by these it is known that has no id yet.
pub(super) type Named = (String, String, String);

impl Kept {
    /// The id and token that an earlier run gave to this device.
    pub(super) fn find(&self, id: Option<DeviceId>, named: &Named) -> Option<(DeviceId, Token)> {
        let id = id.or_else(|| self.by_name.get(named).copied())?;
        Some((id, self.by_id.get(&id)?.clone()))
    }

    fn add(&mut self, text: &str) -> anyhow::Result<()> {
        let file = rows::parse_csv(text)?;
        if let Some(fault) = file.faults.first() {
            bail!("{}: {} must be {}", fault.place, fault.field, fault.expected);
        }
        for (place, row) in file.devices {
            let id = row.id.as_deref().and_then(|id| id.parse::<DeviceId>().ok());
            let token = row.token.as_deref().and_then(|token| Token::parse(token).ok());
            let (Some(id), Some(token)) = (id, token) else { bail!("{place}: id and token must be there") };
            let named = (
                row.tenant.clone().unwrap_or_default(),
                row.customer.clone().unwrap_or_default(),
                row.name.clone(),
            );
            self.by_name.insert(named, id);
            if self.by_id.insert(id, token).is_none() {
                self.rows.push((id, row));
            }
        }
        Ok(())
    }
}

/// The file, which is always whole: it is written beside itself and then moved, readable by its user alone.
pub(super) struct TokenFile {
    pub(super) path: PathBuf,
    /// It was asked for, and stays; another one only lasts until the tokens have been shown.
    pub(super) is_asked_for: bool,
    /// What an interrupted run without a file of its own has left, and this one takes over.
    left: Option<PathBuf>,
    pub(super) kept: Kept,
}

impl TokenFile {
    /// The file `asked`, or else `beside` the devices' own, with what an earlier run has left in them.
    ///
    /// # Errors
    /// When one is there that cannot be read, or is no such file.
    pub(super) fn open(asked: Option<&Path>, beside: PathBuf) -> anyhow::Result<Self> {
        let mut kept = Kept::default();
        let mut read = |path: &Path| match std::fs::read_to_string(path) {
            Ok(text) => {
                kept.add(&text)
                    .with_context(|| format!("{} is there, and is no file of tokens", path.display()))?;
                Ok(true)
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let is_left = read(&beside)?;
        let (path, left) = match asked {
            Some(asked) => {
                read(asked)?;
                (asked.to_owned(), is_left.then_some(beside))
            }
            None => (beside, None),
        };
        Ok(TokenFile { path, is_asked_for: asked.is_some(), left, kept })
    }

    /// Writes the planned devices but for those that are `refused`, and whatever else stood there.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn save(&self, plan: &Plan, refused: &HashSet<usize>) -> anyhow::Result<()> {
        let cannot = || format!("cannot write {}: --tokens-out names another place", self.path.display());
        let folder = folder_of(&self.path);
        let mut file = NamedTempFile::new_in(folder).with_context(cannot)?;
        self.write(plan, refused, &mut file).with_context(cannot)?;
        file.as_file().sync_all().with_context(cannot)?;
        file.persist(&self.path).with_context(cannot)?;
        std::fs::File::open(folder).and_then(|folder| folder.sync_all()).with_context(cannot)?;
        if let Some(left) = &self.left {
            forget(left)?;
        }
        Ok(())
    }

    /// The tokens have been shown.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub(super) fn shown(self, plan: &Plan) -> anyhow::Result<()> {
        let planned: HashSet<_> = plan.devices.iter().map(|device| device.id).collect();
        if self.kept.rows.iter().all(|(id, _)| planned.contains(id)) {
            return forget(&self.path);
        }
        let all = (0..plan.devices.len()).collect();
        self.save(plan, &all)
    }

    fn write(&self, plan: &Plan, refused: &HashSet<usize>, out: impl Write) -> anyhow::Result<()> {
        let planned: HashSet<_> = plan.devices.iter().map(|device| device.id).collect();
        let others: Vec<_> = self.kept.rows.iter().filter(|(id, _)| !planned.contains(id)).collect();
        let devices = plan.devices.iter().enumerate().filter(|(number, _)| !refused.contains(number));
        let labels = devices.clone().map(|(_, device)| &device.labels);
        let labels = labels.chain(others.iter().map(|(_, row)| &row.labels));
        let keys: BTreeSet<&str> = labels.flat_map(|labels| labels.keys().map(String::as_str)).collect();
        let mut writer = csv::Writer::from_writer(BufWriter::new(out));
        let columns = keys.iter().map(|key| format!("{}{key}", rows::LABEL_COLUMN));
        writer.write_record(rows::COLUMNS.into_iter().map(str::to_owned).chain(columns))?;
        let mut record = |cells: [&str; 6], labels: &std::collections::BTreeMap<String, String>| {
            let labels = keys.iter().map(|key| labels.get(*key).map_or("", String::as_str));
            writer.write_record(cells.into_iter().chain(labels).map(|cell| rows::marked(cell).into_owned()))
        };
        for (_, row) in others {
            let text = |cell: &Option<String>| cell.clone().unwrap_or_default();
            let [tenant, customer, id] = [&row.tenant, &row.customer, &row.id].map(text);
            let [kind, token] = [&row.kind, &row.token].map(text);
            record([&tenant, &customer, &id, &row.name, &kind, &token], &row.labels)?;
        }
        for (_, device) in devices {
            let (tenant, customer, name) = plan.named(device.tenant, device.customer, &device.name);
            let id = device.id.to_string();
            record([&tenant, &customer, &id, &name, &device.kind, device.token.reveal()], &device.labels)?;
        }
        writer.flush()?;
        Ok(())
    }
}

fn forget(path: &Path) -> anyhow::Result<()> {
    std::fs::remove_file(path).with_context(|| format!("cannot remove {}", path.display()))
}

/// The folder that a file is in.
fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}
