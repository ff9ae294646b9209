//! What is an external decision point asked, and what does its answer mean? Pure. Both are the documents of AuthZEN's
//! Access Evaluation API (Authorization API 1.0 §6), over NATS as over HTTP.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use rpc::{CustomerId, DeviceId, TenantId};
use serde::{Deserialize, Serialize};

use crate::policy::{Action, Context, Facts};

/// The longest answer that is read.
pub const MAX_ANSWER_BYTES: usize = 16_384;
/// For how long an answer may hold at most.
pub const MAX_TTL: Duration = Duration::from_secs(3_600);
/// Of a reason so many characters are kept.
const MAX_REASON_CHARS: usize = 200;

/// Questions of one class have one answer: they differ in nothing but size and time.
pub type Class = [u8; 32];

/// A question as it is sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The JSON document.
    pub message: Bytes,
    /// What an answer that holds for a while is remembered by.
    pub class: Class,
}

/// A decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Whether the call may go on.
    pub is_allowed: bool,
    /// For how long that holds for all questions of the class; zero: for this one alone.
    pub ttl: Duration,
    /// Why, in the point's words; may be empty.
    pub reason: String,
}

#[derive(Serialize)]
struct Evaluation<'a> {
    subject: Entity<'a>,
    action: Verb<'a>,
    resource: Entity<'a>,
    context: Circumstances,
}

#[derive(Serialize)]
struct Entity<'a> {
    r#type: &'static str,
    id: DeviceId,
    properties: Properties<'a>,
}

#[derive(Serialize)]
struct Properties<'a> {
    tenant: TenantId,
    customer: Option<CustomerId>,
    name: &'a str,
    r#type: &'a str,
    labels: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Verb<'a> {
    name: &'static str,
    properties: Method<'a>,
}

#[derive(Serialize)]
struct Method<'a> {
    method: &'a str,
    protocol: &'a str,
    oneway: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Circumstances {
    hour: u8,
    weekday: u8,
    policy_version: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size_bytes: Option<u32>,
}

impl<'a> Entity<'a> {
    fn of(tenant: TenantId, facts: &'a Facts) -> Self {
        let Facts { id, name, kind, customer, labels } = facts;
        let properties = Properties { tenant, customer: *customer, name, r#type: kind, labels };
        Entity { r#type: "device", id: *id, properties }
    }
}

impl Question {
    /// Of a call that the policies permit.
    pub fn of(tenant: TenantId, version: u64, caller: &Facts, target: &Facts, context: &Context) -> Question {
        let Context { ref method, protocol, oneway, timeout_ms, size_bytes, hour, weekday } = *context;
        let mut evaluation = Evaluation {
            subject: Entity::of(tenant, caller),
            action: Verb { name: Action::Call.as_str(), properties: Method { method, protocol, oneway } },
            resource: Entity::of(tenant, target),
            context: Circumstances {
                hour,
                weekday,
                policy_version: version,
                timeout_ms: None,
                size_bytes: None,
            },
        };
        // Writing to memory cannot fail, and every key is a text.
        let class = blake3::hash(&serde_json::to_vec(&evaluation).unwrap_or_default()).into();
        evaluation.context.timeout_ms = Some(timeout_ms);
        evaluation.context.size_bytes = Some(size_bytes);
        Question { message: serde_json::to_vec(&evaluation).unwrap_or_default().into(), class }
    }
}

impl Answer {
    /// Reads an answer (§6.2). None if it is none: a decision is a boolean, and nothing else stands for one.
    pub fn read(message: &[u8]) -> Option<Answer> {
        #[derive(Deserialize)]
        struct Response {
            decision: bool,
            #[serde(default)]
            context: Option<serde_json::Map<String, serde_json::Value>>,
        }
        if message.len() > MAX_ANSWER_BYTES {
            return None;
        }
        let Response { decision, context } = serde_json::from_slice(message).ok()?;
        let context = context.unwrap_or_default();
        let ttl_ms = match context.get("ttl_ms") {
            None => 0,
            Some(ttl_ms) => ttl_ms.as_u64()?,
        };
        // What the standard's own examples call a reason for administrators is an object of texts by language.
        let for_administrators = || context.get("reason_admin")?.as_object()?.values().next()?.as_str();
        let reason = context.get("reason").and_then(|reason| reason.as_str()).or_else(for_administrators);
        let reason = reason.unwrap_or_default().chars().filter(|letter| !letter.is_control());
        Some(Answer {
            is_allowed: decision,
            ttl: Duration::from_millis(ttl_ms).min(MAX_TTL),
            reason: reason.take(MAX_REASON_CHARS).collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use uuid::Uuid;

    fn facts(number: u128, label: &str) -> Facts {
        Facts {
            id: DeviceId(Uuid::from_u128(number)),
            name: format!("Device {number}").into(),
            kind: "lamp".into(),
            customer: Some(CustomerId(Uuid::from_u128(5))),
            labels: [("room".to_owned(), label.to_owned())].into(),
        }
    }

    fn question(label: &str, context: Context) -> Question {
        Question::of(TenantId(Uuid::from_u128(7)), 3, &facts(1, label), &facts(2, "b"), &context)
    }

    fn noon() -> Context {
        Context::of_call(true, 4_000, 17, 1_795_694_400, 0)
    }

    #[test]
    fn a_question_is_an_access_evaluation_request() {
        let entity = |id: &str, name: &str, room: &str| {
            json!({"type": "device", "id": id, "properties": {
                "tenant": "00000000-0000-0000-0000-000000000007",
                "customer": "00000000-0000-0000-0000-000000000005", "name": name, "type": "lamp",
                "labels": {"room": room}}})
        };
        let asked: Value = serde_json::from_slice(&question("a", noon()).message).unwrap();
        assert_eq!(
            asked,
            json!({
                "subject": entity("00000000-0000-0000-0000-000000000001", "Device 1", "a"),
                "action": {"name": "call", "properties": {"method": "sendMsg", "protocol": "", "oneway": true}},
                "resource": entity("00000000-0000-0000-0000-000000000002", "Device 2", "b"),
                "context": {"hour": 12, "weekday": 4, "policyVersion": 3, "timeoutMs": 4000, "sizeBytes": 17},
            })
        );
    }

    #[test]
    fn a_class_is_all_but_size_and_time() {
        let class = |label: &str, context: Context| question(label, context).class;
        let known = class("a", noon());
        assert_eq!(class("a", Context { timeout_ms: 1, size_bytes: 9_000, ..noon() }), known);
        for other in [
            class("b", noon()),
            class("a", Context { oneway: false, ..noon() }),
            class("a", Context { hour: 13, ..noon() }),
            class("a", Context { weekday: 1, ..noon() }),
            Question::of(TenantId(Uuid::from_u128(7)), 4, &facts(1, "a"), &facts(2, "b"), &noon()).class,
            Question::of(TenantId(Uuid::from_u128(7)), 3, &facts(2, "b"), &facts(1, "a"), &noon()).class,
        ] {
            assert_ne!(other, known);
        }
    }

    #[test]
    fn an_answer_is_a_boolean_or_none() {
        let read = |text: &str| Answer::read(text.as_bytes());
        let answer = |is_allowed, ttl_ms, reason: &str| {
            Some(Answer { is_allowed, ttl: Duration::from_millis(ttl_ms), reason: reason.to_owned() })
        };
        for (text, meant) in [
            (r#"{"decision":true}"#, answer(true, 0, "")),
            (r#"{"decision":false,"context":null,"more":1}"#, answer(false, 0, "")),
            (r#"{"decision":true,"context":{"ttl_ms":500,"reason":"fine\n"}}"#, answer(true, 500, "fine")),
            (r#"{"decision":false,"context":{"id":"0","reason_admin":{"en":"no"}}}"#, answer(false, 0, "no")),
            (r#"{"decision":true,"context":{"ttl_ms":99999999999}}"#, answer(true, 3_600_000, "")),
        ] {
            assert_eq!(read(text), meant, "{text}");
        }
        for text in [
            "",
            "true",
            "[]",
            "{}",
            r#"{"decision":"allow"}"#,
            r#"{"decision":1}"#,
            r#"{"decision":null}"#,
            r#"{"decision":true,"decision":false}"#,
            r#"{"decision":true}x"#,
            r#"{"Decision":true}"#,
            r#"{"decision":true,"context":[]}"#,
            r#"{"decision":true,"context":{"ttl_ms":-1}}"#,
            r#"{"decision":true,"context":{"ttl_ms":"5"}}"#,
            r#"{"evaluations":[{"decision":true}]}"#,
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read(&format!(r#"{{"decision":true,"x":"{}"}}"#, "x".repeat(MAX_ANSWER_BYTES))), None);
    }

    proptest! {
        /// Whatever comes back, only a document that says true allows.
        #[test]
        fn nothing_but_true_allows(
            decision in r#"(true|false|1|0|"true"|null|\[true\]|.{0,4})"#,
            context in r#"(,"context":(\{("reason":".{0,8}")?\}|null|true|.{0,4}))?"#,
        ) {
            let text = format!("{{\"decision\":{decision}{context}}}");
            if let Some(answer) = Answer::read(text.as_bytes()) {
                prop_assert_eq!(answer.is_allowed, decision.trim() == "true");
            }
        }
    }
}
