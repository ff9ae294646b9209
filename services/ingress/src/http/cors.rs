//! Which web pages may use the device API (CORS, Fetch §3.2)? Pages of the origins in `http.cors_origins`: a device's
//! token stands in the path and no cookie counts, so a page can do no more than whoever knows the token.

use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::Response;

/// How long a browser need not ask again, in seconds; Chromium remembers no longer.
const PREFLIGHT_MAX_AGE_S: HeaderValue = HeaderValue::from_static("7200");

const ANY: HeaderValue = HeaderValue::from_static("*");
const ORIGIN: HeaderValue = HeaderValue::from_static("Origin");

/// What a page may read beside the body.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "Switchboard-Outcome, Switchboard-Call, Switchboard-Caller, Switchboard-Caller-Name, Switchboard-Expires-Ms, \
     Retry-After, Traceparent",
);

/// The origins whose pages may read answers.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Cors {
    Nobody,
    Anybody,
    Of(Vec<HeaderValue>),
}

impl Cors {
    /// From the setting `http.cors_origins`: `*`, or origins after commas.
    pub(super) fn new(origins: Option<&str>) -> Self {
        match origins {
            None => Cors::Nobody,
            Some("*") => Cors::Anybody,
            Some(list) => Cors::Of(
                list.split(',').filter_map(|origin| HeaderValue::from_str(origin.trim()).ok()).collect(),
            ),
        }
    }

    /// The answer to a browser's question whether it may send a request: added to a response without body.
    pub(super) fn preflight(&self, asked: &HeaderMap, methods: HeaderValue, response: &mut Response) {
        if asked.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
            && self.admits(asked.get(header::ORIGIN)).is_some()
        {
            let headers = response.headers_mut();
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, ANY);
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_MAX_AGE_S);
        }
    }

    /// Lets a page whose origin is admitted read a response, errors as well.
    pub(super) fn allow(&self, admitted: Option<HeaderValue>, response: &mut Response) {
        let headers = response.headers_mut();
        if matches!(self, Cors::Of(_)) {
            headers.append(header::VARY, ORIGIN);
        }
        if let Some(allowed) = admitted {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        }
    }

    /// Which origin is let in, if there is one. Nothing is said to who is no browser: a small device need not read it.
    pub(super) fn admits(&self, origin: Option<&HeaderValue>) -> Option<HeaderValue> {
        let origin = origin?;
        match self {
            Cors::Nobody => None,
            Cors::Anybody => Some(ANY),
            // Browsers write origins in one way (RFC 6454 §6.2).
            Cors::Of(list) => list.iter().find(|it| *it == origin).cloned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::HeaderName;

    use super::*;

    const PAGE: HeaderValue = HeaderValue::from_static("https://app.example");

    fn said(cors: &Cors, origin: Option<&HeaderValue>) -> Vec<(HeaderName, HeaderValue)> {
        let mut response = Response::new(Body::empty());
        cors.allow(cors.admits(origin), &mut response);
        response.headers().iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    #[test]
    fn who_may_read_answers() {
        let allowed = |origin: HeaderValue| {
            vec![
                (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin),
                (header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED),
            ]
        };
        let vary = vec![(header::VARY, ORIGIN)];
        let list = Cors::new(Some("https://a.example:8443, https://app.example"));
        let table = [
            (Cors::new(Some("*")), Some(PAGE), allowed(ANY)),
            (Cors::new(Some("*")), None, vec![]),
            (Cors::new(None), Some(PAGE), vec![]),
        ];
        for (cors, origin, headers) in table {
            assert_eq!(said(&cors, origin.as_ref()), headers, "{cors:?} {origin:?}");
        }
        assert_eq!(said(&list, Some(&PAGE)), [vary.clone(), allowed(PAGE)].concat());
        for other in ["http://app.example", "https://app.example.evil", "https://a.example", "null", "*"] {
            assert_eq!(said(&list, Some(&HeaderValue::from_static(other))), vary, "{other}");
        }
        assert_eq!(said(&list, None), vary);
    }

    #[test]
    fn a_preflight_is_answered_to_whom_it_may() {
        let ask = |cors: &Cors, names: &[HeaderName]| {
            let mut response = Response::new(Body::empty());
            let asked = names.iter().map(|name| (name.clone(), PAGE)).collect();
            cors.preflight(&asked, HeaderValue::from_static("GET, POST"), &mut response);
            response.headers().len()
        };
        let question = [header::ORIGIN, header::ACCESS_CONTROL_REQUEST_METHOD];
        assert_eq!(ask(&Cors::Anybody, &question), 3);
        assert_eq!(ask(&Cors::Of(vec![PAGE]), &question), 3);
        for cors in [Cors::Nobody, Cors::Of(vec![ANY]), Cors::Of(vec![])] {
            assert_eq!(ask(&cors, &question), 0, "{cors:?}");
        }
        for incomplete in [&question[..1], &question[1..]] {
            assert_eq!(ask(&Cors::Anybody, incomplete), 0, "{incomplete:?}");
        }
    }
}
