//! Which claims did dead nodes leave behind? Removed, unless they have been overtaken.

use std::sync::Arc;
use std::time::Duration;

use rpc::NodeId;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::Known;
use crate::meters::Meters;

/// So many at a time, and a pause: a node's death is no load for the store.
const BATCH: usize = 16;
const PAUSE: Duration = Duration::from_millis(2);

/// Looks for them four times a lease, until `ended`.
pub(crate) async fn sweep(known: Known, meters: Arc<Meters>, ended: CancellationToken) {
    let lease = known.store.lease();
    while timeout(lease / 4, ended.cancelled()).await.is_err() {
        for (node, claims) in known.claims.count_by_node() {
            // Also false for a whole lease after the store was out of reach: the nodes have yet to renew.
            if known.leases.may_live(node) {
                continue;
            }
            // Asked right before, since a node that was cut off may just have come back.
            if !matches!(known.store.is_leased(node).await, Ok(false)) {
                continue;
            }
            tracing::info!(%node, claims, "a node is gone: its claims are removed");
            remove_claims(&known, node, &meters, &ended).await;
        }
    }
}

async fn remove_claims(known: &Known, node: NodeId, meters: &Meters, ended: &CancellationToken) {
    for (place, (device, revision)) in known.claims.of_node(node).into_iter().enumerate() {
        if ended.is_cancelled() || known.leases.is_leased(node) {
            return;
        }
        // Another router, or the device's next node, was faster.
        if known.claims.get(device).is_none_or(|(_, standing)| standing != revision) {
            continue;
        }
        match known.store.release(device, revision).await {
            Ok(was_there) => meters.removed_nodes.increment(u64::from(was_there)),
            Err(error) => {
                tracing::debug!(%error, "the next round goes on");
                return;
            }
        }
        if place % BATCH == BATCH - 1 {
            sleep(PAUSE).await;
        }
    }
}
