//! What do policies look at? Two devices, or two contexts, that differ in nothing of it are judged alike.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cedar_policy::pst::{self, BinaryOp, EntityOrSlot, Expr, Literal, Var};
use rpc::{CustomerId, DeviceId};

use super::facts::{Context, Facts, readings};

/// All that the policies of a set read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Footprint {
    /// Labels, each with the values that it is compared with.
    pub labels: BTreeMap<String, BTreeSet<String>>,
    /// Devices that are named by id.
    pub devices: BTreeSet<String>,
    /// Customers that are named by id.
    pub customers: BTreeSet<String>,
    /// Types that are named.
    pub types: BTreeSet<String>,
    /// Fields of the context, each with the numbers that it is compared with.
    pub context: BTreeMap<String, BTreeSet<i64>>,
    /// Fields of the context that count whole, being used in another way than compared with a number.
    whole: BTreeSet<String>,
    reads_name: bool,
    reads_type: bool,
    reads_customer: bool,
    /// A label is read whose key is computed: any may count.
    reads_any_label: bool,
}

/// What the policies can know of a device.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct DeviceClass {
    id: Option<DeviceId>,
    name: Option<Box<str>>,
    kind: Option<Box<str>>,
    customer: Option<CustomerId>,
    labels: Box<[Option<Box<str>>]>,
    all_labels: Option<Box<[(String, String)]>>,
}

/// What the policies can know of a context.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ContextClass {
    method: Option<&'static str>,
    protocol: Option<&'static str>,
    oneway: Option<bool>,
    numbers: [Option<i64>; 4],
}

impl Footprint {
    /// Of the rule in Rust.
    pub(super) fn of_customers() -> Self {
        Footprint { reads_customer: true, ..Footprint::default() }
    }

    /// Adds all that another reads.
    pub(super) fn join(&mut self, other: &Footprint) {
        for (key, values) in &other.labels {
            self.labels.entry(key.clone()).or_default().extend(values.iter().cloned());
        }
        for (field, cuts) in &other.context {
            self.context.entry(field.clone()).or_default().extend(cuts);
        }
        self.devices.extend(other.devices.iter().cloned());
        self.customers.extend(other.customers.iter().cloned());
        self.types.extend(other.types.iter().cloned());
        self.whole.extend(other.whole.iter().cloned());
        self.reads_name |= other.reads_name;
        self.reads_type |= other.reads_type;
        self.reads_customer |= other.reads_customer;
        self.reads_any_label |= other.reads_any_label;
    }

    /// Adds what a policy reads.
    pub(super) fn add(&mut self, policy: &pst::Template) {
        use pst::{PrincipalConstraint, ResourceConstraint};
        match &policy.principal {
            PrincipalConstraint::Eq(it) | PrincipalConstraint::In(it) | PrincipalConstraint::IsIn(_, it) => {
                self.scope(it);
            }
            PrincipalConstraint::Any | PrincipalConstraint::Is(_) => {}
        }
        match &policy.resource {
            ResourceConstraint::Eq(it) | ResourceConstraint::In(it) | ResourceConstraint::IsIn(_, it) => {
                self.scope(it);
            }
            ResourceConstraint::Any | ResourceConstraint::Is(_) => {}
        }
        for clause in policy.clauses() {
            match clause {
                pst::Clause::When(expr) | pst::Clause::Unless(expr) => self.visit(expr),
            }
        }
    }

    fn scope(&mut self, named: &EntityOrSlot) {
        match named {
            EntityOrSlot::Entity(uid) => self.entity(uid),
            EntityOrSlot::Slot(_) => {}
        }
    }

    fn entity(&mut self, uid: &pst::EntityUID) {
        match uid.ty.0.id.as_str() {
            "Device" => {
                self.devices.insert(uid.eid.to_string());
            }
            "Customer" => {
                self.reads_customer = true;
                self.customers.insert(uid.eid.to_string());
            }
            "Group" => readings(&uid.eid).for_each(|(key, value)| {
                self.labels.entry(key.to_owned()).or_default().insert(value.to_owned());
            }),
            _ => {}
        }
    }

    fn visit(&mut self, expr: &Expr) {
        match expr {
            Expr::Literal(Literal::EntityUID(uid)) => self.entity(uid),
            Expr::Literal(_) | Expr::Slot(_) => {}
            // By itself a device is only its id, and whether it is the other one, which every key says.
            Expr::Var(Var::Principal | Var::Resource | Var::Action) => {}
            Expr::Var(Var::Context) => self.whole_context(),
            Expr::UnaryOp { expr, .. } | Expr::Like { expr, .. } => self.visit(expr),
            Expr::BinaryOp { op, left, right } => self.visit_pair(*op, left, right),
            Expr::GetAttr { expr, attr } => match (&**expr, attr.as_str()) {
                (Expr::Var(Var::Context), field) => {
                    self.context.entry(field.to_owned()).or_default();
                    self.whole.insert(field.to_owned());
                }
                (inner, attr) => {
                    self.attribute(attr);
                    self.visit(inner);
                }
            },
            Expr::HasAttr { expr, attrs } => {
                attrs.iter().for_each(|attr| self.attribute(attr));
                // No field of the context is ever missing.
                if !matches!(**expr, Expr::Var(Var::Context)) {
                    self.visit(expr);
                }
            }
            Expr::Is { expr, in_expr, .. } => {
                self.visit(expr);
                if let Some(inner) = in_expr {
                    self.visit(inner);
                }
            }
            Expr::IfThenElse { cond, then_expr, else_expr } => {
                [cond, then_expr, else_expr].into_iter().for_each(|expr| self.visit(expr));
            }
            Expr::Set(elements) => elements.iter().for_each(|expr| self.visit(expr)),
            Expr::Record(fields) => fields.values().for_each(|expr| self.visit(expr)),
            // A kind of expression that this version does not know: everything may count.
            _ => self.everything(),
        }
    }

    fn visit_pair(&mut self, op: BinaryOp, left: &Expr, right: &Expr) {
        use BinaryOp::{Contains, Eq, GetTag, Greater, GreaterEq, HasTag, Less, LessEq, NotEq};
        match (op, left, right) {
            (GetTag | HasTag, device, Expr::Literal(Literal::String(key))) => {
                self.labels.entry(key.to_string()).or_default();
                return self.visit(device);
            }
            (GetTag | HasTag, ..) => self.reads_any_label = true,
            (Eq | NotEq | Less | LessEq | Greater | GreaterEq, Expr::GetAttr { expr, attr }, other)
            | (Eq | NotEq | Less | LessEq | Greater | GreaterEq, other, Expr::GetAttr { expr, attr })
                if matches!(**expr, Expr::Var(Var::Context))
                    && let Expr::Literal(Literal::Long(number)) = other =>
            {
                self.context.entry(attr.to_string()).or_default().insert(*number);
                return;
            }
            (
                Eq | NotEq,
                Expr::BinaryOp { op: GetTag, right: key, .. },
                Expr::Literal(Literal::String(value)),
            )
            | (
                Eq | NotEq,
                Expr::Literal(Literal::String(value)),
                Expr::BinaryOp { op: GetTag, right: key, .. },
            ) => {
                if let Expr::Literal(Literal::String(key)) = &**key {
                    self.labels.entry(key.to_string()).or_default().insert(value.to_string());
                }
            }
            (Eq | NotEq, Expr::GetAttr { attr, .. }, Expr::Literal(Literal::String(value)))
            | (Eq | NotEq, Expr::Literal(Literal::String(value)), Expr::GetAttr { attr, .. })
                if attr == "type" =>
            {
                self.types.insert(value.to_string());
            }
            (Contains, Expr::Set(values), Expr::GetAttr { attr, .. }) if attr == "type" => {
                self.types.extend(texts(values));
            }
            (Contains, Expr::Set(values), Expr::BinaryOp { op: GetTag, right: key, .. }) => {
                if let Expr::Literal(Literal::String(key)) = &**key {
                    self.labels.entry(key.to_string()).or_default().extend(texts(values));
                }
            }
            _ => {}
        }
        self.visit(left);
        self.visit(right);
    }

    fn attribute(&mut self, name: &str) {
        match name {
            "name" => self.reads_name = true,
            "type" => self.reads_type = true,
            "customer" => self.reads_customer = true,
            _ => {}
        }
    }

    fn whole_context(&mut self) {
        for field in ["method", "protocol", "oneway"].into_iter().chain(Context::NUMBERS) {
            self.context.entry(field.to_owned()).or_default();
            self.whole.insert(field.to_owned());
        }
    }

    fn everything(&mut self) {
        self.whole_context();
        (self.reads_name, self.reads_type) = (true, true);
        (self.reads_customer, self.reads_any_label) = (true, true);
    }

    /// Whether methods count.
    pub fn reads_method(&self) -> bool {
        self.context.contains_key("method")
    }

    /// Whether types count.
    pub fn reads_type(&self) -> bool {
        self.reads_type
    }

    /// Whether customers count.
    pub fn reads_customer(&self) -> bool {
        self.reads_customer
    }

    /// Whether every device is a class of its own, so that decisions are remembered by pairs.
    pub fn tells_every_device_apart(&self) -> bool {
        self.reads_name
    }

    /// The class of a device.
    pub fn device_class(&self, facts: &Facts) -> DeviceClass {
        let id =
            (!self.devices.is_empty() && self.devices.contains(&facts.id.to_string())).then_some(facts.id);
        let label = |key: &String| facts.labels.get(key).map(|value| value.as_str().into());
        let all = || facts.labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
        DeviceClass {
            id,
            name: self.reads_name.then(|| (*facts.name).into()),
            kind: self.reads_type.then(|| (*facts.kind).into()),
            customer: facts.customer.filter(|_| self.reads_customer),
            labels: self.labels.keys().map(label).collect(),
            all_labels: self.reads_any_label.then(all),
        }
    }

    /// The class of a context.
    pub fn context_class(&self, context: &Context) -> ContextClass {
        let mut numbers = [None; 4];
        for (class, field) in numbers.iter_mut().zip(Context::NUMBERS) {
            let Some(cuts) = self.context.get(field) else { continue };
            let value = context.number(field);
            *class = Some(match self.whole.contains(field) {
                true => value,
                // Below, at and above each number are apart.
                false => cuts
                    .iter()
                    .fold(0, |class, cut| class + i64::from(value >= *cut) + i64::from(value > *cut)),
            });
        }
        ContextClass {
            // An application's own is told apart where it counts.
            method: self.reads_method().then_some(match context.method {
                Cow::Borrowed(method) => method,
                Cow::Owned(_) => "",
            }),
            protocol: self.context.contains_key("protocol").then_some(context.protocol),
            oneway: self.context.contains_key("oneway").then_some(context.oneway),
            numbers,
        }
    }
}

fn texts(values: &[Arc<Expr>]) -> impl Iterator<Item = String> {
    values.iter().filter_map(|value| match &**value {
        Expr::Literal(Literal::String(text)) => Some(text.to_string()),
        _ => None,
    })
}
