//! What came out? Samples, their medians over the rounds, and tables for people.

use std::fmt::Write;

use anyhow::Result;
use serde::{Serialize, Serializer};

use crate::noise::Noise;
use crate::scenario::Scenario;
use crate::systems::{Process, System};
use crate::tally::{Faults, Latency};

/// A figure for each server process, by its role, in the order in which they were started.
#[derive(Debug, Clone, Default)]
pub struct PerProcess<T>(Vec<(String, T)>);

impl<T> PerProcess<T> {
    /// Asks for each process' figure.
    ///
    /// # Errors
    /// With the first error of `figure`.
    pub fn of(processes: &[Process], figure: impl Fn(u32) -> Result<T>) -> Result<Self> {
        let each = processes.iter().map(|process| Ok((process.role.clone(), figure(process.pid)?)));
        Ok(Self(each.collect::<Result<_>>()?))
    }

    /// Another figure for each.
    pub fn map<U>(&self, figure: impl Fn(&T) -> U) -> PerProcess<U> {
        PerProcess(self.0.iter().map(|(role, value)| (role.clone(), figure(value))).collect())
    }

    /// A figure from two for each; both must be of the same processes.
    pub fn zip<U>(&self, other: &Self, figure: impl Fn(&T, &T) -> U) -> PerProcess<U> {
        let both = self.0.iter().zip(&other.0);
        PerProcess(both.map(|((role, left), (_, right))| (role.clone(), figure(left, right))).collect())
    }
}

impl PerProcess<f64> {
    /// Over all processes.
    pub fn sum(&self) -> f64 {
        self.0.iter().map(|(_, value)| value).sum()
    }
}

impl<T: Serialize> Serialize for PerProcess<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(role, value)| (role, value)))
    }
}

/// One system in one round of one scenario.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// Which system.
    pub system: System,
    /// Which load.
    #[serde(serialize_with = "as_text")]
    pub scenario: Scenario,
    /// From 1.
    pub round: u32,
    /// What was measured, unless it failed.
    pub figures: Option<Figures>,
    /// Calls that did not end as they should.
    pub faults: Faults,
    /// Why there are no figures.
    pub failure: Option<String>,
}

fn as_text<S: Serializer>(scenario: &Scenario, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(scenario)
}

/// What a scenario measures.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Figures {
    /// Of calls.
    Load(LoadFigures),
    /// Of connections.
    Idle(IdleFigures),
}

/// Figures of calls.
#[derive(Debug, Clone, Serialize)]
pub struct LoadFigures {
    /// How long was measured.
    pub window_s: f64,
    /// Right answers in that time.
    pub answered: u64,
    /// The same for each second.
    pub calls_per_s: f64,
    /// From the moment a call was due to its answer.
    pub latency: Latency,
    /// Processor time, user and system, of each server process.
    pub server_cpu_us_a_call: PerProcess<f64>,
    /// Processor time of the bench, which plays both devices.
    pub client_cpu_us_a_call: f64,
    /// How much of its one thread's time the bench used: near 100, it was what limited calls a second.
    pub client_busy_percent: f64,
    /// What the machine did besides.
    #[serde(flatten)]
    pub noise: Noise,
    /// Resident memory when the window ended.
    pub server_rss_mib: PerProcess<f64>,
}

/// Figures of connections.
#[derive(Debug, Clone, Serialize)]
pub struct IdleFigures {
    /// Devices that are connected and callable.
    pub connected: usize,
    /// Of those, by resuming a TLS session.
    pub resumed: usize,
    /// Devices that could not connect, however often they tried.
    pub failed: usize,
    /// Attempts that failed after which a device tried again.
    pub repeated: usize,
    /// Connections that ended by themselves.
    pub dropped: usize,
    /// Why the first one could not connect.
    pub first_failure: Option<String>,
    /// CONNECT and SUBSCRIBE acknowledged.
    pub connects_per_s: f64,
    /// Processor time of each server process.
    pub server_cpu_ms_a_connect: PerProcess<f64>,
    /// Growth of resident memory of each server process.
    pub server_kib_a_connection: PerProcess<f64>,
    /// Growth of what the kernel holds, for both ends of a connection, and for all else that happened meanwhile.
    pub kernel_kib_a_connection: f64,
}

impl Sample {
    /// Notes what was measured, or why nothing was.
    pub fn new(system: System, scenario: Scenario, round: u32, measured: Result<(Figures, Faults)>) -> Self {
        let (figures, faults, failure) = match measured {
            Ok((figures, faults)) => (Some(figures), faults, None),
            Err(error) => (None, Faults::default(), Some(format!("{error:#}"))),
        };
        Self { system, scenario, round, figures, faults, failure }
    }

    /// What is wrong with it, if anything is: then the run must not count.
    pub fn fault(&self) -> Option<String> {
        if let Some(failure) = &self.failure {
            return Some(failure.clone());
        }
        if self.faults.count() > 0 {
            return Some(format!("{:?}", self.faults));
        }
        let Some(Figures::Idle(idle)) = &self.figures else { return None };
        let lost = idle.failed + idle.dropped;
        (lost > 0).then(|| format!("{lost} connections failed; first: {:?}", idle.first_failure))
    }

    /// One line for people who wait.
    pub fn line(&self) -> String {
        let head =
            format!("{:<14} round {} {:<12}", self.scenario.to_string(), self.round, self.system.to_string());
        if let Some(fault) = self.fault() {
            return format!("{head} FAILED: {fault}");
        }
        match &self.figures {
            None => head,
            Some(Figures::Load(load)) => format!(
                "{head} {:>7.0} calls/s  p50 {:>6.3} ms  p99 {:>7.3} ms  {:>6.1} µs CPU a call (client {:.1})",
                load.calls_per_s,
                load.latency.p50_ms,
                load.latency.p99_ms,
                load.server_cpu_us_a_call.sum(),
                load.client_cpu_us_a_call,
            ),
            Some(Figures::Idle(idle)) => format!(
                "{head} {} connected  {:.2} KiB a connection  {:.3} ms CPU a connect",
                idle.connected,
                idle.server_kib_a_connection.sum(),
                idle.server_cpu_ms_a_connect.sum(),
            ),
        }
    }
}

/// The middle one of `values`, of the two middle ones their mean.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = values.get(values.len() / 2)?;
    let lower = values.get((values.len() - 1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// All samples of a run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Where it was measured.
    pub machine: String,
    /// What exactly was measured: a line for each system.
    pub versions: Vec<String>,
    /// Every round.
    pub samples: Vec<Sample>,
}

impl Report {
    /// The median over the rounds of one figure of calls.
    pub fn of_load(
        &self,
        system: System,
        scenario: Scenario,
        figure: fn(&LoadFigures) -> f64,
    ) -> Option<f64> {
        median(self.loads(system, scenario).map(figure).collect())
    }

    /// The median over the rounds of one figure of connections.
    pub fn of_idle(
        &self,
        system: System,
        scenario: Scenario,
        figure: fn(&IdleFigures) -> f64,
    ) -> Option<f64> {
        median(self.idles(system, scenario).map(figure).collect())
    }

    fn of(&self, system: System, scenario: Scenario) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.system == system && sample.scenario == scenario)
    }

    fn loads(&self, system: System, scenario: Scenario) -> impl Iterator<Item = &LoadFigures> {
        self.of(system, scenario).filter_map(|sample| match &sample.figures {
            Some(Figures::Load(load)) => Some(load),
            _ => None,
        })
    }

    fn idles(&self, system: System, scenario: Scenario) -> impl Iterator<Item = &IdleFigures> {
        self.of(system, scenario).filter_map(|sample| match &sample.figures {
            Some(Figures::Idle(idle)) => Some(idle),
            _ => None,
        })
    }

    /// What others used of the machine, at worst and in percent of one core, while calls were measured.
    pub fn others_busy_percent(&self) -> f64 {
        let loads = self.samples.iter().filter_map(|sample| match &sample.figures {
            Some(Figures::Load(load)) => Some(load.noise.others_busy_percent),
            _ => None,
        });
        loads.fold(0.0, f64::max)
    }

    /// What is wrong with the run: empty when every answer was right.
    pub fn faults(&self) -> Vec<String> {
        let faulty = |sample: &Sample| {
            let fault = sample.fault()?;
            Some(format!("{} round {}, {}: {fault}", sample.scenario, sample.round, sample.system))
        };
        self.samples.iter().filter_map(faulty).collect()
    }

    /// The medians as Markdown tables, one for each scenario, with a column for each system.
    pub fn tables(&self) -> String {
        let mut scenarios: Vec<Scenario> = Vec::new();
        for sample in &self.samples {
            if !scenarios.contains(&sample.scenario) {
                scenarios.push(sample.scenario);
            }
        }
        let mut text = String::new();
        for scenario in scenarios {
            let columns = match scenario {
                Scenario::Idle { .. } => self.idle_columns(scenario),
                _ => self.load_columns(scenario),
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "### {scenario}\n\n{}", aligned(&turned(&columns)));
        }
        text
    }

    fn systems(&self, scenario: Scenario) -> Vec<System> {
        let mut systems: Vec<System> = Vec::new();
        for sample in self.samples.iter().filter(|sample| sample.scenario == scenario) {
            if !systems.contains(&sample.system) {
                systems.push(sample.system);
            }
        }
        systems
    }

    fn load_columns(&self, scenario: Scenario) -> Vec<Vec<String>> {
        let systems = self.systems(scenario);
        let cpu =
            |system| self.loads(system, scenario).map(|load| &load.server_cpu_us_a_call).collect::<Vec<_>>();
        let roles = roles(systems.iter().flat_map(|system| cpu(*system)));
        let mut head = vec!["".to_owned(), "calls/s".to_owned(), "CPU µs a call".to_owned()];
        head.extend(roles.iter().map(|role| format!("of which {role}")));
        let rest = [
            "p50 ms",
            "p90",
            "p99",
            "p99.9",
            "max",
            "wake-up p99",
            "client µs a call",
            "client busy %",
            "others busy %",
            "RSS MiB",
        ];
        head.extend(rest.map(str::to_owned));
        let mut columns = vec![head];
        for system in systems {
            let figure = |decimals: usize, figure: fn(&LoadFigures) -> f64| {
                self.of_load(system, scenario, figure)
                    .map_or("failed".into(), |value| format!("{value:.decimals$}"))
            };
            let mut column = vec![
                system.to_string(),
                figure(0, |load| load.calls_per_s),
                figure(1, |load| load.server_cpu_us_a_call.sum()),
            ];
            column.extend(breakdown(&cpu(system), &roles, 1));
            column.extend([
                figure(3, |load| load.latency.p50_ms),
                figure(3, |load| load.latency.p90_ms),
                figure(3, |load| load.latency.p99_ms),
                figure(3, |load| load.latency.p999_ms),
                figure(2, |load| load.latency.max_ms),
                figure(3, |load| load.noise.wake_p99_ms),
                figure(1, |load| load.client_cpu_us_a_call),
                figure(0, |load| load.client_busy_percent),
                figure(0, |load| load.noise.others_busy_percent),
                figure(1, |load| load.server_rss_mib.sum()),
            ]);
            columns.push(column);
        }
        columns
    }

    fn idle_columns(&self, scenario: Scenario) -> Vec<Vec<String>> {
        let systems = self.systems(scenario);
        let memory = |system| {
            self.idles(system, scenario).map(|idle| &idle.server_kib_a_connection).collect::<Vec<_>>()
        };
        let cpu = |system| {
            self.idles(system, scenario).map(|idle| &idle.server_cpu_ms_a_connect).collect::<Vec<_>>()
        };
        let roles = roles(systems.iter().flat_map(|system| memory(*system)));
        let mut head = ["", "connected", "of which resumed", "failed", "tried again", "connects/s"]
            .map(str::to_owned)
            .to_vec();
        for (figure, beside) in
            [("KiB a connection", Some("kernel's, both ends")), ("CPU ms a connect", None)]
        {
            head.push(figure.to_owned());
            head.extend(roles.iter().map(|role| format!("of which {role}")));
            head.extend(beside.map(str::to_owned));
        }
        let mut columns = vec![head];
        for system in systems {
            let figure = |decimals: usize, figure: fn(&IdleFigures) -> f64| {
                self.of_idle(system, scenario, figure)
                    .map_or("failed".into(), |value| format!("{value:.decimals$}"))
            };
            let failed: usize = self.idles(system, scenario).map(|idle| idle.failed + idle.dropped).sum();
            let connected = self.idles(system, scenario).map(|idle| idle.connected).min();
            let resumed = self.idles(system, scenario).map(|idle| idle.resumed).min();
            let mut column = vec![
                system.to_string(),
                connected.map_or("failed".into(), |connected| connected.to_string()),
                resumed.map_or_else(String::new, |resumed| resumed.to_string()),
                failed.to_string(),
                self.idles(system, scenario).map(|idle| idle.repeated).sum::<usize>().to_string(),
                figure(0, |idle| idle.connects_per_s),
                figure(2, |idle| idle.server_kib_a_connection.sum()),
            ];
            column.extend(breakdown(&memory(system), &roles, 2));
            column.push(figure(2, |idle| idle.kernel_kib_a_connection));
            column.push(figure(3, |idle| idle.server_cpu_ms_a_connect.sum()));
            column.extend(breakdown(&cpu(system), &roles, 3));
            columns.push(column);
        }
        columns
    }
}

/// Columns as rows.
fn turned(columns: &[Vec<String>]) -> Vec<Vec<String>> {
    let rows = columns.first().map_or(0, Vec::len);
    (0..rows).map(|row| columns.iter().filter_map(|column| column.get(row).cloned()).collect()).collect()
}

/// What the processes do, each once, of those systems that are several.
fn roles<'a>(rounds: impl Iterator<Item = &'a PerProcess<f64>>) -> Vec<&'a str> {
    let mut roles = Vec::new();
    for (name, _) in rounds.filter(|round| round.0.len() > 1).flat_map(|round| &round.0) {
        if !roles.contains(&role(name)) {
            roles.push(role(name));
        }
    }
    roles
}

/// The median of each role, its copies together; nothing for a role that the system does not have, or has alone.
fn breakdown(rounds: &[&PerProcess<f64>], roles: &[&str], decimals: usize) -> Vec<String> {
    let of = |wanted: &&str| {
        let copies = |round: &&PerProcess<f64>| {
            let copies: Vec<f64> =
                round.0.iter().filter(|(name, _)| role(name) == *wanted).map(|(_, value)| *value).collect();
            (round.0.len() > 1 && !copies.is_empty()).then(|| copies.iter().sum())
        };
        let each = rounds.iter().filter_map(copies).collect();
        median(each).map_or(String::new(), |value| format!("{value:.decimals$}"))
    };
    roles.iter().map(of).collect()
}

/// What a process does: `ingress` of `ingress-2`.
fn role(name: &str) -> &str {
    name.rsplit_once('-').filter(|(_, number)| number.parse::<u32>().is_ok()).map_or(name, |(role, _)| role)
}

/// A Markdown table that can be read as it stands: text to the left, numbers to the right.
pub fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default().max(3)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let numeric: Vec<bool> = (0..columns)
        .map(|column| {
            let mut cells = rows.iter().skip(1).filter_map(|row| row.get(column));
            let is_number = |cell: &str| cell.starts_with(|first: char| first.is_ascii_digit());
            cells.all(|cell| cell.is_empty() || is_number(cell) || cell == "failed")
        })
        .collect();
    let mut text = String::new();
    for (number, row) in rows.iter().enumerate() {
        text.push('|');
        for ((cell, width), numeric) in row.iter().zip(&widths).zip(&numeric) {
            // Writing to a String cannot fail.
            let _ =
                if *numeric { write!(text, " {cell:>width$} |") } else { write!(text, " {cell:<width$} |") };
        }
        text.push('\n');
        if number == 0 {
            text.push('|');
            for (width, numeric) in widths.iter().zip(&numeric) {
                let _ = if *numeric {
                    write!(text, " {}: |", "-".repeat(width - 1))
                } else {
                    write!(text, " {} |", "-".repeat(*width))
                };
            }
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn copies_of_a_service_are_one_entry() {
        let round = |router| {
            let each = [("nats-server", 3.0), ("router-1", router), ("router-2", 0.5), ("ingress-1", 2.0)];
            PerProcess(each.map(|(name, value)| (name.to_owned(), value)).to_vec())
        };
        let (first, second) = (round(1.0), round(1.5));
        let alone = PerProcess(vec![("mosquitto".to_owned(), 1.0)]);
        let roles = roles([&alone, &first, &second].into_iter());
        assert_eq!(roles, ["nats-server", "router", "ingress"]);
        assert_eq!(breakdown(&[&first, &second], &roles, 2), ["3.00", "1.75", "2.00"]);
        assert_eq!(breakdown(&[&alone], &roles, 2), ["", "", ""]);
    }

    #[test]
    fn a_table_is_aligned() {
        let columns = [["", "µs", "of"], ["chain", "12.5", "3.0"], ["one", "2.5", ""]]
            .map(|column| column.map(str::to_owned).to_vec());
        let table = "\
            |     | chain | one |\n\
            | --- | ----: | --: |\n\
            | µs  |  12.5 | 2.5 |\n\
            | of  |   3.0 |     |\n";
        assert_eq!(aligned(&turned(&columns)), table);
    }
}
