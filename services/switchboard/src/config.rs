//! Is the configuration sound, and which settings are in force?

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use boot::config::{self, Softened, Sources};
use boot::{CommonArgs, Settings};
use clap::{Args, Subcommand};

use crate::common::output::{note, say};
use crate::common::reach::EXIT_USAGE;

#[derive(Subcommand)]
pub(crate) enum ConfigVerb {
    /// Say every fault of file, environment and flags at once, files that cannot be read among them, and each setting
    /// that softens what the defaults protect; exit status 2 if there is a fault
    Check(CheckArgs),
    /// Print the settings in force, and where each comes from
    Print(CommonArgs),
    /// Print a sample file: every setting with its documentation and default
    Sample,
    /// Print all settings as a Markdown table
    Reference,
}

#[derive(Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    common: CommonArgs,
    /// The files that settings name are on another machine: do not open them
    #[arg(long)]
    elsewhere: bool,
    /// Say which services that run with this file take over what has changed, and which have to be started again
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
}

pub(crate) fn run(verb: ConfigVerb) -> ExitCode {
    match verb {
        ConfigVerb::Check(args) => with(args.common.load(), |loaded| {
            let unread = if args.elsewhere { Vec::new() } else { unread(&loaded.settings) };
            if !unread.is_empty() {
                note(
                    "the configuration names files that cannot be read (--elsewhere: they need not be here):",
                );
                unread.iter().for_each(|fault| note(format_args!("  {fault}")));
                return EXIT_USAGE.into();
            }
            check(&loaded.settings);
            let Some(against) = args.against else { return ExitCode::SUCCESS };
            let old = Sources { file: Some(against), ..args.common.sources() };
            with(Settings::load(&old), |old| compare(&old.settings, &loaded.settings))
        }),
        ConfigVerb::Print(args) => with(args.load(), |loaded| {
            say(config::print(&loaded).trim_end());
            ExitCode::SUCCESS
        }),
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

/// Files that settings name and that whoever runs this cannot read, and why.
fn unread(settings: &Settings) -> Vec<String> {
    let Settings { nats, tls, .. } = settings;
    let named = [
        ("nats.password_file", &nats.password_file),
        ("nats.credentials_file", &nats.credentials_file),
        ("nats.tls_ca_file", &nats.tls_ca_file),
        ("tls.certificate_file", &tls.certificate_file),
        ("tls.key_file", &tls.key_file),
    ];
    let named = named.into_iter().filter_map(|(setting, file)| Some((setting, file.as_ref()?)));
    let fault = |(setting, file): (&str, &PathBuf)| {
        // A folder opens, and holds nothing to read.
        let error = File::open(file).and_then(|mut file| file.read(&mut [0])).err()?;
        Some(format!("{setting}: {}: {error}", file.display()))
    };
    named.filter_map(fault).collect()
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

/// What a change asks of the services that run.
fn compare(old: &Settings, new: &Settings) -> ExitCode {
    let changes = match old.reload(new) {
        Ok(reload) => reload.changes,
        Err(faults) => {
            note(faults);
            return EXIT_USAGE.into();
        }
    };
    if changes.is_empty() {
        say("Nothing has changed.");
    }
    for service in config::SERVICES {
        for (is_reloaded, what) in [(false, "has to be started again for"), (true, "takes over")] {
            let named = changes.iter().filter(|it| it.is_reloaded == is_reloaded);
            let named = named.map(|it| it.setting).filter(|it| config::readers(it).contains(&service));
            let named: Vec<_> = named.collect();
            if !named.is_empty() {
                say(format_args!("{service} {what}: {}", named.join(", ")));
            }
        }
    }
    ExitCode::SUCCESS
}

fn with(
    loaded: Result<config::Loaded, config::Faults>,
    show: impl FnOnce(config::Loaded) -> ExitCode,
) -> ExitCode {
    match loaded {
        Ok(loaded) => show(loaded),
        Err(faults) => {
            note(faults);
            EXIT_USAGE.into()
        }
    }
}
