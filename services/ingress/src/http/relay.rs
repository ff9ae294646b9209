//! How does an answer reach its call when the device answers at another node than it polled? The call's number says
//! which node gave it: that one is asked, once. A load balancer that keeps a device at one node saves the way.

use std::time::Duration;

use bus::{AskError, BusError, Request, Requests};
use bytes::Bytes;
use rpc::{Answer, AnswerReply, wire};

use super::device::Device;
use super::devices::Devices;
use crate::device::sessions::Visitor;
use crate::device::target::AnswerTaken;
use crate::node::Node;

/// How long the node that gave the call may take.
const WAIT: Duration = Duration::from_secs(1);

/// Between two attempts to subscribe, while NATS is away.
const RETRY_PAUSE: Duration = Duration::from_millis(500);

/// Hands an answer to the node that gave the call. None when NATS cannot be reached.
pub(super) async fn hand_on(node: &Node, by: &Visitor, number: u32, body: &Bytes) -> Option<AnswerTaken> {
    let tag = Device::node_tag(number);
    if tag == node.id.tag() {
        return Some(AnswerTaken::NoSuchCall);
    }
    let message = wire::encode(&Answer { device: by.device, number }, body);
    match node.bus.ask(node.bus.subjects().answer(tag), message, WAIT).await {
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

/// Takes what other nodes hand to this one, without end.
pub(super) async fn serve(node: &Node, devices: &Devices) {
    loop {
        let mut answers = node.bus.again("take answers from other nodes", || subscribe(node)).await;
        while let Some(request) = answers.next().await {
            take(node, devices, request).await;
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn subscribe(node: &Node) -> Result<Requests, BusError> {
    node.bus.serve(node.bus.subjects().answer(node.id.tag()), None).await
}

async fn take(node: &Node, devices: &Devices, request: Request) {
    let (Some(to), Ok((Answer { device, number }, body))) =
        (request.reply_to, wire::decode(&request.message))
    else {
        return tracing::error!("another node's answer could not be read");
    };
    let known = devices.of(device);
    let taken = known.iter().map(|device| device.answer(number, &body));
    // Of several with the same device, one at most has the call.
    let Some(taken) = taken.reduce(|a, b| if a == AnswerTaken::NoSuchCall { b } else { a }) else { return };
    let reply = match taken {
        AnswerTaken::Yes => AnswerReply::Taken,
        AnswerTaken::NoSuchCall | AnswerTaken::OneWay => AnswerReply::NoSuchCall,
        AnswerTaken::NotJson => AnswerReply::NotJson,
    };
    if let Err(error) = node.bus.tell(to, wire::encode(&reply, b"")).await {
        tracing::debug!(%device, %error, "another node was not told what became of its answer");
    }
}
