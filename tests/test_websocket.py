"""Is a browser page a device too? MQTT over WebSocket: real clients, and frames that none of them sends."""

import base64
import hashlib
import os
import struct
from types import SimpleNamespace

import pytest
from harness import said
from harness.devices import HttpDevice, MqttJsWebSocket, PahoV5, PahoV311
from harness.devices.device import answering, echo
from harness.raw_http import RawHttp

BIG = '"' + "x" * 60_000 + '"'

# CONNECT of MQTT 3.1.1 without a user name: answered with "bad user name or password", and closed.
CONNECT = bytes.fromhex("100c00044d5154540402003c0000")
CONNACK_NO_USERNAME = bytes.fromhex("20020004")


class PahoWebSocket(PahoV5):
    """paho-mqtt over WebSocket."""

    protocol = "paho-ws"

    def connect_only(self, node):
        # The transport is chosen when a client is made.
        self.client._transport = "websockets"
        self.client.ws_set_options(path="/mqtt")
        self.client.on_socket_open = None
        return super().connect_only(SimpleNamespace(host=node.host, mqtt_port=node.http_port))


@pytest.mark.parametrize("kind", [MqttJsWebSocket, PahoWebSocket], ids=lambda kind: kind.protocol)
@pytest.mark.parametrize("other", [PahoV311, HttpDevice], ids=lambda kind: kind.protocol)
def test_calls_both_ways(shared_cluster, family, device, kind, other):
    web = device(kind, family.a).connect(shared_cluster.nodes[0])
    elsewhere = device(other, family.b).connect(shared_cluster.nodes[1])
    assert web.send_msg(family.b, "1").text() == said.OFFLINE
    elsewhere.become_callable(echo)
    web.become_callable(echo)
    for body in ("1", '{"a": [1, 2]}', BIG):
        assert web.send_msg(family.b, body).text() == body
        assert elsewhere.send_msg(family.a, body).text() == body
    answers = [elsewhere.send_msg(family.a, str(number)) for number in range(50)]
    assert [answer.text() for answer in answers] == [str(number) for number in range(50)]


def test_a_page_that_is_closed(shared_cluster, family, device):
    caller = device(PahoV5, family.a).connect(shared_cluster.nodes[1])
    page = device(MqttJsWebSocket, family.b).connect(shared_cluster.nodes[0]).become_callable()
    answer = caller.send_msg(family.b, "1", timeout=60_000)
    page.next_call()
    page.vanish()
    assert answer.text() == said.LOST
    assert caller.send_msg(family.b, "1").text() == said.OFFLINE


def test_a_newer_session_closes_a_page(shared_cluster, family, device):
    page = device(MqttJsWebSocket, family.b).connect(shared_cluster.nodes[0]).become_callable()
    device(PahoV5, family.b).connect(shared_cluster.nodes[1]).become_callable(answering("1"))
    assert page.ended.wait(20)


# Frame by frame.


class Frames:
    """A WebSocket of our own, masked with zeros."""

    def __init__(self, port, protocol="mqtt", chosen="mqtt"):
        self.http = RawHttp(port)
        key = base64.b64encode(os.urandom(16)).decode()
        self.http.send(
            f"GET /mqtt HTTP/1.1\nHost: t\nConnection: Upgrade\nUpgrade: websocket\nSec-WebSocket-Version: 13\n"
            f"Sec-WebSocket-Key: {key}\nSec-WebSocket-Protocol: {protocol}\n\n"
        )
        self.response = self.http.response()
        if self.response.status == 101:
            proof = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
            assert self.response.headers["sec-websocket-accept"] == base64.b64encode(proof).decode()
            assert self.response.headers["sec-websocket-protocol"] == chosen

    def send(self, first, payload=b"", mask=0x80):
        length = len(payload)
        size = struct.pack(">B", mask | length) if length < 126 else struct.pack(">BH", mask | 126, length)
        self.http.send(bytes([first]) + size + (bytes(4) if mask else b"") + payload)
        return self

    def read(self, count):
        return self.http._file.read(count)

    def expect_close(self, code):
        assert self.read(4) == b"\x88\x02" + struct.pack(">H", code)
        assert self.http.expect_closed() == b""


@pytest.fixture
def frames(shared_cluster):
    made = []

    def make(**options):
        made.append(Frames(shared_cluster.nodes[0].http_port, **options))
        return made[-1]

    yield make
    for it in made:
        it.http.close()


def test_packets_may_be_cut_anywhere(frames):
    whole, cut = frames(), frames()
    whole.send(0x82, CONNECT)
    # One byte a frame, and those in fragments with a ping between them.
    cut.send(0x02, CONNECT[:1])
    for index in range(1, len(CONNECT)):
        cut.send(0x89, b"?").send(0x00, CONNECT[index : index + 1])
    assert whole.read(6) == b"\x82\x04" + CONNACK_NO_USERNAME
    heard = cut.read(3 * (len(CONNECT) - 1) + 6)
    assert heard.count(b"\x8a\x01?") == len(CONNECT) - 1
    assert b"\x82\x04" + CONNACK_NO_USERNAME in heard
    whole.expect_close(1000)
    cut.expect_close(1000)


def test_older_clients_say_it_otherwise(frames):
    assert frames(protocol="mqttv3.1", chosen="mqttv3.1").response.status == 101
    assert frames(protocol="mqttv3.1, mqtt").response.status == 101


def test_what_is_refused(frames):
    assert frames(protocol="wamp").response.status == 400
    assert frames(protocol="MQTT").response.status == 400
    frames().send(0x81, b"text").expect_close(1003)
    frames().send(0x82, CONNECT, mask=0).expect_close(1002)
    frames().send(0xC2, CONNECT).expect_close(1002)
    frames().send(0x80, CONNECT).expect_close(1002)
    frames().send(0x88, struct.pack(">H", 1001)).expect_close(1001)
    frames().send(0x88, struct.pack(">H", 1006)).expect_close(1002)
    # More than a CONNECT may have before the device is known, however it is framed.
    frames().send(0x82, b"\x10\xff\x7f" + bytes(6000)).expect_close(1000)


def test_a_frame_that_never_ends_reserves_nothing(frames, shared_cluster):
    before = shared_cluster.nodes[0].admin.value("process_resident_memory_bytes")
    made = [frames() for _ in range(200)]
    for it in made:
        it.http.send(b"\x82\xff" + struct.pack(">Q", 2**40) + bytes(4) + CONNECT[:6])
    grown = shared_cluster.nodes[0].admin.value("process_resident_memory_bytes") - before
    assert grown < 200 * 64 * 1024


def test_a_plain_request_is_told_what_this_is(shared_cluster):
    with RawHttp(shared_cluster.nodes[0].http_port) as http:
        response = http.ask("GET", "/mqtt")
        assert response.status == 400
        assert "ws://" in response.error
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Version": "12"}
        response = http.ask("GET", "/mqtt", **upgrade)
        assert (response.status, response.headers["sec-websocket-version"]) == (426, "13")
        assert (response.headers["upgrade"], response.headers["connection"]) == ("websocket", "Upgrade")
        assert http.ask("GET", "/mqtt").status == 400, "the connection goes on"
