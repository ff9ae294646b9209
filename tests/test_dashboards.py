"""Does every panel of the Grafana boards show something? Each query runs on a real Prometheus that scrapes a cluster in use."""

import json
import math
import re
import sys
import time
import urllib.parse

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from harness.authority import Authority
from harness.cluster import Cluster
from harness.collector import Collector
from harness.everything import Everything
from harness.hardened import new_issuer
from harness.joining import Joining
from harness.nats_exporter import NatsExporter
from harness.processes import run
from harness.programs import ROOT
from harness.prometheus import Prometheus
from harness.waiting import until

register_default_plugins()
BOARDS = {file.stem: json.loads(file.read_text()) for file in sorted((ROOT / "deploy" / "grafana").glob("*.json"))}
MEASURED = "00000000-0000-4000-8000-00000000c057"
EACH_BOARD = pytest.mark.parametrize("name", BOARDS)
# What Grafana makes of its own variables when the datasource says that everybody is scraped once a second.
BUILT_IN = {"__rate_interval": "4s", "__range": "60s"}


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory):
    """Scrapes a cluster in use and traced, whose certificate was then replaced by nonsense."""
    folder = tmp_path_factory.mktemp("monitored")
    certificate, key = Authority(tmp_path_factory.mktemp("authority")).issue("node")
    collector, exporter = Collector(), NatsExporter()
    seed, _ = new_issuer()
    settings = {
        "identity.issuer_seed": seed,
        "identity.join_secret": "of nodes",
        "traces.endpoint": collector.endpoint,
        "ingress.measured_customers": MEASURED,
        "tls.certificate_file": str(certificate),
        "tls.key_file": str(key),
        "tls.reload_check_ms": "100",
        "ingress.call_burst_per_device": "50",
        "ingress.calls_per_second_per_device": "200",
    }
    cluster = Cluster(folder, nodes=2, authorizers=2, routers=2, whole_nodes=1, identities=1, apis=1, settings=settings)
    # Whose calls somebody outside decides about: the one customer that is measured.
    cluster.accounts.cli("tenant", "add", "Decided outside").ok()
    cluster.accounts.cli("customer", "add", "Customer", "--tenant", "Decided outside", "--id", MEASURED).ok()
    try:
        with Everything(cluster), Joining(cluster.nats.url):
            it = Prometheus(cluster, folder / "prometheus", exporter.address)
            certificate.write_text("nonsense")
            try:
                yield it
            finally:
                it.stop()
    finally:
        cluster.stop()
        collector.close()
        exporter.close()


def test_the_files_are_what_the_script_writes():
    assert len(BOARDS) == 6
    run(sys.executable, ROOT / "deploy" / "grafana" / "boards.py", "--check").ok()


@EACH_BOARD
def test_panels_have_a_place_and_say_what_they_show(name):
    taken = set()
    for panel in BOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        assert panel["type"] == "row" or len(panel["description"]) > 10, panel["title"]
    ids = [panel["id"] for panel in BOARDS[name]["panels"]]
    assert len(set(ids)) == len(ids)
    assert BOARDS[name]["uid"] == f"switchboard-{name}"


@EACH_BOARD
def test_grafana_knows_every_field(name):
    """By its own types: what it does not know, it would leave out."""
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(BOARDS[name])))
    # Prometheus' own field of annotations, which are the same for all sources in the types.
    assert {re.sub(r"\d+", "N", it) for it in lost(BOARDS[name], read)} == {".annotations.list[N].titleFormat"}


@EACH_BOARD
def test_links_lead_to_logs_and_traces(name):
    """What Grafana's Explore reads there, once the variables of the board are in it."""
    board = BOARDS[name]
    known = {it["name"] for it in board["templating"]["list"]} | {"__from", "__to"}
    links = board["links"] + [link for panel in board["panels"] for link in panel.get("fieldConfig", {}).get("defaults", {}).get("links", [])]
    explored = {link["title"]: link["url"] for link in links if link["url"].startswith("/explore?")}
    assert {"logs", "traces"} <= set(explored)
    for title, url in explored.items():
        variables = {it.partition(":")[0] for it in re.findall(r"\$\{([^}]+)\}", url)}
        assert variables <= known | {"__field.labels.outcome"}, title
        stream = next(it["query"] for it in board["templating"]["list"] if it["name"] == "stream")
        url = url.replace("${stream:percentencode}", urllib.parse.quote(stream, safe=""))
        (panes,) = urllib.parse.parse_qs(urllib.parse.urlsplit(re.sub(r"\$\{[^}]+\}", "chosen", url)).query)["panes"]
        (pane,) = json.loads(panes).values()
        (query,) = pane["queries"]
        assert pane["datasource"] == "chosen"
        assert query.get("expr", "").startswith(f"{stream} | json | ") or query["queryType"] == "traceql", query


@pytest.mark.parametrize("name", sorted(set(BOARDS) - {"nats"}))
def test_another_version_is_marked(name, prometheus):
    """Where one has run for longer, the first process of another one."""
    (versions,) = (it for it in BOARDS[name]["annotations"]["list"] if it["name"] == "Versions")
    now, before = versions["expr"].replace("offset 2m", "offset 1h").split(" unless ")
    chosen = BUILT_IN | all_chosen(prometheus, BOARDS[name])
    marked = prometheus.query(substituted(f"{now} unless {before}", chosen))
    assert marked and all(it["metric"]["service"] and it["metric"]["version"] for it in marked)
    assert prometheus.query(substituted(f"{now} unless {now}", chosen)) == []


@EACH_BOARD
def test_every_query_has_data(prometheus, name):
    board = BOARDS[name]
    chosen = BUILT_IN | all_chosen(prometheus, board)
    for panel in board["panels"]:
        for target in panel.get("targets", []):
            expr = substituted(target["expr"], chosen)
            until(f"{panel['title']!r} shows {expr}", lambda expr=expr, target=target: has_data(prometheus, expr, target["instant"]))


@pytest.mark.parametrize(("name", "label"), [("ingress", "instance"), ("router", "instance"), ("router", "pod"), ("overview", "pod")])
def test_one_process_can_be_chosen(prometheus, name, label):
    """By any label that it has, be it that others have none."""
    board = BOARDS[name]
    chosen = BUILT_IN | all_chosen(prometheus, board)
    value = chosen[label] = prometheus.label_values(label, substituted(variable(board, label), chosen))[0]
    panel = next(it for it in board["panels"] if it["title"] == "Memory")
    series = prometheus.query(substituted(panel["targets"][0]["expr"], chosen))
    assert [it["metric"][label] for it in series] == [value]


def test_what_is_named_exists(prometheus):
    """Names and labels alike: of a name or a label that nobody writes, a rule would wait for ever."""
    for expr in [*exprs_of_boards(), *exprs_of_rules(prometheus)]:
        for selector in selectors(expr):
            until(f"{selector} of {expr}", lambda selector=selector: prometheus.query(f"count({selector})"))


def test_every_metric_is_on_a_board(prometheus):
    ours = {name for name in prometheus.metadata() if name.startswith(("switchboard_", "process_"))}
    shown = set(re.findall(r"\w+", " ".join(exprs_of_boards())))
    hidden = {name for name in ours if not {name, f"{name}_bucket"} & shown}
    assert not hidden
    assert len(ours) > 60


def test_only_what_is_wrong_alarms(prometheus):
    firing = 'ALERTS{alertstate="firing"}'
    until("every rule can be evaluated", lambda: {rule["health"] for rule in prometheus.rules()} == {"ok"})
    names = until("an alert fires", lambda: {it["metric"]["alertname"] for it in prometheus.query(firing)})
    assert names == {"SwitchboardCertificateRefused"}


def all_chosen(prometheus, board):
    """Every variable at "All", as Grafana substitutes it."""
    chosen = {}
    for it in board["templating"]["list"]:
        if it["type"] == "query":
            values = prometheus.label_values(it["name"], substituted(variable(board, it["name"]), chosen))
            chosen[it["name"]] = it["allValue"] or f"({'|'.join(values)})"
    assert chosen["job"] != "()"
    return chosen


def variable(board, name):
    """The selector of the series that a variable takes its values from."""
    (query,) = (it["query"]["query"] for it in board["templating"]["list"] if it["name"] == name)
    return re.fullmatch(rf"label_values\((.+), {name}\)", query)[1]


def substituted(expr, chosen):
    return re.sub(r"\$(\w+)", lambda match: chosen[match[1]], expr)


def has_data(prometheus, expr, instant):
    now = time.time()
    series = prometheus.query(expr) if instant else prometheus.query_range(expr, now - 15, now, 1)
    values = [value for it in series for _, value in ([it["value"]] if instant else it["values"])]
    return any(math.isfinite(float(value)) for value in values)


def lost(ours, read, path=""):
    """Where a value of ours is not what was read. What is empty says nothing."""
    if isinstance(ours, dict) and isinstance(read, dict):
        for key, value in ours.items():
            yield from lost(value, read.get(key), f"{path}.{key}")
    elif isinstance(ours, list) and isinstance(read, list) and len(ours) == len(read):
        for index, (one, other) in enumerate(zip(ours, read, strict=True)):
            yield from lost(one, other, f"{path}[{index}]")
    elif ours != read and (ours or read):
        yield path


def exprs_of_boards():
    return [target["expr"] for board in BOARDS.values() for panel in board["panels"] for target in panel.get("targets", [])]


def exprs_of_rules(prometheus):
    rules = prometheus.rules()
    assert len(rules) > 40
    return [rule["query"] for rule in rules]


def selectors(expr):
    """Each name with one value of each label that it asks for, without variables."""
    for name, _, matchers in re.findall(r"(?<![\w:])((?:job:)?switchboard_[\w:]+|process_\w+|up\b)(\{([^}]*)\})?", expr):
        asked = [(label, value) for label, value in re.findall(r'(\w+)=~?"([^"]*)"', matchers) if "$" not in value]
        if not asked:
            yield name
        for label, values in asked:
            for value in values.split("|"):
                yield f'{name}{{{label}=~"{value}"}}'
