//! Which device does a request come from? The visitors that this node keeps in mind by their access tokens, and the
//! way in for those that it does not.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rpc::{DeviceId, Limit, Party, Place, Protocol};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::device::Device;
use super::lease::LeaseLimits;
use crate::device::admit::{NotAdmitted, digest};
use crate::device::mailbox::EndReason;
use crate::device::sessions::Visitor;
use crate::device::visitors::{Key, Visitors};
use crate::node::Node;

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NotLetIn {
    /// It is not admitted.
    Refused(NotAdmitted),
    /// As many devices are kept in mind as may be.
    Full,
    /// The node is shutting down, and takes in nobody new.
    ShuttingDown,
}

/// The devices that speak HTTP with this node.
pub(super) struct Devices {
    node: Arc<Node>,
    idle: Duration,
    known: Mutex<Visitors<Arc<Device>>>,
    /// Everything of the node that is waited for when it shuts down; `loops` are those of devices alone.
    tasks: TaskTracker,
    loops: TaskTracker,
    draining: CancellationToken,
}

/// A request of a device that is being answered: while there is one, the device is kept.
pub(super) struct Visit {
    devices: Arc<Devices>,
    key: Key,
    pub(super) device: Arc<Device>,
    _place: Place<Party>,
}

impl Drop for Visit {
    fn drop(&mut self) {
        let was_last = self.devices.known().let_go(self.key, Instant::now());
        if was_last && self.device.leaves() {
            self.device.nudge();
        }
    }
}

impl Devices {
    pub(super) fn new(node: Arc<Node>, tasks: TaskTracker) -> Self {
        let http = &node.settings().http;
        let idle = Duration::from_millis(http.session_idle_ms);
        Devices {
            idle,
            known: Mutex::new(Visitors::new(http.max_sessions, idle)),
            node,
            tasks,
            loops: TaskTracker::new(),
            draining: CancellationToken::new(),
        }
    }

    /// What holds for a device that comes now, for as long as it is kept in mind.
    fn limits(&self) -> LeaseLimits {
        let (http, device) = (&self.node.settings().http, self.node.limits.borrow().device);
        LeaseLimits {
            max_polls: http.max_polls_per_device,
            target: device.target,
            grace: Duration::from_millis(http.poll_grace_ms),
            tells_caller: device.tells_caller,
        }
    }

    /// Lets a request of `sender` in, for as long as its [`Visit`] lives.
    pub(super) async fn enter(self: &Arc<Self>, token: &str, sender: IpAddr) -> Result<Visit, NotLetIn> {
        let credential = digest(token.as_bytes());
        {
            let mut known = self.known();
            let found = known.find(&credential).and_then(|key| Some((key, Arc::clone(known.get(key)?))));
            if let Some((key, device)) = found
                && !device.is_closed()
            {
                return self.visit(&mut known, key, device);
            }
            if self.is_draining() {
                return Err(NotLetIn::ShuttingDown);
            }
            if known.len() >= self.node.settings().http.max_sessions {
                return Err(self.full());
            }
        }
        // A client that goes meanwhile drops what answers it, and no admission may end half-way.
        let devices = Arc::clone(self);
        let entered = self.tasks.spawn(async move {
            let admitted = devices.node.admit(credential, Protocol::Http, sender).await;
            devices.keep(admitted.map_err(NotLetIn::Refused)?)
        });
        entered.await.unwrap_or(Err(NotLetIn::Refused(NotAdmitted::Unavailable)))
    }

    /// From now on nobody new is let in. Those who are there are sent away one by one.
    pub(super) fn drain(&self) {
        let _known = self.known();
        self.draining.cancel();
        self.loops.close();
    }

    /// True while the node shuts down.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits until the node shuts down.
    pub(super) async fn draining(&self) {
        self.draining.cancelled().await;
    }

    /// After [`drain`](Self::drain): waits until no device is owed anything.
    pub(super) async fn drained(&self) {
        self.loops.wait().await;
    }

    /// Forgets devices that have been idle for long enough, without end.
    pub(super) async fn forget_idle(&self) {
        loop {
            let now = Instant::now();
            let next = {
                let mut known = self.known();
                while let Some(key) = known.idle(now) {
                    if known.get(key).is_some_and(|device| !device.is_at_rest(now)) {
                        known.touch(key, now);
                    } else if let Some(device) = known.forget(key) {
                        device.close();
                    }
                }
                // Who comes meanwhile is not idle before that.
                known.next_idle().unwrap_or(now + self.idle)
            };
            tokio::time::sleep_until(next.into()).await;
        }
    }

    /// What is kept of that device: one for each token that it has shown.
    pub(super) fn of(&self, id: DeviceId) -> Vec<Arc<Device>> {
        let visitors = self.node.sessions.visitors_of(id);
        let known = self.known();
        let find = |visitor: &Arc<Visitor>| {
            let device = known.get(known.find(&visitor.credential)?)?;
            Arc::ptr_eq(&device.visitor, visitor).then(|| Arc::clone(device))
        };
        visitors.iter().filter_map(find).collect()
    }

    /// Keeps a visitor in mind, unless another of his first requests came first.
    fn keep(self: &Arc<Self>, visitor: Arc<Visitor>) -> Result<Visit, NotLetIn> {
        let credential = visitor.credential;
        let mut known = self.known();
        if self.is_draining() {
            self.node.leave(&visitor);
            return Err(NotLetIn::ShuttingDown);
        }
        let found = known.find(&credential).and_then(|key| Some((key, Arc::clone(known.get(key)?))));
        if let Some((key, device)) = &found
            && device.visitor.is_same(&visitor)
            && !device.is_closed()
        {
            self.node.leave(&visitor);
            return self.visit(&mut known, *key, Arc::clone(device));
        }
        let now = Instant::now();
        let tag = self.node.id.tag();
        let device = Arc::new(Device::new(Arc::clone(&visitor), self.limits(), tag, now));
        let Some(key) = known.add(credential, Arc::clone(&device), now) else {
            self.node.leave(&visitor);
            return Err(self.full());
        };
        let visit = self.visit(&mut known, key, Arc::clone(&device));
        let (devices, node) = (Arc::clone(self), Arc::clone(&self.node));
        // Still under the lock: whoever drains waits for this loop, or was first.
        self.tasks.spawn(self.loops.track_future(async move {
            device.run(node, || devices.forget_unheld(key)).await;
            devices.known().forget(key);
        }));
        drop(known);
        if let Some((_, older)) = found {
            older.end(EndReason::Revoked);
        }
        visit
    }

    fn visit(
        self: &Arc<Self>,
        known: &mut Visitors<Arc<Device>>,
        key: Key,
        device: Arc<Device>,
    ) -> Result<Visit, NotLetIn> {
        let place = self.node.shares.request(device.visitor.party).map_err(|limit| {
            self.node.limit_hit(&device.visitor, limit);
            NotLetIn::Refused(NotAdmitted::Busy(limit))
        })?;
        known.hold(key);
        Ok(Visit { devices: Arc::clone(self), key, device, _place: place })
    }

    fn forget_unheld(&self, key: Key) -> bool {
        let mut known = self.known();
        let unheld = !known.is_held(key);
        if unheld {
            known.forget(key);
        }
        unheld
    }

    fn full(&self) -> NotLetIn {
        self.node.metrics.limit_hit(Limit::Sessions);
        NotLetIn::Full
    }

    fn known(&self) -> MutexGuard<'_, Visitors<Arc<Device>>> {
        self.known.lock()
    }
}
