//! Which programs may call devices? `switchboard app …`

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;

use anyhow::bail;
use bus::changes::{Change, Changed};
use bus::registry::{App, DEFAULT_KEY_LASTS_S, Snapshot};
use clap::{Args, Subcommand, ValueEnum};
use rpc::{AppId, CustomerId, KeyId, Role, TenantId};
use serde::Serialize;
use uuid::Uuid;

use crate::common::find;
use crate::common::output::{confirm, count, moment, note, say, say_json};
use crate::common::reach::ReachArgs;
use crate::common::recorded::ChangeArgs;
use crate::common::table::Table;
use crate::device::label;

const DAY_S: u64 = 86_400;

#[derive(Subcommand)]
pub(crate) enum AppVerb {
    /// Add an application, with a key that is shown once
    Add(AddArgs),
    /// Give an application a second key, shown once: to change keys without a gap
    Key(KeyArgs),
    /// End a key at once
    Revoke(RevokeArgs),
    /// Remove an application, its keys with it
    Remove(RemoveArgs),
    /// List the applications and their keys
    List(ListArgs),
}

#[derive(Args)]
pub(crate) struct AddArgs {
    /// Its name, unique in its tenant
    name: String,
    /// Id or name of its tenant; needed when there are several
    #[arg(long)]
    tenant: Option<String>,
    /// What it may do; each may all that those before it may
    #[arg(long, value_enum, default_value_t = RoleArg::Caller)]
    role: RoleArg,
    /// It may keep all tenants through the API, as far as its role goes, and not its own alone
    #[arg(long, conflicts_with_all = ["customers", "labels", "methods"])]
    all_tenants: bool,
    /// Id or name of a customer whose devices it may reach; may be repeated. All devices of the tenant when not given
    #[arg(long = "customer", value_name = "CUSTOMER")]
    customers: Vec<String>,
    /// A label that devices must bear for it to reach them, as zone=north; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = label)]
    labels: Vec<(String, String)>,
    /// A method that it may call; may be repeated. All when not given
    #[arg(long = "method", value_name = "METHOD")]
    methods: Vec<String>,
    /// A network from which its keys are taken, as 10.0.0.0/8, or an address; may be repeated. From everywhere when not
    /// given
    #[arg(long = "network", value_name = "NETWORK")]
    networks: Vec<String>,
    #[command(flatten)]
    lasting: LastingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// How long a key lasts.
#[derive(Args)]
struct LastingArgs {
    /// Days after which the key ends by itself
    #[arg(long, value_name = "DAYS", default_value_t = DEFAULT_KEY_LASTS_S / DAY_S,
          value_parser = clap::value_parser!(u64).range(1..=3_650))]
    days: u64,
}

#[derive(Args)]
pub(crate) struct KeyArgs {
    #[command(flatten)]
    app: AppArgs,
    #[command(flatten)]
    lasting: LastingArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
pub(crate) struct RevokeArgs {
    #[command(flatten)]
    app: AppArgs,
    /// The key's id, the part between the two `_`; needed when there are several
    #[arg(long, value_name = "ID")]
    key: Option<KeyId>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
pub(crate) struct RemoveArgs {
    #[command(flatten)]
    app: AppArgs,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Only those of this tenant (id or name)
    #[arg(long)]
    tenant: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// Which application.
#[derive(Args)]
struct AppArgs {
    /// Id or name
    app: String,
    /// Id or name of its tenant, where several have an application of that name
    #[arg(long)]
    tenant: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum RoleArg {
    /// Call devices, list them, and see whether they are there
    Caller,
    /// Hear of events, too, and read the audit
    Observer,
    /// Keep devices, their tokens and customers, too
    Operator,
    /// Keep applications, their keys and tenants, too
    Admin,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Caller => Role::Caller,
            RoleArg::Observer => Role::Observer,
            RoleArg::Operator => Role::Operator,
            RoleArg::Admin => Role::Admin,
        }
    }
}

/// An application as JSON. The key is there only when it was just made.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AppView<'a> {
    id: AppId,
    name: &'a str,
    tenant: TenantId,
    tenant_name: String,
    role: Role,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    all_tenants: bool,
    customers: Option<&'a BTreeSet<CustomerId>>,
    labels: &'a BTreeMap<String, String>,
    methods: Option<&'a BTreeSet<String>>,
    networks: Option<&'a BTreeSet<String>>,
    keys: Vec<KeyView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<&'a str>,
}

#[derive(Serialize)]
struct KeyView {
    id: KeyId,
    made: String,
    expires: String,
}

pub(crate) async fn run(verb: AppVerb) -> anyhow::Result<ExitCode> {
    match verb {
        AppVerb::Add(args) => add(args).await,
        AppVerb::Key(args) => key(args).await,
        AppVerb::Revoke(args) => revoke(args).await,
        AppVerb::Remove(args) => remove(args).await,
        AppVerb::List(args) => list(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn add(args: AddArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let known = registrar.accounts().await?;
    let (tenant, _) = find::tenant(&known, args.tenant.as_deref())?;
    let customer = |named: &String| Ok(find::customer(&known, named, Some(tenant))?.0);
    let customers = args.customers.iter().map(customer).collect::<anyhow::Result<BTreeSet<_>>>()?;
    let methods: BTreeSet<_> = args.methods.into_iter().collect();
    let networks: BTreeSet<_> = args.networks.into_iter().collect();
    let app = App {
        tenant,
        name: args.name,
        role: args.role.into(),
        all_tenants: args.all_tenants,
        customers: (!customers.is_empty()).then_some(customers),
        labels: args.labels.into_iter().collect(),
        methods: (!methods.is_empty()).then_some(methods),
        networks: (!networks.is_empty()).then_some(networks),
        keys: BTreeMap::new(),
    };
    let id = AppId(Uuid::new_v4());
    let made = registrar.change(Change::AddApp(id, app, args.lasting.days)).await?;
    show_key(&known, id, made, args.change.json)
}

async fn key(args: KeyArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let known = registrar.accounts().await?;
    let (id, _) = meant(&known, &args.app)?;
    let made = registrar.change(Change::AddKey(id, args.lasting.days)).await?;
    show_key(&known, id, made, args.change.json)
}

/// Shows a key this once.
fn show_key(known: &Snapshot, id: AppId, made: Option<Changed>, json: bool) -> anyhow::Result<()> {
    let Some(Changed::App(app, Some(key))) = made else { bail!("no key was made") };
    if json {
        return say_json(&AppView { key: Some(key.reveal()), ..view(known, id, &app) });
    }
    say(format_args!("Application {:?}: {id}", app.name));
    say(format_args!("Key: {}", key.reveal()));
    note(format_args!("It may reach {}.", scope(known, &app)));
    let ends = app.keys.get(&key.id()).map_or_else(String::new, |key| moment(key.expires_s));
    note(format_args!("The key is shown this once: only its hash is stored. It ends {ends}."));
    Ok(())
}

async fn revoke(args: RevokeArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let known = registrar.accounts().await?;
    let (id, app) = meant(&known, &args.app)?;
    let ids: Vec<_> = app.keys.keys().copied().collect();
    let key = match (args.key, ids.as_slice()) {
        (Some(key), ids) if ids.contains(&key) => key,
        (None, [only]) => *only,
        (_, []) => bail!("application {:?} has no key", app.name),
        (given, ids) => {
            let ids = ids.iter().map(KeyId::to_string).collect::<Vec<_>>().join(", ");
            let given = given.map_or_else(String::new, |key| format!("no key {key}, but "));
            bail!("application {:?} has {given}these keys: {ids}; --key says which", app.name)
        }
    };
    confirm(&format!("End key {key} of application {:?}", app.name), args.yes)?;
    registrar.change(Change::RevokeKey(id, key)).await?;
    if args.change.json {
        let mut now = app.clone();
        now.keys.remove(&key);
        return say_json(&view(&known, id, &now));
    }
    say(format_args!("Key {key} of application {:?} has ended.", app.name));
    Ok(())
}

async fn remove(args: RemoveArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let known = registrar.accounts().await?;
    let (id, app) = meant(&known, &args.app)?;
    confirm(&format!("Remove application {:?} ({id})", app.name), args.yes)?;
    registrar.change(Change::RemoveApp(id)).await?;
    if args.change.json {
        return say_json(&view(&known, id, app));
    }
    say(format_args!("Application {:?} removed.", app.name));
    Ok(())
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let known = args.reach.registrar().await?.accounts().await?;
    let tenant = find::tenant_if_named(&known, args.tenant.as_deref())?;
    let of_tenant = |(_, app): &(&AppId, &App)| tenant.is_none_or(|tenant| app.tenant == tenant);
    let mut views: Vec<_> =
        known.apps.iter().filter(of_tenant).map(|(id, app)| view(&known, *id, app)).collect();
    views.sort_by(|a, b| (&a.tenant_name, a.name, a.id).cmp(&(&b.tenant_name, b.name, b.id)));
    if args.json {
        return say_json(&views);
    }
    let mut table = Table::new(&["ID", "NAME", "TENANT", "ROLE", "REACHES", "KEYS (END)"]);
    for app in &views {
        let keys = app.keys.iter().map(|key| format!("{} ({})", key.id, key.expires)).collect::<Vec<_>>();
        let keys = if keys.is_empty() { "-".to_owned() } else { keys.join(", ") };
        let reaches = known.apps.get(&app.id).map_or_else(String::new, |app| scope(&known, app));
        let cells = [app.id.to_string(), app.name.to_owned(), app.tenant_name.clone()];
        table.row(cells.into_iter().chain([app.role.as_str().to_owned(), reaches, keys]));
    }
    table.print();
    note(count(views.len(), "application"));
    Ok(())
}

fn meant<'a>(known: &'a Snapshot, args: &AppArgs) -> anyhow::Result<(AppId, &'a App)> {
    named(known, &args.app, find::tenant_if_named(known, args.tenant.as_deref())?)
}

/// The application of this id or name; of that name in `tenant`, if given.
pub(crate) fn named<'a>(
    known: &'a Snapshot,
    named: &str,
    tenant: Option<TenantId>,
) -> anyhow::Result<(AppId, &'a App)> {
    if let Some((id, app)) = named.parse().ok().and_then(|id| known.apps.get_key_value(&id)) {
        return Ok((*id, app));
    }
    let is_meant = |app: &App| app.name == named && tenant.is_none_or(|tenant| app.tenant == tenant);
    let found: Vec<_> = known.apps.iter().filter(|(_, app)| is_meant(app)).collect();
    match found.as_slice() {
        [(id, app)] => Ok((**id, app)),
        [] => bail!("there is no application {named:?}; `switchboard app list` shows them"),
        _ => bail!("several applications are named {named:?}: say which by id, or name the --tenant"),
    }
}

/// What it may reach, in words.
pub(crate) fn scope(known: &Snapshot, app: &App) -> String {
    let customers = app.customers.as_ref();
    let customers = customers.map(|all| all.iter().map(|it| find::customer_name(known, *it)).collect());
    app.scope(&find::tenant_name(known, app.tenant), customers)
}

fn view<'a>(known: &Snapshot, id: AppId, app: &'a App) -> AppView<'a> {
    let keys = app.keys.iter();
    let keys =
        keys.map(|(id, it)| KeyView { id: *id, made: moment(it.made_s), expires: moment(it.expires_s) });
    AppView {
        id,
        name: &app.name,
        tenant: app.tenant,
        tenant_name: find::tenant_name(known, app.tenant),
        role: app.role,
        all_tenants: app.all_tenants,
        customers: app.customers.as_ref(),
        labels: &app.labels,
        methods: app.methods.as_ref(),
        networks: app.networks.as_ref(),
        keys: keys.collect(),
        key: None,
    }
}
