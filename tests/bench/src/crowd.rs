//! How are more connections held than a process may open, and more than an address has ports?
//!
//! Processes of the bench hold them, as many as it takes, and devices come from several addresses of loopback.

use std::fs::{self, File};
use std::future::pending;
use std::io::{BufWriter, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::LocalBoxFuture;
use futures::{FutureExt, StreamExt, stream};
use rustix::process::Signal;
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::link::{self, Login, Scratch};
use crate::secure;
use crate::systems::Process;

/// Ports are given out here: where most of an address' ports are taken, Linux looks long for one that is free.
const FIRST_PORT: u16 = 20_000;
const DEVICES_AN_ADDRESS: usize = 20_000;
/// So many devices connect at the same time, of all processes.
const CONNECTS_AT_ONCE: usize = 32;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// A device that is turned away comes back so often, as one in the field would, after a pause that doubles.
const ATTEMPTS: usize = 6;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
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
    /// How many could not connect, however often they tried.
    pub failed: usize,
    /// How many attempts failed after which a device tried again.
    pub repeated: usize,
    /// Why the first one could not.
    pub first_failure: Option<String>,
    /// How many TLS sessions went on where earlier ones had ended.
    pub resumed: usize,
}

/// How devices connect.
#[derive(Debug, Clone)]
pub struct Way {
    /// The program of the bench that holds them.
    pub bench: PathBuf,
    /// So many a process.
    pub a_process: usize,
    /// What they trust if they come over TLS.
    pub trusted: Option<PathBuf>,
    /// They have been connected before, and have lost their connections all at once.
    pub again: bool,
}

/// A device, and its way.
#[derive(Serialize, Deserialize)]
struct Place {
    node: SocketAddr,
    source: SocketAddr,
    login: Login,
}

impl Crowd {
    /// Starts the processes, with devices for the nodes in turn; none is connected yet, or none any more. Files and
    /// logs go to `folder`.
    ///
    /// # Errors
    /// When a process fails.
    pub async fn prepare(nodes: &[SocketAddr], logins: &[Login], way: &Way, folder: &Path) -> Result<Self> {
        let places = logins.iter().zip(nodes.iter().cycle()).enumerate().map(|(device, (login, node))| {
            let host =
                u8::try_from(2 + device / DEVICES_AN_ADDRESS).context("more devices than addresses")?;
            let port = FIRST_PORT + u16::try_from(device % DEVICES_AN_ADDRESS)?;
            let source = (Ipv4Addr::new(127, 0, 0, host), port).into();
            Ok(Place { node: *node, source, login: login.clone() })
        });
        let places: Vec<Place> = places.collect::<Result<_>>()?;
        let parts: Vec<&[Place]> = places.chunks(way.a_process).collect();
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
            let mut command = Command::new(&way.bench);
            command.args(["hold", "--at-once", &at_once.to_string()]).arg(file);
            command.args(way.again.then_some("--again"));
            command.args(way.trusted.iter().flat_map(|file| ["--trusted".as_ref(), file.as_os_str()]));
            holders.push(Process::start(&format!("holder-{number}"), &mut command, folder)?);
        }
        until_all_print(&mut holders, READY).await?;
        if way.again {
            holders.iter().for_each(|holder| holder.signal(Signal::USR2));
            until_all_print(&mut holders, LOST).await?;
        }
        Ok(Self { holders, held: Held::default() })
    }

    /// Connects all.
    ///
    /// # Errors
    /// When not even one can connect, or a process fails.
    pub async fn connect(&mut self) -> Result<()> {
        self.holders.iter().for_each(|holder| holder.signal(Signal::USR1));
        for holder in &mut self.holders {
            let told = holder.until_printed_within(HELD, GATHER_TIMEOUT).await?;
            let Held { connected, failed, repeated, first_failure, resumed } = serde_json::from_str(&told)?;
            self.held.connected += connected;
            self.held.failed += failed;
            self.held.repeated += repeated;
            self.held.resumed += resumed;
            self.held.first_failure = self.held.first_failure.take().or(first_failure);
        }
        ensure!(self.held.connected > 0, "no device could connect: {:?}", self.held.first_failure);
        Ok(())
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

async fn until_all_print(holders: &mut [Process], head: &str) -> Result<()> {
    for holder in holders {
        holder.until_printed_within(head, GATHER_TIMEOUT).await?;
    }
    Ok(())
}

/// What a holding process prints when it may be told to connect, or, if its devices have been connected before, to end
/// their connections.
const READY: &str = "ready";
/// What it prints when it has ended them.
const LOST: &str = "lost";
/// What it prints when all have tried, before a [`Held`].
const HELD: &str = "held ";
/// What it prints for each connection that ends.
const DROPPED: &str = "dropped";

/// Connects the devices of a file of [`Crowd::prepare`] at SIGUSR1, and holds them until it is killed. If they have
/// been connected before, those connections end at SIGUSR2.
///
/// # Errors
/// When a file cannot be read, or when a first connect, before that signal, fails.
pub async fn hold(file: &Path, at_once: usize, trusted: Option<&Path>, again: bool) -> Result<()> {
    let mut told = signal(SignalKind::user_defined1())?;
    let trusting = trusted.map(secure::trusting).transpose()?;
    let places = fs::read_to_string(file)?;
    let places = places.lines().map(|line| {
        let tls = trusting.as_ref().map(secure::remembering);
        Ok((serde_json::from_str(line)?, tls))
    });
    let places: Vec<(Place, Option<Arc<ClientConfig>>)> = places.collect::<Result<_>>()?;
    let mut lose = signal(SignalKind::user_defined2())?;
    let before = if again { Some(connect_all(&places, at_once).await) } else { None };
    if let Some((held, _)) = &before {
        ensure!(held.failed == 0, "the first time: {:?}", held.first_failure);
    }
    println!("{READY}");
    if let Some((_, connections)) = before {
        lose.recv().await;
        drop(connections);
        println!("{LOST}");
    }
    told.recv().await;
    let (held, mut connections) = connect_all(&places, at_once).await;
    println!("{HELD}{}", serde_json::to_string(&held)?);
    while connections.join_next().await.is_some() {
        println!("{DROPPED}");
    }
    pending().await
}

async fn connect_all(places: &[(Place, Option<Arc<ClientConfig>>)], at_once: usize) -> (Held, JoinSet<()>) {
    let scratch = Scratch::new();
    let connects = places.iter().map(|(place, tls)| {
        let once = || async {
            let connect = connect(place, tls.clone(), &scratch);
            timeout(CONNECT_TIMEOUT, connect).await.context("it took too long")?
        };
        async move {
            let (mut repeated, mut pause) = (0, FIRST_PAUSE);
            loop {
                match once().await {
                    Err(_) if repeated + 1 < ATTEMPTS => {
                        repeated += 1;
                        sleep(pause).await;
                        pause *= 2;
                    }
                    outcome => return (repeated, outcome),
                }
            }
        }
    });
    let mut connecting = stream::iter(connects).buffer_unordered(at_once);
    let (mut held, mut connections) = (Held::default(), JoinSet::new());
    while let Some((repeated, outcome)) = connecting.next().await {
        held.repeated += repeated;
        match outcome {
            Ok((is_resumed, held_open)) => {
                held.connected += 1;
                held.resumed += usize::from(is_resumed);
                connections.spawn_local(held_open);
            }
            Err(error) => {
                held.failed += 1;
                held.first_failure.get_or_insert(format!("{error:#}"));
            }
        }
    }
    drop(connecting);
    (held, connections)
}

/// A device's connection: whether its TLS session was resumed, and what ends only when the connection does, since
/// nothing is sent to it.
async fn connect(
    Place { node, source, login }: &Place,
    tls: Option<Arc<ClientConfig>>,
    scratch: &Scratch,
) -> Result<(bool, LocalBoxFuture<'static, ()>)> {
    if let Some(config) = tls {
        let secure = secure::connect(*source, *node, login, config).await?;
        return Ok((secure.is_resumed, secure.hold().boxed_local()));
    }
    let (mut reader, _) = link::connect_from(Some(*source), *node, login, scratch).await?;
    let scratch = scratch.clone();
    let read = async move { while reader.batch(&scratch, |_| Ok(())).await.is_ok() {} };
    Ok((false, read.boxed_local()))
}
