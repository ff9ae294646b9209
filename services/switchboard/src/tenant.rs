//! Who owns customers and devices? `switchboard tenant …`

use std::process::ExitCode;

use bus::changes::Change;
use bus::registry::{Snapshot, Tenant};
use clap::{Args, Subcommand};
use rpc::TenantId;
use serde::Serialize;
use uuid::Uuid;

use crate::common::find;
use crate::common::output::{confirm, count, note, say, say_json};
use crate::common::reach::ReachArgs;
use crate::common::recorded::ChangeArgs;
use crate::common::table::Table;

#[derive(Subcommand)]
pub(crate) enum TenantVerb {
    /// Add a tenant
    Add(AddArgs),
    /// List the tenants
    List(ListArgs),
    /// Give a tenant another name
    Rename(RenameArgs),
    /// Remove a tenant that has neither customers nor devices
    Remove(RemoveArgs),
}

#[derive(Args)]
pub(crate) struct AddArgs {
    /// Its name, unique among tenants
    name: String,
    /// Its id; made up when not given
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Args)]
pub(crate) struct RenameArgs {
    /// Id or name
    tenant: String,
    /// The new name
    name: String,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
pub(crate) struct RemoveArgs {
    /// Id or name
    tenant: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// A tenant as JSON.
#[derive(Serialize)]
struct TenantView<'a> {
    id: TenantId,
    name: &'a str,
}

pub(crate) async fn run(verb: TenantVerb) -> anyhow::Result<ExitCode> {
    match verb {
        TenantVerb::Add(args) => add(args).await,
        TenantVerb::List(args) => list(args).await,
        TenantVerb::Rename(args) => rename(args).await,
        TenantVerb::Remove(args) => remove(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn add(args: AddArgs) -> anyhow::Result<()> {
    let id = TenantId(args.id.unwrap_or_else(Uuid::new_v4));
    let tenant = Tenant { name: args.name.clone() };
    args.change.registrar().await?.change(Change::AddTenant(id, tenant)).await?;
    if args.change.json {
        return say_json(&TenantView { id, name: &args.name });
    }
    say(format_args!("Tenant {:?} added: {id}", args.name));
    Ok(())
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let known = args.reach.registrar().await?.known().await?;
    let tenants = sorted(&known);
    if args.json {
        let views: Vec<_> =
            tenants.iter().map(|(id, tenant)| TenantView { id: *id, name: &tenant.name }).collect();
        return say_json(&views);
    }
    let mut table = Table::new(&["ID", "NAME", "CUSTOMERS", "DEVICES"]);
    for (id, tenant) in &tenants {
        let customers = known.customers.values().filter(|customer| customer.tenant == *id).count();
        let devices = known.devices.values().filter(|device| device.tenant == *id).count();
        table.row([id.to_string(), tenant.name.clone(), customers.to_string(), devices.to_string()]);
    }
    table.print();
    note(count(tenants.len(), "tenant"));
    Ok(())
}

async fn rename(args: RenameArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let known = registrar.accounts().await?;
    let (id, tenant) = find::tenant(&known, Some(&args.tenant))?;
    registrar.change(Change::RenameTenant(id, args.name.clone())).await?;
    if args.change.json {
        return say_json(&TenantView { id, name: &args.name });
    }
    say(format_args!("Tenant {:?} is now {:?}.", tenant.name, args.name));
    Ok(())
}

async fn remove(args: RemoveArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let known = registrar.accounts().await?;
    let (id, tenant) = find::tenant(&known, Some(&args.tenant))?;
    confirm(&format!("Remove tenant {:?} ({id})", tenant.name), args.yes)?;
    registrar.change(Change::RemoveTenant(id)).await?;
    if args.change.json {
        return say_json(&TenantView { id, name: &tenant.name });
    }
    say(format_args!("Tenant {:?} removed.", tenant.name));
    Ok(())
}

fn sorted(known: &Snapshot) -> Vec<(TenantId, &Tenant)> {
    let mut tenants: Vec<_> = known.tenants.iter().map(|(id, tenant)| (*id, tenant)).collect();
    tenants.sort_by(|(a_id, a), (b_id, b)| (&a.name, a_id).cmp(&(&b.name, b_id)));
    tenants
}
