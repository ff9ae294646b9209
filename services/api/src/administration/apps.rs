//! Which programs may call, and keep the registry? Applications and their keys; a key is shown once.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use bus::changes::{Change, Changed};
use bus::registry::{App, AppKey, DEFAULT_KEY_LASTS_S};
use rpc::{AppId, AppIdentity, KeyId, Role};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{
    Head, Keeper, Members, Query, Unchanged, Unseen, gone, no_app, not_there, refused, shown, too_narrow,
};
use crate::Server;
use crate::answer::Problem;

const DAY_S: u64 = 86_400;
/// The longest that a key may last.
const MAX_DAYS: u64 = 3_650;

pub(super) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new()
        .routes(routes!(own))
        .routes(routes!(list, add))
        .routes(routes!(show, remove))
        .routes(routes!(add_key))
        .routes(routes!(revoke_key))
}

/// An application.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = App)]
struct View {
    id: String,
    name: String,
    tenant: String,
    #[schema(example = "caller")]
    role: &'static str,
    all_tenants: bool,
    /// The ids of the customers whose devices it reaches; `null`: all devices of its tenant.
    customers: Option<Vec<String>>,
    /// Labels that a device must bear for it to be reached.
    labels: BTreeMap<String, String>,
    /// The methods that it may call; `null`: all.
    methods: Option<BTreeSet<String>>,
    /// The networks from which its keys are taken; `null`: from everywhere.
    networks: Option<BTreeSet<String>>,
    keys: Vec<Key>,
    /// The key that has just been made.
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
}

/// A key, as far as it is kept.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Key {
    id: String,
    /// When it was made, in seconds since 1970.
    made_s: u64,
    /// When it ends, in seconds since 1970.
    expires_s: u64,
}

impl View {
    fn of(id: AppId, app: App, key: Option<&AppKey>) -> Self {
        let keys = app.keys.iter().map(|(id, key)| Key {
            id: id.to_string(),
            made_s: key.made_s,
            expires_s: key.expires_s,
        });
        View {
            id: id.to_string(),
            tenant: app.tenant.to_string(),
            role: app.role.as_str(),
            all_tenants: app.all_tenants,
            customers: app.customers.map(|all| all.iter().map(ToString::to_string).collect()),
            keys: keys.collect(),
            name: app.name,
            labels: app.labels,
            methods: app.methods,
            networks: app.networks,
            key: key.map(|key| key.reveal().to_owned()),
        }
    }
}

/// A page of applications, by name.
#[derive(Serialize, ToSchema)]
struct Apps {
    apps: Vec<View>,
    /// `after` of the next page; not there: this was the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// An application that is to be added.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "it describes what `Members` reads")]
struct NewApp {
    /// Unique in its tenant.
    #[schema(min_length = 1, max_length = 255)]
    name: String,
    /// Made up when not given.
    #[schema(format = Uuid)]
    id: Option<String>,
    /// `caller` when not given.
    role: Option<RoleName>,
    /// It keeps all tenants, and not its own alone: for those to give who do.
    all_tenants: Option<bool>,
    /// The ids of the customers whose devices it may reach; all devices of the tenant when not given.
    #[schema(min_items = 1, max_items = 256)]
    customers: Option<Vec<Uuid>>,
    /// Labels that a device must bear for it to be reached.
    labels: Option<BTreeMap<String, String>>,
    /// The methods that it may call; all when not given.
    #[schema(min_items = 1, max_items = 256)]
    methods: Option<Vec<String>>,
    /// The networks from which its keys are taken, as `10.0.0.0/8`, or addresses; from everywhere when not given.
    #[schema(min_items = 1, max_items = 256)]
    networks: Option<Vec<String>>,
    /// Days that its key lasts, 1 to 3650; 90.
    #[schema(minimum = 1, maximum = 3650)]
    days: Option<u64>,
}

/// What an application may do; each may all that those before it may.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = Role)]
enum RoleName {
    Caller,
    Observer,
    Operator,
    Admin,
}

/// How long a key lasts.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "it describes what `Members` reads")]
struct Lasting {
    /// Days, 1 to 3650; 90.
    #[schema(minimum = 1, maximum = 3650)]
    days: Option<u64>,
}

/// Whom a key is for.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Own {
    id: String,
    name: String,
    tenant: String,
    #[schema(example = "caller")]
    role: &'static str,
    /// The id of the key.
    key: String,
    /// When it ends, in seconds since 1970.
    expires_s: u64,
}

/// Show whom the key is for
#[utoipa::path(get, path = "/v1/app", tag = "apps",
    responses((status = 200, description = "The application", body = Own), Unseen), security(("key" = [])))]
async fn own(State(server): State<Arc<Server>>, headers: HeaderMap) -> Result<Response, Problem> {
    let caller = server.let_in(&headers).await?;
    let AppIdentity { app, key, tenant, name, role, expires_s, .. } = caller.identity.clone();
    let own = Own {
        id: app.to_string(),
        name,
        tenant: tenant.to_string(),
        role: role.as_str(),
        key: key.to_string(),
        expires_s,
    };
    Ok(shown(StatusCode::OK, &own, None))
}

/// List the applications (admin)
#[utoipa::path(get, path = "/v1/apps", operation_id = "list_apps", tag = "apps",
    params(super::params::Page, super::params::OfTenant),
    responses((status = 200, description = "A page, by name", body = Apps), Unseen), security(("key" = [])))]
async fn list(head: Head) -> Result<Response, Problem> {
    let (keeper, query) = head.keeper(Role::Admin, &["limit", "after", "tenant"]).await?;
    keeper.whole()?;
    let tenant = keeper.tenant(&query)?;
    let known = keeper.changes.registry.load_places().await.map_err(refused)?;
    let seen = known.apps.into_iter().filter(|(_, app)| app.tenant == tenant);
    let seen = seen.map(|(id, app)| (app.name.clone(), View::of(id, app, None)));
    let (apps, next) = query.page(seen.collect())?;
    Ok(shown(StatusCode::OK, &Apps { apps, next }, None))
}

/// Show an application (admin)
#[utoipa::path(get, path = "/v1/apps/{app}", operation_id = "show_app", tag = "apps",
    params(super::params::App, super::params::OfTenant),
    responses((status = 200, description = "The application, and its keys' ids", body = View), Unseen),
    security(("key" = [])))]
async fn show(head: Head, Path(app): Path<String>) -> Result<Response, Problem> {
    let (keeper, query) = head.keeper(Role::Admin, &["tenant"]).await?;
    let (id, app) = keeper.named_app(&app, &query).await?;
    Ok(shown(StatusCode::OK, &View::of(id, app, None), None))
}

/// Add an application with a key (admin); the key is shown once
#[utoipa::path(post, path = "/v1/apps", operation_id = "add_app", tag = "apps",
    params(super::params::Reason, super::params::OfTenant),
    request_body(content = NewApp, content_type = "application/json"),
    responses((status = 201, description = "The application, with its key", body = View), Unchanged),
    security(("key" = [])))]
async fn add(head: Head, body: Body) -> Result<Response, Problem> {
    let (keeper, query) = head.keeper(Role::Admin, &["reason", "tenant"]).await?;
    keeper.whole()?;
    let mut members = head.members(body).await?;
    let id = AppId(members.take("id", "a UUID")?.unwrap_or_else(Uuid::new_v4));
    let app = App {
        tenant: keeper.tenant(&query)?,
        name: members.need("name", "a string")?,
        role: members
            .take("role", &format!("one of {}", Role::ALL.map(Role::as_str).join(", ")))?
            .unwrap_or(Role::Caller),
        all_tenants: members.take("allTenants", "true or false")?.unwrap_or(false),
        customers: members.take("customers", "a list of ids of customers")?,
        labels: members.take("labels", "an object of strings")?.unwrap_or_default(),
        methods: members.take("methods", "a list of strings")?,
        networks: members.take("networks", "a list of strings")?,
        keys: BTreeMap::new(),
    };
    let days = days(&mut members)?;
    members.end("name, id, role, allTenants, customers, labels, methods, networks, days")?;
    if app.all_tenants && !keeper.app.all_tenants {
        return Err(too_narrow("all tenants"));
    }
    let added = keeper.make(Change::AddApp(id, app, days), None).await;
    match added {
        Err(problem) if problem.is("unknown_customer") => {
            Err(Problem::member("customers", "ids of customers that are there"))
        }
        added => with_key(id, added?),
    }
}

/// Remove an application (admin), its keys with it
#[utoipa::path(delete, path = "/v1/apps/{app}", operation_id = "remove_app", tag = "apps",
    params(super::params::App, super::params::Reason, super::params::OfTenant),
    responses((status = 204, description = "It is removed"), Unchanged), security(("key" = [])))]
async fn remove(head: Head, Path(app): Path<String>) -> Result<Response, Problem> {
    let (keeper, query) = head.keeper(Role::Admin, &["reason", "tenant"]).await?;
    let (id, _) = keeper.named_app(&app, &query).await?;
    keeper.make(Change::RemoveApp(id), None).await.map(gone)
}

/// Make a second key for an application (admin), shown once
#[utoipa::path(post, path = "/v1/apps/{app}/keys", tag = "apps",
    params(super::params::App, super::params::Reason, super::params::OfTenant),
    request_body(content = Option<Lasting>, content_type = "application/json"),
    responses((status = 201, description = "The application, with its key", body = View), Unchanged),
    security(("key" = [])))]
async fn add_key(head: Head, Path(app): Path<String>, body: Body) -> Result<Response, Problem> {
    let (keeper, query) = head.keeper(Role::Admin, &["reason", "tenant"]).await?;
    let (id, _) = keeper.named_app(&app, &query).await?;
    let mut members = head.members(body).await?;
    let days = days(&mut members)?;
    members.end("days")?;
    with_key(id, keeper.make(Change::AddKey(id, days), None).await?)
}

/// End a key at once (admin)
#[utoipa::path(delete, path = "/v1/apps/{app}/keys/{key}", tag = "apps",
    params(super::params::App, ("key" = String, Path, description = "The key's id, the part between the two `_`"),
        super::params::Reason, super::params::OfTenant),
    responses((status = 204, description = "It has ended"), Unchanged), security(("key" = [])))]
async fn revoke_key(head: Head, Path((app, key)): Path<(String, String)>) -> Result<Response, Problem> {
    let (keeper, query) = head.keeper(Role::Admin, &["reason", "tenant"]).await?;
    let (id, app) = keeper.named_app(&app, &query).await?;
    let key = key.parse::<KeyId>().ok().filter(|key| app.keys.contains_key(key));
    let key = key.ok_or_else(|| not_there("unknown_key", "The application has no such key"))?;
    keeper.make(Change::RevokeKey(id, key), None).await.map(gone)
}

/// An application with the key that was made: shown this once.
fn with_key(id: AppId, made: Changed) -> Result<Response, Problem> {
    match made {
        Changed::App(app, key) => Ok(shown(StatusCode::CREATED, &View::of(id, app, key.as_ref()), None)),
        _ => Err(no_app()),
    }
}

fn days(members: &mut Members) -> Result<u64, Problem> {
    let expected = format!("a whole number of days, 1 to {MAX_DAYS}");
    let days = members.take("days", &expected)?.unwrap_or(DEFAULT_KEY_LASTS_S / DAY_S);
    if (1..=MAX_DAYS).contains(&days) { Ok(days) } else { Err(Problem::member("days", expected)) }
}

impl Keeper {
    /// The application of that id, or of that name in the tenant. One that keeps all tenants is for its equals alone.
    pub(super) async fn named_app(&self, named: &str, query: &Query) -> Result<(AppId, App), Problem> {
        self.whole()?;
        let (registry, tenant) = (&self.changes.registry, self.tenant(query)?);
        let found = match named.parse() {
            Ok(id) => registry.app(id).await.map(|app| app.map(|app| (id, app))),
            Err(_) => registry.app_named(tenant, named).await,
        };
        let is_seen = |(_, app): &(AppId, App)| self.sees_tenant(app.tenant);
        let found = found.map_err(refused)?.filter(is_seen).ok_or_else(no_app)?;
        match found.1.all_tenants && !self.app.all_tenants {
            true => Err(too_narrow("all tenants")),
            false => Ok(found),
        }
    }
}
