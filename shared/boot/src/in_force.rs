//! Which settings are in force now? Those of the start, and what the process has taken over from its file since.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::metrics::{Counter, Gauge, counter, gauge};
use tokio::signal::unix::Signal;
use tokio::sync::watch;

use crate::config::{Reload, Settings, Sources, is_read_by};
use crate::logs::Level;
use crate::metrics::{Kind, describe};

const RELOADS: &str = "switchboard_config_reloads_total";
const RESTART_NEEDED: &str = "switchboard_config_restart_needed";

/// The settings in force. Clones share them.
#[derive(Clone, Debug)]
pub struct InForce(watch::Receiver<Arc<Settings>>);

impl InForce {
    /// Of a process that never takes others over.
    pub fn fixed(settings: Arc<Settings>) -> Self {
        InForce(watch::channel(settings).1)
    }

    /// As they are now.
    pub fn now(&self) -> Arc<Settings> {
        Arc::clone(&self.0.borrow())
    }

    /// Runs `take_over` with each change of the settings, for as long as there can be one.
    pub async fn each(mut self, mut take_over: impl FnMut(&Settings)) {
        while self.0.changed().await.is_ok() {
            let settings = Arc::clone(&self.0.borrow_and_update());
            take_over(&settings);
        }
    }
}

/// Looks at the settings' file.
pub(crate) struct Keeper {
    service: &'static str,
    sources: Sources,
    level: Level,
    in_force: watch::Sender<Arc<Settings>>,
    /// What the file held when it was last looked at; none: it could not be read.
    seen: Option<Vec<u8>>,
    told: Vec<&'static str>,
    taken: Counter,
    refused: Counter,
    restart_needed: Gauge,
}

impl Keeper {
    /// Of a process that has just loaded `settings` from `sources`.
    pub(crate) fn new(
        service: &'static str,
        settings: Arc<Settings>,
        sources: Sources,
        level: Level,
    ) -> (Self, InForce) {
        describe(&[
            (
                Kind::Counter,
                RELOADS,
                "Changes of the settings' file, by whether it was sound; a faulty one changes nothing.",
            ),
            (
                Kind::Gauge,
                RESTART_NEEDED,
                "Settings that have changed in the file since the start and take a restart of this process.",
            ),
        ]);
        let seen = sources.file.as_ref().and_then(|file| std::fs::read(file).ok());
        let (in_force, receiver) = watch::channel(settings);
        let reloads = |result| counter!(RELOADS, "result" => result);
        let keeper = Keeper {
            service,
            sources,
            level,
            in_force,
            seen,
            told: Vec::new(),
            taken: reloads("taken"),
            refused: reloads("refused"),
            restart_needed: gauge!(RESTART_NEEDED),
        };
        (keeper, InForce(receiver))
    }

    /// Looks from time to time, and whenever it is asked to.
    pub(crate) async fn keep(mut self, mut asked: Signal) {
        loop {
            let pause = Duration::from_millis(self.in_force.borrow().admin.reload_check_ms);
            let is_asked = tokio::select! {
                _ = asked.recv() => true,
                () = tokio::time::sleep(pause) => false,
            };
            let Some(file) = self.sources.file.clone() else {
                if is_asked {
                    tracing::info!("there is no settings' file to read again (--config)");
                }
                continue;
            };
            // The file may lie on a slow disk.
            let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
            let held = read.ok().and_then(Result::ok);
            // One that is gone is said once.
            let is_same = self.seen == held;
            if is_same && is_asked {
                tracing::info!(file = %self.file(), "the settings' file holds what it held");
            }
            if !is_same {
                self.seen = held;
                let sources = self.sources.clone();
                match tokio::task::spawn_blocking(move || Settings::load(&sources)).await {
                    Ok(Ok(loaded)) => self.take_over(&loaded.settings),
                    Ok(Err(faults)) => self.refuse(&faults),
                    Err(_) => {}
                }
            }
        }
    }

    fn take_over(&mut self, new: &Settings) {
        let before = Arc::clone(&self.in_force.borrow());
        let Reload { settings, changes } = match before.reload(new) {
            Ok(reload) => reload,
            Err(faults) => return self.refuse(&faults),
        };
        let named = |is_reloaded: bool| {
            let changes = changes.iter().filter(move |it| it.is_reloaded == is_reloaded);
            let read = changes.filter(|it| is_read_by(it.setting, self.service));
            read.map(|it| it.setting).collect::<Vec<_>>()
        };
        let (taken, left) = (named(true), named(false));
        if settings.log.level != before.log.level {
            (self.level)(&settings.log.level);
        }
        self.in_force.send_replace(Arc::new(settings));
        self.taken.increment(1);
        self.restart_needed.set(left.len() as f64);
        tracing::info!(file = %self.file(), taken = taken.join(", "), "the settings were read again");
        if !left.is_empty() && left != self.told {
            tracing::warn!(
                settings = left.join(", "),
                "settings have changed that take a restart of this process"
            );
        }
        self.told = left;
    }

    fn refuse(&self, faults: &dyn std::fmt::Display) {
        self.refused.increment(1);
        tracing::warn!(%faults, "the settings stay as they were");
    }

    fn file(&self) -> impl std::fmt::Display + '_ {
        self.sources.file.as_deref().unwrap_or(Path::new("")).display()
    }
}
