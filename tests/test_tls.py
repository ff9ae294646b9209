"""Do devices reach the system over the open internet? MQTT, WebSocket and HTTP under TLS, and certificates that change."""

import json
import os
import re
import socket
import ssl
import time
from datetime import UTC, datetime
from http.client import HTTPResponse, HTTPSConnection
from types import SimpleNamespace

import pytest
from harness.authority import Authority
from harness.cluster import Cluster
from harness.devices import HttpDevice, MqttJsWebSocket, PahoV5, PahoV311
from harness.devices.device import echo
from harness.processes import run
from harness.programs import built
from harness.waiting import until

BIG = '"' + "x" * 60_000 + '"'


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def files(authority, tmp_path_factory):
    """Those that the node reads."""
    folder = tmp_path_factory.mktemp("tls")
    return folder / "server.pem", folder / "server.key"


@pytest.fixture(scope="module")
def secure(authority, files, tmp_path_factory):
    replace(files, authority.issue("first"))
    settings = {
        "tls.certificate_file": str(files[0]),
        "tls.key_file": str(files[1]),
        "tls.handshake_timeout_ms": "1000",
        "tls.reload_check_ms": "100",
    }
    cluster = Cluster(tmp_path_factory.mktemp("secure"), settings=settings)
    yield cluster
    cluster.stop()


def replace(files, issued):
    for file, source in zip(files, issued, strict=True):
        file.write_bytes(source.read_bytes())


@pytest.fixture
def kinds(authority):
    """The clients, each of which checks the server's certificate."""

    class Tls311(PahoV311):
        protocol = "paho-3.1.1-tls"

        def connect_only(self, node):
            self.client.tls_set(ca_certs=str(authority.certificate))
            return super().connect_only(SimpleNamespace(host=node.host, mqtt_port=node.mqtts_port))

    class Tls5(PahoV5):
        protocol = "paho-5-tls"

        def connect_only(self, node):
            self.client.tls_set(ca_certs=str(authority.certificate))
            return super().connect_only(SimpleNamespace(host=node.host, mqtt_port=node.mqtts_port))

    class Wss(MqttJsWebSocket):
        protocol = "mqtt.js-wss"
        ca = authority.certificate.read_text()

        def url(self, node):
            return f"wss://127.0.0.1:{node.https_port}/mqtt"

    class Https(HttpDevice):
        protocol = "https"

        def connect(self, node):
            return super().connect(SimpleNamespace(host=node.host, http_port=node.https_port))

        def _connection(self):
            connection = HTTPSConnection("127.0.0.1", self._port, timeout=90, context=authority.context())
            connection.connect()
            return connection

    return [Tls311, Tls5, Wss, Https]


def test_calls_between_all_of_them(secure, device, kinds):
    node = secure.nodes[0]
    for target_kind in kinds:
        family = secure.accounts.family()
        target = device(target_kind, family.b).connect(node).become_callable(echo)
        for caller_kind in kinds:
            caller = device(caller_kind, family.a).connect(node)
            for body in ("1", BIG):
                assert caller.send_msg(family.b, body).text() == body, (caller_kind.protocol, target_kind.protocol)
            answers = [caller.send_msg(family.b, str(number)) for number in range(20)]
            assert [answer.text() for answer in answers] == [str(number) for number in range(20)]
            caller.close()
        assert not target.ended.is_set()


def test_a_poll_that_closes_once_it_has_its_call_has_it(secure, authority, device, kinds):
    """As curl does it: TLS' own words of parting, which it leaves unread, are no sign that it did not read the call."""
    node, family = secure.nodes[0], secure.accounts.family()
    caller = device(kinds[1], family.a).connect(node)
    polls = lambda: node.admin.value("switchboard_http_polls")  # noqa: E731
    for number in range(20):
        plain = socket.create_connection(("127.0.0.1", node.https_port), 20)
        polling = authority.context().wrap_socket(plain, server_hostname="127.0.0.1")
        polling.sendall(f"GET /api/v1/{family.b.token}/rpc?timeout=20000 HTTP/1.1\r\nHost: t\r\n\r\n".encode())
        until("it waits", lambda: polls() == 1)
        # The connection's end, not that of TLS: what closes altogether looks the same until it is sent something.
        with socket.socket(fileno=os.dup(polling.fileno())) as below:
            below.shutdown(socket.SHUT_WR)
        answer = caller.send_msg(family.b, str(number))
        response = HTTPResponse(polling)
        response.begin()
        call = json.loads(response.read())
        polling.close()
        assert call["params"] == number
        answering = HTTPSConnection("127.0.0.1", node.https_port, timeout=20, context=authority.context())
        answering.request("POST", f"/api/v1/{family.b.token}/rpc/{call['id']}", str(number))
        assert answering.getresponse().status == 200
        answering.close()
        assert answer.text() == str(number)


def handshake(port, context):
    """The version spoken, and the certificate shown."""
    plain = socket.create_connection(("127.0.0.1", port), 20)
    with context.wrap_socket(plain, server_hostname="127.0.0.1") as it:
        return it.version(), it.getpeercert()["subject"][0][0][1]


def ports(node):
    return node.mqtts_port, node.https_port


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_versions(secure, authority):
    for port in ports(secure.nodes[0]):
        assert handshake(port, authority.context())[0] == "TLSv1.3"
        older = authority.context()
        older.maximum_version = ssl.TLSVersion.TLSv1_2
        assert handshake(port, older)[0] == "TLSv1.2"
        oldest = authority.context()
        oldest.minimum_version = ssl.TLSVersion.TLSv1
        oldest.maximum_version = ssl.TLSVersion.TLSv1_1
        oldest.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, OSError)):
            handshake(port, oldest)


def test_the_certificate_is_read_again(secure, authority, files, device, kinds):
    node = secure.nodes[0]
    family = secure.accounts.family()
    kept = device(kinds[1], family.a).connect(node).become_callable(echo)

    def shown():
        return [handshake(port, authority.context())[1] for port in ports(node)]

    replace(files, authority.issue("second"))
    until("the new one is shown", lambda: shown() == ["second"] * 2)
    # A key of another certificate, and no certificate at all, change nothing.
    refused = node.admin.value("switchboard_tls_reloads_total", result="refused")
    files[1].write_bytes(authority.issue("third")[1].read_bytes())
    until("it is refused", lambda: node.admin.value("switchboard_tls_reloads_total", result="refused") > refused)
    assert shown() == ["second"] * 2
    refused = node.admin.value("switchboard_tls_reloads_total", result="refused")
    files[0].write_text("nothing")
    until("it is refused", lambda: node.admin.value("switchboard_tls_reloads_total", result="refused") > refused)
    assert shown() == ["second"] * 2
    replace(files, authority.issue("fourth"))
    until("the newest is shown", lambda: shown() == ["fourth"] * 2)
    # Nobody was disconnected.
    assert kept.send_msg(family.a, "1").text() == "1"


def test_it_is_known_when_the_certificate_ends(secure):
    ends = secure.nodes[0].admin.value("switchboard_tls_certificate_expiry_timestamp_seconds")
    # Issued for a day.
    assert time.time() < ends <= time.time() + 86_400
    processes = json.loads(secure.accounts.cli("status", "--json").ok().out)
    told = [it["certificates"] for it in processes if it["service"] == "ingress"]
    assert told == [{"tls.certificate_file": f"{datetime.fromtimestamp(ends, UTC):%Y-%m-%dT%H:%M:%SZ}"}] * len(secure.nodes)
    found = json.loads(secure.accounts.cli("doctor", "--json").out)
    (of_certificates,) = (it["what"] for it in found if it["about"] == "certificates")
    assert re.match("a certificate in tls.certificate_file ends (within a|in 1) day, ", of_certificates), of_certificates


def test_handshakes_that_go_nowhere_hold_nobody_up(secure, device, kinds):
    node = secure.nodes[0]
    started = time.monotonic()
    stuck = [socket.create_connection(("127.0.0.1", port), 20) for port in ports(node) for _ in range(200)]
    family = secure.accounts.family()
    caller = device(kinds[1], family.a).connect(node).become_callable(echo)
    assert caller.send_msg(family.a, "1").text() == "1"
    for connection in stuck:
        connection.settimeout(20)
        assert connection.recv(1) == b"", "it is closed when its time is over"
        connection.close()
    assert time.monotonic() - started < 15


def test_clients_that_speak_no_tls(secure):
    failed = secure.nodes[0].admin.value("switchboard_tls_handshakes_total", result="failed")
    for port in ports(secure.nodes[0]):
        connect = bytes.fromhex("100c00044d5154540402003c0000")
        for first in (connect, b"GET / HTTP/1.1\r\nHost: t\r\n\r\n", b"\x16\x03\x01\xff\xff" * 50):
            with socket.create_connection(("127.0.0.1", port), 20) as connection:
                connection.sendall(first)
                connection.settimeout(20)
                try:
                    heard = connection.recv(1024)
                except ConnectionResetError:
                    heard = b""
                # An alert at most.
                assert heard[:1] in (b"", b"\x15")
    assert secure.nodes[0].admin.value("switchboard_tls_handshakes_total", result="failed") == failed + 6


def test_files_that_make_no_sense_are_named(authority, tmp_path):
    certificate, _ = authority.issue("one")
    _, key = authority.issue("another")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    table = [
        (certificate, key, "cannot be used together"),
        (empty, key, "holds no certificate"),
        (certificate, empty, "holds no private key"),
        (tmp_path / "absent.pem", key, "tls.certificate_file"),
    ]
    for certificate_file, key_file, words in table:
        settings = {"tls.certificate_file": certificate_file, "tls.key_file": key_file, "admin.listen": "127.0.0.1:0"}
        flags = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
        ran = run(built("switchboard-ingress"), *flags)
        assert ran.code != 0
        assert words in ran.err, ran
    ran = run(built("switchboard"), "config", "check", "--set", f"tls.key_file={key}")
    assert ran.code == 2
    assert "tls.certificate_file" in ran.out + ran.err


@pytest.mark.parametrize(("via", "port"), [("http", "https_port"), ("mqtt", "mqtts_port")])
def test_the_command_calls_as_a_device_over_tls(via, port, secure, authority):
    family, at = secure.accounts.family(), f"127.0.0.1:{getattr(secure.nodes[0], port)}"

    def call(*arguments):
        return run(
            built("switchboard"), "call", "--via", via, "--at", at, "--token", family.a.token, "--to", family.b.id,
            *arguments,
        )  # fmt: skip

    trusting = ("--ca", str(authority.certificate))
    until("its token is good", lambda: "No active connection" in call(*trusting).out)
    stranger = call("--tls")
    assert stranger.code == 1 and "TLS fails" in stranger.err, stranger
    assert "No active connection" in call(*trusting, "--tls-name", "node.example").out
    other = call(*trusting, "--tls-name", "another.example")
    assert other.code == 1 and "TLS fails" in other.err, other
    warned = call("--insecure")
    assert "No active connection" in warned.out and "whoever answers gets the access token" in warned.err, warned
