//! How does a run go? Scenario by scenario, and within one, round by round, the systems in turn, so that whatever else
//! the machine is doing meets all of them alike.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::time::sleep;

use crate::cpu;
use crate::crowd::{Crowd, Held, Way};
use crate::link::Scratch;
use crate::noise::Watch;
use crate::report::{Figures, IdleFigures, LoadFigures, PerProcess, Sample};
use crate::scenario::Scenario;
use crate::systems::{Folder, Process, Running, System, Tools};
use crate::tally::Faults;
use crate::workload::{self, Expected, Pace, Plan};

/// Before the first connect, so that starting is over, and after the last: what the system still does about it belongs
/// to it, and its memory comes to rest.
const SETTLE: Duration = Duration::from_secs(3);

/// What to measure.
#[derive(Debug, Clone)]
pub struct Options {
    /// In the order in which they take turns.
    pub systems: Vec<System>,
    /// One after the other.
    pub scenarios: Vec<Scenario>,
    /// How often each system meets each scenario.
    pub rounds: u32,
    /// Measured.
    pub window: Duration,
    /// Not measured, before each window.
    pub warm_up: Duration,
    /// A window also ends with so many answers.
    pub calls_max: Option<u64>,
    /// So many connections a process of the bench may hold.
    pub connections_a_process: usize,
    /// Where the programs are.
    pub tools: Tools,
}

/// Measures everything; `heard` is told of each sample at once. A system that fails leaves a sample that says so.
///
/// # Errors
/// When the bench itself cannot go on.
pub async fn run(options: &Options, mut heard: impl FnMut(&Sample)) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    for scenario in &options.scenarios {
        for round in 1..=options.rounds {
            for system in &options.systems {
                if !system.takes_part_in(*scenario) || round > scenario.rounds_max() {
                    continue;
                }
                let folder = Folder::new()?;
                let measured = measure(*system, *scenario, options, folder.path()).await;
                let sample = Sample::new(*system, *scenario, round, measured);
                heard(&sample);
                samples.push(sample);
            }
        }
    }
    Ok(samples)
}

async fn measure(
    system: System,
    scenario: Scenario,
    options: &Options,
    folder: &Path,
) -> Result<(Figures, Faults)> {
    let mut running = system.start(&options.tools, scenario, folder).await?;
    let plan = |pairs, pace, expected| Plan {
        pairs,
        pace,
        expected,
        warm_up: options.warm_up,
        window: options.window,
        calls_max: options.calls_max,
    };
    let measured = match scenario {
        Scenario::Closed { pairs, in_flight } => {
            load(&running, plan(pairs, Pace::Closed { in_flight }, Expected::Answer)).await
        }
        Scenario::Open { calls_per_s, pairs } => {
            load(&running, plan(pairs, Pace::Open { calls_per_s }, Expected::Answer)).await
        }
        Scenario::Offline { pairs, in_flight } => {
            load(&running, plan(pairs, Pace::Closed { in_flight }, Expected::Offline)).await
        }
        Scenario::Fair { calls_per_s, customers, beside_greedy } => {
            let greedy = match beside_greedy {
                true => {
                    Some(workload::connect_greedy(&running.addresses, running.dialect.as_ref(), customers))
                }
                false => None,
            };
            let _greedy = match greedy {
                Some(greedy) => Some(greedy.await?),
                None => None,
            };
            load(&running, plan(customers, Pace::Open { calls_per_s }, Expected::Answer)).await
        }
        Scenario::Among { calls_per_s, pairs, .. } => {
            let mut crowd = prepare(&running, scenario, options, folder).await?;
            crowd.connect().await?;
            let Held { failed, first_failure, .. } = &crowd.held;
            ensure!(*failed == 0, "{failed} idle devices could not connect; first: {first_failure:?}");
            let measured = load(&running, plan(pairs, Pace::Open { calls_per_s }, Expected::Answer)).await;
            let dropped = crowd.dropped()?;
            ensure!(dropped == 0, "{dropped} idle devices lost their connections");
            measured
        }
        Scenario::Idle { .. } => {
            let crowd = prepare(&running, scenario, options, folder).await?;
            idle(&running, crowd).await
        }
    };
    // A server that died explains a broken connection better than the connection does.
    for process in &mut running.processes {
        process.still_runs()?;
    }
    let measured = measured?;
    running.stop().await?;
    Ok(measured)
}

async fn load(running: &Running, plan: Plan) -> Result<(Figures, Faults)> {
    let scratch = Scratch::new();
    let crew = workload::connect(&running.addresses, running.dialect.as_ref(), &plan, &scratch).await?;
    let watch = Watch::new(running.processes.iter().map(|process| process.pid).collect());
    let edge = || {
        watch.edge();
        Usage::read(&running.processes)
    };
    let (observed, before, after) = crew.run(&plan, edge).await?;
    let noise = watch.end()?;
    ensure!(observed.answered > 0, "not one right answer: {:?}", observed.tally.faults());

    let calls = count(observed.answered);
    let cpu = after.cpu_since(&before);
    let client = after.client_cpu.saturating_sub(before.client_cpu);
    let window_s = observed.window.as_secs_f64();
    let figures = LoadFigures {
        window_s,
        answered: observed.answered,
        calls_per_s: calls / window_s,
        latency: observed.tally.latency(),
        server_cpu_us_a_call: cpu.map(|used| used.as_secs_f64() * 1e6 / calls),
        client_cpu_us_a_call: client.as_secs_f64() * 1e6 / calls,
        client_busy_percent: client.as_secs_f64() * 100.0 / window_s,
        noise,
        server_rss_mib: after.memory.map(|memory| count(memory.rss_bytes) / (1024.0 * 1024.0)),
    };
    Ok((Figures::Load(figures), observed.tally.faults()))
}

/// Those devices of the scenario that do nothing, each as somebody's target.
async fn prepare(running: &Running, scenario: Scenario, options: &Options, folder: &Path) -> Result<Crowd> {
    let idle = scenario.devices() - scenario.idle()..scenario.devices();
    let logins: Vec<_> = idle.map(|device| running.dialect.between(device, device).target).collect();
    let way = Way {
        bench: options.tools.own("switchboard-bench", "cargo build --release -p switchboard-bench")?,
        a_process: options.connections_a_process,
        trusted: running.trusted.clone(),
        again: matches!(scenario, Scenario::Idle { again: true, .. }),
    };
    Crowd::prepare(&running.addresses, &logins, &way, folder).await
}

async fn idle(running: &Running, mut crowd: Crowd) -> Result<(Figures, Faults)> {
    sleep(SETTLE).await;
    let (before, kernel_before) = (Usage::read(&running.processes)?, cpu::kernel_memory()?);
    let started = Instant::now();
    crowd.connect().await?;
    let connecting_s = started.elapsed().as_secs_f64();
    sleep(SETTLE).await;
    let (after, kernel_after) = (Usage::read(&running.processes)?, cpu::kernel_memory()?);

    let connections = count(u64::try_from(crowd.held.connected)?);
    let kib_each = |bytes: u64| count(bytes) / 1024.0 / connections;
    // What a process gives back of its start has nothing to do with connections, and must not pay for them.
    let growth = after
        .memory
        .zip(&before.memory, |after, before| kib_each(after.rss_bytes.saturating_sub(before.rss_bytes)));
    let dropped = crowd.dropped()?;
    let Held { connected, failed, repeated, first_failure, resumed } = std::mem::take(&mut crowd.held);
    let figures = IdleFigures {
        connected,
        resumed,
        failed,
        repeated,
        dropped,
        first_failure,
        connects_per_s: connections / connecting_s,
        server_cpu_ms_a_connect: after.cpu_since(&before).map(|used| used.as_secs_f64() * 1e3 / connections),
        server_kib_a_connection: growth,
        kernel_kib_a_connection: kib_each(kernel_after.saturating_sub(kernel_before)),
    };
    Ok((Figures::Idle(figures), Faults::default()))
}

/// What the processes have used so far.
struct Usage {
    cpu: PerProcess<Duration>,
    memory: PerProcess<cpu::Memory>,
    client_cpu: Duration,
}

impl Usage {
    fn read(processes: &[Process]) -> Result<Self> {
        Ok(Self {
            cpu: PerProcess::of(processes, cpu::used)?,
            memory: PerProcess::of(processes, cpu::memory)?,
            client_cpu: cpu::used(std::process::id())?,
        })
    }

    fn cpu_since(&self, before: &Self) -> PerProcess<Duration> {
        self.cpu.zip(&before.cpu, |after, before| after.saturating_sub(*before))
    }
}

#[expect(clippy::cast_precision_loss, reason = "counts of calls and bytes stay far below 2^53")]
fn count(number: u64) -> f64 {
    number as f64
}
