"""Who is connected where, when it is hard to tell? Claims across nodes, sessions that take over from each other, nodes that die."""

import json
import signal
import threading
import time

import pytest
from harness import said
from harness.devices import PahoV5, PahoV311
from harness.devices.device import answering, echo
from harness.raw_mqtt import DISCONNECT, PUBLISH, SUBACK
from harness.waiting import until

REQUESTS = "v1/devices/me/rpc/request/+"


@pytest.fixture
def callable_raw(raw):
    """A raw session that is callable."""

    def make(node, identity, version=5):
        session = raw(node.mqtt_port, version)
        assert session.connect(identity.token).code == 0
        assert session.subscribe(REQUESTS).codes == [0]
        return session

    return make


def answer_next(session, text):
    delivery = session.expect(PUBLISH)
    session.publish(delivery.topic.replace("request", "response"), text)


def test_a_claim_is_seen_everywhere_with_its_suback(shared_cluster, family, device, callable_raw):
    nodes = shared_cluster.nodes
    callers = [device(PahoV311, family.a).connect(nodes[0]), device(PahoV5, family.c).connect(nodes[1])]
    for round_number in range(60):
        target = callable_raw(nodes[round_number % 2], family.b)
        caller = callers[(round_number // 2) % 2]
        answer = caller.send_msg(family.b, "1")
        answer_next(target, str(round_number))
        assert answer.text() == str(round_number)
        if round_number % 3 == 0:
            target.disconnect()
            assert caller.send_msg(family.b, "1").text() in (said.OFFLINE, said.LOST)
        if round_number % 3 == 1:
            target.socket.close()


@pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5"])
@pytest.mark.parametrize("to_node", [0, 1], ids=["same-node", "other-node"])
def test_the_newest_callable_session_wins(shared_cluster, family, device, callable_raw, raw, version, to_node):
    nodes = shared_cluster.nodes
    older = callable_raw(nodes[0], family.b, version)
    only_calls = raw(nodes[0].mqtt_port)
    only_calls.connect(family.b.token)
    newer = callable_raw(nodes[to_node], family.b, version)
    if version == 5:
        older.expect_disconnect(0x8E)
    else:
        older.expect_closed()
    only_calls.ping()
    answer = device(PahoV5, family.a).connect(nodes[1]).send_msg(family.b, "1")
    answer_next(newer, '"newer"')
    assert answer.text() == '"newer"'


def test_clients_that_fight_over_a_device_are_slowed_and_seen(new_cluster, raw):
    cluster = new_cluster()
    node, identity = cluster.nodes[0], cluster.accounts.family().a
    took = []
    for _ in range(17):
        session = raw(node.mqtt_port, 5)
        session.connect(identity.token)
        started = time.monotonic()
        assert session.subscribe(REQUESTS).codes == [0]
        took.append(time.monotonic() - started)
    # The first takes over from nobody, and twelve takeovers are nothing special.
    assert max(took[:14]) < 0.25 <= took[14] < took[15] < took[16]
    assert node.admin.value("switchboard_takeovers_total") == 16
    assert node.admin.value("switchboard_claims_delayed_total") == 3
    told = node.process.wait_for_messages("clients take this device over from each other: its sessions begin later", 1)
    assert [line["device"] for line in told] == [identity.id]
    # Others are not slowed, and the newest still wins.
    session.ping()
    other = raw(node.mqtt_port)
    other.connect(cluster.accounts.family().a.token)
    started = time.monotonic()
    other.subscribe(REQUESTS)
    assert time.monotonic() - started < 0.25


def test_a_call_that_is_open_when_its_session_is_taken_over_is_lost(shared_cluster, family, device, callable_raw):
    nodes = shared_cluster.nodes
    older = callable_raw(nodes[0], family.b)
    caller = device(PahoV5, family.a).connect(nodes[1])
    answer = caller.send_msg(family.b, "1", timeout=60_000)
    older.expect(PUBLISH)
    callable_raw(nodes[1], family.b)
    assert answer.text() == said.LOST


@pytest.mark.parametrize("leave", ["stay", "close", "disconnect"])
def test_a_storm_of_reconnects_leaves_the_last_one_callable(shared_cluster, family, device, callable_raw, leave):
    nodes = shared_cluster.nodes
    caller = device(PahoV5, family.a).connect(nodes[0])
    for round_number in range(25):
        session = callable_raw(nodes[round_number % 2], family.b)
        if round_number < 24 and leave == "close":
            session.socket.close()
        if round_number < 24 and leave == "disconnect":
            session.disconnect()
    for number in range(30):
        answer = caller.send_msg(family.b, "1")
        answer_next(session, str(number))
        assert answer.text() == str(number)


def test_many_sessions_at_once_leave_exactly_one(shared_cluster, family, device, raw):
    nodes = shared_cluster.nodes
    sessions = []

    def connect(number):
        session = raw(nodes[number % 2].mqtt_port, 5)
        session.connect(family.b.token)
        session.subscribe(REQUESTS)
        sessions.append(session)

    threads = [threading.Thread(target=connect, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    caller = device(PahoV5, family.a).connect(nodes[0])
    # The answer to a call tells which one is left; all others are told that they were taken over.
    answer = caller.send_msg(family.b, "1", timeout=20_000, connectTimeout=5_000)
    left = []
    for session in sessions:
        packet = session.receive()
        if packet.kind == PUBLISH:
            left.append(session)
            session.publish(packet.topic.replace("request", "response"), '"left"')
        else:
            assert packet.kind == DISCONNECT and packet.code == 0x8E
    assert len(left) == 1
    assert answer.text() == '"left"'


def test_a_node_that_dies(new_cluster, device):
    cluster = new_cluster(nodes=2)
    family = cluster.accounts.family()
    dying, living = cluster.nodes
    device(PahoV5, family.b).connect(dying).become_callable()
    device(PahoV5, family.c).connect(dying).become_callable()
    caller = device(PahoV5, family.a).connect(living)
    open_answer = caller.send_msg(family.b, "1", timeout=60_000)
    gone = caller.send_msg(family.b, "0", timeout=60_000, oneway=True)
    assert gone.text() == "null"
    dying.kill()
    killed = time.monotonic()
    # What was sent before NATS noticed went to the dead; afterwards a caller hears at once that nobody is there.
    until("NATS has noticed", lambda: caller.send_msg(family.c, "0", timeout=200).text() == said.OFFLINE)
    assert caller.send_msg(family.b, "2").text(within_s=2) == said.OFFLINE
    # The other device comes back elsewhere, and is reachable with its SUBACK.
    device(PahoV5, family.c).connect(living).become_callable(answering('"back"'))
    assert caller.send_msg(family.c, "3").text() == '"back"'
    # The open call need not wait its minute out: the lease is 3 s, and a router may have heard it anew just before.
    assert open_answer.text(within_s=12) == said.LOST
    assert time.monotonic() - killed < 12


def test_presence_forgets_a_dead_node(new_cluster, device):
    cluster = new_cluster(nodes=2)
    family = cluster.accounts.family()
    device(PahoV5, family.b).connect(cluster.nodes[0]).become_callable()
    caller = device(PahoV5, family.a).connect(cluster.nodes[1])
    until("it is online", lambda: '"online":true' in caller.get_devices({"online": True}))
    until(
        "its claim is seen",
        lambda: all(router.admin.value("switchboard_router_claims") == 1 for router in cluster.routers),
    )
    cluster.nodes[0].kill()
    until("its node's lease is over", lambda: '"online":true' not in caller.get_devices({"online": True}))
    until(
        "its claim is removed",
        lambda: all(router.admin.value("switchboard_router_claims") == 0 for router in cluster.routers),
    )


def test_a_node_that_slept_too_long_claims_again(new_cluster, device):
    cluster = new_cluster(nodes=2)
    family = cluster.accounts.family()
    sleeping, awake = cluster.nodes
    target = device(PahoV5, family.b).connect(sleeping).become_callable(echo)
    device(PahoV5, family.c).connect(sleeping).become_callable(answering('"elsewhere"'))
    caller = device(PahoV5, family.a).connect(awake)
    assert caller.send_msg(family.b, "1").text() == "1"
    claims = "switchboard_router_claims"
    # The gauge lags by up to a second: before it has shown them, that there are none says nothing.
    until("its claims are seen", lambda: all(it.admin.value(claims) == 2 for it in cluster.routers))
    sleeping.process.signal(signal.SIGSTOP)
    until("its claims are removed", lambda: all(it.admin.value(claims) == 0 for it in cluster.routers), within_s=30)
    # One of its devices has meanwhile come back by another node, and stays there.
    device(PahoV5, family.c).connect(awake).become_callable(answering('"here"'))
    sleeping.process.signal(signal.SIGCONT)
    until("it is reachable again", lambda: caller.send_msg(family.b, "2", timeout=2000).text() == "2")
    assert caller.send_msg(family.c, "3").text() == '"here"'
    assert sleeping.admin.value("switchboard_claims_lacking_total") > 0
    assert not target.ended.is_set()


def test_a_session_whose_client_has_gone_takes_nothing_back(new_cluster, raw):
    cluster = new_cluster(nodes=2)
    (router,) = cluster.routers
    left, now_at = cluster.nodes
    families = [cluster.accounts.family() for _ in range(4)]
    devices = [identity for family in families for identity in (family.a, family.b, family.c)]

    def connected(node):
        sessions = [raw(node.mqtt_port, 5) for _ in devices]
        for session, identity in zip(sessions, devices, strict=True):
            assert session.connect(identity.token).code == 0
        return sessions

    older, newer = connected(left), connected(now_at)
    # No router answers. Each client gives up at one node, which goes on to ask for its claim, and asks at the other.
    router.process.signal(signal.SIGSTOP)
    for session in older:
        session.send_subscribe(REQUESTS)
        session.socket.close()
        time.sleep(0.05)
    for session in newer:
        session.send_subscribe(REQUESTS)
        time.sleep(0.05)
    time.sleep(1)
    router.process.signal(signal.SIGCONT)
    for session in newer:
        assert session.expect(SUBACK).codes == [0]
    asked = "switchboard_claim_seconds_count"
    until("the other node has asked for the last time", lambda: left.admin.value(asked) == len(devices))
    for session in newer:
        session.ping()


def test_a_router_that_has_just_started_knows_every_claim(new_cluster, device):
    cluster = new_cluster(nodes=2)
    family = cluster.accounts.family()
    device(PahoV5, family.b).connect(cluster.nodes[0]).become_callable(echo)
    caller = device(PahoV5, family.a).connect(cluster.nodes[1])
    for _ in range(3):
        cluster.add_router()
        cluster.routers.pop(0).kill()
        for number in range(10):
            assert caller.send_msg(family.b, str(number)).text() == str(number)


@pytest.mark.parametrize("end", ["kill", "term"])
def test_nats_loses_its_memory(new_cluster, device, end):
    cluster = new_cluster(nodes=2, routers=2, authorizers=2)
    family = cluster.accounts.family()
    target = device(PahoV5, family.b).connect(cluster.nodes[0]).become_callable(echo)
    caller = device(PahoV5, family.a).connect(cluster.nodes[1])
    assert caller.send_msg(family.b, "1").text() == "1"
    if end == "kill":
        cluster.nats.process.kill()
    else:
        cluster.nats.stop()
    assert caller.send_msg(family.b, "2", timeout=1000).text() == said.UNAVAILABLE
    cluster.nats.start()
    until("calls work again", lambda: caller.send_msg(family.b, "3", timeout=2000).text() == "3", within_s=40)
    for service in cluster.services:
        service.wait_ready(within_s=40)
    for number in range(20):
        assert caller.send_msg(family.b, str(number)).text() == str(number)
    assert not target.ended.is_set() and not caller.ended.is_set(), "no session had to reconnect"
    # The store works as before: the next session overtakes, and its end is heard.
    newer = device(PahoV5, family.b).connect(cluster.nodes[1]).become_callable(answering('"newer"'))
    assert target.ended.wait(10)
    assert caller.send_msg(family.b, "4").text() == '"newer"'
    newer.close()
    # Nobody is offline for a router until it has heard what each node holds.
    until("it is offline", lambda: caller.send_msg(family.b, "5").text() == said.OFFLINE)


def test_a_lease_that_is_not_renewed_is_said_once(new_cluster):
    cluster = new_cluster(settings={"ingress.lease_ms": "1000"})
    node = cluster.nodes[0]

    def said_so(text):
        return [line for line in node.process.log_lines() if line["message"] == text]

    cluster.nats.stop()
    until("it is said", lambda: said_so("the node's lease was not renewed"))
    failed_at = time.monotonic()
    # Meanwhile it is tried three times a second.
    until("it has been tried again and again", lambda: time.monotonic() > failed_at + 2)
    cluster.nats.start()
    (again,) = until("it is over", lambda: said_so("the node's lease is renewed again"))
    assert again["after_s"] >= 2
    assert len(said_so("the node's lease was not renewed")) == 1


def test_a_session_that_ended_while_nats_was_away_is_offline_afterwards(new_cluster, device):
    cluster = new_cluster(nodes=2)
    family = cluster.accounts.family()
    target = device(PahoV5, family.b).connect(cluster.nodes[0]).become_callable(echo)
    caller = device(PahoV5, family.a).connect(cluster.nodes[1])
    assert caller.send_msg(family.b, "1").text() == "1"
    cluster.nats.process.kill()
    target.vanish()
    cluster.nats.start()
    until("calls are judged again", lambda: caller.send_msg(family.b, "1", timeout=2000).text() != said.UNAVAILABLE, 40)
    assert caller.send_msg(family.b, "2").text() == said.OFFLINE


def test_two_clients_with_one_token_show_at_their_device(shared_cluster, family, device):
    here, there = shared_cluster.nodes

    def shown(*more):
        return shared_cluster.accounts.cli("device", "show", family.b.id, *more).ok()

    older = device(PahoV5, family.b).connect(here).become_callable(echo)
    assert json.loads(shown("--json").out)["takeovers"] == 0
    assert "have two clients" not in shown().err
    device(PahoV5, family.b).connect(there).become_callable(echo)
    until("the older session has ended", older.ended.is_set)
    # Each router follows the claims for itself.
    until("it is shown", lambda: json.loads(shown("--json").out)["takeovers"] == 1)
    until("so in words", lambda: "took over from another 1 time(s): have two clients its token?" in shown().err)
