"""What does a cluster look like that everybody uses? Every method, every protocol both ways, and most ways for a call to end."""

import itertools
import json
import sys
import threading
from typing import Self

from harness.accounts import Identity, identity
from harness.apps import add_app, call
from harness.cluster import Api, Cluster
from harness.devices import CoapDevice, Device, HttpDevice, PahoV5
from harness.devices.device import echo
from harness.processes import Process
from harness.programs import ROOT
from harness.raw_http import RawHttp
from harness.waiting import PATIENCE_S

KINDS = [PahoV5, HttpDevice, CoapDevice]
# Between two rounds of one caller.
PAUSE_S = 0.1
NOBODY = "00000000-0000-4000-8000-000000000000"


def decided_outside(cluster: Cluster) -> tuple[list[Identity], Process]:
    """Two devices of a tenant that has somebody outside decide over its calls; and who does that."""
    pair = [identity(f"{name} decided outside", "Customer", "Decided outside") for name in ("Caller", "Target")]
    cluster.accounts.add(*pair)
    tenants = json.loads(cluster.accounts.cli("tenant", "list", "--json").ok().out)
    tenant = next(it["id"] for it in tenants if it["name"] == pair[0].tenant)
    quota = ROOT / "tests" / "examples" / "policy" / "quota.py"
    command = [sys.executable, quota, "--calls", "1000000000", "--nats", cluster.nats.url, "--tenant", tenant]
    decider = Process("quota", command, None)
    decider.wait_for_line("it decides", lambda line: line.startswith("Deciding on "), stream="out")
    cluster.accounts.cli("policy", "external", "nats:quota", "--timeout-ms", "1000", "--tenant", tenant).ok()
    return pair, decider


class Everything:
    """Devices that call, are called and send telemetry, until the end of the `with`."""

    def __init__(self, cluster: Cluster) -> None:
        self._nodes, self._apis = cluster.nodes, cluster.apis
        self._families = [cluster.accounts.family() for _ in KINDS]
        self._mute = cluster.accounts.family()
        self._decided, self._decider = decided_outside(cluster)
        self._app = add_app(cluster.accounts) if cluster.apis else None
        self._devices: list[Device] = []
        self._threads: list[threading.Thread] = []
        self._stopping = threading.Event()

    def __enter__(self) -> Self:
        nodes = itertools.cycle(self._nodes)
        targets = []
        for kind, family in zip(KINDS, self._families, strict=True):
            targets.append(self._device(kind, family.b, next(nodes)).become_callable(echo).identity)
        # It takes its calls and never answers.
        self._device(PahoV5, self._mute.b, next(nodes)).become_callable(lambda _: None)
        next(nodes)
        callers = [self._device(kind, family.a, next(nodes)) for kind, family in zip(KINDS, self._families, strict=True)]
        impatient = self._device(PahoV5, self._mute.a, next(nodes))
        for caller, target, family in zip(callers, targets, self._families, strict=True):
            elsewhere = targets[targets.index(target) - 1]
            self._repeat(self._round, caller, target, family.c, elsewhere)
        self._repeat(lambda: impatient.send_msg(self._mute.b, "1", timeout=150).text())
        self._repeat(self._telemetry, callers[0])
        decided = self._device(PahoV5, self._decided[0], next(nodes))
        self._device(PahoV5, self._decided[1], next(nodes)).become_callable(echo)
        self._repeat(lambda: decided.send_msg(self._decided[1], "1").text())
        self._repeat(self._connections)
        for api in self._apis:
            self._repeat(self._application, api, targets[0])
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        for device in self._devices:
            device.close()
        self._decider.stop()

    def _round(self, caller: Device, target: Identity, offline: Identity, foreign: Identity) -> None:
        for called in (target, offline, foreign, NOBODY):
            caller.send_msg(called, '"hello"').text()
        caller.send_msg(target, '"hello"', oneway=True).text()
        caller.get_devices()
        caller.ask(json.dumps({"method": "getTime"})).text()
        caller.ask("{}").text()

    def _application(self, api: Api, target: Identity) -> None:
        with RawHttp(api.port) as http:
            assert call(http, self._app, target.id).status == 200

    def _telemetry(self, device: PahoV5) -> None:
        device.client.publish("v1/devices/me/telemetry", '{"temperature":21}', qos=1).wait_for_publish(PATIENCE_S)

    def _connections(self) -> None:
        """One that comes and goes, and makes a burst of requests that is too much."""
        family = self._mute
        device = PahoV5(family.c).connect(self._nodes[0]).become_callable(echo)
        for answer in [device.ask('{"method":"getTime"}') for _ in range(60)]:
            answer.text()
        device.close()

    def _device(self, kind: type[Device], identity: Identity, node) -> Device:
        device = kind(identity).connect(node)
        self._devices.append(device)
        return device

    def _repeat(self, work, *arguments: object) -> None:
        def run() -> None:
            while not self._stopping.wait(PAUSE_S):
                work(*arguments)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        self._threads.append(thread)
