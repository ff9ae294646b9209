//! Which devices are kept in mind between their requests? A device that speaks a protocol without connections is known
//! from its first request until it was idle for long enough, so that its token is looked up once. Pure.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::sessions::CredentialDigest;

/// Names one visit of a device: it is never given twice.
pub type Key = u64;

/// Everyone who is kept in mind; `V` is what a protocol keeps of each.
#[derive(Debug)]
pub struct Visitors<V> {
    max: usize,
    idle: Duration,
    by_credential: HashMap<CredentialDigest, Key>,
    visits: BTreeMap<Key, Visit<V>>,
    /// Those that nothing holds, by when they were last used.
    unheld: BTreeSet<(Instant, Key)>,
    last_key: Key,
}

#[derive(Debug)]
struct Visit<V> {
    credential: CredentialDigest,
    /// Requests and sessions that need it.
    holds: usize,
    used_at: Instant,
    of: V,
}

impl<V> Visitors<V> {
    /// Nobody yet; at most `max`, each for as long as something holds it and for `idle` after that.
    pub fn new(max: usize, idle: Duration) -> Self {
        Visitors {
            max,
            idle,
            by_credential: HashMap::new(),
            visits: BTreeMap::new(),
            unheld: BTreeSet::new(),
            last_key: 0,
        }
    }

    /// Who shows this credential, if he is known.
    pub fn find(&self, credential: &CredentialDigest) -> Option<Key> {
        self.by_credential.get(credential).copied()
    }

    /// Keeps somebody new in mind, in the place of whoever showed that credential before. None when there is no room.
    pub fn add(&mut self, credential: CredentialDigest, of: V, now: Instant) -> Option<Key> {
        if self.visits.len() >= self.max {
            return None;
        }
        self.last_key += 1;
        let key = self.last_key;
        self.visits.insert(key, Visit { credential, holds: 0, used_at: now, of });
        self.by_credential.insert(credential, key);
        self.unheld.insert((now, key));
        Some(key)
    }

    /// What is kept of him.
    pub fn get(&self, key: Key) -> Option<&V> {
        self.visits.get(&key).map(|visit| &visit.of)
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, key: Key) -> Option<&mut V> {
        self.visits.get_mut(&key).map(|visit| &mut visit.of)
    }

    /// Something needs him: he is kept until it [lets go](Self::let_go).
    pub fn hold(&mut self, key: Key) {
        if let Some(visit) = self.visits.get_mut(&key) {
            visit.holds += 1;
            self.unheld.remove(&(visit.used_at, key));
        }
    }

    /// True while something needs him.
    pub fn is_held(&self, key: Key) -> bool {
        self.visits.get(&key).is_some_and(|visit| visit.holds > 0)
    }

    /// One thing fewer needs him. True when nothing does any more.
    pub fn let_go(&mut self, key: Key, now: Instant) -> bool {
        let Some(visit) = self.visits.get_mut(&key) else { return false };
        visit.holds = visit.holds.saturating_sub(1);
        if visit.holds == 0 {
            self.unheld.remove(&(visit.used_at, key));
            visit.used_at = now;
            self.unheld.insert((now, key));
        }
        visit.holds == 0
    }

    /// Forgets him, and hands back what was kept.
    pub fn forget(&mut self, key: Key) -> Option<V> {
        let visit = self.visits.remove(&key)?;
        self.unheld.remove(&(visit.used_at, key));
        if self.by_credential.get(&visit.credential) == Some(&key) {
            self.by_credential.remove(&visit.credential);
        }
        if self.visits.is_empty() {
            // Many who have gone leave no memory behind.
            self.by_credential = HashMap::new();
        }
        Some(visit.of)
    }

    /// The one who has been idle for long enough, if there is one: forget him, or [use](Self::touch) him again.
    pub fn idle(&self, now: Instant) -> Option<Key> {
        self.unheld.first().filter(|(used_at, _)| *used_at + self.idle <= now).map(|(_, key)| *key)
    }

    /// When [`idle`](Self::idle) has somebody next, as things are.
    pub fn next_idle(&self) -> Option<Instant> {
        self.unheld.first().map(|(used_at, _)| *used_at + self.idle)
    }

    /// He is of use now, though nothing holds him: his idle time begins anew.
    pub fn touch(&mut self, key: Key, now: Instant) {
        if let Some(visit) = self.visits.get_mut(&key) {
            if self.unheld.remove(&(visit.used_at, key)) {
                self.unheld.insert((now, key));
            }
            visit.used_at = now;
        }
    }

    /// Those that nothing holds, in the order of their coming.
    pub fn unheld(&self) -> Vec<Key> {
        self.visits.iter().filter(|(_, visit)| visit.holds == 0).map(|(key, _)| *key).collect()
    }

    /// How many are kept in mind.
    pub fn len(&self) -> usize {
        self.visits.len()
    }

    /// True when nobody is kept in mind.
    pub fn is_empty(&self) -> bool {
        self.visits.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDLE: Duration = Duration::from_secs(10);

    fn seconds(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    #[test]
    fn a_visitor_is_kept_while_held_and_for_a_while_after() {
        let start = Instant::now();
        let mut visitors = Visitors::new(2, IDLE);
        let a = visitors.add([1; 32], "a", start).unwrap();
        let b = visitors.add([2; 32], "b", seconds(start, 1)).unwrap();
        assert_eq!((visitors.add([3; 32], "c", start), visitors.len()), (None, 2));
        visitors.hold(a);
        visitors.hold(a);
        assert_eq!(visitors.next_idle(), Some(seconds(start, 11)));
        assert_eq!((visitors.idle(seconds(start, 10)), visitors.idle(seconds(start, 11))), (None, Some(b)));
        assert!(!visitors.let_go(a, seconds(start, 5)) && visitors.is_held(a));
        assert!(visitors.let_go(a, seconds(start, 6)) && !visitors.is_held(a));
        visitors.touch(b, seconds(start, 7));
        assert_eq!((visitors.idle(seconds(start, 16)), visitors.unheld()), (Some(a), vec![a, b]));
        assert_eq!(
            (visitors.forget(a), visitors.forget(a), visitors.find(&[1; 32])),
            (Some("a"), None, None)
        );
        assert_eq!((visitors.find(&[2; 32]), visitors.get(b)), (Some(b), Some(&"b")));
        *visitors.get_mut(b).unwrap() = "B";
        assert_eq!((visitors.forget(b), visitors.is_empty(), visitors.next_idle()), (Some("B"), true, None));
    }

    #[test]
    fn the_newest_with_a_credential_is_found_and_an_older_one_does_not_take_it_along() {
        let now = Instant::now();
        let mut visitors = Visitors::new(2, IDLE);
        let older = visitors.add([1; 32], (), now).unwrap();
        let newer = visitors.add([1; 32], (), now).unwrap();
        assert_eq!(visitors.find(&[1; 32]), Some(newer));
        visitors.forget(older);
        assert_eq!(visitors.find(&[1; 32]), Some(newer));
    }

    proptest! {
        #[test]
        fn who_is_held_is_never_idle_and_who_is_not_is_in_time(
            steps in proptest::collection::vec((0u8..5, 0u8..4, 0u64..8), 1..100),
        ) {
            let mut now = Instant::now();
            let mut visitors = Visitors::new(3, IDLE);
            let mut model: BTreeMap<Key, (usize, Instant)> = BTreeMap::new();
            for (what, who, seconds) in steps {
                now += Duration::from_secs(seconds);
                let key = model.keys().nth(usize::from(who)).copied().unwrap_or(999);
                match what {
                    0 => if let Some(key) = visitors.add([who; 32], (), now) {
                        model.insert(key, (0, now));
                    },
                    1 => {
                        visitors.hold(key);
                        if let Some(it) = model.get_mut(&key) { it.0 += 1; }
                    }
                    2 => {
                        visitors.let_go(key, now);
                        if let Some(it) = model.get_mut(&key) {
                            it.0 = it.0.saturating_sub(1);
                            if it.0 == 0 { it.1 = now; }
                        }
                    }
                    3 => {
                        visitors.touch(key, now);
                        if let Some(it) = model.get_mut(&key) { it.1 = now; }
                    }
                    _ => while let Some(key) = visitors.idle(now) {
                        let (holds, used_at) = model.remove(&key).unwrap();
                        prop_assert!(holds == 0 && used_at + IDLE <= now);
                        visitors.forget(key);
                    },
                }
                prop_assert_eq!(visitors.len(), model.len());
                let next = model.values().filter(|it| it.0 == 0).map(|it| it.1 + IDLE).min();
                prop_assert_eq!(visitors.next_idle(), next);
            }
        }
    }
}
