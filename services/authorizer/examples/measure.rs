//! What does a large registry cost an authorizer? Prints time and memory of a directory that is filled without NATS.
//!
//! `cargo run --release -p switchboard-authorizer --example measure [devices] [customers] [labels]`

use std::collections::HashSet;
use std::time::Instant;

use bus::registry::{Change, Customer, Device};
use rpc::{CredentialHash, CustomerId, DeviceId, TenantId};
use switchboard_authorizer::directory::Directory;
use uuid::Uuid;

/// How often each question is asked.
const QUESTIONS: u64 = 100_000;
/// The most that one getDevices lists.
const MAX_LISTED: usize = 1_024;

fn id(kind: u64, number: u64) -> Uuid {
    Uuid::from_u64_pair(kind, number.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

fn device(number: u64) -> DeviceId {
    DeviceId(id(1, number))
}

fn credential(number: u64) -> CredentialHash {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&number.wrapping_mul(0xD6E8_FEB8_6659_FD93).to_be_bytes());
    digest[8..16].copy_from_slice(&number.to_be_bytes());
    CredentialHash::from_digest(digest)
}

fn resident_kb() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    stat.split(' ').nth(1).and_then(|pages| pages.parse::<f64>().ok()).unwrap_or_default() * 4.0
}

fn report(what: &str, count: u64, started: Instant, resident_before_kb: f64) {
    let each = started.elapsed().as_secs_f64() * 1e6 / count as f64;
    println!(
        "{what:<44} {each:>8.2} µs   {:>6.3} KB each",
        (resident_kb() - resident_before_kb) / count as f64
    );
}

fn load(directory: &Directory, devices: u64, customers: u64, labels: u64) {
    let mut touched = HashSet::new();
    let mut apply = |change| directory.apply(change, &mut touched);
    apply(Change::Loading);
    let tenant = TenantId(id(2, 0));
    for number in 0..customers {
        let name = format!("Customer {number}");
        apply(Change::Customer(CustomerId(id(3, number)), Some(Customer { tenant, name })));
    }
    for number in 0..devices {
        let label = |it| (format!("label-{it}"), format!("value {}", number / 7 % 100));
        let record = Device {
            tenant,
            customer: Some(CustomerId(id(3, number % customers))),
            name: format!("Sensor {number:08} of hall {}", number % 97),
            kind: "thermometer".to_owned(),
            labels: (0..labels).map(label).collect(),
            credential: credential(number),
            weak_token: false,
        };
        apply(Change::Credential(credential(number), Some(device(number))));
        apply(Change::Device(device(number), Some(record)));
    }
    apply(Change::Loaded);
}

fn main() {
    let mut arguments = std::env::args().skip(1).map_while(|it| it.parse::<u64>().ok());
    let devices = arguments.next().unwrap_or(1_000_000);
    let customers = arguments.next().unwrap_or(1_000).max(1);
    let labels = arguments.next().unwrap_or(0);
    println!("{devices} devices in {customers} customers, {labels} labels each");
    let directory = Directory::default();
    for what in ["a device of the first load", "the same of a second load"] {
        let (started, before) = (Instant::now(), resident_kb());
        load(&directory, devices, customers, labels);
        report(what, devices, started, before);
    }
    let some = |question: u64| question.wrapping_mul(7_919) % devices.max(1);
    let (started, before) = (Instant::now(), resident_kb());
    let known = (0..QUESTIONS).filter(|it| directory.identify(&credential(some(*it))).is_some()).count();
    report(&format!("a credential looked up ({known} known)"), QUESTIONS, started, before);
    let (started, before) = (Instant::now(), resident_kb());
    let both = (0..QUESTIONS).filter(|it| {
        let (caller, target) = directory.standings(device(some(*it)), device(some(it + 1)));
        caller.is_some() && target.is_some()
    });
    report(&format!("a call's two devices ({} known)", both.count()), QUESTIONS, started, before);
    let (started, before) = (Instant::now(), resident_kb());
    let lists = customers.min(devices);
    let list = |number| directory.listing(device(number), MAX_LISTED + 1);
    let listed = (0..lists).filter(|number| list(*number).is_ok()).count();
    report(&format!("getDevices of each customer ({listed} listed)"), lists, started, before);
}
