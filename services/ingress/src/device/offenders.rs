//! Who hits limits here, and who comes in again and again? The most of each, by device and by customer, in memory that
//! does not grow with them. Pure.
//!
//! Space-Saving (Metwally, Agrawal, El Abbadi: Efficient Computation of Frequent and Top-k Elements in Data Streams,
//! 2005): who is not among those counted takes the place of the least of them, and his count with it. So nobody is
//! missing who did it more often than one time in [`KEPT`], and no count is too low.

use std::time::{Duration, Instant};

use rpc::{CustomerId, DeviceId, Limit, TenantId};
use serde::Serialize;

/// How many are counted, of each kind.
pub const KEPT: usize = 64;
/// How many of them are shown.
const SHOWN: usize = 20;
/// What is shown goes back so far, and up to as far again.
pub const WINDOW: Duration = Duration::from_secs(60);

/// A device in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Who {
    /// Which.
    pub device: DeviceId,
    /// Whose.
    #[serde(flatten)]
    pub owner: Owner,
}

/// A customer; without one, those devices of a tenant that belong to none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Owner {
    /// Of which tenant.
    pub tenant: TenantId,
    /// Which.
    pub customer: Option<CustomerId>,
}

/// One of those who did it most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Offender<K> {
    /// Who.
    #[serde(flatten)]
    pub who: K,
    /// How often, at most.
    pub times: u64,
    /// By how much that may be too high.
    pub over: u64,
    /// Which limit it was the last time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<&'static str>,
}

/// Those who did one thing most, the worst first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Offence {
    /// How often it was done by all.
    pub times: u64,
    /// By device.
    pub devices: Vec<Offender<Who>>,
    /// By customer.
    pub customers: Vec<Offender<Owner>>,
}

impl Offence {
    /// The worst device, if it did it so often.
    pub fn worst_device(&self, times: u64) -> Option<&Offender<Who>> {
        self.devices.first().filter(|it| it.times - it.over >= times)
    }

    /// The worst customer, if its devices did it so often.
    pub fn worst_customer(&self, times: u64) -> Option<&Offender<Owner>> {
        self.customers.first().filter(|it| it.times - it.over >= times)
    }
}

/// What a node shows of its offenders.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// How far it goes back, in seconds: one to two windows.
    pub seconds: u64,
    /// Who hit limits.
    pub limits: Offence,
    /// Who came in.
    pub connects: Offence,
}

/// The offenders of one node.
#[derive(Debug)]
pub struct Offenders {
    since: Instant,
    before_since: Instant,
    limits: Counts,
    connects: Counts,
}

impl Offenders {
    /// Nobody has done anything.
    pub fn new(now: Instant) -> Self {
        let (limits, connects) = (Counts::default(), Counts::default());
        Offenders { since: now, before_since: now, limits, connects }
    }

    /// A device hit a limit.
    pub fn hit(&mut self, who: Who, limit: Limit, now: Instant) {
        self.turn(now);
        self.limits.add(who, Some(limit));
    }

    /// A device came in.
    pub fn came(&mut self, who: Who, now: Instant) {
        self.turn(now);
        self.connects.add(who, None);
    }

    /// Who did it most lately.
    pub fn report(&mut self, now: Instant) -> Report {
        self.turn(now);
        let seconds = now.saturating_duration_since(self.before_since).as_secs();
        Report { seconds, limits: self.limits.offence(), connects: self.connects.offence() }
    }

    /// Begins with the next window once this one is over.
    fn turn(&mut self, now: Instant) {
        let age = now.saturating_duration_since(self.since);
        if age < WINDOW {
            return;
        }
        let is_known = age < WINDOW * 2;
        self.before_since = if is_known { self.since } else { now };
        self.since = now;
        for counts in [&mut self.limits, &mut self.connects] {
            counts.devices.turn(is_known);
            counts.customers.turn(is_known);
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    devices: Windows<Who>,
    customers: Windows<Owner>,
}

impl Counts {
    fn add(&mut self, who: Who, limit: Option<Limit>) {
        let limit = limit.map(Limit::as_str);
        self.devices.now.add(who, limit);
        self.customers.now.add(who.owner, limit);
    }

    fn offence(&self) -> Offence {
        Offence {
            times: self.devices.now.times + self.devices.before.times,
            devices: self.devices.worst(),
            customers: self.customers.worst(),
        }
    }
}

#[derive(Debug)]
struct Windows<K> {
    now: Top<K>,
    before: Top<K>,
}

impl<K> Default for Windows<K> {
    fn default() -> Self {
        Windows { now: Top::default(), before: Top::default() }
    }
}

impl<K: Copy + Eq> Windows<K> {
    fn turn(&mut self, is_known: bool) {
        let now = std::mem::take(&mut self.now);
        self.before = if is_known { now } else { Top::default() };
    }

    fn worst(&self) -> Vec<Offender<K>> {
        let mut all = self.now.counted.clone();
        for it in &self.before.counted {
            match all.iter_mut().find(|counted| counted.who == it.who) {
                Some(counted) => {
                    counted.times += it.times;
                    counted.over += it.over;
                }
                None => all.push(it.clone()),
            }
        }
        all.sort_by_key(|it| std::cmp::Reverse(it.times));
        all.truncate(SHOWN);
        all
    }
}

#[derive(Debug)]
struct Top<K> {
    times: u64,
    counted: Vec<Offender<K>>,
}

impl<K> Default for Top<K> {
    fn default() -> Self {
        Top { times: 0, counted: Vec::new() }
    }
}

impl<K: Copy + Eq> Top<K> {
    fn add(&mut self, who: K, limit: Option<&'static str>) {
        self.times += 1;
        if let Some(counted) = self.counted.iter_mut().find(|counted| counted.who == who) {
            counted.times += 1;
            counted.limit = limit;
        } else if self.counted.len() < KEPT {
            self.counted.push(Offender { who, times: 1, over: 0, limit });
        } else if let Some(least) = self.counted.iter_mut().min_by_key(|counted| counted.times) {
            *least = Offender { who, times: least.times + 1, over: least.times, limit };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;

    fn device(number: u128) -> Who {
        let customer = Some(CustomerId(Uuid::from_u128(number / 10)));
        Who {
            device: DeviceId(Uuid::from_u128(number)),
            owner: Owner { tenant: TenantId(Uuid::nil()), customer },
        }
    }

    #[test]
    fn the_worst_come_first_and_are_forgotten_after_two_windows() {
        let start = Instant::now();
        let mut offenders = Offenders::new(start);
        for number in [1, 2, 2, 11, 2] {
            offenders.hit(device(number), Limit::CallRate, start);
        }
        offenders.came(device(7), start);
        offenders.hit(device(1), Limit::Mailbox, start + WINDOW);
        let report = offenders.report(start + WINDOW);
        assert_eq!((report.seconds, report.limits.times, report.connects.times), (60, 6, 1));
        let devices: Vec<_> = report.limits.devices.iter().map(|it| (it.who, it.times, it.limit)).collect();
        let expected = [
            (device(2), 3, Some("call_rate")),
            (device(1), 2, Some("mailbox")),
            (device(11), 1, Some("call_rate")),
        ];
        assert_eq!(devices, expected);
        let customers: Vec<_> = report.limits.customers.iter().map(|it| (it.who, it.times)).collect();
        assert_eq!(customers, [(device(1).owner, 5), (device(11).owner, 1)]);
        let later = offenders.report(start + WINDOW * 2);
        assert_eq!((later.limits.times, later.connects.times), (1, 0));
        assert_eq!(offenders.report(start + WINDOW * 9).limits.devices, []);
    }

    #[test]
    fn it_is_shown_as_it_is_documented() {
        let start = Instant::now();
        let mut offenders = Offenders::new(start);
        offenders.hit(device(1), Limit::CallRate, start);
        let shown = serde_json::to_value(offenders.report(start)).unwrap();
        let who = serde_json::json!({
            "device": device(1).device, "tenant": Uuid::nil(), "customer": Uuid::nil(),
            "times": 1, "over": 0, "limit": "call_rate",
        });
        assert_eq!(shown["limits"]["devices"][0], who);
        assert_eq!(shown["connects"], serde_json::json!({"times": 0, "devices": [], "customers": []}));
    }

    proptest! {
        /// Whoever comes how often: memory is bounded, nobody frequent is missing, every count is as good as it says.
        #[test]
        fn counts_are_as_good_as_they_say(came in proptest::collection::vec(
            prop_oneof![3 => 0u128..5, 2 => 0u128..1_000], 0..3_000,
        )) {
            let now = Instant::now();
            let (mut offenders, mut truth) = (Offenders::new(now), BTreeMap::<_, u64>::new());
            for number in &came {
                offenders.came(device(*number), now);
                *truth.entry(device(*number).device).or_default() += 1;
            }
            let counted = &offenders.connects.devices.now.counted;
            prop_assert!(counted.len() <= KEPT);
            prop_assert_eq!(counted.iter().map(|it| it.times).sum::<u64>(), came.len() as u64);
            for it in counted {
                let times = truth[&it.who.device];
                prop_assert!(it.times - it.over <= times && times <= it.times);
            }
            for (device, times) in truth {
                let is_counted = counted.iter().any(|it| it.who.device == device);
                prop_assert!(is_counted || times <= (came.len() / KEPT) as u64);
            }
        }
    }
}
