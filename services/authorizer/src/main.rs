//! The authorizer as a process of its own.

use std::process::ExitCode;
use std::time::Duration;

use boot::{CommonArgs, Context};
use bus::{Bus, BusSettings};
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
            match connect(&context).await {
                Some(bus) => switchboard_authorizer::serve(context, bus).await,
                None => Ok(()),
            }
        },
    )
}

/// Tries for ever, not ready meanwhile; none when the process is to end first.
async fn connect(context: &Context) -> Option<Bus> {
    let nats = context.health.part("nats");
    let settings = BusSettings::from(&context.settings.nats);
    loop {
        let connected = tokio::select! {
            () = context.shutdown.cancelled() => return None,
            connected = Bus::connect(&settings, context.service) => connected,
        };
        match connected {
            Ok(bus) => return Some(bus),
            Err(error) => {
                tracing::warn!(%error, "trying again");
                nats.not_ready(&error.to_string());
            }
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
