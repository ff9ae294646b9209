//! What does JetStream keep? Two buckets with revisions, compare-and-set, markers that vanish, and watches that lag.

use std::collections::BTreeMap;

use bus::registry::Device;
use rpc::{Claim, DeviceId};

use crate::message::{Bucket, Feed, Micros, Pid, StoreReply};
use crate::net::LinkId;

/// How long a removal's marker stands.
const MARKER_TTL: Micros = rpc::MARKER_TTL.as_micros() as Micros;

/// A watch as the store has it.
#[derive(Debug)]
pub struct Watcher {
    /// Where to.
    pub link: LinkId,
    /// Its number at the process.
    pub number: u64,
    /// Of what.
    pub bucket: Bucket,
    /// How far it is behind.
    pub lag: Micros,
    /// The server that keeps it: it is lost with that.
    pub home: usize,
    /// When the last thing that was told leaves the store.
    pub last: Micros,
}

/// What stands under a key.
#[derive(Debug, Clone, Copy)]
struct Entry {
    revision: u64,
    claim: Option<Claim>,
    written: Micros,
}

/// All of JetStream.
#[derive(Debug)]
pub struct Store {
    made: Micros,
    first: u64,
    revision: u64,
    claims: BTreeMap<DeviceId, Entry>,
    /// The registry, as operators write it.
    pub registry: BTreeMap<DeviceId, Device>,
    /// Until when nobody leads: nothing is answered.
    pub leaderless_until: Micros,
    /// Who follows.
    pub watchers: Vec<Watcher>,
}

impl Store {
    /// Empty buckets.
    pub fn new() -> Self {
        let first = 1_000_000;
        Store {
            made: 0,
            first,
            revision: first,
            claims: BTreeMap::new(),
            registry: BTreeMap::new(),
            leaderless_until: 0,
            watchers: Vec::new(),
        }
    }

    /// The claims are lost. Where the bucket's definition stays, revisions begin anew.
    pub fn lose_claims(&mut self, keeps_definition: bool, now: Micros) {
        self.claims.clear();
        if !keeps_definition {
            (self.made, self.first) = (now, self.first + now);
        }
        self.revision = self.first;
        self.watchers.retain(|watcher| watcher.bucket != Bucket::Claims);
    }

    /// All claims that stand.
    pub fn standing(&self) -> impl Iterator<Item = (DeviceId, u64, Claim)> + '_ {
        self.claims.iter().filter_map(|(device, entry)| Some((*device, entry.revision, entry.claim?)))
    }

    /// What stands there.
    pub fn read(&mut self, device: DeviceId, now: Micros) -> StoreReply {
        StoreReply::Stands(self.entry(device, now).map(|entry| (entry.revision, entry.claim)))
    }

    /// Writes a claim, or a removal's marker, where `expected` stands.
    pub fn write(
        &mut self,
        device: DeviceId,
        claim: Option<Claim>,
        expected: Option<u64>,
        now: Micros,
    ) -> StoreReply {
        if self.entry(device, now).map(|entry| entry.revision) != expected
            && !rpc::faults::is(rpc::faults::Fault::LostCompareAndSet)
        {
            return StoreReply::Contended;
        }
        self.revision += 1;
        self.claims.insert(device, Entry { revision: self.revision, claim, written: now });
        StoreReply::Written(self.revision)
    }

    /// What a watch is told first.
    pub fn load(&mut self, bucket: Bucket) -> Vec<Feed> {
        let mut feed =
            vec![Feed::Opened(if bucket == Bucket::Claims { self.made } else { 0 }, self.revision)];
        match bucket {
            Bucket::Claims => feed.extend(self.claims.iter().map(|(device, entry)| match entry.claim {
                Some(claim) => Feed::Claim(*device, claim, entry.revision),
                None => Feed::Unclaimed(*device, entry.revision),
            })),
            Bucket::Registry => {
                let records = self.registry.iter();
                feed.extend(records.map(|(device, it)| Feed::Device(*device, Box::new(it.clone()))));
            }
        }
        feed.push(Feed::Loaded);
        feed
    }

    /// The watches of a connection that is closed are gone.
    pub fn drop_watches_of(&mut self, link: LinkId) {
        self.watchers.retain(|watcher| watcher.link != link);
    }

    fn entry(&mut self, device: DeviceId, now: Micros) -> Option<Entry> {
        let entry = *self.claims.get(&device)?;
        if entry.claim.is_none() && now >= entry.written + MARKER_TTL {
            self.claims.remove(&device);
            return None;
        }
        Some(entry)
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

/// Which processes' beats the registry has: told as they are written.
pub type Beat = (Pid, u64);
