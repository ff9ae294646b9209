//! Which policies does a tenant have? Shown and replaced as a whole, with the shadow beside them and the versions
//! before.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::body::Body;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use boot::clock::unix_ms;
use bus::StoreError;
use bus::policies::{External, MAX_EXTERNAL_MS, Policies, StoredSet};
use bus::registry::{RegistryError, Tag};
use rpc::{Role, TenantId};
use serde::{Deserialize, Serialize};
use switchboard_authorizer::policy::inquiry::{self, InForce};
use switchboard_authorizer::policy::{Fault, PolicySet};
use switchboard_authorizer::shelf::Shelf;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{
    Head, Keeper, Members, Query, Unchanged, Unseen, not_there, refused, shown, unavailable, unmade,
};
use crate::Server;
use crate::answer::{self, Problem};

/// The longest body that is read: all texts of a tenant, each of their characters escaped.
pub(super) const MAX_BODY_BYTES: usize = 1024 * 1024;
/// Minutes that hours and weekdays may be from UTC.
const MAX_OFFSET_MIN: i16 = 14 * 60;

pub(super) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new()
        .routes(routes!(show, replace))
        .routes(routes!(show_shadow, cast, drop_shadow))
        .routes(routes!(list_versions))
        .routes(routes!(show_version))
        .routes(routes!(check))
}

/// A tenant's policies at one time.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Policies)]
struct View {
    /// From 1, one more with every change; 0: there never were any.
    version: u64,
    /// The tenant has none of its own: what is shown is the rule that holds instead.
    built_in: bool,
    /// Where hours and weekdays are, in minutes east of UTC.
    utc_offset_minutes: i16,
    /// The texts in Cedar, by their names.
    texts: BTreeMap<String, String>,
    /// Where each policy stands in them, if they can be read.
    policies: Vec<Place>,
    /// Who is asked besides about a call that the policies permit.
    external: Option<PointView>,
    /// When they became live, in milliseconds since 1970.
    at_ms: u64,
    who: String,
    why: String,
}

/// Where a policy stands.
#[derive(Serialize, ToSchema)]
#[schema(as = PolicyPlace)]
struct Place {
    /// `permit` or `forbid`
    #[schema(example = "permit")]
    effect: &'static str,
    /// Which text.
    text: String,
    /// Its first line, from 1.
    line: usize,
    /// Its annotation `@id`.
    name: Option<String>,
}

/// An external decision point.
#[derive(Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schema(as = DecisionPoint)]
struct PointView {
    /// `nats:NAME`, or `http://HOST:PORT/PATH`.
    #[schema(example = "nats:quota")]
    point: String,
    /// How long it may take, in milliseconds; then the call is denied.
    #[schema(minimum = 1, maximum = 1000)]
    timeout_ms: u32,
}

impl View {
    fn of(live: &InForce) -> Self {
        let (set, texts) = (live.0.as_ref(), live.texts());
        let places = live.set().map(|set| set.sources().map(Place::of).collect());
        View {
            version: live.counted(),
            built_in: live.own().is_none(),
            utc_offset_minutes: live.utc_offset_min(),
            policies: places.unwrap_or_default(),
            external: live.external().map(|External { point, timeout_ms }| PointView {
                point: point.to_string(),
                timeout_ms: *timeout_ms,
            }),
            at_ms: set.map_or(0, |set| set.at_ms),
            who: set.map(|set| set.who.clone()).unwrap_or_default(),
            why: set.map(|set| set.why.clone()).unwrap_or_default(),
            texts,
        }
    }

    /// The largest set is read for as long as a second: not where requests are served.
    async fn shown(live: InForce) -> Result<Response, Problem> {
        let tag = tag(&live);
        let view = aside(move || View::of(&live)).await?;
        Ok(shown(StatusCode::OK, &view, Some(&tag)))
    }
}

impl Place {
    fn of(source: &switchboard_authorizer::policy::set::Source) -> Self {
        Place {
            effect: if source.is_permit { "permit" } else { "forbid" },
            text: source.file.clone(),
            line: source.line,
            name: source.name.clone(),
        }
    }
}

/// Policies in place of those that are there.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[allow(dead_code, reason = "it describes what `Members` reads")]
struct NewPolicies {
    /// All texts in Cedar, by their names of 1 to 63 of A-Z a-z 0-9 and -_. With none the built-in rule holds.
    texts: BTreeMap<String, String>,
    /// Where hours and weekdays are, in minutes east of UTC; stays when not given.
    #[schema(minimum = -840, maximum = 840)]
    utc_offset_minutes: Option<i16>,
    /// Who is asked besides; `null`: nobody. Stays when not given.
    external: Option<PointView>,
}

/// Texts that are looked at.
#[derive(Deserialize, ToSchema)]
#[allow(dead_code, reason = "it describes what `Members` reads")]
struct Texts {
    /// Texts in Cedar, by their names.
    texts: BTreeMap<String, String>,
}

/// Texts that would be accepted.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Checked {
    /// How many policies they are.
    policies: usize,
    /// The labels that they read.
    labels: BTreeSet<String>,
    /// They read names: decisions are then remembered by pairs of devices, which takes more memory.
    reads_names: bool,
}

/// The versions that are kept, the live one first.
#[derive(Serialize, ToSchema)]
struct Versions {
    versions: Vec<Version>,
}

/// A version.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = PoliciesVersion)]
struct Version {
    version: u64,
    /// When it became live, in milliseconds since 1970.
    at_ms: u64,
    who: String,
    why: String,
    /// The names of its texts.
    texts: Vec<String>,
}

/// Show a tenant's policies (observer)
#[utoipa::path(get, path = "/v1/policies", operation_id = "show_policies", tag = "policies",
    params(super::params::OfTenant),
    responses((status = 200, description = "The policies in force; their version as ETag", body = View), Unseen),
    security(("key" = [])))]
async fn show(head: Head) -> Result<Response, Problem> {
    let (keeper, query) = head.keeper(Role::Observer, &["tenant"]).await?;
    let kept = head.server.kept_policies(&keeper, &query).await?;
    View::shown(kept.live).await
}

/// Replace a tenant's policies (admin); what is not accepted is named with its place
#[utoipa::path(put, path = "/v1/policies", operation_id = "replace_policies", tag = "policies",
    params(super::params::OfTenant, super::params::Reason, super::params::State),
    request_body(content = NewPolicies, content_type = "application/json"),
    responses((status = 200, description = "The policies in force; their version as ETag", body = View), Unchanged),
    security(("key" = [])))]
async fn replace(head: Head, body: Body) -> Result<Response, Problem> {
    let known = ["tenant", "reason"];
    let (keeper, query) = head.keeper(Role::Admin, &known).await?;
    let kept = head.server.kept_policies(&keeper, &query).await?;
    let members = head.members_of(body, MAX_BODY_BYTES).await?;
    let only = head.state()?;
    if only.as_ref().is_some_and(|only| *only != tag(&kept.live)) {
        return Err(refused(RegistryError::Changed));
    }
    let set = kept.next(&keeper, &query, members).await?;
    let replaced = kept.shelf.replace(kept.tenant, &kept.live, set).await;
    let refused = |error| match (error, &only) {
        (StoreError::Contended, Some(_)) => refused(RegistryError::Changed),
        (error, _) => unkept(error),
    };
    View::shown(InForce(Some(replaced.map_err(|error| unmade(error, refused))?))).await
}

/// Show the shadow, which is judged beside what is in force, and decides nothing (observer)
#[utoipa::path(get, path = "/v1/policies/shadow", operation_id = "show_shadow", tag = "policies",
    params(super::params::OfTenant),
    responses((status = 200, description = "The shadow; its version is what it would get", body = View), Unseen),
    security(("key" = [])))]
async fn show_shadow(head: Head) -> Result<Response, Problem> {
    let (keeper, query) = head.keeper(Role::Observer, &["tenant"]).await?;
    let shadow = head.server.kept_policies(&keeper, &query).await?.shadow().await?;
    View::shown(InForce(Some(shadow))).await
}

/// Cast a shadow in place of the one before (admin)
#[utoipa::path(put, path = "/v1/policies/shadow", operation_id = "cast_shadow", tag = "policies",
    params(super::params::OfTenant, super::params::Reason),
    request_body(content = NewPolicies, content_type = "application/json"),
    responses((status = 200, description = "The shadow; its version is what it would get", body = View), Unchanged),
    security(("key" = [])))]
async fn cast(head: Head, body: Body) -> Result<Response, Problem> {
    let known = ["tenant", "reason"];
    let (keeper, query) = head.keeper(Role::Admin, &known).await?;
    let kept = head.server.kept_policies(&keeper, &query).await?;
    let members = head.members_of(body, MAX_BODY_BYTES).await?;
    let shadow = kept.next(&keeper, &query, members).await?;
    let cast = kept.shelf.cast(kept.tenant, &kept.live, shadow.version, Some(&shadow)).await;
    cast.map_err(|error| unmade(error, unkept))?;
    View::shown(InForce(Some(shadow))).await
}

/// Take the shadow away (admin)
#[utoipa::path(delete, path = "/v1/policies/shadow", operation_id = "drop_shadow", tag = "policies",
    params(super::params::OfTenant, super::params::Reason),
    responses((status = 204, description = "There is none any more"), Unchanged), security(("key" = [])))]
async fn drop_shadow(head: Head) -> Result<Response, Problem> {
    let known = ["tenant", "reason"];
    let (keeper, query) = head.keeper(Role::Admin, &known).await?;
    let kept = head.server.kept_policies(&keeper, &query).await?;
    let shadow = kept.shadow().await?;
    let dropped = kept.shelf.cast(kept.tenant, &kept.live, shadow.version, None).await;
    dropped.map_err(|error| unmade(error, unkept))?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// List the versions of a tenant's policies that are kept (observer)
#[utoipa::path(get, path = "/v1/policies/versions", operation_id = "list_policy_versions", tag = "policies",
    params(super::params::OfTenant),
    responses((status = 200, description = "At most 65, the live one first", body = Versions), Unseen),
    security(("key" = [])))]
async fn list_versions(head: Head) -> Result<Response, Problem> {
    let (keeper, query) = head.keeper(Role::Observer, &["tenant"]).await?;
    let kept = head.server.kept_policies(&keeper, &query).await?;
    let versions = kept.history().await?.into_iter().map(|set| Version {
        version: set.version,
        at_ms: set.at_ms,
        who: set.who,
        why: set.why,
        texts: set.texts.into_keys().collect(),
    });
    Ok(shown(StatusCode::OK, &Versions { versions: versions.collect() }, None))
}

/// Show a version of a tenant's policies (observer)
#[utoipa::path(get, path = "/v1/policies/versions/{version}", operation_id = "show_policy_version", tag = "policies",
    params(("version" = u64, Path, description = "The version"), super::params::OfTenant),
    responses((status = 200, description = "The policies as they were", body = View), Unseen),
    security(("key" = [])))]
async fn show_version(head: Head, Path(version): Path<String>) -> Result<Response, Problem> {
    let (keeper, query) = head.keeper(Role::Observer, &["tenant"]).await?;
    let kept = head.server.kept_policies(&keeper, &query).await?;
    let found = kept.history().await?.into_iter().find(|set| set.version.to_string() == version);
    let found = found.ok_or_else(|| not_there("unknown_version", "That version is not kept"))?;
    View::shown(InForce(Some(found))).await
}

/// Check texts as if they were to replace those that are there, and change nothing (observer)
#[utoipa::path(post, path = "/v1/policies/check", operation_id = "check_policies", tag = "policies",
    request_body(content = Texts, content_type = "application/json"),
    responses((status = 200, description = "They would be accepted", body = Checked), Unchanged),
    security(("key" = [])))]
async fn check(head: Head, body: Body) -> Result<Response, Problem> {
    let _keeper = head.keeper(Role::Observer, &[]).await?;
    let mut members = head.members_of(body, MAX_BODY_BYTES).await?;
    let texts = texts(&mut members)?;
    members.end("texts")?;
    let checked = read(texts).await.map(|set| Checked {
        policies: set.len(),
        labels: set.footprint().labels.keys().cloned().collect(),
        reads_names: set.footprint().tells_every_device_apart(),
    })?;
    Ok(shown(StatusCode::OK, &checked, None))
}

/// A tenant's policies, as they are now.
pub(super) struct KeptPolicies {
    pub(super) tenant: TenantId,
    pub(super) live: InForce,
    shelf: Shelf,
}

impl Server {
    /// Those of the tenant that a request is about; for who reaches it as a whole.
    pub(super) async fn kept_policies(
        &self,
        keeper: &Keeper,
        query: &Query,
    ) -> Result<KeptPolicies, Problem> {
        keeper.whole()?;
        self.policies_of(keeper, keeper.tenant(query)?).await
    }

    pub(super) async fn policies_of(
        &self,
        keeper: &Keeper,
        tenant: TenantId,
    ) -> Result<KeptPolicies, Problem> {
        let open = || Policies::open(&self.administration.bus);
        let policies = self.administration.policies.get_or_try_init(open).await.map_err(unkept)?.clone();
        let live = InForce(policies.live(tenant).await.map_err(unkept)?);
        Ok(KeptPolicies {
            tenant,
            live,
            shelf: Shelf { policies, recorder: keeper.changes.recorder.clone() },
        })
    }
}

impl KeptPolicies {
    /// The shadow.
    pub(super) async fn shadow(&self) -> Result<StoredSet, Problem> {
        let shadow = self.shelf.policies.shadow(self.tenant).await.map_err(unkept)?;
        shadow.ok_or_else(|| not_there("no_shadow", "No shadow is cast"))
    }

    async fn history(&self) -> Result<Vec<StoredSet>, Problem> {
        self.shelf.policies.history(self.tenant).await.map_err(unkept)
    }

    /// What a body asks for, checked.
    async fn next(&self, keeper: &Keeper, query: &Query, mut members: Members) -> Result<StoredSet, Problem> {
        let texts = texts(&mut members)?;
        let offset = offset(&mut members)?;
        let external = external(&mut members)?;
        members.end("texts, utcOffsetMinutes, external")?;
        read(texts.clone()).await?;
        let why = query.reason()?;
        let mut set = self.live.next(texts, unix_ms(), &keeper.author(), &why);
        set.utc_offset_min = offset.unwrap_or(set.utc_offset_min);
        if let Some(external) = external {
            set.external = external;
        }
        Ok(set)
    }
}

/// The state of what is in force.
fn tag(live: &InForce) -> Tag {
    Tag::shown(&live.counted().to_string())
}

/// The texts of a body.
pub(super) fn texts(members: &mut Members) -> Result<BTreeMap<String, String>, Problem> {
    members.need("texts", "an object: the names of texts, and their Cedar")
}

fn offset(members: &mut Members) -> Result<Option<i16>, Problem> {
    let expected = format!("a whole number of minutes, -{MAX_OFFSET_MIN} to {MAX_OFFSET_MIN}");
    let given: Option<i16> = members.take("utcOffsetMinutes", &expected)?;
    match given.is_none_or(|it| (-MAX_OFFSET_MIN..=MAX_OFFSET_MIN).contains(&it)) {
        true => Ok(given),
        false => Err(Problem::member("utcOffsetMinutes", expected)),
    }
}

/// Who is asked besides; none: as it is.
fn external(members: &mut Members) -> Result<Option<Option<External>>, Problem> {
    if !members.0.contains_key("external") {
        return Ok(None);
    }
    let expected = "null, or an object with point and timeoutMs";
    let Some(PointView { point, timeout_ms }) = members.take("external", expected)? else {
        return Ok(Some(None));
    };
    let point = point.parse().map_err(|expected: String| Problem::member("external.point", expected))?;
    if !(1..=MAX_EXTERNAL_MS).contains(&timeout_ms) {
        let expected = format!("a whole number of milliseconds, 1 to {MAX_EXTERNAL_MS}");
        return Err(Problem::member("external.timeoutMs", expected));
    }
    Ok(Some(Some(External { point, timeout_ms })))
}

/// Reads texts, or names all that is wrong with them.
pub(super) async fn read(texts: BTreeMap<String, String>) -> Result<PolicySet, Problem> {
    aside(move || inquiry::read(&texts)).await?.map_err(|faults| unread(&faults))
}

fn unread(faults: &[Fault]) -> Problem {
    let status = StatusCode::UNPROCESSABLE_ENTITY;
    let problem = Problem::new(status, "invalid_policies", "These policies are not accepted");
    let words: Vec<_> = faults.iter().map(ToString::to_string).collect();
    let places = faults.iter().map(|Fault { file, line, column, problem, instead }| answer::Fault {
        text: file.clone(),
        line: *line,
        column: *column,
        problem: problem.clone(),
        instead: instead.clone(),
    });
    problem.at(places.collect(), words.join("\n"))
}

/// Does what takes long where no request waits for it but its own.
pub(super) async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|error| {
        tracing::error!(%error, "policies could not be judged");
        unavailable()
    })
}

/// What the store of policies refuses.
pub(super) fn unkept(error: StoreError) -> Problem {
    match error {
        StoreError::Contended => refused(RegistryError::Contended),
        error => {
            tracing::warn!(%error, "policies cannot be kept");
            unavailable()
        }
    }
}
