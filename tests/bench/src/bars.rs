//! Does Switchboard reach what it is held to? Ratios to the peers of the same run, since those hold on any machine.

use crate::report::{Report, aligned};
use crate::scenario::Scenario;
use crate::systems::System;

const ONE_EACH: Scenario = Scenario::Closed { pairs: 200, in_flight: 1 };
const FOUR_EACH: Scenario = Scenario::Closed { pairs: 200, in_flight: 4 };
const SELDOM: Scenario = Scenario::Open { calls_per_s: 100, pairs: 100 };
const STEADY: Scenario = Scenario::Open { calls_per_s: 2000, pairs: 100 };
const STEEP: Scenario = Scenario::Open { calls_per_s: 8000, pairs: 200 };
const AWAY: Scenario = Scenario::Offline { pairs: 200, in_flight: 1 };
const OTHERS: Scenario = Scenario::Fair { calls_per_s: 500, customers: 50, beside_greedy: false };
const GREEDY: Scenario = Scenario::Fair { calls_per_s: 500, customers: 50, beside_greedy: true };
const IDLE: Scenario = Scenario::Idle { devices: 19_000, again: false, is_secure: false };
const SECURE: Scenario = Scenario::Idle { devices: 5_000, again: false, is_secure: true };
const RESUMED: Scenario = Scenario::Idle { devices: 5_000, again: true, is_secure: true };

struct Bar {
    what: String,
    figure: Option<f64>,
    bound: Bound,
}

enum Bound {
    AtMost(f64),
    Below(f64),
}

/// A table of the bars that the run's scenarios and systems allow to judge, empty when there are none.
pub fn judge(report: &Report) -> String {
    let mut rows = vec![["what", "figure", "bar", ""].map(str::to_owned).to_vec()];
    for Bar { what, figure, bound } in bars(report) {
        let Some(figure) = figure else { continue };
        let (bar, holds) = match bound {
            Bound::AtMost(most) => (format!("≤ {most}"), figure <= most),
            Bound::Below(all) => (format!("< {all}"), figure < all),
        };
        let verdict = if holds { "holds" } else { "missed" };
        rows.push(vec![what, format!("{figure:.3}"), bar, verdict.to_owned()]);
    }
    if rows.len() == 1 { String::new() } else { aligned(&rows) }
}

fn bars(report: &Report) -> Vec<Bar> {
    use Bound::{AtMost, Below};
    use System::{Chain, Mosquitto, NatsUsers, Rumqttd, Separate, Together, Up};
    const ONE: System = Separate { nodes: 1 };
    let cpu = |system, scenario| report.of_load(system, scenario, |load| load.server_cpu_us_a_call.sum());
    let p50 = |system, scenario| report.of_load(system, scenario, |load| load.latency.p50_ms);
    let p99 = |system, scenario| report.of_load(system, scenario, |load| load.latency.p99_ms);
    let memory =
        |system, scenario| report.of_idle(system, scenario, |idle| idle.server_kib_a_connection.sum());
    let connect =
        |system, scenario| report.of_idle(system, scenario, |idle| idle.server_cpu_ms_a_connect.sum());
    let ratio = |of: Option<f64>, to: Option<f64>| Some(of? / to?);
    let mut bars = Vec::new();
    let mut bar = |what: String, figure, bound| bars.push(Bar { what, figure, bound });

    for load in [FOUR_EACH, ONE_EACH] {
        let figure = ratio(cpu(Up, load), cpu(Mosquitto, load));
        bar(format!("up, {load}: CPU a call, × mosquitto"), figure, AtMost(0.7));
    }
    let figure = ratio(cpu(Up, FOUR_EACH), cpu(Rumqttd, FOUR_EACH));
    bar(format!("up, {FOUR_EACH}: CPU a call, × rumqttd"), figure, AtMost(1.3));
    let beside_mosquitto =
        |of: &dyn Fn(System, Scenario) -> Option<f64>| ratio(of(Up, STEADY), of(Mosquitto, STEADY));
    bar(format!("up, {STEADY}: CPU a call, × mosquitto"), beside_mosquitto(&cpu), AtMost(2.0));
    bar(format!("up, {STEADY}: p50, × mosquitto"), beside_mosquitto(&p50), AtMost(1.5));
    bar(format!("up, {STEADY}: p99, × mosquitto"), beside_mosquitto(&p99), AtMost(2.0));
    let figure = ratio(cpu(Up, STEADY), cpu(NatsUsers, STEADY));
    bar(format!("up, {STEADY}: CPU a call, × nats-users"), figure, Below(1.0));
    let figure = ratio(p50(Up, STEADY), p50(NatsUsers, STEADY));
    bar(format!("up, {STEADY}: p50, × nats-users"), figure, Below(1.0));

    let (together, separate) = (Together { nodes: 2 }, Separate { nodes: 2 });
    let figure = ratio(cpu(together, STEADY), cpu(separate, STEADY));
    bar(format!("together-2, {STEADY}: CPU a call, × switchboard-2"), figure, AtMost(0.55));
    let figure = ratio(p50(together, STEADY), p50(separate, STEADY));
    bar(format!("together-2, {STEADY}: p50, × switchboard-2"), figure, AtMost(0.6));

    for load in [ONE_EACH, FOUR_EACH, SELDOM, STEADY, STEEP] {
        let figure = ratio(cpu(ONE, load), cpu(Chain, load));
        bar(format!("separate, {load}: CPU a call, × chain"), figure, AtMost(1.15));
    }
    let figure = ratio(p50(ONE, STEADY), p50(Chain, STEADY));
    bar(format!("separate, {STEADY}: p50, × chain"), figure, AtMost(1.2));
    let figure = ratio(p99(ONE, STEADY), p99(Chain, STEADY));
    bar(format!("separate, {STEADY}: p99, × chain"), figure, AtMost(1.2));

    for system in [Up, ONE, Together { nodes: 1 }] {
        bar(format!("{system}: KiB an idle callable device"), memory(system, IDLE), AtMost(3.0));
        bar(format!("{system}: CPU ms a connect"), connect(system, IDLE), AtMost(0.2));
        let figure = ratio(memory(system, SECURE), memory(Mosquitto, SECURE));
        bar(format!("{system}: KiB an idle TLS connection, × mosquitto"), figure, AtMost(0.6));
        for (load, what) in [(SECURE, "handshake"), (RESUMED, "resumed handshake")] {
            let figure = ratio(connect(system, load), connect(Mosquitto, load));
            bar(format!("{system}: CPU a connect with a {what}, × mosquitto"), figure, AtMost(1.0));
        }
    }
    for of_nodes in [|nodes| Separate { nodes }, |nodes| Together { nodes }] {
        let figure = ratio(cpu(of_nodes(4), STEEP), cpu(of_nodes(1), STEEP));
        bar(format!("{}, {STEEP}: CPU a call, × one node", of_nodes(4)), figure, AtMost(1.1));
    }
    for system in [Up, ONE] {
        let figure = ratio(cpu(system, AWAY), cpu(system, ONE_EACH));
        bar(format!("{system}: CPU an Offline answer, × an answered call"), figure, AtMost(1.0));
        let figure = ratio(p99(system, GREEDY), p99(system, OTHERS));
        bar(format!("{system}: p99 beside a greedy customer, × without"), figure, AtMost(1.5));
    }
    bars
}
