//! Whose key is this, and may its application call now? An authorizer says the one, once a minute for each key; limits
//! the other.
//!
//! What is remembered here decides nothing but limits and words: each call bears its key's hash, and the authorizer
//! that judges it looks for itself. So a key that was ended ends with the registry's feed, whatever stands here.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use boot::config::{self, Networks};
use bus::registry::AppKey;
use bus::{AskError, Bus};
use parking_lot::Mutex;
use rpc::{
    AppAsk, AppDevices, AppId, AppIdentity, AppReply, AppRequest, CredentialHash, Limit, NoPlace, Place,
    Rate, Rates, Shares, Sought, wire,
};
use std::sync::Arc;
use tokio::sync::Semaphore;

use crate::metrics::Meters;

/// How long an authorizer's word on a key is not asked for again.
const KNOWN_FOR: Duration = Duration::from_secs(60);
/// Keys, and applications, that are kept in mind at once: beyond it those that are not in use are forgotten.
const MAX_KNOWN: usize = 10_000;
/// Keys that may be asked about at a time: whoever makes keys up waits for himself.
const MAX_ASKED: usize = 64;
/// How long an authorizer may take to say whom a key is for.
const WHO_WAIT: Duration = Duration::from_secs(5);

/// What an application may do at a time, on one copy.
pub(crate) struct Keys {
    bus: Bus,
    known: Remembered,
    asking: Semaphore,
    in_flight: Shares<AppId>,
    rates: Rates<AppId>,
    meters: Meters,
}

/// Whom keys are for, as authorizers have said of late.
#[derive(Default)]
struct Remembered(Mutex<HashMap<CredentialHash, Known>>);

impl Remembered {
    /// The hash of a key that was shown, and whose it is if that is known.
    fn read(&self, shown: Option<&str>) -> Result<(CredentialHash, Option<Arc<Caller>>), NotLetIn> {
        let credential = shown.and_then(AppKey::parse).ok_or(NotLetIn::NoKey)?.credential();
        let known = self.0.lock();
        let known = known.get(&credential).filter(|it| it.asked.elapsed() < KNOWN_FOR);
        let caller = known.map(|it| Arc::clone(&it.caller));
        Ok((credential, caller))
    }

    fn keep(&self, caller: &Arc<Caller>) {
        let mut known = self.0.lock();
        if known.len() >= MAX_KNOWN {
            known.retain(|_, it| it.asked.elapsed() < KNOWN_FOR);
            if known.len() >= MAX_KNOWN {
                known.clear();
            }
        }
        let one = Known { caller: Arc::clone(caller), asked: Instant::now() };
        known.insert(caller.credential.clone(), one);
    }

    fn forget(&self, credential: &CredentialHash) {
        self.0.lock().remove(credential);
    }
}

struct Known {
    caller: Arc<Caller>,
    asked: Instant,
}

/// An application that has shown its key.
#[derive(Debug)]
pub(crate) struct Caller {
    pub(crate) credential: CredentialHash,
    pub(crate) identity: AppIdentity,
    /// From where its key is taken; none: from everywhere.
    pub(crate) networks: Option<Networks>,
}

/// Why nobody is let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotLetIn {
    /// No key was shown, or what is none.
    NoKey,
    /// Nobody has that key, or not any more.
    Unknown,
    /// No authorizer says whose it is.
    Unavailable,
}

impl Keys {
    pub(crate) fn new(bus: Bus, settings: &config::Api) -> Self {
        Keys {
            bus,
            known: Remembered::default(),
            asking: Semaphore::new(MAX_ASKED),
            in_flight: Shares::new(settings.max_calls_in_flight, settings.max_calls_in_flight_per_app),
            rates: Rates::new(Rate {
                per_second: settings.calls_per_second_per_app,
                burst: settings.call_burst_per_app,
            }),
            meters: Meters::new(),
        }
    }

    pub(crate) fn meters(&self) -> &Meters {
        &self.meters
    }

    /// Whose key that is.
    pub(crate) async fn caller(&self, shown: Option<&str>) -> Result<Arc<Caller>, NotLetIn> {
        match self.known.read(shown)? {
            (_, Some(caller)) => Ok(caller),
            (credential, None) => self.ask(credential).await,
        }
    }

    /// Asks about a key again: an authorizer has refused it, or something else.
    pub(crate) async fn still(&self, caller: &Caller) -> Result<(), NotLetIn> {
        self.again(caller).await.map(|_| ())
    }

    /// The same, and who it is now.
    pub(crate) async fn again(&self, caller: &Caller) -> Result<Arc<Caller>, NotLetIn> {
        self.ask(caller.credential.clone()).await
    }

    async fn ask(&self, credential: CredentialHash) -> Result<Arc<Caller>, NotLetIn> {
        let question = wire::encode(&AppRequest { credential: credential.clone(), ask: AppAsk::Who }, b"");
        let asked = tokio::time::timeout(WHO_WAIT, async {
            // Closed by nobody.
            let _one = self.asking.acquire().await;
            self.bus.ask(self.bus.subjects().app(), question, WHO_WAIT).await
        });
        let reply = asked.await.unwrap_or(Err(AskError::Expired)).map_err(|error| {
            tracing::warn!(%error, "no authorizer says whose a key is");
            NotLetIn::Unavailable
        })?;
        match wire::decode::<AppReply>(&reply) {
            Ok((AppReply::Identity(identity), _)) => {
                // What cannot be read is nobody's.
                let networks =
                    identity.networks.as_ref().map(|all| all.join(",").parse().unwrap_or_default());
                let caller = Arc::new(Caller { credential, identity, networks });
                self.known.keep(&caller);
                Ok(caller)
            }
            Ok((AppReply::Refused, _)) => {
                self.known.forget(&credential);
                Err(NotLetIn::Unknown)
            }
            Ok((AppReply::Unavailable | AppReply::Devices(_), _)) | Err(_) => Err(NotLetIn::Unavailable),
        }
    }

    /// A page of the devices that an application seeks. None: nobody says who is there.
    pub(crate) async fn devices(&self, caller: &Caller, sought: Sought) -> Result<AppDevices, NotLetIn> {
        let request = AppRequest { credential: caller.credential.clone(), ask: AppAsk::Devices(sought) };
        let asked = self.bus.ask(self.bus.subjects().app(), wire::encode(&request, b""), WHO_WAIT).await;
        let reply = asked.map_err(|error| {
            tracing::warn!(%error, "no authorizer says which devices there are");
            NotLetIn::Unavailable
        })?;
        match wire::decode::<AppReply>(&reply) {
            Ok((AppReply::Devices(page), _)) => Ok(page),
            Ok((AppReply::Refused, _)) => {
                self.known.forget(&caller.credential);
                Err(NotLetIn::Unknown)
            }
            Ok((AppReply::Identity(_) | AppReply::Unavailable, _)) | Err(_) => Err(NotLetIn::Unavailable),
        }
    }

    /// A place for one call of an application, until it is dropped.
    pub(crate) fn place(&self, app: AppId, now: Instant) -> Result<Place<AppId>, Limit> {
        self.place_now(app, now).inspect_err(|limit| self.meters.limit_hit(*limit))
    }

    /// The same for who waits where there is none: it counts as refused only once nobody waits any more.
    pub(crate) fn place_now(&self, app: AppId, now: Instant) -> Result<Place<AppId>, Limit> {
        let place = self.in_flight.take(app).map_err(|full| match full {
            NoPlace::Part => Limit::AppInFlight,
            NoPlace::Any => Limit::PendingAsks,
        })?;
        match self.rates.take(app, now) {
            true => Ok(place),
            false => Err(Limit::AppCallRate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::{KeyId, Role, TenantId};
    use uuid::Uuid;

    /// What a key may cost that is known.
    const MOST: Duration = Duration::from_micros(5);

    #[test]
    fn a_key_that_is_known_asks_nobody_and_costs_little() {
        let (known, now) = (Remembered::default(), Instant::now());
        let keys: Vec<AppKey> = (0..MAX_KNOWN).map(|_| AppKey::generate().unwrap()).collect();
        let (app, tenant) = (AppId(Uuid::nil()), TenantId(Uuid::nil()));
        for key in &keys {
            let identity = AppIdentity {
                app,
                key: KeyId(1),
                tenant,
                name: String::new(),
                role: Role::Caller,
                expires_s: 0,
                customers: None,
                labels: [].into(),
                networks: None,
            };
            known.keep(&Arc::new(Caller { credential: key.credential(), identity, networks: None }));
        }
        let shown = |key: &AppKey| known.read(Some(key.reveal())).unwrap().1.is_some();
        let round = |keys: &[AppKey]| {
            let began = Instant::now();
            assert!(keys.iter().all(shown));
            began.elapsed() / keys.len() as u32
        };
        // The quickest of many rounds: others run on the machine, too.
        let least = keys.chunks(100).map(round).min().unwrap();
        println!("a key that is known: {least:?}, after {:?}", now.elapsed());
        // Without optimizations it takes many times as long.
        assert!(cfg!(debug_assertions) || least <= MOST, "{least:?}");
        known.forget(&keys[0].credential());
        assert!(!shown(&keys[0]) && shown(&keys[1]));
        assert_eq!(known.read(Some("swbk_1")).unwrap_err(), NotLetIn::NoKey);
    }

    #[test]
    fn an_application_has_its_rate_and_takes_nobody_elses() {
        let (now, app) = (Instant::now(), |id| AppId(Uuid::from_u128(id)));
        let rates = Rates::new(Rate { per_second: 100, burst: 3 });
        for _ in 0..3 {
            assert!(rates.take(app(1), now));
        }
        assert!(!rates.take(app(1), now));
        assert!(rates.take(app(2), now));
        assert!(rates.take(app(1), now + Duration::from_millis(10)));
        assert!(!rates.take(app(1), now + Duration::from_millis(10)));
        let none = Rates::new(Rate { per_second: 0, burst: 1 });
        assert!((0..100).all(|_| none.take(app(1), now)));
    }
}
