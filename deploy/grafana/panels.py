"""How is a board written? Panels and queries as `boards.py` has them, and the JSON that Grafana makes of them."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, unquote

Json = dict[str, Any]

NAMES = ["overview", "ingress", "authorizer", "router", "customer", "nats"]
# Grafana 11 and 12 read it as it is.
SCHEMA_VERSION = 41
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
# What the variables chose. A label that is missing everywhere matches too: "All" is `.*`.
CHOSEN = 'job=~"$job",namespace=~"$namespace",release=~"$release",pod=~"$pod",instance=~"$instance"'
PROCESS = "{{instance}}"
# Which streams of Loki are ours: the containers of the Helm chart, unless told otherwise on the board. It comes to stand
# within JSON, hence no quotes.
STREAM = "{container=~`ingress|authorizer|router|api|identity`}"
LOGS = "${stream:percentencode} | json"
TRACES = '{ resource.service.name =~ "switchboard-.+" && %s }'

COLUMNS = 24
GREEN, YELLOW, ORANGE, RED, BLUE, PURPLE, GREY = "green", "yellow", "orange", "red", "blue", "purple", "text"
COLOURS = {
    "answered": GREEN,
    "delivered": "light-green",
    "offline": BLUE,
    "denied": PURPLE,
    "unknown_device": "light-purple",
    "malformed": GREY,
    "timed_out": YELLOW,
    "busy": ORANGE,
    "lost": "dark-orange",
    "unavailable": RED,
}


@dataclass
class Query:
    """An expression and what its series are called. `@` stands for the matchers of the variables."""

    expr: str
    legend: str = ""
    format: str = "time_series"
    instant: bool = False


@dataclass
class Panel:
    kind: str
    title: str
    # What it says, and what to look for.
    description: str
    queries: list[Query]
    unit: str = "short"
    width: int = 8
    height: int = 8
    # Colour from a value on, ascending; drawn as lines in a graph.
    thresholds: dict[float, str] = field(default_factory=dict)
    options: Json = field(default_factory=dict)
    custom: Json = field(default_factory=dict)
    defaults: Json = field(default_factory=dict)
    transformations: list[Json] = field(default_factory=list)


def graph(title: str, description: str, *queries: Query, stacked: bool = False, **more: Any) -> Panel:
    custom = {"lineWidth": 1, "fillOpacity": 30 if stacked else 8, "showPoints": "never", "spanNulls": False}
    custom["stacking"] = {"mode": "normal" if stacked else "none", "group": "A"}
    if more.get("thresholds"):
        custom["thresholdsStyle"] = {"mode": "dashed"}
    options = {
        "legend": {
            "displayMode": "table", "placement": "bottom", "showLegend": True,
            "calcs": ["lastNotNull", "max"], "sortBy": "Max", "sortDesc": True,
        },
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    return Panel("timeseries", title, description, list(queries), options=options, custom=custom, **more)


def stat(title: str, description: str, *queries: Query, decimals: int | None = None, **more: Any) -> Panel:
    options = {
        "colorMode": "background" if more.get("thresholds") else "none",
        "graphMode": "none" if queries[0].instant else "area",
        "justifyMode": "auto",
        "textMode": "auto" if len(queries) > 1 else "value",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    defaults = {} if decimals is None else {"decimals": decimals}
    return Panel("stat", title, description, list(queries), options=options, defaults=defaults, **({"width": 4, "height": 4} | more))


def states(title: str, description: str, query: Query, **more: Any) -> Panel:
    """Of a gauge that is 1 when all is well, and otherwise 0."""
    texts = {"0": {"text": "no", "index": 0}, "1": {"text": "yes", "index": 1}}
    options = {
        "mergeValues": True,
        "showValue": "never",
        "rowHeight": 0.8,
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": False},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    defaults = {"mappings": [{"type": "value", "options": texts}], "color": {"mode": "thresholds"}}
    look = {"options": options, "custom": {"fillOpacity": 70, "lineWidth": 0}, "thresholds": {0: RED, 1: GREEN}}
    return Panel("state-timeline", title, description, [query], defaults=defaults, **look, **more)


def heatmap(title: str, description: str, metric: str, matchers: str = "", **more: Any) -> Panel:
    query = Query(f"sum by (le) (increase({metric}_bucket{{{with_chosen(matchers)}}}[$__rate_interval]))", "{{le}}", "heatmap")
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange"},
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": False},
        "yAxis": {"axisPlacement": "left", "unit": "s"},
    }
    return Panel("heatmap", title, description, [query], unit="s", options=options, **more)


def table(title: str, description: str, query: str, columns: dict[str, str], unit: str = "short", **more: Any) -> Panel:
    """`columns`: label to heading, in order; `Value` is the query's."""
    organise = {"renameByName": columns, "indexByName": {name: index for index, name in enumerate(columns)}}
    shown = {"id": "filterFieldsByName", "options": {"include": {"names": list(columns)}}}
    return Panel(
        "table",
        title,
        description,
        [Query(query, format="table", instant=True)],
        unit=unit,
        options={"showHeader": True, "cellHeight": "sm"},
        transformations=[shown, {"id": "organize", "options": organise}],
        **more,
    )


def with_chosen(matchers: str = "") -> str:
    return f"@,{matchers}" if matchers else "@"


def rate(metric: str, by: str = "", matchers: str = "") -> str:
    """Per second, summed but for `by`."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} (rate({metric}{{{with_chosen(matchers)}}}[$__rate_interval]))"


def rates(metric: str, by: str, matchers: str = "") -> Query:
    """One series for each value of the label `by`."""
    return Query(rate(metric, by, matchers), f"{{{{{by}}}}}")


def quantile(share: float, metric: str, matchers: str = "", by: str = "") -> str:
    return f"histogram_quantile({share}, {rate(metric + '_bucket', f'le, {by}' if by else 'le', matchers)})"


def quantiles(metric: str, matchers: str = "") -> list[Query]:
    return [Query(quantile(share, metric, matchers), f"p{share * 100:g}") for share in (0.5, 0.95, 0.99)]


def each(metric: str, legend: str = PROCESS) -> Query:
    """A gauge of each process."""
    return Query(f"{metric}{{@}}", legend)


def total(metric: str, by: str = "") -> str:
    return f"sum by ({by}) ({metric}{{@}})" if by else f"sum({metric}{{@}})"


def share_of(bad: str, all_of: str) -> str:
    return f"1 - {bad} / {all_of}"


def increase(metric: str, matchers: str = "") -> str:
    return f"sum(increase({metric}{{{with_chosen(matchers)}}}[$__range]))"


def board(uid: str, title: str, description: str, marker: str, rows: dict[str, list[Panel]], of: str | None = None) -> Json:
    """`marker` is a metric, or a selector of one, that the services of this board have, and no other; `of` one more label to choose by."""
    return {
        "uid": uid,
        "title": title,
        "description": description,
        "tags": ["switchboard"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "annotations": {"list": [starts(), versions()]},
        "links": [*(link(name) for name in NAMES if uid != f"switchboard-{name}"), *elsewhere()],
        "templating": {"list": [*variables(marker, of), *sources()]},
        "panels": list(laid_out(rows)),
    }


def starts() -> Json:
    """Marks rollouts and crashes in every graph."""
    return {
        "name": "Starts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": BLUE,
        "expr": f"time() - process_start_time_seconds{{{CHOSEN}}} < 60",
    }


def versions() -> Json:
    """Marks a rollout from its first process of another version on."""
    running = "count by (service, version) (switchboard_build_info{%s}%s)"
    return {
        "name": "Versions",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": PURPLE,
        "expr": f"{running % (CHOSEN, '')} unless {running % (CHOSEN, ' offset 2m')}",
        "titleFormat": "{{service}} {{version}}",
    }


def elsewhere() -> Iterable[Json]:
    """From the whole board, where it need not be said which series is meant."""
    common = {"type": "link", "keepTime": False, "targetBlank": True, "icon": "external link"}
    yield common | {"title": "logs", "url": explored("logs", f"{LOGS} | level =~ `WARN|ERROR`")}
    yield common | {"title": "traces", "url": explored("traces", TRACES % "status = error")}


def of_outcome() -> list[Json]:
    """From a series of one outcome to the calls that ended so."""
    failed = f"{LOGS} | message = `a call failed` | outcome = `${{__field.labels.outcome}}`"
    traced = TRACES % 'span.switchboard.outcome = "${__field.labels.outcome}"'
    return [
        {"title": "Logs of calls that failed so", "url": explored("logs", failed), "targetBlank": True},
        {"title": "Traces of calls that ended so", "url": explored("traces", traced), "targetBlank": True},
    ]


def explored(variable: str, query: str) -> str:
    """Grafana's Explore, at the data source that a variable chose, for the time of the board. What is a variable stays as it is."""
    asked = {"refId": "A", "expr": query} if variable == "logs" else {"refId": "A", "queryType": "traceql", "query": query}
    pane = {"datasource": f"${{{variable}}}", "queries": [asked], "range": {"from": "${__from}", "to": "${__to}"}}
    panes = quote(json.dumps({"a": pane}))
    return "/explore?schemaVersion=1&panes=" + re.sub("%24%7B(.+?)%7D", lambda variable: f"${{{unquote(variable[1])}}}", panes)


def link(name: str) -> Json:
    return {
        "type": "link",
        "title": name,
        "url": f"/d/switchboard-{name}?${{datasource:queryparam}}&${{namespace:queryparam}}&${{release:queryparam}}",
        "keepTime": True,
        "icon": "dashboard",
    }


def sources() -> Iterable[Json]:
    """Where logs and traces are, if Grafana has them; and by which labels a log is ours: those of whoever collects it."""
    for name, label, kind in (("logs", "Logs", "loki"), ("traces", "Traces", "tempo")):
        yield {"name": name, "label": label, "type": "datasource", "query": kind, "current": {}}
    yield {"name": "stream", "label": "Logs of", "type": "textbox", "query": STREAM, "current": {"text": STREAM, "value": STREAM}}


def variables(marker: str, of: str | None) -> Iterable[Json]:
    source = {"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus"}
    of_job = marker.removesuffix("}") + ',job=~"$job"}' if marker.endswith("}") else f'{marker}{{job=~"$job"}}'
    return [
        source,
        # The jobs that are there: another name than usual is found too, and no other process than ours.
        variable("job", f"label_values({marker}, job)", None),
        *(variable(label, f"label_values({of_job}, {label})", ".*") for label in ("namespace", "release", "pod", "instance")),
        *([variable(of, f"label_values({of_job}, {of})", ".*")] if of else []),
    ]


def variable(label: str, query: str, all_value: str | None) -> Json:
    return {
        "name": label,
        "label": label.capitalize(),
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": label},
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": all_value,
        "current": {"text": ["All"], "value": ["$__all"]},
    }


def laid_out(rows: dict[str, list[Panel]]) -> Iterable[Json]:
    """Numbers the panels and gives them their places, from left to right."""
    number, y = 0, 0
    for title, panels in rows.items():
        number += 1
        yield {"id": number, "type": "row", "title": title, "collapsed": False, "panels": [], "gridPos": at(0, y, COLUMNS, 1)}
        x, y, line = 0, y + 1, 0
        for panel in panels:
            if x + panel.width > COLUMNS:
                x, y, line = 0, y + line, 0
            number += 1
            yield as_json(panel, number) | {"gridPos": at(x, y, panel.width, panel.height)}
            x, line = x + panel.width, max(line, panel.height)
        y += line


def at(x: int, y: int, width: int, height: int) -> Json:
    return {"x": x, "y": y, "w": width, "h": height}


def as_json(panel: Panel, number: int) -> Json:
    # The first colour reaches down to whatever is lowest.
    steps = [{"color": colour, "value": value} for value, colour in panel.thresholds.items()]
    if not panel.thresholds or min(panel.thresholds) > 0:
        steps.insert(0, {"color": GREEN, "value": None})
    else:
        steps[0]["value"] = None
    defaults = {"unit": panel.unit, "custom": panel.custom, "color": {"mode": "thresholds" if panel.kind == "stat" else "palette-classic"}}
    if panel.kind == "timeseries":
        defaults["min"] = 0
        if panel.unit == "percentunit":
            defaults["max"] = 1
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "targets": [target(query, chr(ord("A") + index)) for index, query in enumerate(panel.queries)],
        "fieldConfig": {
            "defaults": defaults | ({"links": of_outcome()} if is_of_outcomes(panel) else {}) | {"thresholds": {"mode": "absolute", "steps": steps}} | panel.defaults,
            "overrides": [coloured(name, colour) for name, colour in COLOURS.items()] if is_of_outcomes(panel) else [],
        },
        "options": panel.options,
        "transformations": panel.transformations,
    }


def is_of_outcomes(panel: Panel) -> bool:
    return "{{outcome}}" in panel.queries[0].legend


def target(query: Query, ref: str) -> Json:
    return {
        "refId": ref,
        "datasource": DATASOURCE,
        "expr": query.expr.replace("@", CHOSEN),
        "legendFormat": query.legend or "__auto",
        "format": query.format,
        "instant": query.instant,
        "range": not query.instant,
    }


def coloured(name: str, colour: str) -> Json:
    return {"matcher": {"id": "byName", "options": name}, "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}]}
