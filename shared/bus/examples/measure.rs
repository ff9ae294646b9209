//! What do asks and claims cost? Starts a nats-server of its own and prints CPU time, memory, disk and round trips.
//!
//! `cargo run --release -p switchboard-bus --example measure [claims]`

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bus::claims::{ClaimEvent, ClaimStore, Expected};
use bus::server::{NatsServer, ServerOptions, find_binary};
use bus::{Bus, BusSettings};
use bytes::Bytes;
use futures::StreamExt;
use rpc::{Claim, DeviceId, Generation, NodeId, Protocol, SessionId};
use uuid::Uuid;

const WAIT: Duration = Duration::from_secs(20);
const IN_FLIGHT: usize = 128;

/// CPU time in µs (100 Hz resolution) and resident memory in KB of a process.
fn usage(pid: &str) -> (f64, f64) {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<f64> =
        stat.rsplit(") ").next().unwrap_or("").split(' ').map(|field| field.parse().unwrap_or(0.0)).collect();
    let field = |place: usize| fields.get(place).copied().unwrap_or_default();
    ((field(11) + field(12)) * 10_000.0, field(21) * 4.0)
}

/// KB of all files below a folder.
fn disk(folder: &Path) -> f64 {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let size = |path: PathBuf| match std::fs::metadata(&path) {
        Ok(it) if it.is_dir() => disk(&path),
        Ok(it) => it.len() as f64 / 1024.0,
        Err(_) => 0.0,
    };
    entries.map(|entry| size(entry.path())).sum()
}

struct Meter<'a> {
    nats: String,
    folder: &'a Path,
    started: Instant,
    ours: (f64, f64),
    theirs: (f64, f64),
    disk: f64,
}

impl<'a> Meter<'a> {
    fn start(nats: &NatsServer, folder: &'a Path) -> Self {
        let nats = nats.pid().unwrap_or_default().to_string();
        let (ours, theirs) = (usage("self"), usage(&nats));
        Meter { started: Instant::now(), ours, theirs, disk: disk(folder), nats, folder }
    }

    fn report(&self, what: &str, count: usize) {
        let (count, elapsed) = (count as f64, self.started.elapsed().as_secs_f64());
        let (ours, theirs) = (usage("self"), usage(&self.nats));
        println!(
            "{what:<28} {:>9.0}/s   CPU µs each: here {:>6.1}, nats-server {:>6.1}   \
             KB each: here {:>6.3}, nats-server {:>6.3}, disk {:>6.3}",
            count / elapsed,
            (ours.0 - self.ours.0) / count,
            (theirs.0 - self.theirs.0) / count,
            (ours.1 - self.ours.1) / count,
            (theirs.1 - self.theirs.1) / count,
            (disk(self.folder) - self.disk) / count,
        );
    }
}

fn device(number: usize) -> DeviceId {
    DeviceId(Uuid::from_u128(number as u128 * 0x9E37_79B9_7F4A_7C15_0001))
}

fn claim(session: usize) -> Claim {
    Claim {
        node: NodeId(0x0123_4567_89ab_cdef),
        session: SessionId(session as u64),
        protocol: Protocol::Mqtt,
        generation: Generation(1),
        since_ms: Some(1_760_000_000_000),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let claims = std::env::args().nth(1).map_or(Ok(50_000), |count| count.parse())?;
    let binary = find_binary().ok_or("no nats-server")?;
    let folder = std::env::temp_dir().join(format!("switchboard-measure-{}", std::process::id()));
    let store_dir = Some(folder.clone());
    let nats = NatsServer::start(&ServerOptions { binary, store_dir, ..ServerOptions::default() }).await?;
    let settings = BusSettings { url: nats.url(), ..BusSettings::default() };
    let (asker, answerer) = (Bus::connect(&settings, "a").await?, Bus::connect(&settings, "b").await?);

    let mut requests = answerer.serve("swb.echo", None).await?;
    let answering = answerer.clone();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let Some(reply_to) = request.reply_to else { continue };
            if answering.tell(reply_to, request.message).await.is_err() {
                return;
            }
        }
    });
    let body = Bytes::from_static(&[b'x'; 128]);
    for (what, in_flight) in [("ask, one at a time", 1), ("ask, many in flight", IN_FLIGHT)] {
        let count = 50_000;
        let meter = Meter::start(&nats, &folder);
        futures::stream::iter(0..count)
            .for_each_concurrent(in_flight, async |_| {
                let _ = asker.ask("swb.echo", body.clone(), WAIT).await;
            })
            .await;
        meter.report(what, count);
    }

    let store = ClaimStore::open(&asker).await?;
    let meter = Meter::start(&nats, &folder);
    futures::stream::iter(0..claims)
        .for_each_concurrent(IN_FLIGHT, async |number| {
            let _ = store.write(device(number), &claim(number), Expected::Nothing, WAIT).await;
        })
        .await;
    meter.report("claim", claims);

    let meter = Meter::start(&nats, &folder);
    let mut watch = store.watch();
    let mut standing = Vec::with_capacity(claims);
    while let Some(event) = watch.next().await {
        match event {
            ClaimEvent::Put { device, revision, .. } => standing.push((device, revision)),
            ClaimEvent::Loaded => break,
            _ => {}
        }
    }
    meter.report("load", standing.len());

    let meter = Meter::start(&nats, &folder);
    futures::stream::iter(0..claims)
        .for_each_concurrent(IN_FLIGHT, async |number| {
            let _ = store.read(device(number), WAIT).await;
        })
        .await;
    meter.report("look up", claims);

    let one_by_one = 5_000.min(claims);
    let meter = Meter::start(&nats, &folder);
    for number in 0..one_by_one {
        store.read(device(number), WAIT).await?;
    }
    meter.report("look up, one at a time", one_by_one);
    let meter = Meter::start(&nats, &folder);
    for number in 0..one_by_one {
        store.read(device(claims + number), WAIT).await?;
    }
    meter.report("look up what is not there", one_by_one);
    let meter = Meter::start(&nats, &folder);
    for number in 0..one_by_one {
        store.write(device(claims + number), &claim(1), Expected::Nothing, WAIT).await?;
    }
    meter.report("claim, one at a time", one_by_one);

    let meter = Meter::start(&nats, &folder);
    let claimed: Vec<_> = futures::stream::iter(standing)
        .map(async |(device, revision)| {
            (device, store.write(device, &claim(2), Expected::Revision(revision), WAIT).await)
        })
        .buffer_unordered(IN_FLIGHT)
        .collect()
        .await;
    meter.report("claim over another", claims);

    let meter = Meter::start(&nats, &folder);
    futures::stream::iter(claimed)
        .for_each_concurrent(IN_FLIGHT, async |(device, revision)| {
            if let Ok(revision) = revision {
                let _ = store.remove(device, revision, WAIT).await;
            }
        })
        .await;
    meter.report("release", claims);
    nats.stop().await;
    std::fs::remove_dir_all(folder)?;
    Ok(())
}
