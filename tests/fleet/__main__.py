"""Which rows are run now? All, and the page is written; or some, and it is said how they went."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.picking import picked
from harness.programs import ROOT

from fleet.page import Result, conclusion, facts_of, page
from fleet.rows import ROWS, Row, perform
from fleet.stage import Stage

PAGE = Path(__file__).with_name("README.md")
# The last whole run.
RUN = ROOT / "target" / "fleet" / "run.json"
CALLS_PER_SECOND = 100


def main() -> None:
    arguments = _arguments()
    if arguments.list:
        for row in ROWS:
            print(f"{row.name:10} {row.nodes} node(s), {row.devices:,} devices: {row.what}")
        return
    if arguments.page:
        return _write_page()
    rows = picked("row", arguments.row, ROWS)
    began = time.monotonic()
    results = [_perform(row, arguments.part) for row in rows]
    if not arguments.row and arguments.part == 1:
        facts = facts_of((time.monotonic() - began) / 60, CALLS_PER_SECOND, arguments.meanwhile)
        RUN.parent.mkdir(parents=True, exist_ok=True)
        RUN.write_text(json.dumps({"facts": facts, "results": [asdict(it) for it in results]}))
        _write_page()
    sys.exit(any(it.missed for it in results))


def _perform(row: Row, part: float) -> Result:
    devices = max(round(row.devices * part / 20), 3) * 20
    print(f"{row.name}: {row.what}", flush=True)
    with TemporaryDirectory(prefix="fleet-") as folder:
        stage = Stage(Path(folder), nodes=row.nodes, devices=devices, calls_per_second=CALLS_PER_SECOND)
        try:
            figures = perform(row, stage, calls=3 * CALLS_PER_SECOND)
        finally:
            stage.close()
    result = Result(row.name, row.what, row.nodes, figures, [bar.what for bar in row.bars if not bar.is_kept(figures)])
    print(f"  {figures}\n  {conclusion(result)}", flush=True)
    return result


def _write_page() -> None:
    last = json.loads(RUN.read_text())
    PAGE.write_text(page([Result.of(it) for it in last["results"]], **last["facts"]))
    print(f"wrote {PAGE}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./taskw fleet --", description="Moves a fleet of nodes, and counts what its devices notice.")
    parser.add_argument("--list", action="store_true", help="say which rows there are")
    parser.add_argument("--row", action="append", default=[], metavar="NAME", help="only this one; may be given again")
    parser.add_argument("--part", type=float, default=1, metavar="P", help="so many times the devices, at least 60: 0.1 is quick")
    parser.add_argument("--page", action="store_true", help="write the page of the last whole run again")
    parser.add_argument("--meanwhile", default="", metavar="TEXT", help="what else ran on the machine, for the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
