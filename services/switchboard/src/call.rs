//! What does a device get when it calls another one? `switchboard call`, through authorizer and router as any call.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bus::AskError;
use bus::registry::Registry;
use bytes::Bytes;
use clap::Args;
use rpc::{Budget, Call, CallId, Method, Outcome, wire};
use serde::Serialize;
use serde_json::value::RawValue;
use switchboard_ingress::device_api;

use crate::find;
use crate::output::{note, say, say_json};
use crate::reach::ReachArgs;

/// How much longer than the call itself its outcome is waited for.
const GRACE: Duration = Duration::from_secs(1);

#[derive(Args)]
#[command(after_help = "\
Devices are named by id, by name, or by an ending that only one name has: A1 is \"Test Device A1\". What the caller \
would read goes to standard output, outcome and time to standard error. The exit status is 0 when the call was \
answered (or, with --oneway, delivered), else 1.

Examples:
  switchboard call --from A1 --to A2 '{\"x\":1}'
  switchboard call --from A1 --to A2 --timeout-ms 2000 --connect-timeout-ms 2000
  switchboard call --from A1 --to A2 --json null | jq .outcome")]
pub(crate) struct CallArgs {
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
    /// How long an offline target is waited for [default: the setting device_api.default_connect_timeout_ms]
    #[arg(long, value_name = "MS")]
    connect_timeout_ms: Option<u32>,
    /// Want no answer, only to know that the target's connection took the call
    #[arg(long)]
    oneway: bool,
    /// Print JSON: outcome, time and body
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

/// How the call went, as JSON.
#[derive(Serialize)]
struct CallView<'a> {
    outcome: &'a str,
    /// Why, where there is more to say than the outcome.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    ms: f64,
    from: &'a str,
    to: &'a str,
    /// What the caller would read.
    body: &'a RawValue,
}

pub(crate) async fn run(args: CallArgs) -> anyhow::Result<ExitCode> {
    serde_json::from_str::<serde::de::IgnoredAny>(&args.body)
        .with_context(|| format!("the body must be JSON, as '{{\"x\":1}}'; {:?} is not", args.body))?;
    let reached = args.reach.bus().await?;
    let registry = Registry::open(&reached.bus).await.context("cannot open the registry")?;
    let known = registry.load().await?;
    let (caller, from) = find::device_by_ending(&known, &args.from).context("--from")?;
    let (target, to) = find::device_by_ending(&known, &args.to).context("--to")?;

    let limits = &reached.settings.device_api;
    let timeout_ms = args.timeout_ms.unwrap_or(limits.default_timeout_ms);
    if !(1..=limits.max_timeout_ms).contains(&timeout_ms) {
        bail!("--timeout-ms must be 1 to {} (device_api.max_timeout_ms)", limits.max_timeout_ms);
    }
    let connect_ms = args.connect_timeout_ms.unwrap_or(limits.default_connect_timeout_ms.min(timeout_ms));
    if connect_ms > timeout_ms {
        bail!("--connect-timeout-ms must be at most the timeout of the call, {timeout_ms}");
    }
    let call = Call {
        call: CallId { node: reached.bus.process(), serial: 1 },
        caller,
        target,
        budget_ms: Budget::from_ms(timeout_ms),
        connect_budget_ms: Budget::from_ms(connect_ms),
        oneway: args.oneway,
        traceparent: None,
    };
    let message = wire::encode(&call, args.body.as_bytes())?;
    let started = Instant::now();
    let reply =
        reached.bus.ask(reached.bus.subjects().call(), message, call.budget_ms.as_duration() + GRACE).await;
    let took = started.elapsed();
    let (outcome, body, reason) = match reply {
        Ok(reply) => {
            let (outcome, body) = wire::decode::<Outcome>(&reply).context("the outcome cannot be read")?;
            (outcome, body, None)
        }
        Err(AskError::NoResponders) => (Outcome::Unavailable, Bytes::new(), Some("no authorizer is there")),
        Err(AskError::Expired) => (Outcome::Unavailable, Bytes::new(), Some("no outcome came in time")),
        Err(error) => bail!("{error}"),
    };
    let read = device_api::answer(Method::SendMsg, &outcome, body);
    let read = std::str::from_utf8(&read).context("the answer is not text")?;
    let ms = took.as_secs_f64() * 1000.0;
    if args.json {
        let body = RawValue::from_string(read.to_owned()).context("the answer is not JSON")?;
        let (from, to) = (from.name.as_str(), to.name.as_str());
        let ms = (ms * 1000.0).round() / 1000.0;
        say_json(&CallView { outcome: outcome.as_str(), reason, ms, from, to, body: &body })?;
    } else {
        let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        note(format_args!("{} -> {}: {}{reason} in {ms:.1} ms", from.name, to.name, outcome.as_str()));
        say(read);
    }
    Ok(match outcome {
        Outcome::Answered | Outcome::Delivered => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
