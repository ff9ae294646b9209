//! Whose list is answered next? One of a customer at a time, and so many bytes a second: others wait their turn.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rpc::{Limit, NoPlace, Party, Place, Shares};
use tokio::sync::OwnedMutexGuard;
use tokio::time::sleep;

/// Lists that may wait at a time.
const MAX_WAITING: usize = 4_096;
/// Of one customer.
const MAX_WAITING_OF_ONE: usize = 256;
/// What a list costs besides its bytes: to be read, looked up and sent.
const BYTES_OF_NONE: usize = 512;

type ByParty = Mutex<HashMap<Party, Arc<tokio::sync::Mutex<()>>>>;

/// The queues of all customers. In memory stand those that have a list to wait for.
pub(crate) struct Turns {
    places: Shares<Party>,
    queues: Arc<ByParty>,
    /// Of one customer; 0: no limit.
    bytes_per_second: AtomicU32,
}

/// A list that waits in its customer's queue.
pub(crate) struct Queued {
    party: Party,
    queues: Arc<ByParty>,
    queue: Option<Arc<tokio::sync::Mutex<()>>>,
    bytes_per_second: u32,
    _place: Place<Party>,
}

/// It is this list's turn.
pub(crate) struct Turn {
    guard: Option<OwnedMutexGuard<()>>,
    queued: Queued,
}

impl Turns {
    pub(crate) fn new(bytes_per_second: u32) -> Self {
        let places = Shares::new(MAX_WAITING, MAX_WAITING_OF_ONE);
        Turns { places, queues: Arc::default(), bytes_per_second: bytes_per_second.into() }
    }

    /// Whoever joins a queue from now on is paced by this.
    pub(crate) fn change(&self, bytes_per_second: u32) {
        self.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Joins the queue of `party`, behind those that are in it.
    pub(crate) fn queue(&self, party: Party) -> Result<Queued, Limit> {
        let place = self.places.take(party).map_err(|why| match why {
            NoPlace::Part => Limit::CustomerLists,
            NoPlace::Any => Limit::Lists,
        })?;
        let queue = Some(Arc::clone(self.queues.lock().entry(party).or_default()));
        let bytes_per_second = self.bytes_per_second.load(Ordering::Relaxed);
        let queues = Arc::clone(&self.queues);
        Ok(Queued { party, queues, queue, bytes_per_second, _place: place })
    }
}

impl Queued {
    /// Waits until those before it are through.
    pub(crate) async fn turn(self) -> Turn {
        let guard = match &self.queue {
            Some(queue) => Some(Arc::clone(queue).lock_owned().await),
            None => None,
        };
        Turn { guard, queued: self }
    }
}

impl Drop for Queued {
    fn drop(&mut self) {
        let mut queues = self.queues.lock();
        self.queue = None;
        // Whoever joins takes his copy under this lock.
        if queues.get(&self.party).is_some_and(|queue| Arc::strong_count(queue) == 1) {
            queues.remove(&self.party);
        }
    }
}

impl Turn {
    /// The list was answered with so many bytes: the next one of the customer follows once they have had their time.
    pub(crate) async fn pass_on(mut self, bytes: usize) {
        if self.queued.bytes_per_second > 0 {
            sleep(time_of(bytes, self.queued.bytes_per_second)).await;
        }
        self.guard = None;
    }
}

/// What a list of so many bytes takes of its customer's time.
fn time_of(bytes: usize, bytes_per_second: u32) -> Duration {
    let cost = u32::try_from(bytes + BYTES_OF_NONE).unwrap_or(u32::MAX);
    Duration::from_secs(1) / bytes_per_second * cost
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use rpc::TenantId;
    use std::time::Instant;
    use uuid::Uuid;

    fn party(tenant: u128) -> Party {
        Party::of(TenantId(Uuid::from_u128(tenant)), None)
    }

    #[tokio::test]
    async fn a_customers_lists_follow_each_other_at_their_pace_and_nobody_elses_wait_for_them() {
        assert_eq!(time_of(50_000 - BYTES_OF_NONE, 500_000), Duration::from_millis(100));
        let turns = Turns::new(500_000);
        let started = Instant::now();
        let answer = |queued: Queued| async move {
            let turn = queued.turn().await;
            let at = started.elapsed();
            turn.pass_on(50_000 - BYTES_OF_NONE).await;
            at.as_millis()
        };
        let greedy: Vec<_> = (0..3).map(|_| tokio::spawn(answer(turns.queue(party(1)).unwrap()))).collect();
        tokio::task::yield_now().await;
        assert!(turns.queue(party(2)).unwrap().turn().now_or_never().is_some());
        assert!(turns.queue(party(1)).unwrap().turn().now_or_never().is_none());
        for (place, it) in greedy.into_iter().enumerate() {
            let (at, due) = (it.await.unwrap(), place as u128 * 100);
            assert!(at >= due, "{at} ms, not {due}");
        }
        assert!(turns.queues.lock().is_empty());
        assert_eq!(turns.places.taken(), 0);
    }

    #[tokio::test]
    async fn one_too_many_is_refused_and_whoever_leaves_makes_room() {
        let turns = Turns::new(1);
        let mut waiting: Vec<_> = (0..MAX_WAITING_OF_ONE).map(|_| turns.queue(party(1)).unwrap()).collect();
        assert_eq!(turns.queue(party(1)).err(), Some(Limit::CustomerLists));
        assert!(turns.queue(party(2)).is_ok());
        let turn = waiting.remove(0).turn().await;
        // Given up in its turn, as when the process stops.
        drop(turn);
        let turn = waiting.remove(0).turn().await;
        assert!(turns.queue(party(1)).is_ok());
        drop((waiting, turn));
        assert!(turns.queues.lock().is_empty());
    }
}
