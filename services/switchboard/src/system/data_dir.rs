//! Where does a system of ours keep what survives it? A folder that one process uses at a time.

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::TempDir;

/// A folder that is ours until this is dropped.
pub(crate) struct DataDir {
    path: PathBuf,
    /// Held for as long as the file is open.
    _lock: File,
    /// Removes the folder when it was only for this run.
    _ephemeral: Option<TempDir>,
}

impl DataDir {
    /// Opens `given`, or the user's own folder for `name`, or one that ends with this process.
    ///
    /// # Errors
    /// When it cannot be made, or another process uses it.
    pub(crate) fn open(name: &str, given: Option<&Path>, is_ephemeral: bool) -> anyhow::Result<Self> {
        let ephemeral = match is_ephemeral {
            true => Some(
                tempfile::Builder::new().prefix("switchboard-").tempdir().context("cannot make a folder")?,
            ),
            false => None,
        };
        let path = match (&ephemeral, given) {
            (Some(folder), _) => folder.path().to_owned(),
            (None, Some(given)) => given.to_owned(),
            (None, None) => default_path(name),
        };
        // Our nats-server is known again by this path, from whatever folder.
        let path = std::path::absolute(&path).unwrap_or(path);
        let cannot = || format!("cannot use the data folder {} (--data names another)", path.display());
        std::fs::create_dir_all(&path).with_context(cannot)?;
        let lock_file = path.join("lock");
        let mut lock = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&lock_file)
            .with_context(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                bail!(
                    "another Switchboard (process {}) uses the data folder {}: stop it, or choose another folder \
                     with --data, or --ephemeral",
                    holder.trim(),
                    path.display()
                );
            }
            Err(TryLockError::Error(error)) => return Err(error).with_context(cannot),
        }
        lock.set_len(0).with_context(cannot)?;
        writeln!(lock, "{}", std::process::id()).with_context(cannot)?;
        Ok(DataDir { path, _lock: lock, _ephemeral: ephemeral })
    }

    /// The folder.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Where NATS keeps its buckets.
    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("jetstream")
    }

    /// Where the process id of our nats-server stands while it runs.
    pub(crate) fn nats_pid_file(&self) -> PathBuf {
        self.path.join("nats.pid")
    }
}

/// By the XDG base directory specification.
pub(crate) fn default_path(name: &str) -> PathBuf {
    let folder = |variable| std::env::var_os(variable).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = folder("XDG_DATA_HOME").or_else(|| folder("HOME").map(|home| home.join(".local/share")));
    data.map_or_else(|| PathBuf::from(".").join(format!(".{name}")), |data| data.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_used_by_one_at_a_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        let first = DataDir::open("x", Some(&path), false).unwrap();
        let refused = DataDir::open("x", Some(&path), false).err().unwrap().to_string();
        assert!(refused.contains(&format!("process {}", std::process::id())), "{refused}");
        drop(first);
        DataDir::open("x", Some(&path), false).unwrap();
    }

    #[test]
    fn an_ephemeral_folder_goes_with_its_owner() {
        let folder = DataDir::open("x", None, true).unwrap();
        let path = folder.path().to_owned();
        assert!(path.join("lock").exists());
        drop(folder);
        assert!(!path.exists());
    }
}
