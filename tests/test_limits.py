"""What happens at a limit? The caller reads that it is busy, the operator sees which limit it was, nobody else notices."""

import json
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
from harness import said
from harness.cluster import Cluster
from harness.devices import PROTOCOLS, PahoV5, PahoV311
from harness.devices.device import ABSENT, answering
from harness.devices.paho import REQUESTS
from harness.raw_mqtt import CONNACK, PUBACK, connect
from harness.waiting import until

KINDS = pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.protocol)
TIME = '{"method":"getTime"}'


@pytest.fixture(scope="module")
def tight(tmp_path_factory):
    """A node whose limits are soon reached."""
    settings = {
        "ingress.max_calls_in_flight_per_caller": "3",
        "ingress.max_calls_in_flight_per_target": "4",
        "ingress.calls_per_second_per_device": "1",
        "ingress.call_burst_per_device": "8",
        "ingress.uplinks_per_second_per_device": "1",
        "ingress.uplink_burst_per_device": "2",
        "ingress.max_outbound_bytes": "65536",
        "device_api.max_timeout_ms": "5000",
        "device_api.default_timeout_ms": "500",
        "device_api.max_devices_per_customer": "1",
    }
    cluster = Cluster(tmp_path_factory.mktemp("tight"), settings=settings)
    yield cluster
    cluster.stop()


def hits(cluster, limit):
    return cluster.nodes[0].admin.value("switchboard_limits_hit_total", limit=limit)


@KINDS
def test_calls_in_flight_of_a_caller(tight, device, kind):
    family = tight.accounts.family()
    target = device(kind, family.b).connect(tight.nodes[0]).become_callable()
    caller = device(kind, family.a).connect(tight.nodes[0])
    before = hits(tight, "caller_in_flight")
    open_answers = [caller.send_msg(family.b, str(n), timeout=5000) for n in range(3)]
    calls = [target.next_call() for _ in range(3)]
    assert caller.send_msg(family.b, "3", timeout=5000).text() == said.BUSY
    assert hits(tight, "caller_in_flight") == before + 1
    for call in calls:
        call.answer('"done"')
    assert [answer.text() for answer in open_answers] == ['"done"'] * 3
    again = caller.send_msg(family.b, "4", timeout=5000)
    target.next_call().answer('"again"')
    assert again.text() == '"again"'


@KINDS
def test_calls_in_flight_of_a_target(tight, device, kind):
    family = tight.accounts.family()
    target = device(kind, family.c).connect(tight.nodes[0]).become_callable()
    callers = [device(kind, it).connect(tight.nodes[0]) for it in (family.a, family.b)]
    before = hits(tight, "target_in_flight")
    open_answers = [caller.send_msg(family.c, "1", timeout=5000) for caller in callers for _ in range(2)]
    calls = [target.next_call() for _ in range(4)]
    assert callers[0].send_msg(family.c, "2", timeout=5000).text() == said.BUSY
    assert hits(tight, "target_in_flight") == before + 1
    for call in calls:
        call.answer("0")
    assert [answer.text() for answer in open_answers] == ["0"] * 4


@KINDS
def test_calls_a_second(tight, device, kind):
    caller = device(kind, tight.accounts.family().a).connect(tight.nodes[0])
    before = hits(tight, "call_rate")
    texts = [caller.ask(TIME).text() for _ in range(9)]
    # A device that speaks HTTP has asked once to connect.
    assert said.BUSY not in texts[:7]
    if texts[8] != said.BUSY:
        # A slow machine has earned a token meanwhile: a volley finds the end of them.
        texts += [answer.text() for answer in [caller.ask(TIME) for _ in range(20)]]
    assert said.BUSY in texts
    assert hits(tight, "call_rate") - before == texts.count(said.BUSY)
    until("a token is earned", lambda: caller.ask(TIME).text() != said.BUSY)


def test_the_limits_of_the_device_api_are_settings(tight, device):
    family = tight.accounts.family()
    caller = device(PahoV311, family.a).connect(tight.nodes[0])
    device(PahoV311, family.b).connect(tight.nodes[0]).become_callable(lambda _call: None)
    assert len(json.loads(caller.get_devices())) == 1
    assert caller.send_msg(family.b, "1", timeout=5001).text() == said.TOO_LARGE
    assert caller.send_msg(family.b, "1", timeout=ABSENT).text(within_s=4) == said.TIMED_OUT
    limits = json.loads(caller.ask('{"method":"getSessionLimits"}').text())
    assert limits["maxInflightMessages"] == 3
    assert limits["rateLimits"]["messages"] == "1:1"
    assert limits["rateLimits"]["telemetryMessages"] == "1:1"


def test_uplinks_a_second(tight, raw):
    v5 = raw(tight.nodes[0].mqtt_port, 5)
    v5.connect(tight.accounts.family().a.token)
    codes = []
    for _ in range(6):
        v5.publish("v1/devices/me/telemetry", "{}", qos=1)
        codes.append(v5.expect(PUBACK).code)
    assert codes[:2] == [0, 0] and 0x97 in codes
    v3 = raw(tight.nodes[0].mqtt_port, 4)
    v3.connect(tight.accounts.family().a.token)
    # It cannot be told: what is too much waits until it is not.
    for _ in range(3):
        v3.publish("v1/devices/me/telemetry", "{}", qos=0)
    v3.ping()
    for _ in range(3):
        v3.publish("v1/devices/me/telemetry", "{}", qos=1)
    for _ in range(3):
        v3.expect(PUBACK)
    assert hits(tight, "uplink_rate") >= 2


def test_a_device_that_does_not_read_is_dropped(new_cluster, device, raw):
    cluster = new_cluster(settings={"ingress.max_outbound_bytes": "1048576", "ingress.max_mailbox_calls": "1000"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    stuck = raw(node.mqtt_port)
    stuck.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stuck.connect(family.b.token)
    stuck.subscribe("v1/devices/me/rpc/request/+")
    caller = device(PahoV5, family.a).connect(node)
    body = json.dumps("x" * 60_000)
    # A hundred of them may be in flight: more than the sockets' buffers hold. None is to end by its time.
    answers = [caller.send_msg(family.b, body, timeout=60_000) for _ in range(120)]
    texts = {answer.text(within_s=60) for answer in answers}
    # What may have been written is lost; what was over the caller's own limit, or came afterwards, was never sent.
    assert {said.LOST} <= texts <= {said.LOST, said.BUSY, said.OFFLINE}
    assert node.admin.value("switchboard_limits_hit_total", limit="outbound_bytes") == 1
    until("it is offline", lambda: caller.send_msg(family.b, "1").text() == said.OFFLINE)
    assert device(PahoV311, family.b).connect(node).become_callable(answering("1"))
    assert caller.send_msg(family.b, "1").text() == "1"


@pytest.mark.parametrize("count", [64, 1000])
def test_silent_connections_to_the_admin_port_silence_nothing(tight, count):
    admin = tight.authorizers[0].admin
    host, port = admin.address.rsplit(":", 1)
    with ExitStack() as silent:
        for _ in range(count):
            silent.enter_context(socket.create_connection((host, int(port))))
        assert [admin.get(path)[0] for path in ("/livez", "/readyz", "/metrics")] == [200] * 3


def test_who_is_over_the_limit_and_says_nothing_keeps_nobody_from_being_told(new_cluster, raw):
    cluster = new_cluster(settings={"ingress.max_connections": "1"})
    port, family = cluster.nodes[0].mqtt_port, cluster.accounts.family()
    assert raw(port).connect(family.a.token).code == 0
    silent = [raw(port) for _ in range(40)]
    # A few are let wait for a moment, the others are closed at once.
    silent[-1].expect_closed()
    silent[0].expect_closed()
    refused = raw(port, 5)
    assert refused.connect(family.b.token).code == 0x9F
    assert cluster.nodes[0].admin.get("/readyz")[0] == 200
    assert hits(cluster, "connections") == 41


def test_all_devices_may_come_at_once(new_cluster, raw):
    """As when the node that had them has died: who comes waits to be accepted, and is not left to try again."""
    cluster = new_cluster(settings={"shares.per_customer_percent": "100", "ingress.max_connections_per_device": "4096"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    # What the system lets wait at most, and of it a part: as many as others of these tests may open files.
    count = min(int(Path("/proc/sys/net/core/somaxconn").read_text()), 4096) * 3 // 4
    port = node.mqtt_port
    node.process.signal(signal.SIGSTOP)
    try:
        clients = [raw(port) for _ in range(count)]
    finally:
        node.process.signal(signal.SIGCONT)
    for client in clients:
        client.send(connect(4, family.a.token))
    assert [client.expect(CONNACK).code for client in clients] == [0] * count
    for client in clients:
        client.socket.close()


def test_claims_wait_for_each_other_at_their_node(new_cluster, device):
    cluster = new_cluster(settings={"ingress.max_claims_in_flight": "1", "ingress.claim_timeout_ms": "2000"})
    family = cluster.accounts.family()
    devices = [device(PahoV5, identity).connect(cluster.nodes[0]) for identity in (family.a, family.b, family.c)]
    # While the store is silent the first claim keeps the place for two seconds, and the others give up after one.
    cluster.nats.process.signal(signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(len(devices)) as pool:
            codes = list(pool.map(lambda it: it.subscribe(REQUESTS + "+"), devices))
    finally:
        cluster.nats.process.signal(signal.SIGCONT)
    assert all(code >= 0x80 for code in codes), codes
    assert hits(cluster, "claims_in_flight") == 2
    for it in devices:
        until("it is callable", lambda it=it: it.subscribe(REQUESTS + "+") == it.qos)
