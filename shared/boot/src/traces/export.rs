//! How do spans reach the collector? OTLP over HTTP, in batches, by one task beside the calls: what the collector does
//! not take at once waits in a bounded queue, and what does not fit there is dropped and counted.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Bytes;
use metrics::{Counter, counter};
use prost::Message;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::Finished;
use super::otlp::{InstrumentationScope, Request, ResourceSpans, Response, ScopeSpans};
use crate::config;
use crate::post::post;

/// Below the endpoint (OTLP/HTTP §"Default URL paths").
const PATH: &str = "/v1/traces";
/// The longest pause before a batch is sent again.
const MAX_PAUSE: Duration = Duration::from_secs(30);
/// What the last spans of a process may take.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// What is read of a collector's answer.
const MAX_ANSWER_BYTES: usize = 65_536;

/// The task that sends; the default sends nothing.
#[derive(Debug, Default)]
pub struct Exporter(Option<(CancellationToken, JoinHandle<()>)>);

impl Exporter {
    pub(super) fn start(
        endpoint: &str,
        settings: &config::Traces,
        finished: mpsc::Receiver<Finished>,
    ) -> Self {
        let spans = |result| counter!("switchboard_trace_spans_total", "result" => result);
        let sender = Sender {
            collector: [endpoint.trim_end_matches('/'), PATH].concat(),
            finished,
            batch: Vec::new(),
            max_batch_spans: settings.max_batch_spans,
            interval: Duration::from_millis(settings.export_interval_ms),
            timeout: Duration::from_millis(settings.export_timeout_ms),
            is_heard: true,
            exported: spans("exported"),
            refused: spans("refused"),
            cut_off: spans("cut_off"),
        };
        let closing = CancellationToken::new();
        let task = tokio::spawn(sender.run(closing.clone()));
        Exporter(Some((closing, task)))
    }

    /// Sends what is there, and ends; once nothing more is recorded.
    pub async fn close(self) {
        let Some((closing, mut task)) = self.0 else { return };
        closing.cancel();
        if timeout(LAST_WORDS, &mut task).await.is_err() {
            task.abort();
        }
    }
}

struct Sender {
    collector: String,
    finished: mpsc::Receiver<Finished>,
    batch: Vec<Finished>,
    max_batch_spans: usize,
    interval: Duration,
    timeout: Duration,
    /// The last attempt went well.
    is_heard: bool,
    exported: Counter,
    refused: Counter,
    cut_off: Counter,
}

/// What became of an attempt.
enum Attempt {
    /// The collector has the batch, but for so many spans.
    Taken { rejected: u64 },
    /// It never will.
    Refused(StatusCode),
    /// It may later: it is away, or has too much to do.
    Later(anyhow::Error),
}

impl Sender {
    async fn run(mut self, closing: CancellationToken) {
        while closing.run_until_cancelled(self.gather()).await.is_some() {
            let (message, spans) = self.pack();
            let mut pause = self.interval;
            while spans > 0 && !self.send(&message, spans).await {
                if closing.run_until_cancelled(sleep(pause)).await.is_none() {
                    self.cut_off.increment(spans);
                    break;
                }
                pause = (pause * 2).min(MAX_PAUSE);
            }
        }
        self.finished.close();
        while self.finished.recv_many(&mut self.batch, self.max_batch_spans).await > 0
            || !self.batch.is_empty()
        {
            let (message, spans) = self.pack();
            if !self.send(&message, spans).await {
                self.cut_off.increment(spans);
            }
        }
    }

    /// Takes spans until a batch is full or the interval is over.
    async fn gather(&mut self) {
        let until = Instant::now() + self.interval;
        while let Some(room @ 1..) = self.max_batch_spans.checked_sub(self.batch.len()) {
            match timeout_at(until, self.finished.recv_many(&mut self.batch, room)).await {
                // Nobody is left who could record one.
                Ok(0) => return pending().await,
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }

    /// The batch as one message, each service's spans together, and how many they are.
    fn pack(&mut self) -> (Bytes, u64) {
        let mut services: Vec<(Arc<_>, ScopeSpans)> = Vec::new();
        let spans = self.batch.len() as u64;
        for Finished { service, span } in self.batch.drain(..) {
            match services.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &service)) {
                Some((_, scope)) => scope.spans.push(span),
                None => {
                    let scope = InstrumentationScope {
                        name: "switchboard".to_owned(),
                        version: crate::args::version().to_owned(),
                    };
                    services.push((service, ScopeSpans { scope: Some(scope), spans: vec![span] }));
                }
            }
        }
        let of_service = |(service, scope): (Arc<_>, ScopeSpans)| ResourceSpans {
            resource: Some(Arc::unwrap_or_clone(service)),
            scope_spans: vec![scope],
        };
        let resource_spans = services.into_iter().map(of_service).collect();
        (Request { resource_spans }.encode_to_vec().into(), spans)
    }

    /// Sends a batch. False when it is to be sent again.
    async fn send(&mut self, message: &Bytes, spans: u64) -> bool {
        let attempt = match timeout(self.timeout, send(&self.collector, message.clone())).await {
            Ok(Ok((status, answer))) => judged(status, &answer),
            Ok(Err(error)) => Attempt::Later(error),
            Err(_) => Attempt::Later(anyhow::anyhow!("no answer within traces.export_timeout_ms")),
        };
        let was_heard = std::mem::replace(&mut self.is_heard, matches!(attempt, Attempt::Taken { .. }));
        match attempt {
            Attempt::Taken { rejected } => {
                self.exported.increment(spans.saturating_sub(rejected));
                self.refused.increment(rejected.min(spans));
                if !was_heard {
                    tracing::info!(collector = self.collector, "the collector takes spans again");
                }
                true
            }
            Attempt::Refused(status) => {
                self.refused.increment(spans);
                if was_heard {
                    tracing::warn!(collector = self.collector, %status, "the collector refuses spans");
                }
                true
            }
            Attempt::Later(error) => {
                if was_heard {
                    let error = format!("{error:#}");
                    tracing::warn!(
                        collector = self.collector,
                        error,
                        "the collector takes no spans; trying again"
                    );
                }
                false
            }
        }
    }
}

/// What an answer means (OTLP/HTTP §"OTLP/HTTP Response").
fn judged(status: StatusCode, answer: &Bytes) -> Attempt {
    match status {
        StatusCode::OK => {
            let partial = Response::decode(answer.clone()).ok().and_then(|it| it.partial_success);
            let rejected = partial.map_or(0, |partial| u64::try_from(partial.rejected_spans).unwrap_or(0));
            Attempt::Taken { rejected }
        }
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Attempt::Later(anyhow::anyhow!("it answers {status}")),
        _ => Attempt::Refused(status),
    }
}

async fn send(collector: &str, message: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
    Ok(post(&collector.parse()?, "application/x-protobuf", message, MAX_ANSWER_BYTES).await?)
}

#[cfg(test)]
mod tests {
    use super::super::otlp::PartialSuccess;
    use super::*;

    #[test]
    fn an_answer_means_what_otlp_says() {
        let partial = PartialSuccess { rejected_spans: 3 };
        let partial = Response { partial_success: Some(partial) }.encode_to_vec();
        for (status, answer, expected) in [
            (200, &b""[..], "taken but for 0"),
            (200, &partial, "taken but for 3"),
            (200, b"\xff", "taken but for 0"),
            (400, b"", "refused"),
            (401, b"", "refused"),
            (404, b"", "refused"),
            (413, b"", "refused"),
            (500, b"", "refused"),
            (429, b"", "later"),
            (502, b"", "later"),
            (503, b"", "later"),
            (504, b"", "later"),
        ] {
            let meant = match judged(StatusCode::from_u16(status).unwrap(), &Bytes::copy_from_slice(answer)) {
                Attempt::Taken { rejected } => format!("taken but for {rejected}"),
                Attempt::Refused(_) => "refused".to_owned(),
                Attempt::Later(_) => "later".to_owned(),
            };
            assert_eq!(meant, expected, "{status}");
        }
    }
}
