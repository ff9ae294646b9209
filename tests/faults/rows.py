"""Which faults are tried? Each a row of the page, with what is done in words."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from faults.stage import Stage

# What a reader may take with him where every promise was kept: held against the figures by whoever writes the page anew.
MEANS = {
    "node-kill": "a device whose node dies connects elsewhere, and is reached there from then on.",
    "node-stop": "a node that sleeps for less than its lease keeps its devices: calls to them wait or time out, none reads "
    "Offline.",
    "node-stop-long": "when its lease is over its devices read Offline; awake again it has them back at once, and none had "
    "to connect anew.",
    "node-drain": "a node may be stopped at any time: its devices go to the others, and no call to them fails.",
    "node-cut": "a cut is noticed within 3 s; then calls end at once instead of waiting, and the node says that it is not "
    "ready.",
    "node-cut-long": "as with sleep: Offline after the lease, and back within a second of the cut's end, by the same "
    "connections of its devices.",
    "node-reset": "a lost connection to NATS is back in a moment, and no device of the node reads Offline meanwhile.",
    "node-slow": "what is slow is not taken for dead.",
    "node-clock-ahead": "no wall clock says which session is newer, whose lease is over or what time a call has left.",
    "node-clock-behind": "the same the other way round.",
    "authorizer-kill": "the other one does the work from the first moment on.",
    "authorizer-stop": "NATS goes on giving it its share until the server closes its connection, after about 10 s: that half "
    "of the calls ends as Unavailable, none as anything that is not so.",
    "authorizer-stop-long": "the same, and no longer than for the shorter stop.",
    "authorizer-drain": "it may be stopped at any time.",
    "authorizer-cut": "as when it sleeps; it knows it after 2 s and decides nothing until it is up to date again.",
    "authorizer-cut-long": "the same.",
    "authorizer-reset": "what was in its hands is Unavailable, the rest goes to the other one.",
    "authorizer-slow": "what is slow is not taken for dead.",
    "authorizer-clock-ahead": "tickets are honoured by authorizers and routers whose clocks are minutes apart.",
    "authorizer-clock-behind": "the same the other way round.",
    "router-kill": "the other one does the work from the first moment on.",
    "router-stop": "as with an authorizer that sleeps: its share of the calls is Unavailable until NATS closes its "
    "connection, after about 10 s.",
    "router-stop-long": "the same, and no longer than for the shorter stop; it removes no claim for not having heard a node.",
    "router-drain": "it may be stopped at any time: calls that wait with it for their target go to the other one.",
    "router-cut": "as when it sleeps.",
    "router-cut-long": "the same, and no claim is lost.",
    "router-reset": "the other one does the work meanwhile.",
    "router-slow": "what is slow is not taken for dead.",
    "router-clock-ahead": "claims are written by generation, and no clock says who is newer.",
    "router-clock-behind": "the same the other way round.",
    "server-kill": "who was connected to it is at another one in a moment; for as long as the others elect leaders calls may "
    "be Unavailable, and none Offline.",
    "server-stop": "its connections are given up within 3 s: the rest is as when it is killed.",
    "server-stop-long": "the same.",
    "server-drain": "a server may be stopped at any time.",
    "server-cut": "its connections are given up within 3 s; calls may be Unavailable while the others elect leaders.",
    "server-cut-long": "when it is back the servers elect leaders anew, and for up to 9 s authorizers may not know how old "
    "their directories are: calls are Unavailable rather than decided by what may be old.",
    "server-reset": "who was connected to it is at another one in a moment.",
    "server-slow": "what is slow is not taken for dead.",
    "node-cut-left": "of two sessions of a device the newer one wins, also over one whose node could not be told; none of "
    "them reads Offline.",
    "authorizer-cut-unassigned": "a change is in force within 2 s, or the authorizer that has not heard of it decides nothing: "
    "none of the calls that it forbids was carried out.",
    "servers-cut-two": "without a majority of the servers nothing is decided that may be old; all is well 2 s after it is back.",
    "servers-stop-all": "whoever hears nothing from NATS says Unavailable, and nothing else.",
    "servers-kill-all": "what was claimed is in files; until leaders are elected calls are Unavailable, and none is carried out "
    "after its time.",
    "claims-lost": "nodes say what they hold before anybody misses it.",
    "routers-kill-all": "without a router calls are Unavailable at once; a new one knows every claim.",
    "authorizers-stop-all": "without an authorizer nothing is allowed.",
    "unassigned": "a device that belongs to nobody is refused within 2 s, its open connection notwithstanding.",
}

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
