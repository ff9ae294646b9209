//! What can be asked, and how is it read? Our own face, and what both have in common: keys, bodies, limits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use rpc::{AppId, Limit, MAX_TRACEPARENT_BYTES, Outcome, Place, Role, Target};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{self, Ended, Problem};
use crate::bodies::CallBody;
use crate::keys::{Caller, NotLetIn};
use crate::request::{self, MAX_DEVICE_BYTES, Wanted};
use crate::{Server, administration, devices, events, group, look, networks, once, openapi, thingsboard};

/// What is told was told before, to another request of that key.
const REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// The routes.
pub(crate) fn router(server: Arc<Server>) -> Router {
    let (router, document) = described().split_for_parts();
    let document = Bytes::from(openapi::text(&document));
    let json = [(header::CONTENT_TYPE, "application/json")];
    let describe = move || async move { (json, document) };
    router
        .route("/v1/openapi.json", axum::routing::get(describe))
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "no_such_path", "There is no such path"))
        .method_not_allowed_fallback(async || {
            let status = StatusCode::METHOD_NOT_ALLOWED;
            Problem::new(status, "method_not_allowed", "The path does not take this method")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&server), networks::admit))
        .with_state(server)
}

/// The routes, with their description.
pub(crate) fn described() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::with_openapi(openapi::frame())
        .routes(routes!(call))
        .merge(group::routes())
        .merge(look::routes())
        .merge(devices::routes())
        .merge(events::routes())
        .merge(administration::routes())
        .merge(thingsboard::routes())
}

/// Call a device
#[utoipa::path(
    post,
    path = "/v1/devices/{device}/calls",
    tag = "calls",
    params(
        ("device" = String, Path, description = "The device's id, or its name in the application's tenant"),
        ("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 64, pattern = "^[!-~]{1,64}$",
            description = "The call is made once: for ten minutes the same request with the same key has its answer"),
    ),
    request_body(content = CallBody, content_type = "application/json"),
    responses(
        (status = 200, description = "The device's answer, byte for byte",
            body = Value, content_type = "application/json"),
        (status = 204, description = "`oneway`: the device's connection has taken the call"),
        (status = 400, description = "The body is not a JSON object",
            body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "No key, or none that lives",
            body = Problem, content_type = "application/problem+json"),
        (status = 403, description = "The application may not make this call",
            body = Problem, content_type = "application/problem+json"),
        (status = 404, description = "No such device, for this application",
            body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not come in time",
            body = Problem, content_type = "application/problem+json"),
        (status = 409, description = "The device is not connected; the key is of another call, or its call runs",
            body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large, or is for the device",
            body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not said to be JSON",
            body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A member of the body, or the key, is not what it must be",
            body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "A limit is reached",
            body = Problem, content_type = "application/problem+json"),
        (status = 502, description = "The device's connection ended, or its answer is none",
            body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "A service is missing, or failed",
            body = Problem, content_type = "application/problem+json"),
        (status = 504, description = "The device did not answer in time",
            body = Problem, content_type = "application/problem+json"),
    ),
    security(("key" = [])),
)]
async fn call(
    State(server): State<Arc<Server>>,
    Path(device): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Response {
    let caller = match server.let_in(&headers).await {
        Ok(caller) => caller,
        Err(problem) => return problem.into_response(),
    };
    match read_call(&server, &device, &headers, body).await {
        Ok((target, wanted)) => {
            let told = match once::key(&headers) {
                Err(problem) => return problem.into_response(),
                Ok(None) => {
                    let ended = server.perform(&caller, target, wanted, &headers).await;
                    Ok(once::Told { ended, is_replayed: false })
                }
                Ok(Some(key)) => {
                    let (caller, key, traceparent) =
                        (Arc::clone(&caller), key.to_owned(), traceparent(&headers));
                    server.perform_once(once::Asked { caller, key, target, wanted, traceparent }).await
                }
            };
            let once::Told { ended, is_replayed } = match told {
                Ok(told) => told,
                Err(problem) => return problem.into_response(),
            };
            if ended.outcome == Outcome::Denied
                && let Err(problem) = server.still(&caller).await
            {
                return problem.into_response();
            }
            let mut response = answer::ended(&ended);
            if is_replayed {
                response.headers_mut().insert(REPLAYED, HeaderValue::from_static("true"));
            }
            response
        }
        Err(problem) => problem.into_response(),
    }
}

async fn read_call(
    server: &Server,
    device: &str,
    headers: &HeaderMap,
    body: Body,
) -> Result<(Target, Wanted), Problem> {
    let body = server.read_json(headers, body).await?;
    let wanted = request::call(&body, &server.limits)?;
    Ok((target(device)?, wanted))
}

/// Whom a path means.
pub(crate) fn target(device: &str) -> Result<Target, Problem> {
    match device.len() <= MAX_DEVICE_BYTES {
        true => Ok(Target::parse(device)),
        false => Err(Problem::new(StatusCode::NOT_FOUND, "unknown_device", "There is no such device")),
    }
}

impl Server {
    /// Whose key a request shows.
    pub(crate) async fn let_in(&self, headers: &HeaderMap) -> Result<Arc<Caller>, Problem> {
        self.keys.caller(shown_key(headers)).await.map_err(|why| self.not_let_in(why))
    }

    /// Whose key a request shows, if that may do as much.
    pub(crate) async fn let_in_as(&self, headers: &HeaderMap, role: Role) -> Result<Arc<Caller>, Problem> {
        let caller = self.let_in(headers).await?;
        if caller.identity.role < role { Err(Problem::role(role)) } else { Ok(caller) }
    }

    /// A place among what its application may do at a time.
    pub(crate) fn place(&self, caller: &Caller) -> Result<Place<AppId>, Problem> {
        self.keys.place(caller.identity.app, Instant::now()).map_err(Problem::limit)
    }

    /// An authorizer has denied a call: for what the key may not, or since it is over?
    pub(crate) async fn still(&self, caller: &Caller) -> Result<(), Problem> {
        match self.keys.still(caller).await {
            Err(NotLetIn::Unknown) => Err(self.not_let_in(NotLetIn::Unknown)),
            Ok(()) | Err(NotLetIn::NoKey | NotLetIn::Unavailable) => Ok(()),
        }
    }

    pub(crate) fn not_let_in(&self, why: NotLetIn) -> Problem {
        match why {
            NotLetIn::NoKey | NotLetIn::Unknown => {
                self.keys.meters().refused.increment(1);
                let title = match why {
                    NotLetIn::NoKey => "No application's key was shown",
                    NotLetIn::Unknown | NotLetIn::Unavailable => "The key has ended, or nobody has it",
                };
                let problem = Problem::new(StatusCode::UNAUTHORIZED, "unauthenticated", title);
                problem.expected("Authorization: Bearer swbk_…")
            }
            NotLetIn::Unavailable => {
                let status = StatusCode::SERVICE_UNAVAILABLE;
                Problem::new(status, "unavailable", "Nobody can say: a service is missing, or failed")
            }
        }
    }

    /// A request's body, within its limits of size and time.
    pub(crate) async fn read(&self, body: Body) -> Result<Bytes, Problem> {
        self.read_at_most(body, self.max_body_bytes).await
    }

    /// The same, of so many bytes at most.
    pub(crate) async fn read_at_most(&self, body: Body, most: usize) -> Result<Bytes, Problem> {
        let read = Limited::new(body, most).collect();
        let Ok(read) = tokio::time::timeout(self.body_timeout, read).await else {
            let problem = Problem::new(StatusCode::REQUEST_TIMEOUT, "slow", "The body did not come in time");
            return Err(problem.expected(format!("all of it within {} ms", self.body_timeout.as_millis())));
        };
        match read {
            Ok(read) => Ok(read.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => {
                let problem =
                    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "The body is too large");
                Err(problem.expected(format!("at most {most} bytes")))
            }
            Err(_) => Err(Problem::new(StatusCode::BAD_REQUEST, "broken", "The body ended before its end")),
        }
    }

    /// The same, of what says that it is JSON.
    pub(crate) async fn read_json(&self, headers: &HeaderMap, body: Body) -> Result<Bytes, Problem> {
        match request::is_of_kind(headers, "application/json") {
            true => self.read(body).await,
            false => Err(Problem::not_said_to_be_json()),
        }
    }

    /// Makes a call within the application's limits.
    pub(crate) async fn perform(
        &self,
        caller: &Caller,
        target: Target,
        wanted: Wanted,
        headers: &HeaderMap,
    ) -> Ended {
        match self.keys.place(caller.identity.app, Instant::now()) {
            Ok(_place) => self.calls.begin(caller, target, wanted, traceparent(headers)).ended().await,
            Err(limit) => self.refused(limit),
        }
    }

    /// The end of a call that a limit stops.
    pub(crate) fn refused(&self, limit: Limit) -> Ended {
        let ended = Ended::here(Outcome::Busy(limit));
        self.keys.meters().ended(&ended.outcome, Duration::ZERO);
        ended
    }
}

/// The trace that a request says it is of.
pub(crate) fn traceparent(headers: &HeaderMap) -> Option<String> {
    let shown = headers.get("traceparent").and_then(|it| it.to_str().ok());
    shown.filter(|it| it.len() <= MAX_TRACEPARENT_BYTES).map(str::to_owned)
}

/// The key that a request shows: `Authorization: Bearer …`, or as ThingsBoard has it.
pub(crate) fn shown_key(headers: &HeaderMap) -> Option<&str> {
    let named = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let shown = named("authorization").or_else(|| named("x-authorization"))?;
    let (scheme, key) = shown.split_once(' ')?;
    let is_known = ["bearer", "apikey"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    is_known.then_some(key.trim())
}
