#!/usr/bin/env python3
"""What does a call over HTTP cost, and what a device that polls? CPU of all processes, and memory, as /proc says.

Starts `switchboard up` of the release build, and makes calls between devices that are connected by nothing but HTTP:
each caller keeps one in flight, each target polls and answers, and every answer is checked. The load is made by one
Python process, which is slower than what it measures: CPU a call is the figure, calls a second are a lower bound.
"""

import argparse
import asyncio
import contextlib
import json
import os
import resource
import subprocess
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

SWITCHBOARD = Path(__file__).resolve().parents[2] / "target" / "release" / "switchboard"
# Devices of one customer: both of a pair are always of the same.
CUSTOMER_DEVICES = 200
ANY = "127.0.0.1:0"


class System:
    """`switchboard up`, with devices."""

    def __init__(self, folder, devices):
        unlimited = ["ingress.calls_per_second_per_device=1000000", "ingress.call_burst_per_device=1000000"]
        addresses = folder / "addresses.json"
        self.process = subprocess.Popen(
            [SWITCHBOARD, "up", "--ephemeral", "--nats-port", "0", "--addresses", addresses]
            + [part for protocol in ("mqtt", "http", "coap", "admin") for part in (f"--{protocol}", ANY)]
            + [part for setting in unlimited for part in ("--set", setting)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert any("is ready" in line for line in self.process.stdout), "it did not start"
        at = json.loads(addresses.read_text())
        self.port = int(at["services"][0]["http"].rsplit(":", 1)[1])
        self.admin = at["services"][0]["admin"]
        self.ids = [str(uuid.uuid4()) for _ in range(devices)]
        rows = [f"Bench,Customer {n // CUSTOMER_DEVICES},{it},Device {n},bench-{n}" for n, it in enumerate(self.ids)]
        (folder / "devices.csv").write_text("\n".join(["tenant,customer,id,name,token", *rows]) + "\n")
        command = [SWITCHBOARD, "device", "import", "--create", "--nats", at["nats"], folder / "devices.csv"]
        subprocess.run(command, check=True, capture_output=True)
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.pids = [self.process.pid, *map(int, children)]

    def cpu_s(self):
        ticks = 0
        for pid in self.pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_kb(self):
        lines = [line for pid in self.pids for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
        return sum(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

    def gauge(self, name):
        text = urllib.request.urlopen(f"http://{self.admin}/metrics").read().decode()
        return float(next(line for line in text.splitlines() if line.startswith(name + " ")).split()[1])

    def stop(self):
        self.process.terminate()
        self.process.wait()


class Connection:
    """A kept connection of one device."""

    @classmethod
    async def of(cls, system, device):
        self = cls()
        self.path = f"/api/v1/bench-{device}/"
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", system.port)
        return self

    def send(self, method, path, body=b""):
        length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
        self.writer.write(f"{method} {self.path}{path} HTTP/1.1\r\nHost: bench\r\n{length}\r\n".encode() + body)

    async def ask(self, method, path, body=b""):
        self.send(method, path, body)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = head.split(b"content-length:")[1].split(b"\r\n")[0]
        return int(head[9:12]), await self.reader.readexactly(int(length))


async def target(system, device):
    polls, answers = await Connection.of(system, device), await Connection.of(system, device)
    while True:
        status, call = await polls.ask("GET", "rpc")
        if status == 200:
            number = call[6 : call.index(b",")].decode()
            body = call[call.index(b'"params":') + 9 : -1]
            assert (await answers.ask("POST", f"rpc/{number}", body))[0] == 200


async def caller(system, device, callee, tally, ended):
    connection, number = await Connection.of(system, device), 0
    while not ended.is_set():
        number += 1
        body = json.dumps(f"{device}-{number}-".ljust(126, "x")).encode()
        head = f'{{"method":"sendMsg","params":{{"deviceId":"{system.ids[callee]}","timeout":10000,"body":'
        started = time.perf_counter()
        status, answer = await connection.ask("POST", "rpc", head.encode() + body + b"}}")
        assert (status, answer) == (200, body), (status, answer)
        tally.append(time.perf_counter() - started)


async def calls(system, pairs, seconds):
    tally, ended = [], asyncio.Event()
    targets = [asyncio.create_task(target(system, 2 * pair + 1)) for pair in range(pairs)]
    while system.gauge("switchboard_claims_held") < pairs:
        await asyncio.sleep(0.05)
    callers = [asyncio.create_task(caller(system, 2 * pair, 2 * pair + 1, tally, ended)) for pair in range(pairs)]
    await asyncio.sleep(2)
    tally.clear()
    cpu_s, started = system.cpu_s(), time.monotonic()
    await asyncio.sleep(seconds)
    cpu_s, took_s, took = system.cpu_s() - cpu_s, time.monotonic() - started, sorted(tally)
    ended.set()
    await asyncio.gather(*callers)
    for it in targets:
        it.cancel()
    await asyncio.gather(*targets, return_exceptions=True)
    p50_ms, p99_ms = (1000 * took[int(len(took) * part)] for part in (0.5, 0.99))
    print(
        f"{pairs} pairs: {len(took) / took_s:.0f} calls/s, {1e6 * cpu_s / len(took):.0f} µs CPU a call, "
        f"p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms"
    )


async def polls(system, count):
    cpu_s, resident_kb, started = system.cpu_s(), system.resident_kb(), time.monotonic()
    waiting = []

    async def poll(device):
        waiting.append(await Connection.of(system, device))
        waiting[-1].send("GET", "rpc?timeout=300000")

    for first in range(0, count, 50):
        await asyncio.gather(*(poll(device) for device in range(first, min(first + 50, count))))
    while system.gauge("switchboard_claims_held") < count:
        await asyncio.sleep(0.05)
    took_s, cpu_s, resident_kb = time.monotonic() - started, system.cpu_s() - cpu_s, system.resident_kb() - resident_kb
    print(f"{count} waiting polls in {took_s:.1f} s: {resident_kb / count:.1f} KB and {1000 * cpu_s / count:.2f} ms CPU each")
    assert system.gauge("switchboard_http_polls") == count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, nargs="*", default=[1, 100], help="callers and as many targets")
    parser.add_argument("--polls", type=int, default=5000, help="polls that wait")
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * args.polls + 1000), hard))
    runs = [lambda it: polls(it, args.polls)]
    runs += [lambda it, pairs=pairs: calls(it, pairs, args.seconds) for pairs in args.pairs]
    for run in runs:
        # Each on a system of its own: what one leaves behind is not the next one's.
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            system = System(Path(folder), max([args.polls, *(2 * pairs for pairs in args.pairs)]))
            stack.callback(system.stop)
            asyncio.run(run(system))


if __name__ == "__main__":
    main()
