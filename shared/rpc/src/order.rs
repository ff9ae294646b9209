//! What does an operator tell a node, and what does it say of itself?

use minicbor::{Decode, Encode};
use serde::Serialize;

use crate::{NodeId, closed_list};

/// To one node (`swb.operate.<node>`) or to all (`swb.operate.all`); each answers with a [`NodeReport`]. One that shuts
/// down only reports.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub enum Order {
    /// Nothing: how is it?
    #[n(0)]
    Report,
    /// Send all devices to other nodes, for good, and let nobody in.
    #[n(1)]
    Evacuate(#[n(0)] Pace),
    /// The same for a while, until it is told to serve.
    #[n(2)]
    Maintain(#[n(0)] Pace),
    /// Send callable devices to other nodes until so many are left. It is not ready meanwhile, so that they do not come
    /// back, but lets in who comes all the same.
    #[n(3)]
    Rebalance(#[n(0)] Pace, #[n(1)] u32),
    /// Let devices in, and send away none any more.
    #[n(4)]
    Serve,
}

impl Order {
    /// Its name in logs.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Order::Report => "report",
            Order::Evacuate(_) => "evacuate",
            Order::Maintain(_) => "maintain",
            Order::Rebalance(..) => "rebalance",
            Order::Serve => "serve",
        }
    }
}

/// How devices are sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Pace {
    /// Devices a second; none: as the node's own settings say.
    #[n(0)]
    pub per_second: Option<u32>,
    /// Milliseconds until the first: what balances devices has noticed by then that the node is not ready.
    #[n(1)]
    pub wait_ms: u32,
}

closed_list! {
    /// What a node does with its devices.
    #[derive(Encode, Decode, Serialize)]
    #[serde(rename_all = "snake_case")]
    #[cbor(index_only)]
    pub enum NodeState {
        /// It lets them in and keeps them.
        #[n(0)]
        Serving = "serving",
        /// It sends away those beyond its part.
        #[n(1)]
        Shedding = "shedding",
        /// It ends.
        #[n(2)]
        Draining = "draining",
        /// It sends all away or has done so, for good.
        #[n(3)]
        Evacuated = "evacuated",
        /// It sends all away or has done so, for a while.
        #[n(4)]
        Maintenance = "maintenance",
    }
}

impl NodeState {
    /// Whether nobody is let in.
    pub fn is_closed(self) -> bool {
        matches!(self, NodeState::Draining | NodeState::Evacuated | NodeState::Maintenance)
    }
}

/// How a node is.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub struct NodeReport {
    /// Which.
    #[n(0)]
    pub node: NodeId,
    /// What it does.
    #[n(1)]
    pub state: NodeState,
    /// Since when, in milliseconds since 1970 on its clock.
    #[n(2)]
    pub since_ms: u64,
    /// Devices that it knows.
    #[n(3)]
    pub visitors: u64,
    /// Sessions over MQTT.
    #[n(4)]
    pub mqtt: u64,
    /// Over HTTP.
    #[n(5)]
    pub http: u64,
    /// Over CoAP.
    #[n(6)]
    pub coap: u64,
    /// Its claims.
    #[n(7)]
    pub claims: u64,
    /// Devices that are to be sent away and have yet to go.
    #[n(8)]
    pub left: u64,
    /// Those that were, since it was last told to.
    #[n(9)]
    pub shed: u64,
}

impl NodeReport {
    /// All sessions.
    pub fn sessions(&self) -> u64 {
        self.mqtt + self.http + self.coap
    }
}
