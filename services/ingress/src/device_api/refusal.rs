//! What do HTTP and CoAP say of a request beside its text, each by codes of its own? (MQTT has no such place.)

use rpc::Outcome;

/// What a response says of its request, whichever number the protocol has for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It was carried out, or its text says why not.
    Done,
    /// It makes no sense.
    BadRequest,
    /// Nobody has its token.
    Unauthorized,
    /// There is nothing of that name.
    NotFound,
    /// Something newer has its place.
    Conflict,
    /// Its sender does something too often.
    TooManyRequests,
    /// A service is missing, or the node takes none now.
    Unavailable,
}

impl Status {
    /// Errors are outcomes too, as ThingsBoard answers, but for those that are about the request itself or about this
    /// system.
    pub fn of(outcome: &Outcome) -> Status {
        match outcome {
            Outcome::Answered
            | Outcome::Delivered
            | Outcome::Denied
            | Outcome::UnknownDevice
            | Outcome::Offline
            | Outcome::TimedOut
            | Outcome::Lost
            | Outcome::TooLargeForTarget
            | Outcome::AnswerTooLarge
            | Outcome::AnswerInvalid
            | Outcome::Malformed(_) => Status::Done,
            Outcome::Busy(limit) if limit.is_of_target() => Status::Done,
            Outcome::Busy(_) => Status::TooManyRequests,
            Outcome::Unavailable => Status::Unavailable,
        }
    }
}

/// Why a request goes no further, where both protocols say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// No device has the token.
    UnknownToken,
    /// The answer is to what was never asked, was answered, or wants none.
    NoSuchCall,
    /// The answer is none; another may come.
    AnswerNotJson,
    /// What is handed up is no JSON.
    BodyNotJson,
    /// A newer session of the device has its calls.
    TakenOver,
    /// The node shuts down.
    ShuttingDown,
    /// The node sends its devices away.
    Moved,
    /// The device does something too often.
    TooOften,
    /// A service or NATS is missing.
    Unavailable,
}

impl Refusal {
    /// What it is, for the protocol's code.
    pub fn status(self) -> Status {
        match self {
            Refusal::UnknownToken => Status::Unauthorized,
            Refusal::NoSuchCall => Status::NotFound,
            Refusal::AnswerNotJson | Refusal::BodyNotJson => Status::BadRequest,
            Refusal::TakenOver => Status::Conflict,
            Refusal::TooOften => Status::TooManyRequests,
            Refusal::ShuttingDown | Refusal::Moved | Refusal::Unavailable => Status::Unavailable,
        }
    }

    /// What the device reads as `error`.
    pub fn text(self) -> &'static str {
        match self {
            Refusal::UnknownToken => "No device has this access token!",
            Refusal::NoSuchCall => "No such call is open!",
            Refusal::AnswerNotJson => "An answer must be JSON in UTF-8; the call is still open!",
            Refusal::BodyNotJson => "The body must be JSON in UTF-8!",
            Refusal::TakenOver => "A newer session of this device takes its calls now!",
            Refusal::ShuttingDown => "This node is shutting down!",
            Refusal::Moved => "This node sends its devices to others!",
            Refusal::TooOften => "Too many requests!",
            Refusal::Unavailable => "Internal server error!",
        }
    }
}
