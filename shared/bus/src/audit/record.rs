//! What does a record of the audit say? Who did what, from where and why; never a body, never a token.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rpc::{DeviceId, TenantId};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The longest text in a record, in characters; what is longer is cut.
pub const MAX_TEXT_CHARS: usize = 500;
/// The most devices that one record names.
pub const MAX_DEVICES: usize = 256;

/// The tenant of what has none: a token that nobody has, a caller that is gone.
pub const NO_TENANT: TenantId = TenantId(Uuid::nil());

/// What happened, as its writer tells it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Entry {
    /// What kind of thing: words with dots, the general one first, as in `device.rename`.
    pub kind: String,
    /// Who, in his own words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub who: String,
    /// From where: a node, or a machine and a process.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub from: String,
    /// Which devices it is about, the caller first; at most [`MAX_DEVICES`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceId>,
    /// What, in words.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub what: String,
    /// The version of the tenant's policies that decided, or that became live; 0: the built-in rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
    /// How many like it came before and have no record of their own.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

/// An entry in its place in its tenant's chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its place in the chain, from 1.
    pub number: u64,
    /// Its own, so that a write whose answer was lost is not written twice.
    pub id: Uuid,
    /// Whose chain.
    pub tenant: TenantId,
    /// When, in milliseconds since 1970 on its writer's clock.
    pub at_ms: u64,
    /// The NATS user that wrote it, as its subject has it: NATS lets nobody write in another's name.
    pub user: String,
    /// What happened.
    #[serde(flatten)]
    pub entry: Entry,
    /// The record before it; none for the first.
    pub previous: Option<Previous>,
}

/// What a record says of the one before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Previous {
    /// SHA-256 of its bytes as they are stored, in hexadecimal.
    pub hash: String,
    /// Its place in the stream.
    pub sequence: u64,
    /// Its time.
    pub at_ms: u64,
}

impl Entry {
    /// Of a kind, about devices.
    pub fn new(kind: &str, devices: impl IntoIterator<Item = DeviceId>) -> Self {
        Entry { kind: kind.to_owned(), devices: devices.into_iter().collect(), ..Entry::default() }
    }

    /// Whether it is of that kind, or of one below it: `device` has `device.rename`.
    pub fn is_of(&self, kind: &str) -> bool {
        self.kind.strip_prefix(kind).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    }

    /// With every text and list within its limit.
    pub(super) fn bounded(mut self) -> Self {
        for text in [&mut self.kind, &mut self.who, &mut self.from, &mut self.what, &mut self.why] {
            if let Some((end, _)) = text.char_indices().nth(MAX_TEXT_CHARS) {
                text.truncate(end);
            }
        }
        self.devices.truncate(MAX_DEVICES);
        self
    }
}

/// What the next record will say of these bytes.
pub fn hash(record: &[u8]) -> String {
    Sha256::digest(record).iter().fold(String::with_capacity(64), |mut hex, byte| {
        // Writing to a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

/// As whom a process writes: its NATS user, or the name in its credentials, as a token of a subject; without either,
/// `nobody`.
pub fn user_of(nats: &boot::config::Nats) -> String {
    let named = nats.credentials_file.as_ref().and_then(|file| name_in(&std::fs::read_to_string(file).ok()?));
    let is_plain = |letter: char| letter.is_ascii_alphanumeric() || letter == '-' || letter == '_';
    match nats.user.clone().or(named) {
        Some(user) if !user.is_empty() => {
            user.chars().map(|letter| if is_plain(letter) { letter } else { '_' }).collect()
        }
        _ => "nobody".to_owned(),
    }
}

/// The user that a NATS credentials file is for: the name in its JWT.
fn name_in(credentials: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        name: String,
    }
    let (_, rest) = credentials.split_once("-----BEGIN NATS USER JWT-----")?;
    let claims = rest.trim_start().split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    serde_json::from_slice::<Claims>(&claims).ok().map(|claims| claims.name)
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if hands a reference")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_those_below_it() {
        let entry = Entry::new("device.rename", []);
        assert!(["device", "device.rename"].iter().all(|kind| entry.is_of(kind)));
        assert!(
            ["dev", "device.re", "rename", "device.rename.more", "customer"]
                .iter()
                .all(|kind| !entry.is_of(kind))
        );
    }

    #[test]
    fn no_record_is_longer_than_its_limits() {
        let long = "é".repeat(10_000);
        let entry = Entry {
            kind: long.clone(),
            who: long.clone(),
            from: long.clone(),
            what: long.clone(),
            why: long,
            ..Entry::new("", (0..10_000).map(|number| DeviceId(Uuid::from_u128(number))))
        };
        let bounded = entry.bounded();
        assert_eq!((bounded.who.chars().count(), bounded.devices.len()), (MAX_TEXT_CHARS, MAX_DEVICES));
        assert!(serde_json::to_vec(&bounded).unwrap().len() < 16_384);
    }

    #[test]
    fn a_user_is_one_token_of_a_subject() {
        let of = |user: Option<&str>| {
            user_of(&boot::config::Nats { user: user.map(str::to_owned), ..boot::Settings::default().nats })
        };
        assert_eq!(of(Some("ann-2")), "ann-2");
        assert_eq!(of(Some("a.b > *é")), "a_b_____");
        assert_eq!((of(None), of(Some(""))), ("nobody".into(), "nobody".into()));
        // {"name":"ann","nats":{}}
        let credentials = "-----BEGIN NATS USER JWT-----\ne30.eyJuYW1lIjoiYW5uIiwibmF0cyI6e319.c2ln\n------END NATS \
            USER JWT------\n";
        assert_eq!(name_in(credentials), Some("ann".to_owned()));
        assert_eq!(name_in("nonsense"), None);
    }
}
