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
//! Nothing is checked, limited, timed or counted; a device is known by its user name. Each process runs on one thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::rc::Rc;

use anyhow::{Context, Result, bail};
use async_nats::{Client, Message, Subject, Subscriber};
use bytes::{BufMut, Bytes, BytesMut};
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
            Role::Front => front(client).await,
            Role::Authorizer if arguments.nested => waiting_authorizer(client).await,
            Role::Authorizer => authorizer(client).await,
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
                let end = memchr::memchr(b'\n', &call.payload).context("a call without an inbox")?;
                let inbox = Subject::from_utf8(call.payload.slice(..end))?;
                let ask = asks.open(inbox);
                let inbox = format!("x.reply.router.{ask}");
                client.publish_with_reply(node.clone(), inbox, call.payload.slice(end + 1..)).await?;
            }
            reply = replies.next() => {
                let reply = reply.context("NATS is gone")?;
                client.publish(asks.close(&reply)?, reply.payload).await?;
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

async fn front(client: Client) -> Result<()> {
    let deliveries = client.subscribe("x.node.front").await?;
    let replies = client.subscribe("x.reply.front.>").await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    announce(&client, &listener.local_addr()?.to_string()).await?;

    let front = Rc::new(Front { client, targets: RefCell::default(), asks: RefCell::default() });
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
    }
}

const REQUEST: &[u8] = b"v1/devices/me/rpc/request/";
const RESPONSE: &[u8] = b"v1/devices/me/rpc/response/";
const DEVICE_ID_BYTES: usize = 36;

struct Front {
    client: Client,
    targets: RefCell<HashMap<Bytes, Rc<Device>>>,
    asks: RefCell<Asks<Asker>>,
}

/// Who made a call, and by which id it knows it.
struct Asker {
    outbox: Rc<Outbox>,
    id: u32,
}

/// A connection, and the deliveries that it has not answered.
struct Device {
    outbox: Rc<Outbox>,
    deliveries: RefCell<HashMap<u32, Subject>>,
    next_delivery: Cell<u32>,
}

/// What a packet leads to on NATS.
enum Outgoing {
    Call { ask: u64, message: Bytes },
    Answer { inbox: Subject, payload: Bytes },
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
                    Outgoing::Answer { inbox, payload } => self.client.publish(inbox, payload).await?,
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
                let inbox = device.deliveries.borrow_mut().remove(&id);
                let inbox = inbox.context("an answer to nothing")?;
                return Ok(Some(Outgoing::Answer { inbox, payload: Bytes::copy_from_slice(payload) }));
            }
            Packet::PingReq => device.outbox.queue(frame::pingresp),
            Packet::Disconnect => bail!(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
            other => bail!("an unexpected {other:?}"),
        }
        Ok(None)
    }

    async fn deliver(&self, mut deliveries: Subscriber) -> Result<()> {
        while let Some(delivery) = deliveries.next().await {
            let (target, payload) =
                delivery.payload.split_at_checked(DEVICE_ID_BYTES).context("a delivery to nobody")?;
            let targets = self.targets.borrow();
            let device = targets.get(target).context("a delivery to a device that is not here")?;
            let number = device.next_delivery.get();
            device.next_delivery.set(number.wrapping_add(1));
            device
                .deliveries
                .borrow_mut()
                .insert(number, delivery.reply.context("a delivery without an inbox")?);
            let number = Decimal::new(number);
            let topic = [REQUEST, number.as_bytes()];
            device.outbox.queue_and_wake(|out| frame::publish(out, topic, &[payload]));
        }
        bail!("NATS is gone")
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
