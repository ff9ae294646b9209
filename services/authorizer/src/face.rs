//! What does an application want that calls over NATS? Its subject, headers and message, read to what a call needs.
//! Pure; README.md of the API is the contract.

use std::borrow::Cow;

use boot::Settings;
use bus::registry::check_method;
use bytes::Bytes;
use rpc::{Budget, DEFAULT_METHOD, MAX_TRACEPARENT_BYTES, Outcome, Target};
use serde::Deserialize;
use serde_json::value::RawValue;

/// A call, as an application asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Who is called.
    pub target: Target,
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
    /// W3C trace context.
    pub traceparent: Option<String>,
}

/// How long calls may take, and how long their bodies are.
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    /// Milliseconds of a call that names no time.
    pub default_timeout_ms: u32,
    /// Milliseconds that one may ask for.
    pub max_timeout_ms: u32,
    /// Milliseconds that one waits for its target that does not say.
    pub default_connect_timeout_ms: u32,
    /// Bytes of a call.
    pub max_body_bytes: usize,
}

impl From<&Settings> for CallLimits {
    fn from(Settings { device_api, api, .. }: &Settings) -> Self {
        CallLimits {
            default_timeout_ms: device_api.default_timeout_ms,
            max_timeout_ms: device_api.max_timeout_ms,
            default_connect_timeout_ms: device_api.default_connect_timeout_ms,
            max_body_bytes: api.max_body_bytes,
        }
    }
}

/// What a call's message is, without what stands in its subject and headers.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    method: Option<Cow<'a, str>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
    oneway: Option<bool>,
}

/// Reads a call of a device, as the subject names it; `header` finds a header by its name.
///
/// # Errors
/// `Malformed`, with what is wrong and what was expected.
pub fn parse<'a>(
    device: &str,
    body: &[u8],
    header: impl Fn(&str) -> Option<&'a str>,
    limits: &CallLimits,
) -> Result<Wanted, Outcome> {
    if body.len() > limits.max_body_bytes {
        let part = format!("{} bytes, of at most {}", body.len(), limits.max_body_bytes);
        return Err(Outcome::malformed(part));
    }
    let parsed: Body<'_> = match body {
        // As `nats req` sends nothing.
        [] => Body::default(),
        // A list of its members would do for one, too.
        body if !body.trim_ascii_start().starts_with(b"{") => {
            return Err(Outcome::malformed("it must be a JSON object"));
        }
        body => serde_json::from_slice(body).map_err(Outcome::malformed)?,
    };
    let method = parsed.method.map_or_else(|| DEFAULT_METHOD.to_owned(), Cow::into_owned);
    check_method(&method).map_err(Outcome::malformed)?;
    let number = |name: &str, least: u32, most: u32| match header(name).map(str::parse::<u32>) {
        None => Ok(None),
        Some(Ok(given)) if (least..=most).contains(&given) => Ok(Some(given)),
        Some(_) => {
            let expected = format!("a whole number of milliseconds, {least} to {most}");
            Err(Outcome::malformed(format_args!("{name} must be {expected}")))
        }
    };
    let timeout = number("Swb-Timeout", 1, limits.max_timeout_ms)?.unwrap_or(limits.default_timeout_ms);
    let connect_timeout =
        number("Swb-Connect-Timeout", 0, timeout)?.unwrap_or(limits.default_connect_timeout_ms.min(timeout));
    let traceparent = header("traceparent").filter(|it| it.len() <= MAX_TRACEPARENT_BYTES);
    let params = parsed.params.map_or("null", RawValue::get);
    Ok(Wanted {
        target: Target::parse(device),
        method,
        params: Bytes::copy_from_slice(params.as_bytes()),
        timeout: Budget::from_ms(timeout),
        connect_timeout: Budget::from_ms(connect_timeout),
        oneway: parsed.oneway.unwrap_or(false),
        traceparent: traceparent.map(str::to_owned),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: CallLimits = CallLimits {
        default_timeout_ms: 20_000,
        max_timeout_ms: 60_000,
        default_connect_timeout_ms: 500,
        max_body_bytes: 100,
    };

    fn read(body: &str, headers: &[(&str, &'static str)]) -> Result<Wanted, Outcome> {
        let header = |name: &str| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
        parse("lamp-1", body.as_bytes(), header, &LIMITS)
    }

    #[test]
    fn a_call_is_read_and_its_params_are_left_as_they_are() {
        let wanted = read("", &[]).unwrap();
        assert_eq!(
            (wanted.method.as_str(), &wanted.params[..], wanted.oneway),
            ("onMsg", &b"null"[..], false)
        );
        assert_eq!((wanted.timeout.as_ms(), wanted.connect_timeout.as_ms()), (20_000, 500));
        let body = r#"{"method": "bl\u0069nk", "params": {"a" : 1.50}, "oneway": true}"#;
        let wanted = read(body, &[("Swb-Timeout", "100"), ("traceparent", "00-x")]).unwrap();
        assert_eq!((wanted.method.as_str(), &wanted.params[..]), ("blink", &br#"{"a" : 1.50}"#[..]));
        assert_eq!((wanted.timeout.as_ms(), wanted.connect_timeout.as_ms()), (100, 100));
        assert_eq!((wanted.oneway, wanted.traceparent.as_deref()), (true, Some("00-x")));
        let wanted = read("{}", &[("Swb-Timeout", "100"), ("Swb-Connect-Timeout", "0")]).unwrap();
        assert_eq!(wanted.connect_timeout.as_ms(), 0);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let long = format!(r#"{{"params":"{}"}}"#, "x".repeat(100));
        for (body, headers, named) in [
            ("[]", &[][..], "it must be a JSON object"),
            (r#"["blink",1,true]"#, &[], "it must be a JSON object"),
            ("{", &[], "EOF"),
            (r#"{"timeout":1}"#, &[], "`timeout`"),
            (r#"{"method":""}"#, &[], "method"),
            (r#"{"method":1}"#, &[], "a string"),
            (r#"{"oneway":1}"#, &[], "a boolean"),
            ("", &[("Swb-Timeout", "0")], "Swb-Timeout must be a whole number of milliseconds, 1 to 60000"),
            ("", &[("Swb-Timeout", "60001")], "Swb-Timeout"),
            ("", &[("Swb-Timeout", "soon")], "Swb-Timeout"),
            ("", &[("Swb-Timeout", "10"), ("Swb-Connect-Timeout", "11")], "Swb-Connect-Timeout must be"),
            (&long, &[], "of at most 100"),
        ] {
            let Err(Outcome::Malformed(text)) = read(body, headers) else { panic!("{body}") };
            assert!(text.contains(named), "{body}: {text}");
        }
    }
}
