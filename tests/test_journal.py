"""What became of a call? `switchboard call show` and `call list`, under the NATS rights of deploy/nats."""

import json

import pytest
from harness import said
from harness.accounts import TOKENS
from harness.apps import add_app
from harness.apps import call as app_call
from harness.devices import HttpDevice, PahoV5
from harness.devices.device import echo
from harness.hardened import Hardened
from harness.raw_http import RawHttp
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


def test_an_application_reads_the_way_of_what_it_may_see(cluster, device):
    family, other, (here, there) = cluster.accounts.family(), cluster.accounts.family(), cluster.nodes
    device(HttpDevice, family.b).connect(there).become_callable(echo)
    customer = ("--customer", family.customer)
    app, observer, caller = (add_app(cluster.accounts, *flags) for flags in (customer, (*customer, "--role", "observer"), customer))
    stranger = add_app(cluster.accounts, "--role", "observer", "--customer", other.customer)
    target = {"device": family.b.id, "name": family.b.name}

    def look(who, call, query="?hops=true"):
        return http.ask("GET", f"/v1/calls/{call}{query}", Authorization=who.bearer)

    with RawHttp(cluster.apis[0].port) as http:
        call = app_call(http, app, family.b.id).headers["switchboard-call"]
        shown = until("all hops are recorded", lambda: (it := look(app, call)).status == 200 and len(it.json["hops"]) == 4 and it.json)
        assert way(shown) == [("api", "answered"), ("authorizer", "allowed"), ("router", "answered"), ("target", "answered")]
        assert shown["hops"] == told(cluster, "show", call)["hops"]
        assert (shown["outcome"], shown["caller"], shown["target"], shown.get("missing")) == ("answered", {"app": app.id}, target, None)
        assert shown["asked"] == len([it for it in cluster.services])
        assert look(app, call, "").status == 404, "its end was told"
        assert look(app, call, "?hops=yes").json["field"] == "hops"
        seen = look(observer, call).json
        assert (way(seen), seen["target"], seen.get("caller")) == (way(shown), target, None)
        # Another application's is for observers alone, and out of reach for nobody.
        assert [look(who, call).status for who in (caller, stranger)] == [404, 404]
        # A device's call, too.
        assert device(PahoV5, family.a).connect(here).send_msg(family.b, "1").text() == "1"
        call = last_call(cluster, "--from", family.a.id)["call"]
        assert until("it is recorded", lambda: look(observer, call).json)["caller"] == {"device": family.a.id, "name": family.a.name}
        assert [look(who, call).status for who in (app, stranger)] == [404, 404]
        assert look(app, "0123456789abcdef-1").status == 404


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
    app = add_app(cluster.accounts)
    with RawHttp(cluster.apis[0].port) as http:
        id = app_call(http, app, family.b.name.replace(" ", "%20"), {"params": 1}).headers["switchboard-call"]
    account = whole(cluster, id, 4)
    assert way(account) == [("api", "answered"), ("authorizer", "allowed"), ("router", "answered"), ("target", "answered")]
    assert (account["from"], account["to"], account["outcome"]) == (app.id, family.b.id, "answered")


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


@pytest.fixture
def tail(cluster):
    started = []

    def begin(*arguments):
        started.append(cluster.accounts.started("tail", *arguments, "--json"))
        return started[-1]

    yield begin
    for it in started:
        it.interrupt()
        assert it.wait() == 130


def test_calls_are_shown_as_they_end_to_who_asks_for_them(cluster, device, tail):
    family, other, here = cluster.accounts.family(), cluster.accounts.family(), cluster.nodes[0]
    device(PahoV5, family.b).connect(here).become_callable(echo)
    caller, stranger = device(PahoV5, family.a).connect(here), device(PahoV5, other.a).connect(here)
    offline = tail("--to", other.b.id, "--outcome", "offline")
    bodies = tail("--customer", family.a.customer, "--bodies", "8", "--why", "a test")
    lines = lambda it: [json.loads(line) for line in it.out.splitlines()]

    def heard():
        assert stranger.send_msg(other.b, "1").text() == said.OFFLINE
        assert caller.send_msg(family.b, '"0123456789"').text() == '"0123456789"'
        # Of a call that began before anybody read bodies, none are told.
        return lines(offline) and any("request" in it for it in lines(bodies))

    until("both are told", heard)
    assert {(it["hop"], it["from"], it["to"], it["outcome"]) for it in lines(offline)} == {("caller", other.a.id, other.b.id, "offline")}
    told = {(it["from"], it["outcome"], it["request"], it["answer"]) for it in lines(bodies) if "request" in it}
    assert told == {(family.a.id, "answered", '"0123456', '"0123456')}
    assert not any("request" in it for it in lines(offline))
    recorded = json.loads(cluster.accounts.cli("audit", "query", "--kind", "tail.bodies", "--json").ok().out)
    assert [(it["why"], it["user"]) for it in recorded] == [("a test", "operator")]
    assert family.a.customer in recorded[0]["what"]


def test_a_trace_is_a_call_drawn(cluster, device):
    family, here = cluster.accounts.family(), cluster.nodes[0]
    device(PahoV5, family.b).connect(here).become_callable(echo)
    drawn = cluster.accounts.cli("trace", "--from", family.a.id, "--to", family.b.id, '1').ok().out
    assert "answered" in drawn and 'answer: 1' in drawn and drawn.count("█") >= 4
    trace = cluster.accounts.cli("trace", "--from", family.a.id, "--to", family.c.id, "--json")
    assert trace.code == 1
    account = json.loads(trace.out)
    assert way(account) == [("caller", "offline"), ("authorizer", "allowed"), ("router", "offline")]
    assert account["missing"] is None
    # What NATS tells of the first hop, under the operator's rights.
    (passage,) = account["nats"]
    assert passage["accounts"] == ["OPERATORS", "CORE"] and passage["errors"] == []
    (given,) = passage["given"]
    assert "switchboard-authorizer" in given["to"] and given["queue"] == "authorizer"
    assert "account OPERATORS -> CORE" in drawn


def test_more_is_logged_for_a_while(cluster, device):
    family, here, router = cluster.accounts.family(), cluster.nodes[0], cluster.routers[0]
    caller = device(PahoV5, family.a).connect(here)
    told = json.loads(cluster.accounts.cli("log-level", "router=debug", "--for", "3s", "--json").ok().out)
    assert [(it["service"], it["fault"]) for it in told] == [("router", None)]
    assert caller.send_msg(family.b, "1").text() == said.OFFLINE
    hop = router.process.wait_for_message("a hop ended")
    assert (hop["at"], hop["outcome"], hop["target"]) == ("router", "offline", family.b.id)
    router.process.wait_for_message("what is logged is as the settings say again")
    wrong = cluster.accounts.cli("log-level", "router=no,such=thing=1")
    assert wrong.code == 1 and "no filter" in wrong.err


def test_what_runs_where_and_what_will_hurt(cluster):
    processes = json.loads(cluster.accounts.cli("status", "--json").ok().out)
    by_service = {}
    for it in processes:
        by_service.setdefault(it["service"], []).append(it)
    assert {it["process"] for it in by_service["ingress"]} >= {it.node_id for it in cluster.nodes[:2]}
    assert set(by_service) == {"ingress", "api", "authorizer", "router"}
    assert all(it["unready"] == {} for it in processes)
    assert "sessions" in by_service["ingress"][0]["numbers"] and "claims" in by_service["router"][0]["numbers"]
    assert by_service["router"][0]["hopsPerSecond"] >= 0
    assert all(it["certificates"] == {} for it in processes)
    store = json.loads(cluster.accounts.cli("status", "--store", "--json").ok().out)
    assert {it["of"] for it in store} == {"devices", "policies", "audit", "denials", "claims", "seen", "keys", "once"}
    assert next(it for it in store if it["of"] == "devices")["fileBytes"] > 0
    tenant = cluster.accounts.family().a.tenant
    TOKENS.add("guess-me")
    cluster.accounts.cli("device", "add", "Guessed", "--tenant", tenant, "--token", "guess-me", "--weak-token").ok()
    doctor = cluster.accounts.cli("doctor", "--json", "--monitor", cluster.nats.monitoring)
    assert doctor.code == 1
    found = {(it["about"], it["what"]) for it in json.loads(doctor.out)}
    assert ("services", "there is a single router") in found
    assert ("tokens", "1 device with a token of fewer than 16 characters") in found
    assert {about for about, _ in found} >= {"nats", "sync_interval"}
    unasked = cluster.accounts.cli("doctor")
    assert "Not looked at: sync_interval" in unasked.err
    nobody = cluster.accounts.cli("doctor", "--monitor", "http://127.0.0.1:1")
    assert nobody.code == 1 and "http://127.0.0.1:1/varz" in nobody.err
    table = cluster.accounts.cli("status").ok().out
    assert table.startswith("SERVICE") and "router" in table and "\nSTORE" in table
