//! By which NATS servers did a message come? What each tells of it (ADR-41 of NATS): whence, through which accounts,
//! and to whom it was given.

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Characters of a server's name that are drawn: one that nobody chose has 56.
const NAME_CHARS: usize = 16;
/// A kind of connection, in NATS' numbers.
const CLIENT: u8 = 0;

/// A message's way through one server.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Passage {
    server: String,
    /// Microseconds since 1970 on that server's clock, when the message came in.
    pub(super) began_us: u64,
    /// Milliseconds until it was given to the last.
    pub(super) ms: f64,
    /// The accounts that it was in, in order.
    accounts: Vec<String>,
    /// Whom it was given to.
    given: Vec<Given>,
    /// Why it went no further.
    errors: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Given {
    /// A server's name, or the number of a client's connection, with the name that the client gave it.
    to: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<String>,
}

#[derive(Deserialize)]
struct Told {
    server: Named,
    events: Vec<Event>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: String,
    ts: String,
    /// Of which kind the other end is.
    #[serde(default, rename = "kind")]
    of: u8,
    #[serde(default)]
    cid: u64,
    name: Option<String>,
    acc: Option<String>,
    queue: Option<String>,
    error: Option<String>,
}

impl Passage {
    /// Of what a server tells; none when it is of another form.
    pub(super) fn read(told: &[u8]) -> Option<Self> {
        let Told { server, events } = serde_json::from_slice(told).ok()?;
        let times: Vec<u64> = events.iter().filter_map(|event| micros(&event.ts)).collect();
        let (began_us, ended_us) = (times.iter().copied().min()?, times.iter().copied().max()?);
        let mut accounts: Vec<String> = events.iter().filter_map(|event| event.acc.clone()).collect();
        accounts.dedup();
        Some(Passage {
            server: server.name,
            began_us,
            ms: (ended_us - began_us) as f64 / 1_000.0,
            accounts,
            given: events
                .iter()
                .filter(|event| event.kind == "eg" && event.error.is_none())
                .map(Given::of)
                .collect(),
            errors: events.into_iter().filter_map(|event| event.error).collect(),
        })
    }

    /// Its server's name, or the beginning of a long one.
    pub(super) fn server_shown(&self) -> String {
        self.server.chars().take(NAME_CHARS).collect()
    }

    /// What became of the message there.
    pub(super) fn words(&self) -> String {
        let given: Vec<String> = self.given.iter().map(Given::words).collect();
        let mut words = vec![format!("account {}", self.accounts.join(" -> "))];
        words.push(match given.is_empty() {
            true => "to whom is not told".to_owned(),
            false => format!("to {}", given.join(" and ")),
        });
        words.extend(self.errors.iter().cloned());
        words.join(", ")
    }
}

impl Given {
    fn of(event: &Event) -> Self {
        let name = event.name.clone().unwrap_or_default();
        let to = match (event.of, name.is_empty()) {
            (CLIENT, true) => format!("connection {}", event.cid),
            (CLIENT, false) => format!("connection {} of {name}", event.cid),
            (_, true) => format!("a server by connection {}", event.cid),
            (_, false) => format!("server {name}"),
        };
        Given { to, queue: event.queue.clone() }
    }

    fn words(&self) -> String {
        match &self.queue {
            Some(queue) => format!("{} (queue {queue})", self.to),
            None => self.to.clone(),
        }
    }
}

fn micros(time: &str) -> Option<u64> {
    let nanos = OffsetDateTime::parse(time, &Rfc3339).ok()?.unix_timestamp_nanos();
    u64::try_from(nanos / 1_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: &str = r#"{"server":{"name":"n1","id":"N"},"request":{"msgsize":54},"events":[
        {"type":"in","ts":"2026-01-01T00:00:00.000100Z","kind":0,"cid":8,"acc":"OPERATORS","subj":"swb.call"},
        {"type":"si","ts":"2026-01-01T00:00:00.000150Z","acc":"CORE","from":"swb.call","to":"swb.call"},
        {"type":"eg","ts":"2026-01-01T00:00:00.000350Z","kind":0,"cid":7,"name":"switchboard-authorizer","acc":"CORE",
         "sub":"swb.call","queue":"authorizer"}]}"#;

    #[test]
    fn a_passage_is_told_in_words() {
        let passage = Passage::read(TOLD.as_bytes()).unwrap();
        assert_eq!((passage.server_shown().as_str(), passage.ms), ("n1", 0.25));
        let words = "account OPERATORS -> CORE, to connection 7 of switchboard-authorizer (queue authorizer)";
        assert_eq!(passage.words(), words);
        let routed = TOLD.replace(
            r#""kind":0,"cid":7,"name":"switchboard-authorizer""#,
            r#""kind":1,"cid":9,"name":"n2""#,
        );
        assert!(Passage::read(routed.as_bytes()).unwrap().words().contains("to server n2 (queue"));
    }

    #[test]
    fn how_far_it_is_told_is_said() {
        let (before, _) = TOLD
            .split_once(
                r#",
        {"type":"eg""#,
            )
            .unwrap();
        let short = Passage::read(format!("{before}]}}").as_bytes()).unwrap();
        assert_eq!(short.words(), "account OPERATORS -> CORE, to whom is not told");
        let refused = TOLD.replace(r#""queue":"authorizer""#, r#""error":"no permission""#);
        let words = Passage::read(refused.as_bytes()).unwrap().words();
        assert!(words.ends_with("to whom is not told, no permission"), "{words}");
        assert_eq!(Passage::read(b"{}"), None);
    }
}
