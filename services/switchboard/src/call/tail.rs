//! Which calls end now? `switchboard tail`, live over all processes.

use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::Context;
use bus::audit::{NO_TENANT, rfc3339};
use bus::changes::entry;
use bus::inspect::Listener;
use bus::registry::Registry;
use clap::Args;
use rpc::{DeviceId, HopEnd, HopFilter, NodeId, Party, TappedHop, TenantId};
use serde::Serialize;

use super::journal::{self, CallView, Names, end, named};
use crate::common::find;
use crate::common::output::{note, say};
use crate::common::reach::{ReachArgs, Reached, usage};
use crate::common::recorded::{self, ReasonArgs};

/// Names of devices that are kept in mind.
const MAX_NAMES: usize = 10_000;
/// The exit status after Ctrl-C, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;

#[derive(Args)]
#[command(after_help = "\
One line for each call, when it ends where it came in. A process tells at most 200 a second, and how many it left out. \
While nobody looks it costs nothing. With --bodies this command records who looked in the audit, before anything is \
shown; what else has its NATS user's password can look without.

Examples:
  switchboard tail --outcome offline
  switchboard tail --customer Waterworks --json
  switchboard tail --from A1 --bodies 256 --why 'ticket 4711'
  switchboard tail --hops --to A2                  every hop, not only the caller's")]
pub(crate) struct TailArgs {
    /// Only calls of this device (id or name), or of the application of this id
    #[arg(long, value_name = "DEVICE")]
    from: Option<String>,
    /// Only calls of this device
    #[arg(long, value_name = "DEVICE")]
    to: Option<String>,
    /// Only calls that devices of this customer make
    #[arg(long)]
    customer: Option<String>,
    /// Only those that ended so, as offline, denied, timed_out or answered
    #[arg(long, value_parser = end)]
    outcome: Option<HopEnd>,
    /// Every hop, not only where calls come in
    #[arg(long, conflicts_with = "bodies")]
    hops: bool,
    /// Show so many bytes of each call's body and of its answer, 4096 at most
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(1..=4_096))]
    bodies: Option<u32>,
    /// Print JSON, one line for each call
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reason: ReasonArgs,
    #[command(flatten)]
    reach: ReachArgs,
}

/// A hop as JSON.
#[derive(Serialize)]
struct TailView<'a> {
    hop: &'static str,
    process: NodeId,
    #[serde(flatten)]
    call: CallView,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<&'a str>,
}

pub(crate) async fn run(args: TailArgs) -> anyhow::Result<ExitCode> {
    let names_somebody = args.from.is_some() || args.to.is_some() || args.customer.is_some();
    if args.bodies.is_some() && !names_somebody {
        return Err(usage("--bodies shows what devices send: say of whom, with --from, --to or --customer"));
    }
    let Reached { bus, settings } = args.reach.bus().await?;
    let registry = Registry::open(&bus).await.context("cannot open the registry")?;
    let (filter, whose) = filter(&args, &registry).await?;
    if let Some(bytes) = args.bodies {
        let devices = filter.from.into_iter().chain(filter.to);
        let what = format!("{bytes} bytes of each body{}", said(&args));
        let recorder = args.reason.clone().recorder(&bus, &settings);
        let nothing = async { anyhow::Ok(()) };
        recorded::change(&recorder, vec![(whose, entry("tail.bodies", devices, what))], nothing).await?;
    }
    let mut listener = Listener::new(&bus, filter, args.bodies.unwrap_or_default());
    note("Calls are shown as they end, until Ctrl-C.");
    let mut names = Names::new();
    let watch = async {
        loop {
            match listener.next().await.context("NATS is away")? {
                Ok(tapped) => {
                    for told in &tapped.hops {
                        tell(&args, tapped.process, told, &registry, &mut names).await?;
                    }
                    if tapped.left_out > 0 {
                        let (service, process) = (&tapped.service, tapped.process);
                        note(format_args!("{service} {process} left out {}", tapped.left_out));
                    }
                }
                Err(refused) => {
                    let fault = refused.fault.unwrap_or_default();
                    note(format_args!("{} {} tells nothing: {fault}", refused.service, refused.process));
                }
            }
        }
    };
    tokio::select! {
        ended = watch => ended,
        _ = tokio::signal::ctrl_c() => Ok(EXIT_INTERRUPTED.into()),
    }
}

/// Which hops, and whose they are.
async fn filter(args: &TailArgs, registry: &Registry) -> anyhow::Result<(HopFilter, TenantId)> {
    let device = async |named: &Option<String>| match named {
        None => anyhow::Ok(None),
        Some(named) => match named.parse::<DeviceId>() {
            Ok(id) => Ok(Some((id, registry.device(id).await?.map(|device| device.tenant)))),
            Err(_) => {
                Ok(Some(find::device_by_ending(registry, named).await.map(|(id, it)| (id, Some(it.tenant)))?))
            }
        },
    };
    let from = device(&args.from).await.context("--from")?;
    let to = device(&args.to).await.context("--to")?;
    let customer = match &args.customer {
        None => None,
        Some(named) => {
            let known = registry.load().await?;
            let (id, customer) = find::customer(&known, named, None).context("--customer")?;
            Some((id, customer.tenant))
        }
    };
    let tenant = from.iter().chain(&to).find_map(|(_, tenant)| *tenant);
    let whose = customer.map(|(_, tenant)| tenant).or(tenant).unwrap_or(NO_TENANT);
    let filter = HopFilter {
        from: from.map(|(id, _)| id),
        to: to.map(|(id, _)| id),
        party: customer.map(|(id, tenant)| Party::of(tenant, Some(id))),
        end: args.outcome,
        first_only: !args.hops,
        ..HopFilter::default()
    };
    Ok((filter, whose))
}

/// The filter in words, for the audit.
fn said(args: &TailArgs) -> String {
    let named = [("from", &args.from), ("to", &args.to), ("customer", &args.customer)];
    let said = named.into_iter().filter_map(|(name, it)| it.as_ref().map(|it| format!(", {name} {it}")));
    said.collect()
}

async fn tell(
    args: &TailArgs,
    process: NodeId,
    told: &TappedHop,
    registry: &Registry,
    names: &mut Names,
) -> anyhow::Result<()> {
    let TappedHop { hop, request, answer } = told;
    let (request, answer) = (request.as_deref(), answer.as_deref());
    let call = CallView::from(hop);
    if args.json {
        say(serde_json::to_string(&TailView { hop: hop.station.as_str(), process, call, request, answer })?);
        return Ok(());
    }
    if names.len() >= MAX_NAMES {
        names.clear();
    }
    let unknown: Vec<DeviceId> =
        [hop.from, hop.to].into_iter().filter(|id| !names.contains_key(id)).collect();
    if !unknown.is_empty() {
        // Who is in the registry no more is looked for once.
        names.extend(unknown.iter().map(|id| (*id, id.to_string())));
        names.extend(journal::names(registry, unknown).await);
    }
    let ended = rfc3339(UNIX_EPOCH + Duration::from_micros(hop.ended_us()));
    let at = if args.hops { format!(" {}", hop.station.as_str()) } else { String::new() };
    let (from, to, words) = (named(names, Some(hop.from)), named(names, Some(hop.to)), hop.words());
    say(format_args!("{ended} {}{at} {from} -> {to}: {words} in {:.2} ms", call.call, call.ms));
    for (what, body) in [("sent", request), ("answered", answer)] {
        body.iter().for_each(|body| say(format_args!("  {what} {body}")));
    }
    Ok(())
}
