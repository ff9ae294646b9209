//! How do many devices get into the registry at once? `switchboard device import`: what fits is added, what does not
//! is named with its place and reason.

mod plan;
mod report;

use std::io::{Read, stdin};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};

pub(crate) use self::plan::Plan;
use self::report::TokenFile;
use crate::common::recorded::ChangeArgs;
use crate::device::rows;

#[derive(Args)]
#[command(after_help = "\
CSV has a header with the columns tenant,customer,id,name,type,token in any order, and label:KEY for each label; only \
name is needed, and tenant \
unless --tenant names it. Tenant and customer go by name or id; an empty customer means unassigned; an empty id or \
token is made up (a device that is there already keeps its own). Tokens are 16 characters to 255 bytes of UTF-8 \
without control characters; spaces around a field of CSV are not part of it, nor is a ' before one of =+-@', by which \
exports keep spreadsheets from taking it for a formula; JSON keeps both. JSON is a list of such objects (labels \
too), or what `switchboard device export` writes.

Rows that cannot be taken are listed with their place and reason, all others are added: exit status 1 if any was \
refused. The same file again changes nothing. Tokens that were made up are shown once; --tokens-out keeps them.

Examples:
  switchboard device import --create devices.csv
  switchboard device import --tenant Acme --tokens-out tokens.csv devices.json
  generate-devices | switchboard device import --create -")]
pub(crate) struct ImportArgs {
    /// File to read; - is standard input
    file: PathBuf,
    /// What the file is; told by its name or its first character when not given
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Make tenants and customers that are missing
    #[arg(long)]
    create: bool,
    /// Take tokens of fewer than 16 characters, which are guessed sooner or later
    #[arg(long)]
    weak_token: bool,
    /// Id or name of the tenant of rows that name none
    #[arg(long)]
    tenant: Option<String>,
    /// Write the added devices with their tokens to this new file (CSV, readable by you alone) instead of showing them
    #[arg(long, value_name = "FILE")]
    tokens_out: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    Json,
}

pub(crate) async fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let file = read(&args.file, args.format)?;
    let (registry, recorder) = args.change.registry().await?;
    let known = registry.load().await?;
    let plan = Plan::of(file, &known, args.tenant.as_deref(), args.create, args.weak_token)?;
    let tokens_are_shown = args.tokens_out.is_none();
    // Opened first: tokens of devices that were added must not be lost.
    let mut tokens = match &args.tokens_out {
        Some(path) => Some(TokenFile::create(path, &plan.devices)?),
        None => None,
    };

    let progress = progress(plan.devices.len());
    let report = plan.apply(&registry, |added| {
        progress.inc(1);
        match (&mut tokens, added) {
            (Some(tokens), Some(device)) => tokens.keep(device),
            _ => Ok(()),
        }
    });
    let report = recorder.changes(plan.entries(), report).await?;
    progress.finish_and_clear();
    if let Some(tokens) = tokens {
        tokens.finish()?;
    }
    report.tell(&plan, args.json, tokens_are_shown)?;
    Ok(if report.faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn read(path: &Path, format: Option<Format>) -> anyhow::Result<rows::File> {
    let bytes = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
        bytes
    } else {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    let text = String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))?;
    let text = text.trim_start_matches('\u{feff}');
    let by_name = match path.extension().and_then(|extension| extension.to_str()) {
        Some("json") => Some(Format::Json),
        Some("csv") => Some(Format::Csv),
        _ => None,
    };
    let by_content = if text.trim_start().starts_with(['[', '{']) { Format::Json } else { Format::Csv };
    match format.or(by_name).unwrap_or(by_content) {
        Format::Csv => rows::parse_csv(text),
        Format::Json => rows::parse_json(text),
    }
}

fn progress(rows: usize) -> ProgressBar {
    // Draws on a terminal alone.
    let style =
        ProgressStyle::with_template("{bar:40} {human_pos} of {human_len} devices, {per_sec}, {eta} left");
    ProgressBar::new(rows as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
