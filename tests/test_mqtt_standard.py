"""Is MQTT spoken to the letter? What a client may send is served, and what it must not ends its connection in its form."""

import pytest
from harness.raw_mqtt import (
    CONNACK,
    DISCONNECT,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBSCRIBE,
    UNSUBSCRIBE,
    connect,
    packet,
    properties,
    text,
)

VERSIONS = pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5"])
REQUESTS = "v1/devices/me/rpc/request/"
RESPONSES = "v1/devices/me/rpc/response/"
TELEMETRY = "v1/devices/me/telemetry"


@pytest.fixture
def port(shared_cluster):
    return shared_cluster.nodes[0].mqtt_port


@pytest.fixture
def client(port, family, raw, version):
    client = raw(port, version)
    assert client.connect(family.a.token).code == 0
    return client


def test_an_older_mqtt_by_its_own_name(port, family, raw):
    client = raw(port)
    client.send(connect(3, family.a.token, name="MQIsdp"))
    assert client.expect(CONNACK).code == 0
    client.ping()


@pytest.mark.parametrize(
    ("name", "level", "form", "code"),
    [
        ("MQTT", 6, 5, 0x84),
        ("MQTT", 200, 5, 0x84),
        ("MQTT", 3, 4, 0x01),
        ("MQTT", 0, 4, 0x01),
        ("MQIsdp", 4, 4, 0x01),
        ("MQIsdp", 5, 4, 0x01),
    ],
)
def test_a_version_that_is_not_spoken(port, raw, name, level, form, code):
    client = raw(port, form)
    client.send(connect(level, "token", name=name))
    ack = client.expect(CONNACK)
    assert (ack.code, ack.properties) == (code, {})
    client.expect_closed()


def test_another_protocols_name_is_closed(port, raw):
    client = raw(port)
    client.send(connect(4, "token", name="MQTX"))
    client.expect_closed()


@pytest.mark.parametrize("clean", [True, False])
def test_v5_assigns_an_id_whatever_becomes_of_the_session(port, family, raw, clean):
    ack = raw(port, 5).connect(family.a.token, clean=clean)
    assert ack.code == 0 and ack.properties["assigned_client_id"]


def test_3_1_1_has_no_session_without_an_id(port, family, raw):
    client = raw(port)
    assert client.connect(family.a.token, clean=False).code == 2
    client.expect_closed()
    assert raw(port).connect(family.a.token, clean=False, client_id="x").code == 0


MALFORMED = {
    "the reserved flag": {"flags": 0x01},
    "will QoS without a will": {"flags": 0x08},
    "will retain without a will": {"flags": 0x20},
    "will QoS 3": {"will": (TELEMETRY, "{}"), "will_qos": 3},
    "NUL in the client id": {"client_id": "a\0b"},
    "NUL in the will's topic": {"will": ("a\0b", "{}")},
}


@VERSIONS
@pytest.mark.parametrize("fields", MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_connect(port, family, raw, version, fields):
    client = raw(port, version)
    client.send(connect(version, family.a.token, **fields))
    if version == 5:
        assert client.expect(CONNACK).code == 0x81
    client.expect_closed()


@VERSIONS
@pytest.mark.parametrize("token", ["to\0ken", b"\xff"], ids=["NUL", "no UTF-8"])
def test_a_username_that_is_no_text(port, raw, version, token):
    client = raw(port, version)
    body = connect(version, "12345").replace(text("12345"), b"")
    value = token.encode() if isinstance(token, str) else token
    data = len(value).to_bytes(2, "big") + value
    client.send(packet(1, body[2:] + data))
    if version == 5:
        assert client.expect(CONNACK).code == 0x81
    client.expect_closed()


def test_3_1_1_has_no_password_without_a_username(port, raw):
    client = raw(port)
    client.send(connect(4, None, password="secret"))
    client.expect_closed()


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"authentication_data": b"x"}, 0x82),
        ({"authentication_method": "SCRAM"}, 0x8C),
        ({"receive_maximum": 0}, 0x82),
        ({"maximum_packet_size": 0}, 0x82),
        ({"receive_maximum": [1, 2]}, 0x82),
        ({"request_problem_information": 2}, 0x82),
        ({"topic_alias": 1}, 0x81),
    ],
)
def test_properties_of_connect_that_cannot_be(port, family, raw, values, code):
    client = raw(port, 5)
    assert client.connect(family.a.token, **values).code == code
    client.expect_closed()


@VERSIONS
@pytest.mark.parametrize("first", [0x80, 0xA0, 0x60, 0x42, 0xC1, 0xE8, 0x00], ids=hex)
def test_flags_that_are_reserved(client, version, first):
    body = b"\0\1" + (properties() if version == 5 else b"") + text(REQUESTS + "+") + b"\0"
    client.send(packet(first >> 4, body, first & 0x0F))
    ends(client, 0x81)


@VERSIONS
@pytest.mark.parametrize("options", [0x03, 0x40, 0x80], ids=hex)
def test_options_of_a_subscription_that_are_reserved(client, version, options):
    props = properties() if version == 5 else b""
    client.send(packet(SUBSCRIBE, b"\0\1" + props + text(REQUESTS + "+") + bytes([options]), 2))
    ends(client, 0x81)


@VERSIONS
@pytest.mark.parametrize("kind", [SUBSCRIBE, UNSUBSCRIBE], ids=["subscribe", "unsubscribe"])
def test_no_filter_at_all(client, version, kind):
    client.send(packet(kind, b"\0\1" + (properties() if version == 5 else b""), 2))
    ends(client, 0x82)


@VERSIONS
@pytest.mark.parametrize("kind", [PUBREC, PUBCOMP], ids=["pubrec", "pubcomp"])
def test_what_no_message_of_ours_asks_for(client, version, kind):
    client.send(packet(kind, b"\0\1"))
    ends(client, 0x82)


@pytest.mark.parametrize("version", [5])
@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (packet(PUBREL, b"\0\1", 2), 0x82),
        (packet(PUBACK, b"\0\1\x05"), 0x82),
        (packet(DISCONNECT, b"\x05"), 0x82),
        (packet(DISCONNECT, b"\x8e"), 0x82),
        (packet(DISCONNECT, b"\0" + properties(session_expiry=1)), 0x82),
        (packet(15, b""), 0x82),
        (packet(PUBLISH, text(TELEMETRY) + properties(topic_alias=0) + b"{}"), 0x94),
        (packet(PUBLISH, text(TELEMETRY) + properties(user_property=("a\0", "b")) + b"{}"), 0x81),
        (packet(PUBLISH, text(TELEMETRY) + properties(maximum_qos=1) + b"{}"), 0x81),
        (packet(SUBSCRIBE, b"\0\1" + properties() + text("$share/g/a") + b"\x04", 2), 0x82),
    ],
)
def test_what_a_v5_client_must_not_send(client, version, sent, code):
    client.send(sent)
    ends(client, code)


@pytest.mark.parametrize("version", [5])
def test_reasons_that_a_client_may_give(client, version, raw, port, family):
    client.send(packet(DISCONNECT, b"\x04" + properties(reason_string="tired", session_expiry=0)))
    client.expect_closed()


def test_a_reason_is_told_in_words_only_to_who_wants_them_and_as_far_as_they_fit(port, family, raw):
    for options, words in (({}, True), ({"request_problem_information": 0}, False), ({"maximum_packet_size": 40}, False)):
        client = raw(port, 5)
        assert client.connect(family.a.token, client_id="x", **options).code == 0
        client.publish("elsewhere", "{}", qos=1)
        ack = client.expect(PUBACK)
        assert (ack.code, "reason_string" in ack.properties) == (0x90, words)


def test_who_has_no_room_for_a_connack_is_closed(port, family, raw):
    client = raw(port, 5)
    client.send(connect(5, family.a.token, maximum_packet_size=10))
    client.expect_closed()


@VERSIONS
def test_many_user_properties_are_read(client, version):
    many = [("n", "v")] * 9000 if version == 5 else []
    client.subscribe(RESPONSES + "+")
    client.publish(REQUESTS + "1", '{"method":"getTime"}', **({"user_property": many} if many else {}))
    assert client.expect(PUBLISH).payload.startswith(b'{"time":')


def ends(client, code):
    if client.version == 5:
        client.expect_disconnect(code)
    else:
        client.expect_closed()
