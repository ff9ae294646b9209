//! What must hold for any text that is put as a policy? The body of its fuzz target, which an ordinary test runs over
//! the seed corpus.

use std::sync::Arc;

use rpc::{CustomerId, DeviceId, Protocol};
use switchboard_authorizer::policy::{Action, Context, Facts, Judge, PolicySet, explain};
use uuid::Uuid;

/// It is refused at a place that the text has; or it judges the same in every way that it can be asked.
pub(crate) fn policy_put(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let set = match PolicySet::read(&[("fuzz".to_owned(), text.to_owned())]) {
        Ok(set) => Arc::new(set),
        Err(faults) => {
            assert!(!faults.is_empty());
            for fault in faults {
                assert!(!fault.problem.is_empty());
                assert!(fault.line <= text.matches('\n').count() + 1, "{fault}");
            }
            return;
        }
    };
    let devices =
        [device(1, Some(1), &[("room", "12"), ("kind", "panel")]), device(2, Some(2), &[("room", "14")])];
    let context = Context::of_call(true, 5_000, 10, 1_795_694_400, 60).over(Some(Protocol::Http));
    let judge = Judge::new(Some(Arc::clone(&set)), 1, 60, devices.clone());
    for (caller, target) in devices.iter().flat_map(|a| devices.iter().map(move |b| (a, b))) {
        for action in Action::ALL {
            let verdict = set.evaluate_all(caller, action, target, &context);
            assert_eq!(set.evaluate(caller, action, target, &context), verdict, "the sieve");
            assert_eq!(judge.allows(caller.id, action, target.id, &context), verdict.is_allowed, "classes");
            let explanation = explain(&set, caller, action, target, &context);
            assert_eq!(explanation.allowed, verdict.is_allowed);
            assert!(!explanation.to_string().is_empty());
        }
    }
}

fn device(number: u128, customer: Option<u128>, labels: &[(&str, &str)]) -> Facts {
    Facts {
        id: DeviceId(Uuid::from_u128(number)),
        name: format!("Device {number}").into(),
        kind: "lamp".into(),
        customer: customer.map(|customer| CustomerId(Uuid::from_u128(customer))),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
    }
}
