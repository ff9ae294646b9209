//! Are all promises kept in every history that is tried? And is each history the same each time?

use std::thread;

use switchboard_simulation::judge;
use switchboard_simulation::shrink::shrink;
use switchboard_simulation::tell;
use switchboard_simulation::transition::Plan;
use switchboard_simulation::world::World;

const HISTORIES: u64 = 20_000;
/// Histories know nothing of each other.
const AT_A_TIME: u64 = 2;

#[test]
fn every_promise_is_kept() {
    thread::scope(|scope| {
        for first in 0..AT_A_TIME {
            scope.spawn(move || {
                for seed in (first..HISTORIES).step_by(AT_A_TIME as usize) {
                    let plan = Plan::of_seed(seed);
                    if let Some(violation) = judge(&plan).first() {
                        let (shorter, violations) = shrink(&plan, violation.promise);
                        let (story, _) = tell(&shorter);
                        let how: Vec<String> = violations.iter().map(ToString::to_string).collect();
                        panic!("seed {seed}:\n{}\nNOT KEPT: {}", story.join("\n"), how.join("\nNOT KEPT: "));
                    }
                }
            });
        }
    });
}

#[test]
fn a_history_is_the_same_each_time() {
    for seed in 0..200 {
        let plan = Plan::of_seed(seed);
        assert_eq!(
            World::new(&plan, false).run().history,
            World::new(&plan, true).run().history,
            "seed {seed}"
        );
    }
}
