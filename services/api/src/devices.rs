//! Which devices are there for an application, and which of them are connected? Pages by name, from the registry and
//! the claims.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bus::registry::Tag;
use rpc::{AppDevice, AppDevices, LastSeen, Sought};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Server;
use crate::answer::Problem;
use crate::request;
use crate::routes::target;

/// Devices of a page that says no `limit`.
const PAGE: u32 = 100;
/// The most devices of a page.
pub(crate) const MAX_PAGE: u32 = 500;

/// The routes.
pub(crate) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(show)).routes(routes!(presence))
}

/// A page of devices, by name.
#[derive(Serialize, ToSchema)]
struct Page<T> {
    devices: Vec<T>,
    /// `after` of the next page; not there: this was the last. A page may hold fewer than `limit` and not be the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A device.
#[derive(Serialize, ToSchema)]
struct Device {
    #[serde(flatten)]
    presence: Presence,
    #[serde(rename = "type")]
    kind: String,
    /// The id of its customer, if it is assigned to one.
    customer: Option<String>,
    labels: BTreeMap<String, String>,
}

/// Whether a device is connected.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Presence {
    #[schema(example = "aa435e80-9fce-11e6-8080-808080808080")]
    id: String,
    name: String,
    /// Whether it can be called now, as its node claims it: not a guess.
    online: bool,
    /// The node that it is connected to.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// How: `mqtt`, `http` or `coap`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "mqtt")]
    protocol: Option<&'static str>,
    /// Since when, in milliseconds since 1970 on its node's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    since_ms: Option<u64>,
    /// How it was last connected before; kept for 30 days after it went.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen: Option<Seen>,
}

/// How a device was last connected.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Seen {
    /// When that was found to be over, in milliseconds since 1970. A dead node's devices are after its lease.
    at_ms: u64,
    node: String,
    #[schema(example = "mqtt")]
    protocol: &'static str,
    /// Since when it had been.
    #[serde(skip_serializing_if = "Option::is_none")]
    since_ms: Option<u64>,
    /// Why no longer: `by_device`, `fault`, `taken_over`, `revoked`, `shutting_down`, `moved`, `node_gone`,
    /// `session_gone`; not there: nobody knows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "by_device")]
    reason: Option<&'static str>,
}

impl Seen {
    fn of(seen: LastSeen) -> Self {
        let LastSeen { at_ms, node, protocol, since_ms, reason } = seen;
        let (node, protocol) = (node.to_string(), protocol.as_str());
        Seen { at_ms, node, protocol, since_ms, reason: reason.map(|reason| reason.as_str()) }
    }
}

impl Presence {
    fn of(device: &AppDevice) -> Self {
        Presence {
            id: device.id.to_string(),
            name: device.name.clone(),
            online: device.online,
            node: device.place.map(|place| place.node.to_string()),
            protocol: device.place.map(|place| place.protocol.as_str()),
            since_ms: device.place.and_then(|place| place.since_ms),
            last_seen: device.seen.map(Seen::of),
        }
    }
}

impl Device {
    fn of(device: AppDevice) -> Self {
        let presence = Presence::of(&device);
        let AppDevice { kind, customer, labels, .. } = device;
        Device { presence, kind, customer: customer.map(|it| it.to_string()), labels }
    }
}

/// Which devices of a page: what [`read_query`] reads.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes what `read_query` reads")]
struct Query {
    /// Only those of this customer, by its id
    #[param(format = Uuid, nullable = false)]
    customer: Option<String>,
    /// Only those of this type
    #[param(rename = "type", nullable = false)]
    kind: Option<String>,
    /// Only those with this label, as `zone=north`; with all
    #[param(nullable = false)]
    label: Option<Vec<String>>,
    /// Only those whose name begins so
    #[param(nullable = false)]
    name: Option<String>,
    /// Only those that are connected, or are not
    #[param(nullable = false)]
    online: Option<bool>,
    /// At most so many, 1 to 500; 100
    #[param(minimum = 1, maximum = 500, nullable = false)]
    limit: Option<u32>,
    /// `next` of the page before
    #[param(nullable = false)]
    after: Option<String>,
}

/// List the devices that the key reaches
#[utoipa::path(
    get,
    path = "/v1/devices",
    tag = "devices",
    params(Query),
    responses(
        (status = 200, description = "A page, by name", body = Page<Device>),
        (status = 401, description = "No key, or none that lives", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "A parameter is not what it must be", body = Problem,
            content_type = "application/problem+json"),
        (status = 429, description = "A limit is reached", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "A service is missing, or failed", body = Problem,
            content_type = "application/problem+json"),
    ),
    security(("key" = [])),
)]
async fn list(State(server): State<Arc<Server>>, RawQuery(query): RawQuery, headers: HeaderMap) -> Response {
    server.page(&headers, query.as_deref(), false, Device::of).await
}

/// Show which devices are connected
#[utoipa::path(
    get,
    path = "/v1/presence",
    tag = "devices",
    params(Query),
    responses(
        (status = 200, description = "A page, by name", body = Page<Presence>),
        (status = 401, description = "No key, or none that lives", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "A parameter is not what it must be", body = Problem,
            content_type = "application/problem+json"),
        (status = 429, description = "A limit is reached", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "A service is missing, or failed", body = Problem,
            content_type = "application/problem+json"),
    ),
    security(("key" = [])),
)]
async fn presence(
    State(server): State<Arc<Server>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    server.page(&headers, query.as_deref(), true, |it| Presence::of(&it)).await
}

/// Show a device
#[utoipa::path(
    get,
    path = "/v1/devices/{device}",
    tag = "devices",
    params(("device" = String, Path, description = "The device's id, or its name in the application's tenant")),
    responses(
        (status = 200, description = "The device, and whether it is connected; its state as ETag", body = Device),
        (status = 401, description = "No key, or none that lives", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "No such device, for this application", body = Problem,
            content_type = "application/problem+json"),
        (status = 429, description = "A limit is reached", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "A service is missing, or failed", body = Problem,
            content_type = "application/problem+json"),
    ),
    security(("key" = [])),
)]
async fn show(State(server): State<Arc<Server>>, Path(device): Path<String>, headers: HeaderMap) -> Response {
    let target = match target(&device) {
        Ok(target) => target,
        Err(problem) => return problem.into_response(),
    };
    let sought = Sought { target: Some(target), limit: 1, seen: true, ..Sought::default() };
    match server.seek(&headers, || Ok(sought)).await {
        Err(problem) => problem.into_response(),
        Ok(page) => match page.devices.into_iter().next() {
            Some(device) => {
                let AppDevice { name, kind, customer, labels, .. } = &device;
                let tag = format!("\"{}\"", Tag::of_device(name, kind, *customer, labels).as_str());
                ([(header::ETAG, tag)], said(&Device::of(device))).into_response()
            }
            None => Problem::new(StatusCode::NOT_FOUND, "unknown_device", "There is no such device")
                .into_response(),
        },
    }
}

impl Server {
    async fn page<T: Serialize>(
        &self,
        headers: &HeaderMap,
        query: Option<&str>,
        seen: bool,
        of: fn(AppDevice) -> T,
    ) -> Response {
        let mut online = None;
        let read = || {
            let (sought, wanted) = read_query(query.unwrap_or_default())?;
            online = wanted;
            Ok(Sought { seen, ..sought })
        };
        match self.seek(headers, read).await {
            Err(problem) => problem.into_response(),
            Ok(AppDevices { devices, next }) => {
                let wanted = devices.into_iter().filter(|it| online.is_none_or(|online| it.online == online));
                said(&Page { devices: wanted.map(of).collect(), next })
            }
        }
    }

    /// What an application seeks, within its limits; `read` says what that is once it is known who asks.
    async fn seek(
        &self,
        headers: &HeaderMap,
        read: impl FnOnce() -> Result<Sought, Problem>,
    ) -> Result<AppDevices, Problem> {
        let caller = self.let_in(headers).await?;
        let sought = read()?;
        let _place = self.place(&caller)?;
        self.keys.devices(&caller, sought).await.map_err(|why| self.not_let_in(why))
    }
}

/// What is sought, and whether it is to be connected.
fn read_query(query: &str) -> Result<(Sought, Option<bool>), Problem> {
    let mut sought = Sought { limit: PAGE, ..Sought::default() };
    let mut online = None;
    for (name, value) in request::pairs(query)? {
        let name = name.as_str();
        match name {
            "customer" => {
                let customer =
                    value.parse().map_err(|_| Problem::parameter(name, "the UUID of a customer"))?;
                sought.customer = Some(customer);
            }
            "type" => sought.kind = Some(value),
            "label" => {
                let label = value.split_once('=').ok_or_else(|| Problem::parameter(name, "KEY=VALUE"))?;
                sought.labels.insert(label.0.to_owned(), label.1.to_owned());
            }
            "name" => sought.name = value,
            "online" => {
                let wanted = value.parse().map_err(|_| Problem::parameter(name, "true or false"))?;
                online = Some(wanted);
            }
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=MAX_PAGE).contains(limit));
                let expected = format!("a whole number, 1 to {MAX_PAGE}");
                sought.limit = limit.ok_or_else(|| Problem::parameter(name, expected))?;
            }
            "after" => sought.after = Some(value),
            _ => {
                let expected = "left out: there are customer, type, label, name, online, limit, after";
                return Err(Problem::parameter(name, expected));
            }
        }
    }
    Ok((sought, online))
}

pub(crate) fn said(body: &impl Serialize) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    (json, serde_json::to_vec(body).unwrap_or_default()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::Target;

    #[test]
    fn a_query_is_read_and_what_is_wrong_with_it_is_named() {
        let (sought, online) =
            read_query("type=door&label=zone%3Dnorth+1&label=b=c=d&name=Pump%20&online=true&limit=7&after=x")
                .unwrap();
        assert_eq!(
            (sought.kind.as_deref(), sought.name.as_str(), sought.limit, online),
            (Some("door"), "Pump ", 7, Some(true))
        );
        let labels =
            [("b", "c=d"), ("zone", "north 1")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!((sought.labels, sought.after.as_deref()), (labels.into(), Some("x")));
        for (query, name) in [
            ("customer=x", "customer"),
            ("label=zone", "label"),
            ("online=yes", "online"),
            ("limit=0", "limit"),
            ("limit=501", "limit"),
            ("name=%ff", "name"),
            ("nam=x", "nam"),
            ("online", "online"),
        ] {
            let said = serde_json::to_value(read_query(query).unwrap_err()).unwrap();
            assert_eq!((&said["field"], &said["status"]), (&name.into(), &422.into()), "{query}");
        }
    }

    #[test]
    fn a_target_is_an_id_where_it_reads_as_one() {
        assert!(matches!(target("aa435e80-9fce-11e6-8080-808080808080"), Ok(Target::Id(_))));
        assert_eq!(target("Pump 7").ok(), Some(Target::Name("Pump 7".to_owned())));
    }
}
