//! Which systems are compared, and how do their processes live and die?

pub mod chain;
pub mod mosquitto;
pub mod nats;
pub mod rumqttd;
pub mod switchboard;
pub mod users;

use std::fmt;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::str::FromStr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Error, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Serialize, Serializer};
use tokio::time::{Instant, sleep};

use crate::scenario::Scenario;
use crate::wire::Dialect;

const START_TIMEOUT: Duration = Duration::from_secs(60);
const DONE_TIMEOUT: Duration = Duration::from_secs(300);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// A system under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// Ingress, authorizer, router and nats-server, each a process of its own, all checks on.
    Separate {
        /// So many processes of each service, every call from one node to another.
        nodes: usize,
    },
    /// The same with the three services in one process.
    Together {
        /// So many of those.
        nodes: usize,
    },
    /// One node without a journal of calls: what that costs is the difference.
    Forgetful,
    /// `switchboard up`: everything in one process, and its nats-server.
    Up,
    /// The same hops over the same NATS with nothing in them: what such a chain costs at least.
    Chain,
    /// The chain as nested requests: each service waits for the next one's answer.
    ChainNested,
    /// Debian's mosquitto as a bare broker between the two devices.
    Mosquitto,
    /// The same with a password for each device, and rights for each customer.
    MosquittoAcl,
    /// rumqttd as a bare broker between the two devices.
    Rumqttd,
    /// nats-server's MQTT gateway as a bare broker between the two devices.
    NatsMqtt,
    /// nats-server between devices that speak NATS, with a user for each, and permissions for each customer.
    NatsUsers,
}

/// What a system does of the work of a call.
pub struct Described {
    /// Which one, as one node.
    pub system: System,
    /// As on the command line; those of several nodes end in their number.
    pub name: &'static str,
    /// What it does.
    pub does: &'static str,
    /// What is left to the devices.
    pub does_not: &'static str,
}

/// All there are, in the order in which they are shown.
pub const ALL: [Described; 11] = [
    Described {
        system: System::Separate { nodes: 1 },
        name: "switchboard",
        does: "names, customers, limits, who is there, time-outs, one answer; a process for each service",
        does_not: "",
    },
    Described {
        system: System::Together { nodes: 1 },
        name: "together",
        does: "the same; its three services in one process",
        does_not: "",
    },
    Described {
        system: System::Forgetful,
        name: "forgetful",
        does: "as switchboard",
        does_not: "remember calls",
    },
    Described {
        system: System::Up,
        name: "up",
        does: "the same; all in one process",
        does_not: "a second node",
    },
    Described {
        system: System::Chain,
        name: "chain",
        does: "an MQTT front and the same hops, empty",
        does_not: "any check",
    },
    Described {
        system: System::ChainNested,
        name: "chain-nested",
        does: "the same, each service waiting for the next one's answer",
        does_not: "any check",
    },
    Described {
        system: System::Mosquitto,
        name: "mosquitto",
        does: "topics",
        does_not: "names, customers, limits, who is there, time-outs, one answer",
    },
    Described {
        system: System::MosquittoAcl,
        name: "mosquitto-acl",
        does: "topics, names, customers: a password each, an access control list",
        does_not: "limits, who is there, time-outs, one answer; a new device needs its files read again",
    },
    Described {
        system: System::Rumqttd,
        name: "rumqttd",
        does: "topics",
        does_not: "names, customers, limits, who is there, time-outs, one answer",
    },
    Described {
        system: System::NatsMqtt,
        name: "nats-mqtt",
        does: "topics, as subjects of a NATS that may have many servers",
        does_not: "names, customers, limits, who is there, time-outs, one answer",
    },
    Described {
        system: System::NatsUsers,
        name: "nats-users",
        does: "subjects, names, customers: a user each, permissions; who is there",
        does_not: "MQTT, limits, time-outs, one answer; a new device needs its configuration read again",
    },
];

/// How systems are written, for `--help`.
pub const SYNTAX: &str = "The systems to compare, in the order in which they take turns: switchboard, together, forgetful, up, \
                          chain, chain-nested, mosquitto, mosquitto-acl, rumqttd, nats-mqtt, nats-users; \
                          switchboard-2 is two of each service, every call from one node to the other \
                          [default: all but together, forgetful, chain-nested and nats-mqtt]";

/// What a run without `--systems` compares.
pub const DEFAULT: &[&str] =
    &["switchboard", "up", "chain", "mosquitto", "mosquitto-acl", "nats-users", "rumqttd"];

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = self.with_nodes(1);
        let name =
            ALL.iter().find(|described| described.system == one).map_or("", |described| described.name);
        match self.nodes() {
            None | Some(1) => f.pad(name),
            Some(nodes) => f.pad(&format!("{name}-{nodes}")),
        }
    }
}

impl FromStr for System {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = |name: &str| ALL.iter().find(|described| described.name == name).map(|it| it.system);
        let several = || {
            let (name, nodes) = text.rsplit_once('-')?;
            let nodes = nodes.parse().ok().filter(|nodes| (2..=16).contains(nodes))?;
            known(name).filter(|system| system.nodes().is_some()).map(|system| system.with_nodes(nodes))
        };
        known(text).or_else(several).with_context(|| {
            let names: Vec<&str> = ALL.iter().map(|described| described.name).collect();
            format!(
                "there is no `{text}`, but {}; and switchboard-2 … -16, together-2 … -16",
                names.join(", ")
            )
        })
    }
}

impl Serialize for System {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl System {
    fn entry(self) -> Option<&'static Described> {
        let one = self.with_nodes(1);
        ALL.iter().find(|described| described.system == one)
    }

    /// A line of Markdown about it, `version` included.
    pub fn described(self, version: &str) -> String {
        let does = self.entry().map_or("", |described| described.does);
        let does_not = match self.entry().map_or("", |described| described.does_not) {
            "" => String::new(),
            left => format!("; does not: {left}"),
        };
        format!("- `{self}` ({version}) does: {does}{does_not}")
    }

    /// How many nodes it has, if it comes in numbers.
    pub fn nodes(self) -> Option<usize> {
        match self {
            Self::Separate { nodes } | Self::Together { nodes } => Some(nodes),
            _ => None,
        }
    }

    /// The same of so many nodes; itself if it does not come in numbers.
    #[must_use]
    pub fn with_nodes(self, nodes: usize) -> Self {
        match self {
            Self::Separate { .. } => Self::Separate { nodes },
            Self::Together { .. } => Self::Together { nodes },
            other => other,
        }
    }

    /// Whether it can be measured under `scenario`: a bare broker cannot tell a caller that its target is offline, and
    /// only Switchboard shares out what there is. Over TLS, mosquitto stands for all.
    pub fn takes_part_in(self, scenario: Scenario) -> bool {
        let is_switchboard =
            matches!(self, Self::Separate { .. } | Self::Together { .. } | Self::Forgetful | Self::Up);
        match scenario {
            Scenario::Offline { .. } => is_switchboard || self == Self::NatsUsers,
            Scenario::Fair { .. } => is_switchboard,
            Scenario::Closed { .. }
            | Scenario::Open { .. }
            | Scenario::Among { .. }
            | Scenario::Idle { .. } => true,
        }
    }

    /// Starts its processes, ready for the devices of `scenario`. Their files and logs go to `folder`.
    ///
    /// # Errors
    /// When a program is missing or does not become ready; the message ends with what it logged.
    pub async fn start(self, tools: &Tools, scenario: Scenario, folder: &Path) -> Result<Running> {
        let started = match self {
            Self::Separate { nodes } => {
                switchboard::start(tools, switchboard::Shape::Separate, nodes, scenario, folder).await
            }
            Self::Together { nodes } => {
                switchboard::start(tools, switchboard::Shape::Together, nodes, scenario, folder).await
            }
            Self::Forgetful => {
                switchboard::start(tools, switchboard::Shape::Forgetful, 1, scenario, folder).await
            }
            Self::Up => switchboard::start_up(tools, scenario, folder).await,
            Self::Chain => chain::start(tools, chain::Shape::Forwarding, folder).await,
            Self::ChainNested => chain::start(tools, chain::Shape::Nested, folder).await,
            Self::Mosquitto => mosquitto::start(tools, scenario, false, folder).await,
            Self::MosquittoAcl => mosquitto::start(tools, scenario, true, folder).await,
            Self::Rumqttd => rumqttd::start(tools, folder).await,
            Self::NatsMqtt => nats::start_with_mqtt(tools, folder).await,
            Self::NatsUsers => nats::start_with_users(tools, scenario, folder).await,
        };
        started.with_context(|| format!("{self} could not be started"))
    }

    /// What exactly is measured: a program's version, for the report.
    ///
    /// # Errors
    /// When a program that it needs is missing.
    pub fn version(self, tools: &Tools) -> Result<String> {
        match self {
            Self::Separate { .. } | Self::Forgetful => switchboard::version(tools, "switchboard-ingress"),
            Self::Together { .. } => switchboard::version(tools, "switchboard-node"),
            Self::Up => switchboard::version(tools, "switchboard"),
            Self::Chain | Self::ChainNested => chain::version(tools),
            Self::Mosquitto | Self::MosquittoAcl => mosquitto::version(tools),
            Self::Rumqttd => rumqttd::version(tools),
            Self::NatsMqtt | Self::NatsUsers => nats::version(tools),
        }
    }
}

/// A started system. Dropping it kills its processes.
pub struct Running {
    /// Where devices connect: one address for each node.
    pub addresses: Vec<SocketAddr>,
    /// What devices trust, if they are to come over TLS.
    pub trusted: Option<PathBuf>,
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

/// A folder for what one measurement writes. Dropping it removes it.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// One that nobody else has, also of this process.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new() -> Result<Self> {
        static MADE: AtomicU16 = AtomicU16::new(0);
        let name =
            format!("switchboard-bench-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).with_context(|| format!("{}", path.display()))?;
        Ok(Self(path))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    /// Its part in the system, for reports.
    pub role: String,
    /// Its process id.
    pub pid: u32,
    /// None of a process that another one of the system has started, and ends.
    child: Option<Child>,
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
        Ok(Self { role: role.to_owned(), pid: child.id(), child: Some(child), log })
    }

    /// The process named `role` that this one has started.
    ///
    /// # Errors
    /// When it has started none of that name.
    pub fn child(&self, role: &str) -> Result<Self> {
        // Each thread has a list of those that it has started.
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid))?;
        let lists = threads.map(|thread| Ok(fs::read_to_string(thread?.path().join("children"))?));
        let started = lists.collect::<Result<Vec<_>>>()?.concat();
        let is_it =
            |pid: &&str| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|it| it.trim() == role);
        let pid = started.split_ascii_whitespace().find(is_it);
        let pid = pid.with_context(|| format!("{} has not started a {role}", self.role))?.parse()?;
        Ok(Self { role: role.to_owned(), pid, child: None, log: self.log.clone() })
    }

    fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.as_mut().map(Child::try_wait).transpose()?.flatten())
    }

    /// Asks `ready` again and again until it has an answer.
    ///
    /// # Errors
    /// When the process ends or a minute passes before.
    pub async fn until<T>(&mut self, what: &str, ready: impl FnMut(&Path) -> Option<T>) -> Result<T> {
        self.until_within(START_TIMEOUT, what, ready).await
    }

    async fn until_within<T>(
        &mut self,
        patience: Duration,
        what: &str,
        mut ready: impl FnMut(&Path) -> Option<T>,
    ) -> Result<T> {
        let deadline = Instant::now() + patience;
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
        self.until_printed_within(head, START_TIMEOUT).await
    }

    /// The same with a patience of one's own.
    ///
    /// # Errors
    /// When the process ends or that time passes before.
    pub async fn until_printed_within(&mut self, head: &str, patience: Duration) -> Result<String> {
        self.until_within(patience, &format!("`{head}`"), |log| {
            // A line counts when it is whole: its end has been written.
            let text = fs::read_to_string(log).ok()?;
            let whole = text.rsplit_once('\n')?.0;
            whole.lines().find_map(|line| line.strip_prefix(head)).map(|rest| rest.trim().to_owned())
        })
        .await
    }

    /// What it has printed so far.
    ///
    /// # Errors
    /// When that cannot be read.
    pub fn printed(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("{}", self.log.display()))
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
        if let Some(status) = self.ended()? {
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
            match self.ended()? {
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
        if self.child.is_none() {
            return Ok(());
        }
        self.still_runs()?;
        self.signal(Signal::TERM);
        let deadline = Instant::now() + STOP_TIMEOUT;
        while self.ended()?.is_none() {
            ensure!(Instant::now() < deadline, "{} does not end; {}", self.role, self.last_words());
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Ends it without warning.
    pub fn kill(&self) {
        self.signal(Signal::KILL);
    }

    /// Tells it something.
    pub fn signal(&self, signal: Signal) {
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
        if let Some(child) = &mut self.child
            && matches!(child.try_wait(), Ok(None))
        {
            let _ = child.kill();
            let _ = child.wait();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_is_typed() {
        for name in ALL.iter().map(|described| described.name).chain(["switchboard-2", "together-16"]) {
            assert_eq!(name.parse::<System>().unwrap().to_string(), name);
        }
        for name in ["", "switchboard-1", "switchboard-17", "up-2", "nats"] {
            assert!(name.parse::<System>().is_err(), "{name}");
        }
    }
}
