"""What does a device read over CoAP? Codes, observation and its end, and what libcoap's client makes of it."""

import contextlib
import json
import socket
import subprocess
import time

import pytest
from aiocoap import ACK, CON, GET, POST, PUT, Message, Unreliable
from harness import said
from harness.accounts import identity
from harness.asked import TIME, send_msg
from harness.devices import CoapDevice, PahoV5, PahoV311
from harness.devices.device import answering, echo
from harness.nats_listener import NatsListener
from harness.raw_http import RawHttp, rpc
from harness.waiting import until


@pytest.fixture
def a(node, family, device):
    return device(CoapDevice, family.a).connect(node)


def test_codes(a, family):
    for code, path, body, expected in [
        (POST, "rpc", TIME, "2.05"),
        (POST, "rpc", send_msg(family.b), "2.05"),
        (POST, "rpc", send_msg(family.b, timeout=0), "2.05"),
        (POST, "rpc", '{"method":"getFoo"}', "2.05"),
        (POST, "rpc", "", "4.00"),
        (POST, "rpc", "[]", "4.00"),
        (POST, "rpc", '{"method":"sendMsg","params":{"deviceId":"A2"}}', "4.00"),
        (GET, "rpc", "", "4.00"),
        (PUT, "rpc", TIME, "4.05"),
        (POST, "rpc/1", "1", "4.04"),
        (POST, "rpc/first", "1", "4.04"),
        (POST, "rpc/99999999999", "1", "4.04"),
        (POST, "telemetry", '{"t":1}', "2.04"),
        (POST, "attributes", "{", "4.00"),
        (POST, "telemetry", "", "4.00"),
        (POST, "telemetry", "t=1", "4.00"),
        (GET, "attributes", "", "2.05"),
        (GET, "attributes?clientKeys=a,b&sharedKeys=c", "", "2.05"),
        (PUT, "attributes", "{}", "4.05"),
        (GET, "telemetry", "", "4.05"),
        (POST, "firmware", "", "4.04"),
        (POST, "rpc", json.dumps("x" * 70_000), "4.13"),
    ]:
        assert a.request(code, path, body)[0] == expected, (code, path, body[:80])
    for options, expected in [({"accept": 50}, "2.05"), ({"accept": 60}, "4.06"), ({"if_none_match": True}, "4.02")]:
        assert a.request(POST, "rpc", TIME, **options)[0] == expected, options
    assert a.request(POST, "rpc", TIME, transport_tuning=Unreliable)[0] == "2.05"


def test_an_unknown_token(node, device):
    nobody = device(CoapDevice, identity("Nobody")).connect(node)
    for path in ("rpc", "rpc/1", "telemetry"):
        assert nobody.request(POST, path, TIME)[0] == "4.01", path
    assert nobody.request(GET, "attributes")[0] == "4.01"


def test_attributes_are_none_and_observing_them_is_no_session(node, a, family, device):
    target = device(CoapDevice, family.b).connect(node)
    assert target.request(GET, "attributes?sharedKeys=led") == ("2.05", "{}")
    observers = node.admin.value("switchboard_coap_observers")
    for _ in range(2):
        assert target.observes("attributes") == ("2.05", "{}")
    assert a.send_msg(family.b, "1").text() == said.OFFLINE
    assert node.admin.value("switchboard_coap_observers") == observers


def test_with_libcoap(node, family):
    base = f"coap://127.0.0.1:{node.coap_port}"
    url = f"{base}/api/v1/{family.a.token}/rpc"

    def client(*arguments):
        command = ["coap-client-notls", "-B", "20", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()

    assert client("-m", "get", f"{base}/.well-known/core") == '</api/v1>;rt="device-api";ct=50'
    assert json.loads(client("-m", "post", "-e", TIME, url))["time"] > 1e12
    # Not to be confirmed, and in blocks of 64 bytes both ways.
    assert json.loads(client("-N", "-m", "post", "-e", TIME, url))["time"] > 1e12
    assert client("-b", "64", "-m", "post", "-e", send_msg(family.b, json.dumps("x" * 500)), url) == said.OFFLINE


def test_an_answer_must_be_json_and_comes_once(node, a, family, device):
    target = device(CoapDevice, family.b).connect(node).become_callable()
    answer = a.send_msg(family.b, "1")
    target.next_call()
    path = f"rpc/{target.last_number}"
    for text in ("", "ok", "{", "1 2"):
        assert target.request(POST, path, text)[0] == "4.00", text
    assert not answer.is_there()
    assert target.request(POST, path, ' {"a" : 1}')[0] == "2.04"
    assert answer.text() == ' {"a" : 1}'
    assert target.request(POST, path, "1")[0] == "4.04"


def test_an_answer_that_is_no_answer_is_told_from_none(node, a, family, device):
    """MQTT 3.1.1 knows no refusal: the target cannot be told, and the call ends at once."""
    device(PahoV311, family.b).connect(node).become_callable(answering("ok"))
    started = time.monotonic()
    expected = ("2.05", '{"error":"Response of the remote device is not valid!"}')
    assert a.request(POST, "rpc", send_msg(family.b, timeout=20_000)) == expected
    assert time.monotonic() - started < 10


@pytest.mark.parametrize("where", ["within", "across"])
@pytest.mark.parametrize("newer", [CoapDevice, PahoV5], ids=lambda kind: kind.protocol)
def test_a_newer_session_takes_over(shared_cluster, node, a, family, device, newer, where):
    older = device(CoapDevice, family.b).connect(node).become_callable(answering('"older"'))
    assert a.send_msg(family.b, "1").text() == '"older"'
    other = shared_cluster.nodes[1] if where == "across" else node
    device(newer, family.b).connect(other).become_callable(answering('"newer"'))
    assert older.ended.wait(10) and older.end_code == "4.09"
    assert a.send_msg(family.b, "2").text() == '"newer"'


def test_a_device_may_answer_at_another_node(shared_cluster, family, device):
    """The number says which node gave the call; what that says of the answer is what the device reads."""
    here, there = shared_cluster.nodes
    caller = device(PahoV5, family.a).connect(here)
    target = device(CoapDevice, family.b).connect(here).become_callable()
    other, another = device(CoapDevice, family.b).connect(there), device(CoapDevice, family.c).connect(there)

    def called(**params):
        answer = caller.send_msg(family.b, "1", **params)
        target.next_call()
        return answer, f"rpc/{target.last_number}"

    for body in ('"there"', json.dumps("x" * 60_000)):
        answer, path = called()
        assert other.request(POST, path, "ok")[0] == "4.00", "it is not JSON, and the call stays open"
        assert another.request(POST, path, body)[0] == "4.04", "another device's token"
        assert other.request(POST, path, body) == ("2.04", "")
        assert answer.text() == body
        assert [it.request(POST, path, body)[0] for it in (other, target)] == ["4.04", "4.04"]
    answer, path = called(oneway=True)
    assert answer.text() == "null"
    assert other.request(POST, path, "1")[0] == "4.04"
    # HTTP's numbers are others, though a call of either has the same node's tag.
    answer, path = called()
    with RawHttp(there.http_port) as http:
        assert http.ask("POST", rpc(family.b, path.removeprefix("rpc")), "1").status == 404
    assert target.request(POST, path, "2")[0] == "2.04"
    assert answer.text() == "2"


def test_coap_takes_over(node, a, family, device):
    older = device(PahoV5, family.b).connect(node).become_callable(echo)
    device(CoapDevice, family.b).connect(node).become_callable(answering('"newer"'))
    assert older.ended.wait(10)
    assert a.send_msg(family.b, "1").text() == '"newer"'


def test_a_rotated_token_is_void_at_once(shared_cluster, node, a, family, device):
    target = device(CoapDevice, family.b).connect(node).become_callable(echo)
    assert a.send_msg(family.b, "1").text() == "1"
    shared_cluster.accounts.cli("device", "rotate-token", "--yes", family.b.id).ok()
    assert target.ended.wait(10) and target.end_code == "4.01"
    until("the old token is unknown", lambda: target.request(POST, "rpc", TIME)[0] == "4.01")
    assert a.send_msg(family.b, "2").text() == said.OFFLINE


def test_telemetry_and_attributes_reach_nats(shared_cluster, a):
    with NatsListener(shared_cluster.nats.url, f"swb.uplink.*.{a.identity.id}.*") as listener:
        for kind, body in (("telemetry", '{"t": 1}'), ("attributes", json.dumps("y" * 5_000))):
            assert a.request(POST, kind, body)[0] == "2.04"
            subject, message = listener.next()
            assert subject.endswith(f".{a.identity.id}.{kind}") and message.decode() == body


def test_a_draining_node_lets_calls_finish(new_cluster, device):
    cluster = new_cluster(nodes=2)
    family = cluster.accounts.family()
    target = device(CoapDevice, family.b).connect(cluster.nodes[0]).become_callable()
    caller = device(CoapDevice, family.a).connect(cluster.nodes[1])
    answer = caller.send_msg(family.b, "1")
    call = target.next_call()
    cluster.nodes[0].process.term()
    until("it begins nothing new", lambda: target.request(POST, "rpc", TIME)[0] == "5.03")
    call.answer('"last"')
    assert answer.text() == '"last"'
    assert cluster.nodes[0].process.wait() == 0
    assert target.ended.wait(10) and target.end_code == "5.03"


def test_limits(new_cluster, device):
    cluster = new_cluster(settings={"ingress.calls_per_second_per_device": "1", "ingress.call_burst_per_device": "3"})
    family = cluster.accounts.family()
    caller = device(CoapDevice, family.a).connect(cluster.nodes[0])
    codes = [caller.request(POST, "rpc", TIME)[0] for _ in range(6)]
    assert codes[0] == "2.05" and codes[-1] == "4.29"
    assert cluster.nodes[0].admin.value("switchboard_limits_hit_total", limit="call_rate") >= 1


def test_every_call_that_waits_is_acknowledged(node, family, device):
    device(PahoV5, family.b).connect(node).become_callable(lambda _: None)
    waiting = set()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as caller:
        caller.connect(("127.0.0.1", node.coap_port))
        caller.settimeout(0.01)

        def all_are_acknowledged():
            with contextlib.suppress(TimeoutError):
                came = Message.decode(caller.recv(1500))
                waiting.difference_update({came.mid} if came.mtype is ACK else ())
            return not waiting

        # Closer together than a node waits with an acknowledgement: others come in just as one is due.
        for number in range(80):
            call = Message(mtype=CON, code=POST, mid=number, token=bytes([number]))
            call.opt.uri_path = ("api", "v1", family.a.token, "rpc")
            call.payload = send_msg(family.b, timeout=3_000).encode()
            caller.send(call.encode())
            waiting.add(number)
            all_are_acknowledged()
        # Before the first of them would be sent again.
        until("all are acknowledged", all_are_acknowledged, within_s=1.5)
