//! What does every service do with its bus besides its own work? It shows whether NATS is there, tries again what NATS
//! does not take yet, and hears the routers' beats.

use std::fmt::Display;
use std::time::{Duration, Instant};

use boot::{Failed, Part, Trouble};
use rpc::{Beat, wire};

use crate::{Bus, Connection};

/// Between two attempts at first, and at last.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

impl Bus {
    /// Shows in a part of the process' health whether NATS is there now, and if not why, as the log has it.
    pub fn show(&self, part: &Part) {
        match self.why_down() {
            None => part.ready(),
            Some(why) => part.not_ready(&why),
        }
    }

    /// The same for as long as it is awaited.
    pub async fn show_connection(self, part: Part) {
        self.show_lasting_loss(part, || Duration::ZERO).await;
    }

    /// The same, but that the part stays ready until NATS has been away for as long as `bridged` says.
    pub async fn show_lasting_loss(self, part: Part, bridged: impl Fn() -> Duration) {
        let (mut connection, mut cause) = (self.connection(), self.cause());
        let mut lost_at = None;
        loop {
            let mut left = Duration::ZERO;
            match self.why_down() {
                None => {
                    lost_at = None;
                    part.ready();
                }
                Some(why) => {
                    let lost_at = *lost_at.get_or_insert_with(Instant::now);
                    left = bridged().saturating_sub(lost_at.elapsed());
                    if left.is_zero() { part.not_ready(&why) } else { part.ready_though(&why) }
                }
            }
            let changed = tokio::select! {
                changed = connection.changed() => changed,
                changed = cause.changed() => changed,
                () = tokio::time::sleep(left), if !left.is_zero() => Ok(()),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    fn why_down(&self) -> Option<String> {
        match (*self.connection().borrow(), &*self.cause().borrow()) {
            (Connection::Up { .. }, _) => None,
            (Connection::Down, Some(cause)) => Some(format!("NATS is not reachable: {cause}")),
            (Connection::Down, None) => Some("NATS is not reachable".to_owned()),
        }
    }

    /// Attempts it until it succeeds, less and less often, and when the connection changes. The log says that `what`
    /// cannot be done yet, and for how long.
    pub async fn again<T, E: Display, F: Future<Output = Result<T, E>>>(
        &self,
        what: &str,
        mut attempt: impl FnMut() -> F,
    ) -> T {
        let mut trouble = Trouble::new(RETRY_PAUSE, LONGEST_PAUSE);
        let mut connection = self.connection();
        loop {
            connection.mark_unchanged();
            let error = match attempt().await {
                Ok(done) => {
                    if let Some(age_s) = trouble.over(Instant::now()) {
                        tracing::info!(age_s, "can {what} at last");
                    }
                    return done;
                }
                Err(error) => error,
            };
            let Failed { pause, say_age_s } = trouble.failed(&error.to_string(), Instant::now());
            match say_age_s {
                // Whoever starts first waits for the other: that is no fault.
                Some(0) => tracing::info!(%error, "cannot {what} yet; trying again"),
                Some(age_s) => tracing::warn!(%error, age_s, "cannot {what} yet; trying again"),
                None => {}
            }
            // Woken by the connection: what had no chance without it has one now.
            let _ = tokio::time::timeout(pause, connection.changed()).await;
        }
    }

    /// Hears the routers' beats for as long as it is awaited: what [`Bus::until`] and [`Bus::ends`] go by. Hands each
    /// to `then`, and whether it is the first of that router.
    pub async fn hear_beats(self, then: impl Fn(Beat, bool)) {
        let mut beats =
            self.again("hear the routers' beats", || self.serve(self.subjects().beat(), None)).await;
        while let Some(request) = beats.next().await {
            let Ok((beat, _)) = wire::decode::<Beat>(&request.message) else { continue };
            let is_first = self.beats().lock().heard(beat, request.arrived);
            then(beat, is_first);
        }
    }
}
