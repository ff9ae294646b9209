"""Does `./taskw upgrade` see what it should? Its steps with this build in place of the one before, and what it promises.

That two builds read each other's messages is tried without the other one: `shared/bus/tests/wire`."""

import pytest
from harness.programs import built
from upgrade.page import Step, missed
from upgrade.registry import Fact
from upgrade.rows import ORDERS
from upgrade.stage import NEW, OLD, Figures, Stage

CALLS = 50


def test_every_group_is_taken_and_nobody_notices(tmp_path):
    stage = Stage(tmp_path, built("switchboard").parent, devices=20, calls_per_second=50)
    try:
        groups = ORDERS[0].groups
        old = [it.process.pid for it in stage.cluster.services if it.process.exit_code is None]
        steps = [Step("documented", group, NEW, stage.take(group, NEW, CALLS)) for group in groups]
        still = [it for it in stage.cluster.services if it.process.exit_code is None and it.process.pid in old]
    finally:
        stage.close()
    print(*steps, sep="\n")
    assert still == [], "each process was replaced"
    assert missed(steps, []) == []
    assert all(it.figures.devices["answered"] >= CALLS and it.figures.applications["answered"] for it in steps)
    # Who went to the other old node is cut once more.
    assert all(20 <= it.figures.cuts <= 40 if it.group == "nodes" else it.figures.cuts == 0 for it in steps)


def figures(*, twice: int = 0, **outcomes: int) -> Figures:
    return Figures(outcomes, {"answered": 5}, twice, cuts=0, fleet=20)


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (Step("documented", "nodes", NEW, Figures({"answered": 9, "caller cut": 2}, {}, 0, 2, 20)), None),
        (Step("documented", "nodes", NEW, figures(unavailable=1)), "nodes to today's, documented: 1 calls failed"),
        (Step("askers first", "nodes", NEW, figures(unavailable=1)), None),
        (Step("askers first", "nodes", OLD, figures(twice=2)), "nodes to the one before, askers first: 2 calls came twice"),
    ],
)
def test_what_is_promised_of_a_step(step, said):
    assert missed([step], []) == ([said] if said else [])


def test_what_is_lost_and_was_not_promised_is_no_fault():
    facts = [Fact("a name", holds=False), Fact("networks", holds=False, is_promised=False), Fact("a key", holds=True)]
    assert missed([], facts) == ["the older build does not read a name"]
