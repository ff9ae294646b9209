//! How is nats-server run? As a service of the systems that need one, and as a system of its own.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Process, Running, Tools, printed_version, users};
use crate::framing::Framing;
use crate::scenario::Scenario;
use crate::wire::{BareBroker, Users};

/// Starts nats-server with JetStream on a port of its own, as `deploy/nats/README.md` would have it run beside
/// services: the process and its URL.
///
/// # Errors
/// When there is no nats-server or it does not start.
pub async fn start(tools: &Tools, folder: &Path) -> Result<(Process, String)> {
    let mut command = command(tools)?;
    command.env("GOGC", "50").args(with_jetstream(folder)?);
    let (process, address) = listening(command, CLIENTS, folder).await?;
    Ok((process, format!("nats://{address}")))
}

/// Starts one for devices that speak NATS: a user each, with permissions for its customer.
///
/// # Errors
/// As [`start`].
pub async fn start_with_users(tools: &Tools, scenario: Scenario, folder: &Path) -> Result<Running> {
    let config = users::for_nats(scenario, folder)?;
    let mut command = command(tools)?;
    command.arg("-c").arg(config);
    let (process, address) = listening(command, CLIENTS, folder).await?;
    let dialect = Box::new(Users { scenario, framing: Framing::Nats });
    Ok(Running { addresses: vec![address], trusted: None, dialect, processes: vec![process] })
}

/// Starts one as a bare MQTT broker.
///
/// # Errors
/// As [`start`].
pub async fn start_with_mqtt(tools: &Tools, folder: &Path) -> Result<Running> {
    let config = folder.join("mqtt.conf");
    // The gateway wants a server with a name, and JetStream.
    fs::write(&config, "server_name: bench\nmqtt { host: \"127.0.0.1\", port: -1 }\n")?;
    let mut command = command(tools)?;
    command.args(with_jetstream(folder)?).arg("-c").arg(config);
    let (process, address) = listening(command, "MQTT clients on mqtt://", folder).await?;
    let dialect = Box::new(BareBroker { ids: 1024 });
    Ok(Running { addresses: vec![address], trusted: None, dialect, processes: vec![process] })
}

/// What it says it listens for, up to the address.
const CLIENTS: &str = "client connections on ";

fn with_jetstream(folder: &Path) -> Result<Vec<OsString>> {
    let store = folder.join("jetstream");
    fs::create_dir_all(&store)?;
    Ok(vec!["-js".into(), "-sd".into(), store.into()])
}

fn command(tools: &Tools) -> Result<Command> {
    let mut command = Command::new(program(tools)?);
    command.args(["-a", "127.0.0.1", "-p", "-1"]);
    Ok(command)
}

async fn listening(mut command: Command, what_for: &str, folder: &Path) -> Result<(Process, SocketAddr)> {
    let mut process = Process::start("nats-server", &mut command, folder)?;
    let address = process.until("`Server is ready`", |log| listening_at(log, what_for)).await?;
    Ok((process, address))
}

/// It chooses its port itself, and logs it before it says that it is ready.
fn listening_at(log: &Path, what_for: &str) -> Option<SocketAddr> {
    let text = fs::read_to_string(log).ok()?;
    let told = text.split_once(&format!("Listening for {what_for}"))?.1;
    let (address, _) = told.split_once('\n')?;
    if text.contains("Server is ready") { address.trim().parse().ok() } else { None }
}

/// Which nats-server that is.
///
/// # Errors
/// When there is none.
pub fn version(tools: &Tools) -> Result<String> {
    printed_version(&program(tools)?, "--version").context("nats-server")
}

/// Where it is.
///
/// # Errors
/// When it is nowhere.
pub fn program(tools: &Tools) -> Result<PathBuf> {
    // Where `./taskw tools` puts it.
    let places = [concat!(env!("CARGO_MANIFEST_DIR"), "/../../.tools/venv/bin")];
    Tools::find(
        tools.nats_server.as_ref(),
        "nats-server",
        &places,
        "fetch it (`./taskw tools`), or give --nats-server",
    )
}
