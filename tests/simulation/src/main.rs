//! Which histories are tried? One seed, as many as fit into some minutes, or one that failed, step by step.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Parser;
use switchboard_simulation::checker::{self, Terms};
use switchboard_simulation::history;
use switchboard_simulation::service::Beliefs;
use switchboard_simulation::shrink::shrink;
use switchboard_simulation::transition::{Plan, Seconds, Transition};
use switchboard_simulation::world::World;
use switchboard_simulation::{judge, tell};

/// Tries what nodes, routers and authorizers promise, in virtual time.
#[derive(Parser)]
struct Arguments {
    /// Tells this seed's story, and what was not kept.
    #[arg(long, conflicts_with_all = ["minutes", "replay"])]
    seed: Option<u64>,
    /// Tries one seed after the other for so long.
    #[arg(long, default_value_t = 1.0)]
    minutes: f64,
    /// The first seed of those.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Goes on after a failure, and counts.
    #[arg(long)]
    keep_going: bool,
    /// Steps through a failed history: Enter for the next thing that happens, a number for so many, `c` to the end.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Judges a history that real processes made.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seed", "minutes", "replay"])]
    judge: Option<PathBuf>,
    /// Where a failed history goes.
    #[arg(long, default_value = "target/simulation")]
    failures: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    match (&arguments.judge, &arguments.replay, arguments.seed) {
        (Some(file), ..) => judge_real(file),
        (None, Some(file), _) => replay(file),
        (None, None, Some(seed)) => one(&Plan::of_seed(seed), &arguments.failures),
        (None, None, None) => many(&arguments),
    }
}

/// Ends with an error where a promise was not kept.
fn judge_real(file: &Path) -> anyhow::Result<()> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let (terms, entries) =
        history::parse(&text).with_context(|| format!("{} is no history", file.display()))?;
    let violations = checker::check(&entries, terms);
    violations.iter().for_each(|violation| println!("NOT KEPT: {violation}"));
    anyhow::ensure!(violations.is_empty(), "{} times a promise was not kept", violations.len());
    Ok(())
}

fn one(plan: &Plan, failures: &Path) -> anyhow::Result<()> {
    let (story, violations) = tell(plan);
    story.iter().for_each(|line| println!("{line}"));
    if violations.is_empty() {
        println!("seed {}: every promise was kept", plan.seed);
        return Ok(());
    }
    violations.iter().for_each(|violation| println!("NOT KEPT: {violation}"));
    fails(plan, failures)
}

fn many(arguments: &Arguments) -> anyhow::Result<()> {
    let ends = Instant::now() + Duration::from_secs_f64(arguments.minutes * 60.0);
    let mut seed = arguments.from;
    let mut failed: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    while Instant::now() < ends {
        let plan = Plan::of_seed(seed);
        let violations = judge(&plan);
        if let (Some(first), false) = (violations.first(), arguments.keep_going) {
            println!("seed {seed} after {} histories: {first}", seed - arguments.from + 1);
            return fails(&plan, &arguments.failures);
        }
        for violation in violations {
            let lost = plan.steps.iter().any(|step| matches!(step.what, Transition::LosesClaims { .. }));
            let when = if lost { ", where claims are lost" } else { "" };
            failed.entry(format!("{:?}{when}", violation.promise)).or_insert((0, seed)).0 += 1;
        }
        seed += 1;
    }
    println!("{} histories, from seed {}", seed - arguments.from, arguments.from);
    for (promise, (times, first)) in failed {
        println!("{promise}: {times} times not kept, first with seed {first}");
    }
    Ok(())
}

/// Tells the shortened story of a failure, and leaves it to be stepped through.
fn fails(plan: &Plan, failures: &Path) -> anyhow::Result<()> {
    let violations = judge(plan);
    let Some(first) = violations.first() else { return Ok(()) };
    let (shorter, violations) = shrink(plan, first.promise);
    let (story, _) = tell(&shorter);
    println!("\nseed {}, shortened from {} steps to {}:", plan.seed, plan.steps.len(), shorter.steps.len());
    story.iter().for_each(|line| println!("{line}"));
    violations.iter().for_each(|violation| println!("NOT KEPT: {violation}"));
    std::fs::create_dir_all(failures)?;
    let file = failures.join(format!("{}.json", plan.seed));
    std::fs::write(&file, serde_json::to_vec_pretty(&shorter)?)?;
    anyhow::bail!("seed {} failed; step through it with --replay {}", plan.seed, file.display())
}

fn replay(file: &Path) -> anyhow::Result<()> {
    let read = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let plan: Plan =
        serde_json::from_slice(&read).with_context(|| format!("{} is no plan", file.display()))?;
    let mut world = World::new(&plan, true);
    let mut before: BTreeMap<String, Beliefs> = BTreeMap::new();
    let mut steps = 1u64;
    let mut lines = std::io::stdin().lock().lines();
    loop {
        let told = world.story.as_ref().map_or(0, Vec::len);
        let goes_on = world.step();
        let beliefs = world.beliefs();
        let story = world.story.as_deref().unwrap_or_default();
        let is_news = story.len() > told || beliefs != before;
        if is_news {
            story.iter().skip(told).for_each(|line| println!("{line}"));
            println!("{:>9} --", Seconds(world.now).to_string());
            show(&before, &beliefs);
            before = beliefs;
            steps -= 1;
        }
        if !goes_on {
            break;
        }
        if steps == 0 {
            let line = lines.next().transpose()?.unwrap_or_else(|| "c".into());
            steps = match line.trim() {
                "" => 1,
                "c" => u64::MAX,
                number => number.parse().unwrap_or(1),
            };
        }
    }
    let violations = checker::check(&world.history, Terms::default());
    violations.iter().for_each(|violation| println!("NOT KEPT: {violation}"));
    Ok(())
}

/// What each process believes now that it did not before.
fn show(before: &BTreeMap<String, Beliefs>, now: &BTreeMap<String, Beliefs>) {
    for (name, beliefs) in now {
        let old = before.get(name);
        for (what, is) in beliefs {
            match old.and_then(|old| old.get(what)) {
                Some(was) if was == is => {}
                Some(was) => println!("          {name}: {what}: {was} -> {is}"),
                None => println!("          {name}: {what}: {is}"),
            }
        }
        for what in
            old.into_iter().flatten().map(|(what, _)| what).filter(|what| !beliefs.contains_key(*what))
        {
            println!("          {name}: {what}: no more");
        }
    }
    for name in before.keys().filter(|name| !now.contains_key(*name)) {
        println!("          {name} is no more");
    }
}
