//! How does the command speak CoAP? Requests are sent until they are heard (RFC 7252 §4.2), long bodies go in blocks
//! (RFC 7959), and an observation (RFC 7641) is kept up.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use bytes::Bytes;
use switchboard_ingress::coap::codec::{self, Block, Code, Kind, Message, Reading, Request, Token, option};
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout, timeout_at};
use uuid::Uuid;

use super::via::MAX_ANSWER_BYTES;

/// RFC 7252 §4.8: ACK_TIMEOUT, and MAX_RETRANSMIT.
const ACK_TIMEOUT: Duration = Duration::from_secs(2);
const MAX_RETRANSMIT: u32 = 4;

/// Until an observation is begun again: a NAT on the way may forget it.
const OBSERVE_AGAIN: Duration = Duration::from_secs(20);
/// How long a node may take for what an observer asks of it.
const OBSERVER_WAIT: Duration = Duration::from_secs(30);
const GOODBYE_WAIT: Duration = Duration::from_secs(3);
/// Notifications that wait here; further ones are not acknowledged, and sent again.
const MAX_HEARD: usize = 64;

/// One endpoint, and what it knows of one node.
pub(crate) struct Coap {
    socket: UdpSocket,
    last_id: u16,
    last_token: u32,
    observation: Option<Observation>,
}

struct Observation {
    token: Token,
    begin_again_at: Instant,
    heard: VecDeque<Message>,
    /// What the node ended it with.
    over: Option<Code>,
    /// Of the last notification, which may come twice.
    last_id: Option<u16>,
}

impl Coap {
    /// An endpoint of its own.
    ///
    /// # Errors
    /// When there is no socket.
    pub(crate) async fn at(node: SocketAddr) -> anyhow::Result<Self> {
        let any: SocketAddr = if node.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).await?;
        socket.connect(node).await?;
        // At random, so that nothing is taken for what another had from this port.
        let (last_token, id, ..) = Uuid::new_v4().as_fields();
        Ok(Coap { socket, last_id: id, last_token, observation: None })
    }

    /// Makes one request, and has code and whole body of the response.
    ///
    /// # Errors
    /// When nobody is there, the node takes no such request, or the response is longer than 4 MiB.
    pub(crate) async fn ask(
        &mut self,
        code: Code,
        path: &[&str],
        body: &[u8],
    ) -> anyhow::Result<(Code, Vec<u8>)> {
        let request = Request { payload: body, ..Request::new(code, path) };
        let largest = Block { number: 0, more: false, exponent: Block::MAX_EXPONENT };
        if body.len() <= largest.bytes() {
            let response = self.exchange(&request).await?;
            return self.whole(&request, response).await;
        }
        let mut blocks = (0..).zip(body.chunks(largest.bytes())).peekable();
        while let Some((number, payload)) = blocks.next() {
            let more = blocks.peek().is_some();
            let block1 = Some(Block { number, more, ..largest });
            let response = self.exchange(&Request { block1, payload, ..request.clone() }).await?;
            if !more || response.code != Code::CONTINUE {
                return self.whole(&request, response).await;
            }
        }
        bail!("a long body has blocks")
    }

    /// The next notification's code and whole body. It observes from the first time on; another code than 2.05 is the
    /// node's last word.
    ///
    /// # Errors
    /// When nobody is there.
    pub(crate) async fn notified(&mut self, path: &[&str]) -> anyhow::Result<(Code, Vec<u8>)> {
        loop {
            let Some(observation) = &mut self.observation else {
                self.observe(path).await?;
                continue;
            };
            if let Some(message) = observation.heard.pop_front() {
                let get = Request::new(Code::GET, path);
                let whole = self.whole(&get, message);
                return timeout(OBSERVER_WAIT, whole).await.context("the rest of a call does not come")?;
            }
            if let Some(code) = observation.over {
                self.observation = None;
                return Ok((code, Vec::new()));
            }
            self.keep_a_while(path).await?;
        }
    }

    /// Keeps the observation up while its owner does something else.
    ///
    /// # Errors
    /// When nobody is there any more.
    pub(crate) async fn keep(&mut self, path: &[&str]) -> anyhow::Result<Infallible> {
        loop {
            self.keep_a_while(path).await?;
        }
    }

    /// Takes what comes next, and begins the observation again when it is time.
    async fn keep_a_while(&mut self, path: &[&str]) -> anyhow::Result<()> {
        let begin_again_at = match &self.observation {
            Some(Observation { over: None, begin_again_at, .. }) => *begin_again_at,
            _ => Instant::now() + OBSERVE_AGAIN,
        };
        match timeout_at(begin_again_at, self.receive()).await {
            // What is no notification comes too late for whatever asked for it.
            Ok(received) => received.map(|_| ()),
            Err(_) if self.observation.as_ref().is_some_and(|it| it.over.is_none()) => {
                self.observe(path).await
            }
            Err(_) => Ok(()),
        }
    }

    /// Ends the observation, if there is one.
    ///
    /// # Errors
    /// When nobody is there any more.
    pub(crate) async fn leave(&mut self, path: &[&str]) -> anyhow::Result<()> {
        let Some(observation @ Observation { over: None, .. }) = &self.observation else { return Ok(()) };
        let goodbye = Request { observe: Some(1), ..Request::new(Code::GET, path) };
        let told = timeout(GOODBYE_WAIT, self.exchange_as(&goodbye, observation.token)).await;
        self.observation = None;
        told.context("the node does not answer")?.map(|_| ())
    }

    async fn observe(&mut self, path: &[&str]) -> anyhow::Result<()> {
        let begin_again_at = Instant::now() + OBSERVE_AGAIN;
        let token = match &mut self.observation {
            Some(observation) => {
                observation.begin_again_at = begin_again_at;
                observation.token
            }
            None => {
                let token = self.next_token();
                let heard = VecDeque::new();
                let observation = Observation { token, begin_again_at, heard, over: None, last_id: None };
                self.observation.insert(observation).token
            }
        };
        let request = Request { observe: Some(0), ..Request::new(Code::GET, path) };
        let response = timeout(OBSERVER_WAIT, self.exchange_as(&request, token)).await;
        response.context("the node does not answer")?.map(|_| ())
    }

    /// A response with the blocks that follow its first one.
    async fn whole(&mut self, request: &Request<'_>, first: Message) -> anyhow::Result<(Code, Vec<u8>)> {
        let (code, etag) = (first.code, of(&first, option::ETAG).map(<[u8]>::to_vec));
        let (mut body, mut last) = (first.payload.to_vec(), first);
        while let Some(block) = of(&last, option::BLOCK2).and_then(Block::read).filter(|block| block.more) {
            ensure!(body.len() as u64 <= MAX_ANSWER_BYTES, "the answer is too long");
            let block2 = Some(Block { number: block.number + 1, more: false, ..block });
            last = self.exchange(&Request { block2, payload: b"", ..request.clone() }).await?;
            let follows = last.code == code && of(&last, option::ETAG) == etag.as_deref();
            ensure!(follows, "the rest of the answer is gone: code {}", last.code);
            body.extend_from_slice(&last.payload);
        }
        Ok((code, body))
    }

    async fn exchange(&mut self, request: &Request<'_>) -> anyhow::Result<Message> {
        let token = self.next_token();
        self.exchange_as(request, token).await
    }

    async fn exchange_as(&mut self, request: &Request<'_>, token: Token) -> anyhow::Result<Message> {
        self.last_id = self.last_id.wrapping_add(1);
        let id = self.last_id;
        let datagram = request.write(Kind::Confirmable, id, token);
        let datagram = datagram.context("an access token is no longer than 255 bytes in CoAP")?;
        let (mut sent, mut pause, mut acknowledged) = (0, ACK_TIMEOUT, false);
        loop {
            if !acknowledged {
                ensure!(sent <= MAX_RETRANSMIT, "nobody acknowledges");
                self.socket.send(&datagram).await?;
                (sent, pause) = (sent + 1, pause * 2);
            }
            let send_again_at = Instant::now() + pause / 2;
            loop {
                let received = match acknowledged {
                    true => self.receive().await,
                    false => match timeout_at(send_again_at, self.receive()).await {
                        Ok(received) => received,
                        Err(_) => break,
                    },
                };
                let Some(message) = received? else { continue };
                if message.code == Code::EMPTY && message.id == id {
                    ensure!(message.kind != Kind::Reset, "the node takes no such message");
                    acknowledged = true;
                } else if message.token == token {
                    return Ok(message);
                }
            }
        }
    }

    /// What comes next, if it is for a request: pings are answered, notifications kept.
    async fn receive(&mut self) -> anyhow::Result<Option<Message>> {
        let mut buffer = vec![0; 65_536];
        let length = self.socket.recv(&mut buffer).await?;
        buffer.truncate(length);
        let Reading::Message(message) = codec::read(&Bytes::from(buffer)) else { return Ok(None) };
        let is_confirmable = message.kind == Kind::Confirmable;
        if message.code == Code::EMPTY && is_confirmable {
            self.socket.send(&codec::empty(Kind::Reset, message.id)).await?;
            return Ok(None);
        }
        let observed = self.observation.as_mut().filter(|it| it.token == message.token);
        let (id, mut kept) = (message.id, None);
        match observed {
            // The response to the request that observes has no payload.
            Some(it) if message.code == Code::CONTENT && !message.payload.is_empty() => {
                if it.heard.len() >= MAX_HEARD {
                    return Ok(None);
                }
                if it.last_id.replace(id) != Some(id) {
                    it.heard.push_back(message);
                }
            }
            Some(it) => {
                it.over = Some(message.code).filter(|code| *code != Code::CONTENT);
                kept = Some(message);
            }
            None => kept = Some(message),
        }
        if is_confirmable {
            self.socket.send(&codec::empty(Kind::Acknowledgement, id)).await?;
        }
        Ok(kept)
    }

    fn next_token(&mut self) -> Token {
        self.last_token = self.last_token.wrapping_add(1);
        Token::new(&self.last_token.to_be_bytes()).unwrap_or_default()
    }
}

/// The value of an option that a message has.
fn of(message: &Message, wanted: u16) -> Option<&[u8]> {
    message.options().find(|(number, _)| *number == wanted).map(|(_, value)| value)
}
