//! Does the store keep claims as routers rely on it?

use bus::claims::{ClaimEvent, ClaimStore, ClaimWatch, Expected, StoredClaim};
use bus::server::{NatsServer, ServerOptions};
use bus::{Bus, BusSettings, Connection, StoreError};
use bytes::Bytes;
use futures::StreamExt;
use rpc::DeviceId;
use tokio::time::timeout;

use crate::{PATIENCE, claim, connect, device, eventually, server_options, settings, start_nats};

async fn open(nats: &NatsServer) -> (Bus, ClaimStore) {
    let bus = connect(nats).await;
    let store = ClaimStore::open(&bus).await.unwrap();
    (bus, store)
}

async fn write(store: &ClaimStore, number: u128, expected: Expected) -> Result<u64, StoreError> {
    store.write(device(number), &claim(1, 1), expected, PATIENCE).await
}

async fn next(watch: &mut ClaimWatch) -> ClaimEvent {
    loop {
        let event = timeout(PATIENCE, watch.next()).await.expect("the watch says nothing").unwrap();
        if event != ClaimEvent::Alive {
            return event;
        }
    }
}

/// Everything until the load is complete.
async fn loaded(watch: &mut ClaimWatch) -> Vec<(DeviceId, u64)> {
    let mut stands = Vec::new();
    loop {
        match next(watch).await {
            ClaimEvent::Put { device, revision, .. } => stands.push((device, revision)),
            ClaimEvent::Loaded => return stands,
            ClaimEvent::Reset { .. } | ClaimEvent::Lost => stands.clear(),
            ClaimEvent::Removed { .. } | ClaimEvent::Alive => {}
        }
    }
}

#[tokio::test]
async fn a_claim_is_written_and_removed_over_what_is_expected_alone() {
    let nats = start_nats().await;
    let (_bus, store) = open(&nats).await;
    let first = write(&store, 1, Expected::Nothing).await.unwrap();
    assert_eq!(write(&store, 1, Expected::Nothing).await, Err(StoreError::Contended));
    let newer = store.write(device(1), &claim(2, 2), Expected::Revision(first), PATIENCE).await.unwrap();
    assert!(newer > first);
    assert_eq!(write(&store, 1, Expected::Revision(first)).await, Err(StoreError::Contended));
    assert_eq!(store.remove(device(1), first, PATIENCE).await, Ok(None), "it is not that one any more");
    let stands = StoredClaim { claim: Some(claim(2, 2)), revision: newer };
    assert_eq!(store.read(device(1), PATIENCE).await, Ok(Some(stands)));
    let removed = store.remove(device(1), newer, PATIENCE).await.unwrap().unwrap();
    let marker = StoredClaim { claim: None, revision: removed };
    assert_eq!(store.read(device(1), PATIENCE).await, Ok(Some(marker)));
    assert!(write(&store, 1, Expected::Revision(removed)).await.is_ok(), "over its marker");
}

#[tokio::test]
async fn removed_claims_leave_nothing_in_the_store() {
    let nats = start_nats().await;
    let (bus, store) = open(&nats).await;
    for number in 0..20 {
        let revision = write(&store, number, Expected::Nothing).await.unwrap();
        store.remove(device(number), revision, PATIENCE).await.unwrap();
    }
    eventually("the markers vanish", async || {
        let info = bus.ask("$JS.API.STREAM.INFO.KV_swb_claims", Bytes::new(), PATIENCE).await.unwrap();
        String::from_utf8_lossy(&info).contains(r#""messages":0"#)
    })
    .await;
}

#[tokio::test]
async fn a_watch_hears_of_claims_made_before_and_after_it() {
    let nats = start_nats().await;
    let (_bus, store) = open(&nats).await;
    let mut empty = store.watch();
    assert_eq!(loaded(&mut empty).await, []);
    let before = write(&store, 1, Expected::Nothing).await.unwrap();
    let mut watch = store.watch();
    assert_eq!(loaded(&mut watch).await, [(device(1), before)]);
    let after = write(&store, 2, Expected::Nothing).await.unwrap();
    let put = ClaimEvent::Put { device: device(2), claim: claim(1, 1), revision: after };
    assert_eq!(next(&mut watch).await, put);
    let removed = store.remove(device(1), before, PATIENCE).await.unwrap().unwrap();
    assert_eq!(next(&mut watch).await, ClaimEvent::Removed { device: device(1), revision: removed });
}

#[tokio::test]
async fn a_watch_of_many_claims_loads_completely() {
    let nats = start_nats().await;
    let (_bus, store) = open(&nats).await;
    futures::stream::iter(0..20_000)
        .for_each_concurrent(256, async |number| {
            write(&store, number, Expected::Nothing).await.unwrap();
        })
        .await;
    assert_eq!(loaded(&mut store.watch()).await.len(), 20_000);
}

#[tokio::test]
async fn claims_outlive_nats_and_a_store_that_is_lost_is_another() {
    let folder = tempfile::tempdir().unwrap();
    let options =
        |port| ServerOptions { port, store_dir: Some(folder.path().join("js")), ..server_options() };
    let nats = NatsServer::start(&options(0)).await.unwrap();
    let port = nats.port();
    let (bus, store) = open(&nats).await;
    let mut watch = store.watch();
    loaded(&mut watch).await;
    let revision = write(&store, 1, Expected::Nothing).await.unwrap();
    assert!(matches!(next(&mut watch).await, ClaimEvent::Put { .. }));

    nats.kill().await;
    let mut connection = bus.connection();
    timeout(PATIENCE, connection.wait_for(|now| *now == Connection::Down)).await.unwrap().unwrap();
    assert!(store.read(device(1), PATIENCE).await.is_err(), "that is not the same as no claim");
    assert_eq!(next(&mut watch).await, ClaimEvent::Lost);
    let nats = NatsServer::start(&options(port)).await.unwrap();
    assert!(matches!(next(&mut watch).await, ClaimEvent::Reset { is_another_store: false, .. }));
    assert_eq!(loaded(&mut watch).await, [(device(1), revision)], "NATS has forgotten nothing");

    nats.kill().await;
    std::fs::remove_dir_all(folder.path().join("js")).unwrap();
    let _nats = NatsServer::start(&options(port)).await.unwrap();
    assert_eq!(next(&mut watch).await, ClaimEvent::Lost);
    let ClaimEvent::Reset { is_another_store: true, revision } = next(&mut watch).await else { panic!() };
    assert!(revision > 1_000_000_000, "of an empty bucket too: {revision}");
    assert_eq!(loaded(&mut watch).await, []);
    let again = write(&store, 1, Expected::Nothing).await.unwrap();
    assert!(again > revision, "revisions grow over the loss");
}

#[tokio::test]
async fn a_write_finds_the_bucket_gone_and_makes_it_again() {
    let nats = start_nats().await;
    let (bus, store) = open(&nats).await;
    let mut watch = store.watch();
    loaded(&mut watch).await;
    bus.ask("$JS.API.STREAM.DELETE.KV_swb_claims", Bytes::new(), PATIENCE).await.unwrap();
    let writes = (0..8).map(|number| {
        let store = &store;
        async move { write(store, number, Expected::Nothing).await.unwrap() }
    });
    futures::future::join_all(writes).await;
    assert_eq!(next(&mut watch).await, ClaimEvent::Lost);
    assert_eq!(loaded(&mut watch).await.len(), 8);
}

#[tokio::test]
async fn a_bucket_that_was_kept_in_memory_is_made_anew() {
    let nats = start_nats().await;
    let bus = connect(&nats).await;
    let old =
        r#"{"name":"KV_swb_claims","subjects":["$KV.swb_claims.>"],"storage":"memory","allow_msg_ttl":true}"#;
    let made = bus.ask("$JS.API.STREAM.CREATE.KV_swb_claims", old.into(), PATIENCE).await.unwrap();
    assert!(!String::from_utf8_lossy(&made).contains("error"));
    let store = ClaimStore::open(&bus).await.unwrap();
    let info = bus.ask("$JS.API.STREAM.INFO.KV_swb_claims", Bytes::new(), PATIENCE).await.unwrap();
    assert!(String::from_utf8_lossy(&info).contains(r#""storage":"file""#));
    write(&store, 1, Expected::Nothing).await.unwrap();
}

#[tokio::test]
async fn two_systems_share_a_server_unnoticed() {
    let nats = start_nats().await;
    let (_bus, ours) = open(&nats).await;
    let settings = BusSettings { prefix: "other".into(), ..settings(&nats) };
    let other = ClaimStore::open(&Bus::connect(&settings, "test").await.unwrap()).await.unwrap();
    write(&ours, 1, Expected::Nothing).await.unwrap();
    assert_eq!(other.read(device(1), PATIENCE).await, Ok(None));
}

#[tokio::test]
async fn where_copies_may_lag_the_leader_is_asked() {
    let nats = start_nats().await;
    let (_bus, single) = open(&nats).await;
    // One server cannot keep three copies, so the bucket stays as it is; it is asked as if it had them.
    let settings = BusSettings { replicas: 3, ..settings(&nats) };
    let copied = ClaimStore::open(&Bus::connect(&settings, "test").await.unwrap()).await.unwrap();
    assert_eq!(copied.read(device(1), PATIENCE).await, Ok(None));
    let revision = write(&single, 1, Expected::Nothing).await.unwrap();
    let stands = StoredClaim { claim: Some(claim(1, 1)), revision };
    assert_eq!(copied.read(device(1), PATIENCE).await, Ok(Some(stands)));
    let removed = copied.remove(device(1), revision, PATIENCE).await.unwrap().unwrap();
    let marker = StoredClaim { claim: None, revision: removed };
    assert_eq!(copied.read(device(1), PATIENCE).await, Ok(Some(marker)), "a marker is no claim");
}
