//! What do a pair's devices say to a system? Logins, topics and payloads.

use std::time::Duration;

use crate::framing::Framing;
use crate::link::Login;
use crate::scenario::Scenario;
use crate::tally::CALL_TIMEOUT;

/// A caller, its target, and how they talk. Topics are given without the call's id, which ends each of them.
#[derive(Debug, Clone)]
pub struct PairWire {
    /// The device that calls.
    pub caller: Login,
    /// The device that is called.
    pub target: Login,
    /// Where the caller publishes a call.
    pub call_topic: String,
    /// Where the caller hears the answer.
    pub answer_topic: String,
    /// Where the target hears the call.
    pub request_topic: String,
    /// Where the target publishes its answer.
    pub reply_topic: String,
    /// What stands before the body in a call's payload.
    pub envelope_head: String,
    /// What stands behind it.
    pub envelope_tail: String,
    /// A caller takes its ids in turn from 0 … `ids` - 1, leaving out those of open calls.
    pub ids: u32,
    /// What an offline target's caller must read; empty where nothing tells.
    pub offline: String,
}

/// How a system's devices talk.
pub trait Dialect {
    /// A pair of the devices with these numbers, caller first.
    fn between(&self, caller: usize, target: usize) -> PairWire;

    /// The pair number `index`, from 0.
    fn pair(&self, index: usize) -> PairWire {
        self.between(2 * index, 2 * index + 1)
    }
}

/// The device API, as Switchboard and the chain speak it.
#[derive(Debug)]
pub struct DeviceApi {
    /// The user name of a device, given its number.
    pub username: fn(usize) -> String,
}

/// The id of the bench's device number `index`: a UUID.
pub fn device_id(index: usize) -> String {
    format!("be4c0000-0000-4000-8000-{index:012x}")
}

impl Dialect for DeviceApi {
    fn between(&self, caller: usize, target: usize) -> PairWire {
        let login = |device, filter: &str| Login {
            framing: Framing::Mqtt,
            client_id: format!("device-{device:06}"),
            username: (self.username)(device),
            password: String::new(),
            filter: filter.to_owned(),
        };
        PairWire {
            caller: login(caller, "v1/devices/me/rpc/response/+"),
            target: login(target, "v1/devices/me/rpc/request/+"),
            call_topic: "v1/devices/me/rpc/request/".into(),
            answer_topic: "v1/devices/me/rpc/response/".into(),
            request_topic: "v1/devices/me/rpc/request/".into(),
            reply_topic: "v1/devices/me/rpc/response/".into(),
            envelope_head: envelope_head(target, CALL_TIMEOUT),
            envelope_tail: "}}".into(),
            ids: 1024,
            offline: r#"{"error":"No active connection to the remote device!"}"#.into(),
        }
    }
}

/// A bare broker: every device has topics of about the device API's length, its caller publishes there directly, and
/// nobody is checked. Payloads are those of the device API, so that every system moves the same bytes.
#[derive(Debug)]
pub struct BareBroker {
    /// See [`PairWire::ids`].
    pub ids: u32,
}

impl Dialect for BareBroker {
    fn between(&self, caller: usize, target: usize) -> PairWire {
        let request = format!("v1/dev/{target:06}/rpc/request/");
        let response = format!("v1/dev/{caller:06}/rpc/response/");
        let login = |device, filter: &str| Login {
            framing: Framing::Mqtt,
            client_id: format!("device-{device:06}"),
            username: String::new(),
            password: String::new(),
            filter: format!("{filter}+"),
        };
        PairWire {
            caller: login(caller, &response),
            target: login(target, &request),
            call_topic: request.clone(),
            answer_topic: response.clone(),
            request_topic: request,
            reply_topic: response,
            envelope_head: envelope_head(target, CALL_TIMEOUT),
            envelope_tail: "}}".into(),
            ids: self.ids,
            offline: String::new(),
        }
    }
}

/// A user for each device, which may hear its own topics and publish to those of its customer.
#[derive(Debug)]
pub struct Users {
    /// Whose devices they are.
    pub scenario: Scenario,
    /// MQTT topics, or NATS subjects.
    pub framing: Framing,
}

impl Users {
    /// The user name of a device.
    pub fn name(device: usize) -> String {
        format!("device-{device:06}")
    }

    /// The password of a device.
    pub fn password(device: usize) -> String {
        format!("bench-password-{device:06}")
    }
}

impl Dialect for Users {
    fn between(&self, caller: usize, target: usize) -> PairWire {
        let of = |device, what: &str| {
            let (customer, name) = (self.scenario.customer_of(device), Self::name(device));
            match self.framing {
                Framing::Mqtt => format!("v1/{customer}/{name}/rpc/{what}/"),
                Framing::Nats => format!("v1.{customer}.{name}.rpc.{what}."),
            }
        };
        let login = |device, filter: String| Login {
            framing: self.framing,
            client_id: Self::name(device),
            username: Self::name(device),
            password: Self::password(device),
            filter,
        };
        let (request, response) = (of(target, "request"), of(caller, "response"));
        let (filters, call_topic, request_topic, offline) = match self.framing {
            Framing::Mqtt => {
                let filters = [&response, &request].map(|topic| format!("{topic}+"));
                (filters, request.clone(), request, String::new())
            }
            Framing::Nats => {
                let subject = request.trim_end_matches('.').to_owned();
                let call_topic = format!("{subject} {response}");
                let offline = format!("NATS/1.0 503\r\nNats-Subject: {subject}\r\n\r\n");
                ([format!("{response}*"), subject], call_topic, response.clone(), offline)
            }
        };
        let [heard_by_caller, heard_by_target] = filters;
        PairWire {
            caller: login(caller, heard_by_caller),
            target: login(target, heard_by_target),
            call_topic,
            answer_topic: response.clone(),
            request_topic,
            reply_topic: response,
            envelope_head: envelope_head(target, CALL_TIMEOUT),
            envelope_tail: "}}".into(),
            ids: 1024,
            offline,
        }
    }
}

/// What stands before the body of a call to device number `target`, which asks for an answer within `timeout`.
pub fn envelope_head(target: usize, timeout: Duration) -> String {
    let (target, timeout_ms) = (device_id(target), timeout.as_millis());
    format!(r#"{{"method":"sendMsg","params":{{"deviceId":"{target}","timeout":{timeout_ms},"body":"#)
}

/// The body of a call, 128 bytes of JSON around the call's nonce.
pub mod body {
    /// A call's own 16 hexadecimal digits; the first four are its pair's number.
    pub type Nonce = [u8; 16];

    /// What stands before the nonce.
    pub const HEAD: &[u8] = br#"{"nonce":""#;
    /// What stands behind it.
    pub const TAIL: &[u8] = b"\",\"fill\":\".............................................\
        .............................................\"}";
    /// The whole body's length.
    pub const BYTES: usize = HEAD.len() + size_of::<Nonce>() + TAIL.len();
    const _: () = assert!(BYTES == 128, "the size that the bench promises");

    /// Finds the body in the payload of a request, whatever a system wraps it in.
    pub fn find(payload: &[u8]) -> Option<&[u8]> {
        let start = memchr::memmem::find(payload, HEAD)?;
        payload.get(start..start + BYTES)
    }

    /// The nonce of a body that is whole and unaltered otherwise.
    pub fn nonce(body: &[u8]) -> Option<&[u8]> {
        body.strip_prefix(HEAD)?.strip_suffix(TAIL).filter(|nonce| nonce.len() == size_of::<Nonce>())
    }

    /// The nonce of call number `call` of pair `pair`.
    pub fn new_nonce(pair: u16, call: u64) -> Nonce {
        // An odd factor makes this a permutation of 48 bits: no two calls share a nonce, and neighbours differ widely.
        const ODD: u64 = 0x9e37_79b9_7f4b;
        let number = u64::from(pair) << 48 | (call.wrapping_mul(ODD) & 0xffff_ffff_ffff);
        let mut nonce = Nonce::default();
        for (position, digit) in nonce.iter_mut().rev().enumerate() {
            let nibble = u8::try_from(number >> (4 * position) & 0xf).unwrap_or_default();
            *digit = if nibble < 10 { b'0' + nibble } else { b'a' + nibble - 10 };
        }
        nonce
    }

    /// The pair that a nonce names.
    pub fn pair_of(nonce: &[u8]) -> Option<u16> {
        u16::from_str_radix(std::str::from_utf8(nonce.get(..4)?).ok()?, 16).ok()
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_body_gives_back_its_nonce_unless_it_is_altered() {
            let made = new_nonce(0x12ab, 77);
            let mut body = [HEAD, &made, TAIL].concat();
            assert_eq!(nonce(&body), Some(made.as_slice()));
            assert_eq!(pair_of(&made), Some(0x12ab));
            assert_ne!(made, new_nonce(0x12ab, 78));
            let wrapped = [b"{\"method\":\"onMsg\",\"params\":".as_slice(), &body, b"}"].concat();
            assert_eq!(find(&wrapped), Some(body.as_slice()));
            body.push(b' ');
            assert_eq!(nonce(&body), None);
            assert!(serde_json::from_slice::<serde_json::Value>(&body).is_ok());
        }
    }
}
