//! How do many devices get into the registry at once? `switchboard device import`: what fits is added, what does not
//! is named with its place and reason.

mod over;
mod plan;
mod report;
mod tokens;

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::{Read, stdin};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use bus::changes::Changes;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use sha2::{Digest, Sha256};

pub(crate) use self::plan::{Plan, Taking};
use self::tokens::TokenFile;
use crate::common::output::{grouped, note};
use crate::common::reach::EXIT_INTERRUPTED;
use crate::common::recorded::{self, ChangeArgs};
use crate::common::registrar::{self, Registrar};
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
refused. Beyond 20 the list is in a file. Tokens that were made up are shown once; --tokens-out keeps them.

The same file again changes nothing: who has no id in it is known by tenant, customer and name. Tokens are in a file \
before their devices exist, --tokens-out or one beside the file that is read; an import that was interrupted (exit \
status 130) goes on with them when it is typed again.

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
    /// Write the devices with their tokens to this file (CSV, readable by you alone) instead of showing them; what it
    /// holds already stays
    #[arg(long, value_name = "FILE")]
    tokens_out: Option<PathBuf>,
    /// Where refused rows go when there are more than 20 [default: FILE.refused.csv]
    #[arg(long, value_name = "FILE")]
    refused_out: Option<PathBuf>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Csv,
    Json,
}

pub(crate) async fn run(args: ImportArgs) -> anyhow::Result<ExitCode> {
    let text = read(&args.file)?;
    let file = parse(&text, &args.file, args.format)?;
    let beside = |ending| beside(&args.file, &text, ending);
    let refused_out = args.refused_out.clone().unwrap_or_else(|| beside("refused"));
    let registrar = args.change.registrar().await?;
    let known = registrar.known().await?;
    let tokens = TokenFile::open(args.tokens_out.as_deref(), beside("tokens"))?;
    // Rows that name no tenant are of the key's own, where one is shown.
    let own = match &registrar {
        Registrar::Api(api) if args.tenant.is_none() => Some(registrar::own_tenant(api).await?.to_string()),
        _ => None,
    };
    let taking = Taking {
        tenant: args.tenant.as_deref().or(own.as_deref()),
        create: args.create,
        weak_tokens: args.weak_token,
        kept: Some(&tokens.kept),
    };
    let plan = Plan::of(file, &known, &taking)?;
    let is_kept = tokens.is_asked_for || plan.origins.iter().any(|origin| origin.is_made_up);
    let interrupted = boot::shutdown::signals().context("cannot hear of signals")?;
    if is_kept {
        tokens.save(&plan, &HashSet::new())?;
    }
    let progress = progress(plan.devices.len());
    let report = match &registrar {
        Registrar::Nats(Changes { registry, recorder }) => {
            let report = plan.apply(registry, interrupted.cancelled(), || progress.inc(1));
            recorded::change(recorder, plan.entries(), report).await
        }
        Registrar::Api(api) => {
            let standing = known.devices.keys().copied().collect();
            let stop = interrupted.cancelled();
            plan.apply_over(&registrar, api, &standing, stop, || progress.inc(1)).await
        }
    };
    progress.finish_and_clear();
    let go_on = || format!("The same command again goes on, with the tokens in {}.", tokens.path.display());
    let report = match (report, is_kept) {
        (Err(error), true) => return Err(error.context(go_on())),
        (report, _) => report?,
    };
    if is_kept {
        tokens.save(&plan, &report.refused)?;
    }
    let is_whole = report.left == 0;
    report.tell(&plan, args.change.json, !tokens.is_asked_for && is_whole, &refused_out)?;
    match (is_kept, is_whole) {
        (false, true) => {}
        (false, false) => note("The same command again goes on."),
        (true, false) => note(go_on()),
        (true, true) if tokens.is_asked_for => note(format_args!("Tokens are in {}.", tokens.path.display())),
        (true, true) => tokens.shown(&plan)?,
    }
    Ok(match report.faults.is_empty() {
        _ if !is_whole => EXIT_INTERRUPTED.into(),
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn read(path: &Path) -> anyhow::Result<String> {
    let bytes = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        stdin().read_to_end(&mut bytes).context("cannot read standard input")?;
        bytes
    } else {
        std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?
    };
    String::from_utf8(bytes).with_context(|| format!("{} is not UTF-8", path.display()))
}

/// A file beside the one that was read, the same for the same import; beside standard input is where the command runs.
fn beside(path: &Path, text: &str, ending: &str) -> PathBuf {
    let mut name: OsString = match path.as_os_str().to_str() {
        Some("-") => {
            let digest = Sha256::digest(text);
            let hex: String = digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect();
            format!("import-{hex}").into()
        }
        _ => path.as_os_str().to_owned(),
    };
    name.push(format!(".{ending}.csv"));
    name.into()
}

fn parse(text: &str, path: &Path, format: Option<Format>) -> anyhow::Result<rows::File> {
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
    let style = ProgressStyle::with_template(
        "{bar:40} {human_pos} of {human_len} devices, {rate} a second, {eta} left",
    );
    let whole = |state: &ProgressState, out: &mut dyn std::fmt::Write| {
        // A rate fits, and nobody hears of a terminal that is gone.
        let _ = out.write_str(&grouped(state.per_sec() as usize));
    };
    let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).with_key("rate", whole);
    ProgressBar::new(rows as u64).with_style(style)
}
