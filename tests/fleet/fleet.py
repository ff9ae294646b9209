"""What do all devices do together? They are connected, call each other at an even rate, and write down what they see."""

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from faults.history import ENDINGS
from harness.accounts import Identity
from harness.waiting import until

from fleet.balancer import Balancer
from fleet.device import Connection, Device

# Devices of one customer: they may call each other.
PER_CUSTOMER = 20
# How many connect a second when a row begins.
ARRIVALS_PER_SECOND = 1_000
# A device whose connection ended comes back after so long at most, at random.
COMES_BACK_S = 2.0
TIMEOUT_MS = 5_000
# What this machine may add to a call's time.
GRACE_S = 3.0
TICK_S = 0.02


@dataclass
class Record:
    """What was seen, in the loop's seconds."""

    connected_at: list[float] = field(default_factory=list)
    callable_at: list[float] = field(default_factory=list)
    cut_at: list[float] = field(default_factory=list)
    # From the end of a connection until its device was callable again.
    gaps_s: list[float] = field(default_factory=list)
    # How nodes ended connections.
    goodbyes: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    # Calls that a device has had in its hands more than once.
    twice: int = 0


class Fleet:
    """Devices in a loop of their own, in a thread of their own."""

    def __init__(self, balancer: Balancer, identities: list[Identity], calls_per_second: float) -> None:
        self.balancer, self.record = balancer, Record()
        self.loop = asyncio.new_event_loop()
        self.devices = [Device(self, number, identity) for number, identity in enumerate(identities)]
        self._calls_per_second = calls_per_second
        self._random = random.Random(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[int, tuple[Record, asyncio.TimerHandle]] = {}
        self._last_call = 0
        self._executed: set[int] = set()
        self._is_over = False
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Until every device is callable; from then on they call."""
        self._thread.start()
        self.loop.call_soon_threadsafe(lambda: self._spawn(self._arrive()))
        self.wait_callable()
        self.loop.call_soon_threadsafe(lambda: self._spawn(self._call()))

    def wait_callable(self) -> None:
        until("every device is callable", lambda: self.callable() == len(self.devices), within_s=180)

    def callable(self) -> int:
        return sum(it.connection is not None for it in self.devices)

    def begin(self) -> None:
        """From now on it is written down anew."""
        self.record = Record()
        for it in self.devices:
            it.cuts = 0

    def wait_calls(self, more: int) -> None:
        """Until so many more calls have ended."""
        goal = self.record.outcomes.total() + more
        until(f"{more} more calls end", lambda: self.record.outcomes.total() >= goal, within_s=60)

    def spread(self) -> dict[str, int]:
        """Devices at each node that new ones may come to."""
        at = Counter(it.connection.endpoint.name for it in self.devices if it.connection)
        return {it.name: at[it.name] for it in self.balancer.endpoints}

    def stop(self) -> None:
        """Every device hangs up."""

        async def hang_up() -> None:
            self._is_over = True
            for task in self._tasks - {asyncio.current_task()}:
                task.cancel()
            for it in self.devices:
                if it.connection:
                    it.connection.close()

        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(hang_up(), self.loop).result()
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join()

    # For devices, in the loop.

    def connect_later(self, device: Device) -> None:
        if not self._is_over:
            self.loop.call_later(self._random.uniform(0, COMES_BACK_S), lambda: self._spawn(device.connect()))

    def answered(self, number: int, answer: str) -> None:
        self._ended(number, "answered" if answer == str(number) else ENDINGS.get(answer, answer))

    def executed(self, number: int) -> None:
        self.record.twice += number in self._executed
        self._executed.add(number)

    def caller_cut(self, connection: Connection) -> None:
        """Whatever becomes of its calls, it does not read it."""
        for number in connection.open_calls:
            self._ended(number, "caller cut")

    def _ended(self, number: int, how: str) -> None:
        if call := self._open.pop(number, None):
            record, overdue = call
            overdue.cancel()
            record.outcomes[how] += 1

    def _run(self) -> None:
        self.loop.call_soon(lambda: self._spawn(self.balancer.probe()))
        self.loop.run_forever()

    def _spawn(self, what: Coroutine[Any, Any, None]) -> None:
        if self._is_over:
            return what.close()
        task = self.loop.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _arrive(self) -> None:
        async for _, number in _paced(ARRIVALS_PER_SECOND, len(self.devices)):
            self._spawn(self.devices[number].connect())

    async def _call(self) -> None:
        async for loop_time, _ in _paced(self._calls_per_second):
            caller = self._random.choice(self.devices)
            others = range(caller.number // PER_CUSTOMER * PER_CUSTOMER, len(self.devices))[:PER_CUSTOMER]
            target = self.devices[self._random.choice([it for it in others if it != caller.number])]
            if not caller.connection:
                continue
            self._last_call += 1
            number = self._last_call
            overdue = self.loop.call_at(loop_time + TIMEOUT_MS / 1_000 + GRACE_S, self._ended, number, "never answered")
            self._open[number] = (self.record, overdue)
            caller.connection.call(number, target.identity, TIMEOUT_MS)


async def _paced(per_second: float, most: float = float("inf")):
    """Numbers at an even rate, each with the time."""
    loop, done = asyncio.get_running_loop(), 0
    began = loop.time()
    while done < most:
        while done < min(most, (loop.time() - began) * per_second):
            yield loop.time(), done
            done += 1
        await asyncio.sleep(TICK_S)
