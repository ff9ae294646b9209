"""What does the page say? A line of figures for each row, and what its reader may conclude."""

import os
import platform
import textwrap
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from harness.programs import profile

from fleet.figures import Figures
from fleet.fleet import COMES_BACK_S, PER_CUSTOMER, TIMEOUT_MS
from fleet.rows import ROWS

WIDTH = 120
HEAD = """\
# A fleet that moves

What devices notice while nodes are replaced, added, evacuated and lost: `./taskw fleet` moves them, and writes this
page.

```sh
./taskw fleet                          # all rows, and this page; about {minutes} minutes
./taskw fleet -- --list                # what there is
./taskw fleet -- --row roll --part 0.1 # one of them, with a tenth of the devices
```

"""
TAKEN = [
    "Processes stand for pods: as many nodes as a row says, two authorizers, two routers, one NATS server with JetStream. A "
    "lease of 15 s, all else with its defaults, {profile} builds.",
    "Half of the devices speak MQTT 5, the others 3.1.1. One process drives them all, so its time is in the gaps, too. A device "
    "whose connection ends comes back after 0 to {comes_back_s:g} s, at random, and is callable again with its SUBACK.",
    "A balancer chooses a node for each new connection, one after the other of those whose `/readyz` says 200; one that is to "
    "end is taken out before its SIGTERM, as Kubernetes takes a pod out of its Service.",
    "{calls_per_second} calls a second: any device that is connected to any other of its customer, which has {per_customer}, "
    "with {timeout_s:g} s and no `connectTimeout`. *Cut*: the caller's own connection ended while its call was open.",
    "A call waits for a device that its node has sent away, for `ingress.handover_ms` (5 s).",
    "*Cuts*: how often a device was cut, of those that were. *Gap*: from the end of its connection to its next SUBACK, the "
    "wait of its own included. *Spread*: devices at the fullest and the emptiest node in the end. Peaks are of the second in "
    "which there were most.",
    "{when} UTC, Linux {kernel}, {cores} cores{meanwhile}.",
]
COLUMNS = ["row", "devices", "cuts", "gap p50", "p99", "calls", "answered", "offline", "cut", "else", "spread"]
PEAKS = ["connects/s", "claims/s"]


@dataclass
class Result:
    """What a row gave."""

    name: str
    what: str
    nodes: int
    figures: Figures
    # The bars that were not kept.
    missed: list[str]

    @classmethod
    def of(cls, kept: dict[str, Any]) -> "Result":
        """As it was kept."""
        figures = kept["figures"]
        figures["cuts"] = {int(times): devices for times, devices in figures["cuts"].items()}
        return cls(**kept | {"figures": Figures(**figures)})


def page(results: list[Result], **facts: object) -> str:
    """The whole page."""
    missed = [f"`{it.name}`" for it in results if it.missed]
    kept = f"every bar was kept, but for those of {', '.join(missed)}" if missed else "every bar was kept"
    return "".join(
        [
            HEAD.format(**facts),
            _wrapped(f"{len(results)} rows, {sum(it.figures.calls for it in results):,} calls: {kept}."),
            "\n## The rows\n\n",
            _table(results),
            "\n## What may be concluded\n\n",
            *(_wrapped(f"- `{it.name}`, {it.what}: {conclusion(it)}", "  ") for it in results),
            "\n## How it was taken\n\n",
            *(_wrapped("- " + taken.format(**facts), "  ") for taken in TAKEN),
        ]
    )


def facts_of(minutes: float, calls_per_second: float, meanwhile: str) -> dict[str, object]:
    """What is the same for all rows of a run."""
    return {
        "minutes": max(round(minutes), 1),
        "calls_per_second": calls_per_second,
        "per_customer": PER_CUSTOMER,
        "comes_back_s": COMES_BACK_S,
        "timeout_s": TIMEOUT_MS / 1_000,
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "profile": profile(),
        "meanwhile": f"; {meanwhile}" if meanwhile else "",
    }


def conclusion(it: Result) -> str:
    """What the reader may conclude."""
    figures, said = it.figures, []
    if it.missed:
        said.append(f"**not kept**: {'; '.join(it.missed)}.")
    cut = {times: devices for times, devices in figures.cuts.items() if times}
    if cut:
        times = ", ".join(f"{devices:,} {'once' if times == 1 else f'{times} times'}" for times, devices in cut.items())
        said.append(f"cut were {times}, {figures.cuts_peak:,} in a second at most ({_goodbyes(figures)}), and back within {figures.gap_max_s:.1f} s.")
    else:
        said.append("nobody was cut.")
    if {"claims", "back_s", "first_s"} <= figures.extra.keys():
        claims, back_s, first_s = (figures.extra[name] for name in ("claims", "back_s", "first_s"))
        said.append(
            f"{claims:,} claims were written again {back_s:.1f} s after NATS was back, all within {back_s - first_s:.1f} s."
        )
    if "asked_per_second" in figures.extra:
        said.append(f"Asked were {figures.extra['asked_per_second']:g} a second, and it was {figures.extra['per_second']:.0f}.")
    others = {how: count for how, count in figures.outcomes.items() if how != "answered"}
    if others:
        said.append("Calls that were not answered: " + ", ".join(f"{count} {how}" for how, count in others.items()).replace("_", " ") + ".")
    else:
        said.append("Every call was answered.")
    means = {row.name: row.means for row in ROWS}.get(it.name)
    if means and not it.missed:
        said.append(f"So: {means}")
    return " ".join(said)


def _goodbyes(figures: Figures) -> str:
    return ", ".join(f"{count:,} {'without a word' if how == 'closed' else f'with {how}'}" for how, count in figures.goodbyes.items())


def _table(results: list[Result]) -> str:
    columns = [*COLUMNS, *PEAKS]
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)]]
    for it in results:
        figures = it.figures
        named = [figures.outcomes.get(how, 0) for how in ("answered", "offline", "caller cut")]
        counts = [figures.calls, *named, figures.calls - sum(named)]
        cuts = f"{figures.cuts_mean:.2f}" if any(figures.cuts) else "–"
        gaps = [f"{gap:.2f} s" if any(figures.cuts) else "–" for gap in (figures.gap_p50_s, figures.gap_p99_s)]
        spread = f"{max(figures.spread.values()):,} : {min(figures.spread.values()):,}"
        peaks = [f"{figures.connects_peak:,}", f"{figures.claims_peak:,}"]
        lines.append([it.name, f"{figures.devices:,}", cuts, *gaps, *(f"{count:,}" for count in counts), spread, *peaks])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) + "\n"
