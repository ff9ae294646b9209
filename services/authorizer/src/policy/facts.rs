//! What is a decision made of? A device or an application, a device, an action and a context, in our words and in
//! Cedar's.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, LazyLock};

use bus::registry::{App, Device};
use cedar_policy::{
    Context as CedarContext, Entities, Entity, EntityId, EntityTypeName, EntityUid, Request,
    RestrictedExpression, Schema,
};
use rpc::{AppId, CustomerId, DeviceId, Protocol, Role};

/// What a principal wants with a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// `sendMsg`.
    Call,
    /// To see it in the answer to `getDevices`.
    List,
}

impl Action {
    /// All of them.
    pub const ALL: [Action; 2] = [Action::Call, Action::List];

    /// Its name in policies.
    pub const fn as_str(self) -> &'static str {
        match self {
            Action::Call => "call",
            Action::List => "list",
        }
    }
}

/// What policies may know of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its id.
    pub id: DeviceId,
    /// Its name.
    pub name: Arc<str>,
    /// Its type.
    pub kind: Arc<str>,
    /// Its customer, if it is assigned to one.
    pub customer: Option<CustomerId>,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}

impl Facts {
    /// Of a device of this id.
    pub fn of(id: DeviceId, device: &Device) -> Self {
        Facts {
            id,
            name: device.name.as_str().into(),
            kind: device.kind.as_str().into(),
            customer: device.customer,
            labels: device.labels.clone(),
        }
    }
}

/// What policies may know of an application.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppFacts {
    /// Its id.
    pub id: AppId,
    /// Its name.
    pub name: Arc<str>,
    /// Its role.
    pub role: Role,
    /// The customers that its scope names; none: all of the tenant.
    pub customers: Option<BTreeSet<CustomerId>>,
}

impl AppFacts {
    /// Of an application of this id.
    pub fn of(id: AppId, app: &App) -> Self {
        AppFacts { id, name: app.name.as_str().into(), role: app.role, customers: app.customers.clone() }
    }
}

/// Who wants something of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller<'a> {
    /// Another device, or itself.
    Device(&'a Facts),
    /// An application, in whose scope the device is.
    App(&'a AppFacts),
}

impl<'a> Caller<'a> {
    /// The device, if it is one.
    pub fn device(self) -> Option<&'a Facts> {
        match self {
            Caller::Device(facts) => Some(facts),
            Caller::App(_) => None,
        }
    }

    /// The application, if it is one.
    pub fn app(self) -> Option<&'a AppFacts> {
        match self {
            Caller::Device(_) => None,
            Caller::App(facts) => Some(facts),
        }
    }

    /// Its name.
    pub fn name(self) -> &'a str {
        match self {
            Caller::Device(facts) => &facts.name,
            Caller::App(facts) => &facts.name,
        }
    }

    /// Whether it is that customer's, or one of its customers' where it is an application.
    pub(super) fn is_in(self, customer: CustomerId) -> bool {
        match self {
            Caller::Device(facts) => facts.customer == Some(customer),
            Caller::App(facts) => facts.customers.as_ref().is_some_and(|all| all.contains(&customer)),
        }
    }
}

impl<'a> From<&'a Facts> for Caller<'a> {
    fn from(facts: &'a Facts) -> Self {
        Caller::Device(facts)
    }
}

impl<'a> From<&'a AppFacts> for Caller<'a> {
    fn from(facts: &'a AppFacts) -> Self {
        Caller::App(facts)
    }
}

/// What policies may know of a request, beside who and whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// `sendMsg` or `getDevices`; of an application's call, what the device reads.
    pub method: Cow<'static, str>,
    /// How the caller is connected; empty where its node does not tell it.
    pub protocol: &'static str,
    /// The caller wants no answer.
    pub oneway: bool,
    /// What is left of the call's time.
    pub timeout_ms: u32,
    /// Of the body.
    pub size_bytes: u32,
    /// 0 to 23, at the tenant's offset from UTC.
    pub hour: u8,
    /// 1, Monday, to 7.
    pub weekday: u8,
}

impl Context {
    /// The fields that are numbers.
    pub const NUMBERS: [&str; 4] = ["timeout", "size", "hour", "weekday"];

    /// Of a call at a time in seconds since 1970, at an offset from UTC in minutes.
    pub fn of_call(oneway: bool, timeout_ms: u32, size_bytes: u32, unix_s: u64, utc_offset_min: i16) -> Self {
        // 1970 began on a Thursday.
        const FIRST_WEEKDAY: i64 = 3;
        let local_s = i64::try_from(unix_s).unwrap_or(i64::MAX / 2) + i64::from(utc_offset_min) * 60;
        let hour = local_s.div_euclid(3_600).rem_euclid(24);
        let weekday = (local_s.div_euclid(86_400) + FIRST_WEEKDAY).rem_euclid(7) + 1;
        let method = "sendMsg".into();
        let (hour, weekday) = (hour as u8, weekday as u8);
        Context { method, protocol: "", oneway, timeout_ms, size_bytes, hour, weekday }
    }

    /// The same, of a caller that is connected so.
    pub fn over(self, protocol: Option<Protocol>) -> Self {
        Context { protocol: protocol.map_or("", Protocol::as_str), ..self }
    }

    /// The same, of an application, which calls by that method.
    pub fn by_method(self, method: &str) -> Self {
        Context { method: method.to_owned().into(), protocol: "", ..self }
    }

    /// The same circumstances, of a list.
    pub fn as_list(&self) -> Self {
        Context { method: "getDevices".into(), oneway: false, timeout_ms: 0, size_bytes: 0, ..self.clone() }
    }

    /// One of [`NUMBERS`](Self::NUMBERS).
    pub(super) fn number(&self, field: &str) -> i64 {
        match field {
            "timeout" => self.timeout_ms.into(),
            "size" => self.size_bytes.into(),
            "hour" => self.hour.into(),
            _ => self.weekday.into(),
        }
    }

    /// Of a `getDevices` at such a time.
    pub fn of_list(unix_s: u64, utc_offset_min: i16) -> Self {
        Context::of_call(false, 0, 0, unix_s, utc_offset_min).as_list()
    }
}

/// Every label of a group's name that is a device's makes it one of the group: `room=12` is all devices with the label
/// `room` of value `12`. A key may hold `=` itself, and so there may be several readings.
pub(super) fn readings(group: &str) -> impl Iterator<Item = (&str, &str)> {
    let at = group.match_indices('=').map(|(place, _)| place);
    at.filter_map(|place| Some((group.get(..place)?, group.get(place + 1..)?)))
}

/// Whether a device is one of a group.
pub(super) fn in_group(facts: &Facts, group: &str) -> bool {
    readings(group).any(|(key, value)| facts.labels.get(key).is_some_and(|has| has == value))
}

/// The schema that every policy is validated against.
pub(super) const SCHEMA: &str = include_str!("schema.cedarschema");

/// Names that are made once. None only if the schema in this program were broken, which a test would show.
pub(super) struct Words {
    pub(super) schema: Schema,
    device: EntityTypeName,
    app: EntityTypeName,
    customer: EntityTypeName,
    group: EntityTypeName,
    action: EntityTypeName,
}

pub(super) fn words() -> Option<&'static Words> {
    static WORDS: LazyLock<Option<Words>> = LazyLock::new(|| {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).ok()?;
        let name = |name: &str| name.parse().ok();
        let (device, customer) = (name("Device")?, name("Customer")?);
        Some(Words {
            schema,
            device,
            app: name("App")?,
            customer,
            group: name("Group")?,
            action: name("Action")?,
        })
    });
    WORDS.as_ref()
}

impl Words {
    /// A question in Cedar's words.
    pub(super) fn question(
        &self,
        caller: Caller<'_>,
        action: Action,
        target: &Facts,
        context: &Context,
    ) -> Option<(Request, Entities)> {
        let uid = |kind: &EntityTypeName, id: &str| {
            EntityUid::from_type_name_and_id(kind.clone(), EntityId::new(id))
        };
        let entity = |facts: &Facts| {
            let customer = facts.customer.map(|customer| uid(&self.customer, &customer.to_string()));
            let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
            let mut attributes =
                vec![("name".to_owned(), text(&facts.name)), ("type".to_owned(), text(&facts.kind))];
            if let Some(customer) = &customer {
                attributes
                    .push(("customer".to_owned(), RestrictedExpression::new_entity_uid(customer.clone())));
            }
            let groups = facts.labels.iter().map(|(key, value)| uid(&self.group, &format!("{key}={value}")));
            let parents: HashSet<_> = customer.into_iter().chain(groups).collect();
            let labels = facts.labels.iter().map(|(key, value)| (key.clone(), text(value)));
            Entity::new_with_tags(uid(&self.device, &facts.id.to_string()), attributes, parents, labels).ok()
        };
        let mut entities = vec![entity(target)?];
        let principal = match caller {
            Caller::Device(caller) => {
                if caller.id != target.id {
                    entities.push(entity(caller)?);
                }
                uid(&self.device, &caller.id.to_string())
            }
            Caller::App(caller) => {
                let principal = uid(&self.app, &caller.id.to_string());
                entities.push(self.app_entity(principal.clone(), caller)?);
                principal
            }
        };
        let entities = Entities::from_entities(entities, None).ok()?;
        let number = |number: i64| RestrictedExpression::new_long(number);
        let context = CedarContext::from_pairs([
            ("method".to_owned(), RestrictedExpression::new_string(context.method.clone().into_owned())),
            ("protocol".to_owned(), RestrictedExpression::new_string(context.protocol.to_owned())),
            ("oneway".to_owned(), RestrictedExpression::new_bool(context.oneway)),
            ("timeout".to_owned(), number(context.timeout_ms.into())),
            ("size".to_owned(), number(context.size_bytes.into())),
            ("hour".to_owned(), number(context.hour.into())),
            ("weekday".to_owned(), number(context.weekday.into())),
        ]);
        let request = Request::new(
            principal,
            uid(&self.action, action.as_str()),
            uid(&self.device, &target.id.to_string()),
            context.ok()?,
            None,
        );
        Some((request.ok()?, entities))
    }

    fn app_entity(&self, principal: EntityUid, facts: &AppFacts) -> Option<Entity> {
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let uid = |id: &CustomerId| {
            EntityUid::from_type_name_and_id(self.customer.clone(), EntityId::new(id.to_string()))
        };
        let customers = facts.customers.iter().flatten().map(uid);
        let mut attributes =
            vec![("name".to_owned(), text(&facts.name)), ("role".to_owned(), text(facts.role.as_str()))];
        if facts.customers.is_some() {
            let customers = customers.clone().map(RestrictedExpression::new_entity_uid);
            attributes.push(("customers".to_owned(), RestrictedExpression::new_set(customers)));
        }
        Entity::new(principal, attributes.into_iter().collect(), customers.collect()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_fits_the_schema() {
        assert!(words().is_some());
    }

    #[test]
    fn hours_and_weekdays_are_those_of_the_tenant() {
        // 2026-11-26, a Thursday, 23:30 UTC.
        let at = 1_795_735_800;
        let when = |offset| {
            let context = Context::of_list(at, offset);
            (context.weekday, context.hour)
        };
        assert_eq!(when(0), (4, 23));
        assert_eq!(when(30), (5, 0));
        assert_eq!(when(-24 * 60), (3, 23));
        assert_eq!(Context::of_list(0, -1).hour, 23);
    }
}
