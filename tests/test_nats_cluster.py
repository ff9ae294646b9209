"""Does the system outlive a NATS server? Three of them, with three copies of every claim."""

import pytest
from harness import said
from harness.cluster import Cluster
from harness.devices import PahoV5
from harness.devices.device import echo
from harness.devices.paho import REQUESTS
from harness.hardened import Hardened
from harness.load import Load
from harness.nats_server import NatsCluster
from harness.waiting import until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    settings = {"nats.replicas": "3"}
    cluster = Cluster(
        tmp_path_factory.mktemp("cluster"), nodes=2, authorizers=2, routers=2, settings=settings, nats=NatsCluster
    )
    yield cluster
    cluster.stop()


def test_any_of_three_servers_may_die(cluster, device):
    family = cluster.accounts.family()
    here, there = cluster.nodes
    target = device(PahoV5, family.b).connect(there).become_callable(echo)
    caller = device(PahoV5, family.a).connect(here)
    for server in cluster.nats.servers:
        assert caller.send_msg(family.b, "1").text() == "1"
        server.process.kill()
        until("calls are answered again", lambda: caller.send_msg(family.b, "2", timeout=2_000).text() == "2")
        # While the servers choose the registry's next leader, an authorizer may not know how old its directory is.
        for service in cluster.services:
            service.wait_ready(within_s=20)
        # The claims outlived it: nobody connected anew, and what ends is still known to end.
        assert not target.ended.is_set()
        newcomer = device(PahoV5, family.c).connect(there)
        become_callable(newcomer)
        assert caller.send_msg(family.c, "3").text() == "3"
        newcomer.close()
        until("its claim is gone", lambda: caller.send_msg(family.c, "4", timeout=2_000).text() == said.OFFLINE)
        server.start()
        cluster.nats.wait_whole()


def test_each_server_is_restarted_under_load(cluster):
    with Load(cluster) as load:
        for server in cluster.nats.servers:
            server.restart()
            cluster.nats.wait_whole()
            for service in cluster.services:
                until(f"{service.name} is ready", service.admin.is_ready)
            load.wait_for(20)
        answered = load.outcomes["answered"]
        load.wait_for(100)
        assert load.outcomes["answered"] >= answered + 90, load.outcomes


def become_callable(it: PahoV5) -> None:
    """While the servers choose a new leader no claim can be written: SUBSCRIBE is refused, and a device asks again."""
    until("a claim is taken", lambda: it.subscribe(REQUESTS + "+") == it.qos)
    it.become_callable(echo)


@pytest.mark.parametrize("identities", [0, 2])
def test_accounts_reach_each_other_over_all_servers(tmp_path, device, identities):
    hardened = Hardened(tmp_path, NatsCluster, nodes=2, identities=identities, settings={"nats.replicas": "3"})
    cluster = hardened.cluster
    try:
        family = cluster.accounts.family()
        here, there = cluster.nodes
        target = device(PahoV5, family.b).connect(there)
        become_callable(target)
        caller = device(PahoV5, family.a).connect(here)
        for server in cluster.nats.servers:
            until("calls are answered", lambda: caller.send_msg(family.b, "1", timeout=2_000).text() == "1")
            # Whoever was connected there, authorizer, router or node, is now at another server than before.
            server.process.kill()
            until("calls are answered again", lambda: caller.send_msg(family.b, "2", timeout=2_000).text() == "2", within_s=40)
            server.start()
            cluster.nats.wait_whole()
    finally:
        cluster.stop()
