//! What is asked of the authorizer, and what does it answer? A loop for each subject, nothing kept in between.

use std::borrow::Cow;
use std::iter;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boot::Settings;
use boot::clock::unix_s;
use boot::traces::{Hop, Span, Tracer};
use bus::policies::External;
use bus::registry::App;
use bus::{Bus, BusError, Keyring, Request, Requests, Subject};
use bytes::Bytes;
use futures::FutureExt;
use parking_lot::RwLock;
use rpc::{
    AppAsk, AppCall, AppCaller, AppId, AppIdentity, AppReply, AppRequest, AuthenticateReply,
    AuthenticateRequest, Budget, Call, CallId, CredentialHash, CustomerId, Deadline, DeviceId, Holder,
    HopEnd, HopOf, Identity, JudgeReply, JudgeRequest, Limit, ListRequest, Outcome, Party, Place,
    PresenceReply, PresenceRequest, Rate, Rates, Routed, Says, Seen, Shares, Sought, Stamp, Station, Target,
    TenantId, Ticket, TicketError, wire,
};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::denials::{Denial, Denials, Denied};
use crate::directory::{Known, NoList, Peer};
use crate::discovery::{self, Served};
use crate::external::question::Question;
use crate::external::{Asked, Externals};
use crate::face::{self, CallLimits, Wanted};
use crate::keep::Kept;
use crate::listing::render;
use crate::meters::Meters;
use crate::policy::{Context, Decision, Judge, Live, Refusal, Rules};
use crate::turns::{Queued, Turns};

/// All authorizers share the work.
const QUEUE: &str = "authorizer";
/// How long routers may take to say who is online.
const PRESENCE_WAIT: Duration = Duration::from_secs(2);
/// How long a decision holds: a call that has been on its way for longer is judged again before it is delivered.
const VERDICT_HOLDS: Budget = Budget::from_ms(250);
/// How long whoever asks for a list waits for it.
const LIST_WAIT: Duration = Duration::from_secs(5);
/// Applications whose lists may wait at a time for a router to say who is there.
const MAX_SEEKING: usize = 256;
/// Calls that may wait at a time for the directory to be fresh; further ones are not read until one is.
const MAX_HELD_CALLS: usize = 4_096;

/// Everything that answers need. Nothing in it changes while questions are answered, but the directory and settings.
pub(crate) struct Answers {
    bus: Bus,
    kept: Arc<Kept>,
    keys: Keyring,
    judged: RwLock<Judged>,
    denials: Denials,
    externals: Externals,
    external_questions: Shares<TenantId>,
    turns: Turns,
    /// Of the calls that applications make over NATS.
    last_serial: AtomicU64,
    app_rates: Rates<AppId>,
    served: Served,
    /// Calls that were taken where they were sent, and wait for something.
    left_over: TaskTracker,
    meters: Meters,
    tracer: Tracer,
    route: Subject,
    /// The bounce subject up to where the caller's inbox follows.
    bounce_prefix: String,
}

/// What the settings say of how is judged.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Judged {
    pub(crate) rules: Rules,
    pub(crate) max_devices_per_list: usize,
    /// Of a list that goes on behind a device, unless it says so.
    pub(crate) max_devices_per_page: usize,
    /// Of one customer; 0: no limit.
    pub(crate) list_bytes_per_second: u32,
    /// `device_api.max_timeout_ms`: no hop believes in more.
    pub(crate) max_timeout_ms: u32,
    pub(crate) max_external_questions: usize,
    /// Of those, one tenant's.
    pub(crate) percent_per_tenant: u16,
    /// Of the calls that applications make over NATS.
    pub(crate) app_calls: CallLimits,
    /// Of one application, as the API has it.
    pub(crate) app_rate: Rate,
}

impl From<&Settings> for Judged {
    fn from(settings: &Settings) -> Self {
        let Settings { device_api, authorizer, shares, api, .. } = settings;
        Judged {
            rules: Rules { conceal_foreign_devices: device_api.conceal_foreign_devices },
            max_devices_per_list: device_api.max_devices_per_customer,
            max_devices_per_page: device_api.max_devices_per_page,
            max_timeout_ms: device_api.max_timeout_ms,
            max_external_questions: authorizer.max_external_questions,
            percent_per_tenant: shares.per_customer_percent,
            list_bytes_per_second: authorizer.list_bytes_per_second_per_customer,
            app_calls: CallLimits::from(settings),
            app_rate: Rate { per_second: api.calls_per_second_per_app, burst: api.call_burst_per_app },
        }
    }
}

impl Judged {
    fn external_questions(&self) -> Shares<TenantId> {
        Shares::percent(self.max_external_questions, self.percent_per_tenant)
    }
}

/// Who makes the calls of a subscription.
#[derive(Debug, Clone, Copy)]
enum By {
    Device,
    App,
    AppOverNats,
}

/// A call that is being judged.
struct Judging {
    call: Call,
    body: Bytes,
    inbox: Subject,
    span: Span,
    stamp: Option<Stamp>,
    deadline: Deadline,
    connect_deadline: Deadline,
}

/// A call that waits for an external decision point.
struct Asking {
    judging: Judging,
    put: Put,
    /// One of `authorizer.max_external_questions`.
    _place: Place<TenantId>,
}

/// What an external decision point is to be asked.
struct Put {
    tenant: TenantId,
    external: Arc<External>,
    question: Question,
}

/// A `getDevices` that waits for its answer.
struct AskedList {
    inbox: Subject,
    arrived: Instant,
    span: Span,
}

/// The subscriptions.
pub(crate) struct Questions {
    calls: Requests,
    app_calls: Requests,
    /// What applications call over NATS, and who looks for that; none: it is not taken.
    over_nats: Option<(Requests, [Requests; 3])>,
    apps: Requests,
    judgements: Requests,
    lists: Requests,
    credentials: Requests,
    bounces: Requests,
}

impl Questions {
    /// Subscribes to everything that is asked of an authorizer; by applications over NATS `for_apps` alone. While its
    /// directory may be out of date, others are asked rather, also by its own process.
    pub(crate) async fn subscribe(bus: &Bus, kept: &Arc<Kept>, for_apps: bool) -> Result<Self, BusError> {
        let subjects = bus.subjects();
        let serve = async |subject: String| {
            let kept = Arc::clone(kept);
            let requests = bus.serve(subject, Some(QUEUE)).await?;
            Ok::<_, BusError>(requests.locally_while(move || kept.looks_fresh()))
        };
        Ok(Questions {
            // First, so that a call's bounce is heard from the first call on.
            bounces: bus.serve(subjects.bounces(bus.process()), None).await?,
            credentials: serve(subjects.authenticate()).await?,
            lists: serve(subjects.list()).await?,
            judgements: serve(subjects.judge()).await?,
            apps: serve(subjects.app()).await?,
            app_calls: serve(subjects.app_call()).await?,
            calls: serve(subjects.call()).await?,
            over_nats: match for_apps {
                true => {
                    let calls = bus.serve(subjects.app_calls(), Some(QUEUE)).await?;
                    Some((calls, discovery::subscribe(bus).await?))
                }
                false => None,
            },
        })
    }
}

impl Answers {
    pub(crate) fn new(
        bus: Bus,
        kept: Arc<Kept>,
        keys: Keyring,
        judged: Judged,
        denials: Denials,
        externals: Externals,
        tracer: Tracer,
    ) -> Self {
        let route = bus.subjects().route().into();
        let bounce_prefix = bus.subjects().bounce(bus.process(), "");
        let meters = Meters::new();
        let external_questions = judged.external_questions();
        let turns = Turns::new(judged.list_bytes_per_second);
        let (app_rates, served) = (Rates::new(judged.app_rate), Served::new(&bus, QUEUE));
        Answers {
            bus,
            kept,
            keys,
            judged: RwLock::new(judged),
            denials,
            externals,
            external_questions,
            turns,
            last_serial: AtomicU64::new(0),
            app_rates,
            served,
            left_over: TaskTracker::new(),
            meters,
            tracer,
            route,
            bounce_prefix,
        }
    }

    /// The settings have changed.
    pub(crate) fn settings_changed(&self, settings: &Settings) {
        let judged = Judged::from(settings);
        self.external_questions.resize_as(&judged.external_questions());
        self.turns.change(judged.list_bytes_per_second);
        self.denials.change(settings.audit.denials_per_second);
        *self.judged.write() = judged;
    }

    fn judged(&self) -> Judged {
        *self.judged.read()
    }

    /// Answers until `stop`, then what is still asked until other authorizers have taken over.
    pub(crate) async fn all(self: Arc<Self>, questions: Questions, stop: CancellationToken) {
        let Questions { calls, app_calls, over_nats, apps, judgements, lists, credentials, bounces } =
            questions;
        for (requests, by) in [(&calls, By::Device), (&app_calls, By::App)] {
            let answers = Arc::clone(&self);
            requests.take_locally(move |request| answers.answer_at_once(request, by));
        }
        let mut loops = JoinSet::new();
        loops.spawn(Arc::clone(&self).answer_calls(calls, By::Device, stop.clone()));
        loops.spawn(Arc::clone(&self).answer_calls(app_calls, By::App, stop.clone()));
        loops.spawn(Arc::clone(&self).answer_apps(apps, stop.clone()));
        if let Some((calls, looked_for)) = over_nats {
            loops.spawn(Arc::clone(&self).answer_calls(calls, By::AppOverNats, stop.clone()));
            for requests in looked_for {
                let (answers, stop) = (Arc::clone(&self), stop.clone());
                loops.spawn(async move { answers.served.answer(&answers.bus, requests, &stop).await });
            }
        }
        loops.spawn(Arc::clone(&self).answer_judgements(judgements, stop.clone()));
        loops.spawn(Arc::clone(&self).answer_lists(lists, stop.clone()));
        loops.spawn(Arc::clone(&self).answer_credentials(credentials, stop));
        // Bounces are heard for as long as there may be calls to bounce.
        let calls_ended = CancellationToken::new();
        let mut hearing = JoinSet::new();
        hearing.spawn(Arc::clone(&self).answer_bounces(bounces, calls_ended.clone()));
        while loops.join_next().await.is_some() {}
        self.left_over.close();
        self.left_over.wait().await;
        calls_ended.cancel();
        hearing.join_next().await;
    }

    async fn answer_calls(self: Arc<Self>, mut requests: Requests, by: By, stop: CancellationToken) {
        // Calls that wait for the registry, or for an external decision point; all others wait for none of them.
        let (mut held, mut waiting) = (JoinSet::new(), JoinSet::new());
        while let Some(request) = requests.next_until(&stop).await {
            while held.try_join_next().is_some() || waiting.try_join_next().is_some() {}
            let answers = Arc::clone(&self);
            // Those behind it are read meanwhile: what is not, nobody can say how old it is.
            if !self.kept.looks_fresh() && held.len() < MAX_HELD_CALLS {
                held.spawn(async move {
                    if let Some(asking) = answers.take_call(request, by).await {
                        answers.ask_external(asking).await;
                    }
                });
            } else if let Some(asking) = self.take_call(request, by).await {
                waiting.spawn(async move { answers.ask_external(asking).await });
            }
        }
        while held.join_next().await.is_some() || waiting.join_next().await.is_some() {}
    }

    /// Answers a call where it is sent; what has to wait for something is a task.
    fn answer_at_once(self: &Arc<Self>, request: Request, by: By) {
        let answers = Arc::clone(self);
        let mut taken = Box::pin(async move { answers.take_call(request, by).await });
        let answers = Arc::clone(self);
        match taken.as_mut().now_or_never() {
            Some(None) => {}
            Some(Some(asking)) => {
                self.left_over.spawn(async move { answers.ask_external(asking).await });
            }
            None => {
                self.left_over.spawn(async move {
                    if let Some(asking) = taken.await {
                        answers.ask_external(asking).await;
                    }
                });
            }
        }
    }

    /// Returns what is to be asked elsewhere first; without that the call is done with.
    async fn take_call(&self, request: Request, by: By) -> Option<Asking> {
        let taken = Instant::now();
        let admitted = match by {
            By::Device => self.admit(request, taken).await,
            By::App => self.admit_app(request, taken).await,
            By::AppOverNats => self.admit_over_nats(request).await,
        };
        let asking = match admitted {
            Some(judging) => self.judge(judging).await,
            None => None,
        };
        self.meters.call_seconds.record(taken.elapsed());
        if matches!(by, By::AppOverNats) {
            self.served.taken(taken.elapsed());
        }
        asking
    }

    /// A call that can be judged; any other is answered.
    async fn admit(&self, request: Request, taken: Instant) -> Option<Judging> {
        let arrived = request.arrived;
        let inbox = request.reply_to?;
        let meters = &self.meters.calls;
        let (mut call, body) = match wire::decode::<Call>(&request.message) {
            Ok(call) => call,
            Err(error) => {
                tracing::warn!(%error, "a call cannot be read");
                meters.unreadable.increment(1);
                self.say(inbox, &Outcome::Unavailable, &[]).await;
                return None;
            }
        };
        // A node knows devices alone.
        call.app = None;
        let mut span = self.tracer.follow("decide", Hop::Taken, &mut call.traceparent);
        let Call { caller: from, target, budget_ms, protocol, .. } = call;
        let (station, to, party) = (Station::Authorizer, Some(target), None);
        let of = HopOf { station, call: call.call, from, to, party, budget_ms, protocol };
        self.tracer.record(&mut span, of, HopEnd::CutOff, taken);
        let longest = Budget::from_ms(self.judged().max_timeout_ms);
        let deadline = call.budget_ms.min(longest).starting(arrived);
        let connect_deadline = call.connect_budget_ms.min(longest).starting(arrived);
        let is_fresh = self.kept.is_fresh().await;
        if deadline.has_passed(Instant::now()) {
            self.end_expired(span, inbox).await;
            return None;
        }
        let ticket = call.ticket.take();
        let holder = Holder { device: call.caller, node: call.call.node, visit: call.visit };
        if let Err(why) = self.may_ask(is_fresh, holder, ticket) {
            match why {
                Unheard::Stale => meters.stale.increment(1),
                Unheard::NoTicket => meters.unticketed.increment(1),
            }
            span.end(&Outcome::Unavailable);
            self.say(inbox, &Outcome::Unavailable, &[]).await;
            return None;
        }
        let stamp = ticket.map(|ticket| ticket.stamp());
        Some(Judging { call, body, inbox, span, stamp, deadline, connect_deadline })
    }

    /// A call's time is over. Nothing was delivered, so it has not timed out: nothing is said of the target.
    async fn end_expired(&self, span: Span, inbox: Subject) {
        span.end_as(HopEnd::Expired);
        self.meters.calls.expired.increment(1);
        self.say(inbox, &Outcome::Unavailable, &[]).await;
    }

    /// The same for an application's call: its key stands in it, and in place of a device's the application's id.
    async fn admit_app(&self, request: Request, taken: Instant) -> Option<Judging> {
        let arrived = request.arrived;
        let inbox = request.reply_to?;
        let meters = &self.meters.calls;
        let Ok((head, body)) = wire::decode::<AppCall>(&request.message) else {
            tracing::warn!("an application's call cannot be read");
            meters.unreadable.increment(1);
            self.say(inbox, &Outcome::Unavailable, &[]).await;
            return None;
        };
        let AppCall { call, credential, target, method, until, oneway, mut traceparent, late, .. } = head;
        let mut span = self.tracer.follow("decide", Hop::Taken, &mut traceparent);
        let longest = Budget::from_ms(self.judged().max_timeout_ms);
        let deadline = head.budget_ms.min(longest).starting(arrived);
        let connect_deadline = head.connect_budget_ms.min(longest).starting(arrived);
        let is_fresh = self.kept.is_fresh().await;
        let found = self.kept.directory.app_of(&credential, unix_s());
        let meant = |(_, _, app): &(_, _, Arc<App>)| self.kept.directory.target(app.tenant, &target);
        let to = found.as_ref().map(meant);
        let of = HopOf {
            station: Station::Authorizer,
            call,
            from: DeviceId(found.as_ref().map_or(uuid::Uuid::nil(), |(app, ..)| app.0)),
            to,
            party: None,
            budget_ms: head.budget_ms,
            protocol: None,
        };
        self.tracer.record(&mut span, of, HopEnd::CutOff, taken);
        if matches!(target, Target::Name(_)) {
            span.says(Says::Target);
        }
        if deadline.has_passed(Instant::now()) {
            self.end_expired(span, inbox).await;
            return None;
        }
        let refused = match found.zip(to) {
            _ if !is_fresh => {
                meters.stale.increment(1);
                Outcome::Unavailable
            }
            Some(((app, key, known), target)) => {
                let by = AppCaller { app, key: Some(key), method, late };
                let budgets = (head.budget_ms, head.connect_budget_ms);
                let call = Call { until, oneway, traceparent, ..of_app(call, by, &known, target, budgets) };
                return Some(Judging { call, body, inbox, span, stamp: None, deadline, connect_deadline });
            }
            None => {
                meters.refused(Refusal::UnknownCaller).increment(1);
                Outcome::Denied
            }
        };
        span.end(&refused);
        self.say(inbox, &refused, &[]).await;
        None
    }

    /// The same for an application that calls over NATS, which lets nobody else publish there.
    async fn admit_over_nats(&self, request: Request) -> Option<Judging> {
        let inbox = request.reply_to.clone()?;
        let serial = self.last_serial.fetch_add(1, Ordering::Relaxed) + 1;
        let call = CallId { node: self.bus.process(), serial };
        match self.read_over_nats(&request, call, inbox.clone()).await {
            Ok(judging) => Some(judging),
            Err(outcome) => {
                self.tell_app(inbox, call, &outcome).await;
                None
            }
        }
    }

    async fn read_over_nats(
        &self,
        request: &Request,
        call: CallId,
        inbox: Subject,
    ) -> Result<Judging, Outcome> {
        let (meters, now) = (&self.meters.calls, Instant::now());
        let Some((tenant, app, device)) = self.bus.subjects().app_called(&request.subject) else {
            meters.unreadable.increment(1);
            return Err(Outcome::malformed("the subject must name a tenant and an application by their ids"));
        };
        if !self.kept.is_fresh().await {
            meters.stale.increment(1);
            return Err(Outcome::Unavailable);
        }
        let Some(known) = self.kept.directory.app(app).filter(|known| known.tenant == tenant) else {
            meters.refused(Refusal::UnknownCaller).increment(1);
            return Err(Outcome::Denied);
        };
        if !self.app_rates.take(app, now) {
            return Err(Outcome::Busy(Limit::AppCallRate));
        }
        let wanted =
            face::parse(device, &request.message, |name| request.header(name), &self.judged().app_calls);
        let wanted = wanted.inspect_err(|_| meters.unreadable.increment(1))?;
        let Wanted { target, method, params, timeout, connect_timeout, oneway, mut traceparent } = wanted;
        let mut span = self.tracer.follow("decide", Hop::Taken, &mut traceparent);
        let target = self.kept.directory.target(tenant, &target);
        let (station, from, to) = (Station::Authorizer, DeviceId(app.0), Some(target));
        let party = Some(Party::of(tenant, Some(CustomerId(app.0))));
        let of = HopOf { station, call, from, to, party, budget_ms: timeout, protocol: None };
        self.tracer.record(&mut span, of, HopEnd::CutOff, now);
        span.says(Says::End);
        let (deadline, connect_deadline) =
            (timeout.starting(request.arrived), connect_timeout.starting(request.arrived));
        let by = AppCaller { app, key: None, method, late: None };
        let call = of_app(call, by, &known, target, (timeout, connect_timeout));
        let call = Call { oneway, traceparent, ..call };
        Ok(Judging { call, body: params, inbox, span, stamp: None, deadline, connect_deadline })
    }

    /// Tells applications who they are.
    async fn answer_apps(self: Arc<Self>, mut requests: Requests, stop: CancellationToken) {
        let (mut seeking, places) = (JoinSet::new(), Arc::new(Semaphore::new(MAX_SEEKING)));
        while let Some(request) = requests.next_until(&stop).await {
            let Some(inbox) = request.reply_to else { continue };
            while seeking.try_join_next().is_some() {}
            let Ok((AppRequest { credential, ask }, _)) = wire::decode(&request.message) else {
                // No reply, as for a credential: it is for an authorizer of another version.
                tracing::warn!("an application's question cannot be read");
                self.meters.authentications.unreadable.increment(1);
                continue;
            };
            let is_fresh = self.kept.is_fresh().await;
            let (reply, counter) = self.identify_app(&credential, is_fresh);
            counter.increment(1);
            match ask {
                AppAsk::Devices(sought) if matches!(reply, AppReply::Identity(_)) => {
                    let (answers, places) = (Arc::clone(&self), Arc::clone(&places));
                    seeking.spawn(async move {
                        // Who finds no place waits for no router either.
                        let reply = match places.try_acquire() {
                            Ok(_place) => answers.seek(&credential, &sought).await,
                            Err(_) => AppReply::Unavailable,
                        };
                        answers.say(inbox, &reply, &[]).await;
                    });
                }
                AppAsk::Devices(_) | AppAsk::Who => self.say(inbox, &reply, &[]).await,
            }
        }
        while seeking.join_next().await.is_some() {}
    }

    /// The devices that an application seeks, and which of them a router knows to be there.
    async fn seek(&self, credential: &CredentialHash, sought: &Sought) -> AppReply {
        let now_s = unix_s();
        let Some((id, _, app)) = self.kept.directory.app_of(credential, now_s) else {
            return AppReply::Refused;
        };
        let mut page = self.kept.directory.seek(&app, sought);
        page.devices.retain(|device| self.kept.judges.may_see(id, &app, device.id, now_s));
        if page.devices.is_empty() {
            return AppReply::Devices(page);
        }
        let devices = page.devices.iter().map(|it| it.id).collect();
        let question = wire::encode(&PresenceRequest { devices, places: true, seen: sought.seen }, &[]);
        let answer = self.bus.ask(self.bus.subjects().presence(), question, PRESENCE_WAIT).await;
        let Ok(Ok((presence, _))) = answer.map(|answer| wire::decode::<PresenceReply>(&answer)) else {
            return AppReply::Unavailable;
        };
        let places = presence.places.unwrap_or_default().into_iter().chain(iter::repeat(None));
        let seen = presence.seen.unwrap_or_default().into_iter().chain(iter::repeat(None));
        for (((device, online), place), seen) in
            page.devices.iter_mut().zip(presence.online).zip(places).zip(seen)
        {
            (device.online, device.place, device.seen) = (online, place, seen);
        }
        AppReply::Devices(page)
    }

    fn identify_app(&self, credential: &CredentialHash, is_fresh: bool) -> (AppReply, &metrics::Counter) {
        let meters = &self.meters.authentications;
        if !is_fresh {
            return (AppReply::Unavailable, &meters.stale);
        }
        let found = self.kept.directory.app_of(credential, unix_s());
        let Some((app, key, known)) = found else { return (AppReply::Refused, &meters.refused) };
        let expires_s = known.keys.get(&key).map_or(0, |it| it.expires_s);
        let (tenant, name, role) = (known.tenant, known.name.clone(), known.role);
        let networks = known.networks.as_ref().map(|all| all.iter().cloned().collect());
        let (customers, labels) = (known.customers.clone(), known.labels.clone());
        let identity = AppIdentity { app, key, tenant, name, role, expires_s, customers, labels, networks };
        (AppReply::Identity(identity), &meters.identified)
    }

    /// Forwards an allowed call and answers a refused one, unless somebody else has to be asked.
    async fn judge(&self, mut judging: Judging) -> Option<Asking> {
        let asked = judging.asked();
        if !self.kept.judges.is_empty() {
            let tenant = self.kept.directory.tenant_of(asked.caller);
            judging.span.decided_by(self.kept.judges.version(tenant));
        }
        // A ticket for the token before is none: its session is about to end.
        match self.decide(&asked, |known| Some(known) == judging.stamp) {
            Decision::Refuse(refusal) => self.refuse(judging, refusal).await,
            Decision::Allow => match self.external(&asked) {
                None => self.forward(judging).await,
                Some(put) => match self.externals.without_asking(put.tenant, &put.external, &put.question) {
                    Some(answer) => self.follow(judging, answer).await,
                    None => match self.external_questions.take(put.tenant) {
                        Ok(place) => return Some(Asking { judging, put, _place: place }),
                        Err(_) => self.follow(judging, self.externals.busy()).await,
                    },
                },
            },
        }
        None
    }

    /// What the caller's tenant wants to be asked elsewhere, about a call that its policies permit.
    fn external(&self, asked: &JudgeRequest) -> Option<Put> {
        let Kept { directory, judges, .. } = &*self.kept;
        let tenant = directory.tenant_of(asked.caller)?;
        let external = judges.external(tenant)?;
        let judge = judges.of(tenant)?;
        let ((_, caller), (_, target)) = (directory.facts(asked.caller)?, directory.facts(asked.target)?);
        let context = context(asked, judge.utc_offset_min());
        let question = Question::of(tenant, judge.version(), &caller, &target, &context);
        Some(Put { tenant, external, question })
    }

    async fn ask_external(&self, asking: Asking) {
        let Asking { judging, put: Put { tenant, external, question }, _place } = asking;
        let left = judging.deadline.remaining(Instant::now()).as_duration();
        let answer = self.externals.ask(tenant, &external, &question, left).await;
        // Meanwhile devices or policies may have changed.
        match self.decide(&judging.asked(), |known| Some(known) == judging.stamp) {
            Decision::Allow => self.follow(judging, answer).await,
            Decision::Refuse(refusal) => self.refuse(judging, refusal).await,
        }
    }

    /// Does as an external decision point says.
    async fn follow(&self, judging: Judging, answer: Asked) {
        let Some(objection) = answer.objection else { return self.forward(judging).await };
        self.meters.calls.external.increment(1);
        let why = match answer.reason.as_str() {
            "" => objection.as_str().into(),
            reason => format!("{}: {reason}", objection.as_str()).into(),
        };
        let asked = judging.asked();
        self.record_denied_call(&asked, self.kept.directory.tenant_of(asked.caller), why);
        self.end_refused(judging, objection.as_str(), Outcome::Denied).await;
    }

    async fn refuse(&self, judging: Judging, refusal: Refusal) {
        self.end_refused(judging, refusal.as_str(), refusal.outcome()).await;
    }

    async fn end_refused(&self, judging: Judging, reason: &'static str, outcome: Outcome) {
        let Judging { call, inbox, mut span, .. } = judging;
        span.note("switchboard.refusal", reason);
        span.end(&outcome);
        self.tell_ended(inbox, &call, &outcome).await;
    }

    async fn forward(&self, judging: Judging) {
        let Judging { call, body, inbox, span, deadline, connect_deadline, .. } = judging;
        let meters = &self.meters.calls;
        let bounce = match call.app.as_ref().is_some_and(AppCaller::is_over_nats) {
            true => self.bus.subjects().app_bounce(self.bus.process(), call.call, &inbox),
            false => [self.bounce_prefix.as_str(), inbox.as_str()].concat(),
        };
        let now = Instant::now();
        let call = Call {
            budget_ms: deadline.remaining(now),
            connect_budget_ms: connect_deadline.remaining(now),
            ..call
        };
        let verdict_ms = Some(VERDICT_HOLDS);
        let directory = &self.kept.directory;
        let party = match &call.app {
            None => directory.party_of(call.caller),
            // An application has a share of its own.
            Some(by) => directory.app(by.app).map(|app| Party::of(app.tenant, Some(CustomerId(by.app.0)))),
        };
        let routed = Routed { call, verdict_ms, party, reply_to: inbox.as_str().to_owned() };
        match self.bus.forward(self.route.clone(), bounce, wire::encode(&routed, &body)).await {
            Ok(()) => {
                meters.allowed.increment(1);
                span.end_as(HopEnd::Allowed);
            }
            Err(error) => {
                tracing::warn!(call = %routed.call.call, %error, "an allowed call cannot be sent on");
                meters.unsent.increment(1);
                span.end(&Outcome::Unavailable);
                self.tell_ended(inbox, &routed.call, &Outcome::Unavailable).await;
            }
        }
    }

    /// Decides over a call, and records a refusal. `counts` says whether the caller's ticket does.
    fn decide(&self, asked: &JudgeRequest, counts: impl FnOnce(Stamp) -> bool) -> Decision {
        if let Some(by) = &asked.app {
            let Kept { directory, judges, .. } = &*self.kept;
            let context = |utc_offset_min| context(asked, utc_offset_min).by_method(&by.method);
            let decision = judges.decide_app(directory, by, asked.target, unix_s(), context);
            let tenant = directory.app(by.app).map(|app| app.tenant);
            return self.decided(asked, tenant, decision);
        }
        let (caller, target) = self.kept.directory.standings(asked.caller, asked.target);
        let caller = caller.filter(|(_, stamp)| counts(*stamp)).map(|(caller, _)| caller);
        let context = |utc_offset_min| context(asked, utc_offset_min);
        let decision =
            self.kept.judges.decide(caller.as_ref(), target.as_ref(), self.judged().rules, context);
        self.decided(asked, caller.map(|caller| caller.tenant), decision)
    }

    fn decided(&self, asked: &JudgeRequest, tenant: Option<TenantId>, decision: Decision) -> Decision {
        if let Decision::Refuse(refusal) = decision {
            self.meters.calls.refused(refusal).increment(1);
            self.record_denied_call(asked, tenant, refusal.as_str().into());
        }
        decision
    }

    /// Judges calls again that have waited, each when it is about to be delivered. Routers ask for calls that an
    /// authorizer has sent them, whose tickets are checked.
    async fn answer_judgements(self: Arc<Self>, mut requests: Requests, stop: CancellationToken) {
        while let Some(request) = requests.next_until(&stop).await {
            let Some(inbox) = request.reply_to else { continue };
            let Ok((asked, _)) = wire::decode::<JudgeRequest>(&request.message) else {
                tracing::warn!("a question about a call that waited cannot be read");
                continue;
            };
            let reply = match self.kept.is_fresh().await {
                false => JudgeReply::Refused(Outcome::Unavailable),
                true => match self.decide(&asked, |_| true) {
                    Decision::Allow => JudgeReply::Allowed(VERDICT_HOLDS),
                    Decision::Refuse(refusal) => JudgeReply::Refused(refusal.outcome()),
                },
            };
            self.say(inbox, &reply, &[]).await;
        }
    }

    /// Whether the directory knows how things are now, and an authorizer has seen the asker where he asks.
    fn may_ask(&self, is_fresh: bool, holder: Holder, ticket: Option<Ticket>) -> Result<(), Unheard> {
        if !is_fresh {
            return Err(Unheard::Stale);
        }
        let checked = ticket.ok_or(TicketError::Forged).and_then(|ticket| self.keys.check(&ticket, holder));
        let Err(error) = checked else { return Ok(()) };
        tracing::warn!(device = %holder.device, node = %holder.node, %error, "a ticket does not count");
        self.denials.tell(Denial {
            denied: Denied::Ticket,
            tenant: self.kept.directory.tenant_of(holder.device),
            caller: Some(holder.device),
            target: None,
            node: holder.node,
            version: 0,
            why: error.as_str().into(),
        });
        if error != TicketError::Forged {
            self.kept.is_recheck_due.store(true, Ordering::Relaxed);
        }
        Err(Unheard::NoTicket)
    }

    /// Tells callers that no router was there: the server says so on the subject that ends in the caller's inbox.
    async fn answer_bounces(self: Arc<Self>, mut requests: Requests, stop: CancellationToken) {
        let subjects = self.bus.subjects();
        while let Some(request) = requests.next_until(&stop).await {
            let bounced = subjects.bounced_inbox(self.bus.process(), &request.subject);
            let is_one = |(_, inbox): &(_, &str)| request.no_responders && subjects.is_inbox(inbox);
            let Some((of_app, inbox)) = bounced.filter(is_one) else { continue };
            tracing::debug!(inbox, "no router is there");
            self.meters.bounces.increment(1);
            match of_app {
                Some(call) => self.tell_app(inbox, call, &Outcome::Unavailable).await,
                None => self.say(inbox, &Outcome::Unavailable, &[]).await,
            }
        }
    }

    async fn answer_credentials(self: Arc<Self>, mut requests: Requests, stop: CancellationToken) {
        while let Some(request) = requests.next_until(&stop).await {
            let arrived = Instant::now();
            self.answer_credential(request).await;
            self.meters.authenticate_seconds.record(arrived.elapsed());
        }
    }

    async fn answer_credential(&self, request: Request) {
        let Some(inbox) = request.reply_to else { return };
        let meters = &self.meters.authentications;
        let Ok((AuthenticateRequest { credential, node, visit }, _)) = wire::decode(&request.message) else {
            // No reply: a question of a kind unknown here is one for an authorizer of another version.
            tracing::warn!("a credential question cannot be read");
            return meters.unreadable.increment(1);
        };
        // Also to refuse, one must know how things are now.
        let is_fresh = self.kept.is_fresh().await;
        let reply = match self.kept.directory.identify(&credential) {
            _ if !is_fresh => {
                meters.stale.increment(1);
                AuthenticateReply::Unavailable
            }
            Some(Known { device, tenant, customer, name, stamp }) => {
                match self.keys.sign(Holder { device, node, visit }, stamp) {
                    Some(ticket) => {
                        meters.identified.increment(1);
                        AuthenticateReply::Identity(Identity { device, tenant, customer, name, ticket })
                    }
                    None => AuthenticateReply::Unavailable,
                }
            }
            None => {
                meters.refused.increment(1);
                self.denials.tell(Denial {
                    denied: Denied::Token,
                    tenant: None,
                    caller: None,
                    target: None,
                    node,
                    version: 0,
                    why: "no device has it".into(),
                });
                AuthenticateReply::Refused
            }
        };
        self.say(inbox, &reply, &[]).await;
    }

    async fn answer_lists(self: Arc<Self>, mut requests: Requests, stop: CancellationToken) {
        // Each in a task of its own: what it takes to write a list, and to wait for its turn, holds up nobody else.
        let mut asking = JoinSet::new();
        while let Some(request) = requests.next_until(&stop).await {
            let arrived = request.arrived;
            while asking.try_join_next().is_some() {}
            let Some(inbox) = request.reply_to else { continue };
            let Ok((mut list, _)) = wire::decode::<ListRequest>(&request.message) else {
                tracing::warn!("a list question cannot be read");
                let asked = AskedList { inbox, arrived, span: Span::default() };
                self.end_list(asked, Err(Outcome::Unavailable)).await;
                continue;
            };
            let span = self.tracer.follow("list", Hop::Taken, &mut list.traceparent);
            let asked = AskedList { inbox, arrived, span };
            let holder = Holder { device: list.caller, node: list.node, visit: list.visit };
            if self.may_ask(self.kept.is_fresh().await, holder, list.ticket).is_err() {
                self.end_list(asked, Err(Outcome::Unavailable)).await;
                continue;
            }
            let party = self.kept.directory.party_of(list.caller);
            match party.map(|party| self.turns.queue(party)).transpose() {
                Ok(queued) => {
                    let (answers, stop) = (Arc::clone(&self), stop.clone());
                    asking.spawn(async move { answers.answer_list(list, asked, queued, stop).await });
                }
                Err(limit) => self.end_list(asked, Err(Outcome::Busy(limit))).await,
            }
        }
        while asking.join_next().await.is_some() {}
    }

    async fn answer_list(
        &self,
        list: ListRequest,
        asked: AskedList,
        queued: Option<Queued>,
        stop: CancellationToken,
    ) {
        let turn = match queued {
            Some(queued) => Some(queued.turn().await),
            None => None,
        };
        if asked.arrived.elapsed() >= LIST_WAIT {
            // Whoever asked has given up.
            asked.span.end_as(HopEnd::Expired);
            return self.meters.list("expired");
        }
        // What held when it was asked may hold no more.
        let answer = match self.kept.is_fresh().await {
            true if list.online => self.list_with_presence(&list).await,
            true => self.list(&list),
            false => Err(Outcome::Unavailable),
        };
        if answer == Err(Outcome::Denied) {
            self.record_denied_list(&list);
        }
        let bytes = answer.as_ref().map_or(0, Vec::len);
        self.end_list(asked, answer).await;
        if let Some(turn) = turn {
            // Whoever stops lets all of them go.
            stop.run_until_cancelled(turn.pass_on(bytes)).await;
        }
    }

    /// Whether the caller may list, and how many.
    fn limit_of(&self, list: &ListRequest) -> Result<usize, Outcome> {
        if self.kept.directory.stamp(list.caller) != list.ticket.map(|ticket| ticket.stamp()) {
            return Err(Outcome::Denied);
        }
        let Judged { max_devices_per_list, max_devices_per_page, .. } = self.judged();
        let unsaid = if list.after.is_some() { max_devices_per_page } else { max_devices_per_list };
        Ok(list.limit.map_or(unsaid, |limit| limit as usize).min(max_devices_per_list))
    }

    /// The tenant's policies, and what they may know of a list, if it has some of its own.
    fn judge_of(&self, list: &ListRequest) -> Option<(Arc<Judge>, Context)> {
        let Kept { directory, judges, .. } = &*self.kept;
        let judge = directory.tenant_of(list.caller).and_then(|tenant| judges.of(tenant))?;
        let context = Context::of_list(unix_s(), judge.utc_offset_min()).over(list.protocol);
        (!matches!(judge.live(), Live::BuiltIn)).then_some((judge, context))
    }

    /// The list without who is online: out of what is rendered already, where that reaches so far.
    fn list(&self, list: &ListRequest) -> Result<Vec<u8>, Outcome> {
        let limit = self.limit_of(list)?;
        // The caller, left out, makes room for one more.
        let most = self.judged().max_devices_per_list.saturating_add(1);
        let listing = match self.judge_of(list) {
            Some((judge, context)) => judge.listing(list.caller, most, &context),
            None => self.kept.directory.listing(list.caller, most).map_err(|_| Outcome::Denied)?,
        };
        match listing.page(list.caller, list.after, limit) {
            Some(page) => Ok(page),
            None => Ok(render(self.peers(list)?.iter().map(|it| (&*it.name, it.id, None)))),
        }
    }

    fn peers(&self, list: &ListRequest) -> Result<Vec<Peer>, Outcome> {
        let limit = self.limit_of(list)?;
        let unknown_after = || Outcome::malformed("after must be the id of a device of the list");
        if let Some((judge, context)) = self.judge_of(list) {
            let listed = judge.list(list.caller, list.after, limit, &context).ok_or_else(unknown_after)?;
            return Ok(listed.into_iter().map(|(name, id)| Peer { id, name }).collect());
        }
        self.kept.directory.peers(list.caller, list.after, limit).map_err(|reason| match reason {
            NoList::Unassigned => Outcome::Denied,
            NoList::UnknownAfter => unknown_after(),
        })
    }

    fn record_denied_call(&self, asked: &JudgeRequest, tenant: Option<TenantId>, why: Cow<'static, str>) {
        tracing::debug!(call = %asked.call, caller = %asked.caller, target = %asked.target, %why, "refused");
        self.denials.tell(Denial {
            denied: Denied::Call,
            tenant,
            caller: Some(asked.caller),
            target: Some(asked.target),
            node: asked.call.node,
            version: self.kept.judges.version(tenant),
            why,
        });
    }

    fn record_denied_list(&self, list: &ListRequest) {
        let tenant = self.kept.directory.tenant_of(list.caller);
        let is_known = self.kept.directory.stamp(list.caller) == list.ticket.map(|ticket| ticket.stamp());
        self.denials.tell(Denial {
            denied: Denied::List,
            tenant,
            caller: Some(list.caller),
            target: None,
            node: list.node,
            version: self.kept.judges.version(tenant),
            why: if is_known { Refusal::NotAllowed.as_str() } else { Refusal::UnknownCaller.as_str() }.into(),
        });
    }

    async fn list_with_presence(&self, list: &ListRequest) -> Result<Vec<u8>, Outcome> {
        let peers = self.peers(list)?;
        let devices = peers.iter().map(|peer| peer.id).collect();
        let question = PresenceRequest { devices, places: false, seen: false };
        let message = wire::encode(&question, &[]);
        // Smaller than the list that it is for.
        if message.len() > self.bus.max_payload_bytes() {
            return Err(too_long());
        }
        let answer = self.bus.ask(self.bus.subjects().presence(), message, PRESENCE_WAIT).await;
        let answer = answer.map_err(|error| {
            tracing::debug!(%error, "no router says who is online");
            Outcome::Unavailable
        })?;
        match wire::decode::<PresenceReply>(&answer) {
            Ok((PresenceReply { online, .. }, _)) if online.len() == peers.len() => {
                let online = online.into_iter().map(Some);
                Ok(render(peers.iter().zip(online).map(|(it, online)| (&*it.name, it.id, online))))
            }
            _ => Err(Outcome::Unavailable),
        }
    }

    async fn end_list(&self, asked: AskedList, list: Result<Vec<u8>, Outcome>) {
        let AskedList { inbox, arrived, span } = asked;
        // The head of an answer is a few bytes; 64 leave room for it.
        let list = list.and_then(|list| match list.len() + 64 > self.bus.max_payload_bytes() {
            true => Err(too_long()),
            false => Ok(list),
        });
        let (outcome, body) = match list {
            Ok(list) => (Outcome::Answered, list),
            Err(outcome) => (outcome, Vec::new()),
        };
        self.meters.list(outcome.as_str());
        span.end(&outcome);
        self.say(inbox, &outcome, &body).await;
        self.meters.list_seconds.record(arrived.elapsed());
    }

    /// Answers the caller of a call that no router has.
    async fn tell_ended(&self, inbox: Subject, call: &Call, outcome: &Outcome) {
        match call.app.as_ref().is_some_and(AppCaller::is_over_nats) {
            true => self.tell_app(inbox, call.call, outcome).await,
            false => self.say(inbox, outcome, &[]).await,
        }
    }

    /// The same for an application that called over NATS. What no router has nobody has seen.
    async fn tell_app(&self, inbox: impl Into<Subject>, call: CallId, outcome: &Outcome) {
        self.served.refused(outcome);
        let ended = (outcome, Seen::Never);
        if let Err(error) = self.bus.tell_app(inbox, Some(call), ended, Bytes::new()).await {
            tracing::debug!(%error, "an answer cannot be sent");
        }
    }

    async fn say(&self, inbox: impl Into<Subject>, head: &impl wire::Head, body: &[u8]) {
        if let Err(error) = self.bus.tell(inbox, wire::encode(head, body)).await {
            tracing::debug!(%error, "an answer cannot be sent");
        }
    }
}

impl Judging {
    /// The call, as it is judged.
    fn asked(&self) -> JudgeRequest {
        JudgeRequest {
            call: self.call.call,
            caller: self.call.caller,
            target: self.call.target,
            budget_ms: self.call.budget_ms,
            size_bytes: u32::try_from(self.body.len()).unwrap_or(u32::MAX),
            protocol: self.call.protocol,
            oneway: self.call.oneway,
            app: self.call.app.clone(),
        }
    }
}

/// What policies may know of a call.
/// An application's call, with what there is of one whoever brought it; `budgets`: of the call, and until it connects.
fn of_app(call: CallId, by: AppCaller, known: &App, target: DeviceId, budgets: (Budget, Budget)) -> Call {
    let (budget_ms, connect_budget_ms) = budgets;
    Call {
        call,
        caller: DeviceId(by.app.0),
        caller_name: known.name.clone(),
        visit: 0,
        ticket: None,
        target,
        budget_ms,
        until: None,
        connect_budget_ms,
        protocol: None,
        oneway: false,
        traceparent: None,
        app: Some(by),
    }
}

fn context(asked: &JudgeRequest, utc_offset_min: i16) -> Context {
    let budget_ms = asked.budget_ms.as_ms();
    Context::of_call(asked.oneway, budget_ms, asked.size_bytes, unix_s(), utc_offset_min).over(asked.protocol)
}

/// Why nobody is heard.
enum Unheard {
    /// The directory may be out of date.
    Stale,
    /// The asker's ticket does not count.
    NoTicket,
}

fn too_long() -> Outcome {
    Outcome::malformed("the list is too long for one answer: ask for pages with limit and after")
}
