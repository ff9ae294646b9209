//! Is the configuration sound, and which settings are in force?

use std::process::ExitCode;

use boot::config::{self, Softened};
use boot::{CommonArgs, Settings};
use clap::Subcommand;

use crate::output::{note, say};
use crate::reach::EXIT_USAGE;

#[derive(Subcommand)]
pub(crate) enum ConfigVerb {
    /// Say every fault of file, environment and flags at once, and each setting that softens what the defaults protect;
    /// exit status 2 if there is a fault
    Check(CommonArgs),
    /// Print the settings in force, and where each comes from
    Print(CommonArgs),
    /// Print a sample file: every setting with its documentation and default
    Sample,
    /// Print all settings as a Markdown table
    Reference,
}

pub(crate) fn run(verb: ConfigVerb) -> ExitCode {
    match verb {
        ConfigVerb::Check(args) => with(&args, |loaded| check(&loaded.settings)),
        ConfigVerb::Print(args) => with(&args, |loaded| say(config::print(loaded).trim_end())),
        ConfigVerb::Sample => {
            say(config::sample().trim_end());
            ExitCode::SUCCESS
        }
        ConfigVerb::Reference => {
            say(config::reference().trim_end());
            ExitCode::SUCCESS
        }
    }
}

fn check(settings: &Settings) {
    say("The configuration is sound.");
    let softened = config::softened(settings);
    if !softened.is_empty() {
        say("Softer than the defaults (deploy/security.md says what protects instead):");
    }
    for Softened { setting, cost } in softened {
        say(format_args!("  {setting}: {cost}"));
    }
}

fn with(args: &CommonArgs, show: impl Fn(&config::Loaded)) -> ExitCode {
    match args.load() {
        Ok(loaded) => {
            show(&loaded);
            ExitCode::SUCCESS
        }
        Err(faults) => {
            note(faults);
            EXIT_USAGE.into()
        }
    }
}
