//! What does a registered device take in memory? A process of its own: other tests would be counted too.

#![allow(
    clippy::unwrap_used,
    reason = "a test may fail by panicking; clippy knows only those who bear the attribute, not their helpers"
)]

use std::collections::HashSet;

use bus::registry::{Change, Device};
use rpc::{CredentialHash, CustomerId, DeviceId, TenantId};
use switchboard_authorizer::directory::Directory;
use uuid::Uuid;

#[test]
fn a_device_takes_a_quarter_of_a_kilobyte() {
    const DEVICES: u128 = 200_000;
    let directory = Directory::default();
    let mut touched = HashSet::new();
    let before = resident_bytes();
    for number in 0..DEVICES {
        // A thousand devices a customer, spread ids and hashes, names of the usual length.
        let id = DeviceId(Uuid::from_u128(number));
        let spread = number.wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835).to_le_bytes();
        let mut digest = [0; 32];
        digest.iter_mut().zip(spread).for_each(|(byte, spread)| *byte = spread);
        let record = Device {
            tenant: TenantId(Uuid::from_u128(100)),
            customer: Some(CustomerId(Uuid::from_u128(number % (DEVICES / 1000)))),
            name: format!("Test Device {number:08}"),
            kind: "default".to_owned(),
            labels: Default::default(),
            credential: CredentialHash::from_digest(digest),
            weak_token: false,
        };
        directory.apply(Change::Credential(record.credential.clone(), Some(id)), &mut touched);
        directory.apply(Change::Device(id, Some(record)), &mut touched);
    }
    let bytes = (resident_bytes() - before) / DEVICES as usize;
    println!("{bytes} bytes a device");
    assert!(bytes < 256, "{bytes} bytes a device");
    assert_eq!(directory.sizes().devices, DEVICES as usize);
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
