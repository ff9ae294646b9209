"""Does one command start a small cluster, keep it up, and end it?"""

import os
import signal
import socket
from pathlib import Path

import pytest
from harness.admin import Admin
from harness.authority import Authority
from harness.devices import PahoV5
from harness.devices.device import answering
from harness.up import UpCluster, listens
from harness.waiting import until
from test_up import A1, A2, check_secret, cli

CHOICES = [("--mqtt", "mqtt"), ("--admin", "admin")]
PROGRAMS = ["switchboard-ingress", "switchboard-authorizer", "switchboard-router"]


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


@pytest.fixture
def cluster(authority, tmp_path):
    certificate, key = authority.issue("node")
    tls = [f"--set=tls.certificate_file={certificate}", f"--set=tls.key_file={key}"]
    cluster = UpCluster(tmp_path, "--demo", "--ephemeral", *tls)
    try:
        yield cluster.wait_ready()
    finally:
        cluster.stop()


def test_all_ports_that_are_taken_are_told_at_once(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = ["--mqtt", f"127.0.0.1:{port}", "--admin", f"127.0.0.1:{port}", "--nats-port", str(port)]
        tls = [f"--set={it}" for it in ("tls.certificate_file=x", "tls.key_file=x", f"mqtt.tls_listen=127.0.0.1:{port}")]
        refused = UpCluster(tmp_path, "--ephemeral", ports=[*ports, *tls])
        assert refused.process.wait() == 1
    chosen = [f"ingress-1: {flag} chooses the first, setting {setting}.listen" for flag, setting in CHOICES]
    for said in (*chosen, "ingress-1: --set chooses the first, setting mqtt.tls_listen", "(--nats-port"):
        assert said in refused.process.err, refused.process.err


def test_a_small_cluster_starts_keeps_up_and_ends(cluster, authority, device, tmp_path):
    here, there = cluster.nodes
    over_tls = [it[scheme] for it in cluster.addresses["services"] if "mqtt" in it for scheme in ("mqtts", "https")]
    assert len({*over_tls}) == 4
    for address in over_tls:
        host, port = address.split(":")
        with socket.create_connection((host, int(port))) as plain, authority.context().wrap_socket(plain, server_hostname=host):
            assert address in cluster.process.out
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
