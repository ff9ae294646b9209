//! What does an application read? Problems (RFC 9457) in our face, ThingsBoard's words in the other; one exhaustive
//! match of outcomes for each. Pure.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use rpc::{CallId, Limit, Outcome, Role, Seen};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::request;

/// The machine-readable name of what a body says.
const OUTCOME: HeaderName = HeaderName::from_static("switchboard-outcome");
/// A call's id.
const CALL: HeaderName = HeaderName::from_static("switchboard-call");
/// May the target have executed it?
const SEEN: HeaderName = HeaderName::from_static("switchboard-seen");

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const PROBLEM: HeaderValue = HeaderValue::from_static("application/problem+json");
/// When to try again, in seconds: limits are per second, and a service that shuts down is replaced as soon.
pub(crate) const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// What went wrong (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Problem {
    /// Which problem, as a URN: its last part is a name that never changes.
    #[serde(rename = "type", serialize_with = "urn")]
    #[schema(example = "urn:switchboard:problem:offline")]
    kind: &'static str,
    /// The same in words.
    title: &'static str,
    /// The status of the response.
    status: u16,
    /// What was expected.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    detail: Option<Box<str>>,
    /// The member of the request that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    field: Option<Box<str>>,
    /// What is wrong with policies, each with its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Fault>>)]
    faults: Option<Box<[Fault]>>,
    /// How the call ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(example = "offline")]
    outcome: Option<&'static str>,
    /// May the target have executed the call? `never`: it has not, nor will it; `maybe`: nobody can say; `yes`: it has.
    #[schema(value_type = String, example = "never")]
    seen: Seen,
    /// The call, in logs and traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    call_id: Option<Box<str>>,
    /// The limit that was reached.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "named")]
    #[schema(value_type = Option<String>)]
    limit: Option<Limit>,
}

/// What is not accepted in a text of policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, ToSchema)]
#[schema(as = PolicyFault)]
pub struct Fault {
    /// Which text.
    pub text: String,
    /// Its line, from 1; 0: it is about the whole text.
    pub line: usize,
    /// The place in the line, from 1, in characters.
    pub column: usize,
    /// What is wrong.
    pub problem: String,
    /// What to write instead, where that can be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instead: Option<String>,
}

impl Problem {
    /// Of a request that became no call.
    pub fn new(status: StatusCode, kind: &'static str, title: &'static str) -> Self {
        Problem {
            kind,
            title,
            status: status.as_u16(),
            detail: None,
            field: None,
            faults: None,
            outcome: None,
            seen: Seen::Never,
            call_id: None,
            limit: None,
        }
    }

    /// The same, with what was expected.
    pub fn expected(self, detail: impl Into<String>) -> Self {
        Problem { detail: Some(detail.into().into()), ..self }
    }

    /// A parameter of the query that is not what it must be.
    pub fn parameter(name: &str, expected: impl Into<String>) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let problem = Problem::new(status, "invalid_parameter", "A parameter is not what it must be");
        Problem { field: Some(name.into()), ..problem.expected(expected) }
    }

    /// A limit of the application's, or of all, is reached.
    pub fn limit(limit: Limit) -> Self {
        let problem = Problem::new(StatusCode::TOO_MANY_REQUESTS, "busy", "A limit is reached");
        Problem { limit: Some(limit), ..problem }
    }

    /// A key whose role is below `role`.
    pub fn role(role: Role) -> Self {
        let problem = Problem::new(StatusCode::FORBIDDEN, "role_too_low", "The key's role may not do that");
        problem.expected(format!("a key with the role {} or above", role.as_str()))
    }

    /// A header that is not what it must be.
    pub fn header(name: &str, expected: impl Into<String>) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let problem = Problem::new(status, "invalid_header", "A header is not what it must be");
        Problem { field: Some(name.into()), ..problem.expected(expected) }
    }

    /// The same, about a call that its target has seen so.
    pub fn of_call(self, call: CallId, seen: Seen) -> Self {
        Problem { call_id: Some(call.to_string().into()), seen, ..self }
    }

    /// A member of a body that is not what it must be.
    pub fn member(name: &str, expected: impl Into<String>) -> Self {
        let status = StatusCode::UNPROCESSABLE_ENTITY;
        let problem = Problem::new(status, "invalid_member", "A member of the body is not what it must be");
        Problem { field: Some(name.into()), ..problem.expected(expected) }
    }

    /// A body that names another kind, or none.
    pub fn not_said_to_be_json() -> Self {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        let problem = Problem::new(status, "unsupported_media_type", "The body is not said to be JSON");
        problem.expected("Content-Type: application/json")
    }

    /// The same, about a member or parameter of that name.
    pub fn of(self, field: &str) -> Self {
        Problem { field: Some(field.into()), ..self }
    }

    /// The same, with what is wrong with policies, which `detail` tells in words.
    pub fn at(self, faults: Vec<Fault>, words: String) -> Self {
        Problem {
            faults: Some(faults.into()),
            detail: Some(words.into()),
            field: Some("texts".into()),
            ..self
        }
    }

    /// Whether it is the one of that name.
    pub fn is(&self, kind: &str) -> bool {
        self.kind == kind
    }

    /// Its status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    /// What people read.
    pub fn text(&self) -> String {
        let subject = self.field.as_deref().unwrap_or(self.title);
        match (&self.detail, &self.field) {
            (Some(detail), Some(_)) => format!("{subject} must be {detail}"),
            (Some(detail), None) => format!("{subject}: {detail}"),
            (None, _) => subject.to_owned(),
        }
    }
}

fn named<S: Serializer>(limit: &Option<Limit>, serializer: S) -> Result<S::Ok, S::Error> {
    limit.map(Limit::as_str).serialize(serializer)
}

fn urn<S: Serializer>(kind: &str, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("urn:switchboard:problem:{kind}"))
}

impl From<request::Fault> for Problem {
    fn from(fault: request::Fault) -> Self {
        match fault {
            request::Fault::NotAnObject => {
                Problem::new(StatusCode::BAD_REQUEST, "not_json", "The body is not a JSON object")
            }
            request::Fault::Member { name, expected } => Problem::member(&name, expected),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let mut response = said(status, PROBLEM, serde_json::to_vec(&self).unwrap_or_default().into());
        let headers = response.headers_mut();
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER_S);
            }
            _ if self.kind == "in_progress" => {
                headers.insert(header::RETRY_AFTER, RETRY_AFTER_S);
            }
            _ => {}
        }
        response
    }
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// The outcome.
    pub outcome: Outcome,
    /// The target's answer, byte for byte.
    pub body: Bytes,
    /// The call, if it became one.
    pub call: Option<CallId>,
    /// May the target have executed it?
    pub seen: Seen,
}

impl Ended {
    /// Without having become a call.
    pub fn here(outcome: Outcome) -> Self {
        Ended { outcome, body: Bytes::new(), call: None, seen: Seen::Never }
    }
}

/// Our response to a call that ended so.
pub fn ended(end: &Ended) -> Response {
    let (status, title) = end.outcome.told();
    let mut response = match StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR) {
        StatusCode::OK => said(StatusCode::OK, JSON, end.body.clone()),
        StatusCode::NO_CONTENT => StatusCode::NO_CONTENT.into_response(),
        status => failed(end, status, title).into_response(),
    };
    label(&mut response, end);
    response
}

fn failed(end: &Ended, status: StatusCode, title: &'static str) -> Problem {
    Problem {
        outcome: Some(end.outcome.as_str()),
        seen: end.seen,
        call_id: end.call.map(|call| call.to_string().into()),
        limit: match end.outcome {
            Outcome::Busy(limit) => Some(limit),
            _ => None,
        },
        ..Problem::new(status, end.outcome.as_str(), title)
    }
}

/// Which of ThingsBoard's two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// `/api/plugins/rpc`
    V1,
    /// `/api/rpc`
    V2,
}

/// ThingsBoard's response to a call that ended so: bodies are empty where its are.
pub fn thingsboard_ended(version: Version, end: &Ended, now_ms: u64) -> Response {
    let (no_answer, offline) = match version {
        Version::V1 => (StatusCode::REQUEST_TIMEOUT, StatusCode::CONFLICT),
        Version::V2 => (StatusCode::GATEWAY_TIMEOUT, StatusCode::GATEWAY_TIMEOUT),
    };
    let refused = |status, text: &str| thingsboard_error(status, text, now_ms);
    let mut response = match &end.outcome {
        Outcome::Answered => said(StatusCode::OK, JSON, end.body.clone()),
        Outcome::Delivered => StatusCode::OK.into_response(),
        Outcome::Offline => offline.into_response(),
        Outcome::TimedOut | Outcome::Lost => no_answer.into_response(),
        Outcome::AnswerInvalid => StatusCode::NOT_ACCEPTABLE.into_response(),
        Outcome::Denied => {
            refused(StatusCode::UNAUTHORIZED, "You don't have permission to perform this operation!")
        }
        Outcome::UnknownDevice => refused(StatusCode::NOT_FOUND, "Device with requested id wasn't found!"),
        Outcome::Busy(_) => refused(StatusCode::TOO_MANY_REQUESTS, "Too many requests!"),
        Outcome::TooLargeForTarget => {
            refused(StatusCode::PAYLOAD_TOO_LARGE, "Message is too large for the remote device!")
        }
        Outcome::AnswerTooLarge => {
            refused(StatusCode::BAD_GATEWAY, "Response of the remote device is too large!")
        }
        Outcome::Malformed(text) => refused(StatusCode::BAD_REQUEST, text),
        Outcome::Unavailable => refused(StatusCode::SERVICE_UNAVAILABLE, "Internal server error!"),
    };
    if matches!(end.outcome, Outcome::Busy(_) | Outcome::Unavailable) {
        response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER_S);
    }
    label(&mut response, end);
    response
}

/// ThingsBoard's words for a request that became no call.
pub fn thingsboard_error(status: StatusCode, message: &str, now_ms: u64) -> Response {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Error<'a> {
        status: u16,
        message: &'a str,
        error_code: u8,
        timestamp: u64,
    }
    // As ThingsboardErrorCode numbers them.
    let error_code = match status {
        StatusCode::UNAUTHORIZED => 10,
        StatusCode::FORBIDDEN => 20,
        StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE => 31,
        StatusCode::NOT_FOUND => 32,
        StatusCode::TOO_MANY_REQUESTS => 33,
        _ => 2,
    };
    let error = Error { status: status.as_u16(), message, error_code, timestamp: now_ms };
    said(status, JSON, serde_json::to_vec(&error).unwrap_or_default().into())
}

/// The outcome's name, the call and what its target saw, as headers.
fn label(response: &mut Response, end: &Ended) {
    let headers = response.headers_mut();
    headers.insert(OUTCOME, HeaderValue::from_static(end.outcome.as_str()));
    headers.insert(SEEN, HeaderValue::from_static(end.seen.as_str()));
    if let Some(call) = end.call.and_then(|call| HeaderValue::try_from(call.to_string()).ok()) {
        headers.insert(CALL, call);
    }
}

fn said(status: StatusCode, kind: HeaderValue, body: Bytes) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    if status == StatusCode::UNAUTHORIZED {
        // RFC 9110 §15.5.2, in either face.
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn statuses(outcome: &Outcome) -> [u16; 3] {
        let end = Ended { seen: outcome.seen(), ..Ended::here(outcome.clone()) };
        let thingsboard = |version| thingsboard_ended(version, &end, 0);
        [ended(&end), thingsboard(Version::V2), thingsboard(Version::V1)].map(|response| {
            let challenges = response.headers().contains_key(header::WWW_AUTHENTICATE);
            assert_eq!(challenges, response.status() == 401, "{outcome:?}");
            response.status().as_u16()
        })
    }

    #[test]
    fn each_outcome_has_its_status_in_each_face_and_its_promise() {
        for (outcome, expected, seen) in [
            (Outcome::Answered, [200, 200, 200], Seen::Yes),
            (Outcome::Delivered, [204, 200, 200], Seen::Yes),
            (Outcome::Denied, [403, 401, 401], Seen::Never),
            (Outcome::UnknownDevice, [404, 404, 404], Seen::Never),
            (Outcome::Offline, [409, 504, 409], Seen::Never),
            (Outcome::TimedOut, [504, 504, 408], Seen::Maybe),
            (Outcome::Lost, [502, 504, 408], Seen::Maybe),
            (Outcome::Busy(Limit::AppCallRate), [429, 429, 429], Seen::Never),
            (Outcome::TooLargeForTarget, [413, 413, 413], Seen::Never),
            (Outcome::AnswerTooLarge, [502, 502, 502], Seen::Yes),
            (Outcome::AnswerInvalid, [502, 406, 406], Seen::Yes),
            (Outcome::malformed("x"), [400, 400, 400], Seen::Never),
            (Outcome::Unavailable, [503, 503, 503], Seen::Maybe),
        ] {
            assert_eq!(statuses(&outcome), expected, "{outcome:?}");
            assert_eq!(outcome.seen(), seen, "{outcome:?}");
        }
    }

    #[test]
    fn a_problem_says_what_and_which() {
        let fault = request::Fault::Member { name: "timeout".into(), expected: "less".into() };
        let problem = Problem::from(fault);
        assert_eq!(problem.text(), "timeout must be less");
        let text = serde_json::to_string(&problem).unwrap();
        assert_eq!(
            text,
            r#"{"type":"urn:switchboard:problem:invalid_member","title":"A member of the body is not what it must be","#
                .to_owned()
                + r#""status":422,"detail":"less","field":"timeout","seen":"never"}"#
        );
    }
}
