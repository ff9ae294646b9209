//! What is this program? Its version, its manual, and what a shell completes: `switchboard version`, `man`,
//! `completions`.

use std::io::stdout;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Command};
use clap_complete::Shell;
use serde::Serialize;

use crate::common::output::{complain, note, say, say_json};

#[derive(Args)]
pub(crate) struct VersionArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  source <(switchboard completions bash)
  switchboard completions zsh > ~/.zfunc/_switchboard
  switchboard completions fish > ~/.config/fish/completions/switchboard.fish")]
pub(crate) struct CompletionsArgs {
    /// Which shell
    shell: Shell,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  switchboard man /usr/local/share/man/man1 && man switchboard-device-import")]
pub(crate) struct ManArgs {
    /// Folder to write the pages into, one for each command; it must exist
    folder: PathBuf,
}

#[derive(Serialize)]
struct VersionView {
    version: &'static str,
    commit: Option<&'static str>,
}

pub(crate) fn version(args: &VersionArgs) -> ExitCode {
    let version = boot::args::version();
    let said = match args.json {
        true => {
            let commit = version.split_once(" (").and_then(|(_, rest)| rest.strip_suffix(')'));
            say_json(&VersionView { version: env!("CARGO_PKG_VERSION"), commit })
        }
        false => {
            say(format_args!("switchboard {version}"));
            Ok(())
        }
    };
    ended(said)
}

pub(crate) fn completions(args: &CompletionsArgs, mut command: Command) -> ExitCode {
    clap_complete::generate(args.shell, &mut command, "switchboard", &mut stdout());
    ExitCode::SUCCESS
}

pub(crate) fn man(args: &ManArgs, command: Command) -> ExitCode {
    let written = clap_mangen::generate_to(command, &args.folder)
        .with_context(|| format!("cannot write pages into {}", args.folder.display()));
    if written.is_ok() {
        note(format_args!("The pages are in {}.", args.folder.display()));
    }
    ended(written)
}

fn ended(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}
