//! Which bodies are under way block by block (RFC 7959)? Uploads until they are whole, answers until they are fetched.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::codec::{Block, Code, Response, Token};
use super::request::Resource;
use crate::device::visitors::Key;

/// Bodies that one visitor may have under way at once; a further one takes the place of its oldest.
const MAX_TRANSFERS_PER_VISITOR: usize = 8;

/// What a body belongs to: a resource as one endpoint sees it (RFC 7959 §2.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TransferKey {
    /// Whose.
    pub visitor: Key,
    /// From where.
    pub source: SocketAddr,
    /// With which method.
    pub method: Code,
    /// On what.
    pub resource: Resource,
    /// Of an upload, its Request-Tag.
    pub tag: Option<Token>,
    /// Of a request's body, or of a response's.
    pub upload: bool,
}

/// How an upload goes on.
#[derive(Debug, PartialEq, Eq)]
pub enum Upload {
    /// Here is the whole body.
    Whole(Bytes),
    /// The next block, please (2.31).
    Continue,
    /// Not the block that was next (4.08).
    Incomplete,
    /// More bytes than a body may have (4.13).
    TooLarge,
    /// A block of another length than it says (4.00).
    Malformed,
}

#[derive(Debug)]
enum Body {
    Upload(BytesMut),
    Download(Response),
}

/// When a transfer last moved, and a serial number that makes it unique.
type Moved = (Instant, u64);

/// All transfers of the node.
#[derive(Debug)]
pub struct Transfers {
    max_transfers: usize,
    max_body_bytes: usize,
    timeout: Duration,
    held: HashMap<TransferKey, (Moved, Body)>,
    /// The same, the one idle for longest first.
    order: BTreeMap<Moved, TransferKey>,
    last_serial: u64,
    dropped: u64,
}

impl Transfers {
    /// None yet.
    pub fn new(max_transfers: usize, max_body_bytes: usize, timeout: Duration) -> Self {
        Transfers {
            max_transfers,
            max_body_bytes,
            timeout,
            held: HashMap::new(),
            order: BTreeMap::new(),
            last_serial: 0,
            dropped: 0,
        }
    }

    /// Takes one block of a request. `size` is what the client says of the whole body.
    pub fn upload(
        &mut self,
        key: TransferKey,
        block: Block,
        payload: &Bytes,
        size: Option<u32>,
        now: Instant,
    ) -> Upload {
        let max_body_bytes = self.max_body_bytes;
        let fits = |bytes: usize| bytes <= max_body_bytes;
        if !fits(payload.len()) || size.is_some_and(|size| !fits(size as usize)) {
            self.remove(&key);
            return Upload::TooLarge;
        }
        if block.more && payload.len() != block.bytes() || payload.len() > block.bytes() {
            self.remove(&key);
            return Upload::Malformed;
        }
        let begun = match self.remove(&key) {
            Some(Body::Upload(begun)) if block.number > 0 => begun,
            _ if block.number > 0 => return Upload::Incomplete,
            _ => BytesMut::new(),
        };
        let mut body = begun;
        if block.offset() == body.len() {
            if !fits(body.len() + payload.len()) {
                return Upload::TooLarge;
            }
            body.extend_from_slice(payload);
        } else if !(block.more && block.offset() + payload.len() == body.len()) {
            // Not even the block before, once more.
            return Upload::Incomplete;
        }
        if !block.more {
            return Upload::Whole(body.freeze());
        }
        self.insert(key, Body::Upload(body), now);
        Upload::Continue
    }

    /// Whether blocks of this body are held.
    pub fn holds(&self, key: &TransferKey) -> bool {
        self.held.contains_key(key)
    }

    /// Keeps a response whose payload is too long for one datagram, to be fetched by [`block`](Self::block).
    pub fn offer(&mut self, key: TransferKey, response: Response, now: Instant) {
        self.insert(key, Body::Download(response), now);
    }

    /// One block of a response that was offered; none when there is no such response or block.
    pub fn block(&mut self, key: TransferKey, wanted: Block, now: Instant) -> Option<Response> {
        let (moved, Body::Download(whole)) = self.held.get(&key)? else { return None };
        let response = part(whole, wanted)?;
        let (moved, serial) = (*moved, self.next_serial());
        if let Some((at, _)) = self.held.get_mut(&key) {
            *at = (now, serial);
        }
        self.order.remove(&moved);
        self.order.insert((now, serial), key);
        Some(response)
    }

    /// Drops what has been idle for too long.
    pub fn sweep(&mut self, now: Instant) {
        while let Some((moved, key)) = self.order.first_key_value()
            && moved.0 + self.timeout <= now
        {
            let key = *key;
            self.remove(&key);
        }
    }

    /// When to sweep next.
    pub fn next_wake(&self) -> Option<Instant> {
        self.order.first_key_value().map(|(moved, _)| moved.0 + self.timeout)
    }

    /// How many are held.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// How many were dropped since the last question because there were too many.
    pub fn take_dropped(&mut self) -> u64 {
        std::mem::take(&mut self.dropped)
    }

    fn insert(&mut self, key: TransferKey, body: Body, now: Instant) {
        self.remove(&key);
        let of_visitor: Vec<TransferKey> = if self.held.len() >= MAX_TRANSFERS_PER_VISITOR {
            self.order.values().filter(|it| it.visitor == key.visitor).copied().collect()
        } else {
            Vec::new()
        };
        let oldest = match of_visitor.first() {
            Some(oldest) if of_visitor.len() >= MAX_TRANSFERS_PER_VISITOR => Some(*oldest),
            _ if self.held.len() >= self.max_transfers => self.order.values().next().copied(),
            _ => None,
        };
        if let Some(oldest) = oldest {
            self.remove(&oldest);
            self.dropped += 1;
        }
        let moved = (now, self.next_serial());
        self.order.insert(moved, key);
        self.held.insert(key, (moved, body));
    }

    fn remove(&mut self, key: &TransferKey) -> Option<Body> {
        let (moved, body) = self.held.remove(key)?;
        self.order.remove(&moved);
        Some(body)
    }

    fn next_serial(&mut self) -> u64 {
        self.last_serial += 1;
        self.last_serial
    }
}

/// The block `wanted` of a whole response; none when it begins behind the response's end.
pub fn part(whole: &Response, wanted: Block) -> Option<Response> {
    let (offset, length) = (wanted.offset(), whole.payload.len());
    if offset >= length {
        return None;
    }
    let end = length.min(offset + wanted.bytes());
    let size2 = (offset == 0).then(|| u32::try_from(length).unwrap_or(u32::MAX));
    let block2 = Some(Block { more: end < length, ..wanted });
    Some(Response { block2, size2, payload: whole.payload.slice(offset..end), ..whole.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn key(visitor: Key, port: u16) -> TransferKey {
        let source = ([127, 0, 0, 1], port).into();
        TransferKey { visitor, source, method: Code::POST, resource: Resource::Rpc, tag: None, upload: true }
    }

    fn block(number: u32, more: bool, exponent: u8) -> Block {
        Block { number, more, exponent }
    }

    fn bytes(length: usize) -> Bytes {
        (0..length).map(|it| it as u8).collect::<Vec<_>>().into()
    }

    #[test]
    fn blocks_out_of_order_wrong_or_too_many_end_an_upload() {
        let now = Instant::now();
        let mut transfers = Transfers::new(4, 100, TIMEOUT);
        let mut put = |number, more, length, size| {
            transfers.upload(key(1, 1), block(number, more, 1), &bytes(length), size, now)
        };
        assert_eq!(put(1, true, 32, None), Upload::Incomplete, "never begun");
        assert_eq!(put(0, true, 32, Some(100)), Upload::Continue);
        assert_eq!(put(0, true, 32, Some(100)), Upload::Continue, "begun again");
        assert_eq!(put(1, true, 32, None), Upload::Continue);
        assert_eq!(put(1, true, 32, None), Upload::Continue, "the same once more");
        assert_eq!(put(3, true, 32, None), Upload::Incomplete, "one is missing");
        assert_eq!(put(2, true, 32, None), Upload::Incomplete, "it ended with that");
        assert_eq!(put(0, true, 31, None), Upload::Malformed);
        assert_eq!(put(0, false, 33, None), Upload::Malformed);
        assert_eq!(put(0, true, 32, Some(101)), Upload::TooLarge);
        for number in 0..3 {
            assert_eq!(put(number, true, 32, None), Upload::Continue);
        }
        assert_eq!(put(3, false, 5, None), Upload::TooLarge);
        for number in 0..3 {
            assert_eq!(put(number, true, 32, None), Upload::Continue);
        }
        let whole = [bytes(32), bytes(32), bytes(32), bytes(4)].concat();
        assert_eq!(put(3, false, 4, None), Upload::Whole(whole.into()));
        assert_eq!(put(3, false, 4, None), Upload::Incomplete);
        assert_eq!(put(0xf_ffff, true, 32, None), Upload::Incomplete);
        assert_eq!(transfers.held(), 0);
    }

    #[test]
    fn half_open_uploads_are_bounded_and_time_out() {
        let start = Instant::now();
        let mut transfers = Transfers::new(20, 100, TIMEOUT);
        for number in 0..10_000u16 {
            let now = start + Duration::from_millis(u64::from(number));
            let begun = transfers.upload(key(1, number), block(0, true, 0), &bytes(16), None, now);
            assert_eq!(begun, Upload::Continue);
        }
        assert_eq!(transfers.held(), MAX_TRANSFERS_PER_VISITOR, "one visitor alone does not fill the node");
        for number in 0..10_000u16 {
            let now = start + Duration::from_secs(20);
            transfers.upload(key(u64::from(number), 1), block(0, true, 0), &bytes(16), None, now);
        }
        assert_eq!((transfers.held(), transfers.order.len()), (20, 20));
        assert_eq!(transfers.take_dropped(), 10_000 - 8 + 10_000 - 12);
        assert_eq!(transfers.next_wake(), Some(start + Duration::from_secs(80)));
        transfers.sweep(start + Duration::from_secs(80));
        assert_eq!((transfers.held(), transfers.next_wake()), (0, None));
    }

    proptest! {
        #[test]
        fn a_body_survives_both_ways_in_blocks_of_any_size(
            length in 1usize..3_000, exponent in 0u8..=6, smaller in 0u8..=6,
        ) {
            let now = Instant::now();
            let mut transfers = Transfers::new(4, 4_000, TIMEOUT);
            let body = bytes(length);
            let up = key(1, 1);
            let size = block(0, false, exponent).bytes();
            let chunks: Vec<Bytes> = body.chunks(size).map(Bytes::copy_from_slice).collect();
            for (number, chunk) in chunks.iter().enumerate() {
                let more = number + 1 < chunks.len();
                let took = transfers.upload(up, block(number as u32, more, exponent), chunk, None, now);
                prop_assert_eq!(took, if more { Upload::Continue } else { Upload::Whole(body.clone()) });
            }

            let down = TransferKey { upload: false, ..up };
            transfers.offer(down, Response::json(Code::CONTENT, body.clone()), now);
            let mut fetched = Vec::new();
            let exponent = exponent.min(smaller);
            loop {
                let wanted = block((fetched.len() / block(0, false, exponent).bytes()) as u32, false, exponent);
                let response = transfers.block(down, wanted, now).unwrap();
                fetched.extend_from_slice(&response.payload);
                if !response.block2.unwrap().more {
                    prop_assert_eq!(transfers.block(down, Block { number: wanted.number + 1, ..wanted }, now), None);
                    break;
                }
            }
            prop_assert_eq!(&fetched[..], &body[..]);
            prop_assert_eq!((transfers.held(), transfers.order.len()), (1, 1));
        }
    }
}
