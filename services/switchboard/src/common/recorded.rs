//! Who changed what? Every change of the registry and of policies has a record in the audit before it happens.

use std::future::Future;

use anyhow::Context;
use boot::Settings;
use bus::Bus;
use bus::audit::{Entry, MAX_TEXT_CHARS};
use bus::changes::{Author, Changes, NotChanged, Recorder};
use bus::registry::Registry;
use clap::Args;
use rpc::TenantId;

use crate::common::reach::{ReachArgs, Reached};
use crate::common::registrar::Registrar;

/// Who changes something, and what for.
#[derive(Args, Clone, Debug, Default)]
pub(crate) struct ReasonArgs {
    /// Who does it, for the audit and the history
    #[arg(long = "as", value_name = "WHO", default_value = "", value_parser = short)]
    pub(crate) who: String,
    /// What for, for the audit and the history
    #[arg(long, value_name = "TEXT", default_value = "", value_parser = short)]
    pub(crate) why: String,
}

/// How a command that changes something reaches the system.
#[derive(Args, Debug)]
pub(crate) struct ChangeArgs {
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) reason: ReasonArgs,
    #[command(flatten)]
    pub(crate) reach: ReachArgs,
}

impl ChangeArgs {
    /// Connects, and opens the registry.
    ///
    /// # Errors
    /// As [`ReachArgs::registry`].
    pub(crate) async fn changes(&self) -> anyhow::Result<Changes> {
        let Reached { bus, settings } = self.reached().await?;
        let registry = Registry::open(&bus).await.context("cannot open the registry")?;
        Ok(Changes { registry, recorder: self.recorder(&bus, &settings) })
    }

    /// Connects.
    ///
    /// # Errors
    /// As [`ReachArgs::bus`].
    pub(crate) async fn reached(&self) -> anyhow::Result<Reached> {
        self.reach.bus().await
    }

    /// Writes records in the name of whoever typed the command.
    pub(crate) fn recorder(&self, bus: &Bus, settings: &Settings) -> Recorder {
        self.reason.clone().recorder(bus, settings)
    }

    /// Reaches who keeps the registry.
    ///
    /// # Errors
    /// When it does not answer, or flags or settings are at fault.
    pub(crate) async fn registrar(&self) -> anyhow::Result<Registrar> {
        match self.reach.api()? {
            Some(api) => Ok(Registrar::Api(api.because(&self.reason.who, &self.reason.why))),
            None => Ok(Registrar::Nats(self.changes().await?)),
        }
    }
}

impl ReasonArgs {
    /// Writes records in this person's name.
    pub(crate) fn recorder(self, bus: &Bus, settings: &Settings) -> Recorder {
        let ReasonArgs { who, why } = self;
        Recorder::of(bus, settings, Author { who, why, from: here() })
    }
}

/// A change and its records, where the change may fail for any reason.
///
/// # Errors
/// As [`Recorder::changes`].
pub(crate) async fn change<T>(
    recorder: &Recorder,
    entries: Vec<(TenantId, Entry)>,
    change: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<T> {
    recorder.changes(entries, change).await.map_err(|error| match error {
        NotChanged::Failed(error) => error,
        NotChanged::FailedUntold(error, untold) => {
            error.context(format!("the audit says that it happened: {untold}"))
        }
        NotChanged::Unrecorded(unrecorded) => NotChanged::<anyhow::Error>::Unrecorded(unrecorded).into(),
    })
}

/// This machine and process.
fn here() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let host = host.trim();
    let host = if host.is_empty() { "?" } else { host };
    format!("machine {host}, process {}", std::process::id())
}

fn short(text: &str) -> Result<String, String> {
    if text.chars().count() <= MAX_TEXT_CHARS && !text.chars().any(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(format!("at most {MAX_TEXT_CHARS} characters, without control characters"))
}
