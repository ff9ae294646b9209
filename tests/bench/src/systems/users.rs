//! How do brokers that know each device and keep customers apart learn who may do what? Their files, for the devices of
//! a scenario.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::scenario::Scenario;
use crate::wire::Users;

/// mosquitto's password file, hashed by `mosquitto_passwd` beside `mosquitto`, and its access control list.
///
/// # Errors
/// When `mosquitto_passwd` is missing or fails.
pub fn for_mosquitto(scenario: Scenario, passwd: &Path, folder: &Path) -> Result<[PathBuf; 2]> {
    let (passwords, rights) = (folder.join("passwords"), folder.join("rights"));
    let (mut password_lines, mut right_lines) = (String::new(), "pattern read v1/+/%u/rpc/#\n".to_owned());
    for device in 0..scenario.devices() {
        let (name, customer) = (Users::name(device), scenario.customer_of(device));
        writeln!(password_lines, "{name}:{}", Users::password(device))?;
        writeln!(right_lines, "user {name}\ntopic write v1/{customer}/#")?;
    }
    fs::write(&passwords, password_lines)?;
    fs::write(&rights, right_lines)?;
    let hashed = Command::new(passwd).arg("-U").arg(&passwords).output()?;
    ensure!(hashed.status.success(), "{}: {}", passwd.display(), String::from_utf8_lossy(&hashed.stderr));
    Ok([passwords, rights])
}

/// nats-server's configuration. Passwords stand as they are: bcrypt, its other choice, takes 50 ms a connect.
///
/// # Errors
/// When it cannot be written.
pub fn for_nats(scenario: Scenario, folder: &Path) -> Result<PathBuf> {
    let mut text = "authorization { users = [\n".to_owned();
    for device in 0..scenario.devices() {
        let (name, customer) = (Users::name(device), scenario.customer_of(device));
        writeln!(
            text,
            "{{user: {name}, password: {}, permissions: {{publish: [\"v1.{customer}.>\"], \
             subscribe: [\"v1.{customer}.{name}.rpc.>\"]}}}}",
            Users::password(device),
        )?;
    }
    text.push_str("] }\n");
    let path = folder.join("users.conf");
    fs::write(&path, text)?;
    Ok(path)
}
