//! How does a node send its visitors away? Paced, and told to routers before: calls wait for where they come back.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use boot::health::{Health, Part};
use bus::Request;
use parking_lot::Mutex;
use rpc::{NodeReport, NodeState, Order, Pace, Protocol, wire};
use tokio::sync::Notify;
use tokio::time::sleep_until;

use crate::device::sessions::Visitor;
use crate::device::shed::{Shedding, Step, TOLD_BEFORE, Why, rate};
use crate::node::Node;
use boot::clock::unix_ms;

/// How often it is looked who has gone.
const LOOK: Duration = Duration::from_millis(200);

/// What a node does with its visitors.
#[derive(Debug, Default)]
pub(crate) struct Leaving {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// None while it serves.
    why: Option<Why>,
    since_ms: u64,
    shedding: Option<Shedding<Weak<Visitor>>>,
    shed: u64,
}

impl Default for State {
    fn default() -> Self {
        State { why: None, since_ms: unix_ms(), shedding: None, shed: 0 }
    }
}

impl State {
    fn serves(&mut self) {
        *self = State { shed: self.shed, ..State::default() };
    }
}

impl Node {
    /// Sends visitors away at that pace: all, or as many as have a session here beyond `keep`. What was under way
    /// before is over with that.
    pub(crate) async fn send_away(&self, why: Why, pace: Pace, keep: Option<usize>) {
        let begins_at = Instant::now() + Duration::from_millis(pace.wait_ms.into()).max(TOLD_BEFORE);
        let per_second = pace.per_second.unwrap_or(self.settings().ingress.shed_per_second);
        let patience = Duration::from_millis(self.settings().ingress.drain_ms);
        let mut shedding = Shedding::new(per_second, patience, begins_at);
        {
            let mut state = self.leaving.state.lock();
            if state.why == Some(Why::ShuttingDown) {
                return;
            }
            // From here on nobody is let in whom this would miss.
            (state.why, state.since_ms, state.shed) = (Some(why), unix_ms(), 0);
            let mut whom = match keep {
                None => self.sessions.visitors(),
                Some(_) => self.sessions.sessions().iter().map(|it| Arc::clone(&it.visitor)).collect(),
            };
            whom.sort_unstable_by_key(|visitor| visitor.id);
            whom.dedup_by_key(|visitor| visitor.id);
            let at_most = whom.len().saturating_sub(keep.unwrap_or(0));
            shedding.add(whom.iter().map(|visitor| (visitor.party, Arc::downgrade(visitor))), at_most);
            state.shedding = Some(shedding);
        }
        self.renew_lease(false).await;
        self.leaving.changed.notify_one();
    }

    /// A visitor's claim was not written. By HTTP and CoAP a client that reads so asks again by itself.
    pub(crate) fn remains_uncalled(&self, visitor: &Arc<Visitor>) {
        if visitor.protocol == Protocol::Mqtt {
            let is_here = |visitor: &Weak<Visitor>| visitor.strong_count() > 0;
            self.uncalled.lock().refused(visitor.id, Arc::downgrade(visitor), is_here, Instant::now());
            self.uncalled_changed.notify_one();
        }
    }

    /// Claims are written.
    pub(crate) fn others_may_ask_anew(&self) {
        if self.uncalled.lock().written(Instant::now()) {
            self.uncalled_changed.notify_one();
        }
    }

    /// Sends away whoever is due for not being callable. When there may be more.
    fn send_uncalled_away(&self, now: Instant) -> Option<Instant> {
        let rate = rate(self.settings().ingress.shed_per_second);
        let mut uncalled = self.uncalled.lock();
        let is_uncalled = |visitor: &Weak<Visitor>| {
            visitor.upgrade().is_some_and(|it| self.sessions.of_visitor(&it).is_empty())
        };
        while let Some(step) = uncalled.next(is_uncalled, rate, now) {
            if matches!(step, Step::Leave(_)) {
                self.metrics.shed(Why::Uncalled);
            }
            let (visitor, mail) = step.mail(Why::Uncalled.told());
            if let Some(visitor) = visitor.upgrade() {
                tracing::debug!(device = %visitor.device, "it is not callable, and sent away to ask anew");
                visitor.mailbox.tell(mail);
            }
        }
        uncalled.next_tick(rate, now)
    }

    /// Does what an operator says, and reports.
    pub(crate) async fn take_order(&self, request: Request) {
        // Without an inbox it may be an answer that somebody has had sent here.
        let Some(inbox) = request.reply_to else { return };
        let Ok((order, _)) = wire::decode::<Order>(&request.message) else {
            return tracing::error!("an order could not be read");
        };
        if order != Order::Report {
            tracing::info!(node = %self.id, order = order.as_str(), "an operator's order");
        }
        match order {
            Order::Report => {}
            Order::Evacuate(pace) => self.send_away(Why::Evacuated, pace, None).await,
            Order::Maintain(pace) => self.send_away(Why::Maintenance, pace, None).await,
            Order::Rebalance(pace, keep) => self.send_away(Why::Rebalanced, pace, Some(keep as usize)).await,
            Order::Serve => self.serve_again(),
        }
        let report = wire::encode(&self.report(), b"");
        if let Err(error) = self.bus.tell(inbox, report).await {
            tracing::warn!(%error, "an operator was not answered");
        }
    }

    fn serve_again(&self) {
        let mut state = self.leaving.state.lock();
        if state.why != Some(Why::ShuttingDown) {
            state.serves();
            self.metrics.shed_left.set(0.0);
            self.leaving.changed.notify_one();
        }
    }

    fn report(&self) -> NodeReport {
        let mut sessions = [0; Protocol::ALL.len()];
        for session in self.sessions.sessions() {
            if let Some(sessions) = sessions.get_mut(session.visitor.protocol as usize) {
                *sessions += 1;
            }
        }
        let [mqtt, http, coap] = sessions;
        let claims = self.holding.lock().renewal(self.id, false).tally.claims;
        let visitors = self.sessions.visitors().len() as u64;
        let state = self.leaving.state.lock();
        let left = state.shedding.as_ref().map_or(0, |it| it.left()) as u64;
        let (node, since_ms, shed) = (self.id, state.since_ms, state.shed);
        let state = state.why.map_or(NodeState::Serving, Why::state);
        NodeReport { node, state, since_ms, visitors, mqtt, http, coap, claims, left, shed }
    }

    /// Whether nobody is let in.
    pub(crate) fn is_closed(&self) -> bool {
        self.leaving.state.lock().why.is_some_and(Why::closes)
    }

    /// Whether sessions are being sent away.
    pub(crate) fn sheds(&self) -> bool {
        self.leaving.state.lock().shedding.is_some()
    }

    /// Says to visitors what is due. When there is more to say.
    fn shed_due(&self, looks: bool, now: Instant) -> Option<Instant> {
        let state = &mut *self.leaving.state.lock();
        let (Some(why), Some(shedding)) = (state.why, &mut state.shedding) else { return None };
        let is_here = |visitor: &Weak<Visitor>| visitor.strong_count() > 0;
        while let Some(step) = shedding.next(is_here, now) {
            if matches!(step, Step::Leave(_)) {
                state.shed += 1;
                self.metrics.shed(why);
            }
            let (visitor, mail) = step.mail(why.told());
            if let Some(visitor) = visitor.upgrade() {
                visitor.mailbox.tell(mail);
            }
        }
        if looks {
            shedding.retain(is_here);
        }
        let next = shedding.next_tick(now);
        self.metrics.shed_left.set(shedding.left() as f64);
        if looks && shedding.left() == 0 {
            tracing::info!(node = %self.id, why = why.as_str(), shed = state.shed, "those who were to leave have left");
            state.shedding = None;
            if why == Why::Rebalanced {
                state.serves();
            }
        }
        next
    }
}

/// Sends away whoever is to leave, for as long as it is polled; the node is not ready meanwhile, nor while it lets
/// nobody in.
pub(crate) async fn keep(node: Arc<Node>, health: Health) {
    let mut look_at = Instant::now();
    let mut away: Option<Part> = None;
    loop {
        let now = Instant::now();
        let looks = now >= look_at;
        if looks {
            look_at = now + LOOK;
        }
        let next = node.shed_due(looks, now);
        match (node.leaving.state.lock().why, &mut away) {
            (None, away) => drop(away.take().map(Part::withdraw)),
            (Some(why), away) => {
                let part = away.get_or_insert_with(|| health.part("devices"));
                part.not_ready(&format!("they are sent to other nodes: {}", why.as_str()));
            }
        }
        if node.sheds() {
            tokio::select! {
                () = sleep_until(next.unwrap_or(look_at).min(look_at).into()) => {}
                () = node.leaving.changed.notified() => {}
            }
        } else {
            node.leaving.changed.notified().await;
        }
    }
}

/// Sends away whoever remains uncalled, for as long as it is polled.
pub(crate) async fn send_uncalled_away(node: Arc<Node>) {
    loop {
        match node.send_uncalled_away(Instant::now()) {
            Some(next) => tokio::select! {
                () = sleep_until(next.into()) => {}
                () = node.uncalled_changed.notified() => {}
            },
            None => node.uncalled_changed.notified().await,
        }
    }
}
