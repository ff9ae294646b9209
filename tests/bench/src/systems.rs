//! Which systems are compared, and how do their processes live and die?

pub mod chain;
pub mod mosquitto;
pub mod nats;
pub mod rumqttd;
pub mod switchboard;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::scenario::Scenario;
use crate::wire::Dialect;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const DONE_TIMEOUT: Duration = Duration::from_secs(300);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A system under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum System {
    /// Ingress, authorizer, router and nats-server, each a process of its own, all checks on.
    Switchboard,
    /// The same with two processes of each service, every call from one node to the other.
    #[value(name = "switchboard-2")]
    #[serde(rename = "switchboard-2")]
    SwitchboardTwice,
    /// The same with four.
    #[value(name = "switchboard-4")]
    #[serde(rename = "switchboard-4")]
    SwitchboardFourfold,
    /// The same hops over the same NATS with nothing in them: what such a chain costs at least.
    Chain,
    /// The chain as nested requests: each service waits for the next one's answer.
    ChainNested,
    /// Debian's mosquitto as a bare broker between the two devices.
    Mosquitto,
    /// rumqttd as a bare broker between the two devices.
    Rumqttd,
}

impl System {
    /// Its name in reports, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Switchboard => "switchboard",
            Self::SwitchboardTwice => "switchboard-2",
            Self::SwitchboardFourfold => "switchboard-4",
            Self::Chain => "chain",
            Self::ChainNested => "chain-nested",
            Self::Mosquitto => "mosquitto",
            Self::Rumqttd => "rumqttd",
        }
    }

    /// Whether it can tell a caller that its target is offline; a bare broker cannot.
    pub fn knows_offline(self) -> bool {
        matches!(self, Self::Switchboard | Self::SwitchboardTwice | Self::SwitchboardFourfold)
    }

    /// Starts its processes, ready for the devices of `scenario`. Their files and logs go to `folder`.
    ///
    /// # Errors
    /// When a program is missing or does not become ready; the message ends with what it logged.
    pub async fn start(self, tools: &Tools, scenario: Scenario, folder: &Path) -> Result<Running> {
        let started = match self {
            Self::Switchboard => switchboard::start(tools, 1, scenario, folder).await,
            Self::SwitchboardTwice => switchboard::start(tools, 2, scenario, folder).await,
            Self::SwitchboardFourfold => switchboard::start(tools, 4, scenario, folder).await,
            Self::Chain => chain::start(tools, chain::Shape::Forwarding, folder).await,
            Self::ChainNested => chain::start(tools, chain::Shape::Nested, folder).await,
            Self::Mosquitto => mosquitto::start(tools, folder).await,
            Self::Rumqttd => rumqttd::start(tools, folder).await,
        };
        started.with_context(|| format!("{} could not be started", self.name()))
    }

    /// What exactly is measured: a program's version, for the report.
    ///
    /// # Errors
    /// When a program that it needs is missing.
    pub fn version(self, tools: &Tools) -> Result<String> {
        match self {
            Self::Switchboard | Self::SwitchboardTwice | Self::SwitchboardFourfold => {
                switchboard::version(tools)
            }
            Self::Chain | Self::ChainNested => chain::version(tools),
            Self::Mosquitto => mosquitto::version(tools),
            Self::Rumqttd => rumqttd::version(tools),
        }
    }
}

/// A started system. Dropping it kills its processes.
pub struct Running {
    /// Where devices connect: one address for each node.
    pub addresses: Vec<SocketAddr>,
    /// How they talk.
    pub dialect: Box<dyn Dialect>,
    /// Every server process.
    pub processes: Vec<Process>,
}

impl Running {
    /// Ends the processes, the last started first, and waits for their end.
    ///
    /// # Errors
    /// When one had ended before, with what it logged.
    pub async fn stop(self) -> Result<()> {
        for process in self.processes.into_iter().rev() {
            process.stop().await?;
        }
        Ok(())
    }
}

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

/// A server process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    /// Its part in the system, for reports.
    pub role: String,
    /// Its process id.
    pub pid: u32,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`; what it prints goes to `<folder>/<role>.log`.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start(role: &str, command: &mut Command, folder: &Path) -> Result<Self> {
        let log = folder.join(format!("{role}.log"));
        let output = File::create(&log).with_context(|| format!("{}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .with_context(|| format!("{} cannot be run", command.get_program().display()))?;
        Ok(Self { role: role.to_owned(), pid: child.id(), child, log })
    }

    /// Asks `ready` again and again until it has an answer.
    ///
    /// # Errors
    /// When the process ends or a minute passes before.
    pub async fn until<T>(&mut self, what: &str, mut ready: impl FnMut(&Path) -> Option<T>) -> Result<T> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(answer) = ready(&self.log) {
                return Ok(answer);
            }
            self.still_runs()?;
            if Instant::now() > deadline {
                bail!("{}: {what} did not come; {}", self.role, self.last_words());
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    /// Waits for a line of its output that begins with `head`, and returns the rest of that line.
    ///
    /// # Errors
    /// As [`Process::until`].
    pub async fn until_printed(&mut self, head: &str) -> Result<String> {
        self.until(&format!("`{head}`"), |log| {
            // A line counts when it is whole: its end has been written.
            let text = fs::read_to_string(log).ok()?;
            let whole = text.rsplit_once('\n')?.0;
            whole.lines().find_map(|line| line.strip_prefix(head)).map(|rest| rest.trim().to_owned())
        })
        .await
    }

    /// Waits until it accepts connections at `address`.
    ///
    /// # Errors
    /// As [`Process::until`].
    pub async fn until_listening(&mut self, address: SocketAddr) -> Result<()> {
        self.until(&format!("a listener on {address}"), |_| std::net::TcpStream::connect(address).ok())
            .await?;
        Ok(())
    }

    /// Checks that it has not ended.
    ///
    /// # Errors
    /// When it has, with what it logged last.
    pub fn still_runs(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended with {status}; {}", self.role, self.last_words());
        }
        Ok(())
    }

    /// Waits for a process that ends by itself.
    ///
    /// # Errors
    /// When it fails, with what it logged last, or takes minutes.
    pub async fn until_done(mut self) -> Result<()> {
        let deadline = Instant::now() + DONE_TIMEOUT;
        loop {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("{} ended with {status}; {}", self.role, self.last_words()),
                None => {
                    ensure!(Instant::now() < deadline, "{} does not end; {}", self.role, self.last_words())
                }
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn stop(mut self) -> Result<()> {
        self.still_runs()?;
        self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.child.try_wait()?.is_none() {
            ensure!(Instant::now() < deadline, "{} does not end; {}", self.role, self.last_words());
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = i32::try_from(self.pid).ok().and_then(Pid::from_raw) {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, signal);
        }
    }

    fn last_words(&self) -> String {
        const SHOWN_BYTES: i64 = 2000;
        let read = || -> Result<String> {
            let mut log = File::open(&self.log)?;
            let length = i64::try_from(log.metadata()?.len())?;
            log.seek(std::io::SeekFrom::End(-length.min(SHOWN_BYTES)))?;
            let mut text = String::new();
            BufReader::new(log).take(SHOWN_BYTES.unsigned_abs()).read_to_string(&mut text)?;
            Ok(text)
        };
        match read() {
            Ok(text) if text.is_empty() => "it logged nothing".to_owned(),
            Ok(text) => format!("it logged: {text}"),
            Err(error) => format!("its log cannot be read: {error}"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A free port for a program that cannot choose one itself. It lies below the range that outgoing connections take
/// theirs from, so that none of the many devices is given it before the program starts.
///
/// # Errors
/// When none is free.
pub fn free_port() -> Result<u16> {
    static GIVEN: AtomicU16 = AtomicU16::new(0);
    let from = 20_000 + u16::try_from(std::process::id() % 1_000)? * 10;
    let untaken = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    (0..1_000)
        .map(|_| from + GIVEN.fetch_add(1, Ordering::Relaxed) % 1_000)
        .find(untaken)
        .with_context(|| format!("no port from {from} on is free"))
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
