"""Does every call end as the device API says, to the byte, whatever caller and target speak and wherever they are?"""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from harness import said
from harness.accounts import Family, identity
from harness.cluster import Cluster, Ingress
from harness.devices import PROTOCOLS, Device
from harness.devices.device import answering, echo
from harness.waiting import until

MakeDevice = Callable[..., Device]

ANSWER = '{"status": "ok",\n "n":[1,2.50,1e3]} '


@dataclass
class Pair:
    """A connected caller, and a target that is not connected yet."""

    caller: Device
    target: Device
    family: Family
    target_node: Ingress

    def target_callable(self, handler: Callable | None = None) -> Device:
        return self.target.connect(self.target_node).become_callable(handler)


@pytest.fixture(params=PROTOCOLS, ids=lambda kind: f"from-{kind.protocol}")
def caller_kind(request: pytest.FixtureRequest) -> type[Device]:
    return request.param


@pytest.fixture(params=PROTOCOLS, ids=lambda kind: f"to-{kind.protocol}")
def target_kind(request: pytest.FixtureRequest) -> type[Device]:
    return request.param


@pytest.fixture(params=["across", "within"])
def where(request: pytest.FixtureRequest) -> str:
    """Caller and target on different nodes, or on the same."""
    return request.param


@pytest.fixture
def pair(
    shared_cluster: Cluster,
    family: Family,
    device: MakeDevice,
    caller_kind: type[Device],
    target_kind: type[Device],
    where: str,
) -> Iterator[Pair]:
    nodes = shared_cluster.nodes
    caller = device(caller_kind, family.a).connect(nodes[0])
    yield Pair(caller, device(target_kind, family.b), family, nodes[1] if where == "across" else nodes[0])


@pytest.fixture
def caller(shared_cluster: Cluster, family: Family, device: MakeDevice, caller_kind: type[Device]) -> Device:
    """A caller whose target does not matter."""
    return device(caller_kind, family.a).connect(shared_cluster.nodes[0])


BODIES = [
    '{"param1":"value1"}',
    "null",
    "true",
    "-12.50e+3",
    '"text"',
    "[]",
    ' { "kept" : [ 1 ,\t2 ] ,\r\n "twice":1, "twice":2 } ',
    '"ünïcödé \\u00e9 \U0001f600"',
    json.dumps("x" * 60_000),
]


def test_answered(pair):
    target = pair.target_callable()
    for body in BODIES:
        answer = pair.caller.send_msg(pair.family.b, body)
        call = target.next_call()
        assert call.text == f'{{"method":"onMsg","params":{body.strip()}}}'
        call.answer(body)
        assert answer.text() == body


def test_a_body_that_is_absent_is_null(pair):
    pair.target_callable(answering(ANSWER))
    assert pair.caller.send_msg(pair.family.b).text() == ANSWER


def test_an_absent_body_reaches_the_target_as_null(pair):
    target = pair.target_callable()
    answer = pair.caller.send_msg(pair.family.b)
    call = target.next_call()
    assert call.text == '{"method":"onMsg","params":null}'
    call.answer("null")
    assert answer.text() == "null"


def test_many_calls_at_once_keep_their_answers(pair):
    pair.target_callable(echo)
    answers = {number: pair.caller.send_msg(pair.family.b, str(number)) for number in range(50)}
    assert {number: answer.text() for number, answer in answers.items()} == {n: str(n) for n in range(50)}


def test_oneway(pair):
    target = pair.target_callable()
    assert pair.caller.send_msg(pair.family.b, '{"one":"way"}', oneway=True).text() == "null"
    assert target.next_call().text == '{"method":"onMsg","params":{"one":"way"}}'


def test_offline(pair):
    started = time.monotonic()
    assert pair.caller.send_msg(pair.family.b, "1").text() == said.OFFLINE
    assert time.monotonic() - started < 5, "nobody there is never a wait"


def test_connected_without_listening_is_offline(pair):
    pair.target.connect(pair.target_node)
    assert pair.caller.send_msg(pair.family.b, "1").text() == said.OFFLINE


def test_a_target_that_connects_meanwhile_is_called(pair):
    answer = pair.caller.send_msg(pair.family.b, "1", timeout=20_000, connectTimeout=20_000)
    pair.target_callable(answering(ANSWER))
    assert answer.text() == ANSWER


def test_a_target_that_never_comes_is_offline_after_the_connect_timeout(caller, family):
    started = time.monotonic()
    answer = caller.send_msg(family.b, "1", timeout=20_000, connectTimeout=400)
    assert answer.text() == said.OFFLINE
    assert 0.4 <= time.monotonic() - started < 10


def test_timed_out(pair):
    target = pair.target_callable()
    started = time.monotonic()
    answer = pair.caller.send_msg(pair.family.b, "1", timeout=400)
    call = target.next_call()
    assert answer.text() == said.TIMED_OUT
    assert 0.4 <= time.monotonic() - started < 5
    # A late answer goes nowhere, and does no harm.
    call.answer("1")
    again = pair.caller.send_msg(pair.family.b, "2")
    target.next_call().answer('"again"')
    assert again.text() == '"again"'


@pytest.mark.parametrize("end", ["vanish", "close"])
def test_lost(pair, end):
    target = pair.target_callable()
    # A device that only asks is not seen to go, nor one to which nothing is sent that it could fail to acknowledge.
    is_seen = pair.target.can_be_lost and (end == "close" or pair.target.seen_to_vanish)
    answer = pair.caller.send_msg(pair.family.b, "1", timeout=60_000 if is_seen else 1_000)
    target.next_call()
    started = time.monotonic()
    getattr(target, end)()
    assert answer.text() == (said.LOST if is_seen else said.TIMED_OUT)
    assert time.monotonic() - started < 5, "the caller need not wait the budget out"


def test_after_the_target_has_gone_it_is_offline(pair):
    target = pair.target_callable(answering(ANSWER))
    assert pair.caller.send_msg(pair.family.b, "1").text() == ANSWER
    target.close()
    assert pair.caller.send_msg(pair.family.b, "2", connectTimeout=0).text() in (said.OFFLINE, said.LOST)
    assert pair.caller.send_msg(pair.family.b, "3").text() == said.OFFLINE


def test_a_device_may_call_itself(caller, family):
    caller.become_callable(answering(ANSWER))
    assert caller.send_msg(family.a, "1").text() == ANSWER


def test_unknown_device(caller):
    assert caller.send_msg("00000000-0000-4000-8000-000000000000", "1").text() == said.UNKNOWN_DEVICE


def test_a_device_of_another_tenant_does_not_exist(caller, shared_cluster):
    stranger = identity("Stranger", "Customer 1-1", tenant=f"Tenant of {caller.identity.id}")
    shared_cluster.accounts.add(stranger)
    assert caller.send_msg(stranger, "1").text() == said.UNKNOWN_DEVICE


def test_a_device_of_another_customer_is_denied(caller, shared_cluster):
    other = shared_cluster.accounts.family()
    assert caller.send_msg(other.a, "1").text() == said.DENIED


def test_unassigned_devices_are_denied(shared_cluster, family, device, caller_kind):
    lonely = identity(f"Lonely {family.a.id} {caller_kind.protocol}")
    shared_cluster.accounts.add(lonely)
    caller = device(caller_kind, lonely).connect(shared_cluster.nodes[0])
    assert caller.send_msg(family.b, "1").text() == said.DENIED
    assert caller.get_devices() == said.UNASSIGNED
    assigned = device(caller_kind, family.a).connect(shared_cluster.nodes[0])
    assert assigned.send_msg(lonely, "1").text() == said.DENIED


@pytest.mark.parametrize(
    ("params", "answer"),
    [
        ({"timeout": 0}, said.NOT_POSITIVE),
        ({"timeout": -1}, said.NOT_POSITIVE),
        ({"timeout": 60_001}, said.TOO_LARGE),
        ({"timeout": 10**30}, said.TOO_LARGE),
        ({"timeout": 1.5}, said.malformed("timeout must be a whole number of milliseconds")),
        ({"timeout": "soon"}, said.malformed("timeout must be a whole number of milliseconds")),
        ({"timeout": 1000, "connectTimeout": 1001}, "connectTimeout must be whole milliseconds from 0 to timeout"),
        ({"connectTimeout": -1}, "connectTimeout must be whole milliseconds from 0 to timeout"),
        ({"oneway": "yes"}, "oneway must be true or false"),
    ],
    ids=str,
)
def test_a_parameter_that_cannot_be(caller, family, params, answer):
    expected = answer if answer.startswith("{") else said.malformed(answer)
    assert caller.send_msg(family.b, "1", **params).text() == expected


@pytest.mark.parametrize(
    "params",
    ['"timeout":15000.0', '"timeout":1.5e4', '"timeout":"15000"', '"timeout":15000,"connectTimeout":"0.0"', '"oneway":"false"'],
)
def test_parameters_are_read_as_leniently_as_the_plugin_did(caller, family, params):
    request = f'{{"method":"sendMsg","params":{{"deviceId":"{family.b.id}",{params}}}}}'
    assert caller.ask(request).text() == said.OFFLINE
    in_an_array = request.replace('"params":{', '"params":[{').replace("}}", "}]}")
    assert caller.ask(in_an_array).text() == said.OFFLINE, "as ThingsBoard's Arduino SDK sends it"


@pytest.mark.parametrize("params", ['""', '"{}"', "null", "7", "[]", "[{}]"])
def test_params_of_a_method_that_needs_none_may_be_anything(caller, family, params):
    assert family.b.id in caller.ask(f'{{"method":"getDevices","params":{params}}}').text()
    assert '"time"' in caller.ask(f'{{"method":"getTime","params":{params}}}').text()



@pytest.mark.parametrize(
    ("request_text", "answer"),
    [
        ("", said.malformed("it must be JSON in UTF-8")),
        ("{", said.malformed("it must be JSON in UTF-8")),
        ("[]", said.malformed("it must be an object with method and params")),
        ("{}", said.malformed("method must be a string")),
        ('{"method":1}', said.malformed("method must be a string")),
        ('{"method":"sendMsg"}', said.malformed("params must be an object")),
        ('{"method":"sendMsg","params":{}}', said.malformed("deviceId must be a UUID")),
        ('{"method":"sendMsg","params":{"deviceId":"A2"}}', said.malformed("deviceId must be a UUID")),
        ('{"method":"sendMsg","params":{"deviceId":7}}', said.malformed("deviceId must be a UUID")),
        ('{"method":"getDevices","params":{"limit":0}}', said.malformed("limit must be a whole number from 1")),
        ('{"method":"getDevices","params":{"after":"A2"}}', said.malformed("after must be a UUID")),
        ('{"method":"getDevices","params":{"online":1}}', said.malformed("online must be true or false")),
        ('{"method":"getFoo"}', said.unsupported("getFoo")),
        ('{"method":"getFoo","params":{"x":1}}', said.unsupported("getFoo")),
    ],
)
def test_a_request_that_is_none(caller, request_text, answer):
    assert caller.ask(request_text).text() == answer


def test_get_devices(caller, family):
    others = f'[{{"id":"{family.b.id}","name":"{family.b.name}"}},{{"id":"{family.c.id}","name":"{family.c.name}"}}]'
    for request in ['{"method":"getDevices"}', *(
        f'{{"method":"getDevices","params":{params}}}' for params in ("{}", "null", '"{}"')
    )]:
        assert caller.ask(request).text() == others


def test_get_devices_in_pages(caller, family):
    first = f'[{{"id":"{family.b.id}","name":"{family.b.name}"}}]'
    rest = f'[{{"id":"{family.c.id}","name":"{family.c.name}"}}]'
    assert caller.get_devices({"limit": 1}) == first
    assert caller.get_devices({"limit": 1, "after": family.b.id}) == rest
    assert caller.get_devices({"after": family.b.id}) == rest
    assert caller.get_devices({"limit": 1, "after": family.c.id}) == "[]"


def test_get_devices_says_who_is_online(pair):
    def online(params: dict) -> list[bool]:
        return [entry["online"] for entry in json.loads(pair.caller.get_devices(params))]

    assert online({"online": True}) == [False, False]
    target = pair.target_callable()
    # What a router says follows the claim, a moment later.
    until("the target is online", lambda: online({"online": True}) == [True, False])
    assert pair.caller.get_devices({"online": False}) == pair.caller.get_devices()
    target.close()
    until("the target is offline", lambda: online({"online": True}) == [False, False])


def test_get_session_limits(caller):
    expected = (
        '{"maxPayloadSize":65536,"maxInflightMessages":100,"rateLimits":{"messages":"100:1",'
        '"telemetryMessages":"UPLINKS:1","telemetryDataPoints":"0:0,"}}'
    )
    answer = caller.ask('{"method":"getSessionLimits"}').text()
    uplinks = json.loads(answer)["rateLimits"]["telemetryMessages"].split(":")[0]
    assert answer in (expected.replace("UPLINKS", uplinks), expected.replace("UPLINKS:1", "0:0,"))


def test_get_time(caller):
    before_ms = time.time() * 1000 - 1
    now_ms = json.loads(caller.ask('{"method":"getTime"}').text())["time"]
    assert before_ms <= now_ms <= time.time() * 1000 + 1
