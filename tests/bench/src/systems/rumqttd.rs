//! How is rumqttd run? As a bare broker, its library in a process of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Process, Running, Tools, free_port};
use crate::wire::BareBroker;

/// Starts one.
///
/// # Errors
/// When its program has not been built or does not start.
pub async fn start(tools: &Tools, folder: &Path) -> Result<Running> {
    let address = ([127, 0, 0, 1], free_port()?).into();
    let mut process =
        Process::start("rumqttd", Command::new(program(tools)?).arg(format!("{address}")), folder)?;
    process.until_listening(address).await?;
    // It keeps a log for every topic it has ever seen, so each pair gets few: 16 calls at a time is all they need.
    Ok(Running {
        addresses: vec![address],
        trusted: None,
        dialect: Box::new(BareBroker { ids: 16 }),
        processes: vec![process],
    })
}

/// Which one that is.
///
/// # Errors
/// When its program has not been built.
pub fn version(tools: &Tools) -> Result<String> {
    program(tools)?;
    Ok("rumqttd 0.20.0".to_owned())
}

fn program(tools: &Tools) -> Result<PathBuf> {
    tools.own(
        "bench-rumqttd",
        "cargo build --release -p switchboard-bench --features peers --bin bench-rumqttd",
    )
}
