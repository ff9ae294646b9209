"""What does a row happen to? A whole cluster, its balancer and its devices, and the hands that move it."""

import asyncio
import contextlib
import resource
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nats
from harness.accounts import identity
from harness.cluster import Cluster, Ingress
from harness.processes import Ran
from harness.programs import built
from harness.waiting import until
from nats.errors import Error as NatsError

from fleet.balancer import Balancer
from fleet.figures import Figures, figures_of
from fleet.fleet import PER_CUSTOMER, Fleet

STREAM = "KV_swb_claims"
# What this process opens beside its devices' connections.
FILES = 500
# How long NATS is away when it loses its memory.
AWAY_S = 1.0
# Until a node has ended, in its own time.
PATIENCE_S = 90


class Stage:
    """Nodes with their devices, two authorizers, two routers, one NATS server."""

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int,
        devices: int,
        calls_per_second: float,
        apis: int = 0,
        programs: Callable[[str], Path] = built,
    ) -> None:
        _allow_files(devices + FILES)
        self._folder = folder
        self.cluster = Cluster(
            folder,
            nodes=nodes,
            authorizers=2,
            routers=2,
            apis=apis,
            settings={"log.level": "info", "ingress.lease_ms": "15000"},
            launch=lambda program: [programs(program)],
        )
        self.cluster.accounts.programs = programs
        identities = [identity(f"Device {number}", f"Customer {number // PER_CUSTOMER}") for number in range(devices)]
        self.balancer = Balancer()
        self.fleet = Fleet(self.balancer, identities, calls_per_second)
        self.extra: dict[str, float] = {}
        try:
            self.cluster.accounts.add(*identities)
            for node in self.cluster.nodes:
                self.balancer.add(node)
            self.fleet.start()
        except BaseException:
            self.close()
            raise

    @property
    def nodes(self) -> list[Ingress]:
        return self.cluster.nodes

    @contextlib.contextmanager
    def watched(self, calls: int) -> Iterator[None]:
        """What is done inside makes the figures: until all devices are back, and so many more calls have ended."""
        self.fleet.wait_calls(calls)
        self.fleet.begin()
        self._began = time.monotonic()
        yield
        self._lasted_s = time.monotonic() - self._began
        self.fleet.wait_callable()
        self.fleet.wait_calls(calls)

    def figures(self) -> Figures:
        spread = self.fleet.spread()
        return figures_of(self.fleet.record, [it.cuts for it in self.fleet.devices], spread, self._lasted_s, self.extra)

    def grow(self, by: int) -> list[Ingress]:
        """So many nodes more, which devices may come to as soon as they are ready."""
        with ThreadPoolExecutor() as pool:
            new = [self.cluster.made_node() for _ in range(by)]
            list(pool.map(lambda it: it.wait_ready(), new))
        for node in new:
            self.balancer.add(node)
        return new

    def end(self, *nodes: Ingress) -> None:
        """As pods end: they leave the Service, and are told all at once; until the last has ended."""
        for node in nodes:
            self.balancer.remove(node)
        for node in nodes:
            node.process.term()
        for node in nodes:
            node.process.wait(PATIENCE_S)
            self.nodes.remove(node)

    def kill(self, node: Ingress) -> None:
        """Without a goodbye; its probe finds out."""
        node.kill()
        until("the balancer has seen it", lambda: any(not it.is_ready for it in self.balancer.endpoints))
        self.balancer.remove(node)
        self.nodes.remove(node)

    def replace_others(self) -> None:
        """Routers and authorizers."""
        self._replace(self.cluster.routers, self.cluster.add_router)
        self._replace(self.cluster.authorizers, self.cluster.add_authorizer)

    def command(self, *arguments: str) -> Ran:
        """`switchboard ARGUMENTS`, to its end."""
        return self.cluster.accounts.cli(*arguments)

    def lose_memory(self) -> None:
        """NATS is killed, and comes back without a claim. Until all are written again."""
        claims = self.stored_claims()
        self.cluster.nats.process.kill()
        (store,) = self._folder.glob(f"nats/store/jetstream/*/streams/{STREAM}")
        shutil.rmtree(store)
        time.sleep(AWAY_S)
        self.cluster.nats.start()
        back = time.monotonic()
        seen = [(0.0, 0)]

        def are_back() -> bool:
            stored = self.stored_claims()
            seen.append((time.monotonic() - back, stored))
            return stored >= claims

        until(f"{claims} claims are written again", are_back, within_s=180)
        first = max(at for at, stored in seen if stored == 0)
        self.extra |= {"claims": claims, "back_s": seen[-1][0], "first_s": first}

    def stored_claims(self) -> int:
        """How many claims the store has."""

        async def ask() -> int:
            client = await nats.connect(self.cluster.nats.url, connect_timeout=2, allow_reconnect=False)
            try:
                return (await client.jetstream(timeout=2).stream_info(STREAM)).state.messages
            except NatsError:
                return 0
            finally:
                await client.close()

        return asyncio.run(ask())

    def close(self) -> None:
        self.fleet.stop()
        self.cluster.stop()

    def _replace(self, group: list[Any], add: Callable[[], Any]) -> None:
        """One after the other: the new one is ready before the old one is told."""
        for old in list(group):
            add()
            old.term()
            group.remove(old)


def _allow_files(files: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < files:
        raise OSError(f"{files} files are to be open at once, and the hard limit of this shell is {most} (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
