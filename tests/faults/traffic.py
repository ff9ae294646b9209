"""What do devices do meanwhile? They call each other all the time, over every protocol; some come and go."""

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from harness.accounts import Accounts, identity
from harness.cluster import Ingress
from harness.devices import Call, CoapDevice, Device, HttpDevice, PahoV5
from harness.waiting import until

from faults.history import History, body_of

KINDS: list[type[Device]] = [PahoV5, HttpDevice, CoapDevice]
CUSTOMER = 1
# Of each kind one stays at each of three nodes, one takes over from itself, one comes and goes.
DEVICES = 5 * len(KINDS)
# Between two calls of one device, whether or not the last one has ended. One that speaks CoAP sends a request when
# the last is acknowledged (NSTART, RFC 7252 §4.7), which takes a node up to 200 ms.
PAUSE_S = {PahoV5: 0.4, HttpDevice: 0.4, CoapDevice: 1.6}
# How long one that comes and goes stays.
STAYS_S = 4.0


@dataclass
class Connection:
    """One connection of a device, and its number in the history."""

    device: Device
    session: int
    node: int


class Traffic:
    """Three devices at each node that stay; three that take over from themselves; three that leave and come back."""

    def __init__(self, nodes: Sequence[Ingress], accounts: Accounts, lease_s: float, settles_s: float) -> None:
        steady = len(nodes) * len(KINDS)
        kinds = [*(kind for _ in nodes for kind in KINDS), *KINDS, *KINDS]
        manners = ["stays"] * steady + ["takes over"] * len(KINDS) + ["leaves"] * len(KINDS)
        self.history = History(set(range(steady)), lease_s, settles_s)
        self.nodes = list(nodes)
        # Times of calls, from impatient to patient.
        self.timeouts_ms = [1_000, 3_000, round(max(lease_s, 4) * 1_000)]
        self.identities = [identity(f"Device {uuid.uuid4()}", "Customer") for number in range(len(kinds))]
        accounts.add(*self.identities)
        for number in range(len(kinds)):
            self.history.assigned(number, CUSTOMER)
        self._node_numbers = list(range(len(nodes)))
        self._next_node_number = len(nodes)
        self.calling, self.stopping = threading.Event(), threading.Event()
        self.actors = [
            Actor(self, number, kind, manner, number // len(KINDS) % len(nodes))
            for number, (kind, manner) in enumerate(zip(kinds, manners, strict=True))
        ]

    def start(self) -> None:
        """Until every device that stays is callable."""
        for actor in self.actors:
            actor.thread.start()
        stay = [actor for actor in self.actors if actor.manner == "stays"]
        until("all devices are callable", lambda: all(actor.is_callable() for actor in stay), within_s=60)
        self.calling.set()

    def stop(self) -> None:
        """Once every call has ended; devices stay connected until then."""
        self.calling.clear()
        with contextlib.suppress(AssertionError):
            # What is open then will be called endless by the checker.
            until("all calls have ended", lambda: not self.history.open_calls(), max(self.timeouts_ms) / 1000 + 10)
        self.history.close()
        self.stopping.set()
        with ThreadPoolExecutor(len(self.actors)) as pool:
            list(pool.map(Actor.end, self.actors))

    def number_of(self, node: Ingress) -> int:
        return self._node_numbers[self.nodes.index(node)]

    def died(self, node: Ingress) -> None:
        """Its devices know; the next process there is another node."""
        place = self.nodes.index(node)
        number, self._node_numbers[place] = self._node_numbers[place], self._next_node_number
        self._next_node_number += 1
        self.history.node_died(number)
        for actor in self.actors:
            actor.node_died(number)

    def move_from(self, node: Ingress) -> None:
        """Its devices connect to another node as well, without taking leave."""
        for actor in self.actors:
            if actor.manner == "stays" and actor.is_at(self.number_of(node)):
                actor.moves.set()


class Actor:
    """One device: connects, stays or does not, and calls any other."""

    def __init__(self, traffic: Traffic, number: int, kind: type[Device], manner: str, home: int) -> None:
        self._traffic, self._history = traffic, traffic.history
        self._number, self._kind, self.manner, self._at = number, kind, manner, home
        self._connections: list[Connection] = []
        self._random = random.Random(number)
        self.moves = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def is_callable(self) -> bool:
        return any(not it.device.ended.is_set() for it in self._connections)

    def is_at(self, node: int) -> bool:
        return any(it.node == node and not it.device.ended.is_set() for it in self._connections)

    def node_died(self, node: int) -> None:
        for it in self._connections:
            if it.node == node:
                # Nobody tells a device that speaks CoAP.
                it.device.ended.set()

    def end(self) -> None:
        self.thread.join()
        for it in self._connections:
            _vanish(it.device)

    def _run(self) -> None:
        while not self._traffic.stopping.is_set():
            connection = self._connect()
            if connection is None:
                self._at += 1
                self._traffic.stopping.wait(0.3)
                continue
            self._live(connection)
            if self.manner == "leaves" and not connection.device.ended.is_set():
                self._history.over(connection.session)
                with contextlib.suppress(Exception):
                    connection.device.close()
                self._traffic.stopping.wait(STAYS_S)
            elif isinstance(connection.device, HttpDevice):
                # Whoever polls again is the newest session.
                connection.device.poll_no_more()
            if self._traffic.calling.is_set():
                self._at += 1

    def _connect(self) -> Connection | None:
        place = self._at % len(self._traffic.nodes)
        node = self._traffic.nodes[place]
        number = self._traffic.number_of(node)
        session = self._history.connecting(self._number, number)
        device = self._kind(self._traffic.identities[self._number])
        try:
            device.connect(node)
            device.become_callable(lambda call: self._called(call, session))
        # Whatever it is, a device has no connection, and goes on to the next node.
        except Exception:  # noqa: BLE001
            self._history.over(session)
            threading.Thread(target=_vanish, args=(device,), daemon=True).start()
            return None
        self._history.callable(session)
        connection = Connection(device, session, number)
        self._connections.append(connection)
        threading.Thread(target=self._watch, args=(connection,), daemon=True).start()
        return connection

    def _watch(self, connection: Connection) -> None:
        connection.device.ended.wait()
        self._history.over(connection.session, _reason(connection.device))
        _vanish(connection.device)

    def _live(self, connection: Connection) -> None:
        """Calls, until the connection ends or it is time for another."""
        leaves = time.monotonic() + STAYS_S + self._random.uniform(0, 2)
        stopping, calling = self._traffic.stopping, self._traffic.calling
        while not stopping.is_set() and not connection.device.ended.wait(PAUSE_S[self._kind] * self._random.uniform(0.5, 1.5)):
            if calling.is_set():
                self._call(connection)
                if self.manner != "stays" and time.monotonic() > leaves:
                    return
                if self.moves.is_set():
                    self.moves.clear()
                    return

    def _call(self, connection: Connection) -> None:
        target = self._random.randrange(len(self._traffic.identities))
        timeout_ms = self._random.choice(self._traffic.timeouts_ms)
        connect_timeout_ms = self._random.choice([0, timeout_ms])
        call = self._history.called(self._number, target, connection.session, timeout_ms, connect_timeout_ms)
        try:
            answer = connection.device.send_msg(
                self._traffic.identities[target], body_of(call), timeout=timeout_ms, connectTimeout=connect_timeout_ms
            )
        # A connection that ends in this moment.
        except Exception:  # noqa: BLE001
            self._history.ended(call, None)
            return
        answer.then(lambda text: self._history.ended(call, text))

    def _called(self, call: Call, session: int) -> None:
        number = int(call.body)
        self._history.executed(number, session)
        # Over HTTP an answer is a request, which may fail as any other.
        with contextlib.suppress(Exception):
            call.answer(body_of(number))


def _reason(device: Device) -> str | None:
    """Why the node ended a connection, where it said so."""
    said = getattr(getattr(device, "disconnect_reason", None), "value", None)
    said = said or getattr(device, "poll_status", None) or getattr(device, "end_code", None)
    return "taken_over" if said in (0x8E, 409, "4.09") else None


def _vanish(device: Device) -> None:
    with contextlib.suppress(Exception):
        device.vanish()
