//! What can a device ask over HTTP? One handler for each route; what they share comes before them as extractors.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{Extension, FromRequestParts, MatchedPath, RawPathParams, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::{MethodRouter, get, post};
use axum::{Router, http};
use bytes::Bytes;
use rpc::{Limit, Method, Outcome, UplinkKind};

use super::devices::Visit;
use super::exchange::{BodyFault, Exchange};
use super::lease::{NotPolled, PollEnd, Told};
use super::paths::{self, Route};
use super::reply;
use super::server::Server;
use crate::device::caller::{CallerLimits, RefusedRequest};
use crate::device::mailbox::EndReason;
use crate::device::relay;
use crate::device::sessions::Visitor;
use crate::device::target::AnswerTaken;
use crate::device_api::{self, Refusal};

/// How long a refused request's body may take to come; then the connection is closed instead.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

/// Every route. Bodies are read by hand, within the limits of the settings.
pub(super) fn router(server: Arc<Server>) -> Router {
    Router::new()
        .route(paths::RPC, only("GET, POST, OPTIONS", get(poll).post(call)))
        .route(paths::ANSWER, only("POST, OPTIONS", post(answer)))
        .route(paths::TELEMETRY, only("POST, OPTIONS", post(telemetry)))
        .route(paths::ATTRIBUTES, only("GET, POST, OPTIONS", get(kept_attributes).post(attributes)))
        .route(paths::UPDATES, only("GET, OPTIONS", get(attribute_updates)))
        .route(paths::MQTT, only("GET, OPTIONS", get(super::websocket::upgrade)))
        .fallback(async || reply::error(StatusCode::NOT_FOUND, "There is nothing here!"))
        .layer(middleware::from_fn_with_state(Arc::clone(&server), observe))
        .with_state(server)
}

/// These methods alone. OPTIONS does nothing but say so; HEAD, which axum would carry out as a GET, is none of them.
fn only(methods: &'static str, route: MethodRouter<Arc<Server>>) -> MethodRouter<Arc<Server>> {
    let methods = HeaderValue::from_static(methods);
    let allow = methods.clone();
    let refuse = async move || reply::allowing(StatusCode::METHOD_NOT_ALLOWED, allow);
    let options = async move |State(server): State<Arc<Server>>, asked: HeaderMap| {
        let mut response = reply::allowing(StatusCode::NO_CONTENT, methods.clone());
        server.cors.preflight(&asked, methods, &mut response);
        response
    };
    route.options(options).head(refuse.clone()).fallback(refuse)
}

/// What holds for every request, whoever answers it: what HTTP/1.1 asks of both sides, and what is counted.
async fn observe(
    State(server): State<Arc<Server>>,
    Extension(exchange): Extension<Arc<Exchange>>,
    request: Request,
    next: Next,
) -> Response {
    if let Some(until) = exchange.paced_until(server.limits().request_rate, Instant::now()) {
        server.node.metrics.limit_hit(Limit::RequestRate);
        tokio::time::sleep_until(until.into()).await;
    }
    let pattern = request.extensions().get::<MatchedPath>().map(MatchedPath::as_str);
    let route = Route::of(pattern, request.method());
    let is_device_api = request.uri().path().starts_with(paths::DEVICE_API);
    // None of its own headers, which would keep all of the request while a poll waits.
    let admitted = server.cors.admits(request.headers().get(header::ORIGIN));
    // A client that waits to be told to go on has sent no body.
    let holds_back = request.headers().contains_key(header::EXPECT);
    let mut response = if names_one_host(request.version(), request.headers()) {
        next.run(request).await
    } else {
        reply::error(StatusCode::BAD_REQUEST, "There must be one Host header that names a host!")
    };
    let max_bytes = if holds_back { 0 } else { server.node.settings().http.max_body_bytes };
    let at_end = exchange.discard_body(max_bytes, DISCARD_TIMEOUT).await;
    exchange.answered();
    server.metrics.answered(route, response.status());
    if is_device_api {
        server.cors.allow(admitted, &mut response);
    }
    if !at_end || (server.devices.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS) {
        return reply::closing(response);
    }
    response
}

/// RFC 9112 §3.2: one in each request, though HTTP/1.0 knew of none.
fn names_one_host(version: Version, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let is_host = |host: &HeaderValue| {
        host.is_empty()
            || host.to_str().is_ok_and(|it| !it.contains('@') && it.parse::<http::uri::Authority>().is_ok())
    };
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => is_host(host),
        (None, _) => version < Version::HTTP_11,
        (Some(_), Some(_)) => false,
    }
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
        let Some(exchange) = parts.extensions.get::<Arc<Exchange>>() else {
            return Err(reply::empty(StatusCode::INTERNAL_SERVER_ERROR));
        };
        let sender = server.sender(exchange, &parts.headers);
        if exchange.may_wait() {
            // All that hyper has read is kept as long as any part of it, and nobody asks for more than this.
            parts.headers = HeaderMap::new();
            parts.uri = parts.uri.to_string().parse().unwrap_or_default();
        }
        // Boxed: a poll waits in the same future, and is counted in kilobytes.
        let visit = Box::pin(server.devices.enter(&token, sender)).await.map_err(reply::not_let_in)?;
        exchange.knows();
        Ok(From { visit, id: part("id") })
    }
}

/// How long a poll is to wait. Handlers that take no more of the request do not keep its head, up to 8 KB, meanwhile.
struct PollTimeout(Duration);

impl FromRequestParts<Arc<Server>> for PollTimeout {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, server: &Arc<Server>) -> Result<Self, Response> {
        let http = &server.node.settings().http;
        poll_timeout(parts.uri.query(), http).map(PollTimeout).ok_or_else(|| {
            let text = format!("timeout must be whole milliseconds from 0 to {}!", http.max_poll_timeout_ms);
            reply::error(StatusCode::BAD_REQUEST, &text)
        })
    }
}

/// `POST …/rpc`: a request of the device, answered with its outcome.
async fn call(
    State(server): State<Arc<Server>>,
    Extension(exchange): Extension<Arc<Exchange>>,
    From { visit, .. }: From,
    headers: HeaderMap,
) -> Result<Response, Response> {
    let (node, limits) = (&server.node, server.limits());
    let started = Instant::now();
    let refuse = |refused: RefusedRequest| {
        if let Outcome::Busy(limit) = &refused.outcome {
            node.limit_hit(&visit.device.visitor, *limit);
        }
        node.metrics.call_ended(refused.method, &refused.outcome, Duration::ZERO);
        reply::refused(refused)
    };
    // Before the body, which is not read for who may not call.
    let admitted = caller(&visit.device.visitor, |it| it.admit(&limits, started));
    admitted.map_err(|limit| refuse(RefusedRequest::busy(Method::Other, limit)))?;
    let _admitted = Admitted(Arc::clone(&visit.device.visitor));
    let body = read(&server, &exchange).await?;
    let request = device_api::parse(&body, &limits.api).map_err(|it| refuse(it.into()))?;
    drop(body);
    let (method, started) = (request.method(), Instant::now());
    let traceparent = headers
        .get(reply::TRACEPARENT)
        .filter(|value| value.len() <= rpc::MAX_TRACEPARENT_BYTES)
        .and_then(|value| value.to_str().ok())
        .map(str::to_owned);
    let ended = tokio::select! {
        ended = node.calls.perform(&visit.device.visitor, request, traceparent) => ended,
        why = visit.device.broken_off() => return Err(reply::refusal(why.into())),
    };
    node.call_ended(&visit.device.visitor, method, &ended.outcome, started.elapsed());
    Ok(reply::ended(method, ended))
}

/// `GET …/rpc`: a poll, answered with a call, or with 408 when its time is over.
async fn poll(
    State(server): State<Arc<Server>>,
    Extension(exchange): Extension<Arc<Exchange>>,
    From { visit, .. }: From,
    PollTimeout(timeout): PollTimeout,
) -> Result<Response, Response> {
    let mut poll = visit.device.poll(Instant::now() + timeout).map_err(|why| match why {
        NotPolled::Full => reply::refusal(Refusal::TooOften),
        NotPolled::Over if server.devices.is_draining() => reply::refusal(Refusal::ShuttingDown),
        NotPolled::Over => reply::refusal(Refusal::Moved),
    })?;
    let _waiting = Waiting::new(&server);
    let told = tokio::select! {
        biased;
        told = poll.told() => told,
        () = exchange.end_of_input() => {
            poll.in_doubt();
            poll.told().await
        }
    };
    match told {
        Told::Call(handover) => Ok(reply::call(handover, Arc::clone(&exchange.outbox))),
        Told::End(PollEnd::TimedOut) => Ok(reply::empty(StatusCode::REQUEST_TIMEOUT)),
        // None comes here any more: the device asks again, over a connection that reaches another node.
        Told::End(PollEnd::Ended(EndReason::ShuttingDown | EndReason::Moved)) => {
            Ok(reply::closing(reply::empty(StatusCode::REQUEST_TIMEOUT)))
        }
        Told::End(PollEnd::Ended(why)) => Err(reply::refusal(why.into())),
        Told::End(PollEnd::Unavailable) => Err(reply::refusal(Refusal::Unavailable)),
    }
}

/// `POST …/rpc/{id}`: the device answers a call.
async fn answer(
    State(server): State<Arc<Server>>,
    Extension(exchange): Extension<Arc<Exchange>>,
    From { visit, id }: From,
) -> Result<Response, Response> {
    let body = read(&server, &exchange).await?;
    let number = id.and_then(|id| call_number(&id)).ok_or_else(|| reply::refusal(Refusal::NoSuchCall))?;
    let taken = match visit.device.answer(number, &body) {
        AnswerTaken::NoSuchCall => answer_elsewhere(&server, &visit, number, &body).await?,
        taken => taken,
    };
    match taken.refusal() {
        None => Ok(reply::empty(StatusCode::OK)),
        Some(why) => Err(reply::refusal(why)),
    }
}

/// An answer to a call that is not here costs its device what a call costs: another node is asked.
async fn answer_elsewhere(
    server: &Server,
    visit: &Visit,
    number: u32,
    body: &Bytes,
) -> Result<AnswerTaken, Response> {
    let visitor = &visit.device.visitor;
    let admitted = caller(visitor, |it| it.admit(&server.limits(), Instant::now()));
    admitted.map_err(|limit| too_many(server, limit))?;
    let _admitted = Admitted(Arc::clone(visitor));
    relay::hand_on(&server.node, visitor, number, body)
        .await
        .ok_or_else(|| reply::refusal(Refusal::Unavailable))
}

async fn telemetry(
    State(server): State<Arc<Server>>,
    Extension(exchange): Extension<Arc<Exchange>>,
    From { visit, .. }: From,
) -> Result<Response, Response> {
    uplink(&server, &visit, UplinkKind::Telemetry, &exchange).await
}

async fn attributes(
    State(server): State<Arc<Server>>,
    Extension(exchange): Extension<Arc<Exchange>>,
    From { visit, .. }: From,
) -> Result<Response, Response> {
    uplink(&server, &visit, UplinkKind::Attributes, &exchange).await
}

/// `GET …/attributes`: none are kept here, whichever are asked for.
async fn kept_attributes(_: From) -> Response {
    reply::json(Body::from("{}"))
}

/// `GET …/attributes/updates`: none ever comes, so it waits its time out. Each takes a connection, of which there are
/// no more than the node admits.
async fn attribute_updates(
    State(server): State<Arc<Server>>,
    From { visit, .. }: From,
    PollTimeout(timeout): PollTimeout,
) -> Result<Response, Response> {
    tokio::select! {
        () = tokio::time::sleep(timeout) => {}
        () = server.devices.draining() => {}
        why = visit.device.broken_off() => return Err(reply::refusal(why.into())),
    }
    Ok(reply::empty(StatusCode::REQUEST_TIMEOUT))
}

/// Hands a message up, and answers once NATS has it.
async fn uplink(
    server: &Server,
    visit: &Visit,
    kind: UplinkKind,
    exchange: &Exchange,
) -> Result<Response, Response> {
    let admitted = caller(&visit.device.visitor, |it| it.admit_uplink(&server.limits(), Instant::now()));
    admitted.map_err(|limit| too_many(server, limit))?;
    let body = read(server, exchange).await?;
    if !device_api::answer_is_json(&body) {
        return Err(reply::refusal(Refusal::BodyNotJson));
    }
    if !server.node.uplink(&visit.device.visitor, kind, body).await {
        return Err(reply::refusal(Refusal::Unavailable));
    }
    Ok(reply::empty(StatusCode::OK))
}

/// A whole body.
async fn read(server: &Server, exchange: &Exchange) -> Result<Bytes, Response> {
    let http = &server.node.settings().http;
    let read = exchange.read_body(http.max_body_bytes, Duration::from_millis(http.request_timeout_ms)).await;
    read.map_err(|fault| {
        let response = match fault {
            BodyFault::TooLarge => {
                server.node.metrics.limit_hit(Limit::PacketBytes);
                let text = format!("The body must not exceed {} bytes!", http.max_body_bytes);
                reply::error(StatusCode::PAYLOAD_TOO_LARGE, &text)
            }
            BodyFault::Broken => reply::error(StatusCode::BAD_REQUEST, "The body cannot be read!"),
            BodyFault::TooSlow => reply::error(StatusCode::REQUEST_TIMEOUT, "The body did not come in time!"),
        };
        reply::closing(response)
    })
}

/// The time that a poll asks for: `timeout` in whole milliseconds; absent or 0 is the setting's. None when it cannot
/// be.
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

fn too_many(server: &Server, limit: Limit) -> Response {
    server.node.metrics.limit_hit(limit);
    reply::refusal(Refusal::TooOften)
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
            let timeout = poll_timeout(query, &http);
            assert_eq!(timeout, timeout_ms.map(Duration::from_millis), "{query:?}");
        }
    }

    #[test]
    fn a_request_names_one_host() {
        let table: [(Version, &[&str], bool); 14] = [
            (Version::HTTP_11, &["a.example"], true),
            (Version::HTTP_11, &["[::1]:8080"], true),
            (Version::HTTP_11, &["127.0.0.1:8080"], true),
            (Version::HTTP_11, &[""], true),
            (Version::HTTP_10, &[], true),
            (Version::HTTP_10, &["a"], true),
            (Version::HTTP_11, &[], false),
            (Version::HTTP_11, &["a", "a"], false),
            (Version::HTTP_10, &["a", "a"], false),
            (Version::HTTP_11, &["a b"], false),
            (Version::HTTP_11, &["a, b"], false),
            (Version::HTTP_11, &["a/b"], false),
            (Version::HTTP_11, &["u@a"], false),
            (Version::HTTP_11, &["http://a"], false),
        ];
        for (version, hosts, names_one) in table {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(header::HOST, HeaderValue::from_str(host).unwrap());
            }
            assert_eq!(names_one_host(version, &headers), names_one, "{version:?} {hosts:?}");
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
