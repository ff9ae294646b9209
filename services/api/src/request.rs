//! What does an application want? The bodies of both faces, read to what a call needs. Pure.

use std::borrow::Cow;
use std::collections::BTreeMap;

use bus::registry::check_method;
use bytes::Bytes;
use rpc::{Budget, DEFAULT_METHOD};
use serde_json::value::RawValue;

use crate::answer::Problem;

/// A parameter of a query: its name, and its value as forms write it, decoded.
///
/// # Errors
/// When it is not percent-encoded UTF-8.
pub fn decoded(pair: &str) -> Result<(&str, String), Problem> {
    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
    let value = value.replace('+', " ");
    let value = percent_encoding::percent_decode_str(&value).decode_utf8();
    let value = value.map_err(|_| Problem::parameter(name, "percent-encoded UTF-8"))?;
    Ok((name, value.into_owned()))
}

/// How long calls may take.
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    /// Milliseconds of a call that names no time.
    pub default_timeout_ms: u32,
    /// Milliseconds that one may ask for.
    pub max_timeout_ms: u32,
    /// Milliseconds that one waits for its target that does not say.
    pub default_connect_timeout_ms: u32,
}

impl From<&boot::config::DeviceApi> for CallLimits {
    fn from(settings: &boot::config::DeviceApi) -> Self {
        CallLimits {
            default_timeout_ms: settings.default_timeout_ms,
            max_timeout_ms: settings.max_timeout_ms,
            default_connect_timeout_ms: settings.default_connect_timeout_ms,
        }
    }
}

/// A call, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What the target reads as `method`.
    pub method: String,
    /// What it reads as `params`, byte for byte.
    pub params: Bytes,
    /// How long it may take.
    pub timeout: Budget,
    /// How long its target may be waited for.
    pub connect_timeout: Budget,
    /// No answer is wanted.
    pub oneway: bool,
}

/// Why a body is no call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// It is no JSON object.
    NotAnObject,
    /// A member is not what it must be.
    Member {
        /// Which.
        name: String,
        /// What it must be.
        expected: Cow<'static, str>,
    },
}

impl Fault {
    fn member(name: &str, expected: impl Into<Cow<'static, str>>) -> Self {
        Fault::Member { name: name.to_owned(), expected: expected.into() }
    }
}

type Members<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// Reads the body of `POST /v1/devices/{device}/calls`.
///
/// # Errors
/// With the first member that is wrong, or unknown.
pub fn call(body: &[u8], limits: &CallLimits) -> Result<Wanted, Fault> {
    const KNOWN: [&str; 5] = ["method", "params", "timeout", "connectTimeout", "oneway"];
    let members = members(body)?;
    if let Some(unknown) = members.keys().find(|name| !KNOWN.contains(&&***name)) {
        return Err(Fault::member(unknown, format!("left out: a call has {}", KNOWN.join(", "))));
    }
    let method = method(&members)?.unwrap_or_else(|| DEFAULT_METHOD.to_owned());
    let timeout = number(&members, "timeout", 1, limits.max_timeout_ms)?.unwrap_or(limits.default_timeout_ms);
    let connect_timeout = number(&members, "connectTimeout", 0, timeout)?
        .unwrap_or(limits.default_connect_timeout_ms.min(timeout));
    Ok(Wanted {
        method,
        params: params(&members),
        timeout: Budget::from_ms(timeout),
        connect_timeout: Budget::from_ms(connect_timeout),
        oneway: read(&members, "oneway", "true or false")?.unwrap_or(false),
    })
}

/// Reads the body of ThingsBoard's `POST /api/rpc/…`; `now_ms` is milliseconds since 1970.
///
/// # Errors
/// With the first member that is wrong. Unknown ones are passed over, as there.
pub fn thingsboard(body: &[u8], oneway: bool, limits: &CallLimits, now_ms: u64) -> Result<Wanted, Fault> {
    let members = members(body)?;
    let method = method(&members)?.ok_or_else(|| Fault::member("method", "there"))?;
    if read(&members, "persistent", "true or false")?.unwrap_or(false) {
        return Err(Fault::member("persistent", "false: calls are not kept for devices that are offline"));
    }
    // ThingsBoard's own default, however long calls may take here.
    let default_ms = THINGSBOARD_TIMEOUT_MS.min(limits.max_timeout_ms);
    let asked = number(&members, "timeout", 1, limits.max_timeout_ms)?;
    let timeout = match read::<u64>(&members, "expirationTime", "milliseconds since 1970")? {
        None => asked.unwrap_or(default_ms),
        Some(end_ms) => match u32::try_from(end_ms.saturating_sub(now_ms)) {
            Ok(0) => return Err(Fault::member("expirationTime", "in the future")),
            Ok(left_ms) if left_ms <= limits.max_timeout_ms => left_ms,
            _ => {
                let expected = format!("at most {} ms from now", limits.max_timeout_ms);
                return Err(Fault::member("expirationTime", expected));
            }
        },
    };
    Ok(Wanted {
        method,
        params: params(&members),
        timeout: Budget::from_ms(timeout),
        connect_timeout: Budget::from_ms(limits.default_connect_timeout_ms.min(timeout)),
        oneway,
    })
}

/// Milliseconds of ThingsBoard's call that names no time.
const THINGSBOARD_TIMEOUT_MS: u32 = 10_000;

fn members(body: &[u8]) -> Result<Members<'_>, Fault> {
    serde_json::from_slice(body).map_err(|_| Fault::NotAnObject)
}

fn params(members: &Members<'_>) -> Bytes {
    members
        .get("params")
        .map_or(Bytes::from_static(b"null"), |it| Bytes::copy_from_slice(it.get().as_bytes()))
}

fn method(members: &Members<'_>) -> Result<Option<String>, Fault> {
    let method: Option<String> = read(members, "method", "a string")?;
    if let Some(method) = &method {
        check_method(method).map_err(|fault| Fault::member("method", fault.expected))?;
    }
    Ok(method)
}

fn number(members: &Members<'_>, name: &str, least: u32, most: u32) -> Result<Option<u32>, Fault> {
    let expected = format!("a whole number of milliseconds, {least} to {most}");
    match read::<u64>(members, name, expected.clone())? {
        None => Ok(None),
        Some(given) => match u32::try_from(given) {
            Ok(given) if (least..=most).contains(&given) => Ok(Some(given)),
            _ => Err(Fault::member(name, expected)),
        },
    }
}

/// A member, as none where it is `null`.
fn read<T: serde::de::DeserializeOwned>(
    members: &Members<'_>,
    name: &str,
    expected: impl Into<Cow<'static, str>>,
) -> Result<Option<T>, Fault> {
    match members.get(name) {
        None => Ok(None),
        Some(value) => serde_json::from_str(value.get()).map_err(|_| Fault::member(name, expected)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CallLimits =
        CallLimits { default_timeout_ms: 20_000, max_timeout_ms: 60_000, default_connect_timeout_ms: 500 };

    fn wanted(method: &str, params: &'static str, timeout: u32, connect_timeout: u32) -> Wanted {
        Wanted {
            method: method.to_owned(),
            params: Bytes::from_static(params.as_bytes()),
            timeout: Budget::from_ms(timeout),
            connect_timeout: Budget::from_ms(connect_timeout),
            oneway: false,
        }
    }

    fn fault(name: &str) -> Option<String> {
        Some(name.to_owned())
    }

    #[test]
    fn a_call_is_read_and_its_params_are_left_as_they_are() {
        for (body, expected) in [
            ("{}", wanted("onMsg", "null", 20_000, 500)),
            (r#"{"params": {"a" : 1.50} }"#, wanted("onMsg", r#"{"a" : 1.50}"#, 20_000, 500)),
            (r#"{"method":"blink","timeout":1}"#, wanted("blink", "null", 1, 1)),
            (r#"{"timeout":60000,"connectTimeout":60000}"#, wanted("onMsg", "null", 60_000, 60_000)),
            (r#"{"oneway":null,"method":null}"#, wanted("onMsg", "null", 20_000, 500)),
        ] {
            assert_eq!(call(body.as_bytes(), &LIMITS), Ok(expected), "{body}");
        }
        let oneway = call(br#"{"oneway":true}"#, &LIMITS).unwrap();
        assert!(oneway.oneway);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (body, name) in [
            ("", None),
            ("[]", None),
            ("{", None),
            ("\u{fffd}", None),
            (r#"{"method":""}"#, fault("method")),
            (r#"{"method":1}"#, fault("method")),
            (r#"{"timeout":0}"#, fault("timeout")),
            (r#"{"timeout":60001}"#, fault("timeout")),
            (r#"{"timeout":1.5}"#, fault("timeout")),
            (r#"{"timeout":-1}"#, fault("timeout")),
            (r#"{"timeout":5000000000}"#, fault("timeout")),
            (r#"{"timeout":10,"connectTimeout":11}"#, fault("connectTimeout")),
            (r#"{"oneway":1}"#, fault("oneway")),
            (r#"{"parms":1}"#, fault("parms")),
        ] {
            let named = match call(body.as_bytes(), &LIMITS).unwrap_err() {
                Fault::NotAnObject => None,
                Fault::Member { name, .. } => Some(name),
            };
            assert_eq!(named, name, "{body}");
        }
    }

    #[test]
    fn thingsboards_bodies_are_read_with_its_defaults_and_its_end_in_time() {
        let read = |body: &str| thingsboard(body.as_bytes(), false, &LIMITS, 1_000_000);
        let blink = |timeout| Ok(wanted("blink", "null", timeout, 500.min(timeout)));
        for (body, expected) in [
            (r#"{"method":"blink"}"#, blink(10_000)),
            (r#"{"method":"blink","timeout":200,"retries":3,"additionalInfo":{}}"#, blink(200)),
            (r#"{"method":"blink","timeout":200,"expirationTime":1007000}"#, blink(7_000)),
            (r#"{"method":"blink","persistent":false,"requestUUID":"x"}"#, blink(10_000)),
        ] {
            assert_eq!(read(body), expected, "{body}");
        }
        for (body, name) in [
            (r#"{"params":1}"#, "method"),
            (r#"{"method":"blink","expirationTime":1000000}"#, "expirationTime"),
            (r#"{"method":"blink","expirationTime":9}"#, "expirationTime"),
            (r#"{"method":"blink","expirationTime":1060001}"#, "expirationTime"),
            (r#"{"method":"blink","persistent":true}"#, "persistent"),
        ] {
            let Err(Fault::Member { name: named, .. }) = read(body) else { panic!("{body}") };
            assert_eq!(named, name, "{body}");
        }
    }
}
