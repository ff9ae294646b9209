//! Which policies can matter to a question at all? One of which a part is plainly false need not be evaluated.
//!
//! A sieve only leaves out: whatever passes it Cedar judges. Left out is a policy when a part that all of it depends on
//! is false, and nothing that Cedar evaluates before that part can fail: a policy that fails denies, and is never left
//! out. After strict validation only arithmetic and functions can fail.

use cedar_policy::pst::{self, BinaryOp, EntityOrSlot, EntityUID, Expr, Literal, UnaryOp, Var};
use rpc::{AppId, CustomerId, DeviceId};

use super::facts::{Caller, Context, Facts, in_group};

/// The parts of a policy that are understood here, of those that must all be true.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sieve(Vec<Part>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Caller,
    Target,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Always(bool),
    Not(Box<Part>),
    All(Vec<Part>),
    Any(Vec<Part>),
    IsSelf,
    Is(Role, DeviceId),
    IsApp(AppId),
    IsDevice(Role),
    InCustomer(Role, CustomerId),
    InGroup(Role, String),
    HasCustomer(Role),
    OneCustomer,
    HasLabel(Role, String),
    Equal(Text, Text),
    Among(Vec<String>, Text),
    /// A field of the context, compared.
    Number(&'static str, BinaryOp, i64),
    Oneway,
}

/// Something that is compared as a text.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Text {
    Literal(String),
    Label(Role, String),
    Name(Role),
    Type(Role),
    Method,
    Protocol,
}

impl Sieve {
    /// Of a policy.
    pub(super) fn of(policy: &pst::Template) -> Self {
        use pst::{PrincipalConstraint as Principal, ResourceConstraint as Resource};
        let mut parts = Vec::new();
        parts.extend(match &policy.principal {
            Principal::Any => None,
            Principal::Eq(it) => named(it).map(|uid| is(Role::Caller, uid)),
            Principal::In(it) => named(it).and_then(|uid| is_in(Role::Caller, uid)),
            Principal::Is(kind) => Some(is_kind(Role::Caller, kind.0.id.as_str())),
            Principal::IsIn(kind, it) => {
                let is_in = named(it).and_then(|uid| is_in(Role::Caller, uid));
                let is_kind = is_kind(Role::Caller, kind.0.id.as_str());
                Some(is_in.map_or(is_kind.clone(), |is_in| Part::All(vec![is_kind, is_in])))
            }
        });
        parts.extend(match &policy.resource {
            Resource::Any | Resource::Is(_) => None,
            Resource::Eq(it) => named(it).map(|uid| is(Role::Target, uid)),
            Resource::In(it) | Resource::IsIn(_, it) => named(it).and_then(|uid| is_in(Role::Target, uid)),
        });
        for clause in policy.clauses() {
            let can_fail = match clause {
                pst::Clause::When(expr) => collect(expr, false, &mut parts),
                pst::Clause::Unless(expr) => collect(expr, true, &mut parts),
            };
            if can_fail {
                break;
            }
        }
        Sieve(parts)
    }

    /// False: the policy says nothing to this question.
    pub(super) fn passes(&self, caller: Caller<'_>, target: &Facts, context: &Context) -> bool {
        self.0.iter().all(|part| part.holds(caller, target, context))
    }
}

/// The parts of a condition in the order of their evaluation, up to the first that can fail; true if there is one.
fn collect(expr: &Expr, is_negated: bool, parts: &mut Vec<Part>) -> bool {
    match expr {
        Expr::BinaryOp { op: BinaryOp::And, left, right } if !is_negated => {
            collect(left, false, parts) || collect(right, false, parts)
        }
        // Not (a or b) is not a and not b.
        Expr::BinaryOp { op: BinaryOp::Or, left, right } if is_negated => {
            collect(left, true, parts) || collect(right, true, parts)
        }
        Expr::UnaryOp { op: UnaryOp::Not, expr } => collect(expr, !is_negated, parts),
        expr => {
            let part = part(expr);
            let can_fail = part.is_none() && can_fail(expr);
            parts.extend(part.map(|part| if is_negated { Part::Not(Box::new(part)) } else { part }));
            can_fail
        }
    }
}

fn can_fail(expr: &Expr) -> bool {
    use BinaryOp::{
        And, Contains, ContainsAll, ContainsAny, Eq, GetTag, Greater, GreaterEq, HasTag, In, Less, LessEq,
        NotEq, Or,
    };
    match expr {
        Expr::Literal(_) | Expr::Var(_) => false,
        Expr::UnaryOp { op: UnaryOp::Not | UnaryOp::IsEmpty, expr }
        | Expr::GetAttr { expr, .. }
        | Expr::HasAttr { expr, .. }
        | Expr::Like { expr, .. } => can_fail(expr),
        Expr::Is { expr, in_expr, .. } => can_fail(expr) || in_expr.as_deref().is_some_and(can_fail),
        Expr::IfThenElse { cond, then_expr, else_expr } => {
            [cond, then_expr, else_expr].into_iter().any(|expr| can_fail(expr))
        }
        Expr::Set(elements) => elements.iter().any(|expr| can_fail(expr)),
        Expr::BinaryOp {
            op:
                And | Or | Eq | NotEq | Less | LessEq | Greater | GreaterEq | In | Contains | ContainsAll
                | ContainsAny | GetTag | HasTag,
            left,
            right,
        } => can_fail(left) || can_fail(right),
        _ => true,
    }
}

/// What is understood of an expression: none of it can fail, and all of it is evaluated here as Cedar would.
fn part(expr: &Expr) -> Option<Part> {
    use BinaryOp::{And, Contains, Eq, Greater, GreaterEq, HasTag, In, Less, LessEq, NotEq, Or};
    Some(match expr {
        Expr::Literal(Literal::Bool(it)) => Part::Always(*it),
        Expr::UnaryOp { op: UnaryOp::Not, expr } => Part::Not(Box::new(part(expr)?)),
        Expr::GetAttr { expr, attr } if is_context(expr) && attr == "oneway" => Part::Oneway,
        Expr::HasAttr { expr, attrs } => match (role(expr)?, attrs.first().as_str(), attrs.len()) {
            (role, "customer", 1) => Part::HasCustomer(role),
            _ => return None,
        },
        Expr::Is { expr, entity_type, in_expr: None } => is_kind(role(expr)?, entity_type.0.id.as_str()),
        Expr::BinaryOp { op, left, right } => match op {
            And => Part::All(vec![part(left)?, part(right)?]),
            Or => Part::Any(vec![part(left)?, part(right)?]),
            HasTag => match &**right {
                Expr::Literal(Literal::String(key)) => Part::HasLabel(role(left)?, key.to_string()),
                _ => return None,
            },
            In => match &**right {
                Expr::Literal(Literal::EntityUID(uid)) => is_in(role(left)?, uid)?,
                _ => return None,
            },
            Contains => match &**left {
                Expr::Set(values) => {
                    let texts = values.iter().map(|value| match &**value {
                        Expr::Literal(Literal::String(text)) => Some(text.to_string()),
                        _ => None,
                    });
                    Part::Among(texts.collect::<Option<_>>()?, text(right)?)
                }
                _ => return None,
            },
            Eq => equal(left, right)?,
            NotEq => Part::Not(Box::new(equal(left, right)?)),
            Less | LessEq | Greater | GreaterEq => number(*op, left, right)?,
            _ => return None,
        },
        _ => return None,
    })
}

fn equal(left: &Expr, right: &Expr) -> Option<Part> {
    if let (Some(a), Some(b)) = (text(left), text(right)) {
        return Some(Part::Equal(a, b));
    }
    if let Some(part) = number(BinaryOp::Eq, left, right) {
        return Some(part);
    }
    match (role(left), role(right)) {
        (Some(a), Some(b)) => return Some(if a == b { Part::Always(true) } else { Part::IsSelf }),
        (Some(role), None) => return Some(is(role, entity(right)?)),
        (None, Some(role)) => return Some(is(role, entity(left)?)),
        (None, None) => {}
    }
    match (customer_of(left), customer_of(right)) {
        (Some(a), Some(b)) if a != b => Some(Part::OneCustomer),
        (Some(role), None) => in_customer(role, entity(right)?),
        (None, Some(role)) => in_customer(role, entity(left)?),
        _ => None,
    }
}

fn number(op: BinaryOp, left: &Expr, right: &Expr) -> Option<Part> {
    use BinaryOp::{Greater, GreaterEq, Less, LessEq};
    match (left, right) {
        (Expr::GetAttr { expr, attr }, Expr::Literal(Literal::Long(number))) if is_context(expr) => {
            let field = Context::NUMBERS.into_iter().find(|field| field == attr)?;
            Some(Part::Number(field, op, *number))
        }
        (Expr::Literal(Literal::Long(_)), Expr::GetAttr { .. }) => {
            let turned = match op {
                Less => Greater,
                LessEq => GreaterEq,
                Greater => Less,
                GreaterEq => LessEq,
                same => same,
            };
            number(turned, right, left)
        }
        _ => None,
    }
}

fn text(expr: &Expr) -> Option<Text> {
    Some(match expr {
        Expr::Literal(Literal::String(text)) => Text::Literal(text.to_string()),
        Expr::BinaryOp { op: BinaryOp::GetTag, left, right } => match &**right {
            Expr::Literal(Literal::String(key)) => Text::Label(role(left)?, key.to_string()),
            _ => return None,
        },
        Expr::GetAttr { expr, attr } => match (role(expr), attr.as_str()) {
            (Some(role), "name") => Text::Name(role),
            (Some(role), "type") => Text::Type(role),
            (None, "method") if is_context(expr) => Text::Method,
            (None, "protocol") if is_context(expr) => Text::Protocol,
            _ => return None,
        },
        _ => return None,
    })
}

fn is_context(expr: &Expr) -> bool {
    matches!(expr, Expr::Var(Var::Context))
}

fn role(expr: &Expr) -> Option<Role> {
    match expr {
        Expr::Var(Var::Principal) => Some(Role::Caller),
        Expr::Var(Var::Resource) => Some(Role::Target),
        _ => None,
    }
}

fn customer_of(expr: &Expr) -> Option<Role> {
    match expr {
        Expr::GetAttr { expr, attr } if attr == "customer" => role(expr),
        _ => None,
    }
}

fn entity(expr: &Expr) -> Option<&EntityUID> {
    match expr {
        Expr::Literal(Literal::EntityUID(uid)) => Some(uid),
        _ => None,
    }
}

fn named(named: &EntityOrSlot) -> Option<&EntityUID> {
    match named {
        EntityOrSlot::Entity(uid) => Some(uid),
        EntityOrSlot::Slot(_) => None,
    }
}

fn is_kind(role: Role, kind: &str) -> Part {
    match kind {
        "Device" => Part::IsDevice(role),
        "App" => Part::Not(Box::new(Part::IsDevice(role))),
        _ => Part::Always(false),
    }
}

fn is(role: Role, uid: &EntityUID) -> Part {
    if uid.ty.0.id.as_str() == "App" {
        let id = uid.eid.parse::<AppId>().ok().filter(|id| id.to_string() == uid.eid.as_str());
        return id.filter(|_| role == Role::Caller).map_or(Part::Always(false), Part::IsApp);
    }
    // An id that is not written as ours are is nobody's.
    let id = uid.eid.parse::<DeviceId>().ok().filter(|id| id.to_string() == uid.eid.as_str());
    match id.filter(|_| uid.ty.0.id.as_str() == "Device") {
        Some(id) => Part::Is(role, id),
        None => Part::Always(false),
    }
}

fn in_customer(role: Role, uid: &EntityUID) -> Option<Part> {
    if uid.ty.0.id.as_str() != "Customer" {
        return None;
    }
    let id = uid.eid.parse::<CustomerId>().ok().filter(|id| id.to_string() == uid.eid.as_str());
    Some(id.map_or(Part::Always(false), |id| Part::InCustomer(role, id)))
}

fn is_in(role: Role, uid: &EntityUID) -> Option<Part> {
    match uid.ty.0.id.as_str() {
        "Customer" => in_customer(role, uid),
        "Group" => Some(Part::InGroup(role, uid.eid.to_string())),
        "Device" | "App" => Some(is(role, uid)),
        _ => None,
    }
}

impl Part {
    fn holds(&self, caller: Caller<'_>, target: &Facts, context: &Context) -> bool {
        let of = |role: &Role| match role {
            Role::Caller => caller.device(),
            Role::Target => Some(target),
        };
        match self {
            Part::Always(it) => *it,
            Part::Not(part) => !part.holds(caller, target, context),
            Part::All(parts) => parts.iter().all(|part| part.holds(caller, target, context)),
            Part::Any(parts) => parts.iter().any(|part| part.holds(caller, target, context)),
            Part::IsSelf => caller.device().is_some_and(|caller| caller.id == target.id),
            Part::Is(role, id) => of(role).is_some_and(|it| it.id == *id),
            Part::IsApp(id) => caller.app().is_some_and(|app| app.id == *id),
            Part::IsDevice(role) => of(role).is_some(),
            Part::InCustomer(Role::Caller, id) => caller.is_in(*id),
            Part::InCustomer(Role::Target, id) => target.customer == Some(*id),
            Part::InGroup(role, group) => of(role).is_some_and(|it| in_group(it, group)),
            Part::HasCustomer(role) => of(role).is_some_and(|it| it.customer.is_some()),
            Part::OneCustomer => target.customer.is_some_and(|customer| caller.is_in(customer)),
            Part::HasLabel(role, key) => of(role).is_some_and(|it| it.labels.contains_key(key)),
            Part::Equal(a, b) => {
                let (a, b) = (a.read(caller, target, context), b.read(caller, target, context));
                a.is_some() && a == b
            }
            Part::Among(texts, it) => {
                let it = it.read(caller, target, context);
                it.is_some_and(|it| texts.iter().any(|text| text == it))
            }
            Part::Number(field, op, number) => {
                let value = context.number(field);
                match op {
                    BinaryOp::Less => value < *number,
                    BinaryOp::LessEq => value <= *number,
                    BinaryOp::Greater => value > *number,
                    BinaryOp::GreaterEq => value >= *number,
                    _ => value == *number,
                }
            }
            Part::Oneway => context.oneway,
        }
    }
}

impl Text {
    /// None: what the device lacks, or an application has not, which Cedar never gets to read.
    fn read<'a>(&'a self, caller: Caller<'a>, target: &'a Facts, context: &'a Context) -> Option<&'a str> {
        let of = |role: &Role| match role {
            Role::Caller => caller.device(),
            Role::Target => Some(target),
        };
        match self {
            Text::Literal(text) => Some(text),
            Text::Label(role, key) => of(role)?.labels.get(key).map(String::as_str),
            Text::Name(Role::Caller) => Some(caller.name()),
            Text::Name(Role::Target) => Some(&target.name),
            Text::Type(role) => Some(&of(role)?.kind),
            Text::Method => Some(&context.method),
            Text::Protocol => Some(context.protocol),
        }
    }
}
