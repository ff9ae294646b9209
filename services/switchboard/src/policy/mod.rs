//! Who may call whom, by a tenant's own policies? `switchboard policy …`

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use boot::clock::unix_ms;
use bus::StoreError;
use bus::audit::{Entry, From};
use bus::changes::entry;
use bus::policies::{External, MAX_EXTERNAL_MS, Point, Policies, StoredSet};
use bus::registry::{App, Device, Registry, Snapshot};
use clap::{Args, Subcommand, ValueEnum};
use rpc::{AppId, DEFAULT_METHOD, DeviceId, Protocol, TenantId};
use serde::Serialize;
use switchboard_authorizer::external::question::Question;
use switchboard_authorizer::external::{Asker, Objection};
use switchboard_authorizer::policy::{
    Action, AppFacts, BUILT_IN, Context, Facts, PolicySet, explain, survey,
};

use crate::common::find::{self, PickArgs};
use crate::common::output::{count, grouped, note, say, say_json};
use crate::common::reach::{ReachArgs, Reached};
use crate::common::recorded::{self, ReasonArgs};
use crate::common::table::Table;
use crate::{app, audit};

/// The name of the text that a tenant's policies begin with.
const BUILT_IN_NAME: &str = "built-in";
/// Changes for applications that are named as examples.
const MAX_APP_EXAMPLES: usize = 20;
/// How far back denied calls are looked for.
const LATELY: Duration = Duration::from_secs(7 * 24 * 3_600);

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
    /// Whom may this device call or list?
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
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wanted {
    /// sendMsg
    #[value(alias = "sendMsg")]
    Call,
    /// To be in the answer to getDevices
    #[value(alias = "getDevices")]
    List,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Over {
    Mqtt,
    Http,
    Coap,
}

/// What a decision is asked for.
#[derive(Args)]
struct AskedArgs {
    /// At this hour of the tenant's day, as 22:00; now when not given
    #[arg(long, value_name = "HH:MM", value_parser = hour)]
    at: Option<u8>,
    /// On this weekday, from 1 (Monday) to 7; today when not given
    #[arg(long, value_name = "DAY", value_parser = clap::value_parser!(u8).range(1..=7))]
    weekday: Option<u8>,
    /// How the caller is connected
    #[arg(long, value_enum, default_value = "mqtt")]
    protocol: Over,
    /// The call wants no answer
    #[arg(long)]
    oneway: bool,
    /// How long the call may take
    #[arg(long, value_name = "MS", default_value_t = 10_000)]
    timeout_ms: u32,
    /// How long its body is, in bytes
    #[arg(long, value_name = "BYTES", default_value_t = 2)]
    size: u32,
}

#[derive(Args)]
pub(crate) struct ExplainArgs {
    /// The device that wants it: id, name, or an ending that only its name has
    #[arg(long, value_name = "DEVICE", required_unless_present = "app")]
    from: Option<String>,
    /// The application that wants it, in place of a device: id or name
    #[arg(long, value_name = "APP", conflicts_with_all = ["from", "protocol"])]
    app: Option<String>,
    /// By which method the application calls
    #[arg(long, value_name = "METHOD", default_value = DEFAULT_METHOD, requires = "app")]
    by: String,
    /// The other device
    #[arg(long, value_name = "DEVICE")]
    to: String,
    /// What it wants; sendMsg and getDevices go as well
    #[arg(long, visible_alias = "method", value_enum, default_value = "call")]
    action: Wanted,
    #[command(flatten)]
    asked: AskedArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Args)]
pub(crate) struct WhomArgs {
    /// The device that wants it
    #[arg(long = "may", value_name = "DEVICE")]
    device: String,
    /// What it wants
    #[arg(value_enum, default_value = "call")]
    action: Wanted,
    #[command(flatten)]
    asked: AskedArgs,
    #[command(flatten)]
    pick: PickArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Args)]
pub(crate) struct WhoArgs {
    /// The device that is called
    #[arg(long, value_name = "DEVICE", required_unless_present = "may_list")]
    may_call: Option<String>,
    /// The device that is listed
    #[arg(long, value_name = "DEVICE", conflicts_with = "may_call")]
    may_list: Option<String>,
    #[command(flatten)]
    asked: AskedArgs,
    #[command(flatten)]
    pick: PickArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// Any pair more
    Widen,
    /// Any difference
    Change,
}

#[derive(Args)]
pub(crate) struct DiffArgs {
    /// Files in Cedar, put beside what is live as `put` would
    #[arg(required_unless_present = "shadow", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The shadow instead
    #[arg(long, conflicts_with = "files")]
    shadow: bool,
    /// Only for this application (id or name); for all devices and applications of the tenant when not given
    #[arg(long, value_name = "APP")]
    app: Option<String>,
    /// End with status 1 if so
    #[arg(long, value_enum)]
    fail_on: Option<FailOn>,
    #[command(flatten)]
    asked: AskedArgs,
    #[command(flatten)]
    tenant: OneTenantArgs,
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
        PolicyVerb::Check(args) => check(&args),
        PolicyVerb::Explain(args) => return explained(args).await,
        PolicyVerb::Whom(args) => whom(args).await,
        PolicyVerb::Who(args) => who(args).await,
        PolicyVerb::Diff(args) => return diff(args).await,
        PolicyVerb::History(args) => history(args).await,
        PolicyVerb::Rollback(args) => rollback(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

/// One tenant's policies, and the registry that they are about.
struct Opened {
    reached: Reached,
    registry: Registry,
    known: Snapshot,
    policies: Policies,
    tenant: TenantId,
    live: Option<StoredSet>,
}

impl Opened {
    async fn open(
        reach: &ReachArgs,
        of: impl AsyncFnOnce(&Registry, &Snapshot) -> anyhow::Result<TenantId>,
    ) -> anyhow::Result<Self> {
        let reached = reach.bus().await?;
        let registry = Registry::open(&reached.bus).await.context("cannot open the registry")?;
        let known = registry.load().await?;
        let policies = Policies::open(&reached.bus).await.context("cannot open the policies")?;
        let tenant = of(&registry, &known).await?;
        let live = policies.live(tenant).await?;
        Ok(Opened { reached, registry, known, policies, tenant, live })
    }

    async fn of_tenant(args: &OneTenantArgs) -> anyhow::Result<Self> {
        let of = async |_: &Registry, known: &Snapshot| Ok(find::tenant(known, args.tenant.as_deref())?.0);
        Opened::open(&args.reach, of).await
    }

    /// Those of a device's tenant, and the device.
    async fn around(reach: &ReachArgs, named: &str) -> anyhow::Result<(Self, DeviceId, Device)> {
        let mut found = None;
        let of = async |registry: &Registry, _: &Snapshot| {
            let (id, device) = find::device_by_ending(registry, named).await?;
            let tenant = device.tenant;
            found = Some((id, device));
            Ok(tenant)
        };
        let opened = Opened::open(reach, of).await?;
        let (id, device) = found.context("the device was looked up")?;
        Ok((opened, id, device))
    }

    /// What changes for the tenant's applications, or one of them, within their scopes.
    fn difference_for_apps(
        &self,
        args: &DiffArgs,
        old: &PolicySet,
        new: &PolicySet,
        devices: &[Facts],
    ) -> anyhow::Result<Vec<(AppId, Action, DeviceId, bool)>> {
        let apps: Vec<(AppId, &App)> = match &args.app {
            Some(named) => vec![app::named(&self.known, named, Some(self.tenant))?],
            None => {
                let all = self.known.apps.iter().filter(|(_, app)| app.tenant == self.tenant);
                all.map(|(id, app)| (*id, app)).collect()
            }
        };
        let at = [Wanted::Call, Wanted::List];
        let at = at.map(|it| asked_by_app(it, &args.asked, DEFAULT_METHOD, self.utc_offset_min()));
        let mut found = Vec::new();
        for (id, app) in apps {
            let reached = devices.iter().filter(|it| app.reaches(it.customer, &it.labels));
            let reached: Vec<_> = reached.cloned().collect();
            let changed = survey::app_difference(old, new, &AppFacts::of(id, app), &reached, &at);
            found.extend(changed.into_iter().map(|(action, device, now)| (id, action, device, now)));
        }
        Ok(found)
    }

    /// The texts that are live, or what the first ones stand beside.
    fn texts(&self) -> BTreeMap<String, String> {
        match &self.live {
            Some(live) if !live.texts.is_empty() => live.texts.clone(),
            _ => [(BUILT_IN_NAME.to_owned(), BUILT_IN.to_owned())].into(),
        }
    }

    fn utc_offset_min(&self) -> i16 {
        self.live.as_ref().map_or(0, |live| live.utc_offset_min)
    }

    /// The policies in force: without any of the tenant's own, the built-in rule.
    fn set(&self) -> anyhow::Result<PolicySet> {
        read(&self.texts())
    }

    fn devices(&self, takes: impl Fn(&Device) -> bool) -> Vec<Facts> {
        let is_meant = |device: &Device| device.tenant == self.tenant && takes(device);
        let of_tenant = self.known.devices.iter().filter(|(_, device)| is_meant(device));
        let mut devices: Vec<_> = of_tenant.map(|(id, device)| facts(*id, device)).collect();
        devices.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        devices
    }

    /// How many calls the audit has as denied within a week, and how many of those such policies would allow: at their
    /// own time of day; what a record does not have, as it is asked.
    async fn denied_lately(
        &self,
        new: &PolicySet,
        devices: &[Facts],
        asked: &AskedArgs,
    ) -> anyhow::Result<(u64, u64)> {
        let known: HashMap<_, _> = devices.iter().map(|facts| (facts.id, facts)).collect();
        let (mut denials, mut now_allowed) = (0, 0);
        let log = recorded::log(&self.reached.bus, &self.reached.settings);
        let since = SystemTime::now().checked_sub(LATELY).unwrap_or(UNIX_EPOCH);
        audit::each(&log, Some(self.tenant), From::Time(since), |stored| {
            let Some(record) = stored.record().filter(|record| record.entry.is_of("denied.call")) else {
                return;
            };
            let [caller, target] = record.entry.devices.as_slice() else { return };
            let (Some(caller), Some(target)) = (known.get(caller), known.get(target)) else { return };
            let when = UNIX_EPOCH + Duration::from_millis(record.at_ms);
            let (action, context) = asked_at(when, Wanted::Call, asked, self.utc_offset_min());
            denials += 1;
            now_allowed += u64::from(new.evaluate(*caller, action, target, &context).is_allowed);
        })
        .await?;
        Ok((denials, now_allowed))
    }

    /// What would be live next.
    fn next(&self, texts: BTreeMap<String, String>, utc_offset_min: i16, reason: &ReasonArgs) -> StoredSet {
        let version = self.live.as_ref().map_or(0, |live| live.version) + 1;
        let at_ms = unix_ms();
        let (who, why) = (reason.who.clone(), reason.why.clone());
        let external = self.live.as_ref().and_then(|live| live.external.clone());
        StoredSet { version, utc_offset_min, texts, at_ms, who, why, external }
    }

    async fn shadow(&self) -> anyhow::Result<StoredSet> {
        let shadow = self.policies.shadow(self.tenant).await?;
        shadow.context("the tenant has no shadow: `policy put --shadow FILE` casts one")
    }

    /// Casts a shadow, or takes it away.
    async fn cast(&self, shadow: Option<&StoredSet>, version: u64, reason: ReasonArgs) -> anyhow::Result<()> {
        let recorder = reason.recorder(&self.reached.bus, &self.reached.settings);
        let what = match shadow {
            Some(shadow) => becomes(&self.texts(), &shadow.texts),
            None => "none".to_owned(),
        };
        let entry = Entry { version: Some(version), ..entry("policy.shadow", [], what) };
        let cast = self.policies.cast_shadow(self.tenant, shadow);
        Ok(recorder.changes(vec![(self.tenant, entry)], cast).await?)
    }

    async fn make_live(
        &self,
        texts: BTreeMap<String, String>,
        utc_offset_min: i16,
        reason: ReasonArgs,
    ) -> anyhow::Result<u64> {
        self.make_set_live(self.next(texts, utc_offset_min, &reason), reason).await
    }

    async fn make_set_live(&self, mut set: StoredSet, reason: ReasonArgs) -> anyhow::Result<u64> {
        let version = set.version;
        // Without policies the built-in rule decides, and nobody else.
        set.external.take_if(|_| set.texts.is_empty());
        let (texts, external) =
            self.live.as_ref().map(|live| (live.texts.clone(), live.external.clone())).unwrap_or_default();
        let mut what = becomes(&texts, &set.texts);
        if set.external != external {
            let point =
                set.external.as_ref().map_or("nobody".to_owned(), |external| external.point.to_string());
            what = format!("{what}{}{point} is asked besides", if what.is_empty() { "" } else { ", " });
        }
        let recorder = reason.recorder(&self.reached.bus, &self.reached.settings);
        let changed = Entry { version: Some(version), ..entry("policy.change", [], what) };
        let replace = async {
            self.policies.replace(self.tenant, &set).await.map_err(|error| match error {
                StoreError::Contended => anyhow::anyhow!(
                    "somebody else has changed these policies just now: look with `policy list`, and try again"
                ),
                error => error.into(),
            })
        };
        recorded::change(&recorder, vec![(self.tenant, changed)], replace).await?;
        Ok(version)
    }
}

/// What becomes of each text, in words.
fn becomes(old: &BTreeMap<String, String>, new: &BTreeMap<String, String>) -> String {
    let removed = old.keys().filter(|name| !new.contains_key(*name)).map(|name| format!("{name} removed"));
    let others = new.iter().filter_map(|(name, text)| match old.get(name) {
        Some(old) if old == text => None,
        Some(_) => Some(format!("{name} changed")),
        None => Some(format!("{name} added")),
    });
    removed.chain(others).collect::<Vec<_>>().join(", ")
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
    let texts: Vec<_> = texts.iter().map(|(name, text)| (name.clone(), text.clone())).collect();
    PolicySet::read(&texts).map_err(|faults| {
        let lines: Vec<_> = faults.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("these policies are not accepted, and nothing was changed\n{}", lines.join("\n"))
    })
}

async fn put(args: PutArgs) -> anyhow::Result<()> {
    let added = files(&args.files)?;
    let opened = Opened::of_tenant(&args.tenant).await?;
    let is_first = opened.live.as_ref().is_none_or(|live| live.texts.is_empty());
    let mut texts = opened.texts();
    texts.extend(added);
    let set = read(&texts)?;
    if set.footprint().tells_every_device_apart() {
        note(
            "A policy reads names: decisions are then remembered by pairs of devices, which takes more memory.",
        );
    }
    let utc_offset_min = args.utc_offset.unwrap_or(opened.utc_offset_min());
    let names: Vec<_> = texts.keys().cloned().collect();
    if args.shadow {
        let shadow = opened.next(texts, utc_offset_min, &args.reason);
        opened.cast(Some(&shadow), shadow.version, args.reason).await?;
        say(format_args!(
            "{} in {} judged beside what is live.",
            count(set.len(), "policy"),
            names.join(", ")
        ));
        note("`policy diff --shadow` says what would change, `policy promote` makes it live.");
        return Ok(());
    }
    let version = opened.make_live(texts, utc_offset_min, args.reason).await?;
    say(format_args!("Version {version} is live: {} in {}.", count(set.len(), "policy"), names.join(", ")));
    if is_first {
        note(format_args!(
            "It begins with {BUILT_IN_NAME}, the rule that held until now: devices of one customer may call each \
             other. `policy remove {BUILT_IN_NAME}` takes it away."
        ));
    }
    Ok(())
}

async fn external(args: ExternalArgs) -> anyhow::Result<()> {
    let opened = Opened::of_tenant(&args.tenant).await?;
    let external = args.point.0.map(|point| External { point, timeout_ms: args.timeout_ms });
    let mut set = opened.next(opened.texts(), opened.utc_offset_min(), &args.reason);
    set.external.clone_from(&external);
    let version = opened.make_set_live(set, args.reason).await?;
    match external {
        Some(External { point, timeout_ms }) => say(format_args!(
            "Version {version} is live: {point} is asked about every call that the policies permit, for {timeout_ms} \
             ms."
        )),
        None => say(format_args!("Version {version} is live: nobody else is asked.")),
    }
    Ok(())
}

async fn promote(args: PromoteArgs) -> anyhow::Result<()> {
    let opened = Opened::of_tenant(&args.tenant).await?;
    let shadow = opened.shadow().await?;
    let live = opened.live.as_ref().map_or(0, |live| live.version);
    if shadow.version != live + 1 {
        bail!(
            "the shadow was cast beside version {}, and version {live} is live: cast it again",
            shadow.version - 1
        );
    }
    // Those of an older program are checked anew.
    read(&shadow.texts)?;
    let reason = args.reason.clone();
    let version = opened.make_live(shadow.texts, shadow.utc_offset_min, args.reason).await?;
    opened.cast(None, version, reason).await?;
    say(format_args!("Version {version} is live: what was the shadow."));
    Ok(())
}

async fn drop_shadow(args: PromoteArgs) -> anyhow::Result<()> {
    let opened = Opened::of_tenant(&args.tenant).await?;
    let shadow = opened.shadow().await?;
    opened.cast(None, shadow.version, args.reason).await?;
    say("There is no shadow any more.");
    Ok(())
}

async fn get(args: GetArgs) -> anyhow::Result<()> {
    let opened = Opened::of_tenant(&args.tenant).await?;
    let texts = opened.texts();
    let Some(text) = texts.get(&args.name) else {
        bail!(
            "there is no policy {:?}; there are: {}",
            args.name,
            texts.keys().cloned().collect::<Vec<_>>().join(", ")
        );
    };
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
    let opened = Opened::of_tenant(&args).await?;
    let texts = opened.texts();
    let set = opened.set()?;
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
    match opened.live.as_ref().filter(|live| !live.texts.is_empty()) {
        Some(live) => {
            note(format_args!("version {}, hours at UTC{}", live.version, offset(live.utc_offset_min)))
        }
        None => note("The tenant has no policies of its own: the built-in rule holds."),
    }
    if let Some(shadow) = opened.policies.shadow(opened.tenant).await? {
        let texts: Vec<_> = shadow.texts.into_keys().collect();
        note(format_args!("A shadow is judged beside them: {}.", texts.join(", ")));
    }
    Ok(())
}

async fn remove(args: RemoveArgs) -> anyhow::Result<()> {
    let opened = Opened::of_tenant(&args.tenant).await?;
    let Some(live) = opened.live.as_ref().filter(|live| !live.texts.is_empty()) else {
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
    let is_empty = texts.is_empty();
    read(&texts)?;
    let version = opened.make_live(texts, live.utc_offset_min, args.reason).await?;
    say(format_args!("Version {version} is live."));
    if is_empty {
        note("The tenant has no policies any more: the built-in rule holds again.");
    }
    Ok(())
}

fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let set = read(&files(&args.files)?)?;
    say(format_args!("{}, accepted.", count(set.len(), "policy")));
    let labels: Vec<_> = set.footprint().labels.keys().map(String::as_str).collect();
    if !labels.is_empty() {
        note(format_args!("They read the labels: {}.", labels.join(", ")));
    }
    if set.footprint().tells_every_device_apart() {
        note("They read names: decisions are then remembered by pairs of devices, which takes more memory.");
    }
    Ok(())
}

#[derive(Serialize)]
struct ExplainView<'a> {
    from: &'a str,
    to: &'a str,
    action: &'a str,
    /// 0: the built-in rule.
    version: u64,
    #[serde(flatten)]
    explanation: explain::Explanation,
    /// What the external decision point says, where the policies permit a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    external: Option<ExternalView>,
}

#[derive(Serialize)]
struct ExternalView {
    point: String,
    allowed: bool,
    /// Why not; none when it allows.
    objection: Option<&'static str>,
    reason: String,
}

/// Asks a tenant's external decision point as an authorizer would, from here.
async fn asked_besides(
    opened: &Opened,
    caller: &Facts,
    target: &Facts,
    context: &Context,
) -> Option<ExternalView> {
    let live = opened.live.as_ref()?;
    let External { point, timeout_ms } = live.external.as_ref()?;
    let asker = Asker::new(&opened.reached.bus, &opened.reached.settings.authorizer);
    let question = Question::of(opened.tenant, live.version, caller, target, context);
    let wait = Duration::from_millis((*timeout_ms).into());
    let (allowed, objection, reason) = match asker.ask(opened.tenant, point, &question, wait).await {
        Ok(answer) if answer.is_allowed => (true, None, answer.reason),
        Ok(answer) => (false, Some(Objection::Denied), answer.reason),
        Err(objection) => (false, Some(objection), String::new()),
    };
    Some(ExternalView {
        point: point.to_string(),
        allowed,
        objection: objection.map(Objection::as_str),
        reason,
    })
}

async fn explained(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let Some(from) = &args.from else { return explained_of_app(&args).await };
    let (opened, from, caller) = Opened::around(&args.reach, from).await.context("--from")?;
    let (to, target) = find::device_by_ending(&opened.registry, &args.to).await.context("--to")?;
    if caller.tenant != target.tenant {
        bail!(
            "{:?} and {:?} are of different tenants: to each other they do not exist",
            caller.name,
            target.name
        );
    }
    let set = opened.set()?;
    let (action, context) = asked(args.action, &args.asked, opened.utc_offset_min());
    let (caller_facts, target_facts) = (facts(from, &caller), facts(to, &target));
    let explanation = explain(&set, &caller_facts, action, &target_facts, &context);
    let version = opened.live.as_ref().filter(|live| !live.texts.is_empty()).map_or(0, |live| live.version);
    // Of lists nobody else is asked.
    let external = match (explanation.allowed, action) {
        (true, Action::Call) => asked_besides(&opened, &caller_facts, &target_facts, &context).await,
        _ => None,
    };
    let is_allowed = explanation.allowed && external.as_ref().is_none_or(|external| external.allowed);
    let status = if is_allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.json {
        let action = action.as_str();
        let (from, to) = (&caller.name, &target.name);
        say_json(&ExplainView { from, to, action, version, explanation, external })?;
        return Ok(status);
    }
    let by = match explanation.decided_by.as_slice() {
        [] => "no policy permits it".to_owned(),
        several => several.join(", "),
    };
    say_why(&caller.name, (action, &context), &target.name, &by, version, &explanation);
    if let Some(ExternalView { point, objection, reason, .. }) = external {
        let answer = objection.unwrap_or("allowed");
        let reason = if reason.is_empty() { String::new() } else { format!(", {reason:?}") };
        say(format_args!("And {point}, asked from here: {answer}{reason}"));
    }
    Ok(status)
}

fn say_why(
    from: &str,
    (action, context): (Action, &Context),
    to: &str,
    by: &str,
    version: u64,
    explanation: &explain::Explanation,
) {
    let answer = if explanation.allowed { "allowed" } else { "denied" };
    say(format_args!("{from} {} {to}: {answer}, {by}", action.as_str()));
    say(match version {
        0 => "The built-in rule, as Cedar".to_owned(),
        version => format!("Version {version}, hour {}, weekday {}", context.hour, context.weekday),
    });
    say(explanation);
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AppExplainView<'a> {
    app: &'a str,
    to: &'a str,
    action: &'a str,
    version: u64,
    /// Whether the device is in its scope, and the method, of a call.
    in_scope: bool,
    #[serde(flatten)]
    explanation: explain::Explanation,
}

/// Whether an application may: its scope first, then what the policies forbid.
async fn explained_of_app(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let named = args.app.as_deref().unwrap_or_default();
    let of = async |_: &Registry, known: &Snapshot| Ok(app::named(known, named, None)?.1.tenant);
    let opened = Opened::open(&args.reach, of).await?;
    let (id, found) = app::named(&opened.known, named, None)?;
    let (to, target) = find::device_by_ending(&opened.registry, &args.to).await.context("--to")?;
    let set = opened.set()?;
    let (action, context) = asked_by_app(args.action, &args.asked, &args.by, opened.utc_offset_min());
    let of_scope = [
        (target.tenant == found.tenant, "the device is of another tenant"),
        (found.reaches(target.customer, &target.labels), "the device is outside of its scope"),
        (action == Action::List || found.may_call(&args.by), "the method is outside of its scope"),
    ];
    let why_not = of_scope.iter().find(|(holds, _)| !holds).map(|(_, why)| *why);
    let mut explanation = explain(&set, &AppFacts::of(id, found), action, &facts(to, &target), &context);
    let by = match (why_not, explanation.decided_by.as_slice()) {
        (Some(why), _) => why.to_owned(),
        (None, _) if explanation.allowed => format!("its scope is {}", app::scope(&opened.known, found)),
        (None, several) => several.join(", "),
    };
    explanation.allowed &= why_not.is_none();
    let status = if explanation.allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    let version = opened.live.as_ref().filter(|live| !live.texts.is_empty()).map_or(0, |live| live.version);
    let (app, to, in_scope) = (found.name.as_str(), target.name.as_str(), why_not.is_none());
    if args.json {
        let action = action.as_str();
        say_json(&AppExplainView { app, to, action, version, in_scope, explanation })?;
    } else if in_scope {
        say_why(app, (action, &context), to, &by, version, &explanation);
    } else {
        say(format_args!("{app} {} {to}: denied, {by}", action.as_str()));
        note(format_args!("Its scope is {}; no policy widens it.", app::scope(&opened.known, found)));
    }
    Ok(status)
}

#[derive(Serialize)]
struct FoundView<'a> {
    id: DeviceId,
    name: &'a str,
}

fn tell(found: &[&Facts], json: bool) -> anyhow::Result<()> {
    if json {
        let views: Vec<_> = found.iter().map(|facts| FoundView { id: facts.id, name: &facts.name }).collect();
        return say_json(&views);
    }
    let mut table = Table::new(&["ID", "NAME"]);
    found.iter().for_each(|facts| table.row([facts.id.to_string(), facts.name.to_string()]));
    table.print();
    note(count(found.len(), "device"));
    Ok(())
}

async fn whom(args: WhomArgs) -> anyhow::Result<()> {
    let (opened, id, device) = Opened::around(&args.reach, &args.device).await?;
    let (action, context) = asked(args.action, &args.asked, opened.utc_offset_min());
    let devices = opened.devices(|device| args.pick.takes(device));
    tell(&survey::whom(&opened.set()?, &devices, &facts(id, &device), action, &context), args.json)
}

async fn who(args: WhoArgs) -> anyhow::Result<()> {
    let (named, wanted) = match (&args.may_call, &args.may_list) {
        (_, Some(named)) => (named, Wanted::List),
        (Some(named), None) => (named, Wanted::Call),
        (None, None) => bail!("say which device: --may-call or --may-list"),
    };
    let (opened, id, device) = Opened::around(&args.reach, named).await?;
    let (action, context) = asked(wanted, &args.asked, opened.utc_offset_min());
    let devices = opened.devices(|device| args.pick.takes(device));
    tell(&survey::who(&opened.set()?, &devices, &facts(id, &device), action, &context), args.json)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DiffView<'a> {
    more: u64,
    fewer: u64,
    examples: Vec<ChangedPair<'a>>,
    /// Denied calls that the audit has, and how many of them would be allowed.
    denials: u64,
    now_allowed: u64,
}

#[derive(Serialize)]
struct ChangedPair<'a> {
    action: &'a str,
    from: &'a str,
    /// It is an application.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    app: bool,
    to: &'a str,
    now: bool,
}

async fn diff(args: DiffArgs) -> anyhow::Result<ExitCode> {
    let added = files(&args.files)?;
    let opened = Opened::of_tenant(&args.tenant).await?;
    let texts = match args.shadow {
        true => opened.shadow().await?.texts,
        false => opened.texts().into_iter().chain(added).collect(),
    };
    let (old, new) = (opened.set()?, read(&texts)?);
    let devices = opened.devices(|_| true);
    let at = [Wanted::Call, Wanted::List].map(|wanted| asked(wanted, &args.asked, opened.utc_offset_min()));
    let mut found = match args.app {
        Some(_) => survey::Difference::default(),
        None => survey::difference(&old, &new, &devices, &at),
    };
    let of_apps = opened.difference_for_apps(&args, &old, &new, &devices)?;
    for (_, _, _, now) in &of_apps {
        *(if *now { &mut found.more } else { &mut found.fewer }) += 1;
    }
    let name = |id| opened.known.devices.get(&id).map_or("", |device| device.name.as_str());
    let examples = found.examples.iter().map(|(action, from, to, now)| ChangedPair {
        action: action.as_str(),
        from: name(*from),
        app: false,
        to: name(*to),
        now: *now,
    });
    let by_apps = of_apps.iter().take(MAX_APP_EXAMPLES).map(|(app, action, to, now)| ChangedPair {
        action: action.as_str(),
        from: opened.known.apps.get(app).map_or("", |app| app.name.as_str()),
        app: true,
        to: name(*to),
        now: *now,
    });
    let (denials, now_allowed) = opened.denied_lately(&new, &devices, &args.asked).await?;
    let examples = examples.chain(by_apps).collect();
    let view = DiffView { more: found.more, fewer: found.fewer, examples, denials, now_allowed };
    if args.tenant.json {
        say_json(&view)?;
    } else {
        say(format_args!("{} pairs more, {} fewer.", view.more, view.fewer));
        for pair in &view.examples {
            let (sign, now) = if pair.now { ("+", "may now") } else { ("-", "may no longer") };
            let app = if pair.app { "application " } else { "" };
            say(format_args!("  {sign} {app}{} {now} {} {}", pair.from, pair.action, pair.to));
        }
        let shown = view.examples.len() as u64;
        if view.more + view.fewer > shown {
            say(format_args!("  and {} more", view.more + view.fewer - shown));
        }
        if denials > 0 {
            say(format_args!(
                "Of {denials} denied calls recorded within a week, {now_allowed} would be allowed."
            ));
        }
    }
    Ok(match args.fail_on {
        Some(FailOn::Widen) if view.more > 0 => ExitCode::FAILURE,
        Some(FailOn::Change) if view.more + view.fewer > 0 => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VersionView<'a> {
    version: u64,
    at_ms: u64,
    who: &'a str,
    why: &'a str,
    texts: Vec<&'a str>,
}

async fn history(args: OneTenantArgs) -> anyhow::Result<()> {
    let opened = Opened::of_tenant(&args).await?;
    let sets = opened.policies.history(opened.tenant).await?;
    let views = sets.iter().map(|set| VersionView {
        version: set.version,
        at_ms: set.at_ms,
        who: &set.who,
        why: &set.why,
        texts: set.texts.keys().map(String::as_str).collect(),
    });
    if args.json {
        return say_json(&views.collect::<Vec<_>>());
    }
    let mut table = Table::new(&["VERSION", "HOURS AGO", "WHO", "TEXTS", "WHY"]);
    let now_ms = unix_ms();
    for view in views {
        let hours = now_ms.saturating_sub(view.at_ms) / 3_600_000;
        let or_none = |text: &str| if text.is_empty() { "-".to_owned() } else { text.to_owned() };
        let texts = or_none(&view.texts.join(" "));
        table.row([view.version.to_string(), hours.to_string(), or_none(view.who), texts, or_none(view.why)]);
    }
    table.print();
    Ok(())
}

async fn rollback(args: RollbackArgs) -> anyhow::Result<()> {
    let opened = Opened::of_tenant(&args.tenant).await?;
    let sets = opened.policies.history(opened.tenant).await?;
    let Some(set) = sets.into_iter().find(|set| set.version == args.version) else {
        bail!("version {} is not kept: `policy history` lists those that are", args.version);
    };
    // Those of an older program are checked anew.
    read(&set.texts)?;
    let next = opened.next(set.texts, set.utc_offset_min, &args.reason);
    let version = opened.make_set_live(StoredSet { external: set.external, ..next }, args.reason).await?;
    say(format_args!("Version {version} is live: the policies of version {}.", args.version));
    Ok(())
}

/// The same, of an application that calls by a method.
fn asked_by_app(wanted: Wanted, given: &AskedArgs, method: &str, utc_offset_min: i16) -> (Action, Context) {
    let (action, context) = asked(wanted, given, utc_offset_min);
    let context = match action {
        Action::Call => context.by_method(method),
        Action::List => context.over(None),
    };
    (action, context)
}

fn asked(wanted: Wanted, asked: &AskedArgs, utc_offset_min: i16) -> (Action, Context) {
    asked_at(SystemTime::now(), wanted, asked, utc_offset_min)
}

fn asked_at(when: SystemTime, wanted: Wanted, asked: &AskedArgs, utc_offset_min: i16) -> (Action, Context) {
    let now_s = when.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let (action, mut context) = match wanted {
        Wanted::Call => (
            Action::Call,
            Context::of_call(asked.oneway, asked.timeout_ms, asked.size, now_s, utc_offset_min),
        ),
        Wanted::List => (Action::List, Context::of_list(now_s, utc_offset_min)),
    };
    context = context.over(Some(match asked.protocol {
        Over::Mqtt => Protocol::Mqtt,
        Over::Http => Protocol::Http,
        Over::Coap => Protocol::Coap,
    }));
    context.hour = asked.at.unwrap_or(context.hour);
    context.weekday = asked.weekday.unwrap_or(context.weekday);
    (action, context)
}

fn facts(id: DeviceId, device: &Device) -> Facts {
    Facts {
        id,
        name: device.name.as_str().into(),
        kind: device.kind.as_str().into(),
        customer: device.customer,
        labels: device.labels.clone(),
    }
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
