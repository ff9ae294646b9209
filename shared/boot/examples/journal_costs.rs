//! What does a hop's record cost? `cargo run --release -p switchboard-boot --example journal_costs`
//!
//! A call has four hops. `./taskw bench` with `--systems switchboard,switchboard-forgetful` measures whole calls.

use std::hint::black_box;
use std::time::Instant;

use boot::traces::{Hop, Tracer};
use boot::{Settings, Traces};
use rpc::{Budget, CallId, DeviceId, HopEnd, HopOf, NodeId, Outcome, Station};

const HOPS: u64 = 5_000_000;

fn main() {
    let mut settings = Settings::default();
    let with = boot::traces::start(&settings).0;
    settings.journal.max_hops = 0;
    let without = boot::traces::start(&settings).0;
    for (name, traces) in
        [("no record", None), ("clocks alone", Some(without)), ("into the ring", Some(with))]
    {
        let tracer = traces.as_ref().map(|traces: &Traces| traces.tracer("bench", 1));
        // Once to fill the ring.
        let [_, nanos] = [(); 2].map(|()| nanos_per_hop(tracer.as_ref()));
        println!("{name}: {nanos:.0} ns a hop");
    }
}

fn nanos_per_hop(journaled: Option<&Tracer>) -> f64 {
    let none = Tracer::default();
    let started = Instant::now();
    for serial in 0..HOPS {
        let mut traceparent = black_box(None);
        let mut span = none.follow("route", Hop::Taken, &mut traceparent);
        if let Some(tracer) = journaled {
            let of = HopOf {
                station: Station::Router,
                call: CallId { node: NodeId(1), serial },
                from: DeviceId(uuid::Uuid::from_u128(1)),
                to: Some(DeviceId(uuid::Uuid::from_u128(2))),
                party: None,
                budget_ms: Budget::from_ms(1_000),
                protocol: None,
            };
            tracer.record(&mut span, black_box(of), HopEnd::CutOff, Instant::now());
        }
        black_box(span).end(&Outcome::Answered);
    }
    started.elapsed().as_nanos() as f64 / HOPS as f64
}
