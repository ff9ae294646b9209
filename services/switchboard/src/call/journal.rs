//! What became of a call, and which calls were there? `switchboard call show` and `call list`, asked of all processes.

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, bail};
use boot::clock::since_1970;
use bus::audit::rfc3339;
use bus::inspect::{self, Account, Hop};
use bus::registry::Registry;
use clap::{Args, Subcommand};
use rpc::{AppId, CallId, DeviceId, HopEnd, HopFilter, HopRecord, Inspect, MAX_TOLD_HOPS, NodeId, Station};
use serde::Serialize;

use super::passage::Passage;
use crate::audit::time_span;
use crate::common::find;
use crate::common::output::{count, grouped, note, say, say_json};
use crate::common::reach::{ReachArgs, Reached};
use crate::common::table::Table;

/// Characters of the bar that shows when a hop was, and for how long.
const BAR: usize = 30;

#[derive(Subcommand)]
pub(crate) enum JournalVerb {
    /// Show what became of a call: each hop with its time, and which one is missing
    Show(ShowArgs),
    /// List the calls that processes remember, the newest last
    List(ListArgs),
}

#[derive(Args)]
#[command(after_help = "\
A call's id is in the log lines about it, in the audit, and in what the caller reads beside the answer: the header \
Switchboard-Call, the user property call. Processes remember their last 100,000 hops (journal.max_hops), for as long \
as they run. Times are by each process' own clock.

Examples:
  switchboard call show 5bd1e995a1b2c3d4-2a
  switchboard call show 5bd1e995a1b2c3d4-2a --json | jq .missing")]
pub(crate) struct ShowArgs {
    /// The call's id
    call: CallId,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Args)]
#[command(after_help = "\
Examples:
  switchboard call list --from A1 --since 5m --outcome offline
  switchboard call list --since 1h --limit 1000 --json")]
pub(crate) struct ListArgs {
    /// Only calls of this device (id or name), or of the application of this id
    #[arg(long, value_name = "DEVICE")]
    from: Option<String>,
    /// Only calls of this device
    #[arg(long, value_name = "DEVICE")]
    to: Option<String>,
    /// Only those that ended so, as offline, denied, timed_out or answered
    #[arg(long, value_parser = end)]
    outcome: Option<HopEnd>,
    /// Only of the time since, as 90s, 30m, 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = time_span, default_value = "1h")]
    since: Duration,
    /// At most so many, the newest; 1 to 2000
    #[arg(long, value_name = "N", default_value_t = 50)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_TOLD_HOPS)))]
    limit: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

pub(crate) async fn run(verb: JournalVerb) -> anyhow::Result<ExitCode> {
    match verb {
        JournalVerb::Show(args) => show(args).await,
        JournalVerb::List(args) => list(args).await,
    }
}

/// The outcome of this name.
pub(super) fn end(name: &str) -> Result<HopEnd, String> {
    let names = || HopEnd::ALL.map(HopEnd::as_str).join(", ");
    HopEnd::parse(name).ok_or_else(|| format!("it is one of {}", names()))
}

async fn show(ShowArgs { call, json, reach }: ShowArgs) -> anyhow::Result<ExitCode> {
    let Reached { bus, .. } = reach.bus().await?;
    let account = inspect::account(&bus, call).await.context("the processes cannot be asked")?;
    if account.asked == 0 {
        bail!("no process answers: none is there, or all are of an older version");
    }
    if json {
        say_json(&account)?;
    } else {
        let names = match Registry::open(&bus).await {
            Ok(registry) => names(&registry, account.from.into_iter().chain(account.to)).await,
            Err(_) => Names::new(),
        };
        draw(&account, &[], &names);
    }
    Ok(if account.hops.is_empty() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What devices and applications are named, of those that the registry has.
pub(super) type Names = BTreeMap<DeviceId, String>;

pub(super) async fn names(registry: &Registry, ids: impl IntoIterator<Item = DeviceId>) -> Names {
    let mut names = Names::new();
    let mut no_devices = Vec::new();
    for id in ids.into_iter().filter(|id| !id.0.is_nil()).collect::<BTreeSet<_>>() {
        match registry.device(id).await {
            Ok(Some(device)) => drop(names.insert(id, device.name)),
            Ok(None) | Err(_) => no_devices.push(id),
        }
    }
    if !no_devices.is_empty()
        && let Ok(known) = registry.load_places().await
    {
        let app = |id: DeviceId| Some((id, known.apps.get(&AppId(id.0))?.name.clone()));
        names.extend(no_devices.into_iter().filter_map(app));
    }
    names
}

pub(super) fn named(names: &Names, id: Option<DeviceId>) -> String {
    match id.filter(|id| !id.0.is_nil()).map(|id| (names.get(&id), id)) {
        Some((Some(name), _)) => name.clone(),
        Some((None, id)) => id.to_string(),
        None => "?".to_owned(),
    }
}

/// The account as a person reads it: a line for each hop, with a bar that shows when it was; behind the first, the NATS
/// servers that it went on by.
pub(super) fn draw(account: &Account, passages: &[Passage], names: &Names) {
    let (from, to) = (named(names, account.from), named(names, account.to));
    let outcome = account.outcome.unwrap_or("nothing is known");
    say(format_args!("call {}: {from} -> {to}: {outcome}", account.call));
    let Some(first) = account.hops.first() else {
        return account.missing.iter().for_each(|missing| say(format_args!("  {missing}")));
    };
    let begun = rfc3339(UNIX_EPOCH + Duration::from_micros(first.began_us));
    say(format_args!("  begun {begun}, with {} ms", first.budget_ms));
    let mut lines: Vec<Line> = account.hops.iter().map(Line::of).collect();
    lines.splice(1..1, passages.iter().map(Line::through));
    let mut table = Table::new(&["  AT", "PROCESS", "AFTER MS", "TOOK MS", "", "END"]);
    let bars = bars(&lines);
    for (Line { at, by, began_us, ms, end }, bar) in lines.into_iter().zip(bars) {
        let after = (began_us as f64 - first.began_us as f64) / 1_000.0;
        table.row([format!("  {at}"), by, format!("{after:+.2}"), format!("{ms:.2}"), bar, end]);
    }
    table.print();
    account.missing.iter().for_each(|missing| say(format_args!("  missing: {missing}")));
}

/// Of the drawing.
struct Line<'a> {
    at: &'a str,
    /// Process or server.
    by: String,
    began_us: u64,
    ms: f64,
    end: String,
}

impl<'a> Line<'a> {
    fn of(hop: &'a Hop) -> Self {
        Line { at: hop.at, by: hop.process.to_string(), began_us: hop.began_us, ms: hop.ms, end: told(hop) }
    }

    fn through(passage: &Passage) -> Self {
        let Passage { began_us, ms, .. } = *passage;
        Line { at: "nats", by: passage.server_shown(), began_us, ms, end: passage.words() }
    }

    fn ended_us(&self) -> u64 {
        self.began_us + (self.ms * 1_000.0) as u64
    }
}

fn told(hop: &Hop) -> String {
    let mut words = vec![hop.end.to_owned()];
    // When a router gave up the node that had it: that is when the node was found to be gone.
    let gave_up = hop.at == Station::Router.as_str() && hop.end == HopEnd::Lost.as_str();
    let ended = UNIX_EPOCH + Duration::from_micros(hop.began_us + (hop.ms * 1_000.0) as u64);
    words.extend(gave_up.then(|| format!("at {}", rfc3339(ended))));
    words.extend(hop.limit.map(|limit| format!("limit {limit}")));
    words.extend(hop.node.map(|node| format!("to node {node}")));
    words.extend((hop.policy_version > 0).then(|| format!("policy version {}", hop.policy_version)));
    words.extend(hop.protocol.map(|protocol| protocol.as_str().to_owned()));
    words.join(", ")
}

/// When each was between the beginning of the first and the end of the last.
fn bars(lines: &[Line<'_>]) -> Vec<String> {
    let start = lines.iter().map(|line| line.began_us).min().unwrap_or(0);
    let whole = lines.iter().map(Line::ended_us).max().unwrap_or(0).saturating_sub(start).max(1);
    let at = |us: u64| ((us - start) as f64 / whole as f64 * BAR as f64) as usize;
    let bar = |line: &Line<'_>| {
        let from = at(line.began_us).min(BAR - 1);
        let to = at(line.ended_us()).clamp(from + 1, BAR);
        format!("{}{}{}", " ".repeat(from), "█".repeat(to - from), " ".repeat(BAR - to))
    };
    lines.iter().map(bar).collect()
}

/// A call of the list, as JSON.
#[derive(Serialize)]
pub(super) struct CallView {
    pub(super) call: String,
    at: String,
    from: DeviceId,
    to: DeviceId,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'static str>,
    pub(super) ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
}

impl From<&HopRecord> for CallView {
    fn from(hop: &HopRecord) -> Self {
        CallView {
            call: hop.call.to_string(),
            at: rfc3339(UNIX_EPOCH + Duration::from_micros(hop.began_us)),
            from: hop.from,
            to: hop.to,
            outcome: hop.end.as_str(),
            limit: hop.limit.map(|limit| limit.as_str()),
            ms: f64::from(hop.took_us) / 1_000.0,
            protocol: hop.protocol.map(|protocol| protocol.as_str()),
        }
    }
}

async fn list(args: ListArgs) -> anyhow::Result<ExitCode> {
    let Reached { bus, .. } = args.reach.bus().await?;
    let registry = Registry::open(&bus).await.ok();
    let device = async |named: &Option<String>| match (named, &registry) {
        (None, _) => Ok(None),
        (Some(named), _) if named.parse::<DeviceId>().is_ok() => Ok(named.parse().ok()),
        (Some(named), Some(registry)) => Ok(Some(find::device_by_ending(registry, named).await?.0)),
        (Some(_), None) => bail!("the registry cannot be opened: name devices by id"),
    };
    let filter = HopFilter {
        from: device(&args.from).await.context("--from")?,
        to: device(&args.to).await.context("--to")?,
        end: args.outcome,
        since_us: u64::try_from(since_1970().saturating_sub(args.since).as_micros()).ok(),
        ..HopFilter::default()
    };
    let reports = inspect::ask(&bus, &Inspect::Hops(filter, MAX_TOLD_HOPS)).await;
    let reports = reports.context("the processes cannot be asked")?;
    if reports.is_empty() {
        bail!("no process answers: none is there, or all are of an older version");
    }
    let hops = reports.iter().flat_map(|it| it.hops.iter().map(|hop| (it.process, *hop)));
    let mut calls = calls(hops);
    let older = calls.len().saturating_sub(args.limit as usize);
    calls.drain(..older);
    if args.json {
        say_json(&calls.iter().map(CallView::from).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let names = match &registry {
        Some(registry) => names(registry, calls.iter().flat_map(|it| [it.from, it.to])).await,
        None => Names::new(),
    };
    let mut table = Table::new(&["BEGUN", "CALL", "FROM", "TO", "PROTOCOL", "OUTCOME", "MS"]);
    for hop in &calls {
        let CallView { call, at, protocol, ms, .. } = CallView::from(hop);
        let (from, to) = (named(&names, Some(hop.from)), named(&names, Some(hop.to)));
        let protocol = protocol.unwrap_or_default().to_owned();
        table.row([at, call, from, to, protocol, hop.words(), format!("{ms:.2}")]);
    }
    table.print();
    note(format_args!("{} of {}", count(calls.len(), "call"), count(reports.len(), "process")));
    if older > 0 {
        note(format_args!(
            "{} more are older: --limit shows more, --from, --to and --outcome fewer",
            grouped(older)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

/// One hop for each call, the oldest first: that where it came in, which knows how it ended, or else the last before
/// the target that says so. Whom it was to is any hop's word: an application may have named its target.
fn calls(hops: impl IntoIterator<Item = (NodeId, HopRecord)>) -> Vec<HopRecord> {
    let mut by_call: BTreeMap<(NodeId, u64), HopRecord> = BTreeMap::new();
    let mut targets = BTreeMap::new();
    for (_, hop) in hops {
        if !hop.to.0.is_nil() {
            targets.insert((hop.call.node, hop.call.serial), hop.to);
        }
        if hop.end == HopEnd::Allowed || hop.station == Station::Target {
            continue;
        }
        let kept = by_call.entry((hop.call.node, hop.call.serial)).or_insert(hop);
        if (hop.station, kept.ended_us()) < (kept.station, hop.ended_us()) {
            *kept = hop;
        }
    }
    let told =
        |(call, hop): (_, HopRecord)| HopRecord { to: targets.get(&call).copied().unwrap_or(hop.to), ..hop };
    let mut calls: Vec<HopRecord> = by_call.into_iter().map(told).collect();
    calls.sort_by_key(|hop| hop.began_us);
    calls
}

#[cfg(test)]
mod tests {
    use rpc::{Budget, HopOf};
    use uuid::Uuid;

    use super::*;

    fn record(serial: u64, station: Station, end: HopEnd, began_us: u64) -> (NodeId, HopRecord) {
        let of = HopOf {
            station,
            call: CallId { node: NodeId(1), serial },
            from: DeviceId(Uuid::from_u128(1)),
            to: (station == Station::Router).then_some(DeviceId(Uuid::from_u128(9))),
            party: None,
            budget_ms: Budget::from_ms(1_000),
            protocol: None,
        };
        (NodeId(2), HopRecord { took_us: 100, ..HopRecord::new(of, began_us, end) })
    }

    #[test]
    fn a_call_is_listed_once_as_it_ended_where_it_came_in() {
        let hops = [
            record(1, Station::Router, HopEnd::Offline, 5),
            record(1, Station::Caller, HopEnd::Offline, 1),
            record(2, Station::Authorizer, HopEnd::Allowed, 2),
            record(3, Station::Router, HopEnd::HandedOver, 0),
            record(3, Station::Router, HopEnd::Answered, 3),
            record(4, Station::Target, HopEnd::Answered, 4),
        ];
        let listed = calls(hops);
        let ended: Vec<_> = listed.iter().map(|it| (it.call.serial, it.station, it.end)).collect();
        assert_eq!(ended, [(1, Station::Caller, HopEnd::Offline), (3, Station::Router, HopEnd::Answered)]);
        assert_eq!(listed[0].to, DeviceId(Uuid::from_u128(9)), "its router knew");
    }

    #[test]
    fn bars_show_when_a_hop_was() {
        let hop = |began_us, ms| Hop {
            began_us,
            ms,
            ..Hop::of(NodeId(1), &record(1, Station::Caller, HopEnd::Lost, 0).1)
        };
        let hops = [hop(1_000, 30.0), hop(11_000, 10.0), hop(30_999, 0.0)];
        let drawn = bars(&hops.iter().map(Line::of).collect::<Vec<_>>());
        assert_eq!(drawn[0], "█".repeat(30));
        assert_eq!(drawn[1], format!("{}{}{}", " ".repeat(10), "█".repeat(10), " ".repeat(10)));
        assert_eq!(drawn[2].trim_end().chars().count(), 30, "what took no time is seen, too");
        assert_eq!(bars(&[]), Vec::<String>::new());
    }
}
