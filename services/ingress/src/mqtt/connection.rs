//! How does one connection run? One loop that waits for whatever comes first, hands it to the session, and performs
//! what the session asks for.

use std::future::{Future, poll_fn};
use std::io;
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use boot::panics::set_apart;
use bytes::{Buf, BytesMut};
use futures::Stream;
use futures::channel::mpsc::{UnboundedReceiver, UnboundedSender, unbounded};
use futures::stream::FuturesUnordered;
use rpc::SessionEnd;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::time::Sleep;

use super::handshake::{Connected, shake_hands};
use super::session::{Effect, Ended, Session, Ticket};
use crate::calls::{self, Asked};
use crate::device::admit::digest;
use crate::device::mailbox::{EndReason, Mail};
use crate::device::sessions::{self, CredentialDigest, Visitor};
use crate::device_api::Request;
use crate::node::Node;
use crate::port::{LINGER, linger};

/// How much one read takes. On the stack: an idle connection owns no buffer.
const READ_BYTES: usize = 8192;

/// Serves one client, who has connected from `peer`, from its first byte to its last.
#[expect(clippy::manual_async_fn, reason = "its future would keep the arguments twice")]
pub(crate) fn serve<S>(stream: &mut S, peer: &IpAddr, node: &Arc<Node>) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    async move {
        // Boxed: the handshake is long over when a connection is counted in kilobytes.
        let mut connected = Box::pin(shake_hands(stream, *peer, node, false)).await;
        if let Some(connected) = &mut connected {
            attend(stream, connected, node).await;
        }
        Box::pin(linger(stream)).await;
    }
}

/// Serves a visitor until he leaves, or a fault of the program ends his session.
#[expect(clippy::manual_async_fn, reason = "its future would keep the arguments twice")]
fn attend<S>(stream: &mut S, connected: &mut Connected, node: &Arc<Node>) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    async move {
        if set_apart(run(stream, connected, node)).await.is_err() {
            Box::pin(node.clear_away(&connected.visitor)).await;
        }
        node.leave(&connected.visitor);
    }
}

/// Tells a client that the node has as many connections as it may.
pub(crate) async fn refuse<S>(stream: &mut S, peer: IpAddr, node: &Node)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    shake_hands(stream, peer, node, true).await;
    linger(stream).await;
}

/// What a connection waits for.
enum Wake {
    Mail(Mail),
    Done(Done),
    Read(io::Result<usize>),
    Written(io::Result<usize>),
    Tick,
}

/// What was being done for the session is done.
enum Done {
    Asked(Answered),
    Uplinked(NonZeroU16, bool),
}

/// How a request of the device ended.
struct Answered {
    number: u32,
    ticket: Ticket,
    ended: calls::Ended,
}

/// What is being done for a session.
struct InHand {
    answered_tx: UnboundedSender<Answered>,
    answered: UnboundedReceiver<Answered>,
    /// Questions by our number for each.
    asked: Vec<(u32, Asked)>,
    last_number: u32,
    uplinks: FuturesUnordered<Pin<Box<dyn Future<Output = Done> + Send>>>,
}

impl InHand {
    fn new() -> Self {
        let (answered_tx, answered) = unbounded();
        InHand { answered_tx, answered, asked: Vec::new(), last_number: 0, uplinks: FuturesUnordered::new() }
    }

    fn ask(
        &mut self,
        node: &Node,
        caller: &Visitor,
        ticket: Ticket,
        request: Request,
        traceparent: Option<String>,
    ) {
        self.last_number = self.last_number.wrapping_add(1);
        let (number, answered) = (self.last_number, self.answered_tx.clone());
        let asked = node.calls.begin(caller, request, traceparent, move |ended| {
            // Without a receiver the session is over.
            let _ = answered.unbounded_send(Answered { number, ticket, ended });
        });
        self.asked.extend(asked.map(|asked| (number, asked)));
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Done> {
        if let Poll::Ready(Some(answered)) = Pin::new(&mut self.answered).poll_next(cx) {
            if let Some(place) = self.asked.iter().position(|(number, _)| *number == answered.number) {
                self.asked.swap_remove(place);
            }
            return Poll::Ready(Done::Asked(answered));
        }
        match Pin::new(&mut self.uplinks).poll_next(cx) {
            Poll::Ready(Some(done)) => Poll::Ready(done),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Nobody reads the answers any more.
    fn give_up(self, node: &Node) {
        self.asked.into_iter().for_each(|(_, asked)| node.calls.give_up(asked));
    }
}

#[expect(clippy::manual_async_fn, reason = "its future would keep the arguments twice")]
fn run<S>(stream: &mut S, connected: &mut Connected, node: &Arc<Node>) -> impl Future<Output = ()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    async move {
        // Taken apart anew between any two waits: a reference that is held over one is a part of every task.
        let session = &mut connected.session;
        // While the device can be called.
        let mut callable: Option<Arc<sessions::Session>> = None;
        let max_packet_bytes = node.settings().mqtt.max_packet_bytes;
        let max_outbound_bytes = node.settings().ingress.max_outbound_bytes;
        // Made with the first request: a device that is only called never has one.
        let mut in_hand: Option<Box<InHand>> = None;
        let mut timer = pin!(tokio::time::sleep_until(session.next_tick().into()));
        let mut mail_first = true;
        let mut limits = node.limits.subscribe();
        // They may have changed since the CONNECT.
        session.change_limits(Arc::clone(&limits.borrow_and_update()));

        session.received(&mut connected.inbound, max_packet_bytes, Instant::now());
        let ended = loop {
            let Connected { visitor, session, inbound } = &mut *connected;
            if session.asks_for_something()
                && let Some(ended) =
                    // Boxed: an idle connection does not keep the room that this takes.
                    Box::pin(perform(session, inbound, visitor, &mut callable, node, &mut in_hand))
                            .await
            {
                break ended;
            }
            if session.unread_bytes() > max_outbound_bytes {
                session.end_slow_consumer();
                continue;
            }
            if session.next_tick() < timer.deadline().into_std() {
                timer.as_mut().reset(session.next_tick().into());
            }
            mail_first = !mail_first;
            let wake = poll_fn(|cx| {
                let Connected { visitor, session, inbound } = &mut *connected;
                let reads = session.wants_input().then_some(session.left_off());
                let mail = (&**visitor, callable.as_deref());
                let out = session.out();
                let wake = poll_wake(
                    cx,
                    mail,
                    &mut in_hand,
                    timer.as_mut(),
                    stream,
                    inbound,
                    out,
                    reads,
                    mail_first,
                );
                match wake {
                    // All else has been looked for, and wakes this: no need to look again.
                    Poll::Ready(Wake::Written(Ok(bytes))) if wrote(session, bytes) => Poll::Pending,
                    wake => wake,
                }
            });
            let wake = wake.await;
            let Connected { visitor, session, inbound } = &mut *connected;
            // Nobody is woken for it: they hold for what comes next.
            if limits.has_changed().is_ok_and(|it| it) {
                session.change_limits(Arc::clone(&limits.borrow_and_update()));
            }
            let leaves = heed(wake, session, inbound, visitor, node, timer.as_mut(), max_packet_bytes);
            if let Some(reason) = leaves {
                if session.leaves()
                    && let Some(callable) = &callable
                {
                    Box::pin(node.release(callable, reason.into())).await;
                }
                session.leave(reason);
            }
            if inbound.is_empty() {
                // An idle connection owns no buffer: not even a part without room, which keeps the whole.
                *inbound = BytesMut::new();
            }
        };
        let Connected { visitor, session, .. } = connected;
        let fault = match ended {
            Ended::Fault(fault) => Some(fault),
            Ended::ByClient | Ended::KeepAlive | Ended::ByNode(_) | Ended::SlowConsumer => None,
        };
        let reason = ended.session_end().as_str();
        tracing::debug!(device = %visitor.device, reason, fault, "a connection ends");
        if let Some(in_hand) = in_hand {
            in_hand.give_up(node);
        }
        Box::pin(end(stream, session, visitor, callable, ended, node)).await;
    }
}

/// Tells the session of what came. Why it is to leave, if that is it: for this alone something is awaited.
fn heed(
    wake: Wake,
    session: &mut Session,
    inbound: &mut BytesMut,
    visitor: &Visitor,
    node: &Node,
    timer: Pin<&mut Sleep>,
    max_packet_bytes: u32,
) -> Option<EndReason> {
    match wake {
        Wake::Mail(Mail::Deliver(call)) => session.deliver(call, Instant::now()),
        Wake::Mail(Mail::End(reason)) => session.end_by_node(reason),
        Wake::Mail(Mail::Leave(reason)) => return Some(reason),
        Wake::Done(Done::Asked(Answered { ticket, ended, .. })) => {
            let told = session.answered(&ticket, ended);
            node.call_ended(visitor, ticket.method, &told, ticket.started.elapsed());
        }
        Wake::Done(Done::Uplinked(packet_id, taken)) => {
            session.uplinked(packet_id, taken, Instant::now());
            session.received(inbound, max_packet_bytes, Instant::now());
        }
        Wake::Read(Ok(0)) | Wake::Read(Err(_)) | Wake::Written(Err(_)) => session.end_of_stream(),
        Wake::Read(Ok(_)) => {
            session.received(inbound, max_packet_bytes, Instant::now());
        }
        Wake::Written(Ok(_)) => {}
        Wake::Tick => {
            session.tick(Instant::now());
            session.received(inbound, max_packet_bytes, Instant::now());
            timer.reset(session.next_tick().into());
        }
    }
    None
}

/// The socket has taken so many bytes. True when that was all, and nothing follows from it.
fn wrote(session: &mut Session, bytes: usize) -> bool {
    let wanted_input = session.wants_input();
    let out = session.out();
    out.advance(bytes);
    if !out.is_empty() {
        return false;
    }
    *out = BytesMut::new();
    session.flushed();
    !session.asks_for_something() && session.out().is_empty() && session.wants_input() == wanted_input
}

/// What comes first. The order is turned round each time, so that neither calls nor the client can starve the other;
/// writing comes last, when there is nothing more to write with it.
#[expect(clippy::too_many_arguments, reason = "the parts of one loop, borrowed apart")]
fn poll_wake<S>(
    cx: &mut Context<'_>,
    (visitor, callable): (&Visitor, Option<&sessions::Session>),
    in_hand: &mut Option<Box<InHand>>,
    timer: Pin<&mut Sleep>,
    stream: &mut S,
    inbound: &mut BytesMut,
    out: &BytesMut,
    reads: Option<bool>,
    mail_first: bool,
) -> Poll<Wake>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let poll_mail = |cx: &mut Context<'_>| {
        if let Poll::Ready(mail) = visitor.mailbox.poll_next(cx) {
            return Poll::Ready(mail);
        }
        callable.map_or(Poll::Pending, |session| session.mailbox.poll_next(cx))
    };
    if mail_first && let Poll::Ready(mail) = poll_mail(cx) {
        return Poll::Ready(Wake::Mail(mail));
    }
    if let Some(in_hand) = in_hand
        && let Poll::Ready(done) = in_hand.poll_next(cx)
    {
        return Poll::Ready(Wake::Done(done));
    }
    match reads {
        // What was performed has had its chance to say that nothing more is read.
        Some(true) => return Poll::Ready(Wake::Read(Ok(inbound.len()))),
        Some(false) => {
            if let Poll::Ready(read) = poll_read(cx, stream, inbound) {
                return Poll::Ready(Wake::Read(read));
            }
        }
        None => {}
    }
    if !mail_first && let Poll::Ready(mail) = poll_mail(cx) {
        return Poll::Ready(Wake::Mail(mail));
    }
    if timer.poll(cx).is_ready() {
        return Poll::Ready(Wake::Tick);
    }
    match out.is_empty() {
        true => Poll::Pending,
        false => Pin::new(stream).poll_write(cx, out).map(Wake::Written),
    }
}

fn poll_read<S: AsyncRead + Unpin>(
    cx: &mut Context<'_>,
    stream: &mut S,
    inbound: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    let mut storage = [MaybeUninit::<u8>::uninit(); READ_BYTES];
    let mut read = ReadBuf::uninit(&mut storage);
    match Pin::new(stream).poll_read(cx, &mut read) {
        Poll::Ready(Ok(())) => {
            inbound.extend_from_slice(read.filled());
            Poll::Ready(Ok(read.filled().len()))
        }
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        Poll::Pending => Poll::Pending,
    }
}

/// Performs what the session asks for. Says when and how it ended.
async fn perform(
    session: &mut Session,
    inbound: &mut BytesMut,
    visitor: &Arc<Visitor>,
    callable: &mut Option<Arc<sessions::Session>>,
    node: &Arc<Node>,
    in_hand: &mut Option<Box<InHand>>,
) -> Option<Ended> {
    let max_packet_bytes = || node.settings().mqtt.max_packet_bytes;
    while let Some(effect) = session.next_effect() {
        match effect {
            Effect::Ask(ticket, request, traceparent) => {
                let traceparent = traceparent.map(|text| text.to_string());
                in_hand.get_or_insert_with(|| Box::new(InHand::new())).ask(
                    node,
                    visitor,
                    ticket,
                    request,
                    traceparent,
                );
            }
            Effect::Uplink(kind, payload, packet_id) => {
                // Told here, in order; what waits for NATS waits beside the others.
                let told = node.tell_uplink(visitor, kind, payload).await;
                match packet_id {
                    Some(packet_id) => {
                        let node = Arc::clone(node);
                        let visitor = Arc::clone(visitor);
                        let job = async move {
                            Done::Uplinked(packet_id, node.confirm_uplink(&visitor, told).await)
                        };
                        in_hand.get_or_insert_with(|| Box::new(InHand::new())).uplinks.push(Box::pin(job));
                    }
                    None => node.metrics.uplinked(told),
                }
            }
            Effect::Conclude(conclusion) => node.conclude(conclusion).await,
            Effect::Claim(pending) => {
                *callable = Box::pin(node.begin_session(visitor)).await;
                session.claimed(pending, callable.is_some());
                session.received(inbound, max_packet_bytes(), Instant::now());
            }
            Effect::Release(pending) => {
                if let Some(callable) = callable.take() {
                    Box::pin(node.end_session(&callable, SessionEnd::ByDevice)).await;
                }
                session.released(&pending);
                session.received(inbound, max_packet_bytes(), Instant::now());
            }
            Effect::Refused(method, outcome) => node.metrics.call_ended(method, &outcome, Duration::ZERO),
            Effect::LimitHit(limit) => node.limit_hit(visitor, limit),
            Effect::Dropped(reason, topic) => {
                node.metrics.message_dropped(reason);
                if let Some(topic) = topic {
                    let (reason, topic) = (reason.as_str(), loggable(&topic, visitor.credential));
                    tracing::info!(device = %visitor.device, reason, topic = &*topic, "messages are dropped");
                }
            }
            Effect::AnswerUnheard => node.metrics.answers_unheard.increment(1),
            Effect::Close(ended) => return Some(ended),
        }
    }
    None
}

/// How much of a topic the log has: so many levels, and so many characters.
const MAX_LOGGED_LEVELS: usize = 8;
const MAX_LOGGED_CHARS: usize = 120;

/// A topic for the log: not too long, and without its device's access token, which firmware may have put there as other
/// protocols have it in their paths.
fn loggable(topic: &str, credential: CredentialDigest) -> String {
    let mut levels: Vec<&str> = topic.split('/').take(MAX_LOGGED_LEVELS).collect();
    for from in 0..levels.len() {
        // A token may hold a slash.
        let is_token = |to: &usize| {
            levels.get(from..*to).is_some_and(|it| digest(it.join("/").as_bytes()) == credential)
        };
        if let Some(to) = (from + 1..=levels.len()).find(is_token) {
            levels.splice(from..to, ["***"]);
            break;
        }
    }
    levels.join("/").chars().take(MAX_LOGGED_CHARS).collect()
}

/// Ends a session: answers what was open, releases its claim, hands up its will, and says goodbye.
async fn end<S>(
    stream: &mut S,
    session: &mut Session,
    visitor: &Visitor,
    callable: Option<Arc<sessions::Session>>,
    ended: Ended,
    node: &Node,
) where
    S: AsyncWrite + Unpin,
{
    if let Some(callable) = callable {
        node.end_session(&callable, ended.session_end()).await;
    }
    session.end(ended, Instant::now());
    while let Some(effect) = session.next_effect() {
        match effect {
            Effect::Conclude(conclusion) => node.conclude(conclusion).await,
            Effect::Uplink(kind, payload, None) => {
                let told = node.tell_uplink(visitor, kind, payload).await;
                node.metrics.uplinked(told);
            }
            Effect::Dropped(reason, _) => node.metrics.message_dropped(reason),
            // Nobody is there for the rest.
            _ => {}
        }
    }
    let out = std::mem::take(session.out());
    let _ = tokio::time::timeout(LINGER, stream.write_all(&out)).await;
}

#[cfg(test)]
mod tests {
    use boot::{InForce, Settings};
    use bus::server::{NatsServer, ServerOptions, find_binary};
    use bus::{Bus, BusSettings};
    use rpc::{DeviceId, Holder, Identity, NodeId, Protocol, SessionEvent, Stamp, TenantId, TicketKeys};
    use uuid::Uuid;

    use super::super::codec::{Codec, Version};
    use super::*;
    use crate::calls::Calls;
    use crate::device::shares::NodeShares;

    /// A client whose bytes find a fault of the program.
    struct Faulty;

    impl AsyncRead for Faulty {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            panic!("a fault of the program")
        }
    }

    impl AsyncWrite for Faulty {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    fn identity() -> Identity {
        let device = DeviceId(Uuid::from_u128(1));
        let holder = Holder { device, node: NodeId(1), visit: 1 };
        let keys = TicketKeys::default().rotated([0; 32], 0).unwrap();
        let ticket = keys.sign(holder, Stamp::of_digest(&[7; 32]), 0).unwrap();
        let tenant = TenantId(Uuid::from_u128(2));
        Identity { device, tenant, customer: None, name: "A".to_owned(), ticket }
    }

    #[tokio::test]
    async fn a_session_that_panics_leaves_nothing_behind() {
        let binary = find_binary().expect("nats-server is needed: on the PATH or named by NATS_SERVER");
        let server = NatsServer::start(&ServerOptions { binary, ..Default::default() }).await.unwrap();
        let settings = BusSettings { url: server.url(), ..BusSettings::default() };
        let bus = Bus::connect(&settings, "test").await.unwrap();
        let tracer = boot::Traces::default().tracer("ingress", bus.process());
        let shares = NodeShares::new(&Settings::default(), 10);
        let in_force = InForce::fixed(Arc::default());
        let calls = Calls::new(bus.clone(), bus.process(), in_force.clone(), tracer.clone(), shares);
        let node = Arc::new(Node::new(in_force, bus.clone(), calls, tracer, 10));

        let (identity, now) = (identity(), Instant::now());
        let down = bus.subjects().session_event(identity.device, "down");
        let mut ended = bus.serve(down, None).await.unwrap();
        let party = rpc::Party::of(identity.tenant, identity.customer);
        let place = node.shares.visitor(party, Protocol::Mqtt).unwrap();
        let visitor = node.sessions.enter(1, identity, [7; 32], Protocol::Mqtt, place, now);
        let callable = node.sessions.begin(&visitor, 0);
        let caller = Arc::clone(&visitor.caller);
        let session = Session::new(Codec::new(Version::V5), node.limits(), caller, 60, 10, None, now);
        let mut connected = Connected { visitor, session: Box::new(session), inbound: BytesMut::new() };
        attend(&mut Faulty, &mut connected, &node).await;
        drop(connected);

        assert!(node.sessions.is_empty(), "neither the visitor nor his session");
        let event: SessionEvent = serde_json::from_slice(&ended.next().await.unwrap().message).unwrap();
        assert_eq!((event.session, event.reason), (callable.id, Some(rpc::SessionEnd::Fault)));
    }

    #[test]
    fn a_topic_is_logged_without_its_devices_token() {
        let long = "ü".repeat(1000);
        let table = [
            ("v1/gateway/connect", "secret", "v1/gateway/connect".to_owned()),
            ("api/v1/secret/telemetry", "secret", "api/v1/***/telemetry".to_owned()),
            ("secret", "secret", "***".to_owned()),
            ("/a/se/cret/b/", "se/cret", "/a/***/b/".to_owned()),
            ("secrets/secre", "secret", "secrets/secre".to_owned()),
            ("a/b/c/d/e/f/g/h/i", "secret", "a/b/c/d/e/f/g/h".to_owned()),
            (&long, "secret", "ü".repeat(120)),
        ];
        for (topic, token, expected) in table {
            assert_eq!(loggable(topic, digest(token.as_bytes())), expected);
        }
    }
}
