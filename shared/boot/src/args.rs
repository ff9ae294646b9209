//! Which command line flags every service shares.

use std::fmt;
use std::path::PathBuf;
use std::sync::LazyLock;

use clap::Args;

use crate::config::{Faults, Flag, Loaded, Settings, Sources};

/// Flags for configuration, to be flattened into a command's own (`#[command(flatten)]`).
///
/// The flags with names of their own are stronger than `--set`. Values are checked when the settings are loaded,
/// together with all others.
#[derive(Args, Clone, Default)]
#[command(next_help_heading = "Settings")]
pub struct CommonArgs {
    /// Configuration file (TOML)
    #[arg(long, value_name = "FILE", env = "SWITCHBOARD_CONFIG")]
    pub config: Option<PathBuf>,
    /// Set one setting, as mqtt.listen=127.0.0.1:1884; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// NATS server to connect to [setting: nats.url]
    #[arg(long, value_name = "URL")]
    pub nats: Option<String>,
    /// Address of the admin endpoint [setting: admin.listen]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// What to log: error, warn, info, debug, trace, or target=level [setting: log.level]
    #[arg(long, value_name = "LEVEL")]
    pub log: Option<String>,
    /// How to log: auto, pretty or json [setting: log.format]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

impl CommonArgs {
    /// Everything these flags and the environment of this process say.
    pub fn sources(&self) -> Sources {
        let named = [
            ("--nats", "nats.url", &self.nats),
            ("--admin", "admin.listen", &self.admin),
            ("--log", "log.level", &self.log),
            ("--log-format", "log.format", &self.log_format),
        ];
        let flags = named.into_iter().filter_map(|(name, setting, value)| {
            value.as_ref().map(|value| Flag { name, setting, value: value.clone() })
        });
        Sources {
            file: self.config.clone(),
            env: Sources::process_env(),
            overrides: self.set.clone(),
            flags: flags.collect(),
        }
    }

    /// The settings in force.
    ///
    /// # Errors
    /// Every fault of file, environment and flags.
    pub fn load(&self) -> Result<Loaded, Faults> {
        Settings::load(&self.sources())
    }
}

/// Says nothing of the values: a `--set` may hold a password.
impl fmt::Debug for CommonArgs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CommonArgs").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Version for `--version` (`#[command(version = boot::args::version())]`): with the commit when the build was
/// told one in `SWITCHBOARD_COMMIT`.
pub fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| match option_env!("SWITCHBOARD_COMMIT") {
        Some(commit) if !commit.is_empty() => format!("{} ({commit})", env!("CARGO_PKG_VERSION")),
        _ => env!("CARGO_PKG_VERSION").to_owned(),
    });
    &VERSION
}
