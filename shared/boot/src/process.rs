//! What does this process use of its machine, and what may it? Read from `/proc` when somebody asks; elsewhere
//! nothing is shown.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Entries of the auxiliary vector (`getauxval(3)`).
const AT_CLKTCK: u64 = 17;

/// Appends the `process_*` metrics under their usual Prometheus names; what cannot be read is left out.
pub(crate) fn render(out: &mut String) {
    let usage = Usage::read();
    let metrics: [(&str, &str, &str, Option<f64>); 5] = [
        (
            "process_cpu_seconds_total",
            "counter",
            "User and system CPU time spent in seconds.",
            usage.cpu_seconds,
        ),
        ("process_resident_memory_bytes", "gauge", "Resident memory size in bytes.", usage.resident_bytes),
        ("process_open_fds", "gauge", "Number of open file descriptors.", usage.open_fds),
        ("process_max_fds", "gauge", "Maximum number of open file descriptors.", usage.max_fds),
        (
            "process_start_time_seconds",
            "gauge",
            "Start time of the process since unix epoch in seconds.",
            usage.start_time_seconds,
        ),
    ];
    for (name, kind, help, value) in metrics {
        if let Some(value) = value {
            out.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n\n"));
        }
    }
}

/// Lets this process open as many files as the system allows it: a connection takes one, and the usual limit of 1024
/// is there for programs that use `select(2)`. Where that is refused, the old limit stays.
pub(crate) fn lift_open_files() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

/// How many files this process may open; none: as many as it likes.
pub fn max_open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

#[derive(Debug, Default)]
struct Usage {
    cpu_seconds: Option<f64>,
    resident_bytes: Option<f64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
    start_time_seconds: Option<f64>,
}

impl Usage {
    fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let machine = fs::read_to_string("/proc/stat").unwrap_or_default();
        let tick_seconds = 1.0 / ticks_per_second();
        let (user, system, start) = (stat_field(&stat, 14), stat_field(&stat, 15), stat_field(&stat, 22));
        let booted_seconds = value_after(&machine, "btime ");
        Self {
            cpu_seconds: user.zip(system).map(|(user, system)| (user + system) * tick_seconds),
            resident_bytes: value_after(&status, "VmRSS:").map(|kilobytes| kilobytes * 1_024.0),
            open_fds: open_fds(),
            max_fds: value_after(&limits, "Max open files"),
            start_time_seconds: start
                .zip(booted_seconds)
                .map(|(start, booted)| booted + start * tick_seconds),
        }
    }
}

/// Field `number` of `proc_pid_stat(5)`. The second, the command's name, may hold spaces and parentheses.
fn stat_field(stat: &str, number: usize) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(") ")?;
    after_name.split(' ').nth(number.checked_sub(3)?)?.parse().ok()
}

/// The first number behind `label` at the start of a line.
fn value_after(text: &str, label: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(label))?;
    rest.split_whitespace().next()?.parse().ok()
}

/// Linux 6.2 and later say the count as the directory's size; a listing would cost a look-up for each connection.
fn open_fds() -> Option<f64> {
    const FDS: &str = "/proc/self/fd";
    match fs::metadata(FDS).ok()?.len() {
        0 => Some(fs::read_dir(FDS).ok()?.count().saturating_sub(1) as f64),
        count => Some(count as f64),
    }
}

/// `sysconf(_SC_CLK_TCK)`, from where the C library has it too.
fn ticks_per_second() -> f64 {
    const LINUX_DEFAULT: f64 = 100.0;
    let vector = fs::read("/proc/self/auxv").unwrap_or_default();
    let (words, _) = vector.as_chunks::<{ size_of::<usize>() }>();
    let mut words = words.iter().map(|word| usize::from_ne_bytes(*word) as u64);
    while let (Some(kind), Some(value)) = (words.next(), words.next()) {
        if kind == AT_CLKTCK && value > 0 {
            return value as f64;
        }
    }
    LINUX_DEFAULT
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::time::{SystemTime, UNIX_EPOCH};

    use super::*;

    #[test]
    fn reads_this_process() {
        let usage = Usage::read();
        let now_seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
        assert!(usage.cpu_seconds.is_some_and(|seconds| (0.0..600.0).contains(&seconds)), "{usage:?}");
        assert!(usage.resident_bytes.is_some_and(|bytes| bytes > 100_000.0), "{usage:?}");
        assert!(usage.open_fds.is_some_and(|fds| (3.0..1_000.0).contains(&fds)), "{usage:?}");
        assert!(usage.max_fds.is_some_and(|fds| fds > 3.0), "{usage:?}");
        let age_seconds = usage.start_time_seconds.map(|start| now_seconds - start);
        assert!(age_seconds.is_some_and(|age| (-5.0..3_600.0).contains(&age)), "{usage:?}");
    }

    #[test]
    fn open_files_are_lifted() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let lower = maximum.map(|maximum| maximum - 1).or(Some(1_024));
        setrlimit(Resource::Nofile, Rlimit { current: lower, maximum }).unwrap();
        lift_open_files();
        assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    }

    #[test]
    fn a_command_name_may_hold_anything() {
        assert_eq!(stat_field("7 (a) b (c) S 1 2 3", 4), Some(1.0));
        assert_eq!(stat_field("", 4), None);
    }
}
