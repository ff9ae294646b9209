"""What may one customer take of what all share? His part: who is greedy hears so, and nobody else notices."""

import json

import pytest
from harness import said
from harness.cluster import Cluster
from harness.devices import PROTOCOLS, CoapDevice, HttpDevice, PahoV5, PahoV311
from harness.devices.device import answering
from harness.raw_http import RawHttp
from harness.waiting import until

KINDS = pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.protocol)
WAITING = {"timeout": 20_000, "connectTimeout": 20_000}


def hits(node, limit):
    return node.admin.value("switchboard_limits_hit_total", limit=limit)


def routers_hits(cluster, limit):
    return cluster.routers[0].admin.value("switchboard_router_limits_hit_total", limit=limit)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A node of 60 calls: 6 are one customer's, 3 of them may wait."""
    cluster = Cluster(tmp_path_factory.mktemp("small"), settings={"nats.max_pending_asks": "60"})
    yield cluster
    cluster.stop()


def notices_nothing(cluster, device, node):
    """Another customer's devices connect, list and call as ever."""
    family = cluster.accounts.family()
    target = device(PahoV5, family.b).connect(node).become_callable(answering('"here"'))
    caller = device(PahoV311, family.a).connect(node)
    assert len(json.loads(caller.get_devices())) == 2
    assert caller.send_msg(family.b, "1").text() == '"here"'
    caller.close()
    target.close()


@KINDS
def test_calls_that_wait_take_their_part(small, device, kind):
    node, greedy = small.nodes[0], small.accounts.family()
    caller = device(kind, greedy.a).connect(node)
    before = hits(node, "customer_waits")
    waiting = [caller.send_msg(greedy.c, "1", **WAITING) for _ in range(8)]
    until("the others are refused", lambda: sum(it.is_there() for it in waiting) == 5)
    assert {it.text() for it in waiting if it.is_there()} == {said.BUSY}
    assert hits(node, "customer_waits") == before + 5
    # What need not wait has places of its own, and so has everybody else.
    assert len(json.loads(caller.get_devices())) == 2
    notices_nothing(small, device, node)
    device(PahoV5, greedy.c).connect(node).become_callable(answering('"at last"'))
    assert [it.text() for it in waiting if it.text() != said.BUSY] == ['"at last"'] * 3


def test_calls_in_flight_take_their_part(small, device):
    node, greedy = small.nodes[0], small.accounts.family()
    target = device(PahoV5, greedy.b).connect(node).become_callable()
    callers = [device(PahoV5, it).connect(node) for it in (greedy.a, greedy.c)]
    before = hits(node, "customer_calls")
    open_answers = [caller.send_msg(greedy.b, "1") for caller in callers for _ in range(40)]
    calls = [target.next_call() for _ in range(6)]
    until("the others are refused", lambda: sum(it.is_there() for it in open_answers) == 74)
    assert hits(node, "customer_calls") == before + 74
    notices_nothing(small, device, node)
    for call in calls:
        call.answer("0")
    assert sorted(it.text() for it in open_answers) == ["0"] * 6 + [said.BUSY] * 74
    again = callers[0].send_msg(greedy.b, "1")
    target.next_call().answer("1")
    assert again.text() == "1"


def test_a_routers_places_are_shared_over_all_nodes(new_cluster, device):
    cluster = new_cluster(nodes=2, settings={"router.max_calls_in_flight": "40"})
    greedy = cluster.accounts.family()
    callers = [device(PahoV5, it).connect(node) for it, node in zip((greedy.a, greedy.b), cluster.nodes, strict=True)]
    waiting = [caller.send_msg(greedy.c, "1", **WAITING) for caller in callers for _ in range(40)]
    until("the others are refused", lambda: sum(it.is_there() for it in waiting) == 78)
    assert {it.text() for it in waiting if it.is_there()} == {said.BUSY}
    # Those that look for their target at the same time are in flight, too.
    assert routers_hits(cluster, "customer_waits") + routers_hits(cluster, "customer_calls") == 78
    for node in cluster.nodes:
        notices_nothing(cluster, device, node)
    for caller in callers:
        caller.vanish()
    waits = "switchboard_router_calls_waiting"
    until("nobody waits any more", lambda: cluster.routers[0].admin.value(waits) == 0)
    caller = device(PahoV5, greedy.a).connect(cluster.nodes[0])
    late = caller.send_msg(greedy.c, "1", **WAITING)
    device(PahoV5, greedy.c).connect(cluster.nodes[1]).become_callable(answering('"here"'))
    assert late.text() == '"here"'


def test_calls_for_devices_take_their_part(new_cluster, device):
    cluster = new_cluster(settings={"ingress.max_deliveries": "40"})
    node, greedy = cluster.nodes[0], cluster.accounts.family()
    targets = [device(PahoV5, it).connect(node).become_callable() for it in (greedy.b, greedy.c)]
    caller = device(PahoV5, greedy.a).connect(node)
    open_answers = [caller.send_msg(it.identity, "1") for it in targets for _ in range(25)]
    until("the others are refused", lambda: sum(it.is_there() for it in open_answers) == 46)
    assert hits(node, "customer_deliveries") == 46
    notices_nothing(cluster, device, node)
    for _ in range(4):
        targets[0].next_call().answer("0")
    assert sorted(it.text() for it in open_answers) == ["0"] * 4 + [said.BUSY] * 46


def test_connections_take_their_part(new_cluster, device, raw):
    cluster = new_cluster(settings={"ingress.max_connections": "30"})
    node, greedy = cluster.nodes[0], cluster.accounts.family()
    held = [raw(node.mqtt_port, 5) for _ in range(3)]
    for connection, identity in zip(held, (greedy.a, greedy.b, greedy.c), strict=True):
        assert connection.connect(identity.token).code == 0
    for version, code in ((4, 3), (5, 0x9F)):
        refused = raw(node.mqtt_port, version)
        assert refused.connect(greedy.a.token).code == code
        refused.expect_closed()
    with RawHttp(node.http_port) as http:
        response = http.ask("POST", f"/api/v1/{greedy.a.token}/rpc", '{"method":"getTime"}')
        assert (response.status, response.body) == (429, said.BUSY)
    assert hits(node, "customer_sessions") == 3
    assert node.admin.value("switchboard_connects_total", result="limit") == 2
    notices_nothing(cluster, device, node)
    held[0].disconnect()
    until("there is room", lambda: raw(node.mqtt_port, 5).connect(greedy.a.token).code == 0)


def test_devices_that_are_kept_in_mind_take_their_part(new_cluster, device):
    cluster = new_cluster(settings={"http.max_sessions": "20", "coap.max_sessions": "20"})
    node, greedy = cluster.nodes[0], cluster.accounts.family()
    for kind in (HttpDevice, CoapDevice):
        for identity in (greedy.a, greedy.b):
            device(kind, identity).connect(node)
    with RawHttp(node.http_port) as http:
        response = http.ask("POST", f"/api/v1/{greedy.c.token}/rpc", '{"method":"getTime"}')
        assert (response.status, response.body) == (429, said.BUSY)
        other = cluster.accounts.family().a
        assert http.ask("POST", f"/api/v1/{other.token}/rpc", '{"method":"getTime"}').status == 200
    assert hits(node, "customer_sessions") == 1
