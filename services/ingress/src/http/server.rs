//! What do all requests of a node share?

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::HeaderMap;
use boot::forwarded;

use super::cors::Cors;
use super::devices::Devices;
use super::exchange::Exchange;
use super::metrics::HttpMetrics;
use crate::device::limits::DeviceLimits;
use crate::node::Node;

pub(super) struct Server {
    pub(super) node: Arc<Node>,
    pub(super) devices: Arc<Devices>,
    pub(super) metrics: HttpMetrics,
    pub(super) cors: Cors,
}

impl Server {
    /// What every device is held to.
    pub(super) fn limits(&self) -> DeviceLimits {
        self.node.limits.borrow().device
    }

    /// From whom a request comes, be it through a proxy.
    pub(super) fn sender(&self, exchange: &Exchange, headers: &HeaderMap) -> IpAddr {
        forwarded::sender(exchange.peer, headers, &self.node.settings().http.trusted_proxies)
    }
}
