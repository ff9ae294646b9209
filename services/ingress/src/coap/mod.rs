//! CoAP over UDP: the device API framed by RFC 7252, 7641 (Observe) and 7959 (blocks).
//!
//! `codec`, `request` and `reply` read and write messages. The pure machine `endpoint` joins `requests` and
//! `observations`, each of an `observer` and all numbered by one `sequence`; both speak through `link`, whose message
//! layer is `messages` and which keeps what goes in `blocks`. `listener` is the one loop that performs what the
//! endpoint asks for.

pub mod blocks;
pub mod codec;
pub mod endpoint;
pub mod link;
mod listener;
pub mod messages;
pub mod observations;
pub mod observer;
pub mod reply;
pub mod request;
pub mod requests;
pub mod sequence;
pub mod tally;
#[cfg(test)]
mod world;

pub use listener::Listener;
