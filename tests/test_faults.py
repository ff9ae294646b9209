"""What does a caller read when a part of the system is missing or dies? The truth, at once, and later calls work."""

import json
import socket
from contextlib import closing

import pytest
from harness import said
from harness.cluster import Cluster
from harness.devices import PROTOCOLS, PahoV5
from harness.devices.device import echo
from harness.load import Load
from harness.raw_http import RawHttp
from harness.raw_mqtt import PUBACK, PUBLISH
from harness.waiting import PATIENCE_S, until

KINDS = pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.protocol)
NOBODY = "00000000-0000-4000-8000-000000000000"


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """One of each; what a test takes away it brings back."""
    cluster = Cluster(tmp_path_factory.mktemp("single"))
    yield cluster
    cluster.stop()


@KINDS
def test_without_a_router(single, device, kind):
    family = single.accounts.family()
    device(kind, family.b).connect(single.nodes[0]).become_callable(echo)
    caller = device(kind, family.a).connect(single.nodes[0])
    single.routers[0].kill()
    # What was sent before NATS noticed went to the dead; afterwards the caller hears at once.
    assert caller.send_msg(family.b, "0", timeout=500).text() == said.UNAVAILABLE
    assert caller.send_msg(family.b, "1", timeout=60_000).text(within_s=10) == said.UNAVAILABLE
    # What needs no router works.
    assert caller.send_msg(NOBODY, "1").text() == said.UNKNOWN_DEVICE
    assert len(json.loads(caller.get_devices())) == 2
    single.routers[0].restart()
    assert caller.send_msg(family.b, "2").text() == "2"


@KINDS
def test_without_an_authorizer(single, device, kind):
    family = single.accounts.family()
    device(kind, family.b).connect(single.nodes[0]).become_callable(echo)
    caller = device(kind, family.a).connect(single.nodes[0])
    single.authorizers[0].kill()
    assert caller.send_msg(family.b, "0", timeout=500).text() == said.UNAVAILABLE
    assert caller.send_msg(family.b, "1", timeout=60_000).text(within_s=10) == said.UNAVAILABLE
    assert caller.get_devices() == said.UNAVAILABLE
    single.authorizers[0].restart()
    assert caller.send_msg(family.b, "2").text() == "2"


@pytest.mark.parametrize("service", ["routers", "authorizers"])
def test_ready_means_ready(single, device, service):
    family = single.accounts.family()
    device(PahoV5, family.b).connect(single.nodes[0]).become_callable(echo)
    caller = device(PahoV5, family.a).connect(single.nodes[0])
    it = getattr(single, service)[0]
    for number in range(10):
        it.kill()
        it.restart()
        assert caller.send_msg(family.b, str(number)).text() == str(number)
        assert it.admin.is_ready(), "once it is, it stays so"


@pytest.mark.parametrize("service", ["routers", "authorizers"])
def test_one_of_two_dies_under_load(new_cluster, service):
    cluster = new_cluster(nodes=2, routers=2, authorizers=2)
    with Load(cluster, timeout_ms=2_000) as load:
        dying = getattr(cluster, service)[0]
        dying.kill()
        # Calls that were in the dead one's hands fail with their time, each saying so; from then on none does.
        load.wait_for(100)
        dying.restart()
        load.wait_for(50)
    failed = {text for text in load.outcomes if text != "answered"}
    assert failed <= {said.UNAVAILABLE, said.TIMED_OUT, said.LOST}, load.outcomes
    assert load.outcomes.total() - load.outcomes["answered"] <= 4, "at most one call of each pair was in its hands"


def test_nats_dies_under_load(new_cluster):
    cluster = new_cluster(nodes=2, routers=2, authorizers=2)
    with Load(cluster, timeout_ms=2_000) as load:
        cluster.nats.restart()
        goal = load.outcomes["answered"] + 40
        until("calls are answered again", lambda: load.outcomes["answered"] >= goal, within_s=40)
    # Each call said what it knew; none was answered with another's answer, none was called offline.
    assert set(load.outcomes) <= {"answered", said.UNAVAILABLE, said.TIMED_OUT, said.LOST}, load.outcomes


def test_a_node_dies_under_load(new_cluster):
    cluster = new_cluster(nodes=2)
    with Load(cluster, timeout_ms=10_000) as load:
        cluster.nodes[0].kill()
        load.wait_for(60)
        cluster.nodes[0].restart()
        load.wait_for(60)
    # A call whose target's node died is lost; one that was never delivered waited for its target to come back.
    taken = "taken and never answered"
    assert set(load.outcomes) <= {"answered", said.LOST, said.UNAVAILABLE, taken}, load.outcomes
    assert load.outcomes.total() - load.outcomes["answered"] <= 8, load.outcomes


def test_the_only_router_dies_with_a_call_open(new_cluster, device):
    cluster = new_cluster()
    family = cluster.accounts.family()
    target = device(PahoV5, family.b).connect(cluster.nodes[0]).become_callable()
    caller = device(PahoV5, family.a).connect(cluster.nodes[0])
    answer = caller.send_msg(family.b, "1", timeout=1500)
    call = target.next_call()
    cluster.routers[0].kill()
    # Nobody can carry the answer; that is never reported as "the target never saw it".
    assert answer.text(within_s=10) in (said.UNAVAILABLE, said.TIMED_OUT)
    call.answer("1")
    cluster.routers[0].restart()
    again = caller.send_msg(family.b, "2")
    target.next_call().answer("2")
    assert again.text() == "2"


@pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5"])
def test_without_nats(new_cluster, raw, version):
    cluster = new_cluster()
    family, port = cluster.accounts.family(), cluster.nodes[0].mqtt_port
    client = raw(port, version)
    client.connect(family.a.token)
    client.subscribe("v1/devices/me/rpc/response/+")
    cluster.nats.process.kill()
    # The connection stays, and everything that needs NATS says so at once.
    client.publish("v1/devices/me/rpc/request/1", '{"method":"getDevices"}')
    assert client.expect(PUBLISH).payload.decode() == said.UNAVAILABLE
    assert client.subscribe("v1/devices/me/rpc/request/+").codes == [0x80]
    refused = raw(port, version)
    assert refused.connect(family.b.token).code == {4: 3, 5: 0x88}[version]
    refused.expect_closed()
    # Telemetry is not acknowledged as if somebody had it.
    client.publish("v1/devices/me/telemetry", "{}", qos=1)
    if version == 5:
        assert client.expect(PUBACK).code == 0x80
        client.ping()
    else:
        client.expect_closed()


def test_without_nats_nobody_new_is_let_in_nor_waits(new_cluster, raw):
    """Over every protocol, and sooner than anything could time out."""
    cluster = new_cluster(settings={"ingress.authenticate_timeout_ms": "60000"})
    node, token = cluster.nodes[0], cluster.accounts.family().a.token
    cluster.nats.process.kill()
    until("the node knows", lambda: node.admin.get("/readyz")[0] == 503)
    assert raw(node.mqtt_port).connect(token).code == 3
    with RawHttp(node.http_port) as http:
        response = http.ask("POST", f"/api/v1/{token}/rpc", '{"method":"getTime"}')
        assert (response.status, response.headers["retry-after"]) == (503, "1")
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.settimeout(PATIENCE_S)
        segments = [b"api", b"v1", token.encode(), b"rpc"]
        # The first option is Uri-Path (11), as are all that follow it, each with its length.
        first, *others = (bytes([0x0D, len(it) - 13]) if len(it) > 12 else bytes([len(it)]) for it in segments)
        heads = [bytes([0xB0 | first[0]]) + first[1:], *others]
        path = b"".join(head + segment for head, segment in zip(heads, segments, strict=True))
        client.sendto(b"\x40\x02\x00\x07" + path, (node.host, node.coap_port))
        answer = client.recv(1024)
        assert answer[:4] == b"\x60\xa3\x00\x07", answer


def test_a_node_with_devices_stays_ready_for_a_short_loss_of_nats(new_cluster, device):
    cluster = new_cluster(settings={"ingress.ready_without_nats_ms": "3000"})
    node, family = cluster.nodes[0], cluster.accounts.family()
    target = device(PahoV5, family.b).connect(node).become_callable(echo)
    caller = device(PahoV5, family.a).connect(node)
    cluster.nats.process.kill()
    until("it says so", lambda: "ingress: ready, though NATS is not reachable" in node.admin.get("/readyz")[1])
    assert node.admin.is_ready()
    cluster.nats.start()
    until("NATS is back", lambda: node.admin.value("switchboard_bus_connected") == 1 and "though" not in node.admin.get("/readyz")[1])
    until("calls are answered again", lambda: caller.send_msg(family.b, "1", timeout=2_000).text() == "1", within_s=40)
    cluster.nats.process.kill()
    until("it is unready when that lasts", lambda: node.admin.get("/readyz")[0] == 503)
    assert not target.ended.is_set() and not caller.ended.is_set(), "who is connected stays"


def test_services_wait_for_nats(new_cluster):
    cluster = new_cluster()
    cluster.nats.process.kill()
    for service in cluster.services:
        service.kill()
        service.start()
    for service in cluster.services:
        assert service.admin.get("/readyz")[0] == 503
        assert service.admin.get("/livez")[0] == 200
    cluster.nats.start()
    for service in cluster.services:
        service.wait_ready(within_s=40)


def test_readiness_follows_nats(new_cluster):
    cluster = new_cluster()
    cluster.nats.process.kill()
    for service in cluster.services:
        until(f"{service.name} is unready", lambda it=service: it.admin.get("/readyz")[0] == 503)
    cluster.nats.start()
    for service in cluster.services:
        service.wait_ready(within_s=40)
