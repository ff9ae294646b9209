//! Do all who may sign and check tickets have the same keys?

use bus::Keyring;
use bus::server::ServerOptions;
use rpc::{CredentialHash, Holder, NodeId, Stamp, TicketError};
use tokio::time::timeout;

use crate::{PATIENCE, connect, device, eventually, server_options, start_nats};

#[tokio::test]
async fn whoever_comes_first_makes_the_key_and_all_have_it() {
    let nats = start_nats().await;
    let buses = [connect(&nats).await, connect(&nats).await, connect(&nats).await];
    let rings = buses.each_ref().map(Keyring::follow);
    for ring in &rings {
        timeout(PATIENCE, ring.wait_ready()).await.unwrap();
    }
    let holder = Holder { device: device(1), node: NodeId(1), visit: 7 };
    let stamp = Stamp::of(&CredentialHash::from_digest([7; 32]));
    for signer in &rings {
        let ticket = signer.sign(holder, stamp).unwrap();
        for ring in &rings {
            assert_eq!(ring.check(&ticket, holder), Ok(()));
            assert_eq!(ring.check(&ticket, Holder { visit: 8, ..holder }), Err(TicketError::Forged));
        }
    }
}

#[tokio::test]
async fn keys_that_were_lost_are_made_anew_and_those_who_had_them_follow() {
    let nats = start_nats().await;
    let (port, bus) = (nats.port(), connect(&nats).await);
    let ring = Keyring::follow(&bus);
    timeout(PATIENCE, ring.wait_ready()).await.unwrap();
    let holder = Holder { device: device(1), node: NodeId(1), visit: 7 };
    let stamp = Stamp::of(&CredentialHash::from_digest([7; 32]));
    let old = ring.sign(holder, stamp).unwrap();
    nats.kill().await;
    let nats = bus::server::NatsServer::start(&ServerOptions { port, ..server_options() }).await.unwrap();
    let other = Keyring::follow(&connect(&nats).await);
    timeout(PATIENCE, other.wait_ready()).await.unwrap();
    let new = other.sign(holder, stamp).unwrap();
    eventually("both have the new key", async || ring.check(&new, holder).is_ok()).await;
    assert!(ring.check(&old, holder).is_err(), "nobody signs with it any more");
}
