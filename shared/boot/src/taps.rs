//! Who wants to hear of hops as they end? A few at a time, each for as long as he says that he still listens, and no
//! more a second than can be read. Where nobody does, that costs one look at a number.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::Mutex;
use rpc::{HopRecord, Says, TAP_LEASE, Tap, TappedHop};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Who may listen to one process at a time.
const MAX_TAPS: usize = 16;
/// Hops that one of them is told a second; further ones are counted.
const MAX_HOPS_PER_SECOND: u32 = 200;
/// Bytes of a body that one may ask for.
const MAX_BODY_BYTES: u32 = 4_096;
/// How long hops wait for others to go with.
const GATHERED_FOR: Duration = Duration::from_millis(100);

/// What a call was sent with, and answered.
#[derive(Debug)]
pub(crate) struct Bodies {
    pub(crate) request: Bytes,
    pub(crate) answer: Option<Bytes>,
}

/// Those who listen.
#[derive(Debug, Default)]
pub(crate) struct Taps {
    open: Mutex<Vec<OpenTap>>,
    /// How many they are.
    count: AtomicUsize,
    /// How many of them read bodies.
    readers: AtomicUsize,
}

#[derive(Debug)]
struct OpenTap {
    tap: Tap,
    until: Instant,
    told: mpsc::Sender<TappedHop>,
    /// When its second began, and how many it was told since.
    second: (Instant, u32),
    left_out: u64,
}

impl Taps {
    pub(crate) fn are_there(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn read_bodies(&self) -> bool {
        self.readers.load(Ordering::Relaxed) > 0
    }

    pub(crate) fn open(&self, tap: Tap, now: Instant) -> Result<Option<Listening>, &'static str> {
        let mut open = self.open.lock();
        open.retain(|it| it.until > now);
        let tap = Tap { body_bytes: tap.body_bytes.min(MAX_BODY_BYTES), ..tap };
        let until = now + TAP_LEASE;
        let is_full = open.len() >= MAX_TAPS;
        let listening = match open.iter_mut().find(|it| it.tap.id == tap.id) {
            Some(known) => {
                (known.tap, known.until) = (tap, until);
                None
            }
            None if is_full => return Err("too many listen already (16)"),
            None => {
                let (told, hops) = mpsc::channel(MAX_HOPS_PER_SECOND as usize);
                let id = tap.id;
                open.push(OpenTap { tap, until, told, second: (now, 0), left_out: 0 });
                Some(Listening { id, hops })
            }
        };
        self.counted(&open);
        Ok(listening)
    }

    pub(crate) fn offer(&self, hop: HopRecord, says: Says, bodies: Option<Box<Bodies>>, now: Instant) {
        let mut open = self.open.lock();
        for it in open.iter_mut().filter(|it| it.tap.filter.hears(&hop, says)) {
            if now.saturating_duration_since(it.second.0).as_secs() >= 1 {
                it.second = (now, 0);
            }
            let begins = |body: &Bytes| {
                let most = body.len().min(it.tap.body_bytes as usize);
                (most > 0).then(|| String::from_utf8_lossy(body.get(..most).unwrap_or_default()).into_owned())
            };
            let told = TappedHop {
                hop,
                request: bodies.as_ref().and_then(|it| begins(&it.request)),
                answer: bodies.as_ref().and_then(|it| begins(it.answer.as_ref()?)),
            };
            it.second.1 += 1;
            if it.second.1 > MAX_HOPS_PER_SECOND || it.told.try_send(told).is_err() {
                it.left_out += 1;
            }
        }
        // Who no longer listens costs nothing any more.
        open.retain(|it| it.until > now);
        self.counted(&open);
    }

    fn counted(&self, open: &[OpenTap]) {
        self.count.store(open.len(), Ordering::Relaxed);
        self.readers.store(open.iter().filter(|it| it.tap.body_bytes > 0).count(), Ordering::Relaxed);
    }

    /// How many hops one was not told since this was asked last; none: he listens no more.
    pub(crate) fn left_out(&self, id: u64, now: Instant) -> Option<u64> {
        let mut open = self.open.lock();
        open.retain(|it| it.until > now);
        self.counted(&open);
        open.iter_mut().find(|it| it.tap.id == id).map(|it| std::mem::take(&mut it.left_out))
    }
}

/// What one who listens hears.
#[derive(Debug)]
pub struct Listening {
    id: u64,
    hops: mpsc::Receiver<TappedHop>,
}

impl Listening {
    /// Whose it is.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The next hops, those that end at about the same time together; empty after a while in which none did.
    pub async fn next(&mut self) -> Vec<TappedHop> {
        let mut hops = Vec::new();
        if timeout(TAP_LEASE / 4, self.hops.recv_many(&mut hops, 1)).await.is_ok() {
            tokio::time::sleep(GATHERED_FOR).await;
            while hops.len() < MAX_HOPS_PER_SECOND as usize
                && let Ok(hop) = self.hops.try_recv()
            {
                hops.push(hop);
            }
        }
        hops
    }
}

#[cfg(test)]
mod tests {
    use rpc::{Budget, CallId, HopEnd, HopFilter, HopOf, NodeId, Station};

    use super::*;

    fn hop(station: Station) -> HopRecord {
        let of = HopOf {
            station,
            call: CallId { node: NodeId(1), serial: 1 },
            from: "00000000-0000-0000-0000-000000000001".parse().unwrap(),
            to: None,
            party: None,
            budget_ms: Budget::from_ms(1_000),
            protocol: None,
        };
        HopRecord::new(of, 0, HopEnd::Answered)
    }

    fn tap(id: u64, body_bytes: u32) -> Tap {
        Tap { id, filter: HopFilter { first_only: true, ..HopFilter::default() }, body_bytes }
    }

    #[tokio::test]
    async fn who_listens_is_told_what_he_wants_until_his_lease_is_over() {
        let (taps, now) = (Taps::default(), Instant::now());
        taps.offer(hop(Station::Caller), Says::Nothing, None, now);
        let mut listening = taps.open(tap(7, 4), now).unwrap().unwrap();
        assert!(taps.are_there() && taps.read_bodies());
        let bodies = || Some(Box::new(Bodies { request: "request".into(), answer: Some("ok".into()) }));
        taps.offer(hop(Station::Router), Says::Nothing, None, now);
        taps.offer(hop(Station::Caller), Says::Nothing, bodies(), now);
        let [told] = listening.next().await.try_into().unwrap();
        assert_eq!((told.request.as_deref(), told.answer.as_deref()), (Some("requ"), Some("ok")));
        assert_eq!(listening.next().await, []);
        // Said again it goes on, without bodies now.
        let later = now + TAP_LEASE / 2;
        assert!(taps.open(tap(7, 0), later).unwrap().is_none());
        assert!(!taps.read_bodies());
        assert_eq!(taps.left_out(7, later + TAP_LEASE / 2), Some(0));
        assert_eq!(taps.left_out(7, later + TAP_LEASE), None);
        assert!(!taps.are_there());
    }

    #[test]
    fn what_is_too_much_is_counted_and_so_many_may_listen() {
        let (taps, now) = (Taps::default(), Instant::now());
        let _listening = taps.open(tap(0, 0), now).unwrap().unwrap();
        (0..300).for_each(|_| taps.offer(hop(Station::Api), Says::Nothing, None, now));
        assert_eq!((taps.left_out(0, now), taps.left_out(0, now)), (Some(100), Some(0)));
        let more: Vec<_> = (1..16).map(|id| taps.open(tap(id, 0), now).unwrap()).collect();
        assert!(more.iter().all(Option::is_some));
        assert!(taps.open(tap(16, 0), now).is_err());
        assert!(taps.open(tap(16, 0), now + TAP_LEASE).is_ok(), "the others have gone");
    }
}
