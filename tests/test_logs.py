"""What can somebody make the logs say? A little, and how often it was left out; and what is wrong is said once."""

import socket
import threading
import time
import uuid

import pytest
from harness.admin import Admin
from harness.nats_server import NatsServer
from harness.ports import any_ports
from harness.processes import Process
from harness.programs import built
from harness.raw_http import RawHttp
from harness.raw_mqtt import RawMqtt
from harness.waiting import until

INFO = {"log.level": "info"}


def hammer(port: int, seconds: float) -> int:
    """One connection that asks as fast as it can, with tokens that nobody has. How often it asked."""
    asked, end = 0, time.monotonic() + seconds
    with socket.create_connection(("127.0.0.1", port)) as client:
        reader = threading.Thread(target=lambda: all(iter(lambda: client.recv(1 << 16), b"")), daemon=True)
        reader.start()
        while time.monotonic() < end:
            for _ in range(100):
                path = f"/api/v1/{uuid.uuid4().hex}/rpc"
                client.sendall(f"POST {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\n{{}}".encode())
            asked += 100
        client.shutdown(socket.SHUT_WR)
        reader.join()
    return asked


def test_an_outage_under_a_hammering_client_fills_no_disk(new_cluster):
    cluster = new_cluster(settings=INFO | {"ingress.requests_per_second_per_connection": "0"})
    node = cluster.nodes[0]
    cluster.nats.process.kill()
    until("it is noticed", lambda: "NATS" in node.admin.get("/readyz")[1])
    before = len(node.process.err)
    asked = hammer(node.http_port, 3)
    left_out = node.process.wait_for_message("lines were left out of the log")
    assert left_out["left_out"] > asked / 2
    assert left_out["like"] in ("a device could not be authenticated", "a device was refused")
    # 30 lines at once and one a second, of each of a few places.
    assert len(node.process.err) - before < 60_000
    # Each connection of each service says once that it is lost, and why it does not come back, and not at each attempt.
    for service in [node, *cluster.authorizers, *cluster.routers]:
        said = [line for line in service.process.log_lines() if line["message"].startswith("NATS cannot be reached")]
        assert 1 <= len(said) <= 6, said
        assert all("IO error" in line["cause"] for line in said)
    assert "NATS is not reachable: nats: IO error" in node.admin.get("/readyz")[1]
    cluster.nats.start()
    node.wait_ready()


@pytest.mark.parametrize("program", ["ingress", "authorizer", "router"])
def test_a_wrong_password_is_said_once_and_by_readyz(tmp_path, program):
    nats = NatsServer(tmp_path, tmp_path, "--user", "service", "--pass", "right")
    settings = any_ports("127.0.0.1") | INFO | {"nats.user": "service", "nats.url": nats.url}
    command = [built(f"switchboard-{program}"), *(f"--set={name}={it}" for name, it in settings.items())]
    process = Process(program, command, tmp_path, env={"SWITCHBOARD_NATS__PASSWORD": "wrong"})
    try:
        said = process.wait_for_message("trying again")
        admin = Admin(process.wait_for_message("starting")["admin"])
        reason = until("it says why", lambda: "nats.password" in (text := admin.get("/readyz")[1]) and text)
        assert said["error"] in reason, "the log's words"
        for words in ("nats.user", "nats.password", "refuses", nats.url):
            assert words in said["error"]
        attempts = until("it has tried again", lambda: (n := nats.process.err.count("authentication error")) > 3 and n)
        loud = [line for line in process.log_lines() if line["level"] in ("WARN", "ERROR")]
        assert len(loud) == 1, (attempts, loud)
        assert "wrong" not in process.err
    finally:
        process.stop()
        nats.stop()


def test_a_password_that_is_no_longer_good_is_said_too(tmp_path):
    nats = NatsServer(tmp_path, tmp_path, "--user", "service", "--pass", "first")
    settings = any_ports("127.0.0.1") | INFO | {"nats.user": "service", "nats.url": nats.url}
    command = [built("switchboard-router"), *(f"--set={name}={it}" for name, it in settings.items())]
    process = Process("router", command, tmp_path, env={"SWITCHBOARD_NATS__PASSWORD": "first"})
    try:
        admin = Admin(process.wait_for_message("starting")["admin"])
        until("it is ready", admin.is_ready)
        nats._flags = ("--user", "service", "--pass", "second")
        nats.restart()
        refused = until("it says why", lambda: "nats.password" in (text := admin.get("/readyz")[1]) and text)
        said = lambda: [line for line in process.log_lines() if "nats.password" in line.get("cause", "")]
        until("it is in the log", said)
        assert len(said()) == 1 and said()[0]["cause"] in refused
    finally:
        process.stop()
        nats.stop()


def test_who_is_refused_is_in_the_log(new_cluster):
    cluster = new_cluster(settings=INFO)
    node = cluster.nodes[0]
    with RawHttp(node.http_port, "127.0.0.7") as client:
        client.ask("POST", "/api/v1/a-strangers-token/rpc", "{}")
    said = node.process.wait_for_message("a device was refused")
    assert (said["address"], said["protocol"], said["reason"]) == ("127.0.0.7", "http", "unknown_token")
    with RawMqtt(node.mqtt_port, 4, "127.0.0.8") as client:
        client.send(b"GET / HTTP/1.1\r\n\r\n")
        client.expect_closed()
    said = node.process.wait_for_message("a connection was refused")
    assert (said["address"], said["protocol"], said["reason"]) == ("127.0.0.8", "mqtt", "malformed")
    assert "a-strangers-token" not in node.process.err
