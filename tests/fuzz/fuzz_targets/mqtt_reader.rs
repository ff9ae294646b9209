//! Any bytes at all, as a client's first and all that follow.
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::mqtt_reader(data));
