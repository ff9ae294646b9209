//! How many bytes may wait for the connection to NATS? The client counts messages alone, and a large one may have 500
//! times the bytes of a small one.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Messages up to it are not weighed: as many as may wait have 32 MiB together.
const SMALL_BYTES: usize = 4_096;
/// Bytes of all others that may wait, before a sender waits too.
const MAX_LARGE_BYTES: usize = 32 * 1024 * 1024;

/// The room for large messages that wait.
#[derive(Debug)]
pub(crate) struct Room(Arc<Semaphore>);

/// A payload that gives its room back once the connection has let go of it.
struct Held {
    payload: Bytes,
    _room: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.payload
    }
}

impl Default for Room {
    fn default() -> Self {
        Room(Arc::new(Semaphore::new(MAX_LARGE_BYTES)))
    }
}

impl Room {
    /// The payload with room for it; none when there is none now.
    pub(crate) fn hold_now(&self, payload: &Bytes) -> Option<Bytes> {
        let Some(bytes) = weight(payload) else { return Some(payload.clone()) };
        let room = Arc::clone(&self.0).try_acquire_many_owned(bytes).ok()?;
        Some(held(payload, room))
    }

    /// The payload, once there is room for it.
    pub(crate) async fn hold(&self, payload: &Bytes) -> Bytes {
        let Some(bytes) = weight(payload) else { return payload.clone() };
        match Arc::clone(&self.0).acquire_many_owned(bytes).await {
            Ok(room) => held(payload, room),
            // The semaphore is never closed.
            Err(_) => payload.clone(),
        }
    }
}

/// What it takes of the room; none for a small one. One that has more than all, which NATS would not take, takes all.
fn weight(payload: &Bytes) -> Option<u32> {
    (payload.len() > SMALL_BYTES)
        .then(|| u32::try_from(payload.len().min(MAX_LARGE_BYTES)).unwrap_or(u32::MAX))
}

fn held(payload: &Bytes, room: OwnedSemaphorePermit) -> Bytes {
    Bytes::from_owner(Held { payload: payload.clone(), _room: room })
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn large_messages_wait_for_those_before_them() {
        let room = Room::default();
        let large = Bytes::from(vec![b'x'; 1024 * 1024]);
        let mut waiting: Vec<_> = std::iter::from_fn(|| room.hold_now(&large)).take(1_000).collect();
        assert_eq!(waiting.len(), 32);
        assert_eq!(waiting.first(), Some(&large));
        assert!(room.hold(&large).now_or_never().is_none());
        // Small ones pass, and a part that is still read keeps the whole.
        assert!(room.hold_now(&Bytes::from_static(b"small")).is_some());
        let part = waiting.pop().unwrap().slice(..1);
        assert!(room.hold_now(&large).is_none());
        drop(part);
        assert_eq!(room.hold(&large).await, large);
        let more_than_all = Bytes::from(vec![0; MAX_LARGE_BYTES + 1]);
        assert!(room.hold_now(&more_than_all).is_none());
        drop(waiting);
        assert!(room.hold_now(&more_than_all).is_some());
    }
}
