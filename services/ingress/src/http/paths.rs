//! Which paths are there, and what does a request for one count as? Patterns only: paths themselves hold access tokens.

use axum::http::Method;

pub(super) const RPC: &str = "/api/v1/{token}/rpc";
pub(super) const ANSWER: &str = "/api/v1/{token}/rpc/{id}";
pub(super) const TELEMETRY: &str = "/api/v1/{token}/telemetry";
pub(super) const ATTRIBUTES: &str = "/api/v1/{token}/attributes";
pub(super) const UPDATES: &str = "/api/v1/{token}/attributes/updates";
pub(super) const MQTT: &str = "/mqtt";

/// Below it lies the device API.
pub(super) const DEVICE_API: &str = "/api/v1/";

/// What a request is for: the values of the label `route`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Call,
    Poll,
    Answer,
    Telemetry,
    /// Posted or asked for, and updates of them.
    Attributes,
    WebSocket,
    /// Nothing that there is.
    Other,
}

impl Route {
    pub(super) const ALL: [(Route, &'static str); 7] = [
        (Route::Call, "call"),
        (Route::Poll, "poll"),
        (Route::Answer, "answer"),
        (Route::Telemetry, "telemetry"),
        (Route::Attributes, "attributes"),
        (Route::WebSocket, "websocket"),
        (Route::Other, "other"),
    ];

    /// From a pattern of the router and the request's method.
    pub(super) fn of(pattern: Option<&str>, method: &Method) -> Self {
        match (pattern, method) {
            (Some(RPC), &Method::GET) => Route::Poll,
            (Some(RPC), &Method::POST) => Route::Call,
            (Some(ANSWER), &Method::POST) => Route::Answer,
            (Some(TELEMETRY), &Method::POST) => Route::Telemetry,
            (Some(ATTRIBUTES), &(Method::GET | Method::POST)) | (Some(UPDATES), &Method::GET) => {
                Route::Attributes
            }
            (Some(MQTT), &Method::GET) => Route::WebSocket,
            _ => Route::Other,
        }
    }
}
