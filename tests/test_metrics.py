"""Can an operator rely on /metrics? Help for everything, few labels, numbers that follow what happened, one call id everywhere."""

import json
import re
import signal
import time
from collections import defaultdict

import pytest
from harness import said
from harness.admin import parse
from harness.devices import CoapDevice, HttpDevice, PahoV5
from harness.devices.device import answering
from harness.waiting import until

SERVICES = pytest.mark.parametrize("service", ["nodes", "authorizers", "routers", "apis"])
# Every value that a label may have is known beforehand; `le` and `quantile` are Prometheus' own.
MAX_VALUES_OF_A_LABEL = 40


@pytest.fixture
def busy(shared_cluster, family, device):
    """The shared cluster after calls of several outcomes."""
    device(PahoV5, family.b).connect(shared_cluster.nodes[1]).become_callable(answering("1"))
    caller = device(PahoV5, family.a).connect(shared_cluster.nodes[0])
    for _ in range(8):
        assert caller.send_msg(family.b, "1").text() == "1"
    assert caller.send_msg(family.c, "1").text() == said.OFFLINE
    return shared_cluster


@SERVICES
def test_every_metric_has_help_and_type(busy, service):
    for it in getattr(busy, service):
        text = it.admin.metrics_text()
        helps = dict(re.findall(r"^# HELP (\S+) (.+)$", text, re.MULTILINE))
        types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        samples = parse(text)
        assert samples
        for sample in samples:
            name = re.sub(r"_(bucket|sum|count)$", "", sample.name) if sample.name not in types else sample.name
            assert name in types, f"{it.name}: {sample.name} has no type"
            assert helps.get(name, "").strip(), f"{it.name}: {sample.name} has no help"
            assert (types[name] == "counter") == name.endswith("_total"), f"{name} is a {types[name]}"


@SERVICES
def test_labels_are_few(busy, service):
    for it in getattr(busy, service):
        values = defaultdict(set)
        for sample in it.admin.samples():
            for label, value in sample.labels.items():
                if label != "le":
                    values[sample.name, label].add(value)
        for (name, label), found in values.items():
            assert len(found) <= MAX_VALUES_OF_A_LABEL, (name, label, found)
            for value in found:
                assert not re.search(r"[0-9a-f]{8}-[0-9a-f]{4}|\d{5,}", value), (name, label, value)


def test_calls_are_counted_where_they_were_made(shared_cluster, family, device):
    admin = shared_cluster.nodes[0].admin

    def count(method, outcome):
        return admin.value("switchboard_calls_total", method=method, outcome=outcome)

    caller = device(PahoV5, family.a).connect(shared_cluster.nodes[0])
    before = {key: count(*key) for key in [("sendMsg", "offline"), ("getDevices", "answered"), ("other", "malformed")]}
    caller.send_msg(family.b, "1").text()
    caller.get_devices()
    caller.ask("{}").text()
    for key, value in before.items():
        until(f"{key} is counted", lambda key=key, value=value: count(*key) == value + 1)
    assert admin.value("switchboard_call_seconds_count", method="sendMsg") >= 1


@pytest.mark.parametrize("kind", [PahoV5, HttpDevice, CoapDevice], ids=lambda kind: kind.protocol)
def test_visitors_sessions_and_claims_are_gauged(new_cluster, device, kind):
    # One of its own: elsewhere, devices of other tests that vanished may still hold their claims.
    soon = {"http.session_idle_ms": "500", "coap.session_idle_ms": "500", "coap.ack_timeout_ms": "100"}
    cluster = new_cluster(settings=soon)
    family, admin = cluster.accounts.family(), cluster.nodes[0].admin

    protocol = "mqtt" if kind is PahoV5 else kind.protocol

    def gauges():
        known, callable_ = (admin.value(f"switchboard_{what}", protocol=protocol) for what in ("visitors", "sessions"))
        return known, callable_, admin.value("switchboard_claims_held")

    assert gauges() == (0, 0, 0)
    target = device(kind, family.b).connect(cluster.nodes[0])
    target.get_devices()
    until("it is known", lambda: gauges() == (1, 0, 0))
    target.become_callable()
    until("it is callable", lambda: gauges() == (1, 1, 1))
    target.close()
    until("it is gone again", lambda: gauges() == (0, 0, 0), within_s=30)


def test_a_stopped_authorizer_is_seen_where_it_is_asked(new_cluster, device):
    """It does not see that itself: its own clock begins when it takes a question."""
    cluster = new_cluster()
    family, node = cluster.accounts.family(), cluster.nodes[0]
    device(PahoV5, family.b).connect(node).become_callable(answering("1"))
    caller = device(PahoV5, family.a).connect(node)

    def way_seconds():
        return sum(it.admin.value("switchboard_router_way_seconds_sum") for it in cluster.routers)

    def judged_seconds():
        return sum(it.admin.value("switchboard_authorizer_answer_seconds_sum", question="call") for it in cluster.authorizers)

    # How long it was on its way is said relative to beats: the first is yet to come.
    until("a call is counted", lambda: caller.send_msg(family.b, "1").text() == "1" and way_seconds() > 0)
    before, judged_before = way_seconds(), judged_seconds()
    for authorizer in cluster.authorizers:
        authorizer.process.signal(signal.SIGSTOP)
    try:
        asked_at = time.monotonic()
        answer = caller.send_msg(family.b, "1")
        until("it waits", lambda: node.admin.value("switchboard_bus_asks_in_flight") > 0 and time.monotonic() > asked_at + 0.2)
        waited_s = time.monotonic() - asked_at
    finally:
        for authorizer in cluster.authorizers:
            authorizer.process.signal(signal.SIGCONT)
    assert answer.text() == "1"
    # Two processes do not hear a beat at the very same moment.
    until("the way was long", lambda: way_seconds() - before > 0.9 * waited_s)
    assert judged_seconds() - judged_before < 0.1 * waited_s


@pytest.mark.parametrize("kind", [PahoV5, HttpDevice, CoapDevice], ids=lambda kind: kind.protocol)
def test_a_node_says_who_hits_limits_and_comes_in_again(new_cluster, device, kind):
    cluster = new_cluster(settings={"ingress.calls_per_second_per_device": "1", "ingress.call_burst_per_device": "1"})
    family, admin = cluster.accounts.family(), cluster.nodes[0].admin
    caller = device(kind, family.a).connect(cluster.nodes[0])
    answers = [caller.ask('{"method":"getTime"}').text() for _ in range(4)]
    refused = answers.count(said.BUSY)
    assert refused > 0

    def worst(offence):
        status, text = admin.get("/offenders")
        assert status == 200
        return json.loads(text)[offence]

    limits = worst("limits")
    (it,) = limits["devices"]
    assert (it["device"], it["times"], it["over"], it["limit"]) == (family.a.id, refused, 0, "call_rate")
    (customer,) = limits["customers"]
    assert (customer["customer"], customer["times"]) == (it["customer"], refused)
    assert [(it["device"], it["times"]) for it in worst("connects")["devices"]] == [(family.a.id, 1)]


def test_one_call_id_is_found_on_every_hop(shared_cluster, family, device):
    device(PahoV5, family.b).connect(shared_cluster.nodes[1]).become_callable(answering("1"))
    caller = device(PahoV5, family.a).connect(shared_cluster.nodes[0])
    assert caller.send_msg(family.b, "1").text() == "1"

    def hops():
        found = defaultdict(set)
        for service in shared_cluster.services:
            for line in service.process.log_lines():
                if "call" in line and line.get("target") == family.b.id:
                    found[line["call"]].add(service.name.rsplit("-", 1)[0])
        return next((names for names in found.values() if {"ingress", "authorizer", "router"} <= names), None)

    until("one call is in the logs of all", hops)


@SERVICES
def test_logs_are_json(busy, service):
    for it in getattr(busy, service):
        lines = it.process.err.splitlines()
        assert lines and all(line.startswith("{") for line in lines)
        assert {"timestamp", "level", "message"} <= next(it.process.log_lines()).keys()


@SERVICES
def test_the_admin_endpoint(shared_cluster, service):
    admin = getattr(shared_cluster, service)[0].admin
    assert admin.get("/livez")[0] == 200
    assert admin.get("/readyz")[0] == 200
    assert admin.get("/")[0] == 404
