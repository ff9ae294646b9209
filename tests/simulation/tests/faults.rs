//! Can the simulation find anything? Each fault is built in, and histories are run until it has been found.
//!
//! `FAULT=NAME` looks for one alone; with `UPDATE_TABLE=1` the table in the README is written anew.

#![cfg(feature = "faults")]

use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use rpc::faults::{Fault, with};
use switchboard_simulation::judge;
use switchboard_simulation::transition::Plan;

const MAX_HISTORIES: u64 = 20_000;
const README: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
const HEAD: &str = "| fault | histories |\n| --- | --- |\n";

/// After how many histories it is found, and how it shows.
fn find(fault: Fault) -> Option<(u64, String)> {
    (0..MAX_HISTORIES).find_map(|seed| {
        let plan = Plan::of_seed(seed);
        let violation = with(Some(fault), || judge(&plan)).into_iter().next()?;
        // The same story without it goes well.
        judge(&plan).is_empty().then(|| (seed + 1, violation.to_string()))
    })
}

#[test]
fn each_fault_is_found() {
    let only = std::env::var("FAULT").ok();
    let wanted: Vec<Fault> = Fault::ALL
        .into_iter()
        .filter(|fault| only.as_ref().is_none_or(|only| *only == format!("{fault:?}")))
        .collect();
    let (next, found) = (AtomicUsize::new(0), Mutex::new(vec![None; wanted.len()]));
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(fault) = wanted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let it = find(*fault);
                    match &it {
                        Some((histories, how)) => println!("{fault:?}: after {histories} histories: {how}"),
                        None => println!("{fault:?}: not in {MAX_HISTORIES} histories"),
                    }
                    let place = wanted.iter().position(|wanted| wanted == fault).unwrap();
                    found.lock().unwrap()[place] = it.map(|(histories, _)| histories);
                }
            });
        }
    });
    let found = found.into_inner().unwrap();
    let unfound: Vec<_> = wanted.iter().zip(&found).filter(|(_, found)| found.is_none()).collect();
    assert!(unfound.is_empty(), "not found in {MAX_HISTORIES} histories: {unfound:?}");
    let rows: Vec<(String, u64)> = wanted
        .iter()
        .zip(&found)
        .map(|(fault, found)| (fault.to_string(), found.unwrap_or_default()))
        .collect();
    let readme = fs::read_to_string(README).unwrap();
    if std::env::var_os("UPDATE_TABLE").is_some() && only.is_none() {
        let before = readme.split_once(HEAD).unwrap().0;
        let rows: String =
            rows.iter().map(|(fault, histories)| format!("| {fault} | {histories} |\n")).collect();
        return fs::write(README, [before, HEAD, &rows].concat()).unwrap();
    }
    for (fault, _) in rows {
        assert!(readme.contains(&format!("\n| {fault} | ")), "the README's table lacks: {fault}");
    }
}
