//! What does an application want? The bodies of both faces, read to what a call needs. Pure.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use axum::http::{HeaderMap, header};
use bus::registry::check_method;
use bytes::Bytes;
use rpc::{Budget, CustomerId, DEFAULT_METHOD};
use serde_json::value::RawValue;

use crate::answer::Problem;

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
    let members = members(body)?;
    knows(&members, "", &MEMBERS)?;
    wanted(&members, limits)
}

/// Reads the body of `POST /v1/calls`.
///
/// # Errors
/// With the first member that is wrong, or unknown.
pub fn group(body: &[u8], limits: &CallLimits) -> Result<WantedGroup, Fault> {
    let members = members(body)?;
    let known = ["targets", "parallel", "max", "quorum"];
    knows(&members, "", &[&known[..], &MEMBERS[..]].concat())?;
    let max = count(&members, "max", MAX_TARGETS)?.unwrap_or(DEFAULT_TARGETS);
    let group = WantedGroup {
        targets: targets(&members, max)?,
        each: wanted(&members, limits)?,
        parallel: count(&members, "parallel", MAX_PARALLEL)?.unwrap_or(DEFAULT_PARALLEL),
        max,
        quorum: count(&members, "quorum", max)?,
    };
    match (&group.targets, group.quorum) {
        (Targets::Devices(devices), Some(quorum)) if quorum > devices.len() => {
            Err(Fault::member("quorum", format!("at most the {} targets", devices.len())))
        }
        _ => Ok(group),
    }
}

/// The members of a call.
const MEMBERS: [&str; 5] = ["method", "params", "timeout", "connectTimeout", "oneway"];
/// Targets that a group call may have, and one that says no `max`.
pub const MAX_TARGETS: usize = 10_000;
const DEFAULT_TARGETS: usize = 1_000;
/// Calls of a group that may be in flight at a time, and where it does not say.
const MAX_PARALLEL: usize = 1_000;
const DEFAULT_PARALLEL: usize = 50;
/// The longest name of a device, in bytes: 255 characters.
pub const MAX_DEVICE_BYTES: usize = 1_020;

/// The same call of many devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WantedGroup {
    /// Whom.
    pub targets: Targets,
    /// What each is asked.
    pub each: Wanted,
    /// Calls in flight at a time.
    pub parallel: usize,
    /// With more targets none is called.
    pub max: usize,
    /// It ends with so many answers.
    pub quorum: Option<usize>,
}

/// The targets of a group call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// These, by id or name.
    Devices(Vec<String>),
    /// All that the application reaches of this customer, with these labels.
    Sought {
        /// Of this customer.
        customer: Option<CustomerId>,
        /// With all of these.
        labels: BTreeMap<String, String>,
    },
}

fn targets(members: &Members<'_>, max: usize) -> Result<Targets, Fault> {
    const EXPECTED: &str = "an object with devices, or with labels, customer or both";
    let fault = || Fault::member("targets", EXPECTED);
    let targets = members.get("targets").ok_or_else(fault)?;
    let members: Members<'_> = serde_json::from_str(targets.get()).map_err(|_| fault())?;
    knows(&members, "targets.", &["devices", "labels", "customer"])?;
    let wrong = |name: &str, expected: Cow<'static, str>| Fault::member(&format!("targets.{name}"), expected);
    let listed = || wrong("devices", "a list of ids or names, each once".into());
    let of_customer = || wrong("customer", "the UUID of a customer".into());
    let devices: Option<Vec<String>> = read(&members, "devices", "").map_err(|_| listed())?;
    let labels: Option<BTreeMap<String, String>> =
        read(&members, "labels", "").map_err(|_| wrong("labels", "an object of strings".into()))?;
    let customer: Option<String> = read(&members, "customer", "").map_err(|_| of_customer())?;
    let customer = customer.map(|it| it.parse()).transpose().map_err(|_| of_customer())?;
    match (devices, labels.unwrap_or_default(), customer) {
        (Some(devices), labels, None) if labels.is_empty() => {
            if devices.is_empty() || devices.len() > max {
                return Err(wrong("devices", format!("1 to {max} devices (max)").into()));
            }
            if devices.iter().any(|it| it.is_empty() || it.len() > MAX_DEVICE_BYTES) {
                return Err(wrong("devices", "ids, or names of 1 to 255 characters".into()));
            }
            if devices.iter().collect::<BTreeSet<_>>().len() < devices.len() {
                return Err(listed());
            }
            Ok(Targets::Devices(devices))
        }
        (None, labels, customer) if !labels.is_empty() || customer.is_some() => {
            Ok(Targets::Sought { customer, labels })
        }
        _ => Err(fault()),
    }
}

fn knows(members: &Members<'_>, within: &str, known: &[&str]) -> Result<(), Fault> {
    match members.keys().find(|name| !known.contains(&&***name)) {
        None => Ok(()),
        Some(unknown) => {
            let expected = format!("left out: there are {}", known.join(", "));
            Err(Fault::member(&format!("{within}{unknown}"), expected))
        }
    }
}

fn count(members: &Members<'_>, name: &str, most: usize) -> Result<Option<usize>, Fault> {
    let expected = format!("a whole number, 1 to {most}");
    match read::<u64>(members, name, expected.clone())?.map(usize::try_from) {
        None => Ok(None),
        Some(Ok(given)) if (1..=most).contains(&given) => Ok(Some(given)),
        Some(_) => Err(Fault::member(name, expected)),
    }
}

fn wanted(members: &Members<'_>, limits: &CallLimits) -> Result<Wanted, Fault> {
    let method = method(members)?.unwrap_or_else(|| DEFAULT_METHOD.to_owned());
    let timeout = number(members, "timeout", 1, limits.max_timeout_ms)?.unwrap_or(limits.default_timeout_ms);
    let connect_timeout = number(members, "connectTimeout", 0, timeout)?
        .unwrap_or(limits.default_connect_timeout_ms.min(timeout));
    Ok(Wanted {
        method,
        params: params(members),
        timeout: Budget::from_ms(timeout),
        connect_timeout: Budget::from_ms(connect_timeout),
        oneway: read(members, "oneway", "true or false")?.unwrap_or(false),
    })
}

/// Whether a request says that its body is of that kind.
pub fn is_of_kind(headers: &HeaderMap, wanted: &str) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(wanted)
}

/// The names and values of a query, as forms write them.
///
/// # Errors
/// With the name of what is no UTF-8.
pub fn pairs(query: &str) -> Result<Vec<(String, String)>, Problem> {
    let decoded = |text: &str| {
        let text = text.replace('+', " ");
        percent_encoding::percent_decode_str(&text).decode_utf8().map(|it| it.into_owned())
    };
    let pairs = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let refused = |_| Problem::parameter(name, "percent-encoded UTF-8");
        Ok((decoded(name).map_err(refused)?, decoded(value).map_err(refused)?))
    });
    pairs.collect()
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
    fn a_group_call_is_read_and_what_is_wrong_with_it_is_named() {
        let customer = "5a8d2b10-9fce-11e6-8080-808080808080";
        let whole = format!(
            r#"{{"targets":{{"labels":{{"zone":"north"}},"customer":"{customer}"}},"method":"blink","timeout":9,
                "parallel":2,"max":7,"quorum":3}}"#
        );
        let read = group(whole.as_bytes(), &LIMITS).unwrap();
        let labels = [("zone".to_owned(), "north".to_owned())].into();
        assert_eq!(read.targets, Targets::Sought { customer: customer.parse().ok(), labels });
        assert_eq!((read.parallel, read.max, read.quorum), (2, 7, Some(3)));
        assert_eq!(read.each, wanted("blink", "null", 9, 9));
        let short = group(br#"{"targets":{"devices":["a","b"]}}"#, &LIMITS).unwrap();
        assert_eq!(short.targets, Targets::Devices(vec!["a".into(), "b".into()]));
        assert_eq!((short.parallel, short.max, short.quorum), (50, 1_000, None));
        for (body, name) in [
            ("{}", "targets"),
            (r#"{"targets":[]}"#, "targets"),
            (r#"{"targets":{}}"#, "targets"),
            (r#"{"targets":{"labels":{}}}"#, "targets"),
            (r#"{"targets":{"devices":["a"],"labels":{"a":"b"}}}"#, "targets"),
            (r#"{"targets":{"device":["a"]}}"#, "targets.device"),
            (r#"{"targets":{"devices":[]}}"#, "targets.devices"),
            (r#"{"targets":{"devices":["a","b"]},"max":1}"#, "targets.devices"),
            (r#"{"targets":{"devices":["a","a"]}}"#, "targets.devices"),
            (r#"{"targets":{"devices":[""]}}"#, "targets.devices"),
            (r#"{"targets":{"devices":[1]}}"#, "targets.devices"),
            (r#"{"targets":{"labels":{"a":1}}}"#, "targets.labels"),
            (r#"{"targets":{"customer":"x"}}"#, "targets.customer"),
            (r#"{"targets":{"customer":1}}"#, "targets.customer"),
            (r#"{"targets":{"devices":["a"]},"quorum":2}"#, "quorum"),
            (r#"{"targets":{"devices":["a"]},"quorum":0}"#, "quorum"),
            (r#"{"targets":{"devices":["a"]},"parallel":1001}"#, "parallel"),
            (r#"{"targets":{"devices":["a"]},"max":10001}"#, "max"),
            (r#"{"targets":{"devices":["a"]},"timeout":0}"#, "timeout"),
            (r#"{"targets":{"devices":["a"]},"devices":[]}"#, "devices"),
        ] {
            let Err(Fault::Member { name: named, .. }) = group(body.as_bytes(), &LIMITS) else {
                panic!("{body}")
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
