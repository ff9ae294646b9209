//! Who is connecting, and may it? From the first byte to the CONNACK.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use bytestring::ByteString;
use rpc::{Limit, Protocol};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use uuid::Uuid;

use super::codec::{self, Codec, Connect, ConnectAck, ConnectAckReason, Opening, QoS, Reason, Version};
use super::session::{Session, SessionLimits};
use super::will;
use crate::device::admit::{NotAdmitted, digest};
use crate::device::sessions::Visitor;
use crate::metrics::{ConnectResult, Dropped};
use crate::node::Node;

/// A connected device: its session, and what it has sent behind its CONNECT.
pub(super) struct Connected {
    pub(super) visitor: Arc<Visitor>,
    pub(super) session: Box<Session>,
    pub(super) inbound: BytesMut,
}

/// Reads CONNECT, asks who that is, answers CONNACK. None when the connection is to be closed.
///
/// With `full`, every device is refused: the node has as many connections as it may.
pub(super) async fn shake_hands<S>(stream: &mut S, peer: IpAddr, node: &Node, full: bool) -> Option<Connected>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let wait = Duration::from_millis(node.settings().ingress.connect_timeout_ms);
    let mut inbound = BytesMut::new();
    let opening = tokio::time::timeout(wait, read_connect(stream, &mut inbound, node)).await;
    let (connect, codec) = match opening {
        Ok(Ok(Opening::Connect(connect, codec))) => (connect, codec),
        Ok(Ok(Opening::Refused(codec, reason, why))) => {
            // §3.1.4: 3.1.1 is closed without a word, but for an identifier that it can be told about.
            if codec.version() == Version::V5 || reason == ConnectAckReason::ClientIdentifierNotValid {
                write_connack(stream, &codec, refusal(reason, why)).await;
            }
            return refused(node, peer, ConnectResult::Malformed, why);
        }
        Ok(Ok(Opening::OtherVersion(connack))) => {
            let _ = stream.write_all(connack).await;
            return refused(node, peer, ConnectResult::Malformed, "another version of MQTT");
        }
        Ok(Ok(Opening::Fault(fault))) => {
            if fault.reason == Reason::PacketTooLarge {
                node.metrics.limit_hit(Limit::PacketBytes);
            }
            return refused(node, peer, ConnectResult::Malformed, fault.what);
        }
        Ok(Ok(Opening::Incomplete) | Err(_)) => {
            return refused(node, peer, ConnectResult::Malformed, "it closed before a whole CONNECT");
        }
        Err(_) => return refused(node, peer, ConnectResult::Malformed, "no CONNECT came in time"),
    };

    let admitted = match connect.will.as_ref().map(|will| will::accept(connect.version, will)).transpose() {
        Ok(will) => admit(&connect, peer, node, full).await.map(|visitor| (visitor, will.flatten())),
        Err((reason, why)) => Err((reason, why, Some(ConnectResult::Malformed))),
    };
    match admitted {
        Ok((visitor, will)) => {
            let limits = node.limits();
            let keep_alive_s = keep_alive_in_force(&connect, node);
            let ack = acceptance(&connect, keep_alive_s, &limits, node);
            let mut out = BytesMut::new();
            if !codec.connack(ack, &mut out) {
                // §3.2: nothing may be sent before it.
                node.leave(&visitor);
                tracing::debug!(device = %visitor.device, "its Maximum Packet Size has no room for a CONNACK");
                return None;
            }
            if connect.will.is_some() && will.is_none() {
                node.metrics.message_dropped(Dropped::Will);
            }
            let (caller, now) = (Arc::clone(&visitor.caller), Instant::now());
            let receive_maximum = connect.receive_maximum;
            let mut session = Session::new(codec, limits, caller, keep_alive_s, receive_maximum, will, now);
            *session.out() = out;
            Some(Connected { visitor, session: Box::new(session), inbound })
        }
        Err((reason, why, result)) => {
            write_connack(stream, &codec, refusal(reason, why)).await;
            match result {
                Some(result) => refused(node, peer, result, why),
                None => None,
            }
        }
    }
}

async fn read_connect<S>(stream: &mut S, inbound: &mut BytesMut, node: &Node) -> std::io::Result<Opening>
where
    S: AsyncRead + Unpin,
{
    loop {
        match codec::open(inbound, node.settings().mqtt.max_packet_bytes_before_authentication) {
            Opening::Incomplete => {}
            opening => return Ok(opening),
        }
        if stream.read_buf(inbound).await? == 0 {
            return Ok(Opening::Incomplete);
        }
    }
}

/// What the client is told, and how it is counted unless it is already.
type Refusal = (ConnectAckReason, &'static str, Option<ConnectResult>);

async fn admit(connect: &Connect, peer: IpAddr, node: &Node, full: bool) -> Result<Arc<Visitor>, Refusal> {
    if full {
        let reason = ConnectAckReason::ConnectionRateExceeded;
        return Err((reason, "this node has as many connections as it may", Some(ConnectResult::Limit)));
    }
    if connect.auth_method {
        let reason = ConnectAckReason::BadAuthenticationMethod;
        return Err((reason, "the access token is the username", Some(ConnectResult::Malformed)));
    }
    let Some(token) = connect.username.as_ref().filter(|token| !token.is_empty()) else {
        let reason = ConnectAckReason::BadUserNameOrPassword;
        let why = "the username must be the device's access token";
        return Err((reason, why, Some(ConnectResult::NoUsername)));
    };
    node.admit(digest(token.as_bytes()), Protocol::Mqtt, peer).await.map_err(|why| match why {
        NotAdmitted::Unknown => (ConnectAckReason::NotAuthorized, "no device has this access token", None),
        NotAdmitted::TooManyGuesses => {
            (ConnectAckReason::ConnectionRateExceeded, "too many wrong access tokens: try again later", None)
        }
        NotAdmitted::Unavailable => {
            (ConnectAckReason::ServerUnavailable, "the device could not be authenticated", None)
        }
        NotAdmitted::Closed => {
            (ConnectAckReason::ServerUnavailable, "this node sends its devices away", None)
        }
        NotAdmitted::Busy(_) => {
            let why = "this customer has as many connections to this node as it may";
            (ConnectAckReason::ConnectionRateExceeded, why, None)
        }
    })
}

/// 0 and everything longer are capped (§3.2.2.3.14).
fn keep_alive_in_force(connect: &Connect, node: &Node) -> u16 {
    let cap = node.settings().mqtt.max_keep_alive_s;
    match connect.keep_alive_s {
        0 => cap,
        keep_alive_s => keep_alive_s.min(cap),
    }
}

fn acceptance(connect: &Connect, keep_alive_s: u16, limits: &SessionLimits, node: &Node) -> ConnectAck {
    // Not out of the node's id, by which it is found on NATS, or of a count of its visits: no device's business.
    let assigned = || ByteString::from(Uuid::new_v4().simple().to_string());
    ConnectAck {
        session_expiry_interval_secs: connect.wants_session.then_some(0),
        receive_max: std::num::NonZeroU16::new(limits.receive_maximum).unwrap_or(std::num::NonZeroU16::MIN),
        max_qos: QoS::AtLeastOnce,
        max_packet_size: Some(node.settings().mqtt.max_packet_bytes),
        assigned_client_id: connect.client_id.is_empty().then(assigned),
        topic_alias_max: limits.topic_alias_maximum,
        retain_available: false,
        subscription_identifiers_available: false,
        shared_subscription_available: false,
        server_keepalive_sec: (keep_alive_s != connect.keep_alive_s).then_some(keep_alive_s),
        ..ConnectAck::default()
    }
}

fn refusal(reason: ConnectAckReason, why: &'static str) -> ConnectAck {
    ConnectAck {
        reason_code: reason,
        reason_string: Some(ByteString::from_static(why)),
        ..ConnectAck::default()
    }
}

async fn write_connack<S: AsyncWrite + Unpin>(stream: &mut S, codec: &Codec, ack: ConnectAck) {
    let mut out = BytesMut::new();
    codec.connack(ack, &mut out);
    // The connection is closed next: a client that is gone already misses nothing.
    let _ = stream.write_all(&out).await;
}

fn refused(node: &Node, peer: IpAddr, result: ConnectResult, why: &'static str) -> Option<Connected> {
    node.metrics.connect(result);
    let (protocol, reason) = (Protocol::Mqtt, result.as_str());
    tracing::info!(address = %peer, %protocol, reason, why, "a connection was refused");
    None
}
