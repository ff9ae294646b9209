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
    /// Callable devices that do nothing: what does a connect cost, and what a connection?
    Idle {
        /// One connection each.
        devices: usize,
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
                          100 when left out), idle@19000 (connections), offline@200x1 (as 200x1, targets away)";

/// What a run without `--scenario` measures.
pub const DEFAULT: &[&str] = &["200x1", "200x4", "2000/s", "idle@19000", "offline@200x1"];

impl Scenario {
    /// How many devices must exist; the even ones call, the odd ones are called.
    pub fn devices(self) -> usize {
        match self {
            Self::Closed { pairs, .. } | Self::Open { pairs, .. } | Self::Offline { pairs, .. } => 2 * pairs,
            Self::Idle { devices } => devices,
        }
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed { pairs, in_flight } => write!(f, "{pairs}x{in_flight}"),
            Self::Open { calls_per_s, pairs } => write!(f, "{calls_per_s}/s@{pairs}"),
            Self::Idle { devices } => write!(f, "idle@{devices}"),
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
        ensure!(scenario.devices() <= 2 * 0xffff, "more than 65535 pairs");
        ensure!(scenario.devices() > 0, "no devices");
        Ok(scenario)
    }
}

fn parse(text: &str) -> Result<Scenario> {
    if let Some(devices) = text.strip_prefix("idle@") {
        return Ok(Scenario::Idle { devices: devices.parse()? });
    }
    if let Some(load) = text.strip_prefix("offline@") {
        let (pairs, in_flight) = pairs_by_calls(load)?;
        return Ok(Scenario::Offline { pairs, in_flight });
    }
    if let Some((rate, pairs)) = text.split_once("/s") {
        let pairs = if pairs.is_empty() { "@100" } else { pairs };
        let pairs = pairs.strip_prefix('@').context("`@` is missing")?.parse()?;
        let calls_per_s = rate.parse()?;
        ensure!((1..=1_000_000).contains(&calls_per_s), "a rate is 1 … 1000000 calls a second");
        return Ok(Scenario::Open { calls_per_s, pairs });
    }
    let (pairs, in_flight) = pairs_by_calls(text)?;
    Ok(Scenario::Closed { pairs, in_flight })
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
        for text in DEFAULT {
            let scenario: Scenario = text.parse().unwrap();
            assert_eq!(scenario.to_string().parse::<Scenario>().unwrap(), scenario);
        }
        for text in ["", "x", "200", "0x1", "200x0", "0/s", "9/s100", "idle", "idle@0", "offline@3"] {
            assert!(text.parse::<Scenario>().is_err(), "{text}");
        }
    }
}
