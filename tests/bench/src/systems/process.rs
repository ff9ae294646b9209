//! How do a system's processes live and die, and where do they write?

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const DONE_TIMEOUT: Duration = Duration::from_secs(300);
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

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
            // Of what it logs last an error is to be seen, not where in the program it came up.
            .env("RUST_LIB_BACKTRACE", "0")
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

    /// The same with a patience of one's own.
    ///
    /// # Errors
    /// When the process ends or that time passes before.
    pub async fn until_within<T>(
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

    /// Ends it, and waits for its end.
    ///
    /// # Errors
    /// When it had ended before, with what it logged, or does not end.
    pub async fn stop(mut self) -> Result<()> {
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
