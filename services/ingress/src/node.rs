//! What does a node owe the cluster? It takes deliveries for its sessions, keeps their claims and its own lease,
//! and ends the sessions that others have overtaken or the registry has disowned.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boot::config::Settings;
use boot::traces::{Hop, Span, Tracer};
use bus::{Bus, ClaimStore, Connection, Reclaimed, Request, Subject};
use bytes::Bytes;
use rpc::{
    Claim, CredentialHash, Delivery, DeliveryReply, DeviceStanding, DeviceState, Eviction, Limit, NodeId,
    Outcome, SessionEvent, UplinkKind, wire,
};
use tokio::sync::Semaphore;
use tokio::time::{MissedTickBehavior, timeout};

use crate::calls::{Calls, now_ms};
use crate::mailbox::{EndReason, Incoming, Refused};
use crate::metrics::Metrics;
use crate::sessions::{HeldClaim, SessionHandle, Sessions};

/// One running ingress process: what all of its sessions share.
pub struct Node {
    /// Its name in claims and subjects.
    pub id: NodeId,
    /// The settings in force.
    pub settings: Arc<Settings>,
    /// To the other services.
    pub bus: Bus,
    /// Its sessions.
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
    tracer: Tracer,
}

impl Node {
    /// A node without sessions.
    pub fn new(settings: Arc<Settings>, bus: Bus, claims: ClaimStore, calls: Calls, tracer: Tracer) -> Self {
        let id = bus.process();
        let places = Arc::new(Semaphore::new(settings.ingress.max_connections.min(Semaphore::MAX_PERMITS)));
        let claim_places = Semaphore::new(settings.ingress.max_claims_in_flight);
        let (sessions, metrics) = (Sessions::default(), Metrics::register());
        let changes = AtomicU64::new(0);
        Node { id, settings, bus, sessions, calls, metrics, places, claims, claim_places, changes, tracer }
    }

    /// Makes a session callable: writes its claim, and ends the session that held one before.
    /// False when the store did not take it.
    pub async fn claim(&self, session: &SessionHandle) -> bool {
        let since_ms = now_ms();
        let claim = session.claim(self.id, since_ms);
        let started = Instant::now();
        // Who waits here for too long is refused without having cost the store anything; who is let in has time left.
        let Ok(_place) = timeout(self.claim_timeout() / 2, self.claim_places.acquire()).await else {
            self.metrics.limit_hit(Limit::ClaimsInFlight);
            self.metrics.claimed(false, started.elapsed());
            tracing::warn!(device = %session.device, session = %session.id, "too many claims wait to be written");
            return false;
        };
        let wait = self.claim_timeout().saturating_sub(started.elapsed());
        let claimed = self.claims.claim(session.device, &claim, wait).await;
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
                tracing::warn!(device = %session.device, session = %session.id, %error, "the claim was not written");
                false
            }
        }
    }

    /// The session is no longer callable: releases its claim, and only its own.
    pub async fn release(&self, session: &SessionHandle) {
        let Some(held) = session.let_go() else { return };
        self.metrics.claims.decrement(1);
        if let Err(error) = self.claims.release(session.device, held.revision).await {
            // Left behind, it is found out at the next call: this node answers "not here".
            tracing::debug!(device = %session.device, session = %session.id, %error, "the claim was not released");
        }
    }

    /// Tells the router how a delivery ended.
    pub async fn reply(&self, reply_to: Subject, span: Span, reply: &DeliveryReply, body: &[u8]) {
        span.end_delivery(reply);
        let Ok(message) = wire::encode(reply, body) else { return };
        if let Err(error) = self.bus.tell(reply_to, message).await {
            tracing::warn!(%error, "an answer could not be handed on");
        }
    }

    /// Tells whoever listens that a session began (`up`) or ended (`down`).
    pub async fn announce(&self, session: &SessionHandle, what: &'static str) {
        let event = SessionEvent { node: self.id, session: session.id, protocol: session.protocol };
        if let Ok(message) = wire::encode(&event, b"") {
            // An event that nobody could be told of is no reason to turn a device away.
            let _ = self.bus.tell(self.bus.subjects().session_event(session.device, what), message).await;
        }
    }

    /// Hands telemetry or attributes up and waits until NATS has them. False when it did not take them.
    pub async fn uplink(&self, session: &SessionHandle, kind: UplinkKind, payload: Bytes) -> bool {
        let subject = self.bus.subjects().uplink(session.tenant, session.device, kind);
        let wait = Duration::from_millis(self.settings.mqtt.uplink_timeout_ms);
        let taken = self.bus.tell_and_confirm(subject, payload, wait).await.is_ok();
        let counter = if taken { &self.metrics.uplinks } else { &self.metrics.uplinks_failed };
        counter.increment(1);
        taken
    }

    /// How many changes of devices this node has heard of. Whoever asks who a device is, and finds a different number
    /// once it has added the session, must ask again: the change may be that device's, and have come in between.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Ends the session whose claim was overtaken.
    async fn evict(&self, newer: &SessionHandle, older: Claim) {
        if older.node == self.id {
            if older.session != newer.id {
                self.metrics.takeovers.increment(1);
                self.sessions.end(newer.device, older.session, EndReason::TakenOver);
            }
            return;
        }
        let eviction = Eviction { session: older.session, device: newer.device };
        let Ok(message) = wire::encode(&eviction, b"") else { return };
        if let Err(error) = self.bus.tell(self.bus.subjects().takeover(older.node), message).await {
            tracing::warn!(device = %newer.device, node = %older.node, %error, "the older session was not told");
        }
    }

    fn claim_timeout(&self) -> Duration {
        Duration::from_millis(self.settings.ingress.claim_timeout_ms)
    }

    /// Takes one delivery from a router.
    async fn take_delivery(&self, request: Request) {
        let Some(reply_to) = request.reply_to else { return };
        let refused = match wire::decode::<Delivery>(&request.message) {
            Ok((mut delivery, body)) => {
                let call = delivery.call;
                let mut span = self.tracer.follow("deliver", Hop::Asks, &mut delivery.traceparent);
                span.note("switchboard.call", call);
                span.note("switchboard.target", delivery.target);
                span.unless_told(Outcome::TimedOut.as_str());
                let arrived = Instant::now();
                let deadline = delivery.budget_ms.starting(arrived);
                let incoming = Box::new(Incoming { delivery, body, arrived, deadline, reply_to, span });
                let Err((refused, incoming)) =
                    self.sessions.deliver(incoming, self.settings.ingress.max_mailbox_calls)
                else {
                    return;
                };
                tracing::debug!(%call, ?refused, "the delivery was not taken");
                match refused {
                    Refused::Closed => (incoming.reply_to, incoming.span, DeliveryReply::NotHere),
                    Refused::Busy(limit) => {
                        self.metrics.limit_hit(limit);
                        (incoming.reply_to, incoming.span, DeliveryReply::Ended(Outcome::Busy(limit)))
                    }
                }
            }
            Err(error) => {
                tracing::error!(%error, "a delivery could not be read");
                (reply_to, Span::default(), DeliveryReply::Ended(Outcome::Unavailable))
            }
        };
        let (reply_to, span, reply) = refused;
        self.reply(reply_to, span, &reply, b"").await;
    }

    fn take_eviction(&self, message: &Bytes) {
        match wire::decode::<Eviction>(message) {
            Ok((eviction, _)) => {
                self.metrics.takeovers.increment(1);
                self.sessions.end(eviction.device, eviction.session, EndReason::TakenOver);
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
        for session in node.sessions.all() {
            if reconnected {
                reclaim(&node, &session).await;
            }
            reauthenticate(&node, &session).await;
            tokio::time::sleep(pause).await;
        }
    }
}

/// How often a claim is tried again before it is left to the next outage, and how long between two tries: JetStream
/// may take longer to come back than NATS.
const RECLAIM_TRIES: u32 = 20;
const RECLAIM_PAUSE: Duration = Duration::from_millis(250);

async fn reclaim(node: &Node, session: &SessionHandle) {
    for _ in 0..RECLAIM_TRIES {
        let Some(held) = session.held() else { return };
        let claim = session.claim(node.id, held.since_ms);
        match node.claims.reclaim(session.device, &claim, node.claim_timeout()).await {
            Ok(Reclaimed::Held { revision }) => {
                if !session.renew_held(held, revision) {
                    // It ended while the claim was being written.
                    let _ = node.claims.release(session.device, revision).await;
                }
                return;
            }
            Ok(Reclaimed::Overtaken(_)) => {
                node.metrics.takeovers.increment(1);
                node.sessions.end(session.device, session.id, EndReason::TakenOver);
                return;
            }
            Err(error) => {
                tracing::debug!(device = %session.device, %error, "the claim was not written again yet");
                tokio::time::sleep(RECLAIM_PAUSE).await;
            }
        }
    }
    tracing::warn!(device = %session.device, session = %session.id, "the claim could not be written again");
}

async fn reauthenticate(node: &Node, session: &SessionHandle) {
    let credential = CredentialHash::from_digest(session.credential);
    let wait = Duration::from_millis(node.settings.ingress.authenticate_timeout_ms);
    match node.calls.authenticate(credential.clone(), wait).await {
        Ok(Some(it)) if it.device == session.device => {
            let now = Some(DeviceStanding { tenant: it.tenant, customer: it.customer, credential });
            node.end_outdated(&DeviceState { device: it.device, now });
        }
        Ok(_) => node.end_outdated(&DeviceState { device: session.device, now: None }),
        // Without an answer the session stays as it is: the next authorizer to load asks for this again.
        Err(error) => tracing::debug!(device = %session.device, %error, "the session was not checked"),
    }
}

fn epoch(connection: Connection) -> Option<u64> {
    match connection {
        Connection::Up { epoch } => Some(epoch),
        Connection::Down => None,
    }
}
