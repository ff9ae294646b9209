//! What does a device get when it calls another one? `switchboard call`, through authorizer and router as any call.

mod journal;
mod passage;
pub(crate) mod tail;
pub(crate) mod trace;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bus::registry::{Device, Registry};
use bus::{AskError, Bus, Traced};
use bytes::Bytes;
use clap::Args;
use rpc::{
    AuthenticateReply, AuthenticateRequest, Budget, Call, CallId, CredentialHash, DeviceId, Method, Outcome,
    Ticket, wire,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use switchboard_ingress::device_api;

use crate::common::api::Api;
use crate::common::find;
use crate::common::output::{note, say, say_json};
use crate::common::reach::{ReachArgs, usage};
use crate::common::via::{Via, path_segment};
use crate::common::way::WayArgs;

/// How much longer than the call itself its outcome is waited for.
const GRACE: Duration = Duration::from_secs(1);

/// Where a device's access token may stand.
const TOKEN_VARIABLE: &str = "SWITCHBOARD_DEVICE_TOKEN";

#[derive(Args)]
#[command(
    after_help = "\
Devices are named by id, by name, or by an ending that only one name has: A1 is \"Test Device A1\". What the caller \
would read goes to standard output, outcome and time to standard error. The exit status is 0 when the call was \
answered (or, with --oneway, delivered), else 1.

With --via the call is made as the device itself would make it: with its access token, over its protocol, without \
NATS. The target is one of those that the device may see.

Examples:
  switchboard call --from A1 --to A2 '{\"x\":1}'
  switchboard call --from A1 --to A2 --timeout-ms 2000 --connect-timeout-ms 2000
  switchboard call --from A1 --to A2 --json null | jq .outcome
  switchboard call --via http --token A1_TEST_TOKEN --to A2 '{\"x\":1}'
  switchboard call --via mqtt --at node.example:8883 --tls --token … --to A2 '{\"x\":1}'
  switchboard call --via http --at 10.0.0.7:8443 --tls-name node.example --token … --to A2 '{\"x\":1}'
  switchboard call --via coap --token A1_TEST_TOKEN --to A2 '{\"x\":1}'
  switchboard call show 5bd1…-2a                     what became of a call, hop by hop
  switchboard call list --from A1 --since 5m --outcome offline",
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    subcommand_value_name = "show|list",
    subcommand_help_heading = "What became of calls"
)]
pub(crate) struct CallArgs {
    #[command(subcommand)]
    verb: Option<journal::JournalVerb>,
    /// The device that calls
    #[arg(long, value_name = "DEVICE")]
    from: Option<String>,
    /// Make the call as a device, over this protocol
    #[arg(long, value_name = "PROTOCOL", value_enum, conflicts_with = "from")]
    via: Option<Via>,
    /// Access token of the device that calls, with --via [env: SWITCHBOARD_DEVICE_TOKEN, which no process list shows]
    #[arg(long, value_name = "TOKEN", requires = "via")]
    token: Option<String>,
    #[command(flatten)]
    way: WayArgs,
    /// The device that is called
    #[arg(long, value_name = "DEVICE", required = true)]
    to: Option<String>,
    /// What the target reads as method, where an API is asked [default: onMsg]
    #[arg(long, value_name = "METHOD", conflicts_with_all = ["via", "from"])]
    method: Option<String>,
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

impl CallArgs {
    fn named_target(&self) -> &str {
        self.to.as_deref().unwrap_or_default()
    }
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

pub(crate) async fn run(mut args: CallArgs) -> anyhow::Result<ExitCode> {
    if let Some(verb) = args.verb.take() {
        return journal::run(verb).await;
    }
    check_body(&args.body)?;
    if let Some(via) = args.via {
        // Not clap's: beside --from it says nothing, and is there for another command.
        let token = args.token.take().or_else(|| std::env::var(TOKEN_VARIABLE).ok());
        let token =
            token.ok_or_else(|| usage(format!("--via: which device calls? --token or {TOKEN_VARIABLE}")))?;
        return as_device(&args, via, &token).await;
    }
    if args.way.is_given() {
        return Err(usage("--at and what is about TLS say where a device connects: they go with --via"));
    }
    if let Some(api) = args.reach.api()? {
        return as_application(&args, &api).await;
    }
    if args.from.is_none() {
        let fault =
            "which device calls? --from names it; through an API (--api) it is the application itself";
        return Err(usage(fault));
    }
    let reached = args.reach.bus().await?;
    let registry = Registry::open(&reached.bus).await.context("cannot open the registry")?;
    let from = args.from.as_deref().unwrap_or_default();
    let (caller, from) = find::device_by_ending(&registry, from).await.context("--from")?;
    let (target, to) = find::device_by_ending(&registry, args.named_target()).await.context("--to")?;

    let limits = &reached.settings.device_api;
    let timeout_ms = args.timeout_ms.unwrap_or(limits.default_timeout_ms);
    check_timeout(timeout_ms, limits.max_timeout_ms)?;
    let connect_ms = args.connect_timeout_ms.unwrap_or(limits.default_connect_timeout_ms.min(timeout_ms));
    if connect_ms > timeout_ms {
        let fault = format!("--connect-timeout-ms must be at most the timeout of the call, {timeout_ms}");
        return Err(usage(fault));
    }
    let budgets = (Budget::from_ms(timeout_ms), Budget::from_ms(connect_ms));
    let Made { outcome, body, reason, took, .. } =
        make(&reached.bus, (caller, &from), target, budgets, args.oneway, false, &args.body).await?;
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

/// What a target is to receive, as it was typed.
fn check_body(typed: &str) -> anyhow::Result<()> {
    match serde_json::from_str::<serde::de::IgnoredAny>(typed) {
        Ok(_) => Ok(()),
        Err(error) => {
            Err(usage(format!("the body must be JSON, as '{{\"x\":1}}'; {typed:?} is not: {error}")))
        }
    }
}

fn check_timeout(timeout_ms: u32, max_ms: u32) -> anyhow::Result<()> {
    if (1..=max_ms).contains(&timeout_ms) {
        return Ok(());
    }
    Err(usage(format!("--timeout-ms must be 1 to {max_ms} (device_api.max_timeout_ms)")))
}

/// A call that was made.
struct Made {
    call: CallId,
    outcome: Outcome,
    body: Bytes,
    /// Why, where there is more to say than the outcome.
    reason: Option<&'static str>,
    took: Duration,
    /// What NATS servers tell of its first hop.
    traced: Option<Traced>,
}

/// Makes a call as a device, whose record says who it is.
async fn make(
    bus: &Bus,
    (caller, from): (DeviceId, &Device),
    target: DeviceId,
    (budget_ms, connect_budget_ms): (Budget, Budget),
    oneway: bool,
    is_traced: bool,
    body: &str,
) -> anyhow::Result<Made> {
    let (node, visit) = (bus.process(), 1);
    let id = CallId { node, serial: 1 };
    let ticket = match ticket(bus, &from.credential, visit).await {
        Ok(ticket) => Some(ticket),
        Err(reason) => {
            let (outcome, body, took) = (Outcome::Unavailable, Bytes::new(), Duration::ZERO);
            return Ok(Made { call: id, outcome, body, reason: Some(reason), took, traced: None });
        }
    };
    let call = Call {
        call: id,
        caller,
        caller_name: from.name.clone(),
        visit,
        ticket,
        target,
        budget_ms,
        until: None,
        connect_budget_ms,
        protocol: None,
        oneway,
        traceparent: None,
        app: None,
    };
    let message = wire::encode(&call, body.as_bytes());
    let started = Instant::now();
    let wait = budget_ms.as_duration() + GRACE;
    let (reply, traced) = match is_traced {
        true => {
            let (reply, traced) = bus.ask_traced(bus.subjects().call(), message, wait).await;
            (reply, Some(traced))
        }
        false => (bus.ask(bus.subjects().call(), message, wait).await, None),
    };
    let took = started.elapsed();
    let (outcome, body, reason) = read(reply)?;
    Ok(Made { call: id, outcome, body, reason, took, traced })
}

/// How long an authorizer may take to say who the caller is.
const AUTHENTICATE_WAIT: Duration = Duration::from_secs(5);

/// The authorizer's word that the caller is here: who may read the registry knows the hash of its token.
async fn ticket(bus: &Bus, credential: &CredentialHash, visit: u64) -> Result<Ticket, &'static str> {
    let request = AuthenticateRequest { credential: credential.clone(), node: bus.process(), visit };
    let message = wire::encode(&request, b"");
    let reply = bus.ask(bus.subjects().authenticate(), message, AUTHENTICATE_WAIT).await;
    let reply = reply.map_err(|error| match error {
        AskError::NoResponders => NO_AUTHORIZER,
        _ => "no authorizer says who the caller is",
    })?;
    match wire::decode::<AuthenticateReply>(&reply) {
        Ok((AuthenticateReply::Identity(identity), _)) => Ok(identity.ticket),
        Ok((AuthenticateReply::Refused, _)) => {
            Err("the caller has just been given another token, or removed")
        }
        Ok((AuthenticateReply::Unavailable, _)) => Err("the authorizer does not know how things are now"),
        Err(_) => Err("the authorizer's answer cannot be read"),
    }
}

const NO_AUTHORIZER: &str = "no authorizer is there";

/// The call's outcome, the body of an answer, and why, where there is more to say.
fn read(reply: Result<Bytes, AskError>) -> anyhow::Result<(Outcome, Bytes, Option<&'static str>)> {
    Ok(match reply {
        Ok(reply) => {
            let (outcome, body) = wire::decode::<Outcome>(&reply).context("the outcome cannot be read")?;
            (outcome, body, None)
        }
        Err(AskError::NoResponders) => (Outcome::Unavailable, Bytes::new(), Some(NO_AUTHORIZER)),
        Err(AskError::Expired) => (Outcome::Unavailable, Bytes::new(), Some("no outcome came in time")),
        Err(error) => bail!("{error}"),
    })
}

/// A device of `getDevices`.
#[derive(Deserialize)]
struct Listed {
    id: DeviceId,
    name: String,
}

/// The call as the device makes it that has `token`.
async fn as_device(args: &CallArgs, via: Via, token: &str) -> anyhow::Result<ExitCode> {
    let settings = args.reach.settings()?;
    let at = args.way.way(via, &settings)?;
    let (target, name) = match args.named_target().parse::<DeviceId>() {
        Ok(id) => (id, id.to_string()),
        Err(_) => {
            let listed = via.ask(&at, token, r#"{"method":"getDevices"}"#, LIST_WAIT).await?;
            listed_target(&listed, args.named_target())?
        }
    };
    let timeout_ms = args.timeout_ms.unwrap_or(settings.device_api.default_timeout_ms);
    let connect = args.connect_timeout_ms.map(|ms| format!(r#""connectTimeout":{ms},"#)).unwrap_or_default();
    let (oneway, body) = (args.oneway, &args.body);
    let request = format!(
        "{{\"method\":\"sendMsg\",\"params\":{{\"deviceId\":\"{target}\",\"timeout\":{timeout_ms},{connect}\
         \"oneway\":{oneway},\"body\":{body}}}}}"
    );
    let started = Instant::now();
    let wait = Duration::from_millis(timeout_ms.into()) + GRACE;
    let read = via.ask(&at, token, &request, wait).await?;
    let ms = started.elapsed().as_secs_f64() * 1000.0;
    if args.json {
        let body: &RawValue = serde_json::from_str(&read).context("the answer is not JSON")?;
        say_json(&DeviceCallView { ms: (ms * 1000.0).round() / 1000.0, to: target, body })?;
    } else {
        note(format_args!("-> {name} in {ms:.1} ms"));
        say(&read);
    }
    // Whether that is an answer or an outcome only the system knows; a device reads the same.
    let failed = serde_json::from_str::<Failure>(&read).is_ok_and(|failure| !failure.error.is_empty());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// How an application's call went, as JSON.
#[derive(Serialize)]
struct AppCallView<'a> {
    outcome: &'a str,
    /// May the target have executed it?
    seen: &'a str,
    ms: f64,
    to: &'a str,
    /// The target's answer, or what went wrong.
    body: &'a RawValue,
}

/// The call as the application makes it whose key an API is shown.
async fn as_application(args: &CallArgs, api: &Api) -> anyhow::Result<ExitCode> {
    if args.from.is_some() {
        let fault = "through an API the application itself calls: leave --from out, or name --nats URL";
        return Err(usage(fault));
    }
    let params: &RawValue = serde_json::from_str(&args.body)?;
    let wanted = AppCall {
        method: args.method.as_deref(),
        params,
        timeout: args.timeout_ms,
        connect_timeout: args.connect_timeout_ms,
        oneway: args.oneway,
    };
    let path = format!("devices/{}/calls", path_segment(args.named_target()));
    let started = Instant::now();
    let wait = args.timeout_ms.map_or(APP_CALL_WAIT, |ms| Duration::from_millis(ms.into()) + APP_CALL_GRACE);
    let response =
        api.exchange(hyper::Method::POST, &path, Some(serde_json::to_string(&wanted)?), wait).await?;
    let ms = (started.elapsed().as_secs_f64() * 1_000_000.0).round() / 1000.0;
    let said = |name: &str| response.headers().get(name).and_then(|it| it.to_str().ok()).unwrap_or("refused");
    let (outcome, seen) = (said("switchboard-outcome"), said("switchboard-seen"));
    let read = std::str::from_utf8(response.body()).context("the answer is not text")?;
    let read = if read.is_empty() { "null" } else { read };
    if args.json {
        let body: &RawValue = serde_json::from_str(read).context("the answer is not JSON")?;
        say_json(&AppCallView { outcome, seen, ms, to: args.named_target(), body })?;
    } else {
        note(format_args!(
            "-> {}: {outcome} in {ms:.1} ms; may the device have seen it: {seen}",
            args.named_target()
        ));
        say(read);
    }
    Ok(if response.status().is_success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A call, as an API reads it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct AppCall<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<&'a str>,
    params: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    connect_timeout: Option<u32>,
    oneway: bool,
}

/// How long a call may take that names no time: no API lets one take longer.
const APP_CALL_WAIT: Duration = Duration::from_secs(600);
/// How much longer than its call an API's answer is waited for.
const APP_CALL_GRACE: Duration = Duration::from_secs(5);

/// How long `getDevices` may take.
const LIST_WAIT: Duration = Duration::from_secs(10);

/// What a device reads when a call fails.
#[derive(Deserialize)]
struct Failure {
    error: String,
}

/// How a device's call went, as JSON.
#[derive(Serialize)]
struct DeviceCallView<'a> {
    ms: f64,
    to: DeviceId,
    /// What the device read.
    body: &'a RawValue,
}

/// The device that is meant, by its name or an ending of it, among those that the caller may see.
fn listed_target(listed: &str, named: &str) -> anyhow::Result<(DeviceId, String)> {
    let Ok(listed) = serde_json::from_str::<Vec<Listed>>(listed) else {
        bail!("the devices that may be called cannot be told: {listed}");
    };
    let by_name = listed.iter().find(|device| device.name == named);
    let ending = format!(" {named}");
    let mut by_ending = listed.iter().filter(|device| device.name.ends_with(&ending));
    match (by_name, by_ending.next(), by_ending.next()) {
        (Some(device), _, _) | (None, Some(device), None) => Ok((device.id, device.name.clone())),
        (None, Some(_), Some(_)) => bail!("--to: several devices have a name that ends in {named:?}"),
        (None, None, _) => {
            let names: Vec<_> = listed.iter().map(|device| device.name.as_str()).collect();
            bail!("--to: there is no device {named:?} among those that may be called: {}", names.join(", "))
        }
    }
}
