//! How does our own nats-server live? As a child that is started again when it dies, and stopped last.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use bus::server::{NatsServer, ServerError, ServerOptions, find_binary};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::common::output::note;
use crate::system::access::{Password, PasswordFile};
use crate::system::data_dir::DataDir;
use crate::system::guard::Guard;

const NAME: &str = "nats-server";
/// How long nats-server may take to read what it has stored, and to stop.
const WAIT_MS: u64 = 60_000;
/// Half of Go's own: a claim takes half a kilobyte less, and a connect no more CPU time.
const MAX_GARBAGE_PERCENT: u16 = 50;
/// Pauses before it is started again; back to the first after it has run for a while.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const STEADY: Duration = Duration::from_secs(30);
/// How long a nats-server that an earlier run left behind may take to end.
const LEFT_OVER_WAIT: Duration = Duration::from_secs(10);

/// Our nats-server.
pub(crate) struct Nats {
    url: String,
    password: Password,
    /// None where it cannot be written: then commands elsewhere have no way in.
    password_file: Option<PasswordFile>,
    stop: CancellationToken,
    keeper: JoinHandle<()>,
}

impl Nats {
    /// Starts one with its store in `data`, on `port` (0: any that is free), with a password of its own.
    ///
    /// # Errors
    /// When there is no nats-server, the port is taken, or it does not start.
    pub(crate) async fn start(
        binary: Option<PathBuf>,
        port: u16,
        data: &DataDir,
        guard: &Guard,
    ) -> anyhow::Result<Nats> {
        let Some(binary) = binary.or_else(find_binary) else {
            bail!(
                "nats-server is not found on the PATH or in .tools: --nats-server or NATS_SERVER names it, \
                 `./taskw tools` fetches it, --nats URL uses a server that runs elsewhere"
            );
        };
        let pid_file = data.nats_pid_file();
        end_left_over(&pid_file, &data.store()).await?;
        let is_small = std::thread::available_parallelism().is_ok_and(|cores| cores.get() <= 2);
        let password = Password::draw();
        let mut options = ServerOptions {
            binary,
            port,
            store_dir: Some(data.store()),
            config_file: Some(password.configure(data)?),
            // On few cores its threads only wake each other: one takes a fifth off its CPU time.
            max_processors: is_small.then_some(1),
            // No call goes through it here, so there is little to collect but what connects leave.
            max_garbage_percent: Some(MAX_GARBAGE_PERCENT),
            wait_ms: WAIT_MS,
        };
        let server = match NatsServer::start(&options).await {
            Ok(server) => server,
            Err(ServerError::PortTaken { port }) => bail!(
                "port {port} on 127.0.0.1 is taken, so nats-server cannot listen there: --nats-port chooses another, \
                 --nats nats://127.0.0.1:{port} uses the server that is there"
            ),
            Err(error) => return Err(error).context("there is no NATS"),
        };
        // A restart must be found where the services look for it.
        options.port = server.port();
        note_pid(&server, guard, &pid_file);
        let password_file = PasswordFile::write(server.port(), &password)
            .inspect_err(|error| note(format_args!("commands in other terminals cannot connect: {error:#}")));
        let (url, stop) = (server.url(), CancellationToken::new());
        let keeper = tokio::spawn(keep(server, options, guard.clone(), pid_file, stop.clone()));
        Ok(Nats { url, password, password_file: password_file.ok(), stop, keeper })
    }

    /// Points settings at it.
    pub(crate) fn give_to(&self, settings: &mut boot::config::Nats) {
        settings.url.clone_from(&self.url);
        self.password.give_to(settings);
    }

    /// Where others find its password.
    pub(crate) fn password_file(&self) -> Option<&Path> {
        self.password_file.as_ref().map(PasswordFile::path)
    }

    /// Stops it, after everybody else has ended.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        let _ = self.keeper.await;
    }
}

async fn keep(
    mut server: NatsServer,
    options: ServerOptions,
    guard: Guard,
    pid_file: PathBuf,
    stop: CancellationToken,
) {
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        tokio::select! {
            () = stop.cancelled() => break,
            ended = server.ended() => {
                let status = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
                tracing::error!(status, "nats-server ended by itself; starting it again");
            }
        }
        guard.note(NAME, None);
        if started.elapsed() > STEADY {
            pause = FIRST_PAUSE;
        }
        server = loop {
            tokio::select! {
                () = stop.cancelled() => return forget(&pid_file),
                () = sleep(pause) => {}
            }
            pause = LONGEST_PAUSE.min(pause * 2);
            match NatsServer::start(&options).await {
                Ok(server) => break server,
                Err(error) => tracing::error!(%error, "nats-server cannot be started again; trying on"),
            }
        };
        note_pid(&server, &guard, &pid_file);
        tracing::warn!(port = server.port(), "nats-server runs again");
    }
    server.stop().await;
    guard.note(NAME, None);
    forget(&pid_file);
}

fn note_pid(server: &NatsServer, guard: &Guard, pid_file: &Path) {
    guard.note(NAME, server.pid());
    let text = server.pid().map(|pid| pid.to_string()).unwrap_or_default();
    if let Err(error) = std::fs::write(pid_file, text) {
        tracing::warn!(%error, file = %pid_file.display(), "cannot note the process id of nats-server");
    }
}

fn forget(pid_file: &Path) {
    let _ = std::fs::remove_file(pid_file);
}

/// Ends the nats-server of an earlier run that was killed before it could: nobody else can hold our locked folder.
/// Only one that says by its command line that it uses this very store.
async fn end_left_over(pid_file: &Path, store: &Path) -> anyhow::Result<()> {
    let Ok(text) = std::fs::read_to_string(pid_file) else {
        return Ok(());
    };
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    let Some(pid) = pid.filter(|pid| is_ours(*pid, store)) else {
        return Ok(());
    };
    tracing::warn!(pid = pid.as_raw_nonzero(), "ending the nats-server that an earlier run left behind");
    let _ = kill_process(pid, Signal::TERM);
    let give_up = Instant::now() + LEFT_OVER_WAIT;
    while test_kill_process(pid).is_ok() && is_ours(pid, store) {
        if Instant::now() > give_up {
            bail!("a nats-server of an earlier run (process {}) does not end", pid.as_raw_nonzero());
        }
        sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

fn is_ours(pid: Pid, store: &Path) -> bool {
    let command_line = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    let store = store.as_os_str().as_encoded_bytes();
    let mut arguments = command_line.split(|byte| *byte == 0);
    arguments.next().is_some_and(|program| program.ends_with(b"nats-server"))
        && arguments.any(|argument| argument == store)
}
