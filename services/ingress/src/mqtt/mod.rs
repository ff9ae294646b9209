//! MQTT 3.1.1 and 5 on one port: framing and session around the device API.

pub mod codec;
pub(crate) mod connection;
pub mod filter;
mod handshake;
mod inbound;
mod listener;
mod outbound;
pub mod session;
#[cfg(test)]
mod standard;
mod will;

pub use listener::Listener;
