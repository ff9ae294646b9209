//! How does a system of ours live? On this machine by `switchboard up` and `switchboard cluster`: one process or many,
//! with a NATS server of their own; beyond its end by `switchboard backup` and `switchboard restore`. And how is one
//! that runs anywhere? `status`, `doctor` and `log-level`.

pub(crate) mod access;
mod addresses;
pub(crate) mod backup;
pub(crate) mod cluster;
mod data_dir;
mod demo;
pub(crate) mod doctor;
mod guard;
pub(crate) mod health;
pub(crate) mod log_level;
mod monitor;
mod nats;
mod ports;
pub(crate) mod restore;
pub(crate) mod status;
pub(crate) mod up;

use std::process::ExitCode;
use std::time::Duration;

use boot::config::Log;

use crate::common::output::complain;

/// How long what still runs may take once the system has ended.
const LAST_TASKS: Duration = Duration::from_secs(2);

/// Lives `system` to its end, on so many threads (0: one for each core), with the logs as they are set.
fn live(log: &Log, threads: usize, system: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let ended = boot::logs::init("switchboard", log).map_err(anyhow::Error::from).and_then(|_| {
        let runtime = boot::runtime(threads)?;
        let ended = runtime.block_on(system);
        runtime.shutdown_timeout(LAST_TASKS);
        ended
    });
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}
