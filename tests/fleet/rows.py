"""How is the fleet moved? Each a row of the page, with what it must keep."""

from collections.abc import Callable
from dataclasses import dataclass

from fleet.figures import Figures
from fleet.stage import Stage

SPREAD = 1.3
CUTS = 1.1
# Of calls to devices that all come back within 2 s, this part may read Offline.
OFFLINE_SHARE = 0.001
EVACUATED_PER_SECOND = 500
RATE_ERROR = 0.1
# 14,000 in 5 s.
CLAIMS_PER_SECOND = 2_800


@dataclass(frozen=True)
class Bar:
    """Something that is promised of a row's figures."""

    what: str
    is_kept: Callable[[Figures], bool]
    # Whether a machine that is busy with other things may miss it.
    is_timed: bool = False


@dataclass(frozen=True)
class Row:
    """One way to move a fleet."""

    name: str
    what: str
    does: Callable[[Stage], None]
    nodes: int
    devices: int
    bars: tuple[Bar, ...] = ()
    # What a reader may take with him where every bar was kept.
    means: str = ""


def perform(row: Row, stage: Stage, calls: int) -> Figures:
    """Moves the fleet; so many calls end before, and after."""
    with stage.watched(calls):
        row.does(stage)
    return stage.figures()


def _roll(stage: Stage) -> None:
    old = list(stage.nodes)
    stage.grow(len(old))
    stage.end(*old)


def _grow(stage: Stage) -> None:
    stage.grow(len(stage.nodes))
    stage.command("node", "rebalance").ok()


def _evacuate(stage: Stage) -> None:
    node = stage.nodes[0]
    stage.command("node", "evacuate", node.node_id, "--rate", str(EVACUATED_PER_SECOND)).ok()
    cut_at = stage.fleet.record.cut_at
    took_s = cut_at[-1] - cut_at[0]
    stage.extra |= {"asked_per_second": EVACUATED_PER_SECOND, "per_second": (len(cut_at) - 1) / took_s}
    stage.end(node)


def _kill(stage: Stage) -> None:
    stage.kill(stage.nodes[0])


ONCE = Bar(f"a device is cut {CUTS} times at most", lambda it: it.cuts_mean <= CUTS)
NEVER = Bar("no device is cut", lambda it: not any(it.cuts))
SELDOM_OFFLINE = Bar(f"{OFFLINE_SHARE:.1%} of the calls read Offline at most", lambda it: it.offline_share <= OFFLINE_SHARE)
PACED = Bar(
    f"it keeps the rate that was asked for, ± {RATE_ERROR:.0%}",
    lambda it: abs(it.extra["per_second"] / it.extra["asked_per_second"] - 1) <= RATE_ERROR,
    is_timed=True,
)
EVEN = Bar(f"the fullest node has {SPREAD} times the emptiest one's at most", lambda it: it.spread_ratio <= SPREAD)
ALL_ANSWERED = Bar("every call is answered", lambda it: it.outcomes.get("answered") == it.calls)
FAST = Bar(
    f"claims are written again at {CLAIMS_PER_SECOND:,}/s or more, counted from NATS' return",
    lambda it: it.extra["claims"] >= CLAIMS_PER_SECOND * it.extra["back_s"],
    is_timed=True,
)

ROWS = [
    Row(
        "roll",
        "all nodes replaced: the new ones are ready, then the old ones get SIGTERM",
        _roll,
        nodes=4,
        devices=4_000,
        bars=(ONCE, SELDOM_OFFLINE, EVEN),
        means="an upgrade costs each device one connection.",
    ),
    Row(
        "grow",
        "two nodes become four, then `switchboard node rebalance`",
        _grow,
        nodes=2,
        devices=4_000,
        bars=(ONCE, SELDOM_OFFLINE, EVEN),
        means="new nodes get their part, and who moves is cut once.",
    ),
    Row(
        "evacuate",
        f"`switchboard node evacuate` at {EVACUATED_PER_SECOND} a second, one node of two",
        _evacuate,
        nodes=2,
        devices=4_000,
        bars=(ONCE, SELDOM_OFFLINE, PACED),
        means="a node can be cleared at a pace of one's choice.",
    ),
    Row("kill", "one node of four killed", _kill, nodes=4, devices=4_000, means="only its own devices notice."),
    Row(
        "memory",
        "NATS killed, its claims lost, back after 1 s",
        Stage.lose_memory,
        nodes=1,
        devices=14_000,
        bars=(NEVER, FAST),
        means="the node writes what it holds, and nobody connects anew.",
    ),
    Row(
        "settings",
        "routers and authorizers replaced one by one, as for a setting of theirs",
        Stage.replace_others,
        nodes=2,
        devices=4_000,
        bars=(NEVER, ALL_ANSWERED),
        means="devices and callers do not notice.",
    ),
]
