"""When the registry changes, what happens to those who are connected? Their sessions end, and calls are judged anew."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
from harness import said
from harness.accounts import TOKENS, Identity
from harness.devices import PROTOCOLS, CoapDevice, HttpDevice, PahoV5
from harness.devices.device import echo
from harness.raw_mqtt import RawMqtt
from harness.waiting import until

KINDS = pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.protocol)
# What a device without a connection reads, once it is nobody.
REFUSED = '{"error":"No device has this access token!"}'


@pytest.fixture
def talking(shared_cluster, family, device):
    """A caller, and a target on the other node, that have talked."""

    def make(kind):
        target = device(kind, family.b).connect(shared_cluster.nodes[1]).become_callable(echo)
        caller = device(kind, family.a).connect(shared_cluster.nodes[0])
        assert caller.send_msg(family.b, "1").text() == "1"
        return caller, target

    return make


def change(cluster, *arguments):
    cluster.accounts.cli("device", *arguments).ok()
    return time.monotonic()


def soon(what, ask, expected):
    """Within a second every authorizer judges by the new state; half a second more for a busy machine."""
    until(what, lambda: ask() == expected, within_s=1.5)


def ended_within_a_second(device, changed):
    assert device.ended.wait(10), "the session must end"
    # Half a second more than promised, for a busy machine.
    assert time.monotonic() - changed < 1.5


@KINDS
def test_a_removed_device(shared_cluster, family, talking, raw, kind):
    caller, target = talking(kind)
    ended_within_a_second(target, change(shared_cluster, "remove", "--yes", family.b.id))
    soon("it is unknown", lambda: caller.send_msg(family.b, "2").text(), said.UNKNOWN_DEVICE)
    soon("so is its token", lambda: raw(shared_cluster.nodes[0].mqtt_port).connect(family.b.token).code, 5)


@KINDS
def test_a_removed_caller(shared_cluster, family, talking, kind):
    caller, target = talking(kind)
    changed = change(shared_cluster, "remove", "--yes", family.a.id)
    if kind in (HttpDevice, CoapDevice):
        # Without a connection there is none to end: it is refused from its next request on.
        soon("it is nobody", lambda: caller.ask('{"method":"getTime"}').text(), REFUSED)
    else:
        ended_within_a_second(caller, changed)
    assert not target.ended.is_set()


@KINDS
def test_a_rotated_token(shared_cluster, family, talking, device, raw, kind):
    caller, target = talking(kind)
    printed = shared_cluster.accounts.cli("device", "rotate-token", family.b.id, "--yes", "--json").ok()
    changed = time.monotonic()
    ended_within_a_second(target, changed)
    soon("it is void", lambda: raw(shared_cluster.nodes[0].mqtt_port).connect(family.b.token).code, 5)
    assert caller.send_msg(family.b, "2").text() == said.OFFLINE
    renewed = identity_of(printed, family.b)
    soon("the new one is good", lambda: raw(shared_cluster.nodes[0].mqtt_port).connect(renewed.token).code, 0)
    device(kind, renewed).connect(shared_cluster.nodes[0]).become_callable(echo)
    assert caller.send_msg(family.b, "3").text() == "3"


@KINDS
def test_a_device_that_is_moved_to_another_customer(shared_cluster, family, talking, device, kind):
    caller, target = talking(kind)
    elsewhere = shared_cluster.accounts.family()
    ended_within_a_second(target, change(shared_cluster, "assign", family.b.id, elsewhere.customer))
    soon("it is a stranger", lambda: caller.send_msg(family.b, "2").text(), said.DENIED)
    device(kind, family.b).connect(shared_cluster.nodes[0]).become_callable(echo)
    soon("it stays one", lambda: caller.send_msg(family.b, "3").text(), said.DENIED)
    neighbour = device(kind, elsewhere.a).connect(shared_cluster.nodes[0])
    assert neighbour.send_msg(family.b, "4").text() == "4"


@pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5"])
def test_no_connection_outlives_a_token_that_was_rotated_while_it_connected(new_cluster, version):
    # As many as come: the oldest would be ended for another reason.
    cluster = new_cluster(settings={"ingress.max_connections_per_device": "10000", "shares.per_customer_percent": "100"})
    family, port, over = cluster.accounts.family(), cluster.nodes[0].mqtt_port, Event()

    def connect() -> list[RawMqtt]:
        connected = []
        while not over.is_set():
            client = RawMqtt(port, version)
            if client.connect(family.b.token).code != 0:
                client.socket.close()
                return connected
            connected.append(client)
        return connected

    with ThreadPoolExecutor(6) as pool:
        connecting = [pool.submit(connect) for _ in range(6)]
        change(cluster, "rotate-token", family.b.id, "--yes", "--json")
        try:
            connected = [client for it in connecting for client in it.result(20)]
        finally:
            over.set()
    assert connected
    for client in connected:
        if version == 5:
            client.expect_disconnect(0x98)
        assert client.receive() is None, "a connection lives on under a token that is void"


@pytest.mark.parametrize("kind", [HttpDevice, CoapDevice], ids=lambda kind: kind.protocol)
def test_no_visit_outlives_a_token_that_was_rotated_while_it_began(shared_cluster, family, device, kind):
    def ask(_: int) -> str:
        it = kind(family.b)
        it._port = shared_cluster.nodes[0].http_port
        if kind is CoapDevice:
            it.connect(shared_cluster.nodes[0])
        try:
            return it.ask('{"method":"getTime"}').text()
        finally:
            it.close()

    assert ask(0) != REFUSED
    with ThreadPoolExecutor(6) as pool:
        asked = pool.map(ask, range(300))
        change(shared_cluster, "rotate-token", family.b.id, "--yes", "--json")
        list(asked)
    soon("it is nobody", lambda: ask(0), REFUSED)


def test_an_unassigned_device(shared_cluster, family, talking, device):
    caller, target = talking(PahoV5)
    ended_within_a_second(target, change(shared_cluster, "unassign", family.b.id))
    soon("it is nobody's", lambda: caller.send_msg(family.b, "2").text(), said.DENIED)
    alone = device(PahoV5, family.b).connect(shared_cluster.nodes[0])
    soon("it hears so", alone.get_devices, said.UNASSIGNED)


def test_a_renamed_device_keeps_its_session(shared_cluster, family, talking):
    caller, target = talking(PahoV5)
    change(shared_cluster, "rename", family.b.id, f"Renamed {family.b.id}")
    assert caller.send_msg(family.b, "2").text() == "2"
    soon("it is listed so", lambda: f"Renamed {family.b.id}" in caller.get_devices(), True)
    assert not target.ended.is_set()


def test_a_v5_device_is_told(shared_cluster, family, raw):
    client = raw(shared_cluster.nodes[0].mqtt_port, 5)
    client.connect(family.a.token)
    change(shared_cluster, "remove", "--yes", family.a.id)
    client.expect_disconnect(0x98)


def test_a_change_while_nobody_could_tell(new_cluster, device):
    cluster = new_cluster()
    family = cluster.accounts.family()
    target = device(PahoV5, family.b).connect(cluster.nodes[0]).become_callable(echo)
    caller = device(PahoV5, family.a).connect(cluster.nodes[0])
    assert caller.send_msg(family.b, "1").text() == "1"
    cluster.authorizers[0].kill()
    change(cluster, "remove", "--yes", family.b.id)
    assert caller.send_msg(family.b, "2").text() == said.UNAVAILABLE
    cluster.authorizers[0].restart()
    assert target.ended.wait(10), "the session of a device that is gone must end"
    assert caller.send_msg(family.b, "3").text() == said.UNKNOWN_DEVICE
    assert not caller.ended.is_set()


def identity_of(printed, old):
    token = json.loads(printed.out)["token"]
    TOKENS.add(token)
    return Identity(old.id, old.name, token, old.tenant, old.customer)

