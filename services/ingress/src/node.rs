//! What does a node owe the cluster? It takes deliveries for its sessions, keeps their claims and its own lease,
//! and ends the sessions that others have overtaken or the registry has disowned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boot::config::Settings;
use boot::traces::{Hop, Span, Tracer};
use bus::{Bus, ClaimStore, Connection, Reclaimed, Request};
use bytes::Bytes;
use parking_lot::Mutex;
use rpc::{
    Claim, CredentialHash, Delivery, DeliveryReply, DeviceStanding, DeviceState, Eviction, Limit, NodeId,
    Outcome, Protocol, UplinkKind, wire,
};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, timeout};

use crate::calls::{Calls, now_ms};
use crate::device::mailbox::{Incoming, Refused, Router};
use crate::device::sessions::{HeldClaim, Session, Sessions, Visitor};
use crate::device::takeovers::Takeovers;
use crate::device::target::{Caller, Conclusion};
use crate::metrics::Metrics;

/// One running ingress process: what all of its sessions share.
pub struct Node {
    /// Its name in claims and subjects.
    pub id: NodeId,
    /// The settings in force.
    pub settings: Arc<Settings>,
    /// To the other services.
    pub bus: Bus,
    /// Its visitors and their sessions.
    pub sessions: Sessions,
    /// Performs requests.
    pub calls: Calls,
    /// What it tells Prometheus.
    pub metrics: Metrics,
    /// One for each connection that it may have, whatever its protocol.
    pub places: Arc<Semaphore>,
    claims: ClaimStore,
    claim_places: Semaphore,
    changes: AtomicU64,
    /// Who fights over a device here.
    pub(crate) takeovers: Mutex<Takeovers>,
    tracer: Tracer,
}

impl Node {
    /// A node without sessions.
    pub fn new(settings: Arc<Settings>, bus: Bus, claims: ClaimStore, calls: Calls, tracer: Tracer) -> Self {
        let id = bus.process();
        let places = Arc::new(Semaphore::new(settings.ingress.max_connections.min(Semaphore::MAX_PERMITS)));
        let claim_places = Semaphore::new(settings.ingress.max_claims_in_flight);
        let (sessions, metrics) = (Sessions::default(), Metrics::register());
        let (changes, takeovers) = (AtomicU64::new(0), Mutex::default());
        Node {
            id,
            settings,
            bus,
            sessions,
            calls,
            metrics,
            places,
            claims,
            claim_places,
            changes,
            takeovers,
            tracer,
        }
    }

    /// Writes a session's claim, and ends the session that held one before. False when the store did not take it.
    pub(crate) async fn claim(&self, session: &Session) -> bool {
        let device = session.visitor.device;
        let since_ms = now_ms();
        let claim = session.claim(self.id, since_ms);
        let started = Instant::now();
        // Who waits here for too long is refused without having cost the store anything; who is let in has time left.
        let Ok(_place) = timeout(self.claim_timeout() / 2, self.claim_places.acquire()).await else {
            self.metrics.limit_hit(Limit::ClaimsInFlight);
            self.metrics.claimed(false, started.elapsed());
            tracing::warn!(%device, session = %session.id, "too many claims wait to be written");
            return false;
        };
        let wait = self.claim_timeout().saturating_sub(started.elapsed());
        let claimed = self.claims.claim(device, &claim, wait).await;
        self.metrics.claimed(claimed.is_ok(), started.elapsed());
        match claimed {
            Ok(claimed) => {
                session.hold(HeldClaim { since_ms, revision: claimed.revision });
                self.metrics.claims.increment(1);
                if let Some(older) = claimed.overtaken {
                    self.evict(session, older).await;
                }
                true
            }
            Err(error) => {
                tracing::warn!(%device, session = %session.id, %error, "the claim was not written");
                false
            }
        }
    }

    /// Nobody else finds the session: releases its claim, and only its own.
    pub async fn release(&self, session: &Session) {
        let Some(held) = session.let_go() else { return };
        self.metrics.claims.decrement(1);
        let device = session.visitor.device;
        if let Err(error) = self.claims.release(device, held.revision).await {
            // Left behind, it is found out at the next call: this node answers "not here".
            tracing::debug!(%device, session = %session.id, %error, "the claim was not released");
        }
    }

    /// A call is over at its device: counts it, and tells the router what is to be told.
    pub async fn conclude(&self, conclusion: Conclusion<Router>) {
        let Conclusion { reply_to, reply, body } = conclusion;
        if let Some(reply) = reply {
            self.metrics.delivery_ended(reply_to.arrived.elapsed());
            self.reply(reply_to, &reply, &body).await;
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
        let Ok(message) = wire::encode(reply, body) else { return };
        if let Err(error) = self.bus.tell(to.inbox, message).await {
            tracing::warn!(%error, "an answer could not be handed on");
        }
    }

    /// Hands telemetry or attributes up and waits until NATS has them. False when it did not take them.
    pub async fn uplink(&self, visitor: &Visitor, kind: UplinkKind, payload: Bytes) -> bool {
        let told = self.tell_uplink(visitor, kind, payload).await;
        self.confirm_uplink(told).await
    }

    /// Hands them up, one behind the other as they are told. False when NATS is away.
    pub async fn tell_uplink(&self, visitor: &Visitor, kind: UplinkKind, payload: Bytes) -> bool {
        let subject = self.bus.subjects().uplink(visitor.tenant, visitor.device, kind);
        self.bus.tell(subject, payload).await.is_ok()
    }

    /// Waits until NATS has what was told. False when it did not take it.
    pub async fn confirm_uplink(&self, told: bool) -> bool {
        let wait = Duration::from_millis(self.settings.ingress.uplink_timeout_ms);
        let taken = told && self.bus.confirm(wait).await.is_ok();
        self.metrics.uplinked(taken);
        taken
    }

    /// How many changes of devices this node has heard of. Whoever asks who a device is, and finds a different number
    /// once it has added the session, must ask again: the change may be that device's, and have come in between.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Ends the session whose claim was overtaken.
    async fn evict(&self, newer: &Session, older: Claim) {
        let device = newer.visitor.device;
        // A device that polls has its polls answered by any node: it takes over from itself.
        let both_poll = [older.protocol, newer.visitor.protocol] == [Protocol::Http; 2];
        if older.session != newer.id && !both_poll && self.takeovers.lock().happened(device, Instant::now()) {
            tracing::warn!(%device, "clients take this device over from each other: its sessions begin later");
        }
        if older.node == self.id {
            if older.session != newer.id {
                self.metrics.takeovers.increment(1);
                self.sessions.take_over(device, older.session);
            }
            return;
        }
        let eviction = Eviction { session: older.session, device };
        let Ok(message) = wire::encode(&eviction, b"") else { return };
        if let Err(error) = self.bus.tell(self.bus.subjects().takeover(older.node), message).await {
            tracing::warn!(%device, node = %older.node, %error, "the older session was not told");
        }
    }

    fn claim_timeout(&self) -> Duration {
        Duration::from_millis(self.settings.ingress.claim_timeout_ms)
    }

    /// Takes one delivery from a router.
    async fn take_delivery(&self, request: Request) {
        let Some(inbox) = request.reply_to else { return };
        let arrived = Instant::now();
        let Ok((mut delivery, body)) = wire::decode::<Delivery>(&request.message) else {
            tracing::error!("a delivery could not be read");
            let router = Router { inbox, arrived, span: Span::default() };
            return self.reply(router, &DeliveryReply::Ended(Outcome::Unavailable), b"").await;
        };
        let call = delivery.call;
        let mut span = self.tracer.follow("deliver", Hop::Asks, &mut delivery.traceparent);
        span.note("switchboard.call", call);
        span.note("switchboard.target", delivery.target);
        span.unless_told(Outcome::TimedOut.as_str());
        let incoming = Box::new(Incoming {
            call,
            caller: delivery.caller.map(|id| Caller { id, name: delivery.caller_name }),
            oneway: delivery.oneway,
            traceparent: delivery.traceparent,
            body,
            deadline: delivery.budget_ms.starting(arrived),
            reply_to: Router { inbox, arrived, span },
        });
        let max = self.settings.ingress.max_mailbox_calls;
        let Err((refused, incoming)) =
            self.sessions.deliver(delivery.target, delivery.session, incoming, max)
        else {
            return;
        };
        tracing::debug!(%call, ?refused, "the delivery was not taken");
        let reply = match refused {
            Refused::Closed => DeliveryReply::NotHere,
            Refused::Busy(limit) => DeliveryReply::Ended(Outcome::Busy(limit)),
        };
        self.reply(incoming.reply_to, &reply, b"").await;
    }

    fn take_eviction(&self, message: &Bytes) {
        match wire::decode::<Eviction>(message) {
            Ok((eviction, _)) => {
                self.metrics.takeovers.increment(1);
                self.sessions.take_over(eviction.device, eviction.session);
            }
            Err(error) => tracing::error!(%error, "a takeover could not be read"),
        }
    }

    fn take_device_state(&self, message: &Bytes) {
        self.changes.fetch_add(1, Ordering::SeqCst);
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
    deliveries: bus::Requests,
    takeovers: bus::Requests,
    devices: bus::Requests,
    directories: bus::Requests,
}

impl Inlets {
    /// Subscribes.
    ///
    /// # Errors
    /// When NATS refuses.
    pub async fn open(bus: &Bus) -> Result<Self, bus::BusError> {
        let subjects = bus.subjects();
        Ok(Inlets {
            deliveries: bus.serve(subjects.node(bus.process()), None).await?,
            takeovers: bus.serve(subjects.takeover(bus.process()), None).await?,
            devices: bus.serve(subjects.devices_changed(), None).await?,
            directories: bus.serve(subjects.directory_loaded(), None).await?,
        })
    }

    /// Takes what comes until it is dropped.
    pub async fn serve(mut self, node: Arc<Node>, recheck: Arc<tokio::sync::Notify>) {
        loop {
            tokio::select! {
                Some(request) = self.deliveries.next() => node.take_delivery(request).await,
                Some(request) = self.takeovers.next() => node.take_eviction(&request.message),
                Some(request) = self.devices.next() => node.take_device_state(&request.message),
                Some(_) = self.directories.next() => recheck.notify_one(),
                else => return,
            }
        }
    }
}

/// Renews the node's lease for as long as it runs. Routers take a node without one for dead.
pub async fn keep_lease(node: Arc<Node>) {
    let mut renewals = tokio::time::interval(Duration::from_millis(node.settings.ingress.lease_ms / 3));
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let max_connections = node.settings.ingress.max_connections;
    loop {
        renewals.tick().await;
        let open = max_connections.saturating_sub(node.places.available_permits());
        node.metrics.connections(open, max_connections);
        if let Err(error) = node.claims.renew_lease(node.id).await {
            tracing::warn!(%error, "the node's lease was not renewed");
        }
    }
}

/// Shows whether NATS is there.
pub async fn follow_connection(node: Arc<Node>, ready: boot::Part) {
    let mut connection = node.bus.connection();
    loop {
        match *connection.borrow_and_update() {
            Connection::Up { .. } => ready.ready(),
            Connection::Down => ready.not_ready("NATS is not reachable"),
        }
        if connection.changed().await.is_err() {
            return;
        }
    }
}

/// Gives the lease back, so that routers need not wait it out.
pub async fn end_lease(node: &Node) {
    if let Err(error) = node.claims.end_lease(node.id).await {
        tracing::debug!(%error, "the node's lease was not ended");
    }
}

/// Whenever NATS came back or an authorizer loaded its directory afresh: looks through all sessions, paced, writes
/// claims again that the store may have lost, and ends sessions whose device changed while nobody could say so.
pub async fn recheck_sessions(node: Arc<Node>, recheck: Arc<tokio::sync::Notify>) {
    let mut connection = node.bus.connection();
    let mut known_epoch = epoch(*connection.borrow_and_update());
    loop {
        let reconnected = tokio::select! {
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
            () = recheck.notified() => false,
        };
        if reconnected {
            tracing::info!("NATS is back: writing the claims again");
        }
        let pause = Duration::from_secs(1) / node.settings.ingress.reclaim_per_second.max(1);
        if reconnected {
            for session in node.sessions.sessions() {
                reclaim(&node, &session).await;
                tokio::time::sleep(pause).await;
            }
        }
        for visitor in node.sessions.visitors() {
            reauthenticate(&node, &visitor).await;
            tokio::time::sleep(pause).await;
        }
    }
}

/// How often a claim is tried again before it is left to the next outage, and how long between two tries: JetStream
/// may take longer to come back than NATS.
const RECLAIM_TRIES: u32 = 20;
const RECLAIM_PAUSE: Duration = Duration::from_millis(250);

async fn reclaim(node: &Node, session: &Session) {
    let device = session.visitor.device;
    for _ in 0..RECLAIM_TRIES {
        let Some(held) = session.held() else { return };
        let claim = session.claim(node.id, held.since_ms);
        match node.claims.reclaim(device, &claim, node.claim_timeout()).await {
            Ok(Reclaimed::Held { revision }) => {
                if !session.renew_held(held, revision) {
                    // It ended while the claim was being written.
                    let _ = node.claims.release(device, revision).await;
                }
                return;
            }
            Ok(Reclaimed::Overtaken(_)) => {
                node.metrics.takeovers.increment(1);
                node.sessions.take_over(device, session.id);
                return;
            }
            Err(error) => {
                tracing::debug!(%device, %error, "the claim was not written again yet");
                tokio::time::sleep(RECLAIM_PAUSE).await;
            }
        }
    }
    tracing::warn!(%device, session = %session.id, "the claim could not be written again");
}

async fn reauthenticate(node: &Node, visitor: &Visitor) {
    let credential = CredentialHash::from_digest(visitor.credential);
    let wait = Duration::from_millis(node.settings.ingress.authenticate_timeout_ms);
    match node.calls.authenticate(credential.clone(), wait).await {
        Ok(Some(it)) if it.device == visitor.device => {
            let now = Some(DeviceStanding { tenant: it.tenant, customer: it.customer, credential });
            node.end_outdated(&DeviceState { device: it.device, now });
        }
        Ok(_) => node.end_outdated(&DeviceState { device: visitor.device, now: None }),
        // Without an answer the visitor stays as he is: the next authorizer to load asks for this again.
        Err(error) => tracing::debug!(device = %visitor.device, %error, "the visitor was not checked"),
    }
}

fn epoch(connection: Connection) -> Option<u64> {
    match connection {
        Connection::Up { epoch } => Some(epoch),
        Connection::Down => None,
    }
}
