//! Which devices are there? `switchboard device …`

mod emulate;
mod export;
pub(crate) mod import;
pub(crate) mod rows;

use std::collections::{BTreeMap, HashMap};
use std::iter;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use bus::Bus;
use bus::changes::{Change, Changed, in_words};
use bus::registry::{DEFAULT_TYPE, Device, DeviceChange, NewDevice, Snapshot, Token};
use clap::{Args, Subcommand};
use rpc::{CustomerId, DeviceId, LastSeen, PresenceReply, PresenceRequest, TenantId, Whereabouts, wire};
use serde::Serialize;
use uuid::Uuid;

use crate::common::find;
use crate::common::find::PickArgs;
use crate::common::output::{confirm, count, grouped, moment, note, say, say_json};
use crate::common::reach::ReachArgs;
use crate::common::recorded::ChangeArgs;
use crate::common::registrar::{self, Registrar};
use crate::common::table::Table;

/// How long routers may take to say whether a device is online; then it is not shown.
const PRESENCE_WAIT: Duration = Duration::from_secs(1);
/// Devices that one question is about.
const ASKED_AT_ONCE: usize = 1_000;

#[derive(Subcommand)]
pub(crate) enum DeviceVerb {
    /// Add a device; its access token is shown once
    Add(AddArgs),
    /// List the devices
    List(ListArgs),
    /// Show a device, and whether it is online
    Show(ShowArgs),
    /// Assign a device to a customer: it may then call that customer's devices, and they it. Its sessions end
    Assign(AssignArgs),
    /// Take a device from its customer. Its sessions end
    Unassign(OneArgs),
    /// Give a device another name; its sessions go on
    Rename(RenameArgs),
    /// Give a device another type, which policies may read; its sessions go on
    Retype(RetypeArgs),
    /// Set and remove a device's labels, which policies may read; its sessions go on
    Label {
        #[command(subcommand)]
        verb: LabelVerb,
    },
    /// Give a device another access token, shown once. Its sessions end
    RotateToken(RotateArgs),
    /// Remove devices. Their sessions end
    Remove(RemoveArgs),
    /// Add many devices from a JSON or CSV file
    Import(import::ImportArgs),
    /// Be a device, and show the calls that come to it
    Listen(Box<emulate::ListenArgs>),
    /// Be a device, and answer the calls that come to it
    Emulate(Box<emulate::EmulateArgs>),
    /// Write all tenants, customers and devices to a file that `import` reads; without tokens, which nobody knows
    Export(export::ExportArgs),
}

#[derive(Subcommand)]
pub(crate) enum LabelVerb {
    /// Set labels; those of other keys stay
    Set(LabelSetArgs),
    /// Remove labels by key
    Remove(LabelRemoveArgs),
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  switchboard device label set \"Pump 1\" site=north floor=2
  switchboard device label set 5bd1e995-a1b2-4c3d-8e4f-000000000001 site=south --json | jq .labels")]
pub(crate) struct LabelSetArgs {
    /// Id or name
    device: String,
    /// The labels, as room=12
    #[arg(required = true, value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  switchboard device label remove \"Pump 1\" floor")]
pub(crate) struct LabelRemoveArgs {
    /// Id or name
    device: String,
    /// Their keys, as room
    #[arg(required = true, value_name = "KEY")]
    keys: Vec<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  switchboard device add \"Pump 1\" --customer Works --type pump --label site=north
  switchboard device add \"Pump 2\" --customer Works --json | jq -r .token")]
pub(crate) struct AddArgs {
    /// Its name, unique in its tenant
    name: String,
    /// Id or name of its tenant; needed when there are several
    #[arg(long)]
    tenant: Option<String>,
    /// Id or name of the customer to assign it to
    #[arg(long)]
    customer: Option<String>,
    /// Its id; made up when not given
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    /// Its access token, 16 characters to 255 bytes without control characters; made up when not given, which is safer
    #[arg(long, env = "SWITCHBOARD_DEVICE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Take a token of fewer than 16 characters, which is guessed sooner or later
    #[arg(long)]
    weak_token: bool,
    /// What kind of thing it is
    #[arg(long = "type", value_name = "TYPE", default_value = DEFAULT_TYPE)]
    kind: String,
    /// Words of your own about it, as site=north; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
#[command(after_help = "\
All devices are read, however few are meant or listed: 200,000 cost NATS a second of CPU, and the command half of one. \
An API hands over those of a customer, type or label alone. For a whole name or an id ask `device show`, which reads \
that device and no other.

Examples:
  switchboard device list --customer Works --online
  switchboard device list --name 'pump*north' --label site=north --label floor
  switchboard device list --limit 100 --after 5bd1e995-a1b2-4c3d-8e4f-000000000001
  switchboard device list --unassigned --json | jq -r .[].id")]
pub(crate) struct ListArgs {
    /// Only those of this tenant (id or name)
    #[arg(long)]
    tenant: Option<String>,
    /// Only those of this customer (id or name)
    #[arg(long, conflicts_with = "unassigned")]
    customer: Option<String>,
    /// Only those of no customer
    #[arg(long)]
    unassigned: bool,
    /// Only those whose access token is shorter than 16 characters, as far as it was given by this version or later
    #[arg(long)]
    weak: bool,
    /// Only those that are online now
    #[arg(long)]
    online: bool,
    #[command(flatten)]
    pick: PickArgs,
    /// At most so many
    #[arg(long, value_name = "DEVICES")]
    limit: Option<NonZeroUsize>,
    /// Only those that are listed after this one: the next page
    #[arg(long, value_name = "ID")]
    after: Option<DeviceId>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  switchboard device show \"Pump 1\"
  switchboard device show \"Pump 1\" --json | jq .online")]
pub(crate) struct ShowArgs {
    /// Id, name, or an ending that only its name has; for an ending all devices are read, as by `list`
    device: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  switchboard device assign \"Pump 1\" Works --why \"sold to them\"")]
pub(crate) struct AssignArgs {
    /// Id or name
    device: String,
    /// Id or name of a customer of the device's tenant
    customer: String,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  switchboard device unassign \"Pump 1\" --json")]
pub(crate) struct OneArgs {
    /// Id or name
    device: String,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  switchboard device rename \"Pump 1\" \"Pump 1, north\"")]
pub(crate) struct RenameArgs {
    /// Id or name
    device: String,
    /// The new name
    name: String,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
#[command(after_help = "\
Example:
  switchboard device retype \"Pump 1\" pump")]
pub(crate) struct RetypeArgs {
    /// Id or name
    device: String,
    /// The new type
    #[arg(value_name = "TYPE")]
    kind: String,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  switchboard device rotate-token \"Pump 1\"
  switchboard device rotate-token \"Pump 1\" --yes --json | jq -r .token")]
pub(crate) struct RotateArgs {
    /// Id or name
    device: String,
    /// The new token, 16 characters to 255 bytes without control characters; made up when not given, which is safer
    #[arg(long, env = "SWITCHBOARD_DEVICE_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Take a token of fewer than 16 characters, which is guessed sooner or later
    #[arg(long)]
    weak_token: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  switchboard device remove \"Pump 1\" \"Pump 2\"
  switchboard device remove \"Pump 1\" --yes --json")]
pub(crate) struct RemoveArgs {
    /// Ids or names
    #[arg(required = true)]
    devices: Vec<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// A device as JSON. The token is there only when it was just made.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DeviceView<'a> {
    id: DeviceId,
    name: &'a str,
    tenant: TenantId,
    tenant_name: String,
    customer: Option<CustomerId>,
    customer_name: Option<String>,
    #[serde(rename = "type")]
    kind: &'a str,
    labels: &'a BTreeMap<String, String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    weak_token: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    online: Option<bool>,
    #[serde(flatten)]
    place: Option<Whereabouts>,
    /// How it was last there; kept for 30 days after it went.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen: Option<LastSeen>,
    /// How often one of its sessions took over from another, lately.
    #[serde(skip_serializing_if = "Option::is_none")]
    takeovers: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<&'a str>,
}

pub(crate) async fn run(verb: DeviceVerb) -> anyhow::Result<ExitCode> {
    match verb {
        DeviceVerb::Add(args) => add(args).await,
        DeviceVerb::List(args) => list(args).await,
        DeviceVerb::Show(args) => show(args).await,
        DeviceVerb::Assign(args) => assign(args).await,
        DeviceVerb::Unassign(args) => unassign(args).await,
        DeviceVerb::Rename(args) => rename(args).await,
        DeviceVerb::Retype(args) => retype(args).await,
        DeviceVerb::Label { verb } => relabel(verb).await,
        DeviceVerb::RotateToken(args) => rotate(args).await,
        DeviceVerb::Remove(args) => return remove(args).await,
        DeviceVerb::Import(args) => return import::run(args).await,
        DeviceVerb::Listen(args) => return emulate::listen(*args).await,
        DeviceVerb::Emulate(args) => return emulate::emulate(*args).await,
        DeviceVerb::Export(args) => export::run(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn add(args: AddArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let known = registrar.accounts().await?;
    let (tenant, customer) = place(&known, args.tenant.as_deref(), args.customer.as_deref())?;
    let new = NewDevice {
        id: DeviceId(args.id.unwrap_or_else(Uuid::new_v4)),
        tenant,
        customer,
        name: args.name,
        kind: args.kind,
        labels: args.labels.into_iter().collect(),
        token: token(args.token.as_deref(), args.weak_token)?,
    };
    registrar.change(Change::AddDevice(Box::new(new.clone()))).await?;
    if args.change.json {
        let view = DeviceView {
            id: new.id,
            name: &new.name,
            tenant,
            tenant_name: find::tenant_name(&known, tenant),
            customer,
            customer_name: customer.map(|customer| find::customer_name(&known, customer)),
            kind: &new.kind,
            labels: &new.labels,
            weak_token: new.token.is_weak(),
            online: None,
            place: None,
            last_seen: None,
            takeovers: None,
            token: Some(new.token.reveal()),
        };
        return say_json(&view);
    }
    say(format_args!("Device {:?} added: {}", new.name, new.id));
    say(format_args!("Token: {}", new.token.reveal()));
    note("The token is shown this once: only its hash is stored.");
    if customer.is_none() {
        note("It can call nobody until it is assigned to a customer: `switchboard device assign`.");
    }
    Ok(())
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let registrar = args.reach.clone().registrar().await?;
    let mut known = registrar.accounts().await?;
    let tenant = find::tenant_if_named(&known, args.tenant.as_deref())?;
    let customer = match &args.customer {
        Some(named) => Some(find::customer(&known, named, tenant)?.0),
        None => None,
    };
    let is_meant = |device: &Device| {
        tenant.is_none_or(|tenant| device.tenant == tenant)
            && (customer.is_none() || device.customer == customer)
            && !(args.unassigned && device.customer.is_some())
            && (device.weak_token || !args.weak)
            && args.pick.takes(device)
    };
    let mut meant = HashMap::new();
    let keep = |id, device: Device| {
        if is_meant(&device) {
            meant.insert(id, device);
        }
    };
    let of_customer = customer.map(|customer| format!("&customer={customer}"));
    let query = args.pick.query() + of_customer.as_deref().unwrap_or_default();
    registrar.each_device(&query, keep).await?;
    known.devices = meant;
    let devices = sorted(&known);
    let page = match args.after {
        None => devices.as_slice(),
        Some(after) => {
            let place = devices.iter().position(|(id, _)| *id == after);
            let place = place.with_context(|| format!("--after {after} is not among these devices"))?;
            devices.get(place + 1..).unwrap_or_default()
        }
    };
    let mut views: Vec<_> = page.iter().map(|(id, device)| view(&known, *id, device)).collect();
    if args.online {
        let there = match &registrar {
            Registrar::Api(api) => registrar::online(api).await?.into_iter().map(|id| (id, None)).collect(),
            Registrar::Nats(_) => {
                let reached = args.reach.bus().await?;
                online(&reached.bus, &views.iter().map(|it| it.id).collect::<Vec<_>>()).await?
            }
        };
        views.retain(|it| there.contains_key(&it.id));
        for view in &mut views {
            (view.online, view.place) = (Some(true), there.get(&view.id).copied().flatten());
        }
    }
    let left = views.len().saturating_sub(args.limit.map_or(usize::MAX, NonZeroUsize::get));
    views.truncate(views.len() - left);
    if args.json {
        return say_json(&views);
    }
    let columns = ["ID", "NAME", "CUSTOMER", "TENANT", "TYPE", "LABELS"].into_iter();
    let place = ["NODE", "PROTOCOL", "SINCE"].into_iter().filter(|_| args.online);
    let mut table = Table::new(&columns.chain(place).collect::<Vec<_>>());
    for device in &views {
        let customer = device.customer_name.clone().unwrap_or_else(|| "-".to_owned());
        let cells = [device.id.to_string(), device.name.to_owned(), customer, device.tenant_name.clone()];
        let labels = if device.labels.is_empty() { "-".to_owned() } else { in_words(device.labels) };
        let place = place_cells(device.place.as_ref()).into_iter().filter(|_| args.online);
        table.row(cells.into_iter().chain([device.kind.to_owned(), labels]).chain(place));
    }
    table.print();
    note(count(views.len(), "device"));
    if let (1.., Some(last)) = (left, views.last()) {
        note(format_args!("{} more: --after {}", grouped(left), last.id));
    }
    Ok(())
}

async fn show(args: ShowArgs) -> anyhow::Result<()> {
    let registrar = args.reach.clone().registrar().await?;
    let (id, device, known) = registrar.device_by_ending(&args.device).await?;
    let view = view(&known, id, &device);
    let view = match &registrar {
        Registrar::Api(api) => {
            let online = registrar::online(api).await.ok().map(|there| there.contains(&id));
            DeviceView { online, ..view }
        }
        Registrar::Nats(_) => match presence(&args.reach.bus().await?.bus, id).await {
            Some((online, takeovers, place, last_seen)) => {
                DeviceView { online: Some(online), takeovers: Some(takeovers), place, last_seen, ..view }
            }
            None => view,
        },
    };
    if args.json {
        return say_json(&view);
    }
    say(format_args!("id        {}", view.id));
    say(format_args!("name      {}", view.name));
    say(format_args!("tenant    {} ({})", view.tenant_name, view.tenant));
    match (&view.customer_name, view.customer) {
        (Some(name), Some(id)) => say(format_args!("customer  {name} ({id})")),
        _ => say("customer  none: it can call nobody"),
    }
    say(format_args!("type      {}", view.kind));
    say(format_args!("labels    {}", in_words(view.labels)));
    say(match view.online {
        Some(true) => "online    yes",
        Some(false) => "online    no",
        None => "online    unknown: no router answers",
    });
    if let Some(place) = &view.place {
        let [node, protocol, since] = place_cells(Some(place));
        say(format_args!("since     {since}, by {protocol} at node {node}"));
    }
    if let Some(LastSeen { at_ms, node, protocol, reason, .. }) = &view.last_seen {
        let reason = reason.map_or("unknown", |reason| reason.as_str());
        say(format_args!(
            "last seen {}, by {protocol} at node {node}; it ended: {reason}",
            moment(at_ms / 1_000)
        ));
    }
    if view.weak_token {
        note("Its access token is shorter than 16 characters, and guessed sooner or later: rotate it.");
    }
    if let Some(times @ 1..) = view.takeovers {
        note(format_args!(
            "Within ten minutes its newest session took over from another {} time(s): have two clients its token?",
            times
        ));
    }
    Ok(())
}

async fn assign(args: AssignArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let (id, device) = registrar.device(&args.device).await?;
    let (customer, record) = registrar.customer(device.tenant, &args.customer).await?;
    let said = format!("Device {:?} is assigned to {:?}.", device.name, record.name);
    alter(&registrar, args.change.json, id, DeviceChange::assigned(Some(customer)), |_| said).await
}

async fn unassign(args: OneArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let (id, device) = registrar.device(&args.device).await?;
    let said = format!("Device {:?} is assigned to nobody.", device.name);
    alter(&registrar, args.change.json, id, DeviceChange::assigned(None), |_| said).await
}

async fn rename(args: RenameArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let (id, device) = registrar.device(&args.device).await?;
    let said = format!("Device {:?} is now {:?}.", device.name, args.name);
    alter(&registrar, args.change.json, id, DeviceChange::named(&args.name), |_| said).await
}

async fn retype(args: RetypeArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let (id, device) = registrar.device(&args.device).await?;
    let said = format!("Device {:?} is of type {:?} now.", device.name, args.kind);
    let retyped = DeviceChange { kind: Some(args.kind), ..DeviceChange::default() };
    alter(&registrar, args.change.json, id, retyped, |_| said).await
}

async fn relabel(verb: LabelVerb) -> anyhow::Result<()> {
    let (change, named, labels) = match verb {
        LabelVerb::Set(LabelSetArgs { device, labels, change }) => {
            (change, device, labels.into_iter().map(|(key, value)| (key, Some(value))).collect())
        }
        LabelVerb::Remove(LabelRemoveArgs { device, keys, change }) => {
            (change, device, keys.into_iter().map(|key| (key, None)).collect::<BTreeMap<_, _>>())
        }
    };
    let registrar = change.registrar().await?;
    let (id, device) = registrar.device(&named).await?;
    let is_missing =
        |(key, value): &(&String, &Option<String>)| value.is_none() && !device.labels.contains_key(*key);
    if let Some((key, _)) = labels.iter().find(is_missing) {
        anyhow::bail!("device {:?} has no label {key:?}; it has: {}", device.name, in_words(&device.labels));
    }
    let relabelled = DeviceChange { labels, ..DeviceChange::default() };
    let said =
        |device: &Device| format!("Device {:?} has the labels: {}", device.name, in_words(&device.labels));
    alter(&registrar, change.json, id, relabelled, said).await
}

async fn rotate(args: RotateArgs) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Rotated<'a> {
        id: DeviceId,
        name: &'a str,
        token: &'a str,
    }
    let registrar = args.change.registrar().await?;
    let (id, device) = registrar.device(&args.device).await?;
    let token = token(args.token.as_deref(), args.weak_token)?;
    confirm(&format!("End the sessions of {:?} and make its token void", device.name), args.yes)?;
    registrar.change(Change::RotateToken(id, token.clone())).await?;
    if args.change.json {
        return say_json(&Rotated { id, name: &device.name, token: token.reveal() });
    }
    say(format_args!("Device {:?} has a new token: {}", device.name, token.reveal()));
    note("The token is shown this once: only its hash is stored.");
    Ok(())
}

async fn remove(args: RemoveArgs) -> anyhow::Result<ExitCode> {
    let registrar = args.change.registrar().await?;
    let mut devices = Vec::new();
    for named in &args.devices {
        devices.push(registrar.device(named).await?);
    }
    let question = match devices.as_slice() {
        [(id, device)] => format!("Remove device {:?} ({id})", device.name),
        several => format!("Remove {}", count(several.len(), "device")),
    };
    confirm(&question, args.yes)?;
    let (mut status, mut gone) = (ExitCode::SUCCESS, Vec::new());
    for (id, device) in &devices {
        match registrar.change(Change::RemoveDevice(*id)).await {
            Ok(_) if args.change.json => gone.push(RemovedView { id: *id, name: &device.name }),
            Ok(_) => say(format_args!("Device {:?} removed.", device.name)),
            Err(error) => {
                note(format_args!("error: device {:?}: {error:#}", device.name));
                status = ExitCode::FAILURE;
            }
        }
    }
    if args.change.json {
        say_json(&gone)?;
    }
    Ok(status)
}

#[derive(Serialize)]
struct RemovedView<'a> {
    id: DeviceId,
    name: &'a str,
}

/// Changes a device, and says what became of it; to machines, how it is now.
async fn alter(
    registrar: &Registrar,
    json: bool,
    id: DeviceId,
    change: DeviceChange,
    said: impl FnOnce(&Device) -> String,
) -> anyhow::Result<()> {
    let Some(Changed::Device(device)) = registrar.change(Change::ChangeDevice(id, change)).await? else {
        anyhow::bail!("nothing says how the device is now");
    };
    match json {
        true => say_json(&view(&registrar.places_of(&device).await?, id, &device)),
        false => {
            say(said(&device));
            Ok(())
        }
    }
}

/// By tenant, customer and name: those that may call each other stand together.
pub(crate) fn sorted(known: &Snapshot) -> Vec<(DeviceId, &Device)> {
    let mut devices: Vec<_> = known.devices.iter().map(|(id, device)| (*id, device)).collect();
    devices.sort_by_cached_key(|(id, device)| {
        let customer = device.customer.map(|customer| find::customer_name(known, customer));
        (find::tenant_name(known, device.tenant), customer.is_none(), customer, device.name.clone(), *id)
    });
    devices
}

fn place(
    known: &Snapshot,
    tenant: Option<&str>,
    customer: Option<&str>,
) -> anyhow::Result<(TenantId, Option<CustomerId>)> {
    let named_tenant = match tenant {
        Some(_) => Some(find::tenant(known, tenant)?.0),
        None => None,
    };
    match customer {
        // A customer belongs to one tenant, which then need not be named.
        Some(named) => {
            let (id, customer) = find::customer(known, named, named_tenant)?;
            Ok((customer.tenant, Some(id)))
        }
        None => Ok((find::tenant(known, tenant)?.0, None)),
    }
}

fn token(given: Option<&str>, weak_is_taken: bool) -> anyhow::Result<Token> {
    Ok(match given {
        Some(text) => Token::parse(text)?.admit(weak_is_taken)?,
        None => Token::generate()?,
    })
}

fn view<'a>(known: &Snapshot, id: DeviceId, device: &'a Device) -> DeviceView<'a> {
    DeviceView {
        id,
        name: &device.name,
        tenant: device.tenant,
        tenant_name: find::tenant_name(known, device.tenant),
        customer: device.customer,
        customer_name: device.customer.map(|customer| find::customer_name(known, customer)),
        kind: &device.kind,
        labels: &device.labels,
        weak_token: device.weak_token,
        online: None,
        place: None,
        last_seen: None,
        takeovers: None,
        token: None,
    }
}

/// Those that are online, and where.
async fn online(bus: &Bus, devices: &[DeviceId]) -> anyhow::Result<HashMap<DeviceId, Option<Whereabouts>>> {
    let mut there = HashMap::new();
    for some in devices.chunks(ASKED_AT_ONCE) {
        let question = PresenceRequest { devices: some.to_vec(), places: true, seen: false };
        let question = wire::encode(&question, &[]);
        let answer = bus.ask(bus.subjects().presence(), question, PRESENCE_WAIT).await;
        let answer = answer.context("no router says who is online")?;
        let (PresenceReply { online, places, .. }, _) = wire::decode(&answer)?;
        let places = places.unwrap_or_default().into_iter().chain(iter::repeat(None));
        let all = some.iter().zip(online).zip(places);
        there.extend(all.filter_map(|((device, online), place)| online.then_some((*device, place))));
    }
    Ok(there)
}

/// Whether it is online, how often a session of it took over from another, where it is and how it was last there; none
/// when no router answers.
async fn presence(bus: &Bus, device: DeviceId) -> Option<(bool, u32, Option<Whereabouts>, Option<LastSeen>)> {
    let question = PresenceRequest { devices: vec![device], places: true, seen: true };
    let question = wire::encode(&question, &[]);
    let answer = bus.ask(bus.subjects().presence(), question, PRESENCE_WAIT).await.ok()?;
    let (PresenceReply { online, takeovers, places, seen }, _) = wire::decode(&answer).ok()?;
    let (place, seen) = (places.and_then(|it| *it.first()?), seen.and_then(|it| *it.first()?));
    Some((*online.first()?, takeovers.first().copied().unwrap_or_default(), place, seen))
}

/// Its node, how it is connected, and since when.
fn place_cells(place: Option<&Whereabouts>) -> [String; 3] {
    let unknown = || "-".to_owned();
    let since = place.and_then(|it| it.since_ms).map_or_else(unknown, |since| moment(since / 1_000));
    let node = place.map_or_else(unknown, |it| it.node.to_string());
    [node, place.map_or_else(unknown, |it| it.protocol.to_string()), since]
}

pub(crate) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Command;

    /// What writes JSON in any case.
    const ALWAYS_JSON: [&str; 3] = ["listen", "emulate", "export"];

    fn leaves(command: &Command) -> Vec<&Command> {
        match command.has_subcommands() {
            true => command.get_subcommands().flat_map(leaves).collect(),
            false => vec![command],
        }
    }

    #[test]
    fn every_subcommand_has_an_example_and_is_read_by_machines() {
        let device = DeviceVerb::augment_subcommands(Command::new("device"));
        let all = leaves(&device);
        assert!(all.len() > 14, "{}", all.len());
        for command in all {
            let name = command.get_name();
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = help.contains("\n  switchboard device ") && help.contains(name);
            assert!(example, "{name}: {help}");
            let has_json = command.get_arguments().any(|it| it.get_long() == Some("json"));
            assert!(has_json || ALWAYS_JSON.contains(&name), "{name}");
        }
    }
}
