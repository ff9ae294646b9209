"""Does a device made with ThingsBoard's own SDK for Python work as it is? MQTT 5, its own habits included."""

import itertools
import json
from collections import Counter

import pytest
from harness import said
from harness.devices import HttpDevice
from harness.nats_listener import NatsListener
from harness.processes import Process
from harness.programs import ROOT, tool
from harness.waiting import until

DRIVER = ROOT / "tests" / "clients" / "thingsboard" / "driver.py"
SDK = ROOT / ".tools" / "thingsboard"


class Sdk:
    """A device that the SDK connects."""

    def __init__(self, identity, node):
        command = [tool("python3"), DRIVER, str(node.mqtt_port), identity.token]
        self.process = Process("thingsboard-sdk", command, None, env={"PYTHONPATH": str(SDK)})
        self._heard = Counter()
        self.next("connected")

    def next(self, what):
        """The next thing of this kind that it says."""
        lines = itertools.count()
        is_next = lambda event: what in event and next(lines) == self._heard[what]  # noqa: E731
        found = self.process.wait_for_line(what, lambda line: read(line) if is_next(read(line)) else None, stream="out")
        self._heard[what] += 1
        return found[what]

    def do(self, what, **arguments):
        self.process.write_line(json.dumps({"do": what} | arguments))

    def call(self, method, params):
        self.do("call", method=method, params=params)
        return self.next("answer")

    def end(self):
        self.do("end")
        assert self.process.wait() == 0


def read(line):
    """The SDK says things of its own, too."""
    return json.loads(line) if line.startswith("{") else {}


@pytest.fixture
def sdk(shared_cluster):
    made = []

    def make(identity, node):
        made.append(Sdk(identity, shared_cluster.nodes[node]))
        return made[-1]

    yield make
    for it in made:
        it.process.stop()


def test_it_lists_and_calls_and_is_called(sdk, family):
    caller, target = sdk(family.a, 0), sdk(family.b, 1)
    devices = caller.call("getDevices", {})
    assert {it["id"] for it in devices} == {family.b.id, family.c.id}
    answer = caller.call("sendMsg", {"deviceId": family.b.id, "timeout": 15_000, "body": {"x": 1}})
    assert answer == {"heard": {"x": 1}}
    assert target.next("called") == {"method": "onMsg", "params": {"x": 1}}
    caller.end()
    target.end()


def test_it_reads_why_not(sdk, family):
    caller = sdk(family.a, 0)
    assert caller.call("sendMsg", {"deviceId": family.b.id, "timeout": 5_000, "body": 1}) == json.loads(said.OFFLINE)


def test_it_is_called_by_other_devices(sdk, shared_cluster, family, device):
    sdk(family.b, 1)
    caller = device(HttpDevice, family.a).connect(shared_cluster.nodes[0])
    until("it is callable", lambda: caller.send_msg(family.b, "0").text() != said.OFFLINE)
    assert json.loads(caller.send_msg(family.b, '"over HTTP"').text()) == {"heard": "over HTTP"}


def test_it_applies_the_session_limits(sdk, family):
    device = sdk(family.a, 0)

    def limit():
        device.do("limits")
        return device.next("max_payload_bytes")

    # The SDK keeps to 80 % of what it is told, and to 8,196 bytes until then.
    until("it has the limits", limit)
    assert limit() == 65_536 * 80 // 100


@pytest.mark.parametrize("kind", ["telemetry", "attributes"])
def test_it_hands_values_up(sdk, shared_cluster, family, kind):
    device = sdk(family.a, 0)
    with NatsListener(shared_cluster.nats.url, f"swb.uplink.*.{family.a.id}.{kind}") as listener:
        device.do(kind, values={"temperature": 21.5})
        assert device.next("published") == 0
        _, heard = listener.next()
    values = json.loads(heard)
    assert values in ({"temperature": 21.5}, [{"temperature": 21.5}])
