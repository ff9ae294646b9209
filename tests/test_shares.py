"""What may one customer take of what all share? His part: who is greedy hears so, and nobody else notices."""

import json
import signal
import time
import uuid

import pytest
from harness import said
from harness.accounts import Identity
from harness.cluster import Cluster
from harness.devices import PROTOCOLS, CoapDevice, HttpDevice, PahoV5, PahoV311
from harness.devices.device import answering
from harness.raw_http import RawHttp
from harness.raw_mqtt import PINGRESP, PUBACK
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


def test_calls_a_second_of_a_customer(new_cluster, device):
    cluster = new_cluster(settings={"ingress.calls_per_second_per_customer": "10"})
    node, greedy = cluster.nodes[0], cluster.accounts.family()
    device(PahoV5, greedy.c).connect(node).become_callable(answering('"here"'))
    callers = [device(PahoV5, it).connect(node) for it in (greedy.a, greedy.b)]
    texts = [it.text() for it in [caller.send_msg(greedy.c, "1") for caller in callers for _ in range(50)]]
    assert 10 <= texts.count('"here"') < 50 and texts.count(said.BUSY) == 100 - texts.count('"here"')
    assert hits(node, "customer_call_rate") == texts.count(said.BUSY)
    notices_nothing(cluster, device, node)
    until("he has earned another", lambda: callers[0].send_msg(greedy.c, "1").text() == '"here"')


def test_telemetry_that_nats_is_yet_to_take_takes_its_part(small, raw):
    node = small.nodes[0]
    greedy, other = (raw(node.mqtt_port, 5) for _ in range(2))
    for client in (greedy, other):
        assert client.connect(small.accounts.family().a.token).code == 0
    small.nats.process.signal(signal.SIGSTOP)
    try:
        for _ in range(10):
            greedy.publish("v1/devices/me/telemetry", "{}", qos=1)
        assert all(greedy.expect(PUBACK).code >= 0x80 for _ in range(4))
        other.publish("v1/devices/me/telemetry", "{}", qos=1)
    finally:
        small.nats.process.signal(signal.SIGCONT)
    assert [client.expect(PUBACK).code for client in [greedy] * 6 + [other]] == [0] * 7
    assert hits(node, "customer_uplinks") == 4


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


def test_a_page_is_smaller_than_the_list(new_cluster, device):
    cluster = new_cluster(settings={"device_api.max_devices_per_page": "1"})
    family = cluster.accounts.family()
    caller = device(PahoV5, family.a).connect(cluster.nodes[0])
    ids = lambda params: [it["id"] for it in json.loads(caller.get_devices(params))]  # noqa: E731
    assert ids({}) == [family.b.id, family.c.id]
    assert ids({"after": family.a.id}) == [family.b.id]
    assert ids({"after": family.a.id, "limit": 2}) == [family.b.id, family.c.id]
    assert (ids({"after": family.b.id}), ids({"after": family.c.id})) == ([family.c.id], [])


@KINDS
def test_a_list_that_is_kept_is_never_old(shared_cluster, family, device, kind):
    caller = device(kind, family.a).connect(shared_cluster.nodes[0])
    for number in range(2):
        assert len(json.loads(caller.get_devices())) == 2 + number
        further = Identity(str(uuid.uuid4()), f"Further {uuid.uuid4()}", f"token-{uuid.uuid4()}", customer=family.customer)
        shared_cluster.accounts.add(further)
        # Every authorizer has heard of it.
        assert further.id in [it["id"] for it in json.loads(caller.get_devices())]
    shared_cluster.accounts.cli("device", "remove", "--yes", further.id).ok()
    until("it is gone", lambda: further.id not in caller.get_devices())


def test_lists_wait_their_turn(new_cluster, device):
    cluster = new_cluster(settings={"authorizer.list_bytes_per_second_per_customer": "1000"})
    node, greedy = cluster.nodes[0], cluster.accounts.family()
    callers = [device(PahoV5, it).connect(node) for it in (greedy.a, greedy.b, greedy.c)]
    lists = [caller.ask('{"method":"getDevices"}') for caller in callers for _ in range(100)]
    until("some are too many", lambda: sum(it.is_there() for it in lists) >= 40)
    notices_nothing(cluster, device, node)
    told = [it.text() for it in lists if it.is_there()]
    busy = cluster.authorizers[0].admin.value("switchboard_authorizer_lists_total", result="busy")
    assert told.count(said.BUSY) >= 40 and busy == told.count(said.BUSY)
    assert len(told) < 100, "the others wait"


def test_one_connection_too_many_of_a_device_ends_the_oldest(new_cluster, device, raw):
    cluster = new_cluster(settings={"ingress.max_connections_per_device": "3"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    device(PahoV5, family.a).connect(node).become_callable(answering('"still here"'))
    callers = [raw(node.mqtt_port, 5) for _ in range(3)]
    for caller in callers:
        assert caller.connect(family.a.token).code == 0
    assert "newer connections" in callers[0].expect_disconnect(0x8E).properties["reason_string"]
    for caller in callers[1:]:
        caller.ping()
    assert device(PahoV311, family.b).connect(node).send_msg(family.a, "1").text() == '"still here"'
    assert hits(node, "device_connections") == 1


def test_connections_of_an_address(new_cluster, raw):
    cluster = new_cluster(settings={"ingress.max_connections_per_address": "2"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    mqtt, http = raw(node.mqtt_port, 5), RawHttp(node.http_port)
    assert mqtt.connect(family.a.token).code == 0
    assert http.ask("POST", f"/api/v1/{family.b.token}/rpc", '{"method":"getTime"}').status == 200
    raw(node.mqtt_port, 5).expect_closed()
    with RawHttp(node.http_port) as over:
        assert over.expect_closed() == b""
    assert hits(node, "address_connections") == 2
    mqtt.ping()
    http.close()

    def there_is_room():
        try:
            return raw(node.mqtt_port, 5).connect(family.c.token).code == 0
        except (AssertionError, OSError):
            return False

    until("there is room", there_is_room)


def test_what_comes_too_fast_is_read_later(new_cluster, raw):
    cluster = new_cluster(settings={"ingress.requests_per_second_per_connection": "10"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    mqtt = raw(node.mqtt_port, 5)
    mqtt.connect(family.a.token)
    started = time.monotonic()
    mqtt.send(bytes([0xC0, 0]) * 30)
    for _ in range(30):
        mqtt.expect(PINGRESP)
    assert time.monotonic() - started >= 1.9
    with RawHttp(node.http_port) as http:
        started = time.monotonic()
        statuses = [http.ask("POST", f"/api/v1/{family.a.token}/rpc", '{"method":"getTime"}').status for _ in range(20)]
        assert statuses == [200] * 20 and time.monotonic() - started >= 0.9
    assert hits(node, "request_rate") >= 2
