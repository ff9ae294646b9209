//! Who may use the NATS server of a running system of ours? Whoever can read the password that it drew at its start.
//!
//! It stands in a file of the user's, by the server's port, where the commands of a second terminal find it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use boot::config::{Nats, Secret};
use uuid::Uuid;

use crate::data_dir::{DataDir, default_path};

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
    let local = ["nats://127.0.0.1:", "nats://localhost:"];
    let port = local.iter().find_map(|local| nats.url.strip_prefix(local)?.parse().ok());
    if let Some(password) = port.and_then(|port| std::fs::read_to_string(file_of(port)).ok()) {
        Password(password).give_to(nats);
    }
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
