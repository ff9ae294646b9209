//! CoAP over UDP: the device API framed by RFC 7252, 7641 (Observe) and 7959 (blocks).
//!
//! `codec`, `request` and `reply` read and write messages; `messages`, `blocks` and `observer` are the parts of the
//! pure machine `endpoint`; `listener` is the one loop that performs what it asks for.

pub mod blocks;
pub mod codec;
pub mod endpoint;
mod listener;
pub mod messages;
pub mod observer;
pub mod reply;
pub mod request;
pub mod tally;

pub use listener::Listener;
