//! What did the device ask for? Parses a request's text into a [`Request`], or says in words which part is wrong.

use std::borrow::Cow;

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

/// Parses the text of a request (`{"method":…,"params":…}`; other fields are ignored), as lenient as the JSON reader of
/// ThingsBoard's plugin was: numbers and booleans may stand in strings, an object alone in an array, and `params` of a
/// method that needs none may be anything.
///
/// # Errors
/// With the outcome that tells the caller which part is wrong, and what was expected.
pub fn parse(request: &Bytes, limits: &ApiLimits) -> Result<Request, MalformedRequest> {
    let other = |part: &str| malformed(Method::Other, part);
    let text = std::str::from_utf8(request).map_err(|_| other("it must be JSON in UTF-8"))?;
    let envelope: Envelope = object(text).map_err(|fault| other(fault.of("the request")))?;
    let method = envelope.method.and_then(string).ok_or_else(|| other("method must be a string"))?;
    let params = envelope.params;
    match &*method {
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
    let params: GetDevicesParams = match params.map(|raw| object(alone(raw.get()))) {
        Some(Ok(params)) => params,
        Some(Err(NotAnObject::Repeated)) => return Err("params must be an object without repeated fields"),
        None | Some(Err(_)) => GetDevicesParams::default(),
    };
    let limit = match params.limit.map(RawValue::get) {
        None => None,
        // Digits are too many only for more devices than anybody has.
        Some(digits) if is_digits(digits) && digits != "0" => Some(digits.parse().unwrap_or(u32::MAX)),
        Some(_) => return Err("limit must be a whole number from 1"),
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
    let params: SendMsgParams = object(alone(text)).map_err(|fault| wrong(fault.of("params")))?;

    let target =
        params.device_id.ok_or(()).and_then(device_id).map_err(|()| wrong("deviceId must be a UUID"))?;
    let timeout_ms = match params.timeout.map(milliseconds) {
        None => limits.default_timeout_ms,
        Some(Milliseconds::NotWhole) => return Err(wrong("timeout must be a whole number of milliseconds")),
        Some(Milliseconds::Negative | Milliseconds::Of(0)) => return Err(said("Timeout can't be negative!")),
        Some(Milliseconds::Of(ms)) if ms <= limits.max_timeout_ms => ms,
        Some(Milliseconds::Of(_) | Milliseconds::Huge) => return Err(said("Timeout is too large!")),
    };
    let connect_timeout_ms = match params.connect_timeout.map(milliseconds) {
        None => limits.default_connect_timeout_ms.min(timeout_ms),
        Some(Milliseconds::Of(ms)) if ms <= timeout_ms => ms,
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
    Repeated,
    Other,
}

impl NotAnObject {
    fn of(&self, part: &'static str) -> &'static str {
        match (self, part) {
            (NotAnObject::NotJson, _) => "it must be JSON in UTF-8",
            (NotAnObject::Repeated | NotAnObject::Other, "params") => {
                "params must be an object without repeated fields"
            }
            (NotAnObject::Repeated | NotAnObject::Other, _) => "it must be an object with method and params",
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
        .map_err(|error| if error.is_data() { NotAnObject::Repeated } else { NotAnObject::NotJson })
}

/// What stands alone in an array, as ThingsBoard's Arduino SDK sends `params`; else the text itself.
fn alone(text: &str) -> &str {
    if !text.trim_ascii_start().starts_with('[') {
        return text;
    }
    match serde_json::from_str::<(&RawValue,)>(text) {
        Ok((only,)) => only.get(),
        Err(_) => text,
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Milliseconds {
    Of(u32),
    Negative,
    Huge,
    NotWhole,
}

/// A number of milliseconds of any size, in digits or in a string, with a fraction and an exponent where these leave it
/// whole: `2000`, `2000.0`, `2e3`, `"2000"`.
fn milliseconds(raw: &RawValue) -> Milliseconds {
    // As nearly all write it; nine digits are a `u32`.
    if raw.get().len() <= 9 && is_digits(raw.get()) {
        return raw.get().parse().map_or(Milliseconds::Huge, Milliseconds::Of);
    }
    let text = string(raw).unwrap_or(Cow::Borrowed(raw.get()));
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent)),
        None => (&*text, None),
    };
    let (negative, mantissa) = signed(mantissa);
    let (whole, fraction) =
        mantissa.split_once('.').map_or((mantissa, None), |(whole, it)| (whole, Some(it)));
    let (exponent_negative, exponent) = exponent.map_or((false, "0"), signed);
    if ![whole, fraction.unwrap_or("0"), exponent].iter().all(|it| is_digits(it)) {
        return Milliseconds::NotWhole;
    }
    // The decimal point moves right by the exponent: exact for any number that a message can hold.
    let digits = format!("{whole}{}", fraction.unwrap_or_default());
    let significant = digits.trim_start_matches('0').trim_end_matches('0');
    if significant.is_empty() {
        return Milliseconds::Of(0);
    }
    let exponent = exponent.parse::<i64>().unwrap_or(i64::MAX);
    let exponent = if exponent_negative { -exponent } else { exponent };
    let behind_point = fraction.map_or(0, str::len) as i64;
    let zeros_cut = (digits.len() - digits.trim_end_matches('0').len()) as i64;
    let zeros = exponent.saturating_sub(behind_point).saturating_add(zeros_cut);
    if zeros < 0 {
        return Milliseconds::NotWhole;
    }
    if negative {
        return Milliseconds::Negative;
    }
    // 10 digits hold every u32.
    if significant.len() as i64 > 10 || zeros > 10 {
        return Milliseconds::Huge;
    }
    let zeros = usize::try_from(zeros).unwrap_or_default();
    format!("{significant}{:0<zeros$}", "").parse().map_or(Milliseconds::Huge, Milliseconds::Of)
}

fn signed(number: &str) -> (bool, &str) {
    match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    }
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn device_id(raw: &RawValue) -> Result<DeviceId, ()> {
    string(raw).ok_or(())?.parse().map_err(|_| ())
}

/// What a JSON string says, none for any other value. Without an escape in it, no copy is made.
fn string(raw: &RawValue) -> Option<Cow<'_, str>> {
    let inside = raw.get().strip_prefix('"')?.strip_suffix('"')?;
    // It has been read as JSON: without an escape it says what stands there.
    match inside.contains('\\') {
        true => serde_json::from_str(raw.get()).ok().map(Cow::Owned),
        false => Some(Cow::Borrowed(inside)),
    }
}

fn boolean(raw: Option<&RawValue>) -> Result<bool, ()> {
    match raw.map(RawValue::get) {
        None | Some("false" | r#""false""#) => Ok(false),
        Some("true" | r#""true""#) => Ok(true),
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
        for limit in ["4294967295", "4294967296", "18446744073709551616", &"9".repeat(400)] {
            let request =
                read(&format!(r#"{{"method":"getDevices","params":{{"limit":{limit}}}}}"#)).unwrap();
            assert!(matches!(request, Request::GetDevices { limit: Some(u32::MAX), .. }), "{limit}");
        }
    }

    #[test]
    fn params_that_are_no_object_are_not_looked_at_where_none_are_needed() {
        let mut all = vec!["".to_owned()];
        for params in [r#""""#, r#""{}""#, "null", "7", "[]", "[1,2]", "[{}]", "[{},{}]", "{}", r#"{"x":[]}"#]
        {
            all.push(format!(r#","params":{params}"#));
        }
        for params in all {
            let read = |method: &str| read(&format!(r#"{{"method":"{method}"{params}}}"#)).unwrap();
            let list = read("getDevices");
            assert!(
                matches!(list, Request::GetDevices { limit: None, after: None, online: false }),
                "{params}"
            );
            assert!(matches!(read("getTime"), Request::GetTime), "{params}");
            assert!(matches!(read("getSessionLimits"), Request::GetSessionLimits), "{params}");
        }
    }

    #[test]
    fn one_object_in_an_array_is_that_object() {
        let request = read(r#"{"method":"getDevices","params":[ {"limit":2,"online":"true"} ]}"#).unwrap();
        assert!(matches!(request, Request::GetDevices { limit: Some(2), after: None, online: true }));
        let text =
            format!(r#"{{"method":"sendMsg","params":[{{"deviceId":"{TARGET}","body":[{{"a" : 1}}]}}]}}"#);
        let Request::SendMsg { body, .. } = read(&text).unwrap() else { panic!() };
        assert_eq!(body, r#"[{"a" : 1}]"#, "a body is the caller's own");
    }

    #[test]
    fn forms_of_milliseconds_and_booleans() {
        let timeout = |written: &str| match read(&send(&format!(r#","timeout":{written}"#))) {
            Ok(Request::SendMsg { timeout, .. }) => Ok(timeout.as_ms()),
            Ok(_) => panic!("{written}"),
            Err(MalformedRequest { outcome: Outcome::Malformed(text), .. }) => Err(text.into_owned()),
            Err(fault) => panic!("{fault:?}"),
        };
        for (written, ms) in [
            ("2000", 2000),
            ("2000.0", 2000),
            ("2000.000000000000000000000000000000000000", 2000),
            ("2e3", 2000),
            ("2E+3", 2000),
            ("0.2e4", 2000),
            ("1.5e3", 1500),
            ("20000e-1", 2000),
            ("0.00000000000000000002e23", 2000),
            ("6e4", 60_000),
            (r#""2000""#, 2000),
            (r#""2e3""#, 2000),
            (r#""2000.0""#, 2000),
            (r#""+0002000""#, 2000),
            (r#""\u0032000""#, 2000),
        ] {
            assert_eq!(timeout(written), Ok(ms), "{written}");
        }
        let words = "Malformed request: timeout must be a whole number of milliseconds";
        for written in [
            "1.5",
            "1e-1",
            "0.2e3000000000000000000000000e",
            "1e-99999999999999999999999",
            "-1.5",
            r#""""#,
            r#"" 5""#,
            r#""5 ""#,
            r#""5ms""#,
            r#""1_000""#,
            r#""0x10""#,
            r#""--5""#,
            r#""5.""#,
            r#"".5""#,
            r#""5e""#,
            r#""e5""#,
            r#""1e5e5""#,
            r#""1.2.3""#,
            r#""NaN""#,
            r#""Infinity""#,
            r#""١""#,
            "true",
            "[5]",
            "{}",
        ] {
            // A text that is no JSON at all is told so instead.
            let fault = timeout(written).unwrap_err();
            assert!(fault == words || fault.contains("it must be JSON"), "{written}: {fault}");
        }
        for written in
            ["0", "-0", "0.0", "0e9", "-5", "-5.0", "-1e99999999999999999999", r#""-2000""#, r#""0""#]
        {
            assert_eq!(timeout(written), Err("Timeout can't be negative!".to_owned()), "{written}");
        }
        for written in [
            "60001",
            "60000.0e1",
            "4294967296",
            "18446744073709551617",
            "1e10",
            "1e400",
            "1e9223372036854775807",
            "1e99999999999999999999",
            r#""99999999999999999999""#,
        ] {
            assert_eq!(timeout(written), Err("Timeout is too large!".to_owned()), "{written}");
        }
        for (written, oneway) in
            [("true", true), ("false", false), (r#""true""#, true), (r#""false""#, false)]
        {
            let text = send(&format!(r#","oneway":{written}"#));
            assert!(
                matches!(read(&text), Ok(Request::SendMsg { oneway: it, .. }) if it == oneway),
                "{written}"
            );
        }
        for (written, ms) in [("0", 0), ("0.0", 0), (r#""0""#, 0), ("2e3", 2000), (r#""2000""#, 2000)] {
            let text = send(&format!(r#","timeout":2000,"connectTimeout":{written}"#));
            let Request::SendMsg { connect_timeout, .. } = read(&text).unwrap() else { panic!() };
            assert_eq!(connect_timeout.as_ms(), ms, "{written}");
        }
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
                r#"{"method":"sendMsg","params":[{},{}]}"#,
                "Malformed request: params must be an object without repeated fields",
            ),
            (
                r#"{"method":"getDevices","params":{"limit":1,"limit":2}}"#,
                "Malformed request: params must be an object without repeated fields",
            ),
            (
                r#"{"method":"getDevices","params":{"limit":0}}"#,
                "Malformed request: limit must be a whole number from 1",
            ),
            (
                r#"{"method":"getDevices","params":{"limit":-4294967296}}"#,
                "Malformed request: limit must be a whole number from 1",
            ),
            (
                r#"{"method":"getDevices","params":{"limit":1.5}}"#,
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
            (r#","timeout":"soon""#, "Malformed request: timeout must be a whole number of milliseconds"),
            (
                r#","connectTimeout":0.5"#,
                "Malformed request: connectTimeout must be whole milliseconds from 0 to timeout",
            ),
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

        #[test]
        fn a_number_reads_the_same_wherever_its_point_stands(ms in 1u32.., shift in 0usize..12) {
            let raw = |text: String| RawValue::from_string(text).unwrap();
            let digits = format!("{ms:0>12}");
            let (whole, fraction) = digits.split_at(12 - shift);
            for text in [
                format!("\"{whole}.{fraction}0e{shift}\""),
                format!("{ms}{:0<shift$}e-{shift}", ""),
                format!("{ms}"),
            ] {
                if text.starts_with("\".") {
                    continue;
                }
                prop_assert_eq!(milliseconds(&raw(text)), Milliseconds::Of(ms));
            }
        }
    }
}
