//! What does somebody do who has stolen a node's NATS credentials, and no device's token? He claims, and he calls.

use std::time::Instant;

use bytes::Bytes;
use rpc::{
    Budget, Call, CallId, ClaimRequest, DeliveryReply, DeviceId, Holder, NodeId, Outcome, Protocol,
    SessionId, Stamp, Ticket, TicketKeys,
};

use crate::client::FromClient;
use crate::history::Event;
use crate::message::{Payload, SECOND, Topic};
use crate::service::{Beliefs, Context, Effect, Input, Service};
use crate::wire::{Taken, Wire};
use crate::world::{THIEF, call_of};

/// A process that is none of ours.
pub struct Thief {
    id: NodeId,
    wire: Wire<()>,
    ticket: Option<Ticket>,
}

impl Thief {
    /// With a key of his own.
    pub fn new(id: NodeId, now: Instant) -> Self {
        let keys = TicketKeys::default().rotated([0x66; 32], 0).unwrap_or_default();
        let holder = Holder { device: DeviceId(uuid::Uuid::nil()), node: id, visit: 1 };
        let ticket = keys.sign(holder, Stamp::of_digest(&[0; 32]), 0);
        Thief { id, wire: Wire::new(None, now), ticket }
    }
}

impl Service for Thief {
    fn take(&mut self, input: Input, context: &mut Context<'_>) {
        match self.wire.take(input, context) {
            Taken::Up => context.effects.push(Effect::Subscribe(Topic::Node(self.id), false)),
            Taken::Request(message, _) => {
                if let Payload::Delivery(_, body) = &message.payload {
                    if let Some(call) = call_of(body) {
                        context.record(Event::Executed { call, session: THIEF });
                    }
                    let reply = DeliveryReply::Ended(Outcome::Answered);
                    self.wire.answer(message.reply_to, Payload::Delivered(reply, Bytes::new()), context);
                }
            }
            Taken::Other(Input::FromClient(call, FromClient::Call(_, device, ..))) => {
                let Some(ticket) = self.ticket else { return };
                let (node, session) = (self.id, SessionId(1));
                let protocol = Protocol::Mqtt;
                let claim = ClaimRequest {
                    device,
                    node,
                    session,
                    protocol,
                    generation: None,
                    until: None,
                    visit: 1,
                    ticket,
                    since_ms: None,
                    is_again: false,
                };
                let claim = Payload::Claim(Box::new(claim));
                // Nobody needs to hear what is answered.
                let _ = self.wire.ask(Topic::Claim, claim, SECOND, (), context);
                let head = Call {
                    call: CallId { node, serial: call as u64 },
                    caller: device,
                    caller_name: String::new(),
                    visit: 1,
                    ticket: Some(ticket),
                    target: device,
                    budget_ms: Budget::from_ms(2_000),
                    until: None,
                    connect_budget_ms: Budget::from_ms(0),
                    protocol: Some(Protocol::Mqtt),
                    oneway: false,
                    traceparent: None,
                    app: None,
                };
                let body = Bytes::from(call.to_string());
                let _ =
                    self.wire.ask(Topic::Call, Payload::Call(Box::new(head), body), 2 * SECOND, (), context);
            }
            _ => {}
        }
    }

    fn serves(&self) -> bool {
        false
    }

    fn beliefs(&self) -> Beliefs {
        Beliefs::new()
    }

    fn leaks(&self) -> Vec<String> {
        Vec::new()
    }
}
