//! Whose devices may call each other? Customers of a tenant.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Response;
use bus::changes::{Change, Changed};
use bus::registry::Customer;
use rpc::{CustomerId, Role, TenantId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::tenants::Renamed;
use super::{Head, Keeper, Query, Unchanged, Unseen, gone, no_customer, refused, shown, too_narrow};
use crate::Server;
use crate::answer::Problem;

pub(super) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(show, rename, remove))
}

/// A customer.
#[derive(Serialize, ToSchema)]
#[schema(as = Customer)]
struct View {
    #[schema(value_type = String, format = Uuid)]
    id: CustomerId,
    name: String,
    #[schema(value_type = String, format = Uuid)]
    tenant: TenantId,
}

impl View {
    fn of(id: CustomerId, Customer { name, tenant }: &Customer) -> Self {
        View { id, name: name.clone(), tenant: *tenant }
    }
}

/// A page of customers, by name.
#[derive(Serialize, ToSchema)]
struct Customers {
    customers: Vec<View>,
    /// `after` of the next page; not there: this was the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A customer that is to be added.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "it describes what `Members` reads")]
struct NewCustomer {
    /// Unique in its tenant.
    #[schema(min_length = 1, max_length = 255)]
    name: String,
    /// Made up when not given.
    #[schema(format = Uuid)]
    id: Option<String>,
}

/// List the customers that the key reaches (operator)
#[utoipa::path(get, path = "/v1/customers", operation_id = "list_customers", tag = "customers",
    params(super::params::Page, super::params::OfTenant),
    responses((status = 200, description = "A page, by name", body = Customers), Unseen), security(("key" = [])))]
async fn list(head: Head) -> Result<Response, Problem> {
    let known = ["limit", "after", "tenant"];
    let (keeper, query) = head.keeper(Role::Operator, &known).await?;
    let tenant = keeper.tenant(&query)?;
    let known = keeper.changes.registry.load_places().await.map_err(refused)?;
    let seen =
        known.customers.iter().filter(|(id, it)| it.tenant == tenant && keeper.sees_customer(**id, it));
    let seen = seen.map(|(id, it)| (it.name.clone(), View::of(*id, it)));
    let (customers, next) = query.page(seen.collect())?;
    Ok(shown(StatusCode::OK, &Customers { customers, next }, None))
}

/// Show a customer (operator)
#[utoipa::path(get, path = "/v1/customers/{customer}", operation_id = "show_customer", tag = "customers",
    params(super::params::Customer, super::params::OfTenant),
    responses((status = 200, description = "The customer; its state as ETag", body = View), Unseen),
    security(("key" = [])))]
async fn show(head: Head, Path(customer): Path<String>) -> Result<Response, Problem> {
    let (keeper, query) = head.keeper(Role::Operator, &["tenant"]).await?;
    let (id, customer) = keeper.named_customer(&customer, &query).await?;
    Ok(shown(StatusCode::OK, &View::of(id, &customer), Some(&customer.tag())))
}

/// Add a customer (operator)
#[utoipa::path(post, path = "/v1/customers", operation_id = "add_customer", tag = "customers",
    params(super::params::Reason, super::params::OfTenant),
    request_body(content = NewCustomer, content_type = "application/json"),
    responses((status = 201, description = "The customer", body = View), Unchanged), security(("key" = [])))]
async fn add(head: Head, body: Body) -> Result<Response, Problem> {
    let known = ["reason", "tenant"];
    let (keeper, query) = head.keeper(Role::Operator, &known).await?;
    if keeper.app.customers.is_some() {
        return Err(too_narrow("more than some customers"));
    }
    let mut members = head.members(body).await?;
    let name = members.need("name", "a string")?;
    let id = CustomerId(members.take("id", "a UUID")?.unwrap_or_else(Uuid::new_v4));
    members.end("name, id")?;
    let customer = Customer { tenant: keeper.tenant(&query)?, name };
    keeper.make(Change::AddCustomer(id, customer.clone()), None).await?;
    Ok(shown(StatusCode::CREATED, &View::of(id, &customer), Some(&customer.tag())))
}

/// Rename a customer (operator)
#[utoipa::path(patch, path = "/v1/customers/{customer}", operation_id = "rename_customer", tag = "customers",
    params(super::params::Customer, super::params::Reason, super::params::OfTenant, super::params::State),
    request_body(content = Renamed, content_type = "application/json"),
    responses((status = 200, description = "The customer; its state as ETag", body = View), Unchanged),
    security(("key" = [])))]
async fn rename(head: Head, Path(customer): Path<String>, body: Body) -> Result<Response, Problem> {
    let known = ["reason", "tenant"];
    let (keeper, query) = head.keeper(Role::Operator, &known).await?;
    let (id, _) = keeper.named_customer(&customer, &query).await?;
    let name = head.members(body).await?.renamed()?;
    match keeper.make(Change::RenameCustomer(id, name), head.state()?.as_ref()).await? {
        Changed::Customer(customer) => {
            Ok(shown(StatusCode::OK, &View::of(id, &customer), Some(&customer.tag())))
        }
        _ => Err(no_customer()),
    }
}

/// Remove a customer that has no devices (operator)
#[utoipa::path(delete, path = "/v1/customers/{customer}", operation_id = "remove_customer", tag = "customers",
    params(super::params::Customer, super::params::Reason, super::params::OfTenant),
    responses((status = 204, description = "It is removed"), Unchanged), security(("key" = [])))]
async fn remove(head: Head, Path(customer): Path<String>) -> Result<Response, Problem> {
    let known = ["reason", "tenant"];
    let (keeper, query) = head.keeper(Role::Operator, &known).await?;
    let (id, _) = keeper.named_customer(&customer, &query).await?;
    keeper.make(Change::RemoveCustomer(id), None).await.map(gone)
}

impl Keeper {
    /// The customer of that id, or of that name in the tenant.
    async fn named_customer(&self, named: &str, query: &Query) -> Result<(CustomerId, Customer), Problem> {
        let (registry, tenant) = (&self.changes.registry, self.tenant(query)?);
        let found = match named.parse() {
            Ok(id) => registry.customer(id).await.map(|customer| customer.map(|customer| (id, customer))),
            Err(_) => registry.customer_named(tenant, named).await,
        };
        found.map_err(refused)?.filter(|(id, it)| self.sees_customer(*id, it)).ok_or_else(no_customer)
    }
}
