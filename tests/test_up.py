"""Does one command start everything, say so, and end everything?"""

import json
import os
import re
import signal
import socket
from pathlib import Path

import pytest
from harness import said
from harness.accounts import Identity
from harness.devices import PahoV5
from harness.devices.device import answering, echo
from harness.nats_server import NatsServer
from harness.processes import run
from harness.programs import built
from harness.raw_nats import RawNats
from harness.up import FREE_PORTS, Up, descendants
from harness.waiting import until

A1 = Identity("ce06a480-9fce-11e6-8080-808080808080", "Test Device A1", "A1_TEST_TOKEN")
A2 = Identity("aa435e80-9fce-11e6-8080-808080808080", "Test Device A2", "A2_TEST_TOKEN")
B1 = Identity("62bcd280-9fce-11e6-8080-808080808080", "Test Device B1", "B1_TEST_TOKEN")
DHT11 = Identity("c8f1a6f0-b993-11e6-8a04-9ff4e1b7933c", "DHT11 Demo Device", "DHT11_DEMO_TOKEN")


@pytest.fixture
def up(tmp_path_factory):
    """Starts systems that are stopped after the test."""
    made: list[Up] = []

    def start(*flags, **options):
        made.append(Up(options.pop("folder", None) or tmp_path_factory.mktemp("up"), *flags, **options))
        return made[-1]

    yield start
    for it in made:
        it.stop()


def cli(system, *arguments, stdin=""):
    return run(built("switchboard"), *arguments, "--nats", system.nats_url, stdin=stdin)


def test_it_says_what_listens_where_and_what_to_type(demo):
    out = demo.process.out
    assert f"mqtt://127.0.0.1:{demo.mqtt_port}" in out
    assert demo.admin.address in out
    assert demo.nats_url in out
    assert out.splitlines()[-1].startswith("Switchboard is ready")
    commands = re.findall(r"^  (mosquitto_rr .*\n .*)$", out, re.MULTILINE)
    assert len(commands) == 2
    answers = [run("sh", "-c", command).ok().out.strip() for command in commands]
    assert [entry["name"] for entry in json.loads(answers[0])] == ["Test Device A2", "Test Device A3"]
    assert answers[1] == said.OFFLINE


def test_the_demo_account_is_there(demo, device):
    assert "The demo account's access tokens are public" in demo.process.err
    a1 = device(PahoV5, A1).connect(demo)
    assert [it["id"] for it in json.loads(a1.get_devices())] == [A2.id, "86801880-9fce-11e6-8080-808080808080"]
    assert a1.send_msg(B1, "1").text() == said.DENIED
    assert a1.send_msg(DHT11, "1").text() == said.DENIED
    assert device(PahoV5, DHT11).connect(demo).get_devices() == said.UNASSIGNED
    device(PahoV5, A2).connect(demo).become_callable(answering('{"status":"ok"}'))
    assert a1.send_msg(A2, "1").text() == '{"status":"ok"}'


def test_switchboard_call(demo, device):
    ran = cli(demo, "call", "--from", "A1", "--to", "A3", '{"x":1}')
    assert (ran.code, ran.out.strip()) == (1, said.OFFLINE), ran.err
    assert re.search(r"Test Device A1 -> Test Device A3: offline in [\d.]+ ms", ran.err)
    target = device(PahoV5, Identity("86801880-9fce-11e6-8080-808080808080", "A3", "A3_TEST_TOKEN"))
    target.connect(demo).become_callable(lambda call: call.answer(json.dumps(call.body)))
    assert cli(demo, "call", "--from", "A1", "--to", "A3", '{"x":1}').ok().out.strip() == '{"x": 1}'
    printed = json.loads(cli(demo, "call", "--from", "A1", "--to", "A3", "--json", "null").ok().out)
    assert (printed["outcome"], printed["body"]) == ("answered", None)
    assert cli(demo, "call", "--from", "A1", "--to", "A3", "--oneway", "5").ok().out.strip() == "null"
    denied = cli(demo, "call", "--from", "A1", "--to", "Test Device B1", "1")
    assert (denied.code, denied.out.strip()) == (1, said.DENIED)
    assert cli(demo, "call", "--from", "A1", "--to", "A3", "{").code == 2
    assert "there is no device" in cli(demo, "call", "--from", "nobody", "--to", "A3").err


def test_the_admin_endpoint_speaks_for_all_three(demo):
    status, text = demo.admin.get("/readyz")
    assert status == 200
    assert {"ingress", "authorizer", "router"} <= set(re.findall(r"ingress|authorizer|router", text))
    names = {sample.name for sample in demo.admin.samples()}
    assert {"switchboard_sessions", "switchboard_authorizer_registry_devices", "switchboard_router_claims"} <= names


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_it_ends_with_all_it_started(up, number):
    system = up("--ephemeral").wait_ready()
    system.process.signal(number)
    assert system.process.wait() == 0, system.process.err
    system.wait_nats_gone()
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", system.mqtt_port), timeout=1)


def test_one_that_was_killed_is_no_obstacle(up, tmp_path):
    data = str(tmp_path / "data")
    first = up("--data", data).wait_ready()
    cli(first, "tenant", "add", "Acme").ok()
    port = first.nats_url.rsplit(":", 1)[1]
    first.process.kill()
    # Its nats-server is left behind, on the port that the next one wants.
    ports = list(FREE_PORTS)
    ports[ports.index("--nats-port") + 1] = port
    second = up("--data", data, ports=ports).wait_ready()
    assert second.nats_url == first.nats_url
    assert [it["name"] for it in json.loads(cli(second, "tenant", "list", "--json").ok().out)] == ["Acme"]


def test_its_nats_server_is_started_again(up, tmp_path, device):
    system = up("--demo", "--data", str(tmp_path / "data")).wait_ready()
    device(PahoV5, A2).connect(system).become_callable(answering('"still here"'))
    caller = device(PahoV5, A1).connect(system)
    (pid_file,) = (tmp_path / "data").rglob("*.pid")
    os.kill(int(pid_file.read_text()), signal.SIGKILL)
    until("calls work again", lambda: caller.send_msg(A2, "1", timeout=2000).text() == '"still here"', within_s=40)


def test_without_demo_there_is_nobody(up):
    system = up("--ephemeral").wait_ready()
    assert cli(system, "device", "list", "--json").ok().out.strip() == "[]"


def test_data_survives_a_restart(up, tmp_path):
    data = str(tmp_path / "data")
    first = up("--data", data).wait_ready()
    cli(first, "tenant", "add", "Acme").ok()
    added = json.loads(cli(first, "device", "add", "Pump 1", "--json").ok().out)
    first.process.interrupt()
    assert first.process.wait() == 0
    second = up("--data", data).wait_ready()
    listed = json.loads(cli(second, "device", "list", "--json").ok().out)
    assert [it["id"] for it in listed] == [added["id"]]
    assert added["token"] not in (first.process.err + first.process.out)


def test_a_data_folder_serves_one_system(up, tmp_path):
    data = str(tmp_path / "data")
    up("--data", data).wait_ready()
    second = up("--data", data)
    assert second.process.wait() != 0
    assert data in second.process.err


@pytest.mark.parametrize("flag", ["--mqtt", "--admin", "--nats-port"])
def test_a_port_that_is_taken_is_named(up, flag):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ports = list(FREE_PORTS)
        ports[ports.index(flag) + 1] = str(port) if flag == "--nats-port" else f"127.0.0.1:{port}"
        system = up("--ephemeral", ports=ports)
        assert system.process.wait() == 1
    assert f"{port}" in system.process.err, system.process.err
    assert "in use" in system.process.err or "is taken" in system.process.err
    # Said once, in words, without a trace of the program's inside.
    assert "panicked" not in system.process.err


def test_it_uses_a_nats_server_that_runs_already(up, demo):
    second = up(ports=["--mqtt", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--nats", demo.nats_url]).wait_ready()
    assert second.nats_url == demo.nats_url
    assert len(json.loads(cli(second, "device", "list", "--json").ok().out)) == 7


def test_devices_of_two_systems_on_one_nats_call_each_other(up, demo, device):
    second = up(ports=["--mqtt", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--nats", demo.nats_url]).wait_ready()
    device(PahoV5, A2).connect(second).become_callable(answering('"from the other node"'))
    caller = device(PahoV5, A1).connect(demo)
    assert caller.send_msg(A2, "1").text() == '"from the other node"'
    second.process.interrupt()
    assert second.process.wait() == 0
    until("its devices are offline", lambda: caller.send_msg(A2, "1").text() == said.OFFLINE)
    assert demo.admin.is_ready()


def test_nobody_publishes_without_the_password_of_this_run(up, tmp_path):
    system = up("--ephemeral", folder=tmp_path).wait_ready()
    file = Path(system.addresses["nats_password_file"])
    password = file.read_text()
    for user, guess in (("", ""), ("switchboard", ""), ("switchboard", "guess")):
        with RawNats(system.nats_url, user, guess) as stranger:
            assert "Authorization" in stranger.refused
    with RawNats(system.nats_url, "switchboard", password) as known:
        assert known.refused is None
    check_secret(system, tmp_path, file, password)
    # Another run has another one, and that of before is gone with it.
    system.process.interrupt()
    assert system.process.wait() == 0
    assert not file.exists()
    again = up("--ephemeral").wait_ready()
    assert Path(again.addresses["nats_password_file"]).read_text() != password


def check_secret(system, folder, file, password):
    """The password is its user's alone: in no file that others read, on no command line, in no line that was said."""
    assert file.stat().st_mode & 0o777 == 0o600
    assert (folder / "addresses.json").stat().st_mode & 0o077 == 0
    lines = [it.read_bytes() for pid in descendants(system.process.pid) if (it := Path(f"/proc/{pid}/cmdline")).exists()]
    assert [line for line in lines if b"nats-server" in line]
    assert password not in f"{lines}{system.process.out}{system.process.err}"
    (configuration,) = [Path(line.split(b"--config\0")[1].split(b"\0")[0].decode()) for line in lines if b"nats-server\0" in line]
    assert password in configuration.read_text()
    assert configuration.stat().st_mode & 0o777 == 0o600


def test_credentials_without_the_server_that_they_are_for_are_refused(up):
    system = up("--ephemeral", "--set", "nats.user=me", "--set", "nats.password=mine")
    assert system.process.wait() == 2
    assert "nats.user is set, and no NATS server is named" in system.process.err


def test_its_settings_are_checked_first(up):
    system = up("--ephemeral", "--set", "mqtt.nonsense=1", "--set", "log.format=loud")
    assert system.process.wait() == 2
    assert "mqtt.nonsense" in system.process.err and "log.format" in system.process.err


@pytest.mark.parametrize(("is_local", "messages_a_call"), [("true", 0), ("false", 5)])
def test_a_call_between_its_devices_needs_no_message_of_nats(up, tmp_path, device, is_local, messages_a_call):
    nats = NatsServer(tmp_path / "nats", tmp_path / "logs")
    try:
        settings = (f"nats.local_delivery={is_local}", "ingress.calls_per_second_per_device=0")
        system = up("--demo", "--nats", nats.url, *(f"--set={it}" for it in settings)).wait_ready()
        device(PahoV5, A2).connect(system).become_callable(echo)
        caller = device(PahoV5, A1).connect(system)
        before = nats.messages()
        for number in range(1_000):
            assert caller.send_msg(A2, str(number)).text() == str(number)
        # What the processes tell each other anyhow, once a second, is far below one a call.
        assert 0 <= nats.messages() - before - messages_a_call * 1_000 < 900
    finally:
        system.stop()
        nats.stop()
