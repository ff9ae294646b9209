//! How is the empty chain run? One front, one authorizer and one router, each a process, over nats-server.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{Process, Running, Tools, nats};
use crate::wire::{DeviceApi, device_id};

/// How the services pass a call on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// The authorizer forwards and the router answers the caller's front, as Switchboard does.
    Forwarding,
    /// The authorizer waits for the router's answer and passes it back.
    Nested,
    /// The target's front answers the caller's, and tells the router of many ended calls at once.
    Direct,
}

/// Starts one.
///
/// # Errors
/// When a program is missing or does not start.
pub async fn start(tools: &Tools, shape: Shape, folder: &Path) -> Result<Running> {
    let program = program(tools)?;
    let (server, url) = nats::start(tools, folder).await?;
    let mut processes = vec![server];
    let mut front_at = String::new();
    for role in ["router", "authorizer", "front"] {
        let mut command = Command::new(&program);
        command.args([role, "--nats", &url]);
        match shape {
            Shape::Forwarding => {}
            Shape::Nested => {
                command.arg("--nested");
            }
            Shape::Direct => {
                command.arg("--direct");
            }
        }
        let mut process = Process::start(role, &mut command, folder)?;
        front_at = process.until_printed("ready").await?;
        processes.push(process);
    }
    let address = front_at.parse().with_context(|| format!("the front's address `{front_at}`"))?;
    Ok(Running {
        addresses: vec![address],
        trusted: None,
        dialect: Box::new(DeviceApi { username: device_id }),
        processes,
    })
}

/// Which one that is.
///
/// # Errors
/// When a program is missing.
pub fn version(tools: &Tools) -> Result<String> {
    program(tools)?;
    Ok(format!("bench-chain over {}", nats::version(tools)?))
}

fn program(tools: &Tools) -> Result<PathBuf> {
    tools.own("bench-chain", "cargo build --release -p switchboard-bench")
}
