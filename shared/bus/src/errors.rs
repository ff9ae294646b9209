//! Why did it not happen? The errors of connecting, asking, telling and storing.

/// What the head of a message takes at most beside a device's body: ids, a name of 255 characters, a trace
/// context, a ticket, an inbox.
pub(crate) const HEAD_BYTES: usize = 2_048;

/// Why something on NATS could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// No server answered in time, or none let us in.
    #[error("cannot connect to NATS at {url}: {reason}")]
    Connect {
        /// The servers tried.
        url: String,
        /// What the last attempt said.
        reason: String,
    },
    /// The server is older than what the buckets need.
    #[error("nats-server {version} is too old: 2.11 or later is needed")]
    TooOld {
        /// Its version.
        version: String,
    },
    /// The server has known advisories.
    #[error(
        "nats-server {version} has known security advisories: 2.12.12, 2.14.3 or later is needed \
         (nats.allow_vulnerable_server = true takes it all the same)"
    )]
    Vulnerable {
        /// Its version.
        version: String,
    },
    /// What devices may send fits no message of the server's.
    #[error(
        "{setting} is {bytes} bytes, and NATS takes messages of {max_payload} bytes (its max_payload): such a body \
         travels with a head of up to {HEAD_BYTES} bytes. Lower {setting} to {}, or raise max_payload",
        max_payload.saturating_sub(HEAD_BYTES)
    )]
    BodiesTooLarge {
        /// The setting that allows them.
        setting: &'static str,
        /// What it allows.
        bytes: usize,
        /// What the server allows.
        max_payload: usize,
    },
    /// A subscription could not be made.
    #[error("cannot subscribe to {subject}: {reason}")]
    Subscribe {
        /// What was to be subscribed to.
        subject: String,
        /// Why not.
        reason: String,
    },
    /// A bucket could not be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a question has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// Nobody listens there: NATS says so at once, and nobody received the question.
    #[error("nobody listens there")]
    NoResponders,
    /// No reply came in time; the question may have been received.
    #[error("no reply in time")]
    Expired,
    /// There is no connection, or it took no message in time, or it was closed while the reply was waited for.
    #[error("not connected to NATS")]
    Down,
    /// The node that was asked is gone, as [`Bus::no_reply_from`](crate::Bus::no_reply_from) was told; it may have
    /// received the question.
    #[error("the node that was asked is gone")]
    Gone,
    /// `max_pending_asks` questions are open; nothing was sent.
    #[error("too many questions are open")]
    Full,
    /// Larger than NATS takes, or the subject is none; nothing was sent.
    #[error("the message cannot be sent")]
    Unsendable,
}

/// Why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TellError {
    /// There is no connection, or it took no message in time.
    #[error("not connected to NATS")]
    Down,
    /// Larger than NATS takes, or the subject is none.
    #[error("the message cannot be sent")]
    Unsendable,
}

/// Why the store did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// NATS did not answer, or not in time; the write may have happened.
    #[error("the store cannot be reached: {0}")]
    Unreachable(#[from] AskError),
    /// The bucket is not there.
    #[error("the bucket {0} is missing")]
    Missing(String),
    /// Something else stands there than was expected.
    #[error("another write came first")]
    Contended,
    /// JetStream has no room: of its own limit, of its account's, or on its disk. Nothing was written.
    #[error(
        "the store is full ({description}): nothing was written. JetStream needs more room: max_file_store, its \
         account's limits, or its disk; what is written goes on when there is some, and nothing need be restarted"
    )]
    Full {
        /// JetStream's words.
        description: String,
    },
    /// JetStream said no.
    #[error("the store refused: {description} ({code})")]
    Refused {
        /// JetStream's error code.
        code: u64,
        /// Its words.
        description: String,
    },
    /// JetStream's answer, or what is stored, could not be read.
    #[error("the store's answer cannot be read: {0}")]
    Unreadable(String),
}
