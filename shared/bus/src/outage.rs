//! Why is NATS away? What each attempt to reach it again says: in the log once while that stays, and for whoever asks.

use std::time::{Duration, Instant};

use boot::{Failed, Trouble};
use parking_lot::Mutex;
use tokio::sync::watch;
use tracing::warn;

/// In the place of what NATS says to a wrong password, and to a node for which nobody answers.
pub(crate) const REFUSED: &str = "NATS refuses this user and password (nats.user, nats.password, \
    nats.password_file or nats.credentials_file), or asks an identity service, which refuses or is away";

/// The attempts to reach NATS again. It paces them itself.
pub(crate) struct Outage {
    trouble: Mutex<Trouble>,
    cause: watch::Sender<Option<String>>,
}

impl Default for Outage {
    fn default() -> Self {
        Outage {
            trouble: Mutex::new(Trouble::new(Duration::ZERO, Duration::ZERO)),
            cause: watch::Sender::new(None),
        }
    }
}

impl Outage {
    /// An attempt has failed, for what the client calls `cause`.
    pub(crate) fn failed(&self, cause: &str) {
        let cause = if cause.contains("authorization") { REFUSED } else { cause };
        let Failed { say_age_s, .. } = self.trouble.lock().failed(cause, Instant::now());
        if let Some(age_s) = say_age_s {
            warn!(cause, age_s, "NATS cannot be reached; trying again");
        }
        self.cause.send_if_modified(|known| {
            let is_new = known.as_deref() != Some(cause);
            if is_new {
                *known = Some(cause.to_owned());
            }
            is_new
        });
    }

    /// There is a connection.
    pub(crate) fn over(&self) {
        self.trouble.lock().over(Instant::now());
        self.cause.send_if_modified(|known| known.take().is_some());
    }

    /// Why the last attempt has failed, if it has.
    pub(crate) fn cause(&self) -> watch::Receiver<Option<String>> {
        self.cause.subscribe()
    }
}
