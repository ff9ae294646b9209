//! Which nodes are there, and which are to send their devices elsewhere? `switchboard node …`

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use bus::AskError;
use clap::{Args, Subcommand};
use rpc::{NodeId, NodeReport, NodeState, Order, Pace, wire};
use serde::Serialize;

use crate::common::output::{count, grouped, note, say, say_json};
use crate::common::reach::{ReachArgs, Reached};
use crate::common::table::Table;

/// A node that is there answers much sooner.
const ANSWER_WAIT: Duration = Duration::from_secs(1);
/// Between two looks at how far it is.
const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Times in a row that a node may not answer before it is given up.
const MAX_SILENT: u32 = 5;
/// Behind what does not look whether nodes are ready, a round may no more than halve what is uneven.
const MAX_ROUNDS: usize = 8;
/// Looks until those who were sent away have come back, or will not.
const MAX_LOOKS_BETWEEN: usize = 10;
/// The exit status after Ctrl-C, as shells have it.
const EXIT_INTERRUPTED: u8 = 130;

#[derive(Subcommand)]
pub(crate) enum NodeVerb {
    /// List the nodes, and what they do with their devices
    List(ListArgs),
    /// Send all devices of a node to others, and let none in until it ends
    Evacuate(EvacuateArgs),
    /// The same for a while: with --end it serves again
    Maintenance(MaintenanceArgs),
    /// Send away what nodes have above the average; they are not ready meanwhile
    Rebalance(RebalanceArgs),
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

#[derive(Args)]
struct ProgressArgs {
    /// Devices a second and node, 1 to 1000000 [default: the node's setting ingress.shed_per_second]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rate: Option<u32>,
    /// Seconds from when the node is not ready to the first device: as long as balancers take to notice, 0 to 600
    #[arg(long, value_name = "SECONDS", default_value_t = 2)]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=600))]
    wait: u32,
    /// Print JSON: a line each second for each node, its last with "done":true
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reach: ReachArgs,
}

impl ProgressArgs {
    fn pace(&self) -> Pace {
        Pace { per_second: self.rate, wait_ms: self.wait * 1_000 }
    }
}

#[derive(Args)]
pub(crate) struct EvacuateArgs {
    /// Its id, or the beginning of it
    node: String,
    #[command(flatten)]
    progress: ProgressArgs,
}

#[derive(Args)]
pub(crate) struct MaintenanceArgs {
    /// Its id, or the beginning of it
    node: String,
    /// It serves again; ends an evacuation, too
    #[arg(long, conflicts_with = "rate")]
    end: bool,
    #[command(flatten)]
    progress: ProgressArgs,
}

#[derive(Args)]
pub(crate) struct RebalanceArgs {
    /// Its id, or the beginning of it; all nodes when not given
    node: Option<String>,
    /// How many per cent a node may have above the average, 1 to 1000
    #[arg(long, value_name = "PERCENT", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1_000))]
    above: u64,
    #[command(flatten)]
    progress: ProgressArgs,
}

pub(crate) async fn run(verb: NodeVerb) -> anyhow::Result<ExitCode> {
    match verb {
        NodeVerb::List(args) => list(args).await,
        NodeVerb::Evacuate(EvacuateArgs { node, progress }) => {
            let order = Order::Evacuate(progress.pace());
            watched(progress, async |fleet| fleet.empty(&node, &order).await).await
        }
        NodeVerb::Maintenance(MaintenanceArgs { node, end: false, progress }) => {
            let order = Order::Maintain(progress.pace());
            watched(progress, async |fleet| fleet.empty(&node, &order).await).await
        }
        NodeVerb::Maintenance(MaintenanceArgs { node, progress, .. }) => {
            watched(progress, async |fleet| fleet.open(&node).await).await
        }
        NodeVerb::Rebalance(RebalanceArgs { node, above, progress }) => {
            let pace = progress.pace();
            watched(progress, async |fleet| fleet.rebalance(node.as_deref(), above, pace).await).await
        }
    }
}

/// A node as JSON.
#[derive(Serialize)]
struct NodeView {
    node: NodeId,
    state: NodeState,
    since_ms: u64,
    visitors: u64,
    sessions: SessionsView,
    claims: u64,
    left: u64,
    shed: u64,
}

#[derive(Serialize)]
struct SessionsView {
    mqtt: u64,
    http: u64,
    coap: u64,
}

impl From<NodeReport> for NodeView {
    fn from(it: NodeReport) -> Self {
        let NodeReport { node, state, since_ms, visitors, mqtt, http, coap, claims, left, shed } = it;
        let sessions = SessionsView { mqtt, http, coap };
        NodeView { node, state, since_ms, visitors, sessions, claims, left, shed }
    }
}

async fn list(ListArgs { json, reach }: ListArgs) -> anyhow::Result<ExitCode> {
    let fleet = Fleet { reached: reach.bus().await?, json };
    let reports = fleet.reports().await?;
    if json {
        say_json(&reports.into_values().map(NodeView::from).collect::<Vec<_>>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let headings = ["NODE", "STATE", "DEVICES", "MQTT", "HTTP", "COAP", "CLAIMS", "LEFT", "SENT AWAY"];
    let mut table = Table::new(&headings);
    for (node, it) in &reports {
        let numbers = [it.visitors, it.mqtt, it.http, it.coap, it.claims, it.left, it.shed];
        let numbers = numbers.into_iter().map(number);
        table.row([node.to_string(), it.state.as_str().to_owned()].into_iter().chain(numbers));
    }
    table.print();
    note(count(reports.len(), "node"));
    Ok(ExitCode::SUCCESS)
}

/// Does it, until it is done or Ctrl-C.
async fn watched(
    ProgressArgs { json, reach, .. }: ProgressArgs,
    work: impl AsyncFnOnce(&Fleet) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let fleet = Fleet { reached: reach.bus().await?, json };
    tokio::select! {
        done = work(&fleet) => done.map(|()| ExitCode::SUCCESS),
        _ = tokio::signal::ctrl_c() => {
            note("The nodes go on with what they were told: `switchboard node list` says how far they are.");
            Ok(EXIT_INTERRUPTED.into())
        }
    }
}

/// The nodes, as they can be told.
struct Fleet {
    reached: Reached,
    json: bool,
}

type Reports = BTreeMap<NodeId, NodeReport>;

impl Fleet {
    async fn reports(&self) -> anyhow::Result<Reports> {
        let bus = &self.reached.bus;
        let order = wire::encode(&Order::Report, b"");
        let replies = bus.ask_all([bus.subjects().operate_all()], order, ANSWER_WAIT).await;
        let replies = replies.context("the nodes cannot be asked")?;
        let decoded = replies.iter().map(wire::decode::<NodeReport>);
        let reports = decoded.collect::<Result<Vec<_>, _>>().context("a node's answer cannot be read")?;
        Ok(reports.into_iter().map(|(it, _)| (it.node, it)).collect())
    }

    async fn tell(&self, node: NodeId, order: &Order) -> Result<NodeReport, AskError> {
        let bus = &self.reached.bus;
        let mut silent = 0;
        loop {
            let asked = bus.ask(bus.subjects().operate(node), wire::encode(order, b""), ANSWER_WAIT).await;
            match asked.map(|reply| wire::decode::<NodeReport>(&reply)) {
                Ok(Ok((report, _))) => return Ok(report),
                // What is told twice is done once.
                Ok(Err(_)) | Err(AskError::Expired | AskError::Down) if silent < MAX_SILENT => silent += 1,
                Ok(Err(_)) => return Err(AskError::Expired),
                Err(error) => return Err(error),
            }
        }
    }

    async fn order(&self, node: NodeId, order: &Order) -> anyhow::Result<NodeReport> {
        self.tell(node, order).await.with_context(|| format!("node {node} does not answer"))
    }

    /// Sends everybody away from it.
    async fn empty(&self, named: &str, order: &Order) -> anyhow::Result<()> {
        let node = find(&self.reports().await?, named)?;
        let report = self.order(node, order).await?;
        if report.state == NodeState::Draining {
            bail!("node {node} is shutting down: it sends its devices away by itself");
        }
        self.follow(vec![report]).await.map(|_| ())
    }

    /// It serves again.
    async fn open(&self, named: &str) -> anyhow::Result<()> {
        let node = find(&self.reports().await?, named)?;
        let report = self.order(node, &Order::Serve).await?;
        if report.state.is_closed() {
            bail!("node {node} is shutting down");
        }
        self.show(&report, true)
    }

    /// Sends away from the nodes what they have above the average, until none has too much.
    async fn rebalance(&self, named: Option<&str>, above: u64, pace: Pace) -> anyhow::Result<()> {
        let mut reports = self.reports().await?;
        let only = named.map(|named| find(&reports, named)).transpose()?;
        if let Some(closed) = only.and_then(|it| reports.get(&it)).filter(|it| it.state.is_closed()) {
            bail!("node {} lets no devices in: it is {}", closed.node, closed.state.as_str());
        }
        let mut sent_away = 0;
        for round in 0..=MAX_ROUNDS {
            let full = too_full(&reports, only, above);
            if full.is_empty() {
                self.conclude(&reports, sent_away);
                return Ok(());
            }
            if round == MAX_ROUNDS {
                break;
            }
            let before = sessions(&reports);
            let mut told = Vec::new();
            for (node, keep) in full {
                told.push(self.order(node, &Order::Rebalance(pace, keep)).await?);
            }
            sent_away += self.follow(told).await?;
            for _ in 0..MAX_LOOKS_BETWEEN {
                reports = self.reports().await?;
                if sessions(&reports) >= before {
                    break;
                }
            }
        }
        bail!(
            "after {MAX_ROUNDS} rounds nodes still have more than {above} % above the average: devices come back to \
             where they were, by what balances them"
        )
    }

    /// Shows how far they are until all are done. How many were sent away.
    async fn follow(&self, mut reports: Vec<NodeReport>) -> anyhow::Result<u64> {
        let mut sent_away = 0;
        loop {
            for report in &reports {
                self.show(report, report.left == 0)?;
            }
            sent_away += reports.iter().filter(|it| it.left == 0).map(|it| it.shed).sum::<u64>();
            reports.retain(|it| it.left > 0);
            if reports.is_empty() {
                return Ok(sent_away);
            }
            tokio::time::sleep(LOOK_PAUSE).await;
            for report in &mut reports {
                let (node, left) = (report.node, report.left);
                *report = match self.tell(node, &Order::Report).await {
                    Ok(report) => report,
                    Err(AskError::NoResponders) => {
                        bail!("node {node} has ended; {} had yet to go", count_of(left, "device"))
                    }
                    Err(error) => return Err(error).context(format!("node {node} does not answer")),
                };
            }
        }
    }

    fn show(&self, report: &NodeReport, done: bool) -> anyhow::Result<()> {
        let NodeReport { node, state, shed, left, visitors, .. } = report;
        if self.json {
            #[derive(Serialize)]
            struct ProgressView {
                node: NodeId,
                state: NodeState,
                shed: u64,
                left: u64,
                visitors: u64,
                done: bool,
            }
            let (shed, left, visitors) = (*shed, *left, *visitors);
            say(serde_json::to_string(&ProgressView {
                node: *node,
                state: *state,
                shed,
                left,
                visitors,
                done,
            })?);
        } else if done {
            let (shed, visitors) = (count_of(*shed, "device"), number(*visitors));
            say(format_args!("{node} {}: {shed} sent away, {visitors} there", state.as_str()));
        } else {
            let (shed, left) = (number(*shed), number(*left));
            note(format_args!("{node} {}: {shed} sent away, {left} to go", state.as_str()));
        }
        Ok(())
    }

    fn conclude(&self, reports: &Reports, sent_away: u64) {
        let open = || reports.values().filter(|it| !it.state.is_closed()).map(NodeReport::sessions);
        let (least, most) = (open().min().unwrap_or(0), open().max().unwrap_or(0));
        note(format_args!(
            "{} with {} to {} sessions each; {} sent away",
            count(open().count(), "open node"),
            number(least),
            number(most),
            count_of(sent_away, "device"),
        ));
    }
}

/// The one node whose id begins so.
fn find(reports: &Reports, named: &str) -> anyhow::Result<NodeId> {
    let begins = named.to_ascii_lowercase();
    let mut found = reports.keys().filter(|node| !begins.is_empty() && node.to_string().starts_with(&begins));
    match (found.next(), found.next()) {
        (Some(node), None) => Ok(*node),
        (Some(_), Some(_)) => bail!("the ids of several nodes begin with {named:?}: give more of it"),
        (None, _) => bail!("no node's id begins with {named:?}: `switchboard node list` shows them"),
    }
}

/// Which open nodes have more than `above` per cent more sessions than the average of them; and that.
fn too_full(reports: &Reports, only: Option<NodeId>, above: u64) -> Vec<(NodeId, u32)> {
    let open: Vec<&NodeReport> = reports.values().filter(|it| !it.state.is_closed()).collect();
    let total: u64 = open.iter().map(|it| it.sessions()).sum();
    let average = total.div_ceil(open.len().max(1) as u64);
    let is_full = |it: &&&NodeReport| {
        it.sessions() * 100 > average * (100 + above) && only.is_none_or(|only| only == it.node)
    };
    open.iter().filter(is_full).map(|it| (it.node, u32::try_from(average).unwrap_or(u32::MAX))).collect()
}

fn sessions(reports: &Reports) -> u64 {
    reports.values().map(NodeReport::sessions).sum()
}

fn number(number: u64) -> String {
    grouped(usize::try_from(number).unwrap_or(usize::MAX))
}

fn count_of(number: u64, one: &str) -> String {
    count(usize::try_from(number).unwrap_or(usize::MAX), one)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reports(nodes: &[(u64, NodeState, u64)]) -> Reports {
        let report = |&(id, state, mqtt): &(u64, NodeState, u64)| {
            let node = NodeId(id);
            let (since_ms, visitors, http, coap, claims, left, shed) = (0, mqtt, 0, 0, mqtt, 0, 0);
            (node, NodeReport { node, state, since_ms, visitors, mqtt, http, coap, claims, left, shed })
        };
        nodes.iter().map(report).collect()
    }

    #[test]
    fn what_is_above_the_average_of_the_open_nodes_is_too_much() {
        use NodeState::{Evacuated, Serving, Shedding};
        let uneven = reports(&[(1, Serving, 2_500), (2, Shedding, 1_500), (3, Serving, 0), (4, Serving, 0)]);
        assert_eq!(too_full(&uneven, None, 10), [(NodeId(1), 1_000), (NodeId(2), 1_000)]);
        assert_eq!(too_full(&uneven, None, 50), [(NodeId(1), 1_000)]);
        assert_eq!(too_full(&uneven, Some(NodeId(2)), 10), [(NodeId(2), 1_000)]);
        let closed = reports(&[(1, Serving, 11), (2, Serving, 10), (3, Evacuated, 0)]);
        for even in [closed, reports(&[(1, Serving, 1), (2, Serving, 0)]), reports(&[])] {
            assert_eq!(too_full(&even, None, 10), []);
        }
    }

    #[test]
    fn a_node_is_named_by_how_its_id_begins() {
        let nodes = reports(&[(0xab << 56, NodeState::Serving, 0), (0xac << 56, NodeState::Serving, 0)]);
        assert_eq!(find(&nodes, "AB").unwrap(), NodeId(0xab << 56));
        for wrong in ["", "a", "b", "ab1"] {
            assert!(find(&nodes, wrong).is_err(), "{wrong:?}");
        }
    }
}
