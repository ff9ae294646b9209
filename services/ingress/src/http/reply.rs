//! How does an outcome become an HTTP response? One exhaustive match for calls, and the words for everything else.

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use bytes::Bytes;
use rpc::{Method, Outcome};
use serde::Serialize;

use super::devices::NotLetIn;
use crate::device::caller::RefusedRequest;
use crate::device::mailbox::EndReason;
use crate::device_api;

/// When to try again, in seconds: limits are per second, and a node that shuts down is replaced as soon.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// The response to a request of `method` that ended so. Errors are outcomes too: 200, as ThingsBoard answers, but for
/// those that are about the request itself or about this system.
pub(super) fn ended(method: Method, outcome: &Outcome, body: Bytes) -> Response {
    let status = match outcome {
        Outcome::Answered
        | Outcome::Delivered
        | Outcome::Denied
        | Outcome::UnknownDevice
        | Outcome::Offline
        | Outcome::TimedOut
        | Outcome::Lost
        | Outcome::TooLargeForTarget
        | Outcome::AnswerTooLarge
        | Outcome::AnswerInvalid
        | Outcome::Malformed(_) => StatusCode::OK,
        Outcome::Busy(limit) if limit.is_of_target() => StatusCode::OK,
        Outcome::Busy(_) => StatusCode::TOO_MANY_REQUESTS,
        Outcome::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
    };
    said(status, device_api::answer(method, outcome, body))
}

/// The response to a request that goes no further.
pub(super) fn refused(refused: &RefusedRequest) -> Response {
    if refused.not_a_request {
        let text = device_api::answer(refused.method, &refused.outcome, Bytes::new());
        return said(StatusCode::BAD_REQUEST, text);
    }
    ended(refused.method, &refused.outcome, Bytes::new())
}

/// The response to a device that is not let in.
pub(super) fn not_let_in(why: NotLetIn) -> Response {
    match why {
        NotLetIn::Unknown => unknown_token(),
        NotLetIn::Unavailable => error(StatusCode::SERVICE_UNAVAILABLE, "Internal server error!"),
        NotLetIn::Full => error(StatusCode::SERVICE_UNAVAILABLE, "This node has as many devices as it may!"),
        NotLetIn::ShuttingDown => shutting_down(),
    }
}

/// The response to a request that the node breaks off.
pub(super) fn broken_off(why: EndReason) -> Response {
    match why {
        EndReason::TakenOver => {
            error(StatusCode::CONFLICT, "A newer session of this device takes its calls now!")
        }
        EndReason::Revoked => unknown_token(),
        EndReason::ShuttingDown => shutting_down(),
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

fn unknown_token() -> Response {
    error(StatusCode::UNAUTHORIZED, "No device has this access token!")
}

fn shutting_down() -> Response {
    closing(error(StatusCode::SERVICE_UNAVAILABLE, "This node is shutting down!"))
}

fn said(status: StatusCode, text: Bytes) -> Response {
    let mut response = json(Body::from(text));
    *response.status_mut() = status;
    if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::Limit;

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
            (Outcome::Busy(Limit::Mailbox), 200, None),
            (Outcome::Busy(Limit::CallRate), 429, Some("1")),
            (Outcome::Busy(Limit::CallerInFlight), 429, Some("1")),
            (Outcome::Unavailable, 503, Some("1")),
        ];
        for (outcome, status, retry_after_s) in table {
            let response = ended(Method::SendMsg, &outcome, Bytes::from_static(b"1"));
            assert_eq!(response.status(), status, "{outcome:?}");
            let header = response.headers().get(header::RETRY_AFTER).map(|it| it.to_str().unwrap());
            assert_eq!(header, retry_after_s, "{outcome:?}");
        }
    }
}
