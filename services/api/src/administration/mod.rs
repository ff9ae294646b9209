//! How is the registry kept over HTTP? As the command keeps it: by the same changes, with the same records in the
//! audit, for applications whose role allows it, within their scope. What is outside of that is not there.
//!
//! Who asks is looked up in the registry itself, each time: what is known of a key elsewhere may be a moment old.

mod apps;
mod audit;
mod customers;
mod devices;
mod judgements;
mod params;
mod policies;
mod tenants;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use boot::Settings;
use boot::clock::unix_s;
use bus::Bus;
use bus::audit::MAX_TEXT_CHARS;
use bus::changes::{Author, Change, Changed, Changes, NotChanged, Recorder};
use bus::policies::Policies;
use bus::registry::{App, Customer, Device, Invalid, Registry, RegistryError, Tag};
use rpc::{AppId, CustomerId, Place, Role, TenantId};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use utoipa_axum::router::OpenApiRouter;

use crate::Server;
use crate::answer::Problem;
use crate::request;

/// Entries of a page that says no `limit`.
const PAGE: usize = 100;
/// The most entries of a page.
const MAX_PAGE: usize = 500;

/// Questions about all devices of a tenant that are answered at a time.
const MAX_SURVEYS: usize = 1;

/// The routes.
pub(crate) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new()
        .merge(tenants::routes())
        .merge(customers::routes())
        .merge(devices::routes())
        .merge(apps::routes())
        .merge(policies::routes())
        .merge(judgements::routes())
        .merge(audit::routes())
}

/// The registry, once it is needed.
pub(crate) struct Administration {
    is_on: bool,
    bus: Bus,
    settings: Arc<Settings>,
    opened: OnceCell<Changes>,
    policies: OnceCell<Policies>,
    turns: Semaphore,
}

impl Administration {
    pub(crate) fn new(bus: Bus, settings: Arc<Settings>) -> Self {
        Administration {
            is_on: settings.api.administration,
            bus,
            settings,
            opened: OnceCell::new(),
            policies: OnceCell::new(),
            turns: Semaphore::new(MAX_SURVEYS),
        }
    }

    /// Waits for a turn to look at all devices. Whoever waits has a place of its application's, so that few do.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }

    async fn opened(&self) -> Result<&Changes, RegistryError> {
        let open = async || {
            let registry = Registry::open(&self.bus).await?;
            let recorder = Recorder::of(&self.bus, &self.settings, Author::default());
            Ok(Changes { registry, recorder })
        };
        self.opened.get_or_try_init(open).await
    }
}

/// An application that keeps the registry: as it stands there now.
struct Keeper {
    id: AppId,
    app: App,
    changes: Changes,
    _place: Place<AppId>,
}

/// A request, but for its path and its body.
struct Head {
    server: Arc<Server>,
    headers: HeaderMap,
    query: String,
}

impl FromRequestParts<Arc<Server>> for Head {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server>) -> Result<Self, Infallible> {
        Ok(Head {
            server: Arc::clone(server),
            headers: std::mem::take(&mut parts.headers),
            query: parts.uri.query().unwrap_or_default().to_owned(),
        })
    }
}

impl Head {
    /// Who asks, and may, with its query, of which `known` alone may be there.
    async fn keeper(&self, role: Role, known: &[&str]) -> Result<(Keeper, Query), Problem> {
        let server = &self.server;
        let caller = server.let_in_as(&self.headers, role).await?;
        if !server.administration.is_on {
            let title = "This copy of the API does not keep the registry";
            let problem = Problem::new(StatusCode::FORBIDDEN, "administration_off", title);
            return Err(problem.expected("api.administration is true, and NATS lets this service write"));
        }
        let (app, key) = (caller.identity.app, caller.identity.key);
        let place = server.place(&caller)?;
        let query = Query::read(&self.query, known)?;
        let changes = server.administration.opened().await.map_err(refused)?;
        let record = changes.registry.app(app).await.map_err(refused)?;
        let Some(record) = record.filter(|it| it.has_key(key, unix_s())) else {
            return Err(server.not_let_in(crate::keys::NotLetIn::Unknown));
        };
        if record.role < role {
            return Err(Problem::role(role));
        }
        let author = Author {
            who: author(app),
            from: format!("the API, application {:?}, key {key}", record.name),
            why: query.reason()?,
        };
        let changes = Changes { registry: changes.registry.clone(), recorder: changes.recorder.by(author) };
        Ok((Keeper { id: app, app: record, changes, _place: place }, query))
    }

    /// The members of a body that must be a JSON object; of none, where it may be left out.
    async fn members(&self, body: Body) -> Result<Members, Problem> {
        self.members_of(body, self.server.max_body_bytes).await
    }

    /// The same of a body of so many bytes at most.
    async fn members_of(&self, body: Body, most: usize) -> Result<Members, Problem> {
        let is_given = self.headers.contains_key(header::CONTENT_TYPE);
        let is_json = ["application/json", "application/merge-patch+json"]
            .iter()
            .any(|kind| request::is_of_kind(&self.headers, kind));
        let body = self.server.read_at_most(body, most).await?;
        match (body.is_empty(), is_json) {
            (true, _) if !is_given || is_json => Ok(Members(Map::new())),
            (_, false) => Err(Problem::not_said_to_be_json()),
            // Where nothing need be said, that can be said as `null`.
            (_, true) => match serde_json::from_slice::<Option<_>>(&body) {
                Ok(members) => Ok(Members(members.unwrap_or_default())),
                Err(_) => Err(request::Fault::NotAnObject.into()),
            },
        }
    }

    /// The state that a change is for.
    fn state(&self) -> Result<Option<Tag>, Problem> {
        state(&self.headers)
    }
}

impl Keeper {
    fn sees_tenant(&self, tenant: TenantId) -> bool {
        self.app.all_tenants || self.app.tenant == tenant
    }

    fn sees_customer(&self, id: CustomerId, customer: &Customer) -> bool {
        self.sees_tenant(customer.tenant) && self.app.customers.as_ref().is_none_or(|all| all.contains(&id))
    }

    fn reaches(&self, device: &Device) -> bool {
        self.sees_tenant(device.tenant) && self.app.reaches(device.customer, &device.labels)
    }

    /// What is of a tenant as a whole is not for who reaches a part of it.
    fn whole(&self) -> Result<(), Problem> {
        if self.app.is_whole() {
            Ok(())
        } else {
            Err(too_narrow("all devices of its tenant, by all methods"))
        }
    }

    /// The tenant that a request is about: `tenant` of the query, or the application's own.
    fn tenant(&self, query: &Query) -> Result<TenantId, Problem> {
        let Some(named) = query.0.get("tenant") else { return Ok(self.app.tenant) };
        let tenant = named.parse().ok().filter(|it| self.sees_tenant(*it));
        tenant.ok_or_else(|| Problem::parameter("tenant", "the id of a tenant that is there"))
    }

    /// Makes a change of what is in that state alone, if there is one.
    async fn make(&self, change: Change, only: Option<&Tag>) -> Result<Changed, Problem> {
        self.changes.make(change, only, unix_s()).await.map_err(|error| unmade(error, refused))
    }

    /// In whose name it changes something.
    fn author(&self) -> String {
        author(self.id)
    }
}

fn author(app: AppId) -> String {
    format!("application {app}")
}

/// Why nothing was changed, in our words.
fn unmade<E>(error: NotChanged<E>, refused: impl Fn(E) -> Problem) -> Problem {
    match error {
        NotChanged::Unrecorded(error) => {
            tracing::warn!(%error, "the audit does not take a record: nothing is changed");
            let title = "Nothing was changed: the audit does not take the record of it";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unrecorded", title)
        }
        NotChanged::Failed(error) => refused(error),
        NotChanged::FailedUntold(error, untold) => {
            tracing::error!(error = %untold, "the audit says that a change happened which did not");
            refused(error)
        }
    }
}

/// The parameters of a request.
#[derive(Debug)]
struct Query(BTreeMap<String, String>);

impl Query {
    fn read(query: &str, known: &[&str]) -> Result<Self, Problem> {
        let pairs = request::pairs(query)?;
        match pairs.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, _)) => {
                Err(Problem::parameter(name, format!("left out: there are {}", known.join(", "))))
            }
            None => Ok(Query(pairs.into_iter().collect())),
        }
    }

    /// What for, for the audit.
    fn reason(&self) -> Result<String, Problem> {
        let reason = self.0.get("reason").cloned().unwrap_or_default();
        match reason.chars().count() <= MAX_TEXT_CHARS && !reason.chars().any(char::is_control) {
            true => Ok(reason),
            false => {
                let expected = format!("at most {MAX_TEXT_CHARS} characters, without control characters");
                Err(Problem::parameter("reason", expected))
            }
        }
    }

    fn number<T: std::str::FromStr + PartialOrd + std::fmt::Display + Copy>(
        &self,
        name: &str,
        within: std::ops::RangeInclusive<T>,
    ) -> Result<Option<T>, Problem> {
        let Some(text) = self.0.get(name) else { return Ok(None) };
        let number = text.parse().ok().filter(|number| within.contains(number));
        let expected = || format!("a whole number, {} to {}", within.start(), within.end());
        number.map(Some).ok_or_else(|| Problem::parameter(name, expected()))
    }

    fn limit(&self) -> Result<usize, Problem> {
        Ok(self.number("limit", 1..=MAX_PAGE)?.unwrap_or(PAGE))
    }

    /// A page of `all`, by name, and what it goes on behind.
    fn page<T>(&self, mut all: Vec<(String, T)>) -> Result<(Vec<T>, Option<String>), Problem> {
        let (limit, after) = (self.limit()?, self.0.get("after"));
        all.retain(|(name, _)| after.is_none_or(|after| name > after));
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        let is_more = all.len() > limit;
        all.truncate(limit);
        let next = all.last().filter(|_| is_more).map(|(name, _)| name.clone());
        Ok((all.into_iter().map(|(_, it)| it).collect(), next))
    }
}

/// The members of a body.
struct Members(Map<String, Value>);

impl Members {
    /// A member that may be left out, as if it were `null`.
    fn take<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<Option<T>, Problem> {
        let value = self.0.remove(name).unwrap_or_default();
        serde_json::from_value(value).map_err(|_| Problem::member(name, expected))
    }

    /// A member that must be there.
    fn need<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Result<T, Problem> {
        self.take(name, expected)?.ok_or_else(|| Problem::member(name, expected))
    }

    /// Another name, and nothing else.
    fn renamed(mut self) -> Result<String, Problem> {
        let name = self.need("name", "a string")?;
        self.end("name")?;
        Ok(name)
    }

    /// After all that are known were taken: there is no other.
    fn end(self, known: &str) -> Result<(), Problem> {
        match self.0.keys().next() {
            Some(unknown) => Err(Problem::member(unknown, format!("left out: there are {known}"))),
            None => Ok(()),
        }
    }
}

/// The state that a change is for (RFC 9110 §13.1.1).
fn state(headers: &HeaderMap) -> Result<Option<Tag>, Problem> {
    let Some(shown) = headers.get(header::IF_MATCH) else { return Ok(None) };
    match shown.to_str().unwrap_or_default().trim() {
        "*" => Ok(None),
        one => match one.strip_prefix('"').and_then(|it| it.strip_suffix('"')) {
            Some(tag) if !tag.contains('"') => Ok(Some(Tag::shown(tag))),
            _ => Err(Problem::parameter("If-Match", "one ETag in quotes, as it was shown, or *")),
        },
    }
}

fn too_narrow(expected: &str) -> Problem {
    let title = "The application's scope is too narrow for that";
    let problem = Problem::new(StatusCode::FORBIDDEN, "scope_too_narrow", title);
    problem.expected(format!("an application that reaches {expected}"))
}

fn not_there(kind: &'static str, title: &'static str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, kind, title)
}

fn no_tenant() -> Problem {
    not_there("unknown_tenant", "There is no such tenant")
}

fn no_customer() -> Problem {
    not_there("unknown_customer", "There is no such customer")
}

fn no_device() -> Problem {
    not_there("unknown_device", "There is no such device")
}

fn no_app() -> Problem {
    not_there("unknown_app", "There is no such application")
}

/// What the registry refuses, in our words.
fn refused(error: RegistryError) -> Problem {
    use bus::registry::Kind;
    let conflict = |kind, title| Problem::new(StatusCode::CONFLICT, kind, title);
    match error {
        RegistryError::Invalid(Invalid { field, expected }) => Problem::member(field, expected),
        // Whoever holds it may be nobody that the application may know of.
        RegistryError::Taken { what, .. } => conflict("taken", "Somebody else has that already").of(what),
        RegistryError::Missing { kind, .. } => match kind {
            Kind::Tenant => no_tenant(),
            Kind::Customer => no_customer(),
            Kind::Device => no_device(),
            Kind::App => no_app(),
        },
        RegistryError::ForeignCustomer(_) => Problem::member("customer", "one of the same tenant"),
        RegistryError::StillUsed { .. } => {
            conflict("not_empty", "It is not empty").expected(error.to_string())
        }
        RegistryError::Contended => conflict("contended", "Others are changing it at this moment"),
        RegistryError::Changed => {
            let title = "It has been changed meanwhile: read it again";
            Problem::new(StatusCode::PRECONDITION_FAILED, "changed", title)
        }
        RegistryError::KeysFull => conflict("keys_full", "It has as many keys as may live: revoke one first"),
        RegistryError::Unreachable(_) | RegistryError::Unreadable { .. } | RegistryError::Randomness(_) => {
            tracing::warn!(%error, "the registry cannot be kept");
            unavailable()
        }
    }
}

fn unavailable() -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "A service is missing, or failed")
}

fn shown(status: StatusCode, body: &impl Serialize, tag: Option<&Tag>) -> Response {
    let json = [(header::CONTENT_TYPE, "application/json")];
    let mut response = (status, json, serde_json::to_vec(body).unwrap_or_default()).into_response();
    if let Some(tag) = tag.and_then(|tag| HeaderValue::try_from(format!("\"{}\"", tag.as_str())).ok()) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

fn gone(_: Changed) -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// What can go wrong with a look at the registry, and a change of it.
macro_rules! problems {
    ($name:ident, $doc:literal, $($status:literal: $what:literal),+) => {
        #[doc = $doc]
        struct $name;

        impl utoipa::IntoResponses for $name {
            fn responses()
            -> BTreeMap<String, utoipa::openapi::RefOr<utoipa::openapi::response::Response>> {
                let problem = |what: &str| {
                    let schema = utoipa::openapi::Ref::from_schema_name("Problem");
                    let content = utoipa::openapi::ContentBuilder::new().schema(Some(schema)).build();
                    let response = utoipa::openapi::ResponseBuilder::new().description(what);
                    response.content("application/problem+json", content).build().into()
                };
                [$(($status.to_owned(), problem($what))),+].into()
            }
        }
    };
}

problems!(
    Unseen,
    "What can go wrong with a look.",
    "401": "No key, or none that lives",
    "403": "The key's role, or its scope, is not for that; or this copy does not keep the registry",
    "404": "There is no such thing, for this application",
    "422": "A parameter is not what it must be",
    "429": "A limit is reached",
    "503": "A service is missing, or failed"
);
problems!(
    Unchanged,
    "What can go wrong with a change.",
    "400": "The body is not a JSON object",
    "401": "No key, or none that lives",
    "403": "The key's role, or its scope, is not for that; or this copy does not keep the registry",
    "404": "There is no such thing, for this application",
    "408": "The body did not come in time",
    "409": "A name or id is taken, or what is there stands against it",
    "412": "It is not in the state that If-Match says",
    "413": "The body is too large",
    "415": "The body is not said to be JSON",
    "422": "A member or a parameter is not what it must be; `field` says which",
    "429": "A limit is reached",
    "503": "A service is missing, or failed; `unrecorded`: nothing was changed"
);
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_goes_on_behind_its_last_name() {
        let all = || ["c", "a", "b"].map(|name| (name.to_owned(), name)).into();
        let query = |text: &str| Query::read(text, &["limit", "after"]).unwrap();
        assert_eq!(query("limit=2").page(all()).unwrap(), (vec!["a", "b"], Some("b".to_owned())));
        assert_eq!(query("limit=2&after=b").page(all()).unwrap(), (vec!["c"], None));
        assert_eq!(query("limit=3").page(all()).unwrap().1, None);
        for wrong in ["limit=0", "limit=501", "limit=x"] {
            assert!(query(wrong).page(all()).is_err(), "{wrong}");
        }
        assert!(Query::read("nam=x", &["name"]).unwrap_err().text().starts_with("nam must be left out"));
    }

    #[test]
    fn a_state_is_one_etag() {
        let of = |text: &str| {
            let value = HeaderValue::try_from(text).unwrap();
            state(&HeaderMap::from_iter([(header::IF_MATCH, value)]))
        };
        assert_eq!(state(&HeaderMap::new()).unwrap(), None);
        assert_eq!(of("*").unwrap(), None);
        assert_eq!(of("\"0f\"").unwrap(), Some(Tag::shown("0f")));
        for wrong in ["0f", "\"0f", "\"a\", \"b\"", "W/\"0f\""] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
