//! How are many devices called at once? By a call of each, judged singly, so many at a time; whoever asked is told of
//! each as it ends.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{self, FuturesUnordered, StreamExt};
use rpc::{AppDevices, CallId, Limit, NoPlace, Outcome, Place, Seen, Sought, Target};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::answer::{Ended, Problem};
use crate::bodies::GroupBody;
use crate::devices::{MAX_PAGE, said};
use crate::keys::Caller;
use crate::look::Told;
use crate::request::{self, Targets, WantedGroup};
use crate::routes::traceparent;
use crate::{Server, once};

/// How often it is looked whether there is a place for the next call, where there was none.
const PLACE_PAUSE: Duration = Duration::from_millis(20);
/// Bytes of answers in one response that is no stream; further ones are left out.
const MAX_GATHERED_BYTES: usize = 4 * 1024 * 1024;

/// The routes.
pub(crate) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(call))
}

/// What became of one target's call.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    /// The target, as it was named; else its id.
    device: String,
    #[serde(flatten)]
    call: Told,
    /// The answer is not in this response, which would be too large: a stream has it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    body_left_out: bool,
}

/// How a group call ended.
#[derive(Debug, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
struct Summary {
    /// Targets, by outcome.
    counts: BTreeMap<&'static str, usize>,
    /// Targets whose call had not ended when there were as many answers as wanted: `GET /v1/calls/{call}` tells.
    running: usize,
    /// Targets that were not called any more.
    not_called: usize,
}

/// All verdicts of a group call.
#[derive(Debug, Serialize, ToSchema)]
struct Gathered {
    results: Vec<Verdict>,
    #[serde(flatten)]
    summary: Summary,
}

/// Call many devices
///
/// Each is judged and called by itself. `Accept: application/x-ndjson` or `text/event-stream` streams the verdicts as
/// they come, and the summary as the last one.
#[utoipa::path(
    post,
    path = "/v1/calls",
    operation_id = "call_many",
    tag = "calls",
    request_body(content = GroupBody, content_type = "application/json"),
    responses(
        (status = 200, description = "A verdict for each target, in the order in which their calls ended", content(
            (Gathered = "application/json"),
            (Verdict = "application/x-ndjson"),
            (Verdict = "text/event-stream"),
        )),
        (status = 400, description = "The body is not a JSON object",
            body = Problem, content_type = "application/problem+json"),
        (status = 401, description = "No key, or none that lives",
            body = Problem, content_type = "application/problem+json"),
        (status = 408, description = "The body did not come in time",
            body = Problem, content_type = "application/problem+json"),
        (status = 413, description = "The body is too large",
            body = Problem, content_type = "application/problem+json"),
        (status = 415, description = "The body is not said to be JSON",
            body = Problem, content_type = "application/problem+json"),
        (status = 422, description = "A member of the body is not what it must be, or there are too many targets",
            body = Problem, content_type = "application/problem+json"),
        (status = 429, description = "A limit is reached",
            body = Problem, content_type = "application/problem+json"),
        (status = 503, description = "A service is missing, or failed",
            body = Problem, content_type = "application/problem+json"),
    ),
    security(("key" = [])),
)]
async fn call(State(server): State<Arc<Server>>, headers: HeaderMap, body: Body) -> Response {
    let group = match begin(&server, &headers, body).await {
        Ok(group) => group,
        Err(problem) => return problem.into_response(),
    };
    let accept = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
    if accept.contains("application/x-ndjson") {
        streamed(group, "application/x-ndjson", |line| match line {
            Line::Verdict(verdict) => json_line(b"", &verdict, b"\n"),
            Line::Summary(summary) => json_line(b"", &summary, b"\n"),
        })
    } else if accept.contains("text/event-stream") {
        streamed(group, "text/event-stream", |line| match line {
            Line::Verdict(verdict) => json_line(b"event: verdict\ndata: ", &verdict, b"\n\n"),
            Line::Summary(summary) => json_line(b"event: summary\ndata: ", &summary, b"\n\n"),
        })
    } else {
        said(&gathered(group).await)
    }
}

async fn begin(server: &Arc<Server>, headers: &HeaderMap, body: Body) -> Result<Group, Problem> {
    let caller = server.let_in(headers).await?;
    if headers.contains_key(once::KEY) {
        let expected = "left out: a group call is not recorded, and would be made again";
        return Err(Problem::header("Idempotency-Key", expected));
    }
    let place = server.groups.take(caller.identity.app).map_err(|full| {
        let limit = match full {
            NoPlace::Part | NoPlace::Any => Limit::AppGroups,
        };
        server.keys.meters().limit_hit(limit);
        Problem::limit(limit)
    })?;
    let body = server.read_json(headers, body).await?;
    let wanted = request::group(&body, &server.limits)?;
    let waiting = match &wanted.targets {
        Targets::Devices(devices) => devices.iter().map(|it| (it.clone(), Target::parse(it))).collect(),
        Targets::Sought { customer, labels } => {
            let _place = server.place(&caller)?;
            let sought =
                Sought { customer: *customer, labels: labels.clone(), limit: MAX_PAGE, ..Sought::default() };
            sought_out(server, &caller, sought, wanted.max).await?
        }
    };
    Ok(Group {
        server: Arc::clone(server),
        caller,
        wanted,
        traceparent: traceparent(headers),
        waiting,
        flying: FuturesUnordered::new(),
        open: HashMap::new(),
        refused_since: None,
        answers: 0,
        summary: Some(Summary::default()),
        ended: VecDeque::new(),
        _place: place,
    })
}

/// The targets that a group call seeks, if there are no more than `max`.
async fn sought_out(
    server: &Server,
    caller: &Caller,
    mut sought: Sought,
    max: usize,
) -> Result<VecDeque<(String, Target)>, Problem> {
    let mut found = VecDeque::new();
    loop {
        let page = server.keys.devices(caller, sought.clone()).await;
        let AppDevices { devices, next } = page.map_err(|why| server.not_let_in(why))?;
        found.extend(devices.iter().map(|it| (it.id.to_string(), Target::Id(it.id))));
        if found.len() > max {
            let status = StatusCode::UNPROCESSABLE_ENTITY;
            let problem = Problem::new(status, "too_many_targets", "The group has more targets than `max`");
            return Err(problem.expected(format!("at most {max} devices, of which none was called")));
        }
        match next {
            Some(_) => sought.after = next,
            None => return Ok(found),
        }
    }
}

/// A group call under way. Dropped, it begins no further call; those that have begun go on.
struct Group {
    server: Arc<Server>,
    caller: Arc<Caller>,
    wanted: WantedGroup,
    traceparent: Option<String>,
    waiting: VecDeque<(String, Target)>,
    flying: FuturesUnordered<BoxFuture<'static, (String, Ended)>>,
    /// Calls that have begun and not ended.
    open: HashMap<CallId, String>,
    /// Since when there is no place for the next call, and for want of what.
    refused_since: Option<(Instant, Limit)>,
    answers: usize,
    /// None: it has been told.
    summary: Option<Summary>,
    /// What there is to tell.
    ended: VecDeque<Verdict>,
    _place: Place<rpc::AppId>,
}

enum Line {
    Verdict(Verdict),
    Summary(Summary),
}

impl Group {
    /// What is to be told next; none after the summary.
    async fn next(&mut self) -> Option<Line> {
        loop {
            if let Some(verdict) = self.ended.pop_front() {
                return Some(Line::Verdict(verdict));
            }
            self.summary.as_ref()?;
            let is_enough = self.wanted.quorum.is_some_and(|quorum| self.answers >= quorum);
            if is_enough {
                self.stop();
            } else {
                self.begin();
            }
            if !self.ended.is_empty() {
                continue;
            }
            if self.flying.is_empty() && self.waiting.is_empty() {
                return self.summary.take().map(Line::Summary);
            }
            let pause = tokio::time::sleep(PLACE_PAUSE);
            tokio::select! {
                Some((device, ended)) = self.flying.next(), if !self.flying.is_empty() => self.tell(device, &ended),
                () = pause, if self.refused_since.is_some() => {}
            }
        }
    }

    /// Begins as many calls as there are places for.
    fn begin(&mut self) {
        let (app, now) = (self.caller.identity.app, Instant::now());
        while self.flying.len() < self.wanted.parallel
            && let Some((device, target)) = self.waiting.pop_front()
        {
            match self.server.keys.place_now(app, now) {
                Ok(place) => {
                    self.refused_since = None;
                    let (wanted, traceparent) = (self.wanted.each.clone(), self.traceparent.clone());
                    let begun = self.server.calls.begin(&self.caller, target, wanted, traceparent);
                    self.open.insert(begun.call, device.clone());
                    let call = async move {
                        let ended = begun.ended().await;
                        drop(place);
                        (device, ended)
                    };
                    self.flying.push(call.boxed());
                }
                Err(limit) => {
                    let (since, _) = *self.refused_since.get_or_insert((now, limit));
                    // As long as its call might have taken.
                    if now.saturating_duration_since(since) < self.wanted.each.timeout.as_duration() {
                        return self.waiting.push_front((device, target));
                    }
                    self.server.keys.meters().limit_hit(limit);
                    let ended = self.server.refused(limit);
                    self.tell(device, &ended);
                }
            }
        }
    }

    /// There are answers enough: what is still under way is told as that.
    fn stop(&mut self) {
        while let Some(Some((device, ended))) = self.flying.next().now_or_never() {
            self.tell(device, &ended);
        }
        self.flying.clear();
        let open = std::mem::take(&mut self.open);
        if let Some(summary) = &mut self.summary {
            summary.running += open.len();
            summary.not_called += self.waiting.len();
        }
        self.waiting.clear();
        self.ended.extend(open.into_iter().map(|(call, device)| {
            let call = Told {
                call_id: Some(call.to_string()),
                running: true,
                seen: Some(Seen::Maybe),
                ..Told::default()
            };
            Verdict { device, call, body_left_out: false }
        }));
    }

    fn tell(&mut self, device: String, ended: &Ended) {
        if let Some(call) = ended.call {
            self.open.remove(&call);
        }
        if matches!(ended.outcome, Outcome::Answered | Outcome::Delivered) {
            self.answers += 1;
        }
        if let Some(summary) = &mut self.summary {
            *summary.counts.entry(ended.outcome.as_str()).or_default() += 1;
        }
        self.ended.push_back(Verdict { device, call: Told::ended(ended), body_left_out: false });
    }
}

fn streamed(group: Group, kind: &'static str, line: fn(Line) -> Bytes) -> Response {
    let lines = stream::unfold(group, move |mut group| async move {
        let next = group.next().await?;
        Some((Ok::<_, Infallible>(line(next)), group))
    });
    // A proxy that gathers what it passes on would make no stream of it.
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store")];
    (headers, Body::from_stream(lines)).into_response()
}

async fn gathered(mut group: Group) -> Gathered {
    let (mut results, mut bytes) = (Vec::new(), 0);
    loop {
        match group.next().await {
            Some(Line::Verdict(mut verdict)) => {
                bytes += verdict.call.body.as_ref().map_or(0, |body| body.get().len());
                if bytes > MAX_GATHERED_BYTES {
                    verdict.body_left_out = verdict.call.body.take().is_some();
                }
                results.push(verdict);
            }
            Some(Line::Summary(summary)) => return Gathered { results, summary },
            None => return Gathered { results, summary: Summary::default() },
        }
    }
}

fn json_line(before: &[u8], told: &impl Serialize, behind: &[u8]) -> Bytes {
    let json = serde_json::to_vec(told).unwrap_or_default();
    [before, &json, behind].concat().into()
}
