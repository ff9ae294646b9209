//! What does a device do? It connects, is called, answers mostly at once and sometimes never, and calls others.

use bytes::Bytes;
use rpc::{DeviceId, Outcome, SessionEnd};

use crate::message::{Micros, Pid};

/// One connection of a device: its place in the list of all that ever were.
pub type ClientId = usize;

/// What a device says to its node.
#[derive(Debug, Clone)]
pub enum FromClient {
    /// CONNECT and SUBSCRIBE, with a credential.
    Connect(DeviceId, [u8; 32]),
    /// It closes the connection.
    Close,
    /// A call: its place in the history, the target, its time and how long it may wait for the target, in milliseconds.
    Call(usize, DeviceId, u32, u32),
    /// The answer to a call.
    Answer(u32, Bytes),
}

/// What a node says to a device.
#[derive(Debug, Clone)]
pub enum ToClient {
    /// SUBACK: it can be called.
    Accepted,
    /// It is not let in, or cannot be made callable.
    Refused,
    /// A call, with its number here and its body.
    Call(u32, Bytes),
    /// How a call of its ended: its place in the history, and the answer.
    Outcome(usize, Outcome, Bytes),
    /// The node ends the connection; none: it died.
    Closed(Option<SessionEnd>),
}

/// How far a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// CONNECT is under way.
    Connecting,
    /// It is callable, as far as the device knows.
    Callable,
    /// It is over.
    Over,
}

/// One connection of a device.
#[derive(Debug, Clone)]
pub struct Client {
    /// Whose.
    pub device: usize,
    /// To which node.
    pub node: Pid,
    /// How far it has come.
    pub stage: Stage,
    /// When the last byte comes in at the node, and at the device: order holds.
    pub last: [Micros; 2],
}
