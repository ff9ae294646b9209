//! How much of this node may one customer take? A part of its places for calls, deliveries and devices.

use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use boot::config::Settings;
use rpc::{Limit, NoPlace, Party, Place, Protocol, Rate, Rates, Shares, percent_of};

/// The places of one node.
#[derive(Debug)]
pub struct NodeShares {
    calls: Shares<Party>,
    /// Of `calls`, those that may wait for their target.
    waits: Shares<Party>,
    rates: Rates<Party>,
    /// How often each customer is refused at once.
    refusals: Rates<Party>,
    deliveries: Shares<Party>,
    /// Telemetry and attributes that NATS is yet to take: each is a message of the node to itself.
    uplinks: Shares<Party>,
    /// MQTT's for as long as it lasts, HTTP's for as long as a request of a device is answered.
    connections: Shares<Party>,
    /// Devices that are kept in mind between their requests.
    http: Shares<Party>,
    coap: Shares<Party>,
    /// None: as many as they like.
    addresses: Option<Shares<IpAddr>>,
}

/// The places of a call that is in flight.
#[derive(Debug)]
pub struct CallPlaces {
    _call: Place<Party>,
    _wait: Option<Place<Party>>,
}

/// A call that would be more than its customer's part.
#[derive(Debug, PartialEq, Eq)]
pub struct NotHis {
    /// Of what.
    pub limit: Limit,
    /// When to read on from the connection that asked, if not now. To refuse costs the node nearly as much as a call,
    /// and there is no end to what one customer's connections can ask for.
    pub paced_until: Option<Instant>,
}

/// How many calls of a customer are refused a second before his connections are read later, and how much later at most.
const REFUSALS: u32 = 500;
const MAX_PACE: Duration = Duration::from_secs(2);

impl NodeShares {
    /// Of a node that may have so many connections.
    pub fn new(settings: &Settings, max_connections: usize) -> Self {
        let Settings { shares, nats, ingress, http, coap, .. } = settings;
        let of = |max| Shares::percent(max, shares.per_customer_percent);
        let max_calls = nats.max_pending_asks;
        let waiting = |places| percent_of(places, shares.waiting_percent);
        let calls_per_second = match ingress.calls_per_second_per_customer {
            0 => ingress.calls_per_second_per_device.saturating_mul(100),
            told => told,
        };
        let rates = |per_second| Rates::new(Rate { per_second, burst: per_second });
        NodeShares {
            calls: of(max_calls),
            waits: Shares::new(
                waiting(max_calls),
                waiting(percent_of(max_calls, shares.per_customer_percent)),
            ),
            rates: rates(calls_per_second),
            refusals: rates(REFUSALS),
            deliveries: of(ingress.max_deliveries),
            uplinks: of(max_calls),
            connections: of(max_connections),
            http: of(http.max_sessions),
            // Each may come to observe.
            coap: of(coap.max_sessions.min(coap.max_observers)),
            addresses: match ingress.max_connections_per_address {
                0 => None,
                max => Some(Shares::new(usize::MAX, max)),
            },
        }
    }

    /// The settings have changed: who has more than he may now keeps it.
    pub fn change(&self, settings: &Settings, max_connections: usize) {
        let new = NodeShares::new(settings, max_connections);
        let pairs = [
            (&self.calls, &new.calls),
            (&self.waits, &new.waits),
            (&self.deliveries, &new.deliveries),
            (&self.uplinks, &new.uplinks),
            (&self.connections, &new.connections),
            (&self.http, &new.http),
            (&self.coap, &new.coap),
        ];
        pairs.into_iter().for_each(|(shares, new)| shares.resize_as(new));
        self.rates.change_as(&new.rates);
    }

    /// For a call of a device; `waits` when it may wait for its target to connect.
    ///
    /// # Errors
    /// With the limit that is reached.
    pub fn call(&self, party: Party, waits: bool, now: Instant) -> Result<CallPlaces, NotHis> {
        self.try_call(party, waits, now).map_err(|limit| {
            let paced_until = self.refusals.take_later(party, MAX_PACE, now);
            NotHis { limit, paced_until }
        })
    }

    fn try_call(&self, party: Party, waits: bool, now: Instant) -> Result<CallPlaces, Limit> {
        if !self.rates.take(party, now) {
            return Err(Limit::CustomerCallRate);
        }
        let call =
            self.calls.take(party).map_err(|why| limit(why, Limit::CustomerCalls, Limit::PendingAsks))?;
        let wait = waits.then(|| self.waits.take(party)).transpose();
        let wait = wait.map_err(|why| limit(why, Limit::CustomerWaits, Limit::Waits))?;
        Ok(CallPlaces { _call: call, _wait: wait })
    }

    /// For a call to a device.
    ///
    /// # Errors
    /// With the limit that is reached.
    pub fn delivery(&self, party: Party) -> Result<Place<Party>, Limit> {
        self.deliveries.take(party).map_err(|why| limit(why, Limit::CustomerDeliveries, Limit::Deliveries))
    }

    /// For telemetry or attributes of a device.
    ///
    /// # Errors
    /// With the limit that is reached.
    pub fn uplink(&self, party: Party) -> Result<Place<Party>, Limit> {
        self.uplinks.take(party).map_err(|why| limit(why, Limit::CustomerUplinks, Limit::PendingAsks))
    }

    /// For a visitor, for as long as he is known.
    ///
    /// # Errors
    /// With the limit that is reached.
    pub fn visitor(&self, party: Party, protocol: Protocol) -> Result<Place<Party>, Limit> {
        let (shares, all) = match protocol {
            Protocol::Mqtt => (&self.connections, Limit::Connections),
            Protocol::Http => (&self.http, Limit::Sessions),
            Protocol::Coap => (&self.coap, Limit::Sessions),
        };
        shares.take(party).map_err(|why| limit(why, Limit::CustomerSessions, all))
    }

    /// For a connection from there; none is needed where there is no limit.
    ///
    /// # Errors
    /// With the limit that is reached.
    pub fn connection(&self, from: IpAddr) -> Result<Option<Place<IpAddr>>, Limit> {
        let place = self.addresses.as_ref().map(|addresses| addresses.take(network(from)));
        place.transpose().map_err(|_| Limit::AddressConnections)
    }

    /// For a device's request over HTTP, for as long as it occupies its connection.
    ///
    /// # Errors
    /// With the limit that is reached.
    pub fn request(&self, party: Party) -> Result<Place<Party>, Limit> {
        self.connections.take(party).map_err(|why| limit(why, Limit::CustomerSessions, Limit::Connections))
    }
}

/// Whose connections count together: those of an IPv4 address, or of an IPv6 network that one subscriber has.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

fn limit(why: NoPlace, part: Limit, any: Limit) -> Limit {
    match why {
        NoPlace::Part => part,
        NoPlace::Any => any,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::{CustomerId, TenantId};
    use uuid::Uuid;

    fn party(customer: u128) -> Party {
        Party::of(TenantId(Uuid::from_u128(1)), Some(CustomerId(Uuid::from_u128(customer))))
    }

    fn now() -> Instant {
        Instant::now()
    }

    fn shares() -> NodeShares {
        let mut settings = Settings::default();
        settings.nats.max_pending_asks = 100;
        settings.ingress.max_deliveries = 20;
        (settings.http.max_sessions, settings.coap.max_sessions) = (10, 30);
        NodeShares::new(&settings, 20)
    }

    #[test]
    fn calls_that_wait_leave_room_for_those_that_do_not() {
        let shares = shares();
        let greedy: Vec<_> = (0..5).map(|_| shares.call(party(1), true, now()).unwrap()).collect();
        assert_eq!(shares.call(party(1), true, now()).unwrap_err().limit, Limit::CustomerWaits);
        let running: Vec<_> = (0..5).map(|_| shares.call(party(1), false, now()).unwrap()).collect();
        assert_eq!(shares.call(party(1), false, now()).unwrap_err().limit, Limit::CustomerCalls);
        assert!(shares.call(party(2), true, now()).is_ok(), "nobody else notices");
        let all: Vec<_> =
            (3..12).flat_map(|it| [it; 5]).map(|it| shares.call(party(it), true, now()).unwrap()).collect();
        assert_eq!(shares.call(party(12), true, now()).unwrap_err().limit, Limit::Waits);
        assert!(shares.call(party(12), false, now()).is_ok());
        drop((greedy, running, all));
        assert!(shares.call(party(1), true, now()).is_ok());
    }

    #[test]
    fn a_refused_wait_keeps_no_place() {
        let shares = shares();
        let _greedy: Vec<_> = (0..5).map(|_| shares.call(party(1), true, now()).unwrap()).collect();
        (0..100).for_each(|_| assert!(shares.call(party(1), true, now()).is_err()));
        assert_eq!((shares.calls.taken(), shares.waits.taken()), (5, 5));
    }

    #[test]
    fn who_asks_again_and_again_is_refused_so_often_and_no_more() {
        let (shares, start) = (shares(), now());
        let _all: Vec<_> = (0..10).map(|_| shares.call(party(1), false, start).unwrap()).collect();
        let paced_until = |party, now| shares.call(party, false, now).unwrap_err().paced_until;
        assert!((0..REFUSALS).all(|_| paced_until(party(1), start).is_none()), "a burst is refused at once");
        // A thousand connections that are read again once they were told.
        let mut reads: Vec<_> = vec![start; 1_000];
        let (end, mut told) = (start + Duration::from_secs(10), 0);
        while let Some(next) = reads.iter_mut().min().filter(|it| **it < end) {
            *next = paced_until(party(1), *next).expect("the burst is over");
            told += 1;
        }
        assert!((4_900..=6_000).contains(&told), "{told} in 10 s");
        let _his: Vec<_> = (0..10).map(|_| shares.call(party(2), false, end).unwrap()).collect();
        assert_eq!(paced_until(party(2), end), None, "nobody else waits");
    }

    #[test]
    fn an_address_has_its_connections() {
        let mut settings = Settings::default();
        let shares = NodeShares::new(&settings, 20);
        assert!(shares.connection([10, 0, 0, 1].into()).unwrap().is_none());
        settings.ingress.max_connections_per_address = 1;
        let shares = NodeShares::new(&settings, 20);
        let from = |text: &str| shares.connection(text.parse().unwrap());
        let _held =
            [from("10.0.0.1").unwrap(), from("2001:db8::1").unwrap(), from("::ffff:10.0.0.2").unwrap()];
        for same in ["10.0.0.1", "::ffff:10.0.0.1", "2001:db8::ffff:1:2:3", "10.0.0.2"] {
            assert_eq!(from(same).unwrap_err(), Limit::AddressConnections, "{same}");
        }
        assert!(from("10.0.0.3").is_ok() && from("2001:db8:0:1::1").is_ok());
    }

    #[test]
    fn each_protocol_has_its_places() {
        let shares = shares();
        for (protocol, part) in [(Protocol::Mqtt, 2), (Protocol::Http, 1), (Protocol::Coap, 3)] {
            let held: Vec<_> = (0..part).map(|_| shares.visitor(party(1), protocol).unwrap()).collect();
            assert_eq!(shares.visitor(party(1), protocol).unwrap_err(), Limit::CustomerSessions);
            assert!(shares.visitor(party(2), protocol).is_ok());
            assert_eq!(held.len(), part);
        }
        let _requests = (shares.request(party(3)).unwrap(), shares.request(party(3)).unwrap());
        assert_eq!(shares.request(party(3)).unwrap_err(), Limit::CustomerSessions);
        let _deliveries = (shares.delivery(party(1)).unwrap(), shares.delivery(party(1)).unwrap());
        assert_eq!(shares.delivery(party(1)).unwrap_err(), Limit::CustomerDeliveries);
    }
}
