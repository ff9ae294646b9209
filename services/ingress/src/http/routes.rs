//! What can a device ask over HTTP? One handler for each route; what they share comes before them as extractors.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, FromRequestParts, MatchedPath, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{get, post};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use rpc::{Limit, Outcome, UplinkKind};

use super::connection::Connection;
use super::device::{Told, Visit};
use super::devices::Devices;
use super::lease::{NotPolled, PollEnd};
use super::metrics::{HttpMetrics, Route};
use super::outbox::CallBody;
use super::reply;
use crate::calls::Ended;
use crate::device::caller::{CallerLimits, RefusedRequest, RefusedUplink};
use crate::device::mailbox::EndReason;
use crate::device::sessions::Visitor;
use crate::device::target::AnswerTaken;
use crate::mqtt::session::SessionLimits;
use crate::node::Node;

pub(super) const RPC: &str = "/api/v1/{token}/rpc";
pub(super) const ANSWER: &str = "/api/v1/{token}/rpc/{id}";
pub(super) const TELEMETRY: &str = "/api/v1/{token}/telemetry";
pub(super) const ATTRIBUTES: &str = "/api/v1/{token}/attributes";
pub(super) const MQTT: &str = "/mqtt";

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What all requests of a node share.
pub(super) struct Server {
    pub(super) node: Arc<Node>,
    pub(super) limits: Arc<SessionLimits>,
    pub(super) devices: Arc<Devices>,
    pub(super) metrics: HttpMetrics,
}

/// Every route. Bodies are read by hand, within the limits of the settings.
pub(super) fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route(RPC, post(call).get(poll))
        .route(ANSWER, post(answer))
        .route(TELEMETRY, post(telemetry))
        .route(ATTRIBUTES, post(attributes))
        .route(MQTT, get(super::websocket::upgrade))
        .fallback(async || reply::error(StatusCode::NOT_FOUND, "There is nothing here!"))
        .layer(DefaultBodyLimit::disable())
        .layer(middleware::from_fn_with_state(Arc::clone(&server), observe))
        .with_state(server)
}

/// Counts what was answered, and lets go of the client when the node shuts down.
async fn observe(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let pattern = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = Route::of(pattern, request.method());
    let response = next.run(request).await;
    server.metrics.answered(route, response.status());
    if server.devices.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return reply::closing(response);
    }
    response
}

/// The device whose token stands in the path, and the id of the call it answers where there is one.
struct From {
    visit: Visit,
    id: Option<String>,
}

impl FromRequestParts<Arc<Server>> for From {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server>) -> Result<Self, Response> {
        let path = RawPathParams::from_request_parts(parts, server)
            .await
            .map_err(|_| reply::error(StatusCode::BAD_REQUEST, "The path must be UTF-8!"))?;
        let part = |name: &str| path.iter().find_map(|(it, value)| (it == name).then(|| value.to_owned()));
        let token = part("token").unwrap_or_default();
        let visit = server.devices.enter(&token).await.map_err(reply::not_let_in)?;
        Ok(From { visit, id: part("id") })
    }
}

/// `POST …/rpc`: a request of the device, answered with its outcome.
async fn call(
    State(server): State<Arc<Server>>,
    From { visit, .. }: From,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Response> {
    let body = read(&server, body).await?;
    let (node, limits) = (&server.node, &server.limits);
    let started = Instant::now();
    let admitted = caller(visit.visitor(), |it| it.request(&body, &limits.device, started));
    let request = admitted.map_err(|refused| {
        let RefusedRequest { method, outcome, .. } = &refused;
        if let Outcome::Busy(limit) = outcome {
            node.metrics.limit_hit(*limit);
        }
        node.metrics.call_ended(*method, outcome, Duration::ZERO);
        reply::refused(&refused)
    })?;
    let _admitted = Admitted(Arc::clone(visit.visitor()));
    drop(body);
    let method = request.method();
    let traceparent = headers
        .get(TRACEPARENT)
        .filter(|value| value.len() <= rpc::MAX_TRACEPARENT_BYTES)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let Ended { outcome, body, .. } = tokio::select! {
        ended = node.calls.perform(visit.visitor(), request, traceparent) => ended,
        why = visit.broken_off() => return Err(reply::broken_off(why)),
    };
    node.metrics.call_ended(method, &outcome, started.elapsed());
    Ok(reply::ended(method, &outcome, body))
}

/// `GET …/rpc`: a poll, answered with a call, or with 408 when its time is over.
async fn poll(
    State(server): State<Arc<Server>>,
    From { visit, .. }: From,
    request: Request,
) -> Result<Response, Response> {
    let http = &server.node.settings.http;
    let timeout = poll_timeout(request.uri().query(), http).ok_or_else(|| {
        let max = http.max_poll_timeout_ms;
        let text = format!("timeout must be whole milliseconds from 0 to {max}!");
        reply::error(StatusCode::BAD_REQUEST, &text)
    })?;
    let connection = request.extensions().get::<Arc<Connection>>().map(Arc::clone);
    // A poll that waits need not keep its head's 8 KB.
    drop(request);
    let mut poll = visit.poll(Instant::now() + timeout).map_err(|why| match why {
        NotPolled::Full => reply::error(StatusCode::TOO_MANY_REQUESTS, "Too many requests!"),
        NotPolled::Over => reply::broken_off(EndReason::ShuttingDown),
    })?;
    let _waiting = Waiting::new(&server);
    match poll.told().await {
        Told::Call(mut handover) => {
            let Some(connection) = connection else {
                return Err(reply::empty(StatusCode::INTERNAL_SERVER_ERROR));
            };
            let traceparent = handover.traceparent.take();
            let body = CallBody::new(handover, Arc::clone(&connection.outbox));
            let mut response = reply::json(Body::new(body));
            if let Some(traceparent) = traceparent.and_then(|text| HeaderValue::try_from(text).ok()) {
                response.headers_mut().insert(TRACEPARENT, traceparent);
            }
            Ok(response)
        }
        // A node that shuts down has none to wait for: the device asks again, and reaches another.
        Told::End(PollEnd::TimedOut | PollEnd::Ended(EndReason::ShuttingDown)) => {
            Ok(reply::empty(StatusCode::REQUEST_TIMEOUT))
        }
        Told::End(PollEnd::Ended(why)) => Err(reply::broken_off(why)),
        Told::End(PollEnd::Unavailable | PollEnd::Call { .. }) => {
            Err(reply::not_let_in(super::devices::NotLetIn::Unavailable))
        }
    }
}

/// `POST …/rpc/{id}`: the device answers a call.
async fn answer(
    State(server): State<Arc<Server>>,
    From { visit, id }: From,
    body: Body,
) -> Result<Response, Response> {
    let body = read(&server, body).await?;
    let number = id.and_then(|id| call_number(&id));
    let taken = number.map_or(AnswerTaken::NoSuchCall, |number| visit.answer(number, &body));
    match taken {
        AnswerTaken::Yes => Ok(reply::empty(StatusCode::OK)),
        AnswerTaken::NoSuchCall | AnswerTaken::OneWay => {
            Err(reply::error(StatusCode::NOT_FOUND, "No such call is open!"))
        }
        AnswerTaken::NotJson => Err(not_json()),
    }
}

async fn telemetry(
    State(server): State<Arc<Server>>,
    From { visit, .. }: From,
    body: Body,
) -> Result<Response, Response> {
    uplink(&server, &visit, UplinkKind::Telemetry, body).await
}

async fn attributes(
    State(server): State<Arc<Server>>,
    From { visit, .. }: From,
    body: Body,
) -> Result<Response, Response> {
    uplink(&server, &visit, UplinkKind::Attributes, body).await
}

/// Hands a message up, and answers once NATS has it.
async fn uplink(server: &Server, visit: &Visit, kind: UplinkKind, body: Body) -> Result<Response, Response> {
    let body = read(server, body).await?;
    let admitted = caller(visit.visitor(), |it| it.uplink(&body, &server.limits.device, Instant::now()));
    admitted.map_err(|refused| match refused {
        RefusedUplink::NotJson => not_json(),
        RefusedUplink::TooOften(limit) => {
            server.node.metrics.limit_hit(limit);
            reply::error(StatusCode::TOO_MANY_REQUESTS, "Too many requests!")
        }
    })?;
    if !server.node.uplink(visit.visitor(), kind, body).await {
        return Err(reply::error(StatusCode::SERVICE_UNAVAILABLE, "Internal server error!"));
    }
    Ok(reply::empty(StatusCode::OK))
}

/// A whole body.
async fn read(server: &Server, body: Body) -> Result<Bytes, Response> {
    let http = &server.node.settings.http;
    let too_large = || {
        server.node.metrics.limit_hit(Limit::PacketBytes);
        let text = format!("The body must not exceed {} bytes!", http.max_body_bytes);
        reply::closing(reply::error(StatusCode::PAYLOAD_TOO_LARGE, &text))
    };
    let timeout = Duration::from_millis(http.request_timeout_ms);
    match tokio::time::timeout(timeout, collect(body, http.max_body_bytes)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(BodyFault::TooLarge)) => Err(too_large()),
        Ok(Err(BodyFault::Broken)) => {
            Err(reply::closing(reply::error(StatusCode::BAD_REQUEST, "The body cannot be read!")))
        }
        Err(_) => {
            let text = "The body did not come in time!";
            Err(reply::closing(reply::error(StatusCode::REQUEST_TIMEOUT, text)))
        }
    }
}

enum BodyFault {
    TooLarge,
    Broken,
}

async fn collect(mut body: Body, max_bytes: usize) -> Result<Bytes, BodyFault> {
    use axum::body::HttpBody;
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(BodyFault::TooLarge);
    }
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let Ok(part) = frame.map_err(|_| BodyFault::Broken)?.into_data() else { continue };
        if first.len() + rest.len() + part.len() > max_bytes {
            return Err(BodyFault::TooLarge);
        }
        // Most bodies come in one piece, which need not be copied.
        if first.is_empty() {
            first = part;
        } else {
            rest.extend_from_slice(&part);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}

/// The time that a poll asks for: `timeout` in whole milliseconds; absent or 0 is the setting's. None when it cannot be.
fn poll_timeout(query: Option<&str>, http: &boot::config::Http) -> Option<Duration> {
    let given = query.and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("timeout=")));
    let timeout_ms = match given {
        None => 0,
        Some(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().unwrap_or(u64::MAX)
        }
        Some(_) => u64::MAX,
    };
    match timeout_ms {
        0 => Some(Duration::from_millis(http.poll_timeout_ms)),
        ms if ms <= http.max_poll_timeout_ms => Some(Duration::from_millis(ms)),
        _ => None,
    }
}

/// The number of a call, written as we wrote it.
fn call_number(text: &str) -> Option<u32> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
    text.parse().ok().filter(|_| digits)
}

fn not_json() -> Response {
    reply::error(StatusCode::BAD_REQUEST, "The body must be JSON in UTF-8!")
}

fn caller<T>(visitor: &Visitor, with: impl FnOnce(&mut CallerLimits) -> T) -> T {
    with(&mut visitor.caller.lock())
}

/// A call that counts against its caller's limits until it is dropped.
struct Admitted(Arc<Visitor>);

impl Drop for Admitted {
    fn drop(&mut self) {
        caller(&self.0, CallerLimits::ended);
    }
}

/// A poll that is counted until it is dropped.
struct Waiting<'a>(&'a Server);

impl<'a> Waiting<'a> {
    fn new(server: &'a Server) -> Self {
        server.metrics.polls.increment(1);
        Waiting(server)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.metrics.polls.decrement(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poll_says_how_long_it_waits() {
        let http = boot::config::Http::default();
        let table = [
            (None, Some(60_000)),
            (Some(""), Some(60_000)),
            (Some("timeout=0"), Some(60_000)),
            (Some("timeout=1"), Some(1)),
            (Some("a=b&timeout=300000"), Some(300_000)),
            (Some("timeout=300001"), None),
            (Some("timeout=99999999999999999999999"), None),
            (Some("timeout=-1"), None),
            (Some("timeout="), None),
            (Some("timeout=1.5"), None),
            (Some("timeout=+5"), None),
        ];
        for (query, timeout_ms) in table {
            assert_eq!(poll_timeout(query, &http), timeout_ms.map(Duration::from_millis), "{query:?}");
        }
    }

    #[test]
    fn a_calls_number_is_decimal() {
        for text in ["", "0", "01", "-1", "+1", "1.0", "1 ", "4294967296", "x"] {
            assert_eq!(call_number(text), None, "{text}");
        }
        assert_eq!(call_number("2147483647"), Some(2_147_483_647));
    }
}
