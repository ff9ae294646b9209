//! What do all processes of a system say of themselves, and of a call? Each answers for itself; whoever asks gathers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boot::clock::unix_ms;
use boot::config::{changed, readers};
use boot::journal::Listening;
use boot::traces::Tracer;
use boot::{Context, Journal, args, max_open_files};
use bytes::Bytes;
use parking_lot::Mutex;
use rpc::{
    CallId, DeviceId, HopEnd, HopFilter, HopRecord, Inspect, Instruct, Instructed, Limit, MAX_TOLD_HOPS,
    NodeId, Protocol, Report, Station, Status, Subjects, TAP_LEASE, Tap, Tapped, missing, wire,
};
use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::timeout_at;
use tokio_util::task::AbortOnDropHandle;

use crate::certificate::first_expiry_s;
use crate::many::Answers;
use crate::{AskError, Bus, Request, Subject, TellError};

/// Who answers: those that calls come by.
pub const SERVICES: [&str; 4] = ["ingress", "api", "authorizer", "router"];
/// How long answers are gathered. A process that is there answers much sooner.
pub const GATHER: Duration = Duration::from_millis(300);
/// What counts as lately.
const LATELY_S: u64 = 10;

/// The longest that other things are logged than the settings say.
const LONGEST_LOG: Duration = Duration::from_secs(24 * 60 * 60);

/// Where the hops go that somebody listens to, by his number.
type Inboxes = Arc<Mutex<BTreeMap<u64, Subject>>>;

/// Tells who listens, until he does no more.
async fn tell_hops(bus: Bus, service: String, journal: Journal, mut listening: Listening, inboxes: Inboxes) {
    let id = listening.id();
    loop {
        let hops = listening.next().await;
        let Some(left_out) = journal.left_out(&listening, Instant::now()) else { break };
        let inbox = inboxes.lock().get(&id).cloned();
        if let Some(inbox) = inbox.filter(|_| !hops.is_empty() || left_out > 0) {
            let tapped = Tapped { service: service.clone(), process: bus.process(), hops, left_out };
            say(&bus, inbox, &tapped).await;
        }
    }
    inboxes.lock().remove(&id);
}

async fn say(bus: &Bus, inbox: Subject, head: &impl wire::Head) {
    if let Err(error) = bus.tell(inbox, wire::encode(head, b"")).await {
        tracing::debug!(%error, "what was asked of this process cannot be answered");
    }
}

/// Tells all processes of these services, and gathers what became of it within [`GATHER`].
///
/// # Errors
/// When it cannot be sent.
pub async fn instruct(bus: &Bus, services: &[&str], what: &Instruct) -> Result<Vec<Instructed>, AskError> {
    let subjects = services.iter().map(|service| bus.subjects().instruct(service));
    let replies = bus.ask_all(subjects, wire::encode(what, b""), GATHER).await?;
    Ok(replies.iter().filter_map(|reply| Some(wire::decode::<Instructed>(reply).ok()?.0)).collect())
}

/// Hears hops of all processes as they end, for as long as it is kept.
pub struct Listener {
    bus: Bus,
    subject: fn(&Subjects, &str) -> String,
    message: Bytes,
    inbox: String,
    heard: Answers,
    again_at: Instant,
}

impl Listener {
    /// Listens as an operator may, from the first time on that it is asked for hops.
    pub fn new(bus: &Bus, filter: HopFilter, body_bytes: u32) -> Self {
        let say = |tap| wire::encode(&Instruct::Tap(tap), b"");
        Listener::open(bus, Subjects::instruct, say, |id| Tap { id, filter, body_bytes })
    }

    /// Listens as the API may, which reads no body.
    pub fn without_bodies(bus: &Bus, filter: HopFilter) -> Self {
        let say = |tap| wire::encode(&Inspect::Tap(tap), b"");
        Listener::open(bus, Subjects::inspect, say, |id| Tap { id, filter, body_bytes: 0 })
    }

    fn open(
        bus: &Bus,
        subject: fn(&Subjects, &str) -> String,
        say: impl FnOnce(Tap) -> Bytes,
        tap: impl FnOnce(u64) -> Tap,
    ) -> Self {
        let id = bus.unguessable();
        let (inbox, heard) = bus.open_to_many(id);
        let (bus, message) = (bus.clone(), say(tap(id)));
        Listener { bus, subject, message, inbox, heard, again_at: Instant::now() }
    }

    /// The next hops, or why a process tells none. Cancel-safe.
    ///
    /// # Errors
    /// When NATS is away.
    pub async fn next(&mut self) -> Result<Result<Tapped, Instructed>, TellError> {
        loop {
            if self.again_at <= Instant::now() {
                for service in SERVICES {
                    let subject = (self.subject)(self.bus.subjects(), service);
                    self.bus.forward(subject, self.inbox.clone(), self.message.clone()).await?;
                }
                self.again_at = Instant::now() + TAP_LEASE / 3;
            }
            let heard = timeout_at(self.again_at.into(), self.heard.next()).await;
            let Ok(heard) = heard else { continue };
            let message = heard.ok_or(TellError::Down)?.payload;
            if let Ok((tapped, _)) = wire::decode::<Tapped>(&message) {
                return Ok(Ok(tapped));
            }
            match wire::decode::<Instructed>(&message) {
                Ok((Instructed { fault: None, .. }, _)) | Err(_) => {}
                Ok((refused, _)) => return Ok(Err(refused)),
            }
        }
    }
}

/// Asks all processes, and gathers what they answer within [`GATHER`]: who does not, is not there, or of a version
/// that cannot be asked.
///
/// # Errors
/// When the question cannot be sent.
pub async fn ask(bus: &Bus, question: &Inspect) -> Result<Vec<Report>, AskError> {
    let subjects = SERVICES.map(|service| bus.subjects().inspect(service));
    let replies = bus.ask_all(subjects, wire::encode(question, b""), GATHER).await?;
    let mut reports: Vec<Report> =
        replies.iter().filter_map(|reply| Some(wire::decode::<Report>(reply).ok()?.0)).collect();
    reports.sort_by(|one, other| (&one.service, one.process).cmp(&(&other.service, other.process)));
    Ok(reports)
}

/// A hop of a call, and the process that took it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hop {
    /// Where: caller, api, authorizer, router or target.
    pub at: &'static str,
    /// Which process.
    pub process: NodeId,
    /// Microseconds since 1970 on that process' clock, when it began.
    pub began_us: u64,
    /// Milliseconds that it took.
    pub ms: f64,
    /// How it ended.
    pub end: &'static str,
    /// The limit that was reached.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<&'static str>,
    /// The node that a router handed it to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// By which version of a tenant's policies it was decided; 0: by none of its own.
    pub policy_version: u32,
    /// Milliseconds that were left of the call's time when it began.
    pub budget_ms: u32,
    /// What its device speaks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
}

impl Hop {
    /// A hop that `process` has recorded.
    pub fn of(process: NodeId, record: &HopRecord) -> Self {
        Hop {
            at: record.station.as_str(),
            process,
            began_us: record.began_us,
            ms: f64::from(record.took_us) / 1_000.0,
            end: record.end.as_str(),
            limit: record.limit.map(Limit::as_str),
            node: record.node,
            policy_version: record.policy_version,
            budget_ms: record.budget_ms.as_ms(),
            protocol: record.protocol,
        }
    }
}

/// What all processes together know of a call.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Account {
    /// Its id.
    pub call: String,
    /// Who called: a device's id, or an application's.
    pub from: Option<DeviceId>,
    /// Who was called.
    pub to: Option<DeviceId>,
    /// How it ended where it came in, or as far as it is known.
    pub outcome: Option<&'static str>,
    /// Its hops, in the order of the way.
    pub hops: Vec<Hop>,
    /// Which hop is missing, and what is known of that.
    pub missing: Option<String>,
    /// How many processes have answered.
    pub asked: usize,
}

/// What became of a call. Takes [`GATHER`].
///
/// # Errors
/// When the question cannot be sent.
pub async fn account(bus: &Bus, call: CallId) -> Result<Account, AskError> {
    Ok(Account::of(call, &hops(bus, call).await?, &[]))
}

/// The same, as each process tells its part of it.
///
/// # Errors
/// When the question cannot be sent.
pub async fn hops(bus: &Bus, call: CallId) -> Result<Vec<Report>, AskError> {
    let filter = HopFilter { call: Some(call), ..HopFilter::default() };
    ask(bus, &Inspect::Hops(filter, MAX_TOLD_HOPS)).await
}

impl Account {
    /// Of a call, from what processes tell, and from `more` that the asker knows himself.
    pub fn of(call: CallId, reports: &[Report], more: &[(NodeId, HopRecord)]) -> Self {
        let told = reports.iter().flat_map(|it| it.hops.iter().map(|hop| (it.process, *hop)));
        let mut hops: Vec<(NodeId, HopRecord)> = told.chain(more.iter().copied()).collect();
        hops.sort_by_key(|(_, hop)| (hop.station, hop.began_us));
        let records: Vec<HopRecord> = hops.iter().map(|(_, hop)| *hop).collect();
        let there: Vec<NodeId> =
            reports.iter().map(|it| it.process).chain(more.iter().map(|(process, _)| *process)).collect();
        let known = |id: DeviceId| (!id.0.is_nil()).then_some(id);
        // Of several the last: the router that took over, the node that the call went to after another.
        let ended = records.iter().find(|it| it.station.is_first()).or_else(|| {
            records.iter().rev().find(|it| matches!(it.station, Station::Router | Station::Authorizer))
        });
        Account {
            call: call.to_string(),
            from: records.iter().find_map(|it| known(it.from)),
            to: records.iter().find_map(|it| known(it.to)),
            outcome: ended.filter(|it| it.end != HopEnd::Allowed).map(|it| it.end.as_str()),
            missing: missing(call, &records, &there),
            hops: hops.iter().map(|(process, hop)| Hop::of(*process, hop)).collect(),
            asked: reports.len(),
        }
    }
}

/// What a service counts, for whoever asks how it is. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Numbers(Arc<Mutex<BTreeMap<&'static str, u64>>>);

impl Numbers {
    /// So many there are now.
    pub fn set(&self, name: &'static str, number: usize) {
        self.0.lock().insert(name, number as u64);
    }
}

/// Answers what operators and the API want to know of a process, until it is dropped.
#[must_use]
pub struct Inspected {
    _answering: AbortOnDropHandle<()>,
}

impl Bus {
    /// Answers in the name of the service that has this context and records its hops with this tracer.
    pub fn inspected(&self, context: &Context, tracer: &Tracer, numbers: Numbers) -> Inspected {
        let (context, journal) = (context.clone(), tracer.journal().clone());
        let process = Process { context, journal, numbers, started_ms: unix_ms() };
        Inspected { _answering: AbortOnDropHandle::new(tokio::spawn(process.answer(self.clone()))) }
    }
}

struct Process {
    context: Context,
    journal: Journal,
    numbers: Numbers,
    started_ms: u64,
}

impl Process {
    async fn answer(self, bus: Bus) {
        let (subjects, service) = (bus.subjects(), self.context.service);
        let inspect = || bus.serve(subjects.inspect(service), None);
        let mut asked = bus.again("be inspected", inspect).await;
        let instruct = || bus.serve(subjects.instruct(service), None);
        let mut instructed = bus.again("be instructed", instruct).await;
        let mut telling = JoinSet::new();
        let inboxes = Inboxes::default();
        loop {
            // No answer to what is of a later version.
            tokio::select! {
                Some(Request { message, reply_to, .. }) = asked.next() => {
                    let Some(inbox) = reply_to else { continue };
                    match wire::decode::<Inspect>(&message) {
                        // Of bodies those alone hear who may instruct.
                        Ok((Inspect::Tap(tap), _)) => {
                            let tap = Tap { body_bytes: 0, ..tap };
                            self.tap(&bus, tap, inbox, &inboxes, &mut telling).await;
                        }
                        Ok((Inspect::Status, _)) => {
                            let status = Some(self.status(&bus));
                            say(&bus, inbox, &self.report(&bus, Vec::new(), status)).await;
                        }
                        Ok((Inspect::Hops(filter, most), _)) => {
                            let hops = self.journal.find(&filter, most.min(MAX_TOLD_HOPS) as usize);
                            say(&bus, inbox, &self.report(&bus, hops, None)).await;
                        }
                        Err(_) => {}
                    }
                }
                Some(Request { message, reply_to, .. }) = instructed.next() => {
                    let Some(inbox) = reply_to else { continue };
                    match wire::decode::<Instruct>(&message) {
                        Ok((Instruct::Log(filter, lasts_s), _)) => {
                            self.say_instructed(&bus, inbox, self.log(&filter, lasts_s).err()).await;
                        }
                        Ok((Instruct::Tap(tap), _)) => {
                            self.tap(&bus, tap, inbox, &inboxes, &mut telling).await;
                        }
                        Err(_) => {}
                    }
                }
                else => return,
            }
            while telling.try_join_next().is_some() {}
        }
    }

    fn log(&self, filter: &str, lasts_s: u32) -> Result<(), String> {
        let lasts = Duration::from_secs(lasts_s.into()).min(LONGEST_LOG);
        boot::logs::for_a_while(filter, lasts, self.context.in_force.clone())
    }

    async fn say_instructed(&self, bus: &Bus, inbox: Subject, fault: Option<String>) {
        let (service, process) = (self.context.service.to_owned(), bus.process());
        say(bus, inbox, &Instructed { service, process, fault }).await;
    }

    async fn tap(&self, bus: &Bus, tap: Tap, inbox: Subject, inboxes: &Inboxes, telling: &mut JoinSet<()>) {
        let id = tap.id;
        let opened = self.journal.tap(tap, Instant::now());
        if opened.is_ok() {
            // NATS has another way back for each time that it is said.
            inboxes.lock().insert(id, inbox.clone());
        }
        let fault = match opened {
            Ok(Some(listening)) => {
                let (service, inboxes) = (self.context.service.to_owned(), Arc::clone(inboxes));
                telling.spawn(tell_hops(bus.clone(), service, self.journal.clone(), listening, inboxes));
                None
            }
            Ok(None) => None,
            Err(why) => Some(why.to_owned()),
        };
        self.say_instructed(bus, inbox, fault).await;
    }

    fn report(&self, bus: &Bus, hops: Vec<HopRecord>, status: Option<Status>) -> Report {
        Report { service: self.context.service.to_owned(), process: bus.process(), hops, status }
    }

    /// What of its settings is not as by default, of those that it reads.
    fn settings(&self) -> Vec<(String, String)> {
        let mut settings = changed(&self.context.in_force.now());
        settings.retain(|(path, _)| readers(path).contains(&self.context.service));
        settings
    }

    /// When the certificates in the files that it reads end.
    fn certificates(&self) -> Vec<(String, i64)> {
        let settings = &self.context.settings;
        let files = [
            ("tls.certificate_file", &settings.tls.certificate_file),
            ("nats.tls_ca_file", &settings.nats.tls_ca_file),
        ];
        let is_read = |setting: &str| readers(setting).contains(&self.context.service);
        let ends = files.into_iter().filter(|(setting, _)| is_read(setting)).filter_map(|(setting, file)| {
            Some((setting.to_owned(), first_expiry_s(&std::fs::read(file.as_ref()?).ok()?)?))
        });
        ends.collect()
    }

    fn status(&self, bus: &Bus) -> Status {
        let now_ms = unix_ms();
        let since_us = Some((now_ms.saturating_sub(LATELY_S * 1_000)).saturating_mul(1_000));
        let lately = HopFilter { since_us, ..HopFilter::default() };
        let (held, most) = self.journal.room();
        let numbers = self.numbers.0.lock().clone().into_iter();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Status {
            version: args::version().to_owned(),
            started_ms: self.started_ms,
            now_ms,
            host: host.trim().to_owned(),
            unready: self.context.health.unready(),
            log_level: boot::logs::level(),
            journal: (held as u64, most as u64),
            hops_in_10_s: self.journal.find(&lately, usize::MAX).len() as u64,
            numbers: numbers.map(|(name, number)| (name.to_owned(), number)).collect(),
            max_files: max_open_files(),
            max_payload_bytes: bus.max_payload_bytes() as u64,
            settings: self.settings(),
            certificates: Some(self.certificates()),
        }
    }
}
