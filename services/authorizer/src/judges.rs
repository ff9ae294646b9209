//! Whose policies hold? A judge for each tenant that has some, and the task that follows their sets.
//!
//! A set that cannot be read leaves the last good one in force; without one, the tenant's devices may nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use boot::Health;
use bus::Bus;
use bus::policies::{External, Policies, PolicyChange, StoredSet};
use bus::registry::{App, Change};
use rpc::{AppCaller, AppId, DeviceId, TenantId};
use tokio::sync::watch::Sender;
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::keep::Kept;
use crate::meters::PolicyMeters;
use crate::policy::{
    Action, Context, Decision, Judge, Live, PolicySet, Refusal, Rules, Standing, decide, meet,
};

/// The judges of all tenants that have policies.
#[derive(Default)]
pub struct Judges {
    /// How many there are: without any, nobody looks further.
    count: AtomicUsize,
    by_tenant: RwLock<HashMap<TenantId, Arc<Judge>>>,
    /// Held while the directory and the judges change, so that a new judge misses no device; never while one is made.
    changing: Mutex<Sets>,
    /// Who is asked besides.
    externals: RwLock<HashMap<TenantId, Arc<External>>>,
}

/// What judges are made of, as far as it is known.
#[derive(Default)]
struct Sets {
    live: HashMap<TenantId, InForce>,
    shadows: HashMap<TenantId, Arc<PolicySet>>,
    /// One more with every change of these, and with every load of the directory.
    edition: u64,
    /// For each judge that is being made, by a number: the devices that have changed meanwhile.
    making: HashMap<u64, Vec<DeviceId>>,
    last_making: u64,
}

#[derive(Clone)]
struct InForce {
    /// None: it cannot be read.
    set: Option<Arc<PolicySet>>,
    version: u64,
    utc_offset_min: i16,
}

impl Judges {
    /// The judge of a tenant that has policies, or a shadow alone: then the built-in rule decides.
    pub fn of(&self, tenant: TenantId) -> Option<Arc<Judge>> {
        if self.is_empty() {
            return None;
        }
        self.by_tenant.read().unwrap_or_else(PoisonError::into_inner).get(&tenant).cloned()
    }

    /// Whether no tenant has policies.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::Acquire) == 0
    }

    /// The version of the policies that a tenant's devices are judged by; 0: the built-in rule.
    pub(crate) fn version(&self, tenant: Option<TenantId>) -> u64 {
        tenant.and_then(|tenant| self.of(tenant)).map_or(0, |judge| judge.version())
    }

    /// The external decision point of a tenant that has policies.
    pub(crate) fn external(&self, tenant: TenantId) -> Option<Arc<External>> {
        if self.is_empty() {
            return None;
        }
        self.externals.read().unwrap_or_else(PoisonError::into_inner).get(&tenant).cloned()
    }

    fn set_external(&self, tenant: TenantId, external: Option<Arc<External>>) {
        let mut externals = self.externals.write().unwrap_or_else(PoisonError::into_inner);
        match external {
            Some(external) => externals.insert(tenant, external),
            None => externals.remove(&tenant),
        };
    }

    /// Decides over a call: by the tenant's policies where it has some, else by the built-in rule. `context` is handed
    /// the tenant's offset from UTC in minutes.
    pub fn decide(
        &self,
        caller: Option<&Standing>,
        target: Option<&Standing>,
        rules: Rules,
        context: impl FnOnce(i16) -> Context,
    ) -> Decision {
        let Some(judge) = caller.and_then(|caller| self.of(caller.tenant)) else {
            return decide(caller, target, rules);
        };
        if matches!(judge.live(), Live::BuiltIn) {
            if let Ok((caller, target)) = meet(caller, target) {
                let context = context(judge.utc_offset_min());
                judge.allows(caller.device, Action::Call, target.device, &context);
            }
            return decide(caller, target, rules);
        }
        let (caller, target) = match meet(caller, target) {
            Ok(met) => met,
            Err(refusal) => return Decision::Refuse(refusal),
        };
        let (caller, target) = (caller.device, target.device);
        let context = context(judge.utc_offset_min());
        if judge.allows(caller, Action::Call, target, &context) {
            return Decision::Allow;
        }
        let list = context.as_list();
        // Whom a device may list it knows; concealing that one would only hide the reason.
        if rules.conceal_foreign_devices
            && caller != target
            && !judge.allows(caller, Action::List, target, &list)
        {
            return Decision::Refuse(Refusal::Concealed);
        }
        Decision::Refuse(Refusal::NotAllowed)
    }

    /// Decides over an application's call: by its scope, and within that by what the tenant's policies forbid. What it
    /// may not see is not there.
    pub fn decide_app(
        &self,
        directory: &Directory,
        by: &AppCaller,
        target: DeviceId,
        now_s: u64,
        context: impl FnOnce(i16) -> Context,
    ) -> Decision {
        let decision = directory.decide_app(by, target, now_s);
        if decision != Decision::Allow {
            return decision;
        }
        let Some(app) = directory.app(by.app) else { return Decision::Refuse(Refusal::UnknownCaller) };
        let Some(judge) = self.of(app.tenant) else { return decision };
        let context = context(judge.utc_offset_min());
        if judge.allows_app(by.app, &app, Action::Call, target, &context) {
            return decision;
        }
        Decision::Refuse(match judge.allows_app(by.app, &app, Action::List, target, &context.as_list()) {
            true => Refusal::NotAllowed,
            false => Refusal::Concealed,
        })
    }

    /// Whether an application may see a device that is in its scope, as far as policies go.
    pub(crate) fn may_see(&self, id: AppId, app: &Arc<App>, target: DeviceId, now_s: u64) -> bool {
        self.of(app.tenant).is_none_or(|judge| {
            let context = Context::of_list(now_s, judge.utc_offset_min());
            judge.allows_app(id, app, Action::List, target, &context)
        })
    }

    /// Takes over a change of the registry, here and in the directory.
    pub(crate) fn apply(&self, directory: &Directory, change: Change, touched: &mut HashSet<DeviceId>) {
        let mut sets = self.sets();
        let is_loaded = change == Change::Loaded;
        let device = match &change {
            Change::Device(id, _) => Some(*id),
            _ => None,
        };
        let before = device.and_then(|id| directory.tenant_of(id));
        directory.apply(change, touched);
        if is_loaded {
            sets.edition += 1;
            drop(sets);
            return self.read_all().iter().for_each(|(tenant, _)| self.make(*tenant, directory));
        }
        let Some(id) = device else { return };
        sets.making.values_mut().for_each(|changed| changed.push(id));
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        if let Some(judge) = before.and_then(|tenant| self.of(tenant)) {
            judge.remove(id);
        }
        if let Some((tenant, facts)) = directory.facts(id)
            && let Some(judge) = self.of(tenant)
        {
            judge.put(facts);
        }
    }

    /// A tenant's set is this one from now on; `None`: it has one, and that cannot be read.
    pub fn set(
        &self,
        directory: &Directory,
        tenant: TenantId,
        set: Option<Arc<PolicySet>>,
        version: u64,
        utc_offset_min: i16,
    ) {
        self.change(directory, tenant, |sets| {
            sets.live.insert(tenant, InForce { set, version, utc_offset_min });
        });
    }

    /// This is judged beside a tenant's set from now on; `None`: nothing is.
    pub fn set_shadow(&self, directory: &Directory, tenant: TenantId, shadow: Option<Arc<PolicySet>>) {
        self.change(directory, tenant, |sets| {
            match shadow {
                Some(shadow) => sets.shadows.insert(tenant, shadow),
                None => sets.shadows.remove(&tenant),
            };
        });
    }

    /// A tenant has no policies any more.
    pub fn remove(&self, directory: &Directory, tenant: TenantId) {
        self.change(directory, tenant, |sets| {
            sets.live.remove(&tenant);
        });
        self.set_external(tenant, None);
    }

    fn change(&self, directory: &Directory, tenant: TenantId, change: impl FnOnce(&mut Sets)) {
        let mut sets = self.sets();
        change(&mut sets);
        sets.edition += 1;
        drop(sets);
        self.make(tenant, directory);
    }

    /// Makes a tenant's judge of what is known. A tenant may have a million devices: nobody waits for that but the
    /// judge before, which decides until then.
    fn make(&self, tenant: TenantId, directory: &Directory) {
        loop {
            let mut sets = self.sets();
            sets.last_making += 1;
            let (edition, number) = (sets.edition, sets.last_making);
            sets.making.insert(number, Vec::new());
            let shadow = sets.shadows.get(&tenant).cloned();
            let live = match sets.live.get(&tenant) {
                None => Live::BuiltIn,
                Some(InForce { set: None, .. }) => Live::Unreadable,
                Some(InForce { set: Some(set), .. }) => Live::Set(Arc::clone(set)),
            };
            let (version, offset) =
                sets.live.get(&tenant).map_or((0, 0), |it| (it.version, it.utc_offset_min));
            drop(sets);
            let judge = match (&live, &shadow) {
                (Live::BuiltIn, None) => None,
                _ => Some(Judge::with_shadow(live, shadow, version, offset, directory.facts_of(tenant))),
            };
            let mut sets = self.sets();
            let changed = sets.making.remove(&number).unwrap_or_default();
            if sets.edition != edition {
                continue;
            }
            for id in changed {
                let Some(judge) = &judge else { break };
                match directory.facts(id).filter(|(of, _)| *of == tenant) {
                    Some((_, facts)) => judge.put(facts),
                    None => judge.remove(id),
                }
            }
            let mut judges = self.by_tenant.write().unwrap_or_else(PoisonError::into_inner);
            match judge {
                Some(judge) => judges.insert(tenant, Arc::new(judge)),
                None => judges.remove(&tenant),
            };
            return self.count.store(judges.len(), Ordering::Release);
        }
    }

    fn sets(&self) -> MutexGuard<'_, Sets> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many tenants are judged by their own policies.
    fn live_sets(&self) -> usize {
        self.sets().live.len()
    }

    fn read_all(&self) -> Vec<(TenantId, Arc<Judge>)> {
        let judges = self.by_tenant.read().unwrap_or_else(PoisonError::into_inner);
        judges.iter().map(|(tenant, judge)| (*tenant, Arc::clone(judge))).collect()
    }

    /// What a tenant has stored holds from now on. Returns what is wrong with it, if anything: then the last good set
    /// stays, or nothing is allowed. May take seconds: not for a loop that serves.
    fn take(
        &self,
        directory: &Directory,
        tenant: TenantId,
        stored: Option<Box<StoredSet>>,
    ) -> Option<String> {
        let (version, faults) = match stored {
            None => (0, "its record cannot be read".to_owned()),
            Some(stored) if stored.texts.is_empty() => {
                self.remove(directory, tenant);
                return None;
            }
            Some(stored) => {
                let StoredSet { version, utc_offset_min, texts, external, .. } = *stored;
                let texts: Vec<_> = texts.into_iter().collect();
                match PolicySet::read(&texts) {
                    Ok(set) => {
                        // With one foot in each set, the stricter holds: a point comes before its set, and goes
                        // after the one that had it.
                        if let Some(external) = &external {
                            self.set_external(tenant, Some(Arc::new(external.clone())));
                        }
                        self.set(directory, tenant, Some(Arc::new(set)), version, utc_offset_min);
                        if external.is_none() {
                            self.set_external(tenant, None);
                        }
                        tracing::info!(%tenant, version, "policies are in force");
                        return None;
                    }
                    Err(faults) => (version, faults.first().map(ToString::to_string).unwrap_or_default()),
                }
            }
        };
        let in_force = self.of(tenant).filter(|judge| judge.set().is_some()).map(|judge| judge.version());
        tracing::error!(%tenant, version, in_force, faults, "policies cannot be read: the last good ones stay");
        if in_force.is_none() {
            self.set(directory, tenant, None, version, 0);
        }
        let in_force =
            in_force.map_or("nothing is allowed".to_owned(), |last| format!("version {last} stays"));
        Some(format!("tenant {tenant}, version {version}: {in_force}; {faults}"))
    }
}

/// A shadow, if it can be read: `put` has read it before, and it decides nothing.
fn read_shadow(tenant: TenantId, stored: Option<Box<StoredSet>>) -> Option<Arc<PolicySet>> {
    let texts: Vec<_> = stored?.texts.into_iter().collect();
    match PolicySet::read(&texts) {
        Ok(set) => Some(Arc::new(set)),
        Err(faults) => {
            let fault = faults.first().map(ToString::to_string).unwrap_or_default();
            tracing::warn!(%tenant, fault, "a shadow cannot be read: nothing is compared with it");
            None
        }
    }
}

/// Does something to the judges where it holds no call up.
async fn apart<T: Send + 'static>(
    kept: &Arc<Kept>,
    change: impl FnOnce(&Judges, &Directory) -> T + Send + 'static,
) -> Result<T, tokio::task::JoinError> {
    let kept = Arc::clone(kept);
    tokio::task::spawn_blocking(move || change(&kept.judges, &kept.directory)).await
}

/// Follows the sets of all tenants until `stop`; says in `is_loaded` when the first load is complete.
pub(crate) async fn follow(
    bus: Bus,
    kept: Arc<Kept>,
    health: Health,
    is_loaded: Sender<bool>,
    stop: CancellationToken,
) {
    let judges = &kept.judges;
    let part = health.part("policies");
    part.not_ready("loading");
    let meters = PolicyMeters::new();
    let mut watch = Policies::watch(&bus);
    let (mut seen, mut seen_shadows) = (HashSet::new(), HashSet::new());
    let mut unread: BTreeMap<TenantId, String> = BTreeMap::new();
    let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        let change = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            change = watch.next() => change,
            _ = ticks.tick() => {
                for (tenant, judge) in judges.read_all() {
                    tell(tenant, &judge, &meters);
                }
                continue;
            }
        };
        let done = match change {
            PolicyChange::Loading => {
                seen.clear();
                seen_shadows.clear();
                Ok(())
            }
            PolicyChange::Shadow(tenant, stored) => {
                seen_shadows.insert(tenant);
                let take = move |judges: &Judges, directory: &Directory| {
                    judges.set_shadow(directory, tenant, read_shadow(tenant, stored));
                };
                apart(&kept, take).await
            }
            PolicyChange::Set(tenant, stored) => {
                seen.insert(tenant);
                let take =
                    move |judges: &Judges, directory: &Directory| judges.take(directory, tenant, stored);
                apart(&kept, take).await.map(|fault| {
                    match fault {
                        None => unread.remove(&tenant),
                        Some(why) => unread.insert(tenant, why),
                    };
                })
            }
            PolicyChange::Removed(tenant) => {
                unread.remove(&tenant);
                apart(&kept, move |judges, directory| judges.remove(directory, tenant)).await
            }
            PolicyChange::Loaded => {
                let all = judges.read_all().into_iter().map(|(tenant, _)| tenant);
                let (unseen, unshadowed): (Vec<_>, Vec<_>) = all
                    .map(|it| {
                        ((!seen.contains(&it)).then_some(it), (!seen_shadows.contains(&it)).then_some(it))
                    })
                    .unzip();
                unread.retain(|tenant, _| seen.contains(tenant));
                let forget = move |judges: &Judges, directory: &Directory| {
                    unseen.into_iter().flatten().for_each(|tenant| judges.remove(directory, tenant));
                    unshadowed.into_iter().flatten().for_each(|it| judges.set_shadow(directory, it, None));
                };
                let forgotten = apart(&kept, forget).await;
                is_loaded.send_replace(true);
                forgotten
            }
        };
        if let Err(error) = done {
            tracing::error!(%error, "a change of policies was not taken");
        }
        meters.sets.set(judges.live_sets() as f64);
        meters.unread.set(unread.len() as f64);
        match unread.values().next() {
            Some(why) => part.not_ready(why),
            None if *is_loaded.borrow() => part.ready(),
            None => {}
        }
    }
}

/// Counts what a judge has done since the last time, and names some of what its shadow would have done otherwise.
fn tell(tenant: TenantId, judge: &Judge, meters: &PolicyMeters) {
    let asked = judge.take_asked();
    meters.decided(judge.version(), asked.remembered, asked.evaluated);
    meters.shadow_allows.increment(asked.shadow_allows);
    meters.shadow_denies.increment(asked.shadow_denies);
    for sample in judge.take_samples() {
        tracing::info!(%tenant, caller = %sample.caller, target = %sample.target, action = sample.action.as_str(),
            version = judge.version(), shadow_allows = sample.shadow_allows, "a shadow would decide otherwise");
    }
}
