//! Does the audit keep one chain for each tenant, whoever writes, and does it show what was done to it?

use std::time::{Duration, SystemTime};

use bus::audit::{AuditLog, Book, Bounds, Break, Chain, Cut, Entry, From, Head, NO_TENANT, Stored, Verdict};
use bus::server::ServerOptions;
use bus::{Bus, StoreError};
use rpc::TenantId;
use uuid::Uuid;

use crate::{connect, device, eventually, server_options, start_nats};

const BOUNDS: Bounds = Bounds { max_age: Duration::from_secs(3_600), max_bytes: 64 * 1024 * 1024 };

fn tenant(number: u128) -> TenantId {
    TenantId(Uuid::from_u128(number))
}

fn entry(what: impl Into<String>) -> Entry {
    Entry { what: what.into(), ..Entry::new("device.rename", [device(1)]) }
}

fn open(bus: &Bus, user: &str) -> AuditLog {
    AuditLog::new(bus, Book::Changes, user.to_owned(), BOUNDS)
}

async fn all(log: &AuditLog, of: Option<TenantId>) -> Vec<Stored> {
    let (mut records, mut from) = (Vec::new(), From::Sequence(1));
    loop {
        let page = log.page(of, from).await.unwrap();
        records.extend(page.records);
        if page.is_last {
            return records;
        }
        from = From::Sequence(page.next);
    }
}

async fn verdict(log: &AuditLog, of: TenantId, expected: Option<Head>) -> Verdict {
    let mut chain = Chain::new(expected);
    all(log, Some(of)).await.iter().for_each(|stored| chain.take(stored));
    chain.end(log.limits().await.unwrap())
}

#[tokio::test]
async fn many_writers_append_to_one_chain_and_none_is_lost_or_twice() {
    let nats = start_nats().await;
    let mut writing = tokio::task::JoinSet::new();
    for writer in 0..4 {
        let bus = connect(&nats).await;
        let log = open(&bus, &format!("user-{writer}"));
        writing.spawn(async move {
            for number in 0..50 {
                log.append(tenant(number % 2 + 1), entry(format!("{writer} {number}"))).await.unwrap();
            }
        });
    }
    while let Some(ended) = writing.join_next().await {
        ended.unwrap();
    }
    let bus = connect(&nats).await;
    let log = open(&bus, "reader");
    for of in [tenant(1), tenant(2)] {
        let found = verdict(&log, of, None).await;
        assert_eq!((found.records, found.first, found.cut, found.breaks), (100, 1, Cut::Nothing, vec![]));
    }
    let mut told: Vec<_> =
        all(&log, None).await.iter().map(|stored| stored.record().unwrap().entry.what).collect();
    told.sort_unstable();
    told.dedup();
    assert_eq!(told.len(), 200);
    assert!(all(&log, Some(NO_TENANT)).await.is_empty());
    let later = log.page(None, From::Time(SystemTime::now() + Duration::from_secs(60))).await.unwrap();
    assert!(later.records.is_empty() && later.is_last);
}

#[tokio::test]
async fn pages_follow_each_other_without_gap() {
    let nats = start_nats().await;
    let bus = connect(&nats).await;
    let log = open(&bus, "user");
    for number in 0..2_100 {
        log.append(tenant(1), entry(number.to_string())).await.unwrap();
    }
    let numbers: Vec<_> =
        all(&log, Some(tenant(1))).await.iter().map(|stored| stored.record().unwrap().number).collect();
    assert_eq!(numbers, (1..=2_100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_stream_that_was_lost_begins_anew_and_a_head_from_before_shows_it() {
    let nats = start_nats().await;
    let (port, bus) = (nats.port(), connect(&nats).await);
    let log = open(&bus, "user");
    for number in 0..3 {
        log.append(tenant(1), entry(number.to_string())).await.unwrap();
    }
    let head = verdict(&log, tenant(1), None).await.head;
    assert_eq!(verdict(&log, tenant(1), head.clone()).await.breaks, []);
    nats.kill().await;
    let _nats = bus::server::NatsServer::start(&ServerOptions { port, ..server_options() }).await.unwrap();
    eventually("it is written again", async || log.append(tenant(1), entry("after")).await.is_ok()).await;
    let found = verdict(&log, tenant(1), head).await;
    assert_eq!((found.records, found.breaks), (1, vec![Break::HeadLost(3)]));
}

#[tokio::test]
async fn a_full_stream_loses_its_oldest_and_the_chain_is_whole_from_there() {
    let nats = start_nats().await;
    let bus = connect(&nats).await;
    let log =
        AuditLog::new(&bus, Book::Changes, "user".to_owned(), Bounds { max_bytes: 128 * 1024, ..BOUNDS });
    for _ in 0..200 {
        log.append(tenant(1), entry("x".repeat(500))).await.unwrap();
    }
    let found = verdict(&log, tenant(1), None).await;
    assert!(found.first > 1 && found.records < 200, "{found:?}");
    assert_eq!((found.cut, found.breaks), (Cut::Size, vec![]));
}

#[test]
fn each_kind_stands_in_one_book() {
    for kind in ["denied", "denied.call", "denied.left-out"] {
        assert_eq!(Book::of_kind(kind), Book::Denials, "{kind}");
    }
    for kind in ["device", "device.import", "deniedly", ""] {
        assert_eq!(Book::of_kind(kind), Book::Changes, "{kind}");
    }
}

#[tokio::test]
async fn denials_push_out_no_change() {
    let nats = start_nats().await;
    let bus = connect(&nats).await;
    let small = Bounds { max_bytes: 128 * 1024, ..BOUNDS };
    let [changes, denials] = Book::ALL.map(|book| AuditLog::new(&bus, book, "user".to_owned(), small));
    changes.append(tenant(1), entry("early")).await.unwrap();
    for _ in 0..200 {
        denials.append(tenant(1), entry("x".repeat(500))).await.unwrap();
    }
    changes.append(tenant(1), entry("late")).await.unwrap();
    let found = verdict(&changes, tenant(1), None).await;
    assert_eq!((found.records, found.first, found.cut, found.breaks), (2, 1, Cut::Nothing, vec![]));
    assert_eq!(verdict(&denials, tenant(1), None).await.cut, Cut::Size);
}

#[tokio::test]
async fn nobody_there_is_an_error_soon() {
    let nats = start_nats().await;
    let bus = connect(&nats).await;
    let log = open(&bus, "user");
    assert!(matches!(log.page(None, From::Sequence(1)).await, Err(StoreError::Missing(_))));
    assert!(matches!(log.limits().await, Err(StoreError::Missing(_))));
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_is_not_written_twice() {
    use rustix::process::{Pid, Signal, kill_process};
    let nats = start_nats().await;
    let bus = connect(&nats).await;
    let log = open(&bus, "user");
    log.append(tenant(1), entry("before")).await.unwrap();
    let server = nats.pid().and_then(|pid| Pid::from_raw(pid.try_into().unwrap())).unwrap();
    kill_process(server, Signal::STOP).unwrap();
    let appending = tokio::spawn({
        let log = log.clone();
        async move { log.append(tenant(1), entry("once")).await }
    });
    // Longer than one attempt waits.
    tokio::time::sleep(Duration::from_millis(5_500)).await;
    kill_process(server, Signal::CONT).unwrap();
    appending.await.unwrap().unwrap();
    log.append(tenant(1), entry("behind")).await.unwrap();
    let told: Vec<_> =
        all(&log, Some(tenant(1))).await.iter().map(|stored| stored.record().unwrap().entry.what).collect();
    assert_eq!(told, ["before", "once", "behind"]);
    assert_eq!(verdict(&log, tenant(1), None).await.breaks, []);
}
