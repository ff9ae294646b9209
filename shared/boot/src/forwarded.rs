//! Who is behind a proxy? What the proxies that the settings name say of it in `X-Forwarded-For`. What anybody else
//! says counts for nothing.

use std::net::{IpAddr, SocketAddr};

use axum::http::HeaderMap;

use crate::config::Networks;

/// Who sent a request that came from `peer`: the last whom a proxy names, as far as proxies wrote it.
pub fn sender(peer: IpAddr, headers: &HeaderMap, proxies: &Networks) -> IpAddr {
    let mut sender = peer;
    let named = headers.get_all("x-forwarded-for").iter().rev();
    for hop in named.flat_map(|it| it.to_str().unwrap_or_default().rsplit(',')) {
        if !proxies.contains(sender) {
            break;
        }
        // Some write the port, too.
        let (hop, with_port) = (hop.trim(), |it: &str| it.parse().map(|it: SocketAddr| it.ip()));
        let Ok(address) = hop.parse().or_else(|_| with_port(hop)) else { break };
        sender = IpAddr::to_canonical(&address);
    }
    sender
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    #[test]
    fn a_header_is_believed_as_far_as_proxies_wrote_it() {
        let proxies = "10.0.0.0/8, ::1".parse::<Networks>().unwrap();
        for (peer, lines, sender) in [
            ("203.0.113.5", &["192.0.2.1"][..], "203.0.113.5"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.1"], "192.0.2.1"),
            ("::ffff:10.0.0.1", &["192.0.2.1:4711"], "192.0.2.1"),
            ("::1", &["[2001:db8::7]:80"], "2001:db8::7"),
            ("10.0.0.1", &["1.1.1.1, 192.0.2.1 ,10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1", &["1.1.1.1, 192.0.2.1", "10.0.0.2"], "192.0.2.1"),
            ("10.0.0.1", &["10.9.9.9,10.0.0.2"], "10.9.9.9"),
            ("10.0.0.1", &["192.0.2.1, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.1,"], "10.0.0.1"),
            ("10.0.0.1", &["\u{e9}"], "10.0.0.1"),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", HeaderValue::from_bytes(line.as_bytes()).unwrap());
            }
            let named = super::sender(peer.parse().unwrap(), &headers, &proxies);
            let expected: IpAddr = sender.parse().unwrap();
            assert_eq!(named.to_canonical(), expected, "{peer} {lines:?}");
        }
    }
}
