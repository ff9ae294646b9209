//! Who may call whom, and why? `switchboard policy explain`, `whom`, `who` and `diff`.

use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use bus::audit::{AuditLog, Book, From};
use bus::policies::External;
use bus::registry::{App, Registry, Snapshot};
use clap::{Args, ValueEnum};
use hyper::Method;
use rpc::{AppId, DEFAULT_METHOD, Protocol};
use serde_json::json;
use switchboard_authorizer::external::question::Question;
use switchboard_authorizer::external::{Asker, Objection};
use switchboard_authorizer::policy::inquiry::{
    self, Asked, Besides, Denials, Differing, Explained, Found, InForce,
};
use switchboard_authorizer::policy::{Action, Context, Facts, survey};

use super::kept::{Direct, Keeper, Kept, Remote};
use super::{OneTenantArgs, files, hour, read};
use crate::common::find::{self, PickArgs};
use crate::common::output::{count, note, say, say_json};
use crate::common::reach::ReachArgs;
use crate::common::recorded::ReasonArgs;
use crate::common::registrar;
use crate::common::table::Table;
use crate::common::via::path_segment;
use crate::{app, audit};

/// How far back denied calls are looked for.
const LATELY: Duration = Duration::from_secs(7 * 24 * 3_600);

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Wanted {
    /// sendMsg
    #[value(alias = "sendMsg")]
    Call,
    /// To be in the answer to getDevices
    #[value(alias = "getDevices")]
    List,
}

impl Wanted {
    fn action(self) -> Action {
        match self {
            Wanted::Call => Action::Call,
            Wanted::List => Action::List,
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Over {
    Mqtt,
    Http,
    Coap,
}

impl Over {
    fn protocol(self) -> Protocol {
        match self {
            Over::Mqtt => Protocol::Mqtt,
            Over::Http => Protocol::Http,
            Over::Coap => Protocol::Coap,
        }
    }
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

impl AskedArgs {
    fn asked(&self, method: &str) -> Asked {
        Asked {
            hour: self.at,
            weekday: self.weekday,
            protocol: self.protocol.protocol(),
            oneway: self.oneway,
            timeout_ms: self.timeout_ms,
            size_bytes: self.size,
            method: method.to_owned(),
        }
    }

    /// The same for an API.
    fn parameters(&self, method: &str) -> Vec<String> {
        let Asked { hour, weekday, protocol, oneway, timeout_ms, size_bytes, method } = self.asked(method);
        let mut parameters = vec![
            format!("protocol={}", protocol.as_str()),
            format!("oneway={oneway}&timeout={timeout_ms}&size={size_bytes}"),
            parameter("method", &method),
        ];
        parameters.extend(hour.map(|hour| format!("hour={hour}")));
        parameters.extend(weekday.map(|weekday| format!("weekday={weekday}")));
        parameters
    }
}

fn parameter(name: &str, value: &str) -> String {
    format!("{name}={}", path_segment(value))
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
    #[arg(long = "may", value_name = "DEVICE", required_unless_present = "app")]
    device: Option<String>,
    /// The application that wants it, in place of a device: id or name
    #[arg(long, value_name = "APP", conflicts_with_all = ["device", "protocol"])]
    app: Option<String>,
    /// By which method the application calls
    #[arg(long, value_name = "METHOD", default_value = DEFAULT_METHOD, requires = "app")]
    by: String,
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
    files: Vec<std::path::PathBuf>,
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

impl Direct {
    /// Those of a device's tenant, and the device.
    async fn around(reach: &ReachArgs, named: &str) -> anyhow::Result<(Self, InForce, Device)> {
        let mut found = None;
        let of = async |registry: &Registry, _: &Snapshot| {
            let device = find::device_by_ending(registry, named).await?;
            let tenant = device.1.tenant;
            found = Some(device);
            Ok(tenant)
        };
        let (direct, live) = Direct::open(reach, &ReasonArgs::default(), of).await?;
        Ok((direct, live, found.context("the device was looked up")?))
    }

    /// Those of an application's tenant, and the application.
    async fn around_app(reach: &ReachArgs, named: &str) -> anyhow::Result<(Self, InForce, (AppId, App))> {
        let of = async |_: &Registry, places: &Snapshot| Ok(app::named(places, named, None)?.1.tenant);
        let (direct, live) = Direct::open(reach, &ReasonArgs::default(), of).await?;
        let (id, found) = app::named(&direct.places, named, None)?;
        let found = (id, found.clone());
        Ok((direct, live, found))
    }

    /// Asks a tenant's external decision point as an authorizer would, from here.
    async fn asked_besides(
        &self,
        live: &InForce,
        caller: &Facts,
        target: &Facts,
        context: &Context,
    ) -> Option<Besides> {
        let External { point, timeout_ms } = live.external()?;
        let asker = Asker::new(&self.reached.bus, &self.reached.settings.authorizer);
        let question = Question::of(self.tenant, live.counted(), caller, target, context);
        let wait = Duration::from_millis((*timeout_ms).into());
        let (allowed, objection, reason) = match asker.ask(self.tenant, point, &question, wait).await {
            Ok(answer) if answer.is_allowed => (true, None, answer.reason),
            Ok(answer) => (false, Some(Objection::Denied), answer.reason),
            Err(objection) => (false, Some(objection), String::new()),
        };
        let objection = objection.map(|it| it.as_str().to_owned());
        Some(Besides { point: point.to_string(), allowed: Some(allowed), objection, reason })
    }
}

type Device = (rpc::DeviceId, bus::registry::Device);

/// The API that is asked in place of NATS, if one is named.
async fn remote(reach: &ReachArgs) -> anyhow::Result<Option<Remote>> {
    Remote::of(reach, &ReasonArgs::default(), None).await
}

pub(super) async fn explain(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let explained = match remote(&args.reach).await? {
        Some(remote) => {
            let mut parameters = args.asked.parameters(&args.by);
            parameters.push(parameter("to", &args.to));
            parameters.push(parameter("action", args.action.action().as_str()));
            parameters.extend(args.from.as_deref().map(|from| parameter("from", from)));
            parameters.extend(args.app.as_deref().map(|app| parameter("app", app)));
            remote.api.get(&remote.path("policies/explain", parameters)).await?
        }
        None => explained(&args).await?,
    };
    let status = if explained.is_allowed() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    match args.json {
        true => say_json(&explained)?,
        false => say_why(&explained),
    }
    Ok(status)
}

async fn explained(args: &ExplainArgs) -> anyhow::Result<Explained> {
    let (action, asked) = (args.action.action(), args.asked.asked(&args.by));
    let now = SystemTime::now();
    let Some(from) = &args.from else {
        let named = args.app.as_deref().unwrap_or_default();
        let (direct, live, (id, found)) = Direct::around_app(&args.reach, named).await?;
        let (to, target) = find::device_by_ending(&direct.registry, &args.to).await.context("--to")?;
        let context = asked.by_app(action, now, live.utc_offset_min());
        let caller = (id, &found, app::scope(&direct.places, &found));
        return Ok(inquiry::of_app(&live, &set(&live)?, caller, (action, &context), (to, &target)));
    };
    let (direct, live, (id, caller)) = Direct::around(&args.reach, from).await.context("--from")?;
    let (to, target) = find::device_by_ending(&direct.registry, &args.to).await.context("--to")?;
    if caller.tenant != target.tenant {
        bail!(
            "{:?} and {:?} are of different tenants: to each other they do not exist",
            caller.name,
            target.name
        );
    }
    let context = asked.by_device(action, now, live.utc_offset_min());
    let (caller, target) = (Facts::of(id, &caller), Facts::of(to, &target));
    let mut explained = inquiry::of_device(&live, &set(&live)?, &caller, (action, &context), &target);
    // Of lists nobody else is asked.
    if explained.explanation.allowed && action == Action::Call {
        explained.external = direct.asked_besides(&live, &caller, &target, &context).await;
    }
    Ok(explained)
}

fn set(live: &InForce) -> anyhow::Result<switchboard_authorizer::policy::PolicySet> {
    read(&live.texts())
}

fn say_why(explained: &Explained) {
    let Explained { from, app, to, action, version, hour, weekday, explanation, .. } = explained;
    let who = from.as_deref().or(app.as_deref()).unwrap_or_default();
    let answer = if explanation.allowed { "allowed" } else { "denied" };
    let scope = explained.scope.as_deref().unwrap_or_default();
    if let Some(outside) = &explained.outside {
        say(format_args!("{who} {action} {to}: denied, {outside}"));
        return note(format_args!("Its scope is {scope}; no policy widens it."));
    }
    let by = match explanation.decided_by.as_slice() {
        _ if app.is_some() && explanation.allowed => format!("its scope is {scope}"),
        [] => "no policy permits it".to_owned(),
        several => several.join(", "),
    };
    say(format_args!("{who} {action} {to}: {answer}, {by}"));
    say(match version {
        0 => "The built-in rule, as Cedar".to_owned(),
        version => format!("Version {version}, hour {hour}, weekday {weekday}"),
    });
    say(explanation);
    let Some(Besides { point, allowed, objection, reason }) = &explained.external else { return };
    let answer = objection.as_deref().unwrap_or("allowed");
    let reason = if reason.is_empty() { String::new() } else { format!(", {reason:?}") };
    match allowed {
        Some(_) => say(format_args!("And {point}, asked from here: {answer}{reason}")),
        None => say(format_args!("And {point} is asked besides, by authorizers alone")),
    }
}

pub(super) async fn whom(args: WhomArgs) -> anyhow::Result<()> {
    let (action, asked) = (args.action.action(), args.asked.asked(&args.by));
    if let Some(remote) = remote(&args.reach).await? {
        let mut parameters = args.asked.parameters(&args.by);
        parameters.push(parameter("action", action.as_str()));
        parameters.extend(args.device.as_deref().map(|from| parameter("from", from)));
        parameters.extend(args.app.as_deref().map(|app| parameter("app", app)));
        return tell(&over(&remote, "policies/whom", &parameters, &args.pick).await?, args.json);
    }
    let now = SystemTime::now();
    let found = match &args.app {
        Some(named) => {
            let (direct, live, (id, app)) = Direct::around_app(&args.reach, named).await?;
            let context = asked.by_app(action, now, live.utc_offset_min());
            let devices = direct.devices(|device| args.pick.takes(device)).await?;
            listed(inquiry::whom_of_app(&set(&live)?, &devices, id, &app, (action, &context)))
        }
        None => {
            let named = args.device.as_deref().unwrap_or_default();
            let (direct, live, (id, device)) = Direct::around(&args.reach, named).await?;
            let context = asked.by_device(action, now, live.utc_offset_min());
            let devices = direct.devices(|device| args.pick.takes(device)).await?;
            listed(survey::whom(&set(&live)?, &devices, &Facts::of(id, &device), action, &context))
        }
    };
    tell(&found, args.json)
}

pub(super) async fn who(args: WhoArgs) -> anyhow::Result<()> {
    let (named, action) = match (&args.may_call, &args.may_list) {
        (_, Some(named)) => (named, Action::List),
        (Some(named), None) => (named, Action::Call),
        (None, None) => bail!("say which device: --may-call or --may-list"),
    };
    if let Some(remote) = remote(&args.reach).await? {
        let mut parameters = args.asked.parameters(DEFAULT_METHOD);
        parameters.extend([parameter("to", named), parameter("action", action.as_str())]);
        return tell(&over(&remote, "policies/who", &parameters, &args.pick).await?, args.json);
    }
    let (direct, live, (id, device)) = Direct::around(&args.reach, named).await?;
    let context =
        args.asked.asked(DEFAULT_METHOD).by_device(action, SystemTime::now(), live.utc_offset_min());
    let devices = direct.devices(|device| args.pick.takes(device)).await?;
    let target = Facts::of(id, &device);
    tell(&listed(survey::who(&set(&live)?, &devices, &target, action, &context)), args.json)
}

/// Devices that an API finds, of those that are meant.
async fn over(
    remote: &Remote,
    path: &str,
    parameters: &[String],
    pick: &PickArgs,
) -> anyhow::Result<Vec<Found>> {
    let found = registrar::devices(&remote.api, path, &format!("&{}", parameters.join("&"))).await?;
    let found = found.into_iter().filter(|(_, device)| pick.takes(device));
    Ok(found.map(|(id, device)| Found { id, name: device.name }).collect())
}

fn listed(found: Vec<&Facts>) -> Vec<Found> {
    found.into_iter().map(Found::from).collect()
}

fn tell(found: &[Found], json: bool) -> anyhow::Result<()> {
    if json {
        return say_json(&found);
    }
    let mut table = Table::new(&["ID", "NAME"]);
    found.iter().for_each(|it| table.row([it.id.to_string(), it.name.clone()]));
    table.print();
    note(count(found.len(), "device"));
    Ok(())
}

pub(super) async fn diff(args: DiffArgs) -> anyhow::Result<ExitCode> {
    let added = files(&args.files)?;
    let OneTenantArgs { tenant, json, reach } = &args.tenant;
    let kept = Kept::open(reach, ReasonArgs::default(), tenant.as_deref()).await?;
    let texts = match args.shadow {
        true => super::shadow(&kept).await?.texts,
        false => kept.live.texts().into_iter().chain(added).collect(),
    };
    let new = read(&texts)?;
    let view: Differing = match &kept.keeper {
        Keeper::Api(remote) => {
            let mut parameters = args.asked.parameters(DEFAULT_METHOD);
            parameters.extend(args.app.as_deref().map(|app| parameter("app", app)));
            let path = remote.path("policies/diff", parameters);
            let differing = remote.api.ask(Method::POST, &path, Some(json!({"texts": texts})));
            differing.await?
        }
        Keeper::Nats(direct) => {
            let (asked, now) = (args.asked.asked(DEFAULT_METHOD), SystemTime::now());
            let (live, old) = (&kept.live, kept.set()?);
            let apps: Vec<(AppId, &App)> = match &args.app {
                Some(named) => vec![app::named(&direct.places, named, Some(direct.tenant))?],
                None => {
                    let all = direct.places.apps.iter().filter(|(_, app)| app.tenant == direct.tenant);
                    all.map(|(id, app)| (*id, app)).collect()
                }
            };
            let devices = direct.devices(|_| true).await?;
            let at = |action, is_app| match is_app {
                true => asked.by_app(action, now, live.utc_offset_min()),
                false => asked.by_device(action, now, live.utc_offset_min()),
            };
            let found = inquiry::differing((&old, &new), (&devices, args.app.is_none()), &apps, at);
            let mut denials = Denials::new(&new, &devices, &asked, live.utc_offset_min());
            let log = AuditLog::of(&direct.reached.bus, &direct.reached.settings, Book::Denials);
            let since = From::Time(now.checked_sub(LATELY).unwrap_or(UNIX_EPOCH));
            let take = |stored: bus::audit::Stored| stored.record().iter().for_each(|it| denials.take(it));
            audit::each(&log, Some(direct.tenant), since, take).await?;
            let (denials, now_allowed) = denials.counts;
            Differing { denials, now_allowed, ..found }
        }
    };
    if *json {
        say_json(&view)?;
    } else {
        say_difference(&view);
    }
    Ok(match args.fail_on {
        Some(FailOn::Widen) if view.more > 0 => ExitCode::FAILURE,
        Some(FailOn::Change) if view.more + view.fewer > 0 => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    })
}

fn say_difference(view: &Differing) {
    let Differing { more, fewer, examples, denials, now_allowed } = view;
    say(format_args!("{more} pairs more, {fewer} fewer."));
    for pair in examples {
        let (sign, now) = if pair.now { ("+", "may now") } else { ("-", "may no longer") };
        let app = if pair.app { "application " } else { "" };
        say(format_args!("  {sign} {app}{} {now} {} {}", pair.from, pair.action, pair.to));
    }
    let left = (more + fewer).saturating_sub(examples.len() as u64);
    if left > 0 {
        say(format_args!("  and {left} more"));
    }
    if *denials > 0 {
        say(format_args!(
            "Of {denials} denied calls recorded within a week, {now_allowed} would be allowed."
        ));
    }
}
