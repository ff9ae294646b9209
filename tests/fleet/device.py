"""What does one device do all day? It is callable, and answers; when its connection ends, it comes back."""

from __future__ import annotations

import asyncio
import struct
from typing import TYPE_CHECKING, cast

from harness.accounts import Identity
from harness.raw_mqtt import CONNACK, DISCONNECT, PUBLISH, SUBACK, SUBSCRIBE, connect, packet, properties, text

from fleet.balancer import Endpoint

if TYPE_CHECKING:
    from fleet.fleet import Fleet

REQUEST, RESPONSE = "v1/devices/me/rpc/request/", "v1/devices/me/rpc/response/"
# Longer than any run: nobody pings.
KEEP_ALIVE_S = 1_200
# From the first byte until it is callable; then it tries again.
PATIENCE_S = 15.0


class Device:
    """One device, over all its connections; half of all speak MQTT 5, the others 3.1.1."""

    def __init__(self, fleet: Fleet, number: int, identity: Identity) -> None:
        self.number, self.identity = number, identity
        # At each of two and of four nodes there are as many of both.
        self.version = 5 if number // 4 % 2 else 4
        self._fleet = fleet
        # The one by which it is callable.
        self.connection: Connection | None = None
        self.cuts = 0
        self.cut_at: float | None = None

    async def connect(self) -> None:
        """Comes to a node, or tries again a little later."""
        endpoint = self._fleet.balancer.pick()
        if endpoint:
            try:
                await self._fleet.loop.create_connection(lambda: Connection(self._fleet, self, endpoint), *endpoint.address)
                return
            except OSError:
                pass
        self._fleet.connect_later(self)

    def became_callable(self, connection: Connection) -> None:
        self.connection = connection
        self._fleet.record.callable_at.append(self._fleet.loop.time())
        if self.cut_at is not None:
            self._fleet.record.gaps_s.append(self._fleet.loop.time() - self.cut_at)
            self.cut_at = None

    def lost(self, connection: Connection) -> None:
        if self.connection is connection:
            self.connection = None
            self.cuts += 1
            self.cut_at = self._fleet.loop.time()
            self._fleet.record.cut_at.append(self.cut_at)
            self._fleet.record.goodbyes[connection.goodbye] += 1
        self._fleet.caller_cut(connection)
        self._fleet.connect_later(self)


class Connection(asyncio.Protocol):
    """One connection of a device: MQTT, as much of it as it needs."""

    def __init__(self, fleet: Fleet, device: Device, endpoint: Endpoint) -> None:
        self._fleet, self._device, self.endpoint = fleet, device, endpoint
        self._inbound = bytearray()
        # Why the node ended it, where it said so.
        self.goodbye = "closed"
        # Its calls that are not answered yet.
        self.open_calls: set[int] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._fleet.record.connected_at.append(self._fleet.loop.time())
        self._overdue = self._fleet.loop.call_later(PATIENCE_S, self._transport.abort)
        self._transport.write(connect(self._device.version, self._device.identity.token, keep_alive_s=KEEP_ALIVE_S))

    def data_received(self, data: bytes) -> None:
        self._inbound += data
        while (taken := _packet(self._inbound)) is not None:
            kind, body = taken
            self._take(kind, body)

    def connection_lost(self, exc: Exception | None) -> None:
        self._overdue.cancel()
        self._device.lost(self)

    def call(self, number: int, target: Identity, timeout_ms: int) -> None:
        self.open_calls.add(number)
        params = f'{{"deviceId":"{target.id}","timeout":{timeout_ms},"body":{number}}}'
        self._publish(f"{REQUEST}{number}", f'{{"method":"sendMsg","params":{params}}}'.encode())

    def close(self) -> None:
        self._transport.abort()

    def _take(self, kind: int, body: bytes) -> None:
        is_v5 = self._device.version == 5
        if kind == PUBLISH:
            length = int.from_bytes(body[:2], "big")
            topic, payload = body[2 : 2 + length].decode(), body[2 + length :]
            if is_v5:
                # Shorter than 128: its length is one byte.
                payload = payload[1 + payload[0] :]
            self._hear(topic, payload)
        elif kind == CONNACK and body[1] == 0:
            filters = b"".join(text(f"{topic}+") + b"\0" for topic in (REQUEST, RESPONSE))
            self._transport.write(packet(SUBSCRIBE, struct.pack(">H", 1) + (properties() if is_v5 else b"") + filters, 2))
        elif kind == SUBACK and max(body[-2:]) == 0:
            self._overdue.cancel()
            self._device.became_callable(self)
        elif kind == DISCONNECT:
            self.goodbye = f"0x{body[0] if body else 0:02X}"
        else:
            self._transport.abort()

    def _hear(self, topic: str, payload: bytes) -> None:
        number = topic.rsplit("/", 1)[1]
        if topic.startswith(REQUEST):
            # A call is answered with its own body.
            call = payload.split(b'"params":', 1)[1].rstrip(b"}")
            self._fleet.executed(int(call))
            self._publish(f"{RESPONSE}{number}", call)
        elif int(number) in self.open_calls:
            self.open_calls.remove(int(number))
            self._fleet.answered(int(number), payload.decode())

    def _publish(self, topic: str, payload: bytes) -> None:
        self._transport.write(packet(PUBLISH, text(topic) + (properties() if self._device.version == 5 else b"") + payload))


def _packet(inbound: bytearray) -> tuple[int, bytes] | None:
    """Takes the next whole packet out of what came: its kind, and what follows its length."""
    length, shift = 0, 0
    for at in range(1, min(5, len(inbound))):
        length |= (inbound[at] & 0x7F) << shift
        shift += 7
        if not inbound[at] & 0x80:
            end = at + 1 + length
            if len(inbound) < end:
                return None
            kind, body = inbound[0] >> 4, bytes(inbound[at + 1 : end])
            del inbound[:end]
            return kind, body
    return None
