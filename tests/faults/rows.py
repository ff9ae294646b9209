"""Which faults are tried? Each a row of the page, with what is done in words."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from faults.stage import Stage

# The kinds of process, each with what the page calls the one that is hit.
KINDS = {
    "node": "one of three nodes",
    "authorizer": "one of two authorizers",
    "router": "one of two routers",
    "server": "one of three NATS servers, the one that leads most,",
}
CLOCK_S = 300
# Servers elect a leader of each stream for up to 9 s; an authorizer's watch that is silent is opened anew after 7 s.
SETTLES_S = {"authorizer": 12.0, "server": 12.0}


@dataclass(frozen=True)
class Row:
    """One fault."""

    name: str
    # What is done; may name the seconds of short and long faults, {short} and {long}.
    what: str
    does: Callable[[Stage], None]
    # Whether it needs a network of its own, or clocks.
    needs_network: bool = False
    needs_clocks: bool = False
    # From its end until all must be well, if that is longer than a lease.
    settles_s: float = 0


def _of(kind: str) -> list[Row]:
    whom = KINDS[kind]

    def hit(stage: Stage):
        return stage.victim(kind)

    rows = [
        Row(f"{kind}-kill", f"{whom} killed, started again after {{short}} s", lambda it: it.kill(hit(it))),
        Row(f"{kind}-stop", f"{whom} stopped {{short}} s", lambda it: it.stop(hit(it), lasts_s=it.short_s)),
        Row(f"{kind}-stop-long", f"{whom} stopped {{long}} s", lambda it: it.stop(hit(it), lasts_s=it.long_s)),
        Row(f"{kind}-drain", f"{whom} ended by SIGTERM, started again", lambda it: it.drain(hit(it))),
        Row(f"{kind}-cut", f"{whom} cut off {{short}} s", lambda it: it.cut(hit(it), lasts_s=it.short_s), True),
        Row(f"{kind}-cut-long", f"{whom} cut off {{long}} s", lambda it: it.cut(hit(it), lasts_s=it.long_s), True),
        Row(f"{kind}-reset", f"connections of {whom} reset for 1.5 s", lambda it: it.reset(hit(it), 1.5), True),
        Row(f"{kind}-slow", f"{whom} on a slow and lossy network {{long}} s", lambda it: it.slow(hit(it), it.long_s), True),
    ]
    if kind != "server":
        for name, by_s in (("ahead", CLOCK_S), ("behind", -CLOCK_S)):
            does = lambda it, by_s=by_s: it.clock(hit(it), by_s)  # noqa: E731
            rows.append(Row(f"{kind}-clock-{name}", f"the clock of {whom} 5 min {name}", does, needs_clocks=True))
    return [replace(row, settles_s=SETTLES_S.get(kind, 0)) for row in rows]


def _unassigned_unheard(stage: Stage) -> None:
    authorizer = stage.cluster.authorizers[0]
    stage.cut(authorizer, lasts_s=14, meanwhile=lambda: stage.reassign(8))


def _cut_and_left(stage: Stage) -> None:
    node = stage.cluster.nodes[0]
    stage.cut(node, lasts_s=stage.long_s, meanwhile=lambda: stage.traffic.move_from(node))



ROWS = [
    *(row for kind in KINDS for row in _of(kind)),
    Row("node-cut-left", "a node cut off {long} s, its devices connect to another one as well", _cut_and_left, True),
    *(
        replace(row, settles_s=SETTLES_S["server"])
        for row in [
            Row("authorizer-cut-unassigned", "an authorizer cut off 14 s, meanwhile a device is unassigned", _unassigned_unheard, True),
            Row("servers-cut-two", "two of three servers cut off {short} s", lambda it: it.cut(*it.servers[:2], lasts_s=it.short_s), True),
            Row("servers-stop-all", "all servers stopped {short} s", lambda it: it.stop(*it.servers, lasts_s=it.short_s)),
            Row("servers-kill-all", "all servers killed, started again after {short} s", lambda it: it.kill(*it.servers)),
            Row("claims-lost", "the bucket with all claims is deleted", lambda it: it.lose_claims()),
        ]
    ),
    Row("routers-kill-all", "both routers killed, started again after {short} s", lambda it: it.kill(*it.cluster.routers)),
    Row("authorizers-stop-all", "both authorizers stopped {short} s", lambda it: it.stop(*it.cluster.authorizers, lasts_s=it.short_s)),
    Row("unassigned", "nothing but a device that is unassigned for 8 s", lambda it: it.unassign()),
]
