//! How does an answer reach its call when the device answers at another node than the one that gave it? The call's
//! number says which that is: it is asked, once. A load balancer that keeps a device at one node saves the way.

use std::future::Future;
use std::time::Duration;

use bus::{AskError, BusError, Request, Requests};
use bytes::Bytes;
use rpc::{Answer, AnswerReply, DeviceId, Protocol, wire};

use super::sessions::Visitor;
use super::target::{AnswerTaken, Numbers};
use crate::node::Node;

/// How long the node that gave the call may take.
const WAIT: Duration = Duration::from_secs(1);

/// Between two attempts to subscribe, while NATS is away.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Hands an answer to the node that gave the call. None when NATS cannot be reached.
pub async fn hand_on(node: &Node, by: &Visitor, number: u32, body: &Bytes) -> Option<AnswerTaken> {
    let tag = Numbers::node_tag(number);
    if tag == node.id.tag() {
        return Some(AnswerTaken::NoSuchCall);
    }
    let answer = Answer { device: by.device, number, protocol: Some(by.protocol) };
    match node.bus.ask(node.bus.subjects().answer(tag), wire::encode(&answer, body), WAIT).await {
        Ok(reply) => match wire::decode(&reply) {
            Ok((AnswerReply::Taken, _)) => Some(AnswerTaken::Yes),
            Ok((AnswerReply::NoSuchCall, _)) => Some(AnswerTaken::NoSuchCall),
            Ok((AnswerReply::NotJson, _)) => Some(AnswerTaken::NotJson),
            Err(error) => {
                tracing::error!(%error, "what became of an answer could not be read");
                None
            }
        },
        // No such node, or none that knows the device.
        Err(AskError::NoResponders | AskError::Expired) => Some(AnswerTaken::NoSuchCall),
        Err(error) => {
            tracing::warn!(device = %by.device, %error, "an answer could not be handed to another node");
            None
        }
    }
}

/// Takes what other nodes hand to this one, without end. `take` says what became of an answer with each visitor of the
/// device that speaks `protocol` here.
pub async fn serve<F>(node: &Node, protocol: Protocol, take: impl Fn(DeviceId, u32, Bytes) -> F)
where
    F: Future<Output = Vec<AnswerTaken>>,
{
    loop {
        let mut answers = node.bus.again("take answers from other nodes", || subscribe(node)).await;
        while let Some(Request { message, reply_to, .. }) = answers.next().await {
            let (Some(to), Ok((answer, body))) = (reply_to, wire::decode::<Answer>(&message)) else {
                tracing::error!("another node's answer could not be read");
                continue;
            };
            let Answer { device, number, protocol: spoken } = answer;
            if spoken.unwrap_or(Protocol::Http) != protocol {
                continue;
            }
            let Some(reply) = reply(take(device, number, body).await) else { continue };
            if let Err(error) = node.bus.tell(to, wire::encode(&reply, b"")).await {
                tracing::debug!(%device, %error, "another node was not told what became of its answer");
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn subscribe(node: &Node) -> Result<Requests, BusError> {
    node.bus.serve(node.bus.subjects().answer(node.id.tag()), None).await
}

/// Of several visitors with the same device, one at most has the call. None when the device is not here: nodes may
/// share a tag.
fn reply(taken: Vec<AnswerTaken>) -> Option<AnswerReply> {
    let taken = taken.into_iter().reduce(|a, b| if a == AnswerTaken::NoSuchCall { b } else { a })?;
    Some(match taken {
        AnswerTaken::Yes => AnswerReply::Taken,
        AnswerTaken::NoSuchCall | AnswerTaken::OneWay => AnswerReply::NoSuchCall,
        AnswerTaken::NotJson => AnswerReply::NotJson,
    })
}
