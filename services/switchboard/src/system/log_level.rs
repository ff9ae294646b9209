//! How is more logged for a while, by processes that run? `switchboard log-level`

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bus::inspect::{self, SERVICES};
use clap::Args;
use rpc::{Instruct, Instructed};
use serde::Serialize;

use crate::audit::time_span;
use crate::common::output::{count, note, say, say_json};
use crate::common::reach::{ReachArgs, Reached};

#[derive(Args)]
#[command(after_help = "\
It ends by itself: then each process logs what its settings say (log.level), which also say so for good.

Examples:
  switchboard log-level authorizer=debug --for 5m      every hop of every call, at the authorizers
  switchboard log-level debug --for 30s                at all processes
  switchboard log-level router=info,switchboard_router::claims=debug
  switchboard log-level info --for 0s                  back to the settings at once")]
pub(crate) struct LogLevelArgs {
    /// A level, or a filter as log.level has it; SERVICE= before it: of that service alone
    #[arg(value_name = "[SERVICE=]FILTER")]
    wanted: String,
    /// For how long, as 90s, 30m or 12h; a day at most
    #[arg(long = "for", value_name = "TIME", value_parser = time_span, default_value = "5m")]
    lasts: Duration,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// What a process said to it, as JSON.
#[derive(Serialize)]
struct InstructedView {
    service: String,
    process: String,
    fault: Option<String>,
}

pub(crate) async fn run(args: LogLevelArgs) -> anyhow::Result<ExitCode> {
    let (services, filter) = addressed(&args.wanted);
    let lasts_s = u32::try_from(args.lasts.as_secs()).unwrap_or(u32::MAX);
    let Reached { bus, .. } = args.reach.bus().await?;
    let told = inspect::instruct(&bus, services, &Instruct::Log(filter.to_owned(), lasts_s)).await;
    let told = told.context("the processes cannot be told")?;
    if told.is_empty() {
        bail!("no process answers: none of {} is there, or all are of an older version", services.join(", "));
    }
    let faults: Vec<&str> = told.iter().filter_map(|it| it.fault.as_deref()).collect();
    let view = |it: &Instructed| InstructedView {
        service: it.service.clone(),
        process: it.process.to_string(),
        fault: it.fault.clone(),
    };
    if args.json {
        say_json(&told.iter().map(view).collect::<Vec<_>>())?;
    } else if let Some(fault) = faults.first() {
        bail!("{} refused: {fault}", count(faults.len(), "process"));
    } else {
        for it in &told {
            say(format_args!("{} {}", it.service, it.process));
        }
        note(format_args!("{} for {} s: {filter}", count(told.len(), "process"), lasts_s));
    }
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Which services are meant, and what they are to log.
fn addressed(wanted: &str) -> (&[&'static str], &str) {
    let named = wanted.split_once('=').and_then(|(named, filter)| {
        let place = SERVICES.iter().position(|service| *service == named)?;
        Some((SERVICES.get(place..=place)?, filter))
    });
    named.unwrap_or((&SERVICES, wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_stands_before_what_it_logs() {
        assert_eq!(addressed("authorizer=debug"), (["authorizer"].as_slice(), "debug"));
        assert_eq!(addressed("router=info,bus=debug"), (["router"].as_slice(), "info,bus=debug"));
        for all in ["debug", "switchboard_router=debug", "bus=debug,info"] {
            assert_eq!(addressed(all), (SERVICES.as_slice(), all));
        }
    }
}
