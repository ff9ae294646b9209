"""What can a client do that has not said who it is? It costs a few KB, for a short time, and what is none of a port's
protocol ends in a clean refusal that the operator sees."""

import resource
import socket
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from harness.authority import Authority
from harness.cluster import Cluster
from harness.raw_mqtt import connect
from harness.waiting import PATIENCE_S, until

UPGRADE = (
    b"GET /mqtt HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
# A CONNECT of 4,093 bytes, of which the last are yet to come.
CONNECT_BEGUN = b"\x10\xfa\x1f\0\x04MQTT\x04\x02\0\x3c\x0f\xf0" + b"x" * 4000
# The largest frame there is, which begins with it.
FRAME_BEGUN = b"\x82\xff\0\0\0\0\x7f\xff\xff\xff\0\0\0\0" + CONNECT_BEGUN
HEAD_BEGUN = b"GET / HTTP/1.1\r\nX: " + b"y" * 8000


def hello(announced, sent):
    """A TLS greeting that says that it has so many bytes, as far as it is sent."""
    text = b"\x01" + announced.to_bytes(3, "big") + b"\x03\x03" + b"x" * sent
    records = [text[at : at + 16_000] for at in range(0, len(text), 16_000)]
    return b"".join(b"\x16\x03\x01" + len(it).to_bytes(2, "big") + it for it in records)


# Each port, what comes to it, and how many KB it may take: TLS has its own state, and doubles what it has no room for.
HALF_OPEN = {
    "mqtt-silent": ("mqtt_port", b"", 10),
    "mqtt-connect": ("mqtt_port", CONNECT_BEGUN, 16),
    "http-silent": ("http_port", b"", 10),
    "http-byte": ("http_port", b"G", 10),
    "http-head": ("http_port", HEAD_BEGUN, 16),
    "websocket-silent": ("http_port", UPGRADE, 12),
    "websocket-frame": ("http_port", UPGRADE + FRAME_BEGUN, 16),
    "mqtts-silent": ("mqtts_port", b"", 16),
    "mqtts-hello": ("mqtts_port", hello(60_000, 12_000), 28),
    "https-hello": ("https_port", hello(60_000, 12_000), 28),
}


@pytest.fixture(scope="module")
def patient(tmp_path_factory):
    """A node that waits long enough for its memory to be looked at."""
    certificate, key = Authority(tmp_path_factory.mktemp("authority")).issue("node")
    patience_ms = "60000"
    settings = {
        "tls.certificate_file": str(certificate),
        "tls.key_file": str(key),
        "tls.handshake_timeout_ms": patience_ms,
        "ingress.connect_timeout_ms": patience_ms,
        "http.header_timeout_ms": patience_ms,
    }
    cluster = Cluster(tmp_path_factory.mktemp("patient"), settings=settings)
    yield cluster
    cluster.stop()


def resident_bytes(node):
    return int(Path(f"/proc/{node.process.pid}/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize(("port", "first", "max_kb"), HALF_OPEN.values(), ids=HALF_OPEN)
def test_who_has_not_said_who_he_is_takes_a_few_kilobytes(patient, port, first, max_kb):
    node, count = patient.nodes[0], 1000
    # A new process: what an old one has given back to itself would not be seen.
    node.kill()
    node.process.wait()
    node.restart()
    before = resident_bytes(node)
    with ExitStack() as half_open:
        for _ in range(count):
            client = half_open.enter_context(socket.create_connection((node.host, getattr(node, port))))
            client.sendall(first)
        taken = lambda: node.admin.value("switchboard_connections") == count  # noqa: E731
        until("all are taken", taken)
        each = (resident_bytes(node) - before) / count
    assert each < max_kb * 1024, f"{each / 1024:.1f} KB each"


NO_CONNECT = ("switchboard_connects_total", {"result": "malformed"})
NO_HANDSHAKE = ("switchboard_tls_handshakes_total", {"result": "failed"})
# Each port, what comes to it, how its answer begins, and where that is counted.
OTHERS = {
    "http-to-mqtt": ("mqtt_port", HEAD_BEGUN, b"", NO_CONNECT),
    "hello-to-mqtt": ("mqtt_port", hello(500, 500), b"", NO_CONNECT),
    "coap-to-mqtt": ("mqtt_port", b"\x40\x01\0\x07", b"", NO_CONNECT),
    "mqtt-to-http": ("http_port", connect(5, "token"), b"HTTP/1.1 400 ", None),
    "hello-to-http": ("http_port", hello(500, 500), b"HTTP/1.1 400 ", None),
    "coap-to-http": ("http_port", b"\x40\x01\0\x07", b"HTTP/1.1 400 ", None),
    "mqtt-to-mqtts": ("mqtts_port", connect(5, "x" * 99), b"\x15", NO_HANDSHAKE),
    "http-to-https": ("https_port", HEAD_BEGUN, b"\x15", NO_HANDSHAKE),
    "long-hello": ("https_port", hello(60_000, 60_000), b"", NO_HANDSHAKE),
}


@pytest.mark.parametrize(("port", "first", "answer", "counted"), OTHERS.values(), ids=OTHERS)
def test_another_protocol_ends_in_a_clean_refusal(patient, port, first, answer, counted):
    node = patient.nodes[0]
    count = lambda: node.admin.value(counted[0], **counted[1]) if counted else 0  # noqa: E731
    said = lambda: node.process.err.count("an HTTP connection ends")  # noqa: E731
    before, said_before = count(), said()
    with closing(socket.create_connection((node.host, getattr(node, port)), timeout=PATIENCE_S)) as client:
        client.sendall(first)
        read = b""
        # A reset would raise.
        while part := client.recv(4096):
            read += part
    assert read.startswith(answer) and (answer or not read), read
    if counted:
        assert count() == before + 1
    else:
        until("the log has it", lambda: said() == said_before + 1)


@pytest.mark.parametrize("garbage", [connect(5, "token"), HEAD_BEGUN[:1000], hello(500, 500), b"\xff", b"\x40\x01"])
def test_datagrams_that_are_no_coap_are_counted(patient, garbage):
    node = patient.nodes[0]
    received = lambda kind: node.admin.value("switchboard_coap_messages_received_total", kind=kind)  # noqa: E731
    odd = lambda: received("foreign") + received("malformed")  # noqa: E731
    before = odd()
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as client:
        client.sendto(garbage, (node.host, node.coap_port))
        until("it is counted", lambda: odd() == before + 1)
