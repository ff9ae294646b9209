//! What does the device read? The texts of answers and of `onMsg`, to the byte.

use bytes::{BufMut, Bytes, BytesMut};
use rpc::{Budget, DEFAULT_METHOD, DeviceId, Method, Outcome};
use serde::Serialize;

/// What a caller reads for an outcome; `body` is the answer's own text, handed on untouched.
pub fn answer(method: Method, outcome: &Outcome, body: Bytes) -> Bytes {
    match outcome {
        Outcome::Answered => body,
        Outcome::Delivered => Bytes::from_static(b"null"),
        Outcome::Denied if method == Method::GetDevices => error("Device is unassigned!"),
        Outcome::Denied => {
            error("This action is not allowed! Devices are unassigned or assigned to different customers!")
        }
        Outcome::UnknownDevice => error("Target device not found!"),
        Outcome::Offline => error("No active connection to the remote device!"),
        Outcome::TimedOut => error("Timeout while waiting response from device!"),
        Outcome::Lost => error("Connection to the remote device was lost!"),
        Outcome::Busy(_) => error("Too many requests!"),
        Outcome::TooLargeForTarget => error("Message is too large for the remote device!"),
        Outcome::AnswerTooLarge => error("Response of the remote device is too large!"),
        Outcome::AnswerInvalid => error("Response of the remote device is not valid!"),
        Outcome::Malformed(text) => error(text),
        Outcome::Unavailable => error("Internal server error!"),
    }
}

/// What a message may say beside its params: of use to firmware that cannot read a protocol's headers.
#[derive(Debug, Clone, Copy)]
pub struct Beside<'a> {
    /// Who calls, and its name, which may be empty: not told.
    pub caller: Option<(DeviceId, &'a str)>,
    /// For how long an answer is of use.
    pub expires: Budget,
}

/// What a target reads: `{"method":"onMsg","params":<body>}`, in front of it `"id"`, the call's number, where no topic
/// carries it (HTTP, CoAP), and behind it `"caller":{"id","name"}` and `"expiresMs"` where they are to be told. A
/// device calls by `onMsg` alone, an application by whatever its devices know.
pub fn on_msg(number: Option<u32>, method: &str, body: &[u8], beside: Option<&Beside<'_>>) -> Bytes {
    let id = number.map(|number| format!(r#""id":{number},"#)).unwrap_or_default();
    let front = match method {
        DEFAULT_METHOD => ["{", &id, r#""method":"onMsg","params":"#].concat(),
        other => format!(r#"{{{id}"method":{},"params":"#, serde_json::Value::from(other)),
    };
    let behind = beside.map(Beside::members).unwrap_or_default();
    let mut text = BytesMut::with_capacity(front.len() + body.len() + behind.len() + 1);
    text.put_slice(front.as_bytes());
    text.put_slice(body);
    text.put_slice(behind.as_bytes());
    text.put_u8(b'}');
    text.freeze()
}

impl Beside<'_> {
    fn members(&self) -> String {
        #[derive(Serialize)]
        struct Caller<'a> {
            id: DeviceId,
            #[serde(skip_serializing_if = "str::is_empty")]
            name: &'a str,
        }
        let caller = self.caller.and_then(|(id, name)| serde_json::to_string(&Caller { id, name }).ok());
        let caller = caller.map(|it| format!(r#","caller":{it}"#)).unwrap_or_default();
        format!(r#"{caller},"expiresMs":{}"#, self.expires.as_ms())
    }
}

/// True when a target's answer is JSON text in UTF-8, which it must be.
pub fn answer_is_json(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok())
}

/// The answer to `getTime`: milliseconds since 1970.
pub fn get_time(now_ms: u64) -> Bytes {
    format!(r#"{{"time":{now_ms}}}"#).into()
}

/// The answer to `getSessionLimits`, in the form that the ThingsBoard SDKs read: a rate is `count:seconds`,
/// and `0:0,` is none.
pub fn session_limits(
    max_payload_bytes: usize,
    max_calls_in_flight: usize,
    calls_per_second: u32,
    uplinks_per_second: u32,
) -> Bytes {
    let rate = |per_second: u32| if per_second == 0 { "0:0,".to_owned() } else { format!("{per_second}:1") };
    let limits = SessionLimits {
        max_payload_size: max_payload_bytes,
        max_inflight_messages: max_calls_in_flight,
        rate_limits: RateLimits {
            messages: rate(calls_per_second),
            telemetry_messages: rate(uplinks_per_second),
            telemetry_data_points: rate(0),
        },
    };
    serde_json::to_vec(&limits).unwrap_or_default().into()
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct SessionLimits {
    max_payload_size: usize,
    max_inflight_messages: usize,
    rate_limits: RateLimits,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RateLimits {
    messages: String,
    telemetry_messages: String,
    telemetry_data_points: String,
}

fn error(text: &str) -> Bytes {
    #[derive(Serialize)]
    struct Error<'a> {
        error: &'a str,
    }
    serde_json::to_vec(&Error { error: text }).unwrap_or_default().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::Limit;

    #[test]
    fn every_outcome_reads_as_the_contract_says() {
        let denied = "This action is not allowed! Devices are unassigned or assigned to different customers!";
        let table = [
            (Method::SendMsg, Outcome::Answered, r#"{"a" : 1}"#.to_owned()),
            (Method::SendMsg, Outcome::Delivered, "null".to_owned()),
            (Method::SendMsg, Outcome::Denied, format!(r#"{{"error":"{denied}"}}"#)),
            (Method::GetDevices, Outcome::Denied, r#"{"error":"Device is unassigned!"}"#.to_owned()),
            (Method::SendMsg, Outcome::UnknownDevice, r#"{"error":"Target device not found!"}"#.to_owned()),
            (
                Method::SendMsg,
                Outcome::Offline,
                r#"{"error":"No active connection to the remote device!"}"#.to_owned(),
            ),
            (
                Method::SendMsg,
                Outcome::TimedOut,
                r#"{"error":"Timeout while waiting response from device!"}"#.to_owned(),
            ),
            (
                Method::SendMsg,
                Outcome::Lost,
                r#"{"error":"Connection to the remote device was lost!"}"#.to_owned(),
            ),
            (Method::SendMsg, Outcome::Busy(Limit::Mailbox), r#"{"error":"Too many requests!"}"#.to_owned()),
            (
                Method::SendMsg,
                Outcome::malformed("deviceId must be a UUID"),
                r#"{"error":"Malformed request: deviceId must be a UUID"}"#.to_owned(),
            ),
            (Method::Other, Outcome::Malformed("a \"b\"".into()), r#"{"error":"a \"b\""}"#.to_owned()),
            (Method::SendMsg, Outcome::Unavailable, r#"{"error":"Internal server error!"}"#.to_owned()),
        ];
        for (method, outcome, text) in table {
            let read = answer(method, &outcome, Bytes::from_static(br#"{"a" : 1}"#));
            assert_eq!(String::from_utf8(read.to_vec()).unwrap(), text);
        }
    }

    #[test]
    fn calls_read_as_the_contract_says() {
        let body = br#"{"param1":"value1"}"#;
        assert_eq!(
            on_msg(None, DEFAULT_METHOD, body, None),
            r#"{"method":"onMsg","params":{"param1":"value1"}}"#
        );
        assert_eq!(on_msg(None, "set \"x\"", b"1", None), r#"{"method":"set \"x\"","params":1}"#);
        assert_eq!(
            on_msg(Some(1), DEFAULT_METHOD, b"null", None),
            r#"{"id":1,"method":"onMsg","params":null}"#
        );
        let id: DeviceId = "aa435e80-9fce-11e6-8080-808080808080".parse().unwrap();
        let beside = |caller| Some(Beside { caller, expires: Budget::from_ms(1875) });
        assert_eq!(
            on_msg(Some(1), DEFAULT_METHOD, b"[]", beside(Some((id, "Door \"1\""))).as_ref()),
            concat!(
                r#"{"id":1,"method":"onMsg","params":[],"#,
                r#""caller":{"id":"aa435e80-9fce-11e6-8080-808080808080","name":"Door \"1\""},"expiresMs":1875}"#
            )
        );
        assert_eq!(
            on_msg(None, DEFAULT_METHOD, b"1", beside(Some((id, ""))).as_ref()),
            r#"{"method":"onMsg","params":1,"caller":{"id":"aa435e80-9fce-11e6-8080-808080808080"},"expiresMs":1875}"#
        );
        assert_eq!(
            on_msg(None, DEFAULT_METHOD, b"1", beside(None).as_ref()),
            r#"{"method":"onMsg","params":1,"expiresMs":1875}"#
        );
        assert_eq!(get_time(1_480_000_000_000), r#"{"time":1480000000000}"#);
        assert_eq!(
            session_limits(65536, 100, 100, 0),
            concat!(
                r#"{"maxPayloadSize":65536,"maxInflightMessages":100,"#,
                r#""rateLimits":{"messages":"100:1","telemetryMessages":"0:0,","telemetryDataPoints":"0:0,"}}"#
            )
        );
    }

    #[test]
    fn an_answer_is_json_or_refused() {
        for text in ["null", " {\"a\":1}\n", "\"ü\"", "1e400"] {
            assert!(answer_is_json(text.as_bytes()), "{text}");
        }
        for text in [&b""[..], b"ok", b"{", b"1 2", b"\"\xff\""] {
            assert!(!answer_is_json(text), "{text:?}");
        }
    }
}
