//! What happens at the moment? `switchboard events`: who comes and goes, what changes in the registry, and which calls
//! end, as an API streams it to whoever has a key for it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bytes::{Buf, BytesMut};
use clap::Args;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::common::api::{Api, problem};
use crate::common::output::{note, say};
use crate::common::via::path_segment;

/// The API that is asked where none is named.
const NEAR: &str = "http://127.0.0.1:8081";
/// How long an API may take to connect, and to say anything at all: it does so every 15 s.
const SILENCE: Duration = Duration::from_secs(45);
/// The pause before it is asked again.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest line that is read, in bytes: a part of a snapshot.
const MAX_LINE_BYTES: usize = 16 << 20;

#[derive(Args)]
#[command(after_help = "\
Examples:
  export SWITCHBOARD_KEY=$(switchboard app add watcher --role observer --json | jq -r .key)
  switchboard events
  switchboard events --kinds presence --device \"Pump 7\" --json
  switchboard events --kinds call                  calls as they end; `switchboard tail` shows them over NATS")]
pub(crate) struct EventsArgs {
    /// API of a system [default: http://127.0.0.1:8081]; its key is in SWITCHBOARD_KEY, or in the profile of that URL
    #[arg(long, value_name = "URL", env = "SWITCHBOARD_API")]
    api: Option<String>,
    /// API and key of this name in ~/.config/switchboard/profiles.toml, which only its owner may read
    #[arg(long, value_name = "NAME", env = "SWITCHBOARD_PROFILE")]
    profile: Option<String>,
    /// presence, registry, call, or several after commas [default: presence,registry]
    #[arg(long, value_name = "KINDS")]
    kinds: Option<String>,
    /// Only of this device (id or name); may be repeated
    #[arg(long = "device", value_name = "DEVICE")]
    devices: Vec<String>,
    /// Only of devices of this customer (id)
    #[arg(long, value_name = "ID")]
    customer: Option<String>,
    /// Print JSON, one line for each event
    #[arg(long)]
    json: bool,
}

/// Listens until it is ended, or the key is. What was missed in between is told again.
pub(crate) async fn run(args: EventsArgs) -> anyhow::Result<ExitCode> {
    let named = args.api.as_deref().or(args.profile.is_none().then_some(NEAR));
    let api = Api::of(named, args.profile.as_deref())?;
    let path = args.path();
    let mut last_id = None;
    let mut has_heard = false;
    loop {
        match args.listen(&api, &path, &mut last_id, &mut has_heard).await {
            Ok(Ended::ByApi) => note("the API has ended this: it is asked again"),
            Ok(Ended::ForGood(why)) => bail!("{why}"),
            // An API that never was there is told at once.
            Err(error) if !has_heard => return Err(error),
            Err(error) => note(format_args!("{error:#}: it is asked again")),
        }
        sleep(PAUSE).await;
    }
}

enum Ended {
    /// Another attempt may go on.
    ByApi,
    /// None will.
    ForGood(String),
}

impl EventsArgs {
    fn path(&self) -> String {
        let pairs = self.kinds.iter().map(|it| ("kinds", it));
        let pairs = pairs.chain(self.devices.iter().map(|it| ("device", it)));
        let pairs = pairs.chain(self.customer.iter().map(|it| ("customer", it)));
        let pairs: Vec<_> = pairs.map(|(name, value)| format!("{name}={}", path_segment(value))).collect();
        format!("events?{}", pairs.join("&"))
    }

    async fn listen(
        &self,
        api: &Api,
        path: &str,
        last_id: &mut Option<String>,
        has_heard: &mut bool,
    ) -> anyhow::Result<Ended> {
        let response = api.listen(path, last_id.as_deref(), SILENCE).await?;
        let status = response.status();
        if status != StatusCode::OK {
            let why = problem(&response.into_body().collect().await?.to_bytes());
            return match status {
                StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => bail!("{why}"),
                _ => Ok(Ended::ForGood(why)),
            };
        }
        *has_heard = true;
        self.hear(response, last_id).await
    }

    async fn hear(
        &self,
        response: Response<Incoming>,
        last_id: &mut Option<String>,
    ) -> anyhow::Result<Ended> {
        let (mut body, mut read, mut fields) = (response.into_body(), BytesMut::new(), Fields::default());
        loop {
            let Some(frame) = timeout(SILENCE, body.frame()).await.context("it has fallen silent")? else {
                return Ok(Ended::ByApi);
            };
            if let Ok(some) = frame?.into_data() {
                read.extend_from_slice(&some);
            }
            while let Some(end) = read.iter().position(|byte| *byte == b'\n') {
                let line = read.split_to(end);
                read.advance(1);
                let Some(Event { kind, id, data }) = fields.line(&String::from_utf8_lossy(&line)) else {
                    continue;
                };
                if id.is_some() {
                    last_id.clone_from(&id);
                }
                match self.json {
                    true => say(json!({ "event": kind, "id": id, "data": data })),
                    false => in_words(&kind, &data).into_iter().for_each(say),
                }
                if kind == "ended" {
                    return Ok(Ended::ForGood("the key has ended, or may not listen any more".to_owned()));
                }
            }
            if read.len() > MAX_LINE_BYTES {
                bail!("it says more than {MAX_LINE_BYTES} bytes in one line")
            }
        }
    }
}

/// The fields of the event that is being read.
#[derive(Default)]
struct Fields {
    kind: String,
    id: Option<String>,
    data: String,
}

#[derive(Debug, PartialEq)]
struct Event {
    kind: String,
    id: Option<String>,
    data: Value,
}

impl Fields {
    /// Takes a line; an empty one ends an event.
    fn line(&mut self, line: &str) -> Option<Event> {
        if line.is_empty() {
            let Fields { kind, id, data } = std::mem::take(self);
            return (!kind.is_empty()).then(|| Event { kind, id, data: data.parse().unwrap_or_default() });
        }
        match line.split_once(": ") {
            Some(("event", kind)) => self.kind = kind.to_owned(),
            Some(("id", id)) => self.id = Some(id.to_owned()),
            Some(("data", data)) => self.data.push_str(data),
            _ => {}
        }
        None
    }
}

/// An event for a person: a line for each device.
fn in_words(kind: &str, data: &Value) -> Vec<String> {
    let text =
        |device: &Value, name: &str| device.get(name).and_then(Value::as_str).unwrap_or("-").to_owned();
    let presence = |device: &Value| {
        let (id, name) = (text(device, "id"), text(device, "name"));
        match device.get("online").and_then(Value::as_bool).unwrap_or_default() {
            true => {
                format!("online   {id}  {name}  ({} at {})", text(device, "protocol"), text(device, "node"))
            }
            false => format!("offline  {id}  {name}"),
        }
    };
    match kind {
        "snapshot" => {
            data.get("devices").and_then(Value::as_array).into_iter().flatten().map(presence).collect()
        }
        "presence" => vec![presence(data)],
        "registry" => {
            vec![format!("{:<8} {}  {}", text(data, "change"), text(data, "id"), text(data, "name"))]
        }
        "call" => {
            let party = |name: &str| match data.get(name) {
                Some(party) => ["name", "app"].iter().find_map(|it| party.get(it)?.as_str()).unwrap_or("?"),
                None => "?",
            };
            let limit =
                data.get("limit").and_then(Value::as_str).map_or_else(String::new, |it| format!(" ({it})"));
            let (id, outcome) = (text(data, "callId"), text(data, "outcome"));
            let ms = data.get("ms").and_then(Value::as_f64).unwrap_or_default();
            let (caller, target) = (party("caller"), party("target"));
            vec![format!("call     {id}  {caller} -> {target}: {outcome}{limit} in {ms:.2} ms")]
        }
        "live" => vec!["-- calls are told from here on: those that ended before are not".to_owned()],
        "left_out" => match (data.get("calls"), data.get("allOf")) {
            (Some(calls), _) => vec![format!("-- {calls} calls of anybody were left out")],
            (None, process) => vec![format!("-- process {} tells no calls", process.unwrap_or_default())],
        },
        "resync" => vec!["-- something may have been missed: all is told anew".to_owned()],
        "overrun" => vec!["-- too much came at once: it goes on from here".to_owned()],
        _ => vec![format!("-- {kind}")],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_as_they_are_written() {
        let mut fields = Fields::default();
        let lines = [
            "retry: 1000",
            "",
            ":",
            "",
            "id: 1-2",
            "event: presence",
            r#"data: {"id":"a: b","online":true}"#,
            "",
        ];
        let heard: Vec<_> = lines.iter().filter_map(|line| fields.line(line)).collect();
        let data = json!({ "id": "a: b", "online": true });
        assert_eq!(heard, [Event { kind: "presence".into(), id: Some("1-2".into()), data: data.clone() }]);
        assert_eq!(in_words("presence", &data), ["online   a: b  -  (- at -)"]);
        let call = json!({ "callId": "1-2", "caller": { "app": "p" }, "target": null, "outcome": "lost", "ms": 0.5 });
        assert_eq!(in_words("call", &call), ["call     1-2  p -> ?: lost in 0.50 ms"]);
        assert_eq!(in_words("left_out", &json!({ "calls": 7 })), ["-- 7 calls of anybody were left out"]);
        assert_eq!(in_words("snapshot", &json!({ "devices": [data, { "id": "c" }] })).len(), 2);
    }
}
