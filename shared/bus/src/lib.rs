//! How do the services reach each other and what they share? Over NATS, and here alone.
//!
//! [`Bus`] is request and reply, [`ClaimStore`] says where each device is connected, [`registry`] holds devices,
//! [`server`] runs a nats-server as a child. Nobody else uses `async-nats`.

mod bucket;
mod claim_map;
mod claims;
mod configured;
mod connect;
mod connection;
mod errors;
mod leases;
mod meters;
mod pending;
mod pulse;
pub mod registry;
mod serve;
pub mod server;
mod watch;

pub use async_nats::Subject;
pub use claim_map::{Arrivals, ClaimMap};
pub use claims::{ClaimError, ClaimStore, Claimed, Reclaimed};
pub use connect::{BusSettings, Connection};
pub use connection::{Asked, Bus, Question};
pub use errors::{AskError, BusError, StoreError, TellError};
pub use leases::LeaseMap;
pub use meters::describe;
pub use serve::{Request, Requests};
