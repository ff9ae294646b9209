//! Who may use the NATS server of a running system of ours? Whoever can read the password that it drew at its start.
//!
//! It stands in a file of the user's, by the server's port, where the commands of a second terminal find it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use boot::config::{Nats, Secret};
use uuid::Uuid;

use crate::system::data_dir::{DataDir, default_path};

/// The one user of our own NATS server.
pub(crate) const USER: &str = "switchboard";

/// A password that is good for one run.
#[derive(Clone)]
pub(crate) struct Password(String);

impl Password {
    /// 244 random bits.
    pub(crate) fn draw() -> Self {
        Password(format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple()))
    }

    /// A configuration for nats-server that lets in nobody else.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub(crate) fn configure(&self, data: &DataDir) -> anyhow::Result<PathBuf> {
        let file = data.path().join("nats.conf");
        let text = format!("authorization {{ user: \"{USER}\", password: \"{}\" }}\n", self.0);
        write_secret(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// Has processes of these settings come in.
    pub(crate) fn give_to(&self, nats: &mut Nats) {
        nats.user = Some(USER.to_owned());
        nats.password = Some(Secret::from(self.0.clone()));
    }
}

/// The file in which a running system's password stands; it goes with the system.
pub(crate) struct PasswordFile {
    path: PathBuf,
}

impl PasswordFile {
    /// Writes it, mode 0600.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn write(port: u16, password: &Password) -> anyhow::Result<Self> {
        let path = file_of(port);
        let folder = path.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder)
            .and_then(|()| write_secret(&path, &password.0))
            .with_context(|| format!("cannot write the password of NATS to {}", path.display()))?;
        Ok(PasswordFile { path })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PasswordFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Settings that name nobody, and a server on this machine, use the password of the system that runs there.
pub(crate) fn find_for(nats: &mut Nats) {
    if nats.user.is_some() || nats.credentials_file.is_some() {
        return;
    }
    if let Some(password) = local_port(&nats.url).and_then(|port| std::fs::read_to_string(file_of(port)).ok())
    {
        Password(password).give_to(nats);
    }
}

/// The port of a server on this machine.
fn local_port(url: &str) -> Option<u16> {
    let place = url.strip_prefix("nats://").unwrap_or(url).trim_end_matches('/');
    ["127.0.0.1:", "localhost:"].iter().find_map(|local| place.strip_prefix(local)?.parse().ok())
}

fn file_of(port: u16) -> PathBuf {
    default_path("switchboard").join("running").join(format!("nats-{port}.password"))
}

/// Writes a file that its owner alone reads, whoever read the one before.
fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    // Of mode 0600 from its first byte on.
    let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_on_this_machine_is_known_however_it_is_written() {
        for url in ["nats://127.0.0.1:4222", "127.0.0.1:4222", "localhost:4222", "nats://localhost:4222/"] {
            assert_eq!(local_port(url), Some(4222), "{url}");
        }
        for url in
            ["nats://127.0.0.1", "nats://nats:4222", "127.0.0.1:4222,127.0.0.1:4223", "10.0.0.1:4222", ""]
        {
            assert_eq!(local_port(url), None, "{url}");
        }
    }
}
