//! How is mosquitto run? As a bare broker that keeps nothing and asks for no names.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Process, Running, Tools, free_port, printed_version};
use crate::wire::BareBroker;

/// Starts one.
///
/// # Errors
/// When it is not installed or does not start.
pub async fn start(tools: &Tools, folder: &Path) -> Result<Running> {
    let port = free_port()?;
    let settings = folder.join("mosquitto.conf");
    fs::write(
        &settings,
        format!(
            "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\npersistence false\n\
             max_connections -1\nsys_interval 0\nlog_type error\n"
        ),
    )?;
    let mut process =
        Process::start("mosquitto", Command::new(program(tools)?).arg("-c").arg(&settings), folder)?;
    let address = ([127, 0, 0, 1], port).into();
    process.until_listening(address).await?;
    Ok(Running {
        addresses: vec![address],
        dialect: Box::new(BareBroker { ids: 1024 }),
        processes: vec![process],
    })
}

/// Which one that is.
///
/// # Errors
/// When it is not installed.
pub fn version(tools: &Tools) -> Result<String> {
    printed_version(&program(tools)?, "-h")
}

fn program(tools: &Tools) -> Result<PathBuf> {
    let places = ["/usr/sbin", "/usr/local/sbin"];
    let install = "install it (`apt-get install mosquitto`), give --mosquitto, or leave it out of --systems";
    Tools::find(tools.mosquitto.as_ref(), "mosquitto", &places, install)
}
