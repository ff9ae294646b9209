"""Do the settings that change what a device reads do so?"""

import time

import pytest
from harness import said
from harness.accounts import identity
from harness.cluster import Cluster
from harness.devices import PROTOCOLS
from harness.up import Up

KINDS = pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.protocol)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    settings = {
        "device_api.conceal_foreign_devices": "true",
        "device_api.default_connect_timeout_ms": "300",
        "device_api.default_timeout_ms": "20000",
    }
    cluster = Cluster(tmp_path_factory.mktemp("settings"), settings=settings)
    yield cluster
    cluster.stop()


@KINDS
def test_foreign_devices_can_be_concealed(cluster, device, kind):
    family, strangers = cluster.accounts.family(), cluster.accounts.family()
    lonely = identity(f"Lonely {family.a.id}")
    cluster.accounts.add(lonely)
    caller = device(kind, family.a).connect(cluster.nodes[0])
    assert caller.send_msg(strangers.a, "1").text() == said.UNKNOWN_DEVICE
    assert caller.send_msg(lonely, "1").text() == said.UNKNOWN_DEVICE
    assert caller.send_msg("00000000-0000-4000-8000-000000000000", "1").text() == said.UNKNOWN_DEVICE
    assert caller.send_msg(family.b, "1").text() == said.OFFLINE


@KINDS
def test_an_offline_target_can_be_waited_for_by_default(cluster, device, kind):
    family = cluster.accounts.family()
    caller = device(kind, family.a).connect(cluster.nodes[0])
    started = time.monotonic()
    assert caller.send_msg(family.b, "1").text() == said.OFFLINE
    assert 0.3 <= time.monotonic() - started < 10
    assert caller.send_msg(family.b, "1", timeout=100).text() == said.OFFLINE, "never longer than the call"
    assert caller.send_msg(family.b, "1", connectTimeout=0).text() == said.OFFLINE


def test_systems_of_different_prefixes_share_a_nats_unnoticed(demo, tmp_path, raw):
    other = Up(tmp_path, "--nats", demo.nats_url, "--set", "nats.prefix=other", ports=["--mqtt", "127.0.0.1:0", "--admin", "127.0.0.1:0"])
    try:
        other.wait_ready()
        assert raw(demo.mqtt_port).connect("A1_TEST_TOKEN").code == 0
        assert raw(other.mqtt_port).connect("A1_TEST_TOKEN").code == 5
    finally:
        other.stop()
