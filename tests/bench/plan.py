"""What does a fleet need? Plans a Switchboard from measured figures, and simulates what fits on no one machine.

plan.py                             the tables of deploy/scaling.md
plan.py --update                    writes them there
plan.py --devices 3000000 --calls-per-hour 60
"""

import argparse
import dataclasses
import math
import random
from collections import deque
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parents[2] / "deploy/scaling.md"
BEGIN, END = "<!-- plan.py -->\n", "<!-- /plan.py -->\n"


STEPS_PER_S = 10
# How long a storm is watched.
PATIENCE_S = 3600


@dataclass(frozen=True)
class Measured:
    """What one of a thing costs, in KB, and in µs or ms of one core; where each comes from is in deploy/scaling.md."""

    session_kb: float = 2.22
    claim_in_nats_kb: float = 0.57
    claim_on_disk_kb: float = 0.22
    claim_in_router_kb: float = 0.40
    device_in_authorizer_kb: float = 0.30
    device_on_disk_kb: float = 0.79
    # A call, when calls keep all processes busy.
    call_ingress_us: float = 13.1
    call_authorizer_us: float = 3.3
    call_router_us: float = 5.3
    call_nats_us: float = 11.3
    # A device that connects and becomes callable.
    connect_ingress_ms: float = 0.081
    connect_authorizer_ms: float = 0.014
    connect_router_ms: float = 0.012
    connect_nats_ms: float = 0.074
    # Three servers that keep three copies.
    claims_written_per_s: int = 33_000
    # What a router that has just started takes in.
    claims_loaded_per_s: int = 125_000
    # What an authorizer that has just started takes in.
    devices_loaded_per_s: int = 45_000


@dataclass(frozen=True)
class Fleet:
    """How many devices, and what they do."""

    devices: int
    # Of the registered ones.
    connected: float = 0.9
    calls_per_hour: float = 10
    reconnects_per_day: float = 4


@dataclass(frozen=True)
class Limits:
    """How far one process or system is filled."""

    # The setting ingress.max_connections.
    connections_per_node: int = 100_000
    # Of one core each; the rest is for peaks, and for the share of a node that has died.
    load: float = 0.5
    # So many more processes than are needed, for upgrades and failures.
    spare: int = 1
    devices_per_cell: int = 5_000_000


@dataclass(frozen=True)
class Plan:
    """What a fleet needs; per cell where it says so."""

    cells: int
    connected: int
    calls_per_s: float
    claims_per_s: float
    nodes: int
    node_gb: float
    authorizers: int
    authorizer_gb: float
    authorizer_load_s: float
    routers: int
    router_gb: float
    router_load_s: float
    nats_gb: float
    nats_disk_gb: float
    nats_cores: float
    storm_s: int | None


def plan(fleet: Fleet, measured: Measured, limits: Limits) -> Plan:
    """Sizes one cell, of as many as it takes."""
    cells = math.ceil(fleet.devices / limits.devices_per_cell)
    devices = math.ceil(fleet.devices / cells)
    connected = math.ceil(devices * fleet.connected)
    calls_per_s = connected * fleet.calls_per_hour / 3600
    connects_per_s = connected * fleet.reconnects_per_day / 86_400

    def processes(call_us: float, connect_ms: float) -> int:
        cores = calls_per_s * call_us / 1e6 + connects_per_s * connect_ms / 1e3
        return max(1, math.ceil(cores / limits.load)) + limits.spare

    nodes = max(
        math.ceil(connected / limits.connections_per_node) + limits.spare,
        processes(measured.call_ingress_us, measured.connect_ingress_ms),
    )
    return Plan(
        cells=cells,
        connected=connected,
        calls_per_s=calls_per_s,
        claims_per_s=2 * connects_per_s,
        nodes=nodes,
        node_gb=connected / nodes * measured.session_kb / 1e6,
        authorizers=processes(measured.call_authorizer_us, measured.connect_authorizer_ms),
        authorizer_gb=devices * measured.device_in_authorizer_kb / 1e6,
        authorizer_load_s=devices / measured.devices_loaded_per_s,
        routers=processes(measured.call_router_us, measured.connect_router_ms),
        router_gb=connected * measured.claim_in_router_kb / 1e6,
        router_load_s=connected / measured.claims_loaded_per_s,
        nats_gb=connected * measured.claim_in_nats_kb / 1e6,
        nats_disk_gb=(devices * measured.device_on_disk_kb + connected * measured.claim_on_disk_kb) / 1e6,
        nats_cores=calls_per_s * measured.call_nats_us / 1e6 + connects_per_s * measured.connect_nats_ms / 1e3,
        storm_s=storm(connected, nodes, measured).callable_after_s,
    )


@dataclass(frozen=True)
class Storm:
    """How a fleet came back."""

    # When 99 of 100 devices were callable, and all; None: not within an hour.
    callable_after_s: int | None
    all_after_s: int | None
    # Connections made, for each device that came back: 1 if nothing was in vain.
    attempts_per_device: float


def storm(
    devices: int,
    nodes: int,
    measured: Measured,
    *,
    connect_timeout_s: float = 10,
    claim_timeout_s: float = 5,
    is_bounded: bool = True,
    first_within_s: int = 10,
    longest_pause_s: int = 120,
    seed: int = 1,
) -> Storm:
    """All devices connect anew, as after a power cut. In steps of a tenth of a second, a thousandth of the devices at a time:

    A node works off what has connected, in order, at one core's pace; NATS writes claims, in order, at its own. Who
    waits longer than the settings `ingress.connect_timeout_ms` and `ingress.claim_timeout_ms` say is refused, and comes
    again after a pause that doubles from 1 s, at random in its upper half. With `ingress.max_claims_in_flight`
    (`is_bounded`) claims wait at their node, for half of the time, and cost NATS nothing when it is over; without, NATS
    has all of them at once, and writes late ones too.
    """
    unit = max(1, devices // 1000)
    units = math.ceil(devices / unit)
    chance = random.Random(seed)
    # What a step of all nodes, and of NATS, gets through.
    handshakes = nodes * 1000 / measured.connect_ingress_ms / unit / STEPS_PER_S
    claims = measured.claims_written_per_s / unit / STEPS_PER_S
    due: dict[int, list[int]] = {}
    for _ in range(units):
        due.setdefault(chance.randrange(max(1, first_within_s * STEPS_PER_S)), []).append(0)
    # (arrived, tries): behind the node, then behind NATS.
    connecting: deque[tuple[int, int]] = deque()
    claiming: deque[tuple[int, int]] = deque()
    handshake_credit = claim_credit = 0.0
    callable_at: list[int] = []
    attempts = step = 0

    def again(tries: int) -> None:
        pause = min(longest_pause_s, 2**tries) * chance.uniform(0.5, 1)
        due.setdefault(step + 1 + math.ceil(pause * STEPS_PER_S), []).append(tries + 1)

    while len(callable_at) < units and step < PATIENCE_S * STEPS_PER_S:
        for tries in due.pop(step, []):
            attempts += 1
            connecting.append((step, tries))
        handshake_credit = min(handshake_credit + handshakes, max(handshakes, 1))
        while connecting and handshake_credit >= 1:
            handshake_credit -= 1
            arrived, tries = connecting.popleft()
            if step - arrived > connect_timeout_s * STEPS_PER_S:
                again(tries)
            else:
                claiming.append((step, tries))
        while is_bounded and claiming and step - claiming[0][0] > claim_timeout_s / 2 * STEPS_PER_S:
            again(claiming.popleft()[1])
        claim_credit = min(claim_credit + claims, max(claims, 1))
        while claiming and claim_credit >= 1:
            claim_credit -= 1
            arrived, tries = claiming.popleft()
            if step - arrived > claim_timeout_s * STEPS_PER_S:
                again(tries)
            else:
                callable_at.append(step)
        step += 1

    def after_s(share: float) -> int | None:
        needed = math.ceil(share * units)
        return math.ceil(callable_at[needed - 1] / STEPS_PER_S) if len(callable_at) >= needed else None

    return Storm(after_s(0.99), after_s(1), attempts / units)


def table(fleets: list[Fleet], measured: Measured, limits: Limits) -> str:
    """Markdown, a column for each fleet."""
    plans = [plan(fleet, measured, limits) for fleet in fleets]
    rows: list[tuple[str, list[str]]] = [
        ("cells", [f"{it.cells}" for it in plans]),
        ("**in each cell:** connected devices", [f"{it.connected:,}" for it in plans]),
        ("calls/s", [f"{it.calls_per_s:,.0f}" for it in plans]),
        ("claims written or removed/s", [f"{it.claims_per_s:,.0f}" for it in plans]),
        ("ingress nodes × memory for sessions", [f"{it.nodes} × {it.node_gb:.2f} GB" for it in plans]),
        ("authorizers × memory for the registry", [f"{it.authorizers} × {it.authorizer_gb:.1f} GB" for it in plans]),
        ("a new authorizer has loaded it after", [f"{it.authorizer_load_s:.0f} s" for it in plans]),
        ("routers × memory for claims", [f"{it.routers} × {it.router_gb:.1f} GB" for it in plans]),
        ("a new router has loaded them after", [f"{it.router_load_s:.0f} s" for it in plans]),
        ("NATS: three servers × memory for where claims stand", [f"3 × {it.nats_gb:.1f} GB" for it in plans]),
        ("NATS: disk for the registry and claims, each", [f"{it.nats_disk_gb:.1f} GB" for it in plans]),
        ("NATS: cores busy, of all three", [f"{it.nats_cores:.2f}" for it in plans]),
        ("all devices come back at once: 99 % callable after", [f"{it.storm_s} s" for it in plans]),
    ]
    lines = ["| devices | " + " | ".join(f"{fleet.devices:,}" for fleet in fleets) + " |"]
    lines.append("| --- |" + " ---: |" * len(fleets))
    lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows]
    return "\n".join(lines) + "\n"


def storm_table(measured: Measured) -> str:
    """Markdown: what a storm does to one cell."""
    lines = [
        "| devices | nodes | first attempts within | claims in flight | 99 % callable after | all after | connects a device |",
        "| ---: | ---: | ---: | --- | ---: | ---: | ---: |",
    ]
    for devices, nodes, within, is_bounded in STORMS:
        came = storm(devices, nodes, measured, first_within_s=within, is_bounded=is_bounded)
        bounded = "256 a node" if is_bounded else "no limit"
        first, last = (f"{after} s" if after is not None else "never" for after in (came.callable_after_s, came.all_after_s))
        lines.append(f"| {devices:,} | {nodes} | {within} s | {bounded} | {first} | {last} | {came.attempts_per_device:.1f} |")
    return "\n".join(lines) + "\n"


# Devices, nodes, seconds over which they make their first attempt, whether claims in flight are bounded.
STORMS = [
    (100_000, 2, 1, True),
    (1_000_000, 11, 1, True),
    (4_500_000, 46, 1, True),
    (4_500_000, 46, 1, False),
    (4_500_000, 46, 120, True),
]


def generated() -> str:
    """What the page holds between its marks."""
    measured, limits = Measured(), Limits()
    fleets = [Fleet(devices) for devices in (1_000_000, 10_000_000, 100_000_000)]
    return f"{table(fleets, measured, limits)}\n{storm_table(measured)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="write the tables into deploy/scaling.md")
    parser.add_argument("--devices", type=int, nargs="+", help="fleets of your own")
    for field in dataclasses.fields(Fleet)[1:]:
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=float, default=field.default, help="[default: %(default)s]")
    options = parser.parse_args()
    if options.devices:
        habits = {field.name: getattr(options, field.name) for field in dataclasses.fields(Fleet)[1:]}
        print(table([Fleet(devices, **habits) for devices in options.devices], Measured(), Limits()), end="")
        return
    if options.update:
        head, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(head + BEGIN + generated() + END + rest.partition(END)[2])
        return
    print(generated(), end="")


if __name__ == "__main__":
    main()
