//! Which message has been seen, and which is to be sent again? CoAP's message layer (RFC 7252 §4): deduplication,
//! and the retransmission of confirmable messages.

use std::cmp::Reverse;
use std::collections::hash_map::{DefaultHasher, Entry};
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// A message id counts for one peer only, for as long as an exchange lives. Peers share this many counters, by a keyed
/// hash: a fixed memory, and 65,536 messages for each counter in that time.
const ID_COUNTERS: usize = 4096;

/// How much later than it could a memory is forgotten, so that one sweep takes many.
const SWEEP: Duration = Duration::from_secs(1);

/// The transmission parameters in force (RFC 7252 §4.8).
#[derive(Debug, Clone, Copy)]
pub struct Transmission {
    /// ACK_TIMEOUT; the first wait is 1 to 1.5 times as long.
    pub ack_timeout: Duration,
    /// MAX_RETRANSMIT.
    pub max_retransmit: u16,
    /// EXCHANGE_LIFETIME.
    pub exchange_lifetime: Duration,
    /// Requests that are remembered at once.
    pub max_exchanges: usize,
}

/// Which request it is: the same datagram of the same peer. The message id alone says little, since whoever restarts
/// may count from the same number again, and whoever follows behind a NAT may be another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Datagram {
    from: SocketAddr,
    id: u16,
    /// Of all its bytes, keyed.
    hash: u64,
}

/// What is known of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Request so-and-so is being performed.
    InProgress(u64),
    /// It was answered with this datagram; nothing (empty) was due to a non-confirmable one's duplicate.
    Answered(Bytes),
}

/// What a retransmission of an answered request is due.
#[derive(Debug)]
struct Answer {
    hash: u64,
    datagram: Bytes,
    forget_at: Instant,
}

/// What is due.
#[derive(Debug, PartialEq, Eq)]
pub enum Due<O> {
    /// Send this again.
    Resend(SocketAddr, Bytes),
    /// Nobody acknowledged the message `id` of this owner.
    GivenUp(O, u16),
}

/// A confirmable message until it is acknowledged.
#[derive(Debug)]
struct Sent<O> {
    owner: O,
    datagram: Bytes,
    resent: u16,
    wait: Duration,
    due: Instant,
}

/// The message layer; `O` is what a confirmable message was sent for.
#[derive(Debug)]
pub struct Messages<O> {
    transmission: Transmission,
    ids: Vec<u16>,
    /// Keys the choice of a counter and the hashes of datagrams, so that nobody can aim at another's.
    key: u64,
    random: Random,
    in_progress: HashMap<Datagram, u64>,
    /// The newest answered request of each id.
    answered: HashMap<(SocketAddr, u16), Answer>,
    /// When to forget which, in this order. Holds more than `answered` does; only what agrees with it counts.
    forgets: VecDeque<(Instant, SocketAddr, u16)>,
    sent: HashMap<(SocketAddr, u16), Sent<O>>,
    /// Holds more than `sent` does; only what agrees with it counts.
    resends: BinaryHeap<Reverse<(Instant, SocketAddr, u16)>>,
}

impl<O: Clone> Messages<O> {
    /// Nothing seen or sent. `seed` decides ids and waits; it must not be guessable.
    pub fn new(transmission: Transmission, seed: u64) -> Self {
        let mut random = Random(seed);
        Messages {
            transmission,
            ids: (0..ID_COUNTERS).map(|_| random.number() as u16).collect(),
            key: random.number(),
            random,
            in_progress: HashMap::new(),
            answered: HashMap::new(),
            forgets: VecDeque::new(),
            sent: HashMap::new(),
            resends: BinaryHeap::new(),
        }
    }

    /// What tells a request that has come from every other.
    pub fn identify(&self, from: SocketAddr, id: u16, bytes: &[u8]) -> Datagram {
        let mut hasher = DefaultHasher::new();
        (self.key, bytes).hash(&mut hasher);
        Datagram { from, id, hash: hasher.finish() }
    }

    /// What is known of this request.
    pub fn seen(&self, it: Datagram) -> Option<Seen> {
        let in_progress = self.in_progress.get(&it).copied().map(Seen::InProgress);
        let answer = || self.answered.get(&(it.from, it.id)).filter(|answer| answer.hash == it.hash);
        in_progress.or_else(|| answer().map(|answer| Seen::Answered(answer.datagram.clone())))
    }

    /// Remembers a request from now on. False when as many are remembered as may be, and none of them is answered.
    pub fn begin(&mut self, it: Datagram, request: u64) -> bool {
        let max = self.transmission.max_exchanges;
        while self.held().0 >= max || self.forgets.len() > 2 * max {
            let Some(oldest) = self.forgets.pop_front() else { return false };
            self.forget_answer(oldest);
        }
        self.in_progress.insert(it, request);
        true
    }

    /// Remembers how a request was answered, until its retransmissions have died out or another of the same id is
    /// answered.
    pub fn answered(&mut self, it: Datagram, datagram: Bytes, now: Instant) {
        if self.in_progress.remove(&it).is_some() {
            let forget_at = now + self.transmission.exchange_lifetime;
            self.answered.insert((it.from, it.id), Answer { hash: it.hash, datagram, forget_at });
            self.forgets.push_back((forget_at, it.from, it.id));
        }
    }

    /// Forgets a request that came to nothing, or to the same however often: performed again it does no harm.
    pub fn forget(&mut self, it: Datagram) {
        self.in_progress.remove(&it);
    }

    fn forget_answer(&mut self, (forget_at, from, id): (Instant, SocketAddr, u16)) {
        if self.answered.get(&(from, id)).is_some_and(|it| it.forget_at == forget_at) {
            self.answered.remove(&(from, id));
        }
    }

    /// A message id that this peer has not seen of late.
    pub fn next_id(&mut self, to: SocketAddr) -> u16 {
        let mut hasher = DefaultHasher::new();
        (self.key, to).hash(&mut hasher);
        let counter = hasher.finish() as usize % ID_COUNTERS;
        let Some(last) = self.ids.get_mut(counter) else { return 0 };
        // Ends: were every id of this peer in `sent`, one is taken all the same.
        for _ in 0..=u16::MAX {
            *last = last.wrapping_add(1);
            if !self.sent.contains_key(&(to, *last)) {
                break;
            }
        }
        *last
    }

    /// Takes a confirmable message on: it is to be sent now, and is sent again until it is acknowledged or given up.
    pub fn send(
        &mut self,
        owner: O,
        to: SocketAddr,
        write: impl FnOnce(u16) -> Bytes,
        now: Instant,
    ) -> (u16, Bytes) {
        let spread = self.transmission.ack_timeout / 2;
        let wait = self.transmission.ack_timeout + spread.mul_f64(self.random.fraction());
        self.insert(owner, to, write, 0, wait, now + wait)
    }

    /// Puts another message in the place of one that was not acknowledged yet: it takes over its waits, so that a
    /// peer that is gone is given up no later for it (RFC 7641 §4.5.2).
    pub fn replace(
        &mut self,
        to: SocketAddr,
        old: u16,
        write: impl FnOnce(u16) -> Bytes,
    ) -> Option<(u16, Bytes)> {
        let Sent { owner, resent, wait, due, .. } = self.sent.remove(&(to, old))?;
        Some(self.insert(owner, to, write, resent, wait, due))
    }

    fn insert(
        &mut self,
        owner: O,
        to: SocketAddr,
        write: impl FnOnce(u16) -> Bytes,
        resent: u16,
        wait: Duration,
        due: Instant,
    ) -> (u16, Bytes) {
        let id = self.next_id(to);
        let datagram = write(id);
        self.sent.insert((to, id), Sent { owner, datagram: datagram.clone(), resent, wait, due });
        self.resends.push(Reverse((due, to, id)));
        (id, datagram)
    }

    /// The peer has acknowledged or rejected a message: what it was sent for, and how often it had been sent again.
    pub fn settled(&mut self, from: SocketAddr, id: u16) -> Option<(O, u16)> {
        self.sent.remove(&(from, id)).map(|sent| (sent.owner, sent.resent))
    }

    /// The next message that is due at `now`.
    pub fn due(&mut self, now: Instant) -> Option<Due<O>> {
        while let Some(&Reverse((due, to, id))) = self.resends.peek() {
            if due > now {
                return None;
            }
            self.resends.pop();
            let Entry::Occupied(mut entry) = self.sent.entry((to, id)) else { continue };
            let sent = entry.get_mut();
            if sent.due != due {
                continue;
            }
            if sent.resent >= self.transmission.max_retransmit {
                return Some(Due::GivenUp(entry.remove().owner, id));
            }
            sent.resent += 1;
            sent.wait *= 2;
            sent.due = now + sent.wait;
            self.resends.push(Reverse((sent.due, to, id)));
            return Some(Due::Resend(to, sent.datagram.clone()));
        }
        None
    }

    /// Forgets what has been remembered for long enough.
    pub fn sweep(&mut self, now: Instant) {
        while let Some(&oldest) = self.forgets.front()
            && oldest.0 <= now
        {
            self.forgets.pop_front();
            self.forget_answer(oldest);
        }
    }

    /// When to look again.
    pub fn next_wake(&mut self) -> Option<Instant> {
        while let Some(Reverse((due, to, id))) = self.resends.peek() {
            if self.sent.get(&(*to, *id)).is_some_and(|sent| sent.due == *due) {
                break;
            }
            self.resends.pop();
        }
        let resend = self.resends.peek().map(|Reverse((due, ..))| *due);
        let sweep = self.forgets.front().map(|(forget_at, ..)| *forget_at + SWEEP);
        resend.into_iter().chain(sweep).min()
    }

    /// How many requests are remembered, and how many messages wait to be acknowledged.
    pub fn held(&self) -> (usize, usize) {
        (self.in_progress.len() + self.answered.len(), self.sent.len())
    }
}

/// Numbers for waits and ids (SplitMix64). What must not be guessed is only its seed.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// From 0 to 1.
    fn fraction(&mut self) -> f64 {
        self.number() as f64 / u64::MAX as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TRANSMISSION: Transmission = Transmission {
        ack_timeout: Duration::from_secs(2),
        max_retransmit: 4,
        exchange_lifetime: Duration::from_secs(247),
        max_exchanges: 3,
    };

    fn peer(port: u16) -> SocketAddr {
        ([127, 0, 0, 1], port).into()
    }

    fn written(id: u16) -> Bytes {
        id.to_be_bytes().to_vec().into()
    }

    #[test]
    fn a_message_is_sent_five_times_and_then_given_up() {
        for seed in 0..50 {
            let mut now = Instant::now();
            let start = now;
            let mut messages = Messages::new(TRANSMISSION, seed);
            let (id, datagram) = messages.send("owner", peer(1), written, now);
            let mut waits = Vec::new();
            loop {
                let due = messages.next_wake().unwrap();
                assert_eq!(messages.due(due - Duration::from_millis(1)), None);
                waits.push(due - now);
                now = due;
                match messages.due(now).unwrap() {
                    Due::Resend(to, again) => assert_eq!((to, &again), (peer(1), &datagram)),
                    Due::GivenUp(owner, given_up) => {
                        assert_eq!((owner, given_up), ("owner", id));
                        break;
                    }
                }
            }
            assert_eq!(waits.len(), 5);
            assert!((2_000..=3_000).contains(&waits[0].as_millis()), "{waits:?}");
            assert!(waits.windows(2).all(|pair| pair[1] == pair[0] * 2), "{waits:?}");
            // MAX_TRANSMIT_WAIT (§4.8.2).
            assert!((62..=93).contains(&(now - start).as_secs()));
            assert_eq!((messages.next_wake(), messages.held()), (None, (0, 0)));
        }
    }

    #[test]
    fn what_is_acknowledged_is_not_sent_again_and_what_replaces_it_inherits_its_waits() {
        let now = Instant::now();
        let mut messages = Messages::new(TRANSMISSION, 7);
        let (id, _) = messages.send("a", peer(1), written, now);
        assert_eq!(messages.settled(peer(2), id), None, "another peer's word does not count");
        assert_eq!(messages.settled(peer(1), id), Some(("a", 0)));
        assert_eq!(messages.settled(peer(1), id), None);
        assert_eq!(messages.next_wake(), None);

        let (id, _) = messages.send("b", peer(1), written, now);
        let due = messages.next_wake().unwrap();
        assert!(matches!(messages.due(due), Some(Due::Resend(..))));
        let before = messages.next_wake();
        let (newer, datagram) = messages.replace(peer(1), id, written).unwrap();
        assert_ne!(newer, id);
        assert_eq!(messages.next_wake(), before);
        assert_eq!(messages.due(before.unwrap()), Some(Due::Resend(peer(1), datagram)));
        assert_eq!(messages.settled(peer(1), newer), Some(("b", 2)));
    }

    #[test]
    fn what_was_answered_is_remembered_for_its_lifetime_and_forgotten_first_when_there_are_too_many() {
        let now = Instant::now();
        let mut messages = Messages::<()>::new(TRANSMISSION, 7);
        let [first, other_bytes] = [b"a", b"b"].map(|bytes| messages.identify(peer(1), 1, bytes));
        assert!(messages.begin(first, 10));
        assert_eq!(messages.seen(first), Some(Seen::InProgress(10)));
        assert_eq!(messages.seen(messages.identify(peer(2), 1, b"a")), None);
        assert_eq!(messages.seen(other_bytes), None);
        messages.answered(first, Bytes::from_static(b"x"), now);
        assert_eq!(messages.seen(first), Some(Seen::Answered(Bytes::from_static(b"x"))));
        assert_eq!(messages.seen(other_bytes), None);
        messages.forget(first);
        assert!(messages.seen(first).is_some(), "what had an effect is not forgotten early");
        let lifetime = TRANSMISSION.exchange_lifetime;
        messages.sweep(now + lifetime - Duration::from_millis(1));
        assert!(messages.seen(first).is_some());
        messages.sweep(now + lifetime);
        assert_eq!(messages.seen(first), None);
        assert_eq!(messages.next_wake(), None);

        let of = |messages: &Messages<()>, id: u16| messages.identify(peer(1), id, &id.to_be_bytes());
        let [one, two, three, four, five] = [1, 2, 3, 4, 5].map(|id| of(&messages, id));
        for it in [one, two, three] {
            assert!(messages.begin(it, 10));
        }
        assert!(!messages.begin(four, 10), "none is answered");
        messages.answered(two, Bytes::new(), now);
        assert!(messages.begin(four, 10));
        assert_eq!(messages.seen(two), None);
        messages.forget(three);
        assert!(messages.begin(five, 10));
        assert_eq!(messages.held().0, 3);
    }

    #[test]
    fn another_request_under_the_same_id_takes_the_place_of_one_that_was_answered_once_it_is_answered_too() {
        let now = Instant::now();
        let mut messages = Messages::<()>::new(TRANSMISSION, 7);
        let [first, second] = [b"a", b"b"].map(|bytes| messages.identify(peer(1), 1, bytes));
        assert!(messages.begin(first, 10) && messages.begin(second, 11));
        assert_eq!(messages.seen(first), Some(Seen::InProgress(10)));
        assert_eq!(messages.seen(second), Some(Seen::InProgress(11)));
        messages.answered(first, Bytes::from_static(b"x"), now);
        assert_eq!(messages.seen(first), Some(Seen::Answered(Bytes::from_static(b"x"))));
        assert_eq!(messages.seen(second), Some(Seen::InProgress(11)));
        let later = now + Duration::from_secs(1);
        messages.answered(second, Bytes::from_static(b"y"), later);
        assert_eq!(messages.seen(first), None);
        messages.sweep(now + TRANSMISSION.exchange_lifetime);
        assert!(messages.seen(second).is_some(), "its own lifetime counts");
        messages.sweep(later + TRANSMISSION.exchange_lifetime);
        assert_eq!((messages.seen(second), messages.held().0, messages.next_wake()), (None, 0, None));

        for request in 0..100u64 {
            let it = messages.identify(peer(1), 1, &request.to_be_bytes());
            assert!(messages.begin(it, request));
            messages.answered(it, Bytes::new(), now);
        }
        assert_eq!((messages.held().0, messages.forgets.len()), (1, 7), "one id alone takes no more memory");
    }

    proptest! {
        #[test]
        fn memory_is_bounded_and_nothing_is_sent_after_its_end(
            steps in proptest::collection::vec((0u8..5, 0u16..8, 0u64..3_000), 1..200), seed in any::<u64>(),
        ) {
            let mut now = Instant::now();
            let mut messages = Messages::new(TRANSMISSION, seed);
            let mut open: Vec<(SocketAddr, u16)> = Vec::new();
            for (what, number, gap_ms) in steps {
                now += Duration::from_millis(gap_ms);
                let at = peer(number % 2);
                match what {
                    0 => { messages.begin(messages.identify(at, number / 4, &[number as u8]), 1); }
                    1 => messages.answered(messages.identify(at, number / 4, &[number as u8]), Bytes::new(), now),
                    2 => { open.push((at, messages.send((), at, written, now).0)); }
                    3 => if let Some((at, id)) = open.pop() { messages.settled(at, id); },
                    _ => while let Some(due) = messages.due(now) {
                        match due {
                            Due::Resend(to, datagram) => {
                                let id = u16::from_be_bytes([datagram[0], datagram[1]]);
                                prop_assert!(open.contains(&(to, id)));
                            }
                            Due::GivenUp((), id) => open.retain(|(_, it)| *it != id),
                        }
                    },
                }
                messages.sweep(now);
                let (seen, sent) = messages.held();
                prop_assert!(seen <= 3);
                prop_assert_eq!(sent, open.len());
                if !open.is_empty() {
                    prop_assert!(messages.next_wake().is_some());
                }
            }
        }
    }
}
