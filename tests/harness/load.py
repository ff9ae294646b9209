"""Do calls keep being answered while something happens to the system? Pairs of devices that call all the time."""

import itertools
import threading
from collections import Counter
from typing import Self

from harness.accounts import Family
from harness.cluster import Cluster, Ingress
from harness.devices import PahoV5
from harness.devices.device import echo
from harness.waiting import PATIENCE_S, until

# Between two calls of one caller: a quick machine stays below the calls a second that a device may make.
PAUSE_S = 0.02


class Load:
    """One caller and one target for each family; both follow when their node says goodbye.

    `outcomes` counts what became of the calls: `answered`, or whatever the caller read instead. A call whose
    request was never acknowledged was never taken: it is made again, as a device would.
    """

    def __init__(self, cluster: Cluster, pairs: int = 4, timeout_ms: int = 20_000) -> None:
        self._cluster = cluster
        self._timeout_ms = timeout_ms
        self._families = [cluster.accounts.family() for _ in range(pairs)]
        self.outcomes: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        nodes = self._cluster.nodes
        for index, family in enumerate(self._families):
            listening = threading.Event()
            self._start(self._be_called, family, nodes[(index + 1) % len(nodes)], listening)
            assert listening.wait(PATIENCE_S)
            self._start(self._call, family, nodes[index % len(nodes)])
        self.wait_for(20)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "a device of the load is stuck"

    def wait_for(self, more_calls: int) -> None:
        """Until so many more calls have ended."""
        goal = self.outcomes.total() + more_calls
        until(f"{more_calls} more calls end", lambda: self.outcomes.total() >= goal)

    def _start(self, run, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _be_called(self, family: Family, node: Ingress, listening: threading.Event) -> None:
        while not self._stopping.is_set():
            try:
                target = PahoV5(family.b).connect(node).become_callable(echo)
            except (OSError, AssertionError):
                node = self._next(node)
                continue
            listening.set()
            while not target.ended.wait(0.05) and not self._stopping.is_set():
                pass
            if self._stopping.is_set():
                # The callers may still wait for their last answers.
                for thread in self._threads:
                    if thread.name.startswith("caller"):
                        thread.join(PATIENCE_S)
                if not target.ended.is_set():
                    target.close()
            node = self._next(node)

    def _call(self, family: Family, node: Ingress) -> None:
        threading.current_thread().name = f"caller of {family.customer}"
        caller, numbers = None, itertools.count()
        while not self._stopping.is_set():
            if caller is None:
                try:
                    caller = PahoV5(family.a).connect(node)
                except (OSError, AssertionError):
                    node = self._next(node)
                    continue
            body = f'"{family.customer} {next(numbers)}"'
            # It may wait for its target to come back, as long as it likes.
            answer = caller.send_msg(family.b, body, timeout=self._timeout_ms, connectTimeout=self._timeout_ms)
            try:
                text = answer.text(30)
            except ConnectionError:
                if caller.was_taken(answer):
                    self._count("taken and never answered")
                caller, node = None, self._next(node)
                continue
            except TimeoutError:
                text = "no answer at all"
            self._count("answered" if text == body else text)
            self._stopping.wait(PAUSE_S)
        if caller is not None and not caller.ended.is_set():
            caller.close()

    def _count(self, outcome: str) -> None:
        with self._counting:
            self.outcomes[outcome] += 1

    def _next(self, node: Ingress) -> Ingress:
        nodes = self._cluster.nodes
        return nodes[(nodes.index(node) + 1) % len(nodes)] if node in nodes else nodes[0]
