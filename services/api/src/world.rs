//! Which devices are there, which of them are connected, and what has changed of late? Told by two feeds of the store,
//! read by listeners. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bus::registry::Device;
use rpc::{AppId, Claim, CustomerId, DeviceId, HopRecord, NodeId, Party, Protocol, SessionId, TenantId};
use serde::Serialize;

/// Events that are kept, so that who was away for a moment hears what it has missed.
pub const MAX_KEPT: usize = 10_000;
/// Devices that are looked at for one part of a snapshot, and that are in it at most.
const LOOKED_AT: usize = 2_000;
const MAX_PART: usize = 200;

/// Up to where both feeds have been heard: an event's id. Every copy of the API hears the same numbers, in each feed in
/// the same order.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// The last revision of the claims.
    pub claims: u64,
    /// The last revision of the registry.
    pub registry: u64,
}

impl fmt::Display for Heard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.claims, self.registry)
    }
}

impl FromStr for Heard {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (claims, registry) = text.split_once('-').ok_or(())?;
        Ok(Heard { claims: claims.parse().map_err(|_| ())?, registry: registry.parse().map_err(|_| ())? })
    }
}

/// What is told of a device's record. Its credential is not kept.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    tenant: TenantId,
    customer: Option<CustomerId>,
    name: Box<str>,
    kind: Box<str>,
    labels: BTreeMap<String, String>,
}

impl Entry {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl From<Device> for Entry {
    fn from(device: Device) -> Self {
        let Device { tenant, customer, name, kind, labels, .. } = device;
        Entry { tenant, customer, name: name.into(), kind: kind.into(), labels }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct There {
    node: NodeId,
    session: SessionId,
    protocol: Protocol,
    since_ms: Option<u64>,
}

impl From<Claim> for There {
    fn from(claim: Claim) -> Self {
        let Claim { node, session, protocol, since_ms, .. } = claim;
        There { node, session, protocol, since_ms }
    }
}

/// What a listener is to be told of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wants {
    /// Who comes and goes.
    pub presence: bool,
    /// What changes in the registry.
    pub registry: bool,
    /// Which calls end.
    pub calls: bool,
    /// Of these alone; none: of all.
    pub devices: BTreeSet<DeviceId>,
    /// Of this customer's alone.
    pub customer: Option<CustomerId>,
}

/// Whose devices there are for a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reach {
    /// The application whose key it has.
    pub app: AppId,
    /// Of this tenant alone.
    pub tenant: TenantId,
    /// Of these customers alone; none: all, also those of nobody.
    pub customers: Option<BTreeSet<CustomerId>>,
    /// With these labels alone.
    pub labels: BTreeMap<String, String>,
}

impl Reach {
    /// Whether a device is within it.
    pub(crate) fn has(&self, entry: &Entry) -> bool {
        let is_within = |all: &BTreeSet<CustomerId>| entry.customer.is_some_and(|it| all.contains(&it));
        entry.tenant == self.tenant
            && self.customers.as_ref().is_none_or(is_within)
            && self.labels.iter().all(|(key, value)| entry.labels.get(key) == Some(value))
    }

    /// The application that made a call: itself, or where it reaches the tenant as a whole any of that.
    pub(crate) fn app(&self, hop: &HopRecord) -> Option<AppId> {
        let app = AppId(hop.from.0);
        // Whoever adds an application chooses its id; whose share a call is in stands for the tenant.
        let is_of_tenant = hop.party == Some(Party::of(self.tenant, Some(CustomerId(app.0))));
        let is_seen = app == self.app || (self.customers.is_none() && self.labels.is_empty());
        (is_of_tenant && is_seen).then_some(app)
    }
}

/// Something has changed.
#[derive(Debug)]
struct Event {
    /// Up to where was heard, with it.
    heard: Heard,
    of_claims: bool,
    device: DeviceId,
    before: Option<Arc<Entry>>,
    after: Option<Arc<Entry>>,
    there: Option<There>,
}

impl Event {
    fn is_news(&self, heard: Heard) -> bool {
        match self.of_claims {
            true => self.heard.claims > heard.claims,
            false => self.heard.registry > heard.registry,
        }
    }

    /// What it is to one: a change of the registry, and whether somebody has come, gone or moved.
    fn means(&self, reach: &Reach, wants: &Wants) -> (Option<&'static str>, bool) {
        let seen = |entry: &Option<Arc<Entry>>| {
            entry.as_deref().is_some_and(|it| wants.is_about(self.device, it) && reach.has(it))
        };
        let (before, after) = (seen(&self.before), seen(&self.after));
        let change = match (before, after) {
            _ if self.of_claims => None,
            (false, true) => Some("added"),
            (true, true) => Some("changed"),
            (true, false) => Some("removed"),
            (false, false) => None,
        };
        // Who comes within reach is told of, too: there or not.
        (change.filter(|_| wants.registry), wants.presence && after && (self.of_claims || !before))
    }

    fn tell(&self, change: Option<&'static str>, presence: bool, told: &mut Vec<Told>) {
        if let Some(change) = change {
            let record = self.after.as_deref().filter(|_| change != "removed").map(Record::of);
            let data = json(&Changed { change, id: self.device, record });
            // Who has heard the first of two may miss the other.
            told.push(Told { event: "registry", data, id: (!presence).then_some(self.heard) });
        }
        if let Some(entry) = self.after.as_deref().filter(|_| presence) {
            let data = json(&Presence::of(self.device, entry, self.there));
            told.push(Told { event: "presence", data, id: Some(self.heard) });
        }
    }
}

impl Wants {
    /// Whether it is of what is there, too, and not only of what passes by.
    pub(crate) fn is_of_state(&self) -> bool {
        self.presence || self.registry
    }

    pub(crate) fn is_about(&self, device: DeviceId, entry: &Entry) -> bool {
        (self.devices.is_empty() || self.devices.contains(&device))
            && (self.customer.is_none() || self.customer == entry.customer)
    }

    /// Whether no device is left out.
    pub(crate) fn is_about_all(&self) -> bool {
        self.devices.is_empty() && self.customer.is_none()
    }
}

/// One event as it is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Its kind.
    pub event: &'static str,
    /// One line of JSON.
    pub data: String,
    /// Where to go on behind it, if one may.
    pub id: Option<Heard>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Presence<'a> {
    id: DeviceId,
    name: &'a str,
    customer: Option<CustomerId>,
    online: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<NodeId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    #[serde(skip_serializing_if = "Option::is_none")]
    since_ms: Option<u64>,
}

impl<'a> Presence<'a> {
    fn of(id: DeviceId, entry: &'a Entry, there: Option<There>) -> Self {
        Presence {
            id,
            name: &entry.name,
            customer: entry.customer,
            online: there.is_some(),
            node: there.map(|it| it.node),
            protocol: there.map(|it| it.protocol),
            since_ms: there.and_then(|it| it.since_ms),
        }
    }
}

#[derive(Serialize)]
struct Record<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    customer: Option<CustomerId>,
    labels: &'a BTreeMap<String, String>,
}

impl<'a> Record<'a> {
    fn of(entry: &'a Entry) -> Self {
        Record { name: &entry.name, kind: &entry.kind, customer: entry.customer, labels: &entry.labels }
    }
}

#[derive(Serialize)]
struct Changed<'a> {
    change: &'static str,
    id: DeviceId,
    #[serde(flatten)]
    record: Option<Record<'a>>,
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    presence: Presence<'a>,
    #[serde(rename = "type")]
    kind: &'a str,
    labels: &'a BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Part<'a> {
    devices: Vec<Shown<'a>>,
    more: bool,
}

pub(crate) fn json(of: &impl Serialize) -> String {
    // Numbers, texts and maps by texts can all be written.
    serde_json::to_string(of).unwrap_or_default()
}

/// One feed of the store, as it stands.
#[derive(Debug)]
struct Feed<M> {
    now: M,
    /// What a load has told so far; then it takes `now`'s place.
    loading: Option<M>,
    is_whole: bool,
}

impl<M: Default> Default for Feed<M> {
    fn default() -> Self {
        Feed { now: M::default(), loading: None, is_whole: false }
    }
}

impl<M: Default> Feed<M> {
    fn loaded(&mut self) {
        if let Some(loading) = self.loading.take() {
            self.now = loading;
        }
        self.is_whole = true;
    }
}

/// All devices, where they are, and the last events.
#[derive(Debug, Default)]
pub struct World {
    devices: Feed<BTreeMap<DeviceId, Arc<Entry>>>,
    claims: Feed<HashMap<DeviceId, There>>,
    heard: Heard,
    kept: VecDeque<Event>,
    /// The number of the first that is kept, and up to where was heard before it.
    first: u64,
    before_first: Heard,
    /// Grows with each load: what changed meanwhile is not known one by one.
    loads: u64,
}

/// Where a listener is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    loads: u64,
    next: u64,
    heard: Heard,
}

/// What a listener hears next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// These; none: nothing, until something changes.
    Events(Vec<Told>),
    /// Something was missed: all is to be told anew.
    Missed,
    /// More than it may have before it.
    Overrun,
}

impl Place {
    /// Up to where was heard at it.
    pub fn heard(self) -> Heard {
        self.heard
    }
}

impl World {
    /// What is told of a device, if it is there.
    pub(crate) fn entry(&self, device: DeviceId) -> Option<Arc<Entry>> {
        self.devices.now.get(&device).cloned()
    }

    /// Whether all is known: without it there is no snapshot.
    pub fn is_whole(&self) -> bool {
        self.devices.is_whole && self.claims.is_whole
    }

    /// The claims are told from the beginning; they have been written up to `revision`.
    pub fn claims_reset(&mut self, revision: u64) {
        self.claims.loading = Some(HashMap::new());
        self.heard.claims = self.heard.claims.max(revision);
    }

    /// A device's claim stands, or none does any more.
    pub fn claim(&mut self, device: DeviceId, claim: Option<Claim>, revision: u64) {
        self.heard.claims = self.heard.claims.max(revision);
        let there = claim.map(There::from);
        let map = self.claims.loading.as_mut().unwrap_or(&mut self.claims.now);
        let before = match there {
            Some(there) => map.insert(device, there),
            None => map.remove(&device),
        };
        if self.claims.loading.is_some() || before == there {
            return;
        }
        let entry = self.devices.now.get(&device).cloned();
        self.keep(Event {
            heard: self.heard,
            of_claims: true,
            device,
            before: entry.clone(),
            after: entry,
            there,
        });
    }

    /// All claims have been told.
    pub fn claims_loaded(&mut self) {
        self.claims.loaded();
        self.begin_anew();
    }

    /// The devices are told from the beginning; the registry has been written up to `revision`.
    pub fn devices_reset(&mut self, revision: u64) {
        self.devices.loading = Some(BTreeMap::new());
        self.heard.registry = self.heard.registry.max(revision);
    }

    /// A device's record stands, or none does any more.
    pub fn device(&mut self, device: DeviceId, record: Option<Device>, revision: u64) {
        self.heard.registry = self.heard.registry.max(revision);
        let after = record.map(|it| Arc::new(Entry::from(it)));
        let map = self.devices.loading.as_mut().unwrap_or(&mut self.devices.now);
        let before = match after.clone() {
            Some(after) => map.insert(device, after),
            None => map.remove(&device),
        };
        if self.devices.loading.is_some() || before == after {
            return;
        }
        let there = self.claims.now.get(&device).copied();
        self.keep(Event { heard: self.heard, of_claims: false, device, before, after, there });
    }

    /// All devices have been told.
    pub fn devices_loaded(&mut self) {
        self.devices.loaded();
        self.begin_anew();
    }

    /// Changes of the claims may be missed from now on, until they are told again.
    pub fn claims_lost(&mut self) {
        self.claims.is_whole = false;
    }

    /// The same of the devices.
    pub fn devices_lost(&mut self) {
        self.devices.is_whole = false;
    }

    /// No change of the devices was missed.
    pub fn devices_resumed(&mut self) {
        self.devices.is_whole = true;
    }

    fn begin_anew(&mut self) {
        self.first += self.kept.len() as u64;
        self.kept.clear();
        self.before_first = self.heard;
        self.loads += 1;
    }

    fn keep(&mut self, event: Event) {
        if self.kept.len() == MAX_KEPT
            && let Some(gone) = self.kept.pop_front()
        {
            self.first += 1;
            self.before_first = gone.heard;
        }
        self.kept.push_back(event);
    }

    /// How often all has been told anew; each time something was away before.
    pub(crate) fn loads(&self) -> u64 {
        self.loads
    }

    /// Where one is who has heard all until now, as by a snapshot that is about to begin.
    pub fn place(&self) -> Place {
        Place { loads: self.loads, next: self.first + self.kept.len() as u64, heard: self.heard }
    }

    /// Where one is who has heard so much; none if what came then is not known any more.
    pub fn place_behind(&self, heard: Heard) -> Option<Place> {
        let is_kept =
            heard.claims >= self.before_first.claims && heard.registry >= self.before_first.registry;
        (is_kept && self.is_whole()).then_some(Place { loads: self.loads, next: self.first, heard })
    }

    /// What a listener at `place` is told next, `most` at a time; it may have `max_queued` before it.
    pub fn next(
        &self,
        place: &mut Place,
        reach: &Reach,
        wants: &Wants,
        most: usize,
        max_queued: usize,
    ) -> Next {
        let Some(behind) = place.next.checked_sub(self.first).filter(|_| place.loads == self.loads) else {
            return if place.loads == self.loads { Next::Overrun } else { Next::Missed };
        };
        let (mut told, mut queued) = (Vec::new(), 0);
        let behind = usize::try_from(behind).unwrap_or(usize::MAX).min(self.kept.len());
        for event in self.kept.range(behind..) {
            if event.is_news(place.heard) {
                let (change, presence) = event.means(reach, wants);
                let lines = usize::from(change.is_some()) + usize::from(presence);
                queued += lines;
                if queued > max_queued {
                    return Next::Overrun;
                }
                if lines > 0 && told.len() < most {
                    event.tell(change, presence, &mut told);
                }
            }
            if queued == told.len() {
                place.next += 1;
            }
        }
        Next::Events(told)
    }

    /// A part of all that is there: its JSON, and behind which device the next part begins, if any.
    pub fn part(&self, behind: Option<DeviceId>, reach: &Reach, wants: &Wants) -> (String, Option<DeviceId>) {
        use std::ops::Bound::{Excluded, Unbounded};
        let mut rest = self.devices.now.range((behind.map_or(Unbounded, Excluded), Unbounded));
        let mut devices = Vec::new();
        let mut last = None;
        for (id, entry) in rest.by_ref().take(LOOKED_AT) {
            last = Some(*id);
            if wants.is_about(*id, entry) && reach.has(entry) {
                let presence = Presence::of(*id, entry, self.claims.now.get(id).copied());
                devices.push(Shown { presence, kind: &entry.kind, labels: &entry.labels });
                if devices.len() == MAX_PART {
                    break;
                }
            }
        }
        let next = last.filter(|_| rest.next().is_some());
        (json(&Part { devices, more: next.is_some() }), next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::{CredentialHash, Generation};
    use uuid::Uuid;

    const TENANT: TenantId = TenantId(Uuid::from_u128(1));

    fn id(number: u128) -> DeviceId {
        DeviceId(Uuid::from_u128(number))
    }

    fn customer(number: u128) -> CustomerId {
        CustomerId(Uuid::from_u128(number))
    }

    fn record(of: u128, name: &str) -> Option<Device> {
        Some(Device {
            tenant: TENANT,
            customer: Some(customer(of)),
            name: name.into(),
            kind: "default".into(),
            labels: BTreeMap::new(),
            credential: CredentialHash("secret".into()),
            weak_token: false,
        })
    }

    fn claim(session: u64) -> Option<Claim> {
        let (node, generation, since_ms) = (NodeId(1), Generation(session), Some(9));
        Some(Claim { node, session: SessionId(session), protocol: Protocol::Mqtt, generation, since_ms })
    }

    fn reach(customers: &[u128]) -> Reach {
        let customers = Some(customers.iter().map(|it| customer(*it)).collect());
        Reach { app: AppId(Uuid::nil()), tenant: TENANT, customers, labels: BTreeMap::new() }
    }

    fn all() -> Wants {
        Wants { presence: true, registry: true, ..Wants::default() }
    }

    /// One that has heard that nothing is there.
    fn whole() -> World {
        let mut world = World::default();
        world.claims_reset(10);
        world.claims_loaded();
        world.devices_reset(20);
        world.devices_loaded();
        world
    }

    fn told(world: &World, place: &mut Place, reach: &Reach, wants: &Wants) -> Vec<String> {
        match world.next(place, reach, wants, 64, 100) {
            Next::Events(told) => told.into_iter().map(|it| format!("{} {}", it.event, it.data)).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_listener_is_told_what_its_key_reaches() {
        let mut world = whole();
        let (mut place, reach) = (world.place(), reach(&[1]));
        world.device(id(1), record(1, "A"), 21);
        world.device(id(2), record(2, "B"), 22);
        world.claim(id(1), claim(1), 11);
        world.claim(id(2), claim(1), 12);
        world.claim(id(1), claim(1), 13);
        let heard = told(&world, &mut place, &reach, &all());
        assert_eq!(heard.len(), 3, "added, not there, there: {heard:?}");
        assert!(
            heard[0].starts_with(r#"registry {"change":"added","id":"00000000-0000-0000-0000-000000000001""#)
        );
        assert!(heard[1].contains(r#""online":false"#) && !heard[1].contains("node"), "{heard:?}");
        assert!(
            heard[2].contains(r#""online":true,"node":"0000000000000001","protocol":"mqtt","sinceMs":9"#)
        );
        assert!(!heard.concat().contains("secret"));

        // One comes within reach, one leaves it, one is removed: what it is now and whose is not told any more.
        world.device(id(2), record(1, "B"), 23);
        world.device(id(1), record(3, "A"), 24);
        world.claim(id(1), None, 14);
        world.device(id(2), None, 25);
        let heard = told(&world, &mut place, &reach, &all());
        let changes: Vec<_> = heard.iter().map(|it| it.split('"').nth(3).unwrap()).collect();
        assert_eq!(
            changes,
            ["added", "00000000-0000-0000-0000-000000000002", "removed", "removed"],
            "{heard:?}"
        );
        assert!(!heard[2].contains("customer"), "{heard:?}");
        assert!(told(&world, &mut place, &reach, &all()).is_empty());
    }

    #[test]
    fn a_listener_is_told_of_what_it_wants() {
        let mut world = whole();
        let (start, everybody) = (world.place(), reach(&[1, 2]));
        for (number, revision) in [(1, 21), (2, 22)] {
            world.device(id(number), record(number, "A"), revision);
            world.claim(id(number), claim(1), revision);
        }
        let count = |wants: &Wants| told(&world, &mut start.clone(), &everybody, wants).len();
        assert_eq!(count(&all()), 6);
        assert_eq!(count(&Wants { registry: false, ..all() }), 4);
        assert_eq!(count(&Wants { presence: false, ..all() }), 2);
        assert_eq!(count(&Wants { devices: [id(2)].into(), ..all() }), 3);
        assert_eq!(count(&Wants { customer: Some(customer(1)), ..all() }), 3);
    }

    #[test]
    fn who_was_away_goes_on_at_any_copy_that_knows_what_came_then() {
        // Two feeds, which the two copies hear in another order.
        let (mut one, mut other) = (whole(), whole());
        let feeds: [fn(&mut World, u64); 2] = [
            |world, step| world.device(id(1), record(1, &format!("A{step}")), 20 + step),
            |world, step| world.claim(id(1), claim(step), 10 + step),
        ];
        (1..=4).for_each(|step| feeds.iter().for_each(|feed| feed(&mut one, step)));
        feeds.iter().for_each(|feed| (1..=4).for_each(|step| feed(&mut other, step)));
        let reach = reach(&[1]);
        let Next::Events(heard) =
            one.next(&mut one.place_behind(whole().heard).unwrap(), &reach, &all(), 64, 100)
        else {
            panic!()
        };
        for last in heard.iter().filter_map(|it| it.id) {
            let last = last.to_string().parse().unwrap();
            let rest = told(&other, &mut other.place_behind(last).unwrap(), &reach, &all());
            let expected = (24 - last.registry) + (14 - last.claims);
            assert_eq!(rest.len() as u64, expected, "each once: {last:?} {rest:?}");
        }
        assert!(one.place_behind(Heard { claims: 9, registry: 20 }).is_none(), "before all that is known");
        for junk in ["", "7", "1-", "-1", "1-2-3", "a-b"] {
            assert!(junk.parse::<Heard>().is_err(), "{junk}");
        }
    }

    #[test]
    fn who_missed_something_is_told_so_and_who_reads_too_slowly_is_cut_off() {
        let mut world = whole();
        let (start, reach) = (world.place(), reach(&[1]));
        world.device(id(1), record(1, "A"), 21);
        let mut place = start;
        for session in 0..=100 {
            world.claim(id(1), claim(session), 30 + session);
        }
        assert_eq!(world.next(&mut place, &reach, &all(), 64, 100), Next::Overrun);
        assert!(
            told(
                &world,
                &mut start.clone(),
                &Reach { tenant: TenantId(Uuid::nil()), ..reach.clone() },
                &all()
            )
            .is_empty()
        );
        let mut place = start;
        let Next::Events(first) = world.next(&mut place, &reach, &all(), 64, 1_000) else { panic!() };
        let rest = told(&world, &mut place, &reach, &all());
        assert_eq!((first.len(), rest.len()), (64, 39), "each once");
        for session in 0..MAX_KEPT as u64 {
            world.claim(id(1), claim(session), 200 + session);
        }
        assert_eq!(world.next(&mut start.clone(), &reach, &all(), 64, usize::MAX), Next::Overrun);

        let before = world.place();
        world.claims_lost();
        assert!(!world.is_whole() && world.place_behind(before.heard).is_none());
        world.claims_reset(20_000);
        world.claims_loaded();
        assert_eq!(world.next(&mut before.clone(), &reach, &all(), 64, 100), Next::Missed);
        assert!(world.part(None, &reach, &all()).0.contains(r#""online":false"#), "the load did not name it");
    }

    #[test]
    fn a_snapshot_comes_in_parts() {
        let mut world = whole();
        for number in 0..500 {
            world.device(id(number), record(1 + number % 2, "A"), 100 + number as u64);
        }
        let (reach, mut behind, mut parts) = (reach(&[1]), None, Vec::new());
        loop {
            let (part, next) = world.part(behind, &reach, &all());
            parts.push(part.matches(r#""name":"A""#).count());
            assert!(part.ends_with(if next.is_some() { r#""more":true}"# } else { r#""more":false}"# }));
            let Some(next) = next else { break };
            behind = Some(next);
        }
        assert_eq!(parts, [200, 50]);
    }
}
