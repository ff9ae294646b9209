//! Who owns customers and devices? Tenants: an application's own, or all of them.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Response;
use bus::changes::{Change, Changed};
use bus::registry::Tenant;
use rpc::{Role, TenantId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{Head, Keeper, Unchanged, Unseen, gone, no_tenant, refused, shown, too_narrow};
use crate::Server;
use crate::answer::Problem;

pub(super) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(list, add)).routes(routes!(show, rename, remove))
}

/// A tenant.
#[derive(Serialize, ToSchema)]
#[schema(as = Tenant)]
struct View {
    #[schema(value_type = String, format = Uuid)]
    id: TenantId,
    name: String,
}

/// A page of tenants, by name.
#[derive(Serialize, ToSchema)]
struct Tenants {
    tenants: Vec<View>,
    /// `after` of the next page; not there: this was the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A tenant that is to be added.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "it describes what `Members` reads")]
struct NewTenant {
    /// Unique among tenants.
    #[schema(min_length = 1, max_length = 255)]
    name: String,
    /// Made up when not given.
    #[schema(format = Uuid)]
    id: Option<String>,
}

/// Another name.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "it describes what `Members` reads")]
pub(super) struct Renamed {
    /// The new one.
    #[schema(min_length = 1, max_length = 255)]
    name: String,
}

/// List the tenants that the key reaches (operator)
#[utoipa::path(get, path = "/v1/tenants", operation_id = "list_tenants", tag = "tenants", params(super::params::Page),
    responses((status = 200, description = "A page, by name", body = Tenants), Unseen), security(("key" = [])))]
async fn list(head: Head) -> Result<Response, Problem> {
    let known = ["limit", "after"];
    let (keeper, query) = head.keeper(Role::Operator, &known).await?;
    let known = keeper.changes.registry.load_places().await.map_err(refused)?;
    let seen = known.tenants.into_iter().filter(|(id, _)| keeper.sees_tenant(*id));
    let seen = seen.map(|(id, Tenant { name })| (name.clone(), View { id, name }));
    let (tenants, next) = query.page(seen.collect())?;
    Ok(shown(StatusCode::OK, &Tenants { tenants, next }, None))
}

/// Show a tenant (operator)
#[utoipa::path(get, path = "/v1/tenants/{tenant}",
    operation_id = "show_tenant", tag = "tenants", params(super::params::Tenant),
    responses((status = 200, description = "The tenant; its state as ETag", body = View), Unseen),
    security(("key" = [])))]
async fn show(head: Head, Path(tenant): Path<String>) -> Result<Response, Problem> {
    let (keeper, _) = head.keeper(Role::Operator, &[]).await?;
    let (id, tenant) = keeper.named_tenant(&tenant).await?;
    Ok(shown(StatusCode::OK, &View { id, name: tenant.name.clone() }, Some(&tenant.tag())))
}

/// Add a tenant (admin, of all tenants)
#[utoipa::path(post, path = "/v1/tenants", operation_id = "add_tenant", tag = "tenants", params(super::params::Reason),
    request_body(content = NewTenant, content_type = "application/json"),
    responses((status = 201, description = "The tenant", body = View), Unchanged), security(("key" = [])))]
async fn add(head: Head, body: Body) -> Result<Response, Problem> {
    let keeper = head.keeper(Role::Admin, &["reason"]).await?.0;
    keeper.all_tenants()?;
    let mut members = head.members(body).await?;
    let name = members.need("name", "a string")?;
    let id = TenantId(members.take("id", "a UUID")?.unwrap_or_else(Uuid::new_v4));
    members.end("name, id")?;
    let tenant = Tenant { name };
    keeper.make(Change::AddTenant(id, tenant.clone()), None).await?;
    Ok(shown(StatusCode::CREATED, &View { id, name: tenant.name.clone() }, Some(&tenant.tag())))
}

/// Rename a tenant (admin)
#[utoipa::path(patch, path = "/v1/tenants/{tenant}", operation_id = "rename_tenant", tag = "tenants",
    params(super::params::Tenant, super::params::Reason, super::params::State),
    request_body(content = Renamed, content_type = "application/json"),
    responses((status = 200, description = "The tenant; its state as ETag", body = View), Unchanged),
    security(("key" = [])))]
async fn rename(head: Head, Path(tenant): Path<String>, body: Body) -> Result<Response, Problem> {
    let keeper = head.keeper(Role::Admin, &["reason"]).await?.0;
    keeper.whole()?;
    let (id, _) = keeper.named_tenant(&tenant).await?;
    let name = head.members(body).await?.renamed()?;
    match keeper.make(Change::RenameTenant(id, name), head.state()?.as_ref()).await? {
        Changed::Tenant(tenant) => {
            Ok(shown(StatusCode::OK, &View { id, name: tenant.name.clone() }, Some(&tenant.tag())))
        }
        _ => Err(no_tenant()),
    }
}

/// Remove a tenant that has neither customers nor devices (admin, of all tenants)
#[utoipa::path(delete, path = "/v1/tenants/{tenant}", operation_id = "remove_tenant", tag = "tenants",
    params(super::params::Tenant, super::params::Reason),
    responses((status = 204, description = "It is removed"), Unchanged), security(("key" = [])))]
async fn remove(head: Head, Path(tenant): Path<String>) -> Result<Response, Problem> {
    let keeper = head.keeper(Role::Admin, &["reason"]).await?.0;
    keeper.all_tenants()?;
    let (id, _) = keeper.named_tenant(&tenant).await?;
    keeper.make(Change::RemoveTenant(id), None).await.map(gone)
}

impl Keeper {
    fn all_tenants(&self) -> Result<(), Problem> {
        if self.app.all_tenants {
            Ok(())
        } else {
            Err(too_narrow("all tenants (switchboard app add --all-tenants)"))
        }
    }

    /// The tenant of that id or name.
    async fn named_tenant(&self, named: &str) -> Result<(TenantId, Tenant), Problem> {
        let registry = &self.changes.registry;
        let found = match named.parse() {
            Ok(id) => registry.tenant(id).await.map(|tenant| tenant.map(|tenant| (id, tenant))),
            Err(_) => registry.tenant_named(named).await,
        };
        found.map_err(refused)?.filter(|(id, _)| self.sees_tenant(*id)).ok_or_else(no_tenant)
    }
}
