"""What does the page say? A row for each fault, and what its reader may conclude."""

import os
import platform
import textwrap
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from faults.history import LATENCY_S, Figures
from faults.rows import MEANS

HEAD = """\
# Faults on real processes

What becomes of calls while something breaks: `./taskw faults` breaks it, and writes this page.

```sh
./taskw faults                                # all rows, and this page; about {minutes} minutes
./taskw faults -- --list                      # what there is
./taskw faults -- --row node-stop-long        # one of them; its history stays in target/faults/
./taskw simulate -- --judge target/faults/node-stop-long.jsonl
```

It needs Linux that lets us make network namespaces (as root, or in a user namespace), `ip`, `tc` and `iptables`, and
for the clocks libfaketime. Nothing outside of the namespaces is touched, and nothing is left.

"""

TAKEN = [
    "Three NATS servers that keep three copies, three nodes, two authorizers, two routers: each a process with an address "
    "and a network namespace of its own, with the defaults and the pings of "
    "[our configuration of NATS](../../deploy/nats/switchboard.conf); a lease of {lease_s:g} s. Each row begins with all of "
    "them ready.",
    "{devices} devices, over MQTT 5, HTTP and CoAP in equal parts: nine stay at a node, three connect elsewhere every few "
    "seconds without taking leave, three leave and come back. Each calls any of them every 0.4 s (CoAP: 1.6 s), whether or "
    "not its last call has ended, with 1, 3 or {lease_s:g} s, and `connectTimeout` 0 or all of that. A target answers at "
    "once.",
    "A fault begins {before_s:g} s after all are callable. Calls go on for {after_s:g} s after its end.",
    "Each history (who was connected where and when, each call, when its target had it in its hands and how it ended) is "
    "judged by the checker of [the simulation](../simulation/README.md), with {latency_s:g} s for what is this machine's: "
    "at most once; every outcome true to its promise; the newest session wins; no call carried out after its time; no wait "
    "beyond a call's time; a change of the registry in force within 2 s; from a lease after the fault on every call between "
    "devices that stay is answered. Excused is, as there, a call that comes late because a cut or a sleeping server held it "
    "up in a socket.",
    "*Failed, though up*: the caller read anything but an answer, and its target was connected and subscribed all that time "
    "by one connection, as it saw it itself. Devices see nothing of a node that is stopped or cut off: calls to them count "
    "here. *Late*: how much later than its own time the slowest outcome came. *Whole*: from the end of the "
    "fault to the last call that failed though its target was up; a minus: before.",
    "Cut off is a network that swallows everything to and from other processes (iptables, DROP): nobody is told. Reset is "
    "one that answers everything with RST. Slow and lossy is `tc … {slow}` and 2 % of packets lost. A node's devices are "
    "outside of cuts and resets.",
    "A clock is set by libfaketime and stays wrong until the row's end. That of nats-server cannot be: Go asks the kernel "
    "itself, and the kernel has no wall clock for one process.",
    "{when} UTC, Linux {kernel}, {cores} cores that others used too, debug builds: counts and promises are to be read, not "
    "milliseconds.",
]


@dataclass
class Result:
    """What a row gave."""

    name: str
    what: str
    figures: Figures
    broken: list[str]
    unready_after_s: dict[str, float]

    @classmethod
    def of(cls, kept: dict[str, Any]) -> "Result":
        """As it was kept."""
        return cls(**kept | {"figures": Figures(**kept["figures"])})


ENDINGS = ["answered", "offline", "timed_out", "lost", "unavailable", "denied"]
WIDTH = 120


def page(results: list[Result], **facts: object) -> str:
    """The whole page."""
    calls = sum(it.figures.calls for it in results)
    broken = [f"`{it.name}`" for it in results if it.broken]
    kept = f"every promise was kept, but for those of {', '.join(broken)}" if broken else "every promise was kept"
    return "".join(
        [
            HEAD.format(**facts),
            _wrapped(f"{len(results)} faults, {calls:,} calls: {kept}."),
            "\n## The rows\n\n",
            _table(results),
            "\n## What may be concluded\n\n",
            *(_wrapped(f"- `{it.name}`, {it.what}: {conclusion(it)}", "  ") for it in results),
            "\n## How it was taken\n\n",
            *(_wrapped("- " + taken.format(**facts), "  ") for taken in TAKEN),
        ]
    )


def facts_of(minutes: float, slow: str) -> dict[str, object]:
    """What is the same for all rows of a run."""
    return {
        "minutes": round(minutes),
        "slow": slow,
        "latency_s": LATENCY_S,
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "kernel": platform.release(),
        "cores": os.cpu_count(),
    }


def conclusion(it: Result) -> str:
    """What the reader may conclude."""
    figures, said = it.figures, []
    if it.broken:
        said.append(f"**not kept**, {len(it.broken)} time(s): {it.broken[0]}.")
    failed = figures.failed_though_up
    if failed:
        endings = ", ".join(f"{count} {ending.replace('_', ' ')}" for ending, count in failed.items())
        said.append(f"of calls to devices that were there {sum(failed.values())} failed ({endings}), {_when(figures)}.")
    else:
        said.append("nobody notices: each call to a device that was there was answered.")
    for name, after_s in it.unready_after_s.items():
        said.append(f"`/readyz` of {name} says so after {after_s:.1f} s.")
    if it.name in MEANS and not it.broken:
        said.append(f"So: {MEANS[it.name]}")
    return " ".join(said)


def _when(figures: Figures) -> str:
    after_s = figures.recovered_after_s or 0
    if after_s < 0:
        return "all while it lasted"
    return f"the last begun {after_s:.1f} s after its end"


def _table(results: list[Result]) -> str:
    columns = ["row", "calls", *(ending.replace("_", " ") for ending in ENDINGS), "failed, though up", "late", "whole"]
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)]]
    for it in results:
        outcomes, figures = it.figures.outcomes, it.figures
        whole = "–" if figures.recovered_after_s is None else f"{figures.recovered_after_s:.1f} s"
        counts = [figures.calls, *(outcomes.get(ending, 0) for ending in ENDINGS), sum(figures.failed_though_up.values())]
        over = f"{max(figures.worst_over_s, 0):.1f} s"
        lines.append([it.name, *(f"{count:,}" for count in counts), over, whole])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) + "\n"
