//! Why is it so, and what would change it? Each condition evaluated alone, and each change that is named was tried.

use std::fmt;

use cedar_policy::pst::{self, BinaryOp, Expr, Literal, Var};
use rpc::{CustomerId, Protocol, Role as AppRole};
use serde::{Deserialize, Serialize};

use super::facts::{Action, AppFacts, Caller, Context, Facts, readings};
use super::set::{PolicySet, holds};

/// Single changes that are tried in pairs, at most.
const MAX_PAIRED: usize = 60;
/// Changes that are told.
const MAX_TOLD: usize = 5;

/// Why a decision is as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Whether it is allowed.
    pub allowed: bool,
    /// The policies that decided; none: no policy permits.
    #[serde(alias = "decidedBy")]
    pub decided_by: Vec<String>,
    /// Policies that could not be evaluated, each of which denies.
    pub failed: Vec<String>,
    /// The policies that matter: those that decided, else every one that permits something; of an application, that
    /// forbids something.
    pub policies: Vec<Weighed>,
    /// The smallest changes that turn the decision, each evaluated: one change each, or two where one is not enough.
    #[serde(alias = "wouldChangeIt")]
    pub would_change_it: Vec<Vec<String>>,
}

/// One policy, taken apart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weighed {
    /// Effect, place and name.
    pub policy: String,
    /// Its scope and its conditions.
    pub conditions: Vec<Condition>,
}

/// One condition of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    /// As Cedar.
    pub text: String,
    /// Whether it holds; none: it cannot be evaluated alone, a label missing for instance.
    pub holds: Option<bool>,
    /// What was read for it.
    pub read: Vec<String>,
}

/// For a person: a line for each condition, ✓ or ✗, with what was read for it; then what would change the answer.
impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for failed in &self.failed {
            writeln!(f, "{failed} cannot be evaluated, and therefore denies")?;
        }
        for weighed in &self.policies {
            writeln!(f, "{}", weighed.policy)?;
            for condition in &weighed.conditions {
                let mark = if condition.holds == Some(true) { '✓' } else { '✗' };
                write!(f, "  {mark} {}", condition.text)?;
                match condition.read.is_empty() {
                    true => writeln!(f)?,
                    false => writeln!(f, "   {}", condition.read.join(", "))?,
                }
            }
        }
        if self.would_change_it.is_empty() {
            return f.write_str(
                "No change of one or two labels, customers or circumstances that the policies mention turns this.",
            );
        }
        f.write_str("What would change it:")?;
        self.would_change_it.iter().try_for_each(|changes| write!(f, "\n  - {}", changes.join(", and ")))
    }
}

/// Explains a decision; of an application, one about a device that is in its scope.
pub fn explain<'a>(
    set: &PolicySet,
    caller: impl Into<Caller<'a>>,
    action: Action,
    target: &Facts,
    context: &Context,
) -> Explanation {
    let caller = caller.into();
    let case = Case { caller: Principal::of(caller), target: target.clone(), context: context.clone() };
    let verdict = set.evaluate(caller, action, target, context);
    let name = |id| set.source(id).map(ToString::to_string).unwrap_or_default();
    let decided_by: Vec<_> = verdict.determining.iter().map(name).collect();
    let matters = |policy: &String, is_permit: bool| match decided_by.is_empty() {
        true => is_permit == caller.device().is_some(),
        false => decided_by.contains(policy),
    };
    let policies = set.policies(action).filter_map(|(source, policy)| {
        let name = source.to_string();
        if !matters(&name, source.is_permit) {
            return None;
        }
        let tree = policy.to_pst().ok()?;
        Some(Weighed { policy: name, conditions: conditions(tree.body(), action, &case) })
    });
    Explanation {
        allowed: verdict.is_allowed,
        policies: policies.collect(),
        decided_by,
        failed: verdict.failed.iter().map(name).collect(),
        would_change_it: changes(set, action, &case, verdict.is_allowed),
    }
}

/// What is judged.
#[derive(Clone)]
struct Case {
    caller: Principal,
    target: Facts,
    context: Context,
}

#[derive(Clone)]
enum Principal {
    Device(Facts),
    App(AppFacts),
}

impl Principal {
    fn of(caller: Caller<'_>) -> Self {
        match caller {
            Caller::Device(facts) => Principal::Device(facts.clone()),
            Caller::App(facts) => Principal::App(facts.clone()),
        }
    }

    fn caller(&self) -> Caller<'_> {
        match self {
            Principal::Device(facts) => Caller::Device(facts),
            Principal::App(facts) => Caller::App(facts),
        }
    }
}

fn conditions(policy: &pst::Template, action: Action, case: &Case) -> Vec<Condition> {
    let part = |name: &str, constraint: String| format!("{name} {constraint}").trim_end().to_owned();
    let scope = [
        part("principal", policy.principal.to_string()),
        part("action", policy.action.to_string()),
        part("resource", policy.resource.to_string()),
    ]
    .join(", ");
    let holds_now = |text: &str| holds(text, case.caller.caller(), action, &case.target, &case.context);
    let mut found =
        vec![Condition { holds: holds_now(&format!("permit ({scope});")), text: scope, read: Vec::new() }];
    let mut parts = Vec::new();
    for clause in policy.clauses() {
        match clause {
            pst::Clause::When(expr) => split(expr, BinaryOp::And, false, &mut parts),
            pst::Clause::Unless(expr) => split(expr, BinaryOp::Or, true, &mut parts),
        }
    }
    for (expr, is_negated) in parts {
        let text = if is_negated { format!("!({expr})") } else { expr.to_string() };
        let mut read = Vec::new();
        reads(expr, case, &mut read);
        let holds = holds_now(&format!("permit (principal, action, resource) when {{ {text} }};"));
        found.push(Condition { text, holds, read });
    }
    found
}

fn split<'a>(expr: &'a Expr, at: BinaryOp, is_negated: bool, parts: &mut Vec<(&'a Expr, bool)>) {
    match expr {
        Expr::BinaryOp { op, left, right } if *op == at => {
            split(left, at, is_negated, parts);
            split(right, at, is_negated, parts);
        }
        expr => parts.push((expr, is_negated)),
    }
}

/// The values that an expression reads.
fn reads(expr: &Expr, case: &Case, read: &mut Vec<String>) {
    if let (Expr::Var(Var::Principal), Some(app)) = (of_which(expr), case.caller.caller().app()) {
        read.extend(read_of_app(expr, app));
    }
    let of = |var: &Expr| match var {
        Expr::Var(Var::Principal) => case.caller.caller().device().map(|facts| ("principal", facts)),
        Expr::Var(Var::Resource) => Some(("resource", &case.target)),
        _ => None,
    };
    match expr {
        Expr::BinaryOp { op: BinaryOp::GetTag | BinaryOp::HasTag, left, right } => {
            if let (Some((role, facts)), Expr::Literal(Literal::String(key))) = (of(left), &**right) {
                read.push(label(role, facts, key));
            }
        }
        Expr::GetAttr { expr, attr } => match (&**expr, of(expr)) {
            (Expr::Var(Var::Context), _) => {
                let context = &case.context;
                read.push(match attr.as_str() {
                    "method" => format!("method = {:?}", context.method),
                    "protocol" => format!("protocol = {:?}", context.protocol),
                    "oneway" => format!("oneway = {}", context.oneway),
                    "timeout" => format!("timeout = {}", context.timeout_ms),
                    "size" => format!("size = {}", context.size_bytes),
                    "hour" => format!("hour = {}", context.hour),
                    _ => format!("weekday = {}", context.weekday),
                });
            }
            (_, Some((role, facts))) if attr == "name" => {
                read.push(format!("{role}.name = {:?}", facts.name))
            }
            (_, Some((role, facts))) if attr == "type" => {
                read.push(format!("{role}.type = {:?}", facts.kind))
            }
            (_, Some((role, facts))) if attr == "customer" => read.push(customer(role, facts)),
            _ => {}
        },
        Expr::HasAttr { expr, attrs } => {
            if let (Some((role, facts)), "customer") = (of(expr), attrs.first().as_str()) {
                read.push(customer(role, facts));
            }
        }
        Expr::BinaryOp { op, left, right } => {
            for side in [left, right] {
                match of(side) {
                    Some((role, facts)) if *op == BinaryOp::In => members(role, facts, right, read),
                    Some((role, facts)) => read.push(format!("{role} = {}", facts.id)),
                    None => reads(side, case, read),
                }
            }
        }
        Expr::UnaryOp { expr, .. } | Expr::Like { expr, .. } | Expr::Is { expr, .. } => {
            reads(expr, case, read)
        }
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            [cond, then_expr, else_expr].into_iter().for_each(|expr| reads(expr, case, read));
        }
        Expr::Set(elements) => elements.iter().for_each(|expr| reads(expr, case, read)),
        _ => {}
    }
    read.sort();
    read.dedup();
}

/// Whose attribute, or membership, an expression is.
fn of_which(expr: &Expr) -> &Expr {
    match expr {
        Expr::GetAttr { expr, .. } | Expr::HasAttr { expr, .. } => expr,
        Expr::BinaryOp { op: BinaryOp::In | BinaryOp::Eq | BinaryOp::NotEq, left, .. } => left,
        other => other,
    }
}

/// What an expression reads of an application.
fn read_of_app(expr: &Expr, app: &AppFacts) -> Option<String> {
    let customers = || match &app.customers {
        Some(all) => all.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        None => "all".to_owned(),
    };
    Some(match expr {
        Expr::GetAttr { attr, .. } if attr == "role" => format!("principal.role = {:?}", app.role.as_str()),
        Expr::GetAttr { attr, .. } if attr == "name" => format!("principal.name = {:?}", app.name),
        Expr::GetAttr { attr, .. } if attr == "customers" => format!("principal.customers = {}", customers()),
        Expr::HasAttr { attrs, .. } if attrs.first() == "customers" => {
            format!("principal.customers = {}", customers())
        }
        Expr::BinaryOp { op: BinaryOp::In, .. } => format!("principal.customers = {}", customers()),
        Expr::BinaryOp { .. } => format!("principal = {}", app.id),
        _ => return None,
    })
}

/// What makes a device a member of what is named.
fn members(role: &str, facts: &Facts, of: &Expr, read: &mut Vec<String>) {
    match of {
        Expr::Literal(Literal::EntityUID(uid)) if uid.ty.0.id.as_str() == "Group" => {
            read.extend(readings(&uid.eid).map(|(key, _)| label(role, facts, key)));
        }
        Expr::Set(several) => several.iter().for_each(|of| members(role, facts, of, read)),
        _ => read.push(customer(role, facts)),
    }
}

fn label(role: &str, facts: &Facts, key: &str) -> String {
    let value = facts.labels.get(key);
    format!("{role} {key} = {}", value.map_or("no such label".to_owned(), |value| format!("{value:?}")))
}

fn customer(role: &str, facts: &Facts) -> String {
    match facts.customer {
        Some(customer) => format!("{role}.customer = {customer}"),
        None => format!("{role}.customer = none"),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Caller,
    Target,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Label(Role, String, Option<String>),
    Assign(Role, Option<CustomerId>),
    Type(Role, String),
    AppRole(AppRole),
    Protocol(Protocol),
    Context(&'static str, u32),
}

impl Change {
    fn apply(&self, case: &mut Case) {
        let is_self = case.caller.caller().device().is_some_and(|caller| caller.id == case.target.id);
        let mut change = |role: Role, change: &dyn Fn(&mut Facts)| {
            if let Principal::Device(caller) = &mut case.caller
                && (role == Role::Caller || is_self)
            {
                change(caller);
            }
            if role == Role::Target || is_self {
                change(&mut case.target);
            }
        };
        match self {
            Change::Label(role, key, Some(value)) => change(*role, &|facts| {
                facts.labels.insert(key.clone(), value.clone());
            }),
            Change::Label(role, key, None) => change(*role, &|facts| {
                facts.labels.remove(key);
            }),
            Change::Assign(role, customer) => change(*role, &|facts| facts.customer = *customer),
            Change::Type(role, kind) => change(*role, &|facts| facts.kind = kind.as_str().into()),
            Change::AppRole(role) => {
                if let Principal::App(app) = &mut case.caller {
                    app.role = *role;
                }
            }
            Change::Protocol(protocol) => case.context = case.context.clone().over(Some(*protocol)),
            Change::Context(field, value) => {
                let context = &mut case.context;
                match *field {
                    "oneway" => context.oneway = *value != 0,
                    "timeout" => context.timeout_ms = *value,
                    "size" => context.size_bytes = *value,
                    "hour" => context.hour = *value as u8,
                    _ => context.weekday = *value as u8,
                }
            }
        }
    }

    fn text(&self, case: &Case) -> String {
        let of = |role: &Role| match role {
            Role::Caller => case.caller.caller().name(),
            Role::Target => &*case.target.name,
        };
        match self {
            Change::Label(role, key, Some(value)) => format!("give {:?} the label {key}={value}", of(role)),
            Change::Label(role, key, None) => format!("take the label {key} from {:?}", of(role)),
            Change::Assign(role, Some(customer)) => format!("assign {:?} to customer {customer}", of(role)),
            Change::Assign(role, None) => format!("take {:?} from its customer", of(role)),
            Change::Type(role, kind) => format!("give {:?} the type {kind}", of(role)),
            Change::AppRole(role) => format!("give {:?} the role {}", of(&Role::Caller), role.as_str()),
            Change::Protocol(protocol) => format!("call over {protocol}"),
            Change::Context("oneway", value) => format!("call with oneway {}", *value != 0),
            Change::Context(field, value) => format!("call with {field} {value}"),
        }
    }

    /// Two that would undo each other are no pair.
    fn is_about_the_same(&self, other: &Change) -> bool {
        match (self, other) {
            (Change::Label(role, key, _), Change::Label(other, other_key, _)) => {
                (role, key) == (other, other_key)
            }
            (Change::Assign(role, _), Change::Assign(other, _))
            | (Change::Type(role, _), Change::Type(other, _)) => role == other,
            (Change::Protocol(_), Change::Protocol(_)) | (Change::AppRole(_), Change::AppRole(_)) => true,
            (Change::Context(field, _), Change::Context(other, _)) => field == other,
            _ => false,
        }
    }
}

fn changes(set: &PolicySet, action: Action, case: &Case, is_allowed: bool) -> Vec<Vec<String>> {
    let turns = |changes: &[&Change]| {
        let mut changed = case.clone();
        changes.iter().for_each(|change| change.apply(&mut changed));
        set.evaluate(changed.caller.caller(), action, &changed.target, &changed.context).is_allowed
            != is_allowed
    };
    let tell = |changes: &[&Change]| changes.iter().map(|change| change.text(case)).collect::<Vec<_>>();
    let candidates = candidates(set, action, case);
    let mut found: Vec<_> =
        candidates.iter().filter(|change| turns(&[change])).map(|it| tell(&[it])).collect();
    if found.is_empty() {
        let few = candidates.get(..MAX_PAIRED.min(candidates.len())).unwrap_or_default();
        let pairs = few
            .iter()
            .enumerate()
            .flat_map(|(place, first)| few.iter().skip(place + 1).map(move |second| (first, second)));
        let pairs = pairs.filter(|(first, second)| !first.is_about_the_same(second));
        let pairs = pairs.filter(|(first, second)| turns(&[first, second]));
        found = pairs.take(MAX_TOLD).map(|(first, second)| tell(&[first, second])).collect();
    }
    found.truncate(MAX_TOLD);
    found
}

/// Every single change that the policies could notice: of all that they mention, the values that they mention.
fn candidates(set: &PolicySet, action: Action, case: &Case) -> Vec<Change> {
    let footprint = set.footprint();
    let mut found = Vec::new();
    let roles = match &case.caller {
        Principal::Device(caller) => {
            vec![(Role::Target, &case.target, caller), (Role::Caller, caller, &case.target)]
        }
        Principal::App(app) => {
            let others = AppRole::ALL.iter().filter(|role| **role != app.role);
            found.extend(others.map(|role| Change::AppRole(*role)));
            // Of its own there is nothing to take a value from.
            vec![(Role::Target, &case.target, &case.target)]
        }
    };
    for (key, values) in &footprint.labels {
        for (role, facts, other) in roles.iter().copied() {
            let has = facts.labels.get(key);
            let values = other.labels.get(key).into_iter().chain(values);
            let other_values = values.filter(|value| has != Some(*value));
            found.extend(other_values.map(|value| Change::Label(role, key.clone(), Some(value.clone()))));
            found.extend(has.map(|_| Change::Label(role, key.clone(), None)));
        }
    }
    if footprint.reads_customer() {
        for (role, facts, other) in roles.iter().copied() {
            let named = footprint.customers.iter().filter_map(|id| id.parse().ok());
            let customers = other.customer.into_iter().chain(named).filter(|id| facts.customer != Some(*id));
            found.extend(customers.map(|id| Change::Assign(role, Some(id))));
            found.extend(facts.customer.map(|_| Change::Assign(role, None)));
        }
    }
    if footprint.reads_type() {
        for (role, facts, other) in roles.iter().copied() {
            let named = footprint.types.iter().map(String::as_str).chain([&*other.kind]);
            let types = named.filter(|kind| **kind != *facts.kind);
            found.extend(types.map(|kind| Change::Type(role, kind.to_owned())));
        }
    }
    if footprint.context.contains_key("protocol") && case.caller.caller().device().is_some() {
        let others = Protocol::ALL.iter().filter(|protocol| protocol.as_str() != case.context.protocol);
        found.extend(others.map(|protocol| Change::Protocol(*protocol)));
    }
    let mut classes = vec![footprint.context_class(&case.context)];
    for (field, cuts) in &footprint.context {
        let around = cuts.iter().flat_map(|cut| [*cut, cut.saturating_sub(1), cut.saturating_add(1)]);
        let around = around.filter_map(|value| u32::try_from(value).ok());
        let values: (&'static str, Vec<u32>) = match field.as_str() {
            "oneway" if action == Action::Call => ("oneway", vec![u32::from(!case.context.oneway)]),
            "timeout" if action == Action::Call => ("timeout", around.collect()),
            "size" if action == Action::Call => ("size", around.collect()),
            "hour" => ("hour", (0..24).collect()),
            "weekday" => ("weekday", (1..8).collect()),
            _ => continue,
        };
        for value in values.1 {
            let change = Change::Context(values.0, value);
            let mut changed = case.clone();
            change.apply(&mut changed);
            // One of each class is enough.
            let class = footprint.context_class(&changed.context);
            if !classes.contains(&class) {
                classes.push(class);
                found.push(change);
            }
        }
    }
    let mut distinct: Vec<Change> = Vec::new();
    for change in found {
        if !distinct.contains(&change) {
            distinct.push(change);
        }
    }
    distinct
}
