//! Whose policies hold? A judge for each tenant that has some, and the task that follows their sets.
//!
//! A set that cannot be read leaves the last good one in force; without one, the tenant's devices may nothing.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use boot::Health;
use bus::Bus;
use bus::policies::{Policies, PolicyChange, StoredSet};
use bus::registry::Change;
use rpc::{DeviceId, TenantId};
use tokio::sync::watch::Sender;
use tokio_util::sync::CancellationToken;

use crate::directory::Directory;
use crate::keep::Kept;
use crate::meters::PolicyMeters;
use crate::policy::{Action, Context, Decision, Judge, PolicySet, Refusal, Rules, Standing, decide, meet};

/// The judges of all tenants that have policies.
#[derive(Default)]
pub struct Judges {
    /// How many there are: without any, nobody looks further.
    count: AtomicUsize,
    by_tenant: RwLock<HashMap<TenantId, Arc<Judge>>>,
    /// Held while the directory and the judges change, so that a new judge misses no device.
    changing: Mutex<()>,
}

impl Judges {
    /// The judge of a tenant that has policies.
    pub fn of(&self, tenant: TenantId) -> Option<Arc<Judge>> {
        if self.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        self.by_tenant.read().unwrap_or_else(PoisonError::into_inner).get(&tenant).cloned()
    }

    /// The version of the policies that a tenant's devices are judged by; 0: the built-in rule.
    pub(crate) fn version(&self, tenant: Option<TenantId>) -> u64 {
        tenant.and_then(|tenant| self.of(tenant)).map_or(0, |judge| judge.version())
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
        let (caller, target) = match meet(caller, target) {
            Ok(met) => met,
            Err(refusal) => return Decision::Refuse(refusal),
        };
        let (caller, target) = (caller.device, target.device);
        let context = context(judge.utc_offset_min());
        if judge.allows(caller, Action::Call, target, &context) {
            return Decision::Allow;
        }
        let list = Context { method: "getDevices", oneway: false, timeout_ms: 0, size_bytes: 0, ..context };
        // Whom a device may list it knows; concealing that one would only hide the reason.
        if rules.conceal_foreign_devices
            && caller != target
            && !judge.allows(caller, Action::List, target, &list)
        {
            return Decision::Refuse(Refusal::Concealed);
        }
        Decision::Refuse(Refusal::NotAllowed)
    }

    /// Takes over a change of the registry, here and in the directory.
    pub(crate) fn apply(&self, directory: &Directory, change: Change, touched: &mut HashSet<DeviceId>) {
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let is_loaded = change == Change::Loaded;
        let device = match &change {
            Change::Device(id, _) => Some(*id),
            _ => None,
        };
        let before = device.and_then(|id| directory.tenant_of(id));
        directory.apply(change, touched);
        if self.count.load(Ordering::Acquire) == 0 {
            return;
        }
        if is_loaded {
            let tenants: Vec<_> = self.read_all();
            for (tenant, judge) in tenants {
                self.install(
                    tenant,
                    directory,
                    &judge.set().cloned(),
                    judge.version(),
                    judge.utc_offset_min(),
                );
            }
        }
        let Some(id) = device else { return };
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
        let _changing = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        self.install(tenant, directory, &set, version, utc_offset_min);
    }

    fn install(
        &self,
        tenant: TenantId,
        directory: &Directory,
        set: &Option<Arc<PolicySet>>,
        version: u64,
        utc_offset_min: i16,
    ) {
        let judge = Judge::new(set.clone(), version, utc_offset_min, directory.facts_of(tenant));
        let mut judges = self.by_tenant.write().unwrap_or_else(PoisonError::into_inner);
        judges.insert(tenant, Arc::new(judge));
        self.count.store(judges.len(), Ordering::Release);
    }

    /// A tenant has no policies any more.
    pub fn remove(&self, tenant: TenantId) {
        let mut judges = self.by_tenant.write().unwrap_or_else(PoisonError::into_inner);
        judges.remove(&tenant);
        self.count.store(judges.len(), Ordering::Release);
    }

    fn read_all(&self) -> Vec<(TenantId, Arc<Judge>)> {
        let judges = self.by_tenant.read().unwrap_or_else(PoisonError::into_inner);
        judges.iter().map(|(tenant, judge)| (*tenant, Arc::clone(judge))).collect()
    }

    /// What a tenant has stored holds from now on. Returns what is wrong with it, if anything: then the last good set
    /// stays, or nothing is allowed.
    async fn take(
        &self,
        directory: &Directory,
        tenant: TenantId,
        stored: Option<Box<StoredSet>>,
    ) -> Option<String> {
        let (version, faults) = match stored {
            None => (0, "its record cannot be read".to_owned()),
            Some(stored) if stored.texts.is_empty() => {
                self.remove(tenant);
                return None;
            }
            Some(stored) => {
                let StoredSet { version, utc_offset_min, texts, .. } = *stored;
                let texts: Vec<_> = texts.into_iter().collect();
                let read = tokio::task::spawn_blocking(move || PolicySet::read(&texts)).await;
                match read {
                    Ok(Ok(set)) => {
                        self.set(directory, tenant, Some(Arc::new(set)), version, utc_offset_min);
                        tracing::info!(%tenant, version, "policies are in force");
                        return None;
                    }
                    Ok(Err(faults)) => (version, faults.first().map(ToString::to_string).unwrap_or_default()),
                    Err(error) => (version, error.to_string()),
                }
            }
        };
        let in_force = self.of(tenant).filter(|judge| judge.set().is_some()).map(|judge| judge.version());
        tracing::error!(%tenant, version, ?in_force, faults, "policies cannot be read: the last good ones stay");
        if in_force.is_none() {
            self.set(directory, tenant, None, version, 0);
        }
        let in_force =
            in_force.map_or("nothing is allowed".to_owned(), |last| format!("version {last} stays"));
        Some(format!("tenant {tenant}, version {version}: {in_force}; {faults}"))
    }
}

/// Follows the sets of all tenants until `stop`; says in `is_loaded` when the first load is complete.
pub(crate) async fn follow(
    bus: Bus,
    kept: Arc<Kept>,
    health: Health,
    is_loaded: Sender<bool>,
    stop: CancellationToken,
) {
    let Kept { judges, directory, .. } = &*kept;
    let part = health.part("policies");
    part.not_ready("loading");
    let meters = PolicyMeters::new();
    let mut watch = Policies::watch(&bus);
    let mut seen = HashSet::new();
    let mut unread: BTreeMap<TenantId, String> = BTreeMap::new();
    let mut ticks = tokio::time::interval(std::time::Duration::from_secs(1));
    loop {
        let change = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            change = watch.next() => change,
            _ = ticks.tick() => {
                for (_, judge) in judges.read_all() {
                    let asked = judge.take_asked();
                    meters.remembered.increment(asked.remembered);
                    meters.evaluated.increment(asked.evaluated);
                }
                continue;
            }
        };
        match change {
            PolicyChange::Loading => seen.clear(),
            PolicyChange::Set(tenant, stored) => {
                seen.insert(tenant);
                match judges.take(directory, tenant, stored).await {
                    None => unread.remove(&tenant),
                    Some(why) => unread.insert(tenant, why),
                };
            }
            PolicyChange::Removed(tenant) => {
                judges.remove(tenant);
                unread.remove(&tenant);
            }
            PolicyChange::Loaded => {
                for (tenant, _) in judges.read_all() {
                    if !seen.contains(&tenant) {
                        judges.remove(tenant);
                    }
                }
                unread.retain(|tenant, _| seen.contains(tenant));
                is_loaded.send_replace(true);
            }
        }
        meters.sets.set(judges.count.load(Ordering::Acquire) as f64);
        meters.unread.set(unread.len() as f64);
        match unread.values().next() {
            Some(why) => part.not_ready(why),
            None if *is_loaded.borrow() => part.ready(),
            None => {}
        }
    }
}
