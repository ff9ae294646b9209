//! What can an operator ask this process? `/livez`, `/readyz` and `/metrics`, over HTTP/1.1.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{StatusCode, Uri, header};
use axum::response::IntoResponse;
use axum::routing::get;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::health::Health;
use crate::metrics::{self, Metrics};

/// Connections served at once. A further one takes the place of the oldest: an honest one is answered in no
/// time, so that neither those who say nothing nor those who do not read keep anybody out.
pub const MAX_CONNECTIONS: usize = 32;
/// Bytes of a request's head; a larger one is answered 431.
const MAX_HEAD_BYTES: usize = 16 * 1024;
/// From the accepted connection, or the last answer, to a complete head. No usual interval of a scraper: its next
/// request would come as its connection is closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(7);
/// After it a connection is closed, so that one whose peer has stopped reading does not stay for ever.
const MAX_CONNECTION_LIFE: Duration = Duration::from_secs(600);
/// What open connections may take to end when the endpoint closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
const UPKEEP_EVERY: Duration = Duration::from_secs(1);
/// Pause after a connection could not be accepted, as when file descriptors are used up.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const HINT: &str = "There is nothing here. Ask for one of:\n  /livez    is the process alive?\n  \
                    /readyz   is it ready for work, and if not, why?\n  /metrics  what it counted, for Prometheus\n  \
                    /offenders  of a node: who hits limits, and who comes in again and again?\n";

/// The address of the admin endpoint could not be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for the admin endpoint (setting admin.listen, flag --admin)")]
pub struct BindError {
    address: SocketAddr,
    source: io::Error,
}

/// The admin endpoint, bound but not yet served: askers wait.
#[derive(Debug)]
pub struct Admin {
    listener: TcpListener,
    address: SocketAddr,
    pages: Pages,
}

/// What a service shows of itself besides, as JSON: a text for each path. Clones share them.
#[derive(Clone, Default)]
pub struct Pages(Arc<Mutex<BTreeMap<&'static str, Page>>>);

type Page = Arc<dyn Fn() -> String + Send + Sync>;

impl Pages {
    /// Shows what `page` returns at `path`.
    pub fn add(&self, path: &'static str, page: impl Fn() -> String + Send + Sync + 'static) {
        self.0.lock().insert(path, Arc::new(page));
    }

    fn find(&self, path: &str) -> Option<Page> {
        self.0.lock().get(path).cloned()
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.lock().keys()).finish()
    }
}

/// Takes the address, so that a process whose port is in use ends before it begins.
///
/// # Errors
/// When the address cannot be listened on; the error names it.
pub async fn bind(address: SocketAddr) -> Result<Admin, BindError> {
    let bound = async {
        let listener = TcpListener::bind(address).await?;
        let address = listener.local_addr()?;
        Ok(Admin { listener, address, pages: Pages::default() })
    };
    bound.await.map_err(|source| BindError { address, source })
}

impl Admin {
    /// The address it has; with port 0 in the settings, which one the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Where a service adds what it shows.
    pub fn pages(&self) -> Pages {
        self.pages.clone()
    }

    /// Answers until `until` is cancelled, and keeps up `metrics`. Keep it going while the process drains: that is
    /// when `/readyz` is asked.
    pub async fn serve(self, health: Health, metrics: Metrics, until: CancellationToken) {
        let router = router(health, metrics.clone(), self.pages);
        let (connections, mut open) = (TaskTracker::new(), VecDeque::<AbortHandle>::new());
        let mut upkeep = tokio::time::interval(UPKEEP_EVERY);
        loop {
            tokio::select! {
                () = until.cancelled() => break,
                _ = upkeep.tick() => metrics.upkeep(),
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        open.retain(|connection| !connection.is_finished());
                        if open.len() >= MAX_CONNECTIONS && let Some(oldest) = open.pop_front() {
                            oldest.abort();
                        }
                        let connection = connections.spawn(answer(stream, router.clone(), until.clone()));
                        open.push_back(connection.abort_handle());
                        // It may have asked already, and is answered before the next is accepted.
                        tokio::task::yield_now().await;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "admin endpoint cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(self.listener);
        connections.close();
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, connections.wait()).await;
    }
}

async fn answer(stream: TcpStream, router: Router, until: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    // How it ends, a peer's reset say, concerns nobody.
    tokio::select! {
        _ = &mut connection => return,
        () = until.cancelled() => {}
        () = tokio::time::sleep(MAX_CONNECTION_LIFE) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection).await;
}

fn router(health: Health, metrics: Metrics, pages: Pages) -> Router {
    let ready = health.clone();
    let readyz = async move || {
        let status = if health.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, plain(), health.to_string())
    };
    let metrics =
        async move || ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.render(ready.is_ready()));
    Router::new()
        .route("/livez", get(async || (plain(), "alive\n")))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .fallback(async move |uri: Uri| match pages.find(uri.path()) {
            Some(page) => ([(header::CONTENT_TYPE, "application/json")], page()).into_response(),
            None => (StatusCode::NOT_FOUND, plain(), HINT).into_response(),
        })
}

fn plain() -> [(header::HeaderName, &'static str); 1] {
    [(header::CONTENT_TYPE, "text/plain; charset=utf-8")]
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    async fn get(address: SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n\r\n")).await
    }

    #[tokio::test]
    async fn operators_are_answered() {
        let admin = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = admin.local_addr();
        let (health, until) = (Health::new(), CancellationToken::new());
        let metrics = metrics::install("test").unwrap();
        let serving = tokio::spawn(admin.serve(health.clone(), metrics, until.clone()));

        assert!(get(address, "/livez").await.starts_with("HTTP/1.1 200 OK\r\n"));
        let bus = health.part("bus");
        let response = get(address, "/readyz").await;
        assert!(response.starts_with("HTTP/1.1 503 "), "{response}");
        assert!(response.ends_with("\r\n\r\nbus: not ready: starting\n"), "{response}");
        bus.ready();
        let response = get(address, "/readyz").await;
        assert!(response.starts_with("HTTP/1.1 200 ") && response.ends_with("bus: ready\n"), "{response}");
        health.draining();
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 503 "));

        let response = get(address, "/metrics").await;
        assert!(response.to_lowercase().contains("content-type: text/plain; version=0.0.4"), "{response}");
        assert!(response.contains("process_open_fds "), "{response}");
        assert!(response.contains("\nswitchboard_ready 0\n"), "{response}");
        let response = get(address, "/health").await;
        assert!(response.starts_with("HTTP/1.1 404 ") && response.contains("/readyz"), "{response}");
        let response = ask(address, "POST /livez HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(response.starts_with("HTTP/1.1 405 "), "{response}");
        let head = format!("GET /livez HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD_BYTES));
        let response = ask(address, &head).await;
        assert!(response.starts_with("HTTP/1.1 431 "), "{response}");

        let mut idle = TcpStream::connect(address).await.unwrap();
        until.cancel();
        serving.await.unwrap();
        assert_eq!(
            idle.read(&mut [0; 1]).await.unwrap_or(0),
            0,
            "an idle connection is closed with the endpoint"
        );
    }

    #[tokio::test]
    async fn connections_that_say_nothing_keep_nobody_out() {
        let admin = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (address, until) = (admin.local_addr(), CancellationToken::new());
        let (recorder, health) = (metrics::install("test").unwrap(), Health::new());
        let serving = tokio::spawn(admin.serve(health, recorder, until.clone()));
        let mut silent = Vec::new();
        for count in 1..=4 * MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
            let half = b"GET /livez HTTP/1.1\r\n";
            silent.last_mut().unwrap().write_all(half).await.unwrap();
            if count % MAX_CONNECTIONS == 0 {
                let answer = get(address, "/livez").await;
                assert!(answer.starts_with("HTTP/1.1 200 "), "behind {count}: {answer}");
            }
        }
        // As many are open as may be: the oldest have gone.
        assert_eq!(silent[0].read(&mut [0; 1]).await.unwrap_or(0), 0);
        let newest = silent.last_mut().unwrap();
        newest.write_all(b"Host: a\r\nConnection: close\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        newest.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        until.cancel();
        serving.await.unwrap();
    }

    #[tokio::test]
    async fn a_taken_address_is_named() {
        let first = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let error = bind(first.local_addr()).await.unwrap_err();
        let text = format!("{:#}", anyhow::Error::from(error));
        assert!(text.contains(&first.local_addr().to_string()) && text.contains("in use"), "{text}");
    }
}
