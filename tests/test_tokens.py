"""Which access tokens can a fleet bring along? Any text without control characters, over every protocol."""

import json
import uuid

import pytest
from harness.accounts import TOKENS, Identity
from harness.devices import CoapDevice, HttpDevice, MqttJs, MqttJsWebSocket, PahoV5, PahoV311
from harness.devices.device import echo
from harness.processes import run
from harness.programs import built
from harness.raw_http import RawHttp
from harness.waiting import until

KINDS = [PahoV311, PahoV5, MqttJs, MqttJsWebSocket, HttpDevice, CoapDevice]
TAKEN = ["a/b/", "a b", "100%", "%2F", "é/温度", "a?b=c#d", "+;,\"'\\", " edge ", "😀"]


@pytest.fixture
def cli(shared_cluster):
    return shared_cluster.accounts.cli


@pytest.fixture
def fleet(cli, tmp_path, shared_cluster):
    """A customer's devices, one for each token, imported as JSON."""
    tenant = f"Tenant {uuid.uuid4().hex[:8]}"
    # One registry knows a token once: made this test's own.
    tokens = [f"{token}{tenant[-8:]}{token}" for token in TAKEN]
    tokens.append("é" * 123 + tenant[-8:] + "x")
    fleet = [Identity(str(uuid.uuid4()), f"Device {number}", token, tenant, "C") for number, token in enumerate(tokens)]
    TOKENS.update(tokens)
    file = tmp_path / "fleet.json"
    file.write_text(json.dumps([{"tenant": tenant, "customer": "C", "id": it.id, "name": it.name, "token": it.token} for it in fleet]))
    ran = cli("device", "import", "--create", "--weak-token", str(file))
    ran.ok()
    assert not [token for token in tokens if token in ran.out], "what was brought along is not shown"
    until("all are known", lambda: all(_is_known(node, it) for node in shared_cluster.nodes for it in fleet))
    return fleet


def _is_known(node, identity):
    device = HttpDevice(identity)
    device._port = node.http_port
    return device.request("POST", "rpc", '{"method":"getTime"}')[0] == 200


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.protocol)
def test_they_are_the_same_over_every_protocol(shared_cluster, fleet, device, kind):
    here, there = shared_cluster.nodes
    caller = device(PahoV5, fleet[0]).connect(there)
    for identity in fleet[1:]:
        target = device(kind, identity).connect(here).become_callable(echo)
        assert caller.send_msg(identity, "1").text() == "1", identity.token
        assert target.send_msg(fleet[0], "1", oneway=True).text() != "", identity.token
        target.close()


@pytest.mark.parametrize("via", ["mqtt", "http", "coap"])
def test_the_command_writes_them_as_a_device_would(shared_cluster, fleet, device, via):
    node = shared_cluster.nodes[0]
    target = fleet[0]
    device(PahoV5, target).connect(node).become_callable(echo)
    at = f"127.0.0.1:{getattr(node, f'{via}_port')}"
    for identity in fleet[1:]:
        called = run(built("switchboard"), "call", "--via", via, "--at", at, "--token", identity.token, "--to", target.id, "7")
        assert called.ok().out.strip() == "7", identity.token


def test_a_path_is_decoded_once(shared_cluster, fleet):
    """What an encoded token decodes to is another token, and a path is not cut at its slashes."""
    node, time = shared_cluster.nodes[0], '{"method":"getTime"}'
    slash = next(it for it in fleet if it.token.startswith("a/b"))
    with RawHttp(node.http_port) as http:
        encoded = slash.token.replace("/", "%2F")
        assert http.ask("POST", f"/api/v1/{encoded}/rpc", time).status == 200
        assert http.ask("POST", f"/api/v1/{encoded.replace('%2F', '%2f')}/rpc", time).status == 200
        assert http.ask("POST", f"/api/v1/{encoded.replace('%', '%25')}/rpc", time).status == 401
        assert http.ask("POST", f"/api/v1/{slash.token}/rpc", time).status == 404


def test_what_cannot_be_a_token(cli, fleet, tmp_path):
    words = "token must be 1 to 255 bytes of UTF-8 without control characters, and neither . nor .."
    tenant = fleet[0].tenant
    tokens = ["", ".", "..", "a\nb", "a\x00", "x" * 256, "é" * 128]
    file = tmp_path / "none.json"
    file.write_text(json.dumps([{"tenant": tenant, "name": f"No {n}", "token": it} for n, it in enumerate(tokens)]))
    ran = cli("device", "import", str(file))
    assert (ran.code, ran.err.count(words)) == (1, len(tokens)), ran
    for token in (".", "x" * 256):
        refused = cli("device", "add", "No", "--tenant", tenant, "--token", token)
        assert refused.code != 0
        assert words in refused.err
    added = cli("device", "add", "Yes", "--tenant", tenant, "--token", f"by hand/{tenant}", "--json").ok()
    assert json.loads(added.out)["token"] == f"by hand/{tenant}"
    TOKENS.add(f"by hand/{tenant}")
