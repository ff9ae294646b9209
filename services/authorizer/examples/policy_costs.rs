//! What do policies cost? `cargo run --release -p switchboard-authorizer --example policy_costs` measures it beside the
//! bars, the least of some rounds, and ends with status 1 when one is missed.

use std::hint::black_box;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rpc::{CustomerId, DeviceId, Protocol};
use switchboard_authorizer::policy::{Action, BUILT_IN, Context, Facts, Judge, PolicySet, survey};
use uuid::Uuid;

const ROUNDS: u32 = 9;

fn main() -> ExitCode {
    let mut bars = Bars { missed: 0 };
    let (caller, target, noon) = (device(0, 40), device(40, 40), noon());
    println!("One decision, nothing remembered");
    for count in [1, 10, 100, 1_000] {
        let Some(set) = read(&rooms(count)) else { return ExitCode::FAILURE };
        let all = least(|| set.evaluate_all(&caller, Action::Call, &target, &noon));
        let sieved = least(|| set.evaluate(&caller, Action::Call, &target, &noon));
        bars.tell(&format!("{count} policies, each evaluated by Cedar"), all, None);
        bars.tell(&format!("{count} policies, through the sieve"), sieved, None);
    }
    println!("A tenant of 1,000 devices in 40 classes, 100 policies");
    for (what, text) in [("each names a room", rooms(100)), ("each compares labels of both", alike(100))] {
        let Some(set) = read(&text) else { return ExitCode::FAILURE };
        let judge = || Judge::new(Some(Arc::clone(&set)), 1, 0, (0..1_000).map(|it| device(it, 40)));
        let call = |judge: &Judge| judge.allows(id(0), Action::Call, id(40), &noon);
        let list = |judge: &Judge| judge.list(id(0), None, usize::MAX, &noon).map(|listed| listed.len());
        let cold = least_of_new(judge, |judge| call(judge));
        bars.tell(&format!("{what}: call, cold"), cold, Some(Duration::from_millis(1)));
        let (warm, judge_of_lists) = (judge(), judge());
        bars.tell(&format!("{what}: call, warm"), least(|| call(&warm)), Some(Duration::from_micros(2)));
        let cold = least_of_new(judge, |judge| list(judge));
        bars.tell(&format!("{what}: getDevices, cold"), cold, Some(Duration::from_millis(1)));
        let warm = least(|| list(&judge_of_lists));
        bars.tell(&format!("{what}: getDevices, warm"), warm, Some(Duration::from_micros(50)));
    }
    println!("A tenant of 1,000 devices of one customer, the built-in rule as Cedar");
    let Some(built_in) = read(BUILT_IN) else { return ExitCode::FAILURE };
    let judge = Judge::new(Some(Arc::clone(&built_in)), 1, 0, (0..1_000).map(|it| device(it, 1)));
    let all = least(|| judge.list(id(0), None, usize::MAX, &noon));
    bars.tell("getDevices of 999, warm", all, Some(Duration::from_micros(50)));
    println!("A tenant of 1,000,000 devices, 100 policies");
    let Some(set) = read(&rooms(100)) else { return ExitCode::FAILURE };
    let devices: Vec<_> = (0..1_000_000).map(|it| device(it, 1_000)).collect();
    let a_second = Some(Duration::from_secs(1));
    let whom = least_few(|| survey::whom(&set, &devices, &caller, Action::Call, &noon).len());
    bars.tell("whom --may", whom, a_second);
    let who = least_few(|| survey::who(&set, &devices, &caller, Action::Call, &noon).len());
    bars.tell("who --may-call", who, a_second);
    if bars.missed > 0 {
        println!("{} missed", bars.missed);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

struct Bars {
    missed: u32,
}

impl Bars {
    fn tell(&mut self, what: &str, took: Duration, bar: Option<Duration>) {
        let took_us = took.as_secs_f64() * 1e6;
        let verdict = match bar {
            None => String::new(),
            Some(bar) if took <= bar => format!("  within {bar:?}"),
            Some(bar) => {
                self.missed += 1;
                format!("  MISSES {bar:?}")
            }
        };
        println!("  {took_us:>12.2} µs  {what}{verdict}");
    }
}

/// The least time of one of many.
fn least<T>(mut run: impl FnMut() -> T) -> Duration {
    let mut one = || {
        let started = Instant::now();
        (0..100).for_each(|_| {
            black_box(run());
        });
        started.elapsed() / 100
    };
    (0..ROUNDS).map(|_| one()).min().unwrap_or_default()
}

fn least_few<T>(mut run: impl FnMut() -> T) -> Duration {
    let mut one = || {
        let started = Instant::now();
        black_box(run());
        started.elapsed()
    };
    (0..3).map(|_| one()).min().unwrap_or_default()
}

/// The same of the first time with something new.
fn least_of_new<T>(new: impl Fn() -> Judge, run: impl Fn(&Judge) -> T) -> Duration {
    let one = |_| {
        let judge = new();
        let started = Instant::now();
        black_box(run(&judge));
        started.elapsed()
    };
    (0..ROUNDS).map(one).min().unwrap_or_default()
}

fn read(text: &str) -> Option<Arc<PolicySet>> {
    match PolicySet::read(&[("costs".to_owned(), text.to_owned())]) {
        Ok(set) => Some(Arc::new(set)),
        Err(faults) => {
            faults.iter().for_each(|fault| eprintln!("{fault}"));
            None
        }
    }
}

/// Each lets the devices of one room call each other by day.
fn rooms(count: u32) -> String {
    let of_room = |room| {
        format!(
            "permit (principal is Device, action, resource) when {{ principal.hasTag(\"room\") && \
             resource.hasTag(\"room\") && principal.getTag(\"room\") == \"{room}\" && \
             resource.getTag(\"room\") == \"{room}\" && context.hour < 22 }};\n"
        )
    };
    (0..count).map(of_room).collect()
}

/// Each lets devices call each other that have the same value of some label.
fn alike(count: u32) -> String {
    let by_label = |number| {
        let label = if number == 0 { "room".to_owned() } else { format!("label{number}") };
        format!(
            "permit (principal is Device, action, resource) when {{ principal.hasTag(\"{label}\") && \
             resource.hasTag(\"{label}\") && principal.getTag(\"{label}\") == resource.getTag(\"{label}\") }};\n"
        )
    };
    (0..count).map(by_label).collect()
}

fn device(number: u32, rooms: u32) -> Facts {
    Facts {
        id: id(number),
        name: format!("Device {number}").into(),
        kind: "default".into(),
        customer: Some(CustomerId(Uuid::from_u128(1))),
        labels: [("room".to_owned(), (number % rooms).to_string())].into(),
    }
}

fn id(number: u32) -> DeviceId {
    DeviceId(Uuid::from_u128(number.into()))
}

fn noon() -> Context {
    Context::of_call(false, 10_000, 10, 1_795_694_400, 0).over(Some(Protocol::Mqtt))
}
