//! How does NATS' client protocol look as bytes? Only what a device of the bench says and hears.
//!
//! <https://docs.nats.io/reference/reference-protocols/nats-protocol>

use anyhow::{Context, Result, bail};

use crate::frame::{Decimal, Packet};

const LINE_END: &[u8] = b"\r\n";

/// Takes the first message off `bytes`: it and its length, or `None` when it has not arrived in full.
///
/// A message's topic is its reply subject, where it has one: that is where its answer goes. Its payload begins with its
/// headers, where it has any: those of "nobody is there" are all that is said then.
///
/// # Errors
/// When the bytes are none of the protocol.
pub fn split(bytes: &[u8]) -> Result<Option<(Packet<'_>, usize)>> {
    let Some(line_end) = memchr::memmem::find(bytes, LINE_END) else { return Ok(None) };
    let (line, rest) = bytes.split_at(line_end);
    let rest = rest.get(LINE_END.len()..).unwrap_or_default();
    let head_bytes = line_end + LINE_END.len();
    let packet = match line {
        b"PING" => Packet::PingReq,
        b"PONG" => Packet::PingResp,
        b"+OK" => Packet::Greeting,
        _ if line.starts_with(b"INFO ") => Packet::Greeting,
        _ if line.starts_with(b"-ERR ") => Packet::Refusal { text: line },
        _ if line.starts_with(b"MSG ") || line.starts_with(b"HMSG ") => {
            let has_headers = line.starts_with(b"HMSG ");
            let fields = line.split(|byte| *byte == b' ').skip(1);
            let mut fields = fields.filter(|field| !field.is_empty());
            let mut next = || fields.next().context("a message without a subject, a subscription or a size");
            let (subject, _) = (next()?, next()?);
            let third = next()?;
            let rest_of_line = [fields.next(), fields.next()];
            let (topic, size) = match (has_headers, rest_of_line) {
                (false, [None, None]) => (subject, third),
                (false, [Some(size), None]) => (third, size),
                (true, [Some(size), None]) => (subject, size),
                (true, [Some(_), Some(size)]) => (third, size),
                _ => bail!("a message's head of another length: {:?}", String::from_utf8_lossy(line)),
            };
            let size = std::str::from_utf8(size)?.parse::<usize>().context("a message's size")?;
            let Some(payload) = rest.get(..size) else { return Ok(None) };
            if rest.len() < size + LINE_END.len() {
                return Ok(None);
            }
            return Ok(Some((Packet::Publish { topic, payload }, head_bytes + size + LINE_END.len())));
        }
        other => bail!("a line that the bench does not speak: {:?}", String::from_utf8_lossy(other)),
    };
    Ok(Some((packet, head_bytes)))
}

/// Appends a CONNECT that asks to be told when nobody is there.
pub fn connect(out: &mut Vec<u8>, name: &str, user: &str, password: &str) {
    let wishes = r#""verbose":false,"pedantic":false,"headers":true,"no_responders":true,"lang":"bench","version":"1""#;
    let line =
        format!("CONNECT {{{wishes},\"name\":\"{name}\",\"user\":\"{user}\",\"pass\":\"{password}\"}}\r\n");
    out.extend_from_slice(line.as_bytes());
}

/// Appends a SUB, as subscription 1.
pub fn subscribe(out: &mut Vec<u8>, subject: &str) {
    out.extend_from_slice(format!("SUB {subject} 1\r\n").as_bytes());
}

/// Appends a PING.
pub fn ping(out: &mut Vec<u8>) {
    out.extend_from_slice(b"PING\r\n");
}

/// Appends a PONG.
pub fn pong(out: &mut Vec<u8>) {
    out.extend_from_slice(b"PONG\r\n");
}

/// Appends a PUB. A reply subject stands behind the subject and a space, in the same `topic`.
pub fn publish(out: &mut Vec<u8>, topic: [&[u8]; 2], payload: &[&[u8]]) {
    let size: usize = payload.iter().map(|piece| piece.len()).sum();
    out.extend_from_slice(b"PUB ");
    topic.iter().for_each(|piece| out.extend_from_slice(piece));
    out.push(b' ');
    out.extend_from_slice(Decimal::new(u32::try_from(size).unwrap_or(u32::MAX)).as_bytes());
    out.extend_from_slice(LINE_END);
    payload.iter().for_each(|piece| out.extend_from_slice(piece));
    out.extend_from_slice(LINE_END);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_read() {
        let said = b"INFO {\"x\":1}\r\nPING\r\nPONG\r\n+OK\r\n-ERR 'no'\r\nMSG a.b 1 3\r\nx\r\n\r\n\
            MSG a.b 1 i.7 2\r\nhi\r\nHMSG i.7 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n";
        let expected = [
            Packet::Greeting,
            Packet::PingReq,
            Packet::PingResp,
            Packet::Greeting,
            Packet::Refusal { text: b"-ERR 'no'" },
            Packet::Publish { topic: b"a.b", payload: b"x\r\n" },
            Packet::Publish { topic: b"i.7", payload: b"hi" },
            Packet::Publish { topic: b"i.7", payload: b"NATS/1.0 503\r\n\r\n" },
        ];
        let mut rest = said.as_slice();
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
    fn what_is_published_has_its_reply_subject_and_its_size() {
        let mut bytes = Vec::new();
        publish(&mut bytes, [b"c.1.call i.2.", b"7"], &[b"ab", b"c"]);
        assert_eq!(bytes, b"PUB c.1.call i.2.7 3\r\nabc\r\n");
        for garbage in [&b"MSG a\r\n"[..], b"MSG a 1 x\r\n", b"HELLO\r\n", b"MSG a 1 b 2 3\r\n"] {
            assert!(split(garbage).is_err(), "{garbage:?}");
        }
    }
}
