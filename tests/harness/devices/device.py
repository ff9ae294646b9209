"""What does a scenario need of a device, whatever it speaks?"""

import json
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, ClassVar, Self

from harness.accounts import Identity
from harness.cluster import Ingress
from harness.waiting import PATIENCE_S

# A parameter that is not sent at all.
ABSENT: Any = object()


class Call:
    """A call that reached a target."""

    def __init__(self, text: str, answer: Callable[[str], None]) -> None:
        self.text = text
        self.answer = answer

    @property
    def body(self) -> Any:
        return json.loads(self.text)["params"]


class Device(ABC):
    """One device: connected to a node, calling others, perhaps called itself."""

    protocol: ClassVar[str]
    # Whether the server sees that the device has gone.
    can_be_lost: ClassVar[bool] = True
    # And even when it says nothing.
    seen_to_vanish: ClassVar[bool] = True

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.calls: queue.Queue[Call] = queue.Queue()
        # Whether it ever was.
        self.is_connected = False
        # Set when the connection has ended, by whomever.
        self.ended = threading.Event()
        self._handler: Callable[[Call], None] | None = None

    @abstractmethod
    def connect(self, node: Ingress) -> Self:
        """Connects, ready to call."""

    @abstractmethod
    def ask(self, request: str) -> "Answer":
        """Sends the text of a request; the result is the text of its answer."""

    @abstractmethod
    def close(self) -> None:
        """Says goodbye."""

    @abstractmethod
    def vanish(self) -> None:
        """Ends the connection without a word."""

    @abstractmethod
    def _listen(self) -> None:
        """Asks for calls, which come to `_called`; returns once the server has agreed."""

    def become_callable(self, handler: Callable[[Call], None] | None = None) -> Self:
        """Takes calls from now on: by `handler`, or one by one out of `next_call`."""
        self._handler = handler
        self._listen()
        return self

    def next_call(self, within_s: float = PATIENCE_S) -> Call:
        return self.calls.get(timeout=within_s)

    def get_devices(self, params: Any = ABSENT) -> str:
        request = {"method": "getDevices"} if params is ABSENT else {"method": "getDevices", "params": params}
        return self.ask(json.dumps(request)).text()

    def send_msg(self, target: Identity | str, body: str | None = None, **params: Any) -> "Answer":
        """Calls `target` with the JSON text `body`; other parameters as given, `timeout` 15 s unless told."""
        device_id = target if isinstance(target, str) else target.id
        parts = [f'"deviceId":"{device_id}"']
        parts += [f'"{name}":{json.dumps(value)}' for name, value in ({"timeout": 15_000} | params).items() if value is not ABSENT]
        if body is not None:
            parts.append(f'"body":{body}')
        return self.ask(f'{{"method":"sendMsg","params":{{{",".join(parts)}}}}}')

    def _called(self, text: str, answer: Callable[[str], None]) -> None:
        call = Call(text, answer)
        if self._handler:
            self._handler(call)
        else:
            self.calls.put(call)


class Answer:
    """An answer that is to come."""

    def __init__(self) -> None:
        self._future: Future[str] = Future()
        # The message that the request went in, where it has a number.
        self.mid: int | None = None

    def came(self, text: str) -> None:
        assert not self._future.done(), f"answered twice: {text}"
        self._future.set_result(text)

    def never_came(self, why: str) -> None:
        if not self._future.done():
            self._future.set_exception(ConnectionError(why))

    def then(self, told: Callable[[str | None], None]) -> None:
        """Tells the text as soon as it is there; None: it never comes."""
        self._future.add_done_callback(lambda it: told(None if it.exception() else it.result()))

    def is_there(self) -> bool:
        return self._future.done()

    def text(self, within_s: float = PATIENCE_S) -> str:
        return self._future.result(within_s)


def answering(text: str) -> Callable[[Call], None]:
    """A handler that answers every call so."""
    return lambda call: call.answer(text)


def echo(call: Call) -> None:
    """A handler that answers with the call's own body."""
    call.answer(json.dumps(call.body))
