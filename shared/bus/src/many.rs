//! How do many answers to one question come back? In the process' inbox, each to whoever asked it.

use std::collections::HashMap;
use std::sync::Arc;

use async_nats::{Message, StatusCode};
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// Answers that may wait for who asked; further ones are dropped, and counted as claimed by nobody.
const MAX_WAITING: usize = 4_096;

/// The questions that many may answer, by number.
#[derive(Default)]
pub(crate) struct Many(Mutex<HashMap<u64, mpsc::Sender<Message>>>);

impl Many {
    /// One with this number, until what is returned is dropped.
    pub(crate) fn open(self: &Arc<Self>, number: u64) -> Answers {
        let (answered, come) = mpsc::channel(MAX_WAITING);
        self.0.lock().insert(number, answered);
        Answers { many: Arc::clone(self), number, come }
    }

    /// Hands an answer to whoever asked; false when nobody does any more.
    pub(crate) fn answer(&self, number: u64, answer: Message) -> bool {
        self.0.lock().get(&number).is_some_and(|answered| answered.try_send(answer).is_ok())
    }

    /// Nobody will answer any more.
    pub(crate) fn abandon_all(&self) {
        self.0.lock().clear();
    }
}

/// The answers to one question.
pub(crate) struct Answers {
    many: Arc<Many>,
    number: u64,
    come: mpsc::Receiver<Message>,
}

impl Answers {
    /// The next; none once the connection is closed. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Message> {
        self.come.recv().await
    }

    /// The next that has come already.
    pub(crate) fn come(&mut self) -> Option<Message> {
        self.come.try_recv().ok()
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.many.0.lock().remove(&self.number);
    }
}

/// NATS' word that nobody listens there.
pub(crate) fn is_nobody(answer: &Message) -> bool {
    answer.status == Some(StatusCode::NO_RESPONDERS)
}
