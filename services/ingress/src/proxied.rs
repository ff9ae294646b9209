//! Who is behind a proxy? What the proxies that the settings name say of it before anything else on a connection, in
//! the PROXY protocol's header (HAProxy's proxy-protocol.txt, §2); in a request, see `boot::forwarded`. What anybody
//! else says counts for nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use boot::config::Networks;
use tokio::io::{AsyncRead, AsyncReadExt};

/// §2.2: what version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The shortest header of all, `PROXY UNKNOWN` and its end of line: no read takes more than is known to belong to it.
const SHORTEST_BYTES: usize = 15;
/// §2.1: of version 1, its end of line included.
const MAX_LINE_BYTES: usize = 107;
/// Of version 2 behind its first 16 bytes, of which addresses take 36 and the rest is of no use here.
const MAX_REST_BYTES: usize = 1_024;

/// What the first bytes of a connection are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// A header, as far as it goes: at least so many bytes of it are to come.
    Needs(usize),
    /// A whole one. None: it speaks for the proxy itself, or of nobody that has an IP address.
    Of(Option<IpAddr>),
    /// None of either version.
    Malformed,
}

/// Who has connected from `address`: behind a proxy that speaks the PROXY protocol, whom it names. Takes no byte behind
/// its header, and none from anybody else.
///
/// # Errors
/// When a proxy sends no such header, or not within `wait`.
pub async fn peer<S>(
    stream: &mut S,
    address: IpAddr,
    proxies: &Networks,
    wait: Duration,
) -> io::Result<IpAddr>
where
    S: AsyncRead + Unpin,
{
    if !proxies.contains(address) {
        return Ok(address.to_canonical());
    }
    // Boxed: most connections have none.
    let named = Box::pin(tokio::time::timeout(wait, read(stream))).await.map_err(io::Error::from).flatten();
    if let Err(error) = &named {
        tracing::info!(%address, %error, "a proxy did not say who is behind it: its connection is closed");
    }
    Ok(named?.unwrap_or(address).to_canonical())
}

async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> io::Result<Option<IpAddr>> {
    let mut header = Vec::new();
    loop {
        match parse(&header) {
            Header::Of(named) => return Ok(named),
            Header::Malformed => return Err(io::ErrorKind::InvalidData.into()),
            Header::Needs(bytes) => {
                let known = header.len();
                header.resize(known + bytes, 0);
                stream.read_exact(header.get_mut(known..).unwrap_or_default()).await?;
            }
        }
    }
}

/// Reads a header, and nothing behind it.
pub fn parse(bytes: &[u8]) -> Header {
    match bytes.first() {
        None => Header::Needs(SHORTEST_BYTES),
        Some(b'P') => parse_line(bytes),
        Some(_) => parse_binary(bytes),
    }
}

/// Version 1 (§2.1): a line for people.
fn parse_line(bytes: &[u8]) -> Header {
    if !b"PROXY ".iter().zip(bytes).all(|(a, b)| a == b) {
        return Header::Malformed;
    }
    let Some(line) = bytes.strip_suffix(b"\r\n") else {
        return match bytes.len() {
            _ if bytes.contains(&b'\n') => Header::Malformed,
            MAX_LINE_BYTES.. => Header::Malformed,
            known => Header::Needs(SHORTEST_BYTES.saturating_sub(known).max(1)),
        };
    };
    let Ok(line) = std::str::from_utf8(line) else { return Header::Malformed };
    let fields: Vec<&str> = line.split(' ').collect();
    let source = match *fields.as_slice() {
        ["PROXY", "UNKNOWN", ..] => return Header::Of(None),
        ["PROXY", "TCP4", source, target, from, to] => {
            let (source, target) = (source.parse::<Ipv4Addr>(), target.parse::<Ipv4Addr>());
            source.ok().filter(|_| target.is_ok() && is_port(from) && is_port(to)).map(IpAddr::V4)
        }
        ["PROXY", "TCP6", source, target, from, to] => {
            let (source, target) = (source.parse::<Ipv6Addr>(), target.parse::<Ipv6Addr>());
            source.ok().filter(|_| target.is_ok() && is_port(from) && is_port(to)).map(IpAddr::V6)
        }
        _ => None,
    };
    source.map_or(Header::Malformed, |it| Header::Of(Some(it)))
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok_and(|port| port.to_string() == text)
}

/// Version 2 (§2.2).
fn parse_binary(bytes: &[u8]) -> Header {
    if !SIGNATURE.iter().zip(bytes).all(|(a, b)| a == b) {
        return Header::Malformed;
    }
    let Some((&[.., command, family, high, low], rest)) = bytes.split_first_chunk::<16>() else {
        return Header::Needs(16usize.saturating_sub(bytes.len()));
    };
    let rest_bytes = usize::from(u16::from_be_bytes([high, low]));
    if !matches!(command, 0x20 | 0x21) || rest_bytes > MAX_REST_BYTES {
        return Header::Malformed;
    }
    match rest_bytes.checked_sub(rest.len()) {
        Some(0) => {}
        Some(missing) => return Header::Needs(missing),
        None => return Header::Malformed,
    }
    // Over TCP: behind the source come the target, and a port of each.
    let source = match (command, family) {
        // LOCAL: the proxy's own, to see whether somebody is here; and UNSPEC, and UNIX.
        (0x20, _) | (_, 0x00 | 0x31) => return Header::Of(None),
        (_, 0x11) => rest.first_chunk::<12>().map(|&[a, b, c, d, ..]| IpAddr::from([a, b, c, d])),
        (_, 0x21) => {
            rest.first_chunk::<36>().and_then(|it| it.first_chunk::<16>()).map(|&it| IpAddr::from(it))
        }
        _ => None,
    };
    source.map_or(Header::Malformed, |it| Header::Of(Some(it)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([command, family]);
        header.extend((rest.len() as u16).to_be_bytes());
        header.extend(rest);
        header
    }

    fn of(address: &str) -> Header {
        Header::Of(Some(address.parse().unwrap()))
    }

    #[test]
    fn both_versions_say_who_it_is() {
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 4, 0, 7, 91];
        let mut six = [0; 36];
        six[..16].copy_from_slice(&"2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        let with_more = [&four[..], &[4, 0, 2, 1, 2]].concat();
        for (header, expected) in [
            (b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 1883\r\n".to_vec(), of("192.0.2.1")),
            (b"PROXY TCP6 2001:db8::7 ::1 0 65535\r\n".to_vec(), of("2001:db8::7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), Header::Of(None)),
            (b"PROXY UNKNOWN ffff::1 whatever\r\n".to_vec(), Header::Of(None)),
            (binary(0x21, 0x11, &four), of("192.0.2.1")),
            (binary(0x21, 0x11, &with_more), of("192.0.2.1")),
            (binary(0x21, 0x21, &six), of("2001:db8::7")),
            (binary(0x20, 0x00, &[]), Header::Of(None)),
            (binary(0x20, 0x11, &four), Header::Of(None)),
            (binary(0x21, 0x31, &[0; 216]), Header::Of(None)),
        ] {
            assert_eq!(parse(&header), expected, "{header:?}");
            // As far as it goes it is no other, and what is asked for is never more than belongs to it.
            for known in 0..header.len() {
                match parse(&header[..known]) {
                    Header::Needs(bytes) => assert!((1..=header.len() - known).contains(&bytes), "{known}"),
                    other => panic!("{known} bytes of {header:?}: {other:?}"),
                }
            }
        }
    }

    #[test]
    fn what_is_not_exactly_that_is_nothing() {
        let longest = format!("PROXY UNKNOWN {}", "x".repeat(MAX_LINE_BYTES));
        for line in [
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 1883 1\r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.1 56324 1883\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.1 56324 1883\r\n",
            "PROXY TCP4 2001:db8::7 198.51.100.1 56324 1883\r\n",
            "PROXY TCP6 192.0.2.1 ::1 56324 1883\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +1 1883\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 65536\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n",
            "PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "proxy TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "POST / HTTP/1.1\r\n",
            "PROXY UNKNOWN\r\nGET / HTTP/1.1\r\n",
            &longest[..MAX_LINE_BYTES],
        ] {
            assert_eq!(parse(line.as_bytes()), Header::Malformed, "{line}");
        }
        let four = [192, 0, 2, 1, 198, 51, 100, 1, 4, 0, 7, 91];
        for (command, family, rest) in
            [(0x11, 0x11, &four[..]), (0x22, 0x11, &four), (0x21, 0x12, &four), (0x21, 0x11, &four[1..])]
        {
            assert_eq!(parse(&binary(command, family, rest)), Header::Malformed);
        }
        assert_eq!(parse(&binary(0x21, 0x21, &[0; 35])), Header::Malformed);
        assert_eq!(parse(&binary(0x20, 0x00, &[0; MAX_REST_BYTES + 1])[..16]), Header::Malformed);
        assert_eq!(parse(b"\x10\x0c\0\x04MQTT"), Header::Malformed);
    }

    #[tokio::test]
    async fn a_strangers_header_is_left_alone() {
        let (proxies, wait) = (networks("10.0.0.0/8"), Duration::from_secs(60));
        let header = b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 1883\r\nCONNECT".as_slice();
        let (mut stranger, mut proxy, mut wrong) = (header, header, b"GET / HTTP/1.1\r\n".as_slice());
        let address = [203, 0, 113, 5].into();
        assert_eq!(peer(&mut stranger, address, &proxies, wait).await.unwrap(), address);
        assert_eq!(stranger, header);
        let behind = peer(&mut proxy, [10, 0, 0, 1].into(), &proxies, wait).await.unwrap();
        assert_eq!((behind, proxy), (IpAddr::from([192, 0, 2, 1]), b"CONNECT".as_slice()));
        assert!(peer(&mut wrong, [10, 0, 0, 1].into(), &proxies, wait).await.is_err());
    }

    fn networks(text: &str) -> Networks {
        text.parse().unwrap()
    }
}
