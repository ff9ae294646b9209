//! How is Switchboard run? So many ingresses, authorizers and routers, each a process, over one nats-server; with
//! devices imported into its registry, and authorization, claims, limits, logs and metrics as they are by default.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;

use super::{Process, Running, Tools, nats, printed_version};
use crate::scenario::Scenario;
use crate::wire::{DeviceApi, device_id};

const BUILD: &str = "./taskw build";

/// A device of the bench makes as many calls a second as the system bears, so these limits must not be what ends them.
/// They are counted all the same. Where limits are what is measured, they stay as they are.
const LIMITS_RAISED: [&str; 2] =
    ["ingress.calls_per_second_per_device=1000000", "ingress.call_burst_per_device=1000000"];

const SETTINGS: [&str; 3] = ["mqtt.listen=127.0.0.1:0", "http.listen=127.0.0.1:0", "coap.listen=127.0.0.1:0"];

/// What an operator of a machine with two cores would say of one customer, where that is what is measured.
const SHARES: [&str; 1] = ["ingress.calls_per_second_per_customer=2000"];

/// Starts one with `copies` of each service, and with the devices of `scenario` in its registry.
///
/// # Errors
/// When a program is missing, refuses the devices or does not become ready.
pub async fn start(tools: &Tools, copies: usize, scenario: Scenario, folder: &Path) -> Result<Running> {
    let services = ["router", "authorizer", "ingress"]
        .map(|role| Ok((role, tools.own(&format!("switchboard-{role}"), BUILD)?)))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let (server, url) = nats::start(tools, folder).await?;
    import(tools, &url, scenario, folder).await?;

    let raised: &[&str] = if matches!(scenario, Scenario::Fair { .. }) { &SHARES } else { &LIMITS_RAISED };
    let mut processes = vec![server];
    for (role, program) in services {
        for number in 1..=copies {
            let name = if copies == 1 { role.to_owned() } else { format!("{role}-{number}") };
            let mut command = Command::new(&program);
            command.args(["--nats", &url, "--admin", "127.0.0.1:0", "--log-format", "json"]);
            command.args(SETTINGS.iter().chain(raised).flat_map(|setting| ["--set", setting]));
            processes.push(Process::start(&name, &mut command, folder)?);
        }
    }
    let mut addresses = Vec::new();
    for process in processes.iter_mut().skip(1) {
        let admin = process.until("its admin address", |log| logged_address(log, "admin")).await?;
        process.until("readiness", |_| is_ready(admin)).await?;
        if process.role.starts_with("ingress") {
            addresses.push(process.until("its MQTT address", |log| logged_address(log, "mqtt")).await?);
        }
    }
    Ok(Running { addresses, dialect: Box::new(DeviceApi { username: token }), processes })
}

/// Which one that is.
///
/// # Errors
/// When a program is missing.
pub fn version(tools: &Tools) -> Result<String> {
    let version = printed_version(&tools.own("switchboard-ingress", BUILD)?, "--version")?;
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
