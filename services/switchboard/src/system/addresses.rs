//! Where does everything listen? Told to programs in a file, written whole once everything is ready.

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;

use crate::system::access::USER;

/// What a file of addresses holds.
#[derive(Debug, Serialize)]
pub(crate) struct Addresses {
    /// NATS, for `--nats`.
    pub(crate) nats: String,
    /// The file with the password of its user `switchboard`, where it is a server of ours.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nats_password_file: Option<PathBuf>,
    /// This process.
    pub(crate) pid: u32,
    /// The processes and what they listen on; of `up`, the one process.
    pub(crate) services: Vec<ServiceAddresses>,
}

impl Addresses {
    /// For people: where NATS is, and where its password.
    pub(crate) fn nats_and_password(&self) -> String {
        match &self.nats_password_file {
            Some(file) => format!("{}, user {USER}, password in {}", self.nats, file.display()),
            None => self.nats.clone(),
        }
    }
}

/// One process of a system.
#[derive(Debug, Serialize)]
pub(crate) struct ServiceAddresses {
    /// `ingress-1`; `switchboard` where all run in one.
    pub(crate) name: String,
    /// Its admin endpoint.
    pub(crate) admin: SocketAddr,
    /// Of a process that devices connect to.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(crate) devices: Option<DeviceAddresses>,
    /// Of a process that applications connect to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) api: Option<SocketAddr>,
}

/// Where devices connect, by protocol.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct DeviceAddresses {
    pub(crate) mqtt: SocketAddr,
    pub(crate) http: SocketAddr,
    pub(crate) coap: SocketAddr,
    /// MQTT and HTTP under TLS, where the settings name a certificate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) mqtts: Option<SocketAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) https: Option<SocketAddr>,
}

impl fmt::Display for DeviceAddresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mqtt://{}  http://{}  coap://{}", self.mqtt, self.http, self.coap)?;
        let over_tls = [("mqtts", self.mqtts), ("https", self.https)];
        over_tls.iter().try_for_each(|(scheme, address)| {
            address.map_or(Ok(()), |address| write!(f, "  {scheme}://{address}"))
        })
    }
}

/// A file of addresses that is removed when the system ends.
pub(crate) struct AddressFile {
    path: PathBuf,
}

impl AddressFile {
    /// Writes it beside itself and renames it, so that nobody reads half of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(path: &Path, addresses: &Addresses) -> anyhow::Result<Self> {
        let cannot = || format!("cannot write the addresses to {}", path.display());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::NamedTempFile::new_in(folder).with_context(cannot)?;
        serde_json::to_writer_pretty(&mut file, addresses).with_context(cannot)?;
        file.persist(path).with_context(cannot)?;
        Ok(AddressFile { path: path.to_owned() })
    }
}

impl Drop for AddressFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}
