"""Whose policies hold, and when? A tenant's own, at once, and again when a call that waited is delivered."""

import json

import pytest
from harness import said
from harness.accounts import identity
from harness.devices import PROTOCOLS
from harness.devices.device import echo
from harness.waiting import until

KINDS = pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.protocol)
ROOMS = """permit (principal is Device, action, resource) when {
  principal.hasTag("room") && resource.hasTag("room") && principal.getTag("room") == resource.getTag("room")
};
"""


@pytest.fixture
def policed(shared_cluster, request, tmp_path):
    """Two devices of one room, in a tenant of their own that has a policy about rooms and no other."""
    tenant = f"Tenant of {request.node.name}"
    pair = [identity(f"{name} of {tenant}", tenant=tenant) for name in ("lamp", "door")]
    cluster, cli = shared_cluster, shared_cluster.accounts.cli
    cluster.accounts.add(*pair)
    for it in pair:
        cli("device", "label", "set", it.id, "room=12").ok()
    rooms = tmp_path / "rooms.cedar"
    rooms.write_text(ROOMS)
    cli("policy", "put", str(rooms), "--tenant", tenant).ok()
    cli("policy", "remove", "built-in", "--tenant", tenant).ok()
    return pair


def all_say(what, ask, expected):
    """Every authorizer does: which one is asked is chance, and twelve times the same no accident."""
    until(what, lambda: all(ask() == expected for _ in range(12)))


def waiting_calls(cluster):
    return sum(it.admin.value("switchboard_router_calls_waiting") for it in cluster.routers)


@KINDS
def test_what_changes_is_in_force_at_once(shared_cluster, policed, device, kind):
    lamp, door = policed
    cli = shared_cluster.accounts.cli
    target = device(kind, door).connect(shared_cluster.nodes[1]).become_callable(echo)
    caller = device(kind, lamp).connect(shared_cluster.nodes[0])
    all_say("the policy is in force", lambda: caller.send_msg(door, "1").text(), "1")
    listed = json.loads(caller.ask('{"method":"getDevices"}').text())
    assert [it["id"] for it in listed] == [door.id]
    cli("device", "label", "set", door.id, "room=14").ok()
    all_say("another room", lambda: caller.send_msg(door, "2").text(), said.DENIED)
    assert caller.ask('{"method":"getDevices"}').text() == "[]"
    assert not target.ended.is_set(), "labels end no session"


@KINDS
def test_a_call_that_waited_is_judged_when_it_is_delivered(shared_cluster, policed, device, kind):
    lamp, door = policed
    caller = device(kind, lamp).connect(shared_cluster.nodes[0])
    all_say("the policy is in force", lambda: caller.send_msg(door, "0").text(), said.OFFLINE)
    waiting = caller.send_msg(door, "1", timeout=20_000, connectTimeout=20_000)
    until("it waits", lambda: waiting_calls(shared_cluster) >= 1)
    shared_cluster.accounts.cli("device", "label", "set", door.id, "room=14").ok()
    other = device(kind, lamp).connect(shared_cluster.nodes[1])
    all_say("another room", lambda: other.send_msg(door, "2").text(), said.DENIED)
    target = device(kind, door).connect(shared_cluster.nodes[1]).become_callable(echo)
    assert waiting.text() == said.DENIED
    assert target.calls.empty()


def test_a_waiting_call_between_customers(shared_cluster, family, device):
    """The built-in rule as well: a device that was moved meanwhile is another customer's."""
    kind, other = PROTOCOLS[0], shared_cluster.accounts.family()
    caller = device(kind, family.a).connect(shared_cluster.nodes[0])
    waiting = caller.send_msg(family.b, "1", timeout=20_000, connectTimeout=20_000)
    until("it waits", lambda: waiting_calls(shared_cluster) >= 1)
    shared_cluster.accounts.cli("device", "assign", family.b.id, other.customer).ok()
    witness = device(kind, family.c).connect(shared_cluster.nodes[1])
    all_say("it has moved", lambda: witness.send_msg(family.b, "2").text(), said.DENIED)
    device(kind, family.b).connect(shared_cluster.nodes[1]).become_callable(echo)
    assert waiting.text() == said.DENIED
