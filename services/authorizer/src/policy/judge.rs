//! May this device do that to this one, by its tenant's own policies? Decisions are remembered by class, and the
//! devices of the tenant stand here in the order of a list, each with its class.
//!
//! Never stale: a judge holds one set for its life, and a device that changes is classed anew. With a shadow, classes
//! are those of both sets, and a decision is remembered with what the shadow would have said.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bus::registry::App;
use rpc::{AppId, DeviceId};

use super::facts::{Action, AppFacts, Context, Facts};
use super::footprint::{ContextClass, DeviceClass, Footprint};
use super::set::PolicySet;
use crate::listing::{Listing, Listings};

/// Decisions that a tenant's judge remembers; when there are more, it begins anew.
pub const MAX_REMEMBERED: usize = 100_000;
/// Classes that a judge keeps apart before it forgets those that no device has any more.
const MAX_UNUSED_CLASSES: usize = 10_000;
/// Of the lists that a judge keeps rendered.
const MAX_LISTING_BYTES: usize = 4 << 20;
/// Differences of a shadow that are kept to be told, until they are taken.
const MAX_SAMPLES: usize = 16;

/// By what a tenant's calls are judged.
#[derive(Debug, Clone)]
pub enum Live {
    /// Its own policies.
    Set(Arc<PolicySet>),
    /// The rule in Rust: there is a shadow alone, to be compared with it.
    BuiltIn,
    /// There is a set, and it cannot be read. Then nothing is allowed.
    Unreadable,
}

/// A tenant's policies, applied to its devices.
#[derive(Debug)]
pub struct Judge {
    live: Live,
    shadow: Option<Arc<PolicySet>>,
    footprint: Footprint,
    version: u64,
    utc_offset_min: i16,
    book: Mutex<Book>,
}

/// How often a judge had to ask the policies themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Asked {
    /// Answered from memory.
    pub remembered: u64,
    /// Evaluated.
    pub evaluated: u64,
    /// Decisions that the shadow would have turned into permission.
    pub shadow_allows: u64,
    /// Decisions that it would have turned into denial.
    pub shadow_denies: u64,
}

/// A decision that a shadow would make otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// What was asked.
    pub action: Action,
    /// By whom.
    pub caller: DeviceId,
    /// Of whom.
    pub target: DeviceId,
    /// What the shadow says.
    pub shadow_allows: bool,
}

/// What came of a question, from the live set and from its shadow.
#[derive(Debug, Clone, Copy)]
struct Judged {
    is_allowed: bool,
    shadow_allows: Option<bool>,
}

type ClassId = u32;

#[derive(Debug, Default)]
struct Book {
    devices: HashMap<DeviceId, (Facts, ClassId)>,
    /// In the order of a list.
    by_name: BTreeMap<(Arc<str>, DeviceId), ClassId>,
    classes: HashMap<DeviceClass, ClassId>,
    next_class: ClassId,
    verdicts: HashMap<Key, Judged>,
    /// What is remembered for each application, as long as that does not change.
    apps: HashMap<AppId, AppBook>,
    app_verdicts: usize,
    asked: Asked,
    samples: Vec<Sample>,
    /// What was listed for callers of a class since the devices changed last.
    listings: Listings<(ClassId, ContextClass), MAX_LISTING_BYTES>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    action: Action,
    caller: ClassId,
    target: ClassId,
    /// Of one class are devices that differ, and policies can tell that they do.
    is_self: bool,
    context: ContextClass,
}

#[derive(Debug)]
struct AppBook {
    app: Arc<App>,
    facts: AppFacts,
    verdicts: HashMap<AppKey, bool>,
}

/// Action, class of the target, context, and the application's method where methods count.
type AppKey = (Action, ClassId, ContextClass, Option<Box<str>>);

impl Judge {
    /// Of a version of a tenant's set; none when that cannot be read.
    pub fn new(
        set: Option<Arc<PolicySet>>,
        version: u64,
        utc_offset_min: i16,
        devices: impl IntoIterator<Item = Facts>,
    ) -> Self {
        let live = set.map_or(Live::Unreadable, Live::Set);
        Judge::with_shadow(live, None, version, utc_offset_min, devices)
    }

    /// The same, with a set that is judged beside it.
    pub fn with_shadow(
        live: Live,
        shadow: Option<Arc<PolicySet>>,
        version: u64,
        utc_offset_min: i16,
        devices: impl IntoIterator<Item = Facts>,
    ) -> Self {
        let mut footprint = match &live {
            Live::Set(set) => set.footprint().clone(),
            Live::BuiltIn => Footprint::of_customers(),
            Live::Unreadable => Footprint::default(),
        };
        if let Some(shadow) = &shadow {
            footprint.join(shadow.footprint());
        }
        let judge = Judge { live, shadow, footprint, version, utc_offset_min, book: Mutex::default() };
        devices.into_iter().for_each(|facts| judge.put(facts));
        judge
    }

    /// The version of the set that it judges by.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// By what it judges.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// The set that it judges by, if there is one that can be read.
    pub fn set(&self) -> Option<&Arc<PolicySet>> {
        match &self.live {
            Live::Set(set) => Some(set),
            Live::BuiltIn | Live::Unreadable => None,
        }
    }

    /// What the tenant's hours are counted from, in minutes east of UTC.
    pub fn utc_offset_min(&self) -> i16 {
        self.utc_offset_min
    }

    /// A device is there, or has changed.
    pub fn put(&self, facts: Facts) {
        let class = self.footprint.device_class(&facts);
        let mut book = self.book();
        book.listings.clear();
        book.remove(facts.id);
        let class = book.class(class);
        book.by_name.insert((Arc::clone(&facts.name), facts.id), class);
        book.devices.insert(facts.id, (facts, class));
    }

    /// A device is gone.
    pub fn remove(&self, device: DeviceId) {
        self.book().remove(device);
    }

    /// Whether the caller may do that to the target; devices that it does not know may nothing.
    pub fn allows(&self, caller: DeviceId, action: Action, target: DeviceId, context: &Context) -> bool {
        let class = self.footprint.context_class(context);
        self.book().allows(self, caller, action, target, context, class)
    }

    /// Whether no policy forbids that to an application in whose scope the target is; a device that it does not know is
    /// forbidden. A shadow is not asked.
    pub fn allows_app(
        &self,
        id: AppId,
        app: &Arc<App>,
        action: Action,
        target: DeviceId,
        context: &Context,
    ) -> bool {
        let set = match &self.live {
            Live::Set(set) => set,
            Live::BuiltIn => return true,
            Live::Unreadable => return false,
        };
        let method = self.footprint.reads_method().then(|| context.method.as_ref().into());
        let context_class = self.footprint.context_class(context);
        let mut book = self.book();
        let Book { devices, apps, app_verdicts, asked, .. } = &mut *book;
        let Some((target, class)) = devices.get(&target) else { return false };
        if *app_verdicts >= MAX_REMEMBERED {
            apps.clear();
            *app_verdicts = 0;
        }
        let own = || AppBook { app: Arc::clone(app), facts: AppFacts::of(id, app), verdicts: HashMap::new() };
        let known = apps.entry(id).or_insert_with(own);
        if !Arc::ptr_eq(&known.app, app) {
            *known = own();
        }
        let AppBook { facts, verdicts, .. } = known;
        match verdicts.entry((action, *class, context_class, method)) {
            Entry::Occupied(remembered) => {
                asked.remembered += 1;
                *remembered.get()
            }
            Entry::Vacant(place) => {
                asked.evaluated += 1;
                *app_verdicts += 1;
                *place.insert(set.evaluate(&*facts, action, target, context).is_allowed)
            }
        }
    }

    /// Whom the caller may list, itself left out, by name and then id: at most `limit`, those behind `after` if given.
    /// None when `after` is none that the caller may list.
    pub fn list(
        &self,
        caller: DeviceId,
        after: Option<DeviceId>,
        limit: usize,
        context: &Context,
    ) -> Option<Vec<(Arc<str>, DeviceId)>> {
        let context_class = self.footprint.context_class(context);
        let mut book = self.book();
        let start = match after {
            None => Bound::Unbounded,
            Some(after)
                if after == caller
                    || book.allows(self, caller, Action::List, after, context, context_class) =>
            {
                let (facts, _) = book.devices.get(&after)?;
                Bound::Excluded((Arc::clone(&facts.name), after))
            }
            Some(_) => return None,
        };
        Some(book.list(self, caller, start, limit, false, context))
    }

    /// The beginning of the list for callers of the same class, who may be in it: `most` entries.
    pub fn listing(&self, caller: DeviceId, most: usize, context: &Context) -> Arc<Listing> {
        let context_class = self.footprint.context_class(context);
        let mut book = self.book();
        let Some(class) = book.devices.get(&caller).map(|(_, class)| *class) else { return Arc::default() };
        let key = (class, context_class);
        if let Some(kept) = book.listings.get(&key) {
            return kept;
        }
        // One more, which says whether it is the whole list.
        let listed = book.list(self, caller, Bound::Unbounded, most.saturating_add(1), true, context);
        let listing = Arc::new(Listing::of(listed.into_iter(), most));
        book.listings.keep(key, &listing);
        listing
    }

    /// How it has been doing since it was asked last.
    pub fn take_asked(&self) -> Asked {
        std::mem::take(&mut self.book().asked)
    }

    /// Some decisions since then that the shadow would have made otherwise.
    pub fn take_samples(&self) -> Vec<Sample> {
        std::mem::take(&mut self.book().samples)
    }

    fn evaluate(&self, key: &Key, caller: &Facts, target: &Facts, context: &Context) -> Judged {
        let is_allowed = match &self.live {
            Live::Set(set) => set.evaluate(caller, key.action, target, context).is_allowed,
            Live::BuiltIn => caller.customer.is_some() && caller.customer == target.customer,
            Live::Unreadable => false,
        };
        let beside = |set: &Arc<PolicySet>| set.evaluate(caller, key.action, target, context).is_allowed;
        Judged { is_allowed, shadow_allows: self.shadow.as_ref().map(beside) }
    }

    // A panic while the lock was held could only have been in a map's own code: what stands there is still whole.
    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Book {
    fn allows(
        &mut self,
        judge: &Judge,
        caller: DeviceId,
        action: Action,
        target: DeviceId,
        context: &Context,
        class: ContextClass,
    ) -> bool {
        let (Some((caller, caller_class)), Some((target, target_class))) =
            (self.devices.get(&caller), self.devices.get(&target))
        else {
            return false;
        };
        let is_self = caller.id == target.id;
        let key = Key { action, caller: *caller_class, target: *target_class, is_self, context: class };
        let Book { verdicts, asked, samples, .. } = self;
        Memory { verdicts, asked, samples }.judged(judge, key, caller, target, context)
    }

    fn class(&mut self, class: DeviceClass) -> ClassId {
        if let Some(id) = self.classes.get(&class) {
            return *id;
        }
        // Ids are never used twice, so that no remembered decision means another class than it was made for.
        if self.next_class == ClassId::MAX || self.classes.len() > 2 * self.devices.len() + MAX_UNUSED_CLASSES
        {
            self.forget();
        }
        let id = self.next_class;
        self.next_class = self.next_class.saturating_add(1);
        self.classes.insert(class, id);
        id
    }

    /// Forgets decisions, and the classes that no device has.
    fn forget(&mut self) {
        self.verdicts.clear();
        self.apps.clear();
        let old = std::mem::take(&mut self.classes);
        let mut used: HashMap<ClassId, ClassId> = HashMap::new();
        self.next_class = 0;
        for class in self.by_name.values_mut() {
            let next = &mut self.next_class;
            *class = *used.entry(*class).or_insert_with(|| {
                *next += 1;
                *next - 1
            });
        }
        let renumber = |class: &mut ClassId| *class = used.get(class).copied().unwrap_or(*class);
        self.devices.values_mut().for_each(|(_, class)| renumber(class));
        self.classes = old.into_iter().filter_map(|(class, id)| Some((class, *used.get(&id)?))).collect();
    }

    /// Whom the caller may list behind `start`: at most `limit`. `for_class`: and himself, if others of his class may.
    fn list(
        &mut self,
        judge: &Judge,
        caller: DeviceId,
        start: Bound<(Arc<str>, DeviceId)>,
        limit: usize,
        for_class: bool,
        context: &Context,
    ) -> Vec<(Arc<str>, DeviceId)> {
        let context_class = judge.footprint.context_class(context);
        // One decision for each class that is met, in the order in which they are met.
        let mut known: Vec<Option<bool>> = vec![None; self.next_class as usize];
        let mut listed = Vec::new();
        let Book { devices, by_name, verdicts, asked, samples, .. } = self;
        let mut memory = Memory { verdicts, asked, samples };
        let Some((caller_facts, caller_class)) = devices.get(&caller) else { return listed };
        for ((name, target), class) in by_name.range((start, Bound::Unbounded)) {
            if listed.len() >= limit {
                break;
            }
            // About himself is decided otherwise; another of his class stands for him.
            let another = |((_, id), of): (&(Arc<str>, DeviceId), &ClassId)| {
                (of == class && *id != caller).then_some(*id)
            };
            let witness = match *target == caller {
                false => Some(*target),
                true if for_class => by_name.iter().find_map(another),
                true => None,
            };
            let Some(witness) = witness else { continue };
            let is_allowed = match known.get(*class as usize) {
                Some(Some(is_allowed)) => *is_allowed,
                Some(None) | None => {
                    let key = Key {
                        action: Action::List,
                        caller: *caller_class,
                        target: *class,
                        is_self: false,
                        context: context_class,
                    };
                    let Some((facts, _)) = devices.get(&witness) else { continue };
                    let is_allowed = memory.judged(judge, key, caller_facts, facts, context);
                    if let Some(place) = known.get_mut(*class as usize) {
                        *place = Some(is_allowed);
                    }
                    is_allowed
                }
            };
            if is_allowed {
                listed.push((Arc::clone(name), *target));
            }
        }
        listed
    }

    fn remove(&mut self, device: DeviceId) {
        self.listings.clear();
        if let Some((facts, _)) = self.devices.remove(&device) {
            self.by_name.remove(&(facts.name, device));
        }
    }
}

/// What a book remembers of decisions.
struct Memory<'a> {
    verdicts: &'a mut HashMap<Key, Judged>,
    asked: &'a mut Asked,
    samples: &'a mut Vec<Sample>,
}

impl Memory<'_> {
    fn judged(&mut self, judge: &Judge, key: Key, caller: &Facts, target: &Facts, context: &Context) -> bool {
        let judged = match self.verdicts.get(&key) {
            Some(judged) => {
                self.asked.remembered += 1;
                *judged
            }
            None => {
                self.asked.evaluated += 1;
                let judged = judge.evaluate(&key, caller, target, context);
                if self.verdicts.len() >= MAX_REMEMBERED {
                    self.verdicts.clear();
                }
                self.verdicts.insert(key, judged);
                judged
            }
        };
        if let Some(shadow_allows) = judged.shadow_allows.filter(|shadow| *shadow != judged.is_allowed) {
            let count = match shadow_allows {
                true => &mut self.asked.shadow_allows,
                false => &mut self.asked.shadow_denies,
            };
            *count += 1;
            if self.samples.len() < MAX_SAMPLES {
                let (action, caller, target) = (key.action, caller.id, target.id);
                self.samples.push(Sample { action, caller, target, shadow_allows });
            }
        }
        judged.is_allowed
    }
}
