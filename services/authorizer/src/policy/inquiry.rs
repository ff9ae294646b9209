//! What is asked about a tenant's policies, and what is told? The same, whoever asks: the command line or the API.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bus::audit::Record;
use bus::policies::{External, StoredSet};
use bus::registry::{App, Device};
use rpc::{AppId, DEFAULT_METHOD, DeviceId, Protocol};
use serde::{Deserialize, Serialize};

use super::explain::{Explanation, explain};
use super::facts::{Action, AppFacts, Context, Facts};
use super::set::{BUILT_IN, Fault, PolicySet};
use super::survey;

/// The name of the text that a tenant's policies begin with.
pub const BUILT_IN_NAME: &str = "built-in";
/// Changes for applications that are named as examples.
const MAX_APP_EXAMPLES: usize = 20;

/// A tenant's policies in force: its own, or without any the built-in rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InForce(pub Option<StoredSet>);

impl InForce {
    /// The tenant's own, if it has any.
    pub fn own(&self) -> Option<&StoredSet> {
        self.0.as_ref().filter(|live| !live.texts.is_empty())
    }

    /// The texts that are live, or what the first ones stand beside.
    pub fn texts(&self) -> BTreeMap<String, String> {
        match self.own() {
            Some(own) => own.texts.clone(),
            None => [(BUILT_IN_NAME.to_owned(), BUILT_IN.to_owned())].into(),
        }
    }

    /// The version that decides; 0: the built-in rule.
    pub fn version(&self) -> u64 {
        self.own().map_or(0, |own| own.version)
    }

    /// The version that a next one follows: also of a set without texts.
    pub fn counted(&self) -> u64 {
        self.0.as_ref().map_or(0, |live| live.version)
    }

    /// Where hours and weekdays are, in minutes east of UTC.
    pub fn utc_offset_min(&self) -> i16 {
        self.0.as_ref().map_or(0, |live| live.utc_offset_min)
    }

    /// Who is asked besides.
    pub fn external(&self) -> Option<&External> {
        self.0.as_ref().and_then(|live| live.external.as_ref())
    }

    /// The policies, ready to be asked.
    ///
    /// # Errors
    /// As [`PolicySet::read`].
    pub fn set(&self) -> Result<PolicySet, Vec<Fault>> {
        read(&self.texts())
    }

    /// What would be live next: these texts, and all else as it is.
    pub fn next(&self, texts: BTreeMap<String, String>, at_ms: u64, who: &str, why: &str) -> StoredSet {
        StoredSet {
            version: self.counted() + 1,
            utc_offset_min: self.utc_offset_min(),
            texts,
            at_ms,
            who: who.to_owned(),
            why: why.to_owned(),
            external: self.external().cloned(),
        }
    }
}

/// Reads texts by their names.
///
/// # Errors
/// As [`PolicySet::read`].
pub fn read(texts: &BTreeMap<String, String>) -> Result<PolicySet, Vec<Fault>> {
    let texts: Vec<_> = texts.iter().map(|(name, text)| (name.clone(), text.clone())).collect();
    PolicySet::read(&texts)
}

/// When a decision is asked for, and of what kind of call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// At this hour of the tenant's day, 0 to 23; now when not given.
    pub hour: Option<u8>,
    /// On this weekday, 1 (Monday) to 7; today when not given.
    pub weekday: Option<u8>,
    /// How a device is connected that calls.
    pub protocol: Protocol,
    /// The call wants no answer.
    pub oneway: bool,
    /// Milliseconds that it may take.
    pub timeout_ms: u32,
    /// How long its body is.
    pub size_bytes: u32,
    /// By which method an application calls.
    pub method: String,
}

impl Default for Asked {
    fn default() -> Self {
        Asked {
            hour: None,
            weekday: None,
            protocol: Protocol::Mqtt,
            oneway: false,
            timeout_ms: 10_000,
            size_bytes: 2,
            method: DEFAULT_METHOD.to_owned(),
        }
    }
}

impl Asked {
    /// What a device's request is judged in.
    pub fn by_device(&self, action: Action, at: SystemTime, utc_offset_min: i16) -> Context {
        let at_s = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let context = match action {
            Action::Call => {
                Context::of_call(self.oneway, self.timeout_ms, self.size_bytes, at_s, utc_offset_min)
            }
            Action::List => Context::of_list(at_s, utc_offset_min),
        };
        let mut context = context.over(Some(self.protocol));
        context.hour = self.hour.unwrap_or(context.hour);
        context.weekday = self.weekday.unwrap_or(context.weekday);
        context
    }

    /// What an application's is judged in.
    pub fn by_app(&self, action: Action, at: SystemTime, utc_offset_min: i16) -> Context {
        let context = self.by_device(action, at, utc_offset_min);
        match action {
            Action::Call => context.by_method(&self.method),
            Action::List => context.over(None),
        }
    }
}

/// Whether somebody may, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explained {
    /// The device that wants it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The application that wants it, in place of a device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub app: Option<String>,
    /// The other device.
    pub to: String,
    /// What is wanted.
    pub action: String,
    /// The version that decides; 0: the built-in rule.
    pub version: u64,
    /// The hour that policies see.
    pub hour: u8,
    /// The weekday that they see.
    pub weekday: u8,
    /// Of an application: whether the device is in its scope, and the method of a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub in_scope: Option<bool>,
    /// What its scope is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// What is outside of its scope, if anything is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outside: Option<String>,
    /// What the policies say.
    #[serde(flatten)]
    pub explanation: Explanation,
    /// What an external decision point says, where the policies permit a call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub external: Option<Besides>,
}

/// An external decision point, and what it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Besides {
    /// Where it is.
    pub point: String,
    /// Whether it allows; none: it was not asked.
    pub allowed: Option<bool>,
    /// Why not; none when it allows.
    pub objection: Option<String>,
    /// Its reason.
    pub reason: String,
}

impl Explained {
    /// Whether it may, all in all.
    pub fn is_allowed(&self) -> bool {
        self.explanation.allowed && self.external.as_ref().is_none_or(|it| it.allowed != Some(false))
    }
}

/// Whether a device may, and why.
pub fn of_device(
    live: &InForce,
    set: &PolicySet,
    caller: &Facts,
    (action, context): (Action, &Context),
    target: &Facts,
) -> Explained {
    Explained {
        from: Some(caller.name.to_string()),
        app: None,
        to: target.name.to_string(),
        action: action.as_str().to_owned(),
        version: live.version(),
        hour: context.hour,
        weekday: context.weekday,
        in_scope: None,
        scope: None,
        outside: None,
        explanation: explain(set, caller, action, target, context),
        external: None,
    }
}

/// Whether an application, whose scope is in words, may: its scope first, then what the policies forbid.
pub fn of_app(
    live: &InForce,
    set: &PolicySet,
    (id, app, scope): (AppId, &App, String),
    (action, context): (Action, &Context),
    (target_id, target): (DeviceId, &Device),
) -> Explained {
    let of_scope = [
        (target.tenant == app.tenant, "the device is of another tenant"),
        (app.reaches(target.customer, &target.labels), "the device is outside of its scope"),
        (action == Action::List || app.may_call(&context.method), "the method is outside of its scope"),
    ];
    let outside = of_scope.iter().find(|(holds, _)| !holds).map(|(_, why)| (*why).to_owned());
    let target = Facts::of(target_id, target);
    let mut explanation = explain(set, &AppFacts::of(id, app), action, &target, context);
    explanation.allowed &= outside.is_none();
    Explained {
        from: None,
        app: Some(app.name.clone()),
        to: target.name.to_string(),
        action: action.as_str().to_owned(),
        version: live.version(),
        hour: context.hour,
        weekday: context.weekday,
        in_scope: Some(outside.is_none()),
        scope: Some(scope),
        outside,
        explanation,
        external: None,
    }
}

/// A device that is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Its id.
    pub id: DeviceId,
    /// Its name.
    pub name: String,
}

impl From<&Facts> for Found {
    fn from(facts: &Facts) -> Self {
        Found { id: facts.id, name: facts.name.to_string() }
    }
}

/// Whom an application may call or list of these, in their order: what its scope reaches, and no policy forbids.
pub fn whom_of_app<'a>(
    set: &PolicySet,
    devices: &'a [Facts],
    id: AppId,
    app: &App,
    (action, context): (Action, &Context),
) -> Vec<&'a Facts> {
    if action == Action::Call && !app.may_call(&context.method) {
        return Vec::new();
    }
    let caller = AppFacts::of(id, app);
    let mut known = HashMap::new();
    let mut may = |target: &Facts| {
        let judge = || set.evaluate(&caller, action, target, context).is_allowed;
        *known.entry(set.footprint().device_class(target)).or_insert_with(judge)
    };
    devices.iter().filter(|it| app.reaches(it.customer, &it.labels) && may(it)).collect()
}

/// What other policies would change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Differing {
    /// Pairs that they allow and those in force do not.
    pub more: u64,
    /// Pairs that they no longer allow.
    pub fewer: u64,
    /// Some of these.
    pub examples: Vec<ChangedPair>,
    /// Denied calls that the audit has.
    pub denials: u64,
    /// How many of them would be allowed.
    pub now_allowed: u64,
}

/// A pair for which the answer is another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedPair {
    /// What is wanted.
    pub action: String,
    /// Who wants it.
    pub from: String,
    /// It is an application.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub app: bool,
    /// Whom it is about.
    pub to: String,
    /// Whether it may with the other policies.
    pub now: bool,
}

/// What `new` would change for `devices` among each other, unless those call nobody here, and for `apps` within their
/// scopes; nothing is said of denials yet.
pub fn differing(
    (old, new): (&PolicySet, &PolicySet),
    (devices, are_callers): (&[Facts], bool),
    apps: &[(AppId, &App)],
    asked: impl Fn(Action, bool) -> Context,
) -> Differing {
    let at = |is_app| Action::ALL.map(|action| (action, asked(action, is_app)));
    let among = match are_callers {
        true => survey::difference(old, new, devices, &at(false)),
        false => survey::Difference::default(),
    };
    let names: HashMap<_, _> = devices.iter().map(|facts| (facts.id, &facts.name)).collect();
    let name = |id: &DeviceId| names.get(id).map(ToString::to_string).unwrap_or_default();
    let pair = |(action, from, to, now): &(Action, DeviceId, DeviceId, bool)| ChangedPair {
        action: action.as_str().to_owned(),
        from: name(from),
        app: false,
        to: name(to),
        now: *now,
    };
    let mut found = Differing { more: among.more, fewer: among.fewer, ..Differing::default() };
    found.examples = among.examples.iter().map(pair).collect();
    let most = found.examples.len() + MAX_APP_EXAMPLES;
    let at = at(true);
    for (id, app) in apps {
        let reached: Vec<_> =
            devices.iter().filter(|it| app.reaches(it.customer, &it.labels)).cloned().collect();
        for (action, to, now) in survey::app_difference(old, new, &AppFacts::of(*id, app), &reached, &at) {
            *(if now { &mut found.more } else { &mut found.fewer }) += 1;
            if found.examples.len() < most {
                let (action, from, to) = (action.as_str().to_owned(), app.name.clone(), name(&to));
                found.examples.push(ChangedPair { action, from, app: true, to, now });
            }
        }
    }
    found
}

/// Denied calls of the audit, as other policies would judge them: at their own time of day; what a record does not
/// have, as it is asked.
pub struct Denials<'a> {
    new: &'a PolicySet,
    known: HashMap<DeviceId, &'a Facts>,
    asked: &'a Asked,
    utc_offset_min: i16,
    /// How many there are, and how many of them would be allowed.
    pub counts: (u64, u64),
}

impl<'a> Denials<'a> {
    /// None was looked at yet.
    pub fn new(new: &'a PolicySet, devices: &'a [Facts], asked: &'a Asked, utc_offset_min: i16) -> Self {
        let known = devices.iter().map(|facts| (facts.id, facts)).collect();
        Denials { new, known, asked, utc_offset_min, counts: (0, 0) }
    }

    /// The next record of the audit.
    pub fn take(&mut self, record: &Record) {
        let [caller, target] = record.entry.devices.as_slice() else { return };
        let (true, Some(caller), Some(target)) =
            (record.entry.is_of("denied.call"), self.known.get(caller), self.known.get(target))
        else {
            return;
        };
        let at = UNIX_EPOCH + Duration::from_millis(record.at_ms);
        let context = self.asked.by_device(Action::Call, at, self.utc_offset_min);
        self.counts.0 += 1;
        self.counts.1 += u64::from(self.new.evaluate(*caller, Action::Call, target, &context).is_allowed);
    }
}
