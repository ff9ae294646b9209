"""Does one command start a small cluster, keep it up, and end it?"""

import os
import signal
import socket
from pathlib import Path

import pytest
from harness.admin import Admin
from harness.devices import PahoV5
from harness.devices.device import answering
from harness.up import UpCluster, listens
from harness.waiting import until
from test_up import A1, A2, check_secret, cli

PROGRAMS = ["switchboard-ingress", "switchboard-authorizer", "switchboard-router"]


@pytest.fixture
def cluster(tmp_path):
    cluster = UpCluster(tmp_path, "--demo", "--ephemeral")
    try:
        yield cluster.wait_ready()
    finally:
        cluster.stop()


def test_all_ports_that_are_taken_are_told_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = ["--mqtt", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{port}", "--nats-port", str(port)]
        refused = UpCluster(tmp_path, "--ephemeral", ports=ports)
        assert refused.process.wait() == 1
    for said in ("ingress-1: --mqtt chooses the first, setting mqtt.listen", "ingress-1: --admin chooses", "(--nats-port"):
        assert said in refused.process.err, refused.process.err


def test_a_small_cluster_starts_keeps_up_and_ends(cluster, device, tmp_path):
    here, there = cluster.nodes
    for service in cluster.addresses["services"]:
        assert service["name"] in cluster.process.out and service["admin"] in cluster.process.out
    assert {program: len(cluster.pids_of(program)) for program in PROGRAMS} == dict.fromkeys(PROGRAMS, 2)
    device(PahoV5, A2).connect(there).become_callable(answering('{"status":"ok"}'))
    caller = device(PahoV5, A1).connect(here)
    assert caller.send_msg(A2, "1").text() == '{"status":"ok"}'
    assert cli(cluster, "call", "--from", "A1", "--to", "A2", "1").ok().out.strip() == '{"status":"ok"}'

    # Whatever dies is started again, and what is left serves meanwhile.
    for program in PROGRAMS[1:]:
        before = cluster.pids_of(program)
        os.kill(before[0], signal.SIGKILL)
        until("calls are answered", lambda: caller.send_msg(A2, "2", timeout=2_000).text() == '{"status":"ok"}')
        until(f"a new {program}", lambda program=program, before=before: len(set(cluster.pids_of(program)) - set(before)) == 1)
        assert f"{program.removeprefix('switchboard-')}-" in cluster.process.err and "ended by itself" in cluster.process.err
    for service in cluster.addresses["services"]:
        until(f"{service['name']} is ready", Admin(service["admin"]).is_ready)

    file = Path(cluster.addresses["nats_password_file"])
    check_secret(cluster, tmp_path, file, file.read_text())

    cluster.process.interrupt()
    assert cluster.process.wait() == 0, cluster.process.err
    cluster.wait_nats_gone()
    assert not any(cluster.pids_of(program) for program in PROGRAMS)
    assert not any(listens(node.mqtt_port) for node in (here, there))
