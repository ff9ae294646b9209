//! The API for applications as a process of its own.

use std::process::ExitCode;

use boot::CommonArgs;
use bus::Bus;
use clap::Parser;
use switchboard_api::Api;

/// Lets applications call devices over HTTP.
#[derive(Parser)]
#[command(name = "switchboard-api", version = boot::args::version())]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    boot::run(
        "api",
        args.common,
        |settings| settings.api.worker_threads.into(),
        |context| async {
            let api = Api::bind(&context.settings).await?;
            match Bus::connect_for(&context).await {
                Some(bus) => api.serve(context, bus).await,
                None => Ok(()),
            }
        },
    )
}
