//! How does MQTT travel in a WebSocket (MQTT 5 §6, 3.1.1 §6)? Binary frames carry its bytes, cut anywhere; nothing
//! else is taken. `frame` is pure.
//!
//! Frames are passed on as they come and never gathered: what a frame says of its length reserves nothing, so a client
//! that is not authenticated yet costs no more than over plain TCP.

pub mod frame;
mod stream;

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha1::{Digest, Sha1};
use tokio::io::{AsyncRead, AsyncWrite};

use self::stream::WebSocket;
use super::exchange::Exchange;
use super::reply;
use super::server::Server;
use crate::device_api;

/// The sub-protocols of which a client must offer one (MQTT-6.0.0-3), in the order of our choice: the second is what
/// clients of MQTT 3.1 say.
const SUB_PROTOCOLS: [&str; 2] = ["mqtt", "mqttv3.1"];

const WEBSOCKET: HeaderValue = HeaderValue::from_static("websocket");
const UPGRADE: HeaderValue = HeaderValue::from_static("Upgrade");

/// RFC 6455 §1.3.
const ACCEPT_GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// `GET /mqtt`: makes the connection a WebSocket (RFC 6455 §4.2).
pub(super) async fn upgrade(
    State(server): State<Arc<Server>>,
    mut request: Request,
) -> Result<Response, Response> {
    let (accept, sub_protocol) = accept(request.method(), request.headers()).map_err(Refusal::response)?;
    if server.devices.is_draining() {
        return Err(reply::refusal(device_api::Refusal::ShuttingDown));
    }
    let upgrade = hyper::upgrade::on(&mut request);
    let Some(exchange) = request.extensions().get::<Arc<Exchange>>() else {
        return Err(reply::empty(StatusCode::INTERNAL_SERVER_ERROR));
    };
    let sender = server.sender(exchange, request.headers());
    *exchange.upgrade.lock() = Some((upgrade, sender));
    let mut response = reply::empty(StatusCode::SWITCHING_PROTOCOLS);
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, UPGRADE);
    headers.insert(header::UPGRADE, WEBSOCKET);
    headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(sub_protocol));
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// Serves the MQTT client behind an upgraded connection; `read_ahead` is what came behind its request from `sender`.
pub(super) async fn serve<S>(stream: S, read_ahead: Bytes, sender: IpAddr, server: &Server)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = WebSocket::new(stream, &read_ahead);
    drop(read_ahead);
    crate::mqtt::connection::serve(&mut stream, &sender, &server.node).await;
}

/// Why a request does not make a WebSocket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    NoUpgrade,
    Version,
    SubProtocol,
    Key,
}

impl Refusal {
    fn response(self) -> Response {
        let (status, text) = match self {
            Refusal::NoUpgrade => {
                (StatusCode::BAD_REQUEST, "This is for MQTT over WebSocket: connect with ws:// or wss://")
            }
            Refusal::Version => (StatusCode::UPGRADE_REQUIRED, "WebSocket version 13 is spoken here!"),
            Refusal::SubProtocol => {
                (StatusCode::BAD_REQUEST, "The WebSocket must offer the sub-protocol mqtt!")
            }
            Refusal::Key => (StatusCode::BAD_REQUEST, "Sec-WebSocket-Key must be 16 bytes in Base64!"),
        };
        let mut response = reply::error(status, text);
        if self == Refusal::Version {
            // RFC 6455 §4.4; RFC 9110 §15.5.22, §7.8.
            let headers = response.headers_mut();
            headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            headers.insert(header::UPGRADE, WEBSOCKET);
            headers.insert(header::CONNECTION, UPGRADE);
        }
        response
    }
}

/// The proof that we understood the request (RFC 6455 §4.2.2) and the sub-protocol, or what is wrong with it.
fn accept(method: &Method, headers: &HeaderMap) -> Result<(HeaderValue, &'static str), Refusal> {
    if method != Method::GET
        || !lists(headers, &header::CONNECTION, "upgrade")
        || !lists(headers, &header::UPGRADE, "websocket")
    {
        return Err(Refusal::NoUpgrade);
    }
    if headers.get(header::SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Refusal::Version);
    }
    let sub_protocol =
        SUB_PROTOCOLS.into_iter().find(|it| offers(headers, it)).ok_or(Refusal::SubProtocol)?;
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(HeaderValue::as_bytes);
    let Some(key) = key.filter(|key| STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16)) else {
        return Err(Refusal::Key);
    };
    let digest = Sha1::new().chain_update(key).chain_update(ACCEPT_GUID).finalize();
    let accept = HeaderValue::try_from(STANDARD.encode(digest)).map_err(|_| Refusal::Key)?;
    Ok((accept, sub_protocol))
}

/// Whether a header lists `token`, in whatever case.
pub(super) fn lists(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    tokens(headers, name).any(|it| it.eq_ignore_ascii_case(token))
}

/// Sub-protocols are compared as they are written.
fn offers(headers: &HeaderMap, sub_protocol: &str) -> bool {
    tokens(headers, &header::SEC_WEBSOCKET_PROTOCOL).any(|it| it == sub_protocol)
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(changes: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let usual = [
            (header::CONNECTION, "keep-alive, Upgrade"),
            (header::UPGRADE, "WebSocket"),
            (header::SEC_WEBSOCKET_VERSION, "13"),
            (header::SEC_WEBSOCKET_PROTOCOL, "mqttv3.1, mqtt"),
            // The example of RFC 6455 §1.3.
            (header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZSBub25jZQ=="),
        ];
        for (name, value) in usual.iter().chain(changes) {
            headers.insert(name.clone(), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    #[test]
    fn the_standards_example_is_accepted() {
        for (offered, chosen) in [("mqttv3.1, mqtt", "mqtt"), ("mqttv3.1", "mqttv3.1"), ("x, mqtt", "mqtt")] {
            let headers = headers(&[(header::SEC_WEBSOCKET_PROTOCOL, offered)]);
            let (proof, sub_protocol) = accept(&Method::GET, &headers).unwrap();
            assert_eq!((proof.to_str().unwrap(), sub_protocol), ("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", chosen));
        }
    }

    #[test]
    fn what_is_no_handshake_is_refused() {
        let table = [
            ((header::CONNECTION, "close"), Refusal::NoUpgrade),
            ((header::UPGRADE, "h2c"), Refusal::NoUpgrade),
            ((header::SEC_WEBSOCKET_VERSION, "8"), Refusal::Version),
            ((header::SEC_WEBSOCKET_PROTOCOL, "MQTT"), Refusal::SubProtocol),
            ((header::SEC_WEBSOCKET_PROTOCOL, "wamp"), Refusal::SubProtocol),
            ((header::SEC_WEBSOCKET_KEY, "short"), Refusal::Key),
            ((header::SEC_WEBSOCKET_KEY, "dGhlIHNhbXBsZQ=="), Refusal::Key),
        ];
        for (change, refusal) in table {
            let refused = accept(&Method::GET, &headers(std::slice::from_ref(&change)));
            assert_eq!(refused, Err(refusal), "{change:?}");
        }
        assert_eq!(accept(&Method::HEAD, &headers(&[])), Err(Refusal::NoUpgrade));
        let response = Refusal::Version.response();
        assert_eq!(response.status(), 426);
        for (name, value) in
            [("upgrade", "websocket"), ("connection", "Upgrade"), ("sec-websocket-version", "13")]
        {
            assert_eq!(response.headers()[name], value);
        }
    }
}
