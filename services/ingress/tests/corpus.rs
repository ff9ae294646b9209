//! Does the seed corpus of the fuzz targets still hold? Replayed here, without a fuzzer.
#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

#[path = "../../../tests/fuzz/targets.rs"]
mod targets;

use std::fs;
use std::path::Path;

#[test]
fn mqtt_reader() {
    replay("mqtt_reader", targets::mqtt_reader);
}

#[test]
fn device_api() {
    replay("device_api", targets::device_api);
}

#[test]
fn websocket_frames() {
    replay("websocket_frames", targets::websocket_frames);
}

#[test]
fn proxy_header() {
    replay("proxy_header", targets::proxy_header);
}

#[test]
fn coap_endpoint() {
    replay("coap_endpoint", targets::coap_endpoint);
}

fn replay(target: &str, check: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/corpus").join(target);
    let seeds: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(seeds.len() >= 10, "{} holds {} seeds only", folder.display(), seeds.len());
    for seed in seeds {
        let bytes = fs::read(&seed).unwrap();
        println!("{}", seed.display());
        check(&bytes);
    }
}
