//! Any text at all, as a tenant's policies.
#![no_main]

#[path = "../policies.rs"]
mod policies;

libfuzzer_sys::fuzz_target!(|data: &[u8]| policies::policy_put(data));
