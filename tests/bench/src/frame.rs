//! How does MQTT 3.1.1 look as bytes? Only the subset that the bench speaks: QoS 0, clean sessions.
//!
//! Section numbers are those of the OASIS standard MQTT 3.1.1.

use anyhow::{Result, anyhow, bail, ensure};

/// A packet, borrowed from the bytes it was read from.
#[derive(Debug, PartialEq, Eq)]
pub enum Packet<'a> {
    /// A device introduces itself (§3.1). Flags other than the user name's are skipped over.
    Connect {
        /// The user name, empty when there is none.
        username: &'a [u8],
    },
    /// The server's verdict (§3.2): 0 accepts.
    ConnAck {
        /// The return code.
        code: u8,
    },
    /// A wish to hear a filter (§3.8). Only the first filter of a packet is looked at.
    Subscribe {
        /// To be repeated in the SUBACK.
        packet_id: u16,
        /// The topic filter.
        filter: &'a [u8],
    },
    /// The verdict on a subscription (§3.9): 0x80 refuses.
    SubAck {
        /// The granted QoS, or 0x80.
        code: u8,
    },
    /// A message at QoS 0 (§3.3).
    Publish {
        /// The topic's bytes.
        topic: &'a [u8],
        /// The message.
        payload: &'a [u8],
    },
    /// Are you there (§3.12)?
    PingReq,
    /// I am (§3.13).
    PingResp,
    /// Good bye (§3.14).
    Disconnect,
    /// NATS: what a server says of itself.
    Greeting,
    /// NATS: what was not allowed. Nothing says which message is meant, but for the subject in the text.
    Refusal {
        /// The line, as it stands.
        text: &'a [u8],
    },
}

/// Takes the first packet off `bytes`: it and its length, or `None` when it has not arrived in full.
///
/// # Errors
/// When the bytes are no packet of the subset.
pub fn split(bytes: &[u8]) -> Result<Option<(Packet<'_>, usize)>> {
    let Some((&kind, rest)) = bytes.split_first() else { return Ok(None) };
    let Some((length, length_bytes)) = remaining_length(rest)? else { return Ok(None) };
    let total = 1 + length_bytes + length;
    let Some(body) = bytes.get(1 + length_bytes..total) else { return Ok(None) };
    Ok(Some((parse(kind, body)?, total)))
}

fn remaining_length(bytes: &[u8]) -> Result<Option<(usize, usize)>> {
    let mut length = 0_usize;
    for (position, byte) in bytes.iter().take(4).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * position);
        if byte & 0x80 == 0 {
            return Ok(Some((length, position + 1)));
        }
    }
    ensure!(bytes.len() < 4, "a remaining length of more than four bytes");
    Ok(None)
}

fn parse(kind: u8, body: &[u8]) -> Result<Packet<'_>> {
    let mut fields = Fields(body);
    Ok(match kind {
        0x10 => Packet::Connect { username: fields.username()? },
        0x20 => {
            fields.byte()?;
            Packet::ConnAck { code: fields.byte()? }
        }
        0x30 | 0x31 => Packet::Publish { topic: fields.string()?, payload: fields.0 },
        0x82 => Packet::Subscribe { packet_id: fields.number()?, filter: fields.string()? },
        0x90 => {
            fields.number()?;
            Packet::SubAck { code: fields.byte()? }
        }
        0xc0 => Packet::PingReq,
        0xd0 => Packet::PingResp,
        0xe0 => Packet::Disconnect,
        other => bail!("a packet of type {other:#04x}, which the bench does not speak"),
    })
}

struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) =
            self.0.split_at_checked(count).ok_or_else(|| anyhow!("a packet that is cut short"))?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?.first().copied().unwrap_or_default())
    }

    fn number(&mut self) -> Result<u16> {
        Ok(u16::from(self.byte()?) << 8 | u16::from(self.byte()?))
    }

    fn string(&mut self) -> Result<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::from(length))
    }

    fn username(&mut self) -> Result<&'a [u8]> {
        ensure!(self.string()? == b"MQTT" && self.byte()? == 4, "a CONNECT that is not MQTT 3.1.1");
        let flags = self.byte()?;
        ensure!(flags & 0x04 == 0, "a CONNECT with a will");
        self.number()?;
        self.string()?;
        if flags & 0x80 == 0 { Ok(b"") } else { self.string() }
    }
}

/// Appends a CONNECT with a clean session; an empty `username` or `password` is left out.
pub fn connect(out: &mut Vec<u8>, client_id: &str, [username, password]: [&str; 2], keep_alive_s: u16) {
    let login = [(username, 0x80), (password, 0x40)].into_iter().filter(|(text, _)| !text.is_empty());
    let login_bytes: usize = login.clone().map(|(text, _)| 2 + text.len()).sum();
    header(out, 0x10, 10 + 2 + client_id.len() + login_bytes);
    string(out, b"MQTT");
    out.push(4);
    out.push(login.clone().fold(0x02, |flags, (_, flag)| flags | flag));
    out.extend_from_slice(&keep_alive_s.to_be_bytes());
    string(out, client_id.as_bytes());
    login.for_each(|(text, _)| string(out, text.as_bytes()));
}

/// Appends a CONNACK without a stored session.
pub fn connack(out: &mut Vec<u8>, code: u8) {
    out.extend_from_slice(&[0x20, 2, 0, code]);
}

/// Appends a SUBSCRIBE for one filter at QoS 0.
pub fn subscribe(out: &mut Vec<u8>, packet_id: u16, filter: &str) {
    header(out, 0x82, 2 + 2 + filter.len() + 1);
    out.extend_from_slice(&packet_id.to_be_bytes());
    string(out, filter.as_bytes());
    out.push(0);
}

/// Appends a SUBACK that grants QoS 0.
pub fn suback(out: &mut Vec<u8>, packet_id: u16) {
    out.extend_from_slice(&[0x90, 3]);
    out.extend_from_slice(&packet_id.to_be_bytes());
    out.push(0);
}

/// Appends a PINGRESP.
pub fn pingresp(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0xd0, 0]);
}

/// Appends a PUBLISH at QoS 0. Topic and payload are given in pieces, so that nobody has to join them first.
pub fn publish(out: &mut Vec<u8>, topic: [&[u8]; 2], payload: &[&[u8]]) {
    let topic_length: usize = topic.iter().map(|piece| piece.len()).sum();
    let payload_length: usize = payload.iter().map(|piece| piece.len()).sum();
    header(out, 0x30, 2 + topic_length + payload_length);
    out.extend_from_slice(&u16::try_from(topic_length).unwrap_or(u16::MAX).to_be_bytes());
    for piece in topic.iter().chain(payload) {
        out.extend_from_slice(piece);
    }
}

fn string(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(text);
}

fn header(out: &mut Vec<u8>, kind: u8, mut length: usize) {
    out.push(kind);
    loop {
        let digit = u8::try_from(length & 0x7f).unwrap_or_default();
        length >>= 7;
        if length == 0 {
            return out.push(digit);
        }
        out.push(digit | 0x80);
    }
}

/// A number's decimal digits, without an allocation.
#[derive(Debug)]
pub struct Decimal {
    digits: [u8; 10],
    first: usize,
}

impl Decimal {
    /// Writes `number` out.
    pub fn new(mut number: u32) -> Self {
        let mut digits = [b'0'; 10];
        let mut first = digits.len();
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + u8::try_from(number % 10).unwrap_or_default();
            number /= 10;
            first -= 1;
            if number == 0 {
                break;
            }
        }
        Self { digits, first }
    }

    /// The digits in ASCII.
    pub fn as_bytes(&self) -> &[u8] {
        self.digits.get(self.first..).unwrap_or_default()
    }
}

/// Reads the decimal number that `text` consists of.
pub fn decimal(text: &[u8]) -> Option<u32> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        let mut bytes = Vec::new();
        connect(&mut bytes, "client", ["token", ""], 60);
        connect(&mut bytes, "client", ["", ""], 60);
        connect(&mut bytes, "client", ["user", "password"], 60);
        connack(&mut bytes, 5);
        subscribe(&mut bytes, 7, "a/+");
        suback(&mut bytes, 7);
        publish(&mut bytes, [b"a/", Decimal::new(42).as_bytes()], &[b"x", &[b'y'; 300]]);
        pingresp(&mut bytes);

        let long = [b"x".as_slice(), &[b'y'; 300]].concat();
        let expected = [
            Packet::Connect { username: b"token" },
            Packet::Connect { username: b"" },
            Packet::Connect { username: b"user" },
            Packet::ConnAck { code: 5 },
            Packet::Subscribe { packet_id: 7, filter: b"a/+" },
            Packet::SubAck { code: 0 },
            Packet::Publish { topic: b"a/42", payload: &long },
            Packet::PingResp,
        ];
        let mut rest = bytes.as_slice();
        for packet in expected {
            let (read, length) = split(rest).unwrap().unwrap();
            assert_eq!(read, packet);
            for cut in 0..length {
                assert!(split(&rest[..cut]).unwrap().is_none(), "{packet:?} cut at {cut}");
            }
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
    }

    #[test]
    fn numbers_are_written_in_full() {
        for number in [0, 1, 9, 10, 1023, u32::MAX] {
            assert_eq!(decimal(Decimal::new(number).as_bytes()), Some(number));
        }
        assert_eq!(decimal(b"12x"), None);
    }

    #[test]
    fn garbage_is_refused() {
        for bytes in [&[0x10, 0x80, 0x80, 0x80, 0x80][..], &[0x40, 0], &[0x30, 2, 0, 9]] {
            assert!(split(bytes).is_err(), "{bytes:?}");
        }
    }
}
