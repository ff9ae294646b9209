//! Who changed what? Every change of the registry and of policies has a record in the audit before it happens.

use std::future::Future;

use anyhow::Context;
use boot::Settings;
use bus::Bus;
use bus::audit::{AuditLog, Entry, MAX_TEXT_CHARS, user_of};
use bus::registry::Registry;
use clap::Args;
use rpc::{DeviceId, TenantId};

use crate::common::reach::{ReachArgs, Reached};

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
    reason: ReasonArgs,
    #[command(flatten)]
    reach: ReachArgs,
}

impl ChangeArgs {
    /// Connects, and opens the registry.
    ///
    /// # Errors
    /// As [`ReachArgs::registry`].
    pub(crate) async fn registry(&self) -> anyhow::Result<(Registry, Recorder)> {
        let Reached { bus, settings } = self.reached().await?;
        let registry = Registry::open(&bus).await.context("cannot open the registry")?;
        Ok((registry, self.recorder(&bus, &settings)))
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
        Recorder::of(bus, settings, self.reason.clone())
    }
}

/// Writes records in one person's name.
pub(crate) struct Recorder {
    log: AuditLog,
    reason: ReasonArgs,
}

impl Recorder {
    /// Of a running system.
    pub(crate) fn of(bus: &Bus, settings: &Settings, reason: ReasonArgs) -> Self {
        Recorder { log: log(bus, settings), reason }
    }

    /// Records a change, and then lets it happen. One that fails has a second record, which says so.
    ///
    /// # Errors
    /// When the audit takes no record: then nothing was changed. And the change's own.
    pub(crate) async fn change<T, E: Into<anyhow::Error>>(
        &self,
        tenant: TenantId,
        entry: Entry,
        change: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<T> {
        self.changes(vec![(tenant, entry)], change).await
    }

    /// The same for a change of many things at once.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub(crate) async fn changes<T, E: Into<anyhow::Error>>(
        &self,
        entries: Vec<(TenantId, Entry)>,
        change: impl Future<Output = Result<T, E>>,
    ) -> anyhow::Result<T> {
        for (tenant, entry) in &entries {
            let recorded = self.record(*tenant, entry.clone()).await;
            recorded.context("nothing was changed: the audit does not take the record of it")?;
        }
        let error = match change.await {
            Ok(changed) => return Ok(changed),
            Err(error) => error.into(),
        };
        for (tenant, entry) in entries {
            let failed = Entry { kind: format!("{}.failed", entry.kind), why: format!("{error:#}"), ..entry };
            if let Err(unrecorded) = self.record(tenant, failed).await {
                return Err(error.context(format!("the audit says that it happened: {unrecorded:#}")));
            }
        }
        Err(error)
    }

    async fn record(&self, tenant: TenantId, entry: Entry) -> anyhow::Result<()> {
        let ReasonArgs { who, why } = self.reason.clone();
        let why = if entry.why.is_empty() { why } else { entry.why };
        Ok(self.log.append(tenant, Entry { who, why, from: here(), ..entry }).await?)
    }
}

/// An entry in words.
pub(crate) fn entry(
    kind: &str,
    devices: impl IntoIterator<Item = DeviceId>,
    what: impl Into<String>,
) -> Entry {
    Entry { what: what.into(), ..Entry::new(kind, devices) }
}

/// The audit of a running system.
pub(crate) fn log(bus: &Bus, settings: &Settings) -> AuditLog {
    AuditLog::new(bus, user_of(&settings.nats), (&settings.audit).into())
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
