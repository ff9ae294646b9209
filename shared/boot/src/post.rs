//! How is something posted over HTTP, in plain text, and its answer read? On a connection of its own: what is asked
//! that way is asked seldom, and one that was kept may be closed just when it is used.

use std::convert::Infallible;
use std::fmt::Display;
use std::future::pending;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// The address names no host, or nobody answers there.
    #[error("{0}")]
    Missing(String),
    /// The answer broke off, or is longer than it may be.
    #[error("its answer broke off or is too long")]
    Answer,
}

/// Posts `message` to `uri`, and reads at most `max_answer_bytes` of an answer of the same type. Takes as long as it
/// takes, and nothing is left behind when the future is dropped.
///
/// # Errors
/// See [`PostError`]; any status is an answer.
pub async fn post(
    uri: &Uri,
    content_type: &'static str,
    message: Bytes,
    max_answer_bytes: usize,
) -> Result<(StatusCode, Bytes), PostError> {
    let missing = |error: &dyn Display| PostError::Missing(error.to_string());
    let (authority, host) = uri.authority().zip(uri.host()).ok_or(missing(&"no host"))?;
    let bare_host = host.trim_start_matches('[').trim_end_matches(']');
    let address = (bare_host, authority.port_u16().unwrap_or(80));
    let stream = TcpStream::connect(address).await.map_err(|error| missing(&error))?;
    stream.set_nodelay(true).map_err(|error| missing(&error))?;
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (mut requests, connection) = shaken.map_err(|error| missing(&error))?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header(HOST, authority.as_str())
        .header(CONTENT_TYPE, content_type)
        .header(ACCEPT, content_type)
        .header(USER_AGENT, concat!("switchboard/", env!("CARGO_PKG_VERSION")))
        .body(Full::new(message))
        .map_err(|error| missing(&error))?;
    let exchange = async {
        let response = requests.send_request(request).await.map_err(|error| missing(&error))?;
        let status = response.status();
        let answer = Limited::new(response.into_body(), max_answer_bytes).collect().await;
        Ok((status, answer.map_err(|_| PostError::Answer)?.to_bytes()))
    };
    // What goes wrong with the connection is told to the exchange.
    let carry = async {
        let _ = connection.await;
        pending::<Infallible>().await
    };
    tokio::select! {
        exchanged = exchange => exchanged,
        never = carry => match never {},
    }
}
