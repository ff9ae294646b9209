//! Who did what, and was anything taken from the record of it? `switchboard audit …`

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bus::StoreError;
use bus::audit::{
    AuditLog, Chain, Cut, From, Head, Limits, NO_TENANT, Record, Stored, Verdict, hash, rfc3339,
};
use bus::registry::Snapshot;
use clap::{Args, Subcommand};
use rpc::{DeviceId, TenantId};
use serde::{Deserialize, Serialize};

use crate::common::api::Api;
use crate::common::find;
use crate::common::output::{count, note, say, say_json};
use crate::common::reach::ReachArgs;
use crate::common::registrar::{self, Registrar};

/// Records of a page that an API is asked for.
const API_PAGE: u32 = 500;
/// Between two looks for more.
const FOLLOW_PAUSE: Duration = Duration::from_millis(500);
/// Devices of a record that are shown.
const MAX_NAMED: usize = 3;

#[derive(Subcommand)]
pub(crate) enum AuditVerb {
    /// Show the last records, and with --follow those that come
    Tail(TailArgs),
    /// Show all records that fit
    Query(QueryArgs),
    /// Check that each record follows from the one before it: exit status 1 if a chain is broken
    Verify(VerifyArgs),
}

/// Which records.
#[derive(Args)]
struct FilterArgs {
    /// Only of this tenant (id or name; "none": what is of no tenant)
    #[arg(long)]
    tenant: Option<String>,
    /// Only about this device (id, or the name of one that is still there)
    #[arg(long)]
    device: Option<String>,
    /// Only of this kind, as device.rename, or device with all below it
    #[arg(long)]
    kind: Option<String>,
    /// Only of the time since, as 90s, 30m, 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = time_span)]
    since: Option<Duration>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Args)]
pub(crate) struct TailArgs {
    /// How many
    #[arg(long, short = 'n', default_value_t = 20)]
    lines: usize,
    /// Go on with those that come, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Args)]
pub(crate) struct QueryArgs {
    /// At most so many, the latest
    #[arg(long, default_value_t = 10_000)]
    limit: usize,
    #[command(flatten)]
    filter: FilterArgs,
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// Only the chain of this tenant (id or name)
    #[arg(long)]
    tenant: Option<String>,
    /// What an earlier verify said of the chain's head: it must be there still. With --tenant
    #[arg(long, value_name = "NUMBER:HASH", requires = "tenant", value_parser = head)]
    head: Option<Head>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

pub(crate) async fn run(verb: AuditVerb) -> anyhow::Result<ExitCode> {
    match verb {
        AuditVerb::Tail(args) => tail(args).await,
        AuditVerb::Query(args) => query(args).await,
        AuditVerb::Verify(args) => return verify(args).await,
    }?;
    Ok(ExitCode::SUCCESS)
}

/// The audit, and the registry that tells names.
struct Opened {
    registrar: Registrar,
    known: Snapshot,
    /// Of devices that records name; none: it is gone.
    names: HashMap<DeviceId, Option<String>>,
}

/// A record as it is shown.
#[derive(Serialize, Deserialize)]
struct Shown {
    sequence: u64,
    hash: String,
    #[serde(flatten)]
    record: Option<Record>,
}

impl std::convert::From<&Stored> for Shown {
    fn from(stored: &Stored) -> Self {
        Shown { sequence: stored.sequence, hash: hash(&stored.bytes), record: stored.record() }
    }
}

/// A page of an API's.
#[derive(Deserialize)]
struct Page {
    records: Vec<Shown>,
    next: Option<u64>,
}

/// A filter whose names are looked up.
struct Filter {
    tenant: Option<TenantId>,
    device: Option<DeviceId>,
    kind: Option<String>,
    since: Option<SystemTime>,
}

impl Opened {
    async fn open(reach: &ReachArgs) -> anyhow::Result<Self> {
        let registrar = reach.clone().registrar().await?;
        let known = registrar.accounts().await?;
        Ok(Opened { registrar, known, names: HashMap::new() })
    }

    /// Hands over what fits, from there to the end of what stands there now, and returns where to go on.
    async fn each(&self, filter: &Filter, from: From, mut take: impl FnMut(Shown)) -> anyhow::Result<u64> {
        let api = match &self.registrar {
            Registrar::Nats(changes) => {
                let take = |stored: Stored| {
                    let shown = Shown::from(&stored);
                    if filter.fits(shown.record.as_ref()) {
                        take(shown);
                    }
                };
                return each(changes.recorder.log(), filter.tenant, from, take).await;
            }
            Registrar::Api(api) => api,
        };
        let tenant = filter.tenant.map_or_else(String::new, |tenant| format!("&tenant={tenant}"));
        let mut from = match from {
            From::Sequence(sequence) => format!("&after={}", sequence.saturating_sub(1)),
            From::Time(time) => {
                format!("&since={}", time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis())
            }
        };
        let mut next = 1;
        loop {
            let page: Page = api.get(&format!("audit?limit={API_PAGE}{tenant}{from}")).await?;
            for shown in page.records {
                next = shown.sequence + 1;
                if filter.fits(shown.record.as_ref()) {
                    take(shown);
                }
            }
            match page.next {
                Some(after) => from = format!("&after={after}"),
                None => return Ok(next),
            }
        }
    }

    fn tenant(&self, named: &str) -> anyhow::Result<TenantId> {
        match named.parse() {
            _ if named == "none" => Ok(NO_TENANT),
            // Also one that is gone.
            Ok(id) => Ok(id),
            Err(_) => Ok(find::tenant(&self.known, Some(named))?.0),
        }
    }

    async fn filter(&self, args: &FilterArgs) -> anyhow::Result<Filter> {
        let device = match args.device.as_deref().map(|named| (named, named.parse())) {
            None => None,
            Some((_, Ok(id))) => Some(id),
            Some((named, Err(_))) => Some(self.registrar.device(named).await?.0),
        };
        Ok(Filter {
            tenant: args.tenant.as_deref().map(|named| self.tenant(named)).transpose()?,
            device,
            kind: args.kind.clone(),
            since: args.since.and_then(|since| SystemTime::now().checked_sub(since)),
        })
    }

    /// The last records that fit, at most `limit`, and where to go on.
    async fn last(&self, filter: &Filter, limit: usize) -> anyhow::Result<(VecDeque<Shown>, u64)> {
        let from = filter.since.map_or(From::Sequence(1), From::Time);
        let mut kept = VecDeque::new();
        let next = self.each(filter, from, |shown| {
            kept.push_back(shown);
            if kept.len() > limit {
                kept.pop_front();
            }
        });
        let next = next.await?;
        Ok((kept, next))
    }

    /// Tells a record in words, its devices by the names that they have now.
    async fn tell(&mut self, shown: &Shown) -> anyhow::Result<()> {
        let Some(record) = &shown.record else {
            say(format_args!("message {} of the stream is no record", shown.sequence));
            return Ok(());
        };
        for id in record.entry.devices.iter().take(MAX_NAMED) {
            if !self.names.contains_key(id) {
                self.names.insert(*id, self.registrar.device_name(*id).await?);
            }
        }
        say(line(record, |id| self.names.get(&id)?.as_deref()));
        Ok(())
    }
}

impl Filter {
    fn fits(&self, record: Option<&Record>) -> bool {
        let Some(record) = record else {
            return self.device.is_none() && self.kind.is_none();
        };
        self.device.is_none_or(|device| record.entry.devices.contains(&device))
            && self.kind.as_deref().is_none_or(|kind| record.entry.is_of(kind))
    }
}

/// Reads from there to the end of what stands there now, and returns where to go on.
pub(crate) async fn each(
    log: &AuditLog,
    tenant: Option<TenantId>,
    mut from: From,
    mut take: impl FnMut(Stored),
) -> anyhow::Result<u64> {
    loop {
        let page = match log.page(tenant, from).await {
            Ok(page) => page,
            // Nothing was ever recorded.
            Err(StoreError::Missing(_)) => return Ok(1),
            Err(error) => return Err(error).context("the audit cannot be read"),
        };
        page.records.into_iter().for_each(&mut take);
        if page.is_last {
            return Ok(page.next);
        }
        from = From::Sequence(page.next);
    }
}

async fn tail(args: TailArgs) -> anyhow::Result<()> {
    let mut opened = Opened::open(&args.filter.reach).await?;
    let filter = opened.filter(&args.filter).await?;
    let tell = async |opened: &mut Opened, shown: &Shown| {
        if !args.filter.json {
            return opened.tell(shown).await;
        }
        // One a line: the list has no end.
        say(serde_json::to_string(shown)?);
        Ok(())
    };
    let (last, mut next) = opened.last(&filter, args.lines).await?;
    for shown in &last {
        tell(&mut opened, shown).await?;
    }
    if !args.follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(FOLLOW_PAUSE).await;
        let mut come = Vec::new();
        next = opened.each(&filter, From::Sequence(next), |shown| come.push(shown)).await?.max(next);
        for shown in &come {
            tell(&mut opened, shown).await?;
        }
    }
}

async fn query(args: QueryArgs) -> anyhow::Result<()> {
    let mut opened = Opened::open(&args.filter.reach).await?;
    let filter = opened.filter(&args.filter).await?;
    let (found, _) = opened.last(&filter, args.limit).await?;
    if args.filter.json {
        return say_json(&found);
    }
    for shown in &found {
        opened.tell(shown).await?;
    }
    note(count(found.len(), "record"));
    Ok(())
}

/// Reads a tenant's chain, byte for byte, as an API shows it; what the stream says of itself is asked last.
async fn each_raw(
    api: &Api,
    tenant: TenantId,
    mut take: impl FnMut(Stored),
) -> anyhow::Result<Option<Limits>> {
    #[derive(Deserialize)]
    struct Page {
        records: Vec<Raw>,
        next: Option<u64>,
        limits: Option<RawLimits>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Raw {
        sequence: u64,
        raw: String,
        written_by: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct RawLimits {
        first_sequence: u64,
        max_age_ms: u64,
        is_full: bool,
        now_ms: u64,
    }
    let mut after = 0;
    loop {
        let path = format!("audit?raw=true&limit={API_PAGE}&tenant={tenant}&after={after}");
        let page: Page = api.get(&path).await?;
        for Raw { sequence, raw, written_by } in page.records {
            take(Stored { sequence, tenant, user: written_by, bytes: raw.into() });
        }
        match page.next {
            Some(next) => after = next,
            None => {
                return Ok(page.limits.map(|RawLimits { first_sequence, max_age_ms, is_full, now_ms }| {
                    Limits { first_sequence, max_age_ms, is_full, now_ms }
                }));
            }
        }
    }
}

/// A chain as JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ChainView {
    tenant: TenantId,
    tenant_name: String,
    is_whole: bool,
    #[serde(flatten)]
    verdict: Verdict,
}

async fn verify(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let opened = Opened::open(&args.reach).await?;
    let tenant = args.tenant.as_deref().map(|named| opened.tenant(named)).transpose()?;
    let mut chains: BTreeMap<TenantId, Chain> = BTreeMap::new();
    if let Some(tenant) = tenant {
        chains.insert(tenant, Chain::new(args.head));
    }
    let take = |stored: Stored| {
        chains.entry(stored.tenant).or_insert_with(|| Chain::new(None)).take(&stored);
    };
    let limits = match &opened.registrar {
        Registrar::Nats(changes) => {
            let log = changes.recorder.log();
            each(log, tenant, From::Sequence(1), take).await?;
            log.limits().await.ok()
        }
        Registrar::Api(api) => {
            let tenant = match tenant {
                Some(tenant) => tenant,
                None => registrar::own_tenant(api).await?,
            };
            each_raw(api, tenant, take).await?
        }
    };
    let limits = limits.context("there is no audit yet, or it cannot be read")?;
    let views = chains.into_iter().map(|(tenant, chain)| {
        let verdict = chain.end(limits);
        let tenant_name = match tenant {
            NO_TENANT => "of no tenant".to_owned(),
            tenant => find::tenant_name(&opened.known, tenant),
        };
        ChainView { tenant, tenant_name, is_whole: verdict.breaks.is_empty(), verdict }
    });
    let views: Vec<_> = views.collect();
    let status = if views.iter().all(|view| view.is_whole) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.json {
        say_json(&views)?;
        return Ok(status);
    }
    for ChainView { tenant_name, verdict, .. } in &views {
        let Verdict { records, first, cut, head, breaks } = verdict;
        let state = if breaks.is_empty() { "whole" } else { "BROKEN" };
        say(format_args!("{tenant_name}: {state}, {}", count(usize::try_from(*records)?, "record")));
        match cut {
            Cut::Age => {
                say(format_args!("  begins with record {first}: those before it have outlived their time"))
            }
            Cut::Size => say(format_args!(
                "  begins with record {first}: those before it went when the stream was full"
            )),
            Cut::Nothing | Cut::TooEarly => {}
        }
        breaks.iter().for_each(|found| say(format_args!("  {found}")));
        if let Some(Head { number, hash }) = head {
            say(format_args!("  head {number}:{hash}"));
        }
    }
    if status == ExitCode::SUCCESS {
        note(
            "Keep the heads elsewhere: who could rewrite the stream could rewrite a whole chain. --head checks one.",
        );
    }
    Ok(status)
}

/// A record in one line.
fn line<'a>(record: &Record, name: impl Fn(DeviceId) -> Option<&'a str>) -> String {
    let Record { number, at_ms, user, entry, .. } = record;
    let at = rfc3339(UNIX_EPOCH + Duration::from_millis(*at_ms));
    let who = if entry.who.is_empty() { String::new() } else { format!("{} as ", entry.who) };
    let mut line = format!("{at} #{number} {} by {who}{user}", entry.kind);
    // Writing to a String cannot fail.
    if !entry.from.is_empty() {
        let _ = write!(line, ", {}", entry.from);
    }
    if !entry.what.is_empty() {
        let _ = write!(line, ": {}", entry.what);
    }
    let named = entry.devices.iter().take(MAX_NAMED).map(|id| match name(*id) {
        Some(name) => format!("{name:?} ({id})"),
        None => id.to_string(),
    });
    let named: Vec<_> = named.collect();
    if !named.is_empty() {
        let more = entry.devices.len() - named.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        let _ = write!(line, " [{}{more}]", named.join(" → "));
    }
    if let Some(version) = entry.version {
        let _ = match version {
            0 => write!(line, ", built-in rule"),
            version => write!(line, ", version {version}"),
        };
    }
    if !entry.why.is_empty() {
        let _ = write!(line, "; why: {}", entry.why);
    }
    if entry.left_out > 0 {
        let _ = write!(line, "; {} more before it were counted alone", entry.left_out);
    }
    line
}

/// `90s`, `30m`, `12h`, `7d`.
pub(crate) fn time_span(text: &str) -> Result<Duration, String> {
    let parse = || {
        let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let seconds = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(seconds).map(Duration::from_secs)
    };
    parse().ok_or_else(|| "a number and one of s, m, h, d, as in 12h".to_owned())
}

fn head(text: &str) -> Result<Head, String> {
    let parse = || {
        let (number, hash) = text.split_once(':')?;
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash.then_some(Head { number: number.parse().ok()?, hash: hash.to_ascii_lowercase() })
    };
    parse().ok_or_else(|| "a number, a colon and 64 hexadecimal digits, as `audit verify` prints".to_owned())
}
