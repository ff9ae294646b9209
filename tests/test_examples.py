"""Does what the README shows work as it is shown? Its scripts, run as they are."""

import json
import re

import pytest
from harness.processes import Process, run
from harness.programs import ROOT, tool
from harness.waiting import PATIENCE_S, until

EXAMPLES = ROOT / "tests" / "examples"
MQTTJS = ROOT / "tests" / "clients" / "mqttjs" / "node_modules"

OTHERS = (
    '[{"id":"aa435e80-9fce-11e6-8080-808080808080","name":"Test Device A2"},'
    '{"id":"86801880-9fce-11e6-8080-808080808080","name":"Test Device A3"}]'
)
AWAY = '{"error":"No active connection to the remote device!"}'
OK = '{"status":"ok"}'


@pytest.fixture
def env(demo):
    return {
        "MQTT_HOST": "127.0.0.1",
        "MQTT_PORT": str(demo.mqtt_port),
        "HTTP_PORT": str(demo.http_port),
        "COAP_PORT": str(demo.coap_port),
        "NODE_PATH": str(MQTTJS),
    }


@pytest.fixture
def emulator(env):
    process = Process("emulator", [tool("node"), EXAMPLES / "mqttjs" / "emulator.js"], None, env=env)
    process.wait_for_line("Waiting for calls", lambda line: "Waiting for calls" in line, stream="out")
    yield process
    process.stop()


def mosquitto(script, env):
    return run(EXAMPLES / "mosquitto" / script, env=env, within_s=PATIENCE_S).ok().out.strip()


def http(script, env):
    return run(EXAMPLES / "http" / script, env=env, within_s=PATIENCE_S).ok().out.strip()


def coap(script, env):
    return run(EXAMPLES / "coap" / script, env=env, within_s=PATIENCE_S).ok().out.strip()


def caller(env):
    return run(tool("node"), EXAMPLES / "mqttjs" / "caller.js", env=env, within_s=PATIENCE_S).ok().out.splitlines()


def test_mosquitto_lists(env):
    assert mosquitto("get-devices.sh", env) == OTHERS


def test_mosquitto_calls(env, request):
    assert mosquitto("send-msg.sh", env) == AWAY
    emulator = request.getfixturevalue("emulator")
    assert mosquitto("send-msg.sh", env) == OK
    heard = 'request.body: {"method":"onMsg","params":{"param1":"value1"}}'
    emulator.wait_for_line(heard, lambda line: line == heard, stream="out")
    emulator.stop()
    until("the emulator has gone", lambda: mosquitto("send-msg.sh", env) == AWAY)


def test_http(env):
    assert http("get-devices.sh", env) == OTHERS
    assert http("send-msg.sh", env) == AWAY
    emulator = Process("http-emulator", [EXAMPLES / "http" / "emulator.sh"], None, env=env)
    try:
        until("it answers", lambda: http("send-msg.sh", env) == OK)
        assert mosquitto("send-msg.sh", env) == OK
        heard = r'\{"id":\d+,"method":"onMsg","params":\{"param1":"value1"\}\}'
        emulator.wait_for_line(heard, lambda line: re.fullmatch(heard, line) is not None, stream="out")
    finally:
        emulator.stop()
    until("the emulator has gone", lambda: http("send-msg.sh", env) == AWAY)


def test_coap(env):
    assert coap("get-devices.sh", env) == OTHERS
    assert coap("send-msg.sh", env) == AWAY
    emulator = Process("coap-emulator", [EXAMPLES / "coap" / "emulator.sh"], None, env=env)
    try:
        until("it answers", lambda: coap("send-msg.sh", env) == OK)
        assert mosquitto("send-msg.sh", env) == OK
        heard = r'\{"id":\d+,"method":"onMsg","params":\{"param1":"value1"\}\}'
        emulator.wait_for_line(heard, lambda line: re.fullmatch(heard, line) is not None, stream="out")
    finally:
        emulator.stop()
    until("the emulator has gone", lambda: coap("send-msg.sh", env) == AWAY)


def test_mqttjs(env, request):
    assert caller(env) == [f"getDevices: {OTHERS}", f"sendMsg: {AWAY}"]
    request.getfixturevalue("emulator")
    assert caller(env) == [f"getDevices: {OTHERS}", f"sendMsg: {OK}"]


def test_an_unknown_token_is_said(env):
    ran = run(tool("node"), EXAMPLES / "mqttjs" / "caller.js", env=env | {"TOKEN": "nobody"}, within_s=PATIENCE_S)
    assert ran.code == 1 and "Not authorized" in ran.err


def test_the_readme_shows_these_very_commands(env):
    """Every `mosquitto_rr` of the README, with the port of this run, prints what stands below it."""
    readme = (ROOT / "README.md").read_text()
    shown = re.findall(r"```sh\n((?:#[^\n]*\n)?mosquitto_rr .*?)```\n```json\n(.*?)\n```", readme, re.DOTALL)
    assert len(shown) >= 2
    for command, answer in shown:
        here = command.replace("-h localhost", f"-h 127.0.0.1 -p {env['MQTT_PORT']}")
        assert run("sh", "-c", here, within_s=PATIENCE_S).ok().out.strip() == answer
        assert json.loads(answer)
    scripts = "".join(path.read_text() for path in (EXAMPLES / "mosquitto").glob("*.sh"))
    for body in ('{"method":"getDevices","params":{}}', '"timeout":2000,"oneway":false,"body":{"param1":"value1"}}}'):
        assert body in readme and body in scripts


def test_the_readme_shows_these_curl_commands(env):
    """Every `curl` of the README that has an answer below it, with the port of this run."""
    readme = (ROOT / "README.md").read_text()
    shown = re.findall(r"```sh\n((?:#[^\n]*\n)?curl .*?)```\n```json\n(.*?)\n```", readme, re.DOTALL)
    assert len(shown) >= 2
    for command, answer in shown:
        here = command.replace("localhost:8080", f"127.0.0.1:{env['HTTP_PORT']}")
        assert run("sh", "-c", here, within_s=PATIENCE_S).ok().out.strip() == answer


def test_the_readme_shows_these_coap_commands(env):
    """Every `coap-client-notls` of the README that has an answer below it, with the port of this run."""
    readme = (ROOT / "README.md").read_text()
    shown = re.findall(r"```sh\n((?:#[^\n]*\n)?coap-client-notls .*?)```\n```json\n(.*?)\n```", readme, re.DOTALL)
    assert len(shown) >= 2
    for command, answer in shown:
        here = command.replace("coap://127.0.0.1/", f"coap://127.0.0.1:{env['COAP_PORT']}/")
        assert run("sh", "-c", here, within_s=PATIENCE_S).ok().out.strip() == answer
    scripts = "".join(path.read_text() for path in (EXAMPLES / "coap").glob("*.sh"))
    for body in ('{"method":"getDevices","params":{}}', '"timeout":2000,"oneway":false,"body":{"param1":"value1"}}}'):
        assert body in scripts and any(body in command for command, _ in shown)
