//! What do a connection and the request that it carries share? The call being written, the body yet to be read, and
//! whether the client has said its last.

use std::future::poll_fn;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::HttpBody;
use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::outbox::Outbox;
use rpc::{Rate, TokenBucket};

/// One connection's: an extension of each of its requests.
pub(super) struct Exchange {
    /// Who has connected; a proxy may name another for a request.
    pub(super) peer: IpAddr,
    pub(super) outbox: Arc<Outbox>,
    /// Set by the request that makes this a WebSocket, with who has sent it.
    pub(super) upgrade: Mutex<Option<(OnUpgrade, IpAddr)>>,
    body: Mutex<Option<Incoming>>,
    /// What the bytes of a request's body showed, should it be chunked: which request's, counted from 0.
    announced: Mutex<Option<(u64, BodyFault)>>,
    /// Requests so far.
    requests: AtomicU64,
    answering: AtomicBool,
    chunked: AtomicBool,
    known: AtomicBool,
    may_wait: AtomicBool,
    unwritten: AtomicBool,
    last_words: Notify,
    /// How many requests may come.
    pace: Mutex<Option<TokenBucket>>,
}

/// Why a body is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BodyFault {
    TooLarge,
    Broken,
    TooSlow,
}

impl Exchange {
    /// Of a new connection.
    pub(super) fn new(peer: IpAddr) -> Self {
        Exchange {
            peer,
            outbox: Arc::default(),
            upgrade: Mutex::default(),
            body: Mutex::default(),
            announced: Mutex::default(),
            requests: AtomicU64::default(),
            answering: AtomicBool::default(),
            chunked: AtomicBool::default(),
            known: AtomicBool::default(),
            may_wait: AtomicBool::default(),
            unwritten: AtomicBool::default(),
            pace: Mutex::default(),
            last_words: Notify::default(),
        }
    }

    /// A request begins, whose body stays here until somebody asks for it.
    pub(super) fn begin(&self, body: Incoming) {
        // A chunked body has no size of its own.
        self.chunked.store(body.size_hint().exact().is_none(), Ordering::Relaxed);
        let body = if body.is_end_stream() { None } else { Some(body) };
        *self.body.lock() = body;
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.may_wait.store(false, Ordering::Relaxed);
        self.answering.store(true, Ordering::Relaxed);
    }

    /// When the request may be answered, if it came too fast. Nothing of the next one is read before.
    pub(super) fn paced_until(&self, rate: Rate, now: Instant) -> Option<Instant> {
        let mut pace = self.pace.lock();
        let pace = pace.get_or_insert_with(|| TokenBucket::new(now));
        let until = pace.next(rate, now);
        pace.take(rate, until.unwrap_or(now));
        until
    }

    /// The request has its response, which is yet to be written.
    pub(super) fn answered(&self) {
        self.answering.store(false, Ordering::Relaxed);
    }

    /// True while a request has no response.
    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Ordering::Relaxed)
    }

    /// Until its device is admitted, or a call comes, a request may be kept for a while, if it has no body: with one it
    /// makes a call or answers one, which is soon done. Says whether it may.
    pub(super) fn may_wait(&self) -> bool {
        let may_wait = self.body.lock().is_none();
        self.may_wait.store(may_wait, Ordering::Relaxed);
        may_wait
    }

    /// Whether the socket has yet to take something of an answer.
    pub(super) fn set_unwritten(&self, unwritten: bool) {
        self.unwritten.store(unwritten, Ordering::Relaxed);
    }

    /// True when there is nothing to be read or written before an answer that may take a while.
    pub(super) fn is_waiting(&self) -> bool {
        self.is_answering()
            && self.may_wait.load(Ordering::Relaxed)
            && !self.unwritten.load(Ordering::Relaxed)
    }

    /// A request showed the token of a device.
    pub(super) fn knows(&self) {
        self.known.store(true, Ordering::Relaxed);
    }

    /// True when the client has shown the token of a device.
    pub(super) fn is_known(&self) -> bool {
        self.known.load(Ordering::Relaxed)
    }

    /// True when the body of the last request comes in chunks.
    pub(super) fn is_chunked(&self) -> bool {
        self.chunked.load(Ordering::Relaxed)
    }

    /// How many requests have begun on this connection.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The body of request number `request` is not to be waited for, if it is chunked.
    pub(super) fn announce(&self, request: u64, fault: BodyFault) {
        *self.announced.lock() = Some((request, fault));
    }

    /// The client has closed its sending side; it may well read on.
    pub(super) fn input_ended(&self) {
        self.last_words.notify_one();
    }

    /// Waits until the client closes its sending side.
    pub(super) async fn end_of_input(&self) {
        self.last_words.notified().await;
    }

    /// The request's whole body, empty when it was read before.
    pub(super) async fn read_body(&self, max_bytes: usize, within: Duration) -> Result<Bytes, BodyFault> {
        let Some(body) = self.take_body() else { return Ok(Bytes::new()) };
        if let Some(fault) = self.announced() {
            return Err(fault);
        }
        let read = tokio::time::timeout(within, collect(body, max_bytes)).await;
        read.unwrap_or(Err(BodyFault::TooSlow)).map_err(|fault| match fault {
            BodyFault::Broken => self.announced().unwrap_or(fault),
            BodyFault::TooLarge | BodyFault::TooSlow => fault,
        })
    }

    /// Reads past a body that nobody asked for, so that the connection's next request can be found behind it (RFC 9112
    /// §9.3). False when it cannot be, or may take none, and the connection must be closed.
    pub(super) async fn discard_body(&self, max_bytes: usize, within: Duration) -> bool {
        let Some(mut body) = self.take_body() else { return true };
        // To read is to ask for it, where a client waits to be asked (RFC 9110 §10.1.1).
        if max_bytes == 0 || body.size_hint().lower() > max_bytes as u64 || self.announced().is_some() {
            return false;
        }
        let discarded = async {
            let mut left = max_bytes;
            while let Some(frame) = next_frame(&mut body).await {
                let Some(rest) = frame.ok().and_then(|part| left.checked_sub(part.len())) else {
                    return false;
                };
                left = rest;
            }
            true
        };
        tokio::time::timeout(within, discarded).await.unwrap_or(false)
    }

    fn announced(&self) -> Option<BodyFault> {
        let current = self.requests().checked_sub(1).filter(|_| self.is_chunked());
        self.announced.lock().filter(|(request, _)| Some(*request) == current).map(|(_, fault)| fault)
    }

    fn take_body(&self) -> Option<Incoming> {
        self.body.lock().take()
    }
}

async fn collect(mut body: Incoming, max_bytes: usize) -> Result<Bytes, BodyFault> {
    if body.size_hint().lower() > max_bytes as u64 {
        return Err(BodyFault::TooLarge);
    }
    let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = next_frame(&mut body).await {
        let part = frame.map_err(|_| BodyFault::Broken)?;
        if first.len() + rest.len() + part.len() > max_bytes {
            return Err(BodyFault::TooLarge);
        }
        // Most bodies come in one piece, which need not be copied.
        if first.is_empty() {
            first = part;
        } else {
            rest.extend_from_slice(&part);
        }
    }
    if rest.is_empty() {
        return Ok(first);
    }
    let mut whole = BytesMut::with_capacity(first.len() + rest.len());
    whole.extend_from_slice(&first);
    whole.extend_from_slice(&rest);
    Ok(whole.freeze())
}

/// The next piece of a body; trailers are an empty one.
async fn next_frame(body: &mut Incoming) -> Option<Result<Bytes, hyper::Error>> {
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap_or_default()))
}
