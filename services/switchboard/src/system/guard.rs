//! What becomes of our child processes when we cannot end them ourselves? A guard does it.
//!
//! A system that is killed (SIGKILL) runs nothing of its own any more, and its children would live on and hold its
//! ports. The guard is a shell that reads which processes there are, and ends the last ones named once its input
//! closes, as it does however we end.

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process};

/// The last line that it read names the processes to end.
const SCRIPT: &str =
    "pids=; while read -r line; do pids=$line; done; [ -z \"$pids\" ] || kill $pids 2>/dev/null";

/// The child processes of this one. Clones share them.
#[derive(Clone)]
pub(crate) struct Guard {
    state: Arc<Mutex<State>>,
}

struct State {
    pids: BTreeMap<String, i32>,
    /// None when there is no guard: then a kill leaves children behind, and all else works.
    told: Option<ChildStdin>,
}

impl Guard {
    /// Starts the guard.
    pub(crate) fn start() -> Self {
        let shell = Command::new("sh")
            .args(["-c", SCRIPT])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Not reached by a Ctrl-C in the terminal: it ends after us.
            .process_group(0)
            .spawn();
        let told = match shell {
            Ok(mut shell) => shell.stdin.take(),
            Err(error) => {
                tracing::warn!(%error, "cannot run sh: if this process is killed, its children go on");
                None
            }
        };
        Guard { state: Arc::new(Mutex::new(State { pids: BTreeMap::new(), told })) }
    }

    /// The process of this name runs, or has ended.
    pub(crate) fn note(&self, name: &str, pid: Option<u32>) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match pid.and_then(|pid| i32::try_from(pid).ok()) {
            Some(pid) => state.pids.insert(name.to_owned(), pid),
            None => state.pids.remove(name),
        };
        let pids: Vec<String> = state.pids.values().map(i32::to_string).collect();
        let line = format!("{}\n", pids.join(" "));
        if let Some(told) = &mut state.told
            && let Err(error) = told.write_all(line.as_bytes())
        {
            tracing::warn!(%error, "the guard of the child processes is gone");
            state.told = None;
        }
    }

    /// Kills them all, for a process that ends at once.
    pub(crate) fn kill_all(&self) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for pid in state.pids.values().filter_map(|pid| Pid::from_raw(*pid)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    fn sleeper() -> std::process::Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    #[test]
    fn when_its_input_closes_the_last_processes_named_are_ended_and_no_other() {
        let (mut ended, mut named) = (sleeper(), sleeper());
        let guard = Guard::start();
        guard.note("ended", Some(ended.id()));
        guard.note("named", Some(named.id()));
        guard.note("ended", None);
        drop(guard);
        assert_eq!(named.wait().unwrap().signal(), Some(15));
        assert!(ended.try_wait().unwrap().is_none());
        ended.kill().unwrap();
        ended.wait().unwrap();
    }
}
