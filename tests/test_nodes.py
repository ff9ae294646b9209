"""Can an operator send devices to other nodes without their callers noticing? `switchboard node …`"""

import json
import select
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import said
from harness.devices import CoapDevice, HttpDevice, PahoV5, PahoV311
from harness.devices.device import echo
from harness.processes import Process
from harness.programs import built
from harness.waiting import until

CALLS = "v1/devices/me/rpc/request/+"


@pytest.fixture
def cluster(new_cluster):
    return new_cluster(nodes=2)


def told(cluster, *arguments):
    """What the command says, line by line, of what has come to its end."""
    return [json.loads(line) for line in cluster.accounts.cli("node", *arguments, "--json").ok().out.splitlines()]


def listed(cluster):
    return {it["node"]: it for it in json.loads(cluster.accounts.cli("node", "list", "--json").ok().out)}


@pytest.mark.parametrize("kind", [PahoV311, PahoV5, HttpDevice, CoapDevice])
def test_a_call_waits_for_a_device_that_is_evacuated(cluster, device, kind):
    family, (here, there) = cluster.accounts.family(), cluster.nodes
    target = device(kind, family.b).connect(here).become_callable(echo)
    caller = device(PahoV5, family.a).connect(there)
    assert caller.send_msg(family.b, "1").text() == "1"
    *_, last = told(cluster, "evacuate", here.node_id[:12], "--wait", "0")
    assert last == {"node": here.node_id, "state": "evacuated", "shed": 1, "left": 0, "visitors": 0, "done": True}
    assert target.ended.wait(10)
    call = caller.send_msg(family.b, "2")
    device(kind, family.b).connect(there).become_callable(echo)
    assert call.text() == "2"


def test_what_is_open_at_a_node_that_is_evacuated_comes_to_its_end(cluster, device):
    family, (here, there) = cluster.accounts.family(), cluster.nodes
    target = device(PahoV5, family.b).connect(here).become_callable()
    answer = device(PahoV5, family.a).connect(there).send_msg(family.b, "1")
    call = target.next_call()
    with ThreadPoolExecutor() as pool:
        evacuation = pool.submit(told, cluster, "evacuate", here.node_id, "--wait", "0")
        until("it is told to go", lambda: listed(cluster)[here.node_id]["shed"] == 1)
        assert not target.ended.is_set()
        call.answer('"in time"')
        assert answer.text() == '"in time"'
        assert evacuation.result()[-1]["done"]
    assert target.disconnect_reason.value == 0x8B


def test_a_node_in_maintenance_lets_none_in_until_it_ends(cluster, device, raw):
    family, (here, there) = cluster.accounts.family(), cluster.nodes
    visitor = raw(here.mqtt_port)
    visitor.connect(family.b.token)
    assert told(cluster, "maintenance", here.node_id, "--wait", "0")[-1]["shed"] == 1
    visitor.expect_closed()
    state = listed(cluster)
    assert [state[it.node_id]["state"] for it in (here, there)] == ["maintenance", "serving"]
    status, why = here.admin.get("/readyz")
    assert status == 503 and "maintenance" in why
    assert raw(here.mqtt_port).connect(family.b.token).code == 3
    with pytest.raises(AssertionError, match="503"):
        HttpDevice(family.b).connect(here)
    assert here.admin.value("switchboard_shed_total", reason="maintenance") == 1
    assert told(cluster, "maintenance", here.node_id, "--end")[-1]["state"] == "serving"
    until("it is ready", here.admin.is_ready)
    target = device(PahoV5, family.b).connect(here).become_callable(echo)
    assert device(PahoV5, family.a).connect(there).send_msg(family.b, "1").text() == "1"
    assert not target.ended.is_set()


def test_a_node_that_sheds_ends_as_any_other(cluster, raw):
    here, _ = cluster.nodes
    visitor = raw(here.mqtt_port, 5)
    visitor.connect(cluster.accounts.family().a.token)
    with ThreadPoolExecutor() as pool:
        evacuation = pool.submit(cluster.accounts.cli, "node", "evacuate", here.node_id, "--wait", "600")
        until("it is told", lambda: not here.admin.is_ready())
        assert here.term() == 0
        visitor.expect_disconnect(0x8B)
        assert evacuation.result().code == 1
        assert "has ended" in evacuation.result().err


def test_what_a_node_has_above_the_average_goes_to_others(cluster, raw):
    here, there = cluster.nodes
    tokens = [it.token for _ in range(4) for family in [cluster.accounts.family()] for it in (family.a, family.b, family.c)]

    def connects(token, node):
        connection = raw(node.mqtt_port, 5)
        connection.connect(token)
        connection.subscribe(CALLS)
        return connection

    at = {connects(token, here): token for token in tokens}
    moved = 0
    with ThreadPoolExecutor() as pool:
        rebalance = pool.submit(told, cluster, "rebalance", "--wait", "0")
        while not rebalance.done():
            for connection in [it for it in at if it.socket in select.select([it.socket for it in at], [], [], 0.1)[0]]:
                connection.expect_disconnect(0x8B)
                assert not here.admin.is_ready()
                connects(at.pop(connection), there)
                moved += 1
    lines = rebalance.result()
    assert {it["node"] for it in lines} == {here.node_id}
    assert (lines[-1]["shed"], lines[-1]["done"]) == (6, True)
    assert moved == 6
    assert [listed(cluster)[it.node_id]["sessions"]["mqtt"] for it in (here, there)] == [6, 6]
    until("it is ready", here.admin.is_ready)
    assert told(cluster, "rebalance") == []


def test_ctrl_c_leaves_the_nodes_going(cluster, raw):
    here, _ = cluster.nodes
    family = cluster.accounts.family()
    devices = [raw(here.mqtt_port) for _ in range(3)]
    for connection, identity in zip(devices, (family.a, family.b, family.c), strict=True):
        connection.connect(identity.token)
    nats = ["--nats", cluster.nats.url]
    command = Process("evacuate", [built("switchboard"), "node", "evacuate", here.node_id, "--rate", "1", "--wait", "0", *nats], None)
    devices[0].expect_closed()
    command.interrupt()
    assert command.wait() == 130
    assert "go on" in command.err
    for connection in devices[1:]:
        connection.expect_closed()
    until("all have gone", lambda: listed(cluster)[here.node_id]["left"] == 0)


def test_who_was_not_sent_away_is_offline_at_once(cluster, device):
    family, (here, there) = cluster.accounts.family(), cluster.nodes
    told(cluster, "evacuate", here.node_id, "--wait", "0")
    target = device(PahoV5, family.b).connect(there).become_callable(echo)
    caller = device(PahoV5, family.a).connect(there)
    target.close()
    until("it is offline", lambda: caller.send_msg(family.b, "1", timeout=1_000).text(1) == said.OFFLINE)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["evacuate", "x"], 1, "no node's id begins with"),
        (["evacuate", ""], 1, "no node's id begins with"),
        (["evacuate"], 2, "<NODE>"),
        (["evacuate", "0", "--rate", "0"], 2, "--rate"),
        (["rebalance", "--above", "0"], 2, "--above"),
        (["rebalance", "x"], 1, "no node's id begins with"),
        (["maintenance", "0", "--wait", "601"], 2, "--wait"),
        (["maintenance", "0", "--end", "--rate", "5"], 2, "--end"),
    ],
)
def test_what_cannot_be_is_refused_in_words(shared_cluster, arguments, code, told):
    ran = shared_cluster.accounts.cli("node", *arguments)
    assert (ran.code, told in ran.err) == (code, True), ran
