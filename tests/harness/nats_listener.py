"""What was published below a NATS subject?"""

import asyncio
import queue
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

import nats

from harness.waiting import PATIENCE_S

T = TypeVar("T")

PROBE = "probe"


class NatsListener:
    """A plain subscriber of its own, beside Switchboard."""

    def __init__(self, url: str, subject: str) -> None:
        self._heard: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._connection = self._run(nats.connect(url))
        self._run(self._subscribe(subject))
        # A message of our own that comes back: from now on whatever is published is heard. (`flush` of this client
        # may overtake the subscription.)
        self._run(self._connection.publish(subject.replace("*", PROBE), PROBE.encode()))
        assert self.next()[1] == PROBE.encode()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._connection.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_S)
        self._loop.close()

    def next(self, within_s: float = PATIENCE_S) -> tuple[str, bytes]:
        """Subject and message."""
        return self._heard.get(timeout=within_s)

    async def _subscribe(self, subject: str) -> None:
        async def heard(message: Any) -> None:
            self._heard.put((message.subject, message.data))

        await self._connection.subscribe(subject, cb=heard)

    def _run(self, task: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(task, self._loop).result(PATIENCE_S)
