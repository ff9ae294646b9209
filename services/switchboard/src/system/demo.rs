//! Which devices does the demo account have? Those of ThingsBoard's demo account, by its documentation's ids.

use anyhow::Context;
use boot::Settings;
use bus::Bus;
use bus::registry::Registry;

use crate::common::output::note;
use crate::common::recorded::{self, ReasonArgs};
use crate::device::import::{Plan, Taking};
use crate::device::rows;

/// Its tokens are public: it is loaded by `--demo` alone.
const ACCOUNT: &str = include_str!("../../demo-account.json");

const TAKING: Taking<'static> = Taking { tenant: None, create: false, weak_tokens: true, kept: None };

/// Adds what is missing of the demo account. How many of its parts stand there otherwise, and were left alone.
///
/// # Errors
/// When the registry does not answer.
pub(crate) async fn load(bus: &Bus, settings: &Settings) -> anyhow::Result<usize> {
    let registry = Registry::open(bus).await.context("cannot open the registry")?;
    let known = registry.load().await?;
    let file = rows::parse_json(ACCOUNT).context("the demo account")?;
    let plan = Plan::of(file, &known, &TAKING)?;
    let is_new = plan.devices.iter().any(|device| !known.devices.contains_key(&device.id));
    let entries = if is_new { plan.entries() } else { Vec::new() };
    let reason = ReasonArgs { who: "switchboard".to_owned(), why: "the demo account".to_owned() };
    note(
        "The demo account's access tokens are public: whoever reaches this system can be any of its devices.",
    );
    let recorder = reason.recorder(bus, settings);
    let apply = plan.apply(&registry, std::future::pending(), || ());
    let report = recorded::change(&recorder, entries, apply).await?;
    Ok(report.faults.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bus::registry::Snapshot;

    #[test]
    fn the_account_is_whole() {
        let plan = Plan::of(rows::parse_json(ACCOUNT).unwrap(), &Snapshot::default(), &TAKING).unwrap();
        let names: Vec<_> = plan.devices.iter().map(|device| device.name.as_str()).collect();
        assert_eq!(names.len(), 7);
        assert!(names.contains(&"Test Device A1") && names.contains(&"Raspberry Pi Demo Device"));
        let a1 = plan.devices.iter().find(|device| device.name == "Test Device A1").unwrap();
        assert_eq!(a1.token.reveal(), "A1_TEST_TOKEN");
        assert_eq!(a1.id.to_string(), "ce06a480-9fce-11e6-8080-808080808080");
    }
}
