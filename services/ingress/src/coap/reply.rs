//! How does an outcome become a CoAP response? One exhaustive match for calls, and the words for everything else.

use bytes::Bytes;
use rpc::{Method, Outcome};
use serde::Serialize;

use super::codec::{Code, Response, format};
use crate::device::caller::RefusedRequest;
use crate::device::mailbox::EndReason;
use crate::device_api;

/// When to try again, in seconds: limits are per second, and a node that shuts down is replaced as soon.
const RETRY_AFTER_S: u32 = 1;

/// What `/.well-known/core` says (RFC 6690): where the device API begins, and in what it speaks.
pub const DISCOVERY: &[u8] = br#"</api/v1>;rt="device-api";ct=50"#;

/// The response to a request of `method` that ended so. Errors are outcomes too: 2.05, as ThingsBoard answers, but for
/// those that are about the request itself or about this system.
pub fn ended(method: Method, outcome: &Outcome, body: Bytes) -> Response {
    let code = match outcome {
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
        | Outcome::Malformed(_) => Code::CONTENT,
        Outcome::Busy(limit) if limit.is_of_target() => Code::CONTENT,
        Outcome::Busy(_) => Code::TOO_MANY_REQUESTS,
        Outcome::Unavailable => Code::UNAVAILABLE,
    };
    said(code, device_api::answer(method, outcome, body))
}

/// The response to a request that goes no further.
pub fn refused_request(refused: &RefusedRequest) -> Response {
    if refused.not_a_request {
        let text = device_api::answer(refused.method, &refused.outcome, Bytes::new());
        return said(Code::BAD_REQUEST, text);
    }
    ended(refused.method, &refused.outcome, Bytes::new())
}

/// The last notification of an observation that the node ends.
pub fn goodbye(reason: EndReason) -> Response {
    match reason {
        EndReason::TakenOver => {
            refused(Code::CONFLICT, "A newer session of this device takes its calls now!")
        }
        EndReason::Revoked => unknown_token(),
        EndReason::ShuttingDown => shutting_down(),
    }
}

/// The response to an access token that nobody has.
pub fn unknown_token() -> Response {
    refused(Code::UNAUTHORIZED, "No device has this access token!")
}

/// The response to a request that comes while the node shuts down.
pub fn shutting_down() -> Response {
    refused(Code::UNAVAILABLE, "This node is shutting down!")
}

/// A service is missing, or failed.
pub fn unavailable() -> Response {
    refused(Code::UNAVAILABLE, "Internal server error!")
}

/// A limit of this node is reached.
pub fn full() -> Response {
    refused(Code::UNAVAILABLE, "This node has as much to do as it may!")
}

/// The device does something too often.
pub fn too_often() -> Response {
    refused(Code::TOO_MANY_REQUESTS, "Too many requests!")
}

/// Another refusal, in words.
pub fn refused(code: Code, text: &str) -> Response {
    #[derive(Serialize)]
    struct Error<'a> {
        error: &'a str,
    }
    said(code, serde_json::to_vec(&Error { error: text }).unwrap_or_default().into())
}

/// The response to `/.well-known/core`.
pub fn discovery() -> Response {
    let payload = Bytes::from_static(DISCOVERY);
    Response { format: Some(format::LINK), payload, ..Response::new(Code::CONTENT) }
}

fn said(code: Code, text: Bytes) -> Response {
    let again = matches!(code, Code::TOO_MANY_REQUESTS | Code::UNAVAILABLE);
    Response { max_age_s: again.then_some(RETRY_AFTER_S), ..Response::json(code, text) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::Limit;

    #[test]
    fn every_outcome_has_its_code() {
        let busy = |limit| Outcome::Busy(limit);
        for (outcome, code) in [
            (Outcome::Answered, "2.05"),
            (Outcome::Delivered, "2.05"),
            (Outcome::Denied, "2.05"),
            (Outcome::UnknownDevice, "2.05"),
            (Outcome::Offline, "2.05"),
            (Outcome::TimedOut, "2.05"),
            (Outcome::Lost, "2.05"),
            (busy(Limit::Mailbox), "2.05"),
            (busy(Limit::TargetInFlight), "2.05"),
            (busy(Limit::CallRate), "4.29"),
            (busy(Limit::CallerInFlight), "4.29"),
            (Outcome::Unavailable, "5.03"),
        ] {
            let response = ended(Method::SendMsg, &outcome, Bytes::from_static(b"1"));
            assert_eq!(response.code.to_string(), code, "{outcome:?}");
            assert_eq!(response.max_age_s.is_some(), code == "4.29" || code == "5.03");
        }
        let malformed = |not_a_request| {
            let outcome = Outcome::malformed("x");
            refused_request(&RefusedRequest { method: Method::Other, outcome, not_a_request })
                .code
                .to_string()
        };
        assert_eq!((malformed(true), malformed(false)), ("4.00".to_owned(), "2.05".to_owned()));
    }
}
