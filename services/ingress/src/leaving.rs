//! How does a node send its visitors away? Paced, and told to routers before: calls wait for where they come back.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::sleep_until;

use crate::calls::now_ms;
use crate::device::mailbox::Mail;
use crate::device::sessions::Visitor;
use crate::device::shed::{Shedding, Step, Why};
use crate::node::Node;

/// How often it is looked who has gone.
const LOOK: Duration = Duration::from_millis(200);

/// What a node does with its visitors.
#[derive(Debug, Default)]
pub(crate) struct Leaving {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// None while it serves.
    why: Option<Why>,
    since_ms: u64,
    shedding: Option<Shedding<Weak<Visitor>>>,
    shed: u64,
}

impl Node {
    /// Sends visitors away, so many a second: all, or as many as have a session here beyond `keep`. What was under way
    /// before is over with that.
    pub(crate) async fn send_away(&self, why: Why, per_second: u32, keep: Option<usize>) {
        let now = Instant::now();
        let patience = Duration::from_millis(self.settings().ingress.drain_ms);
        let mut shedding = Shedding::new(per_second, patience, now);
        {
            let mut state = self.leaving.state.lock();
            // From here on nobody is let in whom this would miss.
            (state.why, state.since_ms, state.shed) = (Some(why), now_ms(), 0);
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
        // Routers hear of it before the first one goes.
        self.renew_lease(false).await;
        self.leaving.changed.notify_one();
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
            let (visitor, mail) = match step {
                Step::Leave(visitor) => {
                    state.shed += 1;
                    self.metrics.shed(why);
                    (visitor, Mail::Leave(why.told()))
                }
                Step::Press(visitor) => (visitor, Mail::Leave(why.told())),
                Step::CutOff(visitor) => (visitor, Mail::End(why.told())),
            };
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
                *state = State { since_ms: now_ms(), ..State::default() };
            }
        }
        next
    }
}

/// Sends away whoever is to leave, for as long as it is polled.
pub(crate) async fn keep(node: Arc<Node>) {
    let mut look_at = Instant::now();
    loop {
        let now = Instant::now();
        let looks = now >= look_at;
        if looks {
            look_at = now + LOOK;
        }
        let next = node.shed_due(looks, now);
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
