#!/usr/bin/env python3
"""How does the benchmark look at one glance? Draws the samples of `./taskw bench -- --json FILE` as SVG.

picture.py bench.json > bench.svg
"""

import json
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from xml.sax.saxutils import escape

WIDTH, MARGIN, NAMES, GAP = 960, 16, 130, 56
ROW, BAR, TITLE = 22, 12, 46
# Switchboard's own stand out; what they are compared with is grey.
OWN = ("switchboard", "together", "up")
STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a }
.title { font-size: 14px; font-weight: 600; fill: #1f2328 } .name, .own { fill: #1f2328 } .own { font-weight: 600 }
.ours { fill: #0969da } .ours-light { fill: #54aeff } .theirs { fill: #8c959f } .theirs-light { fill: #c9d1d9 }
.axis { stroke: #d0d7de } .noise { stroke: #cf222e; stroke-dasharray: 3 2 }
@media (prefers-color-scheme: dark) {
  text { fill: #9198a1 } .title, .name, .own { fill: #f0f6fc }
  .ours { fill: #4493f8 } .ours-light { fill: #1f4f9b } .theirs { fill: #848d97 } .theirs-light { fill: #3d444d }
  .axis { stroke: #3d444d }
}
"""


@dataclass(frozen=True)
class Row:
    """The medians of one system in one scenario."""

    system: str
    # The whole, and nats-server's part of it where it is one of several processes.
    cost: float
    of_nats: float
    # Milliseconds: p50 and p99 of calls, p99 of a thread that only sleeps; None of connections.
    span: tuple[float, float, float] | None
    # Of connections: ms CPU a connect.
    connect: float | None


def rows(samples: Iterable[dict]) -> dict[str, list[Row]]:
    """By scenario, both in the order in which they were measured; what failed is left out."""
    grouped: dict[str, dict[str, list[dict]]] = {}
    for sample in samples:
        kind, figures = next(iter((sample["figures"] or {"none": None}).items()))
        if kind in ("load", "idle") and not sample["scenario"].startswith(("greedy@", "others@", "offline@")):
            grouped.setdefault(sample["scenario"], {}).setdefault(sample["system"], []).append(figures)
    return {
        scenario: [row(system, rounds) for system, rounds in systems.items()] for scenario, systems in grouped.items()
    }


def row(system: str, rounds: list[dict]) -> Row:
    """One system's."""

    def mid(figure: Callable[[dict], float]) -> float:
        return median(map(figure, rounds))

    is_load = "latency" in rounds[0]
    cost = "server_cpu_us_a_call" if is_load else "server_kib_a_connection"
    return Row(
        system=system,
        cost=mid(lambda it: sum(it[cost].values())),
        of_nats=mid(lambda it: it[cost].get("nats-server", 0) if len(it[cost]) > 1 else 0),
        span=(mid(lambda it: it["latency"]["p50_ms"]), mid(lambda it: it["latency"]["p99_ms"]), mid(lambda it: it["wake_p99_ms"]))
        if is_load
        else None,
        connect=None if is_load else mid(lambda it: sum(it["server_cpu_ms_a_connect"].values())),
    )


class Svg:
    """A picture that grows downwards."""

    def __init__(self) -> None:
        self.y, self._parts = 10.0, []

    def text(self, x: float, y: float, text: str, look: str = "", anchor: str = "start") -> None:
        self._parts.append(f'<text class="{look}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>')

    def bar(self, x: float, y: float, width: float, look: str, height: float = BAR) -> None:
        self._parts.append(f'<rect class="{look}" x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height}"/>')

    def line(self, x: float, y0: float, y1: float, look: str) -> None:
        self._parts.append(f'<line class="{look}" x1="{x:.1f}" x2="{x:.1f}" y1="{y0:.1f}" y2="{y1:.1f}"/>')

    def finish(self, described: str) -> str:
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self.y:.0f}" role="img">'
        return "\n".join([head, f"<title>{escape(described)}</title>", f"<style>{STYLE}</style>", *self._parts, "</svg>"]) + "\n"


def draw(report: dict) -> str:
    """All scenarios, one below the other: what it costs to the left, how long it takes to the right."""
    svg = Svg()
    panel = (WIDTH - 2 * MARGIN - NAMES - GAP) / 2
    left, right = MARGIN + NAMES, MARGIN + NAMES + panel + GAP
    for scenario, each in rows(report["samples"]).items():
        is_load = each[0].span is not None
        top = svg.y + TITLE
        svg.text(MARGIN, svg.y + 18, scenario, "title")
        svg.text(left, top - 10, ("CPU µs a call" if is_load else "KiB a connection") + "; pale: of nats-server")
        svg.text(right, top - 10, "p50 to p99, ms, log scale; dashed: the machine's own (p99)" if is_load else "CPU ms a connect")
        bottom = top + ROW * len(each)
        for x in (left, right):
            svg.line(x, top - 4, bottom - 4, "axis")
        most, most_connect = (max(map(of, each)) or 1 for of in (lambda it: it.cost, lambda it: it.connect or 0))
        ends = [end for it in each if it.span for end in it.span]
        for number, it in enumerate(each):
            y = top + ROW * number
            ours = "ours" if it.system.startswith(OWN) else "theirs"
            svg.text(left - 8, y + 10, it.system, "own" if ours == "ours" else "name", "end")
            scale = (panel - 50) / most
            svg.bar(left, y, it.of_nats * scale, f"{ours}-light")
            svg.bar(left + it.of_nats * scale, y, (it.cost - it.of_nats) * scale, ours)
            svg.text(left + it.cost * scale + 6, y + 10, figure(it.cost))
            if it.span:
                p50, p99, wake = (right + place(end, ends) * (panel - 80) for end in it.span)
                svg.bar(p50, y + 3, p99 - p50, ours, BAR / 2)
                svg.line(wake, y - 2, y + BAR + 2, "noise")
                svg.text(max(p99, wake) + 6, y + 10, f"{figure(it.span[0])} – {figure(it.span[1])}")
            elif it.connect is not None:
                width = it.connect / most_connect * (panel - 50)
                svg.bar(right, y, width, ours)
                svg.text(right + width + 6, y + 10, figure(it.connect))
        svg.y = bottom + 16
    svg.text(MARGIN, svg.y, report["machine"])
    svg.y += 12
    return svg.finish("What a call costs, and how long it takes")


def figure(number: float) -> str:
    """In three digits, or as many as it takes."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def place(ms: float, among: list[float]) -> float:
    """Where a time stands on a logarithmic scale, from 0 to 1."""
    low, high = (math.log10(max(end, 1e-3)) for end in (min(among), max(among)))
    return (math.log10(max(ms, 1e-3)) - low) / ((high - low) or 1) * 0.96 + 0.02


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    sys.stdout.write(draw(json.loads(Path(sys.argv[1]).read_text())))
