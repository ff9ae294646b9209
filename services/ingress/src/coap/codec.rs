//! What do a datagram's bytes say? CoAP messages, read strictly and written (RFC 7252 §3; blocks RFC 7959 §2.2).
//!
//! Of our own: coap-lite 0.13 takes any version, an empty payload behind its marker and content in empty messages,
//! counts blocks in 12 bits of 20, and makes a list node of each of the 60,000 options that one datagram can hold.
//! What would have to stand guard before it reads all that it reads. It checks this reader and writer in the tests.

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

/// The longest token, in bytes (§3).
const MAX_TOKEN_BYTES: usize = 8;

const PAYLOAD_MARKER: u8 = 0xff;

/// How a message is carried (§4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// To be acknowledged.
    Confirmable,
    /// Not to be acknowledged.
    NonConfirmable,
    /// Acknowledges a confirmable one, and may carry the response.
    Acknowledgement,
    /// "I cannot make anything of that message."
    Reset,
}

impl Kind {
    fn from_bits(bits: u8) -> Self {
        match bits & 3 {
            0 => Kind::Confirmable,
            1 => Kind::NonConfirmable,
            2 => Kind::Acknowledgement,
            _ => Kind::Reset,
        }
    }
}

/// What a message asks or says: class and detail (§3, §12.1).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(pub u8);

impl Code {
    /// 0.00, a message without a request or response.
    pub const EMPTY: Code = Code(0);
    /// 0.01.
    pub const GET: Code = Code(1);
    /// 0.02.
    pub const POST: Code = Code(2);
    /// 2.04.
    pub const CHANGED: Code = Code::of(2, 4);
    /// 2.05.
    pub const CONTENT: Code = Code::of(2, 5);
    /// 2.31 (RFC 7959).
    pub const CONTINUE: Code = Code::of(2, 31);
    /// 4.00.
    pub const BAD_REQUEST: Code = Code::of(4, 0);
    /// 4.01.
    pub const UNAUTHORIZED: Code = Code::of(4, 1);
    /// 4.02.
    pub const BAD_OPTION: Code = Code::of(4, 2);
    /// 4.04.
    pub const NOT_FOUND: Code = Code::of(4, 4);
    /// 4.05.
    pub const METHOD_NOT_ALLOWED: Code = Code::of(4, 5);
    /// 4.06.
    pub const NOT_ACCEPTABLE: Code = Code::of(4, 6);
    /// 4.08 (RFC 7959).
    pub const INCOMPLETE: Code = Code::of(4, 8);
    /// 4.09 (RFC 8132).
    pub const CONFLICT: Code = Code::of(4, 9);
    /// 4.13.
    pub const TOO_LARGE: Code = Code::of(4, 13);
    /// 4.29 (RFC 8516).
    pub const TOO_MANY_REQUESTS: Code = Code::of(4, 29);
    /// 5.00.
    pub const INTERNAL_ERROR: Code = Code::of(5, 0);
    /// 5.03.
    pub const UNAVAILABLE: Code = Code::of(5, 3);
    /// 5.05.
    pub const NO_PROXYING: Code = Code::of(5, 5);

    /// Every response code that is sent, for tables.
    pub const RESPONSES: [Code; 16] = [
        Code::CHANGED,
        Code::CONTENT,
        Code::CONTINUE,
        Code::BAD_REQUEST,
        Code::UNAUTHORIZED,
        Code::BAD_OPTION,
        Code::NOT_FOUND,
        Code::METHOD_NOT_ALLOWED,
        Code::NOT_ACCEPTABLE,
        Code::INCOMPLETE,
        Code::CONFLICT,
        Code::TOO_LARGE,
        Code::TOO_MANY_REQUESTS,
        Code::INTERNAL_ERROR,
        Code::UNAVAILABLE,
        Code::NO_PROXYING,
    ];

    const fn of(class: u8, detail: u8) -> Code {
        Code(class << 5 | detail)
    }

    /// True for GET, POST and other methods.
    pub fn is_request(self) -> bool {
        self.0 >> 5 == 0 && self != Code::EMPTY
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:02}", self.0 >> 5, self.0 & 0x1f)
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({self})")
    }
}

/// What a client knows its request by (§5.3.1): any bytes, eight at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Token {
    length: u8,
    bytes: [u8; MAX_TOKEN_BYTES],
}

impl Token {
    /// A token of these bytes; none when they are too many.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut token = Token { length: u8::try_from(bytes.len()).ok()?, ..Token::default() };
        token.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(token)
    }

    /// Its bytes.
    pub fn as_slice(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.length)).unwrap_or_default()
    }
}

/// Numbers of the options that are read or written (§5.10; RFC 7641, 7959).
pub mod option {
    /// Version of a body.
    pub const ETAG: u16 = 4;
    /// Observation.
    pub const OBSERVE: u16 = 6;
    /// Of the server; any is taken.
    pub const URI_HOST: u16 = 3;
    /// Of the server; any is taken.
    pub const URI_PORT: u16 = 7;
    /// One segment of the path.
    pub const URI_PATH: u16 = 11;
    /// What the payload is.
    pub const CONTENT_FORMAT: u16 = 12;
    /// Seconds until an answer is stale.
    pub const MAX_AGE: u16 = 14;
    /// One argument; ignored.
    pub const URI_QUERY: u16 = 15;
    /// What the client can read.
    pub const ACCEPT: u16 = 17;
    /// Block of the response.
    pub const BLOCK2: u16 = 23;
    /// Block of the request.
    pub const BLOCK1: u16 = 27;
    /// Size of the response's whole body.
    pub const SIZE2: u16 = 28;
    /// For a proxy.
    pub const PROXY_URI: u16 = 35;
    /// For a proxy.
    pub const PROXY_SCHEME: u16 = 39;
    /// Size of the request's whole body.
    pub const SIZE1: u16 = 60;
}

/// Content formats (§12.3).
pub mod format {
    /// application/link-format.
    pub const LINK: u16 = 40;
    /// application/json.
    pub const JSON: u16 = 50;
}

/// A message as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// How it is carried.
    pub kind: Kind,
    /// What it is.
    pub code: Code,
    /// Ties acknowledgements and duplicates to it.
    pub id: u16,
    /// Ties responses to it.
    pub token: Token,
    /// Its options' bytes, well-formed.
    options: Bytes,
    /// Its payload, a part of the datagram's memory.
    pub payload: Bytes,
}

/// What a datagram is.
#[derive(Debug, PartialEq, Eq)]
pub enum Reading {
    /// A message.
    Message(Message),
    /// Of another version or too short for a header: ignored without a word (§3).
    Foreign,
    /// A format error, to be rejected (§3, §4.2, §4.3).
    Malformed(Kind, u16),
}

/// Reads one datagram.
pub fn read(datagram: &Bytes) -> Reading {
    let &[first, code, id_high, id_low, ref rest @ ..] = datagram.as_ref() else { return Reading::Foreign };
    if first >> 6 != 1 {
        return Reading::Foreign;
    }
    let (kind, id) = (Kind::from_bits(first >> 4), u16::from_be_bytes([id_high, id_low]));
    let malformed = Reading::Malformed(kind, id);
    let token_bytes = usize::from(first & 0x0f);
    if token_bytes > MAX_TOKEN_BYTES {
        return malformed;
    }
    let Some((token, rest)) = rest.split_at_checked(token_bytes) else { return malformed };
    let (code, token) = (Code(code), Token::new(token).unwrap_or_default());
    if code == Code::EMPTY && (token_bytes > 0 || !rest.is_empty()) {
        return malformed;
    }
    let mut options = Options { rest, number: 0 };
    for option in &mut options {
        if option.is_err() {
            return malformed;
        }
    }
    let payload = match options.rest {
        [] => Bytes::new(),
        // §3: a marker that no payload follows is an error too.
        [_marker] => return malformed,
        [_marker, payload @ ..] => datagram.slice_ref(payload),
    };
    let options = datagram.slice_ref(rest.get(..rest.len() - options.rest.len()).unwrap_or_default());
    Reading::Message(Message { kind, code, id, token, options, payload })
}

impl Message {
    /// Number and value of each option, in order.
    pub fn options(&self) -> impl Iterator<Item = (u16, &[u8])> {
        Options { rest: &self.options, number: 0 }.map_while(Result::ok)
    }
}

struct Options<'a> {
    rest: &'a [u8],
    number: u16,
}

impl<'a> Iterator for Options<'a> {
    type Item = Result<(u16, &'a [u8]), ()>;

    /// Ends before the payload's marker, which stays in `rest`.
    fn next(&mut self) -> Option<Self::Item> {
        match self.rest.first() {
            None | Some(&PAYLOAD_MARKER) => None,
            Some(_) => Some(self.option().ok_or(())),
        }
    }
}

impl<'a> Options<'a> {
    fn option(&mut self) -> Option<(u16, &'a [u8])> {
        let (&head, rest) = self.rest.split_first()?;
        let (delta, rest) = extended(head >> 4, rest)?;
        let (length, rest) = extended(head & 0x0f, rest)?;
        let (value, rest) = rest.split_at_checked(usize::from(length))?;
        self.number = self.number.checked_add(delta)?;
        self.rest = rest;
        Some((self.number, value))
    }
}

/// §3.1: a nibble, or what one or two bytes behind it say.
fn extended(nibble: u8, rest: &[u8]) -> Option<(u16, &[u8])> {
    match (nibble, rest) {
        (0..=12, rest) => Some((u16::from(nibble), rest)),
        (13, &[extra, ref rest @ ..]) => Some((u16::from(extra) + 13, rest)),
        (14, &[high, low, ref rest @ ..]) => Some((u16::from_be_bytes([high, low]).checked_add(269)?, rest)),
        _ => None,
    }
}

/// An option's value as a number (§3.2), when it is no longer than four bytes.
pub fn uint(value: &[u8]) -> Option<u32> {
    if value.len() > 4 {
        return None;
    }
    Some(value.iter().fold(0, |number, &byte| number << 8 | u32::from(byte)))
}

/// One block of a body: the value of Block1 and Block2 (RFC 7959 §2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block {
    /// Which one; 20 bits.
    pub number: u32,
    /// Whether more follow.
    pub more: bool,
    /// Its size is `16 << exponent` bytes; at most 6.
    pub exponent: u8,
}

impl Block {
    /// The exponent of the largest block, 1024 bytes.
    pub const MAX_EXPONENT: u8 = 6;

    /// Reads an option's value; exponent 7 is reserved.
    pub fn read(value: &[u8]) -> Option<Self> {
        if value.len() > 3 {
            return None;
        }
        let bits = uint(value)?;
        let exponent = (bits & 7) as u8;
        (exponent <= Self::MAX_EXPONENT).then_some(Block { number: bits >> 4, more: bits & 8 != 0, exponent })
    }

    /// Bytes of a whole block.
    pub fn bytes(self) -> usize {
        16 << self.exponent
    }

    /// Where it begins in the body.
    pub fn offset(self) -> usize {
        self.number as usize * self.bytes()
    }

    fn bits(self) -> u32 {
        self.number << 4 | u32::from(self.more) << 3 | u32::from(self.exponent & 7)
    }
}

/// A response, or a notification, before it has an id of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its code.
    pub code: Code,
    /// Which body a block belongs to.
    pub etag: Option<u32>,
    /// The observation's sequence number, 24 bits.
    pub observe: Option<u32>,
    /// What the payload is.
    pub format: Option<u16>,
    /// When to try again, in seconds.
    pub max_age_s: Option<u32>,
    /// Which block of the response this is.
    pub block2: Option<Block>,
    /// Which block of the request this answers.
    pub block1: Option<Block>,
    /// Bytes of the whole response.
    pub size2: Option<u32>,
    /// Bytes that a request may have.
    pub size1: Option<u32>,
    /// Its payload.
    pub payload: Bytes,
}

impl Response {
    /// Nothing but a code.
    pub fn new(code: Code) -> Self {
        Response {
            code,
            etag: None,
            observe: None,
            format: None,
            max_age_s: None,
            block2: None,
            block1: None,
            size2: None,
            size1: None,
            payload: Bytes::new(),
        }
    }

    /// A code and JSON.
    pub fn json(code: Code, payload: Bytes) -> Self {
        Response { format: Some(format::JSON), payload, ..Response::new(code) }
    }

    /// Writes it as a datagram.
    pub fn write(&self, kind: Kind, id: u16, token: Token) -> Bytes {
        let mut out = Writer::new(kind, self.code, id, token, self.payload.len());
        // In the order of their numbers, which the encoding asks for.
        out.uint(option::ETAG, self.etag);
        out.uint(option::OBSERVE, self.observe);
        out.uint(option::CONTENT_FORMAT, self.format.map(u32::from));
        out.uint(option::MAX_AGE, self.max_age_s);
        out.uint(option::BLOCK2, self.block2.map(Block::bits));
        out.uint(option::BLOCK1, self.block1.map(Block::bits));
        out.uint(option::SIZE2, self.size2);
        out.uint(option::SIZE1, self.size1);
        out.payload(&self.payload)
    }
}

/// A request, before it has an id of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<'a> {
    /// Its method.
    pub code: Code,
    /// Segments of the path, of at most 255 bytes each (§5.10).
    pub path: &'a [&'a str],
    /// Observe (RFC 7641): 0 begins, 1 ends.
    pub observe: Option<u32>,
    /// Which block of the response is wanted.
    pub block2: Option<Block>,
    /// Which block of the request this is.
    pub block1: Option<Block>,
    /// Its payload.
    pub payload: &'a [u8],
}

impl<'a> Request<'a> {
    /// Nothing but a method and a path.
    pub fn new(code: Code, path: &'a [&'a str]) -> Self {
        Request { code, path, observe: None, block2: None, block1: None, payload: b"" }
    }

    /// Writes it as a datagram; none when a segment is too long.
    pub fn write(&self, kind: Kind, id: u16, token: Token) -> Option<Bytes> {
        let path_bytes: usize = self.path.iter().map(|segment| segment.len() + 2).sum();
        let mut out = Writer::new(kind, self.code, id, token, path_bytes + self.payload.len());
        out.uint(option::OBSERVE, self.observe);
        for segment in self.path {
            out.option(option::URI_PATH, segment.as_bytes())?;
        }
        out.uint(option::BLOCK2, self.block2.map(Block::bits));
        out.uint(option::BLOCK1, self.block1.map(Block::bits));
        Some(out.payload(self.payload))
    }
}

/// A message without content: acknowledgement, reset or ping.
pub fn empty(kind: Kind, id: u16) -> Bytes {
    Writer::new(kind, Code::EMPTY, id, Token::default(), 0).payload(b"")
}

/// What all options of a response can take beside its payload, in bytes.
const HEAD_BYTES: usize = 48;

struct Writer {
    out: BytesMut,
    last_option: u16,
}

impl Writer {
    fn new(kind: Kind, code: Code, id: u16, token: Token, payload_bytes: usize) -> Self {
        let mut out = BytesMut::with_capacity(HEAD_BYTES + payload_bytes);
        let kind = match kind {
            Kind::Confirmable => 0,
            Kind::NonConfirmable => 1,
            Kind::Acknowledgement => 2,
            Kind::Reset => 3,
        };
        out.put_u8(1 << 6 | kind << 4 | token.length);
        out.put_u8(code.0);
        out.put_u16(id);
        out.put_slice(token.as_slice());
        Writer { out, last_option: 0 }
    }

    /// A number in as few bytes as it needs (§3.2).
    fn uint(&mut self, number: u16, value: Option<u32>) {
        let Some(value) = value else { return };
        let bytes = value.to_be_bytes();
        let value = bytes.get(value.leading_zeros() as usize / 8..).unwrap_or_default();
        // No number that is written comes so far behind another.
        let _ = self.option(number, value);
    }

    /// None when it is longer, or comes further behind the last one, than 255.
    fn option(&mut self, number: u16, value: &[u8]) -> Option<()> {
        let (delta, more_delta) = nibble(number.saturating_sub(self.last_option).into())?;
        let (length, more_length) = nibble(value.len())?;
        self.last_option = number;
        self.out.put_u8(delta << 4 | length);
        for more in [more_delta, more_length].into_iter().flatten() {
            self.out.put_u8(more);
        }
        self.out.put_slice(value);
        Some(())
    }

    fn payload(mut self, payload: &[u8]) -> Bytes {
        if !payload.is_empty() {
            self.out.put_u8(PAYLOAD_MARKER);
            self.out.put_slice(payload);
        }
        self.out.freeze()
    }
}

/// §3.1, the other way round: a nibble, and what one byte behind it says.
fn nibble(number: usize) -> Option<(u8, Option<u8>)> {
    match u8::try_from(number).ok()? {
        small @ 0..=12 => Some((small, None)),
        number => Some((13, Some(number - 13))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use coap_lite::{CoapOption, MessageClass, MessageType, Packet};
    use proptest::prelude::*;

    fn read_bytes(bytes: &[u8]) -> Reading {
        read(&Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn what_is_no_message_is_ignored_or_rejected() {
        use Kind::{Acknowledgement, Confirmable, NonConfirmable};
        let foreign: [&[u8]; 5] = [b"", b"\x40", b"\x40\x01\x00", b"\x00\x01\x00\x01", b"\x80\x01\x00\x01"];
        for bytes in foreign {
            assert_eq!(read_bytes(bytes), Reading::Foreign, "{bytes:02x?}");
        }
        let malformed: [(&[u8], Kind); 14] = [
            (b"\x49\x01\x00\x07123456789", Confirmable),
            (b"\x4f\x01\x00\x07123456789abcdef", Confirmable),
            (b"\x42\x01\x00\x071", Confirmable),
            (b"\x41\x00\x00\x071", Confirmable),
            (b"\x40\x00\x00\x07\xff1", Confirmable),
            (b"\x40\x01\x00\x07\xff", Confirmable),
            (b"\x50\x01\x00\x07\xb4rpc", NonConfirmable),
            (b"\x60\x45\x00\x07\xf0", Acknowledgement),
            (b"\x40\x01\x00\x07\x0f", Confirmable),
            (b"\x40\x01\x00\x07\xd0", Confirmable),
            (b"\x40\x01\x00\x07\xe0\x00", Confirmable),
            (b"\x40\x01\x00\x07\x0d", Confirmable),
            (b"\x40\x01\x00\x07\xe0\xff\xff", Confirmable),
            (b"\x40\x01\x00\x07\xe0\xfe\xf2\xe0\xfe\xf2", Confirmable),
        ];
        for (bytes, kind) in malformed {
            assert_eq!(read_bytes(bytes), Reading::Malformed(kind, 7), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_block_says_which_of_which_size() {
        for (value, block) in [
            (&[][..], Some((0, false, 0))),
            (&[0x06], Some((0, false, 6))),
            (&[0x1e], Some((1, true, 6))),
            (&[0xff, 0xff, 0xf8], Some((0xf_ffff, true, 0))),
            (&[0x07], None),
            (&[1, 0, 0, 0], None),
        ] {
            let read = Block::read(value);
            assert_eq!(read.map(|it| (it.number, it.more, it.exponent)), block, "{value:02x?}");
        }
    }

    fn options() -> impl Strategy<Value = Vec<(u16, Vec<u8>)>> {
        let number = prop_oneof![0u16..80, 250u16..300, 0u16..65_000];
        let value = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20),
            proptest::collection::vec(any::<u8>(), 250..300),
        ];
        proptest::collection::vec((number, value), 0..12).prop_map(|mut options| {
            options.sort_by_key(|(number, _)| *number);
            options
        })
    }

    proptest! {
        #[test]
        fn what_another_writes_is_read_alike(
            kind in 0u8..4, code in 1u8.., id in any::<u16>(),
            token in proptest::collection::vec(any::<u8>(), 0..=8),
            options in options(), payload in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut packet = Packet::new();
            packet.header.code = MessageClass::from(code);
            packet.header.message_id = id;
            packet.header.set_type([
                MessageType::Confirmable, MessageType::NonConfirmable,
                MessageType::Acknowledgement, MessageType::Reset,
            ][usize::from(kind)]);
            packet.set_token(token.clone());
            for (number, value) in &options {
                packet.add_option(CoapOption::from(*number), value.clone());
            }
            packet.payload = payload.clone();
            let Reading::Message(message) = read_bytes(&packet.to_bytes_unlimited().unwrap()) else {
                panic!("not read")
            };
            prop_assert_eq!(message.kind, Kind::from_bits(kind));
            // The other library writes codes that it does not know as they are, and one as another.
            prop_assert_eq!(message.code.0, u8::from(MessageClass::from(code)));
            prop_assert_eq!((message.id, message.token.as_slice()), (id, &token[..]));
            let read: Vec<_> = message.options().map(|(number, value)| (number, value.to_vec())).collect();
            prop_assert_eq!(read, options);
            prop_assert_eq!(&message.payload[..], &payload[..]);
        }

        #[test]
        fn what_is_written_another_reads_alike(
            numbers in any::<[Option<u32>; 4]>(), more in any::<bool>(), exponent in 0u8..=6,
            token in proptest::collection::vec(any::<u8>(), 0..=8),
            payload in proptest::collection::vec(any::<u8>(), 0..100), id in any::<u16>(),
        ) {
            let block = numbers[0].map(|number| Block { number: number >> 12, more, exponent });
            let response = Response {
                etag: numbers[1], observe: numbers[2].map(|it| it >> 8), max_age_s: numbers[3], block2: block,
                block1: block, size1: numbers[1], size2: numbers[2],
                ..Response::json(Code::CONTENT, payload.clone().into())
            };
            let bytes = response.write(Kind::NonConfirmable, id, Token::new(&token).unwrap());
            prop_assert!(bytes.len() <= HEAD_BYTES + payload.len());
            let packet = Packet::from_bytes(&bytes).unwrap();
            prop_assert_eq!(packet.get_token(), &token[..]);
            prop_assert_eq!((packet.header.message_id, packet.header.get_version()), (id, 1));
            prop_assert_eq!(&packet.payload, &payload);
            let number = |option| packet.get_first_option(option).map(|value| uint(value).unwrap());
            prop_assert_eq!(number(CoapOption::ETag), response.etag);
            prop_assert_eq!(number(CoapOption::Observe), response.observe);
            prop_assert_eq!(number(CoapOption::ContentFormat), Some(50));
            prop_assert_eq!(number(CoapOption::MaxAge), response.max_age_s);
            prop_assert_eq!(number(CoapOption::Size1), response.size1);
            prop_assert_eq!(number(CoapOption::Size2), response.size2);
            let read = packet.get_first_option(CoapOption::Block2).map(|value| Block::read(value).unwrap());
            prop_assert_eq!(read, block);
        }

        #[test]
        fn a_request_that_is_written_is_read_alike(
            path in proptest::collection::vec("[ -~]{0,300}", 0..6), numbers in any::<[Option<u32>; 2]>(),
            payload in proptest::collection::vec(any::<u8>(), 0..100), id in any::<u16>(),
        ) {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let block = numbers[0].map(|number| Block { number: number >> 12, more: true, exponent: 6 });
            let observe = numbers[1].map(|it| it & 1);
            let request =
                Request { observe, block2: block, block1: block, payload: &payload, ..Request::new(Code::GET, &path) };
            let written = request.write(Kind::Confirmable, id, Token::new(b"1234").unwrap());
            prop_assert_eq!(written.is_none(), path.iter().any(|segment| segment.len() > 255));
            let Some(written) = written else { return Ok(()) };
            let packet = Packet::from_bytes(&written).unwrap();
            prop_assert_eq!((packet.header.message_id, &packet.payload), (id, &payload));
            let read = packet.get_option(CoapOption::UriPath).cloned().unwrap_or_default();
            prop_assert!(read.iter().map(Vec::as_slice).eq(path.iter().map(|segment| segment.as_bytes())));
            let Reading::Message(message) = read_bytes(&written) else { panic!("not read") };
            let of = |wanted| message.options().find(|(number, _)| *number == wanted).map(|(_, value)| value);
            prop_assert_eq!(of(option::OBSERVE).and_then(uint), observe);
            for number in [option::BLOCK1, option::BLOCK2] {
                prop_assert_eq!(of(number).and_then(Block::read), block);
            }
        }

        #[test]
        fn no_bytes_panic_and_what_is_taken_the_other_takes_too(
            bytes in proptest::collection::vec(any::<u8>(), 0..200), first in 0x40u8..0x80,
        ) {
            let mut bytes = bytes;
            if let Some(it) = bytes.first_mut() {
                *it = first;
            }
            if let Reading::Message(message) = read_bytes(&bytes) {
                let packet = Packet::from_bytes(&bytes).unwrap();
                prop_assert_eq!(&packet.payload[..], &message.payload[..]);
                let options: usize = packet.options().map(|(_, values)| values.len()).sum();
                prop_assert_eq!(options, message.options().count());
            }
        }
    }
}
