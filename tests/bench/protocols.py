#!/usr/bin/env python3
"""What does a call cost over HTTP and over CoAP, and what a device that waits for one? CPU of all processes, and
memory, as /proc says.

Starts `switchboard up` of the release build, and makes calls between devices that speak one protocol: each caller keeps
one in flight, each target polls (HTTP) or observes (CoAP) and answers, and every answer is checked. With `--via api`
the caller is an application, by `services/api`, and the target polls. The load is made by one Python process, which is
slower than what it measures: CPU a call is the figure, calls a second are a lower bound.
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import re
import resource
import struct
import subprocess
import tempfile
import time
import urllib.request
import uuid
from pathlib import Path

from bench.usage import cpu_s, resident_kb

ROOT = Path(__file__).resolve().parents[2]
# Devices of one customer: both of a pair are always of the same.
CUSTOMER_DEVICES = 200
ANY = "127.0.0.1:0"


def token(device):
    """No shorter than an import takes."""
    return f"bench-token-{device:08}"


class System:
    """`switchboard up`, with devices."""

    def __init__(self, switchboard, folder, devices):
        unlimited = ["ingress.calls_per_second_per_device=1000000", "ingress.call_burst_per_device=1000000", "api.calls_per_second_per_app=0"]
        addresses = folder / "addresses.json"
        self.process = subprocess.Popen(
            [switchboard, "up", "--ephemeral", "--nats-port", "0", "--addresses", addresses]
            + [part for protocol in ("mqtt", "http", "coap", "api", "admin") for part in (f"--{protocol}", ANY)]
            + [part for setting in unlimited for part in ("--set", setting)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert any("is ready" in line for line in self.process.stdout), "it did not start"
        at = json.loads(addresses.read_text())
        self.ports = {via: int(at["services"][0][via].rsplit(":", 1)[1]) for via in ("http", "coap", "api")}
        self.admin = at["services"][0]["admin"]
        self.ids = [str(uuid.uuid4()) for _ in range(devices)]
        rows = [f"Bench,Customer {n // CUSTOMER_DEVICES},{it},Device {n},{token(n)}" for n, it in enumerate(self.ids)]
        (folder / "devices.csv").write_text("\n".join(["tenant,customer,id,name,token", *rows]) + "\n")
        command = [switchboard, "device", "import", "--create", "--nats", at["nats"], folder / "devices.csv"]
        app = [switchboard, "app", "add", "bench", "--tenant", "Bench", "--nats", at["nats"], "--json"]
        try:
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            self.key = json.loads(subprocess.run(app, check=True, stdout=subprocess.PIPE).stdout)["key"]
        except BaseException:
            self.stop()
            raise
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        self.pids = [self.process.pid, *map(int, children)]

    def cpu_s(self):
        return sum(map(cpu_s, self.pids))

    def resident_kb(self):
        return sum(map(resident_kb, self.pids))

    def gauge(self, name):
        text = urllib.request.urlopen(f"http://{self.admin}/metrics").read().decode()
        return float(next(line for line in text.splitlines() if line.startswith(name + " ")).split()[1])

    def stop(self):
        self.process.terminate()
        self.process.wait()


def kernel_kb():
    """Its objects, sockets among them, and what it buffers for them: of both ends, and of whoever else is there."""
    number = re.compile(r"^Slab: +(\d+)|^(?:TCP|UDP): .*mem (\d+)", re.MULTILINE)
    text = Path("/proc/meminfo").read_text() + Path("/proc/net/sockstat").read_text()
    pages_kb = os.sysconf("SC_PAGE_SIZE") // 1024
    return sum(int(slab) if slab else int(pages) * pages_kb for slab, pages in number.findall(text))


class HttpConnection:
    """A kept connection of one device."""

    headers = ""

    @classmethod
    async def of(cls, system, device):
        self = cls()
        self.path = f"/api/v1/{token(device)}/"
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", system.ports["http"])
        return self

    def send(self, method, path, body=b""):
        length = f"Content-Length: {len(body)}\r\n" if method == "POST" else ""
        self.writer.write(f"{method} {self.path}{path} HTTP/1.1\r\nHost: bench\r\n{self.headers}{length}\r\n".encode() + body)

    async def ask(self, method, path, body=b""):
        self.send(method, path, body)
        head = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        length = head.split(b"content-length:")[1].split(b"\r\n")[0]
        return int(head[9:12]), await self.reader.readexactly(int(length))


class Http:
    """Callers post and wait; targets poll."""

    waiting = "waiting polls"
    gauge = "switchboard_http_polls"

    @staticmethod
    async def target(system, device):
        polls, answers = await HttpConnection.of(system, device), await HttpConnection.of(system, device)
        while True:
            status, call = await polls.ask("GET", "rpc")
            if status == 200:
                number, body = read(call)
                assert (await answers.ask("POST", f"rpc/{number}", body))[0] == 200

    @staticmethod
    async def caller(system, device):
        connection = await HttpConnection.of(system, device)

        async def call(request):
            status, answer = await connection.ask("POST", "rpc", request)
            assert status == 200, (status, answer)
            return answer

        return call

    @staticmethod
    async def wait(system, device):
        connection = await HttpConnection.of(system, device)
        connection.send("GET", "rpc?timeout=300000")
        return connection


class ApiConnection(HttpConnection):
    """A kept connection of an application's."""

    @classmethod
    async def of(cls, system):
        self = cls()
        self.path = "/v1/devices/"
        self.headers = f"Authorization: Bearer {system.key}\r\nContent-Type: application/json\r\n"
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", system.ports["api"])
        return self


class Api(Http):
    """An application calls devices that poll."""

    @staticmethod
    async def caller(system, _):
        connection = await ApiConnection.of(system)

        async def call(request):
            params = json.loads(request)["params"]
            body = json.dumps({"params": params["body"], "timeout": params["timeout"]}).encode()
            status, answer = await connection.ask("POST", f"{params['deviceId']}/calls", body)
            assert status == 200, (status, answer)
            return answer

        return call


# RFC 7252 §3, §12.1: types, and codes as bytes.
CONFIRMABLE, ACKNOWLEDGEMENT = 0, 2
GET, POST, CREATED_TO_CONTENT = 0x01, 0x02, range(0x41, 0x46)
# RFC 7252 §5.10, RFC 7641 §2: the numbers of options.
OBSERVE, URI_PATH = 6, 11
# How long an answer, or an acknowledgement, is waited for before the request is sent again (§4.8: 2 to 3 s).
ACK_TIMEOUT_S, MAX_RETRANSMIT = 2, 4


class CoapEndpoint(asyncio.DatagramProtocol):
    """A device's socket: what it asks, and what it is told without asking."""

    retransmissions = 0

    @classmethod
    async def of(cls, system, device):
        self = cls()
        self.path = [b"api", b"v1", token(device).encode()]
        self.numbers = itertools.count(device * 7919)
        self.answers, self.calls = {}, asyncio.Queue()
        address = ("127.0.0.1", system.ports["coap"])
        self.transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: self, remote_addr=address)
        return self

    def datagram_received(self, datagram, _):
        first, code, message_id = struct.unpack_from("!BBH", datagram)
        token, kind = datagram[4 : 4 + (first & 0xF)], first >> 4 & 3
        if kind == CONFIRMABLE:
            self.transport.sendto(struct.pack("!BBH", 0x40 | ACKNOWLEDGEMENT << 4, 0, message_id))
        if code == 0:
            # The answer comes in a message of its own.
            return
        body = payload(datagram, 4 + len(token))
        answer = self.answers.pop(token, None)
        if answer is not None and not answer.done():
            answer.set_result((code, body))
        elif body.startswith(b'{"id":'):
            self.calls.put_nowait(body)

    async def ask(self, code, path, body=b"", observe=None):
        number = next(self.numbers) & 0xFFFF
        token = struct.pack("!H", number)
        options, last = b"", 0
        for option, value in [(OBSERVE, observe)] * (observe is not None) + [(URI_PATH, it) for it in [*self.path, *path]]:
            length = bytes([len(value)]) if len(value) < 13 else bytes([13, len(value) - 13])
            options += bytes([(option - last) << 4 | length[0]]) + length[1:] + value
            last = option
        datagram = struct.pack("!BBH", 0x40 | CONFIRMABLE << 4 | len(token), code, number) + token + options
        datagram += b"\xff" + body if body else b""
        answer = self.answers[token] = asyncio.get_running_loop().create_future()
        for attempt in range(MAX_RETRANSMIT + 1):
            CoapEndpoint.retransmissions += attempt > 0
            self.transport.sendto(datagram)
            with contextlib.suppress(TimeoutError):
                return await asyncio.wait_for(asyncio.shield(answer), ACK_TIMEOUT_S * 2**attempt)
        raise TimeoutError("nothing came back")


def payload(datagram, at):
    """What follows the options that begin there (§3.1)."""
    while at < len(datagram):
        if datagram[at] == 0xFF:
            return datagram[at + 1 :]
        # No option that a server sends here is longer than 268 bytes, or far from the one before it.
        delta, length = datagram[at] >> 4, datagram[at] & 0xF
        at += 1 + (delta == 13)
        at += 1 + 13 + datagram[at] if length == 13 else length
    return b""


class Coap:
    """Callers post and are answered separately; targets observe. One socket each."""

    waiting = "observers"
    gauge = "switchboard_claims_held"

    @classmethod
    async def target(cls, system, device):
        endpoint, answering = await cls.wait(system, device), set()
        while True:
            number, body = read(await endpoint.calls.get())
            task = asyncio.create_task(endpoint.ask(POST, [b"rpc", number.encode()], body))
            answering.add(task)
            task.add_done_callback(answering.discard)

    @staticmethod
    async def caller(system, device):
        endpoint = await CoapEndpoint.of(system, device)

        async def call(request):
            code, answer = await endpoint.ask(POST, [b"rpc"], request)
            assert code in CREATED_TO_CONTENT, (code, answer)
            return answer

        return call

    @staticmethod
    async def wait(system, device):
        endpoint = await CoapEndpoint.of(system, device)
        code, body = await endpoint.ask(GET, [b"rpc"], observe=b"")
        assert code in CREATED_TO_CONTENT, (code, body)
        return endpoint


PROTOCOLS = {"http": Http, "coap": Coap, "api": Api}


# How much more an application's call may cost than a device's over HTTP, at 200 pairs.
MOST_CPU, MOST_P50 = 1.4, 1.5


def read(call):
    """Number and body of a call, as a target reads it."""
    return call[6 : call.index(b",")].decode(), call[call.index(b'"params":') + 9 : -1]


async def caller(protocol, system, device, callee, tally, ended):
    call, number = await protocol.caller(system, device), 0
    while not ended.is_set():
        number += 1
        body = json.dumps(f"{device}-{number}-".ljust(126, "x")).encode()
        head = f'{{"method":"sendMsg","params":{{"deviceId":"{system.ids[callee]}","timeout":10000,"body":'
        started = time.perf_counter()
        answer = await call(head.encode() + body + b"}}")
        assert answer == body, answer
        tally.append(time.perf_counter() - started)


async def calls(protocol, system, pairs, seconds):
    tally, ended = [], asyncio.Event()
    targets = [asyncio.create_task(protocol.target(system, 2 * pair + 1)) for pair in range(pairs)]
    while system.gauge("switchboard_claims_held") < pairs:
        await asyncio.sleep(0.05)
    callers = [
        asyncio.create_task(caller(protocol, system, 2 * pair, 2 * pair + 1, tally, ended)) for pair in range(pairs)
    ]
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
        f"{protocol.__name__}, {pairs} pairs: {len(took) / took_s:.0f} calls/s, {1e6 * cpu_s / len(took):.0f} µs CPU a call, "
        f"p50 {p50_ms:.1f} ms, p99 {p99_ms:.1f} ms",
        flush=True,
    )
    return 1e6 * cpu_s / len(took), p50_ms


def beside(measured):
    """What an application's call costs beside a device's, where both were measured."""
    for pairs in {pairs for protocol, pairs in measured if protocol is Api and (Http, pairs) in measured}:
        cpu, p50 = (api / http for api, http in zip(measured[Api, pairs], measured[Http, pairs], strict=True))
        print(f"Api beside Http, {pairs} pairs: {cpu:.2f} times the CPU (at most {MOST_CPU}), {p50:.2f} times the p50 (at most {MOST_P50})")


async def wait(protocol, system, count):
    cpu_s, resident_kb, in_kernel_kb, started = system.cpu_s(), system.resident_kb(), kernel_kb(), time.monotonic()
    waiting = []
    for first in range(0, count, 50):
        devices = range(first, min(first + 50, count))
        waiting += await asyncio.gather(*(protocol.wait(system, device) for device in devices))
    while system.gauge("switchboard_claims_held") < count:
        await asyncio.sleep(0.05)
    took_s, cpu_s, resident_kb = time.monotonic() - started, system.cpu_s() - cpu_s, system.resident_kb() - resident_kb
    print(
        f"{protocol.__name__}, {count} {protocol.waiting} in {took_s:.1f} s: "
        f"{resident_kb / count:.1f} KB and {1000 * cpu_s / count:.2f} ms CPU each; "
        f"the kernel's part, for both ends: {(kernel_kb() - in_kernel_kb) / count:.1f} KB each",
        flush=True,
    )
    assert system.gauge(protocol.gauge) == count


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--via", choices=PROTOCOLS, nargs="*", default=list(PROTOCOLS), help="which protocols")
    parser.add_argument("--pairs", type=int, nargs="*", default=[1, 100], help="callers and as many targets")
    parser.add_argument("--waiting", type=int, default=5000, help="devices that only wait for a call")
    parser.add_argument("--switchboard", default=ROOT / "target/release/switchboard", help="which program")
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    args = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4 * args.waiting + 1000), hard))
    measured = {}
    for protocol in (PROTOCOLS[via] for via in args.via):
        # An application does not wait for calls.
        runs = {}
        if protocol is not Api and args.waiting:
            runs[0] = lambda it, protocol=protocol: wait(protocol, it, args.waiting)
        runs |= {pairs: lambda it, via=protocol, pairs=pairs: calls(via, it, pairs, args.seconds) for pairs in args.pairs}
        for pairs, run in runs.items():
            # Each on a system of its own: what one leaves behind is not the next one's.
            with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
                system = System(args.switchboard, Path(folder), max([args.waiting, *(2 * pairs for pairs in args.pairs)]))
                stack.callback(system.stop)
                measured[protocol, pairs] = asyncio.run(run(system))
    beside(measured)
    if CoapEndpoint.retransmissions:
        print(f"CoAP requests that the load sent again: {CoapEndpoint.retransmissions}")


if __name__ == "__main__":
    main()
