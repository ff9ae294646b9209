"""What does a large registry cost? Imports devices into a cluster of the release build, starts an authorizer anew, and
asks for the devices of a large customer; prints times, CPU (all of a process, as /proc says) and memory.

`./taskw bench-registry`, options behind `--`.
"""

import argparse
import json
import resource
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

from harness.cluster import Cluster
from harness.processes import run
from harness.programs import built
from harness.waiting import until

from bench.usage import cpu_s, resident_kb

# As many as one getDevices lists, and who asks.
CUSTOMER_DEVICES = 1_025
QUESTIONS = 200
PATIENCE_S = 1_800
# A device that asks as fast as it can meets these.
SETTINGS = {"log.level": "info", "authorizer.list_bytes_per_second_per_customer": "0"}
KNOWS = "switchboard_authorizer_registry_devices"


def token(device: int) -> str:
    return f"bench-token-{device:010}"


def commands_cpu_s() -> float:
    """Of those that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def resident_mib(pid: int) -> float:
    return resident_kb(pid) / 1024


def disk_mib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def pids(cluster: Cluster) -> dict[str, int]:
    return {it.name: it.process.pid for it in [*cluster.services, cluster.nats]}


@contextmanager
def measured(what: str, cluster: Cluster) -> Iterator[dict[str, str]]:
    """Prints how long it took, what each process used, and what the block adds."""
    before, commands_s = {pid: cpu_s(pid) for pid in pids(cluster).values()}, commands_cpu_s()
    started, more = time.monotonic(), {}
    yield more
    took_s = time.monotonic() - started
    used = {name: cpu_s(pid) - before.get(pid, 0) for name, pid in pids(cluster).items()}
    used["the command"] = commands_cpu_s() - commands_s
    memory = {name: resident_mib(pid) for name, pid in pids(cluster).items()}
    print(f"{what}: {took_s:.2f} s", *(f"{name} {value}" for name, value in more.items()), sep="; ")
    print("    CPU s:", ", ".join(f"{name} {seconds:.2f}" for name, seconds in used.items() if seconds >= 0.01))
    print("    MiB:", ", ".join(f"{name} {mib:.0f}" for name, mib in memory.items()), flush=True)


def write_devices(file: Path, devices: int) -> None:
    with file.open("w") as out:
        out.write("tenant,customer,id,name,type,token,label:site\n")
        for number in range(devices):
            customer = number // CUSTOMER_DEVICES
            row = ["Bench", f"Customer {customer}", uuid.UUID(int=(number * 0x9E3779B97F4A7C15) % 2**128 | 1 << 78)]
            out.write(",".join(map(str, [*row, f"Device {number}", "pump", token(number), f"Site {number % 100}"])) + "\n")


def load(folder: Path, devices: int) -> None:
    cluster = Cluster(folder, settings=SETTINGS)
    first = cluster.authorizers[0]

    def command(*what: str | Path) -> None:
        run(built("switchboard"), "device", *what, "--nats", cluster.nats.url, within_s=PATIENCE_S).ok()

    try:
        empty_mib = resident_mib(first.process.pid)
        write_devices(folder / "devices.csv", devices)
        with measured(f"import of {devices:,} devices", cluster) as more:
            command("import", "--create", folder / "devices.csv")
            until("all are known", lambda: first.admin.value(KNOWS) == devices, PATIENCE_S)
            more["disk MiB"] = f"{disk_mib(folder / 'nats'):.0f}"
        # The second finds the store's files read.
        for which in ("a new authorizer", "another one"):
            with measured(f"{which} is ready", cluster):
                authorizer = cluster.add_authorizer(PATIENCE_S)
            assert authorizer.admin.value(KNOWS) == devices
            kb = (resident_mib(authorizer.process.pid) - empty_mib) * 1024 / devices
            print(f"    KB a device, above the {empty_mib:.0f} MiB of an empty one: {kb:.3f}")
        ask(cluster)
        for what in (["show", "Device 7"], ["list", "--customer", "Customer 1"]):
            with measured(f"switchboard device {' '.join(what)}", cluster):
                command(*what)
    finally:
        cluster.stop()


def ask(cluster: Cluster) -> None:
    """Asks for the devices of a customer, one question after the other."""
    url = f"http://127.0.0.1:{cluster.nodes[0].http_port}/api/v1/{token(0)}/rpc"
    question, took_ms = json.dumps({"method": "getDevices", "params": {}}).encode(), []
    with measured(f"{QUESTIONS} × getDevices", cluster) as more:
        for _ in range(QUESTIONS):
            request = urllib.request.Request(url, question, {"Content-Type": "application/json"})
            started = time.monotonic()
            with urllib.request.urlopen(request, timeout=60) as answer:
                text = answer.read()
            took_ms.append(1000 * (time.monotonic() - started))
            assert len(json.loads(text)) == CUSTOMER_DEVICES - 1, text[:200]
        percentiles = quantiles(took_ms, n=100)
        more |= {"p50 ms": f"{percentiles[49]:.1f}", "p99 ms": f"{percentiles[98]:.1f}", "bytes": f"{len(text):,}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=1_000_000)
    with TemporaryDirectory(prefix="registry-") as folder:
        load(Path(folder), parser.parse_args().devices)


if __name__ == "__main__":
    main()
