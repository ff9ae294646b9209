"""When the registry changes, what happens to those who are connected? Their sessions end, and calls are judged anew."""

import json
import time

import pytest
from harness import said
from harness.accounts import TOKENS, Identity
from harness.devices import MqttJs, PahoV5, PahoV311
from harness.devices.device import echo
from harness.waiting import until

KINDS = pytest.mark.parametrize("kind", [PahoV311, PahoV5, MqttJs], ids=lambda kind: kind.protocol)


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
    ended_within_a_second(caller, change(shared_cluster, "remove", "--yes", family.a.id))
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

