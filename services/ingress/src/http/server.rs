//! What do all requests of a node share?

use std::net::IpAddr;
use std::sync::Arc;

use axum::http::HeaderMap;

use super::cors::Cors;
use super::devices::Devices;
use super::exchange::Exchange;
use super::metrics::HttpMetrics;
use crate::mqtt::session::SessionLimits;
use crate::node::Node;
use crate::proxied;

pub(super) struct Server {
    pub(super) node: Arc<Node>,
    pub(super) limits: Arc<SessionLimits>,
    pub(super) devices: Arc<Devices>,
    pub(super) metrics: HttpMetrics,
    pub(super) cors: Cors,
}

impl Server {
    /// From whom a request comes, be it through a proxy.
    pub(super) fn sender(&self, exchange: &Exchange, headers: &HeaderMap) -> IpAddr {
        proxied::sender(exchange.peer, headers, &self.node.settings.http.trusted_proxies)
    }
}
