//! How is an application's call made? The bus is asked, and what comes back is an outcome and the target's answer, for
//! whoever waits, and for whoever asks later what became of it.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use boot::traces::{Hop, Tracer};
use bus::{AskError, Bus, Question, Request, Requests, Subject};
use bytes::Bytes;
use parking_lot::Mutex;
use rpc::{
    AppCall, AppId, CallId, CustomerId, DeviceId, EndedReply, EndedRequest, HopEnd, HopOf, LateAnswer, Limit,
    Outcome, Party, Seen, Station, Target, wire,
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::answer::Ended;
use crate::keys::Caller;
use crate::ledger::{Ledger, Stage};
use crate::metrics::Meters;
use crate::request::Wanted;

/// How much longer than the budget an outcome is waited for: the router is the one to say `TimedOut`.
const OUTCOME_GRACE: Duration = Duration::from_millis(500);
/// How long another copy may take to say what became of its call.
const ENDED_WAIT: Duration = Duration::from_secs(2);
/// How often it is looked which ends are too old to be kept.
const SWEEP_EVERY: Duration = Duration::from_secs(10);

/// Makes calls, and knows for a while how they ended.
pub(crate) struct Calls {
    bus: Bus,
    subject: Subject,
    last_serial: AtomicU64,
    /// Makes proofs of calls' ids: who has heard one guesses no other.
    proofs: RandomState,
    ledger: Arc<Mutex<Ledger>>,
    tracer: Tracer,
    meters: Meters,
}

/// A call that has begun. It goes on without whoever waits for it: its target may be about to act.
pub(crate) struct Begun {
    pub(crate) call: CallId,
    ended: oneshot::Receiver<Ended>,
    ledger: Arc<Mutex<Ledger>>,
    app: AppId,
}

/// A call that is about to begin, or whose end is about to be recorded.
pub(crate) struct Reserved {
    pub(crate) id: CallId,
    ledger: Arc<Mutex<Ledger>>,
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.ledger.lock().release(self.id);
    }
}

impl Begun {
    /// Waits for its end.
    pub(crate) async fn ended(mut self) -> Ended {
        let ended = (&mut self.ended).await;
        ended.unwrap_or(Ended {
            outcome: Outcome::Unavailable,
            body: Bytes::new(),
            call: Some(self.call),
            seen: Seen::Maybe,
        })
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.ended.close();
        // It came, and nobody has taken it.
        if let Ok(ended) = self.ended.try_recv() {
            self.ledger.lock().take_back(self.call, self.app, ended, Instant::now());
        }
    }
}

impl Calls {
    pub(crate) fn new(bus: Bus, tracer: Tracer) -> Self {
        let subject = bus.subjects().app_call().into();
        Calls {
            bus,
            subject,
            last_serial: AtomicU64::new(0),
            proofs: RandomState::new(),
            ledger: Arc::default(),
            tracer,
            meters: Meters::new(),
        }
    }

    pub(crate) fn bus(&self) -> &Bus {
        &self.bus
    }

    /// An id for a call. Until it is dropped the call counts as running, begun or not.
    pub(crate) fn reserve(&self, app: AppId) -> Reserved {
        let id = self.next_id();
        self.ledger.lock().hold(id, app);
        Reserved { id, ledger: Arc::clone(&self.ledger) }
    }

    /// Calls. Where it cannot, that is its end.
    pub(crate) fn begin(
        &self,
        caller: &Caller,
        target: Target,
        wanted: Wanted,
        traceparent: Option<String>,
    ) -> Begun {
        self.begin_as(self.next_id(), caller, target, wanted, traceparent)
    }

    /// The same, under the id that was reserved for it.
    pub(crate) fn begin_reserved(
        &self,
        call: &Reserved,
        caller: &Caller,
        target: Target,
        wanted: Wanted,
        traceparent: Option<String>,
    ) -> Begun {
        self.begin_as(call.id, caller, target, wanted, traceparent)
    }

    fn next_id(&self) -> CallId {
        let serial = self.last_serial.fetch_add(1, Ordering::Relaxed) + 1;
        CallId { node: self.bus.process(), serial }
    }

    fn begin_as(
        &self,
        call: CallId,
        caller: &Caller,
        target: Target,
        wanted: Wanted,
        mut traceparent: Option<String>,
    ) -> Begun {
        let (begun, app) = (Instant::now(), caller.identity.app);
        let mut span = self.tracer.begin("call", Hop::Asked, &mut traceparent);
        span.note("switchboard.app", app);
        let hop = HopOf {
            station: Station::Api,
            call,
            from: DeviceId(app.0),
            to: target.id(),
            party: Some(Party::of(caller.identity.tenant, Some(CustomerId(app.0)))),
            budget_ms: wanted.timeout,
            protocol: None,
        };
        self.tracer.record(&mut span, hop, HopEnd::GivenUp, begun);
        span.asks(&wanted.params);
        let timeout = wanted.timeout.as_duration();
        let head = AppCall {
            call,
            credential: caller.credential.clone(),
            target,
            method: wanted.method,
            budget_ms: wanted.timeout,
            until: self.bus.until(begun + timeout, begun),
            connect_budget_ms: wanted.connect_timeout,
            oneway: wanted.oneway,
            traceparent,
            late: Some(self.proofs.hash_one(call)),
        };
        let message = wire::encode(&head, &wanted.params);
        let wait = timeout + OUTCOME_GRACE;
        let question = Question { subject: self.subject.clone(), message, wait, asked: None };
        let (ended_tx, ended_rx) = oneshot::channel();
        self.ledger.lock().begin(call, app);
        let (ledger, meters) = (Arc::clone(&self.ledger), self.meters.clone());
        self.bus.ask_then(question, move |asked| {
            let ended = ended(call, asked);
            span.is_answered(&ended.body);
            span.end(&ended.outcome);
            meters.ended(&ended.outcome, begun.elapsed());
            // Before its caller is told, who may ask at once.
            let mut ledger = ledger.lock();
            let is_told = ended_tx.send(ended.clone()).is_ok();
            if ledger.end(call, ended, is_told, Instant::now()) {
                meters.late.increment(1);
            }
        });
        Begun { call, ended: ended_rx, ledger: Arc::clone(&self.ledger), app }
    }

    /// What has become of a call of the application's, on whichever copy. None: nothing that anybody knows.
    ///
    /// # Errors
    /// When the copy that made it does not say.
    pub(crate) async fn look(&self, call: CallId, app: AppId) -> Result<Option<Stage>, AskError> {
        if call.node == self.bus.process() {
            return Ok(self.ledger.lock().look(call, app, Instant::now()));
        }
        let question = wire::encode(&EndedRequest { call, app }, b"");
        let asked = self.bus.ask(self.bus.subjects().ended(call.node), question, ENDED_WAIT).await;
        let reply = match asked {
            // It is gone, and what it knew with it.
            Err(AskError::NoResponders) => return Ok(None),
            reply => reply?,
        };
        match wire::decode::<EndedReply>(&reply) {
            Ok((EndedReply::Unknown, _)) => Ok(None),
            Ok((EndedReply::Running, _)) => Ok(Some(Stage::Running)),
            Ok((EndedReply::Ended { outcome, seen, is_late }, body)) => {
                let ended = Ended { outcome, body, call: Some(call), seen };
                Ok(Some(Stage::Ended { ended, is_late }))
            }
            Err(error) => {
                tracing::warn!(%error, "another API's word on a call cannot be read");
                Err(AskError::Down)
            }
        }
    }

    /// Takes late answers, and tells other copies what became of calls, until `stop`.
    pub(crate) async fn keep(self: Arc<Self>, stop: CancellationToken) {
        let subjects = self.bus.subjects();
        let process = self.bus.process();
        let (late, ended) = (subjects.late(process), subjects.ended(process));
        let serving = async |subject: String| -> Requests {
            self.bus.again("hear of calls that have ended", || self.bus.serve(subject.clone(), None)).await
        };
        let Some((mut late, mut ended)) =
            stop.run_until_cancelled(async { (serving(late).await, serving(ended).await) }).await
        else {
            return;
        };
        let mut sweeps = tokio::time::interval(SWEEP_EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = sweeps.tick() => self.ledger.lock().sweep(Instant::now()),
                Some(request) = late.next() => self.take_late(&request),
                Some(request) = ended.next() => self.tell_ended(request).await,
            }
        }
    }

    fn take_late(&self, request: &Request) {
        let Ok((LateAnswer { call, proof }, body)) = wire::decode(&request.message) else {
            return tracing::warn!("a late answer cannot be read");
        };
        let is_proven = call.node == self.bus.process() && proof == self.proofs.hash_one(call);
        if !is_proven {
            return tracing::warn!(%call, "a late answer to what nobody asked");
        }
        if self.ledger.lock().answer(call, body, Instant::now()) {
            tracing::debug!(%call, "its answer came late");
            self.meters.late.increment(1);
        }
    }

    async fn tell_ended(&self, request: Request) {
        let Some(inbox) = request.reply_to else { return };
        let Ok((EndedRequest { call, app }, _)) = wire::decode(&request.message) else {
            return tracing::warn!("a question about a call cannot be read");
        };
        let stage = self.ledger.lock().look(call, app, Instant::now());
        let reply = match stage {
            None => wire::encode(&EndedReply::Unknown, b""),
            Some(Stage::Running) => wire::encode(&EndedReply::Running, b""),
            Some(Stage::Ended { ended: Ended { outcome, body, seen, .. }, is_late }) => {
                wire::encode(&EndedReply::Ended { outcome, seen, is_late }, &body)
            }
        };
        if let Err(error) = self.bus.tell(inbox, reply).await {
            tracing::debug!(%error, "another API cannot be told of a call");
        }
    }
}

fn ended(id: CallId, asked: Result<Bytes, AskError>) -> Ended {
    let call = Some(id);
    match asked {
        Ok(reply) => match wire::decode::<Outcome>(&reply) {
            Ok((outcome, body)) => {
                let seen = outcome.seen();
                Ended { outcome, body, call, seen }
            }
            Err(error) => {
                tracing::error!(call = %id, %error, "an outcome could not be read");
                Ended { outcome: Outcome::Unavailable, body: Bytes::new(), call, seen: Seen::Maybe }
            }
        },
        Err(error) => {
            tracing::warn!(call = %id, %error, "the call has no outcome");
            let (outcome, seen) = lost(&error);
            Ended { outcome, body: Bytes::new(), call, seen }
        }
    }
}

/// Without an answer: what is certain is that what was not sent, or what nobody took, was not seen.
fn lost(error: &AskError) -> (Outcome, Seen) {
    match error {
        AskError::Full => (Outcome::Busy(Limit::PendingAsks), Seen::Never),
        AskError::NoResponders | AskError::Unsendable => (Outcome::Unavailable, Seen::Never),
        AskError::Expired | AskError::Down | AskError::Gone => (Outcome::Unavailable, Seen::Maybe),
    }
}
