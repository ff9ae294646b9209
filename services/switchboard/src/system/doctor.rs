//! What will hurt? `switchboard doctor` looks at what all processes say of themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use boot::Settings;
use boot::clock::unix_ms;
use bus::registry::{MIN_STRONG_CHARS, Registry};
use clap::Args;
use serde::Serialize;

use super::health::Asked;
use super::monitor::Server;
use super::status::{Process, moment_of, processes, store};
use crate::common::output::{count, note, say, say_json, size};
use crate::common::reach::{ReachArgs, Reached};

/// How far a machine's clock may be off: answers take up to a third of a second to gather.
const MAX_AHEAD_MS: i64 = 1_500;
/// Files below which a node serves few devices.
const FEW_FILES: u64 = 10_000;
/// A certificate that ends within is replaced now.
const FEW_DAYS: i64 = 30;
const DAY_S: i64 = 24 * 60 * 60;
/// Of what a store may hold, beyond which it is soon full.
const NEARLY_FULL_PERCENT: u64 = 80;
/// A nats-server that writes to its disk less often loses more than a call's time.
const LATE_SYNC: Duration = Duration::from_secs(10);
/// Settings that differ from copy to copy as they should: its own places and names.
const OWN: [&str; 6] = [".listen", ".tls_listen", "nats.url", "_file", "server_reference", "log.format"];
/// What no system is without.
const NEEDED: [&str; 3] = ["ingress", "authorizer", "router"];

#[derive(Args)]
#[command(after_help = "\
It asks every process that runs, reads the registry through, and looks at the settings that this command is given \
(--config, --set) besides. The exit status is 1 when something was found.

How often a nats-server writes to its disk (sync_interval), how full that is and when its own certificate ends, it \
tells on its monitoring port alone: --monitor names it (http_port of nats-server), of each server of a cluster.

Of tokens only hashes are stored. Which are weak, of fewer than 16 characters, is noted when they are given; that a \
longer one is a word that somebody guesses nobody can see.

Examples:
  switchboard doctor
  switchboard doctor --monitor http://nats-1:8222,http://nats-2:8222
  switchboard doctor --json | jq '.[].what'")]
pub(crate) struct DoctorArgs {
    /// Monitoring ports of the NATS servers, separated by commas
    #[arg(long, value_name = "URL", value_parser = super::health::parse, value_delimiter = ',')]
    monitor: Vec<Asked>,
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

pub(crate) async fn run(DoctorArgs { monitor, json, reach }: DoctorArgs) -> anyhow::Result<ExitCode> {
    let reached = reach.bus().await?;
    let (processes, store, weak) = tokio::join!(processes(&reached), store(&reached), weak_tokens(&reached));
    let processes = processes?;
    let now_ms = unix_ms();
    let mut found = findings(&processes, &reached.settings, now_ms);
    if let Err(error) = reached.bus.admits_bodies(&reached.settings) {
        let advice = "raise max_payload of NATS, or lower the setting";
        found.push(Finding { about: "max_payload", what: error.to_string(), advice });
    }
    found.extend(weak?.map(of_tokens));
    found.extend(store.iter().filter_map(|it| of_room(it.of, it.file_bytes, it.max_file_bytes?)));
    for at in &monitor {
        found.extend(of_server(&Server::ask(at).await?, reached.settings.nats.replicas, now_ms));
    }
    if json {
        say_json(&found)?;
    } else {
        for Finding { about, what, advice } in &found {
            say(format_args!("{about}: {what}\n  {advice}"));
        }
        note(format_args!("{} in {}", count(found.len(), "finding"), count(processes.len(), "process")));
        if monitor.is_empty() {
            note(
                "Not looked at: sync_interval, disks and certificates of NATS servers, which --monitor asks",
            );
        }
        if store.is_empty() {
            note("Not looked at: how much JetStream may hold, which this NATS user may not ask");
        }
    }
    Ok(if found.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Devices whose token was noted as weak; none: there is none.
async fn weak_tokens(reached: &Reached) -> anyhow::Result<Option<usize>> {
    let registry = Registry::open(&reached.bus).await.context("cannot open the registry")?;
    let mut weak = 0;
    registry.each_device(|_, device| weak += usize::from(device.weak_token)).await?;
    Ok((weak > 0).then_some(weak))
}

fn of_tokens(weak: usize) -> Finding {
    let what = format!("{} with a token of fewer than {MIN_STRONG_CHARS} characters", count(weak, "device"));
    let advice =
        "whoever guesses it is that device: `switchboard device list --weak`, then `device rotate-token`";
    Finding { about: "tokens", what, advice }
}

fn of_room(of: &str, bytes: u64, max_bytes: u64) -> Option<Finding> {
    let what = format!("JetStream holds {} of {} for {of}", size(bytes), size(max_bytes));
    let advice = "once it is full nothing is registered and no device becomes callable: give it more";
    (bytes > max_bytes / 100 * NEARLY_FULL_PERCENT).then_some(Finding { about: "store", what, advice })
}

fn of_certificate(whose: &str, end_s: i64, now_ms: u64) -> Option<Finding> {
    let left_s = end_s - (now_ms / 1_000).cast_signed();
    let when = match left_s {
        ..0 => "has ended".to_owned(),
        0..DAY_S => "ends within a day".to_owned(),
        _ => format!("ends in {}", count((left_s / DAY_S) as usize, "day")),
    };
    let what = format!("{whose} {when}, {}", moment_of(end_s));
    let advice = "replace it: whoever connects checks it, and turns back";
    (left_s < FEW_DAYS * DAY_S).then_some(Finding { about: "certificates", what, advice })
}

/// What is the matter with a nats-server.
fn of_server(server: &Server, replicas: u16, now_ms: u64) -> Vec<Finding> {
    let name = &server.server_name;
    let mut found = Vec::new();
    if let Some(config) = server.jetstream.config.as_ref() {
        let is_late = !config.sync_always && config.sync_interval() > LATE_SYNC;
        let what = format!(
            "{name} writes to its disk every {} s: what it confirmed since is lost when its machine stops",
            config.sync_interval().as_secs()
        );
        let advice = match replicas {
            1 => "it has the only copy: set sync_interval: always in its jetstream section",
            _ => "copies at others keep it, unless all stop at once: sync_interval: always, or a few seconds",
        };
        found.extend(is_late.then_some(Finding { about: "sync_interval", what, advice }));
        found.extend(of_room(&format!("all on {name}"), server.jetstream.stats.storage, config.max_storage));
    }
    let end = server.certificate_end_s();
    found.extend(end.and_then(|end_s| of_certificate(&format!("the certificate of {name}"), end_s, now_ms)));
    found
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
    let mut ending = BTreeSet::new();
    for it in processes {
        let Process { service, process, status, .. } = it;
        for (part, why) in &status.unready {
            find("readiness", format!("{service} {process}: {part}: {why}"), "see its log, and the runbook");
        }
        let ahead_ms = status.now_ms.cast_signed() - now_ms.cast_signed();
        if ahead_ms.abs() > MAX_AHEAD_MS {
            let what =
                format!("{service} {process} on {} is {ahead_ms} ms ahead of this machine", status.host);
            find("clocks", what, "let both follow a time server: logs, keys' ends and policies go by it");
        }
        for (setting, end_s) in it.certificates() {
            ending.insert((setting, end_s));
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
        let payloads: Vec<String> = payloads.iter().map(u64::to_string).collect();
        let what = format!("servers take messages of {} bytes", payloads.join(" and "));
        find("max_payload", what, "set the same max_payload on every NATS server");
    }
    for service in processes.iter().map(|it| it.service.as_str()).collect::<BTreeSet<_>>() {
        for (setting, values) in differing(&of(service)) {
            let what = format!("{setting} of {service} is {values}");
            find("settings", what, "copies of a service should have the same: which one answers is chance");
        }
    }
    let whose = |setting: &str| format!("a certificate in {setting}");
    found
        .extend(ending.iter().filter_map(|(setting, end_s)| of_certificate(&whose(setting), *end_s, now_ms)));
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
            certificates: Some(vec![("tls.certificate_file".to_owned(), 1_000 + 40 * DAY_S)]),
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
            (
                changed(|it| {
                    it.certificates = Some(vec![("tls.certificate_file".into(), 1_000 + 2 * DAY_S)])
                }),
                "certificates",
                "a certificate in tls.certificate_file ends in 2 days, 1970-01-03T",
            ),
            (
                changed(|it| it.certificates = Some(vec![("nats.tls_ca_file".into(), 999)])),
                "certificates",
                "has ended",
            ),
            (changed(|it| it.max_payload_bytes = 1), "max_payload", "of 1 and 1048576 bytes"),
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

    #[test]
    fn what_servers_and_stores_say_is_looked_at() {
        let server = |text: &str| of_server(&serde_json::from_str(text).unwrap(), 1, 1_000_000);
        let of = |found: Vec<Finding>| found.into_iter().map(|it| it.what).collect::<Vec<_>>();
        let sound = r#"{"server_name":"n1","tls_cert_not_after":"0001-01-01T00:00:00Z","jetstream":{
            "config":{"max_storage":1000,"sync_always":true,"sync_interval":120000000000},"stats":{"storage":700}}}"#;
        assert_eq!(server(sound), []);
        assert_eq!(server(r#"{"server_name":"n2"}"#), [], "without JetStream");
        let [late] = &*of(server(&sound.replace("true", "false"))) else { panic!() };
        assert!(late.starts_with("n1 writes to its disk every 120 s"), "{late}");
        let [full] = &*of(server(&sound.replace("700", "901"))) else { panic!() };
        assert_eq!(full, "JetStream holds 901 B of 1.0 kB for all on n1");
        let [ended] =
            &*of(server(&sound.replace("0001-01-01", "1970-01-01").replace("00:00:00", "00:00:09")))
        else {
            panic!()
        };
        assert_eq!(ended, "the certificate of n1 has ended, 1970-01-01T00:00:09Z");
        assert_eq!(of_tokens(2).what, "2 devices with a token of fewer than 16 characters");
    }
}
