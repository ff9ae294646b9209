"""What became of a call? `switchboard call show` and `call list`, under the NATS rights of deploy/nats."""

import json

import pytest
from harness import said
from harness.devices import HttpDevice, PahoV5
from harness.devices.device import echo
from harness.hardened import Hardened
from harness.waiting import until


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    hardened = Hardened(tmp_path_factory.mktemp("journal"), nodes=2, apis=1, settings={"log.level": "info"})
    yield hardened.cluster
    assert hardened.violations() == []
    hardened.cluster.stop()


def told(cluster, *arguments):
    return json.loads(cluster.accounts.cli("call", *arguments, "--json").out)


def last_call(cluster, *filters):
    """The last of the list: its hops are recorded a moment after its caller has read the answer."""
    listed = lambda: told(cluster, "list", *filters)
    return until("the call is listed", listed)[-1]


def way(account):
    return [(hop["at"], hop["end"]) for hop in account["hops"]]


def whole(cluster, call, hops):
    account = lambda: (it := told(cluster, "show", call)) and len(it["hops"]) == hops and it
    return until("all hops are recorded", account)


def test_a_call_is_told_hop_by_hop(cluster, device):
    family, (here, there) = cluster.accounts.family(), cluster.nodes
    device(HttpDevice, family.b).connect(there).become_callable(echo)
    caller = device(PahoV5, family.a).connect(here)
    assert caller.send_msg(family.b, "1").text() == "1"
    listed = last_call(cluster, "--from", family.a.id, "--outcome", "answered")
    assert (listed["from"], listed["to"], listed["protocol"]) == (family.a.id, family.b.id, "mqtt")
    account = whole(cluster, listed["call"], 4)
    assert way(account) == [("caller", "answered"), ("authorizer", "allowed"), ("router", "answered"), ("target", "answered")]
    caller_hop, _, router, target = account["hops"]
    assert (caller_hop["process"], router["node"], target["process"]) == (here.node_id, there.node_id, there.node_id)
    assert (caller_hop["protocol"], target["protocol"], account["missing"]) == ("mqtt", "http", None)
    assert target["ms"] <= router["ms"] <= caller_hop["ms"]
    assert router["budgetMs"] <= caller_hop["budgetMs"]
    text = cluster.accounts.cli("call", "show", listed["call"]).ok().out
    assert f"{family.a.name} -> {family.b.name}: answered" in text and "█" in text


def test_what_failed_is_listed_and_has_one_line_in_the_log(cluster, device):
    family, (here, _) = cluster.accounts.family(), cluster.nodes
    stranger = cluster.accounts.family()
    caller = device(PahoV5, family.a).connect(here)
    assert caller.send_msg(family.b, "1").text() == said.OFFLINE
    assert caller.send_msg(stranger.b, "1").text() == said.DENIED
    for outcome, target, hops in [
        ("offline", family.b, [("caller", "offline"), ("authorizer", "allowed"), ("router", "offline")]),
        ("denied", stranger.b, [("caller", "denied"), ("authorizer", "denied")]),
    ]:
        listed = last_call(cluster, "--from", family.a.id, "--to", target.id, "--outcome", outcome)
        account = whole(cluster, listed["call"], len(hops))
        assert (way(account), account["outcome"], account["missing"]) == (hops, outcome, None)
        lines = lambda: [
            it for service in cluster.services for it in service.process.log_lines() if it.get("call") == listed["call"]
        ]
        (line,) = until("it is in the log", lines)
        assert (line["message"], line["outcome"], line["protocol"]) == ("a call failed", outcome, "mqtt")
        assert (line["caller"], line["target"], line["level"]) == (family.a.id, target.id, "INFO")
        assert 0 < line["ms"] < 60_000


def test_an_operators_call_and_an_applications_are_told_too(cluster, device):
    family, (here, _) = cluster.accounts.family(), cluster.nodes
    device(PahoV5, family.b).connect(here).become_callable(echo)
    cluster.accounts.cli("call", "--from", family.a.id, "--to", family.b.id, "1").ok()
    listed = last_call(cluster, "--from", family.a.id)
    assert way(whole(cluster, listed["call"], 3)) == [("authorizer", "allowed"), ("router", "answered"), ("target", "answered")]


def test_what_cannot_be_told_says_why(cluster):
    unknown = cluster.accounts.cli("call", "show", f"{cluster.nodes[0].node_id}-fffff")
    assert unknown.code == 1 and "where the call came in, has no record of it" in unknown.out
    gone = cluster.accounts.cli("call", "show", "0123456789abcdef-1")
    assert gone.code == 1 and "process 0123456789abcdef, where the call came in, does not answer" in gone.out
    wrong = cluster.accounts.cli("call", "list", "--outcome", "fine")
    assert wrong.code == 2 and "timed_out" in wrong.err


def test_the_node_that_died_with_a_call_is_named(cluster, device):
    family, here, there = cluster.accounts.family(), cluster.nodes[0], cluster.add_node()
    target = device(PahoV5, family.b).connect(there).become_callable()
    caller = device(PahoV5, family.a).connect(here)
    answer = caller.send_msg(family.b, "1")
    target.next_call()
    there.kill()
    assert answer.text() == said.LOST
    listed = last_call(cluster, "--to", family.b.id)
    account = whole(cluster, listed["call"], 3)
    assert way(account) == [("caller", "lost"), ("authorizer", "allowed"), ("router", "lost")]
    assert f"handed it to node {there.node_id}, which does not answer" in account["missing"]
