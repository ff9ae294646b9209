"""Does a service that is asked to end lose anything? SIGTERM at rest, with calls open, and under load."""

import select
import signal
import time

import pytest
from harness import said
from harness.devices import PahoV5, PahoV311
from harness.devices.device import answering, echo
from harness.load import Load
from harness.waiting import until


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_service_at_rest_ends_well(new_cluster, number):
    cluster = new_cluster()
    for service in cluster.services:
        service.process.signal(number)
    for service in cluster.services:
        assert service.process.wait() == 0, service.process.err
        assert not [line for line in service.process.log_lines() if line["level"] in ("ERROR", "WARN")]


def test_a_service_ends_without_nats_too(new_cluster):
    cluster = new_cluster()
    cluster.nats.process.kill()
    started = time.monotonic()
    for service in cluster.services:
        service.process.term()
    for service in cluster.services:
        assert service.process.wait() == 0, service.process.err
    assert time.monotonic() - started < 5, "nothing is in flight that drain_ms would be for"


def test_a_draining_node_says_goodbye(new_cluster, device, raw):
    cluster = new_cluster(nodes=2)
    family = cluster.accounts.family()
    draining, staying = cluster.nodes
    v5, v3 = raw(draining.mqtt_port, 5), raw(draining.mqtt_port, 4)
    v5.connect(family.b.token)
    v5.subscribe("v1/devices/me/rpc/request/+")
    v3.connect(family.c.token)
    caller = device(PahoV5, family.a).connect(staying)
    port = draining.mqtt_port
    assert draining.term() == 0
    v5.expect_disconnect(0x8B)
    v3.expect_closed()
    # It has released its claims and its lease: the target is waited for where it may come back, and for no longer.
    assert caller.send_msg(family.b, "1").text() == said.OFFLINE
    assert '"online":true' not in caller.get_devices({"online": True})
    with pytest.raises(OSError):
        raw(port)


def test_a_node_that_ends_sends_its_devices_away_at_a_pace(new_cluster, raw):
    # As many a second as half of drain_ms takes, where the setting says fewer.
    cluster = new_cluster(settings={"ingress.drain_ms": "4000", "ingress.shed_per_second": "5"})
    (node,) = cluster.nodes
    connections = []
    for family in [cluster.accounts.family() for _ in range(10)]:
        for identity in (family.a, family.b, family.c):
            connections.append(raw(node.mqtt_port, 5))
            connections[-1].connect(identity.token)
    node.process.term()
    gone_at = []
    while connections:
        readable, _, _ = select.select([it.socket for it in connections], [], [], 10)
        assert readable
        for connection in [it for it in connections if it.socket in readable]:
            connection.expect_disconnect(0x8B)
            connections.remove(connection)
            gone_at.append(time.monotonic())
    assert 1.5 < gone_at[-1] - gone_at[0] < 3
    assert node.process.wait() == 0


def test_a_device_that_is_sent_away_hears_where_to(new_cluster, raw):
    cluster = new_cluster(settings={"mqtt.server_reference": "mqtt.example.com:1883"})
    v5 = raw(cluster.nodes[0].mqtt_port, 5)
    v5.connect(cluster.accounts.family().a.token)
    cluster.nodes[0].process.term()
    assert v5.expect_disconnect(0x9C).properties["server_reference"] == "mqtt.example.com:1883"


@pytest.mark.parametrize("draining", ["callers", "targets"])
def test_a_call_that_is_open_at_a_draining_node_is_answered(new_cluster, device, draining):
    cluster = new_cluster(nodes=2)
    family = cluster.accounts.family()
    target = device(PahoV5, family.b).connect(cluster.nodes[0]).become_callable()
    caller = device(PahoV5, family.a).connect(cluster.nodes[1])
    answer = caller.send_msg(family.b, "1")
    call = target.next_call()
    node = cluster.nodes[1 if draining == "callers" else 0]
    admin = node.admin
    node.process.term()
    until("it is unready", lambda: admin.get("/readyz")[0] != 200)
    call.answer('"in time"')
    assert answer.text() == '"in time"'
    assert node.process.wait() == 0
    left = caller if draining == "callers" else target
    assert left.ended.wait(5)
    assert left.disconnect_reason.value == 0x8B


def test_a_call_that_is_never_answered_is_cut_off(new_cluster, device):
    cluster = new_cluster(nodes=2, settings={"ingress.drain_ms": "500"})
    family = cluster.accounts.family()
    target = device(PahoV311, family.b).connect(cluster.nodes[0]).become_callable()
    caller = device(PahoV5, family.a).connect(cluster.nodes[1])
    answer = caller.send_msg(family.b, "1", timeout=60_000)
    target.next_call()
    started = time.monotonic()
    assert cluster.nodes[0].term() == 0
    assert time.monotonic() - started < 10
    assert answer.text() == said.LOST


@pytest.mark.parametrize("service", ["routers", "authorizers"])
def test_a_call_that_is_open_while_a_service_ends_is_answered(new_cluster, device, service):
    cluster = new_cluster()
    family = cluster.accounts.family()
    target = device(PahoV5, family.b).connect(cluster.nodes[0]).become_callable()
    caller = device(PahoV5, family.a).connect(cluster.nodes[0])
    answer = caller.send_msg(family.b, "1")
    call = target.next_call()
    ending = getattr(cluster, service)[0]
    admin = ending.admin
    ending.process.term()
    until("it is unready", lambda: admin.get("/readyz")[0] != 200)
    call.answer('"in time"')
    assert answer.text() == '"in time"'
    assert ending.process.wait() == 0


@pytest.mark.parametrize("service", ["routers", "authorizers", "nodes"])
def test_a_rolling_restart_under_load_loses_no_call(new_cluster, service):
    cluster = new_cluster(nodes=2, routers=2, authorizers=2)
    with Load(cluster) as load:
        for it in getattr(cluster, service):
            assert it.term() == 0
            load.wait_for(20)
            it.restart()
            load.wait_for(20)
    assert set(load.outcomes) == {"answered"}, load.outcomes


@pytest.mark.parametrize("waits", [{}, {"connectTimeout": 15_000}], ids=["its node sent it away", "the caller waits"])
def test_a_target_that_moves_to_another_node_is_found_there(new_cluster, device, waits):
    cluster = new_cluster(nodes=2)
    family = cluster.accounts.family()
    target = device(PahoV5, family.b).connect(cluster.nodes[0]).become_callable(echo)
    caller = device(PahoV5, family.a).connect(cluster.nodes[1])
    assert caller.send_msg(family.b, "1").text() == "1"
    cluster.nodes[0].process.term()
    assert target.ended.wait(10)
    waiting = caller.send_msg(family.b, "2", **waits)
    device(PahoV5, family.b).connect(cluster.nodes[1]).become_callable(answering('"moved"'))
    assert waiting.text() == '"moved"'
