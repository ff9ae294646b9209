//! What has become of a call whose caller could not be told for certain? Calls in flight, and for ten minutes the ends
//! of those that may have been executed, and of those that nobody waited for. Pure.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rpc::{AppId, CallId, Outcome, Seen};

use crate::answer::Ended;

/// How long an end is kept, and an answer that came after it.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(600);
/// Bytes of all ends on one copy, and of one application's: beyond it its oldest are forgotten.
const MAX_BYTES: usize = 64 * 1024 * 1024;
const MAX_BYTES_OF_APP: usize = 8 * 1024 * 1024;
/// What an end takes beside its answer, about.
const END_BYTES: usize = 256;

/// Where a call is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stage {
    Running,
    Ended {
        ended: Ended,
        /// The answer came after the call's time.
        is_late: bool,
    },
}

/// The calls of one copy.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    calls: HashMap<CallId, Entry>,
    apps: HashMap<AppId, Kept>,
    bytes: usize,
    /// Calls that count as running, whatever is known of them.
    held: HashMap<CallId, AppId>,
}

#[derive(Debug)]
struct Entry {
    app: AppId,
    stage: Stage,
    /// An answer came before it was known here that the call's time was over.
    early: Option<Bytes>,
    /// Of an end.
    kept_until: Option<Instant>,
}

/// The ends of one application.
#[derive(Debug, Default)]
struct Kept {
    order: VecDeque<(Instant, CallId)>,
    bytes: usize,
}

impl Ledger {
    /// A call begins.
    pub(crate) fn begin(&mut self, call: CallId, app: AppId) {
        let entry = Entry { app, stage: Stage::Running, early: None, kept_until: None };
        self.calls.insert(call, entry);
    }

    /// Until its release a call counts as running.
    pub(crate) fn hold(&mut self, call: CallId, app: AppId) {
        self.held.insert(call, app);
    }

    /// See [`hold`](Self::hold).
    pub(crate) fn release(&mut self, call: CallId) {
        self.held.remove(&call);
    }

    /// It has ended; `is_told`: its caller knows. True where its answer is here, too late.
    pub(crate) fn end(&mut self, call: CallId, ended: Ended, is_told: bool, now: Instant) -> bool {
        let Some(entry) = self.calls.remove(&call) else { return false };
        if is_told && ended.seen != Seen::Maybe {
            return false;
        }
        self.keep(call, entry.app, Stage::Ended { ended, is_late: false }, now);
        entry.early.is_some_and(|answer| self.answer(call, answer, now))
    }

    /// Whoever was told its end has not taken it.
    pub(crate) fn take_back(&mut self, call: CallId, app: AppId, ended: Ended, now: Instant) {
        if !self.calls.contains_key(&call) {
            self.keep(call, app, Stage::Ended { ended, is_late: false }, now);
        }
    }

    /// Its target has answered after its time, or nearly. True where that is kept, and not only until its end is known.
    pub(crate) fn answer(&mut self, call: CallId, body: Bytes, now: Instant) -> bool {
        let Some(entry) = self.calls.get_mut(&call) else { return false };
        match &entry.stage {
            Stage::Running => {
                entry.early = Some(body);
                false
            }
            Stage::Ended { ended, .. } if ended.seen == Seen::Maybe => {
                let app = entry.app;
                self.forget(call);
                let ended = Ended { outcome: Outcome::Answered, body, call: Some(call), seen: Seen::Yes };
                self.keep(call, app, Stage::Ended { ended, is_late: true }, now);
                true
            }
            Stage::Ended { .. } => false,
        }
    }

    /// A call of the application's.
    pub(crate) fn look(&self, call: CallId, app: AppId, now: Instant) -> Option<Stage> {
        if self.held.get(&call) == Some(&app) {
            return Some(Stage::Running);
        }
        let entry = self.calls.get(&call).filter(|it| it.app == app)?;
        entry.kept_until.is_none_or(|until| now < until).then(|| entry.stage.clone())
    }

    /// Forgets what is too old.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let apps: Vec<AppId> = self.apps.keys().copied().collect();
        for app in apps {
            while self.apps.get(&app).and_then(|it| it.order.front()).is_some_and(|(until, _)| *until <= now)
            {
                self.forget_oldest(app);
            }
        }
    }

    fn keep(&mut self, call: CallId, app: AppId, stage: Stage, now: Instant) {
        let until = now + KEPT_FOR;
        let bytes = bytes(&stage);
        self.calls.insert(call, Entry { app, stage, early: None, kept_until: Some(until) });
        let kept = self.apps.entry(app).or_default();
        kept.order.push_back((until, call));
        kept.bytes += bytes;
        self.bytes += bytes;
        while self.apps.get(&app).is_some_and(|it| it.bytes > MAX_BYTES_OF_APP) && self.forget_oldest(app) {}
        while self.bytes > MAX_BYTES {
            let most = self.apps.iter().max_by_key(|(_, it)| it.bytes).map(|(app, _)| *app);
            if !most.is_some_and(|app| self.forget_oldest(app)) {
                break;
            }
        }
    }

    /// False where there is none.
    fn forget_oldest(&mut self, app: AppId) -> bool {
        let Some((until, call)) = self.apps.get_mut(&app).and_then(|it| it.order.pop_front()) else {
            self.apps.remove(&app);
            return false;
        };
        // One that has been kept anew stands further behind.
        if self.calls.get(&call).is_some_and(|it| it.kept_until == Some(until)) {
            self.forget(call);
        }
        if self.apps.get(&app).is_some_and(|it| it.order.is_empty()) {
            self.apps.remove(&app);
        }
        true
    }

    fn forget(&mut self, call: CallId) {
        let Some(entry) = self.calls.remove(&call) else { return };
        let bytes = bytes(&entry.stage);
        self.bytes -= bytes;
        if let Some(kept) = self.apps.get_mut(&entry.app) {
            kept.bytes -= bytes;
        }
    }
}

fn bytes(stage: &Stage) -> usize {
    match stage {
        Stage::Running => 0,
        Stage::Ended { ended, .. } => END_BYTES + ended.body.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rpc::NodeId;
    use uuid::Uuid;

    const APP: AppId = AppId(Uuid::from_u128(1));
    const OTHER: AppId = AppId(Uuid::from_u128(2));

    fn id(serial: u64) -> CallId {
        CallId { node: NodeId(7), serial }
    }

    fn ended(serial: u64, outcome: Outcome, body: impl Into<Bytes>) -> Ended {
        let seen = outcome.seen();
        Ended { outcome, body: body.into(), call: Some(id(serial)), seen }
    }

    fn stage(serial: u64, outcome: Outcome, body: &'static str, is_late: bool) -> Option<Stage> {
        Some(Stage::Ended { ended: ended(serial, outcome, body), is_late })
    }

    #[test]
    fn ends_are_kept_that_a_caller_cannot_know() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        for (serial, outcome, is_told, kept) in [
            (1, Outcome::Answered, true, false),
            (2, Outcome::Answered, false, true),
            (3, Outcome::TimedOut, true, true),
            (4, Outcome::Offline, true, false),
            (5, Outcome::Offline, false, true),
        ] {
            ledger.begin(id(serial), APP);
            assert_eq!(ledger.look(id(serial), APP, now), Some(Stage::Running));
            assert_eq!(ledger.look(id(serial), OTHER, now), None);
            ledger.end(id(serial), ended(serial, outcome.clone(), "1"), is_told, now);
            let expected = kept.then(|| stage(serial, outcome, "1", false)).flatten();
            assert_eq!(ledger.look(id(serial), APP, now), expected, "{serial}");
            assert_eq!(ledger.look(id(serial), OTHER, now), None);
        }
        assert_eq!(ledger.look(id(3), APP, now + KEPT_FOR), None);
        for call in [id(1), id(3)] {
            let known = ledger.look(call, APP, now);
            ledger.hold(call, APP);
            assert_eq!(
                (ledger.look(call, APP, now), ledger.look(call, OTHER, now)),
                (Some(Stage::Running), None)
            );
            ledger.release(call);
            assert_eq!(ledger.look(call, APP, now), known);
        }
        ledger.sweep(now + KEPT_FOR);
        assert!(ledger.calls.is_empty() && ledger.apps.is_empty() && ledger.bytes == 0, "{ledger:?}");
    }

    #[test]
    fn an_answer_after_the_end_is_kept_once_and_from_then_on() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        for serial in 1..=3 {
            ledger.begin(id(serial), APP);
        }
        // Both orders: nobody says which comes first.
        assert!(!ledger.answer(id(1), "1".into(), now));
        assert_eq!(ledger.look(id(1), APP, now), Some(Stage::Running));
        assert!(ledger.end(id(1), ended(1, Outcome::TimedOut, ""), true, now));
        assert!(!ledger.end(id(2), ended(2, Outcome::TimedOut, ""), true, now));
        let later = now + KEPT_FOR / 2;
        assert!(ledger.answer(id(2), "2".into(), later));
        assert!(!ledger.answer(id(2), "3".into(), later));
        assert_eq!(ledger.look(id(1), APP, now), stage(1, Outcome::Answered, "1", true));
        ledger.sweep(now + KEPT_FOR);
        assert_eq!(ledger.look(id(1), APP, now), None);
        assert_eq!(ledger.look(id(2), APP, now + KEPT_FOR), stage(2, Outcome::Answered, "2", true));
        // What has its answer takes no other, and what was never called takes none.
        assert!(!ledger.answer(id(3), "1".into(), now));
        assert!(!ledger.end(id(3), ended(3, Outcome::Answered, "2"), true, now));
        assert_eq!(ledger.look(id(3), APP, now), None);
        assert!(!ledger.answer(id(3), "1".into(), now) && !ledger.answer(id(4), "1".into(), now));
        ledger.sweep(later + KEPT_FOR);
        assert!(ledger.calls.is_empty() && ledger.apps.is_empty() && ledger.bytes == 0, "{ledger:?}");
    }

    #[test]
    fn who_has_too_much_loses_his_oldest_and_nobody_elses() {
        let (mut ledger, now) = (Ledger::default(), Instant::now());
        let mut keep = |serial, app| {
            ledger.begin(id(serial), app);
            ledger.end(id(serial), ended(serial, Outcome::Answered, vec![b'1'; 1 << 20]), false, now);
        };
        keep(1, OTHER);
        (2..=20).for_each(|serial| keep(serial, APP));
        let kept: Vec<u64> = (2..=20).filter(|it| ledger.look(id(*it), APP, now).is_some()).collect();
        assert_eq!(kept, (14..=20).collect::<Vec<_>>());
        assert!(ledger.look(id(1), OTHER, now).is_some());
        // Many together: whoever has most pays.
        for app in 3..20 {
            for serial in 0..6 {
                let call = id(app * 100 + serial);
                ledger.begin(call, AppId(Uuid::from_u128(app.into())));
                let body = vec![b'1'; 1 << 20];
                ledger.end(call, Ended { call: Some(call), ..ended(0, Outcome::Answered, body) }, false, now);
            }
        }
        assert!(ledger.bytes <= MAX_BYTES && ledger.bytes > MAX_BYTES / 2);
        assert!(ledger.look(id(1), OTHER, now).is_some());
    }
}
