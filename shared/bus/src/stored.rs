//! How much does JetStream hold, and how much may it? As it says of each account that whoever asks may ask about.

use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use serde::{Deserialize, Serialize};

use crate::connection::Bus;

/// Whose accounts are asked for where each bucket and stream has one of its own (`deploy/nats`).
const APART: [&str; 8] = ["devices", "policies", "audit", "denials", "claims", "seen", "keys", "once"];
/// JetStream's limit that is none.
const UNLIMITED: i64 = -1;

/// What an account holds in JetStream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Stored {
    /// The bucket or stream that it is for; `all` where one account has them all.
    pub of: &'static str,
    /// Bytes in files.
    pub file_bytes: u64,
    /// Bytes that it may have there; none: as many as its servers have.
    pub max_file_bytes: Option<u64>,
    /// Bytes in memory.
    pub memory_bytes: u64,
    /// Bytes that it may have there; none: as many as its servers have.
    pub max_memory_bytes: Option<u64>,
}

/// Of all accounts whose JetStream answers within `wait`; none where this user may not ask.
pub async fn stored(bus: &Bus, wait: Duration) -> Vec<Stored> {
    let bus = bus.store();
    let apart = APART.map(|of| (of, format!("{}INFO.{of}", bus.api())));
    let all = ("all", format!("{}INFO", bus.api()));
    let asked = if bus.is_apart() { Vec::from(apart) } else { vec![all] };
    let ask = async |(of, subject)| told(of, &bus.ask(subject, Bytes::new(), wait).await.ok()?);
    join_all(asked.into_iter().map(ask)).await.into_iter().flatten().collect()
}

fn told(of: &'static str, reply: &[u8]) -> Option<Stored> {
    #[derive(Deserialize)]
    struct Limits {
        max_memory: i64,
        max_storage: i64,
    }
    #[derive(Deserialize)]
    struct Info {
        memory: u64,
        storage: u64,
        limits: Limits,
    }
    let Info { memory, storage, limits } = serde_json::from_slice(reply).ok()?;
    let limit = |bytes: i64| (bytes != UNLIMITED).then_some(u64::try_from(bytes).ok()).flatten();
    Some(Stored {
        of,
        file_bytes: storage,
        max_file_bytes: limit(limits.max_storage),
        memory_bytes: memory,
        max_memory_bytes: limit(limits.max_memory),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_is_told_with_its_limits() {
        let answer = br#"{"type":"io.nats.jetstream.api.v1.account_info_response","memory":7,"storage":900,
            "reserved_memory":0,"streams":5,"limits":{"max_memory":-1,"max_storage":1000,"max_streams":-1}}"#;
        let stored = told("claims", answer).unwrap();
        assert_eq!((stored.file_bytes, stored.max_file_bytes), (900, Some(1_000)));
        assert_eq!((stored.memory_bytes, stored.max_memory_bytes), (7, None));
        let refused =
            br#"{"type":"x","error":{"code":503,"description":"JetStream not enabled for account"}}"#;
        assert_eq!(told("claims", refused), None);
    }
}
