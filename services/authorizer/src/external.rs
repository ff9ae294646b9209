//! What does a tenant's external decision point say of a call that its policies permit? Asked over NATS or HTTP, within
//! a part of the call's time. No answer denies.

pub mod breaker;
pub mod question;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use boot::config;
use boot::post::{PostError, post};
use bus::policies::{External, Point};
use bus::{AskError, Bus};
use bytes::Bytes;
use hyper::{StatusCode, Uri};
use parking_lot::Mutex;
use rpc::TenantId;
use tokio::time::timeout;

use crate::meters::ExternalMeters;
use breaker::{Breaker, Remembered, Turned};
use question::{Answer, MAX_ANSWER_BYTES, Question};

/// Why an external decision point does not let a call go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Objection {
    /// It says no.
    Denied,
    /// Nobody listens there, or the connection failed.
    Missing,
    /// No answer in time.
    Late,
    /// What came is no answer.
    Malformed,
    /// It failed too often just now, and is not asked.
    Open,
    /// Too many calls wait for it already.
    Busy,
    /// Its address is not one that the settings allow.
    Forbidden,
}

impl Objection {
    /// All of them.
    pub const ALL: [Objection; 7] = [
        Objection::Denied,
        Objection::Missing,
        Objection::Late,
        Objection::Malformed,
        Objection::Open,
        Objection::Busy,
        Objection::Forbidden,
    ];

    /// Its name in metrics, logs and the audit.
    pub const fn as_str(self) -> &'static str {
        match self {
            Objection::Denied => "external_denied",
            Objection::Missing => "external_missing",
            Objection::Late => "external_late",
            Objection::Malformed => "external_malformed",
            Objection::Open => "external_open",
            Objection::Busy => "external_busy",
            Objection::Forbidden => "external_forbidden",
        }
    }
}

/// What came of asking, and the point's own words about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// None: the call may go on.
    pub objection: Option<Objection>,
    /// Why, in the point's words; may be empty.
    pub reason: String,
}

impl Asked {
    fn object(objection: Objection) -> Self {
        Asked { objection: Some(objection), reason: String::new() }
    }
}

impl From<&Answer> for Asked {
    fn from(answer: &Answer) -> Self {
        let objection = if answer.is_allowed { None } else { Some(Objection::Denied) };
        Asked { objection, reason: answer.reason.clone() }
    }
}

/// Asks one point once, without memory or breaker: what `policy explain` does, too.
pub struct Asker {
    bus: Bus,
    /// As `http://host:port`.
    origins: Vec<String>,
}

impl Asker {
    /// Asks over this bus, and the HTTP endpoints that the settings allow.
    pub fn new(bus: &Bus, settings: &config::Authorizer) -> Self {
        let origins = settings.external_origins.iter().flat_map(|origins| origins.split(','));
        Asker {
            bus: bus.clone(),
            origins: origins.map(|origin| origin.trim().trim_end_matches('/').to_owned()).collect(),
        }
    }

    /// The answer.
    ///
    /// # Errors
    /// Why there is none within `wait`.
    pub async fn ask(
        &self,
        tenant: TenantId,
        point: &Point,
        question: &Question,
        wait: Duration,
    ) -> Result<Answer, Objection> {
        let message = match point {
            Point::Nats { name } => {
                let subject = self.bus.subjects().external_decision(tenant, name);
                let asked = self.bus.ask(subject, question.message.clone(), wait).await;
                asked.map_err(|error| match error {
                    AskError::Expired => Objection::Late,
                    AskError::NoResponders
                    | AskError::Down
                    | AskError::Gone
                    | AskError::Full
                    | AskError::Unsendable => Objection::Missing,
                })?
            }
            Point::Http { url } => {
                let asked = timeout(wait, self.post(url, question.message.clone())).await;
                asked.map_err(|_| Objection::Late)??
            }
        };
        Answer::read(&message).ok_or(Objection::Malformed)
    }

    /// AuthZEN's HTTPS binding (§10.1), in plain text: whatever ends TLS stands before the point. A lost
    /// question denies.
    async fn post(&self, url: &str, message: Bytes) -> Result<Bytes, Objection> {
        let uri: Uri = url.parse().map_err(|_| Objection::Forbidden)?;
        let authority = uri.authority().ok_or(Objection::Forbidden)?;
        let origin = format!("http://{}", authority.as_str().to_ascii_lowercase());
        if uri.scheme_str() != Some("http") || !self.origins.iter().any(|it| *it == "*" || *it == origin) {
            return Err(Objection::Forbidden);
        }
        match post(&uri, "application/json", message, MAX_ANSWER_BYTES).await {
            // A decision comes with 200 alone, whatever it says.
            Ok((StatusCode::OK, answer)) => Ok(answer),
            Ok((status, _)) => {
                tracing::debug!(url, %status, "an external decision point does not answer");
                Err(Objection::Malformed)
            }
            Err(PostError::Answer) => Err(Objection::Malformed),
            Err(PostError::Missing(error)) => {
                tracing::debug!(url, error, "an external decision point cannot be reached");
                Err(Objection::Missing)
            }
        }
    }
}

/// The decision points of all tenants: what they said lately, and which of them fail.
pub(crate) struct Externals {
    asker: Asker,
    share_percent: u32,
    points: Mutex<HashMap<TenantId, Arc<Mutex<Known>>>>,
    meters: ExternalMeters,
}

/// What is known of a tenant's point.
#[derive(Debug, Default)]
struct Known {
    breaker: Breaker,
    remembered: Remembered,
    /// Of this one; another begins anew.
    point: Option<Point>,
}

impl Externals {
    pub(crate) fn new(bus: &Bus, settings: &config::Authorizer) -> Self {
        Externals {
            asker: Asker::new(bus, settings),
            share_percent: settings.external_share_percent.into(),
            points: Mutex::default(),
            meters: ExternalMeters::new(),
        }
    }

    /// What was answered already, or why it is not asked now; none: it is to be asked.
    pub(crate) fn without_asking(
        &self,
        tenant: TenantId,
        external: &External,
        question: &Question,
    ) -> Option<Asked> {
        let known = self.known(tenant, external);
        let now = Instant::now();
        let mut known = known.lock();
        if let Some(answer) = known.remembered.get(&question.class, now) {
            self.meters.remembered.increment(1);
            return Some(Asked::from(&*answer));
        }
        if known.breaker.lets_through(now) {
            return None;
        }
        self.meters.objected(Objection::Open);
        Some(Asked::object(Objection::Open))
    }

    /// One more than may wait.
    pub(crate) fn busy(&self) -> Asked {
        self.meters.objected(Objection::Busy);
        Asked::object(Objection::Busy)
    }

    /// Asks, within a part of what is left of the call's time.
    pub(crate) async fn ask(
        &self,
        tenant: TenantId,
        external: &External,
        question: &Question,
        left: Duration,
    ) -> Asked {
        let full = Duration::from_millis(external.timeout_ms.into());
        let wait = full.min(left * self.share_percent / 100);
        let asked_at = Instant::now();
        let answer = self.asker.ask(tenant, &external.point, question, wait).await;
        self.meters.seconds.record(asked_at.elapsed());
        let known = self.known(tenant, external);
        let mut known = known.lock();
        let (asked, turned) = match answer {
            Ok(answer) => {
                let asked = Asked::from(&answer);
                known.remembered.put(question.class, Arc::new(answer), asked_at);
                (asked, known.breaker.answered())
            }
            // A call in a hurry says nothing of the point: whoever made many could have everybody else's denied.
            Err(Objection::Late) if wait < full => (Asked::object(Objection::Late), Turned::Nothing),
            Err(objection) => (Asked::object(objection), known.breaker.missed(Instant::now())),
        };
        match asked.objection {
            None => self.meters.allowed.increment(1),
            Some(objection) => self.meters.objected(objection),
        }
        let reason = asked.objection.map_or("", Objection::as_str);
        match turned {
            Turned::Nothing => {}
            Turned::Open => {
                tracing::warn!(%tenant, point = %external.point, reason,
                    "an external decision point keeps failing: calls are denied without asking it");
            }
            Turned::Closed => {
                tracing::info!(%tenant, point = %external.point, "an external decision point answers again");
            }
        }
        asked
    }

    fn known(&self, tenant: TenantId, external: &External) -> Arc<Mutex<Known>> {
        let mut points = self.points.lock();
        let known = points.entry(tenant).or_default();
        if known.lock().point.as_ref() != Some(&external.point) {
            *known = Arc::new(Mutex::new(Known { point: Some(external.point.clone()), ..Known::default() }));
        }
        Arc::clone(known)
    }
}
