//! What runs where, and how is it? `switchboard status`, asked of every process.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bus::inspect;
use bus::stored::{Stored, stored};
use clap::Args;
use rpc::{Inspect, NodeId, NodeReport, Order, Report, Status, wire};
use serde::Serialize;

use crate::common::output::{count, moment, note, say, say_json, size};
use crate::common::reach::{ReachArgs, Reached};
use crate::common::table::Table;

/// How long JetStream may take to say how much it holds.
const STORE_WAIT: Duration = Duration::from_secs(2);

#[derive(Args)]
#[command(after_help = "\
The exit status is 1 when a process is not ready. `switchboard doctor` looks for what will hurt. How much JetStream \
holds is shown where the NATS user may ask; a limit is its account's, not that of the disk.

Examples:
  switchboard status
  switchboard status --json | jq '.[] | select(.unready != {})'
  switchboard status --store --json | jq '.[] | {of, fileBytes, maxFileBytes}'")]
pub(crate) struct StatusArgs {
    /// Show how much JetStream holds and may hold, alone
    #[arg(long)]
    store: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// A process, and how it is.
pub(super) struct Process {
    pub(super) service: String,
    pub(super) process: NodeId,
    pub(super) status: Status,
    /// What a node has, besides.
    pub(super) node: Option<NodeReport>,
}

/// All that answer.
///
/// # Errors
/// When none does.
pub(super) async fn processes(reached: &Reached) -> anyhow::Result<Vec<Process>> {
    let bus = &reached.bus;
    let order = wire::encode(&Order::Report, b"");
    let nodes = bus.ask_all([bus.subjects().operate_all()], order, inspect::GATHER);
    let (reports, nodes) = tokio::join!(inspect::ask(bus, &Inspect::Status), nodes);
    let (reports, nodes) = (reports.context("the processes cannot be asked")?, nodes.unwrap_or_default());
    let mut nodes: BTreeMap<NodeId, NodeReport> = nodes
        .iter()
        .filter_map(|reply| Some(wire::decode::<NodeReport>(reply).ok()?.0))
        .map(|report| (report.node, report))
        .collect();
    let processes: Vec<Process> = reports
        .into_iter()
        .filter_map(|Report { service, process, status, .. }| {
            Some(Process { service, process, status: status?, node: nodes.remove(&process) })
        })
        .collect();
    if processes.is_empty() {
        bail!("no process answers: none is there, or all are of an older version");
    }
    Ok(processes)
}

/// A process as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProcessView<'a> {
    service: &'a str,
    process: NodeId,
    host: &'a str,
    version: &'a str,
    up_s: u64,
    /// Each part that is not ready, and why.
    unready: BTreeMap<&'a str, &'a str>,
    hops_per_second: f64,
    numbers: BTreeMap<&'a str, u64>,
    log_level: &'a str,
    /// When the certificates end that its settings name, by the setting.
    certificates: BTreeMap<&'a str, String>,
}

impl Process {
    fn view(&self) -> ProcessView<'_> {
        let Status { version, host, unready, numbers, log_level, .. } = &self.status;
        let mut numbers: BTreeMap<&str, u64> =
            numbers.iter().map(|(name, number)| (name.as_str(), *number)).collect();
        if let Some(node) = &self.node {
            let counted =
                [("devices", node.visitors), ("sessions", node.sessions()), ("claims", node.claims)];
            numbers.extend(counted);
        }
        ProcessView {
            service: &self.service,
            process: self.process,
            host,
            version,
            up_s: self.status.now_ms.saturating_sub(self.status.started_ms) / 1_000,
            unready: unready.iter().map(|(part, why)| (part.as_str(), why.as_str())).collect(),
            hops_per_second: self.status.hops_in_10_s as f64 / 10.0,
            numbers,
            log_level,
            certificates: self.certificates().map(|(setting, end_s)| (setting, moment_of(end_s))).collect(),
        }
    }

    /// Its certificates by the settings that name them, and when each ends, in seconds from 1970.
    pub(super) fn certificates(&self) -> impl Iterator<Item = (&str, i64)> {
        self.status.certificates.iter().flatten().map(|(setting, end_s)| (setting.as_str(), *end_s))
    }
}

/// How much JetStream holds; nothing where the user may not ask.
pub(super) async fn store(reached: &Reached) -> Vec<Stored> {
    stored(&reached.bus, STORE_WAIT).await
}

/// The end of a certificate, as RFC 3339 writes it.
pub(super) fn moment_of(end_s: i64) -> String {
    moment(u64::try_from(end_s).unwrap_or_default())
}

pub(crate) async fn run(
    StatusArgs { store: only_store, json, reach }: StatusArgs,
) -> anyhow::Result<ExitCode> {
    let reached = reach.bus().await?;
    if only_store {
        let store = store(&reached).await;
        if store.is_empty() {
            bail!(
                "JetStream does not say how much it holds: it does not answer, or this NATS user may not ask it"
            );
        }
        match json {
            true => say_json(&store)?,
            false => show_store(&store),
        }
        return Ok(ExitCode::SUCCESS);
    }
    let (processes, store) = tokio::join!(processes(&reached), store(&reached));
    let processes = processes?;
    let are_ready = processes.iter().all(|it| it.status.unready.is_empty());
    if json {
        say_json(&processes.iter().map(Process::view).collect::<Vec<_>>())?;
    } else {
        show_processes(&processes);
        say("");
        show_store(&store);
        if store.is_empty() {
            note("JetStream does not say how much it holds: this NATS user may not ask it");
        }
    }
    Ok(if are_ready { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn show_processes(processes: &[Process]) {
    let headings = ["SERVICE", "PROCESS", "HOST", "VERSION", "UP", "READY", "HOPS/S", "HAS"];
    let mut table = Table::new(&headings);
    for view in processes.iter().map(Process::view) {
        let numbers: Vec<_> = view.numbers.iter().map(|(name, number)| format!("{name} {number}")).collect();
        table.row([
            view.service.to_owned(),
            view.process.to_string(),
            view.host.to_owned(),
            view.version.to_owned(),
            age(view.up_s),
            if view.unready.is_empty() { "yes".to_owned() } else { "NO".to_owned() },
            format!("{:.1}", view.hops_per_second),
            numbers.join(", "),
        ]);
    }
    table.print();
    for it in processes {
        for (part, why) in &it.status.unready {
            say(format_args!("{} {} is not ready: {part}: {why}", it.service, it.process));
        }
    }
    // Copies have the same: whoever has another one stands out.
    let mut ends: BTreeMap<(&str, i64), Vec<&str>> = BTreeMap::new();
    for it in processes {
        it.certificates().for_each(|end| ends.entry(end).or_default().push(&it.service));
    }
    for ((setting, end_s), of) in ends {
        let counted = of.iter().collect::<BTreeSet<_>>().into_iter();
        let counted = counted.map(|it| format!("{it} × {}", of.iter().filter(|other| *other == it).count()));
        let of = counted.collect::<Vec<_>>().join(", ");
        say(format_args!("certificates in {setting} end {} ({of})", moment_of(end_s)));
    }
    note(count(processes.len(), "process"));
}

fn show_store(store: &[Stored]) {
    if store.is_empty() {
        return;
    }
    let room = |bytes, limit: Option<u64>| match limit {
        Some(limit) => format!("{} of {}", size(bytes), size(limit)),
        None => format!("{}, no limit", size(bytes)),
    };
    let mut table = Table::new(&["STORE", "FILES", "MEMORY"]);
    for it in store {
        let files = room(it.file_bytes, it.max_file_bytes);
        table.row([it.of.to_owned(), files, room(it.memory_bytes, it.max_memory_bytes)]);
    }
    table.print();
}

/// How long something has been there: `3 d 4 h`, `5 m 7 s`.
fn age(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} m {} s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{} h {} m", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_read_well() {
        let ages = [7, 67, 3_667, 90_000].map(age);
        assert_eq!(ages, ["7 s", "1 m 7 s", "1 h 1 m", "1 d 1 h"]);
    }
}
