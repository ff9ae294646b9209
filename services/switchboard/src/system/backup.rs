//! What does a system hold that cannot be made anew? `switchboard backup`: its registry with the hashes of tokens and
//! keys, and its policies, in lines of JSON that any version after this one reads.

use std::collections::BTreeSet;
use std::io::{BufRead, Write, stdout};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Context, bail, ensure};
use bus::audit::{NO_TENANT, rfc3339};
use bus::changes::entry;
use bus::policies::{Policies, StoredSet};
use bus::registry::{App, Customer, Device, Registry, Snapshot, Tenant};
use clap::Args;
use rpc::{AppId, CustomerId, DeviceId, TenantId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::NamedTempFile;

use crate::common::output::{count, note, say_json};
use crate::common::reach::Reached;
use crate::common::recorded::{self, ChangeArgs};

/// The form of the lines: a program reads those up to its own.
const FORM: u32 = 1;

#[derive(Args)]
#[command(after_help = "\
The file holds all tenants, customers, devices and applications as they stood at one moment, with the hashes of their \
tokens and keys, which let nobody in but show who has a weak token; and each tenant's policies with their history. It \
does not hold the audit, which has streams of its own, nor who is connected. `switchboard restore` reads it.

Examples:
  switchboard backup switchboard.backup
  switchboard backup - | age --recipient age1… > switchboard.backup.age      encrypted
  age --decrypt --identity key.txt switchboard.backup.age | switchboard restore -")]
pub(crate) struct BackupArgs {
    /// File to write, readable by you alone; - is standard output
    file: PathBuf,
    #[command(flatten)]
    change: ChangeArgs,
}

/// A line of a backup.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Line {
    /// The first.
    Switchboard {
        form: u32,
        /// Which program wrote it.
        version: String,
        at: String,
    },
    Tenant(TenantId, Tenant),
    /// A tenant's live set and those before it, and its shadow.
    Policies(TenantId, Vec<StoredSet>, Option<StoredSet>),
    Customer(CustomerId, Customer),
    Device(DeviceId, Device),
    App(AppId, App),
    /// The last, by which it is known that nothing is missing.
    End {
        /// Of all lines before it, their ends included.
        sha256: String,
    },
}

pub(crate) async fn run(args: BackupArgs) -> anyhow::Result<ExitCode> {
    let Reached { bus, settings } = args.change.reached().await?;
    let registry = Registry::open(&bus).await.context("cannot open the registry")?;
    let policies = Policies::open(&bus).await.context("cannot open the policies")?;
    let recorder = args.change.recorder(&bus, &settings);
    let taken = async {
        let known = registry.load().await?;
        let mut sets = Vec::new();
        for tenant in known.tenants.keys().copied().collect::<BTreeSet<_>>() {
            sets.push(Line::Policies(
                tenant,
                policies.history(tenant).await?,
                policies.shadow(tenant).await?,
            ));
        }
        anyhow::Ok((known, sets))
    };
    let entries = vec![(NO_TENANT, entry("system.backup", [], "the whole registry"))];
    let (known, sets) = recorded::change(&recorder, entries, taken).await?;
    let number = known.devices.len();
    let devices = count(number, "device");
    if args.file.as_os_str() == "-" {
        write(known, sets, stdout().lock())?;
    } else {
        let cannot = || format!("cannot write {}", args.file.display());
        let folder = args.file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let file = NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).with_context(cannot)?;
        write(known, sets, std::io::BufWriter::new(file.as_file())).with_context(cannot)?;
        file.as_file().sync_all().with_context(cannot)?;
        file.persist(&args.file).with_context(cannot)?;
    }
    if args.change.json && args.file.as_os_str() != "-" {
        say_json(&serde_json::json!({ "file": args.file, "devices": number }))?;
    }
    note(format_args!(
        "Backed up, {devices} among it. Whoever has the file can try weak tokens against their hashes."
    ));
    Ok(ExitCode::SUCCESS)
}

/// Places come before what is in them, and policies before those whom they keep apart.
fn write(known: Snapshot, policies: Vec<Line>, mut out: impl Write) -> anyhow::Result<()> {
    let begin = Line::Switchboard {
        form: FORM,
        version: boot::args::version().to_owned(),
        at: rfc3339(SystemTime::now()),
    };
    let is_there = |line: &Line| matches!(line, Line::Policies(_, history, _) if !history.is_empty());
    let lines = std::iter::once(begin)
        .chain(known.tenants.into_iter().map(|(id, it)| Line::Tenant(id, it)))
        .chain(policies.into_iter().filter(is_there))
        .chain(known.customers.into_iter().map(|(id, it)| Line::Customer(id, it)))
        .chain(known.devices.into_iter().map(|(id, it)| Line::Device(id, it)))
        .chain(known.apps.into_iter().map(|(id, it)| Line::App(id, it)));
    let mut digest = Sha256::new();
    for line in lines {
        let line = serde_json::to_string(&line)? + "\n";
        digest.update(&line);
        out.write_all(line.as_bytes())?;
    }
    let end = Line::End { sha256: hex(digest) };
    writeln!(out, "{}", serde_json::to_string(&end)?)?;
    Ok(out.flush()?)
}

/// Reads a whole backup, without its first and last line.
///
/// # Errors
/// When it is none, is of a later form, or is not whole.
pub(super) fn read(text: impl BufRead) -> anyhow::Result<Vec<Line>> {
    let (mut lines, mut digest, mut ended) = (Vec::new(), Sha256::new(), None);
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.with_context(|| format!("line {number}"))?;
        ensure!(ended.is_none(), "line {number}: nothing may follow the last line of a backup");
        let parsed = serde_json::from_str(&line);
        match (number, parsed) {
            (1, Ok(Line::Switchboard { form: 1..=FORM, .. })) => {}
            (1, Ok(Line::Switchboard { form, version, .. })) => {
                bail!(
                    "the backup is of form {form}, written by {version}: this program reads up to form {FORM}"
                )
            }
            (1, _) => bail!("the file is no backup: its first line must say so"),
            (_, Ok(Line::End { sha256 })) => {
                ended = Some(sha256);
                continue;
            }
            (_, Ok(line)) => lines.push(line),
            (_, Err(error)) => bail!("line {number} of the backup cannot be read: {error}"),
        }
        digest.update(&line);
        digest.update("\n");
    }
    let Some(sha256) = ended else { bail!("the backup is cut off: its last line is missing") };
    ensure!(
        sha256 == hex(digest),
        "the backup was changed: its lines are not those whose hash its last one has"
    );
    Ok(lines)
}

fn hex(digest: Sha256) -> String {
    digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use uuid::Uuid;

    #[test]
    fn only_a_whole_backup_is_read() {
        let mut known = Snapshot::default();
        for number in 0..3 {
            known.tenants.insert(TenantId(Uuid::from_u128(number)), Tenant { name: format!("T{number}") });
        }
        let mut file = Vec::new();
        write(known, Vec::new(), &mut file).unwrap();
        let whole = String::from_utf8(file).unwrap();
        assert_eq!(read(whole.as_bytes()).unwrap().len(), 3);
        let lines: Vec<_> = whole.lines().collect();
        let without = |number: usize| {
            let left = lines.iter().enumerate().filter(|(place, _)| *place != number).map(|(_, line)| *line);
            left.collect::<Vec<_>>().join("\n")
        };
        for number in 0..lines.len() {
            assert!(read(without(number).as_bytes()).is_err(), "without line {number}");
        }
        let refused = |text: &str| read(text.as_bytes()).unwrap_err().to_string();
        assert!(refused(&whole.replace("T1", "T9")).contains("was changed"));
        assert!(refused(&without(lines.len() - 1)).contains("cut off"));
        assert!(refused(&whole.replace("\"form\":1", "\"form\":2")).contains("up to form 1"));
        assert!(refused("tenant,name\n").contains("no backup"));
        assert!(refused(&format!("{whole}{{}}\n")).contains("nothing may follow"));
    }
}
