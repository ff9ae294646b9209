//! What a setting's value must be beyond its type.

use std::ops::RangeInclusive;

use hyper::Uri;
use hyper::http::uri::Authority;
use tracing_subscriber::EnvFilter;

use super::value::{Number, Value};

/// A condition on one setting's value.
pub(super) trait Limit<T: Value> {
    fn admits(&self, value: &T) -> bool;

    /// Type and condition together, in words.
    fn expected(&self) -> String;
}

/// No condition beyond the type.
pub(super) struct Anything;

impl<T: Value> Limit<T> for Anything {
    fn admits(&self, _: &T) -> bool {
        true
    }

    fn expected(&self) -> String {
        T::expected()
    }
}

impl<T: Number> Limit<T> for RangeInclusive<T> {
    fn admits(&self, value: &T) -> bool {
        self.contains(value)
    }

    fn expected(&self) -> String {
        format!("{}, {} to {}", T::expected(), self.start(), self.end())
    }
}

/// One token of a NATS subject that is part of a bucket's name too.
pub(super) struct SubjectToken;

impl SubjectToken {
    const MAX_CHARS: usize = 32;
}

impl Limit<String> for SubjectToken {
    fn admits(&self, value: &String) -> bool {
        (1..=Self::MAX_CHARS).contains(&value.len())
            && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_')
    }

    fn expected(&self) -> String {
        format!("1 to {} of the characters A-Z, a-z, 0-9, - and _", Self::MAX_CHARS)
    }
}

/// Addresses of NATS servers, comma-separated.
pub(super) struct NatsServers;

impl Limit<String> for NatsServers {
    fn admits(&self, value: &String) -> bool {
        value.split(',').map(str::trim).all(is_nats_server)
    }

    fn expected(&self) -> String {
        "nats://host:port (or tls://, ws://, wss://), several after commas, without user and password \
         (see nats.user, nats.password)"
            .to_owned()
    }
}

fn is_nats_server(server: &str) -> bool {
    let (scheme, rest) = server.split_once("://").unwrap_or(("nats", server));
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    // `[::1]:4222`: what follows the last colon is a port only outside the brackets.
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let is_host_char = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':' | '[' | ']');
    matches!(scheme, "nats" | "tls" | "ws" | "wss")
        && !host.is_empty()
        && host.chars().all(is_host_char)
        && (host.starts_with('[') || !host.contains(':'))
        && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

/// Where HTTP is spoken, in plain text.
pub(super) struct HttpEndpoint;

impl Limit<Option<String>> for HttpEndpoint {
    fn admits(&self, value: &Option<String>) -> bool {
        let is_plain = |uri: &Uri| {
            let authority = uri.authority().map(Authority::as_str).unwrap_or_default();
            uri.scheme_str() == Some("http") && !authority.contains('@') && uri.query().is_none()
        };
        value.as_ref().is_none_or(|value| value.parse().is_ok_and(|uri| is_plain(&uri)))
    }

    fn expected(&self) -> String {
        "http://host:port, with a path where there is one; empty: none".to_owned()
    }
}

/// Origins of web pages as browsers write them (RFC 6454 §6.2), or all.
pub(super) struct Origins;

impl Limit<Option<String>> for Origins {
    fn admits(&self, value: &Option<String>) -> bool {
        value.as_deref().is_none_or(|value| value == "*" || value.split(',').map(str::trim).all(is_origin))
    }

    fn expected(&self) -> String {
        "*, or scheme://host (with :port where it is not the scheme's own) in small letters and without a path, \
         several after commas; empty: none"
            .to_owned()
    }
}

fn is_origin(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let scheme_fits = scheme.starts_with(|first: char| first.is_ascii_lowercase())
        && scheme.chars().all(|it| it.is_ascii_lowercase() || it.is_ascii_digit() || "+-.".contains(it));
    scheme_fits
        && !authority.contains(['@', '/'])
        && authority.parse::<Authority>().is_ok_and(|it| it.as_str().to_ascii_lowercase() == authority)
}

/// A `tracing` filter whose every part says a level: a lone word would be taken as a target, and a
/// misspelt level would silence everything else.
pub(super) struct LogFilter;

impl LogFilter {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
}

impl Limit<String> for LogFilter {
    fn admits(&self, value: &String) -> bool {
        let spans_named = value.contains('[');
        let levels_known = value.split(',').all(|part| {
            let level = part.rsplit_once('=').map_or(part, |(_, level)| level).trim();
            Self::LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level))
        });
        (spans_named || levels_known) && EnvFilter::builder().parse(value).is_ok()
    }

    fn expected(&self) -> String {
        "off, error, warn, info, debug or trace, and target=level after commas, as info,async_nats=warn"
            .to_owned()
    }
}
