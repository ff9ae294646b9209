"""How does a connection begin, stay and end? CONNACK by the table, and what keeps a connection alive."""

import os
import time

import pytest
from harness.processes import run
from harness.programs import built
from harness.raw_mqtt import CONNACK, DISCONNECT, PINGREQ, RawMqtt, connect, packet

VERSIONS = pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5"])


@pytest.fixture
def port(shared_cluster):
    return shared_cluster.nodes[0].mqtt_port


@VERSIONS
def test_a_device_is_known_by_its_token(port, family, raw, version):
    assert raw(port, version).connect(family.a.token).code == 0


@VERSIONS
@pytest.mark.parametrize("username", [None, ""], ids=["absent", "empty"])
def test_no_username(port, raw, version, username):
    client = raw(port, version)
    assert client.connect(username).code == {4: 4, 5: 0x86}[version]
    client.expect_closed()


@VERSIONS
def test_an_unknown_token(port, raw, version):
    client = raw(port, version)
    assert client.connect("nobody's token").code == {4: 5, 5: 0x87}[version]
    client.expect_closed()


@VERSIONS
def test_a_password_is_not_needed_and_does_no_harm(port, family, raw, version):
    assert raw(port, version).connect(family.a.token, client_id="x", keep_alive_s=60).code == 0
    client = raw(port, version)
    client.send(connect(version, family.b.token, password="whatever"))
    assert client.expect(CONNACK).code == 0


@VERSIONS
def test_without_an_authorizer_nobody_can_say(new_cluster, raw, version):
    cluster = new_cluster(authorizers=0)
    client = raw(cluster.nodes[0].mqtt_port, version)
    assert client.connect("some token").code == {4: 3, 5: 0x88}[version]
    client.expect_closed()


def test_what_a_v5_device_is_told(port, family, raw):
    ack = raw(port, 5).connect(family.a.token, client_id="mine", session_expiry=300)
    assert ack.code == 0
    properties = ack.properties
    assert properties["maximum_qos"] == 1
    assert properties["maximum_packet_size"] == 65536
    assert properties["session_expiry"] == 0
    assert properties["receive_maximum"] == 100
    assert properties["topic_alias_maximum"] == 16
    assert properties["retain_available"] == 0
    assert properties["shared_subscription_available"] == 0
    assert "assigned_client_id" not in properties
    assert "server_keep_alive" not in properties


def test_an_empty_client_id_is_assigned(port, family, raw):
    ids = [raw(port, 5).connect(family.a.token).properties["assigned_client_id"] for _ in range(3)]
    assert len(set(ids)) == 3 and "" not in ids
    # A node's id is a name on NATS, hence no device's business.
    assert len(os.path.commonprefix(ids)) < 6


@VERSIONS
def test_the_client_id_is_nobodys_identity(port, family, raw, version):
    first, second = raw(port, version), raw(port, version)
    assert first.connect(family.a.token, client_id="same").code == 0
    assert second.connect(family.b.token, client_id="same").code == 0
    first.ping()
    second.ping()


def test_server_keep_alive_caps(port, family, raw):
    assert raw(port, 5).connect(family.a.token, keep_alive_s=0).properties["server_keep_alive"] == 1200
    assert raw(port, 5).connect(family.a.token, keep_alive_s=65535).properties["server_keep_alive"] == 1200
    assert raw(port, 4).connect(family.a.token, keep_alive_s=0).code == 0


@VERSIONS
def test_silence_for_one_and_a_half_keep_alives_ends_a_connection(port, family, raw, version):
    client = raw(port, version)
    client.connect(family.a.token, keep_alive_s=1)
    client.ping()
    quiet_since = time.monotonic()
    if version == 5:
        client.expect_disconnect(0x8D)
    else:
        client.expect_closed()
    assert 1.4 <= time.monotonic() - quiet_since < 6


@VERSIONS
def test_too_much_before_authentication(port, family, raw, version):
    client = raw(port, version)
    client.send(connect(version, family.a.token, client_id="x" * 4100))
    assert_refused(client)


def test_a_large_connect_within_the_limit(port, family, raw):
    client = raw(port, 4)
    client.send(connect(4, family.a.token, client_id="x" * 3900))
    assert client.expect(CONNACK).code == 0


@pytest.mark.parametrize(
    "first",
    [packet(PINGREQ, b""), b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", packet(DISCONNECT, b""), b"\x10\xff\xff\xff\xff\x7f"],
    ids=["pingreq", "http", "tls", "disconnect", "endless"],
)
def test_what_is_no_connect_is_closed(port, raw, first):
    client = raw(port)
    client.send(first)
    client.expect_closed()


def test_another_version_of_mqtt(port, raw):
    client = raw(port)
    client.send(connect(6, "token"))
    assert client.expect(CONNACK).code in (0x01, 0x84)
    client.expect_closed()


@VERSIONS
def test_connect_comes_once(port, family, raw, version):
    client = raw(port, version)
    client.connect(family.a.token)
    client.send(connect(version, family.a.token))
    if version == 5:
        client.expect_disconnect(0x82)
    else:
        client.expect_closed()


@VERSIONS
def test_a_client_need_not_wait_for_connack(port, family, raw, version):
    client = raw(port, version)
    client.send(connect(version, family.a.token) + packet(PINGREQ, b"") + packet(PINGREQ, b""))
    assert client.expect(CONNACK).code == 0
    client.expect(13)
    client.expect(13)


def test_a_connect_byte_by_byte(port, family, raw):
    client = raw(port, 5)
    for byte in connect(5, family.a.token):
        client.send(bytes([byte]))
    assert client.expect(CONNACK).code == 0


def test_more_connections_than_a_node_may_have(new_cluster, raw):
    cluster = new_cluster(settings={"ingress.max_connections": "2", "shares.per_customer_percent": "100"})
    port = cluster.nodes[0].mqtt_port
    family = cluster.accounts.family()
    first, second = raw(port), raw(port)
    assert first.connect(family.a.token).code == 0
    assert second.connect(family.b.token).code == 0
    for version, code in ((4, 3), (5, 0x9F)):
        refused = raw(port, version)
        assert refused.connect(family.c.token).code == code
        refused.expect_closed()
    assert cluster.nodes[0].admin.value("switchboard_limits_hit_total", limit="connections") == 2
    assert cluster.nodes[0].admin.value("switchboard_connects_total", result="limit") == 2
    first.ping()
    second.ping()


def test_more_connections_than_files_are_refused_at_start():
    """Not when they come: then a device would find a node that cannot accept it."""
    node = f"{built('switchboard-ingress')} --admin 127.0.0.1:0 --set ingress.max_connections=873"
    ended = run("sh", "-c", f"ulimit -n 1000; exec {node}")
    assert ended.code == 1
    assert "ingress.max_connections is 873, and this process may open 1000 files" in ended.err
    assert "set at most 872" in ended.err


def test_a_connection_that_says_nothing_is_closed(new_cluster, raw):
    cluster = new_cluster(settings={"ingress.connect_timeout_ms": "300"}, authorizers=0)
    raw(cluster.nodes[0].mqtt_port).expect_closed()


def assert_refused(client: RawMqtt) -> None:
    packet = client.receive()
    if packet is not None:
        assert packet.kind == CONNACK and packet.code, packet
        client.expect_closed()
