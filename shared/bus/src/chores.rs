//! What does every service do with its bus besides its own work? It shows whether NATS is there, tries again what NATS
//! does not take yet, and hears the routers' beats.

use std::fmt::Display;
use std::time::Duration;

use boot::Part;
use rpc::{Beat, wire};

use crate::{Bus, Connection};

/// Between two attempts, while NATS is away.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

impl Connection {
    /// Shows in a part of the process' health whether NATS is there.
    pub fn show(self, part: &Part) {
        match self {
            Connection::Up { .. } => part.ready(),
            Connection::Down => part.not_ready("NATS is not reachable"),
        }
    }
}

impl Bus {
    /// The same for as long as it is awaited.
    pub async fn show_connection(self, part: Part) {
        let mut connection = self.connection();
        loop {
            (*connection.borrow_and_update()).show(&part);
            if connection.changed().await.is_err() {
                return;
            }
        }
    }

    /// Hears the routers' beats for as long as it is awaited: what [`Bus::until`] and [`Bus::ends`] go by. Hands each
    /// to `then`, and whether it is the first of that router.
    pub async fn hear_beats(self, then: impl Fn(Beat, bool)) {
        let mut beats = again("hear the routers' beats", || self.serve(self.subjects().beat(), None)).await;
        while let Some(request) = beats.next().await {
            let Ok((beat, _)) = wire::decode::<Beat>(&request.message) else { continue };
            let is_first = self.beats().lock().heard(beat, request.arrived);
            then(beat, is_first);
        }
    }
}

/// Attempts it until it succeeds; the log says each time that `what` cannot be done yet.
pub async fn again<T, E: Display, F: Future<Output = Result<T, E>>>(
    what: &str,
    mut attempt: impl FnMut() -> F,
) -> T {
    loop {
        match attempt().await {
            Ok(done) => return done,
            Err(error) => tracing::warn!(%error, "cannot {what} yet; trying again"),
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}
