//! What does a CoAP request ask for? Its options and path, as the device API means them.

use rpc::UplinkKind;

use super::codec::{Block, Code, Message, Token, format, option, uint};
use crate::device::target::MAX_CALL_NUMBER;

/// The longest value of Uri-Path (RFC 7252 §5.10).
const MAX_SEGMENT_BYTES: usize = 255;

/// Segments of the longest path that means something: `api/v1/{token}/rpc/{id}`.
const MAX_SEGMENTS: usize = 5;

/// What a path names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Resource {
    /// `/.well-known/core`.
    Discovery,
    /// `…/rpc`.
    Rpc,
    /// `…/rpc/{id}`: an answer to that call.
    Answer(u32),
    /// `…/telemetry`.
    Telemetry,
    /// `…/attributes`.
    Attributes,
}

impl Resource {
    /// What it hands up, if it does.
    pub fn uplink(self) -> Option<UplinkKind> {
        match self {
            Resource::Telemetry => Some(UplinkKind::Telemetry),
            Resource::Attributes => Some(UplinkKind::Attributes),
            Resource::Discovery | Resource::Rpc | Resource::Answer(_) => None,
        }
    }
}

/// A request whose options make sense.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parsed<'a> {
    /// GET or POST, as its resource allows.
    pub method: Code,
    /// What it is about.
    pub resource: Resource,
    /// The access token in its path; empty for discovery.
    pub access_token: &'a [u8],
    /// Observe (RFC 7641): 0 begins, 1 ends.
    pub observe: Option<u32>,
    /// Which block of the request it carries.
    pub block1: Option<Block>,
    /// Which block of the response it wants.
    pub block2: Option<Block>,
    /// Bytes of the request's whole body, if it says so.
    pub size1: Option<u32>,
    /// Tells uploads to the same path apart (RFC 9175 §3).
    pub request_tag: Option<Token>,
}

/// Request-Tag (RFC 9175 §3).
const REQUEST_TAG: u16 = 292;

/// Reads a request.
///
/// # Errors
/// With the code that refuses it. `4.02` answers a confirmable request only (RFC 7252 §5.4.1).
pub fn parse(message: &Message) -> Result<Parsed<'_>, Code> {
    let mut path: [&[u8]; MAX_SEGMENTS] = [b""; MAX_SEGMENTS];
    let mut segments = 0;
    let (mut observe, mut block1, mut block2, mut size1) = (None, None, None, None);
    let (mut request_tag, mut accept) = (None, None);
    let mut last = None;
    for (number, value) in message.options() {
        let repeated = last.replace(number) == Some(number);
        match number {
            option::URI_PATH => {
                if value.len() > MAX_SEGMENT_BYTES {
                    return Err(Code::BAD_OPTION);
                }
                if let Some(segment) = path.get_mut(segments) {
                    *segment = value;
                }
                segments += 1;
            }
            option::URI_QUERY => {}
            // §5.4.5: what may come only once and comes again counts as unknown.
            option::URI_HOST | option::URI_PORT if !repeated => {}
            option::ACCEPT if !repeated => {
                accept = Some(uint(value).filter(|_| value.len() <= 2).ok_or(Code::BAD_OPTION)?);
            }
            option::BLOCK1 if !repeated => block1 = Some(Block::read(value).ok_or(Code::BAD_REQUEST)?),
            option::BLOCK2 if !repeated => block2 = Some(Block::read(value).ok_or(Code::BAD_REQUEST)?),
            option::PROXY_URI | option::PROXY_SCHEME => return Err(Code::NO_PROXYING),
            option::OBSERVE if !repeated && value.len() <= 3 => observe = uint(value),
            option::SIZE1 if !repeated => size1 = uint(value),
            REQUEST_TAG if !repeated => request_tag = Token::new(value),
            critical if critical % 2 == 1 => return Err(Code::BAD_OPTION),
            _elective => {}
        }
    }
    let (resource, access_token) = match (segments, path) {
        (2, [b".well-known", b"core", ..]) => (Resource::Discovery, &b""[..]),
        (4, [b"api", b"v1", token, b"rpc", ..]) => (Resource::Rpc, token),
        (5, [b"api", b"v1", token, b"rpc", number]) => {
            (Resource::Answer(call_number(number).ok_or(Code::NOT_FOUND)?), token)
        }
        (4, [b"api", b"v1", token, b"telemetry", ..]) => (Resource::Telemetry, token),
        (4, [b"api", b"v1", token, b"attributes", ..]) => (Resource::Attributes, token),
        _ => return Err(Code::NOT_FOUND),
    };
    let allowed: &[Code] = match resource {
        Resource::Discovery => &[Code::GET],
        Resource::Rpc | Resource::Attributes => &[Code::GET, Code::POST],
        Resource::Answer(_) | Resource::Telemetry => &[Code::POST],
    };
    if !allowed.contains(&message.code) {
        return Err(Code::METHOD_NOT_ALLOWED);
    }
    let speaks = if resource == Resource::Discovery { format::LINK } else { format::JSON };
    if accept.is_some_and(|wanted| wanted != u32::from(speaks)) {
        return Err(Code::NOT_ACCEPTABLE);
    }
    let method = message.code;
    Ok(Parsed { method, resource, access_token, observe, block1, block2, size1, request_tag })
}

/// Decimal, 0 … 2147483647.
fn call_number(segment: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(segment).ok().filter(|text| text.bytes().all(|it| it.is_ascii_digit()))?;
    text.parse().ok().filter(|number| *number <= MAX_CALL_NUMBER)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::coap::codec::{Reading, read};
    use coap_lite::{CoapOption, MessageClass, Packet};
    use proptest::prelude::*;

    fn message(code: u8, options: &[(u16, &[u8])]) -> Message {
        let mut packet = Packet::new();
        packet.header.code = MessageClass::from(code);
        for (number, value) in options {
            packet.add_option(CoapOption::from(*number), value.to_vec());
        }
        let Reading::Message(message) = read(&packet.to_bytes_unlimited().unwrap().into()) else {
            panic!("not a message")
        };
        message
    }

    fn of(code: u8, path: &str, more: &[(u16, &[u8])]) -> Result<Resource, Code> {
        let mut options: Vec<(u16, &[u8])> =
            path.split('/').map(|it| (option::URI_PATH, it.as_bytes())).collect();
        options.extend_from_slice(more);
        parse(&message(code, &options)).map(|asked| asked.resource)
    }

    #[test]
    fn paths_and_methods() {
        let (get, post, put) = (1, 2, 3);
        for (code, path, target) in [
            (get, ".well-known/core", Ok(Resource::Discovery)),
            (post, ".well-known/core", Err(Code::METHOD_NOT_ALLOWED)),
            (get, "api/v1/T/rpc", Ok(Resource::Rpc)),
            (post, "api/v1/T/rpc", Ok(Resource::Rpc)),
            (put, "api/v1/T/rpc", Err(Code::METHOD_NOT_ALLOWED)),
            (31, "api/v1/T/rpc", Err(Code::METHOD_NOT_ALLOWED)),
            (post, "api/v1/T/rpc/0", Ok(Resource::Answer(0))),
            (post, "api/v1/T/rpc/2147483647", Ok(Resource::Answer(MAX_CALL_NUMBER))),
            (post, "api/v1/T/rpc/2147483648", Err(Code::NOT_FOUND)),
            (post, "api/v1/T/rpc/-1", Err(Code::NOT_FOUND)),
            (post, "api/v1/T/rpc/+1", Err(Code::NOT_FOUND)),
            (post, "api/v1/T/rpc/", Err(Code::NOT_FOUND)),
            (get, "api/v1/T/rpc/1", Err(Code::METHOD_NOT_ALLOWED)),
            (post, "api/v1/T/telemetry", Ok(Resource::Telemetry)),
            (post, "api/v1/T/attributes", Ok(Resource::Attributes)),
            (get, "api/v1/T/attributes", Ok(Resource::Attributes)),
            (put, "api/v1/T/attributes", Err(Code::METHOD_NOT_ALLOWED)),
            (get, "api/v1/T/telemetry", Err(Code::METHOD_NOT_ALLOWED)),
            (post, "api/v1/T/other", Err(Code::NOT_FOUND)),
            (post, "api/v1/T/rpc/1/2", Err(Code::NOT_FOUND)),
            (post, "api/v1/T/rpc/1/2/3/4/5/6/7", Err(Code::NOT_FOUND)),
            (post, "rpc", Err(Code::NOT_FOUND)),
            (post, "", Err(Code::NOT_FOUND)),
        ] {
            assert_eq!(of(code, path, &[]), target, "{code} {path}");
        }
        assert_eq!(parse(&message(post, &[])).map(|it| it.resource), Err(Code::NOT_FOUND));
        let long = "x".repeat(256);
        assert_eq!(of(post, &format!("api/v1/{long}/rpc"), &[]), Err(Code::BAD_OPTION));
        // A token is the option's bytes as they are: a path of segments needs no escapes (§6.5).
        let longest = "é".repeat(127) + "/";
        for token in [&b"a/b c%2Fd"[..], "Gerät №5".as_bytes(), longest.as_bytes(), b"..", b"\xff\0\x01"] {
            let path: [(u16, &[u8]); 4] = [(11, b"api"), (11, b"v1"), (11, token), (11, b"rpc")];
            assert_eq!(parse(&message(post, &path)).map(|it| it.access_token), Ok(token));
        }
    }

    #[test]
    fn options_that_are_known_unknown_repeated_or_wrong() {
        type Options<'a> = &'a [(u16, &'a [u8])];
        let cases: &[(Options<'_>, Result<(), Code>)] = &[
            (&[(3, b"host"), (7, b"\x16\x33"), (15, b"a=b"), (15, b"c")], Ok(())),
            (&[(2, b"elective"), (252, b"echo"), (65000, b"")], Ok(())),
            (&[(1, b"")], Err(Code::BAD_OPTION)),
            (&[(5, b"")], Err(Code::BAD_OPTION)),
            (&[(9, b"oscore")], Err(Code::BAD_OPTION)),
            (&[(19, b"")], Err(Code::BAD_OPTION)),
            (&[(65001, b"")], Err(Code::BAD_OPTION)),
            (&[(7, b""), (7, b"")], Err(Code::BAD_OPTION)),
            (&[(23, b""), (23, b"")], Err(Code::BAD_OPTION)),
            (&[(35, b"coap://elsewhere/")], Err(Code::NO_PROXYING)),
            (&[(39, b"http")], Err(Code::NO_PROXYING)),
            (&[(17, b"\x32")], Ok(())),
            (&[(17, b"")], Err(Code::NOT_ACCEPTABLE)),
            (&[(17, b"\0\0\x32")], Err(Code::BAD_OPTION)),
            (&[(27, b"\x07")], Err(Code::BAD_REQUEST)),
            (&[(23, b"1234")], Err(Code::BAD_REQUEST)),
        ];
        for (options, expected) in cases {
            assert_eq!(of(2, "api/v1/T/rpc", options).map(|_| ()), *expected, "{options:?}");
        }
        let asked = |options: &[(u16, &[u8])]| {
            let path: [(u16, &[u8]); 4] = [(11, b"api"), (11, b"v1"), (11, b"T"), (11, b"rpc")];
            parse(&message(1, &[&path[..], options].concat())).map(|it| (it.observe, it.size1)).unwrap()
        };
        assert_eq!(asked(&[(6, b""), (60, b"\x01\x00")]), (Some(0), Some(256)));
        assert_eq!(asked(&[(6, b"\x01")]), (Some(1), None));
        // Elective options of a wrong length are ignored (§5.4.3).
        assert_eq!(asked(&[(6, b"1234"), (60, b"12345")]), (None, None));
    }

    proptest! {
        #[test]
        fn no_options_panic(code in 1u8..32, options in proptest::collection::vec(
            (0u16..70, proptest::collection::vec(any::<u8>(), 0..6)), 0..10,
        )) {
            let options: Vec<(u16, &[u8])> = options.iter().map(|(number, value)| (*number, &value[..])).collect();
            let _ = parse(&message(code, &options));
        }
    }
}
