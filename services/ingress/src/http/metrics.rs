//! What does HTTP tell Prometheus? Requests by route and status, and polls that wait. No path is a label: paths hold
//! access tokens.

use axum::http::{Method, StatusCode};
use metrics::{Counter, Gauge, Unit, counter, describe_counter, describe_gauge, gauge};

/// What a request is for: the values of the label `route`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Call,
    Poll,
    Answer,
    Telemetry,
    Attributes,
    WebSocket,
    /// Nothing that there is.
    Other,
}

impl Route {
    const ALL: [(Route, &'static str); 7] = [
        (Route::Call, "call"),
        (Route::Poll, "poll"),
        (Route::Answer, "answer"),
        (Route::Telemetry, "telemetry"),
        (Route::Attributes, "attributes"),
        (Route::WebSocket, "websocket"),
        (Route::Other, "other"),
    ];

    /// From a pattern of the router, never from a path.
    pub(super) fn of(pattern: Option<&str>, method: &Method) -> Self {
        match pattern {
            Some(super::routes::RPC) if method == Method::GET => Route::Poll,
            Some(super::routes::RPC) => Route::Call,
            Some(super::routes::ANSWER) => Route::Answer,
            Some(super::routes::TELEMETRY) => Route::Telemetry,
            Some(super::routes::ATTRIBUTES) => Route::Attributes,
            Some(super::routes::MQTT) => Route::WebSocket,
            _ => Route::Other,
        }
    }
}

/// The statuses that there are; any other counts as the last.
const STATUSES: [&str; 14] =
    ["101", "200", "400", "401", "404", "405", "408", "409", "413", "426", "429", "500", "503", "other"];

pub(super) struct HttpMetrics {
    requests: Vec<[Counter; STATUSES.len()]>,
    /// Polls that wait for a call.
    pub(super) polls: Gauge,
}

impl HttpMetrics {
    pub(super) fn register() -> Self {
        describe_counter!(
            "switchboard_http_requests_total",
            Unit::Count,
            "HTTP requests of devices, by what they are for and by the status of the response."
        );
        describe_gauge!("switchboard_http_polls", Unit::Count, "Polls that wait for a call.");
        let statuses = |(_, route): (Route, &'static str)| {
            STATUSES.map(
                |status| counter!("switchboard_http_requests_total", "route" => route, "status" => status),
            )
        };
        HttpMetrics { requests: Route::ALL.map(statuses).into(), polls: gauge!("switchboard_http_polls") }
    }

    /// A request was answered so.
    pub(super) fn answered(&self, route: Route, status: StatusCode) {
        let route = Route::ALL.iter().position(|(it, _)| *it == route);
        let status = STATUSES.iter().position(|it| *it == status.as_str()).unwrap_or(STATUSES.len() - 1);
        let counters = route.and_then(|route| self.requests.get(route));
        if let Some(counter) = counters.and_then(|counters| counters.get(status)) {
            counter.increment(1);
        }
    }
}
