//! How is an application told over NATS how its call ended? In headers, as NATS' services do (ADR-32), beside the
//! target's answer.

use async_nats::{HeaderMap, Subject};
use bytes::Bytes;
use rpc::{CallId, Outcome, Seen};

use crate::connection::Bus;
use crate::errors::TellError;

/// Bytes that the headers take at most, but for the text of a call that was not understood.
pub const MAX_APP_HEADER_BYTES: usize = 512;

impl Bus {
    /// Tells an application's inbox how its call ended; `answer` is the target's, byte for byte. A call that never
    /// became one has no id.
    ///
    /// # Errors
    /// As [`tell`](Self::tell).
    pub async fn tell_app(
        &self,
        inbox: impl Into<Subject>,
        call: Option<CallId>,
        (outcome, seen): (&Outcome, Seen),
        answer: Bytes,
    ) -> Result<(), TellError> {
        let mut headers = HeaderMap::new();
        headers.insert("Swb-Outcome", outcome.as_str());
        headers.insert("Swb-Seen", seen.as_str());
        if let Some(call) = call {
            headers.insert("Swb-Call", call.to_string());
        }
        if let Outcome::Busy(limit) = outcome {
            headers.insert("Swb-Limit", limit.as_str());
        }
        let (status, words) = outcome.told();
        if status >= 300 {
            let words = match outcome {
                Outcome::Malformed(text) => text.as_ref(),
                _ => words,
            };
            // A header is one line.
            headers.insert("Nats-Service-Error", words.replace(['\r', '\n'], " "));
            headers.insert("Nats-Service-Error-Code", status.to_string());
        }
        self.tell_with(inbox.into(), headers, answer).await
    }
}
