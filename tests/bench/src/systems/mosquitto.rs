//! How is mosquitto run? As a broker that keeps nothing: bare, or with a password for each device and an access control
//! list.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Process, Running, Tools, free_port, printed_version, users};
use crate::framing::Framing;
use crate::scenario::Scenario;
use crate::secure::Certificate;
use crate::wire::{BareBroker, Dialect, Users};

/// Starts one; `with_users`, one that asks the scenario's devices for names and passwords, and keeps customers apart.
///
/// # Errors
/// When it is not installed or does not start.
pub async fn start(tools: &Tools, scenario: Scenario, with_users: bool, folder: &Path) -> Result<Running> {
    let (program, port) = (program(tools)?, free_port()?);
    let (mut access, dialect): (_, Box<dyn Dialect>) = if with_users {
        let passwd = Tools::find(None, "mosquitto_passwd", &["/usr/bin"], "it comes with mosquitto")?;
        let [passwords, rights] =
            users::for_mosquitto(scenario, &passwd, folder)?.map(|it| it.display().to_string());
        let access = format!("allow_anonymous false\npassword_file {passwords}\nacl_file {rights}");
        (access, Box::new(Users { scenario, framing: Framing::Mqtt }))
    } else {
        ("allow_anonymous true".to_owned(), Box::new(BareBroker { ids: 1024 }))
    };
    let certificate = scenario.is_secure().then(|| Certificate::make(folder)).transpose()?;
    if let Some(Certificate { certificate, key }) = &certificate {
        write!(access, "\ncertfile {}\nkeyfile {}", certificate.display(), key.display())?;
    }
    let settings = folder.join("mosquitto.conf");
    fs::write(
        &settings,
        format!(
            "listener {port} 127.0.0.1\n{access}\nset_tcp_nodelay true\npersistence false\n\
             max_connections -1\nsys_interval 0\nlog_type error\n"
        ),
    )?;
    let mut process = Process::start("mosquitto", Command::new(program).arg("-c").arg(&settings), folder)?;
    let address = ([127, 0, 0, 1], port).into();
    process.until_listening(address).await?;
    let trusted = certificate.map(|it| it.certificate);
    Ok(Running { addresses: vec![address], trusted, dialect, processes: vec![process] })
}

/// Which one that is.
///
/// # Errors
/// When it is not installed.
pub fn version(tools: &Tools) -> Result<String> {
    printed_version(&program(tools)?, "-h")
}

fn program(tools: &Tools) -> Result<PathBuf> {
    let places = ["/usr/sbin", "/usr/local/sbin"];
    let install = "install it (`apt-get install mosquitto`), give --mosquitto, or leave it out of --systems";
    Tools::find(tools.mosquitto.as_ref(), "mosquitto", &places, install)
}
