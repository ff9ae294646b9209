"""Which node does a new connection come to? One after the other of those that are ready, as a Kubernetes Service has it.

What a Service does for a connection that stands is nothing: it chooses once. So does this, and carries no bytes.
"""

import asyncio
from dataclasses import dataclass
from itertools import count

from harness.cluster import Ingress

# As a readiness probe with the shortest period there is.
PROBE_PERIOD_S = 1.0
PROBE_TIMEOUT_S = 2.0


@dataclass
class Endpoint:
    """One node, as the balancer knows it."""

    node: Ingress
    name: str
    address: tuple[str, int]
    admin: tuple[str, int]
    is_ready: bool = True


class Balancer:
    """The nodes that devices may come to."""

    def __init__(self) -> None:
        self.endpoints: list[Endpoint] = []
        self._turns = count()

    def add(self, node: Ingress) -> None:
        """A node that is ready. As a new pod it gets its turns from now on."""
        host, port = node.admin.address.rsplit(":", 1)
        self.endpoints = [*self.endpoints, Endpoint(node, node.name, (node.host, node.mqtt_port), (host, int(port)))]

    def remove(self, node: Ingress) -> None:
        """A pod that is to end leaves the Service at once, whatever its probe says."""
        self.endpoints = [it for it in self.endpoints if it.node is not node]

    def pick(self) -> Endpoint | None:
        ready = [it for it in self.endpoints if it.is_ready]
        return ready[next(self._turns) % len(ready)] if ready else None

    async def probe(self) -> None:
        """Looks at /readyz of each, until it is cancelled."""
        while True:
            await asyncio.gather(*map(_probe, self.endpoints))
            await asyncio.sleep(PROBE_PERIOD_S)


async def _probe(endpoint: Endpoint) -> None:
    try:
        async with asyncio.timeout(PROBE_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(*endpoint.admin)
            writer.write(b"GET /readyz HTTP/1.1\r\nHost: probe\r\nConnection: close\r\n\r\n")
            endpoint.is_ready = b" 200 " in await reader.readline()
            writer.close()
    except OSError:
        endpoint.is_ready = False
