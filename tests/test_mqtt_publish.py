"""What may a device publish, and what becomes of it? Topics, QoS, sizes, answers and uplinks."""

import pytest
from harness import said
from harness.nats_listener import NatsListener
from harness.raw_mqtt import DISCONNECT, PUBACK, PUBLISH, packet, properties, text
from harness.waiting import until

REQUESTS = "v1/devices/me/rpc/request/"
RESPONSES = "v1/devices/me/rpc/response/"
TIME = '{"method":"getTime"}'
VERSIONS = pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5"])


@pytest.fixture
def connected(shared_cluster, raw):
    def connect(identity, version, node=0, **properties):
        client = raw(shared_cluster.nodes[node].mqtt_port, version)
        assert client.connect(identity.token, **properties).code == 0
        client.subscribe(RESPONSES + "+")
        return client

    return connect


@pytest.fixture
def client(connected, family, version):
    return connected(family.a, version)


FOREIGN_TOPICS = [
    "elsewhere",
    "é",
    "v1/devices/me/rpc/request/",
    "v1/devices/me/rpc/request/x",
    "v1/devices/me/rpc/request/-1",
    "v1/devices/me/rpc/request/2147483648",
    "v1/devices/me/rpc/request/1/2",
    "v1/devices/me/attributes/request/x",
    "v1/devices/me/claim",
    "v1/devices/other/rpc/request/1",
    "v1/gateway/connect",
    "v2/fw/request/0/chunk/0",
    "$SYS/x",
]


@VERSIONS
@pytest.mark.parametrize("topic", FOREIGN_TOPICS)
def test_a_topic_that_is_none_closes_nothing(client, version, topic):
    client.publish(topic, "{}")
    client.ping()
    client.publish(topic, "{}", qos=1)
    ack = client.expect(PUBACK)
    assert ack.code == (0x90 if version == 5 else 0)
    assert ("reason_string" in ack.properties) == (version == 5)
    client.publish(REQUESTS + "1", TIME)
    assert client.expect(PUBLISH).topic == RESPONSES + "1"


@VERSIONS
def test_what_is_dropped_is_counted_and_told_once_a_session(new_cluster, raw, version):
    cluster = new_cluster()
    node, device = cluster.nodes[0], cluster.accounts.family().a
    client = raw(node.mqtt_port, version)
    client.connect(device.token)
    for topic in ("v1/gateway/connect", "v1/devices/me/claim", "v1/devices/me/claim"):
        client.publish(topic, "secret")
    client.publish("v1/devices/me/telemetry", "temp=21.5")
    client.ping()
    counts = {
        reason: node.admin.value("switchboard_messages_dropped_total", reason=reason)
        for reason in ("foreign_topic", "not_json", "too_large", "will")
    }
    assert counts == {"foreign_topic": 3, "not_json": 1, "too_large": 0, "will": 0}
    told = node.process.wait_for_messages("messages are dropped", 2)
    assert [line["device"] for line in told] == [device.id] * 2
    assert [line["topic"] for line in told] == ["v1/gateway/connect", "v1/devices/me/telemetry"]
    assert "secret" not in node.process.err


def test_a_token_in_a_topic_stays_out_of_the_log(shared_cluster, connected, family):
    client = connected(family.a, 4)
    client.publish(f"api/v1/{family.a.token}/telemetry", "{}")
    client.ping()
    node = shared_cluster.nodes[0]
    lines = lambda: [line for line in node.process.log_lines() if line.get("device") == family.a.id]  # noqa: E731
    told = lambda: [line["topic"] for line in lines() if line["message"] == "messages are dropped"]  # noqa: E731
    until("it is told", told)
    assert told() == ["api/v1/***/telemetry"]
    assert family.a.token not in node.process.err


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1])
def test_a_request_for_attributes_is_answered(client, version, qos):
    request, response = "v1/devices/me/attributes/request/5", "v1/devices/me/attributes/response/5"
    client.publish(request, '{"sharedKeys":"fw_title"}', qos=qos)
    if qos:
        assert client.expect(PUBACK).code == 0
    client.ping()
    client.subscribe("v1/devices/me/attributes/response/+", qos=1)
    client.publish(request, '{"sharedKeys":"fw_title"}', qos=qos)
    if qos:
        assert client.expect(PUBACK).code == 0
    answer = client.expect(PUBLISH)
    assert (answer.topic, answer.payload, answer.qos) == (response, b"{}", 1)


@VERSIONS
@pytest.mark.parametrize("topic", ["v1/devices/me/rpc/request/+", "#", "v1/devices/me/telemetry\0"])
def test_a_topic_with_wildcards_closes(client, version, topic):
    client.publish(topic, "{}", qos=1)
    if version == 5:
        assert client.receive().kind == DISCONNECT
    client.expect_closed()


def test_qos_2_closes_a_v5_client(connected, family):
    client = connected(family.a, 5)
    client.publish(REQUESTS + "1", TIME, qos=2)
    client.expect_disconnect(0x9B)


def test_a_packet_that_is_too_large_closes_a_v5_client(connected, family):
    client = connected(family.a, 5)
    client.publish("v1/devices/me/telemetry", "x" * 65536)
    client.expect_disconnect(0x95)


@VERSIONS
def test_a_packet_of_the_largest_size(client, version):
    topic = "v1/devices/me/telemetry"
    front = 1 + 3 + 2 + len(topic) + 2 + (1 if version == 5 else 0)
    client.publish(topic, f'"{"x" * (65536 - front - 2)}"', qos=1)
    assert client.expect(PUBACK).code == 0


@VERSIONS
@pytest.mark.parametrize("kind", [1, 2, 9, 11, 13], ids=["connect", "connack", "suback", "unsuback", "pingresp"])
def test_a_packet_that_a_client_must_not_send_closes(client, version, kind):
    client.send(packet(kind, b"\0\1\0\0" if kind != 13 else b""))
    last = client.receive()
    if version == 5 and last is not None:
        assert last.kind == DISCONNECT and last.code in (0x81, 0x82)
        last = client.receive()
    assert last is None


@VERSIONS
def test_a_request_at_qos_1_is_acknowledged(client, version):
    client.publish(REQUESTS + "1", TIME, qos=1)
    kinds = {client.receive().kind, client.receive().kind}
    assert kinds == {PUBACK, PUBLISH}


def test_an_answer_that_is_no_json_is_refused_and_the_call_stays_open(connected, family):
    target, caller = connected(family.a, 5), connected(family.b, 4, node=1)
    target.subscribe(REQUESTS + "+")
    caller.publish(REQUESTS + "1", call(family.a))
    number = target.expect(PUBLISH).topic.removeprefix(REQUESTS)
    for wrong in (b"ok", b"{", b"", b'"\xff"'):
        target.publish(RESPONSES + number, wrong, qos=1)
        assert target.expect(PUBACK).code == 0x99
    target.publish(RESPONSES + number, '{"right":true}', qos=1)
    assert target.expect(PUBACK).code == 0
    assert caller.expect(PUBLISH).payload == b'{"right":true}'
    # The second answer to one call goes nowhere.
    target.publish(RESPONSES + number, '{"twice":true}', qos=1)
    assert target.expect(PUBACK).code == 0x10
    caller.ping()


@pytest.mark.parametrize(("version", "qos"), [(4, 0), (4, 1), (5, 0)])
def test_an_answer_that_is_no_json_and_cannot_be_told_so_ends_the_call(connected, family, version, qos):
    target, caller = connected(family.a, version), connected(family.b, 5, node=1)
    target.subscribe(REQUESTS + "+")
    caller.publish(REQUESTS + "1", call(family.a))
    number = target.expect(PUBLISH).topic.removeprefix(REQUESTS)
    target.publish(RESPONSES + number, "ok", qos=qos)
    if qos:
        assert target.expect(PUBACK).code == 0
    answer = caller.expect(PUBLISH)
    assert answer.payload == b'{"error":"Response of the remote device is not valid!"}'
    assert answer.user["outcome"] == "answer_invalid"
    target.ping()


@VERSIONS
def test_oneway_at_qos_1_is_delivered_with_its_puback(connected, family, version):
    target, caller = connected(family.a, version), connected(family.b, 4, node=1)
    target.subscribe(REQUESTS + "+", qos=1)
    caller.publish(REQUESTS + "1", call(family.a, oneway="true"))
    delivery = target.expect(PUBLISH)
    assert delivery.qos == 1 and "response_topic" not in delivery.properties
    # No PUBACK yet: a later request of the caller is answered first.
    caller.publish(REQUESTS + "2", TIME)
    assert caller.expect(PUBLISH).topic == RESPONSES + "2"
    target.puback(delivery.packet_id)
    answer = caller.expect(PUBLISH)
    assert (answer.topic, answer.payload) == (RESPONSES + "1", b"null")


@VERSIONS
def test_oneway_at_qos_0_is_delivered_with_its_writing(connected, family, version):
    target, caller = connected(family.a, version), connected(family.b, 4, node=1)
    target.subscribe(REQUESTS + "+")
    caller.publish(REQUESTS + "1", call(family.a, oneway="true"))
    assert caller.expect(PUBLISH).payload == b"null"
    assert target.expect(PUBLISH).qos == 0


@VERSIONS
def test_oneway_without_its_puback_ends_with_the_session(connected, family, version):
    target, caller = connected(family.a, version), connected(family.b, 4, node=1)
    target.subscribe(REQUESTS + "+", qos=1)
    caller.publish(REQUESTS + "1", call(family.a, oneway="true"))
    target.expect(PUBLISH)
    target.socket.close()
    assert caller.expect(PUBLISH).payload.decode() == said.LOST


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1])
@pytest.mark.parametrize("kind", ["telemetry", "attributes"])
def test_uplinks_reach_nats(shared_cluster, client, family, version, kind, qos):
    payload = b'{"temperature": 21.5}'
    with NatsListener(shared_cluster.nats.url, f"swb.uplink.*.{family.a.id}.{kind}") as listener:
        client.publish(f"v1/devices/me/{kind}", payload, qos=qos)
        if qos:
            assert client.expect(PUBACK).code == 0
        subject, heard = listener.next()
    assert heard == payload
    tenant = subject.split(".")[2]
    assert len(tenant) == 36 and subject.endswith(f".{family.a.id}.{kind}")


def test_two_connections_of_one_device_have_their_own_answers(connected, family):
    clients = [connected(family.a, 4, node=0), connected(family.a, 5, node=0), connected(family.a, 4, node=1)]
    for number, client in enumerate(clients):
        client.publish(f"{REQUESTS}{number}", TIME)
    for number, client in enumerate(clients):
        assert client.expect(PUBLISH).topic == f"{RESPONSES}{number}"
        client.ping()


def test_response_topic_and_correlation_data_come_back(connected, family):
    client = connected(family.a, 5)
    own = {"response_topic": RESPONSES + "mine", "correlation": b"\x00\xff"}
    client.publish(REQUESTS + "1", TIME, **own)
    answer = client.expect(PUBLISH)
    assert (answer.topic, answer.properties["correlation"]) == (RESPONSES + "mine", b"\x00\xff")
    client.publish(REQUESTS + "2", TIME, correlation=b"c")
    answer = client.expect(PUBLISH)
    assert (answer.topic, answer.properties["correlation"]) == (RESPONSES + "2", b"c")


def test_a_response_topic_elsewhere_is_refused(connected, family):
    client = connected(family.a, 5)
    client.publish(REQUESTS + "1", TIME, response_topic="v1/devices/me/telemetry")
    answer = client.expect(PUBLISH)
    assert answer.topic == RESPONSES + "1"
    assert answer.payload.startswith(b'{"error":"Malformed request: ')


def test_a_v5_target_reads_where_the_answer_belongs(connected, family):
    target, caller = connected(family.a, 5), connected(family.b, 4, node=1)
    target.subscribe(REQUESTS + "+")
    caller.publish(REQUESTS + "9", call(family.a))
    delivery = target.expect(PUBLISH)
    assert delivery.properties["response_topic"] == delivery.topic.replace("request", "response")
    target.publish(delivery.properties["response_topic"], "1")
    assert caller.expect(PUBLISH).payload == b"1"


def test_the_trace_reaches_the_target(connected, family):
    target, caller = connected(family.a, 5), connected(family.b, 5, node=1)
    target.subscribe(REQUESTS + "+")
    traceparent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    caller.publish(REQUESTS + "1", call(family.a), user_property=("traceparent", traceparent))
    assert target.expect(PUBLISH).user["traceparent"] == traceparent


def test_message_expiry_shortens_the_budget(connected, family):
    target, caller = connected(family.a, 4), connected(family.b, 5, node=1)
    target.subscribe(REQUESTS + "+")
    caller.publish(REQUESTS + "1", call(family.a, timeout="60000"), message_expiry=1)
    assert caller.expect(PUBLISH, within_s=10).payload.decode() == said.TIMED_OUT


def test_topic_aliases(connected, family):
    client = connected(family.a, 5)
    client.publish(REQUESTS + "1", TIME, topic_alias=16)
    assert client.expect(PUBLISH).topic == RESPONSES + "1"
    client.publish("", TIME, topic_alias=16)
    assert client.expect(PUBLISH).topic == RESPONSES + "1"
    client.publish(REQUESTS + "2", TIME, topic_alias=16)
    assert client.expect(PUBLISH).topic == RESPONSES + "2"
    client.publish("", TIME, topic_alias=16)
    assert client.expect(PUBLISH).topic == RESPONSES + "2"


@pytest.mark.parametrize(("alias", "topic"), [(17, REQUESTS + "1"), (0, REQUESTS + "1"), (3, "")])
def test_a_topic_alias_that_cannot_be(connected, family, alias, topic):
    client = connected(family.a, 5)
    client.publish(topic, TIME, topic_alias=alias)
    ended = client.expect(DISCONNECT)
    assert ended.code in ((0x94,) if alias else (0x94, 0x81, 0x82))
    client.expect_closed()


def test_the_clients_receive_maximum_is_kept(connected, family):
    target, caller = connected(family.a, 5, receive_maximum=1), connected(family.b, 4, node=1)
    target.subscribe(REQUESTS + "+", qos=1)
    for number in ("1", "2"):
        caller.publish(REQUESTS + number, call(family.a))
    first = target.expect(PUBLISH)
    target.ping()
    target.puback(first.packet_id)
    second = target.expect(PUBLISH)
    target.puback(second.packet_id)
    for delivery in (second, first):
        target.publish(delivery.topic.replace("request", "response"), f'"{delivery.topic}"')
    answers = {caller.expect(PUBLISH).topic for _ in range(2)}
    assert answers == {RESPONSES + "1", RESPONSES + "2"}


@pytest.mark.parametrize(
    ("size", "payload", "outcome"),
    [
        (2000, f'"{"x" * 300}"', "answered"),
        (250, '{"error":"Response of the remote device is too large!"}', "answer_too_large"),
        (95, '{"error":"Response of the remote device is too large!"}', None),
        (85, "{}", "answer_too_large"),
        (45, "{}", None),
    ],
)
def test_whatever_a_caller_takes_it_reads_something(connected, family, size, payload, outcome):
    caller, target = connected(family.a, 5, client_id="x", maximum_packet_size=size), connected(family.b, 5, node=1)
    target.subscribe(REQUESTS + "+")
    caller.publish(REQUESTS + "1", call(family.b))
    delivery = target.expect(PUBLISH)
    target.publish(delivery.properties["response_topic"], f'"{"x" * 300}"')
    answer = caller.expect(PUBLISH)
    assert (answer.payload.decode(), answer.user.get("outcome")) == (payload, outcome)
    caller.ping()


def test_a_call_that_its_target_cannot_take(connected, family):
    target, caller = connected(family.a, 5, client_id="x", maximum_packet_size=100), connected(family.b, 5, node=1)
    target.subscribe(REQUESTS + "+")
    caller.publish(REQUESTS + "1", call(family.a).replace('"body":1', f'"body":"{"x" * 200}"'))
    answer = caller.expect(PUBLISH)
    assert answer.payload == b'{"error":"Message is too large for the remote device!"}'
    assert answer.user["outcome"] == "too_large_for_target"
    # What does fit still comes, without what else is said beside it.
    caller.publish(REQUESTS + "2", call(family.a))
    delivery = target.expect(PUBLISH)
    assert delivery.payload == b'{"method":"onMsg","params":1}' and delivery.user == {}
    target.publish(delivery.properties["response_topic"], "2")
    assert caller.expect(PUBLISH).payload == b"2"


def test_the_target_learns_who_calls_and_the_caller_how_it_ended(connected, family):
    target, caller = connected(family.a, 5), connected(family.b, 5, node=1)
    target.subscribe(REQUESTS + "+")
    forged = [(name, "forged") for name in ("caller", "caller-name", "call", "expires-ms", "outcome")]
    caller.publish(REQUESTS + "1", call(family.a), user_property=forged)
    delivery = target.expect(PUBLISH)
    user = delivery.user
    assert (user["caller"], user["caller-name"]) == (family.b.id, family.b.name)
    assert 0 < int(user["expires-ms"]) <= 15000
    target.publish(delivery.properties["response_topic"], '{"error":"mine"}', user_property=("outcome", "forged"))
    answer = caller.expect(PUBLISH)
    assert (answer.payload, answer.user) == (b'{"error":"mine"}', {"outcome": "answered", "call": user["call"]})
    caller.publish(REQUESTS + "2", call(family.c))
    answer = caller.expect(PUBLISH)
    assert answer.payload.decode() == said.OFFLINE
    assert answer.user["outcome"] == "offline" and answer.user["call"] != user["call"]


def test_a_message_that_has_expired_is_not_asked(connected, family):
    caller = connected(family.b, 5)
    caller.publish(REQUESTS + "1", call(family.a), message_expiry=0)
    assert caller.expect(PUBLISH).payload.decode() == said.TIMED_OUT


def test_retain_is_refused(connected, family):
    client = connected(family.a, 5)
    client.send(packet(PUBLISH, text("v1/devices/me/telemetry") + properties() + b"{}", 1))
    client.expect_disconnect(0x9A)


def call(target, timeout="15000", oneway="false"):
    params = f'"deviceId":"{target.id}","timeout":{timeout},"oneway":{oneway},"body":1'
    return f'{{"method":"sendMsg","params":{{{params}}}}}'
