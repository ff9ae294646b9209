//! Who is this connection, NATS asks. A node with an id of its own, whose rights are for that id alone, or nobody.
//!
//! The service answers NATS' auth callout (ADR-26) for nodes; everybody else is known to NATS itself. What it signs
//! with could make anybody of anybody, so it is a process of its own that does nothing else. `jwt` and `join` are pure.

pub mod join;
pub mod jwt;
mod meters;

use std::time::Duration;

use anyhow::Context as _;
use boot::Context;
use boot::clock::unix_s;
use bus::Bus;
use rpc::Subjects;
use tokio::time::Instant;

use crate::join::{Answer, Doorkeeper};
use crate::meters::Meters;

/// Any number of copies share what is asked.
const QUEUE: &str = "identity";
/// Between two lines about who was refused: whoever reaches NATS can be.
const REFUSALS_SAID_EVERY: Duration = Duration::from_secs(1);

/// Serves until the context's shutdown, and closes the bus.
///
/// # Errors
/// When a setting that it needs is missing.
pub async fn serve(context: Context, doorkeeper: Doorkeeper, bus: Bus) -> anyhow::Result<()> {
    meters::describe();
    let meters = Meters::new();
    let part = context.health.part("nodes");
    let showing = tokio::spawn(bus.clone().show_connection(context.health.part("nats")));
    let subscribed = tokio::select! {
        () = context.shutdown.cancelled() => None,
        asked = bus.again("answer for nodes", || bus.serve_callouts(QUEUE)) => Some(asked),
    };
    if let Some(mut asked) = subscribed {
        part.ready();
        let mut refusals = Refusals::default();
        while let Some(request) = asked.next_until(&context.shutdown).await {
            let Some(reply_to) = request.reply_to else { continue };
            let Answer { jwt, admitted } = match doorkeeper.answer(&request.message, unix_s()) {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::error!(%error, "a question of NATS could not be read");
                    meters.unreadable.increment(1);
                    continue;
                }
            };
            let told = bus.tell(reply_to, jwt.into()).await;
            meters.seconds.record(request.arrived.elapsed());
            if let Err(error) = told {
                tracing::warn!(%error, "an answer could not be given");
                meters.unsent.increment(1);
                continue;
            }
            match admitted {
                Ok((node, host)) => {
                    tracing::info!(%node, host, "a node joined");
                    meters.joined.increment(1);
                }
                Err((why, host)) => {
                    refusals.say(why, &host);
                    meters.refused(why);
                }
            }
        }
    }
    showing.abort();
    bus.close().await;
    Ok(())
}

/// What the service needs of its settings.
///
/// # Errors
/// With the setting that is missing or wrong.
pub fn doorkeeper(settings: &boot::Settings) -> anyhow::Result<Doorkeeper> {
    let identity = &settings.identity;
    let secret =
        identity.join_secret.as_ref().context("identity.join_secret is not set: what nodes show to join")?;
    let seed = identity.issuer_seed.as_ref().context(
        "identity.issuer_seed is not set: `switchboard-identity --new-issuer` makes one, and its public part for NATS",
    )?;
    let issuer = jwt::issuer(seed.expose()).context("identity.issuer_seed")?;
    let subjects = Subjects::new(settings.nats.prefix.clone());
    Ok(Doorkeeper::new(secret.expose(), issuer, subjects, identity.lifetime_s))
}

/// Says who was refused, now and then, and how many others.
#[derive(Default)]
struct Refusals {
    said: Option<Instant>,
    left_out: u64,
}

impl Refusals {
    fn say(&mut self, why: join::Refused, host: &str) {
        if self.said.is_some_and(|said| said.elapsed() < REFUSALS_SAID_EVERY) {
            self.left_out += 1;
            return;
        }
        tracing::warn!(%why, host, left_out = std::mem::take(&mut self.left_out), "a connection was refused");
        self.said = Some(Instant::now());
    }
}
