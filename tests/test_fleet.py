"""What do devices notice while nodes are replaced or lost? The rows of `./taskw fleet`, with few devices: figures that are
events, and none that a busy machine could miss."""

import pytest
from fleet.rows import ROWS, perform
from fleet.stage import Stage

DEVICES = 120
CALLS = 100
# What calls may end as while nodes come and go, and every device comes back; without NATS none is judged.
ENDINGS = {"answered", "caller cut", "lost"}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_a_fleet_moves(row, tmp_path):
    stage = Stage(tmp_path, nodes=min(row.nodes, 2), devices=DEVICES, calls_per_second=50)
    try:
        figures = perform(row, stage, CALLS)
    finally:
        stage.close()
    print(figures)
    assert [bar.what for bar in row.bars if not bar.is_timed and not bar.is_kept(figures)] == []
    assert sum(figures.spread.values()) == figures.devices == DEVICES
    assert figures.calls >= CALLS and figures.outcomes["answered"] >= CALLS / 2
    assert set(figures.outcomes) <= ENDINGS | ({"unavailable"} if row.name == "memory" else set()), figures.outcomes
