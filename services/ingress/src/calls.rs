//! How is a device's request performed? The node asks the bus, and what comes back is an outcome and its body.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bus::{AskError, Bus, Subject};
use bytes::Bytes;
use rpc::{
    AuthenticateReply, AuthenticateRequest, Budget, Call, CallId, CredentialHash, DeviceId, Identity, Limit,
    ListRequest, NodeId, Outcome, wire,
};

use crate::device_api::{self, Request};

/// How much longer than the budget a node waits for an outcome. The router is the one to say `TimedOut`, at the
/// end of the budget; only when it says nothing at all does the node.
const OUTCOME_GRACE: Duration = Duration::from_millis(500);

/// How long `getDevices` may take.
const LIST_WAIT: Duration = Duration::from_secs(5);

/// Asks the other services on behalf of this node's devices.
pub struct Calls {
    bus: Bus,
    node: NodeId,
    last_serial: AtomicU64,
    call: Subject,
    list: Subject,
    authenticate: Subject,
    session_limits: Bytes,
}

impl Calls {
    /// For the devices of `node`; `session_limits` is the answer to `getSessionLimits`.
    pub fn new(bus: Bus, node: NodeId, session_limits: Bytes) -> Self {
        let (call, list, authenticate) = {
            let subjects = bus.subjects();
            (subjects.call(), subjects.list(), subjects.authenticate())
        };
        Calls {
            bus,
            node,
            last_serial: AtomicU64::new(0),
            call: call.into(),
            list: list.into(),
            authenticate: authenticate.into(),
            session_limits,
        }
    }

    /// Performs a request of `caller` and says how it ended.
    pub async fn perform(
        &self,
        caller: DeviceId,
        request: Request,
        traceparent: Option<String>,
    ) -> (Outcome, Bytes) {
        let asked = match request {
            Request::GetTime => return (Outcome::Answered, device_api::get_time(now_ms())),
            Request::GetSessionLimits => return (Outcome::Answered, self.session_limits.clone()),
            Request::GetDevices { limit, after, online } => {
                let head = ListRequest { caller, limit, after, online };
                let Ok(message) = wire::encode(&head, b"") else { return unavailable() };
                self.bus.ask(self.list.clone(), message, LIST_WAIT).await
            }
            Request::SendMsg { target, timeout, connect_timeout, oneway, body } => {
                let call =
                    CallId { node: self.node, serial: self.last_serial.fetch_add(1, Ordering::Relaxed) + 1 };
                let (budget_ms, connect_budget_ms) = (timeout, connect_timeout);
                let head = Call { call, caller, target, budget_ms, connect_budget_ms, oneway, traceparent };
                let Ok(message) = wire::encode(&head, &body) else { return unavailable() };
                drop((head, body));
                let asked = self.ask_call(message, timeout).await;
                log_call(call, caller, target, &asked);
                asked
            }
        };
        match asked {
            Ok(message) => match wire::decode::<Outcome>(&message) {
                Ok(ended) => ended,
                Err(error) => {
                    tracing::error!(%error, "an outcome could not be read");
                    unavailable()
                }
            },
            Err(AskError::Full) => (Outcome::Busy(Limit::PendingAsks), Bytes::new()),
            Err(AskError::NoResponders | AskError::Expired | AskError::Down | AskError::Unsendable) => {
                unavailable()
            }
        }
    }

    async fn ask_call(&self, message: Bytes, budget: Budget) -> Result<Bytes, AskError> {
        self.bus.ask(self.call.clone(), message, budget.as_duration() + OUTCOME_GRACE).await
    }

    /// Who holds this credential? None when nobody does.
    ///
    /// # Errors
    /// When no authorizer answered in `wait`.
    pub async fn authenticate(
        &self,
        credential: CredentialHash,
        wait: Duration,
    ) -> Result<Option<Identity>, AskError> {
        let Ok(message) = wire::encode(&AuthenticateRequest { credential }, b"") else {
            return Err(AskError::Down);
        };
        let reply = self.bus.ask(self.authenticate.clone(), message, wait).await?;
        match wire::decode::<AuthenticateReply>(&reply) {
            Ok((AuthenticateReply::Identity(identity), _)) => Ok(Some(identity)),
            Ok((AuthenticateReply::Refused, _)) => Ok(None),
            Err(error) => {
                tracing::error!(%error, "an identity could not be read");
                Err(AskError::Down)
            }
        }
    }
}

/// Milliseconds since 1970 on this machine's clock.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

fn unavailable() -> (Outcome, Bytes) {
    (Outcome::Unavailable, Bytes::new())
}

fn log_call(call: CallId, caller: DeviceId, target: DeviceId, asked: &Result<Bytes, AskError>) {
    match asked {
        Ok(_) => tracing::debug!(%call, %caller, %target, "the call has its outcome"),
        Err(error) => tracing::warn!(%call, %caller, %target, %error, "the call has no outcome"),
    }
}
