//! The identity service as a process of its own.

use std::io::Write;
use std::process::ExitCode;

use boot::CommonArgs;
use bus::Bus;
use clap::Parser;
use nkeys::KeyPair;

/// Tells NATS which node a connection is, and what it may say as that.
#[derive(Parser)]
#[command(name = "switchboard-identity", version = boot::args::version())]
struct Args {
    /// Make a key to sign with, print its seed and what NATS is to be told of it, and end
    #[arg(long)]
    new_issuer: bool,
    #[command(flatten)]
    common: CommonArgs,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.new_issuer {
        return new_issuer();
    }
    boot::run(
        "identity",
        args.common,
        |_| 1,
        |context| async {
            let doorkeeper = switchboard_identity::doorkeeper(&context.settings)?;
            match Bus::connect_for(&context).await {
                Some(bus) => switchboard_identity::serve(context, doorkeeper, bus).await,
                None => Ok(()),
            }
        },
    )
}

/// Lines for an environment: the first is the service's, the second that of nats-server.
fn new_issuer() -> ExitCode {
    let key = KeyPair::new_account();
    let Ok(seed) = key.seed() else { return ExitCode::FAILURE };
    let public = key.public_key();
    let lines = format!("SWITCHBOARD_IDENTITY__ISSUER_SEED={seed}\nSWITCHBOARD_IDENTITY_ISSUER={public}\n");
    match std::io::stdout().write_all(lines.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
