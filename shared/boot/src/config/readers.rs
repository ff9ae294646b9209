//! Which services read a setting? Only they have to notice when it changes.

const INGRESS: &str = "ingress";
const AUTHORIZER: &str = "authorizer";
const ROUTER: &str = "router";
const API: &str = "api";
const IDENTITY: &str = "identity";

/// Every service.
pub const SERVICES: [&str; 5] = [INGRESS, AUTHORIZER, ROUTER, API, IDENTITY];

/// The services that read the setting of this path, as `mqtt.listen`. What is checked together has the same readers, so
/// that a file with a service's own settings alone is judged as one with all of them.
pub fn readers(path: &str) -> &'static [&'static str] {
    match path {
        "device_api.default_timeout_ms"
        | "device_api.max_timeout_ms"
        | "device_api.default_connect_timeout_ms"
        | "shares.per_customer_percent" => &[INGRESS, AUTHORIZER, ROUTER],
        "device_api.max_devices_per_customer"
        | "device_api.max_devices_per_page"
        | "device_api.conceal_foreign_devices" => &[AUTHORIZER],
        "api.max_body_bytes" | "api.calls_per_second_per_app" | "api.call_burst_per_app" => {
            &[AUTHORIZER, API]
        }
        "ingress.lease_ms" => &[INGRESS, ROUTER, API],
        "ingress.claim_timeout_ms" | "ingress.handover_ms" | "shares.waiting_percent" => &[INGRESS, ROUTER],
        _ => of_section(path.split_once('.').map_or(path, |(section, _)| section)),
    }
}

/// Whether a process with this name reads the setting of this path: a node is three services in one.
pub fn is_read_by(path: &str, process: &str) -> bool {
    let services = readers(path);
    services.contains(&process)
        || process == "node" && [INGRESS, AUTHORIZER, ROUTER].iter().any(|it| services.contains(it))
}

/// Who reads the settings of a section, unless one is told apart.
pub(super) fn of_section(section: &str) -> &'static [&'static str] {
    match section {
        "device_api" | "shares" | "ingress" | "mqtt" | "http" | "tls" | "coap" => &[INGRESS],
        "audit" => &[AUTHORIZER, API],
        "authorizer" => &[AUTHORIZER],
        "router" => &[ROUTER],
        "api" => &[API],
        "identity" => &[IDENTITY],
        "journal" => &[INGRESS, AUTHORIZER, ROUTER, API],
        _ => &SERVICES,
    }
}

/// These services in words.
pub(super) fn in_words(services: &[&str]) -> String {
    match services {
        [services @ .., last] if !services.is_empty() => format!("{} and {last}", services.join(", ")),
        _ => services.concat(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::Settings;

    /// The words of each file of a folder, comments left out.
    fn code(folder: &Path) -> Vec<BTreeSet<String>> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| !path.ends_with("boot/src/config")).flat_map(|path| words(&path)).collect()
    }

    fn words(path: &Path) -> Vec<BTreeSet<String>> {
        if path.is_dir() {
            return code(path);
        }
        let text = fs::read_to_string(path).unwrap();
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let words = code.flat_map(|line| line.split(|it: char| it != '_' && !it.is_ascii_alphanumeric()));
        vec![words.map(str::to_owned).collect()]
    }

    #[test]
    fn who_reads_a_setting_is_who_names_it() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let source = |folder: &str| code(&root.join(folder).join("src"));
        let shared = [source("shared/boot"), source("shared/bus")].concat();
        let mut faults = Vec::new();
        for service in SERVICES {
            let own = source(&format!("services/{service}"));
            for path in Settings::PATHS {
                let (section, name) = path.split_once('.').unwrap();
                let mut namesakes = Settings::PATHS.iter().filter(|it| it.ends_with(&format!(".{name}")));
                let is_of_another = namesakes.any(|it| readers(it).contains(&service));
                let is_own =
                    !is_of_another && own.iter().any(|file| file.contains(section) && file.contains(name));
                let is_somewhere = own.iter().chain(&shared).any(|file| file.contains(name));
                match readers(path).contains(&service) {
                    true if !is_somewhere => faults.push(format!("{service} does not read {path}")),
                    false if is_own => faults.push(format!("{service} reads {path}")),
                    _ => {}
                }
            }
        }
        assert_eq!(faults, Vec::<String>::new());
    }

    #[test]
    fn what_is_checked_together_is_read_together() {
        let (_, checks) = include_str!("../config.rs").split_once("fn check_together").unwrap();
        for check in checks.split("checks.").skip(1) {
            let paths: Vec<_> = check.split('"').filter(|it| Settings::PATHS.contains(it)).collect();
            let together: BTreeSet<_> = paths.iter().map(|path| readers(path)).collect();
            assert!(together.len() <= 1, "{paths:?}");
        }
    }
}
