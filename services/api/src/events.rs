//! What has happened, as a stream? Server-sent events (the HTML standard, section 9.2): what is there, then what
//! changes, for as long as the client reads and its key lives.

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::stream;
use rpc::{DeviceId, Sought, Target};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::Server;
use crate::answer::Problem;
use crate::listeners::{self, Listening};
use crate::request;
use crate::tap::Heard;
use crate::world::{self, Next, Place, Wants, World};

/// Events that may wait for one listener to read them; with one more it is cut off.
const MAX_QUEUED: usize = 1_000;
/// Events that are written at a time.
const AT_A_TIME: usize = 64;
/// How often a comment is written where nothing else is, so that whoever stands between does not close.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// Devices that one listener may name.
const MAX_DEVICES: usize = 100;
/// What clients are told to wait before they come back, in milliseconds.
const COME_BACK_MS: u64 = 1_000;
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// The routes.
pub(crate) fn routes() -> OpenApiRouter<Arc<Server>> {
    OpenApiRouter::new().routes(routes!(listen))
}

/// Which events: what [`read_query`] reads.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "it describes what `read_query` reads")]
struct Query {
    /// `presence`, `registry`, `call`, or several after commas; `presence,registry`
    kinds: Option<String>,
    /// Only of this device, by its id or name; of several
    device: Option<Vec<String>>,
    /// Only of devices of this customer, by its id
    customer: Option<String>,
}

/// Listen to who comes and goes, to what changes in the registry, and to calls as they end
#[utoipa::path(
    get,
    path = "/v1/events",
    tag = "events",
    params(
        Query,
        ("Last-Event-ID" = Option<String>, Header, description = "Go on behind the event of this id"),
    ),
    responses(
        (status = 200, description = "`snapshot`, then `presence` and `registry`; `live`, then `call` and `left_out`; \
            `resync`, `overrun`, `ended`",
            body = String, content_type = "text/event-stream"),
        (status = 401, description = "No key, or none that lives", body = Problem,
            content_type = "application/problem+json"),
        (status = 403, description = "The key's role is below `observer`", body = Problem,
            content_type = "application/problem+json"),
        (status = 404, description = "No such device, for this application", body = Problem,
            content_type = "application/problem+json"),
        (status = 422, description = "A parameter is not what it must be", body = Problem,
            content_type = "application/problem+json"),
        (status = 429, description = "A limit is reached", body = Problem,
            content_type = "application/problem+json"),
        (status = 503, description = "A service is missing, or what happens cannot be followed", body = Problem,
            content_type = "application/problem+json"),
    ),
    security(("key" = [])),
)]
async fn listen(
    State(server): State<Arc<Server>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    server.listen(query.as_deref().unwrap_or_default(), &headers).await.unwrap_or_else(Problem::into_response)
}

impl Server {
    async fn listen(self: &Arc<Self>, query: &str, headers: &HeaderMap) -> Result<Response, Problem> {
        let caller = self.let_in_as(headers, listeners::ROLE).await?;
        let (mut wants, devices) = read_query(query)?;
        // Whoever comes again and again is held up by what holds up calls.
        let place = self.place(&caller)?;
        for target in devices {
            let sought = Sought { target: Some(target), limit: 1, ..Sought::default() };
            let page = self.keys.devices(&caller, sought).await.map_err(|why| self.not_let_in(why))?;
            let unknown = || Problem::new(StatusCode::NOT_FOUND, "unknown_device", "There is no such device");
            wants.devices.insert(page.devices.first().ok_or_else(unknown)?.id);
        }
        drop(place);
        if !self.followed.look(|world| world.is_whole()) {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            return Err(Problem::new(status, "unavailable", "What happens cannot be followed at the moment"));
        }
        let listening = self.listeners.enter(caller).map_err(|limit| {
            self.keys.meters().limit_hit(limit);
            Problem::limit(limit)
        })?;
        let last = headers
            .get(LAST_EVENT_ID)
            .map(|id| id.to_str().ok().and_then(|id| id.parse::<world::Heard>().ok()));
        let listener = Listener::new(Arc::clone(self), listening, wants, last);
        let told = stream::unfold(listener, |mut listener| async move {
            let text = listener.next().await?;
            Some((Ok::<_, Infallible>(Bytes::from(text)), listener))
        });
        let headers = [
            (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            // Proxies that gather answers are to leave this one alone.
            (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
        ];
        Ok((headers, Body::from_stream(told)).into_response())
    }
}

/// What is wanted, and of which devices.
fn read_query(query: &str) -> Result<(Wants, Vec<Target>), Problem> {
    let mut wants = Wants { presence: true, registry: true, ..Wants::default() };
    let mut devices = Vec::new();
    for (name, value) in request::pairs(query)? {
        let name = name.as_str();
        match name {
            "kinds" => {
                (wants.presence, wants.registry, wants.calls) = (false, false, false);
                for kind in value.split(',') {
                    match kind {
                        "presence" => wants.presence = true,
                        "registry" => wants.registry = true,
                        "call" => wants.calls = true,
                        _ => {
                            let expected = "presence, registry, call, or several after commas";
                            return Err(Problem::parameter(name, expected));
                        }
                    }
                }
            }
            "device" if devices.len() == MAX_DEVICES => {
                return Err(Problem::parameter(name, format!("given {MAX_DEVICES} times at most")));
            }
            "device" => devices.push(Target::parse(&value)),
            "customer" => {
                let customer =
                    value.parse().map_err(|_| Problem::parameter(name, "the UUID of a customer"))?;
                wants.customer = Some(customer);
            }
            _ => {
                let expected = "left out: there are kinds, device, customer";
                return Err(Problem::parameter(name, expected));
            }
        }
    }
    Ok((wants, devices))
}

/// How far a listener has come.
enum Stage {
    /// It is to be told that what it has may not be all.
    Resync,
    /// It is told what is there, from behind this device on; then it goes on from where the snapshot began.
    Snapshot(Option<DeviceId>, Option<Place>),
    /// It hears what changes.
    Live(Place),
    /// It has been told that it ends.
    Over,
}

/// How a listener hears of calls. They are not kept: who was away has missed them.
struct Hearing {
    heard: broadcast::Receiver<Arc<Heard>>,
    /// What it has heard first, of what it has not been told yet.
    first: Option<Result<Arc<Heard>, RecvError>>,
    is_live: bool,
}

/// Until there is something to tell of calls, if they are wanted.
async fn wait(calls: &mut Option<Box<Hearing>>) {
    match calls {
        Some(calls) if calls.first.is_none() => calls.first = Some(calls.heard.recv().await),
        Some(_) => {}
        None => std::future::pending().await,
    }
}

impl Hearing {
    fn next(&mut self) -> Option<Result<Arc<Heard>, RecvError>> {
        if std::mem::take(&mut self.is_live) {
            return Some(Ok(Arc::new(Heard::Live)));
        }
        self.first.take().or_else(|| match self.heard.try_recv() {
            Ok(heard) => Some(Ok(heard)),
            Err(TryRecvError::Lagged(count)) => Some(Err(RecvError::Lagged(count))),
            Err(TryRecvError::Empty | TryRecvError::Closed) => None,
        })
    }
}

struct Listener {
    server: Arc<Server>,
    listening: Listening,
    /// For how many changes of what its key reaches it has been told.
    changes: u64,
    wants: Box<Wants>,
    stage: Stage,
    calls: Option<Box<Hearing>>,
    wake: watch::Receiver<()>,
    /// Nothing has been written yet.
    is_new: bool,
}

impl Listener {
    /// `last`: the id of the event that it heard last; none in it, if that is none of ours.
    fn new(
        server: Arc<Server>,
        listening: Listening,
        wants: Wants,
        last: Option<Option<world::Heard>>,
    ) -> Self {
        let wake = server.followed.changes();
        let calls = wants.calls.then(|| {
            let (heard, is_live) = server.taps.enter();
            Box::new(Hearing { heard, first: None, is_live })
        });
        let stage = match last {
            _ if !wants.is_of_state() => Stage::Live(server.followed.look(World::place)),
            None => Stage::Snapshot(None, None),
            Some(heard) => {
                let place = heard.and_then(|heard| server.followed.look(|world| world.place_behind(heard)));
                place.map_or(Stage::Resync, Stage::Live)
            }
        };
        let changes = listening.key.reach().1;
        Listener { server, listening, changes, wants: Box::new(wants), stage, calls, wake, is_new: true }
    }

    /// What is written next; none: it is over.
    async fn next(&mut self) -> Option<String> {
        if std::mem::take(&mut self.is_new) {
            return Some(format!("retry: {COME_BACK_MS}\n\n"));
        }
        let beat_at = tokio::time::Instant::now() + HEARTBEAT;
        loop {
            self.wake.mark_unchanged();
            let state = self.step()?;
            match (state, self.calls()) {
                (None, calls) if calls.is_empty() => {}
                (state, calls) => return Some(state.unwrap_or_default() + &calls),
            }
            let woken = async {
                tokio::select! {
                    // Its sender lives as long as the server.
                    _ = self.wake.changed() => {}
                    () = wait(&mut self.calls) => {}
                    () = self.listening.key.ended.cancelled() => {}
                    () = self.server.closing.cancelled() => {}
                }
            };
            if timeout(beat_at.saturating_duration_since(tokio::time::Instant::now()), woken).await.is_err() {
                return Some(":\n\n".to_owned());
            }
        }
    }

    /// The calls that it has heard of and may see; once it is over, none.
    fn calls(&mut self) -> String {
        let (mut text, mut count, mut left_out) = (String::new(), 0, 0);
        let (reach, _) = self.listening.key.reach();
        let Some(calls) = self.calls.as_mut().filter(|_| !matches!(self.stage, Stage::Over)) else {
            return text;
        };
        for heard in std::iter::from_fn(|| calls.next()).take(AT_A_TIME) {
            match heard.as_deref() {
                Ok(Heard::Ended(call)) => {
                    if let Some(data) = call.told(&reach, &self.wants) {
                        text += &event("call", &data, None);
                        count += 1;
                    }
                }
                Ok(Heard::Live) => text += &event("live", r#"{"kinds":["call"]}"#, None),
                Ok(Heard::Silent(process)) => {
                    text += &event("left_out", &format!(r#"{{"allOf":"{process}"}}"#), None);
                }
                Ok(Heard::LeftOut(calls)) => left_out += calls,
                Err(RecvError::Lagged(calls)) => left_out += calls,
                Err(RecvError::Closed) => break,
            }
        }
        if left_out > 0 {
            text += &event("left_out", &format!(r#"{{"calls":{left_out}}}"#), None);
        }
        self.server.event_meters.told.increment(count);
        text
    }

    /// None: it is over; none in it: there is nothing to say.
    fn step(&mut self) -> Option<Option<String>> {
        let meters = &self.server.event_meters;
        let (reach, changes) = self.listening.key.reach();
        if matches!(self.stage, Stage::Over) || self.server.closing.is_cancelled() {
            return None;
        }
        if self.listening.key.ended.is_cancelled() {
            self.stage = Stage::Over;
            return Some(Some(event(
                "ended",
                r#"{"why":"the key has ended, or may not listen any more"}"#,
                None,
            )));
        }
        if changes != self.changes {
            self.changes = changes;
            if self.wants.is_of_state() {
                self.stage = Stage::Resync;
            }
        }
        match self.stage {
            Stage::Resync => {
                self.stage = Stage::Snapshot(None, None);
                meters.resyncs.increment(1);
                Some(Some(event("resync", "{}", None)))
            }
            Stage::Snapshot(behind, place) => {
                let part = self.server.followed.look(|world| {
                    // Without all of it nothing is told as if it were all.
                    world.is_whole().then(|| {
                        let (part, next) = world.part(behind, &reach, &self.wants);
                        (part, next, place.unwrap_or_else(|| world.place()))
                    })
                });
                let Some((part, next, place)) = part else { return Some(None) };
                self.stage = match next {
                    Some(_) => Stage::Snapshot(next, Some(place)),
                    None => Stage::Live(place),
                };
                // Who breaks off in between has to begin again.
                Some(Some(event("snapshot", &part, next.is_none().then(|| place.heard()))))
            }
            Stage::Live(mut place) => {
                let next = self
                    .server
                    .followed
                    .look(|world| world.next(&mut place, &reach, &self.wants, AT_A_TIME, MAX_QUEUED));
                self.stage = Stage::Live(place);
                match next {
                    Next::Events(told) if told.is_empty() => Some(None),
                    Next::Events(told) => {
                        meters.told.increment(told.len() as u64);
                        let texts = told.iter().map(|it| event(it.event, &it.data, it.id));
                        Some(Some(texts.collect()))
                    }
                    Next::Missed | Next::Overrun if !self.wants.is_of_state() => {
                        self.stage = Stage::Live(self.server.followed.look(World::place));
                        Some(None)
                    }
                    Next::Missed => {
                        self.stage = Stage::Resync;
                        self.step()
                    }
                    Next::Overrun => {
                        self.stage = Stage::Over;
                        meters.overruns.increment(1);
                        Some(Some(event("overrun", &format!(r#"{{"queued":{MAX_QUEUED}}}"#), None)))
                    }
                }
            }
            Stage::Over => None,
        }
    }
}

fn event(kind: &str, data: &str, id: Option<world::Heard>) -> String {
    let mut text = String::with_capacity(kind.len() + data.len() + 64);
    if let Some(id) = id {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "id: {id}");
    }
    let _ = write!(text, "event: {kind}\ndata: {data}\n\n");
    text
}
