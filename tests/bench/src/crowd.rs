//! How are more connections held than a process may open, and more than an address has ports?
//!
//! Processes of the bench hold them, as many as it takes, and devices come from several addresses of loopback.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::link::{self, Login, Scratch};
use crate::systems::Process;

/// Ports are given out here: where most of an address' ports are taken, Linux looks long for one that is free.
const FIRST_PORT: u16 = 20_000;
const DEVICES_AN_ADDRESS: usize = 20_000;
/// So many devices connect at the same time, of all processes.
const CONNECTS_AT_ONCE: usize = 32;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
const GATHER_TIMEOUT: Duration = Duration::from_secs(1800);

/// Devices that are connected and do nothing. Dropping it ends their connections.
pub struct Crowd {
    holders: Vec<Process>,
    /// How it went.
    pub held: Held,
}

/// How a process' connecting went, or that of all.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Held {
    /// How many are connected.
    pub connected: usize,
    /// How many could not connect.
    pub failed: usize,
    /// Why the first one could not.
    pub first_failure: Option<String>,
}

/// A device, and its way.
#[derive(Serialize, Deserialize)]
struct Place {
    node: SocketAddr,
    source: SocketAddr,
    login: Login,
}

impl Crowd {
    /// Connects devices to the nodes in turn, from processes of the program `bench` with at most `a_process` each;
    /// their files and logs go to `folder`.
    ///
    /// # Errors
    /// When not even one can connect, or a process fails.
    pub async fn gather(
        nodes: &[SocketAddr],
        logins: &[Login],
        bench: &Path,
        a_process: usize,
        folder: &Path,
    ) -> Result<Self> {
        let places = logins.iter().zip(nodes.iter().cycle()).enumerate().map(|(device, (login, node))| {
            let host =
                u8::try_from(2 + device / DEVICES_AN_ADDRESS).context("more devices than addresses")?;
            let port = FIRST_PORT + u16::try_from(device % DEVICES_AN_ADDRESS)?;
            let source = (Ipv4Addr::new(127, 0, 0, host), port).into();
            Ok(Place { node: *node, source, login: login.clone() })
        });
        let places: Vec<Place> = places.collect::<Result<_>>()?;
        let parts: Vec<&[Place]> = places.chunks(a_process).collect();
        let at_once = (CONNECTS_AT_ONCE / parts.len().max(1)).max(4);
        let mut holders = Vec::new();
        for (number, part) in parts.into_iter().enumerate() {
            let file = folder.join(format!("places-{number}"));
            let mut lines = BufWriter::new(File::create(&file)?);
            for place in part {
                serde_json::to_writer(&mut lines, place)?;
                lines.write_all(b"\n")?;
            }
            lines.flush()?;
            let mut command = Command::new(bench);
            command.args(["hold", "--at-once", &at_once.to_string()]).arg(file);
            holders.push(Process::start(&format!("holder-{number}"), &mut command, folder)?);
        }
        let mut all = Held::default();
        for holder in &mut holders {
            let told = holder.until_printed_within(HELD, GATHER_TIMEOUT).await?;
            let Held { connected, failed, first_failure } = serde_json::from_str(&told)?;
            all.connected += connected;
            all.failed += failed;
            all.first_failure = all.first_failure.or(first_failure);
        }
        ensure!(all.connected > 0, "no device could connect: {:?}", all.first_failure);
        Ok(Self { holders, held: all })
    }

    /// How many connections have ended by themselves.
    ///
    /// # Errors
    /// When a process that held some has ended.
    pub fn dropped(&mut self) -> Result<usize> {
        let mut dropped = 0;
        for holder in &mut self.holders {
            holder.still_runs()?;
            dropped += holder.printed()?.lines().filter(|line| *line == DROPPED).count();
        }
        Ok(dropped)
    }
}

/// What a holding process prints when all have tried, before a [`Held`].
const HELD: &str = "held ";
/// What it prints for each connection that ends.
const DROPPED: &str = "dropped";

/// Connects the devices of a file of [`Crowd::gather`], and holds them until it is killed.
///
/// # Errors
/// When the file cannot be read.
pub async fn hold(file: &Path, at_once: usize) -> Result<()> {
    let places = fs::read_to_string(file)?;
    let places: Vec<Place> = places.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let scratch = Scratch::new();
    let connects = places.iter().map(|Place { node, source, login }| {
        let connect = link::connect_from(Some(*source), *node, login, &scratch);
        async move { timeout(CONNECT_TIMEOUT, connect).await.context("it took too long")? }
    });
    let mut connecting = stream::iter(connects).buffer_unordered(at_once);
    let (mut held, mut connections) = (Held::default(), JoinSet::new());
    while let Some(outcome) = connecting.next().await {
        match outcome {
            Ok((mut reader, _)) => {
                held.connected += 1;
                let scratch = scratch.clone();
                connections.spawn_local(async move {
                    // Nothing is sent to it, so this ends only when the connection does.
                    while reader.batch(&scratch, |_| Ok(())).await.is_ok() {}
                });
            }
            Err(error) => {
                held.failed += 1;
                held.first_failure.get_or_insert(format!("{error:#}"));
            }
        }
    }
    println!("{HELD}{}", serde_json::to_string(&held)?);
    while connections.join_next().await.is_some() {
        println!("{DROPPED}");
    }
    std::future::pending().await
}
