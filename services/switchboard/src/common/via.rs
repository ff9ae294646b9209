//! How does the command call as a device does? With an access token alone, over MQTT, HTTP or CoAP: the smallest client
//! of each that makes one request.

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use switchboard_ingress::coap::codec::Code;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use super::coap::Coap;
use super::way::{Stream, Way};

/// A protocol that devices speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Via {
    /// MQTT 3.1.1
    Mqtt,
    /// HTTP
    Http,
    /// CoAP
    Coap,
}

/// The longest answer that is read, in bytes.
pub(super) const MAX_ANSWER_BYTES: u64 = 4 * 1024 * 1024;

impl Via {
    /// Makes one request as the device that has `token`, and returns the text of its answer.
    ///
    /// # Errors
    /// When nobody is there, the token is refused, or no answer came within `wait`.
    pub(crate) async fn ask(
        self,
        at: &Way,
        token: &str,
        request: &str,
        wait: Duration,
    ) -> anyhow::Result<String> {
        let asked = async {
            match self {
                Via::Mqtt => mqtt(at, token, request).await,
                Via::Http => http(at, token, request).await,
                Via::Coap => coap(at, token, request).await,
            }
        };
        let answer = tokio::time::timeout(wait, asked).await;
        let answer = answer.context("no answer came in time")?;
        let answer = answer.with_context(|| format!("the node at {at} could not be asked"))?;
        String::from_utf8(answer).context("the answer is not text")
    }
}

/// No device has the access token.
#[derive(Debug)]
pub(crate) struct Refused;

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no device has this access token")
    }
}

impl std::error::Error for Refused {}

async fn http(at: &Way, token: &str, request: &str) -> anyhow::Result<Vec<u8>> {
    let path = format!("/api/v1/{}/rpc", path_segment(token));
    match exchange(at, "POST", &path, request).await? {
        (401, _) => Err(Refused.into()),
        // With a body that says the rest.
        (status, body) if body.is_empty() => bail!("the response has status {status}"),
        (_, body) => Ok(body),
    }
}

/// One exchange over HTTP/1.1: status and body of the response.
///
/// # Errors
/// When nobody is there, or what comes is no response.
pub(crate) async fn exchange(
    at: &Way,
    method: &str,
    path: &str,
    body: &str,
) -> anyhow::Result<(u16, Vec<u8>)> {
    let mut stream = at.connect().await?;
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {at}\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.flush().await?;
    let mut response = Vec::new();
    stream.take(MAX_ANSWER_BYTES).read_to_end(&mut response).await?;
    let end = response.windows(4).position(|bytes| bytes == b"\r\n\r\n").context("no response came")?;
    let body = response.split_off(end + 4);
    let status = response.split(|byte| *byte == b' ').nth(1).and_then(|it| std::str::from_utf8(it).ok());
    let status = status.and_then(|status| status.parse().ok()).context("the response is not HTTP")?;
    Ok((status, body))
}

/// RFC 3986 §2.1: all but the unreserved characters are written as their bytes.
pub(crate) fn path_segment(text: &str) -> String {
    let escaped = |byte: u8| match byte {
        b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(escaped).collect()
}

const MQTT_REQUEST: &str = "v1/devices/me/rpc/request/1";
const MQTT_RESPONSE: &str = "v1/devices/me/rpc/response/1";

/// Connects over MQTT 3.1.1 as the device that has `token`.
///
/// # Errors
/// When nobody is there, or the token is refused.
pub(crate) async fn mqtt_connected(at: &Way, token: &str) -> anyhow::Result<Box<dyn Stream>> {
    let mut stream = at.connect().await?;
    // Clean session, user name, a keep-alive of a minute; no client id.
    let connect = [&text("MQTT")?[..], &[4, 0x82, 0, 60], &text("")?, &text(token)?].concat();
    stream.write_all(&packet(0x10, &connect)).await?;
    stream.flush().await?;
    let (kind, connack) = read_packet(&mut stream).await?;
    match (kind >> 4, connack.as_slice()) {
        (2, [_, 0]) => Ok(stream),
        (2, [_, 4 | 5]) => Err(Refused.into()),
        (2, [_, 3]) => bail!("the node cannot take anybody now"),
        _ => bail!("this is no MQTT server that takes us"),
    }
}

async fn mqtt(at: &Way, token: &str, request: &str) -> anyhow::Result<Vec<u8>> {
    let mut stream = mqtt_connected(at, token).await?;
    let subscribe = [&[0, 1][..], &text(MQTT_RESPONSE)?, &[0]].concat();
    let publish = [&text(MQTT_REQUEST)?[..], request.as_bytes()].concat();
    stream.write_all(&[packet(0x82, &subscribe), packet(0x30, &publish)].concat()).await?;
    loop {
        let (kind, body) = read_packet(&mut stream).await?;
        let topic = text(MQTT_RESPONSE)?;
        if kind >> 4 == 3
            && let Some(answer) = body.strip_prefix(topic.as_slice())
        {
            let answer = answer.to_vec();
            // Goodbye, which nobody need hear.
            let _ = stream.write_all(&packet(0xe0, &[])).await;
            return Ok(answer);
        }
    }
}

/// A string of MQTT, its length in front.
pub(crate) fn text(text: &str) -> anyhow::Result<Vec<u8>> {
    let length = u16::try_from(text.len()).context("an access token is no longer than 65535 bytes")?;
    Ok([&length.to_be_bytes(), text.as_bytes()].concat())
}

pub(crate) fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut packet = vec![first];
    let mut left = body.len();
    loop {
        let more = if left > 127 { 0x80 } else { 0 };
        packet.push((left & 0x7f) as u8 | more);
        left >>= 7;
        if left == 0 {
            break;
        }
    }
    packet.extend_from_slice(body);
    packet
}

pub(crate) async fn read_packet(stream: &mut (impl AsyncRead + Unpin)) -> anyhow::Result<(u8, Vec<u8>)> {
    let first = stream.read_u8().await.context("the node closed the connection")?;
    let mut length = 0u64;
    for shift in [0, 7, 14, 21] {
        let byte = stream.read_u8().await?;
        length |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    ensure!(length <= MAX_ANSWER_BYTES, "the answer is too long");
    let mut body = vec![0; usize::try_from(length)?];
    stream.read_exact(&mut body).await?;
    Ok((first, body))
}

async fn coap(at: &Way, token: &str, request: &str) -> anyhow::Result<Vec<u8>> {
    let mut node = Coap::at(at.address().await?).await?;
    match node.ask(Code::POST, &["api", "v1", token, "rpc"], request.as_bytes()).await? {
        (Code::UNAUTHORIZED, _) => Err(Refused.into()),
        (code, body) if body.is_empty() => bail!("the response has code {code}"),
        (_, body) => Ok(body),
    }
}
