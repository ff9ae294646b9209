//! How does a device come in, become callable, and go? One way for all protocols, where it is counted and told.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rpc::{CredentialHash, DeliveryReply, Identity, Limit, Party, Protocol, SessionEnd, SessionEvent};
use sha2::{Digest, Sha256};

use super::guesses::{NoTurn, Source};
use super::mailbox::{EndReason, Mail};
use super::offenders::{Owner, Who};
use super::sessions::{CredentialDigest, Session, Visitor};
use crate::device_api::Refusal;
use crate::metrics::ConnectResult;
use crate::node::Node;
use boot::clock::unix_ms;

/// Why a device is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotAdmitted {
    /// Nobody has that token.
    Unknown,
    /// Too many tokens that nobody has came from there, or from everywhere: later.
    TooManyGuesses,
    /// The authorizer or NATS could not be reached.
    Unavailable,
    /// Its customer has as much of this node as he may.
    Busy(Limit),
    /// The node sends its devices away.
    Closed,
}

impl From<NotAdmitted> for Refusal {
    fn from(why: NotAdmitted) -> Self {
        match why {
            NotAdmitted::Unknown => Refusal::UnknownToken,
            NotAdmitted::TooManyGuesses | NotAdmitted::Busy(_) => Refusal::TooOften,
            NotAdmitted::Unavailable => Refusal::Unavailable,
            NotAdmitted::Closed => Refusal::Moved,
        }
    }
}

/// What everything behind this node knows of an access token.
pub fn digest(token: &[u8]) -> CredentialDigest {
    Sha256::digest(token).into()
}

impl Node {
    /// Lets in whoever shows this credential from that address. To be ended by [`leave`](Self::leave).
    ///
    /// # Errors
    /// When nobody has it, or nobody can say; and when too much is guessed.
    pub async fn admit(
        &self,
        credential: CredentialDigest,
        protocol: Protocol,
        address: IpAddr,
    ) -> Result<Arc<Visitor>, NotAdmitted> {
        let admitted = match self.is_closed() {
            true => Err(NotAdmitted::Closed),
            false => self.enter_in_turn(credential, protocol, Source::of(address, protocol)).await,
        };
        let result = match admitted {
            Ok(_) => ConnectResult::Accepted,
            Err(NotAdmitted::Unknown) => ConnectResult::UnknownToken,
            Err(NotAdmitted::TooManyGuesses) => {
                self.metrics.limit_hit(Limit::Guesses);
                ConnectResult::TooManyGuesses
            }
            Err(NotAdmitted::Unavailable) => ConnectResult::Unavailable,
            Err(NotAdmitted::Closed) => ConnectResult::Closed,
            Err(NotAdmitted::Busy(limit)) => {
                self.metrics.limit_hit(limit);
                ConnectResult::Limit
            }
        };
        if admitted.is_err() {
            tracing::info!(%address, %protocol, reason = result.as_str(), "a device was refused");
        }
        self.metrics.connect(result);
        admitted
    }

    async fn enter_in_turn(
        &self,
        credential: CredentialDigest,
        protocol: Protocol,
        source: Source,
    ) -> Result<Arc<Visitor>, NotAdmitted> {
        let asked = self.guesses.lock().ask(source, &credential, Instant::now());
        let turn = asked.map_err(|no_turn| match no_turn {
            NoTurn::Unknown => NotAdmitted::Unknown,
            NoTurn::TooMany => NotAdmitted::TooManyGuesses,
        })?;
        if !turn.wait.is_zero() {
            // Ends: a turn comes within seconds.
            tokio::time::sleep(turn.wait).await;
        }
        let changes = self.changes();
        let admitted = self.enter(credential, protocol).await;
        let (mut guesses, now) = (self.guesses.lock(), Instant::now());
        match admitted {
            // Who is refused for his customer's sake has shown a token that somebody has.
            Ok(_) | Err(NotAdmitted::Busy(_)) => guesses.found(source, &credential, turn, now),
            Err(NotAdmitted::Unknown) => {
                let is_certain = self.changes() == changes;
                guesses.not_found(source, &credential, turn, is_certain, now);
            }
            Err(NotAdmitted::Unavailable | NotAdmitted::TooManyGuesses | NotAdmitted::Closed) => {
                guesses.unanswered(source, turn);
            }
        }
        admitted
    }

    async fn enter(
        &self,
        credential: CredentialDigest,
        protocol: Protocol,
    ) -> Result<Arc<Visitor>, NotAdmitted> {
        let changes = self.changes();
        let visit = self.sessions.next_visit();
        let identity = self.identify(credential, visit).await?;
        let party = Party::of(identity.tenant, identity.customer);
        let who = Who {
            device: identity.device,
            owner: Owner { tenant: identity.tenant, customer: identity.customer },
        };
        self.offenders.lock().came(who, Instant::now());
        let place = self.shares.visitor(party, protocol).map_err(|limit| {
            self.hit(who, limit);
            NotAdmitted::Busy(limit)
        })?;
        let visitor = self.sessions.enter(visit, identity, credential, protocol, place, Instant::now());
        self.metrics.visitors(protocol).increment(1);
        if let Some(oldest) =
            self.sessions.one_too_many(&visitor, self.settings().ingress.max_connections_per_device)
        {
            self.limit_hit(&visitor, Limit::DeviceConnections);
            oldest.mailbox.tell(Mail::End(EndReason::OneTooMany));
        }
        // From then on, who is sent away is known.
        if self.is_closed() {
            self.leave(&visitor);
            return Err(NotAdmitted::Closed);
        }
        if self.changes() == changes {
            return Ok(visitor);
        }
        // A change between the question and here found no visitor to end: it may be this one's. Whatever comes after
        // this second question finds him.
        let refused = match self.identify(credential, visit).await {
            Ok(now) if visitor.is(&now) => return Ok(visitor),
            Ok(_) => NotAdmitted::Unknown,
            Err(refused) => refused,
        };
        self.leave(&visitor);
        Err(refused)
    }

    async fn identify(&self, credential: CredentialDigest, visit: u64) -> Result<Identity, NotAdmitted> {
        let wait = Duration::from_millis(self.settings().ingress.authenticate_timeout_ms);
        match self.calls.authenticate(CredentialHash::from_digest(credential), visit, wait).await {
            Ok(identity) => identity.ok_or(NotAdmitted::Unknown),
            Err(error) => {
                tracing::warn!(%error, "a device could not be authenticated");
                Err(NotAdmitted::Unavailable)
            }
        }
    }

    /// A visitor has gone.
    pub fn leave(&self, visitor: &Visitor) {
        if self.sessions.leave(visitor) {
            tracing::debug!(device = %visitor.device, protocol = %visitor.protocol, "a visitor leaves");
            self.metrics.visitors(visitor.protocol).decrement(1);
        }
    }

    /// Ends what a visitor has left behind whose loop has ended by a fault of the program.
    pub async fn clear_away(&self, visitor: &Visitor) {
        for session in self.sessions.of_visitor(visitor) {
            self.end_session(&session, SessionEnd::Fault).await;
        }
    }

    /// Makes a visitor callable: his session's claim stands. None when the store did not take it. To be ended by
    /// [`end_session`](Self::end_session).
    pub async fn begin_session(&self, visitor: &Arc<Visitor>) -> Option<Arc<Session>> {
        let delay = self.takeovers.lock().delay(visitor.device, Instant::now());
        if !delay.is_zero() {
            self.metrics.claims_delayed.increment(1);
            tokio::time::sleep(delay).await;
        }
        let session = self.sessions.begin(visitor, unix_ms());
        if !self.claim(&session).await {
            self.refuse_unread(&session).await;
            self.sessions.end(&session);
            return None;
        }
        self.metrics.sessions(visitor.protocol).increment(1);
        self.measured.sessions(visitor.customer).iter().for_each(|gauge| gauge.increment(1));
        self.announce(&session, None).await;
        Some(session)
    }

    /// The visitor is no longer callable: his claim goes, and calls that came too late are refused.
    pub async fn end_session(&self, session: &Session, reason: SessionEnd) {
        self.release(session, reason).await;
        self.refuse_unread(session).await;
        self.sessions.end(session);
        tracing::debug!(
            device = %session.visitor.device, session = %session.id, reason = reason.as_str(), "a session ends"
        );
        self.metrics.sessions(session.visitor.protocol).decrement(1);
        self.measured.sessions(session.visitor.customer).iter().for_each(|gauge| gauge.decrement(1));
        self.announce(session, Some(reason)).await;
    }

    async fn refuse_unread(&self, session: &Session) {
        for call in session.mailbox.close() {
            self.reply(call.reply_to, &DeliveryReply::NotHere, b"").await;
        }
    }

    /// Tells whoever listens that a device became callable, or why it no longer is.
    async fn announce(&self, session: &Session, reason: Option<SessionEnd>) {
        let Visitor { device, tenant, customer, protocol, .. } = *session.visitor;
        let event = SessionEvent {
            node: self.id,
            session: session.id,
            protocol,
            at_ms: unix_ms(),
            tenant,
            customer,
            reason,
        };
        if let Ok(message) = serde_json::to_vec(&event) {
            let what = if reason.is_none() { "up" } else { "down" };
            // An event that nobody could be told of is no reason to turn a device away.
            let _ = self.bus.tell(self.bus.subjects().session_event(device, what), message.into()).await;
        }
    }
}
