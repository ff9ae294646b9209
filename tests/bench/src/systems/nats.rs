//! How does a run get a nats-server of its own?

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Process, Tools, printed_version};

/// Starts nats-server with JetStream on a port of its own: the process and its URL.
///
/// # Errors
/// When there is no nats-server or it does not start.
pub async fn start(tools: &Tools, folder: &Path) -> Result<(Process, String)> {
    let store = folder.join("jetstream");
    fs::create_dir_all(&store)?;
    let mut command = Command::new(program(tools)?);
    command.args(["-a", "127.0.0.1", "-p", "-1", "-js", "-sd"]).arg(&store);
    let mut process = Process::start("nats-server", &mut command, folder)?;
    let address = process.until("`Server is ready`", listening_at).await?;
    Ok((process, format!("nats://{address}")))
}

/// It chooses its port itself, and logs it before it says that it is ready.
fn listening_at(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    let told = text.split_once("Listening for client connections on ")?.1;
    let (address, rest) = told.split_once('\n')?;
    rest.contains("Server is ready").then(|| address.trim().to_owned())
}

/// Which nats-server that is.
///
/// # Errors
/// When there is none.
pub fn version(tools: &Tools) -> Result<String> {
    printed_version(&program(tools)?, "--version").context("nats-server")
}

fn program(tools: &Tools) -> Result<PathBuf> {
    // Where `./taskw tools` puts it.
    let places = [concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools/venv/bin")];
    Tools::find(
        tools.nats_server.as_ref(),
        "nats-server",
        &places,
        "fetch it (`./taskw tools`), or give --nats-server",
    )
}
