//! How quiet was the machine while something was measured? What all others ran, and how late a thread that only sleeps
//! is woken.

use std::collections::HashMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::cpu;

/// So many edges.
const CLOSED: u8 = 2;
const NAP: Duration = Duration::from_millis(1);

/// What the machine did besides.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Noise {
    /// What everything else ran, in percent of one core: figures of a busy machine are worth little.
    pub others_busy_percent: f64,
    /// How late a thread of the bench was woken from sleeps of 1 ms, 99 % of the times: a tail that the machine makes,
    /// not a server. Linux rounds sleeps up by 0.05 ms.
    pub wake_p99_ms: f64,
}

/// A thread that watches from one edge of a window to the other.
pub struct Watch {
    edges: Arc<AtomicU8>,
    thread: Option<JoinHandle<Result<Noise>>>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Nobody waits for a thread whose window is never closed, but it must not run on.
        self.edges.store(CLOSED, Ordering::Relaxed);
        self.wake();
    }
}

impl Watch {
    /// Waits for the window. The processes `ours` are not others, nor is this one.
    pub fn new(mut ours: Vec<u32>) -> Self {
        ours.push(std::process::id());
        let edges = Arc::new(AtomicU8::new(0));
        let seen = Arc::clone(&edges);
        Self { edges, thread: Some(thread::spawn(move || watch(&seen, &ours))) }
    }

    /// The window opens, and the second time it closes.
    pub fn edge(&self) {
        self.edges.fetch_add(1, Ordering::Relaxed);
        self.wake();
    }

    fn wake(&self) {
        if let Some(thread) = &self.thread {
            thread.thread().unpark();
        }
    }

    /// What was seen; call it behind the second edge.
    ///
    /// # Errors
    /// When /proc cannot be read.
    pub fn end(mut self) -> Result<Noise> {
        let thread = self.thread.take().context("it has ended")?;
        thread.join().map_err(|_| anyhow!("the thread that watches the machine panicked"))?
    }
}

fn watch(edges: &AtomicU8, ours: &[u32]) -> Result<Noise> {
    while edges.load(Ordering::Relaxed) == 0 {
        thread::park();
    }
    let (before, all_before, opened) = (others(ours)?, cpu::used_by_all()?, Instant::now());
    let ours_before = sum(ours);
    let mut late_ns = Histogram::<u64>::new_with_bounds(1_000, 60_000_000_000, 3)?;
    while edges.load(Ordering::Relaxed) < CLOSED {
        let due = Instant::now() + NAP;
        thread::sleep(NAP);
        late_ns.saturating_record(u64::try_from(due.elapsed().as_nanos())?);
    }
    let (after, all_after, took) = (others(ours)?, cpu::used_by_all()?, opened.elapsed());
    let ran =
        after.iter().map(|(thread, ran)| ran.saturating_sub(before.get(thread).copied().unwrap_or_default()));
    // Each misses something, and neither counts what was not: the scheduler's counts go with a thread that ends, and
    // what the clock's ticks say of short runs is chance.
    let by_scheduler: Duration = ran.sum();
    let by_ticks = all_after.saturating_sub(all_before).saturating_sub(sum(ours).saturating_sub(ours_before));
    #[expect(clippy::cast_precision_loss, reason = "a delay has far fewer than 53 bits of nanoseconds")]
    let wake_p99_ms = late_ns.value_at_quantile(0.99) as f64 / 1e6;
    let others_busy_percent = 100.0 * by_scheduler.max(by_ticks).as_secs_f64() / took.as_secs_f64();
    Ok(Noise { others_busy_percent, wake_p99_ms })
}

fn sum(processes: &[u32]) -> Duration {
    processes.iter().filter_map(|pid| cpu::used(*pid).ok()).sum()
}

/// What each thread of the others has run since it started, by the scheduler's count.
fn others(ours: &[u32]) -> Result<HashMap<u32, Duration>> {
    let mut ran = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if !ours.contains(&pid) {
            ran.extend(cpu::used_by_threads(pid));
        }
    }
    Ok(ran)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn what_others_run_shows_and_what_is_ours_does_not() {
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let (theirs, ours) = (Watch::new(vec![]), Watch::new(vec![child.id()]));
        for watch in [&theirs, &ours] {
            watch.edge();
        }
        // It has run, whatever else is running.
        let at_first = cpu::used(child.id()).unwrap();
        while cpu::used(child.id()).unwrap() < at_first + Duration::from_millis(300) {
            thread::sleep(NAP);
        }
        for watch in [&theirs, &ours] {
            watch.edge();
        }
        let (theirs, ours) = (theirs.end().unwrap(), ours.end().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(theirs.others_busy_percent > ours.others_busy_percent, "{theirs:?} {ours:?}");
        assert!(theirs.wake_p99_ms > 0.0, "{theirs:?}");
    }
}
