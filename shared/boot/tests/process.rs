//! Does a real process begin and end as `boot::run` says? This program starts itself as a small service.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test, which clippy cannot tell of one that is its own harness"
)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Command, ExitCode, Stdio};

use anyhow::Context as _;
use boot::{CommonArgs, Context};
use clap::Parser;

/// Set in the environment of the service: what it does.
const ROLE: &str = "BOOT_TEST_ROLE";

#[derive(Parser)]
#[command(version = boot::args::version())]
struct ServiceArgs {
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    if std::env::var_os(ROLE).is_some() {
        let args = ServiceArgs::parse();
        return boot::run("sample", args.common, |settings| settings.router.worker_threads.into(), serve);
    }
    let cases: &[(&str, fn())] = &[
        ("configuration_faults_end_with_2", configuration_faults_end_with_2),
        ("sigterm_drains_and_ends_with_0", sigterm_drains_and_ends_with_0),
        ("a_second_signal_ends_at_once", a_second_signal_ends_at_once),
        ("a_failure_is_said_once", a_failure_is_said_once),
        ("a_taken_admin_address_is_named", a_taken_admin_address_is_named),
        ("the_version_is_told", the_version_is_told),
        ("what_is_logged_changes_with_the_file", what_is_logged_changes_with_the_file),
        ("a_task_that_panics_ends_its_process", a_task_that_panics_ends_its_process),
    ];
    for (name, case) in cases {
        case();
        println!("process: {name} ... ok");
    }
    ExitCode::SUCCESS
}

async fn serve(context: Context) -> anyhow::Result<()> {
    let role = std::env::var(ROLE)?;
    if role == "fail" {
        return Err(std::io::Error::other("no such table")).context("cannot load the directory");
    }
    context.health.part("bus").ready();
    if role == "panic" {
        // A client's fault first, which ends nothing else.
        let client = tokio::spawn(boot::panics::set_apart(async { panic!("one client") }));
        let ended: Result<(), _> = client.await?;
        anyhow::ensure!(ended.is_err());
        tokio::spawn(async { panic!("a part of the service") });
    }
    tracing::info!(part = "bus", "serving");
    context.shutdown.cancelled().await;
    // Draining goes on until the test has seen it, or for ever.
    if role == "drain" {
        while !std::fs::exists(std::env::var("BOOT_TEST_RELEASE")?)? {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        return Ok(());
    }
    std::future::pending().await
}

struct Service {
    child: Child,
    stderr: BufReader<ChildStderr>,
}

impl Service {
    fn start(role: &str, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--admin", "127.0.0.1:0", "--set", "router.worker_threads=1"])
            .args(args)
            .env(ROLE, role)
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr }
    }

    /// Reads JSON log lines up to the one with this message.
    fn until(&mut self, message: &str) -> serde_json::Value {
        loop {
            let mut line = String::new();
            assert_ne!(self.stderr.read_line(&mut line).unwrap(), 0, "ended before {message:?}");
            let line: serde_json::Value = serde_json::from_str(&line).expect(&line);
            let module = line["module"].as_str().unwrap();
            assert!(line["service"] == "sample" && module.split("::").next().unwrap().len() > 3, "{line}");
            if line["message"].as_str().unwrap().starts_with(message) {
                return line;
            }
        }
    }

    fn admin(&mut self) -> SocketAddr {
        self.until("starting")["admin"].as_str().unwrap().parse().unwrap()
    }

    fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    /// Exit status, and what was left of standard error.
    fn end(mut self) -> (Option<i32>, String) {
        let mut rest = String::new();
        self.stderr.read_to_string(&mut rest).unwrap();
        (self.child.wait().unwrap().code(), rest)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn get(address: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n").unwrap();
    let mut response = String::new();
    stream.read_to_string(&mut response).unwrap();
    response
}

fn configuration_faults_end_with_2() {
    let env = [("SWITCHBOARD_MQTT__LISSTEN", "x")];
    let (status, text) = Service::start("serve", &["--set", "nats.replicas=9", "--log", "loud"], &env).end();
    assert_eq!(status, Some(2));
    assert!(text.starts_with("sample: the configuration has 3 faults:\n  environment "), "{text}");
    assert!(text.contains("flag --log: log.level = \"loud\": expected "), "{text}");
}

fn sigterm_drains_and_ends_with_0() {
    let release = std::env::temp_dir().join(format!("switchboard-release-{}", std::process::id()));
    let env = [("BOOT_TEST_RELEASE", release.to_str().unwrap())];
    let mut service = Service::start("drain", &[], &env);
    let admin = service.admin();
    let serving = service.until("serving");
    assert_eq!(
        (serving["part"].as_str(), serving["level"].as_str()),
        (Some("bus"), Some("INFO")),
        "fields are flat"
    );
    assert!(get(admin, "/readyz").starts_with("HTTP/1.1 200 "));
    assert!(get(admin, "/metrics").contains("service=\"sample\""));

    service.signal("TERM");
    service.until("shutting down");
    // The signal is told first and acted on next, by another task.
    while get(admin, "/readyz").starts_with("HTTP/1.1 200 ") {}
    let response = get(admin, "/readyz");
    assert!(response.contains("process: not ready: shutting down"), "{response}");
    std::fs::write(&release, "").unwrap();
    let (status, text) = service.end();
    std::fs::remove_file(&release).unwrap();
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("\"ended\""), "{text}");
    assert!(TcpStream::connect(admin).is_err(), "the admin endpoint is gone with the process");
}

fn a_second_signal_ends_at_once() {
    for (signal, status) in [("TERM", 143), ("INT", 130)] {
        let mut service = Service::start("hang", &[], &[]);
        service.until("serving");
        service.signal("INT");
        service.until("shutting down");
        service.signal(signal);
        assert_eq!(service.end().0, Some(status));
    }
}

fn a_failure_is_said_once() {
    let (status, text) = Service::start("fail", &["--log-format", "pretty"], &[]).end();
    assert_eq!(status, Some(1));
    let said = "sample: cannot load the directory\n  because: no such table\n";
    assert!(text.ends_with(said) && text.matches("no such table").count() == 1, "{text}");
    assert!(!text.contains('\u{1b}'), "no colours off a terminal: {text}");

    let (status, text) = Service::start("fail", &[], &[]).end();
    assert_eq!(status, Some(1));
    let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).expect(&text);
    assert_eq!(line["error"], "cannot load the directory: no such table");
    let (_, text) = Service::start("fail", &["--log", "off"], &[]).end();
    assert_eq!(text, said, "also when nothing is logged");
}

fn a_taken_admin_address_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let set = format!("admin.listen={address}");
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.env(ROLE, "serve").args(["--log-format", "pretty", "--set", &set]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains(&format!("cannot listen on {address} for the admin endpoint")), "{text}");
    assert!(text.contains("because: Address already in use"), "{text}");
}

fn the_version_is_told() {
    let output =
        Command::new(std::env::current_exe().unwrap()).env(ROLE, "x").arg("--version").output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains(boot::args::version()));
}

fn what_is_logged_changes_with_the_file() {
    const TAKEN: &str = "switchboard_config_reloads_total{result=\"taken\"} 1";
    let file = std::env::temp_dir().join(format!("switchboard-levels-{}.toml", std::process::id()));
    let write = |level: &str| std::fs::write(&file, format!("[log]\nlevel = \"{level}\"\n")).unwrap();
    write("info");
    let path = file.to_str().unwrap();
    let mut service = Service::start("serve", &["--config", path, "--log-format", "json"], &[]);
    let admin = service.admin();
    service.until("serving");
    write("warn");
    service.signal("HUP");
    while !get(admin, "/metrics").contains(TAKEN) {}
    write("noise");
    service.signal("HUP");
    let next = service.until("the settings");
    assert_eq!(next["message"], "the settings stay as they were", "what was taken over is below warnings");
    assert!(next["faults"].as_str().unwrap().contains(":2: log.level = \"noise\": expected "), "{next}");
    write("info");
    service.signal("HUP");
    service.until("the settings were read again");
    std::fs::remove_file(&file).unwrap();
}

fn a_task_that_panics_ends_its_process() {
    let mut service = Service::start("panic", &["--set", "log.format=json"], &[]);
    let first = service.until("a thread panicked");
    assert!(first["panic"].as_str().unwrap().contains("one client"), "{first}");
    service.until("serving");
    let (status, rest) = service.end();
    assert_eq!(status, Some(101), "{rest}");
    assert!(rest.contains("a part of the service"), "{rest}");
}
