//! The router as a process of its own.

use std::process::ExitCode;

use boot::CommonArgs;
use bus::Bus;
use clap::Parser;

/// Finds the node that holds a call's target, delivers the call there, and answers its caller.
#[derive(Parser)]
#[command(name = "switchboard-router", version = boot::args::version())]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    boot::run(
        "router",
        args.common,
        |settings| settings.router.worker_threads.into(),
        |context| async {
            match Bus::connect_for(&context).await {
                Some(bus) => switchboard_router::serve(context, bus).await,
                None => Ok(()),
            }
        },
    )
}
