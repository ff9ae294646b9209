//! What does a node owe the cluster? It takes deliveries for its sessions, and ends the sessions that others have
//! taken over or the registry has disowned.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use boot::config::Settings;
use boot::traces::{Hop, Span, Tracer};
use boot::{InForce, Trouble};
use bus::{Bus, Connection, Request};
use bytes::Bytes;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use rpc::{
    Budget, CredentialHash, Delivery, DeliveryReply, DeviceId, DeviceStanding, DeviceState, HopEnd, HopOf,
    Limit, Method, NodeId, Outcome, SessionId, Station, Takeover, UplinkKind, wire,
};
use tokio::sync::{Notify, RwLock, Semaphore, watch};
use tokio::time::{Instant as Deadline, MissedTickBehavior, interval, timeout_at};
use tracing::field::display;

use crate::calls::Calls;
use crate::device::guesses::{GuessLimits, Guesses};
use crate::device::holding::Holding;
use crate::device::mailbox::{Incoming, Refused, Router};
use crate::device::offenders::{self, Offender, Offenders, Owner, Report, Who};
use crate::device::sessions::{Sessions, Visitor};
use crate::device::shares::NodeShares;
use crate::device::takeovers::Takeovers;
use crate::device::target::{Caller, Conclusion};
use crate::device::uncalled::Uncalled;
use crate::leaving::Leaving;
use crate::measured::Measured;
use crate::metrics::Metrics;
use crate::mqtt::session::SessionLimits;
use crate::port::Places;
use rpc::TokenBucket;

/// One running ingress process: what all of its sessions share.
pub struct Node {
    /// Its name in claims and subjects.
    pub id: NodeId,
    in_force: InForce,
    /// What its sessions are held to, as it follows from the settings.
    pub(crate) limits: watch::Sender<Arc<SessionLimits>>,
    max_connections: usize,
    /// To the other services.
    pub bus: Bus,
    /// Its visitors and their sessions.
    pub sessions: Sessions,
    /// Performs requests.
    pub calls: Calls,
    /// What it tells Prometheus.
    pub metrics: Metrics,
    /// And what of single customers.
    pub(crate) measured: Measured,
    /// What each customer may have of it.
    pub(crate) shares: Arc<NodeShares>,
    /// For its connections.
    pub places: Places,
    /// Its claims, as routers have said that they stand.
    pub(crate) holding: Mutex<Holding>,
    pub(crate) claim_places: Semaphore,
    /// What paces that which is done again after an outage.
    pub(crate) again: Mutex<TokenBucket>,
    /// Held for as long as claims are mended: who only looks again lets that go first.
    pub(crate) mending: RwLock<()>,
    /// With its lease, which is tried at times of its own.
    pub(crate) lease_trouble: Mutex<Trouble>,
    /// Whom it sends away.
    pub(crate) leaving: Leaving,
    /// Whose claims were not written.
    pub(crate) uncalled: Mutex<Uncalled<Weak<Visitor>>>,
    /// One more, or a claim was written that others wait for.
    pub(crate) uncalled_changed: Notify,
    changes: AtomicU64,
    /// Who fights over a device here.
    pub(crate) takeovers: Mutex<Takeovers>,
    /// Who guesses tokens here.
    pub(crate) guesses: Mutex<Guesses>,
    /// Who hits limits here, and who comes in again and again.
    pub(crate) offenders: Mutex<Offenders>,
    tracer: Tracer,
}

/// How often a device must have done it in the time of a report for its name to be told.
const TOLD_FROM: u64 = 10;

impl Node {
    /// A node without sessions.
    pub fn new(in_force: InForce, bus: Bus, calls: Calls, tracer: Tracer, max_connections: usize) -> Self {
        let (id, settings) = (bus.process(), in_force.now());
        let places = Places::new(max_connections);
        let claim_places = Semaphore::new(settings.ingress.max_claims_in_flight);
        let (sessions, metrics) = (Sessions::default(), Metrics::register());
        let guesses = Mutex::new(Guesses::new(GuessLimits::from(&*settings), Instant::now()));
        let (shares, measured) =
            (Arc::clone(&calls.shares), Measured::register(&settings.ingress.measured_customers));
        Node {
            id,
            limits: watch::Sender::new(Arc::new(SessionLimits::from(&*settings))),
            in_force,
            max_connections,
            bus,
            sessions,
            calls,
            metrics,
            measured,
            shares,
            places,
            holding: Mutex::default(),
            claim_places,
            again: Mutex::new(TokenBucket::new(Instant::now())),
            mending: RwLock::default(),
            lease_trouble: Mutex::new(Trouble::new(Duration::ZERO, Duration::ZERO)),
            leaving: Leaving::default(),
            uncalled: Mutex::new(Uncalled::new(Instant::now())),
            uncalled_changed: Notify::new(),
            changes: AtomicU64::new(0),
            takeovers: Mutex::default(),
            guesses,
            offenders: Mutex::new(Offenders::new(Instant::now())),
            tracer,
        }
    }

    /// A device hit a limit: counts it, and who it was.
    pub fn limit_hit(&self, visitor: &Visitor, limit: Limit) {
        self.metrics.limit_hit(limit);
        self.hit(visitor.who(), limit);
    }

    /// A request of a device ended so, after so long: counts it, and who it was where it was one too many.
    pub fn call_ended(&self, visitor: &Visitor, method: Method, outcome: &Outcome, took: Duration) {
        self.metrics.call_ended(method, outcome, took);
        if method == Method::SendMsg {
            self.measured.call_ended(visitor.customer, outcome.name(), took);
        }
        if let Outcome::Busy(limit) = outcome {
            self.hit(visitor.who(), *limit);
        }
    }

    /// Counts who hit a limit.
    pub(crate) fn hit(&self, who: Who, limit: Limit) {
        self.offenders.lock().hit(who, limit, Instant::now());
        self.measured.limit_hit(who.owner.customer, limit);
    }

    /// Shows the worst offenders to Prometheus and in the log, for as long as it is polled.
    pub(crate) async fn tell_offenders(self: Arc<Self>) {
        let mut looks = interval(offenders::WINDOW);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first comes at once.
        looks.tick().await;
        loop {
            looks.tick().await;
            let report = self.offenders.lock().report(Instant::now());
            self.metrics.offenders(&report);
            let Report { seconds, limits, connects } = report;
            let (device, customer) = (limits.worst_device(TOLD_FROM), limits.worst_customer(TOLD_FROM));
            if let Some(Offender { who: Who { device, owner }, times, limit, .. }) = device {
                let (customer, limit) = (owner.customer.map(display), limit.unwrap_or_default());
                tracing::warn!(%device, customer, times, seconds, limit, "a device hits limits again and again");
            }
            if let Some(Offender { who: Owner { tenant, customer }, times, limit, .. }) = customer {
                let (customer, limit) = (customer.map(display), limit.unwrap_or_default());
                tracing::warn!(%tenant, customer, times, seconds, limit, "a customer hits limits again and again");
            }
            if let Some(Offender { who: Who { device, owner }, times, .. }) = connects.worst_device(TOLD_FROM)
            {
                let customer = owner.customer.map(display);
                tracing::warn!(%device, customer, times, seconds, "a device comes in again and again");
            }
        }
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.in_force.now()
    }

    /// What its sessions are held to from now on.
    pub fn limits(&self) -> Arc<SessionLimits> {
        Arc::clone(&self.limits.borrow())
    }

    /// For how long it stays ready without NATS: for nothing when it has no devices to keep.
    pub fn bridges_loss_of_nats(&self) -> Duration {
        match self.sessions.is_empty() {
            true => Duration::ZERO,
            false => Duration::from_millis(self.settings().ingress.ready_without_nats_ms),
        }
    }

    /// The settings have changed: hands on what is not looked up at each use.
    pub fn settings_changed(&self, settings: &Settings) {
        self.limits.send_replace(Arc::new(SessionLimits::from(settings)));
        self.guesses.lock().change(GuessLimits::from(settings));
        self.shares.change(settings, self.max_connections);
    }

    /// A call is over at its device: counts it, and tells the router what is to be told; an answer that came after
    /// that, the API.
    pub async fn conclude(&self, conclusion: Conclusion<Router>) {
        match conclusion {
            Conclusion::Call { reply_to, reply: Some(reply), body } => {
                self.metrics.delivery_ended(reply_to.arrived.elapsed());
                self.reply(reply_to, &reply, &body).await;
            }
            Conclusion::Call { reply: None, .. } => {}
            Conclusion::Late(answer, body) => {
                let (call, subject) = (answer.call, self.bus.subjects().late(answer.call.node));
                let message = wire::encode(&answer, &body);
                match self.bus.tell(subject, message).await {
                    Ok(()) => tracing::debug!(%call, "its answer came late"),
                    Err(error) => tracing::debug!(%call, %error, "a late answer could not be handed on"),
                }
            }
        }
    }

    /// Tells the router how a delivery ended.
    pub(crate) async fn reply(&self, to: Router, reply: &DeliveryReply, body: &[u8]) {
        match reply {
            DeliveryReply::Ended(Outcome::Busy(limit)) => self.metrics.limit_hit(*limit),
            DeliveryReply::Ended(Outcome::TooLargeForTarget) => self.metrics.limit_hit(Limit::PacketBytes),
            _ => {}
        }
        to.span.end_delivery(reply);
        let mut message = wire::encode(reply, body);
        if message.len() > self.bus.max_payload_bytes() {
            // What fits no message is told as such: nobody waits for it in vain.
            message = wire::encode(&DeliveryReply::Ended(Outcome::AnswerTooLarge), b"");
        }
        if let Err(error) = self.bus.tell(to.inbox, message).await {
            tracing::warn!(%error, "an answer could not be handed on");
        }
    }

    /// Hands telemetry or attributes up and waits until NATS has them. False when it did not take them.
    pub async fn uplink(&self, visitor: &Visitor, kind: UplinkKind, payload: Bytes) -> bool {
        let told = self.tell_uplink(visitor, kind, payload).await;
        self.confirm_uplink(visitor, told).await
    }

    /// Hands them up, one behind the other as they are told. False when NATS is away.
    pub async fn tell_uplink(&self, visitor: &Visitor, kind: UplinkKind, payload: Bytes) -> bool {
        let subject = self.bus.subjects().uplink(visitor.tenant, visitor.device, kind);
        self.bus.tell(subject, payload).await.is_ok()
    }

    /// Waits until NATS has what was told. False when it did not take it, or too much of the customer's waits already.
    pub async fn confirm_uplink(&self, visitor: &Visitor, told: bool) -> bool {
        let wait = Duration::from_millis(self.settings().ingress.uplink_timeout_ms);
        let taken = match self.shares.uplink(visitor.party) {
            Ok(_place) => told && self.bus.confirm(wait).await.is_ok(),
            Err(limit) => {
                self.limit_hit(visitor, limit);
                false
            }
        };
        self.metrics.uplinked(taken);
        taken
    }

    /// How many changes of devices this node has heard of. Whoever asks who a device is, and finds a different number
    /// once it has added the session, must ask again: the change may be that device's, and have come in between.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// A newer session of the device has become callable: this one is over.
    pub(crate) fn take_over(&self, device: DeviceId, session: SessionId) {
        self.metrics.takeovers.increment(1);
        self.sessions.take_over(device, session);
    }

    /// Takes one delivery from a router. Says whom to reply what if it is over already.
    fn take_delivery(&self, request: Request) -> Option<(Router, DeliveryReply)> {
        let inbox = request.reply_to?;
        let arrived = request.arrived;
        let Ok((mut delivery, body)) = wire::decode::<Delivery>(&request.message) else {
            tracing::error!("a delivery could not be read");
            let router = Router { inbox, arrived, span: Span::default(), place: None };
            return Some((router, DeliveryReply::Ended(Outcome::Unavailable)));
        };
        let (call, now) = (delivery.call, Instant::now());
        let mut span = self.tracer.follow("deliver", Hop::Asks, &mut delivery.traceparent);
        span.note("switchboard.target", delivery.target);
        let hop = HopOf {
            station: Station::Target,
            call,
            from: delivery.caller.unwrap_or(DeviceId(uuid::Uuid::nil())),
            to: Some(delivery.target),
            party: None,
            budget_ms: delivery.budget_ms,
            protocol: None,
        };
        self.tracer.record(&mut span, hop, HopEnd::TimedOut, now);
        let longest = Budget::from_ms(self.settings().device_api.max_timeout_ms);
        let deadline = delivery.budget_ms.min(longest).starting(arrived);
        let deadline = self.bus.ends(delivery.until.as_ref(), deadline);
        if deadline.has_passed(now) {
            // Its caller has been told that it is over.
            let router = Router { inbox, arrived, span, place: None };
            return Some((router, DeliveryReply::Ended(Outcome::Unavailable)));
        }
        let incoming = Box::new(Incoming {
            call,
            caller: delivery.caller.map(|id| Caller { id, name: delivery.caller_name }),
            oneway: delivery.oneway,
            traceparent: delivery.traceparent,
            method: delivery.method,
            body,
            deadline,
            verdict: delivery.verdict_ms.map(|verdict| verdict.starting(arrived)),
            reply_to: Router { inbox, arrived, span, place: None },
            late: delivery.late,
        });
        let limits = self.limits.borrow().device.target;
        let taken = self.sessions.deliver(delivery.target, delivery.session, incoming, &limits, &self.shares);
        let (refused, incoming) = taken.err()?;
        let reply = match refused {
            Refused::Closed => DeliveryReply::NotHere,
            Refused::Busy(limit) => DeliveryReply::Ended(Outcome::Busy(limit)),
        };
        Some((incoming.reply_to, reply))
    }

    /// Asks an authorizer again who a visitor is: he gets another ticket, or his end.
    pub(crate) async fn reauthenticate(&self, visitor: &Visitor) {
        let credential = CredentialHash::from_digest(visitor.credential);
        let wait = Duration::from_millis(self.settings().ingress.authenticate_timeout_ms);
        match self.calls.authenticate(credential.clone(), visitor.id, wait).await {
            Ok(Some(it)) if it.device == visitor.device => {
                visitor.renew_ticket(it.ticket, Instant::now());
                let now = Some(DeviceStanding { tenant: it.tenant, customer: it.customer, credential });
                self.end_outdated(&DeviceState { device: it.device, now });
            }
            Ok(_) => self.end_outdated(&DeviceState { device: visitor.device, now: None }),
            // Without an answer the visitor stays as he is, until the next look at tickets.
            Err(error) => {
                tracing::debug!(device = %visitor.device, %error, "the visitor was not checked");
                visitor.doubt_ticket();
            }
        }
    }

    fn hear_takeover(&self, message: &Bytes) {
        match wire::decode::<Takeover>(message) {
            Ok((takeover, _)) => self.take_over(takeover.device, takeover.session),
            Err(error) => tracing::error!(%error, "a takeover could not be read"),
        }
    }

    fn take_device_state(&self, message: &Bytes) {
        self.changes.fetch_add(1, Ordering::SeqCst);
        self.guesses.lock().device_changed();
        match wire::decode::<DeviceState>(message) {
            Ok((state, _)) => self.end_outdated(&state),
            Err(error) => tracing::error!(%error, "a device's change could not be read"),
        }
    }

    fn end_outdated(&self, state: &DeviceState) {
        let ended = self.sessions.end_outdated(state);
        if ended > 0 {
            tracing::info!(device = %state.device, ended, "the device changed: its sessions end");
            self.metrics.revocations.increment(ended as u64);
        }
    }
}

/// The node's subscriptions, made before it accepts its first device.
pub struct Inlets {
    /// Calls to its devices.
    pub deliveries: Deliveries,
    /// All else.
    pub news: News,
}

/// What routers deliver to the node.
pub struct Deliveries(bus::Requests);

/// What the node is told seldom. Apart from deliveries: with each of those, all of this would be looked for, too.
pub struct News {
    takeovers: bus::Requests,
    devices: bus::Requests,
    directories: bus::Requests,
    differences: bus::Requests,
    orders: bus::Requests,
    orders_to_all: bus::Requests,
}

impl Inlets {
    /// Subscribes.
    ///
    /// # Errors
    /// When NATS refuses.
    pub async fn open(bus: &Bus) -> Result<Self, bus::BusError> {
        let subjects = bus.subjects();
        let deliveries = Deliveries(bus.serve(subjects.node(bus.process()), None).await?);
        let news = News {
            takeovers: bus.serve(subjects.takeover(bus.process()), None).await?,
            devices: bus.serve(subjects.devices_changed(), None).await?,
            directories: bus.serve(subjects.directory_loaded(), None).await?,
            differences: bus.serve(subjects.claims_differ(bus.process()), None).await?,
            orders: bus.serve(subjects.operate(bus.process()), None).await?,
            orders_to_all: bus.serve(subjects.operate_all(), None).await?,
        };
        Ok(Inlets { deliveries, news })
    }
}

impl Deliveries {
    /// Takes what comes until it is dropped.
    pub async fn serve(mut self, node: Arc<Node>) {
        let taker = Arc::clone(&node);
        self.0.take_locally(move |request| {
            if let Some((router, reply)) = taker.take_delivery(request) {
                let node = Arc::clone(&taker);
                tokio::spawn(async move { node.reply(router, &reply, b"").await });
            }
        });
        while let Some(request) = self.0.next().await {
            if let Some((router, reply)) = node.take_delivery(request) {
                node.reply(router, &reply, b"").await;
            }
        }
    }
}

impl News {
    /// Takes what comes until it is dropped.
    pub async fn serve(mut self, node: Arc<Node>, recheck: Arc<Notify>, differs: Arc<Notify>) {
        loop {
            tokio::select! {
                Some(request) = self.takeovers.next() => node.hear_takeover(&request.message),
                Some(request) = self.devices.next() => node.take_device_state(&request.message),
                Some(_) = self.directories.next() => recheck.notify_one(),
                Some(_) = self.differences.next() => differs.notify_one(),
                Some(request) = self.orders.next() => node.take_order(request).await,
                Some(request) = self.orders_to_all.next() => node.take_order(request).await,
                else => return,
            }
        }
    }
}

/// How often it is looked whose ticket is to be renewed.
const LOOK_AT_TICKETS: Duration = Duration::from_secs(60);

/// Visitors that are looked at again at a time: all nodes do so at once, and calls go on.
const RECHECKED_AT_A_TIME: usize = 8;
/// How long claims that are mended go before it.
const CLAIMS_FIRST: Duration = Duration::from_secs(30);

/// Whenever NATS came back or an authorizer loaded its directory afresh: looks through all visitors, paced, and ends
/// those whose device changed while nobody could say so. Between that, through those whose tickets are old.
pub async fn recheck_visitors(node: Arc<Node>, recheck: Arc<Notify>) {
    let mut connection = node.bus.connection();
    let mut known_epoch = epoch(*connection.borrow_and_update());
    let mut looks = interval(LOOK_AT_TICKETS);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let all = tokio::select! {
            changed = connection.changed() => {
                if changed.is_err() {
                    return;
                }
                let now = epoch(*connection.borrow_and_update());
                let reconnected = now.is_some() && now != known_epoch;
                known_epoch = now.or(known_epoch);
                if !reconnected {
                    continue;
                }
                true
            }
            () = recheck.notified() => true,
            _ = looks.tick() => false,
        };
        let patience = Deadline::now() + CLAIMS_FIRST;
        let recheck = async |visitor: Arc<Visitor>| {
            // Whoever has no claim cannot be called; whoever is looked at again is connected either way. Claims do not
            // wait for an authorizer that does not answer yet: nothing is held while it is asked.
            drop(timeout_at(patience, node.mending.read()).await);
            node.turn_again().await;
            node.reauthenticate(&visitor).await;
        };
        let due = node.sessions.visitors().into_iter().filter(|it| all || it.is_ticket_old(Instant::now()));
        stream::iter(due).for_each_concurrent(RECHECKED_AT_A_TIME, recheck).await;
    }
}

fn epoch(connection: Connection) -> Option<u64> {
    match connection {
        Connection::Up { epoch } => Some(epoch),
        Connection::Down => None,
    }
}
