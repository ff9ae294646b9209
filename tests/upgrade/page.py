"""What does the page say? A row for each step, and what its reader may conclude."""

import os
import platform
import textwrap
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from harness.programs import profile

from upgrade.application import CALLS_PER_SECOND as APPLICATION_CALLS
from upgrade.registry import Fact
from upgrade.rows import ORDERS
from upgrade.stage import NEW, Figures

WIDTH = 120
HEAD = """\
# From one build to the next, and back

What devices and applications notice while services go to another build, one copy after the other, and what the older
build makes of what the newer one has stored: `./taskw upgrade` tries it, and writes this page. What operators do is in
[the day after](../../deploy/day-after.md#upgrade).

```sh
./taskw upgrade                              # all orders, and this page; about {minutes} minutes, once both are built
./taskw upgrade -- --list                    # which there are
./taskw upgrade -- --order documented --devices 40
```

"""
PREVIOUS = (
    "The build before is that of the commit in [`previous`](previous): {previous}. It is built once, below "
    "`target/upgrade/`. When a version is released, `previous` names its commit, and the [samples of its "
    "messages](../../shared/bus/tests/wire/main.rs) become `previous.txt`."
)
TAKEN = [
    "Processes stand for pods: two nodes, two authorizers, two routers, two APIs, one NATS server with JetStream and without "
    "users (the rights of each build are tested elsewhere). A lease of 15 s, all else with its defaults, {profile} builds.",
    "{devices} devices behind a balancer, {per_second} calls a second between them, each with 5 s; an application calls at "
    "most {app_per_second} a second, one after the other, over whichever API is in service. Every answer is compared with its "
    "call's own number, and each device writes down which it has had in its hands.",
    "A step takes one group to a build: of each copy the new one is ready before the old one gets SIGTERM, and leaves the "
    "balancer before. Half of the time both builds are at work. Calls go on before, meanwhile and after.",
    "First devices' calls, then the application's. *Failed*: not answered. *Cut*: the caller's own connection ended while its "
    "call was open, as in any roll of nodes. *Twice*: calls that reached a device again. *Gone*: connections that ended.",
    "{when} UTC, Linux {kernel}, {cores} cores{meanwhile}.",
]


@dataclass
class Step:
    """What one step gave."""

    order: str
    group: str
    build: str
    figures: Figures

    @classmethod
    def of(cls, kept: dict[str, Any]) -> "Step":
        """As it was kept."""
        return cls(**kept | {"figures": Figures(**kept["figures"])})


def missed(steps: list[Step], facts: list[Fact]) -> list[str]:
    """What is promised, and was not kept."""
    documented = {order.name for order in ORDERS if order.is_documented}
    said = [f"{it.group} to {it.build}, {it.order}: {it.figures.failed} calls failed" for it in steps if it.figures.failed and it.order in documented]
    said += [f"{it.group} to {it.build}, {it.order}: {it.figures.twice} calls came twice" for it in steps if it.figures.twice]
    return said + [f"the older build does not read {it.what}" for it in facts if it.is_promised and not it.holds]


def page(steps: list[Step], facts: list[Fact], **about: object) -> str:
    """The whole page."""
    calls = sum(sum(it.figures.devices.values()) + sum(it.figures.applications.values()) for it in steps)
    faults = missed(steps, facts)
    kept = f"**not kept**: {'; '.join(faults)}" if faults else "every promise was kept"
    return "".join(
        [
            HEAD.format(**about),
            _wrapped(PREVIOUS.format(**about)),
            "\n",
            _wrapped(f"{len(steps)} steps, {calls:,} calls: {kept}."),
            "\n## The steps\n\n",
            _table(steps),
            "\n## What may be concluded\n\n",
            *(_wrapped(f"- {conclusion([it for it in steps if it.order == order.name], order.name)}", "  ") for order in ORDERS),
            "\n## What the older build makes of what the newer one has stored\n\n",
            "| | |\n| --- | --- |\n",
            *(f"| {it.what} | {'as it was' if it.holds else 'lost' if not it.is_promised else '**lost**'} |\n" for it in facts),
            "\n## How it was taken\n\n",
            *(_wrapped("- " + taken.format(**about), "  ") for taken in TAKEN),
        ]
    )


def about(minutes: float, devices: int, per_second: float, previous: str, meanwhile: str) -> dict[str, object]:
    """What is the same for all steps of a run."""
    return {
        "minutes": max(round(minutes), 1),
        "devices": devices,
        "per_second": f"{per_second:g}",
        "app_per_second": APPLICATION_CALLS,
        "previous": previous,
        "when": f"{datetime.now(UTC):%Y-%m-%d %H:%M}",
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "profile": profile(),
        "meanwhile": f"; {meanwhile}" if meanwhile else "",
    }


def conclusion(steps: list[Step], name: str) -> str:
    """What the reader may conclude of one order."""
    order = next(it for it in ORDERS if it.name == name)
    how = f"{name} ({', '.join(order.groups)}; back the other way round): "
    if not steps:
        return how + "not tried."
    failed = [it for it in steps if it.figures.failed]
    if not failed:
        return how + "no call failed on the way there or back, but for those whose caller was cut itself; none came twice."
    return how + "; ".join(f"{it.group} to {it.build}: {_endings(it.figures)}" for it in failed) + "."


def _endings(figures: Figures) -> str:
    endings = Counter(figures.devices) + Counter(figures.applications)
    return ", ".join(f"{count} {how.replace('_', ' ')}" for how, count in endings.items() if how not in ("answered", "caller cut"))


def _table(steps: list[Step]) -> str:
    columns = ["order", "step", "calls", "answered", "cut", "failed", "by application", "answered", "failed", "twice", "gone"]
    lines = [columns, ["---", "---", *["--:"] * (len(columns) - 2)]]
    for it in steps:
        figures, failed = it.figures, []
        for outcomes in (figures.devices, figures.applications):
            failed.append(sum(outcomes.values()) - outcomes.get("answered", 0) - outcomes.get("caller cut", 0))
        step = f"{it.group} {'→ new' if it.build == NEW else '→ old'}"
        devices = [sum(figures.devices.values()), figures.devices.get("answered", 0), figures.devices.get("caller cut", 0), failed[0]]
        applications = [sum(figures.applications.values()), figures.applications.get("answered", 0), failed[1]]
        counts = [*devices, *applications, figures.twice, figures.cuts]
        lines.append([it.order, step, *(f"{count:,}" for count in counts)])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False) + "\n"
