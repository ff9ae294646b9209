//! Which denials are recorded in the audit? So many a second for each tenant; further ones are counted in its next
//! record. One task writes them, beside the calls.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boot::Settings;
use bus::Bus;
use bus::audit::{AuditLog, Book, Entry, NO_TENANT};
use parking_lot::Mutex;
use rpc::{DeviceId, NodeId, TenantId};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::meters::AuditMeters;

/// After so long, what was left out has a record though nothing else has.
const COUNT_AFTER: Duration = Duration::from_secs(10);
/// How often that is looked at.
const TICK: Duration = Duration::from_secs(1);
/// What the last records of a process may take.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// A call.
    Call,
    /// A `getDevices`.
    List,
    /// A token that no device has.
    Token,
    /// A call or list whose ticket does not count.
    Ticket,
}

/// One denial.
#[derive(Debug, Clone)]
pub(crate) struct Denial {
    pub(crate) denied: Denied,
    /// None: it is not known whose.
    pub(crate) tenant: Option<TenantId>,
    pub(crate) caller: Option<DeviceId>,
    pub(crate) target: Option<DeviceId>,
    /// Where it was asked.
    pub(crate) node: NodeId,
    /// By which version of the tenant's policies; 0: by the built-in rule.
    pub(crate) version: u64,
    pub(crate) why: Cow<'static, str>,
}

impl Denied {
    const fn kind(self) -> &'static str {
        match self {
            Denied::Call => "denied.call",
            Denied::List => "denied.list",
            Denied::Token => "denied.token",
            Denied::Ticket => "denied.ticket",
        }
    }
}

impl From<Denial> for Entry {
    fn from(denial: Denial) -> Self {
        let Denial { denied, caller, target, node, version, why, .. } = denial;
        Entry {
            from: format!("node {node}"),
            version: matches!(denied, Denied::Call | Denied::List).then_some(version),
            why: why.into_owned(),
            ..Entry::new(denied.kind(), caller.into_iter().chain(target))
        }
    }
}

/// Takes denials from whoever answers.
pub(crate) struct Denials {
    queue: mpsc::Sender<(TenantId, Entry)>,
    tally: Arc<Mutex<Tally>>,
    meters: AuditMeters,
}

impl Denials {
    /// Starts the task that writes, until `stop` and then what waits.
    pub(crate) fn start(
        bus: &Bus,
        settings: &Settings,
        stop: CancellationToken,
    ) -> (Denials, JoinHandle<()>) {
        let log = AuditLog::of(bus, settings, Book::Denials);
        let settings = &settings.audit;
        let (queue, waiting) = mpsc::channel(settings.max_queued_records);
        let tally = Arc::new(Mutex::new(Tally::new(settings.denials_per_second)));
        let writer = Writer { log, waiting, tally: Arc::clone(&tally), meters: AuditMeters::new() };
        let denials = Denials { queue, tally, meters: AuditMeters::new() };
        (denials, tokio::spawn(writer.run(stop)))
    }

    /// So many of one tenant are recorded a second from now on.
    pub(crate) fn change(&self, per_second: u32) {
        self.tally.lock().per_second = per_second;
    }

    /// Records it, or counts it. Never waits.
    pub(crate) fn tell(&self, denial: Denial) {
        let tenant = denial.tenant.unwrap_or(NO_TENANT);
        let Some(left_out) = self.tally.lock().take(tenant, Instant::now()) else {
            return self.meters.left_out.increment(1);
        };
        let entry = Entry { left_out, ..denial.into() };
        if self.queue.try_send((tenant, entry)).is_err() {
            self.meters.dropped.increment(1);
            self.tally.lock().left_out(tenant, left_out + 1, Instant::now());
        }
    }
}

struct Writer {
    log: AuditLog,
    waiting: mpsc::Receiver<(TenantId, Entry)>,
    tally: Arc<Mutex<Tally>>,
    meters: AuditMeters,
}

impl Writer {
    async fn run(mut self, stop: CancellationToken) {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                next = self.waiting.recv() => match next {
                    Some((tenant, entry)) => self.write(tenant, entry).await,
                    None => break,
                },
                _ = ticks.tick() => self.count(COUNT_AFTER).await,
            }
        }
        self.waiting.close();
        let last = async {
            while let Some((tenant, entry)) = self.waiting.recv().await {
                self.write(tenant, entry).await;
            }
            self.count(Duration::ZERO).await;
        };
        if timeout(LAST_WORDS, last).await.is_err() {
            tracing::warn!("the last denials have no record: the audit takes none");
        }
    }

    /// Writes down how many have no record of their own, where that is due.
    async fn count(&self, after: Duration) {
        let due = self.tally.lock().due(Instant::now(), after);
        for (tenant, left_out) in due {
            self.write(tenant, Entry { left_out, ..Entry::new("denied.left-out", []) }).await;
        }
    }

    async fn write(&self, tenant: TenantId, entry: Entry) {
        let (left_out, counts_itself) = (entry.left_out, u64::from(entry.kind != "denied.left-out"));
        match self.log.append(tenant, entry).await {
            Ok(()) => self.meters.written.increment(1),
            Err(error) => {
                tracing::warn!(%error, %tenant, "a denial cannot be recorded; it is counted in the next record");
                self.meters.failed.increment(1);
                self.tally.lock().left_out(tenant, left_out + counts_itself, Instant::now());
            }
        }
    }
}

/// Which tenant may have a record now: a token bucket for each, filled up once a second.
#[derive(Debug)]
struct Tally {
    per_second: u32,
    tenants: BTreeMap<TenantId, Counted>,
}

#[derive(Debug)]
struct Counted {
    /// Records that it may still have since `since`.
    rest: u32,
    since: Instant,
    left_out: u64,
    /// Since when some have been left out.
    left_out_since: Instant,
}

impl Tally {
    fn new(per_second: u32) -> Self {
        Tally { per_second, tenants: BTreeMap::new() }
    }

    /// How many are told of in the record that this one may have; none: it may have none, and is counted.
    fn take(&mut self, tenant: TenantId, now: Instant) -> Option<u64> {
        let counted = self.counted(tenant, now);
        if let Some(rest) = counted.rest.checked_sub(1) {
            counted.rest = rest;
            return Some(std::mem::take(&mut counted.left_out));
        }
        self.left_out(tenant, 1, now);
        None
    }

    /// So many more have no record.
    fn left_out(&mut self, tenant: TenantId, count: u64, now: Instant) {
        let counted = self.counted(tenant, now);
        if counted.left_out == 0 {
            counted.left_out_since = now;
        }
        counted.left_out = counted.left_out.saturating_add(count);
    }

    /// Whom to tell how many have had no record for so long. Forgets those about whom there is nothing to remember.
    fn due(&mut self, now: Instant, after: Duration) -> Vec<(TenantId, u64)> {
        self.tenants.retain(|_, it| it.left_out > 0 || now.duration_since(it.since) < TICK);
        let due = self
            .tenants
            .iter_mut()
            .filter(|(_, it)| it.left_out > 0 && now.saturating_duration_since(it.left_out_since) >= after);
        due.map(|(tenant, it)| (*tenant, std::mem::take(&mut it.left_out))).collect()
    }

    fn counted(&mut self, tenant: TenantId, now: Instant) -> &mut Counted {
        let rest = self.per_second;
        let fresh = Counted { rest, since: now, left_out: 0, left_out_since: now };
        let counted = self.tenants.entry(tenant).or_insert(fresh);
        if now.saturating_duration_since(counted.since) >= TICK {
            (counted.rest, counted.since) = (rest, now);
        }
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use uuid::Uuid;

    fn tenant(number: u128) -> TenantId {
        TenantId(Uuid::from_u128(number))
    }

    #[test]
    fn a_tenant_has_so_many_a_second_and_the_rest_are_counted() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut tally = Tally::new(2);
        let told: Vec<_> = (0..5).map(|ms| tally.take(tenant(1), at(ms))).collect();
        assert_eq!(told, [Some(0), Some(0), None, None, None]);
        assert_eq!(tally.take(tenant(2), at(5)), Some(0), "others have their own");
        assert_eq!(tally.take(tenant(1), at(1_000)), Some(3));
        assert_eq!(tally.take(tenant(1), at(1_001)), Some(0));
        assert_eq!(tally.take(tenant(1), at(1_002)), None);
        assert_eq!(tally.due(at(11_001), COUNT_AFTER), []);
        assert_eq!(tally.due(at(11_002), COUNT_AFTER), [(tenant(1), 1)]);
        assert_eq!(tally.due(at(30_000), COUNT_AFTER), []);
        assert!(tally.tenants.is_empty(), "nothing is remembered for ever");
    }

    #[test]
    fn none_a_second_counts_them_alone() {
        let now = Instant::now();
        let mut tally = Tally::new(0);
        assert_eq!((tally.take(tenant(1), now), tally.take(tenant(1), now)), (None, None));
        assert_eq!(tally.due(now + COUNT_AFTER, COUNT_AFTER), [(tenant(1), 2)]);
    }

    proptest! {
        /// Whatever happens when, each denial has a record or is counted in one, once.
        #[test]
        fn none_is_lost_and_none_counted_twice(
            per_second in 0u32..4,
            steps in proptest::collection::vec((0u64..700, 0u128..3, 0u8..8), 1..80),
        ) {
            let start = Instant::now();
            let (mut tally, mut now, mut told, mut denied) = (Tally::new(per_second), start, 0, 0u64);
            for (ms, number, action) in steps {
                now += Duration::from_millis(ms);
                match action {
                    // A record that cannot be written is counted in the next.
                    0 => if let Some(left_out) = tally.take(tenant(number), now) {
                        tally.left_out(tenant(number), left_out + 1, now);
                    },
                    1 => {
                        told += tally.due(now, COUNT_AFTER).iter().map(|(_, left_out)| left_out).sum::<u64>();
                        continue;
                    }
                    _ => told += tally.take(tenant(number), now).map_or(0, |left_out| left_out + 1),
                }
                denied += 1;
            }
            told += tally.due(now, Duration::ZERO).iter().map(|(_, left_out)| left_out).sum::<u64>();
            prop_assert_eq!(told, denied);
        }
    }
}
