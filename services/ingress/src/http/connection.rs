//! How does one HTTP connection run? hyper reads requests and writes responses; the router answers them.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use tokio_util::sync::CancellationToken;

use super::exchange::Exchange;
use super::opening;
use super::server::Server;
use super::websocket;
use super::wire::{Patience, Transport, Wire};

/// Bytes of a request's head, and of what is read ahead of a body or of a pipelined request; a larger head is
/// answered 431. The least that hyper takes.
const MAX_HEAD_BYTES: usize = 8 * 1024;

/// Serves one client, who has connected from `peer`, until it goes, or `closing` is cancelled and its request is
/// answered.
pub(super) async fn serve<S: Transport>(
    stream: S,
    peer: IpAddr,
    server: &Arc<Server>,
    router: Router,
    closing: &CancellationToken,
) {
    let exchange = Arc::new(Exchange::new(peer));
    // Boxed, here and below: it is over when a connection is counted in kilobytes.
    let Some(mut serving) = Box::pin(open(stream, &exchange, server, router, closing)).await else { return };
    // How it ends, a peer's reset say, is of no consequence: what it was writing has gone back.
    tokio::select! {
        ended = serving.as_mut() => {
            if let Err(error) = ended {
                tracing::debug!(%error, "an HTTP connection ends");
            }
        }
        () = closing.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.as_mut().await;
        }
    }
    drop(serving);
    let upgrade = exchange.upgrade.lock().take();
    drop(exchange);
    if let Some((upgrade, sender)) = upgrade {
        Box::pin(go_over::<S>(upgrade, sender, server)).await;
    }
}

/// Serves what has become a WebSocket.
async fn go_over<S: Transport>(upgrade: OnUpgrade, sender: IpAddr, server: &Server) {
    if let Ok(upgraded) = upgrade.await
        && let Ok(parts) = upgraded.downcast::<TokioIo<Wire<S>>>()
    {
        // All that was read ahead was in hyper's first buffer.
        let stream = parts.io.into_inner().into_stream();
        Box::pin(websocket::serve(stream, parts.read_buf, sender, server)).await;
    }
}

/// A connection as hyper serves it, boxed: a WebSocket that comes of it need not carry it along.
type Serving<S> = Pin<Box<http1::UpgradeableConnection<TokioIo<Wire<S>>, Requests>>>;

/// Waits for a whole head. None when the client takes too long, or has gone, or `closing` is cancelled.
async fn open<S: Transport>(
    mut stream: S,
    exchange: &Arc<Exchange>,
    server: &Server,
    router: Router,
    closing: &CancellationToken,
) -> Option<Serving<S>> {
    let http = &server.node.settings().http;
    let patience = Patience {
        head: Duration::from_millis(http.header_timeout_ms),
        idle: Duration::from_millis(http.idle_timeout_ms),
        write: Duration::from_millis(http.request_timeout_ms),
    };
    let first = tokio::time::timeout(patience.head, opening::read(&mut stream, MAX_HEAD_BYTES));
    let Some(Ok(Ok(read_ahead))) = closing.run_until_cancelled(first).await else { return None };
    let wire = Wire::new(stream, read_ahead, Arc::clone(exchange), patience, http.max_body_bytes);
    let requests = Requests { router, exchange: Arc::clone(exchange) };
    let serving = http1::Builder::new()
        .header_read_timeout(None)
        .half_close(true)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(wire), requests)
        .with_upgrades();
    Some(Box::pin(serving))
}

/// The router, which is told whose requests it answers.
struct Requests {
    router: Router,
    exchange: Arc<Exchange>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = <TowerToHyperService<Router> as Service<Request<Body>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Body>>>::Error;
    type Future = TowerToHyperServiceFuture<Router, Request<Body>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (head, body) = request.into_parts();
        self.exchange.begin(body);
        let mut request = Request::from_parts(head, Body::empty());
        request.extensions_mut().insert(Arc::clone(&self.exchange));
        TowerToHyperService::new(self.router.clone()).call(request)
    }
}
