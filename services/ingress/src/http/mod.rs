//! HTTP/1.1: the device API for clients that ask and poll, and the way in for MQTT over WebSocket.
//!
//! `lease` is pure; `device` performs what it asks for; `routes` frames the same texts as MQTT does.

mod chunks;
mod connection;
mod cors;
mod device;
mod devices;
mod exchange;
pub mod lease;
mod listener;
mod metrics;
mod opening;
mod outbox;
mod paths;
mod reply;
mod routes;
mod server;
mod waiting;
pub mod websocket;
mod wire;

pub use listener::Listener;
