//! When is a call in its device's hands? When the socket has taken the last byte of the response that carries it. Until
//! then the call can go back, and the next poll gets it.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::HttpBody;
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use parking_lot::{Mutex, MutexGuard};

use super::device::Handover;

/// The call that a connection is writing, if it is writing one.
#[derive(Default)]
pub(super) struct Outbox {
    writing: Mutex<Option<Handover>>,
}

impl Outbox {
    /// True while a call is being written.
    pub(super) fn is_writing(&self) -> bool {
        self.writing().is_some()
    }

    /// The socket has taken all that was to be written.
    pub(super) fn flushed(&self) {
        let written = self.writing().take();
        if let Some(handover) = written {
            handover.written();
        }
    }

    fn put(&self, handover: Option<Handover>) {
        let before = std::mem::replace(&mut *self.writing(), handover);
        // A connection writes one response after the other, so there is none; were there one, it would go back.
        drop(before);
    }

    fn writing(&self) -> MutexGuard<'_, Option<Handover>> {
        self.writing.lock()
    }
}

/// The body of a response that carries a call.
pub(super) struct CallBody {
    text: Option<Bytes>,
    handover: Option<Handover>,
    outbox: Arc<Outbox>,
}

impl CallBody {
    pub(super) fn new(mut handover: Handover, outbox: Arc<Outbox>) -> Self {
        let text = std::mem::take(&mut handover.call.text);
        CallBody { text: Some(text), handover: Some(handover), outbox }
    }
}

impl HttpBody for CallBody {
    type Data = Bytes;
    type Error = Infallible;

    /// Asked for when the bytes go into the connection's buffer: what is flushed from here on carries them.
    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let Some(text) = this.text.take() else { return Poll::Ready(None) };
        this.outbox.put(this.handover.take());
        Poll::Ready(Some(Ok(Frame::data(text))))
    }

    fn is_end_stream(&self) -> bool {
        self.text.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.text.as_ref().map_or(0, |text| text.len() as u64))
    }
}
