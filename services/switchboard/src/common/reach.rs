//! How does a command reach the registry? Settings, connection, and errors that say what to do.

use std::future::Future;
use std::path::PathBuf;
use std::process::ExitCode;

use boot::{CommonArgs, Settings};
use bus::{Bus, BusError, BusSettings};
use clap::Args;

use crate::common::api::Api;
use crate::common::output::{complain, note};
use crate::common::recorded::{ChangeArgs, ReasonArgs};
use crate::common::registrar::Registrar;
use crate::system::access;

/// The exit status of a command whose flags or settings are at fault, as clap has it.
pub(crate) const EXIT_USAGE: u8 = 2;
/// The exit status of a command that was interrupted half-way, as shells have it of SIGINT.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;
/// A person waits: a server that is there answers much sooner.
const MAX_CONNECT_MS: u64 = 3_000;

/// Where NATS is, for commands that use a running system.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Connection")]
pub(crate) struct ReachArgs {
    /// NATS server that the system uses [setting: nats.url; default: nats://127.0.0.1:4222]
    #[arg(long, value_name = "URL")]
    nats: Option<String>,
    /// API of a system, as https://HOST, in place of NATS; its key is in SWITCHBOARD_KEY, or in the profile of that URL
    #[arg(long, value_name = "URL", env = "SWITCHBOARD_API")]
    api: Option<String>,
    /// API and key of this name in ~/.config/switchboard/profiles.toml, which only its owner may read
    #[arg(long, value_name = "NAME", env = "SWITCHBOARD_PROFILE")]
    profile: Option<String>,
    /// Configuration file (TOML) of the system
    #[arg(long, value_name = "FILE", env = "SWITCHBOARD_CONFIG")]
    config: Option<PathBuf>,
    /// Set one setting, as nats.prefix=test; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

/// A fault of flags or settings, which has an exit status of its own.
#[derive(Debug)]
struct Usage(String);

/// What is wrong with the flags, where clap cannot know.
pub(crate) fn usage(fault: impl Into<String>) -> anyhow::Error {
    Usage(fault.into()).into()
}

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A connection to a running system.
pub(crate) struct Reached {
    pub(crate) bus: Bus,
    pub(crate) settings: Settings,
}

impl ReachArgs {
    /// Connects.
    ///
    /// # Errors
    /// When the settings are at fault or NATS is not there.
    pub(crate) async fn bus(&self) -> anyhow::Result<Reached> {
        if self.api()?.is_some() {
            let needs =
                "this is done over NATS alone: --nats URL says where it is, whatever API is named besides";
            return Err(usage(needs));
        }
        let settings = self.settings()?;
        let mut bus: BusSettings = (&settings.nats).into();
        bus.connect_timeout_ms = bus.connect_timeout_ms.min(MAX_CONNECT_MS);
        let bus = Bus::connect(&bus, "cli").await.map_err(|error| unreachable(&error))?;
        Ok(Reached { bus, settings })
    }

    /// The settings in force, for commands that need no connection.
    ///
    /// # Errors
    /// When they are at fault.
    pub(crate) fn settings(&self) -> anyhow::Result<Settings> {
        let ReachArgs { nats, config, set, .. } = self.clone();
        let args = CommonArgs { config, set, nats, ..CommonArgs::default() };
        let mut settings = args.load().map_err(|faults| Usage(faults.to_string()))?.settings;
        access::find_for(&mut settings.nats);
        Ok(settings)
    }

    /// The API that is to be asked in place of NATS, if one is.
    ///
    /// # Errors
    /// When it has no key here.
    pub(crate) fn api(&self) -> anyhow::Result<Option<Api>> {
        // What stands in the environment gives way to a flag.
        if self.nats.is_some() || (self.api.is_none() && self.profile.is_none()) {
            return Ok(None);
        }
        let api = Api::of(self.api.as_deref(), self.profile.as_deref());
        api.map(Some).map_err(|error| usage(format!("{error:#}")))
    }

    /// Reaches who keeps the registry, to look at it.
    ///
    /// # Errors
    /// As [`ChangeArgs::registrar`].
    pub(crate) async fn registrar(self) -> anyhow::Result<Registrar> {
        ChangeArgs { json: false, reason: ReasonArgs::default(), reach: self }.registrar().await
    }
}

fn unreachable(error: &BusError) -> anyhow::Error {
    anyhow::anyhow!(
        "{error}\n  Is Switchboard running? `switchboard up` starts it with a NATS server; \
         --nats URL names one that runs elsewhere."
    )
}

/// Runs a command to its exit status: what it returns, 1 when it fails, 2 when flags or settings are at fault.
pub(crate) fn run(command: impl Future<Output = anyhow::Result<ExitCode>>) -> ExitCode {
    let ended = boot::runtime(0).and_then(|runtime| {
        let ended = runtime.block_on(command);
        runtime.shutdown_background();
        ended
    });
    match ended {
        Ok(status) => status,
        Err(error) => match error.downcast_ref::<Usage>() {
            Some(faults) => {
                note(format_args!("error: {faults}"));
                EXIT_USAGE.into()
            }
            None => {
                complain(&error);
                ExitCode::FAILURE
            }
        },
    }
}
