//! Which settings soften what the defaults protect, and what does that cost? `deploy/security.md` has them for people.

use std::net::{IpAddr, SocketAddr};

use super::{Nats, Settings};

/// A setting, whether it is softer than its default (given second), and what that costs.
type Softener = (&'static str, fn(&Settings, &Settings) -> bool, &'static str);

/// One row each, in the order of the sample file.
const SOFTENERS: &[Softener] = &[
    (
        "nats.url",
        |it, _| it.nats.goes_out_in_plain_text(),
        "what services say is read and changed on the way: tls://",
    ),
    ("nats.user", |it, _| it.nats.goes_out_unknown(), "who reaches NATS may say everything: give it users"),
    (
        "nats.allow_vulnerable_server",
        |it, _| it.nats.allow_vulnerable_server,
        "users of NATS can exceed their rights, by its own advisories",
    ),
    (
        "ingress.connect_timeout_ms",
        |it, at| it.ingress.connect_timeout_ms > at.ingress.connect_timeout_ms,
        SILENT,
    ),
    (
        "shares.per_customer_percent",
        |it, at| it.shares.per_customer_percent > at.shares.per_customer_percent,
        GREED,
    ),
    ("ingress.guesses_per_second_per_source", |it, _| it.ingress.guesses_per_second_per_source == 0, GUESSES),
    ("ingress.guesses_per_second", |it, _| it.ingress.guesses_per_second == 0, GUESSES),
    (
        "ingress.calls_per_second_per_customer",
        |it, _| it.ingress.calls_per_second_per_customer > 10_000,
        GREED,
    ),
    (
        "ingress.calls_per_second_per_device",
        |it, _| it.ingress.calls_per_second_per_device == 0,
        "one device may take what others need",
    ),
    (
        "ingress.uplinks_per_second_per_device",
        |it, _| it.ingress.uplinks_per_second_per_device == 0,
        "one device may take what others need",
    ),
    ("mqtt.trusted_proxies", |it, at| it.mqtt.trusted_proxies != at.mqtt.trusted_proxies, PROXIES),
    ("mqtt.listen", |it, _| goes_out(it.mqtt.listen), PLAIN),
    (
        "mqtt.max_packet_bytes_before_authentication",
        |it, at| {
            it.mqtt.max_packet_bytes_before_authentication > at.mqtt.max_packet_bytes_before_authentication
        },
        "who has shown no token takes more memory",
    ),
    ("http.trusted_proxies", |it, at| it.http.trusted_proxies != at.http.trusted_proxies, PROXIES),
    ("http.listen", |it, _| goes_out(it.http.listen), PLAIN),
    ("http.header_timeout_ms", |it, at| it.http.header_timeout_ms > at.http.header_timeout_ms, SILENT),
    ("http.request_timeout_ms", |it, at| it.http.request_timeout_ms > at.http.request_timeout_ms, SILENT),
    ("tls.handshake_timeout_ms", |it, at| it.tls.handshake_timeout_ms > at.tls.handshake_timeout_ms, SILENT),
    ("coap.listen", |it, _| goes_out(it.coap.listen), PLAIN),
    (
        "coap.max_unauthenticated",
        |it, at| it.coap.max_unauthenticated > at.coap.max_unauthenticated,
        "who has shown no token takes more memory, and more of the authorizers",
    ),
    (
        "coap.max_amplification",
        |it, at| it.coap.max_amplification > at.coap.max_amplification,
        "who forges a sender's address multiplies his traffic",
    ),
    (
        "authorizer.answer_applications",
        |it, _| {
            it.authorizer.answer_applications && it.nats.user.is_none() && it.nats.credentials_file.is_none()
        },
        "who reaches NATS calls as any application: give it accounts",
    ),
    (
        "authorizer.external_origins",
        |it, _| it.authorizer.external_origins.is_some(),
        "who calls whom, and the answer to whether it may, go there in plain text",
    ),
    (
        "audit.denials_per_second",
        |it, _| it.audit.denials_per_second == 0,
        "the audit says how many calls were denied, and not which",
    ),
    ("api.trusted_proxies", |it, at| it.api.trusted_proxies != at.api.trusted_proxies, PROXIES),
    (
        "api.administration",
        |it, _| it.api.administration,
        "who has an admin's key, or is that process, keeps devices, tokens, keys and policies",
    ),
    ("admin.listen", |it, _| goes_out(it.admin.listen), "its counts are everybody's: there is no password"),
    (
        "log.level",
        |it, _| ["debug", "trace"].iter().any(|level| it.log.level.to_ascii_lowercase().contains(level)),
        "every connection, a stranger's too, writes lines",
    ),
    ("traces.endpoint", |it, _| it.traces.endpoint.is_some(), "who calls whom goes there in plain text"),
    (
        "traces.max_calls_per_second",
        |it, _| it.traces.max_calls_per_second == 0,
        "callers who ask for traces have as many made as they like",
    ),
];

const SILENT: &str = "who says nothing keeps a connection for longer";
const GREED: &str = "one customer takes what others need";
const GUESSES: &str = "tokens are guessed as fast as authorizers answer";
const PROXIES: &str = "who sends from there says himself where he is";
const PLAIN: &str = "tokens are read on the way, where the network is not trusted";

/// A setting in force that is softer than its default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Softened {
    /// Its path.
    pub setting: &'static str,
    /// What that costs.
    pub cost: &'static str,
}

/// Every setting in force that is softer than its default.
pub fn softened(settings: &Settings) -> Vec<Softened> {
    let default = Settings::default();
    let in_force = SOFTENERS.iter().filter(|(_, is_softer, _)| is_softer(settings, &default));
    in_force.map(|&(setting, _, cost)| Softened { setting, cost }).collect()
}

impl Nats {
    fn leaves_the_machine(&self) -> impl Iterator<Item = &str> {
        self.servers().filter(|server| {
            let authority = server.split_once("://").map_or(*server, |(_, authority)| authority);
            let host = authority.trim_end_matches('/').rsplit_once(':').map_or(authority, |(host, _)| host);
            let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
            host != "localhost" && !address.is_ok_and(|address| address.is_loopback())
        })
    }

    fn goes_out_in_plain_text(&self) -> bool {
        self.tls_ca_file.is_none()
            && self
                .leaves_the_machine()
                .any(|server| !server.starts_with("tls://") && !server.starts_with("wss://"))
    }

    fn goes_out_unknown(&self) -> bool {
        self.user.is_none() && self.credentials_file.is_none() && self.leaves_the_machine().next().is_some()
    }
}

fn goes_out(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const PAGE: &str = include_str!("../../../../deploy/security.md");

    #[test]
    fn nothing_is_soft_by_default() {
        assert_eq!(softened(&Settings::default()), []);
    }

    #[test]
    fn each_softening_setting_stands_in_the_page_and_is_one() {
        let settings: BTreeSet<&str> = SOFTENERS.iter().map(|(setting, ..)| *setting).collect();
        assert_eq!(settings.len(), SOFTENERS.len());
        let quoted = PAGE.split('`').skip(1).step_by(2);
        let named: BTreeSet<&str> = quoted.filter_map(|it| Some(it.split_once(" = ")?.0)).collect();
        assert_eq!(named, settings);
        for setting in settings {
            assert!(Settings::PATHS.contains(&setting), "{setting} is no setting");
        }
    }

    #[test]
    fn a_setting_that_goes_out_is_named() {
        let named = |address: &str| {
            let address: SocketAddr = address.parse().unwrap();
            let mut settings = Settings::default();
            (settings.mqtt.listen, settings.http.listen, settings.coap.listen) = (address, address, address);
            settings.admin.listen = address;
            softened(&settings).iter().map(|it| it.setting).collect::<Vec<_>>()
        };
        for address in ["127.0.0.1:1", "127.9.9.9:0", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
            assert!(named(address).is_empty(), "{address}");
        }
        for address in ["0.0.0.0:1", "[::]:1", "10.0.0.1:1", "[::ffff:10.0.0.1]:1"] {
            assert_eq!(
                named(address),
                ["mqtt.listen", "http.listen", "coap.listen", "admin.listen"],
                "{address}"
            );
        }
    }

    #[test]
    fn what_stays_on_the_machine_needs_no_tls() {
        let nats = |url: &str| Nats { url: url.to_owned(), ..Nats::default() };
        for (url, plain, unknown) in [
            ("nats://127.0.0.1:4222", false, false),
            ("localhost", false, false),
            ("nats://[::1]:4222,ws://localhost:80/", false, false),
            ("tls://nats:4222", false, true),
            ("wss://nats", false, true),
            ("nats://127.0.0.1:4222, nats://10.0.0.1", true, true),
            ("nats.example:4222", true, true),
        ] {
            let nats = nats(url);
            assert_eq!((nats.goes_out_in_plain_text(), nats.goes_out_unknown()), (plain, unknown), "{url}");
        }
        assert!(!Nats { user: Some("a".into()), ..nats("tls://nats") }.goes_out_unknown());
    }
}
