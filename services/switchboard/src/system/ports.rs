//! Which ports are taken? All that a system wants are tried before it begins, so that all that are taken are told at
//! once, each with the flag that chooses another.

use std::net::{SocketAddr, TcpListener, UdpSocket};

use anyhow::bail;
use boot::Settings;

/// Tries every address that one process with all services listens on.
///
/// # Errors
/// When any of them cannot be listened on: all of those.
pub(super) fn check(settings: &Settings) -> anyhow::Result<()> {
    let Settings { mqtt, http, coap, api, admin, tls, .. } = settings;
    let tcp = |address| TcpListener::bind::<SocketAddr>(address).map(drop);
    let udp = |address| UdpSocket::bind::<SocketAddr>(address).map(drop);
    let has_tls = tls.certificate_file.is_some();
    let tried = [
        ("--mqtt", "mqtt.listen", mqtt.listen, tcp(mqtt.listen)),
        ("--http", "http.listen", http.listen, tcp(http.listen)),
        ("--coap", "coap.listen", coap.listen, udp(coap.listen)),
        ("--api", "api.listen", api.listen, tcp(api.listen)),
        ("--admin", "admin.listen", admin.listen, tcp(admin.listen)),
        ("--set", "mqtt.tls_listen", mqtt.tls_listen, if has_tls { tcp(mqtt.tls_listen) } else { Ok(()) }),
        ("--set", "http.tls_listen", http.tls_listen, if has_tls { tcp(http.tls_listen) } else { Ok(()) }),
    ];
    let line = |(flag, setting, address, bound): &(&str, &str, SocketAddr, std::io::Result<()>)| {
        bound.as_ref().err().map(|error| format!("\n  {address}: {error} ({flag}, setting {setting})"))
    };
    let taken: Vec<_> = tried.iter().filter_map(line).collect();
    if taken.is_empty() {
        return Ok(());
    }
    bail!("these addresses cannot be listened on; the flag beside each chooses another:{}", taken.concat())
}
