//! How is it for one customer? Metrics of those that `ingress.measured_customers` names, and of nobody else: each is
//! a hundred series that Prometheus keeps.

use std::collections::HashMap;
use std::time::Duration;

use boot::config::Customers;
use boot::metrics::{Kind, describe};
use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use rpc::{CustomerId, Limit, OutcomeName};

/// Each metric's kind and help.
const METRICS: &[(Kind, &str, &str)] = &[
    (Kind::Counter, CALLS, "Calls of the devices of a measured customer, by outcome."),
    (
        Kind::Histogram,
        CALL_SECONDS,
        "Time from a measured customer's call to its answer at the caller's node.",
    ),
    (Kind::Counter, LIMITS_HIT, "How often devices of a measured customer reached a named limit."),
    (Kind::Gauge, SESSIONS, "Callable devices of a measured customer on this node."),
];

const CALLS: &str = "switchboard_customer_calls_total";
const CALL_SECONDS: &str = "switchboard_customer_call_seconds";
const LIMITS_HIT: &str = "switchboard_customer_limits_hit_total";
const SESSIONS: &str = "switchboard_customer_sessions";

/// Metrics by customer; none for those who are not measured.
#[derive(Debug)]
pub(crate) struct Measured(HashMap<CustomerId, OfCustomer>);

#[derive(Debug)]
struct OfCustomer {
    calls: [Counter; OutcomeName::ALL.len()],
    call_seconds: Histogram,
    limits: [Counter; Limit::ALL.len()],
    sessions: Gauge,
}

impl Measured {
    /// Describes and registers those of these customers.
    pub(crate) fn register(customers: &Customers) -> Self {
        describe(METRICS);
        let of_customer = |customer: CustomerId| {
            let id = customer.to_string();
            let of = OfCustomer {
                calls: OutcomeName::ALL
                    .map(|it| counter!(CALLS, "customer" => id.clone(), "outcome" => it.as_str())),
                call_seconds: histogram!(CALL_SECONDS, "customer" => id.clone()),
                limits: Limit::ALL
                    .map(|it| counter!(LIMITS_HIT, "customer" => id.clone(), "limit" => it.as_str())),
                sessions: gauge!(SESSIONS, "customer" => id.clone()),
            };
            (customer, of)
        };
        Measured(customers.iter().map(of_customer).collect())
    }

    /// A call of one of its devices ended so, after so long.
    pub(crate) fn call_ended(&self, customer: Option<CustomerId>, outcome: OutcomeName, took: Duration) {
        let Some(of) = self.of(customer) else { return };
        if let Some(counter) = of.calls.get(outcome as usize) {
            counter.increment(1);
        }
        of.call_seconds.record(took);
    }

    /// One of its devices hit a limit.
    pub(crate) fn limit_hit(&self, customer: Option<CustomerId>, limit: Limit) {
        if let Some(counter) = self.of(customer).and_then(|of| of.limits.get(limit as usize)) {
            counter.increment(1);
        }
    }

    /// How many of its devices are callable here.
    pub(crate) fn sessions(&self, customer: Option<CustomerId>) -> Option<&Gauge> {
        self.of(customer).map(|of| &of.sessions)
    }

    fn of(&self, customer: Option<CustomerId>) -> Option<&OfCustomer> {
        self.0.get(&customer?)
    }
}
