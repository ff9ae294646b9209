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
    known: Mutex<HashMap<CredentialHash, Known>>,
    asking: Semaphore,
    in_flight: Shares<AppId>,
    rates: Rates<AppId>,
    meters: Meters,
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
            known: Mutex::default(),
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
        let key = shown.and_then(AppKey::parse).ok_or(NotLetIn::NoKey)?;
        let credential = key.credential();
        let known = self
            .known
            .lock()
            .get(&credential)
            .filter(|it| it.asked.elapsed() < KNOWN_FOR)
            .map(|it| Arc::clone(&it.caller));
        match known {
            Some(caller) => Ok(caller),
            None => self.ask(credential).await,
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
                let caller = Arc::new(Caller { credential: credential.clone(), identity, networks });
                let mut known = self.known.lock();
                if known.len() >= MAX_KNOWN {
                    known.retain(|_, it| it.asked.elapsed() < KNOWN_FOR);
                    if known.len() >= MAX_KNOWN {
                        known.clear();
                    }
                }
                known.insert(credential, Known { caller: Arc::clone(&caller), asked: Instant::now() });
                Ok(caller)
            }
            Ok((AppReply::Refused, _)) => {
                self.known.lock().remove(&credential);
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
                self.known.lock().remove(&caller.credential);
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
    use uuid::Uuid;

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
