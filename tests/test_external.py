"""Who else has to allow a call? An external decision point over NATS and over HTTP: the example, run as it is."""

import json
import sys

import pytest
from harness import said
from harness.accounts import identity
from harness.cluster import Cluster
from harness.devices import PahoV5
from harness.devices.device import echo
from harness.processes import Process
from harness.programs import ROOT
from harness.waiting import until

QUOTA = ROOT / "tests" / "examples" / "policy" / "quota.py"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    settings = {"authorizer.external_origins": "*"}
    cluster = Cluster(tmp_path_factory.mktemp("cluster"), nodes=1, authorizers=2, routers=1, settings=settings)
    yield cluster
    cluster.stop()


@pytest.fixture
def pair(cluster, request):
    """Two devices of one customer, in a tenant of their own."""
    tenant = f"Tenant of {request.node.name}"
    pair = [identity(f"{name} of {tenant}", "Customer", tenant) for name in ("lamp", "door")]
    cluster.accounts.add(*pair)
    return pair


def tenant_id(cluster, name):
    tenants = json.loads(cluster.accounts.cli("tenant", "list", "--json").ok().out)
    return next(it["id"] for it in tenants if it["name"] == name)


def started(*arguments):
    process = Process("quota", [sys.executable, QUOTA, *arguments], None)
    line = process.wait_for_line("it decides", lambda line: line if line.startswith("Deciding on ") else None, stream="out")
    return process, line


def explained(cluster, pair):
    ran = cluster.accounts.cli("policy", "explain", "--from", pair[0].id, "--to", pair[1].id, "--set", "authorizer.external_origins=*")
    return ran.code, ran.out


def denials(cluster, pair):
    ran = cluster.accounts.cli("audit", "query", "--kind", "denied.call", "--device", pair[0].id, "--json")
    return {it["why"] for it in json.loads(ran.ok().out)}


@pytest.mark.parametrize("way", ["nats", "http"])
def test_a_quota_of_three_calls_an_hour(cluster, pair, device, way):
    lamp, door = pair
    cli = cluster.accounts.cli
    if way == "nats":
        process, _ = started("--calls", "3", "--nats", cluster.nats.url, "--tenant", tenant_id(cluster, lamp.tenant))
        point = "nats:quota"
    else:
        process, line = started("--calls", "3", "--http", "127.0.0.1:0")
        point = line.removeprefix("Deciding on ").strip()
    try:
        device(PahoV5, door).connect(cluster.nodes[0]).become_callable(echo)
        caller = device(PahoV5, lamp).connect(cluster.nodes[0])
        assert caller.send_msg(door, "0").text() == "0", "without policies nobody is asked"
        out = cli("policy", "external", point, "--timeout-ms", "1000", "--tenant", lamp.tenant, "--as", "Ann").ok().out
        assert out.strip() == f"Version 1 is live: {point} is asked about every call that the policies permit, for 1000 ms."
        until("every authorizer asks", lambda: caller.send_msg(door, "1").text() == said.DENIED)
        # The hour may have changed meanwhile, but not twice.
        until("it is used up", lambda: all(caller.send_msg(door, "2").text() == said.DENIED for _ in range(6)))
        used_up = f"{lamp.name} has made its 3 calls of this hour"
        code, out = explained(cluster, pair)
        assert code == 1 and f'And {point}, asked from here: external_denied, "{used_up}"' in out
        until("why is recorded", lambda: f"external_denied: {used_up}" in denials(cluster, pair))
        [changed] = json.loads(cli("audit", "query", "--tenant", lamp.tenant, "--kind", "policy", "--json").ok().out)
        assert (changed["what"], changed["who"]) == (f"built-in added, {point} is asked besides", "Ann")
    finally:
        process.stop()
    # It is gone: no answer denies.
    until("nobody answers", lambda: caller.send_msg(door, "3").text() == said.DENIED and "external_missing" in denials(cluster, pair))
    code, out = explained(cluster, pair)
    assert code == 1 and f"And {point}, asked from here: external_missing" in out
    listed = json.loads(caller.ask('{"method":"getDevices"}').text())
    assert [it["id"] for it in listed] == [door.id], "lists are not its business"
    cli("policy", "external", "none", "--tenant", lamp.tenant).ok()
    until("nobody is asked any more", lambda: all(caller.send_msg(door, "4").text() == "4" for _ in range(6)))


def test_what_is_no_point_is_refused_in_words(cluster, pair):
    for point in ("quota", "nats:", "nats:a.b", "nats:" + "x" * 64, "https://opa:8181/v1", "http://", "http:///path", "ftp://opa"):
        refused = cluster.accounts.cli("policy", "external", point, "--tenant", pair[0].tenant)
        assert refused.code == 2 and "nats:NAME, of up to 63 letters" in refused.err, point
    refused = cluster.accounts.cli("policy", "external", "nats:a", "--timeout-ms", "1001", "--tenant", pair[0].tenant)
    assert refused.code == 2 and "1..=1000" in refused.err
