//! Any datagrams at all, from three peers, with time between them.
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::coap_endpoint(data));
