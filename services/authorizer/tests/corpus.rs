//! Does the seed corpus of the fuzz target for policies still hold? Replayed here, without a fuzzer.

#[path = "../../../tests/fuzz/policies.rs"]
mod policies;

use std::fs;
use std::path::Path;

#[test]
fn policy_put() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus/policy_put");
    let seeds: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(seeds.len() >= 10, "{} holds {} seeds only", folder.display(), seeds.len());
    for seed in seeds {
        println!("{}", seed.display());
        policies::policy_put(&fs::read(&seed).unwrap());
    }
}
