//! What does a caller learn of a call that goes wrong, and after how long?

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, bail};
use futures::future::{join, try_join_all};
use serde::Serialize;
use tokio::time::{sleep, sleep_until, timeout};

use crate::frame::Packet;
use crate::link::{self, Scratch};
use crate::report::aligned;
use crate::scenario::Scenario;
use crate::systems::{Folder, Process, Running, System, Tools};
use crate::wire::{body, envelope_head};

/// What a run without `--systems` asks. Of two nodes, the one that is killed is the target's.
pub const DEFAULT: &[&str] = &["switchboard-2", "up", "mosquitto", "mosquitto-acl", "nats-users"];

/// So many devices that there are two customers.
const DEVICES: Scenario = Scenario::Closed { pairs: STRANGER / 2 + 1, in_flight: 1 };
/// A device of the second one.
const STRANGER: usize = 200;

/// What the calls ask for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A target that is to die without having read lets the call arrive before.
const DIES_AFTER: Duration = Duration::from_millis(300);
const LATE_AFTER: Duration = Duration::from_secs(3);
/// How long a caller listens.
const LISTENS: Duration = Duration::from_secs(4);

/// What becomes of the target of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It is not connected.
    Absent,
    /// It is another customer's. It would answer.
    NotAllowed,
    /// Its connection ends before it has read the call.
    DiesBeforeReading,
    /// Its connection ends when it has read the call.
    DiesAfterReading,
    /// It stays connected, and does not answer.
    StaysSilent,
    /// It answers a second after the call's time-out.
    AnswersLate,
    /// It answers, and at once again.
    AnswersTwice,
    /// The server that it is connected to is killed when it has read the call.
    ServerKilled,
}

const FATES: [(Fate, &str); 8] = [
    (Fate::Absent, "is absent"),
    (Fate::NotAllowed, "is not allowed"),
    (Fate::DiesBeforeReading, "dies before reading"),
    (Fate::DiesAfterReading, "dies after reading"),
    (Fate::StaysSilent, "stays silent"),
    (Fate::AnswersLate, "answers late"),
    (Fate::AnswersTwice, "answers twice"),
    (Fate::ServerKilled, "loses its server"),
];

/// Something that a caller heard.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Heard {
    /// Since the call, or since the target's or its server's death.
    pub after_ms: f64,
    /// `answer`, the name of Switchboard's outcome, what NATS says, or `cut off`: the caller's own connection ended.
    pub what: String,
}

/// What one caller learned.
#[derive(Debug, Clone, Serialize)]
pub struct Learned {
    /// From which system.
    pub system: System,
    /// Of what.
    pub fate: Fate,
    /// In order; nothing if nothing is said within two seconds after the call's time-out.
    pub heard: Vec<Heard>,
}

/// Asks each system: all fates at once, and the death of the server last.
///
/// # Errors
/// When a system does not start, or a device cannot connect.
pub async fn ask(systems: &[System], tools: &Tools) -> Result<Vec<Learned>> {
    let mut learned = Vec::new();
    for system in systems {
        let folder = Folder::new()?;
        let asked = ask_one(*system, tools, folder.path()).await;
        learned.extend(asked.with_context(|| format!("{system}"))?);
    }
    Ok(learned)
}

async fn ask_one(system: System, tools: &Tools, folder: &Path) -> Result<Vec<Learned>> {
    let running = system.start(tools, DEVICES, folder).await?;
    let (running, scratch) = (&running, Scratch::new());
    let play = |(pair, (fate, _))| {
        let scratch = scratch.clone();
        async move {
            let heard = play(running, fate, pair, &scratch).await?;
            Ok::<_, Error>(Learned { system, fate, heard })
        }
    };
    let (deadly, others): (Vec<_>, Vec<_>) =
        FATES.into_iter().enumerate().partition(|(_, (fate, _))| *fate == Fate::ServerKilled);
    let mut learned: Vec<Learned> = try_join_all(others.into_iter().map(play)).await?;
    learned.extend(try_join_all(deadly.into_iter().map(play)).await?);
    Ok(learned)
}

async fn play(running: &Running, fate: Fate, pair: usize, scratch: &Scratch) -> Result<Vec<Heard>> {
    let (Some(callers_node), Some(targets_node)) = (running.addresses.first(), running.addresses.last())
    else {
        bail!("no node to connect to")
    };
    let asked = if fate == Fate::NotAllowed { STRANGER } else { 2 * pair + 1 };
    let wire = running.dialect.between(2 * pair, asked);
    let mut target = match fate {
        Fate::Absent => None,
        _ => Some(link::connect(*targets_node, &wire.target, scratch).await?),
    };
    let (mut caller, outbox) = link::connect(*callers_node, &wire.caller, scratch).await?;

    let body = [body::HEAD, &body::new_nonce(u16::try_from(pair)?, 1), body::TAIL].concat();
    let (called, heard) = (Cell::new(Instant::now()), RefCell::new(Vec::new()));
    let since = &called;
    let hear = |what: String| {
        heard.borrow_mut().push(Heard { after_ms: since.get().elapsed().as_secs_f64() * 1e3, what });
    };
    let (framing, head) = (wire.caller.framing, envelope_head(asked, TIMEOUT));
    let call = [head.as_bytes(), &body, wire.envelope_tail.as_bytes()];
    outbox.send(|out| framing.publish(out, [wire.call_topic.as_bytes(), b"7"], &call))?;

    let listen = async {
        let read = |packet: Packet<'_>| {
            hear(said(&packet, &body));
            Ok(())
        };
        while caller.batch(scratch, read).await.is_ok() {}
        hear("cut off".into());
        pending::<()>().await;
    };
    let behave = async {
        let Some((reader, outbox)) = &mut target else { return Ok(()) };
        if fate == Fate::DiesBeforeReading {
            sleep(DIES_AFTER).await;
            since.set(Instant::now());
            target = None;
            return Ok(());
        }
        let mut id = None;
        while id.is_none() {
            let read = |packet: Packet<'_>| {
                if let Packet::Publish { topic, .. } = packet {
                    id = topic.strip_prefix(wire.request_topic.as_bytes()).map(<[u8]>::to_owned);
                }
                Ok(())
            };
            reader.batch(scratch, read).await?;
        }
        let id = id.unwrap_or_default();
        let answer = || outbox.send(|out| framing.publish(out, [wire.reply_topic.as_bytes(), &id], &[&body]));
        match fate {
            Fate::DiesAfterReading => {
                since.set(Instant::now());
                target = None;
            }
            Fate::ServerKilled => {
                since.set(Instant::now());
                server(running)?.kill();
            }
            Fate::AnswersLate => {
                sleep_until((called.get() + LATE_AFTER).into()).await;
                answer()?;
            }
            Fate::AnswersTwice => {
                answer()?;
                answer()?;
            }
            Fate::NotAllowed => answer()?,
            Fate::Absent | Fate::DiesBeforeReading | Fate::StaysSilent => {}
        }
        Ok::<_, Error>(())
    };
    let mut behaved = Ok(());
    let both = join(listen, async { behaved = behave.await });
    let _ = timeout(LISTENS, both).await;
    behaved?;
    Ok(heard.into_inner())
}

/// The process that the targets are connected to.
fn server(running: &Running) -> Result<&Process> {
    let serves_devices = |process: &&Process| {
        ["ingress", "node", "up", "front"].iter().any(|role| process.role.starts_with(role))
    };
    running.processes.iter().rfind(serves_devices).or(running.processes.last()).context("it has no process")
}

/// The texts of the device API that callers of this run may read, and the outcomes' names.
const OUTCOMES: [(&str, &str); 6] = [
    ("No active connection to the remote device!", "offline"),
    ("This action is not allowed! Devices are unassigned or assigned to different customers!", "denied"),
    ("Target device not found!", "unknown_device"),
    ("Connection to the remote device was lost!", "lost"),
    ("Timeout while waiting response from device!", "timed_out"),
    ("Internal server error!", "unavailable"),
];

fn said(packet: &Packet<'_>, body: &[u8]) -> String {
    match packet {
        Packet::Publish { payload, .. } if *payload == body => "answer".into(),
        Packet::Publish { payload, .. } if payload.starts_with(b"NATS/1.0 503") => "503".into(),
        Packet::Publish { payload, .. } => {
            let text = String::from_utf8_lossy(payload);
            let is_it = |(error, _): &&(&str, &str)| text == format!("{{\"error\":\"{error}\"}}");
            OUTCOMES.iter().find(is_it).map_or_else(|| text.to_string(), |(_, name)| (*name).to_owned())
        }
        Packet::Refusal { text } if text.starts_with(b"-ERR 'Permissions Violation") => "-ERR".into(),
        other => format!("{other:?}"),
    }
}

/// Fates as rows, systems as columns.
pub fn table(learned: &[Learned]) -> String {
    let mut systems: Vec<System> = learned.iter().map(|it| it.system).collect();
    systems.dedup();
    let head = systems.iter().map(ToString::to_string);
    let mut rows: Vec<Vec<String>> = vec![["the target".to_owned()].into_iter().chain(head).collect()];
    for (fate, name) in FATES {
        let cell = |system: &System| {
            let of = |it: &&Learned| it.system == *system && it.fate == fate;
            learned.iter().find(of).map_or_else(String::new, |it| cell(&it.heard))
        };
        rows.push([name.to_owned()].into_iter().chain(systems.iter().map(cell)).collect());
    }
    aligned(&rows)
}

fn cell(heard: &[Heard]) -> String {
    let each: Vec<_> =
        heard.iter().map(|Heard { after_ms, what }| format!("{what}, {after_ms:.0} ms")).collect();
    match heard {
        [] => "nothing".to_owned(),
        [first, second] if first.what == second.what => {
            format!("{} ×2, {:.0} ms", first.what, second.after_ms)
        }
        _ => each.join("; "),
    }
}
