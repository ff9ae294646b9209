//! Ingress: devices in and out. The only service that holds connections.
//!
//! `device_api` and most of `device` are pure; `calls` and `node` talk to the bus; `mqtt`, `http` and `coap` are
//! framing, with one loop for each connection, one for each device that speaks HTTP, and one for all of CoAP.

pub mod calls;
pub mod claims;
pub mod coap;
pub mod device;
pub mod device_api;
pub mod http;
mod leaving;
mod measured;
pub mod metrics;
pub mod mqtt;
pub mod node;
pub mod port;
pub mod proxied;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use boot::config::Settings;
use bus::Bus;
use bus::inspect::Numbers;
use rpc::Pace;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::field::display;

use crate::calls::Calls;
use crate::device::mailbox::{EndReason, Mail};
use crate::device::shares::NodeShares;
use crate::device::shed::Why;
use crate::node::{Inlets, Node};
use crate::tls::Tls;

/// Connections of a node that was told no number.
const MAX_CONNECTIONS: usize = 100_000;
/// Files for what is no device's connection: half of them for refusals and the admin endpoint, and the rest for NATS,
/// ports, certificates and traces.
const RESERVED_FILES: usize = 2 * (port::MAX_REFUSALS_AT_ONCE + boot::admin::MAX_CONNECTIONS);
const _: () = assert!(RESERVED_FILES == 128, "the documentation of ingress.max_connections says so");

/// A node was told to have more connections than the system allows it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "ingress.max_connections is {asked}, and this process may open {files} files, {RESERVED_FILES} of them for other \
     things: raise that limit (ulimit -Hn, LimitNOFILE of systemd), or set at most {}",
    files.saturating_sub(RESERVED_FILES)
)]
struct TooFewFiles {
    asked: usize,
    files: usize,
}

/// How many connections a node has room for. `asked` 0: as many as it may; `files`: what the process may open.
fn max_connections(asked: usize, files: Option<u64>) -> Result<usize, TooFewFiles> {
    let files = files.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX));
    let allowed = files.saturating_sub(RESERVED_FILES);
    match asked {
        0 => Ok(MAX_CONNECTIONS.min(allowed)),
        _ if asked <= allowed => Ok(asked),
        _ => Err(TooFewFiles { asked, files }),
    }
}

/// Ingress with its ports bound. Nothing is accepted until it is served.
#[derive(Debug)]
pub struct Ingress {
    max_connections: usize,
    mqtt: mqtt::Listener,
    mqtts: Option<mqtt::Listener>,
    http: http::Listener,
    coap: coap::Listener,
    tls: Option<Arc<Tls>>,
}

impl Ingress {
    /// Binds every port, so that one that is taken shows before anything else is begun.
    ///
    /// # Errors
    /// When a port cannot be bound, or the process may not open files for its connections; the error names the setting.
    pub async fn bind(settings: &Settings) -> anyhow::Result<Self> {
        let max_connections = max_connections(settings.ingress.max_connections, boot::max_open_files())?;
        let tls = Tls::load(&settings.tls)?;
        let mqtts = match &tls {
            Some(tls) => Some(mqtt::Listener::bind(settings.mqtt.tls_listen, Some(Arc::clone(tls)))?),
            None => None,
        };
        Ok(Ingress {
            max_connections,
            mqtt: mqtt::Listener::bind(settings.mqtt.listen, None)?,
            mqtts,
            http: http::Listener::bind(&settings.http, tls.clone())?,
            coap: coap::Listener::bind(settings.coap.listen).await?,
            tls,
        })
    }

    /// Where MQTT listens.
    pub fn mqtt_address(&self) -> SocketAddr {
        self.mqtt.address()
    }

    /// Where MQTT listens under TLS, if it does.
    pub fn mqtts_address(&self) -> Option<SocketAddr> {
        self.mqtts.as_ref().map(mqtt::Listener::address)
    }

    /// Where HTTPS listens, if it does.
    pub fn https_address(&self) -> Option<SocketAddr> {
        self.http.tls_address()
    }

    /// Where HTTP listens.
    pub fn http_address(&self) -> SocketAddr {
        self.http.address()
    }

    /// Where CoAP listens.
    pub fn coap_address(&self) -> SocketAddr {
        self.coap.address()
    }

    /// Serves devices until the context says stop; then drains: no new connections, claims released, calls in flight
    /// finished within `ingress.drain_ms`.
    ///
    /// # Errors
    /// When another process has begun to listen on one of the ports meanwhile. While NATS is away it waits.
    pub fn serve(self, context: boot::Context, bus: Bus) -> boot::Serving {
        Box::pin(self.run(context, bus))
    }

    async fn run(self, context: boot::Context, bus: Bus) -> anyhow::Result<()> {
        let settings = Arc::clone(&context.settings);
        let ready = context.health.part("ingress");
        ready.not_ready("not serving yet");

        let tracer = context.traces.tracer(context.service, bus.process());
        let _inspected = bus.inspected(&context, &tracer, Numbers::default());
        let inlets = tokio::select! {
            inlets = open(&bus) => inlets,
            () = context.shutdown.cancelled() => return Ok(()),
            never = self.coap.refuse_all() => match never {},
        };
        let shares = NodeShares::new(&settings, self.max_connections);
        let calls = Calls::new(bus.clone(), bus.process(), context.in_force.clone(), tracer.clone(), shares);
        let node =
            Arc::new(Node::new(context.in_force.clone(), bus.clone(), calls, tracer, self.max_connections));

        let (recheck, differs) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let introduce = Arc::new(Notify::new());
        let (background, connections) = (TaskTracker::new(), TaskTracker::new());
        let (stop_accepting, stop_background) = (CancellationToken::new(), CancellationToken::new());
        let in_background = |task: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>| {
            background.spawn(stop_background.clone().run_until_cancelled_owned(task));
        };
        let Inlets { deliveries, news } = inlets;
        in_background(Box::pin(deliveries.serve(Arc::clone(&node))));
        in_background(Box::pin(news.serve(Arc::clone(&node), Arc::clone(&recheck), Arc::clone(&differs))));
        in_background(Box::pin(claims::keep(Arc::clone(&node), Arc::clone(&introduce))));
        let new_router = move |beat: rpc::Beat, is_first| {
            if is_first || beat.asks {
                introduce.notify_one();
            }
        };
        in_background(Box::pin(node.bus.clone().hear_beats(new_router)));
        in_background(Box::pin(Arc::clone(&node).tell_offenders()));
        let shown = Arc::clone(&node);
        context.pages.add("/offenders", move || {
            let report = shown.offenders.lock().report(std::time::Instant::now());
            serde_json::to_string(&report).unwrap_or_default()
        });
        in_background(Box::pin(leaving::keep(Arc::clone(&node), context.health.clone())));
        in_background(Box::pin(leaving::send_uncalled_away(Arc::clone(&node))));
        in_background(Box::pin(claims::mend(Arc::clone(&node), differs)));
        in_background(Box::pin(node::recheck_visitors(Arc::clone(&node), recheck)));
        let changing = Arc::clone(&node);
        in_background(Box::pin(context.in_force.each(move |settings| changing.settings_changed(settings))));
        let (mqtt, http, coap) = (self.mqtt.address(), self.http.address(), self.coap.address());
        let (mqtts, https) = (self.mqtts_address().map(display), self.https_address().map(display));
        let doors = self.http.listen()?;
        let acceptors = self.mqtts.into_iter().chain([self.mqtt]).map(mqtt::Listener::listen);
        let acceptors = acceptors.collect::<anyhow::Result<Vec<_>>>()?;
        // Ready from here on, and not before: whoever comes then is not turned away.
        let bridging = Arc::clone(&node);
        let bridged = move || bridging.bridges_loss_of_nats();
        in_background(Box::pin(node.bus.clone().show_lasting_loss(ready.clone(), bridged)));
        tracing::info!(node = %node.id, %mqtt, %http, %coap, mqtts, https, "ingress serves devices");
        if let Some(tls) = self.tls {
            in_background(Box::pin(tls.keep_fresh()));
        }
        connections.spawn(self.coap.serve(Arc::clone(&node), stop_accepting.clone()));
        let (tracked, stop) = (connections.clone(), stop_accepting.clone());
        in_background(Box::pin(doors.serve(Arc::clone(&node), tracked, stop)));
        for acceptor in acceptors {
            let (tracked, stop) = (connections.clone(), stop_accepting.clone());
            background.spawn(acceptor.serve(Arc::clone(&node), tracked, stop));
        }

        context.shutdown.cancelled().await;
        ready.not_ready("shutting down");
        stop_accepting.cancel();
        drain(&node, &connections).await;
        claims::end_lease(&node).await;
        stop_background.cancel();
        background.close();
        background.wait().await;
        Ok(())
    }
}

/// The node's subscriptions: as soon as NATS and a router are there.
async fn open(bus: &Bus) -> Inlets {
    let open = async || {
        let inlets = Inlets::open(bus).await.map_err(|error| error.to_string())?;
        let asked = claims::is_router_there(bus).await;
        asked.map(|()| inlets).map_err(|error| format!("no router keeps claims: {error}"))
    };
    bus.again("serve devices", open).await
}

/// Sends everybody away within half of `drain_ms`, lets calls in flight finish, then cuts off.
async fn drain(node: &Node, connections: &TaskTracker) {
    let visitors = node.sessions.visitors().len();
    tracing::info!(node = %node.id, visitors, "draining");
    connections.close();
    let patience = Duration::from_millis(node.settings().ingress.drain_ms);
    let until = tokio::time::Instant::now() + patience;
    let at_least = (visitors as f64 / (patience / 2).as_secs_f64().max(0.001)).ceil() as u32;
    let per_second = node.settings().ingress.shed_per_second.max(at_least);
    node.send_away(Why::ShuttingDown, Pace { per_second: Some(per_second), wait_ms: 0 }, None).await;
    if tokio::time::timeout_at(until, connections.wait()).await.is_err() {
        let visitors = node.sessions.visitors().len();
        tracing::warn!(node = %node.id, visitors, "the time to drain is over: cutting off what is still in flight");
        node.sessions.tell_all(|| Mail::End(EndReason::ShuttingDown));
        // Ends: no session waits for anything longer than its goodbye now. Those still shaking hands are dropped.
        let _ = tokio::time::timeout(GOODBYE, connections.wait()).await;
    }
    tracing::info!(node = %node.id, "drained");
}

/// How long the sessions that were cut off may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_has_room_for_what_it_may_open() {
        let refused = |asked, files| Err(TooFewFiles { asked, files });
        let table = [
            (0, Some(1_048_576), Ok(100_000)),
            (0, None, Ok(100_000)),
            (0, Some(20_000), Ok(19_872)),
            (0, Some(64), Ok(0)),
            (19_872, Some(20_000), Ok(19_872)),
            (19_873, Some(20_000), refused(19_873, 20_000)),
            (1, Some(64), refused(1, 64)),
            (10_000_000, None, Ok(10_000_000)),
        ];
        for (asked, files, expected) in table {
            assert_eq!(max_connections(asked, files), expected, "{asked} of {files:?}");
        }
        let said = TooFewFiles { asked: 100_000, files: 20_000 }.to_string();
        assert!(
            said.contains("ingress.max_connections is 100000") && said.contains("at most 19872"),
            "{said}"
        );
    }
}
