//! How is mosquitto run? As a broker that keeps nothing: bare, or with a password for each device and an access control
//! list.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Process, Running, Tools, free_port, printed_version, users};
use crate::framing::Framing;
use crate::scenario::Scenario;
use crate::wire::{BareBroker, Dialect, Users};

/// Starts one; if it is given a scenario, one that asks its devices for names and passwords, and keeps their customers
/// apart.
///
/// # Errors
/// When it is not installed or does not start.
pub async fn start(tools: &Tools, users: Option<Scenario>, folder: &Path) -> Result<Running> {
    let (program, port) = (program(tools)?, free_port()?);
    let (access, dialect): (_, Box<dyn Dialect>) = match users {
        None => ("allow_anonymous true".to_owned(), Box::new(BareBroker { ids: 1024 })),
        Some(scenario) => {
            let passwd = Tools::find(None, "mosquitto_passwd", &["/usr/bin"], "it comes with mosquitto")?;
            let [passwords, rights] =
                users::for_mosquitto(scenario, &passwd, folder)?.map(|it| it.display().to_string());
            let access = format!("allow_anonymous false\npassword_file {passwords}\nacl_file {rights}");
            (access, Box::new(Users { scenario, framing: Framing::Mqtt }))
        }
    };
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
    Ok(Running { addresses: vec![address], dialect, processes: vec![process] })
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
