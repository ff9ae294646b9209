//! How much processor time and memory does a process use? Read from /proc, so Linux only.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

/// The processor time a process has used since it started, user and system, all threads.
///
/// Taken from the scheduler's own count (`/proc/<pid>/task/*/schedstat`, nanoseconds). That forgets threads that have
/// ended, and `/proc/<pid>/stat` does not, but counts in ticks of 10 ms: the larger of the two is the better one.
///
/// # Errors
/// When the process has ended.
pub fn used(pid: u32) -> Result<Duration> {
    let ticks = by_ticks(pid).with_context(|| format!("process {pid} has ended"))?;
    let exact: Duration = used_by_threads(pid).map(|(_, ran)| ran).sum();
    Ok(exact.max(ticks))
}

/// What each thread of a process has run, by its id and the scheduler's count; nothing of one that has ended.
pub fn used_by_threads(pid: u32) -> impl Iterator<Item = (u32, Duration)> {
    fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().filter_map(|thread| {
        // A thread may end between the listing and the reading.
        let thread = thread.ok()?;
        let line = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let ran_ns = line.split_ascii_whitespace().next()?.parse().ok()?;
        Some((thread.file_name().to_str()?.parse().ok()?, Duration::from_nanos(ran_ns)))
    })
}

fn by_ticks(pid: u32) -> Result<Duration> {
    let line = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold spaces; behind it, utime and stime are the 12th and 13th (proc(5)).
    let behind_name = line.rsplit_once(')').context("no name in /proc/<pid>/stat")?.1;
    let mut fields = behind_name.split_ascii_whitespace().skip(11);
    let mut ticks = 0;
    for _ in 0..2 {
        ticks += fields.next().context("/proc/<pid>/stat is cut short")?.parse::<u64>()?;
    }
    let ticks_per_s = rustix::param::clock_ticks_per_second();
    Ok(Duration::from_nanos(ticks * 1_000_000_000 / ticks_per_s))
}

/// The processor time that the whole machine has spent, on everybody: all cores, what the hypervisor took included.
///
/// # Errors
/// When /proc/stat cannot be read.
pub fn used_by_all() -> Result<Duration> {
    let text = fs::read_to_string("/proc/stat")?;
    let all =
        text.lines().find_map(|line| line.strip_prefix("cpu ")).context("no line `cpu` in /proc/stat")?;
    let mut ticks = 0;
    // user, nice, system, idle, iowait, irq, softirq, steal (proc(5)).
    for (position, field) in all.split_ascii_whitespace().take(8).enumerate() {
        let idle = position == 3 || position == 4;
        ticks += if idle { 0 } else { field.parse::<u64>()? };
    }
    Ok(Duration::from_nanos(ticks * 1_000_000_000 / rustix::param::clock_ticks_per_second()))
}

/// A process' memory, in bytes.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Memory {
    /// Resident pages.
    pub rss_bytes: u64,
    /// Resident pages, those shared with other processes counted in part.
    pub pss_bytes: u64,
}

/// The memory that a process holds now.
///
/// # Errors
/// When the process has ended.
pub fn memory(pid: u32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))
        .with_context(|| format!("the memory of process {pid}"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_ascii_whitespace().next());
        number.and_then(|number| number.parse::<u64>().ok()).map(|kib| kib * 1024)
    };
    Ok(Memory {
        rss_bytes: field("Rss:").context("no Rss in smaps_rollup")?,
        pss_bytes: field("Pss:").context("no Pss in smaps_rollup")?,
    })
}

/// What the kernel holds now, in bytes: its objects (`Slab` of /proc/meminfo: sockets, files, and what else anybody
/// uses), and the buffers of TCP (`mem` of /proc/net/sockstat).
///
/// # Errors
/// When /proc cannot be read.
pub fn kernel_memory() -> Result<u64> {
    let number_behind = |path: &str, line: &str, word: &str| -> Result<u64> {
        let text = fs::read_to_string(path)?;
        let line = text.lines().find_map(|it| it.strip_prefix(line));
        let mut words = line.unwrap_or_default().split_ascii_whitespace().skip_while(|it| *it != word);
        let number = if word.is_empty() {
            line.and_then(|it| it.split_ascii_whitespace().next())
        } else {
            words.nth(1)
        };
        Ok(number.with_context(|| format!("no such number in {path}"))?.parse()?)
    };
    let pages = number_behind("/proc/net/sockstat", "TCP:", "mem")?;
    let page_bytes = u64::try_from(rustix::param::page_size())?;
    Ok(number_behind("/proc/meminfo", "Slab:", "")? * 1024 + pages * page_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows() {
        let pid = std::process::id();
        let before = used(pid).unwrap();
        let mut sum = 0_u64;
        while used(pid).unwrap() < before + Duration::from_millis(20) {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(memory(pid).unwrap().rss_bytes > 0);
        assert!(kernel_memory().unwrap() > 0);
    }
}
