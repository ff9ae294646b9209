//! Which sessions live on this node? The map from devices to their sessions, and what each session holds for the node.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use rpc::{Claim, CustomerId, DeviceId, DeviceState, NodeId, Protocol, SessionId, TenantId};

use crate::mailbox::{EndReason, Incoming, Mail, Mailbox, Refused};
use crate::session::CallerLimits;

/// The SHA-256 of an access token.
pub type CredentialDigest = [u8; 32];

/// A session as the rest of the node sees it.
#[derive(Debug)]
pub struct SessionHandle {
    /// Unique on this node.
    pub id: SessionId,
    /// Who it is.
    pub device: DeviceId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Which customer's, if any.
    pub customer: Option<CustomerId>,
    /// What it proved itself with.
    pub credential: CredentialDigest,
    /// How it is connected.
    pub protocol: Protocol,
    /// Its loop reads from here.
    pub mailbox: Mailbox,
    /// What the device may do as a caller, shared by all its sessions on this node.
    pub caller: Arc<Mutex<CallerLimits>>,
    held: Mutex<Option<HeldClaim>>,
}

/// A claim that stands in the store for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeldClaim {
    /// When the session became callable, in milliseconds since 1970.
    pub since_ms: u64,
    /// The store's revision of the claim: what a release must match.
    pub revision: u64,
}

impl SessionHandle {
    /// The claim of this session on `node`.
    pub fn claim(&self, node: NodeId, since_ms: u64) -> Claim {
        Claim { node, session: self.id, protocol: self.protocol, since_ms }
    }

    /// The claim that stands, if one does.
    pub fn held(&self) -> Option<HeldClaim> {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a claim that now stands.
    pub fn hold(&self, claim: HeldClaim) {
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(claim);
    }

    /// Takes the claim away, to release it.
    pub fn let_go(&self) -> Option<HeldClaim> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Notes the new revision of a claim that was written again. False when the session has let go of it meanwhile:
    /// the new revision is then the one to release.
    pub fn renew_held(&self, old: HeldClaim, revision: u64) -> bool {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held != Some(old) {
            return false;
        }
        *held = Some(HeldClaim { revision, ..old });
        true
    }

    /// Whether the session is still what the registry says of its device.
    pub fn matches(&self, state: &DeviceState) -> bool {
        state.now.as_ref().is_some_and(|now| {
            now.tenant == self.tenant
                && now.customer == self.customer
                && now.credential == rpc::CredentialHash::from_digest(self.credential)
        })
    }
}

/// All sessions of this node.
#[derive(Debug, Default)]
pub struct Sessions {
    devices: Mutex<HashMap<DeviceId, Device>>,
    last_id: AtomicU64,
}

#[derive(Debug)]
struct Device {
    caller: Arc<Mutex<CallerLimits>>,
    sessions: Vec<Arc<SessionHandle>>,
}

/// Who a new session is.
#[derive(Debug, Clone, Copy)]
pub struct NewSession {
    /// The device.
    pub device: DeviceId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its customer, if any.
    pub customer: Option<CustomerId>,
    /// What it proved itself with.
    pub credential: CredentialDigest,
    /// How it is connected.
    pub protocol: Protocol,
}

impl Sessions {
    /// Adds a session.
    pub fn add(&self, new: NewSession, now: Instant) -> Arc<SessionHandle> {
        let id = SessionId(self.last_id.fetch_add(1, Ordering::Relaxed) + 1);
        let mut devices = self.devices();
        let device = devices.entry(new.device).or_insert_with(|| Device {
            caller: Arc::new(Mutex::new(CallerLimits::new(now))),
            sessions: Vec::with_capacity(1),
        });
        let session = Arc::new(SessionHandle {
            id,
            device: new.device,
            tenant: new.tenant,
            customer: new.customer,
            credential: new.credential,
            protocol: new.protocol,
            mailbox: Mailbox::default(),
            caller: Arc::clone(&device.caller),
            held: Mutex::new(None),
        });
        device.sessions.push(Arc::clone(&session));
        session
    }

    /// Removes a session that has ended.
    pub fn remove(&self, session: &SessionHandle) {
        let mut devices = self.devices();
        if let Entry::Occupied(mut entry) = devices.entry(session.device) {
            entry.get_mut().sessions.retain(|it| it.id != session.id);
            if entry.get().sessions.is_empty() {
                entry.remove();
            }
        }
    }

    /// Puts a call into its session's mailbox.
    ///
    /// # Errors
    /// Hands the call back when there is no such session of that device, or its mailbox is full.
    pub fn deliver(
        &self,
        mut call: Box<Incoming>,
        max_mailbox_calls: usize,
    ) -> Result<(), (Refused, Box<Incoming>)> {
        match self.find(call.delivery.target, call.delivery.session) {
            Some(session) => {
                call.span.note("switchboard.protocol", session.protocol.as_str());
                session.mailbox.deliver(call, max_mailbox_calls)
            }
            None => Err((Refused::Closed, call)),
        }
    }

    /// Ends one session, if it is here.
    pub fn end(&self, device: DeviceId, session: SessionId, reason: EndReason) {
        if let Some(session) = self.find(device, session) {
            session.mailbox.tell(Mail::End(reason));
        }
    }

    /// Ends the sessions of a device that no longer are what it is. Says how many.
    pub fn end_outdated(&self, state: &DeviceState) -> usize {
        let outdated: Vec<_> = match self.devices().get(&state.device) {
            Some(device) => device.sessions.iter().filter(|it| !it.matches(state)).cloned().collect(),
            None => return 0,
        };
        for session in &outdated {
            session.mailbox.tell(Mail::End(EndReason::Revoked));
        }
        outdated.len()
    }

    /// Tells every session.
    pub fn tell_all(&self, mail: impl Fn() -> Mail) {
        for session in self.all() {
            session.mailbox.tell(mail());
        }
    }

    /// Every session.
    pub fn all(&self) -> Vec<Arc<SessionHandle>> {
        self.devices().values().flat_map(|device| device.sessions.iter().cloned()).collect()
    }

    fn find(&self, device: DeviceId, session: SessionId) -> Option<Arc<SessionHandle>> {
        let devices = self.devices();
        devices.get(&device)?.sessions.iter().find(|it| it.id == session).cloned()
    }

    fn devices(&self) -> MutexGuard<'_, HashMap<DeviceId, Device>> {
        self.devices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
