//! Whose devices may call each other? `switchboard customer …`

use std::process::ExitCode;

use bus::changes::Change;
use bus::registry::{Customer, Snapshot};
use clap::{Args, Subcommand};
use rpc::{CustomerId, TenantId};
use serde::Serialize;
use uuid::Uuid;

use crate::common::find;
use crate::common::output::{confirm, count, note, say, say_json};
use crate::common::reach::ReachArgs;
use crate::common::recorded::ChangeArgs;
use crate::common::table::Table;

#[derive(Subcommand)]
pub(crate) enum CustomerVerb {
    /// Add a customer
    Add(AddArgs),
    /// List the customers
    List(ListArgs),
    /// Give a customer another name
    Rename(RenameArgs),
    /// Remove a customer that has no devices
    Remove(RemoveArgs),
}

#[derive(Args)]
pub(crate) struct AddArgs {
    /// Its name, unique in its tenant
    name: String,
    /// Id or name of its tenant; needed when there are several
    #[arg(long)]
    tenant: Option<String>,
    /// Its id; made up when not given
    #[arg(long, value_name = "UUID")]
    id: Option<Uuid>,
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

#[derive(Args)]
pub(crate) struct RenameArgs {
    /// Id or name
    customer: String,
    /// The new name
    name: String,
    /// Id or name of its tenant, where several have a customer of that name
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Args)]
pub(crate) struct RemoveArgs {
    /// Id or name
    customer: String,
    /// Id or name of its tenant, where several have a customer of that name
    #[arg(long)]
    tenant: Option<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    change: ChangeArgs,
}

/// A customer as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CustomerView<'a> {
    id: CustomerId,
    name: &'a str,
    tenant: TenantId,
    tenant_name: String,
}

pub(crate) async fn run(verb: CustomerVerb) -> anyhow::Result<ExitCode> {
    match verb {
        CustomerVerb::Add(args) => add(args).await,
        CustomerVerb::List(args) => list(args).await,
        CustomerVerb::Rename(args) => rename(args).await,
        CustomerVerb::Remove(args) => remove(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

async fn add(args: AddArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let known = registrar.accounts().await?;
    let (tenant, _) = find::tenant(&known, args.tenant.as_deref())?;
    let id = CustomerId(args.id.unwrap_or_else(Uuid::new_v4));
    let customer = Customer { tenant, name: args.name };
    registrar.change(Change::AddCustomer(id, customer.clone())).await?;
    if args.change.json {
        return say_json(&view(&known, id, &customer));
    }
    say(format_args!("Customer {:?} added: {id}", customer.name));
    Ok(())
}

async fn list(args: ListArgs) -> anyhow::Result<()> {
    let known = args.reach.registrar().await?.known().await?;
    let tenant = find::tenant_if_named(&known, args.tenant.as_deref())?;
    let mut customers: Vec<_> = known
        .customers
        .iter()
        .filter(|(_, customer)| tenant.is_none_or(|tenant| customer.tenant == tenant))
        .map(|(id, customer)| view(&known, *id, customer))
        .collect();
    customers.sort_by(|a, b| (&a.tenant_name, a.name, a.id).cmp(&(&b.tenant_name, b.name, b.id)));
    if args.json {
        return say_json(&customers);
    }
    let mut table = Table::new(&["ID", "NAME", "TENANT", "DEVICES"]);
    for customer in &customers {
        let devices = known.devices.values().filter(|device| device.customer == Some(customer.id)).count();
        let cells = [customer.id.to_string(), customer.name.to_owned(), customer.tenant_name.clone()];
        table.row(cells.into_iter().chain([devices.to_string()]));
    }
    table.print();
    note(count(customers.len(), "customer"));
    Ok(())
}

async fn rename(args: RenameArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let known = registrar.accounts().await?;
    let (id, customer) = named(&known, &args.customer, args.tenant.as_deref())?;
    registrar.change(Change::RenameCustomer(id, args.name.clone())).await?;
    if args.change.json {
        let now = Customer { name: args.name, ..customer.clone() };
        return say_json(&view(&known, id, &now));
    }
    say(format_args!("Customer {:?} is now {:?}.", customer.name, args.name));
    Ok(())
}

async fn remove(args: RemoveArgs) -> anyhow::Result<()> {
    let registrar = args.change.registrar().await?;
    let known = registrar.accounts().await?;
    let (id, customer) = named(&known, &args.customer, args.tenant.as_deref())?;
    confirm(&format!("Remove customer {:?} ({id})", customer.name), args.yes)?;
    registrar.change(Change::RemoveCustomer(id)).await?;
    if args.change.json {
        return say_json(&view(&known, id, customer));
    }
    say(format_args!("Customer {:?} removed.", customer.name));
    Ok(())
}

fn named<'a>(
    known: &'a Snapshot,
    customer: &str,
    tenant: Option<&str>,
) -> anyhow::Result<(CustomerId, &'a Customer)> {
    let tenant = find::tenant_if_named(known, tenant)?;
    find::customer(known, customer, tenant)
}

fn view<'a>(known: &Snapshot, id: CustomerId, customer: &'a Customer) -> CustomerView<'a> {
    let tenant_name = find::tenant_name(known, customer.tenant);
    CustomerView { id, name: &customer.name, tenant: customer.tenant, tenant_name }
}
