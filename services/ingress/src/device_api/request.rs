//! What did the device ask for? Parses a request's text into a [`Request`], or says in words which part is wrong.

use bytes::Bytes;
use rpc::{Budget, DeviceId, Method, Outcome};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The settings that a request is checked against.
#[derive(Debug, Clone, Copy)]
pub struct ApiLimits {
    /// A call's time when it names none, in milliseconds.
    pub default_timeout_ms: u32,
    /// The longest time a call may ask for, in milliseconds.
    pub max_timeout_ms: u32,
    /// How long an offline target is waited for when the call does not say, in milliseconds.
    pub default_connect_timeout_ms: u32,
}

/// A request of the device API.
#[derive(Debug)]
pub enum Request {
    /// List the devices of the caller's customer.
    GetDevices {
        /// At most so many.
        limit: Option<u32>,
        /// Continue behind this one.
        after: Option<DeviceId>,
        /// Say which are online.
        online: bool,
    },
    /// Call a device.
    SendMsg {
        /// Whom.
        target: DeviceId,
        /// How long the whole call may take.
        timeout: Budget,
        /// How long an offline target is waited for; at most `timeout`.
        connect_timeout: Budget,
        /// No answer is wanted.
        oneway: bool,
        /// The body's own text: a part of the request's memory.
        body: Bytes,
    },
    /// Ask for the limits in force.
    GetSessionLimits,
    /// Ask for the time.
    GetTime,
}

impl Request {
    /// Which method it is.
    pub fn method(&self) -> Method {
        match self {
            Request::GetDevices { .. } => Method::GetDevices,
            Request::SendMsg { .. } => Method::SendMsg,
            Request::GetSessionLimits => Method::GetSessionLimits,
            Request::GetTime => Method::GetTime,
        }
    }
}

/// A text that is no request: what it tried to be, and the outcome that says what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MalformedRequest {
    /// The method as far as it could be told.
    pub method: Method,
    /// Always [`Outcome::Malformed`].
    pub outcome: Outcome,
    /// It is no request of the device API at all, where protocols with status codes say so. False when a request was
    /// understood and asks for what cannot be, as a timeout out of range.
    pub not_a_request: bool,
}

/// The longest unknown method name that is repeated in an answer, in characters.
const MAX_ECHOED_METHOD_CHARS: usize = 64;

/// Parses the text of a request (`{"method":…,"params":…}`; other fields are ignored).
///
/// # Errors
/// With the outcome that tells the caller which part is wrong, and what was expected.
pub fn parse(request: &Bytes, limits: &ApiLimits) -> Result<Request, MalformedRequest> {
    let other = |part: &str| malformed(Method::Other, part);
    let text = std::str::from_utf8(request).map_err(|_| other("it must be JSON in UTF-8"))?;
    let envelope: Envelope = object(text).map_err(|fault| other(fault.of("the request")))?;
    let method = envelope
        .method
        .and_then(|raw| serde_json::from_str::<String>(raw.get()).ok())
        .ok_or_else(|| other("method must be a string"))?;
    let params = envelope.params;
    match method.as_str() {
        "getDevices" => get_devices(params).map_err(|part| malformed(Method::GetDevices, part)),
        "sendMsg" => send_msg(params, request, limits),
        "getSessionLimits" => Ok(Request::GetSessionLimits),
        "getTime" => Ok(Request::GetTime),
        unknown => {
            let name: String = unknown.chars().take(MAX_ECHOED_METHOD_CHARS).collect();
            let text = format!("Method {name} is not supported!");
            let outcome = Outcome::Malformed(text.into());
            Err(MalformedRequest { method: Method::Other, outcome, not_a_request: false })
        }
    }
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow)]
    method: Option<&'a RawValue>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

#[derive(Deserialize, Default)]
struct GetDevicesParams<'a> {
    #[serde(borrow)]
    limit: Option<&'a RawValue>,
    #[serde(borrow)]
    after: Option<&'a RawValue>,
    #[serde(borrow)]
    online: Option<&'a RawValue>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SendMsgParams<'a> {
    #[serde(borrow)]
    device_id: Option<&'a RawValue>,
    #[serde(borrow)]
    timeout: Option<&'a RawValue>,
    #[serde(borrow)]
    connect_timeout: Option<&'a RawValue>,
    #[serde(borrow)]
    oneway: Option<&'a RawValue>,
    #[serde(borrow)]
    body: Option<&'a RawValue>,
}

fn get_devices(params: Option<&RawValue>) -> Result<Request, &'static str> {
    const OBJECT: &str = "params of getDevices must be an object";
    // The Arduino SDK sends the string "{}".
    let text = params.map_or("{}", RawValue::get);
    let params: GetDevicesParams = match text {
        "\"{}\"" => GetDevicesParams::default(),
        text => object(text).map_err(|_| OBJECT)?,
    };
    let limit = match params.limit {
        None => None,
        Some(raw) => match serde_json::from_str::<u32>(raw.get()) {
            Ok(limit) if limit > 0 => Some(limit),
            _ => return Err("limit must be a whole number from 1"),
        },
    };
    let after = params.after.map(device_id).transpose().map_err(|()| "after must be a UUID")?;
    let online = boolean(params.online).map_err(|()| "online must be true or false")?;
    Ok(Request::GetDevices { limit, after, online })
}

fn send_msg(
    params: Option<&RawValue>,
    request: &Bytes,
    limits: &ApiLimits,
) -> Result<Request, MalformedRequest> {
    let wrong = |part: &str| malformed(Method::SendMsg, part);
    let text = params.ok_or_else(|| wrong("params must be an object"))?.get();
    let params: SendMsgParams = object(text).map_err(|fault| wrong(fault.of("params")))?;

    let target =
        params.device_id.ok_or(()).and_then(device_id).map_err(|()| wrong("deviceId must be a UUID"))?;
    let timeout_ms = match params.timeout.map(milliseconds) {
        None => limits.default_timeout_ms,
        Some(Milliseconds::NotWhole) => return Err(wrong("timeout must be a whole number of milliseconds")),
        Some(Milliseconds::NotPositive) => return Err(said("Timeout can't be negative!")),
        Some(Milliseconds::Of(ms)) if ms <= limits.max_timeout_ms => ms,
        Some(Milliseconds::Of(_) | Milliseconds::Huge) => return Err(said("Timeout is too large!")),
    };
    let connect_timeout_ms = match params.connect_timeout.map(|raw| (milliseconds(raw), raw.get())) {
        None => limits.default_connect_timeout_ms.min(timeout_ms),
        Some((_, "0")) => 0,
        Some((Milliseconds::Of(ms), _)) if ms <= timeout_ms => ms,
        Some(_) => return Err(wrong("connectTimeout must be whole milliseconds from 0 to timeout")),
    };
    let oneway = boolean(params.oneway).map_err(|()| wrong("oneway must be true or false"))?;
    Ok(Request::SendMsg {
        target,
        timeout: Budget::from_ms(timeout_ms),
        connect_timeout: Budget::from_ms(connect_timeout_ms),
        oneway,
        body: params.body.map_or(Bytes::from_static(b"null"), |raw| request.slice_ref(raw.get().as_bytes())),
    })
}

/// What a text that should have been an object is instead.
enum NotAnObject {
    NotJson,
    Other,
}

impl NotAnObject {
    fn of(&self, part: &'static str) -> &'static str {
        match (self, part) {
            (NotAnObject::NotJson, _) => "it must be JSON in UTF-8",
            (NotAnObject::Other, "params") => "params must be an object without repeated fields",
            (NotAnObject::Other, _) => "it must be an object with method and params",
        }
    }
}

/// Reads a JSON object. Derived structs alone would also take an array of their fields.
fn object<'a, T: Deserialize<'a>>(text: &'a str) -> Result<T, NotAnObject> {
    if !text.trim_ascii_start().starts_with('{') {
        let json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        return Err(if json { NotAnObject::Other } else { NotAnObject::NotJson });
    }
    serde_json::from_str(text)
        .map_err(|error| if error.is_data() { NotAnObject::Other } else { NotAnObject::NotJson })
}

enum Milliseconds {
    Of(u32),
    NotPositive,
    Huge,
    NotWhole,
}

/// A number of milliseconds, of any size that JSON can write.
fn milliseconds(raw: &RawValue) -> Milliseconds {
    let text = raw.get();
    let digits = text.strip_prefix('-').unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Milliseconds::NotWhole;
    }
    if text.starts_with('-') || digits == "0" {
        return Milliseconds::NotPositive;
    }
    digits.parse().map_or(Milliseconds::Huge, Milliseconds::Of)
}

fn device_id(raw: &RawValue) -> Result<DeviceId, ()> {
    let text: String = serde_json::from_str(raw.get()).map_err(|_| ())?;
    text.parse().map_err(|_| ())
}

fn boolean(raw: Option<&RawValue>) -> Result<bool, ()> {
    match raw.map(RawValue::get) {
        None | Some("false") => Ok(false),
        Some("true") => Ok(true),
        Some(_) => Err(()),
    }
}

fn malformed(method: Method, part: &str) -> MalformedRequest {
    MalformedRequest { method, outcome: Outcome::malformed(part), not_a_request: true }
}

/// A message of the plugin's own, word for word.
fn said(text: &'static str) -> MalformedRequest {
    let outcome = Outcome::Malformed(text.into());
    MalformedRequest { method: Method::SendMsg, outcome, not_a_request: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: ApiLimits =
        ApiLimits { default_timeout_ms: 20_000, max_timeout_ms: 60_000, default_connect_timeout_ms: 0 };
    const TARGET: &str = "aa435e80-9fce-11e6-8080-808080808080";

    fn read(text: &str) -> Result<Request, MalformedRequest> {
        parse(&Bytes::copy_from_slice(text.as_bytes()), &LIMITS)
    }

    fn fault(text: &str) -> String {
        match read(text).unwrap_err().outcome {
            Outcome::Malformed(text) => text.into_owned(),
            outcome => panic!("{outcome:?}"),
        }
    }

    fn send(params: &str) -> String {
        format!(r#"{{"method":"sendMsg","params":{{"deviceId":"{TARGET}"{params}}}}}"#)
    }

    #[test]
    fn every_way_to_list() {
        for params in [r#","params":{}"#, "", r#","params":null"#, r#","params":"{}""#] {
            let text = format!(r#"{{"method":"getDevices"{params}}}"#);
            let request = read(&text).unwrap();
            assert!(
                matches!(request, Request::GetDevices { limit: None, after: None, online: false }),
                "{text}"
            );
        }
        let text =
            format!(r#"{{"method":"getDevices","params":{{"limit":2,"after":"{TARGET}","online":true}}}}"#);
        let request = read(&text).unwrap();
        assert!(matches!(request, Request::GetDevices { limit: Some(2), after: Some(_), online: true }));
    }

    #[test]
    fn a_call_has_its_defaults_and_its_body_untouched() {
        let text = send("");
        let Request::SendMsg { timeout, connect_timeout, oneway, body, .. } = read(&text).unwrap() else {
            panic!()
        };
        assert_eq!(
            (timeout.as_ms(), connect_timeout.as_ms(), oneway, &body[..]),
            (20_000, 0, false, &b"null"[..])
        );

        let text =
            send(r#","timeout":2000,"connectTimeout":2000,"oneway":true,"body": {"a" : 1.50,  "a":2}"#);
        let Request::SendMsg { timeout, connect_timeout, oneway, body, .. } = read(&text).unwrap() else {
            panic!()
        };
        assert_eq!((timeout.as_ms(), connect_timeout.as_ms(), oneway), (2000, 2000, true));
        assert_eq!(body, r#"{"a" : 1.50,  "a":2}"#);
    }

    #[test]
    fn a_default_connect_timeout_never_exceeds_the_calls_own_time() {
        let limits = ApiLimits { default_connect_timeout_ms: 20_000, ..LIMITS };
        let text = send(r#","timeout":100"#);
        let Request::SendMsg { connect_timeout, .. } = parse(&text.into(), &limits).unwrap() else {
            panic!()
        };
        assert_eq!(connect_timeout.as_ms(), 100);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let table = [
            ("", "Malformed request: it must be JSON in UTF-8"),
            ("{", "Malformed request: it must be JSON in UTF-8"),
            ("17", "Malformed request: it must be an object with method and params"),
            (r#"["sendMsg",{}]"#, "Malformed request: it must be an object with method and params"),
            ("{}", "Malformed request: method must be a string"),
            (r#"{"method":7}"#, "Malformed request: method must be a string"),
            (r#"{"method":"getFoo"}"#, "Method getFoo is not supported!"),
            (r#"{"method":"sendMsg"}"#, "Malformed request: params must be an object"),
            (
                r#"{"method":"sendMsg","params":[]}"#,
                "Malformed request: params must be an object without repeated fields",
            ),
            (r#"{"method":"sendMsg","params":{}}"#, "Malformed request: deviceId must be a UUID"),
            (
                r#"{"method":"sendMsg","params":{"deviceId":"A2"}}"#,
                "Malformed request: deviceId must be a UUID",
            ),
            (r#"{"method":"sendMsg","params":{"deviceId":7}}"#, "Malformed request: deviceId must be a UUID"),
            (
                r#"{"method":"getDevices","params":7}"#,
                "Malformed request: params of getDevices must be an object",
            ),
            (
                r#"{"method":"getDevices","params":{"limit":0}}"#,
                "Malformed request: limit must be a whole number from 1",
            ),
            (r#"{"method":"getDevices","params":{"after":"x"}}"#, "Malformed request: after must be a UUID"),
            (
                r#"{"method":"getDevices","params":{"online":1}}"#,
                "Malformed request: online must be true or false",
            ),
        ];
        for (text, words) in table {
            assert_eq!(fault(text), words, "{text}");
        }
        let table = [
            (r#","timeout":0"#, "Timeout can't be negative!"),
            (r#","timeout":-0"#, "Timeout can't be negative!"),
            (r#","timeout":-99999999999999999999"#, "Timeout can't be negative!"),
            (r#","timeout":60001"#, "Timeout is too large!"),
            (r#","timeout":99999999999999999999"#, "Timeout is too large!"),
            (r#","timeout":1.5"#, "Malformed request: timeout must be a whole number of milliseconds"),
            (r#","timeout":"5""#, "Malformed request: timeout must be a whole number of milliseconds"),
            (
                r#","timeout":5,"connectTimeout":6"#,
                "Malformed request: connectTimeout must be whole milliseconds from 0 to timeout",
            ),
            (
                r#","connectTimeout":-1"#,
                "Malformed request: connectTimeout must be whole milliseconds from 0 to timeout",
            ),
            (r#","oneway":"yes""#, "Malformed request: oneway must be true or false"),
        ];
        for (params, words) in table {
            assert_eq!(fault(&send(params)), words, "{params}");
        }
    }

    #[test]
    fn a_deep_body_is_carried_not_climbed() {
        let body = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
        let text = send(&format!(r#","body":{body}"#));
        assert!(matches!(read(&text), Ok(Request::SendMsg { body: b, .. }) if b == body));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes.into(), &LIMITS);
        }

        #[test]
        fn any_timeout_in_range_is_taken_as_it_is(ms in 1u32..=60_000) {
            let text = send(&format!(r#","timeout":{ms}"#));
            let Request::SendMsg { timeout, .. } = read(&text).unwrap() else { panic!() };
            prop_assert_eq!(timeout.as_ms(), ms);
        }
    }
}
