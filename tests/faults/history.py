"""What has happened, as devices saw it? Written for the checker of the simulation, and counted for the page."""

import json
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import said
from harness.processes import run
from harness.programs import built

ENDINGS = {
    said.OFFLINE: "offline",
    said.DENIED: "denied",
    said.UNKNOWN_DEVICE: "unknown_device",
    said.BUSY: "busy",
    said.TIMED_OUT: "timed_out",
    said.LOST: "lost",
    said.UNAVAILABLE: "unavailable",
}
# The way from a device to its node and back, and what Python and a busy machine add to it.
LATENCY_S = 1.0
# A call of less time may fail because this machine is busy.
MUST_SUCCEED_FROM_MS = 3_000
# From the end of the last fault, beyond a lease.
SLACK_S = 2.0


@dataclass
class Session:
    """One connection of a device."""

    device: int
    node: int
    begun: float
    callable: float | None = None
    over: float | None = None
    reason: str | None = None


@dataclass
class Call:
    """One call."""

    caller: int
    target: int
    session: int
    timeout_ms: int
    connect_timeout_ms: int
    begun: float
    executed: list[tuple[float, int]] = field(default_factory=list)
    ended: float | None = None
    ending: str | None = None
    is_its_answer: bool = False
    given_up: float | None = None


@dataclass
class Figures:
    """What a row of the page says in numbers."""

    calls: int
    outcomes: dict[str, int]
    failed_though_up: dict[str, int]
    # Seconds that the worst call took beyond its own time.
    worst_over_s: float
    # Seconds from the end of the fault to the last call that failed though its target was up; None: none failed.
    recovered_after_s: float | None


NO_FIGURES = Figures(0, {}, {}, 0, None)


class History:
    """Everything that happens between devices and processes, by the clock of this process."""

    def __init__(self, steady: set[int], lease_s: float, settles_s: float = 0) -> None:
        # So long after the end of a fault all must be well.
        self.well_after_s = max(lease_s, settles_s) + SLACK_S
        # Devices that stay where they are: calls between them must succeed while nothing is wrong.
        self._steady = steady
        self._lock = threading.Lock()
        self._began = time.monotonic()
        self._closed = False
        self.sessions: list[Session] = []
        self.calls: list[Call] = []
        self._assigned: list[tuple[float, int, int | None]] = []
        self._faulty: list[tuple[float, dict[str, Any]]] = []
        self._claims_lost: list[float] = []
        self.broken_from = self.healed = 0.0

    def now(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._began

    def connecting(self, device: int, node: int) -> int:
        with self._lock:
            self.sessions.append(Session(device, node, self.now()))
            return len(self.sessions) - 1

    def callable(self, session: int) -> None:
        with self._lock:
            self.sessions[session].callable = self.now()

    def over(self, session: int, reason: str | None = None) -> None:
        """It is over, and so is the wait of its own calls."""
        with self._lock:
            it = self.sessions[session]
            if self._closed or it.over is not None:
                return
            it.over, it.reason = self.now(), reason
            for call in self.calls:
                if call.session == session and call.ended is None:
                    call.given_up = it.over

    def node_died(self, node: int) -> None:
        for session, it in enumerate(self.sessions):
            if it.node == node:
                self.over(session)

    def called(self, caller: int, target: int, session: int, timeout_ms: int, connect_timeout_ms: int) -> int:
        with self._lock:
            self.calls.append(Call(caller, target, session, timeout_ms, connect_timeout_ms, self.now()))
            return len(self.calls) - 1

    def executed(self, call: int, session: int) -> None:
        with self._lock:
            if not self._closed:
                self.calls[call].executed.append((self.now(), session))

    def ended(self, call: int, text: str | None) -> None:
        """The text that the caller reads; None: it never will."""
        with self._lock:
            it = self.calls[call]
            if self._closed or it.ended is not None or it.given_up is not None:
                return
            if text is None:
                it.given_up = self.now()
                return
            it.ended = self.now()
            is_answer = re.fullmatch(r'"\d+"', text)
            it.ending = "answered" if is_answer else ENDINGS.get(text, "other")
            it.is_its_answer = text == body_of(call)

    def assigned(self, device: int, customer: int | None) -> None:
        with self._lock:
            self._assigned.append((self.now(), device, customer))

    def faulty(self, since: float, process: int | None, *, holds: bool, is_graceful: bool) -> None:
        """Something was wrong until now: with a node of that number, or what all need. `holds`: what was sent then may
        come later. `is_graceful`: nobody is to notice."""
        with self._lock:
            faulty = {"process": process, "until": _micros(self.now()), "holds": holds, "is_graceful": is_graceful}
            self._faulty.append((since, faulty))

    def claims_lost(self) -> None:
        with self._lock:
            self._claims_lost.append(self.now())

    def open_calls(self) -> int:
        with self._lock:
            return sum(call.ended is None and call.given_up is None for call in self.calls)

    def close(self) -> None:
        """Whatever comes now is only tidying up."""
        with self._lock:
            self._closed = True

    def write(self, file: Path) -> None:
        """Lines of JSON, as `./taskw simulate -- --judge FILE` reads them."""
        entries = sorted(self._entries(), key=lambda entry: entry[0])
        terms = {"lease": _micros(self.well_after_s - SLACK_S), "latency": _micros(LATENCY_S)}
        lines = [json.dumps(terms)] + [json.dumps({"at": _micros(at), "event": event}) for at, event in entries]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("\n".join(lines) + "\n")

    def figures(self) -> Figures:
        """Of the calls that their callers heard of."""
        ended = [call for call in self.calls if call.ended is not None]
        failed = [call for call in ended if call.ending != "answered" and self._was_up(call)]
        return Figures(
            calls=len(ended),
            outcomes=dict(Counter(call.ending for call in ended).most_common()),
            failed_though_up=dict(Counter(call.ending for call in failed).most_common()),
            worst_over_s=max((call.ended - call.begun - call.timeout_ms / 1000 for call in ended), default=0),
            recovered_after_s=max(call.begun for call in failed) - self.healed if failed else None,
        )

    def _was_up(self, call: Call) -> bool:
        """Whether its target was connected and subscribed all that time, by one connection alone."""
        near = [it for it in self.sessions if it.device == call.target and it.begun <= call.ended]
        near = [it for it in near if it.over is None or it.over > call.begun]
        return len(near) == 1 and all(
            it.callable is not None and it.callable <= call.begun and it.over is None for it in near
        )

    def _must_succeed(self, call: Call) -> bool:
        if call.timeout_ms < MUST_SUCCEED_FROM_MS or not {call.caller, call.target} <= self._steady:
            return False
        was_before = call.ended is not None and call.ended < self.broken_from
        return was_before or call.begun > self.healed + self.well_after_s

    def _entries(self) -> list[tuple[float, Any]]:
        entries: list[tuple[float, Any]] = []
        for number, it in enumerate(self.sessions):
            entries.append((it.begun, {"connecting": {"device": it.device, "session": number, "node": it.node}}))
            if it.callable is not None:
                entries.append((it.callable, {"callable": {"session": number}}))
            if it.over is not None:
                entries.append((it.over, {"over": {"session": number, "reason": it.reason}}))
        for number, it in enumerate(self.calls):
            called = {"call": number, "caller": it.caller, "target": it.target, "timeout_ms": it.timeout_ms}
            called |= {"connect_timeout_ms": it.connect_timeout_ms, "must_succeed": self._must_succeed(it)}
            entries.append((it.begun, {"called": called}))
            entries += [(at, {"executed": {"call": number, "session": session}}) for at, session in it.executed]
            if it.ended is not None:
                ended = {"call": number, "outcome": it.ending, "is_its_answer": it.is_its_answer}
                entries.append((it.ended, {"ended": ended}))
            elif it.given_up is not None:
                entries.append((it.given_up, {"gave_up": {"call": number}}))
        for at, device, customer in self._assigned:
            entries.append((at, {"assigned": {"device": device, "customer": customer}}))
        entries += [(since, {"faulty": faulty}) for since, faulty in self._faulty]
        entries += [(at, {"claims_lost": {"begins_anew": False}}) for at in self._claims_lost]
        return [*entries, (self.healed, "healed")]


def body_of(call: int) -> str:
    """The JSON text by which a call is known at its target, and its answer at its caller."""
    return f'"{call}"'


def judged(file: Path) -> list[str]:
    """What was not kept, as the simulation's checker says it."""
    ran = run(built("switchboard-simulation"), "--judge", file)
    broken = [line.removeprefix("NOT KEPT: ") for line in ran.out.splitlines() if line.startswith("NOT KEPT: ")]
    assert (ran.code == 0) == (not broken), ran
    return broken


def _micros(seconds: float) -> int:
    return round(seconds * 1_000_000)
