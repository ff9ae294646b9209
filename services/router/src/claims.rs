//! What do nodes ask of a router about their claims, and what is done for it? Written, read, removed, and told.

use bus::claims::{Expected, StoredClaim};
use bus::{Request, Requests, StoreError, Subject};
use futures::{StreamExt as _, stream};
use rpc::{
    CLAIM_ATTEMPT, CancelRequest, Claim, ClaimReply, ClaimRequest, CompareRequest, Deadline, DeviceId,
    Holder, LeaseRenewal, NodeId, PresenceReply, PresenceRequest, ReleaseRequest, Takeover, TicketError,
    wire,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::core::{self, Claiming, Found, NotWritten, Removal, Standing, Write};
use crate::router::{Router, RouterCore, STORE_WAIT};

/// How many releases a router has the store do at once. A claim waits behind those of all routers.
const MAX_RELEASES_IN_FLIGHT: usize = 32;

impl Router {
    /// `swb.claim`: nothing is written without an authorizer's word for the session.
    pub(crate) fn take_claim(&self, request: Request) {
        let Some(reply_to) = request.reply_to else { return };
        let Ok((claim, _)) = wire::decode::<ClaimRequest>(&request.message) else {
            return self.unreadable("a claim");
        };
        let ClaimRequest { device, node, session, visit, .. } = claim;
        match self.0.keys.check(&claim.ticket, Holder { device, node, visit }) {
            Ok(()) => {}
            Err(error) => {
                // After a key that is too new here, or too old, the node has another one in a moment.
                match error {
                    TicketError::UnknownKey | TicketError::Expired => {
                        tracing::debug!(%device, %node, %session, %error, "a claim is refused");
                    }
                    TicketError::Forged => {
                        tracing::warn!(%device, %node, %session, %error, "a claim is refused");
                    }
                }
                return self.reply(reply_to, ClaimReply::Refused);
            }
        }
        let deadline = Deadline::at(request.arrived + self.0.limits.claim_timeout.min(CLAIM_ATTEMPT));
        let deadline = self.0.bus.ends(claim.until.as_ref(), deadline).instant();
        self.tell(|core, now, actions| core.claim(claim, deadline, reply_to, now, actions));
    }

    /// `swb.release`: nobody waits for it, so when many devices go at once it leaves the store to claims.
    pub(crate) async fn take_releases(self, mut requests: Requests, shutdown: CancellationToken) {
        let (waiting, mut releases) = mpsc::unbounded_channel();
        let releases = stream::poll_fn(move |context| releases.poll_recv(context));
        let taken = async {
            while let Some(request) = requests.next_until(&shutdown).await {
                match wire::decode::<ReleaseRequest>(&request.message) {
                    Ok((release, _)) => drop(waiting.send(release)),
                    Err(_) => self.unreadable("a release"),
                }
            }
            drop(waiting);
        };
        let done = releases.for_each_concurrent(MAX_RELEASES_IN_FLIGHT, |release| {
            let router = self.clone();
            async move { router.release(release).await }
        });
        tokio::join!(taken, done);
    }

    async fn release(&self, release: ReleaseRequest) {
        if let Ok(stored) = self.stored(release.device).await
            && let Some((found, why)) = RouterCore::release(&release, stored.and_then(found))
        {
            self.removed(release.device, found, why).await;
        }
    }

    /// `swb.lease`.
    pub(crate) fn take_renewal(&self, request: &Request) {
        match wire::decode::<LeaseRenewal>(&request.message) {
            Ok((renewal, _)) => self.tell(|core, now, actions| core.renew(&renewal, now, actions)),
            Err(_) => self.unreadable("a lease"),
        }
    }

    /// `swb.compare`.
    pub(crate) fn answer_compare(&self, request: Request) {
        let Some(reply_to) = request.reply_to else { return };
        match wire::decode::<CompareRequest>(&request.message) {
            Ok((compare, _)) => self.say_soon(reply_to, &self.look(|core, _| core.compare(&compare))),
            Err(_) => self.unreadable("a question for claims"),
        }
    }

    /// `swb.cancel`.
    pub(crate) fn take_cancel(&self, request: &Request) {
        let Ok((cancel, _)) = wire::decode::<CancelRequest>(&request.message) else {
            return self.unreadable("a cancellation");
        };
        let mut cancelled = None;
        self.tell(|core, _, _| cancelled = core.cancel(&cancel));
        if let Some(call) = cancelled {
            tracing::debug!(call = %call.id, "its caller is gone");
            self.0.meters.cancelled.increment(1);
            call.payload.give_up();
        }
    }

    /// `swb.presence`: from memory, for the lists that devices ask for.
    pub(crate) fn answer_presence(&self, request: Request) {
        let Some(reply_to) = request.reply_to else { return };
        let Ok((PresenceRequest { devices, places, seen }, _)) = wire::decode(&request.message) else {
            return self.unreadable("a question for presence");
        };
        let mut reply = self.look(|core, now| {
            let found: Vec<_> = devices.iter().map(|device| core.whereabouts(*device, now)).collect();
            let online = found.iter().map(Option::is_some).collect();
            let takeovers: Vec<_> = devices.iter().map(|device| core.takeovers(*device, now)).collect();
            let calm = takeovers.iter().all(|count| *count == 0);
            let takeovers = if calm { Vec::new() } else { takeovers };
            PresenceReply { online, takeovers, places: places.then_some(found), seen: None }
        });
        if !seen {
            return self.say_soon(reply_to, &reply);
        }
        let router = self.clone();
        tokio::spawn(async move {
            reply.seen = Some(router.0.seen.of(&devices).await);
            router.say(reply_to, &reply).await;
        });
    }

    pub(crate) fn reply(&self, reply_to: Subject, reply: ClaimReply) {
        self.0.meters.claim(reply);
        self.say_soon(reply_to, &reply);
    }

    pub(crate) fn tell_taken_over(&self, device: DeviceId, taken_over: Claim) {
        let Claim { node, session, .. } = taken_over;
        self.0.meters.takeovers.increment(1);
        self.say_soon(self.0.bus.subjects().takeover(node).into(), &Takeover { session, device });
    }

    pub(crate) fn tell_differs(&self, node: NodeId) {
        tracing::debug!(%node, "the node holds other claims than are known here");
        self.0.meters.differing.increment(1);
        self.say_soon(self.0.bus.subjects().claims_differ(node).into(), &());
    }

    pub(crate) fn write(&self, claiming: Claiming<Subject>, write: Write) {
        let router = self.clone();
        tokio::spawn(async move {
            let device = claiming.request.device;
            let expected = match write.expected {
                core::Expected::Nothing => Expected::Nothing,
                core::Expected::Revision(revision) => Expected::Revision(revision),
            };
            let written = router.0.store.write(device, &write.claim, expected, STORE_WAIT).await;
            router.0.room.written(&written);
            let written = written.map_err(|error| match error {
                StoreError::Contended => NotWritten::Contended,
                error => {
                    tracing::warn!(%error, %device, "a claim was not written");
                    NotWritten::Unavailable
                }
            });
            router.tell(|core, now, actions| core.written(claiming, write, written, now, actions));
        });
    }

    pub(crate) fn read(&self, claiming: Claiming<Subject>) {
        let router = self.clone();
        tokio::spawn(async move {
            let stored = router.stored(claiming.request.device).await;
            let standing = stored.map(|stored| match stored {
                None => Standing { claim: None, expected: core::Expected::Nothing },
                Some(StoredClaim { claim, revision }) => {
                    Standing { claim, expected: core::Expected::Revision(revision) }
                }
            });
            router.tell(|core, now, actions| core.read(claiming, standing, now, actions));
        });
    }

    pub(crate) fn remove(&self, device: DeviceId, found: Found, why: Removal) {
        let router = self.clone();
        tokio::spawn(async move { router.removed(device, found, why).await });
    }

    async fn removed(&self, device: DeviceId, Found { claim, revision }: Found, why: Removal) {
        match self.0.store.remove(device, revision, STORE_WAIT).await {
            Ok(removed_at) => {
                if removed_at.is_some() {
                    self.0.meters.removed(why);
                    self.0.seen.ended(device, &claim, why);
                }
                self.tell(|core, now, _| core.removed(device, revision, removed_at, now));
            }
            // Found out at the next call, or when its node compares.
            Err(error) => tracing::debug!(%error, %device, "a stale claim stays for now"),
        }
    }

    /// What the store has; an error, of which was told, when it does not say.
    pub(crate) async fn stored(&self, device: DeviceId) -> Result<Option<StoredClaim>, ()> {
        let stored = self.0.store.read(device, STORE_WAIT).await;
        let meters = &self.0.meters;
        match &stored {
            Ok(Some(StoredClaim { claim: Some(_), .. })) => meters.lookups_found.increment(1),
            Ok(_) => meters.lookups_none.increment(1),
            Err(error) => {
                tracing::warn!(%error, %device, "the store does not say where a device is");
                meters.lookups_failed.increment(1);
            }
        }
        stored.map_err(|_| ())
    }

    async fn say(&self, to: Subject, head: &impl wire::Head) {
        if let Err(error) = self.0.bus.tell(to, wire::encode(head, b"")).await {
            tracing::warn!(%error, "a node was not told");
        }
    }

    /// Nearly always the connection takes it at once.
    pub(crate) fn say_soon(&self, to: Subject, head: &(impl wire::Head + Clone + Send + Sync + 'static)) {
        use futures::FutureExt;
        if self.say(to.clone(), head).now_or_never().is_none() {
            let (router, head) = (self.clone(), head.clone());
            tokio::spawn(async move { router.say(to, &head).await });
        }
    }

    fn unreadable(&self, what: &str) {
        tracing::warn!(what, "a message cannot be read");
        self.0.meters.unreadable.increment(1);
    }
}

/// A stored claim that can be read.
pub(crate) fn found(stored: StoredClaim) -> Option<Found> {
    stored.claim.map(|claim| Found { claim, revision: stored.revision })
}
