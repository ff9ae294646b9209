//! In which protocol does a device talk? What differs between them, for who reads and writes messages.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::frame::{self, Packet};
use crate::nats_frame;

/// A protocol on a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Framing {
    /// MQTT 3.1.1.
    Mqtt,
    /// NATS' own.
    Nats,
}

impl Framing {
    /// See [`frame::split`].
    ///
    /// # Errors
    /// When the bytes are none of the protocol.
    pub fn split(self, bytes: &[u8]) -> Result<Option<(Packet<'_>, usize)>> {
        match self {
            Self::Mqtt => frame::split(bytes),
            Self::Nats => nats_frame::split(bytes),
        }
    }

    /// See [`frame::publish`] and [`nats_frame::publish`].
    pub fn publish(self, out: &mut Vec<u8>, topic: [&[u8]; 2], payload: &[&[u8]]) {
        match self {
            Self::Mqtt => frame::publish(out, topic, payload),
            Self::Nats => nats_frame::publish(out, topic, payload),
        }
    }

    /// What `packet` is to be answered with without further thought: a server that asks whether we are there.
    pub fn courtesy(self, packet: &Packet<'_>) -> Option<fn(&mut Vec<u8>)> {
        (self == Self::Nats && *packet == Packet::PingReq).then_some(nats_frame::pong as fn(&mut Vec<u8>))
    }
}
