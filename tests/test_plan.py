"""Does the plan for large fleets add up, and does its page say what it says?"""

import dataclasses
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent / "bench"))
import plan
from plan import Fleet, Limits, Measured


def test_the_page_holds_what_the_plan_says():
    page = plan.PAGE.read_text()
    assert page.partition(plan.BEGIN)[2].partition(plan.END)[0] == plan.generated(), "run tests/bench/plan.py --update"


@pytest.mark.parametrize("devices", [1, 1_000, 123_456, 5_000_001, 80_000_000])
def test_a_plan_holds_all_its_devices(devices):
    limits = Limits()
    planned = plan.plan(Fleet(devices), Measured(), limits)
    assert planned.cells * limits.devices_per_cell >= devices
    assert planned.cells * planned.connected >= devices * Fleet(devices).connected
    # Also while one is away.
    assert (planned.nodes - 1) * limits.connections_per_node >= planned.connected
    assert min(planned.nodes, planned.authorizers, planned.routers) >= 2


def test_more_calls_need_more_processes():
    quiet = plan.plan(Fleet(5_000_000), Measured(), Limits())
    busy = plan.plan(Fleet(5_000_000, calls_per_hour=600), Measured(), Limits())
    assert busy.routers > quiet.routers and busy.authorizers > quiet.authorizers


def test_a_storm_takes_as_long_as_what_is_scarcest():
    measured = Measured()
    by_claims = plan.storm(1_000_000, 50, measured, first_within_s=1)
    assert by_claims.callable_after_s >= 0.99 * 1_000_000 / measured.claims_written_per_s
    slow = dataclasses.replace(measured, connect_ingress_ms=10)
    by_nodes = plan.storm(100_000, 10, slow, first_within_s=1)
    assert by_nodes.callable_after_s >= 0.99 * 100_000 / 1_000
    small = plan.storm(1_000, 2, measured, first_within_s=1)
    assert small.callable_after_s <= 2 and small.attempts_per_device == 1


def test_only_bounded_claims_bring_all_devices_back():
    bounded = plan.storm(4_500_000, 46, Measured(), first_within_s=1)
    unbounded = plan.storm(4_500_000, 46, Measured(), first_within_s=1, is_bounded=False)
    assert bounded.all_after_s is not None
    assert unbounded.callable_after_s is None
