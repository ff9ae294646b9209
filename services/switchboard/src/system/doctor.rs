//! What will hurt? `switchboard doctor` looks at what all processes say of themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use boot::Settings;
use boot::clock::unix_ms;
use clap::Args;
use serde::Serialize;

use super::status::{Process, processes};
use crate::common::output::{count, note, say, say_json};
use crate::common::reach::ReachArgs;

/// How far a machine's clock may be off: answers take up to a third of a second to gather.
const MAX_AHEAD_MS: i64 = 1_500;
/// Files below which a node serves few devices.
const FEW_FILES: u64 = 10_000;
/// Settings that differ from copy to copy as they should: its own places and names.
const OWN: [&str; 6] = [".listen", ".tls_listen", "nats.url", "_file", "server_reference", "log.format"];
/// What no system is without.
const NEEDED: [&str; 3] = ["ingress", "authorizer", "router"];

#[derive(Args)]
#[command(after_help = "\
It asks every process that runs, and looks at the settings that this command is given (--config, --set) besides. The \
exit status is 1 when something was found.

Examples:
  switchboard doctor
  switchboard doctor --json | jq '.[].what'")]
pub(crate) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// Something that will hurt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    /// What was looked at.
    about: &'static str,
    /// What is the matter.
    what: String,
    /// What to do.
    advice: &'static str,
}

pub(crate) async fn run(DoctorArgs { json, reach }: DoctorArgs) -> anyhow::Result<ExitCode> {
    let reached = reach.bus().await?;
    let processes = processes(&reached).await?;
    let mut found = findings(&processes, &reached.settings, unix_ms());
    if let Err(error) = reached.bus.admits_bodies(&reached.settings) {
        let advice = "raise max_payload of NATS, or lower the setting";
        found.push(Finding { about: "max_payload", what: error.to_string(), advice });
    }
    if json {
        say_json(&found)?;
    } else {
        for Finding { about, what, advice } in &found {
            say(format_args!("{about}: {what}\n  {advice}"));
        }
        note(format_args!("{} in {}", count(found.len(), "finding"), count(processes.len(), "process")));
    }
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn findings(processes: &[Process], settings: &Settings, now_ms: u64) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut find = |about, what, advice| found.push(Finding { about, what, advice });
    let of = |service: &str| processes.iter().filter(move |it| it.service == service).collect::<Vec<_>>();
    for service in NEEDED {
        match of(service).len() {
            0 => {
                find("services", format!("no {service} answers"), "start one; without it no call is answered")
            }
            1 => find("services", format!("there is a single {service}"), "run two, so that one may end"),
            _ => {}
        }
    }
    let versions: BTreeSet<&str> = processes.iter().map(|it| it.status.version.as_str()).collect();
    if versions.len() > 1 {
        let versions: Vec<&str> = versions.into_iter().collect();
        find("versions", versions.join(", "), "fine while an upgrade goes on; then all should be of one");
    }
    if settings.nats.replicas == 1 {
        let what = "nats.replicas is 1: each bucket is on one disk".to_owned();
        find("nats", what, "on a NATS cluster of three set 3; and let JetStream sync_interval be always");
    }
    for Process { service, process, status, .. } in processes {
        for (part, why) in &status.unready {
            find("readiness", format!("{service} {process}: {part}: {why}"), "see its log, and the runbook");
        }
        let ahead_ms = status.now_ms.cast_signed() - now_ms.cast_signed();
        if ahead_ms.abs() > MAX_AHEAD_MS {
            let what =
                format!("{service} {process} on {} is {ahead_ms} ms ahead of this machine", status.host);
            find("clocks", what, "let both follow a time server: logs, keys' ends and policies go by it");
        }
        if let Some(files) = status.max_files.filter(|it| *it < FEW_FILES && service == "ingress") {
            let what = format!("{service} {process} may open {files} files, one for each connection");
            find("files", what, "raise the limit: ulimit -Hn, LimitNOFILE of systemd");
        }
        if status.journal.1 == 0 {
            let what = format!("{service} {process} remembers no calls (journal.max_hops is 0)");
            find("journal", what, "`switchboard call show` tells less without it");
        }
        if status.log_level.contains("debug") || status.log_level.contains("trace") {
            let what = format!("{service} {process} logs {:?}", status.log_level);
            find("logs", what, "a busy process spends its time on that: log.level, `switchboard log-level`");
        }
    }
    let payloads: BTreeSet<u64> = processes.iter().map(|it| it.status.max_payload_bytes).collect();
    if payloads.len() > 1 {
        let what = format!("servers take messages of {payloads:?} bytes");
        find("max_payload", what, "set the same max_payload on every NATS server");
    }
    for service in processes.iter().map(|it| it.service.as_str()).collect::<BTreeSet<_>>() {
        for (setting, values) in differing(&of(service)) {
            let what = format!("{setting} of {service} is {values}");
            find("settings", what, "copies of a service should have the same: which one answers is chance");
        }
    }
    found
}

/// Settings that are not the same in all copies of a service, and what they are.
fn differing(copies: &[&Process]) -> Vec<(String, String)> {
    let own = |path: &str| OWN.iter().any(|it| path.contains(it)) || path == "admin.listen";
    let mut values: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, value) in copies.iter().flat_map(|it| &it.status.settings).filter(|(path, _)| !own(path)) {
        values.entry(path).or_default().push(value);
    }
    let told = values.into_iter().filter_map(|(path, of_each)| {
        let by_default = of_each.len() < copies.len();
        let different: BTreeSet<&str> = of_each.into_iter().collect();
        let mut told: Vec<&str> = different.iter().copied().collect();
        told.extend(by_default.then_some("its default"));
        (told.len() > 1).then(|| (path.to_owned(), told.join(" here and there ")))
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use rpc::{NodeId, Status};

    use super::*;

    fn process(service: &str, id: u64) -> Process {
        let status = Status {
            version: "1".to_owned(),
            started_ms: 0,
            now_ms: 1_000_000,
            host: "one".to_owned(),
            unready: Vec::new(),
            log_level: "info".to_owned(),
            journal: (0, 100),
            hops_in_10_s: 0,
            numbers: Vec::new(),
            max_files: Some(1_000_000),
            max_payload_bytes: 1_048_576,
            settings: vec![("nats.url".to_owned(), format!("\"nats://{id}\""))],
        };
        Process { service: service.to_owned(), process: NodeId(id), status, node: None }
    }

    fn whole() -> Vec<Process> {
        NEEDED.iter().flat_map(|service| [process(service, 1), process(service, 2)]).collect()
    }

    fn found(processes: &[Process]) -> Vec<(&'static str, String)> {
        let mut settings = Settings::default();
        settings.nats.replicas = 3;
        findings(processes, &settings, 1_000_000).into_iter().map(|it| (it.about, it.what)).collect()
    }

    #[test]
    fn in_a_sound_system_nothing_is_found() {
        assert_eq!(found(&whole()), []);
        assert_eq!(findings(&whole(), &Settings::default(), 1_000_000).len(), 1, "one copy of each bucket");
    }

    #[test]
    fn what_will_hurt_is_named() {
        let changed = |change: fn(&mut Status)| {
            let mut processes = whole();
            change(&mut processes[0].status);
            found(&processes)
        };
        for (found, about, words) in [
            (found(&whole()[2..]), "services", "no ingress answers"),
            (found(&whole()[1..]), "services", "a single ingress"),
            (changed(|it| it.version = "2".to_owned()), "versions", "1, 2"),
            (changed(|it| it.now_ms += 2_000), "clocks", "2000 ms ahead"),
            (changed(|it| it.max_files = Some(1_024)), "files", "1024 files"),
            (changed(|it| it.journal = (0, 0)), "journal", "remembers no calls"),
            (changed(|it| it.log_level = "debug".to_owned()), "logs", "debug"),
            (changed(|it| it.unready = vec![("nats".into(), "gone".into())]), "readiness", "nats: gone"),
            (changed(|it| it.max_payload_bytes = 1), "max_payload", "{1, 1048576}"),
            (
                changed(|it| it.settings.push(("ingress.lease_ms".into(), "3000".into()))),
                "settings",
                "ingress.lease_ms of ingress is 3000 here and there its default",
            ),
        ] {
            let [(found_about, what)] = found.as_slice() else { panic!("{words}: {found:?}") };
            assert!(*found_about == about && what.contains(words), "{found_about}: {what}");
        }
    }
}
