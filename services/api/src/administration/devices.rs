//! Which devices are there, and how do they show who they are? Added, changed, removed; tokens are shown once.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::Response;
use bus::changes::{Change, Changed};
use bus::registry::{DEFAULT_TYPE, Device, DeviceChange, NewDevice, RegistryError, Tag, Token};
use rpc::{DeviceId, Role};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use super::{Head, Keeper, Members, Unchanged, gone, no_device, refused, shown, too_narrow};
use crate::Server;
use crate::answer::Problem;

pub(super) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(add)).routes(routes!(change, remove)).routes(routes!(rotate))
}

/// A device as it is kept.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = KeptDevice)]
struct View {
    id: String,
    name: String,
    tenant: String,
    #[serde(rename = "type")]
    kind: String,
    /// The id of its customer, if it is assigned to one.
    customer: Option<String>,
    labels: BTreeMap<String, String>,
    /// Its access token, where it has just been made.
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
}

impl View {
    fn of(id: DeviceId, device: &Device, token: Option<&Token>) -> Self {
        View {
            id: id.to_string(),
            name: device.name.clone(),
            tenant: device.tenant.to_string(),
            kind: device.kind.clone(),
            customer: device.customer.map(|it| it.to_string()),
            labels: device.labels.clone(),
            token: token.map(|token| token.reveal().to_owned()),
        }
    }
}

/// A device that is to be added.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "it describes what `Members` reads")]
struct AddedDevice {
    /// Unique in its tenant.
    #[schema(min_length = 1, max_length = 255)]
    name: String,
    /// Made up when not given.
    #[schema(format = Uuid)]
    id: Option<String>,
    /// The id of the customer to assign it to.
    #[schema(format = Uuid)]
    customer: Option<String>,
    /// `default` when not given.
    #[serde(rename = "type")]
    #[schema(min_length = 1, max_length = 255)]
    kind: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    /// Its access token, 16 characters to 255 bytes; made up when not given, which is safer.
    token: Option<String>,
    /// Takes a token of fewer than 16 characters, which is guessed sooner or later.
    weak_token: Option<bool>,
}

/// What of a device is to change (RFC 7396): what is not named stays.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "it describes a `DeviceChange`")]
struct ChangedDevice {
    #[schema(min_length = 1, max_length = 255)]
    name: Option<String>,
    #[serde(rename = "type")]
    #[schema(min_length = 1, max_length = 255)]
    kind: Option<String>,
    /// The id of a customer of its tenant; `null`: nobody's. Its sessions end.
    #[schema(format = Uuid)]
    customer: Option<String>,
    /// Labels to set; `null` takes one away.
    labels: Option<BTreeMap<String, Option<String>>>,
}

/// Another token.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "it describes what `Members` reads")]
struct NewToken {
    /// 16 characters to 255 bytes; made up when not given, which is safer.
    token: Option<String>,
    /// Takes a token of fewer than 16 characters, which is guessed sooner or later.
    weak_token: Option<bool>,
}

/// Add a device (operator); its token is shown once
#[utoipa::path(post, path = "/v1/devices", operation_id = "add_device", tag = "devices",
    params(super::params::Reason, super::params::OfTenant),
    request_body(content = AddedDevice, content_type = "application/json"),
    responses((status = 201, description = "The device, with its token", body = View), Unchanged),
    security(("key" = [])))]
async fn add(head: Head, body: Body) -> Result<Response, Problem> {
    let known = ["reason", "tenant"];
    let (keeper, query) = head.keeper(Role::Operator, &known).await?;
    let mut members = head.members(body).await?;
    let new = NewDevice {
        id: DeviceId(members.take("id", "a UUID")?.unwrap_or_else(Uuid::new_v4)),
        tenant: keeper.tenant(&query)?,
        customer: members.take("customer", "the id of a customer, or null")?,
        name: members.need("name", "a string")?,
        kind: members.take("type", "a string")?.unwrap_or_else(|| DEFAULT_TYPE.to_owned()),
        labels: members.take("labels", "an object of strings")?.unwrap_or_default(),
        token: token(&mut members)?,
    };
    members.end("name, id, customer, type, labels, token, weakToken")?;
    if !keeper.app.reaches(new.customer, &new.labels) {
        return Err(too_narrow("the device as it would be"));
    }
    let (id, token) = (new.id, new.token.clone());
    let customer = new.customer;
    match keeper.make(Change::AddDevice(Box::new(new)), None).await {
        Ok(Changed::Device(device)) => {
            Ok(shown(StatusCode::CREATED, &View::of(id, &device, Some(&token)), Some(&device.tag())))
        }
        Ok(_) => Err(no_device()),
        Err(problem) => Err(about_customer(problem, customer.is_some())),
    }
}

/// Change a device (operator)
#[utoipa::path(patch, path = "/v1/devices/{device}", operation_id = "change_device", tag = "devices",
    params(super::params::Device, super::params::Reason, super::params::State),
    request_body(content = ChangedDevice, content_type = "application/merge-patch+json"),
    responses((status = 200, description = "The device; its state as ETag", body = View), Unchanged),
    security(("key" = [])))]
async fn change(head: Head, Path(device): Path<String>, body: Body) -> Result<Response, Problem> {
    let keeper = head.keeper(Role::Operator, &["reason"]).await?.0;
    let (id, mut device) = keeper.named_device(&device).await?;
    let mut members = head.members(body).await?;
    let change = DeviceChange {
        name: members.take("name", "a string")?,
        kind: members.take("type", "a string")?,
        customer: match members.0.contains_key("customer") {
            true => Some(members.take("customer", "the id of a customer, or null")?),
            false => None,
        },
        labels: members.take("labels", "an object of strings, or null to take one away")?.unwrap_or_default(),
    };
    members.end("name, type, customer, labels")?;
    let only = keeper.only(&device, &head)?;
    let assigns = matches!(change.customer, Some(Some(_)));
    change.apply(&mut device).map_err(|invalid| refused(invalid.into()))?;
    if !keeper.reaches(&device) {
        return Err(too_narrow("the device as it would be"));
    }
    match keeper.make(Change::ChangeDevice(id, change), only.as_ref()).await {
        Ok(Changed::Device(device)) => {
            Ok(shown(StatusCode::OK, &View::of(id, &device, None), Some(&device.tag())))
        }
        Ok(_) => Err(no_device()),
        Err(problem) => Err(about_customer(problem, assigns)),
    }
}

/// Remove a device (operator); its sessions end
#[utoipa::path(delete, path = "/v1/devices/{device}", operation_id = "remove_device", tag = "devices",
    params(super::params::Device, super::params::Reason, super::params::State),
    responses((status = 204, description = "It is removed"), Unchanged), security(("key" = [])))]
async fn remove(head: Head, Path(device): Path<String>) -> Result<Response, Problem> {
    let keeper = head.keeper(Role::Operator, &["reason"]).await?.0;
    let (id, device) = keeper.named_device(&device).await?;
    let only = keeper.only(&device, &head)?;
    keeper.make(Change::RemoveDevice(id), only.as_ref()).await.map(gone)
}

/// Give a device another token (operator), shown once; the old one is void and its sessions end
#[utoipa::path(post, path = "/v1/devices/{device}/token", operation_id = "rotate_token", tag = "devices",
    params(super::params::Device, super::params::Reason),
    request_body(content = Option<NewToken>, content_type = "application/json"),
    responses((status = 200, description = "The device, with its token", body = View), Unchanged),
    security(("key" = [])))]
async fn rotate(head: Head, Path(device): Path<String>, body: Body) -> Result<Response, Problem> {
    let keeper = head.keeper(Role::Operator, &["reason"]).await?.0;
    let (id, _) = keeper.named_device(&device).await?;
    let mut members = head.members(body).await?;
    let token = token(&mut members)?;
    members.end("token, weakToken")?;
    match keeper.make(Change::RotateToken(id, token.clone()), None).await? {
        Changed::Device(device) => {
            Ok(shown(StatusCode::OK, &View::of(id, &device, Some(&token)), Some(&device.tag())))
        }
        _ => Err(no_device()),
    }
}

/// The token that a body gives, or a new one.
fn token(members: &mut Members) -> Result<Token, Problem> {
    let is_weak_taken = members.take("weakToken", "true or false")?.unwrap_or(false);
    let token = match members.take::<String>("token", "a string")? {
        Some(text) => Token::parse(&text).and_then(|token| token.admit(is_weak_taken)).map_err(Into::into),
        None => Token::generate(),
    };
    token.map_err(refused)
}

/// A customer that is missing is a fault of the body.
fn about_customer(problem: Problem, names_customer: bool) -> Problem {
    match names_customer && problem.is("unknown_customer") {
        true => Problem::member("customer", "the id of a customer that is there"),
        false => problem,
    }
}

impl Keeper {
    /// In which state alone a device may be changed: as the request says; and for whom it could get out of reach in
    /// between, as it was read.
    fn only(&self, device: &Device, head: &Head) -> Result<Option<Tag>, Problem> {
        let read = device.tag();
        match head.state()? {
            Some(asked) if asked != read => Err(refused(RegistryError::Changed)),
            Some(asked) => Ok(Some(asked)),
            None => Ok((!self.app.is_whole()).then_some(read)),
        }
    }

    /// The device of that id, or of that name in the application's tenant.
    pub(super) async fn named_device(&self, named: &str) -> Result<(DeviceId, Device), Problem> {
        let registry = &self.changes.registry;
        let found = match named.parse::<DeviceId>() {
            Ok(id) => registry.device(id).await.map(|device| device.map(|device| (id, device))),
            Err(_) => registry.device_named(self.app.tenant, named).await,
        };
        found.map_err(refused)?.filter(|(_, device)| self.reaches(device)).ok_or_else(no_device)
    }
}
