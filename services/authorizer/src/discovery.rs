//! How is the service found that applications call over NATS? As NATS' own services are (ADR-32), by hand: async-nats'
//! module would answer wherever it is asked to, and that with an authorizer's rights.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use boot::clock::unix_s;
use bus::{Bus, BusError, Request, Requests};
use parking_lot::Mutex;
use rpc::Outcome;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

/// As `nats micro` lists it.
const SERVICE: &str = "switchboard";

/// Subscribes to what is asked of all services, of those of its name, and of this one.
pub(crate) async fn subscribe(bus: &Bus) -> Result<[Requests; 3], BusError> {
    let all = bus.serve("$SRV.*", None).await?;
    let named = bus.serve(format!("$SRV.*.{SERVICE}"), None).await?;
    Ok([all, named, bus.serve(format!("$SRV.*.{SERVICE}.{}", bus.process()), None).await?])
}

/// What an authorizer has done for applications over NATS, as it tells whoever looks for services.
pub(crate) struct Served {
    id: String,
    subject: String,
    queue: &'static str,
    started_s: u64,
    requests: AtomicU64,
    errors: AtomicU64,
    nanoseconds: AtomicU64,
    last_error: Mutex<&'static str>,
}

impl Served {
    pub(crate) fn new(bus: &Bus, queue: &'static str) -> Self {
        Served {
            id: bus.process().to_string(),
            subject: bus.subjects().app_calls(),
            queue,
            started_s: unix_s(),
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            nanoseconds: AtomicU64::new(0),
            last_error: Mutex::new(""),
        }
    }

    /// A call was taken; how it ends a router tells its caller.
    pub(crate) fn taken(&self, after: Duration) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.nanoseconds.fetch_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// A call has ended here.
    pub(crate) fn refused(&self, outcome: &Outcome) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        *self.last_error.lock() = outcome.as_str();
    }

    /// Answers one of them until `stop`.
    pub(crate) async fn answer(&self, bus: &Bus, mut requests: Requests, stop: &CancellationToken) {
        while let Some(Some(request)) = stop.run_until_cancelled(requests.next()).await {
            let Request { subject, reply_to: Some(inbox), .. } = request else { continue };
            let Some(answer) = subject.split('.').nth(1).and_then(|verb| self.describe(verb)) else {
                continue;
            };
            if let Err(error) = bus.tell(inbox, answer.to_string().into()).await {
                tracing::debug!(%error, "who looks for services is not told of this one");
            }
        }
    }

    fn describe(&self, verb: &str) -> Option<Value> {
        let (id, version, subject, queue) = (&self.id, env!("CARGO_PKG_VERSION"), &self.subject, self.queue);
        Some(match verb {
            "PING" => json!({
                "type": "io.nats.micro.v1.ping_response",
                "name": SERVICE, "id": id, "version": version, "metadata": {},
            }),
            "INFO" => json!({
                "type": "io.nats.micro.v1.info_response",
                "name": SERVICE, "id": id, "version": version, "metadata": {},
                "description": "Calls devices",
                "endpoints": [{"name": "call", "subject": subject, "queue_group": queue, "metadata": {}}],
            }),
            "STATS" => {
                let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
                let (requests, nanoseconds) = (read(&self.requests), read(&self.nanoseconds));
                json!({
                    "type": "io.nats.micro.v1.stats_response",
                    "name": SERVICE, "id": id, "version": version, "metadata": {},
                    "started": rfc3339(self.started_s),
                    "endpoints": [{
                        "name": "call", "subject": subject, "queue_group": queue,
                        "num_requests": requests, "num_errors": read(&self.errors),
                        "last_error": *self.last_error.lock(), "processing_time": nanoseconds,
                        "average_processing_time": nanoseconds.checked_div(requests).unwrap_or(0),
                    }],
                })
            }
            _ => return None,
        })
    }
}

fn rfc3339(time_s: u64) -> String {
    let time = i64::try_from(time_s).ok().and_then(|time| OffsetDateTime::from_unix_timestamp(time).ok());
    time.and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default()
}
