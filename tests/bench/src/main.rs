//! `switchboard-bench`: what does a call between two devices cost, here and elsewhere?

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::Serialize;
use switchboard_bench::bars;
use switchboard_bench::crowd;
use switchboard_bench::learns;
use switchboard_bench::report::Report;
use switchboard_bench::run::{self, Options};
use switchboard_bench::scenario::{self, Scenario};
use switchboard_bench::systems::{self, System, Tools, first_line};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(
    about = "Makes real calls between devices through Switchboard and its peers, checks every answer, and \
                   reports calls a second, latency, CPU time a call and memory a connection"
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure; ends with 1 when an answer was lost, late, mixed up or refused, or a system failed
    Run(Box<RunArguments>),
    /// Connect the devices of a file, and hold them: what a run starts for its idle ones
    #[command(hide = true)]
    Hold {
        /// A device a line
        file: PathBuf,
        /// So many connect at the same time
        #[arg(long)]
        at_once: usize,
        /// They come over TLS, and trust this certificate
        #[arg(long)]
        trusted: Option<PathBuf>,
        /// Connect once before, and lose those connections
        #[arg(long)]
        again: bool,
    },
}

#[derive(clap::Args)]
struct RunArguments {
    /// The systems to compare, in the order in which they take turns
    #[arg(long, value_delimiter = ',', help = systems::SYNTAX)]
    systems: Vec<System>,
    /// Do not measure, but tell what a caller learns of a call that goes wrong, and after how long
    #[arg(long)]
    learns: bool,
    /// Of how many nodes those systems are to be that come in numbers
    #[arg(long, value_delimiter = ',', default_value = "1", value_parser = nodes)]
    nodes: Vec<usize>,
    #[arg(long = "scenario", value_delimiter = ',', help = scenario::SYNTAX, default_values = scenario::DEFAULT)]
    scenarios: Vec<Scenario>,
    /// How often each system meets each scenario; the tables show medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// How long a load is measured, each time
    #[arg(long, default_value_t = 4.0, value_parser = seconds)]
    seconds: f64,
    /// How long a load runs before it is measured
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    warm_up_seconds: f64,
    /// End each measurement after so many answers, when that is sooner
    #[arg(long)]
    calls: Option<u64>,
    /// Write every sample to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// The folder with Switchboard's programs and the bench's own [default: where this program is]
    #[arg(long, value_name = "FOLDER")]
    programs: Option<PathBuf>,
    /// The nats-server to use [default: the one in .tools or PATH]
    #[arg(long, value_name = "FILE", env = "SWITCHBOARD_BENCH_NATS_SERVER")]
    nats_server: Option<PathBuf>,
    /// The mosquitto to use [default: the one in /usr/sbin or PATH]
    #[arg(long, value_name = "FILE", env = "SWITCHBOARD_BENCH_MOSQUITTO")]
    mosquitto: Option<PathBuf>,
}

fn nodes(text: &str) -> Result<usize, String> {
    let nodes = text.parse().map_err(|_| "not a number".to_owned())?;
    if (1..=16).contains(&nodes) { Ok(nodes) } else { Err("1 … 16 nodes".to_owned()) }
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if (0.0..=3600.0).contains(&seconds) { Ok(seconds) } else { Err("0 … 3600 seconds".to_owned()) }
}

fn main() -> Result<ExitCode> {
    let command = Arguments::parse().command;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    runtime.block_on(async {
        let (mut interrupted, mut terminated) =
            (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        // Dropping the run kills the processes it started.
        tokio::select! {
            ended = perform(&command) => ended,
            _ = interrupted.recv() => bail!("interrupted"),
            _ = terminated.recv() => bail!("terminated"),
        }
    })
}

async fn perform(command: &Command) -> Result<ExitCode> {
    match command {
        Command::Run(arguments) => measure(arguments).await,
        Command::Hold { file, at_once, trusted, again } => {
            crowd::hold(file, *at_once, trusted.as_deref(), *again).await.map(|()| ExitCode::SUCCESS)
        }
    }
}

/// What others may use of one core before the figures need a warning.
const BUSY_PERCENT: f64 = 10.0;

async fn measure(arguments: &RunArguments) -> Result<ExitCode> {
    let options = options(arguments)?;
    if arguments.learns {
        return learn(arguments, &options).await;
    }
    let versions = options
        .systems
        .iter()
        .map(|system| system.version(&options.tools).map(|version| system.described(&version)))
        .collect::<Result<Vec<_>>>()?;
    check_files(&options, allow_files()?)?;
    if cfg!(debug_assertions) {
        eprintln!("This is a debug build: its figures mean nothing. Build it with --release.");
    }

    let samples = run::run(&options, |sample| eprintln!("{}", sample.line())).await?;
    let report = Report { machine: machine(), versions, samples };
    println!("{}\n{}\n\n{}", report.machine, report.versions.join("\n"), report.tables());
    let judged = bars::judge(&report);
    if !judged.is_empty() {
        println!("### What Switchboard is held to\n\n{judged}");
    }
    write_json(arguments.json.as_deref(), &report)?;
    let others = report.others_busy_percent();
    if others > BUSY_PERCENT {
        eprintln!(
            "The machine was not quiet: other programs used up to {others:.0} % of a core. That lengthens tails, and \
             makes messages pile up and be handled in batches, which hides what they cost one by one."
        );
    }
    let faults = report.faults();
    for fault in &faults {
        eprintln!("FAILED: {fault}");
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn learn(arguments: &RunArguments, options: &Options) -> Result<ExitCode> {
    let learned = learns::ask(&options.systems, &options.tools).await?;
    println!("{}", learns::table(&learned));
    write_json(arguments.json.as_deref(), &learned)?;
    Ok(ExitCode::SUCCESS)
}

fn write_json(path: Option<&Path>, what: &impl Serialize) -> Result<()> {
    let Some(path) = path else { return Ok(()) };
    fs::write(path, serde_json::to_vec_pretty(what)?).with_context(|| format!("{}", path.display()))
}

fn options(arguments: &RunArguments) -> Result<Options> {
    let systems = match (arguments.systems.as_slice(), arguments.learns) {
        ([], true) => learns::DEFAULT.iter().map(|name| name.parse()).collect::<Result<_>>()?,
        ([], false) => systems::DEFAULT.iter().map(|name| name.parse()).collect::<Result<_>>()?,
        (given, _) => given.to_vec(),
    };
    let programs = match &arguments.programs {
        Some(folder) => folder.clone(),
        None => {
            let this = std::env::current_exe()?;
            this.parent().context("this program is in no folder")?.to_owned()
        }
    };
    let of_nodes = |system: &System| match system.nodes() {
        Some(1) => arguments.nodes.iter().map(|nodes| system.with_nodes(*nodes)).collect(),
        _ => vec![*system],
    };
    Ok(Options {
        systems: systems.iter().flat_map(of_nodes).collect(),
        scenarios: arguments.scenarios.clone(),
        rounds: arguments.rounds,
        window: Duration::from_secs_f64(arguments.seconds),
        warm_up: Duration::from_secs_f64(arguments.warm_up_seconds),
        calls_max: arguments.calls,
        connections_a_process: allow_files()?.saturating_sub(SPARE_FILES).clamp(1, HELD_MAX),
        tools: Tools {
            own: programs,
            nats_server: arguments.nats_server.clone(),
            mosquitto: arguments.mosquitto.clone(),
        },
    })
}

/// One thread plays them, which this many keep busy enough.
const HELD_MAX: usize = 100_000;

/// What a process has open besides connections.
const SPARE_FILES: usize = 200;

/// Raises the limit of open files, for this process and those it starts, and returns it.
fn allow_files() -> Result<usize> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(limit.maximum.map_or(usize::MAX, |maximum| usize::try_from(maximum).unwrap_or(usize::MAX)))
}

/// Says so when a server could not hold its part of a scenario's devices: the bench's own part can be shared out.
fn check_files(options: &Options, allowed: usize) -> Result<()> {
    for (system, scenario) in
        options.systems.iter().flat_map(|system| options.scenarios.iter().map(move |it| (system, it)))
    {
        let needed = scenario.devices().div_ceil(system.nodes().unwrap_or(1)) + SPARE_FILES;
        ensure!(
            needed <= allowed,
            "{system} needs {needed} open files a process for {scenario}, and {allowed} are allowed: raise the limit \
             (`ulimit -Hn`, LimitNOFILE of systemd), or take a system of more nodes, as switchboard-{}",
            scenario.devices().div_ceil(allowed.saturating_sub(SPARE_FILES).max(1)).max(2)
        );
    }
    Ok(())
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let model = model.trim_start_matches([' ', '\t', ':']);
    let kernel = first_line("/proc/sys/kernel/osrelease".as_ref()).unwrap_or_default();
    format!("{cores} cores of {model}, Linux {}", kernel.trim())
}
