//! Who is who? The registry in memory, as the watch tells it: by credential, by device, and by customer.
//!
//! Kept lean, since every authorizer holds all of it, and read under one short lock, since every call asks it. A device
//! stands there once; what finds it is sets of pointers, and what it has in common with others they share.

mod entry;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Bound;
use std::sync::Arc;

use bus::registry::{App, Change, Device};
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use rpc::{
    AppCaller, AppDevices, AppId, CredentialHash, CustomerId, DeviceId, DeviceStanding, DeviceState, KeyId,
    Party, QuickSet, Sought, Stamp, Target, TenantId,
};

use uuid::Uuid;

use self::entry::{ByCredential, ById, ByName, Digest, Entry, Like, Listed, Load};
use crate::listing::{Listing, Listings};
use crate::policy::{Decision, Facts, Standing, decide_app};

/// Devices that are looked at under one lock, when a tenant's are all wanted.
const FACTS_AT_A_TIME: usize = 1_000;
/// Devices of one page for an application, and about what they may take: well below what NATS carries.
const MAX_PAGE: u32 = 500;
const MAX_PAGE_BYTES: usize = 256 << 10;
/// Devices that are looked at for one page.
const MAX_LOOKED_AT: usize = 10_000;
/// Of the lists that are kept rendered.
const MAX_LISTING_BYTES: usize = 64 << 20;
/// Things in common that are kept, beside twice as many as are in use, before those that no device has are looked for.
const MAX_UNUSED: usize = 1_000;

/// The registry in memory. Answers from the first full load on; until then it knows too little to be asked.
#[derive(Default)]
pub struct Directory {
    maps: RwLock<Maps>,
}

/// How much the directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sizes {
    /// Tenants.
    pub tenants: usize,
    /// Customers.
    pub customers: usize,
    /// Devices.
    pub devices: usize,
}

/// One entry of a list of devices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The device.
    pub id: DeviceId,
    /// Its name.
    pub name: Arc<str>,
}

/// Whom a credential lets in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The device.
    pub device: DeviceId,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its customer, if it is assigned to one.
    pub customer: Option<CustomerId>,
    /// Its name.
    pub name: String,
    /// What its tickets bear.
    pub stamp: Stamp,
}

/// Why there is no list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoList {
    /// The caller has no customer, or is not registered (any more).
    Unassigned,
    /// The device to continue behind is not one of the list.
    UnknownAfter,
}

impl Directory {
    /// Takes over a change. Adds to `touched` the devices whose sessions may have to end: those removed, moved, or
    /// given another credential, once the first load is complete.
    pub fn apply(&self, change: Change, touched: &mut HashSet<DeviceId>) {
        self.write().apply(change, touched);
    }

    /// Where two devices stand, at the same moment, and the stamp that the caller's tickets must bear.
    pub fn standings(
        &self,
        caller: DeviceId,
        target: DeviceId,
    ) -> (Option<(Standing, Stamp)>, Option<Standing>) {
        let maps = self.read();
        let caller = maps.device(caller);
        let asking = |entry: &Arc<Entry>| (entry.standing(), Stamp::of_digest(&entry.credential));
        (caller.map(asking), maps.standing(target))
    }

    /// The device that a credential lets in: the one it was made for, if that one's record bears it still.
    pub fn identify(&self, credential: &CredentialHash) -> Option<Known> {
        let digest = digest(credential)?;
        let maps = self.read();
        let ByCredential(entry) = maps.holders.get(&digest)?;
        let Like { tenant, customer, .. } = *entry.like;
        let (name, stamp) = (entry.name.as_ref().to_owned(), Stamp::of_digest(&digest));
        Some(Known { device: entry.id, tenant, customer, name, stamp })
    }

    /// The stamp of the device's credential as it is now: tickets for another are void.
    pub fn stamp(&self, device: DeviceId) -> Option<Stamp> {
        self.read().device(device).map(|entry| Stamp::of_digest(&entry.credential))
    }

    /// The other devices of the caller's customer, by name and then id: at most `limit`, those behind `after` if given.
    ///
    /// # Errors
    /// When the caller has no customer, or `after` is not one of its devices.
    pub fn peers(
        &self,
        caller: DeviceId,
        after: Option<DeviceId>,
        limit: usize,
    ) -> Result<Vec<Peer>, NoList> {
        let maps = self.read();
        let group = maps.group_of(caller).ok_or(NoList::Unassigned)?;
        let start = match after {
            None => Bound::Unbounded,
            Some(after) => match maps.device(after).filter(|entry| entry.group() == Some(group)) {
                Some(after) => Bound::Excluded(Listed(Arc::clone(after))),
                None => return Err(NoList::UnknownAfter),
            },
        };
        let Some(devices) = maps.groups.get(&group) else {
            return Ok(Vec::new());
        };
        let behind = devices.range((start, Bound::Unbounded)).filter(|Listed(peer)| peer.id != caller);
        Ok(behind.take(limit).map(|Listed(peer)| Peer { id: peer.id, name: peer.name.clone() }).collect())
    }

    /// The beginning of the list of the caller's customer, the caller in it: `most` entries.
    ///
    /// # Errors
    /// When the caller has no customer.
    pub fn listing(&self, caller: DeviceId, most: usize) -> Result<Arc<Listing>, NoList> {
        // Held throughout, so that no change comes between what is listed and that it is kept.
        let maps = self.read();
        let group = maps.group_of(caller).ok_or(NoList::Unassigned)?;
        if let Some(kept) = maps.listings.lock().get(&group) {
            return Ok(kept);
        }
        let devices = maps.groups.get(&group).into_iter().flatten();
        let listing = Arc::new(Listing::of(devices.map(|Listed(peer)| (&peer.name, peer.id)), most));
        maps.listings.lock().keep(group, &listing);
        Ok(listing)
    }

    /// The application that shows this key, if the key lives at `now_s`, in seconds since 1970.
    pub fn app_of(&self, credential: &CredentialHash, now_s: u64) -> Option<(AppId, KeyId, Arc<App>)> {
        let digest = digest(credential)?;
        let maps = self.read();
        let (id, key) = *maps.keys.get(&digest)?;
        let (app, _) = maps.apps.get(&id)?;
        app.has_key(key, now_s).then(|| (id, key, Arc::clone(app)))
    }

    /// An application.
    pub fn app(&self, id: AppId) -> Option<Arc<App>> {
        self.read().apps.get(&id).map(|(app, _)| Arc::clone(app))
    }

    /// Whom an application of this tenant means. What does not exist has an id all the same, which no device has.
    pub fn target(&self, tenant: TenantId, target: &Target) -> DeviceId {
        match target {
            Target::Id(id) => *id,
            Target::Name(name) => {
                let maps = self.read();
                let named = maps.names.get(&tenant).and_then(|names| names.get(name.as_str()));
                named.map_or(DeviceId(Uuid::nil()), |ByName(entry)| entry.id)
            }
        }
    }

    /// A page of the devices that an application seeks and reaches, and after which name the next one begins, if any.
    pub fn seek(&self, app: &App, sought: &Sought) -> AppDevices {
        let only = sought.target.as_ref().map(|target| self.target(app.tenant, target));
        let maps = self.read();
        let seen = |entry: &Arc<Entry>| {
            let Like { tenant, customer, kind, labels } = &*entry.like;
            let is_sought = *tenant == app.tenant
                && app.reaches(*customer, labels)
                && (sought.customer.is_none() || sought.customer == *customer)
                && sought.kind.as_ref().is_none_or(|sought| **sought == **kind)
                && sought.labels.iter().all(|(key, value)| labels.get(key) == Some(value))
                && entry.name.starts_with(&sought.name);
            is_sought.then(|| entry.shown())
        };
        if let Some(id) = only {
            return AppDevices { devices: maps.device(id).and_then(seen).into_iter().collect(), next: None };
        }
        let mut page = AppDevices::default();
        let Some(names) = maps.names.get(&app.tenant) else { return page };
        let start = match &sought.after {
            Some(after) if **after >= *sought.name => Bound::Excluded(after.as_str()),
            _ => Bound::Included(sought.name.as_str()),
        };
        let limit = sought.limit.clamp(1, MAX_PAGE) as usize;
        let (mut bytes, mut looked_at) = (0, 0);
        for ByName(entry) in names.range::<str, _>((start, Bound::Unbounded)) {
            if !entry.name.starts_with(&sought.name) {
                return page;
            }
            looked_at += 1;
            if let Some(device) = seen(entry) {
                bytes += device.name.len() + device.kind.len() + 100;
                bytes += device.labels.iter().map(|(key, value)| key.len() + value.len() + 8).sum::<usize>();
                page.devices.push(device);
            }
            if page.devices.len() == limit || bytes >= MAX_PAGE_BYTES || looked_at == MAX_LOOKED_AT {
                page.next = Some(entry.name.as_ref().to_owned());
                return page;
            }
        }
        page
    }

    /// Decides over an application's call, by what holds at one moment.
    pub fn decide_app(&self, caller: &AppCaller, target: DeviceId, now_s: u64) -> Decision {
        let maps = self.read();
        let target = maps.standing(target).zip(maps.device(target));
        let target = target.as_ref().map(|(standing, entry)| (standing, &entry.like.labels));
        decide_app(maps.apps.get(&caller.app).map(|(app, _)| &**app), caller, target, now_s)
    }

    /// The tenant of a device.
    pub fn tenant_of(&self, device: DeviceId) -> Option<TenantId> {
        self.read().device(device).map(|entry| entry.like.tenant)
    }

    /// In whose share a device's calls are.
    pub fn party_of(&self, device: DeviceId) -> Option<Party> {
        self.read().device(device).map(|entry| Party::of(entry.like.tenant, entry.like.customer))
    }

    /// What policies may know of a device, and its tenant.
    pub fn facts(&self, device: DeviceId) -> Option<(TenantId, Facts)> {
        self.read().device(device).map(|entry| (entry.like.tenant, entry.facts()))
    }

    /// What policies may know of every device of a tenant. Looks at all devices: for the rare change of a set. Other
    /// questions, and changes, go on in between.
    pub fn facts_of(&self, tenant: TenantId) -> Vec<Facts> {
        let is_of = |ById(entry): &ById| (entry.like.tenant == tenant).then_some(entry.id);
        let ids: Vec<_> = self.read().devices.iter().filter_map(is_of).collect();
        let facts = |ids: &[DeviceId]| {
            let maps = self.read();
            ids.iter().filter_map(|id| Some(maps.device(*id)?.facts())).collect::<Vec<_>>()
        };
        ids.chunks(FACTS_AT_A_TIME).flat_map(facts).collect()
    }

    /// What a device is now, for the nodes that hold its sessions.
    pub fn state(&self, device: DeviceId) -> DeviceState {
        let now = self.read().device(device).map(|entry| DeviceStanding {
            tenant: entry.like.tenant,
            customer: entry.like.customer,
            credential: CredentialHash::from_digest(entry.credential),
        });
        DeviceState { device, now }
    }

    /// How much is there.
    pub fn sizes(&self) -> Sizes {
        let maps = self.read();
        Sizes { tenants: maps.tenants.len(), customers: maps.customers.len(), devices: maps.devices.len() }
    }

    fn read(&self) -> RwLockReadGuard<'_, Maps> {
        self.maps.read()
    }

    fn write(&self) -> RwLockWriteGuard<'_, Maps> {
        self.maps.write()
    }
}

#[derive(Default)]
struct Maps {
    devices: QuickSet<ById>,
    /// The devices whose credentials were made for them.
    holders: HashSet<ByCredential>,
    /// Whom the other credentials were made for: nobody that is there, or bears it.
    loose: HashMap<Digest, (DeviceId, Load)>,
    /// The devices of each customer in the order of a list.
    groups: HashMap<Group, BTreeSet<Listed>>,
    /// What was listed of them since they changed last.
    listings: Mutex<Listings<Group, MAX_LISTING_BYTES>>,
    /// What devices have in common.
    likes: HashSet<Arc<Like>>,
    /// How many there may be before the unused ones go.
    max_likes: usize,
    customers: HashMap<CustomerId, Load>,
    apps: HashMap<AppId, (Arc<App>, Load)>,
    /// Whose each application's key is.
    keys: HashMap<Digest, (AppId, KeyId)>,
    /// The devices of each tenant by name.
    names: HashMap<TenantId, BTreeSet<ByName>>,
    tenants: HashMap<TenantId, Load>,
    load: Load,
    is_loaded: bool,
}

/// A customer within its tenant: a record that named a customer of another tenant would be alone in its list.
type Group = (TenantId, CustomerId);

impl Maps {
    fn apply(&mut self, change: Change, touched: &mut HashSet<DeviceId>) {
        let load = self.load;
        match change {
            Change::Loading => self.load = load.wrapping_add(1),
            Change::Tenant(id, now) => seen(&mut self.tenants, id, now.map(|_| load)),
            Change::Customer(id, now) => seen(&mut self.customers, id, now.map(|_| load)),
            Change::Credential(hash, now) => {
                if let Some(digest) = digest(&hash) {
                    self.holders.remove(&digest);
                    self.loose.remove(&digest);
                    if let Some(device) = now {
                        self.hold(digest, device, load);
                    }
                }
            }
            Change::App(id, now) => self.put_app(id, now),
            Change::Device(id, Some(device)) => self.put(id, device, touched),
            Change::Device(id, None) => self.remove(id, touched),
            Change::Loaded => self.sweep(touched),
            Change::Beat(_) | Change::Confirmed | Change::Lost | Change::Resumed => {}
        }
    }

    fn device(&self, id: DeviceId) -> Option<&Arc<Entry>> {
        self.devices.get(&id).map(|ById(entry)| entry)
    }

    /// A credential was made for a device.
    fn hold(&mut self, digest: Digest, device: DeviceId, load: Load) {
        match self.devices.get(&device) {
            Some(ById(entry)) if entry.credential == digest => {
                entry.credential_load.set(load);
                self.holders.insert(ByCredential(Arc::clone(entry)));
            }
            _ => {
                self.loose.insert(digest, (device, load));
            }
        }
    }

    fn put(&mut self, id: DeviceId, device: Device, touched: &mut HashSet<DeviceId>) {
        let Some(credential) = digest(&device.credential) else {
            return self.remove(id, touched);
        };
        let Device { tenant, customer, name, kind, labels, .. } = device;
        let like = Like { tenant, customer, kind: kind.into(), labels };
        if let Some(entry) = self.device(id) {
            let same_credential = entry.credential == credential;
            if same_credential && *entry.name == *name && *entry.like == like {
                return entry.load.set(self.load);
            }
            let same_place = (entry.like.tenant, entry.like.customer) == (tenant, customer);
            if self.is_loaded && !(same_place && same_credential) {
                touched.insert(id);
            }
        }
        self.take_out(id);
        let entry = Arc::new(Entry::new(id, credential, name.into(), self.shared(like), self.load));
        if let Some(group) = entry.group() {
            self.listings.get_mut().forget(&group);
            self.groups.entry(group).or_default().insert(Listed(Arc::clone(&entry)));
        }
        self.names.entry(tenant).or_default().replace(ByName(Arc::clone(&entry)));
        self.devices.insert(ById(entry));
        if let Some((_, load)) = self.loose.get(&credential).copied().filter(|(holder, _)| *holder == id) {
            self.loose.remove(&credential);
            self.hold(credential, id, load);
        }
    }

    fn put_app(&mut self, id: AppId, now: Option<App>) {
        if let Some((before, _)) = self.apps.remove(&id) {
            for digest in before.keys.values().filter_map(|key| digest(&key.hash)) {
                self.keys.remove(&digest);
            }
        }
        let Some(app) = now else { return };
        let digests = app.keys.iter().filter_map(|(key, record)| Some((digest(&record.hash)?, (id, *key))));
        self.keys.extend(digests);
        self.apps.insert(id, (Arc::new(app), self.load));
    }

    fn shared(&mut self, like: Like) -> Arc<Like> {
        if let Some(known) = self.likes.get(&like) {
            return Arc::clone(known);
        }
        if self.likes.len() >= self.max_likes {
            self.likes.retain(|like| Arc::strong_count(like) > 1);
            self.max_likes = self.likes.len() * 2 + MAX_UNUSED;
        }
        let like = Arc::new(like);
        self.likes.insert(Arc::clone(&like));
        like
    }

    fn remove(&mut self, id: DeviceId, touched: &mut HashSet<DeviceId>) {
        if self.take_out(id) && self.is_loaded {
            touched.insert(id);
        }
    }

    fn take_out(&mut self, id: DeviceId) -> bool {
        let Some(ById(entry)) = self.devices.take(&id) else {
            return false;
        };
        if self.holders.get(&entry.credential).is_some_and(|ByCredential(holder)| holder.id == id) {
            self.holders.remove(&entry.credential);
            self.loose.insert(entry.credential, (id, entry.credential_load.get()));
        }
        if let Some(names) = self.names.get_mut(&entry.like.tenant)
            // Another may have taken the name meanwhile.
            && names.get(&*entry.name).is_some_and(|ByName(named)| named.id == id)
        {
            names.remove(&*entry.name);
            if names.is_empty() {
                self.names.remove(&entry.like.tenant);
            }
        }
        if let Some(group) = entry.group() {
            self.listings.get_mut().forget(&group);
            if let Some(devices) = self.groups.get_mut(&group) {
                devices.remove(&Listed(entry));
                if devices.is_empty() {
                    self.groups.remove(&group);
                }
            }
        }
        true
    }

    /// The load is complete: what it did not name is gone.
    fn sweep(&mut self, touched: &mut HashSet<DeviceId>) {
        let load = self.load;
        self.tenants.retain(|_, seen| *seen == load);
        self.customers.retain(|_, seen| *seen == load);
        self.holders.retain(|ByCredential(entry)| entry.credential_load.get() == load);
        self.loose.retain(|_, (_, seen)| *seen == load);
        let is_old = |(id, (_, seen)): (&AppId, &(Arc<App>, Load))| (*seen != load).then_some(*id);
        let old: Vec<AppId> = self.apps.iter().filter_map(is_old).collect();
        old.into_iter().for_each(|id| self.put_app(id, None));
        let is_gone = |ById(entry): &ById| (entry.load.get() != load).then_some(entry.id);
        let gone: Vec<DeviceId> = self.devices.iter().filter_map(is_gone).collect();
        for id in gone {
            self.remove(id, touched);
        }
        // Of credentials that came before their devices.
        self.loose.shrink_to_fit();
        self.is_loaded = true;
    }

    fn standing(&self, device: DeviceId) -> Option<Standing> {
        self.device(device).map(|entry| entry.standing())
    }

    fn group_of(&self, device: DeviceId) -> Option<Group> {
        self.device(device)?.group()
    }
}

fn seen<K: Eq + std::hash::Hash, V>(map: &mut HashMap<K, V>, key: K, now: Option<V>) {
    match now {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}

fn digest(hash: &CredentialHash) -> Option<Digest> {
    let text = hash.as_str();
    let mut digest = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, place) in digest.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(text.get(place..place + 2)?, 16).ok()?;
    }
    Some(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listing::render;
    use bus::registry::{Customer, Tenant};
    use proptest::prelude::*;

    fn device_id(id: u128) -> DeviceId {
        DeviceId(Uuid::from_u128(id))
    }

    fn hash(token: u8) -> CredentialHash {
        CredentialHash::from_digest([token; 32])
    }

    fn device(tenant: u128, customer: Option<u128>, name: &str, token: u8) -> Device {
        Device {
            tenant: TenantId(Uuid::from_u128(tenant)),
            customer: customer.map(|customer| CustomerId(Uuid::from_u128(customer))),
            name: name.to_owned(),
            kind: "default".to_owned(),
            labels: Default::default(),
            credential: hash(token),
            weak_token: false,
        }
    }

    /// A directory after these changes, and what the last of them touched.
    fn after(changes: impl IntoIterator<Item = Change>) -> (Directory, HashSet<DeviceId>) {
        let directory = Directory::default();
        let mut touched = HashSet::new();
        for change in changes {
            touched.clear();
            directory.apply(change, &mut touched);
        }
        (directory, touched)
    }

    fn loaded(devices: impl IntoIterator<Item = (u128, Device)>) -> Vec<Change> {
        let mut changes = vec![Change::Loading];
        for (id, device) in devices {
            changes.push(Change::Credential(device.credential.clone(), Some(device_id(id))));
            changes.push(Change::Device(device_id(id), Some(device)));
        }
        changes.push(Change::Loaded);
        changes
    }

    #[test]
    fn a_credential_lets_in_only_the_device_that_both_keys_name() {
        let mut changes = loaded([(1, device(100, Some(10), "A1", 1))]);
        // Half an addition: the record of 2 names the credential that was made for 1.
        changes.push(Change::Device(device_id(2), Some(device(100, Some(10), "A2", 1))));
        // Half a rotation: a credential made for 1 that its record does not name yet.
        changes.push(Change::Credential(hash(9), Some(device_id(1))));
        // A left-over of a removed device.
        changes.push(Change::Credential(hash(8), Some(device_id(3))));
        let (directory, _) = after(changes);
        assert_eq!(directory.identify(&hash(1)).unwrap().device, device_id(1));
        assert_eq!(directory.identify(&hash(9)), None);
        assert_eq!(directory.identify(&hash(8)), None);
        assert_eq!(directory.identify(&hash(7)), None);
        assert_eq!(directory.identify(&CredentialHash("x".into())), None);
    }

    #[test]
    fn what_sessions_depend_on_touches_and_a_new_name_does_not() {
        let before = || loaded([(1, device(100, Some(10), "A1", 1))]);
        let cases = [
            ("the same", Some(device(100, Some(10), "A1", 1)), false),
            ("renamed", Some(device(100, Some(10), "A9", 1)), false),
            ("assigned", Some(device(100, Some(11), "A1", 1)), true),
            ("unassigned", Some(device(100, None, "A1", 1)), true),
            ("moved", Some(device(101, Some(10), "A1", 1)), true),
            ("rotated", Some(device(100, Some(10), "A1", 2)), true),
            ("renamed and rotated", Some(device(100, Some(10), "A9", 2)), true),
            ("removed", None, true),
        ];
        for (what, now, touches) in cases {
            let mut changes = before();
            changes.push(Change::Device(device_id(1), now.clone()));
            let (directory, touched) = after(changes);
            assert_eq!(touched.contains(&device_id(1)), touches, "{what}");
            let standing = directory.state(device_id(1)).now;
            assert_eq!(standing.map(|now| now.credential), now.map(|now| now.credential), "{what}");
        }
        assert_eq!(after(before()).1, HashSet::new(), "the first load tells nobody anything");
    }

    #[test]
    fn what_a_later_load_does_not_name_has_vanished() {
        let mut changes = loaded([
            (1, device(100, Some(10), "A1", 1)),
            (2, device(100, Some(10), "A2", 2)),
            (3, device(100, Some(10), "A3", 3)),
        ]);
        changes.push(Change::Tenant(TenantId(Uuid::from_u128(100)), Some(Tenant { name: "T".into() })));
        changes.extend(loaded([(1, device(100, Some(10), "A1", 1)), (3, device(100, Some(10), "A3", 4))]));
        let count = changes.len();
        let directory = Directory::default();
        let mut touched = HashSet::new();
        for (place, change) in changes.into_iter().enumerate() {
            if place + 1 == count {
                assert!(directory.identify(&hash(2)).is_some(), "known as long as the load goes on");
            }
            directory.apply(change, &mut touched);
        }
        assert_eq!(touched, HashSet::from([device_id(2), device_id(3)]));
        assert_eq!(directory.identify(&hash(2)), None);
        assert_eq!(directory.identify(&hash(3)), None);
        assert_eq!(directory.sizes(), Sizes { tenants: 0, customers: 0, devices: 2 });
    }

    #[test]
    fn a_list_is_the_others_by_name_then_id_and_can_be_continued() {
        let (directory, _) = after(loaded([
            (5, device(100, Some(10), "B", 1)),
            (4, device(100, Some(10), "B", 2)),
            (3, device(100, Some(10), "A", 3)),
            (2, device(100, Some(10), "C", 4)),
            (1, device(100, Some(11), "A", 5)),
            (6, device(100, None, "A", 6)),
            (7, device(101, Some(10), "A", 7)),
        ]));
        let ids = |caller, after: Option<u128>, limit| {
            let peers = directory.peers(device_id(caller), after.map(device_id), limit);
            peers.map(|peers| peers.iter().map(|peer| peer.id.0.as_u128()).collect::<Vec<_>>())
        };
        assert_eq!(ids(2, None, 10), Ok(vec![3, 4, 5]));
        assert_eq!(ids(4, None, 10), Ok(vec![3, 5, 2]));
        assert_eq!(ids(2, None, 2), Ok(vec![3, 4]));
        assert_eq!(ids(2, Some(4), 2), Ok(vec![5]));
        assert_eq!(ids(4, Some(4), 1), Ok(vec![5]), "behind oneself");
        assert_eq!(ids(3, Some(2), 2), Ok(vec![]));
        assert_eq!(ids(7, None, 2), Ok(vec![]));
        assert_eq!(ids(6, None, 2), Err(NoList::Unassigned));
        assert_eq!(ids(99, None, 2), Err(NoList::Unassigned));
        for stranger in [1, 6, 7, 99] {
            assert_eq!(ids(2, Some(stranger), 2), Err(NoList::UnknownAfter), "{stranger}");
        }
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let record = (0u128..2, proptest::option::of(0u128..2), "[a-c]", 0u8..4)
            .prop_map(|(tenant, customer, name, token)| device(tenant, customer, &name, token));
        prop_oneof![
            1 => Just(Change::Loading),
            1 => Just(Change::Loaded),
            6 => (0u128..5, proptest::option::weighted(0.7, record))
                .prop_map(|(id, now)| Change::Device(device_id(id), now)),
            3 => (0u8..4, proptest::option::weighted(0.7, 0u128..5))
                .prop_map(|(token, now)| Change::Credential(hash(token), now.map(device_id))),
            1 => any::<bool>().prop_map(|there| {
                let customer = Customer { tenant: TenantId(Uuid::nil()), name: "C".into() };
                Change::Customer(CustomerId(Uuid::nil()), there.then_some(customer))
            }),
        ]
    }

    proptest! {
        /// What is kept rendered is what is listed now, after every single change.
        #[test]
        fn a_kept_listing_is_never_stale(changes in proptest::collection::vec(any_change(), 0..40)) {
            let directory = Directory::default();
            for change in changes {
                directory.apply(change, &mut HashSet::new());
                for caller in (0..5).map(device_id) {
                    let listed = directory.peers(caller, None, 99);
                    let listed = listed.map(|it| render(it.iter().map(|peer| (&*peer.name, peer.id, None))));
                    let kept = directory.listing(caller, 99).map(|it| it.page(caller, None, 99).unwrap());
                    prop_assert_eq!(kept, listed);
                }
            }
        }

        /// A credential lets in whom its own record and the device's name, in whatever order they came.
        #[test]
        fn both_records_let_in_or_none(changes in proptest::collection::vec(any_change(), 0..60)) {
            let (directory, mut devices, mut credentials) = (Directory::default(), HashMap::new(), HashMap::new());
            for change in changes.into_iter().filter(|it| !matches!(it, Change::Loading | Change::Loaded)) {
                match &change {
                    Change::Device(id, now) => {
                        seen(&mut devices, *id, now.as_ref().map(|device| device.credential.clone()));
                    }
                    Change::Credential(hash, now) => seen(&mut credentials, hash.clone(), *now),
                    _ => {}
                }
                directory.apply(change, &mut HashSet::new());
                for token in (0..4).map(hash) {
                    let bearer = credentials.get(&token).filter(|device| devices.get(device) == Some(&token));
                    prop_assert_eq!(directory.identify(&token).map(|known| known.device), bearer.copied());
                }
            }
        }

        #[test]
        fn lists_and_records_never_disagree(changes in proptest::collection::vec(any_change(), 0..60)) {
            let (directory, _) = after(changes);
            let maps = directory.read();
            let listed: usize = maps.groups.values().map(BTreeSet::len).sum();
            let assigned = maps.devices.iter().filter(|ById(entry)| entry.group().is_some()).count();
            prop_assert_eq!(listed, assigned);
            let is_known = |group, Listed(entry): &Listed| {
                entry.group() == Some(group) && Arc::ptr_eq(maps.device(entry.id).unwrap(), entry)
            };
            let is_whole = |(group, devices): (&_, &BTreeSet<_>)| {
                !devices.is_empty() && devices.iter().all(|it| is_known(*group, it))
            };
            prop_assert!(maps.groups.iter().all(is_whole));
        }
    }
}
