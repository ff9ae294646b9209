//! Who is on this node? Its visitors and sessions by device, and how each is reached.

use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;
use rpc::{
    CredentialHash, CustomerId, DeviceId, DeviceState, Generation, HeldClaim, Identity, Party, Place,
    Protocol, QuickMap, SessionId, TICKET_LASTS_S, TenantId, Ticket,
};

use super::caller::CallerLimits;
use super::mailbox::{EndReason, Incoming, Mail, Mailbox, Refused};
use super::offenders::{Owner, Who};
use super::shares::NodeShares;
use super::target::TargetLimits;

/// The SHA-256 of an access token.
pub type CredentialDigest = [u8; 32];

/// A device that this node knows: its token was looked up, and it is watched for changes of the registry.
#[derive(Debug)]
pub struct Visitor {
    /// Its visit: unique on this node.
    pub id: u64,
    /// Who it is.
    pub device: DeviceId,
    /// Its name.
    pub name: Box<str>,
    /// Whose it is.
    pub tenant: TenantId,
    /// Which customer's, if any.
    pub customer: Option<CustomerId>,
    /// What it proved itself with.
    pub credential: CredentialDigest,
    /// What it speaks.
    pub protocol: Protocol,
    /// Its loop hears here that the registry changed or the node shuts down.
    pub mailbox: Mailbox,
    /// In whose share its calls are, and those for it.
    pub party: Party,
    _place: Place<Party>,
    /// What the device may do as a caller, shared by all its visitors on this node.
    pub caller: Arc<Mutex<CallerLimits>>,
    /// The authorizer's word for this visit, and since when; none where it was asked for another and gave none.
    ticket: Mutex<(Ticket, Option<Instant>)>,
}

impl Visitor {
    /// The authorizer's word for this visit.
    pub fn ticket(&self) -> Ticket {
        self.ticket.lock().0
    }

    /// The authorizer has given its word anew.
    pub fn renew_ticket(&self, ticket: Ticket, now: Instant) {
        *self.ticket.lock() = (ticket, Some(now));
    }

    /// No authorizer has said whether its word still holds.
    pub fn doubt_ticket(&self) {
        self.ticket.lock().1 = None;
    }

    /// Whether the ticket is to be renewed: half of its time is over, or it is doubted.
    pub fn is_ticket_old(&self, now: Instant) -> bool {
        let is_old = |since| now.saturating_duration_since(since).as_secs() >= u64::from(TICKET_LASTS_S / 2);
        self.ticket.lock().1.is_none_or(is_old)
    }

    /// Who it is where offenders are counted.
    pub fn who(&self) -> Who {
        Who { device: self.device, owner: Owner { tenant: self.tenant, customer: self.customer } }
    }

    /// Whether it is still what an authorizer says of its token.
    pub fn is(&self, identity: &Identity) -> bool {
        self.place() == (identity.device, identity.tenant, identity.customer)
    }

    /// Whether both are the same device in the same place.
    pub fn is_same(&self, other: &Visitor) -> bool {
        self.place() == other.place()
    }

    fn place(&self) -> (DeviceId, TenantId, Option<CustomerId>) {
        (self.device, self.tenant, self.customer)
    }

    /// Whether it is still what the registry says of its device.
    fn matches(&self, state: &DeviceState) -> bool {
        state.now.as_ref().is_some_and(|now| {
            now.tenant == self.tenant
                && now.customer == self.customer
                && now.credential == CredentialHash::from_digest(self.credential)
        })
    }
}

/// A visitor that can be called. Each time it becomes callable is a session of its own: a claim that is taken over and
/// one that follows are never confused.
#[derive(Debug)]
pub struct Session {
    /// Unique on this node.
    pub id: SessionId,
    /// Whose.
    pub visitor: Arc<Visitor>,
    /// Its loop reads calls from here, and that a newer session has taken over.
    pub mailbox: Mailbox,
    /// When it began, in milliseconds since 1970.
    pub since_ms: u64,
}

impl Session {
    /// The session as a claim names it.
    pub fn held_as(&self, generation: Generation) -> HeldClaim {
        HeldClaim { device: self.visitor.device, session: self.id, generation }
    }
}

/// All visitors and sessions of this node.
#[derive(Debug, Default)]
pub struct Sessions {
    devices: Mutex<QuickMap<DeviceId, OnNode>>,
    last_id: AtomicU64,
}

/// What this node has of one device. Vectors: nearly always of one.
#[derive(Debug)]
struct OnNode {
    caller: Arc<Mutex<CallerLimits>>,
    visitors: Vec<Arc<Visitor>>,
    sessions: Vec<Arc<Session>>,
}

impl Sessions {
    /// The number of a visit that is about to begin.
    pub fn next_visit(&self) -> u64 {
        self.next_id()
    }

    /// Adds a visitor, who was authenticated for this visit, and has a place.
    pub fn enter(
        &self,
        id: u64,
        identity: Identity,
        credential: CredentialDigest,
        protocol: Protocol,
        place: Place<Party>,
        now: Instant,
    ) -> Arc<Visitor> {
        let mut devices = self.devices.lock();
        let on_node = devices.entry(identity.device).or_insert_with(|| OnNode {
            caller: Arc::new(Mutex::new(CallerLimits::new(now))),
            visitors: Vec::with_capacity(1),
            // Nearly every visitor becomes callable, once.
            sessions: Vec::with_capacity(1),
        });
        let visitor = Arc::new(Visitor {
            id,
            device: identity.device,
            name: identity.name.into(),
            tenant: identity.tenant,
            customer: identity.customer,
            credential,
            protocol,
            mailbox: Mailbox::default(),
            party: Party::of(identity.tenant, identity.customer),
            _place: place,
            caller: Arc::clone(&on_node.caller),
            ticket: Mutex::new((identity.ticket, Some(now))),
        });
        on_node.visitors.push(Arc::clone(&visitor));
        visitor
    }

    /// The oldest connection of the visitor's device, its callable ones left out, that is one too many.
    pub fn one_too_many(&self, visitor: &Visitor, max: usize) -> Option<Arc<Visitor>> {
        let devices = self.devices.lock();
        let OnNode { visitors, sessions, .. } = devices.get(&visitor.device)?;
        let connections = || visitors.iter().filter(|it| it.protocol == Protocol::Mqtt);
        let is_callable = |it: &Visitor| sessions.iter().any(|session| session.visitor.id == it.id);
        let oldest = connections().find(|it| !is_callable(it))?;
        (connections().count() > max).then(|| Arc::clone(oldest))
    }

    /// Removes a visitor. False when it has left already.
    pub fn leave(&self, visitor: &Visitor) -> bool {
        self.remove(visitor.device, |it| {
            let before = it.visitors.len();
            it.visitors.retain(|it| it.id != visitor.id);
            it.visitors.len() < before
        })
    }

    /// Adds a session, before its claim is written: from then on calls may come.
    pub fn begin(&self, visitor: &Arc<Visitor>, now_ms: u64) -> Arc<Session> {
        let session = Arc::new(Session {
            id: SessionId(self.next_id()),
            visitor: Arc::clone(visitor),
            mailbox: Mailbox::default(),
            since_ms: now_ms,
        });
        let mut devices = self.devices.lock();
        let on_node = devices.entry(visitor.device).or_insert_with(|| OnNode {
            caller: Arc::clone(&visitor.caller),
            visitors: Vec::new(),
            sessions: Vec::with_capacity(1),
        });
        on_node.sessions.push(Arc::clone(&session));
        session
    }

    /// Removes a session that has ended.
    pub fn end(&self, session: &Session) {
        self.remove(session.visitor.device, |it| it.sessions.retain(|it| it.id != session.id));
    }

    /// Puts a call for a session of `device` into its mailbox.
    ///
    /// # Errors
    /// Hands the call back when there is no such session of that device, or its mailbox is full, or its customer has as
    /// many calls here as he may.
    pub fn deliver(
        &self,
        device: DeviceId,
        session: SessionId,
        mut call: Box<Incoming>,
        limits: &TargetLimits,
        shares: &NodeShares,
    ) -> Result<(), (Refused, Box<Incoming>)> {
        match self.find(device, session) {
            Some(session) => {
                call.reply_to.span.spoken(session.visitor.protocol);
                match shares.delivery(session.visitor.party) {
                    Ok(place) => call.reply_to.place = Some(place),
                    Err(limit) => return Err((Refused::Busy(limit), call)),
                }
                session.mailbox.deliver(call, limits)
            }
            None => Err((Refused::Closed, call)),
        }
    }

    /// Tells one session that a newer one has taken over, if it is here.
    pub fn take_over(&self, device: DeviceId, session: SessionId) {
        if let Some(session) = self.find(device, session) {
            session.mailbox.tell(Mail::End(EndReason::TakenOver));
        }
    }

    /// Ends the visitors of a device that no longer are what it is. Says how many.
    pub fn end_outdated(&self, state: &DeviceState) -> usize {
        let outdated: Vec<_> = match self.devices.lock().get(&state.device) {
            Some(on_node) => on_node.visitors.iter().filter(|it| !it.matches(state)).cloned().collect(),
            None => return 0,
        };
        for visitor in &outdated {
            visitor.mailbox.tell(Mail::End(EndReason::Revoked));
        }
        outdated.len()
    }

    /// Tells every visitor.
    pub fn tell_all(&self, mail: impl Fn() -> Mail) {
        for visitor in self.visitors() {
            visitor.mailbox.tell(mail());
        }
    }

    /// True when no device is here.
    pub fn is_empty(&self) -> bool {
        self.devices.lock().is_empty()
    }

    /// Every visitor.
    pub fn visitors(&self) -> Vec<Arc<Visitor>> {
        self.devices.lock().values().flat_map(|it| it.visitors.iter().cloned()).collect()
    }

    /// The visitors that are this device.
    pub fn visitors_of(&self, device: DeviceId) -> Vec<Arc<Visitor>> {
        self.devices.lock().get(&device).map(|it| it.visitors.clone()).unwrap_or_default()
    }

    /// The sessions of a visitor.
    pub fn of_visitor(&self, visitor: &Visitor) -> Vec<Arc<Session>> {
        let devices = self.devices.lock();
        let sessions = devices.get(&visitor.device).into_iter().flat_map(|it| &it.sessions);
        sessions.filter(|it| it.visitor.id == visitor.id).cloned().collect()
    }

    /// Every session.
    pub fn sessions(&self) -> Vec<Arc<Session>> {
        self.devices.lock().values().flat_map(|it| it.sessions.iter().cloned()).collect()
    }

    /// A session of the device.
    pub fn find(&self, device: DeviceId, session: SessionId) -> Option<Arc<Session>> {
        self.devices.lock().get(&device)?.sessions.iter().find(|it| it.id == session).cloned()
    }

    fn remove<T: Default>(&self, device: DeviceId, remove: impl FnOnce(&mut OnNode) -> T) -> T {
        let mut devices = self.devices.lock();
        let Entry::Occupied(mut entry) = devices.entry(device) else { return T::default() };
        let removed = remove(entry.get_mut());
        if entry.get().visitors.is_empty() && entry.get().sessions.is_empty() {
            entry.remove();
        }
        removed
    }

    fn next_id(&self) -> u64 {
        self.last_id.fetch_add(1, Ordering::Relaxed) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::{DeviceStanding, Holder, NodeId, Shares, Stamp, TicketKeys};
    use std::task::{Context, Poll, Waker};
    use std::time::Duration;
    use uuid::Uuid;

    const DIGEST: CredentialDigest = [7; 32];

    fn identity(device: u128) -> Identity {
        Identity {
            device: DeviceId(Uuid::from_u128(device)),
            tenant: TenantId(Uuid::from_u128(1)),
            customer: Some(CustomerId(Uuid::from_u128(2))),
            name: "A".to_owned(),
            ticket: ticket(device),
        }
    }

    fn place() -> Place<Party> {
        Shares::new(1, 1).take(Party::of(TenantId(Uuid::from_u128(1)), None)).unwrap()
    }

    fn ticket(device: u128) -> Ticket {
        let holder = Holder { device: DeviceId(Uuid::from_u128(device)), node: NodeId(1), visit: 1 };
        let keys = TicketKeys::default().rotated([0; 32], 0).unwrap();
        keys.sign(holder, Stamp::of_digest(&DIGEST), 0).unwrap()
    }

    fn standing() -> DeviceStanding {
        let identity = identity(1);
        let credential = CredentialHash::from_digest(DIGEST);
        DeviceStanding { tenant: identity.tenant, customer: identity.customer, credential }
    }

    fn mail(mailbox: &Mailbox) -> Option<Mail> {
        match mailbox.poll_next(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(mail) => Some(mail),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_ticket_is_renewed_in_time_and_once_it_is_doubted() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let visitor = sessions.enter(1, identity(1), DIGEST, Protocol::Mqtt, place(), now);
        let half = Duration::from_secs(u64::from(TICKET_LASTS_S / 2));
        assert!(!visitor.is_ticket_old(now) && visitor.is_ticket_old(now + half));
        visitor.doubt_ticket();
        assert!(visitor.is_ticket_old(now), "no authorizer has said whether it holds");
        visitor.renew_ticket(visitor.ticket(), now);
        assert!(!visitor.is_ticket_old(now));
    }

    /// There is one of each for every device that is connected.
    #[test]
    fn a_visitor_and_a_session_are_small() {
        assert!(size_of::<Visitor>() <= 232, "{} bytes", size_of::<Visitor>());
        assert!(size_of::<Session>() <= 64, "{} bytes", size_of::<Session>());
    }

    #[test]
    fn a_device_is_forgotten_with_its_last_visitor_and_session() {
        let (sessions, now) = (Sessions::default(), Instant::now());
        let a = sessions.enter(sessions.next_visit(), identity(1), DIGEST, Protocol::Mqtt, place(), now);
        let b = sessions.enter(sessions.next_visit(), identity(1), DIGEST, Protocol::Http, place(), now);
        assert!(a.id != b.id && Arc::ptr_eq(&a.caller, &b.caller));
        assert_eq!(sessions.visitors_of(a.device).iter().map(|it| it.id).collect::<Vec<_>>(), [a.id, b.id]);
        let session = sessions.begin(&a, 0);
        assert!(sessions.leave(&a) && !sessions.leave(&a) && sessions.leave(&b));
        assert_eq!((sessions.visitors().len(), sessions.sessions().len()), (0, 1));
        assert!(sessions.visitors_of(a.device).is_empty());
        sessions.end(&session);
        assert!(sessions.devices.lock().is_empty());
    }

    #[test]
    fn a_change_ends_the_visitors_that_it_concerns() {
        let changes: [fn(&mut DeviceStanding); 3] = [
            |it| it.tenant = TenantId(Uuid::from_u128(9)),
            |it| it.customer = None,
            |it| it.credential = CredentialHash::from_digest([8; 32]),
        ];
        let sessions = Sessions::default();
        let device = identity(1).device;
        let visitor = sessions.enter(
            sessions.next_visit(),
            identity(1),
            DIGEST,
            Protocol::Mqtt,
            place(),
            Instant::now(),
        );
        assert_eq!(sessions.end_outdated(&DeviceState { device, now: Some(standing()) }), 0);
        let stranger = DeviceState { device: identity(2).device, now: None };
        assert_eq!(sessions.end_outdated(&stranger), 0);
        assert!(mail(&visitor.mailbox).is_none());
        for change in changes {
            let mut now = standing();
            change(&mut now);
            assert_eq!(sessions.end_outdated(&DeviceState { device, now: Some(now) }), 1);
            assert!(matches!(mail(&visitor.mailbox), Some(Mail::End(EndReason::Revoked))));
        }
        assert_eq!(sessions.end_outdated(&DeviceState { device, now: None }), 1);
        let (mut fewer, mut renamed) = (identity(1), identity(1));
        (fewer.customer, renamed.name) = (None, "B".to_owned());
        assert!(visitor.is(&renamed) && !visitor.is(&fewer) && !visitor.is(&identity(2)));
    }

    #[test]
    fn one_connection_too_many_ends_the_oldest_that_only_calls() {
        let sessions = Sessions::default();
        let enter = |protocol| {
            sessions.enter(sessions.next_visit(), identity(1), DIGEST, protocol, place(), Instant::now())
        };
        let callable = enter(Protocol::Mqtt);
        sessions.begin(&callable, 0);
        enter(Protocol::Http);
        let (older, newer) = (enter(Protocol::Mqtt), enter(Protocol::Mqtt));
        assert!(sessions.one_too_many(&newer, 3).is_none());
        assert_eq!(sessions.one_too_many(&newer, 2).map(|it| it.id), Some(older.id));
        sessions.leave(&older);
        assert!(sessions.one_too_many(&newer, 2).is_none());
    }

    #[test]
    fn a_takeover_reaches_one_session_and_a_shutdown_every_visitor() {
        let sessions = Sessions::default();
        let visitor = sessions.enter(
            sessions.next_visit(),
            identity(1),
            DIGEST,
            Protocol::Coap,
            place(),
            Instant::now(),
        );
        let (older, newer) = (sessions.begin(&visitor, 0), sessions.begin(&visitor, 0));
        sessions.take_over(identity(2).device, older.id);
        sessions.take_over(visitor.device, older.id);
        assert!(matches!(mail(&older.mailbox), Some(Mail::End(EndReason::TakenOver))));
        assert!(mail(&newer.mailbox).is_none() && mail(&visitor.mailbox).is_none());
        sessions.tell_all(|| Mail::Leave(EndReason::ShuttingDown));
        assert!(matches!(mail(&visitor.mailbox), Some(Mail::Leave(EndReason::ShuttingDown))));
    }
}
