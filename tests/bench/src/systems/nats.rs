//! How does a run get a nats-server of its own?

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Process, Tools, free_port, printed_version};

/// Starts nats-server with JetStream on a port of its own: the process and its URL.
///
/// # Errors
/// When there is no nats-server or it does not start.
pub async fn start(tools: &Tools, folder: &Path) -> Result<(Process, String)> {
    let store = folder.join("jetstream");
    fs::create_dir_all(&store)?;
    let port = free_port()?;
    let mut command = Command::new(program(tools)?);
    command.args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"]).arg(&store);
    let mut process = Process::start("nats-server", &mut command, folder)?;
    process
        .until("`Server is ready`", |log| {
            fs::read_to_string(log).ok()?.contains("Server is ready").then_some(())
        })
        .await?;
    Ok((process, format!("nats://127.0.0.1:{port}")))
}

/// Which nats-server that is.
///
/// # Errors
/// When there is none.
pub fn version(tools: &Tools) -> Result<String> {
    printed_version(&program(tools)?, "--version").context("nats-server")
}

fn program(tools: &Tools) -> Result<PathBuf> {
    let places = [".tools", ".tools/bin", ".tools/venv/bin"];
    Tools::find(
        tools.nats_server.as_ref(),
        "nats-server",
        &places,
        "run `./taskw tools`, or give --nats-server",
    )
}
