//! How was a device last there? Written by the router that removed its claim, in a task of its own: what is written
//! about who has gone is no load for the claims of who comes.

use std::sync::OnceLock;
use std::time::Duration;

use boot::clock::unix_ms;
use bus::Bus;
use bus::seen::SeenStore;
use futures::future::join_all;
use metrics::{Counter, counter};
use parking_lot::Mutex;
use rpc::{Claim, DeviceId, LastSeen, SessionEnd};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::sleep;

use crate::core::Removal;
use crate::meters::SEEN;
use crate::router::STORE_WAIT;

/// Ends that may wait to be written; of a further one nothing is kept.
const MAX_QUEUED: usize = 65_536;
/// Ends that are written at a time, and the pause after them: a thousand a second at most.
const AT_A_TIME: usize = 16;
const PAUSE: Duration = Duration::from_millis(16);
/// Looks into the store at a time, whoever asks.
const MAX_READS: usize = 64;

enum Queued {
    Ended(DeviceId, LastSeen),
    /// All before it has been written.
    Flush(oneshot::Sender<()>),
}

/// What is known of who has gone.
pub(crate) struct Seen {
    /// Not there until JetStream has answered once.
    store: OnceLock<SeenStore>,
    queue: mpsc::Sender<Queued>,
    /// Taken by the task that writes.
    queued: Mutex<Option<mpsc::Receiver<Queued>>>,
    reads: Semaphore,
    written: Counter,
    failed: Counter,
    dropped: Counter,
}

impl Seen {
    pub(crate) fn new() -> Self {
        let (queue, queued) = mpsc::channel(MAX_QUEUED);
        let count = |result| counter!(SEEN, "result" => result);
        Seen {
            store: OnceLock::new(),
            queue,
            queued: Mutex::new(Some(queued)),
            reads: Semaphore::new(MAX_READS),
            written: count("written"),
            failed: count("failed"),
            dropped: count("dropped"),
        }
    }

    /// This router has just removed a device's claim.
    pub(crate) fn ended(&self, device: DeviceId, claim: &Claim, why: Removal) {
        let reason = match why {
            Removal::Released(reason) => reason,
            Removal::SessionGone => Some(SessionEnd::SessionGone),
            Removal::NodeGone => Some(SessionEnd::NodeGone),
        };
        let Claim { node, protocol, since_ms, .. } = *claim;
        let seen = LastSeen { at_ms: unix_ms(), node, protocol, since_ms, reason };
        if self.queue.try_send(Queued::Ended(device, seen)).is_err() {
            self.dropped.increment(1);
        }
    }

    /// Writes, for as long as it is polled; in one task alone.
    pub(crate) async fn keep(&self, bus: &Bus) {
        let Some(mut queued) = self.queued.lock().take() else { return };
        let opened = bus.again("open what is known of who has gone", || SeenStore::open(bus)).await;
        let store = self.store.get_or_init(|| opened);
        let mut some = Vec::with_capacity(AT_A_TIME);
        while queued.recv_many(&mut some, AT_A_TIME).await > 0 {
            let mut flushed = Vec::new();
            let writes = some.drain(..).filter_map(|it| match it {
                Queued::Ended(device, seen) => Some(self.write(store, device, seen)),
                Queued::Flush(done) => {
                    flushed.push(done);
                    None
                }
            });
            join_all(writes.collect::<Vec<_>>()).await;
            for done in flushed {
                // Who waited may have given up.
                let _ = done.send(());
            }
            sleep(PAUSE).await;
        }
    }

    async fn write(&self, store: &SeenStore, device: DeviceId, seen: LastSeen) {
        match store.write(device, &seen, STORE_WAIT).await {
            Ok(()) => self.written.increment(1),
            Err(error) => {
                tracing::debug!(%error, %device, "how a device was last there is not kept");
                self.failed.increment(1);
            }
        }
    }

    /// Waits until all ends so far have been written, or given up.
    pub(crate) async fn flush(&self) {
        let (done, flushed) = oneshot::channel();
        if self.store.get().is_some() && self.queue.send(Queued::Flush(done)).await.is_ok() {
            let _ = flushed.await;
        }
    }

    /// How these were last there, in their order; none where the store does not say.
    pub(crate) async fn of(&self, devices: &[DeviceId]) -> Vec<Option<LastSeen>> {
        let Some(store) = self.store.get() else { return vec![None; devices.len()] };
        join_all(devices.iter().map(|device| async move {
            // Closed by nobody.
            let _place = self.reads.acquire().await.ok()?;
            let read = store.read(*device, STORE_WAIT).await;
            read.inspect_err(|error| tracing::debug!(%error, %device, "the store does not say")).ok()?
        }))
        .await
    }
}
