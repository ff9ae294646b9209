//! Does the bench tell right answers from wrong ones? Against the chain, whose answers are right, and against a server
//! that gives whichever fault is asked of it.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "clippy takes a test's helper functions for production code"
)]

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use switchboard_bench::crowd::{Crowd, Way};
use switchboard_bench::frame::{self, Packet};
use switchboard_bench::framing::Framing;
use switchboard_bench::link::{self, Scratch};
use switchboard_bench::report::{Figures, Sample};
use switchboard_bench::run::{self, Options};
use switchboard_bench::systems::{Folder, Tools};
use switchboard_bench::tally::Faults;
use switchboard_bench::wire::{DeviceApi, Dialect, body, device_id};
use switchboard_bench::workload::{self, Expected, Observed, Pace, Plan};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

fn on_one_thread<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build_local(Default::default())
        .unwrap()
        .block_on(future)
}

fn sample(system: &str, scenario: &str, calls: u64) -> Sample {
    let own = Path::new(env!("CARGO_BIN_EXE_bench-chain")).parent().unwrap().to_owned();
    let options = Options {
        systems: vec![system.parse().unwrap()],
        scenarios: vec![scenario.parse().unwrap()],
        rounds: 1,
        window: Duration::from_secs(60),
        warm_up: Duration::ZERO,
        calls_max: Some(calls),
        connections_a_process: 30,
        tools: Tools { own, nats_server: None, mosquitto: None },
    };
    let mut samples = on_one_thread(run::run(&options, |_| {})).unwrap();
    assert_eq!(samples.len(), 1);
    samples.remove(0)
}

/// What runs wherever the tests do; mosquitto, where it is installed.
fn peers() -> impl Iterator<Item = &'static str> {
    let has_mosquitto = Path::new("/usr/sbin/mosquitto").is_file();
    let mosquitto: &[&str] = if has_mosquitto { &["mosquitto", "mosquitto-acl"] } else { &[] };
    ["chain", "nats-users", "nats-mqtt"].iter().chain(mosquitto).copied()
}

#[test]
fn every_answer_of_every_peer_is_right() {
    let closed = peers().chain(["chain-nested", "chain-direct"]).map(|system| (system, "2x4", 1000));
    let offline = ("nats-users", "offline@2x4", 1000);
    for (system, scenario, calls) in
        closed.chain([("chain", "200/s@2", 50), ("nats-users", "200/s@2", 50), offline])
    {
        let sample = sample(system, scenario, calls);
        assert_eq!(sample.fault(), None, "{system} {scenario}");
        let Some(Figures::Load(load)) = &sample.figures else { panic!("no load in {sample:?}") };
        assert!(load.answered >= calls, "{sample:?}");
        // A call that was due before the window has no place in its percentiles.
        assert!(load.latency.calls > 0, "{sample:?}");
        assert!(load.server_cpu_us_a_call.sum() > 0.0, "{sample:?}");
    }
}

#[test]
fn idle_devices_of_the_chain_stay_connected() {
    stay_connected("chain", "again@50");
}

#[test]
fn idle_devices_of_nats_stay_connected() {
    stay_connected("nats-users", "idle@50");
}

/// Where mosquitto is installed.
#[test]
fn tls_sessions_of_mosquitto_are_resumed() {
    if peers().any(|system| system == "mosquitto") {
        assert_eq!(stay_connected("mosquitto", "resumed@50"), 50);
        assert_eq!(stay_connected("mosquitto", "tls@50"), 0);
    }
}

/// How many of them resumed a TLS session.
fn stay_connected(system: &str, scenario: &str) -> usize {
    let sample = sample(system, scenario, 0);
    assert_eq!(sample.fault(), None);
    let Some(Figures::Idle(idle)) = &sample.figures else { panic!("no idle figures in {sample:?}") };
    assert_eq!(idle.connected, 50);
    idle.resumed
}

#[derive(Clone, Copy)]
enum Fault {
    Silent,
    Twice,
    WrongBody,
    WrongId,
    Refusing,
    TurningAway,
}

/// CONNACK: server unavailable (MQTT 3.1.1, table 3.1).
const UNAVAILABLE: u8 = 3;
/// So many connections are turned away first.
const TURNED_AWAY: u8 = 2;

/// A server that answers each call itself, wrongly.
async fn liar(listener: TcpListener, fault: Fault) {
    let scratch = Scratch::new();
    let mut turned_away = 0..if matches!(fault, Fault::TurningAway) { TURNED_AWAY } else { 0 };
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut reader, outbox) = link::open(stream, Framing::Mqtt).unwrap();
        let scratch = scratch.clone();
        let connack = turned_away.next().map_or(0, |_| UNAVAILABLE);
        spawn_local(async move {
            let lie = |packet: Packet<'_>| {
                match packet {
                    Packet::Connect { .. } => outbox.queue(|out| frame::connack(out, connack)),
                    Packet::Subscribe { packet_id, .. } => outbox.queue(|out| frame::suback(out, packet_id)),
                    Packet::Publish { topic, payload } => {
                        let id = topic.strip_prefix(b"v1/devices/me/rpc/request/").unwrap();
                        let answer = |id: &[u8], payload: &[u8]| {
                            let topic = [b"v1/devices/me/rpc/response/".as_slice(), id];
                            outbox.queue(|out| frame::publish(out, topic, &[payload]));
                        };
                        let right = body::find(payload).unwrap();
                        match fault {
                            Fault::Silent | Fault::TurningAway => {}
                            Fault::Twice => (0..2).for_each(|_| answer(id, right)),
                            Fault::WrongBody => {
                                answer(id, &[body::HEAD, &body::new_nonce(0, u64::MAX), body::TAIL].concat());
                            }
                            Fault::WrongId => answer(b"1000", right),
                            Fault::Refusing => answer(id, br#"{"error":"Too many requests!"}"#),
                        }
                    }
                    other => panic!("{other:?}"),
                }
                Ok(())
            };
            let mut lie = lie;
            while reader.batch(&scratch, &mut lie).await.is_ok() {}
        });
    }
}

async fn call_liar(fault: Fault) -> Observed {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    spawn_local(liar(listener, fault));
    let plan = Plan {
        pairs: 1,
        pace: Pace::Open { calls_per_s: 1000 },
        expected: Expected::Answer,
        warm_up: Duration::ZERO,
        window: Duration::from_millis(20),
        calls_max: None,
    };
    let dialect = DeviceApi { username: device_id };
    let crew = workload::connect(&[address], &dialect, &plan, &Scratch::new()).await.unwrap();
    crew.run(&plan, || Ok(())).await.unwrap().0
}

#[test]
fn every_kind_of_fault_is_counted_as_what_it_is() {
    type Count = fn(&Faults) -> u64;
    let cases: [(Fault, Count); 5] = [
        (Fault::Silent, |faults| faults.lost),
        (Fault::Twice, |faults| faults.unasked),
        (Fault::WrongBody, |faults| faults.mixed_up),
        (Fault::WrongId, |faults| faults.unasked),
        (Fault::Refusing, |faults| faults.refused),
    ];
    for (fault, count) in cases {
        let faults = on_one_thread(call_liar(fault)).tally.faults();
        assert!(count(&faults) > 0, "{faults:?}");
        assert!(faults.first.is_some(), "{faults:?}");
    }
}

/// A server on a thread and a runtime of its own, with which its connections end.
struct Server {
    address: SocketAddr,
    stop: tokio::sync::oneshot::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl Server {
    fn start(fault: Fault) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        listener.set_nonblocking(true).unwrap();
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let thread = std::thread::spawn(move || {
            on_one_thread(async {
                let listener = TcpListener::from_std(listener).unwrap();
                tokio::select! {
                    () = liar(listener, fault) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, stop, thread }
    }

    fn stop(self) {
        self.stop.send(()).unwrap();
        self.thread.join().unwrap();
    }
}

async fn connected_crowd(server: &Server, folder: &Folder) -> Crowd {
    let bench = Path::new(env!("CARGO_BIN_EXE_switchboard-bench")).to_owned();
    let logins: Vec<_> = (0..5).map(|it| DeviceApi { username: device_id }.between(it, it).target).collect();
    let way = Way { bench, a_process: 2, trusted: None, again: false };
    let mut crowd = Crowd::prepare(&[server.address], &logins, &way, folder.path()).await.unwrap();
    crowd.connect().await.unwrap();
    crowd
}

#[test]
fn an_idle_connection_that_ends_is_noticed() {
    let (folder, server) = (Folder::new().unwrap(), Server::start(Fault::Silent));
    on_one_thread(async {
        let mut crowd = connected_crowd(&server, &folder).await;
        let held = &crowd.held;
        assert_eq!((held.connected, held.repeated, held.failed), (5, 0, 0));
        assert_eq!(crowd.dropped().unwrap(), 0);
        server.stop();
        let all_dropped = async {
            while crowd.dropped().unwrap() < 5 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), all_dropped).await.unwrap();
    });
}

#[test]
fn a_device_that_is_turned_away_tries_again() {
    let (folder, server) = (Folder::new().unwrap(), Server::start(Fault::TurningAway));
    on_one_thread(async {
        let Crowd { held, .. } = &connected_crowd(&server, &folder).await;
        assert_eq!((held.connected, held.repeated, held.failed), (5, usize::from(TURNED_AWAY), 0));
    });
    server.stop();
}
