//! What does HTTP tell Prometheus? Requests by route and status, and polls that wait. No path is a label: paths hold
//! access tokens.

use axum::http::StatusCode;
use boot::metrics::{Kind, describe};
use metrics::{Counter, Gauge, counter, gauge};

use super::paths::Route;

/// The statuses that there are; any other counts as the last.
const STATUSES: [&str; 15] = [
    "101", "200", "204", "400", "401", "404", "405", "408", "409", "413", "426", "429", "500", "503", "other",
];

const REQUESTS: &str = "switchboard_http_requests_total";
const POLLS: &str = "switchboard_http_polls";

pub(super) struct HttpMetrics {
    requests: Vec<[Counter; STATUSES.len()]>,
    /// Polls that wait for a call.
    pub(super) polls: Gauge,
}

impl HttpMetrics {
    pub(super) fn register() -> Self {
        describe(&[
            (
                Kind::Counter,
                REQUESTS,
                "HTTP requests of devices, by what they are for and by the response's status.",
            ),
            (Kind::Gauge, POLLS, "Polls that wait for a call."),
        ]);
        let statuses = |(_, route): (Route, &'static str)| {
            STATUSES.map(|status| counter!(REQUESTS, "route" => route, "status" => status))
        };
        HttpMetrics { requests: Route::ALL.map(statuses).into(), polls: gauge!(POLLS) }
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
