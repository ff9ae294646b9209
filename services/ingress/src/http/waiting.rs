//! What is kept of a connection whose poll waits? Its socket, and the answer that it is owed. hyper's two buffers, 8 KB
//! each, are for who sends or is sent something, and are only given up by all of hyper. So it goes, and once the answer
//! is there a new one reads a head again, to which it writes that answer.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Version, header};
use axum::response::Response;
use hyper::body::Incoming;
use hyper_util::service::TowerToHyperServiceFuture;
use parking_lot::Mutex;

use super::websocket::lists;
use super::wire::{Transport, Wire};

/// A request on its way through the router.
pub(super) type Routed = TowerToHyperServiceFuture<Router, Request<Body>>;

/// The answer that a connection owes its client, which is not in the hands of hyper.
#[derive(Default)]
pub(super) struct Owed(Mutex<Option<Answer>>);

struct Answer {
    head_again: &'static [u8],
    progress: Progress,
}

enum Progress {
    Sought(Routed),
    Found(Result<Response, Infallible>),
}

impl Owed {
    /// What hyper is to write: to a request, which `route` begins to answer, or to the head of one that has waited.
    pub(super) fn answer(
        self: &Arc<Self>,
        request: Request<Incoming>,
        route: impl FnOnce(Request<Incoming>) -> Routed,
    ) -> Answering {
        let mut owed = self.0.lock();
        if owed.is_none() {
            let head_again = head_again(&request);
            *owed = Some(Answer { head_again, progress: Progress::Sought(route(request)) });
        }
        Answering(Arc::clone(self))
    }

    /// Waits for the answer without hyper, which then is to read this head.
    ///
    /// # Errors
    /// When the client has gone.
    pub(super) fn poll_waiting<S: Transport>(
        &self,
        wire: &mut Wire<S>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<&'static [u8]>> {
        match self.poll_found(cx) {
            Poll::Ready(head_again) => Poll::Ready(Ok(head_again)),
            Poll::Pending => {
                wire.poll_client(cx).map_or_else(|gone| Poll::Ready(Err(gone)), |()| Poll::Pending)
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_sought(&self) -> bool {
        matches!(&*self.0.lock(), Some(Answer { progress: Progress::Sought(_), .. }))
    }

    fn poll_found(&self, cx: &mut Context<'_>) -> Poll<&'static [u8]> {
        let mut owed = self.0.lock();
        let Some(answer) = &mut *owed else { return Poll::Pending };
        if let Progress::Sought(routed) = &mut answer.progress {
            answer.progress = Progress::Found(ready!(Pin::new(routed).poll(cx)));
        }
        Poll::Ready(answer.head_again)
    }
}

/// Ready with the answer, which then is owed no more.
pub(super) struct Answering(Arc<Owed>);

impl Future for Answering {
    type Output = Result<Response, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        ready!(self.0.poll_found(cx));
        match self.0.0.lock().take().map(|answer| answer.progress) {
            Some(Progress::Found(response)) => Poll::Ready(response),
            Some(Progress::Sought(_)) | None => Poll::Pending,
        }
    }
}

/// The least that hyper answers as it would answer this: in its version, and with the connection kept or closed behind
/// it (RFC 9112 §9.3).
fn head_again(request: &Request<Incoming>) -> &'static [u8] {
    let asks = |option| lists(request.headers(), &header::CONNECTION, option);
    match request.version() {
        Version::HTTP_11 if asks("close") => b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n",
        Version::HTTP_11 => b"GET / HTTP/1.1\r\n\r\n",
        _ if asks("keep-alive") && !asks("close") => b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
        _ => b"GET / HTTP/1.0\r\n\r\n",
    }
}
