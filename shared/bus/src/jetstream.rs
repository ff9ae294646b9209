//! How is JetStream asked, and what do its refusals mean? Its API in its own messages, for buckets and streams alike.

use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Value;

use crate::connection::Bus;
use crate::errors::StoreError;

pub(crate) const STREAM_NAME_IN_USE: u64 = 10058;
pub(crate) const NO_MESSAGE_FOUND: u64 = 10037;
const STREAM_NOT_FOUND: u64 = 10059;
const WRONG_LAST_SEQUENCE: u64 = 10071;
/// The same, said by a cluster while another write of that key is under way.
const WRONG_LAST_SEQUENCE_UNNAMED: u64 = 10164;

const ACCOUNT_LIMIT: u64 = 10002;
const INSUFFICIENT_RESOURCES: u64 = 10023;
const INSUFFICIENT_MEMORY: u64 = 10028;
const INSUFFICIENT_STORAGE: u64 = 10047;
/// Whatever the files said; words alone tell what.
const STORE_FAILED: u64 = 10077;
/// Of the stream's own limits, and of the disk.
const FULL: [&str; 3] = ["maximum bytes exceeded", "maximum messages exceeded", "no space left"];

/// One request to JetStream's API about the bucket or stream `name`; `operation` is the subject behind
/// the API's prefix.
pub(crate) async fn administer(
    bus: &Bus,
    name: &str,
    operation: &str,
    request: &Value,
    wait: Duration,
) -> Result<Value, StoreError> {
    let request = match request {
        Value::Null => Bytes::new(),
        request => Bytes::from(request.to_string()),
    };
    let reply = bus.ask(format!("{}{operation}", bus.api()), request, wait).await?;
    let reply: Value = serde_json::from_slice(&reply).map_err(|error| unreadable(&error))?;
    match reply.get("error") {
        None => Ok(reply),
        Some(error) => Err(refusal(name, error)),
    }
}

/// The answer to a write.
pub(crate) struct Acknowledged {
    pub(crate) sequence: u64,
    /// A message of that `Nats-Msg-Id` stands there already, at that sequence.
    pub(crate) is_duplicate: bool,
}

/// Reads the answer to a write.
pub(crate) fn acknowledged(name: &str, reply: &[u8]) -> Result<Acknowledged, StoreError> {
    #[derive(Deserialize)]
    struct Acknowledgement {
        error: Option<Value>,
        seq: Option<u64>,
        #[serde(default)]
        duplicate: bool,
    }
    let ack: Acknowledgement = serde_json::from_slice(reply).map_err(|error| unreadable(&error))?;
    match (ack.error, ack.seq) {
        (Some(error), _) => Err(refusal(name, &error)),
        (None, Some(sequence)) => Ok(Acknowledged { sequence, is_duplicate: ack.duplicate }),
        (None, None) => Err(StoreError::Unreadable("an acknowledgement without a number".into())),
    }
}

/// What an error of JetStream means.
pub(crate) fn refusal(name: &str, error: &Value) -> StoreError {
    let code = error.get("err_code").and_then(Value::as_u64).unwrap_or_default();
    let description = error.get("description").and_then(Value::as_str).unwrap_or_default().to_owned();
    match code {
        STREAM_NOT_FOUND => StoreError::Missing(name.to_owned()),
        WRONG_LAST_SEQUENCE | WRONG_LAST_SEQUENCE_UNNAMED => StoreError::Contended,
        ACCOUNT_LIMIT | INSUFFICIENT_RESOURCES | INSUFFICIENT_MEMORY | INSUFFICIENT_STORAGE => {
            StoreError::Full { description }
        }
        STORE_FAILED if FULL.iter().any(|words| description.contains(words)) => {
            StoreError::Full { description }
        }
        _ => StoreError::Refused { code, description },
    }
}

pub(crate) fn unreadable(error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unreadable(error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_store_without_room_is_told_from_one_that_refuses() {
        let told = |code: u64, description: &str| match refusal(
            "swb_devices",
            &json!({ "err_code": code, "description": description }),
        ) {
            StoreError::Full { .. } => "full",
            StoreError::Refused { .. } => "refused",
            StoreError::Missing(_) => "missing",
            StoreError::Contended => "contended",
            _ => "other",
        };
        for (code, description, expected) in [
            (10_002, "resource limits exceeded for account", "full"),
            (10_023, "insufficient resources", "full"),
            (10_028, "insufficient memory resources available", "full"),
            (10_047, "insufficient storage resources available", "full"),
            (10_077, "maximum bytes exceeded", "full"),
            (10_077, "write /data/1.blk: no space left on device", "full"),
            (10_077, "msg too large", "refused"),
            (10_039, "jetstream not enabled for account", "refused"),
            (10_059, "stream not found", "missing"),
            (10_071, "wrong last sequence: 3", "contended"),
        ] {
            assert_eq!(told(code, description), expected, "{code} {description}");
        }
    }
}
