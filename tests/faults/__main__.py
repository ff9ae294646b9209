"""Which faults are tried now? All, and the page is written; or some, and it is said how they went."""

import argparse
import json
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.picking import picked
from harness.programs import ROOT
from harness.waiting import until

from faults import clock, network
from faults.clock import Clocks
from faults.history import NO_FIGURES, SLACK_S, judged
from faults.network import Network
from faults.page import Result, conclusion, facts_of, page
from faults.rows import ROWS, Row
from faults.stage import Stage
from faults.traffic import DEVICES

PAGE = Path(__file__).with_name("README.md")
HISTORIES = ROOT / "target" / "faults"
# The last whole run.
RUN = HISTORIES / "run.json"
LEASE_S = 15.0


def main() -> None:
    # What aiocoap says of connections that break is what is wanted.
    logging.disable()
    arguments = _arguments()
    if arguments.list:
        for row in ROWS:
            print(f"{row.name:26} {_what(row, arguments.lease_s)}")
        return
    if arguments.page:
        return _write_page()
    rows = picked("row", arguments.row, ROWS)
    why = None if arguments.inside else network.missing()
    if why and not arguments.or_plain:
        sys.exit(f"faults: {why}")
    if why:
        print(f"faults: {why}: what would be cut off is stopped instead")
        by_name = {row.name: row for row in ROWS}
        rows = [by_name[row.name.replace("cut", "stop")] if row.needs_network else row for row in rows]
    elif not arguments.inside:
        network.enter()
    if any(row.needs_clocks for row in rows) and not clock.LIBRARIES:
        sys.exit(f"faults: clocks need a package that is missing: apt-get install {clock.PACKAGE}")
    began = time.monotonic()
    ours = None if why else Network()
    results = _run(rows, arguments.lease_s, ours)
    if not arguments.row and ours:
        lease_s = arguments.lease_s
        facts = facts_of((time.monotonic() - began) / 60, ours.slowness) | {
            "lease_s": lease_s,
            "before_s": _before_s(lease_s),
            "after_s": lease_s + SLACK_S + _probes_s(lease_s),
            "devices": DEVICES,
        }
        RUN.write_text(json.dumps({"facts": facts, "results": [asdict(it) for it in results]}))
        _write_page()
    sys.exit(any(it.broken for it in results))


def _write_page() -> None:
    last = json.loads(RUN.read_text())
    PAGE.write_text(page([Result.of(it) for it in last["results"]], **last["facts"]))
    print(f"wrote {PAGE}")


def _run(rows: list[Row], lease_s: float, ours: Network | None) -> list[Result]:
    """One row after the other; a cluster that is whole again serves the next one too."""
    results, stage = [], None
    with TemporaryDirectory(prefix="faults-") as folder:
        for number, row in enumerate(rows):
            place = Path(folder) / str(number)
            try:
                if stage is None or row.needs_clocks:
                    if stage:
                        stage.close()
                    stage = Stage(place, lease_s, ours, Clocks(place / "clocks") if row.needs_clocks else None)
                results.append(_perform(row, stage))
                stage = _kept(stage, row)
            # The other rows can still be tried.
            except (AssertionError, OSError) as error:
                print(f"  did not come to its end: {error}", flush=True)
                broken = [f"it did not come to its end: {error}"]
                results.append(Result(row.name, _what(row, lease_s), NO_FIGURES, broken, {}))
                if stage:
                    stage.close()
                stage = None
            except BaseException:
                if stage:
                    stage.close()
                raise
        if stage:
            stage.close()
    return results


def _perform(row: Row, stage: Stage) -> Result:
    print(f"{row.name}: {_what(row, stage.lease_s)}", flush=True)
    stage.begin(row.settles_s)
    history = stage.traffic.history
    time.sleep(_before_s(stage.lease_s))
    row.does(stage)
    ends = history.healed + history.well_after_s + _probes_s(stage.lease_s)
    until("the lease is over", lambda: history.now() > ends, 600)
    stage.traffic.stop()
    file = HISTORIES / f"{row.name}.jsonl"
    history.write(file)
    result = Result(row.name, _what(row, stage.lease_s), history.figures(), judged(file), stage.unready_after_s)
    print(f"  {result.figures.calls} calls: {result.figures.outcomes}\n  {conclusion(result)}", flush=True)
    return result


def _kept(stage: Stage, row: Row) -> Stage | None:
    """The cluster for the next row, if it is whole."""
    if not row.needs_clocks:
        try:
            stage.recover()
            return stage
        except AssertionError as error:
            print(f"  not whole, so the next row has a new cluster: {error}")
    stage.close()
    return None


def _before_s(lease_s: float) -> float:
    """Calls go on so long before a fault."""
    return 0.5 + lease_s / 5


def _probes_s(lease_s: float) -> float:
    """And so long when all must be well again."""
    return 1 + lease_s / 5


def _what(row: Row, lease_s: float) -> str:
    return row.what.format(short=f"{lease_s / 3:g}", long=f"{lease_s * 5 / 3:g}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./taskw faults --", description="Breaks a cluster, and judges what devices see.")
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    parser.add_argument("--row", action="append", default=[], metavar="NAME", help="only this one; may be given again")
    parser.add_argument("--page", action="store_true", help="write the page of the last whole run again")
    parser.add_argument("--lease-s", type=float, default=LEASE_S, help="a node's lease; short faults are a third of it, long ones 5/3")
    parser.add_argument("--or-plain", action="store_true", help="where there are no namespaces: stop what would be cut off")
    parser.add_argument(network.ENTERED, action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
