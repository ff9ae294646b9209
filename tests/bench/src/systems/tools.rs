//! Where are the programs, and which ones are they?

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Tools {
    /// The folder with our own programs.
    pub own: PathBuf,
    /// nats-server, when it is not to be searched for.
    pub nats_server: Option<PathBuf>,
    /// mosquitto, when it is not to be searched for.
    pub mosquitto: Option<PathBuf>,
}

impl Tools {
    /// A program of this workspace.
    ///
    /// # Errors
    /// When it has not been built; the message says how to.
    pub fn own(&self, name: &str, build: &str) -> Result<PathBuf> {
        let path = self.own.join(name);
        ensure!(path.is_file(), "{} is missing; build it with: {build}", path.display());
        Ok(path)
    }

    /// A program of others: the `given` one, or the first found in `folders` and then in PATH.
    ///
    /// # Errors
    /// When there is none; the message says how to install it.
    pub fn find(given: Option<&PathBuf>, name: &str, folders: &[&str], install: &str) -> Result<PathBuf> {
        if let Some(path) = given {
            ensure!(path.is_file(), "there is no {}", path.display());
            return Ok(path.clone());
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        folders
            .iter()
            .map(PathBuf::from)
            .chain(std::env::split_paths(&path))
            .map(|folder| folder.join(name))
            .find(|candidate| candidate.is_file())
            .with_context(|| format!("{name} is missing; {install}"))
    }
}

/// What a program prints when asked for its version: the first line with a digit.
///
/// # Errors
/// When it cannot be run.
pub fn printed_version(program: &Path, flag: &str) -> Result<String> {
    let shown = Command::new(program).arg(flag).output().with_context(|| format!("{}", program.display()))?;
    let text = String::from_utf8_lossy(&shown.stdout).into_owned() + &String::from_utf8_lossy(&shown.stderr);
    let line = text.lines().find(|line| line.contains(|symbol: char| symbol.is_ascii_digit()));
    Ok(line.unwrap_or("version unknown").trim().to_owned())
}

/// The first line of a file.
///
/// # Errors
/// When it cannot be read.
pub fn first_line(path: &Path) -> Result<String> {
    let mut line = String::new();
    BufReader::new(File::open(path)?).read_line(&mut line)?;
    Ok(line)
}
