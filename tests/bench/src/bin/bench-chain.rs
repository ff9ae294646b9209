//! The empty chain: Switchboard's hops over NATS with nothing in them, as cheap as such a chain naturally is.
//!
//! `bench-chain front|authorizer|router --nats URL`, one process each. A call's way, `<…>` being numbers and names:
//!
//! ```text
//! front      → x.call                 reply x.reply.front.<ask>   target, payload
//! authorizer → x.route                                            "x.reply.front.<ask>\n", target, payload
//! router     → x.node.front           reply x.reply.router.<ask>  target, payload
//! front      → x.reply.router.<ask>                               the target's answer
//! router     → x.reply.front.<ask>                                the target's answer
//! ```
//!
//! With `--direct` the answer goes straight to the caller's front, and the router, which would end the call when its
//! time is over, reads ten milliseconds' worth of ended calls at once:
//!
//! ```text
//! router     → x.node.front           reply x.reply.front.<ask>   <call of the router's>, target, payload
//! front      → x.reply.front.<ask>                                the target's answer
//! front      → x.ended                                            <calls of the router's>
//! ```
//!
//! Nothing is checked, limited, timed or counted; a device is known by its user name. Each process runs on one thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use async_nats::{Client, Message, Subject, Subscriber};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use clap::{Parser, ValueEnum};
use futures::StreamExt;
use switchboard_bench::frame::{self, Decimal, Packet};
use switchboard_bench::framing::Framing;
use switchboard_bench::link::{self, Outbox, Reader, Scratch};
use tokio::net::{TcpListener, TcpStream};

#[derive(Parser)]
#[command(about = "One process of the empty chain that the bench compares Switchboard with")]
struct Arguments {
    /// Which hop this is.
    role: Role,
    /// The NATS server.
    #[arg(long)]
    nats: String,
    /// The authorizer waits for the router's answer instead of forwarding the call.
    #[arg(long)]
    nested: bool,
    /// The target's front answers the caller's, not the router.
    #[arg(long)]
    direct: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Role {
    Front,
    Authorizer,
    Router,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(Default::default())?;
    runtime.block_on(async {
        let client = async_nats::connect(&arguments.nats).await?;
        match arguments.role {
            Role::Front => front(client, arguments.direct).await,
            Role::Authorizer if arguments.nested => waiting_authorizer(client).await,
            Role::Authorizer => authorizer(client).await,
            Role::Router if arguments.direct => told_router(client).await,
            Role::Router => router(client).await,
        }
    })
}

/// Says that this process is ready, once the server has taken its subscriptions.
async fn announce(client: &Client, what: &str) -> Result<()> {
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await?;
    // One connection's messages stay in order: when this one is back, the subscriptions before it are known.
    client.publish(inbox, Bytes::new()).await?;
    echo.next().await.context("NATS is gone")?;
    println!("ready {what}");
    Ok(())
}

async fn authorizer(client: Client) -> Result<()> {
    let mut calls = client.queue_subscribe("x.call", "authorizer".into()).await?;
    announce(&client, "").await?;
    let route = Subject::from_static("x.route");
    while let Some(call) = calls.next().await {
        let inbox = call.reply.context("a call without an inbox")?;
        client.publish(route.clone(), behind_line(&inbox, &call.payload)).await?;
    }
    bail!("NATS is gone")
}

async fn waiting_authorizer(client: Client) -> Result<()> {
    let mut calls = client.queue_subscribe("x.call", "authorizer".into()).await?;
    let mut replies = client.subscribe("x.reply.authorizer.>").await?;
    announce(&client, "").await?;
    let route = Subject::from_static("x.route");
    let mut asks = Asks::default();
    loop {
        tokio::select! {
            call = calls.next() => {
                let call = call.context("NATS is gone")?;
                let ask = asks.open(call.reply.context("a call without an inbox")?);
                let inbox = format!("x.reply.authorizer.{ask}");
                client.publish(route.clone(), behind_line(&inbox, &call.payload)).await?;
            }
            reply = replies.next() => {
                let reply = reply.context("NATS is gone")?;
                client.publish(asks.close(&reply)?, reply.payload).await?;
            }
        }
    }
}

async fn router(client: Client) -> Result<()> {
    let mut calls = client.queue_subscribe("x.route", "router".into()).await?;
    let mut replies = client.subscribe("x.reply.router.>").await?;
    announce(&client, "").await?;
    let node = Subject::from_static("x.node.front");
    let mut asks = Asks::default();
    loop {
        tokio::select! {
            call = calls.next() => {
                let call = call.context("NATS is gone")?;
                let (inbox, call) = of_line(&call.payload)?;
                let ask = asks.open(inbox);
                let inbox = format!("x.reply.router.{ask}");
                client.publish_with_reply(node.clone(), inbox, call).await?;
            }
            reply = replies.next() => {
                let reply = reply.context("NATS is gone")?;
                client.publish(asks.close(&reply)?, reply.payload).await?;
            }
        }
    }
}

/// Hands calls on with their callers' inboxes, and remembers each until it is told of its end.
async fn told_router(client: Client) -> Result<()> {
    let mut calls = client.queue_subscribe("x.route", "router".into()).await?;
    let mut ended = client.subscribe(ENDED).await?;
    announce(&client, "").await?;
    let node = Subject::from_static("x.node.front");
    let mut asks = Asks::default();
    loop {
        tokio::select! {
            call = calls.next() => {
                let call = call.context("NATS is gone")?;
                let (inbox, call) = of_line(&call.payload)?;
                let ask = asks.open(inbox.clone());
                let mut delivery = BytesMut::with_capacity(CALL_BYTES + call.len());
                delivery.put_u64(ask);
                delivery.put(call);
                client.publish_with_reply(node.clone(), inbox, delivery.freeze()).await?;
            }
            told = ended.next() => {
                let mut told = told.context("NATS is gone")?.payload;
                while let Ok(ask) = told.try_get_u64() {
                    asks.open.remove(&ask).context("the end of a call that is not known")?;
                }
            }
        }
    }
}

fn behind_line(line: &str, payload: &[u8]) -> Bytes {
    let mut joined = BytesMut::with_capacity(line.len() + 1 + payload.len());
    joined.put_slice(line.as_bytes());
    joined.put_u8(b'\n');
    joined.put_slice(payload);
    joined.freeze()
}

/// The inbox in a payload's first line, and what is behind that.
fn of_line(payload: &Bytes) -> Result<(Subject, Bytes)> {
    let end = memchr::memchr(b'\n', payload).context("a call without an inbox")?;
    Ok((Subject::from_utf8(payload.slice(..end))?, payload.slice(end + 1..)))
}

/// What a process waits for: a number for each reply that is to come.
struct Asks<T> {
    open: HashMap<u64, T>,
    next: u64,
}

impl<T> Default for Asks<T> {
    fn default() -> Self {
        Self { open: HashMap::new(), next: 0 }
    }
}

impl<T> Asks<T> {
    fn open(&mut self, asker: T) -> u64 {
        self.next += 1;
        self.open.insert(self.next, asker);
        self.next
    }

    fn close(&mut self, reply: &Message) -> Result<T> {
        let number = reply.subject.rsplit('.').next().and_then(|number| number.parse().ok());
        number.and_then(|number: u64| self.open.remove(&number)).context("a reply that nobody waits for")
    }
}

async fn front(client: Client, direct: bool) -> Result<()> {
    let deliveries = client.subscribe("x.node.front").await?;
    let replies = client.subscribe("x.reply.front.>").await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    announce(&client, &listener.local_addr()?.to_string()).await?;

    let front = Rc::new(Front {
        client,
        direct,
        targets: RefCell::default(),
        asks: RefCell::default(),
        ended: RefCell::default(),
    });
    let accepting = async {
        let scratch = Scratch::new();
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::task::spawn_local(Rc::clone(&front).serve(stream, scratch.clone()));
        }
    };
    tokio::select! {
        ended = accepting => ended,
        ended = front.deliver(deliveries) => ended,
        ended = front.answer(replies) => ended,
        ended = front.tell_of_ends(), if direct => ended,
    }
}

const ENDED: &str = "x.ended";
/// A call's number at the router, in front of what is delivered with `--direct`.
const CALL_BYTES: usize = size_of::<u64>();
/// How long ended calls are gathered: twenty of them at 2,000 calls a second.
const GATHERED: Duration = Duration::from_millis(10);

const REQUEST: &[u8] = b"v1/devices/me/rpc/request/";
const RESPONSE: &[u8] = b"v1/devices/me/rpc/response/";
const DEVICE_ID_BYTES: usize = 36;

struct Front {
    client: Client,
    direct: bool,
    targets: RefCell<HashMap<Bytes, Rc<Device>>>,
    asks: RefCell<Asks<Asker>>,
    /// With `--direct`: the router's numbers of calls that have been answered, of which it has not been told.
    ended: RefCell<BytesMut>,
}

/// Who made a call, and by which id it knows it.
struct Asker {
    outbox: Rc<Outbox>,
    id: u32,
}

/// A connection, and the deliveries that it has not answered.
struct Device {
    outbox: Rc<Outbox>,
    deliveries: RefCell<HashMap<u32, Delivery>>,
    next_delivery: Cell<u32>,
}

/// Where an answer goes.
struct Delivery {
    inbox: Subject,
    /// Its number at the router, with `--direct`.
    call: Option<u64>,
}

/// What a packet leads to on NATS.
enum Outgoing {
    Call { ask: u64, message: Bytes },
    Answer { delivery: Delivery, payload: Bytes },
}

impl Front {
    async fn serve(self: Rc<Self>, stream: TcpStream, scratch: Scratch) {
        let Ok((reader, outbox)) = link::open(stream, Framing::Mqtt) else { return };
        let device = Device { outbox, deliveries: RefCell::default(), next_delivery: Cell::new(0) };
        // A connection ends with an error: at the latest, that it was closed.
        if let Err(error) = self.converse(reader, Rc::new(device), &scratch).await
            && error.downcast_ref::<std::io::Error>().is_none()
        {
            eprintln!("{error:#}");
        }
    }

    async fn converse(&self, mut reader: Reader, device: Rc<Device>, scratch: &Scratch) -> Result<()> {
        let mut username = Bytes::new();
        let mut outgoing = Vec::new();
        loop {
            reader
                .batch(scratch, |packet| {
                    outgoing.extend(self.hear(packet, &mut username, &device)?);
                    Ok(())
                })
                .await?;
            for message in outgoing.drain(..) {
                match message {
                    Outgoing::Call { ask, message } => {
                        let inbox = format!("x.reply.front.{ask}");
                        self.client
                            .publish_with_reply(Subject::from_static("x.call"), inbox, message)
                            .await?;
                    }
                    Outgoing::Answer { delivery, payload } => {
                        self.client.publish(delivery.inbox, payload).await?;
                        if let Some(call) = delivery.call {
                            self.ended.borrow_mut().put_u64(call);
                        }
                    }
                }
            }
        }
    }

    fn hear(
        &self,
        packet: Packet<'_>,
        username: &mut Bytes,
        device: &Rc<Device>,
    ) -> Result<Option<Outgoing>> {
        match packet {
            Packet::Connect { username: name } => {
                *username = Bytes::copy_from_slice(name);
                device.outbox.queue(|out| frame::connack(out, 0));
            }
            Packet::Subscribe { packet_id, filter } => {
                if filter.starts_with(REQUEST) {
                    self.targets.borrow_mut().insert(username.clone(), Rc::clone(device));
                }
                device.outbox.queue(|out| frame::suback(out, packet_id));
            }
            Packet::Publish { topic, payload } => {
                if let Some(id) = topic.strip_prefix(REQUEST).and_then(frame::decimal) {
                    let ask = self.asks.borrow_mut().open(Asker { outbox: Rc::clone(&device.outbox), id });
                    return Ok(Some(Outgoing::Call { ask, message: addressed(payload)? }));
                }
                let id = topic.strip_prefix(RESPONSE).and_then(frame::decimal).context("an unknown topic")?;
                let delivery = device.deliveries.borrow_mut().remove(&id);
                let delivery = delivery.context("an answer to nothing")?;
                return Ok(Some(Outgoing::Answer { delivery, payload: Bytes::copy_from_slice(payload) }));
            }
            Packet::PingReq => device.outbox.queue(frame::pingresp),
            Packet::Disconnect => bail!(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
            other => bail!("an unexpected {other:?}"),
        }
        Ok(None)
    }

    async fn deliver(&self, mut deliveries: Subscriber) -> Result<()> {
        while let Some(delivery) = deliveries.next().await {
            let mut told = delivery.payload;
            let call = if self.direct { Some(told.try_get_u64()?) } else { None };
            let (target, payload) = told.split_at_checked(DEVICE_ID_BYTES).context("a delivery to nobody")?;
            let inbox = delivery.reply.context("a delivery without an inbox")?;
            let targets = self.targets.borrow();
            let device = targets.get(target).context("a delivery to a device that is not here")?;
            let number = device.next_delivery.get();
            device.next_delivery.set(number.wrapping_add(1));
            device.deliveries.borrow_mut().insert(number, Delivery { inbox, call });
            let number = Decimal::new(number);
            let topic = [REQUEST, number.as_bytes()];
            device.outbox.queue_and_wake(|out| frame::publish(out, topic, &[payload]));
        }
        bail!("NATS is gone")
    }

    /// Tells the router of ended calls, those of a while at once.
    async fn tell_of_ends(&self) -> Result<()> {
        loop {
            tokio::time::sleep(GATHERED).await;
            let ended = self.ended.take().freeze();
            if !ended.is_empty() {
                self.client.publish(ENDED, ended).await?;
            }
        }
    }

    async fn answer(&self, mut replies: Subscriber) -> Result<()> {
        while let Some(reply) = replies.next().await {
            let asker = self.asks.borrow_mut().close(&reply)?;
            let id = Decimal::new(asker.id);
            let topic = [RESPONSE, id.as_bytes()];
            asker.outbox.queue_and_wake(|out| frame::publish(out, topic, &[&reply.payload]));
        }
        bail!("NATS is gone")
    }
}

/// The call's payload behind its target's id, which is cut out of the JSON without a look at the rest.
fn addressed(payload: &[u8]) -> Result<Bytes> {
    const FIELD: &[u8] = br#""deviceId":""#;
    let start = memchr::memmem::find(payload, FIELD).context("a call to nobody")? + FIELD.len();
    let target = payload.get(start..start + DEVICE_ID_BYTES).context("a call to a short id")?;
    Ok(Bytes::from([target, payload].concat()))
}
