//! Is the configuration sound, and which settings are in force?

use std::process::ExitCode;

use boot::{CommonArgs, config};
use clap::Subcommand;

use crate::output::{note, say};
use crate::reach::EXIT_USAGE;

#[derive(Subcommand)]
pub(crate) enum ConfigVerb {
    /// Say every fault of file, environment and flags at once; exit status 2 if there is one
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
        ConfigVerb::Check(args) => with(&args, |_| say("The configuration is sound.")),
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
