//! How is a call made once that is asked for twice? Under an idempotency key: its record stands before the call begins,
//! so that there is never a second one, whatever dies in between.

use std::sync::Arc;
use std::time::Instant;

use axum::http::{HeaderMap, StatusCode};
use bus::StoreError;
use bus::once::Standing;
use bytes::Bytes;
use rpc::{AppId, CallId, OnceEnd, OnceRecord, Outcome, Place, Rate, Seen, Target, wire};
use sha2::{Digest, Sha256};

use crate::Server;
use crate::answer::{Ended, Problem};
use crate::keys::Caller;
use crate::ledger::Stage;
use crate::metrics::OnceResult;
use crate::request::Wanted;

/// The header (draft-ietf-httpapi-idempotency-key-header).
pub(crate) const KEY: &str = "idempotency-key";
/// Characters of a key.
const MAX_KEY: usize = 64;
/// Bytes of an answer that is kept: a larger one is told once.
const MAX_KEPT_BYTES: usize = 65_536;
/// KiB of one application's answers that are kept by one copy, a second and at once: about 16 MiB in the time
/// that records are kept. Further ones are told once.
pub(crate) const KEPT_KIB: Rate = Rate { per_second: 32, burst: 16_384 };

/// A call that is good for one.
pub(crate) struct Asked {
    pub(crate) caller: Arc<Caller>,
    pub(crate) key: String,
    pub(crate) target: Target,
    pub(crate) wanted: Wanted,
    pub(crate) traceparent: Option<String>,
}

/// How it ended, then or now.
pub(crate) struct Told {
    pub(crate) ended: Ended,
    /// It was made for an earlier request.
    pub(crate) is_replayed: bool,
}

/// The key that a request shows.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let mut shown = headers.get_all(KEY).iter();
    let (Some(first), second) = (shown.next(), shown.next()) else { return Ok(None) };
    let key = first.to_str().ok().filter(|key| {
        let is_visible = key.bytes().all(|byte| byte.is_ascii_graphic());
        is_visible && (1..=MAX_KEY).contains(&key.len()) && second.is_none()
    });
    match key {
        Some(key) => Ok(Some(key)),
        None => {
            Err(Problem::header("Idempotency-Key", format!("one, 1 to {MAX_KEY} visible ASCII characters")))
        }
    }
}

/// Where a key's record stands: the key itself is told to nobody.
fn record_key(app: AppId, key: &str) -> String {
    use std::fmt::Write as _;
    let mut text = format!("{app}.");
    for byte in Sha256::digest(key) {
        // Memory takes everything.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// What is asked for, in 32 bytes.
fn digest(target: &Target, wanted: &Wanted) -> [u8; 32] {
    let Wanted { method, params, timeout, connect_timeout, oneway } = wanted;
    let target = match target {
        Target::Id(id) => format!("id {id}"),
        Target::Name(name) => format!("name {name}"),
    };
    let rest = format!("{} {} {oneway}", timeout.as_ms(), connect_timeout.as_ms());
    let mut hash = Sha256::new();
    for part in [target.as_bytes(), method.as_bytes(), params, rest.as_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

impl Server {
    /// Makes a call, unless one was made under its key. It goes on without whoever asked, so that its record is ended.
    pub(crate) async fn perform_once(self: &Arc<Self>, asked: Asked) -> Result<Told, Problem> {
        let place = self.keys.place(asked.caller.identity.app, Instant::now());
        let place = match place {
            Ok(place) => place,
            Err(limit) => return Ok(Told { ended: self.refused(limit), is_replayed: false }),
        };
        let server = Arc::clone(self);
        let performing = self.performing.spawn(async move { server.perform_recorded(asked, place).await });
        // None when the process is cut off.
        let told = performing.await;
        told.unwrap_or_else(|_| {
            let ended = Ended { seen: Seen::Maybe, ..Ended::here(Outcome::Unavailable) };
            Ok(Told { ended, is_replayed: false })
        })
    }

    async fn perform_recorded(&self, asked: Asked, _place: Place<AppId>) -> Result<Told, Problem> {
        let Asked { caller, key, target, wanted, traceparent } = asked;
        let app = caller.identity.app;
        let (key, request) = (record_key(app, &key), digest(&target, &wanted));
        let call = self.calls.reserve(app);
        let record = OnceRecord { request, call: call.id, end: None };
        let made = match self.once.make(&key, wire::encode(&record, b"")).await {
            Ok(Standing::Made(made)) => made,
            Ok(Standing::Record(standing)) => return self.replay(&key, app, request, standing).await,
            Err(error) => return Err(self.not_recorded(&error)),
        };
        self.keys.meters().once(OnceResult::Made);
        let ended = self.calls.begin_reserved(&call, &caller, target, wanted, traceparent).ended().await;
        let kept = match ended.seen {
            // It may be tried again, under the same key.
            Seen::Never => self.once.remove(&key, made).await,
            Seen::Maybe | Seen::Yes => {
                let (outcome, body) = match self.may_keep(app, ended.body.len()) {
                    true => (ended.outcome.clone(), ended.body.clone()),
                    false => (Outcome::AnswerTooLarge, Bytes::new()),
                };
                let end = Some(OnceEnd { outcome, seen: ended.seen });
                self.once.change(&key, made, wire::encode(&OnceRecord { end, ..record }, &body)).await
            }
        };
        if let Err(error) = kept {
            tracing::warn!(call = %call.id, %error, "how a call under a key ended is not recorded");
        }
        Ok(Told { ended, is_replayed: false })
    }

    fn may_keep(&self, app: AppId, bytes: usize) -> bool {
        let now = Instant::now();
        bytes <= MAX_KEPT_BYTES && (0..bytes.div_ceil(1_024)).all(|_| self.kept_kib.take(app, now))
    }

    /// What a request is told whose key has a record.
    async fn replay(
        &self,
        key: &str,
        app: AppId,
        request: [u8; 32],
        standing: Bytes,
    ) -> Result<Told, Problem> {
        let meters = self.keys.meters();
        let replayed = |ended| {
            meters.once(OnceResult::Replayed);
            Ok(Told { ended, is_replayed: true })
        };
        let (record, body) = read(&standing)?;
        if record.request != request {
            meters.once(OnceResult::Conflict);
            let title = "The key was used for another call";
            let problem = Problem::new(StatusCode::CONFLICT, "idempotency_conflict", title);
            return Err(problem.expected("a key of its own for each call"));
        }
        let call = record.call;
        if let Some(end) = record.end {
            return replayed(of_record(call, end, body));
        }
        match self.calls.look(call, app).await {
            Ok(Some(Stage::Ended { ended, .. })) => return replayed(ended),
            Ok(None) => {}
            // Nobody polls the store for whoever waits: as the draft has it, he asks again.
            Ok(Some(Stage::Running)) | Err(_) => {
                meters.once(OnceResult::InProgress);
                let title = "The call that was asked for under this key has not ended";
                return Err(
                    Problem::new(StatusCode::CONFLICT, "in_progress", title).of_call(call, Seen::Maybe)
                );
            }
        }
        // Since the record was read its call may have ended, and been recorded as that.
        match self.once.read(key).await.map_err(|error| self.not_recorded(&error))? {
            Some(standing) => match read(&standing)? {
                (OnceRecord { end: Some(end), call, .. }, body) => replayed(of_record(call, end, body)),
                _ => {
                    // Who made it is gone, or could not say how it ended. It is not made again.
                    meters.once(OnceResult::Dead);
                    let (outcome, seen, body) = (Outcome::Unavailable, Seen::Maybe, Bytes::new());
                    let ended = Ended { outcome, seen, body, call: Some(call) };
                    Ok(Told { ended, is_replayed: true })
                }
            },
            // It was not seen, and the key is free again.
            None => {
                meters.once(OnceResult::InProgress);
                let title = "The call that was asked for under this key has just ended without effect";
                Err(Problem::new(StatusCode::CONFLICT, "in_progress", title).of_call(call, Seen::Never))
            }
        }
    }

    fn not_recorded(&self, error: &StoreError) -> Problem {
        self.keys.meters().once(OnceResult::Unavailable);
        tracing::warn!(%error, "a call under a key cannot be recorded, and is not made");
        unrecorded(&error.to_string())
    }
}

fn unrecorded(why: &str) -> Problem {
    let status = StatusCode::SERVICE_UNAVAILABLE;
    let problem = Problem::new(status, "unavailable", "The key cannot be recorded, so the call was not made");
    problem.expected(why)
}

fn of_record(call: CallId, end: OnceEnd, body: Bytes) -> Ended {
    Ended { outcome: end.outcome, body, call: Some(call), seen: end.seen }
}

fn read(standing: &Bytes) -> Result<(OnceRecord, Bytes), Problem> {
    wire::decode(standing).map_err(|error| {
        tracing::error!(%error, "the record of a key cannot be read");
        unrecorded("what stands there cannot be read")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;
    use rpc::Budget;

    fn shown(keys: &[&'static [u8]]) -> Result<Option<String>, ()> {
        let mut headers = HeaderMap::new();
        for key in keys {
            headers.append(KEY, HeaderValue::from_bytes(key).unwrap());
        }
        key(&headers).map(|key| key.map(str::to_owned)).map_err(|_| ())
    }

    #[test]
    fn a_key_is_one_of_visible_ascii() {
        assert_eq!(shown(&[]), Ok(None));
        for good in ["x", "\"8e03978e-40d5-43dd-bc93-6894a57f9324\"", "!~", &"x".repeat(64)] {
            let good: &'static str = good.to_owned().leak();
            assert_eq!(shown(&[good.as_bytes()]), Ok(Some(good.to_owned())));
        }
        let long: &'static str = "x".repeat(65).leak();
        for bad in [&[&b""[..]][..], &[b"a b"], &[b"\xc3\xa9"], &[long.as_bytes()], &[b"a", b"a"]] {
            assert_eq!(shown(bad), Err(()), "{bad:?}");
        }
    }

    #[test]
    fn what_is_asked_for_is_told_apart_and_no_key_is_told() {
        let wanted = Wanted {
            method: "blink".into(),
            params: Bytes::from_static(b"1"),
            timeout: Budget::from_ms(5),
            connect_timeout: Budget::from_ms(1),
            oneway: false,
        };
        let target = Target::parse("a");
        let all = [
            digest(&target, &wanted),
            digest(&Target::parse("b"), &wanted),
            digest(
                &target,
                &Wanted { method: "blin".into(), params: Bytes::from_static(b"k1"), ..wanted.clone() },
            ),
            digest(&target, &Wanted { params: Bytes::from_static(b"2"), ..wanted.clone() }),
            digest(&target, &Wanted { timeout: Budget::from_ms(6), ..wanted.clone() }),
            digest(&target, &Wanted { connect_timeout: Budget::from_ms(2), ..wanted.clone() }),
            digest(&target, &Wanted { oneway: true, ..wanted.clone() }),
        ];
        for (place, one) in all.iter().enumerate() {
            assert!(all.iter().skip(place + 1).all(|other| other != one), "{place}");
        }
        assert_eq!(digest(&target, &wanted.clone()), digest(&target, &wanted));
        let app = AppId("aa435e80-9fce-11e6-8080-808080808080".parse().unwrap());
        let at = record_key(app, "secret");
        assert!(
            at.starts_with("aa435e80-9fce-11e6-8080-808080808080.2bb80d53") && !at.contains("secret"),
            "{at}"
        );
    }
}
