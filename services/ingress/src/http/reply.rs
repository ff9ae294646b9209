//! How does an outcome, or a refusal, become an HTTP response?

use std::sync::Arc;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rpc::{CallId, Method, Outcome};
use serde::Serialize;

use super::device::Handover;
use super::devices::NotLetIn;
use super::lease::Handed;
use super::outbox::{CallBody, Outbox};
use crate::calls::Ended;
use crate::device::caller::RefusedRequest;
use crate::device_api::{self, Refusal, Status};

/// When to try again, in seconds: limits are per second, and a node that shuts down is replaced as soon.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// How a device could show who it is, which RFC 9110 §15.5.2 wants said: by the token in its path, of which HTTP knows
/// no scheme. Of any that a browser knows it would ask its user.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Switchboard-Token");

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// W3C trace context, both ways.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// The machine-readable name of what a body says.
const OUTCOME: HeaderName = HeaderName::from_static("switchboard-outcome");
/// A call's id.
const CALL: HeaderName = HeaderName::from_static("switchboard-call");
const CALLER: HeaderName = HeaderName::from_static("switchboard-caller");
/// Percent-encoded: a header has no other way for what is not ASCII.
const CALLER_NAME: HeaderName = HeaderName::from_static("switchboard-caller-name");
const EXPIRES_MS: HeaderName = HeaderName::from_static("switchboard-expires-ms");

/// All but what RFC 3986 §2.3 leaves unreserved.
const RESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The response to a request of `method` that ended so.
pub(super) fn ended(method: Method, Ended { outcome, body, call, .. }: Ended) -> Response {
    of_outcome(code(Status::of(&outcome)), method, &outcome, body, call)
}

/// The response to a request that goes no further.
pub(super) fn refused(RefusedRequest { method, outcome, not_a_request }: RefusedRequest) -> Response {
    if not_a_request {
        return of_outcome(StatusCode::BAD_REQUEST, method, &outcome, Bytes::new(), None);
    }
    ended(method, Ended::here(outcome, Bytes::new()))
}

fn of_outcome(
    status: StatusCode,
    method: Method,
    outcome: &Outcome,
    body: Bytes,
    call: Option<CallId>,
) -> Response {
    let mut response = said(status, device_api::answer(method, outcome, body));
    let headers = response.headers_mut();
    headers.insert(OUTCOME, HeaderValue::from_static(outcome.as_str()));
    if let Some(call) = call {
        insert(headers, CALL, call.to_string());
    }
    response
}

/// The response to a poll that takes a call; the call counts as written once `outbox` has seen it off.
pub(super) fn call(mut handover: Handover, outbox: Arc<Outbox>) -> Response {
    let Handed { call, expires, .. } = handover.call;
    let (caller, traceparent) = (handover.call.caller.take(), handover.call.traceparent.take());
    let mut response = json(Body::new(CallBody::new(handover, outbox)));
    let headers = response.headers_mut();
    insert(headers, CALL, call.to_string());
    insert(headers, EXPIRES_MS, expires.as_ms().to_string());
    if let Some(caller) = caller {
        insert(headers, CALLER, caller.id.to_string());
        if !caller.name.is_empty() {
            insert(headers, CALLER_NAME, utf8_percent_encode(&caller.name, RESERVED).to_string());
        }
    }
    if let Some(traceparent) = traceparent {
        insert(headers, TRACEPARENT, traceparent);
    }
    response
}

/// What no header can hold is left out.
fn insert(headers: &mut HeaderMap, name: HeaderName, text: String) {
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(name, value);
    }
}

/// The response to a device that is not let in.
pub(super) fn not_let_in(why: NotLetIn) -> Response {
    match why {
        NotLetIn::Refused(why) => refusal(why.into()),
        NotLetIn::Full => error(StatusCode::SERVICE_UNAVAILABLE, "This node has as many devices as it may!"),
        NotLetIn::ShuttingDown => refusal(Refusal::ShuttingDown),
    }
}

/// A refusal that CoAP knows too. A node that sends its devices away closes their connections: the next may reach
/// another.
pub(super) fn refusal(why: Refusal) -> Response {
    let response = error(code(why.status()), why.text());
    match why {
        Refusal::ShuttingDown | Refusal::Moved => closing(response),
        _ => response,
    }
}

/// Something else that went wrong, in words.
pub(super) fn error(status: StatusCode, text: &str) -> Response {
    #[derive(Serialize)]
    struct Error<'a> {
        error: &'a str,
    }
    said(status, serde_json::to_vec(&Error { error: text }).unwrap_or_default().into())
}

/// Nothing to say but the status.
pub(super) fn empty(status: StatusCode) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// A response that says which methods a path takes.
pub(super) fn allowing(status: StatusCode, methods: HeaderValue) -> Response {
    let mut response = empty(status);
    response.headers_mut().insert(header::ALLOW, methods);
    response
}

/// The last response on its connection.
pub(super) fn closing(mut response: Response) -> Response {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// JSON that carries a call, or any other.
pub(super) fn json(body: Body) -> Response {
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response
}

fn code(status: Status) -> StatusCode {
    match status {
        Status::Done => StatusCode::OK,
        Status::BadRequest => StatusCode::BAD_REQUEST,
        Status::Unauthorized => StatusCode::UNAUTHORIZED,
        Status::NotFound => StatusCode::NOT_FOUND,
        Status::Conflict => StatusCode::CONFLICT,
        Status::TooManyRequests => StatusCode::TOO_MANY_REQUESTS,
        Status::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn said(status: StatusCode, text: Bytes) -> Response {
    let mut response = json(Body::from(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    match status {
        StatusCode::UNAUTHORIZED => headers.insert(header::WWW_AUTHENTICATE, CHALLENGE),
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER_S)
        }
        _ => None,
    };
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::{Limit, NodeId};

    #[test]
    fn outcomes_have_their_status() {
        let table = [
            (Outcome::Answered, 200, None),
            (Outcome::Delivered, 200, None),
            (Outcome::Denied, 200, None),
            (Outcome::UnknownDevice, 200, None),
            (Outcome::Offline, 200, None),
            (Outcome::TimedOut, 200, None),
            (Outcome::Lost, 200, None),
            (Outcome::TooLargeForTarget, 200, None),
            (Outcome::AnswerTooLarge, 200, None),
            (Outcome::AnswerInvalid, 200, None),
            (Outcome::Malformed("x".into()), 200, None),
            (Outcome::Busy(Limit::Mailbox), 200, None),
            (Outcome::Busy(Limit::CallRate), 429, Some("1")),
            (Outcome::Busy(Limit::CallerInFlight), 429, Some("1")),
            (Outcome::Unavailable, 503, Some("1")),
        ];
        for (outcome, status, retry_after_s) in table {
            let call = Some(CallId { node: NodeId(1), serial: 2 });
            let name = outcome.as_str();
            let response =
                ended(Method::SendMsg, Ended { call, ..Ended::here(outcome.clone(), Bytes::new()) });
            assert_eq!(response.status(), status, "{outcome:?}");
            assert_eq!(response.headers()[OUTCOME], name);
            assert_eq!(response.headers()[CALL], "0000000000000001-2");
            let header = response.headers().get(header::RETRY_AFTER).map(|it| it.to_str().unwrap());
            assert_eq!(header, retry_after_s, "{outcome:?}");
        }
    }

    #[test]
    fn whoever_is_not_known_is_told_how_to_be() {
        let response = refusal(Refusal::UnknownToken);
        assert_eq!(response.status(), 401);
        assert_eq!(response.headers()[header::WWW_AUTHENTICATE], "Switchboard-Token");
    }
}
