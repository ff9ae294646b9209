//! What does every service do with its bus besides its own work? It shows whether NATS is there, and tries again what
//! NATS does not take yet.

use std::fmt::Display;
use std::time::Duration;

use boot::Part;

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
