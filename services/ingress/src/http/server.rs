//! What do all requests of a node share?

use std::sync::Arc;

use super::cors::Cors;
use super::devices::Devices;
use super::metrics::HttpMetrics;
use crate::mqtt::session::SessionLimits;
use crate::node::Node;

pub(super) struct Server {
    pub(super) node: Arc<Node>,
    pub(super) limits: Arc<SessionLimits>,
    pub(super) devices: Arc<Devices>,
    pub(super) metrics: HttpMetrics,
    pub(super) cors: Cors,
}
