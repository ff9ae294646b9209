//! What does the authorizer count? Handles are looked up once: the hot path only adds.

use boot::metrics::Kind::{Counter, Gauge, Histogram};
use metrics::{counter, gauge, histogram};

use crate::external::Objection;
use crate::policy::Refusal;

/// Gives every metric of the authorizer its help text.
pub fn describe() {
    boot::metrics::describe(&[
        (Counter, DECISIONS, "Calls judged, by result."),
        (Counter, AUTHENTICATIONS, "Credentials asked about, by result."),
        (Counter, LISTS, "getDevices questions, by result."),
        (Counter, BOUNCES, "Allowed calls that no router was there to take."),
        (Counter, EVENTS, "Changed devices told to the nodes."),
        (Gauge, DEVICES, "Devices in the registry."),
        (Gauge, CUSTOMERS, "Customers in the registry."),
        (Gauge, TENANTS, "Tenants in the registry."),
        (
            Gauge,
            AGE,
            "Seconds for which a change may have gone unheard: as old as the registry in memory may be.",
        ),
        (
            Counter,
            POLICY_DECISIONS,
            "Decisions by tenants' own policies, by version of the set, and whether they were evaluated.",
        ),
        (
            Counter,
            SHADOW_DIFFERENCES,
            "Decisions that a set judged beside the live one would have made otherwise, by what it says.",
        ),
        (Gauge, POLICY_SETS, "Tenants that have policies of their own."),
        (
            Gauge,
            POLICY_SETS_UNREAD,
            "Tenants whose policies cannot be read: the last good ones stay in force.",
        ),
        (Counter, EXTERNAL, "Calls put to external decision points, by what came of it."),
        (
            Histogram,
            EXTERNAL_SECONDS,
            "Time from a question to an external decision point to its answer or end.",
        ),
        (Counter, AUDIT_RECORDS, "Denials to be recorded in the audit, by what became of it."),
        (Histogram, ANSWER, "Time the authorizer takes for one question, from its arrival to its end here."),
    ]);
}

const DECISIONS: &str = "switchboard_authorizer_decisions_total";
const AUTHENTICATIONS: &str = "switchboard_authorizer_authentications_total";
const LISTS: &str = "switchboard_authorizer_lists_total";
const BOUNCES: &str = "switchboard_authorizer_bounces_total";
const EVENTS: &str = "switchboard_authorizer_device_events_total";
const DEVICES: &str = "switchboard_authorizer_registry_devices";
const CUSTOMERS: &str = "switchboard_authorizer_registry_customers";
const TENANTS: &str = "switchboard_authorizer_registry_tenants";
const AGE: &str = "switchboard_authorizer_registry_age_seconds";
const POLICY_DECISIONS: &str = "switchboard_authorizer_policy_decisions_total";
const SHADOW_DIFFERENCES: &str = "switchboard_authorizer_policy_shadow_differences_total";
const POLICY_SETS: &str = "switchboard_authorizer_policy_sets";
const POLICY_SETS_UNREAD: &str = "switchboard_authorizer_policy_sets_unread";
const EXTERNAL: &str = "switchboard_authorizer_external_decisions_total";
const EXTERNAL_SECONDS: &str = "switchboard_authorizer_external_seconds";
const AUDIT_RECORDS: &str = "switchboard_authorizer_audit_records_total";
const ANSWER: &str = "switchboard_authorizer_answer_seconds";

/// The handles.
pub(crate) struct Meters {
    pub(crate) calls: Calls,
    pub(crate) authentications: Authentications,
    pub(crate) bounces: metrics::Counter,
    pub(crate) call_seconds: metrics::Histogram,
    pub(crate) list_seconds: metrics::Histogram,
    pub(crate) authenticate_seconds: metrics::Histogram,
}

/// Calls by result.
pub(crate) struct Calls {
    pub(crate) allowed: metrics::Counter,
    /// Their time was over when they arrived.
    pub(crate) expired: metrics::Counter,
    /// Not to be read.
    pub(crate) unreadable: metrics::Counter,
    /// Allowed, and NATS did not take them.
    pub(crate) unsent: metrics::Counter,
    /// The directory may have been out of date.
    pub(crate) stale: metrics::Counter,
    /// The caller's ticket did not count.
    pub(crate) unticketed: metrics::Counter,
    /// Permitted by policies, and not by the external decision point.
    pub(crate) external: metrics::Counter,
    unknown_caller: metrics::Counter,
    unknown_target: metrics::Counter,
    not_allowed: metrics::Counter,
    concealed: metrics::Counter,
}

/// Credentials by result.
pub(crate) struct Authentications {
    pub(crate) identified: metrics::Counter,
    pub(crate) refused: metrics::Counter,
    pub(crate) unreadable: metrics::Counter,
    /// The directory may have been out of date.
    pub(crate) stale: metrics::Counter,
}

impl Meters {
    pub(crate) fn new() -> Self {
        let decision = |result| counter!(DECISIONS, "result" => result);
        let refused = |refusal: Refusal| decision(refusal.as_str());
        let authentication = |result| counter!(AUTHENTICATIONS, "result" => result);
        let seconds = |question| histogram!(ANSWER, "question" => question);
        Meters {
            calls: Calls {
                allowed: decision("allowed"),
                expired: decision("expired"),
                unreadable: decision("unreadable"),
                unsent: decision("unsent"),
                stale: decision("stale"),
                unticketed: decision("unticketed"),
                external: decision("external"),
                unknown_caller: refused(Refusal::UnknownCaller),
                unknown_target: refused(Refusal::UnknownTarget),
                not_allowed: refused(Refusal::NotAllowed),
                concealed: refused(Refusal::Concealed),
            },
            authentications: Authentications {
                identified: authentication("identified"),
                refused: authentication("refused"),
                unreadable: authentication("unreadable"),
                stale: authentication("stale"),
            },
            bounces: counter!(BOUNCES),
            call_seconds: seconds("call"),
            list_seconds: seconds("list"),
            authenticate_seconds: seconds("authenticate"),
        }
    }

    /// Counts a `getDevices` by how it ended.
    pub(crate) fn list(&self, result: &'static str) {
        counter!(LISTS, "result" => result).increment(1);
    }
}

impl Calls {
    pub(crate) fn refused(&self, refusal: Refusal) -> &metrics::Counter {
        match refusal {
            Refusal::UnknownCaller => &self.unknown_caller,
            Refusal::UnknownTarget => &self.unknown_target,
            Refusal::NotAllowed => &self.not_allowed,
            Refusal::Concealed => &self.concealed,
        }
    }
}

/// What the directory's keeper shows of it.
pub(crate) struct RegistryMeters {
    pub(crate) events: metrics::Counter,
    pub(crate) devices: metrics::Gauge,
    pub(crate) customers: metrics::Gauge,
    pub(crate) tenants: metrics::Gauge,
    pub(crate) age_seconds: metrics::Gauge,
}

impl RegistryMeters {
    pub(crate) fn new() -> Self {
        RegistryMeters {
            events: counter!(EVENTS),
            devices: gauge!(DEVICES),
            customers: gauge!(CUSTOMERS),
            tenants: gauge!(TENANTS),
            age_seconds: gauge!(AGE),
        }
    }
}

/// What is shown of the tenants' policies.
pub(crate) struct PolicyMeters {
    pub(crate) shadow_allows: metrics::Counter,
    pub(crate) shadow_denies: metrics::Counter,
    pub(crate) sets: metrics::Gauge,
    pub(crate) unread: metrics::Gauge,
}

impl PolicyMeters {
    pub(crate) fn new() -> Self {
        // 0 is the built-in rule, where a shadow is judged beside it.
        for by in ["memory", "evaluation"] {
            counter!(POLICY_DECISIONS, "by" => by, "version" => "0").increment(0);
        }
        PolicyMeters {
            shadow_allows: counter!(SHADOW_DIFFERENCES, "shadow" => "allows"),
            shadow_denies: counter!(SHADOW_DIFFERENCES, "shadow" => "denies"),
            sets: gauge!(POLICY_SETS),
            unread: gauge!(POLICY_SETS_UNREAD),
        }
    }

    /// Counts decisions by one version of a set. Once a second for each set at most: it looks handles up.
    pub(crate) fn decided(&self, version: u64, remembered: u64, evaluated: u64) {
        for (by, decisions) in [("memory", remembered), ("evaluation", evaluated)] {
            if decisions > 0 {
                counter!(POLICY_DECISIONS, "by" => by, "version" => version.to_string()).increment(decisions);
            }
        }
    }
}

/// What became of records of denials.
pub(crate) struct AuditMeters {
    pub(crate) written: metrics::Counter,
    /// Over the tenant's rate.
    pub(crate) left_out: metrics::Counter,
    /// Too many waited.
    pub(crate) dropped: metrics::Counter,
    /// JetStream did not take it.
    pub(crate) failed: metrics::Counter,
}

impl AuditMeters {
    pub(crate) fn new() -> Self {
        let records = |result| counter!(AUDIT_RECORDS, "result" => result);
        AuditMeters {
            written: records("written"),
            left_out: records("left_out"),
            dropped: records("dropped"),
            failed: records("failed"),
        }
    }
}

/// What external decision points say.
pub(crate) struct ExternalMeters {
    pub(crate) allowed: metrics::Counter,
    /// Answered before, and the answer holds.
    pub(crate) remembered: metrics::Counter,
    pub(crate) seconds: metrics::Histogram,
    objections: [(Objection, metrics::Counter); Objection::ALL.len()],
}

impl ExternalMeters {
    pub(crate) fn new() -> Self {
        let decisions = |result: &'static str| counter!(EXTERNAL, "result" => result);
        ExternalMeters {
            allowed: decisions("allowed"),
            remembered: decisions("remembered"),
            seconds: histogram!(EXTERNAL_SECONDS),
            objections: Objection::ALL.map(|objection| (objection, decisions(objection.as_str()))),
        }
    }

    pub(crate) fn objected(&self, objection: Objection) {
        let of = self.objections.iter().find(|(known, _)| *known == objection);
        if let Some((_, counter)) = of {
            counter.increment(1);
        }
    }
}
