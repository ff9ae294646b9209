//! What do a pair's devices say to a system? Logins, topics and payloads.

use crate::link::Login;
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
}

/// How a system's devices talk.
pub trait Dialect {
    /// The pair number `index`, from 0.
    fn pair(&self, index: usize) -> PairWire;
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
    fn pair(&self, index: usize) -> PairWire {
        let (caller, target) = (2 * index, 2 * index + 1);
        PairWire {
            caller: Login {
                client_id: format!("caller-{index:05}"),
                username: (self.username)(caller),
                filter: "v1/devices/me/rpc/response/+".into(),
            },
            target: Login {
                client_id: format!("target-{index:05}"),
                username: (self.username)(target),
                filter: "v1/devices/me/rpc/request/+".into(),
            },
            call_topic: "v1/devices/me/rpc/request/".into(),
            answer_topic: "v1/devices/me/rpc/response/".into(),
            request_topic: "v1/devices/me/rpc/request/".into(),
            reply_topic: "v1/devices/me/rpc/response/".into(),
            envelope_head: envelope_head(&device_id(target)),
            envelope_tail: "}}".into(),
            ids: 1024,
        }
    }
}

/// A bare broker: the devices of a pair share topics of about the device API's length, and nobody else's business is
/// checked. Payloads are those of the device API, so that every system moves the same bytes.
#[derive(Debug)]
pub struct BareBroker {
    /// See [`PairWire::ids`].
    pub ids: u32,
}

impl Dialect for BareBroker {
    fn pair(&self, index: usize) -> PairWire {
        let request = format!("v1/dev/{index:05}/rpc/request/");
        let response = format!("v1/dev/{index:05}/rpc/response/");
        let login = |role: &str, filter: &str| Login {
            client_id: format!("{role}-{index:05}"),
            username: String::new(),
            filter: format!("{filter}+"),
        };
        PairWire {
            caller: login("caller", &response),
            target: login("target", &request),
            call_topic: request.clone(),
            answer_topic: response.clone(),
            request_topic: request,
            reply_topic: response,
            envelope_head: envelope_head(&device_id(2 * index + 1)),
            envelope_tail: "}}".into(),
            ids: self.ids,
        }
    }
}

fn envelope_head(target: &str) -> String {
    let timeout_ms = CALL_TIMEOUT.as_millis();
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
