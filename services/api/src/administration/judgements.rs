//! Who may call whom, why, and what would other policies change? Asked of a tenant's policies, over its devices.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use bus::StoreError;
use bus::audit::{Book, From};
use bus::changes;
use bus::registry::{App, Device, check_method};
use rpc::{AppId, DeviceId, Protocol, Role, TenantId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use switchboard_authorizer::policy::inquiry::{self, Asked, Besides, Denials, Differing, Explained, InForce};
use switchboard_authorizer::policy::{Action, Context, Facts, survey};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::policies::{MAX_BODY_BYTES, aside, read, texts, unkept};
use super::{Head, Keeper, Query, Unchanged, Unseen, no_device, refused, shown, unavailable};
use crate::Server;
use crate::answer::Problem;

/// How far back denied calls are looked for.
const LATELY: Duration = Duration::from_secs(7 * 24 * 3_600);
/// Pages of the audit that are read for them.
const MAX_PAGES: usize = 1_000;
/// Devices of a page that says no `limit`, and at most: each page judges all of them.
const PAGE: usize = 1_000;
const MAX_PAGE: usize = 10_000;

/// The parameters that say for what a decision is asked.
const ASKED: [&str; 8] = ["action", "method", "hour", "weekday", "protocol", "oneway", "timeout", "size"];

pub(super) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new()
        .routes(routes!(explain))
        .routes(routes!(whom))
        .routes(routes!(who))
        .routes(routes!(diff))
}

/// What a decision is asked for.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes what `asked` reads")]
struct AskedFor {
    /// `call` (sendMsg) or `list` (to be in the answer to getDevices); `call`
    #[param(pattern = "^(call|list)$", nullable = false)]
    action: Option<String>,
    /// By which method an application calls; `onMsg`
    #[param(min_length = 1, max_length = 255, nullable = false)]
    method: Option<String>,
    /// At this hour of the tenant's day; now
    #[param(maximum = 23, nullable = false)]
    hour: Option<u8>,
    /// On this weekday, from 1 (Monday); today
    #[param(minimum = 1, maximum = 7, nullable = false)]
    weekday: Option<u8>,
    /// How a device is connected that calls: `mqtt`, `http` or `coap`; `mqtt`
    #[param(pattern = "^(mqtt|http|coap)$", nullable = false)]
    protocol: Option<String>,
    /// The call wants no answer
    #[param(nullable = false)]
    oneway: Option<bool>,
    /// How long it may take, in milliseconds; 10000
    #[param(maximum = 4294967295_u64, nullable = false)]
    timeout: Option<u32>,
    /// How long its body is, in bytes; 2
    #[param(maximum = 4294967295_u64, nullable = false)]
    size: Option<u32>,
}

/// Who wants it.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes what `wanting` reads")]
struct Wanting {
    /// The device that wants it: its id, or its name in the application's tenant
    #[param(nullable = false)]
    from: Option<String>,
    /// The application that wants it, in place of a device: its id, or its name in the tenant
    #[param(nullable = false)]
    app: Option<String>,
}

/// About whom it is.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes what `target` reads")]
struct Wanted {
    /// The other device: its id, or its name in the application's tenant
    to: String,
}

/// A page of devices.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes what `page` reads")]
struct Page {
    /// At most so many, 1 to 10000; 1000
    #[param(minimum = 1, maximum = 10000, nullable = false)]
    limit: Option<u32>,
    /// `next` of the page before
    #[param(nullable = false)]
    after: Option<String>,
}

/// An application of which alone it is asked.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes what `diff` reads")]
struct OfApp {
    /// Only for this application (id or name); for all devices and applications of the tenant when not given
    #[param(nullable = false)]
    app: Option<String>,
}

/// Whether somebody may, and why.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Explanation)]
struct View {
    /// The device that wants it.
    #[serde(skip_serializing_if = "Option::is_none")]
    from: Option<String>,
    /// The application that wants it, in place of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    app: Option<String>,
    to: String,
    #[schema(example = "call")]
    action: String,
    /// The version that decides; 0: the built-in rule.
    version: u64,
    hour: u8,
    weekday: u8,
    /// Of an application: whether the device is in its scope, and the method of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_scope: Option<bool>,
    /// What its scope is.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    /// What is outside of its scope.
    #[serde(skip_serializing_if = "Option::is_none")]
    outside: Option<String>,
    allowed: bool,
    /// The policies that decided; none: no policy permits.
    decided_by: Vec<String>,
    /// Policies that could not be evaluated, each of which denies.
    failed: Vec<String>,
    /// The policies that matter, each with its conditions: `text`, whether it `holds`, and what was `read`.
    #[schema(value_type = Vec<Object>)]
    policies: Value,
    /// The smallest changes that turn the decision.
    would_change_it: Vec<Vec<String>>,
    /// Who is asked besides, by authorizers alone: not for this answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    external: Option<Besides>,
}

impl View {
    fn of(explained: Explained) -> Self {
        let Explained {
            from,
            app,
            to,
            action,
            version,
            hour,
            weekday,
            in_scope,
            scope,
            outside,
            explanation,
            external,
        } = explained;
        View {
            from,
            app,
            to,
            action,
            version,
            hour,
            weekday,
            in_scope,
            scope,
            outside,
            allowed: explanation.allowed,
            decided_by: explanation.decided_by,
            failed: explanation.failed,
            policies: serde_json::to_value(explanation.policies).unwrap_or_default(),
            would_change_it: explanation.would_change_it,
            external,
        }
    }
}

/// A page of devices, by name.
#[derive(Serialize, ToSchema)]
struct Judged {
    devices: Vec<JudgedDevice>,
    /// `after` of the next page; not there: this was the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// A device.
#[derive(Serialize, ToSchema)]
struct JudgedDevice {
    id: String,
    name: String,
    #[serde(rename = "type")]
    kind: String,
    customer: Option<String>,
    labels: BTreeMap<String, String>,
}

/// Policies that are compared with those in force.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "it describes what `Members` reads")]
struct Others {
    /// All texts that would be live; those of the shadow when not given.
    texts: Option<BTreeMap<String, String>>,
}

/// What other policies would change.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PolicyDifference)]
#[allow(dead_code, reason = "it describes a `Differing`")]
struct Difference {
    /// Pairs of a device or application and a device that they allow, and those in force do not.
    more: u64,
    /// Pairs that they no longer allow.
    fewer: u64,
    /// Some of these.
    examples: Vec<Changed>,
    /// Denied calls that the audit has of a week.
    denials: u64,
    /// How many of them would be allowed.
    now_allowed: u64,
}

/// A pair for which the answer is another.
#[derive(Serialize, ToSchema)]
#[schema(as = ChangedPair)]
#[allow(dead_code, reason = "it describes a `ChangedPair`")]
struct Changed {
    #[schema(example = "call")]
    action: String,
    from: String,
    /// It is an application.
    app: Option<bool>,
    to: String,
    /// Whether it may with the other policies.
    now: bool,
}

/// Say whether a device, or an application, may call or list a device, why, and what would change it (observer)
#[utoipa::path(get, path = "/v1/policies/explain", operation_id = "explain_policies", tag = "policies",
    params(Wanting, Wanted, AskedFor),
    responses((status = 200, description = "The answer", body = View), Unseen), security(("key" = [])))]
async fn explain(head: Head) -> Result<Response, Problem> {
    let known = [&["from", "app", "to"][..], &ASKED].concat();
    let (keeper, query) = head.keeper(Role::Observer, &known).await?;
    keeper.whole()?;
    let (action, asked) = asked(&query)?;
    let (to, target) = keeper.device_of("to", &query).await?;
    let caller = keeper.wanting(&query).await?;
    if let Caller::Device(_, from) = &caller
        && from.tenant != target.tenant
    {
        // To each other they do not exist.
        return Err(no_device().of("to"));
    }
    let live = head.server.policies_of(&keeper, caller.tenant()).await?.live;
    let scope = match &caller {
        Caller::App(_, app) => changes::scope(&keeper.changes.registry, app).await.map_err(refused)?,
        Caller::Device(..) => String::new(),
    };
    let _turn = head.server.administration.turn().await;
    let explained = aside(move || {
        let set = live.set()?;
        let context = caller.context(&asked, action, &live);
        Ok(match &caller {
            Caller::App(id, app) => {
                inquiry::of_app(&live, &set, (*id, app, scope), (action, &context), (to, &target))
            }
            Caller::Device(id, from) => {
                let (from, target) = (Facts::of(*id, from), Facts::of(to, &target));
                let found = inquiry::of_device(&live, &set, &from, (action, &context), &target);
                let is_asked = found.explanation.allowed && action == Action::Call;
                let external = live.external().filter(|_| is_asked).map(|it| Besides {
                    point: it.point.to_string(),
                    allowed: None,
                    objection: None,
                    reason: String::new(),
                });
                Explained { external, ..found }
            }
        })
    });
    let explained = explained.await?.map_err(unreadable)?;
    Ok(shown(StatusCode::OK, &View::of(explained), None))
}

/// Whom may a device, or an application, call or list? (observer)
#[utoipa::path(get, path = "/v1/policies/whom", operation_id = "whom_policies_allow", tag = "policies",
    params(Wanting, AskedFor, Page),
    responses((status = 200, description = "A page, by name", body = Judged), Unseen), security(("key" = [])))]
async fn whom(head: Head) -> Result<Response, Problem> {
    let known = [&["from", "app", "limit", "after"][..], &ASKED].concat();
    let (keeper, query) = head.keeper(Role::Observer, &known).await?;
    keeper.whole()?;
    let (action, asked) = asked(&query)?;
    let page = PageOf::read(&query)?;
    let caller = keeper.wanting(&query).await?;
    let live = head.server.policies_of(&keeper, caller.tenant()).await?.live;
    let _turn = head.server.administration.turn().await;
    let devices = keeper.devices(caller.tenant()).await?;
    let judged = aside(move || {
        let set = live.set()?;
        let context = caller.context(&asked, action, &live);
        let found = match &caller {
            Caller::Device(id, from) => survey::whom(&set, &devices, &Facts::of(*id, from), action, &context),
            Caller::App(id, app) => inquiry::whom_of_app(&set, &devices, *id, app, (action, &context)),
        };
        Ok(page.of(found))
    });
    Ok(shown(StatusCode::OK, &judged.await?.map_err(unreadable)?, None))
}

/// Who may call or list a device? (observer)
#[utoipa::path(get, path = "/v1/policies/who", operation_id = "who_policies_allow", tag = "policies",
    params(Wanted, AskedFor, Page),
    responses((status = 200, description = "A page, by name", body = Judged), Unseen), security(("key" = [])))]
async fn who(head: Head) -> Result<Response, Problem> {
    let known = [&["to", "limit", "after"][..], &ASKED].concat();
    let (keeper, query) = head.keeper(Role::Observer, &known).await?;
    keeper.whole()?;
    let (action, asked) = asked(&query)?;
    let page = PageOf::read(&query)?;
    let (id, target) = keeper.device_of("to", &query).await?;
    let live = head.server.policies_of(&keeper, target.tenant).await?.live;
    let _turn = head.server.administration.turn().await;
    let devices = keeper.devices(target.tenant).await?;
    let judged = aside(move || {
        let context = asked.by_device(action, SystemTime::now(), live.utc_offset_min());
        let set = live.set()?;
        Ok(page.of(survey::who(&set, &devices, &Facts::of(id, &target), action, &context)))
    });
    Ok(shown(StatusCode::OK, &judged.await?.map_err(unreadable)?, None))
}

/// Say for how many pairs other policies would change the answer, and for which (observer)
#[utoipa::path(post, path = "/v1/policies/diff", operation_id = "diff_policies", tag = "policies",
    params(OfApp, AskedFor, super::params::OfTenant),
    request_body(content = Option<Others>, content_type = "application/json"),
    responses((status = 200, description = "What they would change", body = Difference), Unchanged),
    security(("key" = [])))]
async fn diff(head: Head, body: Body) -> Result<Response, Problem> {
    let known = [&["app", "tenant"][..], &ASKED].concat();
    let (keeper, query) = head.keeper(Role::Observer, &known).await?;
    let asked = asked(&query)?.1;
    let kept = head.server.kept_policies(&keeper, &query).await?;
    let mut members = head.members_of(body, MAX_BODY_BYTES).await?;
    let given = members.0.get("texts").is_some_and(|it| !it.is_null());
    let new = match given {
        true => texts(&mut members)?,
        false => kept.shadow().await?.texts,
    };
    members.0.remove("texts");
    members.end("texts")?;
    // Without texts of its own the built-in rule holds.
    let new = if new.is_empty() { InForce::default().texts() } else { new };
    let new = read(new).await?;
    let (tenant, live) = (kept.tenant, kept.live);
    let only = match query.0.get("app") {
        Some(named) => Some(keeper.named_app(named, &query).await?),
        None => None,
    };
    let are_callers = only.is_none();
    let apps: Vec<(AppId, App)> = match only {
        Some(app) => vec![app],
        None => {
            let places = keeper.changes.registry.load_places().await.map_err(refused)?;
            places.apps.into_iter().filter(|(_, app)| app.tenant == tenant).collect()
        }
    };
    let _turn = head.server.administration.turn().await;
    let devices = keeper.devices(tenant).await?;
    let (offset, now) = (live.utc_offset_min(), SystemTime::now());
    let compared = aside(move || {
        let old = live.set()?;
        let apps: Vec<_> = apps.iter().map(|(id, app)| (*id, app)).collect();
        let at = |action, is_app| match is_app {
            true => asked.by_app(action, now, offset),
            false => asked.by_device(action, now, offset),
        };
        let found = inquiry::differing((&old, &new), (&devices, are_callers), &apps, at);
        Ok((found, new, devices, asked))
    });
    let (found, new, devices, asked) = compared.await?.map_err(unreadable)?;
    let mut denials = Denials::new(&new, &devices, &asked, offset);
    let mut from = From::Time(now.checked_sub(LATELY).unwrap_or(UNIX_EPOCH));
    for _ in 0..MAX_PAGES {
        let page = match keeper.changes.recorder.log(Book::Denials).page(Some(tenant), from).await {
            Ok(page) => page,
            // Nothing was ever recorded.
            Err(StoreError::Missing(_)) => break,
            Err(error) => return Err(unkept(error)),
        };
        page.records.iter().filter_map(|stored| stored.record()).for_each(|record| denials.take(&record));
        if page.is_last {
            break;
        }
        from = From::Sequence(page.next);
    }
    let (denials, now_allowed) = denials.counts;
    Ok(shown(StatusCode::OK, &Differing { denials, now_allowed, ..found }, None))
}

/// What is live cannot be read: it is of another program's.
fn unreadable(faults: Vec<switchboard_authorizer::policy::Fault>) -> Problem {
    let faults: Vec<_> = faults.iter().map(ToString::to_string).collect();
    tracing::warn!(faults = faults.join("; "), "policies in force cannot be read");
    unavailable()
}

/// Who wants something of a device.
enum Caller {
    Device(DeviceId, Device),
    App(AppId, App),
}

impl Caller {
    fn tenant(&self) -> TenantId {
        match self {
            Caller::Device(_, device) => device.tenant,
            Caller::App(_, app) => app.tenant,
        }
    }

    fn context(&self, asked: &Asked, action: Action, live: &InForce) -> Context {
        let (now, offset) = (SystemTime::now(), live.utc_offset_min());
        match self {
            Caller::Device(..) => asked.by_device(action, now, offset),
            Caller::App(..) => asked.by_app(action, now, offset),
        }
    }
}

impl Keeper {
    /// The device that a parameter names.
    async fn device_of(&self, name: &str, query: &Query) -> Result<(DeviceId, Device), Problem> {
        match query.0.get(name) {
            Some(named) => self.named_device(named).await.map_err(|problem| problem.of(name)),
            None => Err(Problem::parameter(name, "the id or name of a device")),
        }
    }

    async fn wanting(&self, query: &Query) -> Result<Caller, Problem> {
        match (query.0.get("app"), query.0.contains_key("from")) {
            (Some(named), false) => self.named_app(named, query).await.map(|(id, app)| Caller::App(id, app)),
            (None, true) => self.device_of("from", query).await.map(|(id, it)| Caller::Device(id, it)),
            _ => Err(Problem::parameter("from", "there, or app in place of it")),
        }
    }

    /// A tenant's devices, by name.
    async fn devices(&self, tenant: TenantId) -> Result<Vec<Facts>, Problem> {
        let mut devices = HashMap::new();
        let take = |id, device: Device| {
            if device.tenant == tenant {
                devices.insert(id, Facts::of(id, &device));
            }
        };
        self.changes.registry.each_device(take).await.map_err(refused)?;
        let mut devices: Vec<_> = devices.into_values().collect();
        devices.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        Ok(devices)
    }
}

/// Which page of what is found.
struct PageOf {
    limit: usize,
    after: Option<String>,
}

impl PageOf {
    fn read(query: &Query) -> Result<Self, Problem> {
        let limit = query.number("limit", 1..=MAX_PAGE)?.unwrap_or(PAGE);
        Ok(PageOf { limit, after: query.0.get("after").cloned() })
    }

    /// That page of devices that stand by their names, which are unique in a tenant.
    fn of(self, found: Vec<&Facts>) -> Judged {
        let is_behind = |it: &&&Facts| self.after.as_ref().is_none_or(|after| *it.name > **after);
        let mut behind = found.iter().filter(is_behind);
        let devices: Vec<_> = behind.by_ref().take(self.limit).map(|it| JudgedDevice::of(it)).collect();
        let next = behind.next().and_then(|_| devices.last().map(|last| last.name.clone()));
        Judged { devices, next }
    }
}

impl JudgedDevice {
    fn of(facts: &Facts) -> Self {
        JudgedDevice {
            id: facts.id.to_string(),
            name: facts.name.to_string(),
            kind: facts.kind.to_string(),
            customer: facts.customer.map(|it| it.to_string()),
            labels: facts.labels.clone(),
        }
    }
}

/// For what a decision is asked.
fn asked(query: &Query) -> Result<(Action, Asked), Problem> {
    let one_of = |name: &str, of: &[&str]| match query.0.get(name) {
        None => Ok(0),
        Some(given) => of
            .iter()
            .position(|it| it == given)
            .ok_or_else(|| Problem::parameter(name, format!("one of {}", of.join(", ")))),
    };
    let actions = Action::ALL.map(Action::as_str);
    let protocols = Protocol::ALL.map(Protocol::as_str);
    let default = Asked::default();
    let method = query.0.get("method").cloned().unwrap_or(default.method);
    check_method(&method).map_err(|invalid| Problem::parameter(invalid.field, invalid.expected))?;
    let action = Action::ALL.get(one_of("action", &actions)?).copied().unwrap_or(Action::Call);
    let protocol = Protocol::ALL.get(one_of("protocol", &protocols)?).copied().unwrap_or(default.protocol);
    let asked = Asked {
        hour: query.number("hour", 0..=23)?,
        weekday: query.number("weekday", 1..=7)?,
        protocol,
        oneway: one_of("oneway", &["false", "true"])? == 1,
        timeout_ms: query.number("timeout", 0..=u32::MAX)?.unwrap_or(default.timeout_ms),
        size_bytes: query.number("size", 0..=u32::MAX)?.unwrap_or(default.size_bytes),
        method,
    };
    Ok((action, asked))
}
