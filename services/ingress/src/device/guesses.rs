//! Who guesses access tokens, and what does it cost him? Tokens that nobody has are paid for out of two buckets: one of
//! their source, and one of the node. Where a bucket is empty, a question waits for its turn, then it is refused. Pure.
//!
//! A success costs nothing, and a token that was let in here lately is asked about at once, whatever its neighbours
//! behind the same address do. The same wrong token again is no new guess: it is refused out of memory, for a moment.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use boot::config::{Settings, network};
use rpc::Protocol;

use super::sessions::CredentialDigest;
use rpc::{Rate, TokenBucket};

/// How long a question waits for its turn at most; beyond that it is refused at once.
const MAX_WAIT: Duration = Duration::from_secs(2);
/// What a source owes at most: failures that were under way together are all paid for.
const MAX_DEBT_OF_SOURCE: Duration = Duration::from_secs(600);
/// What the node owes at most for failures that had not to wait: who has guessed nothing gets a turn all the same.
const MAX_DEBT_OF_NODE: Duration = Duration::from_secs(1);
/// How long after its last failure a source has no turn where the node's bucket is empty.
const DISTRUST: Duration = Duration::from_secs(60);
/// Sources that are remembered; failures of further ones are paid for by the node's bucket alone.
const MAX_SOURCES: usize = 65_536;
/// Wrong tokens that are remembered; the oldest go.
const MAX_REFUSED: usize = 8_192;
/// Good tokens that are remembered in each of two generations, and how long one lasts.
const MAX_WELCOME: usize = 100_000;
const GENERATION: Duration = Duration::from_secs(12 * 3600);

/// Where somebody comes from, as far as it can be told apart: an IPv4 address, or the /64 that an IPv6 host has to
/// itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    network: IpAddr,
    /// The sender may be forged. So it does not pay with what is another's over TCP.
    forgeable: bool,
}

impl Source {
    /// Of this address, over this protocol.
    pub fn of(address: IpAddr, protocol: Protocol) -> Self {
        let address = address.to_canonical();
        let network = if address.is_ipv6() { network(address, 64).unwrap_or(address) } else { address };
        Source { network, forgeable: protocol == Protocol::Coap }
    }
}

/// How much may be guessed.
#[derive(Debug, Clone, Copy)]
pub struct GuessLimits {
    source: Rate,
    node: Rate,
    refused_for: Duration,
}

impl From<&Settings> for GuessLimits {
    fn from(settings: &Settings) -> Self {
        let it = &settings.ingress;
        GuessLimits {
            source: Rate { per_second: it.guesses_per_second_per_source, burst: it.guess_burst_per_source },
            node: Rate { per_second: it.guesses_per_second, burst: it.guess_burst },
            refused_for: Duration::from_millis(it.unknown_token_cache_ms),
        }
    }
}

/// Leave to ask whose a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turn {
    /// To be waited for before.
    pub wait: Duration,
    is_paid: bool,
}

/// Nobody is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTurn {
    /// Nobody had that token a moment ago.
    Unknown,
    /// So much has been guessed, from there or here.
    TooMany,
}

/// The failures that a node has seen lately.
#[derive(Debug)]
pub struct Guesses {
    limits: GuessLimits,
    /// The node's buckets: of sources that are what they say, and of those that may be forged.
    node: [TokenBucket; 2],
    sources: HashMap<Source, Suspect>,
    refused: HashSet<CredentialDigest>,
    refused_at: VecDeque<(Instant, CredentialDigest)>,
    /// Beginnings of the hashes of good tokens, of this generation and of the one before: nobody finds others with the
    /// same, and it would only spare him a wait.
    welcome: [HashSet<u64>; 2],
    generation_since: Instant,
}

#[derive(Debug)]
struct Suspect {
    bucket: TokenBucket,
    failed_at: Option<Instant>,
}

impl Suspect {
    fn is_distrusted(&self, now: Instant) -> bool {
        self.failed_at.is_some_and(|at| now.saturating_duration_since(at) < DISTRUST)
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        self.bucket.is_full(now) && !self.is_distrusted(now)
    }
}

impl Guesses {
    /// Nobody has failed.
    pub fn new(limits: GuessLimits, now: Instant) -> Self {
        Guesses {
            limits,
            node: [TokenBucket::new(now), TokenBucket::new(now)],
            sources: HashMap::new(),
            refused: HashSet::new(),
            refused_at: VecDeque::new(),
            welcome: Default::default(),
            generation_since: now,
        }
    }

    /// From now on so much may be guessed.
    pub fn change(&mut self, limits: GuessLimits) {
        self.limits = limits;
    }

    /// May it be asked whose token this is? Then [`found`](Self::found) or [`not_found`](Self::not_found) is to follow,
    /// or [`unanswered`](Self::unanswered).
    ///
    /// # Errors
    /// When it is refused instead.
    pub fn ask(
        &mut self,
        source: Source,
        credential: &CredentialDigest,
        now: Instant,
    ) -> Result<Turn, NoTurn> {
        self.forget_refused(now);
        if self.refused.contains(credential) {
            return Err(NoTurn::Unknown);
        }
        if self.is_welcome(credential) {
            return Ok(Turn { wait: Duration::ZERO, is_paid: false });
        }
        let limits = self.limits;
        let of_node = self.bucket_of_node(source).wait(limits.node, now);
        let suspect = self.sources.get(&source);
        let of_source = suspect.map_or(Duration::ZERO, |it| it.bucket.wait(limits.source, now));
        let wait = of_source.max(of_node);
        if wait > MAX_WAIT || (suspect.is_some_and(|it| it.is_distrusted(now)) && !of_node.is_zero()) {
            return Err(NoTurn::TooMany);
        }
        let is_paid = !wait.is_zero();
        if is_paid {
            // Those who wait come one after the other, not all at once.
            self.pay(source, MAX_WAIT, now);
        }
        Ok(Turn { wait, is_paid })
    }

    /// The token is somebody's.
    pub fn found(&mut self, source: Source, credential: &CredentialDigest, turn: Turn, now: Instant) {
        self.unanswered(source, turn);
        let [current, before] = &mut self.welcome;
        if current.len() >= MAX_WELCOME || now.saturating_duration_since(self.generation_since) >= GENERATION
        {
            *before = std::mem::take(current);
            self.generation_since = now;
        }
        current.insert(beginning(credential));
    }

    /// The token is nobody's; `is_certain` unless devices have changed since that was asked.
    pub fn not_found(
        &mut self,
        source: Source,
        credential: &CredentialDigest,
        turn: Turn,
        is_certain: bool,
        now: Instant,
    ) {
        if !turn.is_paid {
            self.pay(source, MAX_DEBT_OF_NODE, now);
        }
        if let Some(suspect) = self.sources.get_mut(&source) {
            suspect.failed_at = Some(now);
        }
        self.welcome.iter_mut().for_each(|it| _ = it.remove(&beginning(credential)));
        if is_certain && !self.limits.refused_for.is_zero() && self.refused.insert(*credential) {
            self.refused_at.push_back((now, *credential));
        }
        self.forget_refused(now);
    }

    /// Nobody could say whose the token is.
    pub fn unanswered(&mut self, source: Source, turn: Turn) {
        if turn.is_paid {
            let rate = self.limits.node;
            self.bucket_of_node(source).give_back(rate);
            if let Some(suspect) = self.sources.get_mut(&source) {
                suspect.bucket.give_back(self.limits.source);
            }
        }
    }

    /// A device has changed: what was nobody's token may be its now.
    pub fn device_changed(&mut self) {
        self.refused.clear();
        self.refused_at.clear();
    }

    fn pay(&mut self, source: Source, max_debt_of_node: Duration, now: Instant) {
        let rate = self.limits.node;
        self.bucket_of_node(source).spend(rate, max_debt_of_node, now);
        if self.sources.len() >= MAX_SOURCES && !self.sources.contains_key(&source) {
            self.sources.retain(|_, suspect| !suspect.is_forgotten(now));
            if self.sources.len() >= MAX_SOURCES {
                return;
            }
        }
        let new = || Suspect { bucket: TokenBucket::new(now), failed_at: None };
        let suspect = self.sources.entry(source).or_insert_with(new);
        suspect.bucket.spend(self.limits.source, MAX_DEBT_OF_SOURCE, now);
    }

    fn bucket_of_node(&mut self, source: Source) -> &mut TokenBucket {
        let [sure, forgeable] = &mut self.node;
        if source.forgeable { forgeable } else { sure }
    }

    fn is_welcome(&self, credential: &CredentialDigest) -> bool {
        self.welcome.iter().any(|it| it.contains(&beginning(credential)))
    }

    fn forget_refused(&mut self, now: Instant) {
        while let Some((at, credential)) = self.refused_at.front()
            && (*at + self.limits.refused_for <= now || self.refused_at.len() > MAX_REFUSED)
        {
            self.refused.remove(credential);
            self.refused_at.pop_front();
        }
    }
}

fn beginning(credential: &CredentialDigest) -> u64 {
    credential.first_chunk().copied().map_or(0, u64::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use proptest::prelude::*;

    const LIMITS: GuessLimits = GuessLimits {
        source: Rate { per_second: 1, burst: 3 },
        node: Rate { per_second: 10, burst: 100 },
        refused_for: Duration::from_secs(2),
    };
    const FREE: Turn = Turn { wait: Duration::ZERO, is_paid: false };

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap(), Protocol::Mqtt)
    }

    fn wrong(number: u64) -> CredentialDigest {
        let mut digest = [0; 32];
        digest[..8].copy_from_slice(&number.to_be_bytes());
        digest
    }

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A wrong token, asked about. How long it waited, or none when it was refused.
    fn guess(guesses: &mut Guesses, from: Source, number: u64, now: Instant) -> Option<Duration> {
        let turn = guesses.ask(from, &wrong(number), now).ok()?;
        guesses.not_found(from, &wrong(number), turn, true, now + turn.wait);
        Some(turn.wait)
    }

    #[test]
    fn who_guesses_waits_and_is_refused_and_his_neighbours_known_tokens_pass() {
        let (mut guesses, now) = (Guesses::new(LIMITS, Instant::now()), Instant::now());
        let (bad, good) = (source("192.0.2.1"), source("192.0.2.2"));
        let known = wrong(1_000);
        let turn = guesses.ask(bad, &known, now).unwrap();
        guesses.found(bad, &known, turn, now);
        let waits: Vec<_> = (0..8).map(|it| guess(&mut guesses, bad, it, now)).collect();
        let free = Some(Duration::ZERO);
        let expected = [free, free, free, Some(seconds(1)), Some(seconds(2)), None, None, None];
        assert_eq!(waits, expected);
        assert_eq!(guesses.ask(bad, &known, now), Ok(FREE));
        assert_eq!(guesses.ask(good, &wrong(2_000), now), Ok(FREE), "another source");
        let over_coap = Source::of([192, 0, 2, 1].into(), Protocol::Coap);
        assert_eq!(guesses.ask(over_coap, &wrong(2_000), now), Ok(FREE), "a forged sender pays for himself");
        assert_eq!(guess(&mut guesses, bad, 9, now + seconds(10)), free);
        // Once it is nobody's any more it passes no longer.
        guesses.not_found(good, &known, FREE, false, now);
        assert_eq!(guesses.ask(bad, &known, now), Err(NoTurn::TooMany));
    }

    #[test]
    fn a_success_costs_nothing_and_gives_its_turn_back() {
        let (mut guesses, now) = (Guesses::new(LIMITS, Instant::now()), Instant::now());
        let from = source("192.0.2.1");
        for number in 0..1_000 {
            let turn = guesses.ask(from, &wrong(number), now).unwrap();
            assert_eq!(turn, FREE);
            guesses.found(from, &wrong(number), turn, now);
        }
        (0..3).for_each(|it| _ = guess(&mut guesses, from, 5_000 + it, now));
        for number in 2_000..2_010 {
            let turn = guesses.ask(from, &wrong(number), now).unwrap();
            assert_eq!(turn.wait, seconds(1), "{number}");
            guesses.found(from, &wrong(number), turn, now);
            guesses.unanswered(from, FREE);
        }
    }

    #[test]
    fn failures_that_were_under_way_together_are_all_paid_for() {
        let (mut guesses, now) = (Guesses::new(LIMITS, Instant::now()), Instant::now());
        let from = source("192.0.2.1");
        let turns: Vec<_> = (0..50).map(|it| guesses.ask(from, &wrong(it), now).unwrap()).collect();
        (0..).zip(turns).for_each(|(it, turn)| guesses.not_found(from, &wrong(it), turn, true, now));
        assert_eq!(guess(&mut guesses, from, 99, now + seconds(45)), None);
        assert_eq!(guess(&mut guesses, from, 99, now + seconds(48)), Some(Duration::ZERO));
    }

    #[test]
    fn where_many_guess_those_who_did_not_come_first() {
        let (mut guesses, now) = (Guesses::new(LIMITS, Instant::now()), Instant::now());
        let from = |it: u64| Source::of(Ipv4Addr::from_bits(it as u32).into(), Protocol::Http);
        (0..100).for_each(|it| assert_eq!(guess(&mut guesses, from(it), it, now), Some(Duration::ZERO)));
        assert_eq!(guess(&mut guesses, from(5), 1_000, now), None, "it has failed before");
        let waits: Vec<_> = (100..130).map(|it| guess(&mut guesses, from(it), it, now)).collect();
        assert_eq!(waits[0], Some(Duration::from_millis(100)));
        assert_eq!(waits.iter().flatten().count(), 20, "as many as come to their turn within two seconds");
        assert_eq!(guess(&mut guesses, from(5), 1_000, now + seconds(61)), Some(Duration::ZERO));
    }

    #[test]
    fn an_ipv6_host_has_its_64_bits_to_itself() {
        let same = [("2001:db8::1", "2001:db8::ffff:1"), ("::ffff:192.0.2.1", "192.0.2.1")];
        assert!(same.iter().all(|(a, b)| source(a) == source(b)));
        let others = [("2001:db8::1", "2001:db8:0:1::1"), ("192.0.2.1", "192.0.2.2"), ("::1", "127.0.0.1")];
        assert!(others.iter().all(|(a, b)| source(a) != source(b)));
    }

    #[test]
    fn a_wrong_token_is_refused_out_of_memory_for_a_moment() {
        let (mut guesses, now) = (Guesses::new(LIMITS, Instant::now()), Instant::now());
        let from = source("192.0.2.1");
        guess(&mut guesses, from, 1, now);
        for other in [from, source("192.0.2.2")] {
            assert_eq!(
                guesses.ask(other, &wrong(1), now + Duration::from_millis(1_999)),
                Err(NoTurn::Unknown)
            );
        }
        assert_eq!(guesses.ask(from, &wrong(1), now + seconds(2)), Ok(FREE));
        guess(&mut guesses, from, 1, now);
        guesses.device_changed();
        assert_eq!(guesses.ask(from, &wrong(1), now), Ok(FREE), "it may be somebody's now");
        guesses.not_found(from, &wrong(1), FREE, false, now);
        assert_eq!(guesses.ask(from, &wrong(1), now + seconds(3)), Ok(FREE), "devices changed meanwhile");
    }

    #[test]
    fn memory_is_bounded() {
        let none = Rate { per_second: 0, burst: 1 };
        let limits = GuessLimits { source: Rate { per_second: 1, burst: 1 }, node: none, ..LIMITS };
        let (mut guesses, now) = (Guesses::new(limits, Instant::now()), Instant::now());
        let from = |it: u64| Source::of(Ipv4Addr::from_bits(it as u32).into(), Protocol::Http);
        for it in 0..MAX_SOURCES as u64 + 10 {
            assert_eq!(guess(&mut guesses, from(it), it, now), Some(Duration::ZERO));
        }
        assert_eq!((guesses.sources.len(), guesses.refused.len()), (MAX_SOURCES, MAX_REFUSED));
        assert_eq!(guesses.refused_at.len(), MAX_REFUSED);
        guess(&mut guesses, from(0), 0, now + DISTRUST + seconds(1));
        guess(&mut guesses, from(1 << 20), 1, now + DISTRUST + seconds(1));
        assert_eq!((guesses.sources.len(), guesses.refused.len()), (2, 2));
        for it in 0..3 * MAX_WELCOME as u64 {
            guesses.found(from(0), &wrong(it), FREE, now);
        }
        assert!(guesses.welcome.iter().all(|it| it.len() <= MAX_WELCOME));
        assert!(guesses.is_welcome(&wrong(2 * MAX_WELCOME as u64)) && !guesses.is_welcome(&wrong(0)));
        let later = now + GENERATION;
        guesses.found(from(0), &wrong(7), FREE, later);
        guesses.found(from(0), &wrong(7), FREE, later + GENERATION);
        assert!(guesses.is_welcome(&wrong(7)) && !guesses.is_welcome(&wrong(2 * MAX_WELCOME as u64)));
    }

    proptest! {
        /// Whatever comes when and from where: no more is asked about in vain than the buckets hold and earn.
        #[test]
        fn never_more_than_the_buckets_give(
            steps in proptest::collection::vec((0u32..6, 0u64..300), 1..400),
        ) {
            let start = Instant::now();
            let (mut guesses, mut now, mut asked) = (Guesses::new(LIMITS, start), start, HashMap::new());
            let mut last = start;
            for (number, (from, gap_ms)) in (0..).zip(steps) {
                now += Duration::from_millis(gap_ms);
                let from = Source::of(Ipv4Addr::from_bits(from).into(), Protocol::Http);
                if let Some(wait) = guess(&mut guesses, from, number, now) {
                    *asked.entry(from).or_insert(0) += 1;
                    last = last.max(now + wait);
                }
            }
            let elapsed_s = last.duration_since(start).as_secs();
            prop_assert!(asked.values().all(|it| *it <= 3 + elapsed_s + 1), "{asked:?} in {elapsed_s} s");
            prop_assert!(asked.values().sum::<u64>() <= 100 + (elapsed_s + 1) * 10);
        }
    }
}
