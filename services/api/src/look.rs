//! What has become of a call, for whoever made it? Its id is on every response of a call.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use rpc::{Outcome, Seen};
use serde::Serialize;
use serde_json::value::RawValue;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Server;
use crate::answer::{self, Ended, Problem, RETRY_AFTER_S};
use crate::devices::said;
use crate::keys::NotLetIn;
use crate::ledger::Stage;

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
/// after the call's time.
#[utoipa::path(
    get,
    path = "/v1/calls/{call}",
    tag = "calls",
    params(("call" = String, Path, description = "The call's id, of a response of the application's")),
    responses(
        (status = 200, description = "How it ended", body = Told),
        (status = 202, description = "It has not ended", body = Told),
        (status = 401, description = "No key, or none that lives", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "No such call of the application's is known, or not any more", body = Problem,
            content_type = "application/problem+json"),
        (status = 429, description = "A limit is reached", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "A service is missing, or failed", body = Problem,
            content_type = "application/problem+json"),
    ),
    security(("key" = [])),
)]
async fn look(State(server): State<Arc<Server>>, Path(call): Path<String>, headers: HeaderMap) -> Response {
    let caller = match server.let_in(&headers).await {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    let app = caller.identity.app;
    let _place = match server.keys.place(app, Instant::now()) {
        Ok(place) => place,
        Err(limit) => return answer::ended(&Ended::here(Outcome::Busy(limit))),
    };
    let stage = match call.parse() {
        Ok(call) => server.calls.look(call, app).await,
        Err(_) => Ok(None),
    };
    match stage {
        Ok(None) => {
            Problem::new(StatusCode::NOT_FOUND, "unknown_call", "No such call is known, or not any more")
                .into_response()
        }
        Ok(Some(Stage::Running)) => {
            let running = Told { call_id: Some(call), running: true, ..Told::default() };
            (StatusCode::ACCEPTED, [(header::RETRY_AFTER, RETRY_AFTER_S)], said(&running)).into_response()
        }
        Ok(Some(Stage::Ended { ended, is_late })) => said(&Told { late: is_late, ..Told::ended(&ended) }),
        Err(error) => {
            tracing::warn!(call, %error, "what has become of a call is not known");
            server.not_let_in(NotLetIn::Unavailable).into_response()
        }
    }
}
