//! What a proxy may write before anything else, followed by whatever its client says.
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::proxy_header(data));
