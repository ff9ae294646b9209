//! Do nodes, routers and authorizers keep what they promise, whatever happens? Any number of them on a modelled NATS,
//! in virtual time, from a seed.
//!
//! The cores are the real ones: `router::core`, a node's `holding` and `target`, an authorizer's `directory`,
//! `freshness` and `policy`, the bus' `pulse`, and tickets. What stands around them in each service is followed by
//! `node`, `router` and `authorizer`. A [`Plan`](transition::Plan) says what is done from outside; a
//! [`World`](world::World) lets it happen; what comes of it is a [`history`], which the [`checker`] judges, whoever
//! wrote it.

pub mod authorizer;
pub mod checker;
pub mod client;
pub mod history;
pub mod message;
pub mod net;
pub mod node;
pub mod router;
pub mod service;
pub mod settings;
pub mod shrink;
pub mod store;
pub mod thief;
pub mod transition;
pub mod wire;
pub mod world;

use checker::{Terms, Violation};
use transition::Plan;
use world::World;

/// Lets a plan happen, and says what was not kept.
pub fn judge(plan: &Plan) -> Vec<Violation> {
    checker::check(&World::new(plan, false).run().history, Terms::default())
}

/// The same, told as a story.
pub fn tell(plan: &Plan) -> (Vec<String>, Vec<Violation>) {
    let world = World::new(plan, true).run();
    let violations = checker::check(&world.history, Terms::default());
    (world.story.unwrap_or_default(), violations)
}
