//! May this device, or application, call that device? Pure: no clock, no map, no wait. The built-in rule stands here;
//! below it is what judges by a tenant's own policies.

pub mod explain;
pub mod facts;
pub mod footprint;
pub mod inquiry;
pub mod judge;
pub mod set;
mod sieve;
pub mod survey;

use std::collections::BTreeMap;

use bus::registry::App;
use rpc::{AppCaller, CustomerId, DeviceId, Outcome, TenantId};

pub use explain::{Explanation, explain};
pub use facts::{Action, AppFacts, Caller, Context, Facts};
pub use judge::{Judge, Live};
pub use set::{BUILT_IN, Fault, PolicySet};

/// Where a device stands, which is all that policy looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// The device.
    pub device: DeviceId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its customer, if it is assigned to one.
    pub customer: Option<CustomerId>,
}

/// What the operator may choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// A device of another customer reads as one that does not exist.
    pub conceal_foreign_devices: bool,
}

/// The decision over one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The call goes on.
    Allow,
    /// The call ends here.
    Refuse(Refusal),
}

/// Why a call is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The caller is not registered (any more): its session is about to end.
    UnknownCaller,
    /// The target is not registered in the caller's tenant.
    UnknownTarget,
    /// One of the two has no customer, or they have different ones.
    NotAllowed,
    /// The same, and the caller is not to learn that the target exists.
    Concealed,
}

impl Refusal {
    /// How the call ends for the caller.
    pub const fn outcome(self) -> Outcome {
        match self {
            Refusal::UnknownCaller | Refusal::NotAllowed => Outcome::Denied,
            Refusal::UnknownTarget | Refusal::Concealed => Outcome::UnknownDevice,
        }
    }

    /// The reason's name in metrics and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Refusal::UnknownCaller => "unknown_caller",
            Refusal::UnknownTarget => "unknown_target",
            Refusal::NotAllowed => "not_allowed",
            Refusal::Concealed => "concealed",
        }
    }
}

/// Decides over a call from `caller` to `target`, each as the directory knows it; a missing answer denies.
///
/// A device may call itself, being a device of its own customer; one without a customer may not.
pub fn decide(caller: Option<&Standing>, target: Option<&Standing>, rules: Rules) -> Decision {
    let (caller, target) = match meet(caller, target) {
        Ok(met) => met,
        Err(refusal) => return Decision::Refuse(refusal),
    };
    if caller.customer.is_some() && caller.customer == target.customer {
        return Decision::Allow;
    }
    // A device knows that itself exists: concealing that would only hide the reason.
    if rules.conceal_foreign_devices && caller.device != target.device {
        return Decision::Refuse(Refusal::Concealed);
    }
    Decision::Refuse(Refusal::NotAllowed)
}

/// Decides over a call that an application makes over NATS, or by a key of its, which must live at `now_s`, in seconds
/// since 1970. By its scope, within which a tenant's policies may forbid more. What it may not see is not there.
pub fn decide_app(
    app: Option<&App>,
    caller: &AppCaller,
    target: Option<(&Standing, &BTreeMap<String, String>)>,
    now_s: u64,
) -> Decision {
    let has_shown_itself = |app: &&App| match caller.key {
        Some(key) => app.has_key(key, now_s),
        // NATS does not say from where.
        None => app.networks.is_none(),
    };
    let Some(app) = app.filter(has_shown_itself) else {
        return Decision::Refuse(Refusal::UnknownCaller);
    };
    let is_there = |(target, labels): &(&Standing, &BTreeMap<String, String>)| {
        target.tenant == app.tenant && app.reaches(target.customer, labels)
    };
    match target.filter(is_there) {
        None => Decision::Refuse(Refusal::UnknownTarget),
        Some(_) if app.may_call(&caller.method) => Decision::Allow,
        Some(_) => Decision::Refuse(Refusal::NotAllowed),
    }
}

/// Caller and target, if they can meet at all: what no policy can change.
///
/// # Errors
/// When the caller is unknown, or the target is to the caller's tenant.
pub fn meet<'a>(
    caller: Option<&'a Standing>,
    target: Option<&'a Standing>,
) -> Result<(&'a Standing, &'a Standing), Refusal> {
    let caller = caller.ok_or(Refusal::UnknownCaller)?;
    let target = target.filter(|target| target.tenant == caller.tenant).ok_or(Refusal::UnknownTarget)?;
    Ok((caller, target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    const OPEN: Rules = Rules { conceal_foreign_devices: false };
    const CONCEALING: Rules = Rules { conceal_foreign_devices: true };

    fn standing(device: u128, tenant: u128, customer: Option<u128>) -> Standing {
        Standing {
            device: DeviceId(Uuid::from_u128(device)),
            tenant: TenantId(Uuid::from_u128(tenant)),
            customer: customer.map(|customer| CustomerId(Uuid::from_u128(customer))),
        }
    }

    #[test]
    fn table() {
        let a1 = standing(1, 100, Some(10));
        let a2 = standing(2, 100, Some(10));
        let b1 = standing(3, 100, Some(11));
        let loose = standing(4, 100, None);
        let other_loose = standing(5, 100, None);
        let foreign = standing(6, 101, Some(10));
        let cases = [
            ("of one customer", Some(a1), Some(a2), Ok(()), Ok(())),
            ("itself", Some(a1), Some(a1), Ok(()), Ok(())),
            ("of another customer", Some(a1), Some(b1), Err(Outcome::Denied), Err(Outcome::UnknownDevice)),
            ("caller unassigned", Some(loose), Some(a1), Err(Outcome::Denied), Err(Outcome::UnknownDevice)),
            ("target unassigned", Some(a1), Some(loose), Err(Outcome::Denied), Err(Outcome::UnknownDevice)),
            (
                "both unassigned",
                Some(loose),
                Some(other_loose),
                Err(Outcome::Denied),
                Err(Outcome::UnknownDevice),
            ),
            ("itself, unassigned", Some(loose), Some(loose), Err(Outcome::Denied), Err(Outcome::Denied)),
            (
                "of another tenant",
                Some(a1),
                Some(foreign),
                Err(Outcome::UnknownDevice),
                Err(Outcome::UnknownDevice),
            ),
            ("no target", Some(a1), None, Err(Outcome::UnknownDevice), Err(Outcome::UnknownDevice)),
            ("no caller", None, Some(a1), Err(Outcome::Denied), Err(Outcome::Denied)),
            ("neither", None, None, Err(Outcome::Denied), Err(Outcome::Denied)),
        ];
        for (what, caller, target, open, concealing) in cases {
            for (rules, expected) in [(OPEN, &open), (CONCEALING, &concealing)] {
                let decided = match decide(caller.as_ref(), target.as_ref(), rules) {
                    Decision::Allow => Ok(()),
                    Decision::Refuse(refusal) => Err(refusal.outcome()),
                };
                assert_eq!(&decided, expected, "{what}, {rules:?}");
            }
        }
    }

    #[test]
    fn an_application_calls_within_its_scope_alone() {
        let id = rpc::KeyId(7);
        let hash = rpc::CredentialHash::from_digest([7; 32]);
        let key = bus::registry::KeyRecord { hash, made_s: 100, expires_s: 200 };
        let app = App {
            tenant: TenantId(Uuid::from_u128(100)),
            name: "backend".into(),
            role: rpc::Role::Caller,
            all_tenants: false,
            customers: Some([CustomerId(Uuid::from_u128(10))].into()),
            labels: BTreeMap::new(),
            methods: Some(["blink".to_owned()].into()),
            networks: None,
            keys: [(id, key)].into(),
        };
        let caller = |key, method: &str| AppCaller {
            app: rpc::AppId(Uuid::from_u128(1)),
            key: Some(key),
            method: method.to_owned(),
            late: None,
        };
        let (labels, blink) = (BTreeMap::new(), caller(id, "blink"));
        let bound = App { networks: Some(["10.0.0.0/8".to_owned()].into()), ..app.clone() };
        let over_nats = AppCaller { key: None, ..blink.clone() };
        let own = standing(2, 100, Some(10));
        let refused = |refusal| Decision::Refuse(refusal);
        for (what, app, by, target, now_s, expected) in [
            ("its own", Some(&app), &blink, Some(own), 199, Decision::Allow),
            ("its key is over", Some(&app), &blink, Some(own), 200, refused(Refusal::UnknownCaller)),
            ("it is gone", None, &blink, Some(own), 199, refused(Refusal::UnknownCaller)),
            (
                "another key",
                Some(&app),
                &caller(rpc::KeyId(8), "blink"),
                Some(own),
                199,
                refused(Refusal::UnknownCaller),
            ),
            (
                "another method",
                Some(&app),
                &caller(id, "onMsg"),
                Some(own),
                199,
                refused(Refusal::NotAllowed),
            ),
            ("nobody", Some(&app), &blink, None, 199, refused(Refusal::UnknownTarget)),
            ("over NATS", Some(&app), &over_nats, Some(own), 200, Decision::Allow),
            (
                "over NATS, bound to networks",
                Some(&bound),
                &over_nats,
                Some(own),
                200,
                refused(Refusal::UnknownCaller),
            ),
            (
                "another customer's",
                Some(&app),
                &blink,
                Some(standing(2, 100, Some(11))),
                199,
                refused(Refusal::UnknownTarget),
            ),
            (
                "unassigned",
                Some(&app),
                &blink,
                Some(standing(2, 100, None)),
                199,
                refused(Refusal::UnknownTarget),
            ),
            (
                "another tenant's",
                Some(&app),
                &blink,
                Some(standing(2, 101, Some(10))),
                199,
                refused(Refusal::UnknownTarget),
            ),
        ] {
            let target = target.as_ref().map(|target| (target, &labels));
            assert_eq!(decide_app(app, by, target, now_s), expected, "{what}");
        }
    }

    fn any_standing() -> impl Strategy<Value = Option<Standing>> {
        // Few ids, so that they often coincide.
        proptest::option::weighted(
            0.9,
            (0u128..4, 0u128..2, proptest::option::of(0u128..3))
                .prop_map(|(device, tenant, customer)| standing(device, tenant, customer)),
        )
    }

    proptest! {
        #[test]
        fn only_a_shared_tenant_and_customer_allows(
            caller in any_standing(), target in any_standing(), conceal in any::<bool>(),
        ) {
            let decision = decide(caller.as_ref(), target.as_ref(), Rules { conceal_foreign_devices: conceal });
            let share = matches!((caller, target), (Some(caller), Some(target))
                if caller.tenant == target.tenant && caller.customer.is_some() && caller.customer == target.customer);
            prop_assert_eq!(decision == Decision::Allow, share);
        }

        #[test]
        fn concealed_and_missing_targets_read_the_same(
            caller in any_standing(), target in any_standing(),
        ) {
            let known = decide(caller.as_ref(), target.as_ref(), CONCEALING);
            let missing = decide(caller.as_ref(), None, CONCEALING);
            let is_self = matches!((caller, target), (Some(caller), Some(target)) if caller.device == target.device);
            if let (Decision::Refuse(known), Decision::Refuse(missing)) = (known, missing) {
                prop_assert!(is_self || known.outcome() == missing.outcome());
            }
        }

        #[test]
        fn concealing_allows_neither_more_nor_less(caller in any_standing(), target in any_standing()) {
            let open = decide(caller.as_ref(), target.as_ref(), OPEN) == Decision::Allow;
            let concealing = decide(caller.as_ref(), target.as_ref(), CONCEALING) == Decision::Allow;
            prop_assert_eq!(open, concealing);
        }
    }
}
