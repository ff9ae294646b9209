//! From where may a key be shown? Asked of every request, before anything else is.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use boot::clock::unix_ms;
use boot::forwarded;

use crate::Server;
use crate::answer::{Problem, thingsboard_error};
use crate::routes::shown_key;
use crate::thingsboard;

/// The address that a connection comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer(pub(crate) IpAddr);

/// Lets a request on unless it shows a key that lives and is bound to networks, and comes from none of them: that is
/// forbidden (403), whatever it asks.
pub(crate) async fn admit(State(server): State<Arc<Server>>, request: Request, next: Next) -> Response {
    let peer = request.extensions().get().map(|Peer(peer)| *peer);
    match server.is_elsewhere(request.headers(), peer).await {
        false => next.run(request).await,
        true if request.uri().path().starts_with(thingsboard::PATHS) => {
            let denied = "You don't have permission to perform this operation!";
            thingsboard_error(StatusCode::UNAUTHORIZED, denied, unix_ms())
        }
        true => {
            let title = "The application may not call from this address";
            Problem::new(StatusCode::FORBIDDEN, "denied", title).into_response()
        }
    }
}

impl Server {
    async fn is_elsewhere(&self, headers: &HeaderMap, peer: Option<IpAddr>) -> bool {
        // Who shows no key that lives is told so where it is asked for.
        let Ok(caller) = self.keys.caller(shown_key(headers)).await else { return false };
        let Some(networks) = &caller.networks else { return false };
        let sender = peer.map(|peer| forwarded::sender(peer, headers, &self.trusted_proxies));
        let is_elsewhere = !sender.is_some_and(|sender| networks.contains(sender));
        if is_elsewhere {
            self.keys.meters().refused.increment(1);
            let (app, key) = (caller.identity.app, caller.identity.key);
            let sender = sender.map(tracing::field::display);
            tracing::info!(%app, %key, sender, "a key was shown from where it is not taken");
        }
        is_elsewhere
    }
}
