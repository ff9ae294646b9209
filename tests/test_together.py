"""Do calls end the same way where ingress, authorizer and router are one process? Every outcome once more, on two of those."""

import json
from collections.abc import Iterator

import pytest
from harness.cluster import Cluster
from harness.devices import CoapDevice, Device, HttpDevice, PahoV5
from harness.devices.device import echo
from test_outcomes import *  # noqa: F403

# Each as caller and as target: what the others among them speak is in the same processes' hands.
TARGET_OF = {PahoV5: HttpDevice, HttpDevice: CoapDevice, CoapDevice: PahoV5}
# A caller is faster than it may be.
SETTINGS = {"ingress.calls_per_second_per_device": "0"}


@pytest.fixture(scope="session")
def shared_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """In place of the cluster of all other tests."""
    cluster = Cluster(tmp_path_factory.mktemp("together"), nodes=0, authorizers=0, routers=0, whole_nodes=2, settings=SETTINGS)
    yield cluster
    cluster.stop()


@pytest.fixture(params=TARGET_OF, ids=lambda kind: f"from-{kind.protocol}")
def caller_kind(request: pytest.FixtureRequest) -> type[Device]:
    return request.param


@pytest.fixture
def target_kind(caller_kind: type[Device]) -> type[Device]:
    return TARGET_OF[caller_kind]


def test_a_call_to_another_node_takes_two_messages(shared_cluster, family, device):
    here, there = shared_cluster.nodes
    device(PahoV5, family.b).connect(there).become_callable(echo)
    caller = device(PahoV5, family.a).connect(here)
    before = shared_cluster.nats.messages()
    for number in range(1_000):
        assert caller.send_msg(family.b, str(number)).text() == str(number)
    # What the processes tell each other anyhow is far below one a call.
    assert 2_000 <= shared_cluster.nats.messages() - before < 2_900


def test_get_session_limits(caller):
    """In place of that of the others: here a caller has no limit."""
    limits = json.loads(caller.ask('{"method":"getSessionLimits"}').text())
    assert limits["rateLimits"]["messages"] == "0:0,"
