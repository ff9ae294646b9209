"""What does a row of faults happen to? A whole cluster with its devices, and the hands that break it."""

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nats
from harness.cluster import Cluster, Ingress, Service
from harness.nats_server import NatsCluster, NatsServer
from harness.places import Place, here
from harness.programs import ROOT
from harness.waiting import until

from faults.clock import Clocks
from faults.network import Network
from faults.traffic import CUSTOMER, Traffic

Victim = Service | NatsServer
CONFIGURATION = ROOT / "deploy" / "nats" / "switchboard.conf"
PREFIX = "swb"
# How long an elected cluster may take to be ready again, on a machine that does other things too.
READY_S = 90


class Stage:
    """One cluster: three NATS servers that keep three copies, three nodes, two authorizers, two routers."""

    def __init__(self, folder: Path, lease_s: float, network: Network | None, clocks: Clocks | None) -> None:
        self.lease_s, self.network, self.clocks = lease_s, network, clocks
        folder.mkdir(parents=True, exist_ok=True)
        # How soon a server notices that a connection is dead, as we say that it should be.
        pings = folder / "pings.conf"
        pings.write_text("".join(line for line in CONFIGURATION.open() if line.startswith("ping_")))
        settings = {
            "nats.replicas": "3",
            "ingress.lease_ms": str(round(lease_s * 1_000)),
            "http.poll_grace_ms": "5000",
            "log.level": "info",
        }
        self.cluster = Cluster(
            folder,
            nodes=3,
            authorizers=2,
            routers=2,
            settings=settings,
            nats=lambda folder, logs: NatsCluster(folder, logs, "--config", str(pings), places=self._place),
            places=self._place,
        )
        self.traffic: Traffic = None  # type: ignore[assignment]
        # Seconds until /readyz of a process that was cut off said so.
        self.unready_after_s: dict[str, float] = {}

    @property
    def short_s(self) -> float:
        """A fault that costs nobody its lease."""
        return self.lease_s / 3

    @property
    def long_s(self) -> float:
        """A fault that is longer than a lease."""
        return self.lease_s * 5 / 3

    def victim(self, kind: str) -> Victim:
        """One process of a kind; of the servers the one that leads most."""
        match kind:
            case "node":
                return self.cluster.nodes[0]
            case "authorizer":
                return self.cluster.authorizers[0]
            case "router":
                return self.cluster.routers[0]
        return max(self.servers, key=NatsServer.leads)

    @property
    def servers(self) -> list[NatsServer]:
        return self.cluster.nats.servers

    def begin(self, settles_s: float) -> None:
        """New devices, that call each other."""
        self.traffic = Traffic(self.cluster.nodes, self.cluster.accounts, self.lease_s, settles_s)
        self.unready_after_s = {}
        self.traffic.start()

    @contextlib.contextmanager
    def wrong(
        self, victims: list[Victim], *, holds: bool = False, is_graceful: bool = False, looks_at_readyz: bool = False
    ) -> Iterator[None]:
        """What is done inside is a fault of these processes, which the history says as its checker wants it."""
        history = self.traffic.history
        since = history.now()
        history.broken_from = history.broken_from or since
        numbers = {self.traffic.number_of(it) if isinstance(it, Ingress) else None for it in victims}
        over = threading.Event()
        watched = [it for it in victims if looks_at_readyz and isinstance(it, Service)]
        watchers = [threading.Thread(target=self._watch_readyz, args=(it, over), daemon=True) for it in watched]
        for watcher in watchers:
            watcher.start()
        try:
            yield
        finally:
            over.set()
            for number in numbers:
                history.faulty(since, number, holds=holds, is_graceful=is_graceful)
            history.healed = history.now()

    def kill(self, *victims: Victim) -> None:
        """Without a goodbye; they are started again a little later."""
        with self.wrong(list(victims)):
            for it in victims:
                it.process.kill()
                self._died(it)
            time.sleep(self.short_s)
            self._start(victims)

    def stop(self, *victims: Victim, lasts_s: float) -> None:
        """They sleep. What a server has read it sends on when it wakes."""
        with self.wrong(list(victims), holds=any(isinstance(it, NatsServer) for it in victims)):
            for it in victims:
                it.process.signal(signal.SIGSTOP)
            time.sleep(lasts_s)
            for it in victims:
                it.process.signal(signal.SIGCONT)

    def drain(self, victim: Victim) -> None:
        """SIGTERM, and started again once it has ended."""
        with self.wrong([victim], is_graceful=True):
            victim.process.term()
            victim.process.wait(60)
            self._died(victim)
            self._start([victim])

    def cut(self, *victims: Victim, lasts_s: float, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Nothing comes through between them and the other processes; devices stay with their node."""
        assert self.network
        with self.wrong(list(victims), holds=True, looks_at_readyz=True):
            began = time.monotonic()
            for it in victims:
                self.network.cut(it.name)
            meanwhile()
            time.sleep(max(0, lasts_s - (time.monotonic() - began)))
            for it in victims:
                self.network.heal(it.name)

    def reset(self, victim: Victim, lasts_s: float) -> None:
        """Its connections with other processes are reset, and cannot be made again for a while."""
        assert self.network
        with self.wrong([victim], holds=True):
            self.network.reset(victim.name)
            time.sleep(lasts_s)
            self.network.heal(victim.name)

    def slow(self, victim: Victim, lasts_s: float) -> None:
        """Its network is slow, and loses packets."""
        assert self.network
        with self.wrong([victim]):
            self.network.slow(victim.name)
            time.sleep(lasts_s)
            self.network.heal(victim.name)

    def clock(self, victim: Victim, by_s: int) -> None:
        """Its wall clock jumps, and stays wrong: that is no fault at all, and excuses nothing."""
        assert self.clocks
        self.clocks.set(victim.name, by_s)
        history = self.traffic.history
        history.broken_from = history.healed = history.now()
        time.sleep(self.short_s)

    def reassign(self, away_s: float) -> None:
        """A device belongs to nobody for a while."""
        traffic = self.traffic
        device = traffic.identities[1]
        self.cluster.accounts.cli("device", "unassign", device.id).ok()
        traffic.history.assigned(1, None)
        time.sleep(away_s)
        traffic.history.assigned(1, CUSTOMER)
        self.cluster.accounts.cli("device", "assign", device.id, device.customer).ok()

    def unassign(self) -> None:
        """The same, and nothing else is wrong."""
        history = self.traffic.history
        history.broken_from = history.now()
        self.reassign(8)
        history.healed = history.now()

    def lose_claims(self) -> None:
        """The bucket with the claims is deleted."""

        async def delete() -> None:
            client = await nats.connect(servers=self.cluster.nats.url.split(","))
            await client.jetstream().delete_stream(f"KV_{PREFIX}_claims")
            await client.close()

        with self.wrong([self.servers[0]]):
            self.traffic.history.claims_lost()
            asyncio.run(delete())

    def recover(self) -> None:
        """Until all that should run does, and says so."""
        self.cluster.nats.wait_whole()
        for service in self.cluster.services:
            service.wait_ready(READY_S)

    def close(self) -> None:
        self.cluster.stop()

    def _place(self, name: str) -> Place:
        place = self.network.place(name) if self.network else here(name)
        return self.clocks.behind(place, name) if self.clocks else place

    def _died(self, victim: Victim) -> None:
        if isinstance(victim, Ingress):
            self.traffic.died(victim)

    def _start(self, victims: Any) -> None:
        # Servers wait for each other: all are begun before one is waited for.
        starting = [threading.Thread(target=it.start) for it in victims]
        for thread in starting:
            thread.start()
        for thread in starting:
            thread.join()
        for it in victims:
            if isinstance(it, Service):
                it.wait_ready(READY_S)

    def _watch_readyz(self, service: Service, over: threading.Event) -> None:
        began = time.monotonic()
        admin = service.admin
        says = lambda: any(words in admin.get("/readyz")[1] for words in ("not ready", "ready, though"))
        until("it says that it is not well, or is well again", lambda: over.wait(0.2) or says(), 600)
        if not over.is_set():
            self.unready_after_s[service.name] = time.monotonic() - began
