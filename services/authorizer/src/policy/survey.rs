//! Who may do what to whom, over all devices of a tenant at once? By class: each pair counts, and few are judged.

use std::collections::HashMap;

use rpc::DeviceId;

use super::facts::{Action, AppFacts, Context, Facts};
use super::set::PolicySet;

/// Pairs that are named as examples.
const MAX_EXAMPLES: usize = 20;

/// How two sets differ over all pairs of different devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Difference {
    /// Pairs that the new set allows and the old one does not.
    pub more: u64,
    /// Pairs that it no longer allows.
    pub fewer: u64,
    /// Some of them: action, caller, target, and whether it is one more.
    pub examples: Vec<(Action, DeviceId, DeviceId, bool)>,
}

/// Whom a caller may call or list, itself left out, in the order given.
pub fn whom<'a>(
    set: &PolicySet,
    devices: &'a [Facts],
    caller: &Facts,
    action: Action,
    context: &Context,
) -> Vec<&'a Facts> {
    matching(set, devices, caller, |other| set.evaluate(caller, action, other, context).is_allowed)
}

/// Who may call or list a target, itself left out, in the order given.
pub fn who<'a>(
    set: &PolicySet,
    devices: &'a [Facts],
    target: &Facts,
    action: Action,
    context: &Context,
) -> Vec<&'a Facts> {
    matching(set, devices, target, |other| set.evaluate(other, action, target, context).is_allowed)
}

fn matching<'a>(
    set: &PolicySet,
    devices: &'a [Facts],
    one: &Facts,
    judge: impl Fn(&Facts) -> bool,
) -> Vec<&'a Facts> {
    let mut known = HashMap::new();
    let others = devices.iter().filter(|other| other.id != one.id);
    others
        .filter(|other| *known.entry(set.footprint().device_class(other)).or_insert_with(|| judge(other)))
        .collect()
}

/// How `new` differs from `old`, exactly, in one context of each action.
pub fn difference(
    old: &PolicySet,
    new: &PolicySet,
    devices: &[Facts],
    at: &[(Action, Context)],
) -> Difference {
    let mut places = HashMap::new();
    // In the order of the devices, so that the examples are the same each time.
    let mut groups: Vec<Vec<&Facts>> = Vec::new();
    for facts in devices {
        let class = (old.footprint().device_class(facts), new.footprint().device_class(facts));
        let place = *places.entry(class).or_insert(groups.len());
        match groups.get_mut(place) {
            Some(group) => group.push(facts),
            None => groups.push(vec![facts]),
        }
    }
    let mut found = Difference::default();
    for (action, context) in at {
        for callers in &groups {
            for targets in &groups {
                let pairs = || callers.iter().flat_map(|a| targets.iter().map(move |b| (a, b)));
                let Some((caller, target)) = pairs().find(|(caller, target)| caller.id != target.id) else {
                    continue;
                };
                let allows = |set: &PolicySet| set.evaluate(*caller, *action, target, context).is_allowed;
                let (before, after) = (allows(old), allows(new));
                if before == after {
                    continue;
                }
                let is_one_group = callers.first().map(|it| it.id) == targets.first().map(|it| it.id);
                let selves = if is_one_group { callers.len() as u64 } else { 0 };
                let count = callers.len() as u64 * targets.len() as u64 - selves;
                *(if after { &mut found.more } else { &mut found.fewer }) += count;
                let room = MAX_EXAMPLES.saturating_sub(found.examples.len());
                let examples = pairs().filter(|(caller, target)| caller.id != target.id).take(room);
                found
                    .examples
                    .extend(examples.map(|(caller, target)| (*action, caller.id, target.id, after)));
            }
        }
    }
    found
}

/// How `new` differs from `old` for an application, over the devices that its scope reaches: action, device, and
/// whether it is one more. Exactly, in one context of each action.
pub fn app_difference(
    old: &PolicySet,
    new: &PolicySet,
    app: &AppFacts,
    devices: &[Facts],
    at: &[(Action, Context)],
) -> Vec<(Action, DeviceId, bool)> {
    let mut found = Vec::new();
    for (action, context) in at {
        let mut known = HashMap::new();
        for target in devices {
            let class = (old.footprint().device_class(target), new.footprint().device_class(target));
            let allows = |set: &PolicySet| set.evaluate(app, *action, target, context).is_allowed;
            let (before, after) = *known.entry(class).or_insert_with(|| (allows(old), allows(new)));
            if before != after {
                found.push((*action, target.id, after));
            }
        }
    }
    found
}
