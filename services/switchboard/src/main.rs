//! The command that people type: start a system, keep the registry, make a call.

mod app;
mod audit;
mod call;
mod common;
mod config;
mod customer;
mod device;
mod events;
mod manual;
mod node;
mod policy;
mod system;
mod tenant;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use common::reach;

/// Switchboard lets IoT devices find and call each other.
#[derive(Parser)]
#[command(
    name = "switchboard",
    version = boot::args::version(),
    max_term_width = 110,
    // The last word counts, so that a task's own flags can be overruled.
    args_override_self = true,
    after_help = "\
Examples:
  switchboard up --demo                         start everything, with devices to try
  switchboard call --from A1 --to A2 '{\"x\":1}'  call a device as another one
  switchboard device add \"Pump 7\" --customer Waterworks
  switchboard device import --create devices.csv
  switchboard device list --json

Exit status:
  0    it is done; of a call: it was answered
  1    it failed, or something was refused, and standard error says what; of a call: any other outcome
  2    flags or settings are at fault
  130  it was interrupted half-way: the same command again goes on"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a whole system in this process, with its own NATS server, until Ctrl-C
    Up(Box<system::up::UpArgs>),
    /// Start a small cluster on this machine, each service a process of its own, until Ctrl-C
    Cluster(Box<system::cluster::ClusterArgs>),
    /// Add, list, change, remove, import and export devices
    Device {
        #[command(subcommand)]
        verb: device::DeviceVerb,
    },
    /// Add, list, rename and remove customers: devices of one customer may call each other
    Customer {
        #[command(subcommand)]
        verb: customer::CustomerVerb,
    },
    /// Add, list, rename and remove tenants, who own customers and devices
    Tenant {
        #[command(subcommand)]
        verb: tenant::TenantVerb,
    },
    /// Add, list and end applications and their keys: programs of yours that call devices
    App {
        #[command(subcommand)]
        verb: app::AppVerb,
    },
    /// Write, check, explain and compare a tenant's policies: who may call whom
    Policy {
        #[command(subcommand)]
        verb: Box<policy::PolicyVerb>,
    },
    /// Read the audit, who did what, and check that nothing was taken from it
    Audit {
        #[command(subcommand)]
        verb: audit::AuditVerb,
    },
    /// List nodes, and send their devices to others: evacuate, rebalance, maintenance
    Node {
        #[command(subcommand)]
        verb: node::NodeVerb,
    },
    /// Call a device as another one, and show the outcome and its time
    Call(Box<call::CallArgs>),
    /// Write the registry with its hashes, and the policies, to a file
    Backup(system::backup::BackupArgs),
    /// Put back what a backup holds, into an empty system or another
    Restore(system::restore::RestoreArgs),
    /// Ask whether a service is ready
    Health(system::health::HealthArgs),
    /// Make a call as a device, and show where it was for how long
    Trace(Box<call::trace::TraceArgs>),
    /// Show calls as they end, of all processes, until Ctrl-C
    Tail(call::tail::TailArgs),
    /// Show what runs where, and whether it is ready
    Status(system::status::StatusArgs),
    /// Look for what will hurt: settings that differ, limits that are too low, clocks that disagree
    Doctor(system::doctor::DoctorArgs),
    /// Log more for a while, at processes that run
    LogLevel(system::log_level::LogLevelArgs),
    /// Listen to who comes and goes, and to what changes in the registry
    Events(Box<events::EventsArgs>),
    /// Check or print the configuration
    Config {
        #[command(subcommand)]
        verb: config::ConfigVerb,
    },
    /// Print which version this is
    Version(manual::VersionArgs),
    /// Print what a shell completes this command with
    Completions(manual::CompletionsArgs),
    /// Write the manual's pages
    Man(manual::ManArgs),
}

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Up(args) => system::up::run(*args),
        Command::Cluster(args) => system::cluster::run(*args),
        Command::Device { verb } => reach::run(device::run(verb)),
        Command::Customer { verb } => reach::run(customer::run(verb)),
        Command::Tenant { verb } => reach::run(tenant::run(verb)),
        Command::App { verb } => reach::run(app::run(verb)),
        Command::Policy { verb } => reach::run(policy::run(*verb)),
        Command::Audit { verb } => reach::run(audit::run(verb)),
        Command::Node { verb } => reach::run(node::run(verb)),
        Command::Call(args) => reach::run(call::run(*args)),
        Command::Backup(args) => reach::run(system::backup::run(args)),
        Command::Restore(args) => reach::run(system::restore::run(args)),
        Command::Health(args) => reach::run(system::health::run(args)),
        Command::Trace(args) => reach::run(call::trace::run(*args)),
        Command::Tail(args) => reach::run(call::tail::run(args)),
        Command::Status(args) => reach::run(system::status::run(args)),
        Command::Doctor(args) => reach::run(system::doctor::run(args)),
        Command::LogLevel(args) => reach::run(system::log_level::run(args)),
        Command::Events(args) => reach::run(events::run(*args)),
        Command::Config { verb } => config::run(verb),
        Command::Version(args) => manual::version(&args),
        Command::Completions(args) => manual::completions(&args, Cli::command()),
        Command::Man(args) => manual::man(&args, Cli::command()),
    }
}
