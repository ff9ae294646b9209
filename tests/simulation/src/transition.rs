//! What is done to the system from outside, and when? A list, drawn from a seed: a story that can be cut.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::message::{MS, Micros, SECOND};

/// One thing that is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// When.
    pub at: Micros,
    /// What.
    pub what: Transition,
}

/// What can be done. Slots number the processes that run: nodes, then routers, then authorizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transition {
    /// A device connects, whether it has a connection already or not.
    Connect {
        /// Which device.
        device: usize,
        /// To which node.
        slot: usize,
    },
    /// A device closes its newest connection, and stays away.
    Close {
        /// Which device.
        device: usize,
    },
    /// A device calls another.
    Call {
        /// Who.
        caller: usize,
        /// Whom.
        target: usize,
        /// Its time.
        timeout_ms: u32,
        /// How long it may wait for the target.
        connect_ms: u32,
    },
    /// A device is given to a customer, or to nobody.
    Assign {
        /// Which device.
        device: usize,
        /// To whom.
        customer: Option<u8>,
    },
    /// A process sleeps.
    Pause {
        /// Which one.
        slot: usize,
        /// How long.
        lasts: Micros,
    },
    /// A process dies, and another takes its place.
    Kill {
        /// Which one.
        slot: usize,
        /// After how long.
        lasts: Micros,
    },
    /// A process stops gracefully, and another takes its place.
    Drain {
        /// Which one.
        slot: usize,
        /// How long after it has ended.
        lasts: Micros,
    },
    /// A node sends its devices away: they come back, to it or to another.
    Shed {
        /// Which one.
        slot: usize,
    },
    /// A process's cable is pulled: nobody notices at once.
    Cut {
        /// Which one.
        slot: usize,
        /// How long.
        lasts: Micros,
    },
    /// A process's connection is reset, and cannot be made again for a while.
    Reset {
        /// Which one.
        slot: usize,
        /// How long.
        lasts: Micros,
    },
    /// A process's wall clock jumps.
    ClockJumps {
        /// Which one.
        slot: usize,
        /// By how much.
        by_s: i64,
    },
    /// A server of NATS stops, and is started again.
    ServerStops {
        /// Which one.
        server: usize,
        /// After how long.
        lasts: Micros,
    },
    /// A server of NATS sleeps.
    ServerSleeps {
        /// Which one.
        server: usize,
        /// How long.
        lasts: Micros,
    },
    /// The store answers nobody: it elects a leader.
    Leaderless {
        /// How long.
        lasts: Micros,
    },
    /// The store loses the claims.
    LosesClaims {
        /// The bucket stays, and its revisions begin anew.
        keeps_definition: bool,
    },
    /// A watch falls behind.
    WatchLags {
        /// Of which process.
        slot: usize,
        /// By how much.
        by: Micros,
    },
    /// Whoever has stolen a node's credentials says that a device is with him, and calls in its name.
    Forge {
        /// Which device.
        device: usize,
    },
}

impl Transition {
    /// How long it stays wrong; none: it is no fault.
    pub fn fault(self) -> Option<Micros> {
        match self {
            Transition::Pause { lasts, .. }
            | Transition::Kill { lasts, .. }
            | Transition::Cut { lasts, .. }
            | Transition::Reset { lasts, .. }
            | Transition::ServerStops { lasts, .. }
            | Transition::ServerSleeps { lasts, .. }
            | Transition::Leaderless { lasts } => Some(lasts),
            // It may take so long to drain.
            Transition::Drain { lasts, .. } => Some(lasts + 12 * SECOND),
            Transition::WatchLags { .. } => Some(2 * SECOND),
            Transition::ClockJumps { .. } | Transition::LosesClaims { .. } => Some(0),
            Transition::Connect { .. }
            | Transition::Shed { .. }
            | Transition::Close { .. }
            | Transition::Call { .. }
            | Transition::Assign { .. }
            | Transition::Forge { .. } => None,
        }
    }
}

/// All of a story that is decided beforehand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Everything else is drawn from it: latencies, ids, whom a queue picks.
    pub seed: u64,
    /// How many servers NATS has.
    pub servers: usize,
    /// How many nodes.
    pub nodes: usize,
    /// How many routers.
    pub routers: usize,
    /// How many authorizers.
    pub authorizers: usize,
    /// How many devices.
    pub devices: usize,
    /// What is done, in order.
    pub steps: Vec<Step>,
}

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ingress.
    Node,
    /// A router.
    Router,
    /// An authorizer.
    Authorizer,
    /// Somebody who stole a node's credentials.
    Thief,
}

/// From when on faults come: everything has begun by then.
const FAULTS_FROM: Micros = 4 * SECOND;

impl Plan {
    /// The story of a seed.
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let (nodes, routers, authorizers) = (rng.usize(1..=3), rng.usize(1..=3), rng.usize(1..=2));
        let servers = if rng.u8(0..3) == 0 { 1 } else { 3 };
        let devices = rng.usize(2..=5);
        let mut plan = Plan { seed, servers, nodes, routers, authorizers, devices, steps: Vec::new() };
        for device in 0..devices {
            let customer = Some(u8::from(rng.u8(0..6) == 0));
            plan.step(0, Transition::Assign { device, customer });
            let at = rng.u64(SECOND..3 * SECOND);
            plan.step(at, Transition::Connect { device, slot: rng.usize(..nodes) });
        }
        let ends = FAULTS_FROM + rng.u64(2..12) * SECOND;
        for _ in 0..rng.usize(0..=4) {
            let at = rng.u64(FAULTS_FROM..ends);
            let what = plan.any_fault(&mut rng);
            plan.step(at, what);
        }
        if rng.u8(0..3) == 0 {
            plan.arrival(&mut rng, ends);
        }
        let heals_at = plan.heals_at();
        for _ in 0..rng.usize(0..=5) {
            let at = rng.u64(FAULTS_FROM..heals_at.max(ends));
            let device = rng.usize(..devices);
            let what = match rng.u8(0..10) {
                0..=4 => Transition::Connect { device, slot: rng.usize(..nodes) },
                5..=6 => Transition::Close { device },
                7..=8 => {
                    let customer = rng.bool().then_some(u8::from(rng.u8(0..3) == 0));
                    Transition::Assign { device, customer }
                }
                _ => Transition::Forge { device },
            };
            plan.step(at, what);
        }
        for _ in 0..rng.usize(5..=30) {
            let at = rng.u64(2 * SECOND..heals_at.max(ends) + 4 * SECOND);
            let timeout_ms = rng.u32(200..5_000);
            let connect_ms = if rng.bool() { 0 } else { rng.u32(..timeout_ms) };
            let (caller, target) = (rng.usize(..devices), rng.usize(..devices));
            plan.step(at, Transition::Call { caller, target, timeout_ms, connect_ms });
        }
        // Drawn from numbers of its own: all else stays as it would be without.
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5_4ed);
        for _ in 0..rng.usize(0..=2) {
            plan.handover(&mut rng, heals_at.max(ends));
        }
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x51_ee9);
        if rng.u8(0..10) == 0 {
            plan.long_sleep(&mut rng);
        }
        plan.steps.sort_by_key(|step| step.at);
        plan
    }

    /// A device goes, is called by one that waits for it, and comes back; perhaps all routers but one stop meanwhile.
    fn arrival(&mut self, rng: &mut fastrand::Rng, ends: Micros) {
        let target = rng.usize(1..self.devices);
        let caller = rng.usize(..target);
        let goes_at = rng.u64(FAULTS_FROM - SECOND..ends);
        let calls_at = goes_at + rng.u64(300..800) * MS;
        // Some wait for longer than a router takes to stop.
        let is_long = rng.u8(0..3) == 0;
        let connect_ms = if is_long { rng.u32(15_000..18_000) } else { rng.u32(1_500..5_000) };
        let earliest_ms = if is_long { 13_000 } else { 500 };
        let comes_at = calls_at + u64::from(rng.u32(earliest_ms..connect_ms)) * MS;
        let timeout_ms = connect_ms + 1_500;
        self.step(goes_at, Transition::Close { device: target });
        self.step(calls_at, Transition::Call { caller, target, timeout_ms, connect_ms });
        self.step(comes_at, Transition::Connect { device: target, slot: rng.usize(..self.nodes) });
        if rng.bool() {
            for slot in self.nodes..self.nodes + self.routers - 1 {
                let stops_at = calls_at + rng.u64(100..1_000) * MS;
                self.step(stops_at, Transition::Drain { slot, lasts: rng.u64(..SECOND) });
            }
        }
    }

    /// A node sends its devices away, and somebody is called at that moment.
    fn handover(&mut self, rng: &mut fastrand::Rng, ends: Micros) {
        let at = rng.u64(FAULTS_FROM..ends + SECOND);
        self.step(at, Transition::Shed { slot: rng.usize(..self.nodes) });
        for _ in 0..rng.usize(1..4) {
            let (caller, target) = (rng.usize(..self.devices), rng.usize(..self.devices));
            let timeout_ms = rng.u32(1_000..9_000);
            let calls_at = at + rng.u64(..2_500) * MS;
            self.step(calls_at, Transition::Call { caller, target, timeout_ms, connect_ms: 0 });
        }
    }

    /// A router sleeps for longer than a lease, and somebody is called when it wakes.
    fn long_sleep(&mut self, rng: &mut fastrand::Rng) {
        let slot = self.nodes + rng.usize(..self.routers);
        let (at, lasts) = (rng.u64(FAULTS_FROM..FAULTS_FROM + 4 * SECOND), rng.u64(11_000..16_000) * MS);
        self.step(at, Transition::Pause { slot, lasts });
        for _ in 0..rng.usize(1..6) {
            let (caller, target) = (rng.usize(..self.devices), rng.usize(..self.devices));
            let calls_at = at + lasts + rng.u64(..600) * MS;
            self.step(calls_at, Transition::Call { caller, target, timeout_ms: 3_000, connect_ms: 0 });
        }
    }

    fn any_fault(&self, rng: &mut fastrand::Rng) -> Transition {
        let slot = rng.usize(..self.nodes + self.routers + self.authorizers);
        let server = rng.usize(..self.servers);
        let lasts = match rng.u8(0..10) {
            0..=2 => rng.u64(50..1_500) * MS,
            3..=6 => rng.u64(1_500..6_000) * MS,
            7..=8 => rng.u64(6_000..14_000) * MS,
            _ => rng.u64(14_000..22_000) * MS,
        };
        match rng.u8(0..20) {
            0..=3 => Transition::Pause { slot, lasts },
            4..=6 => Transition::Kill { slot, lasts: lasts.min(5 * SECOND) },
            7..=8 => Transition::Drain { slot, lasts: lasts.min(3 * SECOND) },
            9..=11 => Transition::Cut { slot, lasts },
            12..=13 => Transition::Reset { slot, lasts },
            14 => Transition::ClockJumps { slot, by_s: if rng.bool() { 300 } else { -300 } },
            15 => Transition::ServerStops { server, lasts },
            16 => Transition::ServerSleeps { server, lasts },
            17 => Transition::Leaderless { lasts: lasts.min(8 * SECOND) },
            18 => Transition::LosesClaims { keeps_definition: rng.bool() },
            _ => Transition::WatchLags { slot, by: rng.u64(10..3_000) * MS },
        }
    }

    fn step(&mut self, at: Micros, what: Transition) {
        self.steps.push(Step { at, what });
    }

    /// When the last fault is over.
    pub fn heals_at(&self) -> Micros {
        let ends = self.steps.iter().filter_map(|step| step.what.fault().map(|lasts| step.at + lasts));
        ends.max().unwrap_or(0).max(FAULTS_FROM)
    }

    /// Which kind of process is in a slot.
    pub fn kind_of(&self, slot: usize) -> Kind {
        match slot {
            _ if slot < self.nodes => Kind::Node,
            _ if slot < self.nodes + self.routers => Kind::Router,
            _ if slot < self.nodes + self.routers + self.authorizers => Kind::Authorizer,
            _ => Kind::Thief,
        }
    }

    /// What a slot's process is called.
    pub fn name_of(&self, slot: usize) -> String {
        match self.kind_of(slot) {
            Kind::Node => format!("node {}", slot + 1),
            Kind::Router => format!("router {}", slot - self.nodes + 1),
            Kind::Authorizer => format!("authorizer {}", slot - self.nodes - self.routers + 1),
            Kind::Thief => "the thief".into(),
        }
    }

    /// A step, told.
    pub fn tell(&self, what: Transition) -> String {
        let name = |slot: usize| self.name_of(slot);
        match what {
            Transition::Connect { device, slot } => format!("D{device} connects to {}", name(slot)),
            Transition::Close { device } => format!("D{device} closes its connection"),
            Transition::Call { caller, target, timeout_ms, connect_ms } => {
                format!("D{caller} calls D{target}, for {timeout_ms} ms, waiting {connect_ms} ms for it")
            }
            Transition::Assign { device, customer: Some(customer) } => {
                format!("D{device} is assigned to customer {customer}")
            }
            Transition::Assign { device, customer: None } => format!("D{device} is unassigned"),
            Transition::Pause { slot, lasts } => format!("{} sleeps for {}", name(slot), Seconds(lasts)),
            Transition::Kill { slot, lasts } => {
                format!("{} is killed; another starts after {}", name(slot), Seconds(lasts))
            }
            Transition::Drain { slot, lasts } => {
                format!("{} is told to stop; another starts {} after it has", name(slot), Seconds(lasts))
            }
            Transition::Shed { slot } => format!("{} sends its devices away", name(slot)),
            Transition::Cut { slot, lasts } => format!("{} is cut off for {}", name(slot), Seconds(lasts)),
            Transition::Reset { slot, lasts } => {
                format!("{}'s connection is reset, and cannot be made for {}", name(slot), Seconds(lasts))
            }
            Transition::ClockJumps { slot, by_s } => format!("{}'s clock jumps by {by_s} s", name(slot)),
            Transition::ServerStops { server, lasts } => {
                format!("server {} of NATS stops for {}", server + 1, Seconds(lasts))
            }
            Transition::ServerSleeps { server, lasts } => {
                format!("server {} of NATS sleeps for {}", server + 1, Seconds(lasts))
            }
            Transition::Leaderless { lasts } => format!("the store has no leader for {}", Seconds(lasts)),
            Transition::LosesClaims { keeps_definition: true } => {
                "the store loses the claims; their bucket stays, and its revisions begin anew".into()
            }
            Transition::LosesClaims { keeps_definition: false } => {
                "the store loses the claims and their bucket, which is made anew".into()
            }
            Transition::WatchLags { slot, by } => format!("{}'s watch lags by {}", name(slot), Seconds(by)),
            Transition::Forge { device } => {
                format!("a thief says that D{device} is with him, and calls as it")
            }
        }
    }
}

/// Virtual time, for people.
#[derive(Debug, Clone, Copy)]
pub struct Seconds(pub Micros);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03} s", self.0 / SECOND, self.0 % SECOND / MS)
    }
}
