//! How does a node come by its claims, and keep them? It asks routers, which own them; and it says that it is alive.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::{AskError, Connection};
use futures::{StreamExt, stream};
use rpc::{
    CLAIM_ATTEMPT, ClaimReply, ClaimRequest, CompareReply, CompareRequest, Generation, HeldClaim,
    LeaseRenewal, Limit, Protocol, ReleaseRequest, SessionEnd, wire,
};
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::device::holding::{Difference, ToMend};
use crate::device::sessions::Session;
use crate::node::Node;
use rpc::Rate;

/// What is done again comes in bursts of this part of a second: timers know milliseconds.
const BURSTS_PER_SECOND: u32 = 50;
/// Between two attempts, while no router is there or the store takes nothing.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How soon a difference is looked at again that may settle.
const SETTLE_PAUSE: Duration = Duration::from_secs(1);
/// How long a router may take to compare one part of the claims.
const COMPARE_WAIT: Duration = Duration::from_secs(2);

/// How a claim ended.
enum Claimed {
    /// It stands, in the place of another session that spoke this.
    Held(Generation, Option<Protocol>),
    /// A newer session's stands.
    TakenOver,
    /// It does not, as far as is known.
    Failed,
}

impl Node {
    /// Has a session's claim written; the session that held one before is ended. False when nobody did it in time.
    pub(crate) async fn claim(&self, session: &Session) -> bool {
        let device = session.visitor.device;
        let started = Instant::now();
        // Who waits here for too long is refused without having cost the store anything; who is let in has time left.
        let Ok(_place) = timeout(self.claim_timeout() / 2, self.claim_places.acquire()).await else {
            self.metrics.limit_hit(Limit::ClaimsInFlight);
            self.metrics.claimed(false, started.elapsed());
            tracing::warn!(%device, session = %session.id, "too many claims wait to be written");
            self.remains_uncalled(&session.visitor);
            return false;
        };
        let claimed = self.ask_for_claim(session, None, started + self.claim_timeout()).await;
        let stands = match claimed {
            Claimed::Held(generation, over) => {
                if let Some(older) = over {
                    self.took_over(session, older);
                }
                self.holding.lock().hold(device, session.id, generation, Instant::now());
                self.metrics.claims.increment(1);
                self.others_may_ask_anew();
                true
            }
            Claimed::TakenOver | Claimed::Failed => {
                // It may stand nevertheless.
                self.tell_release(session.held_as(Generation(0)), None).await;
                self.remains_uncalled(&session.visitor);
                false
            }
        };
        self.metrics.claimed(stands, started.elapsed());
        stands
    }

    fn took_over(&self, newer: &Session, older: Protocol) {
        let device = newer.visitor.device;
        if newer.visitor.protocol.fights(older) && self.takeovers.lock().happened(device, Instant::now()) {
            tracing::warn!(%device, "clients take this device over from each other: its sessions begin later");
        }
    }

    /// Nobody else finds the session: its claim is given up, and only its own.
    pub async fn release(&self, session: &Session, reason: SessionEnd) {
        if self.holding.lock().let_go(session.id, Instant::now()) {
            self.metrics.claims.decrement(1);
            self.tell_release(session.held_as(Generation(0)), Some(reason)).await;
        }
    }

    /// Asks until a router has said how it ended, or `give_up`.
    async fn ask_for_claim(
        &self,
        session: &Session,
        generation: Option<Generation>,
        give_up: Instant,
    ) -> Claimed {
        let visitor = &session.visitor;
        let (mut may_renew, mut is_again) = (true, false);
        loop {
            let now = Instant::now();
            let wait = give_up.saturating_duration_since(now).min(CLAIM_ATTEMPT);
            let request = ClaimRequest {
                device: visitor.device,
                node: self.id,
                session: session.id,
                protocol: visitor.protocol,
                generation,
                until: self.bus.until(now + wait, now),
                visit: visitor.id,
                ticket: visitor.ticket(),
                since_ms: Some(session.since_ms),
                is_again,
            };
            is_again = true;
            let why = match self.ask::<ClaimReply>(self.bus.subjects().claim(), &request, wait).await {
                Ok(ClaimReply::Held { generation, over }) => return Claimed::Held(generation, over),
                Ok(ClaimReply::TakenOver) => return Claimed::TakenOver,
                // Once: it may have been signed with a key that is none any more.
                Ok(ClaimReply::Refused) if may_renew => {
                    may_renew = false;
                    self.reauthenticate(visitor).await;
                    continue;
                }
                Ok(ClaimReply::Refused) => "its ticket does not count".to_owned(),
                Ok(ClaimReply::Unavailable) => "the store did not take it".to_owned(),
                Err(AskError::NoResponders) => "no router is there".to_owned(),
                Err(error) => error.to_string(),
            };
            if Instant::now() + RETRY_PAUSE >= give_up {
                tracing::warn!(device = %visitor.device, session = %session.id, why, "the claim was not written");
                return Claimed::Failed;
            }
            sleep(RETRY_PAUSE).await;
        }
    }

    async fn tell_release(&self, held: HeldClaim, reason: Option<SessionEnd>) {
        let HeldClaim { device, session, .. } = held;
        let release = ReleaseRequest { device, node: self.id, session, reason };
        if let Err(error) = self.bus.tell(self.bus.subjects().release(), wire::encode(&release, b"")).await {
            // Left behind, it is found out at the next call, or when claims are compared.
            tracing::debug!(device = %held.device, session = %held.session, %error, "the claim was not released");
        }
    }

    pub(crate) async fn renew_lease(&self, ends: bool) {
        let sheds = self.sheds();
        let renewal = LeaseRenewal { sheds, ..self.holding.lock().renewal(self.id, ends) };
        let told = self.bus.tell(self.bus.subjects().lease(), wire::encode(&renewal, b"")).await;
        let (mut trouble, now) = (self.lease_trouble.lock(), Instant::now());
        match told {
            Ok(()) => {
                if let Some(after_s) = trouble.over(now) {
                    tracing::info!(after_s, "the node's lease is renewed again");
                }
            }
            Err(error) => {
                if let Some(age_s) = trouble.failed(&error.to_string(), now).say_age_s {
                    tracing::warn!(%error, age_s, "the node's lease was not renewed");
                }
            }
        }
    }

    /// Finds out in which claims a router differs, and mends it. False when something is left.
    async fn compare(&self, parts: u32) -> bool {
        tracing::info!(node = %self.id, "a router knows other claims of this node: they are compared");
        let mut all = true;
        for part in 0..parts {
            let held = self.holding.lock().part(part, parts);
            let request = CompareRequest { node: self.id, part, parts, held };
            let reply = self.ask::<CompareReply>(self.bus.subjects().compare(), &request, COMPARE_WAIT).await;
            let reply = match reply {
                Ok(reply) => reply,
                Err(error) => {
                    tracing::warn!(%error, "the claims cannot be compared now");
                    return false;
                }
            };
            let mend = self.holding.lock().compared(&request.held, &reply);
            self.metrics.claims_lacking.increment(mend.claim.len() as u64);
            all &= self.mend(mend).await;
        }
        all
    }

    async fn mend(&self, ToMend { claim, release }: ToMend) -> bool {
        if !claim.is_empty() || !release.is_empty() {
            tracing::info!(claimed = claim.len(), released = release.len(), "claims are mended");
        }
        for held in release {
            // A session whose claim is being written is not held yet, and is not gone either.
            if self.sessions.find(held.device, held.session).is_none() {
                self.turn_again().await;
                self.tell_release(held, None).await;
            }
        }
        let mend = async |held: HeldClaim| {
            self.turn_again().await;
            match self.sessions.find(held.device, held.session) {
                Some(session) => self.claim_again(&session).await,
                None => true,
            }
        };
        // The other half is for those that come meanwhile.
        let at_a_time = (self.settings().ingress.max_claims_in_flight / 2).max(1);
        let mended = stream::iter(claim).map(mend).buffer_unordered(at_a_time);
        mended.fold(true, async |all, is_mended| all & is_mended).await
    }

    /// False when it is still to be done.
    async fn claim_again(&self, session: &Session) -> bool {
        let Some(generation) = self.holding.lock().generation(session.id) else { return true };
        let give_up = Instant::now() + self.claim_timeout();
        let claimed = self.ask_for_claim(session, Some(generation), give_up).await;
        match claimed {
            Claimed::Held(now, _) => {
                // It may have ended while the claim was being written.
                if !self.holding.lock().hold_again(session.id, now, Instant::now()) {
                    self.tell_release(session.held_as(now), None).await;
                }
            }
            Claimed::TakenOver => self.take_over(session.visitor.device, session.id),
            Claimed::Failed => return false,
        }
        true
    }

    /// Waits for a turn of those that are `reclaim_per_second`.
    pub(crate) async fn turn_again(&self) {
        let per_second = self.settings().ingress.reclaim_per_second;
        let rate = Rate { per_second, burst: per_second / BURSTS_PER_SECOND };
        let wait = self.again.lock().turn(rate, Instant::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }

    fn claim_timeout(&self) -> Duration {
        Duration::from_millis(self.settings().ingress.claim_timeout_ms)
    }

    async fn ask<R: wire::Head>(
        &self,
        subject: String,
        request: &impl wire::Head,
        wait: Duration,
    ) -> Result<R, AskError> {
        let reply = self.bus.ask(subject, wire::encode(request, b""), wait).await?;
        wire::decode(&reply).map(|(reply, _)| reply).map_err(|error| {
            tracing::error!(%error, "a router's answer could not be read");
            AskError::Down
        })
    }
}

/// Whether a router is there that keeps claims.
pub(crate) async fn is_router_there(bus: &bus::Bus) -> Result<(), AskError> {
    let request = CompareRequest { node: bus.process(), part: 0, parts: 1, held: Vec::new() };
    bus.ask(bus.subjects().compare(), wire::encode(&request, b""), COMPARE_WAIT).await.map(|_| ())
}

/// Looks into each difference that a router tells of, for as long as it is polled.
pub async fn mend(node: Arc<Node>, differs: Arc<Notify>) {
    loop {
        differs.notified().await;
        let difference = node.holding.lock().differs(Instant::now());
        if let Difference::Compare(parts) = difference {
            let first = node.mending.write().await;
            let all = node.compare(parts).await;
            drop(first);
            node.holding.lock().mended(!all);
        }
        // Others may have told of the same one.
        sleep(SETTLE_PAUSE).await;
        node.renew_lease(false).await;
        if node.holding.lock().mends() {
            differs.notify_one();
        }
    }
}

/// Renews the node's lease for as long as it runs: routers take a node without one for dead. With each renewal goes
/// what the node holds. A router that is new (`introduce`) hears so at once.
pub async fn keep(node: Arc<Node>, introduce: Arc<Notify>) {
    let mut renewals = interval(Duration::from_millis(node.settings().ingress.lease_ms / 3));
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection = node.bus.connection();
    loop {
        tokio::select! {
            _ = renewals.tick() => {
                let (places, taken) = node.places.all_and_taken();
                node.metrics.connections(taken, places);
                node.renew_lease(false).await;
            }
            () = introduce.notified() => node.renew_lease(false).await,
            changed = connection.changed() => {
                if changed.is_err() {
                    return;
                }
                // Whatever was missed meanwhile shows at once.
                if matches!(*connection.borrow_and_update(), Connection::Up { .. }) {
                    renewals.reset();
                    node.renew_lease(false).await;
                }
            }
        }
    }
}

/// Gives the lease back, so that routers need not wait it out.
pub async fn end_lease(node: &Node) {
    node.renew_lease(true).await;
}
