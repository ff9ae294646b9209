//! Which settings of a changed configuration does a running process take over, and which wait for its next start?

use std::collections::{BTreeMap, BTreeSet};

use super::load::{Checks, Faults};
use super::{Settings, check_together};

/// A setting that is not what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its path.
    pub setting: &'static str,
    /// Whether a running process takes it over; otherwise it takes a start.
    pub is_reloaded: bool,
}

/// What becomes of a changed configuration.
#[derive(Clone, Debug)]
pub struct Reload {
    /// In force from now on: the new values of what is reloaded, and of everything else the old.
    pub settings: Settings,
    /// Every setting that differs, in the order of their declaration.
    pub changes: Vec<Change>,
}

impl Settings {
    /// What a process that runs with these settings makes of `new`.
    ///
    /// # Errors
    /// When the new values do not go together with the old ones that stay.
    pub fn reload(&self, new: &Settings) -> Result<Reload, Faults> {
        let mut settings = self.clone();
        let changes = settings.take_over(new);
        let (sources, faulty, mut faults) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        check_together(&settings, &mut Checks::new(&sources, &faulty, &mut faults));
        match faults.is_empty() {
            true => Ok(Reload { settings, changes }),
            false => Err(Faults(faults)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_reloaded_is_taken_over_and_nothing_else_is() {
        let (old, mut new) = (Settings::default(), Settings::default());
        new.ingress.calls_per_second_per_device = 7;
        new.log.level = "debug".to_owned();
        new.nats.replicas = 3;
        let Reload { settings, changes } = old.reload(&new).unwrap();
        let named: Vec<_> = changes.iter().map(|it| (it.setting, it.is_reloaded)).collect();
        assert_eq!(
            named,
            [("nats.replicas", false), ("ingress.calls_per_second_per_device", true), ("log.level", true)]
        );
        new.nats.replicas = old.nats.replicas;
        assert_eq!(settings, new);
        assert!(settings.reload(&new).unwrap().changes.is_empty());
    }

    #[test]
    fn settings_that_bound_each_other_are_taken_over_together() {
        let old = Settings::default();
        let mut new = old.clone();
        (new.device_api.default_timeout_ms, new.device_api.max_timeout_ms) = (500_000, 600_000);
        (new.http.poll_timeout_ms, new.http.max_poll_timeout_ms) = (500_000, 600_000);
        (new.mqtt.max_packet_bytes, new.ingress.max_outbound_bytes) = (1_048_576, 2_097_152);
        new.mqtt.max_packet_bytes_before_authentication = 65_536;
        assert!(old.reload(&new).is_ok() && new.reload(&old).is_ok());
    }
}
