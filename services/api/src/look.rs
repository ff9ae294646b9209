//! What has become of a call, for whoever made it, and by which way, for whoever may see it? Its id is on every
//! response of a call.

use std::sync::Arc;

use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bus::AskError;
use bus::inspect::{self, Account};
use rpc::{CallId, HopRecord, Outcome, Seen};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{Ended, Problem, RETRY_AFTER_S};
use crate::devices::said;
use crate::keys::{Caller, NotLetIn};
use crate::ledger::Stage;
use crate::overheard::{EndedCall, Participant};
use crate::{Server, listeners, request};

/// The routes.
pub(crate) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(look))
}

/// A call, as far as it has come.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Told {
    /// The call, in logs and traces; not there: it never became one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "6d2f5d0c2c1e9b07-41")]
    pub(crate) call_id: Option<String>,
    /// It has not ended.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) running: bool,
    /// How it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "answered")]
    pub(crate) outcome: Option<&'static str>,
    /// May the device have executed it? `never`, `maybe` or `yes`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, example = "yes")]
    pub(crate) seen: Option<Seen>,
    /// The limit that was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) limit: Option<&'static str>,
    /// The answer came after the call's time.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) late: bool,
    /// The device's answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<serde_json::Value>)]
    pub(crate) body: Option<Box<RawValue>>,
}

/// The same of one that is looked at, and by which way it came, with `hops`.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Looked {
    #[serde(flatten)]
    told: Told,
    /// Who called, if the key sees that.
    #[serde(skip_serializing_if = "Option::is_none")]
    caller: Option<Participant>,
    /// Who was called, the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<Participant>,
    /// The processes that it came by, in order; each records it when it is through with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    hops: Option<Vec<Hop>>,
    /// Which hop is missing, and what is known of that.
    #[serde(skip_serializing_if = "Option::is_none")]
    missing: Option<String>,
    /// How many processes have said what they know, within 300 ms.
    #[serde(skip_serializing_if = "Option::is_none")]
    asked: Option<usize>,
}

/// A hop of a call, and the process that took it.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Hop {
    /// `caller`, `api`, `authorizer`, `router` or `target`.
    #[schema(example = "router")]
    at: &'static str,
    process: String,
    /// When it began, in microseconds since 1970 on that process' clock.
    began_us: u64,
    /// Milliseconds that it took.
    ms: f64,
    /// How it ended: as the call did, or it went on.
    #[schema(example = "answered")]
    end: &'static str,
    /// The limit that was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'static str>,
    /// The node that a router handed it to.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
    /// By which version of the tenant's policies it was decided; 0: by none.
    policy_version: u32,
    /// Milliseconds that were left of the call's time when it began.
    budget_ms: u32,
    /// What its device speaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "mqtt")]
    protocol: Option<&'static str>,
}

impl Hop {
    fn of(hop: &inspect::Hop) -> Self {
        Hop {
            at: hop.at,
            process: hop.process.to_string(),
            began_us: hop.began_us,
            ms: hop.ms,
            end: hop.end,
            limit: hop.limit,
            node: hop.node.map(|it| it.to_string()),
            policy_version: hop.policy_version,
            budget_ms: hop.budget_ms,
            protocol: hop.protocol.map(|it| it.as_str()),
        }
    }
}

impl Told {
    /// Of a call that has ended.
    pub(crate) fn ended(ended: &Ended) -> Self {
        Told {
            call_id: ended.call.map(|it| it.to_string()),
            outcome: Some(ended.outcome.as_str()),
            seen: Some(ended.seen),
            limit: match ended.outcome {
                Outcome::Busy(limit) => Some(limit.as_str()),
                _ => None,
            },
            body: one_line(&ended.body),
            ..Told::default()
        }
    }
}

/// A device's JSON in one line, as a line of a stream must be: in JSON a line's end stands between tokens alone.
fn one_line(body: &[u8]) -> Option<Box<RawValue>> {
    let text = str::from_utf8(body).ok()?;
    RawValue::from_string(text.replace(['\n', '\r'], " ")).ok()
}

/// Show what has become of a call
///
/// For ten minutes, if the device may have executed it, or nobody waited for its end: so an answer is read that came
/// after the call's time. With `hops` the way of each call that the key may see, for as long as processes know it.
#[utoipa::path(
    get,
    path = "/v1/calls/{call}",
    tag = "calls",
    params(
        ("call" = String, Path, description = "The call's id, as it stands in responses, events and logs"),
        ("hops" = Option<bool>, Query, nullable = false, description = "Ask all processes what they know of it"),
    ),
    responses(
        (status = 200, description = "How it ended", body = Looked),
        (status = 202, description = "It has not ended", body = Looked),
        (status = 401, description = "No key, or none that lives", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "No such call is known that the key may see, or not any more", body = Problem,
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
async fn look(
    State(server): State<Arc<Server>>,
    Path(call): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let caller = server.let_in(&headers).await?;
    let with_hops = read_query(query.as_deref().unwrap_or_default())?;
    let _place = server.place(&caller)?;
    let unknown =
        || Problem::new(StatusCode::NOT_FOUND, "unknown_call", "No such call is known, or not any more");
    let id = call.parse().map_err(|_| unknown())?;
    let failed = |error: AskError| {
        tracing::warn!(call, %error, "what has become of a call is not known");
        server.not_let_in(NotLetIn::Unavailable)
    };
    let known = server.calls.look(id, caller.identity.app).await.map_err(failed)?.map(|stage| match stage {
        Stage::Running => Told { call_id: Some(call.clone()), running: true, ..Told::default() },
        Stage::Ended { ended, is_late } => Told { late: is_late, ..Told::ended(&ended) },
    });
    let told = match with_hops {
        false => known.map(|told| Looked { told, ..Looked::default() }),
        true => server.with_hops(id, &caller, known).await.map_err(failed)?,
    };
    let told = told.ok_or_else(unknown)?;
    Ok(match told.told.running {
        true => (StatusCode::ACCEPTED, [(header::RETRY_AFTER, RETRY_AFTER_S)], said(&told)).into_response(),
        false => said(&told),
    })
}

fn read_query(query: &str) -> Result<bool, Problem> {
    let mut hops = false;
    for (name, value) in request::pairs(query)? {
        match name.as_str() {
            "hops" => hops = value.parse().map_err(|_| Problem::parameter(&name, "true or false"))?,
            _ => return Err(Problem::parameter(&name, "left out: there is hops")),
        }
    }
    Ok(hops)
}

impl Server {
    /// What is `known` of a call to its application, with its way. None: it is none that the key may see.
    async fn with_hops(
        &self,
        call: CallId,
        caller: &Caller,
        known: Option<Told>,
    ) -> Result<Option<Looked>, AskError> {
        let reports = inspect::hops(self.calls.bus(), call).await?;
        let account = Account::of(call, &reports, &[]);
        let records = || reports.iter().flat_map(|it| &it.hops);
        // Where it came in, whose it is stands for certain; next to that at its router.
        let hop = records().find(|hop| hop.station.is_first());
        let hop = hop.or_else(|| records().find(|hop| hop.party.is_some())).or_else(|| records().next());
        let ended = hop.map(|hop| {
            let hop = HopRecord { to: account.to.unwrap_or(hop.to), ..*hop };
            self.followed.look(|world| EndedCall::of(hop, world))
        });
        let reach = listeners::reach(&caller.identity);
        let [by, to] = ended.as_ref().map(|it| it.participants(&reach)).unwrap_or_default();
        let is_own = ended.is_some_and(|it| it.app(&reach) == Some(caller.identity.app));
        let is_seen = is_own || (caller.identity.role >= listeners::ROLE && (by.is_some() || to.is_some()));
        if known.is_none() && !is_seen {
            return Ok(None);
        }
        let told = known.unwrap_or_else(|| Told {
            call_id: Some(account.call.clone()),
            outcome: account.outcome,
            ..Told::default()
        });
        let hops = Some(account.hops.iter().map(Hop::of).collect());
        let (missing, asked) = (account.missing, Some(account.asked));
        Ok(Some(Looked { told, caller: by, target: to, hops, missing, asked }))
    }
}
