"""Which orders are tried now? All, and the page is written; or some, and it is said how they went."""

import argparse
import json
import sys
import time
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from harness.picking import picked
from harness.programs import ROOT

from upgrade import build, registry
from upgrade.page import Step, about, missed, page
from upgrade.registry import Fact, Written
from upgrade.rows import ORDERS, Order
from upgrade.stage import NEW, Stage

PAGE = Path(__file__).with_name("README.md")
# The last whole run.
RUN = ROOT / "target" / "upgrade" / "run.json"
CALLS_PER_SECOND = 100
DEVICES = 400


def main() -> None:
    arguments = _arguments()
    if arguments.list:
        for order in ORDERS:
            print(f"{order.name:20} {', '.join(order.groups)}; back the other way round")
        return
    if arguments.page:
        return _write_page()
    orders = picked("order", arguments.order, ORDERS)
    commit = arguments.previous or build.pinned()
    previous = build.of_the_commit(commit)
    began = time.monotonic()
    with TemporaryDirectory(prefix="upgrade-") as folder:
        steps, facts = _perform(orders, Path(folder), previous, arguments.devices)
    if not arguments.order and commit == build.pinned():
        minutes = (time.monotonic() - began) / 60
        facts_of_run = about(minutes, arguments.devices, CALLS_PER_SECOND, build.described(commit), arguments.meanwhile)
        kept = {"about": facts_of_run, "steps": [asdict(it) for it in steps], "facts": [asdict(it) for it in facts]}
        RUN.write_text(json.dumps(kept))
        _write_page()
    if faults := missed(steps, facts):
        sys.exit("not kept: " + "; ".join(faults))


def _perform(orders: list[Order], folder: Path, previous: Path, devices: int) -> tuple[list[Step], list[Fact]]:
    steps: list[Step] = []
    written: Written | None = None
    facts: list[Fact] = []
    stage = Stage(folder, previous, devices=devices, calls_per_second=CALLS_PER_SECOND)
    try:
        for order in orders:
            for number, (group, to) in enumerate(order.steps):
                if number == len(order.groups) and not written:
                    # All are new, the command too.
                    written = registry.write(stage.cluster, folder)
                step = Step(order.name, group, to, stage.take(group, to, calls=3 * CALLS_PER_SECOND))
                steps.append(step)
                print(f"{order.name}: {group} to {to}: {step.figures}", flush=True)
            if written and not facts:
                facts = registry.read(stage.cluster, written)
                stage.build = NEW
                facts.append(registry.read_again(stage.cluster, written))
                print(*facts, sep="\n", flush=True)
    finally:
        stage.close()
    return steps, facts


def _write_page() -> None:
    last = json.loads(RUN.read_text())
    steps, facts = [Step.of(it) for it in last["steps"]], [Fact(**it) for it in last["facts"]]
    PAGE.write_text(page(steps, facts, **last["about"]))
    print(f"wrote {PAGE}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="./taskw upgrade --", description="Takes a cluster to another build and back, and counts what fails.")
    parser.add_argument("--list", action="store_true", help="say which orders there are")
    parser.add_argument("--order", action="append", default=[], metavar="NAME", help="only this one; may be given again")
    parser.add_argument("--devices", type=int, default=DEVICES, metavar="N", help="so many, a multiple of 20")
    parser.add_argument("--previous", metavar="COMMIT", help="in place of the commit that tests/upgrade/previous names")
    parser.add_argument("--page", action="store_true", help="write the page of the last whole run again")
    parser.add_argument("--meanwhile", default="", metavar="TEXT", help="what else ran on the machine, for the page")
    return parser.parse_args()


if __name__ == "__main__":
    main()
