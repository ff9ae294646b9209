//! What is under way to a device that observes its calls? One notification at a time, and the calls it may answer.

use std::net::SocketAddr;
use std::time::Instant;

use rpc::SessionEnd;

use super::codec::Token;
use super::link::RequestId;
use crate::device::mailbox::Router;
use crate::device::target::Target;
use crate::device::visitors::Key;

/// One observation (RFC 7641).
#[derive(Debug)]
pub struct Observer {
    /// Whose it is.
    pub visitor: Key,
    /// Endpoint and token: what makes it this observation (§4.1).
    pub registration: (SocketAddr, Token),
    /// The block size that the device asked for, as an exponent.
    pub exponent: u8,
    /// Its claim stands.
    pub live: bool,
    /// It was ended while its claim was being written.
    pub over: Option<SessionEnd>,
    /// Requests that wait for the claim.
    pub waiters: Vec<RequestId>,
    /// Its calls.
    pub target: Target<Router>,
    /// When the device was last heard of.
    pub heard_at: Instant,
    /// For when a timer is set that looks for calls out of time.
    pub expiry_timer: Option<Instant>,
    under_way: Option<UnderWay>,
}

/// The confirmable message that the device has not dealt with.
#[derive(Debug)]
struct UnderWay {
    id: u16,
    what: What,
}

#[derive(Debug)]
enum What {
    /// Are you there?
    Ping,
    /// A call; with an entity tag where the device has to fetch the rest of it.
    Call { number: u32, acknowledged: bool, etag: Option<u32> },
}

/// What an acknowledgement or reset means.
#[derive(Debug, PartialEq, Eq)]
pub enum Settled {
    /// Nothing but that the device is there.
    Nothing,
    /// It has the whole call of this number.
    Taken(u32),
    /// It has the first block.
    InBlocks,
    /// It knows of no observation, or wants none.
    Rejected(u32),
}

impl Observer {
    /// An observation whose claim does not stand yet, asked for by `request`.
    pub fn new(
        visitor: Key,
        registration: (SocketAddr, Token),
        exponent: u8,
        mut target: Target<Router>,
        request: RequestId,
        now: Instant,
    ) -> Self {
        // A call can overtake the word that the claim stands.
        target.becomes_callable();
        Observer {
            visitor,
            registration,
            exponent,
            live: false,
            over: None,
            waiters: vec![request],
            target,
            heard_at: now,
            expiry_timer: None,
            under_way: None,
        }
    }

    /// A call is under way.
    pub fn is_notifying(&self) -> bool {
        matches!(&self.under_way, Some(UnderWay { what: What::Call { .. }, .. }))
    }

    /// The id of the ping that is under way.
    pub fn ping(&self) -> Option<u16> {
        match &self.under_way {
            Some(UnderWay { id, what: What::Ping }) => Some(*id),
            _ => None,
        }
    }

    /// A call is sent.
    pub fn notifies(&mut self, id: u16, number: u32, etag: Option<u32>) {
        self.under_way = Some(UnderWay { id, what: What::Call { number, acknowledged: false, etag } });
    }

    /// A ping is sent in place of whatever was under way; none: nothing is.
    pub fn pings(&mut self, id: Option<u16>) {
        self.under_way = id.map(|id| UnderWay { id, what: What::Ping });
    }

    /// The message `id` was acknowledged, or rejected.
    pub fn settled(&mut self, id: u16, rejected: bool) -> Settled {
        let Some(under_way) = self.under_way.as_mut().filter(|it| it.id == id) else {
            return Settled::Nothing;
        };
        match &mut under_way.what {
            What::Call { acknowledged, etag: Some(_), .. } if !rejected => {
                *acknowledged = true;
                return Settled::InBlocks;
            }
            What::Ping | What::Call { .. } => {}
        }
        match self.under_way.take().map(|it| it.what) {
            // A ping is answered by a reset (RFC 7252 §4.3).
            None | Some(What::Ping) => Settled::Nothing,
            Some(What::Call { number, .. }) if rejected => Settled::Rejected(number),
            Some(What::Call { number, .. }) => Settled::Taken(number),
        }
    }

    /// The id of the message that the device has not acknowledged.
    pub fn unacknowledged(&self) -> Option<u16> {
        match &self.under_way {
            None | Some(UnderWay { what: What::Call { acknowledged: true, .. }, .. }) => None,
            Some(UnderWay { id, .. }) => Some(*id),
        }
    }

    /// The last block of the body `etag` was fetched: the number of its call, and the id that was not acknowledged.
    pub fn fetched(&mut self, etag: Option<u32>) -> Option<(u32, Option<u16>)> {
        let Some(UnderWay { what: What::Call { number, etag: Some(of), .. }, .. }) = &self.under_way else {
            return None;
        };
        if Some(*of) != etag {
            return None;
        }
        let ended = (*number, self.unacknowledged());
        self.under_way = None;
        Some(ended)
    }

    /// The call `number` needs no more sending: the id that was not acknowledged.
    pub fn no_longer_notifies(&mut self, number: u32) -> Option<u16> {
        let Some(UnderWay { what: What::Call { number: of, .. }, .. }) = &self.under_way else { return None };
        if *of != number {
            return None;
        }
        let id = self.unacknowledged();
        self.under_way = None;
        id
    }

    /// Gives up on the rest of the acknowledged message `id`. False when it is not under way any more.
    pub fn was_not_fetched(&mut self, id: u16) -> bool {
        let waits = matches!(
            &self.under_way,
            Some(UnderWay { id: of, what: What::Call { acknowledged: true, .. } }) if *of == id
        );
        if waits {
            self.under_way = None;
        }
        waits
    }

    /// Calls have run out of time: the id that was not acknowledged, if that of the message under way is one of them.
    pub fn call_ran_out(&mut self) -> Option<u16> {
        let Some(UnderWay { what: What::Call { number, .. }, .. }) = &self.under_way else { return None };
        if self.target.is_open(*number) {
            return None;
        }
        let unacknowledged = self.unacknowledged();
        if unacknowledged.is_none() {
            self.under_way = None;
        }
        unacknowledged
    }

    /// Nothing is owed to the device or by it.
    pub fn is_idle(&self) -> bool {
        self.target.is_idle() && !self.is_notifying()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::limits::DeviceLimits;
    use crate::device::target::Numbers;

    fn observer() -> Observer {
        let target = Target::new(DeviceLimits::for_tests().target, Numbers::after(0));
        Observer::new(1, (([127, 0, 0, 1], 1).into(), Token::default()), 6, target, 1, Instant::now())
    }

    #[test]
    fn an_acknowledgement_means_what_was_sent_under_its_id() {
        let mut it = observer();
        assert_eq!((it.settled(1, false), it.unacknowledged()), (Settled::Nothing, None));
        it.notifies(1, 10, None);
        assert_eq!(it.settled(2, true), Settled::Nothing);
        assert_eq!((it.is_notifying(), it.unacknowledged()), (true, Some(1)));
        assert_eq!((it.settled(1, false), it.is_notifying()), (Settled::Taken(10), false));
        it.notifies(2, 11, None);
        assert_eq!((it.settled(2, true), it.is_notifying()), (Settled::Rejected(11), false));
        it.pings(Some(3));
        assert_eq!((it.ping(), it.is_notifying(), it.unacknowledged()), (Some(3), false, Some(3)));
        assert_eq!((it.settled(3, true), it.ping()), (Settled::Nothing, None));
    }

    #[test]
    fn a_call_in_blocks_is_taken_once_its_last_block_is_fetched() {
        let mut it = observer();
        it.notifies(1, 10, Some(77));
        assert_eq!((it.settled(1, false), it.is_notifying()), (Settled::InBlocks, true));
        assert_eq!((it.fetched(Some(76)), it.was_not_fetched(2)), (None, false));
        assert_eq!((it.fetched(Some(77)), it.is_notifying()), (Some((10, None)), false));
        it.notifies(2, 11, Some(78));
        assert_eq!((it.was_not_fetched(2), it.fetched(Some(78))), (false, Some((11, Some(2)))));
        it.notifies(3, 12, Some(79));
        it.settled(3, false);
        assert_eq!((it.was_not_fetched(3), it.is_notifying()), (true, false));
        it.notifies(4, 13, None);
        assert_eq!((it.no_longer_notifies(12), it.no_longer_notifies(13)), (None, Some(4)));
    }
}
