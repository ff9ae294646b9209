//! Which loads are there, and how are they written on the command line?

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Error, Result, bail, ensure};

/// One load, the same for every system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scenario {
    /// Each pair keeps so many calls in flight: how many calls a second are there at most, and at what cost?
    Closed {
        /// Caller and target each.
        pairs: usize,
        /// Calls in flight for each pair.
        in_flight: usize,
    },
    /// Calls at a steady rate, whether or not earlier ones are answered: how long does one take?
    Open {
        /// Over all pairs.
        calls_per_s: u32,
        /// Taking turns.
        pairs: usize,
    },
    /// As `Open`, among devices that are connected and do nothing.
    Among {
        /// Over all pairs.
        calls_per_s: u32,
        /// Taking turns.
        pairs: usize,
        /// The others, one connection each.
        idle: usize,
    },
    /// As `Open`, each pair of a customer of its own, with the limits of the settings' defaults: does a greedy customer
    /// beside them show in how long their calls take?
    Fair {
        /// Over all pairs.
        calls_per_s: u32,
        /// A pair each.
        customers: usize,
        /// One customer more, at ten times his share.
        beside_greedy: bool,
    },
    /// Callable devices that do nothing: what does a connect cost, and what a connection?
    Idle {
        /// One connection each.
        devices: usize,
        /// They have been connected before, and lost their connections all at once: what does their coming back cost?
        again: bool,
        /// Over TLS; when they come back, by resuming their sessions.
        is_secure: bool,
    },
    /// As `Closed`, but the targets are away and every call is to end as offline.
    Offline {
        /// Callers, each with a target that is registered but not connected.
        pairs: usize,
        /// Calls in flight for each caller.
        in_flight: usize,
    },
}

/// How scenarios are written, for `--help`.
pub const SYNTAX: &str = "200x4 (pairs x calls in flight each), 2000/s@100 (calls a second over so many pairs, \
                          100 when left out), 2000/s@100+19000 (the same among so many idle devices), idle@19000 \
                          (connections), again@19000 (all of them come back), tls@5000 and \
                          resumed@5000 (the same over TLS), offline@200x1 (as 200x1, targets away), \
                          others@500/s and greedy@500/s (as 500/s@50, 50 customers, alone and beside a greedy one)";

/// How idle devices are written: whether they come again, and whether over TLS.
const IDLE: [(&str, bool, bool); 4] =
    [("idle@", false, false), ("again@", true, false), ("tls@", false, true), ("resumed@", true, true)];

/// What a run without `--scenario` measures.
pub const DEFAULT: &[&str] =
    &["200x1", "200x4", "2000/s", "idle@19000", "offline@200x1", "others@500/s", "greedy@500/s"];

/// Of the greedy customer.
pub const GREEDY_CALLERS: usize = 330;

impl Scenario {
    /// How many devices must exist; the even ones call, the odd ones are called.
    pub fn devices(self) -> usize {
        match self {
            Self::Closed { pairs, .. } | Self::Open { pairs, .. } | Self::Offline { pairs, .. } => 2 * pairs,
            Self::Fair { customers, .. } => 2 * (customers + GREEDY_CALLERS),
            Self::Among { pairs, idle, .. } => 2 * pairs + idle,
            Self::Idle { devices, .. } => devices,
        }
    }

    /// How many of them, at the end of their numbers, do nothing.
    pub fn idle(self) -> usize {
        match self {
            Self::Idle { devices, .. } => devices,
            Self::Among { idle, .. } => idle,
            _ => 0,
        }
    }

    /// Whether its devices come over TLS.
    pub fn is_secure(self) -> bool {
        matches!(self, Self::Idle { is_secure: true, .. })
    }

    /// How often a system needs to meet it at most: memory is the same each time, and so many connects take long.
    pub fn rounds_max(self) -> u32 {
        if self.idle() > 0 { 1 } else { u32::MAX }
    }

    /// Which customer a device belongs to: both of a pair are always of the same.
    pub fn customer_of(self, device: usize) -> usize {
        const CUSTOMER_DEVICES: usize = 200;
        match self {
            Self::Fair { customers, .. } => (device / 2).min(customers),
            _ => device / CUSTOMER_DEVICES,
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { pairs, in_flight } => write!(f, "{pairs}x{in_flight}"),
            Self::Open { calls_per_s, pairs } => write!(f, "{calls_per_s}/s@{pairs}"),
            Self::Fair { calls_per_s, customers, beside_greedy } => {
                let beside = if *beside_greedy { "greedy" } else { "others" };
                write!(f, "{beside}@{calls_per_s}/s@{customers}")
            }
            Self::Among { calls_per_s, pairs, idle } => write!(f, "{calls_per_s}/s@{pairs}+{idle}"),
            Self::Idle { devices, again, is_secure } => {
                let is_it = |(_, as_again, as_secure): &&(&str, bool, bool)| {
                    (as_again, as_secure) == (again, is_secure)
                };
                write!(f, "{}{devices}", IDLE.iter().find(is_it).map_or("", |(prefix, ..)| prefix))
            }
            Self::Offline { pairs, in_flight } => write!(f, "offline@{pairs}x{in_flight}"),
        }
    }
}

impl FromStr for Scenario {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let scenario =
            parse(text).with_context(|| format!("`{text}` is no scenario; these are: {SYNTAX}"))?;
        // The nonce of a call names its pair in four hexadecimal digits.
        ensure!(scenario.devices() - scenario.idle() <= 2 * 0xffff, "more than 65535 pairs");
        ensure!(scenario.idle() <= 1_000_000, "more than 1000000 idle devices");
        ensure!(scenario.devices() > 0, "no devices");
        Ok(scenario)
    }
}

fn parse(text: &str) -> Result<Scenario> {
    for (prefix, again, is_secure) in IDLE {
        if let Some(devices) = text.strip_prefix(prefix) {
            return Ok(Scenario::Idle { devices: devices.parse()?, again, is_secure });
        }
    }
    if let Some(load) = text.strip_prefix("offline@") {
        let (pairs, in_flight) = pairs_by_calls(load)?;
        return Ok(Scenario::Offline { pairs, in_flight });
    }
    for (beside, beside_greedy) in [("greedy@", true), ("others@", false)] {
        if let Some(load) = text.strip_prefix(beside) {
            let (calls_per_s, customers) = rate_over_pairs(load, "@50")?.context("`/s` is missing")?;
            return Ok(Scenario::Fair { calls_per_s, customers, beside_greedy });
        }
    }
    if let Some((load, idle)) = text.split_once('+') {
        let (calls_per_s, pairs) = rate_over_pairs(load, "@100")?.context("`/s` is missing")?;
        return Ok(Scenario::Among { calls_per_s, pairs, idle: idle.parse()? });
    }
    if let Some((calls_per_s, pairs)) = rate_over_pairs(text, "@100")? {
        return Ok(Scenario::Open { calls_per_s, pairs });
    }
    let (pairs, in_flight) = pairs_by_calls(text)?;
    Ok(Scenario::Closed { pairs, in_flight })
}

fn rate_over_pairs(text: &str, pairs_left_out: &str) -> Result<Option<(u32, usize)>> {
    let Some((rate, pairs)) = text.split_once("/s") else { return Ok(None) };
    let pairs = if pairs.is_empty() { pairs_left_out } else { pairs };
    let pairs = pairs.strip_prefix('@').context("`@` is missing")?.parse()?;
    let calls_per_s = rate.parse()?;
    ensure!((1..=1_000_000).contains(&calls_per_s), "a rate is 1 … 1000000 calls a second");
    Ok(Some((calls_per_s, pairs)))
}

fn pairs_by_calls(text: &str) -> Result<(usize, usize)> {
    let Some((pairs, in_flight)) = text.split_once('x') else { bail!("`x` is missing") };
    let in_flight = in_flight.parse()?;
    ensure!((1..=64).contains(&in_flight), "1 … 64 calls in flight");
    Ok((pairs.parse()?, in_flight))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_is_typed() {
        for text in DEFAULT.iter().chain(&["2000/s@100+200000", "again@200000", "tls@5", "resumed@5"]) {
            let scenario: Scenario = text.parse().unwrap();
            assert_eq!(scenario.to_string().parse::<Scenario>().unwrap(), scenario);
        }
        for text in [
            "",
            "x",
            "200",
            "0x1",
            "200x0",
            "0/s",
            "9/s100",
            "idle",
            "idle@0",
            "offline@3",
            "2x2+5",
            "idle@1000001",
        ] {
            assert!(text.parse::<Scenario>().is_err(), "{text}");
        }
    }
}
