"""What does a device hear? SUBACK by the table, and answers only where a filter matches."""

import json

import pytest
from harness.raw_mqtt import PUBACK, PUBLISH, SUBSCRIBE, packet, properties, text

REQUESTS = "v1/devices/me/rpc/request/"
RESPONSES = "v1/devices/me/rpc/response/"
TIME = '{"method":"getTime"}'
VERSIONS = pytest.mark.parametrize("version", [4, 5], ids=["3.1.1", "5"])


@pytest.fixture
def client(shared_cluster, family, raw, version):
    client = raw(shared_cluster.nodes[0].mqtt_port, version)
    assert client.connect(family.a.token).code == 0
    return client


@VERSIONS
@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize(
    "topic_filter",
    [
        REQUESTS + "+",
        REQUESTS + "#",
        REQUESTS + "7",
        RESPONSES + "+",
        RESPONSES + "#",
        RESPONSES + "7",
        "v1/devices/me/attributes",
        "v1/devices/me/attributes/response/+",
    ],
)
def test_granted(client, version, topic_filter, qos):
    assert client.subscribe(topic_filter, qos=qos).codes == [min(qos, 1)]


@VERSIONS
@pytest.mark.parametrize(
    "topic_filter", ["#", "+", "v1/#", "v1/devices/me/rpc/#", "v1/devices/+/rpc/request/+", "$SYS/#", "é", "v1/gateway/rpc"]
)
def test_refused(client, version, topic_filter):
    assert client.subscribe(topic_filter, qos=1).codes == [{4: 0x80, 5: 0x87}[version]]
    client.ping()


@VERSIONS
def test_one_code_for_each_filter(client, version):
    refused = {4: 0x80, 5: 0x87}[version]
    codes = client.subscribe(REQUESTS + "+", "elsewhere", RESPONSES + "+", qos=1).codes
    assert codes == [1, refused, 1]


@VERSIONS
@pytest.mark.parametrize("topic_filter", ["", "v1/devices/me/rpc/request/#/x", "v1/devices/me/rpc/request/a+"])
def test_a_filter_that_is_none_closes(client, version, topic_filter):
    client.send(packet(SUBSCRIBE, b"\0\1" + (properties() if version == 5 else b"") + text(topic_filter) + b"\0", 2))
    if version == 5:
        assert client.receive().kind == 14
    client.expect_closed()


@VERSIONS
def test_more_filters_than_a_session_may_have(client, version):
    for number in range(16):
        assert client.subscribe(f"{RESPONSES}{number}").codes == [0]
    assert client.subscribe(f"{RESPONSES}16").codes == [{4: 0x80, 5: 0x97}[version]]
    assert client.subscribe(f"{RESPONSES}3", qos=1).codes == [1], "one that is there may be changed"


@VERSIONS
def test_an_answer_is_heard_only_through_a_filter(client, version):
    client.publish(REQUESTS + "1", TIME, qos=1)
    client.expect(PUBACK)
    assert client.subscribe(RESPONSES + "3").codes == [0]
    for number in (2, 3):
        client.publish(f"{REQUESTS}{number}", TIME)
    assert client.expect(PUBLISH).topic == RESPONSES + "3"
    client.unsubscribe(RESPONSES + "3")
    client.publish(REQUESTS + "3", TIME)
    client.subscribe(RESPONSES + "4")
    client.publish(REQUESTS + "4", TIME)
    assert client.expect(PUBLISH).topic == RESPONSES + "4"


@VERSIONS
@pytest.mark.parametrize("number", ["0", "2147483647"])
def test_an_answer_has_the_requests_number(client, version, number):
    client.subscribe(RESPONSES + "+", qos=1)
    client.publish(REQUESTS + number, TIME, qos=1)
    client.expect(PUBACK)
    answer = client.expect(PUBLISH)
    assert (answer.topic, answer.qos) == (RESPONSES + number, 1)
    assert list(json.loads(answer.payload)) == ["time"]


@VERSIONS
def test_overlapping_filters_give_one_answer(client, version):
    client.subscribe(RESPONSES + "+", RESPONSES + "#", RESPONSES + "1", qos=1)
    for number in ("1", "2"):
        client.publish(REQUESTS + number, TIME)
        assert client.expect(PUBLISH).topic == RESPONSES + number


@VERSIONS
def test_nothing_is_echoed_to_its_sender(client, version):
    client.subscribe(REQUESTS + "+", RESPONSES + "+", "v1/devices/me/attributes")
    client.publish("v1/devices/me/attributes", '{"a":1}', qos=1)
    client.expect(PUBACK)
    client.publish(RESPONSES + "5", "{}", qos=1)
    client.expect(PUBACK)
    client.publish(REQUESTS + "6", TIME)
    assert client.expect(PUBLISH).topic == RESPONSES + "6"
    client.ping()


@VERSIONS
def test_a_target_that_hears_one_number_is_called_under_it(client, shared_cluster, family, raw, version):
    client.subscribe(REQUESTS + "42", qos=1)
    caller = raw(shared_cluster.nodes[1].mqtt_port)
    caller.connect(family.b.token)
    caller.subscribe(RESPONSES + "+")
    caller.publish(REQUESTS + "1", call(family.a.id))
    assert client.expect(PUBLISH).topic == REQUESTS + "42"
    client.publish(RESPONSES + "42", '"yes"')
    assert caller.expect(PUBLISH).payload == b'"yes"'


@VERSIONS
def test_unsubscribing_makes_a_device_offline_at_once(client, shared_cluster, family, raw, version):
    client.subscribe(REQUESTS + "+")
    unsuback = client.unsubscribe(REQUESTS + "+", "never/was")
    assert unsuback.codes == ([] if version == 4 else [0, 0x11])
    caller = raw(shared_cluster.nodes[1].mqtt_port)
    caller.connect(family.b.token)
    caller.subscribe(RESPONSES + "+")
    caller.publish(REQUESTS + "1", call(family.a.id))
    assert caller.expect(PUBLISH).payload == b'{"error":"No active connection to the remote device!"}'
    assert client.subscribe(REQUESTS + "+").codes == [0]
    caller.publish(REQUESTS + "2", call(family.a.id))
    assert client.expect(PUBLISH).payload == b'{"method":"onMsg","params":1}'


def call(target: str) -> str:
    return f'{{"method":"sendMsg","params":{{"deviceId":"{target}","timeout":15000,"body":1}}}}'
