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
    match code {
        STREAM_NOT_FOUND => StoreError::Missing(name.to_owned()),
        WRONG_LAST_SEQUENCE | WRONG_LAST_SEQUENCE_UNNAMED => StoreError::Contended,
        _ => StoreError::Refused {
            code,
            description: error.get("description").and_then(Value::as_str).unwrap_or_default().to_owned(),
        },
    }
}

pub(crate) fn unreadable(error: &dyn std::fmt::Display) -> StoreError {
    StoreError::Unreadable(error.to_string())
}
