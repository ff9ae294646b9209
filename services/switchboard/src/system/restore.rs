//! How does a backup become a system again? `switchboard restore`, into an empty one or beside what stands in another.

use std::fs::File;
use std::io::{BufReader, stdin};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use bus::audit::NO_TENANT;
use bus::changes::entry;
use bus::policies::{Policies, StoredSet};
use bus::registry::{Added, App, Customer, Device, Registry, RegistryError, Tenant};
use clap::Args;
use rpc::{AppId, CustomerId, DeviceId, TenantId};
use serde::Serialize;

use super::backup::{self, Line};
use crate::common::output::{count, note, say, say_json};
use crate::common::reach::{EXIT_INTERRUPTED, Reached};
use crate::common::recorded::{self, ChangeArgs};

/// Refusals that are shown; --json has them all.
const MAX_SHOWN: usize = 20;

#[derive(Args)]
#[command(after_help = "\
The whole file is read and checked before anything is written. What stands there already the same is left as it is, \
what stands there otherwise is left, too, and named: exit status 1. So the same file again goes on where it was \
interrupted (exit status 130). Tokens and keys are good as before.

Examples:
  switchboard restore --check switchboard.backup      read it, change nothing
  switchboard restore switchboard.backup")]
pub(crate) struct RestoreArgs {
    /// File that `switchboard backup` wrote; - is standard input
    file: PathBuf,
    /// Only say whether the file is whole
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Default, Serialize)]
struct Report {
    restored: usize,
    unchanged: usize,
    refused: Vec<String>,
    /// Not come to: it was interrupted.
    left: usize,
}

impl Report {
    fn take(&mut self, what: impl std::fmt::Display, added: Result<Added, RegistryError>) {
        match added {
            Ok(Added::Created) => self.restored += 1,
            Ok(Added::Unchanged) => self.unchanged += 1,
            Err(error) => self.refused.push(format!("{what}: {error}")),
        }
    }
}

/// What a backup holds, by kind.
#[derive(Default)]
struct Sorted {
    tenants: Vec<(TenantId, Tenant)>,
    policies: Vec<(TenantId, Vec<StoredSet>, Option<StoredSet>)>,
    customers: Vec<(CustomerId, Customer)>,
    devices: Vec<(DeviceId, Device)>,
    apps: Vec<(AppId, App)>,
}

pub(crate) async fn run(args: RestoreArgs) -> anyhow::Result<ExitCode> {
    let lines = match args.file.as_os_str() == "-" {
        true => backup::read(stdin().lock()),
        false => {
            let file =
                File::open(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
            backup::read(BufReader::new(file))
        }
    };
    let mut sorted = Sorted::default();
    for line in lines? {
        match line {
            Line::Tenant(id, tenant) => sorted.tenants.push((id, tenant)),
            Line::Policies(id, history, shadow) => sorted.policies.push((id, history, shadow)),
            Line::Customer(id, customer) => sorted.customers.push((id, customer)),
            Line::Device(id, device) => sorted.devices.push((id, device)),
            Line::App(id, app) => sorted.apps.push((id, app)),
            Line::Switchboard { .. } | Line::End { .. } => {}
        }
    }
    let devices = count(sorted.devices.len(), "device");
    if args.check {
        say(format_args!("The backup is whole: {devices} among it."));
        return Ok(ExitCode::SUCCESS);
    }
    let Reached { bus, settings } = args.change.reached().await?;
    let registry = Registry::open(&bus).await.context("cannot open the registry")?;
    let policies = Policies::open(&bus).await.context("cannot open the policies")?;
    let recorder = args.change.recorder(&bus, &settings);
    let what = format!("a backup, {devices} among it, but for what is refused");
    let restored = restore(&registry, &policies, sorted);
    let report =
        recorded::change(&recorder, vec![(NO_TENANT, entry("system.restore", [], what))], restored).await?;
    let status = match (report.left, report.refused.is_empty()) {
        (1.., _) => EXIT_INTERRUPTED.into(),
        (_, true) => ExitCode::SUCCESS,
        (_, false) => ExitCode::FAILURE,
    };
    if args.change.json {
        say_json(&report)?;
        return Ok(status);
    }
    report.refused.iter().take(MAX_SHOWN).for_each(note);
    if let more @ 1.. = report.refused.len().saturating_sub(MAX_SHOWN) {
        note(format_args!("… and {more} more; --json has them all."));
    }
    let Report { restored, unchanged, refused, left } = report;
    let refused = refused.len();
    say(format_args!(
        "{} restored, {unchanged} there already, {refused} refused.",
        count(restored, "record")
    ));
    if left > 0 {
        note(format_args!("Interrupted, {left} left: the same command again goes on."));
    }
    Ok(status)
}

/// Policies come before those whom they keep apart: nobody is let through for want of them.
async fn restore(registry: &Registry, policies: &Policies, sorted: Sorted) -> anyhow::Result<Report> {
    let interrupted = boot::shutdown::signals().context("cannot hear of signals")?;
    let mut report = Report::default();
    for (id, tenant) in &sorted.tenants {
        report.take(format_args!("tenant {:?}", tenant.name), registry.add_tenant(*id, tenant).await);
    }
    for (tenant, history, shadow) in &sorted.policies {
        match policies.restore(*tenant, history, shadow.as_ref()).await? {
            Some(true) => report.restored += 1,
            Some(false) => report.unchanged += 1,
            None => report.refused.push(format!("policies of tenant {tenant}: it has others")),
        }
    }
    for (id, customer) in &sorted.customers {
        report.take(format_args!("customer {:?}", customer.name), registry.add_customer(*id, customer).await);
    }
    report.left = sorted.devices.len();
    let names: Vec<_> = sorted.devices.iter().map(|(id, device)| (*id, device.name.clone())).collect();
    let tell = |number: usize, added| {
        report.left -= 1;
        if let Some((id, name)) = names.get(number) {
            report.take(format_args!("device {name:?} ({id})"), added);
        }
    };
    registry.restore_devices(sorted.devices, interrupted.cancelled(), tell).await?;
    for (id, app) in &sorted.apps {
        report.take(format_args!("application {:?}", app.name), registry.add_app(*id, app).await);
    }
    Ok(report)
}
