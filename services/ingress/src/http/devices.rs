//! Which device does a request come from? The map from access tokens to the devices that this node keeps in mind, and
//! the question to the authorizer for those that it does not.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rpc::{Limit, Protocol};
use tokio_util::task::TaskTracker;

use super::device::{Device, Visit};
use super::lease::LeaseLimits;
use crate::device::admit::{NotAdmitted, digest};
use crate::device::limits::DeviceLimits;
use crate::device::mailbox::{EndReason, Mail};
use crate::device::sessions::{CredentialDigest, Visitor};
use crate::node::Node;

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
        let http = &node.settings.http;
        let limits = LeaseLimits {
            max_polls: http.max_polls_per_device,
            target: DeviceLimits::from(&*node.settings).target,
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
        let credential = digest(token.as_bytes());
        if let Some(visit) = self.known().get(&credential).and_then(Device::visit) {
            return Ok(visit);
        }
        if self.is_draining() {
            return Err(NotLetIn::ShuttingDown);
        }
        if self.known().len() >= self.node.settings.http.max_sessions {
            self.node.metrics.limit_hit(Limit::Sessions);
            return Err(NotLetIn::Full);
        }
        let visitor = self.node.admit(credential, Protocol::Http).await.map_err(|why| match why {
            NotAdmitted::Unknown => NotLetIn::Unknown,
            NotAdmitted::Unavailable => NotLetIn::Unavailable,
        })?;
        self.keep(visitor)
    }

    /// From now on nobody new is let in.
    pub(super) fn drain(&self) {
        let known = self.known();
        self.draining.store(true, Ordering::SeqCst);
        for device in known.values() {
            // Some may have come too late to be told with the node's other sessions.
            device.visitor.mailbox.tell(Mail::Drain);
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

    /// Keeps a visitor in mind, unless another of his first requests came first.
    fn keep(self: &Arc<Self>, visitor: Arc<Visitor>) -> Result<Visit, NotLetIn> {
        let credential = visitor.credential;
        let mut known = self.known();
        if self.is_draining() {
            self.node.leave(&visitor);
            return Err(NotLetIn::ShuttingDown);
        }
        if let Some(device) = known.get(&credential)
            && device.visitor.is_same(&visitor)
            && let Some(visit) = device.visit()
        {
            self.node.leave(&visitor);
            return Ok(visit);
        }
        let device = Arc::new(Device::new(visitor, self.limits, Instant::now()));
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
        Ok(visit)
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
        self.known.lock()
    }
}
