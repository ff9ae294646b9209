//! Which device does a request come from? The map from access tokens to the devices that this node keeps in mind, and
//! the question to the authorizer for those that it does not.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rpc::{CredentialHash, Identity, Limit, Protocol};
use sha2::{Digest, Sha256};
use tokio_util::task::TaskTracker;

use super::device::{Device, Visit};
use super::lease::LeaseLimits;
use crate::mailbox::{EndReason, Mail};
use crate::metrics::ConnectResult;
use crate::node::Node;
use crate::sessions::{CredentialDigest, NewSession, SessionHandle};

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotLetIn {
    /// Nobody has that token.
    Unknown,
    /// The authorizer or NATS could not be reached.
    Unavailable,
    /// As many devices are kept in mind as may be.
    Full,
    /// The node is shutting down, and takes in nobody new.
    ShuttingDown,
}

/// The devices that speak HTTP with this node.
pub(super) struct Devices {
    node: Arc<Node>,
    limits: LeaseLimits,
    idle: Duration,
    known: Mutex<HashMap<CredentialDigest, Arc<Device>>>,
    /// Everything of the node that is waited for when it shuts down; `loops` are those of devices alone.
    tasks: TaskTracker,
    loops: TaskTracker,
    draining: AtomicBool,
}

impl Devices {
    pub(super) fn new(node: Arc<Node>, tasks: TaskTracker) -> Self {
        let (http, ingress) = (&node.settings.http, &node.settings.ingress);
        let limits = LeaseLimits {
            max_polls: http.max_polls_per_device,
            max_waiting_calls: ingress.max_mailbox_calls,
            max_open_calls: ingress.max_calls_in_flight_per_target,
            grace: Duration::from_millis(http.poll_grace_ms),
        };
        Devices {
            limits,
            idle: Duration::from_millis(http.session_idle_ms),
            node,
            known: Mutex::default(),
            tasks,
            loops: TaskTracker::new(),
            draining: AtomicBool::new(false),
        }
    }

    /// Lets a request in, for as long as its [`Visit`] lives.
    pub(super) async fn enter(self: &Arc<Self>, token: &str) -> Result<Visit, NotLetIn> {
        let credential: CredentialDigest = Sha256::digest(token.as_bytes()).into();
        if let Some(visit) = self.known().get(&credential).and_then(Device::visit) {
            return Ok(visit);
        }
        if self.is_draining() {
            return Err(NotLetIn::ShuttingDown);
        }
        let changes = self.node.changes();
        let Some(identity) = self.authenticate(credential).await? else { return Err(NotLetIn::Unknown) };
        let (device, visit) = self.admit(&identity, credential)?;
        // A change between the question and its answer's use found no session to end.
        if self.node.changes() != changes
            && !self.authenticate(credential).await?.is_some_and(|now| is(&device.handle, &now))
        {
            device.end(EndReason::Revoked);
            return Err(NotLetIn::Unknown);
        }
        Ok(visit)
    }

    /// From now on nobody new is let in.
    pub(super) fn drain(&self) {
        let known = self.known();
        self.draining.store(true, Ordering::SeqCst);
        for device in known.values() {
            // Some may have come too late to be told with the node's other sessions.
            device.handle.mailbox.tell(Mail::Drain);
        }
        self.loops.close();
    }

    /// True while the node shuts down.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// After [`drain`](Self::drain): waits until no device is owed anything.
    pub(super) async fn drained(&self) {
        self.loops.wait().await;
    }

    async fn authenticate(&self, credential: CredentialDigest) -> Result<Option<Identity>, NotLetIn> {
        let wait = Duration::from_millis(self.node.settings.ingress.authenticate_timeout_ms);
        let asked = self.node.calls.authenticate(CredentialHash::from_digest(credential), wait).await;
        let result = match &asked {
            Ok(Some(_)) => ConnectResult::Accepted,
            Ok(None) => ConnectResult::UnknownToken,
            Err(_) => ConnectResult::Unavailable,
        };
        self.node.metrics.connect(result);
        asked.map_err(|error| {
            tracing::warn!(%error, "a device could not be authenticated");
            NotLetIn::Unavailable
        })
    }

    /// Finds or makes the device, whichever of its first requests comes first.
    fn admit(
        self: &Arc<Self>,
        identity: &Identity,
        credential: CredentialDigest,
    ) -> Result<(Arc<Device>, Visit), NotLetIn> {
        let mut known = self.known();
        if self.is_draining() {
            return Err(NotLetIn::ShuttingDown);
        }
        if let Some(device) = known.get(&credential)
            && is(&device.handle, identity)
            && let Some(visit) = device.visit()
        {
            return Ok((Arc::clone(device), visit));
        }
        if known.len() >= self.node.settings.http.max_sessions && !known.contains_key(&credential) {
            self.node.metrics.limit_hit(Limit::Sessions);
            return Err(NotLetIn::Full);
        }
        let new = NewSession {
            device: identity.device,
            tenant: identity.tenant,
            customer: identity.customer,
            credential,
            protocol: Protocol::Http,
        };
        let now = Instant::now();
        let device = Arc::new(Device::new(self.node.sessions.add(new, now), self.limits, now));
        let visit = device.visit().ok_or(NotLetIn::Unavailable)?;
        if let Some(older) = known.insert(credential, Arc::clone(&device)) {
            older.end(EndReason::Revoked);
        }
        drop(known);
        let (devices, of_loop) = (Arc::clone(self), Arc::clone(&device));
        let run = async move {
            Arc::clone(&of_loop).run(Arc::clone(&devices.node), devices.idle).await;
            devices.forget(&of_loop, credential);
        };
        self.tasks.spawn(self.loops.track_future(run));
        Ok((device, visit))
    }

    fn forget(&self, device: &Arc<Device>, credential: CredentialDigest) {
        let mut known = self.known();
        if known.get(&credential).is_some_and(|it| Arc::ptr_eq(it, device)) {
            known.remove(&credential);
            if known.is_empty() && known.capacity() > 1024 {
                *known = HashMap::new();
            }
        }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<CredentialDigest, Arc<Device>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is(session: &SessionHandle, identity: &Identity) -> bool {
    session.device == identity.device
        && session.tenant == identity.tenant
        && session.customer == identity.customer
}
