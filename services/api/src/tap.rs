//! How does a copy of the API hear of calls as they end? By one tap of every process for all its listeners, held while
//! one of them wants calls: without that it costs nothing anywhere.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bus::Bus;
use bus::inspect::{GATHER, Listener};
use parking_lot::Mutex;
use rpc::{HopFilter, HopRecord, Instructed, NodeId};
use tokio::sync::{Notify, broadcast};
use tokio::time::{interval, sleep};

use crate::follow::Followed;
use crate::overheard::{EndedCall, Overheard};
use crate::world::World;

/// Calls that may wait for one listener to read them; further ones it is not told, and how many they were.
const MAX_QUEUED: usize = 1_000;
/// How often it is looked whether somebody still listens, and what has waited long enough.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two attempts where NATS is away.
const PAUSE: Duration = Duration::from_secs(1);

/// What those are told who listen to calls.
#[derive(Debug)]
pub(crate) enum Heard {
    /// Every process tells its calls from here on; those before may have been missed.
    Live,
    /// A call.
    Ended(EndedCall),
    /// So many calls were not told, whosever they were.
    LeftOut(u64),
    /// This process tells none.
    Silent(NodeId),
}

/// Listeners' way to hear of calls. Clones share it.
#[derive(Clone)]
pub(crate) struct Taps {
    told: broadcast::Sender<Arc<Heard>>,
    is_live: Arc<Mutex<bool>>,
    wanted: Arc<Notify>,
}

impl Taps {
    pub(crate) fn new() -> Self {
        Taps { told: broadcast::Sender::new(MAX_QUEUED), is_live: Arc::default(), wanted: Arc::default() }
    }

    /// Hears of calls, and whether all do that end from now on; if not, that is told.
    pub(crate) fn enter(&self) -> (broadcast::Receiver<Arc<Heard>>, bool) {
        let is_live = self.is_live.lock();
        self.wanted.notify_one();
        (self.told.subscribe(), *is_live)
    }

    /// Listens for those who do, for as long as it is polled.
    pub(crate) async fn listen(self, bus: Bus, followed: Followed) {
        loop {
            self.wanted.notified().await;
            while !self.is_over() {
                self.hear(&bus, &followed).await;
            }
        }
    }

    /// Nobody listens any more.
    fn is_over(&self) -> bool {
        let mut is_live = self.is_live.lock();
        let is_over = self.told.receiver_count() == 0;
        *is_live &= !is_over;
        is_over
    }

    /// Until nobody listens, or NATS is or was away: then processes have lost the way back.
    async fn hear(&self, bus: &Bus, followed: &Followed) {
        let filter = HopFilter { first_only: true, targets: true, ..HopFilter::default() };
        let mut listener = Listener::without_bodies(bus, filter);
        let (mut overheard, mut looks) = (Overheard::default(), interval(LOOK_EVERY));
        let (live_at, mut silent) = (Instant::now() + GATHER, BTreeSet::new());
        let loads = followed.look(World::loads);
        loop {
            tokio::select! {
                heard = listener.next() => match heard {
                    Ok(Ok(tapped)) => {
                        let ended = tapped.hops.into_iter();
                        let ended = ended.filter_map(|it| overheard.take(tapped.process, it.hop, Instant::now()));
                        self.tell(followed, ended);
                        if tapped.left_out > 0 {
                            self.say(Heard::LeftOut(tapped.left_out));
                        }
                    }
                    Ok(Err(Instructed { service, process, fault })) => {
                        if silent.insert(process) {
                            tracing::warn!(service, %process, fault, "a process does not tell its calls");
                            self.say(Heard::Silent(process));
                        }
                    }
                    Err(error) => {
                        tracing::info!(%error, "calls cannot be heard at the moment");
                        *self.is_live.lock() = false;
                        return sleep(PAUSE).await;
                    }
                },
                _ = looks.tick() => {
                    if self.is_over() || followed.look(World::loads) != loads {
                        return *self.is_live.lock() = false;
                    }
                    self.tell(followed, std::iter::from_fn(|| overheard.overdue(Instant::now())));
                    let mut is_live = self.is_live.lock();
                    // Who is there has heard by now that it is to tell.
                    let is_whole = followed.look(World::is_whole);
                    if !*is_live && is_whole && live_at <= Instant::now() {
                        *is_live = true;
                        self.say(Heard::Live);
                    }
                }
            }
        }
    }

    fn tell(&self, followed: &Followed, ended: impl Iterator<Item = HopRecord>) {
        let ended: Vec<HopRecord> = ended.collect();
        let ended =
            followed.look(|world| ended.into_iter().map(|hop| EndedCall::of(hop, world)).collect::<Vec<_>>());
        ended.into_iter().for_each(|call| self.say(Heard::Ended(call)));
    }

    fn say(&self, heard: Heard) {
        // Without a listener it is for nobody.
        let _ = self.told.send(Arc::new(heard));
    }
}
