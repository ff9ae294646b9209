//! Which systems are compared?

pub mod chain;
pub mod mosquitto;
pub mod nats;
mod process;
pub mod rumqttd;
pub mod switchboard;
mod tools;
pub mod users;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Error, Result};
use serde::{Serialize, Serializer};

pub use self::process::{Folder, Process, free_port};
pub use self::tools::{Tools, first_line, printed_version};
use crate::scenario::Scenario;
use crate::wire::Dialect;

/// A system under load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// Ingress, authorizer, router and nats-server, each a process of its own, all checks on.
    Separate {
        /// So many processes of each service, every call from one node to another.
        nodes: usize,
    },
    /// The same with the three services in one process.
    Together {
        /// So many of those.
        nodes: usize,
    },
    /// One node without a journal of calls: what that costs is the difference.
    Forgetful,
    /// `switchboard up`: everything in one process, and its nats-server.
    Up,
    /// The same hops over the same NATS with nothing in them: what such a chain costs at least.
    Chain,
    /// The chain as nested requests: each service waits for the next one's answer.
    ChainNested,
    /// The chain with answers that go straight to the caller's front.
    ChainDirect,
    /// Debian's mosquitto as a bare broker between the two devices.
    Mosquitto,
    /// The same with a password for each device, and rights for each customer.
    MosquittoAcl,
    /// rumqttd as a bare broker between the two devices.
    Rumqttd,
    /// nats-server's MQTT gateway as a bare broker between the two devices.
    NatsMqtt,
    /// nats-server between devices that speak NATS, with a user for each, and permissions for each customer.
    NatsUsers,
}

/// What a system does of the work of a call.
pub struct Described {
    /// Which one, as one node.
    pub system: System,
    /// As on the command line; those of several nodes end in their number.
    pub name: &'static str,
    /// What it does.
    pub does: &'static str,
    /// What is left to the devices.
    pub does_not: &'static str,
}

/// All there are, in the order in which they are shown.
pub const ALL: [Described; 12] = [
    Described {
        system: System::Separate { nodes: 1 },
        name: "switchboard",
        does: "names, customers, limits, who is there, time-outs, one answer; a process for each service",
        does_not: "",
    },
    Described {
        system: System::Together { nodes: 1 },
        name: "together",
        does: "the same; its three services in one process",
        does_not: "",
    },
    Described {
        system: System::Forgetful,
        name: "forgetful",
        does: "as switchboard",
        does_not: "remember calls",
    },
    Described {
        system: System::Up,
        name: "up",
        does: "the same; all in one process",
        does_not: "a second node",
    },
    Described {
        system: System::Chain,
        name: "chain",
        does: "an MQTT front and the same hops, empty",
        does_not: "any check",
    },
    Described {
        system: System::ChainNested,
        name: "chain-nested",
        does: "the same, each service waiting for the next one's answer",
        does_not: "any check",
    },
    Described {
        system: System::ChainDirect,
        name: "chain-direct",
        does: "the same, answers going past the router, which is told later, of many at once",
        does_not: "any check",
    },
    Described {
        system: System::Mosquitto,
        name: "mosquitto",
        does: "topics",
        does_not: "names, customers, limits, who is there, time-outs, one answer",
    },
    Described {
        system: System::MosquittoAcl,
        name: "mosquitto-acl",
        does: "topics, names, customers: a password each, an access control list",
        does_not: "limits, who is there, time-outs, one answer; a new device needs its files read again",
    },
    Described {
        system: System::Rumqttd,
        name: "rumqttd",
        does: "topics",
        does_not: "names, customers, limits, who is there, time-outs, one answer",
    },
    Described {
        system: System::NatsMqtt,
        name: "nats-mqtt",
        does: "topics, as subjects of a NATS that may have many servers",
        does_not: "names, customers, limits, who is there, time-outs, one answer",
    },
    Described {
        system: System::NatsUsers,
        name: "nats-users",
        does: "subjects, names, customers: a user each, permissions; who is there",
        does_not: "MQTT, limits, time-outs, one answer; a new device needs its configuration read again",
    },
];

/// How systems are written, for `--help`.
pub const SYNTAX: &str = "The systems to compare, in the order in which they take turns: switchboard, together, \
                          forgetful, up, chain, chain-nested, chain-direct, mosquitto, mosquitto-acl, rumqttd, \
                          nats-mqtt, nats-users; switchboard-2 is two of each service, every call from one \
                          node to the other [default: all but together, forgetful, chain-nested, \
                          chain-direct and nats-mqtt]";

/// What a run without `--systems` compares.
pub const DEFAULT: &[&str] =
    &["switchboard", "up", "chain", "mosquitto", "mosquitto-acl", "nats-users", "rumqttd"];

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let one = self.with_nodes(1);
        let name =
            ALL.iter().find(|described| described.system == one).map_or("", |described| described.name);
        match self.nodes() {
            None | Some(1) => f.pad(name),
            Some(nodes) => f.pad(&format!("{name}-{nodes}")),
        }
    }
}

impl FromStr for System {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let known = |name: &str| ALL.iter().find(|described| described.name == name).map(|it| it.system);
        let several = || {
            let (name, nodes) = text.rsplit_once('-')?;
            let nodes = nodes.parse().ok().filter(|nodes| (2..=16).contains(nodes))?;
            known(name).filter(|system| system.nodes().is_some()).map(|system| system.with_nodes(nodes))
        };
        known(text).or_else(several).with_context(|| {
            let names: Vec<&str> = ALL.iter().map(|described| described.name).collect();
            format!(
                "there is no `{text}`, but {}; and switchboard-2 … -16, together-2 … -16",
                names.join(", ")
            )
        })
    }
}

impl Serialize for System {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl System {
    fn entry(self) -> Option<&'static Described> {
        let one = self.with_nodes(1);
        ALL.iter().find(|described| described.system == one)
    }

    /// A line of Markdown about it, `version` included.
    pub fn described(self, version: &str) -> String {
        let does = self.entry().map_or("", |described| described.does);
        let does_not = match self.entry().map_or("", |described| described.does_not) {
            "" => String::new(),
            left => format!("; does not: {left}"),
        };
        format!("- `{self}` ({version}) does: {does}{does_not}")
    }

    /// How many nodes it has, if it comes in numbers.
    pub fn nodes(self) -> Option<usize> {
        match self {
            Self::Separate { nodes } | Self::Together { nodes } => Some(nodes),
            _ => None,
        }
    }

    /// The same of so many nodes; itself if it does not come in numbers.
    #[must_use]
    pub fn with_nodes(self, nodes: usize) -> Self {
        match self {
            Self::Separate { .. } => Self::Separate { nodes },
            Self::Together { .. } => Self::Together { nodes },
            other => other,
        }
    }

    /// Whether it can be measured under `scenario`: a bare broker cannot tell a caller that its target is offline, and
    /// only Switchboard shares out what there is. Over TLS, mosquitto stands for all.
    pub fn takes_part_in(self, scenario: Scenario) -> bool {
        let is_switchboard =
            matches!(self, Self::Separate { .. } | Self::Together { .. } | Self::Forgetful | Self::Up);
        match scenario {
            Scenario::Offline { .. } => is_switchboard || self == Self::NatsUsers,
            Scenario::Fair { .. } => is_switchboard,
            Scenario::Closed { .. }
            | Scenario::Open { .. }
            | Scenario::Among { .. }
            | Scenario::Idle { .. } => true,
        }
    }

    /// Starts its processes, ready for the devices of `scenario`. Their files and logs go to `folder`.
    ///
    /// # Errors
    /// When a program is missing or does not become ready; the message ends with what it logged.
    pub async fn start(self, tools: &Tools, scenario: Scenario, folder: &Path) -> Result<Running> {
        let started = match self {
            Self::Separate { nodes } => {
                switchboard::start(tools, switchboard::Shape::Separate, nodes, scenario, folder).await
            }
            Self::Together { nodes } => {
                switchboard::start(tools, switchboard::Shape::Together, nodes, scenario, folder).await
            }
            Self::Forgetful => {
                switchboard::start(tools, switchboard::Shape::Forgetful, 1, scenario, folder).await
            }
            Self::Up => switchboard::start_up(tools, scenario, folder).await,
            Self::Chain => chain::start(tools, chain::Shape::Forwarding, folder).await,
            Self::ChainNested => chain::start(tools, chain::Shape::Nested, folder).await,
            Self::ChainDirect => chain::start(tools, chain::Shape::Direct, folder).await,
            Self::Mosquitto => mosquitto::start(tools, scenario, false, folder).await,
            Self::MosquittoAcl => mosquitto::start(tools, scenario, true, folder).await,
            Self::Rumqttd => rumqttd::start(tools, folder).await,
            Self::NatsMqtt => nats::start_with_mqtt(tools, folder).await,
            Self::NatsUsers => nats::start_with_users(tools, scenario, folder).await,
        };
        started.with_context(|| format!("{self} could not be started"))
    }

    /// What exactly is measured: a program's version, for the report.
    ///
    /// # Errors
    /// When a program that it needs is missing.
    pub fn version(self, tools: &Tools) -> Result<String> {
        match self {
            Self::Separate { .. } | Self::Forgetful => switchboard::version(tools, "switchboard-ingress"),
            Self::Together { .. } => switchboard::version(tools, "switchboard-node"),
            Self::Up => switchboard::version(tools, "switchboard"),
            Self::Chain | Self::ChainNested | Self::ChainDirect => chain::version(tools),
            Self::Mosquitto | Self::MosquittoAcl => mosquitto::version(tools),
            Self::Rumqttd => rumqttd::version(tools),
            Self::NatsMqtt | Self::NatsUsers => nats::version(tools),
        }
    }
}

/// A started system. Dropping it kills its processes.
pub struct Running {
    /// Where devices connect: one address for each node.
    pub addresses: Vec<SocketAddr>,
    /// What devices trust, if they are to come over TLS.
    pub trusted: Option<PathBuf>,
    /// How they talk.
    pub dialect: Box<dyn Dialect>,
    /// Every server process.
    pub processes: Vec<Process>,
}

impl Running {
    /// Ends the processes, the last started first, and waits for their end.
    ///
    /// # Errors
    /// When one had ended before, with what it logged.
    pub async fn stop(self) -> Result<()> {
        for process in self.processes.into_iter().rev() {
            process.stop().await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_what_is_typed() {
        for name in ALL.iter().map(|described| described.name).chain(["switchboard-2", "together-16"]) {
            assert_eq!(name.parse::<System>().unwrap().to_string(), name);
        }
        for name in ["", "switchboard-1", "switchboard-17", "up-2", "nats"] {
            assert!(name.parse::<System>().is_err(), "{name}");
        }
    }
}
