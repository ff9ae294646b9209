//! Which calls wait, for what, and until when? For a target that is not there, or for a node that reconnects.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use rpc::{CallId, DeviceId};

use super::Underway;

/// A call that waits, and when it is to be looked at again.
#[derive(Debug)]
struct Waiting<T> {
    call: Underway<T>,
    look_at: (Instant, u64),
}

/// All of them, by target.
#[derive(Debug)]
pub(super) struct WaitingRoom<T> {
    waiting: HashMap<DeviceId, Vec<Waiting<T>>>,
    looks: BTreeMap<(Instant, u64), DeviceId>,
    last_number: u64,
}

impl<T> Default for WaitingRoom<T> {
    fn default() -> Self {
        WaitingRoom { waiting: HashMap::new(), looks: BTreeMap::new(), last_number: 0 }
    }
}

impl<T> WaitingRoom<T> {
    /// A call waits until `look_at`, or until something happens to its target.
    pub(super) fn enter(&mut self, mut call: Underway<T>, look_at: Instant) {
        call.has_waited = true;
        self.last_number += 1;
        let (target, look_at) = (call.target, (look_at, self.last_number));
        self.looks.insert(look_at, target);
        self.waiting.entry(target).or_default().push(Waiting { call, look_at });
    }

    /// Those that wait for `target`: they may go on.
    pub(super) fn leave(&mut self, target: DeviceId) -> Vec<Underway<T>> {
        let waiting = self.waiting.remove(&target).unwrap_or_default();
        waiting
            .into_iter()
            .map(|Waiting { call, look_at }| {
                self.looks.remove(&look_at);
                call
            })
            .collect()
    }

    /// The next one whose time to be looked at has come.
    pub(super) fn next_due(&mut self, now: Instant) -> Option<Underway<T>> {
        let (&look_at, &target) = self.looks.first_key_value().filter(|((at, _), _)| *at <= now)?;
        self.take(target, |waiting| waiting.look_at == look_at)
    }

    /// Its caller is gone.
    pub(super) fn cancel(&mut self, target: DeviceId, call: CallId) -> Option<Underway<T>> {
        self.take(target, |waiting| waiting.call.id == call)
    }

    /// All of them, as the router stops.
    pub(super) fn leave_all(&mut self) -> Vec<Underway<T>> {
        let targets: Vec<DeviceId> = self.waiting.keys().copied().collect();
        targets.into_iter().flat_map(|target| self.leave(target)).collect()
    }

    /// When the next one is to be looked at.
    pub(super) fn next_look(&self) -> Option<Instant> {
        self.looks.first_key_value().map(|((at, _), _)| *at)
    }

    pub(super) fn len(&self) -> usize {
        self.looks.len()
    }

    fn take(&mut self, target: DeviceId, is_it: impl Fn(&Waiting<T>) -> bool) -> Option<Underway<T>> {
        let waiting = self.waiting.get_mut(&target)?;
        let Waiting { call, look_at } = waiting.swap_remove(waiting.iter().position(is_it)?);
        if waiting.is_empty() {
            self.waiting.remove(&target);
        }
        self.looks.remove(&look_at);
        Some(call)
    }
}
