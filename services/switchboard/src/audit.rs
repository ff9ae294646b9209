//! Who did what, and was anything taken from the record of it? `switchboard audit …`

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use bus::StoreError;
use bus::audit::{
    AuditLog, Book, Chain, Cut, From, Head, Limits, NO_TENANT, Record, Stored, Verdict, hash, rfc3339,
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
/// What the head of a chain of denials begins with.
const DENIALS: &str = "denials:";

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
    /// Only the chains of this tenant (id or name)
    #[arg(long)]
    tenant: Option<String>,
    /// What an earlier verify said of a chain's head, one of each chain: it must be there still. With --tenant
    #[arg(long = "head", value_name = "[denials:]NUMBER:HASH", requires = "tenant", value_parser = head)]
    heads: Vec<(Book, Head)>,
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
    /// Of an API: as it was asked for.
    #[serde(skip_deserializing)]
    book: Book,
    sequence: u64,
    hash: String,
    #[serde(flatten)]
    record: Option<Record>,
}

impl Shown {
    fn of(book: Book, stored: &Stored) -> Self {
        Shown { book, sequence: stored.sequence, hash: hash(&stored.bytes), record: stored.record() }
    }

    /// 0 of what is no record: it is shown as soon as it comes.
    fn at_ms(&self) -> u64 {
        self.record.as_ref().map_or(0, |record| record.at_ms)
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

    /// Hands over what fits of a book, from there to the end of what stands there now, and returns where to go on.
    async fn each(
        &self,
        book: Book,
        filter: &Filter,
        mut from: From,
        mut take: impl FnMut(Shown),
    ) -> anyhow::Result<From> {
        let mut take = |shown: Shown| {
            if filter.fits(shown.record.as_ref()) {
                take(shown);
            }
        };
        let api = match &self.registrar {
            Registrar::Nats(changes) => {
                let take = |stored: Stored| take(Shown::of(book, &stored));
                return each(changes.recorder.log(book), filter.tenant, from, take).await;
            }
            Registrar::Api(api) => api,
        };
        let tenant = filter.tenant.map_or_else(String::new, |tenant| format!("&tenant={tenant}"));
        let mut place = match from {
            From::Sequence(sequence) => format!("&after={}", sequence.saturating_sub(1)),
            From::Time(time) => {
                format!("&since={}", time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis())
            }
        };
        loop {
            let name = book.as_str();
            let page: Page = api.get(&format!("audit?book={name}&limit={API_PAGE}{tenant}{place}")).await?;
            for shown in page.records {
                from = From::Sequence(shown.sequence + 1);
                take(Shown { book, ..shown });
            }
            match page.next {
                Some(after) => place = format!("&after={after}"),
                None => return Ok(from),
            }
        }
    }

    /// Reads a tenant's chain of a book, or everybody's, and returns what its stream then says of itself.
    async fn read(
        &self,
        book: Book,
        tenant: Option<TenantId>,
        chains: &mut BTreeMap<TenantId, Chain>,
    ) -> anyhow::Result<Limits> {
        let take = |stored: Stored| {
            chains.entry(stored.tenant).or_insert_with(|| Chain::new(None)).take(&stored);
        };
        let limits = match &self.registrar {
            Registrar::Nats(changes) => {
                let log = changes.recorder.log(book);
                each(log, tenant, From::Sequence(1), take).await?;
                match log.limits().await {
                    Err(StoreError::Missing(_)) => None,
                    limits => Some(limits.context("the audit cannot be read")?),
                }
            }
            Registrar::Api(api) => {
                let tenant = match tenant {
                    Some(tenant) => tenant,
                    None => registrar::own_tenant(api).await?,
                };
                each_raw(api, book, tenant, take).await?
            }
        };
        match book {
            Book::Changes => limits.context("there is no audit yet"),
            // Nobody was denied yet.
            Book::Denials => Ok(limits.unwrap_or_default()),
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

    /// What fits of both books from these places on, by time: the last, at most `limit`. And where to go on.
    async fn last(
        &self,
        filter: &Filter,
        mut places: [From; 2],
        limit: usize,
    ) -> anyhow::Result<(VecDeque<Shown>, [From; 2])> {
        let mut last = VecDeque::new();
        for (book, place) in Book::ALL.into_iter().zip(&mut places) {
            let mut kept = VecDeque::new();
            let next = self.each(book, filter, *place, |shown| {
                kept.push_back(shown);
                if kept.len() > limit {
                    kept.pop_front();
                }
            });
            *place = next.await?;
            last = merged(last, kept);
        }
        last.drain(..last.len().saturating_sub(limit));
        Ok((last, places))
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
    /// Where to begin in each book.
    fn places(&self) -> [From; 2] {
        [self.since.map_or(From::Sequence(1), From::Time); 2]
    }

    fn fits(&self, record: Option<&Record>) -> bool {
        let Some(record) = record else {
            return self.device.is_none() && self.kind.is_none();
        };
        self.device.is_none_or(|device| record.entry.devices.contains(&device))
            && self.kind.as_deref().is_none_or(|kind| record.entry.is_of(kind))
    }
}

/// Two lists as one, by time; of each in its own order, whatever its writers' clocks say.
fn merged(mut one: VecDeque<Shown>, mut other: VecDeque<Shown>) -> VecDeque<Shown> {
    let mut merged = VecDeque::with_capacity(one.len() + other.len());
    while let (Some(first), Some(second)) = (one.front(), other.front()) {
        let next = if second.at_ms() < first.at_ms() { &mut other } else { &mut one };
        merged.extend(next.pop_front());
    }
    merged.extend(one.into_iter().chain(other));
    merged
}

/// Reads from there to the end of what stands there now, and returns where to go on: from there still, if nothing does.
pub(crate) async fn each(
    log: &AuditLog,
    tenant: Option<TenantId>,
    mut from: From,
    mut take: impl FnMut(Stored),
) -> anyhow::Result<From> {
    loop {
        let page = match log.page(tenant, from).await {
            Ok(page) => page,
            // Nothing was ever recorded.
            Err(StoreError::Missing(_)) => return Ok(from),
            Err(error) => return Err(error).context("the audit cannot be read"),
        };
        // Else nothing was written since that time.
        if page.next > 1 {
            from = From::Sequence(page.next);
        }
        page.records.into_iter().for_each(&mut take);
        if page.is_last {
            return Ok(from);
        }
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
    let (last, mut places) = opened.last(&filter, filter.places(), args.lines).await?;
    for shown in &last {
        tell(&mut opened, shown).await?;
    }
    if !args.follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(FOLLOW_PAUSE).await;
        let come;
        (come, places) = opened.last(&filter, places, usize::MAX).await?;
        for shown in &come {
            tell(&mut opened, shown).await?;
        }
    }
}

async fn query(args: QueryArgs) -> anyhow::Result<()> {
    let mut opened = Opened::open(&args.filter.reach).await?;
    let filter = opened.filter(&args.filter).await?;
    let (found, _) = opened.last(&filter, filter.places(), args.limit).await?;
    if args.filter.json {
        return say_json(&found);
    }
    for shown in &found {
        opened.tell(shown).await?;
    }
    note(count(found.len(), "record"));
    Ok(())
}

/// Reads a tenant's chain, byte for byte, as an API shows it; what the stream says of itself is asked last. None: there
/// is no stream.
async fn each_raw(
    api: &Api,
    book: Book,
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
        let name = book.as_str();
        let path = format!("audit?book={name}&raw=true&limit={API_PAGE}&tenant={tenant}&after={after}");
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
    book: Book,
    is_whole: bool,
    #[serde(flatten)]
    verdict: Verdict,
}

async fn verify(args: VerifyArgs) -> anyhow::Result<ExitCode> {
    let opened = Opened::open(&args.reach).await?;
    let tenant = args.tenant.as_deref().map(|named| opened.tenant(named)).transpose()?;
    let mut heads: BTreeMap<Book, Head> = BTreeMap::new();
    for (book, head) in args.heads {
        anyhow::ensure!(heads.insert(book, head).is_none(), "two heads of one chain: name one of each");
    }
    let mut verdicts = BTreeMap::new();
    for book in Book::ALL {
        let (mut chains, head) = (BTreeMap::new(), heads.remove(&book));
        // Where nobody was denied there is no chain to tell of.
        if let Some(tenant) = tenant.filter(|_| book == Book::Changes || head.is_some()) {
            chains.insert(tenant, Chain::new(head));
        }
        let limits = opened.read(book, tenant, &mut chains).await?;
        verdicts.extend(chains.into_iter().map(|(tenant, chain)| ((tenant, book), chain.end(limits))));
    }
    let views = verdicts.into_iter().map(|((tenant, book), verdict)| {
        let tenant_name = match tenant {
            NO_TENANT => "of no tenant".to_owned(),
            tenant => find::tenant_name(&opened.known, tenant),
        };
        ChainView { tenant, tenant_name, book, is_whole: verdict.breaks.is_empty(), verdict }
    });
    let views: Vec<_> = views.collect();
    let status = if views.iter().all(|view| view.is_whole) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if args.json {
        say_json(&views)?;
        return Ok(status);
    }
    for ChainView { tenant_name, book, verdict, .. } in &views {
        let Verdict { records, first, cut, head, breaks } = verdict;
        let state = if breaks.is_empty() { "whole" } else { "BROKEN" };
        let (of, prefix) = match book {
            Book::Changes => ("", ""),
            Book::Denials => (", denials", DENIALS),
        };
        say(format_args!("{tenant_name}{of}: {state}, {}", count(usize::try_from(*records)?, "record")));
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
            say(format_args!("  head {prefix}{number}:{hash}"));
        }
    }
    if status == ExitCode::SUCCESS {
        note(
            "Keep the heads elsewhere: who could rewrite a stream could rewrite a whole chain. --head checks one.",
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

fn head(text: &str) -> Result<(Book, Head), String> {
    let parse = || {
        let (book, rest) = match text.strip_prefix(DENIALS) {
            Some(rest) => (Book::Denials, rest),
            None => (Book::Changes, text),
        };
        let (number, hash) = rest.split_once(':')?;
        let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash.then_some((book, Head { number: number.parse().ok()?, hash: hash.to_ascii_lowercase() }))
    };
    parse().ok_or_else(|| {
        "a number, a colon and 64 hexadecimal digits, behind denials: or not, as `audit verify` prints"
            .to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_lists_are_one_by_time_and_each_keeps_its_order() {
        let list = |book, times: &[u64]| {
            let of = |at_ms: &u64| Shown {
                book,
                sequence: *at_ms,
                hash: String::new(),
                record: serde_json::from_value(serde_json::json!({
                    "number": 1, "id": NO_TENANT, "tenant": NO_TENANT, "atMs": at_ms, "user": "",
                }))
                .ok(),
            };
            times.iter().map(of).collect::<VecDeque<_>>()
        };
        // 9 was written by who has a clock that is fast.
        let both = merged(list(Book::Changes, &[1, 9, 3, 10]), list(Book::Denials, &[2, 4, 11]));
        let times: Vec<_> = both.iter().map(Shown::at_ms).collect();
        assert_eq!(times, [1, 2, 4, 9, 3, 10, 11]);
        assert_eq!(merged(VecDeque::new(), list(Book::Denials, &[2])).len(), 1);
    }
}
