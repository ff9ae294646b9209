//! The ingress service on its own.

use std::process::ExitCode;

use boot::CommonArgs;
use bus::Bus;
use clap::Parser;
use switchboard_ingress::Ingress;

/// Switchboard ingress: the service that devices connect to.
#[derive(Debug, Parser)]
#[command(name = "switchboard-ingress", version = boot::args::version())]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    boot::run("ingress", args.common, |settings| settings.ingress.worker_threads.into(), serve)
}

async fn serve(context: boot::Context) -> anyhow::Result<()> {
    let ingress = Ingress::bind(&context.settings).await?;
    let Some(bus) = Bus::connect_for(&context).await else { return Ok(()) };
    let served = ingress.serve(context, bus.clone()).await;
    bus.close().await;
    served
}
