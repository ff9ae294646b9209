//! Who holds a device, whatever happens in between?

use std::time::Duration;

use bus::server::{NatsServer, ServerOptions};
use bus::{Bus, BusSettings, ClaimStore, Claimed, Connection, Reclaimed};
use futures::StreamExt;
use rpc::NodeId;
use tokio::time::timeout;

use crate::{PATIENCE, claim, connect, device, eventually, server_options, settings, start_nats};

const LEASE: Duration = Duration::from_secs(2);

async fn open(nats: &NatsServer) -> (Bus, ClaimStore) {
    let bus = connect(nats).await;
    let store = ClaimStore::make(&bus, LEASE).await.unwrap();
    (bus, store)
}

#[tokio::test]
async fn the_newest_claim_wins_and_a_late_release_does_not_evict_it() {
    let nats = start_nats().await;
    let (_bus, store) = open(&nats).await;
    let (older, newer) = (claim(1, 1, 100), claim(2, 1, 200));

    let first = store.claim(device(1), &older, PATIENCE).await.unwrap();
    assert_eq!(first.overtaken, None);
    let second = store.claim(device(1), &newer, PATIENCE).await.unwrap();
    assert_eq!(second.overtaken, Some(older));
    assert!(second.revision > first.revision);

    assert!(!store.release(device(1), first.revision).await.unwrap(), "it is not the older one's any more");
    assert_eq!(store.look_up(device(1), PATIENCE).await.unwrap(), Some((newer, second.revision)));
    assert!(store.release(device(1), second.revision).await.unwrap());
    assert_eq!(store.look_up(device(1), PATIENCE).await.unwrap(), None);
    assert!(!store.release(device(1), second.revision).await.unwrap(), "once is enough");
}

#[tokio::test]
async fn a_device_that_comes_back_at_once_is_claimed_over_the_marker() {
    let nats = start_nats().await;
    let (_bus, store) = open(&nats).await;
    let first = store.claim(device(1), &claim(1, 1, 100), PATIENCE).await.unwrap();
    assert!(store.release(device(1), first.revision).await.unwrap());
    let again = store.claim(device(1), &claim(1, 2, 200), PATIENCE).await.unwrap();
    assert_eq!(again.overtaken, None);
    assert!(store.look_up(device(1), PATIENCE).await.unwrap().is_some());
}

#[tokio::test]
async fn of_many_claims_at_once_one_stands_and_each_other_was_overtaken() {
    let nats = start_nats().await;
    let (_bus, store) = open(&nats).await;
    let claims =
        (1..=8).map(|node| {
            let store = &store;
            async move {
                (claim(node, 1, 100), store.claim(device(1), &claim(node, 1, 100), PATIENCE).await.unwrap())
            }
        });
    let mut done: Vec<_> = futures::future::join_all(claims).await;
    done.sort_by_key(|(_, claimed)| claimed.revision);
    let (standing, _) = store.look_up(device(1), PATIENCE).await.unwrap().unwrap();
    let mut expected = None;
    for (claim, Claimed { overtaken, .. }) in done {
        assert_eq!(overtaken, expected);
        expected = Some(claim);
    }
    assert_eq!(Some(standing), expected);
}

#[tokio::test]
async fn a_session_that_claims_again_yields_to_a_newer_one_only() {
    let nats = start_nats().await;
    let (_bus, store) = open(&nats).await;
    let (older, newer) = (claim(1, 1, 100), claim(2, 1, 200));
    assert!(matches!(store.reclaim(device(1), &older, PATIENCE).await.unwrap(), Reclaimed::Held { .. }));
    let Reclaimed::Held { revision } = store.reclaim(device(1), &newer, PATIENCE).await.unwrap() else {
        panic!("the newer one wins")
    };
    assert_eq!(store.reclaim(device(1), &older, PATIENCE).await.unwrap(), Reclaimed::Overtaken(newer));
    assert_eq!(store.reclaim(device(1), &newer, PATIENCE).await.unwrap(), Reclaimed::Held { revision });
    assert_eq!(store.look_up(device(1), PATIENCE).await.unwrap(), Some((newer, revision)));
}

#[tokio::test]
async fn released_claims_leave_nothing_in_the_store() {
    let nats = start_nats().await;
    let (bus, store) = open(&nats).await;
    for number in 0..20 {
        let claimed = store.claim(device(number), &claim(1, 1, 100), PATIENCE).await.unwrap();
        store.release(device(number), claimed.revision).await.unwrap();
    }
    eventually("the markers vanish", async || {
        let info = bus.ask("$JS.API.STREAM.INFO.KV_swb_claims", bytes::Bytes::new(), PATIENCE).await.unwrap();
        String::from_utf8_lossy(&info).contains(r#""messages":0"#)
    })
    .await;
}

#[tokio::test]
async fn a_map_hears_of_claims_made_before_and_after_it() {
    let nats = start_nats().await;
    let (_bus, store) = open(&nats).await;
    let empty = store.watch();
    timeout(PATIENCE, empty.wait_loaded()).await.unwrap();
    assert!(empty.is_loaded() && empty.is_empty());

    let before = store.claim(device(1), &claim(1, 1, 100), PATIENCE).await.unwrap();
    let map = store.watch();
    timeout(PATIENCE, map.wait_loaded()).await.unwrap();
    assert_eq!(map.get(device(1)), Some((claim(1, 1, 100), before.revision)));

    let mut arrivals = map.arrivals(device(2));
    assert_eq!(map.get(device(2)), None);
    let after = store.claim(device(2), &claim(2, 1, 100), PATIENCE).await.unwrap();
    timeout(PATIENCE, arrivals.next()).await.unwrap();
    assert_eq!(map.get(device(2)), Some((claim(2, 1, 100), after.revision)));
    assert_eq!(map.of_node(NodeId(2)), [(device(2), after.revision)]);

    store.release(device(1), before.revision).await.unwrap();
    eventually("the release is heard", async || map.get(device(1)).is_none()).await;
    eventually("by the other map too", async || empty.len() == 1).await;
}

#[tokio::test]
async fn a_map_of_many_claims_loads_completely() {
    let nats = start_nats().await;
    let (_bus, store) = open(&nats).await;
    futures::stream::iter(0..20_000)
        .for_each_concurrent(256, async |number| {
            store.claim(device(number), &claim(1, 1, 100), PATIENCE).await.unwrap();
        })
        .await;
    let map = store.watch();
    timeout(PATIENCE, map.wait_loaded()).await.unwrap();
    assert_eq!(map.len(), 20_000);
}

#[tokio::test]
async fn nats_restarts_with_its_memory_lost_and_claims_come_back() {
    let nats = start_nats().await;
    let port = nats.port();
    let (bus, store) = open(&nats).await;
    let map = store.watch();
    let lost = store.claim(device(1), &claim(1, 1, 100), PATIENCE).await.unwrap();
    store.claim(device(2), &claim(1, 2, 100), PATIENCE).await.unwrap();
    store.renew_lease(NodeId(1)).await.unwrap();
    eventually("both are heard", async || map.len() == 2).await;

    nats.kill().await;
    let mut connection = bus.connection();
    timeout(PATIENCE, connection.wait_for(|now| *now == Connection::Down)).await.unwrap().unwrap();
    assert!(store.look_up(device(1), PATIENCE).await.is_err(), "that is not the same as no claim");
    assert!(store.is_leased(NodeId(1)).await.is_err());
    assert_eq!(map.len(), 2, "sessions are up, and likely to be callable again soon");

    let _nats = NatsServer::start(&ServerOptions { port, ..server_options() }).await.unwrap();
    timeout(PATIENCE, connection.wait_for(|now| *now != Connection::Down)).await.unwrap().unwrap();
    assert_eq!(store.look_up(device(1), PATIENCE).await.unwrap(), None);
    store.renew_lease(NodeId(1)).await.unwrap();
    assert!(store.is_leased(NodeId(1)).await.unwrap());
    let again = store.reclaim(device(1), &claim(1, 1, 100), PATIENCE).await.unwrap();
    let Reclaimed::Held { revision } = again else { panic!("nobody else claims it") };
    assert!(revision > lost.revision, "revisions grow over the loss");
    assert!(!store.release(device(1), lost.revision).await.unwrap());

    eventually("the map follows the new bucket", async || {
        map.get(device(1)).is_some_and(|(_, held)| held == revision)
    })
    .await;
    eventually("what nobody claimed again is gone", async || map.len() == 1).await;
}

#[tokio::test]
async fn a_claim_finds_the_bucket_gone_and_makes_it_again() {
    let nats = start_nats().await;
    let (bus, store) = open(&nats).await;
    let map = store.watch();
    timeout(PATIENCE, map.wait_loaded()).await.unwrap();
    for bucket in ["claims", "nodes"] {
        let deleted =
            bus.ask(format!("$JS.API.STREAM.DELETE.KV_swb_{bucket}"), bytes::Bytes::new(), PATIENCE).await;
        assert!(String::from_utf8_lossy(&deleted.unwrap()).contains("true"));
    }
    let claims = (0..8).map(|number| {
        let store = &store;
        async move { store.claim(device(number), &claim(1, 1, 100), PATIENCE).await.unwrap() }
    });
    futures::future::join_all(claims).await;
    store.renew_lease(NodeId(1)).await.unwrap();
    eventually("the map notices", async || map.len() == 8).await;
}

#[tokio::test]
async fn a_lease_ends_unless_it_is_renewed() {
    let nats = start_nats().await;
    let (_bus, store) = open(&nats).await;
    let leases = store.watch_leases();
    timeout(PATIENCE, leases.wait_loaded()).await.unwrap();
    let [dies, lives, leaves] = [NodeId(1), NodeId(2), NodeId(3)];
    for node in [dies, lives, leaves] {
        assert!(!store.is_leased(node).await.unwrap());
        store.renew_lease(node).await.unwrap();
        assert!(store.is_leased(node).await.unwrap());
    }
    eventually("all three are heard", async || leases.len() == 3).await;
    store.end_lease(leaves).await.unwrap();
    assert!(!store.is_leased(leaves).await.unwrap());
    eventually("it has left", async || !leases.is_leased(leaves)).await;
    eventually("it has died", async || {
        store.renew_lease(lives).await.unwrap();
        !store.is_leased(dies).await.unwrap() && !leases.is_leased(dies)
    })
    .await;
    assert!(store.is_leased(lives).await.unwrap() && leases.is_leased(lives));
}

#[tokio::test]
async fn a_changed_lease_is_followed() {
    let nats = start_nats().await;
    let (bus, _store) = open(&nats).await;
    ClaimStore::make(&bus, Duration::from_secs(7)).await.unwrap();
    let info = bus.ask("$JS.API.STREAM.INFO.KV_swb_nodes", bytes::Bytes::new(), PATIENCE).await.unwrap();
    assert!(String::from_utf8_lossy(&info).contains(r#""max_age":7000000000"#));
}

#[tokio::test]
async fn two_systems_share_a_server_unnoticed() {
    let nats = start_nats().await;
    let (_bus, ours) = open(&nats).await;
    let settings = BusSettings { prefix: "other".into(), ..settings(&nats) };
    let other = ClaimStore::make(&Bus::connect(&settings, "test").await.unwrap(), LEASE).await.unwrap();
    ours.claim(device(1), &claim(1, 1, 100), PATIENCE).await.unwrap();
    assert_eq!(other.look_up(device(1), PATIENCE).await.unwrap(), None);
}

#[tokio::test]
async fn where_copies_may_lag_the_leader_is_asked() {
    let nats = start_nats().await;
    let (_bus, single) = open(&nats).await;
    // One server cannot keep three copies, so the bucket stays as it is; it is asked as if it had them.
    let settings = BusSettings { replicas: 3, ..settings(&nats) };
    let copied = ClaimStore::make(&Bus::connect(&settings, "test").await.unwrap(), LEASE).await.unwrap();
    assert_eq!(copied.look_up(device(1), PATIENCE).await.unwrap(), None);
    let claimed = single.claim(device(1), &claim(1, 1, 100), PATIENCE).await.unwrap();
    let found = copied.look_up(device(1), PATIENCE).await.unwrap();
    assert_eq!(found, Some((claim(1, 1, 100), claimed.revision)));
    let over = copied.claim(device(1), &claim(2, 1, 200), PATIENCE).await.unwrap();
    assert_eq!(over.overtaken, Some(claim(1, 1, 100)));
    assert!(copied.release(device(1), over.revision).await.unwrap());
    assert_eq!(copied.look_up(device(1), PATIENCE).await.unwrap(), None, "a marker is no claim");
    copied.renew_lease(NodeId(1)).await.unwrap();
    assert!(copied.is_leased(NodeId(1)).await.unwrap());
}
