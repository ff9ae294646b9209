"""Are applications told what happens? Who comes and goes, what changes, and which calls end, as the API streams it."""

import json
import os
import shutil
import socket
import subprocess
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import quote

import pytest
from harness.accounts import TENANT
from harness.apps import add_app, call
from harness.cluster import Cluster
from harness.devices import PahoV5
from harness.devices.device import echo
from harness.processes import run
from harness.programs import built
from harness.raw_http import RawHttp
from harness.sse import Listener
from harness.waiting import until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), nodes=2, routers=2, apis=2, settings={"api.max_listeners": "8", "api.request_timeout_ms": "60000"})
    yield cluster
    cluster.stop()


@pytest.fixture
def family(cluster):
    return cluster.accounts.family()


@pytest.fixture
def listen(cluster):
    opened = []

    def listen(app, query="", api=0, **headers):
        opened.append(Listener(cluster.apis[api].port, f"/v1/events{query}", {"Authorization": app.bearer} | headers))
        return opened[-1]

    yield listen
    for it in opened:
        it.close()


@pytest.fixture
def observer(cluster, family):
    return add_app(cluster.accounts, "--role", "observer", "--customer", family.customer)


def test_a_listener_is_told_who_comes_and_goes(cluster, family, observer, listen, device):
    other = cluster.accounts.family()
    there = device(PahoV5, family.a).connect(cluster.nodes[0]).become_callable()
    listener = listen(observer)
    assert listener.response.headers["content-type"] == "text/event-stream"
    snapshot = listener.next()
    assert (snapshot.kind, snapshot.data["more"]) == ("snapshot", False)
    shown = {it["name"]: it["online"] for it in snapshot.data["devices"]}
    assert shown == {family.a.name: True, family.b.name: False, family.c.name: False}

    # Of another customer's devices nothing is told.
    device(PahoV5, other.a).connect(cluster.nodes[0]).become_callable()
    came = device(PahoV5, family.b).connect(cluster.nodes[1]).become_callable()
    event = listener.next()
    assert event.kind == "presence"
    expected = {"id": family.b.id, "name": family.b.name, "online": True, "node": cluster.nodes[1].node_id, "protocol": "mqtt"}
    assert {name: event.data[name] for name in expected} == expected
    came.close()
    assert listener.next().data | {"customer": None} == {"id": family.b.id, "name": family.b.name, "customer": None, "online": False}
    # A newer session elsewhere: it has not gone.
    device(PahoV5, family.a).connect(cluster.nodes[1]).become_callable()
    assert listener.next().data["node"] == cluster.nodes[1].node_id
    until("the older session has ended", there.ended.is_set)

    # Devices of a node that dies go when its claims are swept.
    cluster.nodes[1].kill()
    assert (listener.until("presence", id=family.a.id).data["online"]) is False
    cluster.nodes[1].restart()


def test_a_listener_is_told_what_changes_in_the_registry(cluster, family, observer, listen):
    cli = cluster.accounts.cli
    listener = listen(observer, f"?kinds=registry&device={family.a.id}")
    assert [it["id"] for it in listener.next().data["devices"]] == [family.a.id]
    cli("device", "rename", family.b.id, f"{family.b.name} other").ok()
    cli("device", "label", "set", family.a.id, "zone=north").ok()
    event = listener.next()
    assert (event.kind, event.data["change"], event.data["labels"]) == ("registry", "changed", {"zone": "north"})
    cli("device", "unassign", family.a.id).ok()
    # Out of its reach: no word of what it is now.
    assert listener.next().data == {"change": "removed", "id": family.a.id}


def test_who_was_away_goes_on_at_either_copy(cluster, family, observer, listen, device):
    first = listen(observer)
    first.until("snapshot")
    target = device(PahoV5, family.a).connect(cluster.nodes[0]).become_callable()
    came = first.until("presence", online=True)
    first.close()
    target.close()
    here = listen(observer, **{"Last-Event-ID": came.id})
    assert here.next().data["online"] is False
    there = listen(observer, api=1, **{"Last-Event-ID": came.id})
    # It knows what came then, or says that it does not.
    event = there.next()
    assert (event.kind, event.data.get("online")) in (("presence", False), ("resync", None))
    for unknown in ("1-1", "x"):
        stranger = listen(observer, **{"Last-Event-ID": unknown})
        assert [stranger.next().kind for _ in range(2)] == ["resync", "snapshot"]


def test_an_outage_of_nats_is_told_and_nobody_is_offline_by_it(tmp_path, device):
    cluster = Cluster(tmp_path, apis=1)
    try:
        family = cluster.accounts.family()
        app = add_app(cluster.accounts, "--role", "observer", "--customer", family.customer)
        device(PahoV5, family.a).connect(cluster.nodes[0]).become_callable()
        port, shown = cluster.apis[0].port, {"Authorization": app.bearer}
        with Listener(port, "/v1/events", shown) as listener, Listener(port, "/v1/events?kinds=call", shown) as of_calls:
            listener.until("snapshot")
            assert of_calls.next().kind == "live"
            for are_claims_lost in (False, True):
                cluster.nats.process.kill()
                if are_claims_lost:
                    (claims,) = tmp_path.rglob("streams/KV_swb_claims")
                    shutil.rmtree(claims)
                cluster.nats.start()
                assert listener.next().kind == "resync"
                online = {it["id"]: it["online"] for it in listener.until("snapshot").data["devices"]}
                assert online == {family.a.id: True, family.b.id: False, family.c.id: False}
                assert of_calls.next().kind == "live"
            # It hears on, once all that are there have been told so again.
            with RawHttp(port) as http, ThreadPoolExecutor() as pool:
                heard = pool.submit(of_calls.until, "call", outcome="offline")
                until("a call is told", lambda: call(http, app, family.b.id) and heard.done())
                assert heard.result().data["target"]["device"] == family.b.id
    finally:
        cluster.stop()


def test_calls_are_told_to_whose_they_are(cluster, family, observer, listen, device):
    other, stranger = cluster.accounts.family(), add_app(cluster.accounts, "--role", "observer", "--customer", cluster.accounts.family().customer)
    everything = add_app(cluster.accounts, "--role", "observer")
    target = device(PahoV5, family.b).connect(cluster.nodes[1]).become_callable(echo)
    caller = device(PahoV5, family.a).connect(cluster.nodes[0])
    # At either copy; a listener of nothing else has neither a snapshot nor a place to go on from.
    own, whole = listen(observer, "?kinds=call"), listen(everything, "?kinds=call", api=1, **{"Last-Event-ID": "1-1"})
    others, narrow = listen(stranger, "?kinds=call"), listen(observer, f"?kinds=call,presence&device={family.c.id}")
    assert [it.next().kind for it in (own, whole, others)] == ["live"] * 3
    assert narrow.until("live").id is None
    assert caller.send_msg(family.b, "1").text() == "1"
    assert caller.send_msg(other.a, "2").text() != "2"
    with RawHttp(cluster.apis[1].port) as http:
        by_name = call(http, everything, quote(family.b.name), {"params": 3})
        assert by_name.body == "3"
        assert call(http, stranger, family.b.id).status == 404
        assert call(http, everything, family.c.id).json["outcome"] == "offline"
    a, b, c = ({"device": it.id, "name": it.name} for it in (family.a, family.b, family.c))
    app = {"app": everything.id}
    expected = [(a, b, "answered", "mqtt"), (a, None, "denied", "mqtt"), (None, b, "answered", None), (None, b, "unknown_device", None)]
    expected += [(None, c, "offline", None)]

    def told(listener, count):
        events = [listener.until("call") for _ in range(count)]
        assert all(it.id is None and it.data["ms"] >= 0 and it.data["endedMs"] > 1_600_000_000_000 for it in events)
        # Two processes' calls may be told in another order.
        return {it.data["callId"]: tuple(it.data.get(name) for name in ("caller", "target", "outcome", "protocol")) for it in events}

    own, whole = told(own, 5), told(whole, 5)
    assert sorted(own.values(), key=str) == sorted(expected, key=str)
    assert own[by_name.headers["switchboard-call"]] == (None, b, "answered", None)
    assert whole[by_name.headers["switchboard-call"]] == (app, b, "answered", None)
    # An application of the same tenant, whose call nobody took: told to who reaches the tenant as a whole.
    assert ({"app": stranger.id}, b, "unknown_device", None) in whole.values()
    assert told(narrow, 1) == {it: seen for it, seen in own.items() if seen[1] == c}
    assert [it[1:3] for it in told(others, 1).values()] == [(None, "unknown_device")]
    target.close()


def test_calls_that_are_too_many_are_counted(cluster, family, observer, listen):
    listener = listen(observer, "?kinds=call")
    listener.until("live")
    targets = {"targets": {"devices": [str(uuid.uuid4()) for _ in range(900)]}, "parallel": 900}
    began = time.monotonic()
    with RawHttp(cluster.apis[1].port) as http:
        kinds = {"Content_Type": "application/json", "Accept": "application/json"}
        assert http.ask("POST", "/v1/calls", json.dumps(targets), Authorization=observer.bearer, **kinds).status == 200
    seconds = time.monotonic() - began
    told = left_out = 0
    while told + left_out < 900:
        event = listener.next()
        told += event.kind == "call"
        left_out += event.data["calls"] if event.kind == "left_out" else 0
    assert told + left_out == 900
    # 200 a second, calls of others among them; of those seconds the first and the last may have begun already. Where
    # this machine is that slow, it is all.
    assert 0 < told <= 200 * (seconds + 2)


def test_the_command_tells_it(cluster, family, observer, device):
    address = f"http://127.0.0.1:{cluster.apis[0].port}"
    command = [built("switchboard"), "events", "--api", address, "--kinds", "presence", "--device", family.a.name, "--json"]
    listening = subprocess.Popen(command, env=os.environ | {"SWITCHBOARD_KEY": observer.key}, stdout=subprocess.PIPE, text=True)
    try:
        assert [it["name"] for it in json.loads(listening.stdout.readline())["data"]["devices"]] == [family.a.name]
        device(PahoV5, family.a).connect(cluster.nodes[0]).become_callable()
        event = json.loads(listening.stdout.readline())
        assert (event["event"], event["data"]["online"]) == ("presence", True)
    finally:
        listening.kill()
        listening.wait()
    refused = run(*command, env={"SWITCHBOARD_KEY": add_app(cluster.accounts).key})
    assert refused.code == 1 and "a key with the role observer or above" in refused.err


def test_who_may_not_is_told_why(cluster, family, observer, listen):
    caller = add_app(cluster.accounts)

    def refused(app, query=""):
        with RawHttp(cluster.apis[0].port) as http:
            response = http.ask("GET", f"/v1/events{query}", Authorization=app.bearer)
        return response.status, response.json["type"].rpartition(":")[2], response.json.get("field")

    assert refused(caller) == (403, "role_too_low", None)
    assert refused(observer, "?kinds=calls") == (422, "invalid_parameter", "kinds")
    assert refused(observer, "?customer=x") == (422, "invalid_parameter", "customer")
    assert refused(observer, "?devices=x") == (422, "invalid_parameter", "devices")
    assert refused(observer, f"?device={cluster.accounts.family().a.id}") == (404, "unknown_device", None)
    assert refused(observer, "&".join(["?device=x"] + ["device=x"] * 100)) == (422, "invalid_parameter", "device")
    listeners = [listen(observer, f"?device={family.a.id}") for _ in range(4)]
    assert refused(observer) == (429, "busy", None)
    assert cluster.apis[0].admin.value("switchboard_api_listeners") == 4
    # A key that ends takes its listeners with it.
    cluster.accounts.cli("app", "revoke", observer.name, "--yes").ok()
    for listener in listeners:
        listener.until("ended")
        assert listener.next() is None
    until("their places are free", lambda: cluster.apis[0].admin.value("switchboard_api_listeners") == 0)


def test_who_does_not_read_is_cut_off_and_told(cluster, family, observer, tmp_path):
    port = cluster.apis[0].port
    slow = socket.socket()
    slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    slow.connect(("127.0.0.1", port))
    slow.sendall(f"GET /v1/events?kinds=registry HTTP/1.1\r\nHost: x\r\nAuthorization: {observer.bearer}\r\n\r\n".encode())
    before = cluster.apis[0].admin.value("switchboard_api_overruns_total")
    until("it listens", lambda: cluster.apis[0].admin.value("switchboard_api_listeners") == 1)
    # More than sockets hold, and a thousand besides.
    labels = {f"label{number}": "x" * 255 for number in range(10)}
    rows = [
        {"name": f"{family.customer} {number}", "tenant": TENANT, "customer": family.customer, "labels": labels}
        for number in range(6_000)
    ]
    file = tmp_path / "many.json"
    file.write_text(json.dumps(rows))
    cluster.accounts.cli("device", "import", str(file)).ok()
    slow.settimeout(30)
    text = b""
    # The end of the chunks: the connection itself may be used again.
    while not text.endswith(b"\r\n0\r\n\r\n"):
        text += slow.recv(65_536)
    slow.close()
    assert b"event: overrun" in text
    until("it is counted", lambda: cluster.apis[0].admin.value("switchboard_api_overruns_total") == before + 1)
