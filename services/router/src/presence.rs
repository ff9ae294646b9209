//! Who of these is online? Answered from memory, for the lists that devices ask for.

use bus::{Bus, Request};
use rpc::{PresenceReply, PresenceRequest, wire};

use crate::Known;

/// Says of each device whether a node that is alive claims it.
pub(crate) async fn answer(bus: &Bus, known: &Known, request: Request) {
    let Some(reply_to) = request.reply_to else { return };
    let Ok((PresenceRequest { devices }, _)) = wire::decode(&request.message) else {
        tracing::warn!("a question for presence cannot be read");
        return;
    };
    let is_online =
        |device| known.claims.get(device).is_some_and(|(claim, _)| known.leases.may_live(claim.node));
    let online = devices.into_iter().map(is_online).collect();
    let sent = match wire::encode(&PresenceReply { online }, b"") {
        Ok(message) => bus.tell(reply_to, message).await.map_err(|error| error.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = sent {
        tracing::warn!(error, "presence cannot be told");
    }
}
