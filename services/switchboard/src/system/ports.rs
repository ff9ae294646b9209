//! Which ports are taken? All that a system wants are tried before it begins, so that all that are taken are told at
//! once, each with the flag that chooses another.

use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::bail;
use boot::Settings;

/// Addresses that cannot be listened on, each with why and what chooses another.
#[derive(Default)]
pub(super) struct Taken(Vec<String>);

impl Taken {
    /// Notes one, unless it could be bound. `choice` is a flag and a setting.
    pub(super) fn note<T>(
        &mut self,
        address: SocketAddr,
        bound: io::Result<T>,
        choice: impl fmt::Display,
    ) -> Option<T> {
        bound.map_err(|error| self.0.push(format!("\n  {address}: {error} ({choice})"))).ok()
    }

    /// Goes on if there are none. Where there are, the port of our own NATS is told, too: alone it is tried later, when
    /// what an earlier run may have left there has ended.
    ///
    /// # Errors
    /// All of them.
    pub(super) fn refuse(mut self, nats_port: Option<u16>) -> anyhow::Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        if let Some(port) = nats_port {
            let address = (Ipv4Addr::LOCALHOST, port).into();
            self.note(
                address,
                TcpListener::bind(address),
                "--nats-port, or --nats for a server that is there",
            );
        }
        bail!(
            "these addresses cannot be listened on; the flag beside each chooses another:{}",
            self.0.concat()
        )
    }
}

/// Tries every address that one process with all services listens on.
///
/// # Errors
/// When any of them cannot be listened on: all of those, as [`Taken::refuse`].
pub(super) fn check(settings: &Settings, nats_port: Option<u16>) -> anyhow::Result<()> {
    let Settings { mqtt, http, coap, api, admin, tls, .. } = settings;
    let mut taken = Taken::default();
    let tcp = [
        ("--mqtt", "mqtt.listen", mqtt.listen),
        ("--http", "http.listen", http.listen),
        ("--api", "api.listen", api.listen),
        ("--admin", "admin.listen", admin.listen),
    ];
    let tls_too =
        [("--set", "mqtt.tls_listen", mqtt.tls_listen), ("--set", "http.tls_listen", http.tls_listen)];
    let has_tls = tls.certificate_file.is_some();
    for (flag, setting, address) in tcp.into_iter().chain(tls_too.into_iter().filter(|_| has_tls)) {
        taken.note(address, TcpListener::bind(address), format_args!("{flag}, setting {setting}"));
    }
    taken.note(coap.listen, UdpSocket::bind(coap.listen), "--coap, setting coap.listen");
    taken.refuse(nats_port)
}
