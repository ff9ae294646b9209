//! Is this process ready for work, and if not, what is it waiting for?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

/// Why a part is not ready before it has said anything.
const STARTING: &str = "starting";

/// The parts of a process that must be ready before it is; clones share them.
///
/// Several services of one process each take a [`scoped`](Self::scoped) clone: their parts stand apart, and the
/// process is ready when every scope is. A scope without a part is not ready: it has yet to begin.
#[derive(Clone)]
pub struct Health {
    /// Name of the service with a `/` behind it, or empty.
    scope: Arc<str>,
    state: watch::Sender<State>,
}

/// One thing that must be ready, such as the bus or a first load. Not ready until it says so; dropping it
/// changes nothing.
#[derive(Clone)]
pub struct Part {
    name: Arc<str>,
    state: watch::Sender<State>,
}

#[derive(Clone, Debug, Default)]
struct State {
    draining: bool,
    scopes: BTreeSet<Arc<str>>,
    /// By full name.
    parts: BTreeMap<Arc<str>, Standing>,
}

/// How a part is, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Ready,
    ReadyThough(String),
    NotReady(String),
}

impl Health {
    /// Of a process that runs a single service.
    pub fn new() -> Self {
        Self { scope: "".into(), state: watch::Sender::new(State::default()) }
    }

    /// The same health as `service` sees it: its parts are named `service/part`, and its
    /// [`wait_ready`](Self::wait_ready) waits for them alone.
    pub fn scoped(&self, service: &str) -> Self {
        let scope: Arc<str> = format!("{}{service}/", self.scope).into();
        self.state.send_modify(|state| {
            state.scopes.insert(Arc::clone(&scope));
        });
        Self { scope, state: self.state.clone() }
    }

    /// The part of this name; not ready, when it is new.
    pub fn part(&self, name: &str) -> Part {
        let name: Arc<str> = format!("{}{name}", self.scope).into();
        self.state.send_modify(|state| {
            state.parts.entry(Arc::clone(&name)).or_insert_with(|| Standing::NotReady(STARTING.to_owned()));
        });
        Part { name, state: self.state.clone() }
    }

    /// From now on the whole process is not ready, whatever its parts say: it is shutting down.
    pub fn draining(&self) {
        self.state.send_if_modified(|state| !std::mem::replace(&mut state.draining, true));
    }

    /// Whether every part in this scope is ready, and the process is not draining.
    pub fn is_ready(&self) -> bool {
        self.state.borrow().is_ready(&self.scope)
    }

    /// Waits until [`is_ready`](Self::is_ready). It has no end when that never comes: select it with the shutdown.
    pub async fn wait_ready(&self) {
        // The sender is held here, so that the wait cannot fail.
        let _ = self.state.subscribe().wait_for(|state| state.is_ready(&self.scope)).await;
    }

    /// Every part and scope in this scope that is not ready, and why; empty when it is ready.
    pub fn unready(&self) -> Vec<(String, String)> {
        self.state.borrow().unready(&self.scope)
    }
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Health").field("scope", &self.scope).field("state", &*self.state.borrow()).finish()
    }
}

/// A line for each part: `bus: ready`, `bus: ready, though NATS is gone`, `bus: not ready: NATS is gone`.
impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.borrow();
        for (name, reason) in state.unready(&self.scope) {
            writeln!(f, "{name}: not ready: {reason}")?;
        }
        state.parts_of(&self.scope).try_for_each(|(name, standing)| match standing {
            Standing::Ready => writeln!(f, "{name}: ready"),
            Standing::ReadyThough(why) => writeln!(f, "{name}: ready, though {why}"),
            Standing::NotReady(_) => Ok(()),
        })
    }
}

impl Part {
    /// It works.
    pub fn ready(&self) {
        self.set(Standing::Ready);
    }

    /// It works well enough for now, though something is wrong that an operator should read.
    pub fn ready_though(&self, why: &str) {
        self.set(Standing::ReadyThough(why.to_owned()));
    }

    /// It does not, for a reason that an operator can read.
    pub fn not_ready(&self, why: &str) {
        self.set(Standing::NotReady(why.to_owned()));
    }

    /// It is no part any more: what was waited for has come, and others say how it goes on.
    pub fn withdraw(self) {
        self.state.send_if_modified(|state| state.parts.remove(&self.name).is_some());
    }

    fn set(&self, standing: Standing) {
        self.state.send_if_modified(|state| match state.parts.get_mut(&self.name) {
            Some(part) if *part != standing => {
                *part = standing;
                true
            }
            _ => false,
        });
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Part").field(&self.name).finish()
    }
}

impl Standing {
    fn why_not(&self) -> Option<&str> {
        match self {
            Standing::Ready | Standing::ReadyThough(_) => None,
            Standing::NotReady(why) => Some(why),
        }
    }
}

impl State {
    fn is_ready(&self, scope: &str) -> bool {
        !self.draining
            && self.parts_of(scope).next().is_some()
            && self.scopes_of(scope).all(|inner| self.parts_of(inner).next().is_some())
            && self.parts_of(scope).all(|(_, standing)| standing.why_not().is_none())
    }

    fn unready(&self, scope: &str) -> Vec<(String, String)> {
        let draining = self.draining.then(|| ("process".to_owned(), "shutting down".to_owned()));
        let empty = std::iter::once(scope)
            .chain(self.scopes_of(scope))
            .filter(|scope| self.parts_of(scope).next().is_none())
            .map(|scope| if scope.is_empty() { "process" } else { scope.trim_end_matches('/') })
            .map(|scope| (scope.to_owned(), STARTING.to_owned()));
        let parts = self
            .parts_of(scope)
            .filter_map(|(name, standing)| Some((name.to_string(), standing.why_not()?.to_owned())));
        draining.into_iter().chain(empty).chain(parts).collect()
    }

    fn parts_of(&self, scope: &str) -> impl Iterator<Item = (&Arc<str>, &Standing)> {
        self.parts.iter().filter(move |(name, _)| name.starts_with(scope))
    }

    /// Those inside `scope`, without itself.
    fn scopes_of(&self, scope: &str) -> impl Iterator<Item = &str> {
        self.scopes.iter().map(AsRef::as_ref).filter(move |inner| inner.starts_with(scope) && *inner != scope)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_once_every_part_is() {
        let health = Health::new();
        assert!(!health.is_ready(), "nothing has begun");
        assert_eq!(health.unready(), [("process".to_owned(), "starting".to_owned())]);

        let (bus, directory) = (health.part("bus"), health.part("directory"));
        bus.ready();
        assert_eq!(health.to_string(), "directory: not ready: starting\nbus: ready\n");
        directory.ready();
        assert!(health.is_ready());

        bus.not_ready("NATS is gone");
        assert!(!health.is_ready());
        assert_eq!(health.unready(), [("bus".to_owned(), "NATS is gone".to_owned())]);
        health.part("bus").ready();
        assert!(health.is_ready(), "a part of the same name is the same part");
        bus.ready_though("NATS is gone");
        assert!(health.is_ready() && health.to_string().contains("bus: ready, though NATS is gone\n"));
        bus.ready();
    }

    #[test]
    fn between_two_parts_nothing_is_ready() {
        let health = Health::new();
        let connecting = health.part("nats");
        connecting.withdraw();
        assert!(!health.is_ready(), "what comes next has yet to begin");
        let serving = health.part("calls");
        assert!(!health.is_ready());
        serving.ready();
        assert!(health.is_ready());
    }

    #[test]
    fn draining_is_for_good() {
        let health = Health::new();
        let bus = health.part("bus");
        bus.ready();
        health.clone().draining();
        bus.ready();
        assert!(!health.is_ready());
        assert_eq!(health.to_string(), "process: not ready: shutting down\nbus: ready\n");
    }

    #[test]
    fn scopes_stand_apart() {
        let health = Health::new();
        let (ingress, router) = (health.scoped("ingress"), health.scoped("router"));
        ingress.part("bus").ready();
        assert!(ingress.is_ready());
        assert!(!router.is_ready(), "its part is another");
        assert!(!health.is_ready(), "the router has yet to begin");
        assert_eq!(health.unready(), [("router".to_owned(), "starting".to_owned())]);
        router.part("bus").ready();
        assert!(health.is_ready());
    }

    #[tokio::test]
    async fn wait_ready_ends_with_the_last_part() {
        let health = Health::new();
        let parts = ["bus", "claims"].map(|name| health.part(name));
        let waiting = tokio::spawn({
            let health = health.clone();
            async move { health.wait_ready().await }
        });
        parts.iter().for_each(Part::ready);
        waiting.await.unwrap();
    }
}
