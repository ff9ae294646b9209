//! Where is a device connected? The record that a node writes for each callable session.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{NodeId, SessionId, closed_list};

/// "This device is reachable through session S on node N." Stored under the device's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The node.
    pub node: NodeId,
    /// The session on that node.
    pub session: SessionId,
    /// How the device is connected.
    pub protocol: Protocol,
    /// When the session became callable, in milliseconds since 1970 on the node's clock. Decides which of two
    /// sessions is newer only when the store lost its memory and both claim again.
    pub since_ms: u64,
}

closed_list! {
    /// How a device reaches us.
    #[derive(Serialize, Deserialize)]
    #[serde(rename_all = "snake_case")]
    pub enum Protocol {
        /// MQTT 3.1.1 or 5.
        Mqtt = "mqtt",
        /// HTTP long poll.
        Http = "http",
        /// CoAP observe.
        Coap = "coap",
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
