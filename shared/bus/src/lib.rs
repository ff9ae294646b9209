//! How do the services reach each other and what they share? Over NATS, and here alone: nobody else uses `async-nats`.
//!
//! For everybody: [`Bus`] is request and reply, [`server`] runs a nats-server as a child. For those who may use
//! JetStream: [`claims`] says where each device is connected, [`seen`] where it was (routers), [`registry`] holds
//! devices (authorizers, the command, the API's administration), [`changes`] is what becomes of it, with a record of
//! each, [`Keyring`] the keys of tickets (authorizers, routers).

mod applications;
pub mod audit;
mod bucket;
mod callout;
pub mod certificate;
pub mod changes;
mod chores;
pub mod claims;
mod configured;
mod connect;
mod connection;
mod credentials;
mod errors;
pub mod inspect;
mod jetstream;
mod keys;
mod local;
mod many;
mod meters;
pub mod once;
mod outage;
mod pending;
pub mod policies;
pub mod pulse;
pub mod registry;
mod room;
pub mod seen;
mod serve;
pub mod server;
pub mod stored;
mod watch;

pub use applications::MAX_APP_HEADER_BYTES;
pub use async_nats::Subject;
pub use connect::{BusSettings, Connection};
pub use connection::{Asked, Bus, Question, Traced};
pub use errors::{AskError, BusError, StoreError, TellError};
pub use keys::Keyring;
pub use local::Local;
pub use meters::describe;
pub use serve::{Request, Requests};
