//! Which calls have ended, and what is a listener told of each? Of what its key reaches, and no more. Pure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rpc::{AppId, CallId, DeviceId, HopRecord, Limit, NodeId, Protocol, Station};
use serde::Serialize;
use utoipa::ToSchema;

use crate::world::{Entry, Reach, Wants, World, json};

/// Calls by name that are kept in mind, and that wait for who was called, at most.
const MAX_NAMED: usize = 10_000;
/// How long the end of a call waits for who was called: two processes tell it, each after it has gathered for a moment.
const NAMED_WITHIN: Duration = Duration::from_secs(1);

/// Puts together what processes tell of calls by name: where one comes in it is known how it ended, and at an
/// authorizer whom the name means.
#[derive(Debug, Default)]
pub(crate) struct Overheard {
    named: HashMap<CallId, DeviceId>,
    /// In the order in which they came; not all are there any more.
    order: VecDeque<CallId>,
    waiting: VecDeque<(Instant, HopRecord)>,
}

impl Overheard {
    /// Takes what `process` tells; returned is a call whose end is known by now.
    pub(crate) fn take(&mut self, process: NodeId, hop: HopRecord, now: Instant) -> Option<HopRecord> {
        // An authorizer that a call came in at tells its end.
        if hop.station == Station::Authorizer && hop.call.node != process {
            let is_it = |(_, ended): &(Instant, HopRecord)| ended.call == hop.call;
            if let Some(at) = self.waiting.iter().position(is_it) {
                let (_, ended) = self.waiting.remove(at)?;
                return Some(HopRecord { to: hop.to, ..ended });
            }
            if self.order.len() >= MAX_NAMED
                && let Some(oldest) = self.order.pop_front()
            {
                self.named.remove(&oldest);
            }
            self.order.push_back(hop.call);
            self.named.insert(hop.call, hop.to);
            return None;
        }
        if hop.station != Station::Api || !hop.to.0.is_nil() {
            return Some(hop);
        }
        if let Some(to) = self.named.remove(&hop.call) {
            return Some(HopRecord { to, ..hop });
        }
        self.waiting.push_back((now + NAMED_WITHIN, hop));
        (self.waiting.len() > MAX_NAMED).then(|| self.waiting.pop_front().map(|(_, hop)| hop)).flatten()
    }

    /// One that has waited long enough: nobody says who was called.
    pub(crate) fn overdue(&mut self, now: Instant) -> Option<HopRecord> {
        self.waiting.pop_front_if(|(until, _)| *until <= now).map(|(_, hop)| hop)
    }
}

/// A call that has ended, and the devices that took part.
#[derive(Debug)]
pub(crate) struct EndedCall {
    hop: HopRecord,
    caller: Option<Arc<Entry>>,
    target: Option<Arc<Entry>>,
}

/// Who took part in a call.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(crate) enum Participant {
    /// A device.
    Device {
        #[schema(value_type = String, format = Uuid)]
        device: DeviceId,
        name: String,
    },
    /// An application.
    App {
        #[schema(value_type = String, format = Uuid)]
        app: AppId,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Told {
    call_id: String,
    caller: Option<Participant>,
    target: Option<Participant>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<&'static str>,
    ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<Protocol>,
    ended_ms: u64,
}

impl EndedCall {
    /// As the hop tells that knows how it ended.
    pub(crate) fn of(hop: HopRecord, world: &World) -> Self {
        // Calls of devices are told where they come in alone; an application's id may be some device's, too.
        let caller = (hop.station == Station::Caller).then(|| world.entry(hop.from)).flatten();
        EndedCall { hop, caller, target: world.entry(hop.to) }
    }

    /// The application that made it, if the key sees that.
    pub(crate) fn app(&self, reach: &Reach) -> Option<AppId> {
        (self.hop.station != Station::Caller).then(|| reach.app(&self.hop)).flatten()
    }

    /// Its caller and its target, as far as the key sees them.
    pub(crate) fn participants(&self, reach: &Reach) -> [Option<Participant>; 2] {
        let device = |device, entry: &Entry| Participant::Device { device, name: entry.name().to_owned() };
        let (caller, target) = (within(&self.caller, reach), within(&self.target, reach));
        let app = self.app(reach).map(|app| Participant::App { app });
        [caller.map(|it| device(self.hop.from, it)).or(app), target.map(|it| device(self.hop.to, it))]
    }

    /// What a listener is told of it; none: it is not for that one.
    pub(crate) fn told(&self, reach: &Reach, wants: &Wants) -> Option<String> {
        let hop = &self.hop;
        let is_about = |id, entry| within(entry, reach).is_some_and(|it| wants.is_about(id, it));
        let is_by_app = wants.is_about_all() && self.app(reach).is_some();
        if !is_by_app && !is_about(hop.from, &self.caller) && !is_about(hop.to, &self.target) {
            return None;
        }
        let [caller, target] = self.participants(reach);
        Some(json(&Told {
            call_id: hop.call.to_string(),
            caller,
            target,
            outcome: hop.end.as_str(),
            limit: hop.limit.map(Limit::as_str),
            ms: f64::from(hop.took_us) / 1_000.0,
            protocol: hop.protocol,
            ended_ms: hop.ended_us() / 1_000,
        }))
    }
}

fn within<'a>(entry: &'a Option<Arc<Entry>>, reach: &Reach) -> Option<&'a Entry> {
    entry.as_deref().filter(|it| reach.has(it))
}

#[cfg(test)]
mod tests {
    use bus::registry::Device;
    use rpc::{Budget, CredentialHash, CustomerId, HopEnd, HopOf, Party, TenantId};
    use uuid::Uuid;

    use super::*;

    const TENANT: TenantId = TenantId(Uuid::from_u128(1));
    const AT_API: NodeId = NodeId(5);
    const AUTHORIZER: NodeId = NodeId(6);

    fn id(number: u128) -> DeviceId {
        DeviceId(Uuid::from_u128(number))
    }

    fn hop(station: Station, from: u128, to: u128, share: (TenantId, u128)) -> HopRecord {
        let of = HopOf {
            station,
            call: CallId { node: AT_API, serial: 1 },
            from: id(from),
            to: (to > 0).then(|| id(to)),
            party: Some(Party::of(share.0, Some(CustomerId(Uuid::from_u128(share.1))))),
            budget_ms: Budget::from_ms(1_000),
            protocol: None,
        };
        HopRecord { took_us: 1_500, ..HopRecord::new(of, 2_000_000, HopEnd::Answered) }
    }

    #[test]
    fn a_call_by_name_has_its_target_whoever_is_heard_first() {
        let (mut overheard, now) = (Overheard::default(), Instant::now());
        let (unnamed, named) =
            (hop(Station::Api, 9, 0, (TENANT, 9)), hop(Station::Authorizer, 9, 2, (TENANT, 9)));
        let whole = Some(HopRecord { to: id(2), ..unnamed });
        assert_eq!(overheard.take(AUTHORIZER, named, now), None);
        assert_eq!(overheard.take(AT_API, unnamed, now), whole);
        assert_eq!(overheard.take(AT_API, unnamed, now), None);
        assert_eq!(overheard.overdue(now), None);
        assert_eq!(overheard.take(AUTHORIZER, named, now), whole);
        assert_eq!(overheard.take(AT_API, unnamed, now), None);
        assert_eq!(overheard.overdue(now + NAMED_WITHIN), Some(unnamed));
        assert_eq!(overheard.overdue(now + NAMED_WITHIN), None);
        // One that came in at an authorizer, by NATS, ends there or at a router.
        assert_eq!(overheard.take(AT_API, named, now), Some(named));
        // However many are named, those of late are known.
        for serial in 2..=MAX_NAMED as u64 + 1 {
            let call = CallId { node: AT_API, serial };
            assert_eq!(overheard.take(AUTHORIZER, HopRecord { call, ..named }, now), None);
        }
        let last = CallId { serial: 3, ..named.call };
        assert!(overheard.take(AT_API, HopRecord { call: last, ..unnamed }, now).is_some());
        assert!(overheard.named.len() <= MAX_NAMED && overheard.order.len() <= MAX_NAMED);
    }

    #[test]
    fn a_listener_is_told_of_what_its_key_reaches_alone() {
        let mut world = World::default();
        // Device 7 has the id of another tenant's application.
        for (number, tenant, customer) in
            [(1, TENANT, 1), (2, TENANT, 2), (7, TenantId(Uuid::from_u128(8)), 1)]
        {
            let device = Device {
                tenant,
                customer: Some(CustomerId(Uuid::from_u128(customer))),
                name: format!("D{number}"),
                kind: "default".into(),
                labels: [].into(),
                credential: CredentialHash("secret".into()),
                weak_token: false,
            };
            world.device(id(number), Some(device), number as u64);
        }
        let told = |hop: HopRecord, customer: Option<u128>, app: u128, wants: &Wants| {
            let customers = customer.map(|it| [CustomerId(Uuid::from_u128(it))].into());
            let app = AppId(Uuid::from_u128(app));
            let reach = Reach { app, tenant: TENANT, customers, labels: [].into() };
            let told = EndedCall::of(hop, &world).told(&reach, wants)?;
            let told: serde_json::Value = serde_json::from_str(&told).unwrap();
            let party = |name: &str| {
                let party = &told[name];
                party["name"].as_str().or(party.get("app").map(|_| "app")).unwrap_or("-").to_owned()
            };
            assert_eq!((&told["ms"], &told["endedMs"]), (&1.5.into(), &2_001.into()));
            Some(format!("{} {}", party("caller"), party("target")))
        };
        let all = Wants::default();
        let device = |from, to| hop(Station::Caller, from, to, (TENANT, 1));
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(told(device(1, 2), None, 9, &all), some("D1 D2"));
        assert_eq!(told(device(1, 2), Some(1), 9, &all), some("D1 -"));
        assert_eq!(told(device(1, 2), Some(2), 9, &all), some("- D2"));
        assert_eq!(told(device(1, 2), Some(3), 9, &all), None);
        assert_eq!(told(device(7, 7), None, 9, &all), None, "another tenant's");
        let app = |from, tenant, to| hop(Station::Api, from, to, (tenant, from));
        assert_eq!(told(app(9, TENANT, 7), Some(1), 9, &all), some("app -"), "its own");
        assert_eq!(told(app(9, TENANT, 1), Some(1), 8, &all), some("- D1"));
        assert_eq!(told(app(9, TENANT, 2), Some(1), 8, &all), None);
        assert_eq!(told(app(9, TENANT, 0), None, 8, &all), some("app -"));
        assert_eq!(told(app(1, TENANT, 0), Some(1), 8, &all), None, "it is not the device of that id");
        assert_eq!(told(app(7, TenantId(Uuid::from_u128(8)), 0), None, 7, &all), None, "of another tenant");
        let narrow = Wants { devices: [id(2)].into(), ..Wants::default() };
        assert_eq!(told(device(1, 2), None, 9, &narrow), some("D1 D2"));
        assert_eq!(told(device(1, 1), None, 9, &narrow), None);
        assert_eq!(told(app(9, TENANT, 0), None, 9, &narrow), None);
    }
}
