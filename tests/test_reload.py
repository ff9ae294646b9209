"""Does a running service take over what has changed in its settings' file, and say what it cannot?"""

import os
import signal

import pytest
from harness import said
from harness.cluster import Cluster
from harness.devices import PROTOCOLS
from harness.programs import built
from harness.waiting import until

KINDS = pytest.mark.parametrize("kind", PROTOCOLS, ids=lambda kind: kind.protocol)
RELOADS = "switchboard_config_reloads_total"
RESTART_NEEDED = "switchboard_config_restart_needed"


class File:
    """The settings' file of a cluster. A change is looked for at SIGHUP alone, unless it says otherwise."""

    def __init__(self, path):
        self.path = path
        self.writes = 0
        self.write("")

    def write(self, text):
        self.writes += 1
        self.path.write_text(f"[admin] # {self.writes}\nreload_check_ms = 3_600_000\n{text}")

    def change(self, text, *services, result="taken"):
        """Every service has taken it over, or refused it, when this returns."""
        before = {it.name: it.admin.value(RELOADS, result=result) for it in services}
        self.write(text)
        for service in services:
            os.kill(service.process.pid, signal.SIGHUP)
        for service in services:
            reloads = lambda it=service: it.admin.value(RELOADS, result=result) > before[it.name]
            until(f"{service.name} has read its settings", reloads)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return File(tmp_path_factory.mktemp("settings") / "switchboard.toml")


@pytest.fixture(scope="module")
def cluster(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reload")
    cluster = Cluster(folder, launch=lambda program: [built(program), "--config", file.path])
    yield cluster
    cluster.stop()


@pytest.fixture(autouse=True)
def changed_back(cluster, file):
    yield
    file.change("", *cluster.services)


@KINDS
def test_a_changed_rate_holds_for_a_device_that_is_connected(cluster, file, device, kind):
    node, family = cluster.nodes[0], cluster.accounts.family()
    target = device(PROTOCOLS[0], family.b).connect(node).become_callable(lambda call: call.answer("1"))
    caller = device(kind, family.a).connect(node)
    assert [caller.send_msg(family.b, "1").text() for _ in range(4)] == ["1"] * 4
    # One in an hour, nearly: what is left of the bucket is less than one.
    slow = "[ingress]\ncalls_per_second_per_device = 1\ncall_burst_per_device = 1\n"
    file.change(slow, node)
    limits = caller.ask('{"method":"getSessionLimits"}').text()
    assert "1:1" in limits or limits == said.BUSY
    answers = [caller.send_msg(family.b, "1").text() for _ in range(5)]
    assert said.BUSY in answers
    file.change("", node)
    assert [caller.send_msg(family.b, "1").text() for _ in range(4)] == ["1"] * 4
    assert not caller.ended.is_set() and not target.ended.is_set()


def test_a_customers_share_is_taken_over(cluster, file, device):
    node, family = cluster.nodes[0], cluster.accounts.family()
    device(PROTOCOLS[0], family.b).connect(node).become_callable(lambda call: call.answer("1"))
    caller = device(PROTOCOLS[0], family.a).connect(node)
    file.change("[ingress]\ncalls_per_second_per_customer = 1\n", node)
    assert said.BUSY in [caller.send_msg(family.b, "1").text() for _ in range(5)]
    file.change("[ingress]\nmax_deliveries = 1\n", node)
    silent = [caller.send_msg(family.b, "1").text() for _ in range(2)]
    assert silent == ["1"] * 2, "one at a time"


def test_routers_and_authorizers_take_over_too(cluster, file, device):
    node, family, strangers = cluster.nodes[0], cluster.accounts.family(), cluster.accounts.family()
    target = device(PROTOCOLS[0], family.b).connect(node).become_callable()
    caller = device(PROTOCOLS[0], family.a).connect(node)
    assert caller.send_msg(strangers.a, "1").text() == said.DENIED
    both = "[device_api]\nconceal_foreign_devices = true\n[router]\nmax_calls_in_flight = 1\n"
    file.change(both, cluster.authorizers[0], cluster.routers[0])
    assert caller.send_msg(strangers.a, "1").text() == said.UNKNOWN_DEVICE
    first = caller.send_msg(family.b, "1")
    call = target.next_call()
    assert caller.send_msg(family.b, "2").text() == said.BUSY
    call.answer("1")
    assert first.text() == "1"


def test_a_faulty_file_changes_nothing_and_says_why(cluster, file, device):
    node, family = cluster.nodes[0], cluster.accounts.family()
    device(PROTOCOLS[0], family.b).connect(node).become_callable(lambda call: call.answer("1"))
    caller = device(PROTOCOLS[0], family.a).connect(node)
    slow = "[ingress]\ncalls_per_second_per_device = 1\ncall_burst_per_device = 1\n"
    file.change(slow + "no_such_setting = 1\n", node, result="refused")
    line = node.process.wait_for_message("the settings stay as they were")
    assert f"{file.path}:6: ingress.no_such_setting: no such setting" in line["faults"]
    assert [caller.send_msg(family.b, "1").text() for _ in range(4)] == ["1"] * 4
    file.path.unlink()
    before = node.admin.value(RELOADS, result="refused")
    os.kill(node.process.pid, signal.SIGHUP)
    until("it has seen that", lambda: node.admin.value(RELOADS, result="refused") > before)
    assert node.admin.is_ready()


def test_what_takes_a_restart_is_named_by_whom_it_concerns(cluster, file):
    node, router = cluster.nodes[0], cluster.routers[0]
    file.change("[mqtt]\nreceive_maximum = 7\n[ingress]\nlease_ms = 4000\n", node, router)
    # The lease is set by a flag here: the file's counts for nothing.
    assert node.admin.value(RESTART_NEEDED) == 1
    assert router.admin.value(RESTART_NEEDED) == 0
    line = node.process.wait_for_message("settings have changed that take a restart of this process")
    assert line["settings"] == "mqtt.receive_maximum"
    file.change("", node)
    assert node.admin.value(RESTART_NEEDED) == 0


def test_a_file_that_is_swapped_as_kubernetes_does_is_found_by_itself(cluster, tmp_path):
    """A ConfigMap is a directory of links through `..data`, which is renamed over."""

    def swap(number, text):
        folder = tmp_path / f"..{number}"
        folder.mkdir()
        (folder / "switchboard.toml").write_text(text)
        (tmp_path / "..new").symlink_to(folder.name)
        (tmp_path / "..new").rename(tmp_path / "..data")

    often = "[admin]\nreload_check_ms = 100\n"
    swap(1, often)
    (tmp_path / "switchboard.toml").symlink_to("..data/switchboard.toml")
    launch = cluster._launch
    cluster._launch = lambda program: [built(program), "--config", tmp_path / "switchboard.toml"]
    try:
        router = cluster.add_router()
    finally:
        cluster._launch = launch
    swap(2, often + "[router]\nmax_calls_in_flight = 7\n")
    until("it is taken over", lambda: router.admin.value(RELOADS, result="taken") == 1)
    assert router.process.wait_for_message("the settings were read again")["taken"] == "router.max_calls_in_flight"
    assert router.term() == 0
    cluster._services.remove(router)
    cluster.routers.remove(router)
