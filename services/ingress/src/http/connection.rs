//! How does one HTTP connection run? hyper reads requests and writes responses; the router answers them.

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::response::Response;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::Service;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio_util::sync::CancellationToken;

use super::exchange::Exchange;
use super::opening;
use super::server::Server;
use super::waiting::{Answering, Owed};
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
    let Some(serving) = Box::pin(open(stream, &exchange, server, router, closing)).await else { return };
    drive(serving, &exchange, closing).await;
    let upgrade = exchange.upgrade.lock().take();
    drop(exchange);
    if let Some((upgrade, sender)) = upgrade {
        Box::pin(go_over::<S>(upgrade, sender, server)).await;
    }
}

/// Lets hyper serve a connection to its end, but for the time that a poll waits.
async fn drive<S: Transport>(mut serving: Serving<S>, exchange: &Exchange, closing: &CancellationToken) {
    let mut told = false;
    loop {
        let ended = poll_fn(|cx| match Pin::new(&mut *serving).poll(cx) {
            Poll::Pending if exchange.is_waiting() => Poll::Ready(None),
            ended => ended.map(Some),
        });
        let ended = tokio::select! {
            // A hyper that has read nothing yet would end at once, though there is an answer to be written.
            biased;
            ended = ended => ended,
            () = closing.cancelled(), if !told => {
                told = true;
                Pin::new(&mut *serving).graceful_shutdown();
                continue;
            }
        };
        match ended {
            None => {}
            Some(Ok(())) => return,
            // How it ends, a peer's reset say, is of no consequence: what it was writing has gone back.
            Some(Err(error)) => return tracing::debug!(%error, "an HTTP connection ends"),
        }
        let Some(mut waiting) = serving.into_parts().map(without_hyper) else { return };
        let (wire, requests) = &mut *waiting;
        let Ok(head) = poll_fn(|cx| requests.owed.poll_waiting(wire, cx)).await else { return };
        wire.read_again(head);
        serving = by_hyper(*waiting, !closing.is_cancelled());
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
type Serving<S> = Box<http1::UpgradeableConnection<TokioIo<Wire<S>>, Requests>>;

fn by_hyper<S: Transport>((wire, requests): (Wire<S>, Requests), keep_alive: bool) -> Serving<S> {
    let serving = http1::Builder::new()
        .header_read_timeout(None)
        .half_close(true)
        .keep_alive(keep_alive)
        .max_buf_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(wire), requests)
        .with_upgrades();
    Box::new(serving)
}

/// What a connection keeps while it waits, boxed as hyper was.
fn without_hyper<S: Transport>(parts: http1::Parts<TokioIo<Wire<S>>, Requests>) -> Box<(Wire<S>, Requests)> {
    let mut waiting = Box::new((parts.io.into_inner(), parts.service));
    waiting.0.take_back(&parts.read_buf);
    waiting
}

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
    let requests = Requests { router, exchange: Arc::clone(exchange), owed: Arc::default() };
    Some(by_hyper((wire, requests), true))
}

/// The router, which is told whose requests it answers.
struct Requests {
    router: Router,
    exchange: Arc<Exchange>,
    owed: Arc<Owed>,
}

impl Service<Request<Incoming>> for Requests {
    type Response = Response;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        self.owed.answer(request, |request| {
            let (head, body) = request.into_parts();
            self.exchange.begin(body);
            let mut request = Request::from_parts(head, Body::empty());
            request.extensions_mut().insert(Arc::clone(&self.exchange));
            TowerToHyperService::new(self.router.clone()).call(request)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Extension;
    use axum::extract::State;
    use axum::http::HeaderName;
    use axum::routing::get;
    use bytes::BytesMut;
    use rustix::net::sockopt::set_socket_send_buffer_size;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
    use tokio::net::{TcpListener, TcpSocket, TcpStream};
    use tokio::sync::Semaphore;
    use tokio::task::JoinHandle;

    const PATIENCE: Duration = Duration::from_secs(30);

    struct Bench {
        client: BufReader<TcpStream>,
        /// One for each poll that is answered.
        calls: Arc<Semaphore>,
        owed: Arc<Owed>,
        closing: CancellationToken,
        driven: JoinHandle<()>,
    }

    async fn poll(
        State(calls): State<Arc<Semaphore>>,
        Extension(it): Extension<Arc<Exchange>>,
    ) -> &'static str {
        it.may_wait();
        calls.acquire().await.unwrap().forget();
        it.answered();
        "a call"
    }

    async fn long_head(Extension(it): Extension<Arc<Exchange>>) -> [(HeaderName, String); 1] {
        it.answered();
        [(HeaderName::from_static("x"), "x".repeat(60_000))]
    }

    impl Bench {
        async fn new(calls: usize) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_recv_buffer_size(4_096).unwrap();
            let client = socket.connect(listener.local_addr().unwrap()).await.unwrap();
            let (stream, peer) = listener.accept().await.unwrap();
            set_socket_send_buffer_size(&stream, 4_096).unwrap();
            let calls = Arc::new(Semaphore::new(calls));
            let router = Router::new().route("/poll", get(poll)).route("/long", get(long_head));
            let (exchange, owed) = (Arc::new(Exchange::new(peer.ip())), Arc::default());
            let patience = Patience { head: PATIENCE, idle: PATIENCE, write: PATIENCE };
            let wire = Wire::new(stream, BytesMut::new(), Arc::clone(&exchange), patience, 1_000);
            let requests = Requests {
                router: router.with_state(Arc::clone(&calls)),
                exchange: Arc::clone(&exchange),
                owed: Arc::clone(&owed),
            };
            let closing = CancellationToken::new();
            let until = closing.clone();
            let driven = tokio::spawn(async move {
                drive(by_hyper((wire, requests), true), &exchange, &until).await;
            });
            Bench { client: BufReader::new(client), calls, owed, closing, driven }
        }

        async fn send(&mut self, requests: &str) {
            self.client.write_all(requests.as_bytes()).await.unwrap();
        }

        /// Until the poll is owed its answer by nobody but us and the connection: hyper has gone.
        async fn until_it_waits(&self) {
            let waits = async {
                while !self.owed.is_sought() || Arc::strong_count(&self.owed) > 2 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, waits).await.unwrap();
        }

        /// Up to and with `end`.
        async fn read(&mut self, end: &str) -> String {
            let mut read = String::new();
            while !read.ends_with(end) {
                let byte = tokio::time::timeout(PATIENCE, self.client.read_u8()).await.unwrap();
                read.push(char::from(byte.unwrap()));
            }
            read
        }

        /// All that comes until the end, without the time of day, and whether the end came by itself.
        async fn rest(mut self) -> String {
            let mut rest = String::new();
            let _ = self.client.shutdown().await;
            tokio::time::timeout(PATIENCE, self.client.read_to_string(&mut rest)).await.unwrap().unwrap();
            tokio::time::timeout(PATIENCE, self.driven).await.unwrap().unwrap();
            rest.split_inclusive("\r\n").filter(|line| !line.starts_with("date")).collect()
        }
    }

    /// Nothing tells a response that was waited for without hyper from one that was there at once.
    #[tokio::test]
    async fn a_poll_that_has_waited_is_answered_as_any_other() {
        for (version, header, is_kept) in [
            ("1.1", "", true),
            ("1.1", "Connection: Keep-Alive\r\n", true),
            ("1.1", "Connection: x, close\r\n", false),
            ("1.1", "Connection: close\r\nConnection: keep-alive\r\n", false),
            ("1.1", "Connection: upgrade\r\nUpgrade: h2c\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: keep-alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ] {
            let request = format!("GET /poll HTTP/{version}\r\n{header}\r\n").repeat(2);
            let mut at_once = Bench::new(2).await;
            at_once.send(&request).await;
            let mut waited = Bench::new(0).await;
            waited.send(&request).await;
            waited.until_it_waits().await;
            waited.calls.add_permits(1);
            if is_kept {
                waited.until_it_waits().await;
                waited.calls.add_permits(1);
            }
            let (at_once, waited) = (at_once.rest().await, waited.rest().await);
            assert_eq!(waited, at_once, "{request}");
            assert_eq!(waited.matches("a call").count(), 1 + usize::from(is_kept), "{request}");
        }
    }

    #[tokio::test]
    async fn what_comes_behind_a_poll_is_read_when_it_has_its_answer() {
        let mut bench = Bench::new(0).await;
        bench.send("GET /poll HTTP/1.1\r\n\r\nGET /nothing HTTP/1.1\r\n\r\nGET /po").await;
        bench.until_it_waits().await;
        bench.send("ll HTTP/1.1\r\n").await;
        bench.calls.add_permits(1);
        assert!(bench.read("a call").await.starts_with("HTTP/1.1 200"));
        assert!(bench.read("\r\n\r\n").await.starts_with("HTTP/1.1 404"));
        bench.send("\r\n").await;
        bench.until_it_waits().await;
        bench.calls.add_permits(1);
        bench.read("a call").await;
    }

    #[tokio::test]
    async fn what_the_socket_has_yet_to_take_goes_before_a_poll() {
        let mut bench = Bench::new(0).await;
        bench.send(&("GET /long HTTP/1.1\r\n\r\n".repeat(20) + "GET /poll HTTP/1.1\r\n\r\n")).await;
        for _ in 0..20 {
            assert!(bench.read("\r\n\r\n").await.len() > 60_000);
        }
        bench.until_it_waits().await;
        bench.calls.add_permits(1);
        bench.read("a call").await;
    }

    #[tokio::test]
    async fn a_poll_that_waits_while_the_node_ends_is_the_last() {
        let mut bench = Bench::new(0).await;
        bench.send("GET /poll HTTP/1.1\r\n\r\n").await;
        bench.until_it_waits().await;
        bench.closing.cancel();
        bench.calls.add_permits(1);
        assert!(bench.read("a call").await.contains("connection: close"));
        tokio::time::timeout(PATIENCE, bench.driven).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_poll_whose_client_resets_is_dropped() {
        let mut bench = Bench::new(0).await;
        bench.send("GET /poll HTTP/1.1\r\n\r\n").await;
        bench.until_it_waits().await;
        bench.client.get_ref().set_zero_linger().unwrap();
        drop(bench.client);
        tokio::time::timeout(PATIENCE, bench.driven).await.unwrap().unwrap();
    }
}
