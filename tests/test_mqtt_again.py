"""What comes of a message that comes again, too fast, or too large? It is done once, acknowledged, and ends nothing."""

import json
import time

import pytest
from harness import said
from harness.cluster import Cluster
from harness.nats_listener import NatsListener
from harness.raw_mqtt import PINGREQ, PUBACK, PUBCOMP, PUBLISH, PUBREC, again, id_of, packet

REQUESTS = "v1/devices/me/rpc/request/"
RESPONSES = "v1/devices/me/rpc/response/"
TELEMETRY = "v1/devices/me/telemetry"
VERSIONS = pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5"])


@pytest.fixture
def connected(shared_cluster, raw):
    def connect(identity, version=4, node=0, cluster=shared_cluster):
        client = raw(cluster.nodes[node].mqtt_port, version)
        assert client.connect(identity.token).code == 0
        client.subscribe(RESPONSES + "+")
        return client

    return connect


def call(target, body=1):
    params = {"deviceId": target.id, "timeout": 15000, "body": body}
    return json.dumps({"method": "sendMsg", "params": params})


def takes_one_call(target):
    """Answers the one call that comes, and says that no other does."""
    delivery = target.expect(PUBLISH)
    target.publish(delivery.topic.replace("request", "response"), '"done"')
    target.ping()


@VERSIONS
@pytest.mark.parametrize("dup", [True, False], ids=["DUP", "without DUP"])
def test_a_call_sent_again_before_its_puback_is_read_runs_once(connected, family, version, dup):
    target, caller = connected(family.a, node=1), connected(family.b, version)
    target.subscribe(REQUESTS + "+")
    sent = caller.message(REQUESTS + "1", call(family.a), 1)
    caller.send(sent + (again(sent) if dup else sent))
    assert [caller.expect(PUBACK).packet_id for _ in range(2)] == [id_of(sent)] * 2
    takes_one_call(target)
    assert caller.expect(PUBLISH).payload == b'"done"'
    caller.ping()
    target.ping()


@VERSIONS
def test_a_call_sent_again_while_its_puback_is_on_the_way_runs_once(connected, family, version):
    target, caller = connected(family.a, node=1), connected(family.b, version)
    target.subscribe(REQUESTS + "+")
    sent = caller.publish(REQUESTS + "1", call(family.a), qos=1)
    takes_one_call(target)
    for _ in range(2):
        caller.send(again(sent))
    kinds = [caller.receive() for _ in range(4)]
    assert sorted(it.kind for it in kinds) == [PUBLISH, PUBACK, PUBACK, PUBACK]
    caller.ping()
    target.ping()


@VERSIONS
def test_an_id_that_is_free_again_stands_for_a_new_call(connected, family, version):
    caller = connected(family.b, version)
    sent = caller.message(REQUESTS + "1", '{"method":"getTime"}', 1)
    for _ in range(3):
        caller.send(sent)
        assert {caller.receive().kind, caller.receive().kind} == {PUBACK, PUBLISH}


@VERSIONS
def test_telemetry_sent_again_is_handed_up_once(shared_cluster, connected, family, version):
    client = connected(family.a, version)
    with NatsListener(shared_cluster.nats.url, f"swb.uplink.*.{family.a.id}.telemetry") as listener:
        first = client.message(TELEMETRY, '{"n":1}', 1)
        client.send(first + again(first))
        assert [client.expect(PUBACK).code for _ in range(2)] == [0, 0]
        second = client.message(TELEMETRY, '{"n":2}', 1)
        client.send(again(first) + second)
        assert [client.expect(PUBACK).packet_id for _ in range(2)] == [id_of(first), id_of(second)]
        assert [listener.next()[1] for _ in range(2)] == [b'{"n":1}', b'{"n":2}']


def test_qos_2_over_3_1_1_is_served_once(shared_cluster, connected, family):
    client = connected(family.a)
    with NatsListener(shared_cluster.nats.url, f"swb.uplink.*.{family.a.id}.telemetry") as listener:
        for number in (1, 2):
            sent = client.message(TELEMETRY, f'{{"n":{number}}}', 2)
            for copy in (sent, again(sent)):
                client.send(copy)
                assert client.expect(PUBREC).packet_id == id_of(sent)
            for _ in range(2):
                client.pubrel(id_of(sent))
                assert client.expect(PUBCOMP).packet_id == id_of(sent)
        assert [listener.next()[1] for _ in range(2)] == [b'{"n":1}', b'{"n":2}']


def test_a_call_at_qos_2_over_3_1_1_runs_once(connected, family):
    target, caller = connected(family.a, node=1), connected(family.b)
    target.subscribe(REQUESTS + "+")
    sent = caller.message(REQUESTS + "1", call(family.a), 2)
    caller.send(sent + again(sent))
    assert [caller.expect(PUBREC).packet_id for _ in range(2)] == [id_of(sent)] * 2
    takes_one_call(target)
    assert caller.expect(PUBLISH).payload == b'"done"'
    caller.pubrel(id_of(sent))
    caller.expect(PUBCOMP)
    target.ping()


@pytest.mark.parametrize(("qos", "acknowledged"), [(0, None), (1, PUBACK), (2, PUBREC)])
def test_what_is_too_large_over_3_1_1_is_read_past(new_cluster, raw, qos, acknowledged):
    cluster = new_cluster(settings={"mqtt.max_packet_bytes": "5000"})
    node = cluster.nodes[0]
    client = raw(node.mqtt_port)
    client.connect(cluster.accounts.family().a.token)
    client.subscribe(RESPONSES + "+")
    for topic in (TELEMETRY, "elsewhere", TELEMETRY):
        client.publish(topic, "x" * 1_000_000, qos=qos)
        if acknowledged:
            client.expect(acknowledged)
        client.ping()
    assert node.admin.value("switchboard_messages_dropped_total", reason="too_large") == 3
    assert node.admin.value("switchboard_limits_hit_total", limit="packet_bytes") == 3
    assert [line["topic"] for line in node.process.wait_for_messages("messages are dropped", 1)] == [TELEMETRY]
    # Who waits for an answer is told, too.
    client.publish(REQUESTS + "1", "x" * 6000, qos=qos)
    kinds = {client.receive().kind for _ in range(2 if acknowledged else 1)}
    assert kinds == {PUBLISH, acknowledged} - {None}


def test_an_answer_that_is_too_large_over_3_1_1_ends_the_call(connected, family):
    target, caller = connected(family.a), connected(family.b, 5, node=1)
    target.subscribe(REQUESTS + "+")
    caller.publish(REQUESTS + "1", call(family.a))
    topic = target.expect(PUBLISH).topic.replace("request", "response")
    target.publish(topic, f'"{"x" * 70_000}"', qos=1)
    assert target.expect(PUBACK).code == 0
    assert caller.expect(PUBLISH).user["outcome"] == "answer_too_large"


@pytest.mark.parametrize("packets", [1, 10], ids=["in one write", "in ten"])
def test_a_thousand_stored_messages_are_each_acknowledged_once(shared_cluster, connected, family, packets):
    client = connected(family.a)
    stored = [client.message(TELEMETRY, f'{{"n":{n}}}', 1) for n in range(1000)]
    with NatsListener(shared_cluster.nats.url, f"swb.uplink.*.{family.a.id}.telemetry") as listener:
        for part in range(packets):
            client.send(b"".join(stored[part * 1000 // packets : (part + 1) * 1000 // packets]))
        acknowledged = [client.expect(PUBACK).packet_id for _ in range(1000)]
        heard = [json.loads(listener.next()[1])["n"] for _ in range(1000)]
    assert sorted(acknowledged) == [id_of(it) for it in stored]
    assert heard == list(range(1000))
    client.ping()


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A node that takes ten messages a second, two at once."""
    settings = {"ingress.uplinks_per_second_per_device": "10", "ingress.uplink_burst_per_device": "2"}
    cluster = Cluster(tmp_path_factory.mktemp("slow"), settings=settings)
    yield cluster
    cluster.stop()


def test_over_3_1_1_the_node_waits_for_its_rate(slow, connected):
    client = connected(slow.accounts.family().a, cluster=slow)
    messages = [client.message(TELEMETRY, "{}", 1) for _ in range(12)]
    client.send(b"".join(messages) + packet(PINGREQ, b""))
    started = time.monotonic()
    acknowledged = [client.receive() for _ in range(13)]
    # Ten of them have waited for a tenth of a second each.
    assert 0.9 <= time.monotonic() - started < 10
    assert [it.packet_id for it in acknowledged if it.kind == PUBACK] == [id_of(it) for it in messages]


@VERSIONS
def test_at_qos_0_a_store_that_is_sent_too_fast_is_handed_up_whole(slow, connected, version):
    device = slow.accounts.family().a
    client = connected(device, version, cluster=slow)
    with NatsListener(slow.nats.url, f"swb.uplink.*.{device.id}.telemetry") as listener:
        client.send(b"".join(client.message(TELEMETRY, f'{{"n":{n}}}', 0) for n in range(12)))
        assert [json.loads(listener.next()[1])["n"] for _ in range(12)] == list(range(12))
    client.ping()


def test_a_v5_client_is_told_that_it_is_too_fast(slow, connected):
    client = connected(slow.accounts.family().a, 5, cluster=slow)
    client.send(b"".join(client.message(TELEMETRY, "{}", 1) for _ in range(3)))
    assert sorted(client.expect(PUBACK).code for _ in range(3)) == [0, 0, 0x97]
    client.ping()


def test_a_v5_client_keeps_to_the_receive_maximum(connected, family):
    client = connected(family.a, 5)
    client.send(b"".join(client.message(TELEMETRY, "{}", 1) for _ in range(1000)))
    while (it := client.receive()) is not None and it.kind == PUBACK:
        assert it.code == 0
    assert it is not None and it.code == 0x93
    client.expect_closed()


def test_a_call_over_its_limit_is_answered_and_not_held(new_cluster, raw):
    cluster = new_cluster(settings={"ingress.calls_per_second_per_device": "1", "ingress.call_burst_per_device": "1"})
    client = raw(cluster.nodes[0].mqtt_port)
    client.connect(cluster.accounts.family().a.token)
    client.subscribe(RESPONSES + "+")
    for number in range(2):
        client.publish(f"{REQUESTS}{number}", '{"method":"getTime"}', qos=1)
    answers = [it for it in (client.receive() for _ in range(4)) if it.kind == PUBLISH]
    assert sorted(it.payload.decode() == said.BUSY for it in answers) == [False, True]
