//! Where is a call for how long? `switchboard trace`: one call, and what all processes know of it, drawn.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use boot::clock::since_1970;
use bus::inspect::{self, Account};
use bus::registry::Registry;
use clap::Args;
use rpc::{Budget, HopEnd, HopFilter, HopOf, HopRecord, Inspect, MAX_TOLD_HOPS, Outcome, Station};
use serde::Serialize;

use super::journal::{Names, draw};
use super::passage::Passage;
use super::{Made, check_body, check_timeout, make};
use crate::common::find;
use crate::common::output::{say, say_json};
use crate::common::reach::ReachArgs;

/// How long hops may take to be recorded behind the answer, before what is missing is missing.
const SETTLES_IN: Duration = Duration::from_secs(2);

#[derive(Args)]
#[command(after_help = "\
It is a call like any other, and the target carries it out. The hop \"caller\" is this command. Times are by each \
process' own clock, and by each NATS server's.

Of NATS the first hop is told, from this command to an authorizer: by which servers it came, through which accounts, \
and to whom it was given. Behind it each service sends a message of its own. Where the account of authorizers does not \
allow traces (allow_trace of its export), it is told as far as that account.

Examples:
  switchboard trace --from A1 --to A2 '{\"x\":1}'
  switchboard trace --from A1 --to A2 --timeout-ms 2000 --json")]
pub(crate) struct TraceArgs {
    /// The device that calls
    #[arg(long, value_name = "DEVICE")]
    from: String,
    /// The device that is called
    #[arg(long, value_name = "DEVICE")]
    to: String,
    /// What the target receives as params, any JSON
    #[arg(default_value = "null")]
    body: String,
    /// How long the call may take [default: the setting device_api.default_timeout_ms]
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// A call and what became of it, as JSON.
#[derive(Serialize)]
struct TraceView<'a> {
    #[serde(flatten)]
    account: &'a Account,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    /// The NATS servers that its first hop came by.
    nats: &'a [Passage],
    /// What the target answered.
    body: String,
}

pub(crate) async fn run(args: TraceArgs) -> anyhow::Result<ExitCode> {
    check_body(&args.body)?;
    let reached = args.reach.bus().await?;
    let bus = &reached.bus;
    let registry = Registry::open(bus).await.context("cannot open the registry")?;
    let (caller, from) = find::device_by_ending(&registry, &args.from).await.context("--from")?;
    let (target, to) = find::device_by_ending(&registry, &args.to).await.context("--to")?;
    let limits = &reached.settings.device_api;
    let timeout_ms = args.timeout_ms.unwrap_or(limits.default_timeout_ms);
    check_timeout(timeout_ms, limits.max_timeout_ms)?;
    let budget_ms = Budget::from_ms(timeout_ms);
    let budgets = (budget_ms, Budget::from_ms(0));
    let Made { call, outcome, body, reason, took, traced } =
        make(bus, (caller, &from), target, budgets, false, true, &args.body).await?;
    let began_us = u64::try_from(since_1970().saturating_sub(took).as_micros()).unwrap_or(u64::MAX);
    let of = HopOf {
        station: Station::Caller,
        call,
        from: caller,
        to: Some(target),
        party: None,
        budget_ms,
        protocol: None,
    };
    let mut own = HopRecord::new(of, began_us, HopEnd::GivenUp);
    own.ended(&outcome);
    own.took_us = u32::try_from(took.as_micros()).unwrap_or(u32::MAX);
    let filter = HopFilter { call: Some(call), ..HopFilter::default() };
    let until = Instant::now() + SETTLES_IN;
    let account = loop {
        let reports = inspect::ask(bus, &Inspect::Hops(filter.clone(), MAX_TOLD_HOPS)).await;
        let reports = reports.context("the processes cannot be asked")?;
        let account = Account::of(call, &reports, &[(bus.process(), own)]);
        if account.missing.is_none() || Instant::now() >= until {
            break account;
        }
    };
    let mut passages: Vec<Passage> =
        traced.into_iter().flat_map(|mut it| it.told()).filter_map(|told| Passage::read(&told)).collect();
    passages.sort_by_key(|it| it.began_us);
    let body = String::from_utf8_lossy(&body).into_owned();
    if args.json {
        say_json(&TraceView { account: &account, reason, nats: &passages, body })?;
    } else {
        draw(&account, &passages, &Names::from([(caller, from.name), (target, to.name)]));
        reason.iter().for_each(|reason| say(format_args!("  because {reason}")));
        if outcome == Outcome::Answered {
            say(format_args!("  answer: {body}"));
        }
    }
    Ok(match outcome {
        Outcome::Answered => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
