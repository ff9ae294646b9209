//! How does one HTTP connection run? hyper reads requests and writes responses; the router answers them.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::{TowerToHyperService, TowerToHyperServiceFuture};
use tokio_util::sync::CancellationToken;

use super::outbox::Outbox;
use super::routes::Server;
use super::websocket;
use super::wire::{Transport, Wire};

/// Bytes of a request's head, and of what is read ahead of a body or of a pipelined request; a larger head is
/// answered 431.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// What a connection's requests share: an extension of each.
#[derive(Default)]
pub(super) struct Connection {
    pub(super) outbox: Arc<Outbox>,
    /// Set by the request that makes this a WebSocket.
    pub(super) upgrade: Mutex<Option<OnUpgrade>>,
}

/// Serves one client until it goes, or `closing` is cancelled and its request is answered.
pub(super) async fn serve<S: Transport>(
    stream: S,
    server: Arc<Server>,
    router: Router,
    closing: CancellationToken,
) {
    let http = &server.node.settings.http;
    let connection = Arc::new(Connection::default());
    let write_timeout = Duration::from_millis(http.request_timeout_ms);
    let wire = Wire::new(stream, Arc::clone(&connection.outbox), write_timeout);
    let requests = Requests { router, connection: Arc::clone(&connection) };
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_millis(http.header_timeout_ms))
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(wire), requests)
        .with_upgrades();
    // Boxed: a WebSocket that comes of it need not carry it along.
    let mut serving = Box::pin(serving);
    // How it ends, a peer's reset say, concerns nobody: what it was writing has gone back.
    tokio::select! {
        _ = serving.as_mut() => {}
        () = closing.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.as_mut().await;
        }
    }
    drop(serving);
    let upgrade = connection.upgrade.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(upgrade) = upgrade
        && let Ok(upgraded) = Box::pin(upgrade).await
        && let Ok(parts) = upgraded.downcast::<TokioIo<Wire<S>>>()
    {
        drop(connection);
        let stream = parts.io.into_inner().into_stream();
        Box::pin(websocket::serve(stream, parts.read_buf, &server)).await;
    }
}

/// The router, which is told whose requests it answers.
struct Requests {
    router: Router,
    connection: Arc<Connection>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Response;
    type Error = <TowerToHyperService<Router> as Service<Request<Incoming>>>::Error;
    type Future = TowerToHyperServiceFuture<Router, Request<Incoming>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(Arc::clone(&self.connection));
        TowerToHyperService::new(self.router.clone()).call(request)
    }
}
