//! Which part of a story does a failure need? Steps are taken out for as long as the same promise stays broken.

use crate::checker::{Promise, Violation};
use crate::transition::Plan;

/// How many shorter stories are tried at most.
const MAX_TRIES: usize = 2_000;

/// The shortest story found in which `promise` is broken, and how.
pub fn shrink(plan: &Plan, promise: Promise) -> (Plan, Vec<Violation>) {
    let mut best = plan.clone();
    let mut violations = crate::judge(&best);
    let mut tries = 0;
    let mut size = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut from = 0;
        let mut is_shorter = false;
        while from < best.steps.len() && tries < MAX_TRIES {
            let mut shorter = best.clone();
            shorter.steps.drain(from..(from + size).min(best.steps.len()));
            tries += 1;
            let found = crate::judge(&shorter);
            if found.iter().any(|violation| violation.promise == promise) {
                (best, violations, is_shorter) = (shorter, found, true);
            } else {
                from += size;
            }
        }
        if tries >= MAX_TRIES || (size == 1 && !is_shorter) {
            return (best, violations);
        }
        size = if is_shorter { size } else { size.div_ceil(2) }.max(1);
        if size > 1 && !is_shorter {
            continue;
        }
        if size == 1 && best.steps.is_empty() {
            return (best, violations);
        }
    }
}
