//! Who is this device, whom may it call, and who are its peers? The service that knows the registry.
//!
//! `keep` follows the registry into the [`directory`], and [`freshness`] says whether that may decide; [`judges`]
//! follows the tenants' policies; `answer` serves the bus from them; [`policy`] decides over calls; [`external`]
//! asks a tenant's own decision point; `denials` records what was refused. [`face`] reads what applications ask over
//! NATS, and `discovery` is how they find it.
//! Any number of copies share the questions, and none keeps anything between two of them.

mod answer;
mod denials;
pub mod directory;
mod discovery;
pub mod external;
pub mod face;
pub mod freshness;
pub mod judges;
mod keep;
pub mod listing;
mod meters;
pub mod policy;
pub mod shelf;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bus::inspect::Numbers;
use bus::{Bus, Keyring};
use tokio_util::sync::CancellationToken;

use answer::{Answers, Judged, Questions};
use denials::Denials;
use external::Externals;
use keep::Kept;
pub use meters::describe;

/// Serves until the context's shutdown, then answers what was already asked and closes the bus.
///
/// Ready once the registry is loaded in full and the questions are subscribed to; while NATS is away it keeps trying.
///
/// # Errors
/// When a task of its own fails, which is a fault of the program.
pub fn serve(context: boot::Context, bus: Bus) -> boot::Serving {
    Box::pin(run(context, bus))
}

async fn run(context: boot::Context, bus: Bus) -> anyhow::Result<()> {
    bus::describe();
    describe();
    let subscribed = context.health.part("questions");
    let kept = Arc::new(Kept::new());
    let keys = Keyring::follow(&bus);
    let tracer = context.traces.tracer(context.service, bus.process());
    let _inspected = bus.inspected(&context, &tracer, Numbers::default());

    // Followed until the last answer is given, so that it is given by what holds then.
    let answered = CancellationToken::new();
    let (is_loaded, mut loaded) = tokio::sync::watch::channel(false);
    let (asked, is_asked) = tokio::sync::watch::channel(false);
    let keeper = tokio::spawn(keep::keep(
        bus.clone(),
        Arc::clone(&kept),
        context.health.clone(),
        is_loaded,
        is_asked,
        answered.clone(),
    ));

    let (are_sets_loaded, mut sets_loaded) = tokio::sync::watch::channel(false);
    let follower = tokio::spawn(judges::follow(
        bus.clone(),
        Arc::clone(&kept),
        context.health.clone(),
        are_sets_loaded,
        answered.clone(),
    ));

    let questions = tokio::select! {
        () = context.shutdown.cancelled() => None,
        questions = async {
            let _ = loaded.wait_for(|is_loaded| *is_loaded).await;
            keys.wait_ready().await;
            // Before, the built-in rule could allow what a tenant's policies do not.
            let _ = sets_loaded.wait_for(|is_loaded| *is_loaded).await;
            let for_apps = context.settings.authorizer.answer_applications;
            bus.again("take questions", || Questions::subscribe(&bus, &kept, for_apps)).await
        } => Some(questions),
    };
    let mut recording = None;
    if let Some(questions) = questions {
        subscribed.ready();
        asked.send_replace(true);
        let judged = Judged::from(&*context.in_force.now());
        let externals = Externals::new(&bus, &context.settings.authorizer);
        let (denials, writer) = Denials::start(&bus, &context.settings, answered.clone());
        recording = Some(writer);
        let answers = Answers::new(bus.clone(), kept, keys.clone(), judged, denials, externals, tracer);
        let answers = Arc::new(answers);
        let changing = Arc::clone(&answers);
        let following = context.in_force.clone().each(move |settings| changing.settings_changed(settings));
        let following = tokio::spawn(following);
        let answering = tokio::spawn(answers.all(questions, context.shutdown.clone()));
        finish(answering, &context).await?;
        following.abort();
    }
    answered.cancel();
    keeper.await.context("the task that follows the registry failed")?;
    follower.await.context("the task that follows the policies failed")?;
    if let Some(writer) = recording {
        writer.await.context("the task that records denials failed")?;
    }
    bus.close().await;
    Ok(())
}

/// Waits for the shutdown, and then for the last answer, at most `drain_ms`.
async fn finish(mut answering: tokio::task::JoinHandle<()>, context: &boot::Context) -> anyhow::Result<()> {
    let time_is_up = async {
        context.shutdown.cancelled().await;
        let drain_ms = context.in_force.now().authorizer.drain_ms;
        tokio::time::sleep(Duration::from_millis(drain_ms)).await;
    };
    tokio::select! {
        ended = &mut answering => ended.context("a task that answers failed"),
        () = time_is_up => {
            tracing::warn!("questions were left unanswered: drain_ms was over");
            answering.abort();
            Ok(())
        }
    }
}
