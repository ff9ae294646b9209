"""What does a collector see of a call? One span for each hop, from the caller's trace to the target's; and nothing unless told."""

import json
import re
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import said
from harness.accounts import Family
from harness.asked import send_msg
from harness.cluster import Cluster, Ingress
from harness.collector import Collector, Span
from harness.devices import CoapDevice, PahoV5
from harness.devices.device import answering
from harness.raw_http import RawHttp
from harness.raw_mqtt import PUBLISH, RawMqtt
from harness.waiting import until

REQUESTS, RESPONSES = "v1/devices/me/rpc/request/", "v1/devices/me/rpc/response/"
SECRET_BODY = '"no_log_may_say_this"'

INGRESS, AUTHORIZER, ROUTER = (f"switchboard-{it}" for it in ("ingress", "authorizer", "router"))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


@pytest.fixture(scope="module")
def traced(tmp_path_factory, collector) -> Iterator[Cluster]:
    """One authorizer, one router and two nodes that trace what devices ask them to."""
    cluster = Cluster(tmp_path_factory.mktemp("traced"), nodes=2, settings=traces(collector, calls_sampled_per_million=0))
    yield cluster
    cluster.stop()


@pytest.fixture
def family(traced) -> Family:
    return traced.accounts.family()


def traces(collector: Collector, **more: int) -> dict[str, str]:
    settings = {"endpoint": collector.endpoint, "export_interval_ms": 50} | more
    return {f"traces.{name}": str(value) for name, value in settings.items()}


def traceparent(flags: str = "01") -> str:
    return f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-{flags}"


def trace_of(text: str) -> str:
    return text.split("-")[1]


class Mqtt:
    """A device that says and reads `traceparent` over MQTT 5, as a user property."""

    protocol = "mqtt"

    def __init__(self, node: Ingress, identity) -> None:
        self._client = RawMqtt(node.mqtt_port, 5)
        assert self._client.connect(identity.token).code == 0
        self._client.subscribe(RESPONSES + "+")

    def call(self, request: str, trace: str | None) -> str:
        properties = {"user_property": ("traceparent", trace)} if trace else {}
        self._client.publish(REQUESTS + "1", request, **properties)
        return self._client.expect(PUBLISH).payload.decode()

    def become_callable(self) -> None:
        self._client.subscribe(REQUESTS + "+")

    def take(self, answer: str | None = "1") -> str | None:
        """Takes a call, and gives the `traceparent` that it came with."""
        call = self._client.expect(PUBLISH)
        if answer:
            self._client.publish(call.topic.replace("request", "response"), answer)
        return call.user.get("traceparent")

    def close(self) -> None:
        self._client.socket.close()


class Http:
    """The same over HTTP, as a header."""

    protocol = "http"

    def __init__(self, node: Ingress, identity) -> None:
        self._http, self._path = RawHttp(node.http_port), f"/api/v1/{identity.token}/rpc"

    def call(self, request: str, trace: str | None) -> str:
        return self._http.ask("POST", self._path, request, **({"traceparent": trace} if trace else {})).body

    def become_callable(self) -> None:
        assert self._http.ask("GET", f"{self._path}?timeout=1").status == 408

    def take(self, answer: str | None = "1") -> str | None:
        call = self._http.ask("GET", self._path)
        if answer:
            assert self._http.ask("POST", f"{self._path}/{call.json['id']}", answer).status == 200
        return call.headers.get("traceparent")

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def at(traced):
    """Connects a device of a kind to a node of the traced cluster, until the test is over."""
    made = []

    def connect(kind, node: int, identity):
        made.append(kind(traced.nodes[node], identity))
        return made[-1]

    yield connect
    for it in made:
        it.close()


def called(caller, target, identity, trace: str | None, answer: str | None = "1", **params) -> tuple[str, str | None]:
    """What the caller reads, and the `traceparent` that the target reads."""
    with ThreadPoolExecutor(1) as beside:
        taken = beside.submit(target.take, answer)
        return caller.call(send_msg(identity, SECRET_BODY, **params), trace), taken.result()


def rows(spans: list[Span]) -> list[tuple[str, str, str, str]]:
    return [(it.service, it.name, it.kind, it.outcome) for it in spans]


def are_a_chain(spans: list[Span], first_parent: str) -> bool:
    return [it.parent for it in spans] == [first_parent, *(it.id for it in spans[:-1])]


@pytest.mark.parametrize("callers, targets", [(Mqtt, Http), (Http, Mqtt)], ids=["mqtt-http", "http-mqtt"])
def test_a_call_is_one_span_for_each_hop(traced, collector, at, family, callers, targets):
    caller, target = at(callers, 0, family.a), at(targets, 1, family.b)
    target.become_callable()
    trace = traceparent()
    answer, heard = called(caller, target, family.b, trace)
    assert answer == "1"
    spans = collector.wait_for(trace_of(trace), 4)
    assert rows(spans) == [
        (INGRESS, "sendMsg", "SERVER", "answered"),
        (AUTHORIZER, "decide", "CONSUMER", "allowed"),
        (ROUTER, "route", "CONSUMER", "answered"),
        (INGRESS, "deliver", "CLIENT", "answered"),
    ]
    assert are_a_chain(spans, first_parent=trace.split("-")[2])
    asked, decided, routed, delivered = spans
    # The target goes on where the delivery is.
    assert heard == f"00-{trace_of(trace)}-{delivered.id}-01"
    assert asked.holds(decided) and asked.holds(routed) and routed.holds(delivered)
    assert not any(span.failed for span in spans)

    # Who did it: the nodes by their ids in claims, and the version that --version says.
    first, second = traced.nodes
    assert [asked.resource["service.instance.id"], delivered.resource["service.instance.id"]] == [first.node_id, second.node_id]
    assert len({it.resource["service.instance.id"] for it in spans}) == 4
    assert all(re.match(r"\d+\.\d+\.\d+", it.resource["service.version"]) for it in spans)
    # What was done: the same call everywhere.
    assert [it.attributes.get("switchboard.protocol") for it in (asked, delivered)] == [caller.protocol, target.protocol]
    assert (asked.attributes["switchboard.caller"], asked.attributes["switchboard.target"]) == (family.a.id, family.b.id)
    assert len({it.attributes["switchboard.call"] for it in spans}) == 1
    assert routed.attributes["switchboard.node"] == second.node_id

    # Spans of one process come in their order: whatever else this call left would be here before the next one's.
    again = traceparent()
    called(caller, target, family.b, again)
    collector.wait_for(trace_of(again), 4)
    assert len(collector.wait_for(trace_of(trace), 4)) == 4


def test_how_calls_end_is_how_their_spans_end(traced, collector, at, family):
    caller, target = at(Mqtt, 0, family.a), at(Mqtt, 1, family.b)
    target.become_callable()
    refused, offline, timed_out, listed = (traceparent() for _ in range(4))
    assert caller.call(send_msg(traced.accounts.family().a, SECRET_BODY), refused) == said.DENIED
    caller.call(send_msg(family.c, SECRET_BODY), offline)
    called(caller, target, family.b, timed_out, answer=None, timeout=200)
    caller.call('{"method":"getDevices"}', listed)
    for trace, expected in [
        (refused, [("sendMsg", "denied", False), ("decide", "denied", False)]),
        (offline, [("sendMsg", "offline", False), ("decide", "allowed", False), ("route", "offline", False)]),
        (
            timed_out,
            [("sendMsg", "timed_out", True), ("decide", "allowed", False), ("route", "timed_out", True), ("deliver", "timed_out", True)],
        ),
        (listed, [("getDevices", "answered", False), ("list", "answered", False)]),
    ]:
        spans = collector.wait_for(trace_of(trace), len(expected))
        assert [(it.name, it.outcome, it.failed) for it in spans] == expected
        assert are_a_chain(spans, first_parent=trace.split("-")[2])


@pytest.mark.parametrize("kind", [Mqtt, Http])
def test_what_nobody_asked_to_trace_leaves_nothing(collector, at, family, kind):
    caller, target = at(kind, 0, family.a), at(kind, 1, family.b)
    target.become_callable()
    before = len(collector.spans)
    # None; the device does not record its own; not one of W3C's.
    for trace in (None, traceparent("00"), "00-1-2-01"):
        assert called(caller, target, family.b, trace) == ("1", trace)
    traced = traceparent()
    called(caller, target, family.b, traced)
    collector.wait_for(trace_of(traced), 4)
    assert {it.trace for it in collector.spans[before:]} == {trace_of(traced)}


def test_calls_are_sampled_and_a_collector_may_be_away(new_cluster, device):
    """Without a parent a trace begins here, over CoAP too. While nobody takes spans, calls go on and spans are counted."""
    with Collector() as first:
        cluster = new_cluster(nodes=2, settings=traces(first, calls_sampled_per_million=1_000_000, max_queued_spans=4, max_batch_spans=4))
        family = cluster.accounts.family()
        device(CoapDevice, family.b).connect(cluster.nodes[1]).become_callable(answering("1"))
        caller = device(CoapDevice, family.a).connect(cluster.nodes[0])
        assert caller.send_msg(family.b, SECRET_BODY).text() == "1"
        until("all four spans have come", lambda: len(first.spans) >= 4)
        assert are_a_chain(first.spans, first_parent="") and len({it.trace for it in first.spans}) == 1
        assert {it.attributes.get("switchboard.protocol") for it in first.spans} == {"coap", None}
        port = first.port

    def spans(result: str) -> float:
        return cluster.routers[0].admin.value("switchboard_trace_spans_total", result=result)

    exported = until("the router counts its own", lambda: spans("exported"))
    while not spans("queue_full"):
        assert caller.send_msg(family.b, "1").text() == "1"
    assert spans("exported") == exported
    # What waited comes when it is back.
    with Collector(port) as second:
        until("the router is heard again", lambda: any(it.service == ROUTER for it in second.spans))
        until("it counts them", lambda: spans("exported") > exported)


def test_nothing_is_sent_unless_a_setting_says_so(new_cluster, device, monkeypatch):
    with Collector() as collector:
        # Read by OpenTelemetry's own exporters; settings come from one place here.
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.endpoint)
        monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
        cluster = new_cluster()
        family, node = cluster.accounts.family(), cluster.nodes[0]
        device(PahoV5, family.b).connect(node).become_callable(answering("1"))
        caller = Http(node, family.a)
        assert caller.call(send_msg(family.b, SECRET_BODY), traceparent()) == "1"
        caller.close()
        assert not [it for service in cluster.services for it in service.admin.samples() if "trace" in it.name]
        # At their end they would send what they have.
        assert [service.term() for service in reversed(cluster.services)] == [0, 0, 0]
        assert collector.spans == []
