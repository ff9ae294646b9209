//! What does every binary do first and last? Configuration, logs, metrics, traces, the admin
//! endpoint and shutdown.
//!
//! A service's `main` is [`run`] with its own `serve`. A process of several services takes the pieces itself:
//! [`CommonArgs::load`], [`logs::init`], [`metrics::install`], [`traces::start`], [`admin::bind`],
//! [`shutdown::signals`], and [`Together`] for its services.

pub mod admin;
pub mod args;
pub mod clock;
pub mod config;
pub mod forwarded;
pub mod health;
mod in_force;
pub mod journal;
pub mod log_limit;
mod log_line;
pub mod logs;
pub mod metrics;
pub mod panics;
pub mod post;
mod process;
pub mod shutdown;
mod taps;
mod together;
pub mod traces;
mod trouble;

use std::future::Future;
use std::io::Write;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use config::Sources;
use in_force::Keeper;
use logs::Level;

pub use args::CommonArgs;
pub use config::Settings;
pub use health::{Health, Part};
pub use in_force::InForce;
pub use journal::Journal;
pub use process::max_open_files;
pub use together::{Serving, Together};
pub use traces::Traces;
pub use trouble::{Failed, Trouble};

/// A call allocates some dozens of times, a few of them more than a kilobyte: glibc's allocator took a quarter of a
/// router's time, and much less of it with this one.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit status when the configuration is at fault.
const EXIT_CONFIGURATION: u8 = 2;
/// What tasks may take to notice that the process ends, after the service itself has.
const RUNTIME_SHUTDOWN: Duration = Duration::from_secs(2);

/// What a service is given to work with. Clones share everything.
#[derive(Clone, Debug)]
pub struct Context {
    /// Name of the service: `ingress`, `authorizer`, `router`.
    pub service: &'static str,
    /// The settings of the start: what is not taken over later.
    pub settings: Arc<Settings>,
    /// The settings as they are now.
    pub in_force: InForce,
    /// Cancelled when the process is to end: stop accepting, let work finish, return.
    pub shutdown: CancellationToken,
    /// Where the service says what it waits for.
    pub health: Health,
    /// Where `/readyz` and `/metrics` are served.
    pub admin_addr: SocketAddr,
    /// What else the admin endpoint shows.
    pub pages: admin::Pages,
    /// What the process traces; a service records its hops through a tracer of its own.
    pub traces: Traces,
}

impl Context {
    /// The same for one of several services in this process: its health is a scope of its own.
    pub fn for_service(&self, service: &'static str) -> Self {
        Self { service, health: self.health.scoped(service), ..self.clone() }
    }
}

/// Runs a service from its flags to its exit status: 0 when `serve` ends well, 1 when it fails, 2 when the
/// configuration is at fault.
///
/// `worker_threads` says how many threads the settings ask for, 0 for one for each core. The admin endpoint is
/// served until `serve` has returned; while the process shuts down, it is not ready.
pub fn run<F, Served>(
    service: &'static str,
    args: CommonArgs,
    worker_threads: fn(&Settings) -> usize,
    serve: F,
) -> ExitCode
where
    F: FnOnce(Context) -> Served,
    Served: Future<Output = anyhow::Result<()>>,
{
    let sources = args.sources();
    let settings = match Settings::load(&sources) {
        Ok(loaded) => Arc::new(loaded.settings),
        Err(faults) => {
            complain(&format!("{service}: {faults}"));
            return EXIT_CONFIGURATION.into();
        }
    };
    let ended = logs::init(service, &settings.log).map_err(anyhow::Error::from).and_then(|level| {
        let runtime = runtime(worker_threads(&settings))?;
        let ended = runtime.block_on(attend(service, Arc::clone(&settings), sources, level, serve));
        runtime.shutdown_timeout(RUNTIME_SHUTDOWN);
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(service, &settings, &error);
            ExitCode::FAILURE
        }
    }
}

/// A runtime with so many threads, 0 for one for each core. With one, everything runs on the thread that waits here.
/// The process may then open as many files as the system allows it.
///
/// # Errors
/// When the system refuses threads.
pub fn runtime(worker_threads: usize) -> anyhow::Result<tokio::runtime::Runtime> {
    process::lift_open_files();
    let mut builder = match worker_threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    if worker_threads > 1 {
        builder.worker_threads(worker_threads);
    }
    builder.enable_all().build().context("cannot start the runtime's threads")
}

/// Says why the process ends, once: as a log line where logs are for machines, else as text for people.
pub fn report(service: &str, settings: &Settings, error: &anyhow::Error) {
    if logs::is_json(&settings.log) && tracing::enabled!(tracing::Level::ERROR) {
        tracing::error!(error = format!("{error:#}"), "the service failed");
        return;
    }
    let causes = error.chain().skip(1).map(|cause| format!("\n  because: {cause}"));
    complain(&format!("{service}: {error}{}", causes.collect::<String>()));
}

async fn attend<F, Served>(
    service: &'static str,
    settings: Arc<Settings>,
    sources: Sources,
    level: Level,
    serve: F,
) -> anyhow::Result<()>
where
    F: FnOnce(Context) -> Served,
    Served: Future<Output = anyhow::Result<()>>,
{
    let shutdown = shutdown::signals().context("cannot listen for SIGTERM and SIGINT")?;
    let hangups = signal(SignalKind::hangup()).context("cannot listen for SIGHUP")?;
    let metrics = metrics::install(service)?;
    let admin = admin::bind(settings.admin.listen).await?;
    let admin_addr = admin.local_addr();
    tracing::info!(version = args::version(), admin = %admin_addr, "starting");
    let (traces, exporter) = traces::start(&settings);
    let (keeper, in_force) = Keeper::new(service, Arc::clone(&settings), sources, level);
    let keeping = tokio::spawn(keeper.keep(hangups));
    let (health, pages) = (Health::new(), admin.pages());
    let context = Context { service, settings, in_force, shutdown, health, admin_addr, pages, traces };

    let closing = CancellationToken::new();
    let serving = tokio::spawn(admin.serve(context.health.clone(), metrics, closing.clone()));
    let telling = tokio::spawn(log_limit::keep_telling());
    let health = context.health.clone();
    let drain = context.shutdown.clone();
    let unready = tokio::spawn(async move {
        drain.cancelled().await;
        health.draining();
    });

    let ended = serve(context).await;
    exporter.close().await;
    unready.abort();
    keeping.abort();
    telling.abort();
    log_limit::tell();
    closing.cancel();
    let _ = serving.await;
    if ended.is_ok() {
        tracing::info!("ended");
    }
    ended
}

/// To standard error, which may be gone.
fn complain(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
