//! How does an outcome, or a refusal, become a CoAP response?
//!
//! Beside the text stands no machine-readable name of the outcome, nor the call's id, as MQTT 5 and HTTP have them: no
//! registered option carries such a thing, and the experimental ones must not be used in operation (RFC 7252 §12.2).
//! The text itself is the target's, byte for byte. Who must tell a device's own `{"error":…}` from this system's
//! calls over MQTT 5 or HTTP, or has its targets answer under names of their own.

use bytes::Bytes;
use rpc::{Method, Outcome, SessionEnd};
use serde::Serialize;

use super::codec::{Code, Response, format};
use crate::device::caller::RefusedRequest;
use crate::device::mailbox::EndReason;
use crate::device::target::AnswerTaken;
use crate::device_api::{self, Refusal, Status};

/// When to try again, in seconds: limits are per second, and a node that shuts down is replaced as soon.
const RETRY_AFTER_S: u32 = 1;

/// How long a device's attributes are fresh, in seconds: without a word of it a minute (RFC 7252 §5.10.5), after which
/// clients register again (RFC 7641 §3.3.1).
const ATTRIBUTES_MAX_AGE_S: u32 = 24 * 60 * 60;

/// What `/.well-known/core` says (RFC 6690): where the device API begins, and in what it speaks.
pub const DISCOVERY: &[u8] = br#"</api/v1>;rt="device-api";ct=50"#;

/// The response to a request of `method` that ended so.
pub fn ended(method: Method, outcome: &Outcome, body: Bytes) -> Response {
    said(code(Status::of(outcome)), device_api::answer(method, outcome, body))
}

/// The response to a request that goes no further.
pub fn refused_request(refused: &RefusedRequest) -> Response {
    if refused.not_a_request {
        return said(Code::BAD_REQUEST, device_api::answer(refused.method, &refused.outcome, Bytes::new()));
    }
    ended(refused.method, &refused.outcome, Bytes::new())
}

/// The last notification of an observation that ends so; none where the device knows, or is gone.
pub fn goodbye(end: SessionEnd) -> Option<Response> {
    EndReason::of(end).map(|reason| refusal(reason.into()))
}

/// What whoever answers a call reads.
pub fn taken(taken: AnswerTaken) -> Response {
    taken.refusal().map_or_else(|| Response::new(Code::CHANGED), refusal)
}

/// A refusal that HTTP knows too.
pub fn refusal(why: Refusal) -> Response {
    refused(code(why.status()), why.text())
}

/// The response to a request that comes before the node can serve.
pub fn not_yet() -> Response {
    Response { max_age_s: Some(RETRY_AFTER_S), ..Response::new(Code::UNAVAILABLE) }
}

/// A limit of this node is reached.
pub fn full() -> Response {
    refused(Code::UNAVAILABLE, "This node has as much to do as it may!")
}

/// Another refusal, in words.
pub fn refused(code: Code, text: &str) -> Response {
    #[derive(Serialize)]
    struct Error<'a> {
        error: &'a str,
    }
    said(code, serde_json::to_vec(&Error { error: text }).unwrap_or_default().into())
}

/// The device observes its calls from now on, and this is the number of that. Nothing is in it yet, and what comes
/// must be of the same format (RFC 7641 §4.2).
pub fn observes(sequence: u32) -> Response {
    Response { observe: Some(sequence), ..Response::json(Code::CONTENT, Bytes::new()) }
}

/// The device's attributes: none are kept, so whoever observes them, with this sequence number, has nothing to hear of
/// and costs nothing.
pub fn attributes(observe: Option<u32>) -> Response {
    let max_age_s = Some(ATTRIBUTES_MAX_AGE_S);
    Response { observe, max_age_s, ..Response::json(Code::CONTENT, Bytes::from_static(b"{}")) }
}

/// The response to `/.well-known/core`.
pub fn discovery() -> Response {
    let payload = Bytes::from_static(DISCOVERY);
    Response { format: Some(format::LINK), payload, ..Response::new(Code::CONTENT) }
}

fn code(status: Status) -> Code {
    match status {
        Status::Done => Code::CONTENT,
        Status::BadRequest => Code::BAD_REQUEST,
        Status::Unauthorized => Code::UNAUTHORIZED,
        Status::NotFound => Code::NOT_FOUND,
        Status::Conflict => Code::CONFLICT,
        Status::TooManyRequests => Code::TOO_MANY_REQUESTS,
        Status::Unavailable => Code::UNAVAILABLE,
    }
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
            (Outcome::TooLargeForTarget, "2.05"),
            (Outcome::AnswerTooLarge, "2.05"),
            (Outcome::AnswerInvalid, "2.05"),
            (Outcome::malformed("x"), "2.05"),
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
        let refused = |not_a_request| {
            let (method, outcome) = (Method::Other, Outcome::malformed("x"));
            refused_request(&RefusedRequest { method, outcome, not_a_request }).code.to_string()
        };
        assert_eq!((refused(true), refused(false)), ("4.00".to_owned(), "2.05".to_owned()));
    }
}
