//! A node that brings its authorizer and its router along: three services in one process.

use std::process::ExitCode;

use boot::{CommonArgs, Context};
use bus::{Bus, BusSettings};
use clap::Parser;
use switchboard_ingress::Ingress;

/// Ingress, authorizer and router in one process: between two devices of this node a call needs no NATS.
#[derive(Parser)]
#[command(name = "switchboard-node", version = boot::args::version())]
struct Args {
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    boot::run("node", args.common, |settings| settings.ingress.worker_threads.into(), serve)
}

async fn serve(context: Context) -> anyhow::Result<()> {
    let ingress = Ingress::bind(&context.settings).await?;
    // One for all three: it is what they find each other by.
    let nats = BusSettings::from(&context.settings.nats);
    let mut services = boot::Together::of(&context);
    services.answer("authorizer", |context| connected(context, nats.clone(), switchboard_authorizer::serve));
    services.answer("router", |context| connected(context, nats.clone(), switchboard_router::serve));
    services.ask("ingress", |context| {
        connected(context, nats.clone(), async |context, bus| {
            let served = ingress.serve(context, bus.clone()).await;
            bus.close().await;
            served
        })
    });
    let ended = tokio::select! {
        () = context.shutdown.cancelled() => Ok(()),
        ended = services.first_end() => ended,
    };
    ended.and(services.stop().await)
}

/// Serves once there is NATS.
async fn connected<Served>(
    context: Context,
    nats: BusSettings,
    serve: impl FnOnce(Context, Bus) -> Served,
) -> anyhow::Result<()>
where
    Served: Future<Output = anyhow::Result<()>>,
{
    match Bus::connect_beside(&context, &nats).await {
        Some(bus) => serve(context, bus).await,
        None => Ok(()),
    }
}
