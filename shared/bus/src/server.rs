//! How does a nats-server run as our child? Started, ready when it answers, stopped by its pid.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, warn};
use uuid::Uuid;

/// Lines of the child's log that are kept for the error message of a start that failed.
const KEPT_LINES: usize = 12;

/// Where it is found and what it keeps.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// The nats-server program.
    pub binary: PathBuf,
    /// Its client port on 127.0.0.1; 0: any that is free.
    pub port: u16,
    /// Where JetStream keeps files; none: in a folder of its own that is removed when it stops.
    pub store_dir: Option<PathBuf>,
    /// A configuration file, for users and permissions; none: whoever reaches the port may do everything.
    pub config_file: Option<PathBuf>,
    /// How many processors it may use at a time (`GOMAXPROCS`); none: all of them.
    pub max_processors: Option<u16>,
    /// By how much its memory may grow before it looks for what it needs no more, in percent of what it needs
    /// (`GOGC`); none: by as much again.
    pub max_garbage_percent: Option<u16>,
    /// How long it may take to be ready, and to stop.
    pub wait_ms: u64,
}

impl Default for ServerOptions {
    fn default() -> Self {
        ServerOptions {
            binary: "nats-server".into(),
            port: 0,
            store_dir: None,
            config_file: None,
            max_processors: None,
            max_garbage_percent: None,
            wait_ms: 10_000,
        }
    }
}

/// Why there is no nats-server.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The program was not found or cannot be run.
    #[error("cannot run {binary}: {reason}")]
    Run {
        /// The program.
        binary: String,
        /// What the system said.
        reason: String,
    },
    /// Somebody else listens on the port.
    #[error("port {port} on 127.0.0.1 is taken: nats-server cannot listen there")]
    PortTaken {
        /// The port.
        port: u16,
    },
    /// It ended, or was not ready in time; with what it said last.
    #[error("nats-server did not start: {reason}")]
    Start {
        /// Its last lines.
        reason: String,
    },
    /// A file or folder of its could not be made.
    #[error("{}: {error}", path.display())]
    Files {
        /// Which.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
}

/// A running nats-server with JetStream. Dropping it kills it; [`stop`](Self::stop) lets it end properly.
pub struct NatsServer {
    child: Child,
    port: u16,
    wait: Duration,
    log: JoinHandle<()>,
    _run_dir: RunDir,
}

impl NatsServer {
    /// Starts one and waits until it answers.
    ///
    /// # Errors
    /// When it cannot be run, the port is taken, or it is not ready in time; no process is left behind.
    pub async fn start(options: &ServerOptions) -> Result<NatsServer, ServerError> {
        let wait = Duration::from_millis(options.wait_ms);
        let give_up = Instant::now() + wait;
        // Told apart from other failures before it is tried: nats-server's own words for it are hard to find.
        if options.port != 0 && TcpStream::connect(("127.0.0.1", options.port)).await.is_ok() {
            return Err(ServerError::PortTaken { port: options.port });
        }
        let run_dir = RunDir::make()?;
        let store_dir = options.store_dir.clone().unwrap_or_else(|| run_dir.path.join("jetstream"));

        let mut command = Command::new(&options.binary);
        command
            .args(["--addr", "127.0.0.1", "--jetstream", "--port"])
            .arg(if options.port == 0 { "-1".to_owned() } else { options.port.to_string() })
            .arg("--store_dir")
            .arg(&store_dir)
            .arg("--ports_file_dir")
            .arg(&run_dir.path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // A Ctrl-C in the terminal is ours to pass on, when nobody needs the server any more.
            .process_group(0)
            .kill_on_drop(true);
        if let Some(config_file) = &options.config_file {
            command.arg("--config").arg(config_file);
        }
        if let Some(processors) = options.max_processors {
            command.env("GOMAXPROCS", processors.to_string());
        }
        if let Some(percent) = options.max_garbage_percent {
            command.env("GOGC", percent.to_string());
        }
        let mut child = command.spawn().map_err(|error| ServerError::Run {
            binary: options.binary.display().to_string(),
            reason: error.to_string(),
        })?;
        let said = Arc::new(Mutex::new(Vec::new()));
        let log = tokio::spawn(pass_on_log(child.stderr.take(), Arc::clone(&said)));

        let failed = |why: &dyn fmt::Display| {
            let said = said.lock().join("\n  ");
            if options.port != 0 && said.contains("address already in use") {
                return ServerError::PortTaken { port: options.port };
            }
            ServerError::Start { reason: format!("{why}\n  {said}") }
        };
        let port = loop {
            if let Ok(Some(status)) = child.try_wait() {
                let _ = timeout(Duration::from_secs(1), log).await;
                return Err(failed(&status));
            }
            if let Some(port) = read_ports_file(&run_dir.path).await
                && greets(port).await
            {
                break port;
            }
            if Instant::now() > give_up {
                return Err(failed(&"it was not ready in time"));
            }
            sleep(Duration::from_millis(10)).await;
        };
        Ok(NatsServer { child, port, wait, log, _run_dir: run_dir })
    }

    /// The port it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where clients connect to.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Its process id; none once it has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Waits for it to end, which it should not by itself. Cancel-safe.
    ///
    /// # Errors
    /// When the system cannot say.
    pub async fn ended(&mut self) -> std::io::Result<ExitStatus> {
        self.child.wait().await
    }

    /// Asks it to end (SIGTERM), and kills it when it has not after `wait_ms`.
    pub async fn stop(mut self) {
        let pid = self.child.id().and_then(|pid| rustix::process::Pid::from_raw(i32::try_from(pid).ok()?));
        if let Some(pid) = pid
            && let Err(error) = rustix::process::kill_process(pid, rustix::process::Signal::TERM)
        {
            warn!(%error, "cannot stop nats-server");
        }
        if timeout(self.wait, self.child.wait()).await.is_err() {
            warn!("nats-server does not stop: it is killed");
            self.kill_now().await;
        }
        self.log.abort();
    }

    /// Kills it at once (SIGKILL), as a crash would: what is in memory is lost.
    pub async fn kill(mut self) {
        self.kill_now().await;
        self.log.abort();
    }

    async fn kill_now(&mut self) {
        if let Err(error) = self.child.kill().await {
            warn!(%error, "cannot kill nats-server");
        }
    }
}

/// The nats-server to be used: the environment's `NATS_SERVER`, or the one on the `PATH`, or the one that the
/// project's tools have put into `.tools` of this folder or one above.
pub fn find_binary() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("NATS_SERVER").filter(|named| !named.is_empty()) {
        return Some(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|folder| folder.join("nats-server"));
    if let Some(found) = on_path.into_iter().find(|file| is_program(file)) {
        return Some(found);
    }
    let here = std::env::current_dir().ok()?;
    let places = [".tools/venv/bin/nats-server", ".tools/bin/nats-server", ".tools/nats-server"];
    here.ancestors().flat_map(|folder| places.map(|place| folder.join(place))).find(|file| is_program(file))
}

fn is_program(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

/// A folder for one run, removed with it.
struct RunDir {
    path: PathBuf,
}

impl RunDir {
    fn make() -> Result<Self, ServerError> {
        let path = std::env::temp_dir().join(format!("switchboard-nats-{}", Uuid::new_v4().simple()));
        match std::fs::create_dir_all(&path) {
            Ok(()) => Ok(RunDir { path }),
            Err(error) => Err(ServerError::Files { path, error }),
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.path) {
            debug!(%error, folder = %self.path.display(), "cannot be removed");
        }
    }
}

/// The port out of the file that nats-server writes once it listens: `{"nats":["nats://127.0.0.1:4222"], …}`.
async fn read_ports_file(folder: &Path) -> Option<u16> {
    #[derive(serde::Deserialize)]
    struct Ports {
        nats: Vec<String>,
    }
    let mut files = tokio::fs::read_dir(folder).await.ok()?;
    while let Some(file) = files.next_entry().await.ok()? {
        if file.path().extension() == Some(OsStr::new("ports")) {
            let ports: Ports = serde_json::from_slice(&tokio::fs::read(file.path()).await.ok()?).ok()?;
            return ports.nats.first()?.rsplit_once(':')?.1.parse().ok();
        }
    }
    None
}

/// True if whoever listens there opens with NATS' greeting.
async fn greets(port: u16) -> bool {
    let greeting = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
        let mut start = [0; 5];
        stream.read_exact(&mut start).await.ok()?;
        Some(&start == b"INFO ")
    };
    timeout(Duration::from_secs(1), greeting).await.ok().flatten().unwrap_or(false)
}

/// Logs what it says, and keeps the last lines.
async fn pass_on_log(stderr: Option<tokio::process::ChildStderr>, said: Arc<Mutex<Vec<String>>>) {
    let Some(stderr) = stderr else { return };
    let mut lines = BufReader::new(stderr).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        match line.contains("[ERR]") || line.contains("[FTL]") {
            true => warn!(target: "nats_server", "{line}"),
            false => debug!(target: "nats_server", "{line}"),
        }
        let mut said = said.lock();
        if said.len() >= KEPT_LINES {
            said.remove(0);
        }
        said.push(line);
    }
}
