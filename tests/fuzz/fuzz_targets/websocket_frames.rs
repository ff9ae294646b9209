//! Any bytes at all, as a WebSocket client's frames.
#![no_main]

#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::websocket_frames(data));
