//! Can the simulation find anything? Each fault is built in, and histories are run until it has been found.

#![cfg(feature = "faults")]

use rpc::faults::{Fault, with};
use switchboard_simulation::judge;
use switchboard_simulation::transition::Plan;

const MAX_HISTORIES: u64 = 20_000;

#[test]
fn each_fault_is_found() {
    let mut unfound = Vec::new();
    for fault in Fault::ALL {
        let found = (0..MAX_HISTORIES).find_map(|seed| {
            let plan = Plan::of_seed(seed);
            let violation = with(Some(fault), || judge(&plan)).into_iter().next()?;
            // The same story without it goes well.
            judge(&plan).is_empty().then(|| (seed + 1, violation.to_string()))
        });
        match found {
            Some((histories, how)) => println!("{fault:?}: found after {histories} histories: {how}"),
            None => unfound.push(fault),
        }
    }
    assert!(unfound.is_empty(), "not found in {MAX_HISTORIES} histories: {unfound:?}");
}
