//! Does the store take claims? Readiness says so when it is full, until it takes one again, or has not been seen to be
//! full for a while.

use std::time::{Duration, Instant};

use boot::Part;
use bus::StoreError;
use parking_lot::Mutex;

/// Without a further claim that it does not take, for so long, it is not known to be full any more.
const REMEMBERED: Duration = Duration::from_secs(10);

/// What is known of the store's room.
pub(crate) struct Room {
    claims: Part,
    full_at: Mutex<Option<Instant>>,
}

impl Room {
    /// Shown in this part, which others have said to be ready.
    pub(crate) fn new(claims: Part) -> Self {
        Room { claims, full_at: Mutex::new(None) }
    }

    /// A write has ended so.
    pub(crate) fn written<T>(&self, written: &Result<T, StoreError>) {
        match written {
            Err(error @ StoreError::Full { .. }) => {
                *self.full_at.lock() = Some(Instant::now());
                self.claims.not_ready(&error.to_string());
            }
            Ok(_) => self.forget(|_| true),
            Err(_) => {}
        }
    }

    /// Time has passed.
    pub(crate) fn tick(&self, now: Instant) {
        self.forget(|full_at| now.saturating_duration_since(full_at) >= REMEMBERED);
    }

    fn forget(&self, is_over: impl FnOnce(Instant) -> bool) {
        let mut full_at = self.full_at.lock();
        if full_at.is_some_and(is_over) {
            *full_at = None;
            self.claims.ready();
        }
    }
}

#[cfg(test)]
mod tests {
    use boot::Health;

    use super::*;

    #[test]
    fn a_full_store_is_shown_until_it_takes_a_claim_or_nobody_has_tried_for_a_while() {
        let health = Health::new();
        let room = Room::new(health.part("claims"));
        room.claims.ready();
        let full = Err::<(), _>(StoreError::Full { description: "insufficient resources".into() });
        room.written(&full);
        assert!(!health.is_ready());
        let shown = health.unready().into_iter().map(|(_, why)| why).collect::<String>();
        assert!(shown.contains("the store is full (insufficient resources)"), "{shown}");
        room.written(&Err::<(), _>(StoreError::Contended));
        assert!(!health.is_ready());
        room.written(&Ok(()));
        assert!(health.is_ready());
        room.written(&full);
        room.tick(Instant::now());
        assert!(!health.is_ready());
        room.tick(Instant::now() + REMEMBERED);
        assert!(health.is_ready());
    }
}
