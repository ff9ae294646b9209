//! How does an answer reach its call when the device answers at another node than the one that gave it? The call's
//! number says which that is: it is asked, once. A load balancer that keeps a device at one node saves the way.

use std::future::Future;
use std::time::Duration;

use bus::{AskError, BusError, Request, Requests, Subject};
use bytes::Bytes;
use rpc::{Answer, AnswerReply, DeviceId, Protocol, wire};

use super::sessions::Visitor;
use super::target::{AnswerTaken, Numbers};
use crate::node::Node;

/// How long the node that gave the call may take.
const WAIT: Duration = Duration::from_secs(1);

/// Between two attempts to subscribe, while NATS is away.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// An answer that another node hands to this one.
#[derive(Debug)]
pub struct Handed {
    /// Whose.
    pub device: DeviceId,
    /// To the call of this number.
    pub number: u32,
    /// What it says.
    pub body: Bytes,
    /// Where that node [hears](tell) what became of it.
    pub reply_to: Subject,
}

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

/// Takes what other nodes hand to this one of devices that speak `protocol` here, without end. `take` has each
/// [told](tell) what became of it.
pub async fn serve<F: Future>(node: &Node, protocol: Protocol, take: impl Fn(Handed) -> F) {
    loop {
        let mut answers = node.bus.again("take answers from other nodes", || subscribe(node)).await;
        while let Some(Request { message, reply_to, .. }) = answers.next().await {
            let (Some(reply_to), Ok((answer, body))) = (reply_to, wire::decode::<Answer>(&message)) else {
                tracing::error!("another node's answer could not be read");
                continue;
            };
            let Answer { device, number, protocol: spoken } = answer;
            if spoken.unwrap_or(Protocol::Http) == protocol {
                take(Handed { device, number, body, reply_to }).await;
            }
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn subscribe(node: &Node) -> Result<Requests, BusError> {
    node.bus.serve(node.bus.subjects().answer(node.id.tag()), None).await
}

/// Tells the other node what became of the answer that it handed on, with each visitor of the device here. Of several,
/// one at most has the call; where there is none nothing is told: nodes may share a tag.
pub async fn tell(node: &Node, to: Subject, taken: impl Iterator<Item = AnswerTaken>) {
    let Some(taken) = taken.reduce(|a, b| if a == AnswerTaken::NoSuchCall { b } else { a }) else { return };
    let reply = match taken {
        AnswerTaken::Yes => AnswerReply::Taken,
        AnswerTaken::NoSuchCall | AnswerTaken::OneWay => AnswerReply::NoSuchCall,
        AnswerTaken::NotJson => AnswerReply::NotJson,
    };
    if let Err(error) = node.bus.tell(to, wire::encode(&reply, b"")).await {
        tracing::debug!(%error, "another node was not told what became of its answer");
    }
}
