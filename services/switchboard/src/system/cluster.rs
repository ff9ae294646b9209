//! How does a small cluster start on this machine? One NATS server, and each service as processes of its own.

use std::fmt::Display;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use boot::config::{Nats, env_name};
use boot::{CommonArgs, Settings};
use bus::{Bus, BusSettings};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::common::output::{note, say};
use crate::system::addresses::{AddressFile, Addresses, DeviceAddresses, ServiceAddresses};
use crate::system::demo;
use crate::system::guard::Guard;
use crate::system::ports::Taken;
use crate::system::up::{Asked, ListenArgs, OwnArgs, PATIENCE, asked, next_steps, signals, start_nats};

/// How long a service may take longer than its own `drain_ms` to end.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Pauses before a service that has died is started again.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
const STEADY: Duration = Duration::from_secs(30);
/// Where a cluster's first API listens unless told.
const API_PORT: u16 = 8181;
/// How often a service is asked whether it is ready.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// What is read of its answer.
const MAX_ANSWER_BYTES: u64 = 16 * 1024;

#[derive(Args)]
#[command(
    args_override_self = true,
    after_help = "\
Ports are counted up from those of one node: MQTT 1883, 1884, …; HTTP 8080, 8081, …; CoAP 5683, 5684, …; under TLS \
8883, 8884, … and 8443, 8444, …; the API 8181, 8182, …; admin endpoints 9100, 9101, … Logs of all services \
come on standard error, each line with the name of its process. A service that dies is started again.

Examples:
  switchboard cluster --demo
  switchboard cluster --nodes 3 --mqtt 0.0.0.0:1883 --log info"
)]
pub(crate) struct ClusterArgs {
    /// Processes of each service
    #[arg(long, value_name = "NUMBER", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=32))]
    nodes: u16,
    #[command(flatten)]
    own: OwnArgs,
    #[command(flatten)]
    listen: ListenArgs,
    #[command(flatten)]
    common: CommonArgs,
}

/// Which program, and where it listens.
#[derive(Debug, Clone)]
struct Service {
    name: String,
    program: PathBuf,
    admin: SocketAddr,
    devices: Option<DeviceAddresses>,
    api: Option<SocketAddr>,
    drain: Duration,
}

pub(crate) fn run(args: ClusterArgs) -> ExitCode {
    let Asked { mut settings, uses_other_nats, says_where_api } =
        match asked(&args.common, &args.listen, &args.own) {
            Ok(asked) => asked,
            Err(status) => return status,
        };
    if !says_where_api {
        // The HTTP of nodes is counted up to where one API would be.
        settings.api.listen.set_port(API_PORT);
    }
    super::live(&settings.log.clone(), 0, cluster(args, settings, uses_other_nats))
}

async fn cluster(args: ClusterArgs, mut settings: Settings, uses_other_nats: bool) -> anyhow::Result<()> {
    let services = plan(&settings, args.nodes, (!uses_other_nats).then_some(args.own.nats_port))?;
    let (shutdown, guard) = signals()?;
    let nats = match uses_other_nats {
        true => None,
        false => Some(start_nats(&args.own, &mut settings, &guard).await?),
    };
    let password_file = nats.as_ref().and_then(|(nats, _)| nats.password_file()).map(Path::to_owned);
    let ended = serve(&args, &settings, services, password_file, &guard, &shutdown).await;
    if let Some((nats, data)) = nats {
        nats.stop().await;
        drop(data);
    }
    if ended.is_ok() {
        say("The cluster has ended.");
    }
    ended
}

async fn serve(
    args: &ClusterArgs,
    settings: &Settings,
    services: Vec<Service>,
    password_file: Option<PathBuf>,
    guard: &Guard,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    if args.own.demo {
        let bus_settings: BusSettings = (&settings.nats).into();
        let bus = Bus::connect(&bus_settings, "cluster").await?;
        let loaded = demo::load(&bus, settings).await.context("the demo account cannot be loaded");
        bus.close().await;
        loaded?;
    }
    // Nodes and APIs end first: the calls that they still have in flight need the others.
    let (stop_nodes, stop_others) = (CancellationToken::new(), CancellationToken::new());
    let (mut nodes, mut others) = (JoinSet::new(), JoinSet::new());
    for service in &services {
        let command = CommandLine { flags: flags(args, settings, service), env: secrets(settings) };
        match service.devices.is_some() || service.api.is_some() {
            true => nodes.spawn(keep(service.clone(), command, guard.clone(), stop_nodes.clone())),
            false => others.spawn(keep(service.clone(), command, guard.clone(), stop_others.clone())),
        };
    }
    let ready = tokio::select! {
        () = all_ready(&services) => true,
        () = shutdown.cancelled() => false,
    };
    let file = if ready { greet(args, settings, &services, password_file)? } else { None };
    shutdown.cancelled().await;
    say("Ending: calls in flight may finish first.");
    drop(file);
    stop_nodes.cancel();
    while nodes.join_next().await.is_some() {}
    stop_others.cancel();
    while others.join_next().await.is_some() {}
    Ok(())
}

/// Nodes, authorizers, routers and APIs, with addresses that nobody has yet.
fn plan(settings: &Settings, copies: u16, nats_port: Option<u16>) -> anyhow::Result<Vec<Service>> {
    let here = std::env::current_exe().context("where this program is cannot be told")?;
    let here = here.parent().unwrap_or(Path::new("."));
    let kinds = [
        ("ingress", settings.ingress.drain_ms),
        ("authorizer", settings.authorizer.drain_ms),
        ("router", settings.router.drain_ms),
        ("api", settings.api.drain_ms),
    ];
    let (mut services, mut held) = (Vec::new(), Held::default());
    let mut admin_offset = 0;
    for (kind, drain_ms) in kinds {
        let program = here.join(format!("switchboard-{kind}"));
        if !program.is_file() {
            bail!("{} is missing: a cluster runs the programs beside this one", program.display());
        }
        for number in 1..=copies {
            let name = format!("{kind}-{number}");
            let choice = |flag, setting| format!("{name}: {flag} chooses the first, setting {setting}");
            let coap = match kind {
                "ingress" => {
                    Some(held.free_udp(settings.coap.listen, number - 1, choice("--coap", "coap.listen"))?)
                }
                _ => None,
            };
            let mut tcp = |(flag, setting), first, offset| held.free(first, offset, choice(flag, setting));
            let admin = tcp(("--admin", "admin.listen"), settings.admin.listen, admin_offset)?;
            admin_offset += 1;
            let mut devices = None;
            if let Some(coap) = coap {
                let mut tcp = |choice, first| tcp(choice, first, number - 1);
                let mqtt = tcp(("--mqtt", "mqtt.listen"), settings.mqtt.listen)?;
                let http = tcp(("--http", "http.listen"), settings.http.listen)?;
                let has_tls = settings.tls.certificate_file.is_some();
                let mut tls = |choice, first| has_tls.then(|| tcp(choice, first)).transpose();
                let mqtts = tls(("--set", "mqtt.tls_listen"), settings.mqtt.tls_listen)?;
                let https = tls(("--set", "http.tls_listen"), settings.http.tls_listen)?;
                devices = Some(DeviceAddresses { mqtt, http, coap, mqtts, https });
            }
            let api = match kind {
                "api" => Some(tcp(("--api", "api.listen"), settings.api.listen, number - 1)?),
                _ => None,
            };
            let drain = Duration::from_millis(drain_ms);
            services.push(Service { name, program: program.clone(), admin, devices, api, drain });
        }
    }
    held.taken.refuse(nats_port)?;
    Ok(services)
}

/// Ports that were found free, held until all are: none is found twice.
#[derive(Default)]
struct Held {
    tcp: Vec<TcpListener>,
    udp: Vec<UdpSocket>,
    taken: Taken,
}

impl Held {
    /// The address `offset` ports above the first, free at this moment; any free one where the first has port 0. One
    /// that is taken is noted.
    fn free(&mut self, first: SocketAddr, offset: u16, choice: impl Display) -> anyhow::Result<SocketAddr> {
        let address = above(first, offset)?;
        let Some(listener) = self.taken.note(address, TcpListener::bind(address), choice) else {
            return Ok(address);
        };
        let address = listener.local_addr()?;
        self.tcp.push(listener);
        Ok(address)
    }

    /// The same for UDP.
    fn free_udp(
        &mut self,
        first: SocketAddr,
        offset: u16,
        choice: impl Display,
    ) -> anyhow::Result<SocketAddr> {
        let address = above(first, offset)?;
        let Some(socket) = self.taken.note(address, UdpSocket::bind(address), choice) else {
            return Ok(address);
        };
        let address = socket.local_addr()?;
        self.udp.push(socket);
        Ok(address)
    }
}

fn above(first: SocketAddr, offset: u16) -> anyhow::Result<SocketAddr> {
    if first.port() == 0 {
        return Ok(first);
    }
    let port = first.port().checked_add(offset);
    let port =
        port.with_context(|| format!("there are no {offset} ports above {first}: the last is 65535"))?;
    Ok(SocketAddr::new(first.ip(), port))
}

/// How a service is started.
struct CommandLine {
    flags: Vec<String>,
    env: Vec<(String, String)>,
}

/// What must not stand on a command line, which everybody on the machine may read.
fn secrets(settings: &Settings) -> Vec<(String, String)> {
    let Nats { user, password, .. } = &settings.nats;
    let password = password.as_ref().map(|password| password.expose().to_owned());
    let given = [("nats.user", user.clone()), ("nats.password", password)];
    given.into_iter().filter_map(|(setting, value)| Some((env_name(setting), value?))).collect()
}

fn flags(args: &ClusterArgs, settings: &Settings, service: &Service) -> Vec<String> {
    let common = &args.common;
    let mut line: Vec<String> = Vec::new();
    let mut flag = |name: &str, value: String| line.extend([name.to_owned(), value]);
    if let Some(file) = &common.config {
        flag("--config", file.display().to_string());
    }
    for setting in &common.set {
        flag("--set", setting.clone());
    }
    flag("--nats", settings.nats.url.clone());
    flag("--admin", service.admin.to_string());
    flag("--log", settings.log.level.clone());
    if let Some(format) = &common.log_format {
        flag("--log-format", format.clone());
    }
    if let Some(api) = service.api {
        flag("--set", format!("api.listen={api}"));
    }
    if let Some(DeviceAddresses { mqtt, http, coap, mqtts, https }) = service.devices {
        for (protocol, address) in [("mqtt", mqtt), ("http", http), ("coap", coap)] {
            flag("--set", format!("{protocol}.listen={address}"));
        }
        for (protocol, address) in [("mqtt", mqtts), ("http", https)] {
            if let Some(address) = address {
                flag("--set", format!("{protocol}.tls_listen={address}"));
            }
        }
    }
    line
}

/// Runs a service until `stop`; starts it again when it dies.
async fn keep(service: Service, command: CommandLine, guard: Guard, stop: CancellationToken) {
    let name = &service.name;
    let mut pause = FIRST_PAUSE;
    loop {
        let started = Instant::now();
        let ended = match spawn(&service, &command) {
            Ok(mut child) => {
                guard.note(name, child.id());
                let ended = tokio::select! {
                    () = stop.cancelled() => {
                        end(&service, &mut child).await;
                        return guard.note(name, None);
                    }
                    ended = child.wait() => ended,
                };
                ended.map_or_else(|error| error.to_string(), |status: ExitStatus| status.to_string())
            }
            Err(error) => format!("{error:#}"),
        };
        guard.note(name, None);
        if started.elapsed() > STEADY {
            pause = FIRST_PAUSE;
        }
        note(format_args!("{name} ended by itself ({ended}); starting it again in {} ms", pause.as_millis()));
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
        }
        pause = LONGEST_PAUSE.min(pause * 2);
    }
}

fn spawn(service: &Service, command: &CommandLine) -> anyhow::Result<Child> {
    let mut child = Command::new(&service.program)
        .args(&command.flags)
        .envs(command.env.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        // A Ctrl-C in the terminal is ours to pass on, in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot run {}", service.program.display()))?;
    if let Some(stderr) = child.stderr.take() {
        let name = service.name.clone();
        // Ends with the process, whose lines it passes on.
        tokio::spawn(async move {
            let mut lines = BufReader::new(stderr).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                note(format_args!("[{name}] {line}"));
            }
        });
    }
    Ok(child)
}

async fn end(service: &Service, child: &mut Child) {
    let pid = child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?));
    if let Some(pid) = pid {
        let _ = kill_process(pid, Signal::TERM);
    }
    match timeout(service.drain + STOP_GRACE, child.wait()).await {
        Ok(Ok(status)) if status.success() => {}
        Ok(Ok(status)) => note(format_args!("{} ended with {status}", service.name)),
        Ok(Err(error)) => note(format_args!("{}: {error}", service.name)),
        Err(_) => {
            note(format_args!("{} does not end: it is killed", service.name));
            let _ = child.kill().await;
        }
    }
}

/// Waits for all of them; a person is told what a slow start waits for.
async fn all_ready(services: &[Service]) {
    let mut told_at = Instant::now();
    for service in services {
        loop {
            let answer = readiness(service.admin).await;
            if answer.as_deref().is_some_and(|answer| answer.starts_with("HTTP/1.1 200")) {
                break;
            }
            if told_at.elapsed() > PATIENCE {
                told_at = Instant::now();
                let unready = answer.as_deref().unwrap_or("it does not answer");
                let why: Vec<&str> =
                    unready.lines().filter(|line| line.contains("not")).map(str::trim).collect();
                note(format_args!("still waiting for {}: {}", service.name, why.join("; ")));
            }
            sleep(ASK_EVERY).await;
        }
    }
}

/// What the service answers when it is asked whether it is ready.
async fn readiness(admin: SocketAddr) -> Option<String> {
    let ask = async {
        let mut stream = TcpStream::connect(admin).await.ok()?;
        let request = format!("GET /readyz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = Vec::new();
        stream.take(MAX_ANSWER_BYTES).read_to_end(&mut answer).await.ok()?;
        String::from_utf8(answer).ok()
    };
    timeout(Duration::from_secs(1), ask).await.ok().flatten()
}

fn greet(
    args: &ClusterArgs,
    settings: &Settings,
    services: &[Service],
    nats_password_file: Option<PathBuf>,
) -> anyhow::Result<Option<AddressFile>> {
    let addresses = Addresses {
        nats: settings.nats.url.clone(),
        nats_password_file,
        pid: std::process::id(),
        services: services
            .iter()
            .map(|service| ServiceAddresses {
                name: service.name.clone(),
                admin: service.admin,
                devices: service.devices,
                api: service.api,
            })
            .collect(),
    };
    let file = args.own.addresses.as_deref().map(|path| AddressFile::write(path, &addresses)).transpose()?;
    say(format_args!("Switchboard {}, {} of each service", boot::args::version(), args.nodes));
    for service in &addresses.services {
        say(format_args!("  {:<13} admin http://{}/readyz", service.name, service.admin));
        if let Some(devices) = service.devices {
            say(format_args!("  {:<13} devices {devices}", ""));
        }
        if let Some(api) = service.api {
            say(format_args!("  {:<13} API http://{api}/v1/openapi.json", ""));
        }
    }
    say(format_args!("  {:<13} {}", "NATS", addresses.nats_and_password()));
    say("");
    next_steps(&addresses, args.own.demo);
    say("");
    say("Switchboard is ready. Ctrl-C ends it.");
    Ok(file)
}
