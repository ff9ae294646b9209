//! The authorizer as a process of its own.

use std::process::ExitCode;

use boot::CommonArgs;
use bus::Bus;
use clap::Parser;

/// Knows who each device is, says which calls are allowed, and lists a device's peers.
#[derive(Parser)]
#[command(name = "switchboard-authorizer", version = boot::args::version())]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    boot::run(
        "authorizer",
        args.common,
        |settings| settings.authorizer.worker_threads.into(),
        |context| async {
            match Bus::connect_for(&context).await {
                Some(bus) => switchboard_authorizer::serve(context, bus).await,
                None => Ok(()),
            }
        },
    )
}
