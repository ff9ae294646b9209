//! Which settings do the simulated processes have, and how are devices called? The defaults, where they matter.

use std::time::Duration;

use bus::registry::Device;
use rpc::{CredentialHash, CustomerId, DeviceId, TenantId};
use uuid::Uuid;

use crate::message::{MS, Micros, SECOND};

/// How long a node's lease lasts.
pub const LEASE: Duration = Duration::from_secs(15);
/// The same, in virtual time.
pub const LEASE_US: Micros = 15 * SECOND;
/// How long a device is expected that its node has sent away.
pub const HANDOVER: Duration = Duration::from_secs(5);
/// How long a claim may take.
pub const CLAIM_TIMEOUT: Micros = 5 * SECOND;
/// How long an authorizer may take to say who a device is.
pub const AUTHENTICATE_TIMEOUT: Micros = 5 * SECOND;
/// The longest time of a call.
pub const MAX_TIMEOUT_MS: u32 = 60_000;
/// How much longer than its call a node waits for an outcome.
pub const OUTCOME_GRACE: Micros = 500 * MS;

const TENANT: TenantId = TenantId(Uuid::from_u128(0xE));

/// The device with that number.
pub fn device_id(device: usize) -> DeviceId {
    DeviceId(Uuid::from_u128(0xD000 + device as u128))
}

/// The number of a device.
pub fn device_of(id: DeviceId) -> usize {
    (id.0.as_u128() - 0xD000) as usize
}

/// A device's name in stories.
pub fn name_of(id: DeviceId) -> String {
    format!("D{}", device_of(id))
}

/// A device's credential: what its token hashes to.
pub fn credential(device: usize) -> [u8; 32] {
    let mut digest = [7; 32];
    digest[0] = device as u8 + 1;
    digest
}

/// A device's record.
pub fn record(device: usize, customer: Option<u8>) -> Device {
    Device {
        tenant: TENANT,
        customer: customer.map(|customer| CustomerId(Uuid::from_u128(0xC00 + u128::from(customer)))),
        name: format!("D{device}"),
        kind: "default".to_owned(),
        labels: Default::default(),
        credential: CredentialHash::from_digest(credential(device)),
        weak_token: false,
    }
}
