//! How is Switchboard run? Ingress, authorizer and router, each a process or all three one, so many of them over one
//! nats-server; or as `switchboard up`. With devices imported into its registry, and authorization, claims, limits,
//! logs and metrics as they are by default.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::{Process, Running, Tools, nats, printed_version};
use crate::scenario::Scenario;
use crate::secure::Certificate;
use crate::wire::{DeviceApi, device_id};

const BUILD: &str = "./taskw build";

/// A device of the bench makes as many calls a second as the system bears, so these limits must not be what ends them.
/// They are counted all the same. Where limits are what is measured, they stay as they are.
const LIMITS_RAISED: [&str; 2] =
    ["ingress.calls_per_second_per_device=1000000", "ingress.call_burst_per_device=1000000"];

const SETTINGS: [&str; 3] = ["mqtt.listen=127.0.0.1:0", "http.listen=127.0.0.1:0", "coap.listen=127.0.0.1:0"];

/// The services as processes of their own, in the order in which they are started.
const SEPARATE: [&str; 3] = ["router", "authorizer", "ingress"];
/// All of them in one.
const TOGETHER: [&str; 1] = ["node"];

/// What an operator of a machine with two cores would say of one customer, where that is what is measured.
const SHARES: [&str; 1] = ["ingress.calls_per_second_per_customer=2000"];

/// How its services are put into processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Each one for itself.
    Separate,
    /// The three of a node in one.
    Together,
    /// Each one for itself, none with a journal.
    Forgetful,
}

/// Starts `nodes` of each service with the devices of `scenario` in the registry.
///
/// # Errors
/// When a program is missing, refuses the devices or does not become ready.
pub async fn start(
    tools: &Tools,
    shape: Shape,
    nodes: usize,
    scenario: Scenario,
    folder: &Path,
) -> Result<Running> {
    let roles: &[&str] = if shape == Shape::Together { &TOGETHER } else { &SEPARATE };
    let services = roles
        .iter()
        .map(|role| Ok((*role, tools.own(&format!("switchboard-{role}"), BUILD)?)))
        .collect::<Result<Vec<_>>>()?;
    let secure = secure(scenario, folder)?;
    let (server, url) = nats::start(tools, folder).await?;
    import(tools, &url, scenario, folder).await?;

    let mut processes = vec![server];
    for (role, program) in services {
        for number in 1..=nodes {
            let name = if nodes == 1 { role.to_owned() } else { format!("{role}-{number}") };
            let mut command = Command::new(&program);
            command.args(["--nats", &url, "--admin", "127.0.0.1:0", "--log-format", "json"]);
            command.args(settings(scenario, nodes)).args(secure.settings());
            if shape == Shape::Forgetful {
                command.args(["--set", "journal.max_hops=0"]);
            }
            processes.push(Process::start(&name, &mut command, folder)?);
        }
    }
    // Each authorizer loads all devices, and all of them do at the same time.
    let loads = u32::try_from(scenario.devices() * nodes)?;
    let to_be_ready = Duration::from_secs(60) + Duration::from_micros(200) * loads;
    let mut addresses = Vec::new();
    for process in processes.iter_mut().skip(1) {
        let admin = process.until("its admin address", |log| logged_address(log, "admin")).await?;
        process.until_within(to_be_ready, "readiness", |_| is_ready(admin)).await?;
        if process.role.starts_with("ingress") || process.role.starts_with("node") {
            addresses
                .push(process.until("its MQTT address", |log| logged_address(log, secure.listener())).await?);
        }
    }
    Ok(Running {
        addresses,
        trusted: secure.trusted(),
        dialect: Box::new(DeviceApi { username: token }),
        processes,
    })
}

/// Starts `switchboard up`, with the nats-server that it starts itself.
///
/// # Errors
/// As [`start`].
pub async fn start_up(tools: &Tools, scenario: Scenario, folder: &Path) -> Result<Running> {
    let (secure, file) = (secure(scenario, folder)?, folder.join("addresses.json"));
    let mut command = Command::new(tools.own("switchboard", BUILD)?);
    command.args(["up", "--ephemeral", "--nats-port", "0", "--api", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    command.arg("--nats-server").arg(nats::program(tools)?).arg("--addresses").arg(&file);
    command.args(["--log-format", "json"]).args(settings(scenario, 1)).args(secure.settings());
    // Where TLS is listened for stands in its log only.
    command.args(secure.0.is_some().then_some("--log=info"));
    let mut up = Process::start("up", &mut command, folder)?;
    let told = up.until("its addresses", |_| serde_json::from_slice(&fs::read(&file).ok()?).ok()).await?;
    let Addresses { nats, services } = told;
    let mut addresses: Vec<_> = services.into_iter().filter_map(|service| service.mqtt).collect();
    if secure.0.is_some() {
        addresses = vec![up.until("its MQTT address", |log| logged_address(log, secure.listener())).await?];
    }
    let server = up.child("nats-server")?;
    import(tools, &nats, scenario, folder).await?;
    Ok(Running {
        addresses,
        trusted: secure.trusted(),
        dialect: Box::new(DeviceApi { username: token }),
        processes: vec![server, up],
    })
}

/// What `switchboard up` says of itself, of which more is not needed here.
#[derive(serde::Deserialize)]
struct Addresses {
    nats: String,
    services: Vec<Service>,
}

#[derive(serde::Deserialize)]
struct Service {
    mqtt: Option<SocketAddr>,
}

/// Whether devices come over TLS.
struct Secure(Option<Certificate>);

fn secure(scenario: Scenario, folder: &Path) -> Result<Secure> {
    Ok(Secure(scenario.is_secure().then(|| Certificate::make(folder)).transpose()?))
}

impl Secure {
    fn settings(&self) -> Vec<String> {
        let Some(Certificate { certificate, key }) = &self.0 else { return Vec::new() };
        let files = [
            format!("tls.certificate_file={}", certificate.display()),
            format!("tls.key_file={}", key.display()),
        ];
        let listen = ["mqtt", "http"].map(|protocol| format!("{protocol}.tls_listen=127.0.0.1:0"));
        files.into_iter().chain(listen).flat_map(|setting| ["--set".to_owned(), setting]).collect()
    }

    /// The field of the log that says where devices connect.
    fn listener(&self) -> &'static str {
        if self.0.is_some() { "mqtts" } else { "mqtt" }
    }

    fn trusted(&self) -> Option<PathBuf> {
        self.0.as_ref().map(|it| it.certificate.clone())
    }
}

fn settings(scenario: Scenario, nodes: usize) -> impl Iterator<Item = String> {
    /// The default of `ingress.max_connections` where files suffice.
    const CONNECTIONS: usize = 100_000;
    let raised: &[&str] = if matches!(scenario, Scenario::Fair { .. }) { &SHARES } else { &LIMITS_RAISED };
    let connections = scenario.devices().div_ceil(nodes);
    let many = (connections > CONNECTIONS).then(|| format!("ingress.max_connections={connections}"));
    let settings = SETTINGS.iter().chain(raised).map(|it| (*it).to_owned()).chain(many);
    settings.flat_map(|setting| ["--set".to_owned(), setting])
}

/// Which one that is.
///
/// # Errors
/// When a program is missing.
pub fn version(tools: &Tools, program: &str) -> Result<String> {
    let version = printed_version(&tools.own(program, BUILD)?, "--version")?;
    Ok(format!("{version} over {}", nats::version(tools)?))
}

fn token(device: usize) -> String {
    format!("bench-token-{device:08}")
}

/// Registers the devices as an operator would.
async fn import(tools: &Tools, url: &str, scenario: Scenario, folder: &Path) -> Result<()> {
    let mut rows = "tenant,customer,id,name,token\n".to_owned();
    for device in 0..scenario.devices() {
        let (customer, id, token) = (scenario.customer_of(device), device_id(device), token(device));
        writeln!(rows, "Bench,Customer {customer},{id},Device {device},{token}")?;
    }
    let file = folder.join("devices.csv");
    fs::write(&file, rows)?;
    let mut command = Command::new(tools.own("switchboard", BUILD)?);
    command.args(["device", "import", "--create", "--nats", url]).arg(&file);
    Process::start("import", &mut command, folder)?.until_done().await
}

/// The address that a service logged under `field`.
fn logged_address(log: &Path, field: &str) -> Option<SocketAddr> {
    let text = fs::read_to_string(log).ok()?;
    text.lines().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let value = line.get(field).or_else(|| line.get("fields")?.get(field))?;
        value.as_str()?.parse().ok()
    })
}

fn is_ready(admin: SocketAddr) -> Option<()> {
    const PATIENCE: Duration = Duration::from_secs(1);
    let mut stream = TcpStream::connect_timeout(&admin, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.starts_with("HTTP/1.1 200").then_some(())
}
