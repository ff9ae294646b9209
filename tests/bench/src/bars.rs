//! Does Switchboard reach what it is held to? Ratios to the peers of the same run, since those hold on any machine.

use crate::report::{Report, aligned};
use crate::scenario::Scenario;
use crate::systems::System;

const ONE_EACH: Scenario = Scenario::Closed { pairs: 200, in_flight: 1 };
const FOUR_EACH: Scenario = Scenario::Closed { pairs: 200, in_flight: 4 };
const STEADY: Scenario = Scenario::Open { calls_per_s: 2000, pairs: 100 };
const AWAY: Scenario = Scenario::Offline { pairs: 200, in_flight: 1 };
const OTHERS: Scenario = Scenario::Fair { calls_per_s: 500, customers: 50, beside_greedy: false };
const GREEDY: Scenario = Scenario::Fair { calls_per_s: 500, customers: 50, beside_greedy: true };
const IDLE: Scenario = Scenario::Idle { devices: 19_000 };

struct Bar {
    what: &'static str,
    figure: Option<f64>,
    bound: Bound,
}

enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

/// A table of the bars that the run's scenarios and systems allow to judge, empty when there are none.
pub fn judge(report: &Report) -> String {
    let mut rows = vec![["what", "figure", "bar", ""].map(str::to_owned).to_vec()];
    for Bar { what, figure, bound } in bars(report) {
        let Some(figure) = figure else { continue };
        let (bar, holds) = match bound {
            Bound::AtMost(most) => (format!("≤ {most}"), figure <= most),
            Bound::AtLeast(least) => (format!("≥ {least}"), figure >= least),
        };
        let verdict = if holds { "holds" } else { "missed" };
        rows.push(vec![what.to_owned(), format!("{figure:.3}"), bar, verdict.to_owned()]);
    }
    if rows.len() == 1 { String::new() } else { aligned(&rows) }
}

fn bars(report: &Report) -> Vec<Bar> {
    use Bound::{AtLeast, AtMost};
    use System::{Chain, Mosquitto, Switchboard};
    let cpu = |system, scenario| report.of_load(system, scenario, |load| load.server_cpu_us_a_call.sum());
    let p50 = |system| report.of_load(system, STEADY, |load| load.latency.p50_ms);
    let p99 = |scenario| report.of_load(Switchboard, scenario, |load| load.latency.p99_ms);
    let rate = |system| report.of_load(system, ONE_EACH, |load| load.calls_per_s);
    let ratio = |of: Option<f64>, to: Option<f64>| Some(of? / to?);
    let cpu_ratio = |to, scenario| ratio(cpu(Switchboard, scenario), cpu(to, scenario));
    let bar = |what, figure, bound| Bar { what, figure, bound };
    vec![
        bar("CPU a call, 200x1, × chain", cpu_ratio(Chain, ONE_EACH), AtMost(1.3)),
        bar("CPU a call, 200x4, × chain", cpu_ratio(Chain, FOUR_EACH), AtMost(1.3)),
        bar("CPU a call, 2000/s, × chain", cpu_ratio(Chain, STEADY), AtMost(1.3)),
        bar("CPU a call, 200x1, × mosquitto", cpu_ratio(Mosquitto, ONE_EACH), AtMost(1.6)),
        bar("CPU a call, 200x4, × mosquitto", cpu_ratio(Mosquitto, FOUR_EACH), AtMost(1.1)),
        bar("p50 at 2000/s, × chain", ratio(p50(Switchboard), p50(Chain)), AtMost(1.3)),
        bar("p99 at 2000/s, ms", p99(STEADY), AtMost(1.0)),
        bar("calls/s, 200x1, × mosquitto", ratio(rate(Switchboard), rate(Mosquitto)), AtLeast(0.75)),
        bar("p99 beside a greedy customer, × without", ratio(p99(GREEDY), p99(OTHERS)), AtMost(1.5)),
        bar(
            "KiB an idle connection",
            report.of_idle(Switchboard, IDLE, |idle| idle.server_kib_a_connection.sum()),
            AtMost(6.0),
        ),
        bar(
            "CPU ms a connect",
            report.of_idle(Switchboard, IDLE, |idle| idle.server_cpu_ms_a_connect.sum()),
            AtMost(0.25),
        ),
        bar(
            "CPU an Offline answer, × an answered call",
            ratio(cpu(Switchboard, AWAY), cpu(Switchboard, ONE_EACH)),
            AtMost(1.0),
        ),
    ]
}
