"""Does what the READMEs show work as it is shown? Their commands and scripts, run as they are."""

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
PAGES = "".join((ROOT / page).read_text() for page in ("README.md", "services/ingress/README.md"))


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


@pytest.mark.parametrize(
    ("client", "here"),
    [
        ("mosquitto_rr", ("-h localhost", "-h 127.0.0.1 -p {MQTT_PORT}")),
        ("curl", ("localhost:8080", "127.0.0.1:{HTTP_PORT}")),
        ("coap-client-notls", ("coap://127.0.0.1/", "coap://127.0.0.1:{COAP_PORT}/")),
    ],
)
def test_a_command_that_is_shown_prints_what_stands_below_it(client, here, env, emulator):
    """Every one of this client that has an answer below it, with the ports of this run."""
    shown = re.findall(rf"```sh\n((?:#[^\n]*\n)?{client} (?:(?!```).)*)```\n```json\n(.*?)\n```", PAGES, re.DOTALL)
    assert shown
    for command, answer in shown:
        ran = run("sh", "-c", command.replace(here[0], here[1].format(**env)), within_s=PATIENCE_S)
        # A long answer stands there in lines.
        assert ran.ok().out.strip() == answer.replace("\n ", "")


def test_the_scripts_say_what_is_shown():
    scripts = "".join(path.read_text() for path in EXAMPLES.glob("*/*.sh"))
    for body in ('{"method":"getDevices","params":{}}', '"timeout":2000,"oneway":false,"body":{"param1":"value1"}}}'):
        assert body in PAGES and body in scripts
