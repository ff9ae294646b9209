//! Who may call whom, by a tenant's own policies? `switchboard policy …`

mod ask;
mod kept;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, bail};
use boot::clock::unix_ms;
use bus::policies::{External, MAX_EXTERNAL_MS, Point, StoredSet};
use clap::{Args, Subcommand};
use hyper::Method;
use serde::{Deserialize, Serialize};
use serde_json::json;
use switchboard_authorizer::policy::PolicySet;
use switchboard_authorizer::policy::inquiry::{self, BUILT_IN_NAME};

use self::ask::{DiffArgs, ExplainArgs, WhoArgs, WhomArgs};
use self::kept::{Kept, Remote};
use crate::common::output::{count, grouped, note, say, say_json};
use crate::common::reach::ReachArgs;
use crate::common::recorded::ReasonArgs;
use crate::common::table::Table;

#[derive(Subcommand)]
pub(crate) enum PolicyVerb {
    /// Make policies live, each file in place of the text of its name; the first ones stand beside the built-in rule
    Put(PutArgs),
    /// Print the text of a policy
    Get(GetArgs),
    /// List a tenant's policies
    List(OneTenantArgs),
    /// Take policies away; without any, the built-in rule holds
    Remove(RemoveArgs),
    /// Make the shadow live that `put --shadow` has cast
    Promote(PromoteArgs),
    /// Take the shadow away
    DropShadow(PromoteArgs),
    /// Name an external decision point, which has to allow a call that the policies permit; or none
    External(ExternalArgs),
    /// Read files as `put` would, and change nothing
    Check(CheckArgs),
    /// Say whether a device, or an application, may call or list a device, why, and what would change it
    Explain(ExplainArgs),
    /// Whom may this device, or application, call or list?
    Whom(WhomArgs),
    /// Who may call or list this device?
    Who(WhoArgs),
    /// Say for how many pairs of a device or application and a device files would change the answer, and for which
    Diff(DiffArgs),
    /// List the versions of a tenant's policies
    History(OneTenantArgs),
    /// Make the policies of an earlier version live again, as a new one
    Rollback(RollbackArgs),
}

#[derive(Args)]
pub(crate) struct OneTenantArgs {
    /// Id or name of the tenant; needed when there are several
    #[arg(long)]
    tenant: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Args)]
pub(crate) struct PutArgs {
    /// Files in Cedar; the name of rooms.cedar is rooms
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Where the tenant's hours and weekdays are, as +01:00; stays as it is when not given, and is UTC at first
    #[arg(long, value_name = "+HH:MM", allow_hyphen_values = true, value_parser = utc_offset)]
    utc_offset: Option<i16>,
    /// Only beside what is live: authorizers count and log what it would decide otherwise
    #[arg(long, conflicts_with = "utc_offset")]
    shadow: bool,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    tenant: OneTenantArgs,
}

#[derive(Args)]
pub(crate) struct GetArgs {
    /// Its name
    name: String,
    #[command(flatten)]
    tenant: OneTenantArgs,
}

#[derive(Args)]
pub(crate) struct RemoveArgs {
    /// Their names
    #[arg(required = true)]
    names: Vec<String>,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    tenant: OneTenantArgs,
}

#[derive(Args)]
pub(crate) struct PromoteArgs {
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    tenant: OneTenantArgs,
}

#[derive(Args)]
pub(crate) struct ExternalArgs {
    /// nats:NAME, asked on the subject <prefix>.decide.<tenant>.NAME; http://HOST:PORT/PATH, which speaks AuthZEN's
    /// Access Evaluation API; or none
    #[arg(value_name = "POINT", value_parser = point)]
    point: Named,
    /// How long it may take at most; then the call is denied
    #[arg(long, value_name = "MS", default_value_t = 250, value_parser = external_ms())]
    timeout_ms: u32,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    tenant: OneTenantArgs,
}

/// The point that is named, if any.
#[derive(Clone)]
struct Named(Option<Point>);

#[derive(Args)]
pub(crate) struct CheckArgs {
    /// Files in Cedar
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Args)]
pub(crate) struct RollbackArgs {
    /// The version, as `history` lists it
    version: u64,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    tenant: OneTenantArgs,
}

pub(crate) async fn run(verb: PolicyVerb) -> anyhow::Result<ExitCode> {
    match verb {
        PolicyVerb::Put(args) => put(args).await,
        PolicyVerb::External(args) => external(args).await,
        PolicyVerb::Promote(args) => promote(args).await,
        PolicyVerb::DropShadow(args) => drop_shadow(args).await,
        PolicyVerb::Get(args) => get(args).await,
        PolicyVerb::List(args) => list(args).await,
        PolicyVerb::Remove(args) => remove(args).await,
        PolicyVerb::Check(args) => check(args).await,
        PolicyVerb::Explain(args) => return ask::explain(args).await,
        PolicyVerb::Whom(args) => ask::whom(args).await,
        PolicyVerb::Who(args) => ask::who(args).await,
        PolicyVerb::Diff(args) => return ask::diff(args).await,
        PolicyVerb::History(args) => history(args).await,
        PolicyVerb::Rollback(args) => rollback(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The texts of files, by the name of each.
fn files(paths: &[PathBuf]) -> anyhow::Result<BTreeMap<String, String>> {
    let mut texts = BTreeMap::new();
    for path in paths {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        if texts.insert(name_of(path), text).is_some() {
            bail!("two files have the name {:?}", name_of(path));
        }
    }
    Ok(texts)
}

fn name_of(path: &Path) -> String {
    path.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Reads texts, or tells all that is wrong with them.
fn read(texts: &BTreeMap<String, String>) -> anyhow::Result<PolicySet> {
    inquiry::read(texts).map_err(|faults| {
        let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("these policies are not accepted, and nothing was changed\n{}", lines.join("\n"))
    })
}

/// What became of a change.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChangedView<'a> {
    /// The version that is live now; of a shadow, the one that it would get.
    version: u64,
    texts: Vec<&'a str>,
    /// It is the shadow that has changed: nothing else is live than before.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    shadow: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    external: Option<String>,
}

impl<'a> ChangedView<'a> {
    fn of(version: u64, set: &'a StoredSet) -> Self {
        let texts = set.texts.keys().map(String::as_str).collect();
        let external = set.external.as_ref().map(|it| it.point.to_string());
        ChangedView { version, texts, shadow: false, external }
    }
}

async fn open(tenant: &OneTenantArgs, reason: ReasonArgs) -> anyhow::Result<Kept> {
    Kept::open(&tenant.reach, reason, tenant.tenant.as_deref()).await
}

async fn shadow(kept: &Kept) -> anyhow::Result<StoredSet> {
    let shadow = kept.shadow().await?;
    shadow.context("the tenant has no shadow: `policy put --shadow FILE` casts one")
}

async fn put(args: PutArgs) -> anyhow::Result<()> {
    let added = files(&args.files)?;
    let kept = open(&args.tenant, args.reason).await?;
    let is_first = kept.live.own().is_none();
    let mut texts = kept.live.texts();
    texts.extend(added);
    let set = read(&texts)?;
    if set.footprint().tells_every_device_apart() {
        note(
            "A policy reads names: decisions are then remembered by pairs of devices, which takes more memory.",
        );
    }
    let mut next = kept.next(texts);
    next.utc_offset_min = args.utc_offset.unwrap_or(next.utc_offset_min);
    let (count, names) =
        (count(set.len(), "policy"), next.texts.keys().cloned().collect::<Vec<_>>().join(", "));
    if args.shadow {
        kept.cast(next.version, Some(&next)).await?;
        if args.tenant.json {
            return say_json(&ChangedView { shadow: true, ..ChangedView::of(next.version, &next) });
        }
        say(format_args!("{count} in {names} judged beside what is live."));
        note("`policy diff --shadow` says what would change, `policy promote` makes it live.");
        return Ok(());
    }
    let version = kept.replace(next.clone()).await?;
    if args.tenant.json {
        return say_json(&ChangedView::of(version, &next));
    }
    say(format_args!("Version {version} is live: {count} in {names}."));
    if is_first {
        note(format_args!(
            "It begins with {BUILT_IN_NAME}, the rule that held until now: devices of one customer may call each \
             other. `policy remove {BUILT_IN_NAME}` takes it away."
        ));
    }
    Ok(())
}

async fn external(args: ExternalArgs) -> anyhow::Result<()> {
    let kept = open(&args.tenant, args.reason).await?;
    let external = args.point.0.map(|point| External { point, timeout_ms: args.timeout_ms });
    let set = StoredSet { external, ..kept.next(kept.live.texts()) };
    let version = kept.replace(set.clone()).await?;
    if args.tenant.json {
        return say_json(&ChangedView::of(version, &set));
    }
    match set.external {
        Some(External { point, timeout_ms }) => say(format_args!(
            "Version {version} is live: {point} is asked about every call that the policies permit, for {timeout_ms} \
             ms."
        )),
        None => say(format_args!("Version {version} is live: nobody else is asked.")),
    }
    Ok(())
}

async fn promote(args: PromoteArgs) -> anyhow::Result<()> {
    let kept = open(&args.tenant, args.reason).await?;
    let shadow = shadow(&kept).await?;
    let live = kept.live.counted();
    if shadow.version != live + 1 {
        bail!(
            "the shadow was cast beside version {}, and version {live} is live: cast it again",
            shadow.version.saturating_sub(1)
        );
    }
    // Those of an older program are checked anew.
    read(&shadow.texts)?;
    let set = StoredSet { utc_offset_min: shadow.utc_offset_min, ..kept.next(shadow.texts) };
    let version = kept.replace(set.clone()).await?;
    kept.cast(version, None).await?;
    if args.tenant.json {
        return say_json(&ChangedView::of(version, &set));
    }
    say(format_args!("Version {version} is live: what was the shadow."));
    Ok(())
}

async fn drop_shadow(args: PromoteArgs) -> anyhow::Result<()> {
    let kept = open(&args.tenant, args.reason).await?;
    let shadow = shadow(&kept).await?;
    kept.cast(shadow.version, None).await?;
    if args.tenant.json {
        let gone = StoredSet { texts: BTreeMap::new(), external: None, ..shadow };
        return say_json(&ChangedView { shadow: true, ..ChangedView::of(gone.version, &gone) });
    }
    say("There is no shadow any more.");
    Ok(())
}

async fn get(args: GetArgs) -> anyhow::Result<()> {
    let kept = open(&args.tenant, ReasonArgs::default()).await?;
    let texts = kept.live.texts();
    let Some(text) = texts.get(&args.name) else {
        bail!(
            "there is no policy {:?}; there are: {}",
            args.name,
            texts.keys().cloned().collect::<Vec<_>>().join(", ")
        );
    };
    if args.tenant.json {
        return say_json(&json!({"name": args.name, "version": kept.live.version(), "text": text}));
    }
    say(text.trim_end());
    Ok(())
}

#[derive(Serialize)]
struct TextView<'a> {
    name: &'a str,
    bytes: usize,
    policies: usize,
}

async fn list(args: OneTenantArgs) -> anyhow::Result<()> {
    let kept = open(&args, ReasonArgs::default()).await?;
    let texts = kept.live.texts();
    let set = kept.set()?;
    let mut by_text: BTreeMap<&str, usize> = BTreeMap::new();
    for source in set.sources() {
        *by_text.entry(&source.file).or_default() += 1;
    }
    let views = texts.iter().map(|(name, text)| TextView {
        name,
        bytes: text.len(),
        policies: by_text.get(name.as_str()).copied().unwrap_or_default(),
    });
    if args.json {
        return say_json(&views.collect::<Vec<_>>());
    }
    let mut table = Table::new(&["NAME", "POLICIES", "BYTES"]);
    views.for_each(|view| table.row([view.name.to_owned(), view.policies.to_string(), grouped(view.bytes)]));
    table.print();
    match kept.live.own() {
        Some(live) => {
            note(format_args!("version {}, hours at UTC{}", live.version, offset(live.utc_offset_min)))
        }
        None => note("The tenant has no policies of its own: the built-in rule holds."),
    }
    if let Some(shadow) = kept.shadow().await? {
        let texts: Vec<_> = shadow.texts.into_keys().collect();
        note(format_args!("A shadow is judged beside them: {}.", texts.join(", ")));
    }
    Ok(())
}

async fn remove(args: RemoveArgs) -> anyhow::Result<()> {
    let kept = open(&args.tenant, args.reason).await?;
    let Some(live) = kept.live.own() else {
        bail!("the tenant has no policies of its own");
    };
    let mut texts = live.texts.clone();
    for name in &args.names {
        if texts.remove(name).is_none() {
            bail!(
                "there is no policy {name:?}; there are: {}",
                live.texts.keys().cloned().collect::<Vec<_>>().join(", ")
            );
        }
    }
    read(&texts)?;
    let set = kept.next(texts);
    let version = kept.replace(set.clone()).await?;
    if args.tenant.json {
        return say_json(&ChangedView::of(version, &set));
    }
    say(format_args!("Version {version} is live."));
    if set.texts.is_empty() {
        note("The tenant has no policies any more: the built-in rule holds again.");
    }
    Ok(())
}

/// What is said of files that are accepted.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct CheckedView {
    policies: usize,
    labels: Vec<String>,
    reads_names: bool,
}

async fn check(args: CheckArgs) -> anyhow::Result<()> {
    let texts = files(&args.files)?;
    // What a running system accepts is its own to say.
    let view: CheckedView = match Remote::of(&args.reach, &ReasonArgs::default(), None).await? {
        Some(remote) => remote.api.ask(Method::POST, "policies/check", Some(json!({"texts": texts}))).await?,
        None => {
            let set = read(&texts)?;
            CheckedView {
                policies: set.len(),
                labels: set.footprint().labels.keys().cloned().collect(),
                reads_names: set.footprint().tells_every_device_apart(),
            }
        }
    };
    if args.json {
        return say_json(&view);
    }
    say(format_args!("{}, accepted.", count(view.policies, "policy")));
    if !view.labels.is_empty() {
        note(format_args!("They read the labels: {}.", view.labels.join(", ")));
    }
    if view.reads_names {
        note("They read names: decisions are then remembered by pairs of devices, which takes more memory.");
    }
    Ok(())
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct VersionView {
    version: u64,
    at_ms: u64,
    who: String,
    why: String,
    texts: Vec<String>,
}

impl From<StoredSet> for VersionView {
    fn from(set: StoredSet) -> Self {
        let StoredSet { version, at_ms, who, why, texts, .. } = set;
        VersionView { version, at_ms, who, why, texts: texts.into_keys().collect() }
    }
}

async fn history(args: OneTenantArgs) -> anyhow::Result<()> {
    let views = open(&args, ReasonArgs::default()).await?.history().await?;
    if args.json {
        return say_json(&views);
    }
    let mut table = Table::new(&["VERSION", "HOURS AGO", "WHO", "TEXTS", "WHY"]);
    let now_ms = unix_ms();
    for view in views {
        let hours = now_ms.saturating_sub(view.at_ms) / 3_600_000;
        let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let texts = or_none(&view.texts.join(" "));
        let (who, why) = (or_none(&view.who), or_none(&view.why));
        table.row([view.version.to_string(), hours.to_string(), who, texts, why]);
    }
    table.print();
    Ok(())
}

async fn rollback(args: RollbackArgs) -> anyhow::Result<()> {
    let kept = open(&args.tenant, args.reason).await?;
    let Some(set) = kept.version(args.version).await? else {
        bail!("version {} is not kept: `policy history` lists those that are", args.version);
    };
    // Those of an older program are checked anew.
    read(&set.texts)?;
    let next = kept.next(set.texts);
    let next = StoredSet { external: set.external, utc_offset_min: set.utc_offset_min, ..next };
    let version = kept.replace(next.clone()).await?;
    if args.tenant.json {
        return say_json(&ChangedView::of(version, &next));
    }
    say(format_args!("Version {version} is live: the policies of version {}.", args.version));
    Ok(())
}

fn offset(minutes: i16) -> String {
    let sign = if minutes < 0 { '-' } else { '+' };
    format!("{sign}{:02}:{:02}", minutes.abs() / 60, minutes.abs() % 60)
}

fn utc_offset(text: &str) -> Result<i16, String> {
    let parse = || {
        let (sign, rest) = match text.split_at_checked(1)? {
            ("+", rest) => (1, rest),
            ("-", rest) => (-1, rest),
            _ => return None,
        };
        let (hours, minutes) = rest.split_once(':')?;
        let (hours, minutes) = (hours.parse::<u8>().ok()?, minutes.parse::<u8>().ok()?);
        (hours <= 14 && minutes < 60).then(|| sign * (i16::from(hours) * 60 + i16::from(minutes)))
    };
    parse().ok_or_else(|| "an offset from UTC is +HH:MM or -HH:MM, at most 14 hours".to_owned())
}

fn external_ms() -> impl clap::builder::TypedValueParser<Value = u32> {
    clap::value_parser!(u32).range(1..=i64::from(MAX_EXTERNAL_MS))
}

fn point(text: &str) -> Result<Named, String> {
    if text == "none" {
        return Ok(Named(None));
    }
    text.parse().map(|point| Named(Some(point)))
}

fn hour(text: &str) -> Result<u8, String> {
    let (hours, minutes) = text.split_once(':').unwrap_or((text, "0"));
    match (hours.parse::<u8>(), minutes.parse::<u8>()) {
        (Ok(hour), Ok(0..60)) if hour < 24 => Ok(hour),
        _ => Err("a time of day is HH:MM; policies see its hour".to_owned()),
    }
}
